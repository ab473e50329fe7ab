use schemas::decision::{
    Draft, ExecutionCompleted, ExecutionStarted, FactsDigest, InferenceRequested, ToolOutcome, ToolRequested,
    ToolsJoined, ToolsRequested,
};
use schemas::fact::{Alternative, FailureClass, Limits, ToolCompleted, ToolFailed};
use schemas::{Message, Role, ToolCall};

use super::*;

fn exec() -> ExecutionId {
    "0192f0c1-7a3b-7c4d-8e5f-001122334455".parse().expect("canonical")
}

fn fact(body: FactBody) -> Entry {
    Entry::Fact(Box::new(Fact::new(exec(), 1_000_000_000, body)))
}

fn decision(n: u64, events: Vec<Event>) -> Entry {
    let facts = FactsDigest::default();
    let draft = Draft { exec: exec(), n, at: 2_000_000_000, machine: 1, facts_upto: 0, facts: &facts, prev_hash: "" };
    Entry::Decision(Box::new(Record::seal(&draft, events)))
}

fn submitted(kind: Kind) -> Entry {
    let limits = Limits { iterations: 3, tokens: 100, tool_calls: 3, deadline: 9_000_000_000, ..Limits::default() };
    fact(FactBody::ExecutionSubmitted(Box::new(ExecutionSubmitted {
        model: "tiny".into(),
        window: 512,
        messages: vec![Message::text(Role::User, "hi")],
        call: (kind == Kind::Tool).then(|| ToolCall::new("call-0", "read_file", "{\"path\":\"a\"}")),
        ..ExecutionSubmitted::new(kind, "coder", limits)
    })))
}

fn infer(turn: u32) -> Event {
    Event::InferenceRequested(InferenceRequested {
        effect: EffectId::inference(turn),
        attempt: 1,
        turn,
        context: 1,
        tokens_max: 0,
        deadline: 0,
    })
}

fn started() -> Event {
    Event::ExecutionStarted(ExecutionStarted { model: "tiny".into() })
}

fn answered(turn: u32, attempt: u32, text: &str, calls: Vec<ToolCall>) -> Entry {
    fact(FactBody::InferenceCompleted(InferenceCompleted {
        effect: EffectId::inference(turn),
        attempt,
        worker: "w".into(),
        text: text.into(),
        finish: if calls.is_empty() { FinishReason::Stop } else { FinishReason::ToolCalls },
        tool_calls: calls,
        usage: Usage::new(3, 2),
        cached_tokens: 0,
        timing: Default::default(),
        logprobs: Vec::new(),
        alternatives: Vec::new(),
        cached: false,
        dropped_messages: 0,
    }))
}

fn tools(turn: u32) -> Event {
    let calls = vec![ToolRequested {
        effect: EffectId::tool(turn, 0),
        attempt: 1,
        ordinal: 0,
        name: "read_file".into(),
        deadline: 0,
        refused: None,
    }];
    Event::ToolsRequested(ToolsRequested { turn, calls })
}

fn joined(turn: u32, success: bool) -> Event {
    let outcomes = vec![ToolOutcome { effect: EffectId::tool(turn, 0), success }];
    Event::ToolsJoined(ToolsJoined { turn, outcomes })
}

fn completed(iterations: u32) -> Event {
    Event::ExecutionCompleted(ExecutionCompleted {
        result: EffectId::inference(iterations),
        finish: Some(FinishReason::Stop),
        iterations,
        usage: Usage::new(3, 2),
    })
}

fn ended(code: &str) -> Ended {
    Ended { code: code.into(), detail: "why".into(), iterations: 1, usage: Usage::new(1, 1) }
}

fn given(entries: &[Entry]) -> (Execution, Vec<Happening>) {
    let mut execution = Execution::default();
    let happenings = entries.iter().flat_map(|entry| execution.apply(entry)).collect();
    (execution, happenings)
}

#[test]
fn a_chat_answers_with_the_text_of_the_log() {
    let (execution, happenings) = given(&[
        submitted(Kind::Chat),
        decision(0, vec![started(), infer(1)]),
        answered(1, 1, "Hello", vec![]),
        decision(1, vec![completed(1)]),
    ]);
    let text = Happening::Text { effect: EffectId::inference(1), text: "Hello".into(), tokens: 2, logprobs: vec![] };
    assert_eq!(happenings, [text, Happening::Ended]);
    let answer = execution.answer(exec()).expect("completed");
    assert_eq!((answer.response.as_str(), answer.finish_reason), ("Hello", Some(FinishReason::Stop)));
}

#[test]
fn several_answers_are_told_with_the_end_and_the_first_is_the_answer() {
    let Entry::Fact(mut answer) = answered(1, 1, "Hello", vec![]) else { unreachable!() };
    let FactBody::InferenceCompleted(first) = &mut answer.body else { unreachable!() };
    let call = ToolCall::new("call-1-1-0", "read_file", "{}");
    let finish = FinishReason::ToolCalls;
    (first.usage, first.cached_tokens, first.dropped_messages) = (Usage::new(3, 9), 2, 4);
    first.alternatives =
        vec![Alternative { text: "Hi".into(), tool_calls: vec![call], finish, completion_tokens: 7, logprobs: vec![] }];
    let (execution, happenings) = given(&[
        submitted(Kind::Chat),
        decision(0, vec![started(), infer(1)]),
        Entry::Fact(answer),
        decision(1, vec![completed(1)]),
    ]);
    assert!(matches!(&happenings[0], Happening::Text { text, tokens: 2, .. } if text == "Hello"), "{happenings:?}");
    let answer = json!(execution.answer(exec()).expect("completed"));
    assert_eq!((&answer["response"], &answer["dropped_messages"]), (&json!("Hello"), &json!(4)));
    assert_eq!(answer["usage"]["prompt_tokens_details"], json!({"cached_tokens": 2}));
    let function = json!({"name": "read_file", "arguments": "{}"});
    let choices = json!([
        {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"},
        {"index": 1, "finish_reason": "tool_calls", "message": {"role": "assistant", "content": "Hi",
            "tool_calls": [{"id": "call-1-1-0", "type": "function", "function": function}]}},
    ]);
    assert_eq!(answer["choices"], choices);
}

#[test]
fn a_result_of_another_attempt_is_not_shown() {
    let entries =
        [submitted(Kind::Chat), decision(0, vec![started(), infer(1)]), answered(1, 2, "from nowhere", vec![])];
    assert_eq!(given(&entries).1, []);
}

#[test]
fn an_agent_reports_every_call_with_its_result() {
    let call = ToolCall::new("call-1", "read_file", "{\"path\":\"a\"}");
    let done = FactBody::ToolCompleted(ToolCompleted {
        full: None,
        effect: EffectId::tool(1, 0),
        attempt: 1,
        worker: "t".into(),
        result: "text of a".into(),
        duration_us: 1_500,
        sandbox: Sandbox::default(),
    });
    let (execution, happenings) = given(&[
        submitted(Kind::Agent),
        decision(0, vec![started(), infer(1)]),
        answered(1, 1, "", vec![call]),
        decision(1, vec![tools(1)]),
        fact(done),
        decision(2, vec![joined(1, true), infer(2)]),
        answered(2, 1, "It says so.", vec![]),
        decision(3, vec![completed(2)]),
    ]);
    let names = happenings.iter().map(|h| match h {
        Happening::Text { .. } => "text",
        Happening::ToolCall(_) => "call",
        Happening::Approval(_) => "approval",
        Happening::ToolResult(_) => "result",
        Happening::Ended => "ended",
    });
    assert_eq!(names.collect::<Vec<_>>(), ["text", "call", "result", "text", "ended"]);
    let answer = execution.answer(exec()).expect("completed");
    let report = ToolCallReport {
        call_id: "call-1".into(),
        name: "read_file".into(),
        arguments: json!({"path": "a"}),
        success: Some(true),
        result: Some("text of a".into()),
    };
    assert_eq!((answer.tool_calls, answer.iterations), (vec![report], 2));
}

#[test]
fn a_failed_tool_call_is_an_answer() {
    let failed = FactBody::ToolFailed(ToolFailed {
        effect: EffectId::tool(0, 0),
        attempt: 1,
        worker: "t".into(),
        class: FailureClass::Refused,
        detail: "outside the workspace".into(),
        duration_us: 2_000,
        sandbox: Sandbox::default(),
    });
    let (execution, _) = given(&[
        submitted(Kind::Tool),
        decision(0, vec![started(), tools(0)]),
        fact(failed),
        decision(1, vec![joined(0, false), completed(0)]),
    ]);
    let answer = execution.tool_answer(exec()).expect("completed");
    assert_eq!((answer.success, answer.error.as_deref()), (false, Some("outside the workspace")));
    assert_eq!((answer.result.as_str(), answer.duration_ms), ("", 2.0));
}

#[test]
fn each_end_has_its_status() {
    let status = |event: Event| {
        let (execution, _) = given(&[submitted(Kind::Chat), decision(0, vec![event])]);
        execution.answer(exec()).map_or_else(|f| f.0.status, |_| 200)
    };
    assert_eq!(status(Event::ExecutionBudgetExhausted(ended("tokens"))), 200);
    assert_eq!(status(Event::ExecutionFailed(ended("overloaded"))), 503);
    assert_eq!(status(Event::ExecutionFailed(ended("overflow"))), 413);
    assert_eq!(status(Event::ExecutionFailed(ended("internal"))), 502);
    assert_eq!(status(Event::ExecutionTimedOut(ended("deadline"))), 504);
    assert_eq!(status(Event::ExecutionCancelled(ended("cancelled"))), 409);
    assert_eq!(status(Event::ExecutionRejected(ended("bad_request"))), 400);
    assert_eq!(status(Event::ExecutionFailed(ended("bad_request"))), 400);
}

#[test]
fn a_corrupt_message_hides_no_other() {
    let corrupt = Entry::read(false, b"\xc1");
    assert_eq!(corrupt.json(1, 9, 0)["kind"], "corrupt");
    let (execution, _) = given(&[submitted(Kind::Chat), corrupt, decision(0, vec![started(), infer(1)])]);
    assert_eq!(execution.view(exec()).expect("submitted").waiting_for, ["1-infer-0: the model"]);
}

#[test]
fn times_are_written_as_rfc_3339() {
    assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000Z");
    assert_eq!(rfc3339(1_709_210_096_123_456_789), "2024-02-29T12:34:56.123456Z");
}
