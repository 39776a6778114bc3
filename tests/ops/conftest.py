"""Implementations of the Gaussian kernel in turn, and Triton's interpreter, made to treat bfloat16 as a GPU does."""

import dataclasses

import numpy as np
import pytest
import torch

from softmaxfree.ops import dispatch


@pytest.fixture(params=list(dispatch.IMPLEMENTATIONS["gaussian"]))
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> str:
    """Makes the op run one implementation on each device, under Triton's interpreter where there is no GPU."""
    module = dispatch.IMPLEMENTATIONS["gaussian"][request.param]
    monkeypatch.setattr(module, "not_supported_reasons", lambda x, y, b: [])
    monkeypatch.setitem(dispatch.IMPLEMENTATIONS, "gaussian", {request.param: module})
    if request.param == "fused" and device.type == "cpu":
        request.getfixturevalue("interpreter")
    if request.param == "blocked":  # several tiles and groups of images at these small sizes
        monkeypatch.setattr(module, "_MAX_CPU_TILE_BYTES", 1 << 15)
    return request.param


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mends the interpreter: of itself it cuts float32 to bfloat16 without rounding, and multiplies its bits."""
    if torch.cuda.is_available():
        pytest.skip("Triton compiles for the GPU here, and interprets nothing")
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float
    dot = interpreter.InterpreterBuilder.create_dot

    def rounding(data: np.ndarray, source: tl.dtype, target: tl.dtype, mode: object) -> np.ndarray:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(data, source, target, mode)
        rounded = torch.from_numpy(np.ascontiguousarray(data)).bfloat16()
        return rounded.view(torch.int16).numpy().view(np.uint16).reshape(data.shape)

    def widened(handle: interpreter.TensorHandle) -> interpreter.TensorHandle:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        bits = handle.data.astype(np.uint32) << 16  # a bfloat16 is the upper half of a float32
        return dataclasses.replace(handle, data=bits.view(np.float32), dtype=tl.float32)

    monkeypatch.setattr(interpreter, "_convert_float", rounding)
    monkeypatch.setattr(
        interpreter.InterpreterBuilder,
        "create_dot",
        lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest),
    )
