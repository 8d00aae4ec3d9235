"""Renders the results: python page.py --runs FILE.jsonl .. --json ../../docs/results/ablations.json --page ../../docs/results/ablations.md

With --runs, the files that run.py left are joined into --json first. Every number of the page comes from there.
"""
import argparse
import json
from pathlib import Path

import torch

from judge import bits_per_byte
from mixer import Form
from results import BUCKETS, CONTEXTS, MISSING, Results, by_distance, joined, kl, millions, oldest, recall, seeds_of, start_of, table
from run import SHORT
from tune import AdamW

HEADS, HD = 3, 64  # of the teacher
DELTA = ("delta rule, window 64", "delta rule, window 64, gates and rates from the hidden state")

def levels_part(r: Results) -> str:
    base, names = [r.teacher], ["window 64", "window 256", "window 512", "untuned", "one state", "two states", "two states, more tokens"]
    at = [level for level in range(1, 9) if r.pick("levels", "two states", level)]
    rows = [[name, seeds_of(r.pick("levels", name, at[-1])), millions(r.pick("levels", name, at[-1])),
             *(r.percent(r.pick("levels", name, level), base, "4096") for level in at)] for name in names]
    best = "two states, more tokens"
    judged = r.pick("levels", "two states", at[-1])
    text = [["teacher", *(r.value(base, c, judged) for c in CONTEXTS), "0", recall(base)]]
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

Layers in the committed order, the foldable mixer with a window of 64 and 4 sinks, chained. Change in bits per byte at context 4,096 against the teacher, in percent, with the 95 % interval of the paired difference over stretches of text ({len(base[0]["bits"]["4096"])} for what is not trained, {len(judged[0]["bits"]["4096"])} for what is). Untuned: from e^-7.

{table(["variant", "seeds", "tokens a layer", *(f"level {x}" for x in at)], rows)}

The goals at context 4,096 (recall is the share of the teacher's right answers, all distances):

{table(["converted", "variant", "tokens a layer", "seeds", "bits per byte, %", "goal", "", "recall of the teacher's"], goals)}

Bits per byte by context (two states; mean ± standard deviation over the seeds); 8,192 is beyond the teacher's training length, where it fails by itself:

{table(["", *CONTEXTS, "KL at 4,096, nats a token", "recall"], text)}

Recall by distance from:

{table(["variant", "level", *BUCKETS], far)}
"""


def bytes_of(states: int, window: int) -> int:
    """Of a layer's state in float32: reads and normaliser of every head and state, and the window's keys and values"""
    form = Form()
    return 4 * HEADS * (states * 2 * form.features * (HD + 1) + (2 * HD * (window + form.sinks) if window else 0))


def states_part(r: Results, first: Results) -> str:
    name = lambda s, w: f"{s} states, window {w}"
    values, two_one, four_two = [], [], []
    for level, contexts in ((7, CONTEXTS), (8, ("1024", "4096", "8192"))):
        for w in (0, 16, 64, 256):
            rows = {s: r.pick("states", name(s, w), level) for s in (1, 2, 4)}
            before = [first.pick("states", name(s, w), level) for s in (2, 1)]
            cells = lambda more, less: [r.percent(rows[more], rows[less], c) if c in contexts else "" for c in CONTEXTS]
            seeds = lambda *some: min(len(rows[s]) for s in some)
            two_one.append([level, w, seeds(1, 2), *cells(2, 1), first.percent(*before, "4096")])
            four_two.append([level, w, seeds(2, 4), *cells(4, 2)])
            values += [[level, w, s, f"{bytes_of(s, w):,}", len(rows[s]), *(r.value(rows[s], c) if c in contexts and rows[s] else "" for c in CONTEXTS), kl(rows[s]), recall(rows[s])] for s in (1, 2, 4)]
    return f"""## 2. One, two and four states

All layers fitted, the first seven tuned together by the logits, then the recall layer on top (level 8). Two states against one, change in percent (negative: the second state pays), paired, over the seeds that both have. Last column: the same from the first weight e^-7 with one rate for all, with which this was measured first and the states stayed weak.

{table(["level", "window", "seeds", *CONTEXTS, "from e^-7: 4096"], two_one)}

Four states against two:

{table(["level", "window", "seeds", *CONTEXTS], four_two)}

Bits per byte, mean ± standard deviation over seeds; bytes of a layer's state, float32. A state is as large as the keys and values of {bytes_of(1, 0) // (bytes_of(0, 2) - bytes_of(0, 1))} tokens.

{table(["level", "window", "states", "bytes a layer", "seeds", *CONTEXTS, "KL", "recall"], values)}
"""


def started(r: Results, block: str) -> str:
    weight, far = r.start[block]
    return f"started from the weight e^{weight:.0f}, " + ("one rate for all weights" if far == 1 else f"{far:.0f} times the rate for weight, mix and gate biases")


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

The same fit of every layer, then the logits stage in different ways, with the same tokens a layer; {started(r, "together")}. Change in bits per byte against chained, percent:

{table(["level", "way", "seeds", "tokens a layer", "1024", "4096", "KL", "recall"], rows)}
"""


def orders_part(r: Results, found: dict) -> str:
    entries = sorted((e for e in found["orders"] if start_of(found, e) == r.start["orders"]), key=lambda e: e["seed"])
    lists = [[name, entry["seed"], " ".join(map(str, o["order"])), " ".join(f"{x:.3g}" for x in o["evidence"])]
             for name in entries[0]["orders"] for entry in entries for o in [entry["orders"][name]]
             if entry is entries[0] or o != entries[0]["orders"][name]]
    rows = []
    for name in entries[0]["orders"]:
        cells = [[x for e in entries for x in r.pick("orders", "joint", level, e["orders"][name]["order"][:level]) if x["seed"] == e["seed"]] for level in (2, 4, 6, 7, 8)]
        rows.append([name, *(f"{r.percent(own, [r.teacher], '4096')}; {recall(own)}" if own else MISSING for own in cells)])
    return f"""## 4. Order of the layers

Evidence, layer 0 to 7: KL of each layer alone after a short fit; entropy in nats (the paper's choice: ascending); share of right answers lost alone. For greedy, step by step: KL of the hybrid so far. The last three are drawn. Everything here {started(r, "orders")}. A seed that gives the same as the first has no line.

{table(["order", "seed", "layers, first converted first", "evidence"], lists)}

Change in bits per byte at 4,096 against the teacher in percent; recall. Each prefix, of the seed's own order, tuned jointly by the logits ({millions(r.pick("orders", "joint"))} tokens a layer, {len(entries)} seeds):

{table(["order", "25 %", "50 %", "75 %", "7 of 8", "100 %"], rows)}
"""


def switches_part(r: Results, first: Results) -> str:
    names = list(dict.fromkeys(["default", *(x["variant"] for x in r.rows if x["block"] == "switches")]))
    rows = []
    for name in names:
        cells = []
        for level in (7, 8):
            own, base = r.pick("switches", name, level), r.pick("switches", "default", level)
            cells += [*(r.percent(own, base, c) if name != "default" else r.value(own, c) for c in ("1024", "4096")), kl(own), recall(own)]
        own, before = r.pick("switches", name, 7), [first.pick("switches", x, 7) for x in (name, "default")]
        rows.append([name, len(own), millions(own), *cells, first.percent(*before, "4096") if all(before) and name != "default" else ""])
    return f"""## 5. One switch at a time

Against the default (two states, window 64, scalar gates from the value starting at bias 6 and 0, exp map of 64 rows, no RoPE in the state, joint normaliser, separation on; {started(r, "switches")}): change in bits per byte in percent, negative is better; the default's own row in bits per byte. Seeds of the default differ by {r.noise(7, '4096'):.5f} bits per byte (standard deviation over the three seeds of section 2, level 7, context 4,096), {r.noise(8, '4096'):.5f} at level 8. Last column: the same comparison from e^-7 with one rate, level 7, context 4,096: a switch that means something has the same sign in both.

{table(["switch", "seeds", "tokens a layer", "level 7: 1024", "4096", "KL", "recall", "level 8: 1024", "4096", "KL", "recall", "from e^-7"], rows)}

The published form has its own recipe: KL of the layer's output and gate cosine, rates of 1e-4, no logits stage; with our objectives its q, k, v, o are tuned at a tenth of the rate. It stays far off at these budgets, because without normaliser and feature map it starts far from softmax.
"""


def recall_part(r: Results, first: Results) -> str:
    names = list(dict.fromkeys(x["variant"] for x in r.rows if x["block"] == "recall"))
    row = lambda name, own: [name, seeds_of(own), millions(own), r.percent(own, [r.teacher], "4096"), kl(own), *by_distance(own)]
    rows = [row(name, r.pick("recall", name)) for name in names]
    rows += [row(f"{name}, from e^-7 with one rate", first.pick("recall", name)) for name in DELTA]
    return f"""## 6. Can any state carry recall?

The layer that carries recall, alone converted, tuned with five times the weight on answers; {started(r, "recall")}. Change in bits per byte at 4,096 against the teacher in percent; recall by distance from:

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
    switch = lambda claim, name, other="default", level=7: row(claim, "switches", name, other, level, "4096")
    rows = [
        row("two states instead of one, no window", *two(0), 7, "4096"),
        row("the same, a window of 16", *two(16), 7, "4096"),
        row("the same, a window of 64", *two(64), 7, "4096"),
        row("the same, all layers", *two(64), 8, "4096"),
        row("the same, beyond the training length", *two(64), 7, "8192"),
        row("the same, all layers, beyond the training length", *two(64), 8, "8192"),
        row("four states, a window of 64", "states", "4 states, window 64", "2 states, window 64", 7, "4096"),
        row("chained instead of independent", "together", "chained", "independent", 7, "4096"),
        row("chained instead of one joint run whose prefixes are used", "together", "chained", "joint, one run at 100 %", 7, "4096"),
        row("chained instead of a joint run for every level", "together", "chained", "joint, a run a level", 7, "4096"),
        switch("separation of the gates", "default", "no separation"),
        switch("separation of the gates that start alike", "gates start as identity rows", "gates start as identity rows, no separation"),
        switch("history gate that starts as the identity matrix", "gates start as identity rows"),
        switch("gates from the hidden state", "gates from the hidden state"),
        switch("gates a channel", "gates a channel"),
        switch("gates a channel from the hidden state", "gates a channel from the hidden state"),
        switch("the published form and recipe", "published"),
        switch("the published form, our objectives", "published, our objectives"),
        switch("raw q and k with RMS norm, gated sum", "no map, RMS norm, gated sum"),
        switch("the delta rule in the slow state", "delta rule in the slow state"),
        switch("the same, all layers", "delta rule in the slow state", level=8),
        switch("(ours) joint normaliser instead of a gated sum", "default", "gated sum"),
        switch("(ours) no RoPE in the state", "default", "RoPE in the state"),
        switch("(ours) exp map instead of relu", "default", "map relu"),
        switch("(ours) exp map instead of 1 + elu", "default", "map 1 + elu"),
        switch("(ours) 64 features instead of 32", "default", "32 features"),
        switch("(ours) 64 features instead of 128", "default", "128 features"),
        switch("(ours) first weight e^-3 and tenfold rates instead of e^-7 and one rate", "default", "one rate for all, first weight e^-7"),
        switch("(ours) first weight e^-3 instead of e^-7, tenfold rates", "default", "first weight e^-7"),
        switch("(ours) first weight e^-3 instead of 1, tenfold rates", "default", "first weight 1"),
    ]
    return table(["choice", "compared", "level", "context", "change, %", "the choice is"], rows)


def in_short(r: Results, first: Results) -> str:
    change = lambda block, name, level, base, context="4096": r.percent(r.pick(block, name, level), base, context) + " %"
    teacher, states = [r.teacher], lambda s, w, level, of=r: of.pick("states", f"{s} states, window {w}", level)
    second = lambda w, level, context="4096", of=r: of.percent(states(2, w, level, of), states(1, w, level, of), context) + " %"
    switch = lambda name, level=7: change("switches", name, level, r.pick("switches", "default", level))
    before = lambda name, level=7: first.percent(first.pick("switches", name, level), first.pick("switches", "default", level), "4096") + " %"
    window = lambda name, size, level: change("levels", name, level, r.pick("levels", f"window {size}", level))
    best = max((x for x in r.rows if x["block"] == "recall" and x["seed"] is not None), key=lambda x: sum(right for right, _ in x["recall"]))
    same = next(x for x in r.rows if x["block"] == "recall" and x["variant"] == best["variant"].replace("two states, ", "") + ", untrained")
    beyond = [x for x in [*r.rows, *first.rows] if x["level"] == 8 or x["block"] == "recall"]
    far = max(sum(right for right, _ in x["recall"][4:]) for x in beyond)
    asked = sum(n for _, n in r.teacher["recall"][4:])
    more = "two states, more tokens"
    return f"""- **Does the second state ever pay?** Without an exact window, yes: {second(0, 7)} at level 7 and as much at every length from 512 to 8,192, but such a model is {r.percent(states(2, 0, 7), teacher, "4096")} % off the teacher and recalls nothing. Beside a window of 16 it is worth {second(16, 7)} (level 7) and {second(16, 8)} (all layers). Beside a window of 64 or 256 it is worth nothing within the training length ({second(64, 7)}, {second(256, 7)}), and at most a little beyond it: {second(64, 7, "8192")} and, all layers converted, {second(64, 8, "8192")} at 8,192 tokens. A second state costs as much memory as {bytes_of(1, 0) // (bytes_of(0, 2) - bytes_of(0, 1))} more tokens in the window, which are worth far more: one state beside 64 tokens ({bytes_of(1, 64):,} bytes a layer) is {r.percent(states(1, 64, 7), states(2, 16, 7), "4096")} % against two beside 16 ({bytes_of(2, 16):,}).
- **A handicapped start hid most of this**: from the weight e^-7 with one rate for all, the second state seemed to be worth {second(0, 7, of=first)} without a window and {second(16, 7, of=first)} beside 16. From e^-3 with tenfold rates everything gets better ({switch("one rate for all, first weight e^-7")} for going back), and the feature maps change places: relu was {before("map relu")} and is now {switch("map relu")}, 1 + elu was {before("map 1 + elu")} and is {switch("map 1 + elu")}. With tenfold rates the first weight itself matters little ({switch("first weight e^-7")} from e^-7, {switch("first weight 1")} from 1).
- **Identity rows are no bad start of the gates**: with one rate they cost {before("gates start as identity rows")}, with tenfold rates for the biases they gain: {switch("gates start as identity rows")}, {switch("gates start as identity rows", 8)} at level 8. **Separation changes nothing** ({r.percent(r.pick('switches', 'default', 7), r.pick('switches', 'no separation', 7), '4096')} %). Gates from the hidden state are {switch("gates from the hidden state")}, from the key {switch("gates from the key")}, a gate a channel: {switch("gates a channel")}, {switch("gates a channel", 8)} at level 8.
- **The joint normaliser matters most** (gated sum: {switch("gated sum")}; raw q and k under an RMS norm with a gated sum: {switch("no map, RMS norm, gated sum")}); RoPE in the state costs {switch("RoPE in the state")}; 16 and 32 features instead of 64 cost {switch("16 features")} and {switch("32 features")}, 128 are {switch("128 features")}.
- **The delta rule in the slow state gains most**, {switch("delta rule in the slow state")} and {switch("delta rule in the slow state", 8)} at level 8, no more than gates that start as identity rows do; it does not bring recall back. **A low-rank change of o** is worth nothing measurable: {switch("change of o, rank 8")} and {switch("change of o, rank 32")} for ranks of 8 and 32.
- **The published form does not convert at this budget**: as published {switch("published")}, with our objectives {switch("published, our objectives")}.
- **Chained tuning is not better than independent** by more than the noise, and a joint run for every level is at least as good. What chaining gives is that one set of parameters serves every prefix: a joint run at 100 % costs {change("together", "joint, one run at 100 %", 7, r.pick("together", "chained", 7))} at level 7.
- **Attention entropy is the wrong order here**: it converts the recall layer first. KL, greedy KL and recall loss agree but for three layers in the middle, which differ less than the seeds; bottom to top is as good by chance of this teacher, whose recall sits in the top layer.
- **Window or state?** With the recall layer still softmax (level 7) states are the better buy: beside a window of 64 ({bytes_of(2, 64):,} bytes a layer) tuned on {millions(r.pick("levels", more))} tokens they are {change("levels", more, 7, teacher)} off the teacher, {window(more, 256, 7)} against an untrained window of 256 + 4 ({bytes_of(0, 256):,} bytes); one state with half the tokens ({bytes_of(1, 64):,} bytes) is {window("one state", 256, 7)} against that window and {window("one state", 64, 7)} against 64 + 4 alone ({bytes_of(0, 64):,}). One state beside 256 is {r.percent(states(1, 256, 7), r.pick("levels", "window 256", 7), "4096")} % against 256 + 4 alone. With all layers converted the wider window is: tuned states beside 64 are {window(more, 256, 8)} against 256 + 4, and one state beside 256 {r.percent(states(1, 256, 8), r.pick("levels", "window 256", 8), "4096")} % against it.
- **No state carries recall**: in the recall layer, alone and tuned for it, the best is {recall([best])} ({best["variant"]}), less than the {recall([same])} of the same window without states; from 512 tokens on, {far} of {asked} questions in the best case of all rows with that layer converted. More features, RoPE in the state, larger first weights, gates a channel, windows of 256 and 512 and the delta rule were tried (section 6)."""


def page(found: dict) -> str:
    r, first, setups = Results(found), Results(found, oldest(found)), found["setups"]
    one = setups[0]
    missing = [name for name in found["planned"] if not r.pick("switches", name)]
    lost = "; ".join(missing) or "no switch"
    few = ", ".join(sorted({x["variant"] if x["block"] != "recall" else "all of section 6" for x in r.rows
                            if x["seed"] is not None and len({y["seed"] for y in r.pick(x["block"], x["variant"])}) < 3}))
    failures = "".join(f"\n- {f['variant']} failed: `{f['error'].splitlines()[-1]}`" for f in found["failures"])
    return f"""# Ablations of the conversion

Rendered by `tools/ablation/page.py` from `ablations.json`; no number is typed by hand. One {one['device']} (driver {one['driver']}), PyTorch {one['torch']}; teacher `llama-4m` (8 layers, context 4,096); how to repeat it: `tools/ablation/README.md`. The tool's mixer equals the golden vectors and a float64 recurrence (`tools/ablation/check.py`).

Tuned on windows of 4,096 tokens, 4 a step, of {one['trainingTokens'] / 1e6:.0f} M tokens of books, three quarters of the windows with recall passages; objectives and optimiser as in `packages/distill` (fit of the layer's output, then KL of the hybrid's logits). The weight of the states starts at e^-3 with ten times the rate for that weight, the mix and the gates' biases, as `packages/distill` tunes; what was measured first, from e^-7 with one rate, stands in columns of its own. A seed changes the data's order (and random first gates), never the teacher. Judged on held-out books and recall as in `tools/pretrain/evaluate.py`: text in stretches of 4,096 tokens (16, and 32 for what is not trained in section 1; 8,192: half as many), {sum(b[1] for b in r.teacher['recall'])} questions, products in TF32. Intervals: 95 %, paired over stretches, seeds averaged; they say how sure the difference is on such text, the standard deviations how much another seed would change.

## What holds and what does not

{findings(r)}

"No difference": within the 95 % interval over text, or within two standard deviations of the default over seeds. Most differences inside the foldable form are far below 1 %: read the size, not the word.

{in_short(r, first)}

Not run: {lost}. Fewer than three seeds, where differences are large: {few}. Runs: {'; '.join(' '.join(s['blocks']) for s in setups)}.{failures}

{levels_part(r)}
{states_part(r, first)}
{together_part(r)}
{orders_part(r, found)}
{switches_part(r, first)}
{recall_part(r, first)}"""


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
