"""`softmaxfree export`: a trained model as a file that runs without this package."""

from pathlib import Path
from typing import Any

from softmaxfree.errors import InputError

__all__ = ["run"]


def run(
    checkpoint: str,
    out: Path,
    *,
    model: str | None = None,
    features: bool = False,
    with_mask: bool = False,
    half: bool = False,
    int8: bool = False,
    calibration: Path | None = None,
    opset: int | None = None,
    image: Path | None = None,
) -> None:
    """Write a trained model as ONNX, as a program of torch.export, or compiled by AOTInductor.

    The file takes normalised images `x (batch, channels, height, width)` of any batch and size from 33 pixels. It
    carries the names of the classes, and size, mean and deviation of the images. Before it gets its name it runs on a
    photograph in batches of one and two, at three sizes: that from which on the number of landmarks stays the same, a
    smaller and a larger one. A difference of more than 1e-4 of the output's range (with --half 2e-2) is an error, and
    no file is left. Needs `pip install ".[export]"`.

    Args:
        checkpoint: The weights, as `predict --checkpoint` takes them: the folder of a run, a `.ckpt`, a `.safetensors`,
            a folder of timm's `save_for_hf`. Or the name of a model that timm has weights of.
        out: What to write: a file that ends in `.onnx`, `.pt2` (torch.export) or `.aoti.pt2` (AOTInductor), or a
            folder that ends in `_aoti` (AOTInductor, with the metadata as JSON).
        model: Name of the model, needed only if the checkpoint does not tell it.
        features: Export the feature maps of the backbone in place of classes.
        with_mask: The file takes a second input, `mask (batch, height, width)`, true where a pixel is no padding.
        half: Weights and activations in float16. Kernel and inverse stay in float32.
        int8: Convolutions and products with weights in 8 bits, calibrated with --calibration. Kernel and inverse stay
            in float32. Only for `.onnx`.
        calibration: Folder of your pictures, of which up to 64 are used; --int8 needs it.
        opset: Version of the operators of ONNX; by default that of torch's exporter.
        image: Picture to compare file and model on; by default a photograph that scikit-image brings.

    Raises:
        FileNotFoundError: there is no such checkpoint or image.
        InputError: the model cannot be exported so, or the file differs from the model.
        OSError: the file cannot be written.

    Examples:
        softmaxfree export runs/digits/0 digits.onnx
        softmaxfree export runs/classification/0 photos.onnx --int8 --calibration photos/
        softmaxfree export runs/segmentation/0 masks.aoti.pt2 --image street.jpg
    """
    if int8 != (calibration is not None):
        raise InputError("--int8 and --calibration DIR belong together: give both")

    from softmaxfree.export import export  # torch: seconds
    from softmaxfree.export.checking import TRAINED
    from softmaxfree.export.formats import AOTI, format_of

    format_of(Path(out))
    net, config, names = _load(checkpoint, model)
    print(f"exports  {checkpoint}, and runs the file at three sizes: seconds to minutes", flush=True)
    done = export(
        net,
        out,
        config,
        names,
        features=features,
        mask=with_mask,
        half=half,
        opset=opset,
        image=image,
        calibration=calibration,
    )
    of_float = " (before 8 bits)" if done.cost is not None else ""
    for each in done.differences:
        where = "as in training" if each.where == TRAINED else f"{each.where} the budget"
        print(f"checked  {each.batch}x{each.height}x{each.width}, {where}: {each.value:.1e} of the range{of_float}")
    if (cost := done.cost) is not None:
        print(
            f"int8     {cost.quantised} convolutions and products in 8 bits, {cost.kept} (kernel, inverse) in float32"
        )
        print(f"time     {cost.before_ms:.1f} ms a picture before, {cost.after_ms:.1f} ms after")
        print(f"size     {cost.before_bytes / 1e6:.1f} MB before, {cost.after_bytes / 1e6:.1f} MB after")
        print(f"costs    agreement with float32 {cost.agreement:.1%} on {cost.pictures} pictures")
    if done.kind == AOTI:
        print(
            "note     AOTInductor wants contiguous tensors, and does not look: call .contiguous() on what was permuted"
        )
    if (side := min(config["input_size"][1:])) < done.smallest:
        print(
            f"note     the file takes images from {done.smallest} pixels, those of the training have {side}: scale up"
        )
    print(f"written  {done.out}: {', '.join(done.inputs)} to {', '.join(done.outputs)}; allowed were {done.limit:g}")


def _load(checkpoint: str, model: str | None) -> tuple[Any, dict[str, Any], list[str]]:
    """A model, how its images are prepared, and its classes."""
    import timm

    from softmaxfree.cli.checkpoint import find_checkpoint, find_kind, load_classifier, load_task

    if not Path(checkpoint).expanduser().exists() and timm.is_model(checkpoint.split(".")[0]):
        own = load_classifier(None, checkpoint)
        return own.model, own.data_config, own.class_names
    weights = find_checkpoint(checkpoint)
    kind = find_kind(weights)
    if kind == "classification":
        own = load_classifier(weights, model)
        return own.model, own.data_config, own.class_names
    if kind == "bags":
        raise InputError(f"{checkpoint} is of bags: networks of images alone are exported")
    loaded = load_task(weights, kind)
    net = loaded.task.model
    backbone = net.backbone if kind == "segmentation" else net.network.backbone.net
    config = timm.data.resolve_model_data_config(backbone)
    return net, {**config, "input_size": (3, *loaded.size)}, loaded.class_names
