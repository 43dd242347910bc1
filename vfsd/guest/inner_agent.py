"""The built-in guest's own agent: the part of QEMU's guest agent protocol that vfsd uses, in shell and awk.

It serves one request at a time and runs commands beside it. Requests come as `vfsd.agent` writes them, one JSON object
on a line; awk takes the strings of one apart. While the host has not connected, a read of the port ends at once, so it
looks again twice a second.
"""

from __future__ import annotations

PARSE = r"""
# Prints the strings of a request as a shell's assignments: path, data, and the arguments as `set --`.
function quoted(text,  parts, count, n, made) {
	count = split(text, parts, "'")
	made = parts[1]
	for (n = 2; n <= count; n++) made = made "'\\''" parts[n]
	return "'" made "'"
}
function hex(text,  i, n) {
	n = 0
	for (i = 1; i <= length(text); i++) n = n * 16 + index("0123456789abcdef", tolower(substr(text, i, 1))) - 1
	return n
}
function utf8(n) {
	if (n < 128) return sprintf("%c", n)
	if (n < 2048) return sprintf("%c%c", 192 + int(n / 64), 128 + n % 64)
	return sprintf("%c%c%c", 224 + int(n / 4096), 128 + int(n / 64) % 64, 128 + n % 64)
}
{
	size = length($0); key = ""; text = ""; array = 0; words = "set --"; env = ""
	for (at = 1; at <= size; at++) {
		char = substr($0, at, 1)
		if (char == "[") array = 1
		else if (char == "]") array = 0
		else if (char == ":" && !array) key = text
		else if (char == "{" || (char == "," && !array)) key = ""
		else if (char == "\"") {
			text = ""
			for (at++; at <= size; at++) {
				char = substr($0, at, 1)
				if (char == "\"") break
				if (char != "\\") { text = text char; continue }
				at++
				char = substr($0, at, 1)
				if (char == "n") text = text "\n"
				else if (char == "t") text = text "\t"
				else if (char == "r") text = text "\r"
				else if (char == "b") text = text "\b"
				else if (char == "f") text = text "\f"
				else if (char == "u") { text = text utf8(hex(substr($0, at + 1, 4))); at += 4 }
				else text = text char
			}
			if (array && key == "arg") words = words " " quoted(text)
			else if (array && key == "env") env = env " " quoted(text)
			else if (key == "path") print "path=" quoted(text)
			else if (key == "input-data") print "data=" quoted(text)
		}
	}
	print words
	print "environment=" quoted(env)
}
"""

AGENT = r"""#!/.vfsd/bin/busybox sh
port=
for name in /sys/class/virtio-ports/*/name; do
	[ -e "$name" ] && read -r known <"$name" && [ "$known" = org.qemu.guest_agent.0 ] && port=${name%/name}
done
[ "$port" ] || exit
cd /
mkdir -p /.vfsd/run
exec 3<>"/dev/${port##*/}"
sentinel=$(printf '\377')
read -r release </proc/sys/kernel/osrelease
count=0 file=

answer() { echo "{\"return\": $1}" >&3; }

number() { # the number after a key
	rest=${line#*\"$1\": }
	rest=${rest%%[!0-9]*}
}

run() {
	path= data= environment=
	eval "$(printf '%s\n' "$line" | awk -f /.vfsd/parse)"
	eval "set -- $environment \"\$path\" \"\$@\""
	count=$((count + 1))
	job=/.vfsd/run/$count
	mkdir "$job"
	printf %s "$data" | base64 -d >"$job/in"
	(
		setsid env "$@" <"$job/in" >"$job/out" 2>"$job/err" 3>&-
		echo $? >"$job/code"
	) &
	answer "{\"pid\": $count}"
}

status() {
	number pid
	job=/.vfsd/run/$rest code=
	if [ ! -d "$job" ]; then
		echo '{"error": {"class": "GenericError", "desc": "there is no such command"}}' >&3
	elif read -r code <"$job/code" && [ "$code" ]; then
		out=$(base64 -w 0 <"$job/out") err=$(base64 -w 0 <"$job/err")
		answer "{\"exited\": true, \"exitcode\": $code, \"out-data\": \"$out\", \"err-data\": \"$err\"}"
		rm -r "$job"
	else
		answer '{"exited": false}'
	fi 2>/dev/null
}

while :; do
	read -r line <&3 || { sleep 0.5; continue; }
	line=${line##*$sentinel}
	command=${line#*\"execute\": \"}
	case ${command%%\"*} in
	guest-sync-delimited) number id; printf %s "$sentinel" >&3; answer "$rest" ;;
	guest-ping) answer '{}' ;;
	guest-get-osinfo) answer "{\"id\": \"vfsd\", \"pretty-name\": \"vfsd built-in guest, Linux $release\"}" ;;
	guest-exec) run ;;
	guest-exec-status) status ;;
	guest-file-open) eval "$(printf '%s\n' "$line" | awk -f /.vfsd/parse)"; file=$path; answer 1 ;;
	guest-file-read)
		content=$(head -c 262144 "$file" 2>/dev/null | base64 -w 0)
		answer "{\"count\": 1, \"buf-b64\": \"$content\", \"eof\": true}"
		;;
	guest-file-close) answer '{}' ;;
	guest-shutdown) setsid /.vfsd/stop poweroff 3>&- & ;;
	'') ;;
	*) echo '{"error": {"class": "CommandNotFound", "desc": "the built-in guest does not know it"}}' >&3 ;;
	esac
done 2>/dev/null
"""
