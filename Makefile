# SPDX-License-Identifier: GPL-2.0-only
# Entry points. The implementation is in scripts/, vm/, bench/, series/ and packaging/.

help:
	@echo 'make demo                  show a framebuffer in malloc memory on a VM display: demo.png'
	@echo 'make demo-qemu             show a guest'"'"'s framebuffer in QEMU, from any guest memory: demo-qemu.png'
	@echo 'make demo-chain            show memory of a guest program through the driver in guest and host: demo-chain.png'
	@echo 'make demo-wayland          show a framebuffer in malloc memory as a window in Weston: demo-wayland.png'
	@echo 'make clients               run packaged programs that open the device: Mesa, GStreamer, GTK, ...'
	@echo 'make check                 run all tests on kernels 6.1, 6.12, newest and debug; demos, clients, bench, checks'
	@echo 'make check KERNELS=...     run the tests on these kernels, and the checks on the host, e.g. KERNELS="6.1 debug"'
	@echo 'make soak                  run races and fuzzing for SOAK seconds (1200) on debug and KCSAN kernels, and load'
	@echo 'make machines              run all tests on arm64, s390x and 32-bit x86; build-test reduced configurations'
	@echo 'make bench                 measure each operation of this driver and of mainline'"'"'s (UPDATE=1 saves the result)'
	@echo 'make module [KDIR=<dir>]   build the module for the running kernel, or for the kernel build directory KDIR'
	@echo 'make install               install the module (by DKMS if present), udmabufctl and the header; PREFIX, DESTDIR'
	@echo 'make uninstall             remove the files that make install installed'
	@echo 'make headers-test          build the module for each Debian kernel, and against edited kernel headers'
	@echo 'make deb                   build Debian packages of the module (DKMS), udmabufctl and the header in build/deb'
	@echo 'make deb-test              install, use and remove these packages in a VM with Debian 13'
	@echo 'make install-test          test make install and uninstall from a tarball, in VMs with Debian 12 and 13'
	@echo 'make apply TREE=<dir>      copy the driver, tests, tools and documentation into a kernel source tree'
	@echo 'make patches TREE=<dir>    write the same change as a patch series to build/patches (OUT=<dir>)'
	@echo 'make lint                  run checkpatch, sparse, Coccinelle, ... on the series and on each patch'
	@echo 'make qemu                  build QEMU with patches/qemu, to export any guest memory; prints the path last'
	@echo 'make vm [KERNEL=6.12]      open a shell in a VM with the driver loaded and the tests in /tests'
	@echo 'make clean                 remove build/; the cache in ~/.cache/udmabuf (UDMABUF_CACHE) stays'

demo:
	@vm/demo $(KERNEL)

demo-qemu:
	@vm/demo-qemu $(KERNEL)

demo-chain:
	@vm/demo-chain $(KERNEL)

demo-wayland:
	@vm/demo-wayland $(KERNEL)

clients:
	@vm/clients $(KERNEL)

check:
	@vm/check $(KERNELS)

soak:
	@SOAK=$(or $(SOAK),1200) vm/check large soak kcsan

machines:
	@vm/check arm64 arm64-64k i386 i386-6.1 s390x builds

bench:
	@bench/run $(if $(UPDATE),-u) $(KERNELS)

module:
	@scripts/module '$(KDIR)'

install:
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' DKMS='$(DKMS)' KDIR='$(KDIR)' packaging/install

uninstall:
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' packaging/install -u

headers-test:
	@scripts/headers-test

deb:
	@scripts/deb

deb-test:
	@vm/deb-test

install-test:
	@vm/install-test

apply:
	@scripts/apply '$(TREE)'

patches:
	@series/make '$(TREE)' '$(OUT)'

lint:
	@scripts/lint

qemu:
	@scripts/qemu

vm:
	@vm/check -i $(KERNEL)

clean:
	$(RM) -r build

.PHONY: help demo demo-qemu demo-chain demo-wayland clients check soak machines bench module install uninstall headers-test deb deb-test install-test apply patches lint qemu vm clean
