"""What makes a trained model's inputs is the same function that made those of its training."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxmodels.data import ImagePreprocessing, Preprocessing, TextPreprocessing, emoji, labelled_images
from jaxmodels.data.embedded.emoji_splits import emoji_splits
from jaxmodels.data.preprocessing import scale_pixels, unscale_pixels
from jaxmodels.data.tokens import encode


def photographs(folder: Path, mode: str = "RGB") -> list[Path]:
    """Class folders with images of several formats and shapes."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(40):
        path = folder / ("cat" if number % 2 else "dog") / f"{number}.{('png', 'jpg')[number % 4 // 2]}"
        path.parent.mkdir(exist_ok=True)
        height, width = rng.integers(9, 60, 2)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).convert(mode).save(path)
        paths.append(path)
    return paths


# -- pixels


def test_bytes_to_numbers_and_back() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    scaled = scale_pixels(images)
    np.testing.assert_array_equal(scaled, images.astype(np.float32) / 127.5 - 1)
    assert (scaled.dtype, scaled.min(), scaled.max()) == (np.float32, -1, 1)
    np.testing.assert_array_equal(unscale_pixels(scaled), images)
    np.testing.assert_array_equal(unscale_pixels(3 * scaled)[0, 0, 0], [0])


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_files_are_prepared_as_the_reader_of_training_data_does(tmp_path: Path, mode: str) -> None:
    paths = photographs(tmp_path, mode)
    splits = labelled_images(tmp_path, size=8)
    channels = splits.train.images.shape[-1]
    assert channels == (3 if mode == "RGB" else 1)
    prepare = ImagePreprocessing(size=8, channels=channels)
    expected = {image.tobytes() for image in scale_pixels(splits.train.images)}
    found = {image.tobytes() for image in prepare(paths)}
    assert expected < found
    opened = prepare([Image.open(path) for path in paths if path.suffix == ".png"])
    assert {image.tobytes() for image in opened} < found


def test_embedded_emoji_are_prepared_as_in_training() -> None:
    splits = emoji_splits("across-styles", size=16)
    images = emoji("fluent", skin_tones=False).images
    prepare = ImagePreprocessing(size=16, resize="box")
    np.testing.assert_array_equal(prepare(images), scale_pixels(splits.test.images))
    np.testing.assert_array_equal(
        prepare([Image.fromarray(image) for image in images[:5]]), prepare(images[:5])
    )
    bilinear = ImagePreprocessing(size=16)(images[:5])
    assert not np.array_equal(bilinear, prepare(images[:5]))


def test_box_means_of_an_image_that_is_no_multiple() -> None:
    image = np.zeros((1, 6, 9, 3), np.uint8)
    image[:, :, 2:7] = 200
    assert ImagePreprocessing(size=4, resize="box").to_pixels(
        ImagePreprocessing(size=4, resize="box")(image)
    ).shape == (1, 4, 4, 3)


@pytest.mark.parametrize(
    ("given", "channels", "expected"),
    [(1, 3, [7, 7, 7]), (3, 1, [95]), (4, 3, [10, 20, 30]), (3, 3, [90, 95, 100])],
)
def test_channels(given: int, channels: int, expected: list[int]) -> None:
    colour = {1: [7], 3: [90, 95, 100], 4: [10, 20, 30, 255]}[given]
    images = np.full((2, 5, 5, given), colour, np.uint8)
    prepare = ImagePreprocessing(size=4, channels=channels)
    pixels = prepare.to_pixels(prepare(images))
    assert pixels.shape == (2, 4, 4, channels)
    assert np.abs(pixels[1, 2, 2].astype(int) - expected).max() <= 1


def test_another_scale() -> None:
    prepare = ImagePreprocessing(size=2, offset=0, scale=255)
    images = np.array([0, 51, 255, 255], np.uint8).reshape(1, 2, 2, 1).repeat(3, -1)
    np.testing.assert_allclose(prepare(images)[0, :, :, 0], [[0, 0.2], [1, 1]], rtol=1e-6)
    np.testing.assert_array_equal(prepare.to_pixels(prepare(images)), images)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 4, 4, 3), np.float32), r"uint8 array .* got dtype=float32, shape=\(1, 4, 4, 3\)"),
        (
            np.zeros((4, 4, 3), np.uint8),
            r"shape=\(4, 4, 3\); a single image needs a first axis: images\[None\]",
        ),
        (np.zeros((1, 3, 4, 5), np.uint8), r"with 1, 3 or 4 channels"),
        ("cat.png", r"images must be a list, also for a single image; write \[image\]"),
        (
            ["nowhere.png"],
            r"every image must be readable; got 1 of 1 .*\n  nowhere.png: there is no such file",
        ),
        ([Image.new("L", (2, 2)), "nowhere.png"], "all file names or all Pillow images"),
    ],
)
def test_what_are_no_images(images: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImagePreprocessing(size=4)(images)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size must be an integer ≥ 1; got size=0"),
        ({"size": 10**12}, "size must be at most 32768; got size=1000000000000"),
        ({"channels": 2}, r"channels must be 1 \(grey\) or 3 \(colour\); got channels=2"),
        ({"resize": "nearest"}, "resize must be 'bilinear' or 'box'; got resize='nearest'"),
        ({"scale": 0}, "scale must be > 0; got scale=0"),
        ({"scale": True}, "scale must be a finite number; got scale=True"),
        ({"offset": "0"}, "offset must be a finite number; got offset='0'"),
        ({"offset": float("nan")}, "offset must be a finite number; got offset=nan"),
    ],
)
def test_wrong_arguments_for_images(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImagePreprocessing(**{"size": 4, **arguments})


# -- text


def test_captions_are_encoded_as_in_training() -> None:
    prepare = TextPreprocessing(first_id=1, start_id=257, pad_id=0, end="\n", length=12)
    np.testing.assert_array_equal(prepare(["cat", "Käse"]), encode(["cat\n", "Käse\n"], 12))
    assert [prepare.decode(ids) for ids in prepare(["cat", "Käse"])] == ["cat", "Käse"]


def test_bytes_of_running_text() -> None:
    prepare = TextPreprocessing()
    np.testing.assert_array_equal(prepare(["Käse"]), [list("Käse".encode())])
    assert prepare(["Käse"]).dtype == np.int32
    assert prepare.decode(prepare(["Käse"])[0]) == "Käse"
    with pytest.raises(ValueError, match="every text must need 3 ids, as there is no pad_id; got 2 for 'ab'"):
        prepare(["ab", "abc"])
    with pytest.raises(ValueError, match=r"write \[text\]"):
        prepare("abc")


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"first_id": -1}, "first_id must be an integer ≥ 0; got first_id=-1"),
        ({"start_id": "a"}, "start_id must be an integer ≥ 0; got start_id='a'"),
        ({"length": 0}, "length must be an integer ≥ 1; got length=0"),
        ({"end": 3}, "end must be a text; got end=3"),
    ],
)
def test_wrong_arguments_for_text(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextPreprocessing(**arguments)


# -- JSON

WHOLE = Preprocessing(
    images=ImagePreprocessing(size=32, channels=1, resize="box", offset=0, scale=255),
    text=TextPreprocessing(first_id=1, start_id=257, end="\n", pad_id=0, length=64),
    class_names=("cat", "Käse\udcff", "$\\foo$"),
)


@pytest.mark.parametrize("preprocessing", [WHOLE, Preprocessing(), Preprocessing(class_names=("a",))])
def test_round_trip(preprocessing: Preprocessing) -> None:
    text = json.dumps(preprocessing.to_json())
    assert Preprocessing.from_json(json.loads(text)) == preprocessing


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("description", "message"),
    [
        ([], r"the file must hold an object with class_names, images, text; got \[\]"),
        ({"image": {}}, "unknown: image; there may be class_names, images, text"),
        ({"images": 3}, "images: images must hold an object with channels, offset, resize"),
        ({"images": {}}, "images: .*size"),
        ({"images": {"size": 8, "width": 8}}, "images: unknown: width; there may be"),
        ({"images": {"size": "8"}}, "images: size must be an integer ≥ 1; got size='8'"),
        ({"text": {"length": -1}}, "text: length must be an integer ≥ 1"),
        ({"class_names": "cat"}, "class_names must be a list of names; got 'cat'"),
        ({"class_names": [1]}, r"class_names must be a list of names; got \[1\]"),
    ],
)
def test_damaged_json(description: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing.from_json(description)
