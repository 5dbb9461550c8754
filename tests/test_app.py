"""The page, in a browser: headless Chromium where the machine has one."""

import re
import shutil
import time

import pytest
from conftest import SHORT, SMALL, flags, play, start

import app
import prepare
import train_drama
from scene import speeches

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def trained(clone):
    """The clone with a model that knows the small play, and one that was stopped early, in a folder below."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(clone)
        patch.setattr(prepare, "DATA", clone / "data")
        (clone / "play.txt").write_text(play(), encoding="utf-8")
        prepare.prepare(prepare.Settings(input="play.txt", dataset="page"))
        for place, n in (("model/page", 100), ("model/page/early", 5)):
            how = dict(dataset="page", out_dir=place, max_iters=n, lr_decay_iters=n, eval_interval=n)
            train_drama.train(train_drama.Settings(**{**SMALL, **SHORT, **how}))
    return clone


@pytest.fixture(scope="module")
def address(trained):
    pytest.importorskip("gradio")
    process = start(trained, "app.py", "--models=model/page")
    try:
        yield next(found[0] for line in process.stdout if (found := re.search(r"http://127\S+", line)))
    finally:
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 143


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("there is no Chromium")
    how = dict(executable_path=CHROMIUM, args=["--no-sandbox"])
    with sync_api.sync_playwright() as playwright, playwright.chromium.launch(**how) as chromium:
        yield chromium


class Visit:
    """What a person does on the page."""

    def __init__(self, browser, address):
        self.page = browser.new_page()
        self.page.set_default_timeout(20_000)
        self.page.goto(address)
        self.page.get_by_role("button", name="Write", exact=True).wait_for()

    def fill(self, **fields):
        for label, value in fields.items():
            self.page.get_by_label(label).first.fill(str(value))
            self.page.get_by_label(label).first.press("Tab")

    def press(self, button):
        self.page.get_by_role("button", name=button, exact=True).click()

    def text(self) -> str:
        return self.page.get_by_label("Scene").input_value()

    def until(self, true):
        end = time.monotonic() + 30
        while not true(self.text()):
            assert time.monotonic() < end, self.text()
            self.page.wait_for_timeout(50)
        return self.text()

    def settled(self) -> str:
        """The text once it has stopped growing."""
        before = None
        while before != (now := self.text()):
            before = now
            self.page.wait_for_timeout(1500)
        return now


@pytest.fixture
def visit(browser, address):
    visits = []

    def new():
        visits.append(Visit(browser, address))
        return visits[-1]

    yield new
    for each in visits:
        each.page.close()


def test_a_scene_is_written_gone_on_with_and_saved(visit, tmp_path):
    here = visit()
    here.fill(Start="ISABELLA:\n", Length=120)
    here.press("Write")
    first = here.until(lambda text: len(text) == 10 + 120)
    assert first.startswith("ISABELLA:\n")
    here.press("Continue")
    second = here.until(lambda text: len(text) == 10 + 240)
    assert second.startswith(first)
    for button, name in (("Save as text", "scene.txt"), ("Save as Fountain", "scene.fountain")):
        with here.page.expect_download() as download:
            here.press(button)
        assert download.value.suggested_filename == name
        download.value.save_as(tmp_path / name)
    assert (tmp_path / "scene.txt").read_text() == second
    assert (tmp_path / "scene.fountain").read_text().startswith("@ISABELLA\n")


def test_stop_stops(visit):
    here = visit()
    here.fill(Start="LUCIO:", Length=5000)
    here.press("Write")
    here.until(lambda text: len(text) > 50)
    here.press("Stop")
    stopped = here.settled()
    assert 50 < len(stopped) < 5000
    here.fill(Length=10)
    here.press("Continue")
    assert here.until(lambda text: len(text) == len(stopped) + 10).startswith(stopped)


def test_an_unknown_character_is_named_and_the_page_goes_on(visit):
    here = visit()
    here.fill(Start="→ LUCIO:", Length=20)
    here.press("Write")
    here.page.get_by_text("'→'").first.wait_for()
    here.fill(Start="LUCIO:")
    here.press("Write")
    here.until(lambda text: len(text) == 6 + 20)


def test_visitors_share_a_model_and_each_keeps_the_own_text(visit):
    visits = {name: visit() for name in ("LUCIO", "ISABELLA", "First Lord")}
    for name, here in visits.items():
        here.fill(Start="", Cast=name, Length=800)
    for here in visits.values():
        here.press("Write")
    for name, here in visits.items():
        text = here.until(lambda text: len(text) == 801)
        assert {speaker for speaker, _ in speeches(text)} <= {name, text.split("\n")[-1]}


def test_the_checkpoint_can_be_picked(visit):
    here = visit()
    here.page.get_by_role("combobox").click()
    here.page.get_by_role("option", name="early/ckpt.pt").click()
    here.fill(Start="LUCIO:", Length=20)
    here.press("Write")
    here.until(lambda text: len(text) == 6 + 20)


@pytest.mark.parametrize("request_, words", [
    (("../secret.pt", "LUCIO:", "", 0.8, 10), "no checkpoint"),
    (("ckpt.pt", "x" * 10**6, "", 0.8, 10), "1,000,000"),
    (("ckpt.pt", "LUCIO:", "", 0.8, 10**9), "the length"),
    (("ckpt.pt", "LUCIO:", "", -1.0, 10), "temperature"),
    (("ckpt.pt", "LUCIO:", "", float("nan"), 10), "temperature"),
    (("ckpt.pt", "LUCIO:", "Лука", 0.8, 10), "cast"),
])  # fmt: skip
def test_requests_that_no_page_would_send_are_refused(trained, request_, words):
    shelf = app.Shelf(app.Settings(models=str(trained / "model/page")))
    with pytest.raises(ValueError, match=words):
        list(shelf.write(*request_))


def test_a_better_checkpoint_is_read_again_and_few_are_kept(trained):
    shelf = app.Shelf(app.Settings(models=str(trained / "model/page")))
    assert sorted(shelf.names()) == ["ckpt.pt", "early/ckpt.pt"]
    first = shelf.model("ckpt.pt")
    assert shelf.model("ckpt.pt") is first
    (trained / "model/page/ckpt.pt").touch()
    assert shelf.model("ckpt.pt") is not first
    shelf.model("early/ckpt.pt")
    assert len(shelf.models) == app.MODELS


def test_without_gradio_or_a_model_one_line_says_so(call, folder, trained, monkeypatch):
    status, _, err = call("app.py")
    assert status == 2 and "train a model" in err
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    status, _, err = call("app.py", *flags(models=trained / "model/page"))
    assert status == 2 and "pip install gradio" in err and len(err.splitlines()) == 1
