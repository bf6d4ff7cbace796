"""Baselines of the image tasks: majority, nearest neighbours, logistic regression, a linear filter.

Classifiers return the share of test examples whose class is the best guess (`top1`) and among the five best
guesses (`top5`). Nothing here is random.

Shapes: n training, m test and v validation examples, whose further axes are flattened to f features.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Float32, Int, Num

from jaxmodels.data.datasets import LabelledSplits
from jaxmodels.data.downsampling import box_means
from jaxmodels.losses import mean_cross_entropy


PENALTIES = (10.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)  # each fit starts where the one before ended
STEPS = 50  # of L-BFGS, for each of them
PIXELS = 32  # a side: classifiers of pixels see box means of larger images
NUMBERS_AT_A_TIME = 16_000_000  # how many float32 numbers a block of images or of distances may hold


def accuracies(scores: Num[np.ndarray, "m classes"], labels: Int[np.ndarray, " m"]) -> dict[str, float]:
    """Top-1 and top-5 accuracy; of equal scores the one of the lower class counts as the better guess."""
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = order[:, :5] == labels[:, None]
    return {"top1": float(hits[:, 0].mean()), "top5": float(hits.any(axis=1).mean())}


def classify_pixels(splits: LabelledSplits) -> dict[str, dict[str, float]]:
    """All three classifiers on the test split."""
    train, validation, test = splits.train, splits.validation, splits.test
    box = -(-max(train.images.shape[1:3]) // PIXELS)
    train_x, validation_x, test_x = (box_means(part.images, box) for part in (train, validation, test))
    return {
        "majority": majority(train.labels, test.labels),
        "5 nearest neighbours": nearest_neighbours(train_x, train.labels, test_x, test.labels),
        "logistic regression": logistic_regression(
            train_x,
            train.labels,
            test_x,
            test.labels,
            validation_x=validation_x,
            validation_y=validation.labels,
        ),
    }


def majority(train_y: Int[np.ndarray, " n"], test_y: Int[np.ndarray, " m"]) -> dict[str, float]:
    """Guesses the classes in the order of their frequency, whatever the image."""
    frequency = np.bincount(train_y, minlength=1 + test_y.max())
    return accuracies(np.tile(frequency, (len(test_y), 1)), test_y)


def nearest_neighbours(
    train_x: Num[np.ndarray, "n ..."],
    train_y: Int[np.ndarray, " n"],
    test_x: Num[np.ndarray, "m ..."],
    test_y: Int[np.ndarray, " m"],
    k: int = 5,
) -> dict[str, float]:
    """The `k` nearest training examples (Euclidean) vote for their classes.

    Between equal votes the nearest example decides, between classes without a vote their frequency.
    """
    frequency = np.bincount(train_y, minlength=1 + test_y.max()) / len(train_y)
    nearest = _nearest(train_x, test_x, min(k, len(train_x)))
    scores = np.tile(frequency / 1000, (len(test_x), 1))
    for rank, neighbours in enumerate(nearest.T):
        # A vote, and a fraction by which the nearest outweighs all that are further away together.
        scores[np.arange(len(test_x)), train_y[neighbours]] += 1 + 0.25 * 0.5**rank
    return accuracies(scores, test_y)


def _nearest(
    train_x: Num[np.ndarray, "n ..."], test_x: Num[np.ndarray, "m ..."], k: int
) -> Int[np.ndarray, "m k"]:
    """Indices of the `k` nearest training examples, nearest first; only blocks are ever converted and compared."""
    rows = max(1, min(2048, NUMBERS_AT_A_TIME // train_x[0].size))
    blocks = []
    for start in range(0, len(test_x), rows):
        queries = _features(test_x[start : start + rows])
        distances = np.full((len(queries), k), np.inf, np.float32)
        indices = np.zeros((len(queries), k), np.int64)
        for first in range(0, len(train_x), rows):
            candidates = _features(train_x[first : first + rows])
            # Without the square of the query, which is the same for all candidates.
            block = np.square(candidates).sum(axis=1) - 2 * queries @ candidates.T
            distances = np.concatenate([distances, block], axis=1)
            new = np.broadcast_to(np.arange(first, first + len(candidates)), block.shape)
            indices = np.concatenate([indices, new], axis=1)
            kept = np.argpartition(distances, k - 1, axis=1)[:, :k]
            distances = np.take_along_axis(distances, kept, axis=1)
            indices = np.take_along_axis(indices, kept, axis=1)
        order = np.argsort(distances, axis=1, kind="stable")
        blocks.append(np.take_along_axis(indices, order, axis=1))
    return np.concatenate(blocks)


def logistic_regression(
    train_x: Num[np.ndarray, "n ..."],
    train_y: Int[np.ndarray, " n"],
    test_x: Num[np.ndarray, "m ..."],
    test_y: Int[np.ndarray, " m"],
    *,
    validation_x: Num[np.ndarray, "v ..."],
    validation_y: Int[np.ndarray, " v"],
) -> dict[str, float]:
    """Multinomial logistic regression on standardised features: also the linear probe of features.

    The L2 penalty is the one of `PENALTIES` with the lowest validation loss.
    """
    classes = int(1 + max(train_y.max(), test_y.max(), validation_y.max()))
    train_x = _features(train_x)
    mean, scale = train_x.mean(axis=0), train_x.std(axis=0)
    scale[scale == 0] = 1  # white borders

    def logits(weights: dict[str, Array], x: Num[np.ndarray, "m ..."]) -> Float[np.ndarray, "m classes"]:
        return (_features(x) - mean) / scale @ np.asarray(weights["kernel"]) + np.asarray(weights["bias"])

    weights = {"kernel": jnp.zeros((train_x.shape[1], classes)), "bias": jnp.zeros(classes)}
    standardised = jnp.asarray((train_x - mean) / scale)
    lowest, best = np.inf, weights
    for penalty in PENALTIES:
        weights = _fit(weights, standardised, jnp.asarray(train_y), penalty)
        loss = float(
            mean_cross_entropy(jnp.asarray(logits(weights, validation_x)), jnp.asarray(validation_y))
        )
        if loss < lowest:
            lowest, best = loss, weights
    return accuracies(logits(best, test_x), test_y)


def _features(x: Num[np.ndarray, "n ..."]) -> Float[np.ndarray, "n f"]:
    return x.reshape(len(x), -1).astype(np.float32)


@jax.jit
def _fit(
    weights: dict[str, Array],
    x: Float[Array, "n f"],
    labels: Int[Array, " n"],
    penalty: float | Float[Array, ""],
) -> dict[str, Array]:
    """Full-batch L-BFGS from `weights`."""

    def objective(weights: dict[str, Array]) -> Float[Array, ""]:
        logits = x @ weights["kernel"] + weights["bias"]
        loss = mean_cross_entropy(logits, labels)
        return loss + penalty / 2 * jnp.square(weights["kernel"]).sum()

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def step(_: int | Int[Array, ""], carry: tuple) -> tuple:
        weights, state = carry
        value, grad = value_and_grad(weights, state=state)
        updates, state = solver.update(grad, state, weights, value=value, grad=grad, value_fn=objective)
        return optax.apply_updates(weights, updates), state

    return jax.lax.fori_loop(0, STEPS, step, (weights, solver.init(weights)))[0]


class LinearFilter:
    """The best linear map from the noised pixels around a pixel, all channels together, to the clean one.

    Fitted by least squares; borders are continued.

    Args:
      noised, clean: the images to fit it to.
      radius: the filter reads a square of 2 · radius + 1 pixels a side.
    """

    def __init__(
        self,
        noised: Float32[np.ndarray, "n height width c"],
        clean: Float32[np.ndarray, "n height width c"],
        *,
        radius: int = 3,
    ) -> None:
        self.radius = radius
        size = clean.shape[-1] * (2 * radius + 1) ** 2 + 1
        squares, products = np.zeros((size, size)), np.zeros((size, clean.shape[-1]))
        for image, target in zip(noised, clean, strict=True):
            x = self._surroundings(image)
            squares += x.T @ x
            products += x.T @ target.reshape(len(x), -1)
        ridge = 1e-6 * np.trace(squares) / size * np.eye(size)  # images of one colour leave it undetermined
        self.weights = np.linalg.solve(squares + ridge, products).astype(np.float32)

    def __call__(
        self, noised: Float32[np.ndarray, "n height width c"]
    ) -> Float32[np.ndarray, "n height width c"]:
        """The cleaned images."""
        cleaned = np.empty_like(noised)
        for i, image in enumerate(noised):
            cleaned[i] = (self._surroundings(image) @ self.weights).reshape(image.shape)
        return cleaned

    def _surroundings(self, image: Float32[np.ndarray, "height width c"]) -> Float32[np.ndarray, "p f"]:
        """The pixels around every pixel, and a 1."""
        r, (height, width, _) = self.radius, image.shape
        padded = np.pad(image, ((r, r), (r, r), (0, 0)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * r + 1, 2 * r + 1), axis=(0, 1))
        windows = windows.reshape(height * width, -1)
        return np.concatenate([windows, np.ones((len(windows), 1), np.float32)], axis=1)
