"""Gated linear attention, DSLA as published, and the foldable layer, in float64, each in its plainest form."""
import math

import torch
import torch.nn.functional as F

from common import F64, Draw, gradients, leaf, rope_frequencies, rotate, save


def gla(q, k, v, g, h0, scale):
    """q, k, g [T, H, K], v [T, H, V], h0 [H, K, V]. Read after write; a token's own k v^T is not decayed."""
    state, out = h0, []
    for t in range(q.shape[0]):
        state = g[t].exp()[:, :, None] * state + k[t][:, :, None] * v[t][:, None, :]
        out.append(scale * torch.einsum("hk,hkv->hv", q[t], state))
    return torch.stack(out), state


def make_gla(out):
    # T, H, K, V, normaliser of the gates (log sigmoid(x)/normaliser), initial state, constant g
    cases = {
        "t1-h1-4x4": (1, 1, 4, 4, 1, False, None),
        "t1-h1-4x4-h0": (1, 1, 4, 4, 1, True, None),
        "t63-h1-16x16": (63, 1, 16, 16, 1, False, None),
        "t63-h1-16x16-h0": (63, 1, 16, 16, 10, True, None),
        "t65-h3-12x8-h0": (65, 3, 12, 8, 1, True, None),
        "t65-h1-12x8-fast": (65, 1, 12, 8, 0.1, False, None),
        "t65-h1-12x12-slow": (65, 1, 12, 12, 10, False, None),
        "t64-h1-8x8-g-8": (64, 1, 8, 8, None, True, -8.0),
        "t33-h1-8x8-g0": (33, 1, 8, 8, None, True, 0.0),
    }
    for number, (name, (count, heads, dk, dv, normaliser, initial, constant)) in enumerate(cases.items()):
        draw = Draw(2000 + number)
        logits = draw.normal(count, heads, dk)
        g = F.logsigmoid(logits) / normaliser if constant is None else torch.full_like(logits, constant)
        x = leaf({"q": draw.normal(count, heads, dk), "k": draw.normal(count, heads, dk), "v": draw.normal(count, heads, dv),
                  "g": g.float().to(F64),
                  "h0": draw.normal(heads, dk, dv, std=0.5) if initial else torch.zeros(heads, dk, dv, dtype=F64)})
        scale = dk**-0.5
        o, state = gla(x["q"], x["k"], x["v"], x["g"], x["h0"], scale)
        do, dstate = draw.normal(*o.shape), draw.normal(*state.shape)
        grads = gradients(x, ["q", "k", "v", "g", "h0"], (o * do).sum() + (state * dstate).sum())
        case = {"op": "gla", "tokens": count, "heads": heads, "keyDim": dk, "valueDim": dv, "scale": scale,
                "normaliser": normaliser, "initialState": initial, "constantGate": constant}
        save(out / f"gla-{name}.safetensors", case, {**x, "o": o, "state": state, "do": do, "dstate": dstate, **grads})


def dsla(x, p, heads, temperature, states):
    """x [T, D] -> y [T, D]; states [2, H, hd, hd] (key channel first), 0 = history (gk_proj), 1 = recency (gk_proj2)."""
    count, width = x.shape
    hd = width // heads
    split = lambda y: y.view(count, heads, hd)
    q, k, v = (split(x @ p[f"{n}_proj.weight"].T) for n in "qkv")
    logits = [x @ p[f"{n}.weight"].T + p[f"{n}.bias"] for n in ("gk_proj", "gk_proj2")]
    gamma = torch.softmax(p["alpha_list"], dim=0)
    mixed, last = 0, []
    for i in range(2):
        g = split(F.logsigmoid(logits[i]) / temperature).clamp(min=-50)
        o, state = gla(q, k, v, g, states[i], hd**-0.5)
        mixed, last = mixed + gamma[i] * o, last + [state]
    mixed = mixed.reshape(count, width)
    inner = {"q": q.reshape(count, width), "k": k.reshape(count, width), "v": v.reshape(count, width),
             "gates": torch.cat(logits, dim=1), "mixed": mixed}
    return mixed @ p["o_proj.weight"].T, torch.stack(last), inner


def make_dsla(out):
    for number, (heads, hd) in enumerate([(3, 8), (1, 16)]):
        draw = Draw(2100 + number)
        width, count, cut = heads * hd, 37, 20
        matrix = lambda: draw.normal(width, width, std=width**-0.5)
        p = leaf({**{f"{n}_proj.weight": matrix() for n in "qkvo"},
                  "gk_proj.weight": matrix(), "gk_proj.bias": draw.normal(width, mean=4.0),
                  "gk_proj2.weight": matrix(), "gk_proj2.bias": draw.normal(width),
                  "alpha_list": draw.normal(2)})
        x = leaf({"x": draw.normal(count, width)})
        zero = torch.zeros(2, heads, hd, hd, dtype=F64)
        y, state, inner = dsla(x["x"], p, heads, 16, zero)
        first, middle, _ = dsla(x["x"][:cut], p, heads, 16, zero)
        second, end, _ = dsla(x["x"][cut:], p, heads, 16, middle)
        assert torch.allclose(torch.cat([first, second]), y, atol=1e-12) and torch.allclose(end, state, atol=1e-12)
        dy = draw.normal(*y.shape)
        both = {**p, **x}
        case = {"op": "dslaPublished", "tokens": count, "cut": cut, "heads": heads, "headDim": hd, "scale": hd**-0.5,
                "temperature": 16, "states": 2}
        save(out / f"dsla-published-h{heads}x{hd}.safetensors", case,
             {**both, **inner, "y": y, "state.cut": middle, "state": state, "do": dy,
              **gradients(both, list(both), (y * dy).sum())})


def phi(x, weight):
    """x [hd], weight [F, hd] -> [2F]; every entry is at most 1."""
    y = weight @ x
    c = y.abs().max()
    return torch.cat([(y - c).exp(), (-y - c).exp()])


def foldable(x, c):
    """The foldable dual-state layer as a quadratic loop. x: tensors of the case, c: its settings. Returns o and the state."""
    heads, kv_heads, hd, states, window, sinks = (c[n] for n in ("heads", "kvHeads", "headDim", "states", "window", "sinks"))
    count = x["q"].shape[0]
    q, k, v = x["q"].view(count, heads, hd), x["k"].view(count, kv_heads, hd), x["v"].view(count, kv_heads, hd)
    positions, frequencies = torch.arange(count), rope_frequencies(hd, c["theta"])
    q_turned, k_turned = rotate(q, positions, frequencies), rotate(k, positions, frequencies)
    q_state, k_state = (q_turned, k_turned) if c["ropeInState"] else (q, k)
    a = (F.logsigmoid(x["gates"]) / c["temperature"]).view(count, states, kv_heads)
    b = torch.cumsum(torch.cat([torch.zeros_like(a[:sinks]), a[sinks:]]), dim=0)  # [T, states, kvHeads]
    gamma = torch.softmax(x["mix"], dim=-1).expand(heads, states)
    phi_k = [[phi(k_state[j, g], x["featureK"][g]) for g in range(kv_heads)] for j in range(count)]
    one = torch.ones(1, dtype=F64)
    with_one = [[torch.cat([v[j, g], one]) for g in range(kv_heads)] for j in range(count)]  # [hd + 1]

    rows = []
    for t in range(count):
        for h in range(heads):
            g = h * kv_heads // heads
            exact = [j for j in range(t + 1) if j < sinks or j > t - window]
            s = torch.stack([c["scale"] * (q_turned[t, h] @ k_turned[j, g]) for j in exact])
            e = (s - s.max()).exp()
            total = sum(e[n] * with_one[j][g] for n, j in enumerate(exact))
            phi_q = phi(q_state[t, h], x["featureQ"][h])
            for i in range(states):
                for j in range(sinks, t - window + 1):
                    weight = (b[t - window, i, g] - b[j, i, g]).exp() * (phi_q @ phi_k[j][g])
                    total = total + x["logWeight"][h].exp() * gamma[h, i] * weight * with_one[j][g]
            rows.append(total[:hd] / total[hd])
    o = torch.stack(rows).reshape(count, heads * hd)

    last = count - 1 - window  # the last token that entered
    state = torch.zeros(states, kv_heads, x["featureK"].shape[1] * 2, hd + 1, dtype=F64)
    for i in range(states):
        for g in range(kv_heads):
            for j in range(sinks, last + 1):
                state[i, g] += ((b[last, i, g] - b[j, i, g]).exp() * torch.outer(phi_k[j][g], with_one[j][g])).detach()
    return o, state


def make_foldable(out):
    # heads, kvHeads, hd, F, states, window, sinks, T, mix per head, rope in the state
    cases = {
        "mha-s2-w8-t5": (2, 2, 8, 8, 2, 8, 2, 5, True, False),
        "mha-s2-w8-t37": (2, 2, 8, 8, 2, 8, 2, 37, True, False),
        "mha-s1-w8-t37": (2, 2, 16, 16, 1, 8, 2, 37, True, False),
        "mha-s1-w1-t37": (2, 2, 8, 4, 1, 1, 0, 37, False, False),
        "gqa-s2-w8-t37": (4, 2, 16, 16, 2, 8, 2, 37, False, False),
        "gqa-s2-w1-t37": (6, 2, 8, 8, 2, 1, 0, 37, True, False),
        "gqa-s2-w1-t5": (4, 2, 16, 16, 2, 1, 0, 5, False, False),
        "gqa-s2-w8-t37-rope": (4, 2, 8, 8, 2, 8, 2, 37, True, True),
        "gqa-s2-w8-t150": (3, 1, 8, 8, 2, 8, 2, 150, True, False),
        "mha-s1-w1-t150": (1, 1, 16, 16, 1, 1, 0, 150, True, False),
    }
    for number, (name, (heads, kv, hd, features, states, window, sinks, count, per_head, in_state)) in enumerate(cases.items()):
        draw = Draw(2200 + number)
        case = {"op": "foldable", "heads": heads, "kvHeads": kv, "headDim": hd, "features": features, "states": states,
                "window": window, "sinks": sinks, "tokens": count, "scale": hd**-0.5, "temperature": 16, "theta": 10000,
                "rotaryDim": hd, "ropeInState": in_state, "gate": "scalar", "normaliser": True}
        bias = torch.tensor([4.0, 0.0], dtype=F64)[:states].repeat_interleave(kv)  # state-major
        x = leaf({
            "q": draw.normal(count, heads * hd), "k": draw.normal(count, kv * hd), "v": draw.normal(count, kv * hd),
            "gates": draw.normal(count, states * kv) + bias,
            "mix": draw.normal(heads if per_head else 1, states), "logWeight": draw.normal(heads, std=0.5, mean=-0.5),
            "featureQ": draw.normal(heads, features, hd, std=hd**-0.5), "featureK": draw.normal(kv, features, hd, std=hd**-0.5),
        })
        x["gates"] = x["gates"].detach().float().to(F64).requires_grad_(True)
        o, state = foldable(x, case)
        do = draw.normal(*o.shape)
        names = ["gates", "mix", "logWeight", "featureQ", "featureK"] + (["q", "k", "v"] if count < 100 else [])
        save(out / f"foldable-{name}.safetensors", case,
             {**x, "o": o, "state": state, "do": do, **gradients_or_zero(x, names, (o * do).sum())})


def gradients_or_zero(inputs, names, total):
    """As `gradients`, with zeros where a short case never reaches a parameter (no token has left the window yet)."""
    found = torch.autograd.grad(total, [inputs[n] for n in names], allow_unused=True)
    return {f"d.{n}": torch.zeros_like(inputs[n]) if g is None else g for n, g in zip(names, found)}


def make(out):
    make_gla(out)
    make_dsla(out)
    make_foldable(out)
