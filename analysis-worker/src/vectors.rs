//! The vector store: points with a vector and a payload, in collections, found again by likeness.
//!
//! One trait and three implementations that keep the same promises, held to them by one suite of tests: [`Server`], a
//! Qdrant server; [`Local`], files of this process; and [`Kept`], which is what several workers of one machine do about
//! one directory of such files: one keeps it, the others ask the keeper.
//!
//! Vectors are compared by their cosine. What is kept is scaled to length 1, so that is how it is read back.

mod config;
mod kept;
mod local;
mod lock;
mod server;

use std::sync::Arc;

use futures::future::BoxFuture;
use runtime::{Bus, Tasks};
use uuid::Uuid;

pub use config::Config;
pub use kept::Kept;
pub use local::Local;
pub use lock::Lock;
pub use schemas::vectors::{Collection, Condition, Filter, Hit, LIMIT_MAX, Point};
pub use server::Server;

/// What a call of a store becomes.
pub type Outcome<'a, T> = BoxFuture<'a, Result<T, Error>>;

/// Collections of points.
///
/// Every call may be repeated: the outcome is the same. Calls may run side by side; one that begins after another has
/// ended sees what that did.
pub trait VectorStore: Send + Sync {
    /// Lets a collection be there, with an index for each payload field that is named.
    ///
    /// # Errors
    /// [`Error::Dimensions`] when it is there with vectors of another length.
    fn ensure<'a>(&'a self, collection: &'a Collection) -> Outcome<'a, ()>;

    /// Keeps points; each replaces one of the same id, with all of its payload. What is kept when this returns survives the
    /// end of any process. When it fails, some of the points may be kept.
    ///
    /// # Errors
    /// [`Error::UnknownCollection`], [`Error::Dimensions`] when a vector has another length than the collection's, and
    /// [`Error::Refused`] when one holds what is not a number, or a point is too large for a message (2 MiB).
    fn upsert<'a>(&'a self, collection: &'a str, points: Vec<Point>) -> Outcome<'a, ()>;

    /// Deletes the points that meet `filter`.
    ///
    /// # Errors
    /// [`Error::UnknownCollection`], and [`Error::Refused`] when the filter has no condition: see
    /// [`VectorStore::forget`] for that.
    fn delete<'a>(&'a self, collection: &'a str, filter: &'a Filter) -> Outcome<'a, ()>;

    /// The points that meet `filter` whose vectors are most alike to `vector`, the best first; at most `limit`, which is at
    /// most [`LIMIT_MAX`].
    ///
    /// # Errors
    /// [`Error::UnknownCollection`], [`Error::Dimensions`], and [`Error::Refused`] when `limit` is too large.
    fn search<'a>(
        &'a self,
        collection: &'a str,
        vector: Vec<f32>,
        filter: &'a Filter,
        limit: usize,
    ) -> Outcome<'a, Vec<Hit>>;

    /// The points that meet `filter` in the order of their ids, and the id from which the rest begins, if there is a rest.
    /// A page has at most `limit` points, which is at most [`LIMIT_MAX`], and may have fewer in the middle, too. `from` is
    /// what the page before said.
    ///
    /// # Errors
    /// [`Error::UnknownCollection`], and [`Error::Refused`] when `limit` is too large or 0.
    fn scroll<'a>(
        &'a self,
        collection: &'a str,
        filter: &'a Filter,
        limit: usize,
        from: Option<Uuid>,
        with_vectors: bool,
    ) -> Outcome<'a, (Vec<Point>, Option<Uuid>)>;

    /// How many points meet `filter`, exactly.
    ///
    /// # Errors
    /// [`Error::UnknownCollection`].
    fn count<'a>(&'a self, collection: &'a str, filter: &'a Filter) -> Outcome<'a, u64>;

    /// Deletes the collection with all that is in it. One that is not there is no error.
    ///
    /// # Errors
    /// When it may still be there.
    fn forget<'a>(&'a self, collection: &'a str) -> Outcome<'a, ()>;

    /// What this store is and where, for people: `Qdrant at http://qdrant:6334`.
    fn describe(&self) -> String;
}

/// Why a store did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It does not answer. Ask later; what was asked may have happened.
    #[error("the vector store ({at}) does not answer: {reason}")]
    Unreachable {
        /// Which.
        at: String,
        /// Why.
        reason: String,
    },
    /// The collection has vectors of another length: another model made them. Forget it and index again.
    #[error(
        "collection {collection} holds vectors of {have} numbers and not of {wanted}: another embedding model made them; delete it and index again"
    )]
    Dimensions {
        /// Which.
        collection: String,
        /// Numbers of its vectors.
        have: usize,
        /// Numbers of the vector in question.
        wanted: usize,
    },
    /// There is no such collection: nothing was ever indexed, or it was forgotten.
    #[error("there is no collection {0}")]
    UnknownCollection(String),
    /// It will never do this.
    #[error("the vector store refused: {0}")]
    Refused(String),
    /// It cannot do this as long as nobody repairs it.
    #[error("the vector store is broken: {0}")]
    Broken(String),
}

/// Opens the configured store: a Qdrant server where there is a URL, else a directory that the workers of this machine
/// share. A server is not asked yet, so that it may come later.
///
/// # Errors
/// [`Error::Refused`] when the configuration cannot be used, [`Error::Broken`] when the directory cannot be.
pub async fn open(config: &Config, bus: &Bus, tasks: &Tasks) -> Result<Arc<dyn VectorStore>, Error> {
    config.check().map_err(Error::Refused)?;
    if let Some(url) = &config.url {
        let key = config.key().map_err(Error::Refused)?;
        return Ok(Arc::new(Server::new(url, key.as_ref(), config.timeout())?));
    }
    let Some(directory) = &config.dir else {
        return Err(Error::Refused("analysis.vectors: say a url or a dir".to_owned()));
    };
    Ok(Arc::new(Kept::open(directory, config.timeout(), bus, tasks).await?))
}

/// What every store refuses, so that each refuses the same.
mod check {
    use schemas::vectors::QUESTION_BYTES_MAX;
    use schemas::wire::encode;

    use super::{Collection, Error, Filter, LIMIT_MAX, Point};

    /// Numbers of a vector at most: what Qdrant allows.
    const DIMENSIONS_MAX: usize = 65_536;

    pub(super) fn collection(collection: &Collection) -> Result<(), Error> {
        name(&collection.name)?;
        if !(1..=DIMENSIONS_MAX).contains(&collection.dimensions) {
            let (name, dimensions) = (&collection.name, collection.dimensions);
            return Err(Error::Refused(format!(
                "{name}: vectors of {dimensions} numbers; 1 to {DIMENSIONS_MAX} are allowed"
            )));
        }
        Ok(())
    }

    /// A name is a directory's name, too.
    pub(super) fn name(name: &str) -> Result<(), Error> {
        let plain = |c: u8| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'_');
        if (1..=64).contains(&name.len()) && name.bytes().all(plain) {
            return Ok(());
        }
        Err(Error::Refused(format!("`{name}` is no name of a collection: 1 to 64 of a-z, 0-9 and _ are")))
    }

    /// The bound of a message holds everywhere, so that it does not matter who keeps.
    pub(super) fn points(points: &[Point]) -> Result<(), Error> {
        points.iter().try_for_each(|point| {
            vector(&point.vector)?;
            let (id, bytes) = (point.id, encode(point).len());
            if bytes <= QUESTION_BYTES_MAX {
                return Ok(());
            }
            Err(refused(&format!("point {id} has {bytes} bytes, at most {QUESTION_BYTES_MAX} are kept")))
        })
    }

    /// What is not a number is like nothing, and would be kept.
    pub(super) fn vector(vector: &[f32]) -> Result<(), Error> {
        if vector.iter().all(|number| number.is_finite()) {
            return Ok(());
        }
        Err(refused("a vector holds what is not a number"))
    }

    pub(super) fn deleted(filter: &Filter) -> Result<(), Error> {
        if filter.all.is_empty() { Err(refused("to delete everything, forget the collection")) } else { Ok(()) }
    }

    pub(super) fn limit(limit: usize) -> Result<(), Error> {
        if limit <= LIMIT_MAX {
            Ok(())
        } else {
            Err(refused(&format!("{limit} at once; at most {LIMIT_MAX} are allowed")))
        }
    }

    pub(super) fn page(size: usize) -> Result<(), Error> {
        if size == 0 { Err(refused("a page of no points leads nowhere")) } else { limit(size) }
    }

    fn refused(why: &str) -> Error {
        Error::Refused(why.to_owned())
    }
}
