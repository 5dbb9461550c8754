"""A trained model as the start of another run: shape, vocabulary, schedule, and what is refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers import SHORT, SMALL, equal, flags, losses, play, weights

import prepare
from configurator import UserError
from drama import checkpoint
from drama.tokenizer import BPETokenizer, CharTokenizer
from drama.training.pretrained import grown, joined_vocabulary, load_start, own_tokenizer, start_from
from model import GPT
from tools.export.huggingface import fast_tokenizer
from train_drama import Settings

OTHER = "ZOË:\nQuiz? Jaguar!\n\nYX:\nI come.\n\n" * 200  # letters that the small play lacks
SHAPES = [dict(arch="gpt2"), dict(arch="modern"), dict(arch="modern", match=2, n_ensemble=2), dict(bias=True)]


@pytest.fixture
def two(train, corpus):
    """two(**settings) trains a model in first/; data/other is another text."""
    (corpus / "other.txt").write_text(OTHER, encoding="utf-8")
    prepare.prepare(prepare.Settings(input="other.txt", dataset="other"))

    def run(**settings):
        return train(out_dir="first", **settings)

    return run


@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_goes_on_with_a_text_that_has_new_letters(two, call, corpus, shape):
    two(**shape)
    how = flags(out_dir="second", init_from="first", dataset="other", batch_size=8, **SHORT)
    status, out, err = call("train_drama.py", *how)
    assert (status, err) == (0, "") and re.search(r"starting from first \(arch .*\), with \d+ new", out)
    first, second = checkpoint.load("first/ckpt.pt"), checkpoint.load("second/ckpt.pt")
    added = second["tokenizer"]["chars"].removeprefix(first["tokenizer"]["chars"])
    assert set(added) == set(OTHER) - set(play())
    own = ("arch", "match", "n_layer", "n_head", "n_embd", "n_ensemble", "bias", "block_size")
    assert all(second["config"][name] == first["config"][name] == second["settings"][name] for name in own)
    for start in ("ZOË:", "LUCIO:"):  # the new, and what only the first text had
        command = ("--out_dir=second", f"--start={start}", "--num_samples=1", "--max_new_tokens=9")
        assert call("sample.py", *command)[0] == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_a_folder_in_hugging_face_s_format_is_the_same_start(two, call, corpus, shape):
    two(**shape)
    assert call("export.py", "first/ckpt.pt")[0] == 0
    for source, out_dir in (("first", "a"), ("hf", "b")):
        how = flags(init_from=source, out_dir=out_dir, dataset="other", dtype="float32", **SHORT)
        status, out, err = call("train_drama.py", *how, "--max_iters=1", "--block_size=16")
        assert (status, err) == (0, "") and "new characters" in out
    before = [checkpoint.load(f"{out_dir}/ckpt.pt") for out_dir in ("a", "b")]
    assert before[0]["tokenizer"] == before[1]["tokenizer"]
    assert before[0]["val_loss"] == pytest.approx(before[1]["val_loss"], rel=1e-4)
    status, out, _ = call("train_drama.py", *how, "--block_size=16")  # and that run goes on
    assert status == 0 and "continuing at iteration" in out


@pytest.mark.parametrize("arch", ["gpt2", "modern"])
def test_a_damaged_folder_in_hugging_face_s_format_is_refused_with_its_reason(two, call, corpus, arch):
    two(arch=arch)
    assert call("export.py", "first/ckpt.pt")[0] == 0
    tok = CharTokenizer(checkpoint.load("first/ckpt.pt")["tokenizer"]["chars"])
    assert load_start("hf/model.safetensors", tok)["config"]["arch"] == arch  # its folder is meant
    config, weights = (Path("hf", name).read_bytes() for name in ("config.json", "model.safetensors"))
    earlier = {name: value for name, value in json.loads(config).items() if name != "match"}
    Path("hf/config.json").write_text(json.dumps(earlier))  # of a version that had no such setting
    assert load_start("hf", tok)["config"]["match"] == 0
    for changes, words in (
        (dict(n_layer=1), "another number of layers"), (dict(n_layer=10**9), "1,000 blocks"),
        (dict(model_type="llama"), "another kind"), (dict(n_head=3), "n_head=3"), (dict(n_embd=64), "size"),
    ):  # fmt: skip
        Path("hf/config.json").write_text(json.dumps({**json.loads(config), **changes}))
        status, _, err = call("train_drama.py", "--init_from=hf", *flags(**SHORT))
        assert status == 2 and words in err and err.count("\n") == 1
    Path("hf/config.json").write_bytes(config)
    Path("hf/model.safetensors").write_bytes(weights[:9000])
    status, _, err = call("train_drama.py", "--init_from=hf", *flags(**SHORT))
    assert status == 2 and "SafetensorError" in err and err.count("\n") == 1
    Path("hf/tokenizer.json").unlink()
    Path("hf/model.safetensors").write_bytes(weights)
    status, _, err = call("train_drama.py", "--init_from=hf", *flags(**SHORT), "--dataset=other")
    assert status == 2 and "tokenizer.json is missing" in err and err.count("\n") == 1


def test_a_tokenizer_in_hugging_face_s_format_is_read_back_or_is_another_s(corpus):
    pytest.importorskip("rustbpe")
    for tok in (CharTokenizer("\n :ab罗"), BPETokenizer.learn(iter([play()]), 300)):
        fast_tokenizer(tok).save("tokenizer.json")
        assert own_tokenizer(Path()).to_dict() == tok.to_dict()
    theirs = json.loads(Path("tokenizer.json").read_text())
    harms = [{"model": {}}, {"added_tokens": [{"content": "a"}]}, {"added_tokens": None}]
    harms += [
        {"model": {**theirs["model"], "vocab": {"ab": 0}}},
        {"model": {"type": "WordLevel", "vocab": {"ab": 0}}},
    ]
    for harm in harms:
        Path("tokenizer.json").write_text(json.dumps({**theirs, **harm}))
        assert own_tokenizer(Path()) is None
    Path("tokenizer.json").unlink()
    assert own_tokenizer(Path()) is None


@pytest.mark.parametrize("shape", SHAPES)
def test_known_text_has_the_same_probabilities_before_the_first_step(two, shape):
    two(**shape)
    state = checkpoint.load("first/ckpt.pt")
    old, tok = checkpoint.build_model(state, "first/ckpt.pt")
    settings = Settings(**{**SMALL, "block_size": 16})
    new, joined = start_from(checkpoint.load("first/ckpt.pt"), "x", settings, CharTokenizer("é" + tok.chars))
    assert joined.chars == tok.chars + "é"
    ids = torch.from_numpy(tok.encode("LUCIO:\nI come.").astype("int64"))[None]
    with torch.no_grad():
        a, b = old.eval()(ids)[0], new.eval()(ids)[0]
    torch.testing.assert_close(a, b[..., :-1])
    assert new.config.block_size == 16 and new.config.dropout == settings.dropout
    longer, _ = start_from(state, "x", Settings(**{**SMALL, "block_size": 99}), tok)
    assert longer.config.block_size == 32  # it has learned no more


def test_new_rows_are_the_mean_of_the_others_and_no_token_keeps_its_row():
    table = torch.tensor([[1.0, 2.0], [3.0, 6.0], [9.0, 9.0]])
    assert grown(table, 2, 2).tolist() == [[1, 2], [3, 6], [2, 4], [2, 4], [9, 9]]
    assert grown(table, 0, 3).equal(table)


def test_a_run_that_began_so_is_continued_bit_for_bit_without_the_first_model(two, call, corpus):
    two(arch="modern", optimizer="muon")
    how = flags(init_from="first", dataset="other", batch_size=8, dtype="float32", **SHORT)
    assert call("train_drama.py", *how, "--out_dir=whole")[0] == 0
    assert call("train_drama.py", *how, "--out_dir=parts", "--max_iters=7")[0] == 0
    for same in ("first/", "./first", "first/ckpt.pt"):
        assert call("train_drama.py", *how, "--out_dir=parts", f"--init_from={same}", "--max_iters=9")[0] == 0
    shutil.rmtree("first")
    anew = [word for word in how if "init_from" not in word]
    assert call("train_drama.py", *anew, "--out_dir=parts", "--max_iters=12")[0] == 0
    assert call("train_drama.py", *how, "--out_dir=parts")[0] == 0
    status, out, _ = call("train_drama.py", *how, "--out_dir=parts")
    assert status == 0 and "give a larger --max_iters to train it further, or another --out_dir" in out
    status, _, err = call("train_drama.py", *how, "--out_dir=new")
    assert status == 2 and "init_from='first' is none of" in err and not (corpus / "new").exists()
    assert equal(weights("whole"), weights("parts")) and losses("whole")[-1] == losses("parts")[-1]


def test_a_finished_run_goes_on_with_a_new_schedule(two, call):
    two()
    how = flags(init_from="first/ckpt.pt", out_dir="longer", batch_size=8, max_iters=40, lr_decay_iters=40)
    status, out, _ = call("train_drama.py", *how, "--eval_interval=10", "--log_interval=10")
    assert status == 0 and "new characters" not in out
    start = [float(row[3]) for row in losses("longer") if row[3]]
    assert start[0] == pytest.approx(min(float(row[3]) for row in losses("first") if row[3]), rel=1e-3)
    assert min(start) < start[0]


def test_the_model_it_starts_from_counts_where_training_makes_it_worse(two, call):
    two()
    best = checkpoint.load("first/ckpt.pt")["val_loss"]
    how = flags(init_from="first", out_dir="worse", batch_size=8, learning_rate=3.0, min_lr=3.0, **{
        **SHORT, "max_iters": 3, "eval_interval": 1})  # fmt: skip
    assert call("train_drama.py", *how)[0] == 0
    kept = checkpoint.load("worse/ckpt.pt")
    assert kept["iteration"] == 0 and kept["val_loss"] == pytest.approx(best, rel=1e-3)


def test_byte_pairs_keep_their_vocabulary_and_characters_cannot_become_pairs(two, call, corpus):
    pairs, chars = BPETokenizer([bytes([b]) for b in range(256)]), CharTokenizer("ab")
    assert joined_vocabulary(pairs, chars, "m") is pairs
    assert joined_vocabulary(chars, CharTokenizer("cba"), "m").chars == "abc"
    with pytest.raises(UserError, match=r"^m reads characters.*--tokenizer=char$"):
        joined_vocabulary(chars, pairs, "m")
    pytest.importorskip("rustbpe")
    prepare.prepare(prepare.Settings(input="play.txt", dataset="bpe", tokenizer="bpe", vocab_size=300))
    two(dataset="bpe")
    status, _, err = call("train_drama.py", *flags(init_from="first", dataset="other", out_dir="b", **SHORT))
    assert (status, err) == (0, "")
    assert checkpoint.load("b/ckpt.pt")["tokenizer"] == checkpoint.load("first/ckpt.pt")["tokenizer"]


def test_a_text_that_has_too_few_pieces_of_words_for_a_window_is_refused(train, call, corpus):
    pytest.importorskip("rustbpe")
    prepare.prepare(prepare.Settings(input="play.txt", dataset="bpe", tokenizer="bpe", vocab_size=600))
    train(out_dir="first", dataset="bpe", block_size=256)
    (corpus / "short.txt").write_text((play() * 2)[:2600], encoding="utf-8")
    prepare.prepare(prepare.Settings(input="short.txt", dataset="short"))
    how = flags(init_from="first", dataset="short", out_dir="b", batch_size=2, **SHORT)
    status, _, err = call("train_drama.py", *how)
    assert status == 2 and "the val split has" in err and "block_size=256 needs 257" in err


def test_what_is_no_model_is_refused_in_one_line(two, call, corpus):
    two()
    (corpus / "empty").mkdir()
    (corpus / "first" / "broken.pt").write_bytes(b"PK nothing")
    refused = {"nowhere": "nor a folder or a checkpoint", "first/broken.pt": "damaged", "": "none of"}
    refused |= {"empty": "holds no GPT-2", "/dev/null": "none of"}
    for start, words in refused.items():
        status, _, err = call("train_drama.py", f"--init_from={start}", "--out_dir=new")
        assert status == 2 and words in err and err.count("\n") == 1
        assert not (corpus / "new" / "last.pt").exists()


def test_a_run_with_other_settings_names_the_way_to_start_from_its_model(two, call):
    two()
    status, _, err = call("train_drama.py", *flags(out_dir="first", dataset="other", **SMALL))
    assert status == 2 and "another --out_dir (with --init_from=first to start from its model)" in err


@pytest.mark.parametrize("name", ["auto", "resume", "scratch"])
def test_a_folder_or_file_with_the_name_of_a_way_to_begin_is_not_looked_into(two, call, corpus, name):
    two(n_layer=1)
    shutil.copytree("first", name)
    how = flags(**SMALL, **SHORT, out_dir="new")
    if name == "resume":
        assert call("train_drama.py", *how, "--max_iters=5")[0] == 0
    status, out, err = call("train_drama.py", *how, f"--init_from={name}")
    assert (status, err) == (0, "") and "starting from" not in out
    assert checkpoint.load("new/ckpt.pt")["config"]["n_layer"] == SMALL["n_layer"]


def test_a_checkpoint_is_named_by_its_folder_or_by_itself(two, corpus):
    two()
    tok = CharTokenizer("ab")
    state = load_start("first", tok)
    assert equal(state["model"], load_start("first/ckpt.pt", tok)["model"])
    assert isinstance(checkpoint.build_model(state, "x")[0], GPT)
