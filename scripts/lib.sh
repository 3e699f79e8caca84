# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
#
# scripts/lib.sh: shared functions for the scripts in scripts/, vm/ and bench/. A script
# calls setup, which makes the "tool root" in the cache: a Debian 13 userland with
# compilers, QEMU, busybox, and the stock kernels with their headers. in_root runs a
# command in the tool root. The host needs apt, dpkg and bubblewrap. The scripts need no
# root rights.
#
# Files ($cache is $UDMABUF_CACHE, or ~/.cache/udmabuf):
#   $cache/apt/          a private apt: package lists and downloaded packages
#   $cache/root-<hash>/  the tool root, keyed by its packages
#   $cache/userland-<name>-<hash>/  a disk image made by userland()
#   $cache/linux-source-*/  the newest kernel source, with our files applied
#   $cache/linux-source-*.pristine.tar  original files that scripts/apply changes
#   $cache/linux-source-*.pristine/  the source without our files, for bench/run
#   $cache/linux-source-*.users/  mainline's selftests that vm/check builds
#   $cache/debug/, kcsan/  build directories of the debug and KCSAN kernels
#   $cache/selftests/, tests-<hash>/  build directory of the tests; test programs for the VMs
#   $cache/kunit/        the kernel of the KUnit tests
#   $cache/headers/      packages and builds of scripts/headers-test
#   $cache/lint/         builds of scripts/lint and series/check
#   $cache/bench/, bench-<hash>/  the module and the kernel of bench/run
#   $cache/clients/      output of the programs of vm/clients
#   $cache/machines/     kernels and programs of machines.sh
#   $cache/guest-<hash>/, guest-all-<hash>/  guest kernels of demo-qemu
#   $cache/chain-<hash>/, chain-debug-<hash>/  guest kernels of demo-chain
#   $cache/qemu-<hash>/  the patched QEMU of scripts/qemu
#   $cache/ccache/       the compiler cache
#   $cache/log/          output of long steps
#   $cache/tmp/          temporary files of running scripts

set -euo pipefail
umask 022

case ${1:-} in
-h|--help)
	sed -n '4,/^$/s/^# \?//p' "$0"
	exit ;;
esac

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${UDMABUF_CACHE:-$HOME/.cache/udmabuf}
mkdir -p "$cache/log" "$cache/apt" "$cache/tmp"
cache=$(cd "$cache" && pwd)
root=

# Stock kernels that the module supports; "newest" is the kernel in trixie-backports.
stock_default='6.1 6.12 newest'

tools='base-files base-passwd bash bc binutils bison bpftool busybox-static
	bzip2 ccache coccinelle codespell coreutils cpio dash diffutils e2fsprogs findutils flex gawk
	gcc gcc-12 gcc-14 gcc-bpf gcc-multilib git gnuplot-nox grep gzip kmod libc6-dev libcap-dev
	libbpf-dev libdrm-dev libelf-dev libjson-c-dev libpython3-dev libssl-dev libwayland-dev
	linux-bpf-dev/trixie-backports make mawk netpbm patch perl pkgconf python3
	python3-jsonschema python3-sphinx python3-yaml qemu-system-x86 rsync sed seabios
	shellcheck sparse tar util-linux
	wayland-protocols xfsprogs xz-utils zstd'

say()
{
	printf '[%4ds] %s\n' "$SECONDS" "$*" >&2
}

die()
{
	printf 'error: %s\n' "$*" >&2
	exit 1
}

# make_work NAME: set $work to a directory for the time that the script runs
make_work()
{
	work=$(mktemp -d "$cache/tmp/$1.XXXXXX")
	trap end EXIT
}

# end: end all processes that the script has started, and remove $work. Bash
# calls it after a signal as well, without waiting for these processes.
end()
{
	# shellcheck disable=SC2046 # several words
	kill $(sed 's/(.*)/-/' /proc/[0-9]*/stat 2>/dev/null | awk -v top=$$ '
		{ parent[$1] = $4 }
		END {
			for (pid in parent)
				for (p = parent[pid]; p in parent; p = parent[p])
					if (p == top) { print pid; break }
		}') 2>/dev/null || :
	wait
	rm -rf "$work"
}

# logged NAME CMD...: run CMD with its output in the log file NAME; on failure print the
# end of the file
logged()
{
	local log=$cache/log/$1
	shift
	if ! "$@" >"$log" 2>&1 </dev/null; then
		tail -n 40 "$log" >&2
		printf 'error: %s failed (full output: %s)\n' "$1" "$log" >&2
		return 1
	fi
}

apt_()
{
	local cmd=$1
	shift
	LC_ALL=C APT_CONFIG=$cache/apt/apt.conf "apt-$cmd" -q "$@"
}

# apt_setup: configure a private apt with Debian 12, 13 and testing. The mirror and the
# Acquire options, such as a proxy, come from the host's configuration.
apt_setup()
{
	local d=$cache/apt main security key codename

	[ "$(dpkg --print-architecture)" = amd64 ] || die 'unsupported host architecture: the scripts need Debian on amd64'
	codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	# A vendor's repository may use the name of Debian's suite. Its label
	# differs, but is known only after apt-get update has run on the host.
	read -r main security < <(apt-get indextargets \
		--format '$(REPO_URI) $(RELEASE) $(COMPONENT) $(LABEL)' \
		'Created-By: Packages' | awk -v c="$codename" '
		$3 != "main" || ($4 ~ /^[A-Z]/ && $4 !~ /^Debian/) { next }
		$2 == c || $2 ~ /^(old)*stable$/ { m = m ? m : $1 }
		$2 ~ /-security$/ { s = s ? s : $1 }
		END { print m, s }') || true
	main=${UDMABUF_MIRROR:-$main}
	[ -n "$main" ] || die 'no Debian mirror in the apt sources (try: UDMABUF_MIRROR=URI)'
	for key in /usr/share/keyrings/debian-archive-keyring.[gp]*; do :; done
	[ -r "$key" ] || die 'no Debian archive key in /usr/share/keyrings (try: apt-get install debian-archive-keyring)'

	mkdir -p "$d/lists/partial" "$d/archives/partial" "$d/none"
	: >"$d/status"
	{
		for s in trixie trixie-updates trixie-backports bookworm bookworm-updates testing; do
			echo "deb [signed-by=$key] $main $s main"
		done
		[ -z "$security" ] || for s in trixie bookworm; do
			echo "deb [signed-by=$key] $security $s-security main"
		done
	} >"$d/sources.new"
	# the sources changed: fetch the package lists again
	cmp -s "$d/sources.new" "$d/sources.list" || rm -f "$d/updated"
	mv "$d/sources.new" "$d/sources.list"
	# Low priority: bookworm provides only its kernel, testing only the packages
	# that a userland() requests. Kernels of backports need its linux-base.
	cat >"$d/preferences" <<-END
	Package: *
	Pin: release n=bookworm*
	Pin-Priority: 50

	Package: *
	Pin: release a=testing
	Pin-Priority: 40

	Package: linux-base
	Pin: release n=trixie-backports
	Pin-Priority: 600
	END
	{
		apt-config dump | grep '^Acquire::' | grep -v '^Acquire::IndexTargets'
		cat <<-END
		Acquire::Languages "none";
		APT::Sandbox::User "";
		APT::Get::Assume-Yes "true";
		APT::Install-Recommends "false";
		APT::Architectures { "amd64"; };
		Dir::Etc { main "/dev/null"; parts "$d/none"; sourceparts "$d/none";
			preferencesparts "$d/none"; sourcelist "$d/sources.list";
			preferences "$d/preferences"; };
		Dir::State { "$d"; lists "$d/lists"; status "$d/status";
			extended_states "$d/extended_states"; };
		Dir::Cache { "$d"; archives "$d/archives"; };
		END
	} >"$d/apt.conf"
}

# apt_update [force]: fetch the package lists, without "force" once a day; if that fails,
# keep the lists of an earlier run
apt_update()
{
	[ "${1:-}" = force ] || [ -z "$(find "$cache/apt/updated" -mtime -1 2>/dev/null)" ] || return 0
	say 'fetching package lists'
	if logged apt-update apt_ get update -o APT::Update::Error-Mode=any; then
		touch "$cache/apt/updated"
	elif [ -e "$cache/apt/updated" ]; then
		say 'cannot fetch package lists (no network?): using the lists of an earlier run'
	else
		exit 1
	fi
}

# stock_all: print the release names of all stock kernels that apt offers
stock_all()
{
	apt_ cache search --names-only '^linux-image-[0-9.]+[^-]*(-[0-9]+)?-amd64$' |
		sed -n 's/^linux-image-\([^ ]*\) .*/\1/p' | sort -V
}

# newest_of VERSION: print the highest release on stdin of that version
newest_of()
{
	local v=$1.
	[ "$1" != newest ] || v=
	grep "^${v//./\\.}" | sort -V | tail -n 1
}

# stock_release VERSION|RELEASE: print the release name of that stock kernel in the tool
# root; call after setup
stock_release()
{
	if [ -d "$root/usr/lib/modules/$1" ]; then
		echo "$1"
	else
		find "$root/usr/lib/modules" -mindepth 1 -maxdepth 1 -name '*-amd64' -printf '%f\n' | newest_of "$1"
	fi
}

# need_bwrap: install bubblewrap if it is missing and the user is root
need_bwrap()
{
	! command -v bwrap >/dev/null || return 0
	[ "$(id -u)" = 0 ] || die 'bwrap not found (try: apt-get install bubblewrap)'
	say 'installing bubblewrap'
	logged bubblewrap sh -c 'apt-get install -y bubblewrap ||
		{ apt-get update && apt-get install -y bubblewrap; }'
}

# resolve PACKAGE...: print the packages and their dependencies, as name_version_arch lines
resolve()
{
	apt_ get -s install "$@" | sed -En 's/^Inst ([^ ]+) (\[[^]]*\] )?\(([^ ]+) .*\[([a-z0-9]+)\].*$/\1_\3_\4/p' |
		sed 's/:/%3a/g' | sort
}

# setup [VERSION...]: make the tool root with the default stock kernels and these. Sets
# $root to the tool root, and $src to the newest kernel source package (name_version).
setup()
{
	local v rel all want=() list memo
	need_bwrap
	exec 9>"$cache/lock"
	flock -w 3 9 || { say 'waiting for another run that uses the cache'; flock 9; }
	# Resolving packages takes seconds: keep the result until the lists change.
	memo=$cache/apt/memo-$( (echo "$stock_default $tools $*"; cat "$top/scripts/lib.sh") | sha256sum | cut -c1-12)
	[ -e "$memo" ] || apt_setup
	apt_update
	if [ "$memo" -nt "$cache/apt/updated" ] && read -r root src <"$memo" && [ -e "$root/.complete" ]; then
		:
	else
		all=$(stock_all)
		# shellcheck disable=SC2086
		for v in $(printf '%s\n' $stock_default "$@" | sort -u); do
			rel=$(newest_of "$v" <<<"$all") || true
			[ -n "$rel" ] || die "Debian has no kernel $v; available:" \
				"$(sed -E 's/^([0-9]+\.[0-9]+).*/\1/' <<<"$all" | sort -Vu | paste -sd' ')"
			want+=("linux-image-$rel" "linux-headers-$rel")
		done
		# shellcheck disable=SC2086
		list=$(resolve $tools "${want[@]}") || die "apt cannot resolve the packages of the tool root (try: rm $cache/apt/updated)"
		root=$cache/root-$( (echo "$list"; declare -f make_root unpack_packages) | sha256sum | cut -c1-12)
		# shellcheck disable=SC2086
		[ -e "$root/.complete" ] || make_root "$list" $tools "${want[@]}"
		src=$(apt_ cache search --names-only '^linux-source-[0-9.]+$' | cut -d' ' -f1 | sort -V | tail -n 1)
		echo "$root ${src}_$(apt_ cache show --no-all-versions "$src" |
			sed -n 's/^Version: //p')" >"$memo"
		read -r root src <"$memo"
	fi
	touch "$root/.complete"
	find "$cache" -maxdepth 2 -path '*/root-*/.complete' -mtime +3 -printf '%h\n' | xargs -r rm -rf
	exec 9>&-
}

# unpack_packages LIST DIR: unpack the packages into DIR. Maintainer scripts would need
# root rights, so they are not run; their few necessary actions are repeated here.
unpack_packages()
{
	local list=$1 dir=$2 d=$cache/apt/archives
	rm -rf "$dir"
	mkdir -p "$dir"
	dpkg-deb -x "$d/$(echo "$list" | grep '^base-files_').deb" "$dir"
	# dpkg-deb -x would replace the symlink /lib by a directory
	export dir
	echo "$list" | sed "s|.*|$d/&.deb|" | xargs -P "$(nproc)" -I{} sh -c '
		dpkg-deb --fsys-tarfile {} | tar -x -C "$dir" --keep-directory-symlink \
			--exclude="./usr/share/doc/*" --exclude="./usr/share/man/*"'
	ln -sf mawk "$dir/usr/bin/awk"
	[ ! -d "$dir/usr/lib/ccache" ] || find "$dir/usr/bin" -regextype egrep \
		-regex '.*/([^/]*-linux-gnu-)?gcc(-[0-9]+)?' -printf '%f\n' |
		xargs -I{} ln -s ../../bin/ccache "$dir/usr/lib/ccache/{}"
	[ -e "$dir/usr/bin/sh" ] || ln -s dash "$dir/usr/bin/sh"
	cp "$dir/usr/share/base-passwd/passwd.master" "$dir/etc/passwd"
	cp "$dir/usr/share/base-passwd/group.master" "$dir/etc/group"
}

# fetch_packages [apt-get options] PACKAGE...: download the packages with dependencies; on
# failure fetch the package lists and exit
fetch_packages()
{
	logged fetch apt_ get install --download-only "$@" && return
	apt_update force
	die 'cannot download packages: the archive has changed; the lists are up to date now, try again'
}

# make_root LIST PACKAGE...: download the packages, and unpack LIST into the tool root
make_root()
{
	local list=$1
	shift
	say "fetching $(echo "$list" | wc -l) packages (compilers, QEMU, kernels): about 600 MB once"
	fetch_packages "$@"
	say 'unpacking them (about a minute)'
	unpack_packages "$list" "$root"
	ln -sf gcc "$root/usr/bin/cc"
	for v in "$root"/usr/lib/modules/*; do
		in_root depmod "${v##*/}"
	done
}

# userland NAME SUITE PACKAGE...: make a disk image with a Debian userland, for vm/boot -r.
# The file /packages in it lists its packages. Sets $userland to the image; call after
# setup. A PACKAGE with a - at its end is left out, with the packages that only it needs.
userland()
{
	local name=$1 suite=$2 list dir p memo status=$cache/apt/status-$1 packages=()
	shift 2
	exec 9>"$cache/lock"
	flock 9
	: >"$status"
	for p in base-files base-passwd bash coreutils dash libc-bin mawk "$@"; do
		case $p in
		# apt takes it as installed, in a version that satisfies each dependency
		*-)	printf '%s\n' "Package: ${p%-}" 'Status: install ok installed' 'Version: 999:1' \
				'Architecture: amd64' 'Multi-Arch: same' 'Maintainer: nobody' \
				'Description: left out' '' >>"$status" ;;
		*)	packages+=("$p") ;;
		esac
	done
	set -- -o Dir::State::status="$status" -t "$suite" "${packages[@]}"
	# as in setup, keep the result until the package lists change
	memo=$cache/apt/memo-$( (echo "$*"; cat "$status") | sha256sum | cut -c1-12)
	if [ ! "$memo" -nt "$cache/apt/updated" ]; then
		list=$(resolve "$@") ||
			die "apt cannot resolve ${packages[*]} in Debian $suite"
		echo "$list" >"$memo"
	fi
	list=$(cat "$memo")
	dir=$cache/userland-$name-$( (echo "$list"; declare -f unpack_packages userland) |
		sha256sum | cut -c1-12)
	userland=$dir/image
	if [ ! -e "$dir/.complete" ]; then
		say "fetching and unpacking a userland of $(echo "$list" | wc -l) packages: $name"
		fetch_packages "$@"
		rm -rf "$cache/userland-$name-"*
		unpack_packages "$list" "$dir/root"
		# Debian 12's packages have files in both /bin and /usr/bin
		for p in bin sbin lib lib64; do
			if [ -L "$dir/root/$p" ] || [ ! -d "$dir/root/$p" ]; then
				continue
			fi
			mkdir -p "$dir/root/usr/$p"
			cp -a "$dir/root/$p/." "$dir/root/usr/$p"
			rm -r "${dir:?}/root/$p"
			ln -s "usr/$p" "$dir/root/$p"
		done
		ln -sf dash "$dir/root/usr/bin/sh"
		mkdir -p "$dir/root"/{dev,proc,sys,tmp,run,root,tests,out}
		echo "$list" >"$dir/root/packages"
		root=$dir/root in_root ldconfig
		in_root mke2fs -qF -t ext4 -O ^has_journal -E root_owner=0:0 -d "$dir/root" "$userland" \
			"$(($(du -sm "$dir/root" | cut -f1) * 5 / 4 + 64))M"
		rm -rf "$dir/root"
	fi
	touch "$dir/.complete"
	exec 9>&-
}

# source_tree [-s]: unpack the newest kernel source into $tree, and lock it exclusively, or
# with -s shared with other readers. The lock ends when descriptor 9 is closed.
# $tree.pristine.tar keeps the original files that scripts/apply changes.
source_tree()
{
	local deb=$cache/apt/archives/${src//:/%3a}_all.deb
	tree=$cache/$src-$(declare -f source_tree | sha256sum | cut -c1-8)
	exec 9>"$cache/lock.tree"
	flock -n "${1:--x}" 9 || { say 'waiting for another run that uses the kernel source'; flock "${1:--x}" 9; }
	[ ! -e "$tree/.complete" ] || return 0
	flock 9
	[ ! -e "$tree/.complete" ] || return 0
	say "fetching and unpacking ${src%%_*} (150 MB, about a minute)"
	( cd "$cache/apt/archives" && logged fetch-source apt_ get download "${src/_/=}" )
	rm -rf "$cache/${src%%_*}"_*
	mkdir "$tree"
	dpkg-deb --fsys-tarfile "$deb" | tar -xO --wildcards './usr/src/*.tar.xz' |
		in_root xz -dcT0 | tar -x -C "$tree" --strip-components=1
	tar -cf "$tree.pristine.tar" -C "$tree" MAINTAINERS Kconfig Makefile drivers/dma-buf \
		include/uapi/linux/udmabuf.h tools/testing/selftests/drivers/dma-buf \
		Documentation/userspace-api samples/Makefile \
		tools/testing/selftests/drivers/net/hw/ncdevmem.c \
		tools/testing/selftests/bpf/prog_tests/dmabuf_iter.c
	touch "$tree/.complete"
}

# configure OBJ FRAGMENT [make arguments]: configure $tree in OBJ with FRAGMENT over
# allnoconfig; fails if an option of FRAGMENT did not take effect
configure()
{
	local o=$1 fragment=$2 option
	shift 2
	in_root make -C "$tree" O="$o" KCONFIG_ALLCONFIG="$fragment" "$@" allnoconfig
	while read -r option; do
		grep -qx "$option" "$o/.config" || { echo "not in the configuration: $option"; return 1; }
	done < <(grep ^CONFIG "$fragment")
}

# in_root [bwrap options] CMD...: run CMD in the tool root, with the cache and this
# repository at their usual paths. The working directory is the current one if it is in
# the cache or the repository, otherwise the repository.
in_root()
{
	local here=$top
	[[ $PWD/ != "$top"/* && $PWD/ != "$cache"/* ]] || here=$PWD
	bwrap --bind "$root" / --dev /dev --proc /proc --tmpfs /tmp \
		--bind "$cache" "$cache" --bind "$top" "$top" --chdir "$here" \
		--unshare-pid --die-with-parent \
		--setenv PATH /usr/lib/ccache:/usr/sbin:/usr/bin \
		--setenv CCACHE_DIR "$cache/ccache" --unsetenv LANG --setenv LC_ALL C \
		--setenv HOME "$cache" "$@"
}
