//! A model as it lies on disk, a directory in Hugging Face's layout or a GGUF file, loaded and checked as a whole.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use serde_json::Value;

use crate::{
    architecture::Architecture,
    constraint::{Grammars, Refused},
    cuda::{
        OnDevice,
        decoder::{Decoder as DeviceDecoder, LoadError},
        device::Device,
        ranks::Together,
    },
    gguf::GgufFile,
    identity,
    model::Decoder,
    need::Need,
    template::ChatTemplate,
    tokenizer::Tokenizer,
    tool_calls::Family,
    weights::{Progress, SafetensorsFiles, Watched, Weights},
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
    /// It does not go on the device.
    #[error("put {path} on a GPU: {reason}", path = path.display())]
    Device {
        /// The model.
        path: PathBuf,
        /// Why.
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
    /// The name under which it is served: the directory's or the file's.
    pub name: String,
    /// The decoder and its weights; only its shape where they lie on a device.
    pub decoder: Decoder,
    /// The decoder on a device, which then computes.
    pub device: Option<Arc<dyn OnDevice>>,
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Conversations to text.
    pub template: ChatTemplate,
    /// Tokens that end an answer.
    pub end_tokens: Vec<u32>,
    /// How it writes calls.
    pub family: Family,
    /// What its files are told apart by; none when they changed while they were read.
    pub identity: Option<String>,
    grammars: OnceLock<Result<Grammars, Refused>>,
}

impl Model {
    /// Loads a directory with `config.json`, safetensors, `tokenizer.json` and `tokenizer_config.json`; or a GGUF file,
    /// or the one in a directory.
    ///
    /// # Errors
    /// Any file is missing or unusable, or the tokenizer does not fit the model; the error names the file.
    pub fn load(path: &Path) -> Result<Self, Error> {
        Self::load_as(path, None)
    }

    /// The same for a model whose template does not tell how it writes calls, or tells it wrongly.
    ///
    /// # Errors
    /// Any file is missing or unusable, or the tokenizer does not fit the model; the error names the file.
    pub fn load_as(path: &Path, family: Option<Family>) -> Result<Self, Error> {
        Self::load_watched(path, family, &Progress::default())
    }

    /// The same, and says on the way how much of it was read.
    ///
    /// # Errors
    /// Any file is missing or unusable, or the tokenizer does not fit the model; the error names the file.
    pub fn load_watched(path: &Path, family: Option<Family>, progress: &Progress) -> Result<Self, Error> {
        Self::load_by(path, family, &Host { progress })
    }

    /// The same, with the weights on a device.
    ///
    /// # Errors
    /// As above, or the device has no room, or does not compute such a model.
    pub fn load_on<D: Device>(
        path: &Path,
        family: Option<Family>,
        progress: &Progress,
        device: &Arc<D>,
    ) -> Result<Self, Error> {
        Self::load_across(path, family, progress, std::slice::from_ref(device))
    }

    /// The same, with the weights on devices that compute it together, in the order of their ranks.
    ///
    /// # Errors
    /// As above, or the model cannot be shared by so many.
    pub fn load_across<D: Device>(
        path: &Path,
        family: Option<Family>,
        progress: &Progress,
        devices: &[Arc<D>],
    ) -> Result<Self, Error> {
        Self::load_by(path, family, &On { progress, devices, path })
    }

    fn load_by(path: &Path, family: Option<Family>, place: &impl Place) -> Result<Self, Error> {
        let before = identity::of(path);
        let parts = match gguf_in(path)? {
            Some(file) => Parts::of_gguf(&file, place)?,
            None => Parts::of_directory(path, place)?,
        };
        let Parts { decoder: (decoder, device), mut tokenizer, mut template, end_tokens } = parts;
        template.guard(&tokenizer);
        let vocabulary = decoder.architecture().vocabulary;
        if let Some(end) = end_tokens.iter().find(|&&end| end as usize >= vocabulary) {
            return Err(Error::refused(
                path,
                format!("end token {end} is outside the {vocabulary} tokens of the model"),
            ));
        }
        // Without a word about it: most models that are trained for calls write them as Hermes does.
        let family = family.or(template.family).unwrap_or(Family::Hermes);
        tokenizer.show(family.visible());
        let (identity, grammars) = ((identity::of(path) == before).then_some(before), OnceLock::new());
        Ok(Self { name: name_of(path), decoder, device, tokenizer, template, end_tokens, family, identity, grammars })
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

/// A decoder on the host, and one on a device if it lies there.
type Placed = (Decoder, Option<Arc<dyn OnDevice>>);

/// Where a decoder's weights go.
trait Place {
    fn decoder(&self, architecture: &Architecture, weights: &impl Weights) -> Result<Placed, Error>;
}

struct Host<'a> {
    progress: &'a Progress,
}

impl Place for Host<'_> {
    fn decoder(&self, architecture: &Architecture, weights: &impl Weights) -> Result<Placed, Error> {
        let progress = self.progress;
        progress.expect(Need::measure(architecture, weights, 0).stored_bytes);
        Ok((Decoder::load(architecture, &Watched { weights, progress })?, None))
    }
}

struct On<'a, D: Device> {
    progress: &'a Progress,
    devices: &'a [Arc<D>],
    path: &'a Path,
}

impl<D: Device> Place for On<'_, D> {
    fn decoder(&self, architecture: &Architecture, weights: &impl Weights) -> Result<Placed, Error> {
        let progress = self.progress;
        progress.expect(Need::measure(architecture, weights, 0).stored_bytes);
        let weights = &Watched { weights, progress };
        let loaded: Result<Arc<dyn OnDevice>, LoadError> = match self.devices {
            [device] => DeviceDecoder::load(device, architecture, weights).map(|one| Arc::new(one) as _),
            several => Together::load(several, architecture, weights).map(|all| Arc::new(all) as _),
        };
        let loaded = loaded.map_err(|error| match error {
            LoadError::Files(error) => error,
            other => Error::Device { path: self.path.to_owned(), reason: other.to_string() },
        })?;
        Ok((Decoder::elsewhere(architecture), Some(loaded)))
    }
}

/// What is read of a model's files.
struct Parts {
    decoder: Placed,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    end_tokens: Vec<u32>,
}

impl Parts {
    fn of_directory(directory: &Path, place: &impl Place) -> Result<Self, Error> {
        let config_path = directory.join("config.json");
        let architecture = Architecture::read(&config_path)?;
        let weights = SafetensorsFiles::open(directory)?;
        let tokenizer = fitting_tokenizer(&directory.join("tokenizer.json"), architecture.vocabulary)?;
        let tokenizer_config_path = directory.join("tokenizer_config.json");
        let tokenizer_config = read_json(&tokenizer_config_path)?;
        let template = ChatTemplate::load(&tokenizer_config_path, &tokenizer_config)?;
        let end_tokens = end_tokens(directory, &config_path, &tokenizer_config, &tokenizer)?;
        let decoder = place.decoder(&architecture, &weights)?;
        Ok(Self { decoder, tokenizer, template, end_tokens })
    }

    /// Tokenizer and template lie beside the file, or in it.
    fn of_gguf(path: &Path, place: &impl Place) -> Result<Self, Error> {
        let file = GgufFile::open(path)?;
        let architecture = file.architecture().clone();
        let beside = path.with_file_name("tokenizer.json");
        let tokenizer = if beside.exists() {
            fitting_tokenizer(&beside, architecture.vocabulary)?
        } else {
            fitting(file.tokenizer()?, path, architecture.vocabulary)?
        };
        let beside = path.with_file_name("tokenizer_config.json");
        let (config_path, mut config) =
            if beside.exists() { (beside.as_path(), read_json(&beside)?) } else { (path, file.tokenizer_config()) };
        if config.get("chat_template").is_none_or(Value::is_null) {
            config["chat_template"] = file.tokenizer_config()["chat_template"].clone();
        }
        let template = ChatTemplate::load(config_path, &config)?;
        let decoder = place.decoder(&architecture, &file)?;
        Ok(Self { decoder, tokenizer, template, end_tokens: file.end_tokens() })
    }
}

/// Whether a model lies there: a GGUF file, or a directory that holds a `config.json` or a GGUF file.
pub fn is_model(path: &Path) -> bool {
    let holds_gguf = || {
        let entries = std::fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
        entries.map(|entry| entry.path()).any(|path| is_gguf(&path) && path.is_file())
    };
    if path.is_file() { is_gguf(path) } else { path.join("config.json").is_file() || holds_gguf() }
}

/// The name under which the model at that path is served.
pub fn name_of(path: &Path) -> String {
    let name = if is_gguf(path) { path.file_stem() } else { path.file_name() };
    name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Whether this is named like a GGUF file.
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// The GGUF file at this path: itself, or the only one in a directory that has no `config.json`.
pub(crate) fn gguf_in(path: &Path) -> Result<Option<PathBuf>, Error> {
    if is_gguf(path) {
        return Ok(Some(path.to_owned()));
    }
    if path.join("config.json").exists() {
        return Ok(None);
    }
    let entries = std::fs::read_dir(path).map_err(|source| Error::read(path, source))?;
    let mut files: Vec<PathBuf> =
        entries.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| is_gguf(path)).collect();
    files.sort();
    match files.len() {
        0 => Ok(None),
        1 => Ok(files.pop()),
        more => Err(Error::refused(path, format!("{more} GGUF files in one directory: name the file that is meant"))),
    }
}

pub(crate) fn fitting_tokenizer(path: &Path, vocabulary: usize) -> Result<Tokenizer, Error> {
    fitting(Tokenizer::load(path)?, path, vocabulary)
}

/// Refuses a tokenizer with ids that the model has no embedding for: it belongs to another model.
fn fitting(tokenizer: Tokenizer, path: &Path, vocabulary: usize) -> Result<Tokenizer, Error> {
    match tokenizer.largest_id() {
        Some(id) if (id as usize) < vocabulary => Ok(tokenizer),
        Some(id) => {
            let reason = format!(
                "the tokenizer has ids up to {id}, the model knows {vocabulary} tokens: they do not belong together"
            );
            Err(Error::refused(path, reason))
        }
        None => Err(Error::refused(path, "the tokenizer knows no token")),
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
