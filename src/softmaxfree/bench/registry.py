"""What is timed, over which sizes, and what its results must equal first."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import softmaxfree.models  # noqa: F401  registers the models
from softmaxfree.bench import peers
from softmaxfree.layers.landmarks import Landmarks
from softmaxfree.mixers import create_mixer, mixer_class
from softmaxfree.mixers.mixer import own_arguments
from softmaxfree.models.released import RELEASED_LANDMARK_GRID, RELEASED_SOLVER
from softmaxfree.ops import Cholesky, Newton, gaussian_gram

FORWARD, TRAIN = "forward", "forward+backward"
_HEADS, _WIDTH = 2, 32  # as the first stage of soft_tiny
_SIDE = 7  # of the grid of landmarks
_MIXERS = ("softmax", "gaussian", "elu_linear", "relu_linear", "mala", "linformer", "nystrom", "performer")
_MATRICES = 40  # of soft_tiny for one image


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A row of the benchmark.

    Attributes:
        build: returns the module to time for inputs of a size.
        reference: returns, from a copy of that module, one that must give the same; it is computed in float64.
            None for a mere part of another contestant: nothing to check, no backward pass.
    """

    build: Callable[[int], nn.Module]
    reference: Callable[[nn.Module], nn.Module] | None = lambda module: module

    def does(self, what: str) -> bool:
        """Returns whether there is this pass."""
        return what == FORWARD or self.reference is not None


@dataclasses.dataclass(frozen=True)
class Suite:
    """Contestants on one kind of input.

    Attributes:
        size: what the size counts.
        shapes: `(batch, size)` of each point.
        check_size: at which results are compared.
        inputs: makes the inputs of a batch and size.
        contestants: by name; the first is this package's own.
        whole_models: half dtypes by autocast and gradients of the weights; else half inputs and their gradients too.
    """

    size: str
    shapes: list[tuple[int, int]]
    check_size: int
    inputs: Callable[[int, int], list[Tensor]]
    contestants: dict[str, Contestant]
    whole_models: bool


def _tokens(batch: int, tokens: int) -> list[Tensor]:
    """Returns `q / D^(1/4)` and `v` as projections leave them, heads beside tokens."""
    q, v = (torch.randn(batch, tokens, _HEADS, _WIDTH).transpose(1, 2) for _ in range(2))
    return [q * _WIDTH**-0.25, v]


def _mix(name: str, **given: Any) -> Contestant:
    """A mixer; one with a `ratio` has as many landmarks at each size as the paper, 49."""

    def build(tokens: int) -> nn.Module:
        own = dict(given)
        arguments = own_arguments(mixer_class(name))
        if "ratio" in arguments:
            own["ratio"] = math.isqrt(tokens) // _SIDE
        if "landmark_sampling" in arguments:
            own["landmark_sampling"] = "mean"
        return peers.Mix(create_mixer(name, dim=_HEADS * _WIDTH, num_heads=_HEADS, **own))

    return Contestant(build)


def _landmarks(tokens: int) -> Landmarks:
    return Landmarks(_WIDTH, math.isqrt(tokens) // _SIDE, sampling="mean")


def _grams(batch: int, landmarks: int) -> list[Tensor]:
    """Returns the kernel matrices of the landmarks of a smooth map: what attention inverts."""
    field = torch.randn(batch * _MATRICES, _WIDTH, 5)
    points = F.interpolate(field, landmarks, mode="linear", align_corners=True).mT * _WIDTH**-0.25
    return [gaussian_gram(points.unflatten(0, (batch, _MATRICES)))]


def _published(module: nn.Module) -> nn.Module:
    mixer: Any = module.get_submodule("mixer")
    return peers.Published(mixer.landmarks)


def _images(batch: int, pixels: int) -> list[Tensor]:
    return [torch.randn(batch, 3, pixels, pixels)]


def _model(name: str, **arguments) -> Callable[[int], nn.Module]:
    return lambda pixels: timm.create_model(name, **arguments)


def _sized_model(name: str) -> Callable[[int], nn.Module]:
    return lambda pixels: timm.create_model(name, img_size=pixels)


def _published_model(pixels: int) -> nn.Module:
    return peers.PublishedModel(timm.create_model("soft_tiny", landmark_grid="unbounded", solver=RELEASED_SOLVER))


SUITES = {
    "attention": Suite(
        size="tokens",
        # 3,136 tokens are those of the first stage at 224 x 224 pixels
        shapes=[(8, 3136), (1, 784), (1, 3136), (1, 12_544), (1, 50_176), (1, 200_704), (1, 802_816)],
        check_size=784,
        inputs=_tokens,
        contestants={
            "soft": _mix("soft"),
            "soft, as released": dataclasses.replace(_mix("soft", solver=RELEASED_SOLVER), reference=_published),
            "published formulation": Contestant(lambda n: peers.Published(_landmarks(n))),
            "its four matrix products": Contestant(lambda n: peers.FourProducts(_SIDE**2), reference=None),
            **{name: _mix(name) for name in _MIXERS},
        },
        whole_models=False,
    ),
    "inverse": Suite(
        size="landmarks",
        shapes=[(1, 49), (1, 100), (1, 196), (1, 256), (1, 400), (1, 784)],
        check_size=49,
        inputs=_grams,
        contestants={
            "20 Newton steps": Contestant(lambda m: peers.Inverse(Newton(), "steps")),
            "the same on eigenvalues": Contestant(
                lambda m: peers.Inverse(Newton(), "spectral" if m > 64 else "steps"),
                lambda module: peers.Inverse(Newton(), "steps"),
            ),
            "Cholesky with ridge": Contestant(lambda m: peers.Inverse(Cholesky())),
        },
        whole_models=False,
    ),
    "model": Suite(
        size="pixels a side",
        shapes=[(8, 224), (1, 224), (1, 448), (1, 512), (1, 640), (1, 896), (1, 1792), (1, 4096)],
        check_size=224,
        inputs=_images,
        contestants={
            "soft_tiny": Contestant(_model("soft_tiny")),
            "soft_tiny, as released": Contestant(
                _model("soft_tiny", landmark_grid=RELEASED_LANDMARK_GRID, solver=RELEASED_SOLVER), peers.PublishedModel
            ),
            "soft_tiny, published formulation": Contestant(_published_model),
            "convnext_nano": Contestant(_model("convnext_nano")),
            "pvt_v2_b1": Contestant(_model("pvt_v2_b1")),
            "swin_tiny": Contestant(_sized_model("swin_tiny_patch4_window7_224")),
            "deit_tiny": Contestant(_sized_model("deit_tiny_patch16_224")),
            "efficientvit_b1": Contestant(_model("efficientvit_b1")),
        },
        whole_models=True,
    ),
}
