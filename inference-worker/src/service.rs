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
    EffectId, ExecutionId,
    models::{KnownModel, ModelState},
    presence::{self, Hold, Holds, Worker},
    rpc, stream, subject,
    wire::encode,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    backend::Backend,
    config::Config,
    embed::Embedder,
    embeddings::Embeddings,
    gpus,
    metrics::Metrics,
    models::{Announced, Models, Unfinished, catalogue::told},
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
    let worker = Arc::new(Service {
        id: format!("inference-{}", clock::process_token()),
        runtime: runtime.clone(),
        results: Arc::new(Results::new(runtime.clone(), config.cache_results())?),
        metrics: Metrics::new(&runtime.metrics)?,
        held: Mutex::default(),
        unfinished: Unfinished::default(),
    });
    let (directories, threads) = (config.embedding_models.clone(), config.threads());
    let embeddings = tokio::task::spawn_blocking(move || load_embeddings(&directories, threads)).await;
    let embeddings = embeddings.expect("loading returns errors and does not panic")?;
    // A missing queue is an error of the start.
    runtime.bus.job_progress(stream::INFERENCE_JOBS).await?;
    // Before the first job is taken, others must be able to ask about it.
    worker.give_signs_of_life().await?;
    worker.listen_for_cancels().await?;
    let embedding = embeddings.models().iter().map(describe_embedder).collect();
    let models = Models::start(&config, &worker, embedding).await?;
    remote::watch(&remotes, &runtime.tasks).await;
    let remotes: Vec<Backend> = remotes.into_iter().map(Backend::Remote).collect();
    let offer = Offer { announced: models.announced(), remotes: remotes.clone() };
    worker.answer_questions(&offer, embeddings).await?;
    models.serve().await?;
    worker.announce(offer).await?;
    for remote in remotes {
        runtime.tasks.spawn(Arc::clone(&worker).pull(remote, runtime.tasks.soft().child_token()));
    }
    gpus::watch(&runtime, &models);
    if config.load_on_demand {
        runtime.tasks.spawn(models.load_on_demand());
    }
    Ok(())
}

fn load_embeddings(directories: &[PathBuf], threads: usize) -> Result<Embeddings, Error> {
    let load = |directory: &PathBuf| {
        Embedder::load(directory).map_err(|error| Error::Model { directory: directory.clone(), reason: told(&error) })
    };
    let embedders = directories.iter().map(load).collect::<Result<_, _>>()?;
    Embeddings::start(embedders, threads).map_err(Error::Engine)
}

pub(crate) struct Service {
    pub(crate) id: String,
    pub(crate) runtime: Runtime,
    /// Answers that would come out the same again.
    pub(crate) results: Arc<Results>,
    pub(crate) metrics: Metrics,
    /// What is being worked on, and how to stop it.
    pub(crate) held: Mutex<BTreeMap<(ExecutionId, EffectId), (u32, CancellationToken)>>,
    /// Executions that will ask a model again.
    pub(crate) unfinished: Unfinished,
}

fn describe_embedder(embedder: &Embedder) -> rpc::Model {
    let window = u32::try_from(embedder.window).unwrap_or(u32::MAX);
    rpc::Model { name: embedder.name.clone(), kind: "embedding".to_owned(), window }
}

/// What this worker serves: models that are loaded here, and those of other servers.
#[derive(Clone)]
struct Offer {
    announced: watch::Receiver<Announced>,
    remotes: Vec<Backend>,
}

impl Offer {
    /// What there is now; of remote models those whose server answers.
    fn now(&self) -> Announced {
        let mut all = self.announced.borrow().clone();
        for remote in &self.remotes {
            let (name, kind) = (remote.name().to_owned(), "chat".to_owned());
            let window = u32::try_from(remote.window()).unwrap_or(u32::MAX);
            let state = if remote.is_ready() {
                all.offered.push(rpc::Model { name: name.clone(), kind: kind.clone(), window });
                all.slots += remote.slots();
                ModelState::Ready
            } else {
                ModelState::Failed { reason: "its server does not answer".to_owned() }
            };
            let (weights_bytes, cache_bytes_max) = (0, 0);
            let known = KnownModel { name, kind, window, state, weights_bytes, cache_bytes_max, device: None };
            all.state.models.push(known);
        }
        all
    }

    /// Waits until it changes. Says whether it can change again.
    async fn changed(&mut self, ready: &mut [watch::Receiver<bool>]) -> bool {
        let one_comes_or_goes = async {
            if ready.is_empty() {
                return std::future::pending().await;
            }
            // The backends hold the other ends, so none is closed.
            let _ = futures::future::select_all(ready.iter_mut().map(|ready| Box::pin(ready.changed()))).await;
        };
        tokio::select! {
            changed = self.announced.changed() => changed.is_ok(),
            () = one_comes_or_goes => true,
        }
    }
}

impl Service {
    async fn give_signs_of_life(self: &Arc<Self>) -> Result<(), Error> {
        let this = Arc::clone(self);
        self.runtime.bus.serve_liveness(&self.runtime.tasks, &self.id, move || this.holds()).await?;
        Ok(())
    }

    async fn answer_questions(&self, offer: &Offer, embeddings: Embeddings) -> Result<(), Error> {
        let Runtime { bus, tasks, .. } = &self.runtime;
        if !embeddings.models().is_empty() {
            let embeddings = Arc::new(embeddings);
            bus.serve(tasks, subject::RPC_EMBED, move |question| Arc::clone(&embeddings).answer(question)).await?;
        }
        let offer = offer.clone();
        let offered = move |()| std::future::ready(rpc::Reply::Ok(offer.now().offered));
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
    async fn announce(self: &Arc<Self>, mut offer: Offer) -> Result<(), Error> {
        let bucket = self.runtime.bus.bucket(stream::BUCKET_WORKERS).await?;
        let (soft, id, cache) = (self.runtime.tasks.soft(), self.id.clone(), self.runtime.cache.clone());
        let mut ready: Vec<_> = offer.remotes.iter().filter_map(Backend::ready).collect();
        self.runtime.tasks.spawn(async move {
            loop {
                ready.iter_mut().for_each(|ready| drop(ready.borrow_and_update()));
                offer.announced.mark_unchanged();
                if let Err(error) = bucket.put(&id, encode(&entry(&id, offer.now(), cache.state().await)).into()).await
                {
                    tracing::warn!(%error, "presence was not renewed");
                }
                let next = tokio::time::timeout(PRESENCE_EVERY, offer.changed(&mut ready));
                // Nothing changes any more once the models' task has ended, which it does with the same token.
                if !matches!(soft.run_until_cancelled(next).await, Some(Ok(true) | Err(_))) {
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

fn entry(id: &str, announced: Announced, cache: presence::Cache) -> Worker {
    Worker {
        id: id.to_owned(),
        role: "inference".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        slots: u32::try_from(announced.slots).unwrap_or(u32::MAX),
        models: announced.offered,
        tools: Vec::new(),
        inference: Some(announced.state),
        sandbox: None,
        refused: Vec::new(),
        vectors: None,
        cache: Some(cache),
    }
}
