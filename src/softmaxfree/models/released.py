"""Reads weights: the authors' released names and shapes, other image sizes, and whether a checkpoint fits at all."""

import math
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from softmaxfree.errors import InputError
from softmaxfree.layers import PositionTable
from softmaxfree.models.record import NAME, decode, encode
from softmaxfree.ops import Newton, as_solver

if TYPE_CHECKING:
    from softmaxfree.models.backbone import AbstractBackbone

# what the released normalised models were trained with; an exact inverse would be another function
RELEASED_NORMALIZED_SOLVER = Newton(iters=20, ridge=0.0, start="halving")
RELEASED_SOLVER = Newton(iters=20, ridge=0.01)
# the authors' landmarks grow with the image; up to 512 x 512 pixels these do too
RELEASED_LANDMARK_GRID = (16, 16)
# what the authors' code builds as SOFT-Small, deeper than in their paper
RELEASED_SMALL_DEPTHS = (1, 3, 20, 4)

_STEM = {"0": "0.conv", "1": "0.bn", "3": "1.conv", "4": "1.bn", "6": "2.conv", "7": "2.bn"}
_RENAMED = (
    (r"^pos_embed(\d)$", lambda m: f"stages.{int(m[1]) - 1}.pos_embed.table"),
    (r"^cls_token$", "stages.3.cls_token"),
    (r"^norm\.", "stages.3.norm."),
    (r"^patch_embed(\d)\.proj\.(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.embed.{_STEM[m[2]]}."),
    (r"^block(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
    (r"\.att\.mha\.attn\.Qlandmark_op\.", ".attn.landmarks.conv."),
    (r"\.att\.mha\.attn\.Qnorm_act\.0\.", ".attn.landmarks.norm."),
    (r"\.att\.mha\.attn\.conv\.", ".attn.value_conv."),
    (r"\.att\.mha\.W_([qv])\.", r".attn.\1."),
    (r"\.att\.mha\.ff\.", ".attn.proj."),
    (r"\.att\.ff([12])\.", r".mlp.fc\1."),
    (r"\.att\.norm([12])\.", r".norm\1."),
)


def checkpoint_filter_fn(state_dict: Mapping[str, Tensor], model: "AbstractBackbone") -> dict[str, Tensor]:
    """Returns weights under our names and at the model's position grids (timm's convention).

    Released weights get a record of the solver that they were trained with. Weights of version 0.1.0 may have none:
    they get that of the model, and a warning says so unless somebody has chosen it.

    Args:
        state_dict: our weights or released ones.
        model: the model that they are for, which stays as it is.

    Returns:
        The weights that `model.load_state_dict` takes.
    """
    if is_released(state_dict):
        normalized = any(getattr(mixer, "normalize", False) for mixer in model.mixers)
        solver = RELEASED_NORMALIZED_SOLVER if normalized else RELEASED_SOLVER
        state_dict = {**from_released(state_dict), NAME: _released_record(solver)}
    elif NAME not in state_dict and has_attention(state_dict):
        record = encode({})
        if model.solver is not None and model.solver == as_solver(model.adjustable_defaults["solver"]):
            warnings.warn(
                f"the weights do not tell the solver that they were trained with (files of softmaxfree 0.1.0 do not): "
                f"its default then, {RELEASED_SOLVER}, is used; set_solver() changes it",
                stacklevel=2,
            )
            record = _released_record(RELEASED_SOLVER)
        state_dict = {**state_dict, NAME: record}
    return resize_positions(state_dict, model)


def _released_record(solver: Newton) -> Tensor:
    return encode({"mixers": [{"solver": solver.to_dict(), "landmark_grid": RELEASED_LANDMARK_GRID}] * 4})


def is_released(state_dict: Mapping[str, Tensor]) -> bool:
    """Returns whether the names are those of the authors' code."""
    return "patch_embed1.proj.0.weight" in state_dict


def from_released(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the authors' weights.

    Args:
        state_dict: weights under the authors' names.

    Returns:
        The weights under our names.

    Raises:
        InputError: when half of a pair that is one weight here is missing.
    """
    out = {}
    for name, value in state_dict.items():
        for pattern, renamed in _RENAMED:
            name = re.sub(pattern, renamed, name)
        if name == "stages.3.pos_embed.table":  # the class token's position comes first
            out["stages.3.cls_pos"], value = value[:, :1], value[:, 1:]
        elif ".attn.kv." in name:
            continue
        elif name.startswith("stages.3.") and ".attn.q." in name:
            kv_name = name.replace("stages.3.blocks.", "block4.").replace(".attn.q.", ".attn.kv.")
            if kv_name not in state_dict:
                raise InputError(f"the checkpoint is incomplete: {kv_name!r} is missing")
            kv = state_dict[kv_name]
            name, value = name.replace(".attn.q.", ".attn.qkv."), torch.cat((value, kv))
        out[name] = value
    return out


def depths_of(names: Iterable[str]) -> tuple[int, ...]:
    """Returns how many blocks each stage has in weights of these names, ours or the authors'."""
    found = [re.match(r"stages\.(\d)\.blocks\.(\d+)\.|block(\d)\.(\d+)\.", name) for name in names]
    blocks = {(int(match[1] or match[3]), match[2] or match[4]) for match in found if match}
    return tuple(sum(stage == own for own, _ in blocks) for stage in sorted({stage for stage, _ in blocks}))


def resize_positions(state_dict: Mapping[str, Tensor], model: "AbstractBackbone") -> dict[str, Tensor]:
    """Returns the weights with position tables resampled to the model's grids where they differ.

    Args:
        state_dict: our weights.
        model: the model that they are for.

    Returns:
        The weights. A table whose grid neither the record tells nor its being square stays as it is.
    """
    out = dict(state_dict)
    tables = {f"{name}.table": module for name, module in model.named_modules() if isinstance(module, PositionTable)}
    grids = decode(out[NAME]).get("grids") if NAME in out else None
    told: list[str] = []
    for (name, module), grid in zip(tables.items(), grids or [None] * len(tables), strict=False):
        if name not in out or out[name].shape[2:] != module.table.shape[2:]:
            continue
        grid = tuple(grid) if grid else _grid_of(out[name], module)
        if grid is None or grid == module.grid or math.prod(grid) != out[name].shape[1]:
            continue
        if grids:
            told.append(f"{grid} to {module.grid}")
        image = out[name].float().view(1, *grid, -1).permute(0, 3, 1, 2)
        image = F.interpolate(image, size=module.grid, mode="bilinear", align_corners=False)
        out[name] = image.flatten(2).transpose(1, 2).to(out[name].dtype)
    if grids:
        now = {"grids": [list(module.grid) for module in tables.values()]}
        out[NAME] = encode(decode(out[NAME]) | now | ({"resampled": told} if told else {}))
    return out


def other_shapes(state_dict: Mapping[str, Tensor], model: "AbstractBackbone") -> str | None:
    """Returns in one line which weights have another shape than the model's, None if none has."""
    expected = model.state_dict()
    wrong = [n for n, v in state_dict.items() if n in expected and n != NAME and v.shape != expected[n].shape]
    if not wrong:
        return None
    theirs, ours = (tuple(weights[wrong[0]].shape) for weights in (state_dict, expected))
    return f"size mismatch: {len(wrong)} weights are of another shape; {wrong[0]} is {theirs}, the model's {ours}"


def has_attention(state_dict: Mapping[str, Tensor]) -> bool:
    """Returns whether there are weights of a softmax-free attention, which are tied to a solver."""
    return any(name.endswith(".attn.q.weight") for name in state_dict)


def _grid_of(table: Tensor, module: PositionTable) -> tuple[int, ...] | None:
    """Returns the grid of a table that comes without a record: the model's, or a square."""
    if table.shape == module.table.shape:
        return module.grid
    side = math.isqrt(table.shape[1])
    return (side, side) if side * side == table.shape[1] else None


def require_fit(state_dict: Mapping[str, Tensor], model: "AbstractBackbone") -> None:
    """Raises one ValueError that says why weights do not fit the model, instead of a list of hundreds of keys."""
    expected = model.state_dict()
    wrong = [n for n, v in state_dict.items() if n in expected and n != NAME and v.shape != expected[n].shape]
    unexpected = [n for n in state_dict if n not in expected]
    missing = [n for n in expected if n not in state_dict]
    if not (wrong or unexpected or missing):
        return
    if not unexpected and not missing and all(n.startswith("head.") for n in wrong):
        raise InputError(
            f"num_classes={model.num_classes} does not fit the checkpoint, which has "
            f"{len(state_dict['head.weight'])} classes: create the model with as many, load, then reset_classifier()"
        )
    theirs, ours = _describe(state_dict), _describe(expected)
    if theirs is None:
        raise InputError(
            f"the checkpoint is of another model: it holds {next(iter(state_dict), 'no weight')!r}, "
            f"this model has {next(iter(expected))!r}"
        )
    if theirs != ours:
        raise InputError(f"the checkpoint is of another model: it has {theirs}; this model has {ours}")
    raise InputError(
        f"the checkpoint does not fit: {len(missing)} weights missing {missing[:2]}, {len(unexpected)} unexpected "
        f"{unexpected[:2]}, {len(wrong)} of another shape {wrong[:2]}"
    )


def _describe(state_dict: Mapping[str, Tensor]) -> str | None:
    if (norm := state_dict.get("blocks.0.norm1.weight")) is not None:  # a plain network
        return (
            f"embed_dim={len(norm)} depth={len({name.split('.')[1] for name in state_dict if name[:7] == 'blocks.'})}"
        )
    norms = [state_dict.get(f"stages.{i}.blocks.0.norm1.weight") for i in range(4)]
    dims = tuple(len(norm) for norm in norms if norm is not None)
    return f"embed_dims={dims} depths={depths_of(state_dict)}" if dims else None
