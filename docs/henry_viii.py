"""Who wrote which scene of Henry VIII? The texts, and what docs/henry_viii.md says of them.

    python docs/henry_viii.py shakedracor/tei engdracor/tei h8     write the texts into h8/
    python docs/henry_viii.py h8 h8/losses.txt                     the table, the picture, letter trigrams

The texts are made alike: only words that both authors use are left, in small letters without marks. One
edition is modern, the other of the seventeenth century: names, spelling and marks would tell them apart.
"""

import math
import re
import statistics
import sys
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

TEI = "{http://www.tei-c.org/ns/1.0}"
UNSPOKEN = {TEI + name for name in ("stage", "speaker", "note", "fw", "head")}
SHAKESPEARE = (  # his later plays, without those that others had a part in
    "hamlet", "twelfth-night", "troilus-and-cressida", "alls-well-that-ends-well", "measure-for-measure",
    "othello", "king-lear", "macbeth", "antony-and-cleopatra", "cymbeline", "the-tempest",
)  # fmt: skip
FLETCHER = (
    "bonduca", "rule-a-wife-and-have-a-wife", "the-chances", "the-faithful-shepherdess", "the-mad-lover",
    "the-humorous-lieutenant", "the-island-princess", "the-loyal-subject", "the-wild-goose-chase",
    "the-woman-s-prize", "women-pleased", "the-pilgrim",
)  # fmt: skip
HELD_OUT = ("coriolanus", "the-winters-tale"), ("valentinian", "a-wife-for-a-month")

# ---------------------------------------------------------------------------- words


def spoken(element) -> str:
    """The text of an element of TEI, without what nobody speaks."""
    parts = [element.text or ""]
    for child in element:
        parts.append(" " if child.tag in UNSPOKEN else spoken(child) + " " * (child.tag != TEI + "hi"))
        parts.append(child.tail or "")
    return "".join(parts)


def words(text: str) -> list[str]:
    """The words of a speech. 't and th' belong to the word beside them, however they are printed."""
    text = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if not unicodedata.combining(c))
    text = text.replace("\u017f", "s").replace("\u2019", "'").replace("-", " ")
    text = re.sub(r"'?\bt (is|was|were|will|would)\b", r"t\1", re.sub(r"'d\b", "ed", text).replace("'", ""))
    return re.findall("[a-z]+", re.sub(r"(?<=[a-z]) t\b|(?<=\b[io]) th\b|(?<=\bto) th\b", glued, text))


def glued(found) -> str:
    return found[0].strip()


def scenes(path: Path) -> dict[str, list[list[str]]]:
    """{"1.1": the speeches of that scene}, in order; what stands outside of acts by its kind."""
    found, play = {}, ElementTree.parse(path).getroot().find(f"{TEI}text")
    for act in play.iter(f"{TEI}div"):
        inner = [div for div in act.findall(f"{TEI}div") if div.get("type") == "scene"]
        for scene in inner or [act] if act.get("type") in ("act", "prologue", "epilogue") else ():
            name = f"{act.get('n')}.{scene.get('n')}" if scene is not act else act.get("type")
            found[name] = [words(spoken(sp)) for sp in scene.iter(f"{TEI}sp")]
    found = {name: speeches for name, speeches in found.items() if speeches}
    return found or {"all": [words(spoken(sp)) for sp in play.iter(f"{TEI}sp")]}


# ---------------------------------------------------------------------------- spelling

SPELLINGS = (
    "e$> $>e ie$>y y>i i>y u>v v>u ^i>j ll>l l>ll ss>s our>or oul>ol aun>an ee>e ee>ie ei>ie e>ea ea>e "
    "ck>c que$>c es$>s s$>es ou>ow ow>ou au>a oo>o o>oo ou>oo ou>u o>oa oa>o t$>ed ai>a ai>ay ay>ai "
    "ch>tch c>s s>c z>s x>ct e>i i>e a>ea em>im en>in uld>ould o>u u>o er>re re>er "
)
DOUBLED = r"([b-df-hj-np-tv-z])"
CHANGES = [(re.compile(old), new) for old, new in (change.split(">") for change in SPELLINGS.split())]
CHANGES += [(re.compile(DOUBLED + r"\1"), r"\1"), (re.compile(DOUBLED), r"\1\1")]
# what those changes would get wrong: words that the modern edition has too, or has in two parts
KNOWN = dict(ye="ye", yee="ye", ile="ill", weel="well", weell="well", youl="youll", theyl="theyll", ore="oer",
             heare="hear", doe="do", shew="show", bin="been", then="then")  # fmt: skip


def respelled(word: str) -> set[str]:
    """All words that one change of spelling makes of a word."""
    spots = ((found, new) for old, new in CHANGES for found in old.finditer(word))
    return {word[: found.start()] + found.expand(new) + word[found.end() :] for found, new in spots}


def modern(old: Counter, new: Counter) -> dict[str, str]:
    """For words of an old edition the word of a modern one.

    A word that the modern one has eight times more rarely becomes the commonest word of the modern one that
    one change of spelling makes of it, or two.
    """
    found, share = dict(KNOWN), old.total() / new.total()
    for word, n in old.items():
        if word in KNOWN or 8 * new[word] * share > n:
            continue
        silent = word.removesuffix("e")
        nearest = {silent} if new[silent] > 4 else respelled(word)
        for near in (nearest, {two for one in nearest for two in respelled(one)} if len(word) > 3 else ()):
            if best := max((w for w in near if new[w] > 1 + 8 * new[word]), key=new.__getitem__, default=""):
                found[word] = best
                break
    return found


# ---------------------------------------------------------------------------- texts


def write(shakespeare: Path, fletcher: Path, out: Path):
    """Write the texts to learn from, and those to measure, by scene: one line for each speech."""
    ours = {name: scenes(shakespeare / f"{name}.xml") for name in (*SHAKESPEARE, *HELD_OUT[0], "henry-viii")}
    theirs = {name: scenes(fletcher / f"fletcher-{name}.xml") for name in (*FLETCHER, *HELD_OUT[1])}

    def count(plays: dict, names) -> Counter:
        speeches = (speech for name in names for scene in plays[name].values() for speech in scene)
        return Counter(word for speech in speeches for word in speech)

    spelling = modern(count(theirs, theirs), count(ours, SHAKESPEARE))
    for play in theirs.values():
        for name, speeches in play.items():
            play[name] = [[spelling.get(word, word) for word in speech] for speech in speeches]
    shared = set(count(ours, SHAKESPEARE)) & set(count(theirs, FLETCHER))
    henry = ours["henry-viii"].pop("3.2")
    half = 1 + next(n for n, speech in enumerate(henry) if "appetite" in speech)  # the King leaves
    ours["henry-viii"] |= {"3.2a": henry[:half], "3.2b": henry[half:]}
    for folder, plays, learned in (("shakespeare", ours, SHAKESPEARE), ("fletcher", theirs, FLETCHER)):
        for name, play in plays.items():
            for scene, speeches in play.items():
                lines = [" ".join(word for word in speech if word in shared) for speech in speeches]
                place = out / (folder if name in learned else name) / f"{name} {scene}.txt"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text("\n".join(filter(None, lines)) + "\n", encoding="utf-8")
        kept = [word in shared for word in count(plays, plays).elements()]
        print(f"{folder}: {len(kept):,} words, {1 - sum(kept) / len(kept):.1%} of them left out")


# ---------------------------------------------------------------------------- the table

SHAKESPEARE_S = ("1.1", "1.2", "2.3", "2.4", "3.2a", "5.1")  # Spedding, Hickson (1850); the others Fletcher's


class Trigrams:
    """Letters predicted from the two before, with Dirichlet smoothing by the shorter contexts."""

    def __init__(self, text: str):
        self.counts = [Counter(text[i : i + n] for i in range(len(text))) for n in range(4)]
        self.counts[0][""] = len(text)

    def probability(self, gram: str, prior: float = 5.0) -> float:
        if not gram:
            return 1 / 28
        before = self.counts[len(gram) - 1][gram[:-1]]
        return (self.counts[len(gram)][gram] + prior * self.probability(gram[1:])) / (before + prior)

    def bits(self, text: str) -> float:
        """Bits per character."""
        grams = Counter(text[max(0, i - 2) : i + 1] for i in range(len(text)))
        return -sum(n * math.log2(self.probability(gram)) for gram, n in grams.items()) / len(text)


def read(folder: Path) -> str:
    return "".join(path.read_text("utf-8") for path in sorted(folder.iterdir()))


def differences(out: Path, losses: str) -> dict[str, dict[str, tuple[float, float]]]:
    """{play: {scene: bits per character more for Shakespeare's (model, trigrams) than for Fletcher's}}."""
    both, found = [Trigrams(read(out / author)) for author in ("shakespeare", "fletcher")], {}
    for play, scene, difference in re.findall(r"^([a-z-]+) (\S+) .*?([+-][\d.]+)$", losses, re.MULTILINE):
        text = (out / play / f"{play} {scene}.txt").read_text("utf-8")
        by_trigrams = both[0].bits(text) - both[1].bits(text)
        found.setdefault(play, {})[scene] = -float(difference), by_trigrams
    return found


def table(out: Path, losses: Path):
    """Print each scene's differences, whom they speak for, and how many agree with the division."""
    found = differences(out, losses.read_text("utf-8"))
    for column, name in enumerate(("models", "trigrams")):
        known = [[d[column] for play in plays for d in found[play].values()] for plays in HELD_OUT]
        henry = {scene: d[column] for scene, d in found["henry-viii"].items()}
        means = list(map(statistics.mean, known))
        middle, split = statistics.mean(means), two_groups(list(henry.values()))
        right = [(d > middle) == fletcher for fletcher, side in enumerate(known) for d in side]
        print(f"{name}: scenes held out: Shakespeare's {means[0]:+.4f}, Fletcher's {means[1]:+.4f}, middle")
        print(f"{middle:+.4f}, {sum(right)} of {len(right)} on their author's side of it; split {split:+.4f}")
        for scene, d in henry.items():
            print(f"  {scene:<9}{d:+8.4f}  {'Shakespeare' if scene in SHAKESPEARE_S else 'Fletcher'}")
        for where, limit in (("middle", middle), ("split", split)):
            scenes = [scene for scene in henry if scene[0].isdigit()]
            agree = sum((henry[scene] < limit) == (scene in SHAKESPEARE_S) for scene in scenes)
            print(f"  {agree} of {len(scenes)} scenes agree with the scholars at the {where}")
        if column == 0:
            picture(henry, known, split)


def two_groups(values: list[float]) -> float:
    """Where to split values into two groups of the least variance."""
    values = sorted(values)

    def spread(n: int) -> float:
        return sum(statistics.pvariance(part) * len(part) for part in (values[:n], values[n:]))

    n = min(range(1, len(values)), key=spread)
    return (values[n - 1] + values[n]) / 2


def picture(henry: dict[str, float], known: list[list[float]], split: float):
    """docs/henry_viii.png: the scenes as bars, in the colours of the scholars' division."""
    from matplotlib import pyplot

    colours = {"Shakespeare": "#2a6f97", "Fletcher": "#c8553d"}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), width_ratios=[3, 1], sharey=True)
    by = [colours["Shakespeare" if scene in SHAKESPEARE_S else "Fletcher"] for scene in henry]
    left.bar(list(henry), henry.values(), color=by)
    left.axhline(split, color="#888888", linewidth=0.8, linestyle="--")
    left.set_title("Henry VIII, in the colours of the scholars' division", fontsize=10)
    left.tick_params(axis="x", rotation=60)
    left.set_ylabel("bits per character for Fletcher")
    for n, (name, scenes) in enumerate(zip(colours, known, strict=True)):
        right.plot([n] * len(scenes), scenes, "o", color=colours[name], alpha=0.5)
    right.set_xticks([0, 1], colours)
    right.set_xlim(-0.5, 1.5)
    right.set_title("scenes held out", fontsize=10)
    for axes in (left, right):
        axes.axhline(0, color="#888888", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=150)


if __name__ == "__main__":
    paths = list(map(Path, sys.argv[1:]))
    (write if len(paths) == 3 else table)(*paths)
