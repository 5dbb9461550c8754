"""The encoded text of data/NAME: shuffled batches to train on, fixed windows to evaluate, the loss there."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

import checkpoint
import prepare
import tokenizer
from machine import Machine
from model import GPT, random_stream

# A batch of evaluation: fixed, so that no setting of a training changes how its losses are rounded.
EVAL_TOKENS = 16384
EVAL_LOGITS = 2**26  # fewer tokens where each has many: at 10 bytes a logit, 0.7 GB


class Split:
    """The tokens of one split: on the GPU when they take a small part of its memory, else memory-mapped."""

    def __init__(self, path: Path, n_tokens: int, vocab_size: int, device: torch.device):
        again = "run prepare.py again"
        if not path.is_file():
            raise ValueError(f"{path} is missing; {again}")
        if path.stat().st_size != 2 * n_tokens:
            raise ValueError(
                f"{path} has {path.stat().st_size:,} bytes where meta.json says {2 * n_tokens:,}; {again}"
            )
        self.device, self.vocab_size = device, vocab_size
        self.mapped = np.memmap(path, dtype="<u2", mode="r")
        if self.mapped.max() >= vocab_size:
            raise ValueError(f"{path} holds tokens that meta.json does not know; {again}")
        self.resident = None
        if device.type == "cuda" and 4 * n_tokens < torch.cuda.mem_get_info(device)[0] / 8:
            self.resident = torch.from_numpy(self.mapped.astype(np.int32)).to(device)

    def __len__(self) -> int:
        return len(self.mapped)

    def send(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the CPU on the split's device; to a GPU the copy is left under way."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def windows(self, starts: torch.Tensor, length: int):
        """x, y (B, length): the tokens from each of starts (B,), and the ones that follow each."""
        where = starts[:, None] + torch.arange(length + 1)
        if self.resident is not None:
            tokens = self.resident[self.send(where)].long()
        else:
            tokens = self.send(torch.from_numpy(self.mapped[where.numpy()].astype(np.int64)))
        return tokens[:, :-1], tokens[:, 1:]


def load_data(name: str, block_size: int, machine: Machine):
    """(train, val, meta) of data/<name>; fetches the default corpus when it is not there.

    meta is meta.json with its tokenizer made, and a SHA-256 of all that the tokens follow from. Raises
    ValueError when the files are missing, damaged or too short for block_size.
    """
    folder = prepare.DATA / name
    if not (folder / "meta.json").is_file() and machine.local_rank == 0:
        if name != "drama":
            raise ValueError(
                f"{folder} is not prepared; python prepare.py --dataset={name} does that, with --input=PLAYS "
                "for plays of yours (--help names other texts and tokenizers)"
            )
        prepare.prepare(prepare.Settings())
    if machine.world > 1:
        dist.barrier()
    meta = checkpoint.read_json(folder / "meta.json")
    try:
        counts = {split: int(meta[f"{split}_tokens"]) for split in ("train", "val")}
        meta["sha256"] = checkpoint.digest([meta["sha256"], counts, meta["tokenizer"]])
        meta["tokenizer"] = tokenizer.from_dict(meta["tokenizer"])
        meta["val_characters"] = int(meta["val_characters"])
        if meta["val_characters"] < 1 or not isinstance(meta["source"], str):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{folder / 'meta.json'} is damaged; run prepare.py again") from None
    for split, count in counts.items():
        if count < block_size + 1:
            raise ValueError(
                f"the {split} split has {count:,} tokens and block_size={block_size} needs "
                f"{block_size + 1:,}; lower --block_size, or prepare a longer text"
            )
    vocab_size = meta["tokenizer"].vocab_size
    train, val = (Split(folder / f"{k}.bin", n, vocab_size, machine.device) for k, n in counts.items())
    return train, val, meta


@lru_cache(maxsize=2)  # of two epochs, for an iteration that ends one and begins the next
def shuffled_windows(n_tokens: int, block_size: int, seed: int, epoch: int) -> torch.Tensor:
    """Where the windows of one epoch start, in the order in which they are read.

    They stand side by side and read the text once, but for a few tokens at its ends; every epoch cuts it at
    other places. Windows anywhere, drawn one by one, leave some of the text unread for long: they learn less.
    """
    stream = random_stream(seed, "epoch", epoch)
    cut = torch.randint(block_size, (), generator=stream) - block_size // 2
    order = torch.randperm((n_tokens - 1) // block_size, generator=stream)
    return (order * block_size + cut).clamp(0, n_tokens - 1 - block_size)


def draw_batches(split: Split, settings, iteration: int, machine: Machine):
    """Yield this process's x, y (batch_size / processes, block_size), once an accumulation step.

    settings is train_drama's. What is drawn follows from (seed, iteration) alone, and all processes together
    see what one would see. With corruption, that share of the tokens in x is replaced by any others.
    """
    shape = (settings.gradient_accumulation_steps, machine.world, settings.batch_size // machine.world)
    count = settings.gradient_accumulation_steps * settings.batch_size  # windows an iteration
    per_epoch = (len(split) - 1) // settings.block_size
    begin, end = iteration * count, (iteration + 1) * count  # of all the windows that a run reads
    parts = []
    for epoch in range(begin // per_epoch, (end - 1) // per_epoch + 1):
        windows = shuffled_windows(len(split), settings.block_size, settings.seed, epoch)
        parts.append(windows[max(0, begin - epoch * per_epoch) : end - epoch * per_epoch])
    starts = torch.cat(parts).view(shape)
    for step, step_starts in enumerate(starts[:, machine.rank]):
        x, y = split.windows(step_starts, settings.block_size)
        if settings.corruption:
            stream = random_stream(settings.seed, "corruption", iteration, step)
            of_all = (machine.world, *x.shape)
            replaced = torch.rand(of_all, generator=stream)[machine.rank] < settings.corruption
            others = torch.randint(split.vocab_size, of_all, generator=stream)[machine.rank]
            x = torch.where(split.send(replaced), split.send(others), x)
        yield x, y


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
    """Mean cross-entropy of split over batches, in nats a token, in evaluation mode.

    Each process takes its share of the batches. None when stop asks for an end before it is done, which
    several GPUs do not look at: they are soon done.
    """
    training = model.training
    model.eval()
    sums, count, ended = [], 0, False
    for n in range(0, len(batches), machine.world):
        if machine.world == 1 or machine.device.type == "cpu":
            ended = machine.any(stop)
        if ended:
            break
        if n + machine.rank < len(batches):
            starts, length = batches[n + machine.rank]
            x, y = split.windows(starts, length)
            with machine.autocast():
                sums.append(model(x, y)[1] * y.numel())
            count += y.numel()
    model.train(training)
    if ended:
        return None
    total = torch.stack(sums).cpu().double().sum() if sums else torch.zeros((), dtype=torch.float64)
    both = torch.stack([total, torch.tensor(count, dtype=torch.float64)])
    if machine.world > 1:
        both = machine.sum(both.to(machine.device)).cpu()
    return (both[0] / both[1]).item()
