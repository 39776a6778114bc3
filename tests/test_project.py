"""Files around the code agree with each other."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())


def test_hosted_ci_takes_the_oldest_python_and_torch_allowed():
    matrix = WORKFLOW["jobs"]["test"]["strategy"]["matrix"]
    (torch,) = (line.partition(">=")[2] for line in PROJECT["dependencies"] if line.startswith("torch>="))
    constraints = {row["torch"]: row["constraint"] for row in matrix["include"]}
    assert constraints["oldest"] == f"torch=={torch}.*"
    assert f">={matrix['python'][0]}" == PROJECT["requires-python"]
    assert matrix["python"] == ["3.11", "3.12", "3.13"]


def test_hosted_ci_runs_commands_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    steps = [step.get("run", "") for job in WORKFLOW["jobs"].values() for step in job["steps"]]
    blocks = "\n".join(re.findall(r"^```bash\n(.*?)^```$", readme, re.M | re.S))
    told = [re.sub(r" +#.*", "", line) for line in blocks.splitlines()]
    assert {'pip install ".[train]"', "softmaxfree recipes", "make demo", "make test"} <= set(told)
    needs_data = ("photos/", "scans/", "--checkpoint", "report", "scenes_instances")
    assert [line for line in told if line not in steps and not any(word in line for word in needs_data)] == []


def test_forms_for_issues_are_forms():
    for name in ("bug", "feature"):
        form = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= form.keys()
        ids = [part["id"] for part in form["body"]]
        assert len(set(ids)) == len(ids)


def test_changelog_and_citation_tell_of_this_version():
    from softmaxfree.version import __version__

    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__
