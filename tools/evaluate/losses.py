"""What models say of a text: of each token, of each speech, of each play."""

import itertools
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from drama.speech import NEXT_SPEECH
from drama.tokenizer import UnknownCharacters, with_plain
from drama.training.dataset import windows_per_batch
from drama.training.machine import Machine
from model import GPT
from tools.evaluate.page import columns


@dataclass
class Model:
    """A checkpoint that is evaluated."""

    name: str
    model: GPT
    tok: object
    dataset: str


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
