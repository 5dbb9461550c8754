"""A page to write scenes on, for the browsers of this machine.

    python -m tools.app        then open the address it prints

It is the page of `tools.export --to=html`; here this program writes. All who open it share the models in
memory; each text has its own cache.
"""

import contextlib
import json
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from urllib.parse import parse_qs, urlsplit

from drama.program import is_out_of_memory, run_program

from configurator import FilePath, UserError, check, configure, one_line
from drama import checkpoint
from drama.device import Dtype, find_device
from drama.sampling.cast import Cast, Director
from drama.sampling.generation import prompt_ids, stream
from drama.sampling.packed import ready_to_sample
from drama.tokenizer import as_known, first_text
from sample import LONGEST_PROMPT, LONGEST_SPEECH
from sample import Settings as SampleSettings
from tools.export.html import describe, page

MAX_NEW_TOKENS = 5_000  # of one click
AT_ONCE = 2  # texts written at the same time; others wait
VISITORS = 32  # connections at the same time; others are refused
IN_MEMORY = 2  # models
LARGEST = 4_000_000  # bytes of a request: a million characters, each of which may take four
PATIENCE = 5  # seconds for which a connection may send and take nothing


@dataclass(frozen=True)
class Settings:
    """python -m tools.app [--name=value ...]"""

    models: FilePath = "model"  # the folder with models: every ckpt*.pt in it and in its folders
    port: int = 0  # of 127.0.0.1; 0: the first free one from 7860 on
    device: str = "auto"  # auto: cuda, else mps, else cpu; or one of them
    dtype: Dtype = "auto"  # auto: on x86 CPUs weights in float16; or bfloat16, float16, float32 (exact)

    def __post_init__(self):
        check(self, dict(port=0))
        if self.port > 65535:
            raise UserError(f"port={self.port} is above 65535")


@dataclass(frozen=True)
class Job:
    """What the page asks for; sample.py's settings of the same names say what each is."""

    model: str
    start: str
    cast: list
    in_order: bool
    repeat: bool
    turns: int
    length: int
    temperature: float
    top_p: float
    seed: int

    def __post_init__(self):
        for name, kind in Job.__annotations__.items():
            value = getattr(self, name)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise UserError(f"{name} is not {kind.__name__}")
        if len(self.start) > LONGEST_PROMPT:
            raise UserError(f"the scene has {len(self.start):,} characters; {LONGEST_PROMPT:,} are the most")
        if not 1 <= self.length <= MAX_NEW_TOKENS or self.turns > 200:
            raise UserError(f"the length is 1 to {MAX_NEW_TOKENS:,} tokens, or at most 200 speeches")
        if not 0 <= self.temperature <= 100:
            raise UserError("the temperature is 0 to 100")
        if any(type(name) is not str for name in self.cast):
            raise UserError("the cast is not a list of names")

    def sampling(self):
        how = dict(turns=self.turns, temperature=self.temperature, top_p=self.top_p, seed=self.seed)
        return SampleSettings(**how).sampling()


class Models:
    """The checkpoints under a folder; the ones used last are in memory, ready to generate."""

    def __init__(self, settings: Settings):
        self.root = Path(settings.models)
        self.device = find_device(settings.device)
        self.dtype = settings.dtype
        self.loaded, self.lock = {}, threading.Lock()  # name: (time of the file, model, tokenizer, speakers)
        self.writing = threading.Semaphore(AT_ONCE)
        self.ended = threading.Event()  # when it is set, all writing stops

    def names(self) -> list[str]:
        """Paths below the folder, the latest checkpoint first."""
        found = []
        for path in self.root.rglob("ckpt*.pt"):
            with contextlib.suppress(OSError):  # renamed by a training just now, or a link to nothing
                found.append((path.stat().st_mtime, path.relative_to(self.root).as_posix()))
        return [name for _, name in sorted(found, reverse=True)]

    def get(self, name: str):
        """(model, tokenizer, speakers). Raises UserError for a name that is not there or holds no model."""
        if name not in self.names():
            raise UserError(f"there is no checkpoint {name or ''} under {self.root}; train a model first")
        path = self.root / name
        with self.lock:
            written_at, *loaded = self.loaded.pop(name, (None,))
            while len(self.loaded) >= IN_MEMORY:  # to have room before another is loaded
                del self.loaded[next(iter(self.loaded))]
            now = path.stat().st_mtime_ns
            if written_at != now:  # a training may have written a better one since
                state = checkpoint.load(path)
                model, tok = checkpoint.build_model(state, path)
                loaded = ready_to_sample(model, self.device, self.dtype), tok, state.get("speakers", [])
            self.loaded[name] = now, *loaded  # last, and so the last to go
        return loaded

    def write(self, job: Job):
        """Yield messages for the page: {"start"}, {"more"} ten times per second, and at last "done" in one.

        Raises UserError for what cannot be written.
        """
        model, tok, _ = self.get(job.model)
        start, _ = as_known(job.start, tok) if job.start else ("", "")
        cast = Cast(job.cast, tok, job.repeat, job.in_order) if job.cast else None
        prompt = start or first_text(tok)
        director = Director(tok, prompt, 1, cast, job.turns)
        length = LONGEST_SPEECH * director.turns or job.length
        yield {"start": start}
        ids = prompt_ids(tok, prompt, model)
        sent, shown_at = len(prompt), 0.0
        with self.writing:
            for _ in stream(model, ids, length, job.sampling(), director):
                if self.ended.is_set():
                    return
                if time.monotonic() - shown_at > 0.1 and not director.done():
                    text = director.written(0).rstrip("\n")  # which the end of a text leaves out
                    yield {"more": text[sent:]}
                    sent, shown_at = max(sent, len(text)), time.monotonic()
        whole = not director.turns or director.done()
        text = director.written(0) + "\n" * bool(director.turns and whole)  # a speech ends with an empty line
        yield {"more": text[sent:], "done": True, "endless": 0 if whole else length}


GONE = (ConnectionError, TimeoutError)  # a reader
SECURITY = {  # nothing from elsewhere, and in no other page's frame
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline';"
    " img-src data:; connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class Visit(BaseHTTPRequestHandler):
    """One request. Other sites and long requests are refused; an answer that nobody takes ends."""

    timeout, models = PATIENCE, None

    def log_message(self, *_):
        pass

    def answer(self, status: int, kind: str, body: str = ""):
        self.send_response(status)
        for name, value in {"Content-Type": f"{kind}; charset=utf-8", **SECURITY}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode("utf-8", "replace"))

    def welcome(self) -> bool:
        """Whether the request is of this page, and not of another site through the browser."""
        host, port = self.headers.get("Host", ""), self.server.server_port
        own = host in (f"127.0.0.1:{port}", f"localhost:{port}")
        if own and self.headers.get("Origin", f"http://{host}") == f"http://{host}":
            return True
        self.answer(403, "text/plain", "this address is for the browsers of its own machine")
        return False

    def do_GET(self):
        url = urlsplit(self.path)
        if not self.welcome():
            return
        if url.path == "/":
            self.answer(200, "text/html", page(dict(models=self.models.names())))
        elif url.path == "/model":
            try:
                _, tok, speakers = self.models.get(parse_qs(url.query).get("name", [""])[0])
                self.answer(200, "application/json", json.dumps(describe(tok, speakers)))
            except (UserError, OSError) as e:
                self.answer(400, "text/plain", one_line(e))
        else:
            self.answer(404, "text/plain", "there is no such page")

    def do_POST(self):
        if not self.welcome():
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > LARGEST:
            return self.answer(413, "text/plain", f"a request has at most {LARGEST:,} bytes")
        try:
            job = Job(**json.loads(self.rfile.read(int(length))))
        except UserError as e:
            return self.answer(400, "text/plain", one_line(e))
        except (ValueError, TypeError, RecursionError):
            return self.answer(400, "text/plain", "this is no request of the page")
        self.answer(200, "application/jsonl")
        try:
            for message in self.models.write(job):
                self.tell(message)
        except GONE:
            raise
        except Exception as e:
            asked = isinstance(e, (UserError, OSError)) or is_out_of_memory(e)
            reason = one_line(e) if asked else "this is a bug: the program's own window shows where"
            self.tell({"error": reason, "done": True})
            if not asked:
                raise

    def tell(self, message: dict):
        self.wfile.write(f"{json.dumps(message)}\n".encode())


class Server(ThreadingHTTPServer):
    """Answers visits of this machine's browsers, each in a thread."""

    def server_bind(self):  # without asking a network what 127.0.0.1 is called
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address

    def process_request(self, request, client_address):
        if threading.active_count() > VISITORS:
            self.shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], GONE):
            super().handle_error(request, client_address)  # a bug shows its traceback


def serve(models: Models, port: int) -> Server:
    """A server at a port of this machine, or the first free one where it is 0. Raises UserError."""
    visit = type("Visit", (Visit,), dict(models=models))
    for at in [port] if port else range(7860, 7960):
        with contextlib.suppress(OSError):
            return Server(("127.0.0.1", at), visit)
    raise UserError(f"port {port or '7860 to 7959'} is not free; give another one with --port")


def main():
    settings = configure(Settings, sys.argv[1:])
    models = Models(settings)
    if not models.names():
        raise UserError(f"there is no ckpt.pt under {models.root}: train a model first, or give --models")
    server = serve(models, settings.port)
    print(f"http://127.0.0.1:{server.server_port}/ is open to this machine; Ctrl-C ends it", flush=True)
    try:
        server.serve_forever()
    finally:
        models.ended.set()
        until = time.monotonic() + 2  # PyTorch aborts where Python ends within it
        for thread in threading.enumerate():
            if thread.daemon:
                thread.join(max(0, until - time.monotonic()))


if __name__ == "__main__":
    run_program(main)
