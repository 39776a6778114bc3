"""The network that `features_only=True` returns."""

from typing import TYPE_CHECKING

from timm.models._features import FeatureGetterNet

if TYPE_CHECKING:
    from softmaxfree.models.pyramid import SoftmaxFreeTransformer


class SoftmaxFreeFeatures(FeatureGetterNet):
    """Feature maps of the stages, as timm's `FeatureGetterNet`, which hides what fine-tuning needs of the model.

    Forwards checkpointing (by block, not by stage), the groups of layer-wise decay and the weights exempt from decay.
    """

    model: "SoftmaxFreeTransformer"

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass."""
        self.model.set_grad_checkpointing(enable)

    def group_matcher(self, coarse: bool = False) -> dict:
        """Returns the model's parameter groups under this module's names."""
        groups: dict = {}
        for name, patterns in self.model.group_matcher(coarse).items():
            if isinstance(patterns, str):
                groups[name] = patterns.replace("^", r"^model\.", 1)
            else:
                groups[name] = [(pattern.replace("^", r"^model\.", 1), *rest) for pattern, *rest in patterns]
        return groups

    def no_weight_decay(self) -> set[str]:
        """Returns the names of the weights that do not decay."""
        return {f"model.{name}" for name in self.model.no_weight_decay()}
