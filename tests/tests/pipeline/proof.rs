//! `vlinders replay --verify`: proves an honest log, and finds the one decision that the rules would not have made.

use orchestrator::execution::Rules;
use orchestrator::history::History;
use pipeline_tests::System;
use runtime::bus::Commit;
use schemas::decision::{Draft, FactsDigest};
use schemas::permission::User;
use schemas::{Event, ExecutionId, Record};
use serde_json::{Value, json};

/// `vlinders replay EXEC --verify --json`: its exit code and what it printed.
async fn verify(system: &System, exec: ExecutionId) -> anyhow::Result<(Option<i32>, Value)> {
    let ended = system.on_nats(User::Auditor, &["replay", &exec.to_string(), "--verify", "--json"]).await?;
    assert_eq!(ended.stdout.lines().count(), 1, "{ended:?}");
    Ok((ended.code, serde_json::from_str(&ended.stdout)?))
}

#[tokio::test]
async fn a_replay_proves_an_honest_log_and_finds_a_forged_decision() -> anyhow::Result<()> {
    let mut system = System::start().await?;
    let bus = system.bus().await?;
    let exec = system.submit("hello").await?;
    system.ended(exec).await?;
    let (code, proof) = verify(&system, exec).await?;
    assert_eq!((code, &proof["verified"]), (Some(0), &json!(true)), "{proof}");
    assert_eq!((&proof["execution_id"], &proof["events"], &proof["decisions"]), (&json!(exec), &json!(4), &json!(2)));
    assert!(proof["final_hash"].as_str().is_some_and(|h| h.len() == 64), "{proof}");

    // A second end, well formed and well chained, appended as the log's condition wants it.
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
    assert!(matches!(bus.commit(&forged, last.sequence).await?, Commit::Done(_)));
    let (code, proof) = verify(&system, exec).await?;
    assert_eq!((code, &proof["verified"], &proof["decision"]), (Some(3), &json!(false), &json!(2)), "{proof}");
    assert!(proof["difference"].as_str().is_some_and(|d| d.contains("the rules decide nothing")), "{proof}");

    // A decision that differs in one number from what the rules decide.
    system.kill_role("orchestrator").await?;
    let exec = system.submit("hello").await?;
    let mut history = History::new(exec);
    let log = bus.read_execution(exec, 0).await?;
    let mut facts = FactsDigest::default();
    for message in &log {
        history.fold(message).expect("the test wrote it");
        facts.add(message.sequence, &message.payload);
    }
    let mut record = history.decide(Rules::current()).expect("a beginning");
    for event in &mut record.events {
        if let Event::InferenceRequested(asked) = event {
            asked.tokens_max += 1;
        }
    }
    let (at, machine, facts_upto) = (record.at, record.machine, record.facts_upto);
    let draft = Draft { exec, n: 0, at, machine, facts_upto, facts: &facts, prev_hash: "" };
    let forged = Record::seal(&draft, record.events);
    assert!(matches!(bus.commit(&forged, history.sequence).await?, Commit::Done(_)));
    let (code, proof) = verify(&system, exec).await?;
    assert_eq!((code, &proof["decision"]), (Some(3), &json!(0)), "{proof}");
    assert!(proof["difference"].as_str().is_some_and(|d| d.contains("tokens_max")), "{proof}");

    let nobody = runtime::clock::execution_id().to_string();
    let ended = system.on_nats(User::Auditor, &["replay", &nobody, "--verify", "--json"]).await?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("there is no execution"), "{ended:?}");
    Ok(())
}
