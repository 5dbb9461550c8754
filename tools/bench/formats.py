"""A model in each format that tools.export writes: milliseconds per character, and megabytes.

On one thread, without the prompt; the likeliest character each time, as many as the model looks back. Left
out: what a format has no class for, libraries that are not installed, and the page, which says its own speed.
"""

import contextlib
import io
import os
import timeit
from functools import partial
from pathlib import Path

from drama.program import optional

import torch

from configurator import UserError
from drama import checkpoint
from drama.device import find_dtype
from drama.sampling.generation import Sampling, generate
from drama.sampling.packed import halves_weights, pack
from tools.bench.programs import NanoGPT, Settings, in_a_process
from tools.export.__main__ import Settings as ExportSettings
from tools.export.__main__ import export
from tools.export.loaded import nothing_read

CPU = torch.device("cpu")

# Each of these returns write(n), which writes n characters.


def writer_here(path: Path, folder: Path, dtype: torch.dtype):
    gpt, _ = checkpoint.load_model(path)
    gpt, idx = pack(gpt, dtype), torch.zeros(1, 1, dtype=torch.long)
    return lambda n: generate(gpt, idx, n, Sampling(temperature=0))


def writer_of_transformers(path: Path, folder: Path):
    transformers = optional("transformers")
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    job = dict(attention_mask=torch.ones(1, 1, dtype=torch.long), do_sample=False)
    return lambda n: model.generate(torch.zeros(1, 1, dtype=torch.long), max_new_tokens=n, **job)


def writer_of_onnxruntime(path: Path, folder: Path):
    onnxruntime, numpy = optional("onnxruntime"), optional("numpy")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
    start = nothing_read(model, checkpoint.load(path)["config"]["vocab_size"])

    def write(n: int):
        state, new = start, 0
        for _ in range(n):
            logits, *kept = model.run(None, {"tokens": numpy.array([[new]]), **state})
            state, new = dict(zip(start, kept, strict=True)), logits.argmax()

    return write


def writer_of_llamacpp(path: Path, folder: Path):
    xllamacpp = optional("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(folder / "model.gguf"), 0, 1
    params.cpuparams.n_threads, params.verbosity = 1, -1
    server = xllamacpp.Server(params)
    return lambda n: server.handle_completions(dict(prompt="a", n_predict=n, temperature=0, ignore_eos=True))


WRITERS = {  # name: the settings of its export, and what writes with it
    "float32": (None, partial(writer_here, dtype=torch.float32)),
    "float16": (None, partial(writer_here, dtype=torch.float16)),
    "bfloat16": (None, partial(writer_here, dtype=torch.bfloat16)),
    "hf": (dict(to="hf"), writer_of_transformers),
    "onnx": (dict(to="onnx"), writer_of_onnxruntime),
    "gguf": (dict(to="gguf"), writer_of_llamacpp),
    "gguf float16": (dict(to="gguf", dtype="float16"), writer_of_llamacpp),
    "html": (dict(to="html"), None),
}


def seconds_of(writer, path: Path, folder: Path, n: int) -> float:
    """Seconds for n characters, after some to warm up."""
    write = writer(path, folder)
    write(20)
    return timeit.timeit(lambda: write(n), number=1)


def bench_formats(settings: Settings, folder: Path, nano: NanoGPT | None, n: int) -> dict:
    """{"NAME_ms": per character, "NAME_mb": on disk} of the model in out_dir."""
    if not (path := Path(settings.out_dir) / "ckpt.pt").is_file():
        raise UserError(f"{path} is missing; --out_dir names the folder of a trained model")
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started here
    length, figures = checkpoint.load(path)["config"]["block_size"] - 1, {}
    # a processor without such products takes a hundred times as long
    fast = dict(bfloat16=find_dtype("auto", CPU) == torch.bfloat16, float16=halves_weights())
    for name, (exported, writer) in WRITERS.items():
        if not fast.get(name, True):
            continue
        out = folder / f"{name} {n}"
        try:
            if exported:
                with contextlib.redirect_stdout(io.StringIO()):
                    export(path, ExportSettings(out=str(out), **exported))
                figures[f"{name}_mb"] = [sum(file.stat().st_size for file in out.iterdir()) / 1e6]
            if writer:
                seconds = in_a_process(seconds_of, writer, path, out, length)
                figures[f"{name}_ms"] = [1000 * seconds / length]
        except UserError as e:
            if n == 0:  # said once
                print(f"{name}: {e}")
    return figures
