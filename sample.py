"""Write dialogue with a trained model.

python sample.py --start="LUCIO:"
python sample.py --start=FILE:prompt.txt --num_samples=3 --temperature=0.7
python sample.py --cast="LUCIO,ISABELLA" --turns=8 --num_samples=1 --format=fountain
"""

from configurator import configure, run  # first: see starting() there

# isort: split
import codecs
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import checkpoint
import prepare
from generation import pack, stream
from machine import DTYPES, find_device, find_dtype
from scene import Cast, Director, as_json, cast_names, fountain, speeches

LONGEST_PROMPT = 1_000_000  # bytes of a prompt file; the model itself sees its last block_size tokens
LONGEST_SPEECH = 1000  # tokens that a turn may take on average
BATCH = 100  # samples decoded together; bounds the memory of the key/value cache


@dataclass(frozen=True)
class Settings:
    """python sample.py [config/FILE.py ...] [--name=value ...]"""

    # What to write
    start: str = "\n"  # the text to continue, as in "LUCIO:"; FILE:prompt.txt reads it from a file
    num_samples: int = 10  # how many texts; one alone is written out as it comes
    max_new_tokens: int = 500  # the length of each: characters, or tokens of some characters
    cast: str = ""  # who may speak, as in "LUCIO,ISABELLA"; empty: whoever the model likes
    turns: int = 0  # end after so many whole speeches, whatever max_new_tokens says; 0: do not
    format: str = "text"  # text, fountain (a screenplay) or json
    # How
    temperature: float = 0.8  # below 1 is safer, above 1 wilder; 0 always takes the likeliest
    top_k: int = 200  # only the so many likeliest tokens take part; 0 lets all
    top_p: float = 0.9  # only the likeliest tokens that make up this probability take part; 1 lets all
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
            "turns": 0,
            "seed": 0,
        }.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} is below {least}")
        if self.format not in ("text", "fountain", "json"):
            raise ValueError(f"format={self.format!r} is none of text, fountain, json")
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
    state = checkpoint.load(path)
    model, tok = checkpoint.build_model(state, path)
    names = cast_names(settings.cast)
    cast = Cast(names, tok) if names else None
    known = known_names(state, tok, default=names) if names else ()
    unheard = [name for name in names if name not in known]
    if unheard:
        print(f"the training text has no speech by {', '.join(unheard)}", file=sys.stderr)
    device = find_device(settings.device)
    pack(model.to(device), find_dtype(settings.dtype, device))
    ids = torch.from_numpy(tok.encode(prompt).astype("int64"))
    terminal = sys.stdout and sys.stdout.isatty()
    live = bool(terminal and settings.num_samples == 1 and settings.format == "text")
    texts = []
    for first in range(0, settings.num_samples, BATCH):
        rows = min(BATCH, settings.num_samples - first)
        written = write(settings, model, tok, prompt, ids.to(device).expand(rows, -1), cast, first, live)
        if settings.format == "text":
            for text in written:
                print("" if live else text)
                print("---------------", flush=True)
        texts += written
    if settings.format != "text":
        print((fountain if settings.format == "fountain" else as_json)(texts))


def write(settings: Settings, model, tok, prompt: str, idx, cast, first: int, live: bool) -> list[str]:
    """The texts that continue idx (B, T), which is the prompt; printed as they come where live."""
    rows = len(idx)
    director = Director(tok, prompt, rows, cast, settings.turns) if cast or settings.turns else None
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may come in two tokens
    tokens = []
    if live:
        print(prompt, end="", flush=True)
    for token in stream(
        model,
        idx,
        LONGEST_SPEECH * settings.turns or settings.max_new_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k or None,
        top_p=settings.top_p,
        seed=settings.seed,
        first_row=first,
        director=director,
    ):
        tokens.append(token)
        if live:
            print(decoder.decode(tok.decode_bytes(token[0].tolist())), end="", flush=True)
    if settings.turns and not director.done():
        print(f"the model wrote on for {len(tokens):,} tokens without ending its speeches", file=sys.stderr)
    if director:
        texts = [director.written(row) for row in range(rows)]
        return [cast.whole(text) for text in texts] if cast and not settings.turns else texts
    texts = []
    for new in torch.cat(tokens, dim=1).tolist():
        decoder.reset()
        texts.append(prompt + decoder.decode(tok.decode_bytes(new)))
    return texts


LONG = 100_000_000  # bytes of tokens; to read more would take a while, for no more than a note


def known_names(state: dict, tok, default: list[str]) -> set[str]:
    """Who speaks in the text that a model was trained on; the default where that is not here any more."""
    folder = prepare.DATA / str(state["settings"].get("dataset"))
    try:
        if (folder / "train.bin").stat().st_size > LONG:
            return set(default)
        same = checkpoint.read_json(folder / "meta.json").get("tokenizer") == tok.to_dict()
        ids = np.fromfile(folder / "train.bin", dtype="<u2")
        return {name for name, _ in speeches(tok.decode(ids))} if same else set(default)
    except (OSError, ValueError, LookupError):  # gone, or being prepared anew
        return set(default)


def main():
    sample(configure(Settings, sys.argv[1:]))


if __name__ == "__main__":
    run(main)
