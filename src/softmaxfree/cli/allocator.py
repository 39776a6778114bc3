"""The C allocator of the process."""

import ctypes
import platform

__all__ = ["keep_freed_memory"]

# malloc.h of glibc
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Makes glibc reuse freed memory rather than return it, so that a training step on a CPU finds its pages mapped.

    By default each large tensor is mapped anew and its pages fault one by one, threads waiting for each other. The
    process keeps the most memory it ever used.

    Returns:
        Whether it took effect: False with another C library, whose own defaults stay.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(*option) for option in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**26)))
