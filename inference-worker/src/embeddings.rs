//! Answers the question for embeddings: bounded in texts, bytes and time, and in turns.
//!
//! A request is computed a few texts at a time, and others have their turn in between; the threads that compute have a
//! lower priority than those of chat models, whose readers wait for every token.

use std::sync::Arc;

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use schemas::{Usage, rpc};
use tokio::sync::Semaphore;

use crate::embed::{Embedder, Embedding};

/// Texts of one request that are computed before another request has its turn.
const TEXTS_IN_TURN: usize = 8;
/// How much the threads here stand back: against a busy one of a chat model, about a third of its share.
const STAND_BACK: i32 = 5;
/// Bytes of one value of a vector on the wire.
const VALUE_BYTES: usize = 5;
/// Bytes of vectors in one answer: what the server takes as one message, with room for the rest.
const VECTORS_BYTES_MAX: usize = 8 << 20;

/// The loaded embedding models and the threads that compute with them.
pub(crate) struct Embeddings {
    models: Vec<Embedder>,
    threads: rayon::ThreadPool,
    turn: Semaphore,
}

type Answer = Result<rpc::Embeddings, rpc::Refusal>;

impl Embeddings {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system gives none.
    pub(crate) fn start(models: Vec<Embedder>, threads: usize) -> std::io::Result<Self> {
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("embed-{index}"))
            .start_handler(|_| {
                // On Linux this is the calling thread's own priority. Where it is refused, the work is done all the same.
                if let Err(error) = rustix::process::nice(STAND_BACK) {
                    tracing::debug!(%error, "threads for embeddings have the same priority as others");
                }
            })
            .build()
            .map_err(std::io::Error::other)?;
        Ok(Self { models, threads, turn: Semaphore::new(1) })
    }

    /// The models.
    pub(crate) fn models(&self) -> &[Embedder] {
        &self.models
    }

    /// Answers within the time in which somebody waits for it.
    pub(crate) async fn answer(self: Arc<Self>, question: rpc::Embed) -> rpc::Reply<rpc::Embeddings> {
        let late =
            || refusal("overloaded", format!("no embeddings within {:?}; send fewer texts at once", rpc::EMBED_WITHIN));
        match tokio::time::timeout(rpc::EMBED_WITHIN, self.computed(question)).await.unwrap_or_else(|_| Err(late())) {
            Ok(embeddings) => rpc::Reply::Ok(embeddings),
            Err(refusal) => rpc::Reply::Err(refusal),
        }
    }

    async fn computed(self: Arc<Self>, question: rpc::Embed) -> Answer {
        question.check().map_err(|why| refusal("overflow", why))?;
        let wanted = question.model.as_deref();
        let model = self
            .models
            .iter()
            .position(|model| wanted.is_none_or(|name| name == model.name))
            .ok_or_else(|| refusal("unknown_model", format!("find embedding model {wanted:?}")))?;
        let Embedder { name, dimensions, .. } = &self.models[model];
        let most = VECTORS_BYTES_MAX / (VALUE_BYTES * dimensions);
        if question.input.len() > most {
            let why = format!("{} texts, and one answer holds {most} vectors of {name}", question.input.len());
            return Err(refusal("overflow", why));
        }
        let mut answer = rpc::Embeddings {
            model: name.clone(),
            embeddings: Vec::new(),
            usage: Usage::new(0, 0),
            truncated: Vec::new(),
        };
        let mut tokens = 0;
        let mut texts = question.input.into_iter();
        loop {
            let some: Vec<String> = texts.by_ref().take(TEXTS_IN_TURN).collect();
            if some.is_empty() {
                break;
            }
            let turn = self.turn.acquire().await.expect("the semaphore is never closed");
            let this = Arc::clone(&self);
            let computed = tokio::task::spawn_blocking(move || this.in_turn(model, &some)).await;
            drop(turn);
            let computed = computed.map_err(|error| refusal("internal", format!("embed: {error}")))?;
            for Embedding { vector, tokens: read, cut } in computed.map_err(|why| refusal("bad_request", why))? {
                if cut {
                    answer.truncated.push(answer.embeddings.len() as u32);
                }
                answer.embeddings.push(vector);
                tokens += read as u64;
            }
        }
        answer.usage = Usage::new(tokens, 0);
        Ok(answer)
    }

    fn in_turn(&self, model: usize, texts: &[String]) -> Result<Vec<Embedding>, String> {
        let model = &self.models[model];
        self.threads.install(|| texts.par_iter().map(|text| model.embed(text)).collect())
    }
}

fn refusal(code: &str, detail: String) -> rpc::Refusal {
    rpc::Refusal { code: code.to_owned(), detail }
}
