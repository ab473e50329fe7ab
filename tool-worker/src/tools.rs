//! The built-in tools: plain functions from a confined workspace and arguments to text. They run inside the box.

mod outline;
mod read;
mod search;

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::confined::Confined;
use crate::failure::Failure;

pub(crate) use outline::outline_text;

/// Most code handed to the analysis worker; a message of the bus holds a megabyte.
const SOURCE_BYTES_MAX: u64 = 512 * 1024;

/// Runs one built-in. Arguments have passed the registry's schema.
pub(crate) fn run(root: &Path, tool: &str, arguments: &Map<String, Value>) -> Result<String, Failure> {
    let workspace = Confined::open(root)?;
    match tool {
        "search_code" => search::search(root, &workspace, &typed(arguments)?),
        "read_file" => read::read(&workspace, &typed(arguments)?),
        // Two steps: the box reads, the analysis worker parses.
        "analyze_code" => source(&workspace, &typed::<Source>(arguments)?.path),
        other => Err(Failure::unknown(format!("no such built-in: {other}"))),
    }
}

#[derive(Deserialize)]
struct Source {
    path: String,
}

fn source(workspace: &Confined, path: &str) -> Result<String, Failure> {
    let content = workspace.read(path, SOURCE_BYTES_MAX)?;
    if content.contains(&0) {
        return Err(Failure::bad_request(format!("{path} is a binary file")));
    }
    Ok(String::from_utf8_lossy(&content).into_owned())
}

fn typed<'a, T: Deserialize<'a>>(arguments: &'a Map<String, Value>) -> Result<T, Failure> {
    T::deserialize(arguments).map_err(|error| Failure::bad_request(format!("arguments do not fit: {error}")))
}

/// The first `chars_max` characters; a cut line ends in an ellipsis.
fn cut(line: &str, chars_max: usize) -> String {
    match line.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}
