"""Measures a trained model on the held-out books, with its weights rounded to float16, in float32.

python evaluate.py --model llama --weights DIR --val val.u16 --tokenizer tokenizer.json --out FILE
"""
import argparse
import contextlib
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F

import data
from model import Model

BUCKETS = [(8, 64), (64, 128), (128, 256), (256, 512), (512, 1024), (1024, 2048), (2048, 3072), (3072, 3600), (3600, 4000)]
PROTOCOL = {
    "bitsPerByte": "validation books as one token stream (each book encoded without <s>); for context n, consecutive windows of "
                   "n - 1 tokens that do not overlap, each behind one <s>; every one of the n - 1 tokens is predicted; sum of bits "
                   "over all full windows / sum of the tokens' UTF-8 bytes; weights rounded to float16, arithmetic float32 (no TF32)",
    "recall": "windows of 4,096 tokens of validation text at random places, 8 pairs a window (tools/pretrain/data.py), distances drawn "
              "uniformly within the bucket; a question counts when both value tokens are the arg max, the second given the first",
    "windowed": "one layer's attention sees the last 64 tokens and the first 4 only, no training; text at context 4,096",
}


def exact_math():
    """float32 without TF32, whatever the training used."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")


@torch.no_grad()
def recall_counts(model, val, length, windows, generator, low, high, group=16, autocast=False):
    """Right and asked questions, by distance in tokens: two lists of equal length."""
    distances, hits = [], []
    for _ in range(0, windows, group):
        start = torch.randint(0, val.numel() - length - 1, (group,), generator=generator, device=val.device)
        tokens = val[start[:, None] + torch.arange(length, device=val.device)].long()
        tokens[:, 0] = data.BOS
        _, distance, at = data.plant(tokens, 8, 1.0, generator, low, high)
        context = torch.autocast(val.device.type, dtype=torch.bfloat16) if autocast else contextlib.nullcontext()
        with context:
            h = model(tokens)
            rows = torch.arange(group, device=val.device)[:, None]
            first = model.head(h[rows, at - 1]).argmax(-1) == tokens[rows, at]
            second = model.head(h[rows, at]).argmax(-1) == tokens[rows, at + 1]
        asked = distance > 0
        distances += distance[asked].tolist()
        hits += (first & second)[asked].tolist()
    return distances, hits


def recall(model, val, length, windows=16, seed=0):
    """Quick look during training: share right by distance."""
    compiled = [(b, b._compiled_call_impl) for b in model.modules() if b._compiled_call_impl is not None]
    for block, _ in compiled:
        block._compiled_call_impl = None  # another batch size: not worth compiling for
    generator = torch.Generator(device=val.device).manual_seed(seed)
    top = length // data.SLOT
    distances, hits = recall_counts(model, val, length, windows, generator, 0, top - 1, autocast=True)
    for block, call in compiled:
        block._compiled_call_impl = call
    found = {}
    for part in range(4):
        low, high = part * length // 4, (part + 1) * length // 4
        chosen = [h for d, h in zip(distances, hits) if low <= d < high]
        if chosen:
            found[f"<{high}"] = round(sum(chosen) / len(chosen), 3)
    return found


def recall_by_bucket(model, val, windows, seed):
    found = []
    for number, (low, high) in enumerate(BUCKETS):
        generator = torch.Generator(device=val.device).manual_seed(seed + number)
        # distance 16 d + 8 lies in [low, high)
        distances, hits = recall_counts(model, val, 4096, windows, generator, max(0, math.ceil((low - 8) / 16)), math.ceil((high - 8) / 16), group=8)
        assert all(low <= d < high for d in distances)
        found.append({"from": low, "to": high, "asked": len(hits), "right": sum(hits), "accuracy": sum(hits) / len(hits)})
    return found


def token_bytes(tokenizer: Path) -> torch.Tensor:
    """UTF-8 bytes that each token stands for."""
    vocabulary = json.loads(tokenizer.read_text())["model"]["vocab"]
    sizes = torch.zeros(len(vocabulary), dtype=torch.float64)
    for piece, index in vocabulary.items():
        byte = 3 <= index < 259
        sizes[index] = 1 if byte else len(piece.replace("▁", " ").encode())
    return sizes


@torch.no_grad()
def bits_per_byte(model, val, sizes, context, limit=None, budget=16384):
    width = context - 1
    count = val.numel() // width
    count = min(count, limit) if limit else count
    windows = val[: count * width].view(count, width).long()
    nats = torch.zeros((), dtype=torch.float64, device=val.device)
    for part in windows.split(max(1, budget // context)):
        ids = F.pad(part, (1, 0), value=data.BOS)[:, :-1]
        # <s> t1 .. t(n-2) predicts t1 .. t(n-1): the last token of the window is a target only
        logits = model.head(model(ids))
        nats += F.cross_entropy(logits.view(-1, logits.shape[-1]), part.reshape(-1), reduction="sum").double()
    total = nats.item()
    return {"context": context, "windows": count, "tokens": count * width, "bytes": int(sizes[windows.cpu()].sum().item()),
            "bitsPerByte": total / math.log(2) / sizes[windows.cpu()].sum().item(), "perplexity": math.exp(total / (count * width))}


def load(kind: str, folder: Path, device: str) -> Model:
    model = Model(kind)
    model.load_state_dict({n: p for i in (0, 1) for n, p in torch.load(folder / f"{kind}.{i}.pt", map_location="cpu").items()})
    for p in model.parameters():
        p.data = p.data.half().float()
    return model.to(device).eval()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=["llama", "zamba"], required=True)
    for name in ("weights", "val", "tokenizer", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--windows", type=int, default=32, help="windows a distance bucket")
    parser.add_argument("--limit", type=int, help="text windows a context (for a quick try)")
    args = parser.parse_args()
    exact_math()
    import scan

    scan.STATE = torch.float32
    val, sizes = data.load(args.val).to(args.device), token_bytes(args.tokenizer)
    model = load(args.model, args.weights, args.device)
    result = {"model": args.model, "protocol": PROTOCOL, "parameters": sum(p.numel() for p in model.parameters())}
    write = lambda: args.out.write_text(json.dumps(result, indent=1) + "\n")
    result["recall"] = recall_by_bucket(model, val, args.windows, seed=99)
    print(args.model, [round(b["accuracy"], 3) for b in result["recall"]], flush=True)
    write()
    result["text"] = [bits_per_byte(model, val, sizes, n, args.limit) for n in (512, 1024, 2048, 4096)]
    print(args.model, [round(b["bitsPerByte"], 4) for b in result["text"]], flush=True)
    write()
    if args.model == "llama":
        few = 64 if args.limit is None else args.limit
        base = bits_per_byte(model, val, sizes, 4096, few)
        result["windowed"] = {"window": 64, "sinks": 4, "full": base, "layers": []}
        for index, layer in enumerate(model.layers):
            layer.self_attn.window = (64, 4)
            seen = recall_by_bucket(model, val, max(8, args.windows // 4), seed=199)
            text = bits_per_byte(model, val, sizes, 4096, few)
            layer.self_attn.window = None
            far = [b for b in seen if b["from"] >= 128]
            result["windowed"]["layers"].append({
                "layer": index, "perplexity": text["perplexity"], "bitsPerByte": text["bitsPerByte"],
                "recall": sum(b["right"] for b in far) / sum(b["asked"] for b in far), "buckets": seen})
            print("window in layer", index, round(text["perplexity"], 3), round(result["windowed"]["layers"][-1]["recall"], 3), flush=True)
        write()


if __name__ == "__main__":
    main()
