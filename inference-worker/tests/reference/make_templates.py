"""Renders the conversations under tests/reference/templates with every template there and the shipped model's, as
transformers' apply_chat_template does.

Run once; the results are checked in. Needs transformers:

    python inference-worker/tests/reference/make_templates.py
"""

import copy
import json
import pathlib

import jinja2
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

HERE = pathlib.Path(__file__).parent / "templates"
TINY = HERE.parent.parent.parent / "models/tiny/tokenizer_config.json"


def user(text):
    return {"role": "user", "content": text}


def assistant(text, *calls):
    made = [{"id": f"callid{at:03}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for at, (name, arguments) in enumerate(calls)]
    return {"role": "assistant", "content": text, **({"tool_calls": made} if made else {})}


def result(text, at=0):
    return {"role": "tool", "content": text, "tool_call_id": f"callid{at:03}", "name": "f"}


def system(text):
    return {"role": "system", "content": text}


def tool(name, description, properties, **more):
    parameters = {"type": "object", "properties": properties, "required": list(properties), **more}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = [
    tool("get_weather", "The weather <now> & \"here\" — it's 100 % üñí", {"city": {"type": "string", "enum": ["Delft", "Gent 🇧🇪"]}}),
    tool("add", "Adds.\n\tTwo numbers.", {"a": {"type": "number", "minimum": 1e-7, "maximum": 1e16}, "b": {"type": "integer", "default": -3}},
         additionalProperties=False, examples=[{"a": 1.0, "b": 0}, {"a": 2.5e300, "b": None}, {"a": 123456789012345.6}]),
]
CONVERSATIONS = {
    "one question": ([user("Hello!")], []),
    "a system message": ([system("Be brief."), user("Hello!")], []),
    "several turns": ([user("Hello!"), assistant("Hi."), user("How are you?"), assistant("Well."), user("Good.")], []),
    "a system message and turns": ([system("  You are\nhelpful. "), user("a"), assistant("b"), user("c")], []),
    "empty texts": ([system(""), user(""), assistant(""), user("")], []),
    "spaces and lines": ([user("  \n leading and trailing \n\n"), assistant("\n\nx  "), user("\ttab\r\n")], []),
    "unicode": ([system("Ünïcödé ☃"), user("日本語 👩‍👩‍👧 \u2028 \u00a0 e\u0301 \u200b"), assistant("שלום"), user("Ǆ ß İ ﬁ")], []),
    "marks in the text": ([user("<|im_start|>system\n{{ bos_token }}{% if x %}</s>[INST]"), assistant("&lt;b&gt; <b> & 'x' \"y\""), user("\\n \\u0041 \u0001")], []),
    "offered tools": ([user("What is the weather?")], TOOLS),
    "offered tools and a system message": ([system("Use tools."), user("What is the weather?")], TOOLS),
    "one call and its result": ([user("Weather?"), assistant("", ("get_weather", {"city": "Delft"})), result("12 °C, \"windy\""), assistant("12 degrees."), user("And in Ghent?")], TOOLS),
    "a call with a text": ([user("Weather?"), assistant("I look.", ("get_weather", {"city": "Gent 🇧🇪", "deep": {"z": [1, 2.0, None, True], "a": "ü\n\"<'&"}})), result("{\"t\": 1.50}")], TOOLS),
    "two calls at once": ([user("Add."), assistant("", ("add", {"a": 1e-7, "b": 1}), ("add", {"a": 1e16, "b": -2})), result("1", 0), result("2", 1), assistant("1 and 2."), user("Thanks.")], TOOLS),
    "numbers": ([user("Add."), assistant("", ("add", {"a": [0.1, 1.0, -0.0, 100.0, 1e15, 1e16, 1.5e-5, 0.0001, 12345678.9, 5e-324, 1.7976931348623157e308], "b": [0, -1, 9007199254740993, 18446744073709551615]})), result("x")], TOOLS),
    "no arguments": ([user("Go."), assistant("", ("go", {})), result("")], [tool("go", "", {})]),
    "thoughts": ([user("Think."), assistant("<think>\nhm\n</think>\n\nDone."), user("Again."), assistant("<think>\nwell\n</think>\n\n", ("go", {"x": 1})), result("ok")], []),
    "two users in a row": ([user("a"), user("b")], []),
    "an assistant first": ([assistant("a"), user("b")], []),
    "a late system message": ([user("a"), system("now"), user("b")], []),
    "only a system message": ([system("alone")], []),
    "only a system message with tools": ([system("alone")], TOOLS),
    "ending with the assistant": ([user("a"), assistant("b")], []),
}


def parsed(messages):
    """Calls as transformers wants them: arguments as objects."""
    messages = copy.deepcopy(messages)
    for message in messages:
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return messages


def render(template, messages, tools):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"x": 0}, unk_token="x")), bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    try:
        text = tokenizer.apply_chat_template(parsed(messages), tools=tools or None, add_generation_prompt=True, tokenize=False)
        return {"text": text}
    except jinja2.exceptions.TemplateError as error:
        return {"error": error.message}


if __name__ == "__main__":
    templates = {path.stem: path.read_text() for path in sorted(HERE.glob("*.jinja"))}
    templates["tiny"] = json.loads(TINY.read_text())["chat_template"]
    cases = [
        {"name": name, "messages": messages, "tools": tools,
         "rendered": {kind: render(template, messages, tools) for kind, template in templates.items()}}
        for name, (messages, tools) in CONVERSATIONS.items()
    ]
    (HERE / "conversations.json").write_text(json.dumps(cases, indent=1, ensure_ascii=True) + "\n")
