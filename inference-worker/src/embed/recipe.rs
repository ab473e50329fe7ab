//! What is done around an embedding model, as the files of sentence-transformers say it: `modules.json` names the
//! steps, and each has a configuration of its own. What is asked for and not known is refused with the file, because a
//! vector made in another way is a plausible wrong one.

use std::{
    borrow::Cow,
    path::{Component, Path, PathBuf},
};

use serde_json::Value;

use crate::model_directory::{Error, read_json};

/// How the rows of a text become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pooling {
    /// The row of the first mark.
    First,
    /// Of each column the largest value.
    Largest,
    /// Of each column the mean.
    Mean,
}

/// The steps around one model.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Recipe {
    /// Where the model's own files lie.
    pub(super) files: PathBuf,
    pub(super) pooling: Pooling,
    /// Vectors are scaled to unit length.
    pub(super) normalise: bool,
    /// Tokens read of a text, if that is less than the model could read.
    pub(super) window: Option<usize>,
    lower_case: bool,
    /// What stands before every text.
    prompt: String,
}

impl Recipe {
    /// Reads `modules.json` and what it names. Without it: the mean, of unit length.
    ///
    /// # Errors
    /// A file is missing or malformed, or asks for a step that is not known.
    pub(super) fn read(directory: &Path) -> Result<Self, Error> {
        let modules_path = directory.join("modules.json");
        if !modules_path.exists() {
            let files = directory.to_owned();
            let (window, lower_case) = (window(&files)?, lower_case(&files)?);
            return Ok(Self {
                files,
                pooling: Pooling::Mean,
                normalise: true,
                window,
                lower_case,
                prompt: String::new(),
            });
        }
        let modules = steps(&modules_path)?;
        let kinds: Vec<&str> = modules.iter().map(|(kind, _)| kind.as_str()).collect();
        let normalise = match kinds.as_slice() {
            ["Transformer", "Pooling"] => false,
            ["Transformer", "Pooling", "Normalize"] => true,
            other => {
                let reason = format!(
                    "the steps are {}; known are Transformer, Pooling and Normalize, in this order, the last of them optional",
                    other.join(", ")
                );
                return Err(Error::refused(&modules_path, reason));
            }
        };
        let files = directory.join(&modules[0].1);
        let prompt = default_prompt(&directory.join("config_sentence_transformers.json"))?;
        let pooling = pooling(&directory.join(&modules[1].1).join("config.json"), &prompt)?;
        let (window, lower_case) = (window(&files)?, lower_case(&files)?);
        Ok(Self { files, pooling, normalise, window, lower_case, prompt })
    }

    /// The text as the tokenizer reads it.
    pub(super) fn prepared<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let text = if self.lower_case { Cow::Owned(text.to_lowercase()) } else { Cow::Borrowed(text) };
        if self.prompt.is_empty() { text } else { Cow::Owned(format!("{}{text}", self.prompt)) }
    }
}

/// The kind of each step, the last part of its name, and the folder of its files.
fn steps(path: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let json = read_json(path)?;
    let malformed = || Error::refused(path, "expected a list of steps, each with \"type\" and \"path\"");
    let mut steps = Vec::new();
    for module in json.as_array().ok_or_else(malformed)? {
        let field = |name: &str| module.get(name).and_then(Value::as_str).ok_or_else(malformed);
        let folder = PathBuf::from(field("path")?);
        if !folder.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(Error::refused(path, format!("{} leads out of the model's directory", folder.display())));
        }
        let kind = field("type")?;
        steps.push((kind.rsplit('.').next().unwrap_or(kind).to_owned(), folder));
    }
    Ok(steps)
}

/// One mode, in the older spelling with a switch for each, or in the newer with its name.
fn pooling(path: &Path, prompt: &str) -> Result<Pooling, Error> {
    let json = read_json(path)?;
    let refuse = |reason: String| Error::refused(path, reason);
    let modes: Vec<&str> = match json.get("pooling_mode") {
        Some(Value::String(mode)) => vec![mode],
        Some(Value::Array(modes)) => modes.iter().filter_map(Value::as_str).collect(),
        _ => {
            let switches = json.as_object().into_iter().flatten();
            let on = switches.filter(|(_, on)| **on == Value::Bool(true));
            on.filter_map(|(name, _)| name.strip_prefix("pooling_mode_")).collect()
        }
    };
    if json.get("include_prompt") == Some(&Value::Bool(false)) && !prompt.is_empty() {
        return Err(refuse(
            "\"include_prompt\" is false, and the model has a default prompt; that is not known".to_owned(),
        ));
    }
    match modes.as_slice() {
        ["cls" | "cls_token"] => Ok(Pooling::First),
        ["max" | "max_tokens"] => Ok(Pooling::Largest),
        [] | ["mean" | "mean_tokens"] => Ok(Pooling::Mean),
        other => Err(refuse(format!("the pooling is {}; known is one of cls, max, mean", other.join(" with ")))),
    }
}

/// What stands before every text when nobody says otherwise.
fn default_prompt(path: &Path) -> Result<String, Error> {
    if !path.exists() {
        return Ok(String::new());
    }
    let json = read_json(path)?;
    let Some(name) = json.get("default_prompt_name").and_then(Value::as_str) else {
        return Ok(String::new());
    };
    let prompt = json.get("prompts").and_then(|prompts| prompts.get(name)).and_then(Value::as_str);
    prompt
        .map(ToOwned::to_owned)
        .ok_or_else(|| Error::refused(path, format!("the default prompt {name:?} is not among the prompts")))
}

/// The smallest bound that is said: older models say it beside the model, newer ones in the tokenizer's configuration.
fn window(files: &Path) -> Result<Option<usize>, Error> {
    let mut smallest: Option<usize> = None;
    for (file, field) in
        [("sentence_bert_config.json", "max_seq_length"), ("tokenizer_config.json", "model_max_length")]
    {
        let path = files.join(file);
        if !path.exists() {
            continue;
        }
        match read_json(&path)?.get(field) {
            None | Some(Value::Null) => {}
            // Tokenizers without a bound say so with a number beyond all bounds.
            Some(value) => match value.as_f64() {
                Some(bound) if bound >= 1.0 => {
                    smallest = Some(smallest.map_or(bound as usize, |other| other.min(bound as usize)));
                }
                _ => return Err(Error::refused(&path, format!("{field:?} is {value}, expected a number of tokens"))),
            },
        }
    }
    Ok(smallest)
}

fn lower_case(files: &Path) -> Result<bool, Error> {
    let path = files.join("sentence_bert_config.json");
    Ok(path.exists() && read_json(&path)?.get("do_lower_case") == Some(&Value::Bool(true)))
}
