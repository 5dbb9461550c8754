"""A model as one page that needs nothing else: the weights, and the network in JavaScript (page.html)."""

import dataclasses
import json
from base64 import b64encode
from pathlib import Path

import torch

from drama.speech import SPEECH
from drama.tokenizer import PLAIN
from model import GPT
from tools.export.mirrored import require_mirrored


def write_html(folder: Path, model: GPT, tok, prompt: str, dtype: str):
    """Write drama.html. Raises UserError where model.py computes another network than the page."""
    require_mirrored(model.config, "html")
    number = torch.float32 if dtype == "float32" else torch.float16
    weights = model.state_dict()
    values = torch.cat([value.flatten() for value in weights.values()]).to(number)
    header = dict(
        config=dataclasses.asdict(model.config),
        dtype=str(number).removeprefix("torch."),
        kind=tok.kind,
        tokens=[token.decode("latin-1") for token in tok.tokens],
        sizes={name: value.numel() for name, value in weights.items()},
        prompt=prompt,
        speech=SPEECH.pattern,
        plain=PLAIN,
    )
    page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    # the header last, since it may hold anything; and nothing in it ends the script that it stands in
    page = page.replace("{{weights}}", b64encode(values.numpy()).decode())
    page = page.replace("{{header}}", json.dumps(header).replace("<", "\\u003c"), 1)
    (folder / "drama.html").write_text(page, encoding="utf-8")
