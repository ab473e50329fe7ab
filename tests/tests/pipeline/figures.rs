//! What a real Prometheus sees of a system that runs: every role, the figures that are promised, and alerts and panels that
//! can be evaluated.

use std::collections::BTreeSet;

use anyhow::Context;
use pipeline_tests::{PrometheusServer, System, repository};
use serde_json::{Value, json};

/// Figures that are not there before what they count has happened, or the machine has what they measure.
const LATER: [&str; 4] = [
    "vlinders_dead_letters_total",
    "vlinders_gpu_utilization",
    "vlinders_gpu_memory_used_bytes",
    "vlinders_gpu_memory_total_bytes",
];

/// The names of figures in a text.
fn names(text: &str) -> BTreeSet<String> {
    let name = |rest: &str| {
        let end =
            rest.find(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')).unwrap_or(rest.len());
        format!("vlinders_{}", &rest[..end])
    };
    text.split("vlinders_").skip(1).map(name).collect()
}

/// The expressions of the dashboard's panels, with an interval where Grafana would set one.
fn panels() -> anyhow::Result<Vec<String>> {
    let file = repository().join("deploy/observability/grafana/dashboards/vlinders.json");
    let dashboard: Value = serde_json::from_slice(&std::fs::read(file)?)?;
    let panels = dashboard["panels"].as_array().context("panels")?;
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let expressions = targets.map(|target| target["expr"].as_str().map(|e| e.replace("$__rate_interval", "1m")));
    expressions.collect::<Option<_>>().context("each panel asks something")
}

#[tokio::test]
async fn prometheus_sees_every_role_and_all_that_alerts_and_panels_ask_for() -> anyhow::Result<()> {
    let mut system = System::start_with("[telemetry]\nmetrics = \"127.0.0.1:0\"\n").await?;
    let Some(prometheus) = PrometheusServer::start(&system.metrics).await? else { return Ok(()) };

    // One agent with a tool, whose answer streams.
    let ask =
        json!({"agent_type": "coder", "instruction": "Where is TokenReader defined?", "workspace": system.workspace()});
    let (exec, stream) = system.open("/internal/agent", ask).await?;
    stream.bytes().await?;
    let view = system.ended(exec).await?;
    assert_eq!(view["status"], "completed", "{view}");

    let up = |targets: &Value| {
        let active = targets["activeTargets"].as_array().cloned().unwrap_or_default();
        active.len() == 6 && active.iter().all(|target| target["health"] == "up")
    };
    let targets = prometheus.until("targets", up).await?;
    let active = targets["activeTargets"].as_array().context("targets")?;
    let roles: BTreeSet<&str> = active.iter().filter_map(|target| target["labels"]["role"].as_str()).collect();
    assert_eq!(roles, system.metrics.iter().map(|(role, _)| role.as_str()).collect::<BTreeSet<_>>());

    let asked = r#"vlinders_requests_total{endpoint="/internal/agent",status="200",role="gateway",job="vlinders"}"#;
    assert_eq!(prometheus.until_at_least(asked, 1.0).await?, 1.0);
    prometheus.until_at_least(r#"vlinders_response_seconds_count{endpoint="/internal/agent"}"#, 1.0).await?;
    prometheus.until_at_least("vlinders_time_to_first_token_seconds_count", 1.0).await?;
    let tokens =
        prometheus.until_at_least(r#"vlinders_tokens_total{model="tiny",role="inference-worker"}"#, 1.0).await?;
    assert_eq!(Some(tokens), view["usage"]["tokens"].as_f64(), "{view}");
    prometheus.until_at_least(r#"vlinders_tool_calls_total{tool="search_code",outcome="completed"}"#, 1.0).await?;
    prometheus.until_at_least("vlinders_decisions_total", 3.0).await?;
    prometheus.until_at_least(r#"vlinders_step_tokens_sum{model="tiny",role="inference-worker"}"#, 1.0).await?;
    prometheus.until_at_least(r#"vlinders_kv_kept_blocks{model="tiny",role="inference-worker"}"#, 1.0).await?;
    prometheus.until_at_least(r#"vlinders_job_queue_seconds_count{model="tiny"}"#, 1.0).await?;

    // Every rule was evaluated, without an error.
    let evaluated = |rules: &Value| {
        let rules = rules["groups"].as_array().into_iter().flatten().flat_map(|group| group["rules"].as_array());
        let rules: Vec<&Value> = rules.flatten().collect();
        !rules.is_empty() && rules.iter().all(|rule| rule["health"] != "unknown")
    };
    let rules = prometheus.until("rules", evaluated).await?;
    let rules: Vec<&Value> =
        rules["groups"].as_array().into_iter().flatten().filter_map(|g| g["rules"].as_array()).flatten().collect();
    let text = std::fs::read_to_string(repository().join("deploy/observability/alerts.yml"))?;
    assert_eq!(rules.len(), text.matches("- alert:").count());
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
        assert_ne!(rule["state"], "firing", "nothing is wrong: {rule}");
    }

    // Every panel can be evaluated, and what it and the alerts ask for is there.
    let panels = panels()?;
    for expression in &panels {
        prometheus.query(expression).await?;
    }
    let asked =
        names(&panels.join("\n")).into_iter().chain(names(&text)).filter(|name| !LATER.contains(&name.as_str()));
    let there = prometheus.ask("label/__name__/values", &[]).await?;
    let there: BTreeSet<&str> = there.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let missing: Vec<String> = asked.filter(|name| !there.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "nobody shows {missing:?}; there are {there:?}");

    // A role that dies is seen, and its alert waits for its minute.
    system.kill_role("tool-worker").await?;
    let pending = |alerts: &Value| {
        let alerts = alerts["alerts"].as_array().into_iter().flatten();
        let mut down = alerts.filter(|alert| alert["labels"]["alertname"] == "RoleDown");
        down.any(|alert| alert["labels"]["role"] == "tool-worker" && alert["state"] == "pending")
    };
    prometheus.until("alerts", pending).await?;
    Ok(())
}
