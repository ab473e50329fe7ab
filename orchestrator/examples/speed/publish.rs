//! What the bus alone can do: facts appended and acknowledged, nobody listening.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use runtime::{Runtime, clock};
use schemas::fact::{CancelMode, CancelRequested};
use schemas::{Fact, FactBody};
use serde_json::{Value, json};

use crate::{execution_of, spread};

/// With its envelope, about the size of a result.
const REASON_BYTES: usize = 256;

pub(crate) async fn run(
    runtime: &Runtime,
    in_flight: usize,
    partitions: u8,
    duration: Duration,
) -> anyhow::Result<Value> {
    let times = Arc::new(Mutex::new(Vec::new()));
    let until = clock::instant() + duration;
    let publishers = (0..in_flight).map(|_| async {
        while clock::instant() < until {
            let exec = execution_of(partitions - 1);
            let body = CancelRequested {
                by: "bench".to_owned(),
                reason: Some("x".repeat(REASON_BYTES)),
                mode: CancelMode::Now,
            };
            let fact = Fact::new(exec, clock::now(), FactBody::CancelRequested(body));
            let began = clock::instant();
            runtime.bus.append_fact(&fact).await?;
            times.lock().expect("no panic").push(began.elapsed());
        }
        anyhow::Ok(())
    });
    futures::future::try_join_all(publishers).await?;
    let mut times = std::mem::take(&mut *times.lock().expect("no panic"));
    Ok(json!({"per_second": times.len() as f64 / duration.as_secs_f64(), "publish_ms": spread(&mut times)}))
}
