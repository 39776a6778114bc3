"""A teacher becomes a student: stages that go on after a stop, and what is measured before and after each."""

import copy
import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softmaxfree.atomic import atomic_write, write_json
from softmaxfree.errors import InputError
from softmaxfree.linearize.activations import Activations
from softmaxfree.linearize.measures import classes_of, cost, features_of, fit_probe, likeness, map_shape, summary_of
from softmaxfree.linearize.pictures import Pictures, device_of, preparation
from softmaxfree.linearize.settings import Settings
from softmaxfree.linearize.stages import head_of, learn_block, learn_features, learners, order_of
from softmaxfree.machine import describe
from softmaxfree.models.evaluation import evaluation
from softmaxfree.models.exchange import attention_blocks, check_blocks
from softmaxfree.models.linearized import linearized_of
from softmaxfree.tasks.pretrained import save_pretrained

__all__ = ["MEASURES", "STATE", "linearize", "load_measures"]

STATE, MEASURES = "state.pt", "measures.json"
_SETTINGS, _CACHE = "settings.json", "activations"
_SAVE_EVERY = 10  # steps


def linearize(model: Any, pictures: Pictures, settings: Settings, out: Path) -> Iterator[str]:
    """Makes a linear student of a trained softmax transformer, and tells of each step in a line.

    What a stopped run has done in its folder is not done again. The folder gets `config.json` and `model.safetensors`
    of the student, which timm loads as `local-dir:OUT` where this package is imported, and `measures.json`.

    Args:
        model: of timm, trained; it stays as it is. All is computed where it is, on a CPU or a GPU of CUDA.
        pictures: to learn from.
        settings: of the run.
        out: the folder.

    Yields:
        Lines.

    Raises:
        InputError: the model is not understood or does not take a size, a picture cannot be read, there are no labels
            to learn from, what a stage gives is not finite, or the folder holds another run.
        OSError: a file cannot be written.
    """
    if len(pictures.train) < settings.batch_size:
        raise InputError(f"data must have a batch of {settings.batch_size} images, got {len(pictures.train)}")
    if settings.label_steps and not pictures.labels:
        raise InputError("label_steps needs data with labels: a folder with a folder for each class")
    with evaluation(model):
        yield from _linearize(model, pictures, settings, out)


def _linearize(teacher: Any, pictures: Pictures, settings: Settings, out: Path) -> Iterator[str]:
    depth = len(attention_blocks(teacher))
    chosen = check_blocks(settings.blocks, depth)
    arguments = settings.arguments(chosen, depth, _side(teacher, max(settings.size)))
    student = linearized_of(copy.deepcopy(teacher), settings.mixer, arguments, settings.blocks).eval()
    student.requires_grad_(False)
    _check_sizes(teacher, pictures, settings)
    if not (out / STATE).is_file():
        pictures.check(_used(pictures, settings))
    _keep_settings(settings, teacher, pictures, out)
    activations = Activations(teacher, pictures, out / _CACHE)
    state: dict[str, Any] = {"stage": "swap", "errors": [], "measures": [], "progress": {}}
    if (out / STATE).is_file():
        state = torch.load(out / STATE, map_location="cpu", weights_only=True)
        _restore(student, settings, state)
        yield f"goes on    after {len(state['errors'])} blocks, stage {state['stage']}"
    run = _Run(teacher, student, pictures, settings, activations, out, state)
    if state["stage"] == "swap":
        yield run.measure("swap")
        run.enter("blocks")
    if state["stage"] == "blocks":
        for block in chosen[len(state["errors"]) :]:
            yield run.block(block)
        yield run.measure("blocks")
        run.enter("features")
    for stage in ("features", "labels"):
        if state["stage"] == stage:
            yield from run.whole(stage)
            run.enter("labels" if stage == "features" else "done")
    yield from run.finish()


class _Run:
    """A run with all that it works on."""

    def __init__(
        self,
        teacher: Any,
        student: Any,
        pictures: Pictures,
        settings: Settings,
        activations: Activations,
        out: Path,
        state: dict[str, Any],
    ) -> None:
        self.teacher, self.student, self.pictures, self.settings = teacher, student, pictures, settings
        self.activations, self.out, self.state = activations, out, state
        self.prefix = getattr(teacher, "num_prefix_tokens", 0)

    def enter(self, stage: str) -> None:
        self.state |= {"stage": stage, "progress": {}}
        self.save()

    def save(self) -> None:
        weights = learners(self.student, self.settings.train) | head_of(self.student)
        self.state["weights"] = {name: p.detach().clone() for name, p in weights.items()}
        with atomic_write(self.out / STATE) as part:
            torch.save(self.state, part)

    def block(self, block: int) -> str:
        settings = self.settings
        train, held = _of_blocks(self.pictures, settings)
        found = learn_block(self.student, block, self.activations, train, held, settings)
        self.state["errors"].append(list(found))
        self.save()
        what = "" if found.kept else ", reverted: it grew"
        return f"block {block:<4} error {found.swapped:.2g} after the swap, {found.learned:.2g} learned{what}"

    def whole(self, stage: str) -> Iterator[str]:
        """Trains end to end."""
        settings, labels = self.settings, None
        steps = settings.steps if stage == "features" else settings.label_steps
        if not steps:
            return
        progress, new_head = self.state["progress"], False
        if stage == "labels":
            labels, names = self.pictures.labels, self.pictures.class_names
            new_head = list(names) != _classes(self.teacher)
            if new_head and not progress:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(settings.seed)
                    _new_head(self.student, len(names))
        for step, loss in learn_features(
            self.student, self.activations, self.pictures, settings, progress, labels, new_head
        ):
            if step % _SAVE_EVERY == 0 or step == steps:
                self.save()
                yield f"{stage:<10} step {step} of {steps}, loss {loss:.4f}"
        yield self.measure(stage)

    def measure(self, stage: str) -> str:
        """Compares features on held-out pictures at each size, and the probe where there are labels."""
        own, settings, lines = self.pictures, self.settings, []
        held = own.held[: settings.measured]
        for size in settings.size:
            ours = features_of(self.student, own, held, size)
            theirs = self.activations.features(held, size)
            if not ours.isfinite().all():
                what = "lr: smaller steps are needed" if stage in ("features", "labels") else f"mixer: {settings.mixer}"
                raise InputError(f"{what}: after {stage} the student's features at {size} pixels are not finite")
            found: dict[str, Any] = {"stage": stage, "size": size, "pictures": len(held)}
            told = likeness(ours, theirs, self.prefix)._asdict()
            found |= {key: None if math.isnan(value) else value for key, value in told.items()}
            text = f"cosine {found['raw']:.3f}"
            if found["between"] is not None:
                text += f", centred {found['centred']:.3f} (of different images {found['between']:.3f})"
            if probe := self._probe(ours, theirs, held, size):
                found |= probe
                text += f", probe {found['probe_student']:.1%} (teacher {found['probe_teacher']:.1%}"
                text += f", agree {found['agreement']:.1%})"
            if stage == "labels":
                right = classes_of(self.student, own, held, size) == np.array([own.labels[i] for i in held])
                found["head"] = float(right.mean())
                text += f", head {found['head']:.1%}"
            image = own.batch(held[:1], size, self.student)
            found["maps"] = [list(pair) for pair in map_shape(self.student, image)]
            if stage == "swap":
                found["teacher_maps"] = [list(pair) for pair in map_shape(self.teacher, image)]
            self.state["measures"].append(found)
            lines.append(f"{stage:<10} {size} pixels: {text}")
        return "\n".join(lines)

    def _probe(self, ours: Any, theirs: Any, held: Any, size: int) -> dict[str, float]:
        own, train = self.pictures, _of_probe(self.pictures, self.settings)
        labels = [own.labels[i] for i in train]
        if len(set(labels)) < 2:
            return {}
        probe = fit_probe(summary_of(self.activations.features(train, size), self.prefix), labels)
        truth = [own.labels[i] for i in held]
        a, b = summary_of(ours, self.prefix), summary_of(theirs, self.prefix)
        return {
            "probe_student": probe.accuracy(a, truth),
            "probe_teacher": probe.accuracy(b, truth),
            "agreement": float(np.mean(probe.classes(a) == probe.classes(b))),
        }

    def finish(self) -> Iterator[str]:
        """Measures time and memory, and writes the student."""
        costs = self.state.setdefault("costs", [])
        for size in self.settings.size[len(costs) :]:
            found = {"size": size, **cost(self.teacher, self.student, size)}
            costs.append(found)
            self.save()
        for found in costs:
            yield (
                f"speed      {found['size']} pixels: {found['speedup']:.2f} times the teacher's, "
                f"{found['student_ms']:.0f} ms and {found['student_mib']:.0f} MiB "
                f"(teacher {found['teacher_ms']:.0f} ms, {found['teacher_mib']:.0f} MiB)"
            )
            if found["speedup"] < 1:
                yield f"warning    {found['size']} pixels is below the crossover: the student is the slower one"
        config = preparation(self.teacher)
        size = self.settings.size[0]
        config = {**config, "input_size": (config["input_size"][0], size, size)}
        self.student.requires_grad_(True)
        # without labels a head is the teacher's, and so are the names of its classes
        names = self.pictures.class_names if self.settings.label_steps else _classes(self.teacher)
        named = len(names) == self.student.num_classes
        save_pretrained(self.student, self.out, config, tuple(names) if named else ())
        told = {
            "settings": _plain(self.settings),
            "teacher": self.student._model_args["teacher"],
            "errors": self.state["errors"],
            "measures": self.state["measures"],
            "costs": costs,
            "about": describe(device_of(self.teacher)),
        }
        write_json(self.out / MEASURES, told)
        shutil.rmtree(self.out / _CACHE, ignore_errors=True)
        yield f"written    {self.out}: timm.create_model('local-dir:{self.out}', pretrained=True)"


def load_measures(out: Path) -> dict[str, Any]:
    """Returns what a finished run has measured, see `measures.json`; raises FileNotFoundError before."""
    return json.loads((out / MEASURES).read_text(encoding="utf-8"))


def _side(model: Any, size: int) -> int:
    """How many patches a side an image has; 0 in a pyramid."""
    return model.patch_embed.dynamic_feat_size((size, size))[0] if hasattr(model, "blocks") else 0


def _classes(model: Any) -> list[str]:
    return [str(name) for name in model.pretrained_cfg.get("label_names") or ()]


def _of_blocks(pictures: Pictures, settings: Settings) -> tuple[Sequence[int], Sequence[int]]:
    """Pictures that blocks learn from, and those that tell whether they gained."""
    count = settings.block_images
    return pictures.train[:count], pictures.held[: max(1, count // 4)]


def _of_probe(pictures: Pictures, settings: Settings) -> list[int]:
    if not pictures.labels:
        return []
    count = min(settings.probe_images, len(pictures.train))
    return [pictures.train[i * len(pictures.train) // count] for i in range(count)]


def _used(pictures: Pictures, settings: Settings) -> list[int]:
    """All pictures that a run reads."""
    found = {*pictures.held[: settings.measured], *_of_probe(pictures, settings)}
    found.update(*_of_blocks(pictures, settings))
    for stage, steps in ((-1, settings.steps), (-2, settings.label_steps)):
        found.update(*order_of(pictures.train, settings, steps, stage))
    return sorted(found)


def _restore(student: Any, settings: Settings, state: dict[str, Any]) -> None:
    weights = state["weights"]
    if "head.weight" in weights and student.num_classes != len(weights["head.weight"]):
        _new_head(student, len(weights["head.weight"]))
    own = dict(student.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)


def _new_head(student: Any, classes: int) -> None:
    """A head that has learned nothing, where the network is: timm makes it on the CPU."""
    device = device_of(student)
    student.reset_classifier(classes)
    student.to(device)


def _check_sizes(teacher: Any, pictures: Pictures, settings: Settings) -> None:
    patch = getattr(getattr(teacher, "patch_embed", None), "patch_size", (1, 1))
    strides = patch if hasattr(teacher, "blocks") else (32, 32)
    for size in settings.size:
        if size % max(strides):
            raise InputError(f"size must be a multiple of {max(strides)} for this model, got {size}")
        try:
            with torch.no_grad():
                teacher.forward_features(pictures.batch(pictures.train[:1], size, teacher))
        except (AssertionError, RuntimeError) as error:
            raise InputError(f"size: the model does not take {size} pixels: {str(error).splitlines()[0]}") from error


def _plain(settings: Settings) -> dict[str, Any]:
    return json.loads(json.dumps(vars(settings)))


def _digest(model: Any) -> str:
    """What tells the weights of a model from others."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode() + value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _keep_settings(settings: Settings, teacher: Any, pictures: Pictures, out: Path) -> None:
    path = out / _SETTINGS
    now = {**_plain(settings), "teacher": teacher.pretrained_cfg["architecture"]}
    now |= {"weights": _digest(teacher), "pictures": pictures.digest()}
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        for key, value in now.items():
            if there.get(key) != value:
                told = f"with {key} {there.get(key)!r}, this one has {value!r}"
                told = f"with other {key}" if key in ("weights", "pictures") else told
                raise InputError(f"out: {out} holds a run {told}; give another folder")
    elif out.exists() and any(out.iterdir()):
        raise InputError(f"out: {out} is neither empty nor a run of linearize; give another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, now)
