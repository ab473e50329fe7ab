//! What a model will take, read from the headers of its files: its weights as they will lie in memory, what reading
//! them takes for a while, and how much there is to read.
//!
//! It walks the tensors as `model` does when it loads them; a test holds both against each other.

use std::path::Path;

use crate::{
    architecture::Architecture,
    cuda::need::GpuNeeds,
    gguf::GgufFile,
    kernels::{
        attention::{BLOCK, HeadShape},
        matmul::Packed,
        matrix::Form,
    },
    model_directory::{Error, gguf_in},
    weights::{SafetensorsFiles, Stored, Weights},
};

/// What a model will take. All in bytes, but for the window.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Need {
    /// Its weights, in memory.
    pub weights_bytes: u64,
    /// What one of its matrices takes beside that while it is read.
    pub reading_bytes: u64,
    /// Its weights, in its files.
    pub stored_bytes: u64,
    /// Tokens of prompt and answer together, with so much memory for keys and values.
    pub window: usize,
    /// What it will take on GPUs; nothing is known where there are none.
    pub gpus: GpuNeeds,
}

impl Need {
    /// Reads the headers of a model's files.
    ///
    /// # Errors
    /// A file is missing, truncated or of another kind; the error names it.
    pub fn of(path: &Path, cache_bytes_max: usize) -> Result<Self, Error> {
        Self::with_gpus(path, cache_bytes_max, |_| GpuNeeds::default())
    }

    /// The same, with what a model of its shape takes on GPUs.
    ///
    /// # Errors
    /// A file is missing, truncated or of another kind; the error names it.
    pub fn with_gpus(
        path: &Path,
        cache_bytes_max: usize,
        gpus: impl FnOnce(&Architecture) -> GpuNeeds,
    ) -> Result<Self, Error> {
        match gguf_in(path)? {
            Some(file) => {
                let file = GgufFile::open(&file)?;
                let need = Self::measure(file.architecture(), &file, cache_bytes_max);
                Ok(Self { gpus: gpus(file.architecture()), ..need })
            }
            None => {
                let architecture = Architecture::read(&path.join("config.json"))?;
                let need = Self::measure(&architecture, &SafetensorsFiles::open(path)?, cache_bytes_max);
                Ok(Self { gpus: gpus(&architecture), ..need })
            }
        }
    }

    /// The same for files that are open. A tensor that is missing takes nothing here, and loading will refuse it.
    pub fn measure(architecture: &Architecture, weights: &impl Weights, cache_bytes_max: usize) -> Self {
        let a = architecture;
        let mut walk = Walk { weights, need: Self::default() };
        walk.matrices(&[("model.embed_tokens.weight".to_owned(), a.vocabulary)], a.hidden);
        walk.floats("model.norm.weight", a.hidden);
        if !a.tied_embeddings {
            walk.matrices(&[("lm_head.weight".to_owned(), a.vocabulary)], a.hidden);
        }
        (0..a.layers).for_each(|index| walk.layer(a, index));
        let shape = HeadShape { heads: a.heads, kv_heads: a.kv_heads, width: a.head_width };
        let blocks = (cache_bytes_max / shape.block_bytes(a.layers).max(1)).max(2);
        Self { window: a.window.min(blocks * BLOCK), ..walk.need }
    }
}

struct Walk<'a, W> {
    weights: &'a W,
    need: Need,
}

impl<W: Weights> Walk<'_, W> {
    fn layer(&mut self, a: &Architecture, index: usize) {
        let name = |rest: &str| format!("model.layers.{index}.{rest}");
        let (query, key) = (a.heads * a.head_width, a.kv_heads * a.head_width);
        let qkv = [("q", query), ("k", key), ("v", key)];
        let matrices = qkv.map(|(which, outputs)| (name(&format!("self_attn.{which}_proj.weight")), outputs));
        self.matrices(&matrices, a.hidden);
        let gate_up = ["gate", "up"].map(|which| (name(&format!("mlp.{which}_proj.weight")), a.intermediate));
        self.matrices(&gate_up, a.hidden);
        self.matrices(&[(name("self_attn.o_proj.weight"), a.hidden)], query);
        self.matrices(&[(name("mlp.down_proj.weight"), a.hidden)], a.intermediate);
        self.floats(&name("input_layernorm.weight"), a.hidden);
        self.floats(&name("post_attention_layernorm.weight"), a.hidden);
        if a.qkv_bias {
            qkv.iter().for_each(|(which, width)| self.floats(&name(&format!("self_attn.{which}_proj.bias")), *width));
        }
        if a.query_key_norm {
            ["q", "k"]
                .iter()
                .for_each(|which| self.floats(&name(&format!("self_attn.{which}_norm.weight")), a.head_width));
        }
        if a.output_bias {
            self.floats(&name("self_attn.o_proj.bias"), a.hidden);
        }
    }

    fn floats(&mut self, name: &str, width: usize) {
        self.need.stored_bytes += self.weights.stored(name).map_or(0, |stored| stored.bytes);
        self.need.weights_bytes += (width * size_of::<f32>()) as u64;
    }

    /// Matrices that are packed one below the other.
    fn matrices(&mut self, parts: &[(String, usize)], inputs: usize) {
        let absent = Stored { form: Form::Float, bytes: 0 };
        let stored = |name: &String| self.weights.stored(name).unwrap_or(absent);
        let found: Vec<(Stored, usize)> = parts.iter().map(|(name, outputs)| (stored(name), *outputs)).collect();
        let forms: Vec<(Form, usize)> = found.iter().map(|(stored, outputs)| (stored.form, *outputs)).collect();
        let file: u64 = found.iter().map(|(stored, _)| stored.bytes).sum();
        let packed = Packed::bytes_of(&forms, inputs) as u64;
        self.need.weights_bytes += packed;
        self.need.stored_bytes += file;
        // Until it is packed there are its bytes, and the rows they become.
        let rows: usize = parts.iter().map(|(_, outputs)| outputs * inputs * size_of::<f32>()).sum();
        self.need.reading_bytes = self.need.reading_bytes.max(file + rows as u64);
    }
}
