"""Writes a Hugging Face folder (f16) from a training checkpoint.

python export.py --checkpoint run/checkpoint.pt --tokenizer run/tokenizer.json --out ..
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from safetensors.torch import save_file

from evaluate import load_checkpoint
from model import to_hugging_face

CHAT_TEMPLATE = r"""
{%- set ns = namespace(sys='You are Vlinder, a code assistant.') -%}
{%- set msgs = messages -%}
{%- if messages[0].role == 'system' -%}
  {%- set ns.sys = messages[0].content -%}
  {%- set msgs = messages[1:] -%}
{%- endif -%}
{{- '<|im_start|>system\n' + ns.sys -}}
{%- if tools -%}
  {{- ' Tools:' -}}
  {%- for t in tools -%}
    {%- set f = t.function if t.function is defined else t -%}
    {{- '\n' + f.name + '(' -}}
    {%- for k in f.parameters.properties -%}
      {{- k -}}
      {%- if not loop.last -%}{{- ', ' -}}{%- endif -%}
    {%- endfor -%}
    {{- ')' -}}
  {%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- for m in msgs -%}
  {%- if m.role == 'tool' -%}
    {%- if loop.first or msgs[loop.index0 - 1].role != 'tool' -%}{{- '<|im_start|>user' -}}{%- endif -%}
    {{- '\n<tool_response>\n' + m.content + '\n</tool_response>' -}}
    {%- if loop.last or msgs[loop.index0 + 1].role != 'tool' -%}{{- '<|im_end|>\n' -}}{%- endif -%}
  {%- elif m.role == 'assistant' -%}
    {{- '<|im_start|>assistant\n' + (m.content or '') -}}
    {%- for tc in m.tool_calls or [] -%}
      {%- set f = tc.function if tc.function is defined else tc -%}
      {%- if not loop.first or m.content -%}{{- '\n' -}}{%- endif -%}
      {{- '<tool_call>\n{"name": "' + f.name + '", "arguments": ' -}}
      {%- if f.arguments is string -%}{{- f.arguments -}}{%- else -%}{{- f.arguments | tojson -}}{%- endif -%}
      {{- '}\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\n' -}}
  {%- else -%}
    {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
"""

# Indentation is for the reader; the shipped template is one line per tag so that every template engine agrees.
TEMPLATE = "\n".join(line.strip() for line in CHAT_TEMPLATE.strip().splitlines())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--average", action="store_true", help="averaged weights instead of the last ones")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    model = load_checkpoint(options.checkpoint, options.average)
    weights = {name: weight.half() for name, weight in to_hugging_face(model).items()}
    save_file(weights, out / "model.safetensors", {"format": "pt"})
    tokenizer_settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": model.config.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    for name, content in (
        ("config.json", model.config.hugging_face()),
        ("tokenizer_config.json", tokenizer_settings),
        ("generation_config.json", {"eos_token_id": [2, 0], "pad_token_id": 0, "do_sample": False}),
    ):
        (out / name).write_text(json.dumps(content, indent=1) + "\n")
    if options.tokenizer.resolve() != (out / "tokenizer.json").resolve():
        shutil.copy(options.tokenizer, out / "tokenizer.json")
    for file in sorted(out.iterdir()):
        if file.is_file():
            print(f"{file.name} {file.stat().st_size}")


if __name__ == "__main__":
    main()
