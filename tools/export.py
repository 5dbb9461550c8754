"""Take a model to other tools.

    python -m tools.export model/ckpt.pt              into hf/, for transformers' pipeline
    python -m tools.export model/ckpt.pt --to=onnx    into onnx/, for onnxruntime, which needs no PyTorch
    python -m tools.export model/ckpt.pt --to=gguf    into gguf/, for llama.cpp, Ollama and LM Studio
    python -m tools.export model/ckpt.pt --to=html    into html/: one page that writes, to send to a friend

The text written there equals this project's in float32, up to block_size tokens; beyond that it differs,
except in the page.
Each needs a few packages (safetensors and tokenizers; onnxscript and tokenizers; gguf), and says so.
"""

import contextlib
import dataclasses
import io
import json
import logging
import sys
import tempfile
import warnings
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from drama.program import ROOT, optional, run_program

import torch

from configurator import FilePath, UserError, check, configure, split_files
from drama import checkpoint
from drama.generation import generate, prompt_ids
from drama.huggingface import fast_tokenizer, to_gpt2
from drama.llamacpp import write_gguf
from drama.run import OWN_WEIGHTS
from drama.scene import colon
from drama.tokenizer import CharTokenizer, first_text
from model import GPT

Format = Literal["hf", "onnx", "gguf", "html"]


@dataclass(frozen=True)
class Settings:
    """python -m tools.export CKPT.pt [--name=value ...]"""

    to: Format = "hf"  # hf, Hugging Face's format for GPT-2; gguf, llama.cpp's for GPT-2; of any model onnx,
    #                    or html: one page that writes in any browser
    dtype: Literal["auto", "float32", "float16"] = "auto"  # of gguf and html; auto: float32, of html float16
    out: FilePath = ""  # the folder to write, which must not be there yet; empty: named as the format is

    def __post_init__(self):
        check(self)
        if self.dtype != "auto" and self.to not in ("gguf", "html"):
            raise UserError(f"dtype={self.dtype!r} is for gguf and html; {self.to} is written in float32")


TRANSFORMERS = """from transformers import pipeline
write = pipeline("text-generation", "{out}")
print(write({prompt!r}, max_length={block_size}, do_sample=True, temperature=0.8)[0]["generated_text"])"""


def write_hf(folder: Path, model: GPT, tok, settings: Settings, prompt: str):
    """What transformers loads. Raises UserError for a model it has no class for."""
    c = model.config
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **{name: getattr(c, name) for name in ("vocab_size", "n_layer", "n_head", "n_embd")},
        **dict.fromkeys(("n_positions", "n_ctx"), c.block_size),  # n_ctx is llama.cpp's name for it
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), c.dropout),
        **dict.fromkeys(("bos_token_id", "eos_token_id")),
        "activation_function": {"none": "gelu", "tanh": "gelu_new"}[c.gelu],
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
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
    fast_tokenizer(tok).save(str(folder / "tokenizer.json"))


ONNXRUNTIME = """import numpy, onnxruntime, tokenizers
tok = tokenizers.Tokenizer.from_file("{out}/tokenizer.json")
model = onnxruntime.InferenceSession("{out}/model.onnx")
ids = tok.encode({prompt!r}).ids
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


def write_onnx(folder: Path, model: GPT, tok, settings: Settings, prompt: str):
    """One model.onnx: tokens (1, T), T any length up to block_size -> logits (1, V) of what follows."""
    optional("onnxscript")
    fast_tokenizer(tok).save(str(folder / "tokenizer.json"))
    tokens = torch.zeros(1, min(3, model.config.block_size), dtype=torch.long)
    length = torch.export.Dim("length", min=1, max=model.config.block_size)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # it prints its steps
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            torch.onnx.export(
                NextToken(model), (tokens,), folder / "model.onnx", dynamo=True, external_data=False,
                input_names=["tokens"], output_names=["logits"], dynamic_shapes={"tokens": {1: length}},
            )  # fmt: skip
        finally:
            logging.disable(logging.NOTSET)


LLAMACPP = """import xllamacpp  # or: llama-cli -m {out}/model.gguf -no-cnv -p {prompt!r}
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx = "{out}/model.gguf", {block_size}
job = dict(prompt={prompt!r}, n_predict=200, temperature=0.8)
print(job["prompt"] + xllamacpp.Server(params).handle_completions(job)["choices"][0]["text"])"""


def write_llamacpp(folder: Path, model: GPT, tok, settings: Settings, prompt: str):
    """One model.gguf. Raises UserError for a model that llama.cpp has no class for."""
    dtype = torch.float16 if settings.dtype == "float16" else torch.float32
    write_gguf(folder / "model.gguf", model, tok, dtype)


HTML = """import webbrowser, pathlib
webbrowser.open(pathlib.Path("{out}/drama.html").resolve().as_uri())"""


def write_html(folder: Path, model: GPT, tok, settings: Settings, prompt: str):
    """One drama.html that needs nothing else: the weights, and the network in JavaScript."""
    dtype = torch.float32 if settings.dtype == "float32" else torch.float16
    tensors, parts, at = [], [], 0
    for name, value in model.state_dict().items():
        tensors.append([name, at, value.numel()])
        parts.append(value.detach().to(dtype).contiguous().flatten().numpy().tobytes())
        at += value.numel()
    chars = isinstance(tok, CharTokenizer)
    tokens = [char.encode("utf-8", "surrogatepass") for char in tok.chars] if chars else tok.tokens
    header = dict(
        config=dataclasses.asdict(model.config),
        dtype=str(dtype).removeprefix("torch."),
        kind="char" if chars else "bpe",
        tokens=[token.decode("latin-1") for token in tokens],
        tensors=tensors,
        prompt=prompt,
    )
    page = (ROOT / "tools" / "page.html").read_text(encoding="utf-8")
    # the header last, since it may hold anything; and nothing in it ends the script that it stands in
    weights, text = b64encode(b"".join(parts)).decode(), json.dumps(header).replace("<", "\\u003c")
    page = page.replace("{{weights}}", weights).replace("{{header}}", text, 1)
    (folder / "drama.html").write_text(page, encoding="utf-8")


FORMATS = {
    "hf": (write_hf, TRANSFORMERS, "transformers"),
    "onnx": (write_onnx, ONNXRUNTIME, "onnxruntime"),
    "gguf": (write_llamacpp, LLAMACPP, "gguf"),
    "html": (write_html, HTML, "html"),
}


def card(state: dict, model: GPT, tok, library: str, code: str) -> str:
    """A model card: the data, the settings, the losses, how to use it, and a sample."""
    sample = generate(model, prompt_ids(tok, first_text(tok), model), 400, temperature=0.8)
    settings, origin = state["settings"], state["settings"].get("init_from", "auto")
    origin = " from scratch" if origin in OWN_WEIGHTS else f", starting from {origin}"
    return f"""---
library_name: {library}
pipeline_tag: text-generation
---
# A GPT that writes plays

Trained on {settings.get("dataset", "a text")}{origin}:
{model.num_params() / 1e6:.2f}M parameters, a vocabulary of {tok.vocab_size:,}.

- {", ".join(f"{name} {value}" for name, value in state["config"].items())}
- validation loss {state["val_loss"]:.4f} nats per token at iteration {state["iteration"]:,} (training loss \
{state["train_loss"]:.4f})
- settings: {", ".join(f"{name} {settings[name]}" for name in settings)}

```python
{code}
```

It writes:

```
{tok.decode(sample[0].tolist()).strip(chr(10))}
```
"""


def export(path: Path, settings: Settings):
    """Write a model into a new folder. Raises UserError for one that does not fit the format."""
    out = Path(settings.out or settings.to)
    state = checkpoint.load(path)
    model, tok = checkpoint.build_model(state, path)
    kinds = dict(iteration=int, train_loss=float, val_loss=float)
    if any(type(state.get(name)) is not kind for name, kind in kinds.items()):
        raise UserError(f"{path} is no ckpt.pt")
    if out.exists():
        raise UserError(f"out={str(out)!r} is there already; give a folder that is not")
    write, code, library = FORMATS[settings.to]
    speaker = next(iter(state.get("speakers", [])), "")
    prompt = f"{speaker}{colon(speaker, tok)}" if speaker else first_text(tok)
    code = code.format(out=out.name, block_size=model.config.block_size, prompt=prompt)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:  # the folder is whole or absent
        folder = Path(temporary) / "whole"
        folder.mkdir()
        write(folder, model.eval(), tok, settings, prompt)
        (folder / "README.md").write_text(card(state, model, tok, library, code), encoding="utf-8")
        folder.rename(out)
    print(f"{out}: {', '.join(sorted(p.name for p in out.iterdir()))}")


def main():
    files, others = split_files(sys.argv[1:], ".pt")
    if len(files) > 1:
        raise UserError(f"one checkpoint at a time, not {' '.join(files)}")
    export(Path(files[0] if files else "model/ckpt.pt"), configure(Settings, others))


if __name__ == "__main__":
    run_program(main)
