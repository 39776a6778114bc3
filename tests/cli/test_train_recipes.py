import importlib.resources
import re

import pytest
import torch

from softmaxfree.cli.recipe import load_job
from softmaxfree_cli.recipes import recipes
from tests.cli.quick_run import overrides

SHIPPED = sorted(recipes())
# what they build follows from the data, see test_settings and tests/mil/cli
OWN_DATA = ["bags", "bags_survival", "classification", "detection", "segmentation"]
IMAGENET = [name for name in SHIPPED if name.startswith("imagenet")]


def header(name):
    text = (importlib.resources.files("softmaxfree") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    return "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))


def test_the_variants_have_recipes():
    sizes = ("tiny", "small", "medium", "large", "huge")
    names = {f"imagenet_{family}_{size}" for family in ("soft", "soft_norm") for size in sizes}
    names |= {f"coco_{head}_soft_norm_{size}" for head in ("retinanet", "mask_rcnn") for size in sizes[:4]}
    assert names <= set(SHIPPED)
    assert {"digits", "scenes_detection", "scenes_instances"} <= set(SHIPPED)


@pytest.mark.parametrize("name", sorted(set(SHIPPED) - set(OWN_DATA)))
def test_every_recipe_can_be_built(name):
    embedded = name in ("digits", "earth", "mnist_bags", "solar_cells") or name.startswith("scenes")
    computes = name.startswith(("coco", "scenes", "mnist"))  # a metric, or bags, when they are made
    with torch.device("cpu" if computes else "meta"):
        job = load_job(name, [] if embedded else ["--data.root=/data"])
    assert name.endswith("_" + job.task.hparams["name"]) or embedded
    assert sum(p.numel() for p in job.task.model.parameters()) > 1e6 or embedded


@pytest.mark.parametrize("name", SHIPPED)
def test_every_header_tells_what_a_run_takes_and_gives(name):
    for field in ("command:", "hardware:", "time:", "expected:", "source:"):
        assert re.search(rf"^# {field} +\S", header(name), re.MULTILINE), field
    assert re.search(rf"train {name}\b", header(name))


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_recipes_see_1024_images_an_update(name):
    job = load_job(name, ["--data.root=/data/imagenet"])
    gpus = 8
    assert job.data.batch_size * job.trainer["accumulate_grad_batches"] * gpus == job.task.hparams["base_batch"]
    assert job.task.hparams["lr_scaling"] == "linear"


def test_overrides_reach_every_section():
    job = load_job("digits", overrides(model__lr=0.5, data__batch_size=7, trainer__max_epochs=9, run__seed=3))
    assert job.task.hparams["lr"] == 0.5
    assert job.data.batch_size == 7
    assert job.trainer["max_epochs"] == 9
    assert job.seed == job.data.seed == 3


def test_overrides_of_model_arguments_keep_the_others():
    job = load_job("digits", ["--model.model_args.drop_path_rate=0.2"])
    assert job.task.hparams["model_args"] == {"in_chans": 1, "drop_path_rate": 0.2}


def test_a_recipe_on_top_of_another(tmp_path):
    (tmp_path / "middle.yaml").write_text("base: digits\nmodel: {lr: 0.5, model_args: {drop_rate: 0.1}}\n")
    (tmp_path / "top.yaml").write_text("base: middle.yaml\nmodel: {min_lr: 0.25}\n")
    job = load_job(str(tmp_path / "top.yaml"), [])
    assert (job.task.hparams["lr"], job.task.hparams["min_lr"]) == (0.5, 0.25)
    assert job.task.hparams["model_args"] == {"in_chans": 1, "drop_rate": 0.1}


def test_an_unknown_recipe_gets_the_nearest_names():
    with pytest.raises(ValueError, match=r"no recipe 'digitss'; did you mean digits\?"):
        load_job("digitss", [])
    with pytest.raises(ValueError, match=r"did you mean imagenet_soft_tiny or"):
        load_job("imagenet_soft_tinny", [])


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_job(str(tmp_path / "none.yaml"), [])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--model.lrr=1", r"unknown key --model.lrr; did you mean --model.lr\b"),
        ("--modell.lr=1", r"unknown key --modell.lr; did you mean --model.lr\b"),
        ("--data.batchsize=1", r"unknown key --data.batchsize; did you mean --data.batch_size\?"),
        ("--trainer.max_epoch=1", r"unknown key --trainer.max_epoch; did you mean --trainer.max_epochs\b"),
        ("--model.lr=fast", r"model.lr must be a number or auto, got fast"),
        ("--data.xyz=1", r"unknown key --data.xyz; there are data.augment, data.batch_size"),
        ("--xyz.abc=1", r"unknown key --xyz.abc; the sections are run, model, data, trainer"),
        ("--model.sched=linear", r"model.sched must be cosine or .*, got linear"),
        ("--model.model_args.drop_pth=1", r"model_args: .*drop_pth"),
        ("--model.class_weights=[1, 2]", r"model.class_weights must have 10 entries"),
        ("--model.init_from=", r"model.init_from must be a file, .* got ''"),
        ("--model.init_from=pretrained", r"model.init_from: the authors published no .*; give .*: --init-from FILE$"),
        ("--model.name=soft_nanno", r"model.name: timm has no model 'soft_nanno'; did you mean soft_nano"),
    ],
)
def test_a_wrong_key_or_value(override, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_job("digits", [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("base: digits\nmodel: {lrr: 1}", r"unknown key model.lrr; did you mean model.lr\b"),
        ("base: digits\nmodle: {lr: 1}", r"unknown key modle.lr; did you mean model.lr\b"),
        ("base: digitss", r"no recipe 'digitss'; did you mean digits\?"),
        (
            "base: digits\ntask: softmaxfree.tasks.Clasification",
            r"task and datamodule must each name a class",
        ),
        ("model: {}", r"has no task and no datamodule: begin it with `base: NAME`.* such as classification,"),
        ("base: digits\nmodel: {lr: 1\n  opt: [", r"mine.yaml, line 3, column 6 is not YAML: did not find expected"),
        ("digits", r"must hold the sections run, model, data, trainer"),
        ("base: imagenet_soft_tiny", r"data.root is missing: a folder"),
    ],
)
def test_a_wrong_file(tmp_path, content, message):
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_job(str(path), [])
