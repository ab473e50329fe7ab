//! Conversations to text, by the chat template that comes with the model.
//!
//! Templates are written for Jinja2 inside Python; what they rely on is provided here: blocks trimmed, `tojson` as
//! Python writes JSON, `raise_exception`, and the methods of Python's strings and dictionaries. They come with models from
//! anywhere, so what one rendering may do is bounded.

use std::{borrow::Cow, io::Write, path::Path};

use minijinja::{Environment, ErrorKind, Value, context, syntax::SyntaxConfig, value::Serde};
use serde::Serialize;
use serde_json::{
    Value as Json,
    ser::{Formatter, PrettyFormatter},
};

use crate::{marks::Marks, model_directory::Error, tokenizer::Tokenizer, tool_calls::Family};

/// Steps of one rendering, each an instruction or 64 bytes made: about a second, and half a gigabyte at the very most. A
/// conversation of 16 MiB takes a tenth of it.
const STEPS_MAX: u64 = 10_000_000;

/// Wider indents are taken as this one.
const INDENT_MAX: usize = 64;

/// A compiled template with the special tokens it may name.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// The family whose calls it tells the model to write, if it does.
    pub family: Option<Family>,
    bos_token: String,
    eos_token: String,
    marks: Option<Marks>,
}

impl ChatTemplate {
    /// Takes `chat_template` from the tokenizer's configuration, which stands in `config_path`, or the file
    /// `chat_template.jinja` beside it.
    ///
    /// # Errors
    /// There is no template, or it does not compile.
    pub fn load(config_path: &Path, tokenizer_config: &Json) -> Result<Self, Error> {
        let file = config_path.with_file_name("chat_template.jinja");
        let source = match tokenizer_config.get("chat_template") {
            Some(Json::String(source)) => source.clone(),
            Some(Json::Array(named)) => named_template(named)
                .ok_or_else(|| Error::refused(config_path, "\"chat_template\" has no template named default"))?,
            _ if file.exists() => std::fs::read_to_string(&file).map_err(|source| Error::read(&file, source))?,
            _ => return Err(Error::refused(config_path, "\"chat_template\" is missing")),
        };
        let token = |name: &str| {
            let token = tokenizer_config.get(name);
            token
                .and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()))
                .unwrap_or_default()
                .to_owned()
        };
        Self::compile(&source, token("bos_token"), token("eos_token"))
            .map_err(|error| Error::refused(config_path, format!("the chat template does not compile: {error}")))
    }

    fn compile(source: &str, bos_token: String, eos_token: String) -> Result<Self, minijinja::Error> {
        let mut environment = Environment::new();
        environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        environment.set_fuel(Some(STEPS_MAX));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_python_json);
        environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        let family = Family::of_template(source);
        environment.add_template_owned("chat", without_training_marks(source))?;
        Ok(Self { environment, family, bos_token, eos_token, marks: None })
    }

    /// Keeps messages and tools from writing the marks that become this tokenizer's own tokens: they come out cut, and
    /// [`Tokenizer::encode`] takes the pieces.
    pub fn guard(&mut self, tokenizer: &Tokenizer) {
        let template = self.environment.get_template("chat").expect("the template was added when compiled");
        self.marks = Some(tokenizer.marks(template.source()));
    }

    /// The prompt for these messages and tools, both in OpenAI's shape, up to where the answer begins.
    ///
    /// # Errors
    /// The template refuses the conversation; the text is the template's.
    pub fn render(&self, messages: &[Json], tools: &[Json]) -> Result<String, String> {
        let mut messages: Vec<Json> = messages.iter().map(for_template).collect();
        let mut tools = Cow::Borrowed(tools);
        if let Some(marks) = &self.marks {
            messages.iter_mut().for_each(|message| marks.cut_message(message));
            tools = marks.cut_tools(&tools).into_owned().into();
        }
        let template = self.environment.get_template("chat").expect("the template was added when compiled");
        let tools = if tools.is_empty() { Value::from(()) } else { Value::from(Serde(tools.as_ref())) };
        template
            .render(context! {
                messages => Value::from(Serde(&messages)),
                tools,
                documents => Value::from(()),
                add_generation_prompt => true,
                bos_token => self.bos_token.as_str(),
                eos_token => self.eos_token.as_str(),
            })
            .map_err(|error| match error.kind() {
                ErrorKind::OutOfFuel => format!("the template takes more than {STEPS_MAX} steps"),
                _ => error.detail().map_or_else(|| error.to_string(), ToOwned::to_owned),
            })
    }
}

fn named_template(named: &[Json]) -> Option<String> {
    let default = named.iter().find(|entry| entry.get("name").and_then(Json::as_str) == Some("default"))?;
    Some(default.get("template")?.as_str()?.to_owned())
}

/// `{% generation %}` marks what a model is trained to say; for rendering it stands for nothing.
fn without_training_marks(source: &str) -> String {
    let mut parts = source.split("{%");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (tag, rest) = part.split_at(part.find("%}").unwrap_or(part.len()));
        let word = tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        plain.push_str("{%");
        match word {
            "generation" => plain.push_str(&tag.replace(word, "if true")),
            "endgeneration" => plain.push_str(&tag.replace(word, "endif")),
            _ => plain.push_str(tag),
        }
        plain.push_str(rest);
    }
    plain
}

/// Templates expect text for content, and objects where OpenAI's shape has a string of JSON.
fn for_template(message: &Json) -> Json {
    let mut message = message.clone();
    if let Some(parts) = message.get("content").and_then(Json::as_array) {
        let text: String = parts.iter().filter_map(|part| part.get("text")?.as_str()).collect();
        message["content"] = Json::String(text);
    }
    if let Some(calls) = message.get_mut("tool_calls").and_then(Json::as_array_mut) {
        for call in calls {
            if let Some(arguments) = call.pointer_mut("/function/arguments")
                && let Some(parsed) = arguments.as_str().and_then(|text| serde_json::from_str(text).ok())
            {
                *arguments = parsed;
            }
        }
    }
    message
}

#[allow(clippy::needless_pass_by_value, reason = "the signature of a template filter")]
fn to_python_json(value: Value, options: minijinja::value::Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Text is written as it is: the one other way, `ensure_ascii`, no template asks for.
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let fail = |error: serde_json::Error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut bytes = Vec::new();
    let spaces = " ".repeat(indent.unwrap_or(0).min(INDENT_MAX));
    let python = Python { indented: indent.map(|_| PrettyFormatter::with_indent(spaces.as_bytes())) };
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, python)).map_err(fail)?;
    Ok(Value::from_safe_string(String::from_utf8(bytes).expect("JSON is written as UTF-8")))
}

/// As Python's `json.dumps` writes: `", "` and `": "`, or an indent; and floats as its `repr` does.
#[derive(Default)]
struct Python<'a> {
    indented: Option<PrettyFormatter<'a>>,
}

impl Formatter for Python<'_> {
    fn write_f64<W: ?Sized + Write>(&mut self, writer: &mut W, value: f64) -> std::io::Result<()> {
        // Both languages take exponents for the same numbers; Python gives them a sign and two digits.
        let text = format!("{value:?}");
        match text.split_once('e') {
            None => writer.write_all(text.as_bytes()),
            Some((digits, exponent)) => {
                let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
                write!(writer, "{digits}e{sign}{exponent:0>2}")
            }
        }
    }

    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        match &mut self.indented {
            Some(indented) => indented.begin_array(writer),
            None => writer.write_all(b"["),
        }
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        match &mut self.indented {
            Some(indented) => indented.end_array(writer),
            None => writer.write_all(b"]"),
        }
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        match &mut self.indented {
            Some(indented) => indented.begin_array_value(writer, first),
            None if first => Ok(()),
            None => writer.write_all(b", "),
        }
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.indented.as_mut().map_or(Ok(()), |indented| indented.end_array_value(writer))
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        match &mut self.indented {
            Some(indented) => indented.begin_object(writer),
            None => writer.write_all(b"{"),
        }
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        match &mut self.indented {
            Some(indented) => indented.end_object(writer),
            None => writer.write_all(b"}"),
        }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        match &mut self.indented {
            Some(indented) => indented.begin_object_key(writer, first),
            None if first => Ok(()),
            None => writer.write_all(b", "),
        }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        self.indented.as_mut().map_or(Ok(()), |indented| indented.end_object_value(writer))
    }
}
