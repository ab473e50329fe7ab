//! Whether a server is there, what it calls its model, and how much that holds.

use std::time::Duration;

use serde_json::Value;

use super::{
    connection::{Fault, Http},
    refusal::said,
    settings::RemoteConfig,
};

/// How often a server that answers is looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often one that does not is.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long one answer may take while we look.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of one such answer: a router may list thousands of models.
const LOOK_BYTES_MAX: usize = 8 << 20;

/// What a server serves us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Served {
    /// Its name for the model.
    pub(super) model: String,
    /// Tokens of prompt and answer together that it holds.
    pub(super) window: usize,
    /// The models it lists, where ours is none of them.
    pub(super) instead: Vec<String>,
}

/// Why a model cannot be used now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Trouble {
    /// It does not answer, or says that it cannot.
    #[error("the server does not answer: {0}")]
    Away(String),
    /// It does not know our key.
    #[error("the server refuses us: {0}")]
    Refused(String),
    /// Nobody says how much the model holds.
    #[error("{0}")]
    NoWindow(String),
}

/// Looks at the server of the model called `name` here.
///
/// # Errors
/// It cannot be used now; the text says why and what to do.
pub(super) async fn look(name: &str, config: &RemoteConfig, http: &Http) -> Result<Served, Trouble> {
    let listed = list(name, http).await?;
    let id = |model: &Value| model.get("id").and_then(Value::as_str).map(str::to_owned);
    let ids: Vec<String> = listed.iter().filter_map(id).collect();
    let model = match (&config.model, ids.as_slice()) {
        (Some(model), _) => model.clone(),
        (None, [only]) => only.clone(),
        (None, _) => name.to_owned(),
    };
    let entry = listed.iter().find(|entry| entry.get("id").is_some_and(|id| *id == model.as_str()));
    let window = match config.window {
        Some(window) => Some(window as usize),
        None => window(entry.or(listed.first().filter(|_| listed.len() == 1)), http).await,
    };
    let window = window.filter(|window| *window > 0).ok_or_else(|| {
        Trouble::NoWindow(format!(
            "the server does not say how many tokens {model} holds: set inference.remote.{name}.window"
        ))
    })?;
    let instead = if entry.is_some() { Vec::new() } else { ids };
    Ok(Served { model, window, instead })
}

/// The models that the server lists; none where it keeps no list.
async fn list(name: &str, http: &Http) -> Result<Vec<Value>, Trouble> {
    let away = |fault: Fault| Trouble::Away(http.redacted(&fault.to_string()));
    let (status, body) = http.get(&http.below("/models"), LOOK_TIMEOUT, LOOK_BYTES_MAX).await.map_err(away)?;
    let text = String::from_utf8_lossy(&body);
    let answered = || http.redacted(&format!("it answered {status} to GET /models: {}", said(&text)));
    match status.as_u16() {
        200..=299 => match serde_json::from_slice::<Value>(&body) {
            Ok(Value::Array(models)) => Ok(models),
            Ok(mut value) => Ok(value["data"].take().as_array_mut().map(std::mem::take).unwrap_or_default()),
            Err(_) => Err(Trouble::Away(answered())),
        },
        401 | 403 => {
            Err(Trouble::Refused(format!("{}; check inference.remote.{name}.api_key or api_key_file", answered())))
        }
        // It has no such list, or no time for it: whether it answers, the next request shows.
        404 | 405 | 429 | 501 => Ok(Vec::new()),
        _ => Err(Trouble::Away(answered())),
    }
}

/// How much the model holds: vLLM and its kin say it in the list; llama.cpp says beside it what each of its slots holds,
/// which may be less than what the model was trained for; text-generation-inference has a page of its own.
async fn window(entry: Option<&Value>, http: &Http) -> Option<usize> {
    let listed = |place: &str| number(entry?.pointer(place)?);
    if let Some(window) = listed("/max_model_len").or_else(|| listed("/context_length")) {
        return Some(window);
    }
    if let Some(window) = page(http, "/props", "/default_generation_settings/n_ctx").await {
        return Some(window);
    }
    if let Some(window) = listed("/meta/n_ctx").or_else(|| listed("/meta/n_ctx_train")) {
        return Some(window);
    }
    page(http, "/info", "/max_total_tokens").await
}

/// A number on a page beside the API.
async fn page(http: &Http, path: &str, place: &str) -> Option<usize> {
    let (status, body) = http.get(&http.beside(path), LOOK_TIMEOUT, LOOK_BYTES_MAX).await.ok()?;
    let value: Value = serde_json::from_slice(&body).ok().filter(|_| status.is_success())?;
    number(value.pointer(place)?)
}

fn number(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|number| usize::try_from(number).ok()).filter(|number| *number > 0)
}
