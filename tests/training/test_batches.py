"""The stream of batches: shuffled epochs, the same numbers on every process and after every restart."""

from itertools import islice

import jax
import numpy as np
import pytest

from jaxmodels.training import batches as stream
from jaxmodels.training.batches import batches
from jaxmodels.training.draws import Draws
from jaxmodels.training.mesh import (
    MeshConfig,
    batch_sharding,
    make_mesh,
    parameter_sharding,
    replicated,
    require_device,
)
from tests.training.toy_task import ToyTask


SHARDING = batch_sharding(make_mesh(MeshConfig(data=1)))


ORDER = [17, 34, 31, 22, 39, 16], [39, 32, 3, 16, 14, 5]  # how the first two epochs of 40 examples begin


class Echo(ToyTask):
    """Shows which examples it was asked for, and one number from each generator."""

    def batch(self, indices, draws):
        return {"index": np.asarray(indices), "drawn": draws.uniform(0, 1).astype(np.float32)}


def take(
    count: int, *, size: int = 8, seed: int = 0, start: int = 0, sharding=SHARDING
) -> dict[str, np.ndarray]:
    taken = list(islice(batches(Echo(), batch_size=size, seed=seed, sharding=sharding, start=start), count))
    return {name: np.stack([np.asarray(batch[name]) for batch in taken]) for name in ("index", "drawn")}


def test_numbers_of_an_example_depend_on_seed_and_position_alone() -> None:
    def drawn(seed: int, positions: np.ndarray) -> list[np.ndarray]:
        draws = Draws(seed, positions)
        return [draws.uniform(0, 1), draws.integers(0, 10**9, 2, 3), draws.keys(), draws.uniform(0, 1)]

    positions = 2**40 + np.arange(200)
    whole = drawn(2**63 - 1, positions)
    for rows in (np.array([7]), np.array([199, 3, 3]), np.arange(0, 200, 2)):
        for part, of in zip(drawn(2**63 - 1, positions[rows]), whole, strict=True):
            np.testing.assert_array_equal(part, of[rows])
    for other in (drawn(2**63 - 2, positions), drawn(2**63 - 1, positions + 200)):
        assert not any(
            (a == b).all(axis=tuple(range(1, a.ndim))).any() for a, b in zip(other, whole, strict=True)
        )
    assert (whole[0] != whole[3]).all()  # two calls


def test_drawn_numbers_are_evenly_spread() -> None:
    draws = Draws(0, np.arange(20_000))
    uniform, integers = draws.uniform(-1, 3, 2), draws.integers(-2, 3)
    assert uniform.min() >= -1
    assert uniform.max() < 3
    assert np.abs(np.histogram(uniform, 16, (-1, 3))[0] - 2500).max() < 250
    assert np.abs(np.corrcoef(uniform.T)[0, 1]) < 0.03
    assert np.abs(np.corrcoef(uniform[1:, 0], uniform[:-1, 0])[0, 1]) < 0.03
    assert np.abs(np.bincount(integers + 2, minlength=5) - 4000).max() < 300


def test_the_order_stays_that_of_earlier_versions() -> None:
    """A run that was begun with one goes on with the examples that it has not seen in this epoch."""
    index = take(20)["index"].ravel()
    assert index[:6].tolist() == ORDER[0]
    assert index[40:46].tolist() == ORDER[1]


@pytest.mark.parametrize("parts", [[[0, 4], [4, 8]], [[0, 1], [1, 8]], [[0, 3], [3, 5], [5, 8]]])
def test_any_split_into_processes_reads_the_same(
    monkeypatch: pytest.MonkeyPatch, parts: list[list[int]]
) -> None:
    """Each process reads the rows of its own devices."""
    whole, found = take(3), []
    monkeypatch.setattr(stream, "place", lambda batch, sharding, size: batch)
    for first, last in parts:
        monkeypatch.setattr(stream, "_own_rows", lambda sharding, size, a=first, b=last: np.arange(a, b))
        found.append(take(3))
    for name, value in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in found], axis=1), value)


def test_every_epoch_has_every_example_once_in_a_new_order() -> None:
    index = take(10)["index"].reshape(2, 40)
    for epoch in index:
        assert sorted(epoch) == list(range(40))
    assert (index[0] != index[1]).any()
    assert (index[0] != np.arange(40)).any()


def test_a_batch_may_be_larger_than_the_data() -> None:
    index = take(1, size=100)["index"][0]
    assert sorted(index[:40]) == list(range(40))
    assert set(np.bincount(index)) == {2, 3}


def test_batches_of_one_example() -> None:
    index = take(40, size=1)["index"].ravel()
    assert sorted(index) == list(range(40))
    np.testing.assert_array_equal(index, take(5)["index"].ravel())


def test_the_seed_decides() -> None:
    one, same, other = take(3), take(3), take(3, seed=1)
    for name in one:
        np.testing.assert_array_equal(one[name], same[name])
        assert (one[name] != other[name]).any()


def test_starting_in_the_middle() -> None:
    whole, rest = take(7), take(3, start=4)
    for name in whole:
        np.testing.assert_array_equal(whole[name][4:], rest[name])


def test_no_two_positions_draw_the_same() -> None:
    assert np.unique(take(10)["drawn"]).size == 80  # also not the same example in the next epoch


def test_the_number_of_devices_changes_nothing() -> None:
    eight = batch_sharding(make_mesh(MeshConfig(data=4, fsdp=2)))
    one, many = take(3), take(3, sharding=eight)
    for name in one:
        np.testing.assert_array_equal(one[name], many[name])
    batch = next(batches(Echo(), batch_size=8, seed=0, sharding=eight))
    assert len(batch["index"].sharding.device_set) == 8


def test_the_batch_size_does_not_change_the_order() -> None:
    np.testing.assert_array_equal(take(4)["index"].ravel(), take(2, size=16)["index"].ravel())


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((64, 64), 0),  # the first of equals
        ((32, 128), 1),  # the largest
        ((4, 3, 100), 2),
        ((130, 33), None),  # nothing divides by four: copied
        ((8, 8), None),  # small: copied
        ((2048,), 0),
        ((), None),
    ],
)
def test_sharding_rule(shape: tuple[int, ...], axis: int | None) -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    spec = parameter_sharding(mesh, shape).spec
    assert [i for i, name in enumerate(spec) if name == "fsdp"] == ([] if axis is None else [axis])


def test_without_fsdp_parameters_are_copied() -> None:
    mesh = make_mesh(MeshConfig())
    assert mesh.shape == {"data": 8, "fsdp": 1}
    assert parameter_sharding(mesh, (64, 64)) == replicated(mesh)


@pytest.mark.parametrize("config", [{"data": 3, "fsdp": 4}, {"fsdp": 16}, {"fsdp": 3}])
def test_a_mesh_that_does_not_fit(config: dict) -> None:
    with pytest.raises(
        ValueError, match=r"mesh\.data × mesh\.fsdp must be the number of devices, 8; got data="
    ):
        make_mesh(MeshConfig(**config))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("Unable to initialize backend 'cpuu': not known\nmore"), "Unable .*: not known"),
        (AssertionError(), "no such platform"),
    ],
)
def test_no_device(monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str) -> None:
    def devices() -> None:
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cpuu")
    with pytest.raises(ValueError, match=rf"got JAX_PLATFORMS='cpuu' \({reason}\); unset JAX_PLATFORMS"):
        require_device()


def test_a_mesh_may_leave_devices_out() -> None:
    assert make_mesh(MeshConfig(data=2, fsdp=2)).devices.size == 4
    assert jax.device_count() == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [({"data": -1}, r"mesh\.data must be ≥ 0"), ({"fsdp": 0}, r"mesh\.fsdp must be ≥ 1")],
)
def test_wrong_mesh(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MeshConfig(**change)
