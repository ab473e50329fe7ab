//! Text to token ids, and each id to its bytes.

use std::{collections::BTreeMap, path::Path};

use serde_json::Value;
use tokenizers::{PostProcessor, TruncationParams};

use crate::{
    marks::{CUT, Marks},
    model_directory::Error,
};

/// A tokenizer as `tokenizer.json` describes it.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bytes: ByteForm,
    /// Markers beside the vocabulary of pieces.
    added: BTreeMap<u32, tokenizers::AddedToken>,
    /// Special tokens that carry meaning for the tool-call parser, and so stay visible to it.
    visible: &'static [&'static str],
}

/// A text between its marks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marked {
    /// Its ids.
    pub ids: Vec<u32>,
    /// To which part of the input each belongs.
    pub types: Vec<u32>,
    /// The text was longer: its end is left out.
    pub cut: bool,
}

/// How the vocabulary spells bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ByteForm {
    /// Each byte is one printable character (GPT-2's table).
    ByteLevel,
    /// `▁` is a space and `<0xAB>` a byte (SentencePiece).
    SentencePiece,
}

impl Tokenizer {
    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// The file is missing or malformed.
    pub fn load(path: &Path) -> Result<Self, Error> {
        Self::from_json(path, &crate::model_directory::read_json(path)?)
    }

    /// Takes the content of a `tokenizer.json` that comes from `path`.
    ///
    /// # Errors
    /// It does not describe a tokenizer.
    pub(crate) fn from_json(path: &Path, json: &Value) -> Result<Self, Error> {
        let mut inner = tokenizers::Tokenizer::from_bytes(json.to_string())
            .map_err(|error| Error::refused(path, error.to_string()))?;
        // Cutting and filling are for training batches; a prompt is taken whole.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| Error::refused(path, error.to_string()))?;
        let decoder = json.get("decoder").map(Value::to_string).unwrap_or_default();
        let bytes = if decoder.contains("\"ByteLevel\"") { ByteForm::ByteLevel } else { ByteForm::SentencePiece };
        let added = inner.get_added_tokens_decoder().into_iter().collect();
        Ok(Self { inner, bytes, added, visible: &[] })
    }

    /// The largest id it can produce; `None` when it knows no token.
    pub fn largest_id(&self) -> Option<u32> {
        self.inner.get_vocab(true).into_values().max()
    }

    /// The ids of a text; markers of special tokens in it become those tokens, nothing is added. Where the text is cut
    /// (see [`crate::template::ChatTemplate::guard`]), its pieces are taken one by one.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let mut ids = Vec::new();
        for piece in text.split(CUT).filter(|piece| !piece.is_empty()) {
            ids.append(&mut self.encode_piece(piece)?);
        }
        Ok(ids)
    }

    fn encode_piece(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoding = self.inner.encode_fast(text, false).map_err(|error| error.to_string())?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Cuts texts with marks at that many ids, the marks included.
    ///
    /// # Errors
    /// That leaves no room for text beside the marks.
    pub fn cut_at(&mut self, ids_max: usize) -> Result<(), String> {
        let marks = self.inner.get_post_processor().map_or(0, |marks| marks.added_tokens(false));
        if ids_max <= marks {
            return Err(format!("a window of {ids_max} tokens leaves no room for text beside {marks} marks"));
        }
        let bound = TruncationParams { max_length: ids_max, ..TruncationParams::default() };
        self.inner.with_truncation(Some(bound)).map_err(|error| error.to_string())?;
        Ok(())
    }

    /// A text with the marks the tokenizer puts around one, as embedding models want it.
    ///
    /// # Errors
    /// The tokenizer refuses the text.
    pub fn encode_marked(&self, text: &str) -> Result<Marked, String> {
        let encoding = self.inner.encode_fast(text, true).map_err(|error| error.to_string())?;
        let cut = !encoding.get_overflowing().is_empty();
        Ok(Marked { ids: encoding.get_ids().to_vec(), types: encoding.get_type_ids().to_vec(), cut })
    }

    /// The marks that its messages must not make: among its own tokens, and in this template.
    pub(crate) fn marks(&self, template: &str) -> Marks {
        Marks::of(self.added.values(), self.inner.get_normalizer(), template)
    }

    /// Lets readers see these special tokens.
    pub fn show(&mut self, visible: &'static [&'static str]) {
        self.visible = visible;
    }

    /// The text of an id that stands beside the vocabulary of pieces: markers, special or not.
    pub fn added(&self, id: u32) -> Option<&str> {
        self.added.get(&id).map(|token| token.content.as_str())
    }

    /// The id of such a marker.
    pub fn marker(&self, text: &str) -> Option<u32> {
        self.id(text).filter(|&id| self.added(id).is_some())
    }

    /// The id of a token by its text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// A token as people read it: its text, where its bytes are one, and the name of a special token.
    pub fn name(&self, id: u32) -> String {
        let mut bytes = Vec::new();
        self.append_bytes(id, &mut bytes);
        if bytes.is_empty() {
            return self.inner.id_to_token(id).unwrap_or_default();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Appends the bytes of a token as a reader sees them; special tokens have none.
    pub fn append_bytes(&self, id: u32, into: &mut Vec<u8>) {
        if let Some(token) = self.added.get(&id) {
            if !token.special || self.visible.contains(&token.content.as_str()) {
                into.extend_from_slice(token.content.as_bytes());
            }
            return;
        }
        let Some(token) = self.inner.id_to_token(id) else {
            return;
        };
        match self.bytes {
            ByteForm::ByteLevel => into.extend(token.chars().filter_map(byte_of)),
            ByteForm::SentencePiece => match byte_escape(&token) {
                Some(byte) => into.push(byte),
                None => into.extend_from_slice(token.replace('▁', " ").as_bytes()),
            },
        }
    }
}

/// GPT-2's table backwards: printable Latin-1 stands for itself, the other bytes in order from U+0100.
fn byte_of(character: char) -> Option<u8> {
    let code = character as u32;
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => Some(code as u8),
        0x100..=0x120 => Some((code - 0x100) as u8),
        0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

fn byte_escape(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok()
}
