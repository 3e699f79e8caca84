// SPDX-License-Identifier: GPL-2.0
/*
 * Mapping a buffer into a process: each address shows the right page, page
 * tables grow only with touched pages, no address shows memory outside the
 * buffer, and no page can be pinned through the mapping.
 */
#include <linux/userfaultfd.h>

#include "udmabuf_test.h"

#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC	0x8000	/* Linux 6.7 */
#endif

#define NPAGES	64

FIXTURE(mapping) {
	struct session session;
	int dev;
	char *mem;
	size_t len;
	int buf;
};

FIXTURE_VARIANT(mapping) {
	enum mem_kind kind;
	bool scattered;
};

FIXTURE_VARIANT_ADD(mapping, anon) { .kind = MEM_ANON };
FIXTURE_VARIANT_ADD(mapping, anon_scattered) { .kind = MEM_ANON, .scattered = true };
FIXTURE_VARIANT_ADD(mapping, thp) { .kind = MEM_THP };
FIXTURE_VARIANT_ADD(mapping, thp_scattered) { .kind = MEM_THP, .scattered = true };
FIXTURE_VARIANT_ADD(mapping, memfd) { .kind = MEM_MEMFD };
FIXTURE_VARIANT_ADD(mapping, hugetlb) { .kind = MEM_HUGETLB };

/*
 * Buffer page i is page (i ^ 1) of the memory if it is scattered, else page i.
 */
static char *source(const struct _test_data_mapping *self, bool scattered, size_t page)
{
	return self->mem + (page ^ scattered) * page_size();
}

FIXTURE_SETUP(mapping)
{
	struct udmabuf_iovec iovs[NPAGES];
	size_t i, whole = mem_len(variant->kind);
	struct mem mem;

	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	self->len = NPAGES * page_size();
	mem = mem_get(variant->kind, whole > self->len ? whole : self->len);
	if (mem.why_not)
		SKIP(return, "%s", mem.why_not);
	self->mem = mem.addr;
	for (i = 0; i < NPAGES; i++) {
		iovs[i].base = to_u64(source(self, variant->scattered, i));
		iovs[i].len = page_size();
		fill(source(self, variant->scattered, i), page_size(), i);
	}
	self->buf = test_create(self->dev, 0, iovs, NPAGES);
}

FIXTURE_TEARDOWN(mapping)
{
	SESSION_CLOSE(&self->session);
}

/* Expect that @map shows @npages pages of the buffer from page @first on. */
#define EXPECT_PAGES(map, first, npages)				\
	do {								\
		size_t __i;						\
		for (__i = 0; __i < (npages); __i++)			\
			EXPECT_EQ(-1, filled_until((map) + __i * page_size(), \
						   page_size(), (first) + __i, 0)) \
				TH_LOG("page %zu of the buffer", (first) + __i); \
	} while (0)

TEST_F(mapping, every_page_in_its_place)
{
	char *map = test_map_buf(self->buf, self->len, PROT_READ);

	EXPECT_PAGES(map, 0, NPAGES);
}

/* Guards fault-around: the touched page is not the first of its run. */
TEST_F(mapping, every_page_in_its_place_backwards)
{
	char *map = test_map_buf(self->buf, self->len, PROT_READ);
	int i;

	for (i = NPAGES - 1; i >= 0; i--)
		EXPECT_PAGES(map + i * page_size(), i, 1);
}

TEST_F(mapping, owner_and_two_mappings_see_each_other)
{
	char *one = test_map_buf(self->buf, self->len, PROT_READ | PROT_WRITE);
	char *two = test_map_buf(self->buf, self->len, PROT_READ | PROT_WRITE);
	size_t i, page = page_size();

	for (i = 0; i < NPAGES; i++) {
		char *own = source(self, variant->scattered, i);

		own[1] = 'o';
		EXPECT_EQ('o', one[i * page + 1]);
		EXPECT_EQ('o', two[i * page + 1]);
		one[i * page + 2] = '1';
		EXPECT_EQ('1', own[2]);
		EXPECT_EQ('1', two[i * page + 2]);
		two[i * page + 3] = '2';
		EXPECT_EQ('2', own[3]);
		EXPECT_EQ('2', one[i * page + 3]);
	}
}

TEST_F(mapping, offset_selects_the_page)
{
	size_t i;

	for (i = 0; i < NPAGES; i += 5) {
		char *map = _map_buf(self->buf, page_size(), PROT_READ, i * page_size());

		ASSERT_NE(MAP_FAILED, (void *)map);
		EXPECT_PAGES(map, i, 1);
	}
}

/*
 * Guards against faults that ignore where a part of a mapping starts in the
 * buffer.
 */
TEST_F(mapping, pieces_of_a_mapping_keep_their_pages)
{
	char *map = _map_buf(self->buf, 40 * page_size(), PROT_READ, 8 * page_size());

	ASSERT_NE(MAP_FAILED, (void *)map);
	ASSERT_EQ(0, munmap(map + 10 * page_size(), 3 * page_size()));
	EXPECT_PAGES(map + 13 * page_size(), 21, 27);
	EXPECT_PAGES(map, 8, 10);
}

TEST_F(mapping, moved_mapping_keeps_its_pages)
{
	char *map = test_map_buf(self->buf, self->len, PROT_READ);
	char *moved;

	EXPECT_PAGES(map, 0, 1);
	moved = mremap(map, self->len, self->len / 2, 0);
	ASSERT_EQ((void *)map, (void *)moved);
	moved = mremap(map + page_size(), page_size() * 4, page_size() * 4,
		       MREMAP_MAYMOVE | MREMAP_FIXED,
		       mmap(NULL, page_size() * 4, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	ASSERT_NE(MAP_FAILED, (void *)moved);
	EXPECT_PAGES(moved, 1, 4);
}

TEST_F(mapping, private_mapping_is_refused)
{
	EXPECT_ERRNO(EINVAL, (long)mmap(NULL, self->len, PROT_READ | PROT_WRITE, MAP_PRIVATE,
					self->buf, 0));
	EXPECT_ERRNO(EINVAL, (long)mmap(NULL, self->len, PROT_READ, MAP_PRIVATE, self->buf, 0));
}

TEST_F(mapping, beyond_the_end_is_refused)
{
	size_t page = page_size();

	test_err_map_buf(EINVAL, self->buf, self->len + page, PROT_READ, 0);
	test_err_map_buf(EINVAL, self->buf, self->len, PROT_READ, page);
	test_err_map_buf(EINVAL, self->buf, page, PROT_READ, self->len);
	test_err_map_buf(EINVAL, self->buf, page, PROT_READ, self->len + page);
}

TEST_F(mapping, growing_is_refused)
{
	char *map = test_map_buf(self->buf, self->len, PROT_READ);

	EXPECT_EQ(MAP_FAILED, mremap(map, self->len, self->len + page_size(), MREMAP_MAYMOVE));
	EXPECT_EQ(MAP_FAILED, mremap(map, page_size(), 2 * page_size(), MREMAP_MAYMOVE));
	EXPECT_EQ(MAP_FAILED, mremap(map, 0, self->len, MREMAP_MAYMOVE));
}

TEST_F(mapping, outlives_the_fd)
{
	char *map = test_map_buf(self->buf, self->len, PROT_READ | PROT_WRITE);

	close(self->buf);
	EXPECT_PAGES(map, 0, NPAGES);
	map[0] = 'x';
	EXPECT_EQ('x', *source(self, variant->scattered, 0));
}

TEST_F(mapping, child_has_it_too)
{
	char *map = test_map_buf(self->buf, self->len, PROT_READ | PROT_WRITE);
	pid_t pid;

	map[0] = 'p';
	pid = fork();
	if (!pid) {
		CHILD_CHECK(map[0] == 'p');
		map[1] = 'c';
		map[self->len - 1] = 'c';
		_exit(0);
	}
	EXPECT_EQ(0, reap(pid));
	EXPECT_EQ('c', map[1]);
	EXPECT_EQ('c', map[self->len - 1]);
	EXPECT_EQ('c', source(self, variant->scattered, 0)[1]);
}

/* Guards VM_PFNMAP: no page reference can be taken through the mapping. */
TEST_F(mapping, pages_cannot_be_taken_through_it)
{
	char *map = test_map_buf(self->buf, self->len, PROT_READ | PROT_WRITE);
	char byte;
	struct iovec local = { &byte, 1 };
	struct iovec remote = { map, 1 };
	struct iovec page = { map, page_size() };
	int pipes[2];

	map[0] = 'x';
	ASSERT_EQ(0, pipe(pipes));
	EXPECT_ERRNO(EFAULT, process_vm_readv(getpid(), &local, 1, &remote, 1, 0));
	EXPECT_ERRNO(EFAULT, process_vm_writev(getpid(), &local, 1, &remote, 1, 0));
	EXPECT_ERRNO(EFAULT, vmsplice(pipes[1], &page, 1, 0));
	test_err_create_one(EFAULT, self->dev, 0, map, page_size());
}

/* System calls copy to and from the mapping as for any memory. */
TEST_F(mapping, read_and_write_work_on_it)
{
	char *map = test_map_buf(self->buf, self->len, PROT_READ | PROT_WRITE);
	int pipes[2];

	ASSERT_EQ(0, pipe(pipes));
	ASSERT_EQ(5, write(pipes[1], "hello", 5));
	ASSERT_EQ(5, read(pipes[0], map + page_size() - 2, 5));
	EXPECT_EQ(0, memcmp(map + page_size() - 2, "hello", 5));
	EXPECT_EQ('l', *source(self, variant->scattered, 1));
}

/* Mappings of large buffers, and of buffers with failed or lost pages */

FIXTURE(faults) {
	struct session session;
	int dev;
};

FIXTURE_SETUP(faults)
{
	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
}

FIXTURE_TEARDOWN(faults)
{
	SESSION_CLOSE(&self->session);
}

#define RUN_PAGES	24	/* huge pages, some of them adjacent */
#define RUN_LEAST	6

/*
 * The growth of the page tables, in pages, when @offset of a new mapping is
 * touched; -1 on failure.
 */
static long tables_of_a_touch(int buf, size_t len, size_t offset)
{
	char *map = _map_buf(buf, len, PROT_READ, 0);
	long before = vmpte_kib();

	if (map == MAP_FAILED || fault_signal(map + offset, false))
		return -1;
	return (vmpte_kib() - before) * 1024 / (long)page_size();
}

/*
 * The first fault of mainline's driver fills the page tables of the whole mapping.
 * A touch may fill one page table, and allocate the levels above it.
 */
TEST_F(faults, touching_a_page_does_not_populate_the_mapping)
{
	struct mem mem = mem_get(MEM_ANON, 1 << 20);
	struct udmabuf_iovec iovs[128];
	size_t i;
	int buf;

	make_entries(iovs, ARRAY_SIZE(iovs), mem.addr, mem.len, 0);
	buf = test_create(self->dev, 0, iovs, ARRAY_SIZE(iovs));
	i = tables_of_a_touch(buf, mem.len * ARRAY_SIZE(iovs), 0);
	EXPECT_GE(3, i);
}

/* The same for a mapping of a single run. */
TEST_F(faults, touching_a_page_does_not_populate_its_run)
{
	struct udmabuf_iovec iovs[RUN_PAGES];
	size_t huge = hugetlb_size(), niov = 0, i;
	struct mem mem;
	int buf;

	for (i = 0; niov < RUN_LEAST && i < LAYOUT_ATTEMPTS; i++) {
		mem = mem_get(MEM_HUGETLB, RUN_PAGES * huge);
		if (mem.why_not)
			SKIP(return, "%s", mem.why_not);
		niov = longest_run(iovs, &mem, huge);
	}
	if (niov < RUN_LEAST)
		SKIP(return, "only %zu huge pages side by side", niov);
	buf = test_create(self->dev, 0, iovs, niov);
	i = tables_of_a_touch(buf, niov * huge, 0);
	EXPECT_GE(3, i);
}

/*
 * Guards fault-around: a short mapping does not show the neighbours in its run.
 */
TEST_F(faults, fault_stays_within_the_mapping)
{
	size_t page = page_size();
	struct mem mem = mem_get(MEM_THP, 2 * thp_size());
	char *map, *around;
	int buf;

	if (mem.why_not)
		mem = mem_get(MEM_ANON, 64 * page);
	buf = test_create_one(self->dev, 0, mem.addr, 64 * page);
	around = mmap(NULL, 9 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	map = mmap(around + 4 * page, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
		   buf, 4 * page);
	ASSERT_NE(MAP_FAILED, (void *)map);
	fill(mem.addr, 64 * page, 1);
	EXPECT_EQ(-1, filled_until(map, page, 1, 4 * page));
	EXPECT_EQ(0, around[3 * page]);
	EXPECT_EQ(0, around[5 * page]);
	EXPECT_EQ(0, fault_signal(map, true));
	EXPECT_EQ(0, fault_signal(around + 5 * page, true));
	EXPECT_EQ(1, mem.addr[4 * page]);
	EXPECT_EQ(-1, filled_until(mem.addr + 5 * page, page, 1, 5 * page));
}

/*
 * userfaultfd must not insert entries into a mapping. Kernels from 6.7 on may
 * register it for asynchronous write protection; the marker of an untouched page
 * then must not make the page fault recur without end.
 */
TEST_F(faults, userfaultfd_does_not_make_a_fault_endless)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_WP_ASYNC };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_WP };
	struct uffdio_writeprotect wp = { .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	size_t len = 4 * page_size();
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	char *mem = mem_get(MEM_ANON, len).addr;
	char *map = test_map_buf(test_create_one(self->dev, 0, mem, len), len,
				 PROT_READ | PROT_WRITE);
	int refused, sig;

	if (uffd < 0)
		SKIP(return, "no userfaultfd for us");
	if (ioctl(uffd, UFFDIO_API, &api)) {
		api = (struct uffdio_api) { .api = UFFD_API };
		ASSERT_EQ(0, ioctl(uffd, UFFDIO_API, &api));
	}
	reg.range.start = to_u64(map);
	reg.range.len = len;
	wp.range = reg.range;
	refused = ioctl(uffd, UFFDIO_REGISTER, &reg) ? errno : 0;
	EXPECT_TRUE(!refused || refused == EINVAL);
	EXPECT_EQ(refused ? -1 : 0, ioctl(uffd, UFFDIO_WRITEPROTECT, &wp));
	sig = refused ? 0 : SIGBUS;
	EXPECT_EQ(sig, fault_signal(map, false));
	EXPECT_EQ(sig, fault_signal(map + len - 1, true));
	close(uffd);
	EXPECT_EQ(0, fault_signal(map, true));
	munmap(mem, len);
}

/* Mainline's driver maps the failed page. */
TEST_F(faults, poisoned_page_is_sigbus)
{
	size_t page = page_size(), len = 32 * page;
	char *mem = mem_get(MEM_ANON, len).addr;
	int buf = test_create_one(self->dev, 0, mem, len);
	char *map = test_map_buf(buf, len, PROT_READ | PROT_WRITE);

	fill(mem, len, 1);
	POISON(mem + 5 * page);
	EXPECT_EQ(SIGBUS, fault_signal(map + 5 * page, false));
	EXPECT_EQ(SIGBUS, fault_signal(map + 5 * page, true));
	EXPECT_EQ(-1, filled_until(map, 5 * page, 1, 0));
	EXPECT_EQ(-1, filled_until(map + 6 * page, len - 6 * page, 1, 6 * page));
	munmap(mem, len);
}

/* Guards fault-around: a run with a failed page in its middle. */
TEST_F(faults, poisoned_page_of_a_large_folio_is_sigbus)
{
	struct mem mem = mem_get(MEM_THP, 2 * thp_size());
	size_t page = page_size();
	char *map;
	int buf;

	if (mem.why_not)
		SKIP(return, "%s", mem.why_not);
	buf = test_create_one(self->dev, 0, mem.addr, mem.len);
	map = test_map_buf(buf, mem.len, PROT_READ | PROT_WRITE);
	POISON(mem.addr + 5 * page);
	EXPECT_EQ(0, fault_signal(map + 4 * page, false));
	EXPECT_EQ(SIGBUS, fault_signal(map + 5 * page, false));
	EXPECT_EQ(0, fault_signal(map + 6 * page, false));
	munmap(mem.addr, mem.len);
}

TEST_F(faults, poisoned_hugetlb_page_is_sigbus)
{
	struct mem mem = mem_get(MEM_HUGETLB, mem_len(MEM_HUGETLB));
	char *map;
	int buf;

	if (mem.why_not)
		SKIP(return, "%s", mem.why_not);
	buf = test_create_one(self->dev, 0, mem.addr, mem.len);
	map = test_map_buf(buf, mem.len, PROT_READ | PROT_WRITE);
	POISON(mem.addr);
	EXPECT_EQ(SIGBUS, fault_signal(map, false));
	EXPECT_EQ(0, fault_signal(map + mem.len / 2, false));
	munmap(mem.addr, mem.len);
}

/* If the file is truncated, the buffer keeps the pages and their bytes. */
TEST_F(faults, truncated_memfd_stays_in_the_buffer)
{
	size_t len = 8 * page_size();
	int fd = sealed_memfd(len, 0, 0);
	char *mem, *map;
	int buf;

	mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, (void *)mem);
	fill(mem, len, 1);
	buf = test_create_one(self->dev, 0, mem, len);
	map = test_map_buf(buf, len, PROT_READ | PROT_WRITE);
	ASSERT_EQ(0, ftruncate(fd, 0));
	EXPECT_EQ(SIGBUS, fault_signal(mem, false));
	EXPECT_FILLED(map, len, 1);
}

/* The buffer of a memfd that is sealed later gets no new writers. */
TEST_F(faults, sealed_memfd_gets_no_new_writers)
{
	size_t len = 8 * page_size();
	int fd = sealed_memfd(len, 0, 0);
	struct udmabuf_iovec iovs[2];
	char *mem, *old, *map;
	int buf;

	mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, (void *)mem);
	iovs[0] = (struct udmabuf_iovec) { to_u64(anon_small(len)), len };
	iovs[1] = (struct udmabuf_iovec) { to_u64(mem), len };
	buf = test_create(self->dev, 0, iovs, 2);
	old = test_map_buf(buf, 2 * len, PROT_READ | PROT_WRITE);
	ASSERT_EQ(0, fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
	test_err_map_buf(EPERM, buf, 2 * len, PROT_READ | PROT_WRITE, 0);
	map = test_map_buf(buf, 2 * len, PROT_READ);
	EXPECT_ERRNO(EACCES, mprotect(map, 2 * len, PROT_READ | PROT_WRITE));
	fill(old, 2 * len, 1);
	EXPECT_FILLED(map, 2 * len, 1);
}

/*
 * Punch a hole, or truncate. A seal against new writers forbids the hole, a
 * seal against shrinking the truncation.
 */
static bool lose_pages(int fd, size_t len)
{
	return !fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, len) ||
	       !ftruncate(fd, 0);
}

/*
 * The errno of mapping a buffer for writing, or 0. The buffer is made of a
 * mapping of a memfd, which has the seals @before, gets the seals @after, and
 * with @lost loses its pages in between.
 */
static int map_sealed(int dev, unsigned int flags, int before, int after, bool lost)
{
	size_t len = flags & MFD_HUGETLB ? hugetlb_size() : 8 * page_size();
	int fd = sealed_memfd(len, flags, 0), other = reopen(fd, O_RDWR), buf, err;
	char *mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), *map;

	if (mem == MAP_FAILED || fcntl(fd, F_ADD_SEALS, before))
		return errno;
	memset(mem, 1, len);
	buf = _create_one(dev, 0, mem, len);
	if (buf < 0 || munmap(mem, len) || close(fd))
		return errno;
	if (lost && !lose_pages(other, len))
		return errno;
	if (after && fcntl(other, F_ADD_SEALS, after))
		return errno;
	map = _map_buf(buf, len, PROT_READ | PROT_WRITE, 0);
	err = map == MAP_FAILED ? errno : 0;
	close(other);
	close(buf);
	return err;
}

/* Seals added before the create count like seals added later. */
TEST_F(faults, seals_of_memfds_whose_memory_it_is)
{
	static const struct {
		int before, after;
		bool refused;
	} rows[] = {
		{ 0, 0, false },
		{ F_SEAL_SHRINK | F_SEAL_SEAL, 0, false },
		{ 0, F_SEAL_SHRINK | F_SEAL_SEAL, false },
		{ 0, F_SEAL_FUTURE_WRITE, true },
		{ F_SEAL_FUTURE_WRITE, 0, true },
		{ F_SEAL_FUTURE_WRITE | F_SEAL_SEAL, 0, true },
		{ F_SEAL_FUTURE_WRITE, F_SEAL_SEAL, true },
	};
	static const unsigned int kinds[] = { 0, MFD_HUGETLB };
	size_t i;

	hugetlb_provide(2 * hugetlb_size());
	for (i = 0; i < 2 * 2 * ARRAY_SIZE(rows); i++) {
		unsigned int flags = kinds[i % 2];
		bool lost = i / 2 % 2;
		size_t row = i / 4;

		if (flags && pool_read().free < 1)
			continue;
		EXPECT_EQ(rows[row].refused ? EPERM : 0,
			  map_sealed(self->dev, flags, rows[row].before, rows[row].after, lost))
			TH_LOG("map_sealed(): rows[%zu], flags %#x, lost %d", row, flags, lost);
	}
	/*
	 * Without pages of the buffer, the file can be sealed against all
	 * writers.
	 */
	EXPECT_EQ(EPERM, map_sealed(self->dev, 0, 0, F_SEAL_WRITE, true));
}

/* Guards against a search for a page that is still in the file: 2^31 steps. */
#define ENTRIES		65536

TEST_F(faults, files_that_forgot_their_pages)
{
	struct udmabuf_create_item *items = calloc(ENTRIES, sizeof(*items));
	size_t page = page_size(), n = listed_pages(ENTRIES), i;
	long long start;
	int fds[2], buf;

	if (kernel_before(6, 11))
		SKIP(return, "each entry has the memfd mapped, which takes too long");
	for (i = 0; i < 2; i++)
		fds[i] = sealed_memfd(page, 0, F_SEAL_SHRINK);
	for (i = 0; i < n; i++)
		items[i] = (struct udmabuf_create_item) { .memfd = fds[i % 2], .size = page };
	buf = test_create_list(self->dev, 0, items, n);
	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, fallocate(fds[i], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				       0, page));
	start = now_ms();
	test_map_buf(buf, n * page, PROT_READ | PROT_WRITE);
	EXPECT_GT(5000, now_ms() - start);
	free(items);
}

/* Faults populate a window around the touched page, with the right pages */

#define STRIDE		1009	/* prime, so that it visits all pages */
#define WINDOW_PAGES	2304

FIXTURE(windows) {
	struct session session;
	int dev;
	char *mem;
	size_t page;
	size_t len;
	struct udmabuf_iovec iovs[WINDOW_PAGES];
	int buf;
};

FIXTURE_VARIANT(windows) {
	size_t step;		/* in memory, between neighbours in the buffer */
};

FIXTURE_VARIANT_ADD(windows, in_order) { .step = 1 };
FIXTURE_VARIANT_ADD(windows, scattered) { .step = 707 };

FIXTURE_SETUP(windows)
{
	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	self->page = page_size();
	self->len = WINDOW_PAGES * self->page;
	self->mem = anon_small(self->len);
	fill(self->mem, self->len, 1);
	/*
	 * Migrate pages now. The create below would make them adjacent in its
	 * order.
	 */
	close(test_create_one(self->dev, 0, self->mem, self->len));
	make_entries(self->iovs, WINDOW_PAGES, self->mem, self->page, variant->step);
	self->buf = test_create(self->dev, 0, self->iovs, WINDOW_PAGES);
}

FIXTURE_TEARDOWN(windows)
{
	SESSION_CLOSE(&self->session);
}

/* Does @addr show page @pgoff of the buffer? */
static bool shows(const struct _test_data_windows *self, const char *addr, size_t pgoff)
{
	return !memcmp(addr, (void *)(uintptr_t)self->iovs[pgoff].base, self->page);
}

TEST_F(windows, in_order_with_few_faults)
{
	char *map = test_map_buf(self->buf, self->len, PROT_READ);
	long before = page_faults();
	size_t i;

	for (i = 0; i < WINDOW_PAGES; i++)
		EXPECT_TRUE(shows(self, map + i * self->page, i))
			TH_LOG("page %zu of the buffer", i);
	EXPECT_GT(WINDOW_PAGES / 32, page_faults() - before);
}

/*
 * Touch the pages from @first to @end in order. Expect faults at the pages @at
 * and no others. Returns the first page that differs, or -1.
 */
static long wrong_fault(const char *map, size_t first, size_t end, const size_t *at)
{
	for (; first < end; first++) {
		long before = page_faults();
		bool faulted;

		(void)*(volatile const char *)(map + first * page_size());
		faulted = page_faults() != before;
		if (faulted != (*at == first))
			return first;
		at += faulted;
	}
	return -1;
}

/*
 * Windows end at multiples of their size, by address. They double up to 512
 * pages while each fault follows the end of the previous window, else restart
 * at 16.
 */
TEST_F(windows, grow_and_start_again)
{
	static const size_t grown[] = { 5, 16, 32, 64, 128, 256, 512, 1024, 1536, 2048, 0 };
	static const size_t displaced[] = { 5, 13, 29, 61, 125, 253, 509, 1021, 0 };
	/* s390x: at most the 256 pages that one page table maps */
	static const size_t grown_256[] = { 5, 16, 32, 64, 128, 256, 512, 768, 1024, 1280,
					    1536, 1792, 2048, 0 };
	static const size_t displaced_256[] = { 5, 13, 29, 61, 125, 253, 509, 765, 1021, 0 };
	static const size_t again[] = { 1000, 1008, 1024, 1088, 0 };
	char *around = anon_aligned(2 * self->len, 512 * self->page), *map;
	struct utsname kernel;
	bool s390x;
	long wrong;

	uname(&kernel);
	s390x = !strcmp(kernel.machine, "s390x");
	page_faults();
	map = mmap(around, self->len, PROT_READ, MAP_SHARED | MAP_FIXED, self->buf, 0);
	wrong = wrong_fault(map, 5, WINDOW_PAGES, s390x ? grown_256 : grown);
	EXPECT_EQ(-1, wrong);
	map = mmap(around, self->len, PROT_READ, MAP_SHARED | MAP_FIXED, self->buf, 0);
	wrong = wrong_fault(map, 1000, 1100, again);
	EXPECT_EQ(-1, wrong);
	map = mmap(around + 3 * self->page, self->len, PROT_READ, MAP_SHARED | MAP_FIXED,
		   self->buf, 0);
	wrong = wrong_fault(map, 5, 1100, s390x ? displaced_256 : displaced);
	EXPECT_EQ(-1, wrong);
}

TEST_F(windows, backwards)
{
	char *map = test_map_buf(self->buf, self->len, PROT_READ);
	size_t i;

	for (i = WINDOW_PAGES; i--;)
		EXPECT_TRUE(shows(self, map + i * self->page, i))
			TH_LOG("page %zu of the buffer", i);
}

TEST_F(windows, at_random)
{
	char *map = test_map_buf(self->buf, self->len, PROT_READ);
	size_t i, pgoff;

	for (i = 0; i < WINDOW_PAGES; i++) {
		pgoff = i * STRIDE % WINDOW_PAGES;
		EXPECT_TRUE(shows(self, map + pgoff * self->page, pgoff))
			TH_LOG("page %zu of the buffer", pgoff);
	}
}

/* Windows are per mapping: faults in one must not affect the other. */
TEST_F(windows, two_mappings_in_turn)
{
	char *one = test_map_buf(self->buf, self->len, PROT_READ);
	char *two = test_map_buf(self->buf, self->len, PROT_READ | PROT_WRITE);
	size_t i, back;

	for (i = 0; i < WINDOW_PAGES; i++) {
		back = WINDOW_PAGES - 1 - i;
		EXPECT_TRUE(shows(self, one + i * self->page, i))
			TH_LOG("page %zu of the buffer, first mapping", i);
		EXPECT_TRUE(shows(self, two + (i & 1 ? back : i) * self->page, i & 1 ? back : i))
			TH_LOG("turn %zu, second mapping", i);
	}
}

/*
 * Parts of the buffer, followed directly by other memory. Grown windows must
 * not cross the end of the mapping.
 */
TEST_F(windows, end_with_the_mapping)
{
	size_t starts[] = { 3, 1020, 1500 }, npages[] = { 1001, 100, WINDOW_PAGES - 1500 };
	size_t page = self->page, i, k;

	for (k = 0; k < ARRAY_SIZE(starts); k++) {
		size_t len = npages[k] * page;
		char *around = mmap(NULL, len + 512 * page, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		char *map = around + 256 * page;

		ASSERT_NE(MAP_FAILED, (void *)around);
		madvise(around, len + 512 * page, MADV_NOHUGEPAGE);
		ASSERT_EQ((void *)map, mmap(map, len, PROT_READ | PROT_WRITE,
					    MAP_SHARED | MAP_FIXED, self->buf, starts[k] * page));
		for (i = 0; i < npages[k]; i++)
			EXPECT_TRUE(shows(self, map + i * page, starts[k] + i))
				TH_LOG("page %zu of the buffer", starts[k] + i);
		for (i = 0; i < 256; i++) {
			EXPECT_EQ(0, around[i * page]);
			EXPECT_EQ(0, map[len + i * page]);
			map[len + i * page] = 'x';
		}
		munmap(around, len + 512 * page);
	}
	EXPECT_FILLED(self->mem, self->len, 1);
}

/* The same with other memory mapped into the middle of a mapping. */
TEST_F(windows, end_at_a_hole)
{
	char *map = test_map_buf(self->buf, self->len, PROT_READ);
	size_t page = self->page, hole = 700, i;

	ASSERT_NE(MAP_FAILED, mmap(map + hole * page, 3 * page, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	for (i = 0; i < WINDOW_PAGES; i++) {
		bool in_hole = i >= hole && i < hole + 3;

		EXPECT_TRUE(in_hole ? !map[i * page] : shows(self, map + i * page, i))
			TH_LOG("page %zu of the mapping", i);
	}
	EXPECT_EQ(0, fault_signal(map + hole * page, true));
	EXPECT_FILLED(self->mem, self->len, 1);
}

/* A failed page in the window of other pages does not affect these. */
TEST_F(windows, with_a_poisoned_page)
{
	size_t page = self->page, bad = 700, i;
	char *map, *copy = malloc(self->len);

	memcpy(copy, self->mem, self->len);
	POISON((char *)(uintptr_t)self->iovs[bad].base);
	map = test_map_buf(self->buf, self->len, PROT_READ | PROT_WRITE);
	for (i = 0; i < WINDOW_PAGES; i++) {
		size_t off = self->iovs[i].base - to_u64(self->mem);

		EXPECT_EQ(i == bad ? SIGBUS : 0, fault_signal(map + i * page, false))
			TH_LOG("access to page %zu of the buffer", i);
		if (i != bad)
			EXPECT_EQ(0, memcmp(map + i * page, copy + off, page))
				TH_LOG("bytes of page %zu of the buffer", i);
	}
	EXPECT_EQ(SIGBUS, fault_signal(map + bad * page, true));
	munmap(self->mem, self->len);
}

TEST_HARNESS_MAIN
