#!/bin/bash
# Verifies, from the machine that has the private key, that the newest backup on the host can be restored. Changes nothing.
#
#   verify-newest.sh HOST [FOLDER]
#
# KEY_COMMAND and PASSPHRASE_COMMAND print the key (base64) and its passphrase; both are sent through the connection only.
# Prints nothing on success, so that cron mails failures only. The exit code is that of restore_backup.py.
set -euo pipefail

host=${1:?which host?}
folder=${2:-shopbot}
: "${KEY_COMMAND:=pass show shopbot/key}" "${PASSPHRASE_COMMAND:=pass show shopbot/passphrase}"

verify='IFS= read -r passphrase
cd "$1"
newest=$(ls -t backups/db_backup_*.db.gz.gpg | head -n 1)
exec python restore_backup.py "$newest" --verify-only --key-stdin --passphrase-fd 3 3< <(printf "%s\n" "$passphrase")'

code=0
said=$({ $PASSPHRASE_COMMAND | head -n 1; $KEY_COMMAND; } |
    ssh "$host" "bash -c $(printf %q "$verify") verify $(printf %q "$folder")" 2>&1) || code=$?
if ((code)); then
    echo "$said"
fi
exit "$code"
