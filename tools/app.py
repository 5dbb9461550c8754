"""A page to write scenes on, for the browsers of this machine.

    pip install "gradio>=6" && python -m tools.app        then open the address it prints

All who open it share the models in memory; each text has its own cache.
"""

import contextlib
import os
import secrets
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from drama.program import is_out_of_memory, optional, run_program

from configurator import FilePath, UserError, check, configure, one_line
from drama import checkpoint
from drama.device import Dtype, find_device, find_dtype
from drama.sampling.cast import Cast, Director, cast_names
from drama.sampling.generation import prompt_ids, stream
from drama.sampling.packed import pack
from drama.speech import fountain
from drama.tokenizer import as_known, first_text
from sample import LONGEST_PROMPT
from sample import Settings as SampleSettings
from tools.gate import Gate, Readers

MAX_NEW_TOKENS = 5_000  # of one click
AT_ONCE = 2  # texts written at the same time; other requests wait in the queue
QUEUE = 16  # requests that may wait; further ones are refused
IN_MEMORY = 2  # models


@dataclass(frozen=True)
class Settings:
    """python -m tools.app [--name=value ...]"""

    models: FilePath = "model"  # the folder with models: every ckpt*.pt in it and in its folders
    port: int = 0  # of 127.0.0.1; 0: the first free one from 7860 on
    device: str = "auto"  # auto: cuda, else mps, else cpu; or one of them
    dtype: Dtype = "auto"  # auto: the fastest the device has; or bfloat16, float16, float32 (exact)

    def __post_init__(self):
        check(self, dict(port=0))
        if self.port > 65535:
            raise UserError(f"port={self.port} is above 65535")


class Models:
    """The checkpoints under a folder; the ones used last are in memory, ready to generate."""

    def __init__(self, settings: Settings):
        self.root = Path(settings.models)
        self.device = find_device(settings.device)
        self.dtype = find_dtype(settings.dtype, self.device)
        self.loaded, self.lock = {}, threading.Lock()  # name: (time of the file, model, tokenizer)
        self.ended = threading.Event()  # when it is set, all writing stops

    def names(self) -> list[str]:
        """Paths below the folder, the latest checkpoint first."""
        found = []
        for path in self.root.rglob("ckpt*.pt"):
            with contextlib.suppress(OSError):  # renamed by a training just now, or a link to nothing
                found.append((path.stat().st_mtime, path.relative_to(self.root).as_posix()))
        return [name for _, name in sorted(found, reverse=True)]

    def get(self, name: str):
        """(model, tokenizer). Raises UserError for a name that is not there or holds no model."""
        if name not in self.names():
            raise UserError(f"there is no checkpoint {name or ''} under {self.root}; train a model first")
        path = self.root / name
        with self.lock:
            written_at, model, tok = self.loaded.pop(name, (None, None, None))
            while len(self.loaded) >= IN_MEMORY:  # to have room before another is loaded
                del self.loaded[next(iter(self.loaded))]
            now = path.stat().st_mtime_ns
            if written_at != now:  # a training may have written a better one since
                written_at = now
                model, tok = checkpoint.build_model(checkpoint.load(path), path)
                model = pack(model.to(self.device), self.dtype)
            self.loaded[name] = written_at, model, tok  # last, and so the last to go
        return model, tok

    def write(
        self, name: str, start: str, cast: str, temperature: float, max_new_tokens: int, gone=lambda: False
    ):
        """Yield the text that continues start, ten times per second and at its end, until the reader is gone.

        Raises UserError for what cannot be written.
        """
        if len(start) > LONGEST_PROMPT:
            raise UserError(f"the scene has {len(start):,} characters; {LONGEST_PROMPT:,} are the most")
        if not (1 <= max_new_tokens <= MAX_NEW_TOKENS and 0 <= temperature <= 2):
            raise UserError(f"the length is 1 to {MAX_NEW_TOKENS:,}, the temperature 0 to 2")
        model, tok = self.get(name)
        start, _ = as_known(start or first_text(tok), tok)
        names = cast_names(cast)
        director = Director(tok, start, 1, Cast(names, tok) if names else None)
        seed = secrets.randbits(32)  # another text each time
        sampling = SampleSettings(temperature=temperature, seed=seed).sampling()
        ids = prompt_ids(tok, start, model)
        shown_at = 0.0
        for _ in stream(model, ids, int(max_new_tokens), sampling, director):
            if self.ended.is_set() or gone():
                return
            if time.monotonic() - shown_at > 0.1:
                yield director.written(0)
                shown_at = time.monotonic()
        yield director.written(0)


# a link to a file that the browser makes of the text
SAVE = """(text) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {type: "text/plain"}));
    link.download = "scene.ENDING";
    link.click();
}"""


def page(models: Models, readers: Readers):
    """The page, as gradio's Blocks. Raises UserError where gradio is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing leaves this machine
    for name in ("no_proxy", "NO_PROXY"):  # nor does it need a proxy to reach itself
        os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost")))
    gr = optional("gradio")

    def write(request: gr.Request, *values):
        began = time.monotonic()
        try:
            yield from models.write(*values, lambda: readers.gone(request.session_hash, began))
        except Exception as e:
            if not isinstance(e, (UserError, OSError)) and not is_out_of_memory(e):
                raise  # a bug
            reason = one_line(e)
            raise gr.Error(reason, title="Not written", duration=None, print_exception=False) from None

    def latest():
        names = models.names()
        return gr.Dropdown(names, value=names[0] if names else None, label="Model")

    with gr.Blocks(title="Drama GPT") as blocks:
        gr.Markdown("# Drama GPT")
        with gr.Row():
            with gr.Column(scale=1):
                name = latest()
                start = gr.Textbox("LUCIO:", lines=2, label="Start", info="the text to continue")
                cast = gr.Textbox(label="Cast", info="who may speak: LUCIO, ISABELLA; empty: anybody")
                temperature = gr.Slider(0, 2, 0.8, step=0.05, label="Temperature", info="tame to wild")
                info = "of a click, in characters or subword tokens"
                length = gr.Slider(1, MAX_NEW_TOKENS, 600, step=1, label="Length", info=info)
            with gr.Column(scale=2):
                scene = gr.Textbox(label="Scene", lines=24, max_lines=24, interactive=True)
                with gr.Row():
                    begin = gr.Button("Write", variant="primary")
                    go_on = gr.Button("Continue")
                    halt = gr.Button("Stop")
                with gr.Row():
                    as_text = gr.Button("Save as text", size="sm")
                    as_fountain = gr.Button("Save as Fountain", size="sm")
                screenplay = gr.Textbox(visible="hidden")
        blocks.load(latest, outputs=name, queue=False)  # what was trained since, too
        shared = {"outputs": scene, "show_progress": "minimal"}
        shared |= {"concurrency_limit": AT_ONCE, "concurrency_id": "writing"}
        writing = begin.click(write, [name, start, cast, temperature, length], **shared)
        going_on = go_on.click(write, [name, scene, cast, temperature, length], **shared)
        begin.click(None, cancels=going_on)
        go_on.click(None, cancels=writing)
        halt.click(None, cancels=[writing, going_on])
        as_text.click(None, scene, js=SAVE.replace("ENDING", "txt"))
        made = as_fountain.click(lambda text: fountain([text]), scene, screenplay)
        made.then(None, screenplay, js=SAVE.replace("ENDING", "fountain"))
    return blocks.queue(max_size=QUEUE)


def main():
    settings = configure(Settings, sys.argv[1:])
    models = Models(settings)
    if not models.names():
        raise UserError(f"there is no ckpt.pt under {models.root}: train a model first, or give --models")
    readers = Readers()
    here = page(models, readers)
    from starlette.middleware import Middleware  # gradio's own
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # no other web site can reach it through the browser, and no file can be uploaded
    only_here = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    gate = Middleware(Gate, readers=readers)
    try:
        _, address, _ = here.launch(
            server_name="127.0.0.1", server_port=settings.port or None, share=False, ssr_mode=False,
            max_file_size=0, app_kwargs={"middleware": [only_here, gate]}, footer_links=[],
            prevent_thread_lock=True, quiet=True,
        )  # fmt: skip
        print(f"{address} is open to this machine; Ctrl-C ends it", flush=True)
        while True:
            time.sleep(1)
    finally:
        models.ended.set()  # gradio's own end waits 5 s for the browsers
        time.sleep(0.3)  # until no thread is within PyTorch


if __name__ == "__main__":
    run_program(main)
