//! Properties: whatever the facts and their order, replay equals state, decisions verify byte for byte, there is at
//! most one end, a crash at any point changes nothing, and neither does what arrives twice or in another order.

use bytes::Bytes;
use orchestrator::execution::{DELEGATE, Execution, MACHINE, Rules};
use orchestrator::history::{History, Snapshot, verify, verify_as};
use proptest::prelude::*;
use runtime::bus::{Kind as MessageKind, Stored};
use schemas::chat::{FinishReason, Message, Role, ToolCall, ToolSpec, Usage};
use schemas::fact::*;
use schemas::wire::encode;
use schemas::{EffectId, Event, ExecutionId, Fact, FactBody};
use serde_json::json;

fn exec() -> ExecutionId {
    "0192f0c1-7a3b-7c4d-8e5f-001122334455".parse().expect("canonical id")
}

fn submission(kind: Kind) -> FactBody {
    let limits =
        Limits { iterations: 4, tokens: 900, tool_calls: 5, deadline: 900, children: 2, depth: 1, ..Limits::default() };
    FactBody::ExecutionSubmitted(Box::new(ExecutionSubmitted {
        model: "tiny".into(),
        window: 120,
        messages: vec![Message::text(Role::User, "hi")],
        tools: vec![
            ToolSpec::new("search_code", "", json!({})),
            ToolSpec::new("guarded", "", json!({})),
            ToolSpec::new(DELEGATE, "", json!({})),
        ],
        policy: Policy { approve: vec!["guarded".into()], join: Join::Any, ..Policy::default() },
        agents: vec![helper()],
        ..ExecutionSubmitted::new(kind, "coder", limits)
    }))
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
        tokens: 100,
        tool_calls: 2,
        deadline_ms: 20_000,
        policy: Policy::default(),
    }
}

/// What a model may ask for.
fn call(turn: u32, ordinal: usize, kind: u8) -> ToolCall {
    let (name, arguments) = match kind {
        0 => ("search_code", "{}"),
        1 => ("nonsense", "{}"),
        2 => ("guarded", "{}"),
        3 => (DELEGATE, r#"{"agent": "helper", "task": "t"}"#),
        _ => (DELEGATE, r#"{"agent": "nobody"}"#),
    };
    ToolCall::new(format!("c{turn}{ordinal}"), name, arguments)
}

/// Any fact that could arrive, sensible or not: small numbers, so that many of them hit an open effect.
fn any_fact() -> impl Strategy<Value = FactBody> {
    let sandbox = Sandbox::default;
    let class = prop_oneof![Just(FailureClass::Overloaded), Just(FailureClass::Overflow), Just(FailureClass::Refused)];
    prop_oneof![
        4 => (1u32..4, 1u32..4, prop::collection::vec(0u8..5, 0..3)).prop_map(|(turn, attempt, calls)| FactBody::InferenceCompleted(InferenceCompleted {
            effect: EffectId::inference(turn), attempt, worker: "w".into(), text: "t".into(),
            tool_calls: calls.iter().enumerate().map(|(i, kind)| call(turn, i, *kind)).collect(),
            finish: FinishReason::Stop, usage: Usage::new(20, 3), cached_tokens: 0, timing: InferenceTiming::default(), logprobs: Vec::new(), alternatives: Vec::new(), cached: false, dropped_messages: 0,
        })),
        4 => (1u32..4, 0usize..3, 1u32..3).prop_map(move |(turn, i, attempt)| FactBody::ToolCompleted(ToolCompleted { full: None, effect: EffectId::tool(turn, i), attempt, worker: "w".into(), result: "r".repeat(turn as usize * 60), duration_us: 1, sandbox: sandbox() })),
        2 => (1u32..4, 0usize..3, class.clone()).prop_map(move |(turn, i, class)| FactBody::ToolFailed(ToolFailed { effect: EffectId::tool(turn, i), attempt: 1, worker: "w".into(), class, detail: "d".into(), duration_us: 1, sandbox: sandbox() })),
        1 => (1u32..3, class).prop_map(|(attempt, class)| FactBody::InferenceFailed(InferenceFailed { effect: EffectId::inference(1), attempt, worker: "w".into(), class, detail: "d".into() })),
        2 => (1u32..4, 1u32..3, any::<bool>()).prop_map(|(turn, attempt, tool)| FactBody::EffectLost(EffectLost { effect: if tool { EffectId::tool(turn, 0) } else { EffectId::inference(turn) }, attempt, worker: None })),
        1 => Just(FactBody::TimerFired(TimerFired { timer: "1-infer-0".into(), due: 1 })),
        1 => any::<bool>().prop_map(|now| FactBody::CancelRequested(CancelRequested { by: "u".into(), reason: None, mode: if now { CancelMode::Now } else { CancelMode::Graceful } })),
        2 => (1u32..4, 0usize..2, any::<bool>()).prop_map(|(turn, i, good)| FactBody::ChildClosed(ChildClosed { effect: EffectId::child(turn, i), attempt: 1, child: exec(), outcome: if good { Outcome::Completed } else { Outcome::Failed }, text: "c".into(), usage: Usage::new(9, 1) })),
        1 => (1u32..3, 1u32..3).prop_map(|(n, attempt)| FactBody::CompressionCompleted(CompressionCompleted { effect: EffectId::compression(n), attempt, worker: "w".into(), summary: "s".into(), usage: Usage::new(5, 1) })),
        1 => (1u32..3).prop_map(|n| FactBody::CompressionFailed(CompressionFailed { effect: EffectId::compression(n), attempt: 1, worker: "w".into(), class: FailureClass::Internal, detail: "d".into() })),
        2 => (1u32..4, 0usize..2, 0u8..3).prop_map(|(turn, i, word)| FactBody::ApprovalDecided(ApprovalDecided { approval: EffectId::tool(turn, i), by: "p".into(), verdict: [Verdict::Allow, Verdict::Deny, Verdict::Edit][word as usize], arguments: (word == 2).then(|| "{\"x\": 1}".into()), reason: None })),
        1 => (0u8..9).prop_map(|n| FactBody::UserMessage(UserMessage { object: None, id: format!("m{n}"), by: None, text: "more".into() })),
        1 => Just(FactBody::BudgetGranted(BudgetGranted { by: "p".into(), dimension: "iterations".into(), amount: 1 })),
        1 => Just(FactBody::PauseRequested(PauseRequested { by: "p".into(), reason: None })),
        1 => Just(FactBody::ResumeRequested(ResumeRequested { by: "p".into() })),
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
        if let Some(record) = history.decide(Rules::current()) {
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
        prop_assert_eq!(replayed.decide(Rules::current()), history.decide(Rules::current()));

        // A snapshot after any decision, and the rest of the log.
        let cut = log.iter().rposition(|m| m.kind == MessageKind::Decision && m.sequence <= log.len() as u64 / 2);
        if let Some(cut) = cut {
            let mut early = History::new(exec());
            log[..=cut].iter().for_each(|stored| early.fold(stored).expect("reads"));
            let bytes = encode(&early.snapshot().expect("right after a decision"));
            let mut restored = History::restore(Snapshot::read(&bytes).expect("reads"));
            log.iter().for_each(|stored| restored.fold(stored).expect("reads"));
            prop_assert_eq!(&restored.execution, &history.execution);
            prop_assert_eq!(restored.decide(Rules::current()), history.decide(Rules::current()));
        }

        // A crash after any message: what was read so far and what follows give the same.
        let half = log.len() / 2;
        let mut resumed = History::new(exec());
        for stored in log[..half].iter().chain(&log) {
            resumed.fold(stored).expect("reads");
        }
        prop_assert_eq!(&resumed.execution, &history.execution);

        let ends = log.iter().filter(|m| m.kind == MessageKind::Decision)
            .filter(|m| schemas::Record::read(&m.payload).expect("reads").events.iter().any(Event::is_terminal)).count();
        prop_assert!(ends <= 1, "at most one end");
        let last = log.iter().rev().find(|m| m.kind == MessageKind::Decision);
        prop_assert!(ends == 0 || last.is_some_and(|m| schemas::Record::read(&m.payload).expect("reads").events.last().is_some_and(Event::is_terminal)), "nothing follows an end");

        // What was settled is what was used, and nothing stays set aside behind an end.
        let of = |name: &str| -> u64 {
            let records = log.iter().filter(|m| m.kind == MessageKind::Decision).map(|m| schemas::Record::read(&m.payload).expect("reads"));
            records.flat_map(|r| r.events).map(|e| match e {
                Event::BudgetReserved(e) if name == "reserved" => e.tokens,
                Event::BudgetSettled(e) if name == "settled" => e.tokens,
                _ => 0,
            }).sum()
        };
        let compressed: u64 = history.execution.effects.iter().filter(|(_, e)| matches!(e.work, orchestrator::execution::Work::Compression { .. })).map(|(_, e)| e.used).sum();
        if history.execution.is_closed() {
            prop_assert_eq!(history.execution.budget.reserved, 0);
            prop_assert_eq!(of("settled") + compressed, history.execution.budget.usage.tokens);
        }
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

/// Facts that say again what they said; the others are new wishes each time, and the log knows them by their ids.
fn can_arrive_twice(body: &FactBody) -> bool {
    !matches!(
        body,
        FactBody::CancelRequested(_)
            | FactBody::PauseRequested(_)
            | FactBody::ResumeRequested(_)
            | FactBody::BudgetGranted(_)
            | FactBody::UserMessage(_)
    )
}

/// Folds facts and decides after each that is marked so; the state at the end, all events, and which facts mattered.
fn settle(facts: &[(Fact, bool)]) -> (Execution, Vec<Event>, Vec<bool>) {
    let (mut execution, mut events, mut mattered) = (Execution::default(), Vec::new(), Vec::new());
    for (fact, decides) in facts {
        let mut before = execution.clone();
        execution.apply_fact(fact);
        before.now = execution.now;
        mattered.push(before != execution);
        if *decides {
            events.extend(execution.settle(Rules::current()));
        }
    }
    (execution, events, mattered)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn what_arrives_twice_changes_nothing(
        facts in prop::collection::vec((any_fact(), any::<bool>()), 1..40),
        again in prop::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..10),
        step in 1i64..60,
    ) {
        let facts = std::iter::once((submission(Kind::Agent), true)).chain(facts).zip(0i64..);
        let mut facts: Vec<_> = facts.map(|((body, decides), i)| (Fact::new(exec(), i * step, body), decides)).collect();
        let (once, events, mattered) = settle(&facts);
        let first: Vec<Fact> = facts.iter().zip(mattered).filter(|((fact, _), mattered)| *mattered && can_arrive_twice(&fact.body)).map(|((fact, _), _)| fact.clone()).collect();
        for (which, place) in again {
            let fact = which.get(&first).clone();
            let behind = facts.iter().position(|(f, _)| *f == fact).expect("it stands there") + 1;
            let place = behind + place.index(facts.len() + 1 - behind);
            facts.insert(place, (fact, false));
        }
        let (twice, events_of_twice, _) = settle(&facts);
        prop_assert_eq!(events, events_of_twice);
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn results_of_one_turn_come_in_any_order(kinds in prop::collection::vec(prop_oneof![Just(0u8), Just(3u8)], 1..5), keys in prop::collection::vec(any::<u32>(), 5), bad in any::<u8>()) {
        let mut request = submission(Kind::Agent);
        if let FactBody::ExecutionSubmitted(request) = &mut request {
            (request.policy.join, request.window, request.limits.tokens) = (Join::All, 10_000, 100_000);
        }
        let asked = FactBody::InferenceCompleted(InferenceCompleted {
            effect: EffectId::inference(1), attempt: 1, worker: "w".into(), text: "t".into(),
            tool_calls: kinds.iter().enumerate().map(|(i, kind)| call(1, i, *kind)).collect(),
            finish: FinishReason::ToolCalls, usage: Usage::new(20, 3), cached_tokens: 0, timing: InferenceTiming::default(),
logprobs: Vec::new(), alternatives: Vec::new(), cached: false, dropped_messages: 0,
        });
        let result = |i: usize| match kinds[i] {
            0 if bad >> i & 1 == 1 => FactBody::ToolFailed(ToolFailed { effect: EffectId::tool(1, i), attempt: 1, worker: "w".into(), class: FailureClass::Refused, detail: format!("d{i}"), duration_us: 1, sandbox: Sandbox::default() }),
            0 => FactBody::ToolCompleted(ToolCompleted { full: None, effect: EffectId::tool(1, i), attempt: 1, worker: "w".into(), result: format!("r{i}"), duration_us: 1, sandbox: Sandbox::default() }),
            _ => FactBody::ChildClosed(ChildClosed { effect: EffectId::child(1, i), attempt: 1, child: exec(), outcome: if bad >> i & 1 == 1 { Outcome::Failed } else { Outcome::Completed }, text: format!("c{i}"), usage: Usage::new(9, 1) }),
        };
        let in_order = |order: &[usize]| {
            let bodies = [request.clone(), asked.clone()].into_iter().chain(order.iter().map(|i| result(*i)));
            settle(&bodies.zip(1i64..).map(|(body, at)| (Fact::new(exec(), at, body), true)).collect::<Vec<_>>()).0
        };
        let straight: Vec<usize> = (0..kinds.len()).collect();
        let mut shuffled = straight.clone();
        shuffled.sort_by_key(|i| keys[*i]);
        prop_assert_eq!(in_order(&straight), in_order(&shuffled));
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
    let record = history.decide(Rules::current()).expect("the request is taken up all the same");
    log.push(message(3, MessageKind::Decision, encode(&record)));
    let verified = verify(exec(), &log).expect("the corrupt bytes are in the hash");
    assert_eq!((verified.decisions, verified.unreadable.len()), (1, 1));
}

/// Histories that earlier versions of the rules wrote come out byte for byte. A new version adds files; none is changed.
#[test]
fn golden_histories_of_every_version_are_decided_again() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut versions = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(folder).expect("golden histories").map(|e| e.expect("readable").path()) {
        let text = std::fs::read_to_string(&entry).expect("text");
        let log: Vec<Stored> = text.lines().map(read_line).collect();
        let verified = verify(exec(), &log).unwrap_or_else(|e| panic!("{}: {e}", entry.display()));
        assert!(verified.decisions > 0 && verified.unreadable.is_empty(), "{}", entry.display());
        let last = log.iter().rev().find(|m| m.kind == MessageKind::Decision).expect("a decision");
        versions.insert(schemas::Record::read(&last.payload).expect("reads").machine);
    }
    assert_eq!(versions, (1..=MACHINE).collect(), "every version has a history; write one with UPDATE_GOLDEN=1");
}

/// `sequence kind hex`.
fn read_line(line: &str) -> Stored {
    let [sequence, kind, bytes] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
    let kind = if kind == "fact" { MessageKind::Fact } else { MessageKind::Decision };
    message(sequence.parse().expect("a number"), kind, hex::decode(bytes).expect("hex"))
}

/// The stories of the newest version. With `UPDATE_GOLDEN=1` they are written, once, as that version's golden histories.
#[test]
fn the_newest_version_has_its_golden_histories() {
    let done = |turn: u32, kinds: &[u8]| {
        FactBody::InferenceCompleted(InferenceCompleted {
            effect: EffectId::inference(turn),
            attempt: 1,
            worker: "w".into(),
            text: format!("answer {turn}"),
            tool_calls: kinds.iter().enumerate().map(|(i, kind)| call(turn, i, *kind)).collect(),
            finish: FinishReason::Stop,
            usage: Usage::new(40 + 10 * u64::from(turn), 3),
            cached_tokens: 0,
            timing: InferenceTiming::default(),
            logprobs: Vec::new(),
            alternatives: Vec::new(),
            cached: false,
            dropped_messages: 0,
        })
    };
    let tool = |turn, i, result: &str| {
        let (effect, sandbox) = (EffectId::tool(turn, i), Sandbox::default());
        FactBody::ToolCompleted(ToolCompleted {
            full: None,
            effect,
            attempt: 1,
            worker: "w".into(),
            result: result.into(),
            duration_us: 1,
            sandbox,
        })
    };
    let child = |i| {
        FactBody::ChildClosed(ChildClosed {
            effect: EffectId::child(1, i),
            attempt: 1,
            child: exec(),
            outcome: Outcome::Completed,
            text: "c".into(),
            usage: Usage::new(9, 1),
        })
    };
    let word = |verdict| {
        FactBody::ApprovalDecided(ApprovalDecided {
            approval: EffectId::tool(1, 0),
            by: "p".into(),
            verdict,
            arguments: None,
            reason: Some("no".into()),
        })
    };
    let summary = FactBody::CompressionCompleted(CompressionCompleted {
        effect: EffectId::compression(1),
        attempt: 1,
        worker: "w".into(),
        summary: "s".into(),
        usage: Usage::new(5, 1),
    });
    let pause = FactBody::PauseRequested(PauseRequested { by: "p".into(), reason: None });
    let resume = FactBody::ResumeRequested(ResumeRequested { by: "p".into() });
    let agent = || submission(Kind::Agent);
    let long = "r".repeat(90);
    let stories: Vec<(&str, Vec<FactBody>)> = vec![
        ("chat", vec![submission(Kind::Chat), done(1, &[])]),
        ("tools", vec![agent(), done(1, &[0, 1]), tool(1, 0, "a"), done(2, &[])]),
        ("children", vec![agent(), done(1, &[3, 3, 4]), child(1), done(2, &[])]),
        ("denied", vec![agent(), done(1, &[2]), word(Verdict::Deny), done(2, &[])]),
        ("paused", vec![agent(), pause, done(1, &[0]), resume, tool(1, 0, "a"), done(2, &[])]),
        (
            "compressed",
            vec![agent(), done(1, &[0]), tool(1, 0, &long), done(2, &[0]), tool(2, 0, &long), summary, done(3, &[])],
        ),
    ];
    for (name, bodies) in stories {
        let facts: Vec<_> = bodies.into_iter().map(|body| (body, false)).collect();
        let (_, log) = play(&facts, 10);
        let kind = |m: &Stored| if m.kind == MessageKind::Fact { "fact" } else { "decision" };
        let text: String =
            log.iter().map(|m| format!("{} {} {}\n", m.sequence, kind(m), hex::encode(&m.payload))).collect();
        let path =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/machine-{MACHINE}-{name}.txt"));
        #[expect(clippy::disallowed_methods, reason = "a switch for the person who makes a new version")]
        if std::env::var("UPDATE_GOLDEN").is_ok() {
            std::fs::write(&path, &text).expect("write the history");
        }
        assert_eq!(
            text,
            std::fs::read_to_string(&path).expect("a golden history"),
            "{name} is decided otherwise: that is a new version"
        );
    }
}

#[test]
fn other_rules_are_told_apart_by_what_they_decide() {
    let (_, log) = play(&[(submission(Kind::Agent), false)], 10);
    assert!(verify_as(exec(), &log, Rules::current()).is_ok());
    let difference = verify_as(exec(), &log, Rules::of(1).expect("held")).expect_err("version 1 keeps no books");
    assert_eq!((difference.n, difference.sequence), (0, 2));
}
