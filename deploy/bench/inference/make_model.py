"""Makes the model that all servers run: random weights in Qwen3's shape, about 115 million parameters.

make_model.py DIRECTORY

Writes DIRECTORY/bench-f32 (safetensors), DIRECTORY/gguf-f32 and DIRECTORY/gguf-q8 (GGUF), each with the same tokenizer
and chat template. Random weights cost what trained ones cost; only the text is nonsense. Every common word of the
vocabulary is one token with its space, so that a prompt of n words has n tokens, and the end token has an embedding of
zeros, so that greedy decoding never ends by itself.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD, FEED, VOCABULARY, WINDOW = 768, 12, 12, 4, 64, 3072, 16384, 4096
END = "<|im_end|>"
# The conversation's system message is left out: all servers read the user's words and nothing else.
TEMPLATE = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
QWEN2 = (
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def vocabulary():
    """Bytes, then words of a space and two to three letters that grow by merges, then the end token."""
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = []
    letters = "abcdefghijklmnopqrstuvwxyz"
    heads = [("Ġ", letter) for letter in letters]
    while len(tokens) < VOCABULARY - 1:
        grown = []
        for left, right in heads:
            if len(tokens) == VOCABULARY - 1:
                break
            merges.append((left, right))
            tokens.append(left + right)
            grown += [(left + right, letter) for letter in letters]
        heads = grown
    return tokens + [END], merges


def tokenizer(tokens, merges):
    made = Tokenizer(models.BPE(vocab={token: id for id, token in enumerate(tokens)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(END, special=True)])
    return made


def weights():
    random = np.random.default_rng(20)

    def matrix(outputs, inputs):
        return random.standard_normal((outputs, inputs), dtype=np.float32) * np.float32(inputs**-0.5)

    embeddings = matrix(VOCABULARY, HIDDEN)
    embeddings[VOCABULARY - 1] = 0
    yield "model.embed_tokens.weight", "token_embd.weight", embeddings
    for layer in range(LAYERS):
        hf, ggml = f"model.layers.{layer}", f"blk.{layer}"
        one = np.ones(HIDDEN, dtype=np.float32)
        head = np.ones(HEAD, dtype=np.float32)
        yield f"{hf}.input_layernorm.weight", f"{ggml}.attn_norm.weight", one
        yield f"{hf}.post_attention_layernorm.weight", f"{ggml}.ffn_norm.weight", one
        yield f"{hf}.self_attn.q_norm.weight", f"{ggml}.attn_q_norm.weight", head
        yield f"{hf}.self_attn.k_norm.weight", f"{ggml}.attn_k_norm.weight", head
        for theirs, short, outputs, inputs in [
            ("self_attn.q_proj", "attn_q", HEADS * HEAD, HIDDEN),
            ("self_attn.k_proj", "attn_k", KV_HEADS * HEAD, HIDDEN),
            ("self_attn.v_proj", "attn_v", KV_HEADS * HEAD, HIDDEN),
            ("self_attn.o_proj", "attn_output", HIDDEN, HEADS * HEAD),
            ("mlp.gate_proj", "ffn_gate", FEED, HIDDEN),
            ("mlp.up_proj", "ffn_up", FEED, HIDDEN),
            ("mlp.down_proj", "ffn_down", HIDDEN, FEED),
        ]:
            yield f"{hf}.{theirs}.weight", f"{ggml}.{short}.weight", matrix(outputs, inputs)
    yield "model.norm.weight", "output_norm.weight", np.ones(HIDDEN, dtype=np.float32)


def write_gguf(path, tensors, tokens, merges, kind):
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_context_length(WINDOW)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32 if kind is None else gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 1) + [3])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for _, name, values in tensors:
        if kind is None or values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    root = Path(sys.argv[1])
    if (root / "complete").exists():
        return
    tokens, merges = vocabulary()
    tensors = list(weights())
    plain = root / "bench-f32"
    for directory in (plain, root / "gguf-f32", root / "gguf-q8"):
        directory.mkdir(parents=True, exist_ok=True)
    save_file({name: values for name, _, values in tensors}, plain / "model.safetensors")
    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": VOCABULARY, "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD,
        "intermediate_size": FEED, "max_position_embeddings": WINDOW, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "hidden_act": "silu", "attention_bias": False, "torch_dtype": "float32",
        "sliding_window": None, "use_sliding_window": False, "max_window_layers": LAYERS, "bos_token_id": None,
        "eos_token_id": VOCABULARY - 1,
    }  # fmt: skip
    (plain / "config.json").write_text(json.dumps(config, indent=1))
    tokenizer(tokens, merges).save(str(plain / "tokenizer.json"))
    (plain / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": END}))
    write_gguf(root / "gguf-f32" / "bench-gguf-f32.gguf", tensors, tokens, merges, None)
    write_gguf(root / "gguf-q8" / "bench-q8.gguf", tensors, tokens, merges, gguf.GGMLQuantizationType.Q8_0)
    (root / "complete").touch()


main()
