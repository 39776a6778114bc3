"""Settings of model, trainer and run that follow from data and machine, where a recipe says "auto"."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from softmaxfree.cli.device import find_device, num_processes
from softmaxfree.errors import InputError
from softmaxfree.machine import BFLOAT16_IS_EMULATED, has_fast_bfloat16

__all__ = ["AUTO", "OF_MACHINE", "Setting", "Settings", "decide", "of_files", "take_autos"]

AUTO = "auto"

_UPDATES = 4000  # of a run: nearly constant work, whatever the number of images
_EPOCHS = (20, 60)
_WARMUP_UPDATES = 500
_LONGEST_AVERAGE = 0.9998


class Setting(NamedTuple):
    """A value and where it is from: "given" as an option, a file of one's own, or "auto: " and why."""

    value: Any
    why: str


Settings = dict[str, Setting]


def take_autos(
    content: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], list[str], list[str], Settings]:
    """Take what is "auto" out of a recipe and the options over it.

    Args:
        content: of a recipe.
        overrides: `--section.key=value`.

    Returns:
        Content and options without them, the keys that are auto, and what options give.
    """
    left = {name: dict(value) if isinstance(value, Mapping) else value for name, value in content.items()}
    autos: list[str] = []
    for key in _RULES:
        section, name = key.split(".")
        if (left.get(section) or {}).get(name) == AUTO:
            autos.append(key)
            del left[section][name]
    last = dict(option.removeprefix("--").partition("=")[::2] for option in overrides)  # of a key the last one wins
    options: list[str] = []
    given: Settings = {}
    for option in overrides:  # in their order, and all of `key+=`, which adds to a list
        key, _, value = option.removeprefix("--").partition("=")
        if key in _RULES and AUTO in (value, last[key]):
            if last[key] == AUTO:
                autos.append(key)
            continue
        options.append(option)
        given[key] = Setting(value, "given")
    return left, options, [key for key in dict.fromkeys(autos) if key not in given], given


def of_files(values: Mapping[str, tuple[Any, str]], given: Settings) -> Settings:
    """Return what files of one's own set.

    Args:
        values: by key; each with its file.
        given: what options set, which win.

    Returns:
        The settings.
    """
    left = (key for key in values if not any(f"{key}.".startswith(f"{option}.") for option in given))
    return {key: Setting(*values[key]) for key in left if values[key][0] != AUTO}


def decide(autos: Sequence[str], config: Any, data: Any, training: bool) -> Settings:
    """Decide what is auto.

    Args:
        autos: keys.
        config: the parsed recipe; what is decided is put in.
        data: its data module, set up unless all keys are among `OF_MACHINE`.
        training: whether a training follows; else only what the model needs is decided.

    Returns:
        What was decided.

    Raises:
        InputError: the data does not tell what a setting follows from.
    """
    run = _Run(config, data)
    settings = {}
    for key, rule in _RULES.items():
        if key in autos and (training or key in _ALWAYS):
            value, why = rule(run)
            config[key] = value
            settings[key] = Setting(value, f"auto: {why}")
    return settings


@dataclass(frozen=True)
class _Run:
    """What the rules look at."""

    config: Any
    data: Any
    trained: bool = field(init=False)
    frozen: bool = field(init=False)

    def __post_init__(self) -> None:
        model = self.config.model
        arguments = model.get("model_args") or {}
        started = bool(model.get("init_from") or arguments.get("pretrained") or arguments.get("checkpoint_path"))
        object.__setattr__(self, "trained", started)
        object.__setattr__(self, "frozen", model.get("freeze") == "backbone")

    @property
    def updates_per_epoch(self) -> int:
        images, batch = getattr(self.data, "num_images", {}).get("train"), self.data.batch_size
        if not images:
            raise InputError("the data does not tell how many images it has: give trainer.max_epochs a number")
        processes, _ = num_processes(self.config.trainer)
        return max(images // (batch * processes * (self.config.trainer.accumulate_grad_batches or 1)), 1)


_Rule = Callable[[_Run], tuple[Any, str]]


def _classes(run: _Run) -> tuple[int, str]:
    if not run.data.num_classes:
        raise InputError("the data does not tell its classes: give model.num_classes a number")
    return run.data.num_classes, "of the data"


def _width(run: _Run) -> tuple[int, str]:
    if not getattr(run.data, "in_dim", 0):
        raise InputError("the data does not tell how many features a patch has: give model.in_dim a number")
    return run.data.in_dim, "of the data"


def _epochs(run: _Run) -> tuple[int, str]:
    low, high = _EPOCHS
    wanted = _UPDATES / run.updates_per_epoch
    if run.trained:
        wanted, low, high = wanted / 2, low // 2, high // 2
    epochs = round(min(max(wanted, low), high))
    least = f"{_UPDATES // (2 if run.trained else 1):,} updates or {high} epochs"
    return epochs, f"{least}, whichever is less" if epochs > low else f"{low} at least"


def _optimizer(run: _Run) -> tuple[str, str]:
    return ("adamw", "trained weights") if run.trained else ("muon", "from scratch")


def _rate(run: _Run) -> tuple[float, str]:
    return (1e-3, "trained weights") if run.trained else (3e-3, "from scratch")


def _backbone_rate(run: _Run) -> tuple[float, str]:
    if run.frozen:
        return 1.0, "the backbone is frozen"
    return (0.1, "trained weights") if run.trained else (1.0, "from scratch")


def _decay(run: _Run) -> tuple[float, str]:
    return (0.0, "of a head alone") if run.frozen else (0.05, "the usual one")


def _average(run: _Run) -> tuple[float | None, str]:
    epochs = run.config.trainer.max_epochs
    if not epochs or epochs < 0:
        return None, "without a number of epochs"
    updates = max(epochs * run.updates_per_epoch // 10, 1)
    return min(round(1 - 1 / updates, 6), _LONGEST_AVERAGE), "a tenth of the updates"


def _warmup(run: _Run) -> tuple[float, str]:
    if run.frozen:
        return 0.0, "of a head alone"
    epochs = run.config.trainer.max_epochs
    if not epochs or epochs < 0:
        return 1.0, "without a number of epochs"
    updates = min(_WARMUP_UPDATES, epochs * run.updates_per_epoch // 10)
    return round(updates / run.updates_per_epoch, 3), f"a tenth of the updates, {_WARMUP_UPDATES} at most"


def _weights(run: _Run) -> tuple[list[float], str]:
    from softmaxfree.tasks.weights import balanced

    counts = getattr(run.data, "class_counts", ())
    if not counts:
        raise InputError("the data does not count its classes: give model.class_weights numbers")
    weights = [round(weight, 4) for weight in balanced(counts)]
    return weights, "one over the square root of how frequent each class is"


def _precision(run: _Run) -> tuple[str, str]:
    device = find_device("cpu" if run.config.trainer.accelerator == "cpu" else "auto")
    if has_fast_bfloat16(device):
        return "bf16-mixed", "this device multiplies bfloat16"
    return "32-true", BFLOAT16_IS_EMULATED


def _patience(run: _Run) -> tuple[int | None, str]:
    epochs = run.config.trainer.max_epochs
    if run.config.trainer.limit_val_batches == 0:
        return None, "no validation"
    if not epochs or epochs < 0:
        return None, "without a number of epochs"
    return max(10, epochs // 4), "a quarter of the epochs, in the second half"


_RULES: dict[str, _Rule] = {  # in this order: some follow from the number of epochs
    "model.num_classes": _classes,
    "model.in_dim": _width,
    "trainer.max_epochs": _epochs,
    "trainer.precision": _precision,
    "model.opt": _optimizer,
    "model.lr": _rate,
    "model.backbone_lr_scale": _backbone_rate,
    "model.weight_decay": _decay,
    "model.warmup_epochs": _warmup,
    "model.ema_decay": _average,
    "model.class_weights": _weights,
    "run.early_stopping": _patience,
}
_ALWAYS = ("model.num_classes", "model.in_dim")
OF_MACHINE = ("trainer.precision",)
"""Keys that are decided without the data."""
