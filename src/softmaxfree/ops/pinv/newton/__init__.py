"""Ways to run Newton's steps, each `run(p, alpha, iters)`: the same function of the eigenvalues of `p`."""

from softmaxfree.ops import dispatch
from softmaxfree.ops.pinv.newton import fused, spectral, steps

dispatch.register("newton", fused=fused, spectral=spectral, steps=steps)
