//! The span of one tool call, by OpenTelemetry's conventions for generative AI, and its lines in the log.

use runtime::lines;
use runtime::spans::{self, Span, SpanKind};
use schemas::fact::{FactBody, Sandbox};
use schemas::trace::{Context, span_of};
use schemas::wire::Nanos;
use schemas::{Fact, ToolJob};

/// What is done within it is logged as a part of the call.
pub(crate) fn within(job: &ToolJob) -> tracing::Span {
    lines::within(Context::read(&job.trace).map(|context| context.with_span(id(job))), Some(job.exec))
}

fn id(job: &ToolJob) -> [u8; 8] {
    span_of(job.exec, &format!("{}/{}", job.effect, job.attempt))
}

/// Records a call that has a result, or has none for good.
pub(crate) fn record(job: &ToolJob, worker: &str, from: Nanos, fact: &Fact) {
    let Some(context) = Context::read(&job.trace).filter(|_| spans::exports()) else { return };
    let (sandbox, error): (&Sandbox, _) = match &fact.body {
        FactBody::ToolCompleted(completed) => (&completed.sandbox, None),
        FactBody::ToolFailed(failed) => (&failed.sandbox, Some(failed.detail.clone())),
        _ => return,
    };
    let attributes = vec![
        ("gen_ai.operation.name", "execute_tool".into()),
        ("gen_ai.tool.name", job.tool.clone().into()),
        ("gen_ai.tool.call.id", job.effect.to_string().into()),
        ("vlinders.execution_id", job.exec.to_string().into()),
        ("vlinders.attempt", i64::from(job.attempt).into()),
        ("vlinders.worker", worker.to_owned().into()),
        ("vlinders.sandbox", sandbox.tier.clone().into()),
        ("vlinders.queued_ms", ((from - job.queued_at).max(0) as f64 / 1e6).into()),
    ];
    spans::record(Span {
        name: "execute_tool".into(),
        kind: SpanKind::Consumer,
        context: context.with_span(id(job)),
        parent: Some(context.span),
        from,
        to: fact.at,
        attributes,
        error,
    });
}
