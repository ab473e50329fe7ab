//! Models on NVIDIA's GPUs: the same executable with and without one.
//!
//! `device` is what a GPU can do, `driver` does it (with `nccl` for several), and tests do it on the CPU. `modules` are our
//! kernels, `decoder` the weights on a device, `steps` what an engine asks of them, `ranks` the same on several devices.
//! Weights and the cache are bf16, sums f32; a model whose files are quantised is widened as it is read. Nothing here is bit
//! for bit what the CPUs compute, and what a crowd computes may differ in the last bits from what one computes alone: a
//! product adds in another order for another number of rows.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

pub mod decoder;
pub mod device;
pub mod driver;
pub mod modules;
pub mod nccl;
pub mod need;
pub mod ranks;
pub mod steps;

use crate::{architecture::Architecture, compute::Compute, engine::EngineConfig};
use device::Fault;

/// The bounds of one engine on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Tokens in one step.
    pub step_tokens: usize,
    /// Part of the memory that is free, once a model's weights are there, that its keys and values take.
    pub memory_part: f64,
    /// The most that they take, bytes; none for all of that part.
    pub cache_bytes_max: Option<usize>,
    /// Whether steps that only continue answers are recorded once and replayed.
    pub graphs: bool,
    /// Whether products of a few rows are computed by kernels of our own, and not by cuBLASLt.
    pub skinny: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self { step_tokens: 2_048, memory_part: 0.9, cache_bytes_max: None, graphs: true, skinny: true }
    }
}

/// A decoder whose weights lie on a device, or on several that compute it together.
pub trait OnDevice: fmt::Debug + Send + Sync {
    /// Its shape.
    fn architecture(&self) -> &Architecture;

    /// Bytes its weights take there.
    fn bytes(&self) -> usize;

    /// Where it is.
    fn place(&self) -> String;

    /// How many devices compute it.
    fn devices(&self) -> usize;

    /// Which of the devices it is on are lost, by their ranks; none where only the way between them is.
    fn lost(&self) -> Vec<usize>;

    /// Takes the memory for an engine.
    ///
    /// # Errors
    /// There is too little memory for two blocks of keys and values, or the device is lost.
    fn start(self: Arc<Self>, config: &EngineConfig) -> Result<Started, Fault>;
}

/// What an engine computes with.
pub struct Started {
    /// It.
    pub computer: Box<dyn Compute>,
    /// Blocks of keys and values that it has room for.
    pub blocks: usize,
}

impl fmt::Debug for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Started({} blocks)", self.blocks)
    }
}
