#!/busybox sh
# First process, in the boot archive: loads what the root needs, mounts it, moves there.
b=/busybox
fail() { echo "guest: $*" > /dev/console; exec $b sleep 2; }
$b mount -t devtmpfs dev /dev
for module in /boot/*.ko; do
  [ -e "$module" ] && { $b insmod "$module" || fail "insmod $module"; }
done
new=/new
$b mount -t tmpfs -o size=75%,mode=755 work /new && $b mkdir /new/lower /new/upper /new/work /new/root
$b mount -t erofs -o ro /dev/vda /new/lower || fail "no root filesystem"
$b mount -t overlay -o lowerdir=/new/lower,upperdir=/new/upper,workdir=/new/work root /new/root || fail "no overlay"
root=/new/root
$b mkdir -p "$root/lib/modules/$CTW_RELEASE"
$b mount -t erofs -o ro /dev/vdb "$root/lib/modules/$CTW_RELEASE" || fail "no modules"
$b mount -t proc proc $root/proc
$b mount -t sysfs sys $root/sys
$b mount -t tracefs trace $root/sys/kernel/tracing
$b mount -t debugfs debug $root/sys/kernel/debug
$b mount -t bpf bpf $root/sys/fs/bpf
$b mount -t cgroup2 cgroup $root/sys/fs/cgroup
$b mount --move /dev $root/dev
$b mkdir -p $root/dev/pts $root/dev/shm
$b mount -t devpts pts $root/dev/pts
$b mount -t tmpfs shm $root/dev/shm
$b mount -t tmpfs -o mode=755 run $root/run
$b mount -t tmpfs -o mode=1777 tmp $root/tmp
$b cp -a /files/. $root/
exec $b switch_root $root /bin/busybox sh /ctw/.init
