import dataclasses
import json
import math
import os
import pty
import re
import select
import shutil

import pytest
import torch
from helpers import ROOT, SHORT, SMALL, play, start

import prepare
import train_drama
from drama import checkpoint
from drama.sampling.generation import Sampling, generate
from drama.speech import speeches
from model import GPT
from sample import Settings, read_prompt


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        (place / "play.txt").write_text(play(), encoding="utf-8")
        prepare.prepare(prepare.Settings(input="play.txt"))
        train_drama.train(train_drama.Settings(**SMALL, **SHORT))
    return place


@pytest.fixture
def trained(folder, trained_once):
    """A folder to stand in, with a model that was trained for a moment."""
    shutil.copytree(trained_once, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture
def newlines(trained):
    """newlines(share) lets the model write newlines that often, and every other character equally often.

    When a speech ends then hangs on no training.
    """
    state = checkpoint.load("model/ckpt.pt")
    model, tok = checkpoint.build_model(state, "model/ckpt.pt")
    model = GPT(dataclasses.replace(model.config, bias=True))

    def make(share: float, **changes):
        for p in model.parameters():
            p.data.zero_()
        model.ln_f.bias.data.fill_(1.0)  # all that the head sees, whatever came before
        odds = share / (1 - share) * (tok.vocab_size - 1)
        model.wte.weight.data[tok.encode("\n").item()] = math.log(odds) / model.config.n_embd
        config = dataclasses.asdict(model.config)
        made = {**state, "config": config, "model": model.state_dict(), **changes}
        checkpoint.save("model/ckpt.pt", {name: made[name] for name in made if name != "format"})

    return make


SUFFIXES = {"scene.txt": "text", "scene.fountain": "fountain", "scene.json": "json"}


def texts(out):
    assert out.endswith("\n---------------\n")
    return out.removesuffix("\n---------------\n").split("\n---------------\n")


def test_ten_texts_of_five_hundred_characters_with_their_prompt(call, trained):
    status, out, err = call("sample.py", "--start=LUCIO:")
    assert (status, err) == (0, "")
    written = texts(out)
    assert len(written) == 10 and len(set(written)) == 10
    assert all(t.startswith("LUCIO:") and len(t) == 506 for t in written)


@pytest.mark.parametrize("asked, given", [((), "auto"), (("--dtype=float16",), "float16")])
def test_the_model_is_packed_in_the_number_format_that_is_asked_for(call, trained, monkeypatch, asked, given):
    packed = []
    monkeypatch.setattr("sample.ready_to_sample", lambda model, device, dtype: packed.append(dtype))
    assert call("sample.py", "--num_samples=1", "--max_new_tokens=1", *asked)[0] == 0
    assert packed == [given]


def test_the_same_seed_writes_the_same_however_many_are_asked_for(call, trained, monkeypatch):
    def written(*argv):  # float32: what is rounded more coarsely depends on the size of a batch
        return texts(call("sample.py", "--max_new_tokens=80", "--dtype=float32", *argv)[1])

    twelve = written("--num_samples=12")
    assert written("--num_samples=4") == twelve[:4]
    assert written("--num_samples=12", "--seed=2") != twelve
    monkeypatch.setattr("sample.BATCH", 5)
    assert written("--num_samples=12") == twelve


def test_temperature_zero_is_greedy(call, trained):
    out = call("sample.py", "--temperature=0", "--num_samples=2", "--max_new_tokens=40", "--dtype=float32")[1]
    a, b = texts(out)
    assert a == b
    model, tok = checkpoint.load_model("model/ckpt.pt")
    ids = torch.from_numpy(tok.encode("\n\n").astype("int64"))[None]  # as after a speech, and not shown
    assert a == tok.decode(generate(model.eval(), ids, 40, Sampling(temperature=0))[0].tolist())[2:]


@pytest.mark.parametrize("flag", ["--top_k=1", "--top_p=1e-9"])
def test_where_one_token_alone_takes_part_it_is_the_likeliest(call, trained, flag):
    how = ("--num_samples=1", "--max_new_tokens=40", "--dtype=float32", "--start=LUCIO:")
    greedy = call("sample.py", *how, "--temperature=0")
    assert call("sample.py", *how, "--temperature=2", flag) == greedy
    assert call("sample.py", *how, "--temperature=2") != greedy


def test_turns_that_do_not_end_are_given_up_with_a_note(call, newlines, monkeypatch):
    newlines(1e-9)
    monkeypatch.setattr("sample.LONGEST_SPEECH", 5)
    status, out, err = call("sample.py", "--turns=2", "--start=LUCIO:", "--num_samples=1")
    assert status == 0 and len(texts(out)[0]) == len("LUCIO:") + 10
    assert "stopped after 10 tokens, before the last speech ended" in err and err.count("\n") == 1


def test_a_cast_ends_with_no_part_of_a_name(call, newlines):
    newlines(0.3)
    cut = 0
    for length in range(30, 60):
        argv = (f"--max_new_tokens={length}", "--num_samples=3", "--cast=LUCIO,ISABELLA")
        for text in texts(call("sample.py", *argv)[1]):
            ending = text.strip("\n").rpartition("\n\n")[2]
            assert ending.partition("\n")[0] in ("LUCIO:", "ISABELLA:")
            cut += len(text) < len("\n") + length
    assert cut > 10


def test_prompts_come_from_the_line_a_file_or_a_newline(folder):
    (folder / "p.txt").write_bytes("\ufeffLUCIO:\r\nGood 夜".encode())
    (folder / "empty.txt").write_text("")
    assert read_prompt("LUCIO:") == "LUCIO:"
    assert read_prompt("FILE:p.txt") == "LUCIO:\nGood 夜"
    assert read_prompt("") == read_prompt("FILE:empty.txt") == ""
    ruler = "\n---------------\n"
    for text, read in {
        f"LUCIO:\nGood{ruler}": "LUCIO:\nGood", f"A:\nOne.\n{ruler}B:\nTwo.\n{ruler}": "B:\nTwo.\n\n",
        "A:\nOne.\n": "A:\nOne.\n\n", "A:\nOne.\n\n": "A:\nOne.\n\n", "A:\n": "A:\n", "prose\n": "prose\n",
    }.items():  # fmt: skip
        (folder / "p.txt").write_text(text)
        assert read_prompt("FILE:p.txt") == read


def test_a_prompt_longer_than_the_context_is_continued(call, trained):
    start = "the king speaks, come hear the love. " * 5
    status, out, _ = call("sample.py", f"--start={start}", "--num_samples=1", "--max_new_tokens=9")
    assert status == 0 and texts(out)[0].startswith(start) and len(texts(out)[0]) == len(start) + 9


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--start=Ω? 你好"], "'Ω' (U+03A9), '你' (U+4F60), '好'"),
        (["--start=FILE:nowhere.txt"], "no such file"),
        (["--start=FILE:."], "not a plain file"),
        (["--start=FILE:/dev/zero"], "not a plain file"),
        (["--start=FILE:pipe"], "not a plain file"),
        (["--start=FILE:latin.txt"], "not UTF-8"),
        (["--start=FILE:huge.txt"], "1,000,001 bytes"),
        (["--num_samples=0"], "num_samples=0"),
        (["--max_new_tokens=-5"], "max_new_tokens=-5"),
        (["--temperature=-1"], "temperature"),
        (["--temperature=hot"], "not a number"),
        (["--top_p=0"], "top_p"),
        (["--top_k=-1"], "top_k"),
        (["--turns=-1"], "turns"),
        (["--start=latin.txt"], "--start=FILE:latin.txt reads it"),
        (["--order=LUCIO,ISABELLA", "--turns=2"], "leave out cast and turns"),
        (["--out=latin.txt"], "is there already"),
        (["--out=scene.pdf"], "none of .txt, .fountain, .json"),
        (["--out=nowhere/scene.txt"], "a folder that does not exist"),
        (["--out=scene.txt", "--format=json"], "leave out --format"),
        (["--format=pdf"], "none of text, fountain, json"),
        (["--cast=LUCIO,Séan"], "cast: the model never saw these characters in training: 'é'"),
        (["--device=cuda:99"], "--device=auto"),
        (["--out_dir=elsewhere"], "train_drama.py"),
        (["--strat=LUCIO:"], "did you mean start?"),
    ],
)
def test_a_wrong_request_gets_one_line(call, trained, argv, words):
    os.mkfifo("pipe")
    (trained / "latin.txt").write_bytes("é".encode("latin-1"))
    (trained / "huge.txt").write_bytes(b"a" * 1_000_001)
    status, out, err = call("sample.py", *argv)
    assert status == 2 and words in err and len(err.splitlines()) == 1 and out == ""


def test_a_cast_speaks_its_turns_in_every_form(call, newlines):
    newlines(0.3)
    how = ("--cast=LUCIO, ISABELLA", "--turns=2", "--num_samples=3")
    status, out, err = call("sample.py", *how)
    assert (status, err) == (0, "")
    scenes = [speeches(text) for text in texts(out)]
    assert [len(scene) for scene in scenes] == [2, 2, 2]
    assert {name for scene in scenes for name, _ in scene} <= {"LUCIO", "ISABELLA"}
    status, out, err = call("sample.py", *how, "--format=json")
    told = [[(s["speaker"], s["text"]) for s in scene] for scene in json.loads(out)]
    assert told == [[(name, lines.strip("\n")) for name, lines in scene] for scene in scenes]
    status, out, err = call("sample.py", *how, "--format=fountain")
    assert out.count("\n===\n") == 2 and out.count("@LUCIO\n") + out.count("@ISABELLA\n") == 6


def test_a_scene_is_saved_by_its_ending_and_gone_on_with(call, newlines, trained):
    newlines(0.3)
    how = ("--cast=LUCIO, ISABELLA", "--seed=3")
    for name in ("scene.txt", "scene.fountain", "scene.json"):
        status, out, err = call("sample.py", *how, "--turns=2", "--num_samples=3", f"--out={name}")
        assert (status, out, err) == (0, f"{name}: 3 texts\n", "")
        told = call("sample.py", *how, "--turns=2", "--num_samples=3", f"--format={SUFFIXES[name]}")[1]
        written = (trained / name).read_text(encoding="utf-8")
        assert written == (told.removesuffix("\n---------------\n") if name == "scene.txt" else told[:-1])
    last = speeches(texts((trained / "scene.txt").read_text() + "\n---------------\n")[-1])
    for saved in ("scene.txt", "printed.txt"):
        status, out, _ = call("sample.py", *how, f"--start=FILE:{saved}", "--turns=2", "--num_samples=1")
        assert status == 0 and len(speeches(texts(out)[0])) == 4 and speeches(texts(out)[0])[:2] == last
        (trained / "printed.txt").write_text(
            told_text := call("sample.py", *how, "--turns=2", "--num_samples=3")[1]
        )
        assert told_text.endswith("---------------\n")


def test_an_order_gives_the_turns(call, newlines):
    newlines(0.3)
    status, out, err = call("sample.py", "--order=ISABELLA,LUCIO,ISABELLA", "--num_samples=2")
    assert (status, err) == (0, "")
    assert [[n for n, _ in speeches(t)] for t in texts(out)] == [["ISABELLA", "LUCIO", "ISABELLA"]] * 2


def test_a_kept_checkpoint_is_sampled(call, trained):
    shutil.move("model/ckpt.pt", "model/ckpt-1.pt")
    status, out, err = call("sample.py", "--out_dir=model/ckpt-1.pt", "--num_samples=1")
    assert (status, err) == (0, "") and texts(out)


def test_a_name_that_nobody_had_is_allowed_with_a_note(call, newlines):
    argv = ("sample.py", "--cast=LUCIO,CLAUDIUS", "--turns=1", "--num_samples=1")
    newlines(0.3)
    status, out, err = call(*argv)
    assert (status, err) == (0, "the training text has no speech by CLAUDIUS\n") and texts(out)
    shutil.rmtree("data")  # the model alone knows who speaks
    assert call(*argv) == (0, out, err)
    newlines(0.3, speakers=[])  # of a text in another form
    assert call(*argv) == (0, out, "")


def test_with_no_model_one_line_says_how_to_train_one(call, folder):
    status, _, err = call("sample.py")
    assert status == 2 and "python train_drama.py" in err and len(err.splitlines()) == 1


def test_a_damaged_model_gets_one_line(call, trained):
    (trained / "model/ckpt.pt").write_bytes(b"PK\x03\x04 not a model")
    status, _, err = call("sample.py")
    assert status == 2 and "damaged" in err and len(err.splitlines()) == 1


def on_terminal(place, *argv, enough=math.inf):
    """(the program's status, what it writes on a terminal), at its end or when that is enough."""
    mine, theirs = pty.openpty()
    process = start(place, ROOT / "sample.py", *argv, stdout=theirs)
    os.close(theirs)
    text, piece = b"", b"-"
    while piece and len(text) < enough:
        assert select.select([mine], [], [], 300)[0]
        try:
            piece = os.read(mine, 4096)
        except OSError:  # the other end is closed
            break
        text += piece
    status = process.poll() if len(text) >= enough else process.wait(300)
    os.close(mine)
    return status, text.decode(errors="ignore").replace("\r\n", "\n")


def test_one_sample_on_a_terminal_is_written_as_it_comes(call, trained):
    argv = ("--num_samples=1", "--max_new_tokens=60", "--start=LUCIO:", "--dtype=float32")
    expected = call("sample.py", *argv)[1]
    assert on_terminal(trained, *argv) == (0, expected)
    status, written = on_terminal(trained, *argv, "--max_new_tokens=1000000000", enough=100)
    assert status is None and written.startswith(expected[:66])


def test_a_reader_that_goes_away_is_no_error(trained):
    process = start(trained, ROOT / "sample.py", "--num_samples=300")
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(300) == 1


def test_help_says_what_each_setting_is_for(call, folder):
    status, out, _ = call("sample.py", "--help")
    assert status == 0 and re.search(r"--temperature=0.8 +below 1 is safer", out)
    assert Settings().start == "" and "--start= " in out


@pytest.mark.parametrize("flag", ["--cast=LUCIO,ISABELLA", "--turns=3", "--max_new_tokens=77"])
def test_a_terminal_shows_what_a_file_would_hold(trained, newlines, call, flag):
    """Half a name, and what was written after the last turn, are held back."""
    newlines(0.3)
    for seed in range(2):
        argv = (flag, "--num_samples=1", "--max_new_tokens=47", f"--seed={seed}")
        status, out, err = call("sample.py", *argv)
        assert (status, err) == (0, "")
        assert on_terminal(trained, *argv) == (0, out)
