//! The weights of a decoder on a device, and the order in which its kernels compute.
//!
//! `forward` asks for everything that one step computes, from the tokens to the logits, and touches only addresses that
//! its `Frame` names: what is recorded once serves every step of the same shape.

use std::sync::Arc;

use half::bf16;

use super::device::{Address, Argument, Buffer, Device, Fault, Launch, Product};
use crate::{
    architecture::Architecture,
    kernels::matrix::{Matrix, SixteenKind},
    kv::BLOCK,
    model_directory::Error,
    weights::Weights,
};

/// Bytes of a number of 16 bits.
const SIXTEEN: usize = size_of::<u16>();
/// Bytes of a number of 32 bits.
const FLOAT: usize = size_of::<f32>();
/// The widest head that the kernels compute.
const HEAD_WIDTH_MAX: usize = 256;
/// Query heads of one key-value head that a prefill kernel takes together.
const GROUP_MAX: usize = 128;
/// Query heads that a block of the decode kernel takes together.
const DECODE_GROUP: usize = 8;
/// Blocks of threads of the decode kernel that a processor runs side by side.
const DECODE_BLOCKS: usize = 3;
/// The least blocks of the cache that are worth a split of their own.
const SPLIT_BLOCKS_LEAST: usize = 4;
/// The most rows of a product that kernels of our own compute at the speed of memory.
const SKINNY_ROWS: usize = 8;
/// The most splits of one context.
const SPLITS_MAX: usize = 64;

/// Why a model cannot be put on a device.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its files.
    #[error(transparent)]
    Files(#[from] Error),
    /// The device.
    #[error(transparent)]
    Device(#[from] Fault),
    /// The kernels do not compute such a shape.
    #[error("the GPU's kernels do not compute this model: {0}")]
    Shape(String),
}

/// A decoder on a device.
#[derive(Debug)]
pub struct Decoder<D: Device> {
    pub(super) device: Arc<D>,
    architecture: Architecture,
    embeddings: Buffer<D>,
    layers: Vec<Layer<D>>,
    norm: Buffer<D>,
    /// `None` when the embeddings serve as the output layer.
    output: Option<Buffer<D>>,
    inverse_frequencies: Buffer<D>,
}

#[derive(Debug)]
struct Layer<D: Device> {
    attention_norm: Buffer<D>,
    /// Queries, keys and values below each other.
    qkv: Buffer<D>,
    qkv_bias: Option<Buffer<D>>,
    query_norm: Option<Buffer<D>>,
    key_norm: Option<Buffer<D>>,
    attention_output: Buffer<D>,
    attention_output_bias: Option<Buffer<D>>,
    feed_forward_norm: Buffer<D>,
    /// Gates and what they gate below each other.
    gate_up: Buffer<D>,
    down: Buffer<D>,
}

/// The shape of a step, and where everything of it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Rows of tokens.
    pub tokens: usize,
    /// Of these, the first that continue a sequence with one token each; the others are in tiles.
    pub singles: usize,
    /// Tiles of the rest.
    pub tiles: usize,
    /// Rows whose logits are wanted.
    pub outputs: usize,
    /// All rows are wanted, in their order: there is no list of them.
    pub all: bool,
    /// Products of few rows are computed by kernels of our own.
    pub skinny: bool,
    /// Entries in a row of the block tables.
    pub table_stride: usize,
    /// What was picked by the step before.
    pub picked: Address,
    /// Which of these is the input of each token.
    pub sources: Address,
    /// The inputs; those with a source are filled in.
    pub inputs: Address,
    /// The position of each token.
    pub positions: Address,
    /// Where the cache keeps its key and value.
    pub slots: Address,
    /// Positions that each single sees.
    pub contexts: Address,
    /// A row of blocks for each single, then one for each sequence with tiles.
    pub tables: Address,
    /// Sequence, first token, tokens and first position of each tile.
    pub tile_list: Address,
    /// The rows that are wanted.
    pub rows: Address,
}

/// The buffers that one step after the other uses.
#[derive(Debug)]
pub struct Activations<D: Device> {
    x: Buffer<D>,
    normed: Buffer<D>,
    qkv: Buffer<D>,
    mixed: Buffer<D>,
    projected: Buffer<D>,
    gate_up: Buffer<D>,
    gated: Buffer<D>,
    parts: Buffer<D>,
    sums: Buffer<D>,
    /// `[outputs, vocabulary]`, f32.
    pub logits: Buffer<D>,
}

/// Keys and values of all layers: `[layers, 2, blocks, kv_heads, BLOCK, width]`.
#[derive(Debug)]
pub struct Cache<D: Device> {
    buffer: Buffer<D>,
    half: usize,
}

impl<D: Device> Cache<D> {
    /// Room for so many blocks.
    ///
    /// # Errors
    /// There is too little memory.
    pub fn new(device: &Arc<D>, a: &Architecture, blocks: usize) -> Result<Self, Fault> {
        let half = blocks * a.kv_heads * BLOCK * a.head_width * SIXTEEN;
        Ok(Self { buffer: Buffer::zeros(device, 2 * a.layers * half)?, half })
    }

    fn keys(&self, layer: usize) -> Address {
        self.buffer.at(2 * layer * self.half)
    }

    fn values(&self, layer: usize) -> Address {
        self.buffer.at((2 * layer + 1) * self.half)
    }
}

/// Bytes that one block of the cache takes.
pub fn block_bytes(a: &Architecture) -> usize {
    2 * a.layers * a.kv_heads * BLOCK * a.head_width * SIXTEEN
}

/// Refuses a shape that the kernels do not compute.
///
/// # Errors
/// The text says which number, and what would do.
pub fn check(a: &Architecture) -> Result<(), String> {
    let widths =
        [("hidden_size", a.hidden), ("intermediate_size", a.intermediate), ("the width of a head", a.head_width)];
    for (name, width) in widths {
        if !width.is_multiple_of(8) {
            return Err(format!("{name} is {width}, no multiple of 8"));
        }
    }
    if a.head_width > HEAD_WIDTH_MAX {
        return Err(format!("a head is {} wide, and at most {HEAD_WIDTH_MAX} will do", a.head_width));
    }
    if a.heads / a.kv_heads > GROUP_MAX {
        return Err(format!(
            "{} query heads share a key-value head, and at most {GROUP_MAX} may",
            a.heads / a.kv_heads
        ));
    }
    Ok(())
}

/// Tokens of a run that stand in one tile.
pub fn tile_tokens(a: &Architecture) -> usize {
    (128 / (a.heads / a.kv_heads)).max(1)
}

impl<D: Device> Activations<D> {
    /// Buffers for steps of at most so many tokens, of which at most so many are wanted, and as many continue a sequence.
    ///
    /// # Errors
    /// There is too little memory.
    pub fn new(decoder: &Decoder<D>, tokens: usize, outputs: usize) -> Result<Self, Fault> {
        let sizes = Sizes::of(&decoder.architecture, decoder.device.processors(), tokens, outputs);
        let device = &decoder.device;
        let zeros = |bytes| Buffer::zeros(device, bytes);
        Ok(Self {
            x: zeros(sizes.x)?,
            normed: zeros(sizes.normed)?,
            qkv: zeros(sizes.qkv)?,
            mixed: zeros(sizes.mixed)?,
            projected: zeros(sizes.projected)?,
            gate_up: zeros(sizes.gate_up)?,
            gated: zeros(sizes.gated)?,
            parts: zeros(sizes.parts)?,
            sums: zeros(sizes.sums)?,
            logits: zeros(sizes.logits)?,
        })
    }
}

/// Bytes of the buffers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    x: usize,
    normed: usize,
    qkv: usize,
    mixed: usize,
    projected: usize,
    gate_up: usize,
    gated: usize,
    parts: usize,
    sums: usize,
    logits: usize,
}

impl Sizes {
    pub(super) fn of(a: &Architecture, processors: usize, tokens: usize, outputs: usize) -> Self {
        let (query, key) = (a.heads * a.head_width, a.kv_heads * a.head_width);
        // The most splits of all sequences together.
        let split =
            (1..=outputs).map(|singles| singles * splits(a, processors, singles, usize::MAX)).max().unwrap_or(0);
        Self {
            x: tokens * a.hidden * FLOAT,
            normed: tokens.max(outputs) * a.hidden * SIXTEEN,
            qkv: tokens * (query + 2 * key) * SIXTEEN,
            mixed: tokens * query * SIXTEEN,
            projected: tokens * a.hidden * SIXTEEN,
            gate_up: tokens * 2 * a.intermediate * SIXTEEN,
            gated: tokens * a.intermediate * SIXTEEN,
            parts: split * query * FLOAT,
            sums: split * a.heads * 2 * FLOAT,
            logits: outputs * a.vocabulary * FLOAT,
        }
    }

    pub(super) fn total(&self) -> usize {
        let Self { x, normed, qkv, mixed, projected, gate_up, gated, parts, sums, logits } = *self;
        x + normed + qkv + mixed + projected + gate_up + gated + parts + sums + logits
    }
}

/// Blocks of threads of the decode kernel for one sequence and split.
fn decode_grid(a: &Architecture) -> usize {
    a.kv_heads * (a.heads / a.kv_heads).div_ceil(DECODE_GROUP)
}

/// In how many parts contexts are cut, so that the device is full and no part is too small.
fn splits(a: &Architecture, processors: usize, singles: usize, table_stride: usize) -> usize {
    let full = (processors * DECODE_BLOCKS).div_ceil(decode_grid(a) * singles.max(1));
    full.clamp(1, SPLITS_MAX).min(table_stride.div_ceil(SPLIT_BLOCKS_LEAST)).max(1)
}

impl<D: Device> Decoder<D> {
    /// Reads the weights of the given shape, and puts each on the device before it reads the next.
    ///
    /// # Errors
    /// A tensor is missing or has another shape, the kernels do not compute the shape, or the device has no room.
    pub fn load(device: &Arc<D>, a: &Architecture, weights: &impl Weights) -> Result<Self, LoadError> {
        check(a).map_err(LoadError::Shape)?;
        let loader = Loader { device, weights };
        let embeddings = loader.matrices(&[("model.embed_tokens.weight", a.vocabulary)], a.hidden)?;
        let layers = (0..a.layers).map(|index| loader.layer(a, index)).collect::<Result<_, _>>()?;
        let norm = loader.floats("model.norm.weight", a.hidden)?;
        let output = if a.tied_embeddings {
            None
        } else {
            Some(loader.matrices(&[("lm_head.weight", a.vocabulary)], a.hidden)?)
        };
        let inverse_frequencies = Buffer::of(device, &float_bytes(&a.rope.frequencies(a.head_width)))?;
        device.synchronise()?;
        Ok(Self {
            device: Arc::clone(device),
            architecture: a.clone(),
            embeddings,
            layers,
            norm,
            output,
            inverse_frequencies,
        })
    }

    /// The shape of this decoder.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Bytes its weights take on the device.
    pub fn bytes(&self) -> usize {
        let optional = |buffer: &Option<Buffer<D>>| buffer.as_ref().map_or(0, Buffer::bytes);
        let layer = |layer: &Layer<D>| {
            let all = [&layer.attention_norm, &layer.qkv, &layer.attention_output, &layer.feed_forward_norm];
            let more = [&layer.gate_up, &layer.down];
            let some = [&layer.qkv_bias, &layer.query_norm, &layer.key_norm, &layer.attention_output_bias];
            all.into_iter().chain(more).map(Buffer::bytes).sum::<usize>() + some.map(optional).iter().sum::<usize>()
        };
        let rest = self.embeddings.bytes() + self.norm.bytes() + self.inverse_frequencies.bytes();
        rest + optional(&self.output) + self.layers.iter().map(layer).sum::<usize>()
    }

    /// Asks for everything that a step computes, up to the logits.
    ///
    /// # Errors
    /// The device refuses it or is lost.
    pub fn forward(&self, frame: &Frame, s: &Activations<D>, cache: &Cache<D>) -> Result<(), Fault> {
        let (a, device) = (&self.architecture, &self.device);
        let count = frame.tokens;
        let (hidden, epsilon) = (Argument::size(a.hidden), Argument::Float(a.norm_epsilon));
        let at = |buffer: &Buffer<D>| Argument::Address(buffer.address());
        let optional = |buffer: &Option<Buffer<D>>| Argument::Address(buffer.as_ref().map_or(0, Buffer::address));
        let launch = |kernel, grid: [usize; 3], threads, shared, arguments: &[Argument]| {
            let grid = grid.map(|size| u32::try_from(size).expect("sizes of launches are bounded"));
            device.launch(&Launch { kernel, grid, threads, shared, arguments })
        };
        let skinny = |rows: usize| frame.skinny && rows <= SKINNY_ROWS;
        let multiply =
            |weights: &Buffer<D>, inputs: &Buffer<D>, outputs: &Buffer<D>, rows, width: usize, depth, wide| {
                if skinny(rows) {
                    let kernel = if wide { "skinny_product_f32" } else { "skinny_product_bf16" };
                    let [count, from, to] = [rows, depth, width].map(Argument::size);
                    let arguments = [at(inputs), at(weights), at(outputs), count, from, to];
                    return launch(kernel, [width.div_ceil(16), 1, 1], 256, 0, &arguments);
                }
                let (weights, inputs, outputs) = (weights.address(), inputs.address(), outputs.address());
                device.multiply(&Product { weights, inputs, outputs, rows, width, depth, wide })
            };
        let none = Argument::Address(0);
        let (inputs, sources) = (Argument::Address(frame.inputs), Argument::Address(frame.sources));
        let fed = [Argument::Address(frame.picked), sources, inputs, Argument::size(count)];
        launch("feed", [count.div_ceil(128), 1, 1], 128, 0, &fed)?;
        let embedded = [at(&self.embeddings), inputs, at(&s.x), Argument::size(a.vocabulary), hidden];
        launch("embed", [count, 1, 1], 256, 0, &embedded)?;
        let first = [at(&s.x), none, at(&self.layers[0].attention_norm), epsilon, at(&s.normed), hidden];
        launch("rms_norm", [count, 1, 1], 256, 0, &first)?;
        // What half a layer gave is added, and the next half's input made of the sum.
        let add_and_norm = |bias: Argument, rows: Argument, weight: &Buffer<D>, count: usize| {
            let arguments = [at(&s.x), at(&s.projected), bias, rows, at(weight), epsilon, at(&s.normed), hidden];
            launch("add_rms_norm", [count, 1, 1], 256, 0, &arguments)
        };
        let (query, qkv_width) = (a.heads * a.head_width, (a.heads + 2 * a.kv_heads) * a.head_width);
        for (index, layer) in self.layers.iter().enumerate() {
            multiply(&layer.qkv, &s.normed, &s.qkv, count, qkv_width, a.hidden, false)?;
            let rotated = [
                at(&s.qkv),
                optional(&layer.qkv_bias),
                optional(&layer.query_norm),
                optional(&layer.key_norm),
                epsilon,
                at(&self.inverse_frequencies),
                Argument::Float(a.rope.amplitude()),
                Argument::Address(frame.positions),
                Argument::Address(frame.slots),
                Argument::Address(cache.keys(index)),
                Argument::Address(cache.values(index)),
                Argument::size(a.heads),
                Argument::size(a.kv_heads),
                Argument::size(a.head_width),
            ];
            let heads = (a.heads + 2 * a.kv_heads).div_ceil(4);
            launch("rotate_and_store", [count, heads, 1], 128, 0, &rotated)?;
            self.attend(frame, s, cache, index)?;
            multiply(&layer.attention_output, &s.mixed, &s.projected, count, a.hidden, query, false)?;
            add_and_norm(optional(&layer.attention_output_bias), none, &layer.feed_forward_norm, count)?;
            if skinny(count) {
                let [count, from, to] = [count, a.hidden, a.intermediate].map(Argument::size);
                let gated = [at(&s.normed), at(&layer.gate_up), at(&s.gated), count, from, to];
                launch("skinny_gated", [a.intermediate.div_ceil(8), 1, 1], 256, 0, &gated)?;
            } else {
                multiply(&layer.gate_up, &s.normed, &s.gate_up, count, 2 * a.intermediate, a.hidden, false)?;
                let gated = [at(&s.gate_up), at(&s.gated), Argument::size(a.intermediate)];
                launch("silu_multiply", [a.intermediate.div_ceil(2_048), count, 1], 256, 0, &gated)?;
            }
            multiply(&layer.down, &s.gated, &s.projected, count, a.hidden, a.intermediate, false)?;
            match self.layers.get(index + 1) {
                Some(next) => add_and_norm(none, none, &next.attention_norm, count)?,
                None if frame.outputs == 0 => {}
                None => {
                    let rows = if frame.all { none } else { Argument::Address(frame.rows) };
                    add_and_norm(none, rows, &self.norm, frame.outputs)?;
                }
            }
        }
        if frame.outputs == 0 {
            return Ok(());
        }
        let output = self.output.as_ref().unwrap_or(&self.embeddings);
        multiply(output, &s.normed, &s.logits, frame.outputs, a.vocabulary, a.hidden, true)
    }

    fn attend(&self, frame: &Frame, s: &Activations<D>, cache: &Cache<D>, layer: usize) -> Result<(), Fault> {
        let (a, device) = (&self.architecture, &self.device);
        let kernels = |which: [&'static str; 3]| match a.head_width {
            64 => (which[0], 32 << 10),
            128 => (which[1], 64 << 10),
            _ => (which[2], 0),
        };
        let query = a.heads * a.head_width;
        let stride = query + 2 * a.kv_heads * a.head_width;
        let scale = Argument::Float(1.0 / (a.head_width as f32).sqrt());
        let window = Argument::size(a.sliding_window.unwrap_or(0));
        let shape = [Argument::size(a.heads), Argument::size(a.kv_heads), Argument::size(a.head_width)];
        let stored = [Argument::Address(cache.keys(layer)), Argument::Address(cache.values(layer))];
        let table_stride = Argument::size(frame.table_stride);
        let launch = |kernel, grid: [usize; 3], threads, shared, arguments: &[Argument]| {
            let grid = grid.map(|size| u32::try_from(size).expect("sizes of launches are bounded"));
            device.launch(&Launch { kernel, grid, threads, shared, arguments })
        };
        if frame.singles > 0 {
            let splits = splits(a, device.processors(), frame.singles, frame.table_stride);
            let (kernel, _) = kernels(["decode_attention_64", "decode_attention_128", "decode_attention_any"]);
            let least = Argument::size(SPLIT_BLOCKS_LEAST);
            let (parts, sums) = (Argument::Address(s.parts.address()), Argument::Address(s.sums.address()));
            let (contexts, out) = (Argument::Address(frame.contexts), Argument::Address(s.mixed.address()));
            let first = [Argument::Address(s.qkv.address()), Argument::size(stride)];
            let seen = [Argument::Address(frame.tables), table_stride, contexts, scale, window];
            let last = [least, parts, sums, out];
            let arguments = [&first[..], &stored, &seen, &shape, &last].concat();
            launch(kernel, [decode_grid(a), splits, frame.singles], 128, 0, &arguments)?;
            if splits > 1 {
                let [heads, _, width] = shape;
                let merged = [parts, sums, contexts, window, heads, width, least, Argument::size(splits), out];
                launch("merge_splits", [a.heads, frame.singles, 1], 128, 0, &merged)?;
            }
        }
        if frame.tiles > 0 {
            let (kernel, shared) = kernels(["prefill_attention_64", "prefill_attention_128", "prefill_attention_any"]);
            let first = [Argument::Address(s.qkv.address()), Argument::size(stride)];
            let seen =
                [Argument::Address(frame.tables), table_stride, Argument::Address(frame.tile_list), scale, window];
            let last = [Argument::Address(s.mixed.address())];
            let arguments = [&first[..], &stored, &seen, &shape, &last].concat();
            launch(kernel, [frame.tiles, a.kv_heads, 1], 128, shared, &arguments)?;
        }
        Ok(())
    }
}

struct Loader<'a, D, W> {
    device: &'a Arc<D>,
    weights: &'a W,
}

impl<D: Device, W: Weights> Loader<'_, D, W> {
    fn layer(&self, a: &Architecture, index: usize) -> Result<Layer<D>, LoadError> {
        let name = |rest: &str| format!("model.layers.{index}.{rest}");
        let (query, key) = (a.heads * a.head_width, a.kv_heads * a.head_width);
        let floats = |rest: &str, width: usize| self.floats(&name(rest), width);
        let when = |wanted: bool, rest: &str, width: usize| wanted.then(|| floats(rest, width)).transpose();
        let matrices = |parts: &[(&str, usize)], inputs: usize| {
            let named: Vec<(String, usize)> = parts.iter().map(|(rest, outputs)| (name(rest), *outputs)).collect();
            let named: Vec<(&str, usize)> = named.iter().map(|(name, outputs)| (name.as_str(), *outputs)).collect();
            self.matrices(&named, inputs)
        };
        let qkv_bias = if a.qkv_bias {
            let bias =
                |which: &str, width| self.weights.tensor(&name(&format!("self_attn.{which}_proj.bias")), &[width]);
            let all = [bias("q", query)?, bias("k", key)?, bias("v", key)?].concat();
            Some(Buffer::of(self.device, &float_bytes(&all))?)
        } else {
            None
        };
        let qkv =
            [("self_attn.q_proj.weight", query), ("self_attn.k_proj.weight", key), ("self_attn.v_proj.weight", key)];
        let gate_up = [("mlp.gate_proj.weight", a.intermediate), ("mlp.up_proj.weight", a.intermediate)];
        Ok(Layer {
            attention_norm: floats("input_layernorm.weight", a.hidden)?,
            qkv: matrices(&qkv, a.hidden)?,
            qkv_bias,
            query_norm: when(a.query_key_norm, "self_attn.q_norm.weight", a.head_width)?,
            key_norm: when(a.query_key_norm, "self_attn.k_norm.weight", a.head_width)?,
            attention_output: matrices(&[("self_attn.o_proj.weight", a.hidden)], query)?,
            attention_output_bias: when(a.output_bias, "self_attn.o_proj.bias", a.hidden)?,
            feed_forward_norm: floats("post_attention_layernorm.weight", a.hidden)?,
            gate_up: matrices(&gate_up, a.hidden)?,
            down: matrices(&[("mlp.down_proj.weight", a.hidden)], a.intermediate)?,
        })
    }

    /// A short tensor in f32.
    fn floats(&self, name: &str, width: usize) -> Result<Buffer<D>, LoadError> {
        Ok(Buffer::of(self.device, &float_bytes(&self.weights.tensor(name, &[width])?))?)
    }

    /// Matrices below each other, in bf16.
    fn matrices(&self, parts: &[(&str, usize)], inputs: usize) -> Result<Buffer<D>, LoadError> {
        let outputs: usize = parts.iter().map(|(_, outputs)| outputs).sum();
        let buffer = Buffer::zeros(self.device, outputs * inputs * SIXTEEN)?;
        let mut offset = 0;
        for (name, outputs) in parts {
            let bytes = sixteen_bytes(self.weights.matrix(name, *outputs, inputs)?);
            buffer.write(offset, &bytes)?;
            offset += bytes.len();
        }
        Ok(buffer)
    }
}

fn float_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A matrix in bf16; what the file has otherwise is rounded or widened.
fn sixteen_bytes(matrix: Matrix) -> Vec<u8> {
    match matrix {
        Matrix::Sixteen(SixteenKind::Brain, bits) => bits.into_iter().flat_map(u16::to_le_bytes).collect(),
        other => other.into_floats().into_iter().flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect(),
    }
}
