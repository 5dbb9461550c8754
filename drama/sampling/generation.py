"""Text from a trained GPT: a prompt is read (prefill), then one token at a time is decoded and picked.

Pure tensors, as in model.py, whose `forward` is used here too. Shapes: B batch, T time, V vocabulary.
"""

from collections import deque
from dataclasses import dataclass
from threading import Lock

import torch

from drama.cuda_graph import CudaGraph
from drama.device import random_stream
from drama.sampling.packed import KVCache
from model import GPT


@dataclass(frozen=True)
class Sampling:
    """How the next token is picked from the model's probabilities."""

    temperature: float = 1.0  # 0 always takes the likeliest
    top_k: int = 0  # keep the k likeliest tokens; 0: all
    top_p: float = 1.0  # keep the likeliest tokens that add up to this probability
    min_p: float = 0.0  # keep tokens at least this likely, relative to the likeliest
    seed: int = 1337


def pick(logits, u, sampling: Sampling):
    """The token, (B, 1), at which the cumulative distribution of logits (B, V) passes u (B,), in [0, 1).

    Of the top_k likeliest tokens, the fewest are kept whose probabilities add up to top_p (Holtzman et al.,
    2020, arXiv:1904.09751), and of those what is at least min_p times as likely as the likeliest (Nguyen et
    al., 2024, arXiv:2407.01082).
    """
    s, V = sampling, logits.size(-1)
    if s.temperature == 0:
        return logits.argmax(-1, keepdim=True)
    top_k = min(s.top_k or V, V)
    # 0 at most, so never infinite; the least temperature that float32 can divide by
    logits = (logits.float() - logits.amax(-1, keepdim=True)) / max(s.temperature, 1e-30)
    if s.top_p == 1 and s.min_p == 0 and top_k == V:
        reached = logits.softmax(-1).cumsum(-1)
        return torch.searchsorted(reached, u[:, None] * reached[:, -1:], right=True).clamp(max=V - 1)
    logits, ids = torch.topk(logits, top_k)  # likeliest first
    probs = logits.softmax(-1)
    reached = probs.cumsum(-1)
    kept = (reached - probs < s.top_p) & (probs >= s.min_p * probs[:, :1])  # a prefix
    kept[:, 0] = True
    total = (probs * kept).sum(-1, keepdim=True)
    choice = torch.searchsorted(reached, u[:, None] * total, right=True)
    return ids.gather(-1, choice.clamp(max=kept.sum(-1, keepdim=True) - 1))


class Threads:
    """Within, on a CPU, no more threads than so many products pay for: 300 million each.

    A token of a small model takes a millisecond. Threads that share its few products wait for each other
    longer than they multiply, and much longer beside another program. PyTorch's number of threads is the
    whole process's: where several texts are written at a time, it is restored to what it was before them.
    """

    lock, inside, before = Lock(), 0, 1

    def __init__(self, products: int):
        self.most = 1 + products // 300_000_000

    def __enter__(self):
        with Threads.lock:
            if not Threads.inside:
                Threads.before = torch.get_num_threads()
            Threads.inside += 1
            torch.set_num_threads(min(Threads.before, self.most))

    def __exit__(self, *exception):
        with Threads.lock:
            Threads.inside -= 1
            torch.set_num_threads(Threads.before)


def prefill(model: GPT, idx, cache: KVCache):
    """Read idx (B, T) into the cache; returns the logits (B, V) of what follows."""
    products = 12 * len(model.blocks) * model.config.n_embd**2  # of the blocks' matrices, for a token
    with Threads(products * idx.numel()):
        return model(idx, cache=cache)[0][:, -1]


class GraphDecode:
    """Decoding as one CUDA graph, which needs tensors whose shapes and addresses never change."""

    def __init__(self, model: GPT, cache: KVCache, sampling: Sampling):
        self.cache, device = cache, cache.before.device
        self.position = position = torch.zeros(1, dtype=torch.long, device=device)
        positions = torch.arange(cache.size, device=device)

        def step(token, u):  # no method: what it holds is then freed as soon as nobody decodes with it
            length, cache.position = cache.length, position
            cache.mask = (positions <= position)[None]
            try:
                logits = model(token, cache=cache)[0][:, -1]
                return logits, pick(logits, u, sampling)
            finally:  # a recording may fail
                cache.length, cache.position, cache.mask = length, None, None

        self.graph = CudaGraph(step, lambda: [cache.before], device)

    def __call__(self, token, u):
        """Add token (B, 1) to the cache; returns the logits (B, V) after it and the token (B, 1) u picks.

        The next call overwrites the logits.
        """
        self.position.fill_(self.cache.length)
        logits, token = self.graph(token, u)
        self.cache.length += 1
        return logits, token.clone()


DRAWN = 1024  # uniform numbers for each row, drawn at a time


def uniforms(seed: int, rows: range, device):
    """Yield u (B,) without end: row n's numbers are from the stream addressed by (seed, n)."""
    streams = [random_stream(seed, row) for row in rows]
    while True:
        drawn = torch.stack([torch.rand(DRAWN, generator=stream) for stream in streams]).to(device)
        yield from drawn.unbind(1)


SEEN = 16  # tokens that a director is shown at a time on a GPU, which waits for each look


def seen_at_a_time(director, device: torch.device) -> int:
    """How many tokens a director may be shown together: it then learns so much later that all is done."""
    return 1 if director is None or director.confines or device.type == "cpu" else SEEN


@torch.inference_mode()
def stream(
    model: GPT,
    idx,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    director=None,
    first_row: int = 0,
    graph: bool = True,
):
    """Continue idx (B, T), T >= 1, yielding the next token of each row, (B, 1), max_new_tokens times.

    A director (cast.Director) may forbid tokens and end all rows sooner, on a GPU up to SEEN tokens after it
    could. graph=False does without a CUDA graph. Row n draws from (seed, first_row + n), so a row does not
    depend on how many there are. When the cache is full (block_size positions), a rotary model forgets its
    oldest position for each new one; with learned positions, the most recent half of the context is read
    again: a token then sees the block_size / 2 to block_size tokens before it.
    """
    B, T = idx.shape
    block_size = model.config.block_size
    half = max(1, block_size // 2)
    recent = deque(idx[:, -half:].split(1, dim=1), maxlen=half)  # tokens (B, 1)
    dtype = model.lm_head.dtype if idx.is_cuda else model.wte.weight.dtype  # packed, or in float32 on a CPU
    cache = KVCache(model.config, B, T + max_new_tokens, idx.device, dtype)
    decode = GraphDecode(model, cache, sampling) if graph and idx.is_cuda else None
    draw = uniforms(sampling.seed, range(first_row, first_row + B), idx.device)
    confined = director is not None and director.confines
    unread, unseen, at_a_time = idx[:, -block_size:], [], seen_at_a_time(director, idx.device)
    for n in range(1, max_new_tokens + 1):
        u, token = next(draw), None
        if decode and cache.length:
            logits, token = decode(unread, u)
        else:
            logits = prefill(model, unread, cache)
        if confined:
            token = pick(director.confine(logits), u, sampling)
        elif token is None:
            token = pick(logits, u, sampling)
        if director:
            unseen.append(token)
            if len(unseen) == at_a_time or n == max_new_tokens:
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


def generate(model: GPT, idx, max_new_tokens: int, *args, **kwargs):
    """idx (B, T) and the max_new_tokens that `stream` continues it with, (B, T + max_new_tokens)."""
    return torch.cat([idx, *stream(model, idx, max_new_tokens, *args, **kwargs)], dim=1)


def prompt_ids(tok, text: str, model: GPT):
    """A prompt's tokens (1, T) on the model's device. Raises UserError for characters it does not know."""
    return torch.from_numpy(tok.encode(text).astype("int64"))[None].to(model.wte.weight.device)
