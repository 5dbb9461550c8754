"""Trained weights to begin a run with: a model of this project, or a GPT-2 in Hugging Face's format.

Needs safetensors, or huggingface_hub where weights are fetched, and says so; transformers is not needed.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING

from drama.program import optional

import torch

from configurator import UserError, one_line
from drama import checkpoint
from drama.disk import read_json
from drama.tokenizer import BPETokenizer, CharTokenizer
from model import GPT, GPTConfig

if TYPE_CHECKING:
    from train_drama import Settings

RANDOM = ("auto", "resume", "scratch")  # values of init_from that begin with random weights
OPENAI_WEIGHTS = {  # the revisions at huggingface.co, so that a name is the same weights for ever
    "gpt2": "607a30d783dfa663caf39e06633721c8d4cfcd7e",
    "gpt2-medium": "6dcaa7a952f72f9298047fd5137cd6e4f05f41da",
    "gpt2-large": "32b71b12589c2f8d625668d2335a01cac3249519",
    "gpt2-xl": "15ea56dee5df4983c59b2538573817e1667135e2",
}
NAMED = (*RANDOM, *OPENAI_WEIGHTS)
HF_FILES = ("config.json", "model.safetensors", "tokenizer.json")


def require_source(init_from: str):
    """Raise UserError where init_from names nothing to start from."""
    path = Path(init_from)
    if init_from not in NAMED and not (init_from and (path.is_dir() or path.is_file())):
        names = ", ".join(NAMED)
        raise UserError(f"init_from={init_from!r} is none of {names}, nor a folder or a checkpoint")


def same_source(a: str, b: str) -> bool:
    """Whether two values of init_from name the same, as model/plays and model/plays/ckpt.pt do."""
    folders = (path.parent if path.name == "ckpt.pt" else path for path in (Path(a), Path(b)))
    return a == b or len(set(folders)) == 1


def load_start(init_from: str, tok) -> dict:
    """What init_from names, as `checkpoint.load` returns a model; tok is the text's tokenizer.

    A ckpt.pt, a folder that holds one, a folder in Hugging Face's format, or the name of OpenAI's weights.
    Raises UserError for what holds no model, OSError where it cannot be fetched.
    """
    path = Path(init_from)
    if path.name in HF_FILES:  # its folder is meant
        path = path.parent
    if (path / "ckpt.pt").is_file():
        path = path / "ckpt.pt"
    if path.is_file():
        return checkpoint.load(path)
    folder = path if path.is_dir() else fetched(init_from)
    config, weights = read_model(folder)
    trained = own_tokenizer(folder)
    spelled = folder / "tokenizer.json"
    if trained is None and not spelled.is_file() and tok.vocab_size == config.vocab_size:
        trained = tok
    if trained is None:
        what = "is of another kind than GPT-2's" if spelled.is_file() else "is missing"
        raise UserError(f"{spelled} {what}, so nobody knows what the model's tokens are")
    return dict(config=dataclasses.asdict(config), tokenizer=trained.to_dict(), settings={}, model=weights)


def start_from(state: dict, source: str, settings: Settings, tok) -> tuple[GPT, object]:
    """(model, tokenizer) to train on a text encoded by tok, from what `load_start` returned of source.

    The shape is that model's; dropout is the settings', and so is a smaller block_size. Raises UserError
    where the model does not fit itself, or the text.
    """
    model, trained = checkpoint.build_model(state, source)
    joined = joined_vocabulary(trained, tok, source)
    old, weights = model.config, model.state_dict()
    added = joined.vocab_size - old.vocab_size
    block_size = min(settings.block_size, old.block_size)
    for name, table in weights.items():
        if name.startswith(("wte", "lm_head")):  # some have a row more, for no token, and one many for each
            rows = old.match if name == "wte_match.weight" else 1
            weights[name] = grown(table, added * rows, old.vocab_size * rows)
        elif name == "wpe.weight":
            weights[name] = table[:block_size].clone()
    changes = dict(vocab_size=joined.vocab_size, block_size=block_size, dropout=settings.dropout)
    model = checkpoint.empty_model(dataclasses.replace(old, **changes))
    model.load_state_dict(weights, assign=True)
    return model, joined


def joined_vocabulary(trained, tok, source: str):
    """The tokenizer of a model that was trained with one and goes on with a text encoded by tok.

    Characters that are new come last. Byte pairs stay as they are: they spell any text. Raises UserError for
    a model of characters and a text in byte pairs.
    """
    if trained.kind == "bpe":
        return trained
    if tok.kind == "bpe":
        advice = "prepare the text again with --tokenizer=char"
        raise UserError(f"{source} reads characters, and the text is encoded in byte pairs; {advice}")
    return CharTokenizer(trained.chars + "".join(c for c in tok.chars if c not in trained.chars))


def grown(table: torch.Tensor, added: int, at: int) -> torch.Tensor:
    """A table (rows, C) with so many rows more, at that row: each the mean of the others."""
    new = table[:at].mean(0, keepdim=True).expand(added, -1)
    return torch.cat([table[:at], new, table[at:]])


# ---------------------------------------------------------------------------- Hugging Face's format


def fetched(name: str) -> Path:
    """Where huggingface_hub keeps what it fetched under that name. Raises OSError where it cannot."""
    hub = optional("huggingface_hub")
    try:
        return Path(
            hub.snapshot_download(
                f"openai-community/{name}", revision=OPENAI_WEIGHTS[name], allow_patterns=list(HF_FILES)
            )
        )
    except (OSError, ValueError) as e:  # ValueError: what came is not what was published
        advice = "try again with a network, or give a folder with config.json and model.safetensors"
        raise OSError(0, f"{name} could not be fetched ({type(e).__name__}); {advice}") from None


def their_name(name: str) -> str:
    """GPT-2's name there of a parameter here, without what comes before all of them."""
    return re.sub(r"^blocks\.", "h.", name)


def transposed(name: str) -> bool:
    """Whether theirs holds the transpose of ours: their linear layers are of a kind of their own, Conv1D."""
    return bool(re.search(r"c_(attn|proj|fc)\.weight$", name))


PLAIN = {  # what a GPT-2 may also be told to do, and ours does not
    "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True, "add_cross_attention": False,
}  # fmt: skip


def their_config(theirs: dict) -> GPTConfig:
    """The shape that a config.json describes. Raises LookupError, TypeError or ValueError for another."""
    if theirs["model_type"] == "drama":  # of a model with its own code
        names = [field.name for field in dataclasses.fields(GPTConfig)]
        return checkpoint.shape({name: theirs[name] for name in names if name in theirs})
    if theirs["model_type"] != "gpt2" or any(theirs.get(key, PLAIN[key]) != PLAIN[key] for key in PLAIN):
        raise ValueError("another kind of model")
    if theirs.get("n_inner") not in (None, 4 * theirs["n_embd"]):
        raise ValueError("another width")
    return GPTConfig(
        **{name: theirs[name] for name in ("vocab_size", "n_layer", "n_head", "n_embd")},
        block_size=theirs["n_positions"],
        bias=True,
        gelu={"gelu": "exact", "gelu_new": "tanh"}[theirs["activation_function"]],
    )


def read_model(folder: Path) -> tuple[GPTConfig, dict[str, torch.Tensor]]:
    """The shape and the weights of a folder in Hugging Face's format, under this project's names.

    Raises UserError where it holds neither a GPT-2 nor a model that tools.export wrote.
    """
    safetensors = optional("safetensors.torch", "safetensors")
    try:
        config = their_config(read_json(folder / "config.json"))
        stored = safetensors.load_file(folder / "model.safetensors")
        # first, since a config may claim more layers than there is memory for
        if sum(name.endswith("c_attn.weight") for name in stored) != config.n_ensemble * config.n_layer:
            raise ValueError("config.json names another number of layers than model.safetensors has")
        model = checkpoint.empty_model(config)
        if "gpt.wte.weight" in stored:  # of a model with its own code
            weights = {name.removeprefix("gpt."): value.float() for name, value in stored.items()}
        else:
            stored = {name.removeprefix("transformer."): value for name, value in stored.items()}
            weights = {name: stored[their_name(name)].float() for name in model.state_dict()}
            weights = {name: w.T.contiguous() if transposed(name) else w for name, w in weights.items()}
        model.load_state_dict(weights, assign=True)
    except (
        OSError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, UserError,
        optional("safetensors").SafetensorError,
    ) as e:  # fmt: skip
        what = f"{folder} holds no GPT-2 and no export of ours in Hugging Face's format, nor a ckpt.pt"
        raise UserError(f"{what} ({type(e).__name__}: {one_line(e)[:120]})") from None
    return config, weights


def own_tokenizer(folder: Path):
    """The tokenizer of a folder in Hugging Face's format; None where it is not of a kind of this project."""
    try:
        theirs = read_json(folder / "tokenizer.json")
        special = tuple(token["content"] for token in theirs["added_tokens"])
        ids = {token: n for token, n in theirs["model"]["vocab"].items() if token not in special}
        tokens = sorted(ids, key=ids.get)
        if theirs["model"]["type"] == "WordLevel":
            tok = CharTokenizer("".join(tokens))
        else:
            tok = BPETokenizer([bytes(BYTES[char] for char in token) for token in tokens], special)
        return tok if vocabulary(tok) == ids else None
    except (OSError, UserError, LookupError, TypeError, ValueError, AttributeError):
        return None


# GPT-2's spelling of each byte as a printable character
SPELLED = {b: chr(b) for b in (*range(33, 127), *range(161, 173), *range(174, 256))}
SPELLED |= {b: chr(256 + n) for n, b in enumerate(sorted(set(range(256)) - set(SPELLED)))}
BYTES = {char: b for b, char in SPELLED.items()}


def spell(token: bytes) -> str:
    return "".join(SPELLED[b] for b in token)


def vocabulary(tok) -> dict[str, int]:
    """Each token as Hugging Face's libraries spell it, and its id; special tokens left out."""
    if tok.kind == "char":
        return {char: n for n, char in enumerate(tok.chars)}
    return {spell(token): n for n, token in enumerate(tok.tokens)}
