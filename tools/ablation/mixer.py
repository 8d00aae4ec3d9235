"""The mixer with every switch of the ablations, in chunks of matrix products. check.py holds its definition as a recurrence.

Shapes: U layers side by side (their parameters carry the same leading axis), B windows, H heads, T tokens, hd head width,
S states, F rows of the feature map, P = 2 F features (hd without a map), G gates a head and state (1 or P), N chunks of C tokens.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

TEMPERATURE = 16.0
CHUNK = 64
ONES = 8  # the values get 8 more columns, of which the first is 1 and carries the normaliser: rows stay aligned to 32 bytes


@dataclass(frozen=True)
class Form:
    """What a mixer computes. The defaults are the project's `foldable` form."""

    states: int = 2  # 0: the exact window alone
    window: int = 64  # 0: no exact part
    sinks: int = 4
    map: str = "exp"  # phi(x) = [f(Wx), f(-Wx)]; exp, elu (1 + elu), relu; none: phi(x) = x, and no normaliser
    features: int = 64
    rope: bool = False  # the state sees rotated q and k
    gate: str = "scalar"  # or vector: one a channel of phi
    source: str = "value"  # or key (before rotation), hidden
    gate_start: str = "bias"  # biases 6 .. 0; or identity: rows of the identity matrix and small random rows, biases 0
    combine: str = "joint"  # window and states under one normaliser; or gated: (1 - g) window + g states
    norm: bool = False  # RMS norm of the states' output, a head at a time
    delta: bool = False  # the delta rule in state 0
    own: bool = False  # own q, k, v, o that are tuned too
    rank: int = 0  # of a change of the output projection, W (1 + U D)
    log_weight: float = -3.0


PUBLISHED = Form(window=0, map="none", gate="vector", source="hidden", gate_start="identity", own=True)


def first(form: Form, layers: int, heads: int, hd: int, hidden: int, projections: dict, seed: int) -> dict:
    """Untuned parameters [U, ...]; `projections` are the teacher's q, k, v, o [U, out, in]."""
    s, width = form.states, heads * hd
    if s == 0:
        return {}
    channels = hd if form.map == "none" else 2 * form.features
    rows = heads * (channels if form.gate == "vector" else 1)
    inputs = hidden if form.source == "hidden" else width
    stack = lambda x: x.expand(layers, *x.shape).clone()
    p = {"mix": torch.zeros(layers, 1 if form.own else heads, s)}
    if form.gate_start == "bias":
        far_to_near = torch.tensor([6.0 * (1 - i / max(1, s - 1)) for i in range(s)])
        p["gate.weight"] = torch.zeros(layers, s * rows, inputs)
        p["gate.bias"] = stack(far_to_near.repeat_interleave(rows))
    else:
        generator = torch.Generator().manual_seed(seed)
        random = torch.randn(layers, (s - 1) * rows, inputs, generator=generator) * 0.02
        p["gate.weight"] = torch.cat([stack(torch.eye(inputs).repeat(-(-rows // inputs), 1)[:rows]), random], dim=1)
        p["gate.bias"] = torch.zeros(layers, s * rows)
    if form.map != "none":
        identities = torch.eye(hd).repeat(-(-form.features // hd), 1)[: form.features]
        p["feature.query"] = p["feature.key"] = stack(identities.expand(heads, -1, -1))
    if form.window > 0 and form.combine == "joint":
        p["log_weight"] = torch.full((layers, heads), form.log_weight)
    if form.combine == "gated":
        p["share"] = torch.full((layers, heads), -4.0)
    if form.norm:
        p["norm"] = torch.ones(layers, hd)
    if form.delta:
        p["rate.weight"], p["rate.bias"] = torch.zeros(layers, heads, inputs), torch.zeros(layers, heads)
    if form.rank:
        generator = torch.Generator().manual_seed(seed)
        p["output.down"] = torch.randn(layers, form.rank, width, generator=generator) * width**-0.5
        p["output.up"] = torch.zeros(layers, width, form.rank)
    if form.own:
        p.update(projections)
    return {n: x.clone() for n, x in p.items()}


def phi(form: Form, weight, x):
    """x [U, B, H, T, hd], weight [U, H, F, hd] -> [U, B, H, T, P]"""
    if form.map == "none":
        return x
    y = x @ weight[:, None].mT
    if form.map == "exp":  # c = max |y| is a bound: no entry exceeds 1
        c = y.abs().amax(-1, keepdim=True)
        return torch.cat([y - c, -y - c], dim=-1).exp()
    both = torch.cat([y, -y], dim=-1)
    return F.relu(both) if form.map == "relu" else F.elu(both) + 1


def log_decays(form: Form, p, source, heads: int):
    """source [U, B, T, in] -> log decays [U, B, H, T, S, G]"""
    logits = source @ p["gate.weight"].mT[:, None] + p["gate.bias"][:, None, None]
    u, b, t, _ = logits.shape
    return (F.logsigmoid(logits) / TEMPERATURE).view(u, b, t, form.states, heads, -1).permute(0, 1, 4, 2, 3, 5)


def chunks(x, size: int):
    """[.., T, d] -> [.., N, C, d]; zeros behind the last token"""
    x = F.pad(x, (0, 0, 0, -x.shape[-2] % size))
    return x.unflatten(-2, (-1, size))


def delayed(x, by: int):
    """[.., T, d]: what came `by` tokens earlier, zeros at first"""
    return F.pad(x, (0, 0, by, 0))[..., : x.shape[-2], :] if by else x


def with_earlier(x, back: int, size: int):
    """[.., T, d] -> [.., N, (back + 1) C, d]: every chunk behind the `back` chunks before it, zeros before the first"""
    x = F.pad(chunks(x, size), (0, 0, 0, 0, back, 0))
    n = x.shape[-3] - back
    return torch.cat([x[..., i : i + n, :, :] for i in range(back + 1)], dim=-2)


def exact_part(q, k, v, window: int, sinks: int, chunk: int = CHUNK):
    """Softmax over the last `window` tokens and the first `sinks`, q and k rotated: its mean of v [.., T, hd], and the sum of
    e^(s - max s) [.., T, 1]."""
    count, scale = q.shape[-2], q.shape[-1] ** -0.5
    back = (window - 2 + chunk) // chunk  # chunks before its own that a query sees
    q, n = chunks(q, chunk), -(-count // chunk)
    t = torch.arange(n * chunk, device=q.device).view(n, chunk, 1)
    j = t[:, :1] + torch.arange(-back * chunk, chunk, device=q.device)  # [N, 1, (back + 1) C]
    seen = (j <= t) & (j > t - window) & (j >= 0)
    first_k, first_v = k[..., None, :sinks, :], v[..., None, :sinks, :]
    early = torch.arange(first_k.shape[-2], device=q.device) <= t - window
    keys, values = with_earlier(k, back, chunk), with_earlier(v, back, chunk)
    scores = scale * torch.cat([q @ keys.mT, q @ first_k.mT], dim=-1)
    scores = scores.masked_fill(~torch.cat([seen, early], dim=-1), -math.inf)
    e = (scores - scores.amax(-1, keepdim=True)).exp()
    total = e.sum(-1, keepdim=True)
    near, far = e.split([keys.shape[-2], first_k.shape[-2]], dim=-1)
    mean = (near @ values + far @ first_v) / total
    join = lambda x: x.flatten(-3, -2)[..., :count, :]
    return join(mean), join(total)


def carried(update, total):
    """State at the start of every chunk, from the chunks' updates [.., N, P, V] and log decays over a chunk [.., N, 1, G]"""
    n = update.shape[-3]
    if total.shape[-1] > 1:
        state, states = torch.zeros_like(update[..., 0, :, :]), []
        decay = total.exp().mT  # [.., N, G, 1]
        for i in range(n):
            states.append(state)
            state = decay[..., i, :, :] * state + update[..., i, :, :]
        return torch.stack(states, dim=-3)
    ends = total[..., 0, 0].cumsum(-1)  # [.., N]
    later = torch.ones(n, n, dtype=torch.bool, device=ends.device).tril(-1)
    between = (ends - total[..., 0, 0])[..., :, None] - ends[..., None, :]
    weights = between.masked_fill(~later, -math.inf).exp()  # [.., N, N]
    return (weights @ update.flatten(-2)).view_as(update)


def delta_state(q, k, v, rate, b, total):
    """State 0 by the gated delta rule, S <- e^a S + k rate (v - e^a S^T k)^T with unit keys; reads of all tokens [.., N, C, V].
    A chunk's pseudo-values solve a triangular system (Yang et al. 2024, arXiv 2412.06464)."""
    size = q.shape[-2]
    k = F.normalize(k, dim=-1)
    lower = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
    decay = (b - b.mT).masked_fill(~lower, -math.inf).exp()
    system = (rate * decay * (k @ k.mT)).tril(-1)
    right = torch.cat([rate * v, rate * b.exp() * k], dim=-1)
    values, keys = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True).split([v.shape[-1], k.shape[-1]], dim=-1)
    reads, late = (q @ k.mT) * decay, (k * (total - b).exp()).mT
    early = q * b.exp()
    state, out = torch.zeros_like(late[..., 0, :, :] @ v[..., 0, :, :]), []
    for i in range(q.shape[-3]):
        u = values[..., i, :, :] - keys[..., i, :, :] @ state
        out.append(early[..., i, :, :] @ state + reads[..., i, :, :] @ u)
        state = total[..., i, :, :].exp() * state + late[..., i, :, :] @ u
    return torch.stack(out, dim=-3)


def state_part(form: Form, p, q, k, v, a, rate, chunk: int = CHUNK):
    """q, k [U, B, H, T, hd] as the state sees them, a [U, B, H, T, S, G], rate [U, B, H, T, 1] or None.
    Returns the mixed reads [.., T, hd] and their normaliser [.., T, 1]."""
    count, hd = v.shape[-2:]
    wait = form.window  # a token enters the states when it leaves the window
    v = torch.cat([v, torch.ones_like(v[..., :1]), v.new_zeros(*v.shape[:-1], ONES - 1)], dim=-1)
    pk = phi(form, p.get("feature.key"), k)
    if wait:
        pk = pk * (torch.arange(count, device=k.device) >= form.sinks)[:, None]
    cut = lambda x: chunks(delayed(x, wait), chunk)
    pq, pk, v = chunks(phi(form, p.get("feature.query"), q), chunk), cut(pk), cut(v)
    gamma = p["mix"].softmax(-1)[:, None, :, None, None, None]  # [U, 1, H, 1, 1, 1, S]
    lower = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).tril()
    plain = pq @ pk.mT
    weights, reads = 0, 0  # [.., N, C, C], [.., N, C, V]
    for i in range(form.states):
        share = gamma[..., i]
        b = cut(a[..., i, :]).cumsum(-2)
        total = b[..., -1:, :]
        if form.delta and i == 0:
            reads = reads + share * delta_state(pq, pk, v, cut(rate), b, total)
        elif b.shape[-1] == 1:
            weights = weights + share * (b - b.mT).masked_fill(~lower, -math.inf).exp() * plain
            state = carried(pk.mT @ (v * (total - b).exp()), total)
            reads = reads + share * b.exp() * (pq @ state)
        else:  # factored; a chunk's decay beyond e^-80 counts as e^-80, so that its inverse stays finite
            b = b.clamp_min(-80)
            early = pq * b.exp()
            weights = weights + share * (early @ (pk * (-b).exp()).mT).masked_fill(~lower, 0)
            reads = reads + share * (early @ carried((pk * (total - b).exp()).mT @ v, total))
    if torch.is_tensor(weights):
        reads = reads + weights @ v
    reads = reads.flatten(-3, -2)[..., :count, :]
    return reads[..., :hd], reads[..., hd : hd + 1]


def attend(form: Form, p, x, exact=None, chunk: int = CHUNK):
    """One mixer: x holds q, k, v [U, B, H, T, hd] before rotation, turned q and k, and `hidden` [U, B, T, hidden].
    `exact`: exact_part(..), where it is known already. Returns [U, B, H, T, hd]."""
    q, k, v = x["q"], x["k"], x["v"]
    heads, hd = q.shape[-3], q.shape[-1]
    if form.window > 0 and exact is None:
        exact = exact_part(x["turned_q"], x["turned_k"], v, form.window, form.sinks, chunk)
    if form.states == 0:
        return exact[0]
    flat = lambda y: y.transpose(-3, -2).flatten(-2)  # [U, B, T, H hd]
    source = {"value": v, "key": k, "hidden": None}[form.source]
    source = x["hidden"] if source is None else flat(source)
    a = log_decays(form, p, source, heads)
    rate = None
    if form.delta:
        rate = (source @ p["rate.weight"].mT[:, None] + p["rate.bias"][:, None, None]).sigmoid().transpose(-1, -2)[..., None]
    sq, sk = (x["turned_q"], x["turned_k"]) if form.rope else (q, k)
    reads, total = state_part(form, p, sq, sk, v, a, rate, chunk)
    by_head = lambda y: y[:, None, :, None, None]
    if form.combine == "joint" and form.window > 0:
        weight = by_head(p["log_weight"]).exp()
        return (exact[0] * exact[1] + weight * reads) / (exact[1] + weight * total)
    out = reads * hd**-0.5 if form.map == "none" else reads / total.clamp_min(1e-30)  # relu may see no key at all
    if form.norm:
        out = F.rms_norm(out, (hd,), eps=1e-5) * p["norm"][:, None, None, None]
    if form.combine == "gated" and form.window > 0:
        g = by_head(p["share"]).sigmoid()
        return (1 - g) * exact[0] + g * out
    return out


def mixed(form: Form, p, x, output, exact=None):
    """What the layer adds to the residual [U, B, T, hidden]; `output` [U, hidden, H hd] is the teacher's."""
    if form.own:
        heads, hidden = x["q"].shape[-3], x["hidden"]
        split = lambda w: (hidden @ w.mT[:, None]).unflatten(-1, (heads, -1)).transpose(-3, -2)
        x = {**x, "q": split(p["query"]), "k": split(p["key"]), "v": split(p["value"])}
        output = p["output"]
    o = attend(form, p, x, exact).transpose(-3, -2).flatten(-2)
    if form.rank:
        o = o + o @ p["output.down"].mT[:, None] @ p["output.up"].mT[:, None]
    return o @ output.mT[:, None]
