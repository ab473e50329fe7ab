"""A small Qwen3 written for CPU training, with Hugging Face parameter names on export.

Differences from the reference implementation are only about speed:

* query, key and value (and gate and up) projections are one matrix each and are split on export;
* every conversation of a batch shares one system prompt, whose keys and values are computed once;
* after the last attention only the positions that carry loss are kept.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """Shape of the network."""

    vocab_size: int
    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    head_dim: int = 64
    intermediate_size: int = 512
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 1024

    def save(self, path: Path) -> None:
        """Writes the shape as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1))

    def hugging_face(self) -> dict[str, object]:
        """The `config.json` of a `Qwen3ForCausalLM` of this shape."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            **asdict(self),
            "num_key_value_heads": self.num_attention_heads,
            "tie_word_embeddings": True,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "torch_dtype": "float16",
            "bos_token_id": 0,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "use_sliding_window": False,
            "max_window_layers": self.num_hidden_layers,
            "initializer_range": 0.02,
        }


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Applies rotary position embedding; `x` is [tokens, heads, head_dim]."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return x * cos + turned * sin


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return wide * scale * self.weight


class Layer(nn.Module):
    """One decoder layer over a flat list of tokens: the shared prefix first, then every row."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.num_attention_heads * config.head_dim
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.intermediate = config.intermediate_size
        self.input_norm = RMSNorm(width, config.rms_norm_eps)
        self.post_norm = RMSNorm(width, config.rms_norm_eps)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, width, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, rows: int, prefix: int, keep: Tensor | None
    ) -> Tensor:
        heads, dim = self.heads, self.head_dim
        q, k, v = self.qkv(self.input_norm(x)).view(-1, 3, heads, dim).unbind(1)
        q = rotate(self.q_norm(q), cos, sin).to(v.dtype)
        k = rotate(self.k_norm(k), cos, sin).to(v.dtype)

        def split(t: Tensor) -> tuple[Tensor, Tensor]:
            """[tokens, heads, dim] to the prefix [1, heads, S, dim] and the rows [B, heads, T, dim]."""
            head, tail = t[:prefix], t[prefix:]
            return head[None].transpose(1, 2), tail.view(rows, -1, heads, dim).transpose(1, 2)

        (q0, q1), (k0, k1), (v0, v1) = split(q), split(k), split(v)
        keys = torch.cat((k0.expand(rows, -1, -1, -1), k1), 2)
        values = torch.cat((v0.expand(rows, -1, -1, -1), v1), 2)
        attended = F.scaled_dot_product_attention(q1, keys, values, attn_mask=mask)
        attended = attended.transpose(1, 2).reshape(-1, heads * dim)
        if keep is None:
            first = F.scaled_dot_product_attention(q0, k0, v0, is_causal=True)
            attended = torch.cat((first.transpose(1, 2).reshape(-1, heads * dim), attended), 0)
        else:
            attended, x = attended[keep], x[prefix:][keep]
        x = x + self.out(attended)
        gate, up = self.gate_up(self.post_norm(x)).split(self.intermediate, -1)
        return x + self.down(F.silu(gate) * up)


class TinyQwen3(nn.Module):
    """The whole network with tied embeddings."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                gain = 0.3 if name.endswith(("out.weight", "down.weight")) else 0.7
                nn.init.normal_(weight, std=gain * weight.shape[1] ** -0.5)
        half = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        angles = torch.outer(torch.arange(config.max_position_embeddings).float(), config.rope_theta**-half)
        angles = torch.cat((angles, angles), -1)[:, None]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, prefix: Tensor, ids: Tensor, keep: Tensor) -> Tensor:
        """Logits at the flat positions `keep` of `ids` [rows, length], all rows following `prefix` [S]."""
        rows, length = ids.shape
        start = prefix.shape[0]
        x = self.embed(torch.cat((prefix, ids.reshape(-1))))
        where = torch.cat((torch.arange(start), torch.arange(start, start + length).expand(rows, -1).reshape(-1)))
        cos, sin = self.cos[where], self.sin[where]
        visible = torch.arange(start + length)[None] <= torch.arange(start, start + length)[:, None]
        mask = torch.zeros(length, start + length).masked_fill(~visible, float("-inf"))
        if torch.is_autocast_enabled("cpu"):
            mask = mask.bfloat16()
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            x = layer(x, cos, sin, mask, rows, start, keep if index == last else None)
        return F.linear(self.norm(x), self.embed.weight)


def to_hugging_face(model: TinyQwen3) -> dict[str, Tensor]:
    """State dict under the names of `Qwen3ForCausalLM`."""
    state = {"model.embed_tokens.weight": model.embed.weight, "model.norm.weight": model.norm.weight}
    for index, layer in enumerate(model.layers):
        base = f"model.layers.{index}."
        for name, part in zip("qkv", layer.qkv.weight.chunk(3), strict=True):
            state[f"{base}self_attn.{name}_proj.weight"] = part
        gate, up = layer.gate_up.weight.chunk(2)
        state |= {
            f"{base}self_attn.o_proj.weight": layer.out.weight,
            f"{base}self_attn.q_norm.weight": layer.q_norm.weight,
            f"{base}self_attn.k_norm.weight": layer.k_norm.weight,
            f"{base}mlp.gate_proj.weight": gate,
            f"{base}mlp.up_proj.weight": up,
            f"{base}mlp.down_proj.weight": layer.down.weight,
            f"{base}input_layernorm.weight": layer.input_norm.weight,
            f"{base}post_attention_layernorm.weight": layer.post_norm.weight,
        }
    return {name: weight.detach().float().clone().contiguous() for name, weight in state.items()}


def from_hugging_face(config: Config, state: dict[str, Tensor]) -> TinyQwen3:
    """Rebuilds the training network from an exported state dict."""
    model = TinyQwen3(config)
    own = {"embed.weight": state["model.embed_tokens.weight"], "norm.weight": state["model.norm.weight"]}
    for index in range(config.num_hidden_layers):
        base, mine = f"model.layers.{index}.", f"layers.{index}."
        attention = base + "self_attn."
        own |= {
            f"{mine}qkv.weight": torch.cat([state[f"{attention}{n}_proj.weight"] for n in "qkv"]),
            f"{mine}out.weight": state[f"{attention}o_proj.weight"],
            f"{mine}q_norm.weight": state[f"{attention}q_norm.weight"],
            f"{mine}k_norm.weight": state[f"{attention}k_norm.weight"],
            f"{mine}gate_up.weight": torch.cat([state[f"{base}mlp.{n}_proj.weight"] for n in ("gate", "up")]),
            f"{mine}down.weight": state[f"{base}mlp.down_proj.weight"],
            f"{mine}input_norm.weight": state[f"{base}input_layernorm.weight"],
            f"{mine}post_norm.weight": state[f"{base}post_attention_layernorm.weight"],
        }
    model.load_state_dict({name: weight.float() for name, weight in own.items()})
    return model
