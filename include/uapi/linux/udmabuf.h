/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * /dev/udmabuf: make a dma-buf from ranges of the calling process's memory, or
 * of memfds.
 *
 * The calls for memfds are those that Linux has had since 4.20. To compile a program
 * that was written for their header, put
 *
 *	#define UDMABUF_MEMFD_NAMES
 *
 * before the include, or -DUDMABUF_MEMFD_NAMES on the command line: UDMABUF_CREATE and
 * struct udmabuf_create then mean UDMABUF_CREATE_MEMFD and its argument. Without it they
 * mean UDMABUF_CREATE_IOVEC and its argument. The names with _iovec and _memfd mean the
 * same in both cases.
 */
#ifndef _UAPI_LINUX_UDMABUF_H
#define _UAPI_LINUX_UDMABUF_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * DOC: errors
 *
 * Every rule has one errno; after any error nothing stays pinned or charged and
 * no file descriptor is left behind. ENOTTY: not an ioctl of this device.
 *
 * %UDMABUF_CREATE_IOVEC checks in this order, down to the quota before anything
 * is pinned or charged:
 *
 * - EFAULT: the argument cannot be read.
 * - EINVAL: an unknown flag; &udmabuf_create_iovec.niov is 0.
 * - E2BIG: &udmabuf_create_iovec.niov is over the module parameter list_limit.
 * - EINVAL: a base or a length is not a multiple of the page size; a length is 0;
 *   base + length wraps.
 * - E2BIG: the lengths add up to more than the module parameter size_limit_mb or to
 *   more than INT_MAX pages.
 * - ENOMEM: the lengths add up to more than the machine's memory; the pages would
 *   take the caller's user over RLIMIT_MEMLOCK and the caller lacks CAP_IPC_LOCK; one
 *   page is named so often that its reference count could overflow; a page cannot be
 *   moved to where it may stay pinned; or the kernel is out of memory.
 * - EFAULT: a range is not mapped, is not writable (unless
 *   %UDMABUF_FLAGS_RDONLY), is a mapping of device memory or of memfd_secret(2),
 *   or holds a page with a memory failure.
 * - EOPNOTSUPP: a range maps memory that may not be shared this way: a file of
 *   a filesystem (other than tmpfs and hugetlbfs), or fs-dax; or
 *   %UDMABUF_FLAGS_RDONLY on a kernel that cannot keep a read-only pin coherent
 *   (before 6.2).
 * - E2BIG: the memory consists of more than list_limit stretches, each of one memfd,
 *   unless %UDMABUF_FLAGS_RDONLY.
 * - EINTR: a fatal signal arrived.
 * - EMFILE, ENFILE: no file descriptor is to be had.
 *
 * %UDMABUF_CREATE_MEMFD and %UDMABUF_CREATE_LIST:
 *
 * - EFAULT: the argument cannot be read.
 * - EINVAL: &udmabuf_create_list.count is 0 or over the module parameter
 *   list_limit; an offset or a size is not a multiple of the page size; the
 *   sizes add up to 0, to more than the module parameter size_limit_mb or to
 *   more than INT_MAX pages.
 * - ENOMEM: the sizes add up to more than the machine's memory.
 *
 * and then for one entry after the other:
 *
 * - EBADFD: not an open file, or not a regular file of tmpfs (as memfds are) or of
 *   hugetlbfs.
 * - EINVAL: the file lacks %F_SEAL_SHRINK, as all but memfds do, or has %F_SEAL_WRITE
 *   or %F_SEAL_FUTURE_WRITE; the size is 0, or the range ends behind the file.
 * - EACCES: the file descriptor is not open for writing.
 * - ENOMEM: as above, but for RLIMIT_MEMLOCK, which does not apply.
 * - EFAULT: the range holds a page with a memory failure.
 * - EINTR, EMFILE, ENFILE: as above.
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
 * struct udmabuf_create_iovec - argument of %UDMABUF_CREATE_IOVEC
 * @flags: %UDMABUF_FLAGS_CLOEXEC, %UDMABUF_FLAGS_RDONLY or both; other bits
 *         must be 0
 * @niov:  number of entries in @iovs, at least 1
 * @iovs:  the ranges, in the order in which the buffer holds them; they may
 *         touch, overlap and repeat
 */
struct udmabuf_create_iovec {
	__u32 flags;
	__u32 niov;
	struct udmabuf_iovec iovs[];
};

/**
 * define UDMABUF_CREATE_IOVEC - pin ranges of the caller's memory as one dma-buf
 *
 * Takes a struct udmabuf_create_iovec. The ranges may be anonymous memory (of any
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
#define UDMABUF_CREATE_IOVEC	_IOW(0x42, 0x23, struct udmabuf_create_iovec)

/**
 * struct udmabuf_create_memfd - argument of %UDMABUF_CREATE_MEMFD
 * @memfd:  a file descriptor, open for writing, of memfd_create(2), sealed with
 *          %F_SEAL_SHRINK but not against writing
 * @flags:  %UDMABUF_FLAGS_CLOEXEC or 0; other bits are ignored
 * @offset: where the range begins in the file, in bytes, a multiple of the page
 *          size (4K pages of a hugetlb memfd may be named one by one)
 * @size:   its length in bytes, a multiple of the page size, not 0
 */
struct udmabuf_create_memfd {
	__u32 memfd;
	__u32 flags;
	__u64 offset;
	__u64 size;
};

/**
 * struct udmabuf_create_item - a range of a memfd
 * @memfd:  as in struct udmabuf_create_memfd
 * @__pad:  ignored
 * @offset: as in struct udmabuf_create_memfd
 * @size:   as in struct udmabuf_create_memfd
 */
struct udmabuf_create_item {
	__u32 memfd;
	__u32 __pad;
	__u64 offset;
	__u64 size;
};

/**
 * struct udmabuf_create_list - argument of %UDMABUF_CREATE_LIST
 * @flags: %UDMABUF_FLAGS_CLOEXEC or 0; other bits are ignored
 * @count: number of entries in @list, at least 1
 * @list:  the ranges, of one or several memfds, in the order in which the buffer
 *         holds them; they may touch, overlap and repeat
 */
struct udmabuf_create_list {
	__u32 flags;
	__u32 count;
	struct udmabuf_create_item list[];
};

/**
 * define UDMABUF_CREATE_MEMFD - pin a range of a memfd as a dma-buf
 *
 * Takes a struct udmabuf_create_memfd. Holes in the file are filled. Nothing is
 * charged against RLIMIT_MEMLOCK. After %F_SEAL_FUTURE_WRITE has been added to
 * the memfd the buffer cannot be mapped for writing any more (EPERM).
 *
 * Return: a dma-buf file descriptor, or -1 with errno as listed above.
 */
#define UDMABUF_CREATE_MEMFD	_IOW('u', 0x42, struct udmabuf_create_memfd)

/**
 * define UDMABUF_CREATE_LIST - pin ranges of memfds as one dma-buf
 *
 * Takes a struct udmabuf_create_list; otherwise as %UDMABUF_CREATE_MEMFD.
 *
 * Return: a dma-buf file descriptor, or -1 with errno as listed above.
 */
#define UDMABUF_CREATE_LIST	_IOW('u', 0x43, struct udmabuf_create_list)

/*
 * UDMABUF_CREATE - UDMABUF_CREATE_IOVEC, or UDMABUF_CREATE_MEMFD
 */
#ifndef UDMABUF_MEMFD_NAMES
struct udmabuf_create {
	__u32 flags;
	__u32 niov;
	struct udmabuf_iovec iovs[];
};

#define UDMABUF_CREATE		_IOW(0x42, 0x23, struct udmabuf_create)
#else
struct udmabuf_create {
	__u32 memfd;
	__u32 flags;
	__u64 offset;
	__u64 size;
};

#define UDMABUF_CREATE		_IOW('u', 0x42, struct udmabuf_create)
#endif

#endif /* _UAPI_LINUX_UDMABUF_H */
