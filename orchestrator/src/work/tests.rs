//! What a continued conversation leaves out when it has become longer than the window.

use schemas::chat::ToolCall;

use super::*;

/// An exchange with a call in it, about 130 estimated tokens.
fn exchange(n: usize) -> Vec<Message> {
    let mut call = Message::text(Role::Assistant, "");
    call.tool_calls = vec![ToolCall::new(format!("call-{n}"), "read_file", "{}")];
    let mut result = Message::text(Role::Tool, "x".repeat(200));
    result.tool_call_id = Some(format!("call-{n}"));
    vec![Message::text(Role::User, format!("question {n}")), call, result, Message::text(Role::Assistant, "answer")]
}

fn history(exchanges: usize) -> Vec<Message> {
    let system = Message::text(Role::System, "You help.");
    std::iter::once(system).chain((0..exchanges).flat_map(exchange)).collect()
}

#[test]
fn a_conversation_that_fits_stands_whole() {
    assert_eq!(recent(&history(3), 1_024, 100), history(3));
    assert_eq!(recent(&history(30), 0, 100), history(30), "a model whose window is not known gets everything");
}

#[test]
fn of_a_longer_one_the_newest_exchanges_stay_whole_behind_the_instructions() {
    let kept = recent(&history(30), 1_024, 100);
    assert_eq!(kept[0].role, Role::System);
    assert_eq!(kept[1].role, Role::User, "it begins with what somebody said");
    let exchanges = (kept.len() - 1) / 4;
    assert!((2..30).contains(&exchanges), "{exchanges} are left");
    assert_eq!(kept[1..], history(30)[1 + 4 * (30 - exchanges)..], "the newest");
    let tokens: u64 = kept.iter().map(estimate).sum();
    assert!(tokens + 100 <= 768, "{tokens} leave room");
    assert!(tokens + 100 + exchange(0).iter().map(estimate).sum::<u64>() > 768, "no room is wasted");
}

#[test]
fn a_present_that_fills_the_window_leaves_only_the_instructions() {
    assert_eq!(recent(&history(30), 1_024, 900), history(0));
}

#[test]
fn who_goes_first_and_what_may_be_known_is_handed_down() {
    use schemas::fact::AgentSpec;
    let request = ExecutionSubmitted {
        agents: vec![AgentSpec {
            name: "helper".into(),
            system: "You help.".into(),
            model: "tiny".into(),
            window: 1_024,
            tools: vec![],
            agents: vec![],
            iterations: 2,
            tokens: 100,
            tool_calls: 0,
            deadline_ms: 1,
            policy: Default::default(),
        }],
        sampling: Sampling { seed: Some(7), n: Some(3), ..Sampling::default() },
        priority: Priority::High,
        truncation: Truncation::Auto,
        cache: true,
        fresh_tools: true,
        ..ExecutionSubmitted::new(Kind::Agent, "coder", Limits::default())
    };
    let exec = "0192f0c1-7a3b-7c4d-8e5f-001122334455".parse().expect("canonical id");
    let parent = Parent { exec, effect: EffectId::child(1, 0), attempt: 1 };
    let child = submission(&request, parent, "helper", "task", Limits::default()).expect("it is known");
    assert_eq!((child.priority, child.cache, child.fresh_tools), (Priority::High, true, true));
    assert_eq!((child.truncation, child.sampling.answers()), (Truncation::Disabled, 1), "these are the parent's own");

    let mut execution = Execution::default();
    execution.apply_fact(&Fact::new(exec, 1, FactBody::ExecutionSubmitted(Box::new(request))));
    let job = |work: Work| {
        let effect = serde_json::json!({"work": serde_json::to_value(work).expect("JSON"), "attempt": 1,
            "state": {"Open": {"deadline": 9}}, "reserved": 0, "used": 0, "text": ""});
        let effect: Effect = serde_json::from_value(effect).expect("an effect");
        match order(&execution, &EffectId::inference(1), &effect, &[], 5) {
            Some(Order::Inference(job)) => *job,
            other => panic!("{other:?}"),
        }
    };
    let answer = job(Work::Inference { tokens_max: 9, replacements: 0 });
    assert_eq!((answer.priority, answer.truncation, answer.cache), (Priority::High, Truncation::Auto, true));
    assert_eq!(answer.sampling.answers(), 3);
    let summary = job(Work::Compression { history: "x".into(), tokens_max: 9 });
    assert_eq!((summary.priority, summary.truncation, summary.cache), (Priority::Low, Truncation::Disabled, true));
    assert_eq!(summary.sampling.answers(), 1);
}

#[test]
fn a_tool_worker_is_told_who_calls_and_whether_a_person_allowed_it() {
    let exec = "0192f0c1-7a3b-7c4d-8e5f-001122334455".parse().expect("canonical id");
    let job = |request: ExecutionSubmitted| {
        let mut execution = Execution::default();
        execution.apply_fact(&Fact::new(exec, 1, FactBody::ExecutionSubmitted(Box::new(request))));
        let call = ToolCall::new("call-1", "deploy", "{}");
        let effect = serde_json::json!({"work": {"Tool": {"call": call}}, "attempt": 1,
            "state": {"Open": {"deadline": 9}}, "reserved": 0, "used": 0, "text": ""});
        let effect: Effect = serde_json::from_value(effect).expect("an effect");
        match order(&execution, &EffectId::tool(1, 0), &effect, &[], 5) {
            Some(Order::Tool(job)) => (job.agent.clone(), job.approved, job.fresh),
            other => panic!("{other:?}"),
        }
    };
    let request = |kind| ExecutionSubmitted::new(kind, "coder", Limits::default());
    assert_eq!(job(request(Kind::Agent)), ("coder".to_owned(), false, false));
    // A call that needs a person is open only when one has allowed it.
    let mut asking = request(Kind::Agent);
    asking.policy.approve = vec!["deploy".to_owned()];
    assert_eq!(job(asking), ("coder".to_owned(), true, false));
    let direct = ExecutionSubmitted { fresh_tools: true, ..request(Kind::Tool) };
    assert_eq!(job(direct), ("coder".to_owned(), true, true));
}
