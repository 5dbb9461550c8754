"""The page, in a browser: headless Chromium where the machine has one."""

import contextlib
import http.client
import math
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
from helpers import DTYPE, flags, play, start, tiny_model

import train_drama
from configurator import UserError
from drama import checkpoint
from drama.device import find_dtype
from drama.sampling.generation import Sampling, generate
from drama.sampling.packed import pack
from drama.speech import speeches
from drama.tokenizer import CharTokenizer
from tools import app, gate


@pytest.fixture(scope="module")
def models(clone):
    """A folder with two models that no training made: nothing hangs on what it would have learned.

    ckpt.pt writes a newline as every fifth character and all others equally often, and is in no hurry: it
    has many blocks, which add nothing. early/ckpt.pt writes something else.
    """
    tok = CharTokenizer("".join(sorted(set(play()))))
    shape = dict(vocab_size=tok.vocab_size, block_size=64, bias=True)
    slow, early = tiny_model(**shape, n_layer=32), tiny_model(**shape, seed=1)
    for p in slow.parameters():
        p.data.zero_()
    slow.ln_f.bias.data.fill_(1.0)  # all that the head sees
    slow.wte.weight.data[tok.encode("\n").item()] = math.log((tok.vocab_size - 1) / 4) / slow.config.n_embd
    folder = clone / "model/page"
    for name, model in {"early/ckpt.pt": early, "ckpt.pt": slow}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(folder / name, checkpoint.model_state(model, tok, train_drama.Settings()))
    os.utime(folder / "early/ckpt.pt", (0, 0))
    return folder


def opened(models, **kwargs):
    """The program and its address, once it has printed it."""
    pytest.importorskip("gradio")
    process = start(models.parent.parent, "-m", "tools.app", "--models=model/page", *DTYPE, **kwargs)
    return process, next(found[0] for line in process.stdout if (found := re.search(r"http://127\S+/", line)))


def ended(process, signum) -> tuple[int, str]:
    process.send_signal(signum)
    _, err = process.communicate(timeout=300)
    return process.returncode, err


@pytest.fixture(scope="module")
def address(models):
    process, address = opened(models, env={**os.environ, "GRADIO_SHARE": "true"})
    yield address
    assert ended(process, signal.SIGTERM) == (143, "app.py: stopped\n")


class Visit:
    """What a person does on the page."""

    def __init__(self, browser, address):
        self.page = browser.new_page()
        self.page.set_default_timeout(300_000)
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
        end = time.monotonic() + 300
        while not true(self.text()):
            assert time.monotonic() < end, self.text()
            self.page.wait_for_timeout(50)
        return self.text()

    def go_on(self, length):
        before = self.text() or "\n"  # which stands for nothing
        self.fill(Length=length)
        self.press("Continue")
        return self.until(lambda text: len(text) == len(before) + length)

    def settled(self, other) -> str:
        """The text, once it no longer grows while another visitor's does."""
        before = None
        while before != (now := self.text()):
            before = now
            other.go_on(100)
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
    second = here.go_on(120)
    assert second.startswith(first)
    for button, name in (("Save as text", "scene.txt"), ("Save as Fountain", "scene.fountain")):
        with here.page.expect_download() as download:
            here.press(button)
        assert download.value.suggested_filename == name
        download.value.save_as(tmp_path / name)
    assert (tmp_path / "scene.txt").read_text() == second
    assert (tmp_path / "scene.fountain").read_text().startswith("@ISABELLA\n")


def test_stop_stops(visit):
    here, other = visit(), visit()
    here.fill(Start="LUCIO:", Length=5000)
    here.press("Write")
    here.until(lambda text: len(text) > 50)
    here.press("Stop")
    stopped = here.settled(other)
    assert 50 < len(stopped) < 5000
    assert here.go_on(10).startswith(stopped)


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
        here.fill(Start="", Cast=name, Length=400)
    for here in visits.values():
        here.press("Write")
    for name, here in visits.items():
        text = here.until(lambda text: len(text) > 380)  # a name that is not whole yet is held back
        whole = speeches(text)[:-1]  # the last may be cut off
        assert {speaker for speaker, _ in whole} == {name}


def test_continue_takes_over_from_a_writing_under_way(visit):
    here, other = visit(), visit()
    here.fill(Start="LUCIO:", Length=5000)
    here.press("Write")
    here.until(lambda text: len(text) > 50)
    here.fill(Length=30)
    here.press("Continue")
    assert 80 < len(here.settled(other)) < 5000


def test_a_long_scene_is_gone_on_with(visit):
    here = visit()
    here.page.get_by_label("Scene").fill(long := play(400))
    assert here.go_on(20).startswith(long) and len(long) > 30_000


def test_the_checkpoint_that_is_picked_writes(visit, models):
    written, auto = {}, find_dtype("auto", torch.device("cpu"))
    for name in ("ckpt.pt", "early/ckpt.pt"):
        path = models / name
        model, tok = checkpoint.build_model(checkpoint.load(path), path)
        ids = torch.tensor(tok.encode("LUCIO:").astype("int64"))[None]
        ids = generate(pack(model, auto), ids, 20, Sampling(temperature=0))
        written[name] = tok.decode(ids[0].tolist())
    assert written["ckpt.pt"] != written["early/ckpt.pt"]
    here = visit()
    here.fill(Start="LUCIO:", Length=20, Temperature=0)
    here.press("Write")  # the latest
    assert here.until(lambda text: len(text) == 6 + 20) == written["ckpt.pt"]
    here.page.get_by_role("combobox").click()
    here.page.get_by_role("option", name="early/ckpt.pt").click()
    here.press("Write")
    here.until(lambda text: text == written["early/ckpt.pt"])


def test_a_page_opened_later_offers_what_was_trained_since(visit, models):
    first, newer = models / "ckpt.pt", models / "newer/ckpt.pt"
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
            return urllib.request.urlopen(urllib.request.Request(**how), timeout=300).status
        except urllib.error.HTTPError as e:
            return e.code

    assert status(url=address) == 200
    assert status(url=address, headers={"Host": "evil.example"}) == 400
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nhello\r\n--x--\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert status(url=f"{address}gradio_api/upload", data=form, headers=kind) == 413
    join = f"{address}gradio_api/queue/join"
    assert status(url=join, data=b"{}", headers={"Origin": "http://localhost:9999"}) == 403
    connection = http.client.HTTPConnection("127.0.0.1", int(address.split(":")[2].strip("/")), timeout=300)
    connection.request("POST", "/gradio_api/queue/join", headers={"Content-Length": f"{gate.LARGEST + 1}"})
    assert connection.getresponse().status == 413
    assert urllib.request.urlopen(address, timeout=300).headers["X-Frame-Options"] == "DENY"


def asgi(app, path="/", chunks=(b"",)):
    """What an ASGI application answers to a request whose body comes in chunks."""
    answers, chunks = [], list(chunks)

    async def receive():
        return dict(type="http.request", body=chunks.pop(0), more_body=bool(chunks))

    async def send(message):
        answers.append(message)

    scope = dict(type="http", path=path, query_string=b"session_hash=me")
    with contextlib.suppress(StopIteration):  # it waits for nothing, and asyncio refuses beside a browser's
        app(scope | dict(headers=[]), receive, send).send(None)
    return answers


def test_a_body_that_does_not_say_how_long_it_is_ends_where_it_is_too_long():
    read = []

    async def gradio(scope, receive, send):
        while (message := await receive())["type"] == "http.request" and message["more_body"]:
            read.append(len(message["body"]))

    asgi(gate.Gate(gradio, gate.Readers()), chunks=[b"x" * 1_000_000] * 100)
    assert sum(read) <= gate.LARGEST


def test_who_reads_is_noted_and_an_answer_that_nobody_reads_ends(models, monkeypatch):
    readers, now, noted = gate.Readers(), [100.0], []
    monkeypatch.setattr(gate.time, "monotonic", lambda: now[0])

    async def gradio(scope, receive, send):
        noted.append(readers.gone("me", 0.0))  # nothing has been taken yet, but see when the writing began
        await send(dict(type="http.response.start", status=200))
        noted.append(readers.gone("me", 0.0))
        now[0] += 1000
        noted.append(readers.gone("me", 0.0))

    answers = asgi(gate.Gate(gradio, readers), "/gradio_api/queue/data")
    assert noted == [True, False, False] and answers[0]["status"] == 200
    assert readers.gone("me", now[0] - gate.PATIENCE - 1) and not readers.gone("me", now[0])
    monkeypatch.undo()
    texts = app.Models(app.Settings(models=str(models))).write(
        "ckpt.pt", "LUCIO:", "", 0.8, 5000, lambda: True
    )
    assert list(texts) == []


@pytest.mark.parametrize("signum, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_while_a_scene_is_written_ends_in_one_line(browser, models, signum, status):
    process, address = opened(models)
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
def test_requests_that_no_page_would_send_are_refused(models, request_, words):
    with pytest.raises(UserError, match=words):
        list(app.Models(app.Settings(models=str(models))).write(*request_))


def test_a_better_checkpoint_is_read_again_and_those_used_last_are_kept(models, tmp_path):
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    (tmp_path / "ckpt-gone.pt").symlink_to("nowhere")  # as one that a training renames just now
    shutil.copyfile(tmp_path / "ckpt.pt", tmp_path / "ckpt-1.pt")
    loaded = app.Models(app.Settings(models=str(tmp_path)))
    assert sorted(loaded.names()) == ["ckpt-1.pt", "ckpt.pt", "early/ckpt.pt"]
    first = loaded.get("ckpt.pt")[0]
    assert loaded.get("ckpt.pt")[0] is first
    os.utime(tmp_path / "ckpt.pt", (1, 1))
    again = loaded.get("ckpt.pt")[0]
    assert again is not first
    loaded.get("early/ckpt.pt")
    assert loaded.get("ckpt.pt")[0] is again
    loaded.get("ckpt-1.pt")
    assert list(loaded.loaded) == ["ckpt.pt", "ckpt-1.pt"]


def test_without_gradio_or_a_model_one_line_says_so(call, models, monkeypatch):
    status, _, err = call("app.py")
    assert status == 2 and "train a model" in err and len(err.splitlines()) == 1
    monkeypatch.setitem(sys.modules, "gradio", None)
    status, _, err = call("app.py", *flags(models=models))
    assert status == 2 and "pip install gradio" in err and len(err.splitlines()) == 1
    status, _, err = call("app.py", "--dtype=int8")
    assert status == 2 and "dtype='int8'" in err
