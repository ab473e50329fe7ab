//! Texts to vectors: models of the BERT family, pooled and scaled as their files say.
//!
//! A directory in the layout of sentence-transformers says what is done around the model (`recipe`). Texts are
//! computed one by one: nothing is padded, so a text has the same vector in any company, bit for bit. Of a text longer
//! than the model reads, the beginning is read, as such models are used everywhere; the answer says that it was cut.

use std::path::Path;

use crate::{
    architecture::positive,
    model_directory::{Error, fitting_tokenizer, name_of, read_json},
    tokenizer::Tokenizer,
    weights::SafetensorsFiles,
};

mod bert;
mod recipe;

use bert::{Bert, Config};
use recipe::{Pooling, Recipe};

/// Below this a vector counts as this long, so that a vector of zeros stays one.
const SHORTEST: f32 = 1e-12;

/// An embedding model, ready to run.
pub struct Embedder {
    /// The name under which it is served: the directory's.
    pub name: String,
    /// Tokens of one text that it reads, its marks included.
    pub window: usize,
    /// Length of its vectors.
    pub dimensions: usize,
    model: Bert,
    tokenizer: Tokenizer,
    recipe: Recipe,
}

/// What became of one text.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// The vector.
    pub vector: Vec<f32>,
    /// Tokens read.
    pub tokens: usize,
    /// The text was longer than that: only its beginning was read.
    pub cut: bool,
}

impl Embedder {
    /// Loads a directory with `config.json`, safetensors (f32, f16 or bf16, sharded or whole) and `tokenizer.json`.
    /// `modules.json` beside them says how vectors are made; without it they are means of unit length.
    ///
    /// # Errors
    /// Any file is missing or unusable, or asks for what is not computed; the error names it.
    pub fn load(directory: &Path) -> Result<Self, Error> {
        let recipe = Recipe::read(directory)?;
        let files = recipe.files.as_path();
        let config_path = files.join("config.json");
        let config = configuration(&config_path)?;
        let mut tokenizer = fitting_tokenizer(&files.join("tokenizer.json"), config.vocab_size)?;
        let window = recipe.window.map_or(config.max_position_embeddings, |w| w.min(config.max_position_embeddings));
        tokenizer.cut_at(window).map_err(|why| Error::refused(&config_path, why))?;
        let model = Bert::load(&SafetensorsFiles::open(files)?, &config)?;
        Ok(Self { name: name_of(directory), window, dimensions: config.hidden_size, model, tokenizer, recipe })
    }

    /// The vector of a text.
    ///
    /// # Errors
    /// The text cannot be tokenised, or the model gives no numbers for it; the text says which.
    pub fn embed(&self, text: &str) -> Result<Embedding, String> {
        let marked = self.tokenizer.encode_marked(&self.recipe.prepared(text))?;
        if marked.ids.is_empty() {
            return Err("embed a text without tokens".to_owned());
        }
        let hidden = self.model.hidden(&marked.ids, &marked.types)?;
        let mut vector = pooled(&hidden, self.dimensions, self.recipe.pooling);
        if self.recipe.normalise {
            let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt().max(SHORTEST);
            vector.iter_mut().for_each(|value| *value /= length);
        }
        if vector.iter().any(|value| !value.is_finite()) {
            return Err("the model gave no finite vector; are its weights whole?".to_owned());
        }
        Ok(Embedding { vector, tokens: marked.ids.len(), cut: marked.cut })
    }
}

fn pooled(hidden: &[f32], width: usize, pooling: Pooling) -> Vec<f32> {
    let mut rows = hidden.chunks_exact(width);
    let first = rows.next().expect("a text without tokens is refused").to_vec();
    match pooling {
        Pooling::First => first,
        Pooling::Largest => rows.fold(first, |largest, row| largest.iter().zip(row).map(|(a, b)| a.max(*b)).collect()),
        Pooling::Mean => {
            let count = hidden.len() / width;
            let sum = rows.fold(first, |sum, row| sum.iter().zip(row).map(|(a, b)| a + b).collect());
            sum.into_iter().map(|value| value / count as f32).collect()
        }
    }
}

/// Reads `config.json`, and refuses what is no plain BERT: relatives with the same fields count positions otherwise, and
/// would answer plausible nonsense.
fn configuration(path: &Path) -> Result<Config, Error> {
    let json = read_json(path)?;
    let refuse = |reason: String| Error::refused(path, reason);
    let kind = json.get("model_type").and_then(serde_json::Value::as_str).unwrap_or("bert");
    if kind != "bert" {
        return Err(refuse(format!("\"model_type\" is {kind:?}; embedding models are known of type \"bert\" only")));
    }
    if json.get("is_decoder").and_then(serde_json::Value::as_bool) == Some(true) {
        return Err(refuse("\"is_decoder\" is true; only encoders are known".to_owned()));
    }
    for name in ["vocab_size", "hidden_size", "num_attention_heads", "max_position_embeddings", "type_vocab_size"] {
        positive(&json, name).map_err(refuse)?;
    }
    let config = bert::read(json, path)?;
    if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
        let (heads, width) = (config.num_attention_heads, config.hidden_size);
        return Err(refuse(format!("{heads} attention heads cannot share a width of {width}")));
    }
    Ok(config)
}
