//! Dead letters are listed with their reasons, shown with their bytes, redriven and removed.

use async_nats::jetstream;
use pipeline_tests::System;
use schemas::fact::UserMessage;
use schemas::wire::encode;
use schemas::{Fact, FactBody, subject};
use serde_json::{Value, json};

use crate::browser::story;

#[tokio::test]
async fn a_letter_is_read_redriven_when_it_helps_and_removed() -> anyhow::Result<()> {
    let system = System::start_without(&["inference-worker", "analysis-worker"]).await?;
    let context = jetstream::new(system.nats().await?);
    let nobody = runtime::clock::execution_id();
    let message = UserMessage { object: None, id: "m-1".into(), by: None, text: "is anybody there?".into() };
    let early = Fact::new(nobody, runtime::clock::now(), FactBody::UserMessage(message));
    context.publish(subject::fact(nobody), encode(&early).into()).await?.await?;
    context
        .publish(subject::fact(runtime::clock::execution_id()), b"\x93 this is no fact".to_vec().into())
        .await?
        .await?;
    context.publish(subject::tool_job("read_file", nobody), b"no job".to_vec().into()).await?.await?;
    story(&system, "dead-letters", async |browser| {
        browser.open("#/dead-letters").await?;
        browser.until("return document.querySelectorAll('.letters li').length === 3").await?;
        browser.shows("nav .badge", "3").await?;
        browser.keys("j").await?;
        browser.keys("k").await?;
        browser.run("[...document.querySelectorAll('.letters button')].find(b => b.innerText.toLowerCase().includes('unknown execution')).click()").await?;
        browser.shows(".letter", "is anybody there?").await?;
        browser.picture("dead-letters").await?;
        browser.press(".letter .primary").await?;
        // Its execution is still unknown: it would be given up again.
        browser.shows("dialog", "It would be given up again").await?;
        browser.picture("dead-letters-again").await?;
        browser.press("dialog .actions button[type=button]").await?;
        system.bus().await?.append_fact(&system.request(nobody, "hello", &[])).await?;
        browser.press(".letter .primary").await?;
        browser.shows(".letter", "redriven by console").await?;
        browser.run("[...document.querySelectorAll('.letters button')].find(b => b.innerText.toLowerCase().includes('malformed')).click()").await?;
        browser.shows(".letter h2", "malformed").await?;
        browser.press(".letter .danger").await?;
        browser.press("dialog button[type=submit]").await?;
        browser.until("return document.querySelectorAll('.letters li').length === 1").await?;
        let left: Value = system.get("/internal/dead-letters?settled=true").send().await?.json().await?;
        let how = |letter: &Value| letter["settled"]["how"].clone();
        let mut settled: Vec<String> = left["dead_letters"].as_array().into_iter().flatten().map(|l| how(l).to_string()).collect();
        settled.sort();
        assert_eq!((left["waiting"].clone(), settled), (json!(1), vec!["\"redriven\"".into(), "\"removed\"".into(), "null".to_owned()]));
        Ok(())
    })
    .await
}
