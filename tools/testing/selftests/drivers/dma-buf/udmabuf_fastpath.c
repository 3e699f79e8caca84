// SPDX-License-Identifier: GPL-2.0
/*
 * Optimizations of a create must not change its result: not each small page of
 * a huge page is checked, and adjacent entries are pinned together.
 * udmabuf_lists.c tests lists of small pages, udmabuf_hugemap.c tests mappings.
 */
#include "udmabuf_test.h"

/* Huge pages, of which not each small page is checked */

#define HUGE_PAGES	2

FIXTURE(huge) {
	struct session session;
	int dev;
	char *mem;		/* HUGE_PAGES huge pages, a small one before */
	size_t page;
	size_t huge;
	size_t npages;		/* per huge page */
	char *small;		/* small pages elsewhere */
};

FIXTURE_VARIANT(huge) {
	enum mem_kind kind;
};

FIXTURE_VARIANT_ADD(huge, thp) { .kind = MEM_THP };
FIXTURE_VARIANT_ADD(huge, hugetlb) { .kind = MEM_HUGETLB };

#define SMALL_PAGES	1024

FIXTURE_SETUP(huge)
{
	const char *why_not = NULL;
	size_t len;

	SESSION_OPEN(&self->session);
	SKIP_WITHOUT_IMPORTER();
	self->dev = self->session.dev;
	self->page = page_size();
	self->huge = variant->kind == MEM_THP ? thp_size() : hugetlb_size();
	self->npages = self->huge / self->page;
	len = HUGE_PAGES * self->huge;
	if (variant->kind == MEM_THP) {
		self->mem = anon_thp(len, &why_not);
	} else if (self->huge) {
		hugetlb_provide(len);
		self->mem = mmap(anon_aligned(len, self->huge), len, PROT_READ | PROT_WRITE,
				 MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_FIXED, -1, 0);
	}
	if (!self->huge || self->mem == MAP_FAILED)
		why_not = why_not ?: "no hugetlb pages";
	if (why_not)
		SKIP(return, "%s", why_not);
	ASSERT_NE(MAP_FAILED, mmap(self->mem - self->page, self->page, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
	self->small = anon_small(SMALL_PAGES * self->page);
	/* Migrate huge pages now, while they are whole. */
	fill(self->mem - self->page, self->page + len, 1);
	fill(self->small, SMALL_PAGES * self->page, 2);
	make_room();
	close(test_create_one(self->dev, 0, self->mem, len));
	if (page_frame(self->mem) && !consists_of(self->mem, len, self->huge))
		SKIP(return, "the kernel had no transparent huge page to give");
}

FIXTURE_TEARDOWN(huge)
{
	SESSION_CLOSE(&self->session);
}

#define EXPECT_ENTRIES_WORK(iovs, niov)					\
	do {								\
		int __buf = test_create(self->dev, 0, iovs, niov);	\
		EXPECT_BUFFER_IS(__buf, iovs, niov);			\
		close(__buf);						\
	} while (0)

TEST_F(huge, whole_and_from_any_page_on)
{
	size_t n = self->npages, i;
	/* Of fewer than 64 pages, each is checked. */
	size_t starts[] = { 0, 1, n - 64, n - 63, n - 1, n, n + n / 3 };

	for (i = 0; i < ARRAY_SIZE(starts); i++) {
		if (starts[i] > 2 * n)
			continue;

		struct udmabuf_iovec iov = {
			.base = to_u64(self->mem + starts[i] * self->page),
			.len = HUGE_PAGES * self->huge - starts[i] * self->page,
		};

		EXPECT_ENTRIES_WORK(&iov, 1);
		iov.len -= n / 5 * self->page;
		EXPECT_ENTRIES_WORK(&iov, 1);
	}
}

/* The first two pages look like the start of a huge page; the others differ. */
TEST_F(huge, pieces_that_look_like_its_beginning)
{
	static struct udmabuf_iovec iovs[300];
	size_t n = self->npages < 310 ? self->npages - 10 : 300, i, shift;

	for (shift = 1; shift <= 8; shift *= 2) {
		for (i = 0; i < n; i++) {
			iovs[i].base = to_u64(self->mem + (i < 2 ? i : i + shift - 1) * self->page);
			iovs[i].len = self->page;
		}
		EXPECT_ENTRIES_WORK(iovs, i);
	}
	for (i = 0; i < n; i++)
		iovs[i].base = to_u64(self->mem + (i < 2 ? i : self->npages - 1 - i) * self->page);
	EXPECT_ENTRIES_WORK(iovs, i);
}

/*
 * Guards against assuming a huge entry: two pages of a huge page end a range,
 * and other GUP calls pin the next pages. The last one is of a large folio or
 * not.
 */
TEST_F(huge, two_pages_of_it_behind_a_small_one)
{
	static struct udmabuf_iovec iovs[SMALL_PAGES / 2];
	size_t n = ARRAY_SIZE(iovs), i;

	iovs[0].base = to_u64(self->mem - self->page);
	iovs[0].len = 3 * self->page;
	for (i = 1; i < n; i++) {
		iovs[i].base = to_u64(self->small + 2 * i * self->page);
		iovs[i].len = self->page;
	}
	EXPECT_ENTRIES_WORK(iovs, n);
	iovs[n - 1].base = to_u64(self->mem + self->huge);
	EXPECT_ENTRIES_WORK(iovs, n);
}

/* Ranges that start with a small page, and others that end with small pages. */
TEST_F(huge, behind_a_small_page)
{
	struct udmabuf_iovec iovs[] = {
		{ to_u64(self->mem - self->page), self->page + HUGE_PAGES * self->huge },
		{ to_u64(self->small), 200 * self->page },
		{ to_u64(self->mem), self->huge },
		{ to_u64(self->small), self->page },
		{ to_u64(self->mem - self->page), self->page + self->huge },
	};

	EXPECT_ENTRIES_WORK(iovs, ARRAY_SIZE(iovs));
}

/* Runs of every length, each made of neighbours named one by one. */
TEST_F(huge, runs_of_every_length)
{
	static struct udmabuf_iovec iovs[80 * 81 / 2];
	size_t most = self->npages < 40 ? 2 * self->npages : 80, niov = 0, len, i;

	for (len = 1; len <= most; len++)
		for (i = 0; i < len; i++, niov++) {
			iovs[niov].base = to_u64(self->mem + i * self->page);
			iovs[niov].len = self->page;
		}
	EXPECT_ENTRIES_WORK(iovs, niov);
}

/* Pages of a huge page that user space splits and rearranges */

FIXTURE(split) {
	struct session session;
	int dev;
	char *mem;		/* a huge page */
	char *area;		/* destination of its pages: room for two huge ones */
	size_t page;
	size_t npages;
};

FIXTURE_SETUP(split)
{
	const char *why_not = NULL;
	size_t huge = thp_size();

	SESSION_OPEN(&self->session);
	SKIP_WITHOUT_IMPORTER();
	self->dev = self->session.dev;
	self->page = page_size();
	self->npages = huge / self->page;
	self->mem = anon_thp(huge, &why_not);
	if (why_not)
		SKIP(return, "%s", why_not);
	fill(self->mem, huge, 1);
	close(test_create_one(self->dev, 0, self->mem, huge));
	self->area = anon_aligned(2 * huge, huge);
	ASSERT_NE(MAP_FAILED, (void *)self->area);
}

FIXTURE_TEARDOWN(split)
{
	SESSION_CLOSE(&self->session);
}

/* Move page @from of the memory to page @to of the area. */
#define MOVE_PAGE(from, to)						\
	do {								\
		char *__to = self->area + (to) * self->page;		\
		ASSERT_EQ((void *)__to,					\
			  mremap(self->mem + (from) * self->page, self->page, self->page, \
				 MREMAP_MAYMOVE | MREMAP_FIXED, __to))	\
			TH_LOG("mremap: %s", strerror(errno));		\
	} while (0)

#define EXPECT_AREA_WORKS(npages)					\
	do {								\
		struct udmabuf_iovec __iov = {				\
			to_u64(self->area), (npages) * self->page	\
		};							\
		EXPECT_ENTRIES_WORK(&__iov, 1);				\
	} while (0)

/* The huge page table entry is gone, but all pages are in place. */
TEST_F(split, by_protection)
{
	struct udmabuf_iovec iov = { to_u64(self->mem), self->npages * self->page };
	char *other = self->mem + (self->npages / 2 + 44) * self->page;

	ASSERT_EQ(0, mprotect(self->mem + 9 * self->page, self->page, PROT_READ));
	ASSERT_EQ(0, mprotect(self->mem + 9 * self->page, self->page, PROT_READ | PROT_WRITE));
	EXPECT_ENTRIES_WORK(&iov, 1);
	ASSERT_EQ(0, madvise(other, self->page, MADV_DONTNEED));
	fill(other, self->page, 2);
	EXPECT_ENTRIES_WORK(&iov, 1);
}

/* Only two pages in its middle have changed places. */
TEST_F(split, two_pages_exchanged)
{
	size_t i;

	for (i = 0; i < self->npages; i++)
		MOVE_PAGE(i, i == 100 ? 200 : i == 200 ? 100 : i);
	EXPECT_AREA_WORKS(self->npages);
}

/*
 * In one range: runs of one page, of two, ..., from the end of the huge page.
 */
TEST_F(split, runs_of_every_length)
{
	size_t to = 0, from = self->npages, len, i;

	for (len = 1; len <= from; len++) {
		from -= len;
		for (i = 0; i < len; i++)
			MOVE_PAGE(from + i, to++);
	}
	EXPECT_AREA_WORKS(to);
}

TEST_F(split, reversed_behind_the_first_two)
{
	size_t i;

	for (i = 0; i < self->npages; i++)
		MOVE_PAGE(i, i < 2 ? i : self->npages + 1 - i);
	EXPECT_AREA_WORKS(self->npages);
}

/*
 * A page of the huge page, followed by other memory. No huge entry maps the
 * page, and it does not look like a small page either.
 */
TEST_F(split, pages_of_it_before_other_memory)
{
	enum mem_kind kinds[] = { MEM_MEMFD, MEM_ANON, MEM_THP, MEM_HUGETLB };
	size_t len = thp_size(), seen = 0, k;

	for (k = 0; k < ARRAY_SIZE(kinds); k++) {
		struct mem mem = mem_get(kinds[k], len);
		void *moved;

		if (mem.why_not)
			continue;
		fill(mem.addr, len, 10 + k);
		MOVE_PAGE(2 * k, self->npages - 1);
		moved = mremap(mem.addr, len, len, MREMAP_MAYMOVE | MREMAP_FIXED,
			       self->area + len);
		if (moved == MAP_FAILED)
			continue;	/* several mappings, and an old kernel */
		ASSERT_EQ((void *)(self->area + len), moved);
		seen++;
		EXPECT_EQ(-1, filled_until(self->area + len, len, 10 + k, 0));
		self->area += (self->npages - 1) * self->page;
		EXPECT_AREA_WORKS(200);
		self->area -= (self->npages - 1) * self->page;
		ASSERT_EQ(0, munmap(self->area + len, len));
	}
	EXPECT_LT(0, seen);
}

/*
 * Adjacent small pages, in runs of every length. A page may continue a run only
 * if it is physically the next one.
 */
TEST_F(split, into_small_pages)
{
	static struct udmabuf_iovec iovs[80 * 81 / 2];
	size_t niov = 0, len, i;

	if (split_huge_page(self->mem))
		SKIP(return, "cannot split a huge page through debugfs");
	for (len = 80; len >= 1; len--)
		for (i = 0; i < len; i++, niov++) {
			iovs[niov].base = to_u64(self->mem + i * self->page);
			iovs[niov].len = self->page;
		}
	EXPECT_ENTRIES_WORK(iovs, niov);
}

/* Adjacent entries are pinned together */

FIXTURE(neighbours) {
	struct session session;
	int dev;
	char *mem;		/* no mapping behind it */
	size_t page;
	size_t len;
};

FIXTURE_SETUP(neighbours)
{
	SESSION_OPEN(&self->session);
	SKIP_WITHOUT_IMPORTER();
	self->dev = self->session.dev;
	self->page = page_size();
	self->len = 16 * self->page;
	self->mem = anon_small(2 * self->len);
	ASSERT_NE(MAP_FAILED, (void *)self->mem);
	fill(self->mem, 2 * self->len, 1);
	munmap(self->mem + self->len, self->len);
}

FIXTURE_TEARDOWN(neighbours)
{
	SESSION_CLOSE(&self->session);
}

TEST_F(neighbours, second_is_unmapped)
{
	struct udmabuf_iovec iovs[] = {
		{ to_u64(self->mem), self->len },
		{ to_u64(self->mem + self->len), self->len },
		{ to_u64(self->mem), self->len },
	};

	test_err_create(EFAULT, self->dev, 0, iovs, 3);
	test_err_create(EFAULT, self->dev, 0, iovs, 2);
	EXPECT_NOTHING_KEPT(&self->session);
	EXPECT_ENTRIES_WORK(iovs, 1);
}

TEST_F(neighbours, second_is_of_a_file)
{
	struct udmabuf_iovec iovs[] = {
		{ to_u64(self->mem), self->len },
		{ to_u64(self->mem + self->len), self->len },
	};
	int file = scratch_file("ramfs", self->len);

	if (file < 0)
		SKIP(return, "cannot mount ramfs");
	ASSERT_NE(MAP_FAILED, mmap(self->mem + self->len, self->len, PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_FIXED, file, 0));
	test_err_create(EOPNOTSUPP, self->dev, 0, iovs, 2);
	memset(self->mem + self->len, 1, self->len);
	test_err_create(EOPNOTSUPP, self->dev, 0, iovs, 2);
	EXPECT_NOTHING_KEPT(&self->session);
}

TEST_F(neighbours, second_is_of_a_memfd)
{
	struct udmabuf_iovec iovs[] = {
		{ to_u64(self->mem), self->len },
		{ to_u64(self->mem + self->len), self->len },
		{ to_u64(self->mem + self->page), self->len },
	};
	int memfd = sealed_memfd(self->len, 0, 0);

	ASSERT_NE(MAP_FAILED, mmap(self->mem + self->len, self->len, PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_FIXED, memfd, 0));
	fill(self->mem + self->len, self->len, 2);
	EXPECT_ENTRIES_WORK(iovs, ARRAY_SIZE(iovs));
}

/* Each entry starts where another ends, though not always the previous one. */
TEST_F(neighbours, in_any_order)
{
	static const unsigned char orders[][6][2] = {	/* first page, pages */
		{ { 1, 1 }, { 2, 1 }, { 0, 1 }, { 1, 1 }, { 2, 2 }, { 4, 1 } },
		{ { 4, 2 }, { 2, 2 }, { 0, 2 }, { 2, 2 }, { 4, 2 }, { 0, 2 } },
		{ { 0, 3 }, { 3, 1 }, { 3, 1 }, { 4, 4 }, { 8, 1 }, { 0, 9 } },
		{ { 0, 9 }, { 0, 9 }, { 9, 1 }, { 1, 9 }, { 9, 2 }, { 11, 5 } },
		{ { 2, 1 }, { 1, 1 }, { 0, 1 }, { 5, 1 }, { 6, 1 }, { 4, 1 } },
	};
	struct udmabuf_iovec iovs[6];
	size_t k, i;

	for (k = 0; k < ARRAY_SIZE(orders); k++) {
		for (i = 0; i < 6; i++) {
			iovs[i].base = to_u64(self->mem + orders[k][i][0] * self->page);
			iovs[i].len = orders[k][i][1] * self->page;
		}
		EXPECT_ENTRIES_WORK(iovs, 6);
	}
}

/* Map the highest page of the address space; NULL if it was not found. */
static char *top_page(size_t page)
{
	static const unsigned char bits[] = { 56, 52, 48, 47, 46, 32 };
	size_t i, below;

	for (i = 0; i < ARRAY_SIZE(bits); i++)
		for (below = 1; below <= 16; below++) {
			__u64 addr = (1ULL << bits[i]) - below * page;
			char *top = (char *)(uintptr_t)addr;

			if (to_u64(top) != addr)
				continue;
			if (mmap(top, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS |
				 MAP_FIXED_NOREPLACE, -1, 0) == top)
				return top;
			if (errno == EEXIST)
				return NULL;
		}
	return NULL;
}

/* An entry beyond user space gives EFAULT, also next to a valid entry. */
TEST_F(neighbours, at_the_top_of_the_address_space)
{
	char *top = top_page(self->page);
	struct udmabuf_iovec iovs[] = {
		{ to_u64(self->mem), self->len },
		{ to_u64(top), self->page },
		{ to_u64(top) + self->page, self->page },
		{ to_u64(top) + 2 * self->page, self->page },
	};

	if (top) {
		fill(top, self->page, 2);
		EXPECT_ENTRIES_WORK(iovs, 2);
		EXPECT_ENTRIES_WORK(iovs + 1, 1);
		test_err_create(EFAULT, self->dev, 0, iovs, 4);
		test_err_create(EFAULT, self->dev, 0, iovs + 1, 2);
	}
	/*
	 * The largest possible sums; an entry of the very last page overflows.
	 */
	iovs[0] = (struct udmabuf_iovec) { -3ULL * self->page, self->page };
	iovs[1] = (struct udmabuf_iovec) { -2ULL * self->page, self->page };
	test_err_create(EFAULT, self->dev, 0, iovs, 2);
	iovs[2] = (struct udmabuf_iovec) { -1ULL * self->page, self->page };
	test_err_create(EINVAL, self->dev, 0, iovs, 3);
	iovs[2] = (struct udmabuf_iovec) { 0, self->page };
	test_err_create(EFAULT, self->dev, 0, iovs, 3);
	EXPECT_NOTHING_KEPT(&self->session);
}

TEST_HARNESS_MAIN
