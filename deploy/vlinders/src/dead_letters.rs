//! `vlinders dead-letters`: what was given up, and what is done about it; each a request to the gateway, which says what is
//! wrong with it.

use std::process::ExitCode;

use http::Method;
use serde_json::{Value, json};

use crate::cli::{DeadLetters, DeadLettersWhat, Target};
use crate::client::{escaped, report};

/// Does what was asked; exit code 1 when the gateway refuses.
pub(crate) async fn run(options: DeadLetters) -> anyhow::Result<ExitCode> {
    match options.what {
        DeadLettersWhat::Ls(list) => {
            let query = format!("?limit={}&after={}&settled={}", list.limit, list.after, list.all);
            ask(&list.target, Method::GET, &query, None, list.json, listed).await
        }
        DeadLettersWhat::Show(one) => {
            ask(&one.target, Method::GET, &format!("/{}", one.id), None, one.json, shown).await
        }
        DeadLettersWhat::Redrive(redrive) => {
            let one = redrive.one;
            let body = json!({"force": redrive.force, "by": redrive.by});
            let path = format!("/{}/redrive", one.id);
            ask(&one.target, Method::POST, &path, Some(body), one.json, settled).await
        }
        DeadLettersWhat::Rm(remove) => {
            let one = remove.one;
            let path = format!("/{}?by={}", one.id, escaped(&remove.by));
            ask(&one.target, Method::DELETE, &path, None, one.json, settled).await
        }
    }
}

async fn ask(
    target: &Target,
    method: Method,
    path: &str,
    body: Option<Value>,
    as_json: bool,
    show: impl Fn(&Value),
) -> anyhow::Result<ExitCode> {
    let gateway = target.gateway()?;
    let response = gateway.ask(method, &format!("/internal/dead-letters{path}"), body.as_ref()).await?;
    let status = response.status();
    let answer: Value = response.json().await.unwrap_or_default();
    match (as_json, status.is_success()) {
        (true, _) => println!("{answer}"),
        (false, true) => show(&answer),
        (false, false) => report(&answer, &status.to_string()),
    }
    Ok(ExitCode::from(u8::from(!status.is_success())))
}

fn listed(answer: &Value) {
    let letters = answer["dead_letters"].as_array().map_or(&[][..], Vec::as_slice);
    for letter in letters {
        let state = letter["settled"]["how"].as_str().unwrap_or("waiting");
        println!(
            "{}  {}  {state}  {}  {}",
            text(letter, "id"),
            text(letter, "at"),
            text(letter, "reason"),
            text(letter, "detail")
        );
    }
    match answer["waiting"].as_u64() {
        Some(0) => println!("no dead letter waits"),
        Some(waiting) => println!("{waiting} waiting"),
        None => {}
    }
    if let (Some(last), Some(waiting)) = (letters.last(), answer["waiting"].as_u64())
        && waiting > letters.len() as u64
    {
        println!("more: --after {}", last["position"]);
    }
}

fn shown(letter: &Value) {
    println!("{}  {}", text(letter, "id"), text(letter, "reason"));
    println!("  what     {}", text(letter, "detail"));
    println!("  where    {} at {}, {}", text(letter, "stream"), letter["sequence"], text(letter, "subject"));
    println!("  stored   {}", text(letter, "stored_at"));
    println!("  given up {} by {}", text(letter, "at"), text(letter, "by"));
    for (name, values) in letter["headers"].as_object().into_iter().flatten() {
        for value in values.as_array().into_iter().flatten().filter_map(Value::as_str) {
            println!("  header   {name}: {value}");
        }
    }
    match (&letter["message"], letter["payload_hex"].as_str()) {
        (message @ Value::Object(_), _) => println!("  message  {message}"),
        (_, Some(hex)) => println!("  bytes    {hex}"),
        _ => println!("  bytes    none are kept here"),
    }
    settled(letter);
    if letter["settled"].is_null() {
        println!("  next     {}", text(letter, "next_step"));
    }
}

fn settled(letter: &Value) {
    let settled = &letter["settled"];
    if let Some(how) = settled["how"].as_str() {
        let place = settled["sequence"].as_u64().map(|n| format!(", now {} at {n}", text(letter, "stream")));
        let place = place.unwrap_or_default();
        println!("{} {how} by {} at {}{place}", text(letter, "id"), text(settled, "by"), text(settled, "at"));
    }
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}
