"""The time of a run: all of it, and that of its iterations alone."""

import contextlib
import time

from drama.training.machine import Machine


class Clock:
    """Starts when it is made. pauses: the seconds that the last pause of each kind took."""

    def __init__(self, now=time.perf_counter):
        self.now, self.start = now, now()
        self.pauses, self.paused_for = {}, 0.0

    def total(self) -> float:
        """Seconds since the start."""
        return self.now() - self.start

    def iterating(self) -> float:
        """The same without pauses."""
        return self.total() - self.paused_for

    @contextlib.contextmanager
    def paused(self, kind: str, machine: Machine):
        """What is done within (an "evaluation", say) is not part of the iterations' time."""
        machine.wait()
        begin = self.now()
        yield
        self.pauses[kind] = self.now() - begin
        self.paused_for += self.pauses[kind]
