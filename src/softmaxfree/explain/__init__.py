"""What a network looks at: attention of a query, landmarks and their inverse, class activation.

`softmaxfree.explain` is this package and can be called: `softmaxfree.explain(model, image, (x, y))`.
"""

import sys
from types import ModuleType

from softmaxfree.explain.attention import AttentionMap, attention, explain

__all__ = ["AttentionMap", "attention", "explain"]


class _Callable(ModuleType):
    """The package has the name of its main function: whichever is imported first, both can be used."""

    __call__ = staticmethod(explain)


sys.modules[__name__].__class__ = _Callable
