"""Trains one of the two models: python train.py --model llama --text train.u16 --val val.u16 --out DIR --seconds 500

Both models see the same windows in the same order (data.py: seed and step decide). Stops at the last step, or before
--seconds are over; the whole state lies in --state then, so that the same command goes on; DIR/<model>.{0,1}.pt hold the
weights alone (float32, in two files).
"""
import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import data
from evaluate import recall
from model import Model

SEED, PEAK, FLOOR, WARMUP, FLAT = 20261121, 2e-3, 1e-4, 300, 0.6
STAGES = [  # steps, windows a step, window, pairs, share of windows with pairs, position jumps
    dict(steps=6400, size=64, length=1024, pairs=12, share=0.75, jump=True),
    dict(steps=1300, size=32, length=4096, pairs=16, share=0.75, jump=False),
]


def rate(tokens: float, total: float) -> float:
    """Flat at the peak for FLAT of the tokens, then a cosine down to the floor."""
    done = max(0.0, tokens / total - FLAT) / (1 - FLAT)
    return FLOOR + (PEAK - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def loss_of(table, h, targets, weights):
    """table [vocab, D], h [B, T, D] -> weighted loss, and the plain mean over ordinary text."""
    logits = F.linear(h, table).float()
    nll = F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1), reduction="none")
    weights = weights.reshape(-1)
    text = (weights == 1).float()
    return (nll * weights).sum() / weights.numel(), (nll.detach() * text).sum() / text.sum()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=["llama", "zamba"], required=True)
    for name in ("text", "val", "out", "state"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--stages", type=json.loads, default=STAGES, help="JSON, in place of the list in this file")
    parser.add_argument("--weights", nargs="*", help="the two files of --out: start from them at step --skip, with a new optimiser")
    parser.add_argument("--skip", type=int, default=0)
    args = parser.parse_args()
    begin = time.time()
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    device, cuda = args.device, args.device == "cuda"
    text, val = data.load(args.text).to(device), data.load(args.val).to(device)
    model = Model(args.model).to(device)
    matrices = [p for n, p in model.named_parameters() if p.ndim >= 2 and "A_log" not in n and not n.endswith(".D") and "bias" not in n]
    held = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in held]
    optimiser = torch.optim.AdamW([dict(params=matrices, weight_decay=0.1), dict(params=rest, weight_decay=0.0)],
                                  lr=PEAK, betas=(0.9, 0.95), fused=cuda)
    step, spent, fresh = 0, 0.0, 0
    if args.state.exists():
        saved = torch.load(args.state, map_location=device)
        model.load_state_dict(saved["model"])
        optimiser.load_state_dict(saved["optimiser"])
        step, spent = saved["step"], saved["spent"]
    elif args.weights:
        model.load_state_dict({n: p for f in args.weights for n, p in torch.load(f, map_location=device).items()})
        step = fresh = args.skip
    if cuda:
        model.compile_blocks()
    objective = torch.compile(loss_of, dynamic=False) if cuda else loss_of
    log = (args.out / f"train.{args.model}.jsonl").open("a")

    def note(**values):
        log.write(json.dumps(values) + "\n")
        log.flush()
        print(args.model, json.dumps(values), flush=True)

    stages = args.stages
    sizes = [s["size"] * s["length"] for s in stages]
    total = sum(s["steps"] * n for s, n in zip(stages, sizes))
    last = sum(s["steps"] for s in stages)
    note(step=step, of=last, tokensInAll=total, parameters=sum(p.numel() for p in model.parameters()), startSeconds=round(time.time() - begin, 1))
    mark, mark_tokens, average = time.time(), 0, None
    while step < last and time.time() - begin < args.seconds:
        number, first = 0, 0
        while step >= first + stages[number]["steps"]:
            first, number = first + stages[number]["steps"], number + 1
        stage = stages[number]
        done = sum(s["steps"] * n for s, n in zip(stages[:number], sizes)) + (step - first) * sizes[number]
        lr = rate(done, total) * min(1.0, (step - fresh + 1) / WARMUP)
        for group in optimiser.param_groups:
            group["lr"] = lr
        ids, targets, weights, positions = data.batch(text, step, SEED, **{k: v for k, v in stage.items() if k != "steps"})
        with torch.autocast(device, dtype=torch.bfloat16):
            loss, text_loss = objective(model.embed.weight, model(ids, positions), targets, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        step += 1
        mark_tokens += sizes[number]
        average = text_loss.detach() if average is None else average * 0.98 + text_loss.detach() * 0.02
        if step % 250 == 0 or step == last or step in (1, 20):
            nats = average.item()  # waits for the device
            seconds = time.time() - mark
            note(step=step, tokens=done + sizes[number], window=stage["length"], lr=round(lr, 6), textNats=round(nats, 4),
                 loss=round(loss.item(), 4), tokensPerSecond=round(mark_tokens / seconds), seconds=round(time.time() - begin, 1),
                 recall=recall(model, val, stage["length"], windows=16, seed=step) if step > 20 else None)
            if not math.isfinite(nats):
                raise SystemExit("the loss is not finite")
            spent += seconds
            mark, mark_tokens = time.time(), 0
        if step % 500 == 0 or step == last:
            save(model, args.out)
    spent += time.time() - mark
    save(model, args.out)
    torch.save(dict(model=model.state_dict(), optimiser=optimiser.state_dict(), step=step, spent=spent), args.state)
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    note(step=step, finished=step == last, trainSeconds=round(spent, 1), seconds=round(time.time() - begin, 1), peakBytes=peak,
         seed=SEED, stages=stages, torch=torch.__version__, device=torch.cuda.get_device_name() if cuda else "cpu")


def save(model, out: Path) -> None:
    """Two files, each small enough to carry."""
    tensors = list(model.state_dict().items())
    half = sum(t.numel() for _, t in tensors) / 2
    parts, seen = ({}, {}), 0
    for name, tensor in tensors:
        parts[seen > half][name] = tensor.detach().cpu()
        seen += tensor.numel()
    for number, part in enumerate(parts):
        torch.save(part, out / f"{model.kind}.{number}.pt")


if __name__ == "__main__":
    main()
