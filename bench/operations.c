// SPDX-License-Identifier: GPL-2.0-only
/*
 * operations: measure the rows of the table that bench/report prints: each operation of
 * the driver, and comparable operations of the kernel as a floor.
 */
#include "common.h"

#include <immintrin.h>
#include <linux/dma-heap.h>

#define BUFFERS		64
#define TOUCHES		64
#define FRAME		(3840UL * 2160 * 4)

static struct bench_pin time_pin(const struct memory *memory, size_t batch)
{
	struct bench_pin arg = {
		.addr = (uintptr_t)MEMORY, .npages = memory->size / PAGE, .batch = batch,
	};
	__u64 begin = now(), pin = 0, unpin = 0;
	int i;

	for (i = 0; again(i, begin); i++) {
		if (ioctl(module, BENCH_PIN, &arg))
			err(1, "pinning");
		least(&pin, arg.pin, i);
		least(&unpin, arg.unpin, i);
	}
	arg.pin = pin;
	arg.unpin = unpin;
	return arg;
}

/*
 * Whether the memory has the expected folios, and these are scattered. Also prints
 * the rows for bare pinning and unpinning.
 */
static bool memory_verify(const struct memory *memory)
{
	struct bench_pin arg = time_pin(memory, 512);
	size_t n = memory->size / memory->folio;

	if (arg.folios != n || arg.runs < n / 8 * 7) {
		printf("# NOT MEASURED: %s of %s has %llu folios in %llu runs, expected %zu\n",
		       memory->name, memory->kind, arg.folios, arg.runs, n);
		return false;
	}
	per_page("pin-%s", memory, arg.pin);
	per_page("unpin-%s", memory, arg.unpin);
	return true;
}

/* Pins pieces with a call for each, as for pieces that are not contiguous. */
static void measure_pin_pieces(const struct memory *memory)
{
	per_page("pin-by-16-%s", memory, time_pin(memory, 16).pin);
	per_page("pin-by-1-%s", memory, time_pin(memory, 1).pin);
}

/* Creation */

static void time_create(const struct memory *memory, size_t size, __u64 *create_time,
			__u64 *close_time)
{
	__u64 start, begin = now(), created, closed;
	int i, fd;

	for (i = 0; again(i, begin); i++) {
		start = now();
		fd = create_part(memory, size);
		created = now();
		close(fd);
		closed = now();
		least(create_time, created - start, i);
		least(close_time, closed - created, i);
	}
}

static void measure_create(const struct memory *memory)
{
	__u64 create_time = 0, close_time = 0;

	time_create(memory, memory->size, &create_time, &close_time);
	per_page("create-%s", memory, create_time);
	per_page("close-%s", memory, close_time);
}

static void measure_one_page(const struct memory *memory)
{
	__u64 create_time = 0, close_time = 0;

	time_create(memory, PAGE, &create_time, &close_time);
	in_all("one-create-%s", memory, create_time);
	in_all("one-close-%s", memory, close_time);
}

static void measure_list(const struct memory *memory, __u32 n, size_t size, bool shuffle)
{
	struct pieces pieces;
	__u64 start, begin = now(), time = 0;
	char row[64];
	int i, fd;

	pieces_make(&pieces, memory, n, size, shuffle);
	for (i = 0; again(i, begin); i++) {
		start = now();
		fd = create_list(memory, &pieces);
		least(&time, now() - start, i);
		if (fd < 0)
			break;
		close(fd);
	}
	pieces_free(&pieces);
	snprintf(row, sizeof(row), "%s-%ux%zuK-%s", shuffle ? "shuffled" : "list", n, size / KIB,
		 memory->name);
	if (fd < 0)
		printf("# %s: refused: %s\n", row, strerror(errno));
	else
		result(row, memory->kind, (double)time / n / (size / PAGE), "insn/page");
}

/* Mappings */

static void touch(const char *addr, size_t size)
{
	size_t i;

	for (i = 0; i < size; i += PAGE)
		(void)*(volatile const char *)(addr + i);
}

/* Maps the buffer, touches @touched bytes from offset @from in order, and unmaps it. */
static __u64 time_mmap(int fd, size_t size, size_t from, size_t touched)
{
	__u64 start, begin = now(), time = 0;
	int i;

	for (i = 0; again(i, begin); i++) {
		start = now();
		map(MAPPING, size, MAP_SHARED, fd);
		touch(MAPPING + from, touched);
		munmap(MAPPING, size);
		least(&time, now() - start, i);
	}
	return time;
}

static __u64 time_touches(int fd, size_t size)
{
	__u32 *order = shuffled(size / PAGE);
	__u64 start, begin = now(), time = 0;
	int i, j;

	for (i = 0; again(i, begin); i++) {
		map(MAPPING, size, MAP_SHARED, fd);
		start = now();
		for (j = 0; j < TOUCHES; j++)
			touch(MAPPING + order[j] * PAGE, PAGE);
		least(&time, now() - start, i);
		munmap(MAPPING, size);
	}
	free(order);
	return time;
}

static void measure_mmap(int fd, const struct memory *memory)
{
	size_t size = memory->size;

	in_all("mmap-one-%s", memory, time_mmap(fd, size, size / 2, PAGE));
	per_page("mmap-all-%s", memory, time_mmap(fd, size, 0, size));
	in_all("mmap-64-%s", memory, time_touches(fd, size));
}

/* CPU access */

static __u64 time_cpu_access(int fd)
{
	__u64 start, begin = now(), time = 0;
	int i;

	for (i = 0; again(i, begin); i++) {
		start = now();
		cpu_access(fd, DMA_BUF_SYNC_START);
		cpu_access(fd, DMA_BUF_SYNC_END);
		least(&time, now() - start, i);
	}
	return time;
}

static void measure_cpu_access(const struct memory *memory)
{
	__u64 start, begin = now(), first = 0;
	int i, fd;

	for (i = 0; again(i, begin); i++) {
		fd = create(memory);
		start = now();
		cpu_access(fd, DMA_BUF_SYNC_START);
		least(&first, now() - start, i);
		cpu_access(fd, DMA_BUF_SYNC_END);
		close(fd);
	}
	in_all("begin-first-%s", memory, first);
	fd = create(memory);
	in_all("begin-end-%s", memory, time_cpu_access(fd));
	close(fd);
}

/* Importers and kernel mappings */

static void measure_importer(int fd, const struct memory *memory)
{
	__u64 import = time_module(fd, BENCH_IMPORT);
	__u64 vmap = time_module(fd, BENCH_VMAP);

	if (!import || !vmap)
		printf("# %s of %s: no importer\n", memory->name, memory->kind);
	per_page("import-%s", memory, import);
	per_page("vmap-%s", memory, vmap);
}

/*
 * Returns the time of the first kernel mapping, if @mapped, and of the close. The
 * driver may keep the mapping until the close; measure_first_vmap() subtracts the
 * time of a close without a mapping.
 */
static __u64 time_first_vmap(const struct memory *memory, bool mapped)
{
	__u64 start, begin = now(), time = 0;
	int i;

	for (i = 0; again(i, begin); i++) {
		struct bench_dmabuf arg = { .fd = create(memory) };

		if (mapped && ioctl(module, BENCH_VMAP, &arg))
			err(1, "BENCH_VMAP");
		start = now();
		close(arg.fd);
		least(&time, arg.time + now() - start, i);
	}
	return time;
}

static void measure_first_vmap(const struct memory *memory)
{
	per_page("vmap-first-%s", memory,
		 time_first_vmap(memory, true) - time_first_vmap(memory, false));
}

/* Kernel memory held */

/* Returns the number of free pages, including the per-CPU lists. */
static long free_pages(void)
{
	FILE *zones = fopen("/proc/zoneinfo", "r");
	long n, sum = 0;
	char line[128];

	/* adds counts still held by each CPU */
	set("1", "/proc/sys/vm/stat_refresh");
	while (zones && fgets(line, sizeof(line), zones))
		if (sscanf(line, " nr_free_pages %ld", &n) == 1 ||
		    sscanf(line, " count: %ld", &n) == 1)
			sum += n;
	if (!sum)
		errx(1, "/proc/zoneinfo: no free pages found");
	fclose(zones);
	return sum;
}

static void result_held(const char *row, const struct memory *memory, long pages)
{
	double buffer_pages = (double)memory->size / PAGE * BUFFERS;

	result_of(row, memory, pages * (double)PAGE / buffer_pages, "bytes/page");
}

static void measure_held(const struct memory *memory)
{
	int i, fds[BUFFERS];
	long before;

	sleep(1);	/* wait for deferred frees */
	before = free_pages();
	for (i = 0; i < BUFFERS; i++)
		fds[i] = create(memory);
	result_held("held-%s", memory, before - free_pages());
	for (i = 0; i < BUFFERS; i++) {
		cpu_access(fds[i], DMA_BUF_SYNC_START);
		cpu_access(fds[i], DMA_BUF_SYNC_END);
	}
	result_held("held-sync-%s", memory, before - free_pages());
	for (i = 0; i < BUFFERS; i++)
		close(fds[i]);
}

/* An emulator that has drawn a frame, and a device that shows it */

/* Uses 32-byte words, for the fewest instructions. */
static void __attribute__((target("avx2"))) copy(__m256i *to, const __m256i *from, size_t size)
{
	size_t i;

	for (i = 0; i < size / sizeof(*to); i += 4) {
		_mm256_store_si256(to + i, _mm256_load_si256(from + i));
		_mm256_store_si256(to + i + 1, _mm256_load_si256(from + i + 1));
		_mm256_store_si256(to + i + 2, _mm256_load_si256(from + i + 2));
		_mm256_store_si256(to + i + 3, _mm256_load_si256(from + i + 3));
	}
}

static void measure_frame(const struct memory *memory)
{
	int device = open("/dev/udmabuf_bench", O_RDWR);
	__u64 start, begin = now(), time = 0, buffer;
	int i;

	buffer = create_part(memory, FRAME);
	if (device < 0 || ioctl(device, BENCH_KEEP, &buffer))
		err(1, "BENCH_KEEP");
	in_all("frame-%s", memory, time_cpu_access(buffer));
	close(device);
	close(buffer);

	map(MAPPING, FRAME, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	for (i = 0; again(i, begin); i++) {
		start = now();
		copy((void *)MAPPING, (void *)MEMORY, FRAME);
		least(&time, now() - start, i);
	}
	munmap(MAPPING, FRAME);
	in_all("frame-copy", memory, time);
}

static void measure_buffers(const struct memory *memory)
{
	int i, fd = create(memory);

	measure_importer(fd, memory);
	measure_mmap(fd, memory);
	close(fd);
	measure_create(memory);
	measure_one_page(memory);
	measure_cpu_access(memory);
	measure_first_vmap(memory);
	measure_held(memory);
	if (strcmp(memory->kind, "4K"))
		return;
	measure_pin_pieces(memory);
	for (i = 0; i < 2; i++) {
		measure_list(memory, 1024, 64 * KIB, i);
		measure_list(memory, 1024, 4 * KIB, i);
		measure_list(memory, 8000, 4 * KIB, i);
	}
	measure_frame(memory);
}

static void measure_memory(const struct kind *kind, const char *name)
{
	struct memory memory;

	memory_make(&memory, kind, name);
	if (memory_verify(&memory)) {
		if (memory.memfd >= 0)
			per_page("mmap-all-own", &memory,
				 time_mmap(memory.memfd, memory.size, 0, memory.size));
		if (is_supported(&memory))
			measure_buffers(&memory);
	}
	memory_free(&memory);
}

/* The system dma-heap for comparison, an exporter that prefers large pages. */
static void measure_heap(void)
{
	struct memory memory = { .kind = "2M", .name = "heap", .size = 512 * MIB };
	struct dma_heap_allocation_data heap = { .len = memory.size, .fd_flags = O_RDWR };
	int dev = open("/dev/dma_heap/system", O_RDONLY);

	if (dev < 0 || ioctl(dev, DMA_HEAP_IOCTL_ALLOC, &heap)) {
		printf("# cannot allocate from the system dma-heap: %s\n", strerror(errno));
		return;
	}
	measure_importer(heap.fd, &memory);
	per_page("mmap-all-%s", &memory, time_mmap(heap.fd, memory.size, 0, memory.size));
	close(heap.fd);
	close(dev);
}

int main(void)
{
	size_t i;

	bench_open();
	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		measure_memory(&kinds[i], "iovec");
		measure_memory(&kinds[i], "memfd");
	}
	measure_heap();
	return 0;
}
