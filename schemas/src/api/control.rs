//! What people tell an execution while it runs. Every body may name who speaks (`by`); without it, the gateway does.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::fact::{CancelMode, Verdict};
use crate::ids::EffectId;

/// `POST /internal/executions/{id}/pause`; the body may be empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PauseRequest {
    /// Why, for people.
    pub reason: Option<String>,
    /// Who.
    pub by: Option<String>,
}

/// `POST /internal/executions/{id}/resume`; the body may be empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ResumeRequest {
    /// Who.
    pub by: Option<String>,
}

/// `POST /internal/executions/{id}/cancel`; the body may be empty.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CancelRequest {
    /// `now` stops what is open, `graceful` lets it finish.
    pub mode: CancelMode,
    /// Why, for people.
    pub reason: Option<String>,
    /// Who.
    pub by: Option<String>,
}

/// `POST /internal/executions/{id}/approve`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApproveRequest {
    /// The call that waits, for example `1-tool-0`.
    pub effect: EffectId,
    /// `allow`, `deny` or `edit`.
    pub verdict: Verdict,
    /// With `edit`: the arguments to use instead, an object.
    #[serde(default)]
    pub arguments: Option<Value>,
    /// Why, for the model and for people.
    #[serde(default)]
    pub reason: Option<String>,
    /// Who.
    #[serde(default)]
    pub by: Option<String>,
}

/// `POST /internal/executions/{id}/messages`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MessageRequest {
    /// What is said; the next inference reads it.
    pub text: String,
    /// Names the message, so that sending it again says it once; made up when missing.
    #[serde(default)]
    pub id: Option<String>,
    /// Who.
    #[serde(default)]
    pub by: Option<String>,
}

/// `POST /internal/executions/{id}/grant`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GrantRequest {
    /// `iterations`, `tokens`, `tokens_in`, `tokens_out`, `tool_calls` or `children`.
    pub dimension: String,
    /// How much more.
    pub amount: u64,
    /// Who.
    #[serde(default)]
    pub by: Option<String>,
}

/// `POST /internal/executions/{id}/fork`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkRequest {
    /// The number of the message after which the new execution begins: `n` in `/events`, from 0.
    pub at: u64,
    /// Another model.
    #[serde(default)]
    pub model: Option<String>,
    /// What is said next.
    #[serde(default)]
    pub message: Option<String>,
}
