"""A network of bags trains, is measured, and is refused data that does not fit it."""

import math
import re

import pytest
import torch
from lightning.pytorch import Trainer

from softmaxfree.errors import InputError
from softmaxfree.mil import create_bag_model, list_bag_models
from softmaxfree.mil.data import Bag, EmbeddedBagsDataModule, collate
from softmaxfree.mil.tasks import BagClassificationTask
from softmaxfree.mil.tasks.instances import InstanceScores, instance_scores
from softmaxfree.mil.tasks.scores import instance_auc
from softmaxfree.report.mistakes import list_mistakes
from tests.processes import in_processes

SMALL = {"embed_dim": 16}
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def task_of(name="gated_attention", in_dim=16, **arguments):
    given = {"lr": 1e-2, "warmup_epochs": 0, "sched": "constant", "opt": "adam", "model_args": SMALL, **arguments}
    return BagClassificationTask(name, 2, in_dim, **given)


def test_the_absence_of_poison_is_learned_and_measured():
    data = EmbeddedBagsDataModule("single_concept", train_bags=60, val_bags=20, test_bags=20, batch_size=2)
    task = task_of()
    trainer = Trainer(max_epochs=3, accelerator="cpu", log_every_n_steps=1, **QUIET)
    trainer.fit(task, datamodule=data)
    metrics = trainer.validate(task, datamodule=data, verbose=False)[0]
    assert metrics["val/auc"] > 0.95
    assert set(metrics) == {"val/auc", "val/balanced_accuracy", "val/kappa", "val/instance_auc", "val/loss"}
    assert sum(row["bags"] for row in task.size_scores) == 20
    assert int(task.confusion.compute().sum()) == 20
    tested = trainer.test(task, datamodule=data, verbose=False)[0]
    assert {"test/auc", "test/kappa", "test/instance_auc"} <= set(tested)
    assert tested["test/auc"] < 0.1  # attention fails this test of Raff and Holt
    assert list(task.class_scores) == ["AUC", "precision", "recall", "F1"]
    rows = task.prediction_rows(data)
    assert [row["split"] for row in rows] == ["val"] * 20 + ["test"] * 20
    assert [row["label"] for row in rows[20:]] == [data.class_names[int(bag.label)] for bag in data.bags["test"]]
    mistakes = list_mistakes(task, data)
    wrong = [row for row in rows if row["predicted"] != row["label"]]
    assert (mistakes.looked_at, mistakes.wrong) == (40, len(wrong))
    assert len(wrong) > 12
    assert {item["split"] for item in mistakes.items} == {"test"}
    surest = max(wrong, key=lambda row: row[f"p_{row['predicted']}"])
    assert mistakes.items[0]["probability"] == pytest.approx(surest[f"p_{surest['predicted']}"], abs=1e-6)


def bag(n, label=0, coords=True, dim=16, instances=False):
    places = torch.stack([torch.arange(n) % 3, torch.arange(n) // 3], 1).double() * 256 if coords else None
    labels = torch.arange(n) % 2 if instances else None
    return Bag(torch.randn(n, dim), torch.tensor(label), places, 256.0 if coords else None, labels, n, 0)


@pytest.mark.parametrize("name", list_bag_models())
@pytest.mark.parametrize("coords", [True, False])
def test_a_bag_alone_is_as_in_a_batch_in_any_precision(name, coords):
    more = {"embed_dim": 16, "num_heads": 2} if name in ("transmil", "bag_encoder") else SMALL
    task = task_of(name, model_args=more).eval()
    bags = [bag(5, coords=coords), bag(9, coords=coords)]
    with torch.no_grad():
        alone = torch.cat([task(collate([one])) for one in bags])
        assert torch.allclose(task(collate(bags)), alone, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            low = task(collate(bags))
    assert low.dtype == torch.float32
    assert torch.allclose(low, alone, atol=0.05)


def test_a_step_of_half_precision_is_finite():
    task = task_of()
    batch = collate([bag(5, 1)._replace(features=torch.randn(5, 16).half())])
    with torch.autocast("cpu", torch.bfloat16):
        loss = task.loss(task(batch), batch.labels)
    loss.backward()
    assert loss.isfinite()
    assert all(weight.grad.isfinite().all() for weight in task.model.parameters())


def test_a_name_of_another_library_is_told():
    with pytest.raises(InputError, match=r"model.name: there is no 'abmil'; it is called gated_attention here"):
        task_of("abmil")
    with pytest.raises(InputError, match="bag model: there is no 'ABMIL'; it is called gated_attention here"):
        create_bag_model("ABMIL", num_classes=2, in_dim=4)


def test_class_weights_and_smoothing_are_those_of_the_loss():
    task = task_of(class_weights=[1.0, 3.0], label_smoothing=0.1)
    logits, labels = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    given = {"weight": torch.tensor([1.0, 3.0]), "label_smoothing": 0.1, "reduction": "none"}
    each = torch.nn.functional.cross_entropy(logits, labels, **given)
    assert task.loss(logits, labels) == each.mean()
    assert task.loss(logits[1:2], labels[1:2]) == each[1]  # in a batch of one bag, too, weights do not cancel


def test_a_class_of_weight_0_is_not_learned_from():
    task = task_of(class_weights=[0.0, 1.0])
    assert task.loss(torch.randn(1, 2), torch.tensor([0])) == 0


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_coordinates_and_times_are_not_rounded(precision):
    data = EmbeddedBagsDataModule("single_concept", train_bags=4, val_bags=4, test_bags=0)
    trainer = Trainer(max_epochs=1, accelerator="cpu", precision=precision, **QUIET)
    with pytest.raises(
        InputError, match=f"trainer.precision must be 32-true, .* got {precision}, which rounds coordinates and times"
    ):
        trainer.fit(task_of(), datamodule=data)


def test_double_precision():
    data = EmbeddedBagsDataModule("single_concept", train_bags=4, val_bags=4, test_bags=0)
    trainer = Trainer(max_epochs=1, accelerator="cpu", precision="64-true", log_every_n_steps=1, **QUIET)
    trainer.fit(task_of(), datamodule=data)
    assert trainer.callback_metrics["train/loss"].isfinite()


def test_instances_of_a_linear_network():
    task = task_of("mean")
    batch = collate([bag(4, instances=True)])
    h = task.model.embed(batch.features)
    wanted = (h @ task.model.head.weight.mT / 4)[0]
    assert torch.allclose(instance_scores(task.model, batch)[0], wanted[:, 1] - wanted[:, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "gated_atention"}, r"model.name: there is no 'gated_atention'; did you mean gated_attention"),
        ({"model_args": {"depht": 1}}, r"model.model_args: the network gated_attention has no argument 'depht'"),
        ({"in_dim": 0}, r"model.in_dim must be 1 or more"),
        ({"kappa": "cubic"}, r"model.kappa must be none or linear or quadratic"),
        ({"class_weights": [1.0]}, r"model.class_weights must have 2 entries"),
        ({"init_from": "pretrained"}, r"model.init_from: there are no published weights"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        task_of(**arguments)


def test_features_of_another_width_than_the_network():
    data = EmbeddedBagsDataModule("multi_concept", train_bags=4, val_bags=4, test_bags=0)
    data.prepare_data()
    data.setup("fit")
    with pytest.raises(InputError, match=r"model.in_dim is 20, but the features have 16 numbers"):
        Trainer(max_epochs=1, accelerator="cpu", **QUIET).fit(task_of(in_dim=20), datamodule=data)


def test_accumulated_batches_of_one_are_a_batch():
    bags = [bag(5, 0), bag(5, 1)]
    task = task_of("mean")
    task.loss(task(collate(bags)), torch.tensor([0, 1])).backward()
    whole = [weight.grad.clone() for weight in task.parameters() if weight.grad is not None]
    task.zero_grad()
    for one in bags:
        (task.loss(task(collate([one])), one.label[None]) / 2).backward()
    parts = [weight.grad for weight in task.parameters() if weight.grad is not None]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole, parts, strict=True))
    assert not math.isnan(float(whole[0].sum()))


def original(tmp_path, classes=2, prefix=""):
    """A checkpoint under the names of the original TransMIL, and the network that it is of."""
    network = create_bag_model("transmil", num_classes=classes, in_dim=16, embed_dim=16, num_heads=2).eval()
    names = [(r"^embed\.", "_fc1."), (r"^head\.", "_fc2."), (r"^layers\.0\.", "layer1."), (r"^layers\.1\.", "layer2.")]
    state = {}
    for key, value in network.state_dict().items():
        for pattern, new in names:
            key = re.sub(pattern, new, key)
        state[prefix + key] = value
    torch.save({"state_dict": state} if prefix else state, tmp_path / "transmil.pth")
    return str(tmp_path / "transmil.pth"), network


@pytest.mark.parametrize("prefix", ["", "model."])
def test_training_starts_from_the_original_transmil(tmp_path, prefix):
    path, network = original(tmp_path, prefix=prefix)
    arguments = {"embed_dim": 16, "num_heads": 2, "pad_mode": "official"}
    task = task_of("transmil", model_args=arguments, init_from=path).eval()
    features = torch.randn(1, 9, 16)
    assert torch.equal(task.model(features), network(features))
    anew = BagClassificationTask("transmil", 3, 16, arguments, init_from=path)
    assert "made anew: head for 3 classes" in anew.loaded
    with pytest.raises(InputError, match=r"model.init_from: num_heads must be 2 for .*transmil.pth"):
        task_of("transmil", model_args={**arguments, "num_heads": 4}, init_from=path)
    with pytest.raises(InputError, match=r"was trained with conv_kernel 33: give --model.model_args.conv_kernel 33"):
        task_of("transmil", model_args={**arguments, "conv_kernel": 0}, init_from=path)
    with pytest.raises(InputError, match=r"model.init_from: pad_mode must be given for .*transmil.pth"):
        task_of("transmil", model_args={"embed_dim": 16, "num_heads": 2}, init_from=path)


def test_a_checkpoint_of_unknown_origin(tmp_path):
    torch.save({"encoder.weight": torch.zeros(3, 3)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"model.init_from: .*other.pth is no TransMIL of a known origin"):
        task_of("transmil", model_args={"embed_dim": 16, "num_heads": 2}, init_from=str(tmp_path / "other.pth"))


def scored(rank):
    """What the first or second process has of instances, and what it finds for all."""
    kept, task = InstanceScores(), task_of("mean")
    kept.update(task.model, collate([bag(9 - 2 * rank, instances=True)]))
    kept.update(task.model, collate([bag(5, instances=not rank)]))
    return kept.scores, kept.labels, kept.compute()


@pytest.mark.slow
def test_instances_of_all_processes_are_scored_together():
    (a, b, found), (c, d, other) = in_processes(scored, 2)
    assert found == other
    assert found["instance_auc"] == pytest.approx(instance_auc([*a, *c], [*b, *d]))
    assert InstanceScores in {type(module) for module in task_of().modules()}
