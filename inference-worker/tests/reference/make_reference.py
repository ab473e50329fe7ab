"""Makes the small random models under tests/reference and what Hugging Face transformers computes with them.

Run once; the results are checked in. Needs torch, transformers and gguf; names choose some of the models:

    python inference-worker/tests/reference/make_reference.py [NAME...]
"""

import json
import pathlib
import sys

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

HERE = pathlib.Path(__file__).parent
PROMPT_TOKENS = 40
NEW_TOKENS = 64

SHARED = dict(
    vocab_size=131, hidden_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    intermediate_size=72, max_position_embeddings=256, initializer_range=0.25, eos_token_id=None, bos_token_id=None,
)

QWEN3 = Qwen3ForCausalLM, Qwen3Config(**SHARED, head_dim=24, tie_word_embeddings=True)
LLAMA = LlamaForCausalLM, LlamaConfig(
    **SHARED, head_dim=10, tie_word_embeddings=False,
    rope_parameters=dict(rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
                         high_freq_factor=4.0, original_max_position_embeddings=64),
)

# Every projection of attention has a bias, and positions turn as trained.
BIASED = LlamaForCausalLM, LlamaConfig(
    **SHARED, head_dim=10, tie_word_embeddings=True, attention_bias=True,
    rope_parameters=dict(rope_type="default", rope_theta=10000.0),
)

QWEN2 = Qwen2ForCausalLM, Qwen2Config(
    **SHARED, tie_word_embeddings=True,
    rope_parameters=dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=64),
)
MISTRAL = MistralForCausalLM, MistralConfig(
    **SHARED, head_dim=16, sliding_window=16, tie_word_embeddings=False,
    rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.0),
)


def make(name, kind, config, dtype, sharded):
    torch.manual_seed(20)
    # Weights are rounded to the file's type first, so that both sides compute with the same numbers in f32. Weights alone:
    # a whole model would also turn its positions by rounded angles.
    model = kind(config).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    for parameter_name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            mean = 0 if parameter_name.endswith("bias") else 1
            parameter.data = (mean + 0.3 * torch.randn_like(parameter)).to(dtype).float()
    model.config.architectures = [kind.__name__]
    directory = HERE / name
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(model.config.to_json_string())
    tensors = {key: value.to(dtype).contiguous() for key, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    if sharded:
        names = sorted(tensors)
        parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
        for file, keys in parts.items():
            save_file({key: tensors[key] for key in keys}, directory / file)
        index = {key: file for file, keys in parts.items() for key in keys}
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}, indent=1))
    else:
        save_file(tensors, directory / "model.safetensors")
    (directory / "reference.json").write_text(json.dumps(reference(model)))


def reference(model):
    ids = torch.randint(0, model.config.vocab_size, (1, PROMPT_TOKENS))
    with torch.no_grad():
        logits = model(ids).logits[0]
        sequence = ids
        for _ in range(NEW_TOKENS):
            sequence = torch.cat([sequence, model(sequence).logits[:, -1:].argmax(-1)], dim=1)
    return {
        "prompt": ids[0].tolist(),
        "logits": {str(at): [round(x, 6) for x in logits[at].tolist()] for at in (0, 7, 17, PROMPT_TOKENS - 1)},
        "greedy": sequence[0, PROMPT_TOKENS:].tolist(),
    }


# The GGUF models: random blocks of every kind; the reference computes with what gguf's own code makes of them.

LLAMA_KINDS = {
    "token_embd": Kind.Q6_K, "output": Kind.Q8_0, "attn_q": Kind.Q4_K, "attn_k": Kind.Q5_K, "attn_v": Kind.Q6_K,
    "attn_output": Kind.Q4_0, "ffn_gate": Kind.Q8_0, "ffn_up": Kind.Q5_0, "ffn_down": Kind.Q4_K,
}
QWEN3_KINDS = {
    "token_embd": Kind.Q8_0, "attn_q": Kind.F16, "attn_k": Kind.F32, "attn_v": Kind.BF16, "attn_output": Kind.Q8_0,
    "ffn_gate": Kind.Q4_1, "ffn_up": Kind.Q5_1, "ffn_down": Kind.Q8_0,
}
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def random_blocks(kind, shape, scale):
    """Blocks of a kind that gguf can read and not write; scales are set so that weights have a usual size."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    data = RANDOM.integers(0, 256, (shape[0] * shape[1] // block, size), dtype=np.uint8)

    def put(at, value):
        data[:, at : at + 2] = np.frombuffer(np.float16(value).tobytes(), dtype=np.uint8)

    if kind == Kind.Q6_K:
        put(208, scale / (18 * 74))
    else:
        levels = 4.6 if kind == Kind.Q4_K else 9.2
        put(0, scale / (levels * 31))
        put(2, scale / (levels * 31) * levels * 1.6)
    return data.reshape(shape[0], -1)


def make_gguf(name, family, kind, config, kinds, vocabulary):
    torch.manual_seed(20)
    model = kind(config).eval().float()
    directory = HERE / name
    directory.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(directory / f"{name}.gguf", family)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    vocabulary(writer, config.vocab_size)
    if config.rope_parameters["rope_type"] == "llama3":
        plain = LlamaConfig(**{**config.to_dict(), "rope_parameters": dict(rope_type="default", rope_theta=500000.0)})
        stretched = model.model.rotary_emb.inv_freq
        writer.add_tensor("rope_freqs.weight", (LlamaForCausalLM(plain).model.rotary_emb.inv_freq / stretched).numpy())
    for key, parameter in model.named_parameters():
        stem, leaf = key.rsplit(".", 1)
        layer = ""
        if stem.startswith("model.layers."):
            _, _, number, stem = stem.split(".", 3)
            layer = f"blk.{number}."
        stem = NAMES[stem]
        target = f"{layer}{stem}.{leaf}"
        if parameter.dim() == 1:
            parameter.data = 1 + 0.3 * torch.randn_like(parameter)
            writer.add_tensor(target, parameter.data.numpy())
            continue
        block = kinds[stem]
        shape = tuple(parameter.shape)
        if block in (Kind.Q4_K, Kind.Q5_K, Kind.Q6_K):
            data = random_blocks(block, shape, 1.6 / shape[1] ** 0.5)
        else:
            data = gguf.quants.quantize(RANDOM.normal(0, 1.6 / shape[1] ** 0.5, shape).astype(np.float32), block)
        writer.add_tensor(target, data, raw_dtype=block)
        weights = torch.from_numpy(gguf.quants.dequantize(data, block).astype(np.float32).reshape(shape).copy())
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(stem)
        if heads and family == "llama":
            # llama.cpp's converter interleaves the two halves of each head; this undoes it.
            weights = weights.reshape(heads, shape[0] // heads // 2, 2, shape[1]).swapaxes(1, 2).reshape(shape)
        parameter.data = weights.contiguous()
    if config.tie_word_embeddings:
        model.tie_weights()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (directory / "reference.json").write_text(json.dumps(reference(model)))


def sentence_piece(writer, size):
    """Control tokens, the bytes that fit, and a few pieces with scores."""
    pieces = ["▁", "h", "e", "l", "o", "w", "r", "d", "he", "ll", "hell", "hello", "▁hello", "lo", "wo", "wor", "ld",
              "world", "▁w", "▁wo", "▁world"]
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(size - 3 - len(pieces))] + pieces
    kinds = [2, 3, 3] + [6] * (size - 3 - len(pieces)) + [1] * len(pieces)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * (size - len(pieces)) + [-float(at) for at in range(len(pieces))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")


def byte_level(writer, size):
    """Printable bytes that stand for themselves, a space, two merges, two control tokens."""
    letters = [chr(code) for code in [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]][: size - 5] + ["Ġ"]
    tokens = letters + ["Ġa", "ab", "<|im_start|>", "<|im_end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (size - 2) + [3, 3])
    writer.add_token_merges(["Ġ a", "a b"])
    writer.add_eos_token_id(size - 1)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}")


GGUF_LLAMA = LlamaForCausalLM, LlamaConfig(
    **{**SHARED, "hidden_size": 256, "num_hidden_layers": 1, "intermediate_size": 256}, head_dim=64,
    tie_word_embeddings=False, rope_parameters=LLAMA[1].rope_parameters,
)
GGUF_QWEN3 = Qwen3ForCausalLM, Qwen3Config(
    **{**SHARED, "hidden_size": 64, "intermediate_size": 96}, head_dim=16, tie_word_embeddings=True,
)
RANDOM = np.random.default_rng(20)


def make_blocks(name):
    """A few rows of every kind of block, and what gguf's own code makes of them."""
    samples = {}
    for kind in (Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K):
        shape = (2, max(gguf.GGML_QUANT_SIZES[kind][0], 64))
        if kind in (Kind.Q4_K, Kind.Q5_K, Kind.Q6_K):
            data = random_blocks(kind, shape, 1.6)
        else:
            data = gguf.quants.quantize(RANDOM.normal(0, 1.6, shape).astype(np.float32), kind)
        values = gguf.quants.dequantize(data, kind).astype(np.float32).reshape(-1)
        # As few digits as give the same float again.
        samples[kind.name] = {"inputs": shape[1], "bytes": data.tobytes().hex(), "values": [float(str(x)) for x in values]}
    (HERE / f"{name}.json").write_text(json.dumps(samples, indent=0) + "\n")


def make_rope(name):
    """What transformers makes of every known stretching, by the configuration that asks for it."""
    llama3 = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)
    yarn = dict(factor=4.0, original_max_position_embeddings=32768)
    asked = [
        (64, 10000.0, dict(rope_type="default")), (128, 1e6, dict(rope_type="default")),
        (64, 10000.0, dict(rope_type="linear", factor=4.0)), (10, 5e5, dict(rope_type="linear", factor=2.5)),
        (128, 5e5, dict(rope_type="llama3", **llama3)), (64, 5e5, dict(rope_type="llama3", **{**llama3, "factor": 32.0})),
        (128, 1e6, dict(rope_type="yarn", **yarn)), (64, 1e4, dict(rope_type="yarn", **{**yarn, "factor": 2.0})),
        (128, 1.5e5, dict(rope_type="yarn", **yarn, beta_fast=24.0, beta_slow=2.0)),
        (24, 1e4, dict(rope_type="yarn", **{**yarn, "original_max_position_embeddings": 64}, attention_factor=1.5)),
    ]
    cases = []
    for width, theta, scaling in asked:
        config = LlamaConfig(**SHARED, head_dim=width, rope_parameters=dict(**scaling, rope_theta=theta))
        rotary = LlamaForCausalLM(config).model.rotary_emb
        common = dict(width=width, inverse=[float(str(x)) for x in rotary.inv_freq.numpy()],
                      amplitude=float(rotary.attention_scaling))
        cases.append(dict(config=dict(rope_parameters=dict(**scaling, rope_theta=theta)), **common))
        if scaling["rope_type"] != "default":
            older = dict(rope_theta=theta, rope_scaling=scaling)
            older["rope_scaling"] = {"type" if key == "rope_type" else key: value for key, value in scaling.items()}
            cases.append(dict(config=older, **common))
    (HERE / f"{name}.json").write_text(json.dumps(cases, indent=0) + "\n")


MODELS = {
    "qwen3": lambda name: make(name, *QWEN3, torch.float16, sharded=False),
    "llama": lambda name: make(name, *LLAMA, torch.bfloat16, sharded=True),
    "llama-biased": lambda name: make(name, *BIASED, torch.float16, sharded=False),
    "qwen2": lambda name: make(name, *QWEN2, torch.float32, sharded=False),
    "mistral": lambda name: make(name, *MISTRAL, torch.float16, sharded=False),
    "llama-gguf": lambda name: make_gguf(name, "llama", *GGUF_LLAMA, LLAMA_KINDS, sentence_piece),
    "qwen3-gguf": lambda name: make_gguf(name, "qwen3", *GGUF_QWEN3, QWEN3_KINDS, byte_level),
    "blocks": make_blocks,
    "rope": make_rope,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or MODELS:
        MODELS[name](name)
