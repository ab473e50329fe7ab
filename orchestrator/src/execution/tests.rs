//! Given these facts, then these decisions. Three lines a case where it can be had.

use schemas::chat::{FinishReason, Message, Role, Sampling, ToolCall, ToolSpec, Usage};
use schemas::fact::*;
use schemas::wire::Nanos;
use schemas::{EffectId, Event, ExecutionId, Fact, FactBody};
use serde_json::json;

use super::*;

fn exec() -> ExecutionId {
    "0192f0c1-7a3b-7c4d-8e5f-001122334455".parse().expect("canonical id")
}

fn request(kind: Kind) -> ExecutionSubmitted {
    let tool = |name: &str| ToolSpec::new(name, "", json!({"type": "object"}));
    ExecutionSubmitted {
        kind,
        agent: "coder".into(),
        model: "tiny".into(),
        window: 1024,
        messages: vec![Message::text(Role::User, "Where is x?")],
        tools: vec![tool("search_code"), tool("read_file")],
        call: (kind == Kind::Tool).then(|| ToolCall::new("call-0", "search_code", "{}")),
        workspace: None,
        user_id: None,
        conversation_id: None,
        sampling: Sampling::default(),
        limits: Limits { iterations: 3, tokens: 1_000, tool_calls: 4, deadline: 60_000_000_000 },
        reply: None,
    }
}

fn submitted(kind: Kind) -> FactBody {
    FactBody::ExecutionSubmitted(Box::new(request(kind)))
}

fn answer(turn: u32, attempt: u32, calls: &[&str]) -> FactBody {
    FactBody::InferenceCompleted(InferenceCompleted {
        effect: EffectId::inference(turn),
        attempt,
        worker: "w".into(),
        text: "text".into(),
        tool_calls: calls
            .iter()
            .enumerate()
            .map(|(i, name)| ToolCall::new(format!("call-{turn}-{i}"), *name, "{}"))
            .collect(),
        finish: if calls.is_empty() { FinishReason::Stop } else { FinishReason::ToolCalls },
        usage: Usage::new(10, 5),
        cached_tokens: 0,
        timing: InferenceTiming::default(),
    })
}

fn model_failed(attempt: u32, class: FailureClass) -> FactBody {
    FactBody::InferenceFailed(InferenceFailed {
        effect: EffectId::inference(1),
        attempt,
        worker: "w".into(),
        class,
        detail: "load".into(),
    })
}

fn tool_done(turn: u32, ordinal: usize, attempt: u32) -> FactBody {
    let sandbox = Sandbox::default();
    FactBody::ToolCompleted(ToolCompleted {
        effect: EffectId::tool(turn, ordinal),
        attempt,
        worker: "w".into(),
        result: format!("result {ordinal}"),
        duration_us: 1,
        sandbox,
    })
}

fn tool_failed(turn: u32, ordinal: usize, class: FailureClass) -> FactBody {
    let sandbox = Sandbox::default();
    FactBody::ToolFailed(ToolFailed {
        effect: EffectId::tool(turn, ordinal),
        attempt: 1,
        worker: "w".into(),
        class,
        detail: "no such file: x".into(),
        duration_us: 1,
        sandbox,
    })
}

fn lost(effect: EffectId, attempt: u32) -> FactBody {
    FactBody::EffectLost(EffectLost { effect, attempt, worker: None })
}

fn timer(due: Nanos) -> FactBody {
    FactBody::TimerFired(TimerFired { timer: "t".into(), due })
}

fn cancel() -> FactBody {
    FactBody::CancelRequested(CancelRequested { by: "user".into(), reason: None })
}

/// Folds facts one second apart, settling after each; returns the state and the names of what the last one led to.
fn given(facts: Vec<FactBody>) -> (Execution, Vec<&'static str>) {
    let mut execution = Execution::default();
    let mut last = vec![];
    for (i, body) in facts.into_iter().enumerate() {
        let at = match &body {
            FactBody::TimerFired(fired) => fired.due,
            _ => (i as Nanos + 1) * 1_000,
        };
        execution.apply_fact(&Fact::new(exec(), at, body));
        last = execution.settle().iter().map(Event::name).collect();
        assert!(execution.decide().is_empty(), "deciding again right after gives nothing");
    }
    (execution, last)
}

#[test]
fn a_chat_asks_the_model_once_and_ends_with_its_answer() {
    let (_, first) = given(vec![submitted(Kind::Chat)]);
    assert_eq!(first, ["execution.started", "inference.requested"]);
    let (execution, last) = given(vec![submitted(Kind::Chat), answer(1, 1, &[])]);
    assert_eq!(last, ["execution.completed"]);
    assert_eq!(execution.budget.usage, Usage::new(10, 5));
}

#[test]
fn calls_of_a_chat_go_back_to_the_caller() {
    assert_eq!(given(vec![submitted(Kind::Chat), answer(1, 1, &["anything"])]).1, ["execution.completed"]);
}

#[test]
fn an_agent_runs_its_calls_in_parallel_and_asks_again_when_all_are_in() {
    let start = vec![submitted(Kind::Agent), answer(1, 1, &["search_code", "read_file"])];
    let (execution, last) = given(start.clone());
    assert_eq!(last, ["tools.requested"]);
    assert_eq!(execution.effects.open_effects().count(), 2);
    let one = [start, vec![tool_done(1, 1, 1)]].concat();
    assert!(given(one.clone()).1.is_empty(), "the other call is still open");
    let (execution, last) = given([one, vec![tool_done(1, 0, 1)]].concat());
    assert_eq!(last, ["tools.joined", "inference.requested"]);
    let results: Vec<&str> =
        execution.context.messages().iter().filter(|m| m.role == Role::Tool).map(|m| m.content.as_str()).collect();
    assert_eq!(results, ["result 0", "result 1"], "in the order of the calls, not of the results");
}

#[test]
fn a_failed_tool_is_something_the_model_reads() {
    let (execution, last) =
        given(vec![submitted(Kind::Agent), answer(1, 1, &["read_file"]), tool_failed(1, 0, FailureClass::BadRequest)]);
    assert_eq!(last, ["tools.joined", "inference.requested"]);
    assert_eq!(execution.context.messages().last().map(|m| m.content.as_str()), Some("error: no such file: x"));
}

#[test]
fn a_tool_nobody_granted_is_refused_without_asking_a_worker() {
    let (execution, last) = given(vec![submitted(Kind::Agent), answer(1, 1, &["rm_rf"])]);
    assert_eq!(last, ["tools.requested", "tools.joined", "inference.requested"]);
    let text = &execution.context.messages().last().expect("a tool message").content;
    assert!(text.contains("no such tool: rm_rf") && text.contains("search_code"), "{text}");
}

#[test]
fn a_call_that_cannot_be_read_is_refused_in_words_the_model_understands() {
    let (execution, _) = given(vec![submitted(Kind::Agent), answer(1, 1, &[MALFORMED_CALL])]);
    let text = execution.context.messages().last().map(|m| m.content.as_str());
    assert_eq!(text, Some("error: the tool call is not valid JSON"));
}

#[test]
fn iterations_tool_calls_and_tokens_are_limited() {
    let turn = |n| vec![answer(n, 1, &["search_code"]), tool_done(n, 0, 1)];
    let (_, last) = given([vec![submitted(Kind::Agent)], turn(1), turn(2), turn(3)].concat());
    assert_eq!(last, ["tools.joined", "budget.exceeded", "execution.budget_exhausted"]);
    let five = vec!["search_code"; 5];
    let (execution, _) = given(vec![submitted(Kind::Agent), answer(1, 1, &five)]);
    assert_eq!(execution.effects.open_effects().count(), 4, "the fifth call is over the limit");
}

#[test]
fn a_retryable_failure_waits_and_is_tried_again() {
    let start = vec![submitted(Kind::Chat), model_failed(1, FailureClass::Overloaded)];
    let (execution, last) = given(start.clone());
    assert_eq!(last, ["retry.scheduled"]);
    let (_, at) = execution.wake().expect("a timer");
    let (execution, last) = given([start, vec![timer(at)]].concat());
    assert_eq!(last, ["inference.requested"]);
    assert_eq!(execution.effects.get(&EffectId::inference(1)).map(|e| e.attempt), Some(2));
}

#[test]
fn a_final_failure_of_the_model_ends_the_execution() {
    assert_eq!(given(vec![submitted(Kind::Chat), model_failed(1, FailureClass::Overflow)]).1, ["execution.failed"]);
}

#[test]
fn a_lost_effect_is_asked_for_again_at_once_and_late_results_are_ignored() {
    let start = vec![submitted(Kind::Chat), lost(EffectId::inference(1), 1)];
    assert_eq!(given(start.clone()).1, ["inference.requested"]);
    let late = [start, vec![answer(1, 1, &[])]].concat();
    assert!(given(late.clone()).1.is_empty(), "the first attempt no longer counts");
    assert_eq!(given([late, vec![answer(1, 2, &[])]].concat()).1, ["execution.completed"]);
}

#[test]
fn a_lost_tool_is_asked_for_again_alone() {
    let (execution, last) = given(vec![
        submitted(Kind::Agent),
        answer(1, 1, &["search_code", "read_file"]),
        tool_done(1, 0, 1),
        lost(EffectId::tool(1, 1), 1),
    ]);
    assert_eq!(last, ["tools.requested"]);
    assert_eq!(
        execution.effects.open_effects().map(|(id, e)| (id.as_str(), e.attempt)).collect::<Vec<_>>(),
        [("1-tool-1", 2)]
    );
}

#[test]
fn cancel_and_deadline_end_what_is_open() {
    let agent = vec![submitted(Kind::Agent), answer(1, 1, &["search_code", "read_file"])];
    assert_eq!(
        given([agent.clone(), vec![cancel()]].concat()).1,
        ["effect.cancelled", "effect.cancelled", "execution.cancelled"]
    );
    assert_eq!(
        given([agent.clone(), vec![timer(60_000_000_000)]].concat()).1,
        ["effect.cancelled", "effect.cancelled", "execution.timed_out"]
    );
    assert!(
        given([agent, vec![cancel(), cancel(), tool_done(1, 0, 1)]].concat()).1.is_empty(),
        "nothing follows an end"
    );
}

#[test]
fn a_single_tool_needs_no_model() {
    assert_eq!(given(vec![submitted(Kind::Tool)]).1, ["execution.started", "tools.requested"]);
    assert_eq!(given(vec![submitted(Kind::Tool), tool_done(0, 0, 1)]).1, ["tools.joined", "execution.completed"]);
    assert_eq!(
        given(vec![submitted(Kind::Tool), tool_failed(0, 0, FailureClass::Refused)]).1,
        ["tools.joined", "execution.completed"]
    );
}

#[test]
fn facts_before_the_request_and_a_second_request_change_nothing() {
    assert!(
        given(vec![answer(1, 1, &[]), cancel()]).1.contains(&"execution.cancelled")
            || given(vec![answer(1, 1, &[])]).1.is_empty()
    );
    assert!(given(vec![submitted(Kind::Chat), submitted(Kind::Agent)]).1.is_empty());
}

#[test]
fn an_empty_request_is_rejected() {
    let mut empty = request(Kind::Chat);
    empty.messages.clear();
    assert_eq!(given(vec![FactBody::ExecutionSubmitted(Box::new(empty))]).1, ["execution.rejected"]);
}
