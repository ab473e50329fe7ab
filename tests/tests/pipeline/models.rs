//! Models that come and go while others answer: loaded, unloaded, switched, waited for, refused; nothing that was accepted
//! fails for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context, ensure};
use pipeline_tests::{PATIENCE, System, events, read_events, repository, text};
use schemas::models::ModelState;
use schemas::presence::Worker;
use schemas::wire::decode;
use schemas::{Event, ExecutionId, Fact, FactBody, stream};
use serde_json::{Value, json};

const MIB: u64 = 1 << 20;

/// A copy of the shipped model under another name.
fn copy(directory: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let to = directory.join(name);
    std::fs::create_dir_all(&to)?;
    for entry in std::fs::read_dir(repository().join("inference-worker/models/tiny"))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(to)
}

/// Starts a worker that has loaded `tiny` and could load what lies beside it.
async fn start_worker(system: &mut System, environment: &[(&str, &str)]) -> anyhow::Result<()> {
    let models = system.directory().join("models");
    let (tiny, all) = (models.join("tiny").display().to_string(), models.display().to_string());
    system.start_role_with("inference-worker", &["--models", &tiny, "--models-dir", &all], environment).await
}

/// A system whose worker has loaded `tiny`, and could load these.
async fn start(others: &[&str], without: &[&str], environment: &[(&str, &str)]) -> anyhow::Result<System> {
    let missing: Vec<&str> = without.iter().copied().chain(["inference-worker"]).collect();
    let mut system = System::start_without(&missing).await?;
    let models = system.directory().join("models");
    for name in others.iter().copied().chain(["tiny"]) {
        copy(&models, name)?;
    }
    start_worker(&mut system, environment).await?;
    Ok(system)
}

fn chat(model: Option<&str>, said: &str) -> Value {
    json!({"messages": [{"role": "user", "content": said}], "model": model, "seed": 7})
}

/// A chat whose answer is long: drawn so wildly that it seldom ends by itself.
fn long_chat(model: &str) -> Value {
    json!({"messages": [{"role": "user", "content": "hello"}], "model": model, "seed": 7, "temperature": 8,
        "max_tokens": 300})
}

async fn models(system: &System) -> anyhow::Result<Value> {
    Ok(system.get("/internal/models").send().await?.json().await?)
}

/// The names of the loaded models.
async fn loaded(system: &System) -> anyhow::Result<Vec<String>> {
    let models = models(system).await?;
    let name = |model: &Value| model["name"].as_str().map(str::to_owned);
    Ok(models["models"].as_array().context("a list")?.iter().filter_map(name).collect())
}

/// Waits until a worker's entry says this of a model.
async fn until(system: &System, model: &str, wanted: impl Fn(&ModelState) -> bool) -> anyhow::Result<()> {
    use futures::StreamExt;
    let bus = system.bus().await?;
    let mut changes = bus.bucket(stream::BUCKET_WORKERS).await?.watch_with_history(">").await?;
    let seen = async {
        while let Some(Ok(entry)) = changes.next().await {
            let worker = decode::<Worker>(&entry.value).ok().and_then(|worker| worker.inference);
            let known = worker.iter().flat_map(|state| &state.models).find(|known| known.name == model);
            if known.is_some_and(|known| wanted(&known.state)) {
                return true;
            }
        }
        false
    };
    let seen = tokio::time::timeout(PATIENCE, seen).await.with_context(|| format!("{model}:\n{}", system.log()))?;
    ensure!(seen, "the entries of workers are no longer told");
    Ok(())
}

/// The models of which a process shows how full their memory is, from its own listener.
async fn models_shown(address: &str) -> anyhow::Result<Vec<String>> {
    let shown = reqwest::get(format!("{address}/metrics")).await?.text().await?;
    let model =
        |line: &str| Some(line.strip_prefix("vlinders_kv_total_blocks{model=\"")?.split_once('"')?.0.to_owned());
    Ok(shown.lines().filter_map(model).collect())
}

/// The model that an execution asked.
async fn model_of(system: &System, exec: &Value) -> anyhow::Result<String> {
    let exec: ExecutionId = exec.as_str().context("an execution")?.parse()?;
    let log = system.bus().await?.read_execution(exec, 0).await?;
    let started = events(&log).into_iter().flatten().find_map(|event| match event {
        Event::ExecutionStarted(started) => Some(started.model),
        _ => None,
    });
    started.context("it started")
}

#[tokio::test]
async fn a_model_is_loaded_while_another_answers_and_both_answer_then() -> anyhow::Result<()> {
    let system = start(&["other"], &["tool-worker", "analysis-worker"], &[]).await?;
    assert_eq!(loaded(&system).await?, ["tiny"]);
    let (_, mut alone) = system.open("/internal/chat", long_chat("tiny")).await?;
    let done = |events: &[(String, Value)]| events.last().is_some_and(|(name, _)| name == "done" || name == "error");
    let alone = read_events(&mut alone, done).await?;

    let (_, mut beside) = system.open("/internal/chat", long_chat("tiny")).await?;
    let begun = |events: &[(String, Value)]| events.iter().any(|(name, _)| name == "token");
    let mut seen = read_events(&mut beside, begun).await?;
    let (status, begun) = system.ask("/internal/models/other/load", &json!({})).await?;
    assert_eq!((status, &begun["operations"][0]["what"]), (202, &json!("load")), "{begun}");
    let same = system.ask("/internal/models/other/load", &json!({})).await?.1;
    seen.extend(read_events(&mut beside, done).await?);
    assert_eq!(text(&seen), text(&alone), "the same seed gives the same text, whatever is loaded beside it");
    assert_eq!(seen.last().context("an end")?.0, "done");

    let (status, ended) = system.ask("/internal/models/other/load?wait=true", &json!({})).await?;
    assert_eq!((status, &ended["operations"][0]["state"]), (200, &json!("done")), "{ended}");
    assert_eq!(same["operations"][0]["worker"], begun["operations"][0]["worker"]);
    assert_eq!(loaded(&system).await?, ["other", "tiny"]);
    let all = models(&system).await?;
    assert_eq!(all["models"][0]["window"], all["models"][1]["window"]);
    let worker = &all["workers"][0];
    assert_eq!(all["models"][0]["workers"], json!([worker["id"]]), "{all}");
    let memory = &worker["memory"];
    let each = all["models"][0]["weights_bytes"].as_u64().context("bytes")? + 64 * MIB;
    assert_eq!(memory["taken_bytes"], json!(2 * each), "{all}");
    for name in ["tiny", "other"] {
        let (status, answer) = system.ask("/internal/chat", &chat(Some(name), "hello")).await?;
        assert_eq!((status, &answer["response"]), (200, &json!("Hello! Ask me about the code in this workspace.")));
        assert_eq!(model_of(&system, &answer["execution_id"]).await?, name);
    }
    Ok(())
}

#[tokio::test]
async fn a_switch_under_a_steady_stream_of_requests_fails_none() -> anyhow::Result<()> {
    // Few slots, so that jobs for the model that goes are waiting when it is asked to go.
    let slots = [("VLINDERS_INFERENCE__SLOTS", "2")];
    let system = Arc::new(start(&["other"], &["tool-worker", "analysis-worker"], &slots).await?);
    let stop = Arc::new(AtomicBool::new(false));
    let answered = Arc::new(AtomicUsize::new(0));
    // People who name no model get whatever is there.
    let mut people = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let (system, stop, answered) = (Arc::clone(&system), Arc::clone(&stop), Arc::clone(&answered));
        people.spawn(async move {
            let mut last = Value::Null;
            while !stop.load(Ordering::Relaxed) {
                let (status, answer) = system.ask("/internal/chat", &chat(None, "hello")).await?;
                ensure!(status == 200, "{status}: {answer}");
                answered.fetch_add(1, Ordering::Relaxed);
                last = answer["execution_id"].clone();
            }
            anyhow::Ok(last)
        });
    }
    while answered.load(Ordering::Relaxed) < 6 {
        tokio::task::yield_now().await;
    }
    // Others name the one that is about to go; most of them wait in the queue.
    let mut named = Vec::new();
    for _ in 0..12 {
        named.push(system.open("/internal/chat", long_chat("tiny")).await?);
    }
    let switch = system.plain_client(&["models", "switch", "tiny", "other"]);
    let done = |events: &[(String, Value)]| events.last().is_some_and(|(name, _)| name == "done" || name == "error");
    let reading = futures::future::try_join_all(named.iter_mut().map(|(_, stream)| read_events(stream, done)));
    let (switched, read) = tokio::join!(switch, reading);
    let switched = switched?;
    assert_eq!(switched.code, Some(0), "{switched:?}");
    assert!(switched.stdout.starts_with("other has taken the place of tiny on inference-"), "{switched:?}");
    for events in read? {
        assert_eq!(events.last().context("an end")?.0, "done", "{events:?}\n{}", system.log());
    }
    assert_eq!(loaded(&system).await?, ["other"]);
    let before = answered.load(Ordering::Relaxed);
    while answered.load(Ordering::Relaxed) < before + 6 {
        tokio::task::yield_now().await;
    }
    stop.store(true, Ordering::Relaxed);
    while let Some(last) = people.join_next().await {
        let last = last??;
        assert_eq!(model_of(&system, &last).await?, "other");
    }
    Ok(())
}

#[tokio::test]
async fn an_agent_that_is_at_work_finishes_with_the_model_it_began_with() -> anyhow::Result<()> {
    let mut system = start(&["other"], &["tool-worker"], &[]).await?;
    let exec = runtime::clock::execution_id();
    let asked = system.request(exec, "Where is TokenReader defined?", &["search_code", "read_file"]);
    system.bus().await?.append_fact(&asked).await?;
    let calls = |event: &Event| matches!(event, Event::ToolsRequested(_));
    system.log_until(exec, |messages| events(messages).iter().flatten().any(calls)).await?;
    let (status, begun) = system.ask("/internal/models/switch", &json!({"from": "tiny", "to": "other"})).await?;
    assert_eq!(status, 202, "{begun}");
    until(&system, "tiny", |state| *state == ModelState::Draining).await?;
    assert_eq!(loaded(&system).await?, ["other"]);
    // Its tools were what it waited for.
    system.start_role("tool-worker").await?;
    assert_eq!(system.ended(exec).await?["status"], "completed");
    system.prove(exec).await?;
    until(&system, "tiny", |state| *state == ModelState::Known).await?;
    let id = begun["operations"][0]["id"].as_str().context("an id")?;
    let ended: Value = system.get(&format!("/internal/model-operations/{id}")).send().await?.json().await?;
    assert_eq!((&ended["state"], &ended["from"]), (&json!("done"), &json!("tiny")), "{ended}");
    Ok(())
}

#[tokio::test]
async fn a_model_that_does_not_fit_is_refused_with_the_numbers_and_fits_once_there_is_room() -> anyhow::Result<()> {
    // Room for one and a half.
    let limit = (110 * MIB).to_string();
    let limits =
        [("VLINDERS_INFERENCE__MEMORY_BYTES_MAX", limit.as_str()), ("VLINDERS_TELEMETRY__METRICS", "127.0.0.1:0")];
    let system = start(&["other"], &["tool-worker", "analysis-worker"], &limits).await?;
    let (_, shown) = system.metrics.first().context("the worker shows figures")?;
    assert_eq!(models_shown(shown).await?, ["tiny"]);
    let (status, problem) = system.ask("/internal/models/other/load", &json!({})).await?;
    assert_eq!((status, &problem["code"]), (409, &json!("no_room")), "{problem}");
    let detail = problem["detail"].as_str().context("a detail")?;
    for part in ["other needs ", "up to 64.0 MiB for keys and values", " of 110.0 MiB are free", "tiny takes "] {
        assert!(detail.contains(part), "{part:?} is missing in {detail}");
    }
    let ended = system.plain_client(&["models", "switch", "tiny", "other"]).await?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("room for both"), "{ended:?}");
    assert_eq!(loaded(&system).await?, ["tiny"], "nothing was begun");
    let ended = system.plain_client(&["models", "unload", "tiny"]).await?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(models_shown(shown).await?, [""; 0], "a model takes its figures with it");
    let ended = system.plain_client(&["models", "load", "other"]).await?;
    assert_eq!((ended.code, loaded(&system).await?), (Some(0), vec!["other".to_owned()]), "{ended:?}");
    assert_eq!(models_shown(shown).await?, ["other"]);
    Ok(())
}

#[tokio::test]
async fn a_broken_model_says_what_is_wrong_and_everything_else_answers_on() -> anyhow::Result<()> {
    let system = start(&["broken"], &["tool-worker", "analysis-worker"], &[]).await?;
    let file = system.directory().join("models/broken/tokenizer.json");
    std::fs::write(&file, "{\"version\": ")?;
    let ended = system.plain_client(&["models", "load", "broken"]).await?;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(1), ""), "{ended:?}");
    assert!(ended.stderr.contains("load broken on inference-") && ended.stderr.contains("tokenizer.json"), "{ended:?}");
    let weights = system.directory().join("models/broken/model.safetensors");
    std::fs::write(&weights, &std::fs::read(&weights)?[..5_000])?;
    let (status, problem) = system.ask("/internal/models/broken/load?wait=true", &json!({})).await?;
    assert_eq!((status, &problem["code"]), (409, &json!("operation_failed")), "{problem}");
    let detail = problem["detail"].as_str().context("a detail")?;
    assert!(detail.contains("model.safetensors") && detail.contains("truncated"), "{detail}");
    let all = models(&system).await?;
    assert_eq!(all["workers"][0]["models"][0]["state"], "failed", "{all}");
    assert!(all["workers"][0]["models"][0]["reason"].as_str().is_some_and(|why| why.contains("truncated")), "{all}");
    let (status, answer) = system.ask("/internal/chat", &chat(None, "hello")).await?;
    assert_eq!((status, loaded(&system).await?), (200, vec!["tiny".to_owned()]), "{answer}");
    // Whole again, it may be loaded.
    copy(&system.directory().join("models"), "broken")?;
    assert_eq!(system.plain_client(&["models", "load", "broken"]).await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_request_for_a_model_that_is_not_loaded_waits_for_it() -> anyhow::Result<()> {
    let system = start(&["other"], &["tool-worker", "analysis-worker"], &[]).await?;
    let (exec, mut stream) = system.open("/internal/chat", chat(Some("other"), "hello")).await?;
    let asked = |event: &Event| matches!(event, Event::InferenceRequested(_));
    system.log_until(exec, |messages| events(messages).iter().flatten().any(asked)).await?;
    assert_eq!(loaded(&system).await?, ["tiny"]);
    assert_eq!(system.plain_client(&["models", "load", "other"]).await?.code, Some(0));
    let done = |events: &[(String, Value)]| events.last().is_some_and(|(name, _)| name == "done" || name == "error");
    let events = read_events(&mut stream, done).await?;
    let (name, answer) = events.last().context("an end")?;
    assert_eq!(
        (name.as_str(), &answer["response"]),
        ("done", &json!("Hello! Ask me about the code in this workspace."))
    );

    let (status, problem) = system.ask("/internal/chat", &chat(Some("othr"), "hello")).await?;
    assert_eq!((status, &problem["code"]), (404, &json!("unknown_model")), "nobody will ever load it: {problem}");
    assert_eq!(problem["next_step"], "did you mean other? there are: other, tiny");
    Ok(())
}

#[tokio::test]
async fn a_request_that_waits_in_vain_says_for_what_and_what_is_loaded() -> anyhow::Result<()> {
    let system = start(&["other"], &["analysis-worker"], &[]).await?;
    let config = json!({"model": "other", "deadline_ms": 1_500});
    let body = json!({"agent_type": "coder", "instruction": "hello", "config": config});
    let (status, problem) = system.ask("/internal/agent", &body).await?;
    assert_eq!((status, &problem["code"]), (504, &json!("deadline")), "{problem}");
    let detail = problem["detail"].as_str().context("a detail")?;
    assert!(detail.contains("waited for the model other") && detail.ends_with("loaded are: tiny"), "{detail}");
    assert!(problem["next_step"].as_str().is_some_and(|next| next.contains("vlinders models load other")), "{problem}");
    let (_, mut stream) = system.open("/internal/agent", body).await?;
    let ended = |events: &[(String, Value)]| events.last().is_some_and(|(name, _)| name == "error");
    let events = read_events(&mut stream, ended).await?;
    assert_eq!(events.last().context("an end")?.1["detail"], problem["detail"]);
    Ok(())
}

/// What an execution's first answer said, and how many tokens of its prompt were found computed.
async fn first_answer(system: &System, exec: &Value) -> anyhow::Result<(String, u64)> {
    let exec: ExecutionId = exec.as_str().context("an execution")?.parse()?;
    let log = system.bus().await?.read_execution(exec, 0).await?;
    let answer = log.iter().find_map(|stored| match Fact::read(&stored.payload).ok()?.body {
        FactBody::InferenceCompleted(answer) => Some((answer.text, answer.cached_tokens)),
        _ => None,
    });
    answer.context("it was answered")
}

#[tokio::test]
async fn a_model_that_comes_back_goes_on_with_what_it_had_computed_unless_its_files_changed() -> anyhow::Result<()> {
    let system = start(&[], &["tool-worker", "analysis-worker"], &[]).await?;
    let question = chat(Some("tiny"), &"Where is the parser of the configuration, and who calls it? ".repeat(8));
    let ask = || async {
        let (status, answer) = system.ask("/internal/chat", &question).await?;
        ensure!(status == 200, "{answer}");
        first_answer(&system, &answer["execution_id"]).await
    };
    let reload = || async {
        for change in ["unload", "load"] {
            let ended = system.plain_client(&["models", change, "tiny"]).await?;
            ensure!(ended.code == Some(0), "{ended:?}");
        }
        anyhow::Ok(())
    };
    let (text, cold) = ask().await?;
    let (again, warm) = ask().await?;
    assert_eq!((&again, cold), (&text, 0));
    assert!(warm > 64, "{warm} tokens were found");
    reload().await?;
    assert_eq!(ask().await?, (text.clone(), warm));
    let file = system.directory().join("models/tiny/tokenizer_config.json");
    let same = std::fs::read(&file)?;
    std::fs::write(&file, [same.as_slice(), b"\n"].concat())?;
    reload().await?;
    assert_eq!(ask().await?, (text, 0), "other files, other prefixes");
    Ok(())
}

#[tokio::test]
async fn a_model_is_loaded_on_demand_where_that_is_wanted() -> anyhow::Result<()> {
    let wanted = [("VLINDERS_INFERENCE__LOAD_ON_DEMAND", "true")];
    let system = start(&["other"], &["tool-worker", "analysis-worker"], &wanted).await?;
    let (status, answer) = system.ask("/internal/chat", &chat(Some("other"), "hello")).await?;
    assert_eq!((status, model_of(&system, &answer["execution_id"]).await?.as_str()), (200, "other"), "{answer}");
    assert_eq!(loaded(&system).await?, ["other", "tiny"]);
    Ok(())
}

#[tokio::test]
async fn workers_are_found_for_a_change_or_named() -> anyhow::Result<()> {
    let mut system = start(&["other"], &["tool-worker", "analysis-worker"], &[]).await?;
    start_worker(&mut system, &[]).await?;
    let (code, listed) = system.client(&["models", "ls"]).await?;
    let workers: Vec<&str> =
        listed["workers"].as_array().context("a list")?.iter().filter_map(|worker| worker["id"].as_str()).collect();
    assert_eq!((code, workers.len()), (Some(0), 2), "{listed}");
    let (code, ended) = system.client(&["models", "load", "other", "--worker", workers[1]]).await?;
    assert_eq!((code, &ended["operations"][0]["worker"]), (Some(0), &json!(workers[1])), "{ended}");
    // Somebody has it already: nobody loads it again.
    let (code, ended) = system.client(&["models", "load", "other"]).await?;
    assert_eq!((code, &ended["operations"][0]["worker"]), (Some(0), &json!(workers[1])), "{ended}");
    let (code, problem) = system.client(&["models", "load", "other", "--worker", "inference-nobody"]).await?;
    assert_eq!((code, &problem["code"]), (Some(1), &json!("unknown_worker")), "{problem}");
    // All that have it give it up.
    let (code, ended) = system.client(&["models", "unload", "tiny"]).await?;
    let states: Vec<&Value> = ended["operations"].as_array().context("a list")?.iter().map(|o| &o["state"]).collect();
    assert_eq!((code, states), (Some(0), vec![&json!("done"), &json!("done")]), "{ended}");
    assert_eq!(loaded(&system).await?, ["other"]);
    let ended = system.plain_client(&["models", "unload", "tiny"]).await?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("tiny is not loaded; loaded are: other"), "{ended:?}");
    let ended = system.plain_client(&["models", "load", "../tiny"]).await?;
    assert!(ended.code == Some(1) && ended.stderr.contains("there are: other, tiny"), "{ended:?}");
    let listed = system.plain_client(&["models", "ls"]).await?;
    for part in ["inference-", " taken", "other", "ready", "tiny", "known", "weights "] {
        assert!(listed.stdout.contains(part), "{part:?} is missing in {}", listed.stdout);
    }
    Ok(())
}
