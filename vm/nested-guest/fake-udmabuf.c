// SPDX-License-Identifier: GPL-2.0-only
/*
 * Library for LD_PRELOAD that simulates /dev/udmabuf for QEMU, for tests of the guest's
 * kernel on a host without the device. The buffers are empty memfds of the right size: the
 * screen is black, but virtio-gpu in the guest gets the same responses.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define UDMABUF_MEMFD_NAMES
#include <linux/udmabuf.h>

static int device = -1;

static int open_any(const char *path, int flags, int mode)
{
	if (strcmp(path, "/dev/udmabuf"))
		return openat(AT_FDCWD, path, flags, mode);
	device = memfd_create("udmabuf", MFD_CLOEXEC);
	return device;
}

#define OPEN(name)						\
	int name(const char *path, int flags, ...)		\
	{							\
		va_list ap;					\
		int mode;					\
								\
		va_start(ap, flags);				\
		mode = va_arg(ap, int);				\
		va_end(ap);					\
		return open_any(path, flags, mode);		\
	}

OPEN(open)
OPEN(open64)

static int create(const struct udmabuf_create_list *list)
{
	int memfd = memfd_create("buffer", MFD_CLOEXEC);
	off_t size = 0;
	__u32 i;

	for (i = 0; i < list->count; i++)
		size += list->list[i].size;
	if (memfd >= 0 && ftruncate(memfd, size)) {
		close(memfd);
		return -1;
	}
	return memfd;
}

int ioctl(int fd, unsigned long cmd, ...)
{
	int (*next)(int fd, unsigned long cmd, ...) = dlsym(RTLD_NEXT, "ioctl");
	va_list ap;
	void *arg;

	va_start(ap, cmd);
	arg = va_arg(ap, void *);
	va_end(ap);
	/* cmd may be sign-extended: QEMU has it in an int */
	if (fd >= 0 && fd == device && (unsigned int)cmd == UDMABUF_CREATE_LIST)
		return create(arg);
	return next(fd, cmd, arg);
}
