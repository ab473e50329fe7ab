//! The tokenizer of a GGUF file, written as the `tokenizer.json` it was made from, and what templates need of it.

use std::collections::BTreeMap;

use candle_core::quantized::gguf_file::Value as Field;
use serde_json::{Value, json};

use super::{GgufFile, number, text};
use crate::{model_directory::Error, tokenizer::Tokenizer};

/// Kinds of tokens, as `tokenizer.ggml.token_type` numbers them.
const UNKNOWN: u64 = 2;
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// Control tokens that end an answer whatever the metadata says: files are published with only one of several named.
const ENDS: [&str; 6] = ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "</s>"];

/// How text falls into words before pairs are merged: the expressions of the families.
const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

impl GgufFile {
    /// The tokenizer in the metadata.
    ///
    /// # Errors
    /// There is none, or it is of a kind that is not known.
    pub(crate) fn tokenizer(&self) -> Result<Tokenizer, Error> {
        let refuse = |reason: String| Error::refused(self.path(), reason);
        let json = self.tokenizer_json().map_err(|reason| {
            refuse(format!("{reason}; a tokenizer.json beside the file is used instead of the one in it"))
        })?;
        Tokenizer::from_json(self.path(), &json)
    }

    /// What `tokenizer_config.json` would say: the chat template and the tokens it may name.
    pub(crate) fn tokenizer_config(&self) -> Value {
        let tokens = self.strings("tokenizer.ggml.tokens").unwrap_or_default();
        let token = |name: &str| {
            let id = number(&self.content, &format!("tokenizer.ggml.{name}_token_id"))?;
            tokens.get(usize::try_from(id).ok()?).copied()
        };
        json!({
            "chat_template": text(&self.content, "tokenizer.chat_template"),
            "bos_token": token("bos"),
            "eos_token": token("eos"),
        })
    }

    /// The tokens that end an answer, by what the metadata and the vocabulary say.
    pub(crate) fn end_tokens(&self) -> Vec<u32> {
        let named = ["eos", "eot", "eom"].into_iter().filter_map(|name| {
            let id = number(&self.content, &format!("tokenizer.ggml.{name}_token_id"))?;
            u32::try_from(id).ok()
        });
        let tokens = self.strings("tokenizer.ggml.tokens").unwrap_or_default();
        let kinds = self.kinds();
        let marked = tokens.iter().zip(0..).filter(|(token, id)| {
            ENDS.contains(*token) && kinds.get(*id as usize).is_some_and(|&kind| kind == CONTROL)
        });
        let mut all: Vec<u32> = named.chain(marked.map(|(_, id)| id)).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    fn tokenizer_json(&self) -> Result<Value, String> {
        let tokens = self.strings("tokenizer.ggml.tokens").ok_or("\"tokenizer.ggml.tokens\" is missing")?;
        let vocabulary: BTreeMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (*token, id)).collect();
        let added: Vec<Value> = tokens
            .iter()
            .zip(self.kinds())
            .enumerate()
            .filter(|(_, (_, kind))| [UNKNOWN, CONTROL, USER_DEFINED].contains(kind))
            .map(|(id, (token, kind))| {
                json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": kind != USER_DEFINED})
            })
            .collect();
        let (normalizer, pre_tokenizer, decoder, model) = match text(&self.content, "tokenizer.ggml.model") {
            Some("gpt2") => self.byte_level(&vocabulary)?,
            Some("llama") => self.sentence_piece(&tokens, &vocabulary)?,
            Some(other) => return Err(format!("unknown tokenizer model {other:?}; known are gpt2, llama")),
            None => return Err("\"tokenizer.ggml.model\" is missing".to_owned()),
        };
        Ok(json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
                  "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null,
                  "decoder": decoder, "model": model}))
    }

    fn byte_level(&self, vocabulary: &BTreeMap<&str, usize>) -> Result<(Value, Value, Value, Value), String> {
        let merges = self.strings("tokenizer.ggml.merges").ok_or("\"tokenizer.ggml.merges\" is missing")?;
        let merges: Vec<Value> =
            merges.iter().filter_map(|merge| merge.split_once(' ')).map(|(a, b)| json!([a, b])).collect();
        let nfc = json!({"type": "NFC"});
        let (normalizer, words) = match text(&self.content, "tokenizer.ggml.pre").unwrap_or("gpt-2") {
            "qwen2" | "deepseek-r1-qwen" => (nfc, vec![QWEN2]),
            "llama-bpe" | "llama3" | "llama-v3" => (Value::Null, vec![LLAMA3]),
            "tekken" => (Value::Null, vec![TEKKEN]),
            "smollm" => (Value::Null, vec![r"\p{N}", GPT2]),
            "gpt-2" | "default" => (Value::Null, vec![GPT2]),
            other => {
                return Err(format!(
                    "unknown pre-tokenizer {other:?}; known are qwen2, llama-bpe, tekken, smollm, gpt-2"
                ));
            }
        };
        // Where merges are ignored for whole words, a word that is a token becomes it whatever the merges say.
        let whole_words = words.contains(&LLAMA3) || words.contains(&TEKKEN);
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
        let mut steps: Vec<Value> = words
            .into_iter()
            .map(|words| json!({"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": false}))
            .collect();
        steps.push(byte_level.clone());
        let model = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                           "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                           "ignore_merges": whole_words, "vocab": vocabulary, "merges": merges});
        Ok((normalizer, json!({"type": "Sequence", "pretokenizers": steps}), byte_level, model))
    }

    fn sentence_piece(
        &self,
        tokens: &[&str],
        vocabulary: &BTreeMap<&str, usize>,
    ) -> Result<(Value, Value, Value, Value), String> {
        let Some(Field::Array(scores)) = self.content.metadata.get("tokenizer.ggml.scores") else {
            return Err("\"tokenizer.ggml.scores\" is missing".to_owned());
        };
        let scores: Vec<f32> = scores.iter().filter_map(|score| score.to_f32().ok()).collect();
        if scores.len() != tokens.len() {
            return Err(format!("\"tokenizer.ggml.scores\" has {} scores for {} tokens", scores.len(), tokens.len()));
        }
        let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
        let spaces = replace(" ", "▁");
        let prefixed =
            !matches!(self.content.metadata.get("tokenizer.ggml.add_space_prefix"), Some(Field::Bool(false)));
        let normalizer = if prefixed {
            json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, spaces]})
        } else {
            spaces
        };
        let unknown = number(&self.content, "tokenizer.ggml.unknown_token_id").unwrap_or(0) as usize;
        let model = json!({"type": "BPE", "dropout": null, "unk_token": tokens.get(unknown),
                           "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
                           "byte_fallback": true, "ignore_merges": false, "vocab": vocabulary,
                           "merges": merges_by_score(tokens, &scores, vocabulary)});
        let decoder = json!({"type": "Sequence", "decoders":
                             [replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}]});
        Ok((normalizer, Value::Null, decoder, model))
    }

    fn strings(&self, key: &str) -> Option<Vec<&str>> {
        let Field::Array(values) = self.content.metadata.get(key)? else {
            return None;
        };
        values.iter().map(|value| value.to_string().ok().map(String::as_str)).collect()
    }

    /// The kind of every token; empty when the file does not say.
    fn kinds(&self) -> Vec<u64> {
        let Some(Field::Array(kinds)) = self.content.metadata.get("tokenizer.ggml.token_type") else {
            return Vec::new();
        };
        let number = |kind: &Field| match kind {
            Field::I32(kind) => u64::try_from(*kind).unwrap_or(0),
            kind => kind.to_u64().unwrap_or(0),
        };
        kinds.iter().map(number).collect()
    }
}

/// The merges that a vocabulary with scores stands for: every way to make a token of two, the highest score first.
fn merges_by_score(tokens: &[&str], scores: &[f32], vocabulary: &BTreeMap<&str, usize>) -> Vec<Value> {
    let mut merges = Vec::new();
    for (token, score) in tokens.iter().zip(scores) {
        let mut ways: Vec<(usize, usize, &str, &str)> = token
            .char_indices()
            .skip(1)
            .filter_map(|(at, _)| {
                let (left, right) = token.split_at(at);
                Some((*vocabulary.get(left)?, *vocabulary.get(right)?, left, right))
            })
            .collect();
        ways.sort_unstable();
        merges.extend(ways.into_iter().map(|(_, _, left, right)| (*score, left, right)));
    }
    let length = |text: &str| text.chars().count();
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(length(b.1).cmp(&length(a.1))).then(length(b.2).cmp(&length(a.2))));
    merges.into_iter().map(|(_, left, right)| json!([left, right])).collect()
}
