"""Drives agents of five steps and keeps their times, the same for every peer as `examples/speed` does for ours."""

import asyncio
import json
import math
import time

STEPS = 5
WARM_UP = 1.0
TOOLS = ("tool_0", "tool_1", "tool_2")

# When each step of each agent that is under way began and ended.
_steps: dict[str, dict[str, tuple[float, float]]] = {}


def step(agent: str, name: str) -> str:
    """A stub: it answers at once."""
    began = time.perf_counter()
    answer = "a stub's answer"
    _steps[agent][name] = (began, time.perf_counter())
    return answer


def _hops(steps: dict[str, tuple[float, float]]) -> list[float]:
    """From the end of each step to the beginning of those that waited for it."""
    tools = [steps[name] for name in TOOLS]
    joined = max(ended for _, ended in tools)
    return [began - steps["first"][1] for began, _ in tools] + [steps["last"][0] - joined]


def _spread(times: list[float]) -> dict[str, float]:
    times = sorted(times)

    def at(percent):
        return times[max(math.ceil(len(times) * percent / 100), 1) - 1] * 1e3

    return {"p50": at(50), "p99": at(99)}


async def drive(run, concurrent: int, seconds: float) -> None:
    """Runs `run(agent)` again and again in `concurrent` tasks; prints what `speed agents` prints."""
    start = time.perf_counter() + WARM_UP
    until = start + seconds
    ended: list[tuple[float, list[float]]] = []

    async def client(number: int) -> None:
        count = 0
        while time.perf_counter() < until:
            agent = f"{start}-{number}-{count}"
            count += 1
            _steps[agent] = {}
            submitted = time.perf_counter()
            await run(agent)
            now = time.perf_counter()
            steps = _steps.pop(agent)
            if start <= now < until:
                ended.append((now - submitted, _hops(steps)))

    await asyncio.gather(*(client(number) for number in range(concurrent)))
    print(
        json.dumps(
            {
                "agents": len(ended),
                "steps_per_second": len(ended) * STEPS / seconds,
                "hop_ms": _spread([hop for _, hops in ended for hop in hops]),
                "agent_ms": _spread([whole for whole, _ in ended]),
            }
        ),
        flush=True,
    )
