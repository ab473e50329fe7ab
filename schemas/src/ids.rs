//! Ids that name things on the bus. Each one is a type, and each one is a valid subject token.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

/// Number of partitions of the log. Fixed when the log is created and recorded in its streams.
pub const PARTITIONS: u8 = 16;

/// One execution: a request and everything that follows from it. A UUIDv7, made once at the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct ExecutionId(Uuid);

impl ExecutionId {
    /// Wraps a UUID that the caller made (or read).
    #[must_use]
    pub const fn new(id: Uuid) -> Self {
        Self(id)
    }

    /// The id of the execution that `effect` of `parent` asks for at `at` (nanoseconds): a UUIDv7 whose random part is
    /// a hash, so that deciding again names the same child.
    #[must_use]
    pub fn child(parent: Self, effect: &EffectId, attempt: u32, at: i64) -> Self {
        let digest = Sha256::digest(format!("{parent}/{effect}/{attempt}"));
        let mut random = [0; 10];
        random.copy_from_slice(&digest[..10]);
        let millis = u64::try_from(at / 1_000_000).unwrap_or(0);
        Self(uuid::Builder::from_unix_timestamp_millis(millis, &random).into_uuid())
    }

    /// When the id was made, to the millisecond, by the clock of who made it (nanoseconds); 0 when it does not say.
    #[must_use]
    pub fn made_at(&self) -> i64 {
        let millis = (self.0.get_version_num() == 7).then(|| self.0.as_u128() >> 80);
        millis.and_then(|millis| i64::try_from(millis * 1_000_000).ok()).unwrap_or(0)
    }

    /// The partition that holds this execution: `partition(16, exec)` as the NATS server computes it, which is
    /// FNV-1a (32 bit) over the token's bytes, modulo the number of partitions.
    #[must_use]
    pub fn partition(&self) -> Partition {
        let mut hash: u32 = 0x811c_9dc5;
        for byte in self.to_string().bytes() {
            hash ^= u32::from(byte);
            hash = hash.wrapping_mul(0x0100_0193);
        }
        Partition((hash % u32::from(PARTITIONS)) as u8)
    }
}

impl PartialSchema for ExecutionId {
    fn schema() -> RefOr<Schema> {
        let format = SchemaFormat::Custom("uuid".to_owned());
        ObjectBuilder::new().schema_type(Type::String).format(Some(format)).into()
    }
}

impl ToSchema for ExecutionId {}

impl fmt::Display for ExecutionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The text is not an id of the expected form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not {expected}: {found:?}")]
pub struct InvalidId {
    /// What was expected, in words.
    pub expected: &'static str,
    /// The text that was found.
    pub found: String,
}

impl FromStr for ExecutionId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid =
            || InvalidId { expected: "an execution id (a UUID such as 0192f0c1-…)", found: text.to_owned() };
        let id = Uuid::try_parse(text).map_err(|_| invalid())?;
        // Only the canonical form is a name: the partition is computed from its bytes.
        if id.to_string() == text { Ok(Self(id)) } else { Err(invalid()) }
    }
}

impl TryFrom<String> for ExecutionId {
    type Error = InvalidId;
    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<ExecutionId> for String {
    fn from(id: ExecutionId) -> Self {
        id.to_string()
    }
}

/// One of the [`PARTITIONS`] parts of the log; each is a stream of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Partition(u8);

impl Partition {
    /// All partitions, in order.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..PARTITIONS).map(Self)
    }

    /// The partition's number, `0..16`.
    #[must_use]
    pub const fn number(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One effect of an execution: an inference or a tool call that a decision asked for. Derived from the execution's
/// turn, never drawn: `<turn>-<kind>-<ordinal>`, for example `2-tool-0`, so that every replay finds the same id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(transparent)]
pub struct EffectId(String);

impl EffectId {
    /// The inference of a turn.
    #[must_use]
    pub fn inference(turn: u32) -> Self {
        Self(format!("{turn}-infer-0"))
    }

    /// The `ordinal`-th tool call of a turn.
    #[must_use]
    pub fn tool(turn: u32, ordinal: usize) -> Self {
        Self(format!("{turn}-tool-{ordinal}"))
    }

    /// The execution that the `ordinal`-th call of a turn asks for.
    #[must_use]
    pub fn child(turn: u32, ordinal: usize) -> Self {
        Self(format!("{turn}-child-{ordinal}"))
    }

    /// The `n`-th compression, from 1.
    #[must_use]
    pub fn compression(n: u32) -> Self {
        Self(format!("{n}-compress-0"))
    }

    /// The id as it stands in subjects and SSE ids.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for EffectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for EffectId {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let ok = (1..=64).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_');
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidId { expected: "an effect id such as 1-infer-0", found: text.to_owned() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partition_is_fnv1a_of_the_token() {
        // Figures of `partition(16, …)` on nats-server 2.15.1 are checked against these in `tests/`.
        let id: ExecutionId = "0192f0c1-7a3b-7c4d-8e5f-001122334455".parse().expect("canonical");
        assert_eq!(id.partition(), id.partition());
        assert!(id.partition().number() < PARTITIONS);
    }

    #[test]
    fn only_the_canonical_form_is_an_id() {
        assert!("0192F0C1-7a3b-7c4d-8e5f-001122334455".parse::<ExecutionId>().is_err());
        assert!("nonsense".parse::<ExecutionId>().is_err());
    }

    #[test]
    fn effect_ids_are_subject_tokens() {
        assert_eq!(EffectId::tool(2, 1).as_str(), "2-tool-1");
        assert!("1.infer".parse::<EffectId>().is_err());
        assert!("".parse::<EffectId>().is_err());
    }
}
