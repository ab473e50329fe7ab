//! Collections in files of this process's own, each read whole when it is opened. Nothing else may have the directory
//! open, which [`Lock`] sees to.
//!
//! Vectors are in memory, four bytes for each number, and are compared one by one: the answer is exact, and a search takes
//! time in proportion to the points that meet the filter, about a millisecond for each ten thousand of 384 numbers where
//! the code is optimised. What they stand for stays in the file. That suits a machine's own code; for more than some hundred
//! thousand points there is a server.

mod collection;
mod log;
mod rows;

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use futures::FutureExt;
use futures::future::ready;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::{Collection, Error, Filter, Hit, Lock, Outcome, Point, VectorStore, check};
use collection::Opened;

/// Where the collections are in the locked directory.
const COLLECTIONS: &str = "collections";
/// How the name of a collection's file ends.
const ENDING: &str = ".vectors";

/// A directory of collections, opened.
pub struct Local {
    shelf: Arc<Shelf>,
    /// Calls that only read, as many at once as there are CPUs: each computes.
    readers: Arc<Semaphore>,
    /// Calls that change something, one after another: each waits for the disk.
    writer: Arc<Semaphore>,
}

/// What the calls share. All of it blocks.
struct Shelf {
    /// A call that goes on when nobody waits for it any more still keeps others out.
    lock: Lock,
    directory: PathBuf,
    collections: RwLock<BTreeMap<String, Arc<Opened>>>,
    /// Held while a collection comes or goes.
    changes: Mutex<()>,
}

impl Local {
    /// Opens the collections of the locked directory. Blocks: all of their vectors are read.
    ///
    /// # Errors
    /// [`Error::Broken`] when a collection cannot be read.
    pub fn open(lock: Lock) -> Result<Self, Error> {
        let directory = lock.directory().join(COLLECTIONS);
        let collections = RwLock::new(collections(&directory)?);
        let cpus = std::thread::available_parallelism().map_or(1, NonZero::get);
        Ok(Self {
            shelf: Arc::new(Shelf { lock, directory, collections, changes: Mutex::new(()) }),
            readers: Arc::new(Semaphore::new(cpus)),
            writer: Arc::new(Semaphore::new(1)),
        })
    }

    /// Does `work` on a thread that may block. It goes on to its end also when nobody waits for it any more.
    fn blocking<T: Send + 'static>(
        &self,
        permits: &Arc<Semaphore>,
        work: impl FnOnce(&Shelf) -> Result<T, Error> + Send + 'static,
    ) -> Outcome<'static, T> {
        let (permits, shelf) = (permits.clone(), self.shelf.clone());
        async move {
            let permit = permits.acquire_owned().await.expect("the semaphore is never closed");
            let working = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                work(&shelf)
            });
            working.await.unwrap_or_else(|error| Err(Error::Broken(error.to_string())))
        }
        .boxed()
    }

    fn read<T: Send + 'static>(
        &self,
        collection: &str,
        work: impl FnOnce(&Opened) -> Result<T, Error> + Send + 'static,
    ) -> Outcome<'static, T> {
        let collection = collection.to_owned();
        self.blocking(&self.readers, move |shelf| work(&*shelf.collection(&collection)?))
    }

    fn write(
        &self,
        collection: &str,
        work: impl FnOnce(&Opened) -> Result<(), Error> + Send + 'static,
    ) -> Outcome<'static, ()> {
        let collection = collection.to_owned();
        self.blocking(&self.writer, move |shelf| work(&*shelf.collection(&collection)?))
    }
}

impl VectorStore for Local {
    fn ensure<'a>(&'a self, collection: &'a Collection) -> Outcome<'a, ()> {
        if let Err(error) = check::collection(collection) {
            return ready(Err(error)).boxed();
        }
        let collection = collection.clone();
        self.blocking(&self.writer, move |shelf| shelf.ensure(&collection))
    }

    fn upsert<'a>(&'a self, collection: &'a str, points: Vec<Point>) -> Outcome<'a, ()> {
        if let Err(error) = check::points(&points) {
            return ready(Err(error)).boxed();
        }
        self.write(collection, move |collection| collection.upsert(&points))
    }

    fn delete<'a>(&'a self, collection: &'a str, filter: &'a Filter) -> Outcome<'a, ()> {
        if let Err(error) = check::deleted(filter) {
            return ready(Err(error)).boxed();
        }
        let filter = filter.clone();
        self.write(collection, move |collection| collection.delete(&filter))
    }

    fn search<'a>(
        &'a self,
        collection: &'a str,
        vector: Vec<f32>,
        filter: &'a Filter,
        limit: usize,
    ) -> Outcome<'a, Vec<Hit>> {
        if let Err(error) = check::vector(&vector).and_then(|()| check::limit(limit)) {
            return ready(Err(error)).boxed();
        }
        let filter = filter.clone();
        self.read(collection, move |collection| collection.search(&vector, &filter, limit))
    }

    fn scroll<'a>(
        &'a self,
        collection: &'a str,
        filter: &'a Filter,
        limit: usize,
        from: Option<Uuid>,
        with_vectors: bool,
    ) -> Outcome<'a, (Vec<Point>, Option<Uuid>)> {
        if let Err(error) = check::page(limit) {
            return ready(Err(error)).boxed();
        }
        let filter = filter.clone();
        self.read(collection, move |collection| collection.scroll(&filter, limit, from, with_vectors))
    }

    fn count<'a>(&'a self, collection: &'a str, filter: &'a Filter) -> Outcome<'a, u64> {
        let filter = filter.clone();
        self.read(collection, move |collection| collection.count(&filter))
    }

    fn forget<'a>(&'a self, collection: &'a str) -> Outcome<'a, ()> {
        let collection = collection.to_owned();
        self.blocking(&self.writer, move |shelf| shelf.forget(&collection))
    }

    fn describe(&self) -> String {
        format!("files of this process in {}", self.shelf.lock.directory().display())
    }
}

impl Shelf {
    fn collection(&self, name: &str) -> Result<Arc<Opened>, Error> {
        let collections = self.collections.read().unwrap_or_else(PoisonError::into_inner);
        collections.get(name).cloned().ok_or_else(|| Error::UnknownCollection(name.to_owned()))
    }

    fn ensure(&self, wanted: &Collection) -> Result<(), Error> {
        let _one_at_a_time = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(there) = self.collection(&wanted.name) {
            return there.ensure(wanted);
        }
        let made = Arc::new(Opened::create(&self.directory.join(format!("{}{ENDING}", wanted.name)), wanted)?);
        self.collections.write().unwrap_or_else(PoisonError::into_inner).insert(wanted.name.clone(), made);
        Ok(())
    }

    fn forget(&self, name: &str) -> Result<(), Error> {
        let _one_at_a_time = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let removed = self.collections.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        // Calls that have it in hand finish with a file that has no name any more.
        removed.map_or(Ok(()), |collection| collection.forget())
    }
}

/// Opens what is in `directory`, and removes what was half written when a process ended.
fn collections(directory: &Path) -> Result<BTreeMap<String, Arc<Opened>>, Error> {
    let broken = |error: std::io::Error| Error::Broken(format!("{}: {error}", directory.display()));
    fs::create_dir_all(directory).map_err(broken)?;
    let mut collections = BTreeMap::new();
    for entry in fs::read_dir(directory).map_err(broken)? {
        let path = entry.map_err(broken)?.path();
        let Some(file) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if let Some(name) = file.strip_suffix(ENDING) {
            collections.insert(name.to_owned(), Arc::new(Opened::load(&path, name)?));
        } else if file.ends_with(log::NEW) {
            fs::remove_file(&path).map_err(broken)?;
        }
    }
    Ok(collections)
}
