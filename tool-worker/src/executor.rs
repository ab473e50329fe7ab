//! Carries out one tool call from its name and arguments to its outcome. Knows nothing of the bus.
//!
//! What must always be true: arguments are checked before a box starts, no tool runs outside a box, and a box that
//! failed the self-test is never used.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use schemas::fact::{FailureClass, Sandbox};
use schemas::object::{self, Reference};
use schemas::rpc::Outline;
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tool_runner::message::{BoxedAnswer, BoxedCall};
use tool_runner::tools::{self, SourceFile, Sources, directory_text, outline_text};

use crate::config::Config;
use crate::failure::Failure;
use crate::registry::{Behalf, Checked, Means, Order, Registry, Tool};
use crate::sandbox;
use crate::toolbox::Toolbox;
use crate::visible::visible_owned;
use crate::workspace::{self, Roots, Workspace};

/// Files of a directory about which the analysis workers are asked at once; they have a few slots each.
const QUESTIONS_AT_ONCE: usize = 4;

/// One line of a file takes at most this part of a result, so that a small window is not spent on a long line.
const LINE_SHARE: usize = 12;

/// Asks the analysis worker about `(path, code)`. The failure is written for the model.
pub type Analyst = Arc<dyn Fn(String, String) -> BoxFuture<'static, Result<Outline, Failure>> + Send + Sync>;

/// Finds the text of an object by its name. The failure is written for the model.
pub type Library = Arc<dyn Fn(String) -> BoxFuture<'static, Result<String, Failure>> + Send + Sync>;

/// One call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Call {
    /// The tool's name.
    pub tool: String,
    /// Its arguments, JSON text.
    pub arguments: String,
    /// The workspace; the first allowed root when missing.
    pub workspace: Option<String>,
    /// Bytes of result text at most; 0 means the tool's own limit.
    pub result_bytes_max: usize,
    /// For whom.
    pub behalf: Behalf,
}

/// A call that may be carried out: its tool, arguments and workspace were found good.
#[derive(Debug, Clone)]
pub struct Ready {
    checked: Checked,
    workspace: Option<Workspace>,
    result_bytes_max: usize,
    behalf: Behalf,
}

/// A call that will not be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What was wrong.
    pub why: Why,
    /// The same in words for the model.
    pub failure: Failure,
}

/// What was wrong with a call before it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// There is no such tool.
    UnknownTool,
    /// The tool cannot be used here.
    Unavailable,
    /// It does not take these arguments.
    BadArguments,
    /// There is no such workspace, or not for us.
    BadWorkspace,
}

impl Ready {
    /// The tool as it was when the call was checked.
    #[must_use]
    pub fn tool(&self) -> &Tool {
        self.checked.tool()
    }

    /// Its arguments.
    #[must_use]
    pub fn arguments(&self) -> &Map<String, Value> {
        &self.checked.arguments
    }

    /// The workspace, where the call looks at one.
    #[must_use]
    pub fn workspace(&self) -> Option<&Workspace> {
        self.workspace.as_ref()
    }

    /// Bytes of the result that are shown at most.
    #[must_use]
    pub fn result_bytes_max(&self) -> usize {
        self.result_bytes_max
    }
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The text the model reads, or why there is none.
    pub result: Result<String, Failure>,
    /// The whole text, where the model reads only its beginning. Its hash stands in what the model reads, so it must be
    /// stored before the result is.
    pub full: Option<String>,
    /// Wall time, waiting for a slot left out.
    pub duration: Duration,
    /// How it was confined; tier `none` when nothing was run.
    pub sandbox: Sandbox,
}

/// Carries out calls, a bounded number at once.
pub struct Executor {
    toolbox: Toolbox,
    roots: Roots,
    sandbox: Result<Arc<sandbox::Sandbox>, String>,
    analyst: Analyst,
    library: Library,
    slots: Semaphore,
}

impl Executor {
    /// Opens the workspaces and tests the sandbox. A sandbox that fails does not stop the start: its tools are
    /// refused with the reason, which [`Executor::sandbox`] also tells.
    pub async fn start(config: &Config, analyst: Analyst, library: Library) -> Result<Self, workspace::Error> {
        let roots = Roots::open(&config.workspaces, &config.writable)?;
        let sandbox = sandbox::Sandbox::start(config).await.map(Arc::new);
        let slots = Semaphore::new(config.slots.clamp(1, 64) as usize);
        Ok(Self { toolbox: Toolbox::new(Registry::built_in()), roots, sandbox, analyst, library, slots })
    }

    /// The tools, which may come and go.
    #[must_use]
    pub fn toolbox(&self) -> &Toolbox {
        &self.toolbox
    }

    /// Whether calls can be confined; if not, why not.
    pub fn sandbox(&self) -> Result<&sandbox::Sandbox, &str> {
        self.sandbox.as_deref().map_err(String::as_str)
    }

    /// The same for handlers of tools, which may need a box as well.
    pub(crate) fn boxes(&self) -> Result<Arc<sandbox::Sandbox>, String> {
        self.sandbox.clone()
    }

    /// Where workspaces may lie.
    pub(crate) fn roots(&self) -> &Roots {
        &self.roots
    }

    /// Finds a workspace, as each call does again.
    pub fn workspace(&self, name: &str) -> Result<Workspace, workspace::Error> {
        self.roots.find(Some(name))
    }

    /// Holds a call against everything that can be known before it begins.
    ///
    /// # Errors
    /// It will not be carried out; in words for the model.
    pub fn prepare(&self, call: &Call) -> Result<Ready, Refused> {
        let checked = self.toolbox.now().check(&call.tool, &call.arguments).map_err(|failure| {
            let why = match failure.class {
                FailureClass::Unknown => Why::UnknownTool,
                FailureClass::Refused => Why::Unavailable,
                _ => Why::BadArguments,
            };
            Refused { why, failure }
        })?;
        let tool = checked.tool();
        let result_bytes_max = match call.result_bytes_max {
            0 => tool.result_bytes_max,
            bytes_max => bytes_max.min(tool.result_bytes_max),
        };
        // Of an object nothing is looked for in the workspace.
        let workspace = match tool.has_workspace() && object_named(tool, &checked.arguments).is_none() {
            true => {
                let found = self.roots.find(call.workspace.as_deref());
                Some(found.map_err(|error| Refused { why: Why::BadWorkspace, failure: error.into() })?)
            }
            false => None,
        };
        Ok(Ready { checked, workspace, result_bytes_max, behalf: call.behalf.clone() })
    }

    /// Carries out one call.
    pub async fn execute(&self, call: &Call) -> Outcome {
        match self.prepare(call) {
            Ok(ready) => self.carry_out(&ready).await,
            Err(Refused { failure, .. }) => {
                let sandbox = Sandbox { tier: "none".to_owned(), enforced: Vec::new() };
                Outcome { result: Err(failure), full: None, duration: Duration::ZERO, sandbox }
            }
        }
    }

    /// Carries out a call that may be. Dropping the future ends what it began.
    pub async fn carry_out(&self, ready: &Ready) -> Outcome {
        let _slot = self.slots.acquire().await.expect("the semaphore is never closed");
        let started = Instant::now();
        let mut sandbox = Sandbox { tier: "none".to_owned(), enforced: Vec::new() };
        let shown = self.result(ready, &mut sandbox).await;
        let (result, full) = match shown {
            Ok(Shown { text, full }) => (Ok(text), full),
            Err(Failure { class, detail }) => {
                // What a model reads of a failure has the same room as a result.
                let mut detail = visible_owned(detail);
                if detail.len() > ready.result_bytes_max {
                    detail = tools::cut_at_line(&detail, ready.result_bytes_max, |_, _| "\n... (cut)".to_owned());
                }
                (Err(Failure { class, detail }), None)
            }
        };
        Outcome { result, full, duration: started.elapsed(), sandbox }
    }

    async fn result(&self, ready: &Ready, report: &mut Sandbox) -> Result<Shown, Failure> {
        let (checked, tool, bytes_max) = (&ready.checked, ready.tool(), ready.result_bytes_max);
        if let Some(object) = object_named(tool, &checked.arguments) {
            // Nothing of the workspace is touched, and what is read was written here.
            let text = visible_owned((self.library)(object.to_owned()).await?);
            return Ok(Shown { text: tools::object_lines(&text, &checked.arguments, bytes_max)?, full: None });
        }
        let (arguments, workspace) = (checked.arguments.clone(), ready.workspace.clone());
        let text = match &tool.means {
            Means::Runner => self.in_a_box(tool, arguments, workspace, bytes_max, report).await?,
            Means::Handler(handler) => {
                let order = Order { arguments, workspace, result_bytes_max: bytes_max, behalf: ready.behalf.clone() };
                let answer = tokio::time::timeout(tool.timeout, handler.carry_out(order, report)).await;
                let late = |_| Failure::timeout(format!("{} took longer than {:?}", tool.name, tool.timeout));
                answer.map_err(late)??
            }
        };
        let text = visible_owned(text);
        checked.check_result(&text)?;
        Ok(Shown::of(text, bytes_max))
    }

    /// A call of a tool that the runner knows.
    async fn in_a_box(
        &self,
        tool: &Tool,
        arguments: Map<String, Value>,
        workspace: Option<Workspace>,
        bytes_max: usize,
        report: &mut Sandbox,
    ) -> Result<String, Failure> {
        let workspace =
            workspace.ok_or_else(|| Failure::refused(format!("{} has no workspace to run in", tool.name)))?;
        let sandbox = self.sandbox.as_ref().map_err(|reason| Failure::refused(format!("no sandbox: {reason}")))?;
        let boxed = BoxedCall { tool: tool.name.clone(), arguments, brief: bytes_max < tools::HINTS_FROM_BYTES };
        sandbox.tier().clone_into(&mut report.tier);
        sandbox.enforced().clone_into(&mut report.enforced);
        // A box that waited may be found dead and be replaced; what changes something gets a box of its own, once.
        let BoxedAnswer { outcome, .. } = match tool.effect.is_pure() {
            true => sandbox.run(workspace.place(), &boxed, tool.timeout).await?,
            false => sandbox.run_once(workspace.place(), &boxed, tool.timeout).await?,
        };
        let text = Result::from(outcome)?;
        match tool.name.as_str() {
            "analyze_code" => self.outlined(tool, &text).await,
            "read_file" => Ok(cut_lines(&text, bytes_max / LINE_SHARE)),
            _ => Ok(text),
        }
    }

    /// What the analysis workers say of the sources that a box has read.
    async fn outlined(&self, tool: &Tool, sources: &str) -> Result<String, Failure> {
        let nonsense = |error| Failure::internal(format!("the sandbox answered nonsense: {error}"));
        let mut sources: Sources = serde_json::from_str(sources).map_err(nonsense)?;
        let files = std::mem::take(&mut sources.files);
        let ask = |SourceFile { path, code }| {
            let question = (self.analyst)(path.clone(), code);
            async move { (path, question.await) }
        };
        let answers = futures::stream::iter(files).map(ask).buffered(QUESTIONS_AT_ONCE).collect::<Vec<_>>();
        let answers = tokio::time::timeout(tool.timeout, answers).await;
        let mut answers = answers.map_err(|_| Failure::timeout("the analysis worker did not answer in time"))?;
        if !sources.is_directory {
            let (_, outline) = answers.pop().ok_or_else(|| Failure::internal("the sandbox read no file"))?;
            return Ok(outline_text(&outline?));
        }
        let mut outlines = Vec::new();
        for (path, outline) in answers {
            match outline {
                // What is wrong with one file is said there; what is wrong with the worker fails the call.
                Err(failure) if failure.class == FailureClass::BadRequest => outlines.push((path, Err(failure.detail))),
                outline => outlines.push((path, Ok(outline?))),
            }
        }
        Ok(directory_text(&outlines, &sources))
    }
}

/// Cuts every line at so many characters; a cut line ends in an ellipsis.
fn cut_lines(text: &str, chars_max: usize) -> String {
    let lines = text.split('\n').map(|line| match line.char_indices().nth(chars_max) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// What the model reads, and the whole of it where that is more.
struct Shown {
    text: String,
    full: Option<String>,
}

impl Shown {
    /// Cuts a text at a line or, failing that, a character, and says how to read on.
    fn of(text: String, bytes_max: usize) -> Self {
        let whole = text.len();
        if whole <= bytes_max {
            return Self { text, full: None };
        }
        if bytes_max < tools::HINTS_FROM_BYTES {
            return Self {
                text: tools::cut_at_line(&text, bytes_max, |_, _| "\n... (cut)".to_owned()),
                full: Some(text),
            };
        }
        let name = Reference::to(text.as_bytes(), object::TEXT).sha256;
        let mark = |shown: usize, line: usize| {
            let call = json!({"path": format!("{}{name}", object::PATH_PREFIX), "start": line});
            format!("\n... (cut; {shown} of {whole} bytes; read the rest with read_file {call})")
        };
        Self { text: tools::cut_at_line(&text, bytes_max, mark), full: Some(text) }
    }
}

/// The object that a call of `read_file` names instead of a file.
fn object_named<'a>(tool: &Tool, arguments: &'a Map<String, Value>) -> Option<&'a str> {
    let path = arguments.get("path").filter(|_| tool.name == "read_file")?.as_str()?;
    path.strip_prefix(object::PATH_PREFIX)
}

#[cfg(test)]
mod tests;
