#!/bin/sh
# keeper.sh LAB BASE PROJECT MACHINE: mounts a lab and boots it.
#
# Runs as PID 1 of a pid namespace and in a private mount namespace: when it ends, however it ends,
# the kernel kills everything that it started and forgets everything that it mounted.
# Nothing below names a path of the host in an option: such a path may hold spaces, colons, commas.
set -eu
lab=$1 base=$2 project=$3 machine=$4

mount -t tmpfs -o size=8G,mode=0755 vfsd-lab "$lab/mnt"
cd "$lab/mnt"
mkdir lower project upper work root dev
mount --bind "$base" lower
mount -o remount,bind,ro lower
mount --rbind "$project" project
mount -t overlay -o "lowerdir=$lab/mnt/lower,upperdir=$lab/mnt/upper,workdir=$lab/mnt/work" \
    overlay root

# nspawn keeps its book-keeping here; in a tmpfs of our own it leaves none behind.
mkdir -p /run/systemd/nspawn
mount -t tmpfs -o mode=0755 vfsd-lab /run/systemd/nspawn

# Device nodes of the lab's own: it may change their mode and owner without touching the host's.
binds=
for device in fuse kvm net/tun vhost-vsock; do
    [ -c "/dev/$device" ] || continue
    node=dev/$(basename "$device")
    mknod -m 0666 "$node" c $(stat -c '0x%t 0x%T' "/dev/$device")
    binds="$binds --bind=$lab/mnt/$node:/dev/$device"
done

# - Without a systemd as the host's PID 1 there is no machined to register with, and none to make a
#   unit. With one, the warden has made a scope of our own, which is what --keep-unit asks for.
# - The filter forbids what virtiofsd's --inode-file-handles needs, and what systemd needs to enforce
#   DeviceAllow= and IPAddressDeny= (bpf): without it, a sandbox that is wrong would pass its test.
# - The tree as it was built, before a lab changed anything, is the root of guests in tests.
# - Of /tmp nspawn would make a tmpfs with a tenth of the memory: too small for guests.
set -- --register=no --keep-unit --machine="$machine" --hostname=vfsd-lab --private-network \
    --resolv-conf=off --timezone=off --link-journal=no --console=read-only --capability=all \
    --system-call-filter="open_by_handle_at bpf @keyring" --tmpfs=/tmp:mode=1777,size=8G,nr_inodes=4m \
    --bind-ro="$lab/mnt/project:/usr/src/vfsd" --bind-ro="$lab/mnt/lower:/usr/share/vfsd-lab/tree" \
    $binds
export SYSTEMD_NSPAWN_TMPFS_TMP=0
# A machine of today has cgroup v2 only, so the lab shows that wherever the host has it at all.
if grep -q ' - cgroup2 ' /proc/self/mountinfo; then
    export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
fi
systemd-nspawn "$@" --directory="$lab/mnt/root" --boot </dev/null
