//! How others ask for a change: whoever of the workers gets the question finds those that should do it.
//!
//! A load goes to a worker that has the model already, or else to the one with the most room that knows it; an unload or
//! switch goes to all that have it. A question that names a worker goes there and nowhere else.

use std::time::Duration;

use futures::future::join_all;
use runtime::bus;
use schemas::{
    models::{Change, ChangeModels, InferenceState, ModelState, Operation, OperationState},
    presence::Worker,
    rpc::{Refusal, Reply},
    stream, subject,
    wire::decode,
};

use super::{
    Models,
    registry::{names, refusal},
};
use crate::service::Error;

/// How long another worker may take to begin.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A worker and what it says of its models.
type Peer = (String, InferenceState);

impl Models {
    /// Answers questions until the soft token falls.
    pub(crate) async fn serve(&self) -> Result<(), Error> {
        let runtime = &self.service.runtime;
        let all = self.clone();
        let answer = move |question| {
            let this = all.clone();
            async move { reply(this.arrange(question).await) }
        };
        runtime.bus.serve(&runtime.tasks, subject::RPC_MODELS_CHANGE, answer).await?;
        let own = self.clone();
        let answer = move |question: ChangeModels| {
            let this = own.clone();
            async move { reply(this.change(question.change).await.map(|operation| vec![operation])) }
        };
        runtime.bus.serve(&runtime.tasks, &subject::rpc_models_change(&self.service.id), answer).await?;
        Ok(())
    }

    /// Finds the workers that should do it, and has them do it.
    pub(super) async fn arrange(&self, question: ChangeModels) -> Result<Vec<Operation>, Refusal> {
        let ChangeModels { change, worker } = question;
        let peers = self.peers().await;
        if let Some(worker) = worker {
            if peers.iter().all(|(id, _)| *id != worker) {
                let there = names(peers.iter().map(|(id, _)| id.as_str()));
                return Err(refusal(
                    "unknown_worker",
                    format!("there is no inference worker {worker:?}; there are: {there}"),
                ));
            }
            return self.ask(&worker, &change).await;
        }
        match &change {
            Change::Load { model } => self.load_somewhere(&peers, model, &change).await,
            Change::Unload { model: gone, .. } | Change::Switch { from: gone, .. } => {
                self.change_everywhere(&peers, gone, &change).await
            }
        }
    }

    /// All inference workers, this one first.
    pub(super) async fn peers(&self) -> Vec<Peer> {
        let mut peers = vec![(self.service.id.clone(), self.announced.borrow().state.clone())];
        match self.service.runtime.bus.entries(stream::BUCKET_WORKERS, ">").await {
            Ok(entries) => {
                let read = entries.iter().filter_map(|(_, value)| decode::<Worker>(value).ok());
                let others = read.filter(|worker| worker.id != self.service.id);
                peers.extend(others.filter_map(|worker| Some((worker.id, worker.inference?))));
            }
            Err(error) => tracing::warn!(%error, "other workers are not known; going on alone"),
        }
        peers
    }

    async fn load_somewhere(&self, peers: &[Peer], model: &str, change: &Change) -> Result<Vec<Operation>, Refusal> {
        let mut refused: Option<Refusal> = None;
        for (worker, _) in by_fitness(peers, model) {
            match self.ask(worker, change).await {
                Ok(operations) => return Ok(operations),
                // The first that knows the model says more than those that do not.
                Err(why) if refused.as_ref().is_none_or(|earlier| earlier.code == "unknown_model") => {
                    refused = Some(why)
                }
                Err(_) => {}
            }
        }
        let refused = refused.expect("this worker is always asked");
        Err(if refused.code == "unknown_model" { unknown(peers, model) } else { refused })
    }

    async fn change_everywhere(&self, peers: &[Peer], gone: &str, change: &Change) -> Result<Vec<Operation>, Refusal> {
        let is_held = |(_, state): &&Peer| {
            let held = state_of(state, gone);
            matches!(held, Some(ModelState::Ready | ModelState::Draining | ModelState::Loading { .. }))
        };
        let holders: Vec<&Peer> = peers.iter().filter(is_held).collect();
        if holders.is_empty() {
            let is_known = peers.iter().any(|(_, state)| state_of(state, gone).is_some());
            return Err(if is_known { not_loaded(peers, gone) } else { unknown(peers, gone) });
        }
        let asked = join_all(holders.iter().map(|(worker, _)| self.ask(worker, change))).await;
        let now = runtime::clock::now();
        let mut operations = Vec::new();
        let mut refused = None;
        for ((worker, _), answer) in holders.iter().zip(asked) {
            match answer {
                Ok(begun) => operations.extend(begun),
                Err(why) => {
                    // Others may do it: for them this one's refusal is told as an operation that came to nothing.
                    let state = OperationState::Failed { reason: why.detail.clone() };
                    let (id, worker) = (format!("{worker}.0"), worker.clone());
                    let ended_at = Some(now);
                    operations.push(Operation { id, worker, change: change.clone(), state, started_at: now, ended_at });
                    refused.get_or_insert(why);
                }
            }
        }
        let failed = |operation: &Operation| matches!(operation.state, OperationState::Failed { .. });
        match refused {
            Some(why) if operations.iter().all(failed) => Err(why),
            _ => Ok(operations),
        }
    }

    async fn ask(&self, worker: &str, change: &Change) -> Result<Vec<Operation>, Refusal> {
        if worker == self.service.id {
            return self.change(change.clone()).await.map(|operation| vec![operation]);
        }
        let question = ChangeModels { change: change.clone(), worker: Some(worker.to_owned()) };
        let subject = subject::rpc_models_change(worker);
        match self.service.runtime.bus.ask::<_, Reply<Vec<Operation>>>(&subject, &question, TIMEOUT).await {
            Ok(Reply::Ok(operations)) => Ok(operations),
            Ok(Reply::Err(refusal)) => Err(refusal),
            Err(bus::Error::NoResponders(_)) => Err(refusal("worker_gone", format!("{worker} has gone"))),
            Err(error) => Err(refusal("worker_silent", format!("{worker} was asked and did not answer: {error}"))),
        }
    }
}

fn reply(answer: Result<Vec<Operation>, Refusal>) -> Reply<Vec<Operation>> {
    match answer {
        Ok(operations) => Reply::Ok(operations),
        Err(refusal) => Reply::Err(refusal),
    }
}

/// The workers in the order in which they should be asked to load a model: who has it, who is reading it, who knows it,
/// the others (whose directories may just have changed); of equals the one with the most room.
fn by_fitness<'a>(peers: &'a [Peer], model: &str) -> Vec<&'a Peer> {
    let rank = |state: &InferenceState| match state_of(state, model) {
        Some(ModelState::Ready) => 0,
        Some(ModelState::Loading { .. }) => 1,
        Some(_) => 2,
        None => 3,
    };
    let free = |state: &InferenceState| state.memory.max_bytes.saturating_sub(state.memory.taken_bytes);
    let mut ordered: Vec<&Peer> = peers.iter().collect();
    ordered.sort_by_key(|(_, state)| (rank(state), std::cmp::Reverse(free(state))));
    ordered
}

fn state_of<'a>(state: &'a InferenceState, model: &str) -> Option<&'a ModelState> {
    state.models.iter().find(|known| known.name == model).map(|known| &known.state)
}

fn of_all<'a>(peers: &'a [Peer], wanted: impl Fn(&ModelState) -> bool) -> String {
    let all = peers.iter().flat_map(|(_, state): &'a Peer| &state.models);
    let found: std::collections::BTreeSet<&str> =
        all.filter(|known| wanted(&known.state)).map(|known| known.name.as_str()).collect();
    names(found.into_iter())
}

fn unknown(peers: &[Peer], model: &str) -> Refusal {
    let there = of_all(peers, |_| true);
    refusal("unknown_model", format!("no worker has a model {model:?} in its directories; there are: {there}"))
}

fn not_loaded(peers: &[Peer], model: &str) -> Refusal {
    let loaded = of_all(peers, |state| *state == ModelState::Ready);
    refusal("not_loaded", format!("{model} is not loaded; loaded are: {loaded}"))
}

#[cfg(test)]
mod tests {
    use schemas::models::{HostMemory, KnownModel};

    use super::*;

    fn peer(id: &str, free: u64, state: Option<ModelState>) -> Peer {
        let known = |state| KnownModel {
            name: "a".into(),
            kind: "chat".into(),
            window: 1,
            state,
            weights_bytes: 1,
            cache_bytes_max: 1,
            device: None,
        };
        let memory = HostMemory { max_bytes: free + 5, taken_bytes: 5, kept_bytes: 0 };
        (id.into(), InferenceState { models: state.map(known).into_iter().collect(), memory, ..Default::default() })
    }

    #[test]
    fn a_load_goes_to_who_has_it_then_to_who_knows_it_and_has_the_most_room() {
        let peers = [
            peer("stranger", 90, None),
            peer("small", 10, Some(ModelState::Known)),
            peer("large", 50, Some(ModelState::Failed { reason: String::new() })),
            peer("reading", 1, Some(ModelState::Loading { progress: 0.5 })),
            peer("has", 0, Some(ModelState::Ready)),
        ];
        let order: Vec<&str> = by_fitness(&peers, "a").iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(order, ["has", "reading", "large", "small", "stranger"]);
        assert!(unknown(&peers, "b").detail.ends_with("there are: a"));
        assert!(not_loaded(&peers[..3], "a").detail.ends_with("loaded are: none"));
    }
}
