//! Every byte of a log counts: one that changed is found, and found where it stands.

use bytes::Bytes;
use orchestrator::audit::{Audit, Broken, Found};
use orchestrator::execution::Rules;
use orchestrator::history::History;
use runtime::bus::{Kind, Stored};
use schemas::chat::{FinishReason, Message, Role, ToolCall, ToolSpec, Usage};
use schemas::fact::{self, ExecutionSubmitted, InferenceCompleted, Limits, ToolCompleted};
use schemas::wire::encode;
use schemas::{EffectId, ExecutionId, Fact, FactBody};

/// A moment as real clocks say it: all its bytes are in use.
const START: i64 = 1_790_000_000_123_456_789;

fn ids() -> [ExecutionId; 2] {
    ["0192f0c1-7a3b-7c4d-8e5f-001122334455", "0192f0c1-7a3b-7c4d-8e5f-00112233aaaa"]
        .map(|id| id.parse().expect("an id"))
}

fn answer(turn: u32, text: &str, tool_calls: Vec<ToolCall>) -> FactBody {
    FactBody::InferenceCompleted(InferenceCompleted {
        effect: EffectId::inference(turn),
        attempt: 1,
        worker: "w".into(),
        text: text.into(),
        finish: if tool_calls.is_empty() { FinishReason::Stop } else { FinishReason::ToolCalls },
        tool_calls,
        usage: Usage::new(20, 3),
        cached_tokens: 0,
        timing: Default::default(),
        logprobs: Vec::new(),
        alternatives: Vec::new(),
        cached: false,
        dropped_messages: 0,
    })
}

/// The facts of an agent that reads a file and answers.
fn facts() -> Vec<FactBody> {
    let deadline = START + 300_000_000_000;
    let limits = Limits { iterations: 4, tokens: 900, tool_calls: 5, deadline, ..Limits::default() };
    let request = ExecutionSubmitted {
        model: "tiny".into(),
        window: 1_024,
        messages: vec![Message::text(Role::User, "hi")],
        tools: vec![ToolSpec::new("read_file", "", serde_json::json!({}))],
        ..ExecutionSubmitted::new(fact::Kind::Agent, "coder", limits)
    };
    let read = ToolCompleted {
        full: None,
        effect: EffectId::tool(1, 0),
        attempt: 1,
        worker: "t".into(),
        result: "text".into(),
        duration_us: 1,
        sandbox: Default::default(),
    };
    vec![
        FactBody::ExecutionSubmitted(Box::new(request)),
        answer(1, "", vec![ToolCall::new("c1", "read_file", "{}")]),
        FactBody::ToolCompleted(read),
        answer(2, "It says text.", vec![]),
    ]
}

/// A partition in which two executions take turns.
fn partition() -> Vec<Stored> {
    let mut histories = ids().map(History::new);
    let mut log: Vec<Stored> = Vec::new();
    for (i, body) in facts().into_iter().enumerate() {
        for history in &mut histories {
            let exec = history.exec;
            let fact = Fact::new(exec, START + i as i64, body.clone());
            let mut append = |kind, bytes: Vec<u8>| {
                let sequence = log.len() as u64 + 1;
                log.push(Stored { exec, sequence, stored_at: 0, kind, payload: Bytes::from(bytes) });
                log[log.len() - 1].clone()
            };
            history.fold(&append(Kind::Fact, encode(&fact))).expect("a fact reads");
            let record = history.decide(Rules::current()).expect("every fact leads to something");
            history.fold(&append(Kind::Decision, encode(&record))).expect("a decision reads");
        }
    }
    log
}

fn audit(log: &[Stored]) -> Found {
    let mut audit = Audit::from(1);
    log.iter().for_each(|message| audit.take(message));
    audit.found
}

#[test]
fn an_honest_partition_has_nothing_broken() {
    let found = audit(&partition());
    assert_eq!((found.executions, found.events, found.decisions, found.broken), (2, 16, 8, vec![]));
}

#[test]
fn one_changed_byte_anywhere_is_found_where_it_stands() {
    let log = partition();
    for (i, message) in log.iter().enumerate().filter(|(_, m)| m.exec == ids()[0]) {
        // A fact counts from the decision that rests on it.
        let decision =
            log[i..].iter().find(|m| m.kind == Kind::Decision && m.exec == message.exec).expect("a decision");
        for byte in 0..message.payload.len() {
            for mask in [1 << (byte % 8), 0xff] {
                let mut bytes = message.payload.to_vec();
                bytes[byte] ^= mask;
                let mut changed = log.clone();
                changed[i].payload = Bytes::from(bytes);
                let found = audit(&changed);
                let [broken] = found.broken.as_slice() else {
                    panic!("byte {byte} of message {i} ^ {mask:#x}: {:?}", found.broken);
                };
                assert_eq!(
                    (broken.execution_id, broken.sequence),
                    (Some(message.exec), decision.sequence),
                    "{broken:?}"
                );
                if message.kind == Kind::Fact {
                    let blamed = format!("(it rests on facts at {})", message.sequence);
                    assert!(broken.difference.ends_with(&blamed), "{broken:?}");
                }
            }
        }
    }
}

#[test]
fn a_missing_message_is_a_hole_and_a_decision_after_the_end_is_a_forgery() {
    let mut log = partition();
    let last = log[15].clone();
    log.push(Stored { sequence: 17, ..last });
    let found = audit(&log);
    let [Broken { execution_id, decision, sequence, .. }] = found.broken.as_slice() else {
        panic!("{:?}", found.broken);
    };
    assert_eq!((*execution_id, *decision, *sequence), (Some(ids()[1]), Some(4), 17));

    let mut log = partition();
    log.drain(4..6);
    let found = audit(&log);
    let holes: Vec<&Broken> = found.broken.iter().filter(|b| b.execution_id.is_none()).collect();
    assert_eq!((holes.len(), holes[0].sequence, holes[0].difference.as_str()), (1, 5, "messages 5 to 6 are missing"));
    assert!(found.broken.iter().any(|b| b.execution_id == Some(ids()[0])), "what rests on them is broken, too");

    let mut cut = Audit::from(1);
    partition()[..14].iter().for_each(|message| cut.take(message));
    cut.end(17);
    assert_eq!(cut.found.broken[0].difference, "messages 15 to 16 are missing");
}
