//! The pure core alone: an agent's log of many turns, folded again and again.

use std::time::Duration;

use orchestrator::execution::Rules;
use orchestrator::history::History;
use runtime::bus::{Kind, Stored};
use runtime::clock;
use schemas::chat::{FinishReason, Message, Role, ToolCall, ToolSpec, Usage};
use schemas::fact::{self, ExecutionSubmitted, InferenceCompleted, InferenceTiming, Limits, Sandbox, ToolCompleted};
use schemas::wire::encode;
use schemas::{EffectId, ExecutionId, Fact, FactBody, Record};
use serde_json::{Value, json};

const TURNS: u32 = 50;
const TOOLS: usize = 3;
const AT_LEAST: Duration = Duration::from_secs(2);

/// A message of the log, read.
enum Read {
    Fact(Fact),
    Decision(Record, u64),
}

pub(crate) fn run() -> Value {
    let exec = clock::execution_id();
    let log = log(exec);
    let read: Vec<Read> = log.iter().map(read).collect();
    let events: usize = read
        .iter()
        .map(|message| match message {
            Read::Fact(_) => 1,
            Read::Decision(record, _) => record.events.len(),
        })
        .sum();
    let decoded = per_second(events, || {
        let mut history = History::new(exec);
        for message in &read {
            match message {
                Read::Fact(fact) => history.execution.apply_fact(fact),
                Read::Decision(record, sequence) => history.commit(record, *sequence),
            }
        }
        assert!(history.execution.is_closed());
    });
    let from_bytes = per_second(events, || {
        let mut history = History::new(exec);
        for stored in &log {
            history.fold(stored).expect("the log reads");
        }
        assert!(history.execution.is_closed());
    });
    json!({"events": events, "folded_per_second": decoded, "read_and_folded_per_second": from_bytes})
}

fn per_second(events: usize, mut round: impl FnMut()) -> f64 {
    let (began, mut rounds) = (clock::instant(), 0);
    while began.elapsed() < AT_LEAST {
        round();
        rounds += 1;
    }
    (events * rounds) as f64 / began.elapsed().as_secs_f64()
}

fn read(stored: &Stored) -> Read {
    match stored.kind {
        Kind::Fact => Read::Fact(Fact::read(&stored.payload).expect("our own fact")),
        Kind::Decision => Read::Decision(Record::read(&stored.payload).expect("our own decision"), stored.sequence),
    }
}

/// The log of an agent that asks three tools in each of its turns, as the shell would write it.
fn log(exec: ExecutionId) -> Vec<Stored> {
    let mut log = Log { history: History::new(exec), messages: Vec::new() };
    let limits =
        Limits { iterations: 1_000, tokens: u64::MAX, tool_calls: 10_000, deadline: i64::MAX, ..Limits::default() };
    log.fact(FactBody::ExecutionSubmitted(Box::new(ExecutionSubmitted {
        model: "stub".to_owned(),
        window: 1_000_000,
        messages: vec![Message::text(Role::User, "Do something.")],
        tools: (0..TOOLS).map(|i| ToolSpec::new(format!("tool_{i}"), "", json!({}))).collect(),
        ..ExecutionSubmitted::new(fact::Kind::Agent, "bench", limits)
    })));
    for turn in 1..=TURNS {
        let calls = if turn < TURNS { TOOLS } else { 0 };
        // No two turns ask the same: an execution that repeats itself is stopped.
        let arguments = format!("{{\"turn\": {turn}}}");
        let call = |i| ToolCall::new(format!("call-{turn}-{i}"), format!("tool_{i}"), &arguments);
        log.fact(FactBody::InferenceCompleted(InferenceCompleted {
            effect: EffectId::inference(turn),
            attempt: 1,
            worker: "stub".to_owned(),
            text: "an answer of about this length".to_owned(),
            tool_calls: (0..calls).map(call).collect(),
            finish: if calls > 0 { FinishReason::ToolCalls } else { FinishReason::Stop },
            usage: Usage::new(10, 10),
            cached_tokens: 0,
            timing: InferenceTiming::default(),
            logprobs: Vec::new(),
            alternatives: Vec::new(),
            cached: false,
            dropped_messages: 0,
        }));
        for i in 0..calls {
            log.fact(FactBody::ToolCompleted(ToolCompleted {
                full: None,
                effect: EffectId::tool(turn, i),
                attempt: 1,
                worker: "stub".to_owned(),
                result: "a result of about this length".to_owned(),
                duration_us: 1,
                sandbox: Sandbox::default(),
            }));
        }
    }
    log.messages
}

struct Log {
    history: History,
    messages: Vec<Stored>,
}

impl Log {
    fn fact(&mut self, body: FactBody) {
        let fact = Fact::new(self.history.exec, self.messages.len() as i64, body);
        self.push(Kind::Fact, encode(&fact));
        if let Some(record) = self.history.decide(Rules::current()) {
            self.push(Kind::Decision, encode(&record));
        }
    }

    fn push(&mut self, kind: Kind, payload: Vec<u8>) {
        let sequence = self.messages.len() as u64 + 1;
        let stored = Stored { exec: self.history.exec, sequence, stored_at: 0, kind, payload: payload.into() };
        self.history.fold(&stored).expect("our own message");
        self.messages.push(stored);
    }
}
