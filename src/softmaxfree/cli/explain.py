"""`softmaxfree explain`: what a network looks at in an image or a slide, as a picture and in numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from softmaxfree.errors import InputError
from softmaxfree.images import MAX_PIXELS

__all__ = ["run"]

_TAKES = {
    "--point": ("cls", ("attention", "mixers", "landmarks")),
    "--stage": (None, ("attention", "mixers", "landmarks", "cam")),
    "--block": (-1, ("attention", "mixers", "landmarks")),
    "--head": ("mean", ("attention",)),
    "--target": (None, ("cam", "contributions")),
    "--method": ("gradcam", ("cam",)),
}
"""Options with their defaults, and what they are for."""


def run(
    images: Sequence[Path] = (),
    *,
    checkpoint: Path | None = None,
    model: str | None = None,
    what: Literal["attention", "cam", "landmarks", "inverse", "mixers", "contributions"] = "attention",
    point: str = "cls",
    stage: int | None = None,
    block: int = -1,
    head: str = "mean",
    target: str | None = None,
    method: Literal["gradcam", "gradcam++", "hirescam", "xgradcam", "layercam", "eigengradcam"] = "gradcam",
    out: Path = Path("explained"),
    size: int | None = None,
    device: str = "auto",
    max_pixels: int = MAX_PIXELS,
    coords: Path | None = None,
    thumbnail: Path | None = None,
    scaling: Literal["rank", "raw"] = "rank",
    top: int = 20,
) -> None:
    """Show what a network looks at in an image.

    The folder OUT gets a picture NAME_WHAT.png and its numbers, NAME_WHAT.json; with --target NAME_WHAT_TARGET. Stages,
    blocks and heads are counted from 0, as the modules are named; -1 is the last one. Negative weights are shown in
    blue.

    `attention`: with which weights the query at --point takes the values of all tokens. `cam`: which pixels raise the
    score of a class, of a detection or of a segment. `landmarks`: how much goes through each landmark of the layer.
    `inverse`: the spectra of the matrices that the layers invert, and what the inverses miss. `mixers`: the query under
    softmax, the exact Gaussian kernel and its low rank, all with the queries of the layer; without an image it makes
    that figure of photographs that come with scikit-image and scikit-learn, where the tokens are patches.

    Of bags `attention` is with which weights the class token, or the pooling, takes the patches, and `contributions`
    are what each patch adds to the logit of a class: with the class token and a constant they sum to it. The folder
    gets the scores as CLAM's HDF5 too, and the patches with the highest scores as CSV; of several slides also
    `slides.csv`, with what is predicted of each.

    Args:
        images: The picture; for bags files of the features of slides, and folders of such files.
        checkpoint: The weights, as for `softmaxfree predict`.
        model: Name of the model, needed only if the checkpoint does not tell it. Without --checkpoint it is a model
            with published weights, which are downloaded.
        what: What is shown.
        point: Query, `x,y` in pixels of the picture, or `cls`: the class token, and in layers without one the mean of
            all queries.
        stage: Number of the stage. By default the last one that has what is shown. For `cam` it is that of the feature
            map: earlier ones are finer, and tell less of the class.
        block: Number of the block in the stage; of bags that of the layer.
        head: Number of a head, `mean`, or `all`, which is not for bags.
        target: Class whose score is followed, by name or number, also for `contributions`; of a detector number of the
            detection, best first. By default the likeliest class, the largest segment, the best detection.
        method: How `cam` makes a map of activations and gradients.
        out: Folder for the picture and the numbers.
        size: Length, in pixels, to which the shorter side of the picture is resized for the network. By default it is
            that of the training; a segmenter takes a picture at its own size.
        device: Where the model runs: `auto` (a GPU if there is one, or else the CPU), `cpu`, `cuda`, `cuda:1`, `mps`.
        max_pixels: Largest number of pixels (height times width) of a picture, or thumbnail, that is read.
        coords: Bags: folder of coordinates that are not beside the features.
        thumbnail: Bags: picture of the whole slide, over which the map is drawn; for several slides a folder of
            pictures with their names. By default on a blank canvas.
        scaling: Bags: whether colours tell the ranks of the patches or the raw scores.
        top: Bags: how many patches are listed.

    Raises:
        FileNotFoundError: a file is missing.
        InputError: an argument or a file is wrong, or the network has nothing of the kind to show.
        OSError: the result cannot be written.

    Examples:
        softmaxfree explain cat.jpg --checkpoint runs/classification/0 --point 120,80 --stage 0 --head all
        softmaxfree explain cat.jpg --checkpoint runs/classification/0 --what cam
        softmaxfree explain street.jpg --checkpoint runs/segmentation/0 --what cam --target car --stage 2
        softmaxfree explain cat.jpg --checkpoint runs/classification/0 --what inverse
        softmaxfree explain features_uni/slide.h5 --checkpoint runs/bags/0 --what contributions --thumbnail slide.png
        softmaxfree explain features_uni/ --checkpoint runs/bags/0 --thumbnail thumbnails/
        softmaxfree explain --what mixers
    """
    query = _query(point)
    heads: int | str = head if head in ("mean", "all") else _whole("--head", head, "a number, mean or all")
    for name, value in (("--size", size), ("--max-pixels", max_pixels), ("--top", top)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be 1 or more, got {value}")
    given = dict(zip(_TAKES, (point, stage, block, head, target, method), strict=True))
    asked_for = [option for option, value in given.items() if value != _TAKES[option][0]]
    for option in asked_for:
        if what not in (kinds := _TAKES[option][1]):
            raise InputError(f"{option} is for --what {', '.join(kinds)}, not for {what}")

    from softmaxfree.cli import explain_outputs  # torch: seconds

    if not images:
        if what != "mixers":
            raise InputError(f"--what {what} needs a picture; without one there is --what mixers alone")
        of_network = (("--checkpoint", checkpoint), ("--model", model), ("--size", size))
        asked_for += [option for option, value in of_network if value is not None]
        if asked_for:
            raise InputError(f"{asked_for[0]} needs a picture: without one the figure is of no network")
        explain_outputs.photographs(out)
        return
    from softmaxfree.cli.checkpoint import find_checkpoint, find_kind
    from softmaxfree.cli.device import find_device
    from softmaxfree.cli.explain_inputs import find_target, load_subject

    where = find_device(device)
    if absent := [path for path in images if not path.exists()]:
        raise FileNotFoundError(f"there is no file {absent[0]}")
    weights = None if checkpoint is None else find_checkpoint(checkpoint)
    if find_kind(weights) == "bags":
        from softmaxfree.cli.explain_bags import KINDS, explain_slides

        of_images = {"--point": point != "cls", "--stage": stage is not None, "--size": size, "--model": model}
        if what not in KINDS:
            raise InputError(f"{weights} is of bags: --what is {' or '.join(KINDS)}, got {what}")
        if unfit := [option for option, value in of_images.items() if value]:
            raise InputError(f"{unfit[0]} is for images; {weights} is of bags")
        explain_slides(
            images,
            str(weights),
            what,
            out,
            coords=coords,
            thumbnail=thumbnail,
            layer=block,
            head=heads,  # type: ignore[arg-type]  # a number, "mean" or "all"
            target=target,
            scaling=scaling,
            top=top,
            max_pixels=max_pixels,
            device=where,
        )
        return
    image = images[0]
    if len(images) > 1 or image.is_dir():
        got = f"{image} is a folder" if image.is_dir() else f"got {len(images)}"
        raise InputError(f"IMAGES must be one picture, {got}; several are for bags")
    of_bags = {"--what contributions": what == "contributions", "--coords": coords, "--thumbnail": thumbnail}
    of_bags |= {"--scaling": scaling != "rank", "--top": top != 20}
    if unfit := [option for option, value in of_bags.items() if value]:
        raise InputError(f"{unfit[0]} is for bags; {weights or model} is of images")
    read = [path for path in (image, weights) if path is not None]
    outputs = explain_outputs.Outputs(out, image, what, read, target)
    subject = load_subject(image, weights, model, size, where, max_pixels)
    asked = query if query == "cls" else subject.place(*query)
    if what == "attention":
        explain_outputs.attention(outputs, subject, asked, query, stage, block, heads)
    elif what == "mixers":
        explain_outputs.mixers(outputs, subject, asked, query, stage, block)
    elif what == "landmarks":
        explain_outputs.landmarks(outputs, subject, None if query == "cls" else asked, query, stage, block)
    elif what == "inverse":
        explain_outputs.inverse(outputs, subject)
    else:
        names = () if subject.kind == "detection" else subject.class_names
        explain_outputs.cam(outputs, subject, find_target(target, names), stage, method)


def _query(point: str) -> tuple[int, int] | Literal["cls"]:
    if point == "cls":
        return "cls"
    parts = point.split(",")
    if len(parts) != 2:
        raise InputError(f"--point must be x,y in pixels, such as 120,80, or cls; got {point}")
    allowed = "x,y in pixels, such as 120,80, or cls"
    return _whole("--point", parts[0], allowed, point), _whole("--point", parts[1], allowed, point)


def _whole(option: str, text: str, allowed: str, given: str | None = None) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise InputError(f"{option} must be {allowed}; got {given or text}") from error
