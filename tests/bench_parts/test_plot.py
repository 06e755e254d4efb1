"""A plot is well-formed SVG that has every dot in its place."""

from __future__ import annotations

from xml.etree import ElementTree

from bench.figure import Point
from bench.plot import Axis, Words, svg

SVG = "{http://www.w3.org/2000/svg}"
POINTS = [
    Point("throughput", "ours", 256, 2000.0),
    Point("throughput", "HF & co", 256, 90.0),
    Point("throughput", "ours", 4096, 1500.0),
]


def drawn() -> ElementTree.Element:
    return ElementTree.fromstring(  # noqa: S314
        svg(POINTS, Words("Tokens < seconds", "tokens", "per second"))
    )


def test_every_point_is_a_dot_and_more_is_higher() -> None:
    root = drawn()
    dots = [
        (float(dot.get("cx", "")), float(dot.get("cy", ""))) for dot in root.iter(f"{SVG}circle")
    ]
    assert len(dots) == 3
    (left, high), (right, lower), (other, low) = dots
    assert left == other < right
    assert high < lower < low


def test_names_and_titles_are_shown_as_they_are() -> None:
    shown = {text.text for text in drawn().iter(f"{SVG}text")}
    assert {"Tokens < seconds", "ours", "HF & co", "tokens", "per second"} <= shown


def test_an_axis_begins_and_ends_at_powers_of_its_base() -> None:
    axis = Axis.over([300.0, 5000.0], 0, 100, base=10)
    assert axis.ticks(10) == [100.0, 1000.0, 10000.0]
    assert [axis.at(value) for value in (100, 1000, 10000)] == [0, 50, 100]
