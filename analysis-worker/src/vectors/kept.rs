//! Several workers of one machine and one directory of vectors, which one process at a time may have open.
//!
//! Whoever gets the directory's lock is its keeper: it opens the vectors, and answers the others' questions about them on a
//! subject that is named after the directory. The others look again and again whether the lock is free. The kernel frees it
//! when the keeper ends, also when that is killed, so another one is there within about a second; who asks meanwhile waits,
//! and who had asked the old one asks the new one.

mod keeper;

use std::future::pending;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::FutureExt;
use runtime::{Bus, Tasks, bus, clock};
use schemas::rpc::Reply;
use schemas::subject;
use schemas::vectors::{Answer, QUESTION_BYTES_MAX, Question};
use schemas::wire::encode;
use tokio::sync::watch;
use uuid::Uuid;

use super::{Collection, Error, Filter, Hit, Outcome, Point, VectorStore, check, lock};
use keeper::{Candidate, Keeper, answered};

/// How often a question that nobody takes is asked again.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// The vectors of a directory, kept by this process or another one of this machine.
pub struct Kept {
    directory: PathBuf,
    subject: String,
    bus: Bus,
    timeout: Duration,
    keeper: watch::Receiver<Keeper>,
}

impl Kept {
    /// Opens the vectors of `directory` if nobody did. A question that no keeper answers within `timeout` fails.
    ///
    /// # Errors
    /// [`Error::Broken`] when the directory cannot be used, or the vectors in it cannot be read.
    pub async fn open(directory: &Path, timeout: Duration, bus: &Bus, tasks: &Tasks) -> Result<Self, Error> {
        let name = lock::name(directory).map_err(|error| Error::Broken(format!("{}: {error}", directory.display())))?;
        let subject = subject::rpc_vectors(&name);
        let candidate = Candidate {
            directory: directory.to_owned(),
            subject: subject.clone(),
            bus: bus.clone(),
            keeping: Tasks::new(),
        };
        let (said, keeper) = watch::channel(candidate.stand().await?);
        tasks.spawn_background(candidate.watch(said));
        Ok(Self { directory: directory.to_owned(), subject, bus: bus.clone(), timeout, keeper })
    }

    /// Has the question answered here or by the keeper, whoever that becomes.
    async fn ask(&self, collection: &str, question: Question) -> Result<Answer, Error> {
        let began = clock::instant();
        let mut keeper = self.keeper.clone();
        let mut reason = format!("no answer within {:?}", self.timeout);
        loop {
            let now = keeper.borrow_and_update().clone();
            if let Keeper::Me(local) = now {
                return answered(&*local, question).await;
            }
            let left = self.timeout.saturating_sub(clock::instant().duration_since(began));
            if left.is_zero() {
                return Err(Error::Unreachable { at: self.describe(), reason });
            }
            let reply = tokio::select! {
                reply = self.bus.ask::<_, Reply<Answer>>(&self.subject, &question, left) => reply,
                () = changed(&mut keeper) => continue,
            };
            match reply {
                Ok(reply) => return told(collection, reply),
                Err(bus::Error::Decode(error)) => return Err(Error::Broken(error.to_string())),
                Err(bus::Error::Timeout(_)) => {}
                Err(error) => reason = error.to_string(),
            }
            tokio::select! {
                () = changed(&mut keeper) => {}
                () = tokio::time::sleep(ASK_EVERY) => {}
            }
        }
    }

    async fn ask_and_be_done(&self, collection: &str, question: Question) -> Result<(), Error> {
        match self.ask(collection, question).await? {
            Answer::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }
}

impl VectorStore for Kept {
    fn ensure<'a>(&'a self, collection: &'a Collection) -> Outcome<'a, ()> {
        let question = Question::Ensure { collection: collection.clone() };
        self.ask_and_be_done(&collection.name, question).boxed()
    }

    fn upsert<'a>(&'a self, collection: &'a str, points: Vec<Point>) -> Outcome<'a, ()> {
        async move {
            // What passes here fits a message.
            check::points(&points)?;
            for points in batches(points) {
                self.ask_and_be_done(collection, Question::Upsert { collection: collection.to_owned(), points })
                    .await?;
            }
            Ok(())
        }
        .boxed()
    }

    fn delete<'a>(&'a self, collection: &'a str, filter: &'a Filter) -> Outcome<'a, ()> {
        let question = Question::Delete { collection: collection.to_owned(), filter: filter.clone() };
        self.ask_and_be_done(collection, question).boxed()
    }

    fn search<'a>(
        &'a self,
        collection: &'a str,
        vector: Vec<f32>,
        filter: &'a Filter,
        limit: usize,
    ) -> Outcome<'a, Vec<Hit>> {
        let question = Question::Search { collection: collection.to_owned(), vector, filter: filter.clone(), limit };
        async move {
            match self.ask(collection, question).await? {
                Answer::Hits(hits) => Ok(hits),
                other => Err(unexpected(&other)),
            }
        }
        .boxed()
    }

    fn scroll<'a>(
        &'a self,
        collection: &'a str,
        filter: &'a Filter,
        limit: usize,
        from: Option<Uuid>,
        with_vectors: bool,
    ) -> Outcome<'a, (Vec<Point>, Option<Uuid>)> {
        let (collection_name, filter) = (collection.to_owned(), filter.clone());
        let question = Question::Scroll { collection: collection_name, filter, limit, from, with_vectors };
        async move {
            match self.ask(collection, question).await? {
                Answer::Page { points, next } => Ok((points, next)),
                other => Err(unexpected(&other)),
            }
        }
        .boxed()
    }

    fn count<'a>(&'a self, collection: &'a str, filter: &'a Filter) -> Outcome<'a, u64> {
        let question = Question::Count { collection: collection.to_owned(), filter: filter.clone() };
        async move {
            match self.ask(collection, question).await? {
                Answer::Count(count) => Ok(count),
                other => Err(unexpected(&other)),
            }
        }
        .boxed()
    }

    fn forget<'a>(&'a self, collection: &'a str) -> Outcome<'a, ()> {
        self.ask_and_be_done(collection, Question::Forget { collection: collection.to_owned() }).boxed()
    }

    fn describe(&self) -> String {
        let who = match &*self.keeper.borrow() {
            Keeper::Me(_) => "this process",
            Keeper::Another(_) => "another process",
        };
        format!("files of {who} in {}", self.directory.display())
    }
}

/// Waits until there is another keeper; for ever where nobody says so any more.
async fn changed(keeper: &mut watch::Receiver<Keeper>) {
    if keeper.changed().await.is_err() {
        pending::<()>().await;
    }
}

/// The keeper's answer as the outcome it was there.
fn told(collection: &str, reply: Reply<Answer>) -> Result<Answer, Error> {
    match reply {
        Reply::Ok(Answer::NoCollection) => Err(Error::UnknownCollection(collection.to_owned())),
        Reply::Ok(Answer::Dimensions { have, wanted }) => {
            Err(Error::Dimensions { collection: collection.to_owned(), have, wanted })
        }
        Reply::Ok(answer) => Ok(answer),
        Reply::Err(refusal) if refusal.code == "refused" => Err(Error::Refused(refusal.detail)),
        Reply::Err(refusal) => Err(Error::Broken(refusal.detail)),
    }
}

/// Points in batches that fit one message each; one empty batch where there is none, which asks for the collection.
fn batches(points: Vec<Point>) -> Vec<Vec<Point>> {
    let mut batches = vec![Vec::new()];
    let mut bytes = 0;
    for point in points {
        let size = encode(&point).len();
        if bytes + size > QUESTION_BYTES_MAX {
            batches.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        batches.last_mut().expect("there is always one").push(point);
    }
    batches
}

fn unexpected(answer: &Answer) -> Error {
    // The question was ours, so the keeper is of another version.
    Error::Broken(format!("the keeper of the vectors answered something else: {answer:.100?}"))
}
