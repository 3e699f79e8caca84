/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * /dev/udmabuf: create dma-bufs from memory of the calling process, or of memfds.
 *
 * Linux has had the ioctls for memfds since 4.20. To compile a program that was
 * written for their header, put
 *
 *	#define UDMABUF_MEMFD_NAMES
 *
 * before the include, or -DUDMABUF_MEMFD_NAMES on the command line. UDMABUF_CREATE and
 * struct udmabuf_create are then UDMABUF_CREATE_MEMFD and its argument. Otherwise they
 * are UDMABUF_CREATE_IOVEC and its argument. The names with _iovec and _memfd are the
 * same in both cases.
 */
#ifndef _UAPI_LINUX_UDMABUF_H
#define _UAPI_LINUX_UDMABUF_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * DOC: errors
 *
 * Every rule has one errno. After an error, no page stays pinned or charged, and no
 * new file descriptor stays open.
 *
 * All ioctls:
 *
 * - ENOTTY: the device does not have this ioctl.
 * - ENOMEM: the kernel is out of memory, at any step.
 *
 * %UDMABUF_CREATE_IOVEC checks in this order, before it pins any page:
 *
 * - EFAULT: &udmabuf_create_iovec.flags or &udmabuf_create_iovec.niov cannot be read.
 * - EINVAL: a flag is unknown.
 * - EINVAL: niov is 0.
 * - E2BIG: niov is over the module parameter list_limit.
 * - EFAULT: an entry cannot be read.
 * - EINVAL: a base or a length is not a multiple of the page size.
 * - EINVAL: a length is 0.
 * - EINVAL: base + length wraps.
 * - E2BIG: the lengths add up to more than the module parameter size_limit_mb, to more
 *   than INT_MAX pages, or to more than a size_t of the kernel holds.
 * - ENOMEM: the lengths add up to more than the machine's memory.
 * - ENOMEM: the pages would take the caller's user over RLIMIT_MEMLOCK, and the caller
 *   lacks CAP_IPC_LOCK.
 *
 * While it pins the pages, the first problem determines the errno:
 *
 * - EFAULT: a range is not mapped, or ends behind the address space.
 * - EFAULT: a range is not writable; with %UDMABUF_FLAGS_RDONLY, it is not readable.
 * - EFAULT: a range is a mapping of device memory or of memfd_secret(2).
 * - EFAULT: a page has a memory failure.
 * - EOPNOTSUPP: a range maps a file of a file system other than tmpfs and hugetlbfs, or
 *   fs-dax. Such memory must not be shared this way.
 * - EOPNOTSUPP: %UDMABUF_FLAGS_RDONLY on a kernel before 6.2, which cannot keep a
 *   read-only pin coherent.
 * - E2BIG: without %UDMABUF_FLAGS_RDONLY, the memory consists of more than list_limit
 *   stretches, each of one memfd.
 * - ENOMEM: a page is pinned so often that its reference count could overflow.
 * - ENOMEM: a page cannot be migrated to memory where it may stay pinned.
 * - EINTR: a fatal signal arrived.
 *
 * When the pages are pinned:
 *
 * - EMFILE: the process has no free file descriptor.
 * - ENFILE: the system has too many open files.
 *
 * %UDMABUF_CREATE_MEMFD and %UDMABUF_CREATE_LIST check in this order, before they pin
 * any page:
 *
 * - EFAULT: the argument without the entries cannot be read.
 * - EINVAL: &udmabuf_create_list.count is 0.
 * - EINVAL: count is over the module parameter list_limit.
 * - EFAULT: an entry cannot be read.
 * - EINVAL: an offset or a size is not a multiple of the page size.
 * - EINVAL: the sizes add up to more than the module parameter size_limit_mb, to more
 *   than INT_MAX pages, or to more than a size_t of the kernel holds.
 * - EINVAL: the sizes add up to 0.
 * - ENOMEM: the sizes add up to more than the machine's memory.
 *
 * They check and pin one entry after the other:
 *
 * - EBADFD: the file descriptor is not open.
 * - EBADFD: the file is not a regular file of tmpfs or hugetlbfs. All memfds are such
 *   files.
 * - EINVAL: the file lacks %F_SEAL_SHRINK. Files of tmpfs and hugetlbfs that are not
 *   memfds cannot have this seal.
 * - EINVAL: the file has %F_SEAL_WRITE or %F_SEAL_FUTURE_WRITE.
 * - EINVAL: the size is 0, or the range ends behind the end of the file.
 * - EACCES: the file descriptor is not open for writing.
 * - EACCES: the file descriptor is not open for reading. Only the out-of-tree module
 *   for kernels before 6.11 requires that.
 * - EFAULT: a page has a memory failure.
 * - ENOMEM, EINTR: the rules while pages are pinned, as for %UDMABUF_CREATE_IOVEC.
 * - ENOMEM: a limit of tmpfs, of hugetlbfs or of overcommit is exceeded.
 *
 * When the pages are pinned: EMFILE and ENFILE, as for %UDMABUF_CREATE_IOVEC.
 */

/**
 * define UDMABUF_FLAGS_CLOEXEC - set the close-on-exec flag of the new file
 * descriptor.
 */
#define UDMABUF_FLAGS_CLOEXEC	0x01

/**
 * define UDMABUF_FLAGS_RDONLY - create a read-only buffer.
 *
 * The ranges need only be readable. The dma-buf is open for reading only, and its
 * mappings cannot be made writable. Importers may map it only for transfers to the
 * device (DMA_TO_DEVICE), and get no kernel mapping. The creator can still write to
 * its own memory, and importers see these writes.
 */
#define UDMABUF_FLAGS_RDONLY	0x02

/**
 * struct udmabuf_iovec - a range of the caller's memory
 * @base: address of the first byte, a multiple of the page size
 * @len:  length in bytes, a multiple of the page size, not 0
 *
 * Unlike struct iovec, this struct has the same layout in 32-bit and 64-bit programs.
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
 * @iovs:  the ranges, in the order of the buffer; they may touch, overlap and
 *         repeat
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
 * consists of the caller's own pages, without a copy. Its size is the sum of the
 * lengths.
 *
 * Every page counts against RLIMIT_MEMLOCK of the caller's user, as often as it is
 * named, until the last reference to the dma-buf is gone, in whichever process.
 *
 * Return: a dma-buf file descriptor, or -1 with errno set (see the list of errors).
 */
#define UDMABUF_CREATE_IOVEC	_IOW(0x42, 0x23, struct udmabuf_create_iovec)

/**
 * struct udmabuf_create_memfd - argument of %UDMABUF_CREATE_MEMFD
 * @memfd:  file descriptor of memfd_create(2), open for writing (for the
 *          out-of-tree module before Linux 6.11 also for reading), sealed with
 *          %F_SEAL_SHRINK but not against writing
 * @flags:  %UDMABUF_FLAGS_CLOEXEC or 0; other bits are ignored
 * @offset: start of the range in the file, in bytes, a multiple of the page size
 *          (also for a hugetlb memfd: 4 KiB pages of a huge page may be named)
 * @size:   length of the range in bytes, a multiple of the page size, not 0
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
 * @list:  the ranges, of one or several memfds, in the order of the buffer; they
 *         may touch, overlap and repeat
 */
struct udmabuf_create_list {
	__u32 flags;
	__u32 count;
	struct udmabuf_create_item list[];
};

/**
 * define UDMABUF_CREATE_MEMFD - pin a range of a memfd as a dma-buf
 *
 * Takes a struct udmabuf_create_memfd. Holes in the file are filled. The pages do not
 * count against RLIMIT_MEMLOCK. After %F_SEAL_FUTURE_WRITE has been added to the memfd,
 * the buffer cannot be mapped for writing any more (EPERM).
 *
 * Return: a dma-buf file descriptor, or -1 with errno set (see the list of errors).
 */
#define UDMABUF_CREATE_MEMFD	_IOW('u', 0x42, struct udmabuf_create_memfd)

/**
 * define UDMABUF_CREATE_LIST - pin ranges of memfds as one dma-buf
 *
 * Takes a struct udmabuf_create_list. In all other respects it is like
 * %UDMABUF_CREATE_MEMFD.
 *
 * Return: a dma-buf file descriptor, or -1 with errno set (see the list of errors).
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
