"""One of two JAX processes that compute MaMMUT's loss over a global batch; test_mammut_processes.py starts them.

    python -m parity_tests.jax_mammut_worker RANK COORDINATOR FOLDER

FOLDER/config.json, FOLDER/weights.npz and FOLDER/batch.npz are read; each process holds its half of the batch.
The first one writes loss and gradients, in PyTorch's layout, to FOLDER/jax.npz.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxmodels as jm


def main(rank: int, coordinator: str, folder: Path) -> None:
    jax.config.update("jax_enable_x64", True)
    jax.distributed.initialize(coordinator, 2, rank)
    config = jm.MaMMUTConfig(**json.loads((folder / "config.json").read_text()))
    model = nnx.eval_shape(lambda: jm.MaMMUT(config, rngs=nnx.Rngs(0)))
    jm.load_state_dict(model, dict(np.load(folder / "weights.npz")))
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,))
    replicated, halves = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), ("data",)))
    batch = {}
    for name, batch_array in np.load(folder / "batch.npz").items():
        half = np.split(batch_array, 2)[rank]
        batch[name] = jax.make_array_from_process_local_data(halves, half, batch_array.shape)
    graphdef, state = nnx.split(model)
    state = jax.tree.map(lambda x: jax.make_array_from_process_local_data(replicated, np.asarray(x)), state)

    def loss(state, batch):
        return nnx.merge(graphdef, state).loss(**batch).total

    value, gradients = jax.jit(jax.value_and_grad(loss), out_shardings=replicated)(state, batch)
    # The buffer of frequencies has no gradient; its own value passes the check on export.
    gradients = jax.tree.map(lambda x: np.asarray(x), gradients)
    *_, buffers = nnx.split(model, nnx.Param, ...)
    nnx.update(model, nnx.merge_state(gradients.filter(nnx.Param), buffers))
    if rank == 0:
        np.savez(folder / "jax.npz", loss=np.asarray(value), **jm.to_state_dict(model))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
