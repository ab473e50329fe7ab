"""Makes the small random models under tests/reference and what Hugging Face transformers computes with them.

Run once; the results are checked in. Needs torch and transformers:

    python inference-worker/tests/reference/make_reference.py
"""

import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

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


def make(name, kind, config, dtype, sharded):
    torch.manual_seed(20)
    # Weights are rounded to the file's type first, so that both sides compute with the same numbers in f32.
    model = kind(config).eval().to(dtype).float()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data = (1 + 0.3 * torch.randn_like(parameter)).to(dtype).float()
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
    ids = torch.randint(0, config.vocab_size, (1, PROMPT_TOKENS))
    with torch.no_grad():
        logits = model(ids).logits[0]
        sequence = ids
        for _ in range(NEW_TOKENS):
            sequence = torch.cat([sequence, model(sequence).logits[:, -1:].argmax(-1)], dim=1)
    reference = {
        "prompt": ids[0].tolist(),
        "logits": {str(at): [round(x, 6) for x in logits[at].tolist()] for at in (0, 7, 17, PROMPT_TOKENS - 1)},
        "greedy": sequence[0, PROMPT_TOKENS:].tolist(),
    }
    (directory / "reference.json").write_text(json.dumps(reference))


if __name__ == "__main__":
    torch.set_num_threads(1)
    make("qwen3", *QWEN3, torch.float16, sharded=False)
    make("llama", *LLAMA, torch.bfloat16, sharded=True)
