"""Renders the results: python page.py --runs FILE.jsonl .. --json ../../docs/results/ablations.json --page ../../docs/results/ablations.md

With --runs, the files that run.py left are joined into --json first. Every number of the page comes from there.
"""
import argparse
import json
from pathlib import Path

import torch

from judge import bits_per_byte, paired, spread
from run import COSTLY, SHORT, SWITCHES
from tune import AdamW

CONTEXTS = ("512", "1024", "2048", "4096", "8192")
BUCKETS = ["8", "64", "128", "256", "512", "1024", "2048", "3072", "3600"]  # first distance of each
MISSING = "not run"


class Results:
    """Rows by (block, variant, level); units of text are matched to the teacher's, of which others may have judged every second one."""

    def __init__(self, found: dict):
        self.rows, self.bytes = found["results"], max((s["bytes"] for s in found["setups"]), key=lambda b: len(b["4096"]))
        self.teacher = next(r for r in self.rows if r["variant"] == "teacher")
        for setup in found["setups"]:  # fewer stretches are every second, fourth .. of the most
            assert all(every(self.bytes[c], len(sizes)) == sizes for c, sizes in setup["bytes"].items())

    def pick(self, block, variant, level=None, layers=None):
        return [r for r in self.rows if r["block"] == block and r["variant"] == variant and level in (None, r["level"])
                and (layers is None or sorted(r["layers"]) == sorted(layers))]

    def sizes(self, context, like):
        return every(self.bytes[context], len(like))

    def mean_bits(self, rows, context):
        """Bits a unit, mean over seeds"""
        return [sum(column) / len(rows) for column in zip(*(r["bits"][context] for r in rows))]

    def value(self, rows, context) -> str:
        mean, deviation = spread([bits_per_byte(r["bits"][context], self.sizes(context, r["bits"][context])) for r in rows])
        return f"{mean:.4f}" + (f" ± {deviation:.4f}" if deviation is not None else "")

    def against(self, rows, base, context):
        """Paired difference in bits per byte, over the seeds that both have (a base without a seed serves all), and half its interval"""
        seeds = {r["seed"] for r in rows} & {r["seed"] for r in base}
        if seeds and seeds != {None}:
            rows, base = ([r for r in x if r["seed"] in seeds] for x in (rows, base))
        a, b = self.mean_bits(rows, context), self.mean_bits(base, context)
        n = min(len(a), len(b))
        return paired(every(a, n), every(b, n), every(self.bytes[context], n))

    def noise(self, level, context) -> float:
        """Standard deviation of the default over seeds"""
        rows = self.pick("states", "2 states, window 64", level)
        return spread([bits_per_byte(x["bits"][context], self.sizes(context, x["bits"][context])) for x in rows])[1]

    def verdict(self, rows, base, level, context) -> str:
        difference, half = self.against(rows, base, context)
        if abs(difference) <= max(half, 2 * self.noise(level, context)):
            return "no difference"
        return "better" if difference < 0 else "worse"

    def percent(self, rows, base, context) -> str:
        """Paired change in percent of the base, with its 95 % interval"""
        if not rows or not base or context not in rows[0]["bits"] or context not in base[0]["bits"]:
            return MISSING
        difference, half = self.against(rows, base, context)
        level = bits_per_byte(self.mean_bits(base, context), self.sizes(context, base[0]["bits"][context]))
        return f"{100 * difference / level:+.2f} ± {100 * half / level:.2f}"


def every(values, n: int):
    return values[:: len(values) // n]


def recall(rows) -> str:
    return f"{sum(b[0] for r in rows for b in r['recall']) / sum(b[1] for r in rows for b in r['recall']):.3f}" if rows else MISSING


def by_distance(rows):
    return [f"{sum(r['recall'][i][0] for r in rows) / sum(r['recall'][i][1] for r in rows):.2f}" for i in range(len(BUCKETS))]


def kl(rows) -> str:
    mean, deviation = spread([r["kl"] for r in rows]) if rows else (0, None)
    return MISSING if not rows else f"{mean:.4f}" + (f" ± {deviation:.4f}" if deviation is not None else "")


def millions(rows) -> str:
    return f"{rows[0]['tokens'] / 1e6:.1f} M" if rows and rows[0]["tokens"] else "0"


def table(head, rows) -> str:
    line = lambda cells: "| " + " | ".join(str(c) for c in cells) + " |"
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def seeds_of(rows):
    return "" if not rows or rows[0]["seed"] is None else len(rows)


def levels_part(r: Results) -> str:
    base, names = [r.teacher], ["window 64", "window 256", "window 512", "untuned", "one state", "two states", "two states, more tokens"]
    at = [level for level in range(1, 9) if r.pick("levels", "two states", level)]
    rows = [[name, seeds_of(r.pick("levels", name, at[-1])), millions(r.pick("levels", name, at[-1])),
             *(r.percent(r.pick("levels", name, level), base, "4096") for level in at)] for name in names]
    best = "two states, more tokens"
    text = [["teacher", *(r.value(base, c) for c in CONTEXTS), "0", recall(base)]]
    text += [[f"level {level}", *(r.value(r.pick("levels", "two states", level), c) for c in CONTEXTS),
              kl(r.pick("levels", "two states", level)), recall(r.pick("levels", "two states", level))] for level in at]
    text += [[f"level {level}, more tokens", *(r.value(r.pick("levels", best, level), c) for c in CONTEXTS), kl(r.pick("levels", best, level)),
              recall(r.pick("levels", best, level))] for level in (4, 7, 8)]
    far = [[name, level, *by_distance(r.pick("levels", name, level))] for level in (7, 8)
           for name in ("window 64", "window 256", "window 512", "untuned", "one state", "two states", best)]
    goals = []
    for share, level, limit in (("50 %", 4, 0.5), ("all but the recall layer", 7, 1.5), ("100 %", 8, 5.0)):
        for name in ("two states", best):
            rows_ = r.pick("levels", name, level)
            difference, half = r.against(rows_, base, "4096")
            whole = bits_per_byte(base[0]["bits"]["4096"], r.bytes["4096"])
            goals.append([share, name, millions(rows_), len(rows_), r.percent(rows_, base, "4096"), f"{limit} %",
                          "reached" if 100 * (difference + half) / whole <= limit else "reached within the interval" if 100 * difference / whole <= limit else "not reached",
                          f"{float(recall(rows_)) / float(recall(base)):.1%}"])
    return f"""## 1. Levels

Layers in the committed order, the foldable mixer with a window of 64 and 4 sinks, chained. Change in bits per byte at context 4,096 against the teacher, in percent, with the 95 % interval of the paired difference over {len(base[0]['bits']['4096'])} stretches of text:

{table(["variant", "seeds", "tokens a layer", *(f"level {x}" for x in at)], rows)}

The goals at context 4,096 (recall is the share of the teacher's right answers, all distances):

{table(["converted", "variant", "tokens a layer", "seeds", "bits per byte, %", "goal", "", "recall of the teacher's"], goals)}

Bits per byte by context (two states; mean ± standard deviation over the seeds); 8,192 is beyond the teacher's training length, where it fails by itself:

{table(["", *CONTEXTS, "KL at 4,096, nats a token", "recall"], text)}

Recall by distance from:

{table(["variant", "level", *BUCKETS], far)}
"""


def states_part(r: Results) -> str:
    name = lambda s, w: f"{s} states, window {w}"
    values, two_one, four_two = [], [], []
    for level, contexts in ((7, CONTEXTS), (8, ("1024", "4096", "8192"))):
        for w in (0, 16, 64, 256):
            rows = {s: r.pick("states", name(s, w), level) for s in (1, 2, 4)}
            cells = lambda more, less: [r.percent(rows[more], rows[less], c) if c in contexts else "" for c in CONTEXTS]
            seeds = lambda *some: min(len(rows[s]) for s in some)
            two_one.append([level, w, seeds(1, 2), *cells(2, 1)])
            four_two.append([level, w, seeds(2, 4), *cells(4, 2)])
            values += [[level, w, s, len(rows[s]), *(r.value(rows[s], c) if c in contexts and rows[s] else "" for c in CONTEXTS), kl(rows[s]), recall(rows[s])] for s in (1, 2, 4)]
    return f"""## 2. One, two and four states

All layers fitted, the first seven tuned together by the logits, then the recall layer on top (level 8). Two states against one, change in percent (negative: the second state pays), paired, over the seeds that both have:

{table(["level", "window", "seeds", *CONTEXTS], two_one)}

Four states against two:

{table(["level", "window", "seeds", *CONTEXTS], four_two)}

Bits per byte, mean ± standard deviation over seeds:

{table(["level", "window", "states", "seeds", *CONTEXTS, "KL", "recall"], values)}
"""


def together_part(r: Results) -> str:
    names = ["match only", "independent", "chained", "joint, a run a level", "joint, one run at 100 %"]
    rows = []
    for level in (4, 7, 8):
        for name in names:
            own, base = r.pick("together", name, level), r.pick("together", "chained", level)
            if name == names[-1] and level == 8:
                continue  # the run at level 8 itself
            rows.append([level, name, len(own), millions(own), r.percent(own, base, "1024"), r.percent(own, base, "4096"), kl(own), recall(own)])
    return f"""## 3. Chained, joint, independent

The same fit of every layer, then the logits stage in different ways, with the same tokens a layer. Change in bits per byte against chained, percent:

{table(["level", "way", "seeds", "tokens a layer", "1024", "4096", "KL", "recall"], rows)}
"""


def orders_part(r: Results, found: dict) -> str:
    parts = []
    for entry in found["orders"]:
        lists = [[name, " ".join(map(str, o["order"])), " ".join(f"{x:.3g}" for x in o["evidence"])] for name, o in entry["orders"].items()]
        rows = []
        for name, o in entry["orders"].items():
            cells = []
            for level in (2, 4, 6, 7, 8):
                own = [x for x in r.pick("orders", "joint", level, o["order"][:level]) if x["seed"] == entry["seed"]]
                cells.append(f"{r.percent(own, [r.teacher], '4096')}; {recall(own)}" if own else MISSING)
            rows.append([name, *cells])
        parts.append(f"""{table(["order", "layers, first converted first", "evidence"], lists)}

Change in bits per byte at 4,096 against the teacher in percent; recall. Each prefix tuned jointly by the logits ({millions(r.pick("orders", "joint"))} tokens a layer, seed {entry['seed']}):

{table(["order", "25 %", "50 %", "75 %", "7 of 8", "100 %"], rows)}
""")
    return f"""## 4. Order of the layers

Evidence, layer 0 to 7: KL of each layer alone after a short fit; entropy in nats (the paper's choice: ascending); share of right answers lost alone. For greedy, step by step: KL of the hybrid so far. The last three are drawn.

{chr(10).join(parts)}"""


def switches_part(r: Results) -> str:
    names = list(dict.fromkeys(x["variant"] for x in r.rows if x["block"] == "switches"))
    rows = []
    for name in names:
        cells = []
        for level in (7, 8):
            own, base = r.pick("switches", name, level), r.pick("switches", "default", level)
            cells += [*(r.percent(own, base, c) if name != "default" else r.value(own, c) for c in ("1024", "4096")), kl(own), recall(own)]
        own = r.pick("switches", name, 7)
        rows.append([name, len(own), millions(own), *cells])
    return f"""## 5. One switch at a time

Against the default (two states, window 64, scalar gates from the value starting at bias 6 and 0, exp map of 64 rows, no RoPE in the state, joint normaliser, first weight e^-7, separation on): change in bits per byte in percent, negative is better; the default's own row in bits per byte. Seeds of the default differ by {r.noise(7, '4096'):.5f} bits per byte (standard deviation, section 2, level 7, context 4,096).

{table(["switch", "seeds", "tokens a layer", "level 7: 1024", "4096", "KL", "recall", "level 8: 1024", "4096", "KL", "recall"], rows)}
"""


def recall_part(r: Results) -> str:
    names = list(dict.fromkeys(x["variant"] for x in r.rows if x["block"] == "recall"))
    rows = [[name, seeds_of(own), millions(own), r.percent(own, [r.teacher], "4096"), kl(own), *by_distance(own)] for name in names for own in [r.pick("recall", name)]]
    return f"""## 6. Can any state carry recall?

The layer that carries recall, alone converted, tuned with five times the weight on answers. Change in bits per byte at 4,096 against the teacher in percent; recall by distance from:

{table(["mixer", "seeds", "tokens", "bits per byte, %", "KL", *BUCKETS], rows)}
"""


def findings(r: Results) -> str:
    """The paper's choices, each with the comparison that decides."""
    def row(claim, block, name, other, level, context):
        own, base = r.pick(block, name, level), r.pick(block, other, level)
        if not own or not base:
            return [claim, f"{name} against {other}", level, context, MISSING, ""]
        return [claim, f"{name} against {other}", level, context, r.percent(own, base, context), r.verdict(own, base, level, context)]

    two = lambda w: ("states", f"2 states, window {w}", f"1 states, window {w}")
    rows = [
        row("two states instead of one, no window", *two(0), 7, "4096"),
        row("two states instead of one, within the training length", *two(64), 7, "4096"),
        row("the same, all layers", *two(64), 8, "4096"),
        row("the same, beyond the training length", *two(64), 7, "8192"),
        row("the same, all layers, beyond the training length", *two(64), 8, "8192"),
        row("four states", "states", "4 states, window 64", "2 states, window 64", 7, "4096"),
        row("chained instead of independent", "together", "chained", "independent", 7, "4096"),
        row("chained instead of one joint run whose prefixes are used", "together", "chained", "joint, one run at 100 %", 7, "4096"),
        row("chained instead of a joint run for every level", "together", "chained", "joint, a run a level", 7, "4096"),
        row("separation of the gates", "switches", "default", "no separation", 7, "4096"),
        row("separation of the gates that start alike", "switches", "gates start as identity rows", "gates start as identity rows, no separation", 7, "4096"),
        row("history gate that starts as the identity matrix", "switches", "gates start as identity rows", "default", 7, "4096"),
        row("gates from the hidden state", "switches", "gates from the hidden state", "default", 7, "4096"),
        row("gates a channel", "switches", "gates a channel", "default", 7, "4096"),
        row("no feature map, no normaliser, own projections", "switches", "published", "default", 7, "4096"),
        row("(ours) joint normaliser instead of a gated sum", "switches", "default", "gated sum", 7, "4096"),
        row("(ours) no RoPE in the state", "switches", "default", "RoPE in the state", 7, "4096"),
        row("(ours) exp map instead of relu", "switches", "default", "map relu", 7, "4096"),
        row("(ours) exp map instead of 1 + elu", "switches", "default", "map 1 + elu", 7, "4096"),
        row("(ours) first weight e^-7 instead of e^-3", "switches", "default", "first weight e^-3", 7, "4096"),
        row("(ours) first weight e^-7 instead of 1", "switches", "default", "first weight 1", 7, "4096"),
    ]
    return table(["choice", "compared", "level", "context", "change, %", "the choice is"], rows)


def in_short(r: Results) -> str:
    change = lambda block, name, level, base, context="4096": r.percent(r.pick(block, name, level), base, context) + " %"
    teacher, states = [r.teacher], lambda s, w, level: r.pick("states", f"{s} states, window {w}", level)
    switch = lambda name, level=7: change("switches", name, level, r.pick("switches", "default", level))
    fall = lambda name: f"{1 - r.pick('switches', name, 7)[0]['kl'] / r.pick('switches', 'default', 7)[0]['kl']:.0%}"
    path = AdamW({"log_weight": torch.zeros(1, 1)}, SHORT.rate, SHORT.match, SHORT)
    moved = 0.0
    for path.step in range(SHORT.match):
        moved += path.rate()
    best = max((x for x in r.rows if x["block"] == "recall"), key=lambda x: sum(right for right, _ in x["recall"]))
    beyond = [x for x in r.rows if x["level"] == 8 or x["block"] == "recall"]
    far = max(sum(right for right, _ in x["recall"][4:]) for x in beyond)
    asked = sum(n for _, n in r.teacher["recall"][4:])
    return f"""- **The second state does not pay** at 512 to 4,096 tokens with an exact window of 16 or more. Without a window it does ({r.percent(states(2, 0, 7), states(1, 0, 7), "4096")} % at level 7), and so do four, but then the model is {r.percent(states(2, 0, 7), teacher, "4096")} % off the teacher and recalls nothing. Beyond the training length it is worth {r.percent(states(2, 64, 8), states(1, 64, 8), "8192")} % with all layers converted (window 64, 8,192 tokens).
- **Chained tuning is not better than independent** by more than the noise, and a joint run for every level is at least as good. What chaining gives is that one set of parameters serves every prefix: a joint run at 100 % costs {change("together", "joint, one run at 100 %", 7, r.pick("together", "chained", 7))} at level 7.
- **Attention entropy is the wrong order here**: it converts the recall layer first. KL, greedy KL and recall loss agree; bottom to top is nearly as good by chance of this teacher, whose recall sits in the top layer.
- **Separation changes nothing** when the gates start at bias 6 and 0, and hurts where they start alike. **Identity rows are a bad start** ({switch("gates start as identity rows")}), biases are what separates the states. The gates' source does not matter.
- **The joint normaliser matters most** (gated sum: {switch("gated sum")}); RoPE in the state costs {switch("RoPE in the state")}; 32 and 16 features instead of 64 cost {switch("32 features")} and {switch("16 features")}.
- **The first weight e^-7 of the state is too small** for these budgets: from e^-3 {switch("first weight e^-3")}, from 1 {switch("first weight 1")} at level 7, {switch("first weight e^-3", 8)} and {switch("first weight 1", 8)} at level 8; KL at level 7 is {fall('first weight e^-3')} and {fall('first weight 1')} lower. The fit can move its logarithm by about {moved:.1f} at most (the sum of the learning rates). One seed, but far outside the spread of seeds. Sections 1 to 4 all start from e^-7: what they say about states weak against the window should be measured again from a larger weight. With it, recall at distances below 64 at level 8 falls further: the state takes from the window.
- **A wider window is worth more than any state**: 256 + 4 without training is {change("levels", "window 256", 7, teacher)} off the teacher at level 7, window 64 with tuned states {change("levels", "two states, more tokens", 7, teacher)}, window 64 alone {change("levels", "window 64", 7, teacher)}.
- **No state carries recall**: in the recall layer, alone and tuned for it, the best is {recall([best])} ({best["variant"]}); from 512 tokens on, {far} of {asked} questions in the best case of all rows with that layer converted. More features, RoPE in the state, larger first weights, windows of 512 and the delta rule were tried (section 6)."""


def page(found: dict) -> str:
    r, setups = Results(found), found["setups"]
    one = setups[0]
    missing = [name for name in found["planned"] if not r.pick("switches", name)]
    lost = "; ".join(missing) or "nothing"
    few = sorted({f"{x['block']}" for x in r.rows if len(r.pick(x["block"], x["variant"], x["level"])) < 3 and x["seed"] is not None})
    failures = "".join(f"\n- {f['variant']} failed: `{f['error'].splitlines()[-1]}`" for f in found["failures"])
    return f"""# Ablations of the conversion

Rendered by `tools/ablation/page.py` from `ablations.json`; no number is typed by hand. One {one['device']} (driver {one['driver']}), PyTorch {one['torch']}; teacher `llama-4m` (8 layers, context 4,096); how to repeat it: `tools/ablation/README.md`. The tool's mixer equals the golden vectors and a float64 recurrence (`tools/ablation/check.py`).

Tuned on windows of 4,096 tokens, 4 a step, of {one['trainingTokens'] / 1e6:.0f} M tokens of books, three quarters of the windows with recall passages; objectives and optimiser as in `packages/distill` (fit of the layer's output, then KL of the hybrid's logits). A seed changes the data's order (and random first gates), never the teacher. Judged on held-out books and recall as in `tools/pretrain/evaluate.py`: text in stretches of 4,096 tokens ({len(r.teacher['bits']['4096'])} in section 1, half of them elsewhere; 8,192: half as many), {sum(b[1] for b in r.teacher['recall'])} questions, products in TF32. Intervals: 95 %, paired over stretches, seeds averaged; they say how sure the difference is on such text, the standard deviations how much another seed would change.

## What holds and what does not

{findings(r)}

"No difference": within the 95 % interval over text, or within two standard deviations of the default over seeds. Most differences inside the foldable form are far below 1 %: read the size, not the word.

{in_short(r)}

Not run, for want of time on the GPU: {lost}. Fewer than three seeds in some or all rows of: {', '.join(few) or 'nothing'} (see the columns). Runs: {'; '.join(' '.join(s['blocks']) for s in setups)}.{failures}

{levels_part(r)}
{states_part(r)}
{together_part(r)}
{orders_part(r, found)}
{switches_part(r)}
{recall_part(r)}"""


def joined(runs) -> dict:
    records = [json.loads(line) for path in runs for line in path.read_text().splitlines()]
    own = lambda kind: [{n: x for n, x in record.items() if n != "kind"} for record in records if record["kind"] == kind]
    return {"setups": own("setup"), "planned": [*SWITCHES, *COSTLY], "blocks": own("block"), "failures": own("failure"), "orders": own("orders"), "fits": own("match"), "results": own("result")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, nargs="*")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--page", type=Path, required=True)
    args = parser.parse_args()
    if args.runs:
        lines = lambda part: "[\n" + ",\n".join(json.dumps(x, separators=(",", ":")) for x in part) + "\n]"
        args.json.write_text("{\n" + ",\n".join(f'"{name}": {lines(part)}' for name, part in joined(args.runs).items()) + "\n}\n")
    args.page.write_text(page(json.loads(args.json.read_text())))


if __name__ == "__main__":
    main()
