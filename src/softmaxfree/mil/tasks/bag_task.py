"""What the tasks of bags share: the network, what it is given, and instances that have labels."""

import inspect
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from softmaxfree.arguments import require, require_whole
from softmaxfree.errors import InputError
from softmaxfree.mil import create_bag_model, list_bag_models
from softmaxfree.mil.checkpoints import read_transmil
from softmaxfree.mil.data.bag import BagBatch
from softmaxfree.mil.registry import bag_model_arguments, require_bag_model
from softmaxfree.mil.tasks.scores import Kept, Predicted
from softmaxfree.mil.transmil import TransMIL
from softmaxfree.models.parts import Parts
from softmaxfree.tasks.memory import tells_memory
from softmaxfree.tasks.precision import require_exact
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
    predicted: dict[str, Predicted]
    """Of the splits "val" and "test", once they were measured."""

    def start(self) -> None:
        """Read the weights to start from, as `AbstractTask.start`."""
        super().start()
        self.kept = Kept()
        self.size_scores, self.predicted = [], {}

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
        require_bag_model("model.name", name)
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
            InputError: the data has other classes, labels of another kind, or features of another width; or all
                numbers are to have half the bits.
        """
        require_exact(self.trainer.precision, "coordinates and times")
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
    def label_cells(self, labels: Tensor, outputs: Tensor, class_names: Sequence[str]) -> dict[str, Any]:
        """Return what a table of predictions tells of a bag's label, by its labels and outputs (num_classes,)."""

    def prediction_rows(self, data: Any) -> list[dict[str, Any]]:
        """Return what was predicted of each bag that validated and tested, and its label.

        Args:
            data: the data module that was measured.

        Returns:
            Rows of the split, the name of the bag, its case if cases are known, its number of patches, its label, the
            likeliest class and the probability of each.
        """
        rows, names, cases = [], list(data.class_names), getattr(data, "cases", {})
        for split, found in self.predicted.items():
            probabilities = self.probabilities_of(found.outputs).tolist()
            of_bags = zip(found.outputs, found.labels, found.lengths.tolist(), found.numbers.tolist(), strict=True)
            for each, (outputs, labels, length, number) in zip(probabilities, of_bags, strict=True):
                name = data.bags[split].filename(number)
                of_case = {"case_id": cases[name]} if cases else {}
                of_bag = {"split": split, f"{data.unit}_id": name, **of_case, "patches": length}
                told = {"predicted": names[each.index(max(each))]}
                told |= {f"p_{name}": round(p, 6) for name, p in zip(names, each, strict=True)}
                rows.append({**of_bag, **self.label_cells(labels, outputs, names), **told})
        return rows

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
