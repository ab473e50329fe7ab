//! The weights of a decoder on a device, and the order in which its kernels compute.
//!
//! `forward` asks for everything that one step computes, from the tokens to the logits, and touches only addresses that
//! its `Frame` names: what is recorded once serves every step of the same shape.
//!
//! Where several devices compute a model, each has a decoder of its own: a part of the heads and of the feed-forward width of
//! every layer, cut as `model` cuts them for ranks that are threads. Twice a layer they sum what their parts gave, and
//! what is added besides (biases, the residual) each adds to that sum. Embeddings lie on all of them; the output layer,
//! and with it the logits, is the first rank's alone.
//!
//! Weights are bf16 on a device. What a file has in blocks for which there is a kernel goes there as it is, piece by piece,
//! and is widened there; everything else is made bf16 on the host first.

use std::{borrow::Cow, ops::Range, sync::Arc};

use half::bf16;

use super::device::{Address, Argument, Buffer, Device, Fault, Launch, Product};
use crate::{
    architecture::Architecture,
    kernels::matrix::{Matrix, SixteenKind},
    kv::BLOCK,
    model_directory::Error,
    parallel::Rank,
    weights::{BlockKind, Blocks, Weights},
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
/// Bytes of quantised weights that lie on a device at once, beside what they become.
const STAGING: usize = 8 << 20;
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

/// A decoder on a device, or one rank's part of it.
#[derive(Debug)]
pub struct Decoder<D: Device> {
    pub(super) device: Arc<D>,
    /// Of what is computed here.
    architecture: Architecture,
    embeddings: Buffer<D>,
    layers: Vec<Layer<D>>,
    norm: Buffer<D>,
    /// `None` when the embeddings serve as the output layer, and where another rank has it.
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

/// The shape of what each of so many devices computes of a model.
///
/// # Errors
/// The kernels do not compute the model, or not the parts it would have; the text says which number, and what would do.
pub fn part(whole: &Architecture, devices: usize) -> Result<Architecture, String> {
    check(whole)?;
    let part = Rank { index: 0, of: devices }.part_of(whole)?;
    check(&part).map_err(|why| format!("shared by {devices}, {why}"))?;
    Ok(part)
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
        let mut one = Self::load_across(std::slice::from_ref(device), a, weights)?;
        Ok(one.pop().expect("one for each device"))
    }

    /// The same for devices that compute it together, in the order of their ranks: each tensor is read once, and every
    /// device gets its part. Returns a decoder for each.
    ///
    /// # Errors
    /// As above, or the model cannot be shared by so many.
    pub fn load_across(
        devices: &[Arc<D>],
        whole: &Architecture,
        weights: &impl Weights,
    ) -> Result<Vec<Self>, LoadError> {
        let ranks = || Rank::all(devices.len());
        assert!(devices.iter().map(|device| device.rank()).eq(ranks()), "all ranks are there, in their order");
        let architecture = part(whole, devices.len()).map_err(LoadError::Shape)?;
        let loader = Loader { devices, a: whole, weights };
        let mut embeddings = loader.whole("model.embed_tokens.weight", whole.vocabulary, false)?.into_iter();
        let mut layers: Vec<Vec<Layer<D>>> = ranks().map(|_| Vec::new()).collect();
        for index in 0..whole.layers {
            layers.iter_mut().zip(loader.layer(index)?).for_each(|(layers, layer)| layers.push(layer));
        }
        let mut norms = loader.floats("model.norm.weight", whole.hidden)?.into_iter();
        let mut outputs = match whole.tied_embeddings {
            true => Vec::new(),
            false => loader.whole("lm_head.weight", whole.vocabulary, true)?,
        }
        .into_iter();
        let frequencies = float_bytes(&whole.rope.frequencies(whole.head_width));
        let decoders = devices.iter().zip(layers).map(|(device, layers)| {
            Ok(Self {
                device: Arc::clone(device),
                architecture: architecture.clone(),
                embeddings: embeddings.next().expect(EACH),
                layers,
                norm: norms.next().expect(EACH),
                output: outputs.next(),
                inverse_frequencies: Buffer::of(device, &frequencies)?,
            })
        });
        let decoders = decoders.collect::<Result<Vec<_>, Fault>>()?;
        devices.iter().try_for_each(|device| device.synchronise())?;
        Ok(decoders)
    }

    /// The shape of what is computed here.
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

    /// Asks for everything that a step computes, up to the logits, which the first rank has.
    ///
    /// # Errors
    /// The device refuses it or is lost.
    pub fn forward(&self, frame: &Frame, s: &Activations<D>, cache: &Cache<D>) -> Result<(), Fault> {
        let (a, device) = (&self.architecture, &self.device);
        let count = frame.tokens;
        let outputs = if device.rank().leads() { frame.outputs } else { 0 };
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
            device.all_reduce(s.projected.address(), count * a.hidden)?;
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
            device.all_reduce(s.projected.address(), count * a.hidden)?;
            match self.layers.get(index + 1) {
                Some(next) => add_and_norm(none, none, &next.attention_norm, count)?,
                None if outputs == 0 => {}
                None => {
                    let rows = if frame.all { none } else { Argument::Address(frame.rows) };
                    add_and_norm(none, rows, &self.norm, outputs)?;
                }
            }
        }
        if outputs == 0 {
            return Ok(());
        }
        let output = self.output.as_ref().unwrap_or(&self.embeddings);
        multiply(output, &s.normed, &s.logits, outputs, a.vocabulary, a.hidden, true)
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

const EACH: &str = "one for each device";

/// Reads tensors, and gives each device its part of them: what it returns is in the order of devices.
struct Loader<'a, D, W> {
    devices: &'a [Arc<D>],
    /// Of the whole model.
    a: &'a Architecture,
    weights: &'a W,
}

/// Which rows, or inputs, of a matrix a rank has.
type Cut<'a> = dyn Fn(Rank) -> Range<usize> + 'a;

/// A matrix of several that lie below each other on a device.
struct Part<'a> {
    name: String,
    /// Its rows.
    outputs: usize,
    rows: &'a Cut<'a>,
}

impl<D: Device, W: Weights> Loader<'_, D, W> {
    fn ranks(&self) -> impl Iterator<Item = (Rank, &Arc<D>)> {
        self.devices.iter().map(|device| (device.rank(), device))
    }

    fn layer(&self, index: usize) -> Result<Vec<Layer<D>>, LoadError> {
        let a = self.a;
        let name = |rest: &str| format!("model.layers.{index}.{rest}");
        let (query, key) = (a.heads * a.head_width, a.kv_heads * a.head_width);
        let queries = |rank: Rank| rank.share(query);
        let keys = |rank: Rank| {
            let heads = rank.kv_heads(a);
            heads.start * a.head_width..heads.end * a.head_width
        };
        let widths = |rank: Rank| rank.share(a.intermediate);
        let all = |_: Rank| 0..a.hidden;
        let part = |rest: &str, outputs, rows| Part { name: name(rest), outputs, rows };
        let floats = |rest: &str, width: usize| self.floats(&name(rest), width);
        let when = |wanted: bool, rest: &str, width: usize| match wanted {
            true => floats(rest, width),
            false => Ok(Vec::new()),
        };
        let qkv = [
            part("self_attn.q_proj.weight", query, &queries),
            part("self_attn.k_proj.weight", key, &keys),
            part("self_attn.v_proj.weight", key, &keys),
        ];
        let gate_up = [
            part("mlp.gate_proj.weight", a.intermediate, &widths),
            part("mlp.up_proj.weight", a.intermediate, &widths),
        ];
        let mut attention_norm = floats("input_layernorm.weight", a.hidden)?.into_iter();
        let mut qkv_bias = self.qkv_bias(&qkv)?.into_iter();
        let mut qkv = self.matrices(&qkv, a.hidden, &all)?.into_iter();
        let mut query_norm = when(a.query_key_norm, "self_attn.q_norm.weight", a.head_width)?.into_iter();
        let mut key_norm = when(a.query_key_norm, "self_attn.k_norm.weight", a.head_width)?.into_iter();
        let output = [part("self_attn.o_proj.weight", a.hidden, &all)];
        let mut attention_output = self.matrices(&output, query, &queries)?.into_iter();
        let mut output_bias = when(a.output_bias, "self_attn.o_proj.bias", a.hidden)?.into_iter();
        let mut feed_forward_norm = floats("post_attention_layernorm.weight", a.hidden)?.into_iter();
        let mut gate_up = self.matrices(&gate_up, a.hidden, &all)?.into_iter();
        let down = [part("mlp.down_proj.weight", a.hidden, &all)];
        let mut down = self.matrices(&down, a.intermediate, &widths)?.into_iter();
        let one = |_| Layer {
            attention_norm: attention_norm.next().expect(EACH),
            qkv: qkv.next().expect(EACH),
            qkv_bias: qkv_bias.next(),
            query_norm: query_norm.next(),
            key_norm: key_norm.next(),
            attention_output: attention_output.next().expect(EACH),
            attention_output_bias: output_bias.next(),
            feed_forward_norm: feed_forward_norm.next().expect(EACH),
            gate_up: gate_up.next().expect(EACH),
            down: down.next().expect(EACH),
        };
        Ok(self.devices.iter().map(one).collect())
    }

    /// The biases of queries, keys and values; none where the model has none.
    fn qkv_bias(&self, parts: &[Part<'_>]) -> Result<Vec<Buffer<D>>, LoadError> {
        if !self.a.qkv_bias {
            return Ok(Vec::new());
        }
        let tensor = |part: &Part<'_>| self.weights.tensor(&part.name.replace(".weight", ".bias"), &[part.outputs]);
        let biases: Vec<Vec<f32>> = parts.iter().map(tensor).collect::<Result<_, _>>()?;
        let own = |(rank, device)| {
            let own: Vec<&[f32]> = parts.iter().zip(&biases).map(|(part, bias)| &bias[(part.rows)(rank)]).collect();
            Ok(Buffer::of(device, &float_bytes(&own.concat()))?)
        };
        self.ranks().map(own).collect()
    }

    /// A short tensor in f32, on each device.
    fn floats(&self, name: &str, width: usize) -> Result<Vec<Buffer<D>>, LoadError> {
        let bytes = float_bytes(&self.weights.tensor(name, &[width])?);
        self.devices.iter().map(|device| Ok(Buffer::of(device, &bytes)?)).collect()
    }

    /// A matrix as wide as a token, whole: on each device, or on that of the first rank alone.
    fn whole(&self, name: &str, outputs: usize, on_first: bool) -> Result<Vec<Buffer<D>>, LoadError> {
        let devices = if on_first { &self.devices[..1] } else { self.devices };
        let loader = Loader { devices, ..*self };
        let part = Part { name: name.to_owned(), outputs, rows: &|_| 0..outputs };
        loader.matrices(&[part], self.a.hidden, &|_| 0..self.a.hidden)
    }

    /// Matrices below each other, in bf16: of each the rows and inputs that are a rank's.
    fn matrices(&self, parts: &[Part<'_>], inputs: usize, columns: &Cut<'_>) -> Result<Vec<Buffer<D>>, LoadError> {
        let room = |(rank, device)| {
            let rows: usize = parts.iter().map(|part| (part.rows)(rank).len()).sum();
            Buffer::zeros(device, rows * columns(rank).len() * SIXTEEN)
        };
        let buffers: Vec<Buffer<D>> = self.ranks().map(room).collect::<Result<_, _>>()?;
        let mut offsets = vec![0; buffers.len()];
        for Part { name, outputs, rows } in parts {
            let read = self.read(name, *outputs, inputs, columns)?;
            for (((rank, device), buffer), offset) in self.ranks().zip(&buffers).zip(&mut offsets) {
                let own = read.cut(inputs, rows(rank), columns(rank));
                match read.blocks {
                    Some(kind) => widen(device, kind, &own, buffer.at(*offset))?,
                    None => buffer.write(*offset, &own)?,
                }
                *offset += rows(rank).len() * columns(rank).len() * SIXTEEN;
            }
        }
        Ok(buffers)
    }

    /// A whole matrix, in blocks where each rank's part has whole ones.
    fn read(&self, name: &str, outputs: usize, inputs: usize, columns: &Cut<'_>) -> Result<ReadMatrix, LoadError> {
        let piece = columns(Rank { index: 0, of: self.devices.len() }).len();
        Ok(match self.weights.blocks(name, outputs, inputs, piece)? {
            Some(Blocks { kind, bytes }) => ReadMatrix { blocks: Some(kind), bytes },
            None => {
                let bytes = sixteen_bytes(self.weights.matrix(name, outputs, inputs)?);
                ReadMatrix { blocks: None, bytes }
            }
        })
    }
}

/// A matrix as it goes to a device: in blocks, or in bf16.
struct ReadMatrix {
    blocks: Option<BlockKind>,
    bytes: Vec<u8>,
}

impl ReadMatrix {
    /// Some rows of it, and of each some weights.
    fn cut(&self, inputs: usize, rows: Range<usize>, columns: Range<usize>) -> Cow<'_, [u8]> {
        let (weights, bytes) = self.blocks.map_or((1, SIXTEEN), |kind| (kind.weights(), kind.bytes()));
        let at = |weight: usize| weight / weights * bytes;
        let (row, columns) = (at(inputs), at(columns.start)..at(columns.end));
        let rows = &self.bytes[rows.start * row..rows.end * row];
        if columns == (0..row) {
            return Cow::Borrowed(rows);
        }
        let mut own = Vec::with_capacity(rows.len() / row * columns.len());
        rows.chunks_exact(row).for_each(|row| own.extend_from_slice(&row[columns.clone()]));
        Cow::Owned(own)
    }
}

/// Widens quantised weights to bf16 on the device, through a buffer that is small beside them.
fn widen<D: Device>(device: &Arc<D>, kind: BlockKind, blocks: &[u8], to: Address) -> Result<(), Fault> {
    let kernel = match kind {
        BlockKind::Q8_0 => "dequantise_q8_0",
        BlockKind::Q4K => "dequantise_q4_k",
    };
    let most = STAGING / kind.bytes();
    let staging = Buffer::zeros(device, blocks.len().min(most * kind.bytes()))?;
    for (index, piece) in blocks.chunks(most * kind.bytes()).enumerate() {
        // The device widens one piece before it takes up the next.
        staging.write(0, piece)?;
        let count = piece.len() / kind.bytes();
        let out = to + (index * most * kind.weights() * SIXTEEN) as Address;
        let arguments = [Argument::Address(staging.address()), Argument::Address(out), Argument::size(count)];
        let grid = [count.div_ceil(8) as u32, 1, 1];
        device.launch(&Launch { kernel, grid, threads: 256, shared: 0, arguments: &arguments })?;
    }
    Ok(())
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
