//! One collection: its points in memory and its file.
//!
//! A change is on disk before anybody sees it. Readers go on while it is written, also while a file that is mostly out of
//! date is written anew.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use uuid::Uuid;

use super::log::{Described, Frame, Log, Written, payload, payload_bytes};
use super::rows::{Rows, scaled};
use crate::vectors::{Collection, Error, Filter, Hit, Point};

/// Bytes of one frame, about: as much as is written and made sure of at once.
const FRAME_BYTES: usize = 8 << 20;
/// Bytes of a file from which on it is written anew when most of it is out of date.
const ANEW_BYTES: u64 = 8 << 20;

/// A collection, opened.
pub(super) struct Opened {
    name: String,
    dimensions: usize,
    /// Who changes something has it from the first byte to the last.
    log: Mutex<Log>,
    points: RwLock<Points>,
}

struct Points {
    rows: Rows,
    /// The file in which the rows' payloads are.
    file: Arc<File>,
}

impl Opened {
    /// Makes a collection. It is there completely or not at all.
    pub(super) fn create(path: &Path, wanted: &Collection) -> Result<Self, Error> {
        let mut frame = Frame::new();
        frame.describe(&Described { dimensions: wanted.dimensions, indexed: wanted.indexed.clone() });
        let mut rows = Rows::new();
        let log = Log::create(path, [Ok(frame)], |change| rows.apply(change));
        let log = log.and_then(|log| log.settle().map(|()| log)).map_err(|error| broken(path, &error))?;
        Ok(Self::of(&wanted.name, log, rows))
    }

    /// Opens a collection that is there.
    pub(super) fn load(path: &Path, name: &str) -> Result<Self, Error> {
        let broken = |error| Error::Broken(format!("{}: {error}; move it away and index again", path.display()));
        let mut rows = Rows::new();
        let log = Log::open(path, |change| rows.apply(change)).map_err(broken)?;
        rows.read_words(&log.file()).map_err(broken)?;
        Ok(Self::of(name, log, rows))
    }

    fn of(name: &str, log: Log, rows: Rows) -> Self {
        let (name, dimensions) = (name.to_owned(), rows.described().dimensions);
        let points = RwLock::new(Points { rows, file: log.file() });
        Self { name, dimensions, log: Mutex::new(log), points }
    }

    /// Holds the collection against what it should be, and adds the indexes it lacks.
    pub(super) fn ensure(&self, wanted: &Collection) -> Result<(), Error> {
        self.check(wanted.dimensions)?;
        self.change(|log| {
            let there = self.read().rows.described().clone();
            let missing = wanted.indexed.iter().filter(|field| !there.indexed.contains(field));
            let described = Described { indexed: there.indexed.iter().chain(missing).cloned().collect(), ..there };
            if described == *self.read().rows.described() {
                return Ok(());
            }
            let mut frame = Frame::new();
            frame.describe(&described);
            self.apply(&log.append(frame)?)
        })
    }

    pub(super) fn upsert(&self, points: &[Point]) -> Result<(), Error> {
        points.iter().try_for_each(|point| self.check(point.vector.len()))?;
        self.change(|log| {
            let mut frame = Frame::new();
            for (n, point) in points.iter().enumerate() {
                frame.keep(point.id, &scaled(&point.vector), &serde_json::to_vec(&point.payload)?);
                if frame.len() >= FRAME_BYTES || n + 1 == points.len() {
                    self.apply(&log.append(std::mem::replace(&mut frame, Frame::new()))?)?;
                }
            }
            Ok(())
        })
    }

    pub(super) fn delete(&self, filter: &Filter) -> Result<(), Error> {
        self.change(|log| {
            let mut frame = Frame::new();
            let found = self.ids(filter)?;
            if found.is_empty() {
                return Ok(());
            }
            found.into_iter().for_each(|id| frame.delete(id));
            self.apply(&log.append(frame)?)
        })
    }

    pub(super) fn search(&self, vector: &[f32], filter: &Filter, limit: usize) -> Result<Vec<Hit>, Error> {
        self.check(vector.len())?;
        let points = self.read();
        let search = || {
            let test = points.rows.test(filter);
            let mut scores = points.rows.scores(&scaled(vector), &test, &points.file)?;
            let best = |a: &(f32, usize), b: &(f32, usize)| {
                b.0.total_cmp(&a.0).then_with(|| points.rows.id(a.1).cmp(&points.rows.id(b.1)))
            };
            if limit < scores.len() {
                scores.select_nth_unstable_by(limit, best);
                scores.truncate(limit);
            }
            scores.sort_by(best);
            let hit = |(score, slot): (f32, usize)| {
                let payload = payload(&points.file, points.rows.payload(slot))?;
                Ok(Hit { id: points.rows.id(slot), score: score.clamp(-1.0, 1.0), payload })
            };
            scores.into_iter().map(hit).collect::<io::Result<Vec<Hit>>>()
        };
        search().map_err(|error| self.broken(&error))
    }

    pub(super) fn scroll(
        &self,
        filter: &Filter,
        limit: usize,
        from: Option<Uuid>,
        with_vectors: bool,
    ) -> Result<(Vec<Point>, Option<Uuid>), Error> {
        let points = self.read();
        let scroll = || {
            let test = points.rows.test(filter);
            let mut page = Vec::new();
            for (id, slot) in points.rows.from(from.unwrap_or_default()) {
                if !points.rows.meets(slot, &test, &points.file)? {
                    continue;
                }
                if page.len() == limit {
                    return Ok((page, Some(id)));
                }
                let vector = if with_vectors { points.rows.vector(slot).to_vec() } else { Vec::new() };
                page.push(Point { id, vector, payload: payload(&points.file, points.rows.payload(slot))? });
            }
            Ok((page, None))
        };
        scroll().map_err(|error: io::Error| self.broken(&error))
    }

    pub(super) fn count(&self, filter: &Filter) -> Result<u64, Error> {
        Ok(self.ids(filter).map_err(|error| self.broken(&error))?.len() as u64)
    }

    /// Takes its file away.
    pub(super) fn forget(&self) -> Result<(), Error> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.remove().map_err(|error| self.broken(&error))
    }

    /// Changes something, and sees to it that the file does not grow beyond twice what it must hold.
    fn change(&self, change: impl FnOnce(&mut Log) -> io::Result<()>) -> Result<(), Error> {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut log).map_err(|error| self.broken(&error))?;
        let needed = self.read().rows.bytes();
        if log.bytes() > ANEW_BYTES
            && log.bytes() > 2 * needed
            && let Err(error) = self.write_anew(&mut log)
        {
            tracing::warn!(collection = self.name, %error, "the file was not written anew; it grows");
        }
        Ok(())
    }

    /// Writes a file of what is still needed.
    fn write_anew(&self, log: &mut Log) -> io::Result<()> {
        let mut rows = Rows::new();
        let anew = {
            let points = self.read();
            let mut first = Frame::new();
            first.describe(points.rows.described());
            let mut rest = points.rows.from(Uuid::nil());
            let frames = std::iter::from_fn(|| {
                let mut frame = Frame::new();
                let empty = frame.len();
                for (id, slot) in rest.by_ref() {
                    match payload_bytes(&points.file, points.rows.payload(slot)) {
                        Ok(payload) => frame.keep(id, points.rows.vector(slot), &payload),
                        Err(error) => return Some(Err(error)),
                    }
                    if frame.len() >= FRAME_BYTES {
                        break;
                    }
                }
                (frame.len() > empty).then_some(Ok(frame))
            });
            Log::create(log.path(), std::iter::once(Ok(first)).chain(frames), |change| rows.apply(change))?
        };
        // It has the old one's place: from here on, whatever fails, this is the file.
        let read = rows.read_words(&anew.file());
        *self.points.write().unwrap_or_else(PoisonError::into_inner) = Points { rows, file: anew.file() };
        *log = anew;
        read.and_then(|()| log.settle())
    }

    /// Lets everybody see what is on disk.
    fn apply(&self, written: &Written) -> io::Result<()> {
        let mut points = self.points.write().unwrap_or_else(PoisonError::into_inner);
        let Points { rows, file } = &mut *points;
        written.changes(|change| rows.apply(change));
        rows.read_words(file)
    }

    fn ids(&self, filter: &Filter) -> io::Result<Vec<Uuid>> {
        let points = self.read();
        let test = points.rows.test(filter);
        let mut ids = Vec::new();
        for (id, slot) in points.rows.from(Uuid::nil()) {
            if points.rows.meets(slot, &test, &points.file)? {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    fn read(&self) -> RwLockReadGuard<'_, Points> {
        self.points.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, wanted: usize) -> Result<(), Error> {
        let have = self.dimensions;
        if wanted == have { Ok(()) } else { Err(Error::Dimensions { collection: self.name.clone(), have, wanted }) }
    }

    fn broken(&self, error: &io::Error) -> Error {
        Error::Broken(format!("collection {}: {error}", self.name))
    }
}

fn broken(path: &Path, error: &io::Error) -> Error {
    Error::Broken(format!("{}: {error}", path.display()))
}
