"""Emoji in three drawing styles, each image with a caption and a group.

| style | source | licence | images |
| --- | --- | --- | --- |
| openmoji | OpenMoji 17.0.0 | CC BY-SA 4.0 | 3,944 |
| noto | Noto Emoji (@iconify-json/noto 1.2.9) | Apache-2.0 | 3,682 |
| fluent | Fluent Emoji Flat (@iconify-json/fluent-emoji-flat 1.2.6) | MIT | 3,139 |

Captions and groups are Unicode's English ones (emojibase-data 17.0.0, MIT), the same for every style.
Images which have no group there are left out (OpenMoji's extras, regional indicator letters, a few
private or unassigned code points), and so are the swatches of skin and hair.

Two protocols:

* Within a style: a concept belongs to the test set when `crc32(concept) % 10 == 0`. The skin-tone variants
  of an emoji share its concept, so they are never on both sides. Some concepts are drawn alike to the last
  pixel (in OpenMoji "artist" and "man artist"): images of other concepts which equal a test image are
  in neither set.
* Across styles (`holdout`): train on two styles, test on the third, over the 3,139 emoji which all three
  draw.

Retrieval: several captions may belong to the same pixels (OpenMoji: 404 images in 182 sets of equals), so
count any of them as a hit.

Shapes: n images of 64 by 64 pixels, channels last, on white.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from jaxmodels.data.embedded.packed import damaged, unpack


Style = Literal["openmoji", "noto", "fluent"]
STYLES: tuple[Style, ...] = get_args(Style)

# Unicode's order; "component" (skin and hair swatches) is left out.
GROUPS = (
    "smileys-emotion",
    "people-body",
    "animals-nature",
    "food-drink",
    "travel-places",
    "activities",
    "objects",
    "symbols",
    "flags",
)

INDEX_FILE = "emoji.tsv.xz"


@dataclass(frozen=True, eq=False, kw_only=True)
class EmojiSet:
    """Images with their captions and groups; entry i of every field belongs to image i."""

    images: UInt8[np.ndarray, "n 64 64 3"]  # read-only
    captions: tuple[str, ...]  # English, e.g. "waving hand: dark skin tone"
    labels: Int32[np.ndarray, " n"]  # index into group_names; read-only
    group_names: tuple[str, ...]  # the same nine for every style and split
    concepts: tuple[str, ...]  # code points without skin tone and FE0F, e.g. "1F44B"
    hexcodes: tuple[str, ...]  # code points without FE0F, e.g. "1F44B-1F3FF"
    styles: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)


class IndexRow(NamedTuple):
    """One emoji of the index."""

    hexcode: str
    concept: str
    group: str
    caption: str
    styles: tuple[str, ...]  # those which draw it


def emoji(
    style: Style | Sequence[Style] | None = None,
    *,
    split: Literal["train", "test"] | None = None,
    holdout: Style | None = None,
    skin_tones: bool = True,
) -> EmojiSet:
    """The images of one style, of several, or of all (`None`), in Unicode's order within each style.

    Args:
        style: "openmoji", "noto", "fluent", or several of them; they always come in this order.
        split: "train" or "test" by concept; `None` for both.
        holdout: a style to test on after training on the two others; `split` then chooses the side, and
            `style` stays `None`.
        skin_tones: `False` leaves the skin-tone variants out.

    Raises:
        ValueError: an unknown name, a combination without meaning, or a damaged data file.
        FileNotFoundError: a data file is missing.
    """
    if split not in ("train", "test", None):
        raise ValueError(f"split must be 'train', 'test' or None; got split={split!r}")
    if holdout is None:
        parts = [_within_style(name, split) for name in _checked_styles(style)]
    else:
        parts = [_across_styles(name) for name in _styles_around(holdout, style, split)]

    rows: list[IndexRow] = []
    styles: list[str] = []
    images: list[UInt8[np.ndarray, "_ 64 64 3"]] = []
    for name, chosen in parts:
        style_rows = _rows(name)
        if not skin_tones:
            chosen = chosen & np.array([row.hexcode == row.concept for row in style_rows])
        rows += [row for row, keep in zip(style_rows, chosen, strict=True) if keep]
        styles += [name] * int(chosen.sum())
        images.append(_images(name) if chosen.all() else _images(name)[chosen])

    return EmojiSet(
        images=_read_only(images[0] if len(images) == 1 else np.concatenate(images)),
        captions=tuple(row.caption for row in rows),
        labels=_read_only(np.array([GROUPS.index(row.group) for row in rows], np.int32)),
        group_names=GROUPS,
        concepts=tuple(row.concept for row in rows),
        hexcodes=tuple(row.hexcode for row in rows),
        styles=tuple(styles),
    )


def _checked_styles(style: Style | Sequence[Style] | None) -> tuple[Style, ...]:
    if style is None:
        return STYLES
    given: tuple[str, ...] = (style,) if isinstance(style, str) else tuple(style)
    if not given or len(set(given)) < len(given) or not set(given) <= set(STYLES):
        raise ValueError(
            f"style must be one of {STYLES}, several different ones, or None for all; got style={style!r}"
        )
    return tuple(name for name in STYLES if name in given)


def _styles_around(holdout: Style, style: object, split: str | None) -> tuple[Style, ...]:
    """The styles on one side of "train on two, test on the third"."""
    if holdout not in STYLES:
        raise ValueError(f"holdout must be one of {STYLES} or None; got holdout={holdout!r}")
    if style is not None:
        raise ValueError(
            "style must be None when holdout is given, because holdout chooses the styles; "
            f"got style={style!r}, holdout={holdout!r}"
        )
    if split is None:
        raise ValueError(
            "split must be 'train' (the other two styles) or 'test' (the held-out one) with holdout; "
            f"got split=None, holdout={holdout!r}"
        )
    return (holdout,) if split == "test" else tuple(name for name in STYLES if name != holdout)


def _within_style(style: Style, split: str | None) -> tuple[Style, Bool[np.ndarray, " n"]]:
    """Which images of a style are in a split by concept."""
    rows = _rows(style)
    if split is None:
        return style, np.ones(len(rows), bool)
    test = np.array([zlib.crc32(row.concept.encode()) % 10 == 0 for row in rows])
    if split == "test":
        return style, test
    images = _images(style)
    test_images = {image.tobytes() for image in images[test]}
    return style, ~test & np.array([image.tobytes() not in test_images for image in images])


def _across_styles(style: Style) -> tuple[Style, Bool[np.ndarray, " n"]]:
    """Which images of a style show an emoji that every style draws."""
    return style, np.array([row.styles == STYLES for row in _rows(style)])


def _rows(style: Style) -> list[IndexRow]:
    return [row for row in _index() if style in row.styles]


@lru_cache(maxsize=1)
def _index() -> tuple[IndexRow, ...]:
    rows = []
    for line in unpack(INDEX_FILE).decode().splitlines():
        fields = line.split("\t")
        if len(fields) != 5:
            raise damaged(INDEX_FILE, f"every line must have 5 fields; got line={line!r}")
        rows.append(IndexRow(*fields[:4], styles=tuple(fields[4].split())))
    return tuple(rows)


@lru_cache(maxsize=len(STYLES))
def _images(style: Style) -> UInt8[np.ndarray, "n 64 64 3"]:
    name = f"{style}.u8.xz"
    pixels = np.frombuffer(unpack(name), np.uint8)  # a view of bytes, hence read-only
    shape = (len(_rows(style)), 64, 64, 3)
    if pixels.size != np.prod(shape):
        raise damaged(name, f"it must hold images of shape {shape}; got size={pixels.size} bytes")
    return pixels.reshape(shape)


def _read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
