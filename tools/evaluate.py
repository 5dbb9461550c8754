"""How well a model predicts a text: its loss, with no training.

    python -m tools.evaluate                              the validation split of the model's own dataset
    python -m tools.evaluate --input=play.txt             any play, by speaker; of several plays, by play too
    python -m tools.evaluate --out_dir=model/a,model/b    several models side by side

Bits per character compare across tokenizers. The fewer, the better the model knows such a text.
"""

import itertools
import math
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from drama.program import run_program

import numpy as np
import torch
import torch.nn.functional as F

from configurator import FilePath, UserError, check, configure
from drama import checkpoint
from drama.device import Dtype, find_device, find_dtype
from drama.plays.files import cleaned_files, input_files
from drama.plays.layouts import Layout
from drama.speech import NEXT_SPEECH
from drama.tokenizer import UnknownCharacters, with_plain
from drama.training.dataset import load_data, windows_per_batch
from drama.training.machine import Machine
from model import GPT


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
    device: str = "auto"  # auto: cuda, else mps, else cpu; or one of them
    dtype: Dtype = "auto"  # auto: the fastest the device has; or bfloat16, float16, float32 (exact)

    def __post_init__(self):
        check(self, dict(speakers=0))


@dataclass
class Model:
    """A checkpoint that is evaluated."""

    name: str
    model: GPT
    tok: object
    dataset: str


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


@torch.no_grad()
def nats(model: GPT, ids: np.ndarray, machine: Machine, windows: str) -> np.ndarray:
    """Of each token of ids (n,) but the first how much it surprised the model: (n - 1,), in nats."""
    n, block_size = len(ids) - 1, model.config.block_size
    new = block_size if windows == "plain" else block_size - block_size // 2  # what a window adds
    ends = [*range(min(n, block_size), n, new), n]
    begins = [0, *ends[:-1]] if windows == "plain" else [max(0, end - block_size) for end in ends]
    *spans, last = zip(begins, ends, strict=True)  # all but the last of one length
    at_a_time = windows_per_batch(block_size, model.config.vocab_size)
    batches = [spans[i : i + at_a_time] for i in range(0, len(spans), at_a_time)] + [[last]]
    tokens, found, at = torch.from_numpy(ids.astype(np.int64)), np.zeros(n), 0
    for batch in batches:
        xy = torch.stack([tokens[begin : end + 1] for begin, end in batch]).to(machine.device)
        with machine.autocast():
            logits = model(xy[:, :-1], xy[:, 1:])[0]
        losses = F.cross_entropy(logits.transpose(1, 2).float(), xy[:, 1:], reduction="none").cpu().numpy()
        for (_, end), row in zip(batch, losses, strict=True):
            found[at:end] = row[at - end :]
            at = end
    return found


def known(text: str, models: list[Model]) -> tuple[str, Counter]:
    """The text as all models can spell it, and what had to be left out of it."""
    left_out = Counter()
    for one in models:
        text = with_plain(text, one.tok)
        try:
            one.tok.encode(text)
        except UnknownCharacters as e:
            left_out.update({c: text.count(c) for c in e.characters})
            text = text.translate(dict.fromkeys(map(ord, e.characters)))
    return text, left_out


@dataclass
class Row:
    """A part of the text: its characters, and each model's nats for them."""

    name: str
    characters: int
    nats: np.ndarray  # (models,)

    def shown(self, width: int) -> str:
        bits = self.nats / math.log(2) / max(1, self.characters)
        columns = "".join(f"{value:10.4f}" for value in bits)
        columns += "".join(f"{value:+10.4f}" for value in bits[1:] - bits[:1])
        return f"{self.name[:width]:<{width}}{self.characters:>12,}{columns}"


def by_speaker(text: str, models: list[Model], machine: Machine, windows: str) -> list[Row]:
    """The parts of a text: one for each speech, whose name is its speaker's, and what is before the first."""
    begins = [0, *(found.start() for found in NEXT_SPEECH.finditer(text)), len(text)]
    names = ["", *(found[1].strip() for found in NEXT_SPEECH.finditer(text))]
    # where each part begins and ends among the bytes, and so among the tokens; the first token is given
    bytes_of = np.cumsum([0, *(len(text[a:b].encode()) for a, b in itertools.pairwise(begins))])
    sums = []
    for one in models:
        ids = one.tok.encode(text)
        sizes = np.array([len(token) for token in one.tok.tokens])
        starts = np.cumsum(sizes[ids])[:-1]  # of every token but the first
        total = np.concatenate([[0.0], np.cumsum(nats(one.model, ids, machine, windows))])
        sums.append(np.diff(total[np.searchsorted(starts, bytes_of)]))
    lengths = np.diff(begins)
    lengths[0] -= 1
    return [Row(*row) for row in zip(names, lengths.tolist(), np.stack(sums, axis=1), strict=True)]


def summed(name: str, rows: list[Row]) -> Row:
    return Row(name, sum(row.characters for row in rows), sum(row.nats for row in rows))


def table(settings: Settings, models: list[Model], machine: Machine):
    """Print the bits per character of each play and speaker. Raises UserError for texts of no use."""
    with tempfile.TemporaryDirectory() as folder:
        kwargs = dict(encoding=settings.encoding, layout=settings.layout, normalize=True)
        texts = cleaned_files(input_files(settings.input), Path(folder), **kwargs)
        plays = [(Path(text.source).stem, "\n\n" + "".join(text.pieces())) for text in texts]
    started, parts, left_out, rows = time.perf_counter(), [], Counter(), []
    for name, text in plays:
        text, unknown = known(text, models)
        left_out += unknown
        if len(text) > 2:
            parts += (speeches := by_speaker(text, models, machine, settings.windows))
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
        shown = ", ".join(f"{c!r} {n:,} times" for c, n in left_out.most_common(8))
        print(f"left out, since a model does not know them: {shown}")
    width = max(len(row.name) for row in [*rows, *speakers, whole]) + 2
    heads = [one.name[-9:] for one in models] + [f"-{models[0].name[-8:]}"] * (len(models) - 1)
    print("bits per character".ljust(width) + "characters".rjust(12) + "".join(f"{h:>10}" for h in heads))
    for row in [*(rows if len(rows) > 1 else []), *speakers, whole]:
        print(row.shown(width))
    per_char = ", ".join(f"{value:.4f}" for value in whole.nats / whole.characters)
    print(f"{per_char} nats per character; {whole.characters / seconds:,.0f} characters per second")


def evaluate(settings: Settings):
    """Print the losses. Raises UserError for what cannot be evaluated."""
    device = find_device(settings.device)
    machine = Machine(device, find_dtype(settings.dtype, device))
    names = [name.strip() for name in settings.out_dir.split(",") if name.strip()]
    if not names:
        raise UserError("out_dir names no model")
    models = [load(name, machine) for name in names]
    if settings.input:
        return table(settings, models, machine)
    for one in models:
        print(validation(one, machine), flush=True)


def main():
    evaluate(configure(Settings, sys.argv[1:]))


if __name__ == "__main__":
    run_program(main)
