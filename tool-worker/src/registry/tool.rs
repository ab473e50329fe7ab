//! What a tool is.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use schemas::ExecutionId;
use schemas::fact::Sandbox;
use schemas::rpc::{self, Approval, SideEffect};
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::workspace::Workspace;

/// One tool.
#[derive(Debug, Clone)]
pub struct Tool {
    /// Its name, a subject token.
    pub name: String,
    /// What it does, for the model.
    pub description: String,
    /// JSON schema of its arguments.
    pub parameters: Value,
    /// JSON schema of its result, where that is JSON; without one it is text.
    pub result: Option<Value>,
    /// What a call changes or reaches.
    pub effect: SideEffect,
    /// Who must allow a call.
    pub approval: Approval,
    /// What a call is permitted; everything else is kept from it.
    pub permissions: BTreeSet<Permission>,
    /// Wall time of one call.
    pub timeout: Duration,
    /// Bytes of result text.
    pub result_bytes_max: usize,
    /// Why it cannot be used here; none when it can.
    pub unavailable: Option<String>,
    /// How calls are carried out.
    pub means: Means,
}

/// What a call is permitted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Permission {
    /// It reads the workspace of the call.
    ReadWorkspace,
    /// It changes files in it.
    WriteWorkspace,
    /// It has public addresses of the network asked.
    PublicNetwork,
    /// It has this server asked, wherever that is.
    Server(String),
    /// It runs programs that the caller names.
    RunPrograms,
}

/// How calls of a tool are carried out.
#[derive(Clone)]
pub enum Means {
    /// By the runner in a box, which knows the tool by its name.
    Runner,
    /// By a part of this worker, which answers for what it lets out of a box.
    Handler(Arc<dyn Handler>),
}

/// Carries out calls of a tool that the runner does not know.
pub trait Handler: Send + Sync {
    /// What decides its answers beside what the tool says of itself, the arguments and the workspace: results are kept
    /// under it. None where there is more than can be told: nothing is kept then.
    fn version(&self) -> Option<String>;

    /// Carries out one call, whose arguments have been checked, and gives the text the model reads. The report says how
    /// the call was confined, from the moment on that it is. Dropping the future ends what it began.
    fn carry_out<'a>(&'a self, order: Order, report: &'a mut Sandbox) -> BoxFuture<'a, Result<String, Failure>>;
}

/// What a handler is told of a call.
#[derive(Debug, Clone)]
pub struct Order {
    /// Its arguments, checked.
    pub arguments: Map<String, Value>,
    /// The workspace, found and allowed; none where the tool is not permitted to read it.
    pub workspace: Option<Workspace>,
    /// Bytes of the result that will be shown at most. More may be given: the whole is kept.
    pub result_bytes_max: usize,
    /// For whom it is carried out.
    pub behalf: Behalf,
}

/// For whom a call is carried out, as its request says; a model has no say in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Behalf {
    /// The user; nobody in particular when missing.
    pub user_id: Option<String>,
    /// The execution.
    pub exec: Option<ExecutionId>,
    /// The workspace as the request named it, also where the tool does not look at one.
    pub workspace: Option<String>,
}

impl Tool {
    /// Whether a call looks at a workspace.
    #[must_use]
    pub fn has_workspace(&self) -> bool {
        let of_workspace = [Permission::ReadWorkspace, Permission::WriteWorkspace];
        of_workspace.iter().any(|permission| self.permissions.contains(permission))
    }

    /// As it is told to others.
    #[must_use]
    pub fn listed(&self) -> rpc::Tool {
        rpc::Tool {
            name: self.name.clone(),
            description: self.description.clone(),
            parameters: self.parameters.clone(),
            unavailable: self.unavailable.clone(),
            result: self.result.clone(),
            effect: Some(self.effect),
            approval: Some(self.approval),
            permissions: self.permissions.iter().map(ToString::to_string).collect(),
            timeout_ms: u64::try_from(self.timeout.as_millis()).ok(),
        }
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReadWorkspace => f.write_str("workspace:read"),
            Self::WriteWorkspace => f.write_str("workspace:write"),
            Self::PublicNetwork => f.write_str("network:public"),
            Self::Server(name) => write!(f, "server:{name}"),
            Self::RunPrograms => f.write_str("programs:run"),
        }
    }
}

impl fmt::Debug for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Runner => f.write_str("Runner"),
            Self::Handler(_) => f.write_str("Handler(…)"),
        }
    }
}
