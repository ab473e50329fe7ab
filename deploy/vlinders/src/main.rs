//! The one binary: parses the command line, starts what was asked for, and turns the end into an exit code.
//!
//! Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 verification failed.

mod audit;
mod bench;
mod cli;
mod client;
mod configuration;
mod control;
mod dead_letters;
mod doctor;
mod endpoint;
mod executions;
mod gateway_client;
mod health;
mod index;
mod memory;
mod models;
mod nats;
mod object;
mod projection;
mod replay;
mod roles;
mod settings;
mod sse;
mod state;
mod tools;
mod up;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use cli::{Cli, Command};

fn main() -> ExitCode {
    // The runner inside the sandbox must stay one thread, so it starts before anything else does.
    if std::env::args().nth(1).as_deref() == Some("tool-runner") {
        return tool_worker::runner_main();
    }
    let cli = Cli::parse();
    raise_open_files();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("vlinders: start the async runtime: {error}");
            return ExitCode::from(1);
        }
    };
    match runtime.block_on(run(cli)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("vlinders: {error:#}");
            ExitCode::from(if error.is::<settings::Usage>() { 2 } else { 1 })
        }
    }
}

/// Systems start programs with a limit of 1,024 open files, and let those raise it that need more: every open request and
/// every client of the private nats-server is one.
fn raise_open_files() {
    let limits = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limits.maximum, ..limits }) {
        eprintln!("vlinders: the limit of open files stays as it is: {error}");
    }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Up(options) => Box::pin(up::run(options)).await,
        Command::Gateway(options) => Box::pin(roles::run(roles::Role::Gateway, options)).await,
        Command::Orchestrator(options) => Box::pin(roles::run(roles::Role::Orchestrator, options)).await,
        Command::InferenceWorker(options) => Box::pin(roles::run(roles::Role::Inference, options)).await,
        Command::ToolWorker(options) => Box::pin(roles::run(roles::Role::Tools, options)).await,
        Command::AnalysisWorker(options) => Box::pin(roles::run(roles::Role::Analysis, options)).await,
        Command::Chat(options) => client::chat(options).await,
        Command::Agent(options) => client::agent(options).await,
        Command::Tools(options) => tools::run(options).await,
        Command::Index(options) => index::run(options).await,
        Command::Memory(options) => memory::run(options).await,
        Command::Executions(options) => executions::run(options).await,
        Command::Projection(options) => projection::run(options).await,
        Command::Replay(options) => replay::replay(options).await,
        Command::Audit(options) => audit::run(options).await,
        Command::Fork(options) => control::fork(options).await,
        Command::Pause(options) => control::pause(options).await,
        Command::Resume(options) => control::resume(options).await,
        Command::Cancel(options) => control::cancel(options).await,
        Command::Approve(options) => control::approve(options).await,
        Command::Say(options) => control::say(options).await,
        Command::Grant(options) => control::grant(options).await,
        Command::DeadLetters(options) => dead_letters::run(options).await,
        Command::Object(options) => object::run(options).await,
        Command::Models(options) => models::run(options).await,
        Command::Bench(options) => bench::run(options).await,
        Command::Doctor(options) => doctor::run(options).await,
        Command::Config(options) => configuration::run(&options),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "vlinders", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Health(options) => health::run(options).await,
    }
}
