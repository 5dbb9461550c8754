"""What can be known of CUDA without one: devices and number formats, on tensors that hold nothing.

Forward passes only: autograd, and copies into tensors, ask for a CUDA build of PyTorch.
"""

import math
import warnings
from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from drama.sampling.generation import Sampling, pick
from drama.training.optimizer import orthogonalize
from model import GPT, GPTConfig

CUDA = torch.device("cuda:0")
B, T, C, V = 4, 64, 96, 50
SHAPES = [
    dict(arch="gpt2"), dict(arch="gpt2", bias=True), dict(arch="modern"),
    dict(arch="modern", match=4, n_ensemble=2),
]  # fmt: skip


class Indexing(TorchFunctionMode):
    """x[...] in operators: Python's own way asks for a CUDA build as well."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is not torch.Tensor.__getitem__:
            return func(*args, **(kwargs or {}))
        x, index = args
        dim = 0
        for part in index if isinstance(index, tuple) else (index,):
            if part is None:
                x = x.unsqueeze(dim)
            elif isinstance(part, int):
                x = x.select(dim, part)
                continue
            else:
                start, stop, _ = part.indices(x.size(dim))
                x = x.narrow(dim, start, stop - start)
            dim += 1
        return x


class Operators(TorchDispatchMode):
    """Notes (operator, number format, shape) of every result."""

    def __init__(self):
        super().__init__()
        self.results = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for result in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(result, torch.Tensor):
                assert result.device == CUDA, f"{func} left the GPU"
                self.results.append((func.overloadpacket.__name__, result.dtype, tuple(result.shape)))
        return out


@pytest.fixture
def fake():
    """fake(shape, dtype) is a tensor that says it is on a GPU."""
    with FakeTensorMode() as mode, Indexing(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield lambda *shape, dtype=torch.float32: FakeTensor(
            mode, torch.empty(shape, dtype=dtype, device="meta"), CUDA
        )


def model_of(fake, **changes) -> GPT:
    config = dict(block_size=T, vocab_size=V, n_layer=2, n_head=3, n_embd=C, dropout=0.2)
    with torch.device("meta"):
        gpt = GPT(GPTConfig(**{**config, **changes}))
    for module in gpt.modules():
        for name, p in module._parameters.items():
            if p is not None:
                module._parameters[name] = torch.nn.Parameter(fake(*p.shape), requires_grad=False)
    return gpt


def under_autocast(dtype, call):
    """The operators of a call under CUDA's autocast, which torch.autocast refuses without a GPU."""
    operators = Operators()
    torch.set_autocast_dtype("cuda", dtype)
    torch.set_autocast_enabled("cuda", True)
    try:
        with operators:
            call()
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()
    return operators.results


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [True, False])
def test_no_activation_is_wider_than_it_has_to_be(fake, shape, dtype, training):
    gpt = model_of(fake, **shape).train(training)
    x = fake(B, T, dtype=torch.long)
    results = under_autocast(dtype, lambda: gpt(x, x))
    tokens = B * T
    widest = Counter(d for _, d, s in results if math.prod(s) == tokens * 4 * C and len(s) < 4)
    assert set(widest) == {dtype}  # the hidden layer, from its product through its activation
    joint = Counter(d for _, d, s in results if math.prod(s) == tokens * 3 * C)
    assert set(joint) == {dtype}  # queries, keys and values
    products = ("mm", "addmm", "linear", "bmm")
    assert not {name for name, d, s in results if d == torch.float32 and name in products and len(s) < 3}


def test_a_token_is_picked_on_the_gpu(fake):
    logits, u, operators = fake(B, V, dtype=torch.bfloat16), fake(B), Operators()
    with operators:
        token = pick(logits, u, Sampling(0.8))
    assert token.shape == (B, 1) and token.dtype == torch.long and operators.results


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_muon_s_products_are_all_in_its_format(fake, dtype):
    matrices, operators = fake(3, 4 * C, C), Operators()
    with operators:
        steps = orthogonalize(matrices, dtype)
    products = {d for name, d, _ in operators.results if name in ("bmm", "baddbmm", "matmul")}
    assert products == {dtype} and steps.shape == (3, 4 * C, C)
