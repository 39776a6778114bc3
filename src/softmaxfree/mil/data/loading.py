"""How bags of every data module come to a training."""

from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from softmaxfree.data.loaders import eval_loader, train_loader
from softmaxfree.mil.data.bag import collate

__all__ = ["AbstractBagsDataModule"]


class AbstractBagsDataModule(LightningDataModule):
    """Loads `bags["train"]`, `bags["val"]` and `bags["test"]`, which `setup` makes."""

    bags: dict[str, Any]
    batch_size: int
    num_workers: int
    seed: int

    def train_dataloader(self) -> DataLoader:
        """Return the loader of the training bags."""
        return train_loader(self.bags["train"], seed=self.seed, **self._loading)

    def val_dataloader(self) -> DataLoader:
        """Return the loader of the validation bags."""
        return eval_loader(self.bags["val"], **self._loading)

    def test_dataloader(self) -> DataLoader:
        """Return the loader of the test bags."""
        return eval_loader(self.bags["test"], **self._loading)

    @property
    def _loading(self) -> dict[str, Any]:
        """Each worker holds one batch: bags are large."""
        own = {"batch_size": self.batch_size, "num_workers": self.num_workers, "collate_fn": collate}
        return {**own, "trainer": self.trainer, "prefetch": 1}
