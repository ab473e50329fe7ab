//! The bus as a document: AsyncAPI 3.0, made from the subjects, streams and types of this crate, so that it says what they
//! say. `cargo run -p schemas --example asyncapi` writes it into `asyncapi.json`; a test fails where the two differ.
//!
//! It describes the bus to a plain client: operations are what such a client may do. The other channels are the services'
//! own; they are there for those who watch, and nobody else should publish on them.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::api::ExecutionEnd;
use crate::ids::{EffectId, ExecutionId, PARTITIONS};
use crate::rpc::Reply;
use crate::stream::{self, Retention, Storage, StreamDefinition};
use crate::{code, dead_letter, decision, fact, job, memory, models, presence, rpc, subject, token, vectors};

/// Subjects are shown with this execution, effect and so on in them; then each gives way to its parameter.
const EXECUTION: &str = "0192f0c1-7a3b-7c4d-8e5f-001122334455";
const SAMPLES: [(&str, &str); 8] = [
    (EXECUTION, "execution"),
    ("1-infer-0", "effect"),
    ("a-pool", "pool"),
    ("a-tool", "tool"),
    ("a-kind", "kind"),
    ("a-worker", "worker"),
    ("a-letter", "letter"),
    ("a-store", "store"),
];

/// The document.
///
/// # Panics
/// Never: the sample ids are ids.
#[must_use]
pub fn document() -> Value {
    let exec: ExecutionId = EXECUTION.parse().expect("an id");
    let effect: EffectId = "1-infer-0".parse().expect("an effect");
    let mut bus = Document::new();
    bus.log(exec);
    bus.tokens(exec, &effect);
    bus.jobs(exec);
    bus.signs_of_life(exec);
    bus.letters();
    bus.questions();
    bus.finish()
}

const INFO: &str = "The bus of Vlinders-Server over NATS JetStream. What happened is in the log: facts, which anybody concerned \
     appends, and decisions, which only orchestrators append. Jobs are derived from the log, tokens stream beside it.\n\n\
     A plain client publishes one durable message to `vl.v1.submit.{execution}`, reads tokens on \
     `vl.v1.tok.{execution}.{effect}`, and the end on the reply subject that its request names, or on \
     `vl.v1.seen.{partition}.{execution}.{kind}`.\n\nMessages are MessagePack (named maps); a client's facts, and what comes \
     on reply subjects, are JSON. Never act on core messages of `vl.v1.log.>`: some of them the log refuses; what it took is \
     republished under `vl.v1.seen.>`.";

struct Document {
    schemas: SchemaGenerator,
    messages: Map<String, Value>,
    channels: Map<String, Value>,
    operations: Map<String, Value>,
    streams: Vec<StreamDefinition>,
}

impl Document {
    fn new() -> Self {
        let settings = SchemaSettings::draft07().with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        });
        Self {
            schemas: settings.into_generator(),
            messages: Map::new(),
            channels: Map::new(),
            operations: Map::new(),
            streams: stream::streams(),
        }
    }

    fn log(&mut self, exec: ExecutionId) {
        let facts =
            self.message::<fact::Fact>("Fact", "Something that happened outside the orchestrator.", Form::Either);
        let record =
            self.message::<decision::Record>("Decision", "What the orchestrator decided, hash-chained.", Form::Ours);
        let end = self.message::<ExecutionEnd>("ExecutionEnd", "The end of an execution.", Form::Json);
        let submit = "Where a plain client publishes the request of a new execution: a fact `execution.requested`, with the \
             header `Nats-Msg-Id: {execution}/requested`, so that it is stored once. The server's account maps it to \
             the log (`mappings` in its configuration; `vlinders up` brings it); where it does not, publish to the \
             address of `facts`. The server's acknowledgement means that the request is safe.";
        self.channel("submit", &subject::submit(exec), submit, &[&facts]);
        let answers = "The subject that a request names as its `reply`.";
        self.channel_without_address("answers", answers, &[&end]);
        self.operations.insert(
            "submitExecution".into(),
            json!({
                "action": "send",
                "channel": {"$ref": "#/channels/submit"},
                "summary": "Ask for something. It is carried out whatever becomes of the client.",
                "messages": [{"$ref": "#/channels/submit/messages/Fact"}],
                "reply": {
                    "address": {"location": "$message.payload#/body/data/reply"},
                    "channel": {"$ref": "#/channels/answers"},
                    "messages": [{"$ref": "#/channels/answers/messages/ExecutionEnd"}],
                },
            }),
        );
        self.channel("facts", &subject::fact(exec), "The facts of one execution, in the log.", &[&facts]);
        let decisions = "The decisions of one execution, in the log. Only orchestrators append here, each on condition that \
             nobody wrote in between.";
        self.channel("decisions", &subject::decision(exec), decisions, &[&record]);
        let seen = "What the log took, republished after storing, with the header `Nats-Sequence`; `kind` is `fact` or \
             `decision`. It may be lost: the log is right.";
        let address = subject::seen(exec, "a-kind");
        self.channel("seen", &address, seen, &[&facts, &record]);
        self.receive("watchExecution", "seen", "Hear what happens in an execution, and of its end.");
    }

    fn tokens(&mut self, exec: ExecutionId, effect: &EffectId) {
        let frame = self.message::<token::Frame>(
            "Frame",
            "A few tokens, the end of an attempt, or a new beginning.",
            Form::Ours,
        );
        let text = "Tokens of one inference, as they are generated, and for some minutes after.";
        self.channel("tokens", &subject::tokens(exec, effect), text, &[&frame]);
        self.receive("readTokens", "tokens", "Read along. Frames may be lost or repeated; the log is right.");
    }

    fn jobs(&mut self, exec: ExecutionId) {
        let inference = self.message::<job::InferenceJob>("InferenceJob", "A prompt to continue.", Form::Ours);
        let tool = self.message::<job::ToolJob>("ToolJob", "A call to carry out.", Form::Ours);
        let analysis = self.message::<job::AnalysisJob>("AnalysisJob", "A part of a workspace to index.", Form::Ours);
        let text =
            "Work queue: orchestrators publish, workers pull. Disposable: what is lost is made again from the log.";
        self.channel("inferenceJobs", &subject::inference_job("a-pool", exec), text, &[&inference]);
        self.channel("toolJobs", &subject::tool_job("a-tool", exec), text, &[&tool]);
        self.channel("analysisJobs", &subject::analysis_job("a-kind", exec), text, &[&analysis]);
    }

    fn signs_of_life(&mut self, exec: ExecutionId) {
        let hold = self.message::<presence::Hold>("Hold", "A job that a worker has in hand.", Form::Ours);
        self.channel("claims", &subject::claim(exec), "Workers say here what they took.", &[&hold]);
        let cancelled = self.message::<()>("Cancelled", "Says no more than its subject.", Form::Ours);
        let text = "Fast path of a cancel; the fact `cancel.requested` in the log is what counts.";
        self.channel("cancels", &subject::cancel(exec), text, &[&cancelled]);
        let alive = "A sign of life: a worker answers with what it holds, or nobody does.";
        self.question::<(), presence::Holds>("worker", &subject::worker("a-worker"), alive);
    }

    fn letters(&mut self) {
        let letter = self.message::<dead_letter::DeadLetter>(
            "DeadLetter",
            "A copy of a message that was given up, and why.",
            Form::Ours,
        );
        self.channel(
            "deadLetters",
            &subject::dead_letter("a-letter"),
            "Dead letters that wait for somebody.",
            &[&letter],
        );
        self.channel(
            "settledLetters",
            &subject::settled_letter("a-letter"),
            "Dead letters that were settled.",
            &[&letter],
        );
    }

    fn questions(&mut self) {
        self.question::<rpc::Complete, rpc::Completion>(
            "submission",
            subject::RPC_SUBMISSION,
            "What a plain client's request comes to; gateways answer.",
        );
        self.question::<rpc::Embed, Reply<rpc::Embeddings>>("embed", subject::RPC_EMBED, "Vectors of texts.");
        self.question::<(), Reply<Vec<rpc::Model>>>("models", subject::RPC_MODELS, "Loaded models.");
        let change = "Load, unload or switch models; whoever is asked does it or finds the workers that do.";
        self.question::<models::ChangeModels, Reply<Vec<models::Operation>>>(
            "changeModels",
            subject::RPC_MODELS_CHANGE,
            change,
        );
        let own = subject::rpc_models_change("a-worker");
        self.question::<models::ChangeModels, Reply<Vec<models::Operation>>>(
            "changeWorkersModels",
            &own,
            "The same, of one worker.",
        );
        self.question::<(), Vec<rpc::Tool>>("tools", subject::RPC_TOOLS, "Registered tools.");
        let workspace = "Whether tools may work in a workspace.";
        self.question::<rpc::FindWorkspace, Reply<rpc::Workspace>>("workspace", subject::RPC_WORKSPACE, workspace);
        let fork = "What an execution's model would read after one of its messages.";
        self.question::<rpc::Fork, Reply<rpc::Forked>>("fork", subject::RPC_FORK, fork);
        self.question::<rpc::Analyse, Reply<rpc::Outline>>(
            "analyse",
            subject::RPC_ANALYSIS,
            "Symbols and imports of a file.",
        );
        self.question::<code::SearchCode, Reply<code::Found>>(
            "search",
            subject::RPC_SEARCH,
            "Pieces of an indexed workspace.",
        );
        let look = "Outline and dependencies of an indexed workspace, as text.";
        self.question::<code::AskCode, Reply<String>>("code", subject::RPC_CODE, look);
        self.question::<(), Reply<Vec<code::Indexed>>>("indexes", subject::RPC_INDEXES, "Indexed workspaces.");
        self.question::<memory::Ask, Reply<memory::Told>>("memory", subject::RPC_MEMORY, "Facts that are remembered.");
        let kept = "Vectors of a store that one of several workers keeps, for all of them.";
        self.question::<vectors::Question, Reply<vectors::Answer>>("vectors", &subject::rpc_vectors("a-store"), kept);
    }

    /// A message of components; returns its name.
    fn message<T: JsonSchema>(&mut self, name: &str, summary: &str, form: Form) -> String {
        let payload = self.schemas.subschema_for::<T>();
        let mut message = json!({"name": name, "summary": summary, "payload": payload});
        message["contentType"] = match form {
            Form::Ours => json!("application/msgpack"),
            Form::Json => json!("application/json"),
            Form::Either => {
                message["description"] = json!("Services write MessagePack; a plain client may write JSON.");
                json!("application/msgpack")
            }
        };
        self.messages.insert(name.to_owned(), message);
        name.to_owned()
    }

    fn channel(&mut self, key: &str, address: &str, description: &str, messages: &[&String]) {
        let mut channel = self.described(description, messages);
        let (address, names) = address_of(address);
        channel["address"] = json!(address);
        if !names.is_empty() {
            channel["parameters"] = names.into_iter().map(|name| (name.to_owned(), parameter(name))).collect();
        }
        if let Some(stream) = self.streams.iter().find(|stream| stores(stream, &address)) {
            channel["x-stream"] = shown(stream);
        }
        self.channels.insert(key.to_owned(), channel);
    }

    /// A channel whose address whoever asks chooses.
    fn channel_without_address(&mut self, key: &str, description: &str, messages: &[&String]) {
        let mut channel = self.described(description, messages);
        channel["address"] = Value::Null;
        self.channels.insert(key.to_owned(), channel);
    }

    fn described(&self, description: &str, messages: &[&String]) -> Value {
        let of = |name: &&String| ((*name).clone(), json!({"$ref": format!("#/components/messages/{name}")}));
        let messages: Map<String, Value> = messages.iter().map(of).collect();
        json!({"description": description, "messages": messages})
    }

    fn receive(&mut self, key: &str, channel: &str, summary: &str) {
        let channel = json!({"$ref": format!("#/channels/{channel}")});
        self.operations.insert(key.to_owned(), json!({"action": "receive", "channel": channel, "summary": summary}));
    }

    /// A NATS request, answered in a queue group.
    fn question<Q: JsonSchema, A: JsonSchema>(&mut self, key: &str, address: &str, description: &str) {
        let name = capital(key);
        let question = self.message::<Q>(&format!("{name}Question"), "The question.", Form::Ours);
        let answer = self.message::<A>(&format!("{name}Answer"), "The answer.", Form::Ours);
        let reply = format!("{key}Answers");
        self.channel(key, address, description, &[&question]);
        self.channel_without_address(&reply, "The inbox of whoever asks.", &[&answer]);
        self.operations.insert(
            format!("ask{name}"),
            json!({
                "action": "send",
                "channel": {"$ref": format!("#/channels/{key}")},
                "summary": description,
                "reply": {"channel": {"$ref": format!("#/channels/{reply}")}},
            }),
        );
    }

    fn finish(mut self) -> Value {
        let schemas = self.schemas.take_definitions(true);
        json!({
            "asyncapi": "3.0.0",
            "info": {
                "title": "Vlinders-Server: the bus",
                "version": "1.0.0",
                "description": INFO,
                "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
            },
            "defaultContentType": "application/msgpack",
            "servers": {
                "nats": {
                    "host": "127.0.0.1:4222",
                    "protocol": "nats",
                    "description": "nats-server from 2.12 on, with JetStream. `vlinders up` starts one and says where.",
                },
            },
            "channels": self.channels,
            "operations": self.operations,
            "components": {"messages": self.messages, "schemas": schemas},
        })
    }
}

/// How a message is written.
#[derive(Clone, Copy)]
enum Form {
    /// MessagePack.
    Ours,
    /// JSON.
    Json,
    /// Either of them.
    Either,
}

/// The address with parameters in place of samples, and their names.
fn address_of(subject: &str) -> (String, Vec<&'static str>) {
    let exec: ExecutionId = EXECUTION.parse().expect("an id");
    let partition = exec.partition().to_string();
    let mut names = Vec::new();
    let tokens = subject.split('.').map(|token| {
        let sample = SAMPLES.iter().find(|(sample, _)| *sample == token).map(|(_, name)| *name);
        match sample.or_else(|| (token == partition).then_some("partition")) {
            Some(name) => {
                names.push(name);
                format!("{{{name}}}")
            }
            None => token.to_owned(),
        }
    });
    (tokens.collect::<Vec<_>>().join("."), names)
}

fn parameter(name: &str) -> Value {
    match name {
        "partition" => json!({
            "description": "The part of the log that holds the execution: FNV-1a (32 bit) of its id's bytes, modulo 16; NATS's `partition(16, id)`.",
            "enum": (0..PARTITIONS).map(|n| n.to_string()).collect::<Vec<_>>(),
        }),
        "execution" => {
            json!({"description": "The execution's id: a UUID in its canonical form, best of version 7.", "examples": [EXECUTION]})
        }
        "effect" => {
            json!({"description": "What was asked for: turn, kind and ordinal.", "examples": ["1-infer-0", "2-tool-1"]})
        }
        "kind" => {
            json!({"description": "Of what is republished: `fact` or `decision`. Of an analysis job: `plan`, `files` or `finish`."})
        }
        "pool" => json!({"description": "The model's name as a subject token."}),
        other => json!({"description": format!("The {other}'s name or id as a subject token.")}),
    }
}

/// Whether a stream stores what is published there.
fn stores(stream: &StreamDefinition, address: &str) -> bool {
    let exec: ExecutionId = EXECUTION.parse().expect("an id");
    let address = address.replace("{partition}", &exec.partition().to_string());
    stream.subjects.iter().any(|pattern| {
        let (mut pattern, mut tokens) = (pattern.split('.'), address.split('.'));
        loop {
            match (pattern.next(), tokens.next()) {
                (Some(">"), Some(_)) | (None, None) => return true,
                (Some(wanted), Some(token)) if wanted == "*" || wanted == token => {}
                _ => return false,
            }
        }
    })
}

fn shown(stream: &StreamDefinition) -> Value {
    let name = if stream.name.starts_with("VL_LOG_") { "VL_LOG_{partition}" } else { &stream.name };
    json!({
        "name": name,
        "storage": match stream.storage { Storage::File => "file", Storage::Memory => "memory" },
        "retention": match stream.retention { Retention::Limits => "limits", Retention::WorkQueue => "workqueue" },
        "immutable": stream.immutable,
        "max_age_s": stream.max_age.map(|age| age.as_secs()),
        "max_message_bytes": stream.max_message_bytes,
        "duplicate_window_s": stream.duplicate_window.as_secs_f64(),
    })
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}
