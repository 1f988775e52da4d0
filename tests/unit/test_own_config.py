"""Whose config.py it is, told without running it."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from backuplib.errors import ForeignConfigError
from backuplib.own_config import refuse_foreign_config
from tests.support.shop import ROOT

RUN = "raise AssertionError('it was run')\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first folder in which Python looks; no `config` has been imported."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "config", raising=False)
    return tmp_path


def test_ours_is_accepted(folder: Path) -> None:
    (folder / "config.py").write_bytes((ROOT / "config.py").read_bytes() + RUN.encode())
    refuse_foreign_config()


def test_none_at_all_is_left_to_the_import(folder: Path) -> None:
    refuse_foreign_config()


@pytest.mark.parametrize("name", ["config.py", "config/__init__.py"])
def test_another_programs_is_named(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(f"# not from backuplib\n{RUN}")
    with pytest.raises(ForeignConfigError, match=f"{folder / name} is not"):
        refuse_foreign_config()


def test_folder_without_a_file_is_named(folder: Path) -> None:
    """Python takes it for a package."""
    (folder / "config").mkdir()
    with pytest.raises(ForeignConfigError, match=f"{folder / 'config'} is not"):
        refuse_foreign_config()


def test_module_that_is_imported_already_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "config.py").write_bytes((ROOT / "config.py").read_bytes())
    monkeypatch.setitem(sys.modules, "config", ModuleType("config"))
    with pytest.raises(ForeignConfigError):
        refuse_foreign_config()
