"""Functions on tensors; torch only, no weights.

Shape letters, used everywhere: `B` images, `H` heads, `N` tokens, `M` landmarks, `D` head width, `C` channels,
`(Y, X)` token grid.
"""

from softmaxfree.ops.gaussian import gaussian_gram, gaussian_product
from softmaxfree.ops.nystrom import gaussian_attention, nystrom_attention
from softmaxfree.ops.pinv import AbstractPinvSolver, Cholesky, Eigh, Newton, as_solver, pinv, register_solver, residual
from softmaxfree.ops.stablemax import stablemax_logits

__all__ = [
    "AbstractPinvSolver",
    "Cholesky",
    "Eigh",
    "Newton",
    "as_solver",
    "gaussian_attention",
    "gaussian_gram",
    "gaussian_product",
    "nystrom_attention",
    "pinv",
    "register_solver",
    "residual",
    "stablemax_logits",
]
