"""Take a model to other tools, and bring GPT-2's weights here, in Hugging Face's format.

    python export.py model/ckpt.pt --out=hf    then, in Python: transformers.pipeline("text-generation", "hf")

Needs safetensors and tokenizers (pip install safetensors tokenizers); transformers itself is not needed.
"""

import itertools
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

import checkpoint
from configurator import configure, run
from generation import generate
from model import GPT, GPTConfig
from tokenizer import CharTokenizer


@dataclass(frozen=True)
class Settings:
    """python export.py CKPT.pt [--name=value ...]"""

    out: str = "hf"  # the folder to write; it must not be there yet


def optional(name: str):
    """An optional package. Raises ValueError where it is not installed."""
    try:
        return __import__(name)
    except ImportError:
        raise ValueError(f"this needs a package: pip install {name.partition('.')[0]}") from None


# ---------------------------------------------------------------------------- weights

# our names and theirs; their linear layers (Conv1D) hold the transpose of ours
NAMES = (
    (r"wte\.weight", "transformer.wte.weight"),
    (r"wpe\.weight", "transformer.wpe.weight"),
    (r"blocks\.(\d+)\.(ln_[12]\.(?:weight|bias))", r"transformer.h.\1.\2"),
    (
        r"blocks\.(\d+)\.((?:attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.(?:weight|bias))",
        r"transformer.h.\1.\2",
    ),
    (r"ln_f\.(weight|bias)", r"transformer.ln_f.\1"),
)


def their_name(name: str) -> str:
    for ours, theirs in NAMES:
        if re.fullmatch(ours, name):
            return re.sub(ours, theirs, name)
    raise KeyError(name)


def transposed(name: str) -> bool:
    return bool(re.search(r"c_(attn|proj|fc)\.weight$", name))


def to_gpt2(model: GPT) -> dict[str, torch.Tensor]:
    """A GPT-2's weights under transformers' names; biases that ours does not have are zero there.

    Raises ValueError for arch=modern, which transformers has no class for.
    """
    if model.config.arch != "gpt2":
        raise ValueError(f"arch={model.config.arch!r} has no counterpart there; train with --arch=gpt2")
    weights = {}
    for name, value in model.state_dict().items():
        value = value.detach().float()
        weights[their_name(name)] = value.T.contiguous() if transposed(name) else value.contiguous()
        bias = name.removesuffix("weight") + "bias"
        if not model.config.bias and name not in ("wte.weight", "wpe.weight"):
            weights[their_name(bias)] = torch.zeros(value.shape[0])
    return weights


def from_gpt2(folder: Path, block_size: int | None = None, dropout: float = 0.0) -> GPT:
    """The model in a folder in Hugging Face's format, its context cropped to block_size.

    Raises ValueError for a folder that holds no GPT-2.
    """
    load_file = optional("safetensors.torch").torch.load_file
    refuse = ValueError(f"{folder} holds no GPT-2 in Hugging Face's format (config.json, model.safetensors)")
    try:
        theirs = checkpoint.read_json(folder / "config.json")
        stored = load_file(folder / "model.safetensors")
        if theirs["model_type"] != "gpt2":
            raise refuse
        config = GPTConfig(
            block_size=min(block_size or theirs["n_positions"], theirs["n_positions"]),
            vocab_size=theirs["vocab_size"],
            n_layer=theirs["n_layer"],
            n_head=theirs["n_head"],
            n_embd=theirs["n_embd"],
            dropout=dropout,
            bias=True,
        )
        stored = {"transformer." + name.removeprefix("transformer."): value for name, value in stored.items()}
        with torch.device("meta"), checkpoint.Unfilled():
            model = GPT(config)
        weights = {}
        for name in model.state_dict():
            value = stored[their_name(name)].float()
            weights[name] = value.T.contiguous() if transposed(name) else value
        weights["wpe.weight"] = weights["wpe.weight"][: config.block_size].clone()
        model.load_state_dict(weights, assign=True)
    except OSError:
        raise
    except Exception:  # safetensors has a class of its own for what it cannot read
        raise refuse from None
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


def visible() -> dict[int, str]:
    """GPT-2's spelling of each byte as a printable character."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(256 + n) for n, b in enumerate(others)}


def fast_tokenizer(tok):
    """The same as a tokenizer of Hugging Face's library."""
    tokenizers = optional("tokenizers")
    if isinstance(tok, CharTokenizer):
        made = tokenizers.Tokenizer(
            tokenizers.models.WordLevel({char: n for n, char in enumerate(tok.chars)}, unk_token=tok.chars[0])
        )
        made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
        made.decoder = tokenizers.decoders.Fuse()
        return made
    spelled = visible()

    def spell(token: bytes) -> str:
        return "".join(spelled[b] for b in token)

    vocab = {spell(token): n for n, token in enumerate(tok.tokens)}
    pairs = [(spell(a), spell(b)) for a, b in merges(tok.tokens)]
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, pairs))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)  # with GPT-2's pattern
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(list(tok.special))
    return made


# ---------------------------------------------------------------------------- a folder

CARD = """---
library_name: transformers
pipeline_tag: text-generation
---
# A GPT-2 that writes plays

Trained from scratch on {dataset}, {parameters:.2f}M parameters, {tokenizer}.

- validation loss {val_loss:.4f} nats a token at iteration {iteration:,} (training loss {train_loss:.4f})
- settings: {settings}

```python
from transformers import pipeline
print(pipeline("text-generation", "{out}")("{start}", max_new_tokens=300, do_sample=True, temperature=0.8))
```

It writes:

```
{sample}
```
"""


def export(path: Path, out: Path):
    """Write what transformers loads into a new folder. Raises ValueError for a model it has no class for."""
    save_file = optional("safetensors.torch").torch.save_file
    state = checkpoint.load(path)
    model, tok = checkpoint.build_model(state, path)
    weights, c = to_gpt2(model), model.config
    if out.exists():
        raise ValueError(f"out={str(out)!r} is there already; give a folder that is not")
    out.mkdir(parents=True)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": c.vocab_size,
        "n_positions": c.block_size,
        "n_layer": c.n_layer,
        "n_head": c.n_head,
        "n_embd": c.n_embd,
        "activation_function": "gelu_new",
        "embd_pdrop": c.dropout,
        "attn_pdrop": c.dropout,
        "resid_pdrop": c.dropout,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "float32",
    }
    written = {
        "config.json": config,
        "generation_config.json": {"do_sample": True, "temperature": 0.8, "max_new_tokens": 500},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": c.block_size,
            "clean_up_tokenization_spaces": False,
        },
    }
    for name, value in written.items():
        (out / name).write_text(json.dumps(value, indent=1), encoding="utf-8")
    fast_tokenizer(tok).save(str(out / "tokenizer.json"))
    first = tok.encode(tok.decode([0])) if isinstance(tok, CharTokenizer) else tok.encode("\n")
    sample = generate(model.eval(), torch.tensor(first.astype("int64"))[None], 400, temperature=0.8)
    settings = state["settings"]
    card = CARD.format(
        dataset=settings["dataset"],
        parameters=model.num_params() / 1e6,
        tokenizer="characters" if isinstance(tok, CharTokenizer) else f"{tok.vocab_size:,} byte-pair tokens",
        val_loss=state["val_loss"],
        train_loss=state["train_loss"],
        iteration=state["iteration"],
        settings=", ".join(f"{name} {settings[name]}" for name in settings),
        out=out.name,
        start="LUCIO:",
        sample=tok.decode(sample[0].tolist()).strip("\n"),
    )
    (out / "README.md").write_text(card, encoding="utf-8")
    print(f"{out}: {', '.join(sorted(p.name for p in out.iterdir()))}")


def main():
    words = [word for word in sys.argv[1:] if word.endswith(".pt")]
    settings = configure(Settings, [word for word in sys.argv[1:] if not word.endswith(".pt")])
    export(Path(words[0] if words else "model/ckpt.pt"), Path(settings.out))


if __name__ == "__main__":
    run(main)
