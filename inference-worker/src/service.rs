//! The shell: takes jobs for free slots, has them carried out (`carry_out`), and says who it is.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
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
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    backend::Backend,
    config::Config,
    embed::Embedder,
    engine::Engine,
    model_directory::{self, Model},
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
        "load the model in {}: complete the directory (config.json, *.safetensors, tokenizer.json, tokenizer_config.json; an interrupted download leaves such files), or name another with --models",
        directory.display()
    )]
    Model {
        /// Its directory.
        directory: PathBuf,
        /// Which file, and what is wrong with it.
        #[source]
        source: model_directory::Error,
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
    let (backends, embedders) =
        tokio::task::spawn_blocking(move || load(&config)).await.expect("loading returns errors and does not panic")?;
    let worker = Arc::new(Service {
        id: format!("inference-{}", clock::process_token()),
        runtime: runtime.clone(),
        held: Mutex::default(),
    });
    let embedding = embedders.iter().map(describe_embedder);
    let models: Vec<rpc::Model> = backends.iter().map(describe).chain(embedding).collect();
    worker.answer_questions(&models, embedders).await?;
    worker.listen_for_cancels().await?;
    worker.announce(models, backends.iter().map(Backend::slots).sum()).await?;
    for backend in backends {
        // The queue is opened here once, so that a missing stream is an error of the start.
        runtime.bus.inference_jobs(backend.name()).await?;
        runtime.tasks.spawn(Arc::clone(&worker).pull(backend));
    }
    Ok(())
}

fn load(config: &Config) -> Result<(Vec<Backend>, Vec<Embedder>), Error> {
    let engine_config = config.engine();
    let team = Arc::new(config.team().map_err(Error::Engine)?);
    let unusable = |directory: &Path, source| Error::Model { directory: directory.to_owned(), source };
    let start = |directory: &PathBuf| {
        let family = config.tool_calls.get(&model_directory::name_of(directory)).copied();
        let mut model = Model::load_as(directory, family).map_err(|source| unusable(directory, source))?;
        if config.exact_activations {
            model.decoder.be_exact();
        }
        let model = Arc::new(model);
        tracing::info!(model = model.name, tool_calls = ?model.family, "loaded");
        Engine::start(model, Arc::clone(&team), &engine_config).map(Backend::Engine).map_err(Error::Engine)
    };
    let backends = config.models.iter().map(start).collect::<Result<_, _>>()?;
    let embedders = config
        .embedding_models
        .iter()
        .map(|directory| Embedder::load(directory).map_err(|source| unusable(directory, source)));
    Ok((backends, embedders.collect::<Result<_, _>>()?))
}

pub(crate) struct Service {
    pub(crate) id: String,
    pub(crate) runtime: Runtime,
    /// What is being worked on, and how to stop it.
    pub(crate) held: Mutex<BTreeMap<(ExecutionId, EffectId), (u32, CancellationToken)>>,
}

fn describe(backend: &Backend) -> rpc::Model {
    let window = u32::try_from(backend.window()).unwrap_or(u32::MAX);
    rpc::Model { name: backend.name().to_owned(), kind: "chat".to_owned(), window }
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
    async fn answer_questions(self: &Arc<Self>, models: &[rpc::Model], embedders: Vec<Embedder>) -> Result<(), Error> {
        let Runtime { bus, tasks, .. } = &self.runtime;
        let this = Arc::clone(self);
        bus.serve_liveness(tasks, &self.id, move || this.holds()).await?;
        if !embedders.is_empty() {
            let embedders = Arc::new(embedders);
            bus.serve(tasks, subject::RPC_EMBED, move |question| embed(Arc::clone(&embedders), question)).await?;
        }
        let models = models.to_vec();
        bus.serve(tasks, subject::RPC_MODELS, move |()| std::future::ready(rpc::Reply::Ok(models.clone()))).await?;
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

    /// Keeps the entry in the bucket of workers fresh; takes it out at the end.
    async fn announce(self: &Arc<Self>, models: Vec<rpc::Model>, slots: usize) -> Result<(), Error> {
        let bucket = self.runtime.bus.bucket(stream::BUCKET_WORKERS).await?;
        let entry = Worker {
            id: self.id.clone(),
            role: "inference".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            slots: u32::try_from(slots).unwrap_or(u32::MAX),
            models,
            tools: Vec::new(),
            sandbox: None,
        };
        let (soft, id) = (self.runtime.tasks.soft(), self.id.clone());
        self.runtime.tasks.spawn(async move {
            loop {
                if let Err(error) = bucket.put(&id, encode(&entry).into()).await {
                    tracing::warn!(%error, "presence was not renewed");
                }
                if soft.run_until_cancelled(tokio::time::sleep(PRESENCE_EVERY)).await.is_none() {
                    break;
                }
            }
            if let Err(error) = bucket.delete(&id).await {
                tracing::debug!(%error, "presence was not withdrawn; it expires");
            }
        });
        Ok(())
    }

    /// Pulls one job for each free slot, until the soft token falls.
    async fn pull(self: Arc<Self>, backend: Backend) {
        let (soft, bus) = (self.runtime.tasks.soft(), &self.runtime.bus);
        let slots = Arc::new(Semaphore::new(backend.slots()));
        while !soft.is_cancelled() {
            let mut queue = match bus.inference_jobs(backend.name()).await {
                Ok(queue) => queue,
                Err(error) => {
                    tracing::warn!(%error, "the job queue cannot be opened; trying again");
                    soft.run_until_cancelled(tokio::time::sleep(RETRY_AFTER)).await;
                    continue;
                }
            };
            loop {
                let next = async {
                    let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
                    (slot, queue.next().await)
                };
                let Some((slot, next)) = soft.run_until_cancelled(next).await else {
                    return;
                };
                match next {
                    Ok(Some(delivery)) => {
                        let (this, backend) = (Arc::clone(&self), backend.clone());
                        self.runtime.tasks.spawn(async move {
                            this.carry_out(&backend, delivery).await;
                            drop(slot);
                        });
                    }
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(%error, "the job queue broke; opening it anew");
                        soft.run_until_cancelled(tokio::time::sleep(RETRY_AFTER)).await;
                        break;
                    }
                }
            }
        }
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
