"""Proves that mixer.py is the project's mixer: python check.py [--golden ../../packages/conformance/golden/ops]

Against the golden vectors (values and gradients), and, for every switch, against the definition below, one token after the
other in float64. CPU, some seconds; exits with 1 when something differs.
"""
import argparse
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open

from mixer import PUBLISHED, TEMPERATURE, Form, attend, first, mixed

F64 = torch.float64
HD, HEADS, HIDDEN = 8, 2, 16


def turned(x, theta=10000.0):
    """Half rotation of [.., T, hd] by position."""
    count, hd = x.shape[-2:]
    angle = torch.arange(count)[:, None] * theta ** (-torch.arange(0, hd, 2, dtype=F64) / hd)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


def features(form, weight, x):
    if form.map == "none":
        return x
    y = weight @ x
    c = y.abs().max()
    f = {"exp": lambda z: (z - c).exp(), "elu": lambda z: F.elu(z) + 1, "relu": F.relu}[form.map]
    return torch.cat([f(y), f(-y)])


def definition(form, p, q, k, v, source):
    """One window and head-by-head: q, k, v [H, T, hd] before rotation, source [T, in]; parameters without the leading axis."""
    heads, count, hd = q.shape
    tq, tk = turned(q), turned(k)
    out = torch.zeros_like(q)
    logits = source @ p["gate.weight"].T + p["gate.bias"]
    decay = (F.logsigmoid(logits) / TEMPERATURE).exp().view(count, form.states, heads, -1)
    for h in range(heads):
        gamma = p["mix"][min(h, len(p["mix"]) - 1)].softmax(-1)
        states = None
        for t in range(count):
            entering = t - form.window
            if entering >= (form.sinks if form.window else 0):
                key = features(form, p.get("feature.key", q)[h], (tk if form.rope else k)[h, entering])
                value = torch.cat([v[h, entering], torch.ones(1, dtype=F64)])
                if states is None:
                    states = [torch.zeros(len(key), hd + 1, dtype=F64) for _ in range(form.states)]
                for i in range(form.states):
                    states[i] = decay[entering, i, h][:, None] * states[i]
                    if form.delta and i == 0:
                        key_1 = key / key.norm()
                        rate = torch.sigmoid(source[entering] @ p["rate.weight"][h] + p["rate.bias"][h])
                        states[i] = states[i] + rate * torch.outer(key_1, value - states[i].T @ key_1)
                    else:
                        states[i] = states[i] + torch.outer(key, value)
            query = features(form, p.get("feature.query", q)[h], (tq if form.rope else q)[h, t])
            read = sum(g * (s.T @ query) for g, s in zip(gamma, states)) if states else torch.zeros(hd + 1, dtype=F64)
            exact = None
            if form.window:
                seen = [j for j in range(t + 1) if j < form.sinks or j > t - form.window]
                s = torch.stack([hd**-0.5 * tq[h, t] @ tk[h, j] for j in seen])
                e = (s - s.max()).exp()
                exact = sum(e[n] * torch.cat([v[h, j], torch.ones(1, dtype=F64)]) for n, j in enumerate(seen))
            if exact is not None and form.combine == "joint":
                total = exact + p["log_weight"][h].exp() * read
                out[h, t] = total[:hd] / total[hd]
                continue
            o = read[:hd] * hd**-0.5 if form.map == "none" else read[:hd] / read[hd].clamp_min(1e-30)
            if form.norm:
                o = o / (o.pow(2).mean() + 1e-5).sqrt() * p["norm"]
            if exact is not None:
                share = torch.sigmoid(p["share"][h])
                o = (1 - share) * exact[:hd] / exact[hd] + share * o
            out[h, t] = o
    return out


def off(got, want) -> float:
    """Root mean square of the difference over that of what is wanted."""
    return ((got - want).pow(2).mean() / want.pow(2).mean().clamp_min(1e-30)).sqrt().item()


def switches(count=45, chunk=8):
    """Every switch on layers 1 of 2 and window 1 of 2: the leading axes must not mix."""
    forms = {
        "default": Form(), "one state": Form(states=1), "four states": Form(states=4), "no window": Form(window=0),
        "rope in the state": Form(rope=True), "elu": Form(map="elu"), "relu": Form(map="relu"), "few features": Form(features=5),
        "vector gates": Form(gate="vector"), "vector gates, key": Form(gate="vector", source="key", states=1),
        "hidden": Form(source="hidden"), "identity gates": Form(gate_start="identity"), "gated sum": Form(combine="gated"),
        "raw, norm, gated": Form(map="none", norm=True, combine="gated"), "delta": Form(delta=True),
        "delta, no window": Form(delta=True, window=0, states=1), "published core": Form(window=0, map="none", gate="vector", source="hidden"),
    }
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=F64)
    found = {}
    for name, form in forms.items():
        windows = [form.window] if form.window == 0 else [1, 5, 8, 20]
        for window in windows:
            f = Form(**{**form.__dict__, "window": window, "sinks": 3, "features": min(form.features, 8)})
            p = {n: x.to(F64) for n, x in first(f, 2, HEADS, HD, HIDDEN, {}, 0).items()}
            p = {n: x + 0.5 * draw(*x.shape) for n, x in p.items()}
            if "log_weight" in p:
                p["log_weight"] += 6
            q, k, v = (draw(2, 2, HEADS, count, HD) for _ in range(3))
            x = {"q": q, "k": k, "v": v, "turned_q": turned(q), "turned_k": turned(k), "hidden": draw(2, 2, count, HIDDEN)}
            o = attend(f, p, x, chunk=chunk)
            source = {"hidden": x["hidden"], "key": k.transpose(-3, -2).flatten(-2), "value": v.transpose(-3, -2).flatten(-2)}[f.source]
            want = definition(f, {n: y[1] for n, y in p.items()}, q[1, 0], k[1, 0], v[1, 0], source[1, 0])
            found[f"{name}, window {window}"] = off(o[1, 0], want)
    return found


def merged(count=20):
    """A change of o of low rank against the same written into the projection"""
    generator = torch.Generator().manual_seed(2)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=F64)
    form, width = Form(rank=3, window=5, sinks=2, features=8), HEADS * HD
    p = {n: x.to(F64) + 0.5 * draw(*x.shape) for n, x in first(form, 2, HEADS, HD, HIDDEN, {}, 0).items()}
    x = {n: draw(2, 2, HEADS, count, HD) for n in ("q", "k", "v", "turned_q", "turned_k")} | {"hidden": draw(2, 2, count, HIDDEN)}
    w = draw(2, HIDDEN, width)
    own = w @ (torch.eye(width, dtype=F64) + p["output.up"] @ p["output.down"])
    return {"change of o": off(mixed(form, p, x, w), mixed(replace(form, rank=0), p, x, own))}


def golden(folder: Path):
    found = {}
    for path in sorted(folder.glob("foldable-*.safetensors")) + sorted(folder.glob("dsla-published-*.safetensors")):
        with safe_open(path, "pt") as file:
            case = json.loads(file.metadata()["case"])
            t = {n: file.get_tensor(n).to(F64) for n in file.keys()}
        found.update(foldable_case(path.stem, case, t) if case["op"] == "foldable" else published_case(path.stem, case, t))
    assert found, f"no golden vectors in {folder}"
    return found


def foldable_case(name, case, t):
    """The gates are inputs of the golden case: they enter as the bias-free product of a one-hot source."""
    heads, kv, count = case["heads"], case["kvHeads"], case["tokens"]
    form = Form(states=case["states"], window=case["window"], sinks=case["sinks"], rope=case["ropeInState"], source="hidden",
                features=case["features"])
    leaves = {n: t[n].clone().requires_grad_(True) for n in ("gates", "mix", "logWeight", "featureQ", "featureK", "q", "k", "v")}
    group = torch.arange(heads) * kv // heads
    split = lambda x, n: x.view(count, n, -1).transpose(0, 1)
    q = split(leaves["q"], heads)[None, None]
    k, v = (split(leaves[n], kv)[group][None, None] for n in "kv")
    gates = leaves["gates"].view(count, case["states"], kv)[:, :, group].flatten(1)  # [T, S H]
    p = {"gate.weight": gates.T[None], "gate.bias": torch.zeros(1, gates.shape[1], dtype=F64),
         "mix": leaves["mix"].expand(heads, -1)[None], "log_weight": leaves["logWeight"][None],
         "feature.query": leaves["featureQ"][None], "feature.key": leaves["featureK"][group][None]}
    x = {"q": q, "k": k, "v": v, "turned_q": turned(q, case["theta"]), "turned_k": turned(k, case["theta"]),
         "hidden": torch.eye(count, dtype=F64)[None, None]}
    o = attend(form, p, x, chunk=16)[0, 0].transpose(0, 1).flatten(1)
    wanted = [n for n in leaves if f"d.{n}" in t]
    grads = torch.autograd.grad((o * t["do"]).sum(), [leaves[n] for n in wanted], allow_unused=True)
    found = {f"{name} o": off(o, t["o"])}
    for n, g in zip(wanted, grads):
        if t[f"d.{n}"].abs().max() > 0:
            found[f"{name} d.{n}"] = off(g, t[f"d.{n}"])
    return found


def published_case(name, case, t):
    count, heads = case["tokens"], case["heads"]
    leaves = {n: x.clone().requires_grad_(True) for n, x in t.items() if f"d.{n}" in t}
    p = {n: leaves[f"{w}_proj.weight"][None] for n, w in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o"))}
    p["gate.weight"] = torch.cat([leaves["gk_proj.weight"], leaves["gk_proj2.weight"]])[None]
    p["gate.bias"] = torch.cat([leaves["gk_proj.bias"], leaves["gk_proj2.bias"]])[None]
    p["mix"] = leaves["alpha_list"][None, None]
    x = {n: torch.zeros(1, 1, heads, count, case["headDim"], dtype=F64) for n in ("q", "k", "v", "turned_q", "turned_k")}
    y = mixed(PUBLISHED, p, {**x, "hidden": leaves["x"][None, None]}, None)[0, 0]
    names = list(leaves)
    grads = torch.autograd.grad((y * t["do"]).sum(), [leaves[n] for n in names])
    return {f"{name} y": off(y, t["y"]), **{f"{name} d.{n}": off(g, t[f"d.{n}"]) for n, g in zip(names, grads)}}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--golden", type=Path, default=Path(__file__).parents[2] / "packages/conformance/golden/ops")
    args = parser.parse_args()
    bad = False
    # float64 against float64; golden files hold float32 numbers
    for title, found, limit in (("definition", switches(), 1e-10), ("merged projection", merged(), 1e-10), ("golden vectors", golden(args.golden), 1e-5)):
        for name, value in found.items():
            if not value <= limit or math.isnan(value):
                bad = True
                print("DIFFERS", name, value)
        print(f"{title}: {len(found)} comparisons, largest RMS ratio {max(found.values()):.1e}, limit {limit:.0e}")
    sys.exit(bad)


if __name__ == "__main__":
    main()
