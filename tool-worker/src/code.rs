//! The tools that ask the index of the analysis workers: `semantic_search`, `similar_code`, `repository_outline` and
//! `code_dependencies`. They run no code and open no file: what they answer was read when the workspace was indexed.

use std::fmt::Write;
use std::time::Duration;

use futures::future::BoxFuture;
use runtime::bus::{self, Bus};
use schemas::code::{About, AskCode, By, Found, Piece, SearchCode, WhatOfCode};
use schemas::fact::Sandbox as Report;
use schemas::rpc::{RARE_ARGUMENT, Refusal, Reply};
use schemas::subject;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tool_runner::tools::{HINTS_FROM_BYTES, cut_at_line};

use crate::failure::Failure;
use crate::registry::{Approval, Handler, Means, Order, Permission, SideEffect, Tool};

/// Name of the tier, as it is written in results: others answer, and nothing is run.
pub(crate) const TIER: &str = "index";
/// Wall time of one call: a first question may have to wait for a workspace's entries.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Result text; a model's window is the scarce thing.
const RESULT_BYTES_MAX: usize = 32 * 1024;
/// Pieces unless the call says otherwise.
const PIECES_DEFAULT: u64 = 5;
/// Characters of a line that a model with a small window reads.
const BRIEF_CHARS: usize = 100;
/// Tokens of an outline unless the call says otherwise.
const OUTLINE_TOKENS_DEFAULT: u64 = 1_000;

#[derive(Clone, Copy)]
enum What {
    Search,
    Similar,
    Outline,
    Dependencies,
}

struct Ask {
    bus: Bus,
    what: What,
}

/// The tools that ask the index.
pub(crate) fn tools(bus: &Bus) -> [Tool; 4] {
    let text = |what: &str| json!({"type": "string", "minLength": 1, "maxLength": 1_000, "description": what});
    let texts = |what: &str| json!({"type": "array", "maxItems": 32, "items": {"type": "string", "minLength": 1, "maxLength": 200}, "description": what});
    let max = json!({"type": "integer", "minimum": 1, "maximum": 50, "description": "pieces to show, 5 unless given"});
    let narrowing = |mut properties: Value| {
        properties["max"] = rare(max.clone());
        properties["languages"] = rare(texts("languages to look in, such as rust"));
        properties["paths"] = rare(texts("directories, files or globs to look in"));
        properties["kinds"] = rare(texts("kinds of definitions that a piece must hold, such as function"));
        properties
    };
    let tool = |what: What, name: &str, description: &str, properties: Value, required: &[&str]| Tool {
        name: name.to_owned(),
        description: description.to_owned(),
        parameters: json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false}),
        result: None,
        effect: SideEffect::ReadsWorkspace,
        approval: Approval::AgentType,
        permissions: [Permission::ReadWorkspace].into(),
        timeout: TIMEOUT,
        result_bytes_max: RESULT_BYTES_MAX,
        unavailable: None,
        means: Means::Handler(std::sync::Arc::new(Ask { bus: bus.clone(), what })),
    };
    let search = narrowing(json!({"query": text("what the code is about")}));
    let similar = narrowing(json!({
        "path": text("the file that holds the piece, relative to the workspace"),
        "line": {"type": "integer", "minimum": 1, "description": "a line of the piece"},
    }));
    let outline = json!({
        "max_tokens": {"type": "integer", "minimum": 100, "maximum": 8_000, "description": "how long it may be, 1000 unless given"},
        "focus": texts("files and names that matter most"),
    });
    let path = json!({"path": text("the file, relative to the workspace")});
    [
        tool(What::Search, "semantic_search", "Find code by meaning.", search, &["query"]),
        seldom(tool(What::Similar, "similar_code", "Find code like the code at a line.", similar, &["path", "line"])),
        seldom(tool(
            What::Outline,
            "repository_outline",
            "List the definitions that most of the workspace refers to, by file.",
            outline,
            &[],
        )),
        seldom(tool(
            What::Dependencies,
            "code_dependencies",
            "List the files that a file depends on, and those that depend on it.",
            path,
            &["path"],
        )),
    ]
}

/// Marks an argument that few calls need.
fn rare(mut schema: Value) -> Value {
    schema[RARE_ARGUMENT] = json!(true);
    schema
}

/// Marks a tool that a model with a small window is not told of.
pub(crate) fn seldom(mut tool: Tool) -> Tool {
    tool.parameters[RARE_ARGUMENT] = json!(true);
    tool
}

impl Handler for Ask {
    // The index changes by itself.
    fn version(&self) -> Option<String> {
        None
    }

    fn carry_out<'a>(&'a self, order: Order, report: &'a mut Report) -> BoxFuture<'a, Result<String, Failure>> {
        Box::pin(async move {
            TIER.clone_into(&mut report.tier);
            let workspace = order.workspace.as_ref().map(|workspace| workspace.path().display().to_string());
            let workspace = workspace.ok_or_else(|| Failure::refused("there is no workspace to look in"))?;
            let bytes_max = order.result_bytes_max;
            match self.what {
                What::Search | What::Similar => {
                    let question = question(self.what, workspace, &order.arguments);
                    let found: Found = ask(&self.bus, subject::RPC_SEARCH, &question).await?;
                    Ok(shown(&found, bytes_max))
                }
                What::Outline | What::Dependencies => {
                    let what = what_of_code(self.what, &order.arguments);
                    ask(&self.bus, subject::RPC_CODE, &AskCode { workspace, what }).await
                }
            }
        })
    }
}

/// Asks the analysis workers.
pub(crate) async fn ask<Q: Serialize, A: DeserializeOwned>(
    bus: &Bus,
    subject: &str,
    question: &Q,
) -> Result<A, Failure> {
    match bus.ask::<_, Reply<A>>(subject, question, TIMEOUT).await {
        Ok(Reply::Ok(answer)) => Ok(answer),
        Ok(Reply::Err(Refusal { code, detail })) => Err(match code.as_str() {
            "not_indexed" | "no_model" => Failure::refused(detail),
            "unreachable" | "internal" => Failure::internal(detail),
            _ => Failure::bad_request(detail),
        }),
        Err(bus::Error::NoResponders(_)) => Err(Failure::internal("no analysis worker is running")),
        Err(error) => Err(Failure::internal(format!("the analysis worker did not answer: {error}"))),
    }
}

fn question(what: What, workspace: String, arguments: &Map<String, Value>) -> SearchCode {
    let text = |name: &str| arguments.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let number = |name: &str| arguments.get(name).and_then(Value::as_u64);
    let about = match what {
        What::Similar => About::Line {
            path: text("path"),
            line: number("line").map_or(1, |line| u32::try_from(line).unwrap_or(u32::MAX)),
        },
        _ => About::Query(text("query")),
    };
    SearchCode {
        workspace,
        about,
        languages: texts(arguments, "languages"),
        paths: texts(arguments, "paths"),
        kinds: texts(arguments, "kinds"),
        limit: number("max").unwrap_or(PIECES_DEFAULT) as u32,
        by: By::Both,
    }
}

fn what_of_code(what: What, arguments: &Map<String, Value>) -> WhatOfCode {
    match what {
        What::Dependencies => {
            let path = arguments.get("path").and_then(Value::as_str).unwrap_or_default();
            WhatOfCode::Dependencies { path: path.trim_start_matches("./").to_owned() }
        }
        _ => WhatOfCode::Outline {
            tokens_max: arguments.get("max_tokens").and_then(Value::as_u64).unwrap_or(OUTLINE_TOKENS_DEFAULT) as u32,
            focus: texts(arguments, "focus"),
        },
    }
}

fn texts(arguments: &Map<String, Value>, name: &str) -> Vec<String> {
    let texts = arguments.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    texts.iter().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Pieces as a model reads them: their places and, where there is room, their code, each with its share of it.
fn shown(found: &Found, bytes_max: usize) -> String {
    let brief = bytes_max < HINTS_FROM_BYTES;
    let notes: String = found.notes.iter().filter(|_| !brief).map(|note| format!("note: {note}\n")).collect();
    if found.pieces.is_empty() {
        let hint = if brief { "" } else { "; search_code finds exact text" };
        return format!("{notes}no matches{hint}");
    }
    let mut text = format!("{notes}{} matches", found.pieces.len());
    let share = bytes_max.saturating_sub(text.len()) / found.pieces.len();
    for piece in &found.pieces {
        let first = piece.code.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
        if brief {
            let first: String = first.chars().take(BRIEF_CHARS).collect();
            let _ = write!(text, "\n{}:{}: {first}", piece.path, piece.start_line);
        } else {
            text.push_str("\n\n");
            text.push_str(&of_piece(piece, share));
        }
    }
    text
}

fn of_piece(piece: &Piece, bytes_max: usize) -> String {
    let symbols = if piece.symbols.is_empty() { String::new() } else { format!(" {}", piece.symbols.join(", ")) };
    let Piece { path, start_line, end_line, why, code, .. } = piece;
    let text = format!("{path}:{start_line}-{end_line}{symbols}  [{why}]\n{code}");
    match text.len() > bytes_max {
        true => cut_at_line(&text, bytes_max, |_, _| "\n... (cut; read_file shows the rest)".to_owned()),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(path: &str, code: &str) -> Piece {
        Piece {
            path: path.into(),
            language: "rust".into(),
            start_line: 3,
            end_line: 9,
            code: code.into(),
            symbols: vec!["open".into()],
            score: 0.1,
            why: "words #1 (open)".into(),
        }
    }

    #[test]
    fn a_small_window_reads_places_and_a_large_one_code() {
        let found = Found { pieces: vec![piece("a.rs", "\n  fn open() {\n  }")], notes: vec!["by words only".into()] };
        assert_eq!(shown(&found, 400), "1 matches\na.rs:3: fn open() {");
        assert_eq!(
            shown(&found, 4_000),
            "note: by words only\n1 matches\n\na.rs:3-9 open  [words #1 (open)]\n\n  fn open() {\n  }"
        );
        let many = Found { pieces: vec![piece("a.rs", &"fn open() {}\n".repeat(1_000)); 5], notes: vec![] };
        assert!(shown(&many, 4_000).len() < 4_400, "{}", shown(&many, 4_000).len());
    }

    #[test]
    fn nothing_found_says_so_and_what_to_do_instead() {
        assert_eq!(shown(&Found::default(), 4_000), "no matches; search_code finds exact text");
        assert_eq!(shown(&Found::default(), 400), "no matches");
    }
}
