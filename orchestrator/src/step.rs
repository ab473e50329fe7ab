//! One step of one execution: folds what came, asks the core, commits, carries out, then acknowledges.
//!
//! A crash between any two of these repeats work and loses none: an unacknowledged fact comes again, a commit of the
//! same decision is recognised, an order is given once per attempt.
//!
//! An open execution must be found by a successor. A young one is found by its submission, which stays
//! unacknowledged; one that lives longer is written into the index, and only then is its submission acknowledged.
//! Most executions end young, and cost no write beyond their log.

use std::collections::BTreeSet;
use std::time::Duration;

use runtime::bus::{Commit, FactDelivery, Kind};
use runtime::{bus, clock};
use schemas::fact::TimerFired;
use schemas::wire::Nanos;
use schemas::{Event, ExecutionId, Fact, FactBody, stream};
use tracing::Instrument as _;

use crate::carry_out::{Hands, Open, Owned};
use crate::completion::Asking;
use crate::execution::Rules;
use crate::traced;

/// How long a fact waits after a failure of the bus.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(300);
/// How long a job waits for room in its queue, nanoseconds.
const QUEUE_RETRY: Nanos = 200_000_000;
/// How long an execution is young, nanoseconds: far below the time after which an unacknowledged fact comes again.
const YOUNG_FOR: Nanos = 2_000_000_000;
const _: () = assert!((YOUNG_FOR as u128) * 4 < stream::FACT_ACK_WAIT.as_nanos());
/// Times a decision is taken anew because the log moved on, before the facts are put back.
const STALE_MAX: usize = 32;

/// What there is to do about one execution.
#[derive(Default)]
pub(crate) struct Todo {
    /// Take these in.
    pub(crate) facts: Vec<FactDelivery>,
    /// Take it up from the log.
    pub(crate) recover: bool,
    /// It stands in the index.
    pub(crate) indexed: bool,
    /// Its jobs may be gone: give every order again.
    pub(crate) republish: bool,
    /// Somebody else may have owned it meanwhile: read it anew.
    pub(crate) reload: bool,
    /// Its moment has come.
    pub(crate) woken: bool,
    /// Write it into the index, however young it is.
    pub(crate) index: bool,
}

impl Todo {
    pub(crate) fn add(&mut self, more: Self) {
        self.facts.extend(more.facts);
        self.recover |= more.recover;
        self.indexed |= more.indexed;
        self.republish |= more.republish;
        self.reload |= more.reload;
        self.woken |= more.woken;
        self.index |= more.index;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.facts.is_empty() && !(self.recover || self.republish || self.woken || self.index)
    }

    pub(crate) async fn put_back(self) {
        for fact in self.facts {
            put_back(fact).await;
        }
    }
}

/// The submission of a young execution, kept unacknowledged.
pub(crate) struct Kept {
    fact: FactDelivery,
    since: Nanos,
}

/// Does what there is to do. Returns the execution, or none when it must be read anew from the log: then all of it
/// was put back.
pub(crate) async fn step(hands: Hands, owned: Box<Owned>, todo: Todo) -> (ExecutionId, Option<Box<Owned>>) {
    let within = traced::within(&owned.history.execution, owned.history.exec);
    one(hands, owned, todo).instrument(within).await
}

/// The same, logged as a part of the execution.
async fn one(hands: Hands, mut owned: Box<Owned>, todo: Todo) -> (ExecutionId, Option<Box<Owned>>) {
    let exec = owned.history.exec;
    match advance(&hands, &mut owned, &todo).await {
        Ok(()) => {
            let kept_back = quarantine(&hands, &owned, &todo.facts).await;
            acknowledge(&mut owned, todo.facts, &kept_back).await;
            (exec, Some(owned))
        }
        Err(error) => {
            tracing::warn!(%exec, %error, facts = todo.facts.len(), "a step was put back");
            hands.liveness.forget(exec);
            todo.put_back().await;
            let_go(*owned).await;
            (exec, None)
        }
    }
}

/// When an execution wants to be woken.
pub(crate) fn due(owned: &Owned) -> Option<Nanos> {
    let grown = owned.kept.as_ref().map(|kept| kept.since + YOUNG_FOR);
    [owned.wake().map(|(_, at)| at), owned.room_at, owned.asking.at, grown].into_iter().flatten().min()
}

/// Leaves an execution to somebody else.
pub(crate) async fn let_go(owned: Owned) {
    if let Some(kept) = owned.kept {
        put_back(kept.fact).await;
    }
}

async fn advance(hands: &Hands, owned: &mut Owned, todo: &Todo) -> Result<(), bus::Error> {
    let known = owned.history.execution.request.is_some();
    take_in(hands, owned, todo).await?;
    if !known {
        traced::note(&owned.history.execution);
    }
    if todo.woken {
        fire(hands, owned).await;
    }
    commit(hands, owned).await?;
    hands.dismiss(owned).await?;
    if owned.is_unknown() {
        return Ok(());
    }
    if owned.history.execution.is_closed() {
        hands.liveness.forget(owned.history.exec);
        // First told, then forgotten: a crash in between tells twice, which does no harm.
        hands.report(owned).await?;
        hands.unindex(owned).await?;
        release(owned).await;
        // Nothing waits any more, neither for room in a queue nor to be counted.
        (owned.open, owned.full, owned.room_at) = (None, false, None);
        owned.asking = Asking::default();
        return Ok(());
    }
    owned.open.get_or_insert_with(|| Open::new(&hands.metrics.open));
    hands.complete(owned).await?;
    hands.order_open(owned).await?;
    if owned.full {
        owned.room_at = Some(clock::now() + QUEUE_RETRY);
    }
    if owned.indexed.is_none() && !todo.index && is_young(owned, todo) {
        return Ok(());
    }
    hands.index(owned).await?;
    release(owned).await;
    Ok(())
}

async fn take_in(hands: &Hands, owned: &mut Owned, todo: &Todo) -> Result<(), bus::Error> {
    // A request needs no reading: if it is not the first message, the commit says so. Behind a child's request there may
    // be a cancel before it, which the commit cannot notice.
    let fresh = owned.history.sequence == 0 && !todo.facts.first().is_some_and(is_first);
    // What is in memory may miss what another owner took in, and jobs must not be given again from that.
    if fresh || todo.reload || todo.republish {
        owned.history = hands.load(owned.history.exec).await?;
    }
    if todo.indexed && owned.indexed.is_none() {
        owned.indexed = Some(owned.history.decisions());
    }
    for fact in &todo.facts {
        let stored = &fact.stored;
        if let Err(unreadable) = owned.history.fold(stored) {
            let (exec, sequence) = (stored.exec, unreadable.sequence);
            tracing::error!(%exec, sequence, reason = %unreadable.reason, "skipped a message of the log that cannot be read");
        }
        if owned.history.execution.is_closed() && is_submission(fact) {
            // Asked for again by a parent that has not heard of the end: it is told once more.
            owned.reported = false;
        }
    }
    if todo.republish {
        owned.placed.clear();
        owned.fired.clear();
    }
    Ok(())
}

/// Appends the fact of a timer whose moment has come.
async fn fire(hands: &Hands, owned: &mut Owned) {
    let (exec, now) = (owned.history.exec, clock::now());
    let Some((timer, due)) = owned.wake().filter(|(_, at)| *at <= now) else {
        return;
    };
    let fact = Fact::new(exec, now, FactBody::TimerFired(TimerFired { timer: timer.clone(), due }));
    match hands.runtime.bus.append_fact(&fact).await {
        Ok(_) => drop(owned.fired.insert((timer, due))),
        Err(error) => tracing::warn!(%exec, timer, %error, "a timer's fact was not stored; trying again"),
    }
}

/// Commits what follows, until nothing does.
async fn commit(hands: &Hands, owned: &mut Owned) -> Result<(), bus::Error> {
    let exec = owned.history.exec;
    for _ in 0..STALE_MAX {
        let Some(record) = owned.history.decide(Rules::current()) else {
            break;
        };
        match hands.runtime.bus.commit(&record, owned.history.sequence).await? {
            Commit::Done(sequence) => {
                hands.metrics.decisions.inc();
                tracing::debug!(sequence, events = ?Names(&record.events), "decided");
                owned.history.commit(&record, sequence);
                if record.events.iter().any(Event::is_terminal) {
                    traced::record(&owned.history.execution, record.at);
                }
                hands.liveness.forget(exec);
                hands.withdraw(owned, &record).await;
            }
            // A fact folded optimistically may not have been the first: begin anew from the log.
            Commit::Stale => owned.history = hands.load(exec).await?,
        }
    }
    Ok(())
}

/// Events as a line of the log names them.
struct Names<'a>(&'a [Event]);

impl std::fmt::Debug for Names<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(Event::name)).finish()
    }
}

/// Whether its submission will do for finding it.
fn is_young(owned: &Owned, todo: &Todo) -> bool {
    match &owned.kept {
        Some(kept) => clock::now() < kept.since + YOUNG_FOR,
        None => todo.facts.iter().any(is_submission),
    }
}

/// Quarantines those of the facts that are of no use. Returns the sequences of those that could not be: they come again,
/// and nothing waits for them.
async fn quarantine(hands: &Hands, owned: &Owned, facts: &[FactDelivery]) -> BTreeSet<u64> {
    let mut kept_back = BTreeSet::new();
    for fact in facts {
        if let Err(error) = hands.quarantine(&owned.history.execution, &fact.stored).await {
            let (exec, sequence) = (fact.stored.exec, fact.stored.sequence);
            tracing::warn!(%exec, sequence, %error, "a fact of no use is not quarantined yet; it comes again");
            kept_back.insert(sequence);
        }
    }
    kept_back
}

/// All that followed from these facts is stored.
async fn acknowledge(owned: &mut Owned, facts: Vec<FactDelivery>, kept_back: &BTreeSet<u64>) {
    let young = !(owned.is_unknown() || owned.history.execution.is_closed()) && owned.indexed.is_none();
    for fact in facts {
        if kept_back.contains(&fact.stored.sequence) {
            put_back(fact).await;
        } else if young && is_submission(&fact) {
            let since = owned.kept.as_ref().map_or_else(clock::now, |kept| kept.since);
            // One is enough to be found by: what a request comes to stands behind it.
            if let Some(before) = owned.kept.replace(Kept { fact, since }) {
                done(before.fact).await;
            }
        } else {
            done(fact).await;
        }
    }
}

/// A kept submission has done its service.
async fn release(owned: &mut Owned) {
    if let Some(kept) = owned.kept.take() {
        done(kept.fact).await;
    }
}

async fn done(fact: FactDelivery) {
    let exec = fact.stored.exec;
    if let Err(error) = fact.done().await {
        tracing::debug!(%exec, %error, "an acknowledgement was not sent; the fact will come again");
    }
}

async fn put_back(fact: FactDelivery) {
    let exec = fact.stored.exec;
    if let Err(error) = fact.later(RETRY_AFTER).await {
        tracing::debug!(%exec, %error, "a fact was not put back; it comes again by itself");
    }
}

/// Whether a message is surely the first of its execution, unless a commit says otherwise.
fn is_first(delivery: &FactDelivery) -> bool {
    matches!(body(delivery), Some(FactBody::ExecutionSubmitted(request)) if request.parent.is_none())
}

fn is_submission(delivery: &FactDelivery) -> bool {
    matches!(body(delivery), Some(FactBody::ExecutionSubmitted(_) | FactBody::ExecutionRequested(_)))
}

fn body(delivery: &FactDelivery) -> Option<&FactBody> {
    delivery.fact().filter(|_| delivery.stored.kind == Kind::Fact).map(|fact| &fact.body)
}
