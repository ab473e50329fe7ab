"""Byte-level BPE whose pieces do not depend on what stands before an identifier.

Copying a name from the conversation is then copying the same tokens, whether the name follows a space, a quote or a
line break. Separators stick to the word after them, and numbers up to 999 are one token each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from generate import ALL_TOOLS, World, conversation, system_prompt

SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
]  # fmt: skip

# The only words that may carry the space before them: function words that are never part of a value.
STOP_WORDS = """
the a an is are was in of at to and or by on with it its that this where what which who how does do did me my you your
can your file files defined declared used uses using calls called find search show read list lines line code source
defines symbols contains contain starts has matches no found result top closest web online internet look up about here
there also both related handle handles handled implemented implementation usages references dependencies depend modules
functions part through small assistant am fine help what like workspace ask welcome tool tools failed nothing then
imports
""".split()


def pattern() -> str:
    """The one split expression of the tokenizer."""
    stop = "|".join(sorted(set(STOP_WORDS), key=lambda word: (-len(word), word)))
    return "|".join(
        (
            r" {2,}",
            r"\": \{\"|\": \"|\", \"|\": |, \"|`|/{2,}|->",
            rf" (?:{stop})(?![A-Za-z0-9_]|[./:-][A-Za-z_])",
            r"(?:::|[_./-])?(?:[A-Z]?[a-z]+|[A-Z]+(?![a-z]))",
            r"[_./-][0-9](?![0-9])",
            r"[0-9]{1,3}",
            r"[^\sA-Za-z0-9_./`-]+",
            r"\n+ *",
            r"\s",
            r"[\s\S]",
        )
    )


def corpus(pool: dict[str, dict[str, list[str]]]) -> Iterator[str]:
    """Training text: conversations, every number up to 999, and the pool words in the forms they take."""
    world = World(pool, "train", 11)
    for _ in range(6000):
        yield system_prompt(ALL_TOOLS) + "".join(text for text, _ in conversation(world, ALL_TOOLS))
    for number in range(1000):
        yield f"{number}\n" * 300
    for word in pool["train"]["words"]:
        yield f"{word}\n{word.capitalize()}\n_{word}\n/{word}"


def main() -> None:
    """Command line."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, default=here / "pool.json")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocab", type=int, default=3072)
    options = parser.parse_args()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern()), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocab,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(json.loads(options.pool.read_text())), trainer)
    tokenizer.save(str(options.out))
    split = sum(len(tokenizer.encode(str(number)).ids) > 1 for number in range(1000))
    print(f"vocabulary {tokenizer.get_vocab_size()}, numbers of more than one token: {split}")
    for text in (
        "Where is parse_config defined?",
        '"query": "parse_config"',
        "cutile-0.5.0/src/bus.rs:142: fn zap_17() {`.",
    ):
        print(tokenizer.encode(text).tokens)


if __name__ == "__main__":
    main()
