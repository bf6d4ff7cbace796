"""Checkpoints: exact, on other devices, and never silently damaged."""

import resource
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmodels.training.mesh import MeshConfig, make_mesh, parameter_sharding
from jaxmodels.training.run.checkpoints import Checkpoints, fingerprint
from jaxmodels.training.step import TrainState


# Reads of damaged files may end after tensorstore's event loop; only a warning comes of it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state_at(step: int) -> TrainState:
    random = np.random.default_rng(step)
    parameters = {
        "layer.kernel": jnp.asarray(random.normal(size=(64, 48)), jnp.float32),
        "layer.bias": jnp.asarray(random.normal(size=48), jnp.float32),
        "bfloat16": jnp.asarray(random.normal(size=5), jnp.bfloat16),
    }
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3)))
    return TrainState(jnp.int32(step), parameters, tx.init(parameters), None, jnp.zeros((), bool))


def abstract(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(one: TrainState, other: TrainState) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert jax.tree.all(jax.tree.map(lambda a, b: a.dtype == b.dtype and bool((a == b).all()), one, other))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with the checkpoints of steps 3 and 5."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (1, 3, 5):
        checkpoints.save(state_at(step), {})
    checkpoints.wait()
    assert checkpoints.steps() == [5, 3]
    checkpoints.close()
    return tmp_path / "checkpoints"


def restore(folder: Path) -> tuple[TrainState | None, list[str]]:
    output: list[str] = []
    checkpoints = Checkpoints(folder, keep=2, report=output.append)
    try:
        return checkpoints.restore(abstract(state_at(0))), output
    finally:
        checkpoints.close()


def test_round_trip(saved: Path) -> None:
    state, output = restore(saved)
    assert_same(state, state_at(5))
    assert output == []


def test_nothing_to_restore(tmp_path: Path) -> None:
    assert restore(tmp_path / "checkpoints") == (None, [])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
@pytest.mark.parametrize("what", ["state/manifest.ocdbt", "state/_METADATA", "meta/metadata", "largest"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_used(
    saved: Path, damage: Callable[[Path], None], what: str
) -> None:
    files = sorted(
        (path for path in (saved / "5").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size
    )
    damage(files[-1] if what == "largest" else saved / "5" / what)
    state, output = restore(saved)
    if state is not None and int(state.step) == 5:  # a byte that carries no meaning
        assert_same(state, state_at(5))
        return
    assert_same(state, state_at(3))
    assert output[0].startswith("the checkpoint of step 5 is damaged and not used (")
    assert (saved.parent / "damaged-checkpoints" / "5").is_dir()
    again, output = restore(saved)
    assert (int(again.step), output) == (3, [])


def test_changed_numbers_are_noticed(saved: Path) -> None:
    """Files that can be read but hold other numbers: the storage layer alone would accept them."""
    other = Checkpoints(saved.parent / "other", keep=2)
    other.save(state_at(4), {})
    other.wait()
    other.close()
    for path in (saved / "5" / "state").rglob("*"):
        if path.is_file():
            path.unlink()
    for path in (saved.parent / "other" / "4" / "state").rglob("*"):
        if path.is_file():
            target = saved / "5" / "state" / path.relative_to(saved.parent / "other" / "4" / "state")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    state, output = restore(saved)
    assert_same(state, state_at(3))
    assert "fingerprint" in output[0]


def test_all_damaged(saved: Path) -> None:
    for step in (3, 5):
        truncate(saved / str(step) / "state" / "manifest.ocdbt")
    with pytest.raises(OSError, match=r"none of the checkpoints in .* can be read \(steps \[5, 3\]\)"):
        restore(saved)


def test_the_place_of_a_damaged_checkpoint_can_be_taken(saved: Path) -> None:
    truncate(saved / "5" / "state" / "manifest.ocdbt")
    restore(saved)
    checkpoints = Checkpoints(saved, keep=2)
    checkpoints.save(state_at(5), {})
    checkpoints.wait()
    checkpoints.close()
    assert_same(restore(saved)[0], state_at(5))


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_restoring_onto_other_devices(tmp_path: Path, devices: int) -> None:
    def placed(state: TrainState, count: int) -> TrainState:
        mesh = make_mesh(MeshConfig(data=1, fsdp=count))
        return jax.tree.map(lambda x: jax.device_put(x, parameter_sharding(mesh, x.shape)), state)

    source = placed(state_at(7), 8)
    assert len(source.parameters["layer.kernel"].addressable_shards) == 8
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    checkpoints.save(source, {})
    checkpoints.wait()
    target = placed(state_at(0), devices)
    state = checkpoints.restore(abstract(target))
    checkpoints.close()
    assert_same(state, state_at(7))
    for got, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(target), strict=True):
        assert got.sharding.is_equivalent_to(wanted.sharding, got.ndim)
    assert fingerprint(state) == fingerprint(source)


@pytest.mark.parametrize("change", ["bit", "swap", "sign of zero"])
def test_fingerprint_sees_every_bit(change: str) -> None:
    state = state_at(1)
    kernel = np.array(state.parameters["layer.kernel"])
    kernel[0, 0] = 0.0
    changed = kernel.copy()
    if change == "bit":
        changed.view(np.uint32)[5, 7] ^= 1 << 31
    elif change == "swap":
        changed[[2, 9]] = changed[[9, 2]]
    else:
        changed[0, 0] = -0.0
    prints = [
        fingerprint(state._replace(parameters={**state.parameters, "layer.kernel": jnp.asarray(k)}))
        for k in (kernel, changed)
    ]
    assert prints[0] != prints[1]


def save_and_wait(checkpoints: Checkpoints, state: TrainState) -> None:
    """A failed write is noticed here or there."""
    checkpoints.save(state, {})
    checkpoints.wait()


def test_a_full_disk(tmp_path: Path) -> None:
    """Whatever the storage layer raises becomes one kind of error, which says what is left. Nothing else is lost."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    checkpoints.save(state_at(1), {})
    checkpoints.wait()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))  # no file may become larger: writes fail
    try:
        with pytest.raises(
            OSError, match=r"a checkpoint could not be written to .*; the checkpoint of step 1"
        ):
            save_and_wait(checkpoints, state_at(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    state, output = restore(tmp_path / "checkpoints")
    assert_same(state, state_at(1))
    assert output == []
