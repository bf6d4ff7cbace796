"""Lists of captions from other systems and libraries: separators, names twice, images inside of Parquet."""

import pytest

from tests.data.readers.caption_lists import ROWS, comma_separated, jsonl, pairs, parquet, read


# -- names twice, other separators, images inside of a table


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.csv",
            "image,caption,caption\na.png,a,b\n",
            r"caption must be there once; got \['image', 'caption', 'cap",
        ),
        (
            "a.csv",
            "image,image,caption\na.png,a,b\n",
            r"image must be there once; .* in path=.*; rename or remove one",
        ),
        ("a.jsonl", '{"image": "a", "caption": "a", "caption": "b"}', "line 1: caption must be there once"),
    ],
)
def test_a_column_that_is_there_twice(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read(folder / name)


def test_a_column_that_is_there_twice_in_parquet(folder):
    import pyarrow
    from pyarrow.parquet import write_table

    columns = [pyarrow.array(["a.png"]), pyarrow.array(["a"]), pyarrow.array(["b"])]
    write_table(pyarrow.Table.from_arrays(columns, ["image", "caption", "caption"]), folder / "a.parquet")
    with pytest.raises(ValueError, match=r"caption must be there once; .*a\.parquet'; rename or remove one"):
        read(folder / "a.parquet")


def test_another_column_may_be_there_twice(folder):
    path = folder / "a.csv"
    lines = [f"images/{index}.png,a{index},x,y" for index in range(60)]
    path.write_text("\n".join(["image,caption,note,note", *lines]))
    assert len(read(path).train) == len(read(jsonl(folder, ROWS)).train)


def test_a_list_that_was_written_on_windows(folder):
    rows = [{**row, "image": row["image"].replace("/", "\\")} for row in ROWS]
    splits = read(comma_separated(folder, rows))
    everything = [pair for part in (splits.train, splits.validation, splits.test) for pair in pairs(part)]
    assert sorted(everything) == sorted((index, f"ünber {index}") for index in range(60))


def test_backslashes_that_lead_nowhere(folder):
    (folder / "images/7.png").unlink()
    rows = [{**row, "image": row["image"].replace("/", "\\")} for row in ROWS]
    message = r"images\\7\.png: there is no such file; nor is there one with / in place of \\\n"
    with pytest.raises(ValueError, match=message):
        read(jsonl(folder, rows))


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("a" * 5000 + ".png", r"File name too long"),
        ("https://example.com/a.png", r"images must be files, not addresses; download them first"),
        ("a\0.png", r"embedded null"),
    ],
    ids=["long", "address", "null"],
)
def test_paths_that_lead_nowhere_are_named_with_the_others(folder, image, reason):
    rows = [*ROWS, {"image": image, "caption": "a"}]
    with pytest.raises(ValueError, match=rf"every image must be readable; got 1 of \d+(.|\n)*{reason}"):
        read(jsonl(folder, rows))


def test_a_name_with_a_backslash_of_its_own(folder):
    (folder / "images/3.png").rename(folder / "images\\3.png")
    rows = [
        {"image": "images\\3.png" if index == 3 else row["image"], "caption": row["caption"]}
        for index, row in enumerate(ROWS)
    ]
    read(jsonl(folder, rows))


def test_absolute_paths(folder, tmp_path_factory):
    rows = [{**row, "image": str(folder / row["image"])} for row in ROWS]
    splits = read(jsonl(tmp_path_factory.mktemp("elsewhere"), rows))
    assert sum(len(part) for part in (splits.train, splits.validation, splits.test)) == 60


def struct(path):
    return {"bytes": path.read_bytes(), "path": path.name}


@pytest.mark.parametrize(
    "image",
    [struct, lambda path: path.read_bytes(), lambda path: {"bytes": None, "path": str(path)}],
    ids=["struct", "bytes", "path in a struct"],
)
def test_images_inside_of_parquet(folder, image):
    """The layout of Hugging Face's data sets."""
    rows = [{"image": image(folder / row["image"]), "caption": row["caption"]} for row in ROWS]
    rows.append({"image": image(folder / "images/3.png"), "caption": "three"})

    splits = read(parquet(folder, rows))

    parts = (splits.train, splits.validation, splits.test)
    everything = [pair for part in parts for pair in pairs(part)]
    assert sorted(everything) == sorted([*((index, f"ünber {index}") for index in range(60)), (3, "three")])
    assert all(len(part) > 0 for part in parts)
    (home,) = [part for part in parts if "three" in part.captions]
    assert "ünber 3" in home.captions, "two captions of an image in different splits"


@pytest.mark.parametrize("inside", [".", "data"])
def test_a_folder_of_parquet_files(folder, inside):
    target = folder / "set" / inside
    target.mkdir(parents=True)
    for name, indices in (
        ("train-00000-of-00002", range(0, 40, 2)), ("train-00001-of-00002", range(1, 40, 2)),
        ("validation-00000-of-00001", range(40, 50)), ("test", range(50, 60)),
    ):  # fmt: skip
        rows = [
            {"image": struct(folder / f"images/{index}.png"), "caption": f"a {index}"} for index in indices
        ]
        parquet(folder, rows).rename(target / f"{name}.parquet")

    splits = read(folder / "set")

    assert [index for index, _ in pairs(splits.train)] == [*range(0, 40, 2), *range(1, 40, 2)]
    assert pairs(splits.validation) == [(index, f"a {index}") for index in range(40, 50)]
    assert pairs(splits.test) == [(index, f"a {index}") for index in range(50, 60)]


def test_a_broken_image_inside_of_parquet_is_named_by_its_row(folder):
    rows = [{"image": struct(folder / row["image"]), "caption": row["caption"]} for row in ROWS]
    rows[4]["image"]["bytes"] = b"no image"
    with pytest.raises(ValueError, match=r"got 1 of 60 in path=.*:\n  row 5: no image in one of the formats"):
        read(parquet(folder, rows))
    rows[4]["image"]["bytes"] = b""
    with pytest.raises(ValueError, match=r"row 5: image must be a text and not empty; got b''"):
        read(parquet(folder, rows))
