//! What a model will take on a GPU, or on each of several that compute it together, known from its shape before it is read.

use super::{Limits, decoder, steps};
use crate::architecture::Architecture;

/// Blocks of threads are counted as on the largest GPU: what is worked out from them grows with it.
const PROCESSORS_MOST: usize = 160;
/// What the driver, its libraries and our kernels take beside what we ask for.
const CONTEXT: u64 = 1 << 30;
/// What NCCL takes for its own buffers on each of several GPUs, about.
const TOGETHER: u64 = 1 << 30;

/// How many GPUs may compute a model together.
pub const TOGETHER_COUNTS: [usize; 4] = [1, 2, 4, 8];

/// What a model will take on a GPU, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GpuNeed {
    /// Its weights, in bf16 whatever its files hold.
    pub weights_bytes: u64,
    /// Buffers of one step, the workspace of products, and the driver's own.
    pub working_bytes: u64,
    /// Keys and values for one sequence as long as the window, or for as much as may be taken: the least that is of use.
    pub cache_bytes: u64,
}

/// What a model will take on each of so many GPUs, by [`TOGETHER_COUNTS`]; or why so many do not compute it together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GpuNeeds(Vec<Result<GpuNeed, String>>);

impl GpuNeeds {
    /// For a model of this shape.
    pub fn of(a: &Architecture, limits: &Limits, slots: usize) -> Self {
        Self(TOGETHER_COUNTS.map(|gpus| GpuNeed::of_each(a, limits, slots, gpus)).into())
    }

    /// On each of so many.
    ///
    /// # Errors
    /// So many do not compute it together; the text says why, where that was of interest.
    pub fn on(&self, gpus: usize) -> Result<GpuNeed, &str> {
        let which = TOGETHER_COUNTS.iter().position(|count| *count == gpus);
        let need = which.and_then(|which| self.0.get(which)).map(Result::as_ref);
        need.map_or(Err("nothing is known of its shape"), |need| need.copied().map_err(String::as_str))
    }
}

#[cfg(test)]
impl GpuNeeds {
    /// Made up, by [`TOGETHER_COUNTS`].
    pub(crate) fn made_up(needs: Vec<Result<GpuNeed, String>>) -> Self {
        Self(needs)
    }
}

impl GpuNeed {
    /// For a model of this shape, on each of so many GPUs that compute it: on the first, which takes the most.
    ///
    /// # Errors
    /// The kernels do not compute such a shape, or it cannot be shared by so many; the text says why.
    pub fn of_each(a: &Architecture, limits: &Limits, slots: usize, gpus: usize) -> Result<Self, String> {
        let a = &decoder::part(a, gpus)?;
        let context = CONTEXT + if gpus > 1 { TOGETHER } else { 0 };
        let working = steps::working_bytes(a, PROCESSORS_MOST, limits.step_tokens, slots) + super::driver::WORKSPACE;
        let window = a.window.div_ceil(crate::kv::BLOCK) * decoder::block_bytes(a);
        Ok(Self {
            weights_bytes: weights_bytes(a),
            working_bytes: working as u64 + context,
            cache_bytes: window.min(limits.cache_bytes_max.unwrap_or(usize::MAX)) as u64,
        })
    }

    /// Together.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.weights_bytes.saturating_add(self.working_bytes).saturating_add(self.cache_bytes)
    }
}

/// What `decoder` takes for the weights.
fn weights_bytes(a: &Architecture) -> u64 {
    let (query, key) = (a.heads * a.head_width, a.kv_heads * a.head_width);
    let table = a.vocabulary * a.hidden;
    let matrices = (query + 2 * key) * a.hidden + query * a.hidden + 3 * a.intermediate * a.hidden;
    let biases = if a.qkv_bias { query + 2 * key } else { 0 } + if a.output_bias { a.hidden } else { 0 };
    let norms = 2 * a.hidden + if a.query_key_norm { 2 * a.head_width } else { 0 };
    let sixteen = table * if a.tied_embeddings { 1 } else { 2 } + a.layers * matrices;
    let floats = a.layers * (biases + norms) + a.hidden + a.head_width / 2;
    (sixteen * size_of::<u16>() + floats * size_of::<f32>()) as u64
}
