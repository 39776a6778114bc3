"""Eight bits: calibrated on the user's pictures, and what they cost on these."""

import logging
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from timm.data.transforms_factory import create_transform
from torch import Tensor

from softmaxfree.errors import InputError
from softmaxfree.export.formats import ONNX, load
from softmaxfree.export.programs import Program
from softmaxfree.images import find_images, read_image

__all__ = ["Cost", "calibration_files", "quantised"]

_MOST = 64  # pictures that are looked at
_TIMED = 8


class Cost(NamedTuple):
    """What 8 bits give and take, on the pictures that they were calibrated with.

    Attributes:
        pictures: how many.
        before_ms: median time of one picture before.
        after_ms: and after.
        agreement: part of the pictures (of a segmenter of the pixels) of the same class before and after; of feature
            maps the cosine.
        before_bytes: size of the file before.
        after_bytes: and after.
        kept: products and convolutions in float32: those without weights, which are kernel and inverse.
        quantised: those in 8 bits.
    """

    pictures: int
    before_ms: float
    after_ms: float
    agreement: float
    before_bytes: int
    after_bytes: int
    kept: int
    quantised: int


def quantised(program: Program, file: Path, files: Sequence[Path], config: Mapping[str, Any]) -> Cost:
    """Put an ONNX file in 8 bits, in its place.

    Weights and activations of convolutions and of products with weights become 8 bits. Products of activations stay
    in float32: they are the kernels, the inverse and what is applied of them.

    Args:
        program: what was exported.
        file: an ONNX file, which is replaced.
        files: pictures.
        config: how they are prepared.

    Returns:
        What it costs.

    Raises:
        InputError: there is nothing to put in 8 bits, or a picture cannot be read.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    pictures = list(_pictures(files, config))
    model = onnx.load(file)
    constants = {each.name for each in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    with_weights = [node.name for node in products if constants & set(node.input)]
    if not with_weights:
        raise InputError("calibration (int8): the model has no convolution or product with weights")

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(pictures)

        def get_next(self) -> dict[str, np.ndarray] | None:
            x = next(self.left, None)
            return None if x is None else _named(program, x)

    before = load(file, ONNX)
    times, results = _timed(program, before, pictures)
    size = file.stat().st_size
    with tempfile.TemporaryDirectory() as scratch, _silent():
        target = Path(scratch, "int8.onnx")
        quantize_static(
            str(file),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            nodes_to_quantize=with_weights,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": False},
        )
        file.write_bytes(target.read_bytes())
    after_times, after = _timed(program, load(file, ONNX), pictures)
    agreement = float(np.mean([_agreement(program.kind, a, b) for a, b in zip(results, after, strict=True)]))
    kept = len(products) - len(with_weights)
    return Cost(len(pictures), times, after_times, agreement, size, file.stat().st_size, kept, len(with_weights))


@contextmanager
def _silent() -> Iterator[None]:
    """onnxruntime advises, through the root logger, what export has done already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def calibration_files(folder: Path) -> list[Path]:
    """Return the pictures of a folder, at most 64; raises InputError where there are none."""
    if not folder.is_dir():
        raise InputError(f"calibration must be a folder of pictures, got {folder}")
    files = find_images(folder).files[:_MOST]
    if not files:
        raise InputError(f"calibration: no images in {folder}")
    return files


def _pictures(files: Sequence[Path], config: Mapping[str, Any]) -> Iterator[Tensor]:
    transform: Any = create_transform(**{key: value for key, value in config.items() if key != "size"})
    for file in files:
        yield transform(read_image(file, "L" if config["input_size"][0] == 1 else "RGB"))[None]


def _named(program: Program, x: Tensor) -> dict[str, np.ndarray]:
    given = {"x": x.numpy()}
    return given | ({"mask": np.ones((1, *x.shape[-2:]), bool)} if "mask" in program.inputs else {})


def _timed(program: Program, run: Any, pictures: list[Tensor]) -> tuple[float, list[list[Tensor]]]:
    results, times = [], []
    run(*map(torch.from_numpy, _named(program, pictures[0]).values()))
    for number, x in enumerate(pictures):
        began = time.perf_counter()
        results.append(run(*map(torch.from_numpy, _named(program, x).values())))
        if number < _TIMED:
            times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times), results


def _agreement(kind: str, before: list[Tensor], after: list[Tensor]) -> float:
    if kind == "features":
        return float(
            np.mean([F.cosine_similarity(a.flatten(), b.flatten(), 0) for a, b in zip(before, after, strict=True)])
        )
    return float((before[0].argmax(1) == after[0].argmax(1)).float().mean())
