//! The file of a collection: what was done to it, in order. It is only ever added to; when most of it is out of date, a new
//! one takes its place.
//!
//! The file begins with [`MAGIC`]. Then come frames, each of which was done as one: its length, its sum, and its changes.
//! All numbers are little-endian. A process that ends in the middle of a frame leaves a part of one at the end, which was
//! not acknowledged and is cut off. A sum that is wrong anywhere else is damage, and is told.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

/// What the file is, and the version of its frames.
const MAGIC: &[u8; 8] = b"vlvec\0\0\x01";
/// Bytes before a frame's changes: the length of these, and their sum (CRC-32).
const HEAD: usize = 8;
/// How the name of a file ends that is not yet at its place.
pub(super) const NEW: &str = ".new";

/// One thing that was done.
#[derive(Debug, PartialEq)]
pub(super) enum Change {
    /// The collection is like this.
    Described(Described),
    /// A point is kept, instead of the one of the same id.
    Kept { id: Uuid, vector: Vec<f32>, payload: Place },
    /// A point is deleted.
    Deleted { id: Uuid },
}

/// What a collection is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Described {
    pub(super) dimensions: usize,
    #[serde(default)]
    pub(super) indexed: Vec<String>,
}

/// Where a payload is in the file, and how long: JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) at: u64,
    pub(super) bytes: u32,
}

const DESCRIBED: u8 = 0;
const KEPT: u8 = 1;
const DELETED: u8 = 2;

/// Changes that are written as one.
pub(super) struct Frame(Vec<u8>);

impl Frame {
    pub(super) fn new() -> Self {
        Self(vec![0; HEAD])
    }

    /// Bytes so far.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn describe(&mut self, described: &Described) {
        self.0.push(DESCRIBED);
        self.part(&serde_json::to_vec(described).expect("it is plain data"));
    }

    /// `payload` is JSON.
    pub(super) fn keep(&mut self, id: Uuid, vector: &[f32], payload: &[u8]) {
        self.0.push(KEPT);
        self.0.extend(id.as_bytes());
        self.0.extend(u32::try_from(vector.len()).expect("a vector is short").to_le_bytes());
        self.0.extend(vector.iter().flat_map(|number| number.to_le_bytes()));
        self.part(payload);
    }

    pub(super) fn delete(&mut self, id: Uuid) {
        self.0.push(DELETED);
        self.0.extend(id.as_bytes());
    }

    fn part(&mut self, bytes: &[u8]) {
        self.0.extend(u32::try_from(bytes.len()).expect("a message is short").to_le_bytes());
        self.0.extend(bytes);
    }

    /// The frame as it is written.
    fn closed(mut self) -> Vec<u8> {
        let bytes = u32::try_from(self.0.len() - HEAD).expect("a frame is short").to_le_bytes();
        let sum = crc32fast::hash(&self.0[HEAD..]).to_le_bytes();
        self.0[..4].copy_from_slice(&bytes);
        self.0[4..HEAD].copy_from_slice(&sum);
        self.0
    }
}

/// A frame that is on disk.
pub(super) struct Written {
    frame: Vec<u8>,
    begins: u64,
}

impl Written {
    /// Tells what was done, in order.
    pub(super) fn changes(&self, change: impl FnMut(Change)) {
        read(&self.frame[HEAD..], self.begins + HEAD as u64, change).expect("the frame is our own");
    }
}

/// A file that is open.
pub(super) struct Log {
    path: PathBuf,
    file: Arc<File>,
    bytes: u64,
}

impl Log {
    /// Makes a file with these frames, in the place of the one that may be there: completely or not at all. That it is at its
    /// place is on disk after [`Log::settle`].
    pub(super) fn create(
        path: &Path,
        frames: impl IntoIterator<Item = io::Result<Frame>>,
        mut change: impl FnMut(Change),
    ) -> io::Result<Self> {
        let new = path.with_added_extension(&NEW[1..]);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&new)?;
        let mut log = Self { path: path.to_owned(), file: Arc::new(file), bytes: MAGIC.len() as u64 };
        log.file.write_all_at(MAGIC, 0)?;
        for frame in frames {
            log.put(frame?)?.changes(&mut change);
        }
        log.file.sync_all()?;
        fs::rename(&new, path)?;
        Ok(log)
    }

    /// Opens a file and tells its changes in order.
    pub(super) fn open(path: &Path, mut change: impl FnMut(Change)) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        let total = file.metadata()?.len();
        let mut reader = io::BufReader::with_capacity(1 << 20, &file);
        let mut magic = [0; MAGIC.len()];
        reader.read_exact(&mut magic)?;
        if &magic != MAGIC {
            return Err(damaged("it is no file of vectors, or one of another version"));
        }
        let mut at = MAGIC.len() as u64;
        let mut frame = Vec::new();
        while total - at >= HEAD as u64 {
            let (bytes, sum) = (number(&mut reader)?, number(&mut reader)?);
            let end = at + HEAD as u64 + u64::from(bytes);
            // What was written last may be there in parts, or as zeros.
            if bytes == 0 || end > total {
                break;
            }
            frame.resize(bytes as usize, 0);
            reader.read_exact(&mut frame)?;
            let whole = crc32fast::hash(&frame) == sum;
            if !whole && end == total {
                break;
            }
            let told = whole.then(|| read(&frame, at + HEAD as u64, &mut change)).flatten();
            told.ok_or_else(|| damaged(&format!("what is at byte {at} is not what was written")))?;
            at = end;
        }
        if at < total {
            tracing::warn!(file = %path.display(), bytes = total - at, "cut off what was not acknowledged when a process ended");
            file.set_len(at)?;
            file.sync_all()?;
        }
        Ok(Self { path: path.to_owned(), file: Arc::new(file), bytes: at })
    }

    /// Adds a frame. It is on disk when this returns; when it fails, it is as if it was never there.
    pub(super) fn append(&mut self, frame: Frame) -> io::Result<Written> {
        let before = self.bytes;
        let written = self.put(frame).and_then(|written| self.file.sync_data().map(|()| written));
        if written.is_err() {
            self.bytes = before;
            self.file.set_len(before)?;
        }
        written
    }

    fn put(&mut self, frame: Frame) -> io::Result<Written> {
        let written = Written { frame: frame.closed(), begins: self.bytes };
        self.file.write_all_at(&written.frame, self.bytes)?;
        self.bytes += written.frame.len() as u64;
        Ok(written)
    }

    /// Bytes of the file.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// For reading payloads.
    pub(super) fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Takes the file away.
    pub(super) fn remove(&self) -> io::Result<()> {
        fs::remove_file(&self.path)?;
        self.settle()
    }

    /// A file's name is on disk when its directory is.
    pub(super) fn settle(&self) -> io::Result<()> {
        File::open(self.path.parent().expect("a file lies in a directory"))?.sync_all()
    }
}

/// The payload at that place, as JSON.
pub(super) fn payload_bytes(file: &File, place: Place) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; place.bytes as usize];
    file.read_exact_at(&mut bytes, place.at)?;
    Ok(bytes)
}

/// The same, read.
pub(super) fn payload(file: &File, place: Place) -> io::Result<Map<String, Value>> {
    serde_json::from_slice(&payload_bytes(file, place)?).map_err(|error| damaged(&error.to_string()))
}

/// Tells the changes of a frame that begins at byte `begins` of the file; none when it is no frame.
fn read(frame: &[u8], begins: u64, mut change: impl FnMut(Change)) -> Option<()> {
    let mut rest = frame;
    while let Some((kind, after)) = rest.split_first() {
        rest = after;
        change(match *kind {
            DESCRIBED => Change::Described(serde_json::from_slice(part(&mut rest)?).ok()?),
            KEPT => {
                let id = Uuid::from_bytes(*take(&mut rest)?);
                let numbers = u32::from_le_bytes(*take(&mut rest)?) as usize;
                let (vector, after) = rest.split_at_checked(numbers.checked_mul(4)?)?;
                let vector = vector.as_chunks().0.iter().map(|number| f32::from_le_bytes(*number)).collect();
                rest = after;
                let payload = part(&mut rest)?;
                let bytes = u32::try_from(payload.len()).ok()?;
                let at = begins + (frame.len() - rest.len() - payload.len()) as u64;
                Change::Kept { id, vector, payload: Place { at, bytes } }
            }
            DELETED => Change::Deleted { id: Uuid::from_bytes(*take(&mut rest)?) },
            _ => return None,
        });
    }
    Some(())
}

fn take<'a, const N: usize>(rest: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(taken)
}

fn part<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let bytes = u32::from_le_bytes(*take(rest)?) as usize;
    let (part, after) = rest.split_at_checked(bytes)?;
    *rest = after;
    Some(part)
}

fn number(reader: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    reader.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

fn damaged(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests;
