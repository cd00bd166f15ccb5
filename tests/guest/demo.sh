#!/usr/bin/env bash
# The story of the project on an 80-column terminal, in a throw-away VM: `cargo xtask demo` runs this.
# Every number shown is measured while it runs; the last lines put the kernel's own counter beside ctwatch's.
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

trap 'bash "$story" down' EXIT

say "A web server: nginx with Lua, Redis on the same host, a firewall that tracks."
bash "$story" up
echo "nf_conntrack_max is $STORY_MAX; each request opens a new connection to 127.0.0.1:6379."

before_drop=$(kernel_counter drop)
before_early=$(kernel_counter early_drop)

say "Peak traffic comes."
bash "$story" load "${DEMO_SECONDS:-10}" > "$home/load.txt" 2>&1 &
load=$!
until [ "$(cat /proc/sys/net/netfilter/nf_conntrack_count)" -gt $((STORY_MAX * 8 / 10)) ]; do
  if ! kill -0 "$load" 2>/dev/null; then break; fi
  sleep 0.2
done

say "Users see errors. Who is hurt?"
printf '\033[1m$ sudo ctwatch drops\033[0m\n'
ctwatch drops --duration "${DEMO_TICKS:-12}s"
wait "$load" || true

say "What the application said, and what the kernel counted."
tail -n 1 "$home/error.log" | cut -c 1-79 || true
grep -E 'requests in|Non-2xx' "$home/wrk.txt" || true
echo "kernel, /proc/net/stat/nf_conntrack, since the traffic came:"
echo "  drop       $(($(kernel_counter drop) - before_drop))"
echo "  early_drop $(($(kernel_counter early_drop) - before_early))"
echo
echo "Not one of these drops needed a firewall: they are this host talking to itself."
