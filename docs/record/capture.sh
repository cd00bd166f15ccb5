#!/bin/sh
# Waits for one incident, for at most this long, and says where its recording is: in a new folder below this one, which
# only root can look into.
#   sudo ./capture.sh 1h /var/tmp 'fill>=90%' 'drops>0'
# Exit codes: 0 an incident was recorded; 4 there was none; others as ctwatch's.
set -u
wait=${1:-1h}
below=${2:-/var/tmp}
[ $# -gt 2 ] && shift 2 || set -- 'drops>0'
umask 077

conditions=
for condition; do
    conditions="$conditions --when $condition"
done

# Names in /var/tmp are anybody's to take: this one can't be guessed, and what is made in it is nobody else's.
folder=$(mktemp -d "$below/ctwatch.XXXXXXXXXX") || exit 1
file=$folder/$(uname -n)-$(date -u +%Y%m%dT%H%M%SZ).ctw
# Conditions hold no blanks: they are words.
# shellcheck disable=SC2086
ctwatch record -o "$file" $conditions --once --duration "$wait" --before 2m --after "${AFTER:-30s}"
code=$?
case $code in
0) echo "an incident was recorded: $file" >&2 ;;
4) rm -f "$file" && echo "no incident within $wait" >&2 ;;
*) echo "ctwatch failed with $code" >&2 ;;
esac
# Unless there is something in it.
rmdir "$folder" 2>/dev/null
exit $code
