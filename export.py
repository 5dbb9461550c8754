"""Take a model to other tools.

    python export.py model/ckpt.pt              into hf/, for transformers.pipeline("text-generation", "hf")
    python export.py model/ckpt.pt --to=onnx    into onnx/, for onnxruntime, which needs no PyTorch

The text written there is this project's in float32, up to block_size tokens; what each does beyond differs.
Either needs a few packages (safetensors and tokenizers, or onnxscript and tokenizers), and says so.
"""

from configurator import configure, files, run  # first: see starting() there

# isort: split
import contextlib
import io
import json
import logging
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

import checkpoint
from generation import generate
from huggingface import OWN_WEIGHTS, fast_tokenizer, optional, to_gpt2
from model import GPT
from tokenizer import CharTokenizer


@dataclass(frozen=True)
class Settings:
    """python export.py CKPT.pt [--name=value ...]"""

    to: str = "hf"  # hf, Hugging Face's format for GPT-2; or onnx, which takes arch=modern as well
    out: str = ""  # the folder to write, which must not be there yet; empty: named as the format is

    def __post_init__(self):
        if self.to not in FORMATS:
            raise ValueError(f"to={self.to!r} is none of {', '.join(FORMATS)}")


# ---------------------------------------------------------------------------- Hugging Face

TRANSFORMERS = """from transformers import pipeline
write = pipeline("text-generation", "{out}")
print(write("LUCIO:", max_length={block_size}, do_sample=True, temperature=0.8)[0]["generated_text"])"""


def write_hf(folder: Path, model: GPT):
    """What transformers loads. Raises ValueError for a model it has no class for."""
    c = model.config
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": c.vocab_size,
        "n_positions": c.block_size,
        "n_ctx": c.block_size,  # llama.cpp's name for it
        "n_layer": c.n_layer,
        "n_head": c.n_head,
        "n_embd": c.n_embd,
        "activation_function": {"none": "gelu", "tanh": "gelu_new"}[c.gelu],
        "embd_pdrop": c.dropout,
        "attn_pdrop": c.dropout,
        "resid_pdrop": c.dropout,
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "dtype": "float32",
    }
    written = {
        "config.json": config,
        "generation_config.json": {"do_sample": True, "temperature": 0.8, "max_length": c.block_size},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": c.block_size,
            "clean_up_tokenization_spaces": False,
        },
    }
    save_file = optional("safetensors.torch").save_file
    save_file(to_gpt2(model), folder / "model.safetensors", metadata={"format": "pt"})
    for name, value in written.items():
        (folder / name).write_text(json.dumps(value, indent=1), encoding="utf-8")


# ---------------------------------------------------------------------------- ONNX

ONNXRUNTIME = """import numpy, onnxruntime, tokenizers
tok = tokenizers.Tokenizer.from_file("{out}/tokenizer.json")
model = onnxruntime.InferenceSession("{out}/model.onnx")
ids = tok.encode("LUCIO:").ids
for _ in range(200):  # the likeliest token each time
    logits = model.run(["logits"], {{"tokens": numpy.array([ids[-{block_size}:]])}})[0]
    ids.append(int(logits[0].argmax()))
print(tok.decode(ids))"""


class NextToken(torch.nn.Module):
    """The model as ONNX takes it: no loss, no cache."""

    def __init__(self, model: GPT):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        """tokens (1, T), T at most block_size -> logits (1, V) of the token that follows."""
        return self.model(tokens)[0][:, 0]


def write_onnx(folder: Path, model: GPT):
    """One model.onnx: tokens (1, T), T any length up to block_size -> logits (1, V) of what follows."""
    optional("onnxscript")
    tokens = torch.zeros(1, min(3, model.config.block_size), dtype=torch.long)
    length = torch.export.Dim("length", min=1, max=model.config.block_size)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # it tells of its own steps
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            torch.onnx.export(
                NextToken(model), (tokens,), folder / "model.onnx", dynamo=True, external_data=False,
                input_names=["tokens"], output_names=["logits"], dynamic_shapes={"tokens": {1: length}},
            )  # fmt: skip
        finally:
            logging.disable(logging.NOTSET)


# ---------------------------------------------------------------------------- both

FORMATS = {"hf": (write_hf, TRANSFORMERS, "transformers"), "onnx": (write_onnx, ONNXRUNTIME, "onnxruntime")}

CARD = """---
library_name: {library}
pipeline_tag: text-generation
---
# A GPT that writes plays

Trained on {dataset}{origin}: {parameters:.2f}M parameters, {tokenizer}.

- {shape}
- validation loss {val_loss:.4f} nats a token at iteration {iteration:,} (training loss {train_loss:.4f})
- settings: {settings}

```python
{code}
```

It writes:

```
{sample}
```
"""


def card(state: dict, model: GPT, tok, library: str, code: str) -> str:
    """A model card: the data, the settings, the losses, how to use it, and a sample."""
    first = 0 if isinstance(tok, CharTokenizer) else tok.encode("\n").item()  # not every text has newlines
    sample = generate(model, torch.tensor([[first]]), 400, temperature=0.8)
    settings = state["settings"]
    origin = settings["init_from"]
    return CARD.format(
        library=library,
        dataset=settings["dataset"],
        origin=" from scratch" if origin in OWN_WEIGHTS else f", starting from {origin}",
        parameters=model.num_params() / 1e6,
        tokenizer="characters" if isinstance(tok, CharTokenizer) else f"{tok.vocab_size:,} byte-pair tokens",
        shape=", ".join(f"{name} {value}" for name, value in state["config"].items()),
        val_loss=state["val_loss"],
        train_loss=state["train_loss"],
        iteration=state["iteration"],
        settings=", ".join(f"{name} {settings[name]}" for name in settings),
        code=code,
        sample=tok.decode(sample[0].tolist()).strip("\n"),
    )


def export(path: Path, settings: Settings):
    """Write a model into a new folder. Raises ValueError for one that the format has no place for."""
    out = Path(settings.out or settings.to)
    state = checkpoint.load(path)
    model, tok = checkpoint.build_model(state, path)
    tokens = fast_tokenizer(tok)
    if not {"train_loss", "val_loss", "iteration"} <= state.keys():
        raise ValueError(f"{path} is no ckpt.pt")
    if out.exists():
        raise ValueError(f"out={str(out)!r} is there already; give a folder that is not")
    write, code, library = FORMATS[settings.to]
    code = code.format(out=out.name, block_size=model.config.block_size)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as beside:  # the folder is whole or absent
        folder = Path(beside) / "whole"
        folder.mkdir()
        write(folder, model.eval())
        tokens.save(str(folder / "tokenizer.json"))
        (folder / "README.md").write_text(card(state, model, tok, library, code), encoding="utf-8")
        folder.rename(out)
    print(f"{out}: {', '.join(sorted(p.name for p in out.iterdir()))}")


def main():
    given, others = files(sys.argv[1:], ".pt")
    if len(given) > 1:
        raise ValueError(f"one checkpoint at a time, not {' '.join(given)}")
    export(Path(given[0] if given else "model/ckpt.pt"), configure(Settings, others))


if __name__ == "__main__":
    run(main)
