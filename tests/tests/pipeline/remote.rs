//! A model of another server becomes one of ours: llama.cpp's own, started and killed for real.

use pipeline_tests::{LlamaServer, PATIENCE, System, read_events, text};
use serde_json::{Value, json};

/// Both, or none where llama.cpp's server is not installed.
async fn start() -> anyhow::Result<Option<(System, LlamaServer, tempfile::TempDir)>> {
    let directory = tempfile::tempdir()?;
    let Some(server) = LlamaServer::start(directory.path()).await? else { return Ok(None) };
    let system = System::start_with(&format!("[inference.remote.distant]\nurl = \"{}\"\n", server.url())).await?;
    Ok(Some((system, server, directory)))
}

fn ask(text: &str) -> Value {
    json!({"model": "distant", "messages": [{"role": "user", "content": text}]})
}

/// An answer of two thousand tokens: its form leaves no other way, whatever the model would rather say.
fn long() -> Value {
    let list = |items: Value| json!({"type": "array", "minItems": 20, "maxItems": 20, "items": items});
    let schema = list(list(json!({"enum": ["a", "b"]})));
    let mut ask = ask("hello");
    ask["response_format"] = json!({"type": "json_schema", "json_schema": {"name": "lists", "schema": schema}});
    ask
}

fn tokens_seen(events: &[(String, Value)]) -> bool {
    events.iter().any(|(name, _)| name == "token")
}

#[tokio::test]
async fn what_another_server_answers_is_what_a_client_of_ours_reads() -> anyhow::Result<()> {
    let Some((system, server, _directory)) = start().await? else { return Ok(()) };
    let models: Value = system.get("/internal/models").send().await?.json().await?;
    let distant = json!({"name": "distant", "kind": "chat", "window": 8_192});
    let listed = models.as_array().or_else(|| models["models"].as_array()).expect("models");
    assert!(
        listed.iter().any(|model| distant.as_object().expect("one").iter().all(|(key, value)| model[key] == *value)),
        "{models}"
    );

    let direct = server.ask(&json!({"messages": ask("hello")["messages"], "temperature": 0})).await?;
    let (exec, mut stream) = system.open("/internal/chat", ask("hello")).await?;
    let events = read_events(&mut stream, |_| false).await?;
    let (name, done) = events.last().expect("events");
    assert_eq!(name, "done", "{events:?}\n{}", system.log());
    assert_eq!(done["response"], direct["choices"][0]["message"]["content"]);
    assert_eq!(text(&events), done["response"].as_str().expect("text"));
    assert!(events.iter().filter(|(name, _)| name == "token").count() > 1, "{events:?}");
    for count in ["prompt_tokens", "completion_tokens"] {
        assert_eq!(done["usage"][count], direct["usage"][count], "{done}");
    }
    system.prove(exec).await?;

    let mut short = ask("hello");
    short["max_tokens"] = json!(3);
    let (status, answer) = system.ask("/internal/chat", &short).await?;
    assert_eq!((status, &answer["finish_reason"]), (200, &json!("length")), "{answer}");
    assert_eq!(answer["usage"]["completion_tokens"], 3, "{answer}");

    let agent = json!({"agent_type": "coder", "instruction": "Where is TokenReader defined?", "workspace": system.workspace(), "config": {"model": "distant"}});
    let (status, answer) = system.ask("/internal/agent", &agent).await?;
    assert_eq!(status, 200, "{answer}");
    let call = &answer["tool_calls"][0];
    assert_eq!((&call["name"], &call["success"]), (&json!("search_code"), &json!(true)), "{answer}");
    assert_eq!(call["arguments"], json!({"query": "TokenReader"}));
    assert!(answer["response"].as_str().is_some_and(|text| text.contains("src/reader.rs")), "{answer}");
    let log = system.log();
    assert!(log.contains("a remote model is ready"), "{log}");
    Ok(())
}

#[tokio::test]
async fn a_cancelled_answer_frees_the_slot_of_its_server() -> anyhow::Result<()> {
    let Some((system, server, _directory)) = start().await? else { return Ok(()) };
    let (exec, mut stream) = system.open("/internal/chat", long()).await?;
    read_events(&mut stream, tokens_seen).await?;
    assert!(server.computes().await?);
    let (status, answer) =
        system.ask(&format!("/internal/executions/{exec}/cancel"), &json!({"reason": "enough"})).await?;
    assert_eq!(status, 202, "{answer}");
    let freed = async {
        while server.computes().await? {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, freed).await??;
    let view = system.ended(exec).await?;
    assert_eq!(view["status"], "cancelled", "{view}");
    let (status, answer) = system.ask("/internal/chat", &ask("hello")).await?;
    assert_eq!((status, &answer["finish_reason"]), (200, &json!("stop")), "its only slot is free: {answer}");
    system.prove(exec).await?;
    Ok(())
}

#[tokio::test]
async fn an_answer_whose_server_is_killed_is_given_when_it_is_back() -> anyhow::Result<()> {
    let Some((system, mut server, _directory)) = start().await? else { return Ok(()) };
    let (exec, mut stream) = system.open("/internal/chat", long()).await?;
    let mut events = read_events(&mut stream, tokens_seen).await?;
    server.kill().await?;
    server.start_again().await?;
    events.extend(read_events(&mut stream, |_| false).await?);
    let (name, done) = events.last().expect("events");
    assert_eq!(name, "done", "{events:?}\n{}", system.log());
    let lists: Vec<Vec<String>> = serde_json::from_str(done["response"].as_str().expect("text"))?;
    assert!(lists.len() == 20 && lists.iter().all(|list| list.len() == 20));
    assert!(events.iter().any(|(name, _)| name == "restart"), "it was given anew");
    assert_eq!(text(&events), done["response"].as_str().expect("text"), "neither a hole nor a repeat");
    system.prove(exec).await?;
    let log = system.log();
    assert!(log.matches("a remote model is away").count() <= 1, "{log}");
    Ok(())
}
