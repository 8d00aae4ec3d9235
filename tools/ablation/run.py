"""Runs the ablations on one GPU: python run.py --checkpoint DIR --text train.u16.xz --val val.u16.xz --out FILE.jsonl --blocks ...

Every result is one line of FILE as soon as it is known; a block stops when --seconds are over. page.py makes the page of it.
"""
import argparse
import dataclasses
import json
import lzma
import subprocess
import time
import traceback
from pathlib import Path

import numpy as np
import torch

from judge import CONTEXTS, Judge
from mixer import PUBLISHED, Form, first
from orders import all_orders
from student import Teacher, plan_of, window_plan
from tune import PUBLISHED_RECIPE, Recipe, match, tune_logits, tune_together

import evaluate  # of tools/pretrain

TWO = (1024, 4096)
SHORT = Recipe(match=80, logits=30)
LAST = 15  # steps of the recall layer, on top of the others
SWITCHES = {  # what differs from the default
    "no separation": (Form(), dict(separation=0.0)),
    "gates from the key": (Form(source="key"), {}),
    "gates from the hidden state": (Form(source="hidden"), {}),
    "16 features": (Form(features=16), {}),
    "32 features": (Form(features=32), {}),
    "map 1 + elu": (Form(map="elu"), {}),
    "map relu": (Form(map="relu"), {}),
    "RoPE in the state": (Form(rope=True), {}),
    "first weight 1": (Form(log_weight=0.0), {}),
    "first weight e^-7": (Form(log_weight=-7.0), {}),
    "128 features": (Form(features=128), {}),
    "change of o, rank 8": (Form(rank=8), {}),
    "change of o, rank 32": (Form(rank=32), {}),
    "gates start as identity rows": (Form(gate_start="identity"), {}),
    "gates start as identity rows, no separation": (Form(gate_start="identity"), dict(separation=0.0)),
    "gated sum": (Form(combine="gated"), {}),
    "one rate for all, first weight e^-7": (Form(log_weight=-7.0), dict(far=1.0)),
    "half the tokens": (Form(), dict(match=40, logits=15)),
    "no logits stage": (Form(), dict(logits=0)),
}
COSTLY = {  # several times the time of the others
    "no map, RMS norm, gated sum": (Form(map="none", norm=True, combine="gated"), {}),
    "gates a channel": (Form(gate="vector"), {}),
    "gates a channel from the hidden state": (Form(gate="vector", source="hidden"), {}),
    "delta rule in the slow state": (Form(delta=True), {}),
    "published": (PUBLISHED, dict(dataclasses.asdict(PUBLISHED_RECIPE), match=80)),
    "published, our objectives": (PUBLISHED, {}),
}
ONCE = {"gated sum", "no map, RMS norm, gated sum", "published", "published, our objectives"}  # differences so large that one seed tells


class Bench:
    def __init__(self, args):
        self.end, self.args = time.time() + args.seconds, args
        load = lambda path: torch.from_numpy(np.frombuffer(lzma.open(path).read(), dtype=np.uint16).astype(np.int32)).to(args.device)
        torch.set_float32_matmul_precision("high")
        self.teacher = Teacher(args.checkpoint, args.device)
        self.text, val = load(args.text), load(args.val)
        self.judge = Judge(self.teacher, val, evaluate.token_bytes(args.checkpoint / "tokenizer.json"), units=args.units)
        self.order = json.loads((args.checkpoint / "order.json").read_text())
        self.out = args.out.open("a")
        gpu = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
        driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True).stdout.split()[0] if args.device == "cuda" else ""
        self.write({"kind": "setup", "device": gpu, "driver": driver, "torch": torch.__version__, "blocks": args.blocks, "bytes": self.judge.bytes(),
                    "trainingTokens": self.text.numel(), "logWeight": Form().log_weight, "far": Recipe().far, "order": self.order["order"], "keep": self.order["keep"]})

    def write(self, record):
        self.out.write(json.dumps(record) + "\n")
        self.out.flush()

    def left(self) -> float:
        return self.end - time.time()

    def result(self, block, variant, seed, layers, plan, tokens=0, contexts=None, **more):
        """Judges a plan; tuning runs fast, judging in float32 (products in TF32)."""
        self.teacher.fast = False
        began = time.time()
        judged = self.judge(plan, contexts)
        self.write({"kind": "result", "block": block, "variant": variant, "seed": seed, "level": len(layers), "layers": list(layers),
                    "tokens": tokens, **more, **judged, "judgeSeconds": round(time.time() - began, 2)})
        self.teacher.fast = True

    def match(self, variants: dict, seed: int) -> dict:
        self.teacher.fast = True
        began = time.time()
        found = match(self.teacher, self.text, variants, seed)
        self.write({"kind": "match", "seed": seed, "seconds": round(time.time() - began, 2), "variants": {n: [round(x, 6) for x in m] for n, (_, m) in found.items()}})
        return found


def each(bench: Bench, variants: dict, work):
    """work(name, (form, recipe)) for all, as far as time goes; a failure is written down and the rest goes on."""
    for name, variant in variants.items():
        if bench.left() < 5:
            return
        try:
            work(name, variant)
        except Exception:  # a research grid: one bad variant must not cost the others
            bench.write({"kind": "failure", "variant": name, "error": traceback.format_exc()[-800:]})


def tokens_of(recipe: Recipe) -> int:
    """Tokens that each layer is tuned on"""
    return (recipe.match + recipe.logits) * recipe.rows * recipe.length


def baselines(bench: Bench, _seed: int):
    """Teacher, windows without training, and the untuned mixer, at every level."""
    teacher, order = bench.teacher, bench.order["order"]
    untuned = {n: x.to(teacher.device) for n, x in first(Form(), teacher.count, teacher.heads, teacher.hd, teacher.hidden, {}, 0).items()}
    bench.result("levels", "teacher", None, [], {})
    for level in range(1, teacher.count + 1):
        for window in (64, 256, 512) if level in (2, 4, 6, 7, 8) else ():
            bench.result("levels", f"window {window}", None, order[:level], window_plan(order[:level], window))
        bench.result("levels", "untuned", None, order[:level], plan_of(order[:level], Form(), untuned))


def levels(bench: Bench, seed: int):
    """Chained tuning along the order, every level judged; one long run with nearly 5 M tokens a layer."""
    order = bench.order["order"]
    usual, long = Recipe(match=100, logits=50), Recipe(match=190, logits=110)

    def chain(name, form, recipe, levels):
        p, misfit = bench.match({name: (form, recipe)}, seed)[name]
        began = time.time()
        p = tune_together(bench.teacher, bench.text, form, p, order, "chained", recipe, seed)
        seconds = round(time.time() - began, 1)
        for level in levels:
            bench.result("levels", name, seed, order[:level], plan_of(order[:level], form, p), tokens_of(recipe), misfit=misfit, logitsSeconds=seconds)

    each(bench, {"two states": (Form(), usual)}, lambda name, v: chain(name, *v, range(1, 9)))
    each(bench, {"one state": (Form(states=1), usual)}, lambda name, v: chain(name, *v, (2, 4, 6, 7, 8)))
    if seed == 0:
        each(bench, {"two states, more tokens": (Form(), long)}, lambda name, v: chain(name, *v, range(1, 9)))


def grid(bench: Bench, block: str, variants: dict, seed: int, contexts):
    """Match all layers; logits of all but the recall layers together; then the recall layers on top."""
    if bench.left() < 30:
        return
    variants = {name: v for name, v in variants.items() if not bench.args.only or name in bench.args.only}
    order, keep = bench.order["order"], bench.order["keep"]
    most, rest = order[:-keep], order[-keep:]
    found = bench.match(variants, seed)

    def finish(name, variant):
        form, recipe = variant
        p, misfit = found[name]
        p = {n: x.clone() for n, x in p.items()}
        if recipe.logits:
            tune_logits(bench.teacher, bench.text, form, p, most, most, recipe, seed, 1 << 20)
        bench.result(block, name, seed, most, plan_of(most, form, p), tokens_of(recipe), contexts, misfit=misfit)
        if recipe.logits:
            tune_logits(bench.teacher, bench.text, form, p, rest, order, dataclasses.replace(recipe, logits=LAST), seed, 1 << 21)
        bench.result(block, name, seed, order, plan_of(order, form, p), tokens_of(recipe), contexts if block != "states" else (1024, 4096, 8192))

    each(bench, variants, finish)


def states(bench: Bench, seed: int):
    forms = {f"{s} states, window {w}": (Form(states=s, window=w), SHORT) for w in (64, 0, 16, 256) for s in (1, 2, 4)}
    grid(bench, "states", forms, seed, CONTEXTS)


def variants_of(table: dict, seed: int) -> dict:
    return {name: (form, dataclasses.replace(SHORT, **changes)) for name, (form, changes) in table.items() if seed == 0 or name not in ONCE}


def switches(bench: Bench, seed: int):
    grid(bench, "switches", {"default": (Form(), SHORT), **variants_of(SWITCHES, seed)}, seed, TWO)


def costly(bench: Bench, seed: int):
    grid(bench, "switches", variants_of(COSTLY, seed), seed, TWO)


def together(bench: Bench, seed: int):
    """The same fit of every layer, then the logits in three ways, with the same tokens a layer."""
    order, recipe, form, at = bench.order["order"], Recipe(match=80, logits=25), Form(), (4, 7, 8)
    if bench.left() < 30:
        return
    p, _ = bench.match({"default": (form, recipe)}, seed)["default"]

    def judge(name, tuned, levels, tokens=tokens_of(recipe)):
        for level in levels:
            bench.result("together", name, seed, order[:level], plan_of(order[:level], form, tuned), tokens, TWO)

    tune = lambda layers, way: tune_together(bench.teacher, bench.text, form, p, layers, way, recipe, seed)
    judge("match only", p, at, recipe.match * recipe.rows * recipe.length)
    for way in ("chained", "independent"):
        judge(way, tune(order, way), at)
    for level in at:  # the hybrid of that level tuned as a whole
        tuned = tune(order[:level], "joint")
        judge("joint, a run a level", tuned, [level])
    judge("joint, one run at 100 %", tuned, at[:-1])


def orders(bench: Bench, seed: int):
    """Prefixes of every order: after the fit of each layer, and after joint tuning of the prefix by the logits."""
    form, recipe = Form(), dataclasses.replace(SHORT, logits=15)
    if bench.left() < 30:
        return
    p, _ = bench.match({"default": (form, recipe)}, seed)["default"]
    bench.teacher.fast = False
    found = all_orders(bench.teacher, bench.judge, form, p)
    bench.write({"kind": "orders", "seed": seed, "orders": found})
    sets = sorted({tuple(sorted(o["order"][:level])) for o in found.values() for level in (2, 4, 6, 7, 8)}, key=lambda s: (len(s), s))
    for stage in ("match only", "joint"):
        for layers in sets:
            if bench.left() < 5:
                return
            tuned = p if stage == "match only" else tune_together(bench.teacher, bench.text, form, p, layers, "joint", recipe, seed)
            tokens = (recipe.match + (recipe.logits if stage == "joint" else 0)) * recipe.rows * recipe.length
            bench.result("orders", stage, seed, layers, plan_of(layers, form, tuned), tokens, (4096,))


def recall(bench: Bench, seed: int):
    """The layer that carries recall, alone converted, tuned for recall: answers weigh five times as much as text."""
    layer = bench.order["order"][-1]
    recipe = Recipe(match=100, logits=120, logits_rate=5e-3, weighted=True)
    few = dataclasses.replace(recipe, logits=60)  # they take longer
    variants = {
        "two states, window 64": (Form(), recipe),
        "two states, window 64, 256 features": (Form(features=256), recipe),
        "two states, window 64, RoPE in the state": (Form(rope=True), recipe),
        "two states, window 64, first weight 1": (Form(log_weight=0.0), recipe),
        "two states, window 256": (Form(window=256), recipe),
        "two states, window 512": (Form(window=512), recipe),
        "two states, window 64, gates a channel from the hidden state": (Form(gate="vector", source="hidden"), few),
        "delta rule, window 64": (Form(delta=True), few),
        "delta rule, window 64, gates and rates from the hidden state": (Form(delta=True, source="hidden"), few),
    }

    def work(name, variant):
        form, own = variant
        bench.teacher.fast = True
        p, misfit = match(bench.teacher, bench.text, {name: variant}, seed, slice(layer, layer + 1))[name]
        p = {n: x.repeat(bench.teacher.count, *[1] * (x.ndim - 1)) for n, x in p.items()}  # only its own place is used
        tune_logits(bench.teacher, bench.text, form, p, [layer], [layer], own, seed, 1 << 20)
        bench.result("recall", name, seed, [layer], plan_of([layer], form, p), tokens_of(own), TWO, misfit=misfit)

    for window in (64, 256, 512):
        bench.result("recall", f"window {window}, untrained", None, [layer], window_plan([layer], window), 0, TWO)
    each(bench, variants, work)


BLOCKS = {f.__name__: f for f in (baselines, levels, states, switches, costly, together, orders, recall)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("checkpoint", "text", "val", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--blocks", nargs="+", required=True, help=f"NAME or NAME:SEED,SEED of {', '.join(BLOCKS)}; seed 0")
    parser.add_argument("--only", nargs="+", help="these rows of states, switches and costly")
    parser.add_argument("--seconds", type=float, default=600, help="in all, from the start")
    parser.add_argument("--units", type=int, default=32, help="stretches of text that are judged, of 4,096 tokens each")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    bench = Bench(args)
    for block in args.blocks:
        name, _, seeds = block.partition(":")
        for seed in map(int, (seeds or "0").split(",")):
            began = time.time()
            BLOCKS[name](bench, seed)
            bench.write({"kind": "block", "block": name, "seed": seed, "seconds": round(time.time() - began, 1)})
            print(name, seed, round(time.time() - began, 1), "s", flush=True)


if __name__ == "__main__":
    main()
