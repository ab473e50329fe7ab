"""Asks the gateway over gRPC as any client in Python would: with code generated from the proto by grpcio-tools.

    grpc_client.py ADDRESS SECRET PROTO_DIR WORKSPACE

Ends with what was seen, as JSON; an assertion that fails names what was not.
"""

import json
import pathlib
import sys
import tempfile
import threading

import grpc
import grpc_tools
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from grpc_tools import protoc

address, secret, proto, workspace = sys.argv[1:]
generated = tempfile.mkdtemp()
name = "vlinders/v1/inference.proto"
common = pathlib.Path(grpc_tools.__file__).parent / "_proto"  # google/protobuf
code = protoc.main(["", f"-I{proto}", f"-I{common}", f"--python_out={generated}", f"--grpc_python_out={generated}", name])
assert code == 0, "the proto is compiled"
sys.path.insert(0, generated)
from vlinders.v1 import inference_pb2 as pb  # noqa: E402
from vlinders.v1 import inference_pb2_grpc as rpc  # noqa: E402

PATIENCE = 60
channel = grpc.insecure_channel(address)
service = rpc.InferenceServiceStub(channel)
ours = (("authorization", f"Bearer {secret}"),)
cancels = (*ours, ("x-cancel-on-disconnect", "true"))
seen = {}


def user(text):
    return pb.Message(role=pb.ROLE_USER, content=text)


def execution(call):
    return dict(call.initial_metadata())["x-execution-id"]


def failure(call):
    """The code of a call that fails, and the details of the problem."""
    try:
        result = call()
        list(result) if hasattr(result, "__iter__") else result
    except grpc.RpcError as error:
        info = error_details_pb2.ErrorInfo()
        status = rpc_status.from_call(error)
        for detail in status.details if status else []:
            detail.Unpack(info)
        return error, info
    raise AssertionError("it should fail")


def chat():
    call = service.Chat(pb.ChatRequest(messages=[user("hello")]), metadata=ours, timeout=PATIENCE)
    kinds, text = [], ""
    for event in call:
        kinds.append(event.WhichOneof("event"))
        if kinds[-1] == "token":
            text += event.token.text
        elif kinds[-1] == "restart":
            text = event.restart.text
    assert (kinds[0], kinds[-1]) == ("started", "done"), kinds
    assert "token" in kinds and text == event.done.response, (text, event)
    assert event.done.finish_reason == pb.FINISH_REASON_STOP and event.done.usage.tokens > 0, event
    assert event.done.execution_id == execution(call)
    seen["chat"] = {"execution_id": execution(call), "response": text}

    again = pb.FollowRequest(execution_id=execution(call))
    *_, last = service.Follow(again, metadata=ours, timeout=PATIENCE)
    assert last.done.response == text, last


def agent():
    task = pb.AgentRequest(
        agent_type="coder",
        instruction="Where is TokenReader defined?",
        workspace=workspace,
        config=pb.AgentConfig(max_iterations=4),
    )
    call = service.RunAgent(task, metadata=ours, timeout=PATIENCE)
    events = list(call)
    kinds = [event.WhichOneof("event") for event in events]
    asked, told = kinds.index("tool_call"), kinds.index("tool_result")
    assert asked < told and kinds[-1] == "done", kinds
    asked, told, done = events[asked].tool_call, events[told].tool_result, events[-1].done
    assert (asked.name, json.loads(asked.arguments)) == ("search_code", {"query": "TokenReader"}), asked
    assert told.call_id == asked.call_id and told.success and "src/reader.rs:3" in told.result, told
    assert [report.name for report in done.tool_calls][:1] == ["search_code"] and done.iterations >= 2, done
    seen["agent"] = {"execution_id": execution(call), "response": done.response}

    task.answer_only = True
    only = list(service.RunAgent(task, metadata=ours, timeout=PATIENCE))
    assert [event.WhichOneof("event") for event in only] == ["done"], only


def tool():
    arguments = json.dumps({"path": "src/reader.rs", "start": 1, "end": 1})
    request = pb.ToolRequest(tool_name="read_file", arguments=arguments, workspace=workspace)
    answer, call = service.ExecuteTool.with_call(request, metadata=ours, timeout=PATIENCE)
    assert answer.success and "Reads tokens" in answer.result and answer.sandbox.tier == "bubblewrap", answer
    assert answer.execution_id == execution(call)
    seen["tool"] = {"execution_id": execution(call)}
    outside = pb.ToolRequest(tool_name="read_file", arguments='{"path": "../../etc/passwd"}', workspace=workspace)
    answer = service.ExecuteTool(outside, metadata=ours, timeout=PATIENCE)
    assert not answer.success and "outside the workspace" in answer.error, answer


def wrong():
    request = pb.ChatRequest(messages=[user("hello")])
    error, info = failure(lambda: service.Chat(request, metadata=(("x-internal-auth", "guessed"),)))
    assert (error.code(), info.metadata["code"]) == (grpc.StatusCode.UNAUTHENTICATED, "forbidden"), error
    error, info = failure(lambda: service.Chat(pb.ChatRequest(), metadata=ours))
    assert (error.code(), info.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST"), error
    assert info.domain == "vlinders" and info.metadata["next_step"], info
    unknown = pb.AgentRequest(agent_type="codr", instruction="go")
    error, info = failure(lambda: service.RunAgent(unknown, metadata=ours))
    assert error.code() == grpc.StatusCode.NOT_FOUND and "coder" in info.metadata["next_step"], info


def keys():
    # Drawn, so that two executions would differ.
    request = pb.ChatRequest(messages=[user("hello")], temperature=1.5, max_tokens=24, answer_only=True)
    keyed = (*ours, ("idempotency-key", "grpc"))
    answers, calls = [], []
    for _ in range(2):
        call = service.Chat(request, metadata=keyed, timeout=PATIENCE)
        answers += [event.done for event in call]
        calls.append(dict(call.initial_metadata()))
    assert answers[0] == answers[1] and execution(call) == answers[0].execution_id, answers
    assert [call.get("idempotent-replayed") for call in calls] == [None, "true"], calls
    request.max_tokens = 25
    error, info = failure(lambda: service.Chat(request, metadata=keyed, timeout=PATIENCE))
    assert (error.code(), info.reason) == (grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED"), error
    assert info.metadata["execution_id"] == answers[0].execution_id, info


def deadline():
    request = pb.ChatRequest(messages=[user("say more " * 40)], max_tokens=100_000)
    request.cache = False
    error, _ = failure(lambda: service.Chat(request, metadata=ours, timeout=0.005))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    arguments = '{"query": "T", "path": "src"}'
    tool = pb.ToolRequest(tool_name="search_code", arguments=arguments, workspace=workspace, cache=False)
    error, _ = failure(lambda: service.ExecuteTool(tool, metadata=ours, timeout=0.0001))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error


def cancellation():
    asked = pb.AgentRequest(agent_type="coder", instruction="Where is TokenReader defined?", workspace=workspace)
    asked.config.approve.append("search_code")
    call = service.RunAgent(asked, metadata=cancels, timeout=PATIENCE)
    for event in call:
        if event.WhichOneof("event") == "approval":
            break
    assert event.approval.name == "search_code" and event.approval.expires.seconds > 0, event
    call.cancel()
    seen["cancelled"] = {"execution_id": execution(call)}


def reflection():
    database = ProtoReflectionDescriptorDatabase(grpc.intercept_channel(channel, Secret()))
    names = database.get_services()
    assert {"vlinders.v1.InferenceService", "grpc.health.v1.Health"} <= set(names), names
    file = database.FindFileContainingSymbol("vlinders.v1.InferenceService")
    methods = [method.name for method in file.service[0].method]
    assert methods == ["Chat", "RunAgent", "ExecuteTool", "Follow"], methods


class Secret(grpc.StreamStreamClientInterceptor):
    """Adds the secret where a library leaves no room for metadata."""

    def intercept_stream_stream(self, continuation, details, requests):
        return continuation(details._replace(metadata=ours), requests)


def health():
    stub = health_pb2_grpc.HealthStub(channel)
    answer = stub.Check(health_pb2.HealthCheckRequest(service="vlinders.v1.InferenceService"), timeout=PATIENCE)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING, answer


def at_once():
    """Calls that share one connection do not wait for one another."""
    answers = []
    request = pb.ChatRequest(messages=[user("hello")], answer_only=True)

    def ask():
        answers.extend(event.done.response for event in service.Chat(request, metadata=ours, timeout=PATIENCE))

    threads = [threading.Thread(target=ask) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [seen["chat"]["response"]] * 32, answers


health()
chat()
agent()
tool()
wrong()
keys()
deadline()
cancellation()
reflection()
at_once()
print(json.dumps(seen))
