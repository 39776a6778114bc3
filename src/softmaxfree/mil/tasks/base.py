"""What the tasks of bags share: the network, what it is given, and instances that have labels."""

import inspect
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from softmaxfree.arguments import require_known, require_whole
from softmaxfree.errors import InputError
from softmaxfree.mil import create_bag_model, list_bag_models
from softmaxfree.mil.data.bag import BagBatch
from softmaxfree.models.parts import Parts
from softmaxfree.tasks.memory import tells_memory
from softmaxfree.tasks.training import AbstractTask

__all__ = ["AbstractBagTask"]


class AbstractBagTask(AbstractTask):
    """Trains a network of bags by the loss of a subclass. Arguments: see `AbstractTask`."""

    of_timm = False
    size_scores: list[dict[str, Any]]
    """Scores by size of the bags, after a validation or a test; a row a size."""

    def architecture(self) -> tuple[str, dict[str, Any]]:
        """Return the network's name and its arguments."""
        return str(self.hparams["name"]), dict(self.hparams["model_args"] or {})

    def make_model(self, name: str, num_classes: int, in_dim: int, model_args: Mapping[str, Any] | None) -> nn.Module:
        """Return the network.

        Args:
            name: of `list_bag_models`.
            num_classes: outputs.
            in_dim: numbers of a patch.
            model_args: of the network itself.

        Returns:
            The network, which knows which of its layers is that of the classes.

        Raises:
            InputError: there is no such network or argument.
        """
        require_known("model.name", name, list_bag_models())
        require_whole("model.in_dim", in_dim, 1)
        if self._init_from == "pretrained":
            raise InputError("model.init_from: there are no published weights of bag networks here; give a file")
        try:
            model = create_bag_model(name, num_classes=num_classes, in_dim=in_dim, **(model_args or {}))
        except InputError as error:
            raise InputError(f"model.model_args: {error}") from error
        heads = [key for key, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == num_classes]
        model.parts = Parts("", tuple(heads[-1:]))  # type: ignore[assignment]
        self._takes_step = "step" in inspect.signature(model.forward).parameters
        return model

    def forward(self, batch: BagBatch) -> Tensor:
        """Return logits (B, num_classes) of bags, float32 also under autocast."""
        more: dict[str, Any] = {"step": batch.step} if self._takes_step else {}
        return self.model(batch.features, mask=batch.mask, coords=batch.coords, **more).float()

    def setup(self, stage: str) -> None:
        """Compare the network with the data.

        Args:
            stage: what the Trainer is about to do.

        Raises:
            InputError: the data has other classes, or features of another width.
        """
        super().setup(stage)
        data: Any = getattr(self.trainer, "datamodule", None)
        width = getattr(data, "in_dim", None)
        if width not in (None, self.hparams["in_dim"]):
            raise InputError(f"model.in_dim is {self.hparams['in_dim']}, but the features have {width} numbers")

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the training loss, a scalar, of logits (B, num_classes) and labels as in `BagBatch`."""

    @tells_memory
    def training_step(self, batch: BagBatch, batch_idx: int) -> Tensor:
        """Return the loss of a batch.

        Args:
            batch: bags.
            batch_idx: number of the batch in its epoch.

        Returns:
            The mean loss, a scalar.

        Raises:
            InputError: the loss is not finite.
        """
        loss = self.loss(self(batch), batch.labels)
        self.log_loss(loss, batch_idx, len(batch.labels))
        return loss
