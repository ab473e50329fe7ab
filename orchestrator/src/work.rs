//! What an open effect asks of a worker, as a self-contained job. Pure: the same state gives the same job.

use schemas::job::{InferenceJob, ToolJob};
use schemas::wire::{Nanos, Schema};
use schemas::{EffectId, ExecutionId, Message};

use crate::execution::{Effect, Execution, State, Work};

/// A job of either kind.
#[derive(Clone, Debug, PartialEq)]
pub enum AnyJob {
    /// For an inference worker.
    Inference(Box<InferenceJob>),
    /// For a tool worker.
    Tool(Box<ToolJob>),
}

/// One tool result may fill a quarter of the window. Code runs at about five bytes to two tokens.
fn result_bytes_max(window: u32) -> u64 {
    u64::from(window) / 4 * 5 / 2
}

/// The job of an open effect, none when it is not open. `history` stands before the execution's own messages.
#[must_use]
pub fn job(
    exec: ExecutionId,
    execution: &Execution,
    id: &EffectId,
    effect: &Effect,
    history: &[Message],
    queued_at: Nanos,
) -> Option<AnyJob> {
    let request = execution.request.as_deref()?;
    let State::Open { deadline } = effect.state else {
        return None;
    };
    let job = match &effect.work {
        Work::Inference { tokens_max } => AnyJob::Inference(Box::new(InferenceJob {
            schema: InferenceJob::SCHEMA.to_owned(),
            exec,
            effect: id.clone(),
            attempt: effect.attempt,
            deadline,
            queued_at,
            trace: Default::default(),
            model: request.model.clone(),
            messages: history.iter().chain(execution.context.messages()).cloned().collect(),
            tools: request.tools.clone(),
            sampling: request.sampling.clone(),
            tokens_max: *tokens_max,
            user_id: request.user_id.clone(),
        })),
        Work::Tool { call } => AnyJob::Tool(Box::new(ToolJob {
            schema: ToolJob::SCHEMA.to_owned(),
            exec,
            effect: id.clone(),
            attempt: effect.attempt,
            deadline,
            queued_at,
            trace: Default::default(),
            tool: call.function.name.clone(),
            arguments: call.function.arguments.clone(),
            workspace: request.workspace.clone(),
            user_id: request.user_id.clone(),
            result_bytes_max: result_bytes_max(request.window),
        })),
    };
    Some(job)
}
