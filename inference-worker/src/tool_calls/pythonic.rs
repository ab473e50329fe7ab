//! Calls written as a Python list: `[search(query="x", limit=3), done()]`. Literals only: nothing is evaluated.

use serde_json::{Map, Number, Value};

use super::ToolCall;

/// How deep lists and dictionaries may nest.
const DEPTH_MAX: usize = 64;

/// Reads a list of calls.
pub(super) fn calls(text: &str) -> Result<Vec<ToolCall>, String> {
    let mut reader = Reader { rest: text };
    reader.expect('[')?;
    let mut calls = Vec::new();
    while !reader.takes(']') {
        calls.push(reader.call()?);
        if !reader.takes(',') {
            reader.expect(']')?;
            break;
        }
    }
    match reader.peek() {
        None if calls.is_empty() => Err("no call in the list".to_owned()),
        None => Ok(calls),
        Some(_) => Err(format!("something stands behind the list: {}", reader.shown())),
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl<'a> Reader<'a> {
    fn peek(&mut self) -> Option<char> {
        self.rest = self.rest.trim_start();
        self.rest.chars().next()
    }

    fn takes(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.rest = &self.rest[wanted.len_utf8()..];
        }
        found
    }

    fn expect(&mut self, wanted: char) -> Result<(), String> {
        if self.takes(wanted) { Ok(()) } else { Err(format!("expected {wanted:?} before {}", self.shown())) }
    }

    fn shown(&self) -> String {
        format!("{:?}", self.rest.chars().take(20).collect::<String>())
    }

    fn word(&mut self) -> &'a str {
        self.peek();
        let end = self.rest.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '+')));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        word
    }

    fn call(&mut self) -> Result<ToolCall, String> {
        let name = self.word().to_owned();
        if name.is_empty() {
            return Err(format!("expected a name before {}", self.shown()));
        }
        self.expect('(')?;
        let mut arguments = Map::new();
        while !self.takes(')') {
            let key = self.word().to_owned();
            if key.is_empty() || !self.takes('=') {
                return Err(format!("expected `name=value` before {}", self.shown()));
            }
            arguments.insert(key, self.value(0)?);
            if !self.takes(',') {
                self.expect(')')?;
                break;
            }
        }
        Ok(ToolCall { name, arguments: Value::Object(arguments) })
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        if depth > DEPTH_MAX {
            return Err(format!("more than {DEPTH_MAX} levels of brackets"));
        }
        match self.peek() {
            Some(quote @ ('"' | '\'')) => self.string(quote).map(Value::String),
            Some('[') => self.list('[', ']', depth),
            Some('(') => self.list('(', ')', depth),
            Some('{') => self.dictionary(depth),
            _ => self.word_value(),
        }
    }

    fn word_value(&mut self) -> Result<Value, String> {
        let word = self.word();
        let number = || {
            let whole = word.parse::<i64>().map(Number::from).or_else(|_| word.parse::<u64>().map(Number::from)).ok();
            whole.or_else(|| word.parse::<f64>().ok().filter(|_| !word.contains("n")).and_then(Number::from_f64))
        };
        match word {
            "True" | "true" => Ok(Value::Bool(true)),
            "False" | "false" => Ok(Value::Bool(false)),
            "None" | "null" => Ok(Value::Null),
            _ => number().map(Value::Number).ok_or_else(|| format!("{word:?} is no value, before {}", self.shown())),
        }
    }

    fn list(&mut self, open: char, close: char, depth: usize) -> Result<Value, String> {
        self.expect(open)?;
        let mut items = Vec::new();
        while !self.takes(close) {
            items.push(self.value(depth + 1)?);
            if !self.takes(',') {
                self.expect(close)?;
                break;
            }
        }
        Ok(Value::Array(items))
    }

    fn dictionary(&mut self, depth: usize) -> Result<Value, String> {
        self.expect('{')?;
        let mut fields = Map::new();
        while !self.takes('}') {
            let quote = self.peek().filter(|c| matches!(c, '"' | '\'')).ok_or("a key that is no string")?;
            let key = self.string(quote)?;
            self.expect(':')?;
            fields.insert(key, self.value(depth + 1)?);
            if !self.takes(',') {
                self.expect('}')?;
                break;
            }
        }
        Ok(Value::Object(fields))
    }

    fn string(&mut self, quote: char) -> Result<String, String> {
        self.expect(quote)?;
        let mut text = String::new();
        let mut chars = self.rest.chars();
        while let Some(c) = chars.next() {
            match c {
                _ if c == quote => {
                    self.rest = chars.as_str();
                    return Ok(text);
                }
                '\\' => match chars.next().ok_or("a string that does not end")? {
                    'n' => text.push('\n'),
                    't' => text.push('\t'),
                    'r' => text.push('\r'),
                    '0' => text.push('\0'),
                    'x' => text.push(code(&mut chars, 2)?),
                    'u' => text.push(code(&mut chars, 4)?),
                    'U' => text.push(code(&mut chars, 8)?),
                    '\n' => {}
                    quoted @ ('\\' | '\'' | '"') => text.push(quoted),
                    // As Python does.
                    other => text.extend(['\\', other]),
                },
                _ => text.push(c),
            }
        }
        Err("a string that does not end".to_owned())
    }
}

fn code(chars: &mut std::str::Chars<'_>, digits: usize) -> Result<char, String> {
    let text: String = chars.take(digits).collect();
    let number = u32::from_str_radix(&text, 16).ok().filter(|_| text.len() == digits);
    number.and_then(char::from_u32).ok_or_else(|| format!("{text:?} is no code of a character"))
}
