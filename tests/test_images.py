import io
import shutil
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
import tifffile
from PIL import ExifTags, Image, ImageOps

from softmaxfree.errors import InputError
from softmaxfree.images import IMAGE_SUFFIXES, find_images, natural_key, read_image, resized_shape, tell_left_out

RAMP = np.linspace(0, 1, 256).reshape(1, 256).repeat(3, 0)  # black to white
GREY = np.arange(256, dtype=np.uint8)[None].repeat(3, 0)
PHOTO = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def png16(values):
    return Image.fromarray(values.astype(np.uint16))


def grey(path, **arguments):
    return np.asarray(read_image(path, "L", **arguments))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm", "a.jp2"])
def test_16_bits_are_scaled(tmp_path, name):
    values = np.rint(RAMP * 65535).astype(np.uint16)
    if name == "a.pgm":  # which older Pillows do not write
        (tmp_path / name).write_bytes(b"P5 256 3 65535\n" + values.astype(">u2").tobytes())
    else:
        png16(values).save(tmp_path / name)
    if name != "a.jp2":
        assert np.array_equal(grey(tmp_path / name), GREY)
    assert np.abs(grey(tmp_path / name).astype(int) - GREY).max() <= 1
    colour = np.asarray(read_image(tmp_path / name, "RGB"))
    assert (colour == colour[..., :1]).all()
    assert abs(int(colour[0, 128, 0]) - 128) <= 1


@pytest.mark.parametrize(
    ("values", "arguments"),
    [
        (np.rint(RAMP * 65535).astype(">u2"), {"byteorder": ">"}),
        (np.rint(RAMP * 32767).astype(np.int16), {}),
        (np.rint((1 - RAMP) * 65535).astype(np.uint16), {"photometric": "miniswhite"}),
        ((1 - RAMP).astype(np.float32), {"photometric": "miniswhite"}),
        (RAMP.astype(np.float32), {}),
        (GREY, {}),
        (255 - GREY, {"photometric": "miniswhite"}),
    ],
)
def test_tiff_by_the_range_of_its_format(tmp_path, values, arguments):
    tifffile.imwrite(tmp_path / "a.tif", values, **arguments)
    assert np.array_equal(grey(tmp_path / "a.tif"), GREY)


def test_12_bits(tmp_path):
    """Written by hand: two values in three bytes."""
    values = np.array([0, 4095, 2048, 1024])
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in values.reshape(-1, 2).tolist())
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 200), (277, 1), (278, 1), (279, len(packed))]
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0" * 4
    (tmp_path / "a.tif").write_bytes(head.ljust(200, b"\0") + packed)
    assert grey(tmp_path / "a.tif").tolist() == [[0, 255, 128, 64]]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((4, 4), np.nan, np.float32), r"values from nan to nan, allowed are 0 to 1"),
        (np.full((4, 4), 2, np.float32), r"values from 2 to 2, allowed are 0 to 1; scale them"),
        (np.full((4, 4), -0.5, np.float32), r"values from -0.5 to -0.5, allowed are 0 to 1"),
        (np.full((4, 4), -3, np.int16), r"values from -3 to -3, allowed are 0 to 32767"),
        (np.full((4, 4), 200, np.uint32), r"integers of 32 bits"),
        (np.full((4, 4), 200, np.int32), r"integers of 32 bits"),
        (np.full((4, 4), -3, np.int8), r"8-bit integers with a sign"),
        (np.full((4, 4), 0.5, np.float64), r"cannot be read: it is no image of a known format"),
        (np.full((4, 4), 1j, np.complex64), r"cannot be read: it is no image of a known format"),
        (np.zeros((4, 4, 5), np.uint8), r"cannot be read: it is no image of a known format"),
    ],
)
def test_what_cannot_be_shown_is_refused(tmp_path, values, message):
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", planarconfig="contig")
    with pytest.raises(InputError, match=message) as caught:
        read_image(tmp_path / "a.tif")
    assert str(tmp_path / "a.tif") in str(caught.value)


def test_a_fourth_band_is_refused_and_transparency_is_not(tmp_path):
    bands = np.dstack([PHOTO, PHOTO[..., 0]])
    tifffile.imwrite(tmp_path / "a.tif", bands, photometric="rgb", extrasamples=["unspecified"])
    with pytest.raises(InputError, match=r"a.tif has 4 bands, of which some are neither colour nor transparency"):
        read_image(tmp_path / "a.tif")
    tifffile.imwrite(tmp_path / "b.tif", bands, photometric="rgb", extrasamples=["unassalpha"])
    assert np.array_equal(np.asarray(read_image(tmp_path / "b.tif")), PHOTO)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif", "a.jpg"])
def test_orientation(tmp_path, orientation, name):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = Image.fromarray(PHOTO)
    options = {"lossless": True} if name == "a.webp" else {"quality": 100, "subsampling": 0} if "jpg" in name else {}
    image.save(tmp_path / name, exif=exif, **options)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    wanted = np.asarray(ImageOps.exif_transpose(image)).astype(int)
    image = read_image(tmp_path / name)
    assert ImageOps.exif_transpose(image).size == image.size  # nothing is left that could turn it again
    seen = np.asarray(image).astype(int)
    assert seen.shape == ((20, 30, 3) if orientation < 5 else (30, 20, 3))
    assert np.abs(seen - wanted).max() <= (12 if name == "a.jpg" else 0)


def test_16_bits_are_scaled_and_turned(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    png16(np.rint(RAMP * 65535)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(grey(tmp_path / "a.png"), np.rot90(GREY, -1))


def test_broken_exif_turns_nothing(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.png", exif=b"Exif\0\0nonsense")
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), PHOTO)


def kinds():
    image = Image.fromarray(PHOTO)
    clear = image.copy()
    clear.putalpha(0)
    palette = image.quantize(16)
    see_through = palette.copy()
    see_through.info["transparency"] = b"\0" * 16
    plain = np.asarray(palette.convert("RGB"))
    return {
        "rgba": (clear, PHOTO),
        "la": (clear.convert("LA"), np.asarray(image.convert("L").convert("RGB"))),
        "palette": (palette, plain),
        "palette_with_transparency": (see_through, plain),
        "one_bit": (image.convert("1"), np.asarray(image.convert("1").convert("RGB"))),
        "grey": (image.convert("L"), np.asarray(image.convert("L").convert("RGB"))),
    }


@pytest.mark.parametrize("kind", kinds())
def test_kinds_of_colour(tmp_path, kind):
    image, wanted = kinds()[kind]
    image.save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), wanted)
    assert read_image(tmp_path / "a.png", "L").mode == "L"


def test_cmyk_and_lab(tmp_path):
    flat = Image.new("RGB", (16, 16), (200, 30, 90))
    flat.convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.abs(np.asarray(read_image(tmp_path / "a.jpg")).astype(int) - (200, 30, 90)).max() <= 3
    Image.new("LAB", (4, 4), (255, 128, 128)).save(tmp_path / "b.tif")
    assert np.asarray(read_image(tmp_path / "b.tif")).min() >= 250


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_the_first_of_several_frames(tmp_path, name):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    pixel = np.asarray(read_image(tmp_path / name))[0, 0]
    assert pixel[0] > 200
    assert pixel[2] < 50


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.bmp", "a.tif", "a.ppm"])
def test_truncated_files_are_refused(tmp_path, name):
    Image.fromarray(PHOTO).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=rf"{name} cannot be read"):
        read_image(tmp_path / name)


def test_no_images(tmp_path):
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(InputError, match=r"a.png cannot be read: it is no image of a known format"):
        read_image(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "b.png")


def test_open_files_stay_open():
    file = io.BytesIO()
    Image.fromarray(PHOTO).save(file, "PNG")
    assert np.array_equal(np.asarray(read_image(file)), PHOTO)
    assert not file.closed


def huge_png(height, width):
    """The header of a PNG, and rows of zeros."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    rows = zlib.compressobj()
    data = b"".join(rows.compress(bytes(1 + -(-width // 8))) for _ in range(height)) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_the_largest_image(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a.png is 20 high and 30 wide, 600 pixels; allowed are max_pixels = 599"):
        read_image(tmp_path / "a.png", max_pixels=599)
    assert read_image(tmp_path / "a.png", max_pixels=600).size == (30, 20)
    (tmp_path / "b.png").write_bytes(huge_png(13_400, 13_400))
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(InputError, match=r"b.png is 13400 high and 13400 wide, .* max_pixels = 178956970"):
        read_image(tmp_path / "b.png")
    for enough in (180_000_000, None):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read_image(tmp_path / "b.png", "L", max_pixels=enough).size == (13_400, 13_400)
    assert before == Image.MAX_IMAGE_PIXELS


def test_many_threads(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "a.png")
    before, seen = Image.MAX_IMAGE_PIXELS, []
    work = [threading.Thread(target=lambda: seen.append(read_image(tmp_path / "a.png", "L", None))) for _ in range(8)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(seen) == 8
    assert before == Image.MAX_IMAGE_PIXELS


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(folder):
    found = find_images(folder)
    return [path.relative_to(folder).as_posix() for path in found.files], tell_left_out(found.left_out)


def test_images_are_found_in_natural_order(tmp_path):
    touch(
        tmp_path,
        "b/a10.JPG",
        "b/a2.jpeg",
        "b/A3.Tiff",
        "größe 5².PnG",
        "²/²2.webp",
        "c.d/e/f.jfif",
        "notes.txt",
        "b/x.TXT",
        "LICENSE",
    )
    wanted = ["b/a2.jpeg", "b/A3.Tiff", "b/a10.JPG", "c.d/e/f.jfif", "größe 5².PnG", "²/²2.webp"]
    assert names(tmp_path) == (wanted, "3 files left out: 2 .txt, 1 without suffix")
    assert all(suffix == suffix.lower() for suffix in IMAGE_SUFFIXES)


def test_hidden_files_and_folders_are_counted_but_not_those_of_the_system(tmp_path):
    hidden = ("._a.jpg", ".DS_Store", "b/.ipynb_checkpoints/c.png", "__MACOSX/d.jpg", "@eaDir/e.jpg", "Thumbs.db")
    touch(tmp_path / ".data", "a.jpg", *hidden, ".b.jpg", ".git/c.jpg")
    assert names(tmp_path / ".data") == (["a.jpg"], "5 files and folders left out: 5 hidden")
    for folder in (".git", "__MACOSX", "@eaDir", "b"):
        shutil.rmtree(tmp_path / ".data" / folder)
    (tmp_path / ".data" / ".b.jpg").unlink()
    assert names(tmp_path / ".data") == (["a.jpg"], "")


def test_numbers_of_any_length_have_an_order():
    wanted = ["a2", "a10", "a" + "9" * 5000, "a1" + "0" * 5000]
    assert sorted(sorted(wanted), key=natural_key) == wanted


def test_links_are_followed_once(tmp_path):
    touch(tmp_path / "data", "a/1.jpg", "b/2.jpg")
    touch(tmp_path / "elsewhere", "3.jpg")
    (tmp_path / "data" / "a" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "a" / "self").symlink_to("self")
    (tmp_path / "data" / "a" / "again").symlink_to(tmp_path / "data" / "b")
    (tmp_path / "data" / "c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "gone.jpg").symlink_to(tmp_path / "nothing")
    wanted = ["a/1.jpg", "b/2.jpg", "c/3.jpg", "gone.jpg"]
    assert names(tmp_path / "data") == (wanted, "3 files and folders left out: 2 folder linked twice, 1 without suffix")


@pytest.mark.parametrize(
    ("shape", "size", "wanted"),
    [
        ((3000, 60), (512, 2048), (2048, 41)),
        ((60, 3000), (512, 2048), (41, 2048)),
        ((100, 200), (512, 2048), (512, 1024)),
        ((1024, 1024), (512, 512), (512, 512)),
        ((1, 9000), (512, 2048), (1, 2048)),
        ((333, 500), (800, 1333), (800, 1201)),
    ],
)
def test_resized_shape(shape, size, wanted):
    assert resized_shape(*shape, size) == wanted


def test_one_image_of_few_bits_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr("softmaxfree.images._told_of_few_bits", [])
    for name, white in (("full.png", 65535), ("dark.png", 4095), ("other.png", 1023)):
        png16(np.rint(RAMP * white)).save(tmp_path / name)
    png16(np.zeros((2, 2))).save(tmp_path / "black.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("full.png", "black.png"):
            grey(tmp_path / name)
    with pytest.warns(UserWarning, match=r"dark\.png has 16 bits and no value above 4095 of 65535") as told:
        read = [grey(tmp_path / name) for name in ("dark.png", "other.png", "dark.png")]
    assert len(told) == 1
    assert [image.max() for image in read] == [16, 4, 16]
