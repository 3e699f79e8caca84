# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash disable=SC2034,SC2154
#
# vm/machines.sh: machines other than x86-64, for vm/check and vm/boot. Test programs are
# static, busybox is Debian's. arm64 runs the newest stock kernel. i386-6.1 (with highmem)
# and s390x (big-endian; no huge pages in QEMU) run the newest stock kernel of Debian for
# that machine, which is older. arm64-64k (64 KiB pages) and i386 run kernels built from
# the newest source. Compilers and these stock kernels are in a separate tool root. On two
# busy cores the tests take 10 minutes on s390x and 15 to 25 minutes on the others; a
# kernel takes 10 to 20 minutes to build.
#
#   $cache/apt/<architecture>/  package lists
#   $cache/machines/<machine>/  the kernel's build directory
#   $cache/machines/tests-<machine>/  test programs
#   $cache/machines/busybox.<architecture>  busybox
#   $cache/machines/build-<architecture>-<compiler>/  build directory of builds()

machines='arm64 arm64-64k i386 i386-6.1 s390x'

machine_tools='clang gcc-14-aarch64-linux-gnu gcc-14-multilib gcc-14-s390x-linux-gnu
	libc6-dev-arm64-cross libc6-dev-s390x-cross lld llvm qemu-system-arm qemu-system-s390x'

is_machine()
{
	[[ " $machines " = *" $1 "* ]]
}

# machine NAME: set the variables for building and running on that machine. $kernel_image
# is its kernel. $release is the stock kernel's release, empty if machine_stock has not
# fetched it, or if the kernel is built in $objects.
machine()
{
	args='' memory=3500M flavour=$1 target='' suites='trixie(-backports|-security)?'
	release=''
	case $1 in
	arm64*)	arch=arm64 debian=arm64 cross=aarch64-linux-gnu-
		emulator='qemu-system-aarch64 -machine virt -cpu neoverse-n1'
		memory=3000M	# RAM starts at 1 GiB and must end below 4 GiB
		port=virtio-serial-pci console=ttyAMA0 ;;
	i386*)	arch=i386 debian=i386 cross='' flavour=686-pae suites='bookworm(-security)?'
		# a CPU of family 6 would be an Athlon, which does not support SMP
		emulator='qemu-system-x86_64 -cpu max,la57=off,family=15'
		port=virtio-serial-pci console=ttyS0 ;;
	s390x)	arch=s390 debian=s390x cross=s390x-linux-gnu-
		emulator='qemu-system-s390x -machine s390-ccw-virtio -cpu max'
		port=virtio-serial-ccw console=ttysclp0 ;;
	esac
	case $1 in
	arm64-64k)
		flavour='' target=arch/arm64/boot/Image port=virtio-serial-device
		args=default_hugepagesz=2M ;;	# the default is 512 MiB
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

# machine_setup [VERSION...]: setup with the compilers and emulators of the machines.
# gcc-multilib conflicts with cross compilers; it is only a link, which this makes.
machine_setup()
{
	local tools=${tools/gcc-multilib/$machine_tools} name
	setup "$@"
	ln -sfn x86_64-linux-gnu/asm "$root/usr/include/asm"
	for name in aarch64 s390x; do
		ln -sf "$name-linux-gnu-gcc-14" "$root/usr/bin/$name-linux-gnu-gcc"
	done
}

# machine_apt CMD...: run apt with the package lists of the machine's architecture
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

# machine_fetch: fetch the machine's busybox and stock kernel if they are missing
machine_fetch()
{
	local debs=$cache/apt/$debian/debs
	if [ -x "$busybox" ] && { [ -z "$flavour" ] || [ -n "$release" ]; }; then
		return
	fi
	machine_apt get update || :	# partial lists of a mirror in update may be enough
	rm -rf "$debs"
	mkdir -p "$debs" "$cache/machines"
	( cd "$debs" &&
		machine_apt get download busybox-static &&
		dpkg-deb --fsys-tarfile busybox-static_*.deb |
			tar -xO --wildcards '*/bin/busybox' >"$busybox" &&
		chmod +x "$busybox" &&
		{ [ -z "$flavour" ] || machine_stock; } )
}

# machine_stock: unpack the newest stock kernel that can be downloaded into the tool root.
# Its headers need linux-kbuild of the host's architecture.
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

# machine_config NAME: print vm/config/debug.config with the changes of vm/config/machines.config
machine_config()
{
	awk -v name="$1" '
	{ split($NF, option, "=") }
	FNR != NR { if (/^CONFIG/ && !(option[1] in change)) print; next }
	/CONFIG_/ && name ~ "^(" $1 ")$" { change[option[1]] = option[2] }
	END { for (o in change) if (change[o] != "n") print o "=" change[o] }
	' "$top/vm/config/machines.config" "$top/vm/config/debug.config"
}

# machine_make ARGUMENTS: run make in the kernel source for the machine
machine_make()
{
	CCACHE_DEPEND=1 in_root make -C "$tree" O="$objects" ARCH="$arch" CROSS_COMPILE="$cross" \
		CC="ccache ${cross}gcc" -j"$(nproc)" "$@"
}

# machine_kernel NAME: configure and build the kernel of that machine in $objects
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

# machine_tests DIR: build the test programs, udmabufctl and the samples into DIR
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

# builds: print the configurations to build-test: clang, other architectures, and each
# optional feature disabled. A disabled feature must not break linking, or else Kconfig
# must refuse the driver. Columns: name, architecture, compiler, what to do (compile the
# driver, link a kernel, or expect Kconfig to refuse), and changes to $build_options. The
# options are added to allnoconfig, or to the configuration that the name begins with.
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

# build NAME ARCHITECTURE COMPILER WHAT OPTIONS: build one row of builds(), in the build
# directory of earlier rows. Only the driver is built with W=1, which would check the
# comments of the whole kernel.
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
		esac || { echo "$1: unexpected configuration ($4): $option"; return 1; }
	done
	[ "$4" = refuse ] || in_root "${make[@]}" W=1 drivers/dma-buf/udmabuf.o || return
	[ "$4" != link ] || in_root "${make[@]}" vmlinux modules
}
