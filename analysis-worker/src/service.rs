//! The shell: presence, liveness, and the question `vl.v1.rpc.analysis`.

use std::sync::Arc;
use std::time::Duration;

use runtime::{Runtime, Tasks, bus, clock};
use schemas::presence::{Holds, Worker};
use schemas::rpc::{Analyse, Outline, Refusal, Reply};
use schemas::{stream, subject};
use tokio::sync::Semaphore;

use crate::analysis::{Limits, analyze};
use crate::config::Config;
use crate::outline::{outline, refused};

/// Why the worker does not serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bus does not do what is needed.
    #[error(transparent)]
    Bus(#[from] bus::Error),
}

/// How often the presence is renewed: twice may be missed.
const RENEW_EVERY: Duration = Duration::from_secs(stream::WORKER_ENTRY_TTL.as_secs() / 3);

/// Starts to serve and returns; the tasks live in `runtime` until shutdown.
pub async fn serve(config: Config, runtime: Runtime) -> Result<(), Error> {
    let (bus, tasks) = (runtime.bus, runtime.tasks);
    let slots = config.slots.clamp(1, 64);
    let worker = Worker {
        id: format!("analysis-{}", clock::process_token()),
        role: "analysis".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        slots,
        models: Vec::new(),
        tools: Vec::new(),
        inference: None,
        sandbox: None,
        refused: Vec::new(),
    };
    // Questions are no effects: an orchestrator has nothing to ask this worker back.
    let alive = Tasks::new();
    bus.serve_liveness(&alive, &worker.id, Holds::default).await?;
    let permits = Arc::new(Semaphore::new(slots as usize));
    let answer = move |question: Analyse| {
        let (permits, config) = (permits.clone(), config.clone());
        async move {
            let _permit = permits.acquire_owned().await.expect("the semaphore is never closed");
            let parsed = tokio::task::spawn_blocking(move || answered(&question, &config)).await;
            parsed.unwrap_or_else(|_| {
                Reply::Err(Refusal { code: "internal".to_owned(), detail: "the parser crashed".to_owned() })
            })
        }
    };
    bus.serve(&tasks, subject::RPC_ANALYSIS, answer).await?;
    let bucket = bus.bucket(stream::BUCKET_WORKERS).await?;
    let soft = tasks.soft();
    tracing::info!(worker = worker.id, slots, "analysing code");
    let present = alive.hard();
    tasks.spawn(async move {
        // The sign of life ends with the presence, also when this task is dropped at the hard token.
        let _while_present = present.drop_guard();
        loop {
            let entry = schemas::wire::encode(&worker);
            if let Err(error) = bucket.put(&worker.id, entry.into()).await {
                tracing::warn!(%error, "the presence was not renewed");
            }
            tokio::select! {
                () = soft.cancelled() => break,
                () = tokio::time::sleep(RENEW_EVERY) => {}
            }
        }
        if let Err(error) = bucket.delete(&worker.id).await {
            tracing::debug!(%error, "the presence was not withdrawn; it expires by itself");
        }
    });
    Ok(())
}

fn answered(question: &Analyse, config: &Config) -> Reply<Outline> {
    let limits = Limits { code_bytes_max: config.code_bytes_max, ..Limits::default() };
    let started = clock::instant();
    let time = Duration::from_millis(config.parse_timeout_ms);
    let expired = || clock::instant().duration_since(started) > time;
    match analyze(&question.path, &question.code, &limits, expired) {
        Ok(analysis) => Reply::Ok(outline(&analysis)),
        Err(refusal) => refused(&refusal, &question.code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(path: &str, code: &str, config: &Config) -> Reply<Outline> {
        let question = Analyse { path: path.to_owned(), code: code.to_owned() };
        answered(&question, config)
    }

    #[test]
    fn a_question_has_an_outline_or_a_reason() {
        let config = Config::default();
        assert!(matches!(ask("a.py", "import os\n", &config), Reply::Ok(o) if o.imports == ["os"]));
        let refusal = ask("a.py", "import os\0", &config);
        assert!(matches!(refusal, Reply::Err(r) if r.detail == "cannot analyze a.py: it is a binary file"));
    }

    #[test]
    fn the_configured_time_is_kept() {
        let config = Config { parse_timeout_ms: 0, ..Config::default() };
        let code = "fn f() { let x = vec![1, 2, 3]; }\n".repeat(5_000);
        assert!(matches!(ask("a.rs", &code, &config), Reply::Err(r) if r.detail.contains("took too long")));
    }
}
