// SPDX-License-Identifier: GPL-2.0
/*
 * UDMABUF_FLAGS_RDONLY: only the creator can write to such a buffer, and every
 * importer and mapping shows the creator's stores.
 */
#include "udmabuf_test.h"

/* Kernels before 6.2 cannot keep a read-only pin coherent. */
FIXTURE(rdonly_refused) {
	struct session session;
};

FIXTURE_SETUP(rdonly_refused)
{
	SESSION_OPEN(&self->session);
	if (!kernel_before(6, 2))
		SKIP(return, "this kernel keeps read-only pins coherent");
}

FIXTURE_TEARDOWN(rdonly_refused)
{
	SESSION_CLOSE(&self->session);
}

TEST_F(rdonly_refused, eopnotsupp)
{
	struct mem mem = mem_get(MEM_ANON, 8 * page_size());

	test_err_create_one(EOPNOTSUPP, self->session.dev, UDMABUF_FLAGS_RDONLY, mem.addr,
			    mem.len);
}

FIXTURE(rdonly) {
	struct session session;
	int dev;
	char *mem;
	size_t len;
	int buf;
};

FIXTURE_SETUP(rdonly)
{
	SESSION_OPEN(&self->session);
	SKIP_WITHOUT_RDONLY();
	self->dev = self->session.dev;
	self->len = 8 * page_size();
	self->mem = anon_small(self->len);
	fill(self->mem, self->len, 1);
	self->buf = test_create_one(self->dev, UDMABUF_FLAGS_RDONLY, self->mem, self->len);
}

FIXTURE_TEARDOWN(rdonly)
{
	SESSION_CLOSE(&self->session);
}

TEST_F(rdonly, fd_is_read_only)
{
	EXPECT_EQ(O_RDONLY, fcntl(self->buf, F_GETFL) & O_ACCMODE);
	EXPECT_EQ(-1, reopen(self->buf, O_RDWR));
	EXPECT_EQ(0, fcntl(self->buf, F_SETFL, O_RDWR));
	EXPECT_EQ(O_RDONLY, fcntl(self->buf, F_GETFL) & O_ACCMODE);
}

TEST_F(rdonly, close_on_exec_goes_with_it)
{
	int buf = test_create_one(self->dev, UDMABUF_FLAGS_RDONLY | UDMABUF_FLAGS_CLOEXEC,
				  self->mem, self->len);

	EXPECT_EQ(FD_CLOEXEC, fcntl(buf, F_GETFD) & FD_CLOEXEC);
	EXPECT_EQ(O_RDONLY, fcntl(buf, F_GETFL) & O_ACCMODE);
}

TEST_F(rdonly, mapping_shows_the_bytes)
{
	char *map = test_map_buf(self->buf, self->len, PROT_READ);

	EXPECT_FILLED(map, self->len, 1);
	fill(self->mem, self->len, 2);
	EXPECT_FILLED(map, self->len, 2);
	EXPECT_EQ(SIGSEGV, fault_signal(map, true));
}

TEST_F(rdonly, writable_mapping_is_refused)
{
	test_err_map_buf(EACCES, self->buf, self->len, PROT_READ | PROT_WRITE, 0);
	test_err_map_buf(EACCES, self->buf, self->len, PROT_WRITE, 0);
}

TEST_F(rdonly, mapping_cannot_be_made_writable)
{
	char *map = test_map_buf(self->buf, self->len, PROT_READ);

	EXPECT_ERRNO(EACCES, mprotect(map, self->len, PROT_READ | PROT_WRITE));
	EXPECT_EQ(0, fault_signal(map, false));
	EXPECT_ERRNO(EACCES, mprotect(map, self->len, PROT_WRITE));
	EXPECT_FILLED(self->mem, self->len, 1);
}

TEST_F(rdonly, private_mapping_is_refused)
{
	EXPECT_ERRNO(EINVAL, (long)mmap(NULL, self->len, PROT_READ, MAP_PRIVATE, self->buf, 0));
}

TEST_F(rdonly, other_processes_cannot_write_through_the_mapping)
{
	char *map = test_map_buf(self->buf, self->len, PROT_READ);
	int mem = open("/proc/self/mem", O_RDWR);

	EXPECT_EQ(0, fault_signal(map, false));
	ASSERT_LE(0, mem);
	EXPECT_EQ(-1, pwrite(mem, "x", 1, (off_t)(uintptr_t)map));
	EXPECT_FILLED(self->mem, self->len, 1);
}

TEST_F(rdonly, sync_works)
{
	test_sync_cpu(self->buf, SYNC_START(READ));
	test_sync_cpu(self->buf, SYNC_END(READ));
}

/* Mappings through an importer. Its file is open for writing. */

TEST_F(rdonly, importers_writable_mapping_is_refused)
{
	int imp;

	SKIP_WITHOUT_IMPORTER();
	imp = test_attach(self->buf, 0, 0);
	EXPECT_ERRNO(EACCES, (long)_map_buf(imp, self->len, PROT_READ | PROT_WRITE, 0));
	EXPECT_FILLED(self->mem, self->len, 1);
}

/* Guards VM_MAYWRITE: a mapping of the importer's writable file has it set. */
TEST_F(rdonly, importers_mapping_cannot_be_made_writable)
{
	char *map;
	int imp;

	SKIP_WITHOUT_IMPORTER();
	imp = test_attach(self->buf, 0, 0);
	map = test_map_buf(imp, self->len, PROT_READ);
	EXPECT_FILLED(map, self->len, 1);
	EXPECT_ERRNO(EACCES, mprotect(map, self->len, PROT_READ | PROT_WRITE));
	EXPECT_EQ(SIGSEGV, fault_signal(map, true));
	EXPECT_FILLED(self->mem, self->len, 1);
}

TEST_F(rdonly, importers_map_only_to_the_device)
{
	struct udmabuf_importer_map map;
	static char seen[1 << 20];
	int imp;

	SKIP_WITHOUT_IMPORTER();
	imp = test_attach(self->buf, 0, 0);
	test_err_map(EPERM, imp, IMPORTER_FROM_DEVICE);
	test_err_map(EPERM, imp, IMPORTER_BIDIRECTIONAL);
	map = test_map(imp, IMPORTER_TO_DEVICE);
	ASSERT_GE(sizeof(seen), self->len);
	test_device_read(imp, map.handle, 0, seen, self->len);
	EXPECT_FILLED(seen, self->len, 1);
	fill(self->mem, self->len, 2);
	test_sync_cpu(self->buf, SYNC_END(WRITE));
	test_device_read(imp, map.handle, 0, seen, self->len);
	EXPECT_FILLED(seen, self->len, 2);
}

/* A device with a bounce buffer cannot change the memory, not even at unmap. */
TEST_F(rdonly, unmap_brings_nothing_back)
{
	struct udmabuf_importer_map map;
	int imp;

	SKIP_WITHOUT_IMPORTER();
	if (!swiotlb_forced())
		SKIP(return, "boot with swiotlb=force");
	imp = test_attach(self->buf, 0, 0);
	map = test_map(imp, IMPORTER_TO_DEVICE);
	test_device_write(imp, map.handle, 0, "x", 1);
	test_sync_cpu(self->buf, SYNC_START(READ));
	test_sync_cpu(self->buf, SYNC_END(READ));
	test_device_write(imp, map.handle, 0, "x", 1);
	test_unmap(imp, map.handle);
	EXPECT_FILLED(self->mem, self->len, 1);
}

TEST_F(rdonly, no_kernel_mapping)
{
	int imp;

	SKIP_WITHOUT_IMPORTER();
	imp = test_attach(self->buf, 0, 0);
	test_err_vmap(EINVAL, imp);
}

/* Sources of the memory */

FIXTURE(rdonly_sources) {
	struct session session;
	int dev;
	size_t len;
};

FIXTURE_SETUP(rdonly_sources)
{
	SESSION_OPEN(&self->session);
	SKIP_WITHOUT_RDONLY();
	self->dev = self->session.dev;
	self->len = 8 * page_size();
}

FIXTURE_TEARDOWN(rdonly_sources)
{
	SESSION_CLOSE(&self->session);
}

#define test_read_only_map(addr, len)					\
	test_map_buf(test_create_one(self->dev, UDMABUF_FLAGS_RDONLY, addr, len), len, PROT_READ)

TEST_F(rdonly_sources, read_only_memory)
{
	char *mem = mem_get(MEM_ANON, self->len).addr, *map;

	fill(mem, self->len, 1);
	ASSERT_EQ(0, mprotect(mem, self->len, PROT_READ));
	map = test_read_only_map(mem, self->len);
	EXPECT_FILLED(map, self->len, 1);
	ASSERT_EQ(0, mprotect(mem, self->len, PROT_READ | PROT_WRITE));
	fill(mem, self->len, 2);
	EXPECT_FILLED(map, self->len, 2);
}

TEST_F(rdonly_sources, read_only_mapping_of_a_memfd)
{
	char *mem = map_memfd(self->len), *map;

	fill(mem, self->len, 1);
	ASSERT_EQ(0, mprotect(mem, self->len, PROT_READ));
	map = test_read_only_map(mem, self->len);
	EXPECT_FILLED(map, self->len, 1);
}

/* A read-only buffer needs no seals, so it keeps only its page of the memfd. */
TEST_F(rdonly_sources, rest_of_a_closed_memfd_is_freed)
{
	size_t len = 64 << 20;
	char *mem = map_memfd(len);
	long before;

	memset(mem, 1, len);
	test_create_one(self->dev, UDMABUF_FLAGS_RDONLY, mem, page_size());
	before = text_number("/proc/meminfo", "Shmem:");
	ASSERT_EQ(0, munmap(mem, len));
	EXPECT_GT(before - 32 * 1024, text_number("/proc/meminfo", "Shmem:"));
}

TEST_F(rdonly_sources, memory_that_cannot_be_read_is_efault)
{
	char *mem = mem_get(MEM_ANON, self->len).addr;

	ASSERT_EQ(0, mprotect(mem, self->len, PROT_NONE));
	test_err_create_one(EFAULT, self->dev, UDMABUF_FLAGS_RDONLY, mem, self->len);
	ASSERT_EQ(0, munmap(mem, self->len));
	test_err_create_one(EFAULT, self->dev, UDMABUF_FLAGS_RDONLY, mem, self->len);
}

/*
 * Guards FOLL_LONGTERM: without it the zero page is pinned, and the owner's
 * first store goes to another page.
 */
TEST_F(rdonly_sources, untouched_memory_stays_coherent)
{
	char *mem = anon_small(self->len);
	char *map = test_read_only_map(mem, self->len);

	EXPECT_EQ(0, map[0]);
	fill(mem, self->len, 1);
	EXPECT_FILLED(map, self->len, 1);
}

TEST_F(rdonly_sources, memory_that_was_only_read_stays_coherent)
{
	char *mem = anon_small(self->len), *map;

	EXPECT_EQ(0, fault_signal(mem, false));
	EXPECT_EQ(0, fault_signal(mem + page_size(), false));
	map = test_read_only_map(mem, self->len);
	fill(mem, self->len, 1);
	EXPECT_FILLED(map, self->len, 1);
}

/* The same with the page cache instead of the zero page */
TEST_F(rdonly_sources, private_file_mapping_stays_coherent)
{
	char *mem = map_scratch_file("ramfs", self->len, PROT_READ | PROT_WRITE, MAP_PRIVATE);
	char *map;

	if (mem == MAP_FAILED)
		SKIP(return, "cannot mount ramfs");
	EXPECT_EQ(0, fault_signal(mem, false));
	map = test_read_only_map(mem, self->len);
	fill(mem, self->len, 1);
	EXPECT_FILLED(map, self->len, 1);
}

TEST_F(rdonly_sources, private_memfd_mapping_stays_coherent)
{
	int fd = sealed_memfd(self->len, 0, 0);
	char *mem, *map;

	ASSERT_EQ(1, pwrite(fd, "x", 1, 0));
	mem = mmap(NULL, self->len, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	ASSERT_NE(MAP_FAILED, (void *)mem);
	EXPECT_EQ('x', mem[0]);
	map = test_read_only_map(mem, self->len);
	EXPECT_EQ('x', map[0]);
	fill(mem, self->len, 1);
	EXPECT_FILLED(map, self->len, 1);
}

/* Memory shared with a child by fork(), and so copied at a store */
TEST_F(rdonly_sources, memory_shared_with_a_child_stays_coherent)
{
	char *mem = mem_get(MEM_ANON, self->len).addr, *map;
	pid_t pid = fork();

	if (!pid) {
		pause();
		_exit(0);
	}
	map = test_read_only_map(mem, self->len);
	fill(mem, self->len, 1);
	EXPECT_FILLED(map, self->len, 1);
	kill(pid, SIGKILL);
	reap(pid);
}

TEST_F(rdonly_sources, fork_afterwards_leaves_the_parent_coherent)
{
	char *mem = mem_get(MEM_ANON, self->len).addr;
	char *map = test_read_only_map(mem, self->len);
	pid_t pid = fork();

	if (!pid) {
		pause();
		_exit(0);
	}
	fill(mem, self->len, 1);
	EXPECT_FILLED(map, self->len, 1);
	kill(pid, SIGKILL);
	reap(pid);
}

/* Guards the allow-list: GUP pins page cache pages for reading. */
TEST_F(rdonly_sources, page_cache_is_eopnotsupp)
{
	char *mem = map_scratch_file("ramfs", self->len, PROT_READ | PROT_WRITE, MAP_SHARED);

	if (mem == MAP_FAILED)
		SKIP(return, "cannot mount ramfs");
	fill(mem, self->len, 1);
	test_err_create_one(EOPNOTSUPP, self->dev, UDMABUF_FLAGS_RDONLY, mem, self->len);
	ASSERT_EQ(0, mprotect(mem, self->len, PROT_READ));
	test_err_create_one(EOPNOTSUPP, self->dev, UDMABUF_FLAGS_RDONLY, mem, self->len);
}

TEST_F(rdonly_sources, every_kind_of_memory)
{
	int kind;

	for (kind = 0; kind < MEM_KINDS; kind++) {
		struct mem mem = mem_get(kind, mem_len(kind));
		char *map;

		if (mem.why_not)
			continue;
		fill(mem.addr, mem.len, kind);
		map = test_read_only_map(mem.addr, mem.len);
		EXPECT_FILLED(map, mem.len, kind);
		fill(mem.addr, mem.len, kind + 1);
		EXPECT_FILLED(map, mem.len, kind + 1);
	}
}

TEST_HARNESS_MAIN
