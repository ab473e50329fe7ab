//! Properties: whatever the facts and their order, replay equals state, decisions verify byte for byte, there is at
//! most one end, and a crash at any point changes nothing.

use bytes::Bytes;
use orchestrator::history::{History, verify};
use proptest::prelude::*;
use runtime::bus::{Kind as MessageKind, Stored};
use schemas::chat::{FinishReason, Message, Role, Sampling, ToolCall, ToolSpec, Usage};
use schemas::fact::*;
use schemas::wire::encode;
use schemas::{EffectId, ExecutionId, Fact, FactBody};
use serde_json::json;

fn exec() -> ExecutionId {
    "0192f0c1-7a3b-7c4d-8e5f-001122334455".parse().expect("canonical id")
}

fn submission(kind: Kind) -> FactBody {
    FactBody::ExecutionSubmitted(Box::new(ExecutionSubmitted {
        kind,
        agent: "coder".into(),
        model: "tiny".into(),
        window: 1024,
        messages: vec![Message::text(Role::User, "hi")],
        tools: vec![ToolSpec::new("search_code", "", json!({}))],
        call: None,
        workspace: None,
        user_id: None,
        conversation_id: None,
        sampling: Sampling::default(),
        limits: Limits { iterations: 4, tokens: 500, tool_calls: 5, deadline: 900 },
        reply: None,
    }))
}

/// Any fact that could arrive, sensible or not: small numbers, so that many of them hit an open effect.
fn any_fact() -> impl Strategy<Value = FactBody> {
    let sandbox = Sandbox::default;
    let class = prop_oneof![Just(FailureClass::Overloaded), Just(FailureClass::Overflow), Just(FailureClass::Refused)];
    prop_oneof![
        4 => (1u32..4, 1u32..4, 0usize..3).prop_map(|(turn, attempt, calls)| FactBody::InferenceCompleted(InferenceCompleted {
            effect: EffectId::inference(turn), attempt, worker: "w".into(), text: "t".into(),
            tool_calls: (0..calls).map(|i| ToolCall::new(format!("c{turn}{i}"), if i == 1 { "nonsense" } else { "search_code" }, "{}")).collect(),
            finish: FinishReason::Stop, usage: Usage::new(20, 3), cached_tokens: 0, timing: InferenceTiming::default(),
        })),
        4 => (1u32..4, 0usize..3, 1u32..3).prop_map(move |(turn, i, attempt)| FactBody::ToolCompleted(ToolCompleted { effect: EffectId::tool(turn, i), attempt, worker: "w".into(), result: "r".into(), duration_us: 1, sandbox: sandbox() })),
        2 => (1u32..4, 0usize..3, class.clone()).prop_map(move |(turn, i, class)| FactBody::ToolFailed(ToolFailed { effect: EffectId::tool(turn, i), attempt: 1, worker: "w".into(), class, detail: "d".into(), duration_us: 1, sandbox: sandbox() })),
        1 => (1u32..3, class).prop_map(|(attempt, class)| FactBody::InferenceFailed(InferenceFailed { effect: EffectId::inference(1), attempt, worker: "w".into(), class, detail: "d".into() })),
        2 => (1u32..4, 1u32..3, any::<bool>()).prop_map(|(turn, attempt, tool)| FactBody::EffectLost(EffectLost { effect: if tool { EffectId::tool(turn, 0) } else { EffectId::inference(turn) }, attempt, worker: None })),
        1 => Just(FactBody::TimerFired(TimerFired { timer: "1-infer-0".into(), due: 1 })),
        1 => Just(FactBody::CancelRequested(CancelRequested { by: "u".into(), reason: None })),
        1 => Just(submission(Kind::Chat)),
    ]
}

fn message(sequence: u64, kind: MessageKind, bytes: Vec<u8>) -> Stored {
    Stored { exec: exec(), sequence, stored_at: 0, kind, payload: Bytes::from(bytes) }
}

/// Plays facts through a history as the shell does: each decision follows the fact it rests on. Facts named in
/// `bursts` arrive before the decision about the one before them.
fn play(facts: &[(FactBody, bool)], step: i64) -> (History, Vec<Stored>) {
    let mut history = History::new(exec());
    let mut log = Vec::new();
    for (i, (body, burst)) in facts.iter().enumerate() {
        let fact = Fact::new(exec(), i as i64 * step, body.clone());
        let stored = message(log.len() as u64 + 1, MessageKind::Fact, encode(&fact));
        history.fold(&stored).expect("a fact reads");
        log.push(stored);
        if *burst {
            continue;
        }
        if let Some(record) = history.decide() {
            let sequence = log.len() as u64 + 1;
            log.push(message(sequence, MessageKind::Decision, encode(&record)));
            history.commit(&record, sequence);
        }
    }
    (history, log)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn replay_equals_state_and_every_decision_verifies(agent in any::<bool>(), facts in prop::collection::vec((any_fact(), any::<bool>()), 0..40), step in 1i64..60) {
        let kind = if agent { Kind::Agent } else { Kind::Chat };
        let facts: Vec<_> = std::iter::once((submission(kind), false)).chain(facts).collect();
        let (history, log) = play(&facts, step);

        let verified = verify(exec(), &log).expect("the same rules decide the same");
        prop_assert_eq!(verified.events, log.len() as u64);

        let mut replayed = History::new(exec());
        for stored in &log {
            replayed.fold(stored).expect("reads");
        }
        prop_assert_eq!(&replayed.execution, &history.execution);
        prop_assert_eq!(replayed.decide(), history.decide());

        // A crash after any message: what was read so far and what follows give the same.
        let half = log.len() / 2;
        let mut resumed = History::new(exec());
        for stored in log[..half].iter().chain(&log) {
            resumed.fold(stored).expect("reads");
        }
        prop_assert_eq!(&resumed.execution, &history.execution);

        let ends = log.iter().filter(|m| m.kind == MessageKind::Decision)
            .filter(|m| schemas::Record::read(&m.payload).expect("reads").events.iter().any(schemas::Event::is_terminal)).count();
        prop_assert!(ends <= 1, "at most one end");
    }

    #[test]
    fn any_changed_byte_of_a_fact_is_noticed(facts in prop::collection::vec((any_fact(), Just(false)), 1..10), position in any::<prop::sample::Index>()) {
        let facts: Vec<_> = std::iter::once((submission(Kind::Agent), false)).chain(facts).collect();
        let (_, mut log) = play(&facts, 10);
        let last = log.iter().rposition(|m| m.kind == MessageKind::Decision).expect("a decision follows a submission");
        let consumed: Vec<usize> = (0..last).filter(|i| log[*i].kind == MessageKind::Fact).collect();
        let target = consumed[position.index(consumed.len())];
        let mut bytes = log[target].payload.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        log[target].payload = bytes.into();
        prop_assert!(verify(exec(), &log).is_err());
    }
}

#[test]
fn a_corrupt_message_is_passed_over_and_reported() {
    let mut history = History::new(exec());
    let submitted = encode(&Fact::new(exec(), 1, submission(Kind::Chat)));
    let mut log =
        vec![message(1, MessageKind::Fact, submitted), message(2, MessageKind::Fact, b"\xc1 not a fact".to_vec())];
    history.fold(&log[0]).expect("reads");
    assert!(history.fold(&log[1]).is_err());
    let record = history.decide().expect("the request is taken up all the same");
    log.push(message(3, MessageKind::Decision, encode(&record)));
    let verified = verify(exec(), &log).expect("the corrupt bytes are in the hash");
    assert_eq!((verified.decisions, verified.unreadable.len()), (1, 1));
}
