"""Makes the small random BERT models under tests/reference and what sentence-transformers computes with them and with
all-MiniLM-L6-v2.

Run once; the results are checked in. Needs sentence-transformers, torch and transformers; deploy/install_embedding_model
prints where the real model is:

    python inference-worker/tests/reference/make_embeddings.py "$(deploy/install_embedding_model)"
"""

import json
import pathlib
import shutil
import sys
import tempfile

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

HERE = pathlib.Path(__file__).parent

# Each is the text, or a piece and how often it is repeated.
TEXTS = [
    "", " ", "\n\t", ".", "a", "A", "the", "Hello, world!", "hello, world!",
    "How do I get my money back?", "Refunds are paid within two weeks.", "The office is closed on Sundays.",
    "The quick brown fox jumps over the lazy dog.", "the QUICK brown FOX jumps over THE lazy dog",
    "It isn't what it's cracked up to be — or is it?", "1234567890 3.14159 -1e-12 0xDEADBEEF",
    "Où est la bibliothèque? L'été, à Zürich, naïve façade.", "Straße, GROẞ, ﬁne, Ǆ, İstanbul",
    "日本語のテキストと中文字符混在。", "Привет, мир! Как дела?", "مرحبا بالعالم", "שלום עולם", "नमस्ते दुनिया",
    "👋🏽 emoji 👨‍👩‍👧‍👦 flags 🇳🇱 and ☃", "zero\u200bwidth\u200djoiner\ufeffmark", "e\u0301 combining and é composed",
    "fn main() { println!(\"{}\", 6 * 7); }", "SELECT * FROM users WHERE id = ? -- drop table",
    "def f(x):\n    return [y**2 for y in x if y % 2]\n", "{\"key\": [1, null, true], \"nested\": {\"a\": \"b\"}}",
    "https://example.org/a/b?c=d&e=f#g", "C:\\Users\\name\\file.txt", "[CLS] [SEP] [PAD] [MASK] [UNK]",
    "pneumonoultramicroscopicsilicovolcanoconiosis antidisestablishmentarianism", ["supercalifragilistic", 12],
    "control\u0000\u0001characters\u007f and\u00a0no-break", ["word ", 100], ["a long text that goes on. ", 40],
    ["beyond every window ", 600], ["xyz", 5000], "a question about code search: where is the scheduler defined?",
]
FEW = ["", "hello world", "b ab a", "Hello WORLD", "ba " * 5, "unknown ☃ here", "hello " * 40]


def whole(text):
    return text if isinstance(text, str) else text[0] * text[1]


def references(model, texts):
    """One text at a time, so that nothing is padded."""
    vectors = [model.encode([whole(text)], batch_size=1)[0] for text in texts]
    # As few digits as give the same float again.
    return [{"text": text, "vector": [float(str(x)) for x in vector]} for text, vector in zip(texts, vectors)]


def write(path, model, texts):
    path.write_text("[\n" + ",\n".join(json.dumps(line, ensure_ascii=True) for line in references(model, texts)) + "\n]\n")


def tokenizer(directory, lower, length):
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters),
             "hello", "world", "##llo", "Hello", "HEL", "unknown"]
    inner = Tokenizer(models.WordPiece({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=lower)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
        mask_token="[MASK]", model_max_length=length,
    )
    fast.save_pretrained(directory)
    return len(words)


def make(name, dtype, pooling, normalise, lower=True, length=40, prefix="", older=False, prompt=None):
    torch.manual_seed(20)
    target = HERE / name
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        words = tokenizer(folder, lower, length)
        config = BertConfig(vocab_size=words, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
                            intermediate_size=40, max_position_embeddings=40, initializer_range=0.3)
        model = BertModel(config, add_pooling_layer=False).eval().to(dtype).float()
        model.save_pretrained(folder)
        steps = [modules.Transformer(folder), modules.Pooling(config.hidden_size, pooling)]
        if normalise:
            steps.append(modules.Normalize())
        prompts = {"prompts": {"query": prompt}, "default_prompt_name": "query"} if prompt else {}
        SentenceTransformer(modules=steps, device="cpu", **prompts).save_pretrained(str(target))
    (target / "README.md").unlink(missing_ok=True)
    # Weights are rounded to the file's type first, so that both sides compute with the same numbers in f32.
    weights = {key: value.to(dtype).contiguous() for key, value in load_file(target / "model.safetensors").items()}
    save_file({prefix + key: value for key, value in weights.items()}, target / "model.safetensors")
    if older:
        # The spelling of sentence-transformers 2.
        switches = {f"pooling_mode_{mode}": mode.startswith(pooling) for mode in
                    ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")}
        (target / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 24, **switches}, indent=2))
        (target / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12, "do_lower_case": True}))
        kinds = ["Transformer", "Pooling", "Normalize"][: 2 + normalise]
        paths = ["", "1_Pooling", "2_Normalize"]
        (target / "modules.json").write_text(json.dumps(
            [{"idx": at, "name": str(at), "path": paths[at], "type": f"sentence_transformers.models.{kind}"}
             for at, kind in enumerate(kinds)], indent=2))
    if prefix:
        # transformers finds such names by itself only under the class of a model with a head.
        config = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}, indent=2))
    write(target / "reference.json", SentenceTransformer(str(target), device="cpu"), FEW)


if __name__ == "__main__":
    torch.set_num_threads(1)
    make("bert-cls", torch.float32, "cls", normalise=True, length=40)
    make("bert-max", torch.float16, "max", normalise=False, lower=False, older=True)
    make("bert-mean", torch.bfloat16, "mean", normalise=False, length=16, prefix="bert.", prompt="hello ")
    write(HERE / "all-minilm-l6-v2.json", SentenceTransformer(sys.argv[1], device="cpu"), TEXTS)
