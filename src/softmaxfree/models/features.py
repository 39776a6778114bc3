"""The network that `features_only=True` returns."""

import re
from typing import Any

from timm.models._features import FeatureGetterNet
from torch import Tensor

from softmaxfree.errors import InputError


class SoftmaxFreeFeatures(FeatureGetterNet):
    """Feature maps of the stages, as timm's `FeatureGetterNet`, which hides what fine-tuning needs of the model.

    Forwards checkpointing (by block, not by stage), the groups of layer-wise decay and the weights exempt from decay.
    """

    model: Any
    """A backbone of this package."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """Returns the maps of images `(B, in_chans, height, width)`, zero in the padding.

        Args:
            x: the images.
            mask: `(B, height, width)` bool, True where a pixel is valid: a rectangle at the top left of each image.

        Returns:
            For each stage taken `(B, C, Y, X)`.
        """
        return self.model.forward_intermediates(x, self.out_indices, intermediates_only=True, mask=mask)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass."""
        self.model.set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> dict:
        """Returns the model's parameter groups under this module's names."""
        return prefixed_groups(self.model.group_matcher(coarse), "model.")

    def no_weight_decay(self) -> set[str]:
        """Returns the names of the weights that do not decay."""
        return {f"model.{name}" for name in self.model.no_weight_decay()}


def slim_width(backbone: Any) -> int:
    """Return a width for pyramids and heads that are as slim as their backbone.

    Args:
        backbone: timm's `features_only` network.

    Returns:
        The width of its map of stride 8, or of the first one after, as a multiple of 16 from 32 to 256.
    """
    info = backbone.feature_info
    maps = zip(info.reduction(), info.channels(), strict=True)
    width = next((channels for stride, channels in maps if stride >= 8), info.channels()[-1])
    return min(max(16 * round(width / 16), 32), 256)


def backbone_groups(backbone: Any, prefix: str, coarse: bool) -> dict:
    """Returns the parameter groups of a backbone for a network that holds it.

    Args:
        backbone: timm's `features_only` network.
        prefix: of the names of its weights in the network.
        coarse: one group a stage.

    Returns:
        The groups by the names in the network.

    Raises:
        InputError: the backbone has none.
    """
    if not hasattr(backbone, "group_matcher"):
        raise InputError(f"layer_decay must be null: {type(backbone).__name__} does not tell its layers")
    return prefixed_groups(backbone.group_matcher(coarse), prefix)


def backbone_no_weight_decay(backbone: Any, prefix: str) -> set[str]:
    """Returns the weights of a backbone that do not decay, by their names in a network that holds it."""
    names = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else ()
    return {f"{prefix}{name}" for name in names}


def prefixed_groups(groups: dict, prefix: str) -> dict:
    """Returns the parameter groups of a model for a module that holds the model.

    Args:
        groups: what the model's `group_matcher` returns; every pattern begins with `^`.
        prefix: of the names of the model's weights in the module.

    Returns:
        The groups by the names in the module.
    """

    def under(pattern: str) -> str:
        return pattern.replace("^", "^" + re.escape(prefix), 1)

    return {
        name: under(patterns) if isinstance(patterns, str) else [(under(first), *rest) for first, *rest in patterns]
        for name, patterns in groups.items()
    }
