"""Images that have no up, alone or with their boxes or masks."""

from typing import Any

import torch
from torchvision.transforms import v2

__all__ = ["AnyOrientation"]


class AnyOrientation(v2.Transform):
    """Mirrors vertically by chance, and turns by a quarter as often as chance says.

    Each of the eight ways in which a square tile can lie is as likely.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw."""
        return {"flip": bool(torch.rand(()) < 0.5), "quarters": int(torch.randint(4, ()))}

    def transform(self, part: Any, params: dict[str, Any]) -> Any:
        """Mirror and turn one part of a sample."""
        if params["flip"]:
            part = self._call_kernel(v2.functional.vertical_flip, part)
        if params["quarters"]:
            part = self._call_kernel(v2.functional.rotate, part, angle=90.0 * params["quarters"], expand=True)
        return part
