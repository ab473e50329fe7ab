"""What transformers computes of a random model, and how fast: the peer of `deploy/bench/run gpu`.

peer.py make DIRECTORY                            a model of Qwen3-0.6B's shape with random weights, and a tokenizer
peer.py reference DIRECTORY FILE                  logits and greedy tokens of a few prompts
peer.py together DIRECTORY REQUESTS IN OUT        so many at once, by continuous batching
"""

import json
import sys
import time
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

END = "<|im_end|>"
TEMPLATE = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
GREEDY = 64
LOGITS = 8


def make(directory: Path) -> None:
    torch.manual_seed(20)
    tokens, merges = vocabulary()
    config = Qwen3Config(
        vocab_size=151936, hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
        head_dim=128, intermediate_size=3072, max_position_embeddings=8192, rope_theta=1e6, tie_word_embeddings=True,
        initializer_range=0.04, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(directory)
    tokenizer = Tokenizer(models.BPE(vocab={token: id for id, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": END}))


def vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """Bytes, then words of a space and one to three letters that grow by merges, then the end token."""
    tokens, merges = sorted(pre_tokenizers.ByteLevel.alphabet()), []
    heads = ["Ġ"]
    for _ in range(3):
        grown = [(head, letter) for head in heads for letter in "abcdefghijklmnopqrstuvwxyz"]
        merges += grown
        heads = [head + letter for head, letter in grown]
        tokens += heads
    return [*tokens, END], merges


def load(directory: Path):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16)
    return model.to("cuda").eval()


def prompts() -> list[list[int]]:
    return [[(at * 7919 + length * 31) % 5000 + 300 for at in range(length)] for length in (1, 17, 200, 1000, 3000)]


@torch.inference_mode()
def reference(directory: Path, file: Path) -> None:
    model = load(directory)
    cases = []
    for prompt in prompts():
        ids, past, greedy, logits = torch.tensor([prompt], device="cuda"), None, [], []
        for _ in range(GREEDY):
            out = model(ids, past_key_values=past, use_cache=True)
            past, row = out.past_key_values, out.logits[0, -1].float()
            greedy.append(int(row.argmax()))
            if len(logits) < LOGITS:
                logits.append(row.tolist())
            ids = torch.tensor([[greedy[-1]]], device="cuda")
        cases.append({"prompt": prompt, "greedy": greedy, "logits": logits})
    file.write_text(json.dumps({"cases": cases}))


@torch.inference_mode()
def together(directory: Path, requests: int, tokens_in: int, tokens_out: int) -> None:
    model = load(directory)
    model.set_attn_implementation("sdpa_paged")
    config = GenerationConfig(max_new_tokens=tokens_out, do_sample=False, eos_token_id=-1, pad_token_id=0)

    def once(round: int) -> tuple[float, int]:
        inputs = [[(at * 7919 + n * 31 + round * 97) % 5000 + 300 for at in range(tokens_in)] for n in range(requests)]
        torch.cuda.synchronize()
        began = time.perf_counter()
        out = model.generate_batch(inputs=inputs, generation_config=config, progress_bar=False)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        return seconds, sum(len(answer.generated_tokens) for answer in out.values())

    once(0)
    seconds, tokens = once(1)
    print(json.dumps({"requests": requests, "tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}))


def main() -> None:
    what, directory, *rest = sys.argv[1:]
    if what == "make":
        make(Path(directory))
    elif what == "reference":
        reference(Path(directory), Path(rest[0]))
    elif what == "together":
        together(Path(directory), *map(int, rest))
    else:
        sys.exit(__doc__)


main()
