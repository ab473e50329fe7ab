//! `vlinders audit`, `replay --at` and `fork`: the whole log is proven, one forged decision is found and located, and an
//! execution goes on in another one.

use std::path::{Path, PathBuf};

use pipeline_tests::{System, conversation};
use runtime::bus::Commit;
use schemas::decision::{Draft, FactsDigest};
use schemas::permission::User;
use schemas::{ExecutionId, Fact, Record};
use serde_json::{Value, json};

/// Runs a command that reads the log, with `--json`; returns its exit code and what it printed.
async fn read(system: &System, arguments: &[&str]) -> anyhow::Result<(Option<i32>, Value)> {
    let ended = system.on_nats(User::Auditor, &[arguments, &["--json"]].concat()).await?;
    let json = serde_json::from_str(&ended.stdout).map_err(|e| anyhow::anyhow!("{e}: {ended:?}"))?;
    Ok((ended.code, json))
}

#[tokio::test]
async fn an_audit_proves_an_honest_log_and_locates_a_forged_decision() -> anyhow::Result<()> {
    let system = System::start().await?;
    let bus = system.bus().await?;
    let mut all: Vec<ExecutionId> = Vec::new();
    for _ in 0..12 {
        all.push(system.submit("hello").await?);
    }
    let ask =
        json!({"agent_type": "coder", "instruction": "Where is Liveness defined?", "workspace": system.workspace()});
    let (_, answer) = system.ask("/internal/agent", &ask).await?;
    all.push(answer["execution_id"].as_str().expect("an id").parse()?);
    let mut events = 0;
    for exec in &all {
        system.ended(*exec).await?;
        events += bus.read_execution(*exec, 0).await?.len();
    }
    let (code, found) = read(&system, &["audit"]).await?;
    assert_eq!((code, &found["verified"], &found["broken"]), (Some(0), &json!(true), &json!([])), "{found}");
    assert_eq!((&found["executions"], &found["events"]), (&json!(13), &json!(events)), "{found}");
    let (code, found) = read(&system, &["audit", "--since", "1h"]).await?;
    assert_eq!((code, &found["executions"], &found["events"]), (Some(0), &json!(13), &json!(events)), "{found}");
    let (code, found) = read(&system, &["audit", "--since", "2100-01-01T00:00:00Z"]).await?;
    assert_eq!((code, &found["executions"]), (Some(0), &json!(0)), "{found}");
    let ended = system.on_nats(User::Auditor, &["audit", "--since", "yesterday"]).await?;
    assert_eq!((ended.code, ended.stderr.contains("90s, 15m, 2h, 7d")), (Some(2), true), "{ended:?}");

    // A decision after the end of one, well formed and well chained.
    let exec = all[3];
    let log = bus.read_execution(exec, 0).await?;
    let last = log.last().expect("a decision");
    let end = Record::read(&last.payload)?;
    let facts = FactsDigest::default();
    let draft = Draft {
        exec,
        n: end.n + 1,
        at: end.at,
        machine: end.machine,
        facts_upto: last.sequence,
        facts: &facts,
        prev_hash: end.hash.as_str(),
    };
    let forged = Record::seal(&draft, end.events.clone());
    let Commit::Done(sequence) = bus.commit(&forged, last.sequence).await? else { panic!("the log moved on") };
    let stored_at = bus.read_execution(exec, sequence - 1).await?[0].stored_at;
    for since in ["", "1h", "just before"] {
        let arguments = match since {
            "" => vec!["audit".to_owned()],
            // Reads what was stored since, and the rest of each execution from where it began.
            "just before" => {
                let seconds = (runtime::clock::now() - stored_at) / 1_000_000_000 + 1;
                vec!["audit".to_owned(), "--since".to_owned(), format!("{seconds}s")]
            }
            since => vec!["audit".to_owned(), "--since".to_owned(), since.to_owned()],
        };
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (code, found) = read(&system, &arguments).await?;
        assert_eq!((code, &found["verified"]), (Some(3), &json!(false)), "{found}");
        let broken = found["broken"].as_array().expect("a list");
        assert_eq!(broken.len(), 1, "{found}");
        assert_eq!(broken[0]["execution_id"], json!(exec), "{found}");
        assert_eq!((&broken[0]["decision"], &broken[0]["sequence"]), (&json!(end.n + 1), &json!(sequence)), "{found}");
        assert!(broken[0]["difference"].as_str().is_some_and(|d| d.contains("after the end")), "{found}");
    }
    Ok(())
}

#[tokio::test]
async fn a_state_is_shown_after_any_message_and_another_execution_goes_on_from_there() -> anyhow::Result<()> {
    let system = System::start().await?;
    let hello = json!({"messages": [{"role": "user", "content": "hello"}]});
    let (_, answer) = system.ask("/internal/chat", &hello).await?;
    let exec: ExecutionId = answer["execution_id"].as_str().expect("an id").parse()?;
    let id = exec.to_string();
    let (code, state) = read(&system, &["replay", &id, "--at", "1"]).await?;
    assert_eq!((code, &state["phase"], &state["effects"][0]["state"]), (Some(0), &json!("Inferring"), &json!("Open")));
    let (_, end) = read(&system, &["executions", "show", &id]).await?;
    assert_eq!((&end["phase"], &end["outcome"]), (&json!("Closed"), &json!("completed")), "{end}");
    assert_eq!(end["context"].as_array().map(Vec::len), Some(3), "{end}");
    for arguments in [vec!["executions", "ls"], vec!["executions"], vec!["executions", &id]] {
        let (code, line) = read(&system, &arguments).await?;
        assert_eq!((code, &line["execution_id"]), (Some(0), &json!(exec)), "{arguments:?}");
    }
    let (code, same) = read(&system, &["replay", &id, "--machine", "next"]).await?;
    assert_eq!((code, &same["verified"]), (Some(0), &json!(true)), "{same}");
    let (code, other) = read(&system, &["replay", &id, "--machine", "1"]).await?;
    assert_eq!((code, &other["verified"], &other["decision"]), (Some(3), &json!(false), &json!(0)), "{other}");
    for wrong in [vec!["--at", "4"], vec!["--machine", "99"]] {
        let ended = system.on_nats(User::Auditor, &[&["replay", &id], wrong.as_slice()].concat()).await?;
        assert_eq!(ended.code, Some(2), "{ended:?}");
    }
    let ended = system.on_nats(User::Auditor, &["replay", &id, "--follow", "--verify"]).await?;
    assert!(ended.code == Some(0) && ended.stdout.contains("verified: 2 decisions"), "{ended:?}");

    // From before the answer: the same question. From after it: more is said.
    let (code, fork) = system.client(&["fork", &id, "--at", "1"]).await?;
    assert_eq!(code, Some(0), "{fork}");
    let again: ExecutionId = fork["execution_id"].as_str().expect("an id").parse()?;
    assert_eq!(system.ended(again).await?["response"], answer["response"], "the same seed draws the same tokens");
    let log = system.prove(again).await?;
    assert_eq!(Fact::read(&log[0].payload)?.cause, Some(format!("fork of {exec} after message 1")));
    let (code, fork) = system.client(&["fork", &id, "--at", "3", "--message", "what can you do?"]).await?;
    assert_eq!(code, Some(0), "{fork}");
    let on: ExecutionId = fork["execution_id"].as_str().expect("an id").parse()?;
    assert_eq!(system.ended(on).await?["status"], "completed");
    let said: Vec<String> =
        conversation(on, &system.prove(on).await?).into_iter().map(|m| m.content).skip(1).take(3).collect();
    assert_eq!(said, ["hello", answer["response"].as_str().expect("text"), "what can you do?"]);

    let path = format!("/internal/executions/{exec}/fork");
    for (body, status, code) in [
        (json!({"at": 3}), 400, "invalid_request"),
        (json!({"at": 9}), 400, "out_of_range"),
        (json!({"at": 1, "model": "tinny"}), 404, "unknown_model"),
    ] {
        let (found, problem) = system.ask(&path, &body).await?;
        assert_eq!((found, &problem["code"]), (status, &json!(code)), "{problem}");
    }
    let nobody = format!("/internal/executions/{}/fork", runtime::clock::execution_id());
    assert_eq!(system.ask(&nobody, &json!({"at": 0})).await?.1["code"], "unknown_execution");
    Ok(())
}

#[tokio::test]
async fn the_command_line_pauses_says_resumes_and_cancels() -> anyhow::Result<()> {
    let system = System::start_without(&["inference-worker"]).await?;
    let exec = runtime::clock::execution_id();
    let id = exec.to_string();
    system.bus().await?.append_fact(&system.request(exec, "go", &["read_file"])).await?;
    assert_eq!(system.client(&["resume", &id]).await?.1["code"], "not_paused");
    assert_eq!(system.client(&["pause", &id, "--reason", "lunch"]).await?.0, Some(0));
    assert_eq!(system.client(&["say", &id, "more"]).await?.0, Some(0));
    assert_eq!(system.client(&["resume", &id]).await?.0, Some(0));
    let (code, problem) = system.client(&["approve", &id, "1-tool-0"]).await?;
    assert_eq!((code, &problem["code"]), (Some(1), &json!("not_awaiting_approval")), "{problem}");
    assert_eq!(system.client(&["grant", &id, "tokens", "5"]).await?.0, Some(0));
    assert_eq!(system.client(&["cancel", &id, "--by", "ann", "--reason", "enough"]).await?.0, Some(0));
    assert_eq!(system.ended(exec).await?["error"], "cancelled: cancelled by ann: enough");
    system.prove(exec).await?;
    Ok(())
}

/// Files in which nats-server keeps messages of the log.
fn blocks(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(blocks(&path)?);
        } else if path.extension().is_some_and(|e| e == "blk") && path.to_string_lossy().contains("VL_LOG_") {
            found.push(path);
        }
    }
    Ok(found)
}

#[tokio::test]
async fn a_byte_that_changed_on_disk_is_found() -> anyhow::Result<()> {
    let mut system = System::start().await?;
    let exec = system.submit("a text that stands nowhere else").await?;
    system.ended(exec).await?;
    for role in ["gateway", "tool-worker", "analysis-worker", "inference-worker", "orchestrator"] {
        system.kill_role(role).await?;
    }
    system.stop_nats().await?;
    let mut flipped = 0;
    for block in blocks(&system.store)? {
        let mut bytes = std::fs::read(&block)?;
        if let Some(place) = bytes.windows(20).position(|w| w == b"a text that stands n") {
            bytes[place] ^= 1;
            std::fs::write(&block, bytes)?;
            flipped += 1;
        }
    }
    assert_eq!(flipped, 1, "the request stands in one place");
    system.start_nats().await?;
    let (code, found) = read(&system, &["audit"]).await?;
    assert_eq!((code, &found["verified"]), (Some(3), &json!(false)), "{found}");
    // The server does not hand out what its own checksum disagrees with; had it done so, the hash would.
    let broken = found["broken"].as_array().expect("a list");
    assert_eq!(
        (&broken[0]["sequence"], &broken[0]["difference"]),
        (&json!(1), &json!("message 1 is missing")),
        "{found}"
    );
    assert_eq!(broken[1]["execution_id"], json!(exec), "{found}");
    Ok(())
}
