"""A backbone that does not train, or trains at another rate than the head."""

from torch import nn
from torch.optim import Optimizer

from softmaxfree.models.parts import parts_of

__all__ = ["freeze_backbone", "frozen_modules", "scale_backbone_lr"]


def freeze_backbone(model: nn.Module) -> None:
    """Let the weights of a model's backbone have no gradients."""
    parts = parts_of(model)
    for name, weight in model.named_parameters():
        if parts.in_backbone(name):
            weight.requires_grad_(False)


def frozen_modules(model: nn.Module) -> list[nn.Module]:
    """Return the modules of a model that work as in evaluation while its backbone is frozen.

    Args:
        model: classifier of timm, detector or segmenter.

    Returns:
        All of the backbone; of a classifier all but the last layer, what holds it, and the dropout before it.
    """
    parts = parts_of(model)
    if parts.backbone:
        return list(model.get_submodule(parts.backbone.removesuffix(".")).modules())

    def trains(name: str, module: nn.Module) -> bool:
        holds = any(layer == name or layer.startswith(f"{name}." if name else "") for layer in parts.classes)
        dropout = isinstance(module, nn.Dropout) and name.split(".")[0].startswith("head")
        return holds or dropout or parts.in_classes(name)

    return [module for name, module in model.named_modules() if not trains(name, module)]


def scale_backbone_lr(optimizer: Optimizer, model: nn.Module, scale: float) -> None:
    """Give the weights of a backbone a rate of their own, by the `lr_scale` that timm's schedules follow.

    It multiplies that of layer decay: the rate is lr * scale * layer_decay ** (layers above), the head's lr alone.

    Args:
        optimizer: new, so without state.
        model: whose weights it has.
        scale: factor on the rate of the backbone.
    """
    if scale == 1:
        return
    parts = parts_of(model)
    backbone = {id(weight) for name, weight in model.named_parameters() if parts.in_backbone(name)}
    groups = []
    for group in optimizer.param_groups:
        for inside, factor in ((True, scale), (False, 1.0)):
            if weights := [weight for weight in group["params"] if (id(weight) in backbone) == inside]:
                groups.append({**group, "params": weights, "lr_scale": group.get("lr_scale", 1.0) * factor})
    optimizer.param_groups[:] = groups  # in place: a wrapper such as Lookahead shares the list
