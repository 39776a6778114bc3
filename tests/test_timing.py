"""The timer of comparisons and benchmarks is torch's, and its import says nothing."""

import os
import subprocess
import sys


def test_nothing_is_said_of_cuda_where_there_is_none(tmp_path):
    environment = {**os.environ, "CUDA_HOME": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    code = "import softmaxfree.timing, torch; print(softmaxfree.timing.Timer is torch.utils.benchmark.Timer)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("True\n", "")
