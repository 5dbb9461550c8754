"""How well a model predicts a text: its loss, with no training.

    python -m tools.evaluate                              the validation split of the model's own dataset
    python -m tools.evaluate --input=play.txt             any play, by speaker; of several plays, by play too
    python -m tools.evaluate --out_dir=model/a,model/b    several models side by side
    python -m tools.evaluate --input=play.txt --html=page.html   and the text, shaded by its bits

Bits per character compare across tokenizers. The fewer, the better the model knows such a text.
"""

import itertools
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from drama.program import run_program

from configurator import FilePath, UserError, check, configure
from drama import checkpoint
from drama.device import Dtype, find_device, find_dtype
from drama.plays.files import cleaned_files, input_files
from drama.plays.layouts import Layout
from drama.training.dataset import load_data
from drama.training.machine import Machine
from tools.evaluate.losses import Model, by_speaker, known, summed
from tools.evaluate.page import check_page, write_page


@dataclass(frozen=True)
class Settings:
    """python -m tools.evaluate [--name=value ...]"""

    out_dir: FilePath = "model"  # the folder with ckpt.pt, or a model's file; several: a,b
    input: FilePath = ""  # a text to predict, as prepare.py's input names it; empty: the validation split
    encoding: str = "utf-8"  # of the text's files
    layout: Layout = "auto"  # how plain text shows who speaks, as for prepare.py: colon, dot, dash, caps,
    #                          indent, gap, quotes, brackets, markdown, fountain; keep: as it is
    windows: Literal["context", "plain"] = "context"  # of an input: context gives each character at least
    #                            half a context and reads all twice; plain cuts as validation losses are cut
    speakers: int = 12  # how many speakers to show, those with most to say
    html: FilePath = ""  # a page to write too: the input, each token shaded by its bits
    device: str = "auto"  # auto: cuda, else mps, else cpu; or one of them
    dtype: Dtype = "auto"  # auto: the fastest the device has; or bfloat16, float16, float32 (exact)

    def __post_init__(self):
        check(self, dict(speakers=0))
        if self.html and not self.html.lower().endswith((".html", ".htm")):
            raise UserError(f"html={self.html!r} does not end in .html")
        if self.html and not self.input:
            raise UserError("html shows a text: name it with --input")


def load(out_dir: str, machine: Machine) -> Model:
    path = checkpoint.model_file(out_dir)
    state = checkpoint.load(path)
    model, tok = checkpoint.build_model(state, path)
    name = str(path.parent if path.name == "ckpt.pt" else path)
    return Model(name, model.to(machine.device).eval(), tok, str(state["settings"].get("dataset", "")))


def validation(one: Model, machine: Machine) -> str:
    """The line of a model's loss on the validation split that it was trained beside."""
    corpus = load_data(one.dataset, one.model.config.block_size, machine)
    if corpus.tokenizer.to_dict() != one.tok.to_dict():
        raise UserError(f"data/{one.dataset} is in other tokens than {one.name}; give the text with --input")
    losses = corpus.evaluate_whole(one.model, one.model.config, machine)
    bits, n = losses["val_bits_per_char"], corpus.val_characters
    return f"{one.name}: val loss {losses['val_loss']:.4f}, {bits:.4f} bits per character, {n:,} characters"


def table(settings: Settings, models: list[Model], machine: Machine):
    """Print the bits per character of each play and speaker. Raises UserError for texts of no use."""
    with tempfile.TemporaryDirectory() as folder:
        kwargs = dict(encoding=settings.encoding, layout=settings.layout, normalize=True)
        texts = cleaned_files(input_files(settings.input), Path(folder), **kwargs)
        plays = [(Path(text.source).stem, "\n\n" + "".join(text.pieces())) for text in texts]
    started, parts, left_out, rows, read, note = time.perf_counter(), [], Counter(), [], [], ""
    page = [[] for _ in models] if settings.html else None
    for name, text in plays:
        text, unknown = known(text, models)
        left_out += unknown
        if len(text) > 2:
            parts += (speeches := by_speaker(text, models, machine, settings.windows, page))
            read.append((name, text))
            rows.append(summed(name, speeches))
    if not rows:
        raise UserError(f"{settings.input} has no character that the model knows")
    seconds, whole = time.perf_counter() - started, summed("all", parts)
    speakers = {}
    for row in parts:
        speakers.setdefault(row.name, []).append(row)
    speakers.pop("", None)
    speakers = [summed(name, speeches) for name, speeches in speakers.items()]
    speakers = sorted(speakers, key=lambda row: -row.characters)[: settings.speakers]
    if left_out:
        print(note := missing(left_out, whole.characters))
    width = max(len(row.name) for row in [*rows, *speakers, whole]) + 2
    if len(models) > 1:
        print(f"the last columns: how many bits more than {models[0].name} needs; below 0 is better")
    names = [Path(one.name).name[:9] for one in models]
    heads = names + [f"- {names[0]}"[:9]] * (len(models) - 1)
    print("bits per character".ljust(width) + "characters".rjust(12) + "".join(f"{h:>10}" for h in heads))
    groups = [rows if len(rows) > 1 else [], speakers, [whole]]
    for row in itertools.chain(*groups):
        print(row.shown(width))
    per_char = ", ".join(f"{value:.4f}" for value in whole.nats / whole.characters)
    print(f"{per_char} nats per character; {whole.characters / seconds:,.0f} characters per second")
    if settings.html:
        write_page(Path(settings.html), read, models, page, groups, note)


def missing(left_out: Counter, kept: int) -> str:
    """A line about the characters that a model does not know."""
    shown = ", ".join(f"{c!r} {n:,}" for c, n in left_out.most_common(8)) + ", ..." * (len(left_out) > 8)
    share = left_out.total() / (left_out.total() + kept)
    count = f"{left_out.total():,} characters, {share:.1%} of the text, {len(left_out):,} different ones"
    return f"left out, since a model does not know them: {count} ({shown})"


def evaluate(settings: Settings):
    """Print the losses. Raises UserError for what cannot be evaluated."""
    device = find_device(settings.device)
    machine = Machine(device, find_dtype(settings.dtype, device))
    names = [name.strip() for name in settings.out_dir.split(",") if name.strip()]
    if not names:
        raise UserError("out_dir names no model")
    if settings.html:
        check_page(Path(settings.html))
    models = [load(name, machine) for name in names]
    if settings.input:
        return table(settings, models, machine)
    for one in models:
        print(validation(one, machine), flush=True)


def main():
    evaluate(configure(Settings, sys.argv[1:]))


if __name__ == "__main__":
    run_program(main)
