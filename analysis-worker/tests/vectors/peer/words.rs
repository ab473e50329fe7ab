//! The words of the protocol for ours, and back.

use analysis_worker::vectors::{Collection, Condition as OurCondition, Error, Filter as OurFilter, Hit, Point};
use qdrant_client::qdrant::point_id::PointIdOptions;
use qdrant_client::qdrant::{
    CollectionConfig, CollectionInfo, CollectionParams, CollectionStatus, Condition, DenseVector, Distance, Filter,
    PayloadSchemaInfo, PayloadSchemaType, PointId, PointStruct, RetrievedPoint, ScoredPoint, Value, VectorOutput,
    VectorParams, VectorsConfig, VectorsOutput, WithPayloadSelector, WithVectorsSelector, condition, r#match, vector,
    vector_output, vectors, vectors_config, vectors_output, with_payload_selector, with_vectors_selector,
};
use serde_json::Map;
use tonic::Status;
use uuid::Uuid;

/// The code and the sentence that the server has for an error.
pub(crate) fn status(error: Error) -> Status {
    match error {
        Error::Dimensions { have, wanted, .. } => {
            let sentence = format!("Wrong input: Vector dimension error: expected dim: {have}, got {wanted}");
            Status::invalid_argument(sentence)
        }
        Error::Refused(why) => Status::invalid_argument(format!("Wrong input: {why}")),
        Error::UnknownCollection(name) => Status::not_found(format!("Not found: Collection `{name}` doesn't exist!")),
        Error::Broken(why) | Error::Unreachable { reason: why, .. } => {
            Status::internal(format!("Service internal error: {why}"))
        }
    }
}

pub(crate) fn info(collection: &Collection) -> CollectionInfo {
    let (size, distance) = (collection.dimensions as u64, Distance::Cosine.into());
    let vectors = VectorParams { size, distance, ..Default::default() };
    let vectors = VectorsConfig { config: Some(vectors_config::Config::Params(vectors)) };
    let params = CollectionParams { shard_number: 1, vectors_config: Some(vectors), ..Default::default() };
    let keyword = PayloadSchemaInfo { data_type: PayloadSchemaType::Keyword.into(), params: None, points: None };
    CollectionInfo {
        status: CollectionStatus::Green.into(),
        segments_count: 1,
        config: Some(CollectionConfig { params: Some(params), ..Default::default() }),
        payload_schema: collection.indexed.iter().map(|field| (field.clone(), keyword.clone())).collect(),
        ..Default::default()
    }
}

#[expect(deprecated, reason = "older clients send a vector's numbers there")]
pub(crate) fn point(point: PointStruct) -> Result<Point, Status> {
    let id = uuid(point.id.ok_or_else(|| Status::invalid_argument("Empty point id"))?)?;
    let Some(vectors::VectorsOptions::Vector(vector)) = point.vectors.and_then(|vectors| vectors.vectors_options)
    else {
        return Err(Status::unimplemented("this peer knows vectors without a name only"));
    };
    let vector = match vector.vector {
        Some(vector::Vector::Dense(dense)) => dense.data,
        None => vector.data,
        Some(_) => return Err(Status::unimplemented("this peer knows dense vectors only")),
    };
    let payload = point.payload.into_iter().map(|(field, value)| (field, value.into_json())).collect();
    Ok(Point { id, vector, payload })
}

pub(crate) fn filter(filter: Option<Filter>) -> Result<OurFilter, Status> {
    let Some(filter) = filter else { return Ok(OurFilter::everything()) };
    if !filter.should.is_empty() || !filter.must_not.is_empty() || filter.min_should.is_some() {
        return Err(Status::unimplemented("this peer knows filters that must match only"));
    }
    Ok(OurFilter { all: filter.must.into_iter().map(keywords).collect::<Result<_, Status>>()? })
}

fn keywords(condition: Condition) -> Result<OurCondition, Status> {
    let unknown = || Status::unimplemented("this peer knows conditions on keywords only");
    let Some(condition::ConditionOneOf::Field(field)) = condition.condition_one_of else { return Err(unknown()) };
    match field.r#match.and_then(|value| value.match_value) {
        Some(r#match::MatchValue::Keywords(any)) => Ok(OurCondition { field: field.key, any: any.strings }),
        Some(r#match::MatchValue::Keyword(one)) => Ok(OurCondition { field: field.key, any: vec![one] }),
        _ => Err(unknown()),
    }
}

pub(crate) fn payload_is_wanted(wanted: Option<WithPayloadSelector>) -> bool {
    let wanted = wanted.and_then(|wanted| wanted.selector_options);
    matches!(wanted, Some(with_payload_selector::SelectorOptions::Enable(true)))
}

pub(crate) fn vectors_are_wanted(wanted: Option<WithVectorsSelector>) -> bool {
    let wanted = wanted.and_then(|wanted| wanted.selector_options);
    matches!(wanted, Some(with_vectors_selector::SelectorOptions::Enable(true)))
}

pub(crate) fn scored(hit: Hit, payload: bool) -> ScoredPoint {
    let payload = fields(hit.payload, payload);
    ScoredPoint { id: Some(id(hit.id)), payload, score: hit.score, ..Default::default() }
}

pub(crate) fn retrieved(point: Point, payload: bool, vectors: bool) -> RetrievedPoint {
    let vector = vector_output::Vector::Dense(DenseVector { data: point.vector });
    let vector = VectorOutput { vector: Some(vector), ..Default::default() };
    let vector = VectorsOutput { vectors_options: Some(vectors_output::VectorsOptions::Vector(vector)) };
    let (id, payload) = (Some(id(point.id)), fields(point.payload, payload));
    RetrievedPoint { id, payload, vectors: vectors.then_some(vector), ..Default::default() }
}

fn fields<Fields: FromIterator<(String, Value)>>(payload: Map<String, serde_json::Value>, wanted: bool) -> Fields {
    payload.into_iter().filter(|_| wanted).map(|(field, value)| (field, value.into())).collect()
}

pub(crate) fn uuid(id: PointId) -> Result<Uuid, Status> {
    match id.point_id_options {
        Some(PointIdOptions::Uuid(id)) => {
            id.parse().map_err(|_| Status::invalid_argument(format!("Unable to parse UUID: {id}")))
        }
        _ => Err(Status::unimplemented("this peer knows points by UUID only")),
    }
}

pub(crate) fn id(id: Uuid) -> PointId {
    PointId { point_id_options: Some(PointIdOptions::Uuid(id.to_string())) }
}
