//! Requests of plain NATS clients: says what each comes to, as if it had come over HTTP. Orchestrators ask.

use std::sync::Arc;

use runtime::bus;
use schemas::fact::{ExecutionSubmitted, Request};
use schemas::rpc::{Complete, Completion};
use schemas::subject;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::problem::Failure;
use crate::service::Gateway;
use crate::{objects, requests, submission};

/// Answers until the soft token falls.
pub(crate) async fn serve(gateway: &Arc<Gateway>) -> Result<(), bus::Error> {
    let asked = Arc::clone(gateway);
    let answer = move |question: Complete| {
        let gateway = Arc::clone(&asked);
        async move {
            match submitted(&gateway, question.request).await {
                Ok(submitted) => Completion::Submission(Box::new(submitted)),
                Err(Failure(problem)) => Completion::Refused(problem),
            }
        }
    };
    let runtime = &gateway.runtime;
    runtime.bus.serve(&runtime.tasks, subject::RPC_SUBMISSION, answer).await
}

async fn submitted(gateway: &Gateway, request: Request) -> Result<ExecutionSubmitted, Failure> {
    let mut submitted = match request {
        Request::Chat(body) => requests::chat_submission(gateway, read(&body)?, None).await?,
        Request::Agent(body) => requests::agent_submission(gateway, read(&body)?).await?,
        Request::Tool(body) => requests::tool_submission(gateway, read(&body)?).await?,
    };
    requests::check_workspace(gateway, &submitted).await?;
    objects::move_out(&gateway.runtime.bus, &mut submitted.messages).await?;
    Ok(submitted)
}

/// Says where it is wrong, as of a body over HTTP.
fn read<T: DeserializeOwned>(body: &Value) -> Result<T, Failure> {
    submission::read(body.to_string().as_bytes())
}
