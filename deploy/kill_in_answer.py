"""Shows the events of `vlinders agent --json`, and kills a process in the middle of the answer.

python3 deploy/kill_in_answer.py PID FILE < events      (FILE receives the execution's id)
"""

import json
import os
import signal
import sys

TOKENS_BEFORE = 3  # token events of the answer that are seen before the kill


def main() -> int:
    """Reads to the end; fails when the process was never killed or the answer never came."""
    pid, file = int(sys.argv[1]), sys.argv[2]
    results, tokens, killed, done = 0, 0, False, False
    for line in sys.stdin:
        event = json.loads(line)
        name, data = event["event"], event["data"]
        if name == "started":
            with open(file, "w", encoding="utf-8") as out:
                out.write(data["execution_id"])
        elif name == "tool_call":
            print(f"→ {data['name']}({json.dumps(data['arguments'])})", flush=True)
        elif name == "tool_result":
            results += 1
            print(f"← {data['result'].splitlines()[0]} …", flush=True)
        elif name == "restart":
            print(f"\n(the answer begins anew)\n{data['text']}", end="", flush=True)
        elif name == "token":
            print(data["text"], end="", flush=True)
            tokens += results > 0
            if tokens == TOKENS_BEFORE and not killed:
                os.kill(pid, signal.SIGKILL)
                killed = True
                print(" [kill -9] ", end="", flush=True)
        elif name == "done":
            done = True
        elif name == "error":
            print(f"\n{data['detail']}", file=sys.stderr)
    print()
    return 0 if killed and done else 1


if __name__ == "__main__":
    sys.exit(main())
