"""The guards of conftest.py guard."""

import torch


def test_uninitialized_memory_is_nan():
    x = torch.zeros(2, 3)
    for empty in (torch.empty(5), x.new_empty(4), torch.empty_like(x), torch.empty_strided((2, 2), (1, 2))):
        assert empty.isnan().all()
