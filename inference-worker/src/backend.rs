//! What generates the answers of one model.

use tokio::sync::watch;

use crate::{
    engine::{Engine, Rejection, Request, Running},
    figures::Figures,
    prefixes::Prefixes,
    remote::Remote,
};

/// Serves one model. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Backend {
    /// Computes in this process.
    Engine(Engine),
    /// Asks another server.
    Remote(Remote),
}

impl Backend {
    /// The model's name.
    pub fn name(&self) -> &str {
        match self {
            Self::Engine(engine) => &engine.model().name,
            Self::Remote(remote) => remote.name(),
        }
    }

    /// Everything about the model that decides an answer beside the request; none when it is not known, and then no answer
    /// is kept for equal requests.
    pub fn identity(&self) -> Option<String> {
        match self {
            Self::Engine(engine) => {
                let model = engine.model();
                let exact = model.decoder.is_exact();
                let identity = model.identity.as_ref()?;
                // What a GPU rounds to is told apart from what CPUs compute, and from what several sum.
                let place = match model.device.as_ref().map(|device| device.devices()) {
                    None => String::new(),
                    Some(1) => " bf16 on a gpu".to_owned(),
                    Some(several) => format!(" bf16 on {several} gpus"),
                };
                Some(format!("{identity} {:?} {} {exact}{place}", model.family, engine.window()))
            }
            // Who knows what that server has loaded meanwhile.
            Self::Remote(_) => None,
        }
    }

    /// Tokens of prompt and answer together that it can hold.
    pub fn window(&self) -> usize {
        match self {
            Self::Engine(engine) => engine.window(),
            Self::Remote(remote) => remote.window(),
        }
    }

    /// Requests that run at the same time.
    pub fn slots(&self) -> usize {
        match self {
            Self::Engine(engine) => engine.slots(),
            Self::Remote(remote) => remote.slots(),
        }
    }

    /// Whether it can take requests now, and when that changes; none where it always can.
    pub fn ready(&self) -> Option<watch::Receiver<bool>> {
        match self {
            Self::Engine(_) => None,
            Self::Remote(remote) => Some(remote.ready()),
        }
    }

    /// Whether it can take requests now.
    pub fn is_ready(&self) -> bool {
        self.ready().is_none_or(|ready| *ready.borrow())
    }

    /// Waits until it can take requests. Cancel safe.
    pub async fn until_ready(&self) {
        if let Some(mut ready) = self.ready() {
            // What is asked here holds the other end, so it is never closed.
            let _ = ready.wait_for(|ready| *ready).await;
        }
    }

    /// Whether it can go on behind the tokens of an earlier attempt. Else an attempt starts over.
    pub const fn continues(&self) -> bool {
        matches!(self, Self::Engine(_))
    }

    /// What it shows of itself, if it computes here.
    pub fn figures(&self) -> Option<&Figures> {
        match self {
            Self::Engine(engine) => Some(engine.figures()),
            Self::Remote(_) => None,
        }
    }

    /// Ends it, and returns what it has computed of prompts, if it computes here. Blocks until its step is done.
    pub fn hand_over(&self) -> Option<Prefixes> {
        match self {
            Self::Engine(engine) => engine.hand_over(),
            Self::Remote(_) => None,
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
            Self::Remote(remote) => remote.submit(request).await,
        }
    }
}
