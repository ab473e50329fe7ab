//! `run_command`: any program of this system, or of an image, in a box for commands.
//!
//! Nobody gets it by itself: an agent type must name it. What it may use is in `[tools.commands]`; the workspace is
//! read-only unless it lies under one of the roots of `tools.writable`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use schemas::fact::Sandbox as Report;
use serde::Deserialize;
use serde_json::{Value, json};
use tool_runner::message::Command;

use crate::config::{self, Config};
use crate::failure::Failure;
use crate::registry::{Approval, Handler, Means, Order, Permission, SideEffect, Tool};
use crate::sandbox::{End, Finished, Sandbox, Surroundings};
use crate::workspace::{Roots, Workspace};

/// Its name.
const NAME: &str = "run_command";
/// Result text: output is long, and its end is what matters most.
const RESULT_BYTES_MAX: usize = 32 * 1024;
/// Wall time beside the command's own: a box is made and ended.
const MARGIN: Duration = Duration::from_secs(10);
/// Text that a command may be given.
const INPUT_BYTES_MAX: usize = 32 * 1024;

/// Runs commands.
struct RunCommand {
    boxes: Arc<Sandbox>,
    settings: config::Commands,
    /// The image, by its id, and the variables it sets.
    image: Option<(String, BTreeMap<String, String>)>,
}

/// Arguments of `run_command`.
#[derive(Deserialize)]
struct Arguments {
    command: Vec<String>,
    directory: Option<String>,
    input: Option<String>,
    timeout_s: Option<u32>,
}

/// The tool; unavailable, with the reason, where commands cannot be confined.
pub(crate) async fn tool(config: &Config, boxes: &Result<Arc<Sandbox>, String>, roots: &Roots) -> Tool {
    let settings = &config.commands;
    let run = run_command(settings, boxes).await;
    let text = |what: &str| json!({"type": "string", "description": what});
    let timeout_s = settings.timeout_s();
    let mut permissions = BTreeSet::from([Permission::ReadWorkspace, Permission::RunPrograms]);
    if roots.any_writable() {
        permissions.insert(Permission::WriteWorkspace);
    }
    let (unavailable, means) = match run {
        Ok(run) => (None, Means::Handler(Arc::new(run))),
        Err(reason) => (Some(reason), Means::Runner),
    };
    Tool {
        name: NAME.to_owned(),
        description: "Run a program in the workspace.".to_owned(),
        parameters: json!({
            "type": "object",
            "properties": {
                "command": {
                    "type": "array", "minItems": 1, "maxItems": 256, "items": {"type": "string", "maxLength": 16384},
                    "description": "the program and its arguments, for example [\"ls\", \"-l\"]; no shell reads them",
                },
                "directory": text("where to run it, relative to the workspace"),
                "input": {"type": "string", "maxLength": INPUT_BYTES_MAX, "description": "what it reads from standard input"},
                "timeout_s": {"type": "integer", "minimum": 1, "maximum": timeout_s, "description": "seconds it may take"},
            },
            "required": ["command"],
            "additionalProperties": false,
        }),
        result: None,
        // What a program does can be anything, and twice is not once.
        effect: SideEffect::ChangesWorkspace,
        approval: Approval::AgentType,
        permissions,
        timeout: Duration::from_secs(timeout_s.into()) + MARGIN,
        result_bytes_max: RESULT_BYTES_MAX,
        unavailable,
        means,
    }
}

async fn run_command(settings: &config::Commands, boxes: &Result<Arc<Sandbox>, String>) -> Result<RunCommand, String> {
    if !settings.allowed {
        return Err(
            "this server runs no commands (whoever runs it can allow them: setting tools.commands.allowed)".to_owned()
        );
    }
    let boxes = boxes.clone().map_err(|reason| format!("no sandbox: {reason}"))?;
    boxes.for_commands().map_err(|reason| format!("no command runs here: {reason}"))?;
    let image = match &settings.image {
        None => None,
        Some(name) => {
            let (id, variables) = boxes.image(name).await?;
            let variables = variables.iter().filter_map(|variable| variable.split_once('='));
            Some((id, variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()))
        }
    };
    Ok(RunCommand { boxes, settings: settings.clone(), image })
}

impl Handler for RunCommand {
    fn carry_out<'a>(&'a self, order: Order, report: &'a mut Report) -> BoxFuture<'a, Result<String, Failure>> {
        Box::pin(async move {
            let arguments = Arguments::deserialize(&Value::Object(order.arguments))
                .map_err(|error| Failure::bad_request(format!("arguments do not fit: {error}")))?;
            self.run(arguments, order.workspace, report).await
        })
    }
}

impl RunCommand {
    async fn run(
        &self,
        arguments: Arguments,
        workspace: Option<Workspace>,
        report: &mut Report,
    ) -> Result<String, Failure> {
        let directory = arguments.directory.unwrap_or_default();
        if Path::new(&directory).is_absolute() {
            return Err(Failure::bad_request("`directory` is relative to the workspace"));
        }
        let surroundings = Surroundings {
            workspace: workspace.map(|workspace| (workspace.path().to_owned(), workspace.access())),
            reads: self.settings.reads.clone(),
            image: self.image.as_ref().map(|(id, _)| id.clone()),
            limits: self.settings.limits(),
        };
        self.boxes.tier().clone_into(&mut report.tier);
        report.enforced = self.boxes.for_commands().unwrap_or_default().to_owned();
        let environment = self.image.as_ref().map(|(_, variables)| variables.clone()).unwrap_or_default();
        let command = Command { argv: arguments.command, directory, environment };
        let longest = self.settings.timeout_s();
        let timeout = Duration::from_secs(arguments.timeout_s.unwrap_or(longest).min(longest).into());
        let given = arguments.input.unwrap_or_default();
        let bytes_max = self.settings.output_bytes();
        let finished = self.boxes.command(&surroundings, command, given.as_bytes(), timeout, bytes_max).await?;
        told(&finished, timeout, bytes_max)
    }
}

/// What came of a command, for the model: how it ended, and what it said.
pub(crate) fn told(finished: &Finished, timeout: Duration, bytes_max: usize) -> Result<String, Failure> {
    let said = said(finished);
    match finished.end {
        End::Exited(code) => Ok(format!("exit code {code}{said}")),
        End::TimedOut => {
            Err(Failure::timeout(format!("the command took longer than {} s and was stopped{said}", timeout.as_secs())))
        }
        End::TooMuchOutput => {
            Err(Failure::refused(format!("the command wrote more than {bytes_max} bytes and was stopped{said}")))
        }
        End::OutOfMemory => {
            Err(Failure::refused(format!("the command used more memory than it may and was stopped{said}")))
        }
    }
}

fn said(finished: &Finished) -> String {
    let mut said = String::new();
    let (stdout, stderr) = (String::from_utf8_lossy(&finished.stdout), String::from_utf8_lossy(&finished.stderr));
    if !stdout.trim().is_empty() {
        said.push('\n');
        said.push_str(stdout.trim_end());
    }
    if !stderr.trim().is_empty() {
        said.push_str("\n--- standard error\n");
        said.push_str(stderr.trim_end());
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_with_what_was_said_until_then() {
        let finished = |end| Finished { end, stdout: b"one\ntwo\n".to_vec(), stderr: b"warning\n".to_vec() };
        let after = |end| told(&finished(end), Duration::from_secs(3), 100);
        assert_eq!(after(End::Exited(1)).unwrap(), "exit code 1\none\ntwo\n--- standard error\nwarning");
        let late = after(End::TimedOut).unwrap_err().detail;
        assert!(late.starts_with("the command took longer than 3 s and was stopped\none\ntwo\n"), "{late}");
        let quiet = Finished { end: End::Exited(0), stdout: vec![], stderr: vec![] };
        assert_eq!(told(&quiet, Duration::ZERO, 1).unwrap(), "exit code 0");
    }
}
