"""Write dialogue with a trained model.

python sample.py --start="LUCIO:"
python sample.py --start=FILE:prompt.txt --num_samples=3 --temperature=0.7
"""

import codecs
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

import checkpoint
from configurator import configure, run
from generation import generate, pack, stream
from machine import DTYPES, find_device, find_dtype

LONGEST_PROMPT = 1_000_000  # bytes of a prompt file; the model itself sees its last block_size tokens
BATCH = 100  # samples decoded together; bounds the memory of the key/value cache


@dataclass(frozen=True)
class Settings:
    """python sample.py [config/FILE.py ...] [--name=value ...]"""

    # What to write
    start: str = "\n"  # the text to continue, as in "LUCIO:"; FILE:prompt.txt reads it from a file
    num_samples: int = 10  # how many texts; one alone is written out as it comes
    max_new_tokens: int = 500  # the length of each: characters, or tokens of some characters
    # How
    temperature: float = 0.8  # below 1 is safer, above 1 wilder; 0 always takes the likeliest
    top_k: int = 200  # only the so many likeliest tokens take part; 0 lets all
    top_p: float = 1.0  # only the likeliest tokens that make up this probability take part; try 0.95
    seed: int = 1337  # another seed, other texts
    # Where
    out_dir: str = "model"  # the folder with ckpt.pt
    device: str = "auto"  # auto: cuda, else mps, else cpu; or one of them
    dtype: str = "auto"  # auto: the fastest the device has; or bfloat16, float16, float32 (exact)

    def __post_init__(self):
        for name, least in {
            "num_samples": 1,
            "max_new_tokens": 1,
            "temperature": 0,
            "top_k": 0,
            "seed": 0,
        }.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} is below {least}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} is none of {', '.join(DTYPES)}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} is not above 0 and at most 1")


def read_prompt(start: str) -> str:
    """The prompt that --start gives: itself, a file's text, or a newline for nothing."""
    if not start.startswith("FILE:"):
        return start or "\n"
    path = Path(start.removeprefix("FILE:"))
    if not path.is_file():
        raise ValueError(f"prompt file {path}: " + ("not a plain file" if path.exists() else "no such file"))
    if path.stat().st_size > LONGEST_PROMPT:
        raise ValueError(
            f"prompt file {path} has {path.stat().st_size:,} bytes; at most {LONGEST_PROMPT:,} are read"
        )
    try:
        return path.read_text(encoding="utf-8-sig") or "\n"
    except UnicodeDecodeError as e:
        raise ValueError(f"prompt file {path} is not UTF-8 (byte {e.start:,}); save it as UTF-8") from None


def sample(settings: Settings):
    """Print num_samples texts. Raises ValueError for a missing model or a prompt it cannot read."""
    path = Path(settings.out_dir) / "ckpt.pt"
    if not path.exists():
        raise ValueError(
            f"{path} is missing: train a model first, python train_drama.py (with no GPU: "
            "python train_drama.py config/laptop.py); the first is saved after eval_interval iterations"
        )
    prompt = read_prompt(settings.start)
    model, tok = checkpoint.build_model(checkpoint.load(path), path)
    device = find_device(settings.device)
    pack(model.to(device), find_dtype(settings.dtype, device))
    ids = torch.from_numpy(tok.encode(prompt).astype("int64"))
    how = dict(
        temperature=settings.temperature,
        top_k=settings.top_k or None,
        top_p=settings.top_p,
        seed=settings.seed,
    )
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    live = settings.num_samples == 1 and sys.stdout.isatty()
    if live:
        print(prompt, end="", flush=True)
        for token in stream(model, ids.to(device)[None], settings.max_new_tokens, **how):
            print(decoder.decode(tok.decode_bytes(token[0].tolist())), end="", flush=True)
        print("\n---------------")
        return
    for first in range(0, settings.num_samples, BATCH):
        rows = min(BATCH, settings.num_samples - first)
        batch = ids.to(device).expand(rows, -1)
        for row in generate(model, batch, settings.max_new_tokens, first_row=first, **how).tolist():
            decoder.reset()  # what it holds of a character that was cut in two
            print(prompt + decoder.decode(tok.decode_bytes(row[len(ids) :])))
            print("---------------", flush=True)


def main():
    sample(configure(Settings, sys.argv[1:]))


if __name__ == "__main__":
    run(main)
