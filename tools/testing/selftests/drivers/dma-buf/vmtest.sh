#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-only
#
# Build a kernel with the options in "config", and the tests; run the tests in a VM.

set -euo pipefail

collection=drivers/dma-buf
here=$(cd "$(dirname "$0")" && pwd)
tree=$(cd "$here/../../../../.." && pwd)
build=$tree/.vmtest_build
kernel='' skip_build='' memory=4G tests='' append='movablecore=320M'

usage()
{
	cat <<-EOF
	usage: $0 [-hs] [-k KERNEL] [-b DIR] [-m SIZE] [-a ARGS] [-t TEST]... [-- VNG_OPTION...]

	Builds a kernel, the tests of $collection and their module, boots the kernel by
	virtme-ng, runs the tests, and prints KTAP. Exits with 0 if no test failed, with 1
	if a test failed or none passed, with 2 if the tests could not be run.

	  -k KERNEL  boot this kernel image, or the kernel of this build directory, and
	             build only the tests. For an image, set KDIR to its build directory
	             or headers; otherwise tests that need the module are skipped.
	  -s         build nothing: use what an earlier run has built
	  -b DIR     build in DIR (default: $build)
	  -m SIZE    memory of the VM (default: $memory)
	  -a ARGS    append to the kernel command line, e.g. swiotlb=force
	  -t TEST    run only this test program; repeatable
	  VNG_OPTION e.g. --disable-kvm
	EOF
}

fail()
{
	echo "error: $*" >&2
	exit 2
}

# missing FILE: print the lines of "config" that FILE does not have
missing()
{
	grep ^CONFIG_ "$here/config" | grep -vxFf "$1" || true
}

build_kernel()
{
	echo "# building a kernel in $build" >&2
	# vng keeps an existing .config: remove it if "config" has changed.
	if [ -e "$build/.config" ] && [ -n "$(missing "$build/.config")" ]; then
		rm "$build/.config"
	fi
	(cd "$tree" && vng --build --config "$here/config" O="$build") >&2 ||
		fail "cannot build a kernel in $build"
	missing "$build/.config" | sed 's/^/# not in the configuration of the kernel: /' >&2
}

# build_tests KDIR: build and install the tests, and their module if KDIR exists
build_tests()
{
	[ -d "$1" ] || echo '# without KDIR, tests that need the module are skipped' >&2
	make -s -j"$(nproc)" -C "$tree/tools/testing/selftests" TARGETS=$collection O="$build" \
		KDIR="$1" INSTALL_PATH="$build/kselftest_install" install >&2 ||
		fail "cannot build the tests in $build"
}

while getopts hsk:b:m:a:t: option; do
	case $option in
	h) usage; exit ;;
	s) skip_build=1 ;;
	k) kernel=$OPTARG ;;
	b) build=$OPTARG ;;
	m) memory=$OPTARG ;;
	a) append+=" $OPTARG" ;;
	t) tests+=" -t $collection:$OPTARG" ;;
	*) usage >&2; exit 2 ;;
	esac
done
shift $((OPTIND - 1))

command -v vng >/dev/null ||
	fail 'vng not found (try: install the package virtme-ng, or pip install virtme-ng)'
[ -z "$kernel" ] || [ -e "$kernel" ] || fail "no kernel $kernel"
mkdir -p "$build"
build=$(cd "$build" && pwd)

# vng boots the kernel of the directory where it runs, or the image after --run.
boot=$build run=()
if [ -d "$kernel" ]; then
	boot=$(cd "$kernel" && pwd)
elif [ -n "$kernel" ]; then
	run=(--run "$(realpath "$kernel")")
fi
if [ -z "$skip_build" ]; then
	[ -n "$kernel" ] || build_kernel
	if [ -f "$kernel" ]; then
		build_tests "${KDIR:-/none}"
	else
		build_tests "$boot"
	fi
fi
[ -e "$build/kselftest_install/run_kselftest.sh" ] || fail "no tests in $build (try: without -s)"

# The driver may be a module. Without KVM, boot and tests take about ten times as long.
[ -w /dev/kvm ] || echo '# no KVM: emulation is slow' >&2
log=$build/vmtest.log
rc=0
(cd "$boot" && vng "${run[@]}" --user root --memory "$memory" --append "$append" "$@" --exec \
	"modprobe -q udmabuf; $build/kselftest_install/run_kselftest.sh ${tests:--c $collection}") |
	tee "$log" || rc=$?
grep -q '^# Totals: pass:' "$log" ||
	fail "the VM ended before the tests did, vng's exit status is $rc"
# The runner also succeeds if all tests are skipped.
[ $rc = 0 ] || exit 1
grep -q '^# Totals: pass:[1-9][0-9]* fail:0 ' "$log" || exit 1
