"""Freed memory is used again."""

import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys, torch
from softmaxfree.cli.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
for step in range(20):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_tensors_of_a_size_seen_before_fault_no_pages():
    def faults(mode):
        return int(subprocess.run([sys.executable, "-c", _FAULTS, mode], capture_output=True, check=True).stdout)

    assert faults("return") > 10_000
    assert faults("keep") < 1000
