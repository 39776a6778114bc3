"""Data sets of Hugging Face and WebDataset, written here, and trained on for an epoch."""

import io

import datasets
import numpy as np
import pytest
import webdataset
from PIL import Image

from softmaxfree.cli.recipe import create_trainer
from softmaxfree.data import ImageFolderDataModule
from softmaxfree.errors import InputError
from softmaxfree.tasks import ClassificationTask

rng = np.random.default_rng(0)
PICTURES = [Image.fromarray(rng.integers(0, 256, (40, 36, 3), np.uint8)) for _ in range(16)]

pytestmark = [
    # their own code leaves files to the garbage collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]


@pytest.fixture(autouse=True)
def _quiet():
    datasets.disable_progress_bars()


def table(labels, feature):
    features = datasets.Features({"photo": datasets.Image(), "kind": feature})
    return datasets.Dataset.from_dict({"photo": PICTURES, "kind": labels}, features=features)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """Two data sets, one with numbered labels and one with words."""
    root = tmp_path_factory.mktemp("hf")
    numbered = table([i % 2 for i in range(16)], datasets.ClassLabel(names=["owl", "cat"]))
    words = table([("owl", "cat")[i % 2] for i in range(16)], datasets.Value("string"))
    for name, whole in (("numbered", numbered), ("words", words)):
        (root / name).mkdir()
        whole.to_parquet(root / name / "train.parquet")
        whole.select(range(6)).to_parquet(root / name / "validation.parquet")
    return root


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    root = tmp_path_factory.mktemp("wds")
    for number, name in enumerate(("train-0", "train-1", "val-0")):
        with webdataset.TarWriter(str(root / f"{name}.tar")) as shard:
            for i in range(8):
                file = io.BytesIO()
                PICTURES[i].save(file, "PNG")
                shard.write({"__key__": f"{number}{i}", "png": file.getvalue(), "cls": str(i % 2).encode()})
    return root


def train(data, **arguments):
    task = ClassificationTask("soft_nano", num_classes=2, warmup_epochs=0)
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    trainer = create_trainer({"max_epochs": 1, **quiet, **arguments})  # that of the commands: a warning is an error
    trainer.fit(task, datamodule=data)
    return trainer, task


def hugging_face(parquet, name, **arguments):
    arguments = {"img_size": "auto", "batch_size": "auto", "num_workers": "auto", **arguments}
    columns = {"input_key": "photo", "target_key": "kind"}
    return ImageFolderDataModule(
        str(parquet / "cache"), source=f"hfds/{parquet / name}", **{"source_args": columns, **arguments}
    )


@pytest.mark.parametrize(("name", "classes"), [("numbered", ("owl", "cat")), ("words", ("cat", "owl"))])
def test_hugging_face(parquet, name, classes):
    data = hugging_face(parquet, name)
    trainer, task = train(data)
    assert (data.class_names, data.class_counts) == (classes, (8, 8))
    assert data.data_config["input_size"] == (3, 64, 64)
    assert trainer.global_step == 2
    assert task.confusion.compute().sum() == 6
    assert classes[data._sets["val"][0][1]] == "owl"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"val_split": "test"}, r"split 'test' \(data.val_split\), cannot be opened in .*Should be one of"),
        ({"source_args": {"input_key": "image", "target_key": "kind"}}, r"no column 'image'; there are photo, kind"),
        ({"source_args": {"input_key": "photo"}}, r"target_key: there is no column 'label'; there are photo, kind"),
        ({"split": "x.csv"}, r"data.split is not for a data.source"),
    ],
)
def test_what_hugging_face_data_lacks(parquet, arguments, message):
    with pytest.raises(InputError, match=message):
        hugging_face(parquet, "numbered", **arguments).setup("fit")


@pytest.mark.parametrize("workers", ["auto", 2])
def test_webdataset(shards, workers, caplog):
    data = ImageFolderDataModule(
        str(shards), source="wds/", train_split="train-{0..1}.tar|16", val_split="val-0.tar|8", img_size=32,
        batch_size="auto", num_workers=workers,
    )  # fmt: skip
    trainer, task = train(data)
    assert data.num_images == {"train": 16, "val": 8}
    assert trainer.global_step == 2
    assert task.confusion.compute().sum(1).tolist() == [4, 4]
    assert not caplog.records


def test_shards_that_are_not_there(shards):
    arguments = {"source": "wds/", "val_split": "val-0.tar|8", "img_size": 32, "batch_size": 4}
    with pytest.raises(InputError, match=r"data.source: 1 of 3 shards are missing: .*train-2.tar"):
        ImageFolderDataModule(str(shards), train_split="train-{0..2}.tar|24", **arguments).setup("fit")
    with pytest.raises(InputError, match=r"data.num_workers is 3, but there are 2 shards to train on"):
        ImageFolderDataModule(str(shards), train_split="train-{0..1}.tar|16", num_workers=3, **arguments).setup("fit")
