# Logits of the tokens of accuracy.bench.ts against float64: by PyTorch and transformers in other types. One JSON object a line on
# stdout.
#   python3 accuracy-peers.py CHECKPOINT IDS [cpu]
import json
import math
import os
import sys

import torch
import transformers

checkpoint, file, *rest = sys.argv[1:]
name = os.path.basename(os.path.normpath(checkpoint))
place = rest[0] if rest else "cuda"
prompts = torch.tensor(json.load(open(file)), device=place)  # [prompts, tokens]


def load(dtype):
    model = transformers.LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float16, attn_implementation="sdpa")
    return model.to(place, dtype)


@torch.no_grad()
def peer(dtype):
    model = load(dtype)
    return lambda ids: model(ids[None]).logits[0].double()


def report(test, kind, run):
    """Logits of all prompts by `run` against the truth: RMS, and where another token is first."""
    error = size = tokens = 0
    others = []
    for ids in prompts:
        got, want = run(ids), truth(ids)
        error, size = error + (got - want).pow(2).sum().item(), size + want.pow(2).sum().item()
        first, second = want.topk(2).values.T
        wrong = (got.argmax(-1) != want.argmax(-1)).nonzero().flatten().tolist()
        others += [{"token": tokens + token, "margin": (first - second)[token].item(), "logit": first[token].item()} for token in wrong]
        tokens += len(ids)
    found = {"tokens": tokens, "rms": math.sqrt(error / size), "error": math.sqrt(error / tokens / want.shape[-1])}
    print(json.dumps({"test": test, "model": name, "type": kind, **found, "first": tokens - len(others), "others": others}), flush=True)


truth = peer(torch.float64)
peers = f"PyTorch {torch.__version__}, transformers {transformers.__version__}, SDPA"
for kind in ("float32", "float16", "bfloat16"):
    report(peers, kind, peer(getattr(torch, kind)))
