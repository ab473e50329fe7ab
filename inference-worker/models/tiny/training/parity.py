"""Checks the exported folder against Hugging Face transformers.

1. logits of the training network and of `Qwen3ForCausalLM` agree;
2. the chat template prints exactly the text the model was trained on;
3. greedy decoding of whole held-out conversations, turn by turn with the model's own calls in the history, and how
   many of them are right.

python parity.py --count 5
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluate import load_exported, make
from generate import ALL_TOOLS, BEGIN, CONTEXT, END, TASKS, TOOLS, USUAL_TOOLS, Segments, World, system_prompt


def schemas(tools: tuple[str, ...]) -> list[dict[str, object]]:
    """What the chat template is given for these tools."""
    return [
        {"type": "function", "function": {"name": name, "parameters": {"properties": dict.fromkeys(TOOLS[name], {})}}}
        for name in tools
    ]


def messages(text: str) -> list[dict[str, object]]:
    """Chat messages of a conversation's text."""
    result: list[dict[str, object]] = []
    for role, content in re.findall(rf"{re.escape(BEGIN)}(\w+)\n(.*?){re.escape(END)}", text, re.DOTALL):
        outputs = re.findall(r"<tool_response>\n(.*?)\n</tool_response>", content, re.DOTALL)
        calls = re.findall(r"<tool_call>\n(.*?)\n</tool_call>", content, re.DOTALL)
        if role == "user" and outputs:
            result += [{"role": "tool", "content": output} for output in outputs]
        elif role == "assistant" and calls:
            result.append({"role": role, "content": "", "tool_calls": [{"function": json.loads(c)} for c in calls]})
        else:
            result.append({"role": role, "content": content})
    return result


def turns(segments: Segments) -> list[tuple[str, str]]:
    """(what stands before an assistant turn, the turn) for every assistant turn."""
    result, before, written = [], "", ""
    for text, kind in [*segments, ("", CONTEXT)]:
        if kind != CONTEXT:
            written += text
            continue
        if written:
            result.append((before, written))
            before, written = before + written, ""
        before += text
    return result


def main() -> None:
    """Command line; exits with 1 when logits or template disagree."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=here.parent)
    parser.add_argument("--pool", type=Path, default=here / "pool.json")
    parser.add_argument("--count", type=int, default=5, help="conversations per task")
    parser.add_argument("--seed", type=int, default=31_000)
    options = parser.parse_args()
    torch.set_num_threads(2)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    reference = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    mine = load_exported(options.model).eval()
    world = World(json.loads(options.pool.read_text()), "held", options.seed)
    largest, rendered, right, total = 0.0, 0, 0, 0
    for name, task in TASKS.items():
        tools = USUAL_TOOLS if set(task.tools) <= set(USUAL_TOOLS) else ALL_TOOLS
        system = system_prompt(tools)
        for _ in range(options.count):
            segments = make(world, task.make, tools)
            text = system + "".join(piece for piece, _ in segments)
            chat = messages(text)[1:]
            rendered += tokenizer.apply_chat_template(chat, tools=schemas(tools), tokenize=False) != text
            ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
            prefix = len(tokenizer.encode(system, add_special_tokens=False))
            with torch.no_grad():
                flat = torch.arange(ids.shape[1] - prefix)
                logits = mine(ids[0, :prefix], ids[:, prefix:], flat)
                largest = max(largest, (reference(ids).logits[0, prefix:] - logits).abs().max().item())
            good = True
            for before, wanted in turns([(system, CONTEXT), *segments]):
                prompt = torch.tensor([tokenizer.encode(before, add_special_tokens=False)])
                out = reference.generate(
                    prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=160, do_sample=False,
                    eos_token_id=2, pad_token_id=0,
                )  # fmt: skip
                got = tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=False)
                if got != wanted:
                    print(f"[{name}]\n  want {wanted!r}\n  got  {got!r}")
                    good = False
                    break
            right, total = right + good, total + 1
    print(f"largest logit difference {largest:.2g}; template differences {rendered}")
    print(f"greedy decoding in transformers: {right} of {total} held-out conversations right (seed {options.seed})")
    sys.exit(int(largest > 1e-3 or rendered > 0))


if __name__ == "__main__":
    main()
