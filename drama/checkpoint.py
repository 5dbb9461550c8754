"""The files in model/: whole or absent when written, refused when they cannot be trusted.

    ckpt.pt   the best model so far with its tokenizer and settings: all that sampling needs
    last.pt   the whole training state: all that resuming needs

Both are dictionaries of plain values and tensors in PyTorch's zip format, loaded with
`weights_only=True`, so that loading executes nothing; a SHA-256 over every value finds damage.
"""

import dataclasses
import errno
import hashlib
import os
import pickle
import pickletools
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch

from configurator import UserError, one_line
from drama import tokenizer
from drama.disk import write_atomically
from model import GPT, GPTConfig

FORMAT = 2


def digest(value) -> str:
    """SHA-256 of a tree of dicts, lists, tensors and plain values."""
    h = hashlib.sha256()

    def add(value):
        if isinstance(value, dict):
            h.update(b"{%d" % len(value))
            for key in value:
                h.update(repr(key).encode())
                add(value[key])
        elif isinstance(value, (list, tuple)):
            h.update(b"[%d" % len(value))
            for item in value:
                add(item)
        elif isinstance(value, torch.Tensor):
            h.update(f"{value.dtype}{tuple(value.shape)}".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            h.update(flat.view(torch.uint8).numpy().data)
        else:
            h.update(repr(value).encode("utf-8", "surrogatepass"))

    add(value)
    return h.hexdigest()


def save(path: Path, state: dict):
    """Write a dictionary of plain values and tensors. Raises OSError when the disk will not take it."""
    state = {"format": FORMAT, **state}
    state["sha256"] = digest(state)

    def write(f):
        try:
            torch.save(state, f)
        except RuntimeError as e:  # PyTorch's zip writer reports a full disk as its own failure
            cause = e.__context__
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            raise cause or OSError(0, f"could not be written ({str(e).splitlines()[0]})", str(path)) from None

    write_atomically(path, write)


# What the readers of zip files and pickles raise where one is damaged, on purpose or not.
DAMAGED = (
    zipfile.BadZipFile, pickle.UnpicklingError, struct.error, EOFError, ValueError, TypeError, LookupError,
    AttributeError, RuntimeError, OverflowError, AssertionError,
)  # fmt: skip


def load(path: Path) -> dict:
    """The dictionary that `save` wrote, tensors on the CPU. Raises UserError for anything else."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing; a training writes it")
    size = path.stat().st_size
    refusal = UserError(f"{path} is damaged or is no checkpoint of this project; train again or restore it")
    try:
        pickled = read_pickle(path, size)
        operations = [] if pickled is None else [(op.name, arg) for op, arg, _ in pickletools.genops(pickled)]
    except DAMAGED:
        raise refusal from None
    except OSError as e:
        if e.errno == errno.EINVAL:  # the zip refers to an offset before its beginning
            raise refusal from None
        raise
    if not is_plain(operations):
        raise refusal
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED:
        raise refusal from None
    try:
        fitting = fits(state, size)
    except (RuntimeError, TypeError):  # kinds of tensors that are not plain
        fitting = False
    if not fitting:
        raise refusal
    if not isinstance(state, dict) or "sha256" not in state:
        raise UserError(f"{path} is not a checkpoint of this project (nanoGPT's cannot be read)")
    found = state.get("format")
    if type(found) is not int or found != FORMAT:
        versions = f"format {one_line(found)[:20]}, here {FORMAT}"
        raise UserError(f"{path} is of another version of this project ({versions}); train again")
    claimed = state.pop("sha256")
    try:
        if claimed == digest(state):
            return state
    except (RuntimeError, TypeError, RecursionError):  # tensors that are not plain, lists that are too deep
        pass
    raise refusal


def read_pickle(path: Path, size: int) -> bytes | None:
    """The pickle in a file of torch.save's zip format; None where what unpacks is more than size bytes."""
    with zipfile.ZipFile(path) as z:
        members = z.infolist()
        # PyTorch stores without compression: what unpacks to more than the file is a bomb
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or sum(member.file_size for member in members) > size:
            return None
        pickles = [member for member in members if member.filename.endswith("data.pkl")]
        return z.read(pickles[0]) if len(pickles) == 1 else None


# What torch.save names for plain values and tensors. torch.load takes more: a bytearray of any size, say.
NAMED = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch \w+Storage")


def is_plain(operations: list) -> bool:
    """Whether a pickle's operations (name, argument) name nothing but what plain values and tensors need."""
    names = [arg for name, arg in operations if name == "GLOBAL"]
    by_stack = any(name == "STACK_GLOBAL" for name, _ in operations)
    return operations[:1] == [("PROTO", 2)] and not by_stack and all(map(NAMED.fullmatch, names))


def fits(state, size: int) -> bool:
    """Whether a tree claims at most size bytes: strides and shared parts can claim any number.

    A tensor claims what its shape says, anything else a byte at least. Attributes of dictionaries are dropped
    on the way: they could stand in for methods.
    """
    left = [state]
    while left and size >= 0:
        value = left.pop()
        if isinstance(value, torch.Tensor):
            size -= value.numel() * value.element_size()
        else:
            size -= 1
            if isinstance(value, OrderedDict):
                vars(value).clear()
            if isinstance(value, dict):
                left += [*value.keys(), *value.values()]
            elif isinstance(value, (list, tuple)):
                left += value
    return size >= 0


def model_state(model: GPT, tok, settings, speakers=()) -> dict:
    """What ckpt.pt and last.pt have in common; speakers are those of the training text."""
    return {
        "config": dataclasses.asdict(model.config),
        "tokenizer": tok.to_dict(),
        "settings": dataclasses.asdict(settings),
        "speakers": list(speakers),
        "model": model.state_dict(),
    }


class Unfilled(torch.overrides.TorchFunctionMode):
    """Skips the initialisation of modules: on meta tensors it would import torch._dynamo, for a second."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def build_model(state: dict, path: Path) -> tuple[GPT, object]:
    """(model, tokenizer) from what `load` returned. Raises UserError where they do not fit."""
    unfit = f"{path} holds no model that fits its own settings"
    try:
        config, weights = GPTConfig(**state["config"]), state["model"]
        tok = tokenizer.from_dict(state["tokenizer"])
        # the embeddings' and layers' own sizes first: a config may claim more than there is memory for
        if (
            weights["wte.weight"].shape != (config.vocab_size, config.n_embd)
            or (config.arch == "gpt2" and weights["wpe.weight"].shape != (config.block_size, config.n_embd))
            or sum(name.endswith("c_attn.weight") for name in weights) != config.n_ensemble * config.n_layer
            or tok.vocab_size != config.vocab_size
        ):
            raise ValueError("sizes differ")
        if not isinstance(state["settings"], dict):
            raise ValueError("no settings")
        speakers = state.get("speakers", [])  # which earlier versions did not save
        if type(speakers) is not list or any(type(name) is not str for name in speakers):
            raise ValueError("no speakers")
        if any(weight.dtype != torch.float32 for weight in weights.values()):
            raise ValueError("weights in another number format")
    except (LookupError, TypeError, ValueError, AttributeError) as e:
        raise UserError(f"{unfit} ({one_line(e)[:100] or type(e).__name__})") from None
    model = empty_model(config)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as e:
        raise UserError(f"{unfit} ({one_line(e)[:100]})") from None
    return model, tok


def empty_model(config: GPTConfig) -> GPT:
    """A model whose weights take no memory, to be replaced by others."""
    with torch.device("meta"), Unfilled():
        return GPT(config)


def set_aside(out: Path) -> list[str]:
    """Rename an earlier run's files to ckpt-1.pt and so on, so that starting over loses nothing.

    Returns their new names, none where there was no earlier run.
    """
    files = [Path(name) for name in ("ckpt.pt", "last.pt", "log.csv", "loss.png", "tensorboard", "wandb")]
    number = 1
    while any((out / f"{file.stem}-{number}{file.suffix}").exists() for file in files):
        number += 1
    kept = {file: f"{file.stem}-{number}{file.suffix}" for file in files if (out / file).exists()}
    for file, name in kept.items():
        os.rename(out / file, out / name)
    return list(kept.values())
