/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * /dev/udmabuf: make a dma-buf from ranges of the calling process's memory.
 */
#ifndef _UAPI_LINUX_UDMABUF_H
#define _UAPI_LINUX_UDMABUF_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * DOC: errors
 *
 * Every rule has one errno. The rules are checked in this order, down to the
 * quota before anything is pinned or charged; after any error nothing stays
 * pinned or charged and no file descriptor is left behind.
 *
 * - ENOTTY: not an ioctl of this device.
 * - EFAULT: the argument cannot be read.
 * - EINVAL: an unknown flag; &udmabuf_create.niov is 0; a base or a length is
 *   not a multiple of the page size; a length is 0; base + length wraps.
 * - E2BIG: &udmabuf_create.niov is over the module parameter list_limit (the
 *   entries are then not looked at); the lengths add up to more than the module
 *   parameter size_limit_mb or to more than INT_MAX pages.
 * - ENOMEM: the pages would take the caller's user over RLIMIT_MEMLOCK and the
 *   caller lacks CAP_IPC_LOCK; one page is named so often that its reference
 *   count could overflow; a page cannot be moved to where it may stay pinned;
 *   or the kernel is out of memory.
 * - EFAULT: a range is not mapped, is not writable (unless
 *   %UDMABUF_FLAGS_RDONLY), is a mapping of device memory or of memfd_secret(2),
 *   or holds a page with a memory failure.
 * - EOPNOTSUPP: a range maps memory that may not be shared this way: a file of
 *   a filesystem (other than tmpfs and hugetlbfs), or fs-dax; or
 *   %UDMABUF_FLAGS_RDONLY on a kernel that cannot keep a read-only pin coherent
 *   (before 6.2).
 * - EINTR: a fatal signal arrived.
 * - EMFILE, ENFILE: no file descriptor is to be had.
 */

/**
 * define UDMABUF_FLAGS_CLOEXEC - set the close-on-exec flag of the new file
 * descriptor.
 */
#define UDMABUF_FLAGS_CLOEXEC	0x01

/**
 * define UDMABUF_FLAGS_RDONLY - make a buffer that nobody can write to.
 *
 * The ranges need only be readable. The dma-buf is open for reading only, its
 * mappings cannot be made writable, importers may map it only for transfers to
 * the device and get no kernel address for it. The creator still writes to its
 * own memory and importers see that.
 */
#define UDMABUF_FLAGS_RDONLY	0x02

/**
 * struct udmabuf_iovec - a range of the caller's memory
 * @base: address of its first byte, a multiple of the page size
 * @len:  its length in bytes, a multiple of the page size, not 0
 *
 * Unlike struct iovec this has one layout for 32-bit and 64-bit programs.
 */
struct udmabuf_iovec {
	__u64 base;
	__u64 len;
};

/**
 * struct udmabuf_create - argument of %UDMABUF_CREATE
 * @flags: %UDMABUF_FLAGS_CLOEXEC, %UDMABUF_FLAGS_RDONLY or both; other bits
 *         must be 0
 * @niov:  number of entries in @iovs, at least 1
 * @iovs:  the ranges, in the order in which the buffer holds them; they may
 *         touch, overlap and repeat
 */
struct udmabuf_create {
	__u32 flags;
	__u32 niov;
	struct udmabuf_iovec iovs[];
};

/**
 * define UDMABUF_CREATE - pin ranges of the caller's memory as one dma-buf
 *
 * Takes a struct udmabuf_create. The ranges may be anonymous memory (of any
 * page size), shared memory (tmpfs, memfd) and hugetlb, in any mix. The buffer
 * shares these very pages with the caller; nothing is copied. Its size is the
 * sum of the lengths.
 *
 * The pages count against RLIMIT_MEMLOCK of the caller's user, each as often as
 * it is named, until the last reference to the dma-buf is gone, whoever holds
 * it.
 *
 * Return: a dma-buf file descriptor, or -1 with errno as listed above.
 */
#define UDMABUF_CREATE		_IOW(0x42, 0x23, struct udmabuf_create)

#endif /* _UAPI_LINUX_UDMABUF_H */
