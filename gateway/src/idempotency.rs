//! `Idempotency-Key`: a request that is sent again under its key is answered with the execution that the first one began.
//! It comes in HTTP's headers, or in the metadata of a gRPC call.
//!
//! The key is kept, with the execution's id and the hash of the request, before the request is in the log; whoever
//! comes second finds the id, on any gateway. Should a gateway die between the two, the second request continues under
//! the same id, so that there is never another execution.

use axum::http::HeaderMap;
use runtime::{Bus, bus};
use schemas::ExecutionId;
use schemas::stream::BUCKET_REQUESTS;
use schemas::wire::{decode, encode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::problem::Failure;

/// The header, or the metadata of a gRPC call.
pub(crate) const KEY: &str = "idempotency-key";
/// Characters of a key: enough for ids and hashes.
const KEY_CHARS_MAX: usize = 255;

/// A request's key, and what the request was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    key: String,
    request: String,
}

/// What is kept of a key.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    exec: ExecutionId,
    request: String,
}

impl Key {
    /// The key of a request, if it has one.
    ///
    /// # Errors
    /// It is empty, too long, or not printable ASCII.
    pub(crate) fn of(headers: &HeaderMap, path: &str, body: &[u8]) -> Result<Option<Self>, Failure> {
        let Some(key) = headers.get(KEY) else { return Ok(None) };
        let key = key.to_str().ok().map(str::trim).filter(|key| !key.is_empty() && key.len() <= KEY_CHARS_MAX);
        let Some(key) = key else {
            let detail = format!("the Idempotency-Key is empty, not ASCII, or longer than {KEY_CHARS_MAX} characters");
            return Err(Failure::invalid(detail, "send a UUID, or leave it out"));
        };
        let request = Sha256::new().chain_update(path).chain_update([0]).chain_update(body).finalize();
        Ok(Some(Self { key: key.to_owned(), request: hex::encode(request) }))
    }

    /// The key of the `n`th part of the request.
    pub(crate) fn part(&self, n: usize) -> Self {
        Self { key: format!("{}/{n}", self.key), ..self.clone() }
    }

    /// Takes the key for `exec`, or says which execution has it.
    ///
    /// # Errors
    /// It was used for another request; or nobody can tell.
    pub(crate) async fn claim(&self, bus: &Bus, exec: ExecutionId) -> Result<ExecutionId, Failure> {
        let name = hex::encode(Sha256::digest(&self.key));
        let kept = Kept { exec, request: self.request.clone() };
        // An entry may expire between the two questions: then it is free.
        for _ in 0..2 {
            if bus.create_entry(BUCKET_REQUESTS, &name, encode(&kept).into()).await? {
                return Ok(exec);
            }
            let known = bus.bucket(BUCKET_REQUESTS).await?.get(&name).await;
            let known = known.map_err(|error| bus::Error::Broken(format!("read the Idempotency-Key: {error}")))?;
            let Some(known) = known else { continue };
            let known: Kept = decode(&known)
                .map_err(|error| Failure::new(500, "failed", error.to_string(), "use another Idempotency-Key"))?;
            return if known.request == self.request { Ok(known.exec) } else { Err(self.reused(known.exec)) };
        }
        Err(bus::Error::Broken("the Idempotency-Key is neither kept nor free".to_owned()).into())
    }

    fn reused(&self, exec: ExecutionId) -> Failure {
        let detail = format!("the Idempotency-Key {:?} was used for another request", self.key);
        Failure::new(409, "idempotency_key_reused", detail, "send another key with another request").about(exec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str, path: &str, body: &str) -> Result<Option<Key>, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert("idempotency-key", text.parse().expect("a header"));
        Key::of(&headers, path, body.as_bytes())
    }

    #[test]
    fn a_key_stands_for_its_endpoint_and_body() {
        let first = key("a", "/x", "{}").expect("valid").expect("a key");
        assert_eq!(key(" a ", "/x", "{}").expect("valid"), Some(first.clone()));
        assert_ne!(key("a", "/x", "{ }").expect("valid"), Some(first.clone()));
        assert_ne!(key("a", "/y", "{}").expect("valid"), Some(first.clone()));
        assert_ne!(first.part(0), first.part(1));
        assert_eq!(Key::of(&HeaderMap::new(), "/x", b"{}"), Ok(None));
    }

    #[test]
    fn a_key_that_is_none_is_refused() {
        for wrong in ["", "  ", &"k".repeat(256)] {
            assert_eq!(key(wrong, "/x", "{}").expect_err("refused").0.code, "invalid_request");
        }
    }
}
