"""What runs inside the built-in guest: a few shell scripts for busybox.

Everything of the guest's own lies under `HOME`, so that a share can be mounted on /usr, /bin, /etc or /lib
without taking the ground from under the shell. `/bin/sh` and `/usr/bin/env` are links that scripts expect.

Lines on the console that programs rely on:

- `vfsd: share not mounted: …`, for each one
- `vfsd built-in guest, Linux VERSION; shares: …`, once all shares are mounted
- `vfsd: command exited N`, after the command of `vfsd.exec=`; on its last line, if that has no newline
- `vfsd: power button`, when that was pressed

busybox's shell sets the limits here. Process 1 runs the console's shell in the foreground, because a command
that ash runs in the background has SIGINT ignored for ever, and the user's Ctrl-C would be lost. So while the
shell runs, whoever notices the power button stops the machine by itself: `STOP` needs nothing of process 1.
A command costs about 10 ms on TCG (fork and exec), which is why there are few of them before the prompt.
"""

from __future__ import annotations

HOME = ".vfsd"
"""The guest's own folder, relative to its root."""

# DECODE turns a value of the kernel command line back into the bytes that it stands for, in $decoded. Without
# the dot, the command substitution would eat newlines at the end.
DECODE = r"""
decode() {
	decoded=$1
	case $1 in *%*)
		decoded=$(printf '%b.' "${1//%/\\x}")
		decoded=${decoded%.}
	esac
}
"""

INIT = (
    r"""#!/.vfsd/bin/busybox sh
export PATH=/.vfsd/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root TERM=linux LANG=C.UTF-8 ENV=/.vfsd/profile
/.vfsd/bin/busybox mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
echo guest >/proc/sys/kernel/hostname
trap '/.vfsd/stop poweroff' USR1 USR2
trap '/.vfsd/stop reboot' TERM
"""
    + DECODE
    + r"""
load() {
	for module in /.vfsd/modules/"$1"/*.ko; do
		[ -e "$module" ] && insmod "$module" 2>/dev/null
	done
}

share() { # TAG[:MOUNT POINT[:OPTIONS]]
	IFS=:
	set -- $1
	IFS=$blanks
	decode "$1"
	tag=$decoded
	decode "${2:-/mnt/$1}"
	point=$decoded
	decode "${3:-rw}"
	# What would garble the line is shown as it was encoded
	line="$tag on $point"
	case $1$2 in *%0*|*%1*|*%7[Ff]*) line="$1 on ${2:-/mnt/$1}"; esac
	[ -d "$point" ] || mkdir -p "$point"
	if mount -t virtiofs -o "$decoded" "$tag" "$point"; then
		case ,$decoded, in *,ro,*) line="$line (read-only)"; esac
		shares="$shares${shares:+, }$line"
	else
		echo "vfsd: share not mounted: $line"
	fi
}

power_button() {
	load button
	found=
	for name in /sys/class/input/event*/device/name; do
		[ -e "$name" ] && read -r device <"$name" || continue
		case $device in 'Power Button'|gpio-keys) ;; *) continue; esac
		event=${name%/device/name}
		found=yes
		# Such a device has one key, so whatever it says is that key
		(
			dd if=/dev/input/"${event##*/}" of=/dev/null bs=24 count=1 2>/dev/null || exit
			echo 'vfsd: power button' >/dev/console
			exec /.vfsd/stop poweroff
		) &
	done
	[ "$found" ] || echo 'vfsd: this kernel has no power button; power off from inside' >/dev/console
}

network() {
	ip link set lo up
	found=
	for device in /sys/bus/virtio/devices/*/device; do
		# 1 is a network card (virtio specification 1.2, section 5)
		read -r kind <"$device" && case $kind in 0x0001) found=yes; esac
	done
	[ "$found" ] && load network
	for interface in /sys/class/net/*; do
		interface=${interface##*/}
		[ "$interface" = lo ] && continue
		ip link set "$interface" up
		udhcpc -f -i "$interface" -t 5 -T 1 -s /.vfsd/udhcpc &
	done
} >/dev/null 2>&1

blanks=$IFS shares= command= has_command=
load shares
read -r line </proc/cmdline
set -f
for word in $line; do
	case $word in
	vfsd.mount=*) share "${word#*=}" ;;
	vfsd.exec=*) decode "${word#*=}"; command=$decoded has_command=yes ;;
	esac
done
set +f
(
	load panic
	load agent
	setsid /.vfsd/agent &
	power_button
	mkdir -p /dev/pts
	mount -t devpts devpts /dev/pts
	network
) &
read -r release </proc/sys/kernel/osrelease
echo "vfsd built-in guest, Linux $release; shares: ${shares:-none}"
cd /root
if [ "$has_command" ]; then
	setsid cttyhack sh -c "$command"
	code=$?
	# A command that was ended for the sake of powering off did not exit
	[ -d /.vfsd/stopping ] || echo "vfsd: command exited $code"
else
	setsid cttyhack sh
fi
/.vfsd/stop poweroff
while :; do sleep 3600; done
"""
)

# A share that is in use can't be unmounted: only then are processes ended. A share whose virtiofsd died hangs
# whoever touches it, unkillably, so a watchdog ends the machine without a further sync, which would hang too.
STOP = r"""#!/.vfsd/bin/busybox sh
how=$1
trap '' HUP INT QUIT TERM
cd /
mkdir /.vfsd/stopping 2>/dev/null || while :; do sleep 3600; done
watchdog() { (sleep 60; exec "$how" -n -f) & }
watchdog
if ! umount -a -t virtiofs 2>/dev/null; then
	kill -TERM -1
	sleep 0.3
	kill -KILL -1
	watchdog
	sleep 0.1
	umount -a -t virtiofs 2>/dev/null || umount -a -r -l -t virtiofs 2>/dev/null
fi
exec "$how" -f
"""

# Functions, because busybox's shell may prefer its own applets, which would only signal process 1
PROFILE = r"""
PS1='guest:\w# '
poweroff() { /.vfsd/stop poweroff; }
halt() { /.vfsd/stop poweroff; }
reboot() { /.vfsd/stop reboot; }
"""

UDHCPC = r"""#!/.vfsd/bin/busybox sh
case $1 in
bound|renew)
	ip addr flush dev "$interface"
	ip addr add "$ip/${mask:-24}" dev "$interface"
	for gateway in $router; do ip route add default via "$gateway" dev "$interface"; break; done
	for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf
	;;
esac
"""
