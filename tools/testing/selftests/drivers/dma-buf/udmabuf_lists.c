// SPDX-License-Identifier: GPL-2.0
/*
 * Scattered memory is stored as lists of pages or folios, one list per batch.
 * The buffer must have the named pages in order, however it is accessed, and no
 * more segments than runs. A batch has 2048 pages, or 512 folios of a memfd.
 */
#include "udmabuf_test.h"

#define STRIDE	2999	/* prime, so that it visits all pages */

/* Small pages: a full batch of scattered pages is stored as a list */

#define NPAGES	8192

struct place {
	__u64 frame;
	size_t pgoff;
};

FIXTURE(lists) {
	struct session session;
	int dev;
	int fd;
	char *mem;		/* scattered */
	size_t page;
	struct place places[NPAGES];	/* of all pages, in physical order */
	struct udmabuf_iovec iovs[NPAGES];
};

FIXTURE_VARIANT(lists) {
	bool memfd;
};

FIXTURE_VARIANT_ADD(lists, anon) { .memfd = false };
FIXTURE_VARIANT_ADD(lists, memfd) { .memfd = true };

/* Create a buffer by memfd items for the memory that the entries name. */
static int create_items(int dev, int memfd, const char *mem, const struct udmabuf_iovec *iovs,
			size_t niov)
{
	struct udmabuf_create_item *items = calloc(niov, sizeof(*items));
	size_t i;
	int buf;

	for (i = 0; i < niov; i++) {
		items[i].memfd = memfd;
		items[i].offset = iovs[i].base - to_u64(mem);
		items[i].size = iovs[i].len;
	}
	buf = _create_list(dev, 0, items, niov);
	free(items);
	return buf;
}

static int create_entries(const struct _test_data_lists *self, bool memfd,
			  const struct udmabuf_iovec *iovs, size_t niov)
{
	return memfd ? create_items(self->dev, self->fd, self->mem, iovs, niov) :
		       _create(self->dev, 0, iovs, niov);
}

#define test_create_entries(iovs, niov)					\
	({								\
		int __fd = create_entries(self, variant->memfd, iovs, niov); \
		ASSERT_LE(0, __fd) TH_LOG("create: %s", strerror(errno)); \
		__fd;							\
	})

static struct udmabuf_iovec page_at(const struct _test_data_lists *self, size_t pgoff)
{
	return (struct udmabuf_iovec) { to_u64(self->mem + pgoff * self->page), self->page };
}

/* Let entry @i name the @place-th page of the memory in physical order. */
static void name_page(struct _test_data_lists *self, size_t i, size_t place)
{
	self->iovs[i] = page_at(self, self->places[place].pgoff);
}

/* Name pages that are not adjacent. */
static void name_scattered(struct _test_data_lists *self, size_t npages)
{
	size_t i;

	for (i = 0; i < npages; i++)
		name_page(self, i, i * STRIDE % npages);
}

static int by_place(const void *a, const void *b)
{
	const struct place *left = a, *right = b;

	return left->frame < right->frame ? -1 : left->frame > right->frame;
}

/* Record the physical place of each page. */
static void find_places(struct _test_data_lists *self)
{
	__u64 *frames = page_frames_alloc(self->mem, NPAGES);
	size_t i;

	for (i = 0; i < NPAGES; i++)
		self->places[i] = (struct place) { frames[i], i };
	if (frames[0])
		qsort(self->places, NPAGES, sizeof(*self->places), by_place);
	free(frames);
}

/*
 * Touch the pages in an order in which no page follows its neighbour, so that
 * they are allocated in that order. If a pin migrates them, it does so in the
 * order of the entries, and a later pin does not migrate them again.
 */
FIXTURE_SETUP(lists)
{
	size_t len, i;

	SESSION_OPEN(&self->session);
	SKIP_WITHOUT_IMPORTER();
	self->dev = self->session.dev;
	self->page = page_size();
	len = NPAGES * self->page;
	self->fd = sealed_memfd(len, 0, F_SEAL_SHRINK);
	ASSERT_LE(0, self->fd);
	self->mem = anon_aligned(len, thp_size() ?: self->page);
	madvise(self->mem, len, MADV_NOHUGEPAGE);
	if (variant->memfd)
		self->mem = mmap(self->mem, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
				 self->fd, 0);
	ASSERT_NE(MAP_FAILED, (void *)self->mem);
	make_entries(self->iovs, NPAGES, self->mem, self->page, STRIDE);
	for (i = 0; i < NPAGES; i++)
		*(char *)(uintptr_t)self->iovs[i].base = 1;
	close(test_create_entries(self->iovs, NPAGES));
	fill(self->mem, len, 1);
	find_places(self);
}

FIXTURE_TEARDOWN(lists)
{
	SESSION_CLOSE(&self->session);
}

static const size_t sizes[] = { 255, 256, 257, 511, 512, 513, 2047, 2048, 2049, 4097 };

TEST_F(lists, one_range)
{
	struct udmabuf_iovec all = { to_u64(self->mem), NPAGES * self->page };
	__u64 *frames = entries_frames(&all, 1);
	size_t i;

	/* Otherwise the buffer would not be stored as a list. */
	if (frames)
		EXPECT_LT(NPAGES / 2, count_runs(frames, NPAGES, UINT_MAX));
	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		struct udmabuf_iovec iov = { to_u64(self->mem), sizes[i] * self->page };
		int buf = test_create_entries(&iov, 1);

		EXPECT_BUFFER_IS(buf, &iov, 1) TH_LOG("one entry of %zu pages", sizes[i]);
		close(buf);
	}
}

TEST_F(lists, an_entry_for_each_page)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		int buf;

		name_scattered(self, sizes[i]);
		buf = test_create_entries(self->iovs, sizes[i]);
		EXPECT_BUFFER_IS(buf, self->iovs, sizes[i]) TH_LOG("%zu entries", sizes[i]);
		close(buf);
	}
}

/* More entries than mainline accepts */
TEST_F(lists, eight_thousand_entries)
{
	int buf;

	name_scattered(self, 8000);
	buf = test_create_entries(self->iovs, 8000);
	EXPECT_BUFFER_IS(buf, self->iovs, 8000);
}

#define SHMEM_THP	"/sys/kernel/mm/transparent_hugepage/shmem_enabled"

/*
 * Replace the first pages by the pages of a huge page that is then split, so
 * that they are adjacent. Before the split, a buffer migrates the huge page out
 * of the movable zone, since its small pages would be migrated one by one.
 */
static bool make_run(struct _test_data_lists *self, bool memfd)
{
	struct udmabuf_iovec iov = { to_u64(self->mem), thp_size() };

	if (!iov.len)
		return false;
	write_text(SHMEM_THP, "always");
	fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, iov.len);
	if (!memfd) {
		madvise(self->mem, iov.len, MADV_DONTNEED);
		madvise(self->mem, iov.len, MADV_HUGEPAGE);
	}
	fill(self->mem, iov.len, 1);
	madvise(self->mem, iov.len, MADV_COLLAPSE);
	write_text(SHMEM_THP, "never");
	close(create_entries(self, memfd, &iov, 1));
	split_huge_page(self->mem);
	/* A split unmaps the pages of a file. */
	fill(self->mem, iov.len, 1);
	find_places(self);
	return physically_contiguous(self->mem, iov.len);
}

/* The next place from @place on with @npages adjacent pages. */
static size_t find_run(const struct _test_data_lists *self, size_t place, size_t npages)
{
	size_t n = 1;

	for (; n < npages && place + n < NPAGES; n++)
		if (self->places[place + n].frame != self->places[place].frame + n) {
			place += n;
			n = 0;
		}
	return place;
}

/*
 * Adjacent pages at the end of one batch and at the start of the next are one
 * segment of an importer. Both kinds of batches end at multiples of 512 pages.
 */
TEST_F(lists, runs_across_lists_are_one_segment)
{
	size_t npages = 9 * 512 + 100, place = 0, at, half, i;
	bool enough = make_run(self, variant->memfd);
	int buf;

	if (!self->places[0].frame)
		SKIP(return, "pagemap does not show page frames");
	name_scattered(self, npages);
	for (at = 512; at < npages; at += 512) {
		/*
		 * A batch that starts with 12 adjacent pages is not stored as a
		 * list.
		 */
		half = at % 4096 ? 1 : 12;
		place = find_run(self, place, 2 * half);
		/*
		 * Without huge pages there may be no more runs; any layout is
		 * accepted.
		 */
		if (place + 2 * half > NPAGES) {
			EXPECT_FALSE(enough);
			break;
		}
		for (i = 0; i < 2 * half; i++)
			name_page(self, at - half + i, place++);
	}
	buf = test_create_entries(self->iovs, npages);
	EXPECT_BUFFER_IS(buf, self->iovs, npages);
}

/* Batches stored as lists, and batches that start with a run and are not */
TEST_F(lists, runs_and_scattered_pages_in_turn)
{
	size_t batch = 2048, in_order[] = { batch, 0, 32, 0 }, i;
	int buf;

	for (i = 0; i < NPAGES; i++) {
		size_t start = i / batch * batch, pgoff = i % batch;

		name_page(self, i, pgoff < in_order[i / batch] ? i :
						start + pgoff * STRIDE % batch);
	}
	buf = test_create_entries(self->iovs, NPAGES);
	EXPECT_BUFFER_IS(buf, self->iovs, NPAGES);
}

/* Pages in several lists, and several times in one, are pinned that often. */
TEST_F(lists, the_same_pages_again_and_again)
{
	size_t npages = 4200, i;
	int buf;

	for (i = 0; i < npages; i++)
		name_page(self, i, i * STRIDE % 100);
	buf = test_create_entries(self->iovs, npages);
	EXPECT_BUFFER_IS(buf, self->iovs, npages);
}

/* A failure after a full list frees the list as well. */
TEST_F(lists, last_entry_fails)
{
	size_t npages = 2048 + 512;

	name_scattered(self, npages);
	self->iovs[npages] = page_at(self, NPAGES - !variant->memfd);
	ASSERT_EQ(0, munmap(self->mem + (NPAGES - 1) * self->page, self->page));
	EXPECT_ERRNO(variant->memfd ? EINVAL : EFAULT,
		     create_entries(self, variant->memfd, self->iovs, npages + 1));
	EXPECT_NOTHING_KEPT(&self->session);
}

/* Folios of 64 KiB: a list of them has a sixteenth of the entries */

#define FOLIO_LEN	(64UL << 10)
#define SHMEM_FOLIOS	"/sys/kernel/mm/transparent_hugepage/hugepages-64kB/shmem_enabled"

FIXTURE(folios) {
	struct session session;
	int dev;
	int fd;
	char *mem;
	size_t page;
};

/*
 * The small pages fill 1 MiB, so the first batch has 256 folios of each size.
 */
FIXTURE_VARIANT(folios) {
	size_t len;
	size_t small;		/* start of the small pages */
	size_t small_end;
};

FIXTURE_VARIANT_ADD(folios, large) { .len = 64 << 20 };
FIXTURE_VARIANT_ADD(folios, small_first) { .len = 36 << 20, .small = 0, .small_end = 1 << 20 };
FIXTURE_VARIANT_ADD(folios, small_behind) {
	.len = 36 << 20, .small = 16 << 20, .small_end = 17 << 20,
};

/*
 * Touch and pin the bytes from @start to @end of a memfd mapped at @mem, in an
 * order in which no unit follows its neighbour.
 */
static int populate_units(int dev, int memfd, char *mem, off_t start, off_t end, size_t unit)
{
	size_t n = (end - start) / unit, i;
	struct udmabuf_iovec *iovs = calloc(n + 1, sizeof(*iovs));
	int ret = 0;

	make_entries(iovs, n, mem + start, unit, STRIDE);
	for (i = 0; i < n; i++)
		*(char *)(uintptr_t)iovs[i].base = 1;
	if (n)
		ret = close(create_items(dev, memfd, mem, iovs, n));
	free(iovs);
	return ret;
}

/* Does the memory have any whole large folio? */
static bool has_large_folio(const char *mem, size_t len)
{
	size_t off;

	for (off = 0; off < len; off += FOLIO_LEN)
		if (physically_contiguous(mem + off, FOLIO_LEN))
			return true;
	return false;
}

FIXTURE_SETUP(folios)
{
	SESSION_OPEN(&self->session);
	SKIP_WITHOUT_IMPORTER();
	self->dev = self->session.dev;
	self->page = page_size();
	if (write_text(SHMEM_FOLIOS, "never"))
		SKIP(return, "no 64 KiB folios for memfds in this kernel");
	self->fd = sealed_memfd(variant->len, 0, F_SEAL_SHRINK);
	self->mem = mmap(anon_aligned(variant->len, FOLIO_LEN), variant->len,
			 PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, (void *)self->mem);
	ASSERT_EQ(0, populate_units(self->dev, self->fd, self->mem, variant->small,
				    variant->small_end, self->page));
	make_room();
	ASSERT_EQ(0, write_text(SHMEM_FOLIOS, "always"));
	ASSERT_EQ(0, populate_units(self->dev, self->fd, self->mem, 0, variant->small,
				    FOLIO_LEN));
	ASSERT_EQ(0, populate_units(self->dev, self->fd, self->mem, variant->small_end,
				    variant->len, FOLIO_LEN));
	write_text(SHMEM_FOLIOS, "never");
	fill(self->mem, variant->len, 1);
	/*
	 * With fragmented memory some folios are small, which the tests accept.
	 */
	if (!has_large_folio(self->mem + variant->small_end, variant->len - variant->small_end))
		SKIP(return, "the kernel had no 64 KiB folio to give");
}

FIXTURE_TEARDOWN(folios)
{
	SESSION_CLOSE(&self->session);
}

TEST_F_TIMEOUT(folios, whole, 600)
{
	struct udmabuf_iovec iov = { to_u64(self->mem), variant->len };
	int buf = test_create_memfd(self->dev, 0, self->fd, 0, variant->len);

	EXPECT_BUFFER_IS(buf, &iov, 1);
}

/*
 * Guards against whole folios where only a part was requested, at either end.
 */
TEST_F_TIMEOUT(folios, parts_of_the_first_and_the_last, 600)
{
	struct { size_t skip, less; } rows[] = { { 5, 7 }, { 0, 3 }, { 15, 0 } };
	size_t i;

	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		size_t off = rows[i].skip * self->page;
		size_t len = variant->len - off - rows[i].less * self->page;
		struct udmabuf_iovec iov = { to_u64(self->mem + off), len };
		int buf = test_create_memfd(self->dev, 0, self->fd, off, len);
		char *map = test_map_buf(buf, len, PROT_READ);

		EXPECT_EQ(len, lseek(buf, 0, SEEK_END));
		EXPECT_TRUE(buffer_is(map, &iov, 1)) TH_LOG("buffer from offset %zu on", off);
		munmap(map, len);
		close(buf);
	}
}

/* Folios of both sizes, whole and in part, and lists of either size */
TEST_F_TIMEOUT(folios, beside_small_pages, 600)
{
	size_t small = 512 * self->page, page = self->page, i, len;
	int other = sealed_memfd(small, 0, F_SEAL_SHRINK);
	char *mem = mmap(NULL, small, PROT_READ | PROT_WRITE, MAP_SHARED, other, 0);
	struct udmabuf_create_item items[] = {
		{ other, 0, 0, small },
		{ self->fd, 0, 0, 32 << 20 },
		{ other, 0, 3 * page, 20 * page },
		{ self->fd, 0, (34 << 20) + 3 * page, 40 * page },
		{ other, 0, 0, small },
		{ self->fd, 0, (32 << 20) + 3 * page, page },
	};
	struct udmabuf_iovec iovs[ARRAY_SIZE(items)];
	int buf;

	ASSERT_NE(MAP_FAILED, (void *)mem);
	ASSERT_EQ(0, populate_units(self->dev, other, mem, 0, small, page));
	fill(mem, small, 2);
	for (i = 0; i < ARRAY_SIZE(items); i++) {
		char *base = items[i].memfd == other ? mem : self->mem;

		iovs[i].base = to_u64(base + items[i].offset);
		iovs[i].len = items[i].size;
	}
	len = entries_len(iovs, ARRAY_SIZE(iovs));
	buf = test_create_list(self->dev, 0, items, ARRAY_SIZE(items));
	EXPECT_EQ(len, lseek(buf, 0, SEEK_END));
	EXPECT_BUFFER_IS(buf, iovs, ARRAY_SIZE(iovs));
}

/*
 * Pages at the ends of a section of physical memory. Without a virtual memmap
 * the struct pages of adjacent pages may be apart. At a hole in memory, struct
 * pages may be adjacent though the pages are not.
 */

#define MAX_ENDS	128

FIXTURE(sections) {
	struct session session;
	size_t page;
	char *mem;
	size_t len;
	struct place ends[MAX_ENDS];	/* in physical order */
	size_t nends;
	struct udmabuf_iovec iovs[MAX_ENDS];
};

/* Find the pages of the memory that are the first or last one of a section. */
static void find_ends(struct _test_data_sections *self)
{
	size_t chunk = 2048, per_section = SECTION_MIN / self->page, pgoff, i;
	int pagemap = pagemap_open();
	__u64 frames[2048];

	for (pgoff = 0; pgoff < self->len / self->page; pgoff += chunk) {
		page_frames(pagemap, self->mem + pgoff * self->page, chunk, frames);
		for (i = 0; i < chunk && self->nends < MAX_ENDS; i++)
			if (frames[i] && (frames[i] + 1) % per_section <= 1)
				self->ends[self->nends++] = (struct place) { frames[i], pgoff + i };
	}
	close(pagemap);
	qsort(self->ends, self->nends, sizeof(*self->ends), by_place);
}

FIXTURE_SETUP(sections)
{
	size_t most = kernel_is_32bit() ? 1536UL << 20 : 2048UL << 20, i;

	SESSION_OPEN(&self->session);
	SKIP_WITHOUT_IMPORTER();
	self->page = page_size();
	self->len = text_number("/proc/meminfo", "MemAvailable:") / 2 * 1024UL;
	self->len = (self->len < most ? self->len : most) / SECTION_MIN * SECTION_MIN;
	self->mem = mmap(NULL, self->len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			 -1, 0);
	ASSERT_NE(MAP_FAILED, (void *)self->mem);
	madvise(self->mem, self->len, MADV_HUGEPAGE);
	for (i = 0; i < self->len; i += self->page)
		self->mem[i] = 1;
	find_ends(self);
	if (!self->nends)
		SKIP(return, "pagemap does not show page frames");
	for (i = 0; i < self->nends; i++) {
		self->iovs[i].base = to_u64(self->mem + self->ends[i].pgoff * self->page);
		self->iovs[i].len = self->page;
		memset((void *)(uintptr_t)self->iovs[i].base, i + 1, self->page);
	}
}

FIXTURE_TEARDOWN(sections)
{
	munmap(self->mem, self->len);
	SESSION_CLOSE(&self->session);
}

TEST_F_TIMEOUT(sections, one_end, 600)
{
	size_t i;

	for (i = 0; i < self->nends; i++) {
		int buf = test_create(self->session.dev, 0, &self->iovs[i], 1);

		EXPECT_BUFFER_IS(buf, &self->iovs[i], 1)
			TH_LOG("one page, at frame %#llx", (unsigned long long)self->ends[i].frame);
		close(buf);
	}
}

/* Pairs of neighbouring ends, also across a hole, in both orders */
TEST_F_TIMEOUT(sections, two_ends, 600)
{
	size_t i, j;

	for (i = 0; i + 1 < self->nends; i++)
		for (j = 0; j < 2; j++) {
			struct udmabuf_iovec pair[] = { self->iovs[i + j], self->iovs[i + 1 - j] };
			int buf = test_create(self->session.dev, 0, pair, 2);

			EXPECT_BUFFER_IS(buf, pair, 2)
				TH_LOG("section ends at frames %#llx and %#llx",
				       (unsigned long long)self->ends[i + j].frame,
				       (unsigned long long)self->ends[i + 1 - j].frame);
			close(buf);
		}
}

TEST_F_TIMEOUT(sections, all_ends, 600)
{
	int buf = test_create(self->session.dev, 0, self->iovs, self->nends);

	EXPECT_BUFFER_IS(buf, self->iovs, self->nends);
}

TEST_HARNESS_MAIN
