"""torch's timer, without what its import says of CUDA: it looks for a compiler that nothing here needs."""

import logging

_logger = logging.getLogger("torch.utils.cpp_extension")
_before, _logger.disabled = _logger.disabled, True
try:
    from torch.utils.benchmark import Timer
finally:
    _logger.disabled = _before

__all__ = ["Timer"]
