import copy

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from softmaxfree.models.detection import Detector
from softmaxfree.tasks.pretrained import save_pretrained

SLIM = {"fpn_channels": 32, "min_size": 64, "max_size": 200, "anchor_sizes": (8, 16, 32, 64, 128)}
HEADS = ["retinanet", "mask_rcnn"]
NANO = {"embed_dims": (8, 16, 24, 32), "num_heads": (1, 1, 1, 1)}
# the first fills its cells, the others do not; two need resizing
SIZES = [(64, 64), (64, 99), (70, 150), (300, 90)]


def detector(head="retinanet", backbone="soft_nano", num_classes=3, model_args=NANO, **arguments):
    torch.manual_seed(0)
    return Detector(head, backbone, num_classes, model_args=model_args, **{**SLIM, **arguments})


def confident(head, **arguments):
    """A detector of random weights that finds many things of many scores."""
    low = {"score_thresh": 0.05} if head == "retinanet" else {"box_score_thresh": 0.05}
    model = detector(head, **low, **arguments).eval()
    for name, weight in model.named_parameters():
        if name.endswith(("cls_logits.weight", "cls_score.weight")):
            nn.init.normal_(weight, std=2 / weight[0].numel() ** 0.5)
        elif name.endswith(("bbox_reg.weight", "bbox_pred.weight")):
            nn.init.normal_(weight, std=0.2 / weight[0].numel() ** 0.5)
    return model


def images(sizes=SIZES):
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


def targets(batch, empty=()):
    """A box in each image, none in those of the numbers `empty`."""
    made = []
    for i, image in enumerate(batch):
        n, (height, width) = int(i not in empty), image.shape[1:]
        masks = torch.zeros(n, height, width, dtype=torch.uint8)
        masks[:, 10:40, 20:50] = 1
        boxes = torch.tensor([[20.0, 10.0, 50.0, 40.0]])[:n]
        made.append({"boxes": boxes, "labels": torch.full((n,), 2), "masks": masks})
    return made


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("head", HEADS)
@torch.no_grad()
def test_an_image_has_the_same_detections_in_any_batch(head, normalize):
    model = confident(head, model_args={**NANO, "normalize": normalize})
    for image, found in zip(images(), model(images()), strict=True):
        (alone,) = model([image])
        assert len(found["boxes"]) == len(alone["boxes"]) > 20
        assert torch.equal(found["labels"], alone["labels"])
        torch.testing.assert_close(found["scores"], alone["scores"], rtol=0, atol=1e-4)
        torch.testing.assert_close(found["boxes"], alone["boxes"], rtol=0, atol=2e-3)  # IoU > 0.999 from 4 pixels
        if head == "mask_rcnn":
            assert (found["masks"] != alone["masks"]).float().mean() < 1e-4


def test_the_loss_of_a_batch_is_the_mean_of_those_of_its_images():
    model, batch = detector(model_args={**NANO, "normalize": True}), images()
    boxes = targets(batch)
    model.network.backbone.eval()  # no statistics of the batch
    together = sum(model(batch, boxes).values())
    alone = [sum(model([image], [target]).values()) for image, target in zip(batch, boxes, strict=True)]
    torch.testing.assert_close(together, torch.stack(alone).mean(), rtol=1e-5, atol=0)
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in (together, sum(alone) / len(alone))]
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() <= 1e-3 * other.norm() + 1e-6


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_every_weight_learns(head, checkpointing):
    model, batch = detector(head), images()
    model.set_grad_checkpointing(checkpointing)
    losses = model(batch, targets(batch, empty=[1]))
    assert len(losses) == {"retinanet": 2, "mask_rcnn": 5}[head]
    sum(losses.values()).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


@pytest.mark.parametrize("head", HEADS)
def test_images_without_objects(head):
    model, batch = detector(head), images(SIZES[:2])
    loss = sum(model(batch, targets(batch, empty=[0, 1])).values())
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("head", HEADS)
def test_it_learns_the_classes_from_zero(head):
    """One image, two classes: the labels that come back are those that were given."""
    batch = images([(64, 64)])
    wanted = targets(batch)
    wanted[0]["labels"][:] = 0
    batch[0][:, 10:40, 20:50] = 1
    few = {} if head == "retinanet" else {"box_batch_size_per_image": 32, "rpn_post_nms_top_n_train": 32}
    model = detector(head, num_classes=2, **few)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(40):
        loss = sum(model(batch, wanted).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    (found,) = model.eval()(batch)
    assert found["labels"][0] == 0
    assert (found["boxes"][0] - wanted[0]["boxes"][0]).abs().max() < 6
    if head == "mask_rcnn":
        assert found["masks"].dtype == torch.bool
        assert found["masks"].shape[1:] == (64, 64)


@pytest.mark.parametrize("backbone", ["pvt_v2_b0", "resnet18"])
@pytest.mark.parametrize("head", HEADS)
def test_any_backbone_of_timm(head, backbone):
    model, batch = detector(head, backbone, model_args=None), images()
    sum(model(batch, targets(batch)).values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert len(model.eval()(batch)) == len(batch)


@pytest.mark.parametrize("head", HEADS)
def test_half_precision_predicts_boxes_in_float32(head):
    model, batch = confident(head), images()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model(batch)
    assert all(one["boxes"].dtype == one["scores"].dtype == torch.float32 for one in found)
    assert (found[0]["boxes"] % 0.25 != 0).any()  # bfloat16 has no finer numbers from 32 to 64
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = sum(model(batch, targets(batch)).values())
    loss.backward()
    assert loss.isfinite()


def test_a_copy_has_its_own_masks():
    """The average of the weights is kept in a deep copy."""
    model = confident("retinanet")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin(images([(64, 99)]))
        for found, expected in zip(twin(images()), model(images()), strict=True):
            torch.testing.assert_close(found, expected)


def test_retinanet_starts_at_stride_8_and_mask_rcnn_at_stride_4():
    for head, first in zip(HEADS, (8, 4), strict=True):
        maps = detector(head).network.backbone(torch.rand(1, 3, 128, 128))
        assert [m.shape[-1] for m in maps.values()] == [128 // (first * 2**i) for i in range(5)]


def test_p6_comes_from_the_backbone_even_where_widths_agree():
    model = detector(backbone="pvt_v2_b0", model_args=None, fpn_channels=256)  # its last map has 256 channels too
    assert model.network.backbone.fpn.extra_blocks.use_P5 is False


def test_weights_of_the_backbone_that_do_not_decay():
    model = detector()
    names = {name for name, _ in model.named_parameters()}
    assert model.no_weight_decay()
    assert model.no_weight_decay() <= names
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert scale[id(model.network.backbone.fpn.inner_blocks[0][0].weight)] == 1
    assert min(scale.values()) < 0.2
    assert detector("mask_rcnn", "pvt_v2_b0", model_args=None).no_weight_decay() == set()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head": "yolo"}, r"head must be one of retinanet, mask_rcnn, got 'yolo'"),
        ({"backbone": "soft_nanno"}, r"timm has no model 'soft_nanno'; did you mean soft_nano"),
        ({"model_args": {"drop_pathh": 0.1}}, r"model_args: .*drop_pathh"),
        ({"num_classes": 0}, r"num_classes must be 1 or more, got 0"),
        ({"anchor_sizes": (8, 16)}, r"anchor_sizes must be five, one a level, got \[8, 16\]"),
        ({"scor_thresh": 0.1}, r"retinanet has no argument scor_thresh; there are .*score_thresh"),
        ({"backbone": "vit_tiny_patch16_224", "model_args": None}, r"has maps of stride .* but retinanet needs \[8"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        detector(**arguments)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([], r"images is empty"),
        ([torch.zeros(1, 64, 64)], r"images\[0\] must be float \(3, height, width\), got torch.float32 \(1, 64, 64\)"),
        ([torch.zeros(3, 64, 64, dtype=torch.uint8)], r"images\[0\] must be float .*, got torch.uint8"),
        ([torch.rand(3, 64, 64), torch.rand(3, 400, 20)], r"one is 200x10 pixels .* needs 13 or more"),
    ],
)
def test_bad_images(batch, message):
    with pytest.raises(ValueError, match=message):
        detector().eval()(batch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(), r"targets: training needs one for each of the 1 images"),
        (lambda t: t[0].pop("masks"), r"targets\[0\] has no masks, which mask_rcnn needs"),
        (lambda t: t[0]["labels"].fill_(3), r"targets\[0\]: labels must be in 0..2, got \[3\]"),
    ],
)
def test_bad_targets(change, message):
    batch = images(SIZES[:1])
    change(given := targets(batch))
    with pytest.raises(ValueError, match=message):
        detector("mask_rcnn")(batch, given)


def test_the_backbone_starts_from_the_weights_of_a_classifier(tmp_path):
    classifier = timm.create_model("soft_nano", **NANO)
    save_pretrained(classifier, tmp_path, {"input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3}, ())
    overlay = {"file": str(tmp_path / "model.safetensors")}
    model = detector(model_args={**NANO, "pretrained": True, "pretrained_cfg_overlay": overlay})
    weights = model.network.backbone.net.model.state_dict()
    assert weights.keys() == {name for name in classifier.state_dict() if not name.startswith("head")}
    torch.testing.assert_close(weights, {name: classifier.state_dict()[name] for name in weights}, rtol=0, atol=0)
