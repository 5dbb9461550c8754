"""CUDA graphs: what is computed again and again, recorded once and then replayed with one launch."""

import contextlib
from threading import Lock

import torch

capturing = Lock()  # CUDA allows one capture at a time


@contextlib.contextmanager
def on(stream):
    """Within, work goes to that stream, after what the current one has and before what it gets next."""
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        torch.cuda.set_stream(current)  # a capture that fails leaves another
        current.wait_stream(stream)


class CudaGraph:
    """function(*tensors), recorded as a CUDA graph at its `warm_up`-th call and replayed from then on.

    A graph is one launch where the function's operators are hundreds. The function may read and change
    tensors of its own in place, but shapes and what it does must be the same each time, and nothing in it
    may read a GPU's value. Random numbers are drawn anew, from the seed set before each call. A call
    overwrites the tensors that the one before returned. Elsewhere than on CUDA the function is just called.
    """

    def __init__(self, function, device: torch.device, warm_up: int = 1):
        self.function, self.device, self.warm_up = function, device, warm_up
        self.inputs = self.graph = self.stream = None

    def __call__(self, *tensors):
        if self.inputs is None:
            self.inputs = [tensor.clone() for tensor in tensors]
        for held, tensor in zip(self.inputs, tensors, strict=True):
            held.copy_(tensor)
        if self.device.type != "cuda":
            return self.function(*self.inputs)
        if self.graph is None:
            with capturing, torch.cuda.device(self.device):
                return self.warm()
        self.graph.replay()
        return self.result

    def warm(self):
        """A call without a graph. The last one is recorded as well: in the same thread, whose libraries it
        has set up; on a stream of its own, since a graph that is dropped frees what cuBLAS uses there."""
        self.stream = self.stream or torch.cuda.Stream(self.device)
        self.warm_up -= 1
        with on(self.stream):
            result = self.function(*self.inputs)
            if self.warm_up <= 0:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                    self.result = self.function(*self.inputs)  # recorded, not computed
                self.graph = graph
        return result
