//! Facts that outlive an execution: kept with their vectors, found by meaning, each user's and workspace's for itself.

use std::sync::Arc;

use runtime::clock;
use schemas::memory::{Ask, FACT_BYTES_MAX, Remembered, Scope, Told};
use schemas::rpc::Refusal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::embedder::{self, Embedder};
use crate::search::refusal;
use crate::vectors::{self, Collection, Filter, Hit, LIMIT_MAX, Point, VectorStore};

/// The collection of facts.
const COLLECTION: &str = "memories";
/// Facts whose vectors are this near say the same.
const SAME_FROM: f32 = 0.97;
/// Facts that are further away are about something else.
const ABOUT_FROM: f32 = 0.25;
/// Facts that one recall looks at.
const RECALLED_MAX: usize = 32;
/// Tokens of a text are estimated at so many bytes to two.
const BYTES_OF_TWO_TOKENS: usize = 5;
/// What stands for nobody and nowhere in particular: fields by which is filtered are never absent.
const NONE: &str = "";

/// Keeps and finds facts.
pub(crate) struct Memory {
    pub(crate) store: Arc<dyn VectorStore>,
    pub(crate) embedder: Arc<Embedder>,
}

impl Memory {
    pub(crate) async fn answer(&self, question: Ask) -> Result<Told, Refusal> {
        match question {
            Ask::Remember { scope, text, source } => {
                let text = text.trim();
                if text.is_empty() || text.len() > FACT_BYTES_MAX {
                    let detail = format!("a fact has 1 to {FACT_BYTES_MAX} bytes, and this one {}", text.len());
                    return Err(refusal("bad_request", &detail));
                }
                let fact = Remembered {
                    id: String::new(),
                    text: text.to_owned(),
                    scope,
                    source,
                    at: clock::now(),
                    score: 0.0,
                };
                self.remember(fact).await
            }
            Ask::Recall { scope, query, tokens_max } => self.recall(&scope, &query, tokens_max).await,
            Ask::List { scope, limit } => self.list(&scope, limit as usize).await,
            Ask::Forget { ids } => self.forget(ids).await,
        }
    }

    async fn remember(&self, mut fact: Remembered) -> Result<Told, Refusal> {
        let (model, vector) = self.vector(&fact.text).await?;
        self.store.ensure(&collection(vector.len())).await.map_err(|error| of_store(&error))?;
        let filter = of_scope(&fact.scope).and("model", [&model]);
        let near = self.store.search(COLLECTION, vector.clone(), &filter, 1).await.map_err(|error| of_store(&error))?;
        // The newer wording counts, under the old name: whoever kept the name still finds it.
        let same = near.into_iter().find(|hit| hit.score >= SAME_FROM);
        let id = same.as_ref().map_or_else(|| id_of(&fact), |hit| hit.id);
        fact.id = id.to_string();
        let point = Point { id, vector, payload: payload(&fact, &model) };
        self.store.upsert(COLLECTION, vec![point]).await.map_err(|error| of_store(&error))?;
        Ok(Told::Remembered { id: fact.id, renewed: same.is_some() })
    }

    async fn recall(&self, scope: &Scope, query: &str, tokens_max: u32) -> Result<Told, Refusal> {
        if query.trim().is_empty() {
            return Err(refusal("bad_request", "there is nothing to look for"));
        }
        let (model, vector) = self.vector(query).await?;
        let filter = of_scope(scope).and("model", [&model]);
        let found = match self.store.search(COLLECTION, vector, &filter, RECALLED_MAX).await {
            Ok(found) => found,
            Err(vectors::Error::UnknownCollection(_)) => Vec::new(),
            Err(error) => return Err(of_store(&error)),
        };
        let mut left = tokens_max as usize;
        let mut facts = Vec::new();
        for fact in found.iter().filter(|hit| hit.score >= ABOUT_FROM).filter_map(of_hit) {
            let tokens = (fact.text.len() * 2).div_ceil(BYTES_OF_TWO_TOKENS);
            // A shorter one further down may still fit.
            if tokens <= left {
                left -= tokens;
                facts.push(fact);
            }
        }
        Ok(Told::Facts(facts))
    }

    async fn list(&self, scope: &Scope, limit: usize) -> Result<Told, Refusal> {
        let given = [("user_id", &scope.user_id), ("workspace", &scope.workspace)];
        let given = given.into_iter().filter_map(|(field, value)| Some((field, value.as_deref()?)));
        let filter = given.fold(Filter::everything(), |filter, (field, value)| filter.and(field, [value]));
        let (mut facts, mut from) = (Vec::new(), None);
        loop {
            match self.store.scroll(COLLECTION, &filter, LIMIT_MAX, from, false).await {
                Ok((points, next)) => {
                    facts.extend(
                        points.into_iter().filter_map(|point| of_payload(&point.id.to_string(), &point.payload, 0.0)),
                    );
                    from = next;
                }
                Err(vectors::Error::UnknownCollection(_)) => break,
                Err(error) => return Err(of_store(&error)),
            }
            if from.is_none() {
                break;
            }
        }
        facts.sort_by(|a, b| b.at.cmp(&a.at).then_with(|| a.id.cmp(&b.id)));
        facts.truncate(limit);
        Ok(Told::Facts(facts))
    }

    async fn forget(&self, ids: Vec<String>) -> Result<Told, Refusal> {
        let filter = Filter::any("id", ids);
        let counted = match self.store.count(COLLECTION, &filter).await {
            Ok(counted) => counted,
            Err(vectors::Error::UnknownCollection(_)) => 0,
            Err(error) => return Err(of_store(&error)),
        };
        if counted > 0 {
            self.store.delete(COLLECTION, &filter).await.map_err(|error| of_store(&error))?;
        }
        Ok(Told::Forgotten(counted))
    }

    async fn vector(&self, text: &str) -> Result<(String, Vec<f32>), Refusal> {
        let failed = |error: embedder::Error| match error {
            embedder::Error::Failed(_) => refusal("unreachable", &error.to_string()),
            _ => refusal("no_model", &error.to_string()),
        };
        let model = self.embedder.model().await.map_err(failed)?;
        let vector = self.embedder.embed(&model, text).await.map_err(failed)?;
        Ok((model, vector))
    }
}

fn collection(dimensions: usize) -> Collection {
    let indexed = ["id", "user_id", "workspace", "model"].map(str::to_owned).to_vec();
    Collection { name: COLLECTION.to_owned(), dimensions, indexed }
}

/// Facts of exactly this user and workspace.
fn of_scope(scope: &Scope) -> Filter {
    let user = scope.user_id.as_deref().unwrap_or(NONE);
    Filter::any("user_id", [user]).and("workspace", [scope.workspace.as_deref().unwrap_or(NONE)])
}

/// The same fact of the same user and workspace has the same id, so that keeping it twice keeps it once.
fn id_of(fact: &Remembered) -> Uuid {
    let words: Vec<String> = fact.text.split_whitespace().map(str::to_lowercase).collect();
    let mut hash = Sha256::new();
    for part in [fact.scope.user_id.as_deref().unwrap_or(NONE), fact.scope.workspace.as_deref().unwrap_or(NONE)] {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.update(words.join(" "));
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &hash.finalize())
}

fn payload(fact: &Remembered, model: &str) -> serde_json::Map<String, Value> {
    let payload = json!({
        "id": fact.id, "text": fact.text, "user_id": fact.scope.user_id.as_deref().unwrap_or(NONE),
        "workspace": fact.scope.workspace.as_deref().unwrap_or(NONE), "source": fact.source, "at": fact.at, "model": model,
    });
    let Value::Object(payload) = payload else { unreachable!("an object was just written") };
    payload
}

fn of_hit(hit: &Hit) -> Option<Remembered> {
    of_payload(&hit.id.to_string(), &hit.payload, hit.score)
}

fn of_payload(id: &str, payload: &serde_json::Map<String, Value>, score: f32) -> Option<Remembered> {
    let text = |field: &str| payload.get(field).and_then(Value::as_str);
    let named = |field: &str| text(field).filter(|value| !value.is_empty()).map(str::to_owned);
    Some(Remembered {
        id: id.to_owned(),
        text: text("text")?.to_owned(),
        scope: Scope { user_id: named("user_id"), workspace: named("workspace") },
        source: text("source").and_then(|source| source.parse().ok()),
        at: payload.get("at").and_then(Value::as_i64).unwrap_or(0),
        score,
    })
}

fn of_store(error: &vectors::Error) -> Refusal {
    let code = match error {
        vectors::Error::Unreachable { .. } => "unreachable",
        vectors::Error::Dimensions { .. } => "other_model",
        _ => "internal",
    };
    refusal(code, &error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(user: Option<&str>, workspace: Option<&str>, text: &str) -> Remembered {
        let scope = Scope { user_id: user.map(str::to_owned), workspace: workspace.map(str::to_owned) };
        Remembered { id: String::new(), text: text.to_owned(), scope, source: None, at: 7, score: 0.0 }
    }

    #[test]
    fn the_same_words_of_the_same_user_are_one_fact() {
        let id = |user, workspace, text| id_of(&fact(user, workspace, text));
        assert_eq!(id(Some("a"), None, "Likes  tabs"), id(Some("a"), None, "likes tabs"));
        let others = [
            id(Some("b"), None, "likes tabs"),
            id(Some("a"), Some("/w"), "likes tabs"),
            id(None, Some("a"), "likes tabs"),
        ];
        assert!(others.iter().all(|other| *other != id(Some("a"), None, "likes tabs")));
        assert_ne!(others[0], others[2]);
    }

    #[test]
    fn a_fact_is_read_back_as_it_was_kept() {
        let kept = Remembered { id: "x".into(), ..fact(Some("a"), None, "likes tabs") };
        assert_eq!(of_payload("x", &payload(&kept, "m"), 0.0), Some(kept));
    }
}
