# The leader of a machine, as systemd-machined calls the process that it sends signals to:
#
#   leader.sh UNIT MANAGER FIFO SIGNAL COMMAND…
#
# UNIT: the machine's. MANAGER: whose unit it is, --system or --user. FIFO: one that nobody writes to.
# SIGNAL: that of `machinectl poweroff`. COMMAND: for SIGINT, that of `machinectl reboot`.
#
# QEMU itself can't be the leader: it would end at these signals. And the shell that becomes QEMU can't start the leader,
# which would inherit QEMU's sockets: a POSIX shell can't close those from 10 on, and virtiofsd would not see that
# QEMU is gone. So ExecStartPost= of the unit does, and systemd ends it with QEMU.
#
# To power off is to stop the unit, which asks the guest first, while vfsd is down too.

unit=$1 manager=$2 fifo=$3 power_off=$4
shift 4
test -p "$fifo" || exit 1
trap 'systemctl "$manager" --no-block stop "$unit"' "$power_off"
trap '"$@"' INT
# a trap runs at once in a shell that reads, but only at the end of a program that it waits for
exec <>"$fifo"
while :; do read -r _; done
