"""Errors of MaMMUT: both implementations refuse the same arguments, also where the package is silent."""

import mammut_pytorch
import pytest
import torch

import jaxmodels as jm
import torch_reference
from parity_tests.cases.mammut import VIT, torch_encoder
from parity_tests.mammut_pairs import GOLDEN, IMAGE_TOKENS, TEXT


@pytest.mark.usefixtures("unchecked_types")
def test_errors_where_the_package_is_silent() -> None:
    """Calls that the package broadcasts or misreports raise ValueError here; an ignored argument causes a warning."""
    text, image_tokens = torch.from_numpy(TEXT), torch.from_numpy(IMAGE_TOKENS).float()
    published, reference = (kind(**GOLDEN) for kind in (mammut_pytorch.MaMMUT, torch_reference.MaMMUT))
    assert published(text, image_tokens=image_tokens[:1]).shape == (2, 7, 13)
    with pytest.raises(ValueError, match="text and image_tokens must have the same batch size; got 2 and 1"):
        reference(text, image_tokens=image_tokens[:1])
    with pytest.raises(AttributeError):
        published(text)
    with pytest.raises(ValueError, match="exactly one of images and image_tokens must be given; got neither"):
        reference(text)
    with pytest.raises(AssertionError):
        published(text, images=image_tokens, image_tokens=image_tokens)
    with pytest.raises(ValueError, match="exactly one of images and image_tokens must be given; got both"):
        reference(text, images=image_tokens, image_tokens=image_tokens)
    with pytest.raises(ValueError, match="img_encoder must be given to MaMMUT"):
        reference(text, images=image_tokens)
    with pytest.raises(ValueError, match=r"image_tokens must have shape \(b, m, 6\)"):
        reference(text, image_tokens=image_tokens[..., :5])
    published(text, text_mask=object(), image_tokens=image_tokens)
    with pytest.warns(UserWarning, match="text_mask has no effect"):
        reference(text, text_mask=torch.ones(2, 7), image_tokens=image_tokens)
    assert len(mammut_pytorch.MaMMUT(**GOLDEN | {"cross_attend_layers": (5,)}).layers) == 2
    seeing = torch_reference.MaMMUT(
        **GOLDEN | {"image_dim": 8}, img_encoder=torch_encoder("SimpleViT", of_package=True)
    )
    seeing.img_encoder.return_embeddings_only = False
    with pytest.raises(TypeError, match="img_encoder must return one tensor of tokens; got a tuple"):
        seeing(text, images=torch.zeros(2, 3, VIT.image_size, VIT.image_size))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "dim must be an integer ≥ 1; got dim=0"),
        ({"depth": -1}, "depth must be an integer ≥ 0"),
        ({"dim_head": 3}, "dim_head must be a multiple of the two halves of a rotary pair; got dim_head=3"),
        ({"num_img_queries": -1}, "num_img_queries must be an integer ≥ 0"),
        ({"cross_attend_every": 0}, "cross_attend_every must be an integer ≥ 1"),
        ({"cross_attend_every": 0, "cross_attend_layers": (1,)}, "cross_attend_every must be an integer ≥ 1"),
        ({"cross_attend_layers": (3,)}, "between 1 and depth; got cross_attend_layers=(3,), depth=2"),
        ({"cross_attend_layers": [0]}, "cross_attend_layers must be an integer ≥ 1"),
        (
            {"cross_attend_layers": 2},
            "cross_attend_layers must be a tuple or None; got cross_attend_layers=2",
        ),
        ({"image_dim": 0}, "image_dim must be an integer ≥ 1"),
        ({"pad_id": 0.5}, "pad_id must be an integer"),
    ],
)
def test_both_constructors_refuse_the_same(changes, message) -> None:
    for build in (lambda **kw: torch_reference.MaMMUT(**kw), lambda **kw: jm.MaMMUTConfig(**kw)):
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below
            build(**GOLDEN | changes)
        assert message in str(error.value)
