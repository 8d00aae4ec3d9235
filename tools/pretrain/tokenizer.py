"""Byte-fallback BPE in Llama-2's form, trained on the books, and the books as token ids.

python tokenizer.py train --text train-0.txt train-1.txt --out DIR      -> DIR/tokenizer.json
python tokenizer.py encode --tokenizer DIR/tokenizer.json --text ... --out FILE   -> raw uint16 ids
"""
import argparse
import json
import re
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

VOCAB = 4096
SPECIAL = ["<unk>", "<s>", "</s>"]  # ids 0, 1, 2
RECALL = ["<key>", "<value>", "<query>"]  # ids 259, 260, 261, after the 256 byte pieces
FIRST_ORDINARY = 262
HELD_OUT = "Moby-Dick"  # the text that the shipped program is evaluated on: never in the training text


def books(paths) -> list[str]:
    """One string a book. Every book starts with "# Title:"."""
    found = []
    for path in paths:
        text = Path(path).read_text(encoding="utf-8")
        found += [b for b in re.split(r"(?m)^(?=# Title:)", text) if b.strip()]
    return [b for b in found if HELD_OUT not in b.split("\n", 1)[0]]


def words():
    """Pieces never cross a space or a line end, so splitting there first changes nothing but the speed."""
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex("▁"), "merged_with_next"),
        pre_tokenizers.Split(Regex(r"\n+"), "isolated"),
    ])


def llama_normalizer():
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def train(texts, out: Path) -> None:
    learner = Tokenizer(models.BPE())
    learner.normalizer = llama_normalizer()
    learner.pre_tokenizer = words()
    sample = [b[: max(4000, len(b) // 8)] for b in texts]  # an eighth of every book
    learner.train_from_iterator(sample, trainers.BpeTrainer(
        vocab_size=VOCAB - FIRST_ORDINARY, limit_alphabet=110, show_progress=False, special_tokens=[]))
    learned = json.loads(learner.to_str())["model"]

    pieces = SPECIAL + [f"<0x{b:02X}>" for b in range(256)] + RECALL
    pieces += sorted(learned["vocab"], key=learned["vocab"].get)
    assert len(pieces) == VOCAB == len(set(pieces))
    added = [{"id": pieces.index(p), "content": p, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True} for p in SPECIAL + RECALL]
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    a, b = ({"Sequence": {"id": n, "type_id": 0 if n == "A" else 1}} for n in "AB")
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": None,
        "post_processor": {"type": "TemplateProcessing", "single": [bos, a],
                           "pair": [bos, a, {"SpecialToken": {"id": "<s>", "type_id": 1}}, b],
                           "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": {p: i for i, p in enumerate(pieces)}, "merges": learned["merges"]},
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")) + "\n")
    (out / "tokenizer_config.json").write_text(json.dumps({
        "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "pad_token": None, "clean_up_tokenization_spaces": False, "legacy": True, "model_max_length": 4096,
        "tokenizer_class": "PreTrainedTokenizerFast"}, indent=1) + "\n")


def fast(path) -> Tokenizer:
    """The same tokenizer with a split in front: same ids (checked in `encode`), and a cache of words."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.pre_tokenizer = words()
    return tokenizer


def encode(texts, path, out: Path, limit: int) -> None:
    quick, plain = fast(path), Tokenizer.from_file(str(path))
    for text in texts[:: max(1, len(texts) // 20)]:
        part = text[:20000]
        assert quick.encode(part).ids == plain.encode(part).ids, "splitting changed the ids"
    total = characters = 0
    with out.open("wb") as file:
        for start in range(0, len(texts), 16):
            for text, code in zip(texts[start:], quick.encode_batch(texts[start : start + 16], add_special_tokens=False)):
                file.write(np.asarray(code.ids, dtype=np.uint16).tobytes())
                total, characters = total + len(code.ids), characters + len(text.encode())
            if limit and total >= limit:
                break
    print(f"{total} tokens, {characters} bytes, {characters / total:.3f} bytes a token")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["train", "encode"])
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--tokenizer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=0, help="stop after about so many tokens")
    args = parser.parse_args()
    found = books(args.text)
    print(len(found), "books")
    train(found, args.out) if args.what == "train" else encode(found, args.tokenizer, args.out, args.limit)
