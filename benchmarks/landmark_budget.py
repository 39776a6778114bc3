"""How far the landmark budget changes the feature maps of a large image, against unbounded landmarks.

    python benchmarks/landmark_budget.py

A photograph at 896x896, random weights. Writes benchmarks/landmark-budget-cpu.csv.
"""

from pathlib import Path

import timm
import torch
from skimage import data
from torchvision.transforms.v2 import functional as tv

import softmaxfree  # noqa: F401  registers the models
from softmaxfree.atomic import write_csv
from softmaxfree.machine import describe

SIZE = 896


def main() -> None:
    """Measure, and write a row for each model and feature map."""
    image = tv.to_dtype(tv.to_image(data.astronaut()), torch.float32, scale=True)
    image = tv.normalize(tv.resize(image, [SIZE, SIZE], antialias=True), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    rows = []
    for name in ("soft_tiny", "soft_norm_tiny"):
        torch.manual_seed(0)
        bounded = timm.create_model(name, features_only=True).eval()
        unbounded = timm.create_model(name, features_only=True, landmark_grid="unbounded").eval()
        unbounded.load_state_dict(bounded.state_dict())
        with torch.inference_mode():
            pairs = zip(bounded(image[None]), unbounded(image[None]), strict=True)
        for i, (ours, reference) in enumerate(pairs):
            difference = ((ours - reference).norm() / reference.norm()).item()
            rows.append({"model": name, "size": SIZE, "stage": i + 1, "relative_difference": round(difference, 4)})
            print(rows[-1], flush=True)
    about = describe(torch.device("cpu"))
    write_csv(Path(__file__).parent / "landmark-budget-cpu.csv", [{**row, **about} for row in rows])


if __name__ == "__main__":
    main()
