"""The embedded emoji: what is in them, that no split leaks, and what a wrong argument or a damaged file says."""

import hashlib
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest

from jaxmodels.data import emoji
from jaxmodels.data.embedded import packed
from jaxmodels.data.embedded.emoji import GROUPS, STYLES, _images, _index


COUNTS = {"openmoji": 3944, "noto": 3682, "fluent": 3139}
WITHOUT_SKIN_TONES = {"openmoji": 1914, "noto": 1652, "fluent": 1594}
PIXELS_SHA256 = {
    "openmoji": "a5334338ea2a972ffb5e197e7c4b0ae81c12dbe2685979ab00c62de71ddadeb9",
    "noto": "003a415dffd29c14346d12fd826fbe2521527cce8a3ae4d6868438b707c3d10e",
    "fluent": "45784e779f19fd60b2a358e2acb9fa4538985382239a0ddf0be42670d00d88a9",
}
INDEX_SHA256 = "97f24b592aa1a0b9e223693850045e674c79332fe6bb7f61bdad721d891555a6"


def forget_decoded_files():
    _index.cache_clear()
    _images.cache_clear()


@pytest.fixture
def files(tmp_path, monkeypatch):
    """An empty folder in place of the package's data."""
    monkeypatch.setattr(packed, "FILES", tmp_path)
    forget_decoded_files()
    yield tmp_path
    forget_decoded_files()


@pytest.mark.parametrize("style", STYLES)
def test_content(style):
    emoji_set = emoji(style)

    assert len(emoji_set) == COUNTS[style]
    assert emoji_set.images.shape == (COUNTS[style], 64, 64, 3)
    assert emoji_set.images.dtype == np.uint8
    assert hashlib.sha256(emoji_set.images.tobytes()).hexdigest() == PIXELS_SHA256[style]
    assert emoji_set.labels.shape == (COUNTS[style],)
    assert emoji_set.labels.dtype == np.int32
    assert emoji_set.group_names == GROUPS
    assert sorted(set(emoji_set.labels.tolist())) == list(range(9))
    assert all(emoji_set.captions)
    assert set(emoji_set.styles) == {style}
    for field in (emoji_set.captions, emoji_set.concepts, emoji_set.hexcodes, emoji_set.styles):
        assert len(field) == COUNTS[style]
    assert len(set(emoji_set.hexcodes)) == COUNTS[style]


def test_index_checksum():
    assert hashlib.sha256(packed.unpack("emoji.tsv.xz")).hexdigest() == INDEX_SHA256


@pytest.mark.parametrize("style", STYLES)
def test_images_are_drawn_on_white(style):
    images = emoji(style).images

    assert np.mean(images[:, [0, 0, -1, -1], [0, -1, 0, -1]] == 255) > 0.99
    assert np.all(images.min(axis=(1, 2, 3)) < 255), "an empty image"


@pytest.mark.parametrize("style", STYLES)
def test_known_entry(style):
    emoji_set = emoji(style)
    i = emoji_set.hexcodes.index("1F469-1F3FE-200D-1F692")

    assert emoji_set.captions[i] == "woman firefighter: medium-dark skin tone"
    assert emoji_set.concepts[i] == "1F469-200D-1F692"
    assert emoji_set.group_names[emoji_set.labels[i]] == "people-body"


def test_skin_tone_of_two_people_shares_the_concept():
    emoji_set = emoji("openmoji")
    i = emoji_set.hexcodes.index("1FAF1-1F3FB-200D-1FAF2-1F3FC")

    assert emoji_set.concepts[i] == "1F91D"  # handshake


def test_styles_agree_on_captions_and_groups():
    known = {}
    emoji_set = emoji()
    for hexcode, *entry in zip(
        emoji_set.hexcodes, emoji_set.concepts, emoji_set.captions, emoji_set.labels.tolist(), strict=True
    ):
        assert known.setdefault(hexcode, entry) == entry


@pytest.mark.parametrize("split", [None, "train", "test"])
def test_arrays_are_read_only(split):
    emoji_set = emoji("fluent", split=split)

    with pytest.raises(ValueError, match="read-only"):
        emoji_set.images[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        emoji_set.labels[0] = 0


def test_several_styles():
    everything = emoji()
    two = emoji(["fluent", "openmoji"])

    assert len(everything) == sum(COUNTS.values())
    assert tuple(dict.fromkeys(everything.styles)) == STYLES
    assert two.styles == ("openmoji",) * COUNTS["openmoji"] + ("fluent",) * COUNTS["fluent"]
    assert np.array_equal(two.images[-1], emoji("fluent").images[-1])


@pytest.mark.parametrize("style", [*STYLES, None])
def test_no_concept_and_no_image_is_on_both_sides(style):
    train, test = emoji(style, split="train"), emoji(style, split="test")

    assert not set(train.concepts) & set(test.concepts)
    assert all(zlib.crc32(concept.encode()) % 10 == 0 for concept in test.concepts)
    assert not any(zlib.crc32(concept.encode()) % 10 == 0 for concept in train.concepts)
    for name in set(train.styles):
        test_images = {
            image.tobytes() for image, s in zip(test.images, test.styles, strict=True) if s == name
        }
        assert not any(
            image.tobytes() in test_images
            for image, s in zip(train.images, train.styles, strict=True)
            if s == name
        )


@pytest.mark.parametrize(
    ("style", "train", "test"), [("openmoji", 3468, 419), ("noto", 3293, 387), ("fluent", 2837, 300)]
)
def test_split_sizes(style, train, test):
    assert len(emoji(style, split="train")) == train
    assert len(emoji(style, split="test")) == test


@pytest.mark.parametrize("style", STYLES)
def test_skin_tones_can_be_left_out(style):
    emoji_set = emoji(style, skin_tones=False)

    assert len(emoji_set) == WITHOUT_SKIN_TONES[style]
    assert emoji_set.hexcodes == emoji_set.concepts
    assert not any("skin tone" in caption for caption in emoji_set.captions)


@pytest.mark.parametrize("holdout", STYLES)
def test_holdout_tests_on_the_style_that_was_not_trained_on(holdout):
    train = emoji(split="train", holdout=holdout)
    test = emoji(split="test", holdout=holdout)

    assert set(train.styles) == set(STYLES) - {holdout}
    assert set(test.styles) == {holdout}
    assert len(test) == 3139
    assert train.hexcodes == 2 * test.hexcodes
    assert train.captions == 2 * test.captions
    assert train.group_names == test.group_names


def test_holdout_without_skin_tones():
    assert len(emoji(split="train", holdout="noto", skin_tones=False)) == 2 * 1594
    assert len(emoji(split="test", holdout="noto", skin_tones=False)) == 1594


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"style": "twemoji"}, r"style must be one of .*'noto'.*; got style='twemoji'"),
        ({"style": ()}, r"style must be one of .*; got style=\(\)"),
        ({"style": ["noto", "noto"]}, "several different ones.*got style="),
        ({"split": "validation"}, "split must be 'train', 'test' or None; got split='validation'"),
        ({"holdout": "apple", "split": "test"}, "holdout must be one of .*; got holdout='apple'"),
        ({"holdout": "noto"}, "split must be 'train'.* or 'test'.*; got split=None, holdout='noto'"),
        ({"style": "noto", "holdout": "noto", "split": "test"}, "style must be None .*; got style='noto'"),
    ],
)
def test_wrong_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        emoji(**arguments)


def test_missing_file_is_named(files):
    with pytest.raises(FileNotFoundError, match=r"emoji\.tsv\.xz.*install the package again.*build_data"):
        emoji("noto")


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"version https://git"]
)
@pytest.mark.parametrize("name", ["emoji.tsv.xz", "fluent.u8.xz"])
def test_damaged_file_is_named(files, name, damage):
    source = Path(packed.__file__).with_name("files")
    for copied in ("emoji.tsv.xz", "fluent.u8.xz"):
        shutil.copy(source / copied, files)
    (files / name).write_bytes(damage((source / name).read_bytes()))

    with pytest.raises(ValueError, match=rf"whole xz file.*{name}.*install the package again"):
        emoji("fluent")


def test_flipped_bytes_are_noticed(files):
    source = Path(packed.__file__).with_name("files")
    content = bytearray((source / "emoji.tsv.xz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (files / "emoji.tsv.xz").write_bytes(content)

    with pytest.raises(ValueError, match=r"emoji\.tsv\.xz"):
        emoji("noto")


def test_images_that_do_not_fit_the_index_are_noticed(files):
    source = Path(packed.__file__).with_name("files")
    shutil.copy(source / "emoji.tsv.xz", files)
    shutil.copy(source / "fluent.u8.xz", files / "noto.u8.xz")

    with pytest.raises(ValueError, match=r"shape \(3682, 64, 64, 3\); got size=38572032 bytes.*noto\.u8\.xz"):
        emoji("noto")


def test_licences_are_beside_the_data():
    folder = Path(packed.__file__).with_name("files") / "LICENSES"
    attribution = (folder / "ATTRIBUTION.md").read_text("utf-8")

    texts = sorted(path.name for path in folder.glob("*.txt"))
    assert len(texts) == 7
    assert all(f"`{name}`" in attribution for name in texts)
    for path in folder.parent.glob("*.xz"):
        assert f"`{path.name}`" in attribution
    for version in ("OpenMoji 17.0.0", "noto` 1.2.9", "flat` 1.2.6", "emojibase-data` 17.0.0", "sotu` 0.2.3"):
        assert version in attribution
