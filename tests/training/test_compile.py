"""Reading compiled programs and traced functions, the report, and what `jaxmodels compile` refuses."""

import importlib.util
import re
import sys
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

import jaxmodels.__main__ as program
from jaxmodels.training.chips import TPUS, topology_devices
from jaxmodels.training.compilation.analysis import Analysis, Memory, too_large
from jaxmodels.training.compilation.arithmetic import flop, products
from jaxmodels.training.compilation.command import compile_step, parse
from jaxmodels.training.compilation.hlo import CompiledText, Messages, array_bytes, main_memory_bytes
from jaxmodels.training.compilation.report import GIB, lines, ways_to_fit
from jaxmodels.training.compilation.stand_in import stand_in_splits
from jaxmodels.training.presets import PRESETS


# A loop of seven steps, each of which sends one message, reads a slice of a stack and changes a row of another one.
TEXT = """\
HloModule jit_f, input_output_alias={ {0}: (0, {}, may-alias), {1}: (3, {}, may-alias) }, entry_computation_layout={x}

%slice (p.3: f32[700], p.4: s32[]) -> f32[1,100] {
  %p.3 = f32[7,100]{1,0} parameter(0)
  %p.4 = s32[] parameter(1)
  ROOT %row = f32[1,100]{1,0} dynamic-slice(%p.3, %p.4, %p.4), dynamic_slice_sizes={1,100}
}

%slice_and_update (p.0: f32[7,100], p.1: f32[7,100], p.2: s32[]) -> f32[7,100] {
  %p.0 = f32[7,100]{1,0} parameter(0)
  %p.1 = f32[7,100]{1,0} parameter(1)
  %p.2 = s32[] parameter(2)
  %cut = f32[1,100]{1,0} fusion(%p.0, %p.2), kind=kLoop, calls=%slice
  ROOT %put = f32[7,100]{1,0} dynamic-update-slice(%p.1, %cut, %p.2, %p.2)
}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%body (state: (s32[], f32[7,100], f32[7,100])) -> (s32[], f32[7,100], f32[7,100]) {
  %state = (s32[], f32[7,100]{1,0}, f32[7,100]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[7,100]{1,0} get-tuple-element(%state), index=1
  %y = f32[7,100]{1,0} get-tuple-element(%state), index=2
  %fused = f32[7,100]{1,0} fusion(%x, %y, %i), kind=kLoop, calls=%slice_and_update
  %on_chip = bf16[50]{0:T(8,128)(2,1)S(1)} custom-call(%i), custom_call_target="f"
  %sent = bf16[50]{0:T(8,128)(2,1)S(1)} all-reduce(%on_chip), to_apply=%sum
  ROOT %out = (s32[], f32[7,100]{1,0}, /*index=2*/f32[7,100]{1,0}) tuple(%i, %x, %fused)
}

%condition (state.1: (s32[], f32[7,100], f32[7,100])) -> pred[] {
  %state.1 = (s32[], f32[7,100]{1,0}, f32[7,100]{1,0}) parameter(0)
  %seven = s32[]{:T(128)} constant(7)
  %j = s32[] get-tuple-element(%state.1), index=0
  ROOT %less = pred[] compare(%j, %seven), direction=LT
}

ENTRY %main (q: f32[7,100]) -> f32[14,100] {
  %q = f32[7,100]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %begin = (s32[], f32[7,100]{1,0}, f32[7,100]{1,0}) tuple(%zero, %q, %q)
  %loop = (s32[], f32[7,100]{1,0}, f32[7,100]{1,0}) while(%begin), condition=%condition, body=%body
  %r = f32[7,100]{1,0} get-tuple-element(%loop), index=2
  %gathering = (f32[7,100]{1,0}, f32[14,100]{1,0}) all-gather-start(%r), dimensions={0}
  ROOT %gathered = f32[14,100]{1,0} all-gather-done(%gathering)
}
"""


def test_messages_of_a_loop_count_as_often_as_they_are_sent() -> None:
    found = CompiledText(TEXT).collectives()
    assert found == {"all-reduce": Messages(7, 7 * 100), "all-gather": Messages(1, 5600)}


def test_traffic_is_that_of_slices_in_main_memory() -> None:
    fusion = 400 + 4 + 400  # a row is read, its number, and a row is written
    custom_call = 4  # its result stays on the chip
    assert CompiledText(TEXT).traffic() == 7 * (fusion + custom_call) + 2 * 5600


def test_reused_arguments() -> None:
    assert CompiledText(TEXT).reused_arguments() == {0, 3}
    x = jax.ShapeDtypeStruct((64,), jnp.float32)
    for donated, expected in (((), set()), ((1,), {1})):
        compiled = jax.jit(lambda x, y: (x.sum(), y + 1), donate_argnums=donated).lower(x, x).compile()
        assert CompiledText(compiled.as_text()).reused_arguments() == expected


def test_bytes_of_shapes() -> None:
    assert (
        array_bytes("(f32[2,3]{1,0}, /*index=1*/bf16[4]{0:T(8,128)(2,1)S(1)}, pred[], s32[0])") == 24 + 8 + 1
    )
    assert main_memory_bytes("(f32[2,3]{1,0}, bf16[4]{0:T(8,128)(2,1)S(1)})") == 24


def test_flop_of_a_scan_a_branch_and_a_convolution() -> None:
    x, w = jnp.ones((4, 8)), jnp.ones((8, 8), jnp.bfloat16)

    def scanned(x: Any) -> Any:
        return jax.lax.scan(lambda x, _: (x @ w, None), x, length=5)[0]

    assert flop(jax.make_jaxpr(scanned)(x)) == 5 * 2 * 4 * 8 * 8
    assert {product.dtype for product in products(jax.make_jaxpr(scanned)(x))} == {"float32"}

    def branched(x: Any) -> Any:
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

    assert flop(jax.make_jaxpr(branched)(x)) == 2 * 2 * 4 * 8 * 8

    def convolved(images: Any, kernel: Any) -> Any:
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4
        )

    images, kernel = jnp.ones((2, 6, 6, 4)), jnp.ones((3, 3, 1, 8))
    assert flop(jax.make_jaxpr(convolved)(images, kernel)) == 2 * (2 * 6 * 6 * 8) * 9


def test_flop_of_what_is_not_needed() -> None:
    def f(x: Any) -> Any:
        _ = x @ x
        return jax.jit(lambda x: x @ x + 1)(x)

    assert flop(jax.make_jaxpr(f)(jnp.ones((3, 3)))) == 2 * 27


def analysis(*, arguments: float, temporaries: float, **changes: Any) -> Analysis:
    """Of four chips of 16 GiB; sizes in GiB."""
    memory = Memory(
        arguments=int(arguments * GIB),
        outputs=0,
        aliased=0,
        temporaries=int(temporaries * GIB),
        code=0,
        total=int((arguments + temporaries) * GIB),
        capacity=16 * GIB,
    )
    fields: dict[str, Any] = {
        "device_kind": "TPU v5 lite",
        "devices": 4,
        "mesh": {"data": 4, "fsdp": 1},
        "batch_size": 32,
        "precision": "bfloat16",
        "accumulate": 1,
        "remat": False,
        "parameters": 1,
        "memory": memory,
        "collectives": {"all-reduce": Messages(2, 2**20)},
        "flop": 10**12,
        "products": (),
        "traffic": 10**9,
        "arithmetic_seconds": 0.005,
        "traffic_seconds": 0.001,
        "reused": (1, 1),
        "compile_seconds": 1.0,
    }
    return Analysis(**(fields | changes))


def test_report_of_what_fits() -> None:
    text = "\n".join(lines(analysis(arguments=1, temporaries=2)))
    assert "together    3.00 GiB of 16.00 GiB: fits" in text
    assert "all-reduce: 2, 1.0 MiB" in text
    assert "at best 5.00 ms, 6,400 examples/s" in text
    assert "to make it fit" not in text
    assert "temporaries 512.0 MiB" in "\n".join(lines(analysis(arguments=1, temporaries=0.5)))


def test_ways_to_make_activations_fit() -> None:
    ways = ways_to_fit(analysis(arguments=1, temporaries=20))
    assert [way.split()[0] for way in ways] == ["--remat", "--accumulate", "--batch-size", "8"]
    assert ways[1].startswith("--accumulate 2 ")
    assert ways[2] == "--batch-size 16"


def test_ways_to_make_a_state_fit() -> None:
    ways = ways_to_fit(analysis(arguments=30, temporaries=4, remat=True))
    assert ways[0].startswith("--mesh.fsdp 4 ")
    ways = ways_to_fit(analysis(arguments=20, temporaries=30))
    assert [way.split()[0] for way in ways] == ["--mesh.fsdp", "--remat"]
    ways = ways_to_fit(analysis(arguments=100, temporaries=4, mesh={"data": 1, "fsdp": 4}))
    assert "the state alone is too large" in ways[-1]


def test_report_of_what_the_compiler_gave_up() -> None:
    full = analysis(arguments=1, temporaries=20)
    full = replace(full, memory=replace(full.memory, refused=True), collectives=None, traffic=None)
    text = "\n".join(lines(full))
    assert "does not fit" in text
    assert "to make it fit: --remat" in text
    assert full.as_json()["memory"]["fits"] is False


@pytest.mark.parametrize(
    ("message", "temporaries", "total"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (53.5G) "
            "exceeds available HBM (15.75G).",
            53.5,
            54.5,
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm.", None, 20.5),
    ],
)
def test_what_the_compiler_says_of_too_little_memory(
    message: str, temporaries: float | None, total: float
) -> None:
    state = jax.ShapeDtypeStruct((GIB // 4,), jnp.float32, sharding=SingleDeviceSharding(jax.devices()[0]))
    memory = too_large(jax.errors.JaxRuntimeError(message), [state], 16 * GIB)
    assert (memory.temporaries, memory.total) == (temporaries and temporaries * GIB, total * GIB)
    assert memory.capacity == 15.75 * GIB
    assert memory.fits is False
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        too_large(jax.errors.JaxRuntimeError("something else"), [state], 16 * GIB)


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v9:2x2", "there is no chip 'v9'; known: v5e, v5p, v6e"),
        ("v6:2x2", "there is no chip 'v6'; did you mean v6e?"),
        ("v6e", "topology must be CHIP:SIDES with 2 sides, such as v6e:2x2; got topology='v6e'"),
        ("v5p:2x2", "topology must be CHIP:SIDES with 3 sides, such as v5p:2x2x1; got topology='v5p:2x2'"),
        ("v5e:0x2", "topology must be CHIP:SIDES"),
    ],
)
def test_topologies_that_there_are_not(topology: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        topology_devices(topology)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["jaxmodels", "compile", "glom-emoji", "--topology", "v6e:2x2"])
    with pytest.raises(SystemExit) as stopped:
        program.main()
    assert stopped.value.code == 2
    assert "needs libtpu and Python 3.12 or newer: pip install" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--batch-size", "12"],
            "batch_size must be a multiple of devices × accumulate = 8 × 1; got batch_size=12",
        ),
        (["--mesh.fsdp", "3"], "mesh.data × mesh.fsdp must be the number of devices, 8; got data=0, fsdp=3"),
    ],
)
def test_settings_that_do_not_fit_the_devices(
    flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, topology = parse(["glom-emoji", *flags])
    monkeypatch.setattr(type(experiment), "task", lambda *_: pytest.fail("something was built"))
    with pytest.raises(ValueError, match=re.escape(message)):
        compile_step(experiment, topology)


def test_flags_are_those_of_training_and_the_topology() -> None:
    experiment, topology = parse(
        ["mammut-paper", "--topology", "v6e:4x4", "--mesh.fsdp", "4", "--model.depth", "3"]
    )
    assert topology == "v6e:4x4"
    assert (experiment.mesh.fsdp, experiment.model.depth, experiment.data) == (4, 3, None)  # ty: ignore


@pytest.mark.parametrize("name", PRESETS)
def test_stand_in_data_have_the_sizes_of_the_settings(name: str) -> None:
    experiment, _ = parse([name])
    task = experiment.task(stand_in_splits(experiment))
    assert experiment.fitted_to(task) == experiment


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--batch-size", "8", "--model.dim", "16", "--model.levels", "2"]
    monkeypatch.setattr(sys, "argv", ["jaxmodels", "compile", "glom-emoji", *flags])
    with pytest.raises(SystemExit) as stopped:
        program.main()
    assert stopped.value.code == 0
    assert re.search(r"8 × cpu, mesh data=8 × fsdp=1, batch 8, float32", out := capsys.readouterr().out)
    assert "all-reduce: " in out
    assert "fits" in out


def test_chips_have_the_numbers_of_their_data_sheets() -> None:
    found = {
        name: (c.flop_per_second / 1e12, c.bytes_per_second / 1e9, c.memory / GIB) for name, c in TPUS.items()
    }
    assert found == {"v5e": (197, 819, 16), "v5p": (459, 2765, 95), "v6e": (918, 1640, 32)}
