"""Asks an agent over NATS: nats_client.py NATS_URL WORKSPACE QUESTION (needs nats-py and msgpack)."""

import asyncio, json, secrets, sys, time, uuid

import msgpack
import nats


async def main(url, workspace, question):
    bus = await nats.connect(url)
    execution = str(uuid.UUID(int=time.time_ns() // 10**6 << 80 | 7 << 76 | 2 << 62 | secrets.randbits(62)))  # a UUIDv7
    answers, tokens = await bus.subscribe(f"answer.{execution}"), await bus.subscribe(f"vl.v1.tok.{execution}.>")
    request = {"agent": {"agent_type": "coder", "instruction": question, "workspace": workspace}}
    body = {"type": "execution.requested", "data": {"request": request, "reply": answers.subject}}
    fact = {"schema": "fact/1.0", "exec": execution, "at": time.time_ns(), "body": body}
    headers = {"Nats-Msg-Id": f"{execution}/requested"}  # published again, it is stored once
    await bus.jetstream().publish(f"vl.v1.submit.{execution}", json.dumps(fact).encode(), headers=headers)
    show = asyncio.create_task(print_tokens(tokens))  # what follows is in the log: from here on nothing is lost
    answer = json.loads((await answers.next_msg(timeout=120)).data)
    show.cancel()
    print(f"\n{answer['status']}: {answer['response']}\n{execution}")


async def print_tokens(tokens):
    async for frame in tokens.messages:
        print(msgpack.unpackb(frame.data).get("text", ""), end="", flush=True)


asyncio.run(main(*sys.argv[1:]))
