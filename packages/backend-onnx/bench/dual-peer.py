"""Peers of dual.ts on the same GPU, 32 heads of 128 in float16, one JSON object a line on stdout: PyTorch's causal attention, and
flash-linear-attention's chunked kernels of one state where Python finds that package (`fla`)."""
import json, torch
def timed(f, n=10, warm=5):
    for _ in range(warm): f()
    out = []
    for _ in range(n):
        a, b = torch.cuda.Event(True), torch.cuda.Event(True)
        a.record(); f(); b.record(); torch.cuda.synchronize(); out.append(a.elapsed_time(b))
    out.sort(); m = sum(out) / n
    return {'n': n, 'median': out[n // 2], 'mean': m, 'sd': (sum((x - m) ** 2 for x in out) / (n - 1)) ** 0.5}
def say(**k): print(json.dumps(k), flush=True)
try:
    import fla
    from fla.ops.gla import chunk_gla
    from fla.ops.simple_gla import chunk_simple_gla
except ImportError:
    fla = None
def given(tokens): return [torch.randn(1, tokens, 32, 128, device='cuda', dtype=torch.float16) for _ in range(3)]
with torch.no_grad():
    for tokens in (8192, 32768):
        a, b, c = (x.transpose(1, 2) for x in given(tokens))
        attention = torch.nn.functional.scaled_dot_product_attention
        say(peer='SDPA', tokens=tokens, milliseconds=timed(lambda: attention(a, b, c, is_causal=True)), versions=f'torch {torch.__version__}')
    for name in ('chunk_gla', 'chunk_simple_gla') if fla else ():
        for tokens in (8192, 32768):
            q, k, v = given(tokens)
            gates = (torch.nn.functional.logsigmoid(torch.randn(1, tokens, 32, 128, device='cuda') * 2 + 2) / 16).half()
            call = (lambda: chunk_gla(q, k, v, gates)) if name == 'chunk_gla' else (lambda: chunk_simple_gla(q, k, v, scalar))
            scalar = gates[..., 0].contiguous()
            say(peer=name, tokens=tokens, milliseconds=timed(call), versions=f'flash-linear-attention {fla.__version__}, torch {torch.__version__}')
