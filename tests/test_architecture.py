"""Rooms import no command, no command another, there is no circle, and docs/architecture.md draws just that."""

import re
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.architecture import PACKAGE, ROOMS, ROOT, drawing, file_imports, imports, levels

COMMANDS = {path.stem for path in PACKAGE.glob("[a-z]*.py")}


def test_nothing_imports_a_command():
    assert {(own, other) for own, found in imports().items() for other in found & COMMANDS} == set()


def test_rooms_are_those_that_are_drawn_and_none_is_in_a_circle():
    rooms = {room: found & {*ROOMS} for room, found in imports().items() if room not in COMMANDS}
    assert {*rooms} == {*ROOMS}
    assert levels(rooms)["base"] == max(levels(rooms).values())
    with pytest.raises(RecursionError):
        levels(rooms | {"base": {"engines"}})


def test_no_file_is_in_a_circle():
    found = file_imports()
    TopologicalSorter(found).prepare()
    assert "pipeline.networks.weights" in found["pipeline.networks.network"]  # an import within a function
    with pytest.raises(CycleError):
        TopologicalSorter(found | {"pipeline.networks.weights": {"pipeline.networks.network"}}).prepare()


def test_no_room_is_of_one_file():
    assert [room for room in ROOMS if len([*(PACKAGE / room).rglob("[!_]*.py")]) < 2] == []


def test_the_drawing_is_of_the_code_as_it_is():
    assert (ROOT / "docs/architecture.svg").read_text() == drawing(), "run python -m tests.architecture"


def test_the_page_names_every_room_and_every_command():
    text = (ROOT / "docs/architecture.md").read_text()
    assert {*re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE)} == {*ROOMS}
    assert {*re.findall(r"`([a-z_]+)`", text)} >= COMMANDS
