//! Texts to vectors: models of the BERT family, mean pooling, unit length.
//!
//! Texts are computed one by one: nothing is padded, and a text has the same vector in any company. A text longer
//! than the model's window is cut at it, as such models are used everywhere.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};

use crate::{
    model_directory::{Error, read_json},
    tokenizer::Tokenizer,
    weights::SafetensorsFiles,
};

/// An embedding model, ready to run.
pub struct Embedder {
    /// The name under which it is served: the directory's.
    pub name: String,
    /// Tokens of one text that it reads.
    pub window: usize,
    model: BertModel,
    tokenizer: Tokenizer,
}

impl Embedder {
    /// Loads a directory with `config.json`, `model.safetensors` and `tokenizer.json`.
    ///
    /// # Errors
    /// Any file is missing or unusable; the error names it.
    pub fn load(directory: &Path) -> Result<Self, Error> {
        let config_path = directory.join("config.json");
        let json = read_json(&config_path)?;
        let config: Config = serde_json::from_value(json)
            .map_err(|error| Error::refused(&config_path, format!("not a BERT configuration: {error}")))?;
        // Checks the header against the file's length, so that a truncated file is refused by name.
        SafetensorsFiles::open(directory)?;
        let path = directory.join("model.safetensors");
        let bytes = std::fs::read(&path).map_err(|source| Error::read(&path, source))?;
        let refuse = |error: candle_core::Error| Error::refused(&path, error.to_string());
        let weights = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu).map_err(refuse)?;
        let model = BertModel::load(weights, &config).map_err(refuse)?;
        let tokenizer = Tokenizer::load(&directory.join("tokenizer.json"))?;
        let name =
            directory.file_name().map_or_else(|| "embedding".to_owned(), |name| name.to_string_lossy().into_owned());
        Ok(Self { name, window: config.max_position_embeddings, model, tokenizer })
    }

    /// The vector of a text, of unit length, and the tokens read for it.
    ///
    /// # Errors
    /// The text cannot be tokenised, or the model does not fit its configuration; the text says which.
    pub fn embed(&self, text: &str) -> Result<(Vec<f32>, usize), String> {
        let mut ids = self.tokenizer.encode_marked(text)?;
        ids.truncate(self.window);
        if ids.is_empty() {
            return Err("embed a text without tokens".to_owned());
        }
        let vector = self.pooled(&ids).map_err(|error| error.to_string())?;
        Ok((vector, ids.len()))
    }

    fn pooled(&self, ids: &[u32]) -> candle_core::Result<Vec<f32>> {
        let input = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
        let hidden = self.model.forward(&input, &input.zeros_like()?, None)?;
        let mut vector: Vec<f32> = hidden.squeeze(0)?.mean(0)?.to_vec1()?;
        let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
        vector.iter_mut().for_each(|value| *value /= length);
        Ok(vector)
    }
}
