//! What generates the answers of one model.

use crate::{
    engine::{Engine, Rejection, Request, Running},
    prefixes::Prefixes,
};

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

    /// Returns when it can answer: as long as it does not, no jobs are pulled for it.
    pub async fn ready(&self) {
        match self {
            // Its weights are in memory.
            Self::Engine(_) => {}
        }
    }

    /// Ends it, and returns what it has computed of prompts, if it computes here. Blocks until its step is done.
    pub fn hand_over(&self) -> Option<Prefixes> {
        match self {
            Self::Engine(engine) => engine.hand_over(),
        }
    }

    /// Takes a request; its events begin when there is room.
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
