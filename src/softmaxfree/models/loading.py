"""What happens to a state dict as it leaves a model or enters one, at any depth of a network."""

from typing import TYPE_CHECKING

from softmaxfree.models.record import NAME, adopt, decode, encode, mismatch, record_of
from softmaxfree.models.released import checkpoint_filter_fn, same_shapes

if TYPE_CHECKING:
    from softmaxfree.models.pyramid import SoftmaxFreeTransformer


def write_record(model: "SoftmaxFreeTransformer", state_dict, prefix, *_) -> None:
    """Writes the record anew: averaging or `to_empty` may have spoilt the buffer, and calls have changed the model."""
    if (name := prefix + NAME) in state_dict:
        state_dict[name] = encode(record_of(model)).to(state_dict[name].device)


def read_any_checkpoint(model: "SoftmaxFreeTransformer", state_dict, prefix, *rest) -> None:
    """Lets `load_state_dict`, and so timm's `checkpoint_path=`, take everything that `checkpoint_filter_fn` takes."""
    ours = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    for name in ours:
        del state_dict[prefix + name]
    ours = checkpoint_filter_fn(ours, model)
    if NAME in ours:
        record = decode(ours[NAME])
        if why := mismatch(model, record, "head.weight" in ours):
            rest[-1].append(why)  # the errors that torch raises at the end
        elif same_shapes(ours, model):  # else these weights are not loaded either
            adopt(model, record)
        ours[NAME] = encode(record_of(model))
    state_dict.update({prefix + name: value for name, value in ours.items()})
