"""MaMMUT beyond the rows: goldens, quirks, weights, initialisation, several processes.

| hazard | caught by |
| --- | --- |
| norm epsilon, SwiGLU halves, rotary pairing and values, split order, scale, CLS place and mask, text norm | goldens M1, M2, M6, M7, rows |
| inv_freq recomputed in float64 | goldens (3e-10 against 1e-13), `test_stored_frequencies_are_used` |
| pads masked for all rows | golden M6, rows `logits`, `embeddings` |
| pool residual, context norm, CLS query, un-normed feed-forward | goldens M1, M2, rows |
| temperature, unnormalised latents, the half, mean over pads, untrimmed text | goldens M3–M5, M9 |
| gradient of the norm at zero latents | `test_zero_latents_have_the_package_s_gradient` |
| tied embedding, beta and inv_freq in the state_dict | `test_weights`, `test_buffers_are_checked` |
| a buffer that is trained | tests/models/test_mammut.py |
| fully masked rows | golden M7 |
| pad targets outside the vocabulary | row `pad_id` |
| broadcast of a single image | tests/models/test_mammut.py, `test_errors_where_the_package_is_silent` |
| gathering: labels, gradients, unequal batches | `test_processes_agree_with_one`, `test_two_jax_processes_agree_with_pytorch` |
| positions in bfloat16, caches that outlive a change of type | `test_narrow_types_keep_positions_apart` |
"""

import functools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mammut_pytorch
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxmodels as jm
import torch_reference
from jaxmodels.convert.mammut import infer_config
from jaxmodels.nn.positions import inverse_frequencies
from parity_tests.cases.mammut import VIT, jax_encoder, torch_encoder
from parity_tests.harness import AS_USERS, assert_init_matches, assert_layout_matches, assert_round_trip


GOLDEN: dict[str, Any] = {
    "dim": 8, "num_tokens": 13, "depth": 2, "image_dim": 6, "num_img_queries": 3, "dim_head": 4, "heads": 2,
    "ff_mult": 2, "dim_latents": 5, "cross_attend_every": 2,
}  # fmt: skip
TEXT = np.array([[2, 12, 12, 2, 6, 0, 0], [6, 6, 8, 12, 6, 2, 12]])
LEFT_PADDED = np.array([[0, 0, 0, 2, 6, 12, 8], [0, 0, 0, 12, 6, 2, 12]])
LABELS = np.array([[11, 9, 8, 8, 9, 11, 1], [1, 5, 10, 3, 10, 5, 1]])
IMAGE_TOKENS = np.sin(0.1 * np.arange(1, 49) ** 2).reshape(2, 4, 6)


def fill(model: torch.nn.Module, offset: int = 0) -> torch.nn.Module:
    """The contract's weights, in float64; the buffers stay as constructed."""
    model = model.double()
    with torch.no_grad():
        for k, (key, p) in enumerate(model.named_parameters()):
            i = np.arange(1, p.numel() + 1, dtype=np.int64)
            wave = 0.3 * np.sin(0.1 * (i * i) + float(k + offset)) + key.endswith("gamma")
            p.copy_(torch.from_numpy(wave.reshape(tuple(p.shape))))
        model.temperature.fill_(0.2589628099946621)
    return model


def to_jax(reference: torch.nn.Module, config: jm.MaMMUTConfig) -> jm.MaMMUT:
    ours = nnx.eval_shape(lambda: jm.MaMMUT(config, rngs=nnx.Rngs(0)))
    return jm.load_state_dict(ours, reference.state_dict())


def golden_pair(offset: int = 0, **changes: Any) -> tuple[torch_reference.MaMMUT, jm.MaMMUT]:
    reference = fill(torch_reference.MaMMUT(**GOLDEN | changes), offset)
    return reference, to_jax(reference, jm.MaMMUTConfig(**GOLDEN | changes))


@pytest.fixture(scope="module")
def pair() -> tuple[torch_reference.MaMMUT, jm.MaMMUT]:
    return golden_pair()


@functools.cache
def compiled(method: str) -> Callable:
    return jax.jit(lambda model, arguments: getattr(model, method)(**arguments))


def both(pair, method: str, **arguments: np.ndarray) -> list[list[np.ndarray]]:
    """What a method that both models have returns, as lists of arrays: first the reference's."""
    theirs = getattr(pair[0], method)(**{k: torch.from_numpy(v) for k, v in arguments.items()})
    ours = compiled(method)(pair[1], {k: jnp.asarray(v) for k, v in arguments.items()})
    theirs, ours = (out if isinstance(out, tuple) else (out,) for out in (theirs, ours))
    return [[x.detach().numpy() for x in theirs], [np.asarray(x) for x in ours]]


def assert_statistics(out: np.ndarray, first: list[float], end: float, mean: float, std: float) -> None:
    np.testing.assert_allclose(out.ravel()[:6], first, rtol=0, atol=1e-13)
    np.testing.assert_allclose([out.ravel()[-1], out.mean(), out.std()], [end, mean, std], rtol=0, atol=1e-13)


EMBEDDING_GOLDENS = [
    pytest.param(
        TEXT, 0,
        [0.604294571870533, 0.789646470798316, -0.839048465576886, 1.19552033577237, -0.351239365558471, -1.77709531102793],
        -0.667473534934123, -0.123336979778849, 0.935242635080513, id="M1 text",
    ),
    pytest.param(
        TEXT, 1,
        [0.734783596859857, 2.30437732338909, -0.0670926011927162, -0.527204421160073, -0.514483844792521, -1.11765403019863],
        -0.529068721675462, 0.09318723116609, 0.953589750467089, id="M1 image",
    ),
    pytest.param(
        LEFT_PADDED, 0,
        [0.640661230850541, 1.14266234172755, 0.135230907466884, 0.768660533359256, -0.289874429455472, -1.77117910000128],
        -0.517203190669736, -0.142799566925133, 0.938710817910233, id="M6",
    ),
    pytest.param(
        np.zeros((2, 5), np.int64), 0,
        [0.655098226902898, 1.23053846277298, 0.43066589725685, 0.431474705580347, -0.335923682105071, -0.942728897751067],
        -0.881487479311002, -0.146778412124816, 0.937112600495907, id="M7",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "which", "first", "end", "mean", "std"), EMBEDDING_GOLDENS)
def test_golden_embeddings(pair, text, which, first, end, mean, std) -> None:
    for out in both(pair, "embeddings", text=text, image_tokens=IMAGE_TOKENS):
        assert_statistics(out[which], first, end, mean, std)


def test_golden_m2_logits(pair) -> None:
    first = [-0.0773009085642241, 0.0357600647940121, 0.449152587036931, -1.47183164616665, 0.953113188090951]
    for (out,) in both(pair, "__call__", text=TEXT, image_tokens=IMAGE_TOKENS):
        assert_statistics(
            out, [*first, 0.176811030823501], 0.276404203390075, 0.154090843580953, 0.736385410046789
        )


def test_goldens_m3_m4_m5_losses(pair) -> None:
    for total, caption, contrastive in both(pair, "loss", text=TEXT, image_tokens=IMAGE_TOKENS):
        np.testing.assert_allclose(total, 4.009858685097353, rtol=0, atol=1e-13)
        np.testing.assert_allclose(caption, 3.236154641937678, rtol=0, atol=1e-13)
        np.testing.assert_allclose(contrastive, 0.7737040431596751, rtol=0, atol=1e-13)
    for total, *_ in both(pair, "loss", text=TEXT, image_tokens=IMAGE_TOKENS, labels=LABELS):
        np.testing.assert_allclose(total, 3.2557149033861554, rtol=0, atol=1e-13)
    weighted = golden_pair(caption_loss_weight=2.0, contrastive_loss_weight=0.25)
    for total, *_ in both(weighted, "loss", text=TEXT, image_tokens=IMAGE_TOKENS):
        np.testing.assert_allclose(total, 6.665735294665276, rtol=0, atol=1e-13)


def test_golden_m3_gradients(pair) -> None:
    reference, ours = pair
    reference.zero_grad()
    reference(
        torch.from_numpy(TEXT), image_tokens=torch.from_numpy(IMAGE_TOKENS), return_loss=True
    ).backward()
    theirs = {k: p.grad.numpy() for k, p in reference.named_parameters()}
    text, image_tokens = jnp.asarray(TEXT), jnp.asarray(IMAGE_TOKENS)
    gradient = jax.jit(jax.grad(lambda model: model.loss(text, image_tokens=image_tokens).total))(ours)
    expected = {
        "token_emb.weight": ([-0.028483546330591646, -0.03542767537936078], 1.29868158424186),
        "text_cls_token": ([-0.13804207600865612, -0.13602977230755978], 0.244039480955495),
        "img_queries": ([-0.04779417379376366, -0.0161050408680748], 0.787129279017057),
        "temperature": ([0.09119891386273624], 0.09119891386273624),
        "layers.0.0.fn.fused_attn_ff_proj.weight": (
            [-0.015781442657210425, -0.016554542036759805],
            0.827394606259526,
        ),
        "img_attn_pool.to_kv.weight": ([-0.04402920774258706, 0.016564187913214394], 1.09786000945667),
        "layers.1.1.fn.to_kv.weight": ([2.879054387340206e-4, 0.030358808052225694], 0.661644937491494),
        "text_to_latents.to_latents.weight": (
            [0.004327730782877959, 0.007823751395796125],
            0.303239126169781,
        ),
    }
    for gradients in (theirs, jm.to_state_dict(gradient)):
        for key, (first, norm) in expected.items():
            np.testing.assert_allclose(
                gradients[key].ravel()[: len(first)], first, rtol=0, atol=1e-13, err_msg=key
            )
            np.testing.assert_allclose(np.linalg.norm(gradients[key]), norm, rtol=1e-13, err_msg=key)


def test_golden_m8_greedy_captions() -> None:
    """Captioning by recomputing the whole text at every step, from an image that is encoded once."""
    reference, ours = golden_pair(offset=9)
    expected = [[1, 4, 4, 6, 6, 6, 6, 6, 6], [2, 6, 3, 3, 3, 12, 12, 12, 12]]

    text = torch.tensor([[1], [2]])
    _, context = reference.embed_image(image_tokens=torch.from_numpy(IMAGE_TOKENS))
    for _ in range(8):
        text = torch.cat([text, reference.decode(text, context)[:, -1].argmax(dim=-1)[:, None]], dim=1)
    assert text.tolist() == expected

    _, context = ours.embed_image(image_tokens=jnp.asarray(IMAGE_TOKENS))
    decode = jax.jit(lambda model, text, context: model.decode(text, context))
    caption = jnp.asarray([[1], [2]])
    for _ in range(8):
        # Filled up on the right, which a causal model cannot see, so that every step has the same shape.
        filled = jnp.pad(caption, ((0, 0), (0, 9 - caption.shape[1])))
        logits = decode(ours, filled, context)[:, caption.shape[1] - 1]
        top, second = jnp.sort(logits, axis=-1)[:, ::-1][:, :2].T
        assert jnp.min(top - second) > 0.0375
        caption = jnp.concatenate([caption, jnp.argmax(logits, axis=-1)[:, None]], axis=1)
    assert caption.tolist() == expected


def test_golden_m9_similarities(pair) -> None:
    expected = [[0.47298552970031693, 0.7320963211836051], [0.31835479419000184, 0.37557193612891643]]
    for text, image in both(pair, "latents", text=TEXT, image_tokens=IMAGE_TOKENS):
        np.testing.assert_allclose(text @ image.T, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("method", "inputs"), [("embed_text", {"text": TEXT}), ("embed_image", {"image_tokens": IMAGE_TOKENS})]
)
def test_parts_match_the_package(pair, method, inputs) -> None:
    published = fill(mammut_pytorch.MaMMUT(**GOLDEN))
    expected = getattr(published, method)(**{k: torch.from_numpy(v) for k, v in inputs.items()})
    for out in both(pair, method, **inputs):
        for actual, tensor in zip(out, expected, strict=True):
            np.testing.assert_allclose(actual, tensor.detach().numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"return_embeddings": True},
        {"return_loss": True},
        {"return_loss": True, "return_embeddings": True},
        {"return_loss": True, "labels": torch.from_numpy(LABELS)},
        {"return_loss": True, "return_embeddings": True, "labels": torch.from_numpy(LABELS)},
        {"labels": torch.from_numpy(LABELS)},
    ],
    ids=lambda arguments: "+".join(arguments) or "none",
)
def test_forward_is_the_package_s_in_every_mode(pair, arguments) -> None:
    published = fill(mammut_pytorch.MaMMUT(**GOLDEN))
    inputs = {"text": torch.from_numpy(TEXT), "image_tokens": torch.from_numpy(IMAGE_TOKENS)} | arguments
    actual, expected = pair[0](**inputs), published(**inputs)
    assert isinstance(actual, tuple) == isinstance(expected, tuple)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_texts_without_targets(pair) -> None:
    """NaN, as in the package: there is nothing to average over. The contrastive term is what it is."""
    published = fill(mammut_pytorch.MaMMUT(**GOLDEN))
    for text in (np.zeros((2, 4), np.int64), TEXT[:, :1]):
        theirs = published(
            torch.from_numpy(text), image_tokens=torch.from_numpy(IMAGE_TOKENS), return_loss=True
        )
        assert torch.isnan(theirs)
        for total, caption, contrastive in both(pair, "loss", text=text, image_tokens=IMAGE_TOKENS):
            assert np.isnan(total)
            assert np.isnan(caption)
            assert np.isfinite(contrastive)


def test_zero_latents_have_the_package_s_gradient() -> None:
    """Zero projections put every latent at the origin, where a naive norm has gradient NaN."""
    reference, published = (fill(kind(**GOLDEN)) for kind in (torch_reference.MaMMUT, mammut_pytorch.MaMMUT))
    arguments = {"image_tokens": torch.from_numpy(IMAGE_TOKENS), "return_loss": True}
    for model in (reference, published):
        with torch.no_grad():
            model.text_to_latents.to_latents.weight.zero_()
        model(torch.from_numpy(TEXT), **arguments).backward()
    text, image_tokens = jnp.asarray(TEXT), jnp.asarray(IMAGE_TOKENS)
    ours = to_jax(reference, jm.MaMMUTConfig(**GOLDEN))
    gradients = jm.to_state_dict(
        jax.jit(jax.grad(lambda model: model.loss(text, image_tokens=image_tokens).total))(ours)
    )
    expected = published.text_to_latents.to_latents.weight.grad.numpy()
    assert np.abs(expected).max() > 1e10
    for actual in (
        reference.text_to_latents.to_latents.weight.grad.numpy(),
        gradients["text_to_latents.to_latents.weight"],
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize("encoder", ["none", "SimpleViT"])
def test_weights(encoder) -> None:
    config = jm.MaMMUTConfig(**GOLDEN | {"image_dim": 8})
    published = mammut_pytorch.MaMMUT(**asdict(config), img_encoder=torch_encoder(encoder, upstream=True))
    reference = torch_reference.MaMMUT(**asdict(config), img_encoder=torch_encoder(encoder, upstream=False))
    assert_layout_matches(reference, published)
    assert_round_trip(
        lambda: jm.MaMMUT(config, img_encoder=jax_encoder(encoder), rngs=nnx.Rngs(0)), published
    )


def test_an_encoder_s_weights_may_come_without_the_extractor() -> None:
    config = jm.MaMMUTConfig(**GOLDEN | {"image_dim": 8})
    reference = torch_reference.MaMMUT(
        **asdict(config), img_encoder=torch_encoder("SimpleViT", upstream=False)
    )
    inside = reference.state_dict()
    bare = {key.replace("img_encoder.vit.", "img_encoder."): value for key, value in inside.items()}
    assert "img_encoder.linear_head.weight" in bare
    ours = jm.load_state_dict(jm.MaMMUT(config, img_encoder=jax_encoder("SimpleViT"), rngs=nnx.Rngs(0)), bare)
    back = jm.to_state_dict(ours)
    assert list(back) == list(inside)
    np.testing.assert_array_equal(
        back["img_encoder.vit.linear_head.weight"], inside["img_encoder.vit.linear_head.weight"]
    )


def test_buffers_are_checked() -> None:
    state_dict = torch_reference.MaMMUT(**GOLDEN).state_dict()
    model = jm.MaMMUT(jm.MaMMUTConfig(**GOLDEN), rngs=nnx.Rngs(0))
    for key, change in {
        "to_logits.0.beta": lambda x: x + 1,
        "layers.1.0.fn.rotary_emb.inv_freq": lambda x: 1.001 * x,
        "to_logits.1.weight": lambda x: x + 1,
    }.items():
        with pytest.raises(ValueError, match=key.replace(".", r"\.")):
            jm.load_state_dict(model, state_dict | {key: change(state_dict[key])})
    once_narrow = {k: v.bfloat16().float() for k, v in state_dict.items()}
    assert not torch.equal(
        once_narrow["layers.1.0.fn.rotary_emb.inv_freq"], state_dict["layers.1.0.fn.rotary_emb.inv_freq"]
    )
    jm.load_state_dict(model, once_narrow)
    for key in ("to_logits.0.beta", "layers.1.0.fn.rotary_emb.inv_freq", "to_logits.1.weight"):
        with pytest.raises(ValueError, match=rf"missing from the state_dict: {key}"):
            jm.load_state_dict(model, {k: v for k, v in state_dict.items() if k != key})


@pytest.mark.parametrize("dim_head", [2, 4, 6, 32, 64, 128])
def test_fresh_frequencies_are_torch_s_to_rounding(dim_head) -> None:
    theirs = torch_reference.positions.RotaryEmbedding(dim_head).inv_freq.numpy()
    published = mammut_pytorch.mammut_pytorch.RotaryEmbedding(dim_head).inv_freq.numpy()
    np.testing.assert_array_equal(theirs, published)
    np.testing.assert_allclose(inverse_frequencies(dim_head), theirs, rtol=3e-7)


def test_stored_frequencies_are_used() -> None:
    """A checkpoint's own last bits decide, not those that this machine would compute."""
    reference, _ = golden_pair()
    with torch.no_grad():
        for name, buffer in reference.named_buffers():
            if name.endswith("inv_freq"):
                buffer.mul_(1 + 2e-7)
    ours = to_jax(reference, jm.MaMMUTConfig(**GOLDEN))
    text, image_tokens = np.tile(TEXT, (1, 20)), IMAGE_TOKENS
    theirs, mine = both((reference, ours), "__call__", text=text, image_tokens=image_tokens)
    np.testing.assert_allclose(mine[0], theirs[0], rtol=0, atol=1e-11)


def test_initialisation_matches() -> None:
    config = jm.MaMMUTConfig(dim=24, num_tokens=32, depth=2, image_dim=20, num_img_queries=15, dim_head=8, heads=4, cross_attend_every=2)  # fmt: skip
    assert_init_matches(
        lambda seed: jm.MaMMUT(config, rngs=nnx.Rngs(seed)), lambda: mammut_pytorch.MaMMUT(**asdict(config))
    )
    torch.manual_seed(5)
    published = mammut_pytorch.MaMMUT(**asdict(config)).state_dict()
    torch.manual_seed(5)
    reference = torch_reference.MaMMUT(**asdict(config)).state_dict()
    torch.testing.assert_close(dict(reference), dict(published), rtol=0, atol=0)


def test_a_checkpoint_tells_its_configuration() -> None:
    for changes in ({}, {"cross_attend_layers": (1,)}, {"depth": 3, "cross_attend_every": 1}, {"depth": 0}):
        arguments = GOLDEN | changes
        config = jm.MaMMUTConfig(**arguments)
        state_dict = jm.to_state_dict(jm.MaMMUT(config, rngs=nnx.Rngs(0)))
        inferred = jm.MaMMUTConfig(**infer_config(state_dict, {}))
        jm.load_state_dict(jm.MaMMUT(inferred, rngs=nnx.Rngs(1)), state_dict)
        known = {"cross_attend_every": arguments["cross_attend_every"], "pad_id": 3}
        assert infer_config(state_dict, known)["pad_id"] == 3
    assert infer_config(state_dict, {"heads": 1})["heads"] == 1


def test_errors_where_the_package_is_silent() -> None:
    """What it broadcasts, ignores or reports as something else is an error here; what it merely ignores is told."""
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
    whole = torch_reference.MaMMUT(
        **GOLDEN | {"image_dim": 8}, img_encoder=torch_encoder("SimpleViT", upstream=True)
    )
    whole.img_encoder.return_embeddings_only = False
    with pytest.raises(TypeError, match="img_encoder must return one tensor of tokens; got a tuple"):
        whole(text, images=torch.zeros(2, 3, VIT.image_size, VIT.image_size))


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
        ({"image_dim": 0}, "image_dim must be an integer ≥ 1"),
        ({"pad_id": 0.5}, "pad_id must be an integer"),
    ],
)
def test_both_constructors_refuse_the_same(changes, message) -> None:
    for build in (lambda **kw: torch_reference.MaMMUT(**kw), lambda **kw: jm.MaMMUTConfig(**kw)):
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below
            build(**GOLDEN | changes)
        assert message in str(error.value)


def test_narrow_types_keep_positions_apart() -> None:
    """The package counts positions in the frequencies' type: in bfloat16, 256 and 257 are the same."""
    arguments = GOLDEN | {"depth": 1}
    published = fill(mammut_pytorch.MaMMUT(**arguments)).bfloat16()
    angles = published.layers[0][0].fn.rotary_emb(300, device=None)
    assert torch.equal(angles[256], angles[257])
    reference = fill(torch_reference.MaMMUT(**arguments)).bfloat16()
    ours = jm.load_state_dict(
        nnx.eval_shape(lambda: jm.MaMMUT(jm.MaMMUTConfig(**arguments), rngs=nnx.Rngs(0))),
        reference.state_dict(),
    )
    mine = np.asarray(ours.layers[0].block.rotary_emb(300))
    theirs = reference.layers[0][0].fn.rotary_emb(300).numpy()
    assert mine.dtype == theirs.dtype == np.float32
    assert len(np.unique(theirs[:, 0])) == 300
    np.testing.assert_array_equal(mine, theirs)


def test_changing_the_type_after_a_call() -> None:
    """The package keeps the angles of its first call in their first type."""
    text, image_tokens = torch.from_numpy(TEXT), torch.from_numpy(IMAGE_TOKENS).float()
    published, reference = (kind(**GOLDEN) for kind in (mammut_pytorch.MaMMUT, torch_reference.MaMMUT))
    for model in (published, reference):
        model(text, image_tokens=image_tokens)
        model.bfloat16()
    with pytest.raises(RuntimeError, match="type"):
        published(text, image_tokens=image_tokens.bfloat16())
    assert reference(text, image_tokens=image_tokens.bfloat16()).dtype == torch.bfloat16
    fresh = mammut_pytorch.MaMMUT(**GOLDEN).double()
    fresh.load_state_dict(reference.double().state_dict())
    torch.testing.assert_close(
        reference(text, image_tokens=image_tokens.double()),
        fresh(text, image_tokens=image_tokens.double()),
        rtol=0,
        atol=1e-13,
    )


def test_full_optimisation_agrees(pair) -> None:
    reference, ours = pair
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        actual = jax.jit(compiler_options=AS_USERS)(
            lambda model, text, tokens: (model(text, None, tokens), *model.loss(text, None, tokens))
        )(ours, jnp.asarray(TEXT), jnp.asarray(IMAGE_TOKENS))
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    text, image_tokens = torch.from_numpy(TEXT), torch.from_numpy(IMAGE_TOKENS)
    expected = reference(text, image_tokens=image_tokens), *reference.loss(text, image_tokens=image_tokens)
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(np.asarray(a), b.detach().numpy(), rtol=0, atol=1e-13)


def test_processes_agree_with_one(tmp_path) -> None:
    """Loss and gradients of two processes, averaged as DDP does, are those of one with the whole batch.

    Equal parts: both terms (every rank has as many targets). Unequal parts: the contrastive term. The package
    stops with an error as soon as two processes gather, because its targets count the own batch only.
    """
    rng = np.random.default_rng(0)
    contrastive_only = {"caption_loss_weight": 0.0}
    models = [GOLDEN, GOLDEN | contrastive_only, GOLDEN | contrastive_only]
    runs = [
        {
            "sizes": sizes,
            "text": torch.from_numpy(rng.integers(1, 13, size=(sum(sizes), 6))),
            "image_tokens": torch.from_numpy(rng.normal(size=(sum(sizes), 4, 6))),
        }
        for sizes in ([2, 2], [3, 1], [1, 4])
    ]
    weights = fill(torch_reference.MaMMUT(**GOLDEN)).state_dict()
    torch.save({"models": models, "runs": runs, "weights": weights}, tmp_path / "task.pt")
    command = [sys.executable, "-m", "parity_tests.torch_mammut_worker"]
    workers = [
        subprocess.Popen(
            [*command, str(rank), "2", str(tmp_path)],
            cwd=Path(__file__).parents[1],
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    results = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]

    for i, (arguments, run) in enumerate(zip(models, runs, strict=True)):
        whole = torch_reference.MaMMUT(**arguments).double()
        whole.load_state_dict(weights)
        loss = whole(run["text"], image_tokens=run["image_tokens"], return_loss=True)
        loss.backward()
        first, second = results[0][i], results[1][i]
        torch.testing.assert_close((first["loss"] + second["loss"]) / 2, loss.detach(), rtol=0, atol=1e-13)
        if arguments is not GOLDEN:  # the contrastive term is the same on every rank
            assert first["loss"] == second["loss"]
        for key, p in whole.named_parameters():
            for rank in (first, second):
                torch.testing.assert_close(rank["gradients"][key], p.grad, rtol=0, atol=1e-13, msg=key)
        assert whole.text_cls_token.grad.abs().max() > 1e-3
        assert whole.temperature.grad.abs().max() > 1e-3


def test_two_jax_processes_agree_with_pytorch(tmp_path) -> None:
    """The contrastive loss of a batch that is spread over two processes, and its gradient: no code asks for it.

    PyTorch with two ranks under gloo agrees with the same numbers, see `test_processes_agree_with_one`.
    """
    rng = np.random.default_rng(0)
    text, image_tokens = rng.integers(1, 13, size=(4, 6)), rng.normal(size=(4, 4, 6))
    whole = fill(torch_reference.MaMMUT(**GOLDEN)).double()
    np.savez(tmp_path / "weights.npz", **{key: value.numpy() for key, value in whole.state_dict().items()})
    (tmp_path / "config.json").write_text(json.dumps(GOLDEN))
    np.savez(tmp_path / "batch.npz", text=text, image_tokens=image_tokens)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "parity_tests.jax_mammut_worker"]
    workers = [
        subprocess.Popen(
            [*command, str(rank), coordinator, str(tmp_path)],
            cwd=Path(__file__).parents[1],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=180)
        assert worker.returncode == 0, errors
    ours = np.load(tmp_path / "jax.npz")
    loss = whole(torch.from_numpy(text), image_tokens=torch.from_numpy(image_tokens), return_loss=True)
    loss.backward()
    np.testing.assert_allclose(ours["loss"], loss.item(), rtol=1e-12)
    for key, p in whole.named_parameters():
        np.testing.assert_allclose(ours[key], p.grad, rtol=0, atol=1e-12, err_msg=key)


@st.composite
def configurations(draw: st.DrawFn) -> jm.MaMMUTConfig:
    depth = draw(st.integers(0, 2))
    layers = st.lists(st.integers(1, depth), unique=True).map(tuple) if depth else st.just(())
    return jm.MaMMUTConfig(
        dim=draw(st.integers(2, 9)),
        num_tokens=draw(st.integers(3, 9)),
        depth=depth,
        cross_attend_every=draw(st.integers(1, 2)),
        cross_attend_layers=draw(st.none() | layers),
        dim_latents=draw(st.none() | st.integers(1, 5)),
        image_dim=draw(st.none() | st.integers(2, 5)),
        num_img_queries=draw(st.integers(0, 3)),
        dim_head=2 * draw(st.integers(1, 3)),
        heads=draw(st.integers(1, 3)),
        ff_mult=draw(st.integers(1, 3)),
        pad_id=draw(st.integers(-1, 3)),
    )


@settings(max_examples=6, deadline=None, derandomize=True)
@given(configurations(), st.integers(2, 6), st.integers(0, 3), st.integers(1, 3))
def test_random_configurations(config, n, m, b) -> None:
    torch.manual_seed(1)
    reference = torch_reference.MaMMUT(**asdict(config)).double()
    ours = to_jax(reference, config)
    rng = np.random.default_rng(2)
    text = rng.integers(0, config.num_tokens, size=(b, n))
    image_tokens = rng.normal(size=(b, m, config.image_dim or config.dim))
    for method in ("__call__", "loss"):
        theirs, mine = both((reference, ours), method, text=text, image_tokens=image_tokens)
        for actual, expected in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9, err_msg=method)
