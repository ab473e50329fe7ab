use bytes::Bytes;
use schemas::EffectId;
use schemas::chat::{FinishReason, ToolCall, ToolSpec, Usage};
use schemas::fact::{InferenceCompleted, Limits, Parent, ToolCompleted, UserMessage};
use schemas::wire::encode;

use super::*;
use crate::execution::Rules;

fn exec() -> ExecutionId {
    "0192f0c1-7a3b-7c4d-8e5f-001122334455".parse().expect("canonical")
}

fn answer(turn: u32, text: &str, calls: &[&str]) -> FactBody {
    FactBody::InferenceCompleted(InferenceCompleted {
        effect: EffectId::inference(turn),
        attempt: 1,
        worker: "w".into(),
        text: text.into(),
        tool_calls: calls.iter().map(|id| ToolCall::new(*id, "read_file", "{}")).collect(),
        finish: if calls.is_empty() { FinishReason::Stop } else { FinishReason::ToolCalls },
        usage: Usage::new(20, 3),
        cached_tokens: 0,
        timing: Default::default(),
        logprobs: Vec::new(),
        alternatives: Vec::new(),
        cached: false,
        dropped_messages: 0,
    })
}

fn request() -> FactBody {
    let limits = Limits { iterations: 9, tokens: 900, tool_calls: 5, deadline: 60_000_000_000, ..Limits::default() };
    FactBody::ExecutionSubmitted(Box::new(ExecutionSubmitted {
        model: "tiny".into(),
        messages: vec![Message::text(Role::User, "hi")],
        tools: vec![ToolSpec::new("read_file", "", serde_json::json!({}))],
        parent: Some(Parent { exec: exec(), effect: EffectId::child(1, 0), attempt: 1 }),
        ..ExecutionSubmitted::new(RequestKind::Agent, "coder", limits)
    }))
}

/// A request, two calls, the result of the first, something said meanwhile, the other result, an answer: with the
/// decision that follows from each.
fn log() -> Vec<Stored> {
    let result = |i| {
        FactBody::ToolCompleted(ToolCompleted {
            full: None,
            effect: EffectId::tool(1, i),
            attempt: 1,
            worker: "t".into(),
            result: format!("text {i}"),
            duration_us: 1,
            sandbox: Default::default(),
        })
    };
    let said = FactBody::UserMessage(UserMessage { object: None, id: "m".into(), by: None, text: "more".into() });
    let facts = [request(), answer(1, "", &["c0", "c1"]), result(0), said, result(1), answer(2, "That is all.", &[])];
    let (mut history, mut log) = (History::new(exec()), Vec::new());
    for (i, body) in facts.into_iter().enumerate() {
        let mut append = |kind, bytes: Vec<u8>| {
            let sequence = log.len() as u64 + 1;
            let stored = Stored { exec: exec(), sequence, stored_at: 0, kind, payload: Bytes::from(bytes) };
            log.push(stored.clone());
            stored
        };
        let fact = Fact::new(exec(), 10_000_000_000 + i as i64, body);
        history.fold(&append(Kind::Fact, encode(&fact))).expect("a fact reads");
        if let Some(record) = history.decide(Rules::current()) {
            history.fold(&append(Kind::Decision, encode(&record))).expect("a decision reads");
        }
    }
    log
}

fn read_after(at: u64) -> Vec<String> {
    let forked = fork(exec(), &log(), at).expect("a fork");
    forked.request.messages.into_iter().map(|m| m.content).collect()
}

#[test]
fn a_fork_reads_what_the_execution_had_read_there() {
    let kinds: Vec<Kind> = log().iter().map(|m| m.kind).collect();
    use Kind::{Decision as D, Fact as F};
    assert_eq!(kinds, [F, D, F, D, F, F, F, D, F, D]);
    assert_eq!(read_after(1), ["hi"]);
    // In the middle of a turn: what is missing is said to be missing, what was said waits behind it.
    assert_eq!(read_after(3), ["hi", "", NOT_CARRIED_OUT, NOT_CARRIED_OUT]);
    assert_eq!(read_after(5), ["hi", "", "text 0", NOT_CARRIED_OUT, "more"]);
    assert_eq!(read_after(7), ["hi", "", "text 0", "text 1", "more"]);
    assert_eq!(read_after(9), ["hi", "", "text 0", "text 1", "more", "That is all."]);
}

#[test]
fn a_fork_is_nobodys_child_and_has_as_long_as_its_origin() {
    let forked = fork(exec(), &log(), 1).expect("a fork");
    assert_eq!((forked.request.parent, forked.duration_ms), (None, 50_000));
}

#[test]
fn where_nothing_can_be_forked_is_said() {
    let code = |messages: &[Stored], at| fork(exec(), messages, at).expect_err("refused").0;
    assert_eq!(code(&[], 0), "unknown_execution");
    let refused = fork(exec(), &log(), 10).expect_err("refused");
    assert_eq!((refused.0, refused.1.contains("messages 0 to 9")), ("out_of_range", true));
}
