"""The GPT: its layers in the order data meets them, and its loss.

arch="gpt2" is GPT-2's (Radford et al., 2019, "Language Models are Unsupervised Multitask Learners"): learned
positions, pre-norm blocks, GELU, one matrix for token embedding and output head. arch="modern" learns the
same text in fewer iterations: embeddings of the last four tokens at every position, which every block sees
anew, rotary positions, normalised queries and keys, squared ReLU, norms without weights, an output head of
its own, that and the residual projections zero at the start, and dropout everywhere but on attention.
With match above 0, a position also starts from what followed when the text before it last stood there.
With n_ensemble above 1, that many stacks of blocks stand side by side between the same embeddings and head:
each learns to predict by itself, and their predictions are averaged.
Pure tensors: nothing here reads a file, prints, or imports another file of this project.

Shapes: B batch, T time, C channels (n_embd), H heads, D head size (C / H), V vocabulary.
"""

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin

import torch
import torch.nn as nn
import torch.nn.functional as F

MOST_BLOCKS = 1_000  # a damaged file may claim any number
PAST = 3  # tokens before its own whose embeddings a position of a modern model starts from
PLACES = 1 << 16  # a match is ranked by length * PLACES + place


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a model. Raises ValueError, with one line, for a shape that cannot be built."""

    block_size: int = 256
    vocab_size: int = 65
    n_layer: int = 6
    n_ensemble: int = 1  # stacks of n_layer blocks side by side
    n_head: int = 6
    n_embd: int = 384
    dropout: float = 0.2
    bias: bool = False  # biases in Linear and LayerNorm, as GPT-2 has them; none is a bit better and faster
    arch: Literal["gpt2", "modern"] = "gpt2"
    match: int = 0  # modern: positions see what followed an earlier match of so many tokens, or of fewer
    gelu: Literal["exact", "tanh"] = "exact"  # tanh: the approximation that OpenAI trained GPT-2 with

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            least = int(field.name != "match")
            if field.type is int and (type(value) is not int or value < least):
                raise ValueError(f"{field.name}={value!r} is not a whole number of at least {least}")
            if get_origin(field.type) is Literal and value not in get_args(field.type):
                raise ValueError(f"{field.name}={value!r} is none of {', '.join(get_args(field.type))}")
        if self.n_layer * self.n_ensemble > MOST_BLOCKS:
            raise ValueError(f"n_layer={self.n_layer} is too much: {MOST_BLOCKS:,} blocks are the most")
        if self.match and self.arch != "modern":
            raise ValueError(f"match={self.match} needs arch=modern")
        if self.match and 2 * self.block_size + self.match > PLACES:  # of a text with what is before it
            raise ValueError(f"match={self.match} needs block_size={(PLACES - self.match) // 2:,} at most")
        if type(self.bias) is not bool:
            raise ValueError(f"bias={self.bias!r} is neither True nor False")
        if not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout!r} is not at least 0 and below 1")
        if self.n_embd % self.n_head:
            nearest = math.ceil(self.n_embd / self.n_head) * self.n_head
            sizes = f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}"
            raise ValueError(f"{sizes}; try n_embd={nearest}")
        if self.arch == "modern" and self.n_embd // self.n_head % 2:
            sizes = f"n_embd={self.n_embd} / n_head={self.n_head} is odd, which rotary positions cannot pair"
            raise ValueError(f"{sizes}; try n_embd={self.n_embd + self.n_head}")

    @property
    def n_before(self) -> int:
        """How many tokens before its own a position looks at without attention."""
        return max(PAST, self.block_size + self.match - 1) if self.match else PAST


class Dropout(nn.Dropout):
    """nn.Dropout, with cheaper masks on a CPU.

    F.dropout draws a 32-bit number for each element there, on one thread: half a training step.
    A byte for each is enough: p is rounded to a 256th, from 1 to 255 of them.
    """

    def forward(self, x):
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return super().forward(x)
        dropped = min(max(1, round(self.p * 256)), 255)  # of 256 byte values
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
        mask = words.view(torch.uint8)[: x.numel()].view(x.shape).to(x.dtype)  # 0 to 255, exactly
        return x * mask.ge_(dropped).mul_(256 / (256 - dropped))


def rotary_angles(positions, head_size: int):
    """The cosines and signed sines, each (T, D), that `rotate` takes for positions (T,)."""
    half = head_size // 2
    frequencies = 10000.0 ** (-torch.arange(half, device=positions.device) / half)  # radians per position
    angles = positions[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


def rotate(x, angles):
    """Turn pairs of channels of x (..., T, D) by their position's angle (RoFormer, arXiv:2104.09864).

    The first half of the channels is paired with the second.
    """
    cos, sin = (part.to(x.dtype) for part in angles)
    return torch.addcmul(x * cos, x.roll(x.size(-1) // 2, -1), sin)


class Cache:
    """What `GPT.forward` asks of a key/value cache, so that it goes on where it stopped.

    length: positions read so far. before (B, n_before): the tokens read last, vocab_size where there are
    none; forward rewrites it. position (T,): where the new tokens stand, where length does not say. mask
    (T, past + T): which positions they see, where that is not all up to their own.
    """

    length: int
    before: torch.Tensor
    position = mask = None

    def append(self, layer: int, k, v):
        """Keep k, v (B, H, T, D) of a layer; return all that it holds, each (B, H, past + T, D)."""
        raise NotImplementedError


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer, self.n_head = layer, config.n_head
        self.rotary = config.arch == "modern"  # else positions are in x already, and dropout is here too
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # q, k, v side by side
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.attn_dropout = Dropout(0.0 if self.rotary else config.dropout)
        self.resid_dropout = Dropout(config.dropout)

    def forward(self, x, angles=None, cache=None):
        B, T, C = x.shape
        D = C // self.n_head
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, D).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind()  # each (B, H, T, D)
        if self.rotary:  # q and k are normalised, to bound the softmax: Henry et al., 2020, arXiv:2010.04245
            q, k = rotate(F.layer_norm(qkv[:2], (D,)).to(v.dtype), angles).unbind()
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, H, past + T, D)
            q = q.to(k.dtype)
        on_cpu = x.device.type == "cpu" and T > 1
        y = self.attend_cpu(q, k, v) if on_cpu else self.attend(q, k, v, cache and cache.mask)
        y = y.transpose(1, 2).reshape(B, T, C)  # heads side by side again
        return self.resid_dropout(self.c_proj(y))

    def attend(self, q, k, v, mask=None):
        """Attention of q (B, H, T, D) to k and v (B, H, past + T, D) -> (B, H, T, D).

        mask, (T, past + T), says what each position sees; without it, itself and all that is before it.
        """
        T, length = q.size(2), k.size(2)
        if mask is None and length > T > 1:  # one new token sees everything, a first chunk is causal
            mask = torch.ones(T, length, dtype=torch.bool, device=q.device).tril(length - T)
        if q.device.type == "mps":  # other layouts give wrong results there (pytorch issue 181133)
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        p = self.attn_dropout.p if self.training else 0.0
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=p, is_causal=length == T > 1
        )  # fmt: skip

    def attend_cpu(self, q, k, v):
        """The same for T > 1, spelled out: on a CPU the fused kernel is slow backwards and cannot drop."""
        T, length = q.size(2), k.size(2)
        q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
        future = q.new_full((T, length), -math.inf).triu(1 + length - T)
        scores = torch.baddbmm(future, q, k.transpose(1, 2), alpha=q.size(-1) ** -0.5)
        return torch.bmm(self.attn_dropout(scores.softmax(-1)), v).unflatten(0, (-1, self.n_head))


def squared_relu(x):
    """So et al., 2021, arXiv:2109.08668."""
    x = F.relu(x)
    return x * x  # where x.square() would be float32 under CUDA's autocast


class MLP(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        gelu = nn.GELU("tanh" if config.gelu == "tanh" else "none")
        self.activation = squared_relu if config.arch == "modern" else gelu
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = Dropout(config.dropout)

    def forward(self, x):
        return self.dropout(self.c_proj(self.activation(self.c_fc(x))))


def norm(config: GPTConfig) -> nn.LayerNorm:
    return nn.LayerNorm(config.n_embd, elementwise_affine=config.arch == "gpt2", bias=config.bias)


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.mix = None  # modern: how much of x and of the embeddings x0 goes in (modded-nanogpt's lambdas)
        if config.arch == "modern":
            self.mix = nn.Parameter(torch.tensor([1.0, 0.0]))
        self.ln_1 = norm(config)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = norm(config)
        self.mlp = MLP(config)

    def forward(self, x, x0, angles=None, cache=None):
        if self.mix is not None:
            x = self.mix[0] * x + self.mix[1] * x0
        x = x + self.attn(self.ln_1(x), angles, cache)
        return x + self.mlp(self.ln_2(x))


def find_match(text, T: int, most: int):
    """What came next when the end of the text so far last stood in it, for the last T positions.

    Compared are the tokens that end at a position and those that end earlier in text (B, N): as many as are
    the same, `most` at most. The longest match counts, and of several the last. Returns the token after it
    (B, T) and its length (B, T), 0 where there is none; N is at least T + most. Programs that compress
    text predict so (PAQ's match model); attention of few layers takes long to learn it, which n-gram heads
    spare it too (Akyürek et al., 2024, arXiv:2401.12973).
    """
    N = text.size(1)
    equal = text[:, N - T - most + 1 :, None] == text[:, None, :-1]  # (B, T + most - 1, N - 1)
    end = torch.arange(most - 1, N - 1, device=text.device, dtype=torch.int32)  # where an earlier one may end
    same = end < torch.arange(N - T, N, device=text.device)[:, None]  # (T, ends)
    score = end  # PLACES for each token that is the same, and the place
    for start in range(most - 1, -1, -1):  # from the last token backwards
        same = same & equal[:, start : start + T, start : start + end.size(0)]  # (B, T, ends)
        score = torch.add(score, same, alpha=PLACES)
    best = score.amax(-1).long()
    return text.gather(1, best % PLACES + 1), best // PLACES


class GPT(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        modern = config.arch == "modern"
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = None if modern else nn.Embedding(config.block_size, config.n_embd)
        # one row more than there are tokens, for where nothing comes before
        past = [nn.Embedding(config.vocab_size + 1, config.n_embd) for _ in range(PAST)] if modern else []
        self.wte_past = nn.ModuleList(past)
        rows = config.vocab_size * config.match + 1  # for each token that followed and length; for none
        self.wte_match = nn.Embedding(rows, config.n_embd) if config.match else None
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, n) for n in range(config.n_ensemble * config.n_layer))
        self.ln_f = norm(config)
        # GPT-2's head is the token embedding (Press & Wolf, 2017, arXiv:1608.05859)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False) if modern else None
        for name, p in self.named_parameters():
            if name.endswith("bias") or (modern and name.endswith(("c_proj.weight", "lm_head.weight"))):
                nn.init.zeros_(p)  # modern: each block starts as the identity, every token as likely
            elif p.dim() == 2:
                # GPT-2 section 2.3: residual projections start smaller, so that depth does not add up
                residual = name.endswith("c_proj.weight")
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer) if residual else 0.02)

    def num_params(self) -> int:
        """Parameters as GPT-2 papers count them: position embeddings left out."""
        return sum(p.numel() for p in self.parameters()) - (self.wpe.weight.numel() if self.wpe else 0)

    def flops_per_token(self) -> int:
        """Floating-point operations to train on one token, forward and backward (PaLM, appendix B)."""
        c = self.config
        looked_up = [self.wte, *self.wte_past, *filter(None, [self.wte_match])] if self.lm_head else []
        multiplied = self.num_params() - sum(table.weight.numel() for table in looked_up)
        multiplied += (c.n_ensemble - 1) * self.wte.weight.numel()  # the head, once for each member
        return 6 * multiplied + 12 * len(self.blocks) * c.n_embd * c.block_size

    def embed(self, idx, positions, cache=None):
        """idx (B, T), positions (T,) -> x (B, T, C) and the angles of rotary positions, or None."""
        x = self.wte(idx)
        if self.wpe:
            return x + self.wpe(positions), None
        # A table for each of the PAST tokens before makes a causal convolution over the text: the first block
        # starts from short stretches and need not find them by attention.
        B, T = idx.shape
        V, match = self.config.vocab_size, self.config.match
        before = idx.new_full((B, max(PAST, match)), V) if cache is None else cache.before
        text = torch.cat([before, idx], dim=1)  # (B, N + T)
        N = before.size(1)
        for distance, table in enumerate(self.wte_past, start=1):
            x = x + table(text.narrow(1, N - distance, T))
        if match:
            after, length = find_match(text, T, match)
            x = x + self.wte_match(torch.where(length > 0, after * match + length - 1, V * match))
        if cache is not None:
            cache.before.copy_(text.narrow(1, T, N))
        C = self.config.n_embd
        return F.layer_norm(x, (C,)), rotary_angles(positions, C // self.config.n_head)

    def head(self, x):
        """x (..., C) -> logits (..., V)."""
        return self.lm_head(x) if self.lm_head else F.linear(x, self.wte.weight)

    def forward(self, idx, targets=None, cache=None):
        """idx (B, T) token ids -> (logits, loss).

        With targets (B, T): logits (B, T, V) and the mean cross-entropy in nats per token, a scalar. In
        training mode: None and that loss, of an ensemble the mean of its members' losses.
        Without: logits (B, 1, V) of the last position only, and None.
        With a Cache, idx continues what the cache holds. Raises ValueError past
        block_size, where rotary positions go on with one token at a time.
        """
        past = 0 if cache is None else cache.length
        T, block_size = idx.size(1), self.config.block_size
        if past + T > block_size and (T > 1 or self.wpe):
            raise ValueError(f"{past + T} positions are more than block_size={block_size}")
        positions = torch.arange(past, past + T, device=idx.device)
        if cache is not None and cache.position is not None:
            positions = cache.position
        x, angles = self.embed(idx, positions, cache)
        x = x0 = self.dropout(x)
        members = []
        for n, block in enumerate(self.blocks, start=1):
            x = block(x, x0, angles, cache)
            if n % self.config.n_layer == 0:
                members.append(self.ln_f(x))
                x = x0
        if cache is not None:
            cache.length += T
        x = torch.stack(members) if len(members) > 1 else members[0]  # ensemble: (n_ensemble, B, T, C)
        if len(members) > 1 and (targets is None or not self.training):
            x = x.mean(0)  # the head is linear: the mean of the members' logits
        if targets is None:
            return self.head(x[:, -1:]), None
        logits = self.head(x)
        targets = targets.expand(logits.shape[:-1])
        loss = F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())
        return None if self.training else logits, loss
