"""Damaged hub folders are refused with the file, the field and the reason."""

import json
import re
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

import jaxmodels as jm
from tests.convert import small_models


def edit(folder: Path, **changes: Any) -> None:
    """Changes entries of config.json; None takes one out."""
    path = folder / "config.json"
    description = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in description.items() if value is not None}))


def edit_config(folder: Path, **changes: Any) -> None:
    edit(folder, config={**json.loads((folder / "config.json").read_text())["config"], **changes})


def refused(folder: Path) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the callers look at the message
        jm.from_pretrained(folder)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not JSON: Expecting value"),
        (b"{", "is not JSON: Expecting property name"),
        (b"\xff\xfe", "is not JSON: 'utf-8' codec can't decode"),
        (b"[" * 100_000, "is not JSON: maximum recursion depth exceeded"),
        (b"[]", "must hold an object with 'model' and 'config'"),
        (b"null", "must hold an object with 'model' and 'config'"),
        (b'{"model": "Glom"}', "must hold an object with 'model' and 'config'"),
        (b'{"config": {}}', "must hold an object with 'model' and 'config'"),
        (b'{"model": "Glom", "config": []}', "config must be an object with the arguments of GlomConfig"),
        (b'{"model": "Glom", "config": null}', "config must be an object with the arguments of GlomConfig"),
        (
            b'{"model": "BERT", "config": {}}',
            "model must be one of Glom, HourglassTransformer, .*; got 'BERT'",
        ),
        (b'{"model": ["Glom"], "config": {}}', r"model must be one of .*; got \"\['Glom'\]\""),
    ],
)
def test_damaged_config(folder: Path, text: bytes, message: str) -> None:
    (folder / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=f"^{folder}/config.json:? {message}"):
        jm.from_pretrained(folder)


def test_fields_that_do_not_fit(folder: Path) -> None:
    edit(folder, model="HourglassTransformerLM", config={"dim": 4, "levels": 3, "z": 1})
    assert refused(folder) == (
        f"{folder}/config.json: the configuration does not fit HourglassTransformerLMConfig\n"
        "  unknown: levels\n  unknown: z\n  missing: depth\n  missing: max_seq_len\n  missing: num_tokens"
    )


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Glom", {"dim": "four"}),
        ("Glom", {"dim": 4.5}),
        ("Glom", {"levels": None}),
        ("Glom", {"image_size": [6, 6]}),
        ("Glom", {"local_consensus_radius": "far"}),
        ("MaMMUT", {"cross_attend_layers": 5}),
        ("MaMMUT", {"cross_attend_layers": ["first"]}),
        ("MaMMUT", {"dim_head": {"a": 1}}),
        ("HourglassTransformerLM", {"depth": [1, 2]}),
        ("HourglassTransformerLM", {"depth": [1, None, 1]}),
        ("HourglassTransformerLM", {"shorten_factor": {"a": 2}}),
        ("HourglassTransformer", {"updown_sample_type": ["linear"]}),
        ("ConditionalRoutedViT", {"router_kwargs": 3}),
        ("ConditionalRoutedViT", {"router_kwargs": {"iters": 3}}),
        ("ConditionalRoutedViT", {"image_size": None}),
        ("ScalableViT", {"heads": [1, 2, 3]}),
        ("ScalableViT", {"depth": 3}),
        ("ScalableViT", {"depth": None}),
        ("ScalableViT", {"window_size": [[1]]}),
        ("SimpleViT", {"patch_size": "4"}),
        ("SimpleViT", {"patch_dropout": "0.5"}),
    ],
)
def test_wrong_values_name_the_file_and_the_field(name: str, changes: dict, tmp_path: Path) -> None:
    jm.save_pretrained(small_models.filled(name), tmp_path)
    edit_config(tmp_path, **changes)
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path}/config.json: ")
    assert next(iter(changes)) in message


def test_weights_that_do_not_fit_the_config(folder: Path) -> None:
    edit_config(folder, dim=8)
    assert f"{folder}/model.safetensors: the state_dict does not fit Glom\n" in refused(folder)
    assert "init_levels: shape (3, 4), the model needs (3, 8)" in refused(folder)


def test_an_encoder_where_none_belongs(folder: Path) -> None:
    edit(folder, img_encoder={"model": "SimpleViT", "config": {}})
    assert refused(folder) == f"{folder}/config.json: a Glom has no img_encoder"


def test_an_encoder_that_does_not_fit(tmp_path: Path) -> None:
    jm.save_pretrained(small_models.filled("MaMMUT, SimpleViT"), tmp_path)
    for encoder in ({"model": "SimpleViT", "config": {"dim": 8}}, {"model": "SimpleViT"}, "SimpleViT"):
        edit(tmp_path, img_encoder=encoder)
        assert refused(tmp_path).startswith(f"{tmp_path}/config.json: img_encoder")


def test_entries_of_later_releases_are_passed_over(folder: Path) -> None:
    edit(folder, written_by="jaxmodels 9")
    assert jm.from_pretrained(folder).config == small_models.GLOM


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_missing_files(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        jm.from_pretrained(folder)


def test_no_folder(folder: Path) -> None:
    for path in (folder / "nowhere", folder / "README.md", folder / "model.safetensors"):
        with pytest.raises(FileNotFoundError, match=f"{path} must be a folder with a config.json"):
            jm.from_pretrained(path)


def test_the_card_is_for_people(folder: Path) -> None:
    (folder / "README.md").unlink()
    assert jm.from_pretrained(folder).config == small_models.GLOM


# -- sizes that the weights cannot have


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("MaMMUT", {"dim": 10**12}, "dim=1000000000000 cannot be: the weights have only "),
        ("MaMMUT", {"depth": 10**6}, "depth=1000000 cannot be: the weights have only "),
        ("MaMMUT", {"depth": 10**12, "cross_attend_layers": None}, "depth=1000000000000 cannot be"),
        ("MaMMUT", {"num_tokens": 10**30}, "num_tokens=10"),
        ("MaMMUT", {"dim_head": 10**12}, "dim_head=1"),
        ("Glom", {"dim": 10**15}, "dim=1"),
        ("Glom", {"image_size": 400_000, "local_consensus_radius": 2}, r"image_size|pos_emb.weight: shape"),
        ("Glom", {"image_size": 400_000, "patch_size": 1}, r"pos_emb.weight: shape"),
        (
            "Glom, local",
            {"image_size": 400_000},
            r"attention.non_local_mask: shape \(1, 9, 9\), the model needs ",
        ),
        ("HourglassTransformerLM", {"depth": 10**12, "shorten_factor": None}, "depth=1"),
        ("HourglassTransformerLM", {"depth": [10**6, 10**6, 10**6]}, "depth=\\[1000000"),
        ("HourglassTransformerLM", {"max_seq_len": 10**12}, "max_seq_len=1"),
        ("ConditionalRoutedViT", {"depth": 10**8}, "depth=1"),
        ("ConditionalRoutedViT", {"attn_heavy_heads": 10**12}, "attn_heavy_heads=1"),
        ("ScalableViT", {"depth": [10**7, 1]}, "depth=\\[1"),
        ("SimpleViT", {"mlp_dim": 10**12}, "mlp_dim=1"),
        ("SimpleViT", {"image_size": 10**12}, "image_size=1"),
    ],
)
def test_giant_sizes(name: str, changes: dict, message: str, tmp_path: Path) -> None:
    """Refused at once, and nothing of these sizes is built."""
    jm.save_pretrained(small_models.filled(name), tmp_path)
    edit_config(tmp_path, **changes)
    started = time.process_time()
    tracemalloc.start()
    try:
        assert re.search(message, refused(tmp_path))
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 2


@pytest.mark.parametrize("levels", [80, 300, 900])
def test_depth_that_is_nested_deep(levels: int, tmp_path: Path) -> None:
    jm.save_pretrained(small_models.filled("HourglassTransformerLM"), tmp_path)
    depth: Any = 0
    for _ in range(levels):
        depth = [0, depth, 0]
    edit_config(tmp_path, depth=depth)
    assert f"config.json: depth is nested {levels} deep, but the keys of the weights only" in refused(
        tmp_path
    )


def test_giant_sizes_of_an_encoder(tmp_path: Path) -> None:
    jm.save_pretrained(small_models.filled("MaMMUT, SimpleViT"), tmp_path)
    description = json.loads((tmp_path / "config.json").read_text())
    description["img_encoder"]["config"]["depth"] = 10**9
    edit(tmp_path, img_encoder=description["img_encoder"])
    assert "config.json: img_encoder: depth=1000000000 cannot be" in refused(tmp_path)


def test_numbers_with_too_many_digits(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"dim": 4', '"dim": ' + "9" * 10_000))
    assert "config.json is not JSON: Exceeds the limit" in refused(folder)


def test_large_numbers_that_leave_no_trace_in_the_weights(tmp_path: Path) -> None:
    jm.save_pretrained(small_models.filled("SimpleViT"), tmp_path)
    edit_config(tmp_path, image_size=4096)
    assert jm.from_pretrained(tmp_path).config.image_size == 4096
