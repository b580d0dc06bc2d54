"""How things are measured here: interleaved rounds, medians, forwards as the unit of time, bytes over the model."""

import contextlib
import io
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping

import torch

Run = Callable[[], object]
CLOCK = {"timer": time.perf_counter}  # or the processor's time, on a machine that others use


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the peers' progress bars, notices and warnings."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def interleaved(runs: Mapping[str, Run], rounds: int, warm: int = 2) -> dict[str, list[float]]:
    """Seconds of every run, taken in turn A B C A B C …, so that a drifting machine drifts under all of them alike."""
    for _ in range(warm):
        for run in runs.values():
            run()
    took: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = CLOCK["timer"]()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            took[name].append(CLOCK["timer"]() - start)
    return took


def in_forwards(took: Mapping[str, list[float]], unit: str = "forward") -> dict[str, tuple[float, float, float]]:
    """Median, and the middle half's ends, of each run's time over the plain forward pass of the same round."""
    table = {}
    for name, times in took.items():
        ratios = sorted(t / u for t, u in zip(times, took[unit], strict=True))
        quarter = len(ratios) // 4
        table[name] = (statistics.median(ratios), ratios[quarter], ratios[-1 - quarter])
    return table


def peak_bytes(run: Run) -> int:
    """Peak resident memory of one run over what was resident before it (Linux; the process should do nothing else)."""
    before = resident()
    run()
    return resident_at_most() - before


def resident() -> int:
    """Bytes of this process in memory now; `resident_at_most` counts from here."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as reset:
        reset.write("5")
    return _field("VmRSS", "self")


def resident_at_most(process: int | str = "self") -> int:
    """The most bytes of a process that have been in memory."""
    return _field("VmHWM", process)


def _field(name: str, process: int | str) -> int:
    with open(f"/proc/{process}/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(name))
