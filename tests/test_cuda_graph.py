"""CUDA graphs without a GPU: a recording that is played by calling the function again, as CUDA would."""

import collections
import contextlib
import gc
import weakref

import pytest
import torch
from helpers import tiny_model, tokens

from configurator import one_line
from drama import cuda_graph
from drama.cuda_graph import CudaGraph
from drama.sampling import generation
from drama.sampling.generation import GraphDecode, Sampling, generate
from drama.sampling.packed import KVCache

CUDA = torch.device("cuda")


class Recorder:
    """CUDA's part: what a graph records is not computed, and its replay computes it in the same tensors."""

    def __init__(self, monkeypatch):
        self.events, self.recording, self.takes, self.taken, self.free = [], False, 0, 0, 1
        self.emptied = 0
        recorder = self

        class Graph:
            def replay(self):
                recorder.events.append("replay")
                self.compute()

        def draw(numbers=None):
            """PyTorch's stream of random numbers: a replay must leave it as it was."""
            recorder.events.append("numbers" if numbers is None else f"set {numbers}")
            return 7

        class Stream:
            def __init__(self, device):
                self.device = device

            def wait_stream(self, other):
                pass

        @contextlib.contextmanager
        def record(graph, stream, capture_error_mode):
            self.events.append("record")
            self.graph, self.recording, self.taken = graph, True, self.taken + self.takes
            yield
            self.recording = False

        @contextlib.contextmanager
        def aside(stream):
            self.events.append(stream)
            yield

        monkeypatch.setattr(cuda_graph, "idle", collections.defaultdict(list))
        monkeypatch.setattr(torch.cuda, "empty_cache", self.empty)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 100 + self.taken)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (self.free, 1000))
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: draw())
        monkeypatch.setattr(torch.cuda, "set_rng_state", lambda numbers, device: draw(numbers))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "graph", record)
        monkeypatch.setattr(torch.cuda, "stream", aside)
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(device))
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: self.events.append("back"))

    def empty(self):
        self.emptied += 1

    def graph_of_a_sum(self, warm_up=1, **how):
        """A graph that adds its argument to a total, and returns that."""
        total = torch.zeros(1)
        return CudaGraph(self.adding_to(total), lambda: [total], CUDA, warm_up, **how)

    def adding_to(self, total):
        def add(x):
            result = torch.empty_like(total)

            def compute():
                result.copy_(total.add_(x))

            if self.recording:
                self.graph.compute = compute
            else:
                compute()
            return (result,)

        return add


def sums(run, *numbers) -> list[float]:
    return [run(torch.tensor([float(n)]))[0].item() for n in numbers]


@pytest.fixture
def recorder(monkeypatch):
    return Recorder(monkeypatch)


@pytest.mark.parametrize("warm_up", [1, 3])
def test_it_is_called_while_it_warms_up_then_replayed_and_no_call_counts_twice(recorder, warm_up):
    run = recorder.graph_of_a_sum(warm_up)
    assert sums(run, 1, 2, 3, 4, 5) == [1, 3, 6, 10, 15]
    called, recorded = [run.stream, "back"], [run.stream, "record", "numbers", "replay", "set 7", "back"]
    assert recorder.events == called * warm_up + recorded + ["replay"] * (4 - warm_up)
    assert run(torch.zeros(1)) is run(torch.zeros(1))  # the same tensors each time
    assert recorder.emptied == 2  # before the recording, and of the call that it was compared with


def test_each_graph_has_a_stream_to_itself_and_a_failed_one_leaves_the_current_stream(recorder):
    runs = [recorder.graph_of_a_sum() for _ in range(2)]
    for run in runs:
        sums(run, 1)
    first, second = (run.stream for run in runs)
    assert first is not second
    runs.clear()
    again = recorder.graph_of_a_sum()
    sums(again, 1)
    assert again.stream in (first, second)  # which nobody uses any more

    def fails(x):
        raise RuntimeError("CUDA out of memory.")

    recorder.events.clear()
    with pytest.raises(RuntimeError, match="out of memory"):
        CudaGraph(fails, list, CUDA)(torch.ones(1))
    assert recorder.events[-1] == "back" and not cuda_graph.capturing.locked()


def without(why: str) -> list[str]:
    return [f"a CUDA graph does not work here ({why}); going on without"]


@pytest.mark.parametrize("error, why", [
    ("operation not permitted when stream is capturing\nmore",) * 2,
    ("CUDA out of memory. Tried to allocate 2 GiB", "too little memory"),
])  # fmt: skip
def test_what_cannot_be_recorded_is_called_from_then_on_with_one_line(recorder, monkeypatch, error, why):
    def refuses(graph, stream, capture_error_mode):
        raise RuntimeError(error)

    monkeypatch.setattr(torch.cuda, "graph", refuses)
    said = []
    assert sums(recorder.graph_of_a_sum(say=said.append), 1, 2, 3, 4) == [1, 3, 6, 10]
    assert said == without(one_line(why))
    assert recorder.events[-1] == "back" and not cuda_graph.capturing.locked()


@pytest.mark.parametrize(
    "takes, free, said", [(10, 12, []), (10, 10, without("it takes most of the memory"))]
)
def test_a_graph_that_would_take_more_memory_than_it_leaves_is_not_kept(recorder, takes, free, said):
    recorder.takes, recorder.free, lines = takes, free, []
    assert sums(recorder.graph_of_a_sum(say=lines.append), 1, 2, 3, 4) == [1, 3, 6, 10]
    assert lines == said


def raising(result):
    raise RuntimeError("no such kernel")


@pytest.mark.parametrize("compute, why", [
    (lambda result: result.fill_(99.0), "its replay computes something else"),
    (lambda result: result.fill_(torch.nan), "its replay computes something else"),
    (raising, "no such kernel"),
])  # fmt: skip
def test_a_first_replay_that_goes_wrong_leaves_nothing_behind(recorder, compute, why):
    total, said = torch.zeros(1), []
    add = recorder.adding_to(total)

    def step(x):
        result = add(x)
        if recorder.recording:
            recorder.graph.compute = lambda: compute(result[0]) + total.add_(5)
        return result

    run = CudaGraph(step, lambda: [total], CUDA, say=said.append)
    assert sums(run, 1, 2, 3, 4) == [1, 3, 6, 10] and said == without(why)


def test_elsewhere_it_is_just_called_with_tensors_that_stay_in_place(recorder):
    seen = []
    run = CudaGraph(lambda x: seen.append(x.data_ptr()) or (x + 1,), list, torch.device("cpu"))
    assert sums(run, 1, 2, 3) == [2, 3, 4]
    assert len(set(seen)) == 1 and recorder.events == []


def test_a_cache_is_freed_as_soon_as_nobody_decodes_with_it():
    """On a GPU it would else be held, graph and all, until Python happens to look for cycles."""
    model = tiny_model()
    cache = KVCache(model.config, 1)
    step = GraphDecode(model, cache, Sampling())
    step(tokens(1, 1), torch.zeros(1))
    held = weakref.ref(cache)
    gc.disable()
    try:
        del cache, step
        assert held() is None
    finally:
        gc.enable()


class Looker:
    """A director that only looks, and has seen enough after so many tokens."""

    confines = False

    def __init__(self, enough):
        self.enough, self.seen, self.looks = enough, [], 0

    def confine(self, logits):
        raise AssertionError("nothing is forbidden")

    def saw(self, tokens):
        self.looks += 1
        self.seen.append(tokens)

    def done(self):
        return sum(part.size(1) for part in self.seen) >= self.enough


@pytest.mark.parametrize("enough, length, written", [(20, 100, 32), (100, 40, 40), (16, 100, 16)])
def test_on_a_gpu_a_director_looks_once_in_many_tokens_and_misses_none(monkeypatch, enough, length, written):
    model, idx, director = tiny_model(), tokens(2, 4), Looker(enough)
    plain = generate(model, idx, length)
    on_gpu = generation.seen_at_a_time
    monkeypatch.setattr(generation, "seen_at_a_time", lambda director, device: on_gpu(director, CUDA))
    out = generate(model, idx, length, director=director)
    assert out.equal(plain[:, : 4 + written]) and torch.cat(director.seen, 1).equal(out[:, 4:])
    assert director.looks == -(-written // generation.SEEN)


def test_a_director_that_forbids_sees_each_token_and_so_does_any_on_a_cpu():
    looker = Looker(1)
    assert (
        generation.seen_at_a_time(None, CUDA) == generation.seen_at_a_time(looker, torch.device("cpu")) == 1
    )
    assert generation.seen_at_a_time(looker, CUDA) == generation.SEEN
    looker.confines = True
    assert generation.seen_at_a_time(looker, CUDA) == 1


def test_decoding_goes_on_from_its_first_token_without_one_lost_to_warming_up():
    model, idx = tiny_model(arch="modern"), tokens(2, 9)
    with torch.no_grad():
        cache = KVCache(model.config, 2)
        model(idx[:, :8], cache=cache)
        step = GraphDecode(model, cache, Sampling(temperature=0))
        assert cache.length == 8
        logits, _ = step(idx[:, 8:], torch.zeros(2))
        torch.testing.assert_close(logits, model(idx)[0][:, -1])
