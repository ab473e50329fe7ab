//! The spans of an execution, recorded when it has ended: `run_agent` (or `run_chat`, `run_tool`, `run_index`), and in an
//! agent's the `tool_calling_loop`, below which its workers record theirs. What is logged of it meanwhile says so.

use runtime::lines;
use runtime::spans::{self, Span, SpanKind};
use schemas::ExecutionId;
use schemas::fact::{Kind, Outcome};
use schemas::trace::{Context, span_of};
use schemas::wire::Nanos;

use crate::execution::Execution;
use crate::work::{LOOP, whole};

/// What is done within it is logged as a part of the execution.
pub(crate) fn within(execution: &Execution, exec: ExecutionId) -> tracing::Span {
    lines::within(place(execution), Some(exec))
}

/// Notes where the execution stands, which may have been unknown before its request was read.
pub(crate) fn note(execution: &Execution) {
    if let Some(context) = place(execution) {
        lines::place(&tracing::Span::current(), context);
    }
}

/// The execution's own span; none outside any trace.
pub(crate) fn place(execution: &Execution) -> Option<Context> {
    let (context, exec) = (Context::read(&execution.trace)?, execution.exec?);
    let kind = execution.request.as_ref().map(|request| request.kind);
    Some(kind.map_or(context, |kind| context.with_span(span_of(exec, whole(kind)))))
}

/// Records what an execution was that ended at this time.
pub(crate) fn record(execution: &Execution, at: Nanos) {
    let (Some(exec), Some(request), Some(end)) = (execution.exec, &execution.request, &execution.end) else { return };
    let Some(context) = Context::read(&execution.trace).filter(|_| spans::exports()) else { return };
    let (name, usage) = (whole(request.kind), execution.budget.usage);
    let operation = if request.kind == Kind::Agent { "invoke_agent" } else { "chat" };
    let mut attributes = vec![
        ("vlinders.execution_id", exec.to_string().into()),
        ("vlinders.outcome", format!("{:?}", end.outcome).to_lowercase().into()),
        ("gen_ai.conversation.id", request.conversation_id.unwrap_or(exec).to_string().into()),
    ];
    if matches!(request.kind, Kind::Agent | Kind::Chat) {
        attributes.extend([
            ("gen_ai.operation.name", operation.into()),
            ("gen_ai.agent.name", request.agent.clone().into()),
            ("gen_ai.request.model", request.model.clone().into()),
            ("gen_ai.usage.input_tokens", whole_number(usage.prompt_tokens).into()),
            ("gen_ai.usage.output_tokens", whole_number(usage.completion_tokens).into()),
        ]);
    }
    let error = (end.outcome != Outcome::Completed).then(|| end.text.clone());
    let id = span_of(exec, name);
    let span = |name: &'static str, id, parent, attributes| Span {
        name: name.into(),
        kind: SpanKind::Internal,
        context: context.with_span(id),
        parent: Some(parent),
        from: exec.made_at(),
        to: at,
        attributes,
        error: error.clone(),
    };
    spans::record(span(name, id, context.span, attributes));
    if request.kind == Kind::Agent {
        let attributes = vec![
            ("vlinders.iterations", i64::from(execution.budget.iterations).into()),
            ("vlinders.tool_calls", i64::from(execution.budget.tool_calls).into()),
        ];
        spans::record(span(LOOP, span_of(exec, LOOP), id, attributes));
    }
}

fn whole_number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
