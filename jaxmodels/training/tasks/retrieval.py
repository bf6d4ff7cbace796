"""Recall: how often a right answer is among the first few.

Shapes: n queries, m candidates, i images, j different captions, t training images.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

from jaxmodels.data.datasets import CaptionedImages
from jaxmodels.data.downsampling import box_means


RANKS = (1, 5, 10)
ROWS_AT_A_TIME = 512
PIXEL_SIDE = 32  # larger images are compared by their box means

Answers = list[Int[np.ndarray, " _"]]  # of every query, the candidates that are right


def right_answers(
    images: UInt8[np.ndarray, "n height width c"], captions: Sequence[str]
) -> tuple[Answers, Answers]:
    """The right captions of every image, and the right images of every caption, by their numbers.

    A caption is right for an image if it, or an equal one, belongs to an image with the same pixels.
    """
    pixels = [hashlib.sha256(image.tobytes()).digest() for image in images]
    captions_of, images_of = _partners(pixels, captions), _partners(captions, pixels)
    same_pixels, same_caption = _numbers(pixels), _numbers(captions)
    return (
        [_union(same_caption, captions_of[key]) for key in pixels],
        [_union(same_pixels, images_of[key]) for key in captions],
    )


def _numbers(keys: Sequence) -> dict:
    """Where each key stands."""
    numbers = defaultdict(list)
    for number, key in enumerate(keys):
        numbers[key].append(number)
    return numbers


def _partners(keys: Sequence, partners: Sequence) -> dict:
    found = defaultdict(set)
    for key, partner in zip(keys, partners, strict=True):
        found[key].add(partner)
    return found


def _union(numbers: dict, keys: set) -> Int[np.ndarray, " right"]:
    return np.sort(np.concatenate([numbers[key] for key in keys]))


def recalls(score: Callable[[slice], Float[np.ndarray, "b m"]], right: Answers) -> dict[str, float]:
    """Recall at 1, 5 and 10.

    Args:
      score: gives the scores of all candidates for these queries, higher for better ones. A wrong candidate
        that scores as high as a right one counts as if it came before it.
      right: the right candidates of every query.
    """
    before = np.zeros(len(right), int)  # wrong candidates that come before the best right one
    for start in range(0, len(right), ROWS_AT_A_TIME):
        rows = slice(start, min(start + ROWS_AT_A_TIME, len(right)))
        for number, scores in zip(range(rows.start, rows.stop), score(rows), strict=True):
            own = scores[right[number]]
            before[number] = (scores >= own.max()).sum() - (own >= own.max()).sum()
    return {f"recall_at_{k}": float((before < k).mean()) for k in RANKS}


def chance(right: Answers, candidates: int) -> dict[str, float]:
    """The recall that is expected of a random order of the candidates."""
    result = {}
    for k in RANKS:
        draws = min(k, candidates)
        all_draws = math.comb(candidates, draws)
        missed = [math.comb(candidates - len(answers), draws) / all_draws for answers in right]
        result[f"recall_at_{k}"] = 1 - float(np.mean(missed))
    return result


def pixel_neighbours(
    train: CaptionedImages, images: UInt8[np.ndarray, "i height width c"], captions: Sequence[str]
) -> tuple[Int[np.ndarray, " i"], Float[np.ndarray, "i m"]]:
    """Retrieval by the distance between pixels: the nearest training image, and a score for every caption.

    The score of a caption is minus the squared distance to the nearest training image that has it; -∞ if
    none has.
    """
    box = -(-max(images.shape[1:3]) // PIXEL_SIDE)
    known, unknown = _features(box_means(train.images, box)), _features(box_means(images, box))
    column = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    owner = np.array([column.get(caption, -1) for caption in train.captions])
    order = np.flatnonzero(owner >= 0)[np.argsort(owner[owner >= 0], kind="stable")]
    present, starts = np.unique(owner[order], return_index=True)

    nearest = np.zeros(len(images), int)
    scores = np.full((len(images), len(column)), -np.inf, np.float32)
    for start in range(0, len(images), ROWS_AT_A_TIME):
        rows = slice(start, start + ROWS_AT_A_TIME)
        # Without the square of the image itself, which is the same for all that it is compared with.
        similarity = 2 * unknown[rows] @ known.T - np.square(known).sum(axis=1)
        similarity -= np.square(unknown[rows]).sum(axis=1, keepdims=True)
        nearest[rows] = similarity.argmax(axis=1)
        if len(order):
            scores[rows, present] = np.maximum.reduceat(similarity[:, order], starts, axis=1)
    return nearest, scores[:, [column[caption] for caption in captions]]


def _features(images: UInt8[np.ndarray, "n height width c"]) -> Float[np.ndarray, "n f"]:
    return images.reshape(len(images), -1).astype(np.float32)
