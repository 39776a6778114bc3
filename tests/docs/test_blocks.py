"""What README and site show is what happens."""

import pytest

pytest.importorskip("sybil")
pytest.importorskip("segmentation_models_pytorch")

from softmaxfree.mixers import registry
from softmaxfree.ops.pinv import solvers
from tests.docs.blocks import ROOT, count, pages, run_blocks


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
@pytest.mark.filterwarnings("ignore::UserWarning:lightning")  # of Lightning, for those who are new to it
def test_every_block_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for module, name in ((registry, "_MIXERS"), (solvers, "_SOLVERS")):  # a page may register one of its own
        monkeypatch.setattr(module, name, dict(getattr(module, name)))
    assert len(list(run_blocks(page).examples())) == count(page)
