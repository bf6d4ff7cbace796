"""While tests run, every annotated call in the packages is checked; these tests plant mistakes that must be found."""

import importlib
from pathlib import Path

import jax.numpy as jnp
import pytest
from flax import nnx
from jaxtyping import TypeCheckError

from jaxmodels.models import glom
from tests.type_checks import check_calls


IMAGES = jnp.ones((1, 4, 4, 3))


def build(module) -> nnx.Module:
    return module.Glom(module.GlomConfig(dim=8, levels=2, image_size=4, patch_size=2), rngs=nnx.Rngs(0))


def test_a_wrong_shape() -> None:
    with pytest.raises(TypeCheckError, match=r"parameters of jaxmodels.models.glom.Glom.__call__"):
        build(glom)(IMAGES[0])


def test_a_wrong_type() -> None:
    with pytest.raises(TypeCheckError, match="parameter 'iters'"):
        build(glom)(IMAGES, iters=1.5)


def test_as_users_run_it(unchecked_types: None) -> None:
    with pytest.raises(ValueError, match="images must have shape"):
        build(glom)(IMAGES[0])


def test_a_wrong_annotation_in_a_copy_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Axes in another order than the array has them."""
    source = Path(glom.__file__).read_text()
    right, wrong = 'positions: Float[Array, "n d"]', 'positions: Float[Array, "d n"]'
    assert right in source
    (tmp_path / "right_copy.py").write_text(source)
    (tmp_path / "wrong_copy.py").write_text(source.replace(right, wrong))
    monkeypatch.syspath_prepend(tmp_path)
    with check_calls("right_copy", "wrong_copy"):
        right_copy, wrong_copy = map(importlib.import_module, ("right_copy", "wrong_copy"))

    build(right_copy)(IMAGES)
    with pytest.raises(TypeCheckError, match="parameter 'positions'"):
        build(wrong_copy)(IMAGES)
