"""What holds for every test: Triton kernels are interpreted where there is no GPU; stray memory is seen."""

import os

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic products on a GPU; read at the first
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported, which torch does late


@pytest.fixture(autouse=True, scope="session")
def threads_as_the_tests_were_started():
    """Keeps recipes from setting more threads: they would stay for all later tests, and slow down those beside them."""
    most, set_threads = torch.get_num_threads(), torch.set_num_threads
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "set_num_threads", lambda number: set_threads(min(number, most)))
        yield


@pytest.fixture(autouse=True)
def nan_in_uninitialized_memory(monkeypatch: pytest.MonkeyPatch):
    """Fills `torch.empty` and its like with NaN, so that no test passes on what memory happened to hold."""
    before = torch.are_deterministic_algorithms_enabled()
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Makes each test independent of those run before it."""
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest):
    """Makes the tensors and modules of a test on each device that there is, and yields the device."""
    with torch.device(request.param):
        yield torch.device(request.param)
