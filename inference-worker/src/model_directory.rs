//! A model as it lies on disk: a directory in Hugging Face's layout, loaded and checked as a whole.

use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
};

use serde_json::Value;

use crate::{
    architecture::Architecture,
    constraint::{Grammars, Refused},
    model::Decoder,
    template::ChatTemplate,
    tokenizer::Tokenizer,
    tool_calls::Family,
    weights::SafetensorsFiles,
};

/// Why a model cannot be loaded; the text names the file and the reason.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("read {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file can be read and is not usable.
    #[error("use {path}: {reason}", path = path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl Error {
    pub(crate) fn read(path: &Path, source: std::io::Error) -> Self {
        Self::Read { path: path.to_owned(), source }
    }

    pub(crate) fn refused(path: &Path, reason: impl Into<String>) -> Self {
        Self::Refused { path: path.to_owned(), reason: reason.into() }
    }
}

/// Everything a chat model needs, ready to run.
#[derive(Debug)]
pub struct Model {
    /// The name under which it is served: the directory's.
    pub name: String,
    /// The decoder and its weights.
    pub decoder: Decoder,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Conversations to text.
    pub template: ChatTemplate,
    /// Tokens that end an answer.
    pub end_tokens: Vec<u32>,
    /// How it writes calls.
    pub family: Family,
    grammars: OnceLock<Result<Grammars, Refused>>,
}

impl Model {
    /// Loads a directory with `config.json`, safetensors, `tokenizer.json` and `tokenizer_config.json`.
    ///
    /// # Errors
    /// Any file is missing or unusable; the error names it.
    pub fn load(directory: &Path) -> Result<Self, Error> {
        Self::load_as(directory, None)
    }

    /// The same for a model whose template does not tell how it writes calls, or tells it wrongly.
    ///
    /// # Errors
    /// Any file is missing or unusable; the error names it.
    pub fn load_as(directory: &Path, family: Option<Family>) -> Result<Self, Error> {
        let config_path = directory.join("config.json");
        let architecture = Architecture::read(&config_path)?;
        let weights = SafetensorsFiles::open(directory)?;
        let decoder = Decoder::load(architecture, &weights)?;
        let mut tokenizer = Tokenizer::load(&directory.join("tokenizer.json"))?;
        let tokenizer_config_path = directory.join("tokenizer_config.json");
        let tokenizer_config = read_json(&tokenizer_config_path)?;
        let template = ChatTemplate::load(directory, &tokenizer_config)?;
        let end_tokens = end_tokens(directory, &config_path, &tokenizer_config, &tokenizer)?;
        let name = directory.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned());
        // Without a word about it: most models that are trained for calls write them as Hermes does.
        let family = family.or(template.family).unwrap_or(Family::Hermes);
        tokenizer.show(family.visible());
        Ok(Self { name, decoder, tokenizer, template, end_tokens, family, grammars: OnceLock::new() })
    }

    /// What compiles grammars for it, made when first needed.
    ///
    /// # Errors
    /// No masks can be computed for its vocabulary.
    pub fn grammars(&self) -> Result<&Grammars, Refused> {
        let vocabulary = self.decoder.architecture().vocabulary;
        let made =
            self.grammars.get_or_init(|| Grammars::new(&self.tokenizer, vocabulary, &self.end_tokens, self.family));
        made.as_ref().map_err(Clone::clone)
    }
}

pub(crate) fn read_json(path: &Path) -> Result<Value, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::read(path, source))?;
    serde_json::from_slice(&bytes).map_err(|error| Error::refused(path, format!("malformed JSON: {error}")))
}

/// The union of what the three files say: models are published with the end token in any of them.
fn end_tokens(
    directory: &Path,
    config: &Path,
    tokenizer_config: &Value,
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>, Error> {
    let mut tokens = Vec::new();
    let generation = directory.join("generation_config.json");
    for path in [generation.as_path(), config] {
        if path.exists() {
            match read_json(path)?.get("eos_token_id") {
                Some(Value::Array(ids)) => {
                    tokens.extend(ids.iter().filter_map(Value::as_u64).map(|id| id as u32));
                }
                Some(id) => tokens.extend(id.as_u64().map(|id| id as u32)),
                None => {}
            }
        }
    }
    let named = tokenizer_config.get("eos_token");
    let named = named.and_then(|token| token.as_str().or_else(|| token.get("content").and_then(Value::as_str)));
    tokens.extend(named.and_then(|token| tokenizer.id(token)));
    tokens.sort_unstable();
    tokens.dedup();
    Ok(tokens)
}
