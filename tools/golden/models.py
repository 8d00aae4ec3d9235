"""Small Llama and Zamba checkpoints with random weights, written by transformers, and what transformers computes with them."""
import json
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, ZambaConfig, ZambaForCausalLM

from common import Draw, save

LLAMA = dict(vocab_size=97, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
             intermediate_size=88, rms_norm_eps=1e-5, max_position_embeddings=4096, tie_word_embeddings=False,
             bos_token_id=1, eos_token_id=2, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 512}
ZAMBA_A = dict(vocab_size=101, hidden_size=48, num_hidden_layers=9, num_attention_heads=4, num_key_value_heads=4,
               intermediate_size=120, n_mamba_heads=2, mamba_d_state=16, mamba_d_conv=4, mamba_dt_rank="auto",
               max_position_embeddings=4096, use_mamba_kernels=False)
ZAMBA_B = dict(ZAMBA_A, hidden_size=24, num_hidden_layers=15, num_attention_heads=4, num_key_value_heads=4,
               intermediate_size=44, n_mamba_heads=4, mamba_d_state=5, mamba_dt_rank=3)

CASES = {
    "llama-base": (LlamaConfig, LLAMA),
    "llama-gqa": (LlamaConfig, dict(LLAMA, hidden_size=60, num_attention_heads=6, num_key_value_heads=2, head_dim=8)),
    "llama3-rope": (LlamaConfig, dict(LLAMA, hidden_size=32, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
                                      rope_parameters=LLAMA3)),
    "llama-tied": (LlamaConfig, dict(LLAMA, hidden_size=32, num_hidden_layers=1, tie_word_embeddings=True)),
    "llama-sharded-bf16": (LlamaConfig, LLAMA),
    "zamba-a": (ZambaConfig, ZAMBA_A),
    "zamba-b": (ZambaConfig, ZAMBA_B),
}
MODEL = {LlamaConfig: LlamaForCausalLM, ZambaConfig: ZambaForCausalLM}
PREFILL, STEPS = 13, 5


def randomise(model, draw: Draw) -> None:
    """Every parameter: library defaults (ones, zeros, equal rows) would hide layout errors."""
    for name, p in model.named_parameters():
        shape = tuple(p.shape)
        if "norm" in name:
            x = draw.normal(*shape, std=0.1, mean=1.0)
        elif name.endswith("A_log"):
            x = draw.uniform(*shape, low=-0.7, high=2.7)
        elif name.endswith("dt_proj_bias"):
            x = draw.uniform(*shape, low=-3.0, high=0.0)
        elif name.endswith(".D"):
            x = draw.normal(*shape, std=0.3, mean=1.0)
        elif "conv1d" in name:
            x = draw.normal(*shape, std=0.5 if name.endswith("weight") else 0.2)
        elif "embed_tokens" in name:
            x = draw.normal(*shape, std=0.2)
        else:  # linear maps: [out, in]
            x = draw.normal(*shape, std=shape[-1] ** -0.5)
        p.data.copy_(x)


@torch.no_grad()
def run(model, ids: torch.Tensor, cache=None, hidden: list | None = None):
    """ids [T] -> logits [T, vocab] and the cache. `hidden` collects embedding, every layer, final norm: [T, hidden]."""
    inner = model.model
    norm = inner.norm if hasattr(inner, "norm") else inner.final_layernorm
    keep = lambda _m, _i, o: hidden.append((o[0] if isinstance(o, tuple) else o).view(len(ids), -1).clone())
    hooks = [m.register_forward_hook(keep) for m in (inner.embed_tokens, *inner.layers, norm)] if hidden is not None else []
    out = model(input_ids=ids[None], past_key_values=cache, use_cache=True)
    for hook in hooks:
        hook.remove()
    return out.logits[0], out.past_key_values


def states(model, cache) -> dict:
    """k.<l>, v.<l> [kvHeads, T, hd]; conv.<l> [channels, 3]; scan.<l> [heads, headDim, N]."""
    found = {}
    for index, layer in enumerate(cache.layers):
        keys = getattr(layer, "keys", None)
        if keys is not None and keys.numel():
            found[f"k.{index}"], found[f"v.{index}"] = keys[0], layer.values[0]
        if getattr(layer, "conv_states", None):
            found[f"conv.{index}"] = layer.conv_states[0][0][:, -3:]  # the library keeps 4: the oldest is not needed
            found[f"scan.{index}"] = layer.recurrent_states[0][0]
    return found


def vectors(model, ids: torch.Tensor) -> dict:
    hidden = []
    logits, cache = run(model, ids, hidden=hidden)
    tensors = {"ids": ids, "logits": logits, **states(model, cache)}
    layers = len(model.model.layers)
    for index, x in enumerate(hidden):
        tensors["hidden." + ("embed" if index == 0 else "norm" if index == layers + 1 else str(index - 1))] = x
    first, cache = run(model, ids[:PREFILL])
    tensors["prefill.logits"] = first
    near = 1e-5 * logits.abs().max().clamp(min=1)
    assert (first - logits[:PREFILL]).abs().max() < near
    for step in range(STEPS):
        row, cache = run(model, ids[PREFILL + step : PREFILL + step + 1], cache)
        tensors[f"decode.{step}.logits"] = row[0]
        assert (row[0] - logits[PREFILL + step]).abs().max() < near, "one pass and steps differ"
    return tensors


def make_case(out: Path, name: str, number: int) -> dict:
    kind, settings = CASES[name]
    draw = Draw(4000 + (0 if name == "llama-sharded-bf16" else number))
    config = kind(**settings)
    config._attn_implementation = "eager"
    model = MODEL[kind](config).eval()
    randomise(model, draw)
    folder = out / name
    sharded = name == "llama-sharded-bf16"
    model.to(torch.bfloat16 if sharded else torch.float32)
    model.save_pretrained(folder, **({"max_shard_size": "40KB"} if sharded else {}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    model = MODEL[kind].from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()  # what is on disk

    ids = draw.ids(18, config.vocab_size)
    tensors = vectors(model, ids)
    if name == "llama3-rope":
        far = draw.ids(1500, config.vocab_size)
        rotary = model.model.rotary_emb
        positions = torch.tensor([0, 1, 7, 511, 512, 1499])
        cos, sin = rotary(torch.zeros(1), positions[None])
        tensors |= {"far.ids": far, "far.logits": run(model, far)[0][-4:], "inv_freq": rotary.inv_freq,
                    "positions": positions, "cos": cos[0], "sin": sin[0]}
    exact = MODEL[kind].from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    noise = (run(exact, ids)[0] - tensors["logits"]).abs().max().item()
    case = {"model": name, "tokens": 18, "prefill": PREFILL, "steps": STEPS, "float32Noise": noise}
    save(folder / "vectors.safetensors", case, tensors)
    return {"float32Noise": noise, "shards": len(list(folder.glob("model*.safetensors"))),
            "hybrids": [int(n[2:]) for n in tensors if n.startswith("k.")]}


def make(out: Path) -> dict:
    return {name: make_case(out, name, number) for number, name in enumerate(CASES)}
