"""The two architectures for training, with their Hugging Face names and layouts at the border.

Llama: as transformers' LlamaForCausalLM. Zamba: as ZambaForCausalLM (version 1): Mamba-1 blocks with heads, and one shared
attention block whose output enters a layer only through the input of its Mamba block.
"""
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from scan import scan

VOCAB, CONTEXT, THETA, EPS = 4096, 4096, 10000.0, 1e-5
LLAMA = dict(hidden=192, layers=8, heads=3, head_dim=64, intermediate=512)
ZAMBA = dict(hidden=192, layers=10, heads=6, head_dim=64, intermediate=768, mamba_heads=2, state=16, kernel=4, rank=12)


def linear(inputs: int, outputs: int, gain: float = 0.5) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=gain * inputs**-0.5)
    return layer


class Norm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        y = x.float()
        return self.weight * (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + EPS))


def rotary(positions: torch.Tensor, head_dim: int):
    """positions [B, T] -> cos, sin [B, 1, T, hd/2]."""
    frequencies = THETA ** (-torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim)
    angle = positions[:, None, :, None].float() * frequencies
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, width: int, out: int, heads: int, head_dim: int, scale: float):
        super().__init__()
        self.heads, self.head_dim, self.scale = heads, head_dim, scale
        self.q_proj, self.k_proj, self.v_proj = (linear(width, heads * head_dim) for _ in range(3))
        self.o_proj = linear(heads * head_dim, out)
        self.window = None  # (size, sinks): used in evaluation only

    def forward(self, x, turn=None):
        batch, count, _ = x.shape
        q, k, v = (p(x).view(batch, count, self.heads, self.head_dim).transpose(1, 2)
                   for p in (self.q_proj, self.k_proj, self.v_proj))
        if turn is not None:
            q, k = rotate(q, *turn), rotate(k, *turn)
        if self.window is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        else:
            t, j = torch.arange(count, device=x.device)[:, None], torch.arange(count, device=x.device)[None, :]
            size, sinks = self.window
            seen = (j <= t) & ((j < sinks) | (j > t - size))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=self.scale)
        return self.o_proj(y.transpose(1, 2).reshape(batch, count, -1))


class Mlp(nn.Module):
    def __init__(self, hidden: int, intermediate: int, activation):
        super().__init__()
        self.gate_proj, self.up_proj = linear(hidden, intermediate), linear(hidden, intermediate)
        self.down_proj = linear(intermediate, hidden)
        self.activation = activation

    def forward(self, x):
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class LlamaLayer(nn.Module):
    def __init__(self, s: dict):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = Norm(s["hidden"]), Norm(s["hidden"])
        self.self_attn = Attention(s["hidden"], s["hidden"], s["heads"], s["head_dim"], s["head_dim"] ** -0.5)
        self.mlp = Mlp(s["hidden"], s["intermediate"], F.silu)

    def forward(self, h, cos, sin):
        h = h + self.self_attn(self.input_layernorm(h), (cos, sin))
        return h + self.mlp(self.post_attention_layernorm(h))


class Mamba(nn.Module):
    """in_proj here holds the x rows first, then the gate rows; the checkpoint interleaves them (see `export`)."""

    def __init__(self, s: dict):
        super().__init__()
        hidden, heads, n, rank = s["hidden"], s["mamba_heads"], s["state"], s["rank"]
        inner = 2 * hidden
        width = inner // heads
        self.inner, self.heads, self.n, self.rank, self.width, self.kernel = inner, heads, n, rank, width, s["kernel"]
        self.in_proj, self.out_proj = linear(hidden, 2 * inner), linear(inner, hidden)
        self.conv_weight = nn.Parameter(torch.empty(inner, s["kernel"]).uniform_(-0.5, 0.5))
        self.conv_bias = nn.Parameter(torch.zeros(inner))
        self.x_proj_weight = nn.Parameter(torch.randn(heads, rank + 2 * n, width) * 0.5 * width**-0.5)
        self.dt_proj_weight = nn.Parameter(torch.empty(heads, width, rank).uniform_(-(rank**-0.5), rank**-0.5))
        dt = torch.exp(torch.rand(heads, width) * (math.log(0.1) - math.log(0.001)) + math.log(0.001))
        self.dt_proj_bias = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # softplus gives dt back
        self.A_log = nn.Parameter(torch.log(torch.arange(1, n + 1).float()).repeat(heads, width, 1))
        self.D = nn.Parameter(torch.ones(heads, width))

    def forward(self, u):
        batch, count, _ = u.shape
        x, gate = self.in_proj(u).chunk(2, dim=-1)  # [B, T, inner]
        line = F.pad(x, (0, 0, self.kernel - 1, 0))
        x = sum(line[:, j : j + count] * self.conv_weight[:, j] for j in range(self.kernel)) + self.conv_bias
        x = F.silu(x).to(gate.dtype)
        # The heads' small projections as one block-diagonal product each.
        p = (x @ torch.block_diag(*self.x_proj_weight).T).view(batch, count, self.heads, self.rank + 2 * self.n)
        low, b, c = p.split([self.rank, self.n, self.n], dim=-1)
        dt = low.reshape(batch, count, -1) @ torch.block_diag(*self.dt_proj_weight).T
        dt = F.softplus(dt.float() + self.dt_proj_bias.view(-1))
        rate = -torch.exp(self.A_log.float()).view(self.inner, self.n)
        y = scan(x.contiguous(), dt, b.float().contiguous(), c.float().contiguous(), rate)
        y = (y + self.D.view(-1) * x) * F.silu(gate)
        return self.out_proj(y)


class Shared(nn.Module):
    """The attention block that all hybrid layers share. No residual anywhere inside."""

    def __init__(self, s: dict):
        super().__init__()
        hidden = s["hidden"]
        self.input_layernorm, self.pre_ff_layernorm = Norm(2 * hidden), Norm(hidden)
        self.self_attn = Attention(2 * hidden, hidden, s["heads"], s["head_dim"], (s["head_dim"] / 2) ** -0.5)
        self.feed_forward = Mlp(hidden, s["intermediate"], F.gelu)

    def forward(self, h, embedded):
        y = self.self_attn(self.input_layernorm(torch.cat([h, embedded], dim=-1)))
        return self.feed_forward(self.pre_ff_layernorm(y))


class ZambaLayer(nn.Module):
    def __init__(self, s: dict):
        super().__init__()
        self.input_layernorm = Norm(s["hidden"])
        self.mamba = Mamba(s)

    def forward(self, h, t):
        """t: the shared block's output, or None. The residual is h, not h + t."""
        return h + self.mamba(self.input_layernorm(h if t is None else h + t))


class Model(nn.Module):
    """ids [B, T] -> last hidden state [B, T, D] after the final norm; logits by `head`."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind, self.s = kind, LLAMA if kind == "llama" else ZAMBA
        s = self.s
        self.embed = nn.Embedding(VOCAB, s["hidden"])
        nn.init.normal_(self.embed.weight, std=0.02)
        self.norm = Norm(s["hidden"])
        if kind == "llama":
            self.layers = nn.ModuleList(LlamaLayer(s) for _ in range(s["layers"]))
        else:
            self.layers = nn.ModuleList(ZambaLayer(s) for _ in range(s["layers"]))
            self.hybrids = [2] + [i + 3 for i in range(s["layers"] - 3) if i % 6 == 4]  # transformers' rule
            self.shared = Shared(s)
            self.linears = nn.ModuleList(linear(s["hidden"], s["hidden"]) for _ in self.hybrids)

    def forward(self, ids, positions=None):
        h = self.embed(ids)
        if self.kind == "llama":
            if positions is None:
                positions = torch.arange(ids.shape[1], device=ids.device)[None]
            cos, sin = rotary(positions, self.s["head_dim"])
            for layer in self.layers:
                h = layer(h, cos, sin)
        else:
            embedded = h
            for index, layer in enumerate(self.layers):
                t = None
                if index in self.hybrids:
                    t = self.linears[self.hybrids.index(index)](self.shared(h, embedded))
                h = layer(h, t)
        return self.norm(h)

    def head(self, h):
        return F.linear(h, self.embed.weight)

    def compile_blocks(self):
        """Each kind of block is compiled once and serves all layers."""
        blocks = list(self.layers) + ([self.shared] if self.kind == "zamba" else [])
        for block in blocks:
            block.compile(dynamic=False)

    def export(self) -> dict:
        """Tensors under the names and in the layouts of a Hugging Face checkpoint."""
        own, out = {n: p.detach() for n, p in self.named_parameters()}, {}
        for name, p in own.items():
            if name == "embed.weight":
                out["model.embed_tokens.weight"] = p
            elif name == "norm.weight":
                out["model.norm.weight" if self.kind == "llama" else "model.final_layernorm.weight"] = p
            elif self.kind == "llama":
                out["model." + name] = p
            elif name.startswith("shared."):
                out[f"model.layers.{self.hybrids[0]}.shared_transf." + name.removeprefix("shared.")] = p
            elif name.startswith("linears."):
                out[f"model.layers.{self.hybrids[int(name.split('.')[1])]}.linear.weight"] = p
            else:
                _, index, rest = name.split(".", 2)
                if rest == "mamba.in_proj.weight":
                    x, gate = p.chunk(2)
                    p = torch.stack([x, gate], dim=1).reshape(p.shape)  # rows x0, gate0, x1, gate1, ...
                rest = {"mamba.conv_weight": "mamba.conv1d.weight", "mamba.conv_bias": "mamba.conv1d.bias"}.get(rest, rest)
                if rest == "mamba.conv1d.weight":
                    p = p[:, None, :]
                middle = "mamba_decoder." if int(index) in self.hybrids else ""
                out[f"model.layers.{index}.{middle}{rest}"] = p
        return {n: p.contiguous() for n, p in out.items()}
