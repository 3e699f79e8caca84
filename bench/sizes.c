// SPDX-License-Identifier: GPL-2.0-only
/*
 * sizes: measure creation with close, and an importer's mapping, over the size of the
 * buffer; and creation over the number of pieces. The last word of a row's name is the
 * size in bytes or the number of pieces.
 */
#include "common.h"

#define MEDIUM		(64 * MIB)
#define LARGEST		GIB
#define MODERATE	1024U
#define MOST		65536U

/* A buffer larger than the memory contains the memory several times. */
static int make_list(struct pieces *pieces, const struct memory *memory, size_t size)
{
	size_t piece = size < memory->size ? size : memory->size;

	pieces_make(pieces, memory, size / piece, piece, true);
	return create_list(memory, pieces);
}

static __u64 time_create(const struct memory *memory, const struct pieces *pieces)
{
	__u64 start, begin = now(), time = 0;
	int i, fd;

	for (i = 0; again(i, begin) && !(i == 2 && time > 100 * MILLION); i++) {
		start = now();
		fd = create_list(memory, pieces);
		if (fd < 0)
			return 0;
		close(fd);
		least(&time, now() - start, i);
	}
	return time;
}

static void result_over(const char *row, const struct memory *memory, size_t x, __u64 time)
{
	char name[64];

	snprintf(name, sizeof(name), row, memory->name, x);
	if (time)
		result(name, memory->kind, time, "insn");
}

/* Cost per page or piece of the largest buffer, relative to the medium one. */
static void result_growth(const char *row, const struct memory *memory, __u64 medium,
			  __u64 largest, size_t times)
{
	if (medium && largest)
		result_of(row, memory, (double)largest / medium / times, "ratio");
}

static void measure_sizes(const struct memory *memory)
{
	__u64 create, import, medium_create = 0, medium_import = 0;
	struct pieces pieces;
	size_t size;
	int fd;

	for (size = PAGE; size <= LARGEST; size *= 4) {
		fd = make_list(&pieces, memory, size);
		if (fd < 0)
			err(1, "create of %zu bytes", size);
		import = time_module(fd, BENCH_IMPORT);
		close(fd);
		create = time_create(memory, &pieces);
		result_over("size-import-%s-%zu", memory, size, import);
		result_over("size-create-%s-%zu", memory, size, create);
		if (size == MEDIUM) {
			medium_create = create;
			medium_import = import;
		}
		pieces_free(&pieces);
	}
	result_growth("growth-create-%s", memory, medium_create, create, LARGEST / MEDIUM);
	result_growth("growth-import-%s", memory, medium_import, import, LARGEST / MEDIUM);
}

static void measure_pieces(const struct memory *memory)
{
	struct pieces pieces;
	__u64 time, medium = 0;
	__u32 n;

	for (n = 1; n <= MOST; n *= 4) {
		pieces_make(&pieces, memory, n, PAGE, true);
		time = time_create(memory, &pieces);
		pieces_free(&pieces);
		result_over("pieces-%s-%zu", memory, n, time);
		if (n == MODERATE)
			medium = time;
	}
	result_growth("growth-pieces-%s", memory, medium, time, MOST / MODERATE);
}

static void measure_memory(const struct kind *kind, const char *name)
{
	struct memory memory;

	memory_make(&memory, kind, name);
	if (is_supported(&memory)) {
		measure_sizes(&memory);
		if (kind->folio == PAGE)
			measure_pieces(&memory);
	}
	memory_free(&memory);
}

int main(void)
{
	bench_open();
	measure_memory(&kinds[0], "iovec");
	measure_memory(&kinds[0], "memfd");
	measure_memory(&kinds[2], "iovec");
	measure_memory(&kinds[2], "memfd");
	return 0;
}
