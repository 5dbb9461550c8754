"""The files in model/: whole or absent when written, refused when they cannot be trusted.

    ckpt.pt   the best model so far with its tokenizer and settings: all that sampling needs
    last.pt   the whole training state: all that resuming needs

Both are dictionaries of plain values and tensors in PyTorch's zip format, loaded with
`weights_only=True`, so that loading executes nothing; a SHA-256 over every value finds damage.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pickletools
import re
import zipfile
from pathlib import Path

import torch

import tokenizer
from model import GPT, GPTConfig

FORMAT = 2


class CheckpointError(ValueError):
    """A file that is missing, damaged or not ours; the message is one line that says what to do."""


def write_atomically(path: Path, write):
    """Call write(file) on a new file beside path, and rename it to path once it is safely on disk.

    A crash at any moment leaves the old file or the new one, whole. Raises OSError, with nothing left behind.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with open(beside, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself is only durable once the folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


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


def load(path: Path) -> dict:
    """The dictionary that `save` wrote, tensors on the CPU. Raises CheckpointError for anything else."""
    path = Path(path)
    refuse = CheckpointError(
        f"{path} is damaged or is no checkpoint of this project; train again or restore it"
    )
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; a training writes it")
    try:
        with zipfile.ZipFile(path) as z:
            # PyTorch stores without compression: what unpacks to more than the file is a bomb
            if any(i.compress_type != zipfile.ZIP_STORED for i in z.infolist()):
                raise refuse
            if sum(i.file_size for i in z.infolist()) > path.stat().st_size:
                raise refuse
            pickled = [i for i in z.infolist() if i.filename.endswith("data.pkl")]
            if len(pickled) != 1 or not plain(z.read(pickled[0])):
                raise refuse
        state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except OSError as e:
        if e.errno == errno.EINVAL:  # the zip names a place before its beginning
            raise refuse from None
        raise
    except Exception:  # the zip and pickle readers raise a wide variety for damaged input
        raise refuse from None
    if not isinstance(state, dict) or "sha256" not in state:
        raise CheckpointError(f"{path} is not a checkpoint of this project (nanoGPT's cannot be read)")
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} was written by another version of this project (format {state.get('format')}, here "
            f"{FORMAT}); train again, or use that version"
        )
    claimed = state.pop("sha256")
    try:
        sound = fits(state, path.stat().st_size) and claimed == digest(state)
    except (RuntimeError, TypeError, RecursionError):  # kinds of tensors that are not plain, or a loop
        sound = False
    if not sound:
        raise refuse
    return state


# What torch.save names for plain values and tensors. torch.load takes more: a bytearray of any size, say.
NAMED = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch \w+Storage")


def plain(pickled: bytes) -> bool:
    """Whether a pickle names nothing but what plain values and tensors need."""
    ops = [(op.name, arg) for op, arg, _ in pickletools.genops(pickled)]
    if ops[0] != ("PROTO", 2):
        return False
    return not any(op == "STACK_GLOBAL" or (op == "GLOBAL" and not NAMED.fullmatch(arg)) for op, arg in ops)


def fits(state, size: int) -> bool:
    """Whether a tree claims at most size bytes: strides and shared parts can claim any number.

    A tensor claims what its shape says, anything else a byte at least.
    """
    left = [state]
    while left and size >= 0:
        value = left.pop()
        if isinstance(value, torch.Tensor):
            size -= value.numel() * value.element_size()
        else:
            size -= 1
            if isinstance(value, (dict, list, tuple)):
                left += value.values() if isinstance(value, dict) else value
    return size >= 0


def model_state(model: GPT, tok, settings) -> dict:
    """What ckpt.pt and last.pt have in common: a model, its tokenizer, and the settings of its run."""
    return {
        "config": dataclasses.asdict(model.config),
        "tokenizer": tok.to_dict(),
        "settings": dataclasses.asdict(settings),
        "model": model.state_dict(),
    }


class Unfilled(torch.overrides.TorchFunctionMode):
    """Modules made within are not initialised: on meta tensors that imports torch._dynamo, for a second."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def build_model(state: dict, path: Path) -> tuple[GPT, object]:
    """(model, tokenizer) from what `load` returned. Raises CheckpointError where they do not fit."""
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
        with torch.device("meta"), Unfilled():  # no memory is taken: the weights are put in place
            model = GPT(config)
        model.load_state_dict(weights, assign=True)
        return model, tok
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as e:
        why = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise CheckpointError(f"{path} holds no model that fits its own settings ({why})") from None


def read_json(path: Path) -> dict:
    """A JSON object from a file. Raises CheckpointError for anything else."""
    try:
        with open(path, encoding="utf-8") as f:
            value = json.load(f)
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise CheckpointError(f"{path} is not JSON; run prepare.py again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object; run prepare.py again")
    return value


@contextlib.contextmanager
def lock(out: Path):
    """Keep every other training out of a folder.

    The operating system lets go of it when the process ends, however it ends. Raises CheckpointError when
    another process holds it.
    """
    with open(out / ".lock", "w") as f:
        try:
            if os.name == "posix":
                import fcntl

                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                import msvcrt

                msvcrt.locking(f.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as e:
            if e.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):  # else a folder that cannot lock
                raise CheckpointError(
                    f"another training is writing to {out}: wait for it or stop it, or give another --out_dir"
                ) from None
        yield


def set_aside(out: Path) -> list[str]:
    """Rename an earlier run's files to ckpt-1.pt and so on, so that starting over loses nothing.

    Returns their new names, none where there was no earlier run.
    """
    names = ("ckpt.pt", "last.pt", "log.csv", "loss.png", "tensorboard", "wandb")
    number = 1

    def kept_as(name: str) -> str:
        return f"{Path(name).stem}-{number}{Path(name).suffix}"

    while any((out / kept_as(name)).exists() for name in names):
        number += 1
    kept = {name: kept_as(name) for name in names if (out / name).exists()}
    for name, new in kept.items():
        os.rename(out / name, out / new)
    return list(kept.values())
