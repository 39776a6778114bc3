"""What a student learns: each block the teacher's outputs, then the whole its final features, then labels."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softmaxfree.linearize.activations import Activations, in_tokens
from softmaxfree.linearize.pictures import Pictures
from softmaxfree.linearize.settings import Settings
from softmaxfree.models.exchange import exchanged

__all__ = ["BlockError", "head_of", "learn_block", "learn_features", "learners", "order_of"]

_WARM_UP = 10  # steps
_HEAD_RATE = 10.0  # of a new head, in parts of the rate of mixers


class BlockError(NamedTuple):
    """Relative squared error of a block's attention on held-out pictures, and whether what it learned was kept."""

    block: int
    swapped: float
    learned: float
    kept: bool


def learners(student: nn.Module, train: str) -> dict[str, nn.Parameter]:
    """Returns the weights that learn, by name: of mixers, of all exchanged attention, or of all blocks.

    Args:
        student: the network.
        train: "mixer", "attention" or "all".

    Returns:
        The weights.
    """
    own = {id(p) for each in exchanged(student) for p in (each.mixer if train == "mixer" else each).parameters()}
    everything = dict(student.named_parameters())
    if train == "all":
        return {name: p for name, p in everything.items() if "blocks." in name}
    return {name: p for name, p in everything.items() if id(p) in own}


def head_of(student: Any) -> dict[str, nn.Parameter]:
    """Returns the weights of the head, of a distilled network of both, by name; none where it has no head."""
    own = student.get_classifier()
    kept = {id(p) for each in (own if isinstance(own, tuple) else (own,)) for p in each.parameters()}
    return {name: p for name, p in student.named_parameters() if id(p) in kept}


def learn_block(
    student: Any, block: int, activations: Activations, train: Sequence[int], held: Sequence[int], settings: Settings
) -> BlockError:
    """Trains the mixer of a block on what the teacher's attention gives; undoes it where held-out error grew.

    Args:
        student: the network.
        block: number of the block.
        activations: of the teacher.
        train: numbers of pictures.
        held: numbers of held-out pictures.
        settings: of the run.

    Returns:
        The errors.
    """
    attention = exchanged(student)[block].eval()
    weights, start = list(attention.mixer.parameters()), _copies(attention.mixer)
    scale = _layer_scale(student, attention)

    def error(numbers: Sequence[int], size: int) -> Tensor:
        seen = [activations.attention(i, size, block) for i in numbers]
        tokens = torch.cat([args[0] for args, _, _ in seen])
        args, kwargs, _ = seen[0]
        kwargs = {**kwargs, "attn_mask": student.grid_of((size, size))} if hasattr(student, "grid_of") else kwargs
        target = torch.cat([out for _, _, out in seen])
        out = attention(tokens, *args[1:], **kwargs)
        return _relative(out * scale, target * scale)

    def mean() -> float:
        with torch.no_grad():
            return sum(float(error([i], size)) for size in settings.size for i in held) / len(held) / len(settings.size)

    before = mean()
    if not weights or not settings.block_steps:
        return BlockError(block, before, before, True)
    optimizer = torch.optim.Adam(weights)
    order = order_of(train, settings, settings.block_steps, block)
    with _learning(weights):
        for step, numbers in enumerate(order):
            _set_rate(optimizer, settings.block_lr * _cosine(step, settings.block_steps))
            _step(optimizer, error(numbers, settings.size[step % len(settings.size)]), weights)
    after = mean()
    kept = after <= before  # nan too is undone
    if not kept:
        attention.mixer.load_state_dict(start)
    return BlockError(block, before, after, kept)


def learn_features(
    student: Any,
    activations: Activations,
    pictures: Pictures,
    settings: Settings,
    state: dict[str, Any],
    labels: Sequence[int] | None = None,
    new_head: bool = True,
) -> Iterator[tuple[int, float]]:
    """Trains a network on the teacher's final features, with labels on those and a head.

    Args:
        student: the network; with labels it has a head.
        activations: of the teacher.
        pictures: to learn from.
        settings: of the run.
        state: `step` and `optimizer` of an interrupted stage, which goes on; kept up to date.
        labels: number of the class of each picture; None for none.
        new_head: whether the head has learned nothing yet, and so needs larger steps than what is trained.

    Yields:
        After each step its number from 1, and the loss.
    """
    own = {id(p) for each in exchanged(student) for p in each.mixer.parameters()}
    body = list(learners(student, settings.train).values())
    fast, slow = ([p for p in body if (id(p) in own) == quick] for quick in (True, False))
    head = [] if labels is None else list(head_of(student).values())
    rates = ((fast, 1.0), (slow, 0.1), (head, _HEAD_RATE if new_head else 1.0))
    groups = [{"params": part, "rate": rate} for part, rate in rates if part]
    steps = settings.steps if labels is None else settings.label_steps
    weights = [*body, *head]
    if not weights or not steps:
        return
    optimizer = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=0.0)
    if state.get("optimizer"):
        optimizer.load_state_dict(state["optimizer"])
    order = order_of(pictures.train, settings, steps, -1 if labels is None else -2)
    centre = {
        size: activations.features(pictures.train[: settings.block_images], size)[:, 0].mean(0)
        for size in settings.size
    }
    student.eval()  # no dropout: the features are to be the teacher's
    with _learning(weights):
        for step in range(state.get("step", 0), steps):
            numbers, size = order[step], settings.size[step % len(settings.size)]
            x = pictures.batch(numbers, size, student)
            target = activations.features(numbers, size).to(x.device)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=settings.bf16):
                features = student.forward_features(x)
                logits = None if labels is None else student.forward_head(features)
            out = in_tokens(features).float()
            loss = _distance(out, target, getattr(student, "num_prefix_tokens", 0), centre[size].to(x.device))
            if logits is not None and labels is not None:
                loss = loss + F.cross_entropy(
                    logits.float(), torch.tensor([labels[i] for i in numbers], device=x.device)
                )
            _set_rate(optimizer, settings.lr * min(1.0, (step + 1) / _WARM_UP) * _cosine(step, steps))
            _step(optimizer, loss, weights)
            state |= {"step": step + 1, "optimizer": optimizer.state_dict()}
            yield step + 1, float(loss.detach())


def _distance(out: Tensor, target: Tensor, prefix: int, centre: Tensor) -> Tensor:
    """Relative squared error of the patches, plus that of the class token around the mean of all images."""
    loss = _relative(out[:, prefix:], target[:, prefix:])
    if prefix:
        spread = (target[:, 0] - centre).square().sum() + 1e-6
        loss = loss + (out[:, 0] - target[:, 0]).square().sum() / spread
    return loss


def _relative(out: Tensor, target: Tensor) -> Tensor:
    return (out - target).square().sum() / target.square().sum().clamp(min=1e-12)


def order_of(numbers: Sequence[int], settings: Settings, steps: int, stage: int) -> list[list[int]]:
    """Returns the pictures of each step, the same for the same seed, so that a run goes on as it would have.

    Args:
        numbers: of the pictures.
        settings: of the run.
        steps: how many.
        stage: number of the block, -1 for the features, -2 for labels.

    Returns:
        The numbers of each step.
    """
    generator = torch.Generator().manual_seed(1000 * settings.seed + stage + 10)
    count = steps * settings.batch_size
    rounds = [torch.randperm(len(numbers), generator=generator) for _ in range(math.ceil(count / len(numbers)))]
    drawn = torch.cat(rounds)[:count].tolist() if rounds else []
    size = settings.batch_size
    return [[numbers[i] for i in drawn[at : at + size]] for at in range(0, count, size)]


def _layer_scale(student: nn.Module, attention: nn.Module) -> Tensor:
    """What the block multiplies its attention by: part of the error that the features see."""
    for block in student.modules():
        if getattr(block, "attn", None) is attention:
            own = getattr(getattr(block, "ls1", None), "gamma", None)
            own = getattr(block, "gamma_1", None) if own is None else own
            if own is not None:
                return own.detach()
    return torch.ones(())


def _copies(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


class _learning:
    """Lets only these weights have gradients, and afterwards none."""

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self._weights = weights

    def __enter__(self) -> None:
        for weight in self._weights:
            weight.requires_grad_(True)

    def __exit__(self, *_: object) -> None:
        for weight in self._weights:
            weight.requires_grad_(False)
            weight.grad = None


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate", 1.0)


def _cosine(step: int, steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def _step(optimizer: torch.optim.Optimizer, loss: Tensor, weights: Sequence[nn.Parameter]) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(weights, 1.0, error_if_nonfinite=False)
    if all(weight.grad is None or bool(weight.grad.isfinite().all()) for weight in weights):
        optimizer.step()
