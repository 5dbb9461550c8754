"""A model as one ONNX graph, which reads a prompt and then one token at a time.

Needs onnxscript and tokenizers and says so.
"""

import logging
import warnings
from pathlib import Path

from drama.program import optional

import torch

from configurator import UserError
from model import GPT, Cache
from tools.export.huggingface import fast_tokenizer


class Past(Cache):
    """A cache that changes nothing in place: what it keeps is an output of the graph."""

    def __init__(self, before, kept, new: int):
        self.before, self.kept = before, list(kept)
        self.length, past = 0, kept[0].size(2)
        self.position = torch.arange(past, past + new)

    def append(self, layer: int, k, v):
        for n, value in ((2 * layer, k), (2 * layer + 1, v)):
            self.kept[n] = torch.cat([self.kept[n], value], dim=2)
        return self.kept[2 * layer : 2 * layer + 2]


class NextToken(torch.nn.Module):
    """The model as ONNX takes it."""

    def __init__(self, model: GPT):
        super().__init__()
        self.model = model

    def forward(self, tokens, before, *kept):
        """tokens (1, T) -> logits (1, V) of what follows, and before and kept for the next call.

        before (1, n_before): the tokens before these, vocab_size where there are none. kept: keys and values
        of each layer in turn, (1, H, P, D), of the P tokens read so far; P + T is at most block_size.
        """
        past = Past(before.clone(), kept, tokens.size(1))
        logits = self.model(tokens, cache=past)[0][:, 0]
        return logits, torch.cat([before, tokens], dim=1)[:, -before.size(1) :], *past.kept


def write_onnx(folder: Path, model: GPT, tok, prompt: str, dtype: str):
    """Write NextToken, and the tokenizer.

    Inputs: tokens, before, key_0, value_0, ...; outputs: logits and what goes in next. Raises UserError for
    a block_size of 1, whose prompts have no length to vary.
    """
    optional("onnxscript")
    c = model.config
    if c.block_size == 1:
        raise UserError("block_size=1 cannot be written as ONNX; --to=html takes it")
    fast_tokenizer(tok).save(str(folder / "tokenizer.json"))
    names = [f"{kind}_{n}" for n in range(c.n_layer * c.n_ensemble) for kind in ("key", "value")]
    tokens = torch.zeros(1, min(3, c.block_size), dtype=torch.long)
    nothing = torch.full((1, c.n_before), c.vocab_size)
    kept = [torch.zeros(1, c.n_head, 2, c.n_embd // c.n_head) for _ in names]
    new = torch.export.Dim("new", min=1, max=c.block_size)
    past = torch.export.Dim("past", min=0, max=c.block_size)
    shapes = {"tokens": {1: new}, "before": None, "kept": ({2: past},) * len(names)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            torch.onnx.export(
                NextToken(model), (tokens, nothing, *kept), folder / "model.onnx",
                dynamo=True, external_data=False, verbose=False, dynamic_shapes=shapes,
                input_names=["tokens", "before", *names],
                output_names=["logits", "before_next", *(f"{name}_next" for name in names)],
            )  # fmt: skip
        finally:
            logging.disable(logging.NOTSET)
