//! The encoder of the BERT family, forward only: one text at a time, on the thread that asks. Texts are computed side by
//! side by whoever has several.

use std::{cell::RefCell, path::Path};

use serde::Deserialize;

use crate::{
    kernels::{
        attention::{AttentionScratch, BLOCK, HeadShape, KvCache, View},
        encoder,
        matmul::Packed,
        matrix::Matrix,
        team::Team,
    },
    model_directory::Error,
    weights::{SafetensorsFiles, Weights},
};

/// What `config.json` says, as far as it matters for the numbers.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Config {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    intermediate_size: usize,
    hidden_act: Gate,
    pub(super) max_position_embeddings: usize,
    type_vocab_size: usize,
    layer_norm_eps: f32,
    #[serde(default)]
    #[expect(dead_code, reason = "reading it refuses what is not computed")]
    position_embedding_type: Positions,
}

/// What stands between the two products of a feed-forward layer.
#[derive(Debug, Clone, Copy, Deserialize)]
enum Gate {
    #[serde(rename = "gelu")]
    Gelu,
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh")]
    GeluTanh,
    #[serde(rename = "relu")]
    Relu,
}

/// How tokens know where they are.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Positions {
    #[default]
    Absolute,
}

/// An encoder, loaded.
pub(super) struct Bert {
    width: usize,
    heads: usize,
    gate: Gate,
    epsilon: f32,
    /// A row for each token, position and type.
    words: Vec<f32>,
    positions: Vec<f32>,
    types: Vec<f32>,
    norm: Norm,
    layers: Vec<Layer>,
    alone: Team,
}

struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

struct Linear {
    weight: Packed,
    bias: Vec<f32>,
}

struct Layer {
    /// Queries, keys and values in one product.
    qkv: Linear,
    mixed: Linear,
    norm: Norm,
    up: Linear,
    down: Linear,
    last: Norm,
}

/// Memory of a thread, used again for the next text.
#[derive(Default)]
struct Scratch {
    qkv: Vec<f32>,
    mixed: Vec<f32>,
    wide: Vec<f32>,
    out: Vec<f32>,
    attention: AttentionScratch,
    /// Keys and values of the text's tokens in one layer.
    cache: Option<KvCache>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Bert {
    /// Loads the weights of a directory.
    pub(super) fn load(files: &SafetensorsFiles, config: &Config) -> Result<Self, Error> {
        // A model that was saved with a head on top has its own name in front.
        let inside = files.holds("bert.embeddings.word_embeddings.weight");
        let from = Reader { files, prefix: if inside { "bert." } else { "" } };
        let (width, wide) = (config.hidden_size, config.intermediate_size);
        let table = |name: &str, rows: usize| from.tensor(&format!("embeddings.{name}.weight"), &[rows, width]);
        let layer = |number: usize| -> Result<Layer, Error> {
            let name = |part: &str| format!("encoder.layer.{number}.{part}");
            let attention = ["query", "key", "value"].map(|part| name(&format!("attention.self.{part}")));
            Ok(Layer {
                qkv: from.linear(&attention, width, width)?,
                mixed: from.linear(&[name("attention.output.dense")], width, width)?,
                norm: from.norm(&name("attention.output.LayerNorm"), width)?,
                up: from.linear(&[name("intermediate.dense")], wide, width)?,
                down: from.linear(&[name("output.dense")], width, wide)?,
                last: from.norm(&name("output.LayerNorm"), width)?,
            })
        };
        Ok(Self {
            width,
            heads: config.num_attention_heads,
            gate: config.hidden_act,
            epsilon: config.layer_norm_eps,
            words: table("word_embeddings", config.vocab_size)?,
            positions: table("position_embeddings", config.max_position_embeddings)?,
            types: table("token_type_embeddings", config.type_vocab_size)?,
            norm: from.norm("embeddings.LayerNorm", width)?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_, _>>()?,
            alone: Team::alone(),
        })
    }

    /// The last layer's output, a row for each token. At most as many tokens as there are positions.
    ///
    /// # Errors
    /// A token or a type has no row; the text names it.
    pub(super) fn hidden(&self, ids: &[u32], types: &[u32]) -> Result<Vec<f32>, String> {
        let mut x = Vec::with_capacity(ids.len() * self.width);
        for (position, (id, kind)) in ids.iter().zip(types).enumerate() {
            let word = self.row(&self.words, *id as usize, "token")?;
            let place = self.row(&self.positions, position, "position")?;
            let kind = self.row(&self.types, *kind as usize, "token type")?;
            x.extend(word.iter().zip(place).zip(kind).map(|((word, place), kind)| word + kind + place));
        }
        encoder::layer_norm(&mut x, &self.norm.weight, &self.norm.bias, self.epsilon);
        SCRATCH.with_borrow_mut(|scratch| {
            // Of another model, it may have another shape.
            let fresh = self.cache();
            scratch.cache = scratch.cache.take().filter(|cache| cache.is_like(&fresh)).or(Some(fresh));
            self.layers.iter().for_each(|layer| self.pass(layer, &mut x, scratch));
        });
        Ok(x)
    }

    fn row<'a>(&self, table: &'a [f32], row: usize, what: &str) -> Result<&'a [f32], String> {
        table.get(row * self.width..(row + 1) * self.width).ok_or_else(|| format!("the model has no {what} {row}"))
    }

    fn pass(&self, layer: &Layer, x: &mut [f32], scratch: &mut Scratch) {
        let Scratch { qkv, mixed, wide, out, attention, cache } = scratch;
        let (width, rows) = (self.width, x.len() / self.width);
        self.multiply(&layer.qkv, x, qkv);
        encoder::add_bias(qkv, &layer.qkv.bias);
        mixed.resize(rows * width, 0.0);
        self.attend(qkv, mixed, attention, cache.get_or_insert_with(|| self.cache()));
        self.multiply(&layer.mixed, mixed, out);
        encoder::add_layer_norm(x, out, &layer.mixed.bias, &layer.norm.weight, &layer.norm.bias, self.epsilon);
        self.multiply(&layer.up, x, wide);
        match self.gate {
            Gate::Gelu => encoder::gelu(wide, &layer.up.bias),
            Gate::GeluTanh => encoder::gelu_tanh(wide, &layer.up.bias),
            Gate::Relu => encoder::relu(wide, &layer.up.bias),
        }
        self.multiply(&layer.down, wide, out);
        encoder::add_layer_norm(x, out, &layer.down.bias, &layer.last.weight, &layer.last.bias, self.epsilon);
    }

    /// Room for as many tokens as there are positions, which takes memory as it is used.
    fn cache(&self) -> KvCache {
        let blocks = (self.positions.len() / self.width).div_ceil(BLOCK);
        KvCache::new(blocks, 1, HeadShape { heads: self.heads, kv_heads: self.heads, width: self.width / self.heads })
    }

    /// Every token looks at every token: at all positions up to the last.
    fn attend(&self, qkv: &[f32], out: &mut [f32], scratch: &mut AttentionScratch, cache: &mut KvCache) {
        let (width, tokens) = (self.width, out.len() / self.width);
        let blocks: Vec<u32> = (0..tokens.div_ceil(BLOCK) as u32).collect();
        for (token, row) in qkv.chunks_exact(3 * width).enumerate() {
            let (key, value) = row[width..].split_at(width);
            cache.write(0, (token / BLOCK) as u32, token % BLOCK, key, value);
        }
        let views = vec![View { blocks: &blocks, position: tokens - 1, from: 0 }; tokens];
        cache.attend(0, &views, qkv, 3 * width, scratch, out);
    }

    fn multiply(&self, linear: &Linear, x: &[f32], y: &mut Vec<f32>) {
        y.resize(x.len() / linear.weight.inputs() * linear.weight.outputs(), 0.0);
        linear.weight.multiply(&self.alone, x, y);
    }
}

/// Reads tensors by their names below a prefix.
struct Reader<'a> {
    files: &'a SafetensorsFiles,
    prefix: &'a str,
}

impl Reader<'_> {
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        self.files.tensor(&format!("{}{name}", self.prefix), shape)
    }

    /// Matrices of the same shape `[outputs, inputs]`, one below the other, with their biases.
    fn linear(&self, names: &[String], outputs: usize, inputs: usize) -> Result<Linear, Error> {
        let (mut parts, mut bias) = (Vec::new(), Vec::new());
        for name in names {
            parts.push(Matrix::Float(self.tensor(&format!("{name}.weight"), &[outputs, inputs])?));
            bias.extend(self.tensor(&format!("{name}.bias"), &[outputs])?);
        }
        Ok(Linear { weight: Packed::stack(parts, inputs), bias })
    }

    /// Old checkpoints call the weight of a norm gamma and its bias beta.
    fn norm(&self, name: &str, width: usize) -> Result<Norm, Error> {
        let old = self.files.holds(&format!("{}{name}.gamma", self.prefix));
        let (weight, bias) = if old { ("gamma", "beta") } else { ("weight", "bias") };
        let part = |part: &str| self.tensor(&format!("{name}.{part}"), &[width]);
        Ok(Norm { weight: part(weight)?, bias: part(bias)? })
    }
}

/// Reads the configuration's fields.
pub(super) fn read(json: serde_json::Value, path: &Path) -> Result<Config, Error> {
    serde_json::from_value(json).map_err(|error| Error::refused(path, format!("not a BERT configuration: {error}")))
}
