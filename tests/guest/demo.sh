#!/usr/bin/env bash
# The story of the project on an 80-column terminal, in a throw-away VM: `cargo xtask demo` runs this.
# Every number shown is measured while it runs; the last lines put the kernel's own counter beside ctwatch's.
# With STORY_GOES_ON=1 the web server and some of its users stay, for whoever gets a prompt then (`--keep`).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
story=$here/story.sh
home=/run/ctwatch-story
export STORY_MAX=${STORY_MAX:-2000}

say() { printf '\n\033[1m# %s\033[0m\n' "$*"; }

# Sums one column of the kernel's per-CPU counters (hexadecimal).
kernel_counter() {
  local name=$1 column=0 sum=0 index line words
  {
    read -r -a words
    for index in "${!words[@]}"; do
      if [ "${words[$index]}" = "$name" ]; then column=$index; fi
    done
    while read -r -a line; do sum=$((sum + 16#${line[$column]})); done
  } < /proc/net/stat/nf_conntrack
  echo "$sum"
}

watcher=
trap 'bash "$story" down; if [ -n "$watcher" ]; then kill "$watcher" 2>/dev/null || true; fi' EXIT

say "A web server: nginx with Lua, Redis on the same host, a firewall that tracks."
bash "$story" up
echo "nf_conntrack_max is $STORY_MAX; each request opens a new connection to 127.0.0.1:6379."
bash "$story" fill 85 > /dev/null
before_drop=$(kernel_counter drop)
before_early=$(kernel_counter early_drop)

say "Peak traffic. Users see errors: which flows are hurt?"
printf '\033[1m$ sudo ctwatch drops\033[0m\n'
screen=$(mktemp)
ctwatch drops > >(tee "$screen") &
watcher=$!
# Its second tick means that it watches; then the traffic comes.
tries=0
until [ "$(grep -c '%' "$screen")" -ge 2 ] || [ "$tries" -gt 300 ]; do
  tries=$((tries + 1))
  sleep 0.1
done
bash "$story" load "${DEMO_SECONDS:-10}" > /dev/null
# Connections given up on are quiet after their last SYN.
sleep 2
kill -INT "$watcher"
wait "$watcher" || true
watcher=

say "What the application said, and what the kernel counted meanwhile."
grep -o 'redis time out: [a-z ]*' "$home/error.log" | sort | uniq -c || true
grep -E 'requests in|Non-2xx' "$home/wrk.txt" || true
echo "/proc/net/stat/nf_conntrack since before ctwatch started:"
echo "  drop       $(($(kernel_counter drop) - before_drop))"
echo "  early_drop $(($(kernel_counter early_drop) - before_early))"
echo
echo "None of these connections needed a firewall: they are this host talking to itself."

if [ "${STORY_GOES_ON:-0}" = 1 ]; then
  bash "$story" go_on
  trap - EXIT
  say "The guest is yours, and its users still come. Leave it with: exit"
  echo "Try    ctwatch table      who fills the table now"
  echo "       ctwatch drops      which flows are hurt (Ctrl-C ends it)"
  echo "       ctwatch advise     what would help; measures for a while first"
fi
