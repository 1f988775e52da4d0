#!/bin/bash
# Verifies, from the machine that has the private key, that the newest backup on the host can be restored, and that it is
# new. Changes nothing, and leaves a proof for `database_backup.py status` beside the backups.
#
#   verify-newest.sh HOST [FOLDER [BACKUPS]]
#
# FOLDER is the tool's on the host, BACKUPS the one that the backups are in, when it is not the DB_BACKUP_PATH of its .env.
# The newest is `latest`: by the time in its name, whatever the zone; what a restore kept before itself does not count.
# KEY_COMMAND and PASSPHRASE_COMMAND print the key (base64) and its passphrase; both are sent through the connection only.
# BACKUP_MAX_AGE_HOURS: a newest backup that is older is told (default: 26).
#
# Prints nothing on success, so that cron mails failures only. The exit code is that of restore_backup.py, or 1: too old.
set -euo pipefail

host=${1:?which host?}
folder=${2:-shopbot}
backups=${3:-}
: "${KEY_COMMAND:=pass show shopbot/key}" "${PASSPHRASE_COMMAND:=pass show shopbot/passphrase}"
: "${BACKUP_MAX_AGE_HOURS:=26}"

verify='set -euo pipefail
IFS= read -r passphrase
cd "$1"
PATH=.venv/bin:$PATH # Debian itself has no python
[[ ! $2 ]] || export DB_BACKUP_PATH=$2
newest="
from datetime import datetime
from backuplib.selection import choose
from database_backup import get_backup_handler
chosen = choose(get_backup_handler().list_backups()).chosen
print(int((datetime.now().astimezone() - chosen.created).total_seconds()) // 3600, chosen.path)"

python restore_backup.py latest --from local --verify-only --key-stdin --passphrase-fd 3 3< <(printf "%s\n" "$passphrase")
read -r hours file < <(python -c "$newest")
((hours < $3)) || { echo "The newest backup is $hours hours old, more than $3: $file"; exit 1; }'

code=0
said=$({ $PASSPHRASE_COMMAND | head -n 1; echo; $KEY_COMMAND; } |
    ssh "$host" "bash -c $(printf %q "$verify") verify $(printf "%q " "$folder" "$backups" "$BACKUP_MAX_AGE_HOURS")" 2>&1) ||
    code=$?
if ((code)); then
    echo "$said"
fi
exit "$code"
