//! What the next token may be: nothing but JSON that fits a schema, or nothing but a call of an offered tool.
//!
//! A grammar is compiled when the request comes, beside the step loop, within fixed bounds; masks are computed while
//! the model computes logits. Unless the whole answer is bound, the model writes freely until its own text begins a
//! call: from there to the call's end it is bound to valid JSON with an offered name and arguments that fit its schema.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
};

use llguidance::{
    Matcher, ParserFactory,
    api::{ParserLimits, TopLevelGrammar},
    toktrie::{InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv},
};
use schemas::{
    ToolSpec,
    chat::{ResponseFormat, ToolChoice},
    json_schema,
};
use serde_json::{Value, json};

use crate::{tokenizer::Tokenizer, tool_calls::Family};

/// Blank space between two parts of a JSON text: enough to indent, and no endless line of it.
const SPACE: &str = r"( |\n {0,16})";
/// Calls in one answer that must be calls, or in one list: a model that never says that it is done must end.
pub const CALLS_MAX: usize = 8;
/// Compiled grammars that are kept: agents ask for the same one at every turn.
const KEPT_MAX: usize = 64;

/// Compiles grammars for one model.
pub struct Grammars {
    factory: ParserFactory,
    trie: Arc<Trie>,
    family: Family,
    /// Ids of the marks around a call, where each is a token of its own.
    marks: [Mark; 2],
    /// Newest last.
    kept: Mutex<VecDeque<(String, Matcher)>>,
}

/// A text that the model writes as one special token, or as any tokens that spell it.
#[derive(Debug, Clone)]
struct Mark {
    text: String,
    id: Option<u32>,
}

/// Why a request's schema or tools cannot bind an answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

/// What binds one answer.
pub struct Constraint {
    /// From the beginning of a call to its end.
    call: Option<Matcher>,
    state: State,
    mask: Option<SimpleVob>,
    trie: Option<Arc<Trie>>,
    /// A mark that must not come outside calls.
    banned: Option<u32>,
    /// The mark that ends a call.
    close: Option<u32>,
}

enum State {
    /// Anything goes.
    Free,
    /// The whole answer is bound.
    Whole(Box<Matcher>),
    /// A call has begun.
    Call(Box<Matcher>),
    /// A call has begun in a way that no grammar takes; it is left to its end.
    Lost,
    /// Nothing can follow; the text says why.
    Stuck(String),
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").field("family", &self.family).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = match &self.state {
            State::Free => "free",
            State::Whole(_) => "whole",
            State::Call(_) => "call",
            State::Lost => "lost",
            State::Stuck(_) => "stuck",
        };
        f.debug_struct("Constraint").field("state", &state).finish_non_exhaustive()
    }
}

impl Grammars {
    /// For a model's tokens; `vocabulary` counts the logits.
    ///
    /// # Errors
    /// The vocabulary is not one that masks can be computed for.
    pub fn new(tokenizer: &Tokenizer, vocabulary: usize, end_tokens: &[u32], family: Family) -> Result<Self, Refused> {
        let size = u32::try_from(vocabulary).map_err(|_| Refused("the vocabulary is too large".to_owned()))?;
        let words: Vec<Vec<u8>> = (0..size).map(|id| word(tokenizer, id)).collect();
        let info = TokRxInfo::new(size, end_tokens.first().copied().unwrap_or(0));
        let trie = TokTrie::from(&info, &words).with_eos_tokens(end_tokens);
        let trie = Arc::new(Trie(trie));
        let environment: TokEnv = Arc::clone(&trie) as TokEnv;
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
            .map_err(|error| Refused(format!("no masks for this vocabulary: {error}")))?;
        factory.quiet();
        *factory.limits_mut() = limits();
        let marks =
            [family.open(), family.close()].map(|text| Mark { text: text.to_owned(), id: tokenizer.marker(text) });
        Ok(Self { factory, trie, family, marks, kept: Mutex::default() })
    }

    /// What binds the answer to a request. Calls that must come, or that stand in one list, are so many at most.
    ///
    /// # Errors
    /// A schema is beyond the bounds, says nothing that can be met, or says it with keywords that no grammar holds.
    pub fn constrain(
        &self,
        tools: &[ToolSpec],
        choice: Option<&ToolChoice>,
        format: Option<&ResponseFormat>,
        calls_max: usize,
    ) -> Result<Constraint, Refused> {
        if let Some(format) = format {
            let schema = match format {
                ResponseFormat::JsonObject => json!({"type": "object"}),
                ResponseFormat::JsonSchema { schema } => schema.clone(),
            };
            json_schema::check(&schema).map_err(Refused)?;
            let matcher = self.matcher(format!("start: %json {}\n", spaced(schema, false)))?;
            return Ok(self.constraint(None, State::Whole(Box::new(matcher))));
        }
        let named = |tool: &&ToolSpec| match choice {
            Some(ToolChoice::Function { name }) => tool.function.name == *name,
            _ => true,
        };
        let callable: Vec<&ToolSpec> = tools.iter().filter(named).collect();
        if matches!(choice, Some(ToolChoice::None)) {
            return Ok(Constraint { banned: self.marks[0].id, ..self.constraint(None, State::Free) });
        }
        if callable.is_empty() {
            return Ok(self.constraint(None, State::Free));
        }
        if matches!(choice, Some(ToolChoice::Required | ToolChoice::Function { .. })) {
            let calls_max = if matches!(choice, Some(ToolChoice::Required)) { calls_max } else { 1 };
            let calls = self.matcher(self.calls(&callable, calls_max))?;
            return Ok(self.constraint(None, State::Whole(Box::new(calls))));
        }
        let call = self.matcher(self.call(&callable, calls_max))?;
        Ok(self.constraint(Some(call), State::Free))
    }

    fn constraint(&self, call: Option<Matcher>, state: State) -> Constraint {
        Constraint {
            call,
            state,
            mask: None,
            trie: Some(Arc::clone(&self.trie)),
            banned: None,
            close: self.marks[1].id,
        }
    }

    /// The grammar of calls of these tools, from one to so many, and nothing else.
    fn calls(&self, tools: &[&ToolSpec], calls_max: usize) -> String {
        let rules = self.rules(tools);
        let [open, close] = self.marks.each_ref().map(Mark::grammar);
        let more = calls_max - 1;
        let start = match self.family {
            Family::Hermes => {
                let one = format!("{open} WS? call WS? {close}");
                format!("start: {one} {}", up_to(more, &format!("WS? {one}")))
            }
            Family::Mistral => format!("start: {open} {}", list(more)),
            // Without a mark in front, as these models write them.
            Family::Pythonic => format!("start: {}", list(more)),
            Family::Llama => format!("start: call {}", up_to(more, r#"";" WS? call"#)),
        };
        format!("{start}\n{rules}")
    }

    /// The grammar of what stands behind the beginning of a call, or of a list of so many at most, up to its end.
    fn call(&self, tools: &[&ToolSpec], calls_max: usize) -> String {
        let rules = self.rules(tools);
        let close = self.marks[1].grammar();
        let start = match self.family {
            Family::Hermes => format!("start: WS? call WS? {close}"),
            Family::Mistral | Family::Pythonic => format!("start: WS? {}", list(calls_max - 1)),
            Family::Llama => "start: WS? call".to_owned(),
        };
        format!("{start}\n{rules}")
    }

    /// What `call` is: one of these tools' names with arguments that fit.
    fn rules(&self, tools: &[&ToolSpec]) -> String {
        let names: Vec<String> = (0..tools.len()).map(|i| format!("call_{i}")).collect();
        let mut lark = format!("WS: /{SPACE}/\ncall: {}\n", names.join(" | "));
        if self.family == Family::Pythonic {
            lark.push_str(&pythonic(tools));
            return lark;
        }
        for (i, tool) in tools.iter().enumerate() {
            let name = Value::from(tool.function.name.as_str()).to_string();
            let (name, key) = (literal(&name), self.family.arguments_key());
            lark.push_str(&format!(
                r#"call_{i}: "{{" WS? "\"name\"" WS? ":" WS? {name} WS? "," WS? "\"{key}\"" WS? ":" WS? arguments_{i} WS? "}}"
arguments_{i}: %json {}
"#,
                self.arguments(tool),
            ));
        }
        lark
    }

    /// The schema of a tool's arguments; any object where it is none that can bind.
    fn arguments(&self, tool: &ToolSpec) -> String {
        let schema = &tool.function.parameters;
        let fits = schema.is_object() && json_schema::check(schema).is_ok();
        if fits {
            let mut schema = schema.clone();
            schema["type"] = json!("object");
            // Names that a tool does not list are none that it wants, even where it does not say so.
            let lists = schema.get("properties").is_some();
            if lists
                && !["additionalProperties", "patternProperties", "allOf"].iter().any(|key| schema.get(key).is_some())
            {
                schema["additionalProperties"] = json!(false);
            }
            let schema = spaced(schema, true);
            if self.matcher(format!("start: %json {schema}\n")).is_ok() {
                return schema;
            }
        }
        spaced(json!({"type": "object"}), true)
    }

    fn matcher(&self, lark: String) -> Result<Matcher, Refused> {
        let mut kept = self.kept.lock().expect("no panic while the lock is held");
        if let Some(at) = kept.iter().position(|(text, _)| *text == lark) {
            let entry = kept.remove(at).expect("it was just found");
            let matcher = entry.1.deep_clone();
            kept.push_back(entry);
            return Ok(matcher);
        }
        drop(kept);
        let grammar = TopLevelGrammar::from_lark(lark.clone());
        let parser =
            llguidance::panic_utils::catch_unwind(std::panic::AssertUnwindSafe(|| self.factory.create_parser(grammar)));
        let mut matcher = Matcher::new(parser);
        // The first mask shows what compiling does not: that nothing at all can be written.
        let first = matcher.compute_mask();
        let reason = |error: String| {
            let error = first_line(&error);
            let why = error.split_once("JSON schema: ").map_or(error.as_str(), |(_, why)| why);
            // What the grammar's first state says of itself when nothing can follow it.
            let why = if why.contains("NoExtension") { "nothing satisfies it" } else { why };
            Refused(format!("the schema cannot bind an answer: {why}"))
        };
        match first {
            Err(error) => return Err(reason(error.to_string())),
            Ok(mask) if mask.is_zero() => return Err(reason("nothing satisfies it".to_owned())),
            Ok(_) => {}
        }
        let mut kept = self.kept.lock().expect("no panic while the lock is held");
        kept.push_back((lark, matcher.deep_clone()));
        if kept.len() > KEPT_MAX {
            kept.pop_front();
        }
        Ok(matcher)
    }
}

impl Constraint {
    /// An answer that nothing binds.
    pub fn free() -> Self {
        Self { call: None, state: State::Free, mask: None, trie: None, banned: None, close: None }
    }

    /// Whether the next token is bound.
    pub fn binds(&self) -> bool {
        self.banned.is_some() || matches!(self.state, State::Whole(_) | State::Call(_) | State::Stuck(_))
    }

    /// Whether it must hear of calls that begin and end.
    pub fn watches(&self) -> bool {
        self.call.is_some() && matches!(self.state, State::Free | State::Lost)
    }

    /// Computes which tokens may come next; done beside the model's work.
    pub fn prepare(&mut self) {
        if self.mask.is_some() {
            return;
        }
        let (State::Whole(matcher) | State::Call(matcher)) = &mut self.state else {
            return;
        };
        match matcher.compute_mask_or_eos() {
            Ok(mask) if !mask.is_zero() => self.mask = Some(mask),
            Ok(_) => self.give_up("nothing can follow that fits"),
            Err(error) => self.give_up(&first_line(&error.to_string())),
        }
    }

    /// Takes from the logits what may not come next.
    ///
    /// # Errors
    /// Nothing may come next; the text says why.
    pub fn apply(&mut self, logits: &mut [f32]) -> Result<(), String> {
        self.prepare();
        if let Some(why) = self.stuck() {
            return Err(why);
        }
        if let Some(logit) =
            self.banned.filter(|_| matches!(self.state, State::Free)).and_then(|id| logits.get_mut(id as usize))
        {
            *logit = f32::NEG_INFINITY;
        }
        if let Some(mask) = &self.mask {
            for (id, logit) in logits.iter_mut().enumerate() {
                if !mask.get(id) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        Ok(())
    }

    /// The tokens that may come next, of so many: a bit for each, the lowest of a word first. None where all may, or where
    /// nothing may and the answer is at its end (see `stuck`).
    pub fn allowed(&mut self, vocabulary: usize) -> Option<Vec<u32>> {
        self.prepare();
        let words = vocabulary.div_ceil(32);
        if let Some(banned) = self.banned.filter(|_| matches!(self.state, State::Free)) {
            let mut all = vec![u32::MAX; words];
            if let Some(word) = all.get_mut(banned as usize / 32) {
                *word &= !(1 << (banned % 32));
            }
            return Some(all);
        }
        let mut allowed = self.mask.as_ref()?.as_slice().to_vec();
        allowed.resize(words, 0);
        Some(allowed)
    }

    /// Why nothing may come next, if that is so.
    pub fn stuck(&self) -> Option<String> {
        match &self.state {
            State::Stuck(why) => Some(format!("the schema cannot bind the answer to its end: {why}")),
            _ => None,
        }
    }

    /// Takes note of the token that came. `begun` is what stands behind the opening mark of a call that has begun and
    /// not ended.
    pub fn push(&mut self, id: u32, begun: Option<&[u8]>) {
        self.mask = None;
        match &mut self.state {
            State::Whole(matcher) | State::Call(matcher) => {
                if let Err(error) = matcher.consume_token(id) {
                    let why = first_line(&error.to_string());
                    self.give_up(&why);
                } else if matcher.is_stopped() && matches!(self.state, State::Call(_)) {
                    self.state = State::Free;
                    // A mark that closes nothing says nothing.
                    self.banned = self.close;
                }
            }
            State::Free => {
                if let (Some(begun), Some(call), Some(trie)) = (begun, &self.call, &self.trie) {
                    let mut matcher = call.deep_clone();
                    let tokens = trie.0.greedy_tokenize(begun);
                    let taken = matcher.try_consume_tokens(&tokens).is_ok_and(|taken| taken == tokens.len());
                    self.state = if taken { State::Call(Box::new(matcher)) } else { State::Lost };
                }
            }
            State::Lost if begun.is_none() => self.state = State::Free,
            State::Lost | State::Stuck(_) => {}
        }
    }

    /// A call that cannot be bound goes on unbound; an answer that must be bound cannot go on.
    fn give_up(&mut self, why: &str) {
        self.state = match self.state {
            State::Whole(_) => State::Stuck(why.to_owned()),
            _ => State::Lost,
        };
    }
}

impl Mark {
    /// How a grammar names it.
    fn grammar(&self) -> String {
        match self.id {
            _ if self.text.is_empty() => String::new(),
            Some(id) => format!("<[{id}]>"),
            None => literal(&self.text),
        }
    }
}

/// A list of calls, up to so many more than one.
fn list(more: usize) -> String {
    format!(r#""[" WS? call {} WS? "]""#, up_to(more, r#"WS? "," WS? call"#))
}

/// So many repetitions at most.
fn up_to(times: usize, of: &str) -> String {
    if times == 0 { String::new() } else { format!("({of}){{0,{times}}}") }
}

/// Python calls: the tools' names, their arguments' names, and literals.
fn pythonic(tools: &[&ToolSpec]) -> String {
    let mut lark = r##"value: STRING | NUMBER | "True" | "False" | "None" | list | dictionary
list: "[" WS? (value (WS? "," WS? value)* WS?)? "]"
dictionary: "{" WS? (pair (WS? "," WS? pair)* WS?)? "}"
pair: STRING WS? ":" WS? value
NUMBER: /-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,18})?/
STRING: /"([^"\\\n]|\\["'\\nt])*"/ | /'([^'\\\n]|\\["'\\nt])*'/
"##
    .to_owned();
    for (i, tool) in tools.iter().enumerate() {
        let properties = tool.function.parameters.get("properties").and_then(Value::as_object);
        let keys: Vec<String> = properties.into_iter().flatten().map(|(key, _)| literal(key)).collect();
        let name = literal(&tool.function.name);
        if keys.is_empty() {
            lark.push_str(&format!("call_{i}: {name} \"(\" WS? \")\"\n"));
            continue;
        }
        lark.push_str(&format!(
            "call_{i}: {name} \"(\" WS? (pair_{i} (WS? \",\" WS? pair_{i})* WS?)? \")\"\npair_{i}: ({}) WS? \"=\" WS? value\n",
            keys.join(" | ")
        ));
    }
    lark
}

/// A text as a grammar's literal.
fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// A schema with our rules about blank space; `lenient` passes over keywords that no grammar holds.
fn spaced(mut schema: Value, lenient: bool) -> String {
    if schema == Value::Bool(true) {
        schema = json!({});
    }
    if let Some(fields) = schema.as_object_mut() {
        // A whole answer is written on one line: blank space is where a model that means something else loses itself.
        // In a call it may come once between two parts, as the model is used to.
        let rules = if lenient {
            json!({"whitespace_pattern": SPACE, "coerce_one_of": true, "lenient": true})
        } else {
            json!({"whitespace_flexible": false, "item_separator": ", ?", "key_separator": ": ?", "coerce_one_of": true})
        };
        fields.insert("x-guidance".to_owned(), rules);
    }
    schema.to_string()
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().to_owned()
}

/// What a hostile schema may cost before it is refused: under a second of compiling, beside the step loop, a tenth of a
/// second for one mask, and some megabytes. A usual one takes milliseconds and microseconds.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2_000,
        initial_lexer_fuel: 500_000,
        step_lexer_fuel: 100_000,
        step_max_items: 50_000,
        max_lexer_states: 20_000,
        max_grammar_size: 100_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

/// The bytes of a token. Special tokens are marked, so that no text spells them.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    match tokenizer.added(id) {
        Some(name) => [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat(),
        None => {
            let mut bytes = Vec::new();
            tokenizer.append_bytes(id, &mut bytes);
            bytes
        }
    }
}

struct Trie(TokTrie);

impl TokenizerEnv for Trie {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.0.greedy_tokenize(bytes)
    }

    /// Greedy, which is not how the model was trained: nothing is forced in its name.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}
