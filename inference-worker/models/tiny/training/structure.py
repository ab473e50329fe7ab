"""Structured start: previous-token heads and two-gram induction heads written into ordinary Qwen3 weights.

From a random start nearly all of a small training budget goes into discovering how to copy. Here layer 0 starts with
two heads that attend to the previous and the one-but-previous token by rotary phases alone, and layer 1 with heads
that look for an earlier place whose two preceding tokens equal the current two and copy what followed. Everything is
trained afterwards; nothing is frozen.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model import TinyQwen3

EMBEDDING_STD = 0.5
CONSTANT = 1.5  # dimension 0 of every embedding: what the positional heads read
FINAL_NORM = 0.13
POSITION_GAIN = 2.45  # query and key norm weights of layer 0
INDUCTION_GAIN = 2.2  # the same of layer 1
SECOND_TOKEN = 0.7  # weight of the one-but-previous token in the match
COPY_GAIN = 2.2
SLOW = 1.5e-3  # rotary frequencies below this carry content


def orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Orthonormal rows (or columns, whichever are fewer)."""
    q, _ = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns), generator=generator))
    return q.T[:rows] if rows <= columns else q[:rows]


def frequencies(model: TinyQwen3) -> Tensor:
    """Rotary frequencies of one head."""
    dim = model.config.head_dim
    return model.config.rope_theta ** (-torch.arange(0, dim, 2).float() / dim)


def write_positional_head(model: TinyQwen3, layer: int, head: int, distance: int) -> None:
    """Makes a head attend `distance` tokens back."""
    dim, inner = model.config.head_dim, model.config.num_attention_heads * model.config.head_dim
    weight = model.layers[layer].qkv.weight
    query, key = weight[head * dim :][:dim], weight[inner + head * dim :][:dim]
    query.zero_()
    key.zero_()
    rates = frequencies(model)
    for pair, share in enumerate((0.4, 0.25, 0.15, 0.1, 0.1)):
        size, angle = math.sqrt(share), distance * rates[pair].item()
        query[pair, 0] = size
        key[pair, 0] = size * math.cos(angle)
        key[pair + dim // 2, 0] = size * math.sin(angle)


@torch.no_grad()
def write_structure(model: TinyQwen3, seed: int = 0) -> None:
    """Overwrites the random start of the first two layers."""
    config = model.config
    width, dim, heads = config.hidden_size, config.head_dim, config.num_attention_heads
    if heads < 4 or heads * dim != width or len(model.layers) < 2:
        raise ValueError("needs two layers, four heads and heads x head_dim = hidden size")
    generator = torch.Generator().manual_seed(seed)
    model.embed.weight.normal_(0, EMBEDDING_STD, generator=generator)
    model.embed.weight[:, 0] = CONSTANT
    model.norm.weight.fill_(FINAL_NORM)

    slow = [pair for pair, rate in enumerate(frequencies(model).tolist()) if rate < SLOW]
    content = torch.tensor(slow + [pair + dim // 2 for pair in slow])
    size = len(content)
    sketch = orthogonal(2 * size, width, generator)
    sketch[:, 0] = 0
    first, second = sketch[:size], sketch[size:]
    previous, before = orthogonal(width, 2 * size, generator), orthogonal(width, 2 * size, generator)
    previous[0] = before[0] = 0

    layer = model.layers[0]
    for head, distance, value, out in (
        (0, 1, torch.cat((first, second)), previous),
        (1, 2, torch.cat((second, first)), before),
    ):
        write_positional_head(model, 0, head, distance)
        values = layer.qkv.weight[2 * width + head * dim :][:dim]
        values.zero_()
        values[: 2 * size] = value
        layer.out.weight[:, head * dim : (head + 1) * dim] = 0
        layer.out.weight[:, head * dim : head * dim + 2 * size] = out
    write_positional_head(model, 0, 2, 1)
    write_positional_head(model, 0, 3, 0)
    layer.q_norm.weight.fill_(POSITION_GAIN)
    layer.k_norm.weight.fill_(POSITION_GAIN)

    layer = model.layers[1]
    basis = orthogonal(width, width, generator)
    for head in range(heads):
        rows = slice(head * dim, (head + 1) * dim)
        query, key, value = (layer.qkv.weight[part * width :][rows] for part in range(3))
        query.normal_(0, 0.005, generator=generator)
        key.normal_(0, 0.005, generator=generator)
        query[content] += first + SECOND_TOKEN * previous[:, size:].T
        key[content] += previous[:, :size].T + SECOND_TOKEN * before[:, :size].T
        copied = basis[rows].clone()
        copied[:, 0] = 0
        value.copy_(copied)
        layer.out.weight[:, rows] = copied.T * COPY_GAIN
    layer.q_norm.weight.fill_(INDUCTION_GAIN)
    layer.k_norm.weight.fill_(INDUCTION_GAIN)

    for index, layer in enumerate(model.layers):
        layer.down.weight.mul_(0.5)
        if index >= 2:
            write_positional_head(model, index, 0, 1)


@torch.no_grad()
def write_window_head(model: TinyQwen3, layer: int, head: int, seed: int = 7) -> None:
    """Makes a head gather the tokens three to six places back, so that later layers can tell repeated pairs apart.

    For a trained model: choose a head whose removal changes nothing.
    """
    width, dim = model.config.hidden_size, model.config.head_dim
    generator = torch.Generator().manual_seed(seed)
    rows = slice(head * dim, (head + 1) * dim)
    query, key, value = (model.layers[layer].qkv.weight[part * width :][rows] for part in range(3))
    for weight in (query, key, value):
        weight.zero_()
    rates, sharpness = frequencies(model), 0.45
    for pair, share in ((3, 0.4), (4, 0.3), (5, 0.3)):
        size, angle = math.sqrt(share * sharpness), 4.5 * rates[pair].item()
        query[pair, 0] = size
        key[pair, 0] = size * math.cos(angle)
        key[pair + dim // 2, 0] = size * math.sin(angle)
    query[dim // 2 - 2, 0] = key[dim - 2, 0] = math.sqrt(1 - sharpness)  # never match; they only soften the rest
    value.copy_(orthogonal(dim, width, generator))
    value[:, 0] = 0
    model.layers[layer].out.weight[:, rows] = orthogonal(width, dim, generator) * 1.5
