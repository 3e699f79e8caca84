// SPDX-License-Identifier: GPL-2.0
/*
 * Which memory is accepted, and that the buffer has its bytes in the requested
 * order; which memory is refused; and the properties of the fd.
 */
#include "udmabuf_test.h"

#define SHUFFLE	7	/* coprime to every number of pages used here */

FIXTURE(memory) {
	struct session session;
	int dev;
	struct mem mem;
};

FIXTURE_VARIANT(memory) {
	enum mem_kind kind;
};

FIXTURE_VARIANT_ADD(memory, anon) { .kind = MEM_ANON };
FIXTURE_VARIANT_ADD(memory, mthp) { .kind = MEM_MTHP };
FIXTURE_VARIANT_ADD(memory, thp) { .kind = MEM_THP };
FIXTURE_VARIANT_ADD(memory, hugetlb) { .kind = MEM_HUGETLB };
FIXTURE_VARIANT_ADD(memory, shared_anon) { .kind = MEM_SHARED_ANON };
FIXTURE_VARIANT_ADD(memory, memfd) { .kind = MEM_MEMFD };
FIXTURE_VARIANT_ADD(memory, tmpfs) { .kind = MEM_TMPFS };
FIXTURE_VARIANT_ADD(memory, sysv) { .kind = MEM_SYSV };
FIXTURE_VARIANT_ADD(memory, cow_file) { .kind = MEM_COW_FILE };

FIXTURE_SETUP(memory)
{
	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	self->mem = mem_get(variant->kind, mem_len(variant->kind));
	if (self->mem.why_not)
		SKIP(return, "%s", self->mem.why_not);
	fill(self->mem.addr, self->mem.len, variant->kind);
}

FIXTURE_TEARDOWN(memory)
{
	SESSION_CLOSE(&self->session);
}

/*
 * Name each @unit of the memory, in steps of @step entries. Returns their
 * number.
 */
static size_t name_all(struct udmabuf_iovec *iovs, const struct mem *mem, size_t unit,
		       size_t step)
{
	size_t niov = mem->len / unit;

	make_entries(iovs, niov, mem->addr, unit, step);
	return niov;
}

TEST_F(memory, one_iovec)
{
	int buf = test_create_one(self->dev, 0, self->mem.addr, self->mem.len);
	char *map = test_map_buf(buf, self->mem.len, PROT_READ | PROT_WRITE);

	EXPECT_FILLED(map, self->mem.len, variant->kind);
	fill(self->mem.addr, self->mem.len, 100);
	EXPECT_FILLED(map, self->mem.len, 100);
	fill(map, self->mem.len, 101);
	EXPECT_FILLED(self->mem.addr, self->mem.len, 101);
}

TEST_F(memory, an_iovec_for_each_page)
{
	static struct udmabuf_iovec iovs[4096];
	size_t niov = name_all(iovs, &self->mem, page_size(), 1);
	int buf = test_create(self->dev, 0, iovs, niov);
	char *map = test_map_buf(buf, self->mem.len, PROT_READ | PROT_WRITE);

	EXPECT_FILLED(map, self->mem.len, variant->kind);
	fill(map, self->mem.len, 100);
	EXPECT_FILLED(self->mem.addr, self->mem.len, 100);
}

/* Guards the order of the runs and the search in them. */
TEST_F(memory, shuffled_pages)
{
	static struct udmabuf_iovec iovs[4096];
	size_t niov = name_all(iovs, &self->mem, page_size(), SHUFFLE);
	int buf = test_create(self->dev, 0, iovs, niov);
	char *map = test_map_buf(buf, self->mem.len, PROT_READ | PROT_WRITE);

	EXPECT_TRUE(buffer_is(map, iovs, niov));
	fill(map, self->mem.len, 100);
	EXPECT_TRUE(buffer_is(map, iovs, niov));
	EXPECT_EQ(stamp(100, page_size()),
		  *(__u64 *)(self->mem.addr + SHUFFLE * page_size()));
}

/* Guards entries of several pages that start anywhere in a large folio. */
TEST_F(memory, pieces_in_reverse)
{
	struct udmabuf_iovec iovs[4];
	char *end = self->mem.addr + self->mem.len;
	size_t len = 0;
	char *map;
	int buf, i;

	for (i = 0; i < 4; i++) {
		iovs[i].len = (i + 1) * page_size();
		end -= iovs[i].len + page_size();
		iovs[i].base = to_u64(end);
		len += iovs[i].len;
	}
	buf = test_create(self->dev, 0, iovs, 4);
	map = test_map_buf(buf, len, PROT_READ | PROT_WRITE);
	EXPECT_TRUE(buffer_is(map, iovs, 4));
	fill(map, len, 100);
	EXPECT_TRUE(buffer_is(map, iovs, 4));
}

TEST_F(memory, same_page_twice)
{
	size_t page = page_size();
	struct udmabuf_iovec iovs[] = {
		{ to_u64(self->mem.addr), page },
		{ to_u64(self->mem.addr + page), page },
		{ to_u64(self->mem.addr), page },
		{ to_u64(self->mem.addr), page },
	};
	int buf = test_create(self->dev, 0, iovs, 4);
	char *map = test_map_buf(buf, 4 * page, PROT_READ | PROT_WRITE);

	EXPECT_TRUE(buffer_is(map, iovs, 4));
	map[2 * page] = 'x';
	EXPECT_EQ('x', self->mem.addr[0]);
	EXPECT_EQ('x', map[0]);
	EXPECT_EQ('x', map[3 * page]);
}

TEST_F(memory, overlapping_ranges)
{
	size_t page = page_size();
	struct udmabuf_iovec iovs[] = {
		{ to_u64(self->mem.addr), 6 * page },
		{ to_u64(self->mem.addr + 2 * page), 6 * page },
	};
	int buf = test_create(self->dev, 0, iovs, 2);
	char *map = test_map_buf(buf, 12 * page, PROT_READ | PROT_WRITE);

	EXPECT_TRUE(buffer_is(map, iovs, 2));
	map[3 * page] = 'x';
	EXPECT_EQ('x', map[7 * page]);
	EXPECT_EQ('x', self->mem.addr[3 * page]);
}

/*
 * Guards against pins that do not advance after a partial pin: bytes would
 * repeat.
 */
TEST_F(memory, two_buffers_of_the_same_memory)
{
	int one = test_create_one(self->dev, 0, self->mem.addr, self->mem.len);
	int two = test_create_one(self->dev, 0, self->mem.addr, self->mem.len);
	char *first = test_map_buf(one, self->mem.len, PROT_READ | PROT_WRITE);
	char *second = test_map_buf(two, self->mem.len, PROT_READ);

	fill(first, self->mem.len, 100);
	EXPECT_FILLED(second, self->mem.len, 100);
	munmap(first, self->mem.len);
	close(one);
	EXPECT_FILLED(second, self->mem.len, 100);
	fill(self->mem.addr, self->mem.len, 101);
	EXPECT_FILLED(second, self->mem.len, 101);
}

/* A failure of the last entry undoes all other entries. */
TEST_F(memory, last_iovec_fails)
{
	static struct udmabuf_iovec iovs[4097];
	size_t niov = name_all(iovs, &self->mem, page_size(), 1);
	char *hole = anon_small(page_size());

	munmap(hole, page_size());
	iovs[niov].base = to_u64(hole);
	iovs[niov].len = page_size();
	test_err_create(EFAULT, self->dev, 0, iovs, niov + 1);
	EXPECT_NOTHING_KEPT(&self->session);
	EXPECT_FILLED(self->mem.addr, self->mem.len, variant->kind);
}

/* All kinds in one call */

FIXTURE(mixed) {
	struct session session;
	int dev;
	struct mem mems[MEM_KINDS];
};

FIXTURE_SETUP(mixed)
{
	int kind;

	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	for (kind = 0; kind < MEM_KINDS; kind++) {
		self->mems[kind] = mem_get(kind, mem_len(kind));
		if (!self->mems[kind].why_not)
			fill(self->mems[kind].addr, self->mems[kind].len, kind);
	}
}

FIXTURE_TEARDOWN(mixed)
{
	SESSION_CLOSE(&self->session);
}

/*
 * Name piece @piece of every available kind, then the next piece of each kind.
 */
static size_t mix(struct udmabuf_iovec *iovs, const struct mem *mems, size_t pieces)
{
	size_t niov = 0, piece;
	int kind;

	for (piece = 0; piece < pieces; piece++) {
		for (kind = 0; kind < MEM_KINDS; kind++) {
			if (mems[kind].why_not)
				continue;
			iovs[niov].base = to_u64(mems[kind].addr + 3 * piece * page_size());
			iovs[niov++].len = (1 + kind % 2) * page_size();
		}
	}
	return niov;
}

TEST_F(mixed, all_kinds_in_one_buffer)
{
	struct udmabuf_iovec iovs[8 * MEM_KINDS];
	size_t niov = mix(iovs, self->mems, 8);
	size_t len = entries_len(iovs, niov);
	int buf = test_create(self->dev, 0, iovs, niov);
	char *map = test_map_buf(buf, len, PROT_READ | PROT_WRITE);

	EXPECT_TRUE(buffer_is(map, iovs, niov));
	fill(map, len, 100);
	EXPECT_TRUE(buffer_is(map, iovs, niov));
}

TEST_F(mixed, whole_memories_in_one_buffer)
{
	struct udmabuf_iovec iovs[MEM_KINDS];
	size_t niov = 0, len;
	char *map;
	int kind, buf;

	for (kind = 0; kind < MEM_KINDS; kind++) {
		if (self->mems[kind].why_not)
			continue;
		iovs[niov].base = to_u64(self->mems[kind].addr);
		iovs[niov++].len = self->mems[kind].len;
	}
	len = entries_len(iovs, niov);
	buf = test_create(self->dev, 0, iovs, niov);
	map = test_map_buf(buf, len, PROT_READ | PROT_WRITE);
	EXPECT_TRUE(buffer_is(map, iovs, niov));
}

/* Memory that is refused, or not yet touched */

FIXTURE(sources) {
	struct session session;
	int dev;
	char *mem;
	size_t len;
};

FIXTURE_SETUP(sources)
{
	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	self->len = 8 * page_size();
	self->mem = anon_small(self->len);
	ASSERT_NE(MAP_FAILED, (void *)self->mem);
}

FIXTURE_TEARDOWN(sources)
{
	SESSION_CLOSE(&self->session);
}

TEST_F(sources, untouched_memory)
{
	int buf = test_create_one(self->dev, 0, self->mem, self->len);
	char *map = test_map_buf(buf, self->len, PROT_READ | PROT_WRITE);

	EXPECT_EQ(0, map[self->len - 1]);
	fill(self->mem, self->len, 1);
	EXPECT_FILLED(map, self->len, 1);
}

/* Guards against a pin of the zero page. */
TEST_F(sources, memory_that_was_only_read)
{
	char *map;
	int buf;

	EXPECT_EQ(0, fault_signal(self->mem, false));
	EXPECT_EQ(0, fault_signal(self->mem + page_size(), false));
	buf = test_create_one(self->dev, 0, self->mem, self->len);
	map = test_map_buf(buf, self->len, PROT_READ | PROT_WRITE);
	fill(self->mem, self->len, 1);
	EXPECT_FILLED(map, self->len, 1);
}

TEST_F(sources, untouched_private_file_mapping)
{
	char *file = map_scratch_file("ramfs", self->len, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	char *map;
	int buf;

	if (file == MAP_FAILED)
		SKIP(return, "cannot mount ramfs");
	buf = test_create_one(self->dev, 0, file, self->len);
	map = test_map_buf(buf, self->len, PROT_READ | PROT_WRITE);
	fill(file, self->len, 1);
	EXPECT_FILLED(map, self->len, 1);
}

TEST_F(sources, file_hole_in_memfd)
{
	char *file = map_memfd(self->len);
	int buf = test_create_one(self->dev, 0, file, self->len);
	char *map = test_map_buf(buf, self->len, PROT_READ | PROT_WRITE);

	fill(map, self->len, 1);
	EXPECT_FILLED(file, self->len, 1);
}

TEST_F(sources, shared_file_mapping_is_eopnotsupp)
{
	char *file = map_scratch_file("ramfs", self->len, PROT_READ | PROT_WRITE, MAP_SHARED);

	if (file == MAP_FAILED)
		SKIP(return, "cannot mount ramfs");
	test_err_create_one(EOPNOTSUPP, self->dev, 0, file, self->len);
	memset(file, 1, self->len);
	test_err_create_one(EOPNOTSUPP, self->dev, 0, file, self->len);
}

TEST_F(sources, refused_file_behind_good_memory)
{
	char *file = map_scratch_file("ramfs", self->len, PROT_READ | PROT_WRITE, MAP_SHARED);
	struct udmabuf_iovec iovs[] = {
		{ to_u64(self->mem), self->len },
		{ to_u64(file), self->len },
	};

	if (file == MAP_FAILED)
		SKIP(return, "cannot mount ramfs");
	test_err_create(EOPNOTSUPP, self->dev, 0, iovs, 2);
	EXPECT_NOTHING_KEPT(&self->session);
}

TEST_F(sources, prot_none_is_efault)
{
	fill(self->mem, self->len, 1);
	ASSERT_EQ(0, mprotect(self->mem, self->len, PROT_NONE));
	test_err_create_one(EFAULT, self->dev, 0, self->mem, self->len);
}

TEST_F(sources, read_only_memory_is_efault)
{
	fill(self->mem, self->len, 1);
	ASSERT_EQ(0, mprotect(self->mem, self->len, PROT_READ));
	test_err_create_one(EFAULT, self->dev, 0, self->mem, self->len);
}

/* Guards FOLL_WRITE: a read-only mapping of a memfd must not be written to. */
TEST_F(sources, read_only_memfd_is_efault)
{
	char *file = map_memfd(self->len);

	fill(file, self->len, 1);
	ASSERT_EQ(0, mprotect(file, self->len, PROT_READ));
	test_err_create_one(EFAULT, self->dev, 0, file, self->len);
}

TEST_F(sources, unmapped_is_efault)
{
	munmap(self->mem, self->len);
	test_err_create_one(EFAULT, self->dev, 0, self->mem, self->len);
}

TEST_F(sources, partly_unmapped_is_efault)
{
	fill(self->mem, self->len, 1);
	munmap(self->mem + 4 * page_size(), page_size());
	test_err_create_one(EFAULT, self->dev, 0, self->mem, self->len);
	EXPECT_NOTHING_KEPT(&self->session);
	test_create_one(self->dev, 0, self->mem, 4 * page_size());
}

TEST_F(sources, beyond_the_end_of_a_file_is_efault)
{
	int fd = sealed_memfd(page_size(), 0, 0);
	char *file = mmap(NULL, self->len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	ASSERT_NE(MAP_FAILED, (void *)file);
	test_err_create_one(EFAULT, self->dev, 0, file, self->len);
}

/* VM_PFNMAP: a dma-buf cannot be made from a dma-buf's mapping. */
TEST_F(sources, mapping_of_a_buffer_is_efault)
{
	int buf = test_create_one(self->dev, 0, self->mem, self->len);
	char *map = test_map_buf(buf, self->len, PROT_READ | PROT_WRITE);

	test_err_create_one(EFAULT, self->dev, 0, map, self->len);
	memset(map, 1, self->len);
	test_err_create_one(EFAULT, self->dev, 0, map, self->len);
}

TEST_F(sources, secretmem_is_efault)
{
	int fd = syscall(__NR_memfd_secret, 0);
	char *secret;

	if (fd < 0)
		SKIP(return, "no memfd_secret(): %s", strerror(errno));
	set_memlock(SESSION_MEMLOCK);
	ASSERT_EQ(0, ftruncate(fd, self->len));
	secret = mmap(NULL, self->len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, (void *)secret);
	test_err_create_one(EFAULT, self->dev, 0, secret, self->len);
	memset(secret, 1, self->len);
	test_err_create_one(EFAULT, self->dev, 0, secret, self->len);
	munmap(secret, self->len);
}

TEST_F(sources, poisoned_page_is_efault)
{
	fill(self->mem, self->len, 1);
	POISON(self->mem + 3 * page_size());
	test_err_create_one(EFAULT, self->dev, 0, self->mem, self->len);
	test_err_create_one(EFAULT, self->dev, 0, self->mem + 3 * page_size(), page_size());
	EXPECT_NOTHING_KEPT(&self->session);
	test_create_one(self->dev, 0, self->mem, 3 * page_size());
	munmap(self->mem, self->len);
}

/*
 * Get the page frame range [first, end) of each movable zone. Returns their
 * number.
 */
static size_t movable_zones(__u64 (*zones)[2], size_t max)
{
	static char text[131072];
	unsigned long spanned = 0, value;
	bool movable = false;
	size_t n = 0;
	char *line;

	if (read_text("/proc/zoneinfo", text, sizeof(text)) < 0)
		return 0;
	for (line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
		if (!strncmp(line, "Node", 4)) {
			movable = strstr(line, "Movable");
		} else if (sscanf(line, " spanned %lu", &value) == 1) {
			spanned = value;
		} else if (movable && spanned && n < max &&
			   sscanf(line, " start_pfn: %lu", &value) == 1) {
			zones[n][0] = value;
			zones[n++][1] = value + spanned;
		}
	}
	return n;
}

static size_t pages_in_zones(const char *mem, size_t len, __u64 (*zones)[2], size_t nzones)
{
	size_t npages = len / page_size(), page, i, count = 0;
	__u64 *frames = page_frames_alloc(mem, npages);

	for (page = 0; page < npages; page++)
		for (i = 0; i < nzones; i++)
			count += frames[page] >= zones[i][0] && frames[page] < zones[i][1];
	free(frames);
	return count;
}

/*
 * Guards FOLL_LONGTERM: pages must be migrated out of the movable zone before
 * they are pinned for a long time. Boot with movablecore=256M to test it.
 */
TEST_F(sources, movable_zone_is_left_before_pinning)
{
	size_t len = 256 * page_size();
	__u64 zones[16][2];
	size_t nzones = movable_zones(zones, 16);
	bool movable = false;
	int attempts;
	char *mem;

	if (!nzones)
		SKIP(return, "no movable zone: boot with movablecore=256M");
	/* Free pages on a CPU's list may be of another zone. */
	for (attempts = 0; !movable && attempts < LAYOUT_ATTEMPTS; attempts++) {
		mem = mem_get(MEM_ANON, len).addr;
		fill(mem, len, 1);
		movable = pages_in_zones(mem, len, zones, nzones);
	}
	if (!movable)
		SKIP(return, "none of our memory came from the movable zone");
	test_create_one(self->dev, 0, mem, len);
	EXPECT_EQ(0, pages_in_zones(mem, len, zones, nzones));
	EXPECT_FILLED(mem, len, 1);
}

/*
 * Huge pages are migrated out as well, except before Linux 6.2. There GUP would
 * warn about them, so the driver must refuse them before GUP.
 */
TEST_F(sources, movable_zone_is_left_by_hugetlb_too)
{
	const char *knob = "/proc/sys/vm/nr_hugepages", *why_not = NULL;
	long pool = text_number("/proc/meminfo", "HugePages_Total:");
	size_t len = 2 * hugetlb_size();
	__u64 zones[16][2];
	size_t nzones = movable_zones(zones, 16);
	char *mem;

	if (!nzones)
		SKIP(return, "no movable zone: boot with movablecore=256M");
	make_room();
	write_number(knob, pool + 8);
	mem = anon_hugetlb(len, &why_not);
	if (why_not)
		SKIP(return, "%s", why_not);
	fill(mem, len, 1);
	if (!pages_in_zones(mem, len, zones, nzones))
		SKIP(return, "no huge page came from the movable zone");
	if (kernel_before(6, 2)) {
		test_err_create_one(ENOMEM, self->dev, 0, mem, len);
	} else {
		test_create_one(self->dev, 0, mem, len);
		EXPECT_EQ(0, pages_in_zones(mem, len, zones, nzones));
	}
	EXPECT_FILLED(mem, len, 1);
	/*
	 * The pool releases the huge pages freed last first, so unmap before it
	 * shrinks.
	 */
	munmap(mem, len);
	write_number(knob, pool);
}

/* The file descriptor */

TEST_F(sources, fd_is_a_dma_buf_of_the_right_size)
{
	int buf = test_create_one(self->dev, 0, self->mem, self->len);
	char path[64], text[1024];

	EXPECT_EQ((off_t)self->len, lseek(buf, 0, SEEK_END));
	EXPECT_EQ(0, lseek(buf, 0, SEEK_SET));
	EXPECT_EQ(O_RDWR, fcntl(buf, F_GETFL) & O_ACCMODE);
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", buf);
	ASSERT_LT(0, read_text(path, text, sizeof(text)));
	EXPECT_NE(NULL, strstr(text, "exp_name:\tudmabuf\n"));
	EXPECT_EQ((long)self->len, text_number(path, "size:"));
}

TEST_F(sources, close_on_exec_only_if_asked_for)
{
	int without = test_create_one(self->dev, 0, self->mem, self->len);
	int with = test_create_one(self->dev, UDMABUF_FLAGS_CLOEXEC, self->mem, self->len);

	EXPECT_EQ(0, fcntl(without, F_GETFD) & FD_CLOEXEC);
	EXPECT_EQ(FD_CLOEXEC, fcntl(with, F_GETFD) & FD_CLOEXEC);
}

TEST_HARNESS_MAIN
