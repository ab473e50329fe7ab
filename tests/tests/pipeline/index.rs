//! Code that is indexed and found, and facts that are remembered: real workers, the real embedding model, the store in a
//! directory that all workers share.

use std::path::Path;

use anyhow::Context;
use pipeline_tests::{PATIENCE, System, embedding_model, read_events, repository};
use schemas::code::{By, Found, SearchCode};
use schemas::rpc::Reply;
use schemas::subject;
use serde_json::{Value, json};

/// A system with the embedding model beside the one that chats; none where the model is missing.
async fn start() -> anyhow::Result<Option<System>> {
    let Some(model) = embedding_model() else { return Ok(None) };
    let mut system = System::start_without(&["inference-worker"]).await?;
    let chat = repository().join("inference-worker/models/tiny").display().to_string();
    let arguments = ["--models", &chat, "--embedding-models", &model.display().to_string()];
    system.start_role_with("inference-worker", &arguments, &[]).await?;
    Ok(Some(system))
}

async fn index(system: &System, workspace: &Path, more: Value) -> anyhow::Result<Value> {
    let mut body = json!({"workspace": workspace});
    body.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
    let (status, answer) = system.ask("/internal/index", &body).await?;
    assert_eq!(status, 200, "{answer}\n{}", system.log());
    Ok(answer)
}

/// A report in four numbers: files indexed, unchanged, removed; pieces embedded.
fn counts(answer: &Value) -> [u64; 4] {
    let report = &answer["report"];
    let number = |value: &Value| value.as_u64().expect("a number");
    [&report["done"]["files"], &report["unchanged"], &report["removed"], &report["done"]["embedded"]].map(number)
}

async fn tool(system: &System, name: &str, arguments: Value, user: Option<&str>) -> anyhow::Result<Value> {
    let workspace = system.workspace();
    let body = json!({"tool_name": name, "arguments": arguments, "workspace": workspace, "user_id": user});
    let (status, answer) = system.ask("/internal/tools/execute", &body).await?;
    assert_eq!(status, 200, "{answer}");
    Ok(answer)
}

async fn found(system: &System, question: &SearchCode) -> anyhow::Result<Found> {
    let bus = system.bus().await?;
    match bus.ask::<_, Reply<Found>>(subject::RPC_SEARCH, question, PATIENCE).await? {
        Reply::Ok(found) => Ok(found),
        Reply::Err(refusal) => anyhow::bail!("{}: {}", refusal.code, refusal.detail),
    }
}

fn about(system: &System, text: &str) -> anyhow::Result<SearchCode> {
    let workspace = system.workspace().canonicalize()?.display().to_string();
    let about = schemas::code::About::Query(text.to_owned());
    let (languages, paths, kinds) = (vec![], vec![], vec![]);
    Ok(SearchCode { workspace, about, languages, paths, kinds, limit: 10, by: By::Both })
}

const CLOCK: &str = "/// Tells the time of day.\npub fn now() -> u64 {\n    0\n}\n";
const PARSER: &str = "\"\"\"Reads settings.\"\"\"\n\n\ndef parse_settings(text):\n    \"\"\"Turns the lines of a configuration file into a dictionary.\"\"\"\n    return dict(line.split('=') for line in text.splitlines())\n";

#[tokio::test]
async fn code_is_found_by_meaning_and_by_words_and_only_changes_are_read_again() -> anyhow::Result<()> {
    let Some(system) = start().await? else { return Ok(()) };
    let workspace = system.workspace();
    std::fs::write(workspace.join("src/clock.rs"), CLOCK)?;
    std::fs::write(workspace.join("settings.py"), PARSER)?;
    std::fs::write(workspace.join(".gitignore"), "ignored.rs\n")?;
    std::fs::write(workspace.join("ignored.rs"), "fn ignored() {}\n")?;
    std::fs::write(workspace.join("image.png"), b"\x89PNG\0\0")?;
    let first = index(&system, &workspace, json!({})).await?;
    let [files, unchanged, removed, embedded] = counts(&first);
    assert_eq!((files, unchanged, removed), (5, 0, 0), "{first}");
    assert!(embedded >= 5, "{first}");
    system.prove(first["execution_id"].as_str().context("an id")?.parse()?).await?;

    // By meaning: no word of the question stands there.
    let hit = tool(&system, "semantic_search", json!({"query": "interpreting preferences"}), None).await?;
    let text = hit["result"].as_str().context("a text")?;
    assert!(text.lines().nth(2).is_some_and(|line| line.starts_with("settings.py:")), "{text}");
    let words = SearchCode { by: By::Words, ..about(&system, "TokenReader position")? };
    assert_eq!(found(&system, &words).await?.pieces[0].path, "src/reader.rs");
    let both = found(&system, &about(&system, "parse settings dictionary")?).await?;
    assert!(both.pieces[0].why.contains("meaning #1") && both.pieces[0].why.contains("words #1"), "{both:?}");
    assert!(both.notes.is_empty(), "{:?}", both.notes);
    let rust = SearchCode { languages: vec!["rust".into()], ..about(&system, "parse settings")? };
    assert!(found(&system, &rust).await?.pieces.iter().all(|piece| piece.language == "rust"));
    let kinds = SearchCode { kinds: vec!["struct".into()], ..about(&system, "tokens")? };
    let structs = found(&system, &kinds).await?.pieces;
    assert!(!structs.is_empty() && structs.iter().all(|p| p.code.contains("struct")), "{structs:?}");
    let below = SearchCode { paths: vec!["src".into()], ..about(&system, "parse settings")? };
    assert!(found(&system, &below).await?.pieces.iter().all(|piece| piece.path.starts_with("src/")));

    // Nothing has changed, then one function has, then a file moves and another goes.
    assert_eq!(counts(&index(&system, &workspace, json!({})).await?), [0, 5, 0, 0]);
    std::fs::write(workspace.join("src/clock.rs"), CLOCK.replace("time of day", "phase of the moon"))?;
    let edited = index(&system, &workspace, json!({"paths": ["src/clock.rs"]})).await?;
    assert_eq!(counts(&edited), [1, 0, 0, 1], "{edited}");
    let moon = found(&system, &about(&system, "phase of the moon")?).await?;
    assert_eq!(moon.pieces[0].path, "src/clock.rs");
    std::fs::rename(workspace.join("settings.py"), workspace.join("prefs.py"))?;
    std::fs::remove_file(workspace.join("src/liveness.rs"))?;
    let moved = index(&system, &workspace, json!({})).await?;
    let [files, unchanged, removed, _] = counts(&moved);
    assert_eq!((files, unchanged, removed), (1, 3, 2), "{moved}");
    let paths: Vec<String> =
        found(&system, &about(&system, "parse settings liveness")?).await?.pieces.into_iter().map(|p| p.path).collect();
    assert!(paths.contains(&"prefs.py".to_owned()), "{paths:?}");
    assert!(!paths.iter().any(|path| path == "settings.py" || path == "src/liveness.rs"), "{paths:?}");
    Ok(())
}

#[tokio::test]
async fn without_an_embedding_model_words_find_and_vectors_come_later() -> anyhow::Result<()> {
    let mut system = System::start().await?;
    let workspace = system.workspace();
    let first = index(&system, &workspace, json!({})).await?;
    assert_eq!(counts(&first), [3, 0, 0, 0]);
    let why = first["report"]["done"]["without_vectors"].as_str().context("it says so")?;
    assert!(why.contains("no embedding model is loaded"), "{why}");
    let hit = found(&system, &about(&system, "TokenReader")?).await?;
    assert_eq!(hit.pieces[0].path, "src/reader.rs");
    assert!(hit.notes[0].contains("by words only"), "{:?}", hit.notes);
    let health: Value = system.get("/health").send().await?.json().await?;
    assert!(health["parts"]["vectors"].to_string().contains("no embedding model"), "{health}");
    assert_eq!(counts(&index(&system, &workspace, json!({})).await?), [0, 3, 0, 0], "no reason to read them again");
    let Some(model) = embedding_model() else { return Ok(()) };
    let arguments = ["--embedding-models", &model.display().to_string()];
    system.start_role_with("inference-worker", &arguments, &[]).await?;
    let enough = async {
        loop {
            let again = counts(&index(&system, &workspace, json!({})).await?);
            if again[0] > 0 {
                return anyhow::Ok(again);
            }
        }
    };
    let again = tokio::time::timeout(PATIENCE, enough).await??;
    assert!(again[0] == 3 && again[3] >= 3, "{again:?}");
    assert!(found(&system, &about(&system, "TokenReader")?).await?.notes.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_worker_killed_in_the_middle_loses_nothing_and_doubles_nothing() -> anyhow::Result<()> {
    let Some(mut system) = start().await? else { return Ok(()) };
    system.start_role("analysis-worker").await?;
    let workspace = system.workspace();
    for number in 0..120 {
        let text =
            format!("/// Number {number} of many.\npub fn function_{number}() -> u64 {{\n    {number}\n}}\n").repeat(8);
        std::fs::write(workspace.join(format!("src/file_{number}.rs")), text)?;
    }
    let (exec, mut response) = system.open("/internal/index", json!({"workspace": workspace})).await?;
    let is_part = |(name, data): &(String, Value)| name == "tool_result" && data["call_id"] != "plan";
    let seen = read_events(&mut response, |events| events.iter().any(is_part)).await?;
    assert!(seen.iter().all(|(name, _)| name != "done"), "it is in the middle");
    // The oldest one holds the vectors.
    system.kill_role("analysis-worker").await?;
    let rest =
        read_events(&mut response, |events| events.iter().any(|(name, _)| name == "done" || name == "error")).await?;
    let (name, done) = rest.last().context("an end")?;
    assert_eq!(name, "done", "{done}\n{}", system.log());
    assert_eq!(counts(done)[0], 123, "{done}");
    assert_eq!(done["report"]["failed"], Value::Null, "{done}");
    assert_eq!(done["report"]["done"]["without_vectors"], Value::Null, "{done}");
    system.prove(exec).await?;
    // Every piece is there once: by meaning, nothing is found twice, and everything is.
    let question = SearchCode { by: By::Meaning, limit: 50, ..about(&system, "function 77 of many")? };
    let hits = found(&system, &question).await?;
    assert!(hits.notes.is_empty(), "{:?}", hits.notes);
    let mut places: Vec<(String, u32)> = hits.pieces.iter().map(|p| (p.path.clone(), p.start_line)).collect();
    let all = places.len();
    places.sort();
    places.dedup();
    assert!(all == places.len() && all == 50, "{places:?}");
    assert_eq!(counts(&index(&system, &workspace, json!({})).await?), [0, 123, 0, 0]);
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_indexed_or_found_is_refused_with_the_reason() -> anyhow::Result<()> {
    let system = System::start_without(&["inference-worker"]).await?;
    let workspace = system.workspace();
    let cases = [
        (json!({"workspace": "/nowhere"}), 422, "not under an allowed root"),
        (json!({"workspace": "/etc"}), 422, "not under an allowed root"),
        (json!({"workspace": workspace.join("missing")}), 422, "no such workspace"),
        (json!({"workspace": workspace, "paths": ["../x"]}), 422, "without `..`"),
        (json!({"workspace": ""}), 400, "`workspace` is empty"),
        (json!({"workspace": workspace, "path": "x"}), 400, "unknown field"),
    ];
    for (body, status, words) in cases {
        let (got, problem) = system.ask("/internal/index", &body).await?;
        assert!(got == status && problem["detail"].as_str().is_some_and(|d| d.contains(words)), "{body}: {problem}");
    }
    let refused = tool(&system, "semantic_search", json!({"query": "x"}), None).await?;
    assert_eq!(refused["success"], false);
    let why = refused["error"].as_str().context("a reason")?;
    assert!(why.contains("is not indexed: index it with `vlinders index "), "{why}");

    // Odd files are named, or passed over, and the others are indexed.
    std::fs::write(workspace.join("bad.py"), b"def caf\xe9():\n    pass\n")?;
    let large = std::fs::File::create(workspace.join("large.rs"))?;
    large.set_len(2 << 30)?;
    std::fs::write(workspace.join("bundle.js"), "var a=1;".repeat(5_000))?;
    std::os::unix::fs::symlink(&workspace, workspace.join("src/loop"))?;
    std::os::unix::fs::symlink("/etc/passwd", workspace.join("src/passwd.py"))?;
    let answer = index(&system, &workspace, json!({})).await?;
    assert_eq!(counts(&answer)[0], 4, "{answer}");
    let skipped = answer["report"]["done"]["skipped"].to_string();
    assert!(skipped.contains("large.rs") && skipped.contains("2147483648 bytes"), "{skipped}");
    assert!(skipped.contains("bundle.js") && skipped.contains("minified"), "{skipped}");
    assert!(!skipped.contains("passwd") && !skipped.contains("loop"), "{skipped}");
    let list: Value = system.get("/internal/index").send().await?.json().await?;
    assert_eq!(list["indexes"][0]["files"], 4, "{list}");
    Ok(())
}

#[tokio::test]
async fn an_agent_type_recalls_at_the_start_and_remembers_at_the_end() -> anyhow::Result<()> {
    let Some(system) = start().await? else { return Ok(()) };
    let agent = json!({
        "name": "mindful", "description": "Remembers.", "system": "You are Vlinder, a code assistant.",
        "tools": ["search_code", "recall", "remember"], "policy": {"recall": true, "remember": true},
    });
    let put = system.put("/internal/agents/mindful", &agent).send().await?;
    assert!(put.status().is_success(), "{}", put.text().await?);
    let ask = async || -> anyhow::Result<(schemas::ExecutionId, Vec<Vec<String>>, String)> {
        let body = json!({
            "agent_type": "mindful", "instruction": "Where is TokenReader defined?", "workspace": system.workspace(),
            "user_id": "ann",
        });
        let (status, answer) = system.ask("/internal/agent", &body).await?;
        assert_eq!(status, 200, "{answer}");
        let exec = answer["execution_id"].as_str().context("an id")?.parse()?;
        let messages = system.prove(exec).await?;
        let instructions = pipeline_tests::conversation(exec, &messages)[0].content.clone();
        Ok((exec, pipeline_tests::tools_asked(&messages), instructions))
    };
    let (first, tools, instructions) = ask().await?;
    assert_eq!(tools.first(), Some(&vec!["recall".to_owned()]), "{tools:?}");
    assert_eq!(tools.last(), Some(&vec!["remember".to_owned()]), "{tools:?}");
    assert!(instructions.contains("nothing is known about that"), "{instructions}");
    let (code, list) = system.client(&["memory", "ls", "--user", "ann"]).await?;
    let fact = &list["facts"][0];
    assert_eq!((code, fact["source"].as_str()), (Some(0), Some(first.to_string().as_str())), "{list}");
    let text = fact["text"].as_str().context("a text")?;
    assert!(text.starts_with("Asked: Where is TokenReader defined?\nAnswered: "), "{text}");
    let (_, _, instructions) = ask().await?;
    assert!(
        instructions.contains("Known from earlier work:\n- Asked: Where is TokenReader defined?"),
        "{instructions}"
    );
    Ok(())
}

#[tokio::test]
async fn facts_are_remembered_for_their_user_and_found_by_meaning() -> anyhow::Result<()> {
    let Some(system) = start().await? else { return Ok(()) };
    let keep = async |user: &str, fact: &str| tool(&system, "remember", json!({"fact": fact}), Some(user)).await;
    assert_eq!(keep("ann", "The staging database runs on port 5433.").await?["result"], "remembered");
    assert_eq!(keep("ann", "Ann likes tabs better than spaces.").await?["result"], "remembered");
    let again = keep("ann", "the staging database  runs on port 5433.").await?;
    assert_eq!(again["result"], "remembered (it was known already)");
    keep("bob", "Bob's staging database runs on port 9999.").await?;
    let recall = async |user: &str| {
        let told = tool(&system, "recall", json!({"query": "Which port does the database use?"}), Some(user)).await?;
        anyhow::Ok(told["result"].as_str().unwrap_or_default().to_owned())
    };
    let known = recall("ann").await?;
    assert!(known.starts_with("- the staging database") && !known.contains("9999"), "{known}");
    assert!(recall("bob").await?.contains("9999"));
    assert_eq!(recall("eve").await?, "nothing is known about that");

    let (code, list) = system.client(&["memory", "ls", "--user", "ann"]).await?;
    let facts = list["facts"].as_array().context("a list")?;
    assert_eq!((code, facts.len()), (Some(0), 2), "{list}");
    assert!(facts[0]["source"].is_string() && facts[0]["remembered_at"].is_string(), "{list}");
    let id = facts[0]["id"].as_str().context("an id")?;
    assert_eq!(system.plain_client(&["memory", "rm", id]).await?.code, Some(0));
    let gone = system.plain_client(&["memory", "rm", id]).await?;
    assert!(gone.code == Some(1) && gone.stderr.contains("there is no fact"), "{}", gone.stderr);
    let (_, list) = system.client(&["memory", "ls", "--user", "ann"]).await?;
    assert_eq!(list["facts"].as_array().map(Vec::len), Some(1));
    Ok(())
}
