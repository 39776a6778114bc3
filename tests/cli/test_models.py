"""Parameters and multiply-adds of every model."""

import pytest
import timm
import torch

from softmaxfree.bench.macs import macs
from softmaxfree.cli.models import find_models
from softmaxfree_cli import main

# parameters (M), MACs of convolutions and linear layers (G), MACs by fvcore of the released code (G)
PUBLISHED = {
    "soft_tiny": (13.07, 1.83, 2.02),
    "soft_small": (24.11, 3.19, 3.49),
    "soft_medium": (45.81, 7.02, 7.70),
    "soft_large": (64.70, 10.71, 11.67),
    "soft_huge": (87.11, 15.32, 16.60),
}


def build(name, **kwargs):
    with torch.device("meta"):
        return timm.create_model(name, **kwargs)


def table(capsys, *argv):
    assert main(["models", *argv]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", PUBLISHED)
def test_costs_are_the_published_ones(name):
    parameters, conv_linear, published = PUBLISHED[name]
    model = build(name)
    counts = macs(model, (224, 224))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == parameters
    assert counts["conv_linear"] / 1e9 == pytest.approx(conv_linear, rel=0.005)
    assert counts["published"] / 1e9 == pytest.approx(published, rel=0.02)


def test_conv_linear_is_what_modules_with_weights_multiply():
    model = build("soft_nano")
    counts = macs(model, (64, 64))
    products = {}

    def count(module, args, output):
        channels = output.shape[-1 if isinstance(module, torch.nn.Linear) else 1]
        products[module] = output.numel() // channels * module.weight.numel()

    for module in model.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.register_forward_hook(count)
    model(torch.empty(1, 3, 64, 64, device="meta"))
    for tokens, stage in zip((256, 64, 16), model.stages, strict=False):
        for attention in (block.attn for block in stage.blocks):
            # both weights may be used without calling their modules
            conv, value_conv = attention.landmarks.conv, attention.value_conv
            windows = attention.num_heads * tokens // attention.landmarks.ratio**2
            products[conv] = windows * conv.weight.numel()
            products[value_conv] = attention.head_dim * tokens * value_conv.weight.numel()
    assert counts["conv_linear"] == sum(products.values())


def test_executed_counts_kernel_products_and_inverse():
    few, many = (macs(build("soft_nano", solver={"name": "newton", "iters": i}), (64, 64)) for i in (10, 20))
    assert few["conv_linear"] == many["conv_linear"] < few["published"] == many["published"]
    # grids of 16, 8, 4 tokens a side, windows of 4, 2, 1: 16 landmarks in each of 1 x 1, 1 x 2, 2 x 4 heads
    assert many["executed"] - few["executed"] == 10 * 2 * 16**3 * (1 + 2 + 8)


def test_published_has_no_landmark_budget_and_executed_has():
    budget, no_budget = (macs(build("soft_nano", landmark_grid=grid), (256, 256)) for grid in ((4, 4), None))
    assert budget["published"] == no_budget["published"]
    assert budget["executed"] < no_budget["executed"]


def test_a_model_of_timm_can_be_counted_too():
    counts = macs(build("resnet18"), (224, 224))
    assert counts["published"] == counts["executed"] == counts["conv_linear"] == pytest.approx(1.81e9, rel=0.01)


def test_the_table_has_a_row_for_each_size(capsys):
    lines = table(capsys, "soft_nano", "--img-size", "64", "128").splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [["soft_nano", "64x64"], ["soft_nano", "128x128"]]
    assert len(set(map(len, lines))) == 1


def test_the_markdown_table_is_aligned_and_sorted_by_family_and_size(capsys, monkeypatch):
    monkeypatch.setattr("softmaxfree.cli.models.macs", lambda model, size: {"a": 1e9, "b": 2e6, "c": 3e12})
    lines = table(capsys, "--markdown").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [cell[-1] for cell in cells[1]] == ["-", "-", ":", ":", ":", ":", ":"]
    assert len(set(map(len, lines))) == 1
    names = [row[0] for row in cells[2:]]
    sizes = ("nano", "tiny", "small", "medium", "large", "huge")
    plain = [f"soft_vit_{s}" for s in ("tiny", "small", "base")]
    assert names == [*(f"soft_{s}" for s in sizes), *(f"soft_norm_{s}" for s in sizes[1:]), *plain]
    assert cells[2][-3:] == ["1.00", "0.00200", "3000"]


def test_every_model_of_ours_is_found_and_no_other():
    assert set(find_models()) >= {
        "soft_nano",
        *PUBLISHED,
        *(name.replace("_", "_norm_") for name in PUBLISHED),
    }
    assert "resnet18" not in find_models()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["soft_tny"], "no model matches 'soft_tny'; there are soft_tiny"),
        (["resnet18"], "no model matches 'resnet18'"),
        (["soft_nano", "--img-size", "12"], "--img-size must be 13 or more for soft_nano, got 12"),
    ],
)
def test_bad_input_is_one_line(argv, message, capsys):
    assert main(["models", *argv]) == 2
    assert capsys.readouterr().err.startswith(f"softmaxfree models: {message}")
