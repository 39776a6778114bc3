"""Which weights of a network are its backbone, and which layers have a row for each class."""

from typing import NamedTuple

from torch import nn

__all__ = ["Parts", "parts_of"]


class Parts(NamedTuple):
    """Names within a network.

    Attributes:
        backbone: prefix of the names of the backbone; "" of a classifier, whose backbone is all but its last layer.
        classes: layers that depend on what the classes are.
    """

    backbone: str
    classes: tuple[str, ...]

    def in_classes(self, name: str) -> bool:
        """Return whether a weight or module is of a layer of the classes."""
        return any(name == layer or name.startswith(f"{layer}.") for layer in self.classes)

    def in_backbone(self, name: str) -> bool:
        """Return whether a weight or module is of the backbone."""
        return name.startswith(self.backbone) and not self.in_classes(name)


def parts_of(model: nn.Module) -> Parts:
    """Return the parts of a detector, a segmenter, or a classifier of timm."""
    if isinstance(own := getattr(model, "parts", None), Parts):
        return own
    get = getattr(model, "get_classifier", None)
    layers = get() if get else ()
    layers = layers if isinstance(layers, tuple | list) else (layers,)
    return Parts("", tuple(name for name, module in model.named_modules() if any(module is own for own in layers)))
