"""Peers of cuda.ts on the same GPU: a device copy, and PyTorch with transformers, SDPA, float16, random weights of the Llama2-7B shape.
One JSON object a line on stdout. `tiny` as the first argument tries the script itself on a CPU."""
import json, sys, time, torch
def timed(f, n=8, warm=2):
    for _ in range(warm): f()
    torch.cuda.synchronize(); out = []
    for _ in range(n):
        a = time.perf_counter(); f(); torch.cuda.synchronize(); out.append((time.perf_counter() - a) * 1e3)
    out.sort(); m = sum(out) / n
    return {'n': n, 'median': out[n // 2], 'mean': m, 'sd': (sum((x - m) ** 2 for x in out) / max(n - 1, 1)) ** 0.5}
def say(**k): print(json.dumps(k), flush=True)
import transformers
from transformers import LlamaConfig, LlamaForCausalLM
tiny = len(sys.argv) > 1 and sys.argv[1] == 'tiny'
dev = 'cpu' if tiny else 'cuda'
if not tiny:
    a = torch.empty(2 << 30, dtype=torch.uint8, device=dev); b = torch.empty_like(a)
    t = timed(lambda: b.copy_(a), 20); say(peer='device copy', milliseconds=t, gbps=2 * a.numel() / t['median'] / 1e6); del a, b
else:
    torch.cuda.synchronize = lambda: None
c = LlamaConfig(vocab_size=1000 if tiny else 32000, hidden_size=64 if tiny else 4096, intermediate_size=128 if tiny else 11008, num_hidden_layers=2 if tiny else 32, num_attention_heads=4 if tiny else 32, num_key_value_heads=4 if tiny else 32, max_position_embeddings=32768, attn_implementation='sdpa')
torch.set_default_dtype(torch.float32 if tiny else torch.float16)
with torch.device('meta'): m = LlamaForCausalLM(c)
m.to_empty(device=dev)
for p in m.parameters(): p.data.uniform_(-0.02, 0.02)
for n, buf in m.named_buffers():
    if 'inv_freq' in n: buf.copy_(1.0 / (10000 ** (torch.arange(0, buf.numel() * 2, 2, device=dev, dtype=torch.float32) / (2 * buf.numel()))))
m.eval(); v = f'torch {torch.__version__}, transformers {transformers.__version__}'
with torch.inference_mode():
    for T in ([16, 32] if tiny else [2048, 8192, 32768]):
        ids = torch.randint(0, 1000, (1, T), device=dev)
        say(peer='prefill, SDPA', tokens=T, milliseconds=timed(lambda: m(ids, use_cache=True, logits_to_keep=1), 5), versions=v)
    cache = None
    ids = torch.randint(0, 1000, (1, 16 if tiny else 512), device=dev)
    cache = m(ids, use_cache=True, logits_to_keep=1).past_key_values
    one = torch.randint(0, 1000, (1, 1), device=dev)
    say(peer='decode, eager', tokens=512, milliseconds=timed(lambda: m(one, past_key_values=cache, use_cache=True), 8), versions=v)
