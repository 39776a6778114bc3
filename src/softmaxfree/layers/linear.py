"""Linear layers that take the faster of two libraries."""

from timm.models import register_notrace_module
from torch import Tensor, nn

from softmaxfree.ops.linear import linear

__all__ = ["Linear", "exchange_linear"]


@register_notrace_module
class Linear(nn.Linear):
    """`torch.nn.Linear` by `softmaxfree.ops.linear`, faster on some CPUs, with the same arguments and weights.

    `torch.ao.quantization.quantize_dynamic` asks for the exact class `torch.nn.Linear` and leaves these layers in
    float32; `softmaxfree export --int8` quantizes them.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(..., in_features)` to `(..., out_features)`."""
        return linear(x, self.weight, self.bias)


def exchange_linear(module: nn.Module) -> nn.Module:
    """Exchanges each `torch.nn.Linear` inside a module of another library.

    Args:
        module: is changed.

    Returns:
        The module; its layers are the same objects, with their weights, hooks and names.
    """
    for child in module.modules():
        if type(child) is nn.Linear and child is not module:
            child.__class__ = Linear
    return module
