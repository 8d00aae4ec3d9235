"""The teacher with some of its layers exchanged. A plan maps a layer to (form, parameters); the other layers are softmax."""
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from mixer import Form, mixed

sys.path.insert(0, str(Path(__file__).parents[1] / "pretrain"))
from model import Model, rotary, rotate  # noqa: E402


class Teacher:
    def __init__(self, folder: Path, device: str):
        own = lambda name: name.removeprefix("model.").replace("embed_tokens", "embed")
        self.model = Model("llama")
        self.model.load_state_dict({own(n): x.float() for n, x in load_file(str(folder / "model.safetensors")).items() if n != "lm_head.weight"})
        self.model.to(device).eval().requires_grad_(False)
        self.layers, self.device = self.model.layers, device
        self.count, self.heads = len(self.layers), self.model.s["heads"]
        self.hd, self.hidden = self.model.s["head_dim"], self.model.s["hidden"]
        stack = lambda n: torch.stack([getattr(layer.self_attn, n).weight for layer in self.layers])
        self.projections = {n: stack(f"{n[0]}_proj") for n in ("query", "key", "value", "output")}  # [L, out, in]
        self.fast = False  # softmax attention in bfloat16: in tuning

    def head(self, h):
        return self.model.head(h)

    def inputs(self, layer: int, h, turn):
        """h [B, T, hidden] -> what a mixer reads, with a leading axis of one layer."""
        attention = self.layers[layer].self_attn
        a = self.layers[layer].input_layernorm(h)
        q, k, v = (p(a).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in (attention.q_proj, attention.k_proj, attention.v_proj))
        return {n: x[None] for n, x in dict(q=q, k=k, v=v, turned_q=rotate(q, *turn), turned_k=rotate(k, *turn), hidden=a).items()}

    def softmax(self, layer: int, x):
        """-> what the layer's attention adds to the residual [B, T, hidden]"""
        q, k, v = (x[n][0] for n in ("turned_q", "turned_k", "v"))
        if self.fast and q.is_cuda:
            o = F.scaled_dot_product_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), is_causal=True).float()
        else:
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.layers[layer].self_attn.o_proj(o.transpose(1, 2).flatten(-2))

    def forward(self, ids, plan, see=None):
        """ids [B, T] -> hidden state after the final norm; `see(layer, inputs, y)` is called in every softmax layer."""
        h = self.model.embed(ids)
        turn = rotary(torch.arange(ids.shape[1], device=ids.device)[None], self.hd)
        for index, layer in enumerate(self.layers):
            x = self.inputs(index, h, turn)
            if index in plan:
                form, p = plan[index]
                y = mixed(form, p, x, self.projections["output"][index : index + 1])[0]
            else:
                y = self.softmax(index, x)
                if see:
                    see(index, x, y)
            h = h + y
            h = h + layer.mlp(layer.post_attention_layernorm(h))
        return self.model.norm(h)

    @torch.no_grad()
    def lesson(self, ids):
        """Inputs of all layers' mixers [L, B, ..], and what their attention answers: y [L, B, T, hidden]."""
        seen = []
        self.forward(ids, {}, lambda _, x, y: seen.append({**x, "y": y[None]}))
        return {n: torch.cat([x[n] for x in seen]) for n in seen[0]}


class Hybrid:
    """What tools/pretrain/evaluate.py calls a model: ids -> hidden state, and a head."""

    def __init__(self, teacher: Teacher, plan):
        self.teacher, self.plan, self.head = teacher, plan, teacher.head

    def __call__(self, ids):
        return self.teacher.forward(ids, self.plan)


def plan_of(layers, form: Form, p) -> dict:
    """Stacked parameters [L, ...] -> plan of some layers."""
    return {layer: (form, {n: x[layer : layer + 1] for n, x in p.items()}) for layer in layers}


def window_plan(layers, window: int, sinks: int = 4) -> dict:
    return {layer: (Form(states=0, window=window, sinks=sinks), {}) for layer in layers}
