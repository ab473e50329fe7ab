//! What a model looks like, read from the `config.json` beside its weights.
//!
//! One decoder serves Llama, Mistral, Qwen2 and Qwen3: they differ only in the fields here. A file that asks for
//! something the decoder does not compute is refused by name, because a model that runs with a setting ignored
//! answers plausible nonsense.

use std::{f32::consts::TAU, path::Path};

use serde_json::Value;

use crate::model_directory::Error;

/// The shape of a decoder, in the words of Hugging Face's `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// Number of token ids the model can read and produce.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Query heads of a layer.
    pub heads: usize,
    /// Key and value heads of a layer; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head; even.
    pub head_width: usize,
    /// Width of the feed-forward layer.
    pub intermediate: usize,
    /// Epsilon of every RMS norm.
    pub norm_epsilon: f32,
    /// Base and scaling of the rotary embedding.
    pub rope: Rope,
    /// Largest number of positions the model was made for.
    pub window: usize,
    /// Positions a token can look back on, when that is less than the window (Mistral).
    pub sliding_window: Option<usize>,
    /// The output layer is the embedding matrix.
    pub tied_embeddings: bool,
    /// Queries and keys are normalised per head (Qwen3).
    pub query_key_norm: bool,
    /// The query, key and value projections have a bias (Qwen2, or `attention_bias`).
    pub qkv_bias: bool,
    /// The attention output projection has a bias (Llama with `attention_bias`).
    pub output_bias: bool,
}

/// How positions turn into angles.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// The base of the geometric series of frequencies.
    pub theta: f32,
    /// How the frequencies are stretched for long windows.
    pub scaling: RopeScaling,
}

/// The known stretchings of rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Every frequency divided by the factor.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Llama 3: long wavelengths divided, short ones kept, a ramp between.
    Llama3 {
        /// The divisor of long wavelengths.
        factor: f32,
        /// Start of the ramp.
        low_frequency_factor: f32,
        /// End of the ramp.
        high_frequency_factor: f32,
        /// The window before stretching.
        original_window: f32,
    },
    /// YaRN: like Llama 3 with a ramp over dimensions, and all angles' sines and cosines grow.
    Yarn {
        /// The divisor of long wavelengths.
        factor: f32,
        /// The window before stretching.
        original_window: f32,
        /// Turns within the window above which a frequency is kept.
        fast: f32,
        /// Turns below which it is divided.
        slow: f32,
        /// What sines and cosines are multiplied with.
        attention: f32,
    },
    /// Each frequency divided by a number of its own (as GGUF files say it).
    Divisors(Vec<f32>),
}

impl RopeScaling {
    /// YaRN with the usual bounds.
    pub fn yarn(factor: f32, original_window: f32) -> Self {
        let attention = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
        Self::Yarn { factor, original_window, fast: 32.0, slow: 1.0, attention }
    }
}

impl Rope {
    /// The angle by which each of the pairs of a head of `width` turns from one position to the next.
    pub fn frequencies(&self, width: usize) -> Vec<f32> {
        let plain = |pair: usize| 1.0 / self.theta.powf(2.0 * pair as f32 / width as f32);
        (0..width / 2).map(|pair| self.stretched(pair, plain(pair), width as f32)).collect()
    }

    /// What sines and cosines are multiplied with.
    pub fn amplitude(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention, .. } => attention,
            _ => 1.0,
        }
    }

    fn stretched(&self, pair: usize, frequency: f32, width: f32) -> f32 {
        let between = |kept: f32, factor: f32| (1.0 - kept) * frequency / factor + kept * frequency;
        match &self.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 { factor, low_frequency_factor, high_frequency_factor, original_window } => {
                let turns = original_window * frequency / TAU;
                let kept = (turns - low_frequency_factor) / (high_frequency_factor - low_frequency_factor);
                between(kept.clamp(0.0, 1.0), *factor)
            }
            RopeScaling::Yarn { factor, original_window, fast, slow, .. } => {
                // The pair that makes so many turns within the window.
                let pair_of = |turns: f32| width * (original_window / (turns * TAU)).ln() / (2.0 * self.theta.ln());
                let first = pair_of(*fast).floor().max(0.0);
                let last = pair_of(*slow).ceil().min(width - 1.0);
                let last = if first == last { last + 0.001 } else { last };
                between(1.0 - ((pair as f32 - first) / (last - first)).clamp(0.0, 1.0), *factor)
            }
            RopeScaling::Divisors(divisors) => frequency / divisors[pair],
        }
    }
}

impl Architecture {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// The file is missing, is not JSON, names an unknown architecture, or a field is missing or out of bounds.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let json: Value = crate::model_directory::read_json(path)?;
        Self::from_json(&json).map_err(|reason| Error::refused(path, reason))
    }

    fn from_json(json: &Value) -> Result<Self, String> {
        let family = Family::of(json)?;
        let number = |name: &str| positive(json, name);
        let hidden = number("hidden_size")?;
        let heads = number("num_attention_heads")?;
        let kv_heads = optional(json, "num_key_value_heads")?.unwrap_or(heads);
        let head_width = optional(json, "head_dim")?.unwrap_or(hidden / heads);
        if heads % kv_heads != 0 {
            return Err(format!("{heads} attention heads cannot share {kv_heads} key-value heads"));
        }
        if !head_width.is_multiple_of(2) {
            return Err(format!("head_dim is {head_width}, which rotary embedding cannot pair"));
        }
        if let Some(act) = json.get("hidden_act").and_then(Value::as_str)
            && act != "silu"
        {
            return Err(format!("hidden_act is {act:?}, only \"silu\" is known"));
        }
        for unsupported in ["mlp_bias"] {
            if json.get(unsupported).and_then(Value::as_bool) == Some(true) {
                return Err(format!("{unsupported} is not supported"));
            }
        }
        let rotated = json.pointer("/rope_parameters/partial_rotary_factor").or(json.get("partial_rotary_factor"));
        if let Some(part) = rotated.and_then(Value::as_f64).filter(|&part| part != 1.0) {
            return Err(format!("partial_rotary_factor is {part}, and heads are only rotated as a whole"));
        }
        let attention_bias = json.get("attention_bias").and_then(Value::as_bool).unwrap_or(false);
        let uses_window = json.get("use_sliding_window").and_then(Value::as_bool).unwrap_or(family == Family::Mistral);
        if uses_window && family != Family::Mistral {
            return Err("use_sliding_window is supported for MistralForCausalLM only".to_owned());
        }
        Ok(Self {
            vocabulary: number("vocab_size")?,
            hidden,
            layers: number("num_hidden_layers")?,
            heads,
            kv_heads,
            head_width,
            intermediate: number("intermediate_size")?,
            norm_epsilon: float(json, "rms_norm_eps").unwrap_or(1e-6),
            rope: Rope::from_json(json)?,
            window: number("max_position_embeddings")?,
            sliding_window: if uses_window { optional(json, "sliding_window")? } else { None },
            tied_embeddings: json.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(false),
            query_key_norm: family == Family::Qwen3,
            qkv_bias: family == Family::Qwen2 || attention_bias,
            output_bias: family != Family::Qwen2 && attention_bias,
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

impl Family {
    fn of(json: &Value) -> Result<Self, String> {
        let name = json
            .pointer("/architectures/0")
            .and_then(Value::as_str)
            .ok_or("\"architectures\" is missing, so the architecture is unknown")?;
        match name {
            "LlamaForCausalLM" => Ok(Self::Llama),
            "MistralForCausalLM" => Ok(Self::Mistral),
            "Qwen2ForCausalLM" => Ok(Self::Qwen2),
            "Qwen3ForCausalLM" => Ok(Self::Qwen3),
            other => Err(format!(
                "unknown architecture {other:?}; known are LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM"
            )),
        }
    }
}

impl Rope {
    /// Reads both spellings: `rope_theta` with `rope_scaling`, and the newer `rope_parameters`.
    fn from_json(json: &Value) -> Result<Self, String> {
        let parameters = json.get("rope_parameters").filter(|value| value.is_object());
        let theta = parameters
            .and_then(|value| float(value, "rope_theta"))
            .or_else(|| float(json, "rope_theta"))
            .unwrap_or(10_000.0);
        let scaling = match parameters.or_else(|| json.get("rope_scaling")) {
            Some(value) if value.is_object() => RopeScaling::from_json(value)?,
            _ => RopeScaling::None,
        };
        Ok(Self { theta, scaling })
    }
}

impl RopeScaling {
    fn from_json(json: &Value) -> Result<Self, String> {
        let kind = json.get("rope_type").or_else(|| json.get("type")).and_then(Value::as_str).unwrap_or("default");
        let need = |name: &str| float(json, name).ok_or_else(|| format!("rope scaling {kind:?} lacks {name:?}"));
        match kind {
            "default" => Ok(Self::None),
            "linear" => Ok(Self::Linear { factor: need("factor")? }),
            "llama3" => Ok(Self::Llama3 {
                factor: need("factor")?,
                low_frequency_factor: need("low_freq_factor")?,
                high_frequency_factor: need("high_freq_factor")?,
                original_window: need("original_max_position_embeddings")?,
            }),
            "yarn" => {
                let Self::Yarn { factor, original_window, fast, slow, attention } =
                    Self::yarn(need("factor")?, need("original_max_position_embeddings")?)
                else {
                    unreachable!("yarn makes yarn");
                };
                if json.get("mscale").is_some_and(|value| !value.is_null()) {
                    return Err("rope scaling \"yarn\" with \"mscale\" is not supported".to_owned());
                }
                if json.get("truncate").and_then(Value::as_bool) == Some(false) {
                    return Err("rope scaling \"yarn\" with \"truncate\": false is not supported".to_owned());
                }
                Ok(Self::Yarn {
                    factor,
                    original_window,
                    fast: float(json, "beta_fast").unwrap_or(fast),
                    slow: float(json, "beta_slow").unwrap_or(slow),
                    attention: float(json, "attention_factor").unwrap_or(attention),
                })
            }
            other => Err(format!("unknown rope scaling {other:?}; known are default, linear, llama3, yarn")),
        }
    }
}

/// A dimension: there, not zero, and not absurd.
pub(crate) fn positive(json: &Value, name: &str) -> Result<usize, String> {
    optional(json, name)?.ok_or_else(|| format!("{name:?} is missing"))
}

/// An absent or null field is `None`; zero, negative and absurd values are refused.
fn optional(json: &Value, name: &str) -> Result<Option<usize>, String> {
    const LARGEST: u64 = 1 << 24; // No dimension of a model comes near; larger products would overflow.
    match json.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(number) if (1..=LARGEST).contains(&number) => Ok(Some(number as usize)),
            _ => Err(format!("{name:?} is {value}, expected a number from 1 to {LARGEST}")),
        },
    }
}

fn float(json: &Value, name: &str) -> Option<f32> {
    json.get(name).and_then(Value::as_f64).map(|value| value as f32)
}
