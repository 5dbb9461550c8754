"""The encoded text of data/NAME as one Corpus: shuffled batches to train on, fixed windows to evaluate."""

from __future__ import annotations

import codecs
import math
import os
import tempfile
import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch

from configurator import UserError, one_line
from drama import checkpoint, tokenizer
from drama.device import random_stream
from drama.disk import finish_replacing, read_json
from drama.tokenizer import whole_words
from drama.training.machine import Machine, uncompiled
from model import GPT

if TYPE_CHECKING:
    from train_drama import Settings

CHUNK = 1 << 20  # tokens read at a time
AGAIN = "run prepare.py again"
CPU_PART = 2048  # tokens of a batch read at a time in float32, so that a CPU's caches hold them
# A batch of evaluation: fixed, so that no setting of a training changes how its losses are rounded.
EVAL_TOKENS = 4096
WHOLE = 2**18  # tokens of a validation split that every evaluation reads whole
EVAL_LOGITS = 2**26  # fewer tokens where each has many: at 10 bytes per logit, 0.7 GB


class Split:
    """The tokens of one split: on the GPU when they take a small part of its memory, else in a file.

    The file is read and not mapped into memory: a mapped one that becomes shorter ends the program by SIGBUS.
    """

    def __init__(self, file: BinaryIO, vocab_size: int, device: torch.device):
        self.file, self.vocab_size, self.device = file, vocab_size, device
        self.length = file.seek(0, os.SEEK_END) // 2
        self.resident, self.pinned = None, device.type == "cuda"
        try:
            if device.type == "cuda" and 4 * len(self) < torch.cuda.mem_get_info(device)[0] / 8:
                # torch knows uint16 in part only
                tokens = np.concatenate(list(self.pieces())).astype(np.int32)
                self.resident = torch.from_numpy(tokens).to(device)
        except RuntimeError as e:  # a driver that cannot tell, or less memory than it tells
            print(f"the text stays in its file, not on the GPU ({one_line(e)[:120]})", flush=True)

    def __len__(self) -> int:
        return self.length

    def read(self, start: int, tokens: np.ndarray) -> np.ndarray:
        """Fill tokens (n,) uint16 with those from start on. Raises OSError where the file ends before."""
        self.file.seek(2 * start)
        if self.file.readinto(tokens) != tokens.nbytes:
            raise OSError(0, f"has become shorter since the run began; {AGAIN}", str(self.file.name))
        return tokens

    def pieces(self):
        """Yield all tokens in order, some at a time (n,) uint16."""
        for start in range(0, len(self), CHUNK):
            yield self.read(start, np.empty(min(CHUNK, len(self) - start), dtype="<u2"))

    def require_sound(self, crc32: int):
        """Raise UserError where the file is not as prepare.py wrote it."""
        found = largest = 0
        for piece in self.pieces():
            found, largest = zlib.crc32(piece, found), max(largest, piece.max())
        if found != crc32:
            raise UserError(f"{self.file.name} is damaged: its checksum is not that of meta.json; {AGAIN}")
        if largest >= self.vocab_size:
            raise UserError(f"{self.file.name} holds tokens that meta.json does not know; {AGAIN}")

    def encoded_by(self, tok, before, folder: Path) -> Split:
        """The same text in the tokens of another tokenizer than the one before, in a nameless file there."""
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
        for text in whole_words(decode(before.decode_bytes(piece)) for piece in self.pieces()):
            file.write(tok.encode(text).astype("<u2", copy=False).data)
        return Split(file, tok.vocab_size, self.device)

    def windows(self, starts: torch.Tensor, length: int):
        """x, y (B, length): the tokens from each of starts (B,), and the ones that follow each."""
        if self.resident is not None:  # a few bytes go to the GPU, and nothing waits for it
            starts = starts.to(self.device, non_blocking=True)
            where = starts[:, None] + torch.arange(length + 1, device=self.device)
            tokens = self.resident[where].long()
        else:
            tokens = np.empty((len(starts), length + 1), dtype="<u2")
            for row, start in zip(tokens, starts.tolist(), strict=True):
                self.read(start, row)
            tokens = torch.from_numpy(tokens.astype(np.int64))
            try:
                tokens = tokens.pin_memory() if self.pinned else tokens
            except RuntimeError as e:
                print(f"batches go to the GPU without pinned memory ({one_line(e)[:120]})", flush=True)
                self.pinned = False
            tokens = tokens.to(self.device, non_blocking=self.pinned)
        return tokens[:, :-1], tokens[:, 1:]


@dataclass
class Corpus:
    """One dataset, as a training reads it."""

    train: Split
    val: Split
    tokenizer: tokenizer.CharTokenizer | tokenizer.BPETokenizer
    source: str  # where the text is from, for people
    identity: str  # a SHA-256 of all that the tokens follow from
    val_characters: int
    speakers: list[str]  # whose speeches are in the training text, as far as its form shows them

    def batches(self, settings: Settings, iteration: int, machine: Machine):
        """Yield this process's x, y (rows, block_size) of an iteration, in parts whose gradients are added.

        A part is one accumulation step's share of the batch; on a CPU, as much of it as its caches hold.
        What is drawn follows from (seed, iteration) alone, and all processes
        together see what one would see.
        """
        s = settings
        starts = window_starts(len(self.train), s, iteration)
        starts = starts.view(s.gradient_accumulation_steps, machine.world, s.batch_size // machine.world)
        rows = starts.size(2)
        if machine.device.type == "cpu":
            rows = max(1, CPU_PART * 4 // machine.dtype.itemsize // s.block_size)
        for step_starts in starts[:, machine.rank]:
            for part in step_starts.split(rows):
                yield self.train.windows(part, s.block_size)

    def encoded_by(self, tok, folder: Path) -> Corpus:
        """The same texts in the tokens of another tokenizer, in folder: that of a model which goes on."""
        if tok.to_dict() == self.tokenizer.to_dict():
            return self
        train, val = (split.encoded_by(tok, self.tokenizer, folder) for split in (self.train, self.val))
        return replace(self, tokenizer=tok, train=train, val=val)

    def evaluate(self, model: GPT, settings: Settings, machine: Machine, stop=None) -> dict | None:
        """train_loss, val_loss, val_bits_per_char; None when stop asks for an end before they are done.

        The validation loss is over the whole split or, where that is large, over as much of it as half of
        what is trained between two evaluations, in windows that are always the same ones; val_part then says
        how much. With eval_iters, over at most that many batches. The training loss is over as many windows.
        """
        sizes = settings.block_size, self.val.vocab_size
        limit = self.eval_windows(settings)
        val_windows = fixed_windows(len(self.val), *sizes, limit)
        count = sum(len(starts) for starts, _ in val_windows)
        train_windows = fixed_windows(len(self.train), *sizes, limit=count)
        train_loss = evaluate(model, self.train, train_windows, machine, stop)
        val_loss = evaluate(model, self.val, val_windows, machine, stop)
        if train_loss is None or val_loss is None:
            return None
        losses = dict(train_loss=train_loss, val_loss=val_loss, val_bits_per_char=self.bits(val_loss))
        whole = count * settings.block_size >= len(self.val) - 1
        return losses if whole else losses | dict(val_part=count * settings.block_size / len(self.val))

    def evaluate_whole(self, model: GPT, settings: Settings, machine: Machine, stop=None) -> dict | None:
        """val_loss and val_bits_per_char over the whole split; None when stop asks for an end."""
        windows = fixed_windows(len(self.val), settings.block_size, self.val.vocab_size)
        val_loss = evaluate(model, self.val, windows, machine, stop)
        return None if val_loss is None else dict(val_loss=val_loss, val_bits_per_char=self.bits(val_loss))

    def bits(self, loss: float) -> float:
        """Bits per character of a validation loss in nats per token."""
        return loss / math.log(2) * len(self.val) / self.val_characters

    def eval_windows(self, settings: Settings) -> int:
        """How many windows an evaluation reads of a split at most; 0: all."""
        if settings.eval_iters:
            return settings.eval_iters * windows_per_batch(settings.block_size, self.val.vocab_size)
        if len(self.val) <= WHOLE:
            return 0
        s = settings
        return s.eval_interval * s.gradient_accumulation_steps * s.batch_size // 2 or 1


def is_prepared(name: str) -> bool:
    """Whether data/<name> is there; what prepare.py had begun to replace is finished first."""
    finish_replacing(Path("data", name))
    return Path("data", name, "meta.json").is_file()


def load_data(name: str, block_size: int, machine: Machine) -> Corpus:
    """data/<name>, which prepare.py wrote.

    Raises UserError when files are missing, damaged or too short for block_size.
    """
    folder = Path("data", name)
    if not is_prepared(name):
        raise UserError(f"{folder} is not prepared; {AGAIN}")
    try:
        meta = read_json(folder / "meta.json")
        counts = {split: int(meta[f"{split}_tokens"]) for split in ("train", "val")}
        identity = checkpoint.digest([meta["sha256"], counts, meta["tokenizer"]])
        tok = tokenizer.from_dict(meta["tokenizer"])
        val_characters, source, speakers = meta["val_characters"], meta["source"], meta["speakers"]
        sums = {split: int(meta[f"{split}_crc32"]) for split in counts}
        if type(val_characters) is not int or val_characters < 1 or type(source) is not str:
            raise ValueError
        if type(speakers) is not list or not all(type(speaker) is str for speaker in speakers):
            raise ValueError
    except UserError as e:
        raise UserError(f"{e}; {AGAIN}") from None
    except (LookupError, TypeError, ValueError, OverflowError):
        raise UserError(f"{folder / 'meta.json'} is damaged or of an earlier version; {AGAIN}") from None
    require_windows(counts, block_size)
    splits = []
    for split, count in counts.items():
        path = folder / f"{split}.bin"
        if not path.is_file():
            raise UserError(f"{path} is missing; {AGAIN}")
        if (size := path.stat().st_size) != 2 * count:
            raise UserError(f"{path} has {size:,} bytes where meta.json says {2 * count:,}; {AGAIN}")
        file = open(path, "rb", buffering=0)  # noqa: SIM115
        splits.append(Split(file, tok.vocab_size, machine.device))
        splits[-1].require_sound(sums[split])
    return Corpus(*splits, tok, source, identity, val_characters, speakers)


def require_windows(counts: dict[str, int], block_size: int):
    """Raise UserError where a split has fewer tokens than one window and the token after it."""
    for split, count in counts.items():
        if count < block_size + 1:
            needs = f"block_size={block_size} needs {block_size + 1:,}"
            raise UserError(f"the {split} split has {count:,} tokens and {needs}; lower it or give more text")


@lru_cache(maxsize=2)  # of two epochs, for an iteration that ends one and begins the next
def shuffled_windows(n_tokens: int, block_size: int, seed: int, epoch: int) -> torch.Tensor:
    """Where the windows of one epoch start, in the order in which they are read.

    They lie side by side and cover the text once, except a few tokens at its ends; every epoch cuts it at
    other places. Windows drawn anywhere, one by one, leave some of the text unread for long and learn less.
    """
    stream = random_stream(seed, "epoch", epoch)
    cut = torch.randint(block_size, (), generator=stream) - block_size // 2
    order = torch.randperm((n_tokens - 1) // block_size, generator=stream)
    return (order * block_size + cut).clamp(0, n_tokens - 1 - block_size)


def window_starts(n_tokens: int, settings: Settings, iteration: int) -> torch.Tensor:
    """Where the windows of one iteration start, those of all its batches."""
    count = settings.gradient_accumulation_steps * settings.batch_size
    per_epoch = (n_tokens - 1) // settings.block_size
    begin, end = iteration * count, (iteration + 1) * count  # of all the windows that a run reads
    parts = []
    for epoch in range(begin // per_epoch, (end - 1) // per_epoch + 1):
        windows = shuffled_windows(n_tokens, settings.block_size, settings.seed, epoch)
        parts.append(windows[max(0, begin - epoch * per_epoch) : end - epoch * per_epoch])
    return torch.cat(parts)


def windows_per_batch(block_size: int, vocab_size: int) -> int:
    """How many windows an evaluation reads at a time."""
    return max(1, min(EVAL_TOKENS, EVAL_LOGITS // vocab_size) // block_size)


def fixed_windows(n_tokens: int, block_size: int, vocab_size: int, limit: int = 0) -> list:
    """Batches (starts, length) of windows that predict every token of a split but its first exactly once.

    With a limit, at most that many windows, spread evenly over the split.
    """
    starts = torch.arange(0, (n_tokens - 1) // block_size * block_size, block_size)
    tail = (n_tokens - 1) % block_size  # a last window, shorter than the others
    if limit and len(starts) > limit:
        evenly = torch.linspace(0, len(starts) - 1, limit, dtype=torch.float64)
        starts, tail = starts[evenly.long()], 0
    batches = [(part, block_size) for part in starts.split(windows_per_batch(block_size, vocab_size))]
    return batches + ([(torch.tensor([n_tokens - 1 - tail]), tail)] if tail else [])


@torch.no_grad()
def evaluate(model: GPT, split: Split, batches: list, machine: Machine, stop=None) -> float | None:
    """Mean cross-entropy of split over batches, in nats per token, in evaluation mode. Collective.

    Each process takes its share of the batches. None when stop asks for an end before it is done, which
    several GPUs do not look at: they are soon done.
    """
    training = model.training
    model.eval()
    sums, count, ended = [], 0, False
    for n in range(0, len(batches), machine.world):
        ended = machine.any_rank_is_cheap and machine.any_rank(stop)
        if ended:
            break
        if n + machine.rank < len(batches):
            starts, length = batches[n + machine.rank]
            x, y = split.windows(starts, length)
            with machine.autocast(), uncompiled():
                sums.append(model(x, y)[1] * y.numel())
            count += y.numel()
    model.train(training)
    if ended:
        return None
    total = torch.stack(sums).cpu().double().sum() if sums else torch.zeros((), dtype=torch.float64)
    total_and_count = torch.stack([total, torch.tensor(count, dtype=torch.float64)])
    if machine.world > 1:
        total_and_count = machine.all_reduce(total_and_count.to(machine.device)).cpu()
    return (total_and_count[0] / total_and_count[1]).item()
