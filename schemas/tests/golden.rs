//! Every message type has a sample in `golden/`. A change of the wire shows up as a diff of these files; run with
//! `UPDATE_GOLDEN=1` to write them anew, and read the diff.

use std::fmt::Debug;
use std::path::PathBuf;

use schemas::api::Status;
use schemas::chat::{
    FinishReason, Message, Priority, ResponseFormat, Role, Sampling, TokenLogprob, ToolCall, ToolChoice, ToolSpec,
    TopLogprob, Truncation, Usage,
};
use schemas::dead_letter::{DeadLetter, Reason, Settled, Settlement};
use schemas::decision::*;
use schemas::fact::*;
use schemas::job::{AnalysisJob, InferenceJob, Purpose, ToolJob};
use schemas::models::{
    Change, ChangeModels, Gpu, HostMemory, InferenceState, KnownModel, ModelState, Operation, OperationState,
};
use schemas::object::{self, Reference};
use schemas::presence::{Confinement, Hold, Holds, Vectors, Worker};
use schemas::rpc;
use schemas::token::{Frame, FrameKind};
use schemas::vectors;
use schemas::wire::{Schema, decode, encode};
use schemas::{EffectId, ExecutionId, agent, code, executions, memory};
use serde::Serialize;
use serde::de::{DeserializeOwned, MapAccess, SeqAccess, Visitor};
use serde_json::{Value, json};

fn exec() -> ExecutionId {
    "0192f0c1-7a3b-7c4d-8e5f-001122334455".parse().expect("canonical id")
}

fn call() -> ToolCall {
    ToolCall::new("call-1-0", "search_code", r#"{"query": "parse_config"}"#)
}

fn logprob() -> TokenLogprob {
    let top_logprobs = vec![TopLogprob { token: "he".into(), logprob: -0.5 }];
    TokenLogprob { token: "he".into(), logprob: -0.5, top_logprobs }
}

fn tool() -> ToolSpec {
    ToolSpec::new(
        "search_code",
        "Finds text in files.",
        json!({"type": "object", "properties": {"query": {"type": "string"}}}),
    )
}

fn object() -> Reference {
    Reference::to(b"a long text", object::TEXT)
}

fn sandbox() -> Sandbox {
    Sandbox { tier: "bubblewrap".into(), enforced: vec!["seccomp".into(), "landlock".into()] }
}

fn limits() -> Limits {
    Limits {
        iterations: 8,
        tokens: 10_000,
        tool_calls: 16,
        deadline: 1_790_000_060_000_000_000,
        tokens_in: Some(9_000),
        tokens_out: Some(1_000),
        children: 4,
        depth: 2,
    }
}

fn policy() -> Policy {
    Policy {
        approve: vec!["run_command".into()],
        approval_ms: 60_000,
        join: Join::Quorum(2),
        at_limit: AtLimit::Ask,
        small_model: Some("tiny".into()),
        recall: true,
        remember: true,
    }
}

fn asked() -> Request {
    Request::Agent(json!({"agent_type": "coder", "instruction": "Where is x?"}))
}

fn problem() -> schemas::api::Problem {
    schemas::api::Problem {
        kind: "urn:vlinders:problem:unknown_agent".into(),
        title: "unknown agent".into(),
        status: 404,
        code: "unknown_agent".into(),
        detail: "there is no agent \"codr\"".into(),
        next_step: "did you mean coder?".into(),
        execution_id: None,
        retry_after_s: None,
    }
}

/// Writes or compares one sample: the bytes as hex, then the same value as people read it.
fn check<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, sample: &T) {
    let bytes = encode(sample);
    let readable: Shown = decode(&bytes).expect("a message is a map that JSON can show");
    let text = format!("{}\n{}\n", hex::encode(&bytes), serde_json::to_string_pretty(&readable.0).expect("JSON"));
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden").join(format!("{name}.txt"));
    #[expect(clippy::disallowed_methods, reason = "a switch for the person who changes the wire on purpose")]
    if std::env::var("UPDATE_GOLDEN").is_ok() {
        std::fs::write(&path, &text).expect("write the sample");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
    assert_eq!(text, golden, "the wire of {name} changed");
    let first = golden.lines().next().expect("hex");
    let read: T = decode(&hex::decode(first).expect("hex")).expect("the sample still reads");
    assert_eq!(&read, sample, "{name} reads as something else");
}

/// A message as JSON; bytes, which JSON does not have, are shown as hex.
struct Shown(Value);

impl<'de> serde::Deserialize<'de> for Shown {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ShownVisitor).map(Self)
    }
}

struct ShownVisitor;

impl<'de> Visitor<'de> for ShownVisitor {
    type Value = Value;
    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("anything")
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(json!(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(json!(value))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(json!(value))
    }
    fn visit_f32<E>(self, value: f32) -> Result<Value, E> {
        Ok(json!(f64::from(value)))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(json!(value))
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(json!(value))
    }
    fn visit_bytes<E>(self, value: &[u8]) -> Result<Value, E> {
        Ok(json!(format!("bytes {}", hex::encode(value))))
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Shown(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = serde_json::Map::new();
        while let Some((key, Shown(value))) = entries.next_entry::<String, Shown>()? {
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

fn fact(body: FactBody) -> Fact {
    let mut fact = Fact::new(exec(), 1_790_000_000_000_000_000, body);
    fact.cause = Some("req-1".into());
    fact.trace.insert("traceparent".into(), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into());
    fact
}

#[test]
fn dead_letters() {
    let headers = [("Nats-Msg-Id".to_owned(), vec!["some-id".to_owned()])];
    let waiting = DeadLetter {
        schema: DeadLetter::SCHEMA.into(),
        stream: "VL_LOG_8".into(),
        sequence: 42,
        subject: schemas::subject::fact(exec()),
        stored_at: 1_790_000_000_000_000_000,
        reason: Reason::Malformed,
        detail: "decode a message: no map".into(),
        next_step: Reason::Malformed.next_step().into(),
        at: 1_790_000_000_000_000_007,
        by: "orchestrator-1".into(),
        exec: Some(exec()),
        headers: headers.into(),
        payload: Some(b"junk".to_vec()),
        settled: None,
    };
    check("dead_letter.waiting", &waiting);
    let settled =
        Settled { how: Settlement::Redriven, at: 1_790_000_001_000_000_000, by: "ann".into(), sequence: Some(43) };
    check("dead_letter.settled", &DeadLetter { settled: Some(settled), payload: None, ..waiting });
}

#[test]
fn facts() {
    let effect = EffectId::inference(1);
    let all = [
        FactBody::ExecutionSubmitted(Box::new(ExecutionSubmitted {
            kind: Kind::Agent,
            agent: "coder".into(),
            model: "tiny".into(),
            window: 1024,
            messages: vec![
                Message::text(Role::System, "You help."),
                Message::text(Role::User, "Where is parse_config defined?"),
            ],
            tools: vec![tool()],
            call: Some(call()),
            workspace: Some("repo".into()),
            user_id: Some("u1".into()),
            conversation_id: Some(exec()),
            sampling: Sampling {
                temperature: Some(0.0),
                top_p: Some(0.5),
                max_tokens: Some(64),
                seed: Some(7),
                stop: vec!["END".into()],
                top_k: Some(40),
                min_p: Some(0.25),
                repetition_penalty: Some(1.5),
                presence_penalty: Some(-0.5),
                frequency_penalty: Some(0.5),
                logprobs: true,
                top_logprobs: Some(1),
                response_format: Some(ResponseFormat::JsonSchema { schema: json!({"type": "object"}) }),
                tool_choice: Some(ToolChoice::Function { name: "search_code".into() }),
                parallel_tool_calls: Some(false),
                n: Some(2),
            },
            limits: limits(),
            reply: Some("_INBOX.x".into()),
            parent: Some(Parent { exec: exec(), effect: EffectId::child(1, 0), attempt: 1 }),
            depth: 1,
            policy: policy(),
            agents: vec![AgentSpec {
                name: "helper".into(),
                system: "You help.".into(),
                model: "tiny".into(),
                window: 1024,
                tools: vec![tool()],
                agents: vec!["coder".into()],
                iterations: 4,
                tokens: 5_000,
                tool_calls: 8,
                deadline_ms: 60_000,
                policy: policy(),
            }],
            priority: Priority::High,
            truncation: Truncation::Auto,
            cache: true,
            fresh_tools: false,
        })),
        FactBody::InferenceCompleted(InferenceCompleted {
            effect: effect.clone(),
            attempt: 1,
            worker: "inference-1".into(),
            text: "Hello.".into(),
            tool_calls: vec![call()],
            finish: FinishReason::ToolCalls,
            usage: Usage::new(40, 12),
            cached_tokens: 16,
            timing: InferenceTiming { queue_us: 300, prefill_us: 4_000, decode_us: 9_000 },
            logprobs: vec![logprob()],
            alternatives: vec![Alternative {
                text: "Hi.".into(),
                tool_calls: vec![call()],
                finish: FinishReason::Length,
                completion_tokens: 5,
                logprobs: vec![logprob()],
            }],
            cached: true,
            dropped_messages: 4,
        }),
        FactBody::InferenceFailed(InferenceFailed {
            effect: effect.clone(),
            attempt: 1,
            worker: "inference-1".into(),
            class: FailureClass::Overflow,
            detail: "fit 2000 tokens into a window of 1024".into(),
        }),
        FactBody::ToolCompleted(ToolCompleted {
            full: Some(object()),
            effect: EffectId::tool(1, 0),
            attempt: 1,
            worker: "tool-1".into(),
            result: "no matches".into(),
            duration_us: 8_000,
            sandbox: sandbox(),
        }),
        FactBody::ToolFailed(ToolFailed {
            effect: EffectId::tool(1, 0),
            attempt: 1,
            worker: "tool-1".into(),
            class: FailureClass::Refused,
            detail: "path is outside the workspace".into(),
            duration_us: 5,
            sandbox: sandbox(),
        }),
        FactBody::CancelRequested(CancelRequested {
            by: "user".into(),
            reason: Some("changed my mind".into()),
            mode: CancelMode::Graceful,
        }),
        FactBody::TimerFired(TimerFired { timer: "deadline".into(), due: 1_790_000_060_000_000_000 }),
        FactBody::EffectLost(EffectLost { effect, attempt: 1, worker: Some("inference-1".into()) }),
        FactBody::UserMessage(UserMessage {
            object: Some(object()),
            id: "m1".into(),
            by: Some("u1".into()),
            text: "and y?".into(),
        }),
        FactBody::ChildClosed(ChildClosed {
            effect: EffectId::child(1, 0),
            attempt: 1,
            child: exec(),
            outcome: Outcome::Completed,
            text: "x is in a.rs".into(),
            usage: Usage::new(40, 12),
        }),
        FactBody::CompressionCompleted(CompressionCompleted {
            effect: EffectId::compression(1),
            attempt: 1,
            worker: "inference-1".into(),
            summary: "x is in a.rs".into(),
            usage: Usage::new(400, 12),
        }),
        FactBody::CompressionFailed(CompressionFailed {
            effect: EffectId::compression(1),
            attempt: 1,
            worker: "inference-1".into(),
            class: FailureClass::Overloaded,
            detail: "generate: no room".into(),
        }),
        FactBody::ApprovalDecided(ApprovalDecided {
            approval: EffectId::tool(1, 0),
            by: "alice".into(),
            verdict: Verdict::Edit,
            arguments: Some(r#"{"query": "y"}"#.into()),
            reason: Some("narrower".into()),
        }),
        FactBody::BudgetGranted(BudgetGranted { by: "alice".into(), dimension: "tokens".into(), amount: 1_000 }),
        FactBody::PauseRequested(PauseRequested { by: "alice".into(), reason: Some("lunch".into()) }),
        FactBody::ResumeRequested(ResumeRequested { by: "alice".into() }),
        FactBody::ExecutionRequested(Box::new(ExecutionRequested {
            request: asked(),
            reply: Some("my.answers".into()),
        })),
        FactBody::ExecutionRefused(Box::new(problem())),
    ];
    for body in all {
        check(&format!("fact.{}", body.name()), &fact(body));
    }
}

#[test]
fn decisions() {
    let effect = EffectId::inference(1);
    let ended = || Ended {
        code: "overflow".into(),
        detail: "the prompt does not fit".into(),
        iterations: 1,
        usage: Usage::new(1, 2),
    };
    let all = vec![
        Event::ExecutionStarted(ExecutionStarted { model: "tiny".into() }),
        Event::ExecutionRejected(ended()),
        Event::InferenceRequested(InferenceRequested {
            effect: effect.clone(),
            attempt: 1,
            turn: 1,
            context: 2,
            tokens_max: 0,
            deadline: 9,
        }),
        Event::ToolsRequested(ToolsRequested {
            turn: 1,
            calls: vec![ToolRequested {
                effect: EffectId::tool(1, 0),
                attempt: 1,
                ordinal: 0,
                name: "search_code".into(),
                deadline: 9,
                refused: Some("not granted".into()),
            }],
        }),
        Event::ToolsJoined(ToolsJoined {
            turn: 1,
            outcomes: vec![ToolOutcome { effect: EffectId::tool(1, 0), success: true }],
        }),
        Event::ChildRequested(ChildRequested {
            effect: EffectId::child(1, 0),
            attempt: 1,
            turn: 1,
            ordinal: 0,
            child: ExecutionId::child(exec(), &EffectId::child(1, 0), 1, 1_790_000_000_000_000_000),
            agent: "helper".into(),
            limits: limits(),
        }),
        Event::ApprovalRequested(ApprovalRequested {
            approval: EffectId::tool(1, 0),
            name: "run_command".into(),
            expires: 9,
        }),
        Event::ApprovalResolved(ApprovalResolved {
            approval: EffectId::tool(1, 0),
            verdict: Verdict::Allow,
            via: "person".into(),
            deadline: 9,
        }),
        Event::ContextMeasured(ContextMeasured { tokens: 800, window: 1024, messages: 9 }),
        Event::CompressionRequested(CompressionRequested {
            effect: EffectId::compression(1),
            attempt: 1,
            from: 2,
            to: 6,
            tokens_max: 122,
            deadline: 9,
        }),
        Event::ContextReplaced(ContextReplaced {
            from: 2,
            to: 6,
            summary: Some(EffectId::compression(1)),
            tokens: 300,
        }),
        Event::BudgetReserved(BudgetReserved { effect: effect.clone(), tokens: 900 }),
        Event::BudgetSettled(BudgetSettled { effect: effect.clone(), tokens: 52 }),
        Event::TimerSet(TimerSet { timer: "deadline".into(), at: 9 }),
        Event::TimerCancelled(TimerCancelled { timer: "1-tool-0".into() }),
        Event::ExecutionPaused(ExecutionPaused { by: "alice".into(), reason: Some("lunch".into()) }),
        Event::ExecutionResumed(ExecutionResumed { by: "alice".into() }),
        Event::StuckDetected(StuckDetected { pattern: "repeat".into(), turns: vec![1, 2, 3] }),
        Event::RetryScheduled(RetryScheduled {
            effect: effect.clone(),
            attempt: 2,
            at: 9,
            reason: "overloaded".into(),
        }),
        Event::EffectCancelled(EffectCancelled { effect: effect.clone(), attempt: 1 }),
        Event::BudgetExceeded(BudgetExceeded { dimension: "iterations".into(), limit: 8, used: 9 }),
        Event::ExecutionCompleted(ExecutionCompleted {
            result: effect,
            finish: Some(FinishReason::Stop),
            iterations: 1,
            usage: Usage::new(1, 2),
        }),
        Event::ExecutionFailed(ended()),
        Event::ExecutionCancelled(ended()),
        Event::ExecutionTimedOut(ended()),
        Event::ExecutionBudgetExhausted(ended()),
    ];
    let mut facts = FactsDigest::default();
    facts.add(1, b"fact");
    let first = Draft { exec: exec(), n: 1, at: 5, machine: 1, facts_upto: 1, facts: &facts, prev_hash: "ab" };
    check("decision.1", &Record::seal(&first, all.clone()));
    check("decision", &Record::seal(&Draft { machine: 3, ..first }, all));
}

#[test]
fn a_decision_reads_as_it_was_written_and_writes_the_same_again() {
    let facts = FactsDigest::default();
    for (machine, schema) in [(1, "decision/1.0"), (2, "decision/1.0"), (3, "decision/2.0")] {
        let draft = Draft { exec: exec(), n: 1, at: 5, machine, facts_upto: 1, facts: &facts, prev_hash: "ab" };
        let written = Record::seal(&draft, Vec::new());
        assert_eq!(written.schema, schema);
        let read = Record::read(&encode(&written)).expect("a decision");
        assert_eq!(encode(&read), encode(&written), "machine {machine}");
        assert_eq!((read.hash.as_str(), read.commit()), (written.hash.as_str(), written.commit()));
        assert!(read.hash.as_str().len() == 64 && read.prev_hash.as_str() == "ab", "people read hexadecimal");
        let json = serde_json::to_value(&read).expect("JSON");
        assert_eq!((&json["hash"], &json["prev_hash"]), (&json!(written.hash.as_str()), &json!("ab")));
    }
    assert!(!Record::reads("decision/3.0") && !Record::reads("fact/1.0"));
}

#[test]
fn a_hash_covers_facts_events_and_the_previous_hash() {
    let event = Event::ExecutionStarted(ExecutionStarted { model: "tiny".into() });
    let hash = |fact: &[u8], prev: &str, events: Vec<Event>| {
        let mut facts = FactsDigest::default();
        facts.add(1, fact);
        Record::seal(
            &Draft { exec: exec(), n: 0, at: 5, machine: 1, facts_upto: 1, facts: &facts, prev_hash: prev },
            events,
        )
        .hash
    };
    let base = hash(b"a", "", vec![event.clone()]);
    assert_eq!(base, hash(b"a", "", vec![event.clone()]));
    assert_ne!(base, hash(b"b", "", vec![event.clone()]));
    assert_ne!(base, hash(b"a", "0", vec![event]));
    assert_ne!(base, hash(b"a", "", vec![]));
}

/// An inference worker's entry with everything it may say, and what changes it.
fn models_at_run_time() {
    let known_on = |device: Option<&str>, name: &str, state| KnownModel {
        name: name.into(),
        kind: "chat".into(),
        window: 1024,
        state,
        weights_bytes: 14_000_000,
        cache_bytes_max: 67_108_864,
        device: device.map(str::to_owned),
    };
    let known = |name: &str, state| known_on(None, name, state);
    let broken = "use /models/broken/config.json: malformed JSON".to_owned();
    let models = vec![
        known("broken", ModelState::Failed { reason: broken.clone() }),
        known_on(Some("gpus 0,1"), "large", ModelState::Loading { progress: 0.25 }),
        known_on(Some("gpu 0"), "old", ModelState::Draining),
        known("other", ModelState::Known),
        known_on(Some("cpu"), "tiny", ModelState::Ready),
    ];
    let operation = |n: u32, change, state, ended_at| Operation {
        id: format!("inference-1.{n}"),
        worker: "inference-1".into(),
        change,
        state,
        started_at: 5,
        ended_at,
    };
    let switch = Change::Switch { from: "old".into(), to: "large".into(), force: false };
    let operations = vec![
        operation(1, Change::Load { model: "broken".into() }, OperationState::Failed { reason: broken }, Some(6)),
        operation(2, Change::Unload { model: "other".into(), force: true }, OperationState::Done, Some(7)),
        operation(3, switch.clone(), OperationState::Running, None),
    ];
    check("rpc.models.change", &ChangeModels { change: switch, worker: Some("inference-1".into()) });
    check("rpc.models.changed", &rpc::Reply::Ok(operations.clone()));
    let gpu = Gpu {
        id: 0,
        name: "NVIDIA H200".into(),
        utilization: Some(0.5),
        memory_used_bytes: Some(1 << 30),
        memory_total_bytes: None,
    };
    let memory = HostMemory { max_bytes: 1 << 32, taken_bytes: 162_217_728, kept_bytes: 4_096 };
    check(
        "presence.inference",
        &Worker {
            id: "inference-1".into(),
            role: "inference".into(),
            version: "0.1.0".into(),
            slots: 8,
            models: Vec::new(),
            tools: Vec::new(),
            inference: Some(InferenceState { models, operations, memory, gpus: vec![gpu] }),
            sandbox: None,
            refused: Vec::new(),
            vectors: None,
            cache: None,
        },
    );
}

#[test]
fn fields_and_classes_that_came_later_stand_beside_what_was() {
    let fresh = ExecutionSubmitted { fresh_tools: true, ..ExecutionSubmitted::new(Kind::Tool, "tool", limits()) };
    let unknown = ToolFailed {
        effect: EffectId::tool(1, 0),
        attempt: 2,
        worker: "tool-2".into(),
        class: FailureClass::OutcomeUnknown,
        detail: "outcome unknown: deploy was begun by tool-1".into(),
        duration_us: 0,
        sandbox: Sandbox::default(),
    };
    for (name, body) in [
        ("fact.execution.submitted.fresh", FactBody::ExecutionSubmitted(Box::new(fresh))),
        ("fact.tool.failed.unknown", FactBody::ToolFailed(unknown)),
    ] {
        check(name, &Fact::new(exec(), 1, body));
    }
}

fn tool_job() -> ToolJob {
    ToolJob {
        schema: ToolJob::SCHEMA.into(),
        exec: exec(),
        effect: EffectId::tool(1, 0),
        attempt: 1,
        deadline: 9,
        queued_at: 8,
        trace: Default::default(),
        tool: "search_code".into(),
        arguments: r#"{"query": "x"}"#.into(),
        workspace: Some("repo".into()),
        user_id: None,
        result_bytes_max: 1024,
        agent: String::new(),
        approved: false,
        fresh: false,
    }
}

#[test]
fn jobs_tokens_presence_and_questions() {
    check(
        "job.inference",
        &InferenceJob {
            schema: InferenceJob::SCHEMA.into(),
            exec: exec(),
            effect: EffectId::inference(1),
            attempt: 2,
            deadline: 9,
            queued_at: 8,
            trace: [("traceparent".to_owned(), "00-a-b-01".to_owned())].into(),
            model: "tiny".into(),
            messages: vec![
                Message { tool_calls: vec![call()], object: Some(object()), ..Message::text(Role::Assistant, "") },
                Message::tool_result("call-1-0", "search_code", "no matches"),
            ],
            tools: vec![tool()],
            sampling: Sampling { seed: Some(7), ..Sampling::default() },
            tokens_max: 64,
            user_id: Some("u1".into()),
            purpose: Purpose::Summary,
            priority: Priority::Low,
            truncation: Truncation::Auto,
            cache: true,
        },
    );
    check("job.tool", &tool_job());
    let governed = ToolJob { agent: "coder".into(), approved: true, fresh: true, ..tool_job() };
    check("job.tool.governed", &governed);
    check("token.delta", &Frame { ids: vec![5, 6], text: "he".into(), ..Frame::new(1, 3, FrameKind::Delta) });
    let found = Frame { ids: vec![5], text: "he".into(), ..Frame::new(1, 3, FrameKind::Delta) };
    check("token.logprobs", &Frame { logprobs: vec![logprob()], ..found });
    check(
        "token.end",
        &Frame {
            attempt: 1,
            n: 5,
            ids: vec![],
            text: String::new(),
            k: FrameKind::End,
            finish: Some(FinishReason::Stop),
            usage: Some(Usage::new(4, 5)),
            logprobs: Vec::new(),
        },
    );
    let hold = Hold { exec: exec(), effect: EffectId::inference(1), attempt: 1, worker: "inference-1".into() };
    check("presence.holds", &Holds { effects: vec![hold] });
    let model = rpc::Model { name: "tiny".into(), kind: "chat".into(), window: 1024 };
    let registered = rpc::Tool {
        name: "web_search".into(),
        description: "Searches the web.".into(),
        parameters: json!({"type": "object"}),
        unavailable: Some("no provider is configured".into()),
        result: None,
        effect: None,
        approval: None,
        permissions: vec![],
        timeout_ms: None,
    };
    let whole = rpc::Tool {
        result: Some(json!({"type": "object"})),
        effect: Some(rpc::SideEffect::ReachesNetwork),
        approval: Some(rpc::Approval::Always),
        permissions: vec!["network:public".into()],
        timeout_ms: Some(10_000),
        ..registered.clone()
    };
    check("rpc.tool", &whole);
    check(
        "presence.worker",
        &Worker {
            id: "inference-1".into(),
            role: "inference".into(),
            version: "0.1.0".into(),
            slots: 8,
            models: vec![model],
            tools: vec![registered],
            inference: None,
            sandbox: None,
            refused: Vec::new(),
            vectors: None,
            cache: None,
        },
    );
    check(
        "presence.sandbox",
        &Confinement {
            tier: "docker".into(),
            enforced: vec!["container".into(), "seccomp".into()],
            refused: None,
            commands: vec!["container".into(), "memory-limit".into()],
            commands_refused: None,
        },
    );
    let refused = agent::Refused { file: "broken.toml".into(), line: Some(3), reason: "unknown field `comand`".into() };
    check(
        "presence.refused",
        &Worker {
            id: "tool-1".into(),
            role: "tool".into(),
            version: "0.1.0".into(),
            slots: 4,
            models: vec![],
            tools: vec![],
            inference: None,
            sandbox: None,
            refused: vec![refused],
            vectors: None,
            cache: None,
        },
    );
    check(
        "presence.no_sandbox",
        &Confinement {
            tier: "none".into(),
            enforced: vec![],
            refused: Some("no engine".into()),
            commands: vec![],
            commands_refused: Some("no engine".into()),
        },
    );
    models_at_run_time();
    check("rpc.embed", &rpc::Embed { model: None, input: vec!["text".into()] });
    check(
        "rpc.embeddings",
        &rpc::Reply::Ok(rpc::Embeddings {
            model: "minilm".into(),
            embeddings: vec![vec![0.5, -0.25]],
            usage: Usage::new(3, 0),
            truncated: Vec::new(),
        }),
    );
    check(
        "rpc.embeddings.truncated",
        &rpc::Reply::Ok(rpc::Embeddings {
            model: "minilm".into(),
            embeddings: vec![vec![0.5], vec![0.25]],
            usage: Usage::new(259, 0),
            truncated: vec![1],
        }),
    );
    check(
        "rpc.refusal",
        &rpc::Reply::<rpc::Embeddings>::Err(rpc::Refusal {
            code: "unknown_model".into(),
            detail: "no embedding model is loaded".into(),
        }),
    );
    check("rpc.find_workspace", &rpc::FindWorkspace { name: "repo/app".into() });
    check("rpc.workspace", &rpc::Reply::Ok(rpc::Workspace { path: "/srv/repo/app".into() }));
    check("rpc.analyse", &rpc::Analyse { path: "src/lib.rs".into(), code: "fn a() {}".into() });
    check(
        "rpc.outline",
        &rpc::Outline {
            language: "rust".into(),
            lines: 1,
            imports: vec!["std::fmt".into()],
            symbols: vec![rpc::Symbol {
                kind: "function".into(),
                name: "a".into(),
                container: Some("B".into()),
                signature: "fn a() {}".into(),
                start_line: 1,
                end_line: 1,
            }],
            note: Some("cut".into()),
        },
    );
    check("rpc.fork", &rpc::Fork { exec: exec(), at: 3 });
    let request = ExecutionSubmitted::new(Kind::Chat, "chat", limits());
    check("rpc.forked", &rpc::Forked { request, duration_ms: 60_000 });
    check(
        "config.refused",
        &agent::Refused { file: "coder.toml".into(), line: Some(4), reason: "`max_iterations` is 0".into() },
    );
    check(
        "config.agent",
        &rpc::AgentType {
            name: "coder".into(),
            description: "Answers questions about code.".into(),
            system: "You help.".into(),
            models: vec!["tiny".into()],
            tools: vec!["search_code".into()],
            max_iterations: 8,
            max_tokens: 10_000,
            max_tool_calls: 16,
            deadline_ms: 60_000,
            agents: vec!["researcher".into()],
            max_children: 4,
            max_depth: 2,
            policy: policy(),
        },
    );
}

#[test]
fn indexed_code_and_memory() {
    let workspace = || "/w".to_owned();
    let job = AnalysisJob {
        schema: AnalysisJob::SCHEMA.into(),
        exec: exec(),
        effect: EffectId::tool(1, 0),
        attempt: 1,
        deadline: 9,
        queued_at: 8,
        trace: [("traceparent".to_owned(), "00-a-b-01".to_owned())].into(),
        kind: code::FILES.into(),
        arguments: r#"{"workspace":"/w","list":"x","from":0,"to":3}"#.into(),
    };
    check("job.analysis", &job);
    let symbol = rpc::Symbol {
        kind: "function".into(),
        name: "open".into(),
        container: Some("Store".into()),
        signature: "fn open()".into(),
        start_line: 1,
        end_line: 2,
    };
    let piece = code::IndexedPiece {
        start_line: 1,
        end_line: 2,
        hash: "h".into(),
        symbols: vec!["open".into()],
        kinds: vec!["function".into()],
    };
    let file = code::IndexedFile {
        schema: code::IndexedFile::SCHEMA.into(),
        path: "src/store.rs".into(),
        hash: "00".into(),
        language: "rust".into(),
        model: Some("minilm".into()),
        text: "fn open() {\n}\n".into(),
        pieces: vec![piece],
        symbols: vec![symbol],
        references: vec![("open".into(), 2)],
        imports: vec![code::IndexedImport {
            path: "std::fs".into(),
            kind: "module".into(),
            members: vec!["x".into()],
            at: None,
            line: 1,
        }],
    };
    check("config.indexed_file", &file);
    let indexed = code::Indexed { workspace: workspace(), files: 3, model: Some("minilm".into()), exec: exec(), at: 5 };
    let schema = code::IndexedWorkspace::SCHEMA.to_owned();
    let state = code::IndexedWorkspace { schema, workspace: workspace(), indexed: Some(indexed.clone()) };
    check("config.indexed_workspace", &state);
    check("rpc.indexes", &rpc::Reply::Ok(vec![indexed]));
    let search = code::SearchCode {
        workspace: workspace(),
        about: code::About::Line { path: "a.rs".into(), line: 3 },
        languages: vec!["rust".into()],
        paths: vec!["src/**".into()],
        kinds: vec!["function".into()],
        limit: 5,
        by: code::By::Words,
    };
    check("rpc.search", &search);
    let found = code::Piece {
        path: "a.rs".into(),
        language: "rust".into(),
        start_line: 1,
        end_line: 2,
        code: "fn open() {\n}".into(),
        symbols: vec!["open".into()],
        score: 0.5,
        why: "words #1 (open)".into(),
    };
    check("rpc.found", &rpc::Reply::Ok(code::Found { pieces: vec![found], notes: vec!["by words only".into()] }));
    let outline = code::WhatOfCode::Outline { tokens_max: 1_000, focus: vec!["Store".into()] };
    check("rpc.code", &code::AskCode { workspace: workspace(), what: outline });
    let list = code::PlannedFiles { read: vec!["a.rs".into()], remove: vec!["b.rs".into()], fresh: true };
    check("object.planned_files", &list);
    let scope = memory::Scope { user_id: Some("u1".into()), workspace: Some(workspace()) };
    let text = "likes tabs".to_owned();
    let ask = memory::Ask::Remember { scope: scope.clone(), text: text.clone(), source: Some(exec()) };
    check("rpc.memory.remember", &ask);
    let recall = memory::Ask::Recall { scope: scope.clone(), query: "style".into(), tokens_max: 500 };
    check("rpc.memory.recall", &recall);
    let fact = memory::Remembered { id: "x".into(), text, scope, source: Some(exec()), at: 5, score: 0.5 };
    check("rpc.memory.told", &rpc::Reply::Ok(memory::Told::Facts(vec![fact])));
    let vectors = Vectors { store: "Qdrant at http://q".into(), model: None, trouble: Some("away".into()) };
    check("presence.vectors", &vectors);
}

#[test]
fn vectors_and_what_is_asked_about_them() {
    let collection = || "code_embeddings".to_owned();
    let id: uuid::Uuid = "0192f0c1-7a3b-4c4d-8e5f-001122334455".parse().expect("an id");
    let payload = || serde_json::Map::from_iter([("file_path".to_owned(), json!("src/a.rs"))]);
    let filter = || vectors::Filter::any("language", ["rust", "go"]);
    let indexed = vec!["file_path".to_owned()];
    let code = vectors::Collection { name: collection(), dimensions: 2, indexed };
    check("vectors.ensure", &vectors::Question::Ensure { collection: code });
    let point = vectors::Point { id, vector: vec![0.5, -1.0], payload: payload() };
    check("vectors.upsert", &vectors::Question::Upsert { collection: collection(), points: vec![point.clone()] });
    check("vectors.delete", &vectors::Question::Delete { collection: collection(), filter: filter() });
    let search =
        vectors::Question::Search { collection: collection(), vector: vec![1.0, 0.0], filter: filter(), limit: 10 };
    check("vectors.search", &search);
    let everything = vectors::Filter::everything();
    let scroll = vectors::Question::Scroll {
        collection: collection(),
        filter: everything.clone(),
        limit: 10,
        from: Some(id),
        with_vectors: true,
    };
    check("vectors.scroll", &scroll);
    check("vectors.count", &vectors::Question::Count { collection: collection(), filter: everything });
    check("vectors.forget", &vectors::Question::Forget { collection: collection() });
    check("vectors.done", &rpc::Reply::Ok(vectors::Answer::Done));
    let hit = vectors::Hit { id, score: 0.75, payload: payload() };
    check("vectors.hits", &rpc::Reply::Ok(vectors::Answer::Hits(vec![hit])));
    check("vectors.page", &rpc::Reply::Ok(vectors::Answer::Page { points: vec![point], next: Some(id) }));
    check("vectors.counted", &rpc::Reply::Ok(vectors::Answer::Count(3)));
    check("vectors.no_collection", &rpc::Reply::Ok(vectors::Answer::NoCollection));
    check("vectors.dimensions", &rpc::Reply::Ok(vectors::Answer::Dimensions { have: 2, wanted: 3 }));
}

#[test]
fn questions_about_many_executions() {
    let before = executions::Cursor { created_at: 7, execution_id: exec() };
    let list = executions::ListExecutions {
        statuses: vec![Status::Completed, Status::TimedOut],
        kind: Some(Kind::Agent),
        agent_type: Some("coder".into()),
        user_id: Some("u1".into()),
        workspace: Some("/w".into()),
        text: Some("main".into()),
        limit: 50,
        before: Some(before),
    };
    check("rpc.executions", &list);
    let row = executions::ExecutionRow {
        execution_id: exec(),
        kind: Kind::Agent,
        status: Status::Failed,
        agent_type: "coder".into(),
        model: "tiny".into(),
        user_id: Some("u1".into()),
        workspace: Some("/w".into()),
        title: "Where is main?".into(),
        iterations: 2,
        usage: Usage::new(20, 10),
        tool_calls: 1,
        created_at: 7,
        finished_at: Some(9),
        error: Some("overflow: too long".into()),
        parent: Some(exec()),
        messages: 9,
    };
    let rebuilding = Some(executions::Rebuilding { done: 3, of: 9 });
    let rows = executions::Executions { executions: vec![row], next: Some(before), rebuilding };
    check("rpc.executions.listed", &rpc::Reply::Ok(rows));
    check("rpc.tool_calls", &executions::ListToolCalls { execution_id: exec(), from: 2 });
    let call = executions::ToolCallRow {
        effect: EffectId::tool(1, 0),
        position: 2,
        tool_name: "search_code".into(),
        arguments: "{}".into(),
        result: Some("src/main.rs".into()),
        success: Some(true),
        duration_ms: Some(1.5),
        sandbox: Some("bubblewrap".into()),
        worker: Some("tool-1".into()),
        created_at: 8,
    };
    let calls = executions::ToolCalls { is_known: true, tool_calls: vec![call], next: Some(3), rebuilding: None };
    check("rpc.tool_calls.listed", &rpc::Reply::Ok(calls));
    check("rpc.performance", &executions::AskPerformance { since: 7 });
    let percentiles = Some(executions::Percentiles { p50: 1.5, p95: 2.5 });
    let model = executions::ModelPerformance {
        model: "tiny".into(),
        inferences: 4,
        errors: 1,
        cached: 1,
        prompt_tokens: 40,
        cached_tokens: 8,
        completion_tokens: 20,
        duration_ms: percentiles,
        queue_ms: percentiles,
        ttft_ms: percentiles,
    };
    let tool =
        executions::ToolPerformance { tool: "search_code".into(), calls: 2, errors: 0, duration_ms: percentiles };
    let performance = executions::Performance {
        executions: vec![executions::StatusCount { status: Status::Running, count: 2 }],
        models: vec![model],
        tools: vec![tool],
        rebuilding: None,
    };
    check("rpc.performance.told", &rpc::Reply::Ok(performance));
    check("rpc.projection", &executions::AskProjection::Rebuild);
    let projection = executions::Projection {
        database: "SQLite at /data/projection.db".into(),
        state: executions::ProjectionState::Rebuilding,
        trouble: Some("away".into()),
        rebuilding,
        lag_messages: Some(6),
        positions: vec![1, 2],
    };
    check("rpc.projection.told", &rpc::Reply::Ok(projection));
    check("rpc.state", &rpc::AskState { exec: exec(), at: Some(3) });
    check("rpc.verify", &rpc::AskVerification { exec: exec() });
}

#[test]
fn completions() {
    check("rpc.complete", &rpc::Complete { request: asked() });
    let submitted =
        ExecutionSubmitted { model: "tiny".into(), ..ExecutionSubmitted::new(Kind::Chat, "chat", limits()) };
    check("rpc.completion", &rpc::Completion::Submission(Box::new(submitted)));
    check("rpc.completion.refused", &rpc::Completion::Refused(Box::new(problem())));
}

#[test]
fn a_plain_client_may_write_its_request_as_json() {
    let json = json!({
        "schema": "fact/1.0", "exec": exec(), "at": 1_790_000_000_000_000_000_i64,
        "body": {"type": "execution.requested", "data": {"request": {"agent": {"agent_type": "coder", "instruction": "Where is x?"}}, "reply": "my.answers"}},
    });
    let requested = ExecutionRequested { request: asked(), reply: Some("my.answers".into()) };
    let fact = Fact::new(exec(), 1_790_000_000_000_000_000, FactBody::ExecutionRequested(Box::new(requested)));
    let text = serde_json::to_string_pretty(&json).expect("JSON");
    assert_eq!(Fact::read(text.as_bytes()).expect("a fact"), fact);
    assert_eq!(Fact::read(format!("\n {text}").as_bytes()).expect("a fact"), fact);
    let wrong = |text: &str| Fact::read(text.as_bytes()).expect_err("wrong").to_string();
    assert_eq!(wrong("{"), "read a message in JSON: EOF while parsing an object at line 1 column 1");
    assert!(
        wrong(&text.replace("reply", "answer")).contains("unknown field `answer`"),
        "{}",
        wrong(&text.replace("reply", "answer"))
    );
    assert_eq!(wrong(r#"{"schema": "fact/2.0"}"#), "message is fact/2.0, this version reads fact/1.0");
}
