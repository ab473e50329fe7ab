//! Keeps what messages say from becoming what the template says.
//!
//! A template writes marks (`<|im_start|>`, `[TOOL_CALLS]`) that the tokenizer turns into tokens of their own; a model
//! believes those tokens. A tool's result, a page or a user can write the same characters, so each such mark in a message
//! is cut in two before the template sees it, and the tokenizer takes the pieces one after the other: the model reads
//! the same characters, made of ordinary tokens. Messages without marks, nearly all of them, are not touched.
//!
//! Where a template writes a mark that its tokenizer does not know as a token, nothing but the characters tells it from
//! the same mark in a message; there, a space is put into the latter.

use std::{borrow::Cow, collections::BTreeSet};

use aho_corasick::AhoCorasick;
use serde_json::{Map, Value as Json};
use tokenizers::{AddedToken, NormalizedString, Normalizer, NormalizerWrapper};

/// Where the tokenizer cuts. Not a character, by Unicode's definition, so it stands in no text.
pub(crate) const CUT: char = '\u{fdd0}';

/// Marks of turns and calls that some templates write in plain characters.
const SPELLED: [&str; 39] = [
    "<|im_start|>",
    "<|im_end|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|tool|>",
    "<|end|>",
    "<|endoftext|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[AVAILABLE_TOOLS]",
    "<<SYS>>",
    "<</SYS>>",
    "<s>",
    "</s>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
    "<|header_start|>",
    "<|header_end|>",
    "<|eot|>",
    "<|python_start|>",
    "<|python_end|>",
    "[ARGS]",
    "[/AVAILABLE_TOOLS]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
];

/// What a model's own earlier answers may hold: templates look for them, to leave out what was only thought.
const THOUGHT: [&str; 4] = ["<think>", "</think>", "[THINK]", "[/THINK]"];

/// The marks of one model.
#[derive(Debug)]
pub(crate) struct Marks {
    tokens: Vec<String>,
    whole: AhoCorasick,
    /// Beginnings and ends of marks, of two characters and more: what the template writes beside them may complete them.
    beginnings: BTreeSet<String>,
    ends: BTreeSet<String>,
    longest: usize,
    spelled: Vec<&'static str>,
    /// What happens to text before some of the marks are looked for.
    normalizer: Option<NormalizerWrapper>,
}

impl Marks {
    /// The marks among a tokenizer's added tokens, and those that a template spells.
    pub(crate) fn of<'a>(
        added: impl Iterator<Item = &'a AddedToken>,
        normalizer: Option<&NormalizerWrapper>,
        template: &str,
    ) -> Self {
        // Others are pieces of text that happen to stand there, such as runs of spaces.
        let controls = |token: &&AddedToken| {
            let text = token.content.trim();
            let bars = text.starts_with("<|") && text.ends_with("|>");
            text.chars().nth(1).is_some() && (token.special || bars || template.contains(text))
        };
        let tokens: Vec<&AddedToken> = added.filter(controls).collect();
        let normalizer = normalizer.filter(|_| tokens.iter().any(|token| token.normalized)).cloned();
        let tokens: Vec<String> = tokens.into_iter().map(|token| token.content.clone()).collect();
        let (mut beginnings, mut ends) = (BTreeSet::new(), BTreeSet::new());
        for token in &tokens {
            for (at, _) in token.char_indices().skip(1) {
                let (beginning, end) = token.split_at(at);
                let two = |part: &str| part.chars().nth(1).is_some();
                beginnings.extend(two(beginning).then(|| beginning.to_owned()));
                ends.extend(two(end).then(|| end.to_owned()));
            }
        }
        let longest = beginnings.iter().chain(&ends).map(|part| part.chars().count()).max().unwrap_or(0);
        let spelled = SPELLED.into_iter().filter(|mark| template.contains(mark) && !tokens.iter().any(|t| t == mark));
        let whole = AhoCorasick::new(&tokens).expect("a vocabulary's marks are few and short");
        Self { spelled: spelled.collect(), tokens, whole, beginnings, ends, longest, normalizer }
    }

    /// Cuts the marks in everything that a message says; its role is the template's.
    pub(crate) fn cut_message(&self, message: &mut Json) {
        let own = message.get("role").and_then(Json::as_str) == Some("assistant");
        let Some(fields) = message.as_object_mut() else { return };
        for (name, value) in fields.iter_mut().filter(|(name, _)| name.as_str() != "role") {
            let thought = own && matches!(name.as_str(), "content" | "reasoning_content");
            self.cut_value(value, thought);
        }
    }

    /// Cuts the marks in what a tool says of itself.
    pub(crate) fn cut_tools<'a>(&self, tools: &'a [Json]) -> Cow<'a, [Json]> {
        let mut cut = tools.to_vec();
        cut.iter_mut().for_each(|tool| self.cut_value(tool, false));
        if cut == tools { Cow::Borrowed(tools) } else { Cow::Owned(cut) }
    }

    fn cut_value(&self, value: &mut Json, thought: bool) {
        match value {
            Json::String(text) => {
                if let Cow::Owned(cut) = self.cut(text, thought) {
                    *text = cut;
                }
            }
            Json::Array(values) => values.iter_mut().for_each(|value| self.cut_value(value, thought)),
            Json::Object(fields) => {
                if fields.keys().any(|name| matches!(self.cut(name, false), Cow::Owned(_))) {
                    let renamed = |(name, value): (String, Json)| (self.cut(&name, false).into_owned(), value);
                    *fields = std::mem::take(fields).into_iter().map(renamed).collect::<Map<_, _>>();
                }
                fields.iter_mut().for_each(|(_, value)| self.cut_value(value, thought));
            }
            Json::Null | Json::Bool(_) | Json::Number(_) => {}
        }
    }

    /// The text with every mark in it cut, and cut where it could be a part of one.
    fn cut<'a>(&self, text: &'a str, thought: bool) -> Cow<'a, str> {
        let text = self.respelled(text);
        let mut cuts = BTreeSet::new();
        // Marks may overlap: each is cut, so none is left whole.
        for found in self.whole.find_overlapping_iter(text.as_ref()) {
            let mark = &self.tokens[found.pattern()];
            if !(thought && THOUGHT.contains(&mark.as_str())) {
                cuts.insert(found.start() + mark.chars().next().map_or(0, char::len_utf8));
            }
        }
        if self.appears_when_normalised(&text) {
            cuts.extend(text.char_indices().map(|(at, _)| at));
        }
        let ends_as = |length: &usize| {
            let begin = text.char_indices().rev().nth(length - 1).map(|(at, _)| at);
            begin.is_some_and(|begin| self.beginnings.contains(&text[begin..]))
        };
        let begins_as = |length: &usize| {
            let end = text.char_indices().map(|(at, _)| at).chain([text.len()]).nth(*length);
            end.is_some_and(|end| self.ends.contains(&text[..end]))
        };
        if (2..=self.longest).any(|length| ends_as(&length)) {
            cuts.insert(text.len());
        }
        if (2..=self.longest).any(|length| begins_as(&length)) {
            cuts.insert(0);
        }
        if cuts.is_empty() {
            return text;
        }
        let mut cut = String::with_capacity(text.len() + 3 * cuts.len());
        let mut from = 0;
        for at in cuts {
            cut.push_str(&text[from..at]);
            cut.push(CUT);
            from = at;
        }
        cut.push_str(&text[from..]);
        Cow::Owned(cut)
    }

    /// The text with a space in each mark that its template only spells.
    fn respelled<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut text = Cow::Borrowed(text);
        for mark in &self.spelled {
            if text.contains(mark) {
                let (first, rest) = mark.split_at(1);
                text = Cow::Owned(text.replace(mark, &format!("{first} {rest}")));
            }
        }
        text
    }

    /// Whether a mark comes into being that does not stand there, such as one in full-width characters.
    fn appears_when_normalised(&self, text: &str) -> bool {
        let Some(normalizer) = self.normalizer.as_ref().filter(|_| !text.is_ascii()) else { return false };
        let mut normalised = NormalizedString::from(text);
        let changed = normalizer.normalize(&mut normalised).is_ok() && normalised.get() != text;
        changed && self.whole.find_iter(normalised.get()).count() > self.whole.find_iter(text).count()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn marks(template: &str) -> Marks {
        let added = |text: &str, special| AddedToken::from(text, special);
        let tokens =
            [added("<|im_start|>", true), added("<tool_call>", false), added("    ", false), added("<think>", false)];
        Marks::of(tokens.iter(), None, template)
    }

    const TEMPLATE: &str = "<|im_start|> <tool_call> <think> [INST]";

    #[test]
    fn every_mark_is_cut_and_nothing_else() {
        let marks = marks(TEMPLATE);
        for (text, cut) in [
            ("a<|im_start|>b", "a<~|im_start|>b"),
            ("<tool_call><tool_call>", "<~tool_call><~tool_call>"),
            ("<|im_<|im_start|>start|>", "<|im_<~|im_start|>start|>"),
            ("ends in <tool_", "ends in <tool_~"),
            ("im_start|> begins", "~im_start|> begins"),
            ("[INST] is spelled", "[ INST] is spelled"),
        ] {
            assert_eq!(marks.cut(text, false).replace(CUT, "~"), cut, "{text}");
        }
        for text in ["", "<", "a < b > c", "    fn main() {}", "<|im_stop|>", "<b>", "x <tool_x>"] {
            assert!(matches!(marks.cut(text, false), Cow::Borrowed(_)), "{text}");
        }
    }

    #[test]
    fn roles_and_a_models_own_thoughts_stay() {
        let mut message = json!({"role": "assistant", "content": "<think>x", "tool_calls": [
            {"function": {"name": "f", "arguments": {"<tool_call>": ["<|im_start|>"]}}}]});
        marks(TEMPLATE).cut_message(&mut message);
        assert_eq!(message["content"], "<think>x");
        assert_eq!(message.to_string().matches(CUT).count(), 2);
        let mut other = json!({"role": "tool", "content": "<think>x"});
        marks(TEMPLATE).cut_message(&mut other);
        assert_eq!(other["content"], format!("<{CUT}think>x"));
    }
}
