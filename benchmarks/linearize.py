"""The bundled teacher and its students: a probe on solar cells, natural photographs, time and memory over sizes.

    python benchmarks/linearize.py probe 224 518 1036 --work DIR
    python benchmarks/linearize.py cost 224 518 1036 2072 --work DIR

`probe` makes a student at each size, from training cells and crops of photographs, and compares features on cells and
photographs held out; what a stopped run has done in DIR is not done again. `cost` times teacher and student of each
size in turn on one thread; a size without a plan of its own takes that of the largest size below, and where no student
was made of a plan, attention is exchanged and nothing learned (column `learned`). Both replace their rows in
benchmarks/linearize-cpu.csv. Needs the extras teacher and solar.
"""

import argparse
import copy
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

import softmaxfree  # noqa: F401  registers `linearized`
from softmaxfree.atomic import write_csv
from softmaxfree.cli.allocator import keep_freed_memory
from softmaxfree.linearize import Pictures, Settings, bundled_teacher, find_pictures, linearize
from softmaxfree.linearize.activations import Activations
from softmaxfree.linearize.measures import cost, features_of, fit_probe, likeness, summary_of
from softmaxfree.machine import describe, has_fast_bfloat16
from softmaxfree.models.exchange import exchange

TABLE = Path(__file__).parent / "linearize-cpu.csv"
HELD_PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "china.jpg")
PHOTOGRAPHS = ("camera", "rocket", "coins", "moon", "clock", "brick", "grass", "gravel", "flower.jpg",
               "hubble_deep_field", "immunohistochemistry", "retina")  # fmt: skip
# cells to fit the probe on and held out, and steps and pictures of the student; all chosen on training cells
PLANS: dict[int, dict[str, Any]] = {
    224: {"fit": 1969, "held": 655, "steps": 60, "batch": 4, "learn": 400, "grid": 12, "near": range(12)},
    518: {"fit": 500, "held": 200, "steps": 160, "batch": 2, "learn": 300, "grid": 8, "near": range(1, 5)},
    1036: {"fit": 150, "held": 200, "steps": 120, "batch": 1, "learn": 150, "grid": 8, "near": ()},
}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("probe", "cost"))
    parser.add_argument("size", nargs="+", type=int)
    parser.add_argument("--work", type=Path, required=True, help="folder of students and activations")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    for size in given.size:
        row = probe(size, given.work) if given.what == "probe" else timed(size, given.work)
        keep({"what": given.what, "size": size, **row, **describe(torch.device("cpu"))})


def probe(size: int, work: Path) -> dict[str, Any]:
    """Make a student and compare it with its teacher on what neither probe nor student has seen."""
    plan, teacher = PLANS[size], bundled_teacher(size)
    cells = find_pictures("solar_cells", 1)
    fit, held = spread(cells.train, plan["fit"]), spread(cells.held, plan["held"])
    student = student_of(size, teacher, cells, work)
    seen, own = (
        Activations(net, cells, folder / "cells") for net, folder in ((teacher, work), (student, work / str(size)))
    )
    model = fit_probe(summary_of(seen.features(fit, size), 1), [cells.labels[i] for i in fit])
    ours, theirs = own.features(held, size), seen.features(held, size)
    a, b, truth = summary_of(ours, 1), summary_of(theirs, 1), [cells.labels[i] for i in held]
    photos = Pictures(list(crops(HELD_PHOTOGRAPHS, 6, seed=1)), (), (), (), range(6 * len(HELD_PHOTOGRAPHS)))
    shown = spread(photos.held, 24 if size < 1000 else 8)
    kept = Activations(teacher, photos, work / "photos")
    natural = likeness(features_of(student, photos, shown, size), kept.features(shown, size), 1)
    found = {
        "fit": len(fit), "held": len(held),
        "probe_teacher": model.accuracy(b, truth), "probe_student": model.accuracy(a, truth),
        "agreement": float(np.mean(model.classes(a) == model.classes(b))),
        **{f"cells_{key}": value for key, value in likeness(ours, theirs, 1)._asdict().items()},
        "photographs": len(shown), "photographs_median": natural.median, "photographs_patches": natural.patches,
    }  # fmt: skip
    print({key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}, flush=True)
    return found


def timed(size: int, work: Path) -> dict[str, Any]:
    """Time teacher and student of a size in turn."""
    trained = max((own for own in PLANS if own <= size), default=min(PLANS))
    teacher = bundled_teacher(size)
    out = work / str(trained)
    learned = (out / "model.safetensors").is_file()
    if learned:
        student = timm.create_model(f"local-dir:{out}", pretrained=True, img_size=size).eval()
    else:  # what it would learn changes no time
        student = exchange(copy.deepcopy(teacher), "softn", arguments_of(PLANS[trained])).eval()
    found = {
        "plan": trained,
        "learned": learned,
        **cost(teacher, student, size, repeats=7 if size < 1000 else 3 if size < 2000 else 1),
    }
    print(found, flush=True)
    return found


def student_of(size: int, teacher: Any, cells: Pictures, work: Path) -> Any:
    """Return the student of a size, made from training cells and photographs."""
    plan, out = PLANS[size], work / str(size)
    sources = [cells.sources[i] for i in spread(cells.train, plan["learn"])]
    sources += list(crops(PHOTOGRAPHS, max(1, plan["learn"] // 4 // len(PHOTOGRAPHS)), seed=0))
    settings = Settings(
        size=(size,), mixer_args=arguments_of(plan), steps=plan["steps"], batch_size=plan["batch"], block_steps=0,
        measured=16 if size < 1000 else 4, bf16=has_fast_bfloat16(torch.device("cpu")),
    )  # fmt: skip
    if not (out / "model.safetensors").is_file():
        for line in linearize(teacher, find_pictures(sources, plan["batch"]), settings, out):
            print(line, flush=True)
    return timm.create_model(f"local-dir:{out}", pretrained=True).eval()


def arguments_of(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the arguments of the mixer of each block."""
    return [{"maps": True, "landmark_grid": [plan["grid"]] * 2, "near": int(i in plan["near"])} for i in range(12)]


def crops(names: tuple[str, ...], count: int, seed: int) -> Iterator[np.ndarray]:
    """Yield square crops of photographs that scikit-image and scikit-learn bring."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    numbers = np.random.default_rng(seed)
    for name in names:
        photo = load_sample_image(name) if name.endswith(".jpg") else getattr(skimage.data, name)()
        for _ in range(count):
            side = int(min(photo.shape[:2]) * numbers.uniform(0.4, 1))
            top, left = (int(numbers.integers(0, length - side + 1)) for length in photo.shape[:2])
            yield np.ascontiguousarray(photo[top : top + side, left : left + side])


def spread(numbers: Any, count: int) -> list[int]:
    """Return so many of the numbers, evenly spread."""
    count = min(count, len(numbers))
    return [numbers[i * len(numbers) // count] for i in range(count)]


def keep(row: dict[str, Any]) -> None:
    """Write a row in place of that of the same measurement."""
    rows = []
    if TABLE.is_file():
        with TABLE.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    rows = [own for own in rows if (own["what"], own["size"]) != (row["what"], str(row["size"]))] + [row]
    rows.sort(key=lambda own: (own["what"] != "probe", int(own["size"])))
    columns = dict.fromkeys(key for own in rows for key in own)
    write_csv(TABLE, [{**dict.fromkeys(columns, ""), **own} for own in rows])


if __name__ == "__main__":
    main()
