//! Vectors with what they stand for, and the questions between the workers of one machine that share a store in a
//! directory: one of them keeps it, the others ask the keeper on [`crate::subject::rpc_vectors`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

/// Bytes of the points of one question at most, encoded; more are sent in several questions.
pub const QUESTION_BYTES_MAX: usize = 2 << 20;
/// Bytes of the hits or points of one answer at most, encoded: with what surrounds them they must fit one message.
pub const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Hits or points of one answer at most.
pub const LIMIT_MAX: usize = 1_000;

/// A named set of points whose vectors have the same length and are compared by their cosine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Collection {
    /// Its name: `[a-z0-9_]{1,64}`.
    pub name: String,
    /// Numbers of each vector.
    pub dimensions: usize,
    /// Payload fields by which is filtered: strings, or lists of strings. A filter by another field gives the same answer,
    /// and may take much longer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub indexed: Vec<String>,
}

/// A vector and what it stands for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Point {
    /// Its id: a point of the same id is replaced.
    #[serde(with = "uuid::serde::hyphenated")]
    #[schemars(with = "String")]
    pub id: Uuid,
    /// The vector. One that is read back has the length 1, whatever it had before; empty where none was asked for.
    #[serde(default, with = "floats", skip_serializing_if = "Vec::is_empty")]
    #[schemars(with = "crate::wire::Bytes")]
    pub vector: Vec<f32>,
    /// What it stands for. The order of the fields is not kept by every store, and integers are those of `i64`.
    #[serde(default)]
    pub payload: Map<String, Value>,
}

/// A point that was found.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Hit {
    /// Its id.
    #[serde(with = "uuid::serde::hyphenated")]
    #[schemars(with = "String")]
    pub id: Uuid,
    /// The cosine of its vector and the one that was asked for, -1 to 1.
    pub score: f32,
    /// What it stands for.
    #[serde(default)]
    pub payload: Map<String, Value>,
}

/// Which points are meant: those that meet all conditions; all points when there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Filter {
    /// The conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub all: Vec<Condition>,
}

/// A condition on a payload field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Condition {
    /// The field, one of the payload itself: a plain name.
    pub field: String,
    /// The field, or an element of it where it is a list, equals one of these. No point meets an empty list.
    #[serde(default)]
    pub any: Vec<String>,
}

impl Filter {
    /// Every point.
    #[must_use]
    pub const fn everything() -> Self {
        Self { all: Vec::new() }
    }

    /// The points whose `field` equals one of `any`.
    pub fn any<T: Into<String>>(field: impl Into<String>, any: impl IntoIterator<Item = T>) -> Self {
        Self::everything().and(field, any)
    }

    /// Those of them whose `field` equals one of `any`, too.
    #[must_use]
    pub fn and<T: Into<String>>(mut self, field: impl Into<String>, any: impl IntoIterator<Item = T>) -> Self {
        self.all.push(Condition { field: field.into(), any: any.into_iter().map(Into::into).collect() });
        self
    }

    /// Whether no point can meet it.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.all.iter().any(|condition| condition.any.is_empty())
    }
}

/// Question to the keeper of a store; the answer is `Reply<Answer>`. Each may be asked again: the outcome is the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Let the collection be there.
    Ensure {
        /// The collection.
        collection: Collection,
    },
    /// Keep these points.
    Upsert {
        /// The name of the collection.
        collection: String,
        /// The points.
        points: Vec<Point>,
    },
    /// Delete points.
    Delete {
        /// The name of the collection.
        collection: String,
        /// Which.
        filter: Filter,
    },
    /// Find the points that are most alike.
    Search {
        /// The name of the collection.
        collection: String,
        /// Alike to this.
        #[serde(with = "floats")]
        #[schemars(with = "crate::wire::Bytes")]
        vector: Vec<f32>,
        /// Among these.
        filter: Filter,
        /// Hits at most.
        limit: usize,
    },
    /// Read points in the order of their ids.
    Scroll {
        /// The name of the collection.
        collection: String,
        /// Which.
        filter: Filter,
        /// Points at most.
        limit: usize,
        /// The first id that is meant.
        #[serde(default, with = "uuid::serde::hyphenated::option", skip_serializing_if = "Option::is_none")]
        #[schemars(with = "Option<String>")]
        from: Option<Uuid>,
        /// Whether their vectors are wanted, too.
        with_vectors: bool,
    },
    /// Count points.
    Count {
        /// The name of the collection.
        collection: String,
        /// Which.
        filter: Filter,
    },
    /// Delete the collection with all that is in it.
    Forget {
        /// The name of the collection.
        collection: String,
    },
}

/// What the keeper answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done, and on disk.
    Done,
    /// The most alike, the best first.
    Hits(Vec<Hit>),
    /// Points in the order of their ids.
    Page {
        /// The points.
        points: Vec<Point>,
        /// The id from which the rest begins; none at the end.
        #[serde(default, with = "uuid::serde::hyphenated::option", skip_serializing_if = "Option::is_none")]
        #[schemars(with = "Option<String>")]
        next: Option<Uuid>,
    },
    /// How many.
    Count(u64),
    /// There is no such collection.
    NoCollection,
    /// The collection has vectors of another length.
    Dimensions {
        /// Numbers of its vectors.
        have: usize,
        /// Numbers of the vector in question.
        wanted: usize,
    },
}

/// Vectors travel as bytes: four for each number, the lowest first.
mod floats {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(vector: &[f32], serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
        serializer.serialize_bytes(&bytes)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f32>, D::Error> {
        let bytes = serde_bytes::ByteBuf::deserialize(deserializer)?;
        let (numbers, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() {
            return Err(D::Error::custom("a vector has four bytes for each number"));
        }
        Ok(numbers.iter().map(|number| f32::from_le_bytes(*number)).collect())
    }
}
