"""The stream of training batches: the same global batch for any number of processes; its state is the step."""

import functools
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Int

from jaxmodels.training.draws import ORDER, Draws
from jaxmodels.training.optimizer import MOST_STEPS
from jaxmodels.training.task import Task


# The device computes a step while these are read. The order of the batches depends on neither number.
THREADS = 2
READ_AHEAD = 4  # batches


def batches(
    task: Task, *, batch_size: int, seed: int, sharding: Sharding, start: int = 0
) -> Iterator[dict[str, jax.Array]]:
    """Global batches from step `start` on, for `MOST_STEPS` steps; every epoch is shuffled anew.

    Example i of step s depends on (seed, s · batch_size + i) alone: neither on the number of processes, each
    of which reads only the rows of its own devices, nor on where a run was interrupted.

    Args:
      task: gives the examples.
      batch_size: examples of the global batch.
      seed: decides the order of the examples and what is random in them.
      sharding: how the first axis is divided among the devices of all processes.
      start: the first step.
    """
    rows = _own_rows(sharding, batch_size)
    # Two threads may be in two epochs.
    order = functools.lru_cache(maxsize=2)(lambda epoch: epoch_order(seed, epoch, task.examples))

    def load(step: int) -> dict[str, np.ndarray]:
        positions = step * batch_size + rows
        epochs, places = np.divmod(positions, task.examples)
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            indices[here] = order(epoch)[places[here]]
        return task.batch(indices, Draws(seed, positions))

    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=READ_AHEAD)
    reader: Any = iter(grain.MapDataset.range(MOST_STEPS).map(load).to_iter_dataset(options))
    reader.set_state({"next_index": start})
    return (place(batch, sharding, batch_size) for batch in reader)


def epoch_order(seed: int, epoch: int, examples: int) -> Int[np.ndarray, " examples"]:
    """The examples of an epoch, shuffled: the ranks of random words, which no version of NumPy may change."""
    words = np.random.Philox(key=[seed, ORDER], counter=[0, epoch, 0, 0]).random_raw(examples)
    return np.argsort(words, kind="stable")


def place(batch: dict[str, np.ndarray], sharding: Sharding, size: int) -> dict[str, jax.Array]:
    """Puts this process's rows of a batch of `size` examples on its devices."""
    return {
        name: jax.make_array_from_process_local_data(sharding, rows, (size, *rows.shape[1:]))
        for name, rows in batch.items()
    }


def _own_rows(sharding: Sharding, size: int) -> np.ndarray:
    """Positions in the global batch that the devices of this process hold."""
    slices = sharding.addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[index] for index in slices]))
