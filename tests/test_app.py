"""The page, in a browser: headless Chromium where the machine has one."""

import os
import re
import shutil
import signal
import sys
import time
import urllib.error
import urllib.request

import pytest
import torch
from conftest import SHORT, SMALL, flags, play, start

import app
import checkpoint
import prepare
import train_drama
from generation import generate, pack
from machine import find_dtype
from scene import speeches

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def trained(clone):
    """The clone with a model that was stopped early, in a folder below, and one that knows the small play."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(clone)
        patch.setattr(prepare, "DATA", clone / "data")
        (clone / "play.txt").write_text(play(), encoding="utf-8")
        prepare.prepare(prepare.Settings(input="play.txt", dataset="page"))
        for place, n in (("model/page/early", 5), ("model/page", 600)):
            how = dict(dataset="page", out_dir=place, max_iters=n, lr_decay_iters=n, eval_interval=n)
            train_drama.train(train_drama.Settings(**{**SMALL, **SHORT, **how}))
    return clone


def opened(place, **how):
    """The program and its address, once it has printed it."""
    pytest.importorskip("gradio")
    process = start(place, "app.py", "--models=model/page", **how)
    return process, next(found[0] for line in process.stdout if (found := re.search(r"http://127\S+/", line)))


def ended(process, signum) -> tuple[int, str]:
    process.send_signal(signum)
    asked = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - asked < 3
    return process.returncode, err


@pytest.fixture(scope="module")
def address(trained):
    process, address = opened(trained, env={**os.environ, "GRADIO_SHARE": "true"})
    yield address
    assert ended(process, signal.SIGTERM) == (143, "app.py: stopped\n")


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
        here.fill(Start="", Cast=name, Length=1500)
    for here in visits.values():
        here.press("Write")
    for name, here in visits.items():
        text = here.until(lambda text: len(text) == 1501)
        whole = speeches(text)[:-1]  # the last may be cut off
        assert {speaker for speaker, _ in whole} == {name}


def test_continue_takes_over_from_a_writing_under_way(visit):
    here = visit()
    here.fill(Start="LUCIO:", Length=5000)
    here.press("Write")
    here.until(lambda text: len(text) > 50)
    here.fill(Length=30)
    here.press("Continue")
    first, second = here.settled(), here.settled()
    assert first == second and 80 < len(first) < 5000


def test_a_long_scene_is_gone_on_with(visit):
    here = visit()
    here.page.get_by_label("Scene").fill(long := play(400))
    here.fill(Length=20)
    here.press("Continue")
    assert here.until(lambda text: len(text) == len(long) + 20).startswith(long) and len(long) > 30_000


def test_the_checkpoint_that_is_picked_writes(visit, trained):
    written, auto = {}, find_dtype("auto", torch.device("cpu"))
    for name in ("ckpt.pt", "early/ckpt.pt"):
        path = trained / "model/page" / name
        model, tok = checkpoint.build_model(checkpoint.load(path), path)
        ids = torch.tensor(tok.encode("LUCIO:").astype("int64"))[None]
        ids = generate(pack(model, auto), ids, 20, temperature=0)
        written[name] = tok.decode(ids[0].tolist())
    here = visit()
    here.fill(Start="LUCIO:", Length=20, Temperature=0)
    here.press("Write")  # the latest
    assert here.until(lambda text: len(text) == 6 + 20) == written["ckpt.pt"]
    here.page.get_by_role("combobox").click()
    here.page.get_by_role("option", name="early/ckpt.pt").click()
    here.press("Write")
    here.until(lambda text: text == written["early/ckpt.pt"])


def test_a_page_opened_later_offers_what_was_trained_since(visit, trained):
    first, newer = trained / "model/page/ckpt.pt", trained / "model/page/newer/ckpt.pt"
    newer.parent.mkdir()
    shutil.copyfile(first, newer)
    try:
        here = visit()
        here.page.wait_for_function("document.querySelector('[role=combobox]').value == 'newer/ckpt.pt'")
        newer.write_bytes(b"damaged")
        here.press("Write")
        here.page.get_by_text("is damaged or is no checkpoint").first.wait_for()
    finally:
        shutil.rmtree(newer.parent)
    here.press("Write")
    here.page.get_by_text("there is no checkpoint newer/ckpt.pt").first.wait_for()


def test_nothing_but_this_machine_s_own_browsers_is_answered(address):
    def status(**how):
        try:
            return urllib.request.urlopen(urllib.request.Request(**how), timeout=10).status
        except urllib.error.HTTPError as e:
            return e.code

    assert status(url=address) == 200
    assert status(url=address, headers={"Host": "evil.example"}) == 400
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nhello\r\n--x--\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert status(url=f"{address}gradio_api/upload", data=form, headers=kind) == 413


@pytest.mark.parametrize("signum, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_while_a_scene_is_written_ends_in_one_line(browser, trained, signum, status):
    process, address = opened(trained)
    here = Visit(browser, address)
    here.fill(Start="LUCIO:", Length=5000)
    here.press("Write")
    here.until(lambda text: len(text) > 50)
    code, err = ended(process, signum)
    here.page.close()
    assert code == status and err.strip() == "app.py: stopped"


@pytest.mark.parametrize("request_, words", [
    (("../secret.pt", "LUCIO:", "", 0.8, 10), "no checkpoint"),
    (("ckpt.pt", "x" * 1_000_001, "", 0.8, 10), "1,000,001"),
    (("ckpt.pt", "LUCIO:", "", 0.8, 10**9), "the length"),
    (("ckpt.pt", "LUCIO:", "", -1.0, 10), "temperature"),
    (("ckpt.pt", "LUCIO:", "", float("nan"), 10), "temperature"),
    (("ckpt.pt", "LUCIO:", "Лука", 0.8, 10), "cast"),
])  # fmt: skip
def test_requests_that_no_page_would_send_are_refused(trained, request_, words):
    models = app.Models(app.Settings(models=str(trained / "model/page")))
    with pytest.raises(ValueError, match=words):
        list(models.write(*request_))


def test_a_better_checkpoint_is_read_again_and_those_used_last_are_kept(trained, monkeypatch):
    models = app.Models(app.Settings(models=str(trained / "model/page")))
    (trained / "model/page/ckpt-gone.pt").symlink_to("nowhere")  # as one that a training renames just now
    shutil.copyfile(trained / "model/page/ckpt.pt", trained / "model/page/ckpt-1.pt")
    assert sorted(models.names()) == ["ckpt-1.pt", "ckpt.pt", "early/ckpt.pt"]
    first = models.get("ckpt.pt")[0]
    assert models.get("ckpt.pt")[0] is first
    (trained / "model/page/ckpt.pt").touch()
    again = models.get("ckpt.pt")[0]
    assert again is not first
    models.get("early/ckpt.pt")
    assert models.get("ckpt.pt")[0] is again
    models.get("ckpt-1.pt")
    assert list(models.loaded) == ["ckpt.pt", "ckpt-1.pt"]
    for name in ("ckpt-gone.pt", "ckpt-1.pt"):
        (trained / "model/page" / name).unlink()


def test_without_gradio_or_a_model_one_line_says_so(call, folder, trained, monkeypatch):
    status, _, err = call("app.py")
    assert status == 2 and "train a model" in err
    monkeypatch.setitem(sys.modules, "gradio", None)
    status, _, err = call("app.py", *flags(models=trained / "model/page"))
    assert status == 2 and "pip install gradio" in err and len(err.splitlines()) == 1
    status, _, err = call("app.py", "--dtype=int8")
    assert status == 2 and "dtype='int8'" in err
