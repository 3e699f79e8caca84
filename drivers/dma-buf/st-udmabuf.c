// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of udmabuf.c, which includes this file to make its static functions visible.
 * They cover functions that pin no memory. The selftests cover the interface.
 */

#include <kunit/device.h>
#include <kunit/test.h>
#include <linux/mman.h>

#define TEST_ORDER	6
#define TEST_NPAGES	BIT(TEST_ORDER)

struct udmabuf_test {
	struct udmabuf ubuf;
	/* Contiguous, and aligned to TEST_NPAGES pages */
	struct page *pages;
	/* The extents of sample_buffer(), and their lists */
	struct udmabuf_extent extents[4];
	struct page *lists[2][3];
	/* Values of the module parameters before the test */
	unsigned int list_limit, size_limit_mb;
};

static int test_init(struct kunit *test)
{
	struct udmabuf_test *ctx = kunit_kzalloc(test, sizeof(*ctx), GFP_KERNEL);

	if (!ctx)
		return -ENOMEM;
	ctx->pages = alloc_pages(GFP_KERNEL, TEST_ORDER);
	if (!ctx->pages)
		return -ENOMEM;
	ctx->list_limit = list_limit;
	ctx->size_limit_mb = size_limit_mb;
	test->priv = ctx;
	return 0;
}

static void test_exit(struct kunit *test)
{
	struct udmabuf_test *ctx = test->priv;
	size_t i;

	if (!ctx)
		return;
	list_limit = ctx->list_limit;
	size_limit_mb = ctx->size_limit_mb;
	if (ctx->ubuf.extents != ctx->extents) {
		for (i = 0; i < ctx->ubuf.nextents; i++)
			if (ctx->ubuf.extents[i].listed)
				kfree(ctx->ubuf.extents[i].list);
		kvfree(ctx->ubuf.extents);
	}
	__free_pages(ctx->pages, TEST_ORDER);
}

/* A buffer with extents of all kinds */

/* The pages of the buffer, as indices of the test's pages. Its runs are 3-7, 12-32, 2, 50. */
static const unsigned char sample_pages[] = {
	3,
	4, 5, 6, 7, 12, 13, 14, 15,
	16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
	32, 2, 50,
};

static const struct {
	unsigned int end;
	bool listed;
	unsigned char order;
} sample_extents[] = { { 1 }, { 9, true, 2 }, { 25 }, { 28, true, 0 } };

static struct udmabuf *sample_buffer(struct udmabuf_test *ctx)
{
	struct udmabuf *ubuf = &ctx->ubuf;
	unsigned int i, k, pgoff = 0, nlists = 0;

	for (i = 0; i < ARRAY_SIZE(sample_extents); i++) {
		struct udmabuf_extent *extent = &ctx->extents[i];

		extent->pgoff = pgoff;
		extent->listed = sample_extents[i].listed;
		extent->order = sample_extents[i].order;
		if (!extent->listed) {
			extent->page = ctx->pages + sample_pages[pgoff];
			pgoff = sample_extents[i].end;
			continue;
		}
		extent->list = ctx->lists[nlists++];
		for (k = 0; pgoff < sample_extents[i].end; pgoff += 1 << extent->order, k++)
			extent->list[k] = ctx->pages + sample_pages[pgoff];
	}
	ubuf->extents = ctx->extents;
	ubuf->nextents = ARRAY_SIZE(sample_extents);
	ubuf->npages = ARRAY_SIZE(sample_pages);
	return ubuf;
}

static void test_extent_end(struct kunit *test)
{
	struct udmabuf *ubuf = sample_buffer(test->priv);
	size_t i;

	for (i = 0; i < ubuf->nextents; i++)
		KUNIT_EXPECT_EQ(test, udmabuf_extent_end(ubuf, i), sample_extents[i].end);
}

static void test_find_extent(struct kunit *test)
{
	struct udmabuf *ubuf = sample_buffer(test->priv);
	pgoff_t pgoff;
	size_t i;

	for (pgoff = 0, i = 0; pgoff < ubuf->npages; pgoff++) {
		i += pgoff == sample_extents[i].end;
		KUNIT_EXPECT_EQ(test, udmabuf_find_extent(ubuf, pgoff), i);
	}
}

static void test_extent_page(struct kunit *test)
{
	struct udmabuf_test *ctx = test->priv;
	struct udmabuf *ubuf = sample_buffer(ctx);
	pgoff_t pgoff;
	size_t i;

	for (pgoff = 0, i = 0; pgoff < ubuf->npages; pgoff++) {
		i += pgoff == sample_extents[i].end;
		KUNIT_EXPECT_EQ(test, udmabuf_extent_page(ubuf, i, pgoff) - ctx->pages,
				sample_pages[pgoff]);
	}
}

static void test_store_extent(struct kunit *test)
{
	struct udmabuf_test *ctx = test->priv;
	struct udmabuf *ubuf = sample_buffer(ctx);
	pgoff_t pgoff;
	size_t i;

	ubuf->vmap_pages = kunit_kcalloc(test, ubuf->npages, sizeof(*ubuf->vmap_pages),
					 GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, ubuf->vmap_pages);
	for (i = 0; i < ubuf->nextents; i++)
		udmabuf_store_extent(ubuf, i);
	for (pgoff = 0; pgoff < ubuf->npages; pgoff++)
		KUNIT_EXPECT_PTR_EQ(test, ubuf->vmap_pages[pgoff],
				    ctx->pages + sample_pages[pgoff]);
}

/* Growth of the array of extents */

/* Adds extents up to @nextents. Extent i starts at page 3 * i. */
static void grow_to(struct kunit *test, struct udmabuf *ubuf, size_t nextents)
{
	while (ubuf->nextents < nextents) {
		KUNIT_ASSERT_EQ(test, udmabuf_reserve_extent(ubuf), 0);
		KUNIT_ASSERT_GT(test, ubuf->max_extents, ubuf->nextents);
		ubuf->extents[ubuf->nextents] = (struct udmabuf_extent) {
			.pgoff = 3 * ubuf->nextents,
		};
		ubuf->nextents++;
	}
}

static void expect_grown(struct kunit *test, const struct udmabuf *ubuf)
{
	size_t i;

	for (i = 0; i < ubuf->nextents; i++)
		KUNIT_EXPECT_EQ(test, ubuf->extents[i].pgoff, 3 * i);
}

/* A buffer of n pages has at most n extents. */
static void test_reserve_extent(struct kunit *test)
{
	struct udmabuf_test *ctx = test->priv;
	struct udmabuf *ubuf = &ctx->ubuf;

	ubuf->max_npages = 40;
	grow_to(test, ubuf, 1);
	KUNIT_EXPECT_EQ(test, ubuf->max_extents, 16);
	grow_to(test, ubuf, 17);
	KUNIT_EXPECT_EQ(test, ubuf->max_extents, 32);
	grow_to(test, ubuf, 40);
	KUNIT_EXPECT_EQ(test, ubuf->max_extents, 40);
	KUNIT_EXPECT_EQ(test, udmabuf_reserve_extent(ubuf), -ENOMEM);
	KUNIT_EXPECT_EQ(test, ubuf->nextents, 40);
	expect_grown(test, ubuf);
}

static void test_trim_extents(struct kunit *test)
{
	struct udmabuf_test *ctx = test->priv;
	struct udmabuf *ubuf = &ctx->ubuf;

	ubuf->max_npages = 1000;
	grow_to(test, ubuf, 17);
	udmabuf_trim_extents(ubuf);
	KUNIT_EXPECT_EQ(test, ubuf->max_extents, 17);
	expect_grown(test, ubuf);
	/* Now 34 entries are allocated: shrinking by one entry is not worth a copy. */
	grow_to(test, ubuf, 33);
	udmabuf_trim_extents(ubuf);
	KUNIT_EXPECT_EQ(test, ubuf->max_extents, 34);
	expect_grown(test, ubuf);
}

static void test_append(struct kunit *test)
{
	struct udmabuf_test *ctx = test->priv;
	struct udmabuf *ubuf = &ctx->ubuf;
	/* pages appended, and the number of extents after that */
	static const struct {
		unsigned char first, n, nextents;
	} steps[] = {
		{ 0, 2, 1 },
		{ 2, 3, 1 },	/* adjoining: same extent */
		{ 6, 1, 2 },	/* gap */
		{ 6, 1, 3 },	/* same page again */
		{ 5, 1, 4 },	/* backwards */
		{ 6, 4, 4 },
	};
	static const unsigned int pgoffs[] = { 0, 5, 6, 7 };
	pgoff_t npages = 0;
	size_t i;

	ubuf->max_npages = 100;
	for (i = 0; i < ARRAY_SIZE(steps); i++) {
		KUNIT_ASSERT_EQ(test, udmabuf_append(ubuf, ctx->pages + steps[i].first,
						     steps[i].n), 0);
		npages += steps[i].n;
		KUNIT_EXPECT_EQ(test, ubuf->nextents, steps[i].nextents);
		KUNIT_EXPECT_EQ(test, ubuf->npages, npages);
		KUNIT_EXPECT_PTR_EQ(test, ubuf->last_page,
				    ctx->pages + steps[i].first + steps[i].n - 1);
	}
	for (i = 0; i < ARRAY_SIZE(pgoffs); i++)
		KUNIT_EXPECT_EQ(test, ubuf->extents[i].pgoff, pgoffs[i]);
}

/* With one pin per folio and extent, a tail page starts an extent. */
static void test_append_tail(struct kunit *test)
{
	struct udmabuf_test *ctx = test->priv;
	struct udmabuf *ubuf = &ctx->ubuf;
	struct page *page = alloc_pages(GFP_KERNEL | __GFP_COMP, 1);

	KUNIT_ASSERT_NOT_NULL(test, page);
	ubuf->max_npages = 4;
	KUNIT_EXPECT_EQ(test, udmabuf_append(ubuf, page, 1), 0);
	KUNIT_EXPECT_EQ(test, udmabuf_append(ubuf, page + 1, 1), 0);
	KUNIT_EXPECT_EQ(test, ubuf->nextents, 1);
	ubuf->folio_pins = true;
	KUNIT_EXPECT_EQ(test, udmabuf_append(ubuf, page, 1), 0);
	KUNIT_EXPECT_EQ(test, udmabuf_append(ubuf, page + 1, 1), 0);
	KUNIT_EXPECT_EQ(test, ubuf->nextents, 3);
	__free_pages(page, 1);
}

/* Choice of lists or extents for a batch of pages */

struct batch_case {
	const char *name;
	unsigned long end;	/* pages in the batch */
	unsigned int pairs;	/* pairs of adjoining pages at its start */
	bool first;		/* a part of the batch is in the buffer already */
	bool listed;
};

static const struct batch_case batch_cases[] = {
	{ "scattered", UDMABUF_MIN_LIST, 0, false, true },
	{ "small", UDMABUF_MIN_LIST - 1, 0, false, false },
	{ "few pairs", UDMABUF_MIN_LIST, UDMABUF_SAMPLE / 2 - 1, false, true },
	{ "many pairs", UDMABUF_MIN_LIST, UDMABUF_SAMPLE / 2, false, false },
	{ "partial", UDMABUF_MIN_LIST, 0, true, false },
};

KUNIT_ARRAY_PARAM_DESC(batch, batch_cases, name);

/* Every second page is used, or pairs of pages with a gap of one page. */
static void test_add_checked(struct kunit *test)
{
	const struct batch_case *param = test->param_value;
	struct udmabuf_test *ctx = test->priv;
	struct udmabuf *ubuf = &ctx->ubuf;
	struct udmabuf_batch batch = { .first = param->first, .end = param->end };
	unsigned long i, index, npages = param->end - param->first;
	pgoff_t pgoff;

	batch.pages = kunit_kcalloc(test, batch.end, sizeof(*batch.pages), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, batch.pages);
	for (i = 0, index = 0; i < batch.end; i++) {
		batch.pages[i] = ctx->pages + index % TEST_NPAGES;
		index += i % 2 || i >= 2 * param->pairs ? 2 : 1;
	}
	ubuf->max_npages = batch.end;
	KUNIT_ASSERT_EQ(test, udmabuf_add_checked(ubuf, &batch, batch.end), 0);
	KUNIT_EXPECT_EQ(test, batch.first, batch.end);
	KUNIT_ASSERT_EQ(test, ubuf->npages, npages);
	KUNIT_EXPECT_EQ(test, ubuf->extents[0].listed, param->listed);
	KUNIT_EXPECT_EQ(test, ubuf->nextents, param->listed ? 1 : npages - param->pairs);
	for (pgoff = 0; pgoff < npages; pgoff++)
		KUNIT_EXPECT_PTR_EQ(test, batch.pages[param->first + pgoff],
				    udmabuf_extent_page(ubuf, udmabuf_find_extent(ubuf, pgoff),
							pgoff));
}

/* Segments */

#define NO_LIMIT	(UINT_MAX >> PAGE_SHIFT)

struct segs_case {
	const char *name;
	struct udmabuf_seg_limits limits;
	unsigned char first, npages;	/* of the run */
	unsigned char segs[5];		/* expected lengths */
};

static const struct segs_case segs_cases[] = {
	{ "no limit", { NO_LIMIT, 0 }, 0, 64, { 64 } },
	{ "max, exact", { 5, 0 }, 3, 10, { 5, 5 } },
	{ "max, rest", { 4, 0 }, 0, 10, { 4, 4, 2 } },
	{ "max, one more", { 4, 0 }, 0, 9, { 4, 4, 1 } },
	{ "boundary", { NO_LIMIT, 8 }, 5, 13, { 3, 8, 2 } },
	{ "boundary, aligned", { NO_LIMIT, 8 }, 8, 16, { 8, 8 } },
	{ "boundary, not reached", { NO_LIMIT, 8 }, 1, 7, { 7 } },
	{ "max below boundary", { 3, 8 }, 6, 11, { 2, 3, 3, 2, 1 } },
	{ "max above boundary", { 12, 8 }, 7, 10, { 1, 8, 1 } },
	{ "boundary of one page", { NO_LIMIT, 1 }, 7, 3, { 1, 1, 1 } },
};

KUNIT_ARRAY_PARAM_DESC(segs, segs_cases, name);

static void test_set_segs(struct kunit *test)
{
	const struct segs_case *param = test->param_value;
	struct udmabuf_test *ctx = test->priv;
	struct page *page = ctx->pages + param->first;
	struct scatterlist *sgl, *end;
	size_t i, n = 0;

	while (n < ARRAY_SIZE(param->segs) && param->segs[n])
		n++;
	sgl = kunit_kcalloc(test, param->npages, sizeof(*sgl), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, sgl);
	end = udmabuf_set_segs(param->limits, sgl, page, param->npages);
	KUNIT_ASSERT_EQ(test, end - sgl, n);
	for (i = 0; i < n; i++) {
		KUNIT_EXPECT_PTR_EQ(test, sg_page(&sgl[i]), page);
		KUNIT_EXPECT_EQ(test, sgl[i].offset, 0);
		KUNIT_EXPECT_EQ(test, sgl[i].length, param->segs[i] << PAGE_SHIFT);
		page += param->segs[i];
	}
}

/* No run has more segments than the bound allows. */
static void test_max_cuts(struct kunit *test)
{
	struct udmabuf_test *ctx = test->priv;
	struct udmabuf_seg_limits limits;
	unsigned long first, npages;
	struct scatterlist *sgl;

	sgl = kunit_kcalloc(test, TEST_NPAGES, sizeof(*sgl), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, sgl);
	for (limits.max = 1; limits.max <= 8; limits.max++)
		for (limits.boundary = 0; limits.boundary <= 8;
		     limits.boundary = limits.boundary * 2 ?: 1)
			for (first = 0; first < 8; first++)
				for (npages = 1; npages <= 20; npages++)
					KUNIT_EXPECT_LE(test,
							udmabuf_set_segs(limits, sgl,
									 ctx->pages + first,
									 npages) - sgl,
							1 + udmabuf_max_cuts(limits, npages));
}

/* Without limits, a run of several extents and list entries is one segment. */
static void test_fill_segs(struct kunit *test)
{
	static const struct {
		unsigned char first, n;
	} runs[] = { { 3, 5 }, { 12, 21 }, { 2, 1 }, { 50, 1 } };
	struct udmabuf_seg_limits limits = { .max = NO_LIMIT };
	struct udmabuf_test *ctx = test->priv;
	struct udmabuf *ubuf = sample_buffer(ctx);
	struct scatterlist *sgl, *end;
	size_t i;

	sgl = kunit_kcalloc(test, ubuf->npages, sizeof(*sgl), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, sgl);
	end = udmabuf_fill_segs(ubuf, limits, sgl);
	KUNIT_ASSERT_EQ(test, end - sgl, ARRAY_SIZE(runs));
	for (i = 0; i < ARRAY_SIZE(runs); i++) {
		KUNIT_EXPECT_PTR_EQ(test, sg_page(&sgl[i]), ctx->pages + runs[i].first);
		KUNIT_EXPECT_EQ(test, sgl[i].length, runs[i].n << PAGE_SHIFT);
	}
}

/* With all limits: the segments have all pages, obey the limits, and fit the allocation. */
static void test_max_segs(struct kunit *test)
{
	struct udmabuf_test *ctx = test->priv;
	struct udmabuf *ubuf = sample_buffer(ctx);
	struct udmabuf_seg_limits limits;
	struct scatterlist *sgl, *end, *sg;

	sgl = kunit_kcalloc(test, ubuf->npages, sizeof(*sgl), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, sgl);
	for (limits.max = 1; limits.max <= 32; limits.max++) {
		for (limits.boundary = 0; limits.boundary <= 32;
		     limits.boundary = limits.boundary * 2 ?: 1) {
			pgoff_t pgoff = 0;

			end = udmabuf_fill_segs(ubuf, limits, sgl);
			KUNIT_EXPECT_LE_MSG(test, end - sgl, udmabuf_max_segs(ubuf, limits),
					    "max %lu, boundary %lu", limits.max, limits.boundary);
			for (sg = sgl; sg < end; sg++) {
				unsigned long i, n = sg->length >> PAGE_SHIFT;
				unsigned long pfn = page_to_pfn(sg_page(sg));

				KUNIT_EXPECT_LE(test, n, limits.max);
				if (limits.boundary)
					KUNIT_EXPECT_EQ(test, pfn / limits.boundary,
							(pfn + n - 1) / limits.boundary);
				KUNIT_ASSERT_LE(test, pgoff + n, ubuf->npages);
				for (i = 0; i < n; i++, pgoff++)
					KUNIT_EXPECT_PTR_EQ(test, sg_page(sg) + i,
							    ctx->pages + sample_pages[pgoff]);
			}
			KUNIT_EXPECT_EQ(test, pgoff, ubuf->npages);
		}
	}
}

/* Returns a device with these limits in bytes. */
static struct device *limited_device(struct kunit *test, unsigned int max,
				     unsigned long boundary_mask)
{
	struct device_dma_parameters *params;
	struct device *dev;

	dev = kunit_device_register(test, "udmabuf-test");
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, dev);
	params = kunit_kzalloc(test, sizeof(*params), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, params);
	dev->dma_parms = params;
	dma_set_max_seg_size(dev, max);
	dma_set_seg_boundary(dev, boundary_mask);
	return dev;
}

static void test_seg_limits(struct kunit *test)
{
	struct device *dev = limited_device(test, 4 * PAGE_SIZE + 1, ULONG_MAX);

	KUNIT_EXPECT_EQ(test, udmabuf_seg_limits(dev).max, 4);
	KUNIT_EXPECT_EQ(test, udmabuf_seg_limits(dev).boundary, 0);
	dma_set_seg_boundary(dev, 8 * PAGE_SIZE - 1);
	KUNIT_EXPECT_EQ(test, udmabuf_seg_limits(dev).boundary, 8);
	dma_set_max_seg_size(dev, PAGE_SIZE - 1);
	KUNIT_EXPECT_EQ(test, udmabuf_seg_limits(dev).max, 0);
	dma_set_max_seg_size(dev, UINT_MAX);
	KUNIT_EXPECT_GT(test, udmabuf_seg_limits(dev).max, 0);
	KUNIT_EXPECT_LE(test, udmabuf_seg_limits(dev).max, NO_LIMIT);
}

/* Runs of 5, 21, 1 and 1 pages, with at most 4 pages in a segment */
static void test_new_map(struct kunit *test)
{
	struct device *dev = limited_device(test, 4 * PAGE_SIZE, ULONG_MAX);
	struct udmabuf *ubuf = sample_buffer(test->priv);
	struct udmabuf_map *map = udmabuf_new_map(ubuf, dev);
	struct scatterlist *sg;
	unsigned int i;

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, map);
	KUNIT_EXPECT_EQ(test, map->sgt.nents, 2 + 6 + 1 + 1);
	KUNIT_EXPECT_EQ(test, map->sgt.orig_nents, map->sgt.nents);
	KUNIT_EXPECT_PTR_EQ(test, map->dev, dev);
	for_each_sgtable_sg(&map->sgt, sg, i)
		KUNIT_EXPECT_EQ(test, !!sg_is_last(sg), i == map->sgt.nents - 1);
	kvfree(map);
}

/* Pages are not split: a segment needs at least one page. */
static void test_new_map_refused(struct kunit *test)
{
	struct device *dev = limited_device(test, PAGE_SIZE - 1, ULONG_MAX);
	struct udmabuf *ubuf = sample_buffer(test->priv);

	KUNIT_EXPECT_EQ(test, PTR_ERR_OR_ZERO(udmabuf_new_map(ubuf, dev)), -EINVAL);
	dma_set_max_seg_size(dev, PAGE_SIZE);
	dma_set_seg_boundary(dev, PAGE_SIZE / 2 - 1);
	KUNIT_EXPECT_EQ(test, PTR_ERR_OR_ZERO(udmabuf_new_map(ubuf, dev)), -EINVAL);
}

/* Checks of a request */

static void test_max_npages(struct kunit *test)
{
	size_limit_mb = 0;
	KUNIT_EXPECT_EQ(test, udmabuf_max_npages(), 0);
	size_limit_mb = 3;
	KUNIT_EXPECT_EQ(test, udmabuf_max_npages(), 3 * SZ_1M / PAGE_SIZE);
	/* The number of pages needs more than 32 bits. */
	size_limit_mb = 1U << 31;
	KUNIT_EXPECT_EQ(test, udmabuf_max_npages(),
			min_t(u64, INT_MAX, SIZE_MAX >> PAGE_SHIFT));
}

#define TOP	(-(u64)PAGE_SIZE)	/* last page of the address space */

struct iovs_case {
	const char *name;
	u32 count;
	struct udmabuf_iovec iovs[3];
	int ret;
	unsigned long npages;
};

/* The limit is 1 MiB. */
static const struct iovs_case iovs_cases[] = {
	{ "one page", 1, { { 0, PAGE_SIZE } }, 0, 1 },
	{ "sum", 3, { { PAGE_SIZE, PAGE_SIZE }, { 0, 2 * PAGE_SIZE }, { PAGE_SIZE, PAGE_SIZE } },
	  0, 4 },
	{ "limit", 1, { { SZ_1G, SZ_1M } }, 0, SZ_1M / PAGE_SIZE },
	{ "limit in two", 2, { { 0, PAGE_SIZE }, { 0, SZ_1M - PAGE_SIZE } }, 0,
	  SZ_1M / PAGE_SIZE },
	{ "size 0", 2, { { 0, PAGE_SIZE }, { 0, 0 } }, -EINVAL },
	{ "base not aligned", 1, { { 1, PAGE_SIZE } }, -EINVAL },
	{ "size not aligned", 1, { { 0, PAGE_SIZE + 1 } }, -EINVAL },
	{ "both not aligned", 1, { { PAGE_SIZE / 2, PAGE_SIZE / 2 } }, -EINVAL },
	{ "end overflows", 1, { { TOP, 2 * PAGE_SIZE } }, -EINVAL },
	{ "end is 2^64", 1, { { TOP, PAGE_SIZE } }, -EINVAL },
	{ "above limit", 1, { { 0, SZ_1M + PAGE_SIZE } }, -E2BIG },
	{ "sum above limit", 2, { { 0, SZ_1M }, { 0, PAGE_SIZE } }, -E2BIG },
	{ "bytes overflow", 3, { { 0, 1ULL << 63 }, { 0, 1ULL << 63 }, { 0, PAGE_SIZE } }, -E2BIG },
	{ "invalid after too long", 2, { { 0, TOP }, { 1, PAGE_SIZE } }, -EINVAL },
};

KUNIT_ARRAY_PARAM_DESC(iovs, iovs_cases, name);

static void test_check_iovs(struct kunit *test)
{
	const struct iovs_case *param = test->param_value;
	struct udmabuf_source source = { .iovs = param->iovs, .count = param->count };

	size_limit_mb = 1;
	KUNIT_EXPECT_EQ(test, udmabuf_check_iovs(&source), param->ret);
	KUNIT_EXPECT_EQ(test, source.npages, param->npages);
}

struct items_case {
	const char *name;
	u32 count;
	struct {
		u64 offset, size;
	} items[3];
	int ret;
	unsigned long npages;
};

static const struct items_case items_cases[] = {
	{ "one page", 1, { { 0, PAGE_SIZE } }, 0, 1 },
	{ "sum", 3, { { PAGE_SIZE, PAGE_SIZE }, { 0, 2 * PAGE_SIZE }, { 0, PAGE_SIZE } }, 0, 4 },
	{ "one of size 0", 2, { { 0, 0 }, { 0, PAGE_SIZE } }, 0, 1 },
	{ "limit", 2, { { SZ_1G, SZ_1M - PAGE_SIZE }, { 0, PAGE_SIZE } }, 0, SZ_1M / PAGE_SIZE },
	{ "all of size 0", 2, { { 0, 0 }, { 0, 0 } }, -EINVAL },
	{ "offset not aligned", 1, { { 1, PAGE_SIZE } }, -EINVAL },
	{ "size not aligned", 1, { { 0, PAGE_SIZE + 1 } }, -EINVAL },
	{ "both not aligned", 1, { { PAGE_SIZE / 2, PAGE_SIZE / 2 } }, -EINVAL },
	{ "above limit", 1, { { 0, SZ_1M + PAGE_SIZE } }, -EINVAL },
	{ "sum above limit", 2, { { 0, SZ_1M }, { 0, PAGE_SIZE } }, -EINVAL },
	{ "bytes overflow", 3, { { 0, 1ULL << 63 }, { 0, 1ULL << 63 }, { 0, PAGE_SIZE } },
	  -EINVAL },
};

KUNIT_ARRAY_PARAM_DESC(items, items_cases, name);

static void test_check_items(struct kunit *test)
{
	const struct items_case *param = test->param_value;
	struct udmabuf_create_item items[ARRAY_SIZE(param->items)] = {};
	struct udmabuf_source source = { .items = items, .count = param->count };
	u32 i;

	for (i = 0; i < param->count; i++) {
		items[i].offset = param->items[i].offset;
		items[i].size = param->items[i].size;
	}
	size_limit_mb = 1;
	KUNIT_EXPECT_EQ(test, udmabuf_check_items(&source), param->ret);
	KUNIT_EXPECT_EQ(test, source.npages, param->npages);
}

struct range_case {
	const char *name;
	struct udmabuf_create_item items[3];
	u32 n;		/* items that form one range */
	u64 size;	/* of that range */
};

static const struct range_case range_cases[] = {
	{ "all", { { 4, 0, 0, 10 }, { 4, 0, 10, 20 }, { 4, 0, 30, 5 } }, 3, 35 },
	{ "gap", { { 4, 0, 0, 10 }, { 4, 0, 10, 20 }, { 4, 0, 31, 5 } }, 2, 30 },
	{ "other memfd", { { 4, 0, 0, 10 }, { 5, 0, 10, 20 }, { 4, 0, 10, 5 } }, 1, 10 },
	{ "size 0 first", { { 4, 0, 7, 0 }, { 4, 0, 7, 20 }, { 4, 0, 27, 5 } }, 1, 0 },
	{ "size 0 last", { { 4, 0, 0, 10 }, { 4, 0, 10, 20 }, { 4, 0, 30, 0 } }, 2, 30 },
	/* The first two have 2^64 bytes, which is size 0: the third must not follow. */
	{ "overflow", { { 4, 0, 0, 1ULL << 63 }, { 4, 0, 1ULL << 63, 1ULL << 63 }, { 4, 0, 0, 5 } },
	  2, 0 },
};

KUNIT_ARRAY_PARAM_DESC(range, range_cases, name);

static void test_count_neighbours(struct kunit *test)
{
	const struct range_case *param = test->param_value;
	u64 size;

	KUNIT_EXPECT_EQ(test, udmabuf_count_neighbours(param->items, ARRAY_SIZE(param->items),
						       &size), param->n);
	KUNIT_EXPECT_EQ(test, size, param->size);
	KUNIT_EXPECT_EQ(test, udmabuf_count_neighbours(param->items, 1, &size), 1);
}

struct ioctl_case {
	const char *name;
	unsigned int cmd;
	u32 flags, count;
	long ret;
};

/*
 * The limit is two entries. Requests within the limit fail before anything is pinned: ranges
 * of memory have size 0, EINVAL; ranges of memfds have no memfd, EBADFD.
 */
static const struct ioctl_case ioctl_cases[] = {
	{ "unknown", _IO('u', 0x41), 0, 1, -ENOTTY },
	{ "iovec: none", UDMABUF_CREATE_IOVEC, 0, 0, -EINVAL },
	{ "iovec: unknown flag", UDMABUF_CREATE_IOVEC, 4, 3, -EINVAL },
	{ "iovec: above limit", UDMABUF_CREATE_IOVEC, 3, 3, -E2BIG },
	{ "iovec: 2^32 - 1", UDMABUF_CREATE_IOVEC, 0, U32_MAX, -E2BIG },
	{ "iovec: at limit", UDMABUF_CREATE_IOVEC, 3, 2, -EINVAL },
	{ "list: none", UDMABUF_CREATE_LIST, 0, 0, -EINVAL },
	{ "list: above limit", UDMABUF_CREATE_LIST, 0, 3, -EINVAL },
	{ "list: 2^32 - 1", UDMABUF_CREATE_LIST, 0, U32_MAX, -EINVAL },
	{ "list: at limit", UDMABUF_CREATE_LIST, U32_MAX, 2, -EBADFD },
};

KUNIT_ARRAY_PARAM_DESC(ioctl, ioctl_cases, name);

static void test_ioctl(struct kunit *test)
{
	const struct ioctl_case *param = test->param_value;
	struct {
		u32 flags, count;
		struct udmabuf_create_item items[2];
	} request = { .flags = param->flags, .count = param->count };
	unsigned long addr;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(request.items) && param->cmd == UDMABUF_CREATE_LIST; i++) {
		request.items[i].memfd = U32_MAX;
		request.items[i].size = PAGE_SIZE;
	}
	addr = kunit_vm_mmap(test, NULL, 0, PAGE_SIZE, PROT_READ | PROT_WRITE,
			     MAP_ANONYMOUS | MAP_PRIVATE, 0);
	KUNIT_ASSERT_NE(test, addr, 0);
	KUNIT_ASSERT_LT(test, addr, TASK_SIZE);
	KUNIT_ASSERT_EQ(test, copy_to_user((void __user *)addr, &request, sizeof(request)), 0);
	list_limit = 2;
	KUNIT_EXPECT_EQ(test, udmabuf_ioctl(NULL, param->cmd, addr), param->ret);
}

/* The window of a page fault */

#define FAULT_BASE	SZ_1G	/* start of the VMA */

static pgoff_t fault_end(struct kunit *test, struct udmabuf_mapping *mapping,
			 pgoff_t first, pgoff_t end, pgoff_t pgoff)
{
	struct vm_area_struct *vma = kunit_kzalloc(test, sizeof(*vma), GFP_KERNEL);
	struct vm_fault vmf = {
		.vma = vma,
		.pgoff = pgoff,
		.address = FAULT_BASE + ((pgoff - first) << PAGE_SHIFT),
	};
	pgoff_t ret;

	KUNIT_ASSERT_NOT_NULL(test, vma);
	vma->vm_start = FAULT_BASE;
	vma->vm_end = FAULT_BASE + ((end - first) << PAGE_SHIFT);
	mutex_lock(&mapping->fault_lock);
	ret = udmabuf_fault_end(&vmf, mapping);
	mutex_unlock(&mapping->fault_lock);
	return ret;
}

static struct udmabuf_mapping *new_mapping(struct kunit *test, pgoff_t npages)
{
	struct udmabuf_test *ctx = test->priv;
	struct udmabuf_mapping *mapping = kunit_kzalloc(test, sizeof(*mapping), GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, mapping);
	ctx->ubuf.npages = npages;
	mapping->ubuf = &ctx->ubuf;
	mapping->fault_pages = UDMABUF_FAULT_MIN;
	mutex_init(&mapping->fault_lock);
	return mapping;
}

/* In a new mapping, a fault at page 0 is sequential. */
static void test_fault_sequential(struct kunit *test)
{
	struct udmabuf_mapping *mapping = new_mapping(test, 4096);
	pgoff_t pgoff = 0, expected = 32;

	while (expected <= 4096) {
		pgoff = fault_end(test, mapping, 0, 4096, pgoff);
		KUNIT_ASSERT_EQ(test, pgoff, expected);
		expected += min(expected, UDMABUF_FAULT_MAX);
	}
}

static void test_fault_random(struct kunit *test)
{
	struct udmabuf_mapping *mapping = new_mapping(test, 4096);

	/* The window ends at a multiple of 16 pages of the address. */
	KUNIT_EXPECT_EQ(test, fault_end(test, mapping, 0, 4096, 35), 48);
	KUNIT_EXPECT_EQ(test, fault_end(test, mapping, 0, 4096, 47), 48);
	/* sequential: 32 pages */
	KUNIT_EXPECT_EQ(test, fault_end(test, mapping, 0, 4096, 48), 64);
	KUNIT_EXPECT_EQ(test, fault_end(test, mapping, 0, 4096, 64), 128);
	/* not sequential: 16 pages again */
	KUNIT_EXPECT_EQ(test, fault_end(test, mapping, 0, 4096, 64), 80);
	/* The VMA starts at page 5 of the buffer: alignment is by address. */
	KUNIT_EXPECT_EQ(test, fault_end(test, mapping, 5, 4096, 5), 21);
	KUNIT_EXPECT_EQ(test, fault_end(test, mapping, 5, 4096, 22), 37);
}

static void test_fault_limits(struct kunit *test)
{
	struct udmabuf_mapping *mapping = new_mapping(test, 40);

	/* end of the VMA */
	KUNIT_EXPECT_EQ(test, fault_end(test, mapping, 0, 9, 3), 9);
	/* end of the buffer, in a longer VMA */
	KUNIT_EXPECT_EQ(test, fault_end(test, mapping, 0, 64, 35), 40);
	KUNIT_EXPECT_EQ(test, fault_end(test, mapping, 0, 64, 39), 40);
}

static struct kunit_case udmabuf_cases[] = {
	KUNIT_CASE(test_extent_end),
	KUNIT_CASE(test_find_extent),
	KUNIT_CASE(test_extent_page),
	KUNIT_CASE(test_store_extent),
	KUNIT_CASE(test_reserve_extent),
	KUNIT_CASE(test_trim_extents),
	KUNIT_CASE(test_append),
	KUNIT_CASE(test_append_tail),
	KUNIT_CASE_PARAM(test_add_checked, batch_gen_params),
	KUNIT_CASE_PARAM(test_set_segs, segs_gen_params),
	KUNIT_CASE(test_max_cuts),
	KUNIT_CASE(test_fill_segs),
	KUNIT_CASE(test_max_segs),
	KUNIT_CASE(test_seg_limits),
	KUNIT_CASE(test_new_map),
	KUNIT_CASE(test_new_map_refused),
	KUNIT_CASE(test_max_npages),
	KUNIT_CASE_PARAM(test_check_iovs, iovs_gen_params),
	KUNIT_CASE_PARAM(test_check_items, items_gen_params),
	KUNIT_CASE_PARAM(test_count_neighbours, range_gen_params),
	KUNIT_CASE_PARAM(test_ioctl, ioctl_gen_params),
	KUNIT_CASE(test_fault_sequential),
	KUNIT_CASE(test_fault_random),
	KUNIT_CASE(test_fault_limits),
	{}
};

static struct kunit_suite udmabuf_test_suite = {
	.name = "udmabuf",
	.init = test_init,
	.exit = test_exit,
	.test_cases = udmabuf_cases,
};

kunit_test_suite(udmabuf_test_suite);
