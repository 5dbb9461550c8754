"""Write dialogue with a trained model.

python sample.py --start="LUCIO:"
python sample.py --start=FILE:prompt.txt --num_samples=3 --temperature=0.7
python sample.py --cast="LUCIO,ISABELLA" --turns=8 --num_samples=1 --out=scene.fountain
"""

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from drama.program import run_program

from configurator import FilePath, UserError, check, configure
from drama import checkpoint
from drama.device import Dtype, find_device
from drama.disk import write_atomically
from drama.sampling.cast import Cast, Director, cast_names
from drama.sampling.generation import Sampling, prompt_ids, stream
from drama.sampling.packed import ready_to_sample
from drama.speech import as_json, fountain, speeches
from drama.tokenizer import as_known, first_text

LONGEST_PROMPT = 1_000_000  # bytes of a prompt file; the model itself sees its last block_size tokens
LONGEST_SPEECH = 1000  # tokens that a turn may take on average
BATCH = 100  # samples decoded together; bounds the memory of the key/value cache
Format = Literal["text", "fountain", "json"]
BETWEEN = "\n---------------\n"  # two texts
KINDS = {".txt": "text", ".fountain": "fountain", ".json": "json"}


@dataclass(frozen=True)
class Settings:
    """python sample.py [config/FILE.py ...] [--name=value ...]"""

    # What to write
    start: str = ""  # the text to continue, as in "LUCIO:"; FILE:prompt.txt reads it from a file
    num_samples: int = 10  # how many texts; one alone is written out as it comes
    max_new_tokens: int = 500  # the length of each: characters, or subword tokens
    cast: str = ""  # who may speak, as in "LUCIO,ISABELLA"; empty: anybody
    turns: int = 0  # end after this many whole speeches, whatever max_new_tokens says; 0: off
    order: str = ""  # who speaks next, turn by turn, as in "LUCIO,ISABELLA,LUCIO"; instead of cast and turns
    repeat: bool = False  # whether a speaker of the cast may follow himself
    format: Format = "text"  # text, fountain (a screenplay) or json
    out: FilePath = ""  # a file to write instead: .txt, .fountain or .json
    # How
    temperature: float = 0.8  # below 1 is safer, above 1 wilder; 0 always takes the likeliest
    top_k: int = 200  # keep the k likeliest tokens; 0: all
    top_p: float = 0.9  # keep the likeliest tokens that add up to this probability; 1: all
    min_p: float = 0.0  # keep tokens at least this likely, relative to the likeliest; 0.05 is usual; 0: all
    seed: int = 1337  # another seed, other texts
    # Where
    out_dir: FilePath = "model"  # the folder with ckpt.pt, or a model's file in it, such as model/ckpt-1.pt
    device: str = "auto"  # auto: cuda, else mps, else cpu; or one of them
    dtype: Dtype = "auto"  # auto: on x86 CPUs weights in float16; or bfloat16, float16, float32 (exact)

    def __post_init__(self):
        check(self, dict(num_samples=1, max_new_tokens=1, temperature=0, top_k=0, turns=0, seed=0))
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} is not above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"min_p={self.min_p} is not from 0 to 1")
        if self.order and (self.cast or self.turns):
            raise UserError("order says who speaks and how often: leave out cast and turns")
        if self.out and Path(self.out).suffix.lower() not in KINDS:
            raise UserError(f"out={self.out!r} ends in none of {', '.join(KINDS)}")
        if self.out and self.format != "text":
            raise UserError("out's ending says the format: leave out --format")

    def sampling(self) -> Sampling:
        return Sampling(**{field.name: getattr(self, field.name) for field in fields(Sampling)})


def read_prompt(start: str) -> str:
    """The prompt that --start gives: itself or a file's text.

    Of a file with several texts, the last. A speech at its end is finished where its last line is.
    """
    if not start.startswith("FILE:"):
        if Path(start).suffix and Path(start).is_file():
            raise UserError(f"{start} is a file; --start=FILE:{start} reads it")
        return start
    path = Path(start.removeprefix("FILE:")).expanduser()
    if not path.is_file():
        raise UserError(f"prompt file {path}: " + ("not a plain file" if path.exists() else "no such file"))
    if (size := path.stat().st_size) > LONGEST_PROMPT:
        raise UserError(f"prompt file {path} has {size:,} bytes; at most {LONGEST_PROMPT:,} are read")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"prompt file {path} is not UTF-8 (byte {e.start:,}); save it as UTF-8") from None
    text = text.removesuffix(BETWEEN).rpartition(BETWEEN)[2]
    name, lines = (speeches(text) or [("", "")])[-1]
    finished = name and lines and text.endswith("\n") and not text.endswith("\n\n")
    return text + "\n" * bool(finished)


def sample(settings: Settings):
    """Print num_samples texts. Raises UserError for a missing model or a prompt it cannot read."""
    path = checkpoint.model_file(settings.out_dir)
    if not path.exists():
        out_dir = f" --out_dir={path.parent}" * (path.parent != Path(Settings.out_dir))
        command = f"python train_drama.py config/laptop.py{out_dir}"
        raise UserError(f"{path} is missing: train a model first, {command}")
    prompt = read_prompt(settings.start)
    state = checkpoint.load(path)
    model, tok = checkpoint.build_model(state, path)
    prompt, changed = as_known(prompt or first_text(tok), tok)
    names = cast_names(settings.cast or settings.order)
    cast = Cast(names, tok, settings.repeat, bool(settings.order)) if names else None
    speakers = state.get("speakers", [])  # none: nobody knows who speaks in the training text
    strangers = [name for name in dict.fromkeys(names) if speakers and name not in speakers]
    if settings.out and not Path(settings.out).absolute().parent.is_dir():
        raise UserError(f"out={settings.out!r} is in a folder that does not exist")
    if settings.out and settings.start != f"FILE:{settings.out}" and Path(settings.out).exists():
        raise UserError(f"out={settings.out!r} is there already; give another name")
    device = find_device(settings.device)
    if changed:
        print(f"prompt adapted to the model's characters: {changed}", file=sys.stderr)
    if strangers:
        print(f"the training text has no speech by {', '.join(strangers)}", file=sys.stderr)
    ready_to_sample(model, device, settings.dtype)
    form = KINDS[Path(settings.out).suffix.lower()] if settings.out else settings.format
    terminal = sys.stdout and sys.stdout.isatty() and not settings.out
    live = bool(terminal and settings.num_samples == 1 and form == "text")
    texts = []
    for first in range(0, settings.num_samples, BATCH):
        rows = range(first, min(first + BATCH, settings.num_samples))
        batch = write(settings, model, tok, prompt, cast, rows, live)
        for text in batch if form == "text" and not settings.out else ():
            print("" if live else text, end=BETWEEN, flush=True)
        texts += batch
    whole = {"text": BETWEEN.join, "fountain": fountain, "json": as_json}[form]
    if settings.out:
        write_atomically(Path(settings.out), lambda f: f.write(whole(texts).encode()))
        print(f"{settings.out}: {len(texts)} text{'s' * (len(texts) > 1)}")
    elif form != "text":
        print(whole(texts))


def write(settings: Settings, model, tok, prompt: str, cast, rows: range, live: bool) -> list[str]:
    """The texts of these numbers, each continuing the prompt; printed as they come where live."""
    director = Director(tok, prompt, len(rows), cast, settings.turns)
    length = LONGEST_SPEECH * director.turns or settings.max_new_tokens
    begin = shown = 0 if settings.start else len(prompt) - len(prompt.lstrip("\n"))
    ids = prompt_ids(tok, prompt, model).expand(len(rows), -1)
    for _ in stream(model, ids, length, settings.sampling(), director, first_row=rows.start):
        if live:
            text = director.written(0).rstrip("\n")  # which the end of a text leaves out
            print(text[shown:], end="", flush=True)
            shown = max(shown, len(text))
    if director.turns and not director.done():
        print(f"stopped after {length:,} tokens, before the last speech ended", file=sys.stderr)
    texts = [director.written(row) for row in range(len(rows))]
    if live:
        print(texts[0][shown:], end="")
    return [text[begin:] for text in texts]


def main():
    sample(configure(Settings, sys.argv[1:]))


if __name__ == "__main__":
    run_program(main)
