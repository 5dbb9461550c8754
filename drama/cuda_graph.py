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
    """function(*tensors), recorded as a CUDA graph after `warm_up` calls and replayed from then on.

    A graph is one launch where the function's operators are hundreds. The function may read and change
    tensors of its own in place, but shapes and what it does must be the same each time, and nothing in it
    may read a GPU's value. It returns a tuple or dictionary of tensors, which the next call overwrites.
    Random numbers are drawn anew, from the seed set before each call. Elsewhere than on CUDA the function is
    just called; so it is where it cannot be recorded, where the graph would take more memory than it leaves,
    or where its first replay computes something else, and say is given a line. changes() lists the tensors
    without which a call could be made again.
    """

    def __init__(self, function, changes, device: torch.device, warm_up: int = 1, say=note):
        self.function, self.changes, self.device = function, changes, device
        self.warm_up, self.say, self.plain = warm_up, say, device.type != "cuda"
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
        """A call without a graph, the last of them after a replay with which it is compared. All in one
        thread, whose libraries are set up then, and on a stream of its own, since a graph that is dropped
        frees what cuBLAS uses there."""
        if self.stream is None:
            streams, recorded = idle[self.device], self.recorded
            self.stream = stream = streams.pop() if streams else torch.cuda.Stream(self.device)
            weakref.finalize(self, lambda: (recorded.clear(), streams.append(stream)))
        with on(self.stream):
            replayed = None
            if self.warm_up == 0:
                try:
                    replayed = self.record()
                except Exception as e:  # of CUDA, or of a library that cannot be recorded
                    # without a graph, less memory is enough
                    self.go_without(RuntimeError("too little memory") if is_out_of_memory(e) else e)
            self.warm_up -= 1
            result = self.function(*self.inputs)
            if replayed and all(map(close, replayed, values(result))):
                torch.cuda.empty_cache()  # this call took as much as the graph, which has its own
            elif replayed:
                self.go_without(RuntimeError("its replay computes something else"))
            return result

    def record(self) -> list:
        """Record the graph; what its first replay returns, after which all is as it was before."""
        graph = torch.cuda.CUDAGraph()
        torch.cuda.empty_cache()
        reserved = torch.cuda.memory_reserved(self.device)
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            self.result = self.function(*self.inputs)  # recorded, not computed
        taken = torch.cuda.memory_reserved(self.device) - reserved  # and kept: evaluations cannot use it
        # the call after it takes about as much
        if 1.1 * taken > torch.cuda.mem_get_info(self.device)[0]:
            raise RuntimeError("it takes most of the memory")
        changed, random = self.changes(), torch.cuda.get_rng_state(self.device)
        before = [tensor.clone() for tensor in changed]
        try:
            graph.replay()
            replayed = [value.clone() for value in values(self.result)]
        finally:
            torch.cuda.set_rng_state(random, self.device)
            with torch.no_grad():
                for tensor, value in zip(changed, before, strict=True):
                    tensor.copy_(value)
        self.recorded.append(graph)
        return replayed

    def go_without(self, error: Exception):
        self.say(going_without("a CUDA graph", error))
        self.recorded.clear()
        self.plain, self.result = True, None


def values(result) -> list:
    return list(result.values() if isinstance(result, dict) else result)


def close(a, b) -> bool:
    """Whether two results are the same but for rounding; tokens follow from logits, and may not be."""
    return not a.is_floating_point() or torch.allclose(a, b, rtol=0.02, atol=0.02)
