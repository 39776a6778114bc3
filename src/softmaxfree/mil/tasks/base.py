"""What the tasks of bags share: the network, what it is given, and instances that have labels."""

import inspect
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from softmaxfree.arguments import require, require_known, require_whole
from softmaxfree.errors import InputError
from softmaxfree.mil import create_bag_model, list_bag_models
from softmaxfree.mil.checkpoints import read_transmil
from softmaxfree.mil.data.bag import BagBatch
from softmaxfree.mil.registry import bag_model_arguments
from softmaxfree.mil.transmil import TransMIL
from softmaxfree.models.parts import Parts
from softmaxfree.tasks.memory import tells_memory
from softmaxfree.tasks.sources import Source, read_source
from softmaxfree.tasks.training import AbstractTask

__all__ = ["AbstractBagTask"]

_UNSEEN = (
    "pad_mode",
    "act",
    "num_heads",
    "conv_kernel",
    "project_out",
    "embed_layers",
)  # by weights


class AbstractBagTask(AbstractTask):
    """Trains a network of bags by the loss of a subclass. Arguments: see `AbstractTask`."""

    of_timm = False
    target: ClassVar[str]
    """Kind of labels that it learns: "class" or "survival"."""
    size_scores: list[dict[str, Any]]
    """Scores by size of the bags, after a validation or a test; a row a size."""

    @classmethod
    def shared_arguments(cls) -> set[str]:
        """Return the arguments that all networks of bags take."""
        return set.intersection(*(set(bag_model_arguments(name)) for name in list_bag_models()))

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
        self.takes_coords = "step" in inspect.signature(model.forward).parameters
        return model

    def forward(self, batch: BagBatch) -> Tensor:
        """Return logits (B, num_classes) of bags, float32 also under autocast."""
        more: dict[str, Any] = {"step": batch.step} if self.takes_coords else {}
        return self.model(batch.features, mask=batch.mask, coords=batch.coords, **more).float()

    def setup(self, stage: str) -> None:
        """Compare the network with the data.

        Args:
            stage: what the Trainer is about to do.

        Raises:
            InputError: the data has other classes, labels of another kind, or features of another width.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        target = getattr(data, "target", self.target)
        require(target == self.target, "data.target", target, f"{self.target!r} for {type(self).__name__}")
        super().setup(stage)
        if self.takes_coords and hasattr(data, "with_coords"):
            data.hparams["use_coords"] = data.with_coords  # checkpoints tell what "auto" was
        width = getattr(data, "in_dim", None)
        if width not in (None, self.hparams["in_dim"]):
            raise InputError(f"model.in_dim is {self.hparams['in_dim']}, but the features have {width} numbers")

    def source_reader(self, given: str) -> Source:
        """Read weights to start from: also those of TransMIL by other libraries, under the names that it has here.

        Args:
            given: as for `read_source`.

        Returns:
            The weights.

        Raises:
            InputError: they cannot be read, are of unknown origin, or were trained with other arguments that weights
                do not show.
        """
        source = read_source(given)
        path = Path(given).expanduser()
        if self.hparams["name"] != "transmil" or not path.is_file() or "head.weight" in source.weights:
            return source
        given_args = self.hparams["model_args"] or {}
        own = {**_defaults(TransMIL), **given_args}
        told = {key: own[key] for key in ("num_heads", "num_landmarks", "iterations")}
        told["pad_mode"] = given_args.get("pad_mode")  # which the original's weights do not tell: no default holds
        try:
            arguments, weights = read_transmil(path, **told)
        except InputError as error:
            raise InputError(f"model.init_from: {error}") from error
        for key in _UNSEEN:
            if arguments[key] != own[key]:
                raise InputError(
                    f"model.init_from: {path} was trained with {key} {arguments[key]}: give "
                    f"--model.model_args.{key} {arguments[key]}"
                )
        return source._replace(weights=weights, model="transmil", num_classes=arguments["num_classes"])

    @abstractmethod
    def probabilities_of(self, logits: Tensor) -> Tensor:
        """Return the probability of each class or bin of time, (B, num_classes), by logits of the same shape."""

    def probabilities(self, batch: BagBatch) -> Tensor:
        """Return what is predicted of bags: the probability of each class or bin of time, (B, num_classes)."""
        return self.probabilities_of(self(batch))

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


def _defaults(cls: type) -> dict[str, Any]:
    return {key: parameter.default for key, parameter in inspect.signature(cls).parameters.items()}
