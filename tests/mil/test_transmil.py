"""TransMIL: golden files of four libraries, ragged batches, checkpoints, bad input."""

import json

import pytest
import torch
from torch import Tensor, nn

from softmaxfree.errors import InputError
from softmaxfree.mil import TransMIL
from softmaxfree.mil.checkpoints import read_transmil
from tests.golden_files import below, load
from tests.mil.golden import BITS, MAX_ERROR, MAX_GRADIENT_ERROR, distance, tensors, transmil, weights

both_precisions = pytest.mark.parametrize("dtype", list(BITS), ids=str)
MODES = ["official", "official-0.0.9", "none"]
TOLD = {"transmil": {"pad_mode": "official"}, "transmil_millab": {}, "transmil_torchmil": {"num_heads": 4}}


@both_precisions
@pytest.mark.parametrize(("pad_mode", "file"), [("official", "transmil"), ("official-0.0.9", "transmil_nystrom_0_0_9")])
def test_logits_of_the_original(pad_mode, file, dtype):
    model, bags, expected = transmil(dtype, pad_mode), tensors("transmil"), tensors(file)
    for n in (50, 49, 3, 1):
        logits, bag = expected[f"logits{BITS[dtype]}_{n}"], bags[f"x_{n}"].to(dtype)
        assert distance(model(bag), logits) < MAX_ERROR[dtype]
        assert torch.equal(model(bag[0]), model(bag))


def test_gradients_of_the_original():
    golden, model = tensors("transmil"), transmil()
    x = golden["x_50"].double().requires_grad_()
    (model(x) * golden["grad_logits"]).sum().backward()
    assert distance(x.grad, golden["grad_x64_50"]) < MAX_GRADIENT_ERROR
    _, expected = read_transmil(below(golden, "grad64."), pad_mode="official")
    assert expected.keys() == dict(model.named_parameters()).keys()
    for key, parameter in model.named_parameters():
        assert distance(parameter.grad, expected[key]) < MAX_GRADIENT_ERROR, key


@both_precisions
@pytest.mark.parametrize("file", ["transmil_millab", "transmil_torchmil"])
def test_logits_of_the_others(file, dtype):
    model, golden = TransMIL.from_checkpoint(weights(file), **TOLD[file]).to(dtype), tensors(file)
    expected = golden[f"logits{BITS[dtype]}_50"].reshape(1, -1)
    assert distance(model(golden["x_50"].to(dtype)), expected) < MAX_ERROR[dtype]


@pytest.mark.parametrize("file", TOLD)
def test_tokens_of_each_layer(file):
    model, golden = TransMIL.from_checkpoint(weights(file), **TOLD[file]).double(), tensors(file)
    bag = golden["x_50"].double()[0]
    for i, own in enumerate(model.layers):
        entering = own.norm(model.inputs(bag, i))
        assert distance(entering[:, :4], golden[f"attention_in64.{i}"]) < MAX_ERROR[torch.float64]
        assert distance(own.attn(entering)[:, :4], golden[f"attention_out64.{i}"]) < MAX_ERROR[torch.float64]
        if f"cls_row64.{i}" in golden:
            assert distance(own.attn.row(entering, 0)[0][None], golden[f"cls_row64.{i}"]) < MAX_ERROR[torch.float64]


def _uniform(number: int, shape: tuple[int, ...]) -> Tensor:
    """The numbers that the metadata of transmil_full describes."""
    h = (torch.arange(torch.Size(shape).numel()) + (number + 1) * 2**24) % 2**32
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        h = h ^ (h >> shift)
        low, high = h & 0xFFFF, h >> 16  # the product of both is beyond 64 bits
        h = (low * factor + ((high * factor) % 2**16) * 2**16) % 2**32
    h = h ^ (h >> 16)
    return ((h.double() / 2**32 - 0.5) * 12**0.5).view(shape)


def _full_weights(metadata: dict[str, str]) -> dict[str, Tensor]:
    shapes = {key: value.shape for key, value in _as_original(TransMIL(2)).items()}
    state = {}
    for number, key in enumerate(json.loads(metadata["keys"])):
        u, shape = _uniform(number, tuple(shapes[key])), shapes[key]
        if key == "cls_token":
            state[key] = u
        elif len(shape) == 1:
            state[key] = 0.2 * u + float("norm" in key and key.endswith("weight"))
        else:
            state[key] = u / shape[1:].numel() ** 0.5
        state[key] = state[key].float()
        if key in json.loads(metadata["first_entries"]):
            assert state[key].flatten()[:3].tolist() == json.loads(metadata["first_entries"])[key]
    return state


def _as_original(model: TransMIL) -> dict[str, Tensor]:
    names = (("embed.", "_fc1."), ("head.", "_fc2."), ("layers.0.", "layer1."), ("layers.1.", "layer2."))
    out = {}
    for key, value in model.state_dict().items():
        for ours, theirs in names:
            if key.startswith(ours):
                key = theirs + key.removeprefix(ours)
        out[key] = value
    return out


@pytest.fixture(scope="module")
def full() -> tuple[dict[str, Tensor], TransMIL]:
    golden, metadata = load("mil/transmil_full")
    return golden, TransMIL.from_checkpoint(_full_weights(metadata), pad_mode="official")


@both_precisions
@pytest.mark.parametrize("n", [50, 300])
def test_logits_at_full_size(full, n, dtype):
    golden, model = full
    bag = _uniform(100, (1, n, 1024)).float().to(dtype)
    with torch.no_grad():
        assert distance(model.to(dtype)(bag), golden[f"logits{BITS[dtype]}_{n}"]) < MAX_ERROR[dtype]


@pytest.mark.parametrize("n", [50, 300])
def test_gradients_at_full_size(full, n):
    golden, model = full
    model = model.double()
    model.zero_grad()
    x = _uniform(100, (1, n, 1024)).float().double().requires_grad_()
    model(x)[0, 1].backward()
    assert distance(x.grad[0, :4, :8], golden[f"grad_x64_{n}.slice"]) < MAX_GRADIENT_ERROR
    for key, value in _as_original(_Gradients(model)).items():
        assert distance(value.flatten()[:8], golden[f"grad64_{n}.{key}.slice"]) < MAX_GRADIENT_ERROR, key


class _Gradients:
    """Looks like a model whose weights are its gradients."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, Tensor]:
        return {key: parameter.grad for key, parameter in self.model.named_parameters()}


@pytest.mark.parametrize("pad_mode", MODES)
def test_bags_of_a_batch_are_as_alone_bit_for_bit(pad_mode):
    model, golden = transmil(torch.float32, pad_mode), tensors("transmil")
    bags = [golden[f"x_{n}"][0].clone() for n in (50, 49, 3, 1)]
    x, mask = torch.full((4, 70, 12), torch.nan), torch.zeros(4, 70, dtype=torch.uint8)
    for i, bag in enumerate(bags):
        x[i, : len(bag)], mask[i, : len(bag)] = bag, 1
    logits = model(x.requires_grad_(), mask)
    tokens = model.tokens(x, mask)
    assert tokens.shape == (4, 70, 16)
    for i, bag in enumerate(bags):
        assert torch.equal(logits[i : i + 1], model(bag))
        assert torch.equal(tokens[i, : len(bag)], model.tokens(bag)[0])
        assert not tokens[i, len(bag) :].any()
    logits.sum().backward()
    assert torch.equal(x.grad[mask == 0], torch.zeros_like(x.grad[mask == 0]))
    assert x.grad[mask == 1].any()


def test_pad_modes_differ():
    bag = tensors("transmil")["x_50"].double()
    first, second, third = (transmil(pad_mode=mode)(bag) for mode in MODES)
    assert min(distance(first, second), distance(first, third), distance(second, third)) > 0.01


def test_without_padding_copies_do_not_occur():
    model, bag = transmil(pad_mode="none"), tensors("transmil")["x_50"].double()[0]
    assert model.inputs(bag, 2).shape == (1, 51, 16)
    grid = torch.zeros(1, 16, 8, 8, dtype=torch.float64)
    entering = model.layers[0](model.inputs(bag, 0))[0, 1:]
    grid.view(16, 64)[:, :50] = entering.mT
    own = model.pos_layer
    expected = (grid + own.proj(grid) + own.proj1(grid) + own.proj2(grid)).view(16, 64)[:, :50].mT
    torch.testing.assert_close(model.inputs(bag, 1)[0, 1:], expected, rtol=0, atol=1e-14)


def test_autocast():
    model = transmil(torch.float32)
    for dtype, sizes in ((torch.bfloat16, (50, 49)), (torch.float16, (50, 49, 3, 1))):
        for n in sizes:
            bag = tensors("transmil")[f"x_{n}"]
            with torch.autocast("cpu", dtype):
                logits = model(bag)
            torch.testing.assert_close(logits, model(bag), rtol=0, atol=1e-2)


@pytest.mark.parametrize("file", TOLD)
@pytest.mark.parametrize("prefix", ["", "module.", "model."])
@pytest.mark.parametrize("below_key", ["", "state_dict"])
def test_checkpoints_are_told_by_their_keys(tmp_path, file, prefix, below_key):
    state = {prefix + key: value for key, value in weights(file).items()}
    torch.save({below_key: state, "epoch": 3} if below_key else state, tmp_path / "model.pt")
    model = TransMIL.from_checkpoint(tmp_path / "model.pt", **TOLD[file])
    golden = tensors(file)
    assert not model.training
    assert distance(model(golden["x_50"]), golden["logits32_50"].reshape(1, -1)) < MAX_ERROR[torch.float32]


@pytest.mark.parametrize("file", TOLD)
@pytest.mark.parametrize("prefix", ["model.", "net.", "module.model._orig_mod."])
@pytest.mark.parametrize("below_keys", [("state_dict",), ("model_state_dict",), ("states", "net")])
def test_weights_are_found_among_others(tmp_path, file, prefix, below_keys):
    given = {prefix + key: value for key, value in weights(file).items()}
    given |= {"loss.weight": torch.ones(2), "criterion.pos_weight": torch.ones(1)}
    for key in reversed(below_keys):
        given = {"epoch": 3, key: given}
    torch.save(given, tmp_path / "model.ckpt")
    golden = tensors(file)
    for source in (given, tmp_path / "model.ckpt"):
        model = TransMIL.from_checkpoint(source, **TOLD[file])
        assert distance(model(golden["x_50"]), golden["logits32_50"].reshape(1, -1)) < MAX_ERROR[torch.float32]


def test_of_two_networks_none_is_taken():
    state = weights("transmil")
    zeros = {key: torch.zeros_like(value) for key, value in state.items()}
    for source in (
        {"model_ema": zeros, "model": state},
        {f"{p}.{k}": w for p in ("ema", "net") for k, w in state.items()},
    ):
        with pytest.raises(
            InputError, match=r"the state dict holds several networks, below (model_ema and model|ema and net):"
        ):
            TransMIL.from_checkpoint(source, pad_mode="official")


def test_what_is_no_checkpoint():
    for source in (None, [1]):
        with pytest.raises(InputError, match="a checkpoint must be a file or a state dict, got"):
            TransMIL.from_checkpoint(source)
    state = {key: value for key, value in weights("transmil").items() if not key.startswith("_fc1")}
    with pytest.raises(InputError, match="the weights of _fc1 are missing: TransMIL or MIL_BASELINE has an embedding"):
        TransMIL.from_checkpoint(state, pad_mode="official")


def test_its_own_weights():
    model, bag = transmil(torch.float32, "none"), tensors("transmil")["x_50"]
    again = TransMIL.from_checkpoint(model.state_dict(), pad_mode="none")
    assert torch.equal(again(bag), model(bag))
    with pytest.raises(InputError, match="pad_mode must be given for the state dict: softmaxfree does not store which"):
        TransMIL.from_checkpoint(model.state_dict())


@pytest.mark.parametrize("file", TOLD)
def test_each_weight_that_is_missing_or_of_another_shape_is_named(file):
    state = weights(file)
    for key in state:
        if ".norm2." in key:
            continue
        with pytest.raises(InputError, match=r"the weight \S+ (is missing|belongs to)|must be given|no TransMIL of"):
            TransMIL.from_checkpoint({own: w for own, w in state.items() if own != key}, **TOLD[file])
        for wrong in (torch.zeros(()), torch.zeros(3, 5)):
            with pytest.raises(InputError, match=r"the weight \S+ is \([\d, ]*\), not \("):
                TransMIL.from_checkpoint(state | {key: wrong}, **TOLD[file])


def test_a_layer_that_the_original_has_is_not_missed():
    file = next(file for file in TOLD if any(key.startswith("layer1.") for key in weights(file)))
    half = {key: weight for key, weight in weights(file).items() if not key.startswith("layer2.")}
    with pytest.raises(InputError, match="the weights of layer2 are missing: TransMIL or MIL_BASELINE has two layers"):
        TransMIL.from_checkpoint(half, **TOLD[file])
    with pytest.raises(InputError, match="embed_dim must be a whole number, 1 or more, got 'a'"):
        TransMIL(2, embed_dim="a")


def test_an_embedding_of_two_layers_and_none():
    state = weights("transmil_millab")
    state |= {"patch_embed.3.weight": torch.eye(16), "patch_embed.3.bias": torch.zeros(16)}
    model, golden = TransMIL.from_checkpoint(state), tensors("transmil_millab")
    assert distance(model(golden["x_50"]), golden["logits32_50"]) < MAX_ERROR[torch.float32]  # a ReLU twice is one
    state = {key: value for key, value in weights("transmil_torchmil").items() if not key.startswith("fc1")}
    assert TransMIL.from_checkpoint(state, num_heads=4)(torch.randn(5, 16).half()).shape == (1, 1)


def test_what_a_checkpoint_does_not_tell_is_asked_for(tmp_path):
    torch.save(weights("transmil"), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"pad_mode must be given for .*w.pt: TransMIL or MIL_BASELINE does not store"):
        TransMIL.from_checkpoint(tmp_path / "w.pt")
    with pytest.raises(InputError, match="num_heads must be given for the state dict: torchmil does not store it"):
        TransMIL.from_checkpoint(weights("transmil_torchmil"))
    with pytest.raises(InputError, match="num_heads must be 4 for the state dict, as its weights are, got 8"):
        TransMIL.from_checkpoint(weights("transmil_millab"), num_heads=8)


def test_bad_checkpoints_are_named(tmp_path):
    torch.save({"fc.weight": torch.zeros(2, 3)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other.pt is no TransMIL of a known origin: .*; found are fc.weight"):
        TransMIL.from_checkpoint(tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"there is no file .*none\.pt"):
        TransMIL.from_checkpoint(tmp_path / "none.pt")
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "code.pt")
    with pytest.raises(InputError, match=r"code\.pt is refused: torch\.nn"):
        TransMIL.from_checkpoint(tmp_path / "code.pt")
    state = weights("transmil_torchmil") | {"layers.0.mlp.weight": torch.zeros(2)}
    with pytest.raises(InputError, match=r"the weight layers\.0\.mlp\.weight belongs to no part of the network"):
        TransMIL.from_checkpoint(state, num_heads=4)
    state = weights("transmil") | {"norm.bias": torch.zeros(3)}
    with pytest.raises(InputError, match=r"the weight norm.bias is \(3,\), not \(16,\)"):
        TransMIL.from_checkpoint(state, pad_mode="official")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"num_classes": 0}, "num_classes must be 1 or more, got 0"),
        ({"num_heads": 3}, "num_heads must divide the width 512, got 3"),
        ({"embed_layers": 0}, "embed_layers must be 1 or more where in_dim is not embed_dim, got 0"),
        ({"act": "swish"}, "act: there is no 'swish'"),
        ({"conv_kernel": 2}, "residual_conv_kernel must be odd, got 2"),
    ],
)
def test_bad_arguments_are_named(own, message):
    with pytest.raises(InputError, match=message):
        TransMIL(**{"num_classes": 2} | own)
