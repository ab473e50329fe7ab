//! The shell: presence, liveness, jobs, and the questions that are answered from code and from the index.

use std::sync::Arc;
use std::time::Duration;

use runtime::{Runtime, Tasks, bus, clock};
use schemas::code::{AskCode, Indexed, SearchCode};
use schemas::memory::Ask;
use schemas::presence::{Vectors, Worker};
use schemas::rpc::{Analyse, Outline, Refusal, Reply};
use schemas::{stream, subject};
use tokio::sync::Semaphore;

use crate::analysis::analyze;
use crate::catalogue::Catalogue;
use crate::config::Config;
use crate::embedder::Embedder;
use crate::indexer::{COLLECTION, Indexer};
use crate::jobs::Jobs;
use crate::memory::Memory;
use crate::outline::{outline, refused};
use crate::overview::Overview;
use crate::search::{Search, refusal};
use crate::vectors::{self, Filter, VectorStore};
use crate::workspace::{self, Roots};

/// Why the worker does not serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bus does not do what is needed.
    #[error(transparent)]
    Bus(#[from] bus::Error),
    /// A configured workspace root cannot be used.
    #[error(transparent)]
    Workspace(#[from] workspace::Error),
    /// The vectors cannot be kept where they should be.
    #[error(transparent)]
    Vectors(#[from] vectors::Error),
    /// A setting is wrong; the text names it.
    #[error("{0}")]
    Settings(String),
}

/// How often the presence is renewed: twice may be missed.
const RENEW_EVERY: Duration = Duration::from_secs(stream::WORKER_ENTRY_TTL.as_secs() / 3);

/// Starts to serve and returns; the tasks live in `runtime` until shutdown.
pub async fn serve(config: Config, runtime: Runtime) -> Result<(), Error> {
    config.check().map_err(Error::Settings)?;
    let (bus, tasks) = (runtime.bus, runtime.tasks);
    let slots = config.slots.clamp(1, 64);
    let id = format!("analysis-{}", clock::process_token());
    let roots = Roots::open(&config.workspaces)?;
    let store = vectors::open(&config.vectors, &bus, &tasks).await?;
    let embedder = Arc::new(Embedder::new(bus.clone(), config.embedding_model.clone()));
    let catalogue = Arc::new(Catalogue::new(bus.clone(), tasks.clone()));
    let permits = Arc::new(Semaphore::new(slots as usize));

    let (parsing, limits) = (permits.clone(), config.clone());
    let analyse = move |question: Analyse| parsed(question, parsing.clone(), limits.clone());
    bus.serve(&tasks, subject::RPC_ANALYSIS, analyse).await?;
    let search = Search { catalogue: catalogue.clone(), store: store.clone(), embedder: embedder.clone() };
    let search = Arc::new(search);
    let overview = Arc::new(Overview::new(search.clone()));
    let look = move |question: AskCode| {
        let overview = overview.clone();
        async move { reply(Box::pin(overview.answer(question)).await) }
    };
    bus.serve(&tasks, subject::RPC_CODE, look).await?;
    let find = move |question: SearchCode| {
        let search = search.clone();
        async move { reply(Box::pin(search.search(question)).await) }
    };
    bus.serve(&tasks, subject::RPC_SEARCH, find).await?;
    let memory = Arc::new(Memory { store: store.clone(), embedder: embedder.clone() });
    let remember = move |question: Ask| {
        let memory = memory.clone();
        async move { reply(Box::pin(memory.answer(question)).await) }
    };
    bus.serve(&tasks, subject::RPC_MEMORY, remember).await?;
    let listed = catalogue.clone();
    let list = move |(): ()| {
        let catalogue = listed.clone();
        async move { reply(indexed(&catalogue).await) }
    };
    bus.serve(&tasks, subject::RPC_INDEXES, list).await?;

    let worker = Worker {
        id: id.clone(),
        role: "analysis".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        slots,
        models: Vec::new(),
        tools: Vec::new(),
        inference: None,
        sandbox: None,
        refused: Vec::new(),
        vectors: None,
        cache: None,
    };
    // Signs of life and cancels matter as long as work is in hand, which is neither the soft nor the hard token.
    let alive = Tasks::new();
    let indexer =
        Indexer { bus: bus.clone(), roots, catalogue, store: store.clone(), embedder: embedder.clone(), config };
    let jobs = Arc::new(Jobs::new(id.clone(), bus.clone(), indexer));
    let holder = jobs.clone();
    bus.serve_liveness(&alive, &id, move || holder.holds()).await?;
    jobs.start(slots, &tasks, &alive).await?;
    let bucket = bus.bucket(stream::BUCKET_WORKERS).await?;
    let soft = tasks.soft();
    tracing::info!(worker = id, slots, vectors = store.describe(), "analysing and indexing code");
    tasks.spawn(async move {
        loop {
            let vectors = Some(state(&*store, &embedder).await);
            let entry = schemas::wire::encode(&Worker { vectors, ..worker.clone() });
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

/// Whether vectors can be had.
async fn state(store: &dyn VectorStore, embedder: &Embedder) -> Vectors {
    let model = embedder.model().await;
    let asked = tokio::time::timeout(RENEW_EVERY / 2, store.count(COLLECTION, &Filter::everything())).await;
    let trouble = match (asked, &model) {
        (Ok(Ok(_) | Err(vectors::Error::UnknownCollection(_))), Ok(_)) => None,
        (Ok(Err(error)), _) if !matches!(error, vectors::Error::UnknownCollection(_)) => Some(error.to_string()),
        (Err(_), _) => Some("the vector store does not answer".to_owned()),
        (_, Err(error)) => Some(error.to_string()),
        (_, Ok(_)) => None,
    };
    Vectors { store: store.describe(), model: model.ok(), trouble }
}

async fn indexed(catalogue: &Catalogue) -> Result<Vec<Indexed>, Refusal> {
    let mut indexed = catalogue.indexed().await.map_err(|error| refusal("internal", &error.to_string()))?;
    indexed.sort_by(|a, b| a.workspace.cmp(&b.workspace));
    Ok(indexed)
}

fn reply<T>(answer: Result<T, Refusal>) -> Reply<T> {
    match answer {
        Ok(answer) => Reply::Ok(answer),
        Err(refusal) => Reply::Err(refusal),
    }
}

async fn parsed(question: Analyse, permits: Arc<Semaphore>, config: Config) -> Reply<Outline> {
    let _permit = permits.acquire_owned().await.expect("the semaphore is never closed");
    let parsed = tokio::task::spawn_blocking(move || answered(&question, &config)).await;
    parsed.unwrap_or_else(|_| Reply::Err(refusal("internal", "the parser crashed")))
}

fn answered(question: &Analyse, config: &Config) -> Reply<Outline> {
    let started = clock::instant();
    let time = Duration::from_millis(config.parse_timeout_ms);
    let expired = || clock::instant().duration_since(started) > time;
    match analyze(&question.path, &question.code, &config.limits(), expired) {
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
