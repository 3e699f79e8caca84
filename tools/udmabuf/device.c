// SPDX-License-Identifier: GPL-2.0-only
/* The device: its driver, the driver's parameters, and the quota. */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "json.h"
#include "udmabufctl.h"

size_t page_size(void)
{
	return sysconf(_SC_PAGESIZE);
}

const char *device_path(void)
{
	return getenv("UDMABUF_DEVICE") ?: "/dev/udmabuf";
}

int open_device(void)
{
	int dev = open(device_path(), O_RDWR | O_CLOEXEC);

	if (dev < 0)
		errx(1, "cannot open %s: %s", device_path(), why_not_open(errno));
	return dev;
}

int create_iovec(int dev, unsigned int flags, const struct udmabuf_iovec *iovs,
		 unsigned int niov)
{
	struct udmabuf_create_iovec *args = malloc(sizeof(*args) + niov * sizeof(*iovs));
	int buffer, error;

	if (!args)
		err(1, "out of memory");
	args->flags = flags;
	args->niov = niov;
	memcpy(args->iovs, iovs, niov * sizeof(*iovs));
	buffer = ioctl(dev, UDMABUF_CREATE_IOVEC, args);
	error = errno;
	free(args);
	errno = error;
	return buffer;
}

/*
 * Both drivers refuse an empty list of memfds with EINVAL. Only mainline's refuses
 * UDMABUF_CREATE_IOVEC with ENOTTY, since it does not implement that ioctl.
 */
enum driver which_driver(int dev)
{
	struct udmabuf_create_list empty = {};

	if (ioctl(dev, UDMABUF_CREATE_LIST, &empty) >= 0 || errno != EINVAL)
		return DRIVER_UNKNOWN;
	if (create_iovec(dev, 0, NULL, 0) >= 0)
		return DRIVER_UNKNOWN;
	return errno == EINVAL ? DRIVER_UDMABUF : errno == ENOTTY ? DRIVER_MAINLINE :
		DRIVER_UNKNOWN;
}

/*
 * The module is named udmabuf or udmabuf_ext. Mainline's built-in driver has a directory
 * even if it is disabled. The last match in sorted order is the module.
 */
long long parameter(enum driver driver, const char *name)
{
	char *pattern = format("/sys/module/udmabuf%s/parameters/%s",
			       driver == DRIVER_MAINLINE ? "" : "*", name);
	long long value = -1;
	FILE *file = NULL;
	glob_t found;

	if (!glob(pattern, 0, NULL, &found)) {
		file = fopen(found.gl_pathv[found.gl_pathc - 1], "re");
		globfree(&found);
	}
	if (file) {
		if (fscanf(file, "%lld", &value) != 1)
			value = -1;
		fclose(file);
	}
	free(pattern);
	return value;
}

/*
 * Returns the errno of creating a buffer from an inaccessible range. The driver checks the
 * size and the quota before the memory: E2BIG over the size limit; ENOMEM over the quota
 * or the machine's number of pages; otherwise EFAULT. No page is pinned.
 */
static int probe(int dev, const void *inaccessible, unsigned long long npages)
{
	struct udmabuf_iovec iov = {
		.base = (uintptr_t)inaccessible,
		.len = npages * page_size(),
	};
	int buffer = create_iovec(dev, UDMABUF_FLAGS_CLOEXEC, &iov, 1);

	if (buffer >= 0)
		errx(1, "%s created a buffer from inaccessible memory (" SEE_DEVICE ")",
		     device_path());
	return errno;
}

/* Returns the number of pages left in the quota, which is below @npages. */
static unsigned long long quota_left(int dev, const void *inaccessible, unsigned long long npages)
{
	unsigned long long left = 0;

	while (npages - left > 1) {
		unsigned long long middle = left + (npages - left) / 2;

		if (probe(dev, inaccessible, middle) == ENOMEM)
			npages = middle;
		else
			left = middle;
	}
	return left;
}

/* Returns the largest number of pages that the driver does not refuse for the size. */
static unsigned long long most_pages(void)
{
	unsigned long long most = sysconf(_SC_PHYS_PAGES);
	long long mib = parameter(DRIVER_UDMABUF, "size_limit_mb");

	if (mib >= 0 && (unsigned long long)mib < most / ((1 << 20) / page_size()))
		most = mib * ((1 << 20) / page_size());
	return most;
}

struct quota read_quota(int dev)
{
	struct quota quota = { .kind = QUOTA_UNUSED };
	unsigned long long npages, most = most_pages();
	struct rlimit rlimit;
	void *inaccessible;

	if (which_driver(dev) != DRIVER_UDMABUF)
		return quota;
	quota.kind = QUOTA_UNLIMITED;
	if (getrlimit(RLIMIT_MEMLOCK, &rlimit) || rlimit.rlim_cur == RLIM_INFINITY)
		return quota;
	inaccessible = mmap(NULL, page_size(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (inaccessible == MAP_FAILED)
		err(1, "cannot map a page");
	quota.kind = QUOTA_LIMITED;
	quota.limit = rlimit.rlim_cur;
	npages = quota.limit / page_size();
	if (npages < most)
		most = npages + 1;
	switch (probe(dev, inaccessible, most)) {
	case EFAULT:
		if (most > npages)
			quota.kind = QUOTA_EXEMPT;
		break;
	case ENOMEM:
		quota.used_known = true;
		quota.used = (npages - quota_left(dev, inaccessible, most)) * page_size();
		break;
	}
	munmap(inaccessible, page_size());
	return quota;
}

char *quota_text(const struct quota *quota)
{
	switch (quota->kind) {
	case QUOTA_UNUSED:
		return format("none (this driver does not charge memory)");
	case QUOTA_UNLIMITED:
		return format("unlimited");
	case QUOTA_EXEMPT:
		return format("none (CAP_IPC_LOCK)");
	default:
		break;
	}
	if (!quota->used_known)
		return format("%llu KiB per user, enough left for the largest buffer",
			      quota->limit / 1024);
	return format("%llu KiB per user, %llu KiB in use", quota->limit / 1024,
		      quota->used / 1024);
}

static int info_json(enum driver driver, const struct quota *quota)
{
	static const char * const names[] = {
		[DRIVER_UNKNOWN] = "unknown",
		[DRIVER_UDMABUF] = "udmabuf",
		[DRIVER_MAINLINE] = "mainline",
	};
	struct json_object *root = json_object_new_object();
	struct json_object *object = NULL;

	json_object_object_add(root, "device", json_object_new_string(device_path()));
	json_object_object_add(root, "driver", json_object_new_string(names[driver]));
	json_object_object_add(root, "list_limit",
			       json_object_new_int64(parameter(driver, "list_limit")));
	json_object_object_add(root, "size_limit_mb",
			       json_object_new_int64(parameter(driver, "size_limit_mb")));
	if (quota->kind == QUOTA_LIMITED) {
		object = json_object_new_object();
		json_object_object_add(object, "limit", json_object_new_int64(quota->limit));
		json_object_object_add(object, "used", quota->used_known ?
				       json_object_new_int64(quota->used) : NULL);
	}
	json_object_object_add(root, "quota", object);
	return print_json(root);
}

static void print_parameter(enum driver driver, const char *name, const char *unit)
{
	long long value = parameter(driver, name);

	if (value < 0)
		printf("%-15s unknown\n", name);
	else
		printf("%-15s %lld %s\n", name, value, unit);
}

int info(int argc, char **argv)
{
	static const char * const names[] = {
		[DRIVER_UNKNOWN] = "unknown, not a udmabuf device",
		[DRIVER_UDMABUF] = "supports process memory and memfds",
		[DRIVER_MAINLINE] = "mainline's, supports memfds only (see: udmabufctl doctor)",
	};
	bool json = json_wanted(argc, argv);
	int dev = open_device();
	enum driver driver = which_driver(dev);
	struct quota quota = read_quota(dev);

	if (json)
		return info_json(driver, &quota);
	printf("driver          %s\n", names[driver]);
	print_parameter(driver, "list_limit", "entries");
	print_parameter(driver, "size_limit_mb", "MiB");
	printf("quota           %s\n", quota_text(&quota));
	return 0;
}
