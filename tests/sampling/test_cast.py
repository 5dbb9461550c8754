import itertools
import math

import pytest
import torch
from helpers import play

from configurator import UserError
from drama.sampling.cast import Cast, Director, cast_names
from drama.sampling.generation import generate
from drama.speech import colon, speeches
from drama.tokenizer import BPETokenizer, CharTokenizer
from model import GPT, GPTConfig

TEXT = "LUCIO:\nGood day.\nSpeak.\n\nFirst Lord:\nNo:\nnever.\n\n"
CHARS = CharTokenizer("".join(sorted(set(play() + TEXT + "罗密欧：Z"))))
PAIRS = BPETokenizer(
    [*(bytes([b]) for b in range(256)), b"IS", b"LU", b"LUC", b"\n\n", b":\n", b"LUCIOUS", b"AB"]
)


def random_model(tok, seed=0):
    torch.manual_seed(seed)
    shape = dict(block_size=64, vocab_size=tok.vocab_size, n_layer=1, n_head=2, n_embd=16, bias=True)
    model = GPT(GPTConfig(**shape))
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    often = model.ln_f.bias.data.normal_()  # a newline every ten tokens: there will be many speeches
    model.ln_f.weight.data *= 0.1
    boost = math.log(tok.vocab_size / 9) / often.square().sum()
    model.wte.weight.data[tok.encode("\n").item()] += boost * often
    return model.eval()


def write(tok, prompt, names, turns=0, n=400, rows=3, seed=0, **how):
    director = Director(tok, prompt, rows, Cast(names, tok, **how) if names else None, turns)
    idx = torch.from_numpy(tok.encode(prompt).astype("int64")).expand(rows, -1)
    generate(random_model(tok, seed), idx, n, director=director)
    return [director.written(row) for row in range(rows)]


# ---------------------------------------------------------------------------- a cast and its turns


@pytest.mark.parametrize("tok", [CHARS, PAIRS], ids=["characters", "pairs"])
@pytest.mark.parametrize("names", [["LUCIO"], ["LUCIO", "ISABELLA", "罗密欧"], ["LUCIO", "LUCIO II"]])
def test_only_the_cast_speaks(tok, names):
    heard = set()
    for seed in range(4):
        for text in write(tok, "\n", names, seed=seed):
            found = speeches(text)[:-1]  # the last one may have been cut within its name
            assert {name for name, _ in found} <= set(names), text
            heard |= {name for name, _ in found}
    assert heard == set(names) or len(names) == 3  # everyone gets to speak


@pytest.mark.parametrize("tok", [CHARS, PAIRS], ids=["characters", "pairs"])
@pytest.mark.parametrize("prompt", ["\n", "LUCIO:", TEXT, "First Lord:\nNo.\n\n\n"])
def test_nobody_answers_himself_unless_he_may(tok, prompt):
    heard = {False: 0, True: 0}
    for repeat in heard:
        for text in write(tok, prompt, ["LUCIO", "ISABELLA"], repeat=repeat):
            names = [name for name, _ in speeches(text)][:-1]
            heard[repeat] += sum(a == b for a, b in itertools.pairwise(names))
    assert heard[False] == 0 and heard[True] > 0


@pytest.mark.parametrize("tok", [CHARS, PAIRS], ids=["characters", "pairs"])
@pytest.mark.parametrize("prompt, before", [
    ("\n", []), (TEXT, ["LUCIO", "First Lord"]), ("First Lord:\nMy", ["First Lord"]),
    ("LUCIO:\nSpeak.\n", ["LUCIO"]),
])  # fmt: skip
def test_an_order_is_who_speaks_next(tok, prompt, before):
    order = ["ISABELLA", "LUCIO", "LUCIO", "ISABELLA"]
    for text in write(tok, prompt, order, in_order=True, n=5000):
        assert [name for name, _ in speeches(text)] == before + order


@pytest.mark.parametrize("tok", [CHARS, PAIRS], ids=["characters", "pairs"])
def test_a_speech_under_way_is_ended_before_the_cast_takes_over(tok):
    for text in write(tok, "First Lord:\nMy", ["LUCIO"]):
        names = [name for name, _ in speeches(text)]
        assert names[0] == "First Lord" and set(names[1:-1]) <= {"LUCIO"}


@pytest.mark.parametrize("prompt, whole", [
    ("\n", 3), ("LUCIO:", 3), (TEXT, 5), (TEXT + "LUCIO:\nHe", 5), (TEXT[:-1], 4),
])  # fmt: skip
def test_turns_are_whole_speeches(prompt, whole):
    for text in write(CHARS, prompt, ["LUCIO", "ISABELLA"], turns=3, n=5000):
        assert len(speeches(text)) == whole and text.startswith(prompt)
        assert text.endswith("\n") and not text.endswith("\n\n\n")


def test_the_model_s_own_probabilities_choose_among_the_names():
    cast = Cast(["LUCIO", "ISABELLA"], PAIRS)
    assert {PAIRS.tokens[n] for n in cast.allowed(b"x\n\n")} == {b"L", b"LU", b"LUC", b"I", b"IS"}
    assert {PAIRS.tokens[n] for n in cast.allowed(b"x\n\nLU")} == {b"C"}
    assert {PAIRS.tokens[n] for n in cast.allowed(b"x\n\nLUCIO")} == {b":", b":\n"}
    assert cast.allowed(b"x\n\nLUCIO:\n") is None and cast.allowed(b"x\n\nLUCIO:\nI go") is None
    logits = torch.randn(1, PAIRS.vocab_size)
    director = Director(PAIRS, "x\n\n", 1, cast)
    kept = director.confine(logits.clone())
    inside = kept.isfinite()
    assert inside.sum() == 5 and torch.equal(kept[inside], logits[inside])


@pytest.mark.parametrize("name, text, written", [
    ("罗密欧", "罗密欧：", "："), ("罗密欧", "罗密欧:", ":"), ("HÉLÈNE", "HÉLÈNE:：", ":"),
    ("LUCIO", "LUCIO:：", ":"),
])  # fmt: skip
def test_the_colon_is_wide_where_the_name_s_letters_are_and_the_text_has_it(name, text, written):
    assert colon(name, CharTokenizer("".join(sorted(set(text))))) == written


def test_with_byte_pairs_too_the_colon_is_the_text_s():
    pytest.importorskip("rustbpe")
    for used, other in (":：", "：:"):
        tok = BPETokenizer.learn([f"罗密欧{used}\n朱丽叶，我爱你！\n\n" * 100], 300)
        assert colon("罗密欧", tok) == used != other


def test_a_speech_of_which_only_a_part_of_the_name_is_there_is_left_out():
    cast = Cast(["LUCIO", "ISABELLA"], CHARS)
    for tail in ("", "L", "LUCI", "LUCIO:", "LUCIO:\n"):
        assert cast.whole(bytearray(f"LUCIO:\nWell.\n\n{tail}".encode())) == len("LUCIO:\nWell.")
    for text in ("LUCIO:\nWell.\n\nLUCIO:\nW", "LUCIO:\nWell", "LUC", "LUCIO:\nWell.\n\nThe"):
        assert cast.whole(bytearray(text.encode())) == len(text)


def test_a_name_that_cannot_be_spelled_is_refused():
    with pytest.raises(UserError, match=r"cast: .*'é'"):
        Cast(["René"], CHARS)


@pytest.mark.parametrize("cast, names", [
    ("LUCIO, ISABELLA", ["LUCIO", "ISABELLA"]), ("秀英，林黛、小翠", ["秀英", "林黛", "小翠"]), (" ", []),
])  # fmt: skip
def test_a_list_of_names_is_read_as_people_write_it(cast, names):
    assert cast_names(cast) == names
    with pytest.raises(UserError, match="names nobody"):
        cast_names(" ,，")


@pytest.mark.parametrize("names, words", [
    (["A" * 61], "a name of 61 characters"), (["A" * 10_000_000], "10,000,000"),
    ([f"A{n}" for n in range(201)], "201 names"),
], ids=["long", "longer", "many"])  # fmt: skip
def test_a_cast_that_would_take_all_memory_is_refused(names, words):
    with pytest.raises(UserError, match=words):
        Cast(names, CHARS)
