"""The program that serves the page: its models, its visitors, and whom it does not answer."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import threading

import pytest
import torch
from helpers import DTYPE, flags, play, start, tiny_model

import train_drama
from drama import checkpoint
from drama.sampling.generation import Sampling, generate
from drama.sampling.packed import ready_to_sample
from drama.speech import speeches
from drama.tokenizer import CharTokenizer
from tools import app

TOK = CharTokenizer("".join(sorted(set(play()))))
JOB = dict(
    model="ckpt.pt", start="LUCIO:", cast=[], in_order=False, repeat=False, turns=0, length=20,
    temperature=0.8, top_p=0.9, seed=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def models(clone):
    """A folder with two models that no training made: nothing hangs on what it would have learned."""
    folder = clone / "model/page"
    for seed, name in enumerate(("early/ckpt.pt", "ckpt.pt")):
        model = tiny_model(vocab_size=TOK.vocab_size, block_size=64, n_layer=8, seed=seed)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        state = checkpoint.model_state(model, TOK, train_drama.Settings(), [f"SPEAKER {seed}"])
        checkpoint.save(folder / name, state)
    os.utime(folder / "early/ckpt.pt", (0, 0))
    return folder


@pytest.fixture
def server(models):
    serving = app.serve(app.Models(app.Settings(models=str(models))), 0)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield serving
    serving.shutdown()
    serving.server_close()


def ask(server, method="GET", path="/", body=None, **headers):
    """(status, headers, text) of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=300)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read().decode()


def text_of(server, **changes) -> str:
    """What the page would show at the end."""
    status, _, lines = ask(server, "POST", "/write", {**JOB, **changes})
    messages = [json.loads(line) for line in lines.splitlines()]
    assert status == 200 and [message.get("done") for message in messages][-1]
    return "".join(message.get("start", "") + message.get("more", "") for message in messages)


def test_the_checkpoint_that_is_picked_writes(server, models):
    for name in ("ckpt.pt", "early/ckpt.pt"):
        model, tok = checkpoint.load_model(models / name)
        ids = torch.tensor(tok.encode("LUCIO:").astype("int64"))[None]
        ready_to_sample(model, torch.device("cpu"), "auto")
        ids = generate(model, ids, 20, Sampling(temperature=0))
        assert text_of(server, model=name, temperature=0) == tok.decode(ids[0].tolist())
        about = json.loads(ask(server, path=f"/model?name={name}")[2])
        assert about["prompt"] == f"{about['speakers'][0]}:"
    assert about == dict(speakers=["SPEAKER 0"], prompt="SPEAKER 0:")


def test_a_page_opened_later_offers_what_was_trained_since(server, models):
    def offered():
        return json.loads(re.search(r'id="header">(.*)</script>', ask(server)[2])[1])["models"]

    assert offered() == ["ckpt.pt", "early/ckpt.pt"]
    newer = models / "newer/ckpt.pt"
    newer.parent.mkdir()
    shutil.copyfile(models / "ckpt.pt", newer)
    try:
        assert offered()[0] == "newer/ckpt.pt"
        newer.write_bytes(b"damaged")
        status, _, words = ask(server, path="/model?name=newer/ckpt.pt")
        assert status == 400 and "is damaged or is no checkpoint" in words
        assert (
            "is damaged or is no checkpoint"
            in ask(server, "POST", "/write", JOB | dict(model="newer/ckpt.pt"))[2]
        )
    finally:
        shutil.rmtree(newer.parent)
    assert "there is no checkpoint newer/ckpt.pt" in ask(server, path="/model?name=newer/ckpt.pt")[2]


def test_visitors_share_a_model_and_each_keeps_the_own_text(server):
    texts = {}

    def visit(name):
        texts[name] = text_of(server, start="", cast=[name], length=100)

    visits = [threading.Thread(target=visit, args=(name,)) for name in ("LUCIO", "ISABELLA", "First Lord")]
    for each in visits:
        each.start()
    for each in visits:
        each.join()
    for name, text in texts.items():
        assert text.startswith(f"{name}:\n") and {speaker for speaker, _ in speeches(text)} == {name}
        assert len(server.RequestHandlerClass.models.loaded) == 1


def post(server, job: dict) -> socket.socket:
    """A connection on which a request was made and nothing read yet."""
    connection = socket.create_connection(("127.0.0.1", server.server_port), timeout=300)
    body = json.dumps(job).encode()
    head = (
        f"POST /write HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


def test_who_goes_away_makes_room_for_others(server, monkeypatch):
    """Two write at a time, hours long; when their readers have gone, the next one's scene is written."""
    for _ in range(app.AT_ONCE):
        with post(server, JOB | dict(turns=200)) as connection:
            assert b"200 OK" in connection.recv(100)
    assert len(text_of(server, length=10)) == len("LUCIO:") + 10


def test_who_sends_half_a_request_is_not_waited_for(server, monkeypatch):
    monkeypatch.setattr(server.RequestHandlerClass, "timeout", 0.1)
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=300) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHo")
        assert connection.recv(100) == b""


def test_visitors_beyond_the_most_are_refused(server, monkeypatch):
    monkeypatch.setattr(app, "VISITORS", 0)
    with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
        ask(server)


def test_nothing_but_this_machine_s_own_browsers_is_answered(server):
    own = f"http://127.0.0.1:{server.server_port}"
    status, headers, _ = ask(server, Origin=own)
    assert status == 200 and headers["X-Frame-Options"] == "DENY"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert ask(server, Host="evil.example")[0] == 403
    assert ask(server, Host=f"evil.example:{server.server_port}")[0] == 403
    assert ask(server, "POST", "/write", JOB, Origin="http://localhost:9999")[0] == 403
    assert ask(server, "POST", "/write", JOB, Origin="null")[0] == 403
    assert ask(server, path="/../../etc/passwd")[0] == 404
    assert ask(server, path="/model?name=../secret.pt")[0] == 400
    assert ask(server, "POST", "/write", Content_Length=str(app.LARGEST + 1))[0] == 413
    assert ask(server, "PUT", "/write")[0] == 501


@pytest.mark.parametrize("wrong, words", [
    (dict(model="../secret.pt"), "no checkpoint"), (dict(start="x" * 1_000_001), "1,000,001"),
    (dict(length=10**9), "the length"), (dict(turns=201), "at most 200 speeches"), (dict(turns=-1), "turns"),
    (dict(temperature=-1), "temperature"), (dict(temperature=float("nan")), "temperature"),
    (dict(temperature="hot"), "is not float"), (dict(top_p=0), "top_p"), (dict(seed=True), "seed"),
    (dict(cast=["Лука"]), "cast"), (dict(cast=[["LUCIO"]]), "cast"), (dict(cast="LUCIO"), "cast"),
    (dict(other=1), "no request of the page"),
])  # fmt: skip
def test_requests_that_no_page_would_send_are_refused_in_one_line(server, wrong, words):
    status, _, text = ask(server, "POST", "/write", JOB | wrong)
    reason = text if status == 400 else json.loads(text.splitlines()[-1])["error"]
    assert words in reason and len(reason.splitlines()) == 1


@pytest.mark.parametrize("body", ["{", "[]", "[" * 100_000, "1"])
def test_what_is_no_json_of_the_page_is_refused(server, body):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=300)
    connection.request("POST", "/write", body)
    answer = connection.getresponse()
    assert answer.status == 400 and answer.read() == b"this is no request of the page"


def test_a_bug_is_told_to_the_page_and_shows_its_traceback(server, monkeypatch, capfd):
    monkeypatch.setattr(app, "stream", lambda *_: 1 / 0)
    assert "this is a bug" in ask(server, "POST", "/write", JOB)[2]
    monkeypatch.undo()
    assert len(text_of(server)) == len("LUCIO:") + 20
    assert "ZeroDivisionError" in capfd.readouterr().err


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


@pytest.mark.parametrize("signum, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_while_a_scene_is_written_ends_in_one_line(models, signum, status):
    process = start(models.parent.parent, "-m", "tools.app", "--models=model/page", *DTYPE)
    port = int(re.search(r"http://127.0.0.1:(\d+)/", process.stdout.readline())[1])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request("POST", "/write", json.dumps(JOB | dict(turns=200)))
    answer = connection.getresponse()
    answer.readline()
    assert b"more" in answer.readline()
    process.send_signal(signum)
    _, err = process.communicate(timeout=300)
    assert process.returncode == status and err.strip() == "app.py: stopped"


def test_without_a_model_or_a_free_port_one_line_says_so(call, models, server):
    status, _, err = call("app.py")
    assert status == 2 and "train a model" in err and len(err.splitlines()) == 1
    status, _, err = call("app.py", *flags(models=models, port=server.server_port))
    assert status == 2 and "--port" in err and len(err.splitlines()) == 1
    status, _, err = call("app.py", "--dtype=int8")
    assert status == 2 and "dtype='int8'" in err
