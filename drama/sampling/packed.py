"""A trained GPT made ready to decode: its key/value cache, and its weights packed.

Shapes: B batch, T time, C channels (n_embd), H heads, D head size (C / H), V vocabulary.
"""

import contextlib
import platform

import torch
import torch.nn as nn
import torch.nn.functional as F

from drama.device import find_dtype
from model import GPT, Cache, GPTConfig


class KVCache(Cache):
    """Keys and values of every layer for `size` positions, block_size at most, allocated once.

    A full cache overwrites its oldest position. With `position`, a tensor (1,) that says where the new token
    stands, `append` returns all that is allocated, so that no shape ever changes; `mask` (1, size) then says
    how much of it counts.
    """

    def __init__(self, config: GPTConfig, batch: int, size: int | None = None, device=None, dtype=None):
        self.size = min(size or config.block_size, config.block_size)
        shape = (batch, config.n_head, self.size, config.n_embd // config.n_head)
        layers = config.n_ensemble * config.n_layer
        self.k = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.v = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.nothing = config.vocab_size
        self.before = torch.empty(batch, config.n_before, device=device, dtype=torch.long)
        self.empty()

    def empty(self):
        self.length = 0
        self.before.fill_(self.nothing)

    def append(self, layer: int, k, v):
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

    On a CPU its weight is put in a library's own layout once, not again for every token. For float16 that
    is FBGEMM's, which takes x and returns the result in float32; else oneDNN's. Where neither can do that
    (other processors), it is an ordinary linear layer.
    """

    def __init__(self, weight, bias, dtype: torch.dtype):
        super().__init__()
        self.dtype, self.product = dtype, F.linear
        weight, bias = weight.detach(), None if bias is None else bias.detach()
        on_cpu = weight.device.type == "cpu"
        if on_cpu and dtype == torch.float16 and halves_weights():
            weight = weight.clamp(-65504, 65504)  # a copy: packing clamps in place, and says so
            self.weight, self.bias = torch.ops.quantized.linear_prepack_fp16(weight, bias), None
            self.dtype, self.product = torch.float32, self.halved_product
            return
        self.weight, self.bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        if on_cpu:
            with contextlib.suppress(RuntimeError, AttributeError):
                packed = torch.ops.mkldnn._reorder_linear_weight(self.weight)
                self.packed_product(self.weight[:1], packed, self.bias)
                self.weight, self.product = packed, self.packed_product

    @staticmethod
    def halved_product(x, weight, bias):
        return torch.ops.quantized.linear_dynamic_fp16(x, weight)  # which holds the bias

    @staticmethod
    def packed_product(x, weight, bias):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    def forward(self, x):
        return self.product(x.to(self.dtype), self.weight, self.bias)


def halves_weights() -> bool:
    """Whether FBGEMM multiplies weights in float16 by activations in float32 here: on x86, with AVX2."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")  # on ARM the engine may be called x86 too
    return x86 and torch.backends.quantized.engine in ("x86", "fbgemm")


def sampling_dtype(name: str, device: torch.device) -> torch.dtype:
    """The number format of that name; "auto" is the one in which few texts are written fastest there."""
    if name == "auto" and device.type == "cpu" and halves_weights():
        return torch.float16
    return find_dtype(name, device)


def ready_to_sample(model: GPT, device: torch.device, dtype: str) -> GPT:
    """The model packed on that device, in a process that only samples; dtype as in the settings."""
    if device.type == "cuda":  # whose own attention takes 20 ms to prepare for each length it has not seen
        torch.backends.cuda.enable_cudnn_sdp(False)
    return pack(model.to(device), sampling_dtype(dtype, device))


def pack(model: GPT, dtype: torch.dtype) -> GPT:
    """Make the model ready to generate, with weights in dtype; it can no longer be trained."""
    model.lm_head = PackedLinear((model.lm_head or model.wte).weight, None, dtype)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, PackedLinear(child.weight, child.bias, dtype))
    return model.eval()
