//! What an execution's model would read after one of its messages: the beginning of another execution. Asked for by the
//! edge, which knows of requests and answers, and nothing of how a context comes about.

use runtime::bus::{Bus, Kind, Stored};
use runtime::{Runtime, bus};
use schemas::chat::{Message, Role};
use schemas::fact::{ExecutionSubmitted, Kind as RequestKind};
use schemas::rpc::{Fork, Forked, Refusal, Reply};
use schemas::{Event, ExecutionId, Fact, FactBody, Record, subject};

use crate::execution::{Execution, Phase};
use crate::history::History;

/// What stands for the result of a call whose result came later than the fork.
const NOT_CARRIED_OUT: &str = "error: this call was not carried out; make it again if it is still wanted";

/// Answers questions for forks until the soft token falls.
pub(crate) async fn serve(runtime: &Runtime) -> Result<(), bus::Error> {
    let bus = runtime.bus.clone();
    let answer = move |question: Fork| {
        let bus = bus.clone();
        async move { answer(&bus, question).await }
    };
    runtime.bus.serve(&runtime.tasks, subject::RPC_FORK, answer).await
}

async fn answer(bus: &Bus, question: Fork) -> Reply<Forked> {
    match bus.read_execution(question.exec, 0).await {
        Ok(messages) => match fork(question.exec, &messages, question.at) {
            Ok(forked) => Reply::Ok(forked),
            Err((code, detail)) => Reply::Err(Refusal { code: code.to_owned(), detail }),
        },
        Err(error) => Reply::Err(Refusal { code: "log_unavailable".to_owned(), detail: error.to_string() }),
    }
}

/// The request of an execution that begins where this one stood after message `at`, or why there is none.
fn fork(exec: ExecutionId, messages: &[Stored], at: u64) -> Result<Forked, (&'static str, String)> {
    let Some(last) = messages.len().checked_sub(1) else {
        return Err(("unknown_execution", format!("there is no execution {exec}")));
    };
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    if at > last {
        return Err((
            "out_of_range",
            format!("the execution has the messages 0 to {last}, there is none of number {at}"),
        ));
    }
    let (mut history, mut pending, mut submitted_at) = (History::new(exec), Vec::new(), 0);
    for message in &messages[..=at] {
        // What cannot be read led to nothing there, and does so here.
        let _ = history.fold(message);
        match message.kind {
            Kind::Fact => match Fact::read(&message.payload) {
                Ok(Fact { at, body: FactBody::ExecutionSubmitted(_), .. }) if submitted_at == 0 => submitted_at = at,
                Ok(Fact { body: FactBody::UserMessage(said), .. }) => {
                    pending.push(Message::text(Role::User, said.text));
                }
                _ => {}
            },
            Kind::Decision => {
                let asked = |event: &Event| matches!(event, Event::InferenceRequested(asked) if asked.attempt == 1);
                if Record::read(&message.payload).is_ok_and(|record| record.events.iter().any(asked)) {
                    pending.clear();
                }
            }
        }
    }
    let execution = &history.execution;
    let Some(request) = execution.request.as_deref() else {
        return Err(("out_of_range", format!("after message {at} there was no request yet; fork later")));
    };
    match request.kind {
        RequestKind::Tool => {
            let detail = "a single tool call has no context to go on from; make the call again";
            return Err(("no_context", detail.to_owned()));
        }
        RequestKind::Index => {
            return Err(("no_context", "indexing has no context to go on from; index again".to_owned()));
        }
        RequestKind::Chat | RequestKind::Agent => {}
    }
    let said = execution.context.messages().iter().cloned().chain(open_calls(execution)).chain(pending);
    let request = ExecutionSubmitted { messages: said.collect(), reply: None, parent: None, ..request.clone() };
    let duration_ms = u64::try_from((request.limits.deadline - submitted_at).max(0) / 1_000_000).unwrap_or(0);
    Ok(Forked { request, duration_ms })
}

/// Results for the calls of the newest answer: those that are there, and a note for the others, because a model that
/// reads a call without a result is at a loss.
fn open_calls(execution: &Execution) -> Vec<Message> {
    let acting = match &execution.phase {
        Phase::Acting(calls) => calls.as_slice(),
        _ => &[],
    };
    let result = |ordinal: usize| {
        let (_, effect) = acting.iter().find(|(other, _)| *other as usize == ordinal)?;
        let text = execution.effects.text(effect);
        (!text.is_empty()).then(|| text.to_owned())
    };
    let calls = execution.context.calls().iter().enumerate();
    calls
        .map(|(i, call)| {
            let text = result(i).unwrap_or_else(|| NOT_CARRIED_OUT.to_owned());
            Message::tool_result(&call.id, &call.function.name, text)
        })
        .collect()
}

#[cfg(test)]
mod tests;
