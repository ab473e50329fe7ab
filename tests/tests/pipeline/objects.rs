//! Content that is too large for a message: it travels as a reference, whoever needs it finds it, and what is lost is
//! said to be.

use async_nats::jetstream;
use pipeline_tests::{System, conversation, events};
use schemas::object::{INLINE_BYTES_MAX, Reference, TEXT, references};
use schemas::permission::User;
use schemas::{Event, ExecutionId, Fact, FactBody, stream};
use serde_json::{Value, json};

const MIB: usize = 1 << 20;

/// A text of so many bytes that does not compress to nothing.
fn long(bytes: usize) -> String {
    let words = (0_u64..).map(|n| format!("{} ", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let mut text = String::with_capacity(bytes + 24);
    for word in words {
        if text.len() >= bytes {
            break;
        }
        text.push_str(&word);
    }
    text.truncate(bytes);
    text
}

async fn object(system: &System, sha256: &str, range: Option<&str>) -> anyhow::Result<(u16, Vec<u8>)> {
    let mut request = system.get(&format!("/internal/objects/{sha256}"));
    if let Some(range) = range {
        request = request.header("Range", range);
    }
    let response = request.send().await?;
    Ok((response.status().as_u16(), response.bytes().await?.to_vec()))
}

/// The audit's exit code and what it found broken.
async fn audit(system: &System) -> anyhow::Result<(Option<i32>, Value)> {
    let ended = system.on_nats(User::Auditor, &["audit", "--json"]).await?;
    Ok((ended.code, serde_json::from_str::<Value>(&ended.stdout)?["broken"].clone()))
}

/// Deletes an object behind the log's back.
async fn lose(system: &System, sha256: &str) -> anyhow::Result<()> {
    let context = jetstream::new(system.nats().await?);
    Ok(context.get_object_store(stream::BUCKET_OBJECTS).await?.delete(sha256).await?)
}

#[tokio::test]
async fn the_whole_of_a_cut_result_is_found_by_the_model_and_by_people() -> anyhow::Result<()> {
    let system = System::start_without(&["inference-worker"]).await?;
    let lines: String = (1..=300).map(|n| format!("let line_{n} = {n};\n")).collect();
    std::fs::write(system.workspace().join("src/long.rs"), &lines)?;
    let exec = runtime::clock::execution_id();
    let mut request = system.request(exec, "read it", &["read_file"]);
    if let FactBody::ExecutionSubmitted(asked) = &mut request.body {
        asked.window = 4_096;
    }
    system.bus().await?.append_fact(&request).await?;
    system.answer(exec, 1, "", &[("read_file", json!({"path": "src/long.rs", "start": 1, "end": 300}))]).await?;
    let read = |messages: &[runtime::bus::Stored], effect: &str| {
        messages.iter().find_map(|m| match Fact::read(&m.payload).ok()?.body {
            FactBody::ToolCompleted(done) if done.effect.to_string() == effect => Some(done),
            _ => None,
        })
    };
    let log = system.log_until(exec, |messages| read(messages, "1-tool-0").is_some()).await?;
    let first = read(&log, "1-tool-0").expect("waited for");
    let full = first.full.clone().expect("a quarter of a window of 4096 tokens holds no 300 lines");
    assert!(first.result.len() <= 2_560 && first.result.starts_with("1: let line_1 = 1;"), "{}", first.result);

    // The model does what it is told, word for word.
    let (shown, mark) = first.result.split_once("\n... (cut; ").expect("a mark");
    let call = mark.split_once("read_file ").expect("a call").1.strip_suffix(')').expect("its end");
    let call: Value = serde_json::from_str(call)?;
    assert_eq!(call["path"], json!(format!("object:{}", full.sha256)), "{mark}");
    system.answer(exec, 2, "", &[("read_file", call)]).await?;
    let log = system.log_until(exec, |messages| read(messages, "2-tool-0").is_some()).await?;
    let next = shown.lines().count() + 1;
    let second = read(&log, "2-tool-0").expect("waited for");
    assert!(second.result.starts_with(&format!("{next}: {next}: let line_{next} = {next};\n")), "{}", second.result);
    assert!(second.result.len() <= 2_560 && second.full.is_none(), "what is read of an object is no object");

    // People get it whole.
    let whole: String = (1..=300).map(|n| format!("{n}: let line_{n} = {n};\n")).collect();
    let (status, found) = object(&system, &full.sha256, None).await?;
    assert_eq!((status, String::from_utf8(found)?.as_str()), (200, whole.trim_end()));
    let (status, found) = object(&system, &full.sha256, Some("bytes=3-20")).await?;
    assert_eq!((status, found.as_slice()), (206, whole.as_bytes()[3..=20].as_ref()));
    assert_eq!(object(&system, &full.sha256, Some("bytes=999999-")).await?.0, 416);
    let file = system.directory().join("whole");
    let ended = system.plain_client(&["object", "get", &full.sha256, "--output", &file.display().to_string()]).await?;
    assert_eq!((ended.code, std::fs::read_to_string(&file)?.as_str()), (Some(0), whole.trim_end()), "{ended:?}");
    let none = "0".repeat(64);
    let ended = system.plain_client(&["object", "get", &none]).await?;
    assert!(ended.code == Some(1) && ended.stderr.contains("is missing"), "{ended:?}");
    assert_eq!(system.plain_client(&["object", "get", "abc"]).await?.code, Some(2));
    let unauthorised = reqwest::get(format!("{}/internal/objects/{}", system.http, full.sha256)).await?;
    assert_eq!(unauthorised.status().as_u16(), 403);

    system.answer(exec, 3, "done", &[]).await?;
    system.ended(exec).await?;
    system.prove(exec).await?;
    assert_eq!(audit(&system).await?, (Some(0), json!([])));
    lose(&system, &full.sha256).await?;
    let (code, broken) = audit(&system).await?;
    assert_eq!((code, broken.as_array().map(Vec::len)), (Some(3), Some(1)), "{broken}");
    assert_eq!(broken[0]["execution_id"], json!(exec), "{broken}");
    assert!(broken[0]["difference"].as_str().is_some_and(|d| d.contains(&full.sha256) && d.contains("missing")));
    Ok(())
}

#[tokio::test]
async fn a_long_prompt_travels_by_reference_and_is_whole_where_it_is_read() -> anyhow::Result<()> {
    let system = System::start().await?;
    // The model's window is small: what is asked is whether the prompt arrives, and is found too long by the model's own
    // tokenizer.
    for bytes in [MIB, 16 * MIB] {
        let text = long(bytes);
        let body = json!({"messages": [{"role": "user", "content": text}]});
        let (exec, _stream) = system.open("/internal/chat", body).await?;
        let log = system.log_until(exec, |messages| messages.len() >= 2).await?;
        let submitted = Fact::read(&log[0].payload)?;
        let reference = Reference::to(text.as_bytes(), TEXT);
        assert_eq!(references(&submitted), [&reference]);
        assert!(log[0].payload.len() < INLINE_BYTES_MAX, "{} bytes in the log", log[0].payload.len());
        let (status, found) = object(&system, &reference.sha256, None).await?;
        assert!(status == 200 && found == text.as_bytes(), "{status}, {} bytes", found.len());
        // The core sees how large it is.
        let measured = events(&log).into_iter().flatten().find_map(|event| match event {
            Event::ContextMeasured(measured) => Some(measured.tokens),
            _ => None,
        });
        assert!(measured.is_some_and(|tokens| tokens >= bytes as u64 * 2 / 5), "{measured:?}");
        let view = system.ended(exec).await?;
        assert_eq!(view["status"], "failed", "{view}");
        let error = view["error"].as_str().unwrap_or_default();
        assert!(error.contains("tokens") && error.contains("window"), "{view}");
        system.prove(exec).await?;
    }
    assert_eq!(audit(&system).await?, (Some(0), json!([])));
    let after = system.submit("hello").await?;
    assert_eq!(system.ended(after).await?["status"], "completed");
    Ok(())
}

#[tokio::test]
async fn a_prompt_that_is_lost_fails_its_execution_and_says_so() -> anyhow::Result<()> {
    let system = System::start().await?;
    let text = long(MIB);
    let reference = Reference::to(text.as_bytes(), TEXT);
    let exec = runtime::clock::execution_id();
    let mut fact = system.request(exec, "", &[]);
    let FactBody::ExecutionSubmitted(request) = &mut fact.body else { panic!("a request") };
    request.messages[0].object = Some(reference.clone());
    system.bus().await?.append_fact(&fact).await?;
    let view = system.ended(exec).await?;
    let error = view["error"].as_str().unwrap_or_default();
    assert!(view["status"] == "failed" && error.contains(&reference.sha256) && error.contains("missing"), "{view}");
    system.prove(exec).await?;
    let (code, broken) = audit(&system).await?;
    assert_eq!((code, &broken[0]["execution_id"]), (Some(3), &json!(exec)), "{broken}");
    // Stored after all, once however often, it is what the fact says.
    let bus = system.bus().await?;
    for _ in 0..2 {
        assert_eq!(bus.put_object(text.as_bytes(), TEXT).await?, reference);
    }
    assert_eq!(audit(&system).await?, (Some(0), json!([])));
    // Other bytes under its name are nobody's prompt.
    let context = jetstream::new(system.nats().await?);
    let store = context.get_object_store(stream::BUCKET_OBJECTS).await?;
    store.put(reference.sha256.as_str(), &mut b"other".as_slice()).await?;
    assert_eq!(object(&system, &reference.sha256, None).await?.0, 502);
    let (code, broken) = audit(&system).await?;
    let said = broken[0]["difference"].as_str().unwrap_or_default();
    assert!(code == Some(3) && said.contains("is damaged"), "{broken}");
    let named = json!({"messages": [{"role": "user", "content": "", "object": Reference::to(b"x", TEXT)}]});
    let (status, problem) = system.ask("/internal/chat", &named).await?;
    assert_eq!((status, &problem["code"]), (400, &json!("invalid_request")), "{problem}");
    Ok(())
}

#[tokio::test]
async fn a_long_word_said_meanwhile_travels_by_reference_and_is_said_once() -> anyhow::Result<()> {
    let system = System::start_without(&["inference-worker"]).await?;
    let exec: ExecutionId = runtime::clock::execution_id();
    system.bus().await?.append_fact(&system.request(exec, "go", &["read_file"])).await?;
    system.log_until(exec, |messages| messages.len() >= 2).await?;
    let text = long(2 * INLINE_BYTES_MAX);
    let path = format!("/internal/executions/{exec}/messages");
    let say = json!({"text": text, "id": "m-1"});
    assert_eq!(system.ask(&path, &say).await?.0, 202);
    system.log_until(exec, |messages| messages.len() >= 3).await?;
    assert_eq!(system.ask(&path, &say).await?.0, 200, "the same once");
    let (status, problem) = system.ask(&path, &json!({"text": "other", "id": "m-1"})).await?;
    assert_eq!((status, &problem["code"]), (409, &json!("message_id_taken")), "{problem}");
    system.answer(exec, 1, "hello", &[]).await?;
    let log = system.log_until(exec, |messages| conversation(exec, messages).len() >= 3).await?;
    let said = conversation(exec, &log).pop().expect("what was said");
    let reference = Reference::to(text.as_bytes(), TEXT);
    assert_eq!((said.object.as_ref(), said.content.as_str()), (Some(&reference), ""));
    assert!(log.iter().all(|stored| stored.payload.len() < INLINE_BYTES_MAX));
    Ok(())
}
