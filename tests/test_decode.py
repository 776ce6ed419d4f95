"""Images of every kind as uint8 pixels of one shape, against Pillow written out."""

import concurrent.futures
import io
import re
import struct
import zlib

import numpy as np
import pytest

from lottery_jax import streams
from lottery_jax.data import decode

Image = pytest.importorskip("PIL.Image")
ImageFile = pytest.importorskip("PIL.ImageFile")


def noise(*shape, seed=0, dtype=np.uint8):
    high = np.iinfo(dtype).max + 1
    return np.random.default_rng(seed).integers(0, high, shape, dtype)


def smooth(height, width):
    """Colours that JPEG keeps well."""
    y, x = np.mgrid[:height, :width]
    return np.stack(
        [255 * y // height, 255 * x // width, 255 * (x + y) // (height + width)], -1
    ).astype(np.uint8)


def encoded(picture, form="PNG", **options):
    file = io.BytesIO()
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    picture.save(file, form, **options)
    return file.getvalue()


def png(values, colour):
    """A PNG of 16-bit values, which Pillow cannot write for colours."""

    def chunk(name, content):
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


# --- colours --------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_arrays_are_taken_as_they_are(channels):
    given = noise(5, 7, channels)
    found = decode.image(given)
    wanted = np.repeat(given, 3, -1) if channels == 1 else given[..., :3]
    np.testing.assert_array_equal(found, wanted)
    assert found.dtype == np.uint8


def test_a_plain_array_is_not_copied():
    given = noise(5, 7, 3)
    assert np.shares_memory(decode.image(given), given)


def test_an_array_without_channels_is_grey():
    given = noise(5, 7)
    np.testing.assert_array_equal(decode.image(given, channels=1), given[..., None])
    np.testing.assert_array_equal(decode.image(given)[..., 2], given)


def test_luminance_is_that_of_bt_601():
    given = noise(30, 40, 3)
    exact = given @ np.array([0.299, 0.587, 0.114])
    found = decode.image(given, channels=1)
    assert found.shape == (30, 40, 1)
    np.testing.assert_allclose(found[..., 0], exact, atol=0.5 + 1e-9)
    grey = np.repeat(noise(30, 40, 1), 3, -1)
    np.testing.assert_array_equal(decode.image(grey, channels=1), grey[..., :1])


def test_sixteen_bits_become_eight_by_rounding():
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    wanted = np.rint(every / 257).astype(np.uint8)[..., None]
    np.testing.assert_array_equal(decode.image(every, channels=1), wanted)
    wide = Image.fromarray(every.astype(np.int32))
    assert wide.mode == "I"
    for given in (encoded(every), Image.fromarray(every), wide):
        pixels, kinds = decode.converted(given, channels=1)
        np.testing.assert_array_equal(pixels, wanted)
        assert kinds == ("16-bit",)


def test_of_sixteen_bit_colours_the_higher_byte_is_taken():
    values = noise(6, 5, 3, dtype=np.uint16)
    pixels, kinds = decode.converted(png(values, 2))
    np.testing.assert_array_equal(pixels, values >> 8)
    assert kinds == ("16-bit",)
    _, kinds = decode.converted(png(noise(6, 5, 4, dtype=np.uint16), 6))
    assert kinds == ("alpha", "16-bit")


MODES = {
    "1": ("grey",),
    "L": ("grey",),
    "LA": ("grey", "alpha"),
    "La": ("grey", "alpha"),
    "P": ("palette",),
    "PA": ("palette", "alpha"),
    "RGB": (),
    "RGBA": ("alpha",),
    "RGBa": ("alpha",),
    "RGBX": (),
    "CMYK": ("CMYK",),
    "YCbCr": ("other colours",),
    "HSV": ("other colours",),
    "LAB": ("other colours",),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_what_pillow_makes_of_it(mode):
    through = {"La": "LA", "RGBa": "RGBA"}.get(mode, mode)
    given = Image.fromarray(noise(8, 9, 3)).convert(through).convert(mode)
    plain = given.convert(through)
    if mode in ("1", "L", "LA", "La"):
        wanted = np.repeat(np.asarray(plain.convert("L"))[..., None], 3, -1)
    else:
        wanted = np.asarray(plain.convert("RGB"))
    pixels, kinds = decode.converted(given, name="it")
    np.testing.assert_array_equal(pixels, wanted)
    assert kinds == MODES[mode]
    assert given.mode == mode
    grey, kinds = decode.converted(given, channels=1)
    assert grey.shape == (8, 9, 1)
    assert ("colour" in kinds) == ("grey" not in MODES[mode])


def test_alpha_uncovers_nothing_and_covers_nothing():
    given = noise(5, 6, 4)
    given[..., 3] = 0
    for form in (given, encoded(given), encoded(given, "WEBP", lossless=True, exact=1)):
        np.testing.assert_array_equal(decode.image(form), given[..., :3])


def test_files_are_what_pillow_decodes():
    colours, grey = smooth(40, 60), noise(40, 60)
    cmyk = Image.fromarray(colours).convert("CMYK")
    for content in (
        encoded(colours),
        encoded(colours, "JPEG"),
        encoded(colours, "JPEG", progressive=True),
        encoded(colours, "WEBP"),
        encoded(colours, "BMP"),
        encoded(colours, "TIFF"),
        encoded(grey),
        encoded(grey, "JPEG"),
        encoded(cmyk, "JPEG"),
        encoded(Image.fromarray(colours).convert("P")),
    ):
        wanted = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        for given in (content, bytearray(content), memoryview(content)):
            np.testing.assert_array_equal(decode.image(given), wanted)


def test_orientation_is_ignored():
    turned = Image.Exif()
    turned[0x0112] = 6
    content = encoded(smooth(8, 16), "JPEG", exif=turned)
    assert decode.image(content).shape == (8, 16, 3)


# --- sizes ----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 61), (61, 40), (33, 33), (20, 9), (1, 30)])
@pytest.mark.parametrize("side", [1, 16, 33, 40])
def test_the_centre_square_is_resized(shape, side):
    given = noise(*shape, 3)
    shorter = min(shape)
    top, left = ((n - shorter) // 2 for n in shape)
    square = Image.fromarray(given[top : top + shorter, left : left + shorter])
    wanted = np.asarray(square.resize((side, side), Image.Resampling.BILINEAR))
    for form in (given, encoded(given), Image.fromarray(given)):
        np.testing.assert_array_equal(decode.image(form, side=side), wanted)
    plane = given[..., 0]
    grey = decode.image(plane, side=side, channels=1)
    np.testing.assert_array_equal(grey[..., 0], wanted[..., 0])


@pytest.mark.parametrize("side", [22, 33, 40, 50])
def test_a_jpeg_not_much_larger_is_resized_like_others(side):
    content = encoded(smooth(43, 60), "JPEG")
    whole = np.asarray(Image.open(io.BytesIO(content)))
    found = decode.image(content, side=side)
    np.testing.assert_array_equal(found, decode.image(whole, side=side))


def test_a_square_of_that_side_is_cut_out_exactly():
    given = noise(8, 13, 3)
    np.testing.assert_array_equal(decode.image(given, side=8), given[:, 2:10])


def test_long_images_take_no_more_memory_than_squares():
    found = decode.image(np.zeros((1, 60_000, 3), np.uint8), side=300)
    assert found.shape == (300, 300, 3)


@pytest.mark.parametrize("size", [(100, 150), (127, 90), (64, 64), (129, 700)])
def test_large_jpegs_are_decoded_smaller_but_never_too_small(size, monkeypatch):
    content, side = encoded(smooth(*size), "JPEG", quality=95), 16
    seen = []
    shrunk = decode._resized
    monkeypatch.setattr(
        decode,
        "_resized",
        lambda found, *rest: seen.append(found.size) or shrunk(found, *rest),
    )
    found = decode.image(content, side=side)
    (at,) = seen
    shorter = min(size)
    assert (
        side
        <= min(at)
        == -(-shorter // min(8, 1 << (shorter // side).bit_length() - 1))
    )
    full = decode.image(np.asarray(Image.open(io.BytesIO(content))), side=side)
    # A shift by a quarter of a pixel would be 4.
    assert np.abs(found.astype(int) - full).max() <= 4


def test_an_image_of_pillow_keeps_its_size():
    given = Image.open(io.BytesIO(encoded(smooth(128, 128), "JPEG")))
    assert decode.image(given, side=16).shape == (16, 16, 3)
    assert given.size == (128, 128)


# --- bad input ------------------------------------------------------------------------

FORMS = {
    "jpeg": dict(form="JPEG"),
    "progressive": dict(form="JPEG", progressive=True),
    "png": dict(form="PNG"),
    "webp": dict(form="WEBP"),
    "bmp": dict(form="BMP"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_truncated_file_is_refused_or_lacks_no_pixel(form):
    content = encoded(noise(30, 40, 3), **FORMS[form])
    whole = decode.image(content)
    refused = 0
    for length in {
        *range(0, len(content), 97),
        *range(len(content) - 40, len(content)),
    }:
        try:
            found = decode.image(content[:length], name="a/b.jpg")
        except streams.SourceError as error:
            assert str(error).startswith("a/b.jpg: ")
            refused += 1
        else:
            np.testing.assert_array_equal(found, whole)
            assert length > len(content) - 24, (
                "nothing but what ends the file is missing"
            )
    assert refused > 20


@pytest.mark.parametrize("form", FORMS)
def test_damage_is_an_image_or_a_named_error(form):
    content = encoded(noise(30, 40, 3), **FORMS[form])
    draw = np.random.default_rng(1)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        for at in draw.integers(0, min(len(content), 400), 3):
            damaged[at] = draw.integers(256)
        try:
            assert decode.image(damaged, side=8).shape == (8, 8, 3)
        except streams.SourceError as error:
            assert str(error).startswith("image: ")
            refused += 1
    assert refused


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (b"", "an empty file"),
        (b"no image at all", "no image of a format that Pillow knows"),
        (encoded(noise(4, 4, 3))[:40], "broken"),
        (np.zeros((0, 4, 3), np.uint8), "without pixels, of shape (0, 4, 3)"),
        (np.zeros((4, 0), np.uint8), "without pixels"),
        (Image.new("RGB", (0, 3)), "without pixels, 0 x 3"),
        (np.zeros((4, 4, 2), np.uint8), "uint8 of shape (4, 4, 2); it must be"),
        (np.zeros((4, 4, 3), np.float32), "float32 of shape (4, 4, 3); it must be"),
        (np.zeros(4, np.uint8), "of shape (4,); it must be uint8 or uint16"),
        (Image.new("F", (4, 4)), "floating-point"),
        (Image.new("I", (4, 4), 70_000), "more than 16 bits"),
        (Image.new("I", (4, 4), -1), "more than 16 bits"),
        ("a.jpg", "'a.jpg' is no image"),
        (None, "None is no image"),
    ],
)
def test_what_is_no_image_is_refused_by_its_name(given, why):
    with pytest.raises(streams.SourceError, match=re.escape(why)) as caught:
        decode.image(given, name="train/7", side=4)
    assert str(caught.value).startswith("train/7: ")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("most", [99, 20])
def test_too_many_pixels_are_refused(most, monkeypatch):
    content = encoded(noise(10, 10, 3))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
    with pytest.raises(streams.SourceError, match=r"image: .*pixels"):
        decode.image(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert decode.image(content).shape == (10, 10, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert decode.image(content).shape == (10, 10, 3)


@pytest.mark.parametrize("bad", [{"side": 0}, {"side": 1.5}, {"channels": 4}])
def test_wrong_arguments_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        decode.image(noise(4, 4, 3), **bad)


@pytest.mark.parametrize("lenient", [True, False])
def test_pillow_is_left_as_it_was_and_strict_meanwhile(lenient, monkeypatch):
    """Also where many threads decode and a program lets truncated images pass."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    content = encoded(noise(60, 60, 3), "JPEG")
    cut = content[: len(content) // 2]

    def refused(number):
        given = cut if number % 3 else content
        try:
            decode.image(given)
        except streams.SourceError:
            return True
        return False

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(refused, range(200)))
    assert found == [bool(n % 3) for n in range(200)]
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient
    assert decode._decoding == 0


def test_threads_give_equal_pixels():
    contents = [encoded(smooth(60 + n, 80), "JPEG") for n in range(20)]
    alone = [decode.image(content, side=32) for content in contents]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda c: decode.image(c, side=32), contents))
    np.testing.assert_array_equal(alone, together)


def test_without_pillow_arrays_are_read_and_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "PIL", None)
    assert decode.image(noise(4, 5, 3), side=4).shape == (4, 4, 3)
    for given in (b"\x89PNG", noise(8, 8, 3)):
        with pytest.raises(ImportError, match=r"pip install 'lottery-jax\[data\]'"):
            decode.image(given, side=4)
