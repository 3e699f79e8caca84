// SPDX-License-Identifier: GPL-2.0
/*
 * An attacker uses a buffer to reach memory without permission: other pages of
 * the same memory, read-only memory, pages of a file, memory and quota of other
 * users.
 */
#include <poll.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/sysmacros.h>

#include "udmabuf_test.h"

/* An unnamed file on a mounted file system of @fstype, or -1. */
static int file_on(const char *fstype, int flags)
{
	static char text[65536];
	char dir[256], type[32];
	char *line;
	int fd = -1;

	if (read_text("/proc/self/mounts", text, sizeof(text)) < 0)
		return -1;
	for (line = strtok(text, "\n"); line && fd < 0; line = strtok(NULL, "\n"))
		if (sscanf(line, "%*s %255s %31s", dir, type) == 2 && !strcmp(type, fstype))
			fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC | flags, 0755);
	return fd;
}

/* The errno of a create, or 0. */
static int create_error(int dev, __u32 flags, const void *addr, size_t len)
{
	int buf = _create_one(dev, flags, addr, len);

	if (buf < 0)
		return errno;
	close(buf);
	return 0;
}

/*
 * Calls that pin or copy pages through a mapping of a buffer. They must fail,
 * for small page table entries and for huge ones.
 */

FIXTURE(taken) {
	struct session session;
	char *mem;
	char *map;
	char *own;		/* ordinary page: the same call succeeds */
	size_t page;
	size_t len;
};

FIXTURE_VARIANT(taken) {
	enum mem_kind kind;
	__u32 flags;
};

FIXTURE_VARIANT_ADD(taken, small) { .kind = MEM_ANON };
FIXTURE_VARIANT_ADD(taken, huge) { .kind = MEM_HUGETLB };
FIXTURE_VARIANT_ADD(taken, read_only) { .kind = MEM_ANON, .flags = UDMABUF_FLAGS_RDONLY };

FIXTURE_SETUP(taken)
{
	bool rdonly = variant->flags & UDMABUF_FLAGS_RDONLY;
	struct mem mem;
	int buf;

	SESSION_OPEN(&self->session);
	if (rdonly)
		SKIP_WITHOUT_RDONLY();
	mem = mem_get(variant->kind, mem_len(variant->kind));
	if (mem.why_not)
		SKIP(return, "%s", mem.why_not);
	self->page = page_size();
	self->mem = mem.addr;
	self->len = mem.len;
	self->own = anon_small(self->page);
	memset(self->own, 'o', self->page);
	fill(self->mem, self->len, 1);
	buf = test_create_one(self->session.dev, variant->flags, self->mem, self->len);
	self->map = mmap(anon_aligned(self->len, hugetlb_size() ?: self->page), self->len,
			 rdonly ? PROT_READ : PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			 buf, 0);
	ASSERT_NE(MAP_FAILED, (void *)self->map);
	EXPECT_FILLED(self->map, self->len, 1);
	if (!rdonly)
		fill(self->map, self->len, 1);
}

FIXTURE_TEARDOWN(taken)
{
	if (self->mem)
		EXPECT_FILLED(self->mem, self->len, 1);
	SESSION_CLOSE(&self->session);
}

TEST_F(taken, by_direct_io)
{
	int fd = file_on("ext4", O_DIRECT);

	if (fd < 0)
		SKIP(return, "no writable ext4");
	ASSERT_EQ(self->page, pwrite(fd, self->own, self->page, 0));
	EXPECT_ERRNO(EFAULT, pwrite(fd, self->map, self->page, 0));
	EXPECT_ERRNO(EFAULT, pread(fd, self->map, self->page, 0));
	EXPECT_ERRNO(EFAULT, pread(fd, self->map + self->len - self->page, self->page, 0));
}

/* From linux/io_uring.h, which conflicts with the sys/mount.h of some libcs */
#define REGISTER_BUFFERS	0
#define UNREGISTER_BUFFERS	1

static int register_buffer(int ring, void *addr, size_t len)
{
	struct iovec iov = { addr, len };

	return syscall(__NR_io_uring_register, ring, REGISTER_BUFFERS, &iov, 1);
}

TEST_F(taken, by_io_uring)
{
	__u32 params[30] = {};
	int ring = syscall(__NR_io_uring_setup, 4, params);

	if (ring < 0)
		SKIP(return, "no io_uring: %s", strerror(errno));
	ASSERT_EQ(0, register_buffer(ring, self->own, self->page));
	ASSERT_EQ(0, syscall(__NR_io_uring_register, ring, UNREGISTER_BUFFERS, NULL, 0));
	EXPECT_ERRNO(EFAULT, register_buffer(ring, self->map, self->page));
	EXPECT_ERRNO(EFAULT, register_buffer(ring, self->map, self->len));
}

TEST_F(taken, by_a_pipe)
{
	struct iovec own = { self->own, self->page }, page = { self->map, self->page };
	int pipes[2];

	ASSERT_EQ(0, pipe(pipes));
	ASSERT_EQ(self->page, vmsplice(pipes[1], &own, 1, 0));
	EXPECT_ERRNO(EFAULT, vmsplice(pipes[1], &page, 1, 0));
	EXPECT_ERRNO(EFAULT, vmsplice(pipes[1], &page, 1, SPLICE_F_GIFT));
}

/* A stopped child that will exit with the signal of a store to @addr, or 0. */
static pid_t traced_child(char *addr)
{
	pid_t pid = fork();

	if (!pid) {
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		_exit(fault_signal(addr, true));
	}
	return waitpid(pid, NULL, WUNTRACED) == pid ? pid : -1;
}

/*
 * ptrace may write to read-only memory of the tracee. On a buffer's mapping it
 * must fail, and leave the mapping's protection unchanged.
 */
TEST_F(taken, by_a_debugger)
{
	bool rdonly = variant->flags & UDMABUF_FLAGS_RDONLY;
	off_t at = (uintptr_t)self->map;
	char path[64], byte;
	pid_t pid = traced_child(self->map);
	int mem;

	ASSERT_LT(0, pid);
	ASSERT_EQ(0, ptrace(PTRACE_POKEDATA, pid, self->own, 1L));
	EXPECT_ERRNO(EIO, ptrace(PTRACE_POKEDATA, pid, self->map, 1L));
	EXPECT_ERRNO(EIO, ptrace(PTRACE_PEEKDATA, pid, self->map, NULL));
	snprintf(path, sizeof(path), "/proc/%d/mem", pid);
	mem = open(path, O_RDWR);
	ASSERT_EQ(1, pwrite(mem, "x", 1, (uintptr_t)self->own));
	EXPECT_ERRNO(EIO, pwrite(mem, "x", 1, at));
	EXPECT_ERRNO(EIO, pread(mem, &byte, 1, at));
	EXPECT_FILLED(self->mem, self->len, 1);
	ptrace(PTRACE_DETACH, pid, NULL, NULL);
	kill(pid, SIGCONT);
	EXPECT_EQ(rdonly ? SIGSEGV : 0, reap(pid));
	if (!rdonly)
		fill(self->map, self->page, 1);
}

TEST_F(taken, by_another_process)
{
	pid_t pid = traced_child(self->map);
	char byte = 'x';
	struct iovec local = { &byte, 1 }, own = { self->own, 1 }, map = { self->map, 1 };

	ASSERT_LT(0, pid);
	ASSERT_EQ(1, process_vm_writev(pid, &local, 1, &own, 1, 0));
	EXPECT_ERRNO(EFAULT, process_vm_writev(pid, &local, 1, &map, 1, 0));
	EXPECT_ERRNO(EFAULT, process_vm_readv(pid, &local, 1, &map, 1, 0));
	kill(pid, SIGKILL);
	reap(pid);
}

/*
 * A buffer of some pages of two huge pages. All other pages stay private to the
 * owner.
 */

#define PIECES	3

FIXTURE(pieces) {
	struct session session;
	char *mem;
	size_t page;
	size_t mem_len;
	struct udmabuf_iovec iovs[PIECES];
	int buf;
	size_t len;
	char *bytes;
};

FIXTURE_VARIANT(pieces) {
	enum mem_kind kind;
};

FIXTURE_VARIANT_ADD(pieces, thp) { .kind = MEM_THP };
FIXTURE_VARIANT_ADD(pieces, hugetlb) { .kind = MEM_HUGETLB };

static void name_piece(struct _test_data_pieces *self, size_t i, size_t off, size_t npages)
{
	self->iovs[i].base = to_u64(self->mem + off);
	self->iovs[i].len = npages * self->page;
}

FIXTURE_SETUP(pieces)
{
	struct mem mem;

	SESSION_OPEN(&self->session);
	SKIP_WITHOUT_IMPORTER();
	mem = mem_get(variant->kind, mem_len(variant->kind));
	if (mem.why_not)
		SKIP(return, "%s", mem.why_not);
	self->page = page_size();
	self->mem = mem.addr;
	self->mem_len = mem.len;
	fill(self->mem, self->mem_len, 1);
	/*
	 * Pages inside a huge page, across the border of the two, and the last
	 * page.
	 */
	name_piece(self, 0, 3 * self->page, 3);
	name_piece(self, 1, mem.len / 2 - self->page, 2);
	name_piece(self, 2, mem.len - self->page, 1);
	self->len = entries_len(self->iovs, PIECES);
	self->buf = test_create(self->session.dev, 0, self->iovs, PIECES);
	self->bytes = malloc(self->len);
	memset(self->bytes, 'x', self->len);
}

FIXTURE_TEARDOWN(pieces)
{
	SESSION_CLOSE(&self->session);
}

/*
 * Expects 'x' in all pages of the buffer and fill() bytes elsewhere. Returns
 * the offset in the memory of the first wrong page, or -1.
 */
static long wrong_page(const struct _test_data_pieces *self)
{
	size_t off, i;

	for (off = 0; off < self->mem_len; off += self->page) {
		char *addr = self->mem + off;
		bool named = false;

		for (i = 0; i < PIECES; i++)
			named |= to_u64(addr) - self->iovs[i].base < self->iovs[i].len;
		if (named ? memcmp(addr, self->bytes, self->page) :
			    filled_until(addr, self->page, 1, off) != -1)
			return off;
	}
	return -1;
}

TEST_F(pieces, device_writes_no_other_page)
{
	int imp = test_attach(self->buf, 0, 0);
	struct udmabuf_importer_map map = test_map(imp, IMPORTER_BIDIRECTIONAL);

	EXPECT_EQ(self->len, map.bytes);
	test_device_write(imp, map.handle, 0, self->bytes, self->len);
	EXPECT_ERRNO(EINVAL, _device_write(imp, map.handle, self->len, "x", 1));
	test_unmap(imp, map.handle);
	EXPECT_EQ(-1, wrong_page(self));
}

TEST_F(pieces, kernel_writes_no_other_page)
{
	int imp = test_attach(self->buf, 0, 0);

	test_vmap(imp);
	test_vwrite(imp, 0, self->bytes, self->len);
	EXPECT_EQ(-1, wrong_page(self));
}

/*
 * The importer's file has its own size and mode. The size and mode of the
 * dma-buf must limit a mapping made through it.
 */
TEST_F(pieces, importers_mapping_ends_with_the_buffer)
{
	int imp = test_attach(self->buf, 0, 0);
	char *map = test_map_buf(imp, self->len, PROT_READ | PROT_WRITE);

	test_err_map_buf(EINVAL, imp, self->len + self->page, PROT_READ, 0);
	test_err_map_buf(EINVAL, imp, self->page, PROT_READ, self->len);
	EXPECT_EQ(MAP_FAILED, mremap(map, self->len, self->len + self->page, MREMAP_MAYMOVE));
	EXPECT_EQ(MAP_FAILED, mremap(map, 0, self->len, MREMAP_MAYMOVE));
	memset(map, 'x', self->len);
	EXPECT_EQ(-1, wrong_page(self));
}

TEST_F(pieces, remapping_shows_no_other_page)
{
	char *map = test_map_buf(self->buf, self->len, PROT_READ | PROT_WRITE);
	size_t page = self->page, npages = self->len / page;

	ASSERT_EQ(0, remap_file_pages(map, page, 0, npages - 1, 0));
	map[0] = 'y';
	EXPECT_EQ('y', self->mem[self->mem_len - page]);
	/* Each failing call leaves a hole at its target address. */
	EXPECT_ERRNO(EINVAL, remap_file_pages(map + 2 * page, page, 0, npages, 0));
	EXPECT_ERRNO(EINVAL, remap_file_pages(map + 3 * page, 2 * page, 0, npages - 1, 0));
	EXPECT_EQ(MAP_FAILED, mremap(map + page, page, page, MREMAP_MAYMOVE | MREMAP_DONTUNMAP));
	EXPECT_EQ(MAP_FAILED, mremap(map, page, 3 * page, MREMAP_MAYMOVE));
	memset(test_map_buf(self->buf, self->len, PROT_READ | PROT_WRITE), 'x', self->len);
	EXPECT_EQ(-1, wrong_page(self));
}

/*
 * Pages of a file. The file system must be told of every store to them. A user
 * who may only read the file must not be able to write to it.
 */

FIXTURE(files) {
	struct session session;
	int dev;
	int fd;
	char *file;
	size_t len;
};

FIXTURE_VARIANT(files) {
	const char *fstype;
	bool in_memory;		/* stores need no notification */
};

FIXTURE_VARIANT_ADD(files, ext4) { .fstype = "ext4" };
FIXTURE_VARIANT_ADD(files, xfs) { .fstype = "xfs" };
FIXTURE_VARIANT_ADD(files, tmpfs) { .fstype = "tmpfs", .in_memory = true };

FIXTURE_SETUP(files)
{
	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	self->len = 8 * page_size();
	self->fd = file_on(variant->fstype, 0);
	if (self->fd < 0)
		SKIP(return, "no writable %s", variant->fstype);
	ASSERT_EQ(0, ftruncate(self->fd, self->len));
	self->file = mmap(NULL, self->len, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, (void *)self->file);
}

FIXTURE_TEARDOWN(files)
{
	if (self->file)
		munmap(self->file, self->len);
	SESSION_CLOSE(&self->session);
}

/*
 * Guards the allow-list: GUP pins file pages for reading, and on Linux 6.1 also
 * for writing.
 */
TEST_F(files, shared_mapping)
{
	int err = variant->in_memory ? 0 : EOPNOTSUPP;
	int rdonly_err = kernel_before(6, 2) ? EOPNOTSUPP : err;

	EXPECT_EQ(err, create_error(self->dev, 0, self->file, self->len))
		TH_LOG("create from a hole of the file");
	EXPECT_EQ(rdonly_err, create_error(self->dev, UDMABUF_FLAGS_RDONLY, self->file, self->len))
		TH_LOG("read-only create from a hole of the file");
	fill(self->file, self->len, 1);
	EXPECT_EQ(err, create_error(self->dev, 0, self->file, self->len))
		TH_LOG("create from dirty pages of the file");
	ASSERT_EQ(0, fsync(self->fd));
	EXPECT_EQ(err, create_error(self->dev, 0, self->file, self->len))
		TH_LOG("create from clean pages of the file");
	EXPECT_EQ(rdonly_err, create_error(self->dev, UDMABUF_FLAGS_RDONLY, self->file, self->len))
		TH_LOG("read-only create from clean pages of the file");
	EXPECT_NOTHING_KEPT(&self->session);
	EXPECT_FILLED(self->file, self->len, 1);
}

TEST_F(files, private_mapping_is_a_copy)
{
	char *copy = mmap(NULL, self->len, PROT_READ | PROT_WRITE, MAP_PRIVATE, self->fd, 0);
	char *map;

	fill(self->file, self->len, 1);
	map = test_map_buf(test_create_one(self->dev, 0, copy, self->len), self->len,
			   PROT_READ | PROT_WRITE);
	EXPECT_FILLED(map, self->len, 1);
	fill(map, self->len, 2);
	EXPECT_FILLED(copy, self->len, 2);
	EXPECT_FILLED(self->file, self->len, 1);
}

/* Change the @copy through a buffer; the @original must stay unchanged. */
static void change_copy(int dev, char *copy, const char *original, size_t len)
{
	int buf = _create_one(dev, 0, copy, len);

	/*
	 * If all free huge pages are in a movable zone, the pin cannot allocate
	 * the copy. Let stores of this process allocate it.
	 */
	if (buf < 0 && errno == EFAULT && len == mem_len(MEM_HUGETLB)) {
		fill(copy, len, 3);
		buf = _create_one(dev, 0, copy, len);
	}
	CHILD_CHECK(buf >= 0);
	fill(_map_buf(buf, len, PROT_READ | PROT_WRITE, 0), len, 2);
	CHILD_CHECK(filled_until(copy, len, 2, 0) == -1);
	CHILD_CHECK(filled_until(original, len, 1, 0) == -1);
}

/*
 * A user's attempts to change a program that only root may write to. All users
 * execute the program.
 */
static void try_to_change(int dev, int program, size_t len, bool in_memory)
{
	char *text = mmap(NULL, len, PROT_READ | PROT_EXEC, MAP_SHARED, program, 0);
	char *copy = mmap(NULL, len, PROT_READ | PROT_EXEC, MAP_PRIVATE, program, 0);
	int buf;

	CHILD_CHECK(text != MAP_FAILED && copy != MAP_FAILED);
	CHILD_CHECK(create_error(dev, 0, text, len) == EFAULT);
	CHILD_CHECK(create_error(dev, 0, copy, len) == EFAULT);
	CHILD_CHECK(mprotect(text, len, PROT_READ | PROT_WRITE) == -1);
	if (!kernel_before(6, 2) && in_memory) {
		buf = _create_one(dev, UDMABUF_FLAGS_RDONLY, text, len);
		CHILD_CHECK(buf >= 0);
		CHILD_CHECK(_map_buf(buf, len, PROT_READ | PROT_WRITE, 0) == MAP_FAILED);
		close(buf);
	} else if (!kernel_before(6, 2)) {
		CHILD_CHECK(create_error(dev, UDMABUF_FLAGS_RDONLY, text, len) == EOPNOTSUPP);
	}
	/* The user may change a private copy. */
	CHILD_CHECK(!mprotect(copy, len, PROT_READ | PROT_WRITE));
	change_copy(dev, copy, text, len);
	_exit(0);
}

TEST_F(files, program_of_others)
{
	int program;
	pid_t pid;

	fill(self->file, self->len, 1);
	ASSERT_EQ(0, fchmod(self->fd, 0555));
	program = reopen(self->fd, O_RDONLY);
	ASSERT_LE(0, program);
	pid = fork();
	if (!pid) {
		munmap(self->file, self->len);
		close(self->fd);
		become(NOBODY_UID, 2 * self->len / page_size());
		CHILD_CHECK(reopen(program, O_RDWR) == -1 && errno == EACCES);
		try_to_change(self->dev, program, self->len, variant->in_memory);
	}
	EXPECT_EQ(0, reap(pid));
	EXPECT_FILLED(self->file, self->len, 1);
}

/* A memfd passed to another user read-only, and a memfd that is sealed later */

FIXTURE(memfds) {
	struct session session;
	int dev;
	int fd;
	char *mem;
	size_t len;
};

FIXTURE_VARIANT(memfds) {
	bool hugetlb;
};

FIXTURE_VARIANT_ADD(memfds, small) { .hugetlb = false };
FIXTURE_VARIANT_ADD(memfds, hugetlb) { .hugetlb = true };

FIXTURE_SETUP(memfds)
{
	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	self->len = mem_len(variant->hugetlb ? MEM_HUGETLB : MEM_MEMFD);
	if (variant->hugetlb)
		hugetlb_provide(3 * self->len);
	self->fd = sealed_memfd(self->len, variant->hugetlb ? MFD_HUGETLB : 0, F_SEAL_SHRINK);
	self->mem = mmap(NULL, self->len, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);
	if (self->mem == MAP_FAILED)
		SKIP(return, "no such memfds here");
	fill(self->mem, self->len, 1);
}

FIXTURE_TEARDOWN(memfds)
{
	SESSION_CLOSE(&self->session);
}

static void try_to_write(int dev, int sock, size_t len)
{
	struct udmabuf_create_item item = { .size = len };
	int fd = receive_fd(sock), buf;
	char *shared, *copy;

	CHILD_CHECK(fd >= 0);
	item.memfd = fd;
	CHILD_CHECK(reopen(fd, O_RDWR) == -1 && errno == EACCES);
	CHILD_CHECK(_create_memfd(dev, 0, fd, 0, len) == -1 && errno == EACCES);
	CHILD_CHECK(_create_list(dev, 0, &item, 1) == -1 && errno == EACCES);
	shared = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, 0);
	copy = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	CHILD_CHECK(shared != MAP_FAILED && copy != MAP_FAILED);
	CHILD_CHECK(create_error(dev, 0, shared, len) == EFAULT);
	if (!kernel_before(6, 2)) {
		buf = _create_one(dev, UDMABUF_FLAGS_RDONLY, shared, len);
		CHILD_CHECK(buf >= 0);
		CHILD_CHECK(_map_buf(buf, len, PROT_READ | PROT_WRITE, 0) == MAP_FAILED);
		close(buf);
	}
	change_copy(dev, copy, shared, len);
	_exit(0);
}

TEST_F(memfds, received_for_reading)
{
	int socks[2];
	pid_t pid;

	ASSERT_EQ(0, fchmod(self->fd, 0444));
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, socks));
	pid = fork();
	if (!pid) {
		munmap(self->mem, self->len);
		close(self->fd);
		become(OTHER_UID, self->len / page_size());
		try_to_write(self->dev, socks[1], self->len);
	}
	ASSERT_EQ(0, send_fd(socks[0], reopen(self->fd, O_RDONLY)));
	EXPECT_EQ(0, reap(pid));
	EXPECT_FILLED(self->mem, self->len, 1);
}

/* The seal fails with EBUSY, as it does for a buffer created from the memfd. */
TEST_F(memfds, write_seal_waits_for_a_buffer_of_its_mapping)
{
	int buf = test_create_one(self->dev, 0, self->mem, self->len);

	munmap(self->mem, self->len);
	EXPECT_ERRNO(EBUSY, fcntl(self->fd, F_ADD_SEALS, F_SEAL_WRITE));
	close(buf);
	sleep_ms(10);
	EXPECT_EQ(0, fcntl(self->fd, F_ADD_SEALS, F_SEAL_WRITE));
}

/* Guards VM_MAYWRITE: a mapping of the importer's writable file has it set. */
TEST_F(memfds, sealed_later_importer_maps_it_for_reading_only)
{
	char *map;
	int imp;

	SKIP_WITHOUT_IMPORTER();
	imp = test_attach(test_create_one(self->dev, 0, self->mem, self->len), 0, 0);
	ASSERT_EQ(0, fcntl(self->fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
	test_err_map_buf(EPERM, imp, self->len, PROT_READ | PROT_WRITE, 0);
	map = test_map_buf(imp, self->len, PROT_READ);
	EXPECT_FILLED(map, self->len, 1);
	EXPECT_ERRNO(EACCES, mprotect(map, self->len, PROT_READ | PROT_WRITE));
	EXPECT_EQ(SIGSEGV, fault_signal(map, true));
}

/*
 * The seals of each memfd count, also if the list names it again after others.
 */
TEST_F(memfds, sealed_later_is_any_of_several)
{
	static const size_t order[] = { 0, 1, 2, 1, 0 };
	struct udmabuf_create_item items[ARRAY_SIZE(order)] = {};
	size_t page = page_size(), sealed, i;
	int fds[3], buf;

	for (sealed = 0; sealed < ARRAY_SIZE(fds); sealed++) {
		for (i = 0; i < ARRAY_SIZE(fds); i++)
			fds[i] = sealed_memfd(page, 0, F_SEAL_SHRINK);
		for (i = 0; i < ARRAY_SIZE(order); i++) {
			items[i].memfd = fds[order[i]];
			items[i].size = page;
		}
		buf = test_create_list(self->dev, 0, items, ARRAY_SIZE(items));
		munmap(test_map_buf(buf, page, PROT_READ | PROT_WRITE), page);
		ASSERT_EQ(0, fcntl(fds[sealed], F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
		test_err_map_buf(EPERM, buf, page, PROT_READ | PROT_WRITE, 0);
		close(buf);
		for (i = 0; i < ARRAY_SIZE(fds); i++)
			close(fds[i]);
		EXPECT_NOTHING_KEPT(&self->session);
	}
}

/* Nested cgroups with a memory limit */

#define GROUP_LIMIT	(2560 * page_size())
#define GROUP_SLACK	(GROUP_LIMIT / 10)	/* each CPU caches a charge of some pages */
#define TOO_MUCH	(2 * GROUP_LIMIT)
#define LISTS_LIMIT	((4UL << 20) + 64 * page_size())
#define LISTED		16384	/* single-page entries, of 256 different pages */
#define MOST_BUFFERS	96

FIXTURE(memcg) {
	struct session session;
	int dev;
	struct cgroups groups;
	int socks[2];
};

FIXTURE_VARIANT(memcg) {
	bool memfd;
};

FIXTURE_VARIANT_ADD(memcg, own_memory) { .memfd = false };
FIXTURE_VARIANT_ADD(memcg, memfd) { .memfd = true };

FIXTURE_SETUP(memcg)
{
	const char *why_not = cgroups_open(&self->groups);

	if (why_not)
		SKIP(return, "%s", why_not);
	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, self->socks));
}

FIXTURE_TEARDOWN(memcg)
{
	SESSION_CLOSE(&self->session);
	cgroups_close(&self->groups);
}

/* Create a buffer of @len bytes of memory that is not yet allocated. */
static int create_untouched(int dev, bool memfd, size_t len)
{
	int fd = memfd ? sealed_memfd(len, 0, F_SEAL_SHRINK) : -1;
	int buf = memfd ? _create_memfd(dev, 0, fd, 0, len) :
			  _create_one(dev, 0, anon_small(len), len);
	int err = errno;

	if (fd >= 0)
		close(fd);
	errno = err;
	return buf;
}

/* Does the usage of the outer group drop to GROUP_SLACK or less? */
static bool group_gets_empty(const struct cgroups *groups)
{
	long long deadline = now_ms() + SETTLE_MS;
	const char *current = cgroup_file(groups, CGROUP_OUTER "/memory.current");

	while (text_number(current, "") > (long)GROUP_SLACK && now_ms() < deadline)
		sleep_ms(20);
	return text_number(current, "") <= (long)GROUP_SLACK;
}

/*
 * Pages are charged to the creator's memcg and its ancestors until the last
 * reference is gone, even after the creator has exited and its memcg is
 * removed.
 */
TEST_F(memcg, pages_stay_charged)
{
	long len = 2048 * page_size();
	pid_t pid = fork();
	int buf;

	if (!pid) {
		CHILD_CHECK(!cgroup_enter(&self->groups, CGROUP_INNER));
		buf = create_untouched(self->dev, variant->memfd, len);
		CHILD_CHECK(buf >= 0 && !send_fd(self->socks[1], buf));
		_exit(0);
	}
	buf = receive_fd(self->socks[0]);
	ASSERT_EQ(0, reap(pid));
	ASSERT_EQ(0, cgroup_remove(&self->groups, CGROUP_INNER));
	EXPECT_LE(len - (long)GROUP_SLACK / 2,
		  text_number(cgroup_file(&self->groups, CGROUP_OUTER "/memory.current"), ""));
	close(buf);
	EXPECT_TRUE(group_gets_empty(&self->groups));
}

/*
 * Exceeding the limit gives ENOMEM or a memcg OOM kill of the creator. This
 * process is outside the memcg and must survive.
 */
static bool ran_out_of_memory(int status)
{
	return !status || status == 128 + SIGKILL;
}

TEST_F(memcg, too_many_pages)
{
	pid_t pid;
	int status;

	ASSERT_EQ(0, cgroup_limit(&self->groups, CGROUP_OUTER, GROUP_LIMIT));
	pid = fork();
	if (!pid) {
		CHILD_CHECK(!cgroup_enter(&self->groups, CGROUP_INNER));
		CHILD_CHECK(create_untouched(self->dev, variant->memfd, TOO_MUCH) == -1);
		CHILD_CHECK(errno == ENOMEM);
		_exit(0);
	}
	status = reap(pid);
	EXPECT_TRUE(ran_out_of_memory(status)) TH_LOG("creator exited with %d", status);
	EXPECT_NOTHING_KEPT(&self->session);
	EXPECT_TRUE(group_gets_empty(&self->groups));
}

/*
 * Create a list buffer of the pages of @fd, or of its mapping @mem, in an order
 * in which no page is followed by its neighbour.
 */
static int create_listed(int dev, bool memfd, int fd, const char *mem)
{
	size_t page = page_size(), place = 0, i;
	void *list = calloc(LISTED, sizeof(struct udmabuf_create_item));
	struct udmabuf_create_item *items = list;
	struct udmabuf_iovec *iovs = list;
	int buf, err;

	for (i = 0; i < LISTED; i++) {
		size_t off = place * page;

		/*
		 * Visits all 256 pages, at distances unlikely to match physical
		 * contiguity.
		 */
		place = (place * 5 + 3) % 256;
		if (memfd)
			items[i] = (struct udmabuf_create_item) { fd, 0, off, page };
		else
			iovs[i] = (struct udmabuf_iovec) { to_u64(mem + off), page };
	}
	buf = memfd ? _create_list(dev, 0, items, LISTED) : _create(dev, 0, iovs, LISTED);
	err = errno;
	free(list);
	errno = err;
	return buf;
}

/*
 * Charges the driver's page lists, 128 KiB per buffer. The pages are charged to
 * this process, which is outside the memcg.
 */
TEST_F(memcg, too_many_lists)
{
	size_t len = 256 * page_size(), count = 0;
	int fd = sealed_memfd(len, 0, F_SEAL_SHRINK), status, i;
	char *mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), byte;
	pid_t pid;

	if (variant->memfd && kernel_before(6, 11))
		SKIP(return, "each entry has the memfd mapped, which takes too long");
	fill(mem, len, 1);
	/*
	 * Migrate pages out of movable memory now. The pins below would migrate
	 * them in list order, and so make them contiguous.
	 */
	close(test_create_one(self->dev, 0, mem, len));
	ASSERT_EQ(0, cgroup_limit(&self->groups, CGROUP_OUTER, LISTS_LIMIT));
	pid = fork();
	if (!pid) {
		CHILD_CHECK(!cgroup_enter(&self->groups, CGROUP_INNER));
		set_capability(CAP_IPC_LOCK, true);
		for (i = 0; i < MOST_BUFFERS; i++) {
			if (create_listed(self->dev, variant->memfd, fd, mem) < 0)
				break;
			tell(self->socks[1]);
		}
		CHILD_CHECK(i < MOST_BUFFERS && errno == ENOMEM);
		_exit(0);
	}
	status = reap(pid);
	EXPECT_TRUE(ran_out_of_memory(status)) TH_LOG("creator exited with %d", status);
	close(self->socks[1]);
	while (read(self->socks[0], &byte, 1) == 1)
		count++;
	EXPECT_LT(0, count);
	EXPECT_GT(MOST_BUFFERS, count);
	EXPECT_NOTHING_KEPT(&self->session);
	EXPECT_TRUE(group_gets_empty(&self->groups));
}

/*
 * A process in a memcg above its memory.high shares a buffer with this one.
 * Each of its allocations may be throttled for seconds. Faults of this process
 * must not be.
 */

#define HIGH		(1024 * 1024UL)
#define HELD		(64UL << 20)	/* bytes locked, keeps usage above HIGH */
#define SHARED_LEN	(256UL << 20)	/* the same 16 pages, repeated */
#define STRIDE		(page_size() / 8 * page_size())	/* bytes mapped by one page table */
#define FAULTERS	8
#define FAULTS		20000	/* at least */
#define WATCHED_MS	2500	/* at least; a throttled allocation takes up to 2 s */

FIXTURE(throttled) {
	struct session session;
	struct cgroups groups;
	int bufs[2];		/* shared with the throttled memcg; private */
	volatile long *counts;
};

static int create_shared(int dev)
{
	static struct udmabuf_create_item items[4096];
	size_t len = 16 * page_size(), n = SHARED_LEN / len, i;
	int fd = sealed_memfd(len, 0, F_SEAL_SHRINK);

	for (i = 0; i < n; i++)
		items[i] = (struct udmabuf_create_item) { fd, 0, 0, len };
	return _create_list(dev, 0, items, n);
}

FIXTURE_SETUP(throttled)
{
	const char *why_not = cgroups_open(&self->groups);
	int i;

	if (why_not)
		SKIP(return, "%s", why_not);
	SESSION_OPEN(&self->session);
	for (i = 0; i < 2; i++) {
		self->bufs[i] = create_shared(self->session.dev);
		ASSERT_LE(0, self->bufs[i]) TH_LOG("create: %s", strerror(errno));
	}
	self->counts = mmap(NULL, page_size(), PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

FIXTURE_TEARDOWN(throttled)
{
	SESSION_CLOSE(&self->session);
	cgroups_close(&self->groups);
}

static void get_throttled(const struct cgroups *groups)
{
	char *held = anon_small(HELD);

	CHILD_CHECK(!cgroup_enter(groups, CGROUP_INNER));
	memset(held, 1, HELD);
	CHILD_CHECK(!mlock(held, HELD));
	CHILD_CHECK(!write_number(cgroup_file(groups, CGROUP_INNER "/memory.high"), HIGH));
}

/* Fault in up to 256 page tables in one system call. */
static void touch_tables(char *map)
{
	int zero = open("/dev/zero", O_RDONLY);
	struct iovec bytes[256];
	size_t n, off;

	for (n = 0, off = 0; n < ARRAY_SIZE(bytes) && off < SHARED_LEN; off += STRIDE)
		bytes[n++] = (struct iovec) { map + off, 1 };
	if (readv(zero, bytes, n) < 0)
		_exit(1);
	close(zero);
}

static void *fault_again_and_again(void *arg)
{
	int buf = *(int *)arg;

	for (;;) {
		char *map = _map_buf(buf, SHARED_LEN, PROT_READ | PROT_WRITE, 0);

		touch_tables(map);
		munmap(map, SHARED_LEN);
	}
	return NULL;
}

static void count_faults(int buf, volatile long *count)
{
	for (;; ++*count) {
		char *map = _map_buf(buf, 16 * page_size(), PROT_READ, 0);

		(void)*(volatile char *)map;
		munmap(map, 16 * page_size());
	}
}

/*
 * Compares faults on the shared buffer with faults on the private one. Each of
 * the two children gets about the same CPU time.
 */
#define EXPECT_FAULTS_IN_BOTH(counts)					\
	do {								\
		long long __end = now_ms() + WATCHED_MS;		\
									\
		(counts)[0] = 0;					\
		(counts)[1] = 0;					\
		while ((counts)[1] < FAULTS || now_ms() < __end)	\
			sleep_ms(20);					\
		TH_LOG("%ld faults in the shared buffer, %ld in the private one", \
		       (counts)[0], (counts)[1]);			\
		EXPECT_LT((counts)[1] / 8, (counts)[0]);		\
	} while (0)

TEST_F(throttled, others_fault)
{
	pid_t pids[3];
	pthread_t thread;
	int i;

	pids[2] = fork();
	if (!pids[2]) {
		get_throttled(&self->groups);
		for (i = 1; i < FAULTERS; i++)
			pthread_create(&thread, NULL, fault_again_and_again, &self->bufs[0]);
		fault_again_and_again(&self->bufs[0]);
	}
	sleep_ms(3000);
	for (i = 0; i < 2; i++) {
		pids[i] = fork();
		if (!pids[i])
			count_faults(self->bufs[i], &self->counts[i]);
	}
	EXPECT_FAULTS_IN_BOTH(self->counts);
	for (i = 0; i < 3; i++) {
		EXPECT_FALSE(waitpid(pids[i], NULL, WNOHANG));
		kill(pids[i], SIGKILL);
		reap(pids[i]);
	}
}

/* Touch backwards, because ascending faults would map growing windows. */
static void count_touched(char *map, volatile long *count)
{
	size_t off;

	for (off = SHARED_LEN; off; off -= 16 * page_size(), ++*count)
		(void)*(volatile char *)(map + off - page_size());
}

/* Fork a child each round: its mapping is not yet faulted in. */
static void fault_in_children(char *map, volatile long *count)
{
	for (;;) {
		pid_t pid = fork();

		if (!pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			if (count)
				count_touched(map, count);
			else
				touch_tables(map);
			_exit(0);
		}
		reap(pid);
	}
}

TEST_F(throttled, others_fault_after_fork)
{
	char *maps[2];
	pid_t pids[FAULTERS + 2];
	int i;

	for (i = 0; i < 2; i++)
		maps[i] = test_map_buf(self->bufs[i], SHARED_LEN, PROT_READ | PROT_WRITE);
	for (i = 0; i < FAULTERS + 2; i++) {
		pids[i] = fork();
		if (pids[i])
			continue;
		if (i < 2)
			fault_in_children(maps[i], &self->counts[i]);
		get_throttled(&self->groups);
		fault_in_children(maps[0], NULL);
	}
	sleep_ms(3000);
	EXPECT_FAULTS_IN_BOTH(self->counts);
	for (i = 0; i < FAULTERS + 2; i++) {
		EXPECT_FALSE(waitpid(pids[i], NULL, WNOHANG));
		kill(pids[i], SIGKILL);
		reap(pids[i]);
	}
}

/* CPU time of a process, in us */
static long long cpu_us(pid_t pid)
{
	struct timespec t = { 0 };
	clockid_t clock;

	if (clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &t))
		return 0;
	return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

/*
 * poll() takes the dma-buf's reservation lock, which is held while mapping. Mapping may
 * take long on a busy machine, but the mapping process must not sleep under the lock.
 */
TEST_F(throttled, others_poll)
{
	struct pollfd fd = { .fd = self->bufs[0], .events = POLLIN | POLLOUT };
	long long start, us, cpu, longest = 0, slept = 0;
	pid_t pid;

	SKIP_WITHOUT_IMPORTER();
	pid = fork();
	if (!pid) {
		struct udmabuf_importer_map map;
		int imp, i;

		get_throttled(&self->groups);
		self->counts[0] = 1;
		/* An allocation is not throttled each time. */
		for (i = 0; i < 5; i++) {
			imp = importer_open();
			CHILD_CHECK(!_attach(imp, self->bufs[0], 0, UINT_MAX));
			CHILD_CHECK(!_map(imp, IMPORTER_TO_DEVICE, &map));
			close(imp);
		}
		self->counts[0] = 2;
		_exit(0);
	}
	while (!self->counts[0] && !waitpid(pid, NULL, WNOHANG))
		sleep_ms(1);
	start = now_us();
	while (self->counts[0] == 1 && now_us() - start < 8 * WATCHED_MS * 1000LL) {
		cpu = cpu_us(pid);
		us = now_us();
		poll(&fd, 1, 0);
		us = now_us() - us;
		cpu = cpu_us(pid) - cpu;
		if (longest < us)
			longest = us;
		if (slept < us - cpu)
			slept = us - cpu;
	}
	TH_LOG("IMPORTER_MAP under way for %lld us, longest poll() %lld us, %lld us asleep",
	       now_us() - start, longest, slept);
	EXPECT_LT(0, self->counts[0]);
	EXPECT_LT(slept, 500000);
	kill(pid, SIGKILL);
	reap(pid);
}

/* Root of a new user namespace, as in a rootless container */

#define LIMIT	16	/* pages */

FIXTURE(userns) {
	struct session session;
	int dev;
	char *mem;
	size_t page;
	struct stat before;
	int socks[2];
};

/*
 * False in a chroot, or if the distribution disables unprivileged namespaces.
 */
static bool has_user_namespaces(void)
{
	pid_t pid = fork();

	if (!pid) {
		become(NOBODY_UID, LIMIT);
		_exit(unshare(CLONE_NEWUSER | CLONE_NEWNS) ? KSFT_SKIP : 0);
	}
	return !reap(pid);
}

FIXTURE_SETUP(userns)
{
	SESSION_OPEN(&self->session);
	if (geteuid())
		SKIP(return, "needs root, to become another user");
	if (!has_user_namespaces())
		SKIP(return, "no user namespaces for users");
	self->dev = self->session.dev;
	self->page = page_size();
	self->mem = anon_small(2 * LIMIT * self->page);
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, self->socks));
	ASSERT_EQ(0, stat("/dev/udmabuf", &self->before));
	ASSERT_EQ(0, chmod("/dev/udmabuf", 0600));
}

FIXTURE_TEARDOWN(userns)
{
	if (self->mem)
		chmod("/dev/udmabuf", self->before.st_mode & 07777);
	SESSION_CLOSE(&self->session);
}

/*
 * Become root in a new user namespace, with every capability, also
 * CAP_IPC_LOCK.
 */
static void become_root_in_namespace(uid_t uid, size_t npages)
{
	char map[32];

	become(uid, npages);
	snprintf(map, sizeof(map), "0 %u 1", uid);
	CHILD_CHECK(!prctl(PR_SET_DUMPABLE, 1));
	CHILD_CHECK(!unshare(CLONE_NEWUSER | CLONE_NEWNS));
	CHILD_CHECK(!write_text("/proc/self/uid_map", map));
	CHILD_CHECK(!write_text("/proc/self/setgroups", "deny"));
	CHILD_CHECK(!write_text("/proc/self/gid_map", map));
	CHILD_CHECK(!geteuid() && has_capability(CAP_IPC_LOCK));
}

/*
 * Guards capable(): CAP_IPC_LOCK of a user namespace must not lift the quota.
 */
TEST_F(userns, root_there_is_held_to_the_quota)
{
	pid_t pid = fork(), other;

	if (!pid) {
		become_root_in_namespace(NOBODY_UID, LIMIT);
		CHILD_CHECK(set_memlock(2 * LIMIT * self->page) == -1 && errno == EPERM);
		CHILD_CHECK(quota_left_is(self->dev, LIMIT));
		CHILD_CHECK(_create_one(self->dev, 0, self->mem, (LIMIT - 1) * self->page) >= 0);
		tell(self->socks[1]);
		hear(self->socks[1]);
		_exit(0);
	}
	hear(self->socks[0]);
	other = fork();
	if (!other) {
		become(NOBODY_UID, LIMIT);
		CHILD_CHECK(quota_left_is(self->dev, 1));
		_exit(0);
	}
	EXPECT_EQ(0, reap(other));
	tell(self->socks[0]);
	EXPECT_EQ(0, reap(pid));
}

TEST_F(userns, root_there_cannot_open_the_device)
{
	pid_t pid = fork();

	if (!pid) {
		become_root_in_namespace(NOBODY_UID, LIMIT);
		CHILD_CHECK(open("/dev/udmabuf", O_RDONLY) == -1 && errno == EACCES);
		CHILD_CHECK(chmod("/dev/udmabuf", 0666) == -1 && errno == EPERM);
		CHILD_CHECK(!mount("none", "/tmp", "tmpfs", 0, NULL));
		CHILD_CHECK(mknod("/tmp/udmabuf", S_IFCHR | 0666, self->before.st_rdev) == -1);
		CHILD_CHECK(errno == EPERM);
		CHILD_CHECK(mount("none", "/tmp", "devtmpfs", 0, NULL) == -1 && errno == EPERM);
		CHILD_CHECK(write_text(parameter_path("list_limit"), "1") == -1);
		_exit(0);
	}
	EXPECT_EQ(0, reap(pid));
}

TEST_HARNESS_MAIN
