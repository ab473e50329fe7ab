//! Follows one execution to its end: live messages and token frames as they come, and the log whenever something
//! may have been missed.

use std::collections::VecDeque;
use std::time::Duration;

use runtime::bus::{self, Bus, Kind, Live, Stored, TokenReader};
use schemas::{EffectId, ExecutionId, Frame};

use crate::transcript::{Transcript, Update};
use crate::view::{Entry, Execution, Happening};

/// Republished messages can be lost: after this silence the log is read.
const SILENCE_MAX: Duration = Duration::from_secs(1);

/// One execution, followed for one client.
pub(crate) struct Follow {
    bus: Bus,
    exec: ExecutionId,
    live: Live,
    /// None when the client wants only the end.
    tokens: Option<TokenReader>,
    pub(crate) execution: Execution,
    transcript: Transcript,
    /// Sequence of the newest message folded.
    sequence: u64,
    fact_sequence: u64,
    ready: VecDeque<Update>,
}

enum Heard {
    Message(Option<Stored>),
    Frame(Option<(EffectId, Frame)>),
    Nothing,
}

impl Follow {
    /// Subscribes; whatever is appended afterwards is heard.
    pub(crate) async fn start(bus: &Bus, exec: ExecutionId, stream: bool) -> Result<Self, bus::Error> {
        let tokens = if stream { Some(bus.tokens(exec).await?) } else { None };
        Ok(Self {
            live: bus.live(exec).await?,
            bus: bus.clone(),
            exec,
            tokens,
            execution: Execution::default(),
            transcript: Transcript::default(),
            sequence: 0,
            fact_sequence: 0,
            ready: VecDeque::new(),
        })
    }

    /// Starts with what has happened so far, for a client that comes later; `seen` is what it has seen already.
    pub(crate) async fn catch_up_from(&mut self, seen: Option<(EffectId, u64)>) -> Result<(), bus::Error> {
        if let Some((effect, n)) = seen {
            let frames = self.bus.read_tokens(self.exec, &effect).await?;
            self.transcript = Transcript::resume(&effect, n, &frames);
        }
        self.catch_up().await?;
        // A call that no longer waits for a person is nothing to ask a person about.
        let waiting = self.execution.waiting();
        let waits = |effect: &EffectId| waiting.approvals().any(|(approval, _)| approval.effect == *effect);
        self.ready.retain(|update| !matches!(update, Update::Approval(asked) if !waits(&asked.effect)));
        let open: Vec<EffectId> = self.execution.open().cloned().collect();
        self.turn_to_asked().await?;
        for effect in open {
            for frame in self.bus.read_tokens(self.exec, &effect).await? {
                self.ready.extend(self.transcript.frame(&effect, &frame));
            }
        }
        Ok(())
    }

    /// What comes next; none after the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Update>, bus::Error> {
        loop {
            if let Some(update) = self.ready.pop_front() {
                return Ok(Some(update));
            }
            if self.execution.is_ended() {
                return Ok(None);
            }
            self.turn_to_asked().await?;
            match self.hear().await {
                Heard::Message(Some(stored)) => self.message(&stored).await?,
                Heard::Frame(Some((effect, frame))) => {
                    // An earlier answer whose fact was not heard yet comes first.
                    if !self.execution.open().any(|open| *open == effect) {
                        self.read_on().await?;
                    }
                    self.ready.extend(self.transcript.frame(&effect, &frame));
                }
                Heard::Nothing => self.read_on().await?,
                Heard::Message(None) | Heard::Frame(None) => {
                    return Err(bus::Error::Broken("the connection to NATS closed".to_owned()));
                }
            }
        }
    }

    /// Hears the tokens of the newest inference.
    async fn turn_to_asked(&mut self) -> Result<(), bus::Error> {
        match (&mut self.tokens, self.execution.asked()) {
            (Some(tokens), Some(asked)) => tokens.turn_to(asked).await,
            _ => Ok(()),
        }
    }

    /// Waits for the end.
    pub(crate) async fn end(&mut self) -> Result<(), bus::Error> {
        while self.next().await?.is_some() {}
        Ok(())
    }

    async fn hear(&mut self) -> Heard {
        let tokens = async {
            match &mut self.tokens {
                Some(tokens) => tokens.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            message = self.live.next() => Heard::Message(message),
            frame = tokens => Heard::Frame(frame),
            () = tokio::time::sleep(SILENCE_MAX) => Heard::Nothing,
        }
    }

    async fn message(&mut self, stored: &Stored) -> Result<(), bus::Error> {
        if stored.sequence <= self.sequence {
            return Ok(());
        }
        let entry = Entry::read(stored.kind == Kind::Decision, &stored.payload);
        if self.execution.follows(&entry, self.fact_sequence) {
            self.fold(stored, &entry);
            return Ok(());
        }
        // Something before it may have been missed. Folding anew is safe: the transcript sends nothing twice.
        self.catch_up().await
    }

    async fn catch_up(&mut self) -> Result<(), bus::Error> {
        let messages = self.bus.read_execution(self.exec, 0).await?;
        if messages.last().is_some_and(|last| last.sequence >= self.sequence) {
            self.execution = Execution::default();
            self.fold_all(&messages);
        }
        Ok(())
    }

    async fn read_on(&mut self) -> Result<(), bus::Error> {
        let messages = self.bus.read_execution(self.exec, self.sequence).await?;
        self.fold_all(&messages);
        Ok(())
    }

    fn fold_all(&mut self, messages: &[Stored]) {
        for stored in messages {
            let entry = Entry::read(stored.kind == Kind::Decision, &stored.payload);
            if let Entry::Corrupt(why) = &entry {
                tracing::warn!(exec = %self.exec, sequence = stored.sequence, why, "skipped a message of the log");
            }
            self.fold(stored, &entry);
        }
    }

    fn fold(&mut self, stored: &Stored, entry: &Entry) {
        self.sequence = stored.sequence;
        if stored.kind == Kind::Fact {
            self.fact_sequence = stored.sequence;
        }
        for happening in self.execution.apply(entry) {
            // Without token frames nobody reads along: only the end matters.
            if self.tokens.is_some() || happening == Happening::Ended {
                self.ready.extend(self.transcript.happened(happening));
            }
        }
    }
}
