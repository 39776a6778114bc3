"""Keys read from the sources are those that the parser takes, and a recipe shown is the same recipe."""

import ast
import re

import pytest

from softmaxfree.cli.recipe import _parser, class_of
from softmaxfree.cli.settings import _RULES, OF_MACHINE
from softmaxfree_cli import main
from softmaxfree_cli.keys import _TRAINER, REQUIRED, check_keys, keys_of
from softmaxfree_cli.messages import in_plain_words
from softmaxfree_cli.recipes import SECTIONS, find_recipe, read_header, read_recipe, recipes
from softmaxfree_cli.show import commented
from softmaxfree_cli.source import arguments, find, read
from softmaxfree_cli.words import type_in_words

OF_EACH_CLASS = {(c["task"], c["datamodule"]): name for name in recipes() if (c := read_recipe(name))}


@pytest.mark.parametrize("recipe", OF_EACH_CLASS.values())
def test_keys_and_defaults_are_those_of_the_parser(recipe):
    content = read_recipe(recipe)
    parser = _parser(class_of(recipe, content, "task"), class_of(recipe, content, "datamodule"))
    known = keys_of(content)
    defaults = parser.get_defaults(skip_validation=True)
    for section in SECTIONS:
        wanted = vars(defaults[section])
        if section == "data":
            wanted.pop("seed", None)  # which the parser takes from run.seed
        assert list(known[section]) == list(wanted)
        given = {name: None if key.default is REQUIRED else key.default for name, key in known[section].items()}
        assert given == wanted
        assert [name for name, key in known[section].items() if not _is_a_sentence(key.meaning)] == []


def _is_a_sentence(text):
    """Alone it can be read: it begins as a sentence does, and ends as one."""
    return re.fullmatch(r"([A-Z]|\"any\" ).*\.", text) is not None


@pytest.mark.parametrize("recipe", sorted(recipes()))
def test_a_recipe_that_is_shown_is_the_same_recipe(recipe, tmp_path):
    (tmp_path / "shown.yaml").write_text(commented(recipe), encoding="utf-8")
    content = read_recipe(recipe)
    assert read_recipe(str(tmp_path / "shown.yaml")) == {**dict.fromkeys(SECTIONS), **content}
    text = (tmp_path / "shown.yaml").read_text(encoding="utf-8")
    (tmp_path / "all.yaml").write_text(re.sub(r"^  #(\w+: .)", r"  \1", text, flags=re.M), encoding="utf-8")
    check_keys(read_recipe(str(tmp_path / "all.yaml")), [])
    assert text.startswith("".join(f"# {line}".rstrip() + "\n" for line in read_header(find_recipe(recipe))))


def test_values_that_yaml_could_take_for_others_come_back(tmp_path):
    odd = "base: digits\nmodel:\n  opt_args: {a: '1e-3', b: 1e-3, c: 'null', d: [yes, 'yes'], e: 'x: #', f: \"ü\\n\"}\n"
    (tmp_path / "odd.yaml").write_text(odd, encoding="utf-8")
    (tmp_path / "shown.yaml").write_text(commented(str(tmp_path / "odd.yaml")), encoding="utf-8")
    assert read_recipe(str(tmp_path / "shown.yaml")) == read_recipe(str(tmp_path / "odd.yaml"))


def test_help_of_a_recipe_lists_each_key_with_its_value(capsys):
    assert main(["train", "digits", "--help"]) == 0
    text = re.sub(r"\n      ", " ", capsys.readouterr().out)
    assert (
        "  --model.lr  number or auto  (default: 0.004)  Peak learning rate. `auto` decides it by the data.\n" in text
    )
    assert "  --data.img_size  whole number  (default: 32)  Height and width, in pixels" in text
    assert "  --trainer.max_epochs  whole number or null or auto  (default: 16)  Stop training once" in text
    assert (
        "  --trainer.min_steps  whole number or null  (default: null)  Force training for at least these number of "
        "steps.\n" in text
    )
    known = keys_of(read_recipe("digits"))
    assert re.findall(r"^  --(\S+)", text, re.M) == [f"{top}.{name}" for top in known for name in known[top]]


def test_words_for_the_trainer_are_of_keys_that_it_has():
    assert _TRAINER.keys() <= keys_of(read_recipe("digits"))["trainer"].keys()


def test_what_may_be_decided_is_told():
    known, of_bags = (keys_of(read_recipe(recipe)) for recipe in ("classification", "bags"))
    for section, name in (path.split(".") for path in _RULES):
        key = known[section].get(name) or of_bags[section][name]
        assert key.type.endswith(" or auto")
        by = "machine" if f"{section}.{name}" in OF_MACHINE else "data"
        assert key.meaning.endswith(f" `auto` decides it by the {by}.")
    assert known["data"]["img_size"].type == "whole number or auto"
    assert "auto" not in known["model"]["min_lr"].type


def test_recipes_lists_name_task_and_first_line(capsys):
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(recipes())
    assert "classification  soft_nano on 4,000 handwritten digits" in next(s for s in lines if " digits " in s)


def test_recipes_show_writes_a_file(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    assert main(["recipes", "show", "digits", "--out", str(path)]) == 0
    assert capsys.readouterr().out == f"written: {path}; train by it: softmaxfree train {path}\n"
    assert path.read_text(encoding="utf-8") == commented("digits")


OWN = """
import typing as t
from typing import Any, Literal as L
from lightning import pytorch as pl
from softmaxfree.tasks import ClassificationTask as Base
from .other import *
Kind = L["a", "b"]
class Mine(Base):
    '''Own.

    Args:
        kind: which.
        lr: another meaning.
        **kwargs: those of the task.
    '''
    def __init__(self, kind: Kind = "a", *, size: "t.Optional[tuple[int, int]]" = None, limit: int = LIMIT, **kwargs):
        super().__init__(num_classes=3, **kwargs)
class Plain(Mine):
    pass
class Unknown(nowhere.Base):
    pass
"""


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    (tmp_path / "own_keys").mkdir()
    (tmp_path / "own_keys" / "__init__.py").write_text("from .tasks import Plain as Handed\n")
    (tmp_path / "own_keys" / "tasks.py").write_text(OWN)
    (tmp_path / "own_keys" / "other.py").write_text("LIMIT = 3 * 4\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_keys_of_a_class_of_ones_own(own_package):
    known = keys_of({"task": "own_keys.Handed", "datamodule": "own_keys.tasks.Unknown"})
    assert "data" not in known  # what its base takes is not known
    model = known["model"]
    assert model["kind"] == ("a or b", "a", "which.")
    assert model["size"] == ("list of 2 whole numbers or null", None, "")
    assert model["limit"].default == 12
    assert model["lr"].meaning == "another meaning. `auto` decides it by the data."
    assert "num_classes" not in model  # it is given already
    assert "weight_decay" in model


def test_a_section_without_source_takes_every_key(own_package):
    content = {"task": "own_keys.Handed", "datamodule": "own_keys.tasks.Unknown", "data": {"anything": 1}}
    check_keys(content, ["--data.else=1"])


@pytest.mark.parametrize("name", ["nowhere.Thing", "math.sqrt", "softmaxfree.tasks.Nothing", "os", ""])
def test_what_has_no_source_is_none(name):
    assert arguments(name) is None


def test_imports_in_a_circle_end(tmp_path, monkeypatch):
    (tmp_path / "circle_a.py").write_text("from circle_b import X\n")
    (tmp_path / "circle_b.py").write_text("from circle_a import X\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find(read("circle_a"), "X") is None


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        ("int", "whole number"),
        ("float | None", "number or null"),
        ("Optional[Union[int, str]]", "whole number or text or null"),
        ("list[float] | None", "list of numbers or null"),
        ("tuple[int, ...]", "list of whole numbers"),
        ("Sequence[str]", "list of texts"),
        ("tuple[float, float]", "list of 2 numbers"),
        ("dict[str, Any]", "mapping"),
        ("int | Literal['auto']", "whole number or auto"),
    ],
)
def test_types_in_words(annotation, words):
    module = read("softmaxfree.cli.recipe")
    assert module is not None
    assert type_in_words(ast.parse(annotation, mode="eval").body, module) == words


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.lr=abc", "model.lr must be a number or auto, got abc"),
        (
            "model.sched=cosin",
            "model.sched must be cosine or tanh or wsd or poly or multistep or constant, got cosin",
        ),
        ("model.num_classes=", "model.num_classes must be a whole number or auto, got nothing"),
        ("model.decay_milestones=[a]", "model.decay_milestones must be a list of numbers or null, got a"),
        ("model.lr.x=3", "model.lr has no key x: it must be a number"),
        ("data.augment=3", "data.augment must be true or false, got 3"),
        ("data.mean=3", "data.mean must be a list of numbers, got 3"),
        ("data.scale=[0.1]", "data.scale must be a list of 2 numbers, got [0.1]"),
        ("run.threads=0", "run.threads must be a whole number from 1 or null, got 0"),
        ("trainer.max_epochs=x", "trainer.max_epochs must be a whole number or null or auto, got x"),
        ("trainer.callbacks=[{class_path: foo.Bar}]", "trainer.callbacks: foo.Bar: No module named 'foo'"),
        (
            "trainer.logger=CSVLogger",
            "trainer.logger: lightning.pytorch.loggers.CSVLogger: the following arguments are",
        ),
        (
            "trainer.logger=lightning.pytorch.loggers.CVSLogger",
            "trainer.logger: lightning.pytorch.loggers.CVSLogger: module 'lightning.pytorch.loggers' has no attribute "
            "'CVSLogger'; did you mean lightning.pytorch.loggers.CSVLogger?",
        ),
        ("trainer.logger=CSVLoggr", "trainer.logger must be Logger or"),
    ],
)
def test_a_wrong_value_is_told_in_plain_words(override, message):
    recipe = "imagenet_soft_tiny" if override.startswith(("data.mean", "data.scale")) else "digits"
    content = read_recipe(recipe)
    parser = _parser(class_of(recipe, content, "task"), class_of(recipe, content, "datamodule"))
    with pytest.raises(Exception, match=re.escape(override.partition("=")[0].removesuffix(".x"))) as caught:
        parser.parse_args([f"--{override}"])
    text = in_plain_words(str(caught.value), content)
    assert text.startswith(message)
    assert "<class" not in text
    assert "\n" not in text
