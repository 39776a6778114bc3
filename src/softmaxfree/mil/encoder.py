"""The network of bags of this package: any mixer on patches along a curve, read by a class token."""

from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from softmaxfree.arguments import require, require_number, require_whole
from softmaxfree.errors import InputError
from softmaxfree.layers import Block
from softmaxfree.layers.linear import Linear
from softmaxfree.mil.attention import ClassRow, SegmentAttention
from softmaxfree.mil.bags import Bags, as_bags
from softmaxfree.mil.curve import curve_order, lattice
from softmaxfree.mil.embedding import make_embedding
from softmaxfree.mil.pooling import most_telling
from softmaxfree.mil.ppeg import PPEG
from softmaxfree.mixers import AbstractMixer, create_mixer, mixer_class
from softmaxfree.mixers.mixer import own_arguments
from softmaxfree.ops.precision import full_precision, widen

__all__ = ["BagEncoder"]

_NEIGHBOURS = 0.5  # share of a neighbour in a patch, at first


class BagEncoder(nn.Module):
    """Blocks of a token mixer and a feed-forward part on the patches, then a class token that reads them.

    With coordinates the patches are sorted along a Hilbert curve of their cells, so that landmarks, which are means of
    segments, are of neighbours; and a position encoding is taken on the cells, see `PPEG.at`. Then the order that
    patches come in, where there are none, and a shift of all change nothing. Without coordinates there is no position
    encoding, and landmarks are of patches that follow each other in the file: their order has an effect.

    The logits are those of the class token, which sees how much there is, and of the most telling patch, see
    `InstanceMax`, which one among 10,000 can be. Padding and batch mates change nothing. The sums of "soft"
    and "gaussian" are divided by the number of patches, so that logits do not grow with it: a bag of which each patch
    occurs three times has nearly the same ones, and the same where landmarks are means of as many patches each. Of the
    other mixers none grows with the number either, but some tell places in the sequence or its length ("cosformer",
    "rpe_kernel", "sigmoid", "softplus", "ttt") or keep some keys exact ("softn").

    Args:
        num_classes: outputs.
        in_dim: width of the features.
        embed_dim: width `C`.
        depth: number of blocks; without any, patches see each other in the position encoding alone.
        num_heads: number of heads; divides `embed_dim`.
        mixer: "soft", see `SegmentAttention`, or the name of a mixer that takes sequences.
        mixer_args: its arguments.
        num_landmarks: of mixers with landmarks.
        mlp_ratio: hidden width of the feed-forward part over `C`.
        peaks: whether the greatest value of each channel is added to the class token, see `ClassRow`, and the logits of
            the most telling patch to its own.
        embed: see `make_embedding`.
        embed_layers: see `make_embedding`.
        dropout: behind the embedding.
        drop_path: probability that a bag skips a branch of a block in training.

    Raises:
        InputError: for an argument out of range.
    """

    def __init__(
        self,
        num_classes: int,
        in_dim: int,
        *,
        embed_dim: int = 256,
        depth: int = 2,
        num_heads: int = 4,
        mixer: str = "soft",
        mixer_args: Mapping[str, Any] | None = None,
        num_landmarks: int = 64,
        mlp_ratio: float = 2.0,
        peaks: bool = True,
        embed: str | nn.Module = "linear",
        embed_layers: int = 1,
        dropout: float = 0.25,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        least = {"num_classes": num_classes, "embed_dim": embed_dim}
        least |= {"num_heads": num_heads, "num_landmarks": num_landmarks}
        for name, value in least.items():
            require_whole(name, value, 1)
        require_whole("depth", depth, 0)
        require_number("drop_path", drop_path, 0, below=1)
        require(isinstance(peaks, bool), "peaks", peaks, "True or False")
        self.num_classes, self.in_dim, self.embed_dim = num_classes, in_dim, embed_dim
        self.embed = make_embedding(embed, in_dim, embed_dim, layers=embed_layers, dropout=dropout)
        self.pos_layer = PPEG(embed_dim)
        self.blocks = nn.ModuleList(
            Block(
                _mixer(mixer, embed_dim, num_heads, num_landmarks, mixer_args),
                norm="pre",
                mlp_ratio=mlp_ratio,
                drop_path=drop_path,
            )
            for _ in range(depth)
        )
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        trunc_normal_(self.cls_token, std=0.02)
        self.patch_norm = nn.LayerNorm(embed_dim)
        self.readout = ClassRow(embed_dim, num_heads, peaks)
        self.norm = nn.LayerNorm(embed_dim)
        self.head = Linear(embed_dim, num_classes)
        self.patch_head = Linear(embed_dim, num_classes) if peaks else None
        self._start_simple()

    def _start_simple(self) -> None:
        """Sets first weights: blocks and a class token that change nothing, neighbours alike in all directions.

        Labels of bags are too few to undo how random weights mix the patches.
        """
        if self.patch_head is not None:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        blocks: Any = self.blocks
        for block in blocks:
            for linear in (block.attn.proj, block.mlp.fc2):
                nn.init.zeros_(linear.weight)
                if linear.bias is not None:
                    nn.init.zeros_(linear.bias)
        self.pos_layer.start_as_neighbours(_NEIGHBOURS)

    def encode(self, bags: Bags, step: Any = None) -> Tensor:
        """Returns the patches behind the blocks and a norm, `(B, N, C)`, in the order that they come in.

        Args:
            bags: see `as_bags`.
            step: as for `forward`.

        Returns:
            The patches; arbitrary but finite in the padding.
        """
        x, mask = self.embed(bags.x).to(self.cls_token.dtype), bags.mask  # sums stay wide under autocast
        if bags.coords is None:
            return self.patch_norm(self._mixed(x, mask))
        order, cells = _places(bags, step)
        x = _take(x, order)
        encoded = [self.pos_layer.at(own[:n], at) for own, at, n in zip(x, cells, bags.lengths, strict=True)]
        x = self._mixed(nn.utils.rnn.pad_sequence(encoded, batch_first=True), mask)
        return _take(self.patch_norm(x), order.argsort(1))

    def _mixed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        for block in self.blocks:
            x = block(x, [x.shape[1]], mask)
        return x

    def read(self, patches: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the class token `(B, C)` before its last norm, of encoded patches `(B, N, C)`."""
        return self.cls_token[:, 0] + self.readout(self.cls_token, patches, mask)

    def tokens(
        self, x: Tensor, mask: Tensor | None = None, coords: Tensor | None = None, *, step: Any = None
    ) -> Tensor:
        """Returns the encoded patches, `(B, N, C)`, 0 in the padding; arguments as for `forward`."""
        bags = as_bags(x, mask, coords, self.in_dim)
        return bags.as_given(self.encode(bags, step))

    def forward(
        self, x: Tensor, mask: Tensor | None = None, coords: Tensor | None = None, *, step: Any = None
    ) -> Tensor:
        """Classifies bags.

        Args:
            x: features `(B, N, in_dim)`, or of one bag `(N, in_dim)`.
            mask: `(B, N)` bool or uint8, True for a patch; padding is on the right.
            coords: `(B, N, 2)` or `(N, 2)`, pixels `(x, y)` of each patch; None where they are not known.
            step: pixels between neighbours, a number or `(B,)`; None, or NaN in a bag, infers it from `coords`.

        Returns:
            Logits `(B, num_classes)`.

        Raises:
            InputError: shapes do not fit, a bag is empty, or its patches fall into one cell.
        """
        bags = as_bags(x, mask, coords, self.in_dim)
        patches = self.encode(bags, step)
        with full_precision(patches):
            logits = self.head(self.norm(self.read(patches, bags.mask)))
            if self.patch_head is None:
                return logits
            of_patches = self.patch_head(patches)
            return logits + of_patches.gather(1, most_telling(of_patches, bags.mask)).squeeze(1)


def _mixer(name: str, dim: int, num_heads: int, num_landmarks: int, given: Mapping[str, Any] | None) -> AbstractMixer:
    require(given is None or isinstance(given, Mapping), "mixer_args", given, "a dict")
    own = dict(given or {})
    if name == "soft":
        return SegmentAttention(dim, num_heads, **{"num_landmarks": num_landmarks, **own})
    known = own_arguments(mixer_class(name))
    if "ndim" in known:
        own.setdefault("ndim", 1)
    if "averaged" in known:
        own.setdefault("averaged", True)
    if "landmark_grid" in known:
        own.setdefault("landmark_grid", (num_landmarks,))
    mixer = create_mixer(name, dim=dim, num_heads=num_heads, **own)
    if 1 not in mixer.ndims:
        raise InputError(f"mixer must take sequences, but {name} takes images alone")
    return mixer


def _places(bags: Bags, step: Any) -> tuple[Tensor, list[Tensor]]:
    """Returns the order of the patches along the curve `(B, N)`, padding last, and the cells of each bag in it."""
    assert bags.coords is not None
    count = len(bags.x)
    require(not isinstance(step, str | bool), "step", step, "a number, or one for each bag")
    steps = torch.as_tensor(torch.nan if step is None else step, dtype=torch.float64).flatten()
    require(len(steps) in (1, count), "step", step, f"a number, or one for each of the {count} bags")
    order = torch.arange(bags.x.shape[1], device=bags.x.device).repeat(count, 1)
    cells = []
    for i, (own, n) in enumerate(zip(steps.expand(count).tolist(), bags.lengths, strict=True)):
        coords = bags.coords[i, :n]
        found = lattice(coords, None if own != own else own, f"bag {i} of the batch" if count > 1 else "the bag")
        order[i, :n] = curve_order(found.cells, coords, _tie(bags.x[i, :n]))
        cells.append(found.cells[order[i, :n]])
    return order, cells


def _tie(x: Tensor) -> Tensor:
    """Returns a number for each patch `(N, D)`, of which patches of other content have another."""
    x = widen(x.detach())
    with full_precision(x):
        return x @ torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device).cos()


def _take(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(1, order[..., None].expand_as(x))
