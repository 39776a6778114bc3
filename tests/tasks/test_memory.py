import pytest
import torch

from softmaxfree.errors import InputError
from tests.tasks.test_classification import Squares, fit, task


def full(*_):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize("where", ["forward", "backward", "update"])
def test_a_full_device_is_told_in_one_line_with_the_way_out(monkeypatch, where, accumulated):
    module = task()
    if where == "forward":
        monkeypatch.setattr(module, "forward", full)
    elif where == "backward":
        monkeypatch.setattr(torch.Tensor, "backward", full)
    else:
        monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, closure: (closure(), full()))
    expected = (
        rf"out of memory at step 0 with data.batch_size 16: give --data.batch_size=8 .*batches={2 * accumulated},"
    )
    with pytest.raises(InputError, match=expected):
        fit(module, accumulate_grad_batches=accumulated)


def test_a_batch_of_one_cannot_be_halved(monkeypatch):
    module = task()
    monkeypatch.setattr(module, "forward", full)
    with pytest.raises(InputError, match=r"data.batch_size 1: use smaller images"):
        fit(module, Squares(batch_size=1))
