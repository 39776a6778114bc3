import warnings

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from softmaxfree.data import MaskFolderDataModule
from softmaxfree.errors import InputError

H, W = 40, 56


def write(root, name, mask, folder="images", masks="masks", suffix=".png", ending=""):
    """A mask, and an image that is as bright as the mask's values are high."""
    image, label = root / folder / f"{name}.jpg", root / masks / f"{name}{ending}{suffix}"
    for path in (image, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    values = np.asarray(mask)
    grey = values if values.ndim == 2 else values.max(-1)
    Image.fromarray((grey.astype(float) / max(grey.max(), 1) * 200).astype(np.uint8)).save(image, quality=95)
    (mask if isinstance(mask, Image.Image) else Image.fromarray(mask)).save(label)


def stripes(*values, dtype=np.uint8):
    return np.array(values, dtype).repeat(-(-W // len(values)))[None, :W].repeat(H, 0)


def setup(root, stage="fit", **arguments):
    data = MaskFolderDataModule(str(root), **arguments)
    data.setup(stage)
    return data


def plain(root, count=10, mask=None, **arguments):
    for i in range(count):
        write(root, f"a {i}", stripes(0, 1, 2) if mask is None else mask, **arguments)
    return root


def test_one_folder_is_split_and_sized(tmp_path):
    plain(tmp_path)
    (tmp_path / "classes.txt").write_text("wall\ndoor\n\nsky, blue\n")
    data = setup(tmp_path)
    assert data.class_names == ("wall", "door", "sky, blue")
    assert data.num_classes == 3
    assert data.num_images == {"val": 2, "train": 8}
    assert data.class_counts == (8 * H * 19, 8 * H * 19, 8 * H * 18)
    assert dict(data.split_rows)["images/a 3.jpg"] in ("train", "val")
    assert {name: value for name, (value, _) in data.decided.items()} == {
        "batch_size": 2, "img_size": 64, "max_size": 90, "num_workers": 0
    }  # fmt: skip
    assert data.hparams["img_size"] == 64
    assert data.data_config["size"] == (64, 90)
    assert "10 images" in data.found
    assert "8 train, 2 val (drawn by seed 42); 3 classes: wall 33.9%" in data.found
    again = setup(tmp_path, "validate", img_size=32, batch_size=1)
    assert again.split_rows == data.split_rows
    assert again.num_images == {"val": 2}
    assert again.data_config["size"] == (32, 45)
    images, labels = next(iter(again.val_dataloader()))
    assert images[0].shape == (3, 32, 45)
    assert labels[0].unique_consecutive().tolist()[:3] == [0, 1, 2]
    again.setup("fit")
    assert again.num_images == {"val": 2, "train": 8}
    other = setup(tmp_path, seed=1)
    assert other.split_rows != data.split_rows
    rows = [(name, "train" if split == "val" else "val") for name, split in data.split_rows]
    (tmp_path / "split.csv").write_text("file,split\n" + "\n".join(map(",".join, rows)))
    given = setup(tmp_path, split=str(tmp_path / "split.csv"))
    assert given.split_rows == rows
    assert given.num_images == {"val": 8, "train": 2}


LAYOUTS = [
    ("images/train", "masks/train", "images/val", "masks/val"),
    ("Images/Training", "Labels/training", "Images/Valid", "Labels/VALIDATION"),
    ("train/images", "train/masks", "test/images", "test/masks"),
    ("training/images", "training/annotations", "dev/images", "dev/annotations"),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_with_splits(tmp_path, layout):
    for i in range(2):
        write(tmp_path, f"a/{i}", stripes(0, 7, 12), layout[0], layout[1])
    write(tmp_path, "b/0", stripes(0, 12), layout[2], layout[3], ".TIF")
    data = setup(tmp_path)
    assert data.num_images == {"val": 1, "train": 2}
    assert data.class_names == ("0", "7", "12")  # of both splits, though one lacks 7
    assert data._sets["val"][0][1].unique().tolist() == [0, 2]
    assert data.split_rows == []
    assert "as the folders say" in data.found
    assert "no pixel in val of 7" in data.found


def test_names_pair_exactly_but_for_a_common_ending(tmp_path):
    for name in ("1", "10", "2"):
        write(tmp_path, name, stripes(0, 1), ending="_gt_mask")
    data = setup(tmp_path)
    assert "names of masks end in _gt_mask" in data.found
    pairs = [pair for split in data._sets.values() for pair in split.dataset.pairs]
    assert all(pair.mask.stem == f"{pair.image.stem}_gt_mask" for pair in pairs)
    (tmp_path / "masks" / "1_gt_mask.png").rename(tmp_path / "masks" / "3_gt_mask.png")
    with pytest.raises(InputError, match=r"images/1.jpg has no mask \(1 in all\); .*3_gt_mask.png has no image"):
        setup(tmp_path)


COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)[stripes(0, 1, 2)]
CLASSES = [  # mask, classes.txt, names, labels from left to right
    (stripes(0, 255), None, ("background", "object"), [0, 1]),
    (stripes(0, 255), "sky\nbird", ("sky", "bird"), [0, 1]),
    (stripes(0, 3, 255, 9), None, ("0", "3", "9"), [0, 1, 255, 2]),
    (stripes(5, 300, 2, dtype=np.uint16), None, ("2", "5", "300"), [1, 2, 0]),
    (stripes(0, 255) > 0, None, ("0", "1"), [0, 1]),
    (stripes(0, 1, 4, 255), "4 tree\n0 road\n1: ignore", ("tree", "road"), [1, 255, 0, 255]),
    (COLOURS, "\ufeff255 0 0 red one\n0,0,255,blue\n0 0 0 none", ("red one", "blue", "none"), [2, 0, 1]),
    (np.stack([stripes(0, 1, 2)] * 3, -1), None, ("0", "1", "2"), [0, 1, 2]),  # grey, saved in colour
]


@pytest.mark.parametrize(("mask", "text", "names", "labels"), CLASSES)
def test_classes(tmp_path, mask, text, names, labels):
    plain(tmp_path, 3, mask)
    if text:
        (tmp_path / "classes.txt").write_text(text, encoding="utf-8")
    data = setup(tmp_path)
    assert data.class_names == names
    renumbered = "which are numbered 0 to" in data.found
    assert renumbered == (names in (("0", "3", "9"), ("2", "5", "300")))  # names that are other numbers
    label = data._sets["val"][0][1]
    assert label.dtype == torch.int64
    assert label[0].unique_consecutive().tolist() == labels
    assert ("of the pixels ignored" in data.found) is (255 in labels)


def test_a_palette_holds_indices_or_colours(tmp_path):
    palette = Image.fromarray(stripes(0, 1, 2))
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    plain(tmp_path, 3, palette)
    assert setup(tmp_path).class_names == ("0", "1", "2")
    (tmp_path / "classes.txt").write_text("0 0 255 sky\n255 0 0 roof\n0 0 0 none")
    assert setup(tmp_path)._sets["val"][0][1][0].unique_consecutive().tolist() == [2, 1, 0]


SMOOTH = np.clip(stripes(*([0] * 20), 30, 90, 120, 170, 200, *([255] * 15)).astype(int), 0, 255).astype(np.uint8)
WRONG = [
    (stripes(255), None, r"hold no class: \S*masks/a 0.png has the value 255 .*, and 255 is ignored"),
    (
        stripes(4),
        None,
        r"masks of \S* hold a single class: \S*masks/a 0.png has the value 4 \(6720 pixels\); the background",
    ),
    (
        stripes(4, 255),
        None,
        r"hold a single class: .* has the values .*; the background must be one too, and 255 is ignored",
    ),
    (COLOURS, None, r"a 0.png has the colours \(0, 0, 0\) \(2280 pixels\), .* need .*classes.txt with `red green blue"),
    (
        COLOURS,
        "0 0 0 a\n255 0 0 b",
        r"has the colour \(0, 0, 255\) \(2160 pixels\); .*allows \(0, 0, 0\), \(255",
    ),
    (stripes(0, 1, 9), "a\nb", r"a 0.png has the value 9 \(2160 pixels\); .*classes.txt allows 0, 1, and 255 for"),
    (stripes(0, 1), "a\nb\n2 c", r"classes.txt: '2 c' is not written as 'a' is"),
    (stripes(0, 1), "a\na", "classes.txt has the name a twice"),
    (stripes(0, 1), "0 a\n0 b", "classes.txt has the value 0 twice"),
    (stripes(0, 1), "a", r"names 1 class\(es\); allowed are 2 to 254, the background among them"),
    (stripes(0, 1), " \n", "classes.txt is empty"),
    (stripes(0, 1), f"0 a\n{'9' * 5000} b", "a value is at most 65535"),
    (stripes(1), "a\nb", "hold only b of the classes of .*nothing to tell apart"),
    (SMOOTH, None, r"are 0 and 255 but for 5 values between .* resized smoothly or saved as JPEG"),
    (
        np.arange(H * W).reshape(H, W).astype(np.uint16),
        None,
        r"hold 2239 values: .*; if they are classes, name",
    ),
    (np.zeros((H, W), np.float32), None, r"a \d.png|a 0.tif is an array"),
]


@pytest.mark.parametrize(("mask", "text", "message"), WRONG)
def test_masks_that_are_none(tmp_path, mask, text, message):
    plain(tmp_path, 3, mask, suffix=".tif" if mask.dtype == np.float32 else ".png")
    if text is not None:
        (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        setup(tmp_path)
    assert "\n" not in str(error.value)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data.root: there is no folder .*nowhere"):
        setup(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"needs a folder images and one of masks, labels, annotations; it holds "):
        setup(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(InputError, match=r"there are no images in .*images"):
        setup(tmp_path)
    write(tmp_path, "x", stripes(0, 1))
    with pytest.raises(InputError, match="has a single image, of which no part can validate"):
        setup(tmp_path)
    plain(tmp_path, 3)
    Image.new("L", (W, H)).save(tmp_path / "masks" / "x.jpg")
    (tmp_path / "masks" / "x.png").unlink()
    with pytest.raises(InputError, match=r"x.jpg is a JPEG, which changes numbers \(1 such files\); save masks as"):
        setup(tmp_path)


def test_masks_of_another_size(tmp_path):
    plain(tmp_path, 3)
    with Image.open(tmp_path / "images" / "a 1.jpg") as image:
        image.load()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image.save(tmp_path / "images" / "a 1.jpg", exif=exif)
    message = r"a 1.png is 40 high and 56 wide, its image 56 and 40 \(1 of 3 differ\); that is the image as stored, whi"
    with pytest.raises(InputError, match=message):
        setup(tmp_path)
    with Image.open(tmp_path / "masks" / "a 1.png") as mask:
        mask.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "masks" / "a 1.png")
    data = setup(tmp_path, img_size=64, max_size=90)
    for split in data._sets.values():
        for i, pair in enumerate(split.dataset.pairs):
            image, labels = split.dataset[i]
            assert image.shape[1:] == labels.shape
            assert ((image[0].float() / 100).round() == labels).float().mean() > 0.9, pair


def test_any_orientation_keeps_image_and_labels_together(tmp_path):
    plain(tmp_path, 8)
    data = setup(tmp_path, orientation="any", photometric=0, scale=(1, 1), img_size=40)
    seen = set()
    for _ in range(6):
        for image, labels in zip(*next(iter(data.train_dataloader())), strict=True):
            assert ((image[0] * 255 / 100).round() == labels).float().mean() > 0.8
            rows = bool((labels == labels[:, :1]).all())
            low, high = (labels[0, 0], labels[-1, 0]) if rows else (labels[0, 0], labels[0, -1])
            seen.add((rows, bool(low < high)))
    assert len(seen) == 4


@pytest.mark.parametrize("ratio", [2.5, 6, 40])
def test_narrow_images_survive_the_sizes_that_follow_from_them(tmp_path, ratio):
    """At the smallest ratio too, at which no side becomes too small."""
    mask = stripes(0, 1)[:1, [0, -1]].repeat(48, 0).repeat(24 * ratio, 1)
    for i in range(5):
        write(tmp_path, str(i), mask)
    data = setup(tmp_path, scale=(0.1, 0.1), photometric=0)
    assert (data.img_size, data.max_size) == (64, {2.5: 128, 6: 193, 40: 1281}[ratio])
    for images, labels in (*data.val_dataloader(), *data.train_dataloader()):
        data.on_before_batch_transfer((images, labels), 0)  # which tells what was left out
        assert len(images) > 0
        assert all(min(image.shape[1:]) >= 32 for image in images)
    small = setup(tmp_path, img_size=32, max_size=64, on_error="fail")
    message = r"0.png|\d.jpg is 48 high and .* when resized; the networks need 32 .*; data.img_size, data.max_size and"
    with pytest.raises(InputError, match=message):
        small.on_before_batch_transfer(next(iter(small.train_dataloader())), 0)


def test_equal_and_unused_images_are_told(tmp_path):
    rng = np.random.default_rng(0)
    for i, split in enumerate(("train", "train", "val", "val", "test", "other")):
        write(tmp_path, str(i), rng.integers(0, 2, (H, W), np.uint8), f"{split}/images", f"{split}/masks")
    write(tmp_path, "stray", stripes(0), ".", "more")
    assert "also trained on" not in setup(tmp_path).found
    for kind, suffix in (("images", "jpg"), ("masks", "png")):
        (tmp_path / "val" / kind / f"2.{suffix}").write_bytes((tmp_path / "train" / kind / f"1.{suffix}").read_bytes())
    found = setup(tmp_path).found
    assert "; 1 validation image is also trained on" in found
    assert f"{tmp_path}/val/images/2.jpg is the same file as {tmp_path}/train/images/1.jpg" in found
    assert (
        f"images left out: 1 in more, 1 in other/images, 1 in other/masks, 1 in {tmp_path}, 1 in test/images, "
        "1 in test/masks"
    ) in found
    assert "\n" not in found


def test_many_classes_are_told_in_one_line(tmp_path):
    plain(tmp_path, 3)
    (tmp_path / "classes.txt").write_text("\n".join(f"class {i}" for i in range(200)))
    found = setup(tmp_path).found
    assert "class 11 0.0% and 188 more; no pixel in train of class 3, class 4, " in found
    assert "class 14 and 185 more" in found


def test_masks_of_some_of_the_known_classes_are_numbered_as_these(tmp_path):
    data = MaskFolderDataModule(str(plain(tmp_path, mask=stripes(0, 7))))
    data.known_classes = ("0", "3", "7")
    data.setup("fit")
    assert data.class_names == ("0", "3", "7")
    assert data._sets["val"].dataset[0][1].unique().tolist() == [0, 2]


def test_an_object_of_255_is_not_ignored_without_a_word(tmp_path):
    plain(tmp_path, 4, stripes(0, 255))
    data = MaskFolderDataModule(str(tmp_path))
    data.known_classes = ("0", "1")  # of a model that learned from masks of 0 and 1
    with pytest.raises(InputError, match=r"hold 0 and 255 alone, but the model knows 0 and 1, .*`0 0` and `255 1`"):
        data.setup("validate")
    (tmp_path / "classes.txt").write_text("0 0\n255 1\n")
    data.setup("validate")
    assert data._sets["val"][0][1][0].unique_consecutive().tolist() == [0, 1]


def test_masks_of_two_ways_are_told_of(tmp_path):
    plain(tmp_path, 4, stripes(0, 1))
    write(tmp_path, "b", stripes(0, 255))
    with pytest.warns(UserWarning, match=r"^1 of 5 masks hold 0 and 255 alone, such as .*b.png, and others 0 and 1: 2"):
        setup(tmp_path)
    write(tmp_path, "b", stripes(0, 1, 255))  # with the object, and something ignored
    with warnings.catch_warnings(action="error"):
        setup(tmp_path)
