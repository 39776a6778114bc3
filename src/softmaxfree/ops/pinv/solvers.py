"""Solvers for the inverse of the landmark kernel matrix: one frozen dataclass each, forward computation only.

Trained weights are tied to their solver: 20 Newton steps are a spectral filter, not an inverse. So a solver is data,
JSON-serialisable and stored with the model. All share the gradient of `implicit.py`.
"""

import abc
import dataclasses
import functools
import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor

from softmaxfree.arguments import require, require_number, require_whole
from softmaxfree.errors import InputError
from softmaxfree.ops import dispatch
from softmaxfree.ops.pinv.finite import finite_matrices
from softmaxfree.ops.pinv.newton import steps
from softmaxfree.plugins import is_again, load_plugins

_ROUNDING = 1e-3  # of the largest eigenvalue, which a small one may lie below 0


@dataclasses.dataclass(frozen=True)
class AbstractPinvSolver(abc.ABC):
    """Computes a regularised inverse of a symmetric positive matrix, each image on its own.

    One of your own is a frozen dataclass that derives from this and is decorated with `register_solver`. Its fields are
    finite numbers, booleans, None and plain words.

    Raises:
        InputError: a field is something else, or the class is not registered.
    """

    name: ClassVar[str]
    json: str = dataclasses.field(init=False, repr=False, compare=False, default="")

    def __post_init__(self) -> None:
        if _SOLVERS.get(getattr(type(self), "name", "")) is not type(self):
            raise InputError(f"{type(self).__name__} is not known as a solver: decorate it with register_solver")
        self.validate()
        # the string that the op takes; by hand, since torch.compile cannot trace json.dumps
        items = (f'"{k}": {_json(k, v)}' for k, v in self.to_dict().items())
        object.__setattr__(self, "json", "{" + ", ".join(items) + "}")

    @abc.abstractmethod
    def validate(self) -> None:
        """Raises InputError for an argument out of range."""

    @abc.abstractmethod
    def compute(self, gram: Tensor) -> Tensor:
        """Returns the inverse `(B, H, M, M)` of `gram (B, H, M, M)`, float32 or float64; batched, no host sync.

        Writes nothing into `gram`, and returns a tensor of its shape and dtype that is not `gram` itself. A matrix that
        is not finite, or whose inverse fails, gives NaN and leaves the others alone.
        """

    @abc.abstractmethod
    def flops(self, num_landmarks: int) -> int:
        """Returns the floating-point operations for one `M x M` matrix (a multiply and an add count 2)."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the solver as plain data; `as_solver` reads it back."""
        arguments = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}
        return {"name": self.name} | arguments


@final
@dataclasses.dataclass(frozen=True)
class Newton(AbstractPinvSolver):
    """Newton-Schulz steps `V <- 2 V - V P V`, `P = A + ridge I`, from `V = alpha P` (SOFT, eq. 10 and algorithm 2).

    The steps converge while `alpha` times the square of every eigenvalue of `P` is below 2: for a kernel matrix, with
    a ridge up to 0.05. Where they have gone astray the result is NaN.

    Attributes:
        iters: number of steps.
        ridge: added to the diagonal of `A`; the released code uses 0.01, its normalised variant 0.
        start: `"rowsum"`: `alpha = 1.8 / max_i(sum_j A_ij)^2`, for each matrix (released code);
            `"halving"`: `alpha = 2 / max(sum_j A_ij)^2` over the heads of an image, halved at most 10 times while
            `max(colsum |I - alpha P P|) > 1.01` (released normalised variant, there over the whole batch).
    """

    name: ClassVar[str] = "newton"
    iters: int = 20
    ridge: float = 0.01
    start: Literal["rowsum", "halving"] = "rowsum"

    def validate(self) -> None:
        require_whole("iters", self.iters, 1)
        require_number("ridge", self.ridge, 0)
        require(
            isinstance(self.start, str) and self.start in ("rowsum", "halving"),
            "start",
            self.start,
            "'rowsum' or 'halving'",
        )

    def compute(self, gram: Tensor) -> Tensor:
        p = add_ridge(gram, self.ridge)
        # an exported graph must run anywhere
        way = steps if torch.compiler.is_exporting() else dispatch.choose("newton", p)
        v = way.run(p, self.alpha(gram), self.iters)
        # each step squares the eigenvalues of I - P V: converging they end in [0, 1], else far above, as their sum does
        trace = p.shape[-1] - (p * v.mT).sum((-1, -2), keepdim=True)
        return torch.where(trace <= 2 * p.shape[-1], v, torch.nan)

    def alpha(self, gram: Tensor) -> Tensor:
        """Returns the scale of the first iterate, `(B, H, 1, 1)` or `(B, 1, 1, 1)`."""
        rowsum = gram.sum(-1)
        if self.start == "rowsum":
            return (1.8 / rowsum.amax(-1).square())[..., None, None]
        gram, _ = finite_matrices(gram)  # the heads of an image share the start, and none of them a NaN
        rowsum = gram.sum(-1)
        alpha = 2 / rowsum.amax((-1, -2), keepdim=True).unsqueeze(-1).square()
        p = add_ridge(gram, self.ridge)
        p2, eye = p @ p, torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)
        for _ in range(10):  # the released loop stops early; halving only while it goes on is the same
            norm = (eye - alpha * p2).abs().sum(-2).amax((-1, -2))[:, None, None, None]
            alpha = torch.where(norm > 1.01, alpha / 2, alpha)
        return alpha

    def flops(self, num_landmarks: int) -> int:
        return 4 * self.iters * num_landmarks**3


@final
@dataclasses.dataclass(frozen=True)
class Cholesky(AbstractPinvSolver):
    """The exact `(A + ridge I)^-1` by a Cholesky factorisation: far cheaper than Newton, and another function.

    ONNX has no factorisation. An exported program finds the same by as many Newton steps as it takes up to 1,024
    landmarks.

    Attributes:
        ridge: added to the diagonal; must exceed the rounding of `A`, or the factorisation fails.
    """

    name: ClassVar[str] = "cholesky"
    ridge: float = 0.01
    _EXPORTED_LANDMARKS: ClassVar[int] = 1024

    def validate(self) -> None:
        require_number("ridge", self.ridge, 1e-5)

    def compute(self, gram: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            return self._by_steps(add_ridge(gram, self.ridge))
        p, finite = finite_matrices(add_ridge(gram, self.ridge))
        factor, failed = torch.linalg.cholesky_ex(p)
        return torch.where(finite & (failed == 0)[..., None, None], torch.cholesky_inverse(factor), torch.nan)

    def _by_steps(self, p: Tensor) -> Tensor:
        """Returns `p^-1`, from `V = I / c` with `c` the largest row sum: `I - P V` begins in `[0, 1 - ridge / c]`."""
        first = 1 / p.sum(-1).amax(-1)[..., None, None]
        v = 2 * first * torch.eye(p.shape[-1], dtype=p.dtype, device=p.device) - first.square() * p
        iters = math.ceil(math.log2(16 * self._EXPORTED_LANDMARKS / self.ridge))  # then exp(-16) is left
        return steps.newton(v, p, iters)

    def flops(self, num_landmarks: int) -> int:
        return 2 * num_landmarks**3


@final
@dataclasses.dataclass(frozen=True)
class Eigh(AbstractPinvSolver):
    """Moore-Penrose inverse of `A + ridge I` from its eigenvalues: the oracle, and the slowest.

    Attributes:
        ridge: added to the diagonal.
        rcond: eigenvalues below `rcond` times the largest count as 0.
    """

    name: ClassVar[str] = "eigh"
    ridge: float = 0.0
    rcond: float = 1e-6

    def validate(self) -> None:
        require_number("ridge", self.ridge, 0)
        require_number("rcond", self.rcond, 0, below=1)

    def compute(self, gram: Tensor) -> Tensor:
        p, finite = finite_matrices(add_ridge(gram, self.ridge))
        w, vectors = torch.linalg.eigh(p)
        inverse = torch.where(w > self.rcond * w[..., -1:], w.reciprocal(), 0)
        # an eigenvalue far below 0 is no rounding: this is no kernel matrix
        positive = (w[..., :1] > -_ROUNDING * w[..., -1:]).unsqueeze(-1)
        return torch.where(finite & positive, (vectors * inverse.unsqueeze(-2)) @ vectors.mT, torch.nan)

    def flops(self, num_landmarks: int) -> int:
        return 11 * num_landmarks**3  # tridiagonalisation, QL with vectors, reassembly


_SOLVERS: dict[str, type[AbstractPinvSolver]] = {cls.name: cls for cls in (Newton, Cholesky, Eigh)}


def register_solver(solver: type[AbstractPinvSolver]) -> type[AbstractPinvSolver]:
    """Makes a solver known by its `name`; a class decorator, above that of the dataclass.

    Args:
        solver: the class.

    Returns:
        The same.

    Raises:
        InputError: it is no frozen dataclass, has no name, or another solver has it.
    """
    if not (isinstance(solver, type) and issubclass(solver, AbstractPinvSolver)):
        raise InputError(f"a solver must be a subclass of AbstractPinvSolver, got {solver!r}")
    if "__dataclass_fields__" not in vars(solver):
        raise InputError(f"{solver.__qualname__} must be a frozen dataclass: @dataclasses.dataclass(frozen=True)")
    name = getattr(solver, "name", None)
    known = _SOLVERS.get(name, solver) if isinstance(name, str) else solver
    if any(field.name == "name" for field in dataclasses.fields(solver)):
        raise InputError(f"name of {solver.__qualname__} must be no field: write name = {name!r} without a type")
    again = is_again(known, solver)
    if not isinstance(name, str) or not name.isidentifier() or not again:
        other = "" if again else f", which {known.__module__}.{known.__qualname__} has"
        raise InputError(f"name of {solver.__qualname__} must be a word that no other solver has, got {name!r}{other}")
    _SOLVERS[name] = solver
    solver_from_json.cache_clear()
    return solver


def as_solver(solver: AbstractPinvSolver | Mapping[str, Any] | str) -> AbstractPinvSolver:
    """Reads a solver.

    Args:
        solver: itself, its `to_dict()`, that as JSON, or its bare name.

    Returns:
        The solver.

    Raises:
        InputError: for an unknown name or argument.
    """
    if isinstance(solver, AbstractPinvSolver):
        return solver
    require(isinstance(solver, str | Mapping), "solver", solver, "a solver, its to_dict(), that as JSON, or its name")
    spec = dict(_parse(solver) if isinstance(solver, str) else solver)
    name = spec.pop("name", None)
    if isinstance(name, str) and name not in _SOLVERS:
        load_plugins()
    if not isinstance(name, str) or name not in _SOLVERS:
        raise InputError(
            f"solver {name!r} is not one of {', '.join(_SOLVERS)}; one of another package is known once that package "
            "is installed"
        )
    fields = {f.name for f in dataclasses.fields(_SOLVERS[name]) if f.init}
    if not spec.keys() <= fields:
        raise InputError(f"solver {name!r} takes {sorted(fields)}, got {sorted(spec)}")
    try:
        return _SOLVERS[name](**spec)
    except TypeError as error:  # one that has no default
        raise InputError(f"solver {name!r}: {error}") from error


@functools.cache
def solver_from_json(spec: str) -> AbstractPinvSolver:
    """Returns the solver of a JSON string; cached, since ops ask at every call."""
    return as_solver(spec)


def add_ridge(gram: Tensor, ridge: float) -> Tensor:
    """Returns `A + ridge I`."""
    if ridge == 0:
        return gram
    return gram + ridge * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)


def _json(name: str, value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return f"{value}"
    word = isinstance(value, str) and value.isprintable() and '"' not in value and "\\" not in value
    require(word, name, value, "a finite number, True, False, None or a plain word")
    return f'"{value}"'


def _parse(text: str) -> Mapping[str, Any]:
    if not text.lstrip().startswith("{"):
        return {"name": text}
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"solver must be JSON or one of {', '.join(_SOLVERS)}, got {text!r}: {error}") from error
