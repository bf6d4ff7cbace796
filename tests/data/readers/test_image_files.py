"""Image files and arrays become squares of bytes; what cannot be read is named with a reason."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxmodels.data.readers import image_files
from jaxmodels.data.readers.image_files import crop_squares, read_images, same_channels


NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def read(path, size):
    images, reasons = read_images([path], size=size)
    assert reasons == [None]
    return images[0]


def reason(path, size=4):
    images, reasons = read_images([path], size=size)
    assert len(images) == 0
    return reasons[0]


def bomb(path, side):
    """A PNG of a few bytes which says that it is side × side."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))
    )
    return path


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".ppm"])
def test_an_image_of_the_right_size_keeps_its_pixels(tmp_path, suffix):
    Image.fromarray(NOISE[:8, :8]).save(tmp_path / f"a{suffix}")

    np.testing.assert_array_equal(read(tmp_path / f"a{suffix}", 8), NOISE[:8, :8])


@pytest.mark.parametrize("tall", [False, True])
def test_the_long_side_is_cut_equally(tmp_path, tall):
    stripes = np.zeros((4, 12, 3), np.uint8)
    stripes[:, :4, 0] = stripes[:, 4:8, 1] = stripes[:, 8:, 2] = 255
    Image.fromarray(stripes.swapaxes(0, 1) if tall else stripes).save(tmp_path / "a.png")

    np.testing.assert_array_equal(read(tmp_path / "a.png", 4), np.full((4, 4, 3), [0, 255, 0], np.uint8))


def test_shrinking_averages(tmp_path):
    checkers = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(checkers).save(tmp_path / "a.png")

    assert np.abs(read(tmp_path / "a.png", 4).astype(int) - 127).max() <= 2


def test_large_jpegs_are_what_they_are_when_decoded_in_full(tmp_path):
    y, x = np.indices((512, 768)) / 512
    waves = np.stack([255 * y, 120 * x, 127 + 120 * np.sin(200 * x)], -1).astype(np.uint8)
    Image.fromarray(waves).save(tmp_path / "a.jpg", quality=95)
    Image.open(tmp_path / "a.jpg").save(tmp_path / "a.png")

    for size in (16, 128):
        difference = read(tmp_path / "a.jpg", size).astype(int) - read(tmp_path / "a.png", size)
        assert np.abs(difference).max() <= 8


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (4, 4), (0, 0, 0, 0)), [255, 255, 255]),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 255)), [255, 0, 0]),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 51)), [204, 204, 204]),
        (Image.new("LA", (4, 4), (10, 0)), [255]),
        (Image.new("LA", (4, 4), (10, 255)), [10]),
        (Image.new("L", (4, 4), 10), [10]),
        (Image.new("1", (4, 4), 1), [255]),
        (Image.new("P", (4, 4), 0), [0, 0, 0]),
        (Image.fromarray(np.full((4, 4), 100 * 257 + 129, np.uint16)), [101]),
        (Image.fromarray(np.full((4, 4), 65535, np.uint16)), [255]),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value),
)
def test_type_of_pixels(tmp_path, image, expected):
    image.save(tmp_path / "a.png")

    np.testing.assert_array_equal(
        read(tmp_path / "a.png", 4), np.broadcast_to(np.uint8(expected), (4, 4, len(expected)))
    )


@pytest.mark.parametrize("mode", ["P", "L"])
def test_one_transparent_colour_is_white(tmp_path, mode):
    image = Image.new(mode, (4, 4), 1)
    if mode == "P":
        image.putpalette([0, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "a.png", transparency=1)

    pixels = read(tmp_path / "a.png", 4)

    assert (pixels[0, 0] == 0).all()
    assert (pixels[0, 1] == 255).all()


def test_printers_colours(tmp_path):
    Image.new("CMYK", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a.jpg")

    np.testing.assert_array_equal(read(tmp_path / "a.jpg", 4), np.full((4, 4, 3), 255))


def test_the_orientation_of_the_camera(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(NOISE[:8, :8]).save(tmp_path / "a.png", exif=exif)

    np.testing.assert_array_equal(read(tmp_path / "a.png", 8), np.rot90(NOISE[:8, :8], -1))


@pytest.mark.parametrize("notes", [b"junk", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12"], ids=["junk", "cut"])
def test_an_image_is_readable_when_the_notes_of_the_camera_are_not(tmp_path, notes):
    Image.fromarray(NOISE[:8, :8]).save(tmp_path / "a.png", exif=notes)

    np.testing.assert_array_equal(read(tmp_path / "a.png", 8), NOISE[:8, :8])


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("L", (4, 4), value) for value in (50, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])

    assert (read(tmp_path / "a.gif", 4) == 50).all()


@pytest.mark.parametrize("modes", [["L", "RGB", "L"], ["RGB", "L", "L"]])
def test_grey_images_among_coloured_ones_have_three_channels(tmp_path, modes):
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for index, (mode, path) in enumerate(zip(modes, paths, strict=True)):
        Image.new("L", (4, 4), 50 * index).convert(mode).save(path)

    images, reasons = read_images(paths, size=4)

    assert reasons == [None] * 3
    np.testing.assert_array_equal(images, np.full((3, 4, 4, 3), np.uint8([[[[0]]], [[[50]]], [[[100]]]])))


def test_unreadable_images_leave_no_gap(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for index in (0, 2, 4):
        Image.new("L", (4, 4), index).save(paths[index])

    images, reasons = read_images(paths, size=4)

    assert images[:, 0, 0, 0].tolist() == [0, 2, 4]
    assert [text is None for text in reasons] == [True, False, True, False, True]


def test_no_images():
    images, reasons = read_images([], size=4)

    assert images.shape == (0, 4, 4, 1)
    assert reasons == []


@pytest.mark.parametrize("suffix", [".bmp", ".gif", ".jpg", ".png", ".ppm", ".tiff", ".webp"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_image(tmp_path, suffix, share):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(NOISE).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])

    assert reason(path)


def test_reasons(tmp_path):
    names = ("a.png", "b.png", "c.png", "d.tiff", "e.png")
    empty, text, postscript, floats, pointer = (tmp_path / name for name in names)
    empty.write_bytes(b"")
    text.write_text("version 1\n")
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\n")
    postscript.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n")
    Image.new("F", (4, 4)).save(floats)

    assert reason(tmp_path / "none.png") == "there is no such file"
    for path in (empty, text, postscript):
        assert reason(path) == "no image in one of the formats BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP"
    assert reason(pointer) == "it is a pointer of Git LFS without the content; run git lfs pull"
    assert reason(floats) == "pixels of type 'F' have no fixed range: save the image with 8 bits"


@pytest.mark.parametrize("side", [9_460, 40_000])  # just above our limit, and far above Pillow's
def test_decompression_bomb(tmp_path, side):
    assert reason(bomb(tmp_path / "a.png", side)) == (
        "more than 89,478,485 pixels, perhaps a decompression bomb"
    )


def test_limit_of_pixels_is_inclusive(tmp_path, monkeypatch):
    Image.new("L", (10, 10)).save(tmp_path / "a.png")

    monkeypatch.setattr(image_files, "MAX_PIXELS", 100)
    assert read(tmp_path / "a.png", 4).shape == (4, 4, 1)
    monkeypatch.setattr(image_files, "MAX_PIXELS", 99)
    assert "more than 99 pixels" in reason(tmp_path / "a.png")


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    """Nobody writes into this FIFO: whoever opened it would wait for ever."""
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    (tmp_path / "c.png").mkdir()

    for name in ("a.png", "b.png", "c.png"):
        assert reason(tmp_path / name) == "not a regular file"


def test_no_permission(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError

    monkeypatch.setattr(Image, "open", refuse)

    (tmp_path / "a.png").touch()
    assert reason(tmp_path / "a.png") == "not enough permission to read it"


def test_arrays_of_the_right_size_are_not_touched():
    images = NOISE[None, :8, :8]

    assert crop_squares(images, 8) is images


@pytest.mark.parametrize(("channels", "result"), [(1, 1), (3, 3), (4, 3)])
def test_arrays_become_squares_like_files(tmp_path, channels, result):
    image = np.resize(NOISE, (40, 60, channels))
    Image.fromarray(image[..., 0] if channels == 1 else image).save(tmp_path / "a.png")

    resized = crop_squares(image[None], 16)

    assert resized.shape == (1, 16, 16, result)
    np.testing.assert_array_equal(resized[0], read(tmp_path / "a.png", 16))


def test_transparency_in_arrays_of_the_right_size_is_white():
    images = np.zeros((2, 4, 4, 4), np.uint8)

    np.testing.assert_array_equal(crop_squares(images, 4), np.full((2, 4, 4, 3), 255))


def test_same_channels():
    grey, coloured = np.zeros((2, 4, 4, 1), np.uint8), np.zeros((3, 4, 4, 3), np.uint8)

    assert [images.shape[-1] for images in same_channels({"train": grey, "test": grey}).values()] == [1, 1]
    assert [images.shape[-1] for images in same_channels({"train": grey, "test": coloured}).values()] == [
        3,
        3,
    ]
