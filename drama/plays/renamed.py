"""The same plays with other names for their people.

A model that reads one play again and again learns its names by heart, and is at a loss where others speak.
Where names change every few speeches, it learns what names look like, and relies less on those that it knows.
"""

import re
from collections import Counter, defaultdict
from random import Random

from configurator import UserError
from drama.plays.files import Text
from drama.tokenizer import whole_words

WORD = re.compile(r"[^\W\d_]{3,}")
STRETCH = 1500  # characters for which a name lasts
SHARE = 0.5  # of the names that are others then
TRIES = 100  # to find a name that no one has


def with_other_names(texts: list[Text], times: int, chars: str):
    """Yield texts so many times, each time with other names for their people, in pieces made of chars.

    Raises UserError where nobody has a name that can be another.
    """
    if not times:
        return
    people = own_names(texts)
    if not any(people):
        raise UserError("renamed finds no names: it knows them by their capitals, in lines like ROMEO:")
    count = sum(map(len, people))
    print(f"the training text again, {times} times, with others for {SHARE:.0%} of its {count:,} names")
    for n in range(times):
        for i, (text, names) in enumerate(zip(texts, people, strict=True)):
            yield "\n\n"
            yield from renamed(text, names, Random(f"{n} {i}"), chars)


def own_names(texts: list[Text]) -> list[set[str]]:
    """For each text the words of its speakers' names that are nothing else: romeo, but not citizen or king.

    They are never written small, and of ten texts and more they are in a tenth at most: in German, Mann and
    Mutter have capitals too. There are none in a script without capitals.
    """
    small, plays = set(), Counter()
    for text in texts:
        words = {word for piece in whole_words(text.pieces()) for word in WORD.findall(piece)}
        small.update(filter(str.islower, words))
        plays.update({word.lower() for word in words})
    few = max(1, len(texts) // 10)
    speaking = [{word.lower() for name in text.speakers for word in WORD.findall(name)} for text in texts]
    return [{word for word in words - small if word.islower() and plays[word] <= few} for words in speaking]


def renamed(text: Text, names: set[str], rng: Random, chars: str):
    """Yield text in pieces, in each of which some of names are others, made of chars."""
    following = defaultdict(list)  # one or two letters: those that come next in a name, or "" at its end
    for name in (f"^{name}" for name in sorted(names)):
        for end in range(1, len(name) + 1):
            for letters in (1, 2):
                following[name[max(0, end - letters) : end]].append(name[end : end + 1])
    allowed = set(chars)
    for piece in stretches(text):
        others, taken = {}, set(names)
        for name in dict.fromkeys(word.lower() for word in WORD.findall(piece)):
            if name in names and rng.random() < SHARE and (other := invented(following, rng, taken, allowed)):
                others[name] = other
                taken.add(other)
        yield WORD.sub(lambda word, others=others: as_written(word[0], others), piece)


def stretches(text: Text):
    """Yield text in pieces of STRETCH characters or more, each to the end of a speech."""
    held = ""
    for piece in text.pieces():
        held, start = held + piece, 0
        while (end := held.find("\n\n", start + STRETCH)) >= 0:
            yield held[start:end]
            start = end
        held = held[start:]
    yield held


def invented(following: dict, rng: Random, taken: set, allowed: set) -> str:
    """A word whose letters follow one or two others as they do in a name; "" where no try finds one."""
    for _ in range(TRIES):
        word = "^"
        # always of two, a few names would give no others
        while letter := rng.choice(following[word[-rng.choice((1, 2, 2, 2)) :]]):
            word += letter
        word = word[1:]
        spelled = set(word.upper() + word.capitalize()) <= allowed
        if spelled and 3 <= len(word) <= 12 and word not in taken:
            return word
    return ""


def as_written(word: str, others: dict[str, str]) -> str:
    """The name that a word becomes, in capitals or with one, as the word is; or the word itself."""
    other = others.get(word.lower())
    return word if other is None else other.upper() if word.isupper() else other.capitalize()
