"""Every mixer computes the same in onnxruntime, at sizes that were not exported."""

import pytest
import torch

from softmaxfree.mixers import create_mixer, list_mixers
from tests.helpers import slow_but

pytest.importorskip("onnxscript", reason="needs the extra `export`")
runtime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")


CASES = [*((name, {}) for name in list_mixers()), ("soft", {"landmark_sampling": "random"})]


class OnMap(torch.nn.Module):
    def __init__(self, name: str, **own: str) -> None:
        super().__init__()
        self.mixer = create_mixer(name, dim=16, num_heads=2, **own)

    def forward(self, x):
        return self.mixer(x.flatten(2).transpose(1, 2), [x.shape[2], x.shape[3]])


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("name", "own"), slow_but([("mala", {}), ("soft", {}), ("softmax", {})], CASES))
def test_onnx_is_the_mixer(name, own, tmp_path):
    model, dim = OnMap(name, **own).eval(), torch.export.Dim
    least = max(5, model.mixer.min_grid)
    shapes = {0: dim("batch"), 2: dim("height", min=least, max=4096), 3: dim("width", min=least, max=4096)}
    program = torch.onnx.export(
        model, (torch.randn(2, 16, 12, 10),), dynamo=True, dynamic_shapes={"x": shapes}, verbose=False
    )
    program.save(tmp_path / "a.onnx")
    session = runtime.InferenceSession(tmp_path / "a.onnx")
    for batch, height, width in ((1, least, 20), (3, 17, 9)):
        x = torch.randn(batch, 16, height, width)
        expected = model(x)
        own = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
        assert (own - expected).abs().max() <= 1e-4 * (expected.max() - expected.min())
