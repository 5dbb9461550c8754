"""All that is to be known of a GPU, in one command: python -m tools.bench gpu

Each check runs in a process of its own, prints its figures beside what is expected, and does not stop the
others when it fails. At most ten minutes; the last line is JSON. Needs the repository, torch, and the default
corpus, which may be carried over as data/drama.
"""

import contextlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from drama.program import ROOT

import torch

import drama.report
import train_drama
from configurator import UserError, configure, one_line
from drama import checkpoint
from drama.dataset import load_data
from drama.generation import generate, pack, stream
from drama.machine import Machine, find_device
from drama.report import Report
from drama.run import Run
from train_drama import Settings

DEVICE = "cuda"
TIME = 570  # seconds for everything; what would begin later is left out


class Heard(Report):
    """A report that keeps the figures of its lines."""

    def begin(self, run):
        super().begin(run)
        self.rows = []

    def log(self, **values):
        self.rows.append(values)


def run(folder: str, *config, **settings) -> dict:
    """Train: milliseconds (median of all lines but the first), MFU, seconds, GB, losses, graphs."""
    asked = [str(ROOT / "config" / name) for name in config]
    asked += [f"--{name}={value}" for name, value in settings.items()]
    report = Heard()
    torch.cuda.reset_peak_memory_stats(DEVICE)
    start = time.perf_counter()
    result = train_drama.train(
        configure(Settings, [f"--device={DEVICE}", "--init_from=scratch", f"--out_dir={folder}", *asked]),
        report=report,
    )
    seconds = time.perf_counter() - start
    lines = [row for row in report.rows if "loss" in row]
    figures = dict(
        ms=statistics.median(row["time_ms"] for row in lines[1:] or lines),
        mfu_percent=100 * statistics.median(row["mfu"] for row in lines[1:] or lines),
        seconds=seconds,
        memory_gb=torch.cuda.max_memory_allocated(DEVICE) / 1e9,
        loss=lines[-1]["loss"],
        val_loss=result["best_val_loss"],
    )
    if "torch._dynamo" in sys.modules:
        counters = torch._dynamo.utils.counters
        figures |= dict(
            graphs=counters["stats"]["unique_graphs"], breaks=sum(counters["graph_break"].values())
        )
    return figures


# ---------------------------------------------------------------------------- the checks

# Each takes a folder to write in and returns {figure: value}; its docstring says what is expected.


def tests(folder: str) -> dict:
    """all that need CUDA pass"""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "cuda", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return dict(status=done.returncode, last=(done.stdout.strip().splitlines() or [done.stderr[-200:]])[-1])


def eager(folder: str) -> dict:
    """300 iterations of the default run: A100 16 to 20 ms, H100 10 to 12 ms; less than 2.5 GB"""
    return run(folder, max_iters=300, compile=False)


def compiled(folder: str) -> dict:
    """the same compiled: A100 10 to 12 ms, H100 5.5 to 7 ms; one or two graphs, no breaks"""
    return run(folder, max_iters=300, compile=True)


def captured(folder: str) -> dict:
    """the same, each iteration one CUDA graph: no slower than eager, default and fast.py, and its losses"""
    figures = {}
    for name, config in (("default", []), ("fast", ["fast.py"])):
        for graph in (False, True):
            few = dict(max_iters=100, log_interval=20, eval_iters=1, compile=False, cuda_graph=graph)
            found = run(folder, *config, **few)
            figures |= {f"{name}_{'graph' if graph else 'eager'}_{key}": found[key] for key in ("ms", "loss")}
    return figures


def captured_and_compiled(folder: str) -> dict:
    """the same with compiled blocks: A100 9 to 11 ms, H100 5 to 6 ms"""
    return run(folder, max_iters=300, compile=True, cuda_graph=True)


def like_the_cpu(folder: str) -> dict:
    """losses of the CPU within 1 %, from the same seed without dropout"""
    small = dict(dropout=0.0, max_iters=8, log_interval=8, eval_iters=1, batch_size=16, warmup_iters=2)
    losses = [run(folder, device=device, dtype=dtype, compile=False, **small)["loss"]
              for device, dtype in (("cpu", "float32"), (DEVICE, "float32"), (DEVICE, "auto"))]  # fmt: skip
    return dict(cpu=losses[0], float32=losses[1], auto=losses[2])


def float16(folder: str) -> dict:
    """as a T4 trains, with AdamW and with Muon: losses as bfloat16's within 2 %"""
    few = dict(max_iters=100, eval_iters=1, compile=False)
    return {f"{optimizer}_{dtype}": run(folder, "fast.py", optimizer=optimizer, dtype=dtype, **few)["loss"]
            for optimizer in ("adamw", "muon") for dtype in ("bfloat16", "float16")}  # fmt: skip


def kernels(folder: str) -> dict:
    """a flash or cuDNN kernel for attention; the ten kernels that take most of a compiled iteration"""
    from torch.profiler import ProfilerActivity, profile

    settings = Settings(out_dir=folder, compile=True)
    machine = Machine(find_device(DEVICE), torch.bfloat16)
    this = Run(settings, machine, load_data(settings.dataset, settings.block_size, machine))
    step = train_drama.ready_to_train(this, quiet())
    for _ in range(3):
        train_drama.update(step, this, 1e-4)
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        train_drama.update(step, this, 1e-4)
        machine.wait()
    on_gpu = [event for event in found.key_averages() if event.self_device_time_total]
    on_gpu.sort(key=lambda event: -event.self_device_time_total)
    attention = {
        e.key[:60] for e in on_gpu if any(word in e.key.lower() for word in ("flash", "fmha", "cudnn"))
    }
    top = {event.key[:60]: round(event.self_device_time_total / 1000, 3) for event in on_gpu[:10]}
    return dict(
        attention=sorted(attention), top_ms=top, all_ms=sum(e.self_device_time_total for e in on_gpu) / 1000
    )


def fast(folder: str) -> dict:
    """config/fast.py: validation loss below 1.49 on the default corpus, in seconds"""
    return run(folder, "fast.py", compile=False)


def fast_compiled(folder: str) -> dict:
    """the same compiled, compiling included: worth it where seconds are fewer"""
    return run(folder, "fast.py", compile=True)


def best(folder: str) -> dict:
    """config/best.py: validation loss below 1.42 on the default corpus"""
    return run(folder, "best.py", compile=False)


def sampling(folder: str) -> dict:
    """characters per second: H100 1,450 for one text, 20,000 for ten; more of each with the graph"""
    gpt, figures = trained(folder), {}
    for rows in (1, 10):
        for graph in (True, False):
            idx = torch.zeros(rows, 1, dtype=torch.long, device=DEVICE)
            generate(gpt, idx, 20, graph=graph)
            torch.cuda.synchronize()
            start = time.perf_counter()
            generate(gpt, idx, 500, temperature=0.8, top_p=0.9, graph=graph).cpu()
            per_second = rows * 500 / (time.perf_counter() - start)
            figures[f"{rows}_{'graph' if graph else 'eager'}"] = per_second
    return figures


class Same:
    """A director that keeps the logits and dictates the tokens, so that two ways of decoding compare."""

    confines = True

    def __init__(self, tokens):
        self.tokens, self.logits = tokens, []

    def confine(self, logits):
        self.logits.append(logits.clone())
        token = self.tokens[:, len(self.logits) - 1, None]
        return torch.full_like(logits, -math.inf).scatter(1, token, 0.0)

    def saw(self, tokens):
        pass

    def done(self):
        return False


def graph_equals_eager(folder: str) -> dict:
    """logits of the graph within 1e-2 of those without, for 1 and 10 texts, past block_size"""
    gpt, figures = trained(folder), {}
    for rows in (1, 10):
        tokens = torch.randint(gpt.config.vocab_size, (rows, 400), device=DEVICE)
        kept = []
        for graph in (True, False):
            kept.append(Same(tokens))
            generate(gpt, tokens[:, :1], 400, director=kept[-1], graph=graph)
        a, b = (torch.stack(director.logits) for director in kept)
        figures[f"difference_{rows}"] = (a - b).abs().max().item()
    return figures


def memory_of_many_texts(folder: str) -> dict:
    """the same GB reserved after 50 texts as after 5"""
    gpt, reserved = trained(folder), []
    for _ in range(50):
        generate(gpt, torch.zeros(1, 1, dtype=torch.long, device=DEVICE), 20)
        reserved.append(torch.cuda.memory_reserved() / 1e9)
    return dict(after_5=reserved[4], after_50=reserved[-1])


def a_graph_is_dropped_beside_another(folder: str) -> dict:
    """the same text as without: a graph survives when others come and go"""
    gpt = trained(folder)
    idx = torch.zeros(1, 1, dtype=torch.long, device=DEVICE)
    plain = generate(gpt, idx, 300, graph=False)
    tokens, written = stream(gpt, idx, 300), []
    for n, token in enumerate(tokens):
        written.append(token)
        if n % 50 == 10:
            generate(gpt, idx.expand(1 + n // 50, -1), 40)
            torch.empty(1 << 20, device=DEVICE).normal_()
    same = torch.cat([idx, *written], dim=1) == plain
    return dict(equal_tokens=int(same.cumprod(1).sum()), of=plain.numel())


def out_of_memory_in_a_sample(folder: str) -> dict:
    """one line says so, and training goes on"""
    real, failures = drama.report.generate, []

    def fails(*args, **kwargs):
        failures.append(1)
        torch.empty(1 << 50, device=DEVICE)  # more than any GPU has

    drama.report.generate = fails
    try:
        return run(folder, max_iters=40, sample_interval=20, eval_iters=1) | dict(failures=len(failures))
    finally:
        drama.report.generate = real


def two_processes(folder: str) -> dict:
    """two GPUs train as one does: losses within 2 %"""
    if torch.cuda.device_count() < 2:
        return dict(left_out="there is one GPU")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["train_drama.py", "--max_iters=50", "--eval_iters=1", f"--out_dir={folder}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    alone = run(folder + "/one", max_iters=50, eval_iters=1)
    return dict(
        status=done.returncode, last=(done.stdout.strip().splitlines() or [""])[-2:], alone=alone["loss"]
    )


def two_writers_while_a_third_loads(folder: str) -> dict:
    """no error: the page does this"""
    path, errors = Path(folder) / "ckpt.pt", []
    trained(folder)

    def write(n: int):
        try:
            for _ in range(5):
                generate(
                    pack(load(path), torch.bfloat16), torch.zeros(n, 1, dtype=torch.long, device=DEVICE), 100
                )
        except Exception as e:  # whatever it is, it is the finding
            errors.append(one_line(e)[:200])

    threads = [threading.Thread(target=write, args=(n,)) for n in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return dict(errors=errors)


CHECKS = (
    eager, compiled, captured, captured_and_compiled, sampling, graph_equals_eager, like_the_cpu, float16,
    memory_of_many_texts, a_graph_is_dropped_beside_another, out_of_memory_in_a_sample,
    two_writers_while_a_third_loads, kernels, fast, fast_compiled, two_processes, tests, best,
)  # fmt: skip


# ---------------------------------------------------------------------------- what they share


def quiet() -> Report:
    report = Report()
    report.say = lambda text: None
    return report


def load(path: Path):
    return checkpoint.build_model(checkpoint.load(path), path)[0].to(DEVICE)


def trained(folder: str):
    """The default model after one iteration, packed in bfloat16."""
    if not (Path(folder) / "ckpt.pt").exists():
        run(folder, max_iters=1, eval_interval=1, eval_iters=1, compile=False)
    return pack(load(Path(folder) / "ckpt.pt"), torch.bfloat16)


def one_check(name: str, folder: str) -> dict:
    """In a process of its own: what it prints goes nowhere."""
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
        return globals()[name](folder)


def report_gpu() -> dict:
    """What is here: card, driver, builds. Prints it."""
    found = dict(
        gpu=torch.cuda.get_device_name(), count=torch.cuda.device_count(), torch=torch.__version__,
        capability=".".join(map(str, torch.cuda.get_device_capability())), cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        memory_gb=torch.cuda.get_device_properties(0).total_memory / 1e9,
    )  # fmt: skip
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    print(", ".join(f"{name} {value}" for name, value in found.items()), flush=True)
    return found


def shown(figures: dict) -> str:
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())


def bench_gpu(names=()) -> dict:
    """Run the checks of these names, or all; prints each beside what is expected, then all as JSON."""
    unknown = set(names) - {check.__name__ for check in CHECKS}
    if unknown:
        raise UserError(f"{unknown.pop()} is none of {', '.join(check.__name__ for check in CHECKS)}")
    find_device(DEVICE)
    until = time.monotonic() + TIME
    figures = report_gpu()
    for check in CHECKS:
        name = check.__name__
        if names and name not in names:
            continue
        print(f"\n{name}: expected: {check.__doc__}", flush=True)
        if time.monotonic() > until:
            found = dict(left_out="no time left")
        else:
            with tempfile.TemporaryDirectory() as folder:
                found = in_a_process(name, folder, until)
        figures[name] = found
        print(f"    {shown(found)}", flush=True)
    print(json.dumps(figures))
    return figures


def in_a_process(name: str, folder: str, until: float) -> dict:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        job = pool.submit(one_check, name, folder)
        try:
            return job.result(max(1.0, until - time.monotonic()))
        except TimeoutError:
            for process in list(pool._processes.values()):
                process.kill()
            return dict(failed="no time left")
        except Exception as e:  # whatever it is, it is the finding
            return dict(failed=f"{type(e).__name__}: {one_line(e)[:300]}")
