"""What a machine does to a run: processes die, several read what one writes."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
import torch.distributed as dist
from helpers import ROOT, SHORT, SMALL, STARTED, equal, flags, start

from drama import checkpoint
from drama.training.machine import store_of_this_start

ENVIRON = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

# Dies in the middle of a save: at the given call of the given function, before or after it has run.
DIE = """
import os, sys, torch
from drama import checkpoint
name, when = sys.argv[1:]
module = torch if name == "save" else os
real = getattr(module, name)
def dying(*args, **how):
    if when == "half":  # some of the bytes are there
        args[1].write(b"half of a file")
        args[1].flush()
    if when == "after":
        real(*args, **how)
    os._exit(9)
state = checkpoint.load("ckpt.pt")
state["val_loss"] = 2.0
setattr(module, name, dying)
checkpoint.save("ckpt.pt", state)
"""


@pytest.mark.parametrize("function, when", [
    ("save", "before"), ("save", "half"), ("save", "after"), ("fsync", "before"), ("fsync", "after"),
    ("replace", "before"), ("replace", "after"),
])  # fmt: skip
def test_a_process_that_dies_inside_a_save_leaves_a_whole_file(tmp_path, function, when):
    path = tmp_path / "ckpt.pt"
    weights = torch.arange(100_000.0)
    checkpoint.save(path, {"model": weights, "val_loss": 1.0})
    done = subprocess.run([sys.executable, "-c", DIE, function, when], cwd=tmp_path, env=ENVIRON)
    assert done.returncode == 9
    found = checkpoint.load(path)
    assert torch.equal(found["model"], weights)
    assert found["val_loss"] == (2.0 if (function, when) == ("replace", "after") else 1.0)
    checkpoint.save(path, found)  # and what was left beside it is in nobody's way
    assert os.listdir(tmp_path) == ["ckpt.pt"]


# Forks trainings and kills them, without importing torch for each. Prints a JSON line at the end.
KILL = """
import csv, json, os, random, shutil, signal, sys, time
import torch
import train_drama
from configurator import UserError
from drama import checkpoint
from drama.training import machine
from drama.training.report import Report
torch.set_num_threads(1)
trials, settings = int(sys.argv[1]), json.loads(sys.argv[2])
draw = random.Random(0)
machine.MEASURED_FOR = 0.02  # else that would be most of a trial

def begin(out_dir):
    child = os.fork()
    if child:
        return child
    os.dup2(os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    ended = 1
    try:
        train_drama.train(train_drama.Settings(**settings, out_dir=out_dir), report=Report())
        ended = 0
    finally:
        os._exit(ended)

def finish(out_dir):
    began = time.monotonic()
    assert os.waitpid(begin(out_dir), 0)[1] == 0
    return time.monotonic() - began

def found(out_dir):
    parts = [checkpoint.load(f"{out_dir}/{name}") for name in ("ckpt.pt", "last.pt")]
    rows = list(csv.DictReader(open(f"{out_dir}/log.csv")))
    return [{**part, "settings": 0} for part in parts], [(r["iter"], r["loss"], r["val_loss"]) for r in rows]

finish("warm")  # the first takes longer
seconds = finish("whole")
whole = found("whole")
figures = dict(killed=0, inside_a_save=0, damaged=0, different=0)
while figures["killed"] < trials:
    out_dir = f"trial{figures['killed']}"
    child = begin(out_dir)
    time.sleep(draw.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if status != signal.SIGKILL:  # it was done before
        assert status == 0
        seconds *= 0.9
        shutil.rmtree(out_dir)
        continue
    figures["killed"] += 1
    if os.path.isdir(out_dir):
        figures["inside_a_save"] += any(name.endswith(".tmp") for name in os.listdir(out_dir))
        for name in {"ckpt.pt", "last.pt"} & set(os.listdir(out_dir)):
            try:
                checkpoint.load(f"{out_dir}/{name}")
            except UserError:
                figures["damaged"] += 1
    finish(out_dir)
    same = checkpoint.digest(found(out_dir)) == checkpoint.digest(whole)
    figures["different"] += not same or any(n.endswith(".tmp") for n in os.listdir(out_dir))
    shutil.rmtree(out_dir)
print(json.dumps(figures))
"""


def test_runs_killed_at_random_moments_go_on_to_the_unbroken_run_s_files(corpus, thorough, figures):
    length, trials = (100, 100) if thorough else (24, 4)
    settings = {**SMALL, "max_iters": length, "lr_decay_iters": length, "eval_interval": 8}
    settings |= {"save_minutes": 0, "device": "cpu", "dtype": "float32"}  # most of its time goes into saving
    process = start(corpus, "-c", KILL, trials, json.dumps(settings), env=ENVIRON)
    out, err = process.communicate(timeout=2400)
    assert process.returncode == 0, err
    counted = json.loads(out)
    figures(f"killed at random moments: {counted}")
    assert counted["killed"] == trials and (counted["damaged"], counted["different"]) == (0, 0)


WRITE = """
import torch
from drama import checkpoint
n = 0
while True:
    n += 1
    checkpoint.save("ckpt.pt", {"model": torch.full((20_000,), float(n)), "val_loss": float(n)})
"""


def test_readers_of_a_file_that_is_always_being_written_never_see_a_mixture(tmp_path):
    path = tmp_path / "ckpt.pt"
    checkpoint.save(path, {"model": torch.zeros(20_000), "val_loss": 0.0})
    writer = start(tmp_path, "-c", WRITE, env=ENVIRON)
    seen, reads = set(), 0
    until = time.monotonic() + 300
    while reads < 500 or len(seen) < 50:
        state = checkpoint.load(path)
        assert (state["model"] == state["val_loss"]).all()
        seen.add(state["val_loss"])
        reads += 1
        assert time.monotonic() < until and writer.poll() is None


# Two trainings, one after the other; in "broken", the second process is killed at iteration 12, once.
TRAIN = """
import os, signal, sys
from dataclasses import replace
from drama.program import run_program
import torch.distributed as dist
import train_drama
from configurator import configure
from drama.training.dataset import Corpus, load_data
from drama.training.machine import training_machine
from drama.training.report import Report

class Killed(Corpus):
    def batches(self, settings, iteration, machine):
        if settings.out_dir == "broken" and (iteration, machine.rank) == (12, 1):
            if not os.path.exists("killed"):
                open("killed", "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().batches(settings, iteration, machine)

def main():
    settings = configure(train_drama.Settings, sys.argv[1:])
    machine = training_machine(settings.device, settings.dtype)
    corpus = Killed(**vars(load_data("drama", settings.block_size, machine)))
    for out_dir in ("whole", "broken"):
        train_drama.train(replace(settings, out_dir=out_dir), machine, corpus, Report())
    dist.barrier()
    dist.destroy_process_group()  # or gloo's threads may abort the process at its end

run_program(main)
"""
JOB = {**SMALL, **SHORT, "log_interval": 1, "save_minutes": 0}
JOB |= {"device": "cpu", "dtype": "float32"}


def the_same_run(corpus):
    a, b = (checkpoint.load(corpus / name / "last.pt") for name in ("whole", "broken"))
    assert a["next_iteration"] == b["next_iteration"] == 21 and equal(a["model"], b["model"])


def test_a_job_whose_worker_is_killed_restarts_and_ends_with_the_unbroken_run_s_weights(corpus):
    (corpus / "program.py").write_text(TRAIN)
    job = start(
        corpus, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max-restarts=1",
        "program.py", *flags(**JOB), env=ENVIRON, stderr=subprocess.STDOUT,
    )  # fmt: skip
    out, _ = job.communicate(timeout=300)
    assert job.returncode == 0 and out.count("continuing at iteration 12") == 1, out
    the_same_run(corpus)


def test_processes_that_start_again_do_not_meet_the_dead_in_the_store():
    store, rounds = dist.HashStore(), []
    for start_count in range(3):
        found = {}

        def join(rank, found=found, start_count=start_count):
            mine = store_of_this_start(store, rank, 3)
            mine.set(f"address/{rank}", str(start_count))
            found[rank] = [mine.get(f"address/{other}").decode() for other in range(3)]

        threads = [threading.Thread(target=join, args=(rank,)) for rank in (0, 1, 2)]
        for thread in threads:
            thread.start()
            time.sleep(0.05)  # the first one sees the names of the dead before the living have called
        for thread in threads:
            thread.join(timeout=300)
        rounds.append(found)
    assert rounds == [{rank: [str(n)] * 3 for rank in range(3)} for n in range(3)]


@pytest.fixture
def two_hosts():
    """Two network namespaces with a cable between them: [(name, address), ...]."""
    hosts = [(f"drama{os.getpid()}{n}", f"10.81.0.{n + 1}") for n in (0, 1)]
    made = []

    def ip(*words):
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        try:
            for name, _ in hosts:
                ip("netns", "add", name)
                made.append(name)
            ip("link", "add", "cable0", "netns", hosts[0][0], "type", "veth",
               "peer", "name", "cable1", "netns", hosts[1][0])  # fmt: skip
            for n, (name, address) in enumerate(hosts):
                ip("-n", name, "address", "add", f"{address}/24", "dev", f"cable{n}")
                ip("-n", name, "link", "set", f"cable{n}", "up")
                ip("-n", name, "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as e:
            pytest.skip(f"network namespaces are not permitted here: {e}")
        yield hosts
    finally:
        for name in made:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def test_two_hosts_train_as_one_job_and_survive_the_death_of_a_worker(corpus, two_hosts):
    (corpus / "program.py").write_text(TRAIN)
    hosts = []
    for n, (name, address) in enumerate(two_hosts):
        environ = {**ENVIRON, "GLOO_SOCKET_IFNAME": f"cable{n}", "PYTHONFAULTHANDLER": "1"}
        command = [
            "ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes=2",
            "--nproc_per_node=1", "--rdzv_backend=c10d", f"--rdzv_endpoint={two_hosts[0][1]}:29500",
            "--rdzv_id=plays", f"--local_addr={address}", "--max-restarts=2",
            f"--rdzv_conf=is_host={1 - n}",  # which it would find out from its name
            "program.py", *flags(**JOB),
        ]  # fmt: skip
        with open(corpus / f"{n}.txt", "w") as out:
            hosts.append(
                subprocess.Popen(command, cwd=corpus, env=environ, stdout=out, stderr=subprocess.STDOUT)
            )
    STARTED.extend(hosts)

    def printed():
        return "".join((corpus / f"{n}.txt").read_text() for n in (0, 1))

    try:
        statuses = [host.wait(timeout=300) for host in hosts]
    except subprocess.TimeoutExpired:  # say where each of them waits
        for host in hosts:
            # `ip netns exec` becomes torchrun itself: its child is the worker
            subprocess.run(["pkill", "-ABRT", "-P", str(host.pid)], check=False)
            host.send_signal(signal.SIGABRT)
        time.sleep(2)
        pytest.fail(printed())
    assert statuses == [0, 0], printed()
    assert printed().count("continuing at iteration 12") == 1 and "2 processes" in printed()
    assert printed().count("iter 20:") == 2  # each training's, from one of the processes
    the_same_run(corpus)
