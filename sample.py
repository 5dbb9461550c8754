"""Write dialogue with a trained model.

python sample.py --start="LUCIO:"
python sample.py --start=FILE:prompt.txt --num_samples=3 --temperature=0.7
python sample.py --cast="LUCIO,ISABELLA" --turns=8 --num_samples=1 --format=fountain
"""

import codecs
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from drama.program import run_program

import torch

from configurator import FilePath, UserError, check, configure
from drama import checkpoint
from drama.generation import pack, prompt_ids, stream
from drama.machine import Dtype, find_device, find_dtype
from drama.scene import Cast, Director, as_json, cast_names, fountain
from drama.tokenizer import as_known, first_text

LONGEST_PROMPT = 1_000_000  # bytes of a prompt file; the model itself sees its last block_size tokens
LONGEST_SPEECH = 1000  # tokens that a turn may take on average
BATCH = 100  # samples decoded together; bounds the memory of the key/value cache
Format = Literal["text", "fountain", "json"]


@dataclass(frozen=True)
class Settings:
    """python sample.py [config/FILE.py ...] [--name=value ...]"""

    # What to write
    start: str = ""  # the text to continue, as in "LUCIO:"; FILE:prompt.txt reads it from a file
    num_samples: int = 10  # how many texts; one alone is written out as it comes
    max_new_tokens: int = 500  # the length of each: characters, or tokens of some characters
    cast: str = ""  # who may speak, as in "LUCIO,ISABELLA"; empty: whoever the model likes
    turns: int = 0  # end after this many whole speeches, whatever max_new_tokens says; 0: do not
    format: Format = "text"  # text, fountain (a screenplay) or json
    # How
    temperature: float = 0.8  # below 1 is safer, above 1 wilder; 0 always takes the likeliest
    top_k: int = 200  # keep the k likeliest tokens; 0: all
    top_p: float = 0.9  # keep the likeliest tokens that add up to this probability; 1: all
    seed: int = 1337  # another seed, other texts
    # Where
    out_dir: FilePath = "model"  # the folder with ckpt.pt
    device: str = "auto"  # auto: cuda, else mps, else cpu; or one of them
    dtype: Dtype = "auto"  # auto: the fastest the device has; or bfloat16, float16, float32 (exact)

    def __post_init__(self):
        check(self, dict(num_samples=1, max_new_tokens=1, temperature=0, top_k=0, turns=0, seed=0))
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} is not above 0 and at most 1")


def read_prompt(start: str) -> str:
    """The prompt that --start gives: itself or a file's text."""
    if not start.startswith("FILE:"):
        return start
    path = Path(start.removeprefix("FILE:")).expanduser()
    if not path.is_file():
        raise UserError(f"prompt file {path}: " + ("not a plain file" if path.exists() else "no such file"))
    if (size := path.stat().st_size) > LONGEST_PROMPT:
        raise UserError(f"prompt file {path} has {size:,} bytes; at most {LONGEST_PROMPT:,} are read")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"prompt file {path} is not UTF-8 (byte {e.start:,}); save it as UTF-8") from None


def sample(settings: Settings):
    """Print num_samples texts. Raises UserError for a missing model or a prompt it cannot read."""
    path = Path(settings.out_dir) / "ckpt.pt"
    if not path.exists():
        raise UserError(f"{path} is missing: train a model first, python train_drama.py config/laptop.py")
    prompt = read_prompt(settings.start)
    state = checkpoint.load(path)
    model, tok = checkpoint.build_model(state, path)
    prompt, changed = as_known(prompt or first_text(tok), tok)
    names = cast_names(settings.cast)
    cast = Cast(names, tok) if names else None
    speakers = state.get("speakers", [])  # none: nobody knows who speaks in the training text
    strangers = [name for name in cast.names if speakers and name not in speakers] if cast else []
    device = find_device(settings.device)
    if changed:
        print(f"changed in the prompt, as the model does not know it otherwise: {changed}", file=sys.stderr)
    if strangers:
        print(f"the training text has no speech by {', '.join(strangers)}", file=sys.stderr)
    pack(model.to(device), find_dtype(settings.dtype, device))
    terminal = sys.stdout and sys.stdout.isatty()
    live = bool(terminal and settings.num_samples == 1 and settings.format == "text")
    texts = []
    for first in range(0, settings.num_samples, BATCH):
        rows = range(first, min(first + BATCH, settings.num_samples))
        batch = write(settings, model, tok, prompt, cast, rows, live)
        if settings.format == "text":
            for text in batch:
                print("" if live else text)
                print("---------------", flush=True)
        texts += batch
    if settings.format != "text":
        print((fountain if settings.format == "fountain" else as_json)(texts))


def write(settings: Settings, model, tok, prompt: str, cast, rows: range, live: bool) -> list[str]:
    """The texts of these numbers, each continuing the prompt; printed as they come where live."""
    director = Director(tok, prompt, len(rows), cast, settings.turns) if cast or settings.turns else None
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character may come in two tokens
    tokens = []
    if live:
        print(prompt, end="", flush=True)
    for token in stream(
        model,
        prompt_ids(tok, prompt, model).expand(len(rows), -1),
        LONGEST_SPEECH * settings.turns or settings.max_new_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k or None,
        top_p=settings.top_p,
        seed=settings.seed,
        first_row=rows.start,
        director=director,
    ):
        tokens.append(token)
        if live:
            print(decoder.decode(tok.decode_bytes(token[0].tolist())), end="", flush=True)
    if settings.turns and not director.done():
        print(f"the model wrote on for {len(tokens):,} tokens without ending its speeches", file=sys.stderr)
    if director:
        texts = [director.written(row) for row in range(len(rows))]
        return [cast.whole(text) for text in texts] if cast and not settings.turns else texts
    texts = []
    for ids in torch.cat(tokens, dim=1).tolist():
        decoder.reset()
        texts.append(prompt + decoder.decode(tok.decode_bytes(ids)))
    return texts


def main():
    sample(configure(Settings, sys.argv[1:]))


if __name__ == "__main__":
    run_program(main)
