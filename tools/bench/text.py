"""What a trained model writes: words that its corpus lacks, and stretches copied from it."""

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
JOB = dict(num_samples=10, max_new_tokens=2000, temperature=0.8, top_k=0)


def words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*", text.casefold())


def bench_text(settings: Settings, folder: Path, nano: NanoGPT | None, n: int) -> dict:
    """20,000 tokens at temperature 0.8: speed, words that the corpus lacks, stretches copied from it."""
    path = Path(settings.out_dir) / "ckpt.pt"
    plays = load_data(checkpoint.load(path)["settings"]["dataset"], 1, training_machine("cpu", "float32"))
    splits = (np.concatenate(list(split.pieces())) for split in (plays.train, plays.val))
    learned, unseen = map(plays.tokenizer.decode, splits)
    known = set(words(learned + unseen))
    job = dict(JOB, out_dir=path.parent, dtype=settings.dtype, top_p=settings.top_p, seed=1337 + n)
    done = python(ROOT / "sample.py", **job)
    samples = "".join(line for _, line in done.lines).split("\n---------------\n")[:-1]
    written = [word for text in samples for word in words(text.rpartition(" ")[0])]  # the last may be cut off
    if not written:
        raise UserError(f"{path} writes no words between spaces, which could be counted")
    stretches = [text[i : i + COPIED] for text in samples for i in range(len(text) - COPIED + 1)]
    originals = {learned[i : i + COPIED] for i in range(len(learned) - COPIED + 1)}
    return {
        "unknown_words_percent": [100 * statistics.mean(word not in known for word in written)],
        "copied_percent": [100 * statistics.mean(stretch in originals for stretch in stretches)],
        "characters_per_s": [sum(map(len, samples)) / done.seconds],
    }
