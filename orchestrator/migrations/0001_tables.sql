-- One set for SQLite and PostgreSQL: only types that both know. Times are nanoseconds since 1970, UTC.

-- Which log the tables were built from, and by which version of the fold.
CREATE TABLE projection_source (
    only_row BIGINT NOT NULL PRIMARY KEY,
    log TEXT NOT NULL,
    fold BIGINT NOT NULL,
    database_id TEXT NOT NULL
);

-- Up to which sequence each partition of the log is in the tables; written in the same transaction as they.
CREATE TABLE projection_positions (
    log_partition BIGINT NOT NULL PRIMARY KEY,
    sequence BIGINT NOT NULL,
    -- While the tables are being built: where that ends.
    rebuild_to BIGINT NOT NULL
);

CREATE TABLE agent_executions (
    -- The place of the request in the log: its sequence times 16, plus the partition.
    id BIGINT NOT NULL PRIMARY KEY,
    execution_id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    agent_type TEXT NOT NULL,
    status TEXT NOT NULL,
    title TEXT NOT NULL,
    instruction TEXT NOT NULL,
    response TEXT,
    error TEXT,
    model TEXT NOT NULL,
    user_id TEXT,
    workspace TEXT,
    parent_execution_id TEXT,
    iterations BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    total_tokens BIGINT NOT NULL,
    tool_calls BIGINT NOT NULL,
    messages BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    finished_at BIGINT,
    duration_ms DOUBLE PRECISION,
    -- The fold of an open execution as JSON; empty once it has ended.
    state TEXT
);

CREATE INDEX agent_executions_newest ON agent_executions (created_at DESC, execution_id DESC);
CREATE INDEX agent_executions_status ON agent_executions (status, created_at DESC, execution_id DESC);
CREATE INDEX agent_executions_user ON agent_executions (user_id, created_at DESC, execution_id DESC);

CREATE TABLE tool_calls (
    -- The execution and the effect.
    id TEXT NOT NULL PRIMARY KEY,
    execution_id TEXT NOT NULL,
    effect TEXT NOT NULL,
    -- Which call of the execution it is, from 0.
    position BIGINT NOT NULL,
    tool_name TEXT NOT NULL,
    arguments TEXT NOT NULL,
    -- What the model read, cut where it is long.
    result TEXT,
    -- 1 or 0; empty while the call is open.
    success SMALLINT,
    duration_ms DOUBLE PRECISION,
    sandbox TEXT,
    worker TEXT,
    created_at BIGINT NOT NULL
);

CREATE INDEX tool_calls_execution ON tool_calls (execution_id, position);
CREATE INDEX tool_calls_created ON tool_calls (created_at, tool_name);

CREATE TABLE inference_performance (
    -- The execution, the effect and the attempt.
    id TEXT NOT NULL PRIMARY KEY,
    execution_id TEXT NOT NULL,
    effect TEXT NOT NULL,
    attempt BIGINT NOT NULL,
    -- `inference` or `compression`.
    purpose TEXT NOT NULL,
    model TEXT NOT NULL,
    worker TEXT NOT NULL,
    -- The class of the failure; empty when there was none.
    error TEXT,
    finish_reason TEXT,
    -- Empty where nothing ran: a failure, or an answer that was known.
    queue_ms DOUBLE PRECISION,
    prefill_ms DOUBLE PRECISION,
    decode_ms DOUBLE PRECISION,
    -- From the publishing of the job to the first token, and to the last.
    ttft_ms DOUBLE PRECISION,
    duration_ms DOUBLE PRECISION,
    prompt_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    -- 1 when an equal request had been answered before.
    cached SMALLINT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE INDEX inference_performance_created ON inference_performance (created_at, model);
CREATE INDEX inference_performance_execution ON inference_performance (execution_id);
