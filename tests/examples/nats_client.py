"""Asks an agent over NATS: nats_client.py NATS_URL WORKSPACE QUESTION (pip install nats-py msgpack)."""

import asyncio, json, secrets, sys, time, uuid
import msgpack, nats


async def main(url, workspace, question):
    execution = str(uuid.UUID(int=time.time_ns() // 10**6 << 80 | 7 << 76 | 2 << 62 | secrets.randbits(62)))  # version 7
    bus = await nats.connect(url)
    answer = await bus.subscribe(f"answer.{execution}")
    await bus.subscribe(f"vl.v1.tok.{execution}.>", cb=show)
    request = {"agent": {"agent_type": "coder", "instruction": question, "workspace": workspace}}
    body = {"type": "execution.requested", "data": {"request": request, "reply": answer.subject}}
    fact = {"schema": "fact/1.0", "exec": execution, "at": time.time_ns(), "body": body}
    once = {"Nats-Msg-Id": f"{execution}/requested"}  # however often it is published
    await bus.jetstream().publish(f"vl.v1.submit.{execution}", json.dumps(fact).encode(), headers=once)
    end = json.loads((await answer.next_msg(timeout=120)).data)  # the request is safe: it goes on without us, too
    print(f"\n{end['status']}: {end['response']}\n{execution}")


async def show(frame):
    print(msgpack.unpackb(frame.data).get("text", ""), end="", flush=True)


asyncio.run(main(*sys.argv[1:]))
