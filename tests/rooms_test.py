"""The layout of the package: rooms import downwards only, files do not import each other in circles, names resolve."""

import importlib

import pytest

from tools import facts


def test_rooms_import_only_rooms_below_them():
    assert facts.upward_imports() == []


def test_no_files_import_each_other_in_a_circle():
    assert facts.cycles() == []


@pytest.mark.parametrize("room", [room for room in facts.ROOMS if room != "commands"])
def test_every_public_name_can_be_imported_from_its_room(room):
    module = importlib.import_module(f"prm_jax.{room}")
    names = facts.public_names(room)
    assert names and all(hasattr(module, name) for name in names)


def test_rl_stays_small_enough_to_be_learned():
    assert len(facts.public_names("rl")) <= 110


def test_the_script_prints_the_facts(capsys):
    facts.main()
    printed = capsys.readouterr().out
    assert "import cycles" in printed and "public names per room" in printed
