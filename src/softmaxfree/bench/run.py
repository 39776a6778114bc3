"""Times contestants in turns, each only after its results were checked."""

import dataclasses
import datetime
import logging
import math
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager

import torch

from softmaxfree.bench.registry import FORWARD, SUITES, TRAIN
from softmaxfree.bench.trial import Trial
from softmaxfree.bench.worker import Worker
from softmaxfree.errors import InputError
from softmaxfree.machine import describe

__all__ = ["Row", "run"]

_log = logging.getLogger(__name__)

# of a contestant's turn at least, and of all its turns together, about; its turns, at least and at most
_TURN_SECONDS, _ALL_SECONDS = 0.02, 8.0
_MIN_TURNS, _MAX_TURNS = 3, 40


@dataclasses.dataclass
class Row:
    """One measurement with all that it depends on; the fields are the columns of the CSV."""

    suite: str
    name: str
    batch: int
    size: int
    dtype: str
    compiled: bool
    what: str
    median_ms: float
    p20_ms: float
    p80_ms: float
    runs: int
    peak_mib: float
    error: float
    device: str
    threads: int
    torch: str
    timm: str
    softmaxfree: str
    commit: str
    date: str


def run(
    suite_name: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    only: Sequence[str] = (),
    sizes: Sequence[int] = (),
    max_seconds: float = 60,
    forward_only: bool = False,
    compiled: bool = False,
) -> Iterator[Row]:
    """Yields a row for each pass, shape and contestant.

    Contestants take turns, so that a machine that others slow down for a while slows down all of them; a slow one takes
    fewer. Each has a process of its own. One that cannot run (out of memory, a dtype that a peer does not know) is
    logged and left out.

    Args:
        suite_name: one of `registry.SUITES`.
        device: CPU or CUDA.
        dtype: of an attention's inputs; models in half dtypes run under autocast.
        only: names of contestants; none: all.
        sizes: sizes of shapes; none: all.
        max_seconds: for one run; what smaller sizes let expect to take longer is left out.
        forward_only: leave out the backward pass, which needs more memory.
        compiled: time each contestant under `torch.compile`.

    Yields:
        Measurements.

    Raises:
        InputError: for an unknown suite, name or size, or a contestant whose results are wrong.
    """
    _require_known("suite", [suite_name], SUITES)
    suite = SUITES[suite_name]
    _require_known("only", only, suite.contestants)
    _require_known("size", sizes, sorted({size for _, size in suite.shapes}))
    about = describe(device)
    errors: dict[str, float] = {}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        for name in only or suite.contestants:
            with _left_out(name, dtype):
                errors[name], allowed = Trial(suite, suite.contestants[name], device, dtype, compiled).errors()
                if not errors[name] <= allowed:
                    raise InputError(f"{name} is wrong and not timed: error {errors[name]:.1e}, allowed {allowed:.1e}")
                workers[name] = stack.enter_context(closing(Worker(suite_name, name, device, dtype, compiled)))
        for what in (FORWARD,) if forward_only else (FORWARD, TRAIN):
            # seconds at each size so far
            known: dict[str, list[tuple[int, float]]] = {
                name: [] for name in workers if suite.contestants[name].does(what)
            }
            for batch, size in suite.shapes:
                if sizes and size not in sizes:
                    continue
                ready = {}
                for name in list(known):
                    if _expected_seconds(known[name], size) <= max_seconds:
                        times = known.pop(name)  # back once it has run
                        with _left_out(name, dtype):
                            workers[name].prepare(what, batch, size)
                            ready[name], known[name] = workers[name], times
                for name, seconds in _take_turns(ready).items():
                    if batch == 1:
                        known[name].append((size, statistics.median(seconds)))
                    p20, median, p80 = (round(1e3 * t, 4) for t in _quantiles(seconds))
                    yield Row(
                        suite=suite_name, name=name, batch=batch, size=size, dtype=str(dtype).removeprefix("torch."),
                        compiled=compiled, what=what, median_ms=median, p20_ms=p20, p80_ms=p80, runs=len(seconds),
                        peak_mib=round(ready[name].peak_bytes() / 2**20, 2), error=float(f"{errors[name]:.1e}"),
                        date=datetime.date.today().isoformat(), **about,
                    )  # fmt: skip


@contextmanager
def _left_out(name: str, dtype: torch.dtype) -> Iterator[None]:
    """Logs what keeps a contestant from running."""
    try:
        yield
    except RuntimeError as problem:
        _log.warning("%s in %s does not go on: %s", name, dtype, str(problem).partition("\n")[0])


def _take_turns(workers: Mapping[str, Worker]) -> dict[str, list[float]]:
    """Returns the seconds of a call of each worker's pass, one number a turn."""
    first = {name: worker.seconds(1) for name, worker in workers.items()}
    calls = {name: max(1, round(_TURN_SECONDS / seconds)) for name, seconds in first.items()}
    wanted = {name: round(_ALL_SECONDS / (first[name] * calls[name])) for name in workers}
    turns = {name: min(max(number, _MIN_TURNS), _MAX_TURNS) for name, number in wanted.items()}
    rounds = max(turns.values(), default=0)
    results: dict[str, list[float]] = {name: [] for name in workers}
    for i in range(rounds):
        for name, worker in workers.items():
            if (i + 1) * turns[name] // rounds > i * turns[name] // rounds:  # spread over all rounds
                results[name].append(worker.seconds(calls[name]))
    return results


def _quantiles(seconds: list[float]) -> list[float]:
    """Returns the 20th, 50th and 80th percentile."""
    return torch.tensor(seconds, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8]).double()).tolist()


def _expected_seconds(known: list[tuple[int, float]], size: int) -> float:
    """Returns what the two largest sizes so far let expect, on the pessimistic side; 0 when unknown."""
    if len(known) < 2:
        return 0.0
    (size0, time0), (size1, time1) = known[-2:]
    power = max(1.0, math.log(time1 / time0) / math.log(size1 / size0))
    return time1 * (size / size1) ** (power + 0.5)


def _require_known(name: str, given: Collection, allowed: Collection) -> None:
    for item in given:
        if item not in allowed:
            raise InputError(f"{name} must be one of {', '.join(map(str, allowed))}; got {item!r}")
