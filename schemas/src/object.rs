//! Objects: content too large for a message, kept once under the hash of its bytes. A message carries a [`Reference`]
//! instead; because the log's hash chain covers the reference, it covers the content.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use crate::chat::Message;
use crate::fact::{Fact, FactBody};

/// Bytes from which on a payload keeps its content as objects.
pub const INLINE_BYTES_MAX: usize = 64 << 10;
/// Bytes of one object at most.
pub const OBJECT_BYTES_MAX: usize = 32 << 20;
/// The media type of text.
pub const TEXT: &str = "text/plain; charset=utf-8";
/// How the path of an object begins, where a tool takes the path of a file.
pub const PATH_PREFIX: &str = "object:";
/// Bytes that a message holds inline in any case: moving them would save nothing.
const WORTH_MOVING: usize = 1 << 10;

/// Content that lies in the object store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema, JsonSchema)]
pub struct Reference {
    /// SHA-256 of the bytes, 64 lower-case hex digits; also the object's name.
    pub sha256: String,
    /// How many bytes there are.
    pub bytes: u64,
    /// Their media type.
    pub media: String,
}

impl Reference {
    /// The reference of a content.
    #[must_use]
    pub fn to(content: &[u8], media: &str) -> Self {
        Self { sha256: hex::encode(Sha256::digest(content)), bytes: content.len() as u64, media: media.to_owned() }
    }

    /// Whether these bytes are the content.
    #[must_use]
    pub fn is_of(&self, content: &[u8]) -> bool {
        self.bytes == content.len() as u64 && hex::encode(Sha256::digest(content)) == self.sha256
    }
}

/// Whether a text names an object: 64 lower-case hex digits.
#[must_use]
pub fn is_name(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Puts references in the place of the largest texts until what is left of them fits a message. Returns the texts that
/// must be stored before the message is.
pub fn move_out(messages: &mut [Message]) -> Vec<(Reference, String)> {
    let mut moved = Vec::new();
    let mut left: usize = messages.iter().map(|message| message.content.len()).sum();
    let mut by_size: Vec<usize> = (0..messages.len()).collect();
    by_size.sort_by_key(|i| std::cmp::Reverse(messages[*i].content.len()));
    for i in by_size {
        let message = &mut messages[i];
        if left <= INLINE_BYTES_MAX || message.content.len() < WORTH_MOVING {
            break;
        }
        left -= message.content.len();
        let text = std::mem::take(&mut message.content);
        let reference = Reference::to(text.as_bytes(), TEXT);
        message.object = Some(reference.clone());
        moved.push((reference, text));
    }
    moved
}

/// The objects that a fact refers to.
#[must_use]
pub fn references(fact: &Fact) -> Vec<&Reference> {
    match &fact.body {
        FactBody::ExecutionSubmitted(request) => request.messages.iter().filter_map(|m| m.object.as_ref()).collect(),
        FactBody::UserMessage(said) => said.object.iter().collect(),
        FactBody::ToolCompleted(done) => done.full.iter().collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::Role;

    #[test]
    fn the_largest_texts_move_out_until_the_rest_fits() {
        let text = |bytes: usize| Message::text(Role::User, "x".repeat(bytes));
        let mut small = [text(30_000), text(30_000)];
        assert!(move_out(&mut small).is_empty());
        let mut messages = [text(40_000), text(100_000), text(500), text(50_000)];
        let moved = move_out(&mut messages);
        assert_eq!(moved.iter().map(|(r, _)| r.bytes).collect::<Vec<_>>(), [100_000, 50_000]);
        assert_eq!(messages.each_ref().map(|m| m.object.is_some()), [false, true, false, true]);
        let (reference, content) = &moved[0];
        assert!(reference.is_of(content.as_bytes()) && is_name(&reference.sha256) && !reference.is_of(b"x"));
        let mut many: Vec<Message> = (0..200).map(|_| text(900)).collect();
        assert!(move_out(&mut many).is_empty(), "references would take as much room");
    }
}
