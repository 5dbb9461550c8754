"""What a trained model writes: words that its corpus lacks, copied stretches, repeated words."""

import re
import statistics
from pathlib import Path

from drama.program import ROOT

import numpy as np

from configurator import UserError
from drama import checkpoint
from drama.training.dataset import load_data
from drama.training.machine import training_machine
from tools.bench.programs import NanoGPT, Settings, python

COPIED = 50  # characters in a row that count as copied
RUN, NEAR = 3, 40  # so many words in a row count as repeated where they stood among so many before
JOB = dict(num_samples=10, max_new_tokens=2000, temperature=0.8, top_k=0)


def words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*", text.casefold())


def repeated_percent(texts: list[list[str]]) -> float:
    """Of every RUN words in a row, those that also stood among the NEAR words before, in percent."""
    repeats = []
    for written in texts:
        runs = [tuple(written[i : i + RUN]) for i in range(len(written) - RUN + 1)]
        repeats += [run in runs[max(0, i - NEAR) : i] for i, run in enumerate(runs)]
    return 100 * statistics.mean(repeats or [0])


def bench_text(settings: Settings, folder: Path, nano: NanoGPT | None, n: int) -> dict:
    """20,000 tokens at temperature 0.8: speed, words that the corpus lacks, what is copied or repeated."""
    path = Path(settings.out_dir) / "ckpt.pt"
    plays = load_data(checkpoint.load(path)["settings"]["dataset"], 1, training_machine("cpu", "float32"))
    splits = (np.concatenate(list(split.pieces())) for split in (plays.train, plays.val))
    learned, unseen = map(plays.tokenizer.decode, splits)
    known = set(words(learned + unseen))
    job = dict(JOB, out_dir=path.parent, dtype=settings.dtype, top_p=settings.top_p, seed=1337 + n)
    done = python(ROOT / "sample.py", **job)
    samples = "".join(line for _, line in done.lines).split("\n---------------\n")[:-1]
    texts = [words(text.rpartition(" ")[0]) for text in samples]  # the last word may be cut off
    written = [word for text in texts for word in text]
    if not written:
        raise UserError(f"{path} writes no words between spaces, which could be counted")
    stretches = [text[i : i + COPIED] for text in samples for i in range(len(text) - COPIED + 1)]
    originals = {learned[i : i + COPIED] for i in range(len(learned) - COPIED + 1)}
    return {
        "unknown_words_percent": [100 * statistics.mean(word not in known for word in written)],
        "copied_percent": [100 * statistics.mean(stretch in originals for stretch in stretches)],
        "repeated_percent": [repeated_percent(texts)],
        "val_repeated_percent": [repeated_percent([words(unseen)])],
        "characters_per_s": [sum(map(len, samples)) / done.seconds],
    }
