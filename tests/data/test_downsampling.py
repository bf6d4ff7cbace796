"""Box means of images."""

import numpy as np

from jaxmodels.data.downsampling import box_means


def test_what_does_not_fill_a_box_is_left_out():
    images = np.arange(2 * 5 * 7, dtype=np.uint8).reshape(2, 5, 7, 1)

    means = box_means(images, 2)

    assert means.shape == (2, 2, 3, 1)
    assert means[1, 1, 2, 0] == np.rint(images[1, 2:4, 4:6].mean())
    assert box_means(images, 1) is images
