import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn
from torchvision.models.detection.image_list import ImageList

from softmaxfree.errors import InputError
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
        # of two whose scores differ by a rounding either may come first
        order = torch.cdist(*(_place(each) for each in (alone, found))).argmin(1)
        assert order.unique().numel() == len(order)
        found = {name: value[order] for name, value in found.items()}
        assert torch.equal(found["labels"], alone["labels"])
        torch.testing.assert_close(found["scores"], alone["scores"], rtol=0, atol=1e-4)
        torch.testing.assert_close(found["boxes"], alone["boxes"], rtol=0, atol=2e-3)  # IoU > 0.999 from 4 pixels
        if head == "mask_rcnn":
            assert (found["masks"] != alone["masks"]).float().mean() < 1e-4


def _place(detections):
    """A point for each detection; those of other boxes, labels or scores are far apart."""
    columns = [detections["boxes"], 1e3 * detections["labels"][:, None], 1e3 * detections["scores"][:, None]]
    return torch.cat(columns, 1)


# so many that every anchor and every proposal is taken
ALL = {"rpn_batch_size_per_image": 10**6, "box_batch_size_per_image": 10**6}


@pytest.mark.parametrize("sizes", [SIZES, [(64, 64), (256, 256)], [(64, 64)] * 2])
@pytest.mark.parametrize("head", HEADS)
def test_the_loss_of_a_batch_is_the_mean_of_those_of_its_images(head, sizes):
    arguments = ALL if head == "mask_rcnn" else {}
    model, batch = detector(head, model_args={**NANO, "normalize": True}, **arguments), images(sizes)
    wanted = targets(batch, empty=[1])
    model.network.backbone.eval()  # no statistics of the batch
    together = model(batch, wanted)
    alone = [model([image], [target]) for image, target in zip(batch, wanted, strict=True)]
    for name, loss in together.items():
        torch.testing.assert_close(loss, torch.stack([own[name] for own in alone]).mean(), rtol=1e-5, atol=0)
    total = sum(sum(own.values()) for own in alone) / len(alone)
    gradients = [torch.autograd.grad(loss, list(model.parameters())) for loss in (sum(together.values()), total)]
    for one, other in zip(*gradients, strict=True):
        assert (one - other).norm() <= 1e-3 * other.norm() + 1e-6


@pytest.mark.parametrize("head", HEADS)
def test_an_image_has_its_own_anchors_and_no_more(head):
    """Of what is sampled, what is a negative and what is proposed, nothing lies in the padding."""
    model, seen = detector(head), []
    generator = model.network.anchor_generator if head == "retinanet" else model.network.rpn.anchor_generator
    generator.register_forward_hook(lambda module, args, anchors: seen.extend(anchors))
    batch = images([(64, 64), (256, 256)])
    model(batch, targets(batch))
    first, per_cell = (8, 9) if head == "retinanet" else (4, 3)
    cells = [sum((-(-side // (first * 2**i))) ** 2 for i in range(5)) for side in (64, 256)]
    assert [len(anchors) for anchors in seen] == [per_cell * own for own in cells]


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
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(80):
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


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_threads_share_a_detector(head):
    """No call leaves anything on the network that another one reads."""
    model = confident(head)
    batches = [images([size]) for size in SIZES] + [images(), images(SIZES[1:])]
    with torch.no_grad():
        expected = [model(batch) for batch in batches]

    def run(i):
        with torch.no_grad():
            return model(batches[i % len(batches)])

    with ThreadPoolExecutor(4) as pool:
        for i, found in enumerate(pool.map(run, range(60))):
            for one, alone in zip(found, expected[i % len(batches)], strict=True):
                assert all(torch.equal(one[key], alone[key]) for key in alone)


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_threads_share_a_detector_in_training(head):
    model = detector(head, **(ALL if head == "mask_rcnn" else {}))
    model.network.backbone.eval()
    batches = [images([size]) for size in SIZES] + [images()]

    def run(i):
        batch = batches[i % len(batches)]
        return {name: loss.item() for name, loss in model(batch, targets(batch)).items()}

    expected = [run(i) for i in range(len(batches))]
    with ThreadPoolExecutor(4) as pool:
        for i, losses in enumerate(pool.map(run, range(30))):
            assert losses == pytest.approx(expected[i % len(batches)], rel=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_copies_and_pickles(head, tmp_path):
    """The average of the weights is kept in a deep copy."""
    model = confident(head)
    torch.save(model, tmp_path / "whole.pth")
    loaded = torch.load(tmp_path / "whole.pth", weights_only=False)
    with torch.no_grad():
        for twin in (copy.deepcopy(model), loaded):
            for found, expected in zip(twin(images()), model(images()), strict=True):
                torch.testing.assert_close(found, expected)


def test_retinanet_starts_at_stride_8_and_mask_rcnn_at_stride_4():
    for head, first in zip(HEADS, (8, 4), strict=True):
        ((numbers, maps),) = detector(head).network.backbone(ImageList(torch.rand(2, 3, 128, 128), [(128, 128)] * 2))
        assert numbers == [0, 1]
        assert [m.shape[-1] for m in maps.values()] == [128 // (first * 2**i) for i in range(5)]


def test_the_size_for_inference():
    model = detector(min_size=64, max_size=200)
    assert model.size == (64, 200)
    model.set_size(96, 96)
    assert model.size == (96, 96)
    seen = []
    model.network.backbone.net.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[-2:])))
    model.eval()(images([(60, 120)]))
    assert seen == [(64, 96)]  # 48 x 96, padded to multiples of 32
    with pytest.raises(InputError, match=r"size must be a shorter side of 13 pixels or more .*, got 8 and 96"):
        model.set_size(8, 96)
    with pytest.raises(InputError, match=r"a longer one not below it, got 96 and 64"):
        detector(min_size=96, max_size=64)
    assert model.size == (96, 96)


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
        (
            {"anchor_sizes": (8, 16)},
            r"anchor_sizes, one a level, must be a list of 5 whole numbers, 1 or more, got \(8, 16\)",
        ),
        ({"anchor_sizes": (0, 1, 2, 3, 4)}, r"anchor_sizes, one a level, must be a list of 5 whole numbers, 1 or more"),
        ({"fpn_channels": 0}, r"fpn_channels must be 1 or more, got 0"),
        ({"num_classes": True}, r"num_classes must be a whole number, 1 or more, got True"),
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
        (lambda t: t[0]["labels"].fill_(-1), r"targets\[0\]: labels must be in 0..2, got \[-1\]"),
        (lambda t: t[0].update(labels=torch.ones(1)), r"targets\[0\]: labels must be int64 \(1,\), one a box, got"),
        (lambda t: t[0].update(boxes=torch.ones(1, 4).long()), r"targets\[0\]: boxes must be float \(n, 4\), got"),
        (lambda t: t[0]["boxes"].fill_(5), r"targets\[0\]: boxes must be .* of a positive width .* got \[5.0, 5.0"),
        (lambda t: t[0]["boxes"].fill_(torch.nan), r"targets\[0\]: boxes must be .* got \[nan"),
        (lambda t: t[0].update(masks=torch.ones(1, 9, 9)), r"targets\[0\]: masks must be \(1, 64, 64\), got"),
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
    del weights["record"]  # which says that there is no pooling
    torch.testing.assert_close(weights, {name: classifier.state_dict()[name] for name in weights}, rtol=0, atol=0)
