"""Refuses a config.py that is not this tool's, before it is run: a bot's may open tunnels, or end the process.

Importing this module does it, since the scripts import config at their top, before their main() could report anything.
"""

import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from backuplib.console import Console, Report
from backuplib.errors import ForeignConfigError
from backuplib.processes import Signals, close_streams, open_streams

OWN = re.compile(rb"^from backuplib\b", re.MULTILINE)  # which no other program's config.py imports


def refuse_foreign_config() -> None:
    """Look at the module `config` that has been imported, or would be, without running it.

    :raises ForeignConfigError: when it is another program's.
    """
    if loaded := sys.modules.get("config"):
        place = getattr(loaded, "__file__", None)
    else:
        spec = PathFinder.find_spec("config")
        if spec is None:
            return  # the import tells
        place = spec.origin or next(iter(spec.submodule_search_locations or ()), None)
    file = Path(place or "config")
    if not (file.is_file() and OWN.search(file.read_bytes())):
        raise ForeignConfigError(file)


def _is_script() -> bool:
    """Whether this process runs one of the tool's scripts, which end with an exit code and not with an exception."""
    main: str | None = getattr(sys.modules["__main__"], "__file__", None)
    return main is not None and Path(main).resolve().parent == Path(__file__).resolve().parents[1]


def _end_as_main_does() -> int:
    """Report the error, and return the exit code."""
    open_streams()
    as_json = "--json" in sys.argv
    report = Report(Console(as_json=as_json), Signals())
    with report.failures():
        refuse_foreign_config()
    if as_json:
        report.console.json(report.as_dict())
    close_streams()
    return report.exit_code


try:
    refuse_foreign_config()
except ForeignConfigError:
    if not _is_script():
        raise
    sys.exit(_end_as_main_does())
