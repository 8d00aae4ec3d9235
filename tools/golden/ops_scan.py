"""Mamba-1 selective scan and the depthwise causal convolution, in float64."""
import torch
import torch.nn.functional as F

from common import F64, Draw, gradients, leaf, save


def scan(x, dt, b, c, log_a, d, state):
    """x, dt [T, channels]; b, c [T, heads*n]; log_a [heads, channels/heads, n]; d [heads, channels/heads]; state [channels, n]."""
    heads, width, n = log_a.shape
    a = -log_a.exp().view(heads * width, n)
    spread = lambda row: row.view(heads, 1, n).expand(heads, width, n).reshape(heads * width, n)  # a head's b for its channels
    out = []
    for t in range(x.shape[0]):
        state = (dt[t][:, None] * a).exp() * state + dt[t][:, None] * spread(b[t]) * x[t][:, None]
        out.append((spread(c[t]) * state).sum(-1) + d.reshape(-1) * x[t])
    return torch.stack(out), state


def make_scan(out):
    # T, channels, heads, n, initial state, raw step sizes all 25 (softplus is linear above 20)
    cases = {
        "t1": (1, 24, 1, 16, False, False), "t1-state": (1, 24, 1, 16, True, False),
        "t5-state": (5, 24, 1, 16, True, False), "t33": (33, 24, 1, 16, False, False),
        "t64-state": (64, 24, 1, 16, True, False), "t5-softplus25": (5, 24, 1, 16, True, True),
        "t33-heads2-state": (33, 24, 2, 5, True, False),
    }
    for number, (name, (count, channels, heads, n, initial, threshold)) in enumerate(cases.items()):
        draw = Draw(3000 + number)
        raw = draw.normal(count, channels, std=2.0, mean=-2.0) if not threshold else torch.full((count, channels), 25.0, dtype=F64)
        x = leaf({
            "x": draw.normal(count, channels), "dtRaw": raw,
            "b": draw.normal(count, heads * n), "c": draw.normal(count, heads * n),
            "logA": draw.uniform(heads, channels // heads, n, low=-0.7, high=2.8),
            "d": draw.normal(heads, channels // heads, std=0.3, mean=1.0),
            "state0": draw.normal(channels, n) if initial else torch.zeros(channels, n, dtype=F64),
        })
        dt = torch.where(x["dtRaw"] > 20, x["dtRaw"], F.softplus(x["dtRaw"], threshold=1e9))
        y, state = scan(x["x"], dt, x["b"], x["c"], x["logA"], x["d"], x["state0"])
        do, dstate = draw.normal(*y.shape), draw.normal(*state.shape)
        total = (y * do).sum() + (state * dstate).sum()
        case = {"op": "selectiveScan", "tokens": count, "channels": channels, "heads": heads, "n": n, "initialState": initial}
        save(out / f"scan-{name}.safetensors", case,
             {**x, "dt": dt, "y": y, "state": state, "do": do, "dstate": dstate,
              "d.dt": torch.autograd.grad(total, dt, retain_graph=True)[0], **gradients(x, list(x), total)})


def make_conv(out):
    kernel, channels = 4, 6
    for number, (count, initial) in enumerate([(1, False), (1, True), (2, True), (3, True), (9, False), (9, True)]):
        draw = Draw(3100 + number)
        x = leaf({
            "x": draw.normal(count, channels), "weight": draw.normal(channels, 1, kernel), "bias": draw.normal(channels),
            "state0": draw.normal(channels, kernel - 1) if initial else torch.zeros(channels, kernel - 1, dtype=F64),
        })
        line = torch.cat([x["state0"], x["x"].T], dim=1)  # [channels, K-1+T], oldest first
        y = torch.stack([x["bias"] + (x["weight"][:, 0] * line[:, t : t + kernel]).sum(-1) for t in range(count)])
        do = draw.normal(*y.shape)
        case = {"op": "causalConv", "tokens": count, "channels": channels, "kernel": kernel, "initialState": initial}
        save(out / f"conv-t{count}{'-state' if initial else ''}.safetensors", case,
             {**x, "y": y, "state": line[:, -(kernel - 1):], "do": do, **gradients(x, list(x), (y * do).sum())})


def make(out):
    make_scan(out)
    make_conv(out)
