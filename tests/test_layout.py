"""Imports run one way: backuplib <- config <- database_backup <- restore_backup. Read from the code itself."""

import ast
import re
from graphlib import TopologicalSorter

from tests.support.shop import ROOT

SCRIPTS = ("config", "database_backup", "restore_backup")
"""From the ground up; backuplib lies under all of them."""

MODULES = [*SCRIPTS, *(f"backuplib.{path.stem}" for path in sorted((ROOT / "backuplib").glob("[!_]*.py")))]


def imports(module: str) -> dict[str, set[str]]:
    """The project's modules that a module imports, anywhere in it and for types, with the names taken from each."""
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found.setdefault(alias.name, set())
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                found.setdefault(inside if inside in MODULES else str(node.module), set()).add(alias.name)
    return {name: names for name, names in found.items() if name in MODULES}


def test_no_module_imports_in_a_circle() -> None:
    TopologicalSorter({module: imports(module) for module in MODULES}).prepare()  # raises CycleError, naming it


def test_imports_run_upwards_only() -> None:
    storeys = {name: number for number, name in enumerate(SCRIPTS, 1)}
    wrong = [
        f"{module} imports {name}"
        for module in MODULES
        for name in imports(module)
        if storeys.get(name, 0) > storeys.get(module, 0) or name == "restore_backup"
    ]
    assert wrong == []


def test_the_script_takes_the_class_alone_from_the_module_that_a_bot_may_replace() -> None:
    assert imports("restore_backup")["database_backup"] == {"DatabaseBackup"}


def test_no_test_module_imports_from_another() -> None:
    wrong = [
        f"{path.name}: {node.module}"
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("tests.test_")
    ]
    assert wrong == []


def test_map_of_the_house_has_every_room_and_no_other() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = page[page.index("| in backuplib |") : page.index("Imports run downwards")]
    assert sorted(re.findall(r"`(\w+)`", rooms)) == sorted(name.removeprefix("backuplib.") for name in MODULES[3:])
