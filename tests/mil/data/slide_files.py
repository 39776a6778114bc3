"""Files of features as TRIDENT, CLAM, torchmil and others write them, small."""

import csv
from pathlib import Path

import h5py
import numpy as np
import torch

DIM = 6


def features_of(seed: int, patches: int, label: int = 0, dim: int = DIM) -> np.ndarray:
    """Features in which a class shows: its column is higher in the first patch."""
    values = np.random.default_rng(seed).normal(size=(patches, dim)).astype(np.float32)
    values[0, label] += 8
    return values


def coords_of(patches: int, step: int = 512) -> np.ndarray:
    """A square lattice in the order of rows, (x, y)."""
    width = int(np.ceil(np.sqrt(patches)))
    return np.stack([np.arange(patches) % width, np.arange(patches) // width], 1).astype(np.int64) * step


def write_trident(path: Path, features: np.ndarray, coords: np.ndarray | None = None, **attributes: object) -> Path:
    """40x slides, patches of 256 pixels at 20x: the step at level 0 is 512."""
    coords = coords_of(len(features)) if coords is None else coords
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40, "target_magnification": 20}
    told |= {"overlap": 0, "name": path.stem, "level0_width": 50_000, "level0_height": 40_000, **attributes}
    with h5py.File(path, "w") as file:
        for key, values in (("features", features), ("coords", coords)):
            chunk = (1, *values.shape[1:])
            out = file.create_dataset(key, data=values, maxshape=(None, *values.shape[1:]), chunks=chunk)
            if key == "coords":
                out.attrs.update(told)
    return path


def write_clam(folder: Path, name: str, features: np.ndarray, coords: np.ndarray) -> None:
    """CLAM's two files: no attributes, and no coordinates in the second."""
    for inner in ("h5_files", "pt_files"):
        (folder / inner).mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / "h5_files" / f"{name}.h5", "w") as file:
        file["features"], file["coords"] = features, coords.astype(np.int32)
    torch.save(torch.from_numpy(features), folder / "pt_files" / f"{name}.pt")


def write_csv(path: Path, head: str, *rows: str) -> Path:
    """A table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
    return path


def write_slides(folder: Path, count: int = 12, patches: int = 9, classes: int = 2, cases: int | None = None) -> Path:
    """Slides 001, 002 ... of TRIDENT below `features`, and their `labels.csv`; returns the folder."""
    rows = []
    for i in range(count):
        name = f"{i + 1:03}"
        write_trident(folder / "features" / f"{name}.h5", features_of(i, patches + i, i % classes).astype(np.float16))
        rows.append(f"{name},{'abcdef'[i % classes]},case{i % (cases or count)}")
    write_csv(folder / "labels.csv", "slide_id,label,case_id", *rows)
    return folder


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file by its head."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
