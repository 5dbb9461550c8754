"""A model in each format that tools.export writes: python -m tools.bench formats --out_dir=model/laptop

Milliseconds for a character and megabytes of a folder, on one thread, without the prompt. A character is
drawn from all that the model gives (temperature 1), by each library's own means, and a text is as long as the
model looks back. Left out: what a format has no class for, libraries that are not installed, and the page,
which says its own speed.
"""

import contextlib
import io
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from drama.program import optional

import torch

from configurator import UserError
from drama import checkpoint
from drama.generation import generate, pack
from drama.machine import find_dtype
from tools.export import Settings, export
from tools.loading import nothing_read


def by_this_project(folder: Path, path: Path, n: int, dtype: torch.dtype) -> float:
    """Seconds for n characters."""
    gpt, _ = checkpoint.build_model(checkpoint.load(path), path)
    pack(gpt, dtype)
    idx = torch.zeros(1, 1, dtype=torch.long)
    generate(gpt, idx, 20)
    start = time.perf_counter()
    generate(gpt, idx, n)
    return time.perf_counter() - start


def by_transformers(folder: Path, path: Path, n: int) -> float:
    transformers = optional("transformers")
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    idx = torch.zeros(1, 1, dtype=torch.long)
    how = dict(do_sample=True, temperature=1.0, top_k=0, attention_mask=torch.ones_like(idx))
    model.generate(idx, max_new_tokens=20, **how)
    start = time.perf_counter()
    model.generate(idx, max_new_tokens=n, **how)
    return time.perf_counter() - start


def by_onnxruntime(folder: Path, path: Path, n: int) -> float:
    onnxruntime, numpy = optional("onnxruntime"), optional("numpy")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
    start = nothing_read(model, checkpoint.load(path)["config"]["vocab_size"])
    draw = numpy.random.default_rng()
    for length in (20, n):
        state, new, begun = start, 0, time.perf_counter()
        for _ in range(length):
            logits, *kept = model.run(None, {"tokens": numpy.array([[new]]), **state})
            weights = numpy.exp(logits[0] - logits.max())
            new = draw.choice(len(weights), p=weights / weights.sum())
            state = dict(zip(start, kept, strict=True))
    return time.perf_counter() - begun


def by_llamacpp(folder: Path, path: Path, n: int) -> float:
    xllamacpp = optional("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(folder / "model.gguf"), 0, 1
    params.cpuparams.n_threads, params.verbosity = 1, -1
    server = xllamacpp.Server(params)
    job = dict(prompt="a", n_predict=n - 1, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, ignore_eos=True)
    speeds = [server.handle_completions(job)["timings"]["predicted_per_second"] for _ in range(3)]
    return n / statistics.median(speeds)


FORMATS = {  # name: how it is exported, by what it is timed
    "float32": (None, partial(by_this_project, dtype=torch.float32)),
    "bfloat16": (None, partial(by_this_project, dtype=torch.bfloat16)),
    "hf": ({}, by_transformers),
    "onnx": ({}, by_onnxruntime),
    "gguf": ({}, by_llamacpp),
    "gguf float16": (dict(to="gguf", dtype="float16"), by_llamacpp),
    "html": (dict(to="html"), None),
}


def measure_formats(path: Path, place: Path, quiet: bool) -> dict:
    """{"NAME_ms": per character, "NAME_mb": on disk} of the model at path; place is an empty folder.

    Says what a format does not take, unless quiet.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started here
    length, figures = checkpoint.load(path)["config"]["block_size"] - 1, {}
    for name, (how, seconds) in FORMATS.items():
        if name == "bfloat16" and find_dtype("auto", torch.device("cpu")) != torch.bfloat16:
            continue  # a processor without its products takes a hundred times as long
        folder = place / name
        try:
            if how is not None:
                with contextlib.redirect_stdout(io.StringIO()):
                    export(path, Settings(**{"to": name, **how, "out": str(folder)}))
                figures[f"{name}_mb"] = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
            if seconds:
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    took = pool.submit(seconds, folder, path, length).result()
                figures[f"{name}_ms"] = 1000 * took / length
        except UserError as e:
            if not quiet:
                print(f"{name}: {e}")
    return figures
