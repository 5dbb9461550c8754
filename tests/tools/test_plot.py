import os
from pathlib import Path

import pytest

from drama.training import picture

HEAD = "iter,loss,time_ms,mfu,tokens_per_s,lr,train_loss,val_loss,val_bits_per_char,sample\n"


def test_a_run_s_losses_become_a_picture(call, corpus, train):
    pytest.importorskip("matplotlib")
    train(out_dir="a", sample_interval=10)
    assert (corpus / "a/loss.png").read_bytes().startswith(b"\x89PNG")
    status, out, err = call("plot.py", "a/log.csv", "a/log.csv", "--out=both.svg")
    assert (status, err) == (0, "") and "both.svg" in out
    assert (corpus / "both.svg").read_text().count("</svg>") == 1


def test_a_folder_s_name_that_is_not_unicode_is_no_reason_to_draw_nothing(tmp_path):
    pytest.importorskip("matplotlib")
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("no such names here")
    (folder / "log.csv").write_text(HEAD + "0,4,1,1,1,1,,,,\n")
    picture.draw([folder / "log.csv"], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_best_point_is_in_the_picture_when_a_run_overfits(tmp_path):
    matplotlib = pytest.importorskip("matplotlib.figure")
    path = tmp_path / "log.csv"
    path.write_text(HEAD + "0,4,1,1,1,1,,,,\n0,,,,,,4,4,6,\n9,0.2,1,1,1,1,,,,\n9,,,,,,0.3,1.9,3,\n")
    seen = []
    real = matplotlib.Figure.savefig
    with pytest.MonkeyPatch.context() as m:

        def remember(figure, *where, **how):
            seen.append(figure)
            real(figure, *where, **how)

        m.setattr(matplotlib.Figure, "savefig", remember)
        picture.draw([path], tmp_path / "loss.png")
    low, high = seen[0].axes[0].get_ylim()
    assert low < 0.2 and 1.9 < high < 3


def test_the_values_are_those_of_the_log(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(
        HEAD + '0,,,,,,4.1,4.2,6,\n0,4.0,1,0.1,5,0.001,,,,\n10,3.0,1,0.1,5,0.002,,,,\n10,,,,,,,,,"a\nb"\n'
    )
    found = picture.read_log(path)
    assert (
        found["loss"] == ([0, 10], [4.0, 3.0]) and found["val_loss"] == ([0], [4.2]) and "sample" not in found
    )


@pytest.mark.parametrize("content, words", [
    (None, "missing"), ("", "no iteration"), ("a,b\n1,2\n", "not a training's"),
    (HEAD + "x,1\n", "not a training's"), ("iter,loss\n0,4.0\n", "not a training's"),
    ("iter,loss,lr,val_loss\n0,4.0,0.1,4.1\n", "not a training's"),
])  # fmt: skip
def test_what_is_no_log_gets_one_line(call, folder, content, words):
    pytest.importorskip("matplotlib")
    if content is not None:
        (folder / "log.csv").write_text(content)
    status, _, err = call("plot.py", "log.csv")
    assert status == 2 and words in err and len(err.splitlines()) == 1


def test_an_unknown_kind_of_picture_gets_one_line(call, folder):
    pytest.importorskip("matplotlib")
    (folder / "log.csv").write_text(HEAD + "0,4.0,1,0.1,5,0.001,,,,\n")
    status, _, err = call("plot.py", "log.csv", "--out=loss.play")
    assert status == 2 and "play" in err and len(err.splitlines()) == 1
    assert not (folder / "loss.play").exists()
