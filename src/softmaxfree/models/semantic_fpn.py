"""Semantic FPN without gradients, in a fraction of the memory: the decoder of segmentation_models_pytorch."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softmaxfree.layers.inference import is_plain_conv, is_plain_inference, is_seen

_STRIP_BYTES = 1 << 26  # of the finest pyramid map that is held at once


def decode(decoder: Any, maps: list[Tensor]) -> Tensor:
    """Returns what `decoder(maps)` does, to rounding, but never holds the finest pyramid map or all maps of one size.

    Args:
        decoder: segmentation_models_pytorch's `FPNDecoder` in evaluation mode.
        maps: of the encoder, the finest first, of which the last four count. The list is empty afterwards, so that
            each map is freed as soon as it was used.

    Returns:
        `(B, C, Y, X)` at the resolution of the finest of the four maps.
    """
    c2, c3, c4, c5 = maps[-4:]
    maps.clear()
    p5 = decoder.p5(c5)
    p4 = decoder.p4(p5, c4)
    p3 = decoder.p3(p4, c3)
    del c5, c4, c3
    blocks = decoder.seg_blocks
    finest = _finest(decoder.p2, blocks[3].block[0].block, p3, c2)
    del c2
    if decoder.merge.policy == "cat":
        return torch.cat([blocks[0](p5), blocks[1](p4), blocks[2](p3), finest], 1)
    finest.add_(blocks[2](p3))
    del p3
    finest.add_(blocks[1](p4))
    return finest.add_(blocks[0](p5))


def can_decode(decoder: Any) -> bool:
    """Returns whether `decode` is for this decoder, as it is now."""
    import segmentation_models_pytorch as smp

    own = smp.decoders.fpn.decoder
    if type(decoder) is not own.FPNDecoder or not is_plain_inference():
        return False
    last = decoder.seg_blocks[3]
    if type(last) is not own.SegmentationBlock or [type(part) for part in last.block] != [own.Conv3x3GNReLU]:
        return False
    finest = last.block
    return (
        type(decoder.p2) is own.FPNBlock
        and type(decoder.dropout) is nn.Dropout2d
        and type(finest) is type(finest[0].block) is nn.Sequential
        and len(finest[0].block) == 3
        and not finest[0].upsample
        and type(decoder.merge) is own.MergeBlock
        and decoder.p2.interpolation_mode == "nearest"
        and is_plain_conv(decoder.p2.skip_conv, 1)
        and is_plain_conv(finest[0].block[0])
        and not any(part.training for part in decoder.modules())
        and not is_seen(decoder, decoder.merge, decoder.dropout, decoder.seg_blocks[3])
        and not is_seen(*decoder.p2.modules(), *finest.modules())
    )


def _finest(p2: Any, layers: Any, p3: Tensor, c2: Tensor) -> Tensor:
    """Returns `layers(p2(p3, c2))`, convolution, norm and activation, from strips of rows of the pyramid map."""
    conv, norm, act = layers
    height, width = c2.shape[-2:]
    rows = max(2, _STRIP_BYTES // max(1, len(c2) * p3.shape[1] * width * c2.element_size()))
    out: Tensor | None = None
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first, last = max(top - 1, 0), min(bottom + 1, height)  # a row more on each side, for the 3x3 convolution
        coarse = F.interpolate(p3[:, :, first // 2 : (last + 1) // 2], scale_factor=2.0, mode="nearest")
        strip = p2.skip_conv(c2[:, :, first:last]).add_(coarse[:, :, first % 2 : first % 2 + last - first])
        strip = F.pad(strip, (0, 0, int(first == top), int(last == bottom)))  # zeros beyond the map
        strip = F.conv2d(strip, conv.weight, conv.bias, padding=(0, 1))
        if out is None:
            out = torch.empty_like(strip[:, :, :1].expand(-1, -1, height, -1))
        out[:, :, top:bottom] = strip
    assert out is not None
    return act(norm(out))
