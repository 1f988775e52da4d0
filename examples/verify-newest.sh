#!/bin/bash
# Verifies, from the machine that has the private key, that the newest backup on the host can be restored, and that it is
# new. Changes nothing, and leaves a proof for `database_backup.py status` beside the backups.
#
#   verify-newest.sh HOST [FOLDER [BACKUPS]]
#
# FOLDER is the tool's on the host, BACKUPS the one that the backups are in, when it is not the DB_BACKUP_PATH of its .env.
# The newest is the one with the latest time in its name; what a restore kept before itself does not count.
# KEY_COMMAND and PASSPHRASE_COMMAND print the key (base64) and its passphrase; both are sent through the connection only.
# BACKUP_MAX_AGE_HOURS: a newest backup that is older is told (default: 26).
#
# Prints nothing on success, so that cron mails failures only. The exit code is that of restore_backup.py, or 1: there is
# no backup, or it is too old.
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
backups=${2:-$(python -c "import config; print(config.load_settings().backup_dir)")}

newest= time=
shopt -s nullglob
for file in "$backups"/db_backup_*.db "$backups"/db_backup_*.db.gz "$backups"/db_backup_*.db.gz.gpg; do
    [[ ${file##*/} =~ ^db_backup_([0-9]{8}_[0-9]{6}) && ${BASH_REMATCH[1]} > $time ]] || continue
    grep -qs "^# kind: before a restore" "$file.sha256" || newest=$file time=${BASH_REMATCH[1]}
done
[[ $newest ]] || { echo "There is no backup in $backups"; exit 1; }

DB_BACKUP_PATH=$backups python restore_backup.py "$newest" --verify-only --key-stdin --passphrase-fd 3 3< <(printf "%s\n" "$passphrase")
made=$(date +%s -d "${time:0:4}-${time:4:2}-${time:6:2} ${time:9:2}:${time:11:2}:${time:13:2}")
age=$(($(date +%s) - made))
((age <= $3 * 3600)) || { echo "The newest backup is $((age / 3600)) hours old, more than $3: $newest"; exit 1; }'

code=0
said=$({ $PASSPHRASE_COMMAND | head -n 1; echo; $KEY_COMMAND; } |
    ssh "$host" "bash -c $(printf %q "$verify") verify $(printf "%q " "$folder" "$backups" "$BACKUP_MAX_AGE_HOURS")" 2>&1) ||
    code=$?
if ((code)); then
    echo "$said"
fi
exit "$code"
