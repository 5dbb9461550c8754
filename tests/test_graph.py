"""drama/graph.py, without a GPU: a recording that is played by calling the function again, as CUDA would."""

import contextlib

import pytest
import torch
from helpers import tiny_model, tokens

from drama import generation, graph
from drama.generation import KVCache, StaticStep, generate, pick
from drama.graph import Replayed

CUDA = torch.device("cuda")


@pytest.fixture
def recorded(monkeypatch):
    """What happens, in order. A recording notes what was called; its replay runs that in the same tensors."""
    events, calls = [], []

    class Graph:
        def replay(self):
            events.append("replay")
            replayed, into = calls[-1]
            into.copy_(replayed())

    @contextlib.contextmanager
    def within(name):
        events.append(name)
        yield
        events.append(f"end {name}")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda made, **how: within("record"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(graph, "on_side_stream", lambda device: within("aside"))
    monkeypatch.setattr(graph, "side_stream", lambda device: None)
    return events, calls


def test_it_is_called_while_it_warms_up_then_recorded_once_and_replayed(recorded):
    events, calls = recorded
    total = torch.zeros(3)

    def add(x):
        calls.append((lambda: total.add_(x), result := total.add_(x).clone()))
        return result

    run = Replayed(add, CUDA, warm_up=2)
    assert [run(torch.full((3,), float(n)))[0].item() for n in (1, 2)] == [1, 3]
    assert events == ["aside", "end aside"] * 2
    before = total.clone()
    run(torch.full((3,), 4.0))  # what is recorded is not computed, so only the replay counts on a GPU
    assert events[4:] == ["record", "end record", "replay"] and total[0] == before[0] + 8
    total.copy_(before)
    assert run(torch.full((3,), 5.0))[0] == before[0] + 5 and run.result is run(torch.zeros(3))
    assert events[7:] == ["replay"] * 2 and len(calls) == 3


def test_elsewhere_it_is_just_called_with_tensors_that_stay_in_place(recorded):
    seen = []
    run = Replayed(lambda x: seen.append(x.data_ptr()) or x + 1, torch.device("cpu"))
    assert [run(torch.tensor([n]))[0].item() for n in (1, 2, 3)] == [2, 3, 4]
    assert len(set(seen)) == 1 and recorded[0] == []


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
        step = StaticStep(model, cache, lambda logits, u: pick(logits, u, 0, None, 1.0))
        assert cache.length == 8
        logits, _ = step(idx[:, 8:], torch.zeros(2))
        torch.testing.assert_close(logits, model(idx)[0][:, -1])
