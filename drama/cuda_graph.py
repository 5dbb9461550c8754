"""CUDA graphs: what is computed again and again, recorded once and then replayed with one launch."""

import contextlib
import sys
import weakref
from collections import defaultdict
from threading import Lock

from drama.program import going_without, is_out_of_memory

import torch

capturing = Lock()  # CUDA allows one capture at a time
idle = defaultdict(list)  # streams that no graph uses, by device: cuBLAS keeps 32 MB for each it has seen


def note(line: str):
    print(line, file=sys.stderr, flush=True)


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
    overwrites the tensors that the one before returned. Elsewhere than on CUDA the function is just called;
    so it is where it cannot be recorded, where the graph would take more memory than it leaves, or where its
    first replay computes something else, and say is given a line. The last is looked at where `changes` names
    all tensors without which a call could be made again.
    """

    def __init__(self, function, device: torch.device, warm_up: int = 1, changes=None, say=note):
        self.function, self.device, self.warm_up = function, device, warm_up
        self.changes, self.say, self.plain = changes, say, device.type != "cuda"
        self.inputs = self.stream = None
        self.recorded = []  # the graph, which goes before another may use its stream

    def __call__(self, *tensors):
        if self.inputs is None:
            self.inputs = [tensor.clone() for tensor in tensors]
        for held, tensor in zip(self.inputs, tensors, strict=True):
            held.copy_(tensor)
        if self.plain:
            with on(self.stream) if self.stream else contextlib.nullcontext():  # whose memory it has
                return self.function(*self.inputs)
        if not self.recorded:
            with capturing, torch.cuda.device(self.device):
                return self.warm()
        self.recorded[0].replay()
        return self.result

    def warm(self):
        """A call without a graph. The last one is recorded as well: in the same thread, whose libraries it
        has set up; on a stream of its own, since a graph that is dropped frees what cuBLAS uses there."""
        if self.stream is None:
            streams, recorded = idle[self.device], self.recorded
            self.stream = stream = streams.pop() if streams else torch.cuda.Stream(self.device)
            weakref.finalize(self, lambda: (recorded.clear(), streams.append(stream)))
        self.warm_up -= 1
        with on(self.stream):
            before = self.state()
            result = self.function(*self.inputs)
            if self.warm_up <= 0:
                try:
                    self.record(before, result)
                except Exception as e:  # of CUDA, or of a library that cannot be recorded
                    if is_out_of_memory(e):  # without a graph, less is enough
                        e = RuntimeError("too little memory")
                    self.say(going_without("a CUDA graph", e))
                    self.plain, self.result = True, None
        return result

    def record(self, before, expected):
        """Raises RuntimeError where the replay does not compute what was expected."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.empty_cache()
        reserved = torch.cuda.memory_reserved(self.device)
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            self.result = self.function(*self.inputs)  # recorded, not computed
        taken = torch.cuda.memory_reserved(self.device) - reserved  # and kept: evaluations cannot use it
        if taken > torch.cuda.mem_get_info(self.device)[0]:
            raise RuntimeError("it takes most of the memory")
        if self.changes is not None:
            after = self.state()
            self.restore(before)
            graph.replay()
            pairs = [(a, b) for a, b in zip(self.result, expected, strict=True) if a.is_floating_point()]
            if not all(torch.allclose(a, b, rtol=0.02, atol=0.02) for a, b in pairs):
                self.restore(after)
                raise RuntimeError("its replay computes something else")
        self.recorded.append(graph)

    def state(self) -> list:
        return [tensor.clone() for tensor in self.changes or ()]

    def restore(self, values):
        for tensor, value in zip(self.changes, values, strict=True):
            tensor.copy_(value)
