"""MaMMUT without PyTorch: errors, gradients, causality, padding, image encoders."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmodels import MaMMUT, MaMMUTConfig, SimpleViT, SimpleViTConfig, to_state_dict
from jaxmodels.losses import contrastive_loss
from jaxmodels.nn import Buffer
from tests.properties import check_batch, check_bfloat16, check_gradients, check_jit


SIZES: dict[str, Any] = {
    "dim": 8, "num_tokens": 13, "depth": 1, "dim_latents": 5, "image_dim": 6, "num_img_queries": 3,
    "dim_head": 4, "heads": 2, "ff_mult": 2,
}  # fmt: skip
CONFIG = MaMMUTConfig(**SIZES)
VIT = SimpleViTConfig(
    image_size=8, patch_size=4, num_classes=3, dim=8, depth=1, heads=2, mlp_dim=12, dim_head=3
)
TEXT = jnp.asarray([[2, 12, 12, 2, 6, 0, 0], [6, 6, 8, 12, 6, 2, 12], [1, 2, 3, 0, 0, 0, 0]])
TOKENS = jax.random.normal(jax.random.key(0), (3, 4, 6))
IMAGES = jax.random.normal(jax.random.key(1), (3, 8, 8, 3))


@pytest.fixture(scope="module")
def model() -> MaMMUT:
    return MaMMUT(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def with_encoder() -> MaMMUT:
    """A model with its own encoder."""
    config = MaMMUTConfig(**SIZES | {"image_dim": 8})
    return MaMMUT(config, img_encoder=SimpleViT(VIT, rngs=nnx.Rngs(1)), rngs=nnx.Rngs(0))


@jax.jit
def logits(model: MaMMUT, text: jax.Array, image_tokens: jax.Array) -> jax.Array:
    return model(text, image_tokens=image_tokens)


@jax.jit
def text_embedding(model: MaMMUT, text: jax.Array) -> jax.Array:
    return model.embed_text(text)[0]


@jax.jit
def total(model: MaMMUT, text: jax.Array, image_tokens: jax.Array) -> jax.Array:
    return model.loss(text, image_tokens=image_tokens).total


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, r"dim must be an integer ≥ 1; got dim=0"),
        ({"num_tokens": 0}, r"num_tokens must be an integer ≥ 1"),
        ({"depth": -1}, r"depth must be an integer ≥ 0; got depth=-1"),
        ({"heads": 0}, r"heads must be an integer ≥ 1"),
        ({"ff_mult": 2.5}, r"ff_mult must be an integer ≥ 1; got ff_mult=2\.5"),
        ({"dim_head": 5}, r"dim_head must be a multiple of .* rotary pair; got dim_head=5"),
        ({"dim_head": 0}, r"dim_head must be an integer ≥ 2"),
        ({"num_img_queries": -1}, r"num_img_queries must be an integer ≥ 0; got num_img_queries=-1"),
        ({"dim_latents": 0}, r"dim_latents must be an integer ≥ 1"),
        ({"image_dim": 0}, r"image_dim must be an integer ≥ 1"),
        ({"cross_attend_every": 0}, r"cross_attend_every must be an integer ≥ 1; got cross_attend_every=0"),
        ({"cross_attend_layers": (1, 3)}, r"between 1 and depth; got cross_attend_layers=\(1, 3\), depth=1"),
        (
            {"cross_attend_layers": 3},
            r"cross_attend_layers must be a tuple or None; got cross_attend_layers=3",
        ),
        ({"cross_attend_layers": [0]}, r"every entry of cross_attend_layers must be an integer ≥ 1"),
        ({"pad_id": None}, r"pad_id must be an integer"),
        ({"caption_loss_weight": "1"}, r"caption_loss_weight must be a number; got caption_loss_weight='1'"),
        ({"contrastive_loss_weight": None}, r"contrastive_loss_weight must be a number"),
    ],
)
def test_wrong_configuration(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        MaMMUTConfig(**SIZES | changes)


def test_lists_of_layers_are_hashable() -> None:
    config = MaMMUTConfig(**SIZES | {"depth": 2, "cross_attend_layers": [2, 1]})
    assert config.cross_attend_layers == (2, 1)
    assert hash(config) == hash(MaMMUTConfig(**SIZES | {"depth": 2, "cross_attend_layers": (2, 1)}))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, r"exactly one of images and image_tokens must be given; got neither"),
        ({"images": IMAGES, "image_tokens": TOKENS}, r"exactly one of images and image_tokens .* got both"),
        ({"images": IMAGES}, r"img_encoder must be given to MaMMUT to encode images; got img_encoder=None"),
        ({"image_tokens": TOKENS[:1]}, r"text and image_tokens must have the same batch size; got 3 and 1"),
        ({"image_tokens": TOKENS[..., :5]}, r"image_tokens must have shape \(b, m, 6\); got .*\(3, 4, 5\)"),
        ({"image_tokens": TOKENS[:, 0]}, r"image_tokens must have shape \(b, m, 6\)"),
        ({"image_tokens": TOKENS.astype(int)}, r"image_tokens must be floating-point"),
        ({"text": TEXT[0], "image_tokens": TOKENS}, r"text must have shape \(b, n\); got text.shape=\(7,\)"),
        (
            {"text": TEXT.astype(float), "image_tokens": TOKENS},
            r"text must be integer ids; got text.dtype=float",
        ),
    ],
)
def test_wrong_call(model, call, message) -> None:
    for method in (model, model.embeddings, model.latents, model.loss):
        with pytest.raises(ValueError, match=message):
            method(**{"text": TEXT} | call)


@pytest.mark.usefixtures("unchecked_types")
def test_wrong_labels(model) -> None:
    with pytest.raises(ValueError, match=r"labels must have shape \(3, 7\); got labels.shape=\(3, 6\)"):
        model.loss(TEXT, image_tokens=TOKENS, labels=TEXT[:, 1:])
    with pytest.raises(ValueError, match=r"labels must be integer ids"):
        model.loss(TEXT, image_tokens=TOKENS, labels=TEXT == 0)


@pytest.mark.usefixtures("unchecked_types")
def test_wrong_encoder() -> None:
    with pytest.raises(TypeError, match=r"img_encoder must be callable; got a str"):
        MaMMUT(CONFIG, img_encoder="vit", rngs=nnx.Rngs(0))
    pair = MaMMUT(CONFIG, img_encoder=lambda images: (images, images), rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"img_encoder must return one array of tokens; got a tuple"):
        pair(TEXT, images=IMAGES)
    flat = MaMMUT(CONFIG, img_encoder=lambda images: images.reshape(3, -1), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"image_tokens must have shape \(b, m, 6\); got .*\(3, 192\)"):
        flat(TEXT, images=IMAGES)
    foreign = MaMMUT(CONFIG, img_encoder=nnx.Linear(3, 6, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"no weight table for an encoder of type Linear"):
        to_state_dict(foreign)


@pytest.mark.parametrize("call", [logits, total], ids=["logits", "loss"])
def test_jit(model, call) -> None:
    check_jit(model, TEXT, TOKENS, call=call.__wrapped__)


def test_batch(model) -> None:
    check_batch(model, TEXT, TOKENS, call=logits)
    check_batch(model, TEXT, call=text_embedding)


def test_gradients(model) -> None:
    check_gradients(model, TEXT, TOKENS, call=logits)


def test_bfloat16() -> None:
    def build(dtype):
        model = MaMMUT(CONFIG, dtype=dtype, rngs=nnx.Rngs(0))
        model.token_emb.embedding.set_value(50 * model.token_emb.embedding[...])  # fresh ones are tiny
        return model

    check_bfloat16(build, TEXT, TOKENS, call=logits, distance=0.05)
    check_bfloat16(build, TEXT, call=text_embedding, distance=0.05)
    losses = [build(dtype).loss(TEXT, image_tokens=TOKENS) for dtype in (None, jnp.bfloat16)]
    assert all(x.dtype == jnp.float32 for x in losses[1])
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)


def test_float16_zero_latents_are_zero() -> None:
    model = MaMMUT(CONFIG, dtype=jnp.float16, rngs=nnx.Rngs(0))
    assert jnp.all(model.text_to_latents(jnp.zeros((1, 8), jnp.float16)) == 0)


def test_frequencies_are_no_parameter(model) -> None:
    """No gradient, no optimiser and no weight decay reaches them."""

    def loss(model: MaMMUT) -> jax.Array:
        return jnp.sum(text_embedding(model, TEXT)[:, 0])

    assert len(nnx.to_flat_state(nnx.state(model, Buffer))) == CONFIG.depth
    everything = jax.jit(jax.grad(loss))(model)
    assert jnp.any(everything.text_cls_token[...] != 0)
    assert all(jnp.all(layer.block.rotary_emb.inv_freq[...] == 0) for layer in everything.layers)
    gradient = nnx.eval_shape(nnx.grad(loss), model)
    assert not [path for path, _ in nnx.to_flat_state(gradient) if path[-1] == "inv_freq"]
    trained = nnx.clone(model)
    optimizer = nnx.Optimizer(trained, optax.adamw(0.1, weight_decay=0.5), wrt=nnx.Param)
    update = nnx.jit(lambda optimizer, model: optimizer.update(model, nnx.state(model, nnx.Param)))
    with jax.numpy_dtype_promotion("standard"):  # optax mixes them
        update(optimizer, trained)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model, Buffer), nnx.state(trained, Buffer))
    assert jnp.any(trained.text_cls_token[...] != model.text_cls_token[...])


def test_gradient_is_finite_at_zero_latents(model) -> None:
    project = nnx.clone(model.text_to_latents)
    project.to_latents.kernel.set_value(jnp.zeros((8, 5)))
    other = jnp.eye(3, 5)
    gradient = jax.grad(lambda project: contrastive_loss(project(jnp.ones((3, 8))), other, jnp.ones(1)))(
        project
    )
    assert jnp.isfinite(gradient.to_latents.kernel[...]).all()


def test_captions_are_causal(model) -> None:
    out = logits(model, TEXT, TOKENS)
    for t in range(7):
        changed = logits(model, TEXT.at[:, t].set((TEXT[:, t] + 3) % 13), TOKENS)
        np.testing.assert_array_equal(changed[:, :t], out[:, :t])
        assert jnp.all(jnp.any(changed[:, t] != out[:, t], axis=-1))


def test_padding_is_hidden_from_the_embedding_but_not_from_the_text() -> None:
    """As in the package: only the CLS token ignores padding. Words after a pad attend to it."""
    model = MaMMUT(MaMMUTConfig(**SIZES | {"depth": 2}), rngs=nnx.Rngs(0))
    other = nnx.clone(model)
    other.token_emb.embedding.set_value(other.token_emb.embedding[...].at[0].add(1.0))
    right_padded, left_padded = TEXT, TEXT[:, ::-1]
    np.testing.assert_array_equal(text_embedding(model, right_padded), text_embedding(other, right_padded))
    difference = text_embedding(model, left_padded) - text_embedding(other, left_padded)
    assert jnp.all(jnp.any(difference[jnp.asarray([0, 2])] != 0, axis=-1))
    assert jnp.all(difference[1] == 0)  # it has no pads


def test_layers_without_cross_attention_do_not_see_the_image() -> None:
    blind = MaMMUT(MaMMUTConfig(**SIZES | {"cross_attend_layers": ()}), rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(logits(blind, TEXT, TOKENS), logits(blind, TEXT, TOKENS + 1))
    first = MaMMUT(MaMMUTConfig(**SIZES | {"depth": 2, "cross_attend_layers": (1,)}), rngs=nnx.Rngs(0))
    assert [layer.cross is not None for layer in first.layers] == [True, False]
    assert jnp.any(logits(first, TEXT, TOKENS) != logits(first, TEXT, TOKENS + 1))


def test_logits_do_not_need_the_text_only_pass(model) -> None:
    """The program that computes logits must not contain the text-only pass."""

    def products(function) -> int:
        return str(jax.make_jaxpr(function)(model)).count("dot_general")

    both_passes = products(lambda model: (logits(model, TEXT, TOKENS), text_embedding(model, TEXT)))
    logits_only = products(lambda model: logits(model, TEXT, TOKENS))
    assert logits_only == both_passes - products(lambda model: text_embedding(model, TEXT))


def test_methods_agree(model) -> None:
    text_embeds, image_embeds = model.embeddings(TEXT, image_tokens=TOKENS)
    np.testing.assert_array_equal(text_embeds, model.embed_text(TEXT)[0])
    image, context = model.embed_image(image_tokens=TOKENS)
    np.testing.assert_array_equal(image_embeds, image)
    assert context.shape == (3, 3, 8)
    np.testing.assert_allclose(logits(model, TEXT, TOKENS), model.decode(TEXT, context), rtol=0, atol=1e-6)
    for latents in model.latents(TEXT, image_tokens=TOKENS):
        np.testing.assert_allclose(jnp.linalg.norm(latents, axis=-1), 1.0, rtol=1e-6)
    loss = model.loss(TEXT, image_tokens=TOKENS)
    np.testing.assert_allclose(loss.total, loss.caption + loss.contrastive, rtol=1e-6)
    explicit = model.loss(TEXT[:, :-1], image_tokens=TOKENS, labels=TEXT[:, 1:])
    np.testing.assert_array_equal(explicit.total, loss.total)


def test_one_pair_has_nothing_to_contrast(model) -> None:
    loss = jax.jit(lambda model: model.loss(TEXT[:1], image_tokens=TOKENS[:1]))(model)
    assert loss.contrastive == 0


def test_empty_text_and_no_image_tokens(model) -> None:
    assert logits(model, TEXT[:, :0], TOKENS).shape == (3, 0, 13)
    assert jnp.isfinite(logits(model, TEXT, TOKENS[:, :0])).all()


def test_an_encoder_is_a_part_of_the_model(with_encoder) -> None:
    def embed(model: MaMMUT) -> jax.Array:
        return model.embed_image(IMAGES)[0]

    tokens = with_encoder.img_encoder.tokens(IMAGES)
    np.testing.assert_array_equal(embed(with_encoder), with_encoder.embed_image(image_tokens=tokens)[0])
    gradient = jax.jit(jax.grad(lambda model: jnp.sum(jnp.sin(embed(model)))))(with_encoder)
    assert jnp.any(gradient.img_encoder.patch_to_token.kernel[...] != 0)
    assert jnp.all(gradient.img_encoder.linear_head.kernel[...] == 0)


def test_patches_are_dropped_on_request(with_encoder) -> None:
    def embed(model, seed):
        return model.embed_image(IMAGES, rngs=nnx.Rngs(dropout=seed))[0]

    dropping = nnx.view(with_encoder, deterministic=False)
    np.testing.assert_array_equal(embed(with_encoder, 0), embed(with_encoder, 1))
    np.testing.assert_array_equal(embed(dropping, 0), embed(dropping, 0))
    assert jnp.any(embed(dropping, 0) != embed(dropping, 1))
    for method in (dropping.loss, dropping.latents, dropping):
        method(TEXT, images=IMAGES, rngs=nnx.Rngs(dropout=0))
        with pytest.raises(ValueError, match=r"pass rngs=nnx\.Rngs\(dropout=key\)"):
            method(TEXT, images=IMAGES)


def test_full_size_shapes() -> None:
    """The configuration of the package's README, with its number of parameters."""
    config = MaMMUTConfig(dim=512, num_tokens=20000, depth=6, image_dim=1024)
    model = nnx.eval_shape(lambda: MaMMUT(config, rngs=nnx.Rngs(0)))
    assert sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param))) == 56_387_585
    arguments = jax.ShapeDtypeStruct((4, 512), jnp.int32), jax.ShapeDtypeStruct((4, 64, 1024), jnp.float32)
    assert jax.eval_shape(logits, model, *arguments).shape == (4, 512, 20000)
    assert jax.eval_shape(total, model, *arguments).shape == ()


@settings(max_examples=3, deadline=None, derandomize=True)
@given(
    dim=st.integers(2, 6),
    depth=st.integers(0, 2),
    num_img_queries=st.integers(0, 2),
    dim_head=st.sampled_from([2, 4]),
    heads=st.integers(1, 2),
    n=st.integers(2, 4),
    m=st.integers(0, 2),
)
def test_random_configurations_are_finite_and_causal(
    dim, depth, num_img_queries, dim_head, heads, n, m
) -> None:
    config = MaMMUTConfig(
        dim=dim, num_tokens=7, depth=depth, num_img_queries=num_img_queries, dim_head=dim_head, heads=heads
    )
    model = MaMMUT(config, rngs=nnx.Rngs(0))
    text = jax.random.randint(jax.random.key(0), (2, n), 1, 7)
    image_tokens = jax.random.normal(jax.random.key(1), (2, m, dim))
    out = logits(model, text, image_tokens)
    assert out.shape == (2, n, 7)
    assert jnp.isfinite(out).all()
    changed = logits(model, text.at[:, -1].set(text[:, -1] % 6 + 1), image_tokens)
    np.testing.assert_array_equal(changed[:, :-1], out[:, :-1])
