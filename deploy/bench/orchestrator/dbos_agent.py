"""The agent on DBOS and PostgreSQL: one durable workflow, a durable step for each call.

dbos_agent.py DSN CONCURRENT SECONDS
"""

import asyncio
import os
import sys

from agent_times import TOOLS, drive, step
from dbos import DBOS, DBOSConfig


@DBOS.step()
async def call(agent: str, name: str) -> str:
    return step(agent, name)


@DBOS.workflow()
async def agent(agent: str) -> str:
    await call(agent, "first")
    await asyncio.gather(*(call(agent, name) for name in TOOLS))
    return await call(agent, "last")


async def main() -> None:
    dsn, concurrent, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    DBOS(config=DBOSConfig(name="bench", system_database_url=dsn, log_level="ERROR"))
    DBOS.launch()
    await drive(agent, concurrent, seconds)
    sys.stdout.flush()
    # What it winds down is not measured.
    os._exit(0)


asyncio.run(main())
