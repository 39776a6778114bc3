"""Tables of the pages, made from the CSVs in `benchmarks`, the recipes and the mixers; `fill.py` writes them."""

import re
from typing import Any

from cells import MACHINE, ROOT, Rows, grid, markdown, percent, read, rounded, told

RECIPES = {"RetinaNet": "scenes_detection", "Mask R-CNN": "scenes_instances", "UPerNet": "scenes_segmentation"}
HEADS = {"retinanet": "RetinaNet", "mask_rcnn": "Mask R-CNN", "upernet": "UPerNet"}


def whole(name: str) -> str:
    """A CSV as it is; columns with one value alone stand in the line below."""
    rows = read(name)
    same = {key: rows[0][key] for key in rows[0] if key not in MACHINE and len({row[key] for row in rows}) == 1}
    columns = [key for key in rows[0] if key not in MACHINE and key not in same]
    lines = [[row[key] for key in columns] for row in rows]
    constant = "".join(f"{key.replace('_', ' ')} {value}; " for key, value in same.items() if value)
    return markdown([key.replace("_", " ") for key in columns], lines) + told(name, rows, constant)


def scenes() -> str:
    """Digit scenes: the last epoch of each run."""
    rows = read("scenes-cpu")
    runs: dict[tuple[str, str], Rows] = {}
    for row in rows:
        runs.setdefault((row["head"], row["backbone"]), []).append(row)
    lines = []
    for (head, backbone), epochs in runs.items():
        last = epochs[-1]
        scores = {"mask AP50": "mask_ap50", "box AP50": "box_ap50", "box AP": "box_ap", "mIoU": "miou"}
        result = ", ".join(f"{percent(last[key])} % {name}" for name, key in scores.items() if last[key])
        seconds = sum(float(row["seconds"]) for row in epochs)
        cost = [f"{seconds:.0f}", last["threads"]]
        lines.append([f"`{RECIPES[head]}`", head, f"`{backbone}`", last["parameters_m"], result, *cost])
    head = ["recipe", "head", "backbone", "parameters (M)", "result", "seconds", "threads"]
    return markdown(head, lines) + told("scenes-cpu", rows)


def digits() -> str:
    """Embedded digits: the best epoch, and all of the training."""
    rows = read("digits-cpu")
    best = max(rows, key=lambda row: float(row["val/top1"]))
    seconds = sum(float(row["seconds"]) for row in rows)
    scores = [percent(best[f"val/top{k}"]) for k in (1, 5)]
    line = [*scores, int(best["epoch"]) + 1, len(rows), f"{seconds:.0f}"]
    return markdown(["top-1 (%)", "top-5 (%)", "best epoch", "epochs", "seconds"], [line]) + told("digits-cpu", rows)


def padding() -> str:
    """Images alone and padded in a batch: the worst of all objects."""
    rows = read("padding-cpu")
    lines = []
    for row in rows:
        largest = [row[f"largest_{what}_difference"] for what in ("score", "mask", "logit")]
        lines.append([HEADS[row["head"]], f"`{row['backbone']}`", row["objects"], row["worst_iou"], *largest])
    head = ["head", "backbone", "objects", "least box IoU", "difference of scores", "of masks", "of logits"]
    return markdown(head, lines) + told("padding-cpu", rows)


def transfer() -> str:
    """mIoU at larger images than those of the training."""
    rows = [row for row in read("resolution-transfer-cpu") if row["images"] == "rendered"]
    sizes = sorted({row["size"] for row in rows}, key=int)
    lines = []
    for value, name in (("True", "normalised"), ("False", "not normalised")):
        by_size = {row["size"]: percent(row["miou"]) for row in rows if row["normalize"] == value}
        lines.append([name, *(by_size[size] for size in sizes)])
    return markdown(["mIoU (%) by pixels a side", *sizes], lines) + told("resolution-transfer-cpu", rows)


def memory() -> str:
    """MiB of a training step of a detector."""
    rows = read("detection-memory-cpu")
    backbones = list(dict.fromkeys(row["backbone"] for row in rows))
    lines = []
    for head in dict.fromkeys(row["head"] for row in rows):
        lines.append([HEADS[head], *(row["total_mib"] for row in rows if row["head"] == head)])
    return markdown(["MiB", *(f"`{name}`" for name in backbones)], lines) + told("detection-memory-cpu", rows)


def freed() -> str:
    """Time of a pass where freed memory is kept, beside that where it goes back to the system."""
    rows = read("freed-memory-cpu")
    times = {(row["model"], row["pixels"], row["freed_memory"]): float(row["median_ms"]) for row in rows}
    lines = []
    for model, pixels in dict.fromkeys((row["model"], row["pixels"]) for row in rows):
        returned, kept = (times[model, pixels, what] for what in ("returned", "kept"))
        lines.append([f"`{model}`", pixels, f"{returned:.0f}", f"{kept:.0f}", f"{kept / returned:.2f}"])
    head = ["model", "pixels a side", "ms, memory returned", "ms, memory kept", "kept / returned"]
    return markdown(head, lines) + told("freed-memory-cpu", rows)


def exported() -> str:
    """Latency of exported files beside eager and torch.compile."""
    if not (ROOT / "benchmarks" / "export-cpu.csv").exists():
        return "Not measured yet: `python benchmarks/export.py` does."
    rows = read("export-cpu")
    ways = list(dict.fromkeys(row["runtime"] for row in rows))
    times = {(row["model"], row["pixels"], row["runtime"]): row["median_ms"] for row in rows}
    keys = dict.fromkeys((row["model"], row["pixels"]) for row in rows)
    lines = [[f"`{model}`", pixels, *(times[model, pixels, way] for way in ways)] for model, pixels in keys]
    constant = f"onnxruntime {rows[0]['onnxruntime']}; "
    return markdown(["model", "pixels a side", *(f"{way}, ms" for way in ways)], lines) + told(
        "export-cpu", rows, constant
    )


def linearized(part: str) -> str:
    """The bundled teacher and its students: `probe`, accuracy and cosines; or `cost`, time and memory."""
    rows = [row for row in read("linearize-cpu") if row["what"] == part]
    probes = {row["size"]: row for row in read("linearize-cpu") if row["what"] == "probe"}
    shares = {size: [percent(row[f"probe_{who}"]) for who in ("teacher", "student")] for size, row in probes.items()}
    if part == "probe":
        solar = read("solar-cpu")
        lines = []
        for row in rows:
            cosines = [f"{float(row[f'cells_{key}']):.3f}" for key in ("raw", "centred", "between")]
            natural = f"{float(row['photographs_median']):.3f}"
            lines.append([
                "student", row["size"], row["held"], *shares[row["size"]], percent(row["agreement"]), *cosines, natural
            ])  # fmt: skip
        scratch = max(float(row["top1"]) for row in solar if row["model"] == "soft_nano" and row["top1"])
        lines.append(["`soft_nano`, from scratch", "224", "654", "", percent(str(scratch)), *[""] * 5])
        head = [
            "network", "pixels", "cells", "teacher (%)", "right (%)", "agree (%)", "cosine", "centred",
            "of different cells", "photographs, median",
        ]  # fmt: skip
        return markdown(head, lines) + told("linearize-cpu", rows)
    names = ("teacher_ms", "student_ms", "teacher_mib", "student_mib")
    lines = [
        [
            row["size"], *shares.get(row["size"], ["", ""]), *(f"{float(row[key]):,.0f}" for key in names),
            f"{float(row['speedup']):.2f}",
        ]
        for row in rows
    ]  # fmt: skip
    head = [
        "pixels", "teacher (%)", "student (%)", "teacher, ms", "student, ms", "teacher, MiB", "student, MiB",
        "times as fast",
    ]  # fmt: skip
    return markdown(head, lines) + told("linearize-cpu", rows)


def earth(part: str) -> str:
    """The relief of the Earth: `trained`, in one pass and in windows; or `others`, how far other networks come."""
    rows, names = read("earth-cpu"), ("ocean", "land", "ice", "lake")
    if part == "trained":
        lines = []
        for row in (row for row in rows if row["weights"] == part):
            how = f"{row['window']}, every {row['stride']}" if row["window"] else "one pass"
            torn = f"{100 * int(row['seams']) / int(row['border_pairs']):.1f}" if row["seams"] else ""
            lines.append([how, row["seconds"], row["peak_gib"], *(percent(row[f"iou_{name}"]) for name in names), torn])
        head = ["windows", "seconds", "GiB", "ocean", "land", "ice", "lakes", "seams (%)"]
        return markdown(head, lines) + told("earth-cpu", rows)
    heights = sorted({row["height"] for row in rows}, key=int)
    cells = {
        (row["network"], row["height"]): f"stopped by {row['stopped_by']}"
        if row["stopped_by"]
        else f"{row['seconds']} s, {row['peak_gib']} GiB"
        for row in rows
        if not row["window"]
    }
    head = ["network", *(f"{2 * int(height)} x {height}" for height in heights)]
    lines = [[name, *(cells.get((name, h), "") for h in heights)] for name in dict.fromkeys(name for name, _ in cells)]
    return markdown(head, lines) + told("earth-cpu", rows)


def attention() -> str:
    """Time and memory of the attention's forward pass, batch 1."""
    return bench("attention", "tokens")


def model() -> str:
    """Time and memory of a model's forward pass, batch 1."""
    return bench("model", "pixels a side")


def bench(suite: str, unit: str) -> str:
    """Forward passes of a suite of `softmaxfree bench`: milliseconds and MiB by size."""
    return forward(f"results/{suite}-cpu", unit)


def defaults() -> str:
    """Time and memory of `soft_tiny` as it is by default, and as released, beside other networks."""
    return forward("defaults-cpu", "pixels a side")


def bfloat16() -> str:
    """Time of `soft_tiny` and other networks in float32 and under bfloat16 autocast, by processor."""
    times: dict[tuple[str, str, str], dict[str, str]] = {}
    both = read("defaults-cpu") + read("bfloat16-cpu")
    for row in both:
        if (row["what"], row["batch"]) == ("forward", "1"):
            times.setdefault((row["device"], row["name"], row["size"]), {})[row["dtype"]] = row["median_ms"]
    lines = []
    for (device, name, size), each in times.items():
        if len(each) == 2:
            wide, narrow = each["float32"], each["bfloat16"]
            times_as_fast = f"{float(wide) / float(narrow):.2f}"
            lines.append([device, f"`{name}`", size, rounded(wide), rounded(narrow), times_as_fast])
    head = ["processor", "network", "pixels a side", "float32, ms", "bfloat16, ms", "times as fast"]
    return markdown(head, lines) + told("bfloat16-cpu", [row for row in both if row["dtype"] == "bfloat16"])


def forward(name: str, unit: str) -> str:
    """Forward passes of one image: milliseconds and MiB by size."""
    rows = [row for row in read(name) if (row["what"], row["batch"], row["dtype"]) == ("forward", "1", "float32")]
    parts = [
        grid(f"{what} by {unit}", {(row["name"], int(row["size"])): rounded(row[key]) for row in rows if row[key]})
        for key, what in (("median_ms", "ms"), ("peak_mib", "MiB"))
    ]
    return "\n\n".join(parts) + told(name, rows)


def mixers_digits() -> str:
    """Accuracy of all mixers on digits after equal training."""
    return accuracy("mixers-digits-cpu", "mixer")


def mixers_solar() -> str:
    """Accuracy of eight mixers on the solar cells after equal training."""
    return accuracy("mixers-solar-cpu", "mixer")


def mixers_scenes() -> str:
    """Segmentation of the made scenes with eight mixers after equal training."""
    return accuracy("mixers-scenes-cpu", "mixer", "mIoU (%)")


def mixers_cost() -> str:
    """Milliseconds and MiB of every mixer alone over the number of tokens."""
    rows = [row for row in read("mixers-cost-cpu") if row["milliseconds"]]
    parts = []
    for what in ("forward", "forward+backward"):
        cells = {
            (f"`{row['name']}`", int(row["tokens"])): f"{rounded(row['milliseconds'])} ({rounded(row['peak_mib'])})"
            for row in rows
            if row["what"] == what
        }
        parts.append(grid(f"{what}, ms (MiB) by tokens", cells))
    return "\n\n".join(parts) + told("mixers-cost-cpu", rows)


def landmarks_digits() -> str:
    """Accuracy of `soft` on digits over the number of landmarks."""
    return accuracy("landmarks-digits-cpu", "landmarks")


def landmarks_larger() -> str:
    """Scores of `soft` over the number of landmarks, on data of larger images."""
    rows = read("landmarks-larger-cpu")
    data = list(dict.fromkeys(row["data"] for row in rows))
    scores = {(row["data"], row["name"].split()[0]): percent(row["score"]) for row in rows}
    counts = sorted({count for _, count in scores}, key=int)
    lines = [[count, *(scores.get((name, count), "") for name in data)] for count in counts]
    metrics = {"solar_cells": "solar cells, top-1 (%)", "scenes": "scenes, mIoU (%)"}
    return markdown(["landmarks", *(metrics[name] for name in data)], lines) + told("landmarks-larger-cpu", rows)


def studies() -> str:
    """Scores of the ways of `soft`, one study after the other: digits over seeds, and scenes."""
    rows = read("studies-cpu")
    scores: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        each = scores.setdefault((row["study"], row["name"]), {})
        each.setdefault(row["data"], []).append(100 * float(row["score"]))
    lines = []
    for (study, way), each in scores.items():
        own, scenes = each["digits"], "".join(f"{score:.1f}" for score in each.get("scenes", []))
        lines.append([study, way, f"{sum(own) / len(own):.2f}", f"{min(own):.1f} to {max(own):.1f}", scenes])
    head = ["study", "way", "digits, top-1 (%)", "least to largest of 3 seeds", "scenes, mIoU (%)"]
    return markdown(head, lines) + told("studies-cpu", rows)


def residuals() -> str:
    """The residual of the landmarks' inverse, and the error of the whole, over the Newton steps."""
    rows = read("newton-facts-cpu")
    lines = [[row["name"].split()[0], row["residual"], row["error_to_exact"]] for row in rows]
    head = ["Newton steps", "residual of the inverse", "error to the exact Gaussian"]
    return markdown(head, lines) + told("newton-facts-cpu", rows)


def bags_cost() -> str:
    """Time and memory of the attention of bags over the number of patches."""
    rows = read("mil-cost-cpu")
    parts = [
        grid(f"{what} by patches", {(row["layer"], int(row["tokens"])): rounded(row[key]) for row in rows})
        for key, what in (("seconds", "s"), ("peak_mib", "MiB"))
    ]
    return "\n\n".join(parts) + told("mil-cost-cpu", rows)


def bags_epoch() -> str:
    """An epoch over files of 20,000 patches: time, and memory of all processes."""
    rows = read("mil-epoch-cpu")
    keys = ("epoch_s", "s_per_slide", "begin_mib", "peak_mib", "bag_mib")
    lines = [[row["network"], row["trained_slides"], row["workers"], *(row[key] for key in keys)] for row in rows]
    head = ["network", "slides", "workers", "s", "s a slide", "MiB before", "MiB, most", "MiB of a bag"]
    return markdown(head, lines) + told("mil-epoch-cpu", rows)


def mnist_bags() -> str:
    """AUC on test bags of MNIST-bags over seeds."""
    rows = [row for row in read("mil-tables-cpu") if row["table"] == "mnist"]
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row["encoder"], []).append(float(row["test_auc"]))
    ranked = sorted(scores.items(), key=lambda item: -sum(item[1]) / len(item[1]))
    lines = [[who, f"{sum(own) / len(own):.3f}", f"{min(own):.3f} to {max(own):.3f}", len(own)] for who, own in ranked]
    return markdown(["network", "AUC", "least to largest", "seeds"], lines) + told("mil-tables-cpu", rows)


def bag_tests() -> str:
    """AUC on the test bags of the needle, the adjacent pair, and Raff and Holt."""
    rows = [row for row in read("mil-tables-cpu") if row["table"] != "mnist"]
    order = ["needle", "pair", "single_concept", "multi_concept", "false_frequency"]
    there = {(row["table"], int(row["instances"] or 0)) for row in rows}
    columns = sorted(there, key=lambda own: (order.index(own[0]), own[1]))
    head = [f"{name.replace('_', ' ')}{f', {size:,}' if size else ''}" for name, size in columns]
    scores = {
        (row["encoder"], row["table"], int(row["instances"] or 0)): f"{float(row['test_auc']):.3f}" for row in rows
    }
    lines = [[who, *(scores.get((who, *own), "") for own in columns)] for who in sorted({key[0] for key in scores})]
    return markdown(["network", *head], lines) + told("mil-tables-cpu", rows)


def accuracy(name: str, what: str, metric: str = "top-1 (%)") -> str:
    """Scores of `softmaxfree compare`: mean, least and largest over the seeds, the best first."""
    rows = read(name)
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row["name"], []).append(100 * float(row["score"]))
    each = sorted(scores.items(), key=lambda item: -sum(item[1]) / len(item[1]))
    lines = [[who, f"{sum(own) / len(own):.2f}", f"{min(own):.1f} to {max(own):.1f}", len(own)] for who, own in each]
    return markdown([what, metric, "least to largest", "seeds"], lines) + told(name, rows)


def recipes() -> str:
    """The recipes and what their headers say; first those that need no large machine."""
    lines = []
    for path in sorted((ROOT / "src/softmaxfree/recipes").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        told_of = dict(re.findall(r"^# (hardware|time|expected): +(.+(?:\n#  +.+)*)", text, re.M))
        words = [re.sub(r"\n# +", " ", told_of.get(key, "")) for key in ("hardware", "time", "expected")]
        lines.append([f"`{path.stem}`", text.splitlines()[0].strip("# "), *words])
    lines.sort(key=lambda line: "GPU" in line[2])
    return markdown(["recipe", "what it does", "hardware", "time", "expected"], lines)


def mixers() -> str:
    """All token mixers, and what they take."""
    from softmaxfree.mixers import list_mixers, mixer_class

    yes = {True: "yes", False: "no"}
    lines = []
    for name in list_mixers():
        own = mixer_class(name)
        takes = [yes[own.masks], _sequences(name), yes[own.prefix]]
        cost = "linear" if own.linear else "quadratic"
        lines.append([f"`{name}`", own.source, cost, *takes, f"`{own.approximates}`" if own.approximates else ""])
    head = ["mixer", "paper", "cost", "padding mask", "sequences", "class token", "comes near to"]
    return markdown(head, lines)


def _sequences(name: str) -> str:
    """Whether a mixer takes sequences: as it is, or with which arguments."""
    from softmaxfree.errors import InputError
    from softmaxfree.mixers import create_mixer

    for own in OF_SEQUENCES:
        try:
            if 1 in create_mixer(name, dim=16, num_heads=2, **own).ndims:
                return ", ".join(f"`{key}={value}`" for key, value in own.items()) or "yes"
        except InputError:  # it has no such argument
            continue
    return "no"


OF_SEQUENCES: tuple[dict[str, Any], ...] = (
    {},
    {"landmark_grid": (16,)},
    {"ndim": 1, "landmark_grid": (16,)},
    {"block_grid": (16,)},
)
