# First process, in the real root: runs the command, hands out its output and status through virtio ports.
b=/bin/busybox
export PATH=/ctw:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
$b ln -sf /proc/self/fd /dev/fd; $b ln -sf /proc/self/fd/0 /dev/stdin
$b ln -sf /proc/self/fd/1 /dev/stdout; $b ln -sf /proc/self/fd/2 /dev/stderr
$b hostname guest
$b ip link set lo up
port() { for p in /sys/class/virtio-ports/*; do read -r name < "$p/name"; [ "$name" = "$1" ] && echo "/dev/${p##*/}"; done; }
exec 9> "$(port ctw.control)"
# Pipes in between: a port can be opened once only, /dev/stdout any number of times.
$b mkfifo /run/.out /run/.err
$b cat /run/.out > "$(port ctw.out)" & out=$!
$b cat /run/.err > "$(port ctw.err)" & err=$!
if [ -e /ctw/.nf_conntrack.ko ]; then
  $b mount --bind /ctw/.nf_conntrack.ko "/lib/modules/$($b uname -r)/kernel/net/netfilter/nf_conntrack.ko" || exit
fi
cd /root
echo ready >&9
(exec 9>&-; exec /bin/bash /ctw/.command) > /run/.out 2> /run/.err < /dev/null
status=$?
if [ -e /ctw/.shell ]; then
  # What the command said comes first.
  n=0
  while $b readlink /proc/$out/exe > /dev/null && [ $n -lt 50 ]; do n=$((n + 1)); $b sleep 0.1; done
  . /ctw/.shell
  echo shell >&9
  (exec 9>&-; exec $b setsid -c /bin/bash --noprofile --norc -i < /dev/ttyS0 > /dev/ttyS0 2>&1)
fi
# Daemons that the command left behind would keep the pipes open.
for p in /proc/[0-9]*; do
  pid=${p#/proc/}
  case $pid in 1|$$|$out|$err) continue ;; esac
  [ -e "$p/exe" ] && $b readlink "$p/exe" > /dev/null && kill -9 "$pid"
done 2> /dev/null
wait $out $err
if [ -n "$($b ls -A /out)" ]; then tar -C /out -cf - . > "$(port ctw.files)"; fi
echo "exit $status" >&9
$b sleep 5
$b poweroff -f
