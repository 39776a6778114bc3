"""What remains of a run for the eye: curves and the confusion matrix as PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from softmaxfree.atomic import atomic_write

__all__ = ["plot_confusion", "plot_curve"]

_LABELLED = 30  # classes at most for which names and counts are legible


def plot_curve(
    rows: Sequence[dict[str, float]], summary: Mapping[str, tuple[str, float, int]], path: str | Path
) -> None:
    """Draw losses and scores over the epochs.

    Args:
        rows: of an `EpochRecord`.
        summary: label, factor and digits of each metric, as a task tells them.
        path: the PNG file.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    scores.set_prop_cycle(color=colormaps["tab20"](range(20)))
    for name, (label, factor, _) in {"train/loss": ("training loss", 1, 4), **summary}.items():
        shown = [row for row in rows if name in row]
        axes = losses if name.endswith("loss") else scores
        axes.plot([row["epoch"] + 1 for row in shown], [factor * row[name] for row in shown], marker=".", label=label)
    losses.set(xlabel="epoch", ylabel="loss", yscale="log")
    scores.set(xlabel="epoch", ylim=(0, 100))
    losses.legend()
    scores.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")  # beside: there may be a dozen
    for axes in (losses, scores):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    _save(figure, path)


def plot_confusion(counts: Tensor, class_names: Sequence[str], path: str | Path) -> None:
    """Draw a confusion matrix, its colours by the logarithm of the counts.

    Args:
        counts: (classes, classes), rows are the true classes.
        class_names: as many names, or none.
        path: the PNG file.
    """
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    counts = counts.cpu()
    colours = axes.imshow(counts.float().log1p().numpy(), cmap="Blues")
    axes.set(xlabel="predicted", ylabel="true", title=f"{counts.diag().sum():,} of {counts.sum():,} correct")
    if len(counts) <= _LABELLED:
        names = class_names or [str(i) for i in range(len(counts))]
        axes.set_xticks(range(len(names)), names, rotation=45 if max(map(len, names)) > 3 else 0)
        axes.set_yticks(range(len(names)), names)
        for i, j in counts.nonzero().tolist():
            dark = counts[i, j] > counts.max() / 3
            axes.text(j, i, str(counts[i, j].item()), ha="center", va="center", color="white" if dark else "black")
    else:
        figure.colorbar(colours, label="log(1 + count)")
    _save(figure, path)


def _save(figure: Figure, path: str | Path) -> None:
    with atomic_write(path) as part:
        figure.savefig(part, dpi=150)
