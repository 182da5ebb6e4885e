# shellcheck shell=bash
# SPDX-FileCopyrightText: The crashcart.fleet contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# Each leak is a new descriptor, which bash puts into fd, and nobody closes it.
# shellcheck disable=SC2034
# The programs of faults.c that every container of the table needs, as shell scripts make these faults. This file runs in containers.
exec 2>/dev/null
try() {
    case $1 in
        missing_file) cat /etc/app/settings.conf ;;
        refused) (: </dev/tcp/127.0.0.1/5432) ;;
        denied) cat /etc/app/secret.key ;;
        lock) flock /var/lib/app/data.lock true ;;
        leak) exec {fd}</etc/app/app.conf ;;
        name_server) getent hosts db.internal.example ;;
        architecture) /opt/app/worker ;;
        full) head -c 16384 /dev/zero >>/var/spool/app/queue ;;
        configured) cat "${APP_CONFIG:-/etc/app/app.conf}" ;;
    esac
}
[ "$1" != lock ] || { flock /var/lib/app/data.lock sleep 100000 & sleep 1; }
exec {never}<> <(:)
while :; do
    try "$1" >/dev/null
    read -r -t 0.1 -u "$never"
done
