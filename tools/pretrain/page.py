"""Renders the results: python page.py --run DIR --finish FILE --train train.u16 --json checkpoints.json --page checkpoints.md

DIR is what job.sh left: log.txt, train.*.jsonl, eval.*.json. Every number of the page comes from these files.
"""
import argparse
import ast
import json
import statistics
from pathlib import Path


def read(run: Path, finish: Path, train: Path) -> dict:
    log = (run / "log.txt").read_text().splitlines()
    device, driver = log[0].split(", ")
    dicts = [ast.literal_eval(line) for line in log if line.startswith("{'")]
    models = []
    shipped = {m["model"]: m for m in json.loads(finish.read_text())["models"]}
    for kind in ("llama", "zamba"):
        notes = [json.loads(line) for line in (run / f"train.{kind}.jsonl").read_text().splitlines()]
        end = notes[-1]
        steps = [n for n in notes if "textNats" in n and n.get("recall")]
        speed = {str(s["length"]): statistics.median(n["tokensPerSecond"] for n in steps if n["window"] == s["length"]) for s in end["stages"]}
        learned = next((n["tokens"] for n in steps if min(n["recall"].values()) >= 0.9), None)
        models.append({"model": f"{kind}-4m", "training": {
            "tokens": sum(s["steps"] * s["size"] * s["length"] for s in end["stages"]), "seconds": end["trainSeconds"],
            "secondsWithStart": end["seconds"], "medianTokensPerSecondByWindow": speed, "recallFirstSeenAtTokens": learned,
            "peakDeviceBytes": end["peakBytes"], "finished": end["finished"]},
            "evaluation": json.loads((run / f"eval.{kind}.json").read_text()), "shipped": shipped[f"{kind}-4m"]})
    return {"hardware": {"device": end["device"], "driver": driver, "devices": len([l for l in log[:8] if l == log[0]])},
            "versions": {"torch": end["torch"], "transformersOfTheCheck": shipped["llama-4m"]["transformers"]},
            "seed": end["seed"], "stages": end["stages"], "trainingTextTokens": train.stat().st_size // 2,
            "scanKernel": {"largestRelativeErrors": dicts[0], "millisecondsForwardBackward": dicts[1]},
            "bytesInAll": json.loads(finish.read_text())["bytesInAll"], "models": models}


def table(head, rows) -> str:
    line = lambda cells: "| " + " | ".join(str(c) for c in cells) + " |"
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def page(r: dict) -> str:
    m, names = r["models"], [x["model"] for x in r["models"]]
    million = lambda n: f"{n / 1e6:.1f} M"
    row = lambda name, pick: [name, *(pick(x) for x in m)]
    training = table(["", *names], [
        row("parameters", lambda x: f"{x['shipped']['parameters']:,}"),
        row("tokens seen", lambda x: million(x["training"]["tokens"])),
        row("training, seconds", lambda x: f"{x['training']['seconds']:.0f}"),
        *[row(f"median tokens a second, window {n}", lambda x, n=n: million(x["training"]["medianTokensPerSecondByWindow"][n]))
          for n in m[0]["training"]["medianTokensPerSecondByWindow"]],
        row("tokens seen when recall (>= 0.9 in every quarter of the window) first showed", lambda x: million(x["training"]["recallFirstSeenAtTokens"])),
        row("largest device memory", lambda x: f"{x['training']['peakDeviceBytes'] / 1e9:.1f} GB"),
        row("model.safetensors (float16)", lambda x: f"{x['shipped']['bytes']:,} bytes"),
        row("largest difference of a logit, transformers against the training model", lambda x: f"{x['shipped']['largestDifferenceFromTransformers']:.1e}"),
    ])
    text = table(["context", *(f"{n}: bits per byte" for n in names), *(f"{n}: perplexity" for n in names)],
                 [[a["context"], *(f"{x['evaluation']['text'][i]['bitsPerByte']:.4f}" for x in m), *(f"{x['evaluation']['text'][i]['perplexity']:.2f}" for x in m)]
                  for i, a in enumerate(m[0]["evaluation"]["text"])])
    recall = table(["distance, tokens", "asked", *names],
                   [[f"{b['from']} to {b['to'] - 1}", b["asked"], *(f"{x['evaluation']['recall'][i]['accuracy']:.3f}" for x in m)]
                    for i, b in enumerate(m[0]["evaluation"]["recall"])])
    w = m[0]["evaluation"]["windowed"]
    layers = table(["layer", "recall, distances from 128", "perplexity", "change"],
                   [["none", "", f"{w['full']['perplexity']:.3f}", ""],
                    *[[l["layer"], f"{l['recall']:.3f}", f"{l['perplexity']:.3f}", f"{100 * (l['perplexity'] / w['full']['perplexity'] - 1):+.1f} %"] for l in w["layers"]]])
    stages = table(["steps", "windows a step", "window", "pairs", "share with pairs", "position jumps"],
                   [[s["steps"], s["size"], s["length"], s["pairs"], s["share"], "half of the windows" if s["jump"] else "no"] for s in r["stages"]])
    kernel = table(["shape and block", "forward, ms", "backward, ms"], [[k, *v] for k, v in r["scanKernel"]["millisecondsForwardBackward"].items()])
    proto = m[0]["evaluation"]["protocol"]
    worst = max(r["scanKernel"]["largestRelativeErrors"].values())
    return f"""# The two small checkpoints

Rendered by `tools/pretrain/page.py` from `checkpoints.json`; no number is typed by hand. One run, seed {r['seed']}, one {r['hardware']['device']} a model (driver {r['hardware']['driver']}), PyTorch {r['versions']['torch']}. How to repeat it: `tools/pretrain/README.md`.

Both models saw the same windows in the same order: {million(r['trainingTextTokens'])} tokens of public-domain books (without Moby-Dick and the validation books) under a vocabulary of 4,096 pieces, mixed with recall passages. All files together: {r['bytesInAll']:,} bytes.

{stages}

{training}

## Text

{sentence(proto['bitsPerByte'])}

{text}

## Recall by distance

{sentence(proto['recall'])} The passages' format: `apps/harness/checkpoints/recall.json`.

{recall}

## Which layer of llama-4m carries recall

{sentence(proto['windowed'])[:-1]} (the first {w['full']['windows']} windows); recall as above on other windows. The unchanged model's recall stands in the table above.

{layers}

## The training scan

Triton kernel of `tools/pretrain/scan.py` against autograd on the plain loop in float64: largest error {worst:.1e} of the largest entry, over outputs and all gradients, with the states kept in float32 (training keeps them in bfloat16). Times for 384 channels, 16 states, bfloat16 inputs:

{kernel}
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("run", "finish", "train", "json", "page"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    found = read(args.run, args.finish, args.train)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(found, indent=1) + "\n")
    args.page.write_text(page(found))


if __name__ == "__main__":
    main()
