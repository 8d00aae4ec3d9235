"""Writes the golden vectors: python make.py --out packages/conformance/golden [--only ops|models]. See README.md."""
import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch

import models
import ops_attention
import ops_linear
import ops_scan
from common import sha256

PINNED = {"torch": "2.14.1", "transformers": "5.18.0", "safetensors": "0.8.0"}
# Written by tools/pretrain, not by this script.
FOREIGN = ("llama-4m", "zamba-4m", "tokenizer-4m")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=["ops", "models"])
    parser.add_argument("--any-version", action="store_true", help="run with other library versions than the pinned ones")
    args = parser.parse_args()
    found = {name: version(name) for name in PINNED}
    wrong = {n: v for n, v in found.items() if v.split("+")[0] != PINNED[n]}
    if wrong and not args.any_version:
        sys.exit(f"found {wrong}, want {PINNED}: install those, or pass --any-version")
    torch.set_num_threads(1)  # the order of additions, and so the last bit, does not depend on the machine's cores
    if args.only != "models":
        for part in (ops_attention, ops_linear, ops_scan):
            part.make(args.out / "ops")
    notes = models.make(args.out / "models") if args.only != "ops" else {}

    files = {str(p.relative_to(args.out)): {"bytes": p.stat().st_size, "sha256": sha256(p)}
             for p in sorted(args.out.rglob("*")) if p.is_file() and p.suffix in (".safetensors", ".json")
             and p.name != "manifest.json" and not p.name.startswith(FOREIGN)}
    manifest = {"format": 1, "script": "tools/golden/make.py", "versions": found,
                "seeds": "per case, in the scripts: 1000.. attention, rmsNorm, rope; 2000.. linear; 3000.. scan, conv; 4000.. models",
                "models": notes, "bytes": sum(f["bytes"] for f in files.values()), "files": files}
    (args.out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(len(files), "files", manifest["bytes"], "bytes", json.dumps(notes))


if __name__ == "__main__":
    main()
