"""The kinds of files: how each is written, and loaded as its users load it."""

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softmaxfree.errors import InputError
from softmaxfree.export.checking import Run, listed
from softmaxfree.export.programs import Program

__all__ = ["AOTI", "ONNX", "PT2", "format_of", "load", "require_compiler", "write"]

ONNX, PT2, AOTI = "onnx", "pt2", "aoti"
_OLDEST_OPSET = 18  # of torch's exporter


def format_of(out: Path) -> str:
    """Return the format that the end of a name asks for; raises InputError for another one."""
    if out.name.endswith((".aoti.pt2", "_aoti")):
        return AOTI
    if out.suffix in (".onnx", ".pt2"):
        return out.suffix[1:]
    raise InputError(f"out must end in .onnx, .pt2, .aoti.pt2 or _aoti (a folder), got {out}")


def require_compiler() -> None:
    """Raises InputError where AOTInductor finds no C++ compiler."""
    from torch._inductor import cpp_builder

    try:
        cpp_builder.get_cpp_compiler()
    except Exception as error:  # of its own kind, that has moved between versions
        raise InputError(
            "out: an AOTInductor package needs a C++ compiler, and none is found: install g++ or name one in the "
            "environment variable CXX"
        ) from error


def write(
    program: Program, inputs: Sequence[Tensor], out: Path, kind: str, notes: Mapping[str, str], opset: int | None = None
) -> None:
    """Write a file.

    Args:
        program: what is exported.
        inputs: an example.
        out: the file.
        kind: its format.
        notes: what it carries beside the program.
        opset: of ONNX; None is that of torch's exporter.

    Raises:
        InputError: the model cannot be exported for all sizes, or there is no such opset.
    """
    if kind == ONNX:
        _write_onnx(program, inputs, out, notes, opset)
        return
    with _told("torch.export cannot take this model at every size"):
        exported = torch.export.export(program.module, tuple(inputs), dynamic_shapes=program.shapes)
    if kind == PT2:
        torch.export.save(exported, out, extra_files={"metadata.json": json.dumps(dict(notes))})
        return
    from torch._inductor import aoti_compile_and_package

    with _told("AOTInductor cannot compile this model"):
        # its check of inputs, which the user may switch on, would refuse a batch of one by the lower bound of 2
        options = {"aot_inductor.metadata": dict(notes), "aot_inductor.check_lowerbound": False}
        aoti_compile_and_package(exported, package_path=str(out), inductor_configs=options)


def load(path: Path, kind: str) -> Run:
    """Load a file as its users do.

    Args:
        path: of the file.
        kind: its format.

    Returns:
        A function of tensors.
    """
    if kind == ONNX:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]

        def run(*inputs: Tensor) -> list[Tensor]:
            given = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
            return [torch.from_numpy(each) for each in session.run(None, given)]

        return run
    loaded: Any
    if kind == PT2:
        loaded = torch.export.load(path).module()
    else:
        from torch._inductor import aoti_load_package

        loaded = aoti_load_package(str(path))
    return lambda *inputs: listed(loaded(*inputs))


def _write_onnx(
    program: Program, inputs: Sequence[Tensor], out: Path, notes: Mapping[str, str], opset: int | None
) -> None:
    import onnx
    import onnxscript  # noqa: F401  which torch's exporter needs, and does not name as missing

    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not _OLDEST_OPSET <= opset <= newest:
        raise InputError(f"opset must be {_OLDEST_OPSET} to {newest}, got {opset}")
    with _told(f"torch cannot write this model as ONNX{'' if opset is None else f' of opset {opset}'}"):
        exported = torch.onnx.export(
            program.module,
            tuple(inputs),
            dynamo=True,
            dynamic_shapes=program.shapes,
            input_names=program.inputs,
            output_names=program.outputs,
            opset_version=opset,
            verbose=False,
        )
    assert exported is not None
    written = exported.model.opset_imports[""]
    if opset not in (None, written):
        raise InputError(f"opset: this model cannot be written in opset {opset}, only in {written}")
    exported.model.metadata_props.update(notes)
    exported.save(str(out))


@contextmanager
def _told(what: str) -> Any:
    """Makes one line of what an exporter raises, and keeps to itself what it prints."""
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(StringIO()), torch.no_grad():
            yield
    except Exception as error:  # exporters raise what they like
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        raise InputError(f"out: {what}: {lines[0][:300] if lines else type(cause).__name__}") from error
