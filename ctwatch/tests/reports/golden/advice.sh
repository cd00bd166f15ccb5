#!/bin/sh
# Written by ctwatch 0.1.0 at 2026-03-14T12:03:04Z for host, Linux 6.12.117.
# sh FILE now    apply until the next reboot
# sh FILE keep   make it persistent (run `now` first)
# sh FILE undo   restore the settings found when this was written
set -u

# reuse-6379-tcp-lo: reuse connections from nginx+lua to redis on 6379/tcp
#   why: 832.0 new connections/s to 6379/tcp/lo; 100 % of its entries are closed connections; it accounts for 48 % of the entries needed
#   risk, low: a pooled connection that the peer has closed fails on its next use: pools must validate or retry
#   effect: 39,299 entries of 65,536, 47,286 just before garbage collection
#   assumes 100 requests per connection; try other numbers with `--what-if keepalive=6379/tcp/lo:N`
#   keep the connections from nginx+lua to redis open
#   cannot be scripted; set by hand:
#     red:set_keepalive(10000, 100) instead of red:close()

# max: raise nf_conntrack_max from 65536 to 262144, buckets to match
#   why: the present load needs 73,484 entries on average, 88,448 just before garbage collection; the limit is 65,536
#   risk, low: kernel memory while entries exist; changing the buckets stalls tracking during the rehash
#   effect: 73,484 entries of 262,144, 88,448 just before garbage collection
#   a full table takes at most 98 MiB of memory, 384 bytes per entry

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
