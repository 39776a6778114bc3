"""Baselines in which patches do not see each other: mean, max, the highest patch, gated attention."""

import abc
from typing import Any

import torch
from torch import Tensor, nn

from softmaxfree.arguments import require_whole
from softmaxfree.layers.linear import Linear
from softmaxfree.mil.bags import as_bags
from softmaxfree.mil.embedding import make_embedding
from softmaxfree.ops.precision import compute_dtype, full_precision, widen

__all__ = ["AbstractPooling", "GatedAttention", "InstanceMax", "MaxPooling", "MeanPooling", "most_telling"]


class AbstractPooling(nn.Module, abc.ABC):
    """Embeds each patch, pools, and classifies; coordinates are not used.

    Args:
        num_classes: outputs.
        in_dim: width of the features.
        embed_dim: width `E` of the embedding.
        embed: see `make_embedding`.
        embed_layers: see `make_embedding`.
        dropout: behind the embedding.

    Raises:
        InputError: for an argument out of range.
    """

    def __init__(
        self,
        num_classes: int,
        in_dim: int,
        *,
        embed_dim: int = 512,
        embed: str | nn.Module = "linear",
        embed_layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_whole("num_classes", num_classes, 1)
        self.num_classes, self.in_dim, self.embed_dim = num_classes, in_dim, embed_dim
        self.embed = make_embedding(embed, in_dim, embed_dim, layers=embed_layers, dropout=dropout)
        self.head = Linear(embed_dim, num_classes)

    @abc.abstractmethod
    def weights(self, h: Tensor, mask: Tensor | None) -> Tensor:
        """Returns how much of each patch is taken.

        Args:
            h: embedded patches `(B, N, E)`.
            mask: `(B, N)` bool, True for a patch.

        Returns:
            `(B, N, 1)`, or `(B, N, E)` if channels differ, or `(B, N, classes)` if classes do; 0 in the padding. Of the
            dtype that ops compute in: in float16 a mean over many patches is 0.
        """

    def terms(self, h: Tensor, mask: Tensor | None) -> Tensor:
        """Returns what each patch adds to the logits, `(B, N, classes)`; the bias of the head is the rest."""
        return (self.weights(h, mask) * widen(h)) @ widen(self.head.weight).mT

    def pool(self, h: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the logits `(B, classes)` of embedded patches `(B, N, E)`."""
        return self.head((self.weights(h, mask).mT @ widen(h)).squeeze(1).to(self.head.weight.dtype))

    def forward(self, x: Tensor, mask: Tensor | None = None, coords: Tensor | None = None) -> Tensor:
        """Classifies bags.

        Args:
            x: features `(B, N, in_dim)`, or of one bag `(N, in_dim)`.
            mask: `(B, N)` bool or uint8, True for a patch; padding is on the right.
            coords: not used.

        Returns:
            Logits `(B, num_classes)`.
        """
        bags = as_bags(x, mask, None, self.in_dim)
        h = self.embed(bags.x)
        with full_precision(h):
            return self.pool(h.to(self.head.weight.dtype), bags.mask)


class MeanPooling(AbstractPooling):
    """The mean of the embedded patches. Arguments: see `AbstractPooling`."""

    def weights(self, h: Tensor, mask: Tensor | None) -> Tensor:
        """Returns one over the number of patches, `(B, N, 1)`."""
        dtype = compute_dtype(h.dtype)
        valid = h.new_ones(h.shape[:2], dtype=dtype) if mask is None else mask.to(dtype)
        return (valid / valid.sum(1, keepdim=True))[..., None]


class MaxPooling(AbstractPooling):
    """The greatest value of each channel of the embedded patches. Arguments: see `AbstractPooling`."""

    def weights(self, h: Tensor, mask: Tensor | None) -> Tensor:
        """Returns 1 for the patch that has a channel's greatest value, `(B, N, E)`; equal ones share it."""
        valid = _valid_only(h, mask)
        greatest = (valid == valid.amax(1, keepdim=True)).to(compute_dtype(h.dtype))
        return greatest / greatest.sum(1, keepdim=True)

    def pool(self, h: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the logits `(B, classes)` of embedded patches `(B, N, E)`."""
        return self.head(_valid_only(h, mask).amax(1))


class InstanceMax(AbstractPooling):
    """Classifies each patch; the bag has the highest logit of each class.

    With two classes it has both logits of the patch that speaks most for the second (Campanella et al., 2019): a bag is
    positive if one patch is. Arguments: see `AbstractPooling`.
    """

    def patch_logits(self, h: Tensor) -> Tensor:
        """Returns the logits `(B, N, classes)` of embedded patches."""
        return self.head(h)

    def weights(self, h: Tensor, mask: Tensor | None) -> Tensor:
        """Returns 1 for the patch that a class is taken from, `(B, N, classes)`."""
        logits = self.patch_logits(h)
        return _one_hot(most_telling(logits, mask), logits)

    def terms(self, h: Tensor, mask: Tensor | None) -> Tensor:
        """Returns what each patch adds to the logits, `(B, N, classes)`; the bias of the head is the rest."""
        return self.weights(h, mask) * widen(h @ self.head.weight.mT)

    def pool(self, h: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the logits `(B, classes)` of embedded patches `(B, N, E)`."""
        logits = self.patch_logits(h)
        return logits.gather(1, most_telling(logits, mask)).squeeze(1)


class GatedAttention(AbstractPooling):
    """Attention-based pooling with a gate: `softmax_j(w . (tanh(V h_j) * sigmoid(U h_j)))` (Ilse et al., 2018, eq. 9).

    Args:
        num_classes: outputs.
        in_dim: width of the features.
        embed_dim: width `E` of the embedding.
        hidden_dim: rows of `V` and `U`.
        embed: see `make_embedding`.
        embed_layers: see `make_embedding`.
        dropout: behind the embedding.

    Raises:
        InputError: for an argument out of range.
    """

    def __init__(
        self,
        num_classes: int,
        in_dim: int,
        *,
        embed_dim: int = 512,
        hidden_dim: int = 128,
        embed: str | nn.Module = "linear",
        embed_layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        own: Any = {"embed_dim": embed_dim, "embed": embed, "embed_layers": embed_layers, "dropout": dropout}
        super().__init__(num_classes, in_dim, **own)
        require_whole("hidden_dim", hidden_dim, 1)
        self.v = Linear(embed_dim, hidden_dim)
        self.u = Linear(embed_dim, hidden_dim)
        self.w = Linear(hidden_dim, 1)

    def weights(self, h: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the attention, `(B, N, 1)`; it sums to 1."""
        logits = self.w(self.v(h).tanh() * self.u(h).sigmoid())
        return _valid_only(widen(logits), mask).softmax(1)


def most_telling(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Returns from which patch a bag has its logit of each class.

    It is the patch with the highest; with two classes, for both, the one whose second logit is highest above the first.

    Args:
        logits: of the patches `(B, N, classes)`.
        mask: `(B, N)` bool, True for a patch.

    Returns:
        `(B, 1, classes)` int64.
    """
    score = logits[..., 1:] - logits[..., :1] if logits.shape[2] == 2 else logits
    return _valid_only(score, mask).argmax(1, keepdim=True).expand(-1, -1, logits.shape[2])


def _valid_only(values: Tensor, mask: Tensor | None) -> Tensor:
    """Returns `(B, N, K)` with minus infinity in the padding."""
    return values if mask is None else values.masked_fill(~mask[..., None], -torch.inf)


def _one_hot(places: Tensor, like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=compute_dtype(like.dtype)).scatter(1, places, 1.0)
