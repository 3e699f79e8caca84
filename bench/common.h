/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Functions shared by the benchmark's programs, which run in a VM whose TSC counts
 * instructions and measure the VM's driver.
 *
 * Each line of output is a measurement (row, kind of memory, value, unit), or a
 * remark, which begins with a #. A time is the minimum of two or more turns after a
 * warm-up; turns differ by little more than timer interrupts.
 */
#ifndef _BENCH_COMMON_H
#define _BENCH_COMMON_H

#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/dma-buf.h>
#include <linux/memfd.h>
#include <linux/udmabuf.h>

#include "module/udmabuf_bench.h"

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))
#define KIB		1024UL
#define MIB		(1024UL * KIB)
#define GIB		(1024UL * MIB)
#define PAGE		(4 * KIB)
#define HUGE_PAGE	(2 * MIB)
#define MILLION		1000000UL

/* Fixed addresses, aligned for pages of any size. */
#define MEMORY		((char *)0x100000000000)
#define MAPPING		((char *)0x200000000000)

static int udmabuf, module;

static inline __u64 now(void)
{
	return __builtin_ia32_rdtsc();
}

/*
 * Whether to run another turn. Short operations are repeated more often, so that one
 * turn has few timer interrupts or no interrupt.
 */
static inline bool again(int turn, __u64 start)
{
	return turn <= 2 || (turn <= 20 && now() - start < 30 * MILLION);
}

/* Updates the minimum time; turn 0 is the warm-up and not counted. */
static inline void least(__u64 *least, __u64 time, int turn)
{
	if (turn == 1 || (turn && time < *least))
		*least = time;
}

static inline void result(const char *row, const char *kind, double value, const char *unit)
{
	printf("%s\t%s\t%.3f\t%s\n", row, kind, value, unit);
}

/* Helpers */

static inline void set(const char *value, const char *path)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, value, strlen(value)) < 0)
		printf("# %s does not take %s: %s\n", path, value, strerror(errno));
	if (fd >= 0)
		close(fd);
}

static inline char *map(char *at, size_t size, int flags, int fd)
{
	char *addr = mmap(at, size, PROT_READ | PROT_WRITE, flags | MAP_FIXED_NOREPLACE, fd, 0);

	if (addr != at)
		err(1, "mmap of %zu bytes", size);
	return addr;
}

static inline __u32 next_random(__u64 *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state >> 16;
}

/* Returns the numbers below @n in a random order, the same in each run. */
static inline __u32 *shuffled(__u32 n)
{
	__u32 *order = malloc(n * sizeof(*order));
	__u64 state = 88172645463325252;
	__u32 i, j, tmp;

	if (!order)
		err(1, "malloc");
	for (i = 0; i < n; i++)
		order[i] = i;
	for (i = n; i > 1; i--) {
		j = next_random(&state) % i;
		tmp = order[i - 1];
		order[i - 1] = order[j];
		order[j] = tmp;
	}
	return order;
}

/* Memory */

/*
 * A kind of memory is named by the size of its folios. They are touched in random
 * order, so that they are scattered in physical memory.
 */
struct kind {
	const char *name;
	size_t folio;
	size_t size;
	const char *thp;
	const char *mthp;
	bool hugetlb;
};

static const struct kind kinds[] = {
	{ "4K", PAGE, 512 * MIB, "never", "never", false },
	{ "64K", 64 * KIB, 512 * MIB, "never", "always", false },
	{ "2M", HUGE_PAGE, 512 * MIB, "always", "never", false },
	{ "hugetlb", HUGE_PAGE, 512 * MIB, "always", "never", true },
};

/* Memory mapped at MEMORY: a memfd, or anonymous memory (memfd is -1). */
struct memory {
	const char *name;
	const char *kind;
	size_t size;
	size_t folio;
	int memfd;
};

static inline void result_of(const char *row, const struct memory *memory, double value,
			     const char *unit)
{
	char name[64];

	snprintf(name, sizeof(name), row, memory->name);
	result(name, memory->kind, value, unit);
}

static inline void per_page(const char *row, const struct memory *memory, __u64 time)
{
	result_of(row, memory, (double)time / (memory->size / PAGE), "insn/page");
}

static inline void in_all(const char *row, const struct memory *memory, __u64 time)
{
	result_of(row, memory, time, "insn");
}

/* A kernel without support for 64 KiB folios has no settings for them. */
static inline void memory_setup(const struct kind *kind)
{
	set(kind->thp, "/sys/kernel/mm/transparent_hugepage/enabled");
	set(kind->thp, "/sys/kernel/mm/transparent_hugepage/shmem_enabled");
	if (access("/sys/kernel/mm/transparent_hugepage/hugepages-64kB", F_OK))
		return;
	set(kind->mthp, "/sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled");
	set(kind->mthp, "/sys/kernel/mm/transparent_hugepage/hugepages-64kB/shmem_enabled");
}

static inline void memory_populate(const struct memory *memory)
{
	size_t i, n = memory->size / memory->folio;
	__u32 *order = shuffled(n);

	for (i = 0; i < n; i++)
		MEMORY[order[i] * memory->folio] = 1;
	free(order);
}

static inline void memory_make(struct memory *memory, const struct kind *kind, const char *name)
{
	*memory = (struct memory) {
		.name = name, .kind = kind->name,
		.size = kind->size, .folio = kind->folio, .memfd = -1,
	};
	memory_setup(kind);
	if (kind->hugetlb)
		set("256", "/proc/sys/vm/nr_hugepages");
	if (strcmp(name, "memfd")) {
		map(MEMORY, kind->size, MAP_PRIVATE | MAP_ANONYMOUS |
		    (kind->hugetlb ? MAP_HUGETLB : 0), -1);
	} else {
		memory->memfd = memfd_create(name, MFD_ALLOW_SEALING |
					     (kind->hugetlb ? MFD_HUGETLB | MFD_HUGE_2MB : 0));
		if (memory->memfd < 0 || ftruncate(memory->memfd, kind->size) ||
		    fcntl(memory->memfd, F_ADD_SEALS, F_SEAL_SHRINK))
			err(1, "memfd");
		map(MEMORY, kind->size, MAP_SHARED, memory->memfd);
	}
	memory_populate(memory);
}

static inline void memory_free(struct memory *memory)
{
	munmap(MEMORY, memory->size);
	if (memory->memfd >= 0)
		close(memory->memfd);
}

/* Buffers */

/* The same pieces of memory as arguments of both list ioctls. */
struct pieces {
	struct udmabuf_create_iovec *iovec;
	struct udmabuf_create_list *list;
};

/*
 * Makes @n pieces of @size bytes, in random order or in order. If the memory has
 * fewer pieces, they repeat.
 */
static inline void pieces_make(struct pieces *pieces, const struct memory *memory,
			       __u32 n, size_t size, bool shuffle)
{
	__u32 i, have = memory->size / size;
	__u32 *order = shuffled(have);

	pieces->iovec = calloc(1, sizeof(*pieces->iovec) + n * sizeof(pieces->iovec->iovs[0]));
	pieces->list = calloc(1, sizeof(*pieces->list) + n * sizeof(pieces->list->list[0]));
	if (!pieces->iovec || !pieces->list)
		err(1, "calloc");
	pieces->iovec->niov = n;
	pieces->list->count = n;
	for (i = 0; i < n; i++) {
		__u64 offset = (shuffle ? order[i % have] : i % have) * size;

		pieces->iovec->iovs[i].base = (uintptr_t)MEMORY + offset;
		pieces->iovec->iovs[i].len = size;
		pieces->list->list[i].memfd = memory->memfd;
		pieces->list->list[i].offset = offset;
		pieces->list->list[i].size = size;
	}
	free(order);
}

static inline void pieces_free(struct pieces *pieces)
{
	free(pieces->iovec);
	free(pieces->list);
}

static inline int create_list(const struct memory *memory, const struct pieces *pieces)
{
	if (memory->memfd >= 0)
		return ioctl(udmabuf, UDMABUF_CREATE_LIST, pieces->list);
	return ioctl(udmabuf, UDMABUF_CREATE_IOVEC, pieces->iovec);
}

static inline int create_part(const struct memory *memory, size_t size)
{
	struct udmabuf_create_memfd from_memfd = { .memfd = memory->memfd, .size = size };
	static struct udmabuf_create_iovec *from_iovec;

	if (memory->memfd >= 0)
		return ioctl(udmabuf, UDMABUF_CREATE_MEMFD, &from_memfd);
	if (!from_iovec)
		from_iovec = calloc(1, sizeof(*from_iovec) + sizeof(from_iovec->iovs[0]));
	from_iovec->niov = 1;
	from_iovec->iovs[0].base = (uintptr_t)MEMORY;
	from_iovec->iovs[0].len = size;
	return ioctl(udmabuf, UDMABUF_CREATE_IOVEC, from_iovec);
}

static inline int create(const struct memory *memory)
{
	int fd = create_part(memory, memory->size);

	if (fd < 0)
		err(1, "cannot make a buffer of %zu bytes from %s", memory->size, memory->name);
	return fd;
}

/* Whether the driver accepts memory of this kind. */
static inline bool is_supported(const struct memory *memory)
{
	int fd = create_part(memory, PAGE);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

static inline void cpu_access(int fd, __u64 flags)
{
	struct dma_buf_sync sync = { .flags = flags | DMA_BUF_SYNC_RW };

	if (ioctl(fd, DMA_BUF_IOCTL_SYNC, &sync))
		err(1, "DMA_BUF_IOCTL_SYNC");
}

/* Returns the time that the module measured for @op; 0 if it failed. */
static inline __u64 time_module(int fd, unsigned long op)
{
	struct bench_dmabuf arg = { .fd = fd };
	__u64 begin = now(), time = 0;
	int i;

	for (i = 0; again(i, begin); i++) {
		if (ioctl(module, op, &arg))
			return 0;
		least(&time, arg.time, i);
	}
	return time;
}

/* A loop of two million instructions must take two million ticks. */
static inline void check_clock(void)
{
	__u64 start, begin = now(), time = 0;
	int i;

	for (i = 0; again(i, begin); i++) {
		unsigned long n = MILLION;

		start = now();
		asm volatile("1: dec %0; jnz 1b" : "+r"(n));
		least(&time, now() - start, i);
	}
	if (time < 1990000 || time > 2010000)
		errx(1, "the TSC does not count instructions: %llu for 2000000", time);
}

static inline void bench_open(void)
{
	/* Wait for deferred work of the kernel's boot. */
	sleep(5);
	check_clock();
	/* Mainline's driver in Linux 6.12 has this parameter, with a low default. */
	if (!access("/sys/module/udmabuf/parameters/size_limit_mb", W_OK))
		set("65536", "/sys/module/udmabuf/parameters/size_limit_mb");
	udmabuf = open("/dev/udmabuf", O_RDWR);
	module = open("/dev/udmabuf_bench", O_RDWR);
	if (udmabuf < 0 || module < 0)
		err(1, "cannot open /dev/udmabuf and /dev/udmabuf_bench");
}

#endif /* _BENCH_COMMON_H */
