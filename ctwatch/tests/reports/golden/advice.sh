#!/bin/sh
# By ctwatch 0.1.0, 2026-03-14T12:03:04Z, for host on 6.12.117.
# sh FILE now    try it until the next reboot
# sh FILE keep   keep it over reboots (after `now`)
# sh FILE undo   put back what was there when it was written
set -u

# reuse-6379-tcp-lo: keep connections open from nginx+lua to redis on 6379/tcp
#   why: 832.0 new connections/s to 6379/tcp/lo, 100 % of its entries are closed ones; they need 48 % of the table
#   risk, low: a connection that the other side has closed meanwhile fails at its next use: pools must test or retry
#   then: 39299 entries of 65536, 47287 before gc comes by
#   reckoned with 100 requests a connection; `--what-if keepalive=6379/tcp/lo:N` tries others
#   keep the connections from nginx+lua to redis open
#   no command can do this; set it by hand:
#     red:set_keepalive(10000, 100) instead of red:close()

# max: raise nf_conntrack_max from 65536 to 262144, buckets to match
#   why: at the present demand the table needs 73484 entries on average and 88448 before gc comes by; it has 65536
#   risk, low: memory the kernel holds while entries last; changing buckets stops all tracking while it rehashes
#   then: 73484 entries of 262144, 88448 before gc comes by
#   full, the table takes 98 MiB of memory at most, 384 bytes an entry

now() {
    set -e
    echo 262144 > /sys/module/nf_conntrack/parameters/hashsize
    sysctl -w net.netfilter.nf_conntrack_max=262144
}

keep() {
    set -e
    mkdir -p /etc/modprobe.d
    echo options nf_conntrack hashsize=262144 > /etc/modprobe.d/99-ctwatch.conf
    mkdir -p /etc/sysctl.d
    echo 'net.netfilter.nf_conntrack_max = 262144' > /etc/sysctl.d/99-ctwatch-max.conf
    mkdir -p /etc/modules-load.d
    echo nf_conntrack > /etc/modules-load.d/ctwatch-max.conf
}

undo() {
    :
    sysctl -w net.netfilter.nf_conntrack_max=65536
    rm -f /etc/sysctl.d/99-ctwatch-max.conf
    rm -f /etc/modules-load.d/ctwatch-max.conf
    echo 65536 > /sys/module/nf_conntrack/parameters/hashsize
    rm -f /etc/modprobe.d/99-ctwatch.conf
}

case "${1:-}" in
now | keep | undo) "$1" ;;
*)
    echo "usage: sh $0 now|keep|undo" >&2
    exit 2
    ;;
esac
