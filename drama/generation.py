"""Text from a trained GPT: the key/value cache, weights packed for decoding, and how a token is picked.

Pure tensors, as in model.py, whose `forward` is used here too.

Shapes: B batch, T time, C channels (n_embd), H heads, D head size (C / H), V vocabulary.
"""

import contextlib
from collections import deque

import torch
import torch.nn as nn
import torch.nn.functional as F

from drama.graph import Replayed
from drama.machine import random_stream
from model import GPT, PAST, GPTConfig


class KVCache:
    """Keys and values of every layer for `size` positions, block_size at most, allocated once.

    `length` counts the positions read so far, `before` (B, PAST) holds the last tokens read. A full cache
    overwrites its oldest position. With `position`, a tensor (1,) that says where the new token stands,
    `append` returns all that is allocated, so that no shape ever changes; `mask` (1, size) then says how
    much of it counts.
    """

    def __init__(self, config: GPTConfig, batch: int, size: int | None = None, device=None, dtype=None):
        self.size = min(size or config.block_size, config.block_size)
        shape = (batch, config.n_head, self.size, config.n_embd // config.n_head)
        layers = config.n_ensemble * config.n_layer
        self.k = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.v = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.nothing = config.vocab_size
        self.before = torch.empty(batch, PAST, device=device, dtype=torch.long)
        self.position = self.mask = None
        self.empty()

    def empty(self):
        self.length = 0
        self.before.fill_(self.nothing)

    def append(self, layer: int, k, v):
        """Store k, v (B, H, T, D) in `layer`; return all that it holds, (B, H, length + T at most, D)."""
        T = k.size(2)
        kept = []
        for held, new in ((self.k[layer], k), (self.v[layer], v)):
            if self.position is not None:
                kept.append(held.index_copy_(2, self.position % self.size, new.to(held.dtype)))
            else:
                held.narrow(2, self.length % self.size, T).copy_(new)
                kept.append(held.narrow(2, 0, min(self.length + T, self.size)))
        return kept


class PackedLinear(nn.Module):
    """A linear layer for decoding: x (..., in) -> (..., out) in `dtype`, as under autocast.

    On a CPU its weight is put in oneDNN's own layout once, not again for every token: twice as fast for a
    few rows. Where oneDNN cannot do that (other processors), it is an ordinary linear layer; and so it is for
    one row in float32 on Intel's processors, which MKL multiplies 1.4 times as fast.
    """

    def __init__(self, weight, bias, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.product, self.for_one_row = F.linear, None
        if weight.device.type == "cpu":
            with contextlib.suppress(RuntimeError, AttributeError):
                packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)
                self.packed_product(self.weight[:1], packed, self.bias)
                if dtype == torch.float32 and "Intel" in torch.cpu.get_capabilities().get("cpu_name", ""):
                    self.for_one_row = self.weight
                self.weight, self.product = packed, self.packed_product

    @staticmethod
    def packed_product(x, weight, bias):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    def forward(self, x):
        if self.for_one_row is not None and x.numel() == x.size(-1):
            return F.linear(x.to(self.dtype), self.for_one_row, self.bias)
        return self.product(x.to(self.dtype), self.weight, self.bias)


def pack(model: GPT, dtype: torch.dtype) -> GPT:
    """Make the model ready to generate, with matrix products in dtype; it can no longer be trained."""
    model.lm_head = PackedLinear((model.lm_head or model.wte).weight, None, dtype)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, PackedLinear(child.weight, child.bias, dtype))
    return model.eval()


class StaticStep:
    """Decoding one token with tensors whose shapes and addresses never change: a graph on CUDA.

    choose(logits (B, V), u (B,)) picks the next tokens (B, 1).
    """

    def __init__(self, model: GPT, cache: KVCache, choose):
        self.cache, device = cache, cache.k[0].device
        self.position = position = torch.zeros(1, dtype=torch.long, device=device)
        places = torch.arange(cache.size, device=device)

        def step(token, u):  # no method: what it holds is then freed as soon as nobody decodes with it
            length, cache.position = cache.length, position
            cache.mask = (places <= position)[None]
            logits = model(token, cache=cache)[0][:, -1]
            cache.length, cache.position, cache.mask = length, None, None
            return logits, choose(logits, u)

        self.run = Replayed(step, device)

    def __call__(self, token, u):
        """Add token (B, 1) to the cache; returns the logits (B, V) after it and the tokens (B, 1) u picks.

        The next call overwrites both.
        """
        self.position.fill_(self.cache.length)
        found = self.run(token, u)
        self.cache.length += 1
        return found


@contextlib.contextmanager
def threads_for(products: int):
    """On a CPU, no more threads than so many products pay for: 300 million each.

    A token of a small model takes a millisecond. Threads that share its few products wait for each other
    longer than they multiply, and much longer beside another program.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, 1 + products // 300_000_000))
    try:
        yield
    finally:
        torch.set_num_threads(before)


DRAWN = 1024  # uniform numbers for each row, drawn at a time
SEEN = 16  # tokens that a director is shown at a time on a GPU, which waits for each look


def seen_at_a_time(director, device: torch.device) -> int:
    """How many tokens a director may be shown together: it then learns so much later that all is done."""
    return 1 if director is None or director.confines or device.type == "cpu" else SEEN


@torch.inference_mode()
def stream(
    model: GPT,
    idx,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 1337,
    first_row: int = 0,
    director=None,
    graph: bool = True,
):
    """Continue idx (B, T), T >= 1, yielding the next token of each row, (B, 1), max_new_tokens times.

    temperature 0 always takes the likeliest token. A director (scene.Director) may forbid tokens and end all
    rows sooner, on a GPU up to SEEN tokens after it could. graph=False does without a CUDA graph. For each
    token, row n draws one uniform number from the stream addressed by (seed, first_row + n), so a row does
    not depend on how many there are.
    When the cache is full (block_size positions), a rotary model forgets its oldest position for each new
    one; with learned positions, the most recent half of the context is read again and decoding goes on
    from there: a token then sees the block_size / 2 to block_size tokens before it.
    """
    B, T = idx.shape
    block_size = model.config.block_size
    draws = [random_stream(seed, first_row + n) for n in range(B)]
    half = max(1, block_size // 2)
    recent = deque(idx[:, -half:].split(1, dim=1), maxlen=half)  # tokens (B, 1)
    dtype = model.lm_head.dtype if idx.is_cuda else model.wte.weight.dtype  # packed, or in float32 on a CPU
    cache = KVCache(model.config, B, T + max_new_tokens, idx.device, dtype)

    def choose(logits, u):
        return pick(logits, u, temperature, top_k, top_p)

    static = StaticStep(model, cache, choose) if idx.is_cuda and graph else None
    weights = 12 * len(model.blocks) * model.config.n_embd**2  # of the blocks' matrices
    unread, unseen, at_a_time = idx[:, -block_size:], [], seen_at_a_time(director, idx.device)
    for i in range(max_new_tokens):
        if i % DRAWN == 0:
            uniforms = torch.stack([torch.rand(DRAWN, generator=row) for row in draws]).to(idx.device)
        u, token = uniforms[:, i % DRAWN], None
        with threads_for(weights * (B if i else idx.numel())):  # the same for all but the prompt
            if static and cache.length:
                logits, token = static(unread, u)
            else:  # prefill, or a token without a graph
                logits = model(unread, cache=cache)[0][:, -1]
        if director and director.confines:
            token = choose(director.confine(logits), u)
        else:
            token = choose(logits, u) if token is None else token.clone()
        if director:
            unseen.append(token)
            if len(unseen) == at_a_time or i == max_new_tokens - 1:
                director.saw(torch.cat(unseen, dim=1))
                unseen.clear()
        yield token
        if director and not unseen and director.done():
            return
        recent.append(token)
        unread = token
        if cache.length == block_size and model.wpe:
            cache.empty()
            unread = torch.cat([*recent], dim=1)


def generate(model: GPT, idx, max_new_tokens: int, **kwargs):
    """idx (B, T) and the max_new_tokens that `stream` continues it with, (B, T + max_new_tokens)."""
    return torch.cat([idx, *stream(model, idx, max_new_tokens, **kwargs)], dim=1)


def prompt_ids(tok, text: str, model: GPT):
    """A prompt's tokens (1, T) on the model's device. Raises UserError for characters it does not know."""
    return torch.from_numpy(tok.encode(text).astype("int64"))[None].to(model.wte.weight.device)


def pick(logits, u, temperature: float, top_k: int | None, top_p: float):
    """The token, (B, 1), at which the cumulative distribution of logits (B, V) passes u (B,), in [0, 1).

    Only the top_k likeliest tokens are kept, and of those the fewest whose probabilities add up to top_p
    (Holtzman et al., 2020, arXiv:1904.09751).
    """
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    V = logits.size(-1)
    # 0 at most, so never infinite; the least temperature that float32 can divide by
    logits = (logits.float() - logits.amax(-1, keepdim=True)) / max(temperature, 1e-30)
    if top_p == 1 and (top_k or V) >= V:
        reached = logits.softmax(-1).cumsum(-1)
        return torch.searchsorted(reached, u[:, None] * reached[:, -1:], right=True).clamp(max=V - 1)
    logits, ids = torch.topk(logits, min(top_k or V, V))  # likeliest first
    probs = logits.softmax(-1)
    reached = probs.cumsum(-1)
    kept = reached - probs < top_p  # a prefix
    kept[:, 0] = True
    total = (probs * kept).sum(-1, keepdim=True)
    choice = torch.searchsorted(reached, u[:, None] * total, right=True)
    return ids.gather(-1, choice.clamp(max=kept.sum(-1, keepdim=True) - 1))
