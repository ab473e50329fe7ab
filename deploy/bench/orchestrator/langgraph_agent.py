"""The agent on LangGraph with a checkpoint after each super-step, durable before the next begins.

langgraph_agent.py postgres DSN CONCURRENT SECONDS
langgraph_agent.py sqlite FILE CONCURRENT SECONDS
langgraph_agent.py growth FILE          one long execution: bytes stored over bytes of content
"""

import asyncio
import json
import operator
import os
import random
import sys
from contextlib import asynccontextmanager
from typing import Annotated, TypedDict

import aiosqlite
from agent_times import TOOLS, drive, step
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

MODEL_CALLS = 100
CONTENT_BYTES = 2_500
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


class State(TypedDict):
    agent: str
    messages: Annotated[list[str], operator.add]


def agent_graph() -> StateGraph:
    def node(name: str):
        async def run(state: State):
            return {"messages": [step(state["agent"], name)]}

        return run

    graph = StateGraph(State)
    for name in ("first", *TOOLS, "last"):
        graph.add_node(name, node(name))
    graph.add_edge(START, "first")
    for name in TOOLS:
        graph.add_edge("first", name)
    graph.add_edge(list(TOOLS), "last")
    graph.add_edge("last", END)
    return graph


def long_graph() -> StateGraph:
    noise = random.Random(1)

    def content() -> str:
        return "".join(noise.choices(LETTERS, k=CONTENT_BYTES))

    async def model(state: State):
        return {"messages": [content()]}

    async def tool(state: State):
        return {"messages": [content()]}

    def after_model(state: State) -> str:
        return END if len(state["messages"]) >= 2 * MODEL_CALLS else "tool"

    graph = StateGraph(State)
    graph.add_node("model", model)
    graph.add_node("tool", tool)
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", after_model, ["tool", END])
    graph.add_edge("tool", "model")
    return graph


@asynccontextmanager
async def postgres(dsn: str):
    options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}
    async with AsyncConnectionPool(dsn, min_size=4, max_size=20, kwargs=options) as pool:
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        yield saver


@asynccontextmanager
async def sqlite(file: str):
    async with aiosqlite.connect(file) as connection:
        await connection.execute("PRAGMA journal_mode=WAL")
        await connection.execute("PRAGMA synchronous=FULL")
        saver = AsyncSqliteSaver(connection)
        await saver.setup()
        yield saver


async def measure(saver, concurrent: int, seconds: float) -> None:
    graph = agent_graph().compile(checkpointer=saver)

    async def run(agent: str) -> None:
        config = {"configurable": {"thread_id": agent}}
        await graph.ainvoke({"agent": agent, "messages": ["Do something."]}, config, durability="sync")

    await drive(run, concurrent, seconds)


async def growth(file: str) -> None:
    async with sqlite(file) as saver:
        graph = long_graph().compile(checkpointer=saver)
        config = {"configurable": {"thread_id": "long"}, "recursion_limit": 10 * MODEL_CALLS}
        state = await graph.ainvoke({"agent": "long", "messages": ["Do something."]}, config, durability="sync")
        await saver.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        useful = sum(len(message) for message in state["messages"])
        stored = sum(os.path.getsize(part) for part in (file, file + "-wal", file + "-shm") if os.path.exists(part))
        print(json.dumps({"stored_bytes": stored, "useful_bytes": useful, "stored_over_useful": stored / useful}))


async def main() -> None:
    kind, where, *rest = sys.argv[1:]
    if kind == "growth":
        return await growth(where)
    async with (postgres if kind == "postgres" else sqlite)(where) as saver:
        await measure(saver, int(rest[0]), float(rest[1]))


asyncio.run(main())
