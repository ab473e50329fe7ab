//! The shell: starts everything, answers what is asked, and says who it is. `models` holds what is loaded, `pull` takes
//! jobs, `carry_out` carries them out.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::StreamExt;
use runtime::{Runtime, bus, clock};
use schemas::{
    EffectId, ExecutionId, Usage,
    presence::{Hold, Holds, Worker},
    rpc, stream, subject,
    wire::encode,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::Config,
    embed::Embedder,
    gpus,
    models::{Announced, Models, Unfinished, catalogue::told},
};

/// How long to wait before a queue that broke is opened anew, and before a job whose result found no log comes again.
pub(crate) const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How often presence is renewed: a lost renewal or two do not make a worker vanish.
const PRESENCE_EVERY: Duration = Duration::from_millis(stream::WORKER_ENTRY_TTL.as_millis() as u64 / 3);

/// Why the service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A model cannot be loaded.
    #[error(
        "load the model in {}: complete the directory (config.json, *.safetensors, tokenizer.json, tokenizer_config.json; an interrupted download leaves such files), or name another with --models: {reason}",
        directory.display()
    )]
    Model {
        /// Its directory.
        directory: PathBuf,
        /// Which file, and what is wrong with it.
        reason: String,
    },
    /// There is no room for a model, or it cannot be beside another.
    #[error("load the model in {}: {reason}", directory.display())]
    Refused {
        /// Its directory.
        directory: PathBuf,
        /// Why, with the numbers.
        reason: String,
    },
    /// Two models have one name.
    #[error("two configured models are named {name}: rename the directory or file of one")]
    Twice {
        /// The name.
        name: String,
    },
    /// The bus does not do what is asked.
    #[error(transparent)]
    Bus(#[from] bus::Error),
    /// The system gives no threads.
    #[error("start an engine")]
    Engine(#[source] std::io::Error),
}

/// Loads the models, then serves them in tasks of `runtime` until its soft token falls. Returns when ready.
///
/// # Errors
/// A model cannot be loaded, or the bus cannot be reached.
pub async fn serve(config: Config, runtime: Runtime) -> Result<(), Error> {
    let worker = Arc::new(Service {
        id: format!("inference-{}", clock::process_token()),
        runtime: runtime.clone(),
        held: Mutex::default(),
        unfinished: Unfinished::default(),
    });
    let directories = config.embedding_models.clone();
    let embedders = tokio::task::spawn_blocking(move || load_embedders(&directories)).await;
    let embedders = embedders.expect("loading returns errors and does not panic")?;
    // A missing queue is an error of the start.
    runtime.bus.job_progress(stream::INFERENCE_JOBS).await?;
    // Before the first job is taken, others must be able to ask about it.
    worker.give_signs_of_life().await?;
    worker.listen_for_cancels().await?;
    let models = Models::start(&config, &worker, embedders.iter().map(describe_embedder).collect()).await?;
    worker.answer_questions(&models, embedders).await?;
    models.serve().await?;
    worker.announce(&models).await?;
    gpus::watch(&runtime, &models);
    if config.load_on_demand {
        runtime.tasks.spawn(models.load_on_demand());
    }
    Ok(())
}

fn load_embedders(directories: &[PathBuf]) -> Result<Vec<Embedder>, Error> {
    let load = |directory: &PathBuf| {
        Embedder::load(directory).map_err(|error| Error::Model { directory: directory.clone(), reason: told(&error) })
    };
    directories.iter().map(load).collect()
}

pub(crate) struct Service {
    pub(crate) id: String,
    pub(crate) runtime: Runtime,
    /// What is being worked on, and how to stop it.
    pub(crate) held: Mutex<BTreeMap<(ExecutionId, EffectId), (u32, CancellationToken)>>,
    /// Executions that will ask a model again.
    pub(crate) unfinished: Unfinished,
}

fn describe_embedder(embedder: &Embedder) -> rpc::Model {
    let window = u32::try_from(embedder.window).unwrap_or(u32::MAX);
    rpc::Model { name: embedder.name.clone(), kind: "embedding".to_owned(), window }
}

/// Computes on a thread for blocking work; a panic there is an answer, too.
async fn embed(embedders: Arc<Vec<Embedder>>, question: rpc::Embed) -> rpc::Reply<rpc::Embeddings> {
    let refuse = |code: &str, detail: String| rpc::Reply::Err(rpc::Refusal { code: code.to_owned(), detail });
    let work = move || {
        let wanted = question.model.as_deref();
        let embedder = embedders
            .iter()
            .find(|embedder| wanted.is_none_or(|name| name == embedder.name))
            .ok_or_else(|| ("unknown_model", format!("find embedding model {wanted:?}")))?;
        let mut embeddings = Vec::new();
        let mut tokens = 0;
        for text in &question.input {
            let (vector, count) = embedder.embed(text).map_err(|why| ("bad_request", why))?;
            embeddings.push(vector);
            tokens += count as u64;
        }
        Ok(rpc::Embeddings { model: embedder.name.clone(), embeddings, usage: Usage::new(tokens, 0) })
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(embeddings)) => rpc::Reply::Ok(embeddings),
        Ok(Err((code, detail))) => refuse(code, detail),
        Err(error) => refuse("internal", format!("embed: {error}")),
    }
}

impl Service {
    async fn give_signs_of_life(self: &Arc<Self>) -> Result<(), Error> {
        let this = Arc::clone(self);
        self.runtime.bus.serve_liveness(&self.runtime.tasks, &self.id, move || this.holds()).await?;
        Ok(())
    }

    async fn answer_questions(&self, models: &Models, embedders: Vec<Embedder>) -> Result<(), Error> {
        let Runtime { bus, tasks, .. } = &self.runtime;
        if !embedders.is_empty() {
            let embedders = Arc::new(embedders);
            bus.serve(tasks, subject::RPC_EMBED, move |question| embed(Arc::clone(&embedders), question)).await?;
        }
        let announced = models.announced();
        let offered = move |()| std::future::ready(rpc::Reply::Ok(announced.borrow().offered.clone()));
        bus.serve(tasks, subject::RPC_MODELS, offered).await?;
        Ok(())
    }

    async fn listen_for_cancels(self: &Arc<Self>) -> Result<(), Error> {
        let mut cancels = self.runtime.bus.cancels().await?;
        let this = Arc::clone(self);
        self.runtime.tasks.spawn_background(async move {
            while let Some(exec) = cancels.next().await {
                this.cancel(exec);
            }
        });
        Ok(())
    }

    fn cancel(&self, exec: ExecutionId) {
        let held = self.held.lock().expect("no panic while the lock is held");
        held.iter().filter(|((other, _), _)| *other == exec).for_each(|(_, (_, token))| token.cancel());
    }

    /// Keeps the entry in the bucket of workers fresh, and renews it at once when the models change; takes it out at the
    /// end.
    async fn announce(self: &Arc<Self>, models: &Models) -> Result<(), Error> {
        let bucket = self.runtime.bus.bucket(stream::BUCKET_WORKERS).await?;
        let (soft, id, mut announced) = (self.runtime.tasks.soft(), self.id.clone(), models.announced());
        self.runtime.tasks.spawn(async move {
            loop {
                let entry = encode(&entry(&id, announced.borrow_and_update().clone()));
                if let Err(error) = bucket.put(&id, entry.into()).await {
                    tracing::warn!(%error, "presence was not renewed");
                }
                let next = tokio::time::timeout(PRESENCE_EVERY, announced.changed());
                // An error is the end of the models' task, which ends with the same token.
                if !matches!(soft.run_until_cancelled(next).await, Some(Ok(Ok(())) | Err(_))) {
                    break;
                }
            }
            if let Err(error) = bucket.delete(&id).await {
                tracing::debug!(%error, "presence was not withdrawn; it expires");
            }
        });
        Ok(())
    }

    fn holds(&self) -> Holds {
        let held = self.held.lock().expect("no panic while the lock is held");
        let hold = |((exec, effect), (attempt, _)): (&(ExecutionId, EffectId), &(u32, CancellationToken))| Hold {
            exec: *exec,
            effect: effect.clone(),
            attempt: *attempt,
            worker: self.id.clone(),
        };
        Holds { effects: held.iter().map(hold).collect() }
    }
}

fn entry(id: &str, announced: Announced) -> Worker {
    Worker {
        id: id.to_owned(),
        role: "inference".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        slots: u32::try_from(announced.slots).unwrap_or(u32::MAX),
        models: announced.offered,
        tools: Vec::new(),
        inference: Some(announced.state),
    }
}
