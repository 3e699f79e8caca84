# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash disable=SC2034,SC2154
#
# Machines other than x86-64, for vm/check and vm/boot, each with test programs
# linked statically and Debian's busybox: arm64 with the newest stock kernel; i386-6.1
# (with highmem) and s390x (big-endian; without huge pages in QEMU) with the newest that
# Debian has, which are older; arm64-64k (with pages of 64 KiB) and i386 with kernels
# built from the newest source. What all this needs is in a tool root of its own, as are
# these stock kernels. On two busy cores the tests take 10 minutes on s390x and 15 to 25
# on the others, a kernel 10 to 20 to build.
#
#   $cache/apt/<architecture>/  its package lists
#   $cache/machines/<machine>/  a kernel that is built
#   $cache/machines/tests-<machine>/  its test programs
#   $cache/machines/busybox.<architecture>  its busybox
#   $cache/machines/build-<architecture>-<compiler>/  of the other builds

machines='arm64 arm64-64k i386 i386-6.1 s390x'

machine_tools='clang gcc-14-aarch64-linux-gnu gcc-14-multilib gcc-14-s390x-linux-gnu
	libc6-dev-arm64-cross libc6-dev-s390x-cross lld llvm qemu-system-arm qemu-system-s390x'

is_machine()
{
	[[ " $machines " = *" $1 "* ]]
}

# machine NAME: what building for it and running it takes, and where its kernel is:
# $release if it is a stock one, which machine_stock may have to fetch, else $objects
machine()
{
	args='' memory=3500M flavour=$1 target='' suites='trixie(-backports|-security)?'
	release=''
	case $1 in
	arm64*)	arch=arm64 debian=arm64 cross=aarch64-linux-gnu-
		emulator='qemu-system-aarch64 -machine virt -cpu neoverse-n1'
		memory=3000M	# it begins at 1 GiB
		port=virtio-serial-pci console=ttyAMA0 ;;
	i386*)	arch=i386 debian=i386 cross='' flavour=686-pae suites='bookworm(-security)?'
		# of family 6 it would be an Athlon, of which there cannot be two
		emulator='qemu-system-x86_64 -cpu max,la57=off,family=15'
		port=virtio-serial-pci console=ttyS0 ;;
	s390x)	arch=s390 debian=s390x cross=s390x-linux-gnu-
		emulator='qemu-system-s390x -machine s390-ccw-virtio -cpu max'
		port=virtio-serial-ccw console=ttysclp0 ;;
	esac
	case $1 in
	arm64-64k)
		flavour='' target=arch/arm64/boot/Image port=virtio-serial-device
		args=default_hugepagesz=2M ;;	# rather than 512 MiB
	i386)	flavour='' target=arch/x86/boot/bzImage ;;
	esac
	objects=$cache/machines/$1
	busybox=$cache/machines/busybox.$debian
	kernel_image=$objects/$target
	[ -n "$flavour" ] || return 0
	release=$(cd "$root/usr/lib/modules" && find . -path "*[0-9]-$flavour/modules.dep" |
		cut -d/ -f2 | sort -V | tail -n 1)
	kernel_image=$root/usr/lib/modules/$release/vmlinuz
	[ -e "$kernel_image" ] || kernel_image=$root/boot/vmlinuz-$release
}

# machine_setup [VERSION...]: setup, with what the machines need. gcc-multilib is a
# link, and cannot be there with any cross compiler.
machine_setup()
{
	local tools=${tools/gcc-multilib/$machine_tools} name
	setup "$@"
	ln -sfn x86_64-linux-gnu/asm "$root/usr/include/asm"
	for name in aarch64 s390x; do
		ln -sf "$name-linux-gnu-gcc-14" "$root/usr/bin/$name-linux-gnu-gcc"
	done
}

# machine_apt CMD...: with the package lists of the machine's architecture
machine_apt()
{
	local d=$cache/apt/$debian cmd=$1
	shift
	mkdir -p "$d/lists/partial"
	grep -E " $suites main" "$cache/apt/sources.list" >"$d/sources.list"
	cat >"$d/apt.conf" <<-END
	#clear APT::Architectures;
	APT::Architecture "$debian";
	APT::Architectures { "$debian"; };
	Dir::Etc::sourcelist "$d/sources.list";
	Dir::State::lists "$d/lists";
	Dir::Cache { pkgcache ""; srcpkgcache ""; };
	END
	apt_ "$cmd" -c "$d/apt.conf" "$@"
}

# machine_fetch: its busybox and its stock kernel, unless they are there
machine_fetch()
{
	local debs=$cache/apt/$debian/debs
	if [ -x "$busybox" ] && { [ -z "$flavour" ] || [ -n "$release" ]; }; then
		return
	fi
	machine_apt get update || :	# of a mirror that is just being updated a part may do
	rm -rf "$debs"
	mkdir -p "$debs" "$cache/machines"
	( cd "$debs" &&
		machine_apt get download busybox-static &&
		dpkg-deb --fsys-tarfile busybox-static_*.deb |
			tar -xO --wildcards '*/bin/busybox' >"$busybox" &&
		chmod +x "$busybox" &&
		{ [ -z "$flavour" ] || machine_stock; } )
}

# machine_stock: the newest kernel that can be had, into the tool root. Its headers want
# programs of ours.
machine_stock()
{
	local image="^linux-image-[0-9.]+[^-]*(-[0-9]+)?-$flavour\$" rel packages kbuild deb
	for rel in $(machine_apt cache search --names-only "$image" |
		sed -n 's/^linux-image-\([^ ]*\) .*/\1/p' | sort -rV); do
		packages=$(machine_apt cache search --names-only \
			"^linux-(base|binary|headers|image|modules)-${rel/+/\\+}\$" | cut -d' ' -f1)
		kbuild=$(machine_apt cache depends "linux-headers-$rel" | grep -o 'linux-kbuild-.*')
		# shellcheck disable=SC2086
		if machine_apt get download $packages "linux-headers-${rel%-"$flavour"}-common" &&
			apt_ get download "$kbuild"; then
			break
		fi
		rm -f linux-*.deb
	done
	for deb in linux-*.deb; do
		dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$root" --keep-directory-symlink \
			--exclude='./usr/share/doc/*' || return
	done
	in_root depmod "$rel"
}

# machine_config NAME: vm/debug.config as vm/machines.config has it changed
machine_config()
{
	awk -v name="$1" '
	{ split($NF, option, "=") }
	FNR != NR { if (/^CONFIG/ && !(option[1] in change)) print; next }
	/CONFIG_/ && name ~ "^(" $1 ")$" { change[option[1]] = option[2] }
	END { for (o in change) if (change[o] != "n") print o "=" change[o] }
	' "$top/vm/machines.config" "$top/vm/debug.config"
}

# machine_make ARGUMENTS: in the kernel source
machine_make()
{
	CCACHE_DEPEND=1 in_root make -C "$tree" O="$objects" ARCH="$arch" CROSS_COMPILE="$cross" \
		CC="ccache ${cross}gcc" -j"$(nproc)" "$@"
}

# machine_kernel NAME
machine_kernel()
{
	mkdir -p "$objects"
	machine_config "$1" >"$objects/fragment.new"
	if ! cmp -s "$objects/fragment.new" "$objects/fragment"; then
		configure "$objects" "$objects/fragment.new" ARCH="$arch" CROSS_COMPILE="$cross" || return
		mv "$objects/fragment.new" "$objects/fragment"
	fi
	machine_make "${target##*/}" modules
}

# machine_tests DIR: its test programs, udmabufctl and the example of README.md
machine_tests()
{
	local out=$cache/machines/tests-$arch cc=${cross}gcc name
	if [ "$arch" = i386 ]; then
		cc='gcc -m32'
		for name in "$work"/tests/*_32; do
			cp "$name" "$1/$(basename "$name" _32)" || return
		done
	else
		in_root make -j"$(nproc)" -C "$tree/tools/testing/selftests" \
			TARGETS=drivers/dma-buf O="$out" ARCH="$arch" CROSS_COMPILE="$cross" \
			USERLDFLAGS=-static KDIR=/none all &&
		find "$out/kselftest/drivers/dma-buf" -maxdepth 1 -type f -perm -1 \
			-exec cp -t "$1" {} + || return
	fi
	for name in samples tools; do
		in_root make -C "$top/$name/udmabuf" CC="$cc" LDFLAGS=-static OUT="$1" || return
	done
}

# The driver as others may build it: by the other compiler, for other machines, and
# without each thing that it can do without, which then must not be missed in linking
# either; or Kconfig refuses. Columns: a name, the machine, the compiler, whether to
# link a kernel or only compile the driver, and what differs from these options. They
# are added to allnoconfig, or to the configuration that the name begins with.
build_options='64BIT=y EXPERT=y HUGETLBFS=y IA32_EMULATION=y MEMFD_CREATE=y MODULES=y
	MULTIUSER=y NET=y SHMEM=y TMPFS=y TRANSPARENT_HUGEPAGE=y UDMABUF=m'
builds()
{
	local none='TRANSPARENT_HUGEPAGE=n HUGETLBFS=n SHMEM=n TMPFS=n MEMFD_CREATE=n'
	local arm='64BIT= IA32_EMULATION=' i386='64BIT=n IA32_EMULATION='
	cat <<-END
	defconfig|x86_64|gcc|compile|
	defconfig-clang|x86_64|clang|compile|
	allmodconfig|x86_64|gcc|compile|
	allmodconfig-clang|x86_64|clang|compile|
	clang-y|x86_64|clang|compile|UDMABUF=y X86_MCE=y MEMORY_FAILURE=y
	clang-m|x86_64|clang|compile|
	arm64|arm64|aarch64-linux-gnu-gcc|compile|$arm MEMORY_FAILURE=y
	arm64-64k|arm64|aarch64-linux-gnu-gcc|compile|$arm ARM64_64K_PAGES=y
	arm64-clang|arm64|clang|compile|$arm
	s390x|s390|s390x-linux-gnu-gcc|compile|$arm
	i386-highmem|i386|gcc|compile|$i386 HIGHMEM4G=y
	no-SWIOTLB|i386|gcc|link|$i386 SWIOTLB=n
	none-of-them|i386|gcc|link|$i386 $none SWIOTLB=n UDMABUF=y
	no-TRANSPARENT_HUGEPAGE|x86_64|gcc|link|TRANSPARENT_HUGEPAGE=n
	no-HUGETLBFS|x86_64|gcc|link|HUGETLBFS=n
	no-SHMEM|x86_64|gcc|link|SHMEM=n TMPFS=n
	no-MEMFD_CREATE|x86_64|gcc|link|MEMFD_CREATE=n TMPFS=n HUGETLBFS=n
	no-COMPAT|x86_64|gcc|link|IA32_EMULATION=n COMPAT=n
	no-HAS_DMA|um|gcc|link|IA32_EMULATION= TRANSPARENT_HUGEPAGE= HUGETLBFS= HAS_DMA=n
	no-locked_vm|x86_64|gcc|refuse|NET=n IO_URING=n SECRETMEM=n
	PAGE_TABLE_CHECK|x86_64|gcc|link|PAGE_TABLE_CHECK=y PAGE_TABLE_CHECK_ENFORCED=y
	END
}

# build NAME ARCHITECTURE COMPILER WHAT OPTIONS: a row of the above, built on what the
# last one left. W=1 would have all of a kernel's comments checked.
build()
{
	local o=$cache/machines/build-$2-$3 make option fragment
	make=(env CCACHE_DEPEND=1 make -C "$tree" O="$o" ARCH="$2" CC="ccache $3" -j"$(nproc)")
	case $3 in
	clang)	make+=(LLVM=1) ;;
	*-gcc)	make+=(CROSS_COMPILE="${3%gcc}") ;;
	esac
	# shellcheck disable=SC2086 # two lists
	fragment=$(printf '%s\n' $5 $build_options | awk -F= '!seen[$1]++ && $2 { print "CONFIG_" $0 }')
	mkdir -p "$o"
	echo "$fragment" >"$o/fragment"
	case $1 in
	defconfig*|allmodconfig*)
		in_root "${make[@]}" "${1%%-*}" || return
		echo "$fragment" >>"$o/.config"
		in_root "${make[@]}" olddefconfig || return ;;
	*)	in_root "${make[@]}" KCONFIG_ALLCONFIG="$o/fragment" allnoconfig || return ;;
	esac
	for option in $fragment; do
		case $4$option in
		refuseCONFIG_UDMABUF=*)	! grep -q '^CONFIG_UDMABUF=' "$o/.config" ;;
		*=n)			! grep -q "^${option%n}" "$o/.config" ;;
		*)			grep -qx "$option" "$o/.config" ;;
		esac || { echo "not as it should be in the configuration: $option"; return 1; }
	done
	[ "$4" = refuse ] || in_root "${make[@]}" W=1 drivers/dma-buf/udmabuf.o || return
	[ "$4" != link ] || in_root "${make[@]}" vmlinux modules
}
