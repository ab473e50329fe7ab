//! Requests of plain NATS clients: a gateway is asked what each comes to, and its answer becomes a fact.
//!
//! A request is safe from the moment it is in the log, also while there is no gateway: it waits for one. What it comes to
//! rests on what is there at that moment (agent types, models, tools). That is asked once and recorded, so that replaying
//! the execution needs nobody.

use std::time::Duration;

use runtime::{bus, clock};
use schemas::fact::ExecutionSubmitted;
use schemas::rpc::{Complete, Completion};
use schemas::wire::Nanos;
use schemas::{Fact, FactBody, subject};

use crate::carry_out::{Hands, Owned};

/// How long a gateway may take.
const WITHIN: Duration = Duration::from_secs(5);
/// After this long a gateway is asked again, nanoseconds.
const AGAIN_AFTER: Nanos = 1_000_000_000;
/// How long a request waits for what is away (a model, a tool worker) before it is refused, nanoseconds: longer than a
/// worker takes to start. For a gateway it waits as long as it takes.
const PATIENCE: Nanos = 600_000_000_000;

/// A request of which nobody has said yet what it comes to.
#[derive(Default)]
pub(crate) struct Asking {
    /// When a gateway said first that something is away.
    away_since: Option<Nanos>,
    /// When to ask next.
    pub(crate) at: Option<Nanos>,
}

impl Hands {
    /// Asks what the request comes to, if that is not known and it is time to ask.
    pub(crate) async fn complete(&self, owned: &mut Owned) -> Result<(), bus::Error> {
        let execution = &owned.history.execution;
        let Some(requested) = execution.awaits_completion() else {
            owned.asking = Asking::default();
            return Ok(());
        };
        let now = clock::now();
        if owned.asking.at.is_some_and(|at| now < at) {
            return Ok(());
        }
        owned.asking.at = Some(now + AGAIN_AFTER);
        let question = Complete { request: requested.request.clone() };
        let answer = self.runtime.bus.ask(subject::RPC_SUBMISSION, &question, WITHIN).await;
        let body = match answer {
            Ok(Completion::Submission(submitted)) => {
                let reply = requested.reply.clone();
                FactBody::ExecutionSubmitted(Box::new(ExecutionSubmitted { reply, ..*submitted }))
            }
            Ok(Completion::Refused(problem)) => {
                let since = *owned.asking.away_since.get_or_insert(now);
                if problem.status == 503 && now < since + PATIENCE {
                    return Ok(());
                }
                FactBody::ExecutionRefused(problem)
            }
            Err(error) => {
                tracing::debug!(exec = %owned.history.exec, %error, "no gateway says what a request comes to; asking again");
                return Ok(());
            }
        };
        let mut fact = Fact::new(owned.history.exec, clock::now(), body);
        fact.trace.clone_from(&execution.trace);
        // It comes back as every fact does.
        self.runtime.bus.append_fact(&fact).await.map(|_| ())
    }
}
