"""Every model for `torch.hub.load`: by its name, or of a repository of the model hub by `from_hub`."""

import functools
import sys
from pathlib import Path

dependencies = ["torch", "timm", "jaxtyping"]

_SOURCE = str(Path(__file__).parent / "src")
if _SOURCE not in sys.path:
    sys.path.insert(0, _SOURCE)

import timm  # noqa: E402

import softmaxfree  # noqa: E402, F401  registers the models


def from_hub(repository, **arguments):
    """Return the trained model of a folder, or of `user/name` on the model hub; arguments as of `timm.create_model`."""
    source = "local-dir" if Path(repository).is_dir() else "hf-hub"
    return timm.create_model(f"{source}:{repository}", pretrained=True, **arguments)


def _entry(name):
    entry = functools.partial(timm.create_model, name)
    entry.__doc__ = f"Return {name}; arguments are those of `timm.create_model`."
    return entry


for _name in timm.list_models():
    if timm.models.model_entrypoint(_name).__module__.startswith("softmaxfree."):
        globals()[_name] = _entry(_name)
