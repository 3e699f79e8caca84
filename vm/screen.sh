# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# vm/screen.sh: for scripts that run QEMU with a guest that shows pictures. Functions for
# messages to and from a program in the guest, QEMU's monitor and screen shots. Used with
# lib.sh on the host, and in a VM by scripts that define die().

# talk_to DIR: make the pipes DIR/qmp and DIR/talk for QEMU's -qmp and -chardev
talk_to()
{
	local i
	for i in qmp talk; do
		mkfifo "$1/$i.in" "$1/$i.out"
	done
	# open for reading and writing, so that open() does not wait for QEMU
	exec {qmp_in}<>"$1/qmp.in" {qmp_out}<>"$1/qmp.out"
	exec {talk_in}<>"$1/talk.in" {talk_out}<>"$1/talk.out"
}

# next_line PID: read the guest's next line into $line; fails when PID has ended. A read
# that times out may drop a part of a line. So first wait until a line has begun, then
# read it with a long timeout.
next_line()
{
	until read -r -t 0 <&"$talk_out"; do
		kill -0 "$1" 2>/dev/null || return 1
		sleep .1
	done
	IFS= read -r -t 60 line <&"$talk_out" || return 1
	line=${line%$'\r'}
}

# answer: send the guest's program the line that it waits for
answer()
{
	echo >&"$talk_in"
}

# qmp COMMAND [ARGUMENTS]: send COMMAND to QEMU's monitor, and set $reply to the answer.
# ARGUMENTS are JSON without the outer braces. An empty $qmp_ready means a new QEMU, which
# first needs qmp_capabilities.
qmp()
{
	if [ -z "${qmp_ready:-}" ]; then
		qmp_ready=1
		qmp qmp_capabilities
	fi
	echo '{"execute": "'"$1"'", "arguments": {'"${2:-}"'}}' >&"$qmp_in"
	while read -r -t 300 reply <&"$qmp_out"; do
		case $reply in
		'{"return"'*) return ;;
		'{"error"'*) die "QEMU: $reply" ;;
		esac
	done
	die "QEMU's monitor does not answer to $1"
}

# screen_shot FILE.ppm: have QEMU write its screen to FILE.ppm
screen_shot()
{
	qmp screendump '"filename": "'"$1"'"'
}

# compare DRAWN.ppm SHOT.ppm: compare pixel by pixel; print the first difference
compare()
{
	local byte pixel width
	if [ ! -s "$2" ]; then
		echo 'no screen shot'
		return 1
	fi
	if [ "$(head -n 3 "$1" | cksum)" != "$(head -n 3 "$2" | cksum)" ]; then
		echo "the screen has another size: $(head -n 2 "$2" | tail -n 1)"
		return 1
	fi
	if [ "$(wc -c <"$1")" != "$(wc -c <"$2")" ]; then
		echo 'the screen shot is incomplete'
		return 1
	fi
	byte=$(cmp -l "$1" "$2" | awk 'NR == 1 { print $1 }') || true
	[ -n "$byte" ] || return 0
	pixel=$(((byte - 1 - $(head -n 3 "$1" | wc -c)) / 3))
	width=$(head -n 2 "$1" | awk 'NR == 2 { print $1 }')
	echo "the pixel at x=$((pixel % width)) y=$((pixel / width)) is not as drawn"
	return 1
}

# as_drawn NAME DRAWN.ppm SHOT.ppm: both must be the same, or keep them in the log directory
# and exit
as_drawn()
{
	local differs
	differs=$(compare "$2" "$3") && return
	# shellcheck disable=SC2154 # of lib.sh
	cp "$2" "$3" "$cache/log/" || :
	die "$1: $differs (see ${2##*/} and ${3##*/} in $cache/log)"
}

# damaged NAME DRAWN.ppm SHOT.ppm: for a run with BREAK: print the first pixel that differs;
# exit if all pixels are as drawn, or the screen shot is missing or of another size
damaged()
{
	local differs
	if differs=$(compare "$2" "$3"); then
		die "BREAK=$BREAK changed nothing: $1 is as drawn"
	fi
	[[ $differs = 'the pixel at '* ]] || die "BREAK=$BREAK: $1: $differs"
	say "BREAK=$BREAK: $1: $differs"
}

# build_break FILE.so: with BREAK=swap or BREAK=page build the library that damages the
# lists of pieces that QEMU passes to the driver
build_break()
{
	case ${BREAK:-} in
	'')	return ;;
	swap|page) ;;
	*)	die "invalid BREAK=$BREAK: swap (two pieces) or page (one page off)" ;;
	esac
	# shellcheck disable=SC2154 # of lib.sh
	in_root gcc -shared -fPIC -O2 -Wall -Wextra -Werror -I "$top/include/uapi" -o "$1" \
		"$top/vm/nested-guest/break.c"
}
