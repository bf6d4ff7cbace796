"""Plots inside a page use its colours, have unique identifiers and load nothing."""

import re
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure

from jaxmodels import pages


@pytest.fixture
def figure() -> Figure:
    with mpl.rc_context(pages.plot_settings()):
        figure = Figure(figsize=(4, 3))
        axes = figure.subplots()
        axes.plot([1, 2], [1, 3], color=pages.JAX, label="loss & more")
        axes.fill_between([1, 2], 0, [1, 1], color=pages.BAND)
        axes.legend()
        return figure


@pytest.fixture
def svg(figure: Figure) -> str:
    return pages.inline_svg(figure, name='loss of "a & b"')


def test_every_colour_is_a_variable_of_the_stylesheet(svg: str) -> None:
    assert not re.findall(r"#[0-9a-f]{6}\b", svg)
    used = set(re.findall(r"var\((--\w+)\)", svg))
    assert {"--jax", "--band", "--text"} <= used
    light, dark = pages.stylesheet().split("prefers-color-scheme: dark")
    for variable in used:
        assert f"{variable}:" in light
        assert f"{variable}:" in dark


def test_identifiers_are_those_of_the_figure(svg: str) -> None:
    names = re.findall(r'\bid="([^"]*)"', svg)
    assert names
    assert all(name.startswith("loss-of-a-b-") for name in names)
    references = re.findall(r'(?:url\(#|href="#)([^")]*)', svg)
    assert references
    assert set(references) <= set(names)


def test_nothing_is_loaded_and_the_name_is_read_aloud(svg: str) -> None:
    assert "<metadata" not in svg
    assert "<style" not in svg
    assert not re.findall(r'(?:src|href)="(?!#)', svg)
    assert 'aria-label="loss of &quot;a &amp; b&quot;"' in svg


def test_a_file_has_its_own_colours(figure: Figure) -> None:
    text = pages.svg_file(figure, name="losses > 0")
    style = ElementTree.fromstring(text).find("{*}style").text
    light, dark = style.split("prefers-color-scheme: dark")
    for variable in re.findall(r"var\((--\w+)\)", text):
        assert f"{variable}:" in light
        assert f"{variable}:" in dark
