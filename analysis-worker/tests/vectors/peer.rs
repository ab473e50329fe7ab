//! A peer for the client of a Qdrant server, where there is no such server.
//!
//! What it is: the server's own gRPC API, as it is published, in front of our own files of vectors. Services and messages
//! are those that `qdrant-client` generates from Qdrant's protocol files. It answers the calls that our client makes, with
//! the status codes and sentences of the server.
//!
//! What it is not: a Qdrant server, or any code of one. It shows that our client speaks the protocol, and nothing of how a
//! server searches. Every other call is "unimplemented"; of the calls it knows, it reads the fields that our client sets
//! (vectors without a name, filters of matching keywords) and refuses other filters. It has no replicas and no queue of
//! updates (what it answered is done, as with `wait`), and forgets everything at its end. The same tests run against a real
//! server when `QDRANT_URL` names one.

mod words;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use ::qdrant_client::qdrant::collections_server::{Collections, CollectionsServer};
use ::qdrant_client::qdrant::points_server::{Points, PointsServer};
use ::qdrant_client::qdrant::qdrant_server::{Qdrant, QdrantServer};
use ::qdrant_client::qdrant::*;
use analysis_worker::vectors::{Collection, Local, Lock, VectorStore};
use runtime::Tasks;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// The peer, until it is stopped.
pub(crate) struct Peer {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    tasks: Tasks,
}

impl Peer {
    /// Starts one on `address`, which wants to be shown `key` if there is one.
    pub(crate) async fn start(address: &str, key: Option<&'static str>) -> Self {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let directory = tempfile::tempdir().expect("a directory");
        let lock = Lock::take(directory.path()).expect("a directory").expect("nobody has it");
        let store = Local::open(lock).expect("it opens");
        let state = Arc::new(State { store, collections: Mutex::default(), _directory: directory });
        let shown = move |request: Request<()>| match (key, request.metadata().get("api-key")) {
            (Some(key), Some(shown)) if shown.as_bytes() != key.as_bytes() => {
                Err(Status::unauthenticated("Invalid API key or JWT"))
            }
            (Some(_), None) => Err(Status::unauthenticated("Must provide an API key or an Authorization bearer token")),
            _ => Ok(request),
        };
        let points = PointsServer::from_arc(state.clone()).max_decoding_message_size(usize::MAX);
        let server = Server::builder()
            .layer(tonic::service::InterceptorLayer::new(shown))
            .add_service(QdrantServer::from_arc(state.clone()))
            .add_service(CollectionsServer::from_arc(state))
            .add_service(points);
        let tasks = Tasks::new();
        let stopped = tasks.soft().cancelled_owned();
        tasks.spawn(async move {
            server.serve_with_incoming_shutdown(TcpIncoming::from(listener), stopped).await.expect("it serves");
        });
        Self { address, tasks }
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends it, with all connections.
    pub(crate) async fn stop(self) {
        self.tasks.stop();
        self.tasks.drained(std::time::Duration::from_secs(1)).await;
    }
}

struct State {
    store: Local,
    collections: Mutex<BTreeMap<String, Collection>>,
    _directory: TempDir,
}

impl State {
    fn collection(&self, name: &str) -> Result<Collection, Status> {
        let collections = self.collections.lock().expect("no panic while it is held");
        let unknown = || Status::not_found(format!("Not found: Collection `{name}` doesn't exist!"));
        collections.get(name).cloned().ok_or_else(unknown)
    }

    async fn set(&self, collection: Collection) -> Result<(), Status> {
        self.store.ensure(&collection).await.map_err(words::status)?;
        self.collections.lock().expect("no panic while it is held").insert(collection.name.clone(), collection);
        Ok(())
    }
}

fn updated() -> Done<PointsOperationResponse> {
    let result = UpdateResult { operation_id: Some(0), status: UpdateStatus::Completed.into() };
    Ok(Response::new(PointsOperationResponse { result: Some(result), ..Default::default() }))
}

type Done<T> = Result<Response<T>, Status>;

fn valid_limit(limit: u64) -> Result<usize, Status> {
    match usize::try_from(limit) {
        Ok(limit) if limit > 0 => Ok(limit),
        _ => Err(Status::invalid_argument(format!(
            "Validation error in body: [limit: value {limit} invalid, must be 1.0 or larger]"
        ))),
    }
}

/// A service of which only some calls are known.
macro_rules! service {
    (impl $service:ident { $($known:tt)* } unknown { $($name:ident($question:ty) -> $answer:ty;)* }) => {
        #[tonic::async_trait]
        impl $service for State {
            $($known)*
            $(async fn $name(&self, _: Request<$question>) -> Done<$answer> {
                Err(Status::unimplemented(concat!("this peer does not know ", stringify!($name))))
            })*
        }
    };
}

service! {
    impl Qdrant {
        async fn health_check(&self, _: Request<HealthCheckRequest>) -> Done<HealthCheckReply> {
            let title = "a peer for tests".to_owned();
            Ok(Response::new(HealthCheckReply { title, version: "1.20.0".to_owned(), commit: None }))
        }
    }
    unknown {}
}

service! {
    impl Collections {
        async fn get(&self, request: Request<GetCollectionInfoRequest>) -> Done<GetCollectionInfoResponse> {
            let result = Some(words::info(&self.collection(&request.into_inner().collection_name)?));
            Ok(Response::new(GetCollectionInfoResponse { result, time: 0.0 }))
        }

        async fn collection_exists(&self, request: Request<CollectionExistsRequest>) -> Done<CollectionExistsResponse> {
            let exists = self.collection(&request.into_inner().collection_name).is_ok();
            Ok(Response::new(CollectionExistsResponse { result: Some(CollectionExists { exists }), time: 0.0 }))
        }

        async fn create(&self, request: Request<CreateCollection>) -> Done<CollectionOperationResponse> {
            let request = request.into_inner();
            let name = request.collection_name;
            let dimensions = match request.vectors_config.and_then(|config| config.config) {
                Some(vectors_config::Config::Params(vectors)) if vectors.distance() == Distance::Cosine => vectors.size,
                _ => return Err(Status::unimplemented("this peer knows vectors without a name and their cosine only")),
            };
            if self.collection(&name).is_ok() {
                return Err(Status::already_exists(format!("Wrong input: Collection `{name}` already exists!")));
            }
            let dimensions = usize::try_from(dimensions).expect("a small number");
            self.set(Collection { name, dimensions, indexed: vec![] }).await?;
            Ok(Response::new(CollectionOperationResponse { result: true, time: 0.0 }))
        }

        async fn delete(&self, request: Request<DeleteCollection>) -> Done<CollectionOperationResponse> {
            let name = request.into_inner().collection_name;
            self.store.forget(&name).await.map_err(words::status)?;
            let result = self.collections.lock().expect("no panic while it is held").remove(&name).is_some();
            Ok(Response::new(CollectionOperationResponse { result, time: 0.0 }))
        }
    }
    unknown {
        list(ListCollectionsRequest) -> ListCollectionsResponse;
        update(UpdateCollection) -> CollectionOperationResponse;
        update_aliases(ChangeAliases) -> CollectionOperationResponse;
        list_collection_aliases(ListCollectionAliasesRequest) -> ListAliasesResponse;
        list_aliases(ListAliasesRequest) -> ListAliasesResponse;
        collection_cluster_info(CollectionClusterInfoRequest) -> CollectionClusterInfoResponse;
        update_collection_cluster_setup(UpdateCollectionClusterSetupRequest) -> UpdateCollectionClusterSetupResponse;
        create_shard_key(CreateShardKeyRequest) -> CreateShardKeyResponse;
        delete_shard_key(DeleteShardKeyRequest) -> DeleteShardKeyResponse;
        list_shard_keys(ListShardKeysRequest) -> ListShardKeysResponse;
    }
}

service! {
    impl Points {
        async fn upsert(&self, request: Request<UpsertPoints>) -> Done<PointsOperationResponse> {
            let request = request.into_inner();
            self.collection(&request.collection_name)?;
            let points = request.points.into_iter().map(words::point).collect::<Result<_, Status>>()?;
            self.store.upsert(&request.collection_name, points).await.map_err(words::status)?;
            updated()
        }

        async fn delete(&self, request: Request<DeletePoints>) -> Done<PointsOperationResponse> {
            let request = request.into_inner();
            self.collection(&request.collection_name)?;
            let which = request.points.and_then(|points| points.points_selector_one_of);
            let Some(points_selector::PointsSelectorOneOf::Filter(filter)) = which else {
                return Err(Status::unimplemented("this peer deletes by filter only"));
            };
            let filter = words::filter(Some(filter))?;
            self.store.delete(&request.collection_name, &filter).await.map_err(words::status)?;
            updated()
        }

        async fn create_field_index(&self, request: Request<CreateFieldIndexCollection>) -> Done<PointsOperationResponse> {
            let request = request.into_inner();
            if request.field_type() != FieldType::Keyword {
                return Err(Status::unimplemented("this peer knows indexes of keywords only"));
            }
            let mut collection = self.collection(&request.collection_name)?;
            collection.indexed.push(request.field_name);
            self.set(collection).await?;
            updated()
        }

        async fn query(&self, request: Request<QueryPoints>) -> Done<QueryResponse> {
            let request = request.into_inner();
            let limit = valid_limit(request.limit.unwrap_or(10))?;
            self.collection(&request.collection_name)?;
            let nearest = match request.query.and_then(|query| query.variant) {
                Some(query::Variant::Nearest(VectorInput { variant: Some(vector_input::Variant::Dense(vector)) })) => vector.data,
                _ => return Err(Status::unimplemented("this peer searches for the nearest of a vector only")),
            };
            let filter = words::filter(request.filter)?;
            let found = self.store.search(&request.collection_name, nearest, &filter, limit).await.map_err(words::status)?;
            let payload = words::payload_is_wanted(request.with_payload);
            let result = found.into_iter().map(|hit| words::scored(hit, payload)).collect();
            Ok(Response::new(QueryResponse { result, ..Default::default() }))
        }

        async fn scroll(&self, request: Request<ScrollPoints>) -> Done<ScrollResponse> {
            let request = request.into_inner();
            let limit = valid_limit(request.limit.unwrap_or(10).into())?;
            self.collection(&request.collection_name)?;
            let from = request.offset.map(words::uuid).transpose()?;
            let filter = words::filter(request.filter)?;
            let vectors = words::vectors_are_wanted(request.with_vectors);
            let page = self.store.scroll(&request.collection_name, &filter, limit, from, vectors).await;
            let (found, next) = page.map_err(words::status)?;
            let payload = words::payload_is_wanted(request.with_payload);
            let result = found.into_iter().map(|point| words::retrieved(point, payload, vectors)).collect();
            Ok(Response::new(ScrollResponse { next_page_offset: next.map(words::id), result, ..Default::default() }))
        }

        async fn count(&self, request: Request<CountPoints>) -> Done<CountResponse> {
            let request = request.into_inner();
            self.collection(&request.collection_name)?;
            let filter = words::filter(request.filter)?;
            let count = self.store.count(&request.collection_name, &filter).await.map_err(words::status)?;
            Ok(Response::new(CountResponse { result: Some(CountResult { count }), ..Default::default() }))
        }
    }
    unknown {
        get(GetPoints) -> GetResponse;
        update_vectors(UpdatePointVectors) -> PointsOperationResponse;
        delete_vectors(DeletePointVectors) -> PointsOperationResponse;
        set_payload(SetPayloadPoints) -> PointsOperationResponse;
        overwrite_payload(SetPayloadPoints) -> PointsOperationResponse;
        delete_payload(DeletePayloadPoints) -> PointsOperationResponse;
        clear_payload(ClearPayloadPoints) -> PointsOperationResponse;
        delete_field_index(DeleteFieldIndexCollection) -> PointsOperationResponse;
        create_vector_name(CreateVectorNameRequest) -> PointsOperationResponse;
        delete_vector_name(DeleteVectorNameRequest) -> PointsOperationResponse;
        search(SearchPoints) -> SearchResponse;
        search_batch(SearchBatchPoints) -> SearchBatchResponse;
        search_groups(SearchPointGroups) -> SearchGroupsResponse;
        recommend(RecommendPoints) -> RecommendResponse;
        recommend_batch(RecommendBatchPoints) -> RecommendBatchResponse;
        recommend_groups(RecommendPointGroups) -> RecommendGroupsResponse;
        discover(DiscoverPoints) -> DiscoverResponse;
        discover_batch(DiscoverBatchPoints) -> DiscoverBatchResponse;
        update_batch(UpdateBatchPoints) -> UpdateBatchResponse;
        query_batch(QueryBatchPoints) -> QueryBatchResponse;
        query_groups(QueryPointGroups) -> QueryGroupsResponse;
        facet(FacetCounts) -> FacetResponse;
        search_matrix_pairs(SearchMatrixPoints) -> SearchMatrixPairsResponse;
        search_matrix_offsets(SearchMatrixPoints) -> SearchMatrixOffsetsResponse;
    }
}
