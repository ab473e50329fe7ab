//! A request appears in the list while it runs; its page shows the timeline, the words as they come, and its log.

use pipeline_tests::{System, answered};
use schemas::fact::EffectLost;
use schemas::token::FrameKind;
use schemas::{EffectId, Fact, FactBody, Frame};
use serde_json::{Value, json};

use crate::browser::story;
use crate::{agent, lists, played};

#[tokio::test]
async fn the_first_request_is_explained_and_each_appears_as_it_is_made() -> anyhow::Result<()> {
    let system = System::start().await?;
    story(&system, "list", async |browser| {
        browser.open("#/executions").await?;
        if !lists(&system).await? {
            return browser.shows(".notice", "The list of executions cannot be had from this gateway now").await;
        }
        browser.shows(".empty", "Nothing has been asked yet").await?;
        browser.picture("executions-empty").await?;
        // Asked from here, by keyboard alone.
        browser.keys("n").await?;
        browser.find("dialog textarea[name=text]").await?.send_keys("What is a butterfly?").await?;
        browser.picture("request").await?;
        browser.press("dialog button[type=submit]").await?;
        browser.shows(".page.one h1", "What is a butterfly?").await?;
        browser.keys("ge").await?;
        browser.shows(".executions .title", "What is a butterfly?").await?;
        // And from elsewhere, while the list is looked at.
        let body = agent(&system, "Where is TokenReader defined?", &json!({"max_iterations": 4}));
        let (exec, _stream) = system.open("/internal/agent", body).await?;
        browser.shows(".executions .title", "Where is TokenReader defined?").await?;
        system.ended(exec).await?;
        let done = format!("tr[data-key='{exec}'] .status");
        browser.until(&format!("return !['running', 'submitted'].includes(document.querySelector({}).innerText.trim())", json!(done))).await?;
        for text in ["one", "two", "three", "four", "five"] {
            let body = json!({"messages": [{"role": "user", "content": format!("Say {text}.")}], "max_tokens": 12, "user_id": "bob"});
            system.ask("/internal/chat", &body).await?;
        }
        browser.shows(".executions .title", "Say five.").await?;
        browser.picture("executions").await?;
        browser.keys("/").await?;
        browser.keys("three").await?;
        browser.until("return document.querySelectorAll('.executions tbody tr').length === 1").await?;
        browser.until("return location.hash.includes('q=three')").await?;
        browser.picture("executions-found").await?;
        browser.go(&format!("#/executions/{exec}")).await?;
        browser.shows(".page.one .strip", "completed").await?;
        browser.shows(".waterfall .rows", "search_code").await?;
        browser.picture("execution-agent").await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_page_shows_the_timeline_and_the_words_as_they_come() -> anyhow::Result<()> {
    let system = System::start().await?;
    story(&system, "execution", async |browser| {
        let asked =
            json!({"messages": [{"role": "user", "content": "Tell me a long story."}], "max_tokens": 160, "stop": []});
        browser.open("#/models").await?;
        let (exec, _stream) = system.open("/internal/chat", asked).await?;
        browser.run(&format!("location.hash = '#/executions/{exec}'")).await?;
        browser.shows(".page.one h1", "Tell me a long story.").await?;
        browser.find(".waterfall .rows .is-inference").await?;
        browser.picture("execution-live").await?;
        let view = system.ended(exec).await?;
        browser.shows(".page.one .strip", "completed").await?;
        let answer = view["response"].as_str().unwrap_or_default().trim().to_owned();
        let told =
            format!("return document.querySelector('.turn.assistant .text')?.textContent.trim() === {}", json!(answer));
        if !answer.is_empty() {
            browser.until(&told).await?;
        }
        browser.find(".waterfall .piece.decode").await?;
        let rows = browser.run("return document.querySelectorAll('.log .entries li').length").await?;
        let log = system.get(&format!("/internal/executions/{exec}/events")).send().await?.json::<Value>().await?;
        assert_eq!(rows.as_u64(), log.as_array().map(|log| log.len() as u64), "every message of the log has a line");
        browser.press(".log .entries li:last-child summary").await?;
        browser.shows(".log .entries li:last-child .json", "execution.completed").await?;
        let hash =
            log.as_array().and_then(|log| log.last()).map(|last| last["hash"].as_str().unwrap_or_default().to_owned());
        browser.shows(".log .entries li:last-child .json", &hash.unwrap_or_default()).await?;
        browser.press(".waterfall .rows button").await?;
        browser.shows(".effect", "1-infer-0").await?;
        browser.picture("execution-effect").await?;
        browser.keys("3").await?;
        browser.find(".state-at .messages, .state-at .notice").await?;
        browser.picture("execution-state").await?;
        browser.keys("v").await?;
        browser.find(".toast").await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn words_appear_as_they_come() -> anyhow::Result<()> {
    let (system, _tasks) = played().await?;
    story(&system, "words", async |browser| {
        let asked = json!({"messages": [{"role": "user", "content": "Tell me a story."}], "user_id": "ann"});
        let (exec, _stream) = system.open("/internal/chat", asked).await?;
        browser.open(&format!("#/executions/{exec}")).await?;
        browser.find(".turn.assistant.is-open").await?;
        let (bus, effect) = (system.bus().await?, EffectId::inference(1));
        let mut said = String::new();
        for (n, text) in (0..).zip(["A butterfly ", "sat on <b>a log</b> ", "and forgot nothing."]) {
            bus.publish_tokens(exec, &effect, &frame(n, text)).await?;
            bus.flush().await?;
            said.push_str(text);
            browser.shows(".turn.assistant .text.live", said.trim()).await?;
        }
        browser.picture("execution-words").await?;
        system.answer(exec, 1, &said, &[]).await?;
        system.ended(exec).await?;
        browser.shows(".turn.assistant.is-done .text", &said).await?;
        assert_eq!(browser.run("return document.querySelector('.text.live')").await?, Value::Null);
        Ok(())
    })
    .await
}

fn frame(n: u64, text: &str) -> Frame {
    let (ids, text) = (vec![7], text.to_owned());
    Frame { attempt: 1, n, ids, text, k: FrameKind::Delta, finish: None, usage: None, logprobs: Vec::new() }
}

#[tokio::test]
async fn lost_workers_failed_calls_and_what_people_say_stand_in_the_timeline() -> anyhow::Result<()> {
    let (system, _tasks) = played().await?;
    story(&system, "timeline", async |browser| {
        let body = agent(&system, "Read what there is, then say it.", &json!({}));
        let (exec, _stream) = system.open("/internal/agent", body).await?;
        let (bus, effect) = (system.bus().await?, EffectId::inference(1));
        browser.open(&format!("#/executions/{exec}")).await?;
        browser.find(".waterfall .rows .is-inference.is-open").await?;
        let lost = EffectLost { effect, attempt: 1, worker: Some("inference-7f3a".to_owned()) };
        bus.append_fact(&Fact::new(exec, runtime::clock::now(), FactBody::EffectLost(lost))).await?;
        browser.find(".waterfall .piece.lost").await?;
        browser.shows(".waterfall .rows .is-inference", "2 attempts").await?;
        browser.shows(".turn.mark", "worker lost").await?;
        let calls = [
            ("read_file", json!({"path": "src/main.rs"})),
            ("search_code", json!({"query": "TokenReader"})),
            ("read_file", json!({"path": "src/nothing.rs"})),
        ];
        let mut answer = answered(exec, 1, "I look at all three.", &calls);
        if let FactBody::InferenceCompleted(completed) = &mut answer.body {
            completed.attempt = 2;
        }
        bus.append_fact(&answer).await?;
        browser.shows(".waterfall .rows .is-failed", "read_file").await?;
        browser.find(".waterfall .rows .is-inference.is-open").await?;
        // What is said meanwhile stands where it was said.
        browser.press(".page.one .end button:nth-of-type(2)").await?;
        browser.find("dialog textarea[name=text]").await?.send_keys("In one sentence, please.").await?;
        browser.press("dialog button[type=submit]").await?;
        browser.shows(".turn.mark", "In one sentence, please.").await?;
        browser.picture("execution-open").await?;
        system.answer(exec, 2, "TokenReader is defined in src/reader.rs.", &[]).await?;
        system.answer(exec, 3, "TokenReader stands in src/reader.rs, line 3.", &[]).await?;
        system.ended(exec).await?;
        browser.shows(".talk", "TokenReader stands in src/reader.rs, line 3.").await?;
        browser.picture("execution-ended").await?;
        Ok(())
    })
    .await
}

#[tokio::test]
async fn parents_and_children_lead_to_each_other() -> anyhow::Result<()> {
    let (system, _tasks) = played().await?;
    story(&system, "children", async |browser| {
        let body = json!({"agent_type": "planner", "instruction": "Ask others.", "workspace": system.workspace()});
        let (exec, _stream) = system.open("/internal/agent", body).await?;
        let part = |agent: &str, task: &str| ("delegate", json!({"agent": agent, "task": task}));
        system.answer(exec, 1, "", &[part("coder", "find it"), part("researcher", "read it")]).await?;
        browser.open(&format!("#/executions/{exec}")).await?;
        browser.until("return document.querySelectorAll('.waterfall .is-child').length === 2").await?;
        browser.shows(".page.one .strip", "researcher").await?;
        browser.picture("execution-children").await?;
        browser.press(".page.one .strip a").await?;
        browser.shows(".page.one h1", "find it").await?;
        browser.shows(".page.one .strip", "parent").await?;
        browser.press(".page.one .strip a").await?;
        browser.shows(".page.one h1", "Ask others.").await?;
        // And it is cancelled with all that is below it.
        browser.press(".page.one .end .danger").await?;
        browser.press("dialog .danger").await?;
        browser.shows(".page.one .strip", "cancelled").await?;
        browser.until("return document.querySelectorAll('.waterfall .is-child.is-cancelled').length === 2").await?;
        Ok(())
    })
    .await
}
