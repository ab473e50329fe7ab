"""Writes a model directory in Hugging Face's layout (Qwen3's shape, byte-level BPE) as one GGUF file.

make_gguf.py DIRECTORY FILE.gguf WINDOW

llama.cpp knows the ways to split text into words by name only, and the shipped model's is none of them: `PRE` is the
known one that cuts it most alike, so that the model reads nearly what it was trained on. WINDOW is what the file says the
model holds; beyond what it was trained for it writes nonsense, which serves for answers that take a while.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

PRE = "qwen2"
LAYER = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def target(name):
    stem, leaf = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{LAYER[part]}.{leaf}"
    return {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[stem] + f".{leaf}"


def main():
    directory, file, window = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    config = json.loads((directory / "config.json").read_text())
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    words = json.loads((directory / "tokenizer_config.json").read_text())

    writer = gguf.GGUFWriter(file, config["model_type"])
    writer.add_context_length(window)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])

    special = {token["id"] for token in tokenizer["added_tokens"] if token["special"]}
    tokens = {id: token for token, id in tokenizer["model"]["vocab"].items()}
    tokens |= {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    added = {token["id"] for token in tokenizer["added_tokens"]}
    # Marks of a call are text to the reader of an answer: user-defined, where control tokens would vanish.
    marks = {id for id in added if "tool" in tokens[id]}
    Type = gguf.TokenType
    kinds = [
        Type.USER_DEFINED if id in marks else Type.CONTROL if id in special else Type.NORMAL for id in range(len(tokens))
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE)
    writer.add_token_list([tokens[id] for id in range(len(tokens))])
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(words["chat_template"])

    for name, values in load_file(directory / "model.safetensors").items():
        writer.add_tensor(target(name), values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
