use super::*;
use crate::fact::Policy;

fn agent(name: &str, agents: &[&str]) -> AgentType {
    AgentType {
        name: name.into(),
        description: "Does things.".into(),
        system: "Do things.".into(),
        models: vec![],
        tools: vec!["read_file".into()],
        max_iterations: 1,
        max_tokens: 1,
        max_tool_calls: 1,
        deadline_ms: 1,
        agents: agents.iter().map(|a| (*a).to_owned()).collect(),
        max_children: agents.len() as u32,
        max_depth: u32::from(!agents.is_empty()),
        policy: Policy::default(),
    }
}

fn team(agents: &[AgentType]) -> Team {
    effective(agents.iter().map(|a| (Source::Manifest, a.clone())))
}

#[test]
fn what_is_wrong_with_an_agent_type_is_said_with_its_field() {
    assert_eq!(check(&agent("coder", &[])), Ok(()));
    let good = || agent("coder", &["other"]);
    let policy = |policy: Policy| AgentType { policy, ..good() };
    let cases: [(AgentType, &str, &str); 13] = [
        (agent("Coder", &[]), "name", "lower-case"),
        (agent("", &[]), "name", "1 to 64"),
        (AgentType { system: " ".into(), ..good() }, "system", "empty"),
        (AgentType { tools: vec!["a".into(), "a".into()], ..good() }, "tools", "twice"),
        (AgentType { tools: vec!["delegate".into()], ..good() }, "tools", "offered by itself"),
        (AgentType { models: vec!["a b".into()], ..good() }, "models", "no name"),
        (AgentType { max_iterations: 0, ..good() }, "max_iterations", "must be 1 to 1000"),
        (AgentType { max_tokens: u64::MAX, ..good() }, "max_tokens", "must be 1 to 100000000"),
        (AgentType { max_tool_calls: 0, ..good() }, "max_tool_calls", "because `tools`"),
        (AgentType { max_children: 0, ..good() }, "max_children", "because `agents`"),
        (AgentType { max_depth: 9, ..good() }, "max_depth", "1 to 8"),
        (policy(Policy { approve: vec!["rm".into()], ..Policy::default() }), "policy.approve", "read_file"),
        (policy(Policy { join: Join::Quorum(2), ..Policy::default() }), "policy.join", "1 to `max_children` (1)"),
    ];
    for (agent, field, said) in cases {
        let wrong = check(&agent).expect_err(field);
        assert_eq!(wrong.field, field, "{wrong}");
        assert!(wrong.reason.contains(said), "{wrong}");
    }
}

#[test]
fn a_circle_is_found_from_each_that_stands_on_it_and_from_nobody_else() {
    let all = [agent("a", &["b"]), agent("b", &["c"]), agent("c", &["b"]), agent("d", &["d"])];
    let team = team(&all);
    assert_eq!(check_team(&all[0], &team), Ok(()), "it leads to a circle, but stands on none");
    let said = |i: usize| check_team(&all[i], &team).expect_err("a circle").to_string();
    assert_eq!(said(1), "`agents` leads in a circle: b → c → b");
    assert_eq!(said(2), "`agents` leads in a circle: c → b → c");
    assert_eq!(said(3), "`agents` leads in a circle: d → d");
}

#[test]
fn somebody_unknown_is_named_with_those_there_are() {
    let team = team(&[agent("coder", &[])]);
    let wrong = check_team(&agent("lead", &["codr"]), &team).expect_err("unknown");
    assert_eq!(wrong.to_string(), "`agents` names codr, which is not registered; registered are: coder");
}

#[test]
fn what_was_registered_counts_before_a_manifest_and_a_manifest_before_what_is_built_in() {
    let sources = [Source::Registered, Source::BuiltIn, Source::Manifest];
    let team = effective(sources.map(|source| (source, agent("coder", &[]))));
    assert_eq!(team["coder"].0, Source::Registered);
    for source in sources {
        assert_eq!(Source::of_key(&source.key("coder")), Some((source, "coder")));
    }
    assert_eq!(Source::of_key("agent-refused.coder"), None);
    assert_eq!(Source::BuiltIn.key("coder"), "agent.coder", "as it always was");
}
