"""PyTorch's times beside ours: the copy rate of the device, and decoding of a model of Llama2-7B's shape in float16.

One JSON object a line on stdout. Decoding is the fast way that PyTorch has: products of joined projections, a static cache, layers
compiled by Inductor, the whole step as one CUDA graph; attention over the cache is scaled_dot_product_attention.
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--layers", type=int, default=32)
parser.add_argument("--hidden", type=int, default=4096)
parser.add_argument("--inner", type=int, default=11008)
parser.add_argument("--vocabulary", type=int, default=32000)
parser.add_argument("--runs", default="512x1,4096x1,16384x1,4096x32", help="context x batch")
parser.add_argument("--rounds", type=int, default=40)
parser.add_argument("--device", default="cuda")
parser.add_argument("--copy", type=int, default=2**31, help="bytes")
options = parser.parse_args()
device = torch.device(options.device)
dtype = torch.float16 if device.type == "cuda" else torch.float32
width, heads = 128, options.hidden // 128


def wait():
    if device.type == "cuda":
        torch.cuda.synchronize()


def times(run):
    for _ in range(3):
        run()
    wait()
    samples = []
    for _ in range(options.rounds):
        start = time.perf_counter()
        run()
        wait()
        samples.append((time.perf_counter() - start) * 1000)
    mean = sum(samples) / len(samples)
    sd = (sum((x - mean) ** 2 for x in samples) / max(len(samples) - 1, 1)) ** 0.5
    return {"n": len(samples), "mean": mean, "sd": sd, "median": sorted(samples)[len(samples) // 2]}


def report(**line):
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(json.dumps({**line, "device": name, "torch": torch.__version__}), flush=True)


def time_copy():
    source = torch.empty(options.copy, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    milliseconds = times(lambda: target.copy_(source))
    rate = 2 * options.copy / milliseconds["median"] / 1e6
    report(peer="copy", gigabytesPerSecond=rate, milliseconds=milliseconds)


def noise(*shape):
    return (torch.rand(*shape, device=device, dtype=dtype) - 0.5) * 0.04


def norm(x, weight):
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * weight


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat((-b, a), -1) * sin


def layer(x, weights, keys, values, cos, sin, position):
    first, qkv, out, second, gate_up, down = weights
    batch = x.shape[0]
    q, k, v = F.linear(norm(x, first), qkv).view(batch, 3, heads, 1, width).unbind(1)
    keys.index_copy_(2, position, rotate(k, cos, sin))
    values.index_copy_(2, position, v)
    o = F.scaled_dot_product_attention(rotate(q, cos, sin), keys, values)
    x = x + F.linear(o.reshape(batch, -1), out)
    gate, up = F.linear(norm(x, second), gate_up).chunk(2, -1)
    return x + F.linear(F.silu(gate) * up, down)


def time_decode(context, batch, model):
    table, layers, last, head = model
    compiled = torch.compile(layer, dynamic=False) if device.type == "cuda" else layer
    caches = [[noise(batch, heads, context + 1, width) for _ in range(2)] for _ in layers]
    angle = context * 10000 ** (-torch.arange(0, width, 2, device=device).float() / width)
    cos, sin = (torch.cat((f(angle), f(angle))).to(dtype) for f in (torch.cos, torch.sin))
    position = torch.tensor([context], device=device)
    ids = torch.ones(batch, dtype=torch.long, device=device)

    def step():
        x = F.embedding(ids, table)
        for weights, (keys, values) in zip(layers, caches):
            x = compiled(x, weights, keys, values, cos, sin, position)
        ids.copy_(F.linear(norm(x, last), head).argmax(-1))

    with torch.no_grad():
        run = step
        if device.type == "cuda":
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                for _ in range(3):
                    step()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step()
            run = graph.replay
        report(peer="decode", tokens=context, batch=batch, milliseconds=times(run))


time_copy()
model = (
    noise(options.vocabulary, options.hidden),
    [
        (
            noise(options.hidden),
            noise(3 * options.hidden, options.hidden),
            noise(options.hidden, options.hidden),
            noise(options.hidden),
            noise(2 * options.inner, options.hidden),
            noise(options.hidden, options.inner),
        )
        for _ in range(options.layers)
    ],
    noise(options.hidden),
    noise(options.vocabulary, options.hidden),
)
for run in options.runs.split(","):
    time_decode(*map(int, run.split("x")), model)
    torch._dynamo.reset()
