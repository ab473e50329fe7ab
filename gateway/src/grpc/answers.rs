//! From what happens in an execution to messages of the proto.

use schemas::api::{self, AnswerUsage};
use schemas::chat::{self, TokenLogprob};
use schemas::{ExecutionId, FinishReason, Role};
use serde_json::Value;

use super::proto::{self, agent_event, chat_event};
use crate::transcript::Update;
use crate::view::Approval;

/// Something that a client is told.
pub(super) enum Told {
    /// The request is in the log.
    Started(ExecutionId),
    /// What happens.
    Update(Update),
    /// The answer.
    Done(Box<api::Answer>),
    /// The answer of a single tool call.
    ToolDone(Box<api::ToolAnswer>),
}

impl Told {
    /// Whether nothing follows.
    pub(super) const fn is_last(&self) -> bool {
        matches!(self, Self::Done(_) | Self::ToolDone(_))
    }
}

/// What a chat shows of it: tools that are called on behalf of the agent type are not the caller's affair.
pub(super) fn chat(told: Told) -> Option<proto::ChatEvent> {
    use chat_event::Event;
    let event = match told {
        Told::Started(exec) => Event::Started(started(exec)),
        Told::Update(Update::Token { id, text, logprobs }) => Event::Token(words(id, text, &logprobs)),
        Told::Update(Update::Restart { id, text, logprobs }) => Event::Restart(words(id, text, &logprobs)),
        Told::Done(done) => Event::Done(answer(*done)),
        Told::Update(_) | Told::ToolDone(_) => return None,
    };
    Some(proto::ChatEvent { event: Some(event) })
}

/// What an agent shows of it.
pub(super) fn agent(told: Told) -> Option<proto::AgentEvent> {
    use agent_event::Event;
    let event = match told {
        Told::Started(exec) => Event::Started(started(exec)),
        Told::Update(Update::Token { id, text, logprobs }) => Event::Token(words(id, text, &logprobs)),
        Told::Update(Update::Restart { id, text, logprobs }) => Event::Restart(words(id, text, &logprobs)),
        Told::Update(Update::ToolCall(call)) => Event::ToolCall(report(call)),
        Told::Update(Update::Approval(asked)) => Event::Approval(approval(asked)),
        Told::Update(Update::ToolResult(call)) => Event::ToolResult(report(call)),
        Told::Update(Update::Ended) => return None,
        Told::Done(done) => Event::Done(answer(*done)),
        Told::ToolDone(done) => Event::ToolDone(tool_answer(*done)),
    };
    Some(proto::AgentEvent { event: Some(event) })
}

pub(super) fn tool_answer(answer: api::ToolAnswer) -> proto::ToolAnswer {
    proto::ToolAnswer {
        execution_id: answer.execution_id.to_string(),
        success: answer.success,
        result: answer.result,
        error: answer.error,
        duration_ms: answer.duration_ms,
        sandbox: Some(proto::Sandbox { tier: answer.sandbox.tier, enforced: answer.sandbox.enforced }),
    }
}

fn started(exec: ExecutionId) -> proto::Started {
    proto::Started { execution_id: exec.to_string() }
}

fn words(id: String, text: String, logprobs: &[TokenLogprob]) -> proto::Text {
    proto::Text { id, text, logprobs: logprobs.iter().map(logprob).collect() }
}

fn answer(answer: api::Answer) -> proto::Answer {
    let AnswerUsage { prompt_tokens, completion_tokens, tokens, prompt_tokens_details } = answer.usage;
    let cached_tokens = prompt_tokens_details.cached_tokens;
    proto::Answer {
        execution_id: answer.execution_id.to_string(),
        response: answer.response,
        tool_calls: answer.tool_calls.into_iter().map(report).collect(),
        iterations: answer.iterations,
        finish_reason: finish(answer.finish_reason).into(),
        usage: Some(proto::Usage { prompt_tokens, completion_tokens, tokens, cached_tokens }),
        logprobs: logprobs(answer.logprobs.as_ref()),
        choices: answer.choices.into_iter().map(choice).collect(),
        cached: answer.cached,
        dropped_messages: answer.dropped_messages,
    }
}

fn choice(choice: api::Choice) -> proto::Choice {
    proto::Choice {
        index: choice.index,
        message: Some(message(choice.message)),
        finish_reason: finish(Some(choice.finish_reason)).into(),
        logprobs: logprobs(choice.logprobs.as_ref()),
    }
}

fn message(message: chat::Message) -> proto::Message {
    let role = match message.role {
        Role::System => proto::Role::System,
        Role::User => proto::Role::User,
        Role::Assistant => proto::Role::Assistant,
        Role::Tool => proto::Role::Tool,
    };
    let call = |call: chat::ToolCall| proto::ToolCall {
        id: call.id,
        name: call.function.name,
        arguments: call.function.arguments,
    };
    proto::Message {
        role: role.into(),
        content: message.content,
        tool_calls: message.tool_calls.into_iter().map(call).collect(),
        tool_call_id: message.tool_call_id,
        name: message.name,
    }
}

fn report(call: api::ToolCallReport) -> proto::ToolCallReport {
    proto::ToolCallReport {
        call_id: call.call_id,
        name: call.name,
        arguments: text(&call.arguments),
        success: call.success,
        result: call.result,
    }
}

fn approval(asked: Approval) -> proto::Approval {
    let expires = prost_types::Timestamp {
        seconds: asked.expires.div_euclid(1_000_000_000),
        // Below a billion.
        nanos: asked.expires.rem_euclid(1_000_000_000) as i32,
    };
    proto::Approval {
        effect: asked.effect.to_string(),
        name: asked.name,
        arguments: text(&asked.arguments),
        expires: Some(expires),
    }
}

/// JSON text; what the model wrote in its place stands there as it wrote it.
fn text(arguments: &Value) -> String {
    arguments.as_str().map_or_else(|| arguments.to_string(), str::to_owned)
}

fn finish(reason: Option<FinishReason>) -> proto::FinishReason {
    match reason {
        None => proto::FinishReason::Unspecified,
        Some(FinishReason::Stop) => proto::FinishReason::Stop,
        Some(FinishReason::Length) => proto::FinishReason::Length,
        Some(FinishReason::ToolCalls) => proto::FinishReason::ToolCalls,
    }
}

fn logprobs(logprobs: Option<&api::Logprobs>) -> Vec<proto::TokenLogprob> {
    logprobs.map(|all| all.content.iter().map(logprob).collect()).unwrap_or_default()
}

fn logprob(of: &TokenLogprob) -> proto::TokenLogprob {
    let top = of.top_logprobs.iter().map(|top| proto::TopLogprob { token: top.token.clone(), logprob: top.logprob });
    proto::TokenLogprob { token: of.token.clone(), logprob: of.logprob, top_logprobs: top.collect() }
}
