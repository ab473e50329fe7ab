//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use schemas::ExecutionId;
use schemas::api::Status;

/// LLM inference and agents as an event-streaming pipeline over NATS JetStream.
#[derive(Parser)]
#[command(name = "vlinders", version, about)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Start everything on this machine: a private nats-server and all roles in one process.
    Up(Up),
    /// Serve the edge: HTTP and gRPC.
    Gateway(Role),
    /// Serve the orchestrator.
    Orchestrator(Role),
    /// Serve inference.
    InferenceWorker(Role),
    /// Serve tools.
    ToolWorker(Role),
    /// Serve code analysis.
    AnalysisWorker(Role),
    /// Ask the model; the answer streams to stdout.
    Chat(Chat),
    /// Ask an agent; tokens and tool calls are shown as they happen.
    Agent(Agent),
    /// List the tools, or call one.
    Tools(Tools),
    /// Index the code of a workspace, so that it is found by meaning.
    Index(Index),
    /// Look at what is remembered across executions, or forget it.
    Memory(Memory),
    /// List the newest executions, or show one.
    Executions(Executions),
    /// Look at the tables of executions, or build them anew from the log.
    Projection(Projection),
    /// Fold the log of one execution and print its story.
    Replay(Replay),
    /// Prove the whole log: decide every decision of every execution again and compare byte for byte.
    Audit(Audit),
    /// Begin a new execution where another one stood after one of its messages.
    Fork(Fork),
    /// Let an execution wait: what is open finishes, nothing more is asked for.
    Pause(Pause),
    /// Let it go on.
    Resume(Resume),
    /// End it.
    Cancel(Cancel),
    /// Allow, edit or deny a call that waits for a person.
    Approve(Approve),
    /// Say more while it runs.
    Say(Say),
    /// Allow it more of something limited.
    Grant(Grant),
    /// Look at the messages that were given up, send them again, or remove them.
    DeadLetters(DeadLetters),
    /// Read an object: content of the log that is too large for a message.
    Object(Object),
    /// Look at the models, load, unload or switch them.
    Models(Models),
    /// Ask many chats at once and say how long the first token and the answer took, and where the time went.
    Bench(Bench),
    /// Say what is here, what is missing, and what to do about it.
    Doctor(Doctor),
    /// Show every setting with its origin, or check them all.
    Config(Config),
    /// Write a script that completes commands and options in a shell.
    Completions {
        /// The shell.
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Ask a process whether it is ready, and say so by the exit code: the probe of containers.
    Health(Health),
}

#[derive(Args)]
pub(crate) struct Up {
    /// Where the log, the secret and the private nats-server keep their data.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Where to serve HTTP; port 0 picks a free one.
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) http: Option<SocketAddr>,
    /// Where to serve gRPC: the port behind HTTP's when missing; port 0 picks a free one, `off` none.
    #[arg(long, value_name = "ADDR:PORT", value_parser = grpc_address)]
    pub(crate) grpc: Option<String>,
    /// A directory whose files tools may read, and which may be indexed; repeatable.
    #[arg(long, value_name = "DIR")]
    pub(crate) workspace: Vec<PathBuf>,
    /// A model (a directory with `config.json`, or a GGUF file), or a directory of models.
    #[arg(long, value_name = "PATH")]
    pub(crate) models: Option<PathBuf>,
    /// An embedding model (a directory with `config.json` or `modules.json`), or a directory of such.
    #[arg(long, value_name = "PATH")]
    pub(crate) embedding_models: Option<PathBuf>,
    /// A directory of models that may be loaded by name later (`vlinders models load`); repeatable. With it and without
    /// --models none is loaded at the start.
    #[arg(long, value_name = "DIR")]
    pub(crate) models_dir: Vec<PathBuf>,
    /// A directory of agent types, one TOML file each; taken up again whenever it changes.
    #[arg(long, value_name = "DIR")]
    pub(crate) agents: Option<PathBuf>,
    /// A directory of tools, one TOML file each; taken up again whenever it changes. `tools` in the data directory, if it
    /// is there.
    #[arg(long, value_name = "DIR")]
    pub(crate) tools: Option<PathBuf>,
    /// A configuration file (TOML).
    #[arg(long, value_name = "FILE", env = "VLINDERS_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Leave a role to processes of its own (`gateway`, `orchestrator`, `inference-worker`, `tool-worker`,
    /// `analysis-worker`); repeatable.
    #[arg(long, value_name = "ROLE", value_enum)]
    pub(crate) without: Vec<crate::roles::Role>,
    /// The nats-server program; searched on PATH when missing.
    #[arg(long, value_name = "FILE")]
    pub(crate) nats_server: Option<PathBuf>,
    /// Print one JSON line when ready, and log as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct Config {
    /// A configuration file (TOML).
    #[arg(long, value_name = "FILE", env = "VLINDERS_CONFIG", global = true)]
    pub(crate) config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: ConfigCommand,
}

#[derive(Subcommand)]
pub(crate) enum ConfigCommand {
    /// Show every setting: its value, and where it comes from unless it is a default. Secrets are not shown.
    Show {
        /// Only this section: nats, telemetry, gateway, orchestrator, inference, tools or analysis.
        section: Option<String>,
    },
    /// Check file and environment as the services would when they start; exit code 2 and the place when something is wrong.
    Check,
}

#[derive(Args)]
pub(crate) struct Role {
    /// The NATS servers, separated by commas.
    #[arg(long, value_name = "URL")]
    pub(crate) nats: Option<String>,
    /// A configuration file (TOML).
    #[arg(long, value_name = "FILE", env = "VLINDERS_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// gateway: where to serve HTTP; port 0 picks a free one.
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) http: Option<SocketAddr>,
    /// gateway: where to serve gRPC: the port behind HTTP's when missing; port 0 picks a free one, `off` none.
    #[arg(long, value_name = "ADDR:PORT", value_parser = grpc_address)]
    pub(crate) grpc: Option<String>,
    /// tool-worker, analysis-worker: a directory whose files tools may read, and which may be indexed; repeatable.
    #[arg(long, value_name = "DIR")]
    pub(crate) workspace: Vec<PathBuf>,
    /// inference-worker: a model (a directory with `config.json`, or a GGUF file), or a directory of models.
    #[arg(long, value_name = "PATH")]
    pub(crate) models: Option<PathBuf>,
    /// inference-worker: an embedding model (a directory with `config.json` or `modules.json`), or a directory of such.
    #[arg(long, value_name = "PATH")]
    pub(crate) embedding_models: Option<PathBuf>,
    /// inference-worker: a directory of models that may be loaded by name later (`vlinders models load`); repeatable. With
    /// it and without --models none is loaded at the start.
    #[arg(long, value_name = "DIR")]
    pub(crate) models_dir: Vec<PathBuf>,
    /// orchestrator: a directory of agent types, one TOML file each; taken up again whenever it changes.
    #[arg(long, value_name = "DIR")]
    pub(crate) agents: Option<PathBuf>,
    /// tool-worker: a directory of tools, one TOML file each; taken up again whenever it changes.
    #[arg(long, value_name = "DIR")]
    pub(crate) tools: Option<PathBuf>,
    /// Print one JSON line when ready, and log as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

fn grpc_address(text: &str) -> Result<String, String> {
    let is_address = text == "off" || text.parse::<SocketAddr>().is_ok();
    is_address.then(|| text.to_owned()).ok_or_else(|| "not an address such as 127.0.0.1:8081, nor `off`".to_owned())
}

/// Where a running system is found.
#[derive(Args, Clone)]
pub(crate) struct Target {
    /// The data directory of a running `vlinders up`, from which URL and secret are read.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// The gateway, instead of the one of `vlinders up`.
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// Certificates (PEM) that count beside those of this system, where the gateway's URL is https.
    #[arg(long, value_name = "FILE", env = "VLINDERS_CA_FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// The NATS servers, instead of the one of `vlinders up`.
    #[arg(long, value_name = "URL")]
    pub(crate) nats: Option<String>,
}

#[derive(Args)]
pub(crate) struct Chat {
    /// What to say.
    pub(crate) message: String,
    /// The model; the first loaded one when missing.
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// Tokens to generate at most.
    #[arg(long)]
    pub(crate) max_tokens: Option<u32>,
    /// Continue the conversation of this execution.
    #[arg(long, value_name = "EXECUTION")]
    pub(crate) conversation: Option<ExecutionId>,
    /// Print the events as JSON lines.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Args)]
pub(crate) struct Agent {
    /// What the agent should do.
    pub(crate) instruction: String,
    /// The agent type.
    #[arg(long, default_value = "coder")]
    pub(crate) agent_type: String,
    /// The workspace it works in; a path under an allowed root.
    #[arg(long)]
    pub(crate) workspace: Option<String>,
    /// The model; the agent type's choice when missing.
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// A tool whose calls wait for `vlinders approve`; repeatable.
    #[arg(long, value_name = "TOOL")]
    pub(crate) approve: Vec<String>,
    /// Print the events as JSON lines.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Args)]
pub(crate) struct Tools {
    #[command(subcommand)]
    pub(crate) what: ToolsWhat,
}

#[derive(Subcommand)]
pub(crate) enum ToolsWhat {
    /// List them: what each does, what it reaches, and why it cannot be used here, if so.
    Ls(ListTools),
    /// Call one.
    Run(RunTool),
}

#[derive(Args)]
pub(crate) struct ListTools {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Args)]
pub(crate) struct RunTool {
    /// The tool.
    pub(crate) name: String,
    /// Its arguments, a JSON object.
    #[arg(long, value_name = "JSON", default_value = "{}")]
    pub(crate) arguments: String,
    /// The workspace it works in; a path under an allowed root.
    #[arg(long, value_name = "DIR")]
    pub(crate) workspace: Option<String>,
    /// On whose behalf.
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Carry it out, even if its result is known.
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Index {
    #[command(subcommand)]
    pub(crate) what: Option<IndexWhat>,
    /// The workspace; a path under an allowed root.
    #[arg(required = true, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
    /// A file or directory below it; repeatable. All of it when none is named.
    #[arg(long, value_name = "PATH")]
    pub(crate) path: Vec<String>,
    /// Read and embed again what has not changed, too: after another embedding model was chosen.
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Go on, and index every file as soon as it changes.
    #[arg(long)]
    pub(crate) watch: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Subcommand)]
pub(crate) enum IndexWhat {
    /// List the workspaces that are indexed.
    Ls(ListIndexes),
}

#[derive(Args)]
pub(crate) struct ListIndexes {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Args)]
pub(crate) struct Memory {
    #[command(subcommand)]
    pub(crate) what: MemoryWhat,
}

#[derive(Subcommand)]
pub(crate) enum MemoryWhat {
    /// List what is remembered, newest first.
    Ls(ListMemory),
    /// Forget facts.
    Rm(ForgetMemory),
}

#[derive(Args)]
pub(crate) struct ListMemory {
    /// Only facts of this user.
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Only facts of this workspace.
    #[arg(long, value_name = "DIR")]
    pub(crate) workspace: Option<String>,
    /// How many to list.
    #[arg(long, default_value_t = 100)]
    pub(crate) limit: u32,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Args)]
pub(crate) struct ForgetMemory {
    /// Ids of facts, as `vlinders memory ls` shows them.
    #[arg(required = true, value_name = "ID")]
    pub(crate) ids: Vec<String>,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Executions {
    #[command(subcommand)]
    pub(crate) what: Option<ExecutionsWhat>,
    /// Show this one in a line.
    pub(crate) execution: Option<ExecutionId>,
    #[command(flatten)]
    pub(crate) list: List,
}

#[derive(Subcommand)]
pub(crate) enum ExecutionsWhat {
    /// List the newest executions.
    Ls(List),
    /// Show one as it stands: where it is, what is open, what its model would read.
    Show(Show),
}

#[derive(Args)]
pub(crate) struct List {
    /// How many to list.
    #[arg(long, default_value_t = 20, value_parser = clap::builder::RangedU64ValueParser::<u32>::new().range(1..))]
    pub(crate) limit: u32,
    /// Only those that stand there: submitted, running, paused, completed, rejected, failed, cancelled, timed_out or
    /// budget_exhausted; several, separated by commas.
    #[arg(long, value_name = "STATUS", value_delimiter = ',', value_parser = status)]
    pub(crate) status: Vec<Status>,
    /// Only those of this agent type.
    #[arg(long, value_name = "NAME")]
    pub(crate) agent_type: Option<String>,
    /// Only those of this user.
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

fn status(name: &str) -> Result<Status, String> {
    serde_json::from_value(serde_json::Value::from(name)).map_err(|_| "there is no such status".to_owned())
}

#[derive(Args)]
pub(crate) struct Projection {
    #[command(subcommand)]
    pub(crate) what: ProjectionWhat,
}

#[derive(Subcommand)]
pub(crate) enum ProjectionWhat {
    /// Say where the tables are, and how far they hold the log.
    Status(AskProjection),
    /// Empty the tables and build them anew from the log; questions are answered from what is there meanwhile.
    Rebuild(AskProjection),
}

#[derive(Args)]
pub(crate) struct AskProjection {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Args)]
pub(crate) struct Show {
    /// The execution.
    pub(crate) execution: ExecutionId,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Args)]
pub(crate) struct Replay {
    /// The execution.
    pub(crate) execution: ExecutionId,
    /// Show the state after this message instead of the story; messages are numbered from 0.
    #[arg(long, value_name = "N", conflicts_with_all = ["verify", "machine", "follow"])]
    pub(crate) at: Option<usize>,
    /// Decide every decision again and compare byte for byte.
    #[arg(long)]
    pub(crate) verify: bool,
    /// Decide every decision again by the rules of another version of the state machine (a number, or `next`), and
    /// compare what was decided.
    #[arg(long, value_name = "VERSION", conflicts_with = "verify")]
    pub(crate) machine: Option<String>,
    /// Go on with what is stored while we look, until the execution ends.
    #[arg(long)]
    pub(crate) follow: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

/// Whom something is told, and by whom.
#[derive(Args)]
pub(crate) struct Tell {
    /// The execution.
    pub(crate) execution: ExecutionId,
    /// Who says it.
    #[arg(long, value_name = "NAME", default_value = "command-line")]
    pub(crate) by: String,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Args)]
pub(crate) struct Pause {
    #[command(flatten)]
    pub(crate) tell: Tell,
    /// Why.
    #[arg(long)]
    pub(crate) reason: Option<String>,
}

#[derive(Args)]
pub(crate) struct Resume {
    #[command(flatten)]
    pub(crate) tell: Tell,
}

#[derive(Args)]
pub(crate) struct Cancel {
    #[command(flatten)]
    pub(crate) tell: Tell,
    /// Let what is open finish.
    #[arg(long)]
    pub(crate) graceful: bool,
    /// Why.
    #[arg(long)]
    pub(crate) reason: Option<String>,
}

#[derive(Args)]
pub(crate) struct Approve {
    #[command(flatten)]
    pub(crate) tell: Tell,
    /// The call that waits, for example 1-tool-0.
    pub(crate) effect: String,
    /// Do not allow it.
    #[arg(long, conflicts_with = "edit")]
    pub(crate) deny: bool,
    /// Allow it with these arguments instead.
    #[arg(long, value_name = "JSON")]
    pub(crate) edit: Option<String>,
    /// Why; the model reads it with a denial.
    #[arg(long)]
    pub(crate) reason: Option<String>,
}

#[derive(Args)]
pub(crate) struct Say {
    #[command(flatten)]
    pub(crate) tell: Tell,
    /// What to say; the next inference reads it.
    pub(crate) text: String,
    /// Names the message, so that saying it again says it once.
    #[arg(long)]
    pub(crate) id: Option<String>,
}

#[derive(Args)]
pub(crate) struct Grant {
    #[command(flatten)]
    pub(crate) tell: Tell,
    /// `iterations`, `tokens`, `tokens_in`, `tokens_out`, `tool_calls` or `children`.
    pub(crate) dimension: String,
    /// How much more.
    pub(crate) amount: u64,
}

#[derive(Args)]
pub(crate) struct Fork {
    #[command(flatten)]
    pub(crate) tell: Tell,
    /// The message after which the new execution begins; messages are numbered from 0.
    #[arg(long, value_name = "N")]
    pub(crate) at: u64,
    /// Another model.
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// What is said next.
    #[arg(long, value_name = "TEXT")]
    pub(crate) message: Option<String>,
}

#[derive(Args)]
pub(crate) struct Audit {
    /// Only executions with messages since this moment (RFC 3339), or so long before now (`90s`, `15m`, `2h`, `7d`).
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Args)]
pub(crate) struct Object {
    #[command(subcommand)]
    pub(crate) what: ObjectWhat,
}

#[derive(Subcommand)]
pub(crate) enum ObjectWhat {
    /// Write its bytes to stdout, or to a file.
    Get(GetObject),
}

#[derive(Args)]
pub(crate) struct GetObject {
    /// The SHA-256 of its bytes, as references and cut results name it.
    pub(crate) sha256: String,
    /// Where to write the bytes.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Args)]
pub(crate) struct DeadLetters {
    #[command(subcommand)]
    pub(crate) what: DeadLettersWhat,
}

#[derive(Subcommand)]
pub(crate) enum DeadLettersWhat {
    /// List those that wait, oldest first.
    Ls(ListLetters),
    /// Show one with its message.
    Show(OneLetter),
    /// Publish its message again. The letter is settled once the server has it.
    Redrive(RedriveLetter),
    /// Remove it: the copy of the message goes.
    Rm(RemoveLetter),
}

#[derive(Args)]
pub(crate) struct ListLetters {
    /// How many to list.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) limit: u32,
    /// Only those behind this position.
    #[arg(long, value_name = "POSITION", default_value_t = 0)]
    pub(crate) after: u64,
    /// Also those that were redriven or removed.
    #[arg(long)]
    pub(crate) all: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Args)]
pub(crate) struct OneLetter {
    /// The letter, as `ls` names it.
    pub(crate) id: String,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Args)]
pub(crate) struct RedriveLetter {
    #[command(flatten)]
    pub(crate) one: OneLetter,
    /// Also when it would be given up again.
    #[arg(long)]
    pub(crate) force: bool,
    /// Who says so.
    #[arg(long, value_name = "NAME", default_value = "command-line")]
    pub(crate) by: String,
}

#[derive(Args)]
pub(crate) struct RemoveLetter {
    #[command(flatten)]
    pub(crate) one: OneLetter,
    /// Who says so.
    #[arg(long, value_name = "NAME", default_value = "command-line")]
    pub(crate) by: String,
}

#[derive(Args)]
pub(crate) struct Models {
    #[command(subcommand)]
    pub(crate) what: ModelsWhat,
}

#[derive(Subcommand)]
pub(crate) enum ModelsWhat {
    /// List what each worker has loaded and could load, and the memory it has for models.
    Ls(ListModels),
    /// Load a model that lies in a worker's directories.
    Load(LoadModel),
    /// Let a model finish what waits for it, then give its memory back.
    Unload(UnloadModel),
    /// Load one model, then unload another; no request fails meanwhile.
    Switch(SwitchModels),
}

#[derive(Args)]
pub(crate) struct ListModels {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Args)]
pub(crate) struct ChangeOptions {
    /// The worker that should do it. Otherwise one with room takes a load, and all that have the model do an unload.
    #[arg(long, value_name = "ID")]
    pub(crate) worker: Option<String>,
    /// Return once it has begun.
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Args)]
pub(crate) struct LoadModel {
    /// The model's name, as `ls` shows it.
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) options: ChangeOptions,
}

#[derive(Args)]
pub(crate) struct UnloadModel {
    /// The model's name.
    pub(crate) model: String,
    /// Finish only what is in hand; what is queued waits for another worker.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) options: ChangeOptions,
}

#[derive(Args)]
pub(crate) struct SwitchModels {
    /// The model that goes.
    pub(crate) from: String,
    /// The model that comes.
    pub(crate) to: String,
    /// Of the one that goes finish only what is in hand.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) options: ChangeOptions,
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Bench {
    #[command(subcommand)]
    pub(crate) of: Option<BenchOf>,
    /// Chats to ask.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) requests: u32,
    /// Clients that ask, one chat after the other.
    #[arg(long, value_name = "C", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub(crate) concurrent: u32,
    /// Tokens to generate at most, in each answer.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: u32,
    /// The model; the first loaded one when missing.
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Subcommand)]
pub(crate) enum BenchOf {
    /// Measure the scheduler alone, and a model behind its engine with nothing around it; no server is needed.
    Engine(BenchEngine),
}

#[derive(Args)]
pub(crate) struct BenchEngine {
    /// A model (a directory with `config.json`, or a GGUF file); the one that comes with the program when missing.
    #[arg(long, value_name = "PATH")]
    pub(crate) models: Option<PathBuf>,
    /// What to ask of the engine: requests at once, tokens in and tokens out of each; repeatable.
    #[arg(long, value_name = "N,IN,OUT", value_parser = load, default_values = ["1,16,128", "1,512,1", "8,128,64", "32,128,64"])]
    pub(crate) load: Vec<[usize; 3]>,
    /// Threads that compute; one for each CPU when missing.
    #[arg(long, value_name = "N", value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1_024))]
    pub(crate) threads: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

fn load(text: &str) -> Result<[usize; 3], String> {
    let numbers: Vec<usize> = text.split(',').filter_map(|number| number.trim().parse().ok()).collect();
    match <[usize; 3]>::try_from(numbers) {
        Ok(load) if text.split(',').count() == 3 && load.iter().all(|number| (1..=100_000).contains(number)) => {
            Ok(load)
        }
        _ => Err("expected three numbers from 1 to 100000: requests at once, tokens in, tokens out".to_owned()),
    }
}

#[derive(Args)]
pub(crate) struct Doctor {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// A configuration file (TOML): its sandbox is tried, and its remote models are looked at.
    #[arg(long, value_name = "FILE", env = "VLINDERS_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) target: Target,
}

#[derive(Args)]
pub(crate) struct Health {
    /// Whom to ask; the process whose `telemetry.metrics` the configuration names when missing.
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// Certificates (PEM) that count beside those of this system, where the URL is https.
    #[arg(long, value_name = "FILE", env = "VLINDERS_CA_FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Ask only whether it answers at all.
    #[arg(long)]
    pub(crate) live: bool,
    /// A configuration file (TOML).
    #[arg(long, value_name = "FILE", env = "VLINDERS_CONFIG")]
    pub(crate) config: Option<PathBuf>,
}
