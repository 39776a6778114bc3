"""Slides of one's own become batches, or one clear error."""

import weakref

import h5py
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer

from softmaxfree.errors import InputError
from softmaxfree.mil.data import Bag, BagsDataModule, collate
from softmaxfree.mil.data.slides import SlideBags, look_at, read_coords
from softmaxfree.mil.tasks import BagClassificationTask
from tests.mil.data.slide_files import coords_of, features_of, write_csv, write_slides, write_trident

MANY_WORKERS = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # for a machine of one core


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Twelve slides of six cases and two classes; only read."""
    return write_slides(tmp_path_factory.mktemp("slides"), cases=6)


def module(folder, **arguments):
    """A data module of a folder of `write_slides`, set up."""
    given = {"features": str(folder / "features"), "labels": str(folder / "labels.csv"), "num_workers": 0, **arguments}
    data = BagsDataModule(**given)
    data.setup("fit")
    return data


def test_a_batch_is_padded_on_the_right():
    bags = [
        Bag(torch.ones(n, 3, dtype=torch.float16), torch.tensor(n % 2), torch.ones(n, 2), 256.0, None, n, i)
        for i, n in enumerate((2, 4))
    ]
    batch = collate(bags)
    assert batch.features.dtype == torch.float16
    assert batch.mask.tolist() == [[True, True, False, False], [True] * 4]
    assert batch.features[0].sum(1).tolist() == [3, 3, 0, 0]
    assert batch.step.tolist() == [256, 256]
    assert (batch.labels.tolist(), batch.sizes.tolist()) == ([0, 0], [2, 4])
    assert batch.instances is None
    told = [bags[0]._replace(instances=torch.tensor([1, 0])), bags[1]]  # which do not depend on batch mates
    assert collate(told).instances.tolist() == [[1, 0, -1, -1], [-1] * 4]


def test_a_batch_has_the_widest_precision_of_its_bags():
    parts = [torch.ones(2, 3).half(), torch.full((3, 3), 1e5), torch.ones(1, 3, dtype=torch.bfloat16)]
    batch = collate([Bag(part, torch.tensor(0), None, None, None, len(part), i) for i, part in enumerate(parts)])
    assert batch.features.dtype == torch.float32
    assert torch.equal(batch.features[1], parts[1])


def test_a_bag_alone_is_not_copied_and_has_no_mask():
    features = torch.ones(5, 3)
    batch = collate([Bag(features, torch.tensor(0), None, None, torch.arange(5), 5, 0)])
    assert batch.mask is None
    assert batch.features.data_ptr() == features.data_ptr()
    assert batch.coords is None
    assert batch.instances.tolist() == [[0, 1, 2, 3, 4]]


def test_batches_of_a_folder(slides):
    data = module(slides, batch_size=2)
    assert (data.num_classes, data.class_names, data.in_dim) == (2, ("a", "b"), 6)
    assert sum(data.num_images.values()) == 12
    assert sum(data.class_counts) == data.num_images["train"]
    for batch in data.train_dataloader():
        assert batch.features.dtype == torch.float16
        assert batch.coords.shape == (*batch.features.shape[:2], 2)
        assert batch.step.tolist() == [512, 512]
    sides = dict(data.split_rows)
    table = {row.split(",")[0]: row.split(",")[2] for row in (slides / "labels.csv").read_text().splitlines()[1:]}
    assert {len({sides[s] for s in table if table[s] == case}) for case in set(table.values())} == {1}
    assert "12 slides of 6 cases, 9 to 20 patches (median 15) of 6 numbers" in data.found
    assert "drawn by case and seed 42" in data.found


@MANY_WORKERS
def test_workers_hold_one_batch_each(slides):
    loader = module(slides, num_workers=2).train_dataloader()
    assert loader.prefetch_factor == 1
    assert sum(len(batch.labels) for batch in loader) == len(loader)


@MANY_WORKERS
@pytest.mark.parametrize("workers", [0, 2])
def test_one_bag_is_in_memory_while_the_next_is_read(slides, monkeypatch, workers):
    """A worker, or the training itself without workers, reads one; the training holds one more at most."""
    alive, most = [], []

    def counted(bags, index):
        most.append(sum(there() is not None for there in alive))
        bag = read(bags, index)
        alive.append(weakref.ref(bag.features.untyped_storage()))
        return bag

    class Held(Callback):
        def on_train_batch_start(self, trainer, task, batch, batch_idx):
            alive.append(weakref.ref(batch.features.untyped_storage()))
            held.append(sum(there() is not None for there in alive))

    read, held = SlideBags.__getitem__, []
    monkeypatch.setattr(SlideBags, "__getitem__", counted)
    task = BagClassificationTask("mean", 2, 6, {"embed_dim": 4}, warmup_epochs=0)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    options = {"accelerator": "cpu", "limit_val_batches": 0, "enable_model_summary": False, "log_every_n_steps": 1}
    trainer = Trainer(max_epochs=2, callbacks=[Held()], **options, **quiet)
    data = module(slides, num_workers=workers)
    trainer.fit(task, datamodule=data)
    assert max(most, default=0) <= 1  # in this process
    assert max(held) <= 2  # the batch, and its bag where it was read here
    assert len(held) == 2 * data.num_images["train"]


def test_the_split_of_a_run_is_read_again(slides, tmp_path):
    first = module(slides, seed=3, folds=3, fold=1)
    assert first.tests
    write_csv(tmp_path / "split.csv", "file,split", *(",".join(row) for row in first.split_rows))
    again = module(slides, seed=4, split=str(tmp_path / "split.csv"))
    assert [slide.name for slide in again.bags["test"].slides] == [slide.name for slide in first.bags["test"].slides]
    assert again.split_rows == []


def test_labels_of_transmil_and_torchmil(slides, tmp_path):
    fold = write_csv(tmp_path / "fold0.csv", ",train,train_label,val,val_label", "0,001,1,003,0.0", "1,002,0,004,1")
    data = module(slides, labels=None, split=str(tmp_path), fold=0)
    assert (data.class_names, data.num_images) == (("0", "1"), {"train": 2, "val": 2})
    assert f"(by {fold})" in data.found  # not the folder alone
    for name in ("features", "labels", "coords"):
        (tmp_path / "t" / name).mkdir(parents=True)
    for i in range(6):
        np.save(tmp_path / "t" / "features" / f"b{i}.npy", features_of(i, 4)[None])
        np.save(tmp_path / "t" / "coords" / f"b{i}.npy", coords_of(4, 1))
        np.save(tmp_path / "t" / "labels" / f"b{i}.npy", np.array(i % 2))
    data = module(tmp_path, features=str(tmp_path / "t"), labels=None)
    assert data.class_names == ("0", "1")
    assert data.bags["train"][0].step == 1  # cells, not pixels
    for i in range(6):
        np.save(tmp_path / "t" / "labels" / f"b{i}.npy", np.array(1234567.0 + i % 2))
    assert module(tmp_path, features=str(tmp_path / "t"), labels=None).class_names == ("1234567", "1234568")
    np.save(tmp_path / "t" / "labels" / "b0.npy", np.array(np.nan))
    with pytest.raises(InputError, match=r"slide b0: .*b0.npy must hold a number, got nan"):
        module(tmp_path, features=str(tmp_path / "t"), labels=None)


def test_the_order_of_grades_is_given(slides, tmp_path):
    names = ["low", "medium", "high"]
    table = write_csv(tmp_path / "grades.csv", "slide_id,label", *(f"{i + 1:03},{names[i % 3]}" for i in range(12)))
    assert module(slides, labels=str(table)).class_names == ("high", "low", "medium")
    data = module(slides, labels=str(table), classes=names)
    assert data.class_names == tuple(names)
    assert data.bags["train"][0].label == names.index(names[(int(data.names_of("train")[0]) - 1) % 3])
    with pytest.raises(
        InputError, match=r"data.classes: .*grades.csv has the class high, which is not in \['low', 'medium'\]"
    ):
        module(slides, labels=str(table), classes=names[:2])
    with pytest.raises(InputError, match=r"data.classes must be two or more different names, got \['low', 'low'\]"):
        module(slides, labels=str(table), classes=["low", "low"])


def test_slides_without_a_case_are_cases_of_their_own(slides, tmp_path):
    rows = (f"{i + 1:03},{'ab'[i % 2]},{'nan' if i < 8 else 'p'}" for i in range(12))
    data = module(slides, labels=str(write_csv(tmp_path / "labels.csv", HEAD, *rows)))
    assert "12 slides of 9 cases" in data.found


def test_labels_of_patches_are_whole_numbers(tmp_path):
    for name, label in (("a", -1.0), ("b", 0.7)):
        np.save(tmp_path / f"{name}_f.npy", features_of(0, 4))
        np.save(tmp_path / f"{name}_i.npy", np.full(4, label))
    files, labels = ({name: tmp_path / f"{name}_{kind}.npy" for name in "ab"} for kind in "fi")
    bags = SlideBags(look_at(["a", "b"], files, {}, labels), [torch.tensor(0)] * 2, None, with_coords=False)
    assert bags[0].instances.tolist() == [-1] * 4
    with pytest.raises(
        InputError, match=r"slide b: .*b_i.npy must be whole numbers, -1 where one is not known; got 0.7"
    ):
        bags[1]


def test_coordinates_in_another_folder(slides, tmp_path):
    for i in range(12):
        name = f"{i + 1:03}"
        values = features_of(i, 9 + i)
        (tmp_path / "pt").mkdir(exist_ok=True)
        torch.save(torch.from_numpy(values), tmp_path / "pt" / f"{name}.pt")
        write_trident(tmp_path / "patches" / f"{name}_patches.h5", values, coords_of(9 + i))
    assert module(slides, features=str(tmp_path / "pt")).bags["train"][0].coords is None
    with pytest.raises(
        InputError, match=r"data.use_coords: slide 001 has no coordinates in .*001.pt \(12 such slides\)"
    ):
        module(slides, features=str(tmp_path / "pt"), use_coords=True)
    bag = module(slides, features=str(tmp_path / "pt"), coords=str(tmp_path / "patches")).bags["train"][0]
    assert bag.step == 512


def test_a_table_may_have_more_slides_than_there_are_features(slides, tmp_path):
    rows = (slides / "labels.csv").read_text().splitlines()
    with pytest.warns(UserWarning, match="1 of the 13 slides of .* have no features, and are left out: 013"):
        data = module(slides, labels=str(write_csv(tmp_path / "labels.csv", *rows, "013,a,case13")))
    assert sum(data.num_images.values()) == 12
    with pytest.warns(UserWarning, match="and are left out: 1; a file is called 001"):
        module(slides, labels=str(write_csv(tmp_path / "plain.csv", *rows, "1,a,case14")))
    few = module(slides, labels=str(write_csv(tmp_path / "few.csv", *rows[:9])))
    assert "4 files of features without a label not used: " in few.found


HEAD = "slide_id,label,case_id"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([HEAD, "001,a,1", "002,b,2", "001,a,1"], r"labels.csv lists slide 001 twice, in lines 2 and 4"),
        ([HEAD, "001,a,1", "002,,2"], r"labels.csv has no label of slide 002, in line 3"),
        ([HEAD, "001,a,1", "002,NaN,2"], r"labels.csv has no label of slide 002, in line 3: 'NaN'"),
        ([HEAD, "001,a,1", "002,b,2", "003,B,3"], r"the classes B and b differ in their case alone"),
        ([HEAD, "001,a,1", ",b,2"], r"labels.csv has no slide in line 3"),
        (["name,label", "001,a"], r"has no column for the slide: slide_id or .*; it has name, label"),
        (["slide_id,grade", "001,a"], r"has no column for the class: label; it has slide_id, grade"),
        ([HEAD, "001,a,1", "002,a,2"], r"all slides are of one class, a; two are needed"),
        ([HEAD, "001,0,1", "002,0.0,2", "003,1,3"], r"the classes 0 and 0.0 are one number, written in two ways"),
        ([HEAD, "001,a,7", "002,b,7.0", "003,b,8"], r"the cases 7 and 7.0 are one number, written in two ways"),
        ([HEAD, "x,a,1", "y,b,2"], r"has no file of 2 of the 2 slides of .*labels.csv: x, y"),
    ],
)
def test_bad_labels(slides, tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        module(slides, labels=str(write_csv(tmp_path / "labels.csv", *rows)))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["slide_id,split", "001,train", "099,val"],
            r"data.split: .*s.csv has slide 099, which has no label in",
        ),
        (
            ["slide_id,split", "001,train", "007,val"],
            r"case case0 is in two splits: slide 001 in train, slide 007 in",
        ),
        (["slide_id,split", "001,train", "003,train"], r"s.csv has no slides to validate"),
        (["slide_id,split", "001,train", "002,val"], r"there are no slides of b to train on"),
    ],
)
def test_bad_splits(slides, tmp_path, rows, message):
    with pytest.raises(InputError, match=message):
        module(slides, split=str(write_csv(tmp_path / "s.csv", *rows)))


def test_a_slide_of_a_split_without_features(slides, tmp_path):
    labels = write_csv(tmp_path / "l.csv", *(slides / "labels.csv").read_text().splitlines(), "013,a,case13")
    split = write_csv(tmp_path / "s.csv", "slide_id,split", "001,train", "002,train", "013,val")
    with pytest.raises(InputError, match=r"data.features: .*features has no file of 1 of the 3 slides of .*s.csv: 013"):
        module(slides, labels=str(labels), split=str(split))


def test_a_bad_bag_stops_with_its_name_also_in_a_worker(slides, tmp_path):
    folder = write_slides(tmp_path, count=6)
    with h5py.File(folder / "features" / "002.h5", "a") as file:
        file["features"][3, 1] = np.nan
    data = module(folder, num_workers=1, split="all")
    with pytest.raises(InputError, match=r"slide 002: features in .*002.h5 are NaN or infinite in 1 of "):
        list(data.val_dataloader())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "data.batch_size must be 1 or more"),
        ({"max_patches": 0}, "data.max_patches must be 1 or more"),
        ({"step": 0.5}, "data.step must be 1 or more"),
        ({"folds": 5}, "data.fold must be 0 to 4 with data.folds 5, got None"),
        ({"folds": 5, "fold": 5}, "data.fold must be 0 to 4 with data.folds 5, got 5"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        BagsDataModule("features", "labels.csv", **arguments)


def survival_rows(count=12):
    return [f"{i + 1:03},{10 * (i + 1)},{int(i % 3 > 0)}" for i in range(count)]


def test_survival(slides, tmp_path):
    table = write_csv(tmp_path / "t.csv", "slide_id,time,event", *survival_rows())
    data = module(slides, labels=str(table), target="survival", bins=3)
    assert data.num_classes == 3
    assert data.class_names == (*(f"up to {cut:g}" for cut in data.cuts), "later")
    bin_, event, time = data.bags["train"][0].label.tolist()
    name = data.bags["train"].slides[0].name
    assert (time, event) == (10 * int(name), int((int(name) - 1) % 3 > 0))
    assert bin_ == sum(time > cut for cut in data.cuts)
    censored = write_csv(
        tmp_path / "c.csv",
        "slide_id,survival_months,censorship",
        *(r[:-1] + str(1 - int(r[-1])) for r in survival_rows()),
    )
    again = module(slides, labels=str(censored), target="survival", bins=3)
    assert [bag.label.tolist() for bag in again.bags["val"]] == [bag.label.tolist() for bag in data.bags["val"]]
    words = (row[:-1] + ("true" if row[-1] == "1" else "False") for row in survival_rows())
    told = module(slides, labels=str(write_csv(tmp_path / "w.csv", "slide_id,time,event", *words)), target="survival")
    assert [bag.label[1:].tolist() for bag in told.bags["val"]] == [bag.label[1:].tolist() for bag in data.bags["val"]]
    both = (f"{row},0" for row in survival_rows())
    with pytest.raises(InputError, match="has event and censorship, which may differ: leave one of them out"):
        module(
            slides,
            labels=str(write_csv(tmp_path / "b.csv", "slide_id,time,event,censorship", *both)),
            target="survival",
        )


def test_bins_of_nearly_equal_times_have_names_of_their_own(slides, tmp_path):
    rows = [f"{i + 1:03},{1_000_000 + 0.3 * i},1" for i in range(12)]
    data = module(slides, labels=str(write_csv(tmp_path / "t.csv", "slide_id,time,event", *rows)), target="survival")
    assert len(set(data.class_names)) == 4
    assert [
        float(name.split()[-1]) for name in data.class_names[:-1]
    ] == data.cuts  # a time is in one bin for all commands


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("012,soon,1", "the time of slide 012 must be a number, 0 or more; got 'soon'"),
        ("012,-1,1", "the time of slide 012 must be a number, 0 or more; got '-1'"),
        ("012,5,2", "the event of slide 012 must be 0 or 1, got '2'"),
    ],
)
def test_bad_times(slides, tmp_path, row, message):
    table = write_csv(tmp_path / "t.csv", "slide_id,time,event", *survival_rows(11), row)
    with pytest.raises(InputError, match=message):
        module(slides, labels=str(table), target="survival", bins=3)


def test_too_few_events_for_the_bins(slides, tmp_path):
    table = write_csv(tmp_path / "t.csv", "slide_id,time,event", *(f"{i + 1:03},5,1" for i in range(12)))
    with pytest.raises(InputError, match=r"data.bins is 4, but the events .* to train on are at 1 different time,"):
        module(slides, labels=str(table), target="survival")


def test_a_validation_that_tells_no_best_epoch_is_refused(slides, tmp_path):
    split = write_csv(tmp_path / "s.csv", ",train,val", "0,001,003", "1,002,005", "2,004,")
    with pytest.raises(InputError, match=r"data.split: all slides to validate are of a, so that nothing .*s.csv"):
        module(slides, split=str(split))
    rows = [f"{i + 1:03},{i + 1},{int(i not in (2, 4))}" for i in range(12)]  # no event of 003 and 005 was seen
    table = write_csv(tmp_path / "t.csv", "slide_id,time,event", *rows)
    with pytest.raises(InputError, match="no slide to validate has an event before the time of another one"):
        module(slides, labels=str(table), split=str(split), target="survival", bins=2)
    write_csv(tmp_path / "t.csv", "slide_id,time,event", *rows[:2], "003,3,1", *rows[3:])
    assert module(slides, labels=str(table), split=str(split), target="survival", bins=2).num_images["val"] == 2


def test_patches_at_one_place(tmp_path):
    write_trident(tmp_path / "same.h5", features_of(0, 7), np.zeros((7, 2), np.int64))
    (slide,) = look_at(["same"], {"same": tmp_path / "same.h5"}, {}, {})
    with pytest.raises(InputError, match=r"slide same: the 7 patches in .*same.h5 all lie at one place"):
        read_coords(slide)


def test_a_fold_without_parts_to_take_it_from_is_refused(slides, tmp_path):
    split = write_csv(tmp_path / "splits_0.csv", ",train,val", "0,001,003", "1,002,004")
    for more in ({}, {"split": split}):
        with pytest.raises(InputError, match=r"^data.fold 2 has no meaning without data.folds, or a folder of files"):
            module(slides, fold=2, **more)
