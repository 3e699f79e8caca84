# SPDX-License-Identifier: GPL-2.0-only
# The doors; what is behind them is in vm/.

help:
	@echo 'make demo                  a framebuffer in ordinary memory on a real screen: demo.png'
	@echo 'make demo-qemu             a guest'"'"'s screen in QEMU, with any guest memory: demo-qemu.png'
	@echo 'make demo-chain            the driver in a guest and in its host, one memory on the screen: demo-chain.png'
	@echo 'make demo-wayland          such a framebuffer as a window in Weston: demo-wayland.png'
	@echo 'make clients               packaged programs that open the device: Mesa, GStreamer, GTK, ...'
	@echo 'make check                 all tests, on the kernels 6.1, 6.12, the newest and a debug build, and the above'
	@echo 'make check KERNELS=...     the same on some of them, say KERNELS="6.1 debug"'
	@echo 'make soak                  races, fuzzing and load for SOAK seconds (1200) on two kernels that find mistakes'
	@echo 'make machines              all tests on arm64, s390x and 32-bit x86, and builds without this and that'
	@echo 'make bench                 what every operation costs, here and in mainline'"'"'s driver (UPDATE=1 keeps the result)'
	@echo 'make module [KDIR=<dir>]   build the module for the running kernel, or the one with that build directory'
	@echo 'make install               install it (by DKMS if there is DKMS), udmabufctl and the header; PREFIX, DESTDIR'
	@echo 'make uninstall             remove what that installed'
	@echo 'make headers-test          build the module for each kernel of Debian, and for others by edited headers'
	@echo 'make deb                   Debian packages of the module (by DKMS), udmabufctl and the header, in build/deb'
	@echo 'make deb-test              installs, uses and removes them in a VM with Debian 13'
	@echo 'make install-test          make install and uninstall from a tarball, in VMs with Debian 12 and 13'
	@echo 'make apply TREE=<dir>      lay the driver and all about it over a kernel source tree'
	@echo 'make patches TREE=<dir>    the same as a series of patches, in build/patches (OUT=<dir>)'
	@echo 'make lint                  what a maintainer runs before reading, on the series and each of its patches'
	@echo 'make qemu                  build QEMU with patches/qemu, which exports any memory; the last line is its path'
	@echo 'make vm [KERNEL=6.12]      a shell in a VM with the driver loaded, the tests in /tests'
	@echo 'make clean                 remove build/; the cache is in ~/.cache/udmabuf (UDMABUF_CACHE)'

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
	@vm/module '$(KDIR)'

install:
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' DKMS='$(DKMS)' KDIR='$(KDIR)' packaging/install

uninstall:
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' packaging/install -u

headers-test:
	@vm/headers-test

deb:
	@vm/deb

deb-test:
	@vm/deb-test

install-test:
	@vm/install-test

apply:
	@vm/apply '$(TREE)'

patches:
	@series/make '$(TREE)' '$(OUT)'

lint:
	@vm/lint

qemu:
	@vm/qemu

vm:
	@vm/check -i $(KERNEL)

clean:
	$(RM) -r build

.PHONY: help demo demo-qemu demo-chain demo-wayland clients check soak machines bench module install uninstall headers-test deb deb-test install-test apply patches lint qemu vm clean
