//! How far each partition is, which the server keeps in memory and forgets when it is stopped.

use anyhow::Context;
use async_nats::jetstream::consumer::Info;
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use pipeline_tests::{PATIENCE, System};
use runtime::bus::{self, Bus};
use schemas::{ExecutionId, Partition, stream, subject};

/// What the server knows of the consumer of a partition's facts; none when there is no such.
async fn consumer(system: &System, partition: Partition) -> anyhow::Result<Option<Info>> {
    let context = async_nats::jetstream::new(system.nats().await?);
    let log = context.get_stream(subject::log_stream(partition)).await?;
    match log.consumer_info("orchestrator").await {
        Ok(info) => Ok(Some(info)),
        Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Waits until every fact of a partition is acknowledged.
async fn dealt_with(system: &System, partition: Partition) -> anyhow::Result<()> {
    let all = async {
        loop {
            let info = consumer(system, partition).await?.context("it is there")?;
            if info.num_pending == 0 && info.num_ack_pending == 0 {
                return anyhow::Ok(());
            }
        }
    };
    tokio::time::timeout(PATIENCE, all).await.context("facts wait")?
}

async fn restart(system: &mut System) -> anyhow::Result<Bus> {
    system.kill_nats().await?;
    system.start_nats().await?;
    system.bus().await
}

#[tokio::test]
async fn a_server_that_was_killed_hands_out_nothing_that_was_dealt_with() -> anyhow::Result<()> {
    let mut system = System::start().await?;
    let exec = system.submit("hello").await?;
    system.ended(exec).await?;
    dealt_with(&system, exec.partition()).await?;
    // The owner does it every two seconds.
    system.bus().await?.keep_place(exec.partition()).await?;

    system.kill_role("orchestrator").await?;
    let bus = restart(&mut system).await?;
    assert!(consumer(&system, exec.partition()).await?.is_none(), "the server forgot it");
    bus::provision(&bus).await?;
    let info = consumer(&system, exec.partition()).await?.context("it was made anew")?;
    assert_eq!(info.num_pending, 0, "nothing comes again: {info:?}");
    assert!(info.config.memory_storage, "it is nothing to write through ten times a second");
    bus::provision(&bus).await?;
    let again = consumer(&system, exec.partition()).await?.context("it is there")?;
    assert_eq!(again.created, info.created, "it knows how far it is, and is left alone");

    system.start_role("orchestrator").await?;
    let next = system.submit("hello again").await?;
    assert_eq!(system.ended(next).await?["status"], "completed");
    system.prove(exec).await?;
    system.prove(next).await?;
    Ok(())
}

#[tokio::test]
async fn what_was_in_hand_when_the_server_was_killed_comes_again() -> anyhow::Result<()> {
    let mut system = System::start_without(&["orchestrator"]).await?;
    let (bus, exec) = (system.bus().await?, runtime::clock::execution_id());
    bus.append_fact(&system.request(exec, "hello", &[])).await?;
    let mut facts = bus.facts(exec.partition()).await?;
    tokio::time::timeout(PATIENCE, async {
        while facts.next().await?.is_none() {}
        anyhow::Ok(())
    })
    .await
    .context("the request is handed out")??;
    bus.keep_place(exec.partition()).await?;
    drop((facts, bus));

    let bus = restart(&mut system).await?;
    bus::provision(&bus).await?;
    let info = consumer(&system, exec.partition()).await?.context("it was made anew")?;
    assert_eq!(info.num_pending, 1, "its request, which nobody acknowledged: {info:?}");
    system.start_role("orchestrator").await?;
    assert_eq!(system.ended(exec).await?["status"], "completed");
    system.prove(exec).await?;
    Ok(())
}

/// A server without `sync_interval: always` may lose the log's end with the power, and then other messages get its
/// sequences.
#[tokio::test]
async fn a_place_in_a_log_that_lost_its_end_hides_no_fact() -> anyhow::Result<()> {
    let mut system = System::start_without(&["orchestrator"]).await?;
    let (bus, exec) = (system.bus().await?, runtime::clock::execution_id());
    let partition = exec.partition();
    let sequence = bus.append_fact(&system.request(exec, "hello", &[])).await?.sequence;
    let places = bus.bucket(stream::BUCKET_OPEN).await?;
    // This sequence was dealt with, when it was another message; and one that is not there was.
    for place in [format!("{sequence} 1"), "1000 1".to_owned()] {
        places.put(format!("{partition}.facts"), place.into()).await?;
        bus::provision(&bus).await?;
        let info = consumer(&system, partition).await?.context("it was made anew")?;
        assert_eq!(info.num_pending, 1, "the request is still to come: {info:?}");
    }
    // Whoever comes next leaves alone what is followed.
    let made = consumer(&system, partition).await?.context("it is there")?.created;
    let others = futures::future::try_join_all((0..4).map(|_| bus::provision(&bus)));
    others.await?;
    assert_eq!(consumer(&system, partition).await?.context("it is there")?.created, made);
    system.start_role("orchestrator").await?;
    assert_eq!(system.ended(exec).await?["status"], "completed");
    system.prove(exec).await?;
    Ok(())
}

/// The owner notices by itself, without a connection that was made anew.
#[tokio::test]
async fn a_consumer_that_is_gone_is_made_anew_where_it_was() -> anyhow::Result<()> {
    let system = System::start().await?;
    let exec = system.submit("hello").await?;
    system.ended(exec).await?;
    dealt_with(&system, exec.partition()).await?;
    let bus = system.bus().await?;
    bus.keep_place(exec.partition()).await?;
    let context = async_nats::jetstream::new(system.nats().await?);
    context.get_stream(subject::log_stream(exec.partition())).await?.delete_consumer("orchestrator").await?;
    bus.keep_place(exec.partition()).await?;
    let info = consumer(&system, exec.partition()).await?.context("it was made anew")?;
    assert_eq!(info.num_pending, 0, "nothing comes again: {info:?}");
    Ok(())
}

/// As an earlier version made it: on disk.
#[tokio::test]
async fn a_consumer_on_disk_goes_on_in_memory_where_it_was() -> anyhow::Result<()> {
    let mut system = System::start().await?;
    let exec = system.submit("hello").await?;
    system.ended(exec).await?;
    dealt_with(&system, exec.partition()).await?;
    system.kill_role("orchestrator").await?;
    let before = on_disk(&system, exec).await?;
    let bus = system.bus().await?;
    bus::provision(&bus).await?;
    let after = consumer(&system, exec.partition()).await?.context("it was made anew")?;
    assert!(after.config.memory_storage, "{after:?}");
    assert_eq!(after.num_pending, 0, "{after:?}");
    assert!(after.ack_floor.stream_sequence >= before.ack_floor.stream_sequence, "{after:?}");
    system.start_role("orchestrator").await?;
    let next = system.submit("hello again").await?;
    assert_eq!(system.ended(next).await?["status"], "completed");
    Ok(())
}

/// Puts a consumer on disk in the place of the one in memory, with everything acknowledged.
async fn on_disk(system: &System, exec: ExecutionId) -> anyhow::Result<Info> {
    use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
    use futures::StreamExt;
    let context = async_nats::jetstream::new(system.nats().await?);
    let log = context.get_stream(subject::log_stream(exec.partition())).await?;
    log.delete_consumer("orchestrator").await?;
    let config = pull::Config {
        durable_name: Some("orchestrator".to_owned()),
        filter_subject: format!("vl.v1.log.{}.*.fact", exec.partition()),
        ack_policy: AckPolicy::Explicit,
        ..pull::Config::default()
    };
    let mut consumer: PullConsumer = log.create_consumer(config).await?;
    let facts = usize::try_from(consumer.info().await?.num_pending)?;
    let mut messages = consumer.fetch().max_messages(facts).messages().await?;
    for _ in 0..facts {
        let fact = messages.next().await.context("a fact")?.map_err(|e| anyhow::anyhow!("{e}"))?;
        fact.double_ack().await.map_err(|e| anyhow::anyhow!("{e}"))?;
    }
    Ok(consumer.info().await?.clone())
}
