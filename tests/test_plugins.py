"""Mixers and solvers that other packages bring."""

import sys
from pathlib import Path

import pytest
import timm
import torch

from softmaxfree import ops, plugins
from softmaxfree.mixers import list_mixers, registry
from softmaxfree.ops.pinv import solvers

_MODULE = '''
import dataclasses
import softmaxfree.models  # a plug-in may use all of the package
from softmaxfree.mixers import ReluLinearAttention, register
from softmaxfree.ops import AbstractPinvSolver, register_solver

@register
class Plugged(ReluLinearAttention):
    """The same by another name."""
    name = "plugged"

@register_solver
@dataclasses.dataclass(frozen=True)
class Scaled(AbstractPinvSolver):
    """The inverse, or a multiple of it."""
    name = "scaled"
    factor: float = 1.0
    exact: bool = True
    def validate(self): pass
    def compute(self, gram): return self.factor * gram.inverse()
    def flops(self, num_landmarks): return 2 * num_landmarks**3
'''


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts an installed package with one module on the path."""

    def put(module: str, text: str) -> None:
        sys.modules.pop(module, None)
        (tmp_path / f"{module}.py").write_text(text)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\nmine = {module}\n")

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(registry, "_MIXERS", dict(registry._MIXERS))
    monkeypatch.setattr(solvers, "_SOLVERS", dict(solvers._SOLVERS))
    monkeypatch.setattr(plugins, "_loaded", set())
    solvers.solver_from_json.cache_clear()
    yield put
    solvers.solver_from_json.cache_clear()


def test_mixer_and_solver_of_an_installed_package(install):
    install("plugged_package", _MODULE)
    assert "plugged" in list_mixers()
    model = timm.create_model("soft_nano", mixer="plugged", num_classes=3).eval()
    peer = timm.create_model("soft_nano", mixer="relu_linear", num_classes=3).eval()
    # the same weights, but the record tells them apart
    with pytest.raises(ValueError, match="plugged"):
        peer.load_state_dict(model.state_dict())

    gram = torch.eye(4).expand(1, 1, 4, 4) * 2
    solver = ops.as_solver({"name": "scaled", "factor": 3.0, "exact": False})
    torch.testing.assert_close(ops.pinv(gram, solver), gram.inverse() * 3)
    assert ops.as_solver(solver.json) == solver
    soft = timm.create_model("soft_nano", solver={"name": "scaled", "factor": 2.0}, num_classes=3)
    assert soft(torch.rand(1, 3, 64, 64)).shape == (1, 3)


def test_one_that_cannot_be_imported_is_left_out_and_told(install):
    install("broken_package", "import a_module_that_is_not_there")
    with pytest.warns(UserWarning, match=r"plug-in 'mine' \(broken_package\) .*a_module_that_is_not_there"):
        assert "soft" in list_mixers()


def test_one_that_asks_for_mixers_while_it_is_imported(install):
    install("asking_package", "from softmaxfree.mixers import list_mixers\nassert 'soft' in list_mixers()\n")
    assert "soft" in list_mixers()


def test_one_that_ends_the_program_is_left_out(install):
    install("leaving_package", "raise SystemExit(3)")
    with pytest.warns(UserWarning, match="SystemExit: 3"):
        assert "soft" in list_mixers()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), (1, 2), 'a"b', "a\\b", "a\nb"])
def test_fields_of_a_solver_that_no_record_holds(install, value):
    install("plugged_package", _MODULE)
    list_mixers()
    with pytest.raises(ValueError, match="factor must be a finite number, True, False, None or a plain word, got"):
        ops.as_solver({"name": "scaled", "factor": value})


def test_a_solver_that_is_not_registered_or_returns_something_else(install):
    install("plugged_package", _MODULE)
    scaled = type(ops.as_solver("scaled"))
    with pytest.raises(ValueError, match="Twice is not known as a solver: decorate it with register_solver"):
        type("Twice", (scaled,), {"compute": lambda self, gram: 2 * gram})()
    with pytest.raises(ValueError, match="Other is not known as a solver"):
        type("Other", (ops.Newton,), {})()
    gram = torch.eye(4).expand(1, 1, 4, 4)
    for wrong in (lambda self, gram: gram[..., :1], lambda self, gram: gram.double()):
        setattr(scaled, "compute", wrong)  # noqa: B010  of a frozen dataclass
        with pytest.raises(ValueError, match=r"scaled must compute \(1, 1, 4, 4\) torch.float32, and returned"):
            ops.pinv(gram, scaled())


def test_an_argument_of_a_solver_that_is_missing(install):
    install("plugged_package", _MODULE.replace("factor: float = 1.0", "factor: float").replace("= True", ""))
    with pytest.raises(ValueError, match=r"solver 'scaled': .*factor"):
        ops.as_solver("scaled")


def test_solver_by_name():
    gram = torch.eye(4).expand(1, 1, 4, 4) + 0.1
    assert torch.equal(ops.pinv(gram, "cholesky"), ops.pinv(gram, ops.Cholesky()))
    q, landmarks = torch.rand(1, 2, 9, 4), torch.rand(1, 2, 3, 4)
    by_name = ops.nystrom_attention(q, q, q, landmarks, solver="cholesky")
    assert torch.equal(by_name, ops.nystrom_attention(q, q, q, landmarks, solver=ops.Cholesky()))


def test_solver_of_a_name_that_is_taken():
    with pytest.raises(ValueError, match="name of Newton must be a word that no other solver has, got 'newton'"):
        ops.register_solver(type("Newton", (ops.Newton.__base__,), {"name": "newton", "__dataclass_fields__": {}}))
    with pytest.raises(ValueError, match="Plain must be a frozen dataclass"):
        ops.register_solver(type("Plain", (ops.Newton.__base__,), {"name": "plain"}))
    with pytest.raises(ValueError, match="subclass of AbstractPinvSolver"):
        ops.register_solver(torch.inverse)
