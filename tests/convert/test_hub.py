"""Hub folders keep class, configuration and every bit, and are written completely or not at all."""

import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

import jaxmodels as jm
from jaxmodels.convert import hub
from jaxmodels.convert.tables import CONVERSIONS
from jaxmodels.data import ImagePreprocessing, Preprocessing, TextPreprocessing
from tests.convert import small_models
from tests.disk import full_disk, names


EVERY_MODEL = pytest.mark.parametrize("name", small_models.MODELS)
FILES = ["README.md", "config.json", "model.safetensors"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# -- round trips


@EVERY_MODEL
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model = small_models.filled(name)
    jm.save_pretrained(model, tmp_path / "deep" / "er")
    loaded = jm.from_pretrained(tmp_path / "deep" / "er")
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert hash(loaded.config) == hash(model.config)  # so that lists have become tuples again
    assert repr(loaded.config) == repr(model.config)
    assert small_models.weights(loaded) == small_models.weights(model)
    if name == "MaMMUT, SimpleViT":
        assert loaded.img_encoder.config == model.img_encoder.config
    assert names(tmp_path / "deep" / "er") == FILES


def test_every_class_is_saved_here() -> None:
    assert {name.partition(",")[0] for name in small_models.MODELS} == CONVERSIONS.keys()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype: str, tmp_path: Path) -> None:
    model = small_models.filled("SimpleViT", dtype)
    jm.save_pretrained(model, tmp_path)
    assert small_models.weights(jm.from_pretrained(tmp_path)) == small_models.weights(model)


def test_float64(tmp_path: Path) -> None:
    with jax.enable_x64(True):
        model = small_models.filled("Glom", "float64")
        jm.save_pretrained(model, tmp_path)
        assert small_models.weights(jm.from_pretrained(tmp_path)) == small_models.weights(model)
    with pytest.raises(
        ValueError, match=r"model.safetensors: the state_dict does not fit Glom\n.*: float64, which"
    ):
        jm.from_pretrained(tmp_path)
    assert jm.from_pretrained(tmp_path, dtype=jnp.float32).init_levels.dtype == jnp.float32


def test_dtype_converts(folder: Path) -> None:
    saved, loaded = small_models.filled("Glom"), jm.from_pretrained(folder, dtype="bfloat16")
    for path, variable in small_models.variables(loaded).items():
        expected = np.asarray(small_models.variables(saved)[path][...]).astype(ml_dtypes.bfloat16)
        assert small_models.bits({path: variable[...]}) == small_models.bits({path: expected})
    with pytest.raises(
        ValueError, match="dtype must be one of float16, bfloat16, float32, float64; got dtype='int8'"
    ):
        jm.from_pretrained(folder, dtype="int8")


def test_a_loaded_model_computes(folder: Path) -> None:
    assert jm.from_pretrained(str(folder))(jnp.zeros((1, 6, 6, 3)), iters=1).shape == (1, 9, 3, 4)


def test_the_weights_have_the_published_names(folder: Path) -> None:
    assert (
        small_models.bits(hub.read_state_dict(folder / "model.safetensors")).keys()
        == jm.to_state_dict(small_models.filled("Glom")).keys()
    )


def test_numbers_of_numpy_in_a_config(tmp_path: Path) -> None:
    config = replace(
        small_models.GLOM,
        dim=np.int64(4),
        local_consensus_radius=np.float64(1.5),
        consensus_self=np.bool_(True),
    )
    model = nnx.eval_shape(lambda: jm.Glom(config, rngs=nnx.Rngs(0)))
    state_dict = jm.to_state_dict(small_models.filled("Glom")) | {
        "attention.non_local_mask": jm.models.glom.non_local_mask(3, 1.5)[None]
    }
    jm.save_pretrained(jm.load_state_dict(model, state_dict), tmp_path)
    assert jm.from_pretrained(tmp_path).config == config


# -- the card


@EVERY_MODEL
def test_card(name: str, tmp_path: Path) -> None:
    model = small_models.filled(name, "bfloat16")
    jm.save_pretrained(model, tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: jaxmodels\n")
    assert f"# {type(model).__name__}\n" in card
    assert "bfloat16" in card
    assert f"{sum(a.size for a in jm.to_state_dict(model).values()):,} numbers" in card
    for field in vars(model.config):
        assert f"\n| {field} | " in card
    assert ("| img_encoder: mlp_dim | 12 |" in card) == (name == "MaMMUT, SimpleViT")


# -- what inference needs besides


PREPROCESSING = Preprocessing(
    images=ImagePreprocessing(size=8, channels=1),
    text=TextPreprocessing(first_id=1, length=5, pad_id=0),
    class_names=("cat", "Käse\udcff"),
)
DECODER = {"kernel": np.arange(6, dtype=np.float32).reshape(3, 2).T, "bias": np.ones(3, np.float32)}


def test_preprocessing_and_decoder(tmp_path: Path) -> None:
    model = small_models.filled("Glom")
    jm.save_pretrained(model, tmp_path, preprocessing=PREPROCESSING, decoder=DECODER)
    assert names(tmp_path) == sorted([*FILES, "decoder.safetensors", "preprocessing.json"])
    assert jm.load_preprocessing(tmp_path) == PREPROCESSING
    assert small_models.bits(jm.load_decoder(str(tmp_path))) == small_models.bits(DECODER)
    assert small_models.weights(jm.from_pretrained(tmp_path)) == small_models.weights(model)
    assert 'jm.load_preprocessing("path/to/this/folder")' in (tmp_path / "README.md").read_text()


def test_they_go_with_the_model_that_they_belong_to(tmp_path: Path) -> None:
    jm.save_pretrained(small_models.filled("Glom"), tmp_path, preprocessing=PREPROCESSING, decoder=DECODER)
    jm.save_pretrained(small_models.filled("SimpleViT"), tmp_path)
    assert names(tmp_path) == FILES
    with pytest.raises(
        FileNotFoundError, match=r"preprocessing.json does not exist; jaxmodels train writes it"
    ):
        jm.load_preprocessing(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"decoder.safetensors does not exist; only training that has"
    ):
        jm.load_decoder(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON: Expecting property name"),
        ("[]", ": the file must hold an object with class_names, images, text"),
        ('{"images": {"size": 0}}', ": images: size must be an integer ≥ 1; got size=0"),
    ],
)
def test_damaged_preprocessing(folder: Path, text: str, message: str) -> None:
    (folder / "preprocessing.json").write_text(text)
    with pytest.raises(ValueError, match=f"^{folder}/preprocessing.json ?{message}"):
        jm.load_preprocessing(folder)


# -- saving completely or not at all


@pytest.mark.parametrize("fails", ["weights", "card", "config"])
def test_a_full_disk_leaves_what_was_saved_before(
    folder: Path, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also no new weights beside an old configuration."""
    before = contents(folder)
    if fails == "weights":
        monkeypatch.setattr(hub, "write_safetensors", full_disk)
    else:
        ending, write = {"card": ".README.md.", "config": ".config.json."}[fails], Path.write_text

        def write_text(path: Path, *args: Any, **options: Any) -> int:
            return full_disk(path, None) if path.name.startswith(ending) else write(path, *args, **options)

        monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(OSError, match="No space left on device"):
        jm.save_pretrained(small_models.filled("SimpleViT"), folder)
    assert contents(folder) == before


def test_a_file_that_outgrows_its_limit(folder: Path) -> None:
    before, limits = contents(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    model = small_models.filled("HourglassTransformerLM")
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            jm.save_pretrained(model, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(folder) == before


def test_saving_over_another_model(folder: Path) -> None:
    (folder / "notes.txt").write_text("kept")
    model = small_models.filled("SimpleViT")
    jm.save_pretrained(model, folder)
    assert small_models.weights(jm.from_pretrained(folder)) == small_models.weights(model)
    assert names(folder) == [*FILES, "notes.txt"]


def test_a_configuration_never_comes_before_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, put = [], Path.replace

    def record(path: Path, target: Path) -> Path:
        order.append(target.name)
        return put(path, target)

    monkeypatch.setattr(Path, "replace", record)
    jm.save_pretrained(small_models.filled("Glom"), tmp_path)
    assert order == ["model.safetensors", "README.md", "config.json"]
    order.clear()
    jm.save_pretrained(small_models.filled("Glom"), tmp_path, preprocessing=PREPROCESSING, decoder=DECODER)
    assert order[-1] == "config.json"


def test_a_readme_of_the_user_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "README.md").write_text("# My model\n")
    with caplog.at_level("INFO", "jaxmodels"):
        jm.save_pretrained(small_models.filled("Glom"), tmp_path)
    assert (tmp_path / "README.md").read_text() == "# My model\n"
    assert names(tmp_path) == FILES
    assert caplog.messages == [f"{tmp_path}/README.md was not written by jaxmodels and is kept"]


def test_an_edited_card_is_kept_once_its_mark_is_gone(folder: Path) -> None:
    card = folder / "README.md"
    card.write_text(card.read_text() + "\nTrained on emoji.\n")
    jm.save_pretrained(small_models.filled("Glom"), folder)
    assert "Trained on emoji" not in card.read_text()
    kept = "\n".join(line for line in card.read_text().splitlines() if "<!--" not in line)
    card.write_text(kept)
    jm.save_pretrained(small_models.filled("SimpleViT"), folder)
    assert card.read_text() == kept


@pytest.mark.parametrize("taken", ["README.md", "config.json", "model.safetensors", "preprocessing.json"])
def test_a_folder_in_the_place_of_a_file(folder: Path, taken: str) -> None:
    """A card is left out; without one of the others there is no new model at all."""
    before = {name: content for name, content in contents(folder).items() if name != taken}
    (folder / taken).unlink(missing_ok=True)
    (folder / taken).mkdir()
    model = small_models.filled("SimpleViT")
    if taken == "README.md":
        jm.save_pretrained(model, folder, preprocessing=PREPROCESSING)
        assert small_models.weights(jm.from_pretrained(folder)) == small_models.weights(model)
    else:
        with pytest.raises(IsADirectoryError):
            jm.save_pretrained(model, folder, preprocessing=PREPROCESSING)
        (folder / taken).rmdir()
        assert contents(folder) == before


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        NotADirectoryError, match=f"the weights are saved in a folder, and {tmp_path}/file is a file"
    ):
        jm.save_pretrained(small_models.filled("Glom"), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("folder", "message"),
    [("", "folder must not be empty; '.' is the current folder"), ("gs://bucket/model", "begins with gs://")],
)
def test_places_that_are_no_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    model = small_models.filled("Glom")
    for use in (
        lambda: jm.save_pretrained(model, folder),
        lambda: jm.from_pretrained(folder),
        lambda: jm.load_preprocessing(folder),
        lambda: jm.load_state_dict(model, folder),
    ):
        with pytest.raises(ValueError, match=message.replace("folder must", "must")):
            use()
    assert names(tmp_path) == []


def test_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    jm.save_pretrained(small_models.filled("Glom"), "~/model")
    jm.from_pretrained("~/model")
    jm.load_state_dict(small_models.shapes("Glom"), "~/model/model.safetensors")
    assert names(tmp_path) == ["model"]


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    model = small_models.filled("MaMMUT")
    model.img_encoder = lambda images: images
    with pytest.raises(ValueError, match="img_encoder must be a SimpleViT to be saved; got a function"):
        jm.save_pretrained(model, tmp_path / "folder")
    with pytest.raises(ValueError, match="the Glom has shapes but no weights"):
        jm.save_pretrained(small_models.shapes("Glom"), tmp_path / "folder")
    with pytest.raises(ValueError, match=r"model must be one of Glom, .*; got 'Linear'"):
        jm.save_pretrained(nnx.eval_shape(lambda: nnx.Linear(1, 1, rngs=nnx.Rngs(0))), tmp_path / "folder")
    assert names(tmp_path) == []
