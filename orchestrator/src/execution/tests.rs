//! Given these facts, then these decisions. Three lines a case where it can be had.

use schemas::chat::{FinishReason, MALFORMED_CALL, Message, Role, ToolCall, ToolSpec, Usage};
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
    let limits = Limits {
        iterations: 3,
        tokens: 4_000,
        tool_calls: 4,
        deadline: 60_000_000_000,
        children: 3,
        depth: 1,
        ..Limits::default()
    };
    ExecutionSubmitted {
        model: "tiny".into(),
        window: 1024,
        messages: vec![Message::text(Role::User, "Where is x?")],
        tools: vec![tool("search_code"), tool("read_file")],
        call: (kind == Kind::Tool).then(|| ToolCall::new("call-0", "search_code", "{}")),
        ..ExecutionSubmitted::new(kind, "coder", limits)
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
        logprobs: Vec::new(),
        alternatives: Vec::new(),
        cached: false,
        dropped_messages: 0,
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
        full: None,
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
    FactBody::CancelRequested(CancelRequested { by: "user".into(), reason: None, mode: CancelMode::Now })
}

/// Events that only keep books; the cases below are about the others.
const ACCOUNTS: [&str; 4] = ["budget.reserved", "budget.settled", "context.measured", "timer.set"];

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
        let decided = execution.settle(Rules::current());
        last = decided.iter().map(Event::name).filter(|name| !ACCOUNTS.contains(name)).collect();
        assert!(execution.decide(Rules::current()).is_empty(), "deciding again right after gives nothing");
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
    let turn = |n: u32| {
        let tool = if n == 2 { "read_file" } else { "search_code" };
        vec![answer(n, 1, &[tool]), tool_done(n, 0, 1)]
    };
    let (_, last) = given([vec![submitted(Kind::Agent)], turn(1), turn(2), turn(3)].concat());
    assert_eq!(last, ["tools.joined", "budget.exceeded", "execution.budget_exhausted"]);
    let five = vec!["search_code"; 5];
    let (execution, _) = given(vec![submitted(Kind::Agent), answer(1, 1, &five)]);
    assert_eq!(execution.effects.open_effects().count(), 4, "the fifth call is over the limit");
}

#[test]
fn no_limit_is_a_limit_too() {
    let boundless = with(|r| (r.limits.tokens, r.window) = (u64::MAX, 0));
    assert_eq!(given(vec![boundless]).1, ["execution.started", "inference.requested"]);
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
fn a_call_whose_outcome_nobody_knows_is_told_to_the_model_and_not_tried_again() {
    let (execution, last) = given(vec![
        submitted(Kind::Agent),
        answer(1, 1, &["search_code"]),
        tool_failed(1, 0, FailureClass::OutcomeUnknown),
    ]);
    assert_eq!(last, ["tools.joined", "inference.requested"]);
    assert!(execution.context.messages().last().is_some_and(|m| m.content.starts_with("error: ")));
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

// --- what an agent type's rules add -----------------------------------------------------------------------------------

fn with(change: impl FnOnce(&mut ExecutionSubmitted)) -> FactBody {
    let mut request = request(Kind::Agent);
    change(&mut request);
    FactBody::ExecutionSubmitted(Box::new(request))
}

fn helper() -> AgentSpec {
    AgentSpec {
        name: "helper".into(),
        system: "You help.".into(),
        model: "tiny".into(),
        window: 1024,
        tools: vec![],
        agents: vec![],
        iterations: 2,
        tokens: 10_000,
        tool_calls: 2,
        deadline_ms: 20_000,
        policy: Policy::default(),
    }
}

/// An agent that may ask helpers, and has asked `children` of them in its first turn.
fn delegated(join: Join, children: usize) -> Vec<FactBody> {
    let call = |i| {
        ToolCall::new(format!("c{i}"), DELEGATE, json!({"agent": "helper", "task": format!("part {i}")}).to_string())
    };
    let FactBody::InferenceCompleted(mut answer) = answer(1, 1, &[]) else { unreachable!() };
    answer.tool_calls = (0..children).map(call).collect();
    let submitted = with(|r| {
        r.tools.push(ToolSpec::new(DELEGATE, "", json!({})));
        r.agents = vec![helper()];
        r.policy.join = join;
    });
    vec![submitted, FactBody::InferenceCompleted(answer)]
}

fn child_closed(ordinal: usize, outcome: Outcome) -> FactBody {
    let effect = EffectId::child(1, ordinal);
    let child = ExecutionId::child(exec(), &effect, 1, 0);
    let (text, usage) = (format!("part {ordinal} is done"), Usage::new(100, 10));
    FactBody::ChildClosed(ChildClosed { effect, attempt: 1, child, outcome, text, usage })
}

fn approval(verdict: Verdict, arguments: Option<&str>) -> FactBody {
    let arguments = arguments.map(str::to_owned);
    FactBody::ApprovalDecided(ApprovalDecided {
        approval: EffectId::tool(1, 0),
        by: "p".into(),
        verdict,
        arguments,
        reason: None,
    })
}

fn say(text: &str) -> FactBody {
    FactBody::UserMessage(UserMessage { object: None, id: "m1".into(), by: None, text: text.into() })
}

#[test]
fn children_run_in_parallel_within_their_part_of_the_limits_and_are_joined() {
    let (execution, last) = given(delegated(Join::All, 2));
    assert_eq!(last, ["child.requested", "child.requested"]);
    let shares: Vec<u64> = execution.effects.open_effects().map(|(_, e)| e.reserved).collect();
    assert_eq!(shares, [(4_000 - 15) / 3; 2], "a third each, and one for the parent");
    let one = [delegated(Join::All, 2), vec![child_closed(0, Outcome::Completed)]].concat();
    assert!(given(one.clone()).1.is_empty());
    let (execution, last) = given([one, vec![child_closed(1, Outcome::Failed)]].concat());
    assert_eq!(last, ["tools.joined", "inference.requested"]);
    assert_eq!(execution.budget.usage.tokens, 15 + 110 + 110, "what children used is used");
    let read: Vec<&str> =
        execution.context.messages().iter().filter(|m| m.role == Role::Tool).map(|m| m.content.as_str()).collect();
    assert_eq!(read, ["part 0 is done", "error: part 1 is done"]);
}

#[test]
fn a_child_is_named_by_what_asked_for_it() {
    let names = || {
        given(delegated(Join::All, 2))
            .0
            .effects
            .open_effects()
            .filter_map(|(_, e)| crate::work::child_of(e))
            .collect::<Vec<_>>()
    };
    assert_eq!(names(), names());
    assert_eq!(names().iter().collect::<std::collections::BTreeSet<_>>().len(), 2);
}

#[test]
fn enough_children_are_enough() {
    let closed = |join, outcome| given([delegated(join, 3), vec![child_closed(0, outcome)]].concat()).1;
    assert_eq!(
        closed(Join::Any, Outcome::Completed),
        ["effect.cancelled", "effect.cancelled", "tools.joined", "inference.requested"]
    );
    assert!(closed(Join::Any, Outcome::Failed).is_empty());
    assert!(closed(Join::Quorum(2), Outcome::Completed).is_empty());
    let two =
        [delegated(Join::Quorum(2), 3), vec![child_closed(0, Outcome::Completed), child_closed(2, Outcome::Completed)]]
            .concat();
    assert_eq!(given(two).1, ["effect.cancelled", "tools.joined", "inference.requested"]);
    assert_eq!(closed(Join::FirstError, Outcome::Failed)[..2], ["effect.cancelled", "effect.cancelled"]);
    assert!(closed(Join::FirstError, Outcome::Completed).is_empty());
}

#[test]
fn children_are_limited_in_number_and_depth() {
    let (execution, last) = given(delegated(Join::All, 4));
    assert_eq!(last, ["tools.requested", "child.requested", "child.requested", "child.requested"]);
    assert!(execution.effects.text(&EffectId::tool(1, 3)).contains("no more agents"));
    let mut deep = delegated(Join::All, 1);
    if let FactBody::ExecutionSubmitted(request) = &mut deep[0] {
        request.depth = 1;
    }
    assert_eq!(given(deep).1, ["tools.requested", "tools.joined", "inference.requested"]);
}

#[test]
fn a_child_cannot_be_lost() {
    let start = [delegated(Join::All, 1), vec![lost(EffectId::child(1, 0), 1)]].concat();
    let (execution, last) = given(start.clone());
    assert!(last.is_empty() && execution.effects.open_effects().count() == 1, "it answers for itself");
    let closed = [start, vec![child_closed(0, Outcome::Completed)]].concat();
    assert_eq!(given(closed).1, ["tools.joined", "inference.requested"]);
}

#[test]
fn what_a_child_used_beyond_its_part_is_settled_too() {
    let mut start = delegated(Join::All, 1);
    if let FactBody::ExecutionSubmitted(request) = &mut start[0] {
        request.limits.tokens = 15;
    }
    assert_eq!(given(start.clone()).0.effects.open_effects().map(|(_, e)| e.reserved).collect::<Vec<_>>(), [1]);
    let mut execution = Execution::default();
    let mut settled = 0;
    for (body, at) in [start, vec![child_closed(0, Outcome::Completed)]].concat().into_iter().zip(1..) {
        execution.apply_fact(&Fact::new(exec(), at, body));
        for event in execution.settle(Rules::current()) {
            settled += if let Event::BudgetSettled(event) = event { event.tokens } else { 0 };
        }
    }
    assert_eq!((settled, execution.budget.usage.tokens), (15 + 110, 15 + 110));
}

#[test]
fn cancelling_a_parent_cancels_its_children() {
    let (_, last) = given([delegated(Join::All, 2), vec![cancel()]].concat());
    assert_eq!(last, ["effect.cancelled", "effect.cancelled", "execution.cancelled"]);
}

#[test]
fn a_call_that_needs_a_person_waits_for_one() {
    let asked = |facts: Vec<FactBody>| {
        let start = vec![with(|r| r.policy.approve = vec!["search_code".into()]), answer(1, 1, &["search_code"])];
        given([start, facts].concat())
    };
    let (execution, last) = asked(vec![]);
    assert_eq!(last, ["tools.requested", "approval.requested"]);
    assert_eq!(execution.effects.open_effects().count(), 0, "nobody is at it yet");
    let (execution, last) = asked(vec![approval(Verdict::Edit, Some("{\"query\": \"y\"}"))]);
    assert_eq!(last, ["timer.cancelled", "approval.resolved"]);
    let (_, effect) = execution.effects.open_effects().next().expect("allowed");
    assert!(matches!(&effect.work, Work::Tool { call } if call.function.arguments == "{\"query\": \"y\"}"));
    assert_eq!(
        asked(vec![approval(Verdict::Allow, None), approval(Verdict::Deny, None)]).1,
        [""; 0],
        "the first word counts"
    );
    assert_eq!(
        asked(vec![approval(Verdict::Deny, None)]).1,
        ["timer.cancelled", "approval.resolved", "tools.joined", "inference.requested"]
    );
}

#[test]
fn nobody_answering_is_a_denial() {
    let start = vec![
        with(|r| (r.policy.approve, r.policy.approval_ms) = (vec!["search_code".into()], 50)),
        answer(1, 1, &["search_code"]),
    ];
    let (_, at) = given(start.clone()).0.wake().expect("a timer");
    let (execution, last) = given([start, vec![timer(at)]].concat());
    assert_eq!(last, ["approval.resolved", "tools.joined", "inference.requested"]);
    assert!(execution.context.messages().iter().any(|m| m.content == "error: nobody allowed this call in time"));
}

fn pause() -> FactBody {
    FactBody::PauseRequested(PauseRequested { by: "p".into(), reason: None })
}

fn resume() -> FactBody {
    FactBody::ResumeRequested(ResumeRequested { by: "p".into() })
}

#[test]
fn a_paused_execution_lets_open_effects_land_and_asks_for_nothing() {
    let paused = vec![submitted(Kind::Agent), pause(), answer(1, 1, &["search_code"])];
    assert_eq!(given(paused[..2].to_vec()).1, ["execution.paused"]);
    assert!(given(paused.clone()).1.is_empty());
    assert_eq!(given([paused.clone(), vec![resume()]].concat()).1, ["execution.resumed", "tools.requested"]);
    assert_eq!(given([paused, vec![cancel()]].concat()).1, ["execution.cancelled"]);
}

#[test]
fn a_graceful_cancel_waits_for_what_is_open() {
    let graceful =
        FactBody::CancelRequested(CancelRequested { by: "p".into(), reason: None, mode: CancelMode::Graceful });
    let start = vec![submitted(Kind::Agent), answer(1, 1, &["search_code"]), graceful];
    assert!(given(start.clone()).1.is_empty());
    assert_eq!(given([start, vec![tool_done(1, 0, 1)]].concat()).1, ["execution.cancelled"]);
}

#[test]
fn what_is_said_meanwhile_is_read_by_the_next_inference() {
    let (execution, last) = given(vec![submitted(Kind::Agent), say("and y?"), answer(1, 1, &[])]);
    assert_eq!(last, ["inference.requested"], "the answer was not the last");
    assert_eq!(execution.context.messages().last().map(|m| m.content.as_str()), Some("and y?"));
    assert_eq!(execution.turn, 2);
}

#[test]
fn calls_that_go_back_to_the_caller_end_a_chat_whatever_was_said_meanwhile() {
    let (execution, last) = given(vec![submitted(Kind::Chat), say("and y?"), answer(1, 1, &["anything"])]);
    assert_eq!(last, ["execution.completed"], "no prompt holds a call without its result");
    assert_eq!(execution.turn, 1);
}

#[test]
fn a_limit_can_ask_for_more() {
    let ask = |r: &mut ExecutionSubmitted| (r.limits.iterations, r.policy.at_limit) = (1, AtLimit::Ask);
    let start = vec![with(ask), answer(1, 1, &["search_code"]), tool_done(1, 0, 1)];
    assert_eq!(given(start.clone()).1, ["tools.joined", "budget.exceeded", "execution.paused"]);
    let grant = |dimension: &str| {
        FactBody::BudgetGranted(BudgetGranted { by: "p".into(), dimension: dimension.into(), amount: 1 })
    };
    let more = [start.clone(), vec![grant("iterations")]].concat();
    assert_eq!(given(more).1, ["execution.resumed", "inference.requested"]);
    let other = [start, vec![grant("tool_calls")]].concat();
    assert_eq!(
        given(other).1,
        ["execution.resumed", "budget.exceeded", "execution.paused"],
        "it was not what was missing"
    );
}

#[test]
fn the_same_calls_with_the_same_results_end_it() {
    let turn = |n| vec![answer(n, 1, &["search_code"]), tool_done(n, 0, 1)];
    let start = vec![with(|r| (r.limits.iterations, r.limits.tool_calls) = (20, 20))];
    let three = [start.clone(), turn(1), turn(2), turn(3)].concat();
    assert_eq!(given(three).1, ["tools.joined", "stuck.detected", "execution.failed"]);
    let other = |n| vec![answer(n, 1, &["read_file"]), tool_done(n, 0, 1)];
    let to_and_fro = [start, turn(1), other(2), turn(3), other(4), turn(5), other(6)].concat();
    assert_eq!(given(to_and_fro).1, ["tools.joined", "stuck.detected", "execution.failed"]);
}

#[test]
fn what_is_known_is_recalled_first_and_stands_with_the_instructions() {
    let submitted = with(|r| {
        r.messages.insert(0, Message::text(Role::System, "You help."));
        r.tools.push(ToolSpec::new(RECALL, "", json!({})));
        r.policy.recall = true;
    });
    assert_eq!(given(vec![submitted.clone()]).1, ["execution.started", "tools.requested"]);
    let (execution, last) = given(vec![submitted, tool_done(0, 0, 1)]);
    assert_eq!(last, ["tools.joined", "inference.requested"]);
    assert_eq!(execution.context.messages()[0].content, "You help.\n\nKnown from earlier work:\nresult 0");
    assert_eq!(execution.context.len(), 2);
}

#[test]
fn question_and_answer_are_remembered_at_the_end() {
    let submitted = with(|r| {
        r.tools.push(ToolSpec::new(REMEMBER, "", json!({})));
        r.policy.remember = true;
    });
    let (execution, last) = given(vec![submitted.clone(), answer(1, 1, &[])]);
    assert_eq!(last, ["tools.requested"]);
    let call = execution.effects.get(&EffectId::tool(1, 0)).and_then(call_of).expect("it is asked for");
    let fact = json!({"fact": "Asked: Where is x?\nAnswered: text"}).to_string();
    assert_eq!((call.function.name.as_str(), call.function.arguments), (REMEMBER, fact));
    let (execution, last) = given(vec![submitted.clone(), answer(1, 1, &[]), tool_done(1, 0, 1)]);
    assert_eq!(last, ["tools.joined", "execution.completed"]);
    assert_eq!(execution.end.expect("it ended").text, "text");
    assert_eq!(execution.context.len(), 2, "nobody reads that it was remembered");
    // That it cannot be remembered takes nothing from the answer.
    let failed = vec![submitted.clone(), answer(1, 1, &[]), tool_failed(1, 0, FailureClass::Refused)];
    assert_eq!(given(failed).1, ["tools.joined", "execution.completed"]);
    // What is said meanwhile is answered first, and then remembered, too.
    let more = vec![submitted, answer(1, 1, &[]), say("And y?"), tool_done(1, 0, 1), answer(2, 1, &[])];
    let (execution, last) = given(more);
    assert_eq!(last, ["tools.requested"]);
    let call = execution.effects.get(&EffectId::tool(2, 0)).and_then(call_of).expect("it is asked for");
    assert!(call.function.arguments.contains("And y?"));
}

#[test]
fn nothing_is_remembered_where_nobody_wants_it_or_nothing_may_be_called() {
    let wants = |r: &mut ExecutionSubmitted| {
        r.tools.push(ToolSpec::new(REMEMBER, "", json!({})));
        r.policy.remember = true;
    };
    let forgetful = with(|r| r.tools.push(ToolSpec::new(REMEMBER, "", json!({}))));
    let toolless = with(|r| r.policy.remember = true);
    let used_up = with(|r| {
        wants(r);
        r.limits.tool_calls = 0;
    });
    for submitted in [forgetful, toolless, used_up] {
        assert_eq!(given(vec![submitted, answer(1, 1, &[])]).1, ["execution.completed"]);
    }
}

// --- indexing ---------------------------------------------------------------------------------------------------------

fn index() -> FactBody {
    let mut request = request(Kind::Index);
    (request.messages, request.tools, request.limits.tool_calls) = (vec![], vec![], 258);
    request.call = Some(ToolCall::new("plan", "index_plan", r#"{"workspace":"w"}"#));
    FactBody::ExecutionSubmitted(Box::new(request))
}

fn gave(turn: u32, ordinal: usize, attempt: u32, result: &serde_json::Value) -> FactBody {
    let FactBody::ToolCompleted(mut done) = tool_done(turn, ordinal, attempt) else { unreachable!() };
    done.result = result.to_string();
    FactBody::ToolCompleted(done)
}

fn planned() -> FactBody {
    let list = schemas::object::Reference::to(b"list", "application/msgpack");
    let plan =
        json!({"workspace": "/w", "list": list, "files": 9, "unchanged": 4, "removed": 1, "parts": [[0, 3], [3, 5]]});
    gave(0, 0, 1, &plan)
}

fn part(ordinal: usize, attempt: u32, files: u64) -> FactBody {
    let part = json!({
        "files": files, "bytes": 10, "pieces": 7, "embedded": 6, "reused": 1, "symbols": 5, "total_ms": 4, "embedding_ms": 3,
    });
    gave(1, ordinal, attempt, &part)
}

fn asked(execution: &Execution, turn: u32, ordinal: usize) -> serde_json::Value {
    let call = execution.effects.get(&EffectId::tool(turn, ordinal)).and_then(call_of).expect("it is asked for");
    json!([call.function.name, serde_json::from_str::<serde_json::Value>(&call.function.arguments).expect("JSON")])
}

#[test]
fn an_index_is_planned_read_in_parts_and_finished() {
    assert_eq!(given(vec![index()]).1, ["execution.started", "tools.requested"]);
    let (execution, last) = given(vec![index(), planned()]);
    assert_eq!(last, ["tools.joined", "tools.requested"]);
    let list = "f5f8c2ea09ca42ffc2ab8d9ac9cf6bbf3e7f8fb3ec8a1a3ab5aff3a60d5c9a16".len();
    let second = asked(&execution, 1, 1);
    assert_eq!((second[0].as_str(), &second[1]["from"], &second[1]["to"]), (Some("index_files"), &json!(3), &json!(5)));
    assert_eq!(second[1]["list"].as_str().map(str::len), Some(list));
    assert!(given(vec![index(), planned(), part(1, 1, 2)]).1.is_empty(), "the other part is still being read");
    let (execution, last) = given(vec![index(), planned(), part(1, 1, 2), part(0, 1, 3)]);
    assert_eq!(last, ["tools.joined", "tools.requested"]);
    let finish = asked(&execution, 2, 0);
    assert_eq!((finish[0].as_str(), &finish[1]["report"]["done"]["files"]), (Some("index_finish"), &json!(5)));
    assert_eq!(finish[1]["report"]["unchanged"], json!(4));
    let report = json!({"all": "well"});
    let end = vec![index(), planned(), part(1, 1, 2), part(0, 1, 3), gave(2, 0, 1, &report)];
    let (execution, last) = given(end);
    assert_eq!(last, ["tools.joined", "execution.completed"]);
    assert_eq!(execution.end.expect("it ended").text, report.to_string());
}

#[test]
fn nothing_to_read_leads_straight_to_the_end() {
    let plan = json!({"workspace": "/w", "files": 9, "unchanged": 9, "removed": 0});
    let (execution, last) = given(vec![index(), gave(0, 0, 1, &plan)]);
    assert_eq!(last, ["tools.joined", "tools.requested"]);
    assert_eq!(asked(&execution, 2, 0)[0], "index_finish");
}

#[test]
fn a_part_that_fails_is_reported_and_the_others_count() {
    let failed = tool_failed(1, 0, FailureClass::BadRequest);
    let (execution, _) = given(vec![index(), planned(), failed, part(1, 1, 2)]);
    let report = asked(&execution, 2, 0)[1]["report"].clone();
    assert_eq!(report["done"]["files"], json!(2));
    assert!(report["failed"][0].as_str().is_some_and(|why| why.contains("no such file: x")), "{report}");
}

#[test]
fn a_plan_that_fails_or_is_nonsense_ends_it() {
    for plan in [tool_failed(0, 0, FailureClass::BadRequest), tool_done(0, 0, 1)] {
        let (execution, last) = given(vec![index(), plan]);
        assert_eq!(last, ["tools.joined", "execution.failed"]);
        let why = execution.end.expect("it ended").text;
        assert!(why.contains("no such file: x") || why.contains("answered nonsense"), "{why}");
    }
}

#[test]
fn a_part_whose_worker_is_gone_is_asked_for_again() {
    let facts = vec![index(), planned(), lost(EffectId::tool(1, 1), 1)];
    assert_eq!(given(facts.clone()).1, ["tools.requested"]);
    let late = [facts.clone(), vec![part(1, 1, 2), part(0, 1, 3)]].concat();
    assert!(given(late).1.is_empty(), "the first attempt no longer counts");
    let (_, last) = given([facts, vec![part(1, 2, 2), part(0, 1, 3)]].concat());
    assert_eq!(last, ["tools.joined", "tools.requested"]);
}

// --- room in the window -----------------------------------------------------------------------------------------------

/// A turn whose result fills about `tokens` of the window.
fn filling(turn: u32, prompt_tokens: u64, bytes: usize) -> Vec<FactBody> {
    let FactBody::InferenceCompleted(mut answer) = answer(turn, 1, &["search_code"]) else { unreachable!() };
    answer.usage = Usage::new(prompt_tokens, 5);
    let FactBody::ToolCompleted(mut done) = tool_done(turn, 0, 1) else { unreachable!() };
    done.result = format!("{turn}{}", "x".repeat(bytes));
    vec![FactBody::InferenceCompleted(answer), FactBody::ToolCompleted(done)]
}

fn roomy() -> FactBody {
    with(|r| (r.limits.iterations, r.limits.tool_calls, r.limits.tokens) = (20, 20, 100_000))
}

fn summary(text: &str) -> FactBody {
    let (effect, worker, usage) = (EffectId::compression(1), "w".into(), Usage::new(300, 20));
    FactBody::CompressionCompleted(CompressionCompleted { effect, attempt: 1, worker, summary: text.into(), usage })
}

fn no_summary(class: FailureClass) -> FactBody {
    let (effect, worker) = (EffectId::compression(1), "w".into());
    FactBody::CompressionFailed(CompressionFailed { effect, attempt: 1, worker, class, detail: "d".into() })
}

#[test]
fn a_filling_window_is_compressed_beside_the_work() {
    let start = [vec![roomy()], filling(1, 100, 700), filling(2, 400, 900)].concat();
    let (execution, last) = given(start.clone());
    assert_eq!(last, ["tools.joined", "compression.requested", "inference.requested"], "the work goes on");
    assert_eq!(execution.context.name(), "Compressing");
    let landed = [start, vec![summary("x is in a.rs")]].concat();
    assert!(given(landed.clone()).1.is_empty(), "a prompt that a model is at stays as it is");
    let (execution, last) = given([landed, vec![answer(3, 1, &["read_file"])]].concat());
    assert_eq!(last, ["context.replaced", "tools.requested"]);
    let roles: Vec<Role> = execution.context.messages().iter().map(|m| m.role).collect();
    assert_eq!(roles, [Role::User, Role::User, Role::Assistant, Role::Tool, Role::Assistant]);
    assert_eq!(execution.context.messages()[1].content, "Summary of what came before: x is in a.rs");
}

#[test]
fn a_last_answer_needs_no_room() {
    let FactBody::InferenceCompleted(mut long) = answer(3, 1, &[]) else { unreachable!() };
    long.usage = Usage::new(700, 100);
    let start = [vec![roomy()], filling(1, 100, 700), filling(2, 400, 300)].concat();
    let long = FactBody::InferenceCompleted(long);
    assert_eq!(given([start.clone(), vec![long.clone()]].concat()).1, ["execution.completed"]);
    let more = FactBody::UserMessage(UserMessage { id: "m".into(), text: "and y?".into(), by: None, object: None });
    let (_, on) = given([start, vec![more, long]].concat());
    assert_eq!(on, ["context.replaced", "inference.requested"], "there is more to say, and it needs room");
}

#[test]
fn a_full_window_waits_for_its_summary() {
    let start = [vec![roomy()], filling(1, 100, 1_500), filling(2, 700, 900)].concat();
    assert_eq!(given(start.clone()).1, ["tools.joined", "compression.requested"]);
    assert_eq!(given([start, vec![summary("short")]].concat()).1, ["context.replaced", "inference.requested"]);
}

#[test]
fn without_a_summary_outputs_of_tools_are_dropped() {
    let start = [vec![roomy()], filling(1, 100, 1_500), filling(2, 700, 900)].concat();
    for failed in [no_summary(FailureClass::Overflow), summary(&"long ".repeat(400)), summary("")] {
        let (execution, last) = given([start.clone(), vec![failed]].concat());
        assert_eq!(last, ["context.replaced", "inference.requested"]);
        assert_eq!(execution.context.messages()[2].content, "(output of 1501 bytes dropped)");
        assert!(execution.context.messages()[4].content.starts_with("2xxx"), "the newest turn stays whole");
    }
}

#[test]
fn a_prompt_that_did_not_fit_is_made_to_fit() {
    let start = [vec![roomy()], filling(1, 100, 700), filling(2, 300, 700)].concat();
    let overflow = FactBody::InferenceFailed(InferenceFailed {
        effect: EffectId::inference(3),
        attempt: 1,
        worker: "w".into(),
        class: FailureClass::Overflow,
        detail: "d".into(),
    });
    let overflown = [start, vec![overflow]].concat();
    assert_eq!(given(overflown.clone()).1, ["compression.requested"]);
    assert_eq!(given([overflown, vec![summary("short")]].concat()).1, ["context.replaced", "inference.requested"]);
}

/// Two turns whose answers fill the window and leave no outputs to drop.
fn told_at_length() -> Vec<FactBody> {
    let turn = |turn: u32, prompt_tokens| {
        let mut facts = filling(turn, prompt_tokens, 20);
        if let FactBody::InferenceCompleted(answer) = &mut facts[0] {
            answer.text = "x".repeat(900);
        }
        facts
    };
    [vec![roomy()], turn(1, 100), turn(2, 990)].concat()
}

#[test]
fn nobody_waits_for_a_summary_that_saves_nothing() {
    assert_eq!(given(told_at_length()).1, ["tools.joined"], "the window is full, and a summary on its way");
    for useless in [summary(""), summary(&"long ".repeat(400))] {
        let landed = [told_at_length(), vec![useless]].concat();
        assert_eq!(given(landed.clone()).1, ["inference.requested"], "there is nothing to wait for");
        let overflow = FactBody::InferenceFailed(InferenceFailed {
            effect: EffectId::inference(3),
            attempt: 1,
            worker: "w".into(),
            class: FailureClass::Overflow,
            detail: "d".into(),
        });
        assert_eq!(given([landed, vec![overflow]].concat()).1, ["execution.failed"]);
    }
}

#[test]
fn a_summary_that_will_be_tried_again_is_waited_for() {
    let start = [vec![roomy()], filling(1, 100, 700), filling(2, 300, 700)].concat();
    let overflow = FactBody::InferenceFailed(InferenceFailed {
        effect: EffectId::inference(3),
        attempt: 1,
        worker: "w".into(),
        class: FailureClass::Overflow,
        detail: "d".into(),
    });
    let failed = [start, vec![overflow, no_summary(FailureClass::Overloaded)]].concat();
    let (execution, last) = given(failed.clone());
    assert_eq!(last, ["retry.scheduled"], "and nothing is dropped under it");
    let (_, at) = execution.wake().expect("a timer");
    assert_eq!(given([failed, vec![timer(at)]].concat()).1, ["compression.requested"]);
}

#[test]
fn nothing_is_dropped_from_a_prompt_that_a_model_is_at() {
    let start = [vec![roomy()], filling(1, 100, 600), filling(2, 400, 10)].concat();
    assert_eq!(given(start.clone()).1, ["tools.joined", "inference.requested"]);
    let (execution, last) = given([start.clone(), vec![say(&"y".repeat(1_000))]].concat());
    assert!(last.is_empty(), "{last:?}");
    assert!(execution.context.messages()[2].content.starts_with("1xxx"));
    let answered = [start, vec![say(&"y".repeat(1_000)), answer(3, 1, &["read_file"])]].concat();
    assert_eq!(given(answered).1.last(), Some(&"tools.requested"));
}

#[test]
fn a_call_is_never_parted_from_its_result() {
    let mut messages = vec![Message::text(Role::System, "s"), Message::text(Role::User, "task")];
    for turn in 0..40 {
        let calls = (0..turn % 4).map(|i| ToolCall::new(format!("{turn}-{i}"), "t", "{}")).collect::<Vec<_>>();
        messages
            .push(Message { tool_calls: calls.clone(), ..Message::text(Role::Assistant, "text ".repeat(turn % 7)) });
        messages.extend(calls.iter().map(|c| Message::tool_result(&c.id, "t", "r".repeat(turn * 5))));
        let context = Context::new(messages.clone(), &[]);
        for window in (200..3_000).step_by(170) {
            let Some((from, to)) = context.compressible(window) else { continue };
            let (from, to) = (from as usize, to as usize);
            assert!(from >= 2 && to > from);
            let kept = [&messages[..from], &messages[to..]].concat();
            let asked: Vec<&str> = kept.iter().flat_map(|m| &m.tool_calls).map(|c| c.id.as_str()).collect();
            let answered: Vec<&str> = kept.iter().filter_map(|m| m.tool_call_id.as_deref()).collect();
            assert_eq!(asked, answered, "window {window}, {from}..{to}");
        }
    }
}

// --- several answers, and prompts that are cut instead of summarised ---------------------------------------------------

/// A chat in a window of 1,024, in which `used` tokens may be used.
fn chat_of(answers: u32, max_tokens: Option<u32>, tokens: u64) -> FactBody {
    with(|r| {
        (r.kind, r.limits.tokens, r.tools) = (Kind::Chat, tokens, vec![]);
        (r.sampling.n, r.sampling.max_tokens) = (Some(answers), max_tokens);
    })
}

/// Tokens that each answer may have, and tokens that are set aside for all of them.
fn allowed(request: FactBody) -> (u64, u64) {
    let (execution, _) = given(vec![request]);
    let effect = execution.effects.get(&EffectId::inference(1)).expect("it is asked");
    let Work::Inference { tokens_max, .. } = effect.work else { panic!("{effect:?}") };
    (tokens_max, effect.reserved)
}

#[test]
fn several_answers_share_what_may_be_used() {
    let prompt = given(vec![chat_of(1, None, 400)]).0.context.tokens();
    assert_eq!(allowed(chat_of(1, None, 400)), (400, 400));
    assert_eq!(allowed(chat_of(4, None, 400)), (100, 400));
    assert_eq!(allowed(chat_of(4, Some(50), 4_000)), (50, prompt + 4 * 50));
    assert_eq!(allowed(chat_of(16, None, 4_000)), (250, 4_000));
    assert_eq!(
        allowed(chat_of(3, None, 100_000)),
        (33_333, prompt + 3 * (1_024 - prompt)),
        "no more than the window holds"
    );
    assert_eq!(allowed(chat_of(16, None, 5)), (1, 5), "no answer is without a bound");
}

#[test]
fn several_answers_are_paid_for_and_the_conversation_goes_on_with_the_first() {
    let FactBody::InferenceCompleted(mut answer) = answer(1, 1, &[]) else { unreachable!() };
    let other = |completion_tokens| Alternative {
        text: "other".into(),
        tool_calls: vec![],
        finish: FinishReason::Stop,
        completion_tokens,
        logprobs: vec![],
    };
    (answer.usage, answer.alternatives) = (Usage::new(10, 25), vec![other(9), other(11)]);
    let (execution, last) = given(vec![chat_of(3, None, 4_000), FactBody::InferenceCompleted(answer)]);
    assert_eq!(last, ["execution.completed"]);
    assert_eq!((execution.budget.usage, execution.budget.reserved), (Usage::new(10, 25), 0));
    assert_eq!(execution.context.tokens(), 15, "ten of the prompt, five of the first answer");
    assert_eq!(execution.end.as_ref().map(|end| end.text.as_str()), Some("text"));
}

#[test]
fn a_prompt_that_may_be_cut_is_not_summarised() {
    use schemas::chat::Truncation;
    let full = |truncation| {
        with(|r| {
            let said = |n: u32| Message::text(Role::User, format!("{n} {}", "x".repeat(400)));
            (r.kind, r.tools, r.truncation) = (Kind::Chat, vec![], truncation);
            r.messages = (0..12).map(said).collect();
        })
    };
    assert!(given(vec![full(Truncation::Disabled)]).1.contains(&"compression.requested"));
    let (execution, last) = given(vec![full(Truncation::Auto)]);
    assert!(last.contains(&"inference.requested") && !last.contains(&"compression.requested"), "{last:?}");
    assert!(execution.context.compressing().is_none());
    let overflow = vec![full(Truncation::Auto), model_failed(1, FailureClass::Overflow)];
    assert_eq!(given(overflow).1.last(), Some(&"execution.failed"), "what does not fit then cannot be made to");
}

fn requested() -> FactBody {
    let request = Request::Agent(json!({"agent_type": "coder", "instruction": "Where is x?"}));
    FactBody::ExecutionRequested(Box::new(ExecutionRequested { request, reply: Some("r".into()) }))
}

fn refused() -> FactBody {
    FactBody::ExecutionRefused(Box::new(Problem {
        kind: "urn:vlinders:problem:unknown_agent".into(),
        title: "unknown agent".into(),
        status: 404,
        code: "unknown_agent".into(),
        detail: "there is no agent \"codr\"".into(),
        next_step: "there are: coder".into(),
        execution_id: None,
        retry_after_s: None,
    }))
}

#[test]
fn a_plain_clients_request_waits_for_what_it_comes_to_and_then_is_like_any_other() {
    let (waiting, decided) = given(vec![requested()]);
    assert!(decided.is_empty() && waiting.awaits_completion().is_some(), "{decided:?}");
    let (begun, decided) = given(vec![requested(), submitted(Kind::Agent)]);
    assert_eq!(decided, given(vec![submitted(Kind::Agent)]).1);
    assert!(begun.awaits_completion().is_none());
    assert_eq!(given(vec![requested(), cancel(), submitted(Kind::Agent)]).1, ["execution.cancelled"]);
}

#[test]
fn a_plain_clients_request_that_comes_to_nothing_is_rejected_once() {
    let (rejected, decided) = given(vec![requested(), refused()]);
    assert_eq!(decided, ["execution.rejected"]);
    let end = rejected.end.expect("it ended");
    assert_eq!((end.outcome, end.text.as_str()), (Outcome::Rejected, "there is no agent \"codr\"; there are: coder"));
    for late in [submitted(Kind::Agent), refused(), requested()] {
        assert!(given(vec![requested(), refused(), late]).1.is_empty());
    }
    assert!(given(vec![requested(), submitted(Kind::Agent), refused()]).1.is_empty(), "it goes on");
}
