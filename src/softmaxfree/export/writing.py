"""A model to a file: written beside its place, run and compared, and only then given its name."""

import copy
import json
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timm.data import resolve_model_data_config
from torch import nn

from softmaxfree.atomic import atomic_write
from softmaxfree.errors import InputError
from softmaxfree.export.agreement import Cost, calibration_files, quantised
from softmaxfree.export.checking import LIMITS, Difference, check, check_runs, example, photograph
from softmaxfree.export.formats import AOTI, ONNX, format_of, load, require_compiler, write
from softmaxfree.export.programs import program_of
from softmaxfree.models.evaluation import evaluation
from softmaxfree.models.segmentation import STRIDE

__all__ = ["MODEL", "NOTES", "Exported", "export", "notes_of"]

MODEL, NOTES = "model.pt2", "metadata.json"
"""Files of a folder that ends in `_aoti`."""

_EXAMPLE = (2, (96, 128))  # what is exported; the program takes all others


class Exported(NamedTuple):
    """What came of an export.

    Attributes:
        out: the file.
        kind: its format: "onnx", "pt2" or "aoti".
        inputs: names of its inputs.
        outputs: names of its outputs.
        differences: from the model in float32; of int8 those of the file before it.
        limit: that they keep to.
        cost: of int8; None for any other.
        smallest: height and width that it was checked to take.
    """

    out: Path
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    differences: list[Difference]
    limit: float
    cost: Cost | None
    smallest: int


@torch.no_grad()
def export(
    model: nn.Module,
    out: str | Path,
    data_config: Mapping[str, Any] | None = None,
    class_names: Sequence[str] = (),
    *,
    features: bool = False,
    mask: bool = False,
    half: bool = False,
    opset: int | None = None,
    image: str | Path | None = None,
    calibration: str | Path | None = None,
) -> Exported:
    """Write a model to a file that runs without this package, run the file, and compare.

    Args:
        model: a classifier of timm, a `features_only` network or a `Segmenter`; of a `Detector` only its feature maps.
            It stays as it is; of one that is on a GPU a copy on the CPU is exported.
        out: ends in `.onnx`, `.pt2` (torch.export), `.aoti.pt2` or, a folder, `_aoti` (AOTInductor).
        data_config: how images are prepared, in timm's words: `input_size`, `mean` and `std`, which the file carries;
            None is what timm tells of the model.
        class_names: in the order of the outputs.
        features: export feature maps.
        mask: take a mask of valid pixels too.
        half: float16, but for kernel and inverse.
        opset: of ONNX.
        image: to compare on; None is a photograph of scikit-image.
        calibration: folder of images: 8 bits of ONNX for convolutions and products with weights.

    Returns:
        What was written and how it compares.

    Raises:
        InputError: the model or an argument does not allow it, or the file is not the model: it is removed then.
        OSError: the file cannot be written.
    """
    out = Path(out).expanduser()
    kind = format_of(out)
    if kind != ONNX and (opset is not None or calibration is not None):
        raise InputError(f"{'opset' if opset is not None else 'calibration (int8)'} is for .onnx, got {out}")
    if half and calibration is not None:
        raise InputError("half and calibration (int8) exclude each other")
    if kind == AOTI:
        require_compiler()
    files = [] if calibration is None else calibration_files(Path(calibration).expanduser())
    if data_config is None:
        data_config = resolve_model_data_config(model)
    if any(each.device.type != "cpu" for each in model.parameters()):
        model = copy.deepcopy(model).cpu()
    with evaluation(model):
        program = program_of(model, features=features, mask=mask, half=half)
        if kind != ONNX and program.kind == "segmentation":
            program = program._replace(step=STRIDE)  # torch.export wants to know that nothing is padded
        config = {**data_config, "mean": list(data_config["mean"]), "std": list(data_config["std"])}
        picture = photograph(image, config, program.in_chans)
        side, step = max(program.smallest, 64), program.step
        height, width = (
            -(-each // step) * step for each in (max(_EXAMPLE[1][0], side), max(_EXAMPLE[1][1], side + 32))
        )
        inputs = example(program, picture, _EXAMPLE[0], (height, width))
        notes = notes_of(model, program.kind, config, class_names)
        limit = LIMITS["half" if half else "float"]
        with _place(out, kind, notes) as part:
            write(program, inputs, part, kind, notes, opset)
            height, width = config["input_size"][1:]
            small = min(height, width) < program.smallest  # which ONNX takes, and torch.export does not
            trained = (height, width) if small and kind == ONNX and program.kind != "segmentation" else None
            differences = check(program, load(part, kind), picture, limit, trained)
            cost = quantised(program, part, files, config) if files else None
            if cost is not None:
                check_runs(program, load(part, kind), picture)
    smallest = min(trained) if trained else program.smallest
    return Exported(out, kind, program.inputs, program.outputs, differences, limit, cost, smallest)


def notes_of(model: Any, kind: str, config: Mapping[str, Any], class_names: Sequence[str]) -> dict[str, str]:
    """Return what a file carries beside its program; lists are JSON.

    Args:
        model: that is exported.
        kind: of its outputs.
        config: how images are prepared.
        class_names: in the order of the outputs.

    Returns:
        Texts by name.
    """
    own = getattr(model, "backbone", model)
    name = (getattr(own, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__
    told = {
        "architecture": name,
        "task": kind,
        "class_names": json.dumps([] if kind == "features" else list(class_names), ensure_ascii=False),
        "input_size": json.dumps(list(config["input_size"])),
        "mean": json.dumps(config["mean"]),
        "std": json.dumps(config["std"]),
    }
    more = {key: config[key] for key in ("interpolation", "crop_pct") if config.get(key) is not None}
    return {**told, **{key: str(value) for key, value in more.items()}}


@contextmanager
def _place(out: Path, kind: str, notes: Mapping[str, str]) -> Iterator[Path]:
    """Yields where the file is to be written; it gets its name at the end, and an error leaves nothing."""
    if kind != AOTI or out.suffix == ".pt2":
        with atomic_write(out) as part:
            part.touch()  # a place where nothing can be written is told before the work of minutes
            part.unlink()
            yield part
        return
    if out.exists() and not out.is_dir():
        raise InputError(f"out: {out} is a file, and a folder of that name would be written; name another place")
    if out.exists() and {path.name for path in out.iterdir()} - {MODEL, NOTES}:
        raise InputError(f"out: the folder {out} holds other files; name another place or move it")
    folder = out.with_name(f".{secrets.token_hex(8)}")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(out)) from error
    try:
        yield folder / MODEL
        (folder / NOTES).write_text(json.dumps(dict(notes), indent=1, ensure_ascii=False), encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
