"""What schemathesis cannot know from the document alone: names that are there, how much a small machine can be asked, and
what may rightly be away.

Every second question that fits the document is about something that is there; which, its own words decide, so that a seed
gives the same questions again.
"""

import os
import zlib

import schemathesis

EXECUTION, WORKSPACE = os.environ["GATEWAY_EXECUTION"], os.environ["GATEWAY_WORKSPACE"]
NAMES = {
    "/internal/agents/{name}": "coder",
    "/internal/models/{name}/load": "tiny",
    "/v1/models/{id}": "tiny",
}
# What everything else rests on. Its names are told by answers, from which schemathesis learns.
MODEL, AGENTS = "tiny", {"chat", "coder", "researcher", "planner"}
SPARED = "spared"
# A few tokens say as much about the edge as many.
TOKENS_MAX = 8
DEADLINE_MS = 10_000
# No embedding model is loaded.
AWAY = {"/internal/embeddings": "embeddings_absent", "/v1/embeddings": "embeddings_absent"}


def says_yes(words) -> bool:
    return zlib.crc32(repr(words).encode()) % 2 == 0


@schemathesis.hook
def map_case(context, case):
    if case.meta is not None and case.meta.generation.mode.is_negative:
        return case
    path = case.operation.path
    known = EXECUTION if path.startswith("/internal/executions/{id}") else NAMES.get(path)
    for name, value in (case.path_parameters or {}).items():
        if known is not None and says_yes(value):
            case.path_parameters[name] = known
    if isinstance(case.body, dict):
        case.body = body(path, dict(case.body))
    return case


@schemathesis.hook
def before_call(context, case, kwargs):
    """Without its one model the system would answer nothing, and with another agent type under a name something else."""
    path, method = case.operation.path, case.operation.method.upper()
    names = case.path_parameters or {}
    if path == "/internal/models/{name}/unload" and names.get("name") == MODEL:
        case.path_parameters["name"] = SPARED
    if path == "/internal/models/switch" and isinstance(case.body, dict) and case.body.get("from") == MODEL:
        case.body["from"] = SPARED
    if path == "/internal/agents/{name}" and method != "GET" and names.get("name") in AGENTS:
        case.path_parameters["name"] = SPARED


def body(path: str, said: dict) -> dict:
    there = says_yes(said)
    if path in ("/internal/chat", "/v1/chat/completions"):
        said["max_tokens"] = TOKENS_MAX
        if there:
            said["model"] = "tiny"
            said.pop("conversation_id", None)
            said.pop("max_completion_tokens", None)
    if path == "/internal/agent":
        config = said.get("config")
        said["config"] = {**(config if isinstance(config, dict) else {}), "deadline_ms": DEADLINE_MS}
        if there:
            said.update(agent_type="coder", workspace=WORKSPACE)
            said["config"].pop("model", None)
            said["config"].pop("tools", None)
    if path == "/internal/tools/execute" and there:
        said.update(tool_name="search_code", workspace=WORKSPACE)
    if path == "/internal/index" and there:
        said["workspace"] = WORKSPACE
    return said


@schemathesis.hook
def filter_failure(context, failure, case, response) -> bool:
    """A 503 is right where what is asked for is away, and said to be; a 504 where the question itself leaves no time."""
    if response is None or response.status_code not in (503, 504):
        return True
    said = response.json()
    code = said.get("code") or said.get("error", {}).get("code")
    if response.status_code == 504:
        return code != "deadline" or "deadline_ms" not in repr(case.body)
    return code != AWAY.get(case.operation.path)
