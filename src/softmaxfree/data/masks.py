"""Images and masks of one's own, in plain folders."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from lightning.pytorch.utilities import rank_zero_warn

from softmaxfree.data.class_folders import Listing
from softmaxfree.data.dense_sizes import decide_sizes, shown_shapes
from softmaxfree.data.images import frame_hint
from softmaxfree.data.kinds import hinting_at_kind
from softmaxfree.data.label_scan import count_values
from softmaxfree.data.mask_classes import MaskClasses, found_classes, listed_classes, mixed_masks
from softmaxfree.data.mask_folders import MaskFolders
from softmaxfree.data.mask_images import MaskPair, read_mask
from softmaxfree.data.segmentation import AbstractMasksDataModule, Auto
from softmaxfree.data.splits import EVERY, draw_split, read_split
from softmaxfree.data.telling import equal_images
from softmaxfree.errors import InputError
from softmaxfree.images import MAX_PIXELS
from softmaxfree.printing import few

__all__ = ["MaskFolderDataModule"]

_Shape = tuple[int, int]


class MaskFolderDataModule(AbstractMasksDataModule):
    """Semantic segmentation: `root/images` and `root/masks` (or `labels`, `annotations`), with files of equal names.

    Folders inside these may hold the splits (`images/train`, `masks/train`, `images/val`, ...), or lie around them
    (`train/images`, `train/masks`, ...); other folders inside are the same in both. `train` may be called `training`,
    and `val` `valid`, `validation`, `dev` or `test`. Without it a part is drawn: a fifth to 2,500 images, a tenth from
    5,000, the same by seed, so that each class is on both sides as far as that can be. Names of masks may all have one
    more ending, such as `_mask`.

    Masks are grey of 8 or 16 bits, or have a palette, whose indices count; or they are in colour, which
    `root/classes.txt` must tell. On each of its lines is `name` (of the values 0, 1, 2, ...), `value name`, or
    `red green blue name`; what is called `ignore` counts nowhere. Without it each value is a class that is named by its
    number, but for 255, which is ignored, and 0 and 255 alone, which are background and object.

    See `AbstractMasksDataModule` for batches and augmentation.

    Args:
        root: Folder of the data, which has a folder `images` and a folder `masks`, `labels` or `annotations`.
        classes: Text file of the values and names of the classes; null takes `classes.txt` in the root, or else the
            values that the masks have.
        split: CSV file that says which images train and which validate, with the columns `file` (below the root) and
            `split` (train or val). Null takes the split of the folders, or else draws it by the seed.
        batch_size: Number of images in a batch, of each process. "auto" is a power of two from 2 to 8, by the number of
            training images.
        num_workers: Number of processes that prepare images; 0 prepares them in the process of the training. "auto" is
            0 for little data, else one for each CPU core, 8 at most.
        img_size: Side of a training crop and shorter side of a validation image, in pixels. "auto" is the median of the
            shorter sides of the images, as a multiple of 32, from 64 to 512.
        max_size: Longer side of an image for the network at most, in pixels; of a training image before `scale` changes
            it. "auto" is what all but the longest twentieth of the images need, at most twice `img_size`, but more for
            narrow images, which keep 32 pixels each way.
        augment: Whether training images are resized, cropped, mirrored and changed in colour at random.
        scale: Smallest and largest factor on the size of a training image. No side becomes smaller than 32 pixels by
            it.
        hflip: Probability that a training image is mirrored, 0 to 1.
        orientation: "any" also mirrors training images vertically and turns them by quarters, for images without an up,
            such as those from above or through a microscope; "upright" does not.
        cat_max_ratio: Part of a training crop that one class should cover at most, 0 to 1; other crops are drawn again,
            up to ten times.
        photometric: Probability of each change of a training image's colours, 0 to 1.
        on_error: What happens at an unreadable image: "skip" leaves it out, names and counts it; "fail" stops the run.
        seed: Seed of the run, and of the split.
        max_pixels: Number of pixels (height times width) above which an image counts as unreadable; null for no limit.
    """

    def __init__(
        self,
        root: str,
        classes: str | None = None,
        split: str | None = None,
        batch_size: int | Auto = "auto",
        num_workers: int | Auto = "auto",
        img_size: int | Auto = "auto",
        max_size: int | Auto = "auto",
        augment: bool = True,
        scale: tuple[float, float] = (0.5, 2.0),
        hflip: float = 0.5,
        orientation: Literal["upright", "any"] = "upright",
        cat_max_ratio: float = 1.0,
        photometric: float = 0.5,
        on_error: Literal["skip", "fail"] = "skip",
        seed: int = 42,
        max_pixels: int | None = MAX_PIXELS,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            img_size=img_size,
            max_size=max_size,
            augment=augment,
            scale=scale,
            hflip=hflip,
            orientation=orientation,
            cat_max_ratio=cat_max_ratio,
            photometric=photometric,
            on_error=on_error,
            seed=seed,
            max_pixels=max_pixels,
        )
        self.root = Path(root).expanduser()
        self.classes = classes
        self.split = split
        self._found = ""

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None before `setup`."""
        return len(self.class_names) or None

    @property
    def found(self) -> str:
        """After `setup`: images, splits and classes in one line."""
        return self._found

    def setup(self, stage: str) -> None:
        """Find images, masks and classes, which means to look through all masks; split, and decide what is "auto".

        Args:
            stage: what the Trainer is about to do.

        Raises:
            FileNotFoundError: there is no such folder.
            InputError: this is no such layout, a file has no partner, a mask another size than its image or a value
                that is no class, or there is a single class.
        """
        wanted = ("val", "train") if stage == "fit" else ("val",)
        if all(split in self._sets for split in wanted):
            return
        with hinting_at_kind(self.root, "segmentation"):
            folders = MaskFolders(self.root)
        pairs = {name: pair for own in folders.pairs.values() for name, pair in own.items()}
        shapes = _shapes(pairs)
        counts, classes = self._scan(list(pairs.values()))
        self.class_names = classes.names
        by_label = {
            name: {} if own is None else {label: own[v] for label, v in enumerate(classes.values) if v in own}
            for name, own in zip(pairs, counts, strict=True)
        }
        names, how = self._split(folders, by_label)
        if stage == "fit" and not names["train"]:
            raise InputError(f"data.root: {self.root} has images to validate with and none to train on")
        for split, own in names.items():
            self._pixels[split] = sum((Counter(by_label[name]) for name in own), Counter())
        decide_sizes(self, "img_size", self.img_size, shapes, len(names["train"]))
        for split in wanted:
            self._use(split, [pairs[name] for name in names[split]], classes)
        ignored = sum(count for own in counts if own for value, count in own.items() if value in classes.ignored)
        self._found = self._describe(folders, names, how, ignored)
        if warning := mixed_masks(counts, [str(pair.mask) for pair in pairs.values()], classes):
            rank_zero_warn(warning)

    def _scan(self, pairs: Sequence[MaskPair]) -> tuple[list[dict[int, int] | None], MaskClasses]:
        """Of each mask how many pixels have each value, and the classes."""
        file = Path(self.classes).expanduser() if self.classes else self.root / "classes.txt"
        if self.classes and not file.is_file():
            raise FileNotFoundError(f"data.classes: there is no file {file}")
        listing = listed_classes(file) if file.is_file() else None
        as_colours = listing is not None and listing.are_colours
        masks = [pair.mask for pair in pairs]
        counts = count_values(
            lambda i: read_mask(masks[i], self.max_pixels, as_colours), [str(path) for path in masks], str(self.root)
        )
        pixels: Counter[int] = Counter()
        first: dict[int, str] = {}
        for path, own in zip(masks, counts, strict=True):
            pixels.update(own or {})
            for value in own or {}:
                first.setdefault(value, str(path))
        if not pixels:
            raise InputError(f"data.root: none of the {len(masks)} masks can be read; the first is {masks[0]}")
        return counts, found_classes(pixels, first, self.root, listing, self.known_classes)

    def _split(self, folders: MaskFolders, by_label: dict[str, dict[int, int]]) -> tuple[dict[str, list[str]], str]:
        """The images of each split, and in words how they came there."""
        names = list(by_label)
        if self.split and not (self.split == EVERY and "val" in folders.pairs):
            chosen = read_split(self.split, names)
            how = f"by {self.split}"
        elif "val" in folders.pairs:
            return {split: list(folders.pairs.get(split, ())) for split in ("train", "val")}, "as the folders say"
        elif len(names) < 2:
            raise InputError(f"data.root: {self.root} has a single image, of which no part can validate")
        else:
            drawn = draw_split([set(by_label[name]) for name in names], self.seed)
            chosen = {name: "val" if val else "train" for name, val in zip(names, drawn, strict=True)}
            how = f"drawn by seed {self.seed}"
        self.split_rows = [(name, chosen[name]) for name in names]
        return {split: [name for name, own in self.split_rows if own == split] for split in ("train", "val")}, how

    def _describe(self, folders: MaskFolders, names: dict[str, list[str]], how: str, ignored: int) -> str:
        pixels = sum(self._pixels.values(), Counter())
        total = sum(pixels.values())
        shares = [f"{name} {pixels[label] / total:.1%}" for label, name in enumerate(self.class_names)]
        parts = [
            f"{sum(map(len, names.values()))} images with masks in {self.root}: {len(names['train'])} train, "
            f"{len(names['val'])} val ({how}); {len(self.class_names)} classes: {few(shares)}"
        ]
        numbers = [str(label) for label in range(len(self.class_names))]
        if list(self.class_names) != numbers and all(name.isdecimal() for name in self.class_names):
            parts.append(f"which are numbered 0 to {numbers[-1]} in this order")
        if ignored:
            parts.append(f"{ignored / (total + ignored):.1%} of the pixels ignored")
        for split, own in names.items():
            absent = [name for label, name in enumerate(self.class_names) if not self._pixels[split][label]]
            if own and absent:
                parts.append(f"no pixel in {split} of {few(absent)}")
        sides = {split: Listing.of_files(self.root, own) for split, own in names.items()}
        self.also_trained_on, equal = equal_images(**sides)
        parts += filter(None, [*folders.told, equal])
        return " ".join("; ".join(parts).split())  # one line, whatever the names


def _shapes(pairs: dict[str, MaskPair]) -> list[_Shape]:
    """Height and width of each image whose head can be read; each is to be that of its mask."""
    images, masks = (
        shown_shapes(pair.image for pair in pairs.values()),
        shown_shapes(pair.mask for pair in pairs.values()),
    )
    rows = list(zip(pairs.values(), images, masks, strict=True))
    for pair, image, mask in rows:
        if not image or not mask or image == mask:
            continue
        count = sum(bool(own and other and own != other) for _, own, other in rows)
        raise InputError(
            f"data.root: {pair.mask} is {mask[0]} high and {mask[1]} wide, its image {image[0]} and {image[1]} "
            f"({count} of {len(rows)} differ){frame_hint(str(pair.image), mask)}"
        )
    known = [image for image in images if image]
    if not known:
        raise InputError(f"data.root: none of the {len(rows)} images can be read; the first is {rows[0][0].image}")
    return known
