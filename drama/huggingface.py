"""GPT-2's weights and tokenizers in Hugging Face's formats, both ways.

Needs safetensors, tokenizers or huggingface_hub where one is used, and says so; transformers is not needed.
"""

import dataclasses
import itertools
import re
from pathlib import Path

from drama.program import optional

import torch

from configurator import UserError, one_line
from drama import checkpoint
from drama.disk import read_json
from drama.tokenizer import BPETokenizer, CharTokenizer
from model import GPT, GPTConfig

OPENAI_WEIGHTS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")


def their_name(name: str) -> str:
    """GPT-2's name there of a parameter here, without what comes before all of them."""
    return re.sub(r"^blocks\.", "h.", name)


def transposed(name: str) -> bool:
    """Whether theirs holds the transpose of ours: their linear layers are of a kind of their own, Conv1D."""
    return bool(re.search(r"c_(attn|proj|fc)\.weight$", name))


def is_gpt2(config: GPTConfig) -> bool:
    """Whether other tools have a class for it."""
    return config.arch == "gpt2" and config.n_ensemble == 1


def to_gpt2(model: GPT) -> dict[str, torch.Tensor]:
    """A GPT-2's weights under transformers' names; biases that ours does not have are zero there."""
    weights = {}
    for name, value in model.state_dict().items():
        value = value.detach().float()
        weights[their_name(name)] = value.T.contiguous() if transposed(name) else value.contiguous()
        bias = name.removesuffix("weight") + "bias"
        if not model.config.bias and name not in ("wte.weight", "wpe.weight"):
            weights[their_name(bias)] = torch.zeros(value.shape[0])
    return {f"transformer.{name}": value for name, value in weights.items()}


def fetched(name: str) -> Path:
    """The folder of that name, or where huggingface_hub keeps what it fetched under it.

    Raises OSError where it cannot be fetched.
    """
    if Path(name).is_dir():
        return Path(name)
    hub = optional("huggingface_hub")
    files = ["config.json", "model.safetensors", "tokenizer.json"]
    try:
        return Path(hub.snapshot_download(name, allow_patterns=files))
    except (OSError, ValueError) as e:  # ValueError: what came is not what was published
        advice = "try again with a network, or give a folder with config.json and model.safetensors"
        raise OSError(0, f"{name} could not be fetched ({type(e).__name__}); {advice}") from None


PLAIN = {  # what a GPT-2 may also be told to do, and ours does not
    "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True, "add_cross_attention": False,
}  # fmt: skip


def their_config(theirs: dict) -> GPTConfig:
    """The shape that a config.json describes. Raises LookupError, TypeError or ValueError for another."""
    if theirs["model_type"] == "drama":  # of a model with its own code
        return GPTConfig(**{field.name: theirs[field.name] for field in dataclasses.fields(GPTConfig)})
    if theirs["model_type"] != "gpt2" or any(theirs.get(key, PLAIN[key]) != PLAIN[key] for key in PLAIN):
        raise ValueError("another kind of model")
    if theirs.get("n_inner") not in (None, 4 * theirs["n_embd"]):
        raise ValueError("another width")
    return GPTConfig(
        **{name: theirs[name] for name in ("vocab_size", "n_layer", "n_head", "n_embd")},
        block_size=theirs["n_positions"],
        bias=True,
        gelu={"gelu": "none", "gelu_new": "tanh"}[theirs["activation_function"]],
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


def as_checkpoint(folder: Path, tok) -> dict:
    """A folder in Hugging Face's format as `checkpoint.load` would return it. Raises UserError."""
    config, weights = read_model(folder)
    return dict(config=dataclasses.asdict(config), tokenizer=tok.to_dict(), settings={}, model=weights)


def from_gpt2(name: str, block_size: int, dropout: float, tok) -> GPT:
    """A GPT-2 from a folder in Hugging Face's format or from its hub, its context cropped to block_size.

    Raises UserError where it is not a GPT-2 or was trained with another tokenizer than tok, OSError where it
    cannot be fetched.
    """
    folder = fetched(name)
    config, weights = read_model(folder)
    try:
        spelled = folder / "tokenizer.json"
        known = read_json(spelled)["model"]["vocab"] if spelled.is_file() else vocabulary(tok)
        same_tokens = all(known.get(token) == n for token, n in vocabulary(tok).items())
    except (LookupError, TypeError, AttributeError):
        same_tokens = False
    if config.vocab_size != tok.vocab_size or not same_tokens:
        advice = "for OpenAI's weights prepare the text with --tokenizer=gpt2"
        if not (folder / "tokenizer.json").is_file():
            advice = f"{folder / 'tokenizer.json'} is missing"
        raise UserError(f"{name} was trained on other tokens than the text is encoded in; {advice}")
    if block_size > config.block_size:
        raise UserError(f"block_size={block_size} is more than the {config.block_size} of {name}")
    weights["wpe.weight"] = weights["wpe.weight"][:block_size].clone()
    model = checkpoint.empty_model(dataclasses.replace(config, block_size=block_size, dropout=dropout))
    model.load_state_dict(weights, assign=True)
    return model


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
VISIBLE = {b: chr(b) for b in (*range(33, 127), *range(161, 173), *range(174, 256))}
VISIBLE |= {b: chr(256 + n) for n, b in enumerate(sorted(set(range(256)) - set(VISIBLE)))}

BYTES = {char: b for b, char in VISIBLE.items()}


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
        # which is not in the vocabulary, so that unknown characters are refused
        made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary(tok), unk_token="<unknown>"))
        made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
        made.decoder = tokenizers.decoders.Fuse()
        return made
    pairs = [(spell(a), spell(b)) for a, b in merges(tok.tokens)]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary(tok), pairs))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)  # with GPT-2's pattern
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(list(tok.special))
    return made
