"""TransMIL (Shao et al., NeurIPS 2021), true to checkpoints, and each bag as if it were alone."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softmaxfree.arguments import require_whole
from softmaxfree.errors import InputError
from softmaxfree.layers.linear import Linear
from softmaxfree.mil.bags import as_bags
from softmaxfree.mil.embedding import make_embedding
from softmaxfree.mil.nystrom import NystromAttention, PadMode
from softmaxfree.mil.ppeg import PPEG
from softmaxfree.ops.precision import full_precision

__all__ = ["TransMIL"]


class TransMILLayer(nn.Module):
    """`x + attention(LayerNorm(x))`; there is no feed-forward part.

    Args:
        dim: width.
        **attention: arguments of `NystromAttention`.
    """

    def __init__(self, dim: int, **attention: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attn = NystromAttention(dim, **attention)

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens `(1, N, C)` to the same."""
        return x + self.attn(self.norm(x))


class TransMIL(nn.Module):
    """Softmax Nystrom attention with a class token on patches in file order, laid out as a square.

    The first patches are repeated at the end until their number is a square. After the first layer a position encoding
    is taken on that square, see `PPEG`. The class token is classified.

    Bags of a batch run one after the other, each at its own length, so that padding and batch mates change nothing.
    Coordinates are not used: patches must come in the order of their grid, as in training.

    Args:
        num_classes: outputs.
        in_dim: width of the features.
        embed_dim: width `C`.
        depth: number of layers.
        num_heads: number of heads.
        num_landmarks: of a head; None for half the width.
        iterations: steps towards the inverse.
        conv_kernel: length of the convolution of the values, odd; 0 for none.
        project_out: whether attention ends with a linear layer.
        dropout: behind that layer.
        pad_mode: see `NystromAttention`; with "none" no patch is repeated either: cells after the last are empty.
        embed: see `make_embedding`.
        embed_layers: see `make_embedding`.
        embed_dropout: see `make_embedding`.
        act: of the embedding: "relu", "gelu", "silu" or "none".

    Raises:
        InputError: for an argument out of range.
    """

    def __init__(
        self,
        num_classes: int,
        in_dim: int = 1024,
        *,
        embed_dim: int = 512,
        depth: int = 2,
        num_heads: int = 8,
        num_landmarks: int | None = None,
        iterations: int = 6,
        conv_kernel: int = 33,
        project_out: bool = True,
        dropout: float = 0.1,
        pad_mode: PadMode = "official",
        embed: str | nn.Module = "linear",
        embed_layers: int = 1,
        embed_dropout: float = 0.0,
        act: str = "relu",
    ) -> None:
        super().__init__()
        least = {"num_classes": num_classes, "embed_dim": embed_dim, "depth": depth, "num_heads": num_heads}
        for name, value in least.items():
            require_whole(name, value, 1)
        require_whole("conv_kernel", conv_kernel, 0)
        if embed_dim % num_heads:
            raise InputError(f"num_heads must divide the width {embed_dim}, got {num_heads}")
        self.num_classes, self.in_dim, self.embed_dim, self.pad_mode = num_classes, in_dim, embed_dim, pad_mode
        self.embed = make_embedding(embed, in_dim, embed_dim, layers=embed_layers, act=act, dropout=embed_dropout)
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim))
        self.layers = nn.ModuleList(
            TransMILLayer(
                embed_dim,
                dim_head=embed_dim // num_heads,
                heads=num_heads,
                num_landmarks=max(1, embed_dim // 2) if num_landmarks is None else num_landmarks,
                pinv_iterations=iterations,
                residual=conv_kernel > 0,
                residual_conv_kernel=conv_kernel or 1,
                dropout=dropout,
                project_out=project_out,
                pad_mode=pad_mode,
            )
            for _ in range(depth)
        )
        self.pos_layer = PPEG(embed_dim)
        self.norm = nn.LayerNorm(embed_dim)
        self.head = Linear(embed_dim, num_classes)

    @classmethod
    def from_checkpoint(cls, source: str | Path | dict[str, Any], **told: Any) -> "TransMIL":
        """Loads weights of the original, MIL_BASELINE, MIL-Lab or torchmil.

        Args:
            source: a file, or a state dict; see `softmaxfree.mil.checkpoints.read_transmil`.
            **told: what the checkpoint does not tell: see there.

        Returns:
            The network, in evaluation mode.

        Raises:
            InputError: the origin is not known, or an argument is missing.
        """
        from softmaxfree.mil.checkpoints import load_all, read_transmil

        arguments, weights = read_transmil(source, **told)
        model = cls(**arguments)
        load_all(model, weights, source)
        return model.eval()

    def inputs(self, x: Tensor, layer: int) -> Tensor:
        """Returns the tokens that enter a layer, or leave the last.

        Args:
            x: features of a bag `(N, in_dim)`.
            layer: number from 0; the number of layers for what leaves the last.

        Returns:
            `(1, 1 + P, C)`: the class token, and patches in file order, of which those behind the first `N` are copies.
        """
        side = math.ceil(math.sqrt(len(x)))
        tokens = self._with_copies(x, 0 if self.pad_mode == "none" else side * side - len(x))
        for i, own in enumerate(list(self.layers)[:layer]):
            tokens = own(tokens)
            if i == 0:
                tokens = torch.cat((tokens[:, :1], self.pos_layer(tokens[0, 1:], side)[None]), 1)
        return tokens

    def _with_copies(self, x: Tensor, copies: int) -> Tensor:
        """Returns the class token, embedded patches and copies of the first of them, `(1, 1 + P, C)`."""
        patches = self.embed(x).to(self.cls_token.dtype)  # the sums that layers add to stay wide under autocast
        return torch.cat((self.cls_token[0], patches, patches[:copies]))[None]

    def tokens(self, x: Tensor, mask: Tensor | None = None, coords: Tensor | None = None) -> Tensor:
        """Returns the patches behind the last norm, `(B, N, C)`, 0 in the padding; arguments as for `forward`."""
        bags = as_bags(x, mask, None, self.in_dim)
        outs = [self.norm(self.inputs(bag, len(self.layers)))[0, 1 : len(bag) + 1] for bag in bags.each()]
        return bags.as_given(nn.utils.rnn.pad_sequence(outs, batch_first=True))

    def forward(self, x: Tensor, mask: Tensor | None = None, coords: Tensor | None = None) -> Tensor:
        """Classifies bags.

        Args:
            x: features `(B, N, in_dim)`, or of one bag `(N, in_dim)`.
            mask: `(B, N)` bool or uint8, True for a patch; padding is on the right.
            coords: not used.

        Returns:
            Logits `(B, num_classes)`.

        Raises:
            InputError: shapes do not fit, or a bag is empty.
        """
        bags = as_bags(x, mask, None, self.in_dim)
        return torch.cat([self._classify(self.inputs(bag, len(self.layers))[:, 0]) for bag in bags.each()])

    def _classify(self, token: Tensor) -> Tensor:
        with full_precision(token):
            return self.head(self.norm(token.to(self.head.weight.dtype)))
