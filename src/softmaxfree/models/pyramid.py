"""The network of SOFT and SOFT++: a pyramid of stages, each around a token mixer."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

import torch
from timm.layers import calculate_drop_path_rates, to_2tuple, trunc_normal_
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.types import Device

from softmaxfree.arguments import require, require_number, require_whole, require_whole_numbers
from softmaxfree.errors import InputError
from softmaxfree.layers import block_arguments, downsample, stem
from softmaxfree.layers.padding import at_stride, valid_mean
from softmaxfree.mixers import AbstractMixer, create_mixer
from softmaxfree.models.backbone import AbstractBackbone
from softmaxfree.models.mixing import CLASS_TOKEN, stage_arguments, stage_mixers
from softmaxfree.models.stages import ClassTokenStage, Stage


class SoftmaxFreeTransformer(AbstractBackbone):
    """A four-stage pyramid; its entry points make that of SOFT, with softmax in the last stage alone (SOFT, table 1).

    Feature maps have strides 4, 8, 16, 32, unless `stem_stride` or `output_stride` says otherwise. The feed-forward
    width is 4x in every stage. Any image size from `min_img_size` up.

    Images of differing sizes run in one batch, padded at the bottom and right, with a mask that is True on their
    pixels: the logits, the maps (zero in the padding) and all gradients are those of each image alone. What the padding
    holds does not matter. In training, batch norm takes its statistics over the valid cells of the batch.

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the head; 0: none, the pooled features are returned.
        global_pool: `"token"`: the class token (released; last stage `class_token` only), `"avg"`: the mean of the last
            map, `""`: none. None: the first that the last stage allows.
        img_size: image size, pixels, at which the position tables are stored; others are resampled.
        embed_dims: channels of each stage.
        num_heads: heads of each stage.
        depths: blocks of each stage.
        output_stride: stride of the last map; stages that would exceed it keep the grid of the stage before (their
            embedding has stride 1, and no dilation).
        mixer: name of the mixer of all stages, or one of each; see `softmaxfree.mixers.list_mixers`. The last may be
            `"class_token"`: the released last stage, with softmax and a class token.
        mixer_args: arguments for all mixers that have them, or a dict for each stage.
        block_args: `mlp_ratio`, `mlp`, `act` and `num_features` of all blocks, see `softmaxfree.layers.Block`; those of
            `class_token` are always the released ones.
        stem_norm: norm of the stem: "batchnorm" (released), or one of timm's EvoNorms, which takes no masks.
        stem_stride: stride of the first map, 4 (released), or 8: as many tokens for an image of twice the side.
        contrast_window: odd side of the window, 3 pixels or more, in which the stem also sees each pixel relative to
            its surroundings (local contrast), for thin faint structures; 0: none.
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
        embed_dims: tuple[int, ...] = (64, 128, 320, 512),
        num_heads: tuple[int, ...] = (2, 4, 10, 16),
        depths: tuple[int, ...] = (1, 2, 3, 2),
        output_stride: Literal[8, 16, 32] = 32,
        mixer: str | Sequence[str] = ("soft", "soft", "soft", CLASS_TOKEN),
        mixer_args: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        block_args: Mapping[str, Any] | None = None,
        stem_norm: str = "batchnorm",
        stem_stride: Literal[4, 8] = 4,
        contrast_window: int = 0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        _check_stages(embed_dims, num_heads, depths)
        require_whole("in_chans", in_chans, 1)
        require_whole("num_classes", num_classes, 0)
        sides = [img_size, img_size] if isinstance(img_size, int) else img_size
        require_whole_numbers("img_size", sides, 2, 1)
        for name, rate in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)):
            require_number(name, rate, 0, 1)
        mixers = stage_mixers(mixer, len(embed_dims))
        arguments = stage_arguments(mixers, mixer_args)
        self.num_classes, self.in_chans = num_classes, in_chans
        if output_stride not in (8, 16, 32):
            raise InputError(f"output_stride must be 8, 16 or 32, got {output_stride!r}")
        self.depths, self.num_heads = tuple(depths), tuple(num_heads)
        self.output_stride: int = output_stride
        self.fixed_args = {
            "block_args": block_arguments(block_args),
            "stem_norm": stem_norm,
            "stem_stride": stem_stride,
            "contrast_window": contrast_window,
        }
        self.feature_info = []

        grid, stride = to_2tuple(img_size), 1
        rates: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        stages: list[nn.Module] = []
        for i, dim in enumerate(embed_dims):
            if i == 0:
                embed = stem(
                    in_chans, dim, norm=stem_norm, stride=stem_stride, contrast_window=contrast_window, **factory
                )
            else:
                embed = downsample(embed_dims[i - 1], dim, stride=2 if stride < output_stride else 1, **factory)
            stride *= embed.stride
            grid = -(-grid[0] // embed.stride), -(-grid[1] // embed.stride)
            if mixers[i] == CLASS_TOKEN:
                stages.append(ClassTokenStage(embed, dim, grid, num_heads[i], rates[i], **factory))
            else:
                own: Any = {**arguments[i], **factory}
                make = functools.partial(create_mixer, mixers[i], dim=dim, num_heads=num_heads[i], **own)
                stages.append(Stage(embed, dim, grid, make, rates[i], block_args, **factory))
            self.feature_info.append({"num_chs": dim, "reduction": stride, "module": f"stages.{i}"})
        self.stages = nn.Sequential(*stages)
        # the grid of stride s has ceil(n / s) cells, and each mixer wants some
        strides = [info["reduction"] for info in self.feature_info]
        least = [max((own.min_grid for own in group), default=1) for group in self.mixer_groups]
        self.min_img_size = max((cells - 1) * stride + 1 for cells, stride in zip(least, strides, strict=True))

        self.num_features = self.head_hidden_size = embed_dims[-1]
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(self.num_features, num_classes, **factory) if num_classes > 0 else nn.Identity()
        self.set_pool(self.usual_pool if global_pool is None else global_pool)
        self.apply(_init_weights)
        self.keep_record(device)

    @property
    def mixer_groups(self) -> list[list[AbstractMixer]]:
        """The mixers of each stage; none of the class token's stage."""
        return [stage.mixers for stage in cast(Any, self.stages)]

    @property
    def usual_args(self) -> dict[str, Any]:
        """Those of `fixed_args` in all weights whose record does not tell them, such as the released ones."""
        return {"block_args": block_arguments(None), "stem_norm": "batchnorm", "stem_stride": 4, "contrast_window": 0}

    @property
    def usual_pool(self) -> Literal["token", "avg"]:
        """The pooling that is the default: of the class token where there is one."""
        return "token" if isinstance(self.stages[-1], ClassTokenStage) else "avg"

    def told_in(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Returns arguments of the call that made the network, with what is adjustable as it is now.

        Args:
            arguments: of the entry point.

        Returns:
            Those of a call that makes the same network; the authors' weights tell its depths too.
        """
        return {**super().told_in(arguments), "depths": self.depths}

    def no_weight_decay(self) -> set[str]:
        """Returns the names of the weights that do not decay."""
        return {name for name, _ in self.named_parameters() if name.endswith((".table", ".cls_token", ".cls_pos"))}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Returns the parameter groups of layer-wise decay: one a block, or with `coarse` one a stage."""
        blocks = [
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.norm", (99999,)),
            (r"^stages\.(\d+)", (0,)),
        ]
        return {"stem": r"^stages\.0\.(?:embed|pos_embed)", "blocks": r"^stages\.(\d+)" if coarse else blocks}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes each block in the backward pass."""
        for stage in self.modules():
            if isinstance(stage, Stage | ClassTokenStage):
                stage.grad_checkpointing = enable

    def set_pool(self, global_pool: str) -> None:
        """Changes the pooling; raises InputError for one that the last stage does not have."""
        last = self.stages[-1]
        allowed = ("token", "avg", "") if isinstance(last, ClassTokenStage) else ("avg", "")
        if global_pool not in allowed:
            raise InputError(f"global_pool must be one of {allowed} for this last stage, got {global_pool!r}")
        self.global_pool = global_pool
        if isinstance(last, ClassTokenStage):
            last.center = global_pool == "token"

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
        """Returns feature maps of stages (timm's contract).

        Args:
            x: images `(B, in_chans, height, width)`.
            indices: stages to take: the last n for an int, all for None.
            norm: no effect: every stage ends with a LayerNorm.
            stop_early: do not run stages behind the last one taken.
            output_fmt: must be `"NCHW"`.
            intermediates_only: do not return the final features.
            mask: `(B, height, width)` bool, True where a pixel is valid.

        Returns:
            The taken maps `(B, C, Y, X)`, and unless `intermediates_only` the final features before them; zero in the
            padding. Maps are those of `features_only`: the last one is not centred on the class token, which the final
            features of `forward_features` are for `global_pool="token"`.

        Raises:
            InputError: for another `output_fmt`, and for images and masks that the model cannot take.
        """
        if output_fmt != "NCHW":
            raise InputError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        x, mask = self.check(x, mask)
        take, last = feature_take_indices(len(self.stages), indices)
        intermediates = []
        for i, stage in enumerate(cast(Any, self.stages)[: last + 1 if stop_early else None]):
            if isinstance(stage, ClassTokenStage) and stage.center:
                features, cls = stage.features(x, mask)
                final = stage.centred(features, cls, at_stride(mask, stage.embed.stride))
            else:
                features = final = stage(x, mask)
            x, mask = final, at_stride(mask, stage.embed.stride)
            if i in take:
                intermediates.append(features)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the stages behind the last one taken, and the head; returns the absolute indices taken."""
        take, last = feature_take_indices(len(self.stages), indices)
        pruned = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if pruned:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
            self.output_stride = self.feature_info[last]["reduction"]
        if prune_head or pruned:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the last map; with `global_pool="token"` its spatial mean is the class token.

        Args:
            x: images `(B, in_chans, height, width)`.
            mask: `(B, height, width)` bool, True where a pixel is valid: a rectangle at the top left of each image. On
                the CPU, whose check waits for no other device, or on that of `x`.

        Returns:
            `(B, C, Y, X)`, zero in the padding.

        Raises:
            InputError: for images and masks that the model cannot take.
        """
        x, mask = self.check(x, mask)
        if mask is None:
            return self.stages(x)
        for stage in cast(Iterable[Stage], self.stages):
            x, mask = stage(x, mask), at_stride(mask, stage.embed.stride)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False, mask: Tensor | None = None) -> Tensor:
        """Pools, over the pixels for which `mask` is True, and classifies the map that `forward_features` returns."""
        if self.global_pool != "" and isinstance(mask, Tensor):
            mask = mask.to(x.device, non_blocking=True)
            x = valid_mean(x, mask[:, :: self.output_stride, :: self.output_stride])
        elif self.global_pool != "":
            x = x.mean((-2, -1))
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns logits `(B, num_classes)` of images; arguments as `forward_features` takes them."""
        return self.forward_head(self.forward_features(x, mask), mask=mask)


def _check_stages(embed_dims, num_heads, depths) -> None:
    for name, values in dict(embed_dims=embed_dims, num_heads=num_heads, depths=depths).items():
        whole = isinstance(values, Sequence) and all(isinstance(n, int) and not isinstance(n, bool) for n in values)
        require(whole, name, values, "a whole number for each stage")
        if len(values) != 4:
            raise InputError(f"{name} must have one entry for each of the 4 stages, got {values!r}")
        if min(values) < 1:
            raise InputError(f"{name} must be 1 or more in every stage, got {values!r}")
    for dim, heads in zip(embed_dims, num_heads, strict=True):
        if dim % heads:
            raise InputError(f"num_heads must divide embed_dims in every stage, got {num_heads!r} for {embed_dims!r}")


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):  # convolutions keep PyTorch's default, as released
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
