//! Reads models from GGUF files: their shape and tensors; `vocabulary` reads the tokenizer and the chat template.
//!
//! The header is checked against the file's length before any tensor is read, so that a truncated file is refused.
//! Tensors are found by the names of Hugging Face's layout, which the decoder uses for both kinds of file.

use std::{
    fs::File,
    io::Seek,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use candle_core::quantized::{
    GgmlDType,
    gguf_file::{Content, TensorInfo, Value},
};

use crate::{
    architecture::{Architecture, Rope, RopeScaling},
    kernels::matrix::{Matrix, SixteenKind},
    model_directory::Error,
    weights::{Blocks, Stored, Weights},
};

mod alignment;
mod blocks;
mod vocabulary;

/// A GGUF file, opened and checked.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    file: File,
    content: Content,
    architecture: Architecture,
    /// Rows of query and key projections are interleaved, as llama.cpp wants them for this family.
    interleaved: bool,
}

impl GgufFile {
    /// Opens the file and reads the model's shape from its metadata.
    ///
    /// # Errors
    /// The file cannot be read, is truncated or malformed, or describes a model the decoder does not compute.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let refuse = |reason: String| Error::refused(path, reason);
        let mut file = File::open(path).map_err(|source| Error::read(path, source))?;
        let length = file.metadata().map_err(|source| Error::read(path, source))?.len();
        if alignment::is_zero(&mut std::io::BufReader::new(&file)) {
            return Err(refuse("malformed: \"general.alignment\" is 0".to_owned()));
        }
        file.rewind().map_err(|source| Error::read(path, source))?;
        let content = Content::read(&mut std::io::BufReader::new(&mut file)).map_err(|error| {
            let reason = error.to_string();
            let reason = reason.lines().next().unwrap_or_default();
            refuse(format!("truncated, or not a GGUF file of known types: {reason}"))
        })?;
        let parts = number(&content, "split.count").unwrap_or(0);
        if parts > 1 {
            return Err(refuse(format!("one of {parts} parts; join them with llama-gguf-split --merge")));
        }
        for (name, info) in &content.tensor_infos {
            let end =
                bytes(info).and_then(|size| content.tensor_data_offset.checked_add(info.offset)?.checked_add(size));
            match end {
                Some(end) if end <= length => {}
                Some(end) => {
                    let reason = format!("truncated: tensor {name:?} ends at byte {end}, the file at {length}");
                    return Err(refuse(reason));
                }
                None => return Err(refuse(format!("tensor {name:?} has an impossible shape {:?}", info.shape))),
            }
        }
        let architecture = architecture(&content).map_err(refuse)?;
        let interleaved = text(&content, "general.architecture") == Some("llama");
        let mut opened = Self { path: path.to_owned(), file, content, architecture, interleaved };
        if opened.content.tensor_infos.contains_key("rope_freqs.weight") {
            let pairs = opened.architecture.head_width / 2;
            opened.architecture.rope.scaling = RopeScaling::Divisors(opened.tensor_as("rope_freqs.weight", &[pairs])?);
        }
        Ok(opened)
    }

    /// The shape of the model.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn find(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo, Error> {
        let refuse = |reason| Error::refused(&self.path, reason);
        let info = self.content.tensor_infos.get(name).ok_or_else(|| refuse(format!("tensor {name:?} is missing")))?;
        if info.shape.dims() != shape {
            let found = info.shape.dims();
            return Err(refuse(format!("tensor {name:?} has shape {found:?}, the metadata needs {shape:?}")));
        }
        Ok(info)
    }

    fn read(&self, info: &TensorInfo) -> Result<Vec<u8>, Error> {
        let mut buffer = vec![0; bytes(info).expect("checked when the file was opened") as usize];
        let start = self.content.tensor_data_offset + info.offset;
        self.file.read_exact_at(&mut buffer, start).map_err(|source| Error::read(&self.path, source))?;
        Ok(buffer)
    }

    fn tensor_as(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        self.matrix_as(name, shape).map(Matrix::into_floats)
    }

    fn matrix_as(&self, name: &str, shape: &[usize]) -> Result<Matrix, Error> {
        let info = self.find(name, shape)?;
        let bytes = self.read(info)?;
        let inputs = *shape.last().expect("a tensor has a dimension");
        let sixteen =
            |kind| Matrix::Sixteen(kind, bytes.as_chunks::<2>().0.iter().map(|&p| u16::from_le_bytes(p)).collect());
        Ok(match info.ggml_dtype {
            GgmlDType::F32 => {
                Matrix::Float(bytes.as_chunks::<4>().0.iter().map(|&value| f32::from_le_bytes(value)).collect())
            }
            GgmlDType::F16 => sixteen(SixteenKind::Half),
            GgmlDType::BF16 => sixteen(SixteenKind::Brain),
            kind => {
                let refuse = |reason: String| Error::refused(&self.path, format!("tensor {name:?} {reason}"));
                if !inputs.is_multiple_of(kind.block_size()) {
                    return Err(refuse(format!("has rows of {inputs}, no whole blocks of {kind:?}")));
                }
                let quantised = blocks::unpack(kind, &bytes, inputs).ok_or_else(|| {
                    refuse(format!(
                        "is {kind:?}; known are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K"
                    ))
                })?;
                Matrix::Quantised(quantised)
            }
        })
    }

    /// The heads whose rows are interleaved in this tensor.
    fn interleaved_heads(&self, name: &str) -> Option<usize> {
        let heads = if name.contains(".attn_q.") {
            self.architecture.heads
        } else if name.contains(".attn_k.") {
            self.architecture.kv_heads
        } else {
            return None;
        };
        self.interleaved.then_some(heads)
    }
}

impl Weights for GgufFile {
    fn refuse(&self, reason: &str) -> Error {
        Error::refused(&self.path, reason)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let name = gguf_name(name).ok_or_else(|| Error::refused(&self.path, format!("tensor {name:?} has no name")))?;
        let values = self.tensor_as(&name, shape)?;
        Ok(match self.interleaved_heads(&name) {
            Some(heads) => {
                let width = shape[0] / heads;
                (0..shape[0]).map(|row| values[interleaved_row(row, width)]).collect()
            }
            None => values,
        })
    }

    fn stored(&self, name: &str) -> Option<Stored> {
        let info = self.content.tensor_infos.get(&gguf_name(name)?)?;
        Some(Stored { form: blocks::form(info.ggml_dtype), bytes: bytes(info)? })
    }

    fn blocks(&self, name: &str, outputs: usize, inputs: usize, piece: usize) -> Result<Option<Blocks>, Error> {
        let name = gguf_name(name).ok_or_else(|| Error::refused(&self.path, format!("tensor {name:?} has no name")))?;
        let info = self.find(&name, &[outputs, inputs])?;
        let Some(kind) = blocks::kind(info.ggml_dtype).filter(|kind| piece.is_multiple_of(kind.weights())) else {
            return Ok(None);
        };
        let mut bytes = self.read(info)?;
        if let Some(heads) = self.interleaved_heads(&name) {
            let (width, row) = (outputs / heads, inputs / kind.weights() * kind.bytes());
            let from = |to: usize| &bytes[interleaved_row(to, width) * row..][..row];
            bytes = (0..outputs).flat_map(from).copied().collect();
        }
        Ok(Some(Blocks { kind, bytes }))
    }

    fn matrix(&self, name: &str, outputs: usize, inputs: usize) -> Result<Matrix, Error> {
        let name = gguf_name(name).ok_or_else(|| Error::refused(&self.path, format!("tensor {name:?} has no name")))?;
        let matrix = self.matrix_as(&name, &[outputs, inputs])?;
        let Some(heads) = self.interleaved_heads(&name) else {
            return Ok(matrix);
        };
        let width = outputs / heads;
        let from = |row: usize| interleaved_row(row, width);
        Ok(matrix.pick(inputs, 0..outputs, from))
    }
}

/// Where row `row` of Hugging Face's layout lies among rows whose pairs stand beside each other in every head.
fn interleaved_row(row: usize, width: usize) -> usize {
    let (head, at) = (row / width, row % width);
    let (half, pair) = (at / (width / 2), at % (width / 2));
    head * width + pair * 2 + half
}

/// `blk.0.attn_q.weight` for `model.layers.0.self_attn.q_proj.weight`, and so on.
fn gguf_name(name: &str) -> Option<String> {
    let known = match name {
        "model.embed_tokens.weight" => "token_embd.weight",
        "model.norm.weight" => "output_norm.weight",
        "lm_head.weight" => "output.weight",
        layered => {
            let (layer, rest) = layered.strip_prefix("model.layers.")?.split_once('.')?;
            let (module, kind) = rest.rsplit_once('.')?;
            let module = match module {
                "input_layernorm" => "attn_norm",
                "post_attention_layernorm" => "ffn_norm",
                "self_attn.q_proj" => "attn_q",
                "self_attn.k_proj" => "attn_k",
                "self_attn.v_proj" => "attn_v",
                "self_attn.o_proj" => "attn_output",
                "self_attn.q_norm" => "attn_q_norm",
                "self_attn.k_norm" => "attn_k_norm",
                "mlp.gate_proj" => "ffn_gate",
                "mlp.up_proj" => "ffn_up",
                "mlp.down_proj" => "ffn_down",
                _ => return None,
            };
            return Some(format!("blk.{layer}.{module}.{kind}"));
        }
    };
    Some(known.to_owned())
}

/// Bytes of a tensor; `None` when its shape is absurd.
fn bytes(info: &TensorInfo) -> Option<u64> {
    let elements = info.shape.dims().iter().try_fold(1_u64, |all, &dim| all.checked_mul(dim as u64))?;
    let (block, size) = (info.ggml_dtype.block_size() as u64, info.ggml_dtype.type_size() as u64);
    (elements > 0 && elements.is_multiple_of(block)).then(|| (elements / block).checked_mul(size)).flatten()
}

fn architecture(content: &Content) -> Result<Architecture, String> {
    let family = text(content, "general.architecture").ok_or("\"general.architecture\" is missing")?;
    if !["llama", "qwen2", "qwen3"].contains(&family) {
        return Err(format!("unknown architecture {family:?}; known are llama (with Mistral), qwen2, qwen3"));
    }
    let key = |name: &str| format!("{family}.{name}");
    let optional = |name: &str| number(content, &key(name));
    let dimension_or = |name: &str, default: Option<usize>| match (optional(name), default) {
        (Some(value @ 1..=0x100_0000), _) => Ok(value as usize),
        (Some(value), _) => Err(format!("{:?} is {value}, expected 1 to 16777216", key(name))),
        (None, Some(default)) => Ok(default),
        (None, None) => Err(format!("{:?} is missing", key(name))),
    };
    let dimension = |name: &str| dimension_or(name, None);
    let has = |tensor: &str| content.tensor_infos.contains_key(tensor);
    let hidden = dimension("embedding_length")?;
    let heads = dimension("attention.head_count")?;
    let kv_heads = dimension_or("attention.head_count_kv", Some(heads))?;
    let head_width = dimension_or("attention.key_length", Some(hidden / heads))?;
    if !heads.is_multiple_of(kv_heads) {
        return Err(format!("{heads} attention heads cannot share {kv_heads} key-value heads"));
    }
    if head_width == 0 || !head_width.is_multiple_of(2) {
        return Err(format!("a head is {head_width} wide, which rotary embedding cannot pair"));
    }
    if let Some(value_width) = optional("attention.value_length").filter(|&width| width as usize != head_width) {
        return Err(format!("values are {value_width} wide and keys {head_width}, which is not supported"));
    }
    if let Some(turned) = optional("rope.dimension_count").filter(|&width| width as usize != head_width) {
        return Err(format!("only {turned} of {head_width} dimensions are rotated, which is not supported"));
    }
    if optional("expert_count").is_some_and(|experts| experts > 0) {
        return Err("a mixture of experts is not supported".to_owned());
    }
    let vocabulary = content.tensor_infos.get("token_embd.weight").ok_or("tensor \"token_embd.weight\" is missing")?;
    let sliding_window =
        optional("attention.sliding_window").map(|window| window as usize).filter(|&window| window > 0);
    Ok(Architecture {
        vocabulary: *vocabulary.shape.dims().first().ok_or("tensor \"token_embd.weight\" has no rows")?,
        hidden,
        layers: dimension("block_count")?,
        heads,
        kv_heads,
        head_width,
        intermediate: dimension("feed_forward_length")?,
        norm_epsilon: float(content, &key("attention.layer_norm_rms_epsilon")).unwrap_or(1e-6),
        rope: Rope {
            theta: float(content, &key("rope.freq_base")).unwrap_or(10_000.0),
            scaling: scaling(content, family)?,
        },
        window: dimension("context_length")?,
        sliding_window,
        tied_embeddings: !has("output.weight"),
        query_key_norm: has("blk.0.attn_q_norm.weight"),
        qkv_bias: has("blk.0.attn_q.bias"),
        output_bias: has("blk.0.attn_output.bias"),
    })
}

fn scaling(content: &Content, family: &str) -> Result<RopeScaling, String> {
    let key = |name: &str| format!("{family}.rope.scaling.{name}");
    let need = |name: &str| float(content, &key(name)).ok_or_else(|| format!("{:?} is missing", key(name)));
    match text(content, &key("type")).unwrap_or("none") {
        "none" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: need("factor")? }),
        "yarn" => Ok(RopeScaling::yarn(need("factor")?, need("original_context_length")?)),
        other => Err(format!("unknown rope scaling {other:?}; known are none, linear, yarn")),
    }
}

fn text<'a>(content: &'a Content, key: &str) -> Option<&'a str> {
    match content.metadata.get(key)? {
        Value::String(text) => Some(text),
        _ => None,
    }
}

fn number(content: &Content, key: &str) -> Option<u64> {
    match content.metadata.get(key)? {
        Value::I32(value) => u64::try_from(*value).ok(),
        Value::I64(value) => u64::try_from(*value).ok(),
        Value::Bool(_) => None,
        value => value.to_u64().ok(),
    }
}

fn float(content: &Content, key: &str) -> Option<f32> {
    match content.metadata.get(key)? {
        Value::F32(value) => Some(*value),
        Value::F64(value) => Some(*value as f32),
        _ => number(content, key).map(|value| value as f32),
    }
}
