"""Recall where several answers are right or score the same."""

from itertools import permutations

import numpy as np
import pytest

from jaxmodels.data.datasets import CaptionedImages
from jaxmodels.training.tasks import retrieval
from jaxmodels.training.tasks.retrieval import chance, pixel_neighbours, recalls, right_answers


def make_images(*shades: int, side: int = 2) -> np.ndarray:
    return np.array([np.full((side, side, 3), shade, np.uint8) for shade in shades])


def as_lists(answers) -> list[list[int]]:
    return [answer.tolist() for answer in answers]


def test_equal_images_and_equal_captions_share_their_answers() -> None:
    images = make_images(1, 2, 1, 3)
    captions = ["artist", "dog", "man artist", "dog"]

    right_captions, right_images = right_answers(images, captions)

    assert as_lists(right_captions) == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert as_lists(right_images) == [[0, 2], [1, 3], [0, 2], [1, 3]]


def test_answers_go_over_one_image_only() -> None:
    # "b" is drawn like "a" once and like "c" once; that does not make "a" right for the drawing of "c".
    right_captions, right_images = right_answers(make_images(1, 1, 2, 2), ["a", "b", "b", "c"])

    assert as_lists(right_captions) == [[0, 1, 2], [0, 1, 2], [1, 2, 3], [1, 2, 3]]
    assert as_lists(right_images) == [[0, 1], [0, 1, 2, 3], [0, 1, 2, 3], [2, 3]]


def test_recall_counts_the_wrong_ones_before_the_best_right_one(monkeypatch) -> None:
    monkeypatch.setattr(retrieval, "ROWS_AT_A_TIME", 2)
    scores = np.tile(np.arange(20.0)[::-1], (4, 1))  # candidate 0 is the best, 19 the worst
    right = [np.array(numbers) for numbers in ([0], [4, 19], [9], [10])]

    result = recalls(lambda rows: scores[rows], right)

    assert result == {"recall_at_1": 0.25, "recall_at_5": 0.5, "recall_at_10": 0.75}


def test_right_answers_do_not_stand_in_each_others_way() -> None:
    scores = np.array([[9.0, 8.0, 8.0, 8.0, 8.0, 8.0, 7.0]])
    assert recalls(lambda rows: scores[rows], [np.array([1, 2, 3, 4, 5])]) == {
        "recall_at_1": 0.0,
        "recall_at_5": 1.0,
        "recall_at_10": 1.0,
    }


def test_equal_scores_are_no_success() -> None:
    scores = np.zeros((3, 12))
    right = [np.array([number]) for number in range(3)]
    assert recalls(lambda rows: scores[rows], right) == {
        "recall_at_1": 0.0,
        "recall_at_5": 0.0,
        "recall_at_10": 0.0,
    }


def test_chance_is_the_share_of_orders() -> None:
    orders = list(permutations(range(6)))
    right = [np.array([2]), np.array([0, 5])]
    counted = [
        np.mean([bool(set(order[:1]) & set(answers.tolist())) for order in orders]) for answers in right
    ]
    counted5 = [
        np.mean([bool(set(order[:5]) & set(answers.tolist())) for order in orders]) for answers in right
    ]

    result = chance(right, 6)

    assert result["recall_at_1"] == pytest.approx(np.mean(counted))
    assert result["recall_at_5"] == pytest.approx(np.mean(counted5))
    assert result["recall_at_10"] == 1.0


@pytest.mark.parametrize("side", [2, 64])
def test_nearest_pixels(side) -> None:
    train = CaptionedImages(
        images=make_images(10, 50, 90, 200, side=side), captions=("ant", "bee", "ant", "only here")
    )

    nearest, scores = pixel_neighbours(
        train, make_images(60, 190, 12, side=side), ["bee", "ant", "unseen", "bee"]
    )

    assert nearest.tolist() == [1, 3, 0]
    numbers = 3 * min(side, 32) ** 2  # larger images are compared at 32 pixels a side
    assert scores[0].tolist() == [-(10.0**2) * numbers, -(30.0**2) * numbers, -np.inf, -(10.0**2) * numbers]
    assert scores[2, 1] == -(2.0**2) * numbers


def test_nearest_pixels_when_no_caption_was_seen() -> None:
    train = CaptionedImages(images=make_images(10, 50), captions=("ant", "bee"))
    nearest, scores = pixel_neighbours(train, make_images(49), ["cow"])
    assert nearest.tolist() == [1]
    assert scores.tolist() == [[-np.inf]]
