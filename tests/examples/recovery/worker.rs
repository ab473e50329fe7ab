//! `kill -9` of an inference worker in the middle of an answer, while another one waits.

use anyhow::{Context, ensure};
use pipeline_tests::{System, read_events};
use runtime::clock;
use schemas::{EffectId, Event, Fact, FactBody, Record};
use serde_json::{Value, json};

use crate::played::patiently;
use crate::spread;

pub(crate) async fn killed(rounds: usize) -> anyhow::Result<Value> {
    let mut system = System::start().await?;
    let bus = system.bus().await?;
    let (mut lost, mut resumed) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        // At this temperature the end of the turn is one token in thousands.
        let ask =
            json!({"messages": [{"role": "user", "content": "hello"}], "temperature": 10.0, "seed": 7, "cache": false});
        let (exec, mut stream) = system.open("/internal/chat", ask).await?;
        read_events(&mut stream, |events| events.iter().filter(|(name, _)| name == "token").count() > 2).await?;
        let (mut live, mut tokens) = (bus.live(exec).await?, bus.tokens(exec).await?);
        // The one that holds the job is the only one.
        let killed = clock::instant();
        system.kill_role("inference-worker").await?;
        patiently("the loss", async {
            loop {
                let stored = live.next().await.context("the connection closed")?;
                let over = |record: Record| record.events.iter().any(Event::is_terminal);
                ensure!(!Record::read(&stored.payload).is_ok_and(over), "the answer was complete before the kill");
                if Fact::read(&stored.payload).is_ok_and(|fact| matches!(fact.body, FactBody::EffectLost(_))) {
                    return Ok(());
                }
            }
        })
        .await?;
        lost.push(clock::instant() - killed);
        system.start_role("inference-worker").await?;
        let began = clock::instant();
        patiently("the next attempt", async {
            loop {
                let (effect, frame) = tokens.next().await.context("the connection closed")?;
                if effect == EffectId::inference(1) && frame.attempt == 2 {
                    return Ok(());
                }
            }
        })
        .await?;
        resumed.push(clock::instant() - began);
        let (status, _) = system.ask(&format!("/internal/executions/{exec}/cancel"), &json!({})).await?;
        ensure!(status == 202, "the execution had ended: {status}");
        system.ended(exec).await?;
        system.prove(exec).await?;
    }
    Ok(
        json!({"rounds": rounds, "lost_ms": spread(&mut lost), "next_token_after_new_worker_ready_ms": spread(&mut resumed)}),
    )
}
