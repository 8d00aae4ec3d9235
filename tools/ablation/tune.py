"""Tuning, as packages/distill does it: every layer against the teacher's answers on the teacher's inputs, then the logits of the hybrid."""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from mixer import TEMPERATURE, exact_part, first, log_decays, mixed
from student import Teacher, plan_of

import data  # of tools/pretrain, which student puts on the path


@dataclass(frozen=True)
class Recipe:
    """Steps are of `rows` windows of `length` tokens."""

    match: int = 100
    logits: int = 40
    rate: float = 1e-2
    logits_rate: float = 2e-3
    floor: float = 0.05
    loss: str = "mse"  # or kl between softmaxes of y (arXiv 2506.09316 eq. 9)
    separation: float = 0.01
    octaves: float | None = 3.0  # None: the published cosine of the gates
    weighted: bool = False  # logits: weight 5 on the answers of recall passages, 0 on their unpredictable tokens
    projections: float = 0.1  # share of the rate for own q, k, v, o, which start at the teacher's, and for changes of o
    far: float = 10.0  # factor of the rate for one number a head that has far to go
    rows: int = 4
    length: int = 4096


PUBLISHED_RECIPE = Recipe(rate=1e-4, floor=0.5, loss="kl", separation=0.001, octaves=None, projections=1.0, far=1.0, logits=0)
PROJECTIONS = ("query", "key", "value", "output", "output.down", "output.up")
FAR = ("log_weight", "mix", "gate.bias")



def windows(text, step: int, seed: int, recipe: Recipe):
    """ids and weights [rows, length]: book text, three quarters of the windows with recall passages, as in pre-training"""
    ids, _, weights, _ = data.batch(text, step, seed, recipe.rows, recipe.length, 16, 0.75, False)
    return ids, weights if recipe.weighted else torch.ones_like(weights)


class AdamW:
    """Over parameters [U, ...] of layers side by side: the norm is clipped to 1 a layer, not over all."""

    def __init__(self, p, rate: float, steps: int, recipe: Recipe):
        self.p, self.peak, self.steps, self.floor, self.step = p, rate, steps, recipe.floor, 0
        self.share = {n: recipe.far if n in FAR else recipe.projections if n in PROJECTIONS else 1.0 for n in p}
        self.state = {n: (torch.zeros_like(x), torch.zeros_like(x)) for n, x in p.items()}
        self.now = torch.zeros(3, device=next(iter(p.values())).device)  # rate, corrections: on the device, for replays

    def rate(self) -> float:
        warm = round(0.05 * self.steps)
        if self.step < warm:
            return self.peak * (self.step + 1) / warm
        share = min(1.0, (self.step - warm) / max(1, self.steps - 1 - warm))
        return self.peak * (self.floor + (1 - self.floor) * (1 + math.cos(math.pi * share)) / 2)

    def advance(self):
        """Before every update"""
        rate = self.rate()
        self.step += 1
        self.now.copy_(torch.tensor([rate, 1 - 0.9**self.step, 1 - 0.95**self.step]))

    def descend(self, loss):
        gradients = dict(zip(self.p, torch.autograd.grad(loss, list(self.p.values()))))
        with torch.no_grad():
            self.update(gradients)

    def update(self, gradients):
        norm = sum(g.flatten(1).pow(2).sum(1) for g in gradients.values()).sqrt()
        scale, (rate, correction1, correction2) = (1 / (norm + 1e-6)).clamp_max(1.0), self.now
        for n, x in self.p.items():
            m, s = self.state[n]
            g = gradients[n] * scale.view(-1, *[1] * (x.ndim - 1))
            m.lerp_(g, 0.1)
            s.lerp_(g * g, 0.05)
            own = rate * self.share[n]
            if x.ndim >= 3:
                x.mul_(1 - own * 0.01)
            x.sub_(own * (m / correction1) / ((s / correction2).sqrt() + 1e-8))


def gate_term(form, a, recipe: Recipe):
    """a [U, B, H, T, S, G] -> the term that keeps neighbouring states apart, summed over the layers."""
    if recipe.octaves is None:
        g = a.exp()
        return F.cosine_similarity(g[..., :-1, :], g[..., 1:, :], dim=-1).mean((1, 2, 3, 4)).sum()
    softplus = (-a * TEMPERATURE).clamp_min(1e-12)
    octaves = (math.log(2) * TEMPERATURE / softplus).log2().mean((1, 3))  # [U, H, S, G]
    lack = (recipe.octaves - (octaves[:, :, :-1] - octaves[:, :, 1:])).clamp_min(0)
    return lack.pow(2).mean((1, 2, 3)).sum()


def match_loss(form, p, lesson, recipe: Recipe, output, exact=None):
    """-> loss summed over the layers, and the misfit of every layer [U]: squared error over the teacher's square"""
    y, want = mixed(form, p, lesson, output, exact), lesson["y"]
    misfit = (y - want).pow(2).sum((1, 2, 3)) / want.pow(2).sum((1, 2, 3))
    if recipe.loss == "mse":
        loss = misfit.sum()
    else:
        kl = F.kl_div(y.log_softmax(-1), want.log_softmax(-1), reduction="none", log_target=True)
        loss = kl.sum(-1).mean((1, 2)).sum()
    if recipe.separation and form.states > 1:
        flat = lambda x: x.transpose(-3, -2).flatten(-2)
        source = lesson["hidden"] if form.source == "hidden" else flat(lesson["v" if form.source == "value" else "k"])
        loss = loss + recipe.separation * gate_term(form, log_decays(form, p, source, lesson["q"].shape[-3]), recipe)
    return loss, misfit.detach()


def match(teacher: Teacher, text, variants: dict, seed: int, layers=slice(None)) -> dict:
    """variants: name -> (form, recipe). These layers of all variants, side by side, on the same windows.
    -> name -> (parameters [U, ...], misfits [U] over the last tenth of the steps)."""
    runs, output = {}, teacher.projections["output"][layers]
    for name, (form, recipe) in variants.items():
        own = {n: x[layers].cpu() for n, x in teacher.projections.items()}
        p = first(form, len(output), teacher.heads, teacher.hd, teacher.hidden, own, seed)
        p = {n: x.to(teacher.device).requires_grad_(True) for n, x in p.items()}
        runs[name] = (form, recipe, p, AdamW(p, recipe.rate, recipe.match, recipe), [])
    for step in range(max(recipe.match for _, recipe in variants.values())):
        ids, _ = windows(text, step, seed, next(iter(variants.values()))[1])
        lesson = {n: x[layers] for n, x in teacher.lesson(ids).items()}
        exact = {}
        for form, recipe, p, optimiser, misfits in runs.values():
            if step >= recipe.match:
                continue
            key = None if form.own or form.window == 0 else (form.window, form.sinks)
            if key and key not in exact:
                with torch.no_grad():
                    exact[key] = exact_part(lesson["turned_q"], lesson["turned_k"], lesson["v"], *key)
            loss, misfit = match_loss(form, p, lesson, recipe, output, exact.get(key))
            optimiser.advance()
            optimiser.descend(loss)
            misfits.append(misfit)
    last = lambda m: torch.stack(m[-max(1, len(m) // 10) :]).mean(0).tolist()
    return {name: ({n: x.detach() for n, x in p.items()}, last(m)) for name, (_, _, p, _, m) in runs.items()}


def divergence(teacher: Teacher, h, wanted, weights):
    """Weighted mean over tokens of KL(teacher || hybrid) in nats; wanted: the teacher's log probabilities [B, T, V]"""
    kl = F.kl_div(teacher.head(h).log_softmax(-1), wanted, reduction="none", log_target=True).sum(-1)
    return (kl * weights).mean()


def recorded(step, *inputs):
    """step(*inputs) as a CUDA graph; recording computes nothing."""
    held, graph = [x.clone() for x in inputs], torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(*held)

    def replay(*inputs):
        for x, now in zip(held, inputs):
            x.copy_(now)
        graph.replay()

    return replay


def tune_logits(teacher: Teacher, text, form, p, layers, converted, recipe: Recipe, seed: int, start: int) -> None:
    """Tunes `layers` of p in place by the logits of the hybrid whose `converted` layers are exchanged."""
    rows = torch.tensor(sorted(layers), device=teacher.device)
    own = {n: x[rows].clone().requires_grad_(True) for n, x in p.items()}
    place = {layer: at for at, layer in enumerate(sorted(layers))}
    frozen = plan_of([c for c in converted if c not in place], form, p)
    optimiser = AdamW(own, recipe.logits_rate, recipe.logits, recipe)

    def learn(ids, weights):
        plan = {layer: (form, {n: x[at : at + 1] for n, x in own.items()}) for layer, at in place.items()}
        with torch.no_grad():
            wanted = teacher.head(teacher.forward(ids, {})).log_softmax(-1)
        optimiser.descend(divergence(teacher, teacher.forward(ids, frozen | plan), wanted, weights))

    # Small tensors, many kernels: launching costs more than computing, so all steps but the first replay a recording.
    replay = None
    for step in range(recipe.logits):
        batch = windows(text, start + step, seed, recipe)
        optimiser.advance()
        if step > 0 and batch[0].is_cuda and not form.delta:  # the solver of the delta rule cannot be recorded
            replay = replay or recorded(learn, *batch)
            replay(*batch)
        else:
            learn(*batch)
    for n, x in own.items():
        p[n][rows] = x.detach()


def tune_together(teacher: Teacher, text, form, p, order, together: str, recipe: Recipe, seed: int, start: int = 1 << 20) -> dict:
    """order: the layers to convert. chained: each on the hybrid of the earlier ones; joint: all at once on the whole hybrid;
    independent: each as the only converted layer. -> new parameters."""
    p = {n: x.clone() for n, x in p.items()}
    if recipe.logits == 0:
        return p
    if together == "joint":
        tune_logits(teacher, text, form, p, order, order, recipe, seed, start)
        return p
    for at, layer in enumerate(order):
        converted = order[: at + 1] if together == "chained" else [layer]
        tune_logits(teacher, text, form, p, [layer], converted, recipe, seed, start + at * recipe.logits)
    return p
