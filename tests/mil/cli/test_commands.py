"""The commands do for bags what they do for images: train, validate, predict, explain, show."""

import json
import re
import shutil

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from softmaxfree.cli import explain, export, predict, push, train, validate
from softmaxfree.cli.recipe import load_job
from softmaxfree.errors import InputError
from softmaxfree.mil import list_bag_models
from softmaxfree_cli import main
from softmaxfree_cli.failures import mendable
from softmaxfree_cli.recipes import find_recipe, read_header
from tests.mil.cli.quick_run import overrides
from tests.mil.data.slide_files import (
    coords_of,
    features_of,
    read_csv,
    write_clam,
    write_csv,
    write_slides,
    write_trident,
)


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Sixteen slides of eight cases; only read."""
    return write_slides(tmp_path_factory.mktemp("slides"), count=16, cases=8)


def labels_of(slides):
    return {row["slide_id"]: row["label"] for row in read_csv(slides / "labels.csv")}


@pytest.fixture(scope="module")
def run_dir(slides, tmp_path_factory):
    """A finished run of the default network; only read."""
    out = tmp_path_factory.mktemp("runs")
    small = {"model__name": "bag_encoder", "model__model_args__num_heads": 2, "trainer__accumulate_grad_batches": 2}
    return train.run("bags", overrides(slides, **small), out=str(out))


def test_a_run_leaves_what_a_run_of_images_does(run_dir):
    files = {path.name for path in run_dir.iterdir()}
    assert {"config.yaml", "best.ckpt", "last.ckpt", "metrics.csv", "split.csv", "report.html", "summary.json"} <= files
    assert {"curve.png", "confusion_matrix.png"} <= files
    assert "best" not in files  # a folder for timm, whose these models are not
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["data"]["unit"] == "slide"
    assert summary["confusion"]["of"] == "slides"
    assert summary["sizes"] == []  # too few slides to tell
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "Sizes of bags" not in page
    assert "Measured on the validation slides" in page
    text = re.sub(r"<(pre|style|svg).*?</\1>", "", page, flags=re.S)
    assert not re.search(r"\bimages?\b", text)
    assert [row["split"] for row in read_csv(run_dir / "split.csv")].count("train") > 8


def test_validate_measures_the_same(run_dir, slides, tmp_path, capsys):
    metrics = validate.run(str(run_dir))
    kept = json.loads((run_dir / "summary.json").read_text())["metrics"]
    assert metrics == pytest.approx(kept, abs=1e-6)
    assert "macro AUC" in capsys.readouterr().out
    other = write_slides(tmp_path, count=4)
    places = [f"--data.features={other / 'features'}", f"--data.labels={other / 'labels.csv'}"]
    assert validate.run(str(run_dir), places)["val/auc"] >= 0  # all of them validate
    assert "4 to validate" in capsys.readouterr().out


def test_predict_writes_a_line_a_slide(run_dir, slides, tmp_path, capsys):
    out = tmp_path / "slides.csv"
    predict.run([slides / "features"], checkpoint=run_dir, format="csv", out=out)
    rows = read_csv(out)
    assert [row["slide_id"] for row in rows] == [f"{i + 1:03}" for i in range(16)]
    assert list(rows[0]) == ["slide_id", "file", "patches", "predicted", "p_a", "p_b"]
    kept = {row["slide_id"]: row for row in read_csv(run_dir / "predictions.csv")}
    validating = {row["file"] for row in read_csv(run_dir / "split.csv") if row["split"] == "val"}
    assert list(kept) == sorted(validating)
    assert {row["slide_id"]: row["label"] for row in kept.values()}.items() <= labels_of(slides).items()
    for row in rows:
        if one := kept.get(row["slide_id"]):
            assert (one["split"], one["patches"], one["predicted"]) == ("val", row["patches"], row["predicted"])
            assert float(one["p_a"]) == pytest.approx(float(row["p_a"]), abs=2e-5)
        assert float(row["p_a"]) + float(row["p_b"]) == pytest.approx(1, abs=1e-5)
        assert row["predicted"] == ("a" if float(row["p_a"]) > 0.5 else "b")
    predict.run([slides / "features" / "001.h5"], checkpoint=run_dir, format="json")
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["probabilities"]["a"] == pytest.approx(float(rows[0]["p_a"]), abs=1e-5)
    predict.run([slides / "features"], checkpoint=run_dir, format="csv", out=out)  # its own is replaced
    with pytest.raises(InputError, match="is no earlier output"):
        predict.run([slides / "features"], checkpoint=run_dir, format="csv", out=slides / "labels.csv")


def test_predict_skips_what_cannot_be_read(run_dir, tmp_path, capsys):
    write_trident(tmp_path / "wide.h5", features_of(0, 5, dim=9))
    write_trident(tmp_path / "good.h5", features_of(0, 5))
    predict.run([tmp_path], checkpoint=run_dir)
    told = capsys.readouterr()
    assert "wide.h5 has features of 9 numbers, and the weights are for 6" in told.err
    assert "1 of 2 slides skipped" in told.err
    assert "good" in told.out
    with pytest.raises(InputError, match=r"unreadable slide: slide wide: .*on-error skip leaves it out"):
        predict.run([tmp_path], checkpoint=run_dir, on_error="fail")
    with pytest.raises(InputError, match=r"--topk is for classification, but .* is of bags"):
        predict.run([tmp_path], checkpoint=run_dir, topk=1)
    for option in ("batch_size", "max_pixels"):
        with pytest.raises(InputError, match=rf"--{option.replace('_', '-')} is for classification.* is of bags"):
            predict.run([tmp_path], checkpoint=run_dir, **{option: 3})


@pytest.mark.parametrize("what", ["attention", "contributions"])
def test_explain_a_slide(run_dir, slides, tmp_path, what):
    explain.run([slides / "features" / "003.h5"], checkpoint=run_dir, what=what, out=tmp_path, top=3)
    numbers = json.loads((tmp_path / f"003_{what}.json").read_text())
    with h5py.File(tmp_path / f"003_{what}.h5") as file:
        scores = file["attention_scores"][:, 0]
        assert np.array_equal(file["coords"], coords_of(11))
    assert len(scores) == numbers["patches"] == 11
    if what == "contributions":
        total = numbers["of_patches"] + numbers["class_token"] + numbers["base"]
        assert total == pytest.approx(numbers["logits"][numbers["index"]], abs=1e-4)
        assert scores.sum() == pytest.approx(numbers["of_patches"], abs=1e-4)
    else:
        assert scores.sum() == pytest.approx(1, abs=1e-4)
    top = read_csv(tmp_path / f"003_{what}_top.csv")
    assert [int(row["patch"]) for row in top] == np.argsort(-scores, kind="stable")[:3].tolist()
    assert [list(map(float, row.values())) for row in top] == [
        pytest.approx(list(row.values()), rel=1e-5) for row in numbers["top"]
    ]
    assert list(numbers["top"][0]) == list(top[0]) == ["rank", "patch", "score", "x", "y"]
    assert (tmp_path / f"003_{what}.png").read_bytes().startswith(b"\x89PNG")
    explain.run([slides / "features" / "003.h5"], checkpoint=run_dir, what=what, out=tmp_path)  # its own are replaced


def test_explain_a_folder_of_slides(run_dir, tmp_path, capsys):
    for name, width in (("a", 6), ("b", 6), ("squeezed", 6), ("wide", 9)):
        write_trident(tmp_path / "features" / f"{name}.h5", features_of(0, 9, dim=width))
    for folder in ("thumbnails", "others"):
        (tmp_path / folder).mkdir()
    for name, height in (("thumbnails/a", 40), ("thumbnails/squeezed", 20), ("others/c", 40)):
        Image.new("RGB", (50, height)).save(tmp_path / f"{name}.png")
    given = {"checkpoint": run_dir, "out": tmp_path / "maps"}
    explain.run([tmp_path / "features"], **given, thumbnail=tmp_path / "thumbnails")
    told = capsys.readouterr().err
    assert "wide.h5 has features of 9 numbers" in told
    assert "thumbnail must show the whole slide" in told
    assert "2 of 4 slides skipped" in told
    assert "2 of 4 slides have no thumbnail, such as b" in told
    kinds = ("_attention.h5", "_attention.json", "_attention.png", "_attention_top.csv")
    files = {f"{slide}{kind}" for slide in "ab" for kind in kinds}
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {*files, "slides.csv"}
    table = (tmp_path / "maps" / "slides.csv").read_text()
    several = [tmp_path / "features" / "a.h5", tmp_path / "features" / "b.h5"]
    explain.run(several, **given)  # its own are replaced
    assert (tmp_path / "maps" / "slides.csv").read_text() == table
    capsys.readouterr()
    predict.run(several, checkpoint=run_dir, format="csv")
    assert capsys.readouterr().out == table
    with pytest.raises(InputError, match=r"--thumbnail must be a folder for several slides"):
        explain.run([tmp_path / "features"], **given, thumbnail=tmp_path / "thumbnails" / "a.png")
    with pytest.raises(InputError, match=r"--thumbnail: .*others holds no picture of a name such as a"):
        explain.run([tmp_path / "features"], **given, thumbnail=tmp_path / "others")
    with pytest.raises(InputError, match=r"--target must be a class \(a, b\) or its number; got c"):
        explain.run([tmp_path / "features"], **given, what="contributions", target="c")
    for name in ("a", "b", "squeezed"):
        (tmp_path / "features" / f"{name}.h5").unlink()
    with pytest.raises(InputError, match="none of the 1 slides can be explained"):
        explain.run([tmp_path / "features"], **given)


def test_classes_asked_for_have_files_of_their_own(run_dir, slides, tmp_path):
    for target in ("a", "b"):
        given = {"what": "contributions", "target": target, "out": tmp_path}
        explain.run([slides / "features" / "003.h5"], checkpoint=run_dir, **given)
        numbers = json.loads((tmp_path / f"003_contributions_{target}.json").read_text())
        assert numbers["class"] == target
        assert numbers["checkpoint"].startswith(str(run_dir))
        with h5py.File(tmp_path / f"003_contributions_{target}.h5") as file:
            assert dict(file["attention_scores"].attrs)["class"] == target
    assert len(list(tmp_path.iterdir())) == 8


def test_one_bad_slide_of_a_folder_is_left_out(run_dir, tmp_path, capsys):
    write_trident(tmp_path / "good.h5", features_of(0, 9))
    write_trident(tmp_path / "large.h5", 1e37 * features_of(1, 9))
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "dangling.h5").symlink_to(tmp_path / "nowhere.h5")
    predict.run([tmp_path], checkpoint=run_dir, format="csv")
    told = capsys.readouterr()
    assert "3 of 4 slides skipped" in told.err
    assert "slide large: " in told.err
    assert "the output is not finite; its features are up to" in told.err
    assert "slide folder: there is no file" in told.err
    assert len(told.out.splitlines()) == 2
    explain.run([tmp_path], checkpoint=run_dir, out=tmp_path / "maps")
    assert "3 of 4 slides skipped" in capsys.readouterr().err


def test_names_of_classes_are_told_apart(run_dir, slides, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("a\na\n")
    with pytest.raises(InputError, match="names of the classes must be different ones, 'a' is there twice"):
        predict.run([slides / "features" / "001.h5"], checkpoint=run_dir, class_names=names)


def test_validate_tells_which_slides_were_trained_on(run_dir, slides, tmp_path, capsys):
    rows = read_csv(run_dir / "split.csv")
    trained = [row["file"] for row in rows if row["split"] == "train"]
    validate.run(str(run_dir), [])
    assert f"none of the {16 - len(trained)} slides measured was trained on" in capsys.readouterr().out
    shutil.copytree(slides / "features", tmp_path / "elsewhere")
    validate.run(str(run_dir), [f"--data.features={tmp_path / 'elsewhere'}"])
    assert (
        f"{len(trained)} of the 16 slides measured were trained on, such as {min(trained)}" in capsys.readouterr().out
    )


def test_a_network_is_not_given_bags_without_the_coordinates_it_learned(run_dir, slides, tmp_path, capsys):
    for i in range(16):
        np.save(tmp_path / f"{i + 1:03}.npy", features_of(i, 9 + i, i % 2))
    with pytest.raises(InputError, match=r"slide 001: .*001.npy has no coordinates, with which the network was train"):
        predict.run([tmp_path / "001.npy"], checkpoint=run_dir, on_error="fail")
    with pytest.raises(InputError, match=r"data.use_coords: slide 001 has no coordinates in .*001.npy"):
        validate.run(str(run_dir), [f"--data.features={tmp_path}"])
    small = {"model__name": "bag_encoder", "model__model_args__num_heads": 2, "trainer__max_epochs": 1}
    run = train.run("bags", overrides(slides, **small, data__features=tmp_path), out=str(tmp_path / "runs"))
    capsys.readouterr()
    lines = []
    for file in (tmp_path / "001.npy", slides / "features" / "001.h5"):  # the second has coordinates
        predict.run([file], checkpoint=run, format="csv")
        lines.append(capsys.readouterr().out.strip().splitlines()[-1].split(","))
    assert [float(p) for p in lines[0][-2:]] == pytest.approx([float(p) for p in lines[1][-2:]], abs=2e-3)
    validate.run(str(run), [f"--data.features={slides / 'features'}"])
    assert "without coordinates" in capsys.readouterr().out


def test_maps_of_slides_whose_names_have_points(run_dir, slides, tmp_path):
    for name in ("TCGA-A1-DX1.B34F", "TCGA-A1-DX1.C99A"):
        write_trident(tmp_path / f"{name}.h5", features_of(0, 9))
        explain.run([tmp_path / f"{name}.h5"], checkpoint=run_dir, out=tmp_path / "maps")
        numbers = json.loads((tmp_path / "maps" / f"{name}_attention.json").read_text())
        assert (numbers["slide"], numbers["image"]) == (name, str(tmp_path / f"{name}.h5"))
    assert len(list((tmp_path / "maps").iterdir())) == 8


def test_a_thumbnail_with_the_coordinates_of_clam(run_dir, tmp_path):
    write_clam(tmp_path, "s", features_of(0, 9), coords_of(9))
    Image.new("RGB", (100, 80)).save(tmp_path / "s.png")
    given = {"checkpoint": run_dir, "out": tmp_path / "out", "thumbnail": tmp_path / "s.png"}
    with pytest.raises(InputError, match=r"--thumbnail: the coordinates do not tell .* CLAM's folder `patches`"):
        explain.run([tmp_path / "h5_files" / "s.h5"], **given)
    (tmp_path / "patches").mkdir()
    with h5py.File(tmp_path / "patches" / "s.h5", "w") as file:
        file["coords"] = coords_of(9)
        file["coords"].attrs.update({"patch_size": 256, "downsample": (2.0, 2.0), "level_dim": (2500, 2000)})
    explain.run([tmp_path / "h5_files" / "s.h5"], coords=tmp_path / "patches", **given)
    assert (tmp_path / "out" / "s_attention.png").is_file()


def test_commands_of_images_alone_refuse_bags(run_dir, tmp_path):
    with pytest.raises(InputError, match=r"is of bags: networks of images alone are exported"):
        export.run(str(run_dir), str(tmp_path / "out.onnx"))
    with pytest.raises(InputError, match=r"holds classifiers, but .* is of bags"):
        push.run(str(run_dir), "user/name")


def test_a_map_needs_coordinates(run_dir, tmp_path):
    np.save(tmp_path / "bare.npy", features_of(0, 9))
    with pytest.raises(InputError, match=r"slide bare: .*bare.npy has no coordinates, with which the network was"):
        explain.run([tmp_path / "bare.npy"], checkpoint=run_dir, out=tmp_path)
    with pytest.raises(InputError, match=r"is of bags: --what is attention or contributions"):
        explain.run([tmp_path / "bare.npy"], checkpoint=run_dir, what="cam", out=tmp_path)
    for option, value in (("size", 64), ("model", "soft_nano"), ("stage", 1), ("point", "3,4")):
        with pytest.raises(InputError, match=f"--{option} is for images; .* is of bags"):
            explain.run([tmp_path / "bare.npy"], checkpoint=run_dir, out=tmp_path, **{option: value})


def test_survival_runs_through_all_commands(slides, tmp_path):
    table = write_csv(
        tmp_path / "t.csv", "slide_id,time,event", *(f"{i + 1:03},{i + 1},{int(i % 4 > 0)}" for i in range(16))
    )
    given = overrides(slides, data__labels=table, data__bins=2, trainer__max_epochs=1)
    run = train.run("bags_survival", given, out=str(tmp_path / "runs"))
    assert "c-index" in (run / "report.html").read_text(encoding="utf-8")
    assert 0 <= validate.run(str(run))["val/c_index"] <= 1
    predict.run([slides / "features"], checkpoint=run, format="csv", out=tmp_path / "p.csv")
    rows = read_csv(tmp_path / "p.csv")
    cuts = [name for name in rows[0] if name.startswith("p_")]
    assert [name[:8] for name in cuts] == ["p_up to ", "p_later"]
    told = [(float(row["risk"]), float(row[cuts[0]])) for row in rows]
    assert max(told)[1] > min(told)[1]  # a higher risk is an earlier event
    risks = {row["slide_id"]: float(row["risk"]) for row in rows}
    for row in read_csv(run / "predictions.csv"):
        assert (row["time"], row["event"]) == (
            f"{int(row['slide_id'])}.0",
            str(int((int(row["slide_id"]) - 1) % 4 > 0)),
        )
        assert float(row["risk"]) == pytest.approx(risks[row["slide_id"]], abs=2e-5)
    with pytest.raises(InputError, match=r"data.target must be 'class' for BagClassificationTask, got 'survival'"):
        train.run("bags", [*given, "--data.target=survival"], out=str(tmp_path / "runs"))
    assert sum(float(rows[0][name]) for name in cuts) == pytest.approx(1, abs=1e-5)


def test_a_run_starts_from_the_weights_of_another(run_dir, slides, tmp_path):
    small = {"model__name": "bag_encoder", "model__model_args__num_heads": 2, "trainer__max_epochs": 1}
    run = train.run("bags", overrides(slides, **small), out=str(tmp_path), init_from=str(run_dir))
    assert "tensors" in json.loads((run / "summary.json").read_text())["model"]["loaded"]
    wider = overrides(slides, **small, model__model_args__embed_dim=12)
    with pytest.raises(InputError, match=r"model.init_from: .* is of bag_encoder, as this model is, but made with"):
        train.run("bags", wider, out=str(tmp_path), init_from=str(run_dir))


def test_help_and_recipes_tell_of_bags(capsys):
    assert main(["train", "bags", "--help"]) == 0
    text = re.sub(r"\n\s+", " ", capsys.readouterr().out)
    assert "--data.features  text  (required)  Folder with a file of features for each slide" in text
    assert "--folds" in text
    assert main(["recipes", "show", "mnist_bags"]) == 0
    assert "datamodule: softmaxfree.mil.data.EmbeddedBagsDataModule" in capsys.readouterr().out
    assert main(["recipes"]) == 0
    assert re.search(r"^  ?mnist_bags +bags +MNIST-bags", capsys.readouterr().out, re.M)


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", [line for line in read_header(find_recipe("mnist_bags")) if line.strip().startswith("--")]
)
def test_the_options_in_the_header_of_mnist_bags_fit(line):
    words = re.split(r" {2,}", line.strip())[0].split()
    options = [f"{key}={value}" for key, value in zip(words[::2], words[1::2], strict=True)]
    job = load_job("mnist_bags", [*options, "--data.train_bags=2", "--data.val_bags=2", "--data.test_bags=2"])
    job.data.setup("fit")
    batch = next(iter(job.data.val_dataloader()))
    assert job.task(batch).shape == (1, 2)
    assert job.task.hparams["in_dim"] == batch.features.shape[2]


@pytest.mark.parametrize("name", [name for name in list_bag_models() if name != "bag_encoder"])
def test_another_network_does_not_take_what_a_recipe_has_for_its_own(name):
    few = [f"--data.{split}_bags=2" for split in ("train", "val", "test")]
    job = load_job("mnist_bags", [f"--model.name={name}", *few])
    assert job.task.hparams["model_args"] == {"embed": "lenet", "embed_dim": 64}
    assert job.settings["model.model_args.depth"] == ("left out", "the recipe has it for bag_encoder")
    given = [f"--model.name={name}", "--model.model_args.depth=2", *few]  # an option is not left out
    if name == "transmil":
        assert load_job("mnist_bags", given).task.hparams["model_args"]["depth"] == 2
        return
    with pytest.raises(InputError, match=f"model.model_args: the network {name} has no argument 'depth'"):
        load_job("mnist_bags", given)


def test_a_bad_slide_in_a_worker_is_one_line(tmp_path, capsys):
    folder = write_slides(tmp_path, count=6)
    with h5py.File(folder / "features" / "002.h5", "a") as file:
        file["features"][3, 1] = np.nan
    given = overrides(folder, data__num_workers=1)
    assert main(["train", "bags", *given, "--out", str(tmp_path / "runs")]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith(f"softmaxfree train: slide 002: features in {folder}/features/002.h5 are NaN or infinite")


def test_the_traceback_of_a_worker_is_left_out():
    text = "Caught InputError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File x\n"
    assert mendable(InputError(f"{text}softmaxfree_cli.errors.InputError: a: b"), "train") == "a: b"
    assert torch.utils.data.get_worker_info() is None
