"""Shared by all generators: seeded inputs, saving, and the few formulas that several cases need."""
import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

F64 = torch.float64


class Draw:
    """Seeded normal numbers, rounded to float32 before use: what is stored is exactly what was computed with."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, std: float = 1.0, mean: float = 0.0) -> torch.Tensor:
        x = torch.randn(*shape, generator=self.generator) * std + mean
        return x.to(F64)

    def uniform(self, *shape: int, low: float, high: float) -> torch.Tensor:
        return (torch.rand(*shape, generator=self.generator) * (high - low) + low).to(F64)

    def ids(self, count: int, vocab: int) -> torch.Tensor:
        return torch.randint(3, vocab, (count,), generator=self.generator)


def save(path: Path, case: dict, tensors: dict) -> None:
    """float64 -> float32, integers -> int32; scalar settings as one JSON string under the metadata key `case`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    out = {}
    for name, x in tensors.items():
        x = x.detach()
        out[name] = (x.float() if x.is_floating_point() else x.int()).contiguous().clone()
        assert torch.isfinite(out[name].float()).all(), f"{path.name}: {name} is not finite"
    save_file(out, str(path), metadata={"case": json.dumps(case)})


def leaf(tensors: dict) -> dict:
    """The same tensors as leaves that collect gradients."""
    return {name: x.clone().requires_grad_(True) for name, x in tensors.items()}


def gradients(inputs: dict, names, total: torch.Tensor) -> dict:
    """d.<name> for every name: gradient of `total` = sum over outputs of <output, cotangent>."""
    found = torch.autograd.grad(total, [inputs[n] for n in names])
    return {f"d.{n}": g for n, g in zip(names, found)}


def rope_frequencies(width: int, theta: float = 10000.0) -> torch.Tensor:
    """[width/2] radians a token."""
    return theta ** (-torch.arange(0, width, 2, dtype=F64) / width)


def rotate(x: torch.Tensor, positions: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """x [T, heads, hd], positions [T]: half rotation on the pairs (i, i + hd/2)."""
    angle = positions.to(F64)[:, None, None] * frequencies  # [T, 1, hd/2]
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
