// SPDX-License-Identifier: GPL-2.0-only
/*
 * Library for LD_PRELOAD that damages each list of pieces that QEMU passes to
 * /dev/udmabuf, to verify that the demos detect a wrong picture. The environment
 * variable BREAK selects the damage:
 *
 *   swap  exchanges the first and the last piece
 *   page  shifts the piece in the middle down by one page
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <linux/udmabuf.h>

#define PAGE	4096

static void swap(void *first, void *last, size_t size)
{
	char spare[sizeof(struct udmabuf_create_item)];

	memcpy(spare, first, size);
	memcpy(first, last, size);
	memcpy(last, spare, size);
}

static void damage_iovecs(struct udmabuf_create_iovec *create, const char *how)
{
	struct udmabuf_iovec *iovs = create->iovs;
	__u32 n = create->niov;

	if (n && !strcmp(how, "swap"))
		swap(&iovs[0], &iovs[n - 1], sizeof(iovs[0]));
	if (n && !strcmp(how, "page"))
		iovs[n / 2].base -= PAGE;
}

static void damage_list(struct udmabuf_create_list *create, const char *how)
{
	struct udmabuf_create_item *list = create->list;
	__u32 n = create->count;

	if (n && !strcmp(how, "swap"))
		swap(&list[0], &list[n - 1], sizeof(list[0]));
	if (n && !strcmp(how, "page"))
		list[n / 2].offset -= PAGE;
}

int ioctl(int fd, unsigned long cmd, ...)
{
	int (*next)(int fd, unsigned long cmd, ...) = dlsym(RTLD_NEXT, "ioctl");
	const char *how = getenv("BREAK");
	va_list ap;
	void *arg;

	va_start(ap, cmd);
	arg = va_arg(ap, void *);
	va_end(ap);
	/* cmd may be sign-extended: QEMU has it in an int */
	if (how && (unsigned int)cmd == UDMABUF_CREATE_IOVEC)
		damage_iovecs(arg, how);
	if (how && (unsigned int)cmd == UDMABUF_CREATE_LIST)
		damage_list(arg, how);
	return next(fd, cmd, arg);
}
