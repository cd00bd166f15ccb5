
# From here on nothing depends on the advice: how a piece is applied, watched and taken back.

base=/run/ctwatch-advice
[ -d /run ] || base=/var/run/ctwatch-advice
pending=$base/pending
# Seconds to confirm in; seconds that `now` may take; seconds a connection may stand still.
patience=60
slow=60
stuck=10

say() {
    printf '%s\n' "$*"
}

fail() {
    printf '%s\n' "$*" >&2
    exit 1
}

usage() {
    list
    cat >&2 << EOF

usage: sh $0 try PIECE    apply it, watch, and take it back unless confirmed within $patience s
       sh $0 confirm      keep what is being tried, from any terminal
       sh $0 now PIECE    apply it until the next reboot, without a way back but \`undo\`
       sh $0 keep PIECE   make it persistent (after \`try\` or \`now\`)
       sh $0 undo PIECE   restore the settings found when this was written
       sh $0 status       what is being tried, or how the last try ended
       sh $0 rollback     take back what a try that was killed has left
PIECE is its number or name; where there is only one it may be left out.
EOF
    exit 2
}

# Rules and settings in words, without counters, which move by themselves. Nothing is listed whose listing would load a
# module: what isn't loaded has no rules.
snapshot() {
    for file in /proc/sys/net/netfilter/nf_conntrack_* /sys/module/nf_conntrack/parameters/hashsize; do
        case $file in
        *_count | *'*') ;;
        *) printf '%s = %s\n' "$file" "$(cat "$file" 2> /dev/null)" ;;
        esac
    done
    if [ -d /sys/module/nf_tables ] || grep -q ' nft_do_chain$' /proc/kallsyms 2> /dev/null; then
        nft -s list ruleset 2> /dev/null
        saved iptables-nft-save
        saved ip6tables-nft-save
    fi
    if [ -s /proc/self/net/ip_tables_names ]; then
        saved iptables-legacy-save || saved iptables-save
    fi
    if [ -s /proc/self/net/ip6_tables_names ]; then
        saved ip6tables-legacy-save || saved ip6tables-save
    fi
    return 0
}

# Each rule behind its table's name; chains that are always there and let everything pass are left out.
saved() {
    command -v "$1" > /dev/null 2>&1 || return 1
    "$1" 2> /dev/null | sed -n -e '/^[*]/h' -e '/^:.* ACCEPT /d' -e '/^[:-]/{' -e 's/ \[[0-9]*:[0-9]*\]$//' -e G \
        -e 's/\n/ in /p' -e '}' | sed "s/^/$1: /"
}

# In the netns that the piece is about.
state_of_host() {
    enter sh "$1" _snapshot > "$2" 2> /dev/null
}

# Whether two of them are the same: nothing is not.
same() {
    [ -s "$1" ] && cmp -s "$1" "$2"
}

# Both in a shell of their own, so that `set -e` holds and ends nothing else.
apply() {
    (
        set -e
        "now_$1"
    )
}

take_back() {
    (
        set +e
        "undo_$1"
    )
}

# `now`: what was done is undone if a command fails.
apply_or_undo() {
    folder=$(mktemp -d) || fail "no folder for temporary files"
    trap 'rm -rf "$folder"' EXIT
    print_self > "$folder/script" || fail "this script can't be read again: write it to a file"
    state_of_host "$folder/script" "$folder/before"
    apply "$1"
    code=$?
    [ "$code" -eq 0 ] && return 0
    state_of_host "$folder/script" "$folder/after"
    if same "$folder/before" "$folder/after"; then
        fail "a command failed (code $code), and nothing was changed."
    fi
    take_back "$1" > /dev/null 2>&1
    state_of_host "$folder/script" "$folder/after"
    if same "$folder/before" "$folder/after"; then
        fail "a command failed (code $code); what was done is undone, and the host is as it was before."
    fi
    fail "a command failed (code $code); what was done is undone, but it can't be shown that all is as before:
$(difference "$folder/before" "$folder/after")"
}

# What is not the same, without what would move a terminal's cursor.
difference() {
    diff "$1" "$2" 2> /dev/null | head -n 20 | tr -d '\001-\010\013-\037\177'
}

# The text of this script: of the file, or of the argument of `sh -c`.
print_self() {
    if [ -f "$0" ]; then
        cat -- "$0"
    else
        tr '\0' '\n' < "/proc/$$/cmdline" | sed -n '/^#!\/bin\/sh$/,$p'
    fi
}

# --- try: two processes. The watchdog owns the change and needs no terminal; the other one talks.

# A folder that only root can write to or look into.
prepare_base() {
    [ "$(id -u)" = 0 ] || fail "this needs root: sudo sh $0 …"
    # shellcheck disable=SC2046
    set -- $(ls -ldn -- "${base%/*}/." 2> /dev/null)
    case "${1:-} ${3:-}" in
    d????-??-*" 0") ;;
    *) fail "${base%/*} is not a folder that only root can write to: nothing was changed." ;;
    esac
    (umask 077 && mkdir -- "$base") 2> /dev/null
    # shellcheck disable=SC2046
    set -- $(ls -ldn -- "$base" 2> /dev/null)
    case "${1:-} ${3:-}" in
    "drwx------ 0" | "drwx------. 0" | "drwx------+ 0") ;;
    *) fail "$base is not a folder of root's own: nothing was changed." ;;
    esac
}

watchdog_lives() {
    pid=$(cat "$pending/pid" 2> /dev/null) || return 1
    case $pid in
    '' | *[!0-9]*) return 1 ;;
    esac
    tr '\0' ' ' < "/proc/$pid/cmdline" 2> /dev/null | grep -qF "$pending/script _watch"
}

refuse_second() {
    if watchdog_lives; then
        fail "another piece is being tried: $(cat "$pending/title" 2> /dev/null). Nothing was changed; see: sh $0 status"
    fi
    # It may be about to begin.
    [ -f "$pending/script" ] || sleep 2
    if watchdog_lives; then
        fail "another piece is being tried. Nothing was changed; see: sh $0 status"
    fi
    fail "an earlier try was killed before it ended. Nothing was changed; take it back first: sh $0 rollback"
}

try() {
    [ -f "$0" ] || fail "to try it, write this script to a file first"
    prepare_base
    # Whoever makes it owns it.
    (umask 077 && mkdir -- "$pending") 2> /dev/null || refuse_second
    umask 077
    title "$1" > "$pending/title"
    : > "$pending/log"
    ssh_connection > "$pending/ssh"
    cat -- "$0" > "$pending/script.part" && mv -- "$pending/script.part" "$pending/script" || {
        rm -rf -- "$pending"
        fail "$pending can't be written: nothing was changed."
    }
    rm -f -- "$base/last"
    # Ignored signals stay ignored; a session of its own has no terminal that could be cut off.
    (
        trap '' HUP INT QUIT PIPE TSTP TTIN TTOU
        if command -v setsid > /dev/null 2>&1; then
            exec setsid sh "$pending/script" _watch "$1"
        fi
        exec nohup sh "$pending/script" _watch "$1"
    ) < /dev/null >> "$pending/log" 2>&1 &
    talk
}

# Shows what the watchdog says, and hands on what is typed. It may be killed at any time.
talk() {
    trap 'refuse' INT TERM
    [ -e "/proc/$$/fd/0" ] || exec < /dev/null
    exec 3<&0
    (
        trap - INT TERM HUP
        if read -r answer <&3 && [ -d "/proc/$$" ]; then
            case $answer in
            yes | y | YES | Yes) : > "$pending/confirm" ;;
            *) : > "$pending/refuse" ;;
            esac
        fi
    ) 2> /dev/null &
    reader=$!
    shown=0
    gone=0
    while [ ! -f "$base/last" ]; do
        show_log
        # Only as a reserve: the watchdog was killed, and nobody else takes it back.
        if watchdog_lives; then gone=0; else gone=$((gone + 1)); fi
        if [ "$gone" -gt 5 ] && [ ! -f "$base/last" ]; then
            say "the watchdog is gone; taking it back here."
            rollback
            break
        fi
        sleep 1
    done
    kill "$reader" 2> /dev/null
    exec 3<&-
    end_of_try
}

refuse() {
    : > "$pending/refuse"
} 2> /dev/null

show_log() {
    lines=$(wc -l < "$pending/log" 2> /dev/null) || return 0
    [ "$lines" -gt "$shown" ] && sed -n "$((shown + 1)),${lines}p" "$pending/log" 2> /dev/null
    shown=$lines
}

# What the host is like now, in the watchdog's words.
end_of_try() {
    say
    tail -n +2 "$base/last" 2> /dev/null
    case $(head -n 1 "$base/last" 2> /dev/null) in
    applied | unchanged) exit 0 ;;
    *) exit 1 ;;
    esac
}

confirm() {
    prepare_base
    watchdog_lives || fail "nothing is being tried. $(tail -n +2 "$base/last" 2> /dev/null)"
    : > "$pending/confirm"
    waited=0
    while [ ! -f "$base/last" ] && [ "$waited" -lt 30 ]; do
        sleep 1
        waited=$((waited + 1))
    done
    end_of_try
}

status() {
    prepare_base
    if watchdog_lives; then
        say "being tried: $(cat "$pending/title")"
        cat "$pending/log"
    elif [ -d "$pending" ]; then
        say "a try was killed before it ended: sh $0 rollback takes it back"
    elif [ -f "$base/last" ]; then
        tail -n +2 "$base/last"
    else
        say "nothing was tried since the last boot"
    fi
}

# For a try whose watchdog was killed.
rollback() {
    prepare_base
    [ -d "$pending" ] || fail "there is nothing to take back."
    watchdog_lives && fail "its watchdog is at work: see sh $0 status"
    mkdir -- "$pending/rollback" 2> /dev/null || fail "somebody else is taking it back."
    if [ ! -f "$pending/stage" ]; then
        finish unchanged "it was killed before anything was changed."
    else
        piece=$(cat "$pending/piece" 2> /dev/null)
        # As it was when it was tried: this file may be another one by now.
        sh "$pending/script" _undo "$piece" > /dev/null 2>&1
        compare "it was killed"
    fi
}

# --- The watchdog.

watch() {
    trap '' HUP INT QUIT PIPE TSTP TTIN TTOU
    trap 'told_to_end' TERM
    umask 077
    piece=$1
    self=$pending/script
    printf '%s\n' "$piece" > "$pending/piece"
    printf '%s\n' "$$" > "$pending/pid"
    ssh=$(cat "$pending/ssh")
    say "looking at the host as it is …"
    state_of_host "$self" "$pending/before"
    enter sh "$self" _connections > "$pending/connections" 2> /dev/null
    start_counting
    losses_before=$(losses 5)
    say "applying: $(cat "$pending/title")"
    # From here on it has to be taken back, whatever happens.
    printf 'applied\n' > "$pending/stage"
    if command -v setsid > /dev/null 2>&1; then
        setsid sh "$self" _apply "$piece" &
    else
        sh "$self" _apply "$piece" &
    fi
    applying=$!
    waited=0
    while [ ! -f "$pending/code" ] && [ "$waited" -lt "$slow" ]; do
        sleep 1
        waited=$((waited + 1))
    done
    code=$(cat "$pending/code" 2> /dev/null || echo none)
    case $code in
    0) ;;
    none)
        # With all that it started: none of it may come after the undo.
        kill -s KILL -- "-$applying" 2> /dev/null || kill -s KILL "$applying" 2> /dev/null
        undo_and_finish "its commands did not end within $slow s"
        ;;
    *) undo_and_finish "a command failed (code $code)" ;;
    esac
    counted > "$pending/last_counted"
    state_of_host "$self" "$pending/applied"
    if same "$pending/before" "$pending/applied"; then
        finish unchanged "nothing changed: it had been applied already, and stays."
    fi
    say "applied. Type yes and Enter to keep it, or run this script with \`confirm\` from another terminal."
    say "Otherwise it is taken back in $patience s; anything else typed takes it back at once."
    case $(cat "$pending/title") in
    *"exempt "*" from tracking"*)
        say "Taking it back may cut connections that are open then: conntrack has missed what they sent meanwhile."
        ;;
    esac
    observe
    undo_and_finish "it was not confirmed within $patience s"
}

# The commands, apart, so that they can be killed; their code is there whole or not at all.
applies() {
    apply "$1"
    printf '%s\n' "$?" > "$pending/code.part"
    mv -f -- "$pending/code.part" "$pending/code"
}

told_to_end() {
    trap '' TERM
    [ -f "$pending/stage" ] || finish unchanged "it was told to end before anything was changed."
    undo_and_finish "its watchdog was told to end"
}

# Once a second: an answer, and whether this host can still be reached; now and then a line of figures.
observe() {
    waited=0
    still=0
    last_queue=0
    while [ "$waited" -lt "$patience" ]; do
        if [ -f "$pending/confirm" ]; then
            finish applied "applied and confirmed: it stays until the next reboot (\`keep\` makes it persistent, \`undo\` takes it back)."
        fi
        [ -f "$pending/refuse" ] && undo_and_finish "it was not confirmed"
        # Bytes that wait and get no fewer, second after second. (Retransmissions tell less: what a rule drops on the way
        # out counts as none, tcp_retransmit_timer in net/ipv4/tcp_timer.c.)
        queue=$(ssh_queue)
        case $queue in
        none | 0)
            still=0
            last_queue=0
            ;;
        gone) undo_and_finish "your SSH connection is gone" ;;
        *)
            if [ "$queue" -ge "$last_queue" ]; then still=$((still + 1)); else still=0; fi
            last_queue=$queue
            ;;
        esac
        [ "$still" -ge "$stuck" ] && undo_and_finish "your SSH connection does not move any more"
        # This line goes to the terminal, so that something has to be acknowledged.
        [ "$((waited % 5))" -eq 4 ] && say "$((waited + 1)) s: $(figures)"
        sleep 1
        waited=$((waited + 1))
    done
}

# How the SSH connection is, in words.
ssh_words() {
    case $queue in
    none) echo "none (you don't come over it)" ;;
    *) if [ "$still" -lt 3 ]; then echo moving; else echo "nothing acknowledged for $still s"; fi ;;
    esac
}

undo_and_finish() {
    say "taking it back: $1."
    take_back "$piece"
    compare "$1"
    exit 0
}

# Says whether the host is as before.
compare() {
    state_of_host "$pending/script" "$pending/after"
    if same "$pending/before" "$pending/after"; then
        finish taken_back "taken back, since $1: rules and settings are as they were before."
    else
        # Others may change rules meanwhile, too.
        finish differs "taken back, since $1; but it can't be shown that rules and settings are what they were before:
$(difference "$pending/before" "$pending/after")"
    fi
}

# The last word, in a file that is there whole or not at all.
finish() {
    stop_counting
    if printf '%s\n%s\n' "$1" "$2" > "$base/last.part"; then mv -f -- "$base/last.part" "$base/last"; fi
    command -v logger > /dev/null 2>&1 && logger -t ctwatch-advice "$(cat "$pending/title" 2> /dev/null): $2" 2> /dev/null
    say "$2"
    rm -rf -- "$pending"
    case $0 in
    "$pending/script") exit 0 ;;
    esac
}

# --- Figures.

# Packets refused for want of room, as ctwatch counts them.
start_counting() {
    counting=
    command -v ctwatch > /dev/null 2>&1 || return 0
    # Its own number: what is started here is a shell, which goes without it.
    # shellcheck disable=SC2016
    enter sh -c 'printf "%s\n" "$$" > "$1/counting"; exec ctwatch drops --format json --interval 1s --duration "$2"' \
        sh "$pending" "$((patience + slow + 60))s" < /dev/null > "$pending/drops" 2> /dev/null &
    counting=$!
    waited=0
    while [ ! -s "$pending/drops" ] && [ "$waited" -lt 15 ]; do
        sleep 1
        waited=$((waited + 1))
    done
}

stop_counting() {
    counting=
    # Whoever takes it back may not be who started it; the number may be somebody else's by now.
    counter=$(cat "$pending/counting" 2> /dev/null) || return 0
    [ "$(cat "/proc/$counter/comm" 2> /dev/null)" = ctwatch ] && kill "$counter" 2> /dev/null
    return 0
}

# Their number since counting began; nothing where nobody counts.
counted() {
    sed -n 's/^{"type":"tick".*"counted":{[^}]*"table_full":\([0-9]*\).*/\1/p' "$pending/drops" 2> /dev/null | tail -n 1
}

# Within so many seconds.
losses() {
    [ -n "$counting" ] || {
        echo unknown
        return 0
    }
    from=$(counted)
    sleep "$1"
    to=$(counted)
    case $from$to in
    '' | *[!0-9]*) echo unknown ;;
    *) echo "$((to - ${from:-0}))" ;;
    esac
}

figures() {
    now_counted=$(counted)
    if [ "$losses_before" = unknown ] || [ -z "$now_counted" ]; then
        refused="losses unknown (no ctwatch on PATH, or it can't watch here)"
    else
        last_counted=$(cat "$pending/last_counted" 2> /dev/null)
        last_counted=${last_counted:-$now_counted}
        refused="$((now_counted - last_counted)) packets refused in 5 s ($losses_before in the 5 s before)"
        printf '%s\n' "$now_counted" > "$pending/last_counted"
    fi
    enter sh "$pending/script" _connections > "$pending/connections.now" 2> /dev/null
    alive=$(grep -cxF -f "$pending/connections.now" "$pending/connections" 2> /dev/null)
    say "$refused; ${alive:-0} of $(($(wc -l < "$pending/connections"))) TCP connections from before are open; SSH: $(ssh_words)"
}

# Established TCP connections that end on this host: addresses and ports as the kernel prints them.
connections() {
    cat /proc/self/net/tcp /proc/self/net/tcp6 2> /dev/null | sed -n 's/^ *[0-9]*: \([0-9A-F:]* [0-9A-F:]*\) 01 .*/\1/p' | sort -u
}

# Where whoever started this comes from: SSH_CONNECTION, which sudo takes away and the shells above still have.
ssh_connection() {
    found=${SSH_CONNECTION:-}
    pid=$$
    while [ -z "$found" ] && [ "${pid:-0}" -gt 1 ]; do
        found=$(tr '\0' '\n' < "/proc/$pid/environ" 2> /dev/null | sed -n 's/^SSH_CONNECTION=//p' | head -n 1)
        pid=$(sed -n 's/^PPid:[^0-9]*//p' "/proc/$pid/status" 2> /dev/null)
    done
    # CLIENT PORT SERVER PORT: only the ports are used, and only if they are numbers.
    # shellcheck disable=SC2086
    set -f && set -- $found && set +f
    case "${2:-}:${4:-}" in
    :* | *: | *[!0-9:]*) ;;
    *) [ "$2" -le 65535 ] && [ "$4" -le 65535 ] && printf ':%04X :%04X\n' "$4" "$2" ;;
    esac
}

# What that connection waits to have acknowledged, bytes (tx_queue, get_tcp4_sock in net/ipv4/tcp_ipv4.c).
ssh_queue() {
    [ -n "$ssh" ] || {
        echo none
        return 0
    }
    line=$(sed -n "s/^ *[0-9]*: [0-9A-F]*${ssh%% *} [0-9A-F]*${ssh##* } \([0-9A-F]*\) \([0-9A-F]*\):.*/\1 \2/p" \
        /proc/self/net/tcp /proc/self/net/tcp6 2> /dev/null | head -n 1)
    case $line in
    '01 '*) echo $((0x${line#01 })) ;;
    *) echo gone ;;
    esac
}

case "${1:-}" in
try | now | keep | undo)
    piece=$(pick "${2:-}") || usage
    case $1 in
    try)
        has_commands "$piece" || fail "nothing to apply: it is refused, or set by hand (see the comments in this script)"
        try "$piece"
        ;;
    now) if has_commands "$piece"; then apply_or_undo "$piece"; else say "nothing to apply: it is refused, or set by hand"; fi ;;
    keep) (
        set -e
        "keep_$piece"
    ) ;;
    undo) "undo_$piece" ;;
    esac
    ;;
confirm | status | rollback) "$1" ;;
_watch) watch "$2" ;;
_apply) applies "$2" ;;
_undo) take_back "$2" ;;
_snapshot | _connections) "${1#_}" ;;
*) usage ;;
esac
exit
