"""Mamba-1 selective scan for training: a Triton kernel that walks the tokens in order, and the plain loop it must equal.

h_t = exp(dt_t a) h_{t-1} + dt_t x_t b_t,   y_t = sum_n c_t h_t.
Shapes: x, dt, y [B, T, C]; b, c [B, T, H, N]; a [C, N] (negative); channel i belongs to head i // (C // H).
One program owns one sequence and BLOCK channels and keeps their states [BLOCK, N] in registers. The forward writes every
state (bfloat16 or float32, as told), so that the backward only reads them from the last token to the first.
"""
import torch
import triton
import triton.language as tl

BLOCK = 16
STATE = torch.bfloat16  # type of the states kept for the backward


def scan_loop(x, dt, b, c, a):
    """The definition, for checks and for machines without a GPU."""
    batch, count, channels = x.shape
    heads = b.shape[2]
    state = torch.zeros(batch, channels, a.shape[1], dtype=a.dtype, device=x.device)
    out = []
    for t in range(count):
        bt, ct = (z[:, t].repeat_interleave(channels // heads, dim=1) for z in (b, c))  # [B, C, N]
        state = torch.exp(dt[:, t, :, None] * a) * state + (dt[:, t] * x[:, t])[..., None] * bt
        out.append((state * ct).sum(-1))
    return torch.stack(out, dim=1)


@triton.jit
def forward_kernel(x, dt, b, c, a, y, states, count, C: tl.constexpr, H: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = block * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, N)
    head = block * BLOCK // (C // H)
    rate = tl.load(a + channel[:, None] * N + n[None, :])
    base, narrow = row * count * C, row * count * H * N + head * N
    h = tl.zeros([BLOCK, N], dtype=tl.float32)
    # Inputs of the next token are loaded one step ahead, to hide their latency.
    xt = tl.load(x + base + channel).to(tl.float32)
    dtt = tl.load(dt + base + channel)
    bt = tl.load(b + narrow + n)
    ct = tl.load(c + narrow + n)
    for t in range(count):
        ahead = tl.minimum(t + 1, count - 1)
        x_next = tl.load(x + base + ahead * C + channel).to(tl.float32)
        dt_next = tl.load(dt + base + ahead * C + channel)
        b_next = tl.load(b + narrow + ahead * H * N + n)
        c_next = tl.load(c + narrow + ahead * H * N + n)
        h = tl.exp(dtt[:, None] * rate) * h + (dtt * xt)[:, None] * bt[None, :]
        tl.store(y + base + t * C + channel, tl.sum(h * ct[None, :], axis=1))
        tl.store(states + (base + t * C) * N + channel[:, None] * N + n[None, :], h.to(states.dtype.element_ty))
        xt, dtt, bt, ct = x_next, dt_next, b_next, c_next


@triton.jit
def backward_kernel(x, dt, b, c, a, states, dy, dx, ddt, db, dc, da, count,
                    C: tl.constexpr, H: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = block * BLOCK + tl.arange(0, BLOCK)
    n = tl.arange(0, N)
    head = block * BLOCK // (C // H)
    rate = tl.load(a + channel[:, None] * N + n[None, :])
    base, narrow = row * count * C, row * count * H * N + head * N
    wide = channel[:, None] * N + n[None, :]
    part = row * count * (C // BLOCK) * N + block * N  # db, dc [B, T, blocks, N]: summed over a head's blocks outside
    g = tl.zeros([BLOCK, N], dtype=tl.float32)  # gradient of h_t that comes from later tokens
    rate_sum = tl.zeros([BLOCK, N], dtype=tl.float32)
    last = count - 1
    h = tl.load(states + (base + last * C) * N + wide).to(tl.float32)
    xt = tl.load(x + base + last * C + channel).to(tl.float32)
    dtt = tl.load(dt + base + last * C + channel)
    dyt = tl.load(dy + base + last * C + channel).to(tl.float32)
    bt = tl.load(b + narrow + last * H * N + n)
    ct = tl.load(c + narrow + last * H * N + n)
    for step in range(count):
        t = last - step
        back = tl.maximum(t - 1, 0)
        h_back = tl.load(states + (base + back * C) * N + wide).to(tl.float32)
        x_back = tl.load(x + base + back * C + channel).to(tl.float32)
        dt_back = tl.load(dt + base + back * C + channel)
        dy_back = tl.load(dy + base + back * C + channel).to(tl.float32)
        b_back = tl.load(b + narrow + back * H * N + n)
        c_back = tl.load(c + narrow + back * H * N + n)
        h_back = tl.where(t > 0, h_back, 0.0)
        g += dyt[:, None] * ct[None, :]
        decay = tl.exp(dtt[:, None] * rate)
        tl.store(dc + part + t * (C // BLOCK) * N + n, tl.sum(dyt[:, None] * h, axis=0))
        tl.store(db + part + t * (C // BLOCK) * N + n, tl.sum(g * (dtt * xt)[:, None], axis=0))
        gb = tl.sum(g * bt[None, :], axis=1)
        ga = g * h_back * decay  # gradient of dt * a
        tl.store(dx + base + t * C + channel, gb * dtt)
        tl.store(ddt + base + t * C + channel, gb * xt + tl.sum(ga * rate, axis=1))
        rate_sum += ga * dtt[:, None]
        g = g * decay
        h, xt, dtt, dyt, bt, ct = h_back, x_back, dt_back, dy_back, b_back, c_back
    tl.store(da + row * C * N + wide, rate_sum)


@torch.library.custom_op("dsla::scan", mutates_args=())
def scan_forward(x: torch.Tensor, dt: torch.Tensor, b: torch.Tensor, c: torch.Tensor, a: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x, dt, b, c, a = (z.contiguous() for z in (x, dt, b, c, a))
    batch, count, channels = x.shape
    heads, n = b.shape[2:]
    y = torch.empty(batch, count, channels, device=x.device, dtype=torch.float32)
    states = torch.empty(batch, count, channels, n, device=x.device, dtype=STATE)
    forward_kernel[(batch, channels // BLOCK)](x, dt, b, c, a, y, states, count, channels, heads, n, BLOCK, num_warps=1)
    return y, states


@scan_forward.register_fake
def _(x, dt, b, c, a):
    return (x.new_empty(x.shape, dtype=torch.float32), x.new_empty((*x.shape, a.shape[1]), dtype=STATE))


@torch.library.custom_op("dsla::scan_backward", mutates_args=())
def scan_backward(x: torch.Tensor, dt: torch.Tensor, b: torch.Tensor, c: torch.Tensor, a: torch.Tensor, states: torch.Tensor,
                  dy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    x, dt, b, c, a, dy = (z.contiguous() for z in (x, dt, b, c, a, dy))
    batch, count, channels = x.shape
    heads, n = b.shape[2:]
    blocks = channels // BLOCK
    dx, ddt = torch.empty_like(dt), torch.empty_like(dt)
    db = torch.empty(batch, count, blocks, n, device=x.device, dtype=torch.float32)
    dc = torch.empty_like(db)
    da = torch.empty(batch, channels, n, device=x.device, dtype=torch.float32)
    backward_kernel[(batch, blocks)](x, dt, b, c, a, states, dy, dx, ddt, db, dc, da, count, channels, heads, n, BLOCK, num_warps=1)
    per_head = lambda z: z.view(batch, count, heads, blocks // heads, n).sum(3)
    return dx.to(x.dtype), ddt, per_head(db), per_head(dc), da.sum(0)


@scan_backward.register_fake
def _(x, dt, b, c, a, states, dy):
    return tuple(torch.empty_like(z, memory_format=torch.contiguous_format) for z in (x, dt, b, c, a))


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx, dy, _states):
    x, dt, b, c, a, states = ctx.saved_tensors
    return scan_backward(x, dt, b, c, a, states, dy)


scan_forward.register_autograd(_backward, setup_context=_keep)


def scan(x, dt, b, c, a):
    """x in any float type, the rest float32; y float32."""
    return scan_forward(x, dt, b, c, a)[0] if x.is_cuda else scan_loop(x, dt, b, c, a)


def check(device: str, batch=3, count=37, channels=64, heads=2, n=16) -> dict:
    """Largest error against autograd on the loop in float64, relative to the largest entry, states kept in float32."""
    global STATE
    kept, STATE = STATE, torch.float32
    generator = torch.Generator().manual_seed(7)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)
    inputs = [draw(batch, count, channels), torch.nn.functional.softplus(draw(batch, count, channels) - 1),
              draw(batch, count, heads, n), draw(batch, count, heads, n), -torch.exp(draw(channels, n))]
    dy = draw(batch, count, channels)
    exact = [z.clone().requires_grad_(True) for z in inputs]
    want_y = scan_loop(*exact)
    want = [want_y.detach(), *torch.autograd.grad((want_y * dy).sum(), exact)]
    mine = [z.float().to(device).requires_grad_(True) for z in inputs]
    y = scan_forward(*mine)[0]
    got = [y.detach(), *torch.autograd.grad((y * dy.float().to(device)).sum(), mine)]
    STATE = kept
    errors = {name: ((g.cpu().double() - w).abs().max() / w.abs().max()).item()
              for name, g, w in zip(["y", "dx", "ddt", "db", "dc", "da"], got, want)}
    assert max(errors.values()) < 1e-4, errors
    return errors


def timing(device: str, shapes=((64, 1024), (32, 4096)), channels=384, heads=2, n=16) -> dict:
    """Milliseconds of one forward and one backward, by block width."""
    global BLOCK
    kept, found = BLOCK, {}
    for batch, count in shapes:
        x = torch.randn(batch, count, channels, device=device, dtype=torch.bfloat16)
        dt = torch.rand(batch, count, channels, device=device)
        b, c = (torch.randn(batch, count, heads, n, device=device) for _ in range(2))
        a = -torch.rand(channels, n, device=device) * 8
        for BLOCK in (8, 16, 32):
            y, states = scan_forward(x, dt, b, c, a)
            both = (triton.testing.do_bench(lambda: scan_forward(x, dt, b, c, a), warmup=10, rep=60, return_mode="median"),
                    triton.testing.do_bench(lambda: scan_backward(x, dt, b, c, a, states, y), warmup=10, rep=60, return_mode="median"))
            found[f"{batch}x{count} block {BLOCK}"] = [round(v, 3) for v in both]
    BLOCK = kept
    return found


if __name__ == "__main__":
    import sys

    device = sys.argv[1] if len(sys.argv) > 1 else "cuda"
    print(check(device))
    if device == "cuda":
        print(timing(device))
