"""Whether model.py is still the network that the page, llama.cpp and transformers' GPT-2 mirror.

An edit of what it computes, or of its parameters, changes the figures below; one of dropout or training alone
does not. To change model.py and its mirrors together, record what `figure` returns then.
"""

import math
import zlib
from dataclasses import replace

import torch

from configurator import UserError
from drama.checkpoint import empty_model
from model import GPTConfig

TINY = dict(block_size=256, vocab_size=7, n_layer=2, n_head=2, n_embd=12)
FIGURES = {  # without biases, with; of ensembles without, with
    "exact": (1.9948984, -2.7164715, 3.3241703, -0.2075456),
    "tanh": (1.9949497, -2.7166616, 3.3239546, -0.2074184),
    "modern": (6.9745275, -3.0094313, -4.3220038, 5.2182348),
    "match": (-6.3042013, 0.2082912, 0.4227512, 2.6084218),
}


def figure(config: GPTConfig) -> float:
    """A tiny model's logits as one number. Its weights follow from their names and shapes."""
    tiny = dict(TINY, n_ensemble=min(2, config.n_ensemble), match=3 * bool(config.match))
    model = empty_model(replace(config, **tiny)).eval()
    shapes = sorted((name, tuple(value.shape)) for name, value in model.state_dict().items())
    weights, start = {}, zlib.crc32(repr(shapes).encode()) % 1000
    for name, shape in shapes:
        weights[name] = (torch.arange(math.prod(shape)) + start).double().square().sin().view(shape)
        start += math.prod(shape)
    model.load_state_dict(weights, assign=True)
    with torch.no_grad():
        logits = model(torch.arange(256).square()[None] % 7)[0].flatten()
    return (logits * torch.arange(len(logits)).double().cos()).sum().item()


def is_mirrored(config: GPTConfig) -> bool:
    """Whether a model of that kind computes what its mirrors do."""
    try:
        kind = "match" if config.match else config.arch
        figures = FIGURES[config.gelu if kind == "gpt2" else kind]
        recorded = figures[2 * (config.n_ensemble > 1) + config.bias]
        tolerance = 2e-7 if config.arch == "gpt2" else 1e-5  # rotary angles are rounded to float32
        return abs(figure(config) - recorded) < tolerance
    except Exception:  # an edited model may fail at so small a size, in any way
        return False


def require_mirrored(config: GPTConfig, to: str):
    """Raise UserError where a format has code of its own for another network than this."""
    if not is_mirrored(config):
        what = f"model.py holds another network than --to={to} has code for"
        raise UserError(f"{what}; --to=hf and --to=onnx follow model.py")
