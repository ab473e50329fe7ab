//! Encoding: MessagePack with named maps, so that a reader skips fields it does not know and a missing field has its
//! default. Facts of plain clients may be JSON. Times are integer nanoseconds since the Unix epoch, in UTC.

use std::borrow::Cow;

use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Nanoseconds since the Unix epoch, UTC.
pub type Nanos = i64;

/// A message that has a name and a version on the wire, written `name/major.minor`.
///
/// A new optional field raises the minor version; a new meaning is a new major version beside the old one.
pub trait Schema {
    /// Name and version of the message this code writes.
    const SCHEMA: &'static str;

    /// Whether this code reads a message that calls itself `found`: same name and same major version.
    #[must_use]
    fn reads(found: &str) -> bool {
        fn major(schema: &str) -> Option<(&str, &str)> {
            let (name, version) = schema.split_once('/')?;
            Some((name, version.split_once('.').map_or(version, |(major, _)| major)))
        }
        major(found).is_some() && major(found) == major(Self::SCHEMA)
    }
}

/// Bytes as MessagePack has them and JSON has not: how they stand in schemas.
pub struct Bytes;

impl JsonSchema for Bytes {
    fn schema_name() -> Cow<'static, str> {
        "Bytes".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"description": "MessagePack's type bin.", "type": "string", "format": "binary"})
    }
}

/// The bytes are not a message of the expected type.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Not MessagePack, or a required field is missing or of another type.
    #[error("decode a message: {0}")]
    Malformed(#[from] rmp_serde::decode::Error),
    /// Not JSON, or a required field is missing or of another type.
    #[error("read a message in JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A message of another name or major version.
    #[error("message is {found}, this version reads {expected}")]
    Schema {
        /// What the message calls itself.
        found: String,
        /// What this code reads.
        expected: &'static str,
    },
}

/// Encodes a message. The same value always gives the same bytes.
///
/// # Panics
/// Never for the types of this crate: they hold nothing that MessagePack cannot carry.
#[must_use]
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(message).expect("wire types hold only maps with string keys, sequences and scalars")
}

/// Decodes a message that says its version, `schema`, and checks that.
///
/// # Errors
/// [`DecodeError::Schema`] when it is of another name or major version, whatever else it holds; otherwise
/// [`DecodeError::Malformed`] when the bytes are something else.
pub fn read<T: Schema + DeserializeOwned>(bytes: &[u8], schema: impl Fn(&T) -> &str) -> Result<T, DecodeError> {
    checked(decode::<T>(bytes), || decode::<Named>(bytes).ok(), schema)
}

/// The same of a message in JSON, as clients write it that are not ours.
///
/// # Errors
/// [`DecodeError::Schema`] when it is of another name or major version, otherwise [`DecodeError::Json`].
pub fn read_json<T: Schema + DeserializeOwned>(bytes: &[u8], schema: impl Fn(&T) -> &str) -> Result<T, DecodeError> {
    let message = serde_json::from_slice::<T>(bytes).map_err(DecodeError::from);
    checked(message, || serde_json::from_slice::<Named>(bytes).ok(), schema)
}

/// Another version may look different in every field but its name.
fn checked<T: Schema>(
    message: Result<T, DecodeError>,
    named: impl FnOnce() -> Option<Named>,
    schema: impl Fn(&T) -> &str,
) -> Result<T, DecodeError> {
    let unknown = |found: &str| DecodeError::Schema { found: found.to_owned(), expected: T::SCHEMA };
    match message {
        Ok(message) if T::reads(schema(&message)) => Ok(message),
        Ok(message) => Err(unknown(schema(&message))),
        Err(error) => {
            let named = named().filter(|named| !T::reads(&named.schema));
            Err(named.map_or(error, |named| unknown(&named.schema)))
        }
    }
}

/// What every versioned message has.
#[derive(serde::Deserialize)]
struct Named {
    schema: String,
}

/// Decodes a message.
///
/// # Errors
/// [`DecodeError::Malformed`] when the bytes are something else.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    Ok(rmp_serde::from_slice(bytes)?)
}
