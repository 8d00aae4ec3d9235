"""Quality of a hybrid on the held-out books: bits per byte by context, KL from the teacher, recall by distance.

Text and recall follow the protocol of tools/pretrain/evaluate.py. Text comes in units of the same stretch, so that two hybrids
can be compared pair by pair; 95 % intervals are Student's.
"""
import math
import statistics

import torch
import torch.nn.functional as F

from student import Hybrid, Teacher

import data  # of tools/pretrain
import evaluate

CONTEXTS = (512, 1024, 2048, 4096, 8192)
T95 = {3: 3.182, 7: 2.365, 15: 2.131, 31: 2.040, 63: 1.998}  # by degrees of freedom


class Judge:
    def __init__(self, teacher: Teacher, val, sizes, units=32, questions=8, contexts=CONTEXTS, kl_windows=8):
        """units: stretches of at least 4,096 tokens a context; questions: windows a distance bucket"""
        self.teacher, self.val, self.questions = teacher, val, questions
        self.text = {n: self.windows(n, units, sizes) for n in contexts}
        windows = self.text[4096][0].flatten(0, 1)
        self.kl_ids = F.pad(windows[:: max(1, len(windows) // kl_windows)][:kl_windows], (1, 0), value=data.BOS)[:, :-1]
        with torch.no_grad():
            self.wanted = [teacher.head(teacher.forward(ids, {})).log_softmax(-1) for ids in self.kl_ids.split(4)]

    def windows(self, context: int, units: int, sizes):
        """-> tokens [units, g, n - 1] spread evenly over the text, and their bytes [units]"""
        width, group = context - 1, max(1, 4096 // context)
        units = units if context <= 4096 else units * 4096 // context
        count = self.val.numel() // width
        start = torch.arange(units) * (count - group + 1) // units
        tokens = self.val[: count * width].view(count, width)[(start[:, None] + torch.arange(group)).to(self.val.device)].long()
        return tokens, sizes[tokens.cpu()].sum((1, 2)).tolist()

    @torch.no_grad()
    def bits(self, plan, context: int, budget=32768):
        """Bits a unit"""
        tokens, _ = self.text[context]
        units, group, width = tokens.shape
        flat, found = tokens.flatten(0, 1), []
        for part in flat.split(max(1, budget // context)):
            ids = F.pad(part, (1, 0), value=data.BOS)[:, :-1]
            logits = self.teacher.head(self.teacher.forward(ids, plan))
            nats = F.cross_entropy(logits.flatten(0, 1), part.flatten(), reduction="none")
            found.append(nats.view(-1, width).double().sum(1))
        return (torch.cat(found).view(units, group).sum(1) / math.log(2)).tolist()

    @torch.no_grad()
    def kl(self, plan) -> float:
        """Nats a token at context 4,096, on 8 of the judged windows"""
        sums = []
        for ids, wanted in zip(self.kl_ids.split(4), self.wanted):
            own = self.teacher.head(self.teacher.forward(ids, plan)).log_softmax(-1)
            sums.append(F.kl_div(own.flatten(0, 1), wanted.flatten(0, 1), reduction="sum", log_target=True).item())
        return sum(sums) / self.kl_ids.numel()

    def recall(self, plan, questions=None):
        return evaluate.recall_by_bucket(Hybrid(self.teacher, plan), self.val, questions or self.questions, seed=99)

    def __call__(self, plan, contexts=None, recall=True) -> dict:
        result = {"kl": self.kl(plan), "bits": {str(n): [round(b, 2) for b in self.bits(plan, n)] for n in contexts or self.text}}
        if recall:
            result["recall"] = [[b["right"], b["asked"]] for b in self.recall(plan)]
        return result

    def bytes(self):
        return {str(n): size for n, (_, size) in self.text.items()}


def bits_per_byte(bits, sizes) -> float:
    return sum(bits) / sum(sizes)


def paired(bits, base, sizes):
    """Difference in bits per byte and half its 95 % interval, over units (ratio estimate, the units being of unlike size)."""
    d = [x - y for x, y in zip(bits, base)]
    ratio, n = sum(d) / sum(sizes), len(d)
    rest = [x - ratio * s for x, s in zip(d, sizes)]
    error = math.sqrt(sum(r * r for r in rest) / (n - 1) / n) / (sum(sizes) / n)
    return ratio, T95[n - 1] * error


def spread(values):
    """Mean and standard deviation over seeds (None for one)"""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None
