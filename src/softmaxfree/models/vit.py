"""Plain vision transformers around any token mixer: `soft_vit_*`, of one width and one grid from patches to head."""

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import calculate_drop_path_rates, to_2tuple, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.types import Device

from softmaxfree.arguments import require, require_number, require_whole, require_whole_numbers
from softmaxfree.errors import InputError
from softmaxfree.layers import Block, PositionTable
from softmaxfree.layers.embed import feature_map
from softmaxfree.layers.padding import at_stride, valid_mean, zero_padding
from softmaxfree.mixers import AbstractMixer, create_mixer, mixer_class
from softmaxfree.mixers.mixer import own_arguments
from softmaxfree.models.backbone import AbstractBackbone
from softmaxfree.models.features import SoftmaxFreeFeatures

__all__ = ["SoftmaxFreeViT"]

_RATIO = 2  # landmarks are of windows of 2 x 2 patches, 49 at 224 pixels


class SoftmaxFreeViT(AbstractBackbone):
    """A plain vision transformer (Dosovitskiy et al., 2021) with pre-norm blocks around any mixer.

    Any image size from `min_img_size` up: images are padded with zeros to whole patches, and the position table is
    resampled. Images of differing sizes run in one batch with a mask, as for `SoftmaxFreeTransformer`.

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the head; 0: none, the pooled features are returned.
        global_pool: `"token"`: the class token, `"avg"`: the mean of the patches, `""`: none. None: the class token if
            there is one.
        img_size: image size, pixels, at which the position table is stored.
        patch_size: side of a patch, pixels.
        embed_dim: channels `C`.
        depth: number of blocks.
        num_heads: number of heads.
        mixer: name of the mixer of all blocks, see `softmaxfree.mixers.list_mixers`.
        mixer_args: its arguments.
        class_token: whether there is a class token, which not every mixer can take. None: where the mixer can.
        mlp_ratio: hidden width of the feed-forward part over `embed_dim`.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0 at the first.
        device: of the weights.
        dtype: of the weights.

    Raises:
        InputError: for arguments that do not fit each other.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: Literal["token", "avg", ""] | None = None,
        img_size: int | tuple[int, int] = 224,
        patch_size: int = 16,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        mixer: str = "soft",
        mixer_args: Mapping[str, Any] | None = None,
        class_token: bool | None = None,
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        least = {"in_chans": in_chans, "patch_size": patch_size, "embed_dim": embed_dim, "depth": depth}
        for name, value in least.items():
            require_whole(name, value, 1)
        require_whole("num_classes", num_classes, 0)
        require_whole_numbers("img_size", [img_size] * 2 if isinstance(img_size, int) else img_size, 2, 1)
        for name, rate in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)):
            require_number(name, rate, 0, 1)
        require(class_token in (True, False, None), "class_token", class_token, "True, False or None")
        kind = mixer_class(mixer)
        require(mixer_args is None or isinstance(mixer_args, Mapping), "mixer_args", mixer_args, "a dict")
        own = dict(mixer_args or {})
        if "ratio" in own_arguments(kind):
            own.setdefault("ratio", _RATIO)
        self.in_chans, self.num_classes = in_chans, num_classes
        self.num_features = self.head_hidden_size = embed_dim
        self.num_heads = (num_heads,)
        self.patch_size = self.output_stride = patch_size
        self.grad_checkpointing = False
        self.patch_embed = nn.Conv2d(in_chans, embed_dim, patch_size, stride=patch_size, **factory)
        grid = cast(tuple[int, int], tuple(-(-side // patch_size) for side in to_2tuple(img_size)))
        self.pos_embed = PositionTable(embed_dim, grid, **factory)
        rates: Any = calculate_drop_path_rates(drop_path_rate, depth)
        self.blocks = nn.ModuleList(
            Block(
                create_mixer(mixer, dim=embed_dim, num_heads=num_heads, **own, **factory),
                norm="pre",
                mlp_ratio=mlp_ratio,
                drop_path=rate,
                **factory,
            )
            for rate in rates
        )
        able = all(own.prefix for own in self.mixers)
        if class_token and not able:
            raise InputError(f"class_token must be False: {mixer}, as given, takes no token beside those of the grid")
        self.cls_token = None
        if able if class_token is None else class_token:
            self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim, **factory))
            trunc_normal_(self.cls_token, std=0.02)
        self.norm = nn.LayerNorm(embed_dim, **factory)
        self.min_img_size = (max(own.min_grid for own in self.mixers) - 1) * patch_size + 1
        self.feature_info = [
            {"num_chs": embed_dim, "reduction": patch_size, "module": f"blocks.{i}"} for i in range(depth)
        ]
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(embed_dim, num_classes, **factory) if num_classes > 0 else nn.Identity()
        self.set_pool(self.usual_pool if global_pool is None else global_pool)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.keep_record(device)

    @property
    def mixer_groups(self) -> list[list[AbstractMixer]]:
        """The mixers of all blocks."""
        return [[block.attn for block in cast(Any, self.blocks)]]

    @property
    def usual_pool(self) -> Literal["token", "avg"]:
        """The pooling that is the default: of the class token where there is one."""
        return "avg" if self.cls_token is None else "token"

    def told_in(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Returns arguments of the call that made the network, with what is adjustable as it is now.

        Args:
            arguments: of the entry point.

        Returns:
            Those of a call that makes the same network.
        """
        own = {**(arguments.get("mixer_args") or {}), **self.adjustable_args}
        return {**arguments, **({"mixer_args": own} if own else {})}

    def set_pool(self, global_pool: str) -> None:
        """Changes the pooling; raises InputError for one that the network does not have."""
        allowed = ("avg", "") if self.cls_token is None else ("token", "avg", "")
        require(global_pool in allowed, "global_pool", global_pool, f"one of {allowed} for this network")
        self.global_pool = global_pool

    def no_weight_decay(self) -> set[str]:
        """Returns the names of the weights that do not decay."""
        return {"pos_embed.table", "cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Returns the parameter groups of layer-wise decay: one a block."""
        return {
            "stem": r"^(?:cls_token|pos_embed|patch_embed)",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass."""
        self.grad_checkpointing = enable

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        mask: Tensor | None = None,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Returns the maps behind blocks (timm's contract).

        Args:
            x: images `(B, in_chans, height, width)`.
            indices: blocks to take: the last n for an int, all for None.
            norm: apply the last norm to each map.
            stop_early: do not run blocks behind the last one taken.
            output_fmt: must be `"NCHW"`.
            intermediates_only: do not return the final features.
            mask: `(B, height, width)` bool, True where a pixel is valid.

        Returns:
            The taken maps `(B, C, Y, X)`, zero in the padding, and unless `intermediates_only` the final features
            before them.

        Raises:
            InputError: for another `output_fmt`, and for images and masks that the model cannot take.
        """
        if output_fmt != "NCHW":
            raise InputError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take, last = feature_take_indices(len(self.blocks), indices)
        tokens, grid, mask = self._embed(x, mask)
        intermediates = []
        for i, block in enumerate(self.blocks):
            if stop_early and i > last:
                break
            tokens = self._run(block, tokens, grid, mask)
            if i in take:
                own = self.norm(tokens) if norm else tokens
                own = feature_map(own[:, own.shape[1] - grid[0] * grid[1] :], grid)
                intermediates.append(own if mask is None else zero_padding(own, mask))
        return intermediates if intermediates_only else (self.norm(tokens), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the blocks behind the last one taken, and if asked to the last norm and the head."""
        take, last = feature_take_indices(len(self.blocks), indices)
        self.blocks = self.blocks[: last + 1]
        if prune_norm:
            self.norm = cast(Any, nn.Identity())
        if prune_head:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the tokens behind the last norm.

        Args:
            x: images `(B, in_chans, height, width)`.
            mask: `(B, height, width)` bool, True where a pixel is valid: a rectangle at the top left of each image.

        Returns:
            `(B, N, C)`: the class token, if there is one, and the patches, row-major; arbitrary in the padding.

        Raises:
            InputError: for images and masks that the model cannot take.
        """
        tokens, grid, mask = self._embed(x, mask)
        for block in self.blocks:
            tokens = self._run(block, tokens, grid, mask)
        return self.norm(tokens)

    def forward_head(self, x: Tensor, pre_logits: bool = False, mask: Tensor | None = None) -> Tensor:
        """Pools, over patches for which `mask (B, height, width)` is True, and classifies the tokens `(B, N, C)`."""
        if self.global_pool == "token":
            x = x[:, 0]
        elif self.global_pool == "avg":
            patches = x if self.cls_token is None else x[:, 1:]
            if isinstance(mask, Tensor):
                mask = mask.to(x.device, non_blocking=True)[:, :: self.patch_size, :: self.patch_size]
                x = valid_mean(zero_padding(feature_map(patches, list(mask.shape[1:])), mask), mask)
            else:
                x = patches.mean(1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns logits `(B, num_classes)` of images; arguments as `forward_features` takes them."""
        return self.forward_head(self.forward_features(x, mask), mask=mask)

    def _embed(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, list[int], Tensor | None]:
        """Returns tokens, grid, and the mask of the patches: one is valid where a pixel of it is."""
        x, mask = self.check(x, mask)
        height, width = x.shape[-2:]
        x = self.patch_embed(F.pad(x, (0, -width % self.patch_size, 0, -height % self.patch_size)))
        mask = at_stride(mask, self.patch_size)
        grid = [x.shape[-2], x.shape[-1]]
        tokens = x.flatten(2).transpose(1, 2) + self.pos_embed(grid[0], grid[1], mask)
        if self.cls_token is not None:
            tokens = torch.cat((self.cls_token.expand(tokens.shape[0], -1, -1), tokens), 1)
        return tokens, grid, mask

    def _run(self, block: nn.Module, tokens: Tensor, grid: list[int], mask: Tensor | None) -> Tensor:
        return checkpoint(block, tokens, grid, mask) if self.grad_checkpointing else block(tokens, grid, mask)


def _create(variant: str, pretrained: bool, args: dict[str, Any], given: dict[str, Any]) -> SoftmaxFreeViT:
    kwargs: dict[str, Any] = args | given
    out_indices = kwargs.pop("out_indices", 3)
    return build_model_with_cfg(
        SoftmaxFreeViT,
        variant,
        pretrained,
        feature_cfg={"out_indices": out_indices, "feature_cls": SoftmaxFreeFeatures},
        **kwargs,
    )


_CFG: dict[str, Any] = {
    "num_classes": 1000, "input_size": (3, 224, 224), "pool_size": None, "fixed_input_size": False, "crop_pct": 0.9,
    "interpolation": "bicubic", "mean": IMAGENET_INCEPTION_MEAN, "std": IMAGENET_INCEPTION_STD,
    "first_conv": "patch_embed", "classifier": "head", "license": "mit",
}  # fmt: skip
default_cfgs = generate_default_cfgs({f"soft_vit_{size}": dict(_CFG) for size in ("tiny", "small", "base")})


@register_model
def soft_vit_tiny(pretrained: bool = False, **kwargs) -> SoftmaxFreeViT:
    """ViT-Tiny around any mixer, 5M parameters with SOFT."""
    return _create("soft_vit_tiny", pretrained, dict(embed_dim=192, num_heads=3), kwargs)


@register_model
def soft_vit_small(pretrained: bool = False, **kwargs) -> SoftmaxFreeViT:
    """ViT-Small around any mixer, 20M parameters with SOFT."""
    return _create("soft_vit_small", pretrained, dict(embed_dim=384, num_heads=6), kwargs)


@register_model
def soft_vit_base(pretrained: bool = False, **kwargs) -> SoftmaxFreeViT:
    """ViT-Base around any mixer, 79M parameters with SOFT."""
    return _create("soft_vit_base", pretrained, dict(embed_dim=768, num_heads=12), kwargs)
