"""Loading is one to one or a ValueError that lists every misfit; exporting is its inverse, bit for bit."""

from collections import OrderedDict
from collections.abc import Callable
from types import MappingProxyType

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

import jaxmodels as jm
from jaxmodels.convert.table import Derived, Parameter, Tied
from jaxmodels.convert.tables import table_of
from tests.convert import small_models


FLOATS = {"float16": np.uint16, "bfloat16": np.uint16, "float32": np.uint32}
EVERY_MODEL = pytest.mark.parametrize("name", small_models.MODELS)


@pytest.fixture
def glom() -> nnx.Module:
    return small_models.filled("Glom")


@pytest.fixture
def state_dict(glom: nnx.Module) -> dict[str, np.ndarray]:
    return {key: array + 1 for key, array in jm.to_state_dict(glom).items()}


def refused(model: nnx.Module, state_dict: object, **options: object) -> str:
    """The message with which `state_dict` is refused; fails if `model` was touched."""
    before = small_models.weights(model)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the callers look at the message
        jm.load_state_dict(model, state_dict, **options)
    assert small_models.weights(model) == before
    return str(caught.value)


# -- one to one


@EVERY_MODEL
def test_every_variable_has_exactly_one_entry(name: str) -> None:
    model = small_models.shapes(name)
    entries = list(table_of(model))
    ours = [entry.ours for entry in entries if isinstance(entry, Parameter)]
    theirs = [entry.theirs for entry in entries if isinstance(entry, Parameter | Derived | Tied)]
    assert sorted(ours) == sorted(small_models.variables(model))
    assert len(set(theirs)) == len(theirs)


@EVERY_MODEL
def test_round_trip_of_every_model(name: str) -> None:
    model = small_models.filled(name)
    state_dict = jm.to_state_dict(model)
    loaded = jm.load_state_dict(small_models.shapes(name), state_dict)
    assert small_models.weights(loaded) == small_models.weights(model)
    assert list(small_models.bits(jm.to_state_dict(loaded)).items()) == list(
        small_models.bits(state_dict).items()
    )


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_bit_pattern_survives(dtype: str) -> None:
    """Infinities, subnormals, -0.0 and the payloads of NaNs included."""
    unsigned, rng = FLOATS[dtype], np.random.default_rng(0)
    given = {
        key: rng.integers(0, np.iinfo(unsigned).max, array.shape, unsigned, endpoint=True).view(dtype)
        for key, array in jm.to_state_dict(small_models.filled("Glom")).items()
    }
    special = np.array([0x8000, 0x0001, 0x7F81, 0xFFC1], np.uint16) if dtype != "float32" else None
    given["init_levels"][0] = (
        np.array([0x80000000, 0x00000001, 0x7F800001, 0xFFC12345], np.uint32) if special is None else special
    ).view(dtype)
    model = jm.load_state_dict(small_models.shapes("Glom"), given)
    assert small_models.bits(jm.to_state_dict(model)) == small_models.bits(given)


def test_float64_survives_where_jax_has_it() -> None:
    given = {
        key: a.astype(np.float64) + 1e-12 for key, a in jm.to_state_dict(small_models.filled("Glom")).items()
    }
    with jax.enable_x64(True):
        model = jm.load_state_dict(small_models.shapes("Glom"), given)
        assert small_models.bits(jm.to_state_dict(model)) == small_models.bits(given)


def test_each_array_keeps_its_own_type(state_dict: dict) -> None:
    state_dict["pos_emb.weight"] = state_dict["pos_emb.weight"].astype(ml_dtypes.bfloat16)
    model = jm.load_state_dict(small_models.shapes("Glom"), state_dict)
    assert (model.pos_emb.embedding.dtype, model.init_levels.dtype) == (jnp.bfloat16, jnp.float32)
    assert small_models.bits(jm.to_state_dict(model)) == small_models.bits(state_dict)


def test_fills_in_place_and_returns_the_model(glom: nnx.Module, state_dict: dict) -> None:
    variable = glom.init_levels
    assert jm.load_state_dict(glom, state_dict) is glom
    assert glom.init_levels is variable
    assert small_models.bits(jm.to_state_dict(glom)) == small_models.bits(state_dict)


def test_exported_arrays_are_the_callers_own(glom: nnx.Module) -> None:
    before = small_models.weights(glom)
    for array in jm.to_state_dict(glom).values():
        assert type(array) is np.ndarray
        assert array.flags.c_contiguous
        array[...] = 7  # writable, and no view of the model
    assert small_models.weights(glom) == before


def test_later_changes_of_the_given_arrays_do_not_reach_the_model(state_dict: dict) -> None:
    aligned = {}
    for key, array in state_dict.items():  # JAX may borrow memory that begins at a multiple of 64 bytes
        memory = np.empty(array.size + 16, np.float32)
        start = (-memory.ctypes.data // 4) % 16
        aligned[key] = memory[start : start + array.size].reshape(array.shape)
        aligned[key][...] = array
    model = jm.load_state_dict(small_models.shapes("Glom"), aligned)
    for array in aligned.values():
        array[...] = 7
    assert small_models.bits(jm.to_state_dict(model)) == small_models.bits(state_dict)


def test_models_with_the_same_weights_share_no_memory(state_dict: dict) -> None:
    one = jm.load_state_dict(
        small_models.shapes("Glom"), {key: jnp.asarray(a) for key, a in state_dict.items()}
    )
    two = jm.load_state_dict(
        small_models.shapes("Glom"), {key: p for key, p in jm.to_state_dict(one).items()}
    )
    jax.tree.map(lambda array: array.delete(), nnx.state(one, nnx.Param))  # as donation does
    assert small_models.bits(jm.to_state_dict(two)) == small_models.bits(state_dict)


# -- kinds of arrays


def strided(a: np.ndarray) -> np.ndarray:
    return np.repeat(a, 2, axis=-1)[..., ::2]


def read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


@pytest.mark.parametrize(
    "kind",
    [
        jnp.asarray,
        nnx.Param,
        np.asfortranarray,
        strided,
        lambda a: a[::-1].copy()[::-1],
        lambda a: a.astype(a.dtype.newbyteorder(">")),
        read_only,
        lambda a: np.ma.masked_array(a),
    ],
    ids=["jax", "variable", "fortran", "strided", "reversed", "big-endian", "read-only", "masked"],
)
def test_kinds_of_arrays(state_dict: dict, kind: Callable) -> None:
    model = jm.load_state_dict(
        small_models.shapes("Glom"), {key: kind(array) for key, array in state_dict.items()}
    )
    assert small_models.bits(jm.to_state_dict(model)) == small_models.bits(state_dict)


@pytest.mark.parametrize("kind", [OrderedDict, MappingProxyType])
def test_kinds_of_mappings(state_dict: dict, kind: Callable) -> None:
    model = jm.load_state_dict(small_models.shapes("Glom"), kind(dict(reversed(state_dict.items()))))
    assert list(jm.to_state_dict(model)) == list(state_dict)  # the package's order, not that of the mapping


# -- refusals


def test_all_misfits_in_one_sorted_list(glom: nnx.Module, state_dict: dict) -> None:
    del state_dict["top_down.net.1.bias"], state_dict["bottom_up.net.3.weight"]
    state_dict["zz"] = state_dict["aa"] = np.zeros(1)
    state_dict["init_levels"] = np.zeros((4, 3), np.float32)
    state_dict["pos_emb.weight"] = np.zeros((9, 4), np.int32)
    state_dict["image_to_tokens.1.weight"] = np.zeros((1, 4, 12), bool)
    state_dict["image_to_tokens.1.bias"] = np.zeros(4, np.float64)
    needs = "the model needs float16, bfloat16, float32, float64"
    assert refused(glom, state_dict) == (
        "the state_dict does not fit Glom\n"
        f"  image_to_tokens.1.bias: float64, which JAX would cut to float32\n"
        f"  image_to_tokens.1.weight: dtype bool, {needs}\n"
        "  image_to_tokens.1.weight: shape (1, 4, 12), the model needs (4, 12)\n"
        "  init_levels: shape (4, 3), the model needs (3, 4)\n"
        "  missing from the state_dict: bottom_up.net.3.weight\n"
        "  missing from the state_dict: top_down.net.1.bias\n"
        "  not in the model: aa\n"
        "  not in the model: zz\n"
        f"  pos_emb.weight: dtype int32, {needs}\n"
        "for float64: jax.config.update('jax_enable_x64', True); or pass dtype=jnp.float32"
    )


@EVERY_MODEL
def test_one_misfit_leaves_every_variable_of_every_model(name: str) -> None:
    """Of a filled model and of shapes without arrays; the misfit is the last key, after all others fitted."""
    model = small_models.filled(name)
    other = {
        key: array + 1 if array.dtype == np.float32 and not key.endswith(("inv_freq", "beta")) else array
        for key, array in jm.to_state_dict(model).items()
    }
    jm.load_state_dict(small_models.shapes(name), other)  # fits
    last = next(reversed(other))
    other[last] = other[last][..., :-1]
    for untouched in (model, small_models.shapes(name)):
        assert f"\n  {last}: " in refused(untouched, other)


def test_an_empty_mapping_lists_every_key(glom: nnx.Module) -> None:
    message = refused(glom, {})
    assert all(f"missing from the state_dict: {key}" in message for key in jm.to_state_dict(glom))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "not an array of numbers"),
        (object(), "not an array of numbers"),
        (np.array([None, 1.0]), "not an array of numbers"),
        ([[1.0], [2.0, 3.0]], "not an array of numbers"),
        ({"a": 1.0}, "not an array of numbers"),
        ("weights", "dtype <U7, the model needs float16"),
        (np.zeros((3, 4), "V2"), "dtype |V2, the model needs float16"),
        (np.zeros((3, 4), np.complex64), "dtype complex64, the model needs float16"),
        (np.zeros((3, 4), np.longdouble), f"dtype {np.dtype(np.longdouble)}, the model needs float16"),
        (np.zeros((3, 4), ml_dtypes.float8_e4m3fn), "dtype float8_e4m3fn, the model needs float16"),
        (1.0, "shape (), the model needs (3, 4)"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value.partition(",")[0],
)
def test_values_that_are_no_weights(glom: nnx.Module, state_dict: dict, value: object, message: str) -> None:
    found = refused(glom, {**state_dict, "init_levels": value})
    assert f"\n  init_levels: {message}" in found


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("wrong", [None, 3, [("init_levels", 1.0)], np.zeros(3)])
def test_what_is_no_mapping(glom: nnx.Module, wrong: object) -> None:
    assert refused(glom, wrong) == (
        f"state_dict must be a mapping or the path of a file; got a {type(wrong).__name__}"
    )


def test_keys_must_be_strings(glom: nnx.Module, state_dict: dict) -> None:
    message = refused(glom, {**state_dict, 1: np.zeros(1), ("a",): np.zeros(1)})
    assert message == "the keys of a state_dict must be strings; got 1, ('a',)"


class Glom(nnx.Module):
    """Nothing but the name of one of ours."""


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    "wrong", [None, "Glom", nnx.Linear, Glom()], ids=["None", "str", "class", "namesake"]
)
def test_models_of_others(wrong: object) -> None:
    for call in (jm.to_state_dict, lambda model: jm.load_state_dict(model, {})):
        with pytest.raises(ValueError, match=r"model must be one of jaxmodels' Glom, .*; got a .*\."):
            call(wrong)


def test_a_subclass_keeps_its_parents_table(state_dict: dict) -> None:
    subclass = type("Glom", (jm.Glom,), {})
    model = nnx.eval_shape(lambda: subclass(small_models.GLOM, rngs=nnx.Rngs(0)))
    assert small_models.bits(jm.to_state_dict(jm.load_state_dict(model, state_dict))) == small_models.bits(
        state_dict
    )


def test_a_model_without_weights_cannot_be_exported() -> None:
    with pytest.raises(ValueError, match=r"the Glom has shapes but no weights, .*; load weights first"):
        jm.to_state_dict(small_models.shapes("Glom"))


def test_running_out_of_memory_leaves_the_model(
    glom: nnx.Module, state_dict: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, make = small_models.weights(glom), jnp.array

    def array(value: np.ndarray) -> jax.Array:
        if value.shape == glom.top_down.down.bias.shape:  # the last of all
            raise MemoryError
        return make(value)

    monkeypatch.setattr(jnp, "array", array)
    with pytest.raises(MemoryError):
        jm.load_state_dict(glom, state_dict)
    assert small_models.weights(glom) == before


# -- entries that the architecture determines


@pytest.mark.parametrize(
    ("name", "key", "problem"),
    [
        ("Glom, local", "attention.non_local_mask", "not the values that the architecture determines"),
        ("MaMMUT", "layers.1.0.fn.norm.beta", "not the values that the architecture determines"),
        ("MaMMUT", "layers.2.0.fn.rotary_emb.inv_freq", "not the values that the architecture determines"),
        ("MaMMUT", "to_logits.1.weight", "must equal token_emb.weight, to which it is tied"),
    ],
)
def test_determined_entries_are_checked(name: str, key: str, problem: str) -> None:
    model = small_models.filled(name)
    good = jm.to_state_dict(model)
    wrong = {**good, key: ~good[key] if good[key].dtype == bool else good[key] + 0.01}
    assert refused(model, wrong) == f"the state_dict does not fit {type(model).__name__}\n  {key}: {problem}"
    wrong = {k: array for k, array in good.items() if k != key}
    assert f"missing from the state_dict: {key}" in refused(model, wrong)


def test_determined_entries_of_another_shape(glom: nnx.Module) -> None:
    model = small_models.filled("Glom, local")
    wrong = {**jm.to_state_dict(model), "attention.non_local_mask": np.zeros((1, 4, 4), bool)}
    assert "non_local_mask: shape (1, 4, 4), the model needs (1, 9, 9)" in refused(model, wrong)


def test_a_nan_is_not_what_the_architecture_determines() -> None:
    model = small_models.filled("MaMMUT")
    for key in ("layers.1.0.fn.norm.beta", "layers.2.0.fn.rotary_emb.inv_freq"):
        good = jm.to_state_dict(model)
        refused(model, {**good, key: np.full_like(good[key], np.nan)})


def test_frequencies_may_be_rounded() -> None:
    """PyTorch and NumPy differ in the last bit of a power; a bfloat16 checkpoint rounds them further."""
    state_dict = jm.to_state_dict(small_models.filled("MaMMUT"))
    for dtype in (np.float16, ml_dtypes.bfloat16):
        rounded = {
            key: array.astype(dtype) if array.dtype == np.float32 else array
            for key, array in state_dict.items()
        }
        model = jm.load_state_dict(small_models.shapes("MaMMUT"), rounded)
        assert small_models.bits(jm.to_state_dict(model)) == small_models.bits(rounded)
    key = "layers.0.0.fn.rotary_emb.inv_freq"
    last_bit = {**state_dict, key: np.nextafter(state_dict[key], np.float32(2))}
    assert small_models.bits(
        jm.to_state_dict(jm.load_state_dict(small_models.shapes("MaMMUT"), last_bit))
    ) == small_models.bits(last_bit)


# -- conversion


@pytest.mark.parametrize("dtype", ["float16", jnp.bfloat16, np.float32])
def test_conversion(state_dict: dict, dtype: object) -> None:
    doubles = {key: array.astype(np.float64) for key, array in state_dict.items()}
    model = jm.load_state_dict(small_models.shapes("Glom"), doubles, dtype=dtype)
    expected = {key: array.astype(dtype) for key, array in doubles.items()}
    assert small_models.bits(jm.to_state_dict(model)) == small_models.bits(expected)


def test_conversion_leaves_constants_exact() -> None:
    """Frequencies in bfloat16 would turn distant positions by wrong angles; masks have no precision."""
    state_dict = jm.to_state_dict(small_models.filled("MaMMUT"))
    model = jm.load_state_dict(small_models.shapes("MaMMUT"), state_dict, dtype=jnp.bfloat16)
    converted = jm.to_state_dict(model)
    for key, array in converted.items():
        if key.endswith("inv_freq"):
            assert small_models.bits({key: array}) == small_models.bits({key: state_dict[key]})
        else:
            assert array.dtype == jnp.bfloat16, key
    masked = jm.load_state_dict(
        small_models.shapes("Glom, local"),
        jm.to_state_dict(small_models.filled("Glom, local")),
        dtype="float16",
    )
    assert jm.to_state_dict(masked)["attention.non_local_mask"].dtype == bool


def test_conversion_to_float64_needs_it(glom: nnx.Module, state_dict: dict) -> None:
    assert "init_levels: float64, which JAX would cut to float32" in refused(
        glom, state_dict, dtype="float64"
    )
    with jax.enable_x64(True):
        model = jm.load_state_dict(small_models.shapes("Glom"), state_dict, dtype="float64")
        assert model.init_levels.dtype == np.float64


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize("dtype", ["int32", "nonsense", np.complex64, "float8_e4m3fn", bool, 3])
def test_conversion_to_what_is_no_weight(glom: nnx.Module, state_dict: dict, dtype: object) -> None:
    message = refused(glom, state_dict, dtype=dtype)
    assert message == f"dtype must be one of float16, bfloat16, float32, float64; got dtype={dtype!r}"


# -- keys of older releases and of wrappers


def renamed(state_dict: dict, *renames: tuple[str, str]) -> dict:
    for old, new in renames:
        state_dict = {
            new + key.removeprefix(old) if key.startswith(old) else key: a for key, a in state_dict.items()
        }
    return state_dict


@pytest.mark.parametrize(
    ("name", "rename"),
    [
        ("HourglassTransformerLM", ("", "net.")),
        ("MaMMUT, SimpleViT", ("img_encoder.vit.", "img_encoder.")),
    ],
)
def test_wrapped_checkpoints(name: str, rename: tuple[str, str]) -> None:
    state_dict = jm.to_state_dict(small_models.filled(name))
    model = jm.load_state_dict(small_models.shapes(name), renamed(state_dict, rename))
    assert small_models.bits(jm.to_state_dict(model)) == small_models.bits(state_dict)


def test_older_scalable_vit() -> None:
    state_dict = jm.to_state_dict(small_models.filled("ScalableViT"))
    block = "layers.0.0.layers.1."
    norms = [f"{block}{i}.norm" for i in (0, 4)]
    older = renamed(
        state_dict,
        *((f"{block}{i}.", f"{block}{i}.fn.") for i in (0, 4)),
        *((f"{block}{i}.fn.norm.", f"{block}{i}.norm.") for i in (0, 4)),
        *((f"{block}{i}.net.0.", f"{block}{i}.norm.") for i in (1, 3)),
        *((f"{block}{i}.net.1.", f"{block}{i}.fn.net.0.") for i in (1, 3)),
        *((f"{block}{i}.net.4.", f"{block}{i}.fn.net.3.") for i in (1, 3)),
    )
    assert f"{block}0.fn.to_q.weight" in older
    assert f"{block}1.fn.net.0.weight" in older
    assert all(f"{norm}.g" in older for norm in norms)
    model = jm.load_state_dict(small_models.shapes("ScalableViT"), older)
    assert small_models.bits(jm.to_state_dict(model)) == small_models.bits(state_dict)
