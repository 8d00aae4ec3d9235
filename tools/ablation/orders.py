"""Six ways to order the layers for conversion; each returns the order and its evidence. Parameters are those of a short fit."""
import random

import torch
import torch.nn.functional as F

from student import Teacher, plan_of

import data  # of tools/pretrain


def by(values) -> list[int]:
    return sorted(range(len(values)), key=lambda layer: values[layer])


def alone(teacher: Teacher, judge, form, p):
    """Each layer as the only converted one: KL from the teacher, and share of right answers."""
    plans = [plan_of([layer], form, p) for layer in range(teacher.count)]
    share = lambda buckets: sum(b["right"] for b in buckets) / sum(b["asked"] for b in buckets)
    return [judge.kl(plan) for plan in plans], [share(judge.recall(plan)) for plan in plans], share(judge.recall({}))


def greedy(teacher: Teacher, judge, form, p):
    """Always next the layer that costs least KL on the hybrid so far."""
    order, evidence = [], []
    while len(order) < teacher.count:
        costs = {layer: judge.kl(plan_of([*order, layer], form, p)) for layer in range(teacher.count) if layer not in order}
        best = min(costs, key=costs.get)
        order.append(best)
        evidence.append(costs[best])
    return order, evidence


@torch.no_grad()
def entropies(teacher: Teacher, judge, windows=32):
    """Entropy in nats of the last query's attention at context 4,096, mean over heads and windows (arXiv 2506.09316 eq. 11,
    with the minus sign that is missing in print)."""
    tokens = judge.text[4096][0].flatten(0, 1)[:windows]
    sums = torch.zeros(teacher.count, device=teacher.device)
    for part in tokens.split(8):
        lesson = teacher.lesson(F.pad(part, (1, 0), value=data.BOS)[:, :-1])
        scores = (lesson["turned_q"][..., -1:, :] @ lesson["turned_k"].mT) * teacher.hd**-0.5
        weights = scores.softmax(-1)
        sums += -(weights * weights.clamp_min(1e-30).log()).sum(-1).mean((2, 3)).sum(1)
    return (sums / len(tokens)).tolist()


def all_orders(teacher: Teacher, judge, form, p, tolerance=0.02) -> dict:
    kl, recall, full = alone(teacher, judge, form, p)
    lost = [full - r for r in recall]
    carriers = [layer for layer in by(lost) if lost[layer] > tolerance]
    entropy = entropies(teacher, judge)
    greedily, costs = greedy(teacher, judge, form, p)
    shuffled = lambda seed: random.Random(seed).sample(range(teacher.count), teacher.count)
    layers = list(range(teacher.count))
    return {
        "kl": {"order": by(kl), "evidence": kl},
        "greedy": {"order": greedily, "evidence": costs},
        "entropy": {"order": by(entropy), "evidence": entropy},
        "recall": {"order": [x for x in by(kl) if x not in carriers] + carriers, "evidence": lost},
        "depth, from the bottom": {"order": layers, "evidence": []},
        "depth, from the top": {"order": layers[::-1], "evidence": []},
        **{f"random {seed}": {"order": shuffled(seed), "evidence": []} for seed in (1, 2, 3)},
    }
