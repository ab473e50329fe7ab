//! The built-in tools: plain functions from a confined workspace and arguments to text. They run inside the box.

mod budget;
mod kind;
mod outline;
mod page;
mod read;
mod search;
mod sources;
mod walk;

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::confined::Confined;
use crate::crew::Crew;
use crate::failure::Failure;
use crate::message::BoxedCall;

pub use outline::{directory_text, outline_text};
pub use sources::{SourceFile, Sources};
pub use walk::walk;

/// Room of a result from which on it says how to go on. With less the saying would take a quarter of it, and a model with
/// so small a window has no room for the rest either.
pub const HINTS_FROM_BYTES: usize = 1_024;

/// Runs one built-in. Arguments have passed the registry's schema.
pub(crate) fn run(root: &Path, call: &BoxedCall, crew: &Crew) -> Result<String, Failure> {
    let BoxedCall { tool, arguments, brief } = call;
    let workspace = Confined::open(root)?;
    match tool.as_str() {
        "search_code" => search::search(root, &workspace, &typed(arguments)?, *brief, crew),
        "read_file" => read::read(&workspace, &typed(arguments)?, *brief),
        // Two steps: the box reads, the analysis worker parses.
        "analyze_code" => {
            let sources = sources::sources(root, &workspace, &typed(arguments)?)?;
            Ok(serde_json::to_string(&sources).expect("strings only"))
        }
        // Two steps: the worker fetches, the box takes apart what came.
        "take_apart" => page::text(&typed(arguments)?),
        other => Err(Failure::unknown(format!("no such built-in: {other}"))),
    }
}

/// Lines of an object, as `read_file` shows those of a file, and how to read on where that is too much.
pub fn object_lines(text: &str, arguments: &Map<String, Value>, bytes_max: usize) -> Result<String, Failure> {
    let arguments: read::Arguments = typed(arguments)?;
    let shown = read::lines(text.as_bytes(), text.len() as u64, &arguments, bytes_max < HINTS_FROM_BYTES)?;
    if shown.len() <= bytes_max {
        return Ok(shown);
    }
    let first = arguments.start.unwrap_or(1);
    let mark = |_, line: usize| {
        let call = json!({"path": arguments.path, "start": first + line - 1});
        format!("\n... (cut; read on with read_file {call})")
    };
    Ok(cut_at_line(&shown, bytes_max, mark))
}

/// The beginning of a text, cut at a line or, failing that, a character. `mark` says so at its end; it is told how many
/// bytes are shown, and the number of the first line that is not.
pub fn cut_at_line(text: &str, bytes_max: usize, mark: impl Fn(usize, usize) -> String) -> String {
    let longest = mark(text.len(), text.lines().count() + 1).len();
    let end = text.floor_char_boundary(bytes_max.saturating_sub(longest));
    let end = text[..end].rfind('\n').unwrap_or(end);
    let shown = &text[..end];
    format!("{shown}{}", mark(end, shown.lines().count() + 1))
}

fn typed<'a, T: Deserialize<'a>>(arguments: &'a Map<String, Value>) -> Result<T, Failure> {
    T::deserialize(arguments).map_err(|error| Failure::bad_request(format!("arguments do not fit: {error}")))
}

/// A name as it is shown. What could break a line or turn its direction is written as in JSON, so that a name is never taken
/// for more than a name, and can be copied into the next call.
pub(crate) fn shown_name(name: &str) -> String {
    let breaks = |c: char| {
        c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if !name.contains(breaks) {
        return name.to_owned();
    }
    let shown = name.chars().map(|c| match c {
        '\n' => "\\n".to_owned(),
        '\\' => "\\\\".to_owned(),
        c if breaks(c) => format!("\\u{:04x}", u32::from(c)),
        c => c.to_string(),
    });
    shown.collect()
}

/// The first `chars_max` characters; a cut line ends in an ellipsis.
fn cut(line: &str, chars_max: usize) -> String {
    match line.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(start: usize) -> Map<String, Value> {
        json!({"path": "object:abc", "start": start}).as_object().cloned().expect("an object")
    }

    #[test]
    fn a_cut_object_says_where_to_read_on_until_all_of_it_was_read() {
        let text: String = (1..=30).map(|n| format!("line number {n} of thirty\n")).collect();
        let (mut start, mut read) = (1, String::new());
        for _ in 0..30 {
            let shown = object_lines(&text, &arguments(start), 200).expect("lines");
            assert!(shown.len() <= 200, "{shown}");
            let (lines, mark) = shown.split_once("\n... (cut; read on with read_file ").unwrap_or((&shown, ""));
            for line in lines.lines() {
                read.push_str(&format!("{}\n", line.split_once(": ").expect("a number and a line").1));
            }
            let Some(call) = mark.strip_suffix(')') else { break };
            let call: Value = serde_json::from_str(call).expect("arguments that can be called with");
            assert_eq!(call["path"], "object:abc");
            start = usize::try_from(call["start"].as_u64().expect("a line")).expect("small");
        }
        assert_eq!(read, text);
    }

    #[test]
    fn a_line_longer_than_the_room_is_cut_and_not_shown_for_ever() {
        let shown = cut_at_line(&"é".repeat(500), 60, |bytes, line| format!("\n({bytes} bytes, on from {line})"));
        assert!(shown.len() <= 60 && shown.ends_with("on from 2)"), "{shown}");
    }
}
