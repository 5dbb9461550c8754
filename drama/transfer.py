"""A trained model of this project as the start of another run, on the same text or on another."""

import dataclasses
from pathlib import Path

import torch

from configurator import UserError
from drama import checkpoint
from drama.huggingface import as_checkpoint, own_tokenizer
from drama.tokenizer import CharTokenizer
from model import GPT


def own_checkpoint(init_from: str) -> Path | None:
    """Where init_from names a model of this project: a ckpt.pt, a folder that holds one, or a folder in
    Hugging Face's format whose tokenizer is of a kind of ours. None for anything else."""
    path = Path(init_from)
    if path.name in ("config.json", "model.safetensors", "tokenizer.json"):  # its folder is meant
        path = path.parent
    if path.is_dir() and not (path / "ckpt.pt").is_file():
        return path if own_tokenizer(path) else None
    path = path / "ckpt.pt" if path.is_dir() else path
    return path if path.is_file() else None


def load_start(path: Path) -> dict:
    """The model that `own_checkpoint` found, as `checkpoint.load` returns one. Raises UserError."""
    return as_checkpoint(path, own_tokenizer(path)) if path.is_dir() else checkpoint.load(path)


def joined_vocabulary(trained, tok, path: Path):
    """The tokenizer of a model that was trained with one and goes on with a text encoded by tok.

    Characters that are new come last. Byte pairs stay as they are: they spell any text. Raises UserError for
    a model of characters and a text in byte pairs.
    """
    if not isinstance(trained, CharTokenizer):
        return trained
    if not isinstance(tok, CharTokenizer):
        advice = "prepare the text again with --tokenizer=char"
        raise UserError(f"{path} reads characters, and the text is encoded in byte pairs; {advice}")
    return CharTokenizer(trained.chars + "".join(c for c in tok.chars if c not in trained.chars))


def grown(table: torch.Tensor, added: int, at: int) -> torch.Tensor:
    """A table (rows, C) with so many rows more, at that row: each the mean of the others."""
    new = table[:at].mean(0, keepdim=True).expand(added, -1)
    return torch.cat([table[:at], new, table[at:]])


def start_from(state: dict, path: Path, settings, tok) -> tuple[GPT, object]:
    """(model, tokenizer) to train on a text encoded by tok, from what `checkpoint.load` returned of path.

    The shape is the checkpoint's; dropout is the settings', and so is a smaller block_size. Raises UserError
    where the checkpoint does not fit itself, or the text.
    """
    model, trained = checkpoint.build_model(state, path)
    joined = joined_vocabulary(trained, tok, path)
    old, weights = model.config, model.state_dict()
    added = joined.vocab_size - old.vocab_size
    block_size = min(settings.block_size, old.block_size)
    for name, table in weights.items():
        if name.startswith(("wte", "lm_head")):  # the tables of earlier tokens have a row more, for none
            weights[name] = grown(table, added, old.vocab_size)
        elif name == "wpe.weight":
            weights[name] = table[:block_size].clone()
    changes = dict(vocab_size=joined.vocab_size, block_size=block_size, dropout=settings.dropout)
    model = checkpoint.empty_model(dataclasses.replace(old, **changes))
    model.load_state_dict(weights, assign=True)
    return model, joined
