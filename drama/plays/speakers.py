"""Who speaks in a play with structure: one name for each person.

The name of a person, one `who` within a play, is the label that most of the speeches have (ANNA). It is the
cast list's name where there is no label, where that label abbreviates it (Jus. of Justinius), and where most
of a play's labels are abbreviations. A speech of several, or of a group, keeps its own label (ALL).
"""

import re
import unicodedata
from collections import Counter, defaultdict
from functools import lru_cache

from drama.speech import LONGEST_NAME


def named(said: list, cast: dict[str, str], groups: set) -> list[tuple[str, str]]:
    """(name, text) of the speeches (who, label, text) of one play; the name is "" where nothing tells it."""
    cast = {key: name for key, name in cast.items() if name and name != key and "_" not in name}
    votes, labels = defaultdict(Counter), defaultdict(set)
    for who, label, _ in said:
        if len(who) == 1 and who[0] not in groups and label:
            votes[who[0]][label] += 1
            labels[label].add(who[0])
    names = {who: counts.most_common(1)[0][0] for who, counts in votes.items()}
    short = [who for who, label in names.items() if who in cast and abbreviates(label, cast[who])]
    if 2 * sum(votes[who].total() for who in short) > sum(votes[who].total() for who in names if who in cast):
        short = [who for who in names if who in cast]
    names = cast | names | {who: cast[who] for who in short}

    def name(who: list[str], label: str) -> str:
        if not who and len(labels[label]) == 1:
            who = list(labels[label])
        known = [names[key] for key in who if key in names]
        if len(who) == 1 and who[0] not in groups:
            return known[0] if known else label
        if label and not (known and all(abbreviates(label, cast.get(key, "")) for key in who)):
            return label
        return shortened(", ".join(known))

    return [(name(who, label), text) for who, label, text in said]


@lru_cache(4096)
def cleaned(label: str) -> str:
    """A speaker's name without directions, brackets and the punctuation around it; "" where none is left."""
    bare = re.sub(r"\([^()]*\)|\[[^\[\]]*\]", " ", label)
    label = bare if re.search(r"\w", bare) else re.sub(r"[()\[\]]", " ", label)
    label = " ".join(label.split()).lstrip(" .,;:：!*_–—|/=-")
    for cut in re.finditer(r"[:：]|[,;] (?=(\w))", label):  # ANNA: aside; ANNA, aside
        if not cut[1] or cut[1].islower():
            label = label[: cut.start()]
            break
    return shortened(label.rstrip(" .,;:：!*_–—|/=-")) if re.search(r"\w", label) else ""


def shortened(name: str) -> str:
    """A name of no more characters than the one form's have, cut between two words where it can be."""
    if len(name) <= LONGEST_NAME:
        return name
    return (name[:LONGEST_NAME].rpartition(" ")[0] or name[:LONGEST_NAME]).rstrip(" ,;")


def tokens(name: str) -> list[tuple[str, bool]]:
    """The words of a name, and whether a point may follow. Accents, case, and v for u are no difference."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", name.casefold()) if not unicodedata.combining(c))
    plain = plain.replace("v", "u").replace("j", "i")
    return [(m[1], m[2] is not None) for m in re.finditer(r"(\w+)(\.|$)?", plain)]


def abbreviates(label: str, name: str) -> bool:
    """Whether a word of the label is the beginning of one in the name, a contraction of it, or an initial."""
    whole = [word for word, _ in tokens(name)]
    for word, point in tokens(label):
        if word not in whole and not word.isdigit():
            if point and len(word) == 1:
                return True
            if any(other.startswith(word) or (point and contracts(word, other)) for other in whole):
                return True
    return False


def contracts(word: str, other: str) -> bool:
    """Whether other begins as word does and has its letters in their order: Mademoiselle, of Mlle."""
    letters = iter(other)
    return other.startswith(word[0]) and all(letter in letters for letter in word)
