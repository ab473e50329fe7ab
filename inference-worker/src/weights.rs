//! Reads tensors from safetensors files, one at a time.
//!
//! The header of every file is checked against the file's length before anything is allocated, so that a missing or
//! truncated shard is refused by name. Tensors are read when they are asked for: the peak is one tensor above the
//! finished model. Files are read, not mapped: a file that shrinks while mapped kills the
//! process.

use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use safetensors::{Dtype, tensor::Metadata};
use serde_json::Value;

use crate::{
    kernels::matrix::{Form, Matrix, SixteenKind},
    model_directory::{Error, read_json},
};

/// Where a model's tensors come from.
pub trait Weights {
    /// Why these files cannot be used.
    fn refuse(&self, reason: &str) -> Error;

    /// The tensor of that name, row-major, as f32.
    ///
    /// # Errors
    /// The tensor is missing, has another shape, or cannot be read.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error>;

    /// The matrix `[outputs, inputs]` of that name, in the numbers that the file has.
    ///
    /// # Errors
    /// The tensor is missing, has another shape, or cannot be read.
    fn matrix(&self, name: &str, outputs: usize, inputs: usize) -> Result<Matrix, Error>;

    /// The same matrix as blocks of quantised weights, for whoever widens them elsewhere; `None` where the file has it
    /// otherwise, or rows cannot be cut between blocks at every multiple of `piece` weights. Then `matrix` gives it.
    ///
    /// # Errors
    /// The tensor is missing, has another shape, or cannot be read.
    fn blocks(&self, _name: &str, _outputs: usize, _inputs: usize, _piece: usize) -> Result<Option<Blocks>, Error> {
        Ok(None)
    }

    /// How a tensor lies in the file, without reading it; `None` where there is none.
    fn stored(&self, name: &str) -> Option<Stored>;
}

/// A matrix of quantised weights as its file holds it: row by row, each a whole number of blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocks {
    /// Of which kind.
    pub kind: BlockKind,
    /// All of them.
    pub bytes: Vec<u8>,
}

/// The kinds of blocks that devices widen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockKind {
    /// A scale and 32 bytes.
    Q8_0,
    /// Eight groups of 32 weights of four bits, with scales and minimums of six.
    Q4K,
}

impl BlockKind {
    /// Weights of one block.
    pub const fn weights(self) -> usize {
        match self {
            Self::Q8_0 => 32,
            Self::Q4K => 256,
        }
    }

    /// Bytes of one block.
    pub const fn bytes(self) -> usize {
        match self {
            Self::Q8_0 => 34,
            Self::Q4K => 144,
        }
    }
}

/// A tensor as its file holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// How it will lie in memory.
    pub form: Form,
    /// Bytes in the file.
    pub bytes: u64,
}

/// How much of a model was read, for whoever watches from another thread.
#[derive(Debug, Default)]
pub struct Progress {
    read: AtomicU64,
    total: AtomicU64,
}

impl Progress {
    /// The part that was read, 0 to 1; 0 while nobody knows how much there is.
    pub fn fraction(&self) -> f64 {
        let (read, total) = (self.read.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed));
        if total == 0 { 0.0 } else { (read as f64 / total as f64).min(1.0) }
    }

    pub(crate) fn expect(&self, bytes: u64) {
        self.total.store(bytes, Ordering::Relaxed);
    }
}

/// Weights whose reading is watched.
pub(crate) struct Watched<'a, W> {
    pub(crate) weights: &'a W,
    pub(crate) progress: &'a Progress,
}

impl<W: Weights> Watched<'_, W> {
    fn count(&self, name: &str) {
        let bytes = self.weights.stored(name).map_or(0, |stored| stored.bytes);
        self.progress.read.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl<W: Weights> Weights for Watched<'_, W> {
    fn refuse(&self, reason: &str) -> Error {
        self.weights.refuse(reason)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let tensor = self.weights.tensor(name, shape)?;
        self.count(name);
        Ok(tensor)
    }

    fn matrix(&self, name: &str, outputs: usize, inputs: usize) -> Result<Matrix, Error> {
        let matrix = self.weights.matrix(name, outputs, inputs)?;
        self.count(name);
        Ok(matrix)
    }

    fn blocks(&self, name: &str, outputs: usize, inputs: usize, piece: usize) -> Result<Option<Blocks>, Error> {
        let blocks = self.weights.blocks(name, outputs, inputs, piece)?;
        if blocks.is_some() {
            self.count(name);
        }
        Ok(blocks)
    }

    fn stored(&self, name: &str) -> Option<Stored> {
        self.weights.stored(name)
    }
}

/// The safetensors files of a model directory, opened and checked.
#[derive(Debug)]
pub struct SafetensorsFiles {
    directory: PathBuf,
    shards: Vec<Shard>,
    by_tensor: BTreeMap<String, usize>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
    metadata: Metadata,
    data_start: u64,
}

impl SafetensorsFiles {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// A file is missing, truncated or malformed, or the index names a tensor its file does not hold.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let index = directory.join("model.safetensors.index.json");
        if !index.exists() {
            let shard = Shard::open(directory.join("model.safetensors"))?;
            let by_tensor = shard.metadata.offset_keys().into_iter().map(|name| (name, 0)).collect();
            return Ok(Self { directory: directory.to_owned(), shards: vec![shard], by_tensor });
        }
        let json = read_json(&index)?;
        let map = json
            .get("weight_map")
            .and_then(Value::as_object)
            .ok_or_else(|| Error::refused(&index, "\"weight_map\" is missing"))?;
        let mut files = BTreeMap::new();
        let mut shards: Vec<Shard> = Vec::new();
        let mut by_tensor = BTreeMap::new();
        for (tensor, file) in map {
            let file =
                plain_file_name(file).ok_or_else(|| Error::refused(&index, format!("{file} is not a file name")))?;
            let shard = match files.get(file) {
                Some(&shard) => shard,
                None => {
                    shards.push(Shard::open(directory.join(file))?);
                    files.insert(file.to_owned(), shards.len() - 1);
                    shards.len() - 1
                }
            };
            if shards[shard].metadata.info(tensor).is_none() {
                return Err(Error::refused(
                    &shards[shard].path,
                    format!("tensor {tensor:?} is in the index but not in the file"),
                ));
            }
            by_tensor.insert(tensor.clone(), shard);
        }
        Ok(Self { directory: directory.to_owned(), shards, by_tensor })
    }

    /// Whether there is a tensor of that name.
    pub fn holds(&self, name: &str) -> bool {
        self.by_tensor.contains_key(name)
    }
}

impl Weights for SafetensorsFiles {
    fn refuse(&self, reason: &str) -> Error {
        Error::refused(&self.directory, reason)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        self.read(name, shape).map(Matrix::into_floats)
    }

    fn matrix(&self, name: &str, outputs: usize, inputs: usize) -> Result<Matrix, Error> {
        self.read(name, &[outputs, inputs])
    }

    fn stored(&self, name: &str) -> Option<Stored> {
        let info = self.shards[*self.by_tensor.get(name)?].metadata.info(name)?;
        let (start, end) = info.data_offsets;
        let form = match info.dtype {
            Dtype::F16 => Form::Sixteen(SixteenKind::Half),
            Dtype::BF16 => Form::Sixteen(SixteenKind::Brain),
            _ => Form::Float,
        };
        Some(Stored { form, bytes: (end - start) as u64 })
    }
}

impl SafetensorsFiles {
    fn read(&self, name: &str, shape: &[usize]) -> Result<Matrix, Error> {
        let shard = self.by_tensor.get(name).map(|&index| &self.shards[index]).ok_or_else(|| {
            Error::refused(&self.directory.join("model.safetensors"), format!("tensor {name:?} is missing"))
        })?;
        shard.read(name, shape)
    }
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self, Error> {
        /// Headers of the largest published models are a few megabytes.
        const HEADER_BYTES_MAX: u64 = 100 << 20;
        let file = File::open(&path).map_err(|source| Error::read(&path, source))?;
        let length = file.metadata().map_err(|source| Error::read(&path, source))?.len();
        if length < 8 {
            return Err(Error::refused(&path, format!("truncated: {length} bytes cannot hold a safetensors header")));
        }
        let mut size = [0; 8];
        file.read_exact_at(&mut size, 0).map_err(|source| Error::read(&path, source))?;
        let header = u64::from_le_bytes(size);
        if header > HEADER_BYTES_MAX {
            return Err(Error::refused(&path, format!("not a safetensors file: its header claims {header} bytes")));
        }
        let data_start = 8 + header;
        if length < data_start {
            return Err(Error::refused(
                &path,
                format!("truncated: the header needs {data_start} bytes, the file has {length}"),
            ));
        }
        let mut bytes = vec![0; header as usize];
        file.read_exact_at(&mut bytes, 8).map_err(|source| Error::read(&path, source))?;
        let metadata: Metadata = serde_json::from_slice(&bytes)
            .map_err(|error| Error::refused(&path, format!("malformed safetensors header: {error}")))?;
        let expected = data_start + metadata.data_len() as u64;
        if length != expected {
            let what = if length < expected { "truncated" } else { "malformed" };
            return Err(Error::refused(
                &path,
                format!("{what}: the tensors end at byte {expected}, the file at {length}"),
            ));
        }
        Ok(Self { path, file, metadata, data_start })
    }

    fn read(&self, name: &str, shape: &[usize]) -> Result<Matrix, Error> {
        let refuse = |reason: String| Error::refused(&self.path, reason);
        let info = self.metadata.info(name).ok_or_else(|| refuse(format!("tensor {name:?} is missing")))?;
        if info.shape != shape {
            return Err(refuse(format!(
                "tensor {name:?} has shape {:?}, the configuration needs {shape:?}",
                info.shape
            )));
        }
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        self.file
            .read_exact_at(&mut bytes, self.data_start + start as u64)
            .map_err(|source| Error::read(&self.path, source))?;
        match info.dtype {
            Dtype::F32 => Ok(Matrix::Float(convert(&bytes, f32::from_le_bytes))),
            Dtype::F16 => Ok(Matrix::Sixteen(SixteenKind::Half, convert(&bytes, u16::from_le_bytes))),
            Dtype::BF16 => Ok(Matrix::Sixteen(SixteenKind::Brain, convert(&bytes, u16::from_le_bytes))),
            other => Err(refuse(format!("tensor {name:?} is {other:?}; known are F32, F16, BF16"))),
        }
    }
}

fn convert<const BYTES: usize, T>(bytes: &[u8], one: impl Fn([u8; BYTES]) -> T) -> Vec<T> {
    let (values, rest) = bytes.as_chunks::<BYTES>();
    debug_assert!(rest.is_empty(), "the header check makes lengths whole");
    values.iter().map(|&value| one(value)).collect()
}

/// A name in the index must stay inside the model's directory.
fn plain_file_name(value: &Value) -> Option<&str> {
    value.as_str().filter(|name| !name.is_empty() && !name.contains(['/', '\\', '\0']) && !name.starts_with('.'))
}
