use serde_json::json;

use super::*;

const HERMES: [&str; 9] = [
    "<tool_call>{\"name\":\"a\"}</tool_call></tool_call> stray</tool_call> \n</tool_call>",
    "plain text with < and <tool and \n\n blanks  \n",
    "Looking.\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": 1}}\n</tool_call>",
    "<tool_call>{\"name\":\"a\"}</tool_call>\n<tool_call>{\"name\":\"b\",\"arguments\":\"{}\"}</tool_call>\n done é🦋",
    "<tool_call>{\"name\": \"say\", \"arguments\": {\"t\": \"</tool_call> \\\" <tool_call>\"}}</tool_call>after",
    "<tool_call>{\"name\": \"open\", \"arguments\": {}}",
    "x <tool_call>not json</tool_call> y <tool_call>{\"arguments\": {}}</tool_call>",
    "<tool_call>{\"name\": \"broken</tool_call> rest",
    "<<tool_call>>{}</tool_call",
];

/// Answers with the texts and calls that they hold, `!` for what is malformed.
const LLAMA: [(&str, &[&str]); 9] = [
    ("just text; {\"name\": 1} too", &["just text; {\"name\": 1} too"]),
    ("{\"name\": \"a\", \"parameters\": {\"x\": \"}{\\\"é\"}}", &["a {\"x\":\"}{\\\"é\"}"]),
    (
        " \n{\"name\": \"a\", \"parameters\": {}} ; {\"name\": \"b\", \"parameters\": {\"y\": [1]}};",
        &["a {}", "b {\"y\":[1]}"],
    ),
    ("<|python_tag|>{\"name\": \"a\", \"parameters\": {}}", &["a {}"]),
    (
        "Wait.\n<|python_tag|>{\"name\": \"a\", \"parameters\": {\"t\": \"<|python_tag|>\"}}",
        &["Wait.", "a {\"t\":\"<|python_tag|>\"}"],
    ),
    ("{\"name\": \"Bob\", \"age\": 3} is JSON", &["{\"name\": \"Bob\", \"age\": 3} is JSON"]),
    ("{not json} at all", &["{not json} at all"]),
    ("<|python_tag|>print(1)", &["!print(1)"]),
    ("{\"name\": \"a\", \"parameters\": {\"x\": \"cut", &["!{\"name\": \"a\", \"parameters\": {\"x\": \"cut"]),
];
const MISTRAL: [(&str, &[&str]); 7] = [
    ("text with [TOOL and [brackets]", &["text with [TOOL and [brackets]"]),
    (
        "[TOOL_CALLS] [{\"name\": \"a\", \"arguments\": {\"x\": \"]\"}}, {\"name\": \"b\", \"arguments\": {}}]",
        &["a {\"x\":\"]\"}", "b {}"],
    ),
    ("[TOOL_CALLS][{\"name\": \"a\", \"arguments\": \"{\\\"x\\\": 1}\", \"id\": \"123456789\"}]", &["a {\"x\":1}"]),
    ("So.\n[TOOL_CALLS]a[ARGS]{\"x\": 1}[TOOL_CALLS]b[CALL_ID]7[ARGS]{}", &["So.", "a {\"x\":1}", "b {}"]),
    ("[TOOL_CALLS]a{\"x\": \"é🦋\"}", &["a {\"x\":\"é🦋\"}"]),
    ("[TOOL_CALLS][{\"nam", &["![{\"nam"]),
    ("[TOOL_CALLS][1] behind", &["![1]", "behind"]),
];
const PYTHONIC: [(&str, &[&str]); 9] = [
    ("text [link](http://x) text", &["text [link](http://x) text"]),
    ("[link](http://x) first", &["[link](http://x) first"]),
    (
        "[a(x=1, y='it\\'s ]', z=[True, None, -2.5]), b()]",
        &["a {\"x\":1,\"y\":\"it's ]\",\"z\":[true,null,-2.5]}", "b {}"],
    ),
    (
        "<|python_start|>[a.b(d={\"k\": (1, 'é\\u00e9')})]<|python_end|> done",
        &["a.b {\"d\":{\"k\":[1,\"éé\"]}}", "done"],
    ),
    ("\n[a(x=\"\"),]", &["a {\"x\":\"\"}"]),
    ("So: <|python_start|>[a(]<|python_end|>", &["So:", "![a(]<|python_end|>"]),
    ("[1, 2, 3] is a list", &["[1, 2, 3] is a list"]),
    ("[a(x=1", &["![a(x=1"]),
    ("<|python_start|>[a()]<|python_end|><|python_start|>[b()]<|python_end|>", &["a {}", "b {}"]),
];

fn run<'a>(family: Option<Family>, pieces: impl IntoIterator<Item = &'a str>) -> Vec<Part> {
    let mut parser = Parser::new(family);
    let mut parts: Vec<Part> = pieces.into_iter().flat_map(|piece| parser.push(piece)).collect();
    parts.extend(parser.finish());
    let mut joined: Vec<Part> = Vec::new();
    for part in parts {
        match (joined.last_mut(), part) {
            (Some(Part::Content(text)), Part::Content(more)) => text.push_str(&more),
            (_, part) => joined.push(part),
        }
    }
    joined
}

fn shown(part: &Part) -> String {
    match part {
        Part::Content(text) => text.clone(),
        Part::Call(call) => format!("{} {}", call.name, call.arguments),
        Part::Malformed { text, .. } => format!("!{text}"),
    }
}

fn of_all_families() -> impl Iterator<Item = (Family, &'static str)> {
    let family = |family: Family, answers: &'static [(&str, &[&str])]| answers.iter().map(move |(a, _)| (family, *a));
    HERMES
        .iter()
        .map(|answer| (Family::Hermes, *answer))
        .chain(family(Family::Llama, &LLAMA))
        .chain(family(Family::Mistral, &MISTRAL))
        .chain(family(Family::Pythonic, &PYTHONIC))
}

#[test]
fn each_family_reads_its_own_calls() {
    for (family, answers) in
        [(Family::Llama, &LLAMA[..]), (Family::Mistral, &MISTRAL[..]), (Family::Pythonic, &PYTHONIC[..])]
    {
        for (answer, expected) in answers {
            let parts: Vec<String> = run(Some(family), [*answer]).iter().map(shown).collect();
            assert_eq!(parts, *expected, "{family:?}: {answer:?}");
        }
    }
}

#[test]
fn every_split_reads_like_the_whole_and_leaks_no_markup() {
    for (family, answer) in of_all_families() {
        let whole = run(Some(family), [answer]);
        let cuts: Vec<usize> = (0..=answer.len()).filter(|&at| answer.is_char_boundary(at)).collect();
        for (index, &first) in cuts.iter().enumerate() {
            for &second in &cuts[index..] {
                let pieces = [&answer[..first], &answer[first..second], &answer[second..]];
                assert_eq!(run(Some(family), pieces), whole, "{family:?}: {answer:?}");
            }
        }
        let each = cuts.windows(2).map(|pair| &answer[pair[0]..pair[1]]);
        assert_eq!(run(Some(family), each), whole, "{family:?}: {answer:?} one by one");
        for part in &whole {
            let Part::Content(text) = part else { continue };
            assert!(!family.visible().iter().any(|mark| text.contains(mark)), "{family:?}: {text:?}");
        }
    }
}

/// Bytes cut anywhere, also inside characters, as tokens cut them.
#[test]
fn every_byte_split_reads_like_the_whole() {
    for (family, answer) in of_all_families() {
        let whole = run(Some(family), [answer]);
        for at in 0..=answer.len() {
            let mut bytes = crate::detokenize::Utf8Stream::default();
            let mut pieces = vec![bytes.push(&answer.as_bytes()[..at]), bytes.push(&answer.as_bytes()[at..])];
            pieces.push(bytes.finish());
            assert_eq!(run(Some(family), pieces.iter().map(String::as_str)), whole, "{answer:?} at {at}");
        }
    }
}

#[test]
fn without_a_family_all_is_text() {
    for (_, answer) in of_all_families() {
        assert_eq!(run(None, [answer]), [Part::Content(answer.to_owned())]);
    }
}

#[test]
fn a_closing_mark_in_a_string_does_not_close() {
    let parts = run(Some(Family::Hermes), [HERMES[4]]);
    assert!(matches!(&parts[0], Part::Call(call) if call.arguments["t"] == "</tool_call> \" <tool_call>"));
    assert_eq!(parts[1], Part::Content("after".to_owned()));
}

#[test]
fn a_malformed_call_is_a_value() {
    let parts = run(Some(Family::Hermes), [HERMES[6]]);
    assert!(matches!(&parts[1], Part::Malformed { text, .. } if text == "not json"));
    assert!(matches!(&parts[3], Part::Malformed { reason, .. } if reason.contains("name")));
}

#[test]
fn a_call_has_begun_once_it_can_be_nothing_else() {
    let begun = |family, text: &str| {
        let mut parser = Parser::new(Some(family));
        parser.push(text);
        parser.begun().map(str::to_owned)
    };
    assert_eq!(begun(Family::Hermes, "a <tool_call>\n{"), Some("\n{".to_owned()));
    assert_eq!(begun(Family::Hermes, "a <tool_call"), None);
    assert_eq!(begun(Family::Hermes, "<tool_call>{}</tool_call>"), None);
    assert_eq!(begun(Family::Mistral, "[TOOL_CALLS]"), Some(String::new()));
    assert_eq!(begun(Family::Llama, " {\"na"), None);
    assert_eq!(begun(Family::Llama, " {\"name\":"), Some("{\"name\":".to_owned()));
    assert_eq!(begun(Family::Pythonic, "[link"), None);
    assert_eq!(begun(Family::Pythonic, "[find("), Some("[find(".to_owned()));
}

#[test]
fn python_is_read_and_not_run() {
    let read = |text: &str| pythonic::calls(text).map(|calls| calls[0].arguments.clone());
    assert_eq!(
        read("[f(a=1e3, b=18446744073709551615, c='a\\n\\x41\\q')]"),
        Ok(json!({"a": 1000.0, "b": u64::MAX, "c": "a\nA\\q"}))
    );
    for bad in ["[f(1)]", "[f(a=g())]", "[f(a=1+1)]", "[f(a=nan)]", "[f(a='\\ud800')]", "[]", "[f()] x", "f()"] {
        assert!(read(bad).is_err(), "{bad}");
    }
    let deep = format!("[f(a={}1{})]", "[".repeat(10_000), "]".repeat(10_000));
    assert!(read(&deep).is_err_and(|why| why.contains("levels")));
}

#[test]
fn a_template_tells_its_family() {
    assert_eq!(Family::of_template("{{ '<tool_call>' }}"), Some(Family::Hermes));
    assert_eq!(Family::of_template("{{- \"[TOOL_CALLS] [\" }}"), Some(Family::Mistral));
    assert_eq!(Family::of_template("{{ '<|python_start|>' }} <|python_tag|>"), Some(Family::Pythonic));
    let llama = r#"{{- 'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.' }}"#;
    assert_eq!(Family::of_template(llama), Some(Family::Llama));
    assert_eq!(Family::of_template("{{ m.content }}"), None);
}
