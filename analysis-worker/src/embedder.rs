//! Vectors of texts, made by the inference workers' embedding model.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use runtime::bus::{self, Bus};
use runtime::clock;
use schemas::presence::Worker;
use schemas::rpc::{EMBED_WITHIN, Embed, Embeddings, Model, Reply};
use schemas::wire::decode;
use schemas::{stream, subject};
use tokio::sync::Semaphore;

/// Texts of one question: some seconds of a small machine's work, after which others have their turn.
const TEXTS: usize = 8;
/// Questions of this worker that are under way at once, whatever waits: one is computed while the next one is on its way.
/// More would only wait with the inference workers, and be given up there.
const QUESTIONS: usize = 2;
/// How often a question that failed is asked again: other workers may have asked a lot.
const TRIES: usize = 3;
/// How long a worker may take to say which models it has.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);
/// How long the list of models is believed.
const FRESH: Duration = Duration::from_secs(2);

/// Asks for vectors.
pub(crate) struct Embedder {
    bus: Bus,
    /// The configured model; the first that is there when none is.
    wanted: Option<String>,
    known: Mutex<Option<(Instant, String)>>,
    room: Semaphore,
}

/// Why there are no vectors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// Nobody can make them.
    #[error("no embedding model is loaded; start an inference worker that has one (--embedding-models)")]
    NoModel,
    /// The configured one is not there.
    #[error("the embedding model {0} is not loaded")]
    OtherModel(String),
    /// It did not work this time.
    #[error("the texts were not embedded: {0}")]
    Failed(String),
}

impl Embedder {
    pub(crate) fn new(bus: Bus, wanted: Option<String>) -> Self {
        Self { bus, wanted, known: Mutex::default(), room: Semaphore::new(QUESTIONS) }
    }

    /// The model that makes vectors now.
    pub(crate) async fn model(&self) -> Result<String, Error> {
        let known = self.known.lock().expect("no panic while the lock is held").clone();
        if let Some((_, model)) = known.filter(|(at, _)| clock::instant().duration_since(*at) < FRESH) {
            return Ok(model);
        }
        let found = self.find().await.map_err(|error| Error::Failed(error.to_string()))?;
        let model = found.ok_or_else(|| self.wanted.clone().map_or(Error::NoModel, Error::OtherModel))?;
        // That there is none is not remembered: one may come at any moment.
        *self.known.lock().expect("no panic while the lock is held") = Some((clock::instant(), model.clone()));
        Ok(model)
    }

    /// What one worker answers and what all of them announce, which may be some seconds old.
    async fn find(&self) -> Result<Option<String>, bus::Error> {
        let answered = match self.bus.ask::<_, Reply<Vec<Model>>>(subject::RPC_MODELS, &(), ANSWERS_WITHIN).await {
            Ok(Reply::Ok(models)) => models,
            Ok(Reply::Err(_)) | Err(_) => Vec::new(),
        };
        let workers = self.bus.entries(stream::BUCKET_WORKERS, ">").await?;
        let workers = workers.iter().filter_map(|(_, value)| decode::<Worker>(value).ok());
        let models = workers.flat_map(|worker| worker.models).chain(answered);
        let mut names: Vec<String> = models.filter(|model| model.kind == "embedding").map(|model| model.name).collect();
        names.sort();
        Ok(names.into_iter().find(|name| self.wanted.as_ref().is_none_or(|wanted| wanted == name)))
    }

    /// The vectors of texts, in their order, made by this model. They wait for one another, and for nobody who searches.
    pub(crate) async fn embed_all(&self, model: &str, texts: Vec<String>) -> Result<Vec<Vec<f32>>, Error> {
        let batches: Vec<Vec<String>> = texts.chunks(TEXTS).map(<[String]>::to_vec).collect();
        let asked = batches.into_iter().map(|input| async {
            let _room = self.room.acquire().await.expect("the semaphore is never closed");
            self.persist(model, input).await
        });
        let answered = futures::stream::iter(asked).buffered(QUESTIONS).try_collect::<Vec<_>>().await?;
        Ok(answered.into_iter().flatten().collect())
    }

    /// The vector of one text, made by this model.
    pub(crate) async fn embed(&self, model: &str, text: &str) -> Result<Vec<f32>, Error> {
        let vectors = self.ask(model, vec![text.to_owned()]).await?;
        vectors.into_iter().next().ok_or_else(|| Error::Failed("no vector came".to_owned()))
    }

    async fn persist(&self, model: &str, input: Vec<String>) -> Result<Vec<Vec<f32>>, Error> {
        let mut tries = 1;
        loop {
            match self.ask(model, input.clone()).await {
                Err(Error::Failed(_)) if tries < TRIES => tries += 1,
                outcome => return outcome,
            }
        }
    }

    async fn ask(&self, model: &str, input: Vec<String>) -> Result<Vec<Vec<f32>>, Error> {
        let (texts, question) = (input.len(), Embed { model: Some(model.to_owned()), input });
        match self.bus.ask::<_, Reply<Embeddings>>(subject::RPC_EMBED, &question, EMBED_WITHIN).await {
            Ok(Reply::Ok(answer)) if answer.embeddings.len() == texts => Ok(answer.embeddings),
            Ok(Reply::Ok(answer)) => {
                Err(Error::Failed(format!("{} vectors came for {texts} texts", answer.embeddings.len())))
            }
            Ok(Reply::Err(refusal)) => Err(Error::Failed(refusal.detail)),
            Err(error) => Err(Error::Failed(error.to_string())),
        }
    }
}
