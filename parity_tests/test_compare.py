"""The comparison tool: what it says of equal and of unlike pairs, its reports, its command, its errors."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import glom_pytorch
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jaxmodels as jm
from jaxmodels import __main__ as command_line
from jaxmodels.compare import compare, precision, report, table_from_names
from jaxmodels.compare.routing import Choice, agreement
from jaxmodels.convert.table import Parameter, Twin
from parity_tests.small_pairs import FlaxNet, TorchNet, net_pair, tiny_pair


ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_users_own_pair(dtype: str) -> None:
    result = compare(net_pair(), dtype=dtype, steps=2)
    assert result.ok, result.divergence
    assert [check.name for check in result.layers if check.kind == "output"] == ["conv", "body.0", "body.2"]
    assert {check.name for check in result.gradients} == set(dict(TorchNet().named_parameters()))
    assert len(result.losses) == 2
    bound = {"float32": 1e-4, "float64": 1e-13}[dtype]  # measured tolerances stay tight
    assert max(check.tolerance for check in [*result.outputs, *result.layers, *result.gradients]) < bound


def test_weights_of_the_pair_are_pytorchs_and_stay_as_they_are() -> None:
    pair = net_pair()
    before = {key: value.clone() for key, value in pair.theirs.state_dict().items()}
    compare(pair, steps=2)
    assert all(torch.equal(value, before[key]) for key, value in pair.theirs.state_dict().items())
    np.testing.assert_array_equal(pair.ours.up.kernel[...], before["body.0.weight"].T)


def test_the_layer_behind_a_wrong_activation_is_named() -> None:
    result = compare(net_pair(approximate=True), dtype="float64", steps=0)
    assert result.divergence is not None
    assert result.divergence.layer == "(model)"
    assert result.divergence.detail == "in the code of (model) after body.0, before body.2"


def test_nan_on_one_side_is_a_difference_and_on_both_is_none() -> None:
    pair = net_pair()
    ours = pair.ours
    bad = replace(pair, call_ours=lambda model, x: model(x["x"]).at[0, 0].set(jnp.nan))
    assert not compare(bad, gradients=False).ok
    both = replace(
        bad, call_theirs=lambda model, x: torch.where(_first(model(x["x"])), torch.nan, model(x["x"]))
    )
    result = compare(both, gradients=False)
    assert all(check.ok for check in result.outputs)
    assert ours is pair.ours


def _first(x: torch.Tensor) -> torch.Tensor:
    mask = torch.zeros_like(x, dtype=torch.bool)
    mask[0, 0] = True
    return mask


def test_unlike_shapes_are_a_difference() -> None:
    pair = replace(net_pair(), call_ours=lambda model, x: model(x["x"])[:, :1])
    result = compare(pair, gradients=False)
    assert not result.ok
    assert result.outputs[0].error == float("inf")


def test_names_must_exist() -> None:
    with pytest.raises(
        ValueError, match=r"not in the Flax model: nowhere\n  not in the PyTorch model: body.7"
    ):
        table_from_names(FlaxNet(rngs=nnx.Rngs(0)), TorchNet(), {"nowhere": "conv", "up": "body.7"})


def test_a_table_that_does_not_fit_is_refused() -> None:
    pair = net_pair()
    table = tuple(e for e in pair.table if not (isinstance(e, Parameter) and e.theirs == "body.0.bias"))
    with pytest.raises(ValueError, match=r"not in the model: body\.0\.bias"):
        compare(replace(pair, table=table))


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "float16"}, r"dtype must be 'float32' or 'float64'; got dtype='float16'"),
        ({"steps": -1}, r"steps must be an integer ≥ 0; got steps=-1"),
        ({"steps": 1.5}, r"steps must be an integer ≥ 0; got steps=1\.5"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(net_pair(), **arguments)


def test_float64_needs_float64() -> None:
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(
            ValueError, match=r"dtype='float64' needs jax.config.update\('jax_enable_x64', True\)"
        ):
            compare(net_pair(), dtype="float64")
    finally:
        jax.config.update("jax_enable_x64", True)


def test_precision_is_requested_and_observed() -> None:
    with precision.full_precision() as evidence:
        assert evidence.jax_requested == "HIGHEST"
        assert evidence.ok
        assert 0 < evidence.jax_error < 2e-6


def test_tf32_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "observe", lambda: precision.Evidence("DEFAULT", 3e-4, 1e-7, False))
    with pytest.raises(
        precision.ReducedPrecisionError, match=r"not computed in float32 \(JAX off by 3\.0e-04"
    ):
        compare(net_pair())


class TestRouting:
    """Sets that differ at a toss-up are no fault; a clear choice that is overturned is."""

    def choices(self, *rows: list[int], margin: list[float]) -> list[Choice]:
        return [Choice("router", np.array(rows), np.array(margin))]

    def agree(self, ours: list[Choice], theirs: list[Choice]):
        return agreement(ours, theirs, float32=theirs, float64=theirs, least=1e-7, factor=8, scale=1.0)

    def test_order_does_not_matter(self) -> None:
        theirs = self.choices([0, 1], [2, 3], margin=[0.5, 0.5])
        routing = self.agree(self.choices([1, 0], [3, 2], margin=[0.5, 0.5]), theirs)
        assert routing.differing == 0
        assert routing.routers[0].overlap == 1.0
        assert routing.first_fault is None

    def test_toss_up(self) -> None:
        theirs = self.choices([0, 1], [2, 3], margin=[1e-9, 0.5])
        routing = self.agree(self.choices([0, 2], [2, 3], margin=[1e-9, 0.5]), theirs)
        assert routing.differing == 1
        assert routing.routers[0].overlap == 0.75
        assert routing.first_fault is None

    def test_clear_choice(self) -> None:
        theirs = self.choices([0, 1], [2, 3], margin=[0.5, 0.5])
        routing = self.agree(self.choices([0, 2], [2, 3], margin=[0.5, 0.5]), theirs)
        assert routing.first_fault is not None
        assert routing.first_fault.lost_margin == 0.5

    def test_agreed_indices_are_repeated(self) -> None:
        """Where every token ties, JAX may choose others; the rest of the network still compares."""
        subject = tiny_pair("colt5")
        with torch.no_grad():
            for router in subject.theirs.routers:
                router.routing_token.zero_()

        def next_tokens(model, inputs):
            return [routed._replace(indices=routed.indices + 1) for routed in model.routing(inputs["images"])]

        result = compare(replace(subject, routing_ours=next_tokens), dtype="float64", gradients=False)
        assert result.routing is not None
        assert result.routing.differing > 0
        assert "sets differ between JAX and PyTorch" in result.notes[0]
        assert result.ok, result.divergence


class TestCommand:
    def run(self, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["jaxmodels", "compare", *arguments])
        with pytest.raises(SystemExit) as stopped:
            command_line.main()
        return int(stopped.value.code or 0)

    def test_checkpoint_and_report(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        published = glom_pytorch.Glom(dim=8, levels=2, image_size=8, patch_size=4)
        torch.save(published.state_dict(), tmp_path / "glom.pt")
        folder = tmp_path / "report"
        arguments = (
            "glom",
            "--checkpoint",
            str(tmp_path / "glom.pt"),
            "--steps",
            "1",
            "--output",
            str(folder),
        )
        assert self.run(monkeypatch, *arguments) == 0
        printed = capsys.readouterr().out
        assert "glom: equal" in printed
        assert "consensus_self" in printed  # leaves no trace in a checkpoint: assumed, and said so

        content = json.loads((folder / "report.json").read_text())
        (model,) = content["models"]
        fields = {
            "model",
            "ok",
            "dtype",
            "output_error",
            "gradient_error",
            "step_error",
            "tolerance",
            "first_divergence",
        }
        assert fields <= model.keys()
        assert model["ok"] is True
        assert model["first_divergence"] is None
        assert model["output_error"] <= model["tolerance"]
        assert {layer["name"] for layer in model["layers"]} >= {"", "bottom_up.net.1", "attention"}
        assert {g["name"] for g in model["gradients"]} == set(dict(published.named_parameters()))

        page = (folder / "report.html").read_text()
        assert page.count("<svg") == 2
        assert not re.findall(r'(?:src|href)="(?!#)', page), "the page must not load anything"

    def test_hub_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        config = jm.GlomConfig(dim=8, levels=2, image_size=8, patch_size=4, consensus_self=True)
        jm.save_pretrained(jm.Glom(config, rngs=nnx.Rngs(0)), tmp_path / "hub")
        assert (
            self.run(monkeypatch, "--checkpoint", str(tmp_path / "hub"), "--steps", "0", "--dtype", "float64")
            == 0
        )

    def test_difference_fails_and_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from jaxmodels.models import glom

        monkeypatch.setattr(glom, "gelu", jax.nn.gelu)
        jm.save_pretrained(
            jm.Glom(jm.GlomConfig(dim=8, levels=2, image_size=8, patch_size=4), rngs=nnx.Rngs(0)),
            tmp_path / "hub",
        )
        arguments = (
            "--checkpoint",
            str(tmp_path / "hub"),
            "--steps",
            "0",
            "--output",
            str(tmp_path / "report"),
        )
        assert self.run(monkeypatch, *arguments) == 1
        assert (
            "in the code of bottom_up after bottom_up.net.1, before bottom_up.net.3"
            in capsys.readouterr().out
        )
        (model,) = json.loads((tmp_path / "report" / "report.json").read_text())["models"]
        assert model["ok"] is False
        assert model["first_divergence"] == "bottom_up"

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--checkpoint", "nowhere.pt"], r"jaxmodels: no such weights file: nowhere\.pt"),
            (["--steps", "-1"], r"jaxmodels: steps must be an integer ≥ 0; got steps=-1"),
            (
                ["--config", '{"dim": 8}'],
                r"jaxmodels: config describes a checkpoint; pass --checkpoint with it",
            ),
            (["--output", str(Path(__file__))], r"jaxmodels: output must be a folder; got"),
        ],
    )
    def test_wrong_use(
        self,
        arguments: list[str],
        message: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert self.run(monkeypatch, *arguments) == 2
        printed = capsys.readouterr().err
        assert re.search(message, printed)
        assert printed.count("\n") == 1

    def of_constant_weights(self, value: float, path: Path) -> tuple[str, ...]:
        """Arguments that compare a checkpoint, all of whose weights are `value`."""
        published = glom_pytorch.Glom(dim=8, levels=2, image_size=8, patch_size=4)
        weights = {key: torch.full_like(tensor, value) for key, tensor in published.state_dict().items()}
        torch.save(weights, path / "glom.pt")
        return ("--checkpoint", str(path / "glom.pt"), "--steps", "0", "--output", str(path))

    def test_weights_that_prove_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(monkeypatch, *self.of_constant_weights(0.0, tmp_path)) == 2
        printed = capsys.readouterr().out
        assert "glom: CANNOT BE JUDGED" in printed
        assert "glom cannot be judged: " in printed
        (model,) = json.loads((tmp_path / "report.json").read_text())["models"]
        assert (model["ok"], model["verdict"], model["first_divergence"]) == (False, "cannot be judged", None)
        assert model["reason"]

    def test_weights_that_are_not_finite(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.run(monkeypatch, *self.of_constant_weights(np.nan, tmp_path)) == 2
        out, err = capsys.readouterr()
        assert "glom: CANNOT BE COMPARED" in out
        assert "the weight init_levels of the PyTorch model holds nan at [0, 0], and 15 more" in err

    @pytest.mark.parametrize("folder", ["file/below", "/proc/nowhere"])
    def test_an_output_that_cannot_be_written_is_found_first(
        self,
        folder: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setattr("jaxmodels.compare.jobs.compare", lambda *_, **__: pytest.fail("computed first"))
        assert self.run(monkeypatch, "glom", "--output", str(tmp_path / folder)) == 2
        printed = capsys.readouterr().err
        assert "jaxmodels: output must be a folder that can be written; " in printed
        assert printed.count("\n") == 1

    def test_checkpoint_of_another_model(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        config = jm.GlomConfig(dim=8, levels=2, image_size=8, patch_size=4)
        jm.save_pretrained(jm.Glom(config, rngs=nnx.Rngs(0)), tmp_path / "hub")
        assert self.run(monkeypatch, "mammut", "--checkpoint", str(tmp_path / "hub")) == 2
        assert "holds a glom; got models=mammut" in capsys.readouterr().err

    def test_a_machine_without_float32(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(precision, "observe", lambda: precision.Evidence("DEFAULT", 3e-4, 1e-7, False))
        assert self.run(monkeypatch, "glom") == 2
        printed = capsys.readouterr().err
        assert printed.startswith(
            "jaxmodels: float32 matrix products are not computed in float32 (JAX off by"
        )
        assert printed.count("\n") == 1

    def test_unknown_model(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.run(monkeypatch, "glum") == 2

    def test_without_pytorch(self) -> None:
        process = subprocess.run(
            [sys.executable, "-m", "jaxmodels", "compare", "glom"],
            capture_output=True,
            text=True,
            env={
                "PYTHONPATH": f"{ROOT / 'tests' / 'no_torch'}:{ROOT}",
                "PATH": "",
                "HOME": str(ROOT / ".jax_cache"),
            },
            check=False,
        )
        assert process.returncode == 2
        assert process.stderr.startswith(
            "jaxmodels: comparing needs PyTorch: pip install -e '.[torch]' in a checkout"
        )
        assert "Traceback" not in process.stderr


def test_the_page_of_several_models(tmp_path: Path) -> None:
    equal = compare(net_pair(), steps=0)
    different = replace(compare(net_pair(approximate=True), steps=0), model="tanh")
    report.write([equal, different], tmp_path)
    page = (tmp_path / "report.html").read_text()
    links = re.findall(r'<a href="#([\w-]+)">(.*?)</a>', page)
    assert links == [("model-1", "net"), ("model-2", "tanh"), ("environment", "Measured with")]
    assert all(f'id="{target}"' in page for target, _ in links)
    header, *rows = re.findall(r"<tr>(.*?)</tr>", page.partition("</table>")[0])
    assert re.findall(r"<th.*?>(.*?)</th>", header)[:2] == ["verdict", "model"]
    assert [re.findall(r"<td.*?>(.*?)</td>", row)[:2] for row in rows] == [
        ["equal", "net"],
        ["different", "tanh"],
    ]
    assert "First difference: <code>(model)</code>" in page
    assert re.search(r"\d \(\d+ %\) means: the error that comes closest", page)
    identifiers = re.findall(r'\bid="([^"]*)"', page)
    assert len(set(identifiers)) == len(identifiers)


def test_the_bars_are_sorted_by_what_they_show() -> None:
    gradients = compare(net_pair(), steps=0).gradients
    shares = [check.error / check.tolerance for check in gradients]
    assert shares == sorted(shares, reverse=True)


def test_numbers_that_are_not_finite_are_valid_json(tmp_path: Path) -> None:
    pair = replace(net_pair(), call_ours=lambda model, x: model(x["x"]) * jnp.inf)
    result = compare(pair, gradients=False)
    report.write([result], tmp_path)
    content = json.loads(
        (tmp_path / "report.json").read_text(), parse_constant=lambda name: pytest.fail(name)
    )
    assert content["models"][0]["output_error"] is None
    assert content["models"][0]["ok"] is False


def test_a_full_disk_leaves_the_earlier_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = compare(net_pair(), steps=1)
    report.write([result], tmp_path)
    before = (tmp_path / "report.html").read_text()

    def full(self: Path, text: str) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        report.write([result], tmp_path)
    assert (tmp_path / "report.html").read_text() == before
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.json"}


def test_every_twin_exists_on_both_sides() -> None:
    """A twin whose path is misspelt would silently never be compared."""
    from jaxmodels.compare.subjects import MODEL_NAMES, default_model, pair_of

    for name in MODEL_NAMES:
        pair = pair_of(default_model(name, 0), batch=1)
        torch_paths = {path for path, _ in pair.theirs.named_modules()}
        our_paths = {".".join(map(str, path)) for path, _ in nnx.iter_modules(pair.ours)}
        twins = [entry for entry in pair.table if isinstance(entry, Twin)]
        assert not [twin.theirs for twin in twins if twin.theirs not in torch_paths], name
        assert not [twin.ours for twin in twins if twin.ours not in our_paths], name
        # Every module that holds a weight has a twin, or is part of an attention that has one: no layer is left out.
        owners = {key.rpartition(".")[0] for key, _ in pair.theirs.named_parameters()}
        known = {twin.theirs for twin in twins}
        assert not [path for path in owners if not {path, path.rpartition(".")[0]} & known], name
