"""How well a model predicts a text: its loss, with no training.

    python -m tools.evaluate                              the validation split of the model's own dataset
    python -m tools.evaluate --input=play.txt             any play, by speaker; of several plays, by play too
    python -m tools.evaluate --out_dir=model/a,model/b    several models side by side
    python -m tools.evaluate --input=play.txt --html=page.html   and the text, shaded by its bits

Bits per character compare across tokenizers. The fewer, the better the model knows such a text.
"""

import itertools
import json
import math
import sys
import tempfile
import time
import zlib
from base64 import b64encode
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
from drama.disk import write_atomically
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
    html: FilePath = ""  # a page to write too: the input, each token shaded by its bits
    device: str = "auto"  # auto: cuda, else mps, else cpu; or one of them
    dtype: Dtype = "auto"  # auto: the fastest the device has; or bfloat16, float16, float32 (exact)

    def __post_init__(self):
        check(self, dict(speakers=0))
        if self.html and not self.html.lower().endswith((".html", ".htm")):
            raise UserError(f"html={self.html!r} does not end in .html")
        if self.html and not self.input:
            raise UserError("html shows a text: name it with --input")


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


LIKELIEST = 5  # tokens that the page shows for each place; it counts on that number


@torch.no_grad()
def predict(model: GPT, ids: np.ndarray, machine: Machine, windows: str, k: int = 0):
    """What the model says of each token of ids (n,) but the first.

    (how much it surprised the model (n - 1,), in nats; the probabilities (n - 1, k) of the k likeliest tokens
    in its place; which these are (n - 1, k)).
    """
    n, block_size, k = len(ids) - 1, model.config.block_size, min(k, model.config.vocab_size)
    new = block_size if windows == "plain" else block_size - block_size // 2  # what a window adds
    ends = [*range(min(n, block_size), n, new), n]
    begins = [0, *ends[:-1]] if windows == "plain" else [max(0, end - block_size) for end in ends]
    *spans, last = zip(begins, ends, strict=True)  # all but the last of one length
    at_a_time = windows_per_batch(block_size, model.config.vocab_size)
    batches = [spans[i : i + at_a_time] for i in range(0, len(spans), at_a_time)] + [[last]]
    tokens, at = torch.from_numpy(ids.astype(np.int64)), 0
    found = np.zeros(n), np.zeros((n, k), np.float32), np.zeros((n, k), np.uint16)
    for batch in batches:
        xy = torch.stack([tokens[begin : end + 1] for begin, end in batch]).to(machine.device)
        with machine.autocast():
            logits = model(xy[:, :-1], xy[:, 1:])[0]
        said = [F.cross_entropy(logits.transpose(1, 2).float(), xy[:, 1:], reduction="none")]
        said += logits.float().softmax(-1).topk(k) if k else ()
        said = [each.cpu().numpy() for each in said]
        for row, (_, end) in enumerate(batch):
            for whole, each in zip(found, said, strict=False):  # without k, the losses alone
                whole[at:end] = each[row, at - end :]
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

    @property
    def bits(self) -> np.ndarray:
        """Bits per character (models,)."""
        return self.nats / math.log(2) / max(1, self.characters)

    def shown(self, width: int) -> str:
        bits = self.bits
        columns = "".join(f"{value:10.4f}" for value in bits)
        columns += "".join(f"{value:+10.4f}" for value in bits[1:] - bits[:1])
        return f"{self.name[:width]:<{width}}{self.characters:>12,}{columns}"


def by_speaker(text: str, models: list[Model], machine: Machine, windows: str, page=None) -> list[Row]:
    """The parts of a text: one for each speech, whose name is its speaker's, and what is before the first.

    page: of each model, a list that takes what the page shows of this text.
    """
    begins = [0, *(found.start() for found in NEXT_SPEECH.finditer(text)), len(text)]
    names = ["", *(found[1].strip() for found in NEXT_SPEECH.finditer(text))]
    # where each part begins and ends among the bytes, and so among the tokens; the first token is given
    bytes_of = np.cumsum([0, *(len(text[a:b].encode()) for a, b in itertools.pairwise(begins))])
    sums = []
    for n, one in enumerate(models):
        ids = one.tok.encode(text)
        nats, *likeliest = predict(one.model, ids, machine, windows, LIKELIEST if page else 0)
        if page:
            page[n].append(columns(one.tok, ids, nats, *likeliest))
        sizes = np.array([len(token) for token in one.tok.tokens])
        starts = np.cumsum(sizes[ids])[:-1]  # of every token but the first
        total = np.concatenate([[0.0], np.cumsum(nats)])
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
    started, parts, left_out, rows, read = time.perf_counter(), [], Counter(), [], []
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
        shown = ", ".join(f"{c!r} {n:,} times" for c, n in left_out.most_common(8))
        print(f"left out, since a model does not know them: {shown}")
    width = max(len(row.name) for row in [*rows, *speakers, whole]) + 2
    heads = [one.name[-9:] for one in models] + [f"-{models[0].name[-8:]}"] * (len(models) - 1)
    print("bits per character".ljust(width) + "characters".rjust(12) + "".join(f"{h:>10}" for h in heads))
    groups = [rows if len(rows) > 1 else [], speakers, [whole]]
    for row in itertools.chain(*groups):
        print(row.shown(width))
    per_char = ", ".join(f"{value:.4f}" for value in whole.nats / whole.characters)
    print(f"{per_char} nats per character; {whole.characters / seconds:,.0f} characters per second")
    if settings.html:
        write_page(Path(settings.html), read, models, page, groups)


# ---------------------------------------------------------------------------- the page


def columns(tok, ids: np.ndarray, nats: np.ndarray, chances: np.ndarray, likeliest: np.ndarray) -> np.ndarray:
    """What the page is told of each of n tokens, uint16 (2 + 2k, n).

    How many UTF-16 units, in which JavaScript counts, begin in it; its surprise in hundredths of a bit; the k
    likeliest tokens, and their probabilities in percent. Of the first token, which is given, only the units.
    """
    units = np.array([sum((b & 0xC0 != 0x80) + (b >= 0xF0) for b in token) for token in tok.tokens])
    bits = np.minimum(np.rint(nats / math.log(2) * 100), 65_535)  # what 16 bits hold
    said = np.vstack([bits, likeliest.T, np.rint(chances.T * 100)])
    return np.vstack([units[ids], np.pad(said, ((0, 0), (1, 0)))]).astype("<u2")


def check_page(path: Path):
    """Raise UserError where no page can be written."""
    if not path.absolute().parent.is_dir():
        raise UserError(f"html={str(path)!r} is in a folder that does not exist")
    if path.exists():
        raise UserError(f"html={str(path)!r} is there already; give another name")
    try:  # now, since predicting a long text takes long
        tempfile.TemporaryFile(dir=path.absolute().parent).close()
    except OSError as e:
        raise UserError(f"html={str(path)!r} cannot be written there: {e.strerror}") from None


def write_page(path: Path, texts: list[tuple[str, str]], models: list[Model], told: list, groups: list):
    """Fill evaluate.html: names and texts, what each model says of each text, the rows of the table."""
    described = [
        dict(
            name=one.name,
            tokens=[token.decode("utf-8", "backslashreplace") for token in one.tok.tokens]
            + [*one.tok.special],
            columns=b64encode(zlib.compress(np.hstack(parts).tobytes())).decode(),
        )
        for one, parts in zip(models, told, strict=True)
    ]
    header = dict(
        text="".join(text for _, text in texts),
        plays=[(name, len(text.encode("utf-16-le")) // 2) for name, text in texts],
        models=described,
        rows=[[(row.name, row.characters, row.bits.tolist()) for row in group] for group in groups],
    )
    # nothing in it, which may hold anything, ends the script that it stands in
    header = json.dumps(header, ensure_ascii=False).replace("<", "\\u003c")
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    whole = template.replace("{{header}}", header, 1).encode("utf-8", "backslashreplace")  # odd file names
    write_atomically(path, lambda file: file.write(whole))
    print(f"{path}: {len(whole):,} bytes")


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
