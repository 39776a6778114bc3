"""How near a student is to its teacher: features, a probe, maps of attention, time and memory."""

import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softmaxfree.bench.memory import peak_bytes
from softmaxfree.explain.capture import capture
from softmaxfree.explain.layers import attention_layers
from softmaxfree.linearize.activations import in_tokens
from softmaxfree.linearize.pictures import device_of, preparation

__all__ = ["Likeness", "Probe", "classes_of", "cost", "features_of", "fit_probe", "likeness", "map_shape", "summary_of"]

_MOST_TOKENS = 1500  # of a map of which the rank is told
_REPEATS = 3


class Likeness(NamedTuple):
    """Cosines of a student's features with the teacher's, means over pictures.

    `raw` is that of the summary, the class token or the mean of all; `median` its median; `centred` the same around the
    teacher's mean over the pictures, since features of different pictures are alike; `between` is that of different
    pictures, to compare with; `patches` that of the patches.
    """

    raw: float
    median: float
    centred: float
    between: float
    patches: float


def summary_of(tokens: Tensor, prefix: int) -> Tensor:
    """Returns the class token of features `(B, N, C)`, or the mean where there is none."""
    return tokens[:, 0] if prefix else tokens.mean(1)


def likeness(own: Tensor, teacher: Tensor, prefix: int) -> Likeness:
    """Compares features `(B, N, C)` of a student with those of its teacher.

    Args:
        own: of the student.
        teacher: of the same pictures.
        prefix: tokens before the patches.

    Returns:
        The cosines; `nan` for those that need two pictures.
    """
    a, b = summary_of(own, prefix), summary_of(teacher, prefix)
    raw, mean, count = F.cosine_similarity(a, b, dim=-1), b.mean(0), len(b)
    unit = F.normalize(b, dim=-1)
    between = ((unit @ unit.T).sum() - count) / (count * (count - 1)) if count > 1 else torch.tensor(torch.nan)
    centred = F.cosine_similarity(a - mean, b - mean, dim=-1).mean() if count > 1 else torch.tensor(torch.nan)
    patches = F.cosine_similarity(own[:, prefix:], teacher[:, prefix:], dim=-1).mean()
    return Likeness(*(float(x) for x in (raw.mean(), raw.median(), centred, between, patches)))


class Probe(NamedTuple):
    """A linear classifier on a teacher's features."""

    model: Any

    def accuracy(self, features: Tensor, labels: Sequence[int]) -> float:
        """Returns the part of pictures `(B, C)` that it classifies rightly."""
        return float(np.mean(self.classes(features) == np.asarray(labels)))

    def classes(self, features: Tensor) -> np.ndarray:
        """Returns the class of each picture."""
        return self.model.predict(features.numpy())


def fit_probe(features: Tensor, labels: Sequence[int], strength: float = 0.003) -> Probe:
    """Fits a logistic regression.

    Args:
        features: `(B, C)` of the teacher.
        labels: of the pictures, of two classes at least.
        strength: `C` of scikit-learn, less is more regular.

    Returns:
        The probe.
    """
    from sklearn.linear_model import LogisticRegression

    return Probe(LogisticRegression(C=strength, max_iter=2000).fit(features.numpy(), np.asarray(labels)))


@torch.no_grad()
def map_shape(model: nn.Module, image: Tensor) -> list[tuple[float, float]]:
    """Returns locality and rank of the attention of each block on one image, means over heads.

    Locality is the mean distance in patches between a query and what it attends to; rank is the exponential of the
    entropy of the singular values of the map. Weights count by their magnitude, as a low rank has negative ones.

    Args:
        model: of timm, exchanged or not.
        image: `(1, C, H, W)`.

    Returns:
        A pair for each block; none where there are more than 1,500 tokens, and of a pyramid, which reduces its keys.
    """
    found: list[tuple[float, float]] = []
    if not hasattr(model, "blocks"):
        return found
    for layer in attention_layers(model):
        seen = capture(model, layer, image)
        q, k, rows, columns = seen.q, seen.k, *seen.grid
        if q.shape[2] > _MOST_TOKENS:
            return []
        if layer.mixer is None:
            weights = (q @ k.mT * (seen.scale or q.shape[-1] ** -0.5)).softmax(-1)
        else:
            unit = torch.eye(k.shape[2], device=k.device).expand(*k.shape[:2], -1, -1)
            weights = layer.mixer.mix(q, k, unit, [rows, columns])
        weights = weights[0, :, seen.prefix :, seen.prefix :]
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        places = torch.stack((y, x), -1).flatten(0, 1).to(weights)
        sizes = weights.abs()
        distance = (sizes * torch.cdist(places, places)).sum((-2, -1)) / sizes.sum((-2, -1))
        values = torch.linalg.svdvals(weights)
        part = values / values.sum(-1, keepdim=True)
        rank = torch.special.entr(part).sum(-1).exp()
        found.append((float(distance.mean()), float(rank.mean())))
    return found


@torch.inference_mode()
def cost(teacher: Any, student: Any, size: int, repeats: int = _REPEATS) -> dict[str, float]:
    """Returns time and memory of teacher and student on one image, in turn.

    Args:
        teacher: the one.
        student: the other.
        size: height and width in pixels.
        repeats: how often each runs after a first time.

    Returns:
        `teacher_ms` and `student_ms`, medians; `speedup`, the median of the ratios; `teacher_mib` and `student_mib`.
    """
    channels = preparation(teacher)["input_size"][0]
    x = torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(0)).to(device_of(teacher))
    peaks = [peak_bytes(partial(net.forward_features, x), x.device) / 2**20 for net in (teacher, student)]
    pairs = [[_seconds(net, x) for net in (teacher, student)] for _ in range(repeats)]
    times = [1e3 * statistics.median(column) for column in zip(*pairs, strict=True)]
    return {
        "teacher_ms": times[0],
        "student_ms": times[1],
        "speedup": statistics.median(a / b for a, b in pairs),
        "teacher_mib": peaks[0],
        "student_mib": peaks[1],
    }


@torch.inference_mode()
def features_of(model: Any, pictures: Any, numbers: Sequence[int], size: int) -> Tensor:
    """Returns the final features of pictures as tokens, `(B, N, C)` on the CPU, one picture at a time."""
    return torch.cat([in_tokens(model.forward_features(pictures.batch([i], size, model))).cpu() for i in numbers])


@torch.inference_mode()
def classes_of(model: Any, pictures: Any, numbers: Sequence[int], size: int) -> np.ndarray:
    """Returns the class of each picture by the head of a model, one picture at a time."""
    return np.array([int(model(pictures.batch([i], size, model)).argmax()) for i in numbers])


def _seconds(model: Any, x: Tensor) -> float:
    start = time.perf_counter()
    model.forward_features(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return time.perf_counter() - start
