"""The card of a model, from the report of its run."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from softmaxfree.report.summary import readable_images, title_of
from softmaxfree.version import __version__

__all__ = ["MADE_WITH", "model_card"]

MADE_WITH = "trained with `softmaxfree`"
"""Tells a card from here, which a later one may replace."""

_NAMED = 50  # classes


def model_card(
    summary: Mapping[str, Any],
    repository: str,
    data_config: Mapping[str, Any],
    classes: Sequence[str],
    parameters: int,
    licence: str | None = None,
    data_licence: str | None = None,
) -> str:
    """Return the text of a README for the hub; what is not known is said to be so.

    Args:
        summary: of the run, as `softmaxfree.report.reading.read_run` returns it.
        repository: `user/name`.
        data_config: how images are prepared.
        classes: their names.
        parameters: of the model.
        licence: of the weights, by its name on the hub, such as "mit".
        data_licence: of the data.

    Returns:
        Markdown, with the hub's head.
    """
    data = summary["data"]
    counts = ", ".join(f"{number} images ({split})" for split, number in readable_images(summary).items())
    facts = {
        "data": _data(data["name"], data["found"]),
        "images": counts or "not known",
        "licence of the data": data_licence or "not stated",
        "licence of the weights": licence or "not stated",
        "parameters": f"{parameters / 1e6:.2f} M",
        "image size": "x".join(map(str, data_config["input_size"][1:])) + " pixels in training; other sizes work",
        "started from": summary["model"]["loaded"] or ("not known" if summary["missing"] else "random weights"),
        "classes": f"{len(classes)}: {', '.join(classes[:_NAMED])}{' ...' * (len(classes) > _NAMED)}",
    }
    mode = "L" if data_config["input_size"][0] == 1 else "RGB"
    machine = summary["machine"]
    threads = [f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"] if machine.get("threads") else []
    made = ", ".join([*([machine["device"]] if machine.get("device") else []), *threads])
    versions = ", ".join(
        f"{key} {machine[key]}" for key in ("torch", "timm", "softmaxfree", "commit") if machine.get(key)
    )
    return "\n".join(
        [
            "---",
            *([f"license: {json.dumps(licence, ensure_ascii=False)}"] if licence else []),  # `no` is no text in YAML
            "library_name: timm",
            "pipeline_tag: image-classification",
            "tags:\n- image-classification\n- timm\n- softmaxfree",
            "---",
            f"# {_cell(title_of(dict(summary)))}",
            "",
            f"An image classifier, {MADE_WITH}.",
            "",
            *_table(("fact", "value"), list(facts.items())),
            "",
            "## Score",
            "",
            *_score(summary),
            *_of_classes(summary, classes),
            "",
            "## Use",
            "",
            "```python",
            "import softmaxfree  # registers the model with timm",
            "import timm",
            "from softmaxfree.images import read_image  # upright, and 16 bits scaled, as in training",
            "",
            f'model = timm.create_model("hf-hub:{repository}", pretrained=True).eval()',
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
            f'image = read_image("image.jpg", "{mode}")',
            'names = model.pretrained_cfg["label_names"]',
            "print(names[int(model(transform(image)[None]).argmax())])",
            "```",
            "",
            "## Repeat",
            "",
            "```bash",
            *dict.fromkeys([summary["command"], *(part["command"] for part in summary["resumed"])]),
            "```",
            "",
            f"Trained on {made or 'a machine that is not known'}; {versions or f'softmaxfree {__version__}'}.",
            *(["", *(f"- {line}" for line in summary["missing"])] if summary["missing"] else []),
            "",
        ]
    )


def _data(name: str, found: str) -> str:
    if name in found.partition(":")[0]:  # as the folder that it begins with
        return found
    return ": ".join(filter(None, (name, found))) or "not known"


def _score(summary: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, (label, scale, digits) in summary["labels"].items():
        if summary["metrics"].get(name) is not None:
            rows.append((str(label), f"{scale * summary['metrics'][name]:.{digits}f}"))
    if not rows:
        return ["No score is known: the run has no validation."]
    epoch = f" of epoch {summary['best_epoch']}" if summary["best_epoch"] else ""
    return [
        *_table(("on the validation images", f"weights{epoch}"), rows),
        "",
        "One run with one seed, so there is no spread; and its best epoch was chosen by these images.",
    ]


def _of_classes(summary: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    scores = summary["class_scores"]
    if not scores:
        return []
    rows = [
        (classes[i] if i < len(classes) else str(i), *("" if own is None else f"{100 * own:.1f}" for own in values))
        for i, values in enumerate(zip(*scores.values(), strict=True))
    ]
    more = ["", f"{len(rows) - _NAMED} more classes."] if len(rows) > _NAMED else []
    return ["", *_table(("class", *(f"{name} (%)" for name in scores)), rows[:_NAMED]), *more]


def _table(head: Sequence[str], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(map(_cell, cells))} |" for cells in (head, ("---",) * len(head), *rows)]


def _cell(text: object) -> str:
    """A text that breaks no table and no line."""
    return json.dumps(str(text), ensure_ascii=False)[1:-1].replace("|", "\\|")
