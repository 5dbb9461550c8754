import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configurator import UserError
from drama.tokenizer import BPETokenizer, CharTokenizer, UnknownCharacters, from_dict

texts = st.text(min_size=1)
BYTES = [bytes([b]) for b in range(256)]
bpe = BPETokenizer([*BYTES, b" t", b"he", b" the", "\u00e9".encode(), b"in"], ("<|endoftext|>",))


@given(st.text())
def test_byte_pairs_spell_any_text(text):
    ids = bpe.encode(text)
    assert ids.dtype == np.uint16 and len(ids) <= len(text.encode()) and (ids < 261).all()
    assert bpe.decode(ids) == text and bpe.decode_bytes(ids) == text.encode()


def test_byte_pairs_are_merged_in_their_order_and_special_tokens_are_no_text():
    assert bpe.encode(" the \u00e9").tolist() == [258, 32, 259]
    assert 261 not in bpe.encode("<|endoftext|>") and bpe.vocab_size == 262


def test_a_character_that_is_cut_in_two_is_shown_as_such():
    assert bpe.decode([97, 0xE4, 0xBD]) == "a\ufffd"


def test_byte_pairs_survive_json():
    again = from_dict(json.loads(json.dumps(bpe.to_dict())))
    assert (again.tokens, again.special) == (bpe.tokens, bpe.special)


def test_a_learned_vocabulary_has_the_commonest_pairs_and_is_always_the_same():
    pytest.importorskip("rustbpe")
    text = "the cat and the hat \u6211\u7231\u4f60 " * 50
    learned = [BPETokenizer.learn(iter([text, text]), 270) for _ in range(2)]
    assert learned[0].tokens == learned[1].tokens and learned[0].vocab_size == 270
    assert b" the" in learned[0].tokens and learned[0].decode(learned[0].encode(text)) == text


@given(texts)
def test_decoding_undoes_encoding_for_any_text(text):
    tok = CharTokenizer("".join(sorted(set(text))))
    ids = tok.encode(text)
    assert ids.dtype == np.uint16 and len(ids) == len(text) and ids.max() < tok.vocab_size
    assert tok.decode(ids) == text == tok.decode(ids.tolist())


@pytest.mark.parametrize("others", [0, 253, 254, 255, 300])
def test_ascii_text_is_encoded_alike_wherever_its_characters_stand(others):
    chars = "".join(chr(0x4E00 + n) for n in range(others)) + "ab"
    tok = CharTokenizer(chars)
    assert tok.encode("abba").tolist() == [others, others + 1, others + 1, others]
    with pytest.raises(UnknownCharacters):
        tok.encode("abc")


@given(texts)
def test_a_tokenizer_survives_json(text):
    tok = CharTokenizer("".join(sorted(set(text))))
    again = from_dict(json.loads(json.dumps(tok.to_dict())))
    assert again.chars == tok.chars and (again.encode(text) == tok.encode(text)).all()


@given(texts, texts)
def test_every_unknown_character_is_named_once(known, text):
    tok = CharTokenizer("".join(sorted(set(known))))
    unknown = sorted(set(text) - set(known))
    if not unknown:
        tok.encode(text)
        return
    with pytest.raises(UnknownCharacters) as refused:
        tok.encode(text)
    assert refused.value.characters == unknown
    assert all(repr(c) in str(refused.value) for c in unknown[:8])


@pytest.mark.parametrize("wrong", [
    {}, [], None, {"kind": "char"}, {"kind": "bpe9", "chars": "ab"}, {"kind": "char", "chars": ""},
    {"kind": "char", "chars": "aa"}, {"kind": "char", "chars": 5}, {"kind": "bpe", "tokens": []},
    {"kind": "bpe", "tokens": "YQ==", "special": []}, {"kind": "bpe", "tokens": "\u4f60", "special": []},
    {**bpe.to_dict(), "tokens": bpe.to_dict()["tokens"] + " YQ=="},
])  # fmt: skip
def test_what_is_not_a_tokenizer_is_refused(wrong):
    with pytest.raises(ValueError):
        from_dict(wrong)


@pytest.mark.parametrize("space", [" ", "\n", "\t \n"])
def test_a_run_of_white_space_that_their_regular_expressions_cannot_read_is_refused_in_a_line(capfd, space):
    pytest.importorskip("rustbpe")
    long = "So." + space * 1_000_000 + "So."
    for use in (lambda: BPETokenizer.learn([long], 300), lambda: bpe.encode(long)):
        with pytest.raises(UserError, match="white space"):
            use()
    assert capfd.readouterr() == ("", "")  # Rust would say more
    fine = "So." + space * 20_000 + "So."
    assert bpe.decode(bpe.encode(fine)) == fine
