//! One call from who asks to what is counted: permission, what is known already, the executor.

use prometheus::{IntCounterVec, Opts};
use runtime::Runtime;
use schemas::fact::{FailureClass, Sandbox};

use crate::config::Config;
use crate::executor::{Call, Executor, Outcome};
use crate::failure::Failure;
use crate::permission::Permissions;
use crate::registry::SideEffect;
use crate::results::{Question, Results};
use crate::service::Error;

/// What a tool is called in metrics that there is not: names come from models, and metrics live long.
const NO_SUCH_TOOL: &str = "unknown";

/// Carries out calls for those who may ask.
pub(crate) struct Calls {
    pub(crate) executor: Executor,
    permissions: Permissions,
    /// None: no result is kept.
    results: Option<Results>,
    counted: IntCounterVec,
}

impl Calls {
    pub(crate) fn new(executor: Executor, config: &Config, runtime: Runtime) -> Result<Self, Error> {
        let permissions = Permissions::new(&config.users, executor.registry()).map_err(Error::Settings)?;
        let counted = Opts::new("vlinders_tool_calls_total", "Tool calls, by how they ended");
        let counted = IntCounterVec::new(counted, &["tool", "outcome"])?;
        runtime.metrics.register(Box::new(counted.clone()))?;
        let results = if config.cache { Some(Results::new(runtime)?) } else { None };
        Ok(Self { executor, permissions, results, counted })
    }

    /// Carries out a call on behalf of a user, unless its result is known and need not be `fresh`.
    pub(crate) async fn carry_out(&self, call: &Call, user: Option<&str>, fresh: bool) -> Outcome {
        match self.permissions.check(user, &call.tool) {
            Ok(()) => self.known_or_called(call, fresh).await,
            Err(failure) => refused(failure),
        }
    }

    /// Counts how a call ended.
    pub(crate) fn count(&self, tool: &str, outcome: &Outcome) {
        let known = self.executor.registry().tools().map(|known| known.name).find(|known| *known == tool);
        let outcome = match &outcome.result {
            Ok(_) => "completed",
            Err(failure) => name(failure.class),
        };
        self.counted.with_label_values(&[known.unwrap_or(NO_SUCH_TOOL), outcome]).inc();
    }

    async fn known_or_called(&self, call: &Call, fresh: bool) -> Outcome {
        let Some(results) = self.results.as_ref().filter(|_| !fresh && self.executor.sandbox().is_ok()) else {
            return self.executor.execute(call).await;
        };
        // What is wrong with a call the executor says, with the same words as ever.
        let Ok((tool, arguments)) = self.executor.registry().check(&call.tool, &call.arguments) else {
            return self.executor.execute(call).await;
        };
        let workspace = self.executor.workspace(call.workspace.as_deref().unwrap_or_default());
        match workspace {
            Ok(workspace) if tool.effect == SideEffect::ReadsWorkspace => {
                let (bytes_max, workspace) = (call.result_bytes_max, workspace.path());
                let question = Question { tool: tool.name, arguments: &arguments, bytes_max, workspace };
                results.find_or(&question, self.executor.execute(call)).await
            }
            _ => self.executor.execute(call).await,
        }
    }
}

fn refused(failure: Failure) -> Outcome {
    Outcome { result: Err(failure), full: None, duration: std::time::Duration::ZERO, sandbox: Sandbox::default() }
}

/// As a label of metrics.
fn name(class: FailureClass) -> &'static str {
    match class {
        FailureClass::Overloaded => "overloaded",
        FailureClass::Internal => "internal",
        FailureClass::Overflow => "overflow",
        FailureClass::BadRequest => "bad_request",
        FailureClass::Unknown => "unknown",
        FailureClass::Timeout => "timeout",
        FailureClass::Refused => "refused",
        FailureClass::Cancelled => "cancelled",
    }
}
