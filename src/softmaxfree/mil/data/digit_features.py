"""Features of the digits that bags are drawn of: pixels, or those of a small network that knows digits."""

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softmaxfree.data.digits import read_digits, split_digits
from softmaxfree.mil.embedding import LeNet

__all__ = ["ENCODINGS", "Encoding", "digit_features"]

Encoding = Literal["pixels", "trained"]
ENCODINGS = ("pixels", "trained")

_WIDTH, _EPOCHS, _BATCH, _RATE = 64, 8, 50, 1e-3


@functools.cache
def digit_features(encoding: Encoding) -> Tensor:
    """Return the features of all 5,000 digits.

    Args:
        encoding: "pixels", normalised; or "trained": 64 numbers of a LeNet that was trained to tell the ten digits on
            the 4,000 training images, as a patch encoder is trained before the bags are. It trains at first use, in
            about 10 s on one CPU core, by a seed of its own.

    Returns:
        (5000, 784) or (5000, 64) float32.
    """
    images, labels = read_digits()
    pixels = (images.flatten(1) - 0.1307) / 0.3081  # of MNIST
    if encoding == "pixels":
        return pixels
    train = split_digits(labels)[0]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        network = LeNet(_WIDTH)
        head = nn.Sequential(nn.Dropout(0.5), nn.Linear(_WIDTH, 10))
        optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=_RATE)
        for _ in range(_EPOCHS):
            for part in train[torch.randperm(len(train))].split(_BATCH):
                optimizer.zero_grad()
                F.cross_entropy(head(network(pixels[part])), labels[part]).backward()
                optimizer.step()
    with torch.no_grad():
        features = network(pixels)
    return (features - features[train].mean(0)) / features[train].std()
