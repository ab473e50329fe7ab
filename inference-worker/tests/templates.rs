//! Chat templates against transformers (`reference/make_templates.py`): four in the manner of well-known families and the
//! shipped model's, each with conversations of every kind, byte for byte; and templates that would do harm.

use std::path::{Path, PathBuf};

use inference_worker::template::ChatTemplate;
use serde_json::{Value, json};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/templates")
}

fn compile(source: &str) -> ChatTemplate {
    let config = json!({"chat_template": source, "bos_token": "<s>", "eos_token": "</s>"});
    ChatTemplate::load(&folder().join("none.json"), &config).unwrap()
}

fn source(name: &str) -> String {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/tiny/tokenizer_config.json");
    if name == "tiny" {
        let config: Value = serde_json::from_slice(&std::fs::read(tiny).unwrap()).unwrap();
        return config["chat_template"].as_str().unwrap().to_owned();
    }
    std::fs::read_to_string(folder().join(format!("{name}.jinja"))).unwrap()
}

#[test]
fn every_template_renders_every_conversation_as_transformers_does() {
    let cases: Vec<Value> =
        serde_json::from_slice(&std::fs::read(folder().join("conversations.json")).unwrap()).unwrap();
    let list = |value: &Value| value.as_array().unwrap().clone();
    let (mut texts, mut refusals) = (0, 0);
    for name in ["tiny", "qwen", "llama3", "mistral", "plain"] {
        let template = compile(&source(name));
        for case in &cases {
            let rendered = template.render(&list(&case["messages"]), &list(&case["tools"]));
            let wanted = &case["rendered"][name];
            match &wanted["error"] {
                Value::String(error) => {
                    assert_eq!(rendered, Err(error.clone()), "{name}: {}", case["name"]);
                    refusals += 1;
                }
                _ => {
                    assert_eq!(rendered.as_deref(), Ok(wanted["text"].as_str().unwrap()), "{name}: {}", case["name"]);
                    texts += 1;
                }
            }
        }
    }
    assert!(texts >= 100 && refusals >= 5, "{texts} texts and {refusals} refusals");
}

#[test]
fn a_template_that_runs_away_is_stopped() {
    let hello = [json!({"role": "user", "content": "hello"})];
    let cases = [
        ("{{ raise_exception('not like this') }}", "not like this"),
        ("{% macro again(n) %}{{ again(n + 1) }}{% endmacro %}{{ again(0) }}", "recursion"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{{ a * b }}{% endfor %}{% endfor %}", "steps"),
        (
            "{% set ns = namespace(text='x') %}{% for i in range(60) %}{% set ns.text = ns.text + ns.text %}{% endfor %}{{ ns.text }}",
            "steps",
        ),
        ("{{ 'x' * 9000000000 }}", ""),
        ("{{ messages | tojson(indent=999999999) | length }}{{ nothing.at.all }}", "undefined"),
        ("{{ messages | tojson(sort_keys=true) }}", "sort_keys"),
        ("{{ messages[7].content.strip() }}", "undefined"),
    ];
    for (source, said) in cases {
        let error = compile(source).render(&hello, &[]).expect_err(source);
        assert!(error.contains(said) && !error.is_empty(), "{source}: {error}");
    }
}

#[test]
fn a_long_conversation_takes_a_small_part_of_the_steps() {
    let text = "a word or two, ".repeat(1 << 20);
    let mut messages = vec![json!({"role": "system", "content": "s"}), json!({"role": "user", "content": text})];
    for at in 0..2_000 {
        let role = if at % 2 == 0 { "assistant" } else { "user" };
        messages.push(json!({"role": role, "content": "some words that are said"}));
    }
    messages.push(json!({"role": "assistant", "content": "x"}));
    messages.push(json!({"role": "user", "content": "y"}));
    for name in ["tiny", "qwen", "mistral"] {
        let rendered = compile(&source(name)).render(&messages, &[]);
        assert!(rendered.is_ok_and(|rendered| rendered.len() > text.len()), "{name}");
    }
}
