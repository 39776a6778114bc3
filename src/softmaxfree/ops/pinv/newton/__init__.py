"""Ways to run Newton's steps, each `run(p, alpha, iters)`: the same function of the eigenvalues of `p`."""
