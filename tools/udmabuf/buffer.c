// SPDX-License-Identifier: GPL-2.0-only
/* Creating a buffer: the options, the memory, and the reasons for failures. */
#define _GNU_SOURCE
#include <ctype.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/dma-buf.h>

#include "udmabufctl.h"

#define NAME_BYTES	31	/* DMA_BUF_NAME_LEN of the kernel, less the terminator */

static size_t parse_size(const char *text)
{
	static const char units[] = "KMGT";
	unsigned long long size;
	unsigned int shift = 0;
	const char *unit;
	char *end;

	errno = 0;
	size = strtoull(text, &end, 0);
	unit = *end ? strchr(units, toupper(*end)) : NULL;
	if (unit) {
		shift = 10 * (unit - units + 1);
		end += strcmp(end + 1, "iB") ? 1 : 3;
	}
	if (!isdigit(*text) || *end || !size)
		usage_error("invalid size '%s': bytes, or a number with suffix K, M, G or T",
			    text);
	if (errno || size > (SIZE_MAX / 2) >> shift)
		usage_error("size '%s' exceeds the address space", text);
	return size << shift;
}

static unsigned int parse_pieces(const char *text)
{
	char *end;
	unsigned long number;

	errno = 0;
	number = strtoul(text, &end, 10);
	if (!isdigit(*text) || *end || !number || errno || number > UINT_MAX)
		usage_error("invalid number of ranges '%s': 1 or more", text);
	return number;
}

struct request parse_request(int argc, char **argv)
{
	enum { MEMFD = 256, HUGE, SCATTER };
	static const struct option longs[] = {
		{ "file", required_argument, NULL, 'f' },
		{ "size", required_argument, NULL, 's' },
		{ "name", required_argument, NULL, 'n' },
		{ "rdonly", no_argument, NULL, 'r' },
		{ "memfd", no_argument, NULL, MEMFD },
		{ "huge", no_argument, NULL, HUGE },
		{ "scatter", required_argument, NULL, SCATTER },
		{ "help", no_argument, NULL, 'h' },
		{}
	};
	struct request request = { .pieces = 1 };
	int option;

	while ((option = next_option(argc, argv, "+:f:s:n:rh", longs)) != -1)
		switch (option) {
		case 'f':
			request.file = optarg;
			break;
		case 's':
			request.size = parse_size(optarg);
			break;
		case 'n':
			request.name = optarg;
			break;
		case 'r':
			request.rdonly = true;
			break;
		case MEMFD:
			request.memfd = true;
			break;
		case HUGE:
			request.huge = true;
			break;
		case SCATTER:
			request.pieces = parse_pieces(optarg);
			break;
		}
	if (request.memfd && request.rdonly)
		usage_error("--rdonly and --memfd exclude each other: memfds are writable");
	if (request.name && strlen(request.name) > NAME_BYTES)
		usage_error("name '%s' is longer than %d bytes", request.name, NAME_BYTES);
	return request;
}

/*
 * Memory
 */

static size_t round_up(size_t size, size_t unit)
{
	return (size + unit - 1) / unit * unit;
}

static size_t huge_page_size(void)
{
	FILE *file = fopen("/proc/meminfo", "re");
	unsigned long kib = 0;
	char line[128];

	while (file && !kib && fgets(line, sizeof(line), file))
		if (sscanf(line, "Hugepagesize: %lu", &kib) != 1)
			kib = 0;
	if (file)
		fclose(file);
	if (!kib)
		errx(1,
		     "no huge pages: the kernel or the machine lacks hugetlb (leave out --huge)");
	return kib << 10;
}

size_t fill(int fd, const char *name, char *memory, size_t size)
{
	size_t done = 0;
	ssize_t n;

	do {
		n = read(fd, memory + done, size - done);
		if (n < 0)
			err(1, "cannot read %s", name);
		done += n;
	} while (n && done < size);
	return done;
}

static noreturn void no_memory(size_t size)
{
	err(1, "cannot allocate %zu bytes of memory (choose a smaller --size)", size);
}

static char *new_memory(size_t size)
{
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		no_memory(size);
	return memory;
}

/* Reads to the end of the input; sets @size to its number of bytes. */
static char *read_all(int fd, const char *name, size_t *size)
{
	size_t room = 1 << 20, done = 0;
	char *memory = new_memory(room);

	while ((done += fill(fd, name, memory + done, room - done)) == room) {
		memory = mremap(memory, room, 2 * room, MREMAP_MAYMOVE);
		if (memory == MAP_FAILED)
			no_memory(2 * room);
		room *= 2;
	}
	*size = done;
	return memory;
}

/* Reads the input: sets @size to the buffer's size, @bytes to the input's. The rest is 0. */
static char *read_input(const struct request *request, size_t *size, size_t *bytes)
{
	const char *name = request->file ?: "standard input";
	int fd = request->file ? open(name, O_RDONLY | O_CLOEXEC) : STDIN_FILENO;
	char *memory;

	if (fd < 0)
		err(1, "cannot open %s", name);
	*size = request->size;
	if (!*size) {
		memory = read_all(fd, name, size);
		*bytes = *size;
	} else {
		memory = new_memory(round_up(*size, page_size()));
		*bytes = fill(fd, name, memory, *size);
	}
	if (request->file)
		close(fd);
	return memory;
}

/* Returns a memfd of @size bytes with the seal that the driver needs. */
static int new_memfd(size_t size, bool huge)
{
	int fd = memfd_create("udmabufctl", MFD_CLOEXEC | MFD_ALLOW_SEALING |
			      (huge ? MFD_HUGETLB : 0));

	if (fd < 0 || ftruncate(fd, size) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK))
		err(1, "cannot create a memfd of %zu bytes", size);
	return fd;
}

/* Maps @memfd, or anonymous memory if @memfd is -1. */
static char *map_source(int memfd, size_t size, bool huge)
{
	int flags = memfd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS | (huge ? MAP_HUGETLB : 0) : MAP_SHARED;
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, memfd, 0);

	if (memory != MAP_FAILED)
		return memory;
	if (!huge)
		no_memory(size);
	err(1, "cannot allocate %zu huge pages of %zu KiB (try: sysctl vm.nr_hugepages=%zu)",
	    size / huge_page_size(), huge_page_size() >> 10, size / huge_page_size());
}

/*
 * Returns the list of the buffer: @pieces ranges of @size bytes in all, in reverse order
 * of their addresses, so that the driver cannot merge them. The first range takes the
 * remainder.
 */
static struct udmabuf_iovec *new_list(size_t size, unsigned int pieces)
{
	struct udmabuf_iovec *list = calloc(pieces, sizeof(*list));
	size_t npages = size / page_size(), end = size;
	unsigned int i;

	if (npages < pieces)
		usage_error("--scatter %u: the buffer has only %zu pages", pieces, npages);
	if (!list)
		no_memory(pieces * sizeof(*list));
	for (i = 0; i < pieces; i++) {
		list[i].len = (npages / pieces + (i ? 0 : npages % pieces)) * page_size();
		end -= list[i].len;
		list[i].base = end;
	}
	return list;
}

static void scatter(char *memory, const char *input, size_t size,
		    const struct udmabuf_iovec *list)
{
	size_t done, n;

	for (done = 0; done < size; done += n, list++) {
		n = list->len < size - done ? list->len : size - done;
		memcpy(memory + list->base, input + done, n);
	}
}

/*
 * Creation
 */

static int create_list(int dev, int memfd, const struct udmabuf_iovec *list, unsigned int count)
{
	struct udmabuf_create_list *args = calloc(1, sizeof(*args) + count * sizeof(args->list[0]));
	int buffer, error;
	unsigned int i;

	if (!args)
		no_memory(count * sizeof(args->list[0]));
	args->flags = UDMABUF_FLAGS_CLOEXEC;
	args->count = count;
	for (i = 0; i < count; i++) {
		args->list[i].memfd = memfd;
		args->list[i].offset = list[i].base;
		args->list[i].size = list[i].len;
	}
	buffer = ioctl(dev, UDMABUF_CREATE_LIST, args);
	error = errno;
	free(args);
	errno = error;
	return buffer;
}

/* Memfds are not charged against the quota. */
static char *why_no_memory(int dev, const struct request *request, size_t size)
{
	unsigned long long memory = (unsigned long long)sysconf(_SC_PHYS_PAGES) * page_size();
	struct quota quota = read_quota(dev);

	if (size > memory)
		return explain("choose a smaller --size",
			       "larger than this machine's %llu MiB of memory", memory >> 20);
	if (request->memfd || quota.kind != QUOTA_LIMITED || !quota.used_known ||
	    quota.limit - quota.used >= size)
		return explain("choose a smaller --size; see the cgroup's memory.max", "%s",
			       strerror(ENOMEM));
	return explain(RAISE_QUOTA, "over the quota (RLIMIT_MEMLOCK): %s", quota_text(&quota));
}

/* E2BIG, or EINVAL from the ioctls for memfds */
static char *over_limit(int dev, const struct request *request, size_t size, int error)
{
	enum driver driver = which_driver(dev);
	long long entries = parameter(driver, "list_limit");
	long long mib = parameter(driver, "size_limit_mb");

	if (entries >= 0 && request->pieces > entries)
		return explain("raise /sys/module/udmabuf*/parameters/list_limit",
			       "%u ranges are over the limit of %lld", request->pieces, entries);
	if (mib >= 0 && size > (unsigned long long)mib << 20)
		return explain("raise /sys/module/udmabuf*/parameters/size_limit_mb",
			       "over the limit of %lld MiB", mib);
	return format("%s", strerror(error));
}

static char *why_not_created(int dev, const struct request *request, size_t size)
{
	int error = errno;

	if (error == EOPNOTSUPP && request->rdonly)
		return explain("leave out --rdonly", "read-only buffers need Linux 6.2 or later");
	switch (error) {
	case ENOTTY:
		if (which_driver(dev) != DRIVER_MAINLINE)
			return explain(SEE_DEVICE, "%s is not a udmabuf device", device_path());
		return explain("use --memfd; to replace the driver: udmabufctl doctor",
			       "%s is mainline's driver, which supports memfds only",
			       device_path());
	case ENOMEM:
		return why_no_memory(dev, request, size);
	case EMFILE:
		return explain(RAISE_FILES, "%s", strerror(error));
	case E2BIG:
	case EINVAL:
		return over_limit(dev, request, size, error);
	default:
		return format("%s", strerror(error));
	}
}

static int create_from(int dev, const struct request *request, char *input, size_t bytes,
		       size_t size)
{
	struct udmabuf_iovec *list = new_list(size, request->pieces);
	int memfd = request->memfd ? new_memfd(size, request->huge) : -1, buffer;
	char *memory = input;
	unsigned int i;

	if (request->memfd || request->huge || request->pieces > 1) {
		memory = map_source(memfd, size, request->huge);
		scatter(memory, input, bytes, list);
	}
	for (i = 0; i < request->pieces && !request->memfd; i++)
		list[i].base += (uintptr_t)memory;
	if (request->memfd)
		buffer = create_list(dev, memfd, list, request->pieces);
	else
		buffer = create_iovec(dev, UDMABUF_FLAGS_CLOEXEC |
				      (request->rdonly ? UDMABUF_FLAGS_RDONLY : 0),
				      list, request->pieces);
	if (buffer < 0)
		errx(1, "cannot create a buffer of %zu bytes: %s", size,
		     why_not_created(dev, request, size));
	free(list);
	return buffer;
}

int create_buffer(const struct request *request)
{
	size_t unit = request->huge ? huge_page_size() : page_size();
	int dev = open_device(), buffer;
	size_t size, bytes;
	char *input = read_input(request, &size, &bytes);

	if (!size)
		errx(1, "cannot create an empty buffer: no input (give input, or a --size)");
	buffer = create_from(dev, request, input, bytes, round_up(size, unit));
	if (request->name && ioctl(buffer, DMA_BUF_SET_NAME, request->name))
		err(1, "cannot name the buffer '%s'", request->name);
	close(dev);
	return buffer;
}
