import itertools
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


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """drawn(name=rows, ..., dark=...) draws the logs of these runs and returns the figure."""
    matplotlib = pytest.importorskip("matplotlib.figure")
    figures, save = [], matplotlib.Figure.savefig

    def remember(figure, *args, **kwargs):
        figures.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(matplotlib.Figure, "savefig", remember)

    def run(dark=False, **runs):
        logs = [tmp_path / name / "log.csv" for name in runs]
        for log, rows in zip(logs, runs.values(), strict=True):
            log.parent.mkdir()
            log.write_text(HEAD + "".join(f"{row}\n" for row in rows))
        picture.draw(logs, tmp_path / "loss.png", dark)
        return figures[-1]

    return run


def batches(losses, every=10):
    return [f"{every * i},{loss},1,1,1,{1 / (i + 1)},,,," for i, loss in enumerate(losses)]


def evaluation(iteration, train_loss, val_loss):
    return f"{iteration},,,,,,{train_loss},{val_loss},6,"


FALL = batches([1 + 3 / (i + 1) + (-1) ** i / 10 for i in range(61)])
OVERFIT = [*FALL, evaluation(0, 4, 4), evaluation(200, 1.5, 1.6), evaluation(400, 1.2, 1.5),
           evaluation(600, 0.9, 1.9)]  # fmt: skip


def curves(axes) -> list[list[tuple]]:
    return [list(zip(*line.get_data(), strict=True)) for line in axes.lines]


def texts(figure) -> list[tuple]:
    """Each text at the curves, and where it stands, in pixels."""
    extent = pytest.importorskip("matplotlib.text").Text.get_window_extent  # an annotation's adds its line
    return [(text.get_text(), extent(text)) for text in figure.axes[0].texts]


def test_the_batches_are_drawn_as_they_are_and_smoothed(drawn):
    raw, smooth = curves(drawn(a=FALL).axes[0])
    (iterations, losses), (same, means) = (zip(*curve, strict=True) for curve in (raw, smooth))
    assert iterations == same == tuple(range(0, 601, 10))
    assert losses[30] == pytest.approx(1 + 3 / 31 + 0.1) and means[:2] == pytest.approx(losses[:2])
    steps = [[abs(b - a) for a, b in itertools.pairwise(values[30:])] for values in (losses, means)]
    assert max(steps[1]) < min(steps[0]) / 5
    assert means[-1] == pytest.approx(sum(losses[54:]) / 7)


def test_evaluations_are_drawn_from_the_first_one_after_step_0(drawn):
    split = [(200, 1.5), (400, 1.2), (600, 0.9)]
    validation = [(200, 1.6), (400, 1.5), (600, 1.9)]
    axes = drawn(a=OVERFIT).axes[0]
    assert split in curves(axes) and validation in curves(axes)
    (gap,) = axes.patches  # the shade between them
    assert {*split, *validation} == {*map(tuple, gap.get_xy())}
    _, high = axes.get_ylim()
    assert 1.9 < high < 2.5  # the first fall is not what one looks for


def test_step_0_is_drawn_where_there_is_nothing_else_or_nothing_better(drawn):
    assert [(0, 4.1)] in curves(drawn(a=[*FALL, evaluation(0, 4, 4.1)]).axes[0])
    tuned = drawn(b=[*FALL, evaluation(0, 1.2, 1.1), evaluation(600, 0.9, 1.3)])
    assert [(0, 1.1), (600, 1.3)] in curves(tuned.axes[0]) and "best 1.1000" in dict(texts(tuned))


def test_the_best_point_is_marked_with_its_value(drawn):
    figure = drawn(a=OVERFIT)
    assert [(400, 1.5)] in curves(figure.axes[0])
    text, at = dict(texts(figure))["best 1.5000"], figure.axes[0].transData.transform((400, 1.5))
    assert abs(text.x1 - at[0]) < 5 and 0 < text.y0 - at[1] < 40


def test_the_learning_rate_is_beneath(drawn):
    assert curves(drawn(a=FALL).axes[1]) == [[(10 * i, 1 / (i + 1)) for i in range(61)]]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_curve_has_its_name_at_its_end_and_none_overlaps(drawn, count):
    runs = {f"run{n}": OVERFIT[: len(OVERFIT) - n % 3] for n in range(count)}
    figure = drawn(**runs)
    names = {"batches", "training split", "validation"}
    if count > 1:
        names = {f"{run}: {curve}" for run in runs for curve in ("batches", "validation")}
    found = dict(texts(figure))
    assert names == found.keys() - {"best 1.5000", "best 1.6000"}
    inside = figure.axes[0].get_window_extent()
    assert all(inside.x1 < found[name].x0 < found[name].x1 < figure.bbox.x1 for name in names)
    assert not any(a.overlaps(b) for (_, a), (_, b) in itertools.combinations(texts(figure), 2))
    assert figure.axes[0].get_legend() is None


def test_a_picture_is_light_or_dark_and_leaves_other_pictures_alone(drawn):
    matplotlib = pytest.importorskip("matplotlib")
    before = dict(matplotlib.rcParams)
    light, dark = drawn(a=OVERFIT), drawn(b=OVERFIT, dark=True)
    for figure, background in ((light, 1), (dark, 0)):
        assert figure.get_facecolor()[:3] == 3 * (background,)
        label = matplotlib.colors.to_rgb(figure.axes[0].yaxis.label.get_color())
        assert label == 3 * (1 - background,)
    assert dict(matplotlib.rcParams) == before


def test_plot_draws_dark_where_that_is_asked_for(call, folder):
    pytest.importorskip("matplotlib")
    (folder / "log.csv").write_text(HEAD + "\n".join(OVERFIT))
    assert call("plot.py", "log.csv", "--dark=true")[0] == 0
    dark = (folder / "loss.png").read_bytes()
    assert call("plot.py", "log.csv")[0] == 0
    assert dark != (folder / "loss.png").read_bytes()


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
