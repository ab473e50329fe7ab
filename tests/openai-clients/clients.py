"""Asks a gateway what OpenAI's own Python client and LangChain ask: nothing here knows that it is not OpenAI.

clients.py BASE_URL KEY MODEL EMBEDDING_MODEL|-

Prints each check that holds; ends with the first that does not.
"""

import asyncio
import json
import sys
from typing import Literal

import openai
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel

BASE, KEY, MODEL, EMBEDDING = sys.argv[1:5]
HELLO = [{"role": "user", "content": "hello"}]

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Basel", "Bern"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NAMED = {"type": "function", "function": {"name": "weather"}}


class Verdict(BaseModel):
    """A verdict."""

    verdict: Literal["yes", "no"]
    certain: bool


def refused(kind, status, ask):
    try:
        ask()
    except kind as error:
        assert error.status_code == status, error
        return error
    raise AssertionError(f"{kind.__name__} was expected")


def models(client):
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).object == "model"
    error = refused(openai.NotFoundError, 404, lambda: client.models.retrieve("nope"))
    assert error.code == "model_not_found" and MODEL in error.message, error


def completion(client):
    answer = client.chat.completions.create(model=MODEL, messages=HELLO)
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == MODEL
    (choice,) = answer.choices
    assert choice.finish_reason == "stop" and choice.message.role == "assistant" and choice.message.content
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    # Sent again under its key it is the same execution.
    drawn = {"model": MODEL, "messages": HELLO, "temperature": 1.5, "extra_headers": {"Idempotency-Key": "completion"}}
    first, second = (client.chat.completions.with_raw_response.create(**drawn) for _ in range(2))
    assert first.parse() == second.parse()
    assert [raw.headers.get("idempotent-replayed") for raw in (first, second)] == [None, "true"]
    # What was answered can be sent back as it is.
    more = [*HELLO, choice.message.model_dump(), {"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    assert client.chat.completions.create(model=MODEL, messages=more).choices[0].message.content


def streamed(client):
    # Streamed first: an equal request that comes later is answered from what was kept, in one piece.
    asked = {"model": MODEL, "messages": [{"role": "user", "content": "what can you do?"}]}
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    whole = client.chat.completions.create(**asked)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len([chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]) > 3, "token by token"
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    plain = list(client.chat.completions.create(**asked, stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in plain)


def sampling(client):
    drawn = {"model": MODEL, "messages": HELLO, "temperature": 1.2, "max_tokens": 24}
    text = lambda **more: client.chat.completions.create(**drawn, **more).choices[0].message.content  # noqa: E731
    assert text(seed=5) == text(seed=5)
    both = client.chat.completions.create(**drawn, seed=-7, n=2)
    assert [choice.index for choice in both.choices] == [0, 1]
    several = {}
    for chunk in client.chat.completions.create(**drawn, seed=-7, n=2, stream=True):
        for choice in chunk.choices:
            several[choice.index] = several.get(choice.index, "") + (choice.delta.content or "")
    assert several == {choice.index: choice.message.content for choice in both.choices}
    short = client.chat.completions.create(model=MODEL, messages=HELLO, max_completion_tokens=3)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 3
    whole = client.chat.completions.create(model=MODEL, messages=HELLO).choices[0].message.content
    stop = whole[len(whole) // 2 :][:4]
    stopped = client.chat.completions.create(model=MODEL, messages=HELLO, stop=[stop]).choices[0]
    assert stopped.message.content == whole.split(stop)[0] and stopped.finish_reason == "stop"


def logprobs(client):
    asked = {"model": MODEL, "messages": HELLO, "logprobs": True, "top_logprobs": 2, "max_tokens": 4}
    content = client.chat.completions.create(**asked).choices[0].logprobs.content
    assert len(content) == 4 and all(len(token.top_logprobs) == 2 for token in content)
    assert content[0].logprob == content[0].top_logprobs[0].logprob and bytes(content[0].bytes).decode()
    likely = []
    for chunk in client.chat.completions.create(**asked, stream=True):
        likely += [c for choice in chunk.choices if choice.logprobs for c in choice.logprobs.content]
    assert [token.token for token in likely] == [token.token for token in content]


def tools(client):
    asked = {"model": MODEL, "messages": HELLO, "tools": [WEATHER], "tool_choice": NAMED}
    choice = client.chat.completions.create(**asked, parallel_tool_calls=False).choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Basel", "Bern")
    with client.chat.completions.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion().choices[0]
    assert final.message.tool_calls[0].function.arguments == call.function.arguments
    assert "tool_calls.function.arguments.done" in kinds, kinds
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    back = client.chat.completions.create(model=MODEL, messages=[*HELLO, choice.message, result], max_tokens=16)
    assert back.choices[0].message.content is not None


def one_at_a_time(client):
    def of(name, *fields):
        schema = {"type": "object", "properties": {field: {"type": "string"} for field in fields}, "required": [fields[0]]}
        return {"type": "function", "function": {"name": name, "description": "", "parameters": schema}}

    # The tools that the model knows, and a question that it asks two of at once.
    asked = {"model": MODEL, "tools": [of("search_code", "query", "path"), of("read_file", "path")]}
    for question in ("Find TokenReader and Liveness.", "Where are TokenReader and Liveness defined?"):
        asked["messages"] = [{"role": "user", "content": question}]
        both = client.chat.completions.create(**asked).choices[0].message.tool_calls
        if both and len(both) == 2:
            break
    assert len(both) == 2, "the model calls twice where it may"
    for choice in ("auto", "required"):
        one = client.chat.completions.create(**asked, tool_choice=choice, parallel_tool_calls=False).choices[0]
        (call,) = one.message.tool_calls
        assert one.finish_reason == "tool_calls" and call.function == both[0].function, one
    streamed = client.chat.completions.create(**asked, parallel_tool_calls=False, stream=True)
    calls = [call for chunk in streamed for choice in chunk.choices for call in choice.delta.tool_calls or []]
    assert [call.function.arguments for call in calls] == [both[0].function.arguments], calls


def structured(client):
    parsed = client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Verdict)
    assert isinstance(parsed.choices[0].message.parsed, Verdict)
    free = client.chat.completions.create(
        model=MODEL, messages=HELLO, response_format={"type": "json_object"}, max_tokens=64
    )
    assert free.choices[0].message.content.lstrip().startswith("{")


def embeddings(client):
    if EMBEDDING == "-":
        return
    both = client.embeddings.create(model=EMBEDDING, input=["a cat", "a dog"])
    assert [one.index for one in both.data] == [0, 1] and both.usage.prompt_tokens > 0
    plain = client.embeddings.create(model=EMBEDDING, input="a cat", encoding_format="float")
    assert max(abs(a - b) for a, b in zip(both.data[0].embedding, plain.data[0].embedding)) < 1e-6
    wrong = lambda: client.embeddings.create(model=EMBEDDING, input="a cat", dimensions=7)  # noqa: E731
    assert refused(openai.BadRequestError, 400, wrong).param == "dimensions"
    ids = lambda: client.embeddings.create(model=EMBEDDING, input=[[1, 2, 3]])  # noqa: E731
    assert "token ids" in refused(openai.BadRequestError, 400, ids).message


def refusals(client):
    ask = client.chat.completions.create
    hot = lambda: ask(model=MODEL, messages=HELLO, temperature=11)  # noqa: E731
    assert refused(openai.BadRequestError, 400, hot).param == "temperature"
    unknown = lambda: ask(model="tinny", messages=HELLO)  # noqa: E731
    error = refused(openai.NotFoundError, 404, unknown)
    assert error.code == "model_not_found" and f"did you mean {MODEL}" in error.message, error.message
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]}]
    assert refused(openai.BadRequestError, 400, lambda: ask(model=MODEL, messages=picture)).code == "unsupported_content"
    misspelt = lambda: ask(model=MODEL, messages=HELLO, extra_body={"temprature": 1})  # noqa: E731
    assert "temprature" in refused(openai.BadRequestError, 400, misspelt).message
    stranger = openai.OpenAI(base_url=BASE, api_key="wrong", max_retries=0)
    refused(openai.AuthenticationError, 401, lambda: stranger.models.list())
    long = [{"role": "user", "content": "hello " * 20_000}]
    late = refused(openai.APIStatusError, 413, lambda: ask(model=MODEL, messages=long))
    assert late.code == "overflow", late.message
    try:
        list(ask(model=MODEL, messages=long, stream=True))
        raise AssertionError("an error was expected within the stream")
    except openai.APIError as error:
        assert error.code == "overflow", error


async def crowd():
    async with openai.AsyncOpenAI(base_url=BASE, api_key=KEY, max_retries=0) as client:
        asked = [client.chat.completions.create(model=MODEL, messages=HELLO) for _ in range(16)]
        answers = await asyncio.gather(*asked)
    assert len({answer.choices[0].message.content for answer in answers}) == 1
    assert len({answer.id for answer in answers}) == 16


def langchain():
    @tool
    def weather(city: Literal["Basel", "Bern"]) -> str:
        """The weather of a city."""
        return f"sunny in {city}"

    chat = ChatOpenAI(base_url=BASE, api_key=KEY, model=MODEL, temperature=0, max_retries=0)
    asked = [SystemMessage("Be brief."), HumanMessage("hello")]
    chunks = list(chat.stream(asked))
    answer = chat.invoke(asked)
    assert answer.content and answer.usage_metadata["total_tokens"] > 0
    assert "".join(chunk.content for chunk in chunks) == answer.content and len(chunks) > 3
    calling = chat.bind_tools([weather], tool_choice="any").invoke(asked)
    call = calling.tool_calls[0]
    assert call["name"] == "weather" and call["args"]["city"] in ("Basel", "Bern"), calling
    gathered = None
    for chunk in chat.bind_tools([weather], tool_choice="weather").stream(asked):
        gathered = chunk if gathered is None else gathered + chunk
    assert gathered.tool_calls[0]["name"] == "weather" and gathered.tool_calls[0]["args"]["city"]
    result = ToolMessage(weather.invoke(call["args"]), tool_call_id=call["id"])
    assert chat.bind(max_tokens=16).invoke([*asked, calling, result]).content is not None
    for method in ("json_schema", "function_calling"):
        assert isinstance(chat.with_structured_output(Verdict, method=method).invoke(asked), Verdict), method
    if EMBEDDING != "-":
        vectors = OpenAIEmbeddings(base_url=BASE, api_key=KEY, model=EMBEDDING, check_embedding_ctx_length=False)
        assert len(vectors.embed_query("a cat")) == len(vectors.embed_documents(["a", "b"])[1])


def main():
    client = openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0, timeout=60)
    of_client = (
        models, completion, streamed, sampling, logprobs, tools, one_at_a_time, structured, embeddings, refusals,
    )  # fmt: skip
    for check in of_client:
        check(client)
        print(f"openai: {check.__name__}", flush=True)
    asyncio.run(crowd())
    print("openai: crowd", flush=True)
    langchain()
    print("langchain: all", flush=True)


if __name__ == "__main__":
    main()
