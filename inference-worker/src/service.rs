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
    EffectId, ExecutionId,
    presence::{Hold, Holds, Worker},
    rpc, stream, subject,
    wire::encode,
};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    backend::Backend,
    config::Config,
    embed::Embedder,
    embeddings::Embeddings,
    engine::Engine,
    model_directory::{self, Model},
    remote,
    results::Results,
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
    /// A setting is wrong; the text names it.
    #[error("{0}")]
    Setting(String),
    /// The bus does not do what is asked.
    #[error(transparent)]
    Bus(#[from] bus::Error),
    /// The system gives no threads.
    #[error("start an engine")]
    Engine(#[source] std::io::Error),
    /// Two workers share one registry.
    #[error("register metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

/// Loads the models, then serves them in tasks of `runtime` until its soft token falls. Returns when ready. A remote model
/// may be away: it is served from when its server answers.
///
/// # Errors
/// The configuration is wrong, a model cannot be loaded, or the bus cannot be reached.
pub async fn serve(config: Config, runtime: Runtime) -> Result<(), Error> {
    let remotes = config.remotes().map_err(Error::Setting)?;
    let kept_for = config.cache_results();
    let (mut backends, embeddings) =
        tokio::task::spawn_blocking(move || load(&config)).await.expect("loading returns errors and does not panic")?;
    remote::watch(&remotes, &runtime.tasks).await;
    backends.extend(remotes.into_iter().map(Backend::Remote));
    let worker = Arc::new(Service {
        id: format!("inference-{}", clock::process_token()),
        runtime: runtime.clone(),
        results: Arc::new(Results::new(runtime.clone(), kept_for)?),
        held: Mutex::default(),
    });
    let embedding = embeddings.models().iter().map(describe_embedder).collect();
    let offer = Offer { backends: backends.clone(), embedding };
    worker.answer_questions(offer.clone(), embeddings).await?;
    worker.listen_for_cancels().await?;
    worker.announce(offer).await?;
    for backend in backends {
        // The queue is opened here once, so that a missing stream is an error of the start.
        runtime.bus.inference_jobs(backend.name()).await?;
        runtime.tasks.spawn(Arc::clone(&worker).pull(backend));
    }
    Ok(())
}

fn load(config: &Config) -> Result<(Vec<Backend>, Embeddings), Error> {
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
    let embedders = embedders.collect::<Result<_, _>>()?;
    Ok((backends, Embeddings::start(embedders, config.threads()).map_err(Error::Engine)?))
}

pub(crate) struct Service {
    pub(crate) id: String,
    pub(crate) runtime: Runtime,
    /// Answers that would come out the same again.
    pub(crate) results: Arc<Results>,
    /// What is being worked on, and how to stop it.
    pub(crate) held: Mutex<BTreeMap<(ExecutionId, EffectId), (u32, CancellationToken)>>,
}

/// What this worker serves.
#[derive(Clone)]
struct Offer {
    backends: Vec<Backend>,
    embedding: Vec<rpc::Model>,
}

impl Offer {
    /// The models that can be asked now.
    fn models(&self) -> Vec<rpc::Model> {
        let chat = self.backends.iter().filter(|backend| backend.is_ready()).map(describe);
        chat.chain(self.embedding.iter().cloned()).collect()
    }

    fn slots(&self) -> usize {
        self.backends.iter().filter(|backend| backend.is_ready()).map(Backend::slots).sum()
    }

    /// Waits until one of these changes.
    async fn changed(ready: &mut [watch::Receiver<bool>]) {
        if ready.is_empty() {
            return std::future::pending().await;
        }
        // The backends hold the other ends, so none is closed.
        let _ = futures::future::select_all(ready.iter_mut().map(|ready| Box::pin(ready.changed()))).await;
    }
}

fn describe(backend: &Backend) -> rpc::Model {
    let window = u32::try_from(backend.window()).unwrap_or(u32::MAX);
    rpc::Model { name: backend.name().to_owned(), kind: "chat".to_owned(), window }
}

fn describe_embedder(embedder: &Embedder) -> rpc::Model {
    let window = u32::try_from(embedder.window).unwrap_or(u32::MAX);
    rpc::Model { name: embedder.name.clone(), kind: "embedding".to_owned(), window }
}

impl Service {
    async fn answer_questions(self: &Arc<Self>, offer: Offer, embeddings: Embeddings) -> Result<(), Error> {
        let Runtime { bus, tasks, .. } = &self.runtime;
        let this = Arc::clone(self);
        bus.serve_liveness(tasks, &self.id, move || this.holds()).await?;
        if !embeddings.models().is_empty() {
            let embeddings = Arc::new(embeddings);
            bus.serve(tasks, subject::RPC_EMBED, move |question| Arc::clone(&embeddings).answer(question)).await?;
        }
        bus.serve(tasks, subject::RPC_MODELS, move |()| std::future::ready(rpc::Reply::Ok(offer.models()))).await?;
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

    /// Keeps the entry in the bucket of workers fresh and true; takes it out at the end.
    async fn announce(self: &Arc<Self>, offer: Offer) -> Result<(), Error> {
        let bucket = self.runtime.bus.bucket(stream::BUCKET_WORKERS).await?;
        let mut entry = Worker {
            id: self.id.clone(),
            role: "inference".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            slots: 0,
            models: Vec::new(),
            tools: Vec::new(),
        };
        let mut ready: Vec<_> = offer.backends.iter().filter_map(Backend::ready).collect();
        let (soft, id) = (self.runtime.tasks.soft(), self.id.clone());
        self.runtime.tasks.spawn(async move {
            loop {
                ready.iter_mut().for_each(|ready| drop(ready.borrow_and_update()));
                entry.models = offer.models();
                entry.slots = u32::try_from(offer.slots()).unwrap_or(u32::MAX);
                if let Err(error) = bucket.put(&id, encode(&entry).into()).await {
                    tracing::warn!(%error, "presence was not renewed");
                }
                let due = tokio::time::timeout(PRESENCE_EVERY, Offer::changed(&mut ready));
                if soft.run_until_cancelled(due).await.is_none() {
                    break;
                }
            }
            if let Err(error) = bucket.delete(&id).await {
                tracing::debug!(%error, "presence was not withdrawn; it expires");
            }
        });
        Ok(())
    }

    /// Pulls one job for each free slot while the backend is ready, until the soft token falls.
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
                    backend.until_ready().await;
                    let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
                    (slot, queue.next().await)
                };
                let Some((slot, next)) = soft.run_until_cancelled(next).await else {
                    return;
                };
                match next {
                    // Asked for while the backend was ready: it waits in the queue again, also for another worker.
                    Ok(Some(delivery)) if !backend.is_ready() => {
                        if let Err(error) = delivery.retry(RETRY_AFTER).await {
                            tracing::debug!(%error, "a job was not given back; it comes again by itself");
                        }
                    }
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
