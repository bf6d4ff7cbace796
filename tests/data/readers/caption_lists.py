"""Lists of 60 captioned images in every format, and what is read from them."""

import csv
import json

from jaxmodels.data import captioned_images


ROWS = [{"image": f"images/{index}.png", "caption": f"ünber {index}"} for index in range(60)]


def jsonl(folder, rows):
    path = folder / "captions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def comma_separated(folder, rows):
    path = folder / "captions.CSV"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def parquet(folder, rows):
    import pyarrow
    from pyarrow.parquet import write_table

    path = folder / "captions.parquet"
    write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def read(path, longest=20, **options):
    return captioned_images(path, size=4, longest=longest, **options)


def pairs(part):
    return [
        (image[0, 0, 0].item(), caption) for image, caption in zip(part.images, part.captions, strict=True)
    ]
