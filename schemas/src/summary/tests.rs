use serde_json::json;

use super::*;
use crate::chat::{FinishReason, Message, ToolSpec};
use crate::decision::*;
use crate::fact::*;

const MODEL: &str = "tiny";
const LATER: Nanos = 1_000_000_000;

fn exec() -> ExecutionId {
    "0192f0c1-7a3b-7c4d-8e5f-001122334455".parse().expect("canonical id")
}

fn request(kind: Kind, say: &str) -> ExecutionSubmitted {
    ExecutionSubmitted {
        model: MODEL.into(),
        messages: vec![Message::text(Role::System, "Be brief."), Message::text(Role::User, say)],
        tools: vec![ToolSpec::new("search_code", "", json!({}))],
        user_id: Some("u1".into()),
        ..ExecutionSubmitted::new(kind, "coder", Limits { deadline: LATER, ..Limits::default() })
    }
}

/// An execution that the test plays.
struct Play {
    summary: Summary,
    decisions: u64,
}

impl Play {
    fn begin(request: ExecutionSubmitted) -> Self {
        let fact = Fact::new(exec(), 1_000, FactBody::ExecutionSubmitted(Box::new(request)));
        Self { summary: Summary::begin(&fact).expect("a request"), decisions: 0 }
    }

    fn fact(&mut self, at: Nanos, body: FactBody) -> Vec<Change> {
        self.summary.fact(&Fact::new(exec(), at, body))
    }

    fn decide(&mut self, at: Nanos, events: Vec<Event>) -> Vec<Change> {
        let facts = FactsDigest::default();
        let n = self.decisions;
        let draft = Draft { exec: exec(), n, at, machine: 3, facts_upto: 1, facts: &facts, prev_hash: "" };
        self.decisions += 1;
        self.summary.decision(&Record::seal(&draft, events))
    }

    fn infer(&mut self, turn: u32, attempt: u32) {
        let effect = EffectId::inference(turn);
        let asked = InferenceRequested { effect, attempt, turn, context: 2, tokens_max: 0, deadline: LATER };
        let started = Event::ExecutionStarted(ExecutionStarted { model: MODEL.into() });
        let asked = Event::InferenceRequested(asked);
        self.decide(1_100, if turn == 1 && attempt == 1 { vec![started, asked] } else { vec![asked] });
    }

    fn call(&mut self, turn: u32, refused: Option<&str>) -> Vec<Change> {
        let (effect, name, refused) = (EffectId::tool(turn, 0), "search_code".to_owned(), refused.map(str::to_owned));
        let call = ToolRequested { effect, attempt: 1, ordinal: 0, name, deadline: LATER, refused };
        self.decide(2_000, vec![Event::ToolsRequested(ToolsRequested { turn, calls: vec![call] })])
    }
}

fn answered(turn: u32, attempt: u32, text: &str, calls: &[&str]) -> FactBody {
    let calls = calls.iter().map(|arguments| ToolCall::new("c", "search_code", *arguments));
    FactBody::InferenceCompleted(InferenceCompleted {
        effect: EffectId::inference(turn),
        attempt,
        worker: "w".into(),
        text: text.into(),
        tool_calls: calls.collect(),
        finish: FinishReason::Stop,
        usage: Usage::new(10, 5),
        cached_tokens: 4,
        timing: InferenceTiming { queue_us: 1_000, prefill_us: 2_000, decode_us: 3_000 },
        logprobs: vec![],
        alternatives: vec![],
        cached: false,
        dropped_messages: 0,
    })
}

fn tool_done(turn: u32, result: &str) -> FactBody {
    FactBody::ToolCompleted(ToolCompleted {
        effect: EffectId::tool(turn, 0),
        attempt: 1,
        worker: "t".into(),
        result: result.into(),
        full: None,
        duration_us: 1_500,
        sandbox: Sandbox { tier: "bubblewrap".into(), enforced: vec![] },
    })
}

fn joined(turn: u32, success: bool) -> Event {
    let outcomes = vec![ToolOutcome { effect: EffectId::tool(turn, 0), success }];
    Event::ToolsJoined(ToolsJoined { turn, outcomes })
}

fn completed(turn: u32) -> Event {
    let (result, finish) = (EffectId::inference(turn), Some(FinishReason::Stop));
    Event::ExecutionCompleted(ExecutionCompleted { result, finish, iterations: 2, usage: Usage::new(20, 10) })
}

#[test]
fn an_agent_is_folded_into_its_row_its_calls_and_its_inferences() {
    let mut play = Play::begin(request(Kind::Agent, "Where is\n main?"));
    assert_eq!((play.summary.row.status, play.summary.row.title.as_str()), (Status::Submitted, "Where is main?"));
    play.infer(1, 1);
    let changes = play.fact(1_500, answered(1, 1, "", &[r#"{"query":"main"}"#]));
    let [Change::Inference(inference), Change::Response(text)] = &changes[..] else { panic!("{changes:?}") };
    assert_eq!((inference.ttft_us(), inference.cached_tokens, text.as_str()), (Some(3_000), 4, ""));
    let asked = play.call(1, None);
    let [Change::Call(call)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!((call.position, call.arguments.as_str(), call.success), (0, r#"{"query":"main"}"#, None));
    let done = play.fact(2_500, tool_done(1, "src/main.rs"));
    let [Change::Call(call)] = &done[..] else { panic!("{done:?}") };
    assert_eq!((call.success, call.duration_ms, call.sandbox.as_deref()), (Some(true), Some(1.5), Some("bubblewrap")));
    assert_eq!(play.decide(2_600, vec![joined(1, true)]), [], "nothing new");
    play.infer(2, 1);
    play.fact(3_000, answered(2, 1, "There.", &[]));
    play.decide(4_001_000, vec![completed(2)]);
    let row = &play.summary.row;
    assert_eq!((row.status, row.iterations, row.tool_calls, row.messages), (Status::Completed, 2, 1, 9));
    assert_eq!((row.duration_ms(), row.usage), (Some(4.0), Usage::new(20, 10)));
    let before = play.summary.clone();
    assert_eq!(play.fact(5_000, tool_done(1, "late")), []);
    assert_eq!(play.summary, before, "nothing counts behind the end");
}

#[test]
fn a_summary_that_was_written_down_goes_on_as_if_it_had_not_been() {
    let mut whole = Play::begin(request(Kind::Agent, "x"));
    whole.infer(1, 1);
    whole.fact(1_500, answered(1, 1, "", &["{}"]));
    let json = serde_json::to_string(&whole.summary).expect("it can be written");
    let summary = serde_json::from_str(&json).expect("and read");
    let mut parted = Play { summary, decisions: whole.decisions };
    assert_eq!(parted.call(1, None), whole.call(1, None));
    assert_eq!(parted.fact(2_500, tool_done(1, "r")), whole.fact(2_500, tool_done(1, "r")));
    assert_eq!(parted.summary, whole.summary);
}

#[test]
fn only_the_open_attempt_counts() {
    let mut play = Play::begin(request(Kind::Chat, "x"));
    assert_eq!(play.fact(1_050, answered(1, 1, "unasked", &[])), []);
    play.infer(1, 1);
    play.fact(1_200, FactBody::EffectLost(EffectLost { effect: EffectId::inference(1), attempt: 1, worker: None }));
    assert_eq!(play.fact(1_300, answered(1, 1, "lost", &[])), [], "its worker was given up");
    play.infer(1, 2);
    assert_eq!(play.fact(1_400, answered(1, 1, "late", &[])), []);
    assert_eq!(play.fact(1_500, answered(1, 2, "right", &[])).len(), 2);
    assert_eq!(play.fact(1_600, answered(1, 2, "again", &[])), []);
    assert_eq!((play.summary.row.iterations, play.summary.row.usage.tokens), (1, 15));
}

#[test]
fn a_call_that_took_too_long_does_not_count_unless_everything_ends() {
    let called = || {
        let mut play = Play::begin(request(Kind::Agent, "x"));
        play.infer(1, 1);
        play.fact(1_500, answered(1, 1, "", &["{}"]));
        play.call(1, None);
        play
    };
    let timer = || FactBody::TimerFired(TimerFired { timer: "1-tool-0".into(), due: LATER });
    let mut play = called();
    play.summary.deadline = Nanos::MAX;
    play.fact(LATER, timer());
    assert_eq!(play.fact(LATER + 1, tool_done(1, "late")), []);
    let mut play = called();
    play.fact(
        1_600,
        FactBody::CancelRequested(CancelRequested { by: "p".into(), reason: None, mode: CancelMode::Now }),
    );
    play.fact(LATER, timer());
    assert_eq!(play.fact(LATER + 1, tool_done(1, "in time")).len(), 1, "nothing expires any more");
}

#[test]
fn refused_calls_and_calls_without_an_outcome_have_failed() {
    let mut play = Play::begin(request(Kind::Agent, "x"));
    play.infer(1, 1);
    play.fact(1_500, answered(1, 1, "", &["{}"]));
    let asked = play.call(1, Some("not granted"));
    let [Change::Call(call)] = &asked[..] else { panic!("{asked:?}") };
    assert_eq!((call.success, call.result.as_deref()), (Some(false), Some("not granted")));
    play.infer(2, 1);
    play.fact(1_500, answered(2, 1, "", &["{}"]));
    play.call(2, None);
    let ended = play.decide(2_600, vec![joined(2, false)]);
    let [Change::Call(call)] = &ended[..] else { panic!("{ended:?}") };
    assert_eq!((call.position, call.success), (1, Some(false)));
}

#[test]
fn arguments_that_a_person_edited_are_those_of_the_call() {
    let mut play = Play::begin(request(Kind::Agent, "x"));
    play.infer(1, 1);
    play.fact(1_500, answered(1, 1, "", &["{}"]));
    play.call(1, None);
    let approval = EffectId::tool(1, 0);
    let asked = ApprovalRequested { approval: approval.clone(), name: "search_code".into(), expires: 9_000 };
    play.decide(2_000, vec![Event::ApprovalRequested(asked)]);
    assert_eq!(play.fact(2_100, tool_done(1, "early")), [], "nobody has allowed it");
    let word = |verdict, arguments: Option<&str>| {
        let arguments = arguments.map(str::to_owned);
        let approval = approval.clone();
        FactBody::ApprovalDecided(ApprovalDecided { approval, by: "p".into(), verdict, arguments, reason: None })
    };
    play.fact(2_200, word(Verdict::Edit, Some(r#"{"query":"other"}"#)));
    play.fact(2_300, word(Verdict::Edit, Some(r#"{"query":"third"}"#)));
    let resolved = ApprovalResolved { approval, verdict: Verdict::Edit, via: "person".into(), deadline: LATER };
    let edited = play.decide(2_400, vec![Event::ApprovalResolved(resolved)]);
    let [Change::Call(call)] = &edited[..] else { panic!("{edited:?}") };
    assert_eq!(call.arguments, r#"{"query":"other"}"#, "the first word counts");
    assert_eq!(play.fact(2_500, tool_done(1, "r")).len(), 1);
}

#[test]
fn a_failure_says_why_and_a_pause_is_a_status() {
    let mut play = Play::begin(request(Kind::Chat, "x"));
    play.infer(1, 1);
    play.decide(1_200, vec![Event::ExecutionPaused(ExecutionPaused { by: "p".into(), reason: None })]);
    assert_eq!(play.summary.row.status, Status::Paused);
    play.decide(1_300, vec![Event::ExecutionResumed(ExecutionResumed { by: "p".into() })]);
    let failed = FactBody::InferenceFailed(InferenceFailed {
        effect: EffectId::inference(1),
        attempt: 1,
        worker: "w".into(),
        class: FailureClass::Overflow,
        detail: "too long".into(),
    });
    let changes = play.fact(1_400, failed);
    let [Change::Inference(inference)] = &changes[..] else { panic!("{changes:?}") };
    assert_eq!((inference.error, inference.timing_us), (Some("overflow"), None));
    let ended = Ended { code: "overflow".into(), detail: "too long".into(), iterations: 1, usage: Usage::new(1, 2) };
    play.decide(1_500, vec![Event::ExecutionFailed(ended)]);
    let row = &play.summary.row;
    assert_eq!((row.status, row.error.as_deref()), (Status::Failed, Some("overflow: too long")));
}

#[test]
fn the_answer_of_a_single_call_is_its_result() {
    let call = ToolCall::new("c", "search_code", r#"{"query":"main"}"#);
    let request = ExecutionSubmitted { call: Some(call), messages: vec![], ..request(Kind::Tool, "") };
    let mut play = Play::begin(request);
    assert_eq!(play.summary.row.title, r#"search_code {"query":"main"}"#);
    play.call(1, None);
    let done = play.fact(2_500, tool_done(1, "found"));
    assert!(matches!(&done[..], [Change::Call(_), Change::Response(text)] if text == "found"), "{done:?}");
}

#[test]
fn titles_and_texts_are_cut_between_characters() {
    let play = Play::begin(request(Kind::Chat, &"é".repeat(500)));
    assert_eq!(play.summary.row.title.chars().count(), TITLE_CHARACTERS);
    let cut = shortened(&"é".repeat(10), 12);
    assert!(cut.len() <= 12 && cut.ends_with(" …"), "{cut}");
    assert_eq!(shortened("short", 5), "short");
}
