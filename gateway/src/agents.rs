//! Agent types at the edge: shows those there are, registers and removes those that come through the API. They lie in
//! the bucket `vl_config`, and count from the next request on.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse, Response};
use schemas::agent::{self, Source, Team};
use schemas::rpc::AgentType;
use serde_json::{Value, json};

use crate::problem::Failure;
use crate::service::Gateway;
use crate::{requests, submission};

type Answered = Result<Response, Failure>;

/// All agent types, where each comes from, and the manifests that were refused.
pub(crate) async fn list(State(gateway): State<Arc<Gateway>>) -> Answered {
    let registry = gateway.directory.registry().await?;
    let team = agent::effective(registry.agents);
    let agents: Vec<&AgentType> = team.values().map(|(_, agent)| agent).collect();
    let sources: serde_json::Map<String, Value> =
        team.iter().map(|(name, (source, _))| (name.clone(), json!(source))).collect();
    Ok(Json(json!({"agents": agents, "sources": sources, "refused": registry.refused})).into_response())
}

/// One agent type, as it can be registered again.
pub(crate) async fn show(State(gateway): State<Arc<Gateway>>, Path(name): Path<String>) -> Answered {
    let mut team = agent::effective(gateway.directory.registry().await?.agents);
    match team.remove(&name) {
        Some((_, agent)) => Ok(Json(agent).into_response()),
        None => Err(unknown(&name, &team)),
    }
}

/// Registers an agent type: 201 when the name is new, 200 when it takes the place of another.
pub(crate) async fn put(
    State(gateway): State<Arc<Gateway>>,
    Path(name): Path<String>,
    request: Request<Body>,
) -> Answered {
    let (_, body) = requests::body(&gateway, request).await?;
    let team = agent::effective(gateway.directory.registry().await?.agents);
    let agent = checked(&name, submission::read(&body)?, &team)?;
    gateway.directory.register(&agent).await?;
    let replaced = team.get(&name).map(|(source, _)| *source);
    let status = if replaced.is_some() { StatusCode::OK } else { StatusCode::CREATED };
    let notes = notes(&gateway, &agent).await;
    Ok((status, Json(json!({"agent": agent, "replaced": replaced, "notes": notes}))).into_response())
}

/// Removes what was registered under a name; what it took the place of counts again.
pub(crate) async fn delete(State(gateway): State<Arc<Gateway>>, Path(name): Path<String>) -> Answered {
    let found = gateway.directory.registry().await?.agents;
    let team = agent::effective(found.iter().cloned());
    let rest =
        agent::effective(found.into_iter().filter(|(s, a)| (*s, a.name.as_str()) != (Source::Registered, &name)));
    removable(&name, &team, &rest)?;
    gateway.directory.unregister(&name).await?;
    let now = rest.get(&name).map(|(source, _)| *source);
    Ok(Json(json!({"removed": name, "now": now})).into_response())
}

/// An agent type from a body, which may leave out its name, because the path says it.
fn checked(name: &str, mut body: Value, team: &Team) -> Result<AgentType, Failure> {
    if let Value::Object(fields) = &mut body {
        fields.entry("name").or_insert_with(|| json!(name));
    }
    let agent: AgentType = submission::read(body.to_string().as_bytes())?;
    let invalid = |wrong: agent::Wrong| {
        Failure::new(400, "invalid_agent", format!("agent type {name}: {wrong}"), "correct that and send it again")
    };
    if agent.name != name {
        let detail = format!("the path registers {name:?}, the body names {:?}", agent.name);
        return Err(Failure::new(400, "invalid_agent", detail, "leave `name` out of the body, or make both the same"));
    }
    agent::check(&agent).map_err(invalid)?;
    let mut with = team.clone();
    with.insert(agent.name.clone(), (Source::Registered, agent.clone()));
    agent::check_team(&agent, &with).map_err(invalid)?;
    Ok(agent)
}

fn removable(name: &str, team: &Team, rest: &Team) -> Result<(), Failure> {
    match team.get(name) {
        None => return Err(unknown(name, team)),
        Some((Source::Registered, _)) => {}
        Some((source, _)) => {
            let detail = format!("agent type {name} was not registered here: it is {}", source.words());
            let next = match source {
                Source::Manifest => format!("remove {name}.toml from the directory"),
                _ => "register another one of that name to take its place".to_owned(),
            };
            return Err(Failure::new(409, "agent_not_registered", detail, next));
        }
    }
    let askers: Vec<&str> = rest
        .values()
        .filter(|(_, agent)| agent.agents.iter().any(|asked| asked == name))
        .map(|(_, agent)| agent.name.as_str())
        .collect();
    if !rest.contains_key(name) && !askers.is_empty() {
        let detail = format!("agent type {name} is asked by others: {}", askers.join(", "));
        return Err(Failure::new(409, "agent_in_use", detail, "take it out of their `agents` first"));
    }
    Ok(())
}

fn unknown(name: &str, team: &Team) -> Failure {
    Failure::unknown("agent", name, &team.keys().cloned().collect::<Vec<_>>())
}

/// What is not there now: no reason to refuse, because a worker that has it may come.
async fn notes(gateway: &Gateway, agent: &AgentType) -> Vec<String> {
    let mut notes = Vec::new();
    if let Ok(Some(tools)) = gateway.directory.tools().await {
        for name in agent.tools.iter().filter(|name| tools.iter().all(|tool| tool.name != **name)) {
            notes.push(format!("no tool worker has the tool {name} now; it is left out of requests"));
        }
    }
    if let Ok(models) = gateway.directory.models().await {
        let small = agent.policy.small_model.iter();
        for name in agent.models.iter().chain(small).filter(|name| models.iter().all(|model| model.name != **name)) {
            notes.push(format!("the model {name} is not loaded now"));
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body() -> Value {
        json!({"description": "Leads.", "system": "Lead.", "agents": ["coder"], "max_children": 2, "max_depth": 1})
    }

    fn team() -> Team {
        let coder = json!({"name": "coder", "description": "Codes.", "system": "Code."});
        let coder: AgentType = serde_json::from_value(coder).expect("well formed");
        agent::effective([(Source::BuiltIn, coder)])
    }

    #[test]
    fn a_body_is_checked_by_itself_and_with_the_others() {
        let lead = checked("lead", body(), &team()).expect("valid");
        assert_eq!((lead.name.as_str(), lead.max_iterations), ("lead", 12));
        let cases = [
            ("max_tokens", json!(0), "must be 1 to"),
            ("agents", json!(["codr"]), "registered are: coder"),
            ("agents", json!(["lead"]), "lead → lead"),
            ("name", json!("other"), "the body names \"other\""),
        ];
        for (field, value, said) in cases {
            let mut wrong = body();
            wrong[field] = value;
            let problem = checked("lead", wrong, &team()).expect_err(field).0;
            assert_eq!((problem.status, problem.code.as_str()), (400, "invalid_agent"));
            assert!(problem.detail.contains(said), "{}", problem.detail);
        }
        let mut misspelt = body();
        misspelt["modles"] = json!([]);
        assert_eq!(checked("lead", misspelt, &team()).expect_err("unknown").0.code, "unknown_field");
    }

    #[test]
    fn only_what_was_registered_and_nobody_asks_is_removed() {
        let lead = checked("lead", body(), &team()).expect("valid");
        let mut all = team();
        all.insert("lead".into(), (Source::Registered, lead));
        let code = |name: &str, rest: &Team| removable(name, &all, rest).map_err(|f| (f.0.status, f.0.code));
        assert_eq!(code("lead", &team()), Ok(()));
        assert_eq!(code("coder", &all), Err((409, "agent_not_registered".to_owned())));
        assert_eq!(code("leda", &all), Err((404, "unknown_agent".to_owned())));
        all.entry("coder".into()).and_modify(|(source, _)| *source = Source::Registered);
        let mut rest = all.clone();
        rest.remove("coder");
        let problem = removable("coder", &all, &rest).expect_err("lead asks it").0;
        assert_eq!((problem.status, problem.code.as_str()), (409, "agent_in_use"));
    }
}
