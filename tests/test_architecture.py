"""Rooms import no command, no command another, there is no circle; docs/architecture.md draws what the code does."""

import re

import pytest

from tests.architecture import PACKAGE, ROOMS, ROOT, drawing, imports, levels

COMMANDS = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}


def test_nothing_imports_a_command():
    assert {(own, other) for own, found in imports().items() for other in found & COMMANDS} == set()


def test_rooms_are_those_that_are_drawn_and_none_is_in_a_circle():
    rooms = {room: found & {*ROOMS} for room, found in imports().items() if room not in COMMANDS}
    assert {*rooms} == {*ROOMS}
    assert levels(rooms)["base"] == max(levels(rooms).values())
    with pytest.raises(RecursionError):
        levels(rooms | {"base": {"engines"}})


def test_the_drawing_is_of_the_code_as_it_is():
    assert (ROOT / "docs/architecture.svg").read_text() == drawing(), "run python -m tests.architecture"


def test_the_page_names_every_room_and_every_command():
    text = (ROOT / "docs/architecture.md").read_text()
    assert {*re.findall(r"^\| `([a-z_]+)` \|", text, re.MULTILINE)} == {*ROOMS}
    assert {*re.findall(r"`([a-z_]+)`", text)} >= COMMANDS
