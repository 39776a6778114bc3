"""Where the attention of a network is: its layers by stage and block, and what the network tells of its tokens."""

import re
from typing import Any, NamedTuple

from timm.layers import AttentionPoolLatent
from torch import nn

from softmaxfree.arguments import require
from softmaxfree.errors import InputError
from softmaxfree.mixers import AbstractMixer
from softmaxfree.models.exchange import ExchangedAttention

__all__ = ["Layer", "attention_layers", "backbone_of", "choose", "require_place"]

_STAGE = re.compile(r"(?:^|[._])(?:stages|layers)[._](\d+)[._]")


class Layer(NamedTuple):
    """An attention of a network.

    `name` is that of the module. `class_token` tells whether the first token is one. `stride` is the side of a token's
    cell in pixels of what the backbone sees. `prefixes` are the numbers of prefix tokens that its tokens may have.
    """

    name: str
    module: nn.Module
    stage: int
    class_token: bool
    stride: int
    prefixes: tuple[int, ...] = (0,)

    @property
    def mixer(self) -> AbstractMixer | None:
        """The mixer of this package that it is, or that it was exchanged for; None for timm's softmax."""
        return self.mixing if isinstance(self.mixing, AbstractMixer) else None

    @property
    def mixing(self) -> nn.Module:
        """What mixes the tokens: the module, or the mixer that it was exchanged for."""
        return self.module.mixer if isinstance(self.module, ExchangedAttention) else self.module


def backbone_of(model: nn.Module) -> tuple[str, Any]:
    """Returns name and module of the outermost part that tells its feature maps: the model itself, or its backbone.

    Args:
        model: a classifier of timm, or a network around one.

    Returns:
        The name, "" for the model itself, and the module.

    Raises:
        InputError: there is none.
    """
    for name, module in model.named_modules():
        if getattr(module, "feature_info", None):
            return name, module
    raise InputError(f"model must be of timm or of this package, with feature_info, got {type(model).__name__}")


def attention_layers(model: nn.Module) -> list[Layer]:
    """Returns all attention of a network in the order of its modules: mixers of this package, and timm's softmax.

    Args:
        model: a classifier of timm, or a network around one.

    Returns:
        The layers; stages are counted as in the network, and all is stage 0 where it has none.

    Raises:
        InputError: it has no attention that is understood.
    """
    prefix, backbone = backbone_of(model)
    modules = dict(backbone.named_modules())
    layers: list[Layer] = []
    for name, module in modules.items():
        # timm's own mark of an attention that can call scaled_dot_product_attention
        if not isinstance(module, AbstractMixer) and not hasattr(module, "fused_attn"):
            continue
        if isinstance(modules[name.rpartition(".")[0]], ExchangedAttention):
            continue  # the mixer of one that is a layer already
        if isinstance(module, AttentionPoolLatent):
            continue  # a head of few queries that are no tokens
        stage = _STAGE.search(name)
        parents = [modules[name[:at]] for at in (0, *(dot.start() for dot in re.finditer(r"\.", name)))]
        token = any(_has_class_token(parent) for parent in parents)
        told = {int(own) for own in (getattr(parent, "num_prefix_tokens", 0) for parent in parents) if own}
        prefixes = tuple(sorted({0, int(token), *told}))
        whole = f"{prefix}.{name}" if prefix else name
        layers.append(Layer(whole, module, int(stage[1]) if stage else 0, token, _stride(backbone, name), prefixes))
    if not layers:
        raise InputError(f"model must have attention, got {type(backbone).__name__}, which has none that is understood")
    return layers


def choose(layers: list[Layer], stage: int | None, block: int) -> Layer:
    """Returns one layer.

    Args:
        layers: of a network.
        stage: number from 0, from -1 backwards; None is the last one.
        block: number from 0 in the stage, from -1 backwards.

    Returns:
        The layer.

    Raises:
        InputError: there is no such stage or block.
    """
    stages = sorted({layer.stage for layer in layers})
    require_place("stage", stage, max(stages) + 1)
    number = max(stages) if stage is None else range(max(stages) + 1)[stage]
    inside = [layer for layer in layers if layer.stage == number]
    require(bool(inside), "stage", stage, f"one with attention, that is {', '.join(map(str, stages))}")
    require_place("block", block, len(inside), f" in stage {number}")
    return inside[block]


def require_place(name: str, given: int | None, count: int, where: str = "") -> None:
    """Raises InputError unless `given` is None or a number that `count` things have, from either end."""
    whole = given is None or (isinstance(given, int) and not isinstance(given, bool))
    allowed = f"0 to {count - 1}{where}, or from -1 to -{count} counted from the end"
    require(whole and (given is None or -count <= given < count), name, given, allowed)


def _has_class_token(module: nn.Module) -> bool:
    own = (name for name, value in vars(module).get("_parameters", {}).items() if value is not None)
    return bool(getattr(module, "has_class_token", False)) or any(name.startswith("cls_token") for name in own)


def _stride(backbone: Any, name: str) -> int:
    info = getattr(backbone.feature_info, "info", backbone.feature_info)
    for entry in info:
        module = re.escape(entry.get("module", "")).replace(r"\.", "[._]")
        if module and re.search(rf"(?:^|\.){module}\.", f"{name}."):
            return int(entry["reduction"])
    return int(info[-1]["reduction"])
