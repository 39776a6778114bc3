"""Softmax-free attention: its formula, masks, precision, and what tools must understand of it."""

import pytest
import torch
from beartype import beartype
from jaxtyping import TypeCheckError, jaxtyped

from softmaxfree import ops
from tests.helpers import assert_no_worse_than

pytestmark = pytest.mark.usefixtures("device")

nystrom_attention = jaxtyped(typechecker=beartype)(ops.nystrom_attention)
gaussian_attention = jaxtyped(typechecker=beartype)(ops.gaussian_attention)


def inputs(b=2, h=2, n=50, m=9, d=8, dtype=torch.float64, keys=None):
    q = torch.randn(b, h, n, d, dtype=dtype)
    k = q if keys is None else torch.randn(b, h, keys, d, dtype=dtype)
    return q, k, torch.randn(b, h, k.shape[2], d, dtype=dtype), torch.randn(b, h, m, d, dtype=dtype)


def dense(q, k, v, landmarks, normalize=False, ridge=0.01):
    """The formula with every matrix materialised, in the released order of products."""

    def kernel(x, y):
        return torch.exp(-0.5 * (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1))

    a = kernel(landmarks, landmarks)
    inverse = torch.linalg.inv(a + ridge * torch.eye(a.shape[-1], dtype=a.dtype))
    if normalize:
        scale = a.sum(-1).rsqrt()
        inverse = scale.unsqueeze(-1) * inverse * scale.unsqueeze(-2)
    return (kernel(q, landmarks) @ inverse) @ (kernel(landmarks, k) @ v)


def published(q, v, landmarks):
    """The released computation in plain torch: expanded squares, 20 Newton steps, left product first."""

    def kernel(x, y):
        x2 = (x**2.0) @ torch.ones_like(y).mT
        y2 = torch.ones_like(x) @ (y**2.0).mT
        return torch.exp(-(x2 + y2 - 2.0 * (x @ y.mT)) / 2)

    k1, a = kernel(q, landmarks), kernel(landmarks, landmarks)
    alpha = 0.9 * 2 / a.sum(-1).amax(-1) ** 2
    p = a + 0.01 * torch.eye(a.shape[-1], dtype=a.dtype)
    inverse = alpha[..., None, None] * p
    for _ in range(20):
        inverse = 2 * inverse - inverse @ p @ inverse
    return (k1 @ inverse) @ (k1.mT @ v)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("keys", [None, 31])
def test_is_the_formula(normalize, keys):
    x = inputs(keys=keys)
    out = nystrom_attention(*x, solver=ops.Newton(iters=40), normalize=normalize)
    torch.testing.assert_close(out, dense(*x, normalize=normalize), rtol=1e-8, atol=1e-8)


def test_landmarks_at_every_token_give_exact_attention():
    q, k, v, _ = inputs(n=12)
    out = nystrom_attention(q, k, v, q, solver=ops.Eigh())
    torch.testing.assert_close(out, gaussian_attention(q, k, v), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("normalize", [False, True])
def test_gradients(normalize):
    q, k, v, landmarks = (x.requires_grad_() for x in inputs(1, 2, n=7, m=3, d=4, keys=5))

    def attend(q, k, v, landmarks):
        return ops.nystrom_attention(q, k, v, landmarks, solver=ops.Newton(iters=40), normalize=normalize)

    assert torch.autograd.gradcheck(attend, (q, k, v, landmarks))
    assert torch.autograd.gradgradcheck(attend, (q, k, v, landmarks))
    assert torch.autograd.gradcheck(ops.gaussian_attention, (q, k, v))


@pytest.mark.parametrize("normalize", [False, True])
def test_masked_tokens_and_landmarks_do_not_exist(normalize):
    q, k, v, landmarks = inputs(keys=31)
    solver = ops.Newton(ridge=0.0, start="halving") if normalize else ops.Newton()
    mask, landmark_mask = torch.arange(31).expand(2, 31) < 20, torch.arange(9).expand(2, 9) < 6
    masked = nystrom_attention(
        q, k, v, landmarks, solver=solver, normalize=normalize, mask=mask, landmark_mask=landmark_mask
    )
    short = nystrom_attention(q, k[:, :, :20], v[:, :, :20], landmarks[:, :, :6], solver=solver, normalize=normalize)
    torch.testing.assert_close(masked, short, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        gaussian_attention(q, k, v, mask=mask), gaussian_attention(q, k[:, :, :20], v[:, :, :20])
    )


def test_images_do_not_see_each_other():
    x = inputs(b=3, dtype=torch.float32)
    x[0][1] *= 0.01  # an image of nearly equal tokens
    for normalize, solver in ((False, ops.Newton()), (True, ops.Newton(ridge=0.0, start="halving"))):
        both = nystrom_attention(*x, solver=solver, normalize=normalize)
        alone = torch.cat(
            [nystrom_attention(*(t[i : i + 1] for t in x), solver=solver, normalize=normalize) for i in range(3)]
        )
        torch.testing.assert_close(both, alone, rtol=1e-5, atol=1e-5 * alone.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [49, 197, 784])
def test_error_is_that_of_the_published_computation(n, dtype):
    # many images: the inverse magnifies the rounding of a single one by chance, in either computation
    q, _, v, landmarks = (x.to(dtype) for x in inputs(b=64, n=n, m=9, d=16))
    exact = published(q.double(), v.double(), landmarks.double())
    plain = published(q.float(), v.float(), landmarks.float()).to(dtype)
    unit = exact.flatten(1).norm(dim=1)[:, None, None, None]
    assert_no_worse_than(
        *((x.double() / unit).to(x.dtype) for x in (nystrom_attention(q, q, v, landmarks), plain)), exact / unit
    )


def test_autocast_is_more_accurate_than_plain_torch_under_autocast():
    q, _, v, landmarks = inputs(n=197, m=9, d=16, dtype=torch.float32)
    exact = published(q.double(), v.double(), landmarks.double())
    with torch.autocast(q.device.type, torch.bfloat16):
        plain, out = published(q, v, landmarks), ops.nystrom_attention(q, q, v, landmarks)
    assert_no_worse_than(out.to(plain.dtype), plain, exact)


@pytest.mark.parametrize("case", ["constant", "repeated", "scaled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_hard_inputs_stay_finite(case, dtype):
    q, _, v, landmarks = (x.to(dtype) for x in inputs())
    q, landmarks = {
        "constant": (torch.ones_like(q), torch.ones_like(landmarks)),
        "repeated": (q, landmarks[:, :, :1].expand_as(landmarks)),
        "scaled": (q * 1e4, landmarks * 1e4),
    }[case]
    leaves = [x.clone().requires_grad_() for x in (q, v, landmarks)]
    out = ops.nystrom_attention(leaves[0], leaves[0], leaves[1], leaves[2])
    out.float().sum().backward()
    assert out.isfinite().all()
    for x in leaves:
        assert x.grad.isfinite().all()


def test_empty_batch():
    q, k, v, landmarks = inputs(b=0)
    assert nystrom_attention(q, k, v, landmarks).shape == (0, 2, 50, 8)


def test_compiles_in_one_graph_with_any_length():
    def attend(q, v, landmarks):
        return ops.nystrom_attention(q, q, v, landmarks, solver=ops.Newton(iters=15), normalize=True)

    compiled = torch.compile(attend, fullgraph=True, dynamic=True)
    for n in (50, 63, 196):
        q, _, v, landmarks = (x.requires_grad_() for x in inputs(n=n))
        torch.testing.assert_close(compiled(q, v, landmarks), attend(q, v, landmarks))
        gradients = torch.autograd.grad(compiled(q, v, landmarks).sum(), (q, v, landmarks))
        expected = torch.autograd.grad(attend(q, v, landmarks).sum(), (q, v, landmarks))
        torch.testing.assert_close(gradients, expected)


def test_exports_without_custom_ops():
    class Attend(torch.nn.Module):
        def forward(self, q, v, landmarks):
            return ops.nystrom_attention(q, q, v, landmarks)

    q, _, v, landmarks = inputs(dtype=torch.float32)
    length = torch.export.Dim("length", min=16, max=4096)
    shapes = {"q": {2: length}, "v": {2: length}, "landmarks": None}
    program = torch.export.export(Attend(), (q, v, landmarks), dynamic_shapes=shapes)
    assert not any("softmaxfree" in str(node.target) for node in program.graph.nodes)
    q, _, v, _ = inputs(n=77, dtype=torch.float32)
    torch.testing.assert_close(program.module()(q, v, landmarks), ops.nystrom_attention(q, q, v, landmarks))


def test_flops_are_counted():
    q, k, v, landmarks = inputs(b=1, h=2, n=50, m=9, d=8)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        ops.nystrom_attention(q, k, v, landmarks, solver=ops.Newton(iters=20))
    products = 2 * (2 * 50 * 9 * (8 + 8)) + 2 * 9 * 9 * 8 + 2 * 9 * 9 * 8  # K(l,k)v, K(q,l)w, gram, A+ (K v)
    assert counter.get_total_flops() == 2 * (products + 4 * 20 * 9**3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.update(v=x["v"][:, :, :7]), "v must have one row for each of the 50 keys, got 7"),
        (lambda x: x.update(k=x["k"].float()), "k is torch.float32"),
        (lambda x: x.update(k=x["k"][..., :4]), "k .* does not fit q"),
        (lambda x: x.update(landmarks=x["landmarks"][:, :, :0]), "at least one landmark, got 0"),
        (
            lambda x: x.update(landmarks=x["landmarks"].repeat(1, 1, 9, 1)),
            "not outnumber the 50 tokens, got 81",
        ),
        (lambda x: x.update(q=x["q"][0]), r"q must be \(B, H, tokens, width\)"),
        (lambda x: x.update(mask=torch.ones(2, 50)), "mask must be bool"),
        (lambda x: x.update(mask=torch.ones(2, 49, dtype=torch.bool)), r"mask must be bool \(B, 50\)"),
        (lambda x: x.update(landmark_mask=torch.ones(1, 9, dtype=torch.bool)), "landmark_mask must be bool"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = dict(zip(("q", "k", "v", "landmarks"), inputs(), strict=True))
    change(arguments)
    with pytest.raises(ValueError, match=message):
        ops.nystrom_attention(**arguments)


def test_causal_is_refused():
    with pytest.raises(NotImplementedError, match="causal=True is not possible"):
        ops.nystrom_attention(*inputs(), causal=True)


def test_shape_annotations_are_checked():
    q, k, v, landmarks = inputs()
    with pytest.raises(TypeCheckError):
        nystrom_attention(q, k, v.long(), landmarks)
