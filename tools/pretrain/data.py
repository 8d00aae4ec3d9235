"""Training batches: windows of book text, some with recall passages planted in them. The recall format in one place.

A pair is two random ordinary tokens (the key) and two more (the value). It is planted as  <key> k1 k2 <value> v1 v2  and asked
for later as  <query> k1 k2 <value> v1 v2 , where v1 v2 are to be predicted. Both overwrite six tokens of the text. Token 0 of
a window is <s>; slot s covers the tokens 1 + 16 s .. 16 + 16 s; plants begin at the first token of a slot, questions at the
ninth, so the distance from the plant's <key> to the question's <query> is 16 d + 8.
"""
import numpy as np
import torch

BOS, KEY, VALUE, QUERY, FIRST_ORDINARY, VOCAB = 1, 259, 260, 261, 262, 4096
SLOT, HALF, SPAN = 16, 8, 6
ANSWER_WEIGHT = 5.0

FORMAT = {
    "special": {"<unk>": 0, "<s>": BOS, "</s>": 2, "<key>": KEY, "<value>": VALUE, "<query>": QUERY},
    "ordinaryTokens": {"from": FIRST_ORDINARY, "to": VOCAB - 1, "draw": "uniform, independent; 2 for the key, 2 for the value"},
    "plant": ["<key>", "k1", "k2", "<value>", "v1", "v2"],
    "question": ["<query>", "k1", "k2", "<value>", "v1", "v2"],
    "answer": "v1 is predicted at the question's <value>, v2 at v1 (teacher forced); right means both are the arg max",
    "place": "both overwrite 6 tokens of ordinary text; token 0 of the window is <s>; slots of 16 tokens start at token 1; "
             "a plant starts at token 0 of a slot, a question at token 8 of a slot; at most one plant and one question a slot",
    "distance": "position of <query> minus position of <key>; 16 d + 8",
    "pairs": {"1024": 12, "4096": 16, "evaluation": 8},
}


def load(path) -> torch.Tensor:
    return torch.from_numpy(np.fromfile(path, dtype=np.uint16).astype(np.int32))


def distances(shape, slots: int, generator, device, low=0, high=None):
    """Distances in slots. Training: half log-uniform, half uniform over the window; evaluation: uniform in [low, high)."""
    u = torch.rand(shape, generator=generator, device=device)
    if high is not None:
        return (low + u * (high - low)).long()
    uniform = u * (slots - 1)
    log = slots**u - 1
    return torch.where(torch.rand(shape, generator=generator, device=device) < 0.5, uniform, log).long()


def plant(tokens: torch.Tensor, pairs: int, share: float, generator, low=0, high=None):
    """tokens [B, L], changed in place, L = window + 1. Returns weights [B, L] of each token as a target, and the planted
    questions: distance [B, P] in tokens (0: pair dropped) and position of v1 [B, P]."""
    batch, length = tokens.shape
    device, slots = tokens.device, (length - 1) // SLOT
    d = distances((batch, pairs), slots, generator, device, low, high)
    key_slot = (torch.rand(batch, pairs, generator=generator, device=device) * (slots - d)).long()
    key_slot = torch.minimum(key_slot, slots - 1 - d)
    query_slot = key_slot + d
    earlier = torch.ones(pairs, pairs, device=device, dtype=torch.bool).tril(-1)
    clash = lambda s: ((s[:, :, None] == s[:, None, :]) & earlier).any(-1)
    chosen = torch.rand(batch, 1, generator=generator, device=device) < share
    used = chosen & ~clash(key_slot) & ~clash(query_slot)
    random = torch.randint(FIRST_ORDINARY, VOCAB, (batch, pairs, 4), generator=generator, device=device, dtype=tokens.dtype)
    k1, k2, v1, v2 = random.unbind(-1)
    mark = lambda token: torch.full_like(k1, token)
    span = torch.arange(SPAN, device=device)
    wide = torch.cat([tokens, torch.zeros(batch, SPAN, device=device, dtype=tokens.dtype)], dim=1)  # dropped pairs go to the tail
    weights = torch.ones(batch, length + SPAN, device=device)
    query_start = 1 + query_slot * SLOT + HALF
    for start, first in ((1 + key_slot * SLOT, KEY), (query_start, QUERY)):
        where = torch.where(used, start, length)[..., None] + span
        what = torch.stack([mark(first), k1, k2, mark(VALUE), v1, v2], dim=-1)
        wide.scatter_(1, where.view(batch, -1), what.view(batch, -1))
        weight = torch.zeros(SPAN, device=device)
        if first == QUERY:
            weight[-2:] = ANSWER_WEIGHT
        weights.scatter_(1, where.view(batch, -1), weight.expand(batch, pairs, SPAN).reshape(batch, -1))
    tokens.copy_(wide[:, :length])
    return weights[:, :length], torch.where(used, d * SLOT + HALF, 0), query_start + 4


def batch(text: torch.Tensor, step: int, seed: int, size: int, length: int, pairs: int, share: float, jump: bool):
    """The batch of a step: the same for every model. Returns ids, targets, weights [B, T] and positions [B, T]."""
    device = text.device
    generator = torch.Generator(device=device).manual_seed(seed * 1_000_003 + step)
    start = torch.randint(0, text.numel() - length - 1, (size,), generator=generator, device=device)
    tokens = text[start[:, None] + torch.arange(length + 1, device=device)].long()
    tokens[:, 0] = BOS
    weights, _, _ = plant(tokens, pairs, share, generator)
    positions = torch.arange(length, device=device).repeat(size, 1)
    if jump:  # half of the windows skip positions once, so that short windows show long distances to the rotary embedding
        cut = torch.randint(1, length, (size, 1), generator=generator, device=device)
        far = torch.randint(0, 4096 - length + 1, (size, 1), generator=generator, device=device)
        on = torch.rand(size, 1, generator=generator, device=device) < 0.5
        positions = positions + (positions >= cut) * far * on
    return tokens[:, :-1], tokens[:, 1:], weights[:, 1:], positions
