"""A model as one page that needs nothing else: the weights, and the network in JavaScript (network.js).

tools/page.html is what it looks like; tools/app.py serves that too, and writes itself.
"""

import dataclasses
import json
from base64 import b64encode
from pathlib import Path

import torch

from drama.speech import SPEECH, first_prompt
from drama.tokenizer import PLAIN
from model import GPT
from tools.export.mirrored import require_mirrored

HERE = Path(__file__).parent
CHIPS = 60  # speakers that the page offers


def page(header: dict, network: str = "", weights: str = "") -> str:
    """The page's HTML. Nothing in the header, which may hold anything, ends the script that it stands in."""
    text = (HERE.parent / "page.html").read_text(encoding="utf-8")
    text = text.replace("{{network}}", network, 1).replace("{{weights}}", weights, 1)
    header = json.dumps({**header, "speech": SPEECH.pattern}).replace("<", "\\u003c")
    return text.replace("{{header}}", header, 1)


def describe(tok, speakers: list[str]) -> dict:
    """What the page has to know of a model before it writes."""
    return dict(speakers=speakers[:CHIPS], prompt=first_prompt(speakers, tok).strip("\n"))


def as_bytes(weights: dict[str, torch.Tensor], dtype: str) -> bytes:
    """All weights one after the other, for network.js.

    As int8, a row of a matrix is bytes and a scale: the scales and what is no matrix come first, in float32.
    """
    if dtype != "int8":
        return b"".join(value.to(getattr(torch, dtype)).numpy().tobytes() for value in weights.values())
    floats, rows = [], []
    for value in weights.values():
        if value.dim() == 2:
            scale = value.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
            rows.append((value / scale).round().to(torch.int8))
            value = scale
        floats.append(value)
    return b"".join(part.numpy().tobytes() for part in floats + rows)


def write_html(folder: Path, model: GPT, tok, shown: dict, dtype: str):
    """Write drama.html; shown: what `describe` says, and `about`, lines about the model.

    Raises UserError where model.py computes another network than the page.
    """
    require_mirrored(model.config, "html")
    dtype, weights = "float16" if dtype == "auto" else dtype, model.state_dict()
    header = dict(
        config=dataclasses.asdict(model.config),
        dtype=dtype,
        kind=tok.kind,
        tokens=[token.decode("latin-1") for token in tok.tokens],
        shapes={name: list(value.shape) for name, value in weights.items()},
        plain=PLAIN,
        **shown,
    )
    network = (HERE / "network.js").read_text(encoding="utf-8")
    whole = page(header, network, b64encode(as_bytes(weights, dtype)).decode())
    (folder / "drama.html").write_text(whole, encoding="utf-8")
