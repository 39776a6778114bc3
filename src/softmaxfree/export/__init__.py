"""Models as files that run without this package: ONNX, `torch.export`, AOTInductor; each run again and compared."""

from softmaxfree.export.agreement import Cost
from softmaxfree.export.checking import LIMITS, Difference
from softmaxfree.export.programs import Program, program_of
from softmaxfree.export.writing import Exported, export

__all__ = ["LIMITS", "Cost", "Difference", "Exported", "Program", "export", "program_of"]
