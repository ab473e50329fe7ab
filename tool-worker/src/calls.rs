//! One call from who asks to what is counted: what it is held against, what is known of it already, the executor.

use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts};
use runtime::Runtime;
use runtime::bus::{Bus, ObjectError};
use schemas::ToolJob;
use schemas::decision::failure_code;
use schemas::fact::{FailureClass, Sandbox};
use schemas::object;
use schemas::rpc::Approval;

use crate::config::Config;
use crate::executor::{Call, Executor, Outcome, Ready, Refused, Why};
use crate::failure::Failure;
use crate::ledger::{self, Ended, Entry, Ledger};
use crate::permission::Permissions;
use crate::registry::Behalf;
use crate::results::{Question, Results};
use crate::service::Error;

/// What a tool is called in metrics that there is not: names come from models, and metrics live long.
const NO_SUCH_TOOL: &str = "unknown";
/// Seconds that calls take: from a warm box to a slow page.
const SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Carries out calls for those who may ask.
pub(crate) struct Calls {
    pub(crate) executor: Executor,
    bus: Bus,
    permissions: Permissions,
    /// None: no result is kept.
    results: Option<Results>,
    ledger: Ledger,
    counted: IntCounterVec,
    seconds: HistogramVec,
}

/// How a call came to its end, with the word under which it is counted.
struct Told {
    ended: Ended,
    word: &'static str,
}

impl Calls {
    pub(crate) fn new(executor: Executor, worker: &str, config: &Config, runtime: Runtime) -> Result<Self, Error> {
        let permissions = Permissions { users: config.users.clone(), agents: config.agents.clone() };
        for (setting, tool) in permissions.missing(&executor.toolbox().now()) {
            tracing::warn!(setting, tool, "a tool is named that is not there, or not yet");
        }
        let counted = Opts::new("vlinders_tool_calls_total", "Tool calls, by how they ended");
        let counted = IntCounterVec::new(counted, &["tool", "outcome"])?;
        let seconds = HistogramOpts::new("vlinders_tool_call_seconds", "Wall time of tool calls that were let through");
        let seconds = HistogramVec::new(seconds.buckets(SECONDS.to_vec()), &["tool"])?;
        runtime.metrics.register(Box::new(counted.clone()))?;
        runtime.metrics.register(Box::new(seconds.clone()))?;
        let (bus, ledger) = (runtime.bus.clone(), Ledger::new(runtime.bus.clone(), worker));
        let results = if config.cache { Some(Results::new(runtime)?) } else { None };
        Ok(Self { executor, bus, permissions, results, ledger, counted, seconds })
    }

    /// Carries out a job, unless its result is known, or it must not be.
    ///
    /// # Errors
    /// The bus does not do what is needed; the job must come again.
    pub(crate) async fn carry_out(&self, job: &ToolJob) -> Result<Ended, ObjectError> {
        let Told { ended, word } = Box::pin(self.told(job)).await?;
        self.count(&job.tool, word);
        if let Some(tool) = self.executor.toolbox().now().tool(&job.tool)
            && ended.duration > Duration::ZERO
        {
            self.seconds.with_label_values(&[tool.name.as_str()]).observe(ended.duration.as_secs_f64());
        }
        Ok(ended)
    }

    /// Counts a call that was given up before it ended.
    pub(crate) fn given_up(&self, tool: &str, class: FailureClass) {
        self.count(tool, failure_code(class));
    }

    fn count(&self, tool: &str, word: &str) {
        let known = self.executor.toolbox().now().tool(tool).is_some();
        self.counted.with_label_values(&[if known { tool } else { NO_SUCH_TOOL }, word]).inc();
    }

    async fn told(&self, job: &ToolJob) -> Result<Told, ObjectError> {
        let call = Call {
            tool: job.tool.clone(),
            arguments: job.arguments.clone(),
            workspace: job.workspace.clone(),
            result_bytes_max: usize::try_from(job.result_bytes_max).unwrap_or(usize::MAX),
            behalf: Behalf { user_id: job.user_id.clone(), exec: Some(job.exec), workspace: job.workspace.clone() },
        };
        let ready = match self.executor.prepare(&call) {
            Ok(ready) => ready,
            Err(Refused { why, failure }) => return Ok(refused(word(why), failure)),
        };
        let tool = ready.tool();
        if let Err(failure) = self.permissions.check(job.user_id.as_deref(), &job.agent, &tool.name) {
            return Ok(refused("not_permitted", failure));
        }
        if tool.approval == Approval::Always && !job.approved {
            let detail = format!(
                "a person must allow each call of {}, and this request began without asking for that: begin it again",
                tool.name
            );
            return Ok(refused("not_approved", Failure::refused(detail)));
        }
        if !tool.effect.is_pure() {
            return self.once(job, ready).await;
        }
        let results = self.results.as_ref().filter(|_| !job.fresh && self.executor.sandbox().is_ok());
        // Boxed: with everything that a call may hold, the future is some forty kilobytes.
        let call = Box::pin(self.executor.carry_out(&ready));
        let outcome = match results.zip(Question::of(&ready)) {
            Some((results, question)) => Box::pin(results.find_or(&question, call)).await,
            None => call.await,
        };
        let ended = self.stored(outcome).await?;
        Ok(Told { word: outcome_word(&ended), ended })
    }

    /// A call that is carried out once, whatever happens.
    async fn once(&self, job: &ToolJob, ready: Ready) -> Result<Told, ObjectError> {
        let tool = ready.tool().name.clone();
        let begun = match self.ledger.begin(job.exec, &job.effect, job.attempt).await? {
            Entry::Begun(begun) => begun,
            Entry::Ended(ended) => return Ok(Told { ended, word: "known" }),
            Entry::Unknown => return Ok(Told { ended: ledger::unknown(&tool), word: "outcome_unknown" }),
        };
        let outcome = self.executor.carry_out(&ready).await;
        let outcome = match outcome.result {
            // Nothing was done for want of room.
            Err(Failure { class: FailureClass::Overloaded, .. }) => {
                if let Err(error) = self.ledger.withdraw(begun).await {
                    tracing::warn!(%error, exec = %job.exec, "a call that was not carried out counts as begun");
                }
                let ended = self.stored(outcome).await?;
                return Ok(Told { word: outcome_word(&ended), ended });
            }
            // An accident in the middle: how far it came nobody knows.
            Err(Failure { class: FailureClass::Internal, detail }) => {
                let detail = format!("outcome unknown: {tool} broke off ({detail}); it may have taken effect");
                Outcome { result: Err(Failure { class: FailureClass::OutcomeUnknown, detail }), ..outcome }
            }
            _ => outcome,
        };
        let ended = self.kept(outcome).await;
        // Once it is carried out nothing keeps its result back: at worst another attempt is told that nobody knows it.
        if let Err(error) = self.ledger.end(begun, &ended).await {
            tracing::warn!(%error, exec = %job.exec, "how a call ended was not written down");
        }
        Ok(Told { word: outcome_word(&ended), ended })
    }

    /// What a result refers to is there before the result is.
    async fn stored(&self, outcome: Outcome) -> Result<Ended, ObjectError> {
        let Outcome { result, full, duration, sandbox } = outcome;
        let full = match full {
            None => None,
            Some(text) => Some(self.bus.put_object(text.as_bytes(), object::TEXT).await?),
        };
        Ok(Ended { result, full, duration, sandbox })
    }

    /// The same where the call cannot come again: without its rest, if that cannot be stored.
    async fn kept(&self, outcome: Outcome) -> Ended {
        let ended = Ended {
            result: outcome.result.clone(),
            full: None,
            duration: outcome.duration,
            sandbox: outcome.sandbox.clone(),
        };
        self.stored(outcome).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the whole of a tool result was not stored; its beginning is");
            ended
        })
    }
}

fn refused(word: &'static str, failure: Failure) -> Told {
    let ended = Ended { result: Err(failure), full: None, duration: Duration::ZERO, sandbox: Sandbox::default() };
    Told { ended, word }
}

/// As a label of metrics.
fn word(why: Why) -> &'static str {
    match why {
        Why::UnknownTool => "unknown_tool",
        Why::Unavailable => "unavailable",
        Why::BadArguments => "bad_arguments",
        Why::BadWorkspace => "bad_workspace",
    }
}

fn outcome_word(ended: &Ended) -> &'static str {
    match &ended.result {
        Ok(_) => "completed",
        Err(failure) => failure_code(failure.class),
    }
}
