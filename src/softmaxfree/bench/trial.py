"""A contestant, checked and made ready to be timed."""

import copy
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from softmaxfree.bench.registry import TRAIN, Contestant, Suite

__all__ = ["ALLOWED_ERROR", "Trial"]

# relative error against float64, of results and gradients, with which a contestant may be timed in any case
ALLOWED_ERROR = 1e-3


class Trial:
    """One contestant on one device in one dtype.

    Args:
        suite: gives the inputs.
        contestant: what is tried.
        device: CPU or CUDA.
        dtype: of an attention's inputs; models in half dtypes run under autocast.
        compiled: whether `torch.compile` makes the pass.
    """

    def __init__(
        self, suite: Suite, contestant: Contestant, device: torch.device, dtype: torch.dtype, compiled: bool
    ) -> None:
        self._suite, self._contestant, self._compiled = suite, contestant, compiled
        self.device, self._dtype = device, dtype
        self._cotangent = torch.empty(0)

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
        module = self._contestant.build(size).to(self.device, dtype)
        return module, [z.to(self.device, dtype) for z in self._suite.inputs(batch, size)]

    def _autocast(self) -> AbstractContextManager:
        enabled = self._suite.whole_models and self._dtype != torch.float32
        return torch.autocast(self.device.type, self._dtype, enabled=enabled)

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
        if (self._cotangent.shape, self._cotangent.dtype) != (out.shape, out.dtype):  # made once, and not timed
            self._cotangent = torch.linspace(-1, 1, out.numel(), device=out.device, dtype=out.dtype).view_as(out)
        grads = torch.autograd.grad(out, leaves, self._cotangent, allow_unused=True)
        return [out.detach(), *(g for g in grads if g is not None)]


def _relative_error(result: Tensor, oracle: Tensor) -> float:
    return ((result.double() - oracle).norm() / oracle.norm().clamp_min(1e-300)).item()
