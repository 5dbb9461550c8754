"""nanoGPT's ckpt.pt as a model of this project.

It holds no vocabulary: that is in a pickle beside its data, which is never read, since reading one executes
it. Its characters sorted are the vocabulary, as here, so a dataset of the same text has it.
"""

import sys
from pathlib import Path

import torch

from configurator import UserError
from drama.disk import read_json
from drama.tokenizer import BPETokenizer

GPT2_TOKENS = 50_257
GPT2_VOCABULARIES = (GPT2_TOKENS, 50_304)  # the second has rows for nothing


def converted(state: dict, path: Path) -> dict:
    """What `checkpoint.load` returns, from nanoGPT's checkpoint. Raises UserError where it cannot be."""
    try:
        shape, settings = dict(state["model_args"]), dict(state["config"])
        weights = {ours(name): weight for name, weight in state["model"].items() if not is_mask(name)}
        head = weights.pop("lm_head.weight", weights["wte.weight"])
        if not torch.equal(head, weights["wte.weight"]):
            raise ValueError("its head is not its embedding")
        best, iteration = float(state["best_val_loss"]), int(state["iter_num"])
        vocab_size, dataset = int(shape["vocab_size"]), Path(settings["dataset"]).name
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError):
        raise UserError(f"{path} is no checkpoint of this project, nor a whole one of nanoGPT") from None
    tokenizer, speakers = vocabulary(vocab_size, dataset, path)
    if vocab_size in GPT2_VOCABULARIES:
        shape["vocab_size"], weights["wte.weight"] = GPT2_TOKENS, weights["wte.weight"][:GPT2_TOKENS]
    return dict(
        config=shape,
        tokenizer=tokenizer,
        settings=settings | dict(dataset=dataset),
        speakers=speakers,
        model=weights,
        iteration=iteration,
        train_loss=float("nan"),  # which it does not keep
        val_loss=best,
    )


def ours(name: str) -> str:
    """The name here of a parameter there; torch.compile puts a word before all of them."""
    name = name.removeprefix("_orig_mod.").removeprefix("transformer.")
    return f"blocks.{name[2:]}" if name.startswith("h.") else name


def is_mask(name: str) -> bool:
    """Whether it is the causal mask, which nanoGPT saves where PyTorch has no fused attention."""
    return name.endswith(".attn.bias")


def prepare_command(dataset: str, text: str) -> str:
    """What prepares a dataset: from the whole file under nanoGPT's name for it, else from that text."""
    source = "--source=tinyshakespeare" if dataset == "shakespeare_char" else text
    return f"python prepare.py --dataset={dataset} {source}"


def vocabulary(vocab_size: int, dataset: str, path: Path) -> tuple[dict, list[str]]:
    """(tokenizer, speakers) of a model with so many tokens, trained on that dataset of nanoGPT's."""
    if vocab_size in GPT2_VOCABULARIES:
        return BPETokenizer.gpt2().to_dict(), []
    command = prepare_command(dataset, "--input=ITS_TEXT --layout=keep")
    advice = f"prepare the text it was trained on: {command}"
    try:
        meta = read_json(Path("data", dataset, "meta.json"))
        tok, speakers = meta["tokenizer"], meta["speakers"]
        size = len(tok["chars"])
    except OSError:
        raise UserError(f"{path} is nanoGPT's and holds no vocabulary; {advice}") from None
    except (LookupError, TypeError):
        raise UserError(f"data/{dataset} is not in characters; {advice}") from None
    if size != vocab_size:
        raise UserError(f"data/{dataset} has {size:,} characters and {path} {vocab_size:,}; {advice}")
    source = f"data/{dataset}, which is made from {meta.get('source')}"
    print(f"{path} is nanoGPT's; its characters are taken from {source}", file=sys.stderr)
    return tok, speakers
