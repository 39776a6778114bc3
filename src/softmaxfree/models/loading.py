"""What happens to a state dict as it leaves a model or enters one, at any depth of a network."""

from typing import TYPE_CHECKING

from softmaxfree.models.record import NAME, adopt, decode, encode, mismatch, record_of
from softmaxfree.models.released import checkpoint_filter_fn, other_shapes

if TYPE_CHECKING:
    from softmaxfree.models.backbone import AbstractBackbone


def write_record(model: "AbstractBackbone", state_dict, prefix, *_) -> None:
    """Writes the record anew: averaging or `to_empty` may have spoilt the buffer, and calls have changed the model."""
    if (name := prefix + NAME) in state_dict:
        state_dict[name] = encode(record_of(model)).to(state_dict[name].device)


def read_any_checkpoint(model: "AbstractBackbone", state_dict, prefix, *rest) -> None:
    """Lets `load_state_dict`, and so timm's `checkpoint_path=`, take everything that `checkpoint_filter_fn` takes."""
    ours = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
    for name in ours:
        del state_dict[prefix + name]
    ours = checkpoint_filter_fn(ours, model)
    record = decode(ours[NAME]) if NAME in ours else {}
    other = mismatch(model, record, "head.weight" in ours) if NAME in ours else None
    if why := other or other_shapes(ours, model):
        rest[-1].append(why)  # the errors that torch raises at the end
        ours = dict(model.state_dict())  # nothing changes
    elif any(".attn." in name for name in ours):  # a head alone says nothing of the mixers
        adopt(model, record)
    if NAME in ours:
        ours[NAME] = encode(record_of(model))
    state_dict.update({prefix + name: value for name, value in ours.items()})
