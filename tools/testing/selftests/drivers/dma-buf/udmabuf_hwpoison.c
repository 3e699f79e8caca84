// SPDX-License-Identifier: GPL-2.0
/*
 * Memory failures: before the create, while the buffer is mapped, while a
 * device or the kernel maps it. A page known to have failed is not handed out,
 * all other pages stay usable, and all pages are released in the end.
 * udmabuf_mmap and udmabuf_hugemap also test page faults.
 */
#include "udmabuf_test.h"

#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE 101
#endif

FIXTURE(hwpoison) {
	struct session session;
	int dev;
	int fd;			/* of the memory, if made of a file */
	char *mem;
	size_t len;
	size_t page;
	size_t bad;		/* offset of the memory that fails */
	size_t bad_len;
	char *seen;
};

FIXTURE_VARIANT(hwpoison) {
	enum mem_kind kind;
	bool file;
};

FIXTURE_VARIANT_ADD(hwpoison, anon) { .kind = MEM_ANON };
FIXTURE_VARIANT_ADD(hwpoison, thp) { .kind = MEM_THP };
FIXTURE_VARIANT_ADD(hwpoison, hugetlb) { .kind = MEM_HUGETLB };
FIXTURE_VARIANT_ADD(hwpoison, memfd) { .kind = MEM_MEMFD };
FIXTURE_VARIANT_ADD(hwpoison, memfd_by_fd) { .kind = MEM_MEMFD, .file = true };
FIXTURE_VARIANT_ADD(hwpoison, hugetlb_by_fd) { .kind = MEM_HUGETLB, .file = true };

static struct mem file_memory(enum mem_kind kind, size_t len, int *fd)
{
	struct mem mem = { .len = len };

	if (kind == MEM_HUGETLB)
		hugetlb_provide(2 * len);
	*fd = sealed_memfd(len, kind == MEM_HUGETLB ? MFD_HUGETLB : 0, F_SEAL_SHRINK);
	mem.addr = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	if (mem.addr == MAP_FAILED)
		mem.why_not = "no memfds of this kind here";
	return mem;
}

/* The failure is in the second of two huge pages, or among small pages. */
FIXTURE_SETUP(hwpoison)
{
	bool hugetlb = variant->kind == MEM_HUGETLB;
	size_t len = mem_len(variant->kind);
	struct mem mem;

	SESSION_OPEN(&self->session);
	SKIP_WITHOUT_IMPORTER();
	self->dev = self->session.dev;
	mem = variant->file ? file_memory(variant->kind, len, &self->fd) :
			      mem_get(variant->kind, len);
	if (mem.why_not)
		SKIP(return, "%s", mem.why_not);
	self->mem = mem.addr;
	self->len = len;
	self->page = page_size();
	self->bad = hugetlb ? len / 2 : len / 2 + 7 * self->page;
	self->bad_len = hugetlb ? len / 2 : self->page;
	self->seen = malloc(len);
	fill(self->mem, self->len, 1);
}

FIXTURE_TEARDOWN(hwpoison)
{
	free(self->seen);
	if (self->mem)
		munmap(self->mem, self->len);
	SESSION_CLOSE(&self->session);
}

static int try_create(const struct _test_data_hwpoison *self, bool file, __u32 flags, size_t len)
{
	if (file)
		return _create_memfd(self->dev, 0, self->fd, 0, len);
	return _create_one(self->dev, flags, self->mem, len);
}

#define test_buffer()							\
	({								\
		int __buf = try_create(self, variant->file, 0, self->len); \
		ASSERT_LE(0, __buf) TH_LOG("create: %s", strerror(errno)); \
		__buf;							\
	})

/*
 * Does @addr show the bytes of fill() with @seed, except in the failed memory?
 */
static bool good_part_is(const struct _test_data_hwpoison *self, const char *addr, __u64 seed)
{
	size_t end = self->bad + self->bad_len;

	return filled_until(addr, self->bad, seed, 0) == -1 &&
	       filled_until(addr + end, self->len - end, seed, end) == -1;
}

TEST_F(hwpoison, before_create)
{
	POISON(self->mem + self->bad);
	EXPECT_ERRNO(EFAULT, try_create(self, variant->file, 0, self->len));
	if (!kernel_before(6, 2))
		EXPECT_ERRNO(EFAULT, try_create(self, variant->file, UDMABUF_FLAGS_RDONLY,
						self->len));
	EXPECT_NOTHING_KEPT(&self->session);
	/*
	 * Before 6.7 the page cache counts hugetlb offsets in huge pages: the
	 * failed page may seem to be in the range.
	 */
	if (variant->file && variant->kind == MEM_HUGETLB && kernel_before(6, 7))
		return;
	EXPECT_LE(0, try_create(self, variant->file, 0, self->bad))
			TH_LOG("create without the failed page: %s", strerror(errno));
}

/* The kernel copies from and to user space through a mapping of the buffer. */
TEST_F(hwpoison, copies_by_the_kernel_stop_there)
{
	int buf = test_buffer(), pipes[2];
	char *map = test_map_buf(buf, self->len, PROT_READ | PROT_WRITE);

	ASSERT_EQ(0, pipe(pipes));
	POISON(self->mem + self->bad);
	EXPECT_ERRNO(EFAULT, write(pipes[1], map + self->bad, 16));
	EXPECT_EQ(16, write(pipes[1], map + self->bad - 16, 16));
	EXPECT_ERRNO(EFAULT, read(pipes[0], map + self->bad, 16));
	EXPECT_EQ(16, read(pipes[0], map + self->bad - 16, 16));
	EXPECT_TRUE(good_part_is(self, map, 1));
}

/*
 * Existing page table entries stay, since the kernel's failure handling does
 * not find them. After a real failure a load traps, and SIGBUS kills the
 * process.
 */
TEST_F(hwpoison, under_a_mapping)
{
	int buf = test_buffer();
	char *map = test_map_buf(buf, self->len, PROT_READ | PROT_WRITE);
	char *again;

	EXPECT_FILLED(map, self->len, 1);
	POISON(self->mem + self->bad);
	EXPECT_ERRNO(EFAULT, try_create(self, variant->file, 0, self->len));
	fault_signal(map + self->bad, false);
	fault_signal(map + self->bad, true);
	EXPECT_TRUE(good_part_is(self, map, 1));
	again = test_map_buf(buf, self->len, PROT_READ | PROT_WRITE);
	EXPECT_EQ(SIGBUS, fault_signal(again + self->bad, false));
	EXPECT_EQ(SIGBUS, fault_signal(again + self->bad, true));
	EXPECT_TRUE(good_part_is(self, again, 1));
	munmap(map + self->bad, self->bad_len);
	ASSERT_EQ((void *)(map + self->bad),
		  mmap(map + self->bad, self->bad_len, PROT_READ, MAP_SHARED | MAP_FIXED,
		       buf, self->bad));
	EXPECT_EQ(SIGBUS, fault_signal(map + self->bad, false));
}

/*
 * The device keeps its map. New maps fail, and so do syncs, which would copy.
 */
TEST_F(hwpoison, while_a_device_maps_it)
{
	int buf = test_buffer();
	int imp = test_attach(buf, 0, 0), other = test_attach(buf, 0, 0);
	struct udmabuf_importer_map map = test_map(imp, IMPORTER_BIDIRECTIONAL);
	size_t end = self->bad + self->bad_len;

	POISON(self->mem + self->bad);
	test_err_map(EHWPOISON, imp, IMPORTER_BIDIRECTIONAL);
	test_err_map(EHWPOISON, imp, IMPORTER_TO_DEVICE);
	test_err_map(EHWPOISON, other, IMPORTER_FROM_DEVICE);
	test_err_sync_cpu(EHWPOISON, buf, SYNC_START(RW));
	test_err_sync_cpu(EHWPOISON, buf, SYNC_END(RW));

	test_device_read(imp, map.handle, 0, self->seen, self->bad);
	EXPECT_EQ(-1, filled_until(self->seen, self->bad, 1, 0));
	if (end < self->len)
		test_device_write(imp, map.handle, end, self->seen, self->len - end);
	test_unmap(imp, map.handle);

	/* No map is left that could be synced. */
	test_sync_cpu(buf, SYNC_START(RW));
	test_sync_cpu(buf, SYNC_END(RW));
	test_err_map(EHWPOISON, imp, IMPORTER_TO_DEVICE);
}

/*
 * A later vmap has other memory in place of the failed page: loads are fatal.
 */
TEST_F(hwpoison, in_a_kernel_mapping)
{
	int buf = test_buffer();
	char *map = test_map_buf(buf, self->len, PROT_READ);
	int imp = test_attach(buf, 0, 0);

	EXPECT_FILLED(map, self->len, 1);
	test_vmap(imp);
	POISON(self->mem + self->bad);
	test_vread(imp, 0, self->seen, self->bad);
	EXPECT_EQ(-1, filled_until(self->seen, self->bad, 1, 0));
	test_vunmap(imp);

	test_vmap(imp);
	test_vread(imp, 0, self->seen, self->len);
	EXPECT_TRUE(good_part_is(self, self->seen, 1));
	EXPECT_EQ(0, self->seen[self->bad]);
	EXPECT_EQ(0, memcmp(self->seen + self->bad, self->seen + self->bad + 1,
			    self->bad_len - 1));
	fill(self->seen, self->len, 2);
	test_vwrite(imp, 0, self->seen, self->len);
	EXPECT_TRUE(good_part_is(self, map, 2));
	if (!fault_signal(map + self->bad, false))
		EXPECT_EQ(-1, filled_until(map + self->bad, self->bad_len, 1, self->bad));
	test_vunmap(imp);
}

/* The first vmap follows the failure. */
TEST_F(hwpoison, before_a_kernel_mapping)
{
	int imp = test_attach(test_buffer(), 0, 0);

	POISON(self->mem + self->bad);
	test_vmap(imp);
	test_vread(imp, 0, self->seen, self->len);
	EXPECT_TRUE(good_part_is(self, self->seen, 1));
	EXPECT_EQ(0, self->seen[self->bad]);
}

/*
 * A buffer without the failed page works, even with all other pages of its huge
 * page.
 */
TEST_F(hwpoison, beside_the_buffer)
{
	size_t end = self->bad + self->bad_len, len = self->len - self->bad_len;
	struct udmabuf_iovec iovs[] = {
		{ to_u64(self->mem), self->bad },
		{ to_u64(self->mem + end), self->len - end },
	};
	struct udmabuf_create_item items[] = {
		{ .memfd = self->fd, .size = self->bad },
		{ .memfd = self->fd, .offset = end, .size = self->len - end },
	};
	unsigned int n = end < self->len ? 2 : 1;
	int buf = variant->file ? test_create_list(self->dev, 0, items, n) :
				  test_create(self->dev, 0, iovs, n);
	int imp = test_attach(buf, 0, 0);
	char *map;

	POISON(self->mem + self->bad);
	test_map(imp, IMPORTER_BIDIRECTIONAL);
	test_sync_cpu(buf, SYNC_START(RW));
	test_sync_cpu(buf, SYNC_END(RW));
	test_vmap(imp);
	fill(self->seen, len, 2);
	test_vwrite(imp, 0, self->seen, len);
	map = test_map_buf(buf, len, PROT_READ);
	EXPECT_FILLED(map, len, 2);
}

/*
 * Soft offline migrates a page with many corrected errors, but no pinned page.
 */
TEST_F(hwpoison, soft_offline_is_refused)
{
	int buf = test_buffer();
	char *map = test_map_buf(buf, self->len, PROT_READ | PROT_WRITE);
	__u64 frame = page_frame(self->mem + self->bad);

	EXPECT_EQ(-1, madvise(self->mem + self->bad, self->page, MADV_SOFT_OFFLINE));
	if (errno == EINVAL)
		SKIP(return, "no MADV_HWPOISON: %s", strerror(errno));
	EXPECT_EQ(EBUSY, errno);
	EXPECT_EQ(frame, page_frame(self->mem + self->bad));
	fill(map, self->len, 2);
	EXPECT_FILLED(self->mem, self->len, 2);
	test_map(test_attach(buf, 0, 0), IMPORTER_BIDIRECTIONAL);
}

TEST_HARNESS_MAIN
