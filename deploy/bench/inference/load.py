"""Asks a server and measures what its clients see; prints one JSON line.

load.py KIND ADDRESS SCENARIO [MODEL]

KIND is `ours` (POST /internal/chat, the secret in VLINDERS_SECRET) or `openai` (POST /v1/chat/completions).

decode        one request, 16 tokens in, 128 out: tokens per second from the first token to the last
prefill       one request of 512 new tokens, one out: tokens in per second
together N    N requests at once, 128 tokens in, 64 out: tokens out per second, reading the prompts included
ragged N      the same with 64 to 192 tokens in, 128 in the mean
shared N      one request with 512 tokens, then N at once that begin with these and differ in 16: time to first token
"""

import http.client
import json
import os
import random
import statistics
import sys
import threading
import time
from urllib.parse import urlparse

LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Words of three letters of which each is one token of the model's vocabulary.
WORDS = [" " + a + b + c for a in LETTERS[:20] for b in LETTERS for c in LETTERS]


class Server:
    def __init__(self, kind: str, address: str, model: str | None) -> None:
        self.ours = kind == "ours"
        self.at = urlparse(address)
        self.model = model
        self.path = "/internal/chat" if self.ours else "/v1/chat/completions"
        self.headers = {"Content-Type": "application/json"}
        if self.ours:
            self.headers["X-Internal-Auth"] = os.environ["VLINDERS_SECRET"]

    def ask(self, prompt: str, tokens_max: int) -> dict:
        """Streams one answer; times in seconds since the request was sent."""
        body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": tokens_max, "temperature": 0}
        body["stream"] = True
        if self.model:
            body["model"] = self.model
        if self.ours:
            # What is measured is computed, also when it was asked before.
            body["cache"] = False
        else:
            body["stream_options"] = {"include_usage": True}
        connection = http.client.HTTPConnection(self.at.hostname, self.at.port, timeout=280)
        began = time.perf_counter()
        connection.request("POST", self.path, json.dumps(body), self.headers)
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {response.read(500)!r}")
        times, usage = [], None
        for line in response:
            if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                continue
            event = json.loads(line[6:])
            now = time.perf_counter() - began
            # Ours: a token event has text, the last event the usage. The others: a chunk with a delta.
            if self.ours and "text" in event or event.get("choices"):
                times.append(now)
            usage = event.get("usage") or usage
        connection.close()
        if usage is None:
            raise RuntimeError("the answer ended without saying what it used")
        if usage["completion_tokens"] != tokens_max:
            raise RuntimeError(f"{usage['completion_tokens']} tokens came, {tokens_max} were wanted")
        return {"first": times[0], "last": times[-1], "prompt": usage["prompt_tokens"]}

    def ask_all(self, prompts: list[str], tokens_max: int) -> tuple[float, list[dict]]:
        """Asks everything at once; seconds until the last answer is there, and the answers."""
        answers: list[dict | Exception] = [RuntimeError("no answer")] * len(prompts)
        start = threading.Barrier(len(prompts) + 1)

        def one(index: int) -> None:
            start.wait()
            try:
                answers[index] = self.ask(prompts[index], tokens_max)
            except Exception as error:  # Reported by the thread that waits.
                answers[index] = error

        threads = [threading.Thread(target=one, args=(index,)) for index in range(len(prompts))]
        for thread in threads:
            thread.start()
        start.wait()
        began = time.perf_counter()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
        failed = [answer for answer in answers if isinstance(answer, Exception)]
        if failed:
            raise failed[0]
        return seconds, answers


def words(count: int) -> str:
    return "".join(random.choices(WORDS, k=count))


def measure(server: Server, scenario: str, count: int) -> dict:
    if scenario == "decode":
        answer = server.ask(words(16), 128)
        rate = 127 / (answer["last"] - answer["first"])
        return {"tokens_per_second": rate, "prompt_tokens": answer["prompt"]}
    if scenario == "prefill":
        answer = server.ask(words(512), 1)
        return {"tokens_per_second": 512 / answer["first"], "prompt_tokens": answer["prompt"]}
    if scenario in ("together", "ragged"):
        lengths = [128] * count
        if scenario == "ragged":
            lengths = [64 + 128 * index // (count - 1) for index in range(count)]
        seconds, answers = server.ask_all([words(length) for length in lengths], 64)
        prompt = sum(answer["prompt"] for answer in answers)
        return {"tokens_per_second": 64 * count / seconds, "prompt_tokens": prompt}
    if scenario == "shared":
        shared = words(512)
        cold = server.ask(shared, 16)
        _, answers = server.ask_all([shared + words(16) for _ in range(count)], 16)
        first = sorted(answer["first"] for answer in answers)
        return {
            "first_p50_s": statistics.median(first),
            "first_p95_s": first[round(0.95 * (count - 1))],
            "cold_s": cold["first"],
            "prompt_tokens": answers[0]["prompt"],
        }
    raise SystemExit(f"unknown scenario {scenario}")


def main() -> None:
    kind, address, scenario = sys.argv[1:4]
    rest = sys.argv[4:]
    count = int(rest.pop(0)) if rest and rest[0].isdigit() else 1
    server = Server(kind, address, rest[0] if rest else None)
    # No prompt is asked twice: what a server keeps of earlier ones must not help.
    random.seed(time.time_ns())
    server.ask(words(4), 2)
    result = measure(server, scenario, count)
    print(json.dumps({key: round(value, 4) for key, value in result.items()}))


main()
