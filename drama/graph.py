"""CUDA graphs: what is computed again and again, recorded once and then replayed with one launch."""

import contextlib
from functools import lru_cache
from threading import Lock

import torch

capturing = Lock()  # CUDA allows one capture at a time


@lru_cache
def side_stream(device: torch.device):
    """One stream for all captures on a device: each stream keeps a workspace of cuBLAS for itself."""
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def on_side_stream(device: torch.device):
    """Within, work goes to the side stream, after what the current one has and before what it gets next."""
    side, current = side_stream(device), torch.cuda.current_stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        yield
    current.wait_stream(side)


class Replayed:
    """function(*tensors), recorded as a CUDA graph after `warm_up` calls and replayed from then on.

    A graph is one launch where the function's operators are hundreds. The function may read and change
    tensors of its own in place, but shapes and what it does must be the same each time, and nothing in it
    may read a GPU's value. Random numbers are drawn anew, from the seed set before each call. A call
    overwrites the tensors that the one before returned. Elsewhere than on CUDA the function is just called.
    """

    def __init__(self, function, device: torch.device, warm_up: int = 1):
        self.function, self.device, self.warm_up = function, device, warm_up
        self.inputs = self.graph = None

    def __call__(self, *tensors):
        if self.inputs is None:
            self.inputs = [tensor.clone() for tensor in tensors]
        for held, given in zip(self.inputs, tensors, strict=True):
            held.copy_(given)
        if self.device.type != "cuda":
            return self.function(*self.inputs)
        if self.graph is None:
            with capturing, torch.cuda.device(self.device):
                if self.warm_up:  # libraries set themselves up, and state is allocated, outside of the graph
                    self.warm_up -= 1
                    with on_side_stream(self.device):
                        return self.function(*self.inputs)
                graph, stream = torch.cuda.CUDAGraph(), side_stream(self.device)
                with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                    self.result = self.function(*self.inputs)
            self.graph = graph
        self.graph.replay()
        return self.result
