"""Take a model to other tools.

    python -m tools.export model/ckpt.pt              into hf/, for transformers' pipeline
    python -m tools.export model/ckpt.pt --to=onnx    into onnx/, for onnxruntime, which needs no PyTorch
    python -m tools.export model/ckpt.pt --to=gguf    into gguf/, for llama.cpp, Ollama and LM Studio
    python -m tools.export model/ckpt.pt --to=html    into html/: one page that writes, to send to a friend

The text written there equals this project's in float32, up to block_size tokens; beyond that it may differ.
What was written is loaded and compared where the library for it is installed. Each needs a few packages
(safetensors and tokenizers; onnxscript and tokenizers; gguf), and says so.
"""

import dataclasses
import json
import shutil
import sys
import tempfile
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from drama.program import ROOT, optional, run_program

import torch

from configurator import FilePath, UserError, check, configure, split_files
from drama import checkpoint
from drama.generation import generate, prompt_ids
from drama.huggingface import fast_tokenizer, is_gpt2, to_gpt2
from drama.llamacpp import write_gguf
from drama.onnx import write_graph
from drama.run import OWN_WEIGHTS
from drama.scene import colon
from drama.tokenizer import CharTokenizer, first_text
from model import GPT, PAST, GPTConfig
from tools.loading import check as check_loaded

Format = Literal["hf", "onnx", "gguf", "html"]


@dataclass(frozen=True)
class Settings:
    """python -m tools.export CKPT.pt [--name=value ...]"""

    to: Format = "hf"  # hf, Hugging Face's format; onnx; html, one page that writes in any browser; or gguf,
    #                    llama.cpp's, for arch=gpt2 alone
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
    """What transformers loads as one of its own models, GPT-2."""
    c = model.config
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **{name: getattr(c, name) for name in ("vocab_size", "n_layer", "n_head", "n_embd")},
        **dict.fromkeys(("n_positions", "n_ctx"), c.block_size),  # n_ctx is llama.cpp's name for it
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), c.dropout),
        "activation_function": {"none": "gelu", "tanh": "gelu_new"}[c.gelu],
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
    }
    write_hf_folder(folder, config, to_gpt2(model), c, tok, max_length=c.block_size)


OWN_CODE = """from transformers import pipeline
write = pipeline("text-generation", "{out}", trust_remote_code=True)
print(write({prompt!r}, max_length={length}, do_sample=True, temperature=0.8)[0]["generated_text"])"""

CODE_IS_RUN = """
`trust_remote_code=True` runs this folder's `modeling_drama.py` and `model.py`: read them first, they are
short. `AutoModelForCausalLM` and `AutoTokenizer` take it too. Of a folder on the hub, give `revision` and
`code_revision` the commit that you read.
"""


def write_hf_with_code(folder: Path, model: GPT, tok, settings: Settings, prompt: str):
    """What transformers loads with the network's own code, which lies beside the weights."""
    c = model.config
    config = {
        "model_type": "drama",
        "architectures": ["DramaForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_drama.DramaConfig",
            "AutoModelForCausalLM": "modeling_drama.DramaForCausalLM",
        },
        **dataclasses.asdict(c),
        # their names, for what asks by these
        "hidden_size": c.n_embd,
        "num_attention_heads": c.n_head,
        "num_hidden_layers": c.n_layer * c.n_ensemble,
        "tie_word_embeddings": False,
        "tokenizer_class": "PreTrainedTokenizerFast",  # earlier versions look for it here
    }
    for file in (ROOT / "model.py", ROOT / "tools" / "modeling_drama.py"):
        shutil.copy(file, folder)
    weights = {f"gpt.{name}": value.detach().contiguous() for name, value in model.state_dict().items()}
    write_hf_folder(folder, config, weights, c, tok, max_length=longest(model))


def longest(model: GPT) -> int:
    """How long a text becomes where nothing is said; rotary positions go on past block_size."""
    return model.config.block_size if model.wpe else 512


def write_hf_folder(folder: Path, config: dict, weights: dict, c: GPTConfig, tok, max_length: int):
    """The files of a model in Hugging Face's format; max_length: where a text ends if nothing is said."""
    config |= {"bos_token_id": None, "eos_token_id": None, "dtype": "float32"}
    written = {
        "config.json": config,
        "generation_config.json": {"do_sample": True, "temperature": 0.8, "max_length": max_length},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": c.block_size,
            "clean_up_tokenization_spaces": False,
        },
    }
    for name, value in written.items():
        (folder / name).write_text(json.dumps(value, indent=1), encoding="utf-8")
    save_file = optional("safetensors.torch").save_file
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    fast_tokenizer(tok).save(str(folder / "tokenizer.json"))


ONNXRUNTIME = """import numpy, onnxruntime, tokenizers
tok = tokenizers.Tokenizer.from_file("{out}/tokenizer.json")
model = onnxruntime.InferenceSession("{out}/model.onnx")
size = [[n if type(n) is int else 0 for n in i.shape] for i in model.get_inputs()]
names = [i.name for i in model.get_inputs()]
start = {{name: numpy.zeros(n, "float32") for name, n in zip(names[1:], size[1:])}}
start["before"] = numpy.full((1, {past}), {vocab_size})  # no tokens
ids = tok.encode({prompt!r}).ids
state, new = start, ids[-{block_size}:]
for _ in range(200):  # the likeliest token each time
    if len(new) + state["key_0"].shape[2] > {block_size}:  # all that it can look back on: read half again
        new, state = ids[-{half}:], start
    logits, *kept = model.run(None, {{"tokens": numpy.array([new]), **state}})
    new, state = [int(logits[0].argmax())], dict(zip(start, kept))
    ids = ids + new
print(tok.decode(ids))"""


def write_onnx(folder: Path, model: GPT, tok, settings: Settings, prompt: str):
    """One model.onnx, and the tokenizer."""
    fast_tokenizer(tok).save(str(folder / "tokenizer.json"))
    write_graph(folder / "model.onnx", model)


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
    "hf": (write_hf, TRANSFORMERS, "transformers", ""),
    "hf with code": (write_hf_with_code, OWN_CODE, "transformers", CODE_IS_RUN),
    "onnx": (write_onnx, ONNXRUNTIME, "onnxruntime", ""),
    "gguf": (write_llamacpp, LLAMACPP, "gguf", ""),
    "html": (write_html, HTML, "html", ""),
}


PRIVATE = {"out_dir", "init_from", "device", "tensorboard", "wandb"}  # settings that are about a computer


def card(state: dict, model: GPT, tok, library: str, code: str, note: str, prompt: str) -> str:
    """A model card: the data, the settings, the losses, how to use it, and a sample."""
    sample = generate(model, prompt_ids(tok, prompt, model), 400, temperature=0.8)
    settings, origin = state["settings"], str(state["settings"].get("init_from", "auto"))
    origin = " from scratch" if origin in OWN_WEIGHTS else f", starting from {Path(origin).name}"
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
- settings: {", ".join(f"{name} {settings[name]}" for name in settings if name not in PRIVATE)}

```python
{code}
```
{note}
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
    own_code = settings.to == "hf" and not is_gpt2(model.config)
    write, code, library, note = FORMATS["hf with code" if own_code else settings.to]
    speaker = next(iter(state.get("speakers", [])), "")
    prompt = f"{speaker}{colon(speaker, tok)}" if speaker else first_text(tok)
    c = model.config
    sizes = dict(block_size=c.block_size, vocab_size=c.vocab_size, past=PAST)
    sizes |= dict(half=max(1, c.block_size // 2), length=longest(model))
    code = code.format(out=out.name, prompt=prompt, **sizes)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:  # the folder is whole or absent
        folder = Path(temporary) / "whole"
        folder.mkdir()
        write(folder, model.eval(), tok, settings, prompt)
        about = card(state, model, tok, library, code, note, prompt)
        (folder / "README.md").write_text(about, encoding="utf-8")
        checked = check_loaded(folder, settings.to, model, tok, prompt)
        folder.rename(out)
    print(f"{out}: {', '.join(sorted(p.name for p in out.iterdir()))}")
    if checked:
        print(checked)


def main():
    words = [str(Path(word, "ckpt.pt")) if Path(word).is_dir() else word for word in sys.argv[1:]]
    files, others = split_files(words, ".pt")
    if len(files) > 1:
        raise UserError(f"one checkpoint at a time, not {' '.join(files)}")
    export(Path(files[0] if files else "model/ckpt.pt"), configure(Settings, others))


if __name__ == "__main__":
    run_program(main)
