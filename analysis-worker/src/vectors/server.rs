//! A Qdrant server, over gRPC.
//!
//! Every call may be repeated, so one that a server did not answer is tried again until its time is over: a server that is
//! started anew is not noticed.

mod words;

use std::future::Future;
use std::time::Duration;

use futures::FutureExt;
use qdrant_client::qdrant::{
    CollectionInfo, CountPointsBuilder, CreateCollectionBuilder, CreateFieldIndexCollectionBuilder,
    DeletePointsBuilder, Distance, FieldType, PointStruct, QueryPointsBuilder, ScrollPointsBuilder,
    UpsertPointsBuilder, VectorParamsBuilder,
};
use qdrant_client::{Qdrant, QdrantError};
use runtime::clock;
use runtime::config::Secret;
use uuid::Uuid;

use super::{Collection, Error, Filter, Hit, Outcome, Point, VectorStore, check};
use words::Fault;

/// Points of one request: a few megabytes with the code they stand for.
const POINTS_AT_ONCE: usize = 500;
/// How long to wait before the second try; twice as long before each further one, up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// The longest pause: a server that comes back is used within about a second.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How long one connection may take; a further try may follow.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A Qdrant server.
pub struct Server {
    client: Qdrant,
    url: String,
    timeout: Duration,
}

impl Server {
    /// The server at `url`, which shows it `key` and gives each call `timeout` with all of its tries. Nothing is asked yet.
    ///
    /// # Errors
    /// [`Error::Refused`] when the URL is none.
    pub fn new(url: &str, key: Option<&Secret>, timeout: Duration) -> Result<Self, Error> {
        // The client would ask for the server's version, and say what it thinks of it on stdout.
        let client = Qdrant::from_url(url)
            .skip_compatibility_check()
            .timeout(timeout)
            .connect_timeout(timeout.min(CONNECT_TIMEOUT))
            .api_key(key.map(Secret::expose))
            .build()
            .map_err(|error| Error::Refused(format!("{url}: {error}")))?;
        Ok(Self { client, url: url.to_owned(), timeout })
    }

    /// Asks until there is an answer or the time is over.
    async fn call<T, F>(&self, collection: &str, ask: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, QdrantError>>,
    {
        let began = clock::instant();
        let mut pause = PAUSE_MIN;
        let mut reason = format!("no answer within {:?}", self.timeout);
        loop {
            let left = self.timeout.saturating_sub(clock::instant().duration_since(began));
            match tokio::time::timeout(left, ask()).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => match words::fault(collection, &error) {
                    Fault::Final(error) => return Err(error),
                    Fault::Transient(why) => reason = why,
                },
                Err(_) => return Err(self.unreachable(reason)),
            }
            if left <= pause {
                return Err(self.unreachable(reason));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn unreachable(&self, reason: String) -> Error {
        Error::Unreachable { at: self.describe(), reason }
    }

    async fn info(&self, collection: &str) -> Result<Option<CollectionInfo>, Error> {
        match self.call(collection, || self.client.collection_info(collection)).await {
            Ok(response) => Ok(response.result),
            Err(Error::UnknownCollection(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn ensured(&self, collection: &Collection) -> Result<(), Error> {
        let name = collection.name.as_str();
        let info = match self.info(name).await? {
            Some(info) => info,
            None => {
                let created = self.create(collection).await;
                // Somebody else may have been faster, which is as good.
                match self.info(name).await? {
                    Some(info) => info,
                    None => return Err(created.err().unwrap_or_else(|| Error::UnknownCollection(name.to_owned()))),
                }
            }
        };
        words::same(collection, &words::vectors(name, &info)?)?;
        for field in collection.indexed.iter().filter(|field| !info.payload_schema.contains_key(*field)) {
            let index = CreateFieldIndexCollectionBuilder::new(name, field, FieldType::Keyword).wait(true);
            self.call(name, || self.client.create_field_index(index.clone())).await?;
        }
        Ok(())
    }

    async fn create(&self, collection: &Collection) -> Result<(), Error> {
        let vectors = VectorParamsBuilder::new(collection.dimensions as u64, Distance::Cosine);
        let create = CreateCollectionBuilder::new(&collection.name).vectors_config(vectors);
        self.call(&collection.name, || self.client.create_collection(create.clone())).await.map(|_| ())
    }

    async fn upserted(&self, collection: &str, mut points: Vec<Point>) -> Result<(), Error> {
        check::points(&points)?;
        if points.is_empty() {
            // Nobody would be asked whether the collection is there.
            return self
                .info(collection)
                .await?
                .map(|_| ())
                .ok_or_else(|| Error::UnknownCollection(collection.to_owned()));
        }
        while !points.is_empty() {
            let some: Vec<Point> = points.drain(..points.len().min(POINTS_AT_ONCE)).collect();
            let lengths: Vec<usize> = some.iter().map(|point| point.vector.len()).collect();
            let some: Vec<PointStruct> = some.into_iter().map(words::written).collect();
            let upsert = UpsertPointsBuilder::new(collection, some).wait(true);
            if let Err(error) = self.call(collection, || self.client.upsert_points(upsert.clone())).await {
                return Err(self.explained(collection, &lengths, error).await);
            }
        }
        Ok(())
    }

    async fn searched(
        &self,
        collection: &str,
        vector: Vec<f32>,
        filter: &Filter,
        limit: usize,
    ) -> Result<Vec<Hit>, Error> {
        check::vector(&vector)?;
        check::limit(limit)?;
        let length = [vector.len()];
        // The server refuses a search for nothing; whether it may be searched at all, this one tells, too.
        let query = QueryPointsBuilder::new(collection).query(vector).limit(limit.max(1) as u64);
        let query = query.filter(words::condition(filter)).with_payload(true);
        match self.call(collection, || self.client.query(query.clone())).await {
            Ok(found) => found.result.into_iter().take(limit).map(|found| words::hit(collection, found)).collect(),
            Err(error) => Err(self.explained(collection, &length, error).await),
        }
    }

    /// What the server says of vectors of the wrong length is a sentence; here it is an error of its own.
    async fn explained(&self, collection: &str, lengths: &[usize], error: Error) -> Error {
        if !matches!(error, Error::Refused(_)) {
            return error;
        }
        let Ok(Some(info)) = self.info(collection).await else { return error };
        let Ok(vectors) = words::vectors(collection, &info) else { return error };
        let have = usize::try_from(vectors.size).unwrap_or(usize::MAX);
        match lengths.iter().find(|length| **length != have) {
            Some(wanted) => Error::Dimensions { collection: collection.to_owned(), have, wanted: *wanted },
            None => error,
        }
    }

    async fn scrolled(
        &self,
        collection: &str,
        filter: &Filter,
        limit: usize,
        from: Option<Uuid>,
        with_vectors: bool,
    ) -> Result<(Vec<Point>, Option<Uuid>), Error> {
        check::page(limit)?;
        let scroll = ScrollPointsBuilder::new(collection).filter(words::condition(filter));
        let mut scroll = scroll.limit(limit as u32).with_payload(true).with_vectors(with_vectors);
        if let Some(from) = from {
            scroll = scroll.offset(from.to_string());
        }
        let page = self.call(collection, || self.client.scroll(scroll.clone())).await?;
        let points: Result<Vec<Point>, Error> =
            page.result.into_iter().map(|found| words::read(collection, found)).collect();
        Ok((points?, page.next_page_offset.map(|next| words::id(collection, Some(next))).transpose()?))
    }
}

impl VectorStore for Server {
    fn ensure<'a>(&'a self, collection: &'a Collection) -> Outcome<'a, ()> {
        async move {
            check::collection(collection)?;
            self.ensured(collection).await
        }
        .boxed()
    }

    fn upsert<'a>(&'a self, collection: &'a str, points: Vec<Point>) -> Outcome<'a, ()> {
        self.upserted(collection, points).boxed()
    }

    fn delete<'a>(&'a self, collection: &'a str, filter: &'a Filter) -> Outcome<'a, ()> {
        async move {
            check::deleted(filter)?;
            let delete = DeletePointsBuilder::new(collection).points(words::condition(filter)).wait(true);
            self.call(collection, || self.client.delete_points(delete.clone())).await.map(|_| ())
        }
        .boxed()
    }

    fn search<'a>(
        &'a self,
        collection: &'a str,
        vector: Vec<f32>,
        filter: &'a Filter,
        limit: usize,
    ) -> Outcome<'a, Vec<Hit>> {
        self.searched(collection, vector, filter, limit).boxed()
    }

    fn scroll<'a>(
        &'a self,
        collection: &'a str,
        filter: &'a Filter,
        limit: usize,
        from: Option<Uuid>,
        with_vectors: bool,
    ) -> Outcome<'a, (Vec<Point>, Option<Uuid>)> {
        self.scrolled(collection, filter, limit, from, with_vectors).boxed()
    }

    fn count<'a>(&'a self, collection: &'a str, filter: &'a Filter) -> Outcome<'a, u64> {
        async move {
            let count = CountPointsBuilder::new(collection).filter(words::condition(filter)).exact(true);
            let counted = self.call(collection, || self.client.count(count.clone())).await?;
            Ok(counted.result.map_or(0, |result| result.count))
        }
        .boxed()
    }

    fn forget<'a>(&'a self, collection: &'a str) -> Outcome<'a, ()> {
        async move {
            match self.call(collection, || self.client.delete_collection(collection)).await {
                Err(Error::UnknownCollection(_)) => Ok(()),
                answered => answered.map(|_| ()),
            }
        }
        .boxed()
    }

    fn describe(&self) -> String {
        format!("Qdrant at {}", self.url)
    }
}
