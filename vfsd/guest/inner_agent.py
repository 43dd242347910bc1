"""The agent of the built-in guest: QEMU's guest agent protocol, as far as vfsd uses it, in busybox's awk and shell.

awk reads the requests from the port, takes the JSON apart and writes one line of shell for each; a shell that runs
all of them, one after the other, answers on the port. So a request costs no process, unless it runs one: on TCG each
costs 10 ms. All of it lives in the guest's own folder and in `/`, so no share is kept busy.

While nobody is connected on the host, a read of the port ends at once (drivers/char/virtio_console.c), and the two
are started again half a second later.
"""

from __future__ import annotations

AGENT = r"""#!/.vfsd/bin/busybox sh
# Serves the port org.qemu.guest_agent.0
work=/.vfsd/work
cd /
exec </dev/null >/dev/null 2>&1

find_port() {
	for name in /sys/class/virtio-ports/*/name; do
		[ -e "$name" ] && read -r what <"$name" && [ "$what" = org.qemu.guest_agent.0 ] || continue
		name=${name%/name}
		port=/dev/${name##*/}
		return
	done
	return 1
}

tries=20
until find_port; do
	[ $((tries -= 1)) -gt 0 ] || exit
	sleep 0.2
done
mkdir -p "$work"
exec 3<>"$port" || exit
while :; do
	read -r uptime _ </proc/uptime
	awk -v last="${uptime%.*}${uptime#*.}0" -v work="$work" -f /.vfsd/agent.awk <&3 3>&- | sh >&3 3>&-
	sleep 0.5
done
"""

SHELL = r"""
work=/.vfsd/work

answer() { printf '{"return": %s%s}\n' "$1" "$id"; }

refuse() { printf '{"error": {"class": "%s", "desc": "%s"}%s}\n' "$1" "$2" "$id"; }

system() {
	read -r release </proc/sys/kernel/osrelease
	name='"id": "vfsd", "name": "vfsd built-in guest", "kernel-release": "'$release'"'
	answer "{$name, \"pretty-name\": \"vfsd built-in guest, Linux $release\"}"
}

run() { # NUMBER PROGRAM COMMAND, which runs the program
	file=$work/$1 program=$2
	shift 2
	if ! command -v "$program" >/dev/null; then
		rm -f "$file".*
		refuse GenericError 'Failed to execute child process: there is no such program'
		return
	fi
	: >"$file.out" >"$file.err"
	if [ -e "$file.b64" ]; then
		base64 -d "$file.b64" >"$file.in"
		rm -f "$file.b64"
		input=$file.in
	else
		input=/dev/null
	fi
	{
		(exec setsid "$@" <"$input" >"$file.out" 2>"$file.err")
		echo $? >"$file.end"
	} </dev/null >/dev/null 2>&1 &
	answer "{\"pid\": ${file##*/}}"
}

status() { # NUMBER
	file=$work/$1
	if [ -e "$file.end" ] && read -r code <"$file.end"; then
		printf '{"return": {"exited": true, "exitcode": %s' "$code"
		encoded out-data "$file.out"
		encoded err-data "$file.err"
		printf '}%s}\n' "$id"
		rm -f "$file".*
	elif [ -e "$file.out" ]; then
		answer '{"exited": false}'
	else
		refuse GenericError "PID $1 does not exist"
	fi
}

encoded() { # KEY FILE
	[ -s "$2" ] || return
	printf ', "%s": "' "$1"
	base64 "$2" | tr -d '\n'
	printf '"'
}

open() { # NUMBER FILE
	if cat "$2" >"$work/$1.file" 2>/dev/null; then
		echo 0 >"$work/$1.at"
		answer "$1"
	else
		rm -f "$work/$1".*
		refuse GenericError "The file can't be read"
	fi
}

read_on() { # NUMBER COUNT
	file=$work/$1
	read -r at 2>/dev/null <"$file.at" || { refuse GenericError "Invalid handle $1"; return; }
	dd if="$file.file" of="$file.part" iflag=skip_bytes skip="$at" bs="$2" count=1
	size=$(wc -c <"$file.part")
	echo $((at + size)) >"$file.at"
	[ "$size" -lt "$2" ] && end=true || end=false
	printf '{"return": {"count": %s, "eof": %s' "$size" $end
	encoded buf-b64 "$file.part"
	printf '}%s}\n' "$id"
}

shut() { # NUMBER
	[ -e "$work/$1.at" ] || { refuse GenericError "Invalid handle $1"; return; }
	rm -f "$work/$1".*
	answer '{}'
}

stop() { # HOW
	setsid /.vfsd/stop "$1" </dev/null >/dev/console 2>&1 &
}
"""

# Strings are what lies between quotes, so a megabyte of base64 is two pieces, and never looked at by character.
AWK = r"""
BEGIN {
	FS = "\n"
	backslash = "\\"
	quote = "\""
	sentinel = sprintf("%c", 255)
	known = "guest-sync-delimited guest-sync guest-ping guest-info guest-get-osinfo guest-exec guest-exec-status"
	known = known " guest-file-open guest-file-read guest-file-close guest-shutdown"
	say(". /.vfsd/agent.sh")
	while ((getline line) > 0)
		serve(line)
}

function serve(line,    start, name) {
	while ((start = index(line, sentinel)))
		line = substr(line, start + 1)
	if (line ~ /^[ \t\r]*$/)
		return
	count = at = 0
	split("", token)
	split("", value)
	split("", kind)
	split("", size)
	if (!tokens(line) || !parse("") || at != count || kind["/execute"] != "string") {
		say("id=; refuse GenericError 'Invalid JSON syntax'")
		return
	}
	id = kind["/id"] == "plain" ? ", \"id\": " value["/id"] : ""
	say("id=" quoted(id))
	name = value["/execute"]
	if (name == "guest-sync-delimited")
		say("printf '\\377'; answer " number("id"))
	else if (name == "guest-sync")
		say("answer " number("id"))
	else if (name == "guest-ping")
		say("answer '{}'")
	else if (name == "guest-info")
		info()
	else if (name == "guest-get-osinfo")
		say("system")
	else if (name == "guest-exec")
		run()
	else if (name == "guest-exec-status")
		say("status " number("pid"))
	else if (name == "guest-file-open")
		open()
	else if (name == "guest-file-read")
		say("read_on " number("handle") " " (number("count") ? number("count") : 4096))
	else if (name == "guest-file-close")
		say("shut " number("handle"))
	else if (name == "guest-shutdown")
		say("stop " (value["/arguments/mode"] == "reboot" ? "reboot" : "poweroff"))
	else
		say("refuse CommandNotFound 'The command is not known'")
}

function say(line) {
	print line
	fflush()
}

# Digits only, since the shell is to read it
function number(name) {
	name = value["/arguments/" name]
	return name ~ /^[0-9]+$/ ? name : 0
}

function quoted(text,    n, i, part) { # busybox versions differ in what gsub makes of backslashes
	n = split(text, part, "'")
	text = part[1]
	for (i = 2; i <= n; i++)
		text = text "'\\''" part[i]
	return "'" text "'"
}

function info(    n, i, name, list) {
	n = split(known, name, " ")
	for (i = 1; i <= n; i++)
		list = list (i > 1 ? ", " : "") "{\"enabled\": true, \"name\": \"" name[i] "\"}"
	say("answer '{\"version\": \"vfsd\", \"supported_commands\": [" list "]}'")
}

function run(    i, file, words, path) {
	path = value["/arguments/path"]
	if (kind["/arguments/path"] != "string" || path == "") {
		say("refuse GenericError 'path is missing'")
		return
	}
	last++
	words = quoted(path)
	for (i = 1; i <= size["/arguments/arg"]; i++)
		words = words " " quoted(value["/arguments/arg/" i])
	for (i = size["/arguments/env"]; i > 0; i--)
		words = quoted(value["/arguments/env/" i]) " " words
	if (size["/arguments/env"])
		words = "env -i " words
	if (value["/arguments/input-data"] != "") {
		file = work "/" last ".b64"
		print value["/arguments/input-data"] >file
		close(file)
	}
	say("run " last " " quoted(path) " " words)
}

function open() {
	if (value["/arguments/mode"] != "" && value["/arguments/mode"] != "r")
		say("refuse GenericError 'Files are only read here'")
	else
		say("open " ++last " " quoted(value["/arguments/path"]))
}

# Takes the text apart into token[1..count]; a string's begins with a quote
function tokens(text,    n, i, part, string) {
	n = split(text, part, quote)
	for (i = 1; i <= n; i++) {
		if (!marks(part[i]))
			return 0
		if (i == n)
			break
		string = quote
		while (++i < n && match(part[i], /\\+$/) && RLENGTH % 2)
			string = string part[i] quote
		if (i >= n)
			return 0
		token[++count] = string part[i]
	}
	return 1
}

function marks(text) {
	while (1) {
		sub(/^[ \t\r]+/, "", text)
		if (text == "")
			return 1
		if (!match(text, /^([][{}:,]|-?[0-9][0-9.eE+-]*|true|false|null)/))
			return 0
		token[++count] = substr(text, 1, RLENGTH)
		text = substr(text, RLENGTH + 1)
	}
}

function parse(path,    next_one, n) {
	next_one = token[++at]
	if (next_one == "{") {
		kind[path] = "object"
		if (token[at + 1] == "}")
			return ++at
		do {
			next_one = token[++at]
			if (substr(next_one, 1, 1) != quote || token[++at] != ":")
				return 0
			if (!parse(path "/" decoded(substr(next_one, 2))))
				return 0
			next_one = token[++at]
		} while (next_one == ",")
		return next_one == "}"
	}
	if (next_one == "[") {
		kind[path] = "array"
		if (token[at + 1] == "]")
			return ++at
		do {
			if (!parse(path "/" ++n))
				return 0
			next_one = token[++at]
		} while (next_one == ",")
		size[path] = n
		return next_one == "]"
	}
	if (substr(next_one, 1, 1) == quote) {
		kind[path] = "string"
		value[path] = decoded(substr(next_one, 2))
		return 1
	}
	kind[path] = "plain"
	value[path] = next_one
	return next_one ~ /^[-0-9tfn]/
}

function decoded(text,    n, i, part, first, code) {
	if (!index(text, backslash))
		return text
	n = split(text, part, backslash)
	text = part[1]
	for (i = 2; i <= n; i++) {
		if (part[i] == "") { # a backslash that stands for itself
			text = text backslash part[++i]
			continue
		}
		first = substr(part[i], 1, 1)
		if (first == "u") {
			code = hexadecimal(substr(part[i], 2, 4))
			if (code >= 55296 && code < 56320 && substr(part[i + 1], 1, 1) == "u") {
				code = 65536 + (code - 55296) * 1024 + hexadecimal(substr(part[++i], 2, 4)) - 56320
			}
			text = text utf8(code) substr(part[i], 6)
			continue
		}
		if (first == "n")
			first = "\n"
		else if (first == "t")
			first = "\t"
		else if (first == "r")
			first = "\r"
		else if (first == "b")
			first = "\b"
		else if (first == "f")
			first = "\f"
		text = text first substr(part[i], 2)
	}
	return text
}

function hexadecimal(text,    i, found) {
	text = tolower(text)
	for (i = 1; i <= 4; i++)
		found = found * 16 + index("0123456789abcdef", substr(text, i, 1)) - 1
	return found
}

function utf8(code,    first) {
	if (code < 128)
		return sprintf("%c", code)
	if (code < 2048)
		return sprintf("%c%c", 192 + int(code / 64), 128 + code % 64)
	if (code < 65536)
		return sprintf("%c%c%c", 224 + int(code / 4096), 128 + int(code / 64) % 64, 128 + code % 64)
	first = sprintf("%c%c", 240 + int(code / 262144), 128 + int(code / 4096) % 64)
	return first sprintf("%c%c", 128 + int(code / 64) % 64, 128 + code % 64)
}
"""
