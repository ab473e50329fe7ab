//! The span of one inference, by OpenTelemetry's conventions for generative AI, and its lines in the log.

use runtime::lines;
use runtime::spans::{self, Span, SpanKind};
use schemas::fact::FactBody;
use schemas::trace::{Context, span_of};
use schemas::wire::Nanos;
use schemas::{FinishReason, InferenceJob};

/// What is done within it is logged as a part of the job.
pub(crate) fn within(job: &InferenceJob) -> tracing::Span {
    lines::within(Context::read(&job.trace).map(|context| context.with_span(id(job))), Some(job.exec))
}

fn id(job: &InferenceJob) -> [u8; 8] {
    span_of(job.exec, &format!("{}/{}", job.effect, job.attempt))
}

/// Records what became of a job.
pub(crate) fn record(job: &InferenceJob, worker: &str, from: Nanos, to: Nanos, body: &FactBody) {
    let Some(context) = Context::read(&job.trace).filter(|_| spans::exports()) else { return };
    let milliseconds = |from: Nanos, to: Nanos| (to - from).max(0) as f64 / 1e6;
    let mut attributes = vec![
        ("gen_ai.operation.name", "chat".into()),
        ("gen_ai.provider.name", "vlinders".into()),
        ("gen_ai.request.model", job.model.clone().into()),
        ("vlinders.execution_id", job.exec.to_string().into()),
        ("vlinders.effect", job.effect.to_string().into()),
        ("vlinders.attempt", i64::from(job.attempt).into()),
        ("vlinders.worker", worker.to_owned().into()),
        ("vlinders.queued_ms", milliseconds(job.queued_at, from).into()),
    ];
    let error = match body {
        FactBody::InferenceCompleted(completed) => {
            let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            attributes.extend([
                ("gen_ai.response.finish_reasons", finish(completed.finish).into()),
                ("gen_ai.usage.input_tokens", count(completed.usage.prompt_tokens).into()),
                ("gen_ai.usage.output_tokens", count(completed.usage.completion_tokens).into()),
                ("vlinders.cached_tokens", count(completed.cached_tokens).into()),
            ]);
            None
        }
        FactBody::InferenceFailed(failed) => Some(failed.detail.clone()),
        FactBody::CompressionFailed(failed) => Some(failed.detail.clone()),
        _ => None,
    };
    spans::record(Span {
        name: "inference".into(),
        kind: SpanKind::Consumer,
        context: context.with_span(id(job)),
        parent: Some(context.span),
        from,
        to,
        attributes,
        error,
    });
}

fn finish(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
    }
}
