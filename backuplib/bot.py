"""The bot, as its containers tell of it: which have the database, with what settings, and whether they are up.

They are found by their labels, and stopped and started by their IDs: Compose is not called, so that of a compose file
nothing counts but its path.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backuplib import errors
from backuplib.containers import Container, HealthCheck, inspect_containers, list_containers
from backuplib.database import database_files
from backuplib.formatting import printable, quoted, shown
from backuplib.processes import find_holders, run_command
from backuplib.secret import Secret

SETTLE_SECONDS = 5.0  # how long a container without a health check must run without a restart to count as up

START_SECONDS = 60.0  # how long a container may take to be up; one with a health check gets what that allows on top

STOP_SECONDS = 600.0  # longest wait for a docker command; the grace period before a kill is the container's own

MOST_RESTARTS = 3  # a container that restarts more often while it is started does so in a loop

POLL_SECONDS = 0.2

PROBE_SECONDS = 1.0  # how long a health check that is run here must go on passing; one due sooner is waited for

LOG_LINES, LOG_COLUMNS = 5, 200  # how much of a container's log is shown


@dataclass
class Bot:
    """The containers that one compose file has made, under whatever project name.

    :param file: the compose file.
    :param database: the database that is replaced.
    :param name: the project's name; None when it has no container.
    :param db_pass: taken out of what is shown of a container's log.
    """

    file: Path
    database: Path
    name: str | None
    db_pass: Secret | None = None
    _known: dict[str, Container] = field(default_factory=dict, repr=False)

    @classmethod
    def find(cls, file: Path, database: Path, db_pass: Secret | None = None) -> Bot:
        """Find the containers of a compose file.

        :raises DockerUnreachableError: when Docker does not answer.
        :raises UnusableComposeFileError: when the file runs under two project names.
        """
        file = file.resolve()
        found = inspect_containers(list_containers("-a", "--filter", "label=com.docker.compose.project"))
        made = [item for item in found if file in item.compose_files and not item.oneoff]
        names = {item.project for item in made if item.active} or {item.project for item in made}
        if len(names) > 1:
            command = made[0].compose_command
            raise errors.UnusableComposeFileError(
                f"{file.name} runs under more than one project name: {printable(', '.join(sorted(names)))}",
                hint=f"Stop the wrong one: {command} -p NAME -f {quoted(file)} stop",
            )
        return cls(file, database, names.pop() if names else None, db_pass)

    # --- facts -----------------------------------------------------------------------------------------------

    @property
    def folder(self) -> Path:
        return self.database.parent

    def owns(self, item: Container) -> bool:
        """Whether a container is of a service of the compose file, and not of `compose run`."""
        return item.project == self.name and not item.oneoff and self.file in item.compose_files

    def containers(self) -> list[Container]:
        """Return the containers of the compose file, in the order in which they were started.

        What shares another's network or processes comes last: it cannot be started before that, which may have been
        restarted since.
        """
        if self.name is None:
            return []
        ids = list_containers("-a", "--filter", f"label=com.docker.compose.project={self.name}")
        return sorted(filter(self.owns, inspect_containers(ids)), key=lambda item: (bool(item.joined), item.started_at))

    @functools.cached_property
    def seen(self) -> list[Container]:
        """The containers at the first look: all that the preflight says is about one and the same moment."""
        return self.containers()

    def concerned(self, services: Sequence[str], pending: Collection[str]) -> list[Container]:
        """Return the containers to stop and start: those that run and have the database.

        One that may only read it is left alone, unless it has it open: it would go on with the old one. What shares
        another's network or processes goes with it.

        :param services: if any, the containers of these instead.
        :param pending: names of containers that a restore before this one stopped, and that have not come up again.
        :raises UnusableComposeFileError: when there is no such service.
        """
        items = self.seen
        if unknown := sorted({*services} - {item.service for item in items}):
            raise errors.UnusableComposeFileError(
                f"no container of service {', '.join(unknown)} in {self.file.name}",
                hint=f"There are containers of: {named(items) or 'none'}",
            )
        running = [item for item in items if item.active or item.name in pending]
        if services:
            return [item for item in running if item.service in services]
        readers = [item for item in running if (mount := item.mount_of(self.folder)) and not mount.writable]
        holding = "".join(item.cgroup for item in find_holders(database_files(self.database))[0]) if readers else ""
        chosen = {item.id for item in running if item.writes_into(self.folder)}
        chosen |= {item.id for item in readers if item.id in holding}
        return [item for item in running if item.id in chosen or chosen & {*item.joined}]

    def within_reach(self, services: Sequence[str]) -> list[Container]:
        """Return the containers that a restore may stop and start at all: those that have the database's folder, what
        shares their network or processes, and those of ``services``. A journal may name any."""
        items = self.containers()
        chosen = {item.id for item in items if item.service in services or item.mount_of(self.folder)}
        return [item for item in items if item.id in chosen or chosen & {*item.joined}]

    def out_of_reach(self, names: Collection[str], services: Sequence[str]) -> list[Container]:
        """Return the containers that a journal names, and that a restore may not touch, see :meth:`within_reach`."""
        reached = {item.id for item in self.within_reach(services)}
        return [item for item in self.containers() if item.name in names and item.id not in reached]

    def refuse_elsewhere(self) -> None:
        """Refuse when no container has the database's folder: it would be restored where the bot does not look.

        :raises FolderNotMountedError: naming the folders that they do have.
        :raises UnsuitableTargetError: when they have the database as a single file.
        """
        items = self.seen
        if not items or any(item.mount_of(self.folder) for item in items):
            return
        for item in items:
            self._refuse_alone(item)
        mounts = [f"{item} has {mount}" for item in items for mount in item.mounts]
        raise errors.FolderNotMountedError(
            f"no container of {self.file.name} has the folder {self.folder}: "
            f"{'; '.join(map(printable, mounts)) or 'none of them has any folder of this machine'}",
            hint="Set DATA_DIR in .env to the folder that the bot has (of a volume: docker volume inspect NAME shows "
            "it). If the bot does not run in a container, stop it, and add --no-restart.",
        )

    def refuse_planted_link(self, path: Path) -> None:
        """Refuse a link at the database's name that a container can have made as root: its owner then tells nothing.

        :raises UnsuitableTargetError: naming it, and the container.
        """
        if not os.path.islink(path):
            return
        folder = Path(os.path.realpath(path.parent))
        for item in self.seen:
            user = item.identity()
            if item.writes_into(folder) and user and user[0] == 0:
                raise errors.UnsuitableTargetError(
                    f"{path} is a link, and container {item.name}, which runs as root, can have made it: it is not "
                    "followed",
                    hint="If it is meant, set DATA_DIR and DB_NAME in .env to what it leads to: readlink -f "
                    f"{quoted(path)}",
                )

    def refuse_differences(self, *, encrypted: bool) -> None:
        """Refuse when a container of the bot runs with other settings than ours; secrets are compared, not shown.

        What a container does not have in its environment is not compared.

        :param encrypted: whether DB_ENCRYPTION is true here.
        :raises SettingsDifferError: naming the setting.
        """
        for error in self.differences(encrypted=encrypted):
            raise error

    def compared(self) -> list[Container]:
        """Return the containers whose settings count: those that have the database's folder; of them
        those that run, if any does."""
        having = [item for item in self.seen if item.mount_of(self.folder)]
        return [item for item in having if item.active] or having

    def _differs(self, item: Container, setting: str, theirs: str, ours: str, right: str) -> errors.SettingsDifferError:
        return errors.SettingsDifferError(
            f"container {item.name} runs with {setting}={theirs}, and here it is {ours}",
            hint=f"The bot's counts: write {setting}={right} into .env. If .env is right, the bot has not been "
            f"recreated since it was changed: {self._recreate(item.compose_command)}",
        )

    def differences(self, *, encrypted: bool) -> Iterator[errors.SettingsDifferError]:
        """Return each setting that a container of the bot has otherwise, as :meth:`refuse_differences` refuses it."""
        for item in self.compared():
            name, encryption = item.settings.get("DB_NAME"), item.settings.get("DB_ENCRYPTION")
            # Of our own name, the links are resolved.
            if name and os.path.realpath(self.folder / name) != str(self.database):
                yield self._differs(item, "DB_NAME", printable(name), self.database.name, printable(name))
            if encryption is not None and (encryption == "true") != encrypted:  # bots compare with 'true', exactly
                ours, right = str(encrypted).lower(), str(not encrypted).lower()
                yield self._differs(item, "DB_ENCRYPTION", printable(encryption), ours, right)
            passphrase = item.settings.get("DB_PASS")
            if passphrase is not None and self.db_pass and passphrase != self.db_pass.reveal():
                yield errors.SettingsDifferError(
                    f"container {item.name} runs with another DB_PASS than the one here",
                    hint="The bot's counts: its database is encrypted with it. In .env put it into single quotes: "
                    f"outside of them Compose replaces $ and what follows. To see it: docker exec {item.name} "
                    "printenv DB_PASS",
                )

    def refuse_strangers(self, stopping: Sequence[Container]) -> None:
        """Refuse when a container can write to the database, except those that will be stopped.

        :raises DatabaseInUseError: naming the container.
        :raises UnsuitableTargetError: when the database is mounted as a single file.
        """
        ids = list_containers()
        fresh = [name for name in ids if name not in self._known]  # mounts do not change while a container exists
        self._known |= {item.id: item for item in inspect_containers(fresh)}
        expected = {item.id for item in stopping}
        in_the_way = [
            item.id
            for item in (self._known[name] for name in ids if name in self._known)
            if item.has_alone(self.database) or (item.id not in expected and item.writes_into(self.folder))
        ]
        for item in inspect_containers(in_the_way):
            if item.active:
                self._refuse_alone(item)
                raise errors.DatabaseInUseError(
                    f"container {item.name} runs and can write to {self.folder}, and is not among the services to "
                    f"stop ({named(stopping) or 'none'})",
                    hint=f"Stop it (docker stop {item.name}), or name its service or compose file.",
                )

    def _refuse_alone(self, item: Container) -> None:
        if item.has_alone(self.database):
            raise errors.UnsuitableTargetError(
                f"{self.database} is mounted into container {item.name} as a single file: the container would keep the "
                "old one",
                hint="Mount its folder instead, and recreate the container.",
            )

    def outlook(self, stopping: Sequence[Container]) -> dict[str, str]:
        """Say what will happen: an estimate from health checks and grace periods."""
        others = [item for item in self.seen if item.active and item not in stopping]
        go_on = f"; {named(others)} {_verb(others, 'goes', 'go')} on" if others else ""
        if readers := [item for item in others if item.mount_of(self.folder)]:
            go_on += f" ({named(readers)} may only read it)"
        if not stopping:
            return {"services": f"none that has the database is running{go_on}"}
        stop, start = expected_seconds(stopping)
        return {
            "services": f"{named(stopping)} will be stopped{go_on}",
            "downtime": f"estimated {start:.0f} s, {stop + start:.0f} s if they must be killed",
        }

    def user(self) -> tuple[int, set[int]] | None:
        """Return the user and the groups that must be able to write to the database; None when that cannot be told."""
        writers = (item for item in self.seen if item.writes_into(self.folder))
        return next((item.identity() for item in writers), None)

    # --- stop and start --------------------------------------------------------------------------------------

    def stopping(self, names: Collection[str]) -> tuple[list[Container], str]:
        """Look containers up by name, and say which will stop and which go on.

        One that is made anew gets another ID, and keeps its name.
        """
        items = self.containers()
        these = [item for item in items if item.name in names]
        others = [item for item in items if item.active and item.name not in names]
        return these, named(these) + (f" ({named(others)} {_verb(others, 'goes', 'go')} on)" if others else "")

    def stop(self, items: Sequence[Container]) -> None:
        """Stop containers gracefully; CannotStopError when that fails, or one still runs, whatever the command says."""
        if items:
            try:
                run_command(["docker", "stop", *(item.id for item in items)], timeout=STOP_SECONDS)
            except errors.CommandFailedError as error:
                raise errors.CannotStopError(f"the services could not be stopped: {error}") from None
        listed = {*list_containers()}
        found = inspect_containers([item.id for item in items if item.id in listed])
        if still := [item for item in found if item.active]:
            raise errors.CannotStopError(f"still running after `docker stop`: {named(still)}")

    def start(self, names: Collection[str], unhealthy: Collection[str] = ()) -> Coming:
        """Start containers, in the order in which they were started before, and wait until they are up as before.

        :param unhealthy: names of those that were unhealthy before: to be running is enough for them.
        :raises ServicesDownError: when one does not come up, with the end of its log.
        """
        items, failure = self.stopping(names)[0], ""
        try:
            if items:
                run_command(["docker", "start", *(item.id for item in items)], timeout=STOP_SECONDS)
        except errors.CommandFailedError as error:  # not believed either: the containers are looked at
            failure = f" ({error})"
        coming = Coming(items, unhealthy)
        while True:
            coming.look()
            if missing := sorted({*names} - {item.name for item in coming.items}):
                raise self._missing(missing)
            if down := coming.down():
                item, reason = down
                raise errors.ServicesDownError(
                    f"service {item} {reason}{failure}",
                    hint=f"See its log: docker logs --tail 50 {item.name}",
                    services=coming.what_is_down(item, reason),
                    log=self._log_of(item),
                )
            if coming.settled:
                return coming
            time.sleep(POLL_SECONDS)

    def _missing(self, names: Sequence[str]) -> errors.ServicesDownError:
        items = self.containers()
        gone = printable(", ".join(names))  # from the journal, which others may have written
        return errors.ServicesDownError(
            f"container {gone} no longer exists",
            hint=f"Create it: {self._recreate(items[0].compose_command if items else 'docker compose')}",
            services=f"but {gone} {'is' if len(names) == 1 else 'are'} NOT running",
        )

    def _recreate(self, compose_command: str) -> str:
        """Return the command that makes the containers anew, as it is typed."""
        project = f"-p {printable(quoted(self.name))} " if self.name else ""
        return f"{compose_command} {project}-f {quoted(shown(self.file))} up -d"

    def _log_of(self, item: Container) -> str:
        """Return the last lines of a container's log, which is foreign text and may hold anything."""
        try:
            text = run_command(["docker", "logs", "--tail", str(LOG_LINES), item.id], timeout=30, errors_too=True)
        except errors.CommandFailedError as error:
            return f"(its log cannot be read: {error})"
        if self.db_pass:
            text = text.replace(self.db_pass.reveal(), "***")
        return "\n".join(printable(line.rstrip())[:LOG_COLUMNS] for line in text.splitlines()[-LOG_LINES:])


class Coming:
    """Containers that come up: looked at until each is up as it was before, or one will not be.

    Up is: healthy by its own health check, or, without one, running for some seconds without a restart.
    """

    def __init__(self, items: Sequence[Container], unhealthy: Collection[str]) -> None:
        """Begin to look at them; ``items`` are as they were before the start."""
        self.items = list(items)
        self._ids = [item.id for item in items]
        self._unhealthy = unhealthy
        # `docker start` sets the count to zero, but not that of one that runs: it may be years old.
        self._restarts_before = {item.id: item.restart_count if item.active else 0 for item in items}
        self._began = self._now = time.monotonic()
        self._up: dict[str, tuple[str, float]] = {}  # by ID: which start of it, and when it was first seen up after it

    def look(self) -> None:
        """Look at them now."""
        self.items, self._now = inspect_containers(self._ids), time.monotonic()
        for item in self.items:
            if not self._works(item):
                self._up.pop(item.id, None)
            elif self._up.get(item.id, ("", 0.0))[0] != item.started_at:
                self._up[item.id] = item.started_at, time.monotonic()

    def _judged_by(self, item: Container) -> HealthCheck | None:
        return None if item.name in self._unhealthy else item.check

    def _restarts(self, item: Container) -> int:
        return max(0, item.restart_count - self._restarts_before[item.id])

    def _works(self, item: Container) -> bool:
        check = self._judged_by(item)
        if not item.running or not check or item.health == "healthy":
            return item.running
        return item.health == "starting" and check.interval > PROBE_SECONDS and passes(item, check)

    def _stays(self, item: Container) -> bool:
        """Whether one that is up has been so for long enough to count."""
        check, since = self._judged_by(item), self._up[item.id][1]
        if check and item.health == "healthy":
            return True
        return self._now - since >= (PROBE_SECONDS if check else SETTLE_SECONDS * (1 + self._restarts(item)))

    @property
    def settled(self) -> bool:
        """Whether all are up."""
        return all(item.id in self._up and self._stays(item) for item in self.items)

    @property
    def up_at(self) -> float:
        """The time (monotonic) at which the last one was up."""
        return max((since for _, since in self._up.values()), default=self._began)

    def down(self) -> tuple[Container, str] | None:
        """Return a container that will not be up by more waiting, and why."""
        return next(((item, reason) for item in self.items if (reason := self._why_down(item))), None)

    def _why_down(self, item: Container) -> str:
        check, waited = self._judged_by(item), self._now - self._began
        if (restarts := self._restarts(item)) > MOST_RESTARTS:
            return f"restarts in a loop ({restarts} times so far, exit code {item.exit_code})"
        if check and item.health == "unhealthy":
            return "is unhealthy"
        if item.status in ("exited", "dead") and waited > 1:
            return f"has ended with exit code {item.exit_code}"
        if item.id not in self._up and waited > START_SECONDS + (check.allowed if check else 0):
            return f"is not up after {waited:.0f} s ({item.health or item.status})"
        return ""

    def what_is_down(self, item: Container, reason: str) -> str:
        """Return the clause that says what does not run, or not well."""
        down = [one for one in self.items if not one.running]
        return f"but {named(down)} {_verb(down, 'is', 'are')} NOT running" if down else f"but {item} {reason}"

    def __str__(self) -> str:
        states = (f"{item} {'healthy' if self._judged_by(item) else 'running'}" for item in self.items)
        return ", ".join(dict.fromkeys(states))

    @property
    def still_unhealthy(self) -> list[Container]:
        """Those that were unhealthy before, and are not healthy now."""
        return [item for item in self.items if item.check and not self._judged_by(item) and item.health != "healthy"]


def passes(item: Container, check: HealthCheck) -> bool:
    """Whether a container's own health check passes at this moment: run here, since its next turn may be far off."""
    with contextlib.suppress(errors.CommandFailedError):
        run_command(["docker", "exec", item.id, *check.command], timeout=check.timeout)
        return True
    return False


def expected_seconds(items: Sequence[Container]) -> tuple[float, float]:
    """Return how long the containers may take to stop before they are killed, and usually take to start, in seconds."""
    stop = max((item.stop_seconds for item in items), default=0.0)
    return stop, 1 + max((min(item.check.interval, PROBE_SECONDS) if item.check else 0.0 for item in items), default=0)


def named(items: Iterable[Container]) -> str:
    """Return the services of containers, for people."""
    return ", ".join(sorted({str(item) for item in items}))


def _verb(items: Sequence[Container], one: str, more: str) -> str:
    return one if len({str(item) for item in items}) == 1 else more
