//! What generates the answers of one model.

use crate::engine::{Engine, Rejection, Request, Running};

/// Serves one model. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Backend {
    /// Computes in this process.
    Engine(Engine),
}

impl Backend {
    /// The model's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Engine(engine) => &engine.model().name,
        }
    }

    /// Everything about the model that decides an answer beside the request; none when it is not known, and then no answer
    /// is kept for equal requests.
    pub fn identity(&self) -> Option<String> {
        match self {
            Self::Engine(engine) => {
                let model = engine.model();
                Some(format!("{} {:?} {}", model.identity, model.family, engine.window()))
            }
        }
    }

    /// Tokens of prompt and answer together that it can hold.
    pub fn window(&self) -> usize {
        match self {
            Self::Engine(engine) => engine.window(),
        }
    }

    /// Requests that run at the same time.
    pub fn slots(&self) -> usize {
        match self {
            Self::Engine(engine) => engine.slots(),
        }
    }

    /// Takes a request; its events begin when there is room. The end brings as many answers as were asked for; one that
    /// can give only one refuses [`Request::alternatives`] as [`Rejection::Unusable`].
    ///
    /// # Errors
    /// The request cannot be answered as it is, or the backend has stopped.
    pub async fn submit(&self, request: Request) -> Result<Running, Rejection> {
        match self {
            Self::Engine(engine) => {
                // Rendering and tokenising a long prompt takes a while, so it is done beside the async threads.
                let engine = engine.clone();
                let submitted = tokio::task::spawn_blocking(move || engine.submit(request)).await;
                submitted.unwrap_or_else(|error| Err(Rejection::Broken(error.to_string())))
            }
        }
    }
}
