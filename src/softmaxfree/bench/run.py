"""Times contestants in turns, each only after its results were checked."""

import copy
import dataclasses
import datetime
import functools
import logging
import math
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from softmaxfree.bench.machine import describe
from softmaxfree.bench.memory import peak_bytes
from softmaxfree.bench.registry import SUITES, Contestant, Suite

__all__ = ["ALLOWED_ERROR", "FORWARD", "TRAIN", "Row", "run"]

_log = logging.getLogger(__name__)

FORWARD, TRAIN = "forward", "forward+backward"
# relative error against float64, of results and gradients, with which a contestant may be timed in any case
ALLOWED_ERROR = 1e-3
# of a contestant's turn at least, and of all its turns together, about; turns, at least and at most
_TURN_SECONDS, _ALL_SECONDS = 0.02, 3.0
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

    Contestants take turns, so that a machine that others slow down for a while slows down all of them. One that cannot
    run (out of memory, a dtype that a peer does not know) is logged and left out.

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
        ValueError: for an unknown suite, name or size, or a contestant whose results are wrong.
    """
    _require_known("suite", [suite_name], SUITES)
    suite = SUITES[suite_name]
    _require_known("only", only, suite.contestants)
    _require_known("size", sizes, sorted({size for _, size in suite.shapes}))
    about = describe(device)
    errors: dict[str, float] = {}
    benches: dict[str, _Bench] = {}
    for name in only or suite.contestants:
        bench = _Bench(suite, suite.contestants[name], device, dtype, compiled)
        with _left_out(name, dtype):
            errors[name], allowed = bench.errors()
            if not errors[name] <= allowed:
                raise ValueError(f"{name} is wrong and not timed: error {errors[name]:.1e}, allowed {allowed:.1e}")
            benches[name] = bench
    for what in (FORWARD,) if forward_only else (FORWARD, TRAIN):
        known: dict[str, list[tuple[int, float]]] = {name: [] for name, bench in benches.items() if bench.does(what)}
        for batch, size in suite.shapes:
            if sizes and size not in sizes:
                continue
            steps = {}
            for name in list(known):
                if _expected_seconds(known[name], size) <= max_seconds:
                    times = known.pop(name)  # back once it has run
                    with _left_out(name, dtype):
                        steps[name] = benches[name].prepare(what, batch, size)
                        known[name] = times
            for name, seconds in _take_turns(steps).items():
                if batch == 1:
                    known[name].append((size, statistics.median(seconds)))
                p20, median, p80 = (round(1e3 * t, 4) for t in _quantiles(seconds))
                yield Row(
                    suite=suite_name, name=name, batch=batch, size=size, dtype=str(dtype).removeprefix("torch."),
                    compiled=compiled, what=what, median_ms=median, p20_ms=p20, p80_ms=p80, runs=len(seconds),
                    peak_mib=round(peak_bytes(steps[name], device) / 2**20, 2), error=float(f"{errors[name]:.1e}"),
                    date=datetime.date.today().isoformat(), **about,
                )  # fmt: skip


@contextmanager
def _left_out(name: str, dtype: torch.dtype) -> Iterator[None]:
    """Logs what keeps a contestant from running."""
    try:
        yield
    except RuntimeError as problem:
        _log.warning("%s in %s does not go on: %s", name, dtype, str(problem).partition("\n")[0])


def _take_turns(steps: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Returns the seconds of a call of each step, one number a turn."""
    threads = torch.get_num_threads()
    timers = {name: Timer("step()", globals={"step": step}, num_threads=threads) for name, step in steps.items()}
    first = {name: timer.timeit(1).mean for name, timer in timers.items()}
    calls = {name: max(1, round(_TURN_SECONDS / seconds)) for name, seconds in first.items()}
    round_seconds = sum(first[name] * calls[name] for name in steps)
    turns = _ALL_SECONDS * len(steps) / round_seconds if steps else 0
    results: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(min(max(round(turns), _MIN_TURNS), _MAX_TURNS)):
        for name, timer in timers.items():
            results[name].append(timer.timeit(calls[name]).mean)
    return results


class _Bench:
    """One contestant on one device in one dtype."""

    def __init__(
        self, suite: Suite, contestant: Contestant, device: torch.device, dtype: torch.dtype, compiled: bool
    ) -> None:
        self._suite, self._contestant, self._compiled = suite, contestant, compiled
        self._device, self._dtype = device, dtype

    def does(self, what: str) -> bool:
        """Returns whether the contestant has this pass."""
        return what == FORWARD or self._contestant.reference is not None

    def errors(self) -> tuple[float, float]:
        """Returns the relative error of result or gradients, whichever is larger, and the allowed one.

        Allowed is twice the error that the reference makes in the same dtype.
        """
        if self._contestant.reference is None:
            return 0.0, 0.0
        module, inputs = self._build(1, self._suite.check_size)
        reference = self._contestant.reference(copy.deepcopy(module)).eval()
        results = [self._learn(z, inputs) for z in (module.eval(), reference)]
        oracle = self._learn(reference.double(), [z.double() for z in inputs], autocast=False)
        error, usual = (max(map(_relative_error, result, oracle)) for result in results)
        return error, max(ALLOWED_ERROR, 2 * usual)

    def prepare(self, what: str, batch: int, size: int) -> Callable[[], object]:
        """Returns the pass on inputs of a shape, after a first run."""
        module, inputs = self._build(batch, size)
        module.train(what == TRAIN)
        if self._compiled:
            module.compile()
        run_once = self._learn if what == TRAIN else self._infer
        step = functools.partial(run_once, module, inputs)
        step()
        return step

    def _build(self, batch: int, size: int) -> tuple[nn.Module, list[Tensor]]:
        torch.manual_seed(0)
        dtype = torch.float32 if self._suite.whole_models else self._dtype
        module = self._contestant.build(size).to(self._device, dtype)
        return module, [z.to(self._device, dtype) for z in self._suite.inputs(batch, size)]

    def _autocast(self) -> AbstractContextManager:
        enabled = self._suite.whole_models and self._dtype != torch.float32
        return torch.autocast(self._device.type, self._dtype, enabled=enabled)

    def _infer(self, module: nn.Module, inputs: list[Tensor]) -> Tensor:
        with torch.inference_mode(), self._autocast():
            return module(*inputs)

    def _learn(self, module: nn.Module, inputs: list[Tensor], autocast: bool = True) -> list[Tensor]:
        """Returns the result and the gradients of weights and, of an attention, inputs."""
        leaves: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        if not self._suite.whole_models:
            inputs = [z.detach().requires_grad_() for z in inputs]
            leaves += inputs
        with self._autocast() if autocast else torch.enable_grad():
            out = module(*inputs)
        cotangent = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=out.dtype).view_as(out)
        grads = torch.autograd.grad(out, leaves, cotangent, allow_unused=True)
        return [out.detach(), *(g for g in grads if g is not None)]


def _relative_error(result: Tensor, oracle: Tensor) -> float:
    return ((result.double() - oracle).norm() / oracle.norm().clamp_min(1e-300)).item()


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
            raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}; got {item!r}")
