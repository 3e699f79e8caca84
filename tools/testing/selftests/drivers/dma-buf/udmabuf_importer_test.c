// SPDX-License-Identifier: GPL-2.0
/*
 * Bytes, segments and fences as devices see them, through the test importer.
 *
 * With swiotlb=force on the kernel command line every device has a bounce
 * buffer, whose bytes equal the memory's only after a sync. The tests then also
 * expect that stores are not visible before the sync.
 */
#include <pthread.h>

#include "udmabuf_test.h"

FIXTURE(device) {
	struct session session;
	int dev;
	char *mem;
	size_t len;
	struct udmabuf_iovec iovs[4096];	/* entries of the buffer */
	char *seen;
	int buf;
	int imp;
};

FIXTURE_VARIANT(device) {
	enum mem_kind kind;
	bool shuffled;
};

FIXTURE_VARIANT_ADD(device, anon) { .kind = MEM_ANON };
FIXTURE_VARIANT_ADD(device, anon_shuffled) { .kind = MEM_ANON, .shuffled = true };
FIXTURE_VARIANT_ADD(device, thp) { .kind = MEM_THP };
FIXTURE_VARIANT_ADD(device, thp_shuffled) { .kind = MEM_THP, .shuffled = true };
FIXTURE_VARIANT_ADD(device, memfd) { .kind = MEM_MEMFD };
FIXTURE_VARIANT_ADD(device, hugetlb) { .kind = MEM_HUGETLB };

/* The page of the memory that is page @i of the buffer. */
static size_t source_page(size_t i, size_t npages, bool shuffled)
{
	return shuffled ? i * 7 % npages : i;
}

static char *source(const struct _test_data_device *self, bool shuffled, size_t i)
{
	return self->mem + source_page(i, self->len / page_size(), shuffled) * page_size();
}

/* Fill the memory so that the buffer has the bytes of fill() with @seed. */
static void fill_source(const struct _test_data_device *self, bool shuffled, __u64 seed)
{
	size_t i, word;

	for (i = 0; i < self->len / page_size(); i++) {
		__u64 *page = (__u64 *)source(self, shuffled, i);

		for (word = 0; word < page_size() / 8; word++)
			page[word] = stamp(seed, i * page_size() + word * 8);
	}
}

/* The first page of the buffer that fill() with @seed would change, or -1. */
static long source_filled_until(const struct _test_data_device *self, bool shuffled, __u64 seed)
{
	size_t i;

	for (i = 0; i < self->len / page_size(); i++)
		if (filled_until(source(self, shuffled, i), page_size(), seed,
				 i * page_size()) != -1)
			return i;
	return -1;
}

#define EXPECT_SOURCE_FILLED(seed)					\
	EXPECT_EQ(-1, source_filled_until(self, variant->shuffled, seed))

FIXTURE_SETUP(device)
{
	size_t i, npages;
	struct mem mem;

	SESSION_OPEN(&self->session);
	SKIP_WITHOUT_IMPORTER();
	self->dev = self->session.dev;
	mem = mem_get(variant->kind, mem_len(variant->kind));
	if (mem.why_not)
		SKIP(return, "%s", mem.why_not);
	self->mem = mem.addr;
	self->len = mem.len;
	self->seen = calloc(1, self->len);
	npages = self->len / page_size();
	for (i = 0; i < npages; i++) {
		self->iovs[i].base = to_u64(source(self, variant->shuffled, i));
		self->iovs[i].len = page_size();
	}
	fill_source(self, variant->shuffled, 1);
	self->buf = test_create(self->dev, 0, self->iovs, npages);
	self->imp = test_attach(self->buf, 0, 0);
}

FIXTURE_TEARDOWN(device)
{
	SESSION_CLOSE(&self->session);
}

/* Expect that the device reads the bytes of fill() with @seed. */
#define EXPECT_DEVICE_SEES(imp, map, seed)				\
	do {								\
		test_device_read(imp, (map).handle, 0, self->seen, self->len); \
		EXPECT_FILLED(self->seen, self->len, seed);		\
	} while (0)

TEST_F(device, closing_the_importer_gives_everything_up)
{
	test_map(self->imp, IMPORTER_BIDIRECTIONAL);
	test_map(self->imp, IMPORTER_TO_DEVICE);
	test_vmap(self->imp);
}

TEST_F(device, to_device)
{
	struct udmabuf_importer_map map = test_map(self->imp, IMPORTER_TO_DEVICE);

	EXPECT_EQ(self->len, map.bytes);
	EXPECT_DEVICE_SEES(self->imp, map, 1);
	test_unmap(self->imp, map.handle);
	EXPECT_SOURCE_FILLED(1);
}

/* Guards against DMA_ATTR_SKIP_CPU_SYNC at unmap, which loses bounced bytes. */
TEST_F(device, from_device)
{
	struct udmabuf_importer_map map = test_map(self->imp, IMPORTER_FROM_DEVICE);

	fill(self->seen, self->len, 2);
	test_device_write(self->imp, map.handle, 0, self->seen, self->len);
	test_unmap(self->imp, map.handle);
	EXPECT_SOURCE_FILLED(2);
}

TEST_F(device, both_ways)
{
	struct udmabuf_importer_map map = test_map(self->imp, IMPORTER_BIDIRECTIONAL);

	EXPECT_DEVICE_SEES(self->imp, map, 1);
	fill(self->seen, self->len, 2);
	test_device_write(self->imp, map.handle, 0, self->seen, self->len);
	test_unmap(self->imp, map.handle);
	EXPECT_SOURCE_FILLED(2);
}

/*
 * CPU stores reach the device at SYNC END, and with a bounce buffer not before.
 * Guards against mainline's sync of the wrong device, and against no sync.
 */
TEST_F(device, cpu_stores_reach_it_at_sync_end)
{
	struct udmabuf_importer_map map = test_map(self->imp, IMPORTER_TO_DEVICE);

	test_sync_cpu(self->buf, SYNC_START(WRITE));
	fill_source(self, variant->shuffled, 2);
	if (swiotlb_forced())
		EXPECT_DEVICE_SEES(self->imp, map, 1);
	test_sync_cpu(self->buf, SYNC_END(WRITE));
	EXPECT_DEVICE_SEES(self->imp, map, 2);
}

TEST_F(device, its_stores_reach_the_cpu_at_sync_start)
{
	struct udmabuf_importer_map map = test_map(self->imp, IMPORTER_FROM_DEVICE);

	fill(self->seen, self->len, 2);
	test_device_write(self->imp, map.handle, 0, self->seen, self->len);
	if (swiotlb_forced())
		EXPECT_SOURCE_FILLED(1);
	test_sync_cpu(self->buf, SYNC_START(READ));
	EXPECT_SOURCE_FILLED(2);
	test_sync_cpu(self->buf, SYNC_END(READ));
}

TEST_F(device, cpu_and_device_take_turns)
{
	struct udmabuf_importer_map map = test_map(self->imp, IMPORTER_BIDIRECTIONAL);
	__u64 turn;

	for (turn = 2; turn < 6; turn += 2) {
		test_sync_cpu(self->buf, SYNC_START(RW));
		fill_source(self, variant->shuffled, turn);
		test_sync_cpu(self->buf, SYNC_END(RW));
		EXPECT_DEVICE_SEES(self->imp, map, turn);
		fill(self->seen, self->len, turn + 1);
		test_device_write(self->imp, map.handle, 0, self->seen, self->len);
		test_sync_cpu(self->buf, SYNC_START(RW));
		EXPECT_SOURCE_FILLED(turn + 1);
		test_sync_cpu(self->buf, SYNC_END(RW));
	}
}

static long synced(const char *for_whom)
{
	char path[96];

	snprintf(path, sizeof(path), "/sys/module/udmabuf_importer/parameters/synced_for_%s",
		 for_whom);
	return text_number(path, "");
}

/* For non-coherent devices the whole buffer is synced, at START or END. */
TEST_F(device, caches_are_synced)
{
	__u32 dirs[] = { IMPORTER_BIDIRECTIONAL, IMPORTER_TO_DEVICE, IMPORTER_FROM_DEVICE }, i;

	if (synced("cpu") < 0)
		SKIP(return, "all devices of this machine look into the CPU's caches");
	for (i = 0; i < ARRAY_SIZE(dirs); i++) {
		long device = synced("device"), cpu = synced("cpu");
		struct udmabuf_importer_map map = test_map(self->imp, dirs[i]);
		long for_cpu = dirs[i] == IMPORTER_TO_DEVICE ? 0 : self->len;

		EXPECT_EQ(device += self->len, synced("device"));
		test_sync_cpu(self->buf, SYNC_START(RW));
		EXPECT_EQ(cpu += for_cpu, synced("cpu"));
		EXPECT_EQ(device, synced("device"));
		test_sync_cpu(self->buf, SYNC_END(RW));
		EXPECT_EQ(cpu, synced("cpu"));
		EXPECT_EQ(device + (long)self->len, synced("device"));
		test_unmap(self->imp, map.handle);
	}
}

/* Importers that begin and end CPU access from within the kernel */
TEST_F(device, kernel_side_cpu_access)
{
	struct udmabuf_importer_map map = test_map(self->imp, IMPORTER_BIDIRECTIONAL);

	test_cpu_begin(self->imp, IMPORTER_BIDIRECTIONAL);
	fill_source(self, variant->shuffled, 2);
	test_cpu_end(self->imp, IMPORTER_BIDIRECTIONAL);
	EXPECT_DEVICE_SEES(self->imp, map, 2);
}

TEST_F(device, kernel_mapping)
{
	test_vmap(self->imp);
	test_vread(self->imp, 0, self->seen, self->len);
	EXPECT_FILLED(self->seen, self->len, 1);
	fill(self->seen, self->len, 2);
	test_vwrite(self->imp, 0, self->seen, self->len);
	EXPECT_SOURCE_FILLED(2);
	test_vwrite(self->imp, 3 * page_size() - 2, "1234", 4);
	EXPECT_EQ('2', source(self, variant->shuffled, 2)[page_size() - 1]);
	EXPECT_EQ('3', source(self, variant->shuffled, 3)[0]);
	test_vunmap(self->imp);
}

/*
 * The number of the driver's vmap areas; -1 if /proc/vmallocinfo is not
 * readable.
 */
static long vmap_areas(void)
{
	static char text[1 << 20];
	long areas = 0;
	char *line;

	if (read_text("/proc/vmallocinfo", text, sizeof(text)) <= 0)
		return -1;
	for (line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
		areas += strstr(line, " udmabuf_") && strstr(line, " vmap");
	return areas;
}

/*
 * The core shares one vmap among all importers and frees it after the last
 * vunmap.
 */
TEST_F(device, kernel_mapping_is_shared)
{
	int other = test_attach(self->buf, 0, 0);
	char byte;

	test_vmap(self->imp);
	test_vmap(other);
	EXPECT_EQ(1, vmap_areas());
	test_vunmap(self->imp);
	EXPECT_EQ(1, vmap_areas());
	test_vwrite(other, 1, "x", 1);
	test_sync_cpu(self->buf, SYNC_START(RW));
	test_sync_cpu(self->buf, SYNC_END(RW));
	test_vmap(self->imp);
	test_vread(self->imp, 1, &byte, 1);
	EXPECT_EQ('x', byte);
	EXPECT_EQ('x', source(self, variant->shuffled, 0)[1]);
}

/*
 * A vmap made after an earlier one was freed shows the memory's current bytes.
 */
TEST_F(device, kernel_mapping_again)
{
	int other = test_attach(self->buf, 0, 0);

	test_vmap(self->imp);
	test_vread(self->imp, 0, self->seen, self->len);
	EXPECT_FILLED(self->seen, self->len, 1);
	test_vunmap(self->imp);
	fill_source(self, variant->shuffled, 2);
	test_vmap(self->imp);
	test_vread(self->imp, 0, self->seen, self->len);
	EXPECT_FILLED(self->seen, self->len, 2);
	close(self->imp);
	fill_source(self, variant->shuffled, 3);
	test_vmap(other);
	test_vread(other, 0, self->seen, self->len);
	EXPECT_FILLED(self->seen, self->len, 3);
	fill(self->seen, self->len, 4);
	test_vwrite(other, 0, self->seen, self->len);
	test_vunmap(other);
	EXPECT_SOURCE_FILLED(4);
}

/*
 * Guards against keeping the vmap for the next importer: its page tables and
 * vmalloc space are charged to no user.
 */
TEST_F(device, kernel_mapping_ends_with_its_last_user)
{
	int other = test_attach(self->buf, 0, 0);

	test_vmap(self->imp);
	test_vmap(other);
	test_vunmap(self->imp);
	close(other);
	EXPECT_EQ(0, vmap_areas());
	test_vmap(self->imp);
	EXPECT_EQ(1, vmap_areas());
	close(self->imp);
	EXPECT_EQ(0, vmap_areas());
}

TEST_F(device, kernel_mapping_outlives_fd_and_memory)
{
	test_vmap(self->imp);
	close(self->buf);
	munmap(self->mem, self->len);
	test_vread(self->imp, 0, self->seen, self->len);
	EXPECT_FILLED(self->seen, self->len, 1);
	close(self->imp);
	EXPECT_NOTHING_KEPT(&self->session);
	EXPECT_EQ(0, vmap_areas());
}

/*
 * 256 MiB, more than the vmalloc space of a 32-bit kernel. Guards against
 * offering a vmap that must fail: the core warns of that.
 */
TEST_F(device, kernel_mapping_of_much)
{
	size_t niov = (256UL << 20) / self->len;
	struct udmabuf_iovec *iovs = calloc(niov, sizeof(*iovs));
	char last[8] = {};
	int imp;

	make_entries(iovs, niov, self->mem, self->len, 0);
	imp = test_attach(test_create(self->dev, 0, iovs, niov), 0, 0);
	if (_vmap(imp)) {
		EXPECT_EQ(EINVAL, errno);
		EXPECT_TRUE(kernel_is_32bit());
		return;
	}
	test_vread(imp, niov * self->len - 8, last, 8);
	EXPECT_EQ(0, memcmp(last, self->mem + self->len - 8, 8));
}

TEST_F(device, mapping_through_the_importer)
{
	char *map = test_map_buf(self->imp, self->len, PROT_READ | PROT_WRITE);
	char *piece = _map_buf(self->imp, page_size(), PROT_READ, 3 * page_size());

	EXPECT_FILLED(map, self->len, 1);
	fill(map, self->len, 2);
	EXPECT_SOURCE_FILLED(2);
	ASSERT_NE(MAP_FAILED, (void *)piece);
	EXPECT_EQ(-1, filled_until(piece, page_size(), 2, 3 * page_size()));
	test_err_map_buf(EINVAL, self->imp, self->len + page_size(), PROT_READ, 0);
	EXPECT_ERRNO(EINVAL, (long)mmap(NULL, self->len, PROT_READ | PROT_WRITE, MAP_PRIVATE,
					self->imp, 0));
}

/* The importer's references keep the buffer alive, like an fd. */
TEST_F(device, buffer_outlives_fd_and_memory)
{
	struct udmabuf_importer_map map;

	close(self->buf);
	munmap(self->mem, self->len);
	map = test_map(self->imp, IMPORTER_BIDIRECTIONAL);
	EXPECT_DEVICE_SEES(self->imp, map, 1);
	EXPECT_NE(self->session.before.pinned, pinned_pages());
	test_unmap(self->imp, map.handle);
	test_detach(self->imp);
	EXPECT_NOTHING_KEPT(&self->session);
}

/* Several maps at once */

/*
 * Guards against one sg_table for all maps. Each map has its own, and every map
 * is synced.
 */
TEST_F(device, two_maps_of_one_attachment)
{
	struct udmabuf_importer_map one = test_map(self->imp, IMPORTER_TO_DEVICE);
	struct udmabuf_importer_map two = test_map(self->imp, IMPORTER_TO_DEVICE);

	EXPECT_NE(one.handle, two.handle);
	test_sync_cpu(self->buf, SYNC_START(WRITE));
	fill_source(self, variant->shuffled, 2);
	test_sync_cpu(self->buf, SYNC_END(WRITE));
	EXPECT_DEVICE_SEES(self->imp, one, 2);
	EXPECT_DEVICE_SEES(self->imp, two, 2);
	test_unmap(self->imp, one.handle);
	test_sync_cpu(self->buf, SYNC_START(WRITE));
	fill_source(self, variant->shuffled, 3);
	test_sync_cpu(self->buf, SYNC_END(WRITE));
	EXPECT_DEVICE_SEES(self->imp, two, 3);
}

TEST_F(device, two_importers_with_different_limits)
{
	int other = test_attach(self->buf, 0xffffffff, page_size());
	struct udmabuf_importer_map one = test_map(self->imp, IMPORTER_TO_DEVICE);
	struct udmabuf_importer_map two = test_map(other, IMPORTER_TO_DEVICE);

	EXPECT_EQ(self->len, one.bytes);
	EXPECT_EQ(self->len, two.bytes);
	EXPECT_EQ(page_size(), two.longest);
	test_sync_cpu(self->buf, SYNC_START(WRITE));
	fill_source(self, variant->shuffled, 2);
	test_sync_cpu(self->buf, SYNC_END(WRITE));
	EXPECT_DEVICE_SEES(self->imp, one, 2);
	EXPECT_DEVICE_SEES(other, two, 2);
	close(self->imp);
	test_sync_cpu(self->buf, SYNC_START(WRITE));
	fill_source(self, variant->shuffled, 3);
	test_sync_cpu(self->buf, SYNC_END(WRITE));
	EXPECT_DEVICE_SEES(other, two, 3);
}

/*
 * A device that mapped the buffer DMA_BIDIRECTIONAL may have written or not.
 * Its bounce buffer must not overwrite the bytes of a DMA_FROM_DEVICE map.
 */
TEST_F(device, writing_device_wins_over_one_that_may_write)
{
	struct udmabuf_importer_map from, both = {};
	int other = test_attach(self->buf, 0, 0), turn;

	for (turn = 0; turn < 2; turn++) {
		if (turn)
			both = test_map(other, IMPORTER_BIDIRECTIONAL);
		from = test_map(self->imp, IMPORTER_FROM_DEVICE);
		if (!turn)
			both = test_map(other, IMPORTER_BIDIRECTIONAL);
		fill(self->seen, self->len, 2 + turn);
		test_device_write(self->imp, from.handle, 0, self->seen, self->len);
		test_sync_cpu(self->buf, SYNC_START(READ));
		EXPECT_SOURCE_FILLED(2 + turn);
		test_sync_cpu(self->buf, SYNC_END(READ));
		test_unmap(other, both.handle);
		test_unmap(self->imp, from.handle);
	}
}

/*
 * The bytes of a DMA_FROM_DEVICE map must survive its unmap, even while another
 * device has the buffer mapped DMA_BIDIRECTIONAL.
 */
TEST_F(device, what_a_device_wrote_outlives_its_map)
{
	struct udmabuf_importer_map from, both;
	int other = test_attach(self->buf, 0, 0), turn;

	for (turn = 0; turn < 2; turn++) {
		both = test_map(other, IMPORTER_BIDIRECTIONAL);
		from = test_map(self->imp, IMPORTER_FROM_DEVICE);
		fill(self->seen, self->len, 2 + turn);
		test_device_write(self->imp, from.handle, 0, self->seen, self->len);
		if (turn) {
			test_sync_cpu(self->buf, SYNC_START(READ));
			test_sync_cpu(self->buf, SYNC_END(READ));
		}
		test_unmap(self->imp, from.handle);
		test_sync_cpu(self->buf, SYNC_START(READ));
		EXPECT_SOURCE_FILLED(2 + turn);
		test_sync_cpu(self->buf, SYNC_END(READ));
		test_unmap(other, both.handle);
		EXPECT_SOURCE_FILLED(2 + turn);
	}
}

/*
 * The END of an access that only reads must not overwrite bytes that the device
 * wrote after START.
 */
TEST_F(device, writes_while_the_cpu_reads)
{
	struct udmabuf_importer_map map = test_map(self->imp, IMPORTER_BIDIRECTIONAL);

	test_sync_cpu(self->buf, SYNC_START(READ));
	fill(self->seen, self->len, 2);
	test_device_write(self->imp, map.handle, 0, self->seen, self->len);
	test_sync_cpu(self->buf, SYNC_END(READ));
	fill(self->seen, self->len, 0);
	test_device_read(self->imp, map.handle, 0, self->seen, self->len);
	EXPECT_FILLED(self->seen, self->len, 2);
	test_sync_cpu(self->buf, SYNC_START(READ));
	EXPECT_SOURCE_FILLED(2);
	test_sync_cpu(self->buf, SYNC_END(READ));
	test_unmap(self->imp, map.handle);
}

/* One device writes, the CPU accesses the buffer, then another device reads. */
TEST_F(device, from_one_device_to_another)
{
	int other = test_attach(self->buf, 0, 0);
	struct udmabuf_importer_map from = test_map(self->imp, IMPORTER_FROM_DEVICE);
	struct udmabuf_importer_map to = test_map(other, IMPORTER_TO_DEVICE);

	fill(self->seen, self->len, 2);
	test_device_write(self->imp, from.handle, 0, self->seen, self->len);
	test_sync_cpu(self->buf, SYNC_START(RW));
	EXPECT_SOURCE_FILLED(2);
	test_sync_cpu(self->buf, SYNC_END(RW));
	EXPECT_DEVICE_SEES(other, to, 2);
}

/*
 * Guards against a sync in the caller's direction. A map has one direction. A
 * sync in the other one would replace later CPU stores by the bounce buffer's
 * old bytes.
 */
TEST_F(device, sync_for_reading_leaves_a_map_to_the_device_alone)
{
	struct udmabuf_importer_map map = test_map(self->imp, IMPORTER_TO_DEVICE);

	fill_source(self, variant->shuffled, 2);
	test_sync_cpu(self->buf, SYNC_START(READ));
	EXPECT_SOURCE_FILLED(2);
	test_sync_cpu(self->buf, SYNC_END(READ));
	EXPECT_SOURCE_FILLED(2);
	EXPECT_DEVICE_SEES(self->imp, map, 2);
	test_unmap(self->imp, map.handle);
	EXPECT_SOURCE_FILLED(2);
}

TEST_F(device, sync_for_writing_leaves_a_map_from_the_device_alone)
{
	struct udmabuf_importer_map map = test_map(self->imp, IMPORTER_FROM_DEVICE);

	fill(self->seen, self->len, 2);
	test_sync_cpu(self->buf, SYNC_START(WRITE));
	test_device_write(self->imp, map.handle, 0, self->seen, self->len);
	test_sync_cpu(self->buf, SYNC_END(WRITE));
	test_unmap(self->imp, map.handle);
	EXPECT_SOURCE_FILLED(2);
}

/*
 * Bytes that the device wrote must survive a CPU store elsewhere in the buffer.
 */
TEST_F(device, cpu_store_keeps_what_the_device_wrote)
{
	struct udmabuf_importer_map map = test_map(self->imp, IMPORTER_BIDIRECTIONAL);

	fill(self->seen, self->len, 2);
	test_device_write(self->imp, map.handle, 0, self->seen, self->len);
	test_sync_cpu(self->buf, SYNC_START(WRITE));
	*(__u64 *)source(self, variant->shuffled, 1) = stamp(2, page_size());
	test_sync_cpu(self->buf, SYNC_END(WRITE));
	EXPECT_DEVICE_SEES(self->imp, map, 2);
	test_unmap(self->imp, map.handle);
	EXPECT_SOURCE_FILLED(2);
}

/* Mainline's driver returns EINVAL. */
TEST_F(device, sync_end_without_start)
{
	struct udmabuf_importer_map map = test_map(self->imp, IMPORTER_TO_DEVICE);

	fill_source(self, variant->shuffled, 2);
	test_sync_cpu(self->buf, SYNC_END(WRITE));
	EXPECT_DEVICE_SEES(self->imp, map, 2);
}

/*
 * A sync does nothing if no importer has the buffer mapped. Guards the count of
 * maps: a map made after others were unmapped must be synced.
 */
TEST_F(device, sync_after_others_have_come_and_gone)
{
	int other = test_attach(self->buf, 0, 0);
	struct udmabuf_importer_map one, two;
	__u64 turn;

	for (turn = 2; turn < 8; turn += 2) {
		one = test_map(self->imp, IMPORTER_TO_DEVICE);
		test_vmap(other);
		two = test_map(other, IMPORTER_FROM_DEVICE);
		test_unmap(self->imp, one.handle);
		test_vunmap(other);
		test_unmap(other, two.handle);
		test_sync_cpu(self->buf, SYNC_START(RW));
		fill_source(self, variant->shuffled, turn);
		test_sync_cpu(self->buf, SYNC_END(RW));
		EXPECT_SOURCE_FILLED(turn);

		one = test_map(self->imp, IMPORTER_BIDIRECTIONAL);
		test_sync_cpu(self->buf, SYNC_START(RW));
		EXPECT_SOURCE_FILLED(turn);
		fill_source(self, variant->shuffled, turn + 1);
		test_sync_cpu(self->buf, SYNC_END(RW));
		EXPECT_DEVICE_SEES(self->imp, one, turn + 1);
		test_unmap(self->imp, one.handle);
	}
}

/* No stale bytes of an earlier sync return. No importer has the buffer. */
TEST_F(device, repeated_sync_brings_nothing_back)
{
	test_detach(self->imp);
	test_sync_cpu(self->buf, SYNC_START(READ));
	test_sync_cpu(self->buf, SYNC_END(READ));
	fill_source(self, variant->shuffled, 2);
	test_sync_cpu(self->buf, SYNC_START(READ));
	EXPECT_SOURCE_FILLED(2);
	test_sync_cpu(self->buf, SYNC_END(READ));
}

/* Segments */

/*
 * Check the segments for a device with these limits; @boundary 0: no boundary.
 */
#define EXPECT_SEGMENTS(frames, max, boundary)				\
	do {								\
		size_t __npages = self->len / page_size();		\
		struct udmabuf_importer_map __m;			\
		int __imp = importer_open();				\
		ASSERT_EQ(0, _attach_bounded(__imp, self->buf, 0, max,	\
					     (boundary) ? (boundary) - 1 : 0)); \
		__m = test_map(__imp, IMPORTER_TO_DEVICE);		\
		EXPECT_EQ(count_segments(frames, __npages, max, boundary), __m.nents) \
			TH_LOG("segments of at most %zu bytes, boundary %zu", (size_t)(max), \
			       (size_t)(boundary));			\
		EXPECT_GE(max, __m.longest);				\
		EXPECT_EQ(self->len, __m.bytes);			\
		EXPECT_DEVICE_SEES(__imp, __m, 1);			\
		close(__imp);						\
	} while (0)

TEST_F(device, one_segment_for_each_run)
{
	size_t most = swiotlb_forced() ? BOUNCE_MAX : UINT_MAX & ~(page_size() - 1);
	size_t limits[] = { most, 128 << 10, 64 << 10, 3 * page_size(), page_size() };
	__u64 *frames = entries_frames(self->iovs, self->len / page_size());
	size_t i;

	if (!frames)
		SKIP(return, "pagemap does not show page frames");
	for (i = 0; i < ARRAY_SIZE(limits); i++)
		EXPECT_SEGMENTS(frames, limits[i], 0);
}

/*
 * Some devices cannot increment an address across a boundary, wherever the
 * segment starts.
 */
TEST_F(device, no_segment_crosses_a_boundary)
{
	size_t page = page_size(), most = swiotlb_forced() ? BOUNCE_MAX : SIZE_MAX, i;
	struct { size_t max, boundary; } rows[] = {
		{ 64 * page, 16 * page }, { 3 * page, 16 * page }, { 12 * page, 8 * page },
		{ 16 * page, 2 * page }, { page, page }, { 64 * page, 64 * page },
	};
	__u64 *frames = entries_frames(self->iovs, self->len / page);

	if (!frames)
		SKIP(return, "pagemap does not show page frames");
	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		size_t max = rows[i].max < most ? rows[i].max : most;

		EXPECT_SEGMENTS(frames, max, rows[i].boundary);
	}
}

/* A device without a limit gets segments up to 64 KiB, the kernel's default. */
TEST_F(device, default_segment_limit)
{
	struct udmabuf_importer_map map = test_map(self->imp, IMPORTER_TO_DEVICE);

	EXPECT_GE(64 << 10, map.longest);
}

/* The attach of a device that cannot take a whole page fails. */
TEST_F(device, less_than_a_page_is_no_segment)
{
	int imp = importer_open();

	EXPECT_EQ(-1, _attach(imp, self->buf, 0, page_size() / 2));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, _attach_bounded(imp, self->buf, 0, 0, page_size() / 2 - 1));
	EXPECT_EQ(EINVAL, errno);
}

/*
 * A small DMA mask may need bounce buffers, which limit the segments' length.
 */
TEST_F(device, small_dma_mask)
{
	int imp = test_attach(self->buf, 0xffffffff, 1 << 30);
	struct udmabuf_importer_map map = test_map(imp, IMPORTER_BIDIRECTIONAL);

	if (swiotlb_forced())
		EXPECT_GE(BOUNCE_MAX, map.longest);
	EXPECT_DEVICE_SEES(imp, map, 1);
	fill(self->seen, self->len, 2);
	test_device_write(imp, map.handle, 0, self->seen, self->len);
	test_unmap(imp, map.handle);
	EXPECT_SOURCE_FILLED(2);
}

/* A write at an offset, across a page boundary and a segment boundary */
TEST_F(device, part_of_a_map)
{
	struct udmabuf_importer_map map = test_map(self->imp, IMPORTER_BIDIRECTIONAL);
	size_t off = 5 * page_size() - 4;

	test_device_write(self->imp, map.handle, off, "12345678", 8);
	test_unmap(self->imp, map.handle);
	EXPECT_EQ(0, memcmp(source(self, variant->shuffled, 4) + page_size() - 4, "1234", 4));
	EXPECT_EQ(0, memcmp(source(self, variant->shuffled, 5), "5678", 4));
	EXPECT_EQ(-1, filled_until(source(self, variant->shuffled, 6), page_size(), 1,
				   6 * page_size()));
}

/*
 * The sg_table's array is sized by an upper bound on the number of segments.
 * These buffers have exactly as many, so that KASAN detects a bound too low by
 * one.
 */

FIXTURE(tables) {
	struct session session;
	int dev;
	size_t page;
};

FIXTURE_SETUP(tables)
{
	SESSION_OPEN(&self->session);
	SKIP_WITHOUT_IMPORTER();
	self->dev = self->session.dev;
	self->page = page_size();
}

FIXTURE_TEARDOWN(tables)
{
	SESSION_CLOSE(&self->session);
}

/* The segments of @buf for a device with limits in pages; @boundary 0: none. */
static unsigned int segments(int buf, size_t max, size_t boundary)
{
	struct udmabuf_importer_map map = {};
	int imp = importer_open();

	if (!_attach_bounded(imp, buf, 0, max * page_size(),
			     boundary ? boundary * page_size() - 1 : 0))
		_map(imp, IMPORTER_TO_DEVICE, &map);
	close(imp);
	return map.nents;
}

/* Three runs: the same pages of one huge page, three times. */
TEST_F(tables, runs_that_are_cut)
{
	struct mem mem = mem_get(MEM_HUGETLB, hugetlb_size());
	struct { size_t first, npages, max, boundary, segments; } rows[] = {
		/*
		 * not split: swiotlb bounces four pages in one, even of 64 KiB
		 */
		{ 0, 1, 64, 0, 1 }, { 0, 4, 64, 0, 1 },
		{ 0, 7, 3, 0, 3 },				/* split by the longest segment */
		{ 3, 2, 64, 4, 2 }, { 3, 6, 64, 4, 3 },		/* split by a boundary */
		{ 12, 5, 3, 16, 3 },				/* split by both */
	};
	size_t i;

	if (mem.why_not)
		SKIP(return, "%s", mem.why_not);
	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		struct udmabuf_iovec iov = {
			to_u64(mem.addr + rows[i].first * self->page), rows[i].npages * self->page,
		};
		struct udmabuf_iovec iovs[] = { iov, iov, iov };
		int buf = test_create(self->dev, 0, iovs, ARRAY_SIZE(iovs));

		EXPECT_EQ(3 * rows[i].segments, segments(buf, rows[i].max, rows[i].boundary))
			TH_LOG("segments of rows[%zu]", i);
		close(buf);
	}
}

#define SHMEM_FOLIOS	"/sys/kernel/mm/transparent_hugepage/hugepages-16kB/shmem_enabled"
#define FOLIO_PAGES	4
#define NFOLIOS		256	/* the fewest folios kept as a list */

/*
 * A memfd, mapped at @mem, of folios in another physical order than in the
 * file.
 */
static int scattered_folios(int dev, char *mem, size_t folio)
{
	int fd = sealed_memfd(NFOLIOS * folio, 0, F_SEAL_SHRINK);
	struct udmabuf_create_item items[NFOLIOS] = {};
	size_t i;

	mmap(mem, NFOLIOS * folio, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	for (i = 0; i < NFOLIOS; i++) {
		items[i].memfd = fd;
		items[i].offset = i * 101 % NFOLIOS * folio;
		items[i].size = folio;
		mem[items[i].offset] = 1;
	}
	/* Migrate the folios out of movable memory now, in this order. */
	close(_create_list(dev, 0, items, NFOLIOS));
	return fd;
}

/* The same with no two folios adjacent, or -1. */
static int folios_apart(int dev, char *mem, size_t folio)
{
	struct udmabuf_iovec iov = { to_u64(mem), NFOLIOS * folio };
	int attempts, fd = -1;
	__u64 *frames;

	/*
	 * Earlier folios stay allocated, so that the next ones lie elsewhere.
	 */
	for (attempts = 0; attempts < LAYOUT_ATTEMPTS; attempts++) {
		fd = scattered_folios(dev, mem, folio);
		frames = entries_frames(&iov, 1);
		if (frames && count_runs(frames, NFOLIOS * FOLIO_PAGES, UINT_MAX) == NFOLIOS)
			return fd;
	}
	return -1;
}

TEST_F(tables, folios_of_a_list)
{
	size_t folio = FOLIO_PAGES * self->page, len = NFOLIOS * folio;
	char *mem = anon_aligned(len, folio);
	int fd, buf;

	if (write_text(SHMEM_FOLIOS, "always"))
		SKIP(return, "no 16 KiB folios for memfds in this kernel");
	fd = folios_apart(self->dev, mem, folio);
	write_text(SHMEM_FOLIOS, "never");
	if (fd < 0)
		SKIP(return, "the kernel had no scattered 16 KiB folios to give");
	buf = test_create_memfd(self->dev, 0, fd, 0, len);
	EXPECT_EQ(NFOLIOS, segments(buf, 64, 0));
	EXPECT_EQ(2 * NFOLIOS, segments(buf, 3, 0));
}

/*
 * A buffer that names one page at its start and at its end has a bounce slot
 * for each. All slots are copied to the memory in the buffer's order. So bytes
 * of the last slot replace bytes that the device wrote through the first one.
 */

FIXTURE(twice) {
	struct session session;
	char *mem;
	size_t page;
	char *seen;
	int buf;
	int imp;
};

FIXTURE_VARIANT(twice) {
	__u32 dir;
	bool sync;	/* sync instead of unmap */
};

FIXTURE_VARIANT_ADD(twice, unmap_from_device) { .dir = IMPORTER_FROM_DEVICE };
FIXTURE_VARIANT_ADD(twice, unmap_both_ways) { .dir = IMPORTER_BIDIRECTIONAL };
FIXTURE_VARIANT_ADD(twice, sync_from_device) { .dir = IMPORTER_FROM_DEVICE, .sync = true };
FIXTURE_VARIANT_ADD(twice, sync_both_ways) { .dir = IMPORTER_BIDIRECTIONAL, .sync = true };

FIXTURE_SETUP(twice)
{
	struct udmabuf_iovec iovs[2];

	SESSION_OPEN(&self->session);
	SKIP_WITHOUT_IMPORTER();
	self->page = page_size();
	self->mem = anon_small(2 * self->page);
	self->seen = malloc(self->page);
	fill(self->mem, 2 * self->page, 1);
	fill(self->seen, self->page, 2);
	iovs[0] = (struct udmabuf_iovec) { to_u64(self->mem), 2 * self->page };
	iovs[1] = (struct udmabuf_iovec) { to_u64(self->mem), self->page };
	self->buf = test_create(self->session.dev, 0, iovs, 2);
	self->imp = test_attach(self->buf, 0, 0);
}

FIXTURE_TEARDOWN(twice)
{
	SESSION_CLOSE(&self->session);
}

/* Let the device write seed 2 to @len bytes at @off, and the CPU see them. */
#define DEVICE_WRITES(off, len)						\
	do {								\
		struct udmabuf_importer_map __m = test_map(self->imp, variant->dir); \
		test_device_write(self->imp, __m.handle, off, self->seen, len); \
		if (variant->sync) {					\
			test_sync_cpu(self->buf, SYNC_START(READ));	\
		} else {						\
			test_unmap(self->imp, __m.handle);		\
		}							\
	} while (0)

TEST_F(twice, bounced_bytes_of_the_first_place_are_lost)
{
	DEVICE_WRITES(0, self->page);
	EXPECT_FILLED(self->mem, self->page, swiotlb_forced() ? 1 : 2);
	EXPECT_EQ(-1, filled_until(self->mem + self->page, self->page, 1, self->page));
}

TEST_F(twice, bytes_of_the_last_place_are_kept)
{
	DEVICE_WRITES(2 * self->page, self->page);
	EXPECT_FILLED(self->mem, self->page, 2);
	EXPECT_EQ(-1, filled_until(self->mem + self->page, self->page, 1, self->page));
}

/* CONFIG_DMA_API_DEBUG counts at most seven mappings of a cache line. */
TEST_F(twice, eight_times_and_more)
{
	struct udmabuf_iovec iovs[16];
	int buf, imp;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(iovs); i++)
		iovs[i] = (struct udmabuf_iovec) { to_u64(self->mem), self->page };
	buf = test_create(self->session.dev, 0, iovs, ARRAY_SIZE(iovs));
	imp = test_attach(buf, 0, 0);
	test_map(imp, variant->dir);
	close(imp);
	close(buf);
}

/*
 * Bytes that the device has not written keep the memory's value. They never
 * show memory of another user.
 */
TEST_F(twice, unwritten_bytes_stay)
{
	size_t half = self->page / 2;

	DEVICE_WRITES(2 * self->page, half);
	EXPECT_FILLED(self->mem, half, 2);
	EXPECT_EQ(-1, filled_until(self->mem + half, 2 * self->page - half, 1, half));
}

/* CPU stores reach both slots, and the CPU reads them back. */
TEST_F(twice, stores_of_the_cpu_reach_both_places)
{
	struct udmabuf_importer_map map = test_map(self->imp, IMPORTER_BIDIRECTIONAL);
	size_t off;

	test_sync_cpu(self->buf, SYNC_START(WRITE));
	fill(self->mem, 2 * self->page, 3);
	test_sync_cpu(self->buf, SYNC_END(WRITE));
	for (off = 0; off <= 2 * self->page; off += 2 * self->page) {
		test_device_read(self->imp, map.handle, off, self->seen, self->page);
		EXPECT_FILLED(self->seen, self->page, 3);
	}
	test_unmap(self->imp, map.handle);
	EXPECT_FILLED(self->mem, 2 * self->page, 3);
}

/*
 * Fences of a device that is still busy. SYNC START waits first and then syncs.
 * In the other order a bounce buffer's last bytes would never reach the CPU.
 */

FIXTURE(fences) {
	struct session session;
	char *mem;
	size_t len;
	char *seen;
	int buf;
	int imp;
};

FIXTURE_SETUP(fences)
{
	SESSION_OPEN(&self->session);
	SKIP_WITHOUT_IMPORTER();
	self->len = 16 * page_size();
	self->mem = anon_small(self->len);
	self->seen = malloc(self->len);
	fill(self->mem, self->len, 1);
	fill(self->seen, self->len, 2);
	self->buf = test_create_one(self->session.dev, 0, self->mem, self->len);
	self->imp = test_attach(self->buf, 0, 0);
}

FIXTURE_TEARDOWN(fences)
{
	SESSION_CLOSE(&self->session);
}

/* A thread that calls SYNC START */
struct starter {
	pthread_t thread;
	int buf;
	__u64 flags;
	pid_t tid;
	int ended;
	int err;
};

static bool has_ended(const struct starter *starter)
{
	return __atomic_load_n(&starter->ended, __ATOMIC_ACQUIRE);
}

static void *starter_thread(void *arg)
{
	struct starter *starter = arg;

	__atomic_store_n(&starter->tid, syscall(__NR_gettid), __ATOMIC_RELEASE);
	starter->err = _sync_cpu(starter->buf, starter->flags) ? errno : 0;
	__atomic_store_n(&starter->ended, 1, __ATOMIC_RELEASE);
	return NULL;
}

/*
 * Start a thread in SYNC START, and wait until it blocks or ends. Returns true
 * if it blocks.
 */
static bool start_waits(struct starter *starter, int buf, __u64 flags)
{
	pid_t tid;

	*starter = (struct starter) { .buf = buf, .flags = flags };
	if (pthread_create(&starter->thread, NULL, starter_thread, starter))
		return false;
	do {
		sched_yield();
		tid = __atomic_load_n(&starter->tid, __ATOMIC_ACQUIRE);
	} while (!has_ended(starter) && (!tid || !is_blocked(tid)));
	return !has_ended(starter);
}

static int start_error(struct starter *starter)
{
	pthread_join(starter->thread, NULL);
	return starter->err;
}

TEST_F(fences, start_syncs_after_the_wait)
{
	__u32 dirs[] = { IMPORTER_FROM_DEVICE, IMPORTER_BIDIRECTIONAL };
	__u64 flags[] = { SYNC_START(READ), SYNC_START(RW) };
	struct starter starter;
	size_t i;

	for (i = 0; i < 4; i++) {
		struct udmabuf_importer_map map;

		fill(self->mem, self->len, 1);
		map = test_map(self->imp, dirs[i % 2]);
		test_fence(self->imp, 1);
		EXPECT_TRUE(start_waits(&starter, self->buf, flags[i / 2]));
		test_device_write(self->imp, map.handle, 0, self->seen, self->len);
		EXPECT_FALSE(has_ended(&starter));
		test_signal(self->imp);
		EXPECT_EQ(0, start_error(&starter));
		EXPECT_FILLED(self->mem, self->len, 2)
			TH_LOG("CPU does not see the device's bytes, direction %u", dirs[i % 2]);
		test_sync_cpu(self->buf, SYNC_END(RW));
		test_unmap(self->imp, map.handle);
		EXPECT_FILLED(self->mem, self->len, 2);
	}
}

/* Guards against looking for maps only before the wait. */
TEST_F(fences, start_syncs_maps_made_during_the_wait)
{
	struct udmabuf_importer_map map;
	struct starter starter;

	test_fence(self->imp, 1);
	EXPECT_TRUE(start_waits(&starter, self->buf, SYNC_START(READ)));
	map = test_map(self->imp, IMPORTER_FROM_DEVICE);
	test_device_write(self->imp, map.handle, 0, self->seen, self->len);
	test_signal(self->imp);
	EXPECT_EQ(0, start_error(&starter));
	EXPECT_FILLED(self->mem, self->len, 2);
}

TEST_F(fences, reading_device_holds_up_writers_only)
{
	__u64 flags[] = { SYNC_START(WRITE), SYNC_START(RW) };
	struct starter starter;
	size_t i;

	test_map(self->imp, IMPORTER_BIDIRECTIONAL);
	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		test_fence(self->imp, 0);
		test_sync_cpu(self->buf, SYNC_START(READ));
		test_sync_cpu(self->buf, SYNC_END(READ));
		EXPECT_TRUE(start_waits(&starter, self->buf, flags[i]));
		test_signal(self->imp);
		EXPECT_EQ(0, start_error(&starter));
		test_sync_cpu(self->buf, SYNC_END(RW));
	}
}

TEST_F(fences, signal_interrupts_the_wait)
{
	struct udmabuf_importer_map map = test_map(self->imp, IMPORTER_FROM_DEVICE);
	struct sigaction action = { .sa_handler = ignore_handler };
	struct starter starter;

	sigaction(SIGUSR1, &action, NULL);
	test_fence(self->imp, 1);
	EXPECT_TRUE(start_waits(&starter, self->buf, SYNC_START(READ)));
	while (!has_ended(&starter)) {
		pthread_kill(starter.thread, SIGUSR1);
		sleep_ms(1);
	}
	EXPECT_EQ(EINTR, start_error(&starter));
	test_device_write(self->imp, map.handle, 0, self->seen, self->len);
	test_signal(self->imp);
	test_sync_cpu(self->buf, SYNC_START(READ));
	EXPECT_FILLED(self->mem, self->len, 2);
}

/*
 * Guards against holding a lock while waiting: a fence may take arbitrarily
 * long.
 */
TEST_F(fences, wait_holds_up_nobody_else)
{
	int other = test_attach(self->buf, 0, 0);
	struct udmabuf_importer_map map;
	struct starter starter;
	char *shared;

	test_map(self->imp, IMPORTER_BIDIRECTIONAL);
	test_fence(self->imp, 1);
	EXPECT_TRUE(start_waits(&starter, self->buf, SYNC_START(RW)));
	map = test_map(other, IMPORTER_TO_DEVICE);
	test_vmap(other);
	test_sync_cpu(self->buf, SYNC_END(RW));
	shared = test_map_buf(self->buf, self->len, PROT_READ);
	EXPECT_FILLED(shared, self->len, 1);
	test_vunmap(other);
	test_unmap(other, map.handle);
	test_detach(other);
	EXPECT_FALSE(has_ended(&starter));
	test_signal(self->imp);
	EXPECT_EQ(0, start_error(&starter));
}

/* Closing the importer signals its fence. */
TEST_F(fences, closing_the_importer_ends_the_wait)
{
	struct starter starter;

	test_map(self->imp, IMPORTER_FROM_DEVICE);
	test_fence(self->imp, 1);
	EXPECT_TRUE(start_waits(&starter, self->buf, SYNC_START(READ)));
	close(self->imp);
	EXPECT_EQ(0, start_error(&starter));
}

/* Maps that fail, and concurrent calls */

FIXTURE(races) {
	struct session session;
	char *mem;
	size_t len;
	int buf;
};

FIXTURE_SETUP(races)
{
	SESSION_OPEN(&self->session);
	SKIP_WITHOUT_IMPORTER();
	self->len = 16 * page_size();
	self->mem = anon_small(self->len);
	fill(self->mem, self->len, 1);
	self->buf = test_create_one(self->session.dev, 0, self->mem, self->len);
}

FIXTURE_TEARDOWN(races)
{
	SESSION_CLOSE(&self->session);
}

/*
 * The buffer exceeds all bounce buffers: the map fails half way. The bounce
 * buffers it had must be freed, or the next map fails too.
 */
TEST_F(races, map_that_fails_half_way)
{
	size_t times = (160 << 20) / self->len, i;
	struct udmabuf_iovec *iovs = calloc(times, sizeof(*iovs));
	struct udmabuf_importer_map map;
	int buf, imp;
	char byte;

	if (!swiotlb_forced())
		SKIP(return, "boot with swiotlb=force");
	make_entries(iovs, times, self->mem, self->len, 0);
	buf = test_create(self->session.dev, 0, iovs, times);
	imp = test_attach(buf, 0, 0);
	for (i = 0; i < 4; i++)
		if (!_map(imp, IMPORTER_TO_DEVICE, &map))
			SKIP(return, "this machine bounces more than we ask for");
	test_sync_cpu(buf, SYNC_START(RW));
	test_sync_cpu(buf, SYNC_END(RW));
	imp = test_attach(self->buf, 0, 0);
	map = test_map(imp, IMPORTER_TO_DEVICE);
	test_device_read(imp, map.handle, 0, &byte, 1);
	EXPECT_EQ(self->mem[0], byte);
}

static long long race_until;

static void *race_map(void *arg)
{
	int imp = importer_open();
	struct udmabuf_importer_map map;

	_attach(imp, *(int *)arg, 0, 0);
	while (now_ms() < race_until) {
		if (_map(imp, IMPORTER_BIDIRECTIONAL, &map))
			return "IMPORTER_MAP failed";
		if (_unmap(imp, map.handle))
			return "IMPORTER_UNMAP failed";
	}
	close(imp);
	return NULL;
}

static void *race_vmap(void *arg)
{
	int imp = importer_open();

	_attach(imp, *(int *)arg, 0, 0);
	while (now_ms() < race_until)
		if (_vmap(imp) || ioctl(imp, IMPORTER_VUNMAP))
			return "IMPORTER_VMAP or IMPORTER_VUNMAP failed";
	close(imp);
	return NULL;
}

static void *race_sync(void *arg)
{
	while (now_ms() < race_until)
		if (_sync_cpu(*(int *)arg, SYNC_START(READ)) ||
		    _sync_cpu(*(int *)arg, SYNC_END(READ)))
			return "DMA_BUF_IOCTL_SYNC failed";
	return NULL;
}

static void *race_mmap(void *arg)
{
	while (now_ms() < race_until) {
		char *map = _map_buf(*(int *)arg, 16 * page_size(), PROT_READ, 0);

		if (map == MAP_FAILED || filled_until(map, 16 * page_size(), 1, 0) != -1)
			return "mmap() of the buffer failed or shows wrong bytes";
		munmap(map, 16 * page_size());
	}
	return NULL;
}

/*
 * A map made while other threads sync shows the memory's previous bytes. After
 * its unmap the memory has the bytes that the device wrote.
 */
TEST_F(races, map_while_others_sync)
{
	struct udmabuf_importer_map map;
	char *seen = malloc(self->len);
	int imp = test_attach(self->buf, 0, 0);
	pthread_t threads[2];
	void *failed;
	__u64 turn;
	size_t i;

	race_until = now_ms() + race_ms();
	for (i = 0; i < ARRAY_SIZE(threads); i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, race_sync, &self->buf));
	for (turn = 2; now_ms() < race_until; turn += 2) {
		fill(self->mem, self->len, turn);
		map = test_map(imp, IMPORTER_TO_DEVICE);
		test_device_read(imp, map.handle, 0, seen, self->len);
		ASSERT_EQ(-1, filled_until(seen, self->len, turn, 0));
		test_unmap(imp, map.handle);
		ASSERT_EQ(-1, filled_until(self->mem, self->len, turn, 0));

		map = test_map(imp, IMPORTER_FROM_DEVICE);
		fill(seen, self->len, turn + 1);
		test_device_write(imp, map.handle, 0, seen, self->len);
		test_unmap(imp, map.handle);
		ASSERT_EQ(-1, filled_until(self->mem, self->len, turn + 1, 0));
	}
	for (i = 0; i < ARRAY_SIZE(threads); i++) {
		ASSERT_EQ(0, pthread_join(threads[i], &failed));
		EXPECT_EQ(NULL, failed) TH_LOG("%s", (char *)failed);
	}
}

/*
 * Stores between SYNC START and END, while another thread maps and unmaps on
 * request: the first map is turn 1, its unmap turn 2, and so on.
 */
#define STORE_LEN	(16UL << 20)
#define STORE_PAGES	64
#define STORE_TURNS	16

static struct {
	int imp;
	struct udmabuf_importer_map map;
	int asked;	/* latest turn requested */
	int done;
	const char *failed;
} mapper;

static void *mapper_thread(void *arg)
{
	int turn, ret;

	for (turn = 1; turn <= STORE_TURNS; turn++) {
		while (__atomic_load_n(&mapper.asked, __ATOMIC_ACQUIRE) < turn)
			sched_yield();
		if (turn % 2)
			ret = _map(mapper.imp, IMPORTER_BIDIRECTIONAL, &mapper.map);
		else
			ret = _unmap(mapper.imp, mapper.map.handle);
		if (ret)
			mapper.failed = turn % 2 ? "IMPORTER_MAP failed" : "IMPORTER_UNMAP failed";
		__atomic_store_n(&mapper.done, turn, __ATOMIC_RELEASE);
	}
	return NULL;
}

struct stores {
	int buf;
	char *mem;
	__u64 last[STORE_PAGES];
	__u64 count;
};

/*
 * The first word of one of the pages that a map copies first or last, by index
 * @i
 */
static volatile __u64 *store_word(char *mem, size_t i)
{
	size_t page = i < STORE_PAGES / 2 ? i : STORE_LEN / page_size() - STORE_PAGES + i;

	return (volatile __u64 *)(mem + page * page_size());
}

static int store_once(struct stores *stores, int turn)
{
	size_t i = stores->count++ * 37 % STORE_PAGES;

	if (_sync_cpu(stores->buf, SYNC_START(RW)))
		return -1;
	/*
	 * The requested map or unmap runs after this START and before some END.
	 */
	__atomic_store_n(&mapper.asked, turn, __ATOMIC_RELEASE);
	stores->last[i] = stores->count;
	*store_word(stores->mem, i) = stores->count;
	return _sync_cpu(stores->buf, SYNC_END(RW));
}

static bool turn_is_done(int turn)
{
	return __atomic_load_n(&mapper.done, __ATOMIC_ACQUIRE) >= turn;
}

/*
 * Store until the turn is done. Most of the time is outside of START and END,
 * because an END that is the first to see a new map repairs a lost store.
 */
static int store_through(struct stores *stores, int turn)
{
	int i;

	while (!turn_is_done(turn)) {
		if (store_once(stores, turn))
			return -1;
		for (i = 0; i < 2000 && !turn_is_done(turn); i++)
			;
	}
	return 0;
}

/*
 * The number of pages at @addr (the buffer's memory or a copy) that lack their
 * last store. The next call does not count the same loss again.
 */
static size_t stores_lost(struct stores *stores, char *addr)
{
	size_t lost = 0, i;

	for (i = 0; i < STORE_PAGES; i++) {
		__u64 word = *store_word(addr, i);

		lost += word != stores->last[i];
		stores->last[i] = word;
	}
	return lost;
}

/*
 * Guards against a map that exists before syncs see it, or still exists after
 * syncs stop seeing it. Stores are then not synced, and the bounce buffer's old
 * bytes replace them later. An unmap between START and END may replace the
 * store of that one access.
 */
TEST_F_TIMEOUT(races, bracketed_stores_against_map_and_unmap, 600)
{
	struct stores stores = { .mem = anon_small(STORE_LEN) };
	char *seen = malloc(STORE_LEN);
	pthread_t thread;
	int turn;

	memset(stores.mem, 0, STORE_LEN);
	stores.buf = test_create_one(self->session.dev, 0, stores.mem, STORE_LEN);
	mapper.imp = test_attach(stores.buf, 0, 0);
	ASSERT_EQ(0, pthread_create(&thread, NULL, mapper_thread, NULL));
	for (turn = 1; turn <= STORE_TURNS; turn += 2) {
		ASSERT_EQ(0, store_through(&stores, turn));
		test_device_read(mapper.imp, mapper.map.handle, 0, seen, STORE_LEN);
		EXPECT_EQ(0, stores_lost(&stores, seen))
			TH_LOG("stores lost to the device, turn %d", turn);
		test_sync_cpu(stores.buf, SYNC_START(RW));
		EXPECT_EQ(0, stores_lost(&stores, stores.mem))
			TH_LOG("stores lost to a map, turn %d", turn);
		test_sync_cpu(stores.buf, SYNC_END(RW));

		ASSERT_EQ(0, store_through(&stores, turn + 1));
		EXPECT_GE(1, stores_lost(&stores, stores.mem))
			TH_LOG("stores lost to an unmap, turn %d", turn);
	}
	ASSERT_EQ(0, pthread_join(thread, NULL));
	EXPECT_EQ(NULL, mapper.failed) TH_LOG("%s", mapper.failed);
}

/*
 * Guards against mainline's race: its sync creates an object that map frees,
 * and no lock protects it.
 */
TEST_F(races, map_vmap_mmap_and_sync)
{
	void *(*racers[])(void *) = {
		race_map, race_sync, race_vmap, race_mmap, race_map, race_sync,
	};
	pthread_t threads[ARRAY_SIZE(racers)];
	void *failed;
	size_t i;

	race_until = now_ms() + race_ms();
	for (i = 0; i < ARRAY_SIZE(racers); i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, racers[i], &self->buf));
	for (i = 0; i < ARRAY_SIZE(racers); i++) {
		ASSERT_EQ(0, pthread_join(threads[i], &failed));
		EXPECT_EQ(NULL, failed) TH_LOG("%s", (char *)failed);
	}
	EXPECT_FILLED(self->mem, self->len, 1);
}

TEST_HARNESS_MAIN
