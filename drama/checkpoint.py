"""The files in model/: whole or absent when written, refused when they cannot be trusted.

    ckpt.pt   the best model so far with its tokenizer and settings: all that sampling needs
    last.pt   the whole training state: all that resuming needs

Both are dictionaries of plain values and tensors in PyTorch's zip format, which safe_load.py reads without
executing anything; a SHA-256 over every value finds damage.
"""

import dataclasses
import hashlib
from pathlib import Path

import torch

from configurator import UserError, one_line
from drama import nanogpt, tokenizer
from drama.disk import write_atomically
from drama.safe_load import load_plain
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


def model_file(out_dir: str | Path) -> Path:
    """The file of a model that is named by its folder, model/, or by itself, model/ckpt-1.pt."""
    path = Path(out_dir)
    return path if path.suffix == ".pt" else path / "ckpt.pt"


def load(path: Path) -> dict:
    """The dictionary that `save` wrote, tensors on the CPU; of nanoGPT's ckpt.pt, what ckpt.pt has here.

    Raises UserError for anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing; a training writes it")
    refusal = UserError(f"{path} is damaged or is no checkpoint of this project; train again or restore it")
    try:
        state = load_plain(path)
    except ValueError:
        raise refusal from None
    if isinstance(state, dict) and "model_args" in state:
        return nanogpt.converted(state, path)
    if not isinstance(state, dict) or "sha256" not in state:
        raise UserError(f"{path} is not a checkpoint of this project, nor one of nanoGPT")
    version = state.get("format")
    if type(version) is not int or version != FORMAT:
        versions = f"format {one_line(version)[:20]}, here {FORMAT}"
        raise UserError(f"{path} is of another version of this project ({versions}); train again")
    claimed = state.pop("sha256")
    try:
        if claimed == digest(state):
            return state
    except (RuntimeError, TypeError, RecursionError):  # tensors that are not plain, lists that are too deep
        pass
    raise refusal


def shape(saved: dict) -> GPTConfig:
    """The shape in a checkpoint or an exported folder; earlier versions called the exact GELU "none"."""
    return GPTConfig(**{**saved, "gelu": "exact"} if saved.get("gelu") == "none" else saved)


def model_state(model: GPT, tok, settings, speakers=()) -> dict:
    """What ckpt.pt and last.pt have in common; speakers are those of the training text."""
    return {
        "config": dataclasses.asdict(model.config),
        "tokenizer": tok.to_dict(),
        "settings": dataclasses.asdict(settings),
        "speakers": list(speakers),
        "model": model.state_dict(),
    }


def load_model(path: str | Path) -> tuple[GPT, object]:
    """(model, tokenizer) of a model's folder or file, ready to predict. Raises UserError."""
    path = model_file(path)
    model, tok = build_model(load(path), path)
    return model.eval(), tok


class SkipInit(torch.overrides.TorchFunctionMode):
    """Skips the initialisation of modules: on meta tensors it would import torch._dynamo, for a second."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"]
        return function(*args, **(kwargs or {}))


def build_model(state: dict, path: Path) -> tuple[GPT, object]:
    """(model, tokenizer) from what `load` returned. Raises UserError where they do not fit."""
    unfit = f"{path} holds no model that fits its own settings"
    try:
        config, weights = shape(state["config"]), state["model"]
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
        if not all(weight.isfinite().all() for weight in weights.values()):
            raise ValueError("weights that are not finite")
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
    with torch.device("meta"), SkipInit():
        return GPT(config)
