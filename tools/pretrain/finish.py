"""From trained weights to the shipped folders: python finish.py --weights DIR --tokenizer DIR --text val.txt --checkpoints DIR --golden DIR

Writes apps/harness/checkpoints/{llama-4m,zamba-4m} (float16, Hugging Face layout) and recall.json, loads both folders with
transformers, compares with the training model, and writes the golden vectors of both and of the tokenizer.
"""
import argparse
import json
import shutil
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import data
import model as definition
from evaluate import load
from tokenizer import books

COMMON = {"vocab_size": definition.VOCAB, "max_position_embeddings": definition.CONTEXT, "rms_norm_eps": definition.EPS,
          "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "attention_dropout": 0.0, "use_cache": True,
          "initializer_range": 0.02, "torch_dtype": "float16"}


def config(kind: str) -> dict:
    """In the older spelling (rope_theta, torch_dtype), which every version of transformers reads."""
    s = definition.LLAMA if kind == "llama" else definition.ZAMBA
    shared = dict(COMMON, hidden_size=s["hidden"], num_hidden_layers=s["layers"], num_attention_heads=s["heads"],
                  num_key_value_heads=s["heads"], intermediate_size=s["intermediate"])
    if kind == "llama":
        return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **shared, "head_dim": s["head_dim"],
                "hidden_act": "silu", "rope_theta": definition.THETA, "rope_scaling": None, "attention_bias": False, "mlp_bias": False}
    return {"architectures": ["ZambaForCausalLM"], "model_type": "zamba", **shared, "pad_token_id": 0, "hidden_act": "gelu",
            "hidden_mamba_act": "silu", "attention_hidden_size": 2 * s["hidden"], "attention_head_dim": s["head_dim"],
            "attn_layer_period": 6, "attn_layer_offset": 4, "n_mamba_heads": s["mamba_heads"], "mamba_d_state": s["state"],
            "mamba_d_conv": s["kernel"], "mamba_expand": 2, "mamba_dt_rank": s["rank"], "mamba_conv_bias": True,
            "mamba_proj_bias": False, "use_mamba_kernels": False}


def write_folder(folder: Path, kind: str, weights: Path, tokenizer: Path):
    folder.mkdir(parents=True, exist_ok=True)
    trained = load(kind, weights, "cpu")  # rounded to float16
    save_file({n: p.half() for n, p in trained.export().items()}, str(folder / "model.safetensors"), metadata={"format": "pt"})
    write = lambda name, value: (folder / name).write_text(json.dumps(value, indent=2) + "\n")
    write("config.json", config(kind))
    write("generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "max_length": definition.CONTEXT})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, folder / name)
    return trained


@torch.no_grad()
def check_and_vectors(folder: Path, kind: str, trained, ids: torch.Tensor, golden: Path) -> dict:
    """transformers' view of the folder; the training model must agree."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    logits = model(ids[None], use_cache=False).logits[0]
    mine = trained.head(trained(ids[None].long()))[0]
    difference = (mine - logits).abs().max().item()
    assert difference < 1e-3, difference
    line = ids[None]
    for _ in range(24):  # greedy, without a cache: nothing to get wrong
        line = torch.cat([line, model(line, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    margin = model(line, use_cache=False).logits[0, len(ids) - 1 : -1].topk(2).values
    case = {"model": folder.name, "tokens": len(ids), "positions": [len(ids) - 4, len(ids) - 1], "greedy": 24,
            "smallestGreedyMargin": (margin[:, 0] - margin[:, 1]).min().item(), "transformers": version("transformers")}
    save_file({"ids": ids.int(), "logits": logits[-4:].contiguous(), "greedy": line[0, len(ids):].int()},
              str(golden / "models" / f"{folder.name}.vectors.safetensors"), metadata={"case": json.dumps(case)})
    return {"model": folder.name, "bytes": (folder / "model.safetensors").stat().st_size, "parameters": sum(p.numel() for p in model.parameters()),
            "largestDifferenceFromTransformers": difference, "largestLogit": logits.abs().max().item(), **case}


STRINGS = ["", " ", "Hello", " Hello", "Hello world", "Hello  world", "   three spaces", "trailing space ", "two trailing  ", "\n", "\n\n",
           "a\nb", "line one\nline two\n\nline four", "\tTab", "tab\tinside", "Call me Ishmael. Some years ago—never mind how long precisely—",
           "“Curly quotes”, ‘single’ and … dots", "1234567890", "3.14159 and 2,000", "naïve café œuvre", "e\u0301 combining", "日本語テキスト",
           "Привет, мир", "🙂", "family 👨‍👩‍👧 here", "flag 🇩🇪", "zero\u200bwidth", "\u00a0no-break space", "<s>", "<s>text</s>", "a <key> b", "<key>ab<value>cd",
           "<query>k<value>", "<unk>", "<0x0A>", "# Title: A Book\n\n## Author: Nobody", "ALL CAPS AND lower", "don't can't won't", "x" * 40, "▁under▁score", "nul \u0000 end"]


def tokenizer_vectors(folder: Path, golden: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    other, rows = AutoTokenizer.from_pretrained(folder), []
    for text in STRINGS:
        code = tokenizer.encode(text)
        assert code.ids == other(text)["input_ids"], text
        rows.append({"text": text, "ids": code.ids, "tokens": code.tokens, "decoded": tokenizer.decode(code.ids),
                     "decodedWithSpecial": tokenizer.decode(code.ids, skip_special_tokens=False)})
    (golden / "models" / "tokenizer-4m.json").write_text(json.dumps(
        {"tokenizers": version("tokenizers"), "tokenizer": "llama-4m and zamba-4m (the same file)",
         "note": "ids start with <s> (1); decoded skips special tokens", "cases": rows}, ensure_ascii=False, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("weights", "tokenizer", "text", "checkpoints", "golden", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    args = parser.parse_args()
    opening = books([args.text])[1]
    ids = torch.tensor(Tokenizer.from_file(str(args.tokenizer / "tokenizer.json")).encode(opening[:2000]).ids[:64])
    found = []
    for kind in ("llama", "zamba"):
        folder = args.checkpoints / f"{kind}-4m"
        trained = write_folder(folder, kind, args.weights, args.tokenizer)
        found.append(check_and_vectors(folder, kind, trained, ids, args.golden))
    tokenizer_vectors(args.checkpoints / "llama-4m", args.golden)
    (args.checkpoints / "recall.json").write_text(json.dumps(data.FORMAT, indent=2) + "\n")
    total = sum(p.stat().st_size for p in args.checkpoints.rglob("*") if p.is_file())
    args.out.write_text(json.dumps({"models": found, "bytesInAll": total}, indent=1) + "\n")
    print(json.dumps(found, indent=1), total)


if __name__ == "__main__":
    main()
