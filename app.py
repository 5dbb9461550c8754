"""A page to write scenes on, for the browser of this machine alone.

    pip install gradio && python app.py        then open the address it prints

Everyone who opens it shares the models in memory; each writing has its own text and its own cache.
"""

import os
import secrets
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import checkpoint
from configurator import configure, run
from generation import pack, stream
from huggingface import optional
from machine import find_device, find_dtype
from scene import Cast, Director, fountain

LONGEST_TEXT = 20_000  # characters of a start
LONGEST_WRITING = 5_000  # tokens of one click
AT_ONCE = 2  # writings at the same time; others wait in the queue
QUEUE = 16  # who waits; whoever comes then is asked to try again
MODELS = 2  # models kept in memory

SAVE = """(text) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {type: "text/plain"}));
    link.download = "scene.ENDING";
    link.click();
}"""


@dataclass(frozen=True)
class Settings:
    """python app.py [--name=value ...]"""

    models: str = "model"  # the folder whose ckpt.pt files, in it and in its folders, can be picked
    port: int = 0  # of 127.0.0.1; 0: the first free one from 7860 on
    device: str = "auto"  # auto: cuda, else mps, else cpu; or one of them
    dtype: str = "auto"  # auto: the fastest the device has; or bfloat16, float16, float32 (exact)

    def __post_init__(self):
        if not 0 <= self.port < 65536:
            raise ValueError(f"port={self.port} is not between 0 and 65535")


class Shelf:
    """The checkpoints under a folder, and the models read from them last, ready to generate."""

    def __init__(self, settings: Settings):
        self.root = Path(settings.models)
        self.device = find_device(settings.device)
        self.dtype = find_dtype(settings.dtype, self.device)
        self.models, self.lock = {}, threading.Lock()

    def names(self) -> list[str]:
        """Paths below the folder, the latest checkpoint first."""
        found = sorted(self.root.rglob("ckpt*.pt"), key=lambda path: path.stat().st_mtime, reverse=True)
        return [path.relative_to(self.root).as_posix() for path in found]

    def model(self, name: str):
        """(model, tokenizer). Raises ValueError for a name that is not on the shelf or holds no model."""
        if name not in self.names():
            raise ValueError(f"there is no checkpoint {name} under {self.root}")
        path = self.root / name
        with self.lock:
            key = (name, path.stat().st_mtime_ns)  # a training may have written a better one since
            if key not in self.models:
                model, tok = checkpoint.build_model(checkpoint.load(path), path)
                self.models[key] = pack(model.to(self.device), self.dtype), tok
                while len(self.models) > MODELS:
                    del self.models[next(iter(self.models))]
            return self.models[key]

    def write(self, name: str, start: str, cast: str, temperature: float, length: int):
        """Yield the text that continues start, ten times a second and at its end.

        Raises ValueError for what cannot be written.
        """
        if len(start) > LONGEST_TEXT:
            raise ValueError(f"the start has {len(start):,} characters; at most {LONGEST_TEXT:,} are read")
        if not (1 <= length <= LONGEST_WRITING and 0 <= temperature <= 2):
            raise ValueError(f"the length is 1 to {LONGEST_WRITING:,}, the temperature 0 to 2")
        model, tok = self.model(name)
        start = start or "\n"
        names = [name.strip() for name in cast.split(",") if name.strip()]
        director = Director(tok, start, 1, Cast(names, tok) if names else None)
        ids = torch.from_numpy(tok.encode(start).astype("int64"))[None].to(self.device)
        shown_at = 0.0
        how = {"temperature": temperature, "top_k": 200, "seed": secrets.randbits(32)}
        for _ in stream(model, ids, int(length), director=director, **how):
            if time.monotonic() - shown_at > 0.1:
                yield director.written(0)
                shown_at = time.monotonic()
        yield director.written(0)


def page(shelf: Shelf):
    """The page, as gradio's Blocks. Raises ValueError where gradio is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing leaves this machine
    gr = optional("gradio")

    def write(*request):
        try:
            yield from shelf.write(*request)
        except (ValueError, OSError) as e:
            raise gr.Error(str(e), title="Not written", duration=None) from None

    with gr.Blocks(title="Drama GPT") as blocks:
        gr.Markdown("# Drama GPT")
        with gr.Row():
            with gr.Column(scale=1):
                names = shelf.names()
                name = gr.Dropdown(names, value=names[0], label="Model")
                start = gr.Textbox("LUCIO:", lines=2, label="Start", info="the text to continue")
                cast = gr.Textbox(
                    label="Cast", info="who may speak, as in LUCIO, ISABELLA; empty: whoever the model likes"
                )
                temperature = gr.Slider(0, 2, 0.8, step=0.05, label="Temperature", info="tame to wild")
                length = gr.Slider(1, LONGEST_WRITING, 600, step=1, label="Length", info="of each writing")
            with gr.Column(scale=2):
                text = gr.Textbox(label="Scene", lines=24, max_lines=24, interactive=True, elem_id="scene")
                with gr.Row():
                    begin = gr.Button("Write", variant="primary")
                    go_on = gr.Button("Continue")
                    halt = gr.Button("Stop")
                with gr.Row():
                    as_text = gr.Button("Save as text", size="sm")
                    as_fountain = gr.Button("Save as Fountain", size="sm")
        how = {"outputs": text, "concurrency_limit": AT_ONCE, "concurrency_id": "writing"}
        how |= {"show_progress": "minimal"}
        writing = begin.click(write, [name, start, cast, temperature, length], **how)
        going_on = go_on.click(write, [name, text, cast, temperature, length], **how)
        halt.click(None, cancels=[writing, going_on])
        as_text.click(None, text, js=SAVE.replace("ENDING", "txt"))
        screenplay = gr.Textbox(visible="hidden")
        made = as_fountain.click(lambda scene: fountain([scene]), text, screenplay)
        made.then(None, screenplay, js=SAVE.replace("ENDING", "fountain"))
        blocks.load(lambda: gr.Dropdown(shelf.names()), outputs=name)  # what was trained since
    return blocks.queue(max_size=QUEUE)


def main():
    settings = configure(Settings, sys.argv[1:])
    shelf = Shelf(settings)
    if not shelf.names():
        raise ValueError(f"there is no ckpt.pt under {shelf.root}: train a model first, or give --models")
    here = page(shelf)
    how = {"prevent_thread_lock": True, "quiet": True, "ssr_mode": False, "footer_links": []}
    _, address, _ = here.launch(server_name="127.0.0.1", server_port=settings.port or None, **how)
    print(f"{address} is open to this machine; Ctrl-C ends it", flush=True)
    here.block_thread()


if __name__ == "__main__":
    run(main)
