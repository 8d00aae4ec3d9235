"""PyTorch's times beside ours: products, causal attention, whole prefills and the copy rate, in float16 by the device's own clock.

One JSON object a line on stdout; the shapes are Llama2-7B's. flash-linear-attention is timed too where it is installed.
"""

import argparse
import importlib.util
import json

import torch
import torch.nn.functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--tokens", default="4096,8192,32768")
parser.add_argument("--items", default="4096,8192")
parser.add_argument("--prefill", default="", help="tokens of prefills of the whole model, with random weights")
parser.add_argument("--layers", type=int, default=32)
parser.add_argument("--vocabulary", type=int, default=32000)
parser.add_argument("--rounds", type=int, default=10)
parser.add_argument("--device", default="cuda")
parser.add_argument("--hidden", type=int, default=4096)
parser.add_argument("--inner", type=int, default=11008)
options = parser.parse_args()
on_gpu = options.device == "cuda"
dtype = torch.float16 if on_gpu else torch.float32
heads, width = options.hidden // 128, 128


def milliseconds(run):
    """The shortest of some rounds after two to warm up."""
    if not on_gpu:
        run()
        return 0.0
    found = []
    for _ in range(options.rounds + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end))
    return min(found[2:])


def report(**line):
    name = torch.cuda.get_device_name() if on_gpu else "cpu"
    print(json.dumps({**line, "device": name, "torch": torch.__version__}), flush=True)


def rand(*shape):
    return torch.randn(*shape, device=options.device, dtype=dtype)


for items in map(int, options.items.split(",")):
    for inputs, outputs in (
        (options.hidden, options.hidden),
        (options.hidden, options.inner),
        (options.inner, options.hidden),
    ):
        x, w = rand(items, inputs), rand(outputs, inputs)
        took = milliseconds(lambda: F.linear(x, w))
        rate = 2 * items * inputs * outputs / max(took, 1e-9) / 1e9
        report(peer="cuBLAS", operator=f"product {inputs} to {outputs}", tokens=items, milliseconds=took, teraflops=rate)
for tokens in map(int, options.tokens.split(",")):
    q, k, v = (rand(1, heads, tokens, width) for _ in range(3))
    took = milliseconds(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))
    report(peer="SDPA", operator="attention", tokens=tokens, milliseconds=took)
    if importlib.util.find_spec("fla") is None:
        continue
    from fla.ops.gla import chunk_gla

    q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    gates = F.logsigmoid(rand(1, tokens, heads, width).float())
    took = milliseconds(lambda: chunk_gla(q, k, v, gates))
    report(peer="chunk_gla", operator="gated linear attention", tokens=tokens, milliseconds=took)
source = torch.empty(2**31 if on_gpu else 2**20, dtype=torch.uint8, device=options.device)
target = torch.empty_like(source)
took = milliseconds(lambda: target.copy_(source))
report(peer="copy", milliseconds=took, gigabytesPerSecond=2 * source.numel() / max(took, 1e-9) / 1e6)


class Layer:
    """One layer of a Llama as transformers has it: seven products, rotation, SDPA."""

    def __init__(self):
        h, i = options.hidden, options.inner
        self.q, self.k, self.v, self.o = (rand(h, h) * 0.02 for _ in range(4))
        self.gate, self.up, self.down = rand(i, h) * 0.02, rand(i, h) * 0.02, rand(h, i) * 0.02
        self.norms = torch.ones(2, h, device=options.device, dtype=dtype)

    def __call__(self, x, cos, sin):
        y = F.rms_norm(x, (options.hidden,), self.norms[0])
        q, k, v = (F.linear(y, w).view(1, -1, heads, width).transpose(1, 2) for w in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(turn(q, cos, sin), turn(k, cos, sin), v, is_causal=True)
        x = x + F.linear(y.transpose(1, 2).reshape(x.shape), self.o)
        y = F.rms_norm(x, (options.hidden,), self.norms[1])
        return x + F.linear(F.silu(F.linear(y, self.gate)) * F.linear(y, self.up), self.down)


def turn(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


lengths = [int(n) for n in options.prefill.split(",") if n]
if lengths:
    layers, head = [Layer() for _ in range(options.layers)], rand(options.vocabulary, options.hidden) * 0.02
    rates = 10000.0 ** (-torch.arange(0, width, 2, device=options.device) / width)
for tokens in lengths:
    x = rand(1, tokens, options.hidden)
    angles = torch.outer(torch.arange(tokens, device=options.device), rates).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def prefill():
        y = x
        for layer in layers:
            y = layer(y, cos, sin)
        return F.linear(y[:, -1], head)

    with torch.inference_mode():
        report(peer="PyTorch", operator="prefill", tokens=tokens, milliseconds=milliseconds(prefill))
