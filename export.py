"""Take a model to other tools, as a folder in Hugging Face's format.

    python export.py model/ckpt.pt --out=hf    then, in Python: transformers.pipeline("text-generation", "hf")

Needs safetensors and tokenizers (pip install safetensors tokenizers); transformers itself is not needed.
"""

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

import checkpoint
from configurator import configure, files, run
from generation import generate
from huggingface import OWN_WEIGHTS, fast_tokenizer, optional, to_gpt2
from tokenizer import CharTokenizer


@dataclass(frozen=True)
class Settings:
    """python export.py CKPT.pt [--name=value ...]"""

    out: str = "hf"  # the folder to write; it must not be there yet


CARD = """---
library_name: transformers
pipeline_tag: text-generation
---
# A GPT-2 that writes plays

Trained on {dataset}{origin}: {parameters:.2f}M parameters, {tokenizer}.

- n_layer {n_layer}, n_head {n_head}, n_embd {n_embd}, block_size {block_size} (the longest text)
- validation loss {val_loss:.4f} nats a token at iteration {iteration:,} (training loss {train_loss:.4f})
- settings: {settings}

```python
from transformers import pipeline
write = pipeline("text-generation", "{out}")
print(write("{start}", max_length={block_size}, do_sample=True, temperature=0.8)[0]["generated_text"])
```

It writes:

```
{sample}
```
"""


def export(path: Path, out: Path):
    """Write what transformers loads into a new folder. Raises ValueError for a model it has no class for."""
    save_file = optional("safetensors.torch").save_file
    state = checkpoint.load(path)
    model, tok = checkpoint.build_model(state, path)
    weights, tokens, c = to_gpt2(model), fast_tokenizer(tok), model.config
    if not {"train_loss", "val_loss", "iteration"} <= state.keys():
        raise ValueError(f"{path} is no ckpt.pt")
    if out.exists():
        raise ValueError(f"out={str(out)!r} is there already; give a folder that is not")
    config = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": c.vocab_size,
        "n_positions": c.block_size,
        "n_layer": c.n_layer,
        "n_head": c.n_head,
        "n_embd": c.n_embd,
        "activation_function": {"none": "gelu", "tanh": "gelu_new"}[c.gelu],
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
        "generation_config.json": {"do_sample": True, "temperature": 0.8, "max_length": c.block_size},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": c.block_size,
            "clean_up_tokenization_spaces": False,
        },
    }
    first = 0 if isinstance(tok, CharTokenizer) else tok.encode("\n").item()  # not every text has newlines
    sample = generate(model.eval(), torch.tensor([[first]]), 400, temperature=0.8)
    settings = state["settings"]
    origin = settings["init_from"]
    card = CARD.format(
        dataset=settings["dataset"],
        origin=" from scratch" if origin in OWN_WEIGHTS else f", starting from {origin}",
        parameters=model.num_params() / 1e6,
        tokenizer="characters" if isinstance(tok, CharTokenizer) else f"{tok.vocab_size:,} byte-pair tokens",
        n_layer=c.n_layer,
        n_head=c.n_head,
        n_embd=c.n_embd,
        block_size=c.block_size,
        val_loss=state["val_loss"],
        train_loss=state["train_loss"],
        iteration=state["iteration"],
        settings=", ".join(f"{name} {settings[name]}" for name in settings),
        out=out.name,
        start="LUCIO:",
        sample=tok.decode(sample[0].tolist()).strip("\n"),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as beside:  # the folder is whole or absent
        folder = Path(beside) / "whole"
        folder.mkdir()
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        for name, value in written.items():
            (folder / name).write_text(json.dumps(value, indent=1), encoding="utf-8")
        tokens.save(str(folder / "tokenizer.json"))
        (folder / "README.md").write_text(card, encoding="utf-8")
        folder.rename(out)
    print(f"{out}: {', '.join(sorted(p.name for p in out.iterdir()))}")


def main():
    given, others = files(sys.argv[1:], ".pt")
    settings = configure(Settings, others)
    export(Path(given[0] if given else "model/ckpt.pt"), Path(settings.out))


if __name__ == "__main__":
    run(main)
