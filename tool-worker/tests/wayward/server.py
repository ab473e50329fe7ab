"""A server of tools that can go wrong in every way: speaks MCP over standard input and output, with nothing installed.

server.py [HOW IT BEGINS]: greets, garbage, floods, silent, dies, complains, modern
"""

import json
import os
import sys
import time

begins = sys.argv[1] if len(sys.argv) > 1 else ""
calls = 0
extra = None


def send(message):
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def tool(name, annotations=None, output=None, **properties):
    listed = {"name": name, "description": f"Does {name}.", "inputSchema": {"type": "object", "properties": properties}}
    if annotations:
        listed["annotations"] = annotations
    if output:
        listed["outputSchema"] = output
    return listed


def tools():
    only_reads = {"readOnlyHint": True}
    listed = [
        tool("echo", text={"type": "string"}),
        tool("calls", only_reads),
        tool("die"),
        tool("die.reading", only_reads),
        tool("exhaust"),
        tool("hang"),
        tool("freeze"),
        tool("flood"),
        tool("garbage"),
        tool("complain"),
        tool("big", bytes={"type": "integer"}),
        tool("fail"),
        tool("protocol_error"),
        tool("picture"),
        tool("promise", output={"type": "object", "required": ["kept"]}, keep={"type": "boolean"}),
        tool("change", to={"type": "object"}),
        tool("environment"),
    ]
    return listed + ([extra] if extra else [])


def text(said, **more):
    return {"content": [{"type": "text", "text": said}], **more}


def call(name, arguments):
    """The result of a call; none when it gives none."""
    global calls, extra
    calls += 1
    if name == "echo":
        return text(arguments.get("text", ""))
    if name == "calls":
        return text(str(calls))
    if name in ("die", "die.reading"):
        print("so long", file=sys.stderr, flush=True)
        os._exit(3)
    if name == "exhaust":
        _ = bytearray(1 << 30)
    if name == "hang":
        return None
    if name == "freeze":
        time.sleep(3600)
    if name == "flood":
        while True:
            send({"method": "notifications/message", "params": {"level": "info", "data": "x" * 100_000}})
    if name == "garbage":
        while True:
            print("lorem ipsum", flush=True)
    if name == "complain":
        while True:
            print("y" * 100_000, file=sys.stderr, flush=True)
    if name == "big":
        return text("z" * arguments["bytes"])
    if name == "fail":
        return text("the ticket 7 is closed", isError=True)
    if name == "picture":
        return {"content": [{"type": "image", "data": "AAECAw==", "mimeType": "image/png"}]}
    if name == "promise":
        return text("for people", structuredContent={"kept" if arguments.get("keep") else "broken": 1})
    if name == "change":
        extra = arguments["to"] or None
        send({"method": "notifications/tools/list_changed"})
        return text("changed")
    if name == "environment":
        known = {"PATH", "HOME", "TMPDIR", "LANG", "PWD", "LC_CTYPE"}
        here = sorted(set(os.environ) - known)
        return text(json.dumps({"variables": here, "uid": os.getuid(), "workspace": sorted(os.listdir("/workspace"))}))
    return text("nothing")


def answer(message):
    method, params = message.get("method"), message.get("params") or {}
    reply = {"id": message["id"]}
    if method == "initialize" and begins != "modern":
        capabilities = {"tools": {"listChanged": True}}
        about = {"name": "wayward", "version": "1"}
        return {**reply, "result": {"protocolVersion": params["protocolVersion"], "capabilities": capabilities, "serverInfo": about}}
    if method == "ping":
        return {**reply, "result": {}}
    if method == "tools/list":
        return {**reply, "result": {"tools": tools()}}
    if method == "tools/call" and params["name"] == "protocol_error":
        return {**reply, "error": {"code": -32602, "message": "no such ticket"}}
    if method == "tools/call":
        result = call(params["name"], params.get("arguments") or {})
        return None if result is None else {**reply, "result": result}
    return {**reply, "error": {"code": -32601, "message": f"no method {method}"}}


def begin():
    if begins == "greets":
        print("Welcome to the wayward server!", flush=True)
    if begins == "garbage":
        while True:
            print("lorem ipsum", flush=True)
    if begins == "floods":
        while True:
            sys.stdout.write("{" * 100_000)
    if begins == "silent":
        print("waiting for nothing", file=sys.stderr, flush=True)
        time.sleep(3600)
    if begins == "dies":
        print("there is no database", file=sys.stderr, flush=True)
        sys.exit(2)


begin()
for line in sys.stdin:
    message = json.loads(line)
    if "id" in message and "method" in message:
        answered = answer(message)
        if answered:
            send(answered)
