"""Numbers recorded from the published MaMMUT package (M1 to M9), reproduced by both implementations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxmodels as jm
import torch_reference
from parity_tests.mammut_pairs import IMAGE_TOKENS, LABELS, LEFT_PADDED, TEXT, both, golden_pair


@pytest.fixture(scope="module")
def pair() -> tuple[torch_reference.MaMMUT, jm.MaMMUT]:
    return golden_pair()


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
    """Captioning by recomputing the text at every step, from one encoding of the image."""
    reference, ours = golden_pair(offset=9)
    expected = [[1, 4, 4, 6, 6, 6, 6, 6, 6], [2, 6, 3, 3, 3, 12, 12, 12, 12]]

    text = torch.tensor([[1], [2]])
    _, context = reference.embed_image(image_tokens=torch.from_numpy(IMAGE_TOKENS))
    for _ in range(8):
        text = torch.cat([text, reference.decode(text, context)[:, -1].argmax(dim=-1)[:, None]], dim=1)
    assert text.tolist() == expected

    embed = jax.jit(lambda model, image_tokens: model.embed_image(image_tokens=image_tokens))
    _, context = embed(ours, jnp.asarray(IMAGE_TOKENS))
    decode = jax.jit(lambda model, text, context: model.decode(text, context))
    caption = np.array([[1], [2]])
    for _ in range(8):
        # Padded on the right, which a causal model ignores, so that every step has the same shape.
        filled = np.pad(caption, ((0, 0), (0, 9 - caption.shape[1])))
        logits = np.asarray(decode(ours, jnp.asarray(filled), context))[:, caption.shape[1] - 1]
        top, second = np.sort(logits, axis=-1)[:, ::-1][:, :2].T
        assert np.min(top - second) > 0.0375
        caption = np.concatenate([caption, np.argmax(logits, axis=-1)[:, None]], axis=1)
    assert caption.tolist() == expected


def test_golden_m9_similarities(pair) -> None:
    expected = [[0.47298552970031693, 0.7320963211836051], [0.31835479419000184, 0.37557193612891643]]
    for text, image in both(pair, "latents", text=TEXT, image_tokens=IMAGE_TOKENS):
        np.testing.assert_allclose(text @ image.T, expected, rtol=0, atol=1e-14)
