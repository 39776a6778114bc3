"""`softmaxfree explain` of bags: what the network looks at in a slide, over its patches."""

from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from softmaxfree.arguments import require
from softmaxfree.cli.explain_inputs import find_target
from softmaxfree.cli.explain_outputs import Outputs
from softmaxfree.cli.outputs import require_free
from softmaxfree.cli.predict_bags import find_bags, load_bags, open_slide
from softmaxfree.errors import InputError

__all__ = ["KINDS", "explain_slide"]

KINDS = ("attention", "contributions")
"""What can be shown of a bag."""


def explain_slide(
    file: Path,
    checkpoint: str,
    what: str,
    out: Path,
    *,
    coords: Path | None,
    thumbnail: Path | None,
    layer: int,
    head: int | Literal["mean", "all"],
    target: str | None,
    scaling: str,
    top: int,
    device: torch.device,
) -> None:
    """Write a heat map of a slide, its scores as CLAM's HDF5, its numbers, and the patches with the highest scores.

    Args:
        file: features of the slide.
        checkpoint: of a task of bags.
        what: "attention" of the class token, or "contributions" to a logit.
        out: folder for the files.
        coords: folder of coordinates that are not beside the features.
        thumbnail: picture of the whole slide; None draws on a blank canvas.
        layer: of the attention.
        head: of the attention: a number or "mean".
        target: class whose logit is taken apart, by name or number; None takes the likeliest.
        scaling: "rank" or "raw".
        top: how many patches are listed.
        device: of the network.

    Raises:
        InputError: the slide has no coordinates, or an argument is out of range.
        OSError: a file cannot be written.
    """
    from softmaxfree.mil import heatmaps, maps
    from softmaxfree.mil.pooling import AbstractPooling

    require(head != "all", "--head", head, "a number or mean, for bags")
    (name, path, beside) = find_bags([file], coords)[0]
    outputs = Outputs(out, Path(f"{name}.h5"), what, [path, checkpoint, *([beside] if beside else [])])
    scores_file, top_file = (out / f"{name}_{what}{end}" for end in (".h5", "_top.csv"))
    require_free([scores_file, top_file], [path], _is_ours)
    task, record = load_bags(checkpoint)
    task.to(device)
    slide, batch = open_slide(name, path, beside, task, record)
    if slide.coords is None:
        raise InputError(f"slide {name}: {path} has no coordinates, which a map needs; --coords is a folder of them")
    if batch.coords is None:  # which the network does without
        from softmaxfree.mil.data.slides import read_coords

        found, step = read_coords(slide, record.data_config.get("step"))
        places = torch.from_numpy(found)
    else:
        places, step = batch.coords[0].cpu(), float(batch.step[0])
    with torch.inference_mode():
        output = task(batch).cpu()
    logits, probabilities = output[0], task.probabilities_of(output)[0]
    names = record.class_names or [str(i) for i in range(len(logits))]
    numbers: dict[str, Any] = {
        "image": str(path),
        "slide": name,
        "patches": len(places),
        "logits": logits.tolist(),
        "probabilities": dict(zip(names, probabilities.tolist(), strict=True)),
    }
    given: dict[str, Any] = {} if batch.coords is None else {"step": step}
    token = not isinstance(task.model, AbstractPooling)
    likeliest = int(probabilities.argmax())
    if what == "attention":
        whose = "attention of the class token" if token else "weights of the pooling"
        scores = maps.attention(task.model, batch.features, batch.coords, layer=layer, head=head, **given).cpu()
        line = f"{whose}: sum over {len(scores):,} patches {float(scores.sum()):.4g}"
    else:
        asked = find_target(target, names)
        number = likeliest if asked is None else asked
        require(0 <= number < len(names), "--target", number, f"0 to {len(names) - 1}")
        parts = maps.contributions(task.model, batch.features, batch.coords, **given)
        scores = parts.patches[number].cpu()
        rest = {"class_token": float(parts.class_token[number]), "base": float(parts.base[number])}
        numbers |= {"class": names[number], "index": number, "of_patches": float(scores.sum()), **rest}
        parts_told = rest if token else {"base": rest["base"]}
        told = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in parts_told.items())
        line = f"logit of {names[number]} {float(logits[number]):.4g}: patches {float(scores.sum()):.4g}, {told}"
    first = maps.top_patches(scores, top, places)
    numbers["top"] = [patch._asdict() for patch in first]
    attributes = slide.coords.attributes
    shown = _drawn(attributes, step, thumbnail)
    title = f"{name}: {what}" + (f" to {numbers['class']}" if what == "contributions" else "")
    outputs.write(
        lambda: heatmaps.draw_heatmap(scores, places, **shown, scaling=scaling, title=title),  # type: ignore[arg-type]
        numbers,
        f"{name}: {names[likeliest]} {float(probabilities[likeliest]):.1%}\n{line}",
    )
    heatmaps.write_scores(scores_file, scores, places, attributes)
    heatmaps.write_top_patches(top_file, first)
    print(f"{scores_file}, {top_file}")


def _drawn(attributes: dict[str, Any], step: float, thumbnail: Path | None) -> dict[str, Any]:
    """Size of a patch, and of the slide where the file tells it, in pixels at level 0; and the picture below."""
    from softmaxfree.mil.data.lattice import patch_size_of, slide_size_of

    shown: dict[str, Any] = {"patch_size": patch_size_of(attributes) or step, "size": slide_size_of(attributes)}
    if thumbnail is None:
        return shown
    if shown["size"] is None:
        raise InputError(
            "--thumbnail: the coordinates do not tell the size of the slide; TRIDENT's and those of CLAM's folder "
            "`patches`, given by --coords, do"
        )
    try:
        with Image.open(thumbnail) as picture:
            return {**shown, "thumbnail": picture.convert("RGB")}
    except OSError as error:
        raise InputError(f"--thumbnail: {thumbnail} cannot be read: {error}") from error


def _is_ours(path: Path) -> bool:
    if path.suffix == ".csv":
        return path.read_bytes().startswith(b"rank,patch,score")
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return "attention_scores" in file
    except OSError:
        return False
