"""What a network looks at: attention of a query, landmarks and their inverse, class activation.

`softmaxfree.explain` is this package and can be called: `softmaxfree.explain(model, image, (x, y))`.
"""

import sys
from types import ModuleType

from softmaxfree.explain.activation import Activation, class_activation
from softmaxfree.explain.kernels import side_by_side
from softmaxfree.explain.landmarks import Inverse, LandmarkImportance, inverses, landmark_importance
from softmaxfree.explain.maps import AttentionMap, attention, explain

__all__ = [
    "Activation",
    "AttentionMap",
    "Inverse",
    "LandmarkImportance",
    "attention",
    "class_activation",
    "explain",
    "inverses",
    "landmark_importance",
    "side_by_side",
]


class _Callable(ModuleType):
    """The package has the name of its main function: whichever is imported first, both can be used."""

    __call__ = staticmethod(explain)


sys.modules[__name__].__class__ = _Callable
