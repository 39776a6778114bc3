"""Every format is read as it is, whole or in rows."""

import h5py
import numpy as np
import pytest
import torch

from softmaxfree.errors import InputError
from softmaxfree.mil.data.arrays import look, read
from softmaxfree.mil.data.slides import SlideBags, find_files, look_at, read_coords, slide_id
from tests.mil.data.slide_files import coords_of, features_of, write_clam, write_trident

PATCHES = 100
ROWS = np.array([0, 1, 7, 50, 98, 99])
MANY = np.arange(0, PATCHES, 2)


def stored(folder, kind):
    """One bag in a file of a kind, and its features."""
    values = features_of(0, PATCHES)
    path = folder / f"slide.{kind.partition('_')[0]}"
    if kind == "h5_trident":
        values = values.astype(np.float16)
        write_trident(path, values)
    elif kind == "h5_contiguous":
        with h5py.File(path, "w") as file:
            file["features"] = values
    elif kind == "h5_batch":  # a leading axis of one bag
        with h5py.File(path, "w") as file:
            file["features"] = values[None]
    elif kind == "h5_packed":
        with h5py.File(path, "w") as file:
            file.create_dataset("features", data=values, chunks=(16, values.shape[1]), compression="gzip")
    elif kind == "h5_swapped":  # of the other order of bytes
        with h5py.File(path, "w") as file:
            file["features"] = values.astype(">f4")
    elif kind == "pt":
        torch.save(torch.from_numpy(values), path)
    elif kind == "pt_batch":
        torch.save(torch.from_numpy(values)[None].bfloat16(), path)
        return path, torch.from_numpy(values).bfloat16()
    elif kind == "pt_old":
        torch.save(torch.from_numpy(values), path, _use_new_zipfile_serialization=False)
    elif kind == "pt_keys":
        torch.save({"features": torch.from_numpy(values)}, path)
    else:
        np.save(path, values[None] if kind == "npy_batch" else values)
    return path, torch.from_numpy(values)


KINDS = ["h5_trident", "h5_contiguous", "h5_batch", "h5_packed", "h5_swapped", "pt", "pt_batch", "pt_old", "pt_keys"]


@pytest.mark.parametrize("kind", [*KINDS, "npy", "npy_batch"])
def test_all_and_rows_are_those_of_the_file(tmp_path, kind):
    path, values = stored(tmp_path, kind)
    array = look(path, "features", "slide")
    assert array.shape == (PATCHES, values.shape[1])
    assert torch.equal(read(array), values)
    assert read(array).dtype == values.dtype  # float16 stays
    for rows in (ROWS, MANY):
        assert torch.equal(read(array, rows), values[torch.from_numpy(rows)])


def test_rows_of_a_long_file_in_blocks(tmp_path):
    values = features_of(1, 9000)
    write_trident(tmp_path / "long.h5", values)
    rows = np.sort(np.random.default_rng(0).permutation(9000)[:2000])
    read_rows = read(look(tmp_path / "long.h5", "features", "long"), rows)
    assert torch.equal(read_rows, torch.from_numpy(values[rows]))


def test_clam_prefers_the_file_with_coordinates(tmp_path):
    write_clam(tmp_path, "s1", features_of(0, 9), coords_of(9))
    assert find_files(tmp_path)["s1"].parent.name == "h5_files"
    (slide,) = look_at(["s1"], find_files(tmp_path), {}, {})
    assert read_coords(slide)[1] == 512  # inferred: there are no attributes


@pytest.mark.parametrize(
    ("attributes", "step"),
    [
        ({}, 512),  # 40x at 20x: a spacing of the target patch size would leave every second cell empty
        ({"overlap": 64}, 384),
        ({"target_magnification": 40, "level0_magnification": 40}, 256),
        ({"level0_magnification": "None"}, 512),  # inferred from the coordinates
    ],
)
def test_step_at_level_0(tmp_path, attributes, step):
    path = write_trident(tmp_path / "a.h5", features_of(0, 16), coords_of(16, step), **attributes)
    (slide,) = look_at(["a"], {"a": path}, {}, {})
    coords, found = read_coords(slide)
    assert found == step
    assert np.array_equal(coords, coords_of(16, step))
    assert coords.dtype == np.float64


def test_coordinates_beside_and_labels_of_patches(tmp_path):
    for folder in ("features", "coords", "inst_labels"):
        (tmp_path / folder).mkdir()
    np.save(tmp_path / "features" / "b.npy", features_of(0, 9))
    np.save(tmp_path / "coords" / "b.npy", coords_of(9))
    np.save(tmp_path / "inst_labels" / "b.npy", np.arange(9)[:, None] % 2)
    found = [find_files(tmp_path / name) for name in ("features", "coords", "inst_labels")]
    slides = look_at(["b"], *found)
    bag = SlideBags(slides, [torch.tensor(1)])[0]
    assert bag.instances.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert (bag.step, bag.size, bag.label.item()) == (512, 9, 1)


def test_patches_are_drawn_anew_and_keep_their_coordinates(tmp_path):
    path = write_trident(tmp_path / "a.h5", features_of(0, 64))
    bags = SlideBags(look_at(["a"], {"a": path}, {}, {}), [torch.tensor(0)], max_patches=16)
    whole = SlideBags(bags.slides, bags.labels)[0]
    first, second = bags[0], bags[0]
    assert first.features.shape == (16, 6)
    assert first.size == 64
    assert not torch.equal(first.features, second.features)
    rows = [int((whole.coords == place).all(1).nonzero()) for place in first.coords]
    assert rows == sorted(rows)
    assert torch.equal(whole.features[rows], first.features)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("007", "007"),
        ("1.10", "1.10"),
        ("TCGA-2F.0A2B.svs", "TCGA-2F.0A2B"),
        ("TCGA-2F.0A2B", "TCGA-2F.0A2B"),
        ("a/b/c.h5", "c"),
    ],
)
def test_ids_are_text(given, name):
    assert slide_id(given) == name


def bad_empty(path):
    write_trident(path, np.zeros((0, 6), np.float32))


def bad_flat(path):
    write_trident(path, np.zeros(0, np.float32), coords_of(0))


def bad_keys(path):
    with h5py.File(path, "w") as file:
        file["feats"], file["xy"] = features_of(0, 3), coords_of(3)


def bad_bytes(path):
    path.write_bytes(b"no HDF5")


def bad_ranks(path):
    write_trident(path, np.zeros((2, 3, 4), np.float32), coords_of(2))


def bad_text(path):
    with h5py.File(path, "w") as file:
        file["features"] = np.full((3, 6), b"0.5")


def bad_coords(path):
    write_trident(path, features_of(0, 9), coords_of(9)[..., None])


def far_apart(path):
    write_trident(path, features_of(0, 9), np.concatenate([coords_of(8), [[10**13, 0]]]))


def bad_count(path):
    write_trident(path, features_of(0, 9), coords_of(8))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (bad_empty, r"slide s7: .*s7.h5 is an empty bag, of shape \(0, 6\)"),
        (bad_flat, r"slide s7: .*s7.h5 is an empty bag, of shape \(0,\)"),
        (bad_keys, r"slide s7: .*s7.h5 has no array 'features'; it holds feats, xy"),
        (bad_bytes, r".*s7.h5 cannot be read: .*signature"),
        (bad_ranks, r"slide s7: features must be \(patches, numbers\), but .*s7.h5 has \(2, 3, 4\)"),
        (bad_text, r"slide s7: features in .*s7.h5 is not of numbers that torch takes"),
        (bad_coords, r"slide s7: coordinates must be \(9, 2\), but .*s7.h5 has \(9, 2, 1\)"),
        (far_apart, r"slide s7: the patches in .*s7.h5 lie 1.95e\+10 steps of 512 \(by the attributes.*\) apart"),
        (bad_count, r"slide s7: coordinates must be \(9, 2\), but .*s7.h5 has \(8, 2\)"),
    ],
)
def test_bad_files_name_slide_and_file(tmp_path, write, message):
    write(tmp_path / "s7.h5")
    with pytest.raises(InputError, match=message):
        SlideBags(look_at(["s7"], {"s7": tmp_path / "s7.h5"}, {}, {}), [torch.tensor(0)])[0]


def test_what_torch_saves_is_read_or_refused(tmp_path):
    features, path = torch.from_numpy(features_of(0, 9)), tmp_path / "s.pt"

    def bag():
        return SlideBags(look_at(["s"], {"s": path}, {"s": tmp_path / "c.pt"}, {}), [torch.tensor(0)])[0]

    torch.save(torch.from_numpy(coords_of(9)).bfloat16().requires_grad_(), tmp_path / "c.pt")
    torch.save(features.requires_grad_(), path)
    assert torch.equal(bag().features, features.detach())
    assert not bag().features.requires_grad
    assert np.array_equal(bag().coords.numpy(), coords_of(9))
    for bad in (features.detach().to(torch.float8_e4m3fn), features.detach().to_sparse(), features.detach() + 0j):
        torch.save(bad, path)
        with pytest.raises(InputError, match=r"slide s: .*s.pt .*(of numbers that torch takes|be read)"):
            bag()


def test_two_files_of_a_slide(tmp_path):
    write_trident(tmp_path / "s.svs.h5", features_of(0, 9))
    assert list(find_files(tmp_path)) == ["s"]
    np.save(tmp_path / "tumor_patches.npy", features_of(0, 9))
    assert list(find_files(tmp_path)) == ["s", "tumor_patches"]
    np.save(tmp_path / "s.npy", features_of(1, 9))
    with pytest.raises(InputError, match=r"data.features: two files of slide s: .*s.svs.h5 and s.npy"):
        find_files(tmp_path)


def test_features_of_another_width(tmp_path):
    widths = {"a": 6, "b": 5}
    files = {name: write_trident(tmp_path / f"{name}.h5", features_of(0, 4, dim=dim)) for name, dim in widths.items()}
    with pytest.raises(InputError, match=r"slide b: .*b.h5 has features of 5 numbers, and slide a, .*a.h5, of 6"):
        look_at(files, files, {}, {})


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_features_that_are_not_finite(tmp_path, bad, dtype):
    values = features_of(0, 9).astype(dtype)
    values[4, 2] = bad
    path = write_trident(tmp_path / "a.h5", values)
    bags = SlideBags(look_at(["a"], {"a": path}, {}, {}), [torch.tensor(0)])
    message = r"slide a: features in .*a.h5 are NaN or infinite in 1 of \d+ patches, first in number 4 from 0"
    with pytest.raises(InputError, match=message):
        bags[0]


def test_large_features_are_finite(tmp_path):
    path = write_trident(tmp_path / "a.h5", np.full((9, 6), 3e38, np.float32))
    assert SlideBags(look_at(["a"], {"a": path}, {}, {}), [torch.tensor(0)])[0].features.max() > 2e38


@pytest.mark.parametrize(("step", "cells"), [(1e6, "1 cell"), (1100.0, r"\d+ cells")])
def test_coordinates_that_fall_together(tmp_path, step, cells):
    path = write_trident(tmp_path / "a.h5", features_of(0, 64))
    (slide,) = look_at(["a"], {"a": path}, {}, {})
    step_told = f"{step:g}".replace("+", r"\+")
    message = (
        rf"slide a: the 64 places of patches in .*a.h5 fall into {cells} of a lattice of step {step_told} \(given\)"
    )
    with pytest.raises(InputError, match=message):
        read_coords(slide, step)


def test_a_step_of_attributes_that_is_wrong_is_told(tmp_path):
    path = write_trident(tmp_path / "a.h5", features_of(0, 64), patch_size=100_000)
    with pytest.raises(InputError, match=r"fall into 1 cell of a lattice of step 200000 \(by the attributes"):
        read_coords(look_at(["a"], {"a": path}, {}, {})[0])


def test_no_coordinates_where_they_are_asked_for(tmp_path):
    np.save(tmp_path / "a.npy", features_of(0, 9))
    (slide,) = look_at(["a"], {"a": tmp_path / "a.npy"}, {}, {})
    with pytest.raises(InputError, match=r"slide a: there are no coordinates in .*a.npy"):
        read_coords(slide)


def test_a_folder_without_features(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"holds no file of features \(.h5, .hdf5, .pt, .npy\), but notes.txt"):
        find_files(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"data.features: there is no folder"):
        find_files(tmp_path / "none")


def test_what_is_no_file_of_features(tmp_path):
    (tmp_path / "slide.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match=r"slide s: .*slide.png is no file of features; allowed are .h5, .hdf5, .pt"):
        look(tmp_path / "slide.png", "features", "s")
    torch.save({"features": tmp_path}, tmp_path / "s.pt")  # a path is no tensor
    with pytest.raises(InputError, match=r"slide s: .*s.pt cannot be read: it holds other things than tensors") as told:
        look(tmp_path / "s.pt", "features", "s")
    assert "weights_only" not in str(told.value)
