//! Messages that are given up: each becomes one letter that says where it came from, why, and what to do; everything else
//! goes on, and what was given up can be sent again or removed.

use anyhow::{Context, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::PullConsumer;
use async_nats::jetstream::{self, AckKind};
use futures::StreamExt;
use pipeline_tests::{PATIENCE, System, conversation, events};
use runtime::bus::KeptLetter;
use schemas::dead_letter::Reason;
use schemas::fact::{Sandbox, ToolCompleted, UserMessage};
use schemas::permission::User;
use schemas::wire::{Schema, encode};
use schemas::{EffectId, ExecutionId, Fact, FactBody, Job, ToolJob, stream, subject};
use serde_json::{Value, json};

/// Publishes bytes as anybody may who reaches the bus; returns the sequence they were stored at.
async fn publish(system: &System, subject: String, payload: Vec<u8>) -> anyhow::Result<u64> {
    let context = jetstream::new(system.nats().await?);
    let mut headers = HeaderMap::new();
    headers.insert("Vl-Note", "as it was");
    Ok(context.publish_with_headers(subject, headers, payload.into()).await?.await?.sequence)
}

/// Waits until letters are there that `enough` looks for.
async fn letters(system: &System, enough: impl Fn(&[KeptLetter]) -> bool) -> anyhow::Result<Vec<KeptLetter>> {
    let bus = system.bus().await?;
    let client = system.nats().await?;
    // Whatever is published there may be a letter.
    let mut seen = client.subscribe("vl.v1.dlq.>").await?;
    client.flush().await?;
    let wait = async {
        loop {
            if let Ok(found) = bus.dead_letters(0, 100, true).await
                && enough(&found)
            {
                return found;
            }
            let _ = tokio::time::timeout(std::time::Duration::from_secs(1), seen.next()).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.with_context(|| format!("no such letter:\n{}", system.log()))
}

fn said(exec: ExecutionId, text: &str) -> Fact {
    let message = UserMessage { object: None, id: "m-1".into(), by: None, text: text.into() };
    Fact::new(exec, runtime::clock::now(), FactBody::UserMessage(message))
}

fn result(exec: ExecutionId, effect: &str) -> anyhow::Result<Fact> {
    let effect: EffectId = effect.parse()?;
    let (worker, result, sandbox) = ("nobody".to_owned(), "out of nowhere".to_owned(), Sandbox::default());
    let body = ToolCompleted { full: None, effect, attempt: 1, worker, result, duration_us: 1, sandbox };
    Ok(Fact::new(exec, runtime::clock::now(), FactBody::ToolCompleted(body)))
}

fn one<'a>(letters: &'a [KeptLetter], stream: &str, sequence: u64) -> &'a KeptLetter {
    let found: Vec<_> =
        letters.iter().filter(|kept| kept.letter.stream == stream && kept.letter.sequence == sequence).collect();
    assert_eq!(found.len(), 1, "one letter about {stream} at {sequence}: {letters:#?}");
    found[0]
}

#[tokio::test]
async fn what_nobody_can_use_becomes_one_letter_and_everything_else_goes_on() -> anyhow::Result<()> {
    let mut system = System::start().await?;
    let ended = system.submit("hello").await?;
    system.ended(ended).await?;
    let other = runtime::clock::execution_id();
    let nobody = runtime::clock::execution_id();
    let open = runtime::clock::execution_id();

    // An execution that waits for its model, and is told things that nobody can read.
    system.kill_role("inference-worker").await?;
    system.bus().await?.append_fact(&system.request(open, "hello", &[])).await?;
    system.log_until(open, |messages| messages.len() == 2).await?;
    let corrupt = publish(&system, subject::fact(open), b"\x93junk".to_vec()).await?;
    let future = json!({"schema": "fact/2.0", "exec": open, "what": {"nobody": "knows"}});
    let future_at = publish(&system, subject::fact(open), encode(&future)).await?;
    let decision = publish(&system, subject::decision(open), b"no decision".to_vec()).await?;
    let foreign = publish(&system, subject::fact(open), encode(&said(other, "to somebody else"))).await?;
    // Facts that nobody waits for.
    let unknown = publish(&system, subject::fact(nobody), encode(&said(nobody, "is anybody there?"))).await?;
    let never = publish(&system, subject::fact(ended), encode(&result(ended, "9-tool-0")?)).await?;
    let stray = publish(&system, format!("vl.v1.log.{}.nobody.fact", open.partition()), b"x".to_vec()).await?;
    // What is no job.
    let job = publish(&system, subject::tool_job("read_file", open), b"no job".to_vec()).await?;

    let expected = [
        (open, corrupt, Reason::Malformed),
        (open, future_at, Reason::UnknownVersion),
        (open, foreign, Reason::Malformed),
        (nobody, unknown, Reason::UnknownExecution),
        (ended, never, Reason::NeverAskedFor),
        (open, stray, Reason::Misplaced),
    ];
    let found = letters(&system, |letters| letters.len() > expected.len()).await?;
    for (exec, sequence, reason) in expected {
        let kept = one(&found, &subject::log_stream(exec.partition()), sequence);
        assert_eq!(kept.letter.reason, reason, "{kept:#?}");
        assert!(kept.letter.by.starts_with("orchestrator-"), "{kept:#?}");
        assert_eq!(kept.letter.headers["Vl-Note"], ["as it was"], "{kept:#?}");
    }
    let kept = &one(&found, &subject::log_stream(open.partition()), corrupt).letter;
    assert_eq!((kept.payload.as_deref(), kept.exec), (Some(b"\x93junk".as_slice()), Some(open)));
    assert_eq!(kept.subject, subject::fact(open));
    let kept = one(&found, stream::TOOL_JOBS, job);
    assert_eq!((kept.letter.reason, kept.letter.payload.as_deref()), (Reason::Malformed, Some(b"no job".as_slice())));
    assert!(kept.letter.by.starts_with("tool-worker-"), "{kept:#?}");

    // Whoever takes the execution over meets the decision, too, and writes no second letter about anything.
    system.kill_role("orchestrator").await?;
    system.start_role("orchestrator").await?;
    let found = letters(&system, |letters| letters.len() >= expected.len() + 2).await?;
    let kept = one(&found, &subject::log_stream(open.partition()), decision);
    assert_eq!(kept.letter.reason, Reason::Malformed, "{kept:#?}");

    // The execution that was told all this goes on, others too, and the log is what the rules made it, but for what
    // somebody forged into it.
    system.start_role("inference-worker").await?;
    assert_eq!(system.ended(open).await?["status"], "completed");
    let after = system.submit("hello").await?;
    assert_eq!(system.ended(after).await?["status"], "completed");
    system.prove(after).await?;
    assert_eq!(letters(&system, |_| true).await?, found);

    let health: Value = system.get("/health").send().await?.json().await?;
    assert_eq!(health["parts"]["dead_letters"]["waiting"], json!(found.len()), "{health}");
    assert_eq!(health["ready"], json!(true), "letters hold nothing up: {health}");
    let metrics = system.get("/metrics").send().await?.text().await?;
    assert!(metrics.contains(&format!("vlinders_dead_letters_waiting {}", found.len())), "{metrics}");
    let audit = system.on_nats(User::Auditor, &["audit", "--json"]).await?;
    let audit: Value = serde_json::from_str(&audit.stdout)?;
    let broken: Vec<&Value> = audit["broken"].as_array().context("a list")?.iter().collect();
    ensure!(broken.iter().all(|b| b["sequence"] == json!(decision)) && broken.len() == 1, "{audit}");
    Ok(())
}

#[tokio::test]
async fn a_word_that_came_before_its_execution_is_sent_again_once_the_request_is_there() -> anyhow::Result<()> {
    let system = System::start_without(&["inference-worker"]).await?;
    let exec = runtime::clock::execution_id();
    let sequence = publish(&system, subject::fact(exec), encode(&said(exec, "and be brief"))).await?;
    let found = letters(&system, |letters| letters.len() == 1).await?;
    let id = found[0].letter.id();
    assert_eq!((found[0].letter.reason, found[0].letter.sequence), (Reason::UnknownExecution, sequence));

    let (code, listed) = system.client(&["dead-letters", "ls"]).await?;
    assert_eq!((code, &listed["waiting"], &listed["dead_letters"][0]["id"]), (Some(0), &json!(1), &json!(id)));
    let (code, shown) = system.client(&["dead-letters", "show", &id]).await?;
    assert_eq!((code, &shown["message"]["body"]["data"]["text"]), (Some(0), &json!("and be brief")), "{shown}");
    assert!(shown["next_step"].as_str().is_some_and(|s| s.contains("request")), "{shown}");
    let (code, problem) = system.client(&["dead-letters", "redrive", &id]).await?;
    assert_eq!((code, &problem["code"]), (Some(1), &json!("still_dead")), "{problem}");
    let (code, problem) = system.client(&["dead-letters", "show", "nothing-of-the-kind"]).await?;
    assert_eq!((code, &problem["code"]), (Some(1), &json!("unknown_dead_letter")), "{problem}");

    // What was said first stands in the log before the request, and the proof holds all the same.
    system.bus().await?.append_fact(&system.request(exec, "hello", &[])).await?;
    system.log_until(exec, |messages| !events(messages).is_empty()).await?;
    let (code, settled) = system.client(&["dead-letters", "redrive", &id, "--by", "ann"]).await?;
    assert_eq!(
        (code, &settled["settled"]["how"], &settled["settled"]["by"]),
        (Some(0), &json!("redriven"), &json!("ann"))
    );
    let (_, listed) = system.client(&["dead-letters", "ls"]).await?;
    assert_eq!((&listed["waiting"], &listed["dead_letters"]), (&json!(0), &json!([])), "{listed}");
    let (_, listed) = system.client(&["dead-letters", "ls", "--all"]).await?;
    assert_eq!(listed["dead_letters"][0]["settled"]["how"], "redriven", "{listed}");
    let (code, problem) = system.client(&["dead-letters", "redrive", &id]).await?;
    assert_eq!((code, &problem["code"]), (Some(1), &json!("dead_letter_settled")), "{problem}");
    let log = system.log_until(exec, |messages| messages.len() >= 4).await?;
    let again = Fact::read(&log.last().context("a message")?.payload)?;
    assert!(matches!(&again.body, FactBody::UserMessage(m) if m.text == "and be brief"), "{again:?}");
    system.answer(exec, 1, "hello", &[]).await?;
    system.answer(exec, 2, "hi", &[]).await?;
    system.ended(exec).await?;
    let log = system.prove(exec).await?;
    assert!(conversation(exec, &log).iter().any(|m| m.content == "and be brief"));
    Ok(())
}

#[tokio::test]
async fn a_forced_letter_is_sent_as_it_was_and_a_removed_one_stays_removed() -> anyhow::Result<()> {
    let mut system = System::start_without(&["inference-worker"]).await?;
    let exec = runtime::clock::execution_id();
    system.bus().await?.append_fact(&system.request(exec, "hello", &[])).await?;
    system.log_until(exec, |messages| messages.len() == 2).await?;
    publish(&system, subject::fact(exec), b"junk".to_vec()).await?;
    let forged = publish(&system, subject::decision(exec), b"no decision".to_vec()).await?;
    let first = letters(&system, |letters| letters.len() == 1).await?.remove(0).letter;
    let id = first.id();
    let redrive = format!("/internal/dead-letters/{id}/redrive");
    let (status, problem) = system.ask(&redrive, &json!({})).await?;
    assert_eq!((status, &problem["code"]), (409, &json!("still_dead")), "{problem}");
    let (status, settled) = system.ask(&redrive, &json!({"force": true})).await?;
    assert_eq!((status, &settled["settled"]["how"]), (200, &json!("redriven")), "{settled}");
    // Sent as it was, it is given up as it was: by a letter of its own.
    let new = settled["settled"]["sequence"].as_u64().context("where it is now")?;
    let found = letters(&system, |letters| letters.iter().any(|kept| kept.letter.sequence == new)).await?;
    let second = &one(&found, &first.stream, new).letter;
    assert_eq!((&second.payload, &second.headers["Vl-Note"]), (&first.payload, &first.headers["Vl-Note"]));

    let http = system.http.clone();
    let path = move |id: &str| format!("{http}/internal/dead-letters/{id}");
    let delete = |id: &str| reqwest::Client::new().delete(path(id)).header("X-Internal-Auth", "test-secret");
    let removed = delete(&second.id()).send().await?;
    assert_eq!(
        (removed.status().as_u16(), &removed.json::<Value>().await?["settled"]["how"]),
        (200, &json!("removed"))
    );
    let kept = system.bus().await?.dead_letter(&second.id()).await?.context("what remains")?;
    assert_eq!((kept.letter.payload, kept.letter.reason), (None, Reason::Malformed));
    // The forged decision is met whenever the log is read, and can never be sent again.
    system.kill_role("orchestrator").await?;
    system.start_role("orchestrator").await?;
    system.answer(exec, 1, "hello", &[]).await?;
    system.ended(exec).await?;
    let found = letters(&system, |letters| letters.iter().any(|kept| kept.letter.sequence == forged)).await?;
    let decision = one(&found, &first.stream, forged).letter.id();
    let (status, problem) =
        system.ask(&format!("/internal/dead-letters/{decision}/redrive"), &json!({"force": true})).await?;
    assert_eq!((status, &problem["code"]), (409, &json!("not_redrivable")), "{problem}");
    assert_eq!(delete(&decision).send().await?.status().as_u16(), 200);
    system.kill_role("orchestrator").await?;
    system.start_role("orchestrator").await?;
    let after = runtime::clock::execution_id();
    system.bus().await?.append_fact(&system.request(after, "hello", &[])).await?;
    // Reads the log of the first one again, and with it the forged decision.
    publish(&system, subject::fact(exec), encode(&said(exec, "too late"))).await?;
    system.answer(after, 1, "hello", &[]).await?;
    system.ended(after).await?;
    assert_eq!(system.bus().await?.dead_letters_waiting().await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_job_that_nobody_finishes_is_given_up_and_is_carried_out_when_it_is_sent_again() -> anyhow::Result<()> {
    let mut system = System::start_without(&["inference-worker", "tool-worker"]).await?;
    let exec = runtime::clock::execution_id();
    let now = runtime::clock::now();
    let job = ToolJob {
        schema: ToolJob::SCHEMA.to_owned(),
        exec,
        effect: "1-tool-0".parse()?,
        attempt: 1,
        deadline: now + 120_000_000_000,
        queued_at: now,
        trace: Default::default(),
        tool: "read_file".to_owned(),
        arguments: json!({"path": "src/main.rs"}).to_string(),
        workspace: Some(system.workspace().display().to_string()),
        user_id: None,
        result_bytes_max: 0,
        agent: String::new(),
        approved: false,
        fresh: false,
    };
    let sequence = publish(&system, job.subject(), encode(&job)).await?;
    // The tools' consumer, whose workers all fall over.
    system.bus().await?.tool_jobs().await?;
    let context = jetstream::new(system.nats().await?);
    let tools: PullConsumer = context.get_consumer_from_stream("tools", stream::TOOL_JOBS).await?;
    let expires = std::time::Duration::from_secs(5);
    for delivery in 1..=stream::JOB_DELIVERIES_MAX {
        let mut batch = tools.fetch().max_messages(1).expires(expires).messages().await?;
        let message =
            batch.next().await.with_context(|| format!("delivery {delivery}"))?.map_err(anyhow::Error::from_boxed)?;
        message.ack_with(AckKind::Nak(None)).await.map_err(anyhow::Error::from_boxed)?;
    }
    // The server gives up when it would hand it out once more: somebody must ask for that.
    let mut asking = tools.fetch().max_messages(1).expires(expires).messages().await?;
    let found = letters(&system, |letters| !letters.is_empty()).await?;
    ensure!(asking.next().await.is_none(), "it was handed out once more");
    let kept = &one(&found, stream::TOOL_JOBS, sequence).letter;
    assert_eq!((kept.reason, kept.payload.as_ref()), (Reason::GivenUp, Some(&encode(&job))), "{kept:#?}");
    assert!(kept.detail.contains("6 times") && kept.exec == Some(exec), "{kept:#?}");
    let mut queue = context.get_stream(stream::TOOL_JOBS).await?;
    assert_eq!(queue.info().await?.state.messages, 0, "it takes no room for ever");

    // One that a worker of others took off without a word is noted, and cannot be sent again.
    drop(asking);
    let taken_off = publish(&system, job.subject(), encode(&ToolJob { attempt: 2, ..job.clone() })).await?;
    let mut batch = tools.fetch().max_messages(1).expires(expires).messages().await?;
    let message = batch.next().await.context("the second job")?.map_err(anyhow::Error::from_boxed)?;
    message.ack_with(AckKind::Term).await.map_err(anyhow::Error::from_boxed)?;
    let noted = letters(&system, |letters| letters.len() == 2).await?;
    let noted = &one(&noted, stream::TOOL_JOBS, taken_off).letter;
    assert_eq!((noted.reason, &noted.payload), (Reason::Terminated, &None), "{noted:#?}");
    let (code, problem) = system.client(&["dead-letters", "redrive", &noted.id(), "--force"]).await?;
    assert_eq!((code, &problem["code"]), (Some(1), &json!("not_redrivable")), "{problem}");
    assert_eq!(system.client(&["dead-letters", "rm", &noted.id()]).await?.0, Some(0));

    system.start_role("tool-worker").await?;
    let (code, settled) = system.client(&["dead-letters", "redrive", &kept.id()]).await?;
    assert_eq!((code, &settled["settled"]["how"]), (Some(0), &json!("redriven")), "{settled}");
    let log = system.log_until(exec, |messages| !messages.is_empty()).await?;
    let FactBody::ToolCompleted(done) = Fact::read(&log[0].payload)?.body else { panic!("{log:?}") };
    assert!(done.result.contains("use crate::reader::TokenReader"), "{}", done.result);
    // Nobody asked for it: the result of the job is the next letter.
    let found = letters(&system, |letters| letters.len() == 3).await?;
    let kept = one(&found, &subject::log_stream(exec.partition()), log[0].sequence);
    assert_eq!(kept.letter.reason, Reason::UnknownExecution);
    Ok(())
}
