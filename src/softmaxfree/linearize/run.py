"""A teacher becomes a student: stages that go on after a stop, and what is measured before and after each."""

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import resolve_model_data_config

from softmaxfree.atomic import atomic_write
from softmaxfree.errors import InputError
from softmaxfree.linearize.activations import Activations
from softmaxfree.linearize.measures import cost, features_of, fit_probe, likeness, map_shape, summary_of
from softmaxfree.linearize.pictures import Pictures
from softmaxfree.linearize.settings import Settings
from softmaxfree.linearize.stages import learn_block, learn_features, learners
from softmaxfree.machine import describe
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
        model: of timm, trained; it stays as it is.
        pictures: to learn from.
        settings: of the run.
        out: the folder.

    Yields:
        Lines.

    Raises:
        InputError: the model is not understood or does not take a size, or the folder holds another run.
        OSError: a file cannot be written.
    """
    if len(pictures.train) < settings.batch_size:
        raise InputError(f"data must have a batch of {settings.batch_size} images, got {len(pictures.train)}")
    teacher = model.eval()
    depth = len(attention_blocks(model))
    chosen = check_blocks(settings.blocks, depth)
    arguments = settings.arguments(chosen, depth, _side(model, max(settings.size)))
    student = linearized_of(copy.deepcopy(model), settings.mixer, arguments, settings.blocks).eval()
    student.requires_grad_(False)
    _check_sizes(teacher, pictures, settings)
    _keep_settings(settings, teacher, pictures, out)
    activations = Activations(teacher, pictures, out / _CACHE)
    state: dict[str, Any] = {"stage": "swap", "errors": [], "measures": [], "progress": {}}
    if (out / STATE).is_file():
        state = torch.load(out / STATE, weights_only=True)
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
        weights = learners(self.student, self.settings.train) | _head(self.student)
        self.state["weights"] = {name: p.detach().clone() for name, p in weights.items()}
        with atomic_write(self.out / STATE) as part:
            torch.save(self.state, part)

    def block(self, block: int) -> str:
        own, settings = self.pictures, self.settings
        train = own.train[: settings.block_images]
        held = own.held[: max(1, settings.block_images // 4)]
        found = learn_block(self.student, block, self.activations, train, held, settings)
        self.state["errors"].append(list(found))
        self.save()
        what = "" if found.kept else ", reverted: it grew"
        return f"block {block:<4} error {found.swapped:.4f} after the swap, {found.learned:.4f} learned{what}"

    def whole(self, stage: str) -> Iterator[str]:
        """Trains end to end."""
        settings, labels = self.settings, None
        steps = settings.steps if stage == "features" else settings.label_steps
        if not steps:
            return
        if stage == "labels":
            labels = self.pictures.labels
            if not labels:
                raise InputError("label_steps needs data with labels: a folder with a folder for each class")
            if self.student.num_classes != len(self.pictures.class_names):
                self.student.reset_classifier(len(self.pictures.class_names))
        progress = self.state["progress"]
        for step, loss in learn_features(self.student, self.activations, self.pictures, settings, progress, labels):
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
            found: dict[str, Any] = {"stage": stage, "size": size, "pictures": len(held)}
            found |= likeness(ours, theirs, self.prefix)._asdict()
            text = f"cosine {found['raw']:.3f}, centred {found['centred']:.3f}"
            text += f" (of different images {found['between']:.3f})"
            if own.labels:
                found |= self._probe(ours, theirs, held, size)
                text += f", probe {found['probe_student']:.1%} (teacher {found['probe_teacher']:.1%}"
                text += f", agree {found['agreement']:.1%})"
            image = own.batch(held[:1], size, self.student)
            found["maps"] = [list(pair) for pair in map_shape(self.student, image)]
            if stage == "swap":
                found["teacher_maps"] = [list(pair) for pair in map_shape(self.teacher, image)]
            self.state["measures"].append(found)
            lines.append(f"{stage:<10} {size} pixels: {text}")
        return "\n".join(lines)

    def _probe(self, ours: Any, theirs: Any, held: Any, size: int) -> dict[str, float]:
        own = self.pictures
        count = min(self.settings.probe_images, len(own.train))
        train = [own.train[i * len(own.train) // count] for i in range(count)]
        labels = [own.labels[i] for i in train]
        if len(set(labels)) < 2:
            return {"probe_student": float("nan"), "probe_teacher": float("nan"), "agreement": float("nan")}
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
        config = resolve_model_data_config(self.teacher)
        size = self.settings.size[0]
        config = {**config, "input_size": (config["input_size"][0], size, size)}
        self.student.requires_grad_(True)
        save_pretrained(self.student, self.out, config, tuple(self.pictures.class_names) if _head(self.student) else ())
        told = {
            "settings": _plain(self.settings),
            "teacher": self.student._model_args["teacher"],
            "errors": self.state["errors"],
            "measures": self.state["measures"],
            "costs": costs,
            "about": describe(torch.device("cpu")),
        }
        with atomic_write(self.out / MEASURES) as part:
            part.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(self.out / _CACHE, ignore_errors=True)
        yield f"written    {self.out}: timm.create_model('local-dir:{self.out}', pretrained=True)"


def load_measures(out: Path) -> dict[str, Any]:
    """Returns what a finished run has measured, see `measures.json`; raises FileNotFoundError before."""
    return json.loads((out / MEASURES).read_text(encoding="utf-8"))


def _side(model: Any, size: int) -> int:
    """How many patches a side an image has; 0 in a pyramid."""
    return model.patch_embed.dynamic_feat_size((size, size))[0] if hasattr(model, "blocks") else 0


def _head(student: Any) -> dict[str, Any]:
    head = student.get_classifier()
    return {f"head.{name}": p for name, p in head.named_parameters()} if isinstance(head, torch.nn.Module) else {}


def _restore(student: Any, settings: Settings, state: dict[str, Any]) -> None:
    weights = state["weights"]
    if "head.weight" in weights and student.num_classes != len(weights["head.weight"]):
        student.reset_classifier(len(weights["head.weight"]))
    own = dict(student.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)


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


def _keep_settings(settings: Settings, teacher: Any, pictures: Pictures, out: Path) -> None:
    path = out / _SETTINGS
    now = {**_plain(settings), "teacher": teacher.pretrained_cfg["architecture"], "pictures": len(pictures.sources)}
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        for key, value in now.items():
            if there.get(key) != value:
                raise InputError(
                    f"out: {out} holds a run with {key} {there.get(key)!r}, this one has {value!r}; give another folder"
                )
    elif out.exists() and any(out.iterdir()):
        raise InputError(f"out: {out} is neither empty nor a run of linearize; give another folder")
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
