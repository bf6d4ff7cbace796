"""Hub folders keep class, configuration and every bit; bare checkpoints show their class and sizes."""

import json
import resource
from collections.abc import Mapping
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
from jaxmodels.convert import from_checkpoint, hub
from jaxmodels.convert.files import write_state_dict
from jaxmodels.convert.hub import recognise
from jaxmodels.convert.tables import CONVERSIONS, infer_config
from tests.convert import tiny
from tests.convert.conftest import full_disk, names


EVERY_MODEL = pytest.mark.parametrize("name", tiny.MODELS)
FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved Glom."""
    jm.save_pretrained(tiny.filled("Glom"), tmp_path / "glom")
    return tmp_path / "glom"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit(folder: Path, **changes: Any) -> None:
    """Changes entries of config.json; None takes one out."""
    path = folder / "config.json"
    description = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in description.items() if value is not None}))


def edit_config(folder: Path, **changes: Any) -> None:
    edit(folder, config={**json.loads((folder / "config.json").read_text())["config"], **changes})


# -- round trips


@EVERY_MODEL
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model = tiny.filled(name)
    jm.save_pretrained(model, tmp_path / "deep" / "er")
    loaded = jm.from_pretrained(tmp_path / "deep" / "er")
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert hash(loaded.config) == hash(model.config)  # so that lists have become tuples again
    assert repr(loaded.config) == repr(model.config)
    assert tiny.weights(loaded) == tiny.weights(model)
    if name == "MaMMUT, SimpleViT":
        assert loaded.img_encoder.config == model.img_encoder.config
    assert names(tmp_path / "deep" / "er") == FILES


def test_every_class_is_saved_here() -> None:
    assert {name.partition(",")[0] for name in tiny.MODELS} == CONVERSIONS.keys()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype: str, tmp_path: Path) -> None:
    model = tiny.filled("SimpleViT", dtype)
    jm.save_pretrained(model, tmp_path)
    assert tiny.weights(jm.from_pretrained(tmp_path)) == tiny.weights(model)


def test_float64(tmp_path: Path) -> None:
    with jax.enable_x64(True):
        model = tiny.filled("Glom", "float64")
        jm.save_pretrained(model, tmp_path)
        assert tiny.weights(jm.from_pretrained(tmp_path)) == tiny.weights(model)
    with pytest.raises(
        ValueError, match=r"model.safetensors: the state_dict does not fit Glom\n.*: float64, which"
    ):
        jm.from_pretrained(tmp_path)
    assert jm.from_pretrained(tmp_path, dtype=jnp.float32).init_levels.dtype == jnp.float32


def test_dtype_converts(folder: Path) -> None:
    saved, loaded = tiny.filled("Glom"), jm.from_pretrained(folder, dtype="bfloat16")
    for path, variable in tiny.variables(loaded).items():
        expected = np.asarray(tiny.variables(saved)[path][...]).astype(ml_dtypes.bfloat16)
        assert tiny.bits({path: variable[...]}) == tiny.bits({path: expected})
    with pytest.raises(
        ValueError, match="dtype must be one of float16, bfloat16, float32, float64; got dtype='int8'"
    ):
        jm.from_pretrained(folder, dtype="int8")


def test_a_loaded_model_computes(folder: Path) -> None:
    assert jm.from_pretrained(str(folder))(jnp.zeros((1, 6, 6, 3)), iters=1).shape == (1, 9, 3, 4)


def test_the_weights_have_the_published_names(folder: Path) -> None:
    assert (
        tiny.bits(hub.read_state_dict(folder / "model.safetensors")).keys()
        == jm.to_state_dict(tiny.filled("Glom")).keys()
    )


def test_numbers_of_numpy_in_a_config(tmp_path: Path) -> None:
    config = replace(
        tiny.GLOM, dim=np.int64(4), local_consensus_radius=np.float64(1.5), consensus_self=np.bool_(True)
    )
    model = nnx.eval_shape(lambda: jm.Glom(config, rngs=nnx.Rngs(0)))
    state_dict = jm.to_state_dict(tiny.filled("Glom")) | {
        "attention.non_local_mask": jm.models.glom.non_local_mask(3, 1.5)[None]
    }
    jm.save_pretrained(jm.load_state_dict(model, state_dict), tmp_path)
    assert jm.from_pretrained(tmp_path).config == config


# -- the card


@EVERY_MODEL
def test_card(name: str, tmp_path: Path) -> None:
    model = tiny.filled(name, "bfloat16")
    jm.save_pretrained(model, tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: jaxmodels\n")
    assert f"# {type(model).__name__}\n" in card
    assert "bfloat16" in card
    assert f"{sum(a.size for a in jm.to_state_dict(model).values()):,} numbers" in card
    for field in vars(model.config):
        assert f"\n| {field} | " in card
    assert ("| img_encoder: mlp_dim | 12 |" in card) == (name == "MaMMUT, SimpleViT")


# -- damaged folders


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
    jm.save_pretrained(tiny.filled(name), tmp_path)
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
    jm.save_pretrained(tiny.filled("MaMMUT, SimpleViT"), tmp_path)
    for encoder in ({"model": "SimpleViT", "config": {"dim": 8}}, {"model": "SimpleViT"}, "SimpleViT"):
        edit(tmp_path, img_encoder=encoder)
        assert refused(tmp_path).startswith(f"{tmp_path}/config.json: img_encoder")


def test_entries_of_later_releases_are_passed_over(folder: Path) -> None:
    edit(folder, written_by="jaxmodels 9")
    assert jm.from_pretrained(folder).config == tiny.GLOM


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
    assert jm.from_pretrained(folder).config == tiny.GLOM


# -- saving whole or not at all


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
        jm.save_pretrained(tiny.filled("SimpleViT"), folder)
    assert contents(folder) == before


def test_a_file_that_outgrows_its_limit(folder: Path) -> None:
    before, limits = contents(folder), resource.getrlimit(resource.RLIMIT_FSIZE)
    model = tiny.filled("HourglassTransformerLM")
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            jm.save_pretrained(model, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(folder) == before


def test_saving_over_another_model(folder: Path) -> None:
    (folder / "notes.txt").write_text("kept")
    model = tiny.filled("SimpleViT")
    jm.save_pretrained(model, folder)
    assert tiny.weights(jm.from_pretrained(folder)) == tiny.weights(model)
    assert names(folder) == [*FILES, "notes.txt"]


def test_a_configuration_never_comes_before_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order, put = [], Path.replace

    def record(path: Path, target: Path) -> Path:
        order.append(target.name)
        return put(path, target)

    monkeypatch.setattr(Path, "replace", record)
    jm.save_pretrained(tiny.filled("Glom"), tmp_path)
    assert order == ["model.safetensors", "README.md", "config.json"]


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        NotADirectoryError, match=f"the weights are saved in a folder, and {tmp_path}/file is a file"
    ):
        jm.save_pretrained(tiny.filled("Glom"), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    model = tiny.filled("MaMMUT")
    model.img_encoder = lambda images: images
    with pytest.raises(ValueError, match="img_encoder must be a SimpleViT to be saved; got a function"):
        jm.save_pretrained(model, tmp_path / "folder")
    with pytest.raises(ValueError, match="the Glom has shapes but no weights"):
        jm.save_pretrained(tiny.shapes("Glom"), tmp_path / "folder")
    with pytest.raises(ValueError, match=r"model must be one of Glom, .*; got 'Linear'"):
        jm.save_pretrained(nnx.eval_shape(lambda: nnx.Linear(1, 1, rngs=nnx.Rngs(0))), tmp_path / "folder")
    assert names(tmp_path) == []


# -- bare checkpoints

# What shapes do not tell and defaults do not cover, as a user has to give it; and what is then a default.
GIVEN: dict[str, dict[str, Any]] = {
    "Glom": {"consensus_self": True},
    "Glom, local": {},
    "HourglassTransformer": {"heads": 3, "causal": True},
    "HourglassTransformerLM": {"dim_head": 3, "shorten_factor": [3, 2]},
    "HourglassTransformerLM, flat": {"heads": 2},
    "ConditionalRoutedViT": {
        "image_size": [8, 16], "patch_size": [2, 4], "attn_num_heavy_tokens_q": 2, "attn_num_heavy_tokens_kv": 2,
        "attn_light_heads": 2, "attn_light_window_size": 2, "ff_num_heavy_tokens": 3,
        "router_kwargs": {"n_iters": 7}, "tie_break": "index",
    },
    "MaMMUT": {"caption_loss_weight": 0.5, "pad_id": -1},
    "MaMMUT, SimpleViT": {"caption_loss_weight": 0.5, "pad_id": -1},
    "ScalableViT": {"heads": [2, 1], "window_size": [2, None], "dropout": 0.1},
    "SimpleViT": {"image_size": [8, 4], "heads": 2},
}  # fmt: skip
ASSUMED = {
    "Glom": [],
    "Glom, local": ["consensus_self"],
    "HourglassTransformer": [],
    "HourglassTransformerLM": ["causal"],
    "HourglassTransformerLM, flat": ["shorten_factor", "attn_resampling", "updown_sample_type", "causal"],
    "ConditionalRoutedViT": ["router_straight_through", "default_coor_descent_eps"],
    "MaMMUT": ["cross_attend_every", "contrastive_loss_weight"],
    "MaMMUT, SimpleViT": ["cross_attend_every", "contrastive_loss_weight"],
    "ScalableViT": [],
    "SimpleViT": ["patch_dropout"],
}
ENCODER = {"image_size": [8, 4], "heads": 2}


def checkpoint(name: str, folder: Path, **changes: np.ndarray | None) -> Path:
    state_dict = {**jm.to_state_dict(tiny.filled(name)), **changes}
    path = folder / "bare.safetensors"
    write_state_dict(path, {key: array for key, array in state_dict.items() if array is not None})
    return path


@EVERY_MODEL
def test_bare_checkpoints(name: str, tmp_path: Path) -> None:
    expected = tiny.filled(name)
    kind = type(expected).__name__
    model, assumed = from_checkpoint(
        checkpoint(name, tmp_path),
        model="HourglassTransformer" if kind == "HourglassTransformer" else None,
        config=GIVEN[name],
        encoder=ENCODER if name == "MaMMUT, SimpleViT" else None,
    )
    assert type(model) is type(expected)
    assert tiny.weights(model) == tiny.weights(expected)
    assert assumed == ASSUMED[name]
    if name == "Glom, local":  # any radius below the next distance gives the same mask
        assert expected.config.local_consensus_radius == pytest.approx(model.config.local_consensus_radius)
        model.config = replace(model.config, local_consensus_radius=expected.config.local_consensus_radius)
    assert model.config == expected.config
    if name == "MaMMUT, SimpleViT":
        assert model.img_encoder.config == expected.img_encoder.config


@EVERY_MODEL
def test_recognised_by_its_keys(name: str) -> None:
    kind = name.partition(",")[0]
    state_dict = jm.to_state_dict(tiny.filled(name))
    if kind == "HourglassTransformer":
        with pytest.raises(
            ValueError, match=r"bare HourglassTransformer, pass the class as model, one of Glom, Ho"
        ):
            recognise(state_dict)
    else:
        assert recognise(state_dict) == kind


def test_recognised_in_its_wrapper() -> None:
    state_dict = jm.to_state_dict(tiny.filled("HourglassTransformerLM"))
    assert recognise({f"net.{key}": array for key, array in state_dict.items()}) == "HourglassTransformerLM"


@pytest.mark.parametrize(
    ("keys", "shown"), [({}, "there are none"), ({"b": 0, "a": 0}, "the first are a, b")]
)
def test_unrecognised_keys(keys: dict, shown: str, tmp_path: Path) -> None:
    write_state_dict(tmp_path / "w.safetensors", {key: np.zeros(1) for key in keys})
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}/w.safetensors: the keys are .* no published model \({shown}\)"
    ):
        from_checkpoint(tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("HourglassTransformerLM", {}, "heads or dim_head must be given; .* heads · dim_head = 6"),
        ("ConditionalRoutedViT", {"patch_size": [2, 4]}, "attn_light_heads or attn_light_dim_head must be given; .* = 6"),
        ("ConditionalRoutedViT", {"attn_light_heads": 2}, "patch_size and channels must be given"),
        ("ScalableViT", {}, "heads must be given; stage 0"),
        ("SimpleViT", {"image_size": [8, 4]}, "heads or dim_head must be given; .* heads · dim_head = 6"),
        ("SimpleViT", {"heads": 2}, "do not tell these arguments of SimpleViT: image_size; pass them as config"),
        (
            "ConditionalRoutedViT",
            {"patch_size": [2, 4], "attn_light_heads": 2},
            "do not tell .*: attn_light_window_size, attn_num_heavy_tokens_kv, attn_num_heavy_tokens_q, ff_num_heavy_tok",
        ),
        ("HourglassTransformerLM", {"dim_head": 3}, "shorten_factor"),
        ("Glom", {"dims": 3}, "Glom has no argument dims; it has consensus_self, dim, image_size"),
        ("HourglassTransformerLM", {"heads": 0}, "heads"),
        ("HourglassTransformerLM", {"heads": 4}, "heads"),
        ("HourglassTransformerLM", {"heads": "two"}, "heads"),
        ("ScalableViT", {"heads": 0}, "heads"),
        ("ScalableViT", {"heads": [1, 2, 3]}, "heads"),
        ("ScalableViT", {"ssa_dim_key": 0}, "ssa_dim_key"),
        ("SimpleViT", {"heads": 0, "image_size": 8}, "heads"),
        ("SimpleViT", {"heads": None, "image_size": 8}, "heads"),
        ("SimpleViT", {"heads": 2, "image_size": 8, "patch_size": 0}, "patch_size"),
        ("SimpleViT", {"heads": 2, "image_size": 8, "channels": 0}, "channels"),
        ("ConditionalRoutedViT", {"attn_light_heads": 0, "patch_size": [2, 4]}, "attn_light_heads"),
        ("Glom", {"dim": 5}, r"init_levels: shape \(3, 4\), the model needs \(3, 5\)"),
        ("MaMMUT", {"heads": 4}, "to_q.weight: shape"),
    ],
)  # fmt: skip
def test_what_a_checkpoint_does_not_tell(name: str, given: dict, message: str, tmp_path: Path) -> None:
    path = checkpoint(name, tmp_path)
    with pytest.raises(ValueError, match=rf"(?s)^{path}: .*{message}"):
        from_checkpoint(path, config=given)


def test_what_an_encoder_does_not_tell(tmp_path: Path) -> None:
    path = checkpoint("MaMMUT, SimpleViT", tmp_path)
    with pytest.raises(ValueError, match="heads or dim_head must be given"):
        from_checkpoint(path)
    with pytest.raises(ValueError, match="arguments of SimpleViT: image_size; pass them as encoder"):
        from_checkpoint(path, encoder={"heads": 2})
    with pytest.raises(ValueError, match="SimpleViT has no argument size"):
        from_checkpoint(path, encoder={"size": 2})
    for name in ("MaMMUT", "Glom"):
        with pytest.raises(
            ValueError, match=f"encoder is for a MaMMUT with an image .* this is a {name} without one"
        ):
            from_checkpoint(checkpoint(name, tmp_path), encoder=ENCODER)


def test_an_encoder_in_a_bare_module(tmp_path: Path) -> None:
    expected = tiny.filled("MaMMUT, SimpleViT")
    state_dict = {
        key.replace("img_encoder.vit.", "img_encoder."): a for key, a in jm.to_state_dict(expected).items()
    }
    write_state_dict(tmp_path / "w.safetensors", state_dict)
    model, _ = from_checkpoint(tmp_path / "w.safetensors", config=GIVEN["MaMMUT"], encoder=ENCODER)
    assert tiny.weights(model) == tiny.weights(expected)
    assert model.img_encoder.config == tiny.VIT


def test_a_wrong_class(tmp_path: Path) -> None:
    path = checkpoint("Glom", tmp_path)
    with pytest.raises(ValueError, match=f"^{path}: model must be one of Glom, .*; got 'Glim'"):
        from_checkpoint(path, model="Glim")
    for kind in CONVERSIONS.keys() - {"Glom"}:
        with pytest.raises(ValueError, match=f"^{path}: "):
            from_checkpoint(path, model=kind)


def test_incomplete_checkpoints(tmp_path: Path) -> None:
    for key in jm.to_state_dict(tiny.filled("Glom")):
        with pytest.raises(ValueError, match=f"(?s)bare.safetensors: .*{key}|no published model"):
            from_checkpoint(checkpoint("Glom", tmp_path, **{key: None}))


def test_misshapen_checkpoints(tmp_path: Path) -> None:
    """The sizes cannot be read off an array with other axes; the file is named all the same."""
    for name in tiny.MODELS:
        kind, state_dict = name.partition(",")[0], jm.to_state_dict(tiny.filled(name))
        for key in state_dict:
            arrays = {**state_dict, key: np.zeros(3, np.float32)}
            if state_dict[key].shape != (3,):
                infer_or_refuse(kind, arrays, GIVEN[name])


def infer_or_refuse(kind: str, arrays: Mapping[str, np.ndarray], given: dict) -> None:
    try:
        hub._inferred(kind, arrays, given, "config")
    except ValueError as error:
        assert str(error)  # noqa: PT017 - most keys are not looked at


def test_dtype_of_bare_checkpoints(tmp_path: Path) -> None:
    model, _ = from_checkpoint(checkpoint("Glom", tmp_path), dtype=jnp.bfloat16)
    assert model.init_levels.dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("HourglassTransformerLM", {"depth": (0, 3, 0), "shorten_factor": 2}),
        ("HourglassTransformerLM", {"depth": (2, 0, 1), "shorten_factor": 4, "attn_resampling": False}),
        ("HourglassTransformerLM", {"depth": (0, 1, 0), "shorten_factor": (5,), "updown_sample_type": "linear"}),
        ("HourglassTransformerLM", {"depth": 1, "shorten_factor": None}),
        ("MaMMUT", {"depth": 0, "cross_attend_layers": None}),
        ("MaMMUT", {"cross_attend_layers": ()}),
        ("MaMMUT", {"cross_attend_layers": None, "dim_latents": 8, "num_img_queries": 0}),
        ("MaMMUT", {"heads": 1, "dim_head": 6, "image_dim": 3, "ff_mult": 1}),
        ("ConditionalRoutedViT", {"depth": 1, "ff_heavy_mult": 2, "ff_light_mult": 0.3, "attn_num_routed_kv": 1}),
        ("ConditionalRoutedViT", {"patch_size": 2, "image_size": 8, "channels": 1}),
        ("ScalableViT", {"depth": (1,), "heads": 2, "reduction_factor": 1, "window_size": None, "ssa_dim_key": 3}),
        ("ScalableViT", {"depth": (1, 1, 1), "heads": 1, "reduction_factor": (4, 2, 1), "window_size": 2,
                         "ssa_dim_key": 2, "channels": 1}),
        ("SimpleViT", {"depth": 1, "channels": 1, "patch_size": (4, 2), "dim_head": 6, "heads": 1}),
    ],
)  # fmt: skip
def test_sizes_are_read_off_the_shapes(name: str, changes: dict) -> None:
    """What inference finds is what the model was built with, for every argument that it reports."""
    kind = CONVERSIONS[name]
    config = replace(tiny.filled(name).config, **changes)
    model = nnx.eval_shape(lambda: kind.model(config, rngs=nnx.Rngs(0)))
    for variable in tiny.variables(model).values():
        variable.set_value(jnp.zeros(variable.shape, variable.dtype))
    given = {field: getattr(config, field) for field in GIVEN[name]}
    given |= {"heads": config.heads} if name == "HourglassTransformerLM" else {}
    if name == "ConditionalRoutedViT":
        given |= {"patch_size": config.patch_size}
    if name == "SimpleViT":
        given |= {"patch_size": config.patch_size}
    found = infer_config(name, jm.to_state_dict(model), given)
    rebuilt = kind.config(**found)
    loaded = nnx.eval_shape(lambda: kind.model(rebuilt, rngs=nnx.Rngs(0)))
    shapes = {path: variable.shape for path, variable in tiny.variables(model).items()}
    assert {path: variable.shape for path, variable in tiny.variables(loaded).items()} == shapes
    for field in found.keys() - {"cross_attend_layers", "shorten_factor"}:
        assert getattr(rebuilt, field) == getattr(config, field) or field.startswith("ff_"), field
