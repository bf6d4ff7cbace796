"""A wheel built from the tree holds what is needed, and works outside the tree without PyTorch."""

import os
import subprocess
import sys
from email.parser import HeaderParser
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.quick_compilation import FLAGS


ROOT = Path(__file__).parents[1]
PACKAGES = ("jaxmodels", "torch_reference")
MOST_MEGABYTES = 10  # nine of them are the embedded data sets
FORWARD_PASS = """
import sys
import jax
import jaxmodels as jm
from flax import nnx

model = jm.Glom(jm.GlomConfig(dim=8, levels=2, image_size=4, patch_size=2), rngs=nnx.Rngs(0))
print(jm.__file__, model(jax.numpy.ones((1, 4, 4, 3))).shape, "torch" in sys.modules)
"""


def run(*command: str | Path, **environment: str) -> str:
    process = subprocess.run(
        [str(part) for part in command],
        env=os.environ | environment,
        cwd=environment.get("PWD", ROOT),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    assert process.returncode == 0, process.stdout
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with the installed hatchling: pip would download another one."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder, ROOT)
    [path] = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def outside(wheel: Path) -> dict[str, str]:
    """An environment in which the wheel is installed, and an empty folder to work in."""
    site, work = wheel.parent / "site", wheel.parent / "work"
    work.mkdir()
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel)
    no_torch = ROOT / "tests" / "no_torch"
    path = f"{no_torch}{os.pathsep}{site}"
    return {
        "PYTHONPATH": path,
        "XLA_FLAGS": FLAGS,  # and one device, unlike in the tests around it
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "SITE": str(site),
        "PWD": str(work),
    }


def files_of_the_tree() -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_contents(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    packaged = {name for name in names if name.startswith(tuple(f"{package}/" for package in PACKAGES))}
    assert packaged == files_of_the_tree()
    endings = {Path(name).suffix for name in packaged}
    assert {".py", ".j2", ".css", ".xz", ".txt", ".md"} <= endings
    assert "jaxmodels/py.typed" in packaged

    [info] = {name.split("/")[0] for name in names - packaged}
    assert info.endswith(".dist-info")
    embedded = ROOT / "jaxmodels" / "data" / "embedded" / "files" / "LICENSES"
    for licence in (ROOT / "LICENSE", *embedded.iterdir()):
        assert f"{info}/licenses/{licence.relative_to(ROOT)}" in names


def test_size(wheel: Path) -> None:
    assert wheel.stat().st_size <= MOST_MEGABYTES * 1e6


def test_metadata(wheel: Path) -> None:
    """PyTorch and the tools of development are extras; JAX is not."""
    with ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    requirements = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert any(line.startswith("jax") for line in requirements)
    assert not any(line.startswith(("torch", "pytest", "beartype")) for line in requirements)


def test_forward_pass(outside: dict[str, str]) -> None:
    where, _, rest = run(sys.executable, "-c", FORWARD_PASS, **outside).strip().partition(" ")
    assert Path(where).is_relative_to(outside["SITE"])
    assert rest == "(1, 4, 2, 8) False"


def test_commands(outside: dict[str, str]) -> None:
    command = Path(outside["SITE"]) / "bin" / "jaxmodels"
    assert "train" in run(command, "--help", **outside)
    assert "exit status" in run(command, "compare", "--guide", **outside)
    small = ("--model.dim", "8", "--model.levels", "2", "--model.patch-size", "8", "--batch-size", "8")
    train = ("train", "glom-emoji", "--steps", "5", "--evaluate-every", "5", "--workdir", "run")
    run(command, *train, *small, **outside)
    assert (Path(outside["PWD"]) / "run" / "report.html").is_file()
