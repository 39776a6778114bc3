"""StableMax: the definition, its slope at 0, cross-entropy by it."""

import torch
from torch.nn import functional as F

from softmaxfree.ops import stablemax_logits


def definition(x):
    """The fractions of the paper."""
    s = torch.where(x < 0, 1 / (1 - x.clamp(max=0)), x + 1)
    return s / s.sum(-1, keepdim=True)


def test_softmax_of_it_is_stablemax():
    x = 5 * torch.randn(7, 11, dtype=torch.float64)
    torch.testing.assert_close(stablemax_logits(x).softmax(-1), definition(x), rtol=0, atol=1e-12)
    equal = stablemax_logits(torch.full((4,), 3.0)).softmax(-1)
    torch.testing.assert_close(equal, torch.full((4,), 0.25))


def test_cross_entropy_of_it_is_that_of_stablemax():
    x, labels = 5 * torch.randn(7, 11, dtype=torch.float64), torch.arange(7)
    expected = -definition(x)[labels, labels].log().mean()
    torch.testing.assert_close(F.cross_entropy(stablemax_logits(x), labels), expected, rtol=0, atol=1e-12)


def test_the_slope_at_zero_is_one_and_gradients_are_finite():
    x = torch.tensor([-1e30, -1.0, -1e-9, 0.0, 1e-9, 1.0, 1e30], requires_grad=True)
    stablemax_logits(x).sum().backward()
    torch.testing.assert_close(x.grad, 1 / (1 + x.detach().abs()))
    y = (torch.randn(5, dtype=torch.float64) * 3).requires_grad_()
    assert torch.autograd.gradcheck(stablemax_logits, [y])


def test_half_precision_is_widened():
    x = torch.randn(5).half()
    torch.testing.assert_close(stablemax_logits(x), stablemax_logits(x.float()), rtol=0, atol=0)
