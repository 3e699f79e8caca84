# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash disable=SC2154
#
# scripts/host-checks.sh: the checks of vm/check that need no VM. They test scripts/apply,
# error messages of scripts, mainline's selftests built with our header, the installed
# selftests, KUnit's tests, links and names in the documentation, version numbers, and
# scripts/lint. host_checks runs them all.

# apply_checks: scripts/apply on a pristine tree, again, on an unknown tree, and with built files
apply_checks()
{
	local t=$work/apply
	mkdir "$t"
	tar -xf "$tree.pristine.tar" -C "$t"
	expect 'apply: on a pristine tree' "$top/scripts/apply" "$t"
	cp -a "$t" "$t.1"
	expect 'apply: the driver is there' cmp "$top/drivers/dma-buf/udmabuf.c" "$t/drivers/dma-buf/udmabuf.c"
	expect 'apply: again' "$top/scripts/apply" "$t"
	expect 'apply: the second time changed nothing' diff -r "$t.1" "$t"
	expect 'apply: and wrote nothing' test -z "$(find "$t" -newer "$work/out" -type f)"
	mkdir "$t.2"
	tar -xf "$tree.pristine.tar" -C "$t.2"
	sed -i 's/^config UDMABUF$/config UDMABUF2/' "$t.2/drivers/dma-buf/Kconfig"
	cp -a "$t.2" "$t.3"
	expect 'apply: refuses a tree it does not understand' sh -c "! '$top/scripts/apply' '$t.2' 2>'$work/why'"
	expect 'apply: says why, in one line' test "$(wc -l <"$work/why")" = 1
	expect 'apply: leaves that tree alone' diff -r "$t.3" "$t.2"
	mkdir "$t.4" "$t.5"
	tar -C "$top" --exclude=./build --exclude=./.git -cf - . | tar -x -C "$t.4"
	cp "$work/tests/"{udmabufctl,list.bpf.o,list.skel.h} "$t.4/tools/udmabuf"
	tar -xf "$tree.pristine.tar" -C "$t.5"
	expect 'apply: with a program that was built' "$t.4/scripts/apply" "$t.5"
	expect 'apply: it is not copied' diff -r "$t.1" "$t.5"
}

# refuses WHY COMMAND...: COMMAND must fail with a message that matches WHY
refuses()
{
	local why=$1 rc=0
	shift
	"$@" >"$work/refused" 2>&1 || rc=$?
	cat "$work/refused"
	[ $rc != 0 ] && grep -q "$why" "$work/refused"
}

# names_headers COMMAND 'ID ID_LIKE...' RELEASE: without kernel headers "make module" must
# suggest COMMAND, on a system whose os-release has this ID and ID_LIKE
names_headers()
{
	printf 'ID=%s\nID_LIKE="%s"\n' "${2%% *}" "${2#* }" >"$work/os-release"
	refuses "try: $1)" in_root --ro-bind "$work/os-release" /usr/lib/os-release \
		make -s -C "$top" module "KDIR=/lib/modules/$3/build"
}

messages()
{
	expect 'check: refuses an unknown kernel' refuses 'unknown kernel none' \
		"$top/vm/check" 6.1 none
	expect 'check: a shell in one of our kernels is refused' refuses 'stock kernels only' \
		"$top/vm/check" -i debug
	expect 'module: says what to install' refuses 'no kernel headers in /none .*try: apt install' \
		"$top/scripts/module" /none
	while IFS=: read -r system command; do
		expect "module: names the headers of $system" names_headers "$command" "${system%%/*}" "${system#*/}"
	done <<-END
	debian/6.12.9+deb13-amd64:apt install linux-headers-6.12.9+deb13-amd64
	ubuntu debian/6.8.0-51-generic:apt install linux-headers-6.8.0-51-generic
	fedora/6.17.1-300.fc43.x86_64:dnf install kernel-devel-6.17.1-300.fc43.x86_64
	rocky rhel centos fedora/6.12.0-55.el10.x86_64:dnf install kernel-devel-6.12.0-55.el10.x86_64
	arch/6.17.1-arch1-1:pacman -S linux-headers
	manjaro arch/6.12.50-1-lts:pacman -S linux-lts-headers
	opensuse-tumbleweed opensuse suse/6.17.1-1-default:zypper install kernel-default-devel
	alpine/6.12.50-0-virt:apk add linux-virt-dev
	nixos/6.12.50:install the package that contains /lib/modules/6.12.50/build
	END
	expect 'vmtest.sh: names virtme-ng if vng is missing' refuses 'vng not found .*virtme-ng' \
		in_root "$top/$selftests/vmtest.sh"
	expect 'patches: wants a kernel source' refuses 'is not a kernel source tree' "$top/series/make" "$work"
}

# mainline_users builds the two selftests of other subsystems that use mainline's driver.
# Their own Makefiles build them, with the headers that the tree installs. The tree is
# bound read-only; ynl builds in its source directory, so a writable copy is bound there.
# gcc compiles the BPF programs, as the Makefile allows: clang would add 60 MB.
users=
ncdevmem=tools/testing/selftests/drivers/net/hw/ncdevmem.c
dmabuf_iter=tools/testing/selftests/bpf/prog_tests/dmabuf_iter.c
instead=()	# bwrap options that bind mainline's version over one of these files

# tree_make DIR [make arguments]: run make in DIR of the read-only tree
tree_make()
{
	local dir=$1
	shift
	in_root --ro-bind "$tree" "$tree" --bind "$users/ynl" "$tree/tools/net/ynl" "${instead[@]}" \
		make -C "$tree/$dir" -j"$(nproc)" "$@"
}

build_ncdevmem()
{
	rm -f "$users/hw/ncdevmem"
	tree_make "${ncdevmem%/*}" OUTPUT="$users/hw" KHDR_INCLUDES="-isystem $users/usr/include" \
		"$users/hw/ncdevmem"
}

build_dmabuf_iter()
{
	local o=$users/bpf/bpf_gcc/dmabuf_iter types=/usr/include/x86_64-linux-gnu/linux/bpf/vmlinux.h
	# The rule for an object first builds the BPF programs of all tests, which
	# takes long; -o skips them.
	local bpf=(tree_make tools/testing/selftests/bpf -o "$o.test.d" OUTPUT="$users/bpf"
		USERCFLAGS="-isystem $users/usr/include" BPFTOOL=/usr/sbin/bpftool
		VMLINUX_H="$types" VMLINUX_BTF="$types")
	# remove the .d as well: it names the skeleton without its directory
	rm -f "$o.test".[do]
	"${bpf[@]}" "$o.skel.h" && "${bpf[@]}" "$o.test.o"
}

# refused CMD FILE: CMD must fail with mainline's version of FILE, because our header has
# no member of the old name. This shows that CMD compiles with our header.
refused()
{
	local instead=(--ro-bind "$work/$2" "$tree/$2") rc=0
	tar -xf "$tree.pristine.tar" -C "$work" "$2" || return
	"$1" >"$work/refused" 2>&1 || rc=$?
	cat "$work/refused"
	[ $rc != 0 ] && grep -q "'struct udmabuf_create' has no member named 'memfd'" "$work/refused"
}

mainline_users()
{
	users=$tree.users
	exec 9>"$cache/lock.users"
	flock 9
	mkdir -p "$users/hw" "$users/bpf"
	expect 'apply: ynl can be copied' in_root rsync -a "$tree/tools/net/ynl" "$users"
	expect 'apply: the tree installs its headers' tree_make . O="$users" headers
	expect 'apply: ncdevmem builds' build_ncdevmem
	expect 'apply: ncdevmem of mainline does not build' refused build_ncdevmem "$ncdevmem"
	expect 'apply: dmabuf_iter builds' build_dmabuf_iter
	expect 'apply: dmabuf_iter of mainline does not build' refused build_dmabuf_iter "$dmabuf_iter"
	exec 9>&-
}

# installed: "make install" of the selftests, without a kernel to build the importer
# module for, must install each program of the list and the time limit
installed()
{
	local to=$work/installed program
	in_root make -C "$tree/tools/testing/selftests" TARGETS=drivers/dma-buf O="$cache/selftests" \
		USERLDFLAGS=-static KDIR=/none INSTALL_PATH="$to" install || return
	grep -qx drivers/dma-buf:udmabuf_errno "$to/kselftest-list.txt" || return
	while read -r program; do
		[ -x "$to/${program/:/\/}" ] || { echo "not installed: $program"; return 1; }
	done <"$to/kselftest-list.txt"
	grep '^timeout=' "$to/drivers/dma-buf/settings"
}

# kunit: run the KUnit tests of the driver and of the dma-buf core on User Mode Linux, which
# has one CPU; a test of the core needs two. kunit.py also succeeds if tests are skipped.
kunit()
{
	local rc=0
	mkdir -p "$cache/kunit"
	exec 9>"$cache/lock.kunit"
	flock 9
	in_root --ro-bind "$tree" "$tree" --chdir "$tree" --setenv PYTHONDONTWRITEBYTECODE 1 \
		tools/testing/kunit/kunit.py run --kunitconfig=drivers/dma-buf \
		--build_dir="$cache/kunit" --jobs="$(nproc)" >"$work/kunit" 2>&1 || rc=$?
	exec 9>&-
	cat "$work/kunit"
	[ "$rc" = 0 ] && grep -q '=== \[PASSED\] udmabuf ===' "$work/kunit" &&
		! grep -F '[SKIPPED]' "$work/kunit" | grep -v 'requires at least 2 CPUs'
}

# lint: scripts/lint prints only findings, so it must print no line
lint()
{
	in_root "$top/scripts/lint" "$tree" "$cache/lint" | tee "$work/lint"
	[ ! -s "$work/lint" ]
}

readme_example()
{
	awk '/^```/ { on = $0 == "```c"; next } on' "$top/README.md" |
		cmp - "$top/samples/udmabuf/udmabuf-example.c"
}

# versions_agree: each recipe and INSTALL.md must have the version of debian/changelog
versions_agree()
(
	version=$(sed -n 's/^udmabuf (\(.*\)).*/\1/p;q' "$top/debian/changelog")
	cd "$top" &&
	grep -x "PACKAGE_VERSION=\"$version\"" dkms.conf &&
	grep -x "pkgver=$version" packaging/PKGBUILD &&
	grep -x "Version: *$version" packaging/udmabuf.spec &&
	grep "version = \"$version-" packaging/udmabuf.nix &&
	grep "dkms install udmabuf/$version$" INSTALL.md
)

# links: each link in *.md must lead to an existing file, or heading of a *.md
links()
(
	rc=0
	cd "$top" || exit
	while IFS=: read -r file link; do
		target=${link%%#*} heading=${link#"${link%%#*}"}
		target=${target:+${file%/*}/$target}
		target=${target:-$file}
		if [ ! -e "$target" ] || { [ -n "$heading" ] &&
			! sed -n 's/^##* //p' "$target" | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9\n-' |
				grep -qx -e "${heading#\#}"; }; then
			echo "$file: no $link"
			rc=1
		fi
	done < <(find . -name '*.md' ! -path './build/*' -print0 |
		xargs -0 grep -HoE '\]\([^):]+\)' | sed 's/:](/:/; s/)$//')
	exit $rc
)

# syzkaller_descriptions: check the description without syzkaller's compiler. gawk turns it
# into static assertions that the header defines each constant, and that the structs and
# the ioctl arguments match the header.
syzkaller_descriptions()
{
	in_root gawk '
	function assert(what) { print "_Static_assert(" what ", \"line " NR "\");" }
	function size(type) { return type ~ /^array/ ? 0 : type ~ /64/ ? 8 : type ~ /int32|^fd/ ? 4 : -1 }
	/^include/ { gsub(/uapi\//, "", $2); print "#include " $2; next }
	/^define/ { sub(/^define/, "#define"); print; next }
	/^#|^$/ { next }
	match($0, /^([a-z_]+)(\$[a-z]+)? \{$/, m) { struct = "struct " m[1]; end = 0; next }
	/^\}/ { assert("sizeof(" struct ") == " end); structs++; next }
	/^\t/ {
		sub(/^\t/, "")
		assert("__builtin_offsetof(" struct ", " $1 ") == " end)
		if (n = size($2 $3))
			assert("sizeof(((" struct " *)0)->" $1 ") == " n)
		end += n
		next
	}
	match($0, /cmd const\[(\w+)\], arg ptr\[\w+, ([a-z_]+)/, m) && m[2] != "string" {
		assert("_IOC_SIZE(" m[1] ") == sizeof(struct " m[2] ")")
	}
	{
		for (; match($0, /\y[A-Z][A-Z_]+_[A-Z_]+\y/); $0 = substr($0, RSTART + RLENGTH))
			assert("(" substr($0, RSTART, RLENGTH) ") | 1")
	}
	END { exit structs < 10 }' "$top/$selftests/syzkaller/dev_udmabuf.txt" >"$work/syzkaller.c" &&
		in_root gcc -fsyntax-only -I "$top/include/uapi" "$work/syzkaller.c"
}

# documented_tests: each program:test in the documentation must exist. The table of the
# defects of mainline's driver must have exactly the tests of udmabuf_defects.
documented_tests()
{
	local doc=$top/Documentation name test rc=0
	while IFS=: read -r name test; do
		tests_of "$name" | grep -qx "$test" || { echo "no test $name:$test"; rc=1; }
	done < <(grep -ohE '`[a-z0-9_]+:[a-z0-9_]+`' "$doc"/*.md "$doc/userspace-api/udmabuf.rst" |
		tr -d '`' | sort -u)
	sed '1,/^| test | mainline/d; /^$/,$d' "$doc/comparison.md" | sed -nE 's/^\| ([a-z_]+) .*/\1/p' |
		sort | diff - <(tests_of defects | sort) || rc=1
	return $rc
}

# ends_at_sigterm: SIGTERM must end a script and all processes that it has started: here
# another script, which is in a pipeline in the background, with its emulator
ends_at_sigterm()
{
	local log=$work/sigterm pid i
	bash -c '. "$1/scripts/lib.sh"
		make_work sigterm
		echo "$work" >"$2.work"
		{ "$1/vm/boot" -k newest -l "$2" "sleep 1000" | cat; true; } &
		wait' vm/check "$top" "$log" &
	pid=$!
	for ((i = 0; i < 6000; i++)); do
		! runs_with "$log" || break
		sleep .1
	done
	[ $i != 6000 ] || { echo 'no VM was started'; return 1; }
	kill $pid
	# on a busy host the emulator does not end at once
	for ((i = 0; i < 600; i++)); do
		runs_with "$log" || break
		sleep .1
	done
	[ $i != 600 ] || { echo 'the VM goes on'; return 1; }
	! wait $pid || return 1
	[ ! -e "$(cat "$log.work")" ] || { echo 'the directory is still there'; return 1; }
}

# runs_with LOG: succeeds if a QEMU runs that writes its kernel's log to LOG
runs_with()
{
	# with -q, processes that end meanwhile are no failure
	grep -qsa "[f]ile:$1" /proc/[0-9]*/cmdline
}

# Scripts can be called from a directory that the tool root does not have.
works_elsewhere()
(
	dir=$(mktemp -d) && cd "$dir" && in_root true && rmdir "$dir"
)

host_checks()
{
	say 'checks on the host'
	expect 'SIGTERM ends a script and all that it has started' ends_at_sigterm
	expect 'scripts can be called from any directory' works_elsewhere
	apply_checks
	messages
	mainline_users
	expect 'the tests can be installed for another machine' installed
	expect 'KUnit: the tests of udmabuf and of the dma-buf core pass' kunit
	expect 'syzkaller/dev_udmabuf.txt describes the header' syzkaller_descriptions
	expect 'the documentation names existing tests' documented_tests
	expect 'README.md shows samples/udmabuf/udmabuf-example.c' readme_example
	expect 'the recipes have the version of the Debian package' versions_agree
	expect 'links in *.md lead to files and headings' links
	expect 'checkpatch, sparse, W=1 and shellcheck are silent' lint
}
