# Logits of the tokens of accuracy.bench.ts against float64: by PyTorch and transformers in other types, and in float64 with
# float16 roundings where a backend of that type makes them, all and all but some. One JSON object a line on stdout.
#   python3 accuracy-peers.py CHECKPOINT IDS [cpu]
import json
import math
import os
import sys

import torch
import transformers

checkpoint, file, *rest = sys.argv[1:]
name = os.path.basename(os.path.normpath(checkpoint))
place = rest[0] if rest else "cuda"
prompts = torch.tensor(json.load(open(file)), device=place)  # [prompts, tokens]


def load(dtype):
    model = transformers.LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float16, attn_implementation="sdpa")
    return model.to(place, dtype)


@torch.no_grad()
def peer(dtype):
    model = load(dtype)
    return lambda ids: model(ids[None]).logits[0].double()


def report(test, kind, run):
    """Logits of all prompts by `run` against the truth: RMS, and where another token is first."""
    error = size = tokens = 0
    others = []
    for n, ids in enumerate(prompts):
        got, want = run(ids), truth(ids)
        error, size = error + (got - want).pow(2).sum().item(), size + want.pow(2).sum().item()
        first, second = want.topk(2).values.T
        wrong = (got.argmax(-1) != want.argmax(-1)).nonzero().flatten().tolist()
        others += [{"token": tokens + token, "margin": (first - second)[token].item()} for token in wrong]
        tokens += len(ids)
    found = {"tokens": tokens, "rms": math.sqrt(error / size), "error": math.sqrt(error / tokens / want.shape[-1])}
    print(json.dumps({"test": test, "model": name, "type": kind, **found, "first": tokens - len(others), "others": others}), flush=True)


@torch.no_grad()
def rounded(ids, exact=()):
    """The forward pass in float64, its values rounded to float16 but for those whose names are in `exact`."""
    model, config = whole.model, whole.config
    heads, dim = config.num_attention_heads, config.head_dim
    to16 = lambda name, x: x if name in exact else x.to(torch.float32).to(torch.float16).double()
    norm = lambda x, by: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps) * by.weight
    steps = torch.arange(0, dim, 2, dtype=torch.float64, device=place)
    angles = torch.arange(len(ids), device=place)[:, None] * config.rope_parameters["rope_theta"] ** (-steps / dim)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    mask = torch.full((len(ids), len(ids)), -math.inf, dtype=torch.float64, device=place).triu(1)

    def turned(x):  # [tokens, heads, dim]
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    x = to16("stream", model.embed_tokens.weight[ids])
    for layer in model.layers:
        own, mlp = layer.self_attn, layer.mlp
        y = to16("norms", norm(x, layer.input_layernorm))
        q, k, v = [to16("q, k, v", p(y)).view(-1, heads, dim) for p in (own.q_proj, own.k_proj, own.v_proj)]
        q, k = to16("q, k, v", turned(q)), to16("q, k, v", turned(k))
        weights = (torch.einsum("thd,shd->hts", q, k) / math.sqrt(dim) + mask).softmax(-1)
        o = to16("attention", torch.einsum("hts,shd->thd", weights, v).flatten(1))
        x = to16("stream", x + to16("products", own.o_proj(o)))
        y = to16("norms", norm(x, layer.post_attention_layernorm))
        gate, up = to16("products", mlp.gate_proj(y)), to16("products", mlp.up_proj(y))
        x = to16("stream", x + to16("products", mlp.down_proj(to16("products", torch.nn.functional.silu(gate) * up))))
    return to16("logits", to16("norms", norm(x, model.norm)) @ model.embed_tokens.weight.T)


whole = load(torch.float64)
truth = peer(torch.float64)
peers = f"PyTorch {torch.__version__}, transformers {transformers.__version__}, SDPA"
for kind in ("float32", "float16", "bfloat16"):
    report(peers, kind, peer(getattr(torch, kind)))
report("float64 with every value rounded to", "float16", rounded)
for part in ("logits", "norms", "q, k, v", "attention", "products", "stream"):
    report("float64 with every value rounded to", f"float16 but {part}", lambda ids: rounded(ids, (part,)))
report("float64 with every value rounded to", "float16 but logits and stream", lambda ids: rounded(ids, ("logits", "stream")))
