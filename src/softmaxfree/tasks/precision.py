"""Precisions of a Trainer that would round more than weights and images."""

from softmaxfree.errors import InputError

__all__ = ["require_exact"]


def require_exact(precision: object, what: str) -> None:
    """Refuse the precisions in which Lightning casts every floating-point number of a batch to half the bits.

    Args:
        precision: of the Trainer.
        what: else than images or features is in a batch, such as "boxes".

    Raises:
        InputError: it is one of them.
    """
    if str(precision) in ("16-true", "bf16-true"):
        raise InputError(
            f"trainer.precision must be 32-true, 64-true, bf16-mixed or 16-mixed, got {precision}, which rounds {what}"
        )
