"""What a process does that talks to the hub; the address of the hub is read when huggingface_hub is imported."""

import sys
import warnings

import timm
import torch

import softmaxfree  # noqa: F401
from softmaxfree.errors import InputError
from softmaxfree_cli import main

run, out = sys.argv[1:]
warnings.simplefilter("ignore")
assert main(["push", run, "anna/cracks", "--license", "mit"]) == 0
model = timm.create_model("hf-hub:anna/cracks", pretrained=True).eval()
here = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
x = torch.rand(1, 3, 64, 64)
assert (model(x) == here(x)).all()
hub = torch.hub.load(".", "from_hub", "anna/cracks", source="local", trust_repo=True).eval()
assert (hub(x) == here(x)).all()
assert torch.hub.load(".", "soft_nano", source="local", num_classes=7).num_classes == 7

from softmaxfree.tasks.sources import read_source  # noqa: E402

source = read_source("hf-hub:anna/cracks")
assert (source.model, source.num_classes, source.class_names) == ("soft_nano", 3, ["ok", "crack|", "weiß"])
for name in ("anna/nothing", "anna/half", "anna/other"):
    try:
        read_source(f"hf-hub:{name}")
        raise AssertionError(name)
    except InputError as error:
        print("told:", error)
assert main(["push", run, "anna/refused"]) == 2
assert main(["push", run, "anna/gone"]) == 2
