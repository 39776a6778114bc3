import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from softmaxfree.data import Ade20kDataModule
from softmaxfree.data.label_scan import LabelScan, scan_labels
from softmaxfree.errors import InputError

SIZE = (30, 44)


def write_pair(root, folder, name, labels, grey=False):
    shape = labels.shape if grey else (*labels.shape, 3)
    # so that the tests can see whether an image and its labels stay together: bright where the label is high
    pixels = np.broadcast_to((labels * 60).reshape(*labels.shape, *[1] * (len(shape) - 2)), shape)
    Image.fromarray(np.ascontiguousarray(pixels, np.uint8)).save(root / "images" / folder / f"{name}.jpg", quality=95)
    Image.fromarray(labels).save(root / "annotations" / folder / f"{name}.png")


@pytest.fixture
def root(tmp_path):
    """Labels 0 to 4 in vertical stripes; one image a split is grey."""
    labels = np.repeat(np.arange(44, dtype=np.uint8)[None] // 9, 30, 0)
    for folder in ("training", "validation"):
        for kind in ("images", "annotations"):
            (tmp_path / kind / folder).mkdir(parents=True)
        for i in range(4):
            write_pair(tmp_path, folder, f"ADE_{i}", labels, grey=i == 0)
    return tmp_path


def module(root, **arguments):
    return Ade20kDataModule(str(root), **{"batch_size": 4, "num_workers": 0, "num_classes": 4, **arguments})


def validate(root, **arguments):
    data = module(root, **arguments)
    data.setup("validate")
    return [data.on_before_batch_transfer(batch, 0) for batch in data.val_dataloader()]


def test_validation_batches(root):
    images, labels = validate(root, img_size=60)[0]
    assert [tuple(image.shape) for image in images] == [(3, 60, 88)] * 4
    assert [tuple(label.shape) for label in labels] == [SIZE] * 4  # scores are taken at the file's size
    assert images[0].dtype == torch.float32
    assert 0 <= images[0].min() < images[0].max() <= 1
    assert labels[0].dtype == torch.int64
    assert labels[0][0].unique_consecutive().tolist() == [255, 0, 1, 2, 3]
    assert type(images[0]) is type(labels[0]) is torch.Tensor
    assert torch.equal(images[0][0], images[0][1])  # the grey one


def test_zero_is_a_class_unless_reduced(root):
    _, labels = validate(root, num_classes=5, reduce_zero_label=False)[0]
    assert labels[0].unique().tolist() == [0, 1, 2, 3, 4]


def test_labels_of_255_are_ignored(root):
    write_pair(root, "validation", "ADE_0", np.full(SIZE, 255, np.uint8))
    for reduce in (True, False):
        _, labels = validate(root, num_classes=5 - reduce, reduce_zero_label=reduce)[0]
        assert (labels[0] == 255).all()


def test_training_images_and_labels_stay_together(root):
    data = module(root, img_size=64, photometric=0)
    data.setup("fit")
    shapes, mirrored = set(), set()
    for _ in range(6):
        for image, label in zip(*next(iter(data.train_dataloader())), strict=True):
            assert image.shape[1:] == label.shape
            assert max(label.shape) <= 64
            shown = (label + 1) % 256  # the stripe's number, from its brightness
            agree = ((image[0] * 255 / 60).round() == shown).float().mean()
            assert agree > 0.7  # JPEG and interpolation blur the edges of narrow stripes
            shapes.add(tuple(label.shape))
            mirrored.add(bool(shown[0, 0] > shown[0, -1]))
    assert (64, 64) in shapes
    assert len(shapes) > 3  # images that a ratio below 1 makes smaller than the crop stay so
    assert mirrored == {True, False}


def test_a_crop_avoids_a_class_that_covers_it(root):
    labels = np.ones(SIZE, np.uint8)
    labels[:, 36:] = 2
    for folder in ("training", "validation"):
        for i in range(4):
            write_pair(root, folder, f"ADE_{i}", labels)
    shares = {}
    for ratio in (0.75, 1.0):
        data = module(root, img_size=40, num_classes=2, scale=(1.5, 1.5), cat_max_ratio=ratio, photometric=0)
        data.setup("fit")
        crops = [label for _ in range(10) for label in next(iter(data.train_dataloader()))[1]]
        shares[ratio] = np.mean([float((label == 0).float().mean()) for label in crops])
    assert shares[0.75] < shares[1.0] - 0.05


def test_colours_are_distorted(root):
    data = module(root, scale=(1, 1), img_size=32, hflip=0)
    data.setup("fit")
    dataset = data._sets["train"]
    colours = {tuple(dataset[1][0].mean((1, 2)).tolist()) for _ in range(8)}
    assert len(colours) > 4


def test_without_augmentation(root):
    data = module(root, augment=False, img_size=60)
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert {tuple(label.shape) for label in labels} == {(60, 88)}
    assert {tuple(image.shape) for image in images} == {(3, 60, 88)}


def test_the_folder_above_will_do(root, tmp_path_factory):
    above = tmp_path_factory.mktemp("above")
    root.rename(above / "ADEChallengeData2016")
    assert len(validate(above)[0][0]) == 4


def test_class_names(root):
    data = module(root)
    data.setup("fit")
    assert data.class_names == ("0", "1", "2", "3")
    head = "Idx\tRatio\tTrain\tVal\tName\n"
    rows = [f"{i}\t0.1\t20\t2\t{name}" for i, name in enumerate(("wall", "building, edifice", "sky", "tree"), 1)]
    (root / "objectInfo150.txt").write_text(head + "\n".join(rows) + "\n")
    data = module(root)
    data.setup("fit")
    assert data.class_names == ("wall", "building", "sky", "tree")
    (root / "objectInfo150.txt").write_text(head + rows[0])
    with pytest.raises(ValueError, match=r"objectInfo150.txt names 1 classes, data.num_classes is 4"):
        module(root).setup("fit")
    data = module(root, class_names=["a", "b", "c", "d"])
    data.setup("fit")
    assert data.class_names == ("a", "b", "c", "d")
    with pytest.raises(ValueError, match=r"data.class_names has 1 names for data.num_classes = 4"):
        module(root, class_names=["a"])


@pytest.mark.parametrize("reduce", [True, False])
def test_labels_out_of_range(root, reduce):
    classes = 3 if reduce else 4
    allowed = "0 to 3"
    with pytest.raises(
        ValueError, match=rf"ADE_\d.png has the label 4; allowed are {allowed}, .*num_classes = {classes}"
    ):
        validate(root, num_classes=classes, reduce_zero_label=reduce)


def test_labels_of_another_size(root):
    Image.fromarray(np.zeros((30, 43), np.uint8)).save(root / "annotations" / "validation" / "ADE_2.png")
    with pytest.raises(ValueError, match=r"ADE_2.png is an array of shape \(30, 43\).* needs one of \(30, 44\)"):
        validate(root)


def test_labels_in_colour(root):
    Image.new("RGB", (44, 30), "red").save(root / "annotations" / "validation" / "ADE_2.png")
    with pytest.raises(
        ValueError, match=r"ADE_2.png is an array of shape \(30, 44, 3\) \(mode RGB\); labels are the numbers of"
    ):
        validate(root)


def test_lone_files(root):
    (root / "images" / "validation" / "ADE_2.jpg").unlink()
    with pytest.raises(ValueError, match=r"annotations/validation/ADE_2.png has no image \(1 in all\)"):
        validate(root)
    (root / "annotations" / "validation" / "ADE_2.png").unlink()
    (root / "annotations" / "validation" / "ADE_3.png").unlink()
    with pytest.raises(ValueError, match=r"images/validation/ADE_3.jpg has no mask"):
        validate(root)


def test_missing_folders(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.root: there is no folder .*nowhere"):
        module(tmp_path / "nowhere").setup("fit")
    (root / "annotations" / "training").rename(root / "away")
    assert len(validate(root)[0][0]) == 4  # a validation needs no training split
    with pytest.raises(FileNotFoundError, match=r"no folder .*annotations/training"):
        module(root).setup("fit")
    (root / "annotations" / "training").mkdir()
    with pytest.raises(ValueError, match=r"annotations/training has no files .png"):
        module(root).setup("fit")


@pytest.mark.parametrize("what", ["index_ade20k.pkl", "images/ADE", "images/training/ADE_train_1_seg.png"])
def test_the_full_ade20k_is_refused(root, what):
    (root / what).touch()
    with pytest.raises(ValueError, match=r"is the full ADE20K; what is read is its benchmark SceneParse150"):
        module(root).setup("fit")


def test_broken_images_are_named_and_counted(root):
    whole = (root / "images" / "validation" / "ADE_1.jpg").read_bytes()
    (root / "images" / "validation" / "ADE_1.jpg").write_bytes(whole[:-40])
    with pytest.warns(
        UserWarning, match=r"^1 unreadable image left out: .*ADE_1.jpg cannot be read: image file is truncated"
    ):
        images, labels = validate(root)[0]
    assert len(images) == len(labels) == 3
    with pytest.raises(ValueError, match=r"unreadable image: .*ADE_1.jpg .*--data.on_error skip"):
        validate(root, on_error="fail")


def test_too_many_classes(root):
    with pytest.raises(ValueError, match=r"data.num_classes must be from 2 to 254, got 255"):
        module(root, num_classes=255)


def write_all(root, values, folders=("training", "validation"), dtype=np.uint8):
    """Masks of these values in stripes."""
    labels = np.array(values, dtype)[None].repeat(30, 0).repeat(44 // len(values), 1)
    labels = np.pad(labels, ((0, 0), (0, 44 - labels.shape[1])), "edge")
    for folder in folders:
        for i in range(4):
            Image.fromarray(labels).save(root / "annotations" / folder / f"ADE_{i}.png")


WRONG = [  # values of the masks, arguments, what is said
    (
        [0, 255],
        {"num_classes": 2, "reduce_zero_label": False},
        r"1 \(1\) occur nowhere; the 4 masks hold the values 0 \(5",
    ),
    (
        [0, 255],
        {"num_classes": 2},
        r"every pixel is ignored; the 4 masks hold the values 0 \(50.0%\), 255 \(50.0%\); allowed",
    ),
    ([0], {"num_classes": 2}, r"every pixel is ignored; the 4 masks hold the values 0 \(100.0%\)"),
    ([255], {"num_classes": 2, "reduce_zero_label": False}, r"every pixel is ignored; the 4 masks hold the values 255"),
    ([0, 1], {"num_classes": 2}, r"2 \(1\) occur nowhere; the 4 masks hold the values 0 .*, 1 .*; allowed are 0 to 2"),
    ([1, 2, 3], {"num_classes": 4}, r"4 \(3\) occur nowhere; .*; data.missing_classes = allow lets it be so"),
    ([0, 1], {"num_classes": 20, "reduce_zero_label": False}, r"2 \(2\), .*, 6 \(6\) and 13 more occur nowhere"),
    ([0, 7, 9], {"num_classes": 2}, r"ADE_\d.png has the label 7, 9; allowed are 0 to 2"),
]


@pytest.mark.filterwarnings("ignore:.*they have no score")
@pytest.mark.parametrize(("values", "arguments", "message"), WRONG)
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_masks_that_do_not_fit_the_classes(root, values, arguments, message, depth):
    write_all(root, values, ("training",), depth)
    write_all(root, [0, 1, 2] if arguments.get("reduce_zero_label", True) else [0, 1], ("validation",))
    data = module(root, **arguments)
    with pytest.raises(InputError, match=message):
        data.setup("fit")


def test_validation_masks_that_are_all_ignored(root):
    write_all(root, [0, 255], ("validation",))
    for arguments in ({}, {"missing_classes": "allow"}):
        with pytest.raises(InputError, match=r"annotations/validation: every pixel is ignored; the 4 masks hold"):
            module(root, **arguments).setup("validate")


def test_classes_that_validation_lacks_are_told(root):
    write_all(root, [1, 2, 4], ("validation",))
    with pytest.warns(UserWarning, match=r"annotations/validation: 3 \(2\) occur nowhere; .*; they have no score"):
        module(root).setup("fit")


def test_missing_classes_can_be_allowed(root):
    write_all(root, [1, 2, 4])
    data = module(root, missing_classes="allow")
    data.setup("fit")
    assert data._sets["train"][0][1].max() <= 3


def test_one_class_is_no_task(root):
    with pytest.raises(InputError, match=r"data.num_classes must be from 2 to 255, got 1; to tell one class from what"):
        module(root, num_classes=1, reduce_zero_label=False)


def test_palette_and_16_bit_masks_hold_indices(root):
    path = root / "annotations" / "validation" / "ADE_0.png"
    with Image.open(path) as file:
        labels = np.array(file)
    wanted = validate(root)[0][1][0]
    palette = Image.fromarray(labels).convert("P")
    palette.putdata(labels.ravel())
    palette.putpalette([200, 7, 90] * 256)  # the colours do not count
    for image in (palette, Image.fromarray(labels.astype(np.uint16))):
        image.save(path)
        assert torch.equal(validate(root)[0][1][0], wanted)


def test_two_files_of_one_name(root):
    Image.new("RGB", (44, 30)).save(root / "images" / "validation" / "ADE_2.png")
    with pytest.raises(InputError, match=r"validation/ADE_2.jpg and ADE_2.png have the same name; remove one"):
        validate(root)


def test_any_suffix_and_what_is_left_out(root):
    folder = root / "images" / "validation"
    (folder / "ADE_2.jpg").rename(folder / "ADE_2.JFIF")
    with Image.open(folder / "ADE_1.jpg") as image:
        image.save(folder / "größe 1.TIF")
    (folder / "ADE_1.jpg").unlink()
    (root / "annotations" / "validation" / "ADE_1.png").rename(root / "annotations" / "validation" / "größe 1.PNG")
    for name in ("._ADE_0.jpg", ".DS_Store", "Thumbs.db"):
        (folder / name).touch()
    assert len(validate(root)[0][0]) == 4
    (folder / "more").mkdir()
    (folder / ".trash").mkdir()
    (folder / "list.txt").touch()
    with pytest.warns(UserWarning, match=r"/validation: 3 files and folders left out: 1 .txt, 1 folder, 1 hidden"):
        validate(root)


def test_images_that_are_too_small(root):
    """A strip among images is left out and named, and not the rest of its batch."""
    for kind, suffix in (("images", "jpg"), ("annotations", "png")):
        Image.new("L", (6000, 12), 1).save(root / kind / "validation" / f"ADE_2.{suffix}")
    message = (
        r"^1 unreadable image left out: .*ADE_2.jpg is 12 high and 6000 wide, and 4 and 2048 when resized; the net"
    )
    with pytest.warns(UserWarning, match=message):
        images, labels = validate(root)[0]
    assert len(images) == len(labels) == 3
    with pytest.raises(InputError, match=r"data.img_size must be from 32 to data.max_size = 2048, got 31"):
        module(root, img_size=31)


def test_the_size_of_inference(root):
    data = module(root, img_size=64, max_size=100)
    assert data.data_config["size"] == (64, 100)
    data.setup("validate")
    assert data._sets["val"][0][0].shape == (3, 64, 94)
    for kind, suffix in (("images", "jpg"), ("annotations", "png")):
        Image.new("L", (200, 80), 1).save(root / kind / "validation" / f"ADE_2.{suffix}")
    assert data._sets["val"][2][0].shape == (3, 40, 100)


@pytest.mark.parametrize("workers", [0, 1])
def test_labels_of_the_image_as_it_is_stored(root, workers):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    path = root / "images" / "validation" / "ADE_1.jpg"
    with Image.open(path) as image:
        image.load()
    image.save(path, exif=exif)
    with pytest.raises(
        InputError, match=r"ADE_1.png is an array .* \(30, 44\); .* one of \(44, 30\) labels; .*EXIF"
    ) as e:
        validate(root, num_workers=workers)
    assert "\n" not in str(e.value)
    image.transpose(Image.Transpose.ROTATE_90).save(root / "images" / "validation" / "ADE_1.jpg")
    with Image.open(root / "annotations" / "validation" / "ADE_1.png") as labels:
        labels.transpose(Image.Transpose.ROTATE_90).save(root / "annotations" / "validation" / "ADE_1.png")
    assert validate(root)[0][0][1].shape[1] > validate(root)[0][0][1].shape[2]


def test_a_scan_ends_when_all_classes_are_seen():
    seen = []

    def read(index):
        seen.append(index)
        return np.array([[index % 3, 9 if index == 900 else 0]])

    assert scan_labels(read, 1000, range(3), "x").looked < 400
    assert len(set(seen)) == len(seen)
    assert scan_labels(read, 1000, range(4), "x") == LabelScan({0: 1333, 1: 333, 2: 333, 9: 1}, 1000)
