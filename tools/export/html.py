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


def write_html(folder: Path, model: GPT, tok, speakers: list[str], dtype: str):
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
        plain=PLAIN,
        **describe(tok, speakers),
    )
    network = (HERE / "network.js").read_text(encoding="utf-8")
    whole = page(header, network, b64encode(values.numpy()).decode())
    (folder / "drama.html").write_text(whole, encoding="utf-8")
