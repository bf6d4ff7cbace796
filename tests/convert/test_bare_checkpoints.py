"""Bare checkpoints show their class and sizes."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxmodels as jm
from jaxmodels.convert import bare_checkpoints, from_checkpoint
from jaxmodels.convert.bare_checkpoints import recognise
from jaxmodels.convert.files import write_state_dict
from jaxmodels.convert.tables import CONVERSIONS, infer_config
from tests.convert import small_models


EVERY_MODEL = pytest.mark.parametrize("name", small_models.MODELS)

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
    state_dict = {**jm.to_state_dict(small_models.filled(name)), **changes}
    path = folder / "bare.safetensors"
    write_state_dict(path, {key: array for key, array in state_dict.items() if array is not None})
    return path


@EVERY_MODEL
def test_bare_checkpoints(name: str, tmp_path: Path) -> None:
    expected = small_models.filled(name)
    kind = type(expected).__name__
    model, assumed = from_checkpoint(
        checkpoint(name, tmp_path),
        model="HourglassTransformer" if kind == "HourglassTransformer" else None,
        config=GIVEN[name],
        encoder=ENCODER if name == "MaMMUT, SimpleViT" else None,
    )
    assert type(model) is type(expected)
    assert small_models.weights(model) == small_models.weights(expected)
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
    state_dict = jm.to_state_dict(small_models.filled(name))
    if kind == "HourglassTransformer":
        with pytest.raises(
            ValueError, match=r"bare HourglassTransformer, pass the class as model, one of Glom, Ho"
        ):
            recognise(state_dict)
    else:
        assert recognise(state_dict) == kind


def test_recognised_in_its_wrapper() -> None:
    state_dict = jm.to_state_dict(small_models.filled("HourglassTransformerLM"))
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
    expected = small_models.filled("MaMMUT, SimpleViT")
    state_dict = {
        key.replace("img_encoder.vit.", "img_encoder."): a for key, a in jm.to_state_dict(expected).items()
    }
    write_state_dict(tmp_path / "w.safetensors", state_dict)
    model, _ = from_checkpoint(tmp_path / "w.safetensors", config=GIVEN["MaMMUT"], encoder=ENCODER)
    assert small_models.weights(model) == small_models.weights(expected)
    assert model.img_encoder.config == small_models.VIT


def test_a_wrong_class(tmp_path: Path) -> None:
    path = checkpoint("Glom", tmp_path)
    with pytest.raises(ValueError, match=f"^{path}: model must be one of Glom, .*; got 'Glim'"):
        from_checkpoint(path, model="Glim")
    for kind in CONVERSIONS.keys() - {"Glom"}:
        with pytest.raises(ValueError, match=f"^{path}: "):
            from_checkpoint(path, model=kind)


def test_incomplete_checkpoints(tmp_path: Path) -> None:
    for key in jm.to_state_dict(small_models.filled("Glom")):
        with pytest.raises(ValueError, match=f"(?s)bare.safetensors: .*{key}|no published model"):
            from_checkpoint(checkpoint("Glom", tmp_path, **{key: None}))


def test_misshapen_checkpoints(tmp_path: Path) -> None:
    """The sizes cannot be read off an array with other axes; the file is named all the same."""
    for name in small_models.MODELS:
        kind, state_dict = name.partition(",")[0], jm.to_state_dict(small_models.filled(name))
        for key in state_dict:
            arrays = {**state_dict, key: np.zeros(3, np.float32)}
            if state_dict[key].shape != (3,):
                infer_or_refuse(kind, arrays, GIVEN[name])


def infer_or_refuse(kind: str, arrays: Mapping[str, np.ndarray], given: dict) -> None:
    try:
        bare_checkpoints._inferred(kind, arrays, given, "config")
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
    config = replace(small_models.filled(name).config, **changes)
    model = nnx.eval_shape(lambda: kind.model(config, rngs=nnx.Rngs(0)))
    for variable in small_models.variables(model).values():
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
    shapes = {path: variable.shape for path, variable in small_models.variables(model).items()}
    assert {path: variable.shape for path, variable in small_models.variables(loaded).items()} == shapes
    for field in found.keys() - {"cross_attend_layers", "shorten_factor"}:
        assert getattr(rebuilt, field) == getattr(config, field) or field.startswith("ff_"), field
