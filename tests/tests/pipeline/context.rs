//! Conversations beyond the model's window.

use pipeline_tests::{System, conversation, events};
use schemas::{Event, ExecutionId};
use serde_json::{Value, json};

/// So many questions and answers, and a greeting that is still to be answered.
fn talk(exchanges: usize) -> Vec<Value> {
    let said = |n: usize| {
        let answer = format!("Registry is defined in src/part_{n}.rs:{}.", 10 + n);
        [
            json!({"role": "user", "content": "Where is Registry defined?"}),
            json!({"role": "assistant", "content": answer}),
        ]
    };
    (0..exchanges).flat_map(said).chain([json!({"role": "user", "content": "hello"})]).collect()
}

#[tokio::test]
async fn a_conversation_beyond_the_window_is_summarised_and_goes_on() -> anyhow::Result<()> {
    let system = System::start().await?;
    let (status, answer) = system.ask("/internal/chat", &json!({"messages": talk(32), "temperature": 0})).await?;
    assert_eq!(status, 200, "{answer}");
    let exec: ExecutionId = answer["execution_id"].as_str().expect("an id").parse()?;
    let log = system.prove(exec).await?;
    let decided = events(&log);
    let asked = |event: &Event| matches!(event, Event::CompressionRequested(_));
    let waits = decided[0].iter().any(asked) && !decided[0].iter().any(|e| matches!(e, Event::InferenceRequested(_)));
    assert!(waits, "nothing is asked while the window is too full: {:?}", decided[0]);
    let replaced = decided.iter().flatten().find_map(|event| match event {
        Event::ContextReplaced(replaced) => Some(replaced),
        _ => None,
    });
    let replaced = replaced.expect("something was replaced");
    assert!(replaced.summary.is_some() && replaced.tokens < 1_024 * 3 / 4, "{replaced:?}");
    let read = conversation(exec, &log);
    assert!(read.len() < 40, "{} messages are left", read.len());
    let summary = read.iter().position(|m| m.content.starts_with("Summary of what came before: ")).expect("a summary");
    assert_eq!(summary as u64, replaced.from, "it stands where they stood");
    assert_eq!(read[read.len() - 2].content, "hello", "what was said last is whole");
    Ok(())
}

#[tokio::test]
async fn a_conversation_goes_on_however_long_it_has_become() -> anyhow::Result<()> {
    let system = System::start().await?;
    let mut before: Option<ExecutionId> = None;
    for turn in 0..4 {
        let mut ask = json!({"messages": talk(16), "temperature": 0});
        if let Some(before) = before {
            ask["conversation_id"] = json!(before);
        }
        let (status, answer) = system.ask("/internal/chat", &ask).await?;
        assert_eq!(status, 200, "turn {turn}: {answer}");
        let prompt = answer["usage"]["prompt_tokens"].as_u64().expect("a count");
        println!("turn {turn}: {prompt} tokens in the prompt");
        assert!(prompt < 1_024, "{answer}");
        if turn > 0 {
            assert!(prompt > 500, "turn {turn} reads what was said before: {answer}");
        }
        let exec = answer["execution_id"].as_str().expect("an id").parse()?;
        system.prove(exec).await?;
        before = Some(exec);
    }
    Ok(())
}

#[tokio::test]
async fn a_conversation_beyond_the_window_loses_its_oldest_exchanges_if_asked() -> anyhow::Result<()> {
    let system = System::start().await?;
    let ask = json!({"messages": talk(60), "truncation": "auto"});
    let (status, answer) = system.ask("/internal/chat", &ask).await?;
    assert_eq!(status, 200, "{answer}");
    let dropped = answer["dropped_messages"].as_u64().expect("it says so") as usize;
    assert!(dropped > 0 && dropped.is_multiple_of(2), "{answer}");
    let exec: ExecutionId = answer["execution_id"].as_str().expect("an id").parse()?;
    let decided = events(&system.prove(exec).await?);
    assert!(!decided.iter().flatten().any(|event| matches!(event, Event::CompressionRequested(_))), "{decided:?}");

    let rest = json!({"messages": talk(60).split_off(dropped), "truncation": "auto"});
    let (_, same) = system.ask("/internal/chat", &rest).await?;
    assert_eq!((&same["response"], same.get("dropped_messages")), (&answer["response"], None), "{same}");
    assert_eq!(same["usage"]["prompt_tokens"], answer["usage"]["prompt_tokens"]);

    let long = json!({"messages": [{"role": "user", "content": "word ".repeat(5_000)}], "truncation": "auto"});
    let (status, problem) = system.ask("/internal/chat", &long).await?;
    assert_eq!((status, &problem["code"]), (413, &json!("overflow")), "{problem}");
    assert!(problem["detail"].as_str().is_some_and(|why| why.contains("the window of tiny holds 1024")), "{problem}");
    Ok(())
}
