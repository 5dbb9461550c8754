import pytest

import plot

HEAD = "iter,loss,time_ms,mfu,tokens_per_s,lr,train_loss,val_loss,val_bits_per_char,sample\n"


def test_a_run_s_losses_become_a_picture(call, corpus, train):
    pytest.importorskip("matplotlib")
    train(out_dir="a", sample_interval=10)
    assert (corpus / "a/loss.png").read_bytes().startswith(b"\x89PNG")
    status, out, err = call("plot.py", "a/log.csv", "a/log.csv", "--out=both.svg")
    assert (status, err) == (0, "") and "both.svg" in out
    assert (
        "validation split" in (corpus / "both.svg").read_text() or "<svg" in (corpus / "both.svg").read_text()
    )


def test_the_values_are_those_of_the_log(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(
        HEAD + '0,,,,,,4.1,4.2,6,\n0,4.0,1,0.1,5,0.001,,,,\n10,3.0,1,0.1,5,0.002,,,,\n10,,,,,,,,,"a\nb"\n'
    )
    found = plot.read_log(path)
    assert (
        found["loss"] == ([0, 10], [4.0, 3.0]) and found["val_loss"] == ([0], [4.2]) and "sample" not in found
    )


@pytest.mark.parametrize("content, words", [
    (None, "missing"), ("", "no iteration"), ("a,b\n1,2\n", "not a training's"),
    (HEAD + "x,1\n", "not a training's"),
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
