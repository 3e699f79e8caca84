// SPDX-License-Identifier: GPL-2.0
/*
 * Huge page table entries. A buffer of huge pages gets them if the mapping's
 * address is congruent to the memory's address modulo the huge page size. They
 * must not show other bytes of the huge page, and every operation on a mapping
 * must work with them.
 */
#include "udmabuf_test.h"

#define HUGE_PAGES	8	/* more than the page tables above the lowest level */

/*
 * Map @len bytes of the buffer from @off on at an address that is @phase behind
 * a multiple of the huge page size. Untouched anonymous memory surrounds it.
 */
static char *map_at_phase(int buf, size_t off, size_t len, size_t phase)
{
	size_t huge = thp_size();
	char *around = anon_aligned(len + 3 * huge, huge);

	if (around == MAP_FAILED)
		return around;
	madvise(around, len + 3 * huge, MADV_NOHUGEPAGE);
	return mmap(around + huge + phase, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
		    buf, off);
}

#define test_map_at_phase(buf, off, len, phase)				\
	({								\
		char *__map = map_at_phase(buf, off, len, phase);	\
		ASSERT_NE(MAP_FAILED, (void *)__map) TH_LOG("mmap: %s", strerror(errno)); \
		__map;							\
	})

static void read_all(const char *map, size_t len)
{
	size_t off;

	for (off = 0; off < len; off += page_size())
		(void)*(volatile const char *)(map + off);
}

/* Bytes of a page table: a page, or less on s390x. */
static long table_size(void)
{
	size_t page = page_size(), entries = thp_size() / page;

	return entries * 8 < page ? entries * 8 : page;
}

/* The number of page tables allocated by touching all of @map. */
static long tables_of(const char *map, size_t len)
{
	long before = vmpte_kib();

	read_all(map, len);
	return (vmpte_kib() - before) * 1024 / table_size();
}

/*
 * Clear the soft-dirty bits, so that mappings are write-protected. Returns
 * whether the kernel has such bits, all of which are set before. Without them
 * no mapping of a buffer is write-protected, although the first store may
 * fault.
 */
static bool clear_soft_dirty(void)
{
	int pagemap = pagemap_open();
	__u64 entry = 0, here = to_u64(&entry) / page_size();

	if (pread(pagemap, &entry, sizeof(entry), here * sizeof(entry)) != sizeof(entry))
		entry = 0;
	close(pagemap);
	return !write_text("/proc/self/clear_refs", "4") && entry & 1ULL << 55;
}

FIXTURE(hugemap) {
	struct session session;
	int dev;
	char *mem;
	size_t page;
	size_t huge;
	size_t len;
	int buf;
};

FIXTURE_VARIANT(hugemap) {
	enum mem_kind kind;
	bool split;
};

FIXTURE_VARIANT_ADD(hugemap, thp) { .kind = MEM_THP };
FIXTURE_VARIANT_ADD(hugemap, small_side_by_side) { .kind = MEM_THP, .split = true };
FIXTURE_VARIANT_ADD(hugemap, hugetlb) { .kind = MEM_HUGETLB };

/*
 * @len bytes of huge pages that a pin does not migrate, or of their small pages
 * after a @split. Filled with seed 1, since the split would replace pages of
 * zeros by the zero page. Sets why_not on failure.
 */
static struct mem huge_pages(int dev, enum mem_kind kind, size_t len, bool split)
{
	struct mem mem = { .addr = MAP_FAILED, .len = len, .why_not = "no huge pages" };
	size_t huge = thp_size(), off;
	int attempts;

	if (!huge || (kind == MEM_HUGETLB && hugetlb_size() != huge))
		return mem;
	/* A migration before the pin may split huge pages. */
	for (attempts = 0; attempts < LAYOUT_ATTEMPTS; attempts++) {
		mem = mem_get(kind, len);
		if (mem.why_not)
			return mem;
		close(_create_one(dev, 0, mem.addr, len));
		if (!page_frame(mem.addr) || consists_of(mem.addr, len, huge))
			break;
		mem.why_not = "the kernel had no transparent huge page to give";
		make_room();
	}
	fill(mem.addr, len, 1);
	for (off = 0; split && off < len; off += huge)
		if (split_huge_page(mem.addr + off))
			mem.why_not = "cannot split a huge page through debugfs";
	return mem;
}

FIXTURE_SETUP(hugemap)
{
	struct mem mem;

	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	self->page = page_size();
	self->huge = thp_size();
	self->len = HUGE_PAGES * self->huge;
	mem = huge_pages(self->dev, variant->kind, self->len, variant->split);
	if (mem.why_not)
		SKIP(return, "%s", mem.why_not);
	self->mem = mem.addr;
	self->buf = test_create_one(self->dev, 0, self->mem, self->len);
}

FIXTURE_TEARDOWN(hugemap)
{
	SESSION_CLOSE(&self->session);
}

TEST_F(hugemap, takes_no_page_tables)
{
	char *map = test_map_at_phase(self->buf, 0, self->len, 0);
	long tables = tables_of(map, self->len);

	EXPECT_EQ(has_huge_entries(), tables < HUGE_PAGES) TH_LOG("%ld page tables", tables);
	EXPECT_FILLED(map, self->len, 1);
	fill(map, self->len, 2);
	EXPECT_FILLED(self->mem, self->len, 2);
}

TEST_F(hugemap, first_touched_by_a_store)
{
	char *map = test_map_at_phase(self->buf, 0, self->len, 0);

	fill(map, self->len, 2);
	EXPECT_FILLED(self->mem, self->len, 2);
	fill(self->mem, self->len, 3);
	EXPECT_FILLED(map, self->len, 3);
}

/* From the middle of a huge page to the middle of another. */
TEST_F(hugemap, part_of_the_buffer)
{
	size_t off = self->huge / 2 + 3 * self->page, len = self->len - self->huge;
	char *map = test_map_at_phase(self->buf, off, len, off);
	long tables = tables_of(map, len);

	EXPECT_EQ(has_huge_entries(), tables < HUGE_PAGES - 2) TH_LOG("%ld page tables", tables);
	EXPECT_EQ(-1, filled_until(map, len, 1, off));
	EXPECT_EQ(0, map[-1]);
	EXPECT_EQ(0, map[len]);
}

/* Guards the check of the first page's alignment. */
TEST_F(hugemap, at_other_addresses)
{
	size_t phases[] = { self->page, self->huge / 2, self->huge - self->page }, i;

	for (i = 0; i < ARRAY_SIZE(phases); i++) {
		char *map = test_map_at_phase(self->buf, 0, self->len, phases[i]);

		EXPECT_LE(HUGE_PAGES, tables_of(map, self->len));
		EXPECT_FILLED(map, self->len, 1);
		EXPECT_EQ(0, map[-1]);
		EXPECT_EQ(0, map[self->len]);
		munmap(map, self->len);
	}
}

/*
 * Mappings that start or end in the middle of a huge page. The memory before
 * and after them stays private memory of this process.
 */
TEST_F(hugemap, shorter_than_a_huge_page)
{
	size_t half = self->huge / 2, i;
	struct { size_t off, len; } rows[] = {
		{ 0, half }, { half, half }, { self->page, half }, { 0, self->huge - self->page },
		{ self->page, self->huge - self->page }, { half, self->huge },
	};

	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		size_t off = rows[i].off, len = rows[i].len;
		char *map = test_map_at_phase(self->buf, off, len, off);

		EXPECT_EQ(-1, filled_until(map, len, 1, off));
		EXPECT_EQ(0, map[-1]);
		EXPECT_EQ(0, map[len]);
		map[-1] = 'x';
		map[len] = 'x';
		munmap(map, len);
	}
	EXPECT_FILLED(self->mem, self->len, 1);
}

TEST_F(hugemap, of_several_phases)
{
	char *one = test_map_at_phase(self->buf, 0, self->len, 0);
	char *two = test_map_at_phase(self->buf, 0, self->len, self->huge / 2);
	char *three = test_map_at_phase(self->buf, self->huge, self->huge, 0);

	fill(one, self->len, 2);
	EXPECT_FILLED(two, self->len, 2);
	EXPECT_EQ(-1, filled_until(three, self->huge, 2, self->huge));
	fill(two, self->len, 3);
	EXPECT_FILLED(one, self->len, 3);
	EXPECT_FILLED(self->mem, self->len, 3);
}

/*
 * Guards against an entry that stays read-only: the store would fault forever.
 */
TEST_F(hugemap, store_after_load)
{
	char *map = test_map_at_phase(self->buf, 0, self->len, 0);
	size_t off;

	clear_soft_dirty();
	read_all(map, self->len);
	for (off = 0; off < self->len; off += self->huge)
		EXPECT_EQ(0, fault_signal(map + off + 5 * self->page, true));
	fill(map, self->len, 2);
	EXPECT_FILLED(self->mem, self->len, 2);
}

TEST_F(hugemap, protection_changes)
{
	char *map = test_map_at_phase(self->buf, 0, self->len, 0);

	read_all(map, self->len);
	ASSERT_EQ(0, mprotect(map, self->len, PROT_READ));
	EXPECT_FILLED(map, self->len, 1);
	EXPECT_EQ(SIGSEGV, fault_signal(map + self->page, true));
	EXPECT_FILLED(self->mem, self->len, 1);
	ASSERT_EQ(0, mprotect(map, self->len, PROT_READ | PROT_WRITE));
	fill(map, self->len, 2);
	EXPECT_FILLED(self->mem, self->len, 2);
	/* For a part of a huge entry */
	ASSERT_EQ(0, mprotect(map + 3 * self->page, self->huge, PROT_READ));
	EXPECT_EQ(SIGSEGV, fault_signal(map + 3 * self->page, true));
	EXPECT_EQ(SIGSEGV, fault_signal(map + self->huge + 2 * self->page, true));
	EXPECT_FILLED(map, self->len, 2);
	ASSERT_EQ(0, mprotect(map, self->len, PROT_NONE));
	EXPECT_EQ(SIGSEGV, fault_signal(map + 2 * self->huge, false));
	ASSERT_EQ(0, mprotect(map, self->len, PROT_READ | PROT_WRITE));
	fill(map, self->len, 3);
	EXPECT_FILLED(self->mem, self->len, 3);
}

TEST_F(hugemap, unmapping_a_part)
{
	char *map = test_map_at_phase(self->buf, 0, self->len, 0);
	size_t off = self->huge + 5 * self->page, len = 3 * self->page;

	read_all(map, self->len);
	ASSERT_EQ(0, munmap(map + off, len));
	EXPECT_EQ(SIGSEGV, fault_signal(map + off, false));
	EXPECT_EQ(SIGSEGV, fault_signal(map + off + len - 1, false));
	EXPECT_EQ(-1, filled_until(map, off, 1, 0));
	EXPECT_EQ(-1, filled_until(map + off + len, self->len - off - len, 1, off + len));
	/* Map other memory in its place. */
	ASSERT_NE(MAP_FAILED, mmap(map + off, len, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	memset(map + off, 'x', len);
	ASSERT_EQ(0, munmap(map + off + len, self->page));
	fill(map, off, 2);
	EXPECT_EQ(-1, filled_until(self->mem, off, 2, 0));
	EXPECT_EQ(-1, filled_until(self->mem + off, self->len - off, 1, off));
}

TEST_F(hugemap, moving)
{
	size_t phases[] = { 0, self->page, self->huge / 2 }, i;
	char *map, *to;

	for (i = 0; i < ARRAY_SIZE(phases); i++) {
		map = test_map_at_phase(self->buf, 0, self->len, 0);
		read_all(map, self->len);
		to = anon_aligned(self->len + self->huge, self->huge) + phases[i];
		ASSERT_EQ((void *)to, mremap(map, self->len, self->len,
					     MREMAP_MAYMOVE | MREMAP_FIXED, to));
		EXPECT_EQ(SIGSEGV, fault_signal(map, false));
		EXPECT_FILLED(to, self->len, 1 + i);
		fill(to, self->len, 2 + i);
		EXPECT_FILLED(self->mem, self->len, 2 + i);
		EXPECT_EQ(0, to[self->len]);
	}
	/* Move a part out of one huge entry into another. */
	map = test_map_at_phase(self->buf, 0, self->len, 0);
	read_all(map, self->len);
	to = map + self->len - 100 * self->page;
	ASSERT_EQ((void *)to, mremap(map + self->huge + 9 * self->page, 50 * self->page,
				     50 * self->page, MREMAP_MAYMOVE | MREMAP_FIXED, to));
	EXPECT_EQ(-1, filled_until(to, 50 * self->page, 1 + i, self->huge + 9 * self->page));
	EXPECT_EQ(-1, filled_until(map, self->huge + 9 * self->page, 1 + i, 0));
	EXPECT_EQ(-1, filled_until(to + 50 * self->page, 50 * self->page, 1 + i,
				   self->len - 50 * self->page));
}

TEST_F(hugemap, in_a_child)
{
	char *map = test_map_at_phase(self->buf, 0, self->len, 0);
	pid_t pid;

	read_all(map, self->len);
	pid = fork();
	if (!pid) {
		CHILD_CHECK(filled_until(map, self->len, 1, 0) == -1);
		fill(map, self->len / 2, 2);
		munmap(map + self->huge, self->page);
		CHILD_CHECK(filled_until(map, self->huge, 2, 0) == -1);
		_exit(0);
	}
	EXPECT_EQ(0, reap(pid));
	EXPECT_EQ(-1, filled_until(map, self->len / 2, 2, 0));
	EXPECT_EQ(-1, filled_until(self->mem, self->len / 2, 2, 0));
	EXPECT_EQ(-1, filled_until(map + self->len / 2, self->len / 2, 1, self->len / 2));
	fill(map, self->len, 3);
	EXPECT_FILLED(self->mem, self->len, 3);
}

/* No page can be copied or pinned through the mapping, as for small entries. */
TEST_F(hugemap, pages_cannot_be_taken_through_it)
{
	char *map = test_map_at_phase(self->buf, 0, self->len, 0);
	struct iovec page = { map, self->page };
	char byte;
	struct iovec local = { &byte, 1 }, remote = { map, 1 };
	int pipes[2];

	fill(map, self->len, 2);
	ASSERT_EQ(0, pipe(pipes));
	EXPECT_ERRNO(EFAULT, process_vm_readv(getpid(), &local, 1, &remote, 1, 0));
	EXPECT_ERRNO(EFAULT, process_vm_writev(getpid(), &local, 1, &remote, 1, 0));
	EXPECT_ERRNO(EFAULT, vmsplice(pipes[1], &page, 1, 0));
	test_err_create_one(EFAULT, self->dev, 0, map, self->huge);
	test_err_create_one(EFAULT, self->dev, 0, map + self->page, self->page);
	EXPECT_EQ(1, write(pipes[1], map + self->huge, 1));
	EXPECT_EQ(1, read(pipes[0], map + 1, 1));
}

/* Memory failures */

/* The size of a failure: one page, or a whole hugetlb page. */
static size_t failed_len(const struct _test_data_hugemap *self, enum mem_kind kind)
{
	return kind == MEM_HUGETLB ? self->huge : self->page;
}

/* The offset of the failure, in the third huge page */
static size_t failed_off(const struct _test_data_hugemap *self, size_t len)
{
	return (2 * self->huge + 7 * self->page) / len * len;
}

/*
 * With @len bytes at @bad failed: the first offset at which a load from @map
 * has a wrong result, or -1.
 */
static long wrong_access(const struct _test_data_hugemap *self, char *map, size_t bad, size_t len)
{
	size_t off;

	for (off = 0; off < self->len; off += self->page) {
		bool failed = off >= bad && off < bad + len;

		if (fault_signal(map + off, false) != (failed ? SIGBUS : 0))
			return off;
		if (!failed && filled_until(map + off, self->page, 1, off) != -1)
			return off;
	}
	return -1;
}

TEST_F(hugemap, failed_before_it_was_touched)
{
	size_t len = failed_len(self, variant->kind), bad = failed_off(self, len);
	char *map = test_map_at_phase(self->buf, 0, self->len, 0);

	POISON(self->mem + bad);
	EXPECT_EQ(-1, wrong_access(self, map, bad, len));
	EXPECT_EQ(SIGBUS, fault_signal(map + bad, true));
	munmap(self->mem, self->len);
}

/* The first access is a store beside the failed page. */
TEST_F(hugemap, failed_before_a_store)
{
	size_t len = failed_len(self, variant->kind), bad = failed_off(self, len);
	char *map = test_map_at_phase(self->buf, 0, self->len, 0);

	POISON(self->mem + bad);
	EXPECT_EQ(SIGBUS, fault_signal(map + bad + len - 1, true));
	EXPECT_EQ(0, fault_signal(map + bad - 1, true));
	EXPECT_EQ(0, fault_signal(map + bad + len, true));
	munmap(self->mem, self->len);
}

/* Existing entries stay, as with small pages. New mappings get no entry. */
TEST_F(hugemap, failed_after_it_was_touched)
{
	size_t len = failed_len(self, variant->kind), bad = failed_off(self, len);
	char *map = test_map_at_phase(self->buf, 0, self->len, 0);
	char *again = test_map_at_phase(self->buf, 0, self->len, 0);
	char *moved;

	read_all(map, self->len);
	POISON(self->mem + bad);
	EXPECT_EQ(-1, wrong_access(self, again, bad, len));
	EXPECT_EQ(-1, filled_until(map, bad, 1, 0));
	EXPECT_EQ(-1, filled_until(map + bad + len, self->len - bad - len, 1, bad + len));
	EXPECT_EQ(0, fault_signal(map + bad - 1, true));
	EXPECT_EQ(0, fault_signal(map + bad + len, true));
	*(__u64 *)(map + bad - 8) = stamp(1, bad - 8);
	*(__u64 *)(map + bad + len) = stamp(1, bad + len);
	/* After a move the page is faulted in again. */
	moved = anon_aligned(self->len + self->huge, self->huge) + self->page;
	ASSERT_EQ((void *)moved, mremap(map, self->len, self->len,
					MREMAP_MAYMOVE | MREMAP_FIXED, moved));
	EXPECT_EQ(0, fault_signal(moved, false));
	munmap(self->mem, self->len);
}

/* A read-only entry becomes writable unless one of its pages has failed. */
TEST_F(hugemap, failed_between_a_load_and_a_store)
{
	size_t len = failed_len(self, variant->kind), bad = failed_off(self, len);
	char *map = test_map_at_phase(self->buf, 0, self->len, 0);
	bool soft_dirty = clear_soft_dirty();
	long before;

	read_all(map, self->len);
	before = page_faults();
	EXPECT_EQ(0, fault_signal(map, true));
	if (!has_huge_entries())
		SKIP(return, "no huge entries, and small ones are made writable without us");
	if (page_faults() == before || !soft_dirty)
		SKIP(return, "no soft-dirty bits, so nothing to write-protect a mapping with");
	POISON(self->mem + bad);
	EXPECT_EQ(0, fault_signal(map + bad - 1, true));
	EXPECT_EQ(SIGBUS, fault_signal(map + bad, true));
	EXPECT_EQ(0, fault_signal(map + bad + len, true));
	EXPECT_EQ(0, fault_signal(map + self->len - 1, true));
	munmap(self->mem, self->len);
}

/* Buffers for which a huge entry would show pages outside the buffer */

#define PIECE_HUGE_PAGES 3

FIXTURE(pieces) {
	struct session session;
	int dev;
	char *mem;
	char *small;		/* as many bytes as a huge page */
	size_t page;
	size_t npages;		/* per huge page */
	struct udmabuf_iovec *iovs;
};

FIXTURE_VARIANT(pieces) {
	enum mem_kind kind;
	bool split;
};

FIXTURE_VARIANT_ADD(pieces, thp) { .kind = MEM_THP };
FIXTURE_VARIANT_ADD(pieces, small_side_by_side) { .kind = MEM_THP, .split = true };
FIXTURE_VARIANT_ADD(pieces, hugetlb) { .kind = MEM_HUGETLB };

FIXTURE_SETUP(pieces)
{
	size_t huge = thp_size();
	struct mem mem;

	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	self->page = page_size();
	self->npages = huge / self->page;
	mem = huge_pages(self->dev, variant->kind, PIECE_HUGE_PAGES * huge, variant->split);
	if (mem.why_not)
		SKIP(return, "%s", mem.why_not);
	self->mem = mem.addr;
	self->small = anon_small(huge);
	fill(self->small, huge, 2);
	self->iovs = calloc(4 * self->npages, sizeof(*self->iovs));
}

FIXTURE_TEARDOWN(pieces)
{
	SESSION_CLOSE(&self->session);
}

/* Set entry @i to @npages pages of the huge pages, from page @first on. */
static void name_pages(struct _test_data_pieces *self, size_t i, size_t first, size_t npages)
{
	self->iovs[i].base = to_u64(self->mem + first * self->page);
	self->iovs[i].len = npages * self->page;
}

static bool is_named(const struct _test_data_pieces *self, size_t niov, const char *addr)
{
	size_t i;

	for (i = 0; i < niov; i++)
		if (to_u64(addr) - self->iovs[i].base < self->iovs[i].len)
			return true;
	return false;
}

/*
 * Returns "" or the error of a mapping of the buffer that the entries describe.
 */
static const char *pieces_differ(struct _test_data_pieces *self, size_t niov, size_t phase)
{
	size_t len = entries_len(self->iovs, niov), i;
	int buf = _create(self->dev, 0, self->iovs, niov);
	char *map = map_at_phase(buf, 0, len, phase);

	if (map == MAP_FAILED)
		return "cannot create or map the buffer";
	if (!buffer_is(map, self->iovs, niov))
		return "wrong bytes in a new mapping";
	memset(map, 'x', len);
	for (i = 0; i < PIECE_HUGE_PAGES * self->npages; i++) {
		char *addr = self->mem + i * self->page;

		if (is_named(self, niov, addr)) {
			if (addr[0] != 'x' || addr[self->page - 1] != 'x')
				return "a store did not reach its page";
			fill(addr, self->page, i);
		} else if (filled_until(addr, self->page, 1, i * self->page) != -1) {
			return "a store reached a page outside the buffer";
		}
	}
	if (!buffer_is(map, self->iovs, niov))
		return "wrong bytes in the mapping after a store";
	if (map[-1] || map[len])
		return "the memory before or after the mapping has changed";
	fill(self->mem, PIECE_HUGE_PAGES * self->npages * self->page, 1);
	munmap(map, len);
	close(buf);
	return "";
}

#define EXPECT_ONLY_NAMED(niov, phase)					\
	EXPECT_STREQ("", pieces_differ(self, niov, phase))

/* One page is replaced by another page of the same huge page. */
TEST_F(pieces, one_page_missing)
{
	size_t n = self->npages, missing[] = { 0, 1, 100, n / 2, n - 2, n - 1 }, i, niov;

	for (i = 0; i < ARRAY_SIZE(missing); i++) {
		niov = 0;
		if (missing[i])
			name_pages(self, niov++, 0, missing[i]);
		name_pages(self, niov++, (missing[i] + 50) % self->npages, 1);
		if (missing[i] + 1 < self->npages)
			name_pages(self, niov++, missing[i] + 1, self->npages - missing[i] - 1);
		EXPECT_ONLY_NAMED(niov, 0) TH_LOG("replaced page %zu of the huge page", missing[i]);
	}
}

/* One page is replaced by a page of other memory. */
TEST_F(pieces, one_page_of_other_memory)
{
	size_t n = self->npages, missing[] = { 1, 100, n / 2, n - 2 }, i;

	for (i = 0; i < ARRAY_SIZE(missing); i++) {
		name_pages(self, 0, 0, missing[i]);
		self->iovs[1] = (struct udmabuf_iovec) { to_u64(self->small), self->page };
		name_pages(self, 2, missing[i] + 1, self->npages - missing[i] - 1);
		EXPECT_ONLY_NAMED(3, 0) TH_LOG("replaced page %zu of the huge page", missing[i]);
	}
}

TEST_F(pieces, in_other_orders)
{
	size_t half = self->npages / 2, i;

	name_pages(self, 0, half, half);
	name_pages(self, 1, 0, half);
	EXPECT_ONLY_NAMED(2, 0);
	EXPECT_ONLY_NAMED(2, self->page * half);
	for (i = 0; i < self->npages; i++)
		name_pages(self, i, self->npages - 1 - i, 1);
	EXPECT_ONLY_NAMED(self->npages, 0);
	for (i = 0; i < self->npages; i++)
		name_pages(self, i, i ^ 1, 1);
	EXPECT_ONLY_NAMED(self->npages, 0);
	for (i = 0; i < self->npages; i++)
		name_pages(self, i, i < 2 ? i : self->npages + 1 - i, 1);
	EXPECT_ONLY_NAMED(self->npages, 0);
}

TEST_F(pieces, of_several_huge_pages)
{
	size_t half = self->npages / 2;

	name_pages(self, 0, 0, half);
	name_pages(self, 1, self->npages + half, half);
	EXPECT_ONLY_NAMED(2, 0);
	name_pages(self, 1, self->npages, half);
	EXPECT_ONLY_NAMED(2, 0);
	name_pages(self, 0, 0, self->npages - 1);
	name_pages(self, 1, self->npages, self->npages);
	EXPECT_ONLY_NAMED(2, 0);
	EXPECT_ONLY_NAMED(2, self->page);
	name_pages(self, 1, 2 * self->npages - 1, self->npages + 1);
	EXPECT_ONLY_NAMED(2, 0);
}

/* The buffer, or the run, ends before the huge page does. */
TEST_F(pieces, first_half_only)
{
	size_t half = self->npages / 2, i;

	name_pages(self, 0, 0, half);
	EXPECT_ONLY_NAMED(1, 0);
	name_pages(self, 0, 0, self->npages - 1);
	EXPECT_ONLY_NAMED(1, 0);
	for (i = 0; i < half; i++)
		self->iovs[i + 1] = (struct udmabuf_iovec) {
			to_u64(self->small + 2 * i * self->page), self->page
		};
	EXPECT_ONLY_NAMED(half + 1, 0);
}

TEST_F(pieces, from_the_middle_on)
{
	size_t half = self->npages / 2;

	name_pages(self, 0, half, 2 * self->npages);
	EXPECT_ONLY_NAMED(1, self->page * half);
	EXPECT_ONLY_NAMED(1, 0);
	EXPECT_ONLY_NAMED(1, self->page);
	name_pages(self, 0, 1, self->npages - 1);
	EXPECT_ONLY_NAMED(1, self->page);
	EXPECT_ONLY_NAMED(1, 0);
}

/* Many entries that name whole huge pages in order get huge entries, too. */
TEST_F(pieces, all_of_them_in_order)
{
	size_t n = self->npages, i;

	for (i = 0; i < 2 * n; i++)
		name_pages(self, i, i, 1);
	EXPECT_ONLY_NAMED(i, 0);
	name_pages(self, 0, 0, 100);
	name_pages(self, 1, 100, n - 100);
	name_pages(self, 2, 2 * n, n);
	name_pages(self, 3, n, n);
	EXPECT_ONLY_NAMED(4, 0);
}

/* Memory with several adjacent huge pages, or without huge pages */

FIXTURE(others) {
	struct session session;
	int dev;
	size_t page;
	size_t huge;
};

FIXTURE_SETUP(others)
{
	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	self->page = page_size();
	self->huge = thp_size();
	if (!self->huge)
		SKIP(return, "no transparent huge pages of a usable size");
}

FIXTURE_TEARDOWN(others)
{
	SESSION_CLOSE(&self->session);
}

/*
 * The buffer starts inside a huge page, so addresses must be congruent to @off.
 * Guards against fault windows that end at multiples of their size in the
 * buffer. They would put small entries into the range of each next huge entry.
 */
TEST_F(others, memfd_of_huge_pages)
{
	size_t len = HUGE_PAGES * self->huge, off = 3 * self->page;
	char *mem, *map;
	int memfd, buf;
	long tables;

	hugetlb_provide(len);
	memfd = sealed_memfd(len, MFD_HUGETLB, F_SEAL_SHRINK);
	mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	if (memfd < 0 || mem == MAP_FAILED || hugetlb_size() != self->huge)
		SKIP(return, "no hugetlb memfds here");
	fill(mem, len, 1);
	buf = test_create_memfd(self->dev, 0, memfd, off, len - off);
	map = test_map_at_phase(buf, 0, len - off, off);
	tables = tables_of(map, len - off);
	/*
	 * One page table for the first huge page, and those above the lowest
	 * level.
	 */
	EXPECT_EQ(has_huge_entries(), tables < HUGE_PAGES - 1) TH_LOG("%ld page tables", tables);
	EXPECT_EQ(-1, filled_until(map, len - off, 1, off));
	EXPECT_EQ(0, map[-1]);
	map = test_map_at_phase(buf, 0, len - off, 0);
	EXPECT_EQ(-1, filled_until(map, len - off, 1, off));
	munmap(mem, len);
}

#define RUN_PAGES	24	/* huge pages, some of them adjacent */

/* A run as long as a huge entry, at addresses not aligned for one. */
TEST_F_TIMEOUT(others, run_across_huge_pages, 600)
{
	struct udmabuf_iovec iovs[RUN_PAGES], iov;
	size_t phases[] = { 0, self->page, self->huge / 2, self->huge - self->page };
	size_t niov = 0, len, i;
	char *map, *moved;
	struct mem mem;
	int buf;

	for (i = 0; niov < 3 && i < LAYOUT_ATTEMPTS; i++) {
		mem = huge_pages(self->dev, MEM_HUGETLB, RUN_PAGES * self->huge, false);
		if (mem.why_not)
			SKIP(return, "%s", mem.why_not);
		niov = longest_run(iovs, &mem, self->huge);
	}
	if (niov < 3)
		SKIP(return, "only %zu huge pages side by side", niov);
	for (i = 0; i < niov; i++)
		fill((void *)(uintptr_t)iovs[i].base, self->huge, i);
	len = niov * self->huge;
	buf = test_create(self->dev, 0, iovs, niov);
	for (i = 0; i < ARRAY_SIZE(phases); i++) {
		map = test_map_at_phase(buf, 0, len, phases[i]);
		EXPECT_TRUE(buffer_is(map, iovs, niov)) TH_LOG("mapped at phase %zu", phases[i]);
		munmap(map, len);
		map = test_map_at_phase(buf, self->page, len - self->page, phases[i]);
		moved = (char *)(uintptr_t)iovs[0].base + self->page;
		EXPECT_EQ(0, memcmp(map, moved, self->huge - self->page));
		EXPECT_TRUE(buffer_is(map + self->huge - self->page, iovs + 1, niov - 1))
			TH_LOG("offset of one page, phase %zu", phases[i]);
		munmap(map, len - self->page);
	}
	/* The buffer starts with the second page of a huge page. */
	iov = (struct udmabuf_iovec) { iovs[0].base + self->page, self->huge - self->page };
	iovs[0] = iov;
	buf = test_create(self->dev, 0, iovs, niov);
	for (i = 0; i < ARRAY_SIZE(phases); i++) {
		map = test_map_at_phase(buf, 0, len - self->page, phases[i]);
		EXPECT_TRUE(buffer_is(map, iovs, niov))
			TH_LOG("buffer from page 1 on, mapped at phase %zu", phases[i]);
		munmap(map, len - self->page);
	}
}

/*
 * Scattered small pages, the first of them at a physical huge page boundary.
 * Guards against a page list treated as a run.
 */
TEST_F(others, list_that_begins_where_a_huge_page_could)
{
	size_t npages = 16 << 20 >> 12, i, attempts, first = npages;
	static __u64 frames[16 << 20 >> 12];
	struct udmabuf_iovec *iovs = calloc(npages, sizeof(*iovs));
	char *mem, *map;
	int buf;

	for (attempts = 0; first == npages && attempts < LAYOUT_ATTEMPTS; attempts++) {
		mem = anon_small(npages * self->page);
		fill(mem, npages * self->page, 1);
		close(test_create_one(self->dev, 0, mem, npages * self->page));
		page_frames(pagemap_open(), mem, npages, frames);
		for (first = 0; first < npages; first++)
			if (frames[first] && !(frames[first] % (self->huge / self->page)))
				break;
	}
	if (first == npages)
		SKIP(return, "no page lies where a huge page could begin");
	for (i = 0; i < npages; i++) {
		iovs[i].base = to_u64(mem + (first + i * 1009) % npages * self->page);
		iovs[i].len = self->page;
	}
	buf = test_create(self->dev, 0, iovs, npages);
	map = test_map_at_phase(buf, 0, npages * self->page, 0);
	EXPECT_TRUE(buffer_is(map, iovs, npages));
	EXPECT_LT(2, tables_of(test_map_at_phase(buf, 0, npages * self->page, 0),
			       npages * self->page));
	memset(map, 0, self->page);
	EXPECT_EQ(0, mem[first * self->page]);
	EXPECT_TRUE(buffer_is(map, iovs, npages));
}

TEST_HARNESS_MAIN
