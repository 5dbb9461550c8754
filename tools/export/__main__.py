"""Export a model.

    python -m tools.export model/ckpt.pt              into hf/, for transformers' pipeline
    python -m tools.export model/ckpt.pt --to=onnx    into onnx/, for onnxruntime, which needs no PyTorch
    python -m tools.export model/ckpt.pt --to=gguf    into gguf/, for llama.cpp, Ollama and LM Studio
    python -m tools.export model/ckpt.pt --to=html    into html/: one page that writes, to send to a friend

The text written there equals this project's in float32, up to block_size tokens; beyond that it may differ.
What was written is loaded and compared where the library for it is installed. Each needs a few packages
(safetensors and tokenizers; onnxscript and tokenizers; gguf), and says so.
"""

import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from drama.program import ROOT, run_program

from configurator import FilePath, UserError, check, configure, split_files
from drama import checkpoint
from drama.disk import working_folder
from drama.sampling.generation import Sampling, generate, prompt_ids
from drama.speech import first_prompt
from drama.training.pretrained import RANDOM
from model import GPT
from tools.export.gguf import write_gguf
from tools.export.html import describe, write_html
from tools.export.huggingface import max_length, write_hf
from tools.export.loaded import check as check_loaded
from tools.export.onnx import write_onnx


@dataclass(frozen=True)
class Settings:
    """python -m tools.export CKPT.pt [--name=value ...]"""

    to: Literal["hf", "onnx", "gguf", "html"] = "hf"  # hf, Hugging Face's format; onnx; gguf, llama.cpp's,
    #                    for arch=gpt2 alone; or html, one page that writes in any browser
    dtype: Literal["auto", "float32", "float16", "int8"] = "auto"  # of gguf and html; auto: float32, of html
    #                    float16; int8, of html alone, is half of that and a little less exact
    out: FilePath = ""  # the folder to write, which must not be there yet; empty: named as the format is

    def __post_init__(self):
        check(self)
        if self.dtype == "int8" and self.to != "html":
            raise UserError(f"dtype='int8' is for html, not for {self.to}")
        if self.dtype != "auto" and self.to not in ("gguf", "html"):
            raise UserError(f"dtype={self.dtype!r} is for gguf and html; {self.to} is written in float32")


WRITERS = {"hf": write_hf, "onnx": write_onnx, "gguf": write_gguf, "html": write_html}
PRIVATE = {"out_dir", "init_from", "device", "tensorboard", "wandb"}  # settings that are about a computer


def commit() -> str:
    """The commit that this project is at; empty where it is no checkout, or git is missing."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def about(state: dict, model: GPT) -> list[str]:
    """What a model is, in a few lines: the data, the shape, the losses, the settings."""
    c, settings, origin = model.config, state["settings"], str(state["settings"].get("init_from", "auto"))
    start = " from scratch" if origin in RANDOM else f", starting from {Path(origin).name}"
    size = f"{model.num_params() / 1e6:.2f}M parameters, a vocabulary of {c.vocab_size:,}"
    loss = f"validation loss {state['val_loss']:.4f} nats per token at iteration {state['iteration']:,}"
    if not math.isnan(state["train_loss"]):
        loss += f" (training loss {state['train_loss']:.4f})"
    return [
        f"trained on {settings.get('dataset', 'a text')}{start}: {size}",
        ", ".join(f"{name} {value}" for name, value in vars(c).items()),
        loss,
        "settings: " + ", ".join(f"{name} {settings[name]}" for name in settings if name not in PRIVATE),
        *[f"exported at commit {name}" for name in filter(None, [commit()])],
    ]


def card(lines: list[str], model: GPT, tok, prompt: str, folder: Path, to: str) -> str:
    """A model card: what it is, in lines; how to use the folder; a sample."""
    c = model.config
    sample = generate(model, prompt_ids(tok, prompt, model), 400, Sampling(temperature=0.8))
    values = dict(
        vars(c),
        library={"hf": "transformers", "onnx": "onnxruntime"}.get(to, to),
        about="".join(f"- {line}\n" for line in lines),
        sample=tok.decode(sample[0].tolist()).strip("\n"),
        prompt=prompt, out=folder.name, length=max_length(model), half=max(1, c.block_size // 2),
        past=c.n_before,
    )  # fmt: skip
    cards = Path(__file__).with_name("cards")
    name = "hf_code.md" if (folder / "model.py").exists() else f"{to}.md"
    values["usage"] = (cards / name).read_text(encoding="utf-8").format_map(values)
    return (cards / "card.md").read_text(encoding="utf-8").format_map(values)


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
    speakers = state.get("speakers", [])
    prompt = first_prompt(speakers, tok)
    out.parent.mkdir(parents=True, exist_ok=True)
    busy = f"another program is writing {out}: wait for it, or give another --out"
    with working_folder(out.with_name(f".{out.name}.writing"), busy) as own:  # out is whole or absent
        folder = own / out.name
        folder.mkdir()
        lines = about(state, model)
        given = dict(describe(tok, speakers), about=lines) if settings.to == "html" else prompt
        WRITERS[settings.to](folder, model.eval(), tok, given, settings.dtype)
        text = card(lines, model, tok, prompt, folder, settings.to)
        (folder / "README.md").write_text(text, encoding="utf-8")
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
