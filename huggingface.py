"""GPT-2's weights and tokenizers in Hugging Face's formats, both ways.

Needs safetensors, tokenizers or huggingface_hub where one is used, and says so; transformers is not needed.
"""

import dataclasses
import importlib
import itertools
import re
from pathlib import Path

import torch

import checkpoint
from model import GPT, GPTConfig
from tokenizer import CharTokenizer

OWN_WEIGHTS = ("auto", "resume", "scratch")  # of init_from: what a run of ours begins with
OPENAI_WEIGHTS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


def optional(name: str):
    """An optional package. Raises ValueError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ValueError(f"this needs a package: pip install {name.partition('.')[0]}") from None


# ---------------------------------------------------------------------------- weights


def their_name(name: str) -> str:
    """GPT-2's name there of a parameter here."""
    return "transformer." + re.sub(r"^blocks\.", "h.", name)


def transposed(name: str) -> bool:
    """Whether theirs holds the transpose of ours: their linear layers are of a kind of their own, Conv1D."""
    return bool(re.search(r"c_(attn|proj|fc)\.weight$", name))


def to_gpt2(model: GPT) -> dict[str, torch.Tensor]:
    """A GPT-2's weights under transformers' names; biases that ours does not have are zero there.

    Raises ValueError for what transformers has no class for.
    """
    for name, value in {"arch": "gpt2", "n_ensemble": 1}.items():
        if (own := getattr(model.config, name)) != value:
            raise ValueError(f"{name}={own!r} has no counterpart there; train with --{name}={value}")
    weights = {}
    for name, value in model.state_dict().items():
        value = value.detach().float()
        weights[their_name(name)] = value.T.contiguous() if transposed(name) else value.contiguous()
        bias = name.removesuffix("weight") + "bias"
        if not model.config.bias and name not in ("wte.weight", "wpe.weight"):
            weights[their_name(bias)] = torch.zeros(value.shape[0])
    return weights


def fetched(name: str) -> Path:
    """The folder of that name, or where huggingface_hub keeps what it fetched under it.

    Raises OSError where it cannot be fetched.
    """
    if Path(name).is_dir():
        return Path(name)
    hub = optional("huggingface_hub")
    try:
        return Path(
            hub.snapshot_download(name, allow_patterns=["config.json", "model.safetensors", "tokenizer.json"])
        )
    except Exception as e:  # whatever its HTTP library raises
        raise OSError(
            0,
            f"{name} is no folder here and could not be fetched ({type(e).__name__}); try again with a "
            "network, or give a folder with config.json and model.safetensors",
        ) from None


PLAIN = {  # what a GPT-2 may also be told to do, and ours does not
    "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True, "add_cross_attention": False,
}  # fmt: skip


def from_gpt2(name: str, block_size: int, dropout: float, tok) -> GPT:
    """A GPT-2 from a folder in Hugging Face's format or from its hub, its context cropped to block_size.

    Raises ValueError for what is no GPT-2 or was trained with another tokenizer than tok, OSError where it
    cannot be fetched.
    """
    folder = fetched(name)
    load_file = optional("safetensors.torch").load_file
    refuse = ValueError(f"{folder} holds no GPT-2 in Hugging Face's format (config.json, model.safetensors)")
    try:
        theirs = checkpoint.read_json(folder / "config.json")
        stored = load_file(folder / "model.safetensors")
        if theirs["model_type"] != "gpt2" or any(theirs.get(key, PLAIN[key]) != PLAIN[key] for key in PLAIN):
            raise refuse
        if theirs.get("n_inner") not in (None, 4 * theirs["n_embd"]):
            raise refuse
        config = GPTConfig(
            block_size=theirs["n_positions"],
            vocab_size=theirs["vocab_size"],
            n_layer=theirs["n_layer"],
            n_head=theirs["n_head"],
            n_embd=theirs["n_embd"],
            dropout=dropout,
            bias=True,
            gelu={"gelu": "none", "gelu_new": "tanh"}[theirs["activation_function"]],
        )
        stored = {"transformer." + name.removeprefix("transformer."): value for name, value in stored.items()}
        with torch.device("meta"), checkpoint.Unfilled():
            model = GPT(config)
        weights = {}
        for name in model.state_dict():
            value = stored[their_name(name)].float()
            weights[name] = value.T.contiguous() if transposed(name) else value
        model.load_state_dict(weights, assign=True)
        spelled = folder / "tokenizer.json"
        known = checkpoint.read_json(spelled)["model"]["vocab"] if spelled.is_file() else vocabulary(tok)
        same_tokens = all(known.get(token) == n for token, n in vocabulary(tok).items())
    except OSError:
        raise
    except Exception:  # safetensors has a class of its own for what it cannot read
        raise refuse from None
    if config.vocab_size != tok.vocab_size or not same_tokens:
        raise ValueError(
            f"{name} was trained on other tokens ({config.vocab_size:,} of them) than the text is encoded in "
            f"({tok.vocab_size:,}); for OpenAI's weights prepare it with --tokenizer=gpt2"
        )
    if block_size > config.block_size:
        raise ValueError(f"block_size={block_size} is more than the {config.block_size} of {name}")
    model.config = dataclasses.replace(config, block_size=block_size)
    model.wpe = torch.nn.Embedding.from_pretrained(model.wpe.weight[:block_size].clone(), freeze=False)
    return model


# ---------------------------------------------------------------------------- tokenizers


def merges(tokens: list[bytes]) -> list[tuple[bytes, bytes]]:
    """The pair that each token of several bytes was merged from, in their order."""
    rank = {token: n for n, token in enumerate(tokens)}
    pairs = []
    for n, token in enumerate(tokens):
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:  # merge as encoding would, with what was learned before
            joined = [rank.get(a + b, n) for a, b in itertools.pairwise(parts)]
            first = min(range(len(joined)), key=joined.__getitem__)
            if joined[first] >= n:
                break
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        if len(parts) == 2:
            pairs.append((parts[0], parts[1]))
    return pairs


# GPT-2's spelling of each byte as a printable character
PLAIN_BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
VISIBLE = {b: chr(b) for b in PLAIN_BYTES}
VISIBLE |= {b: chr(256 + n) for n, b in enumerate(b for b in range(256) if b not in PLAIN_BYTES)}


def spell(token: bytes) -> str:
    return "".join(VISIBLE[b] for b in token)


def vocabulary(tok) -> dict[str, int]:
    """Each token as Hugging Face's libraries spell it, and its id; special tokens left out."""
    if isinstance(tok, CharTokenizer):
        return {char: n for n, char in enumerate(tok.chars)}
    return {spell(token): n for n, token in enumerate(tok.tokens)}


def fast_tokenizer(tok):
    """The same as a tokenizer of Hugging Face's library."""
    tokenizers = optional("tokenizers")
    if isinstance(tok, CharTokenizer):
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary(tok), unk_token=tok.chars[0]))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
        made.decoder = tokenizers.decoders.Fuse()
        return made
    pairs = [(spell(a), spell(b)) for a, b in merges(tok.tokens)]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary(tok), pairs))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)  # with GPT-2's pattern
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(list(tok.special))
    return made
