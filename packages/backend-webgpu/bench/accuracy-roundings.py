# Where the differences of float16 logits come from: the forward pass of a Llama checkpoint in float64, with values rounded to
# float16 where the WebGPU kernels round them; all, each by itself, and all drawn anew. One JSON object a line on stdout.
#   python3 accuracy-roundings.py CHECKPOINT IDS [PLACE [PROMPTS [DRAWS]]]
import json
import math
import os
import sys

import torch
import transformers

checkpoint, file, place, count, draws = [*sys.argv[1:], *["cuda", "10", "24"][len(sys.argv) - 3 :]]
prompts = torch.tensor(json.load(open(file))[: int(count)], device=place)  # [prompts, tokens]
model = transformers.LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float16).to(place, torch.float64)
config = model.config
heads, dim = config.num_attention_heads, config.head_dim

products = ["x of q, k, v", "x of gate, up"]
attention = ["v", "q, turned", "k, turned", "weights of keys", "attention"]
ways = {
    # Until gate and up were one product, and logits of all tokens had what is left of the norm.
    "prefill before": [*products, "q", "k", *attention, "gate", "up", "gated", "x of the head"],
    # Until queries and keys were rounded once, after rotation.
    "prefill, q and k rounded twice": [*products, "q", "k", *attention, "gated"],
    "prefill": [*products, *attention, "gated"],
    "decode, q and k rounded twice": ["q", "k", "v", "k, turned", "attention", "gated"],
    "decode": ["v", "k, turned", "attention", "gated"],
}
keys = 32  # of a block in tiles


def to16(x, random):
    """With `random` another draw of the same rounding: that of x in other units."""
    unit = 1 + torch.rand((), generator=random).item() if random else 1
    return (x * unit).float().half().double() / unit


def weights(scores, rounded):
    """Softmax of [heads, tokens, keys] in units of log 2: numbers relative to a maximum that moves when it is passed by 2^8."""
    blocks = torch.nn.functional.pad(scores, (0, -scores.shape[-1] % keys), value=-math.inf).unflatten(-1, (-1, keys))
    top, tops = torch.full_like(blocks[..., 0, 0], -1e30), []
    for highest in blocks.amax(-1).unbind(-1):
        top = torch.where(highest > top + 8, highest, top)
        tops.append(top)
    tops = torch.stack(tops, -1)[..., None]
    numbers, scale = (blocks - tops).exp2(), (tops - top[..., None, None]).exp2()
    of = lambda x: (x * scale).flatten(-2)[..., : scores.shape[-1]]
    return of(rounded("weights of keys", numbers)) / of(numbers).sum(-1, keepdim=True)


@torch.no_grad()
def logits(ids, sites=(), random=None):
    rounded = lambda site, x: to16(x, random) if site in sites else x
    norm = lambda x, by: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps) * by.weight
    steps = torch.arange(0, dim, 2, dtype=torch.float64, device=place)
    angles = torch.arange(len(ids), device=place)[:, None] * config.rope_parameters["rope_theta"] ** (-steps / dim)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    mask = torch.full((len(ids), len(ids)), -math.inf, dtype=torch.float64, device=place).triu(1)

    def turned(x):  # [tokens, heads, dim]
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    x = model.model.embed_tokens.weight[ids]
    for layer in model.model.layers:
        own, mlp = layer.self_attn, layer.mlp
        y = rounded("x of q, k, v", norm(x, layer.input_layernorm))
        q, k, v = [rounded(name, getattr(own, f"{name}_proj")(y)).unflatten(-1, (heads, dim)) for name in "qkv"]
        q, k = rounded("q, turned", turned(q)), rounded("k, turned", turned(k))
        scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(dim) / math.log(2) + mask
        o = torch.einsum("hts,shd->thd", weights(scores, rounded), v).flatten(1)
        x = x + own.o_proj(rounded("attention", o))
        y = rounded("x of gate, up", norm(x, layer.post_attention_layernorm))
        gate, up = rounded("gate", mlp.gate_proj(y)), rounded("up", mlp.up_proj(y))
        x = x + mlp.down_proj(rounded("gated", torch.nn.functional.silu(gate) * up))
    return rounded("x of the head", norm(x, model.model.norm)) @ model.lm_head.weight.T


def show(test, **rest):
    print(json.dumps({"test": test, "model": os.path.basename(os.path.normpath(checkpoint)), **rest}), flush=True)


truths = [logits(ids) for ids in prompts]


def compare(sites):
    error = size = tokens = 0
    others = []
    for ids, want in zip(prompts, truths):
        got = logits(ids, sites)
        error, size = error + (got - want).pow(2).sum().item(), size + want.pow(2).sum().item()
        margin = want.topk(2).values @ torch.tensor([1.0, -1.0], dtype=torch.float64, device=place)
        wrong = (got.argmax(-1) != want.argmax(-1)).nonzero().flatten().tolist()
        others += [{"token": tokens + token, "margin": margin[token].item()} for token in wrong]
        tokens += len(ids)
    return {"tokens": tokens, "rms": math.sqrt(error / size), "error": math.sqrt(error / tokens / want.shape[-1]), "others": others}


def redraw(sites):
    """Of the first prompt: in how many draws all tokens agree, and the tokens that agree least surely."""
    ids, want = prompts[0], truths[0]
    at = want.topk(2).indices
    margin = lambda x: x.gather(1, at) @ torch.tensor([1.0, -1.0], dtype=torch.float64, device=place)
    agree, squares = 0, 0
    for seed in range(int(draws)):
        got = logits(ids, sites, torch.Generator().manual_seed(seed))
        agree += int((got.argmax(-1) == want.argmax(-1)).all())
        squares = squares + (margin(got) - margin(want)).pow(2)
    spread = (squares / int(draws)).sqrt()
    least = (margin(want) / spread).argsort()[:3].tolist()
    near = [{"token": token, "margin": margin(want)[token].item(), "spread": spread[token].item()} for token in least]
    return {"tokens": len(ids), "draws": int(draws), "agree": agree, "near": near}


for way, sites in ways.items():
    show("roundings", way=way, sites=sites, **compare(sites))
for site in ways["prefill before"]:
    show("roundings", way="alone", sites=[site], **compare([site]))
for way, sites in {**ways, "keys and values of the cache alone": ["k, turned", "v"]}.items():
    show("draws", way=way, **redraw(sites))
