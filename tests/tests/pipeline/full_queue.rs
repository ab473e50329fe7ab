//! A queue that is full: what waits for room is tried again and again, and left alone once nobody wants it any more.

use anyhow::Context;
use async_nats::jetstream;
use pipeline_tests::{PATIENCE, System};
use prometheus::Registry;
use runtime::{Runtime, Tasks, clock};
use schemas::fact::{CancelMode, CancelRequested};
use schemas::{Fact, FactBody, stream, subject};
use serde_json::Value;

/// How often any execution was looked at so far.
fn steps(metrics: &Registry) -> anyhow::Result<f64> {
    let families = metrics.gather();
    let steps = families.iter().find(|family| family.name() == "vlinders_steps_total").context("steps are counted")?;
    Ok(steps.get_metric()[0].get_counter().get_value())
}

#[tokio::test]
async fn an_execution_that_was_cancelled_while_its_queue_was_full_is_left_alone() -> anyhow::Result<()> {
    let system = System::start_without(&["orchestrator", "inference-worker"]).await?;
    // The queue takes one job, and has one that nobody takes.
    let context = jetstream::new(system.nats().await?);
    let mut config = context.get_stream(stream::INFERENCE_JOBS).await?.cached_info().config.clone();
    config.max_messages = 1;
    context.update_stream(config).await?;
    context.publish(subject::inference_job("other", clock::execution_id()), "taken".into()).await?.await?;

    let (metrics, tasks) = (Registry::new(), Tasks::new());
    let runtime = Runtime { tasks: tasks.clone(), metrics: metrics.clone(), ..Runtime::new(system.bus().await?) };
    orchestrator::serve(orchestrator::Config::default(), runtime).await?;
    let exec = system.submit("hello").await?;
    system.log_until(exec, |messages| messages.len() == 2).await?;
    // It is tried again, which nothing else than a full queue is a reason for.
    let tried = async {
        let first = steps(&metrics)?;
        while steps(&metrics)? < first + 2.0 {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, tried).await.context("nothing is tried again")??;
    let cancel = CancelRequested { by: "ann".to_owned(), reason: None, mode: CancelMode::Now };
    let cancel = Fact::new(exec, clock::now(), FactBody::CancelRequested(cancel));
    system.bus().await?.append_fact(&cancel).await?;
    assert_eq!(system.ended(exec).await?["status"], "cancelled");
    system.prove(exec).await?;

    // Nothing happens any more, so nothing is looked at: but for a step that the end itself was seen in the middle of. A
    // partition that turns round it looks at it every millisecond or so.
    let before = steps(&metrics)?;
    for _ in 0..100 {
        let view: Value = system.get(&format!("/internal/executions/{exec}")).send().await?.json().await?;
        assert_eq!(view["status"], "cancelled", "{view}");
    }
    let looked = steps(&metrics)? - before;
    assert!(looked <= 1.0, "an execution that has ended was looked at {looked} times");
    tasks.stop();
    assert!(tasks.drained(PATIENCE).await, "the orchestrator did not end");
    Ok(())
}
