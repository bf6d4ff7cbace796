"""Checkpoints that survive what happens to long runs: kills, full disks, damaged files, other machines.

A thin layer over `orbax.checkpoint` (version 0 of its interface; version 1 is still experimental): every
checkpoint also holds a fingerprint of its arrays, so that damage is noticed and not trained on.
"""

import hashlib
import json
import logging
import shutil
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, PyTree, UInt32

from jaxmodels.training.mesh import barrier
from jaxmodels.training.step import TrainState


class Checkpoints:
    """The checkpoints of one run, in a folder of their own; used by all of its processes together."""

    def __init__(self, folder: Path, *, keep: int, report: Callable[[str], None] = print) -> None:
        self.folder = folder.absolute()
        self.report = report
        _quieten_orbax()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, newest first."""
        return sorted(self.manager.all_steps(), reverse=True)

    def save(self, state: TrainState, description: dict[str, Any]) -> None:
        """Begins to save; the arrays are copied before this returns, the files are written meanwhile.

        Raises:
          OSError: this checkpoint, or the one before, could not be written. Earlier ones are as they were.
        """
        step = int(state.step)
        meta = {"fingerprint": fingerprint(state), "description": description}
        try:
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_tree(state)), meta=ocp.args.JsonSave(meta)
                ),
                force=True,
            )
        except Exception as error:  # whatever the storage layer raises
            raise self._failure(error) from error

    def wait(self) -> None:
        """Returns when everything is written; raises like `save`."""
        try:
            self.manager.wait_until_finished()
        except Exception as error:
            raise self._failure(error) from error

    def check(self) -> None:
        """Raises like `save` if a write that runs in the background has failed."""
        try:
            self.manager.check_for_errors()
        except Exception as error:
            raise self._failure(error) from error

    def restore(self, abstract: TrainState) -> TrainState | None:
        """The newest checkpoint that is intact, on the devices that `abstract` names; None if there is none.

        One that cannot be read, or whose fingerprint is another, is reported and set aside (renamed); the one
        before it is tried.

        Raises:
          OSError: there are checkpoints, and none of them can be read.
        """
        steps = self.steps()
        for step in steps:
            try:
                return self._restore(step, abstract)
            except Exception as error:  # damage shows in many ways
                if isinstance(error, MemoryError | PermissionError) or "RESOURCE_EXHAUSTED" in str(error):
                    raise
                self.report(f"the checkpoint of step {step} is damaged and not used ({_first_line(error)})")
                self._set_aside(step)
        if steps:
            raise OSError(
                f"none of the checkpoints in {self.folder} can be read (steps {steps}); "
                "start again in another --workdir"
            )
        return None

    def newest(self) -> str:
        """Which checkpoint is the newest, in words."""
        steps = self.steps()
        return f"the checkpoint of step {steps[0]} is intact" if steps else "there is no earlier checkpoint"

    def close(self) -> None:
        """Frees what the storage layer holds. Errors of writing are raised by `wait` and `check`, not again here."""
        with suppress(Exception):
            self.manager.close()

    def _restore(self, step: int, abstract: TrainState) -> TrainState:
        restored = self.manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(_tree(abstract)), meta=ocp.args.JsonRestore()
            ),
        )
        state = TrainState(**restored["state"])
        found, noted = fingerprint(state), restored["meta"]["fingerprint"]
        if found != noted:
            raise ValueError(f"fingerprint {found[:12]} instead of {noted[:12]}")
        if int(state.step) != step:
            raise ValueError(f"it holds step {int(state.step)}")
        return state

    def _set_aside(self, step: int) -> None:
        """Renames a damaged checkpoint, so that its step can be saved again; nothing is deleted."""
        if jax.process_index() == 0:
            damaged = self.folder.with_name("damaged-checkpoints") / str(step)
            shutil.rmtree(damaged, ignore_errors=True)
            damaged.parent.mkdir(exist_ok=True)
            (self.folder / str(step)).rename(damaged)
        barrier(f"set aside {step}")
        self.manager.reload()

    def _failure(self, error: Exception) -> OSError:
        # Several arrays fail; asyncio would print the traceback of each one that orbax did not wait for.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        return OSError(
            f"a checkpoint could not be written to {self.folder} ({_first_line(error)}); {self.newest()}"
        )


def fingerprint(state: TrainState) -> str:
    """A checksum of every bit of the state, the same however it is spread over devices."""
    return hashlib.sha256(np.asarray(_checksums(jax.tree.leaves(state)), np.uint32).tobytes()).hexdigest()


@jax.jit
def _checksums(leaves: list[Array]) -> UInt32[Array, " leaves"]:
    return jnp.stack([_checksum(leaf) for leaf in leaves])


def _checksum(x: Array) -> UInt32[Array, ""]:
    """Sum of all 32-bit words, each times an odd number made from its position, modulo 2³²."""
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    width = min(x.dtype.itemsize, 4)
    words = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[width])
    words = words.astype(jnp.uint32)
    position = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        position = position * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.sum(words * (position * jnp.uint32(2654435761) * 2 + 1), dtype=jnp.uint32)


def _quieten_orbax() -> None:
    """Errors of its writing threads are raised by `check` and `wait`; their tracebacks need not be printed."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _report_unless_of_orbax
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _report_unless_loop_is_closed


def _report_unless_of_orbax(args: threading.ExceptHookArgs) -> None:
    if not type(args.thread).__module__.startswith("orbax."):
        threading.__excepthook__(args)


def _report_unless_loop_is_closed(args: Any) -> None:
    """After one failed access the others report to an event loop that has ended."""
    if str(args.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(args)


def _tree(state: TrainState) -> PyTree:
    return state._asdict()


def _first_line(error: BaseException) -> str:
    """What went wrong, in the words of the innermost error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def read_json(path: Path) -> Any:
    """ValueError names the file if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
