"""What every backbone of this package is: groups of mixers, and weights that tell what they are tied to."""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from timm.layers import get_device_dtype
from torch import Tensor, fx, nn

from softmaxfree.errors import InputError
from softmaxfree.mixers import AbstractMixer
from softmaxfree.mixers.mixer import own_arguments, plain
from softmaxfree.models.inputs import check_image, check_mask
from softmaxfree.models.loading import read_any_checkpoint, write_record
from softmaxfree.models.record import NAME, decode, encode, mismatch, record_of
from softmaxfree.models.released import checkpoint_filter_fn, other_shapes, require_fit
from softmaxfree.ops import AbstractPinvSolver

fx.wrap("check_image")  # torch.fx looks for what it is not to trace where it is called


class AbstractBackbone(nn.Module, abc.ABC):
    """A network around mixers.

    The state dict carries, as `record`, what the weights are tied to and their shapes do not tell (`models/record.py`).
    Loading sets what a mixer can change later, as solver and landmark budget, to that of the weights. It refuses
    weights of another function.
    """

    in_chans: int
    num_classes: int
    num_features: int
    min_img_size: int
    num_heads: tuple[int, ...]
    """Of each group of mixers."""
    global_pool: str
    output_stride: int
    feature_info: list[dict[str, Any]]
    """Of each stage its width, reduction and module (timm's convention)."""
    head: nn.Module

    @property
    @abc.abstractmethod
    def mixer_groups(self) -> list[list[AbstractMixer]]:
        """The mixers of each stage; of one kind and with the same arguments in each. None of a class token's stage."""

    @property
    @abc.abstractmethod
    def usual_pool(self) -> Literal["token", "avg"]:
        """The pooling that is the default."""

    @property
    def mixers(self) -> list[AbstractMixer]:
        """All mixers, in order."""
        return [mixer for group in self.mixer_groups for mixer in group]

    def keep_record(self, device: Any) -> None:
        """Lets the state dict carry the record; for the end of a constructor."""
        self.register_buffer(NAME, encode(record_of(self)).to(device))
        self.register_state_dict_post_hook(write_record)
        self.register_load_state_dict_pre_hook(read_any_checkpoint)

    @property
    def _model_args(self) -> dict[str, Any]:
        """What timm saves beside the weights: its own record, and what the weights have a say in."""
        return self.told_in(self.__dict__.get("_recorded_args", {}))

    @_model_args.setter
    def _model_args(self, args: dict[str, Any]) -> None:
        self.__dict__["_recorded_args"] = args

    @property
    def adjustable_args(self) -> dict[str, Any]:
        """What mixers can change later, and weights tell: of each argument that of the first mixer that has it."""
        return {key: mixer.config()[key] for mixer in reversed(self.mixers) for key in mixer.adjustable}

    def told_in(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Returns arguments of the call that made the network, with what is adjustable as it is now.

        Args:
            arguments: of the entry point.

        Returns:
            Those of a call that makes the same network.
        """
        told, now = dict(arguments), self.adjustable_args
        own = told.pop("mixer_args", None)
        configs = [group[0].config() if group else {} for group in self.mixer_groups]
        if any(config.get(key, value) != value for config in configs for key, value in now.items()):
            own = own if isinstance(own, Sequence) else [own or {}] * len(configs)
        if isinstance(own, Sequence):
            own = [
                {**(given or {}), **{key: config[key] for key in now if key in config}}
                for given, config in zip(own, configs, strict=True)
            ]
            told = {key: value for key, value in told.items() if key not in now}
        else:
            inside = {key: value for key, value in now.items() if key in (own or {})}
            own = {**own, **inside} if own else None
            told |= {key: value for key, value in now.items() if key not in inside}
        return told | ({"mixer_args": own} if own else {})

    @property
    def adjustable_defaults(self) -> dict[str, Any]:
        """Default of each argument of the mixers that can be set later, as plain data."""
        return {
            key: plain(own_arguments(type(mixer))[key].default) for mixer in self.mixers for key in mixer.adjustable
        }

    @property
    def solver(self) -> AbstractPinvSolver | None:
        """How the first mixer that does so inverts its landmark kernel matrix; None if none does."""
        mixers: list[Any] = self.mixers
        return next((own.solver for own in mixers if "solver" in own.adjustable), None)

    @property
    def landmark_grid(self) -> tuple[int, ...] | None:
        """The landmark budget of the first mixer with one; None for no budget."""
        mixers: list[Any] = self.mixers
        grid: Any = next((own.landmark_grid for own in mixers if "landmark_grid" in own.adjustable), "unbounded")
        return None if grid == "unbounded" else tuple(grid)

    def set_solver(self, solver: AbstractPinvSolver | Mapping[str, Any] | str) -> None:
        """Changes how every mixer inverts its landmark kernel matrix; the saved config follows."""
        self._adjust("solver", solver)

    def set_landmark_grid(self, landmark_grid: Sequence[int] | Literal["unbounded"] | None) -> None:
        """Changes the landmark budget of every mixer; the saved config follows."""
        self._adjust("landmark_grid", landmark_grid)

    def _adjust(self, key: str, value: Any) -> None:
        able = [mixer for mixer in self.mixers if key in mixer.adjustable]
        if not able:
            names = dict.fromkeys(mixer.name for mixer in self.mixers)
            raise InputError(f"{key}: no mixer of this network has one, they are {', '.join(names)}")
        for mixer in able:
            mixer.adjust(**{key: value})

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads our weights or released ones.

        Args:
            state_dict: the weights, of which none is loaded if they are refused.
            strict: refuse weights that are missing, left over or of another shape.
            assign: as for torch.

        Returns:
            The names of weights that are missing and left over.

        Raises:
            InputError: they do not fit, or were trained for another function.
        """
        weights = checkpoint_filter_fn(state_dict, self)
        if strict:
            require_fit(weights, self)
        if NAME in weights and (why := mismatch(self, decode(weights[NAME]), "head.weight" in weights)):
            raise InputError(why)
        if why := other_shapes(weights, self):
            raise InputError(why)
        return super().load_state_dict(weights, strict, assign)

    def get_classifier(self) -> nn.Module:
        """Returns the head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the head, and the pooling unless `global_pool` is None."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.set_pool(global_pool)
        factory: Any = get_device_dtype(self)
        self.head = nn.Linear(self.num_features, num_classes, **factory) if num_classes > 0 else nn.Identity()
        self.head.train(self.training)

    @abc.abstractmethod
    def set_pool(self, global_pool: str) -> None:
        """Changes the pooling; raises InputError for one that the network does not have."""

    def check(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Returns the images with zeros in the padding, and the mask, or None if there is no padding."""
        if not isinstance(mask, Tensor):  # None, or a proxy: torch.fx traces the network without a mask
            return check_image(x, self.in_chans, self.min_img_size, mask), None
        check_image(x, self.in_chans, self.min_img_size)
        return check_mask(mask, x, self.min_img_size, self.training)
