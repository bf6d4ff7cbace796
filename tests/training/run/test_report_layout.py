"""What a browser shows of a run's report and of the demo's page: on a wide screen, on a phone, in the dark."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from jaxmodels import pages
from jaxmodels.demo_page import write_page
from jaxmodels.training.experiment import Experiment
from jaxmodels.training.run.report import write_report
from jaxmodels.training.run.workdir import Workdir, environment
from jaxmodels.training.task import Sample
from jaxmodels.training.tasks.figures import captions, images
from tests.page_measurements import Page, Views, check, check_verdict, measure, needs_chromium
from tests.training.toy_task import ToyTask


pytestmark = needs_chromium

GROUPS = ("smileys-emotion", "people-body", "animals-nature", "food-drink", "travel-places", "activities")
RECALLS = [f"{one}_recall_at_{k}" for one in ("image_to_text", "text_to_image") for k in (1, 5, 10)]


def samples() -> list[Sample]:
    """Figures of all kinds."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (16, 16, 16, 3), np.uint8)
    clean = random.uniform(-1, 1, (8, 16, 16, 3)).astype(np.float32)
    classes = len(GROUPS)
    figures = {
        "Training inputs": images.input_figure({"clean": clean, "noised": clean}),
        "Confusion matrix": images.confusion_figure(random.integers(0, 90, (classes, classes)), GROUPS),
        "Predictions": images.prediction_figure(
            pixels, np.arange(16) % classes, random.normal(size=(16, classes)), GROUPS
        ),
        "Routed patches": images.routing_figure(
            pixels[:3],
            {
                "feed-forward": random.random((3, 3, 4, 4)) < 0.5,
                "attention": random.random((3, 3, 4, 4)) < 0.5,
            },
        ),
        "Reconstructions": images.reconstruction_figure({"clean": clean, "noised": clean * 0.5}),
        "Islands": images.island_figure(pixels[0], random.normal(size=(7, 4, 4, 3, 8))),
        "Captions": captions.caption_figure(pixels, ["a cow with a long name"] * 16, [["a cow"]] * 16),
        "Images found": captions.retrieval_figure(
            ["a cow"] * 3, pixels[:9].reshape(3, 3, 16, 16, 3), np.eye(3) > 0
        ),
    }
    texts = [Sample(title="Generated text", text="│ a line of the text\nand " * 40 + "x" * 300)]
    return [
        Sample(title=title, caption="What one sees.", figure=figure) for title, figure in figures.items()
    ] + texts


@pytest.fixture(scope="module")
def views(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Views]:
    folder = tmp_path_factory.mktemp("pages")
    workdir = Workdir(folder / "train")
    experiment = Experiment(workdir=workdir.folder, steps=50, batch_size=8, data=Path("/" + "long/" * 40))
    data = {"source": str(experiment.data), "classes": list(GROUPS), "checksum": "0" * 32}
    with workdir.lock():
        workdir.begin("toy", experiment, data)
    for step in range(1, 51):
        line = {
            "step": step,
            "loss": 1 / step,
            "learning_rate": 1e-3,
            "gradient_norm": 1.0,
            "examples_per_second": 9.0,
        }
        workdir.append_metrics(
            line | ({"validation_accuracy": 0.5, "validation_loss": 1.0} if step % 9 == 0 else {})
        )
    test = {"accuracy": 0.5} | dict.fromkeys(RECALLS, 0.25)
    results = {
        "metric": {"name": "accuracy", "better": "higher"},
        "test": test,
        "baselines": {"counts of bytes after the last 6": test, "chance": {"accuracy": 0.25}},
        "parameters": 123_456,
        "steps": 50,
        "seconds": 99.0,
        "sessions": [environment()],
    }
    with mpl.rc_context(pages.plot_settings()):
        write_report(workdir, "toy", experiment, ToyTask(), data, results, samples())
    for name in ("compare", "compare-trained"):
        (folder / name).mkdir()
        (folder / name / "report.html").write_bytes(workdir.report.read_bytes())
        (folder / name / "report.json").write_text('{"models": [{}]}')
    write_page(folder, test, test, same=True)
    return measure(
        {
            "train": Page(workdir.report, ["better than 1 of 2 baselines"]),
            "demo": Page(folder / "report.html", ["equal"]),
        },
        folder,
    )


@pytest.mark.parametrize(("page", "verdict"), [("train", "better than 1 of 2 baselines"), ("demo", "equal")])
def test_nothing_is_lost(views: dict[str, Views], page: str, verdict: str) -> None:
    check(views[page])
    check_verdict(views[page], verdict)
