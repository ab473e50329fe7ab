"""Runs a peer behind HTTP until its standard input closes; prints its address when it is ready.

serve_peer.py llama FILE.gguf THREADS SLOTS
serve_peer.py mistral PATH THREADS SLOTS

llama.cpp brings its own server. mistral.rs has none in its wheel: it gets the thinnest one there is, and its figures
include that.
"""

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def llama(path, threads, slots):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_parallel = slots
    params.n_ctx = slots * 1024
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    return server, server.listening_address


def mistral(path, slots):
    import mistralrs

    path = Path(path)
    if path.is_dir():
        which = mistralrs.Which.Plain(str(path), mistralrs.Architecture.Qwen3, dtype=mistralrs.ModelDType.F32)
    else:
        which = mistralrs.Which.GGUF(str(path.parent), path.name, dtype=mistralrs.ModelDType.F32)
    runner = mistralrs.Runner(which, max_seqs=slots)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request = mistralrs.ChatCompletionRequest(
                messages=body["messages"], model="default", max_tokens=body["max_tokens"], temperature=0.0,
                stream=True, ignore_eos=True,
            )  # fmt: skip
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            for chunk in runner.send_chat_completion_request(request):
                usage = getattr(chunk, "usage", None)
                event = {"choices": [{"delta": {"content": chunk.choices[0].delta.content if chunk.choices else ""}}]}
                if usage is not None:
                    event["usage"] = {
                        "prompt_tokens": usage.prompt_tokens,
                        "completion_tokens": usage.completion_tokens,
                    }
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

    class Server(ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return (server, runner), f"http://127.0.0.1:{server.server_address[1]}"


def main():
    kind, path, threads, slots = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    held, address = llama(path, threads, slots) if kind == "llama" else mistral(path, slots)
    print(address, flush=True)
    sys.stdin.read()
    del held
    # Threads of the peers would go on.
    sys.stdout.flush()
    os._exit(0)


main()
