# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# vm/inside/desktop.sh: an ordinary user's Wayland desktop, for scripts that run as root in a
# VM and define die(). Weston composes it with its GL renderer on Mesa's llvmpipe. The
# kiosk shell shows a window over the whole output, without decoration, so that a screen shot is
# the window.

user=user uid=1000 groups=kvm
as_user=(setpriv --reuid "$user" --regid "$user" --groups "$groups")
export XDG_RUNTIME_DIR=/run/user HOME=/run/user WAYLAND_DISPLAY=wayland-1

# make_user: make the user, and the device's group and mode that Debian's packages set up
make_user()
{
	echo "$user:x:$uid:$uid::$HOME:/bin/sh" >>/etc/passwd
	echo "$user:x:$uid:" >>/etc/group
	echo "$groups:x:999:" >>/etc/group
	chgrp $groups /dev/udmabuf
	chmod 660 /dev/udmabuf
	[ ! -e /dev/kvm ] || { chgrp $groups /dev/kvm && chmod 660 /dev/kvm; }
	install -d -m 700 -o $user -g $user $XDG_RUNTIME_DIR
	install -d -o $user -g $user /out/weston
	ulimit -l 8192	# KiB, the default of users
}

# start_desktop WIDTH HEIGHT: start Weston, set $weston to its process, print its versions
start_desktop()
{
	"${as_user[@]}" env -C /out/weston -u WAYLAND_DISPLAY weston --no-config --backend=headless \
		--renderer=gl --shell=kiosk-shell.so --width="$1" --height="$2" --debug \
		--socket=$WAYLAND_DISPLAY >/out/weston/log 2>&1 &
	weston=$!
	until [ -S $XDG_RUNTIME_DIR/$WAYLAND_DISPLAY ]; do
		kill -0 $weston 2>/dev/null || die 'Weston did not start: no Wayland socket (see /out/weston/log)'
		sleep .2
	done
	echo "compositor=$(sed -n 's/^.*\] weston \([0-9.]*\)$/Weston \1/p' /out/weston/log)"
	echo "renderer=$(sed -n 's/^.*GL renderer: //p' /out/weston/log)"
	echo "mesa=$(sed -n 's/^.*GL version: .* \(Mesa .*\)$/\1/p' /out/weston/log)"
}

# desktop_shot FILE.png: take a screen shot by the compositor
desktop_shot()
{
	( cd /out/weston && "${as_user[@]}" weston-screenshooter && mv wayland-screenshot-*.png "$1" )
}

# mapped PID INODE MODE: print the number of bytes of that dma-buf that the process has mapped
# in that mode: r--s, rw-s or r?-s
mapped()
{
	local range mode inode file n=0
	while read -r range mode _ _ inode file; do
		# shellcheck disable=SC2053 # a pattern
		[[ "$inode $file" != "$2 /dmabuf:" || $mode != $3 ]] || n=$((n + 0x${range#*-} - 0x${range%-*}))
	done <"/proc/$1/maps"
	echo $n
}
