//! The server's words for ours, and what it says when it does not do what was asked.

use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_client::qdrant::vector_output::Vector;
use qdrant_client::qdrant::vectors_config::Config as VectorsConfig;
use qdrant_client::qdrant::{
    CollectionInfo, Condition, Distance, Filter as ServerFilter, PointId, PointStruct, RetrievedPoint, ScoredPoint,
    Value as ServerValue, VectorParams,
};
use qdrant_client::{Payload, QdrantError};
use serde_json::{Map, Value};
use tonic::Code;
use uuid::Uuid;

use crate::vectors::{Collection, Error, Filter, Hit, Point};

/// What to do about an error.
pub(super) enum Fault {
    /// Ask again.
    Transient(String),
    /// It will not change.
    Final(Error),
}

pub(super) fn fault(collection: &str, error: &QdrantError) -> Fault {
    let status = match error {
        QdrantError::ResponseError { status } | QdrantError::ResourceExhaustedError { status, .. } => status,
        other => return Fault::Final(Error::Broken(other.to_string())),
    };
    let said = status.message();
    match status.code() {
        Code::Unavailable
        | Code::Unknown
        | Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::ResourceExhausted => Fault::Transient(said.to_owned()),
        // The client's own word for a connection that was refused.
        Code::Internal if said.starts_with("Failed to connect") => Fault::Transient(said.to_owned()),
        Code::NotFound => Fault::Final(Error::UnknownCollection(collection.to_owned())),
        Code::Unauthenticated | Code::PermissionDenied => {
            Fault::Final(Error::Refused(format!("{said}; check analysis.vectors.api_key")))
        }
        Code::InvalidArgument | Code::AlreadyExists | Code::FailedPrecondition | Code::OutOfRange => {
            Fault::Final(Error::Refused(said.to_owned()))
        }
        code => Fault::Final(Error::Broken(format!("{code}: {said}"))),
    }
}

/// The vectors of a collection, which must be ours: one for each point, compared by cosine.
pub(super) fn vectors(collection: &str, info: &CollectionInfo) -> Result<VectorParams, Error> {
    let config =
        info.config.as_ref().and_then(|config| config.params.as_ref()?.vectors_config.as_ref()?.config.as_ref());
    match config {
        Some(VectorsConfig::Params(vectors)) if vectors.distance() == Distance::Cosine => Ok(*vectors),
        _ => Err(Error::Refused(format!(
            "collection {collection} is there and not ours: its vectors are of another kind"
        ))),
    }
}

pub(super) fn same(collection: &Collection, vectors: &VectorParams) -> Result<(), Error> {
    let (have, wanted) = (usize::try_from(vectors.size).unwrap_or(usize::MAX), collection.dimensions);
    if have == wanted { Ok(()) } else { Err(Error::Dimensions { collection: collection.name.clone(), have, wanted }) }
}

pub(super) fn condition(filter: &Filter) -> ServerFilter {
    ServerFilter::must(filter.all.iter().map(|condition| Condition::matches(&condition.field, condition.any.clone())))
}

pub(super) fn written(point: Point) -> PointStruct {
    PointStruct::new(point.id.to_string(), point.vector, Payload::from(point.payload))
}

pub(super) fn hit(collection: &str, found: ScoredPoint) -> Result<Hit, Error> {
    Ok(Hit { id: id(collection, found.id)?, score: found.score, payload: fields(found.payload) })
}

pub(super) fn read(collection: &str, found: RetrievedPoint) -> Result<Point, Error> {
    let vector = match found.vectors.and_then(|vectors| vectors.get_vector()) {
        Some(Vector::Dense(vector)) => vector.data,
        _ => Vec::new(),
    };
    Ok(Point { id: id(collection, found.id)?, vector, payload: fields(found.payload) })
}

fn fields(payload: impl IntoIterator<Item = (String, ServerValue)>) -> Map<String, Value> {
    payload.into_iter().map(|(field, value)| (field, value.into_json())).collect()
}

pub(super) fn id(collection: &str, id: Option<PointId>) -> Result<Uuid, Error> {
    let none_of_ours = |id: &dyn std::fmt::Debug| Error::Broken(format!("{collection}: point {id:?} is none of ours"));
    match id.and_then(|id| id.point_id_options) {
        Some(PointIdOptions::Uuid(id)) => id.parse().map_err(|_| none_of_ours(&id)),
        other => Err(none_of_ours(&other)),
    }
}
