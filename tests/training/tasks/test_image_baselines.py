"""Baselines of the image tasks, each on data whose answer is known."""

import numpy as np
import pytest

from jaxmodels.data.datasets import LabelledImages, LabelledSplits
from jaxmodels.training.tasks.baselines import images as baselines
from jaxmodels.training.tasks.baselines.images import (
    LinearFilter,
    accuracies,
    classify_pixels,
    logistic_regression,
    majority,
    nearest_neighbours,
)


def test_accuracies():
    scores = np.array([[9, 8, 7, 6, 5, 4], [1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0]])

    assert accuracies(scores, np.array([0, 1, 4])) == {"top1": 1 / 3, "top5": 1.0}
    assert accuracies(scores, np.array([5, 0, 5])) == {"top1": 0.0, "top5": 0.0}


def test_majority():
    train = np.repeat([3, 0, 1, 2, 4, 5], [9, 2, 3, 4, 5, 1])

    assert majority(train, np.array([3, 3, 0, 5])) == {"top1": 0.5, "top5": 0.75}
    assert majority(train, np.array([3, 7])) == {"top1": 0.5, "top5": 0.5}, (
        "a class that was never trained on"
    )


def test_nearest_neighbours_vote():
    train_x = np.array([[0], [1], [2], [10], [11], [200]], np.uint8)
    train_y = np.array([0, 1, 1, 2, 2, 2])

    def top1(x: int, y: int, k: int) -> float:
        return nearest_neighbours(train_x, train_y, np.array([[x]], np.uint8), np.array([y]), k)["top1"]

    assert top1(0, 0, k=1) == 1
    assert top1(0, 1, k=3) == 1, "two votes of three"
    assert top1(0, 0, k=2) == 1, "of equal votes the nearest"
    assert top1(255, 2, k=1) == 1, "uint8 must not wrap round"
    assert top1(0, 2, k=99) == 1, "all vote"


def test_nearest_neighbours_agree_with_a_plain_search(monkeypatch):
    random = np.random.default_rng(0)
    train_x, test_x = random.integers(0, 256, (2, 300, 4, 4, 3), np.uint8)
    monkeypatch.setattr(baselines, "NUMBERS_AT_A_TIME", 48 * 70)  # blocks of 70, the last one smaller

    found = baselines._nearest(train_x, test_x, 5)

    distances = np.square(train_x[None].astype(float) - test_x[:, None]).sum(axis=(2, 3, 4))
    np.testing.assert_array_equal(found, np.argsort(distances, axis=1, kind="stable")[:, :5])


def blobs(n: int, seed: int, features: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Three classes whose means lie apart, one constant feature, and one of large numbers."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, n)
    x = random.normal(size=(n, features)).astype(np.float32)
    x[np.arange(n), labels] += 4
    x[:, -1] = 7
    x[:, -2] *= 1000
    return x, labels


def test_logistic_regression_separates_what_is_separable():
    (train_x, train_y), (x, y), (test_x, test_y) = blobs(300, 0), blobs(100, 1), blobs(500, 2)

    result = logistic_regression(train_x, train_y, test_x, test_y, validation_x=x, validation_y=y)

    assert result["top1"] > 0.97
    assert result["top5"] == 1
    again = logistic_regression(train_x, train_y, test_x, test_y, validation_x=x, validation_y=y)
    assert result == again


def test_logistic_regression_minimises_its_objective():
    x, labels = blobs(200, 0)
    x = ((x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-6)).astype(np.float32)
    start = {"kernel": np.zeros((6, 3), np.float32), "bias": np.zeros(3, np.float32)}

    weights = {
        name: np.asarray(value, np.float64) for name, value in baselines._fit(start, x, labels, 0.1).items()
    }

    logits = x @ weights["kernel"] + weights["bias"]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    error = (probabilities - np.eye(3)[labels]) / len(x)
    np.testing.assert_allclose(x.T @ error + 0.1 * weights["kernel"], 0, atol=1e-4)
    np.testing.assert_allclose(error.sum(axis=0), 0, atol=1e-4)


def test_the_penalty_is_chosen_on_the_validation_data(monkeypatch):
    """As many features as examples and random labels: nothing can be learned, and only a strong penalty admits it."""
    random = np.random.default_rng(0)
    train_x, x, test_x = random.normal(size=(3, 60, 40)).astype(np.float32)
    train_y, y, test_y = random.integers(0, 3, (3, 60))
    fits = []
    fit = baselines._fit
    monkeypatch.setattr(baselines, "_fit", lambda *arguments: fits.append(fit(*arguments)) or fits[-1])
    monkeypatch.setattr(baselines, "accuracies", lambda logits, _: {"spread": float(np.ptp(logits))})

    result = logistic_regression(train_x, train_y, test_x, test_y, validation_x=x, validation_y=y)

    assert len(fits) == len(baselines.PENALTIES)
    assert result["spread"] < 1, "the weights of the strongest penalty"
    assert np.abs(fits[-1]["kernel"]).max() > 1


def test_large_images_are_reduced(monkeypatch):
    random = np.random.default_rng(0)

    def part(n: int) -> LabelledImages:
        labels = np.arange(n, dtype=np.int32) % 2
        images = random.integers(0, 100, (n, 80, 48, 1), np.uint8) + 100 * labels[:, None, None, None].astype(
            np.uint8
        )
        return LabelledImages(images=images, labels=labels)

    splits = LabelledSplits(
        source="noise", train=part(20), validation=part(6), test=part(8), class_names=("a", "b")
    )
    seen = []
    fit = baselines._fit
    monkeypatch.setattr(
        baselines, "_fit", lambda *arguments: seen.append(arguments[1].shape) or fit(*arguments)
    )

    results = classify_pixels(splits)

    assert list(results) == ["majority", "5 nearest neighbours", "logistic regression"]
    assert results["majority"]["top1"] == 0.5
    assert results["5 nearest neighbours"]["top1"] == results["logistic regression"]["top1"] == 1
    assert set(seen) == {(20, 26 * 16)}, "80 × 48 pixels in boxes of three"


def test_linear_filter_recovers_a_linear_map():
    random = np.random.default_rng(0)
    noised = random.normal(size=(4, 12, 10, 2)).astype(np.float32)
    padded = np.pad(noised, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    clean = 0.5 * padded[:, :-2, 1:-1] - 0.25 * padded[:, 1:-1, 2:, ::-1] + 0.125

    fitted = LinearFilter(noised, clean, radius=1)

    np.testing.assert_allclose(fitted(noised), clean, atol=1e-3)


def test_linear_filter_of_images_of_one_colour_is_finite():
    flat = np.full((2, 8, 8, 3), -1, np.float32)

    assert LinearFilter(flat, flat)(flat) == pytest.approx(flat, abs=1e-3)
