"""Figures: what they compute before they draw."""

from pathlib import Path

import numpy as np
import pytest

from jaxmodels.training.tasks.figures.images import (
    OUTLINE,
    confusion_figure,
    drawable,
    neighbour_cosine,
    outlined,
    prediction_figure,
    principal_colors,
)


def test_outlined_patches_keep_their_colours():
    image = np.full((4, 8, 1), 90, np.uint8)
    mask = np.array([[True, True, False, False], [False, False, False, False]])  # of 2 × 2 pixels

    result = outlined(image, mask, scale=4)

    assert result.shape == (16, 32, 3)
    assert (result[2, 2:14] == 90).all(), "no line between two selected patches"
    for row, column in ((0, 5), (7, 5), (4, 0), (4, 15)):
        assert tuple(result[row, column]) == OUTLINE
    assert (result[8:] > 180).all()
    assert (result[:, 16:] > 180).all()


def test_neighbour_cosine():
    states = np.zeros((2, 3, 4))
    states[..., 0] = 2
    assert neighbour_cosine(states) == pytest.approx(1)
    states[:, 1] = [0, 5, 0, 0]
    assert neighbour_cosine(states) == pytest.approx(3 / 7), "four pairs of seven are orthogonal"
    assert neighbour_cosine(np.zeros((2, 2, 3))) == 0


def test_equal_states_have_equal_colours():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(4, 16))
    kinds = random.integers(0, 4, (3, 5, 6))

    colors = principal_colors(vectors[kinds])

    assert colors.shape == (3, 5, 6, 3)
    assert colors.min() == 0
    assert colors.max() == 1
    distinct = {tuple(color.round(6)) for color in colors.reshape(-1, 3)}
    assert len(distinct) == 4
    assert np.ptp(principal_colors(np.ones((2, 3, 3, 16)))) == 0
    assert principal_colors(random.normal(size=(2, 3, 3, 2))).shape == (2, 3, 3, 3), "two dimensions"


def test_predictions_say_right_from_wrong():
    images = np.zeros((3, 8, 8, 3), np.uint8)
    logits = np.array([[3.0, 0, 0], [3.0, 0, 0], [0, 0, 9.0]])

    figure = prediction_figure(images, np.array([0, 1, 2]), logits, ("ant", "bee", "cow"))

    titles = [axes.get_title() for axes in figure.axes[:3]]
    assert titles == ["ant 91%", "ant 91%\nis bee", "cow 100%"]


@pytest.mark.parametrize(("classes", "names", "counts"), [(3, 3, 3), (30, 30, 0), (50, 0, 0)])
def test_large_confusion_matrices_are_not_labelled(classes, names, counts):
    figure = confusion_figure(2 * np.eye(classes, dtype=int), [f"class {i}" for i in range(classes)])

    axes = figure.axes[0]
    assert sum("class" in label.get_text() for label in axes.get_xticklabels()) == names
    assert len(axes.texts) == counts
    figure.canvas.draw()


@pytest.mark.parametrize("name", [r"$\foo$", "$x", "caf\udce9", "猫", "a\nb"])
def test_names_of_classes_are_text(name: str, tmp_path: Path) -> None:
    """Names of folders: neither formulas nor always UTF-8."""
    names = (name, "b")
    figures = {
        "confusion": confusion_figure(np.array([[3, 1], [0, 4]]), names),
        "predictions": prediction_figure(
            np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1]), np.eye(2), names
        ),
    }
    for title, figure in figures.items():
        for ending in ("png", "svg"):
            figure.savefig(tmp_path / f"{title}.{ending}")
    assert drawable(r"$\foo$") == r"$\foo$"
    assert drawable("caf\udce9 猫") == "caf· ·"
