"""`shopbot`: runs a command of the tool on a host; private key and passphrase come from commands on this machine.

Both go through the standard input of the connection, and nowhere else. They are no arguments of a module: those Ansible
writes into a file on the host, unless it pipelines, which several of its settings switch off silently. They are no
variables either, which callbacks, caches and -vvv may show. No module goes to the host at all.
"""

import shlex
import subprocess
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

COMMAND = "cd {folder} && {environment} .venv/bin/python {command}"
WITH_KEY = f"IFS= read -r line && {COMMAND} --key-stdin --passphrase-fd 3 3< <(printf '%s\\n' \"$line\")"
"""For bash: the first line of standard input is the passphrase, the rest is the key."""

LOST = "no connection; if it was lost, the command may still go on: restore_backup.py --list tells how a restore ended"


class ActionModule(ActionBase):  # type: ignore[misc]  # Ansible has no types
    """The task. Its result has `rc` and `said`: the lines that the command prints, and where it fails, why."""

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset({"folder", "command", "key_command", "passphrase_command"})

    def run(self, tmp: None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run it; in Ansible's check mode nothing is run."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        if self._task.check_mode:
            return {**result, "skipped": True}
        task: dict[str, str] = self._task.args
        if missing := {"folder", "command"} - task.keys():
            raise AnsibleActionFail(f"shopbot lacks {', '.join(sorted(missing))}")
        form, sent = COMMAND, b"\n"  # something must be sent, or else Ansible has ssh make a terminal
        if "key_command" in task:
            passphrase, _, _ = output_of(task, "passphrase_command").partition(b"\n")
            form, sent = WITH_KEY, passphrase.removesuffix(b"\r") + b"\n" + output_of(task, "key_command")
        command = form.format(
            folder=shlex.quote(task["folder"]),
            environment=self._compute_environment_string(),
            command=shlex.join(shlex.split(task["command"])),
        )
        try:
            done = self._low_level_execute_command(command, in_data=sent, executable="/bin/bash")
        except AnsibleConnectionFailure as error:  # an unreachable host would not end a play that goes host by host
            raise AnsibleActionFail(f"{LOST}: {error}") from None
        failed = done["rc"] != 0
        result |= {"rc": done["rc"], "changed": not failed, "failed": failed}
        if failed:
            result["msg"] = f"exit code {done['rc']}"
        return {**result, "said": [*done["stdout_lines"], *(done["stderr_lines"] if failed else [])]}


def output_of(task: dict[str, str], name: str) -> bytes:
    """What a command that the task names prints on this machine; run without a shell."""
    try:
        command = shlex.split(task[name])
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except (KeyError, ValueError, OSError) as error:
        raise AnsibleActionFail(f"{name} cannot be run: {error!r}; the host was not touched") from None
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip()
        raise AnsibleActionFail(f"{name} failed ({done.returncode}); the host was not touched: {why}")
    return done.stdout
