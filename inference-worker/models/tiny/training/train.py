"""Trains the model on CPU from generated conversations. The schedule counts tokens, never seconds.

python train.py --tokenizer tokenizer.json --out run --tokens 60e6
python train.py --tokenizer tokenizer.json --out run --resume                     (after an interruption)
python train.py --tokenizer tokenizer.json --out run --resume --tokens 90e6       (a longer run)
python train.py --tokenizer tokenizer.json --out run --resume --decay-now 12e6    (end after 12 M more tokens)
python train.py --out run --from-exported .. --tokens 30e6                        (go on from an exported model)
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from batches import Loader
from evaluate import load_exported
from generate import TEMPLATE, VALUE
from model import Config, TinyQwen3
from structure import write_structure

FLOOR = 0.03  # learning rate at the end, as a share of the peak
AVERAGE = 0.997  # per-step decay of the weight average


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalised by Newton-Schulz; matrices of one shape are handled together, in bf16."""

    def __init__(self, weights: list[nn.Parameter], lr: float, blocks: dict[nn.Parameter, int]) -> None:
        super().__init__(weights, {"lr": lr, "momentum": 0.95})
        self.blocks = blocks

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update."""
        for settings in self.param_groups:
            shapes: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for weight in settings["params"]:
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"].lerp_(weight.grad, 1 - settings["momentum"])
                update = weight.grad.lerp(momentum, settings["momentum"])
                count = self.blocks.get(weight, 1)
                for part, direction in zip(weight.chunk(count), update.chunk(count), strict=True):
                    tall = direction if part.shape[0] >= part.shape[1] else direction.T
                    shapes.setdefault((tall.shape[0], tall.shape[1]), []).append((part, tall))
            for items in shapes.values():
                result = orthogonalise(torch.stack([tall for _, tall in items]))
                for (part, _), tall in zip(items, result.float(), strict=True):
                    change = tall if part.shape[0] >= part.shape[1] else tall.T
                    part.add_(change, alpha=-settings["lr"] * max(1.0, part.shape[0] / part.shape[1]) ** 0.5)


def orthogonalise(x: Tensor) -> Tensor:
    """Four Newton-Schulz steps on a stack of tall matrices."""
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(4):
        gram = x.mT @ x
        x = 3.4445 * x + x @ (-4.7750 * gram + 2.0315 * gram @ gram)
    return x


class Statistics:
    """Losses and copy accuracy since the last log line."""

    def __init__(self) -> None:
        self.sums = torch.zeros(5)

    def add(self, losses: Tensor, hits: Tensor, kinds: Tensor) -> None:
        """Takes in one batch."""
        template, value = (kinds == TEMPLATE).float(), (kinds == VALUE).float()
        self.sums += torch.stack(
            ((losses * template).sum(), template.sum(), (losses * value).sum(), value.sum(), (hits * value).sum())
        )

    def line(self) -> str:
        """The figures as text; starts anew."""
        template, templates, value, values, hits = self.sums.tolist()
        self.sums.zero_()
        values, templates = max(values, 1), max(templates, 1)
        return f"template {template / templates:.4f} copy {value / values:.4f} copy-accuracy {hits / values:.4f}"


def save(path: Path, state: dict[str, object]) -> None:
    """Writes a checkpoint in one go; a full disk does not end the run."""
    partial = path.with_suffix(".partial")
    try:
        torch.save(state, partial)
        os.replace(partial, path)
    except OSError as error:
        print(f"checkpoint not written: {error}", flush=True)


def rate(seen: float, step: int, warmup: int, decay_start: float, total: float) -> float:
    """Learning rate as a share of the peak: warm-up, plateau, cosine."""
    warm = min(1.0, (step + 1) / warmup)
    if seen < decay_start:
        return warm
    progress = min(1.0, (seen - decay_start) / max(1.0, total - decay_start))
    return warm * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress)))


def main() -> None:
    """Command line."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", type=Path, default=here / "pool.json")
    parser.add_argument("--tokenizer", type=Path, default=here.parent / "tokenizer.json")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--tokens", type=float, help="length of the run (default 60e6, or that of the checkpoint)")
    parser.add_argument("--decay-share", type=float, default=0.5, help="last part of the run with a falling rate")
    parser.add_argument("--decay-now", type=float, metavar="TOKENS", help="let the rate fall over the next TOKENS")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--from-exported", type=Path, metavar="DIR", help="start from these weights, optimisers new")
    parser.add_argument("--batch", type=int, default=4096, help="tokens of a batch")
    parser.add_argument("--longest", type=int, default=800, help="longest conversation in tokens")
    parser.add_argument("--lr-matrices", type=float, default=0.02)
    parser.add_argument("--lr-rest", type=float, default=2.5e-3)
    parser.add_argument("--warmup", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes-between-checkpoints", type=float, default=2)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--intermediate", type=int, default=512)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint_path = options.out / "checkpoint.pt"
    checkpoint = torch.load(checkpoint_path, weights_only=True) if options.resume else None
    exported = load_exported(options.from_exported) if options.from_exported and not checkpoint else None
    if checkpoint:
        config = Config(**checkpoint["config"])
    elif exported:
        config = exported.config
    else:
        vocabulary = Tokenizer.from_file(str(options.tokenizer)).get_vocab_size()
        config = Config(
            vocabulary,
            hidden_size=options.width,
            num_hidden_layers=options.layers,
            num_attention_heads=options.width // 64,
            intermediate_size=options.intermediate,
        )
    model = TinyQwen3(config)
    if exported:
        model.load_state_dict(exported.state_dict())
    else:
        write_structure(model, options.seed)
    matrices = [weight for layer in model.layers for weight in layer.parameters() if weight.dim() == 2]
    rest = [weight for weight in model.parameters() if all(weight is not matrix for matrix in matrices)]
    blocks = {layer.qkv.weight: 3 for layer in model.layers} | {layer.gate_up.weight: 2 for layer in model.layers}
    adam = torch.optim.AdamW(rest, lr=options.lr_rest, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    muon = Muon(matrices, options.lr_matrices, blocks)
    average = [weight.detach().clone() for weight in model.parameters()]
    step, leg, seen = 0, 0, 0.0
    total = options.tokens or 60e6
    decay_start = total * (1 - options.decay_share)
    if checkpoint:
        model.load_state_dict(checkpoint["model"])
        adam.load_state_dict(checkpoint["adam"])
        muon.load_state_dict(checkpoint["muon"])
        average = checkpoint["average"]
        step, leg, seen = checkpoint["step"], checkpoint["leg"] + 1, checkpoint["seen"]
        if options.tokens is None:
            total, decay_start = checkpoint["total"], checkpoint["decay_start"]
    fresh = checkpoint.get("fresh", True) if checkpoint else exported is None  # has to learn copying first
    if options.decay_now:
        decay_start, total = seen, seen + options.decay_now
    print(f"{sum(w.numel() for w in model.parameters()) / 1e6:.2f} M parameters, {config}", flush=True)
    print(f"leg {leg}, from {seen / 1e6:.2f} M to {total / 1e6:.2f} M tokens, falling from {decay_start / 1e6:.2f} M")

    def state() -> dict[str, object]:
        return {
            "config": vars(config),
            "model": model.state_dict(),
            "adam": adam.state_dict(),
            "muon": muon.state_dict(),
            "average": average,
            "step": step,
            "leg": leg,
            "seen": seen,
            "total": total,
            "decay_start": decay_start,
            "fresh": fresh,
        }

    forward = model if options.no_compile else torch.compile(model, dynamic=True)
    seed = options.seed * 1000 + leg + 1
    early = 0.6 if fresh and seen < 1e6 else 0.1  # share of copying exercises
    loader = Loader(options.tokenizer, options.pool, seed, options.batch, options.longest, early)
    statistics, weights = Statistics(), list(model.parameters())
    logged, logged_tokens, saved, cpu = time.time(), seen, time.time(), time.process_time()
    while seen < total:
        early = 0.6 if fresh and seen < 1e6 else 0.1
        loader.share[0] = early if seen < decay_start + 0.5 * (total - decay_start) else 0.0
        batch = loader.next()
        prefix, ids = torch.from_numpy(batch.prefix), torch.from_numpy(batch.ids)
        kinds = torch.from_numpy(batch.kinds)[:, 1:].reshape(-1)
        keep = kinds.nonzero()[:, 0]
        target, kinds = ids[:, 1:].reshape(-1)[keep], kinds[keep]
        share = rate(seen, step, options.warmup, decay_start, total)
        for optimiser, peak in ((adam, options.lr_rest), (muon, options.lr_matrices)):
            optimiser.param_groups[0]["lr"] = peak * share
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward(prefix, ids[:, :-1], keep).float()
        losses = F.cross_entropy(logits, target, reduction="none")
        model.zero_grad(set_to_none=True)
        losses.mean().backward()
        nn.utils.clip_grad_norm_(rest, 1.0)
        adam.step()
        muon.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1 - min(AVERAGE, (step + 1) / (step + 10)))
            statistics.add(losses.detach(), (logits.argmax(-1) == target).float(), kinds)
        seen += ids.numel()
        step += 1
        now = time.time()
        if now - logged > 20:
            speed, used = (seen - logged_tokens) / (now - logged), time.process_time() - cpu
            text = (
                f"step {step} {seen / 1e6:.2f} M tokens {speed:.0f}/s cpu {used / (now - logged):.2f} rate {share:.3f}"
            )
            print(time.strftime("%H:%M:%S"), text, statistics.line(), flush=True)
            logged, logged_tokens, cpu = now, seen, time.process_time()
        if now - saved > 60 * options.minutes_between_checkpoints:
            save(checkpoint_path, state())
            saved = now
    save(checkpoint_path, state())
    print(f"done: {step} steps, {seen / 1e6:.2f} M tokens", flush=True)


if __name__ == "__main__":
    main()
