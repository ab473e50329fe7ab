use schemas::decision::{
    ApprovalRequested, ApprovalResolved, Draft, Ended, ExecutionPaused, FactsDigest, InferenceRequested, ToolRequested,
    ToolsRequested,
};
use schemas::fact::{ExecutionSubmitted, InferenceCompleted, Kind, Limits, Policy};
use schemas::{EffectId, Event, FinishReason, Message, Record, Role, ToolCall, Usage};
use serde_json::{Value, json};

use super::*;
use crate::view::{Entry, Happening};

fn exec() -> ExecutionId {
    "0192f0c1-7a3b-7c4d-8e5f-001122334455".parse().expect("canonical")
}

fn fact(at: Nanos, body: FactBody) -> Entry {
    Entry::Fact(Box::new(Fact::new(exec(), at, body)))
}

fn decision(n: u64, events: Vec<Event>) -> Entry {
    let facts = FactsDigest::default();
    let draft = Draft { exec: exec(), n, at: 10, machine: 1, facts_upto: 0, facts: &facts, prev_hash: "" };
    Entry::Decision(Box::new(Record::seal(&draft, events)))
}

fn infer(turn: u32) -> Event {
    let (effect, deadline) = (EffectId::inference(turn), 1_000);
    Event::InferenceRequested(InferenceRequested { effect, attempt: 1, turn, context: 1, tokens_max: 0, deadline })
}

/// An agent whose model asked for two calls, of which the second needs a person until 100.
fn asking() -> Vec<Entry> {
    let limits = Limits { iterations: 2, tokens: 100, tool_calls: 3, deadline: 1_000, ..Limits::default() };
    let submitted = FactBody::ExecutionSubmitted(Box::new(ExecutionSubmitted {
        messages: vec![Message::text(Role::User, "hi")],
        policy: Policy { approve: vec!["run_command".into()], ..Policy::default() },
        ..ExecutionSubmitted::new(Kind::Agent, "coder", limits)
    }));
    let call = |i: usize, name: &str, arguments: &str| ToolCall::new(format!("call-{i}"), name, arguments);
    let answer = FactBody::InferenceCompleted(InferenceCompleted {
        effect: EffectId::inference(1),
        attempt: 1,
        worker: "w".into(),
        text: String::new(),
        tool_calls: vec![call(0, "read_file", "{}"), call(1, "run_command", "{\"command\":\"make\"}")],
        finish: FinishReason::ToolCalls,
        usage: Usage::new(3, 2),
        cached_tokens: 0,
        timing: Default::default(),
        logprobs: Vec::new(),
        alternatives: Vec::new(),
        cached: false,
        dropped_messages: 0,
    });
    let asked = |ordinal: u32, name: &str| ToolRequested {
        effect: EffectId::tool(1, ordinal as usize),
        attempt: 1,
        ordinal,
        name: name.into(),
        deadline: 500,
        refused: None,
    };
    let calls = vec![asked(0, "read_file"), asked(1, "run_command")];
    let approval = ApprovalRequested { approval: EffectId::tool(1, 1), name: "run_command".into(), expires: 100 };
    vec![
        fact(1, submitted),
        decision(0, vec![infer(1)]),
        fact(2, answer),
        decision(1, vec![Event::ToolsRequested(ToolsRequested { turn: 1, calls }), Event::ApprovalRequested(approval)]),
    ]
}

fn folded(entries: &[Entry]) -> Execution {
    let mut execution = Execution::default();
    entries.iter().for_each(|entry| drop(execution.apply(entry)));
    execution
}

fn with(more: Vec<Entry>) -> Execution {
    folded(&asking().into_iter().chain(more).collect::<Vec<_>>())
}

fn paused(by: &str, reason: &str) -> Entry {
    decision(2, vec![Event::ExecutionPaused(ExecutionPaused { by: by.into(), reason: Some(reason.into()) })])
}

fn approval(body: Value) -> ApproveRequest {
    serde_json::from_value(body).expect("well formed")
}

fn code(told: Told) -> (u16, String) {
    let problem = told.expect_err("refused").0;
    assert!(!problem.next_step.is_empty());
    (problem.status, problem.code)
}

#[test]
fn a_call_that_needs_a_person_is_heard_of_and_waited_for() {
    let mut execution = Execution::default();
    let happenings: Vec<Happening> = asking().iter().flat_map(|entry| execution.apply(entry)).collect();
    let Some(Happening::Approval(asked)) = happenings.last() else { panic!("{happenings:?}") };
    assert_eq!(
        (asked.name.as_str(), &asked.arguments, asked.expires),
        ("run_command", &json!({"command": "make"}), 100)
    );
    let waits = execution.view(exec()).expect("submitted").waiting_for;
    let until = "approval of run_command until 1970-01-01T00:00:00.000000Z";
    assert_eq!(waits, ["1-tool-0: the tool read_file".to_owned(), format!("1-tool-1: {until}")]);
}

#[test]
fn a_word_counts_for_a_call_that_waits_once_and_in_time() {
    let allow = || approval(json!({"effect": "1-tool-1", "verdict": "allow", "by": "ann"}));
    let Ok(Some(FactBody::ApprovalDecided(told))) = approved(&with(vec![]), allow(), 50) else { panic!("not told") };
    assert_eq!((told.by.as_str(), told.verdict, told.approval.as_str()), ("ann", Verdict::Allow, "1-tool-1"));

    let other = approval(json!({"effect": "1-tool-0", "verdict": "allow"}));
    let problem = approved(&with(vec![]), other, 50).expect_err("it waits for nobody").0;
    assert_eq!((problem.status, problem.code.as_str()), (409, "not_awaiting_approval"));
    assert_eq!(problem.next_step, "these do: 1-tool-1 (run_command)");
    assert_eq!(code(approved(&with(vec![]), allow(), 100)), (409, "approval_expired".into()));

    let said = fact(50, FactBody::ApprovalDecided(told));
    assert_eq!(code(approved(&with(vec![said]), allow(), 60)), (409, "approval_decided".into()));
}

#[test]
fn an_edit_brings_an_object_and_nothing_else_does() {
    let edit = |arguments: Value| approval(json!({"effect": "1-tool-1", "verdict": "edit", "arguments": arguments}));
    let told = approved(&with(vec![]), edit(json!({"command": "ls"})), 50);
    let Ok(Some(FactBody::ApprovalDecided(told))) = told else { panic!("{told:?}") };
    assert_eq!(told.arguments.as_deref(), Some("{\"command\":\"ls\"}"));
    assert_eq!(code(approved(&with(vec![]), edit(json!("ls")), 50)), (400, "invalid_request".into()));
    let both = approval(json!({"effect": "1-tool-1", "verdict": "deny", "arguments": {}}));
    assert_eq!(code(approved(&with(vec![]), both, 50)), (400, "invalid_request".into()));

    let resolved = ApprovalResolved {
        approval: EffectId::tool(1, 1),
        verdict: Verdict::Edit,
        via: "person".into(),
        deadline: 500,
    };
    let execution =
        with(vec![fact(50, FactBody::ApprovalDecided(told)), decision(2, vec![Event::ApprovalResolved(resolved)])]);
    assert_eq!(execution.waiting().approvals().count(), 0);
    let waits = execution.view(exec()).expect("submitted").waiting_for;
    assert_eq!(waits, ["1-tool-0: the tool read_file", "1-tool-1: the tool run_command"]);
}

#[test]
fn only_what_is_paused_is_resumed_and_a_limit_needs_a_grant() {
    let resume = |execution: &Execution| resumed(execution, ResumeRequest::default());
    assert_eq!(code(resume(&with(vec![]))), (409, "not_paused".into()));
    let wanted = fact(20, FactBody::PauseRequested(PauseRequested { by: "ann".into(), reason: None }));
    assert!(resume(&with(vec![wanted])).is_ok(), "a pause that is only wished for can be taken back");
    let execution = with(vec![paused("ann", "lunch")]);
    assert!(resume(&execution).is_ok());
    let waits = execution.view(exec()).expect("submitted").waiting_for;
    assert_eq!(waits.last().map(String::as_str), Some("resume: paused by ann (lunch)"));
    let execution = with(vec![paused("budget", "2 of 2 iterations used")]);
    assert_eq!(code(resume(&execution)), (409, "limit_reached".into()));
    let waits = execution.view(exec()).expect("submitted").waiting_for;
    assert!(waits.last().is_some_and(|w| w.starts_with("grant: paused by budget")), "{waits:?}");
}

#[test]
fn a_message_is_said_once_and_only_where_it_is_read() {
    let say = |text: &str| MessageRequest { text: text.into(), id: Some("m1".into()), by: None };
    assert!(matches!(said_to(&with(vec![]), say("more")), Ok(Some(FactBody::UserMessage(_)))));
    let message = UserMessage { object: None, id: "m1".into(), by: None, text: "more".into() };
    let said = || fact(20, FactBody::UserMessage(message.clone()));
    assert_eq!(said_to(&with(vec![said()]), say("more")), Ok(None));
    assert_eq!(code(said_to(&with(vec![said()]), say("less"))), (409, "message_id_taken".into()));
    assert_eq!(code(said_to(&with(vec![]), say(" "))), (400, "invalid_request".into()));
    let spaced = MessageRequest { id: Some("a b".into()), ..say("x") };
    assert_eq!(code(said_to(&with(vec![]), spaced)), (400, "invalid_request".into()));
    let last = || decision(2, vec![infer(2)]);
    assert_eq!(code(said_to(&with(vec![last()]), say("more"))), (409, "nobody_reads_it".into()));
    let more = BudgetGranted { by: "ann".into(), dimension: "iterations".into(), amount: 1 };
    assert!(said_to(&with(vec![last(), fact(20, FactBody::BudgetGranted(more))]), say("more")).is_ok());
}

#[test]
fn what_can_be_granted_is_named() {
    let grant = |dimension: &str, amount| {
        granted(&with(vec![]), GrantRequest { dimension: dimension.into(), amount, by: None })
    };
    assert!(grant("tokens", 5).is_ok());
    assert_eq!(code(grant("tokens", 0)), (400, "invalid_request".into()));
    assert_eq!(code(grant("tokens", GRANT_MAX + 1)), (400, "invalid_request".into()));
    assert_eq!(code(grant("tokens_out", 5)), (409, "no_such_limit".into()));
    let problem = grant("money", 5).expect_err("unknown").0;
    assert!(problem.next_step.contains("tool_calls"), "{}", problem.next_step);
}

#[test]
fn what_has_ended_or_is_ending_is_told_nothing() {
    let ended = Ended { code: "deadline".into(), detail: "why".into(), iterations: 1, usage: Usage::new(1, 1) };
    let over = with(vec![decision(2, vec![Event::ExecutionTimedOut(ended)])]);
    let problem = resumed(&over, ResumeRequest::default()).expect_err("ended").0;
    assert_eq!((problem.status, problem.code.as_str()), (409, "execution_ended"));
    assert!(problem.detail.ends_with("timed_out"), "{}", problem.detail);
    let cancel = CancelRequested { by: "ann".into(), reason: None, mode: CancelMode::Graceful };
    let going = with(vec![fact(20, FactBody::CancelRequested(cancel))]);
    assert_eq!(code(resumed(&going, ResumeRequest::default())), (409, "execution_cancelling".into()));
}
