//! What a server answers a call with, as text for a model. Pure.

use rmcp::model::{CallToolResponse, CallToolResult, ContentBlock, ResourceContents};
use serde_json::Value;

use crate::failure::Failure;

/// What is said of a part that is of no kind there was when this was written.
const UNKNOWN: &str = "[something that cannot be shown here]";

/// The text of an answer; `is_json` where the tool promises one that fits a schema. Of the text so many bytes are kept.
///
/// # Errors
/// The tool failed, or asks for what nobody gives here.
pub(super) fn read(tool: &str, response: CallToolResponse, is_json: bool, bytes_max: usize) -> Result<String, Failure> {
    let result = match response {
        CallToolResponse::Complete(result) => result,
        CallToolResponse::InputRequired(_) => {
            return Err(Failure::bad_request(format!("{tool} asks a person for more, and nobody answers it here")));
        }
        _ => return Err(Failure::bad_request(format!("{tool} answered with something that is no result"))),
    };
    let CallToolResult { content, structured_content, is_error, .. } = result;
    let shown = content.iter().map(shown).collect::<Vec<_>>().join("\n");
    if is_error == Some(true) {
        let said = crate::plugins::said(shown.as_bytes());
        let said = if said.is_empty() { " and said nothing".to_owned() } else { format!(": {said}") };
        return Err(Failure::bad_request(format!("{tool} failed{said}")));
    }
    let structured = structured_content.as_ref().map(Value::to_string);
    let text = match structured {
        // What is held against a schema is the JSON.
        Some(json) if is_json => json,
        Some(json) if shown.trim().is_empty() => json,
        _ if shown.is_empty() => "(no output)".to_owned(),
        _ => shown,
    };
    if text.len() <= bytes_max {
        return Ok(text);
    }
    if is_json {
        let most = bytes_max >> 10;
        return Err(Failure::refused(format!("{tool} answered with more than {most} KiB, which cannot be cut")));
    }
    let kept = &text[..text.floor_char_boundary(bytes_max)];
    Ok(format!("{kept}\n... (cut; {} of {} bytes were kept)", kept.len(), text.len()))
}

/// One part of an answer. What is no text is described.
fn shown(part: &ContentBlock) -> String {
    match part {
        ContentBlock::Text(text) => text.text.clone(),
        ContentBlock::Image(image) => not_shown("image", &image.mime_type, &image.data),
        ContentBlock::Audio(audio) => not_shown("sound", &audio.mime_type, &audio.data),
        ContentBlock::Resource(embedded) => match &embedded.resource {
            ResourceContents::TextResourceContents { uri, text, .. } => format!("[{uri}]\n{text}"),
            ResourceContents::BlobResourceContents { uri, mime_type, blob, .. } => {
                let kind = mime_type.as_deref().unwrap_or("unknown kind");
                format!("[{uri}] {}", not_shown("file", kind, blob))
            }
            _ => UNKNOWN.to_owned(),
        },
        ContentBlock::ResourceLink(link) => {
            let about = link.description.as_deref().or(link.title.as_deref()).unwrap_or(&link.name);
            format!("[link: {about} at {}]", link.uri)
        }
        _ => UNKNOWN.to_owned(),
    }
}

/// What Base64 holds is three quarters of it.
fn not_shown(what: &str, kind: &str, base64: &str) -> String {
    format!("[{what}, {kind}, {} bytes: not shown]", base64.trim_end_matches('=').len() * 3 / 4)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer(result: Value, is_json: bool) -> Result<String, Failure> {
        let result: CallToolResult = serde_json::from_value(result).unwrap();
        read("t", CallToolResponse::Complete(result), is_json, 100)
    }

    fn text(text: &str) -> Value {
        json!({"type": "text", "text": text})
    }

    #[test]
    fn text_is_text_and_everything_else_is_described() {
        let content = json!([
            text("one"),
            {"type": "image", "data": "AAECAw==", "mimeType": "image/png"},
            {"type": "resource", "resource": {"uri": "file:///a", "text": "two"}},
            {"type": "resource_link", "uri": "file:///b", "name": "b"},
        ]);
        let shown = read(
            "t",
            CallToolResponse::Complete(serde_json::from_value(json!({"content": content})).unwrap()),
            false,
            1_000,
        );
        let expected = "one\n[image, image/png, 4 bytes: not shown]\n[file:///a]\ntwo\n[link: b at file:///b]";
        assert_eq!(shown.as_deref(), Ok(expected));
        assert_eq!(answer(json!({"content": []}), false).as_deref(), Ok("(no output)"));
    }

    #[test]
    fn structured_content_counts_where_it_is_promised_or_alone() {
        let both = json!({"content": [text("for people")], "structuredContent": {"a": 1}});
        assert_eq!(answer(both.clone(), true).as_deref(), Ok("{\"a\":1}"));
        assert_eq!(answer(both, false).as_deref(), Ok("for people"));
        assert_eq!(answer(json!({"content": [], "structuredContent": [1]}), false).as_deref(), Ok("[1]"));
    }

    #[test]
    fn an_error_is_told_in_its_own_words_and_length_has_an_end() {
        let failed = answer(json!({"content": [text("Invalid timezone")], "isError": true}), true).unwrap_err();
        assert_eq!(failed, Failure::bad_request("t failed: Invalid timezone"));
        let long = answer(json!({"content": [text(&"é".repeat(200))]}), false).unwrap();
        assert!(long.ends_with("(cut; 100 of 400 bytes were kept)"), "{long}");
        let long = answer(json!({"content": [], "structuredContent": {"a": "x".repeat(200)}}), true).unwrap_err();
        assert!(long.detail.contains("which cannot be cut"), "{long}");
    }
}
