//! The decoder: embeddings, attention over the paged cache, gated feed-forward, and logits where they are wanted.
//!
//! One call computes a ragged batch: tokens of many sequences, prompt pieces and single continuations mixed. All
//! keys and values of a layer are stored before any token looks at them, so sequences may share blocks that are
//! being filled in the same call.

use std::{cell::Cell, ops::Range};

use crate::{
    architecture::Architecture,
    kernels::{
        attention::{AttentionScratch, BLOCK, HeadShape, KvCache, TOKENS_TOGETHER, View},
        elementwise::{add, add_rms_norm, rms_norm, rms_norm_in_place, rotate, silu_multiply},
        matmul::Packed,
        matrix::Matrix,
        team::Team,
    },
    model_directory::Error,
    parallel::{AllReduce, Alone, Rank},
    weights::Weights,
};

/// Below this many runs of tokens attention stays on the calling thread.
const PARALLEL_RUNS: usize = 6;
/// Tokens that one thread takes at a time in row-wise work.
const PART: usize = 32;

thread_local! {
    /// Attention's buffers, kept from one run of tokens to the next.
    static ATTENTION: Cell<AttentionScratch> = Cell::default();
}

/// A decoder with its weights, or one rank's part of it.
#[derive(Debug)]
pub struct Decoder {
    /// What is computed here.
    architecture: Architecture,
    rank: Rank,
    embeddings: Packed,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    /// `None` when the embeddings serve as the output layer.
    output: Option<Packed>,
    inverse_frequencies: Vec<f32>,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Vec<f32>,
    qkv: Packed,
    qkv_bias: Option<Vec<f32>>,
    query_norm: Option<Vec<f32>>,
    key_norm: Option<Vec<f32>>,
    attention_output: Packed,
    attention_output_bias: Option<Vec<f32>>,
    feed_forward_norm: Vec<f32>,
    gate_up: Packed,
    down: Packed,
}

/// A ragged batch: each token with its position and the sequence whose blocks it uses.
#[derive(Debug, Default)]
pub struct Batch<'a> {
    /// The input tokens.
    pub tokens: Vec<u32>,
    /// The position of each token in its sequence.
    pub positions: Vec<usize>,
    /// For each token, its index in `tables`.
    pub sequences: Vec<usize>,
    /// Block tables, one for each sequence.
    pub tables: Vec<&'a [u32]>,
    /// Tokens (by index in the batch) whose logits are wanted.
    pub outputs: Vec<usize>,
}

/// Buffers kept from one step to the next.
#[derive(Debug, Default)]
pub struct Scratch {
    x: Vec<f32>,
    normed: Vec<f32>,
    qkv: Vec<f32>,
    mixed: Vec<f32>,
    projected: Vec<f32>,
    gate_up: Vec<f32>,
    gated: Vec<f32>,
    cosines: Vec<f32>,
    sines: Vec<f32>,
    logits: Vec<f32>,
}

impl Decoder {
    /// Reads and packs the weights of the given shape.
    ///
    /// # Errors
    /// A tensor is missing or has another shape.
    pub fn load(architecture: &Architecture, weights: &impl Weights) -> Result<Self, Error> {
        Self::load_part(architecture, weights, Rank::ALONE)
    }

    /// The same for one rank of several that compute the model together.
    ///
    /// # Errors
    /// As above, or the model cannot be cut so.
    pub fn load_part(whole: &Architecture, weights: &impl Weights, rank: Rank) -> Result<Self, Error> {
        let architecture = rank.part_of(whole).map_err(|reason| weights.refuse(&reason))?;
        let a = whole;
        let embeddings = matrix(weights, "model.embed_tokens.weight", a.vocabulary, a.hidden)?;
        let layers = (0..a.layers).map(|index| Layer::load(a, rank, index, weights)).collect::<Result<_, _>>()?;
        let norm = weights.tensor("model.norm.weight", &[a.hidden])?;
        let output = if a.tied_embeddings || rank.index > 0 {
            None
        } else {
            Some(matrix(weights, "lm_head.weight", a.vocabulary, a.hidden)?)
        };
        let inverse_frequencies = a.rope.frequencies(a.head_width);
        Ok(Self { embeddings, layers, norm, output, inverse_frequencies, architecture, rank })
    }

    /// The shape of a decoder whose weights lie elsewhere: this one computes nothing.
    pub(crate) fn elsewhere(architecture: &Architecture) -> Self {
        let nothing = Packed::stack(vec![Matrix::Float(Vec::new())], architecture.hidden);
        Self {
            architecture: architecture.clone(),
            rank: Rank::ALONE,
            embeddings: nothing,
            layers: Vec::new(),
            norm: Vec::new(),
            output: None,
            inverse_frequencies: Vec::new(),
        }
    }

    /// Leaves activations as they are where weights are quantised, instead of rounding them to bytes: slower, and equal to
    /// what the weights say in floats.
    pub fn be_exact(&mut self) {
        let layers = self.layers.iter_mut();
        let of_layers = layers.flat_map(|l| [&mut l.qkv, &mut l.attention_output, &mut l.gate_up, &mut l.down]);
        of_layers.chain([&mut self.embeddings]).chain(self.output.as_mut()).for_each(Packed::be_exact);
    }

    /// Whether activations are left as they are.
    pub fn is_exact(&self) -> bool {
        self.embeddings.is_exact()
    }

    /// The shape of this decoder.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// Bytes its weights take.
    pub fn bytes(&self) -> usize {
        let floats = |values: &Option<Vec<f32>>| values.as_ref().map_or(0, |values| size_of_val(values.as_slice()));
        let layer = |layer: &Layer| {
            let packed = [&layer.qkv, &layer.attention_output, &layer.gate_up, &layer.down];
            let small = [&layer.qkv_bias, &layer.query_norm, &layer.key_norm, &layer.attention_output_bias];
            let norms = size_of_val(layer.attention_norm.as_slice()) + size_of_val(layer.feed_forward_norm.as_slice());
            packed.iter().map(|packed| packed.bytes()).sum::<usize>() + small.map(floats).iter().sum::<usize>() + norms
        };
        self.embeddings.bytes()
            + self.output.as_ref().map_or(0, Packed::bytes)
            + self.layers.iter().map(layer).sum::<usize>()
            + size_of_val(self.norm.as_slice())
    }

    /// A cache of `blocks` blocks for this decoder.
    pub fn cache(&self, blocks: usize) -> KvCache {
        KvCache::new(blocks, self.architecture.layers, self.head_shape())
    }

    /// Bytes that one block of the cache takes.
    pub fn block_bytes(&self) -> usize {
        self.head_shape().block_bytes(self.architecture.layers)
    }

    /// Computes the batch, stores its keys and values, and returns logits `[outputs, vocabulary]`.
    pub fn forward<'s>(
        &self,
        team: &Team,
        batch: &Batch<'_>,
        cache: &mut KvCache,
        scratch: &'s mut Scratch,
    ) -> &'s [f32] {
        self.forward_part(&Alone, team, batch, cache, scratch)
    }

    /// The same with all ranks, each of which calls this with the same batch and a cache of its own. The first returns the
    /// logits, the others none.
    pub fn forward_part<'s>(
        &self,
        ranks: &dyn AllReduce,
        team: &Team,
        batch: &Batch<'_>,
        cache: &mut KvCache,
        scratch: &'s mut Scratch,
    ) -> &'s [f32] {
        let a = &self.architecture;
        let count = batch.tokens.len();
        let s = scratch;
        s.x.resize(count * a.hidden, 0.0);
        for (row, &token) in s.x.chunks_exact_mut(a.hidden).zip(&batch.tokens) {
            self.embeddings.row(token as usize, row);
        }
        self.angles(&batch.positions, &mut s.cosines, &mut s.sines);
        s.normed.resize(count * a.hidden, 0.0);
        s.projected.resize(count * a.hidden, 0.0);
        s.gate_up.resize(count * 2 * a.intermediate, 0.0);
        s.gated.resize(count * a.intermediate, 0.0);
        rms_norm(&s.x, &self.layers[0].attention_norm, a.norm_epsilon, &mut s.normed);
        for (index, layer) in self.layers.iter().enumerate() {
            self.attention(team, index, layer, batch, cache, s);
            ranks.sum(&mut s.projected);
            if let Some(bias) = &layer.attention_output_bias {
                s.projected.chunks_exact_mut(a.hidden).for_each(|row| add(row, bias));
            }
            self.add_and_norm(team, s, &layer.feed_forward_norm);
            layer.gate_up.multiply(team, &s.normed, &mut s.gate_up);
            let parts = (s.gate_up.chunks(PART * 2 * a.intermediate)).zip(s.gated.chunks_mut(PART * a.intermediate));
            for_each_part(team, parts, count, |(gate_up, gated)| silu_multiply(gate_up, a.intermediate, gated));
            layer.down.multiply(team, &s.gated, &mut s.projected);
            ranks.sum(&mut s.projected);
            match self.layers.get(index + 1) {
                Some(next) => self.add_and_norm(team, s, &next.attention_norm),
                None => add(&mut s.x, &s.projected),
            }
        }
        if self.rank.index > 0 {
            return &[];
        }
        self.logits(team, batch, s);
        &s.logits
    }

    fn attention(
        &self,
        team: &Team,
        index: usize,
        layer: &Layer,
        batch: &Batch<'_>,
        cache: &mut KvCache,
        s: &mut Scratch,
    ) {
        let a = &self.architecture;
        let (query_width, key_width) = (a.heads * a.head_width, a.kv_heads * a.head_width);
        let width = query_width + 2 * key_width;
        s.qkv.resize(batch.tokens.len() * width, 0.0);
        layer.qkv.multiply(team, &s.normed, &mut s.qkv);
        let half = a.head_width / 2;
        let (cosines, sines) = (&s.cosines, &s.sines);
        for_each_part(team, s.qkv.chunks_mut(PART * width).enumerate(), batch.tokens.len(), |(part, rows)| {
            for (token, row) in (part * PART..).zip(rows.chunks_exact_mut(width)) {
                if let Some(bias) = &layer.qkv_bias {
                    add(row, bias);
                }
                let (queries, rest) = row.split_at_mut(query_width);
                for (heads, norm) in [(queries, &layer.query_norm), (&mut rest[..key_width], &layer.key_norm)] {
                    if let Some(norm) = norm {
                        rms_norm_in_place(heads, norm, a.norm_epsilon);
                    }
                    for head in heads.chunks_exact_mut(a.head_width) {
                        rotate(head, &cosines[token * half..][..half], &sines[token * half..][..half]);
                    }
                }
            }
        });
        for (token, row) in s.qkv.chunks_exact(width).enumerate() {
            let (keys, values) = row[query_width..].split_at(key_width);
            let position = batch.positions[token];
            let block = batch.tables[batch.sequences[token]][position / BLOCK];
            cache.write(index, block, position % BLOCK, keys, values);
        }
        s.mixed.resize(batch.tokens.len() * query_width, 0.0);
        let cache = &*cache;
        let view = |token: usize| {
            let position = batch.positions[token];
            let from = a.sliding_window.map_or(0, |window| (position + 1).saturating_sub(window));
            View { blocks: batch.tables[batch.sequences[token]], position, from }
        };
        let mut runs = Vec::new();
        let mut rest = s.mixed.as_mut_slice();
        for run in runs_of(&batch.sequences) {
            let out;
            (out, rest) = rest.split_at_mut(run.len() * query_width);
            runs.push((run, out));
        }
        let one = |(run, out): (Range<usize>, &mut [f32])| {
            let views: Vec<View<'_>> = run.clone().map(view).collect();
            let queries = &s.qkv[run.start * width..run.end * width];
            let mut scratch = ATTENTION.take();
            cache.attend(index, &views, queries, width, &mut scratch, out);
            ATTENTION.set(scratch);
        };
        if runs.len() < PARALLEL_RUNS {
            runs.into_iter().for_each(one)
        } else {
            team.each(runs, one)
        }
        layer.attention_output.multiply(team, &s.mixed, &mut s.projected);
    }

    /// Adds what half a layer gave, and prepares the input of the next.
    fn add_and_norm(&self, team: &Team, s: &mut Scratch, norm: &[f32]) {
        let (part, epsilon) = (PART * norm.len(), self.architecture.norm_epsilon);
        let count = s.x.len() / norm.len();
        let parts = s.x.chunks_mut(part).zip(s.projected.chunks(part)).zip(s.normed.chunks_mut(part));
        for_each_part(team, parts, count, |((x, y), out)| add_rms_norm(x, y, norm, epsilon, out));
    }

    fn logits(&self, team: &Team, batch: &Batch<'_>, s: &mut Scratch) {
        let a = &self.architecture;
        s.normed.resize(batch.outputs.len() * a.hidden, 0.0);
        for (&token, out) in batch.outputs.iter().zip(s.normed.chunks_exact_mut(a.hidden)) {
            rms_norm(&s.x[token * a.hidden..][..a.hidden], &self.norm, a.norm_epsilon, out);
        }
        s.logits.resize(batch.outputs.len() * a.vocabulary, 0.0);
        self.output.as_ref().unwrap_or(&self.embeddings).multiply(team, &s.normed, &mut s.logits);
    }

    fn angles(&self, positions: &[usize], cosines: &mut Vec<f32>, sines: &mut Vec<f32>) {
        let amplitude = self.architecture.rope.amplitude();
        cosines.clear();
        sines.clear();
        for &position in positions {
            for frequency in &self.inverse_frequencies {
                let (sine, cosine) = (position as f32 * frequency).sin_cos();
                cosines.push(cosine * amplitude);
                sines.push(sine * amplitude);
            }
        }
    }

    fn head_shape(&self) -> HeadShape {
        let a = &self.architecture;
        HeadShape { heads: a.heads, kv_heads: a.kv_heads, width: a.head_width }
    }
}

impl Layer {
    /// One rank's part of a layer of the whole model.
    fn load(a: &Architecture, rank: Rank, index: usize, weights: &impl Weights) -> Result<Self, Error> {
        let name = |rest: &str| format!("model.layers.{index}.{rest}");
        let get = |rest: &str, shape: &[usize]| weights.tensor(&name(rest), shape);
        let when = |wanted: bool, rest: &str, width: usize| wanted.then(|| get(rest, &[width])).transpose();
        let (query, key) = (a.heads * a.head_width, a.kv_heads * a.head_width);
        let (own_query, own_width, kv_heads) = (rank.share(query), rank.share(a.intermediate), rank.kv_heads(a));
        let own_key = kv_heads.start * a.head_width..kv_heads.end * a.head_width;
        let rows = |rest: &str, outputs: usize, own: &Range<usize>| {
            let whole = weights.matrix(&name(rest), outputs, a.hidden)?;
            Ok(if rank.of == 1 { whole } else { whole.pick(a.hidden, own.clone(), |row| row) })
        };
        let columns = |rest: &str, inputs: usize, own: &Range<usize>| {
            let whole = weights.matrix(&name(rest), a.hidden, inputs)?;
            let part = if rank.of == 1 { Some(whole) } else { whole.columns(inputs, own.clone()) };
            let cut = || weights.refuse(&format!("{} ranks would cut the blocks of {}", rank.of, name(rest)));
            Ok(Packed::stack(vec![part.ok_or_else(cut)?], own.len()))
        };
        let qkv = vec![
            rows("self_attn.q_proj.weight", query, &own_query)?,
            rows("self_attn.k_proj.weight", key, &own_key)?,
            rows("self_attn.v_proj.weight", key, &own_key)?,
        ];
        let qkv_bias = match when(a.qkv_bias, "self_attn.q_proj.bias", query)? {
            Some(bias) => {
                let (keys, values) = (get("self_attn.k_proj.bias", &[key])?, get("self_attn.v_proj.bias", &[key])?);
                Some([&bias[own_query.clone()], &keys[own_key.clone()], &values[own_key]].concat())
            }
            None => None,
        };
        let gate_up = vec![
            rows("mlp.gate_proj.weight", a.intermediate, &own_width)?,
            rows("mlp.up_proj.weight", a.intermediate, &own_width)?,
        ];
        Ok(Self {
            attention_norm: get("input_layernorm.weight", &[a.hidden])?,
            qkv: Packed::stack(qkv, a.hidden),
            qkv_bias,
            query_norm: when(a.query_key_norm, "self_attn.q_norm.weight", a.head_width)?,
            key_norm: when(a.query_key_norm, "self_attn.k_norm.weight", a.head_width)?,
            attention_output: columns("self_attn.o_proj.weight", query, &own_query)?,
            attention_output_bias: when(a.output_bias, "self_attn.o_proj.bias", a.hidden)?,
            feed_forward_norm: get("post_attention_layernorm.weight", &[a.hidden])?,
            gate_up: Packed::stack(gate_up, a.hidden),
            down: columns("mlp.down_proj.weight", a.intermediate, &own_width)?,
        })
    }
}

/// Neighbouring tokens of one sequence, as many as attention computes together.
fn runs_of(sequences: &[usize]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (token, sequence) in sequences.iter().enumerate() {
        match runs.last_mut() {
            Some(run) if run.len() < TOKENS_TOGETHER && sequences[run.start] == *sequence => run.end += 1,
            _ => runs.push(token..token + 1),
        }
    }
    runs
}

/// Row-wise work by parts of `PART` tokens, on several threads when there are enough of them.
fn for_each_part<T: Send>(team: &Team, parts: impl Iterator<Item = T>, tokens: usize, work: impl Fn(T) + Sync) {
    if tokens < 2 * PART { parts.for_each(work) } else { team.each(parts.collect(), work) }
}

fn matrix(weights: &impl Weights, name: &str, outputs: usize, inputs: usize) -> Result<Packed, Error> {
    Ok(Packed::stack(vec![weights.matrix(name, outputs, inputs)?], inputs))
}
