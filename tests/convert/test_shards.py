"""Weights in several files with an index, and aliases of tied weights, are read as if they were one plain file."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import jaxmodels as jm
from jaxmodels.convert import from_checkpoint
from jaxmodels.convert.core import MOST_LISTED
from jaxmodels.convert.files import read_state_dict
from tests.convert import small_models
from tests.convert.shards import write_shards


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return write_shards(tmp_path / "shards", jm.to_state_dict(small_models.filled("Glom")))


def test_shards(index: Path) -> None:
    state_dict = jm.to_state_dict(small_models.filled("Glom"))
    for path in (index, index.parent):
        arrays = read_state_dict(path)
        assert small_models.bits({key: arrays[key] for key in state_dict}) == small_models.bits(state_dict)
        model = jm.load_state_dict(small_models.shapes("Glom"), path)
        assert small_models.bits(jm.to_state_dict(model)) == small_models.bits(state_dict)
        model, _ = from_checkpoint(path, config={"consensus_self": True})
        assert small_models.weights(model) == small_models.weights(small_models.filled("Glom"))


def test_a_hub_folder_with_shards(folder: Path) -> None:
    before = small_models.weights(jm.from_pretrained(folder))
    write_shards(folder, read_state_dict(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    assert small_models.weights(jm.from_pretrained(folder)) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "must be JSON with a weight_map, the file of every entry; JSONDecodeError"),
        ("[]", "must be JSON with a weight_map"),
        ("{}", "must be JSON with a weight_map, the file of every entry; KeyError: 'weight_map'"),
        ('{"weight_map": 3}', "must be JSON with a weight_map"),
        ('{"weight_map": {"a": "../a.safetensors"}}', "must name files beside it; got '../a.safetensors'"),
        ('{"weight_map": {"a": "/dev/zero"}}', "must name files beside it; got '/dev/zero'"),
        (
            '{"weight_map": {"a": "model.safetensors.index.json"}}',
            "must name files beside it; got 'model.safetensors.index.json'",
        ),
    ],
)
def test_a_damaged_index(index: Path, text: str, message: str) -> None:
    index.write_text(text)
    with pytest.raises(ValueError, match=f"^{index} {message}"):
        read_state_dict(index)


def test_an_index_and_files_that_differ(index: Path) -> None:
    content = json.loads(index.read_text())
    first = "model-00001-of-00002.safetensors"
    content["weight_map"]["surprise"] = first
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"^{index} and {first} differ in the entries surprise; download"):
        read_state_dict(index)
    del content["weight_map"]["surprise"], content["weight_map"]["init_levels"]
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="differ in the entries init_levels"):
        read_state_dict(index)
    index.with_name(first).unlink()
    with pytest.raises(FileNotFoundError, match=f"no such weights file: .*{first}"):
        read_state_dict(index)


@pytest.mark.parametrize("kept", ["token_emb.weight", "to_logits.1.weight"])
def test_tied_weights_that_safetensors_lists_in_its_metadata(tmp_path: Path, kept: str) -> None:
    """As safetensors.torch.save_model writes them."""
    state_dict = jm.to_state_dict(small_models.filled("MaMMUT"))
    (other,) = {"token_emb.weight", "to_logits.1.weight"} - {kept}
    stored = {key: array for key, array in state_dict.items() if key != other}
    path = tmp_path / "w.safetensors"
    safetensors.numpy.save_file(stored, path, metadata={"format": "pt", other: kept, "note": "by hand"})
    model = jm.load_state_dict(small_models.shapes("MaMMUT"), path)
    assert small_models.bits(jm.to_state_dict(model)) == small_models.bits(state_dict)
    safetensors.numpy.save_file(stored, path, metadata={"format": "pt", other: "nothing"})
    with pytest.raises(ValueError, match=f"missing from the state_dict: {other}"):
        jm.load_state_dict(small_models.shapes("MaMMUT"), path)


def test_many_problems_are_summarised() -> None:
    state_dict = jm.to_state_dict(small_models.filled("Glom"))
    many = {f"surprise.{number:05}": np.zeros(1) for number in range(50_000)}
    misshapen = {key: np.zeros((7, 7), np.float32) for key in state_dict}
    with pytest.raises(ValueError, match="not fit") as caught:
        jm.load_state_dict(small_models.shapes("Glom"), misshapen | many)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + len(state_dict) + MOST_LISTED + 1
    assert lines[-1] == f"  not in the model: {50_000 - MOST_LISTED:,} more"
    assert "  not in the model: surprise.00199" in lines
