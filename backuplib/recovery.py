"""What the next run makes of a journal that the bot could have written, or removed: see :mod:`backuplib.journal`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from backuplib.bot import Bot, named
from backuplib.errors import DatabaseInUseError, UnfinishedRestoreError
from backuplib.formatting import quoted, shown
from backuplib.journal import Journal
from backuplib.target import Target


def refuse_forged_exchange(journal: Journal) -> None:
    """Refuse to settle the files by a journal of others': there may have been no restore at all.

    :raises UnfinishedRestoreError: when somebody has the database open, or it would be removed with nothing in its
        place, with what to do in either case.
    """
    if not journal.forgeable:
        return
    target = Target(journal.target)
    others = f"{target.journal} could have been written by others: {journal.forgeable}"
    remove = f"rm {quoted(shown(target.journal))}"
    if journal.new_is_live and not journal.existed and journal.state != "committed":
        raise UnfinishedRestoreError(
            f"{others}; and by it there was no database before, so that {target.path} might be removed",
            hint=f"Look whether that is the database you want. To keep it: {remove}",
        )
    try:
        target.refuse_holders()
    except DatabaseInUseError as error:
        raise UnfinishedRestoreError(
            f"{others}; and {error}",
            hint=f"If no restore was interrupted, remove it: {remove}. Else stop who has the database open first. "
            f"{error.hint}",
        ) from None


def within_reach(journal: Journal, bot: Bot | None, services: Sequence[str]) -> Iterator[str]:
    """Take out of a journal the containers that it may not make us stop or start; return what to tell of that.

    :param services: those that are named on the command line.
    """
    stopped = []
    if journal.forgeable:
        yield (
            f"{shown(Target(journal.target).journal)} could have been written by others: {journal.forgeable}. Only the "
            "files are put right; services are neither stopped nor started"
        )
        stopped = [item for item in bot.within_reach(services) if not item.active] if bot else []
    elif bot and (others := bot.out_of_reach(journal.containers, services)):
        names = {item.name for item in others}
        journal.containers = tuple(name for name in journal.containers if name not in names)
        yield (
            f"the journal names {', '.join(sorted(names))}, without the folder {shown(bot.folder)}, and not named by "
            "--service: neither stopped nor started"
        )
        stopped = [item for item in others if not item.active]
    if stopped:
        command = " ".join(["docker start", *(item.name for item in stopped)])
        yield f"not running: {named(stopped)}. If that restore has stopped what should run: {command}"


def told_of_leftovers(target: Target) -> Iterator[str]:
    """Return what to tell where there is no journal, but what a restore sets aside: it may have been removed."""
    for path in map(shown, target.left_aside()):
        yield (
            f"{path} is what a restore has set aside. Was it interrupted, and its journal removed? Then look whether "
            f"the services run, and which of the two databases is right. If all is well: rm {quoted(path)}"
        )
