//! Subjects: the names on the bus. Tokens are `[a-z0-9_-]{1,64}`; dots only between tokens.

use crate::ids::{EffectId, ExecutionId, Partition};

/// Facts of one execution.
#[must_use]
pub fn fact(exec: ExecutionId) -> String {
    format!("vl.v1.log.{}.{exec}.fact", exec.partition())
}

/// Decisions of one execution.
#[must_use]
pub fn decision(exec: ExecutionId) -> String {
    format!("vl.v1.log.{}.{exec}.decision", exec.partition())
}

/// Facts and decisions of one execution, in the log.
#[must_use]
pub fn execution(exec: ExecutionId) -> String {
    format!("vl.v1.log.{}.{exec}.*", exec.partition())
}

/// One kind of the same, `fact` or `decision`, republished after storing, for those who watch live.
#[must_use]
pub fn seen(exec: ExecutionId, kind: &str) -> String {
    format!("vl.v1.seen.{}.{exec}.{kind}", exec.partition())
}

/// All of it, republished.
pub const SEEN_ALL: &str = "vl.v1.seen.>";
/// Where a plain client publishes the request of an execution: the server stores it as that execution's first fact, where
/// its account has the mapping ([`crate::stream::submit_mapping`]).
#[must_use]
pub fn submit(exec: ExecutionId) -> String {
    format!("vl.v1.submit.{exec}")
}

/// The stream that holds a partition of the log.
#[must_use]
pub fn log_stream(partition: Partition) -> String {
    format!("VL_LOG_{partition}")
}

/// Inference jobs of a pool (a model's name).
#[must_use]
pub fn inference_job(pool: &str, exec: ExecutionId) -> String {
    format!("vl.v1.job.infer.{}.{exec}", token(pool))
}

/// Tool jobs of a tool.
#[must_use]
pub fn tool_job(tool: &str, exec: ExecutionId) -> String {
    format!("vl.v1.job.tool.{}.{exec}", token(tool))
}

/// Analysis jobs of one kind.
#[must_use]
pub fn analysis_job(kind: &str, exec: ExecutionId) -> String {
    format!("vl.v1.job.analysis.{}.{exec}", token(kind))
}

/// Token frames of one effect.
#[must_use]
pub fn tokens(exec: ExecutionId, effect: &EffectId) -> String {
    format!("vl.v1.tok.{exec}.{effect}")
}

/// Token frames of all effects of an execution.
#[must_use]
pub fn tokens_all(exec: ExecutionId) -> String {
    format!("vl.v1.tok.{exec}.>")
}

/// Fast path of a cancel; the fact in the log is what counts.
#[must_use]
pub fn cancel(exec: ExecutionId) -> String {
    format!("vl.v1.ctl.cancel.{exec}")
}

/// All cancels, for workers.
pub const CANCEL_ALL: &str = "vl.v1.ctl.cancel.*";

/// A request here answers [`crate::presence::Holds`], or "no responders" when the worker is gone.
#[must_use]
pub fn worker(id: &str) -> String {
    format!("vl.v1.ctl.worker.{}", token(id))
}

/// Where a worker says that it took a job ([`crate::presence::Hold`]).
#[must_use]
pub fn claim(exec: ExecutionId) -> String {
    format!("vl.v1.ctl.claim.{}", exec.partition())
}

/// All claims, for orchestrators.
pub const CLAIM_ALL: &str = "vl.v1.ctl.claim.*";

/// A dead letter that waits for somebody, by its id.
#[must_use]
pub fn dead_letter(id: &str) -> String {
    format!("vl.v1.dlq.{id}.waiting")
}

/// A dead letter that was settled, by its id.
#[must_use]
pub fn settled_letter(id: &str) -> String {
    format!("vl.v1.dlq.{id}.settled")
}

/// A dead letter wherever it is kept, by its id.
#[must_use]
pub fn dead_letter_any(id: &str) -> String {
    format!("vl.v1.dlq.{id}.*")
}

/// All dead letters that wait.
pub const DEAD_LETTERS_WAITING: &str = "vl.v1.dlq.*.waiting";
/// All dead letters.
pub const DEAD_LETTERS_ALL: &str = "vl.v1.dlq.*.*";

/// Where the server says that a consumer handed a message out for the last time, or that it was taken off.
pub const ADVISORIES: [&str; 2] =
    ["$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>", "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.>"];

/// Question: embeddings.
pub const RPC_EMBED: &str = "vl.v1.rpc.embed";
/// Question: what a plain client's request comes to.
pub const RPC_SUBMISSION: &str = "vl.v1.rpc.submission";
/// Question: loaded models.
pub const RPC_MODELS: &str = "vl.v1.rpc.models";
/// Question: load, unload or switch models. Whoever is asked does it or finds the workers that do.
pub const RPC_MODELS_CHANGE: &str = "vl.v1.rpc.models.change";

/// The same, for one worker and nobody else.
#[must_use]
pub fn rpc_models_change(worker: &str) -> String {
    format!("{RPC_MODELS_CHANGE}.{}", token(worker))
}

/// Question: registered tools.
pub const RPC_TOOLS: &str = "vl.v1.rpc.tools";
/// Question: whether tools may work in a workspace.
pub const RPC_WORKSPACE: &str = "vl.v1.rpc.workspace";
/// Question: what an execution's model would read after one of its messages.
pub const RPC_FORK: &str = "vl.v1.rpc.fork";
/// Question: executions as rows, newest first.
pub const RPC_EXECUTIONS: &str = "vl.v1.rpc.executions";
/// Question: the tool calls of an execution.
pub const RPC_TOOL_CALLS: &str = "vl.v1.rpc.tool_calls";
/// Question: what was done over a period, and how fast.
pub const RPC_PERFORMANCE: &str = "vl.v1.rpc.performance";
/// Question: how the projection is; and the order to build it anew.
pub const RPC_PROJECTION: &str = "vl.v1.rpc.projection";
/// Question: an execution's state after one of its messages.
pub const RPC_STATE: &str = "vl.v1.rpc.state";
/// Question: whether an execution's decisions come out again.
pub const RPC_VERIFY: &str = "vl.v1.rpc.verify";
/// Question: symbols and imports of a file.
pub const RPC_ANALYSIS: &str = "vl.v1.rpc.analysis";
/// Question: pieces of an indexed workspace.
pub const RPC_SEARCH: &str = "vl.v1.rpc.search";
/// Question: outline and dependencies of an indexed workspace.
pub const RPC_CODE: &str = "vl.v1.rpc.code";
/// Question: indexed workspaces.
pub const RPC_INDEXES: &str = "vl.v1.rpc.indexes";
/// Question: facts that are remembered.
pub const RPC_MEMORY: &str = "vl.v1.rpc.memory";
/// Question: vectors of a store that one of several workers keeps, for all of them.
pub const RPC_VECTORS: &str = "vl.v1.rpc.vectors";

/// The same, for the keeper of this store and nobody else's.
#[must_use]
pub fn rpc_vectors(store: &str) -> String {
    format!("{RPC_VECTORS}.{}", token(store))
}

/// Where answers to plain NATS clients go that live in an account of their own.
pub const REPLY_ALL: &str = "vl.v1.reply.>";

/// Whether the end of an execution may be sent to a subject that its request names. Not to the bus's own subjects nor to
/// the server's: a request would speak there with the rights of whoever answers it.
#[must_use]
pub fn may_be_answered(reply: &str) -> bool {
    reply.starts_with("vl.v1.reply.") || !(reply.starts_with("vl.") || reply.starts_with('$'))
}

/// Makes a subject token of a name: lower case, other characters become `_`, at most 64 bytes.
#[must_use]
pub fn token(name: &str) -> String {
    let token: String = name
        .chars()
        .take(64)
        .map(|c| match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9' | '_' | '-') => c,
            _ => '_',
        })
        .collect();
    if token.is_empty() { "_".to_owned() } else { token }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_cannot_have_its_end_sent_into_the_log() {
        assert!(may_be_answered("_INBOX.abc") && may_be_answered("vl.v1.reply.abc") && may_be_answered("orders.done"));
        assert!(!may_be_answered("vl.v1.log.3.x.decision") && !may_be_answered("$KV.vl_config.agent"));
    }

    #[test]
    fn any_name_becomes_one_token() {
        assert_eq!(token("Qwen2.5-7B Instruct"), "qwen2_5-7b_instruct");
        assert_eq!(token(""), "_");
        assert_eq!(token(&"é".repeat(100)).len(), 64);
    }
}
