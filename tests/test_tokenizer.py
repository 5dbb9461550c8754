import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenizer import CharTokenizer, UnknownCharacters, from_dict

texts = st.text(min_size=1)


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


@pytest.mark.parametrize("wrong", [{}, [], None, {"kind": "char"}, {"kind": "bpe9", "chars": "ab"},
                                   {"kind": "char", "chars": ""}, {"kind": "char", "chars": "aa"},
                                   {"kind": "char", "chars": 5}])  # fmt: skip
def test_what_is_not_a_tokenizer_is_refused(wrong):
    with pytest.raises(ValueError):
        from_dict(wrong)
