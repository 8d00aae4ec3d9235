"""Softmax attention, RMS norm and rotary embedding, in float64."""
import math

import torch

from common import F64, Draw, gradients, leaf, rope_frequencies, rotate, save


def attention(q, k, v, past_k, past_v, heads, kv_heads, scale, window=None):
    """q [Tq, heads*hd]; k, v [Tq, kvHeads*hd]; past [kvHeads, P, hd]. Returns o [Tq, heads*hd] and the mask [Tq, P+Tq]."""
    count, past = q.shape[0], past_k.shape[1]
    hd = past_k.shape[2]
    q = q.view(count, heads, hd).transpose(0, 1)  # [heads, Tq, hd]
    keys = torch.cat([past_k, k.view(count, kv_heads, hd).transpose(0, 1)], dim=1)  # [kvHeads, P+Tq, hd]
    values = torch.cat([past_v, v.view(count, kv_heads, hd).transpose(0, 1)], dim=1)
    t = torch.arange(past, past + count)[:, None]
    j = torch.arange(past + count)[None, :]
    mask = j <= t
    if window:
        mask &= (j < window["sinks"]) | (j > t - window["size"])
    out = []
    for h in range(heads):
        g = h * kv_heads // heads
        s = scale * q[h] @ keys[g].T
        out.append(torch.softmax(s.masked_fill(~mask, -math.inf), dim=-1) @ values[g])
    return torch.stack(out, dim=1).reshape(count, heads * hd), mask


# name: heads, kvHeads, hd, Tq, past, window
CASES = {
    "h8-t1-p0": (2, 2, 8, 1, 0, None),
    "h8-t5-p3": (2, 2, 8, 5, 3, None),
    "h8-t33-p40": (2, 2, 8, 33, 40, None),
    "h16-t33-p0-gqa": (3, 1, 16, 33, 0, None),
    "h16-t1-p40-gqa": (6, 2, 16, 1, 40, None),
    "h16-t5-p40-gqa": (6, 2, 16, 5, 40, None),
    "h64-t1-p40": (1, 1, 64, 1, 40, None),
    "h64-t5-p3-gqa": (3, 1, 64, 5, 3, None),
    "h464-t5-p3": (1, 1, 464, 5, 3, None),
    "h464-t1-p3": (1, 1, 464, 1, 3, None),
    "h8-t33-p0-window": (3, 1, 8, 33, 0, {"size": 8, "sinks": 2}),
    "h8-t33-p40-window": (3, 1, 8, 33, 40, {"size": 8, "sinks": 2}),
    "h16-t1-p40-window": (2, 2, 16, 1, 40, {"size": 8, "sinks": 2}),
}


def make(out):
    for number, (name, (heads, kv_heads, hd, count, past, window)) in enumerate(CASES.items()):
        draw = Draw(1000 + number)
        scale = 232**-0.5 if hd == 464 else hd**-0.5
        x = leaf({
            "q": draw.normal(count, heads * hd, std=1.5), "k": draw.normal(count, kv_heads * hd),
            "v": draw.normal(count, kv_heads * hd), "pastK": draw.normal(kv_heads, past, hd),
            "pastV": draw.normal(kv_heads, past, hd),
        })
        o, mask = attention(x["q"], x["k"], x["v"], x["pastK"], x["pastV"], heads, kv_heads, scale, window)
        cotangent = draw.normal(*o.shape)
        case = {"op": "softmaxAttention", "heads": heads, "kvHeads": kv_heads, "headDim": hd, "tokens": count,
                "past": past, "scale": scale, "window": window}
        tensors = {**x, "o": o, "do": cotangent, **gradients(x, ["q", "k", "v"], (o * cotangent).sum())}
        if past == 0:
            del tensors["pastK"], tensors["pastV"]
        if window:
            tensors["mask"] = mask.int()
        save(out / f"attention-{name}.safetensors", case, tensors)

    for number, (width, eps) in enumerate([(48, 1e-5), (7, 1e-6), (80, 1e-5)]):
        draw = Draw(1100 + number)
        x = leaf({"x": draw.normal(5, width, std=[1.0, 0.01, 30.0][number]), "weight": draw.normal(width, std=0.1, mean=1.0)})
        y = x["weight"] * x["x"] / torch.sqrt((x["x"] ** 2).mean(-1, keepdim=True) + eps)
        cotangent = draw.normal(5, width)
        save(out / f"rms-norm-{width}.safetensors", {"op": "rmsNorm", "tokens": 5, "width": width, "eps": eps},
             {**x, "y": y, "do": cotangent, **gradients(x, ["x", "weight"], (y * cotangent).sum())})

    for hd in (8, 64):
        draw = Draw(1200 + hd)
        positions = torch.tensor([0, 1, 2, 7, 511, 4095])
        x = draw.normal(len(positions), 2 * hd)
        frequencies = rope_frequencies(hd)
        y = rotate(x.view(-1, 2, hd), positions, frequencies).reshape(-1, 2 * hd)
        save(out / f"rope-{hd}.safetensors", {"op": "rope", "heads": 2, "headDim": hd, "theta": 10000, "rotaryDim": hd},
             {"x": x, "positions": positions, "frequencies": frequencies, "y": y})
