// SPDX-License-Identifier: GPL-2.0
/*
 * Events that separate the buffer from its owner: fork, munmap, exec, exit,
 * receivers in other processes, reclaim, and calls that are killed half way.
 */
#include <linux/userfaultfd.h>

#include "udmabuf_test.h"

#define HOLD_ARGUMENT	"--hold"	/* see main() */

FIXTURE(life) {
	struct session session;
	int dev;
	struct mem mem;
	int buf;
	char *map;
	int socks[2];
};

FIXTURE_VARIANT(life) {
	enum mem_kind kind;
	bool shared;
};

FIXTURE_VARIANT_ADD(life, anon) { .kind = MEM_ANON };
FIXTURE_VARIANT_ADD(life, thp) { .kind = MEM_THP };
FIXTURE_VARIANT_ADD(life, hugetlb) { .kind = MEM_HUGETLB };
FIXTURE_VARIANT_ADD(life, cow_file) { .kind = MEM_COW_FILE };
FIXTURE_VARIANT_ADD(life, memfd) { .kind = MEM_MEMFD, .shared = true };

FIXTURE_SETUP(life)
{
	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	self->mem = mem_get(variant->kind, mem_len(variant->kind));
	if (self->mem.why_not)
		SKIP(return, "%s", self->mem.why_not);
	fill(self->mem.addr, self->mem.len, 1);
	self->buf = test_create_one(self->dev, 0, self->mem.addr, self->mem.len);
	self->map = test_map_buf(self->buf, self->mem.len, PROT_READ | PROT_WRITE);
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, self->socks));
}

FIXTURE_TEARDOWN(life)
{
	SESSION_CLOSE(&self->session);
}

/*
 * Guards FOLL_PIN: fork() shares pages that have only a reference. The first
 * writer, here the parent, then gets a copy and loses the buffer.
 */
TEST_F(life, parent_stays_coherent_after_fork)
{
	pid_t pid = fork();

	if (!pid) {
		hear(self->socks[1]);
		if (!variant->shared)
			CHILD_CHECK(filled_until(self->mem.addr, self->mem.len, 1, 0) == -1);
		memset(self->mem.addr, 'c', self->mem.len);
		tell(self->socks[1]);
		hear(self->socks[1]);
		_exit(0);
	}
	fill(self->mem.addr, self->mem.len, 2);
	EXPECT_FILLED(self->map, self->mem.len, 2);
	fill(self->map, self->mem.len, 3);
	EXPECT_FILLED(self->mem.addr, self->mem.len, 3);
	tell(self->socks[0]);
	hear(self->socks[0]);
	if (!variant->shared)
		EXPECT_FILLED(self->map, self->mem.len, 3);
	fill(self->mem.addr, self->mem.len, 4);
	EXPECT_FILLED(self->map, self->mem.len, 4);
	tell(self->socks[0]);
	EXPECT_EQ(0, reap(pid));
}

/* The child's copy is not in the buffer, also after the parent has exited. */
TEST_F(life, child_has_a_copy)
{
	pid_t pid = fork();

	if (!pid) {
		memset(self->map, 'b', self->mem.len);
		if (variant->shared)
			CHILD_CHECK(self->mem.addr[0] == 'b');
		else
			CHILD_CHECK(filled_until(self->mem.addr, self->mem.len, 1, 0) == -1);
		_exit(0);
	}
	EXPECT_EQ(0, reap(pid));
	EXPECT_EQ('b', self->mem.addr[0]);
	EXPECT_EQ('b', self->mem.addr[self->mem.len - 1]);
}

/* A buffer made by the child does not affect the parent's. */
TEST_F(life, child_makes_its_own)
{
	pid_t pid = fork();

	if (!pid) {
		int buf = _create_one(self->dev, 0, self->mem.addr, self->mem.len);
		char *map = _map_buf(buf, self->mem.len, PROT_READ | PROT_WRITE, 0);

		CHILD_CHECK(map != MAP_FAILED);
		CHILD_CHECK(filled_until(map, self->mem.len, 1, 0) == -1);
		memset(self->mem.addr, 'c', self->mem.len);
		CHILD_CHECK(map[self->mem.len - 1] == 'c');
		_exit(0);
	}
	EXPECT_EQ(0, reap(pid));
	if (!variant->shared)
		EXPECT_FILLED(self->map, self->mem.len, 1);
	fill(self->mem.addr, self->mem.len, 2);
	EXPECT_FILLED(self->map, self->mem.len, 2);
}

TEST_F(life, buffer_outlives_munmap)
{
	ASSERT_EQ(0, munmap(self->mem.addr, self->mem.len));
	EXPECT_FILLED(self->map, self->mem.len, 1);
	fill(self->map, self->mem.len, 2);
	EXPECT_FILLED(self->map, self->mem.len, 2);
}

/* The owner then gets other pages; the buffer keeps its own. */
TEST_F(life, madv_dontneed_parts_them)
{
	ASSERT_EQ(0, madvise(self->mem.addr, self->mem.len, MADV_DONTNEED));
	if (!variant->shared)
		EXPECT_EQ(0, self->mem.addr[0]);
	EXPECT_FILLED(self->map, self->mem.len, 1);
	memset(self->mem.addr, 'o', self->mem.len);
	EXPECT_EQ(variant->shared, self->map[0] == 'o');
}

TEST_F(life, remapped_memory_is_another)
{
	char *again = mmap(self->mem.addr, self->mem.len, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);

	ASSERT_EQ((void *)self->mem.addr, (void *)again);
	memset(again, 'x', self->mem.len);
	EXPECT_FILLED(self->map, self->mem.len, 1);
}

TEST_F(life, protection_changes_do_not_matter)
{
	ASSERT_EQ(0, mprotect(self->mem.addr, self->mem.len, PROT_READ));
	fill(self->map, self->mem.len, 2);
	EXPECT_FILLED(self->mem.addr, self->mem.len, 2);
	ASSERT_EQ(0, mprotect(self->mem.addr, self->mem.len, PROT_READ | PROT_WRITE));
	fill(self->mem.addr, self->mem.len, 3);
	EXPECT_FILLED(self->map, self->mem.len, 3);
}

/* Reclaim and migration do not move pinned pages. */
TEST_F(life, reclaim_leaves_the_pages)
{
	madvise(self->mem.addr, self->mem.len, MADV_PAGEOUT);
	make_room();
	fill(self->mem.addr, self->mem.len, 2);
	EXPECT_FILLED(self->map, self->mem.len, 2);
}

/* Processes that end while their buffer exists */

FIXTURE(owners) {
	struct session session;
	int dev;
	size_t len;
	int socks[2];
};

FIXTURE_SETUP(owners)
{
	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	self->len = 32 * page_size();
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, self->socks));
}

FIXTURE_TEARDOWN(owners)
{
	SESSION_CLOSE(&self->session);
}

/* Create a buffer of filled memory and send it to the parent. */
static int make_and_send(int dev, int sock, size_t len, __u32 flags)
{
	char *mem = anon_small(len);
	int buf;

	fill(mem, len, 1);
	buf = _create_one(dev, flags, mem, len);
	CHILD_CHECK(buf >= 0);
	CHILD_CHECK(!send_fd(sock, buf));
	return buf;
}

TEST_F(owners, exit)
{
	pid_t pid = fork();
	char *map;
	int buf;

	if (!pid) {
		make_and_send(self->dev, self->socks[1], self->len, 0);
		_exit(0);
	}
	buf = receive_fd(self->socks[0]);
	ASSERT_EQ(0, reap(pid));
	map = test_map_buf(buf, self->len, PROT_READ | PROT_WRITE);
	EXPECT_FILLED(map, self->len, 1);
	fill(map, self->len, 2);
	EXPECT_FILLED(map, self->len, 2);
}

/* The kernel closes the buffers of a killed process. */
TEST_F(owners, killed_without_close)
{
	pid_t pid = fork();
	int buf;

	if (!pid) {
		make_and_send(self->dev, self->socks[1], self->len, 0);
		pause();
		_exit(0);
	}
	buf = receive_fd(self->socks[0]);
	close(buf);
	kill(pid, SIGKILL);
	EXPECT_EQ(128 + SIGKILL, reap(pid));
	EXPECT_NOTHING_KEPT(&self->session);
}

static void exec_and_hold(int sock, int buf)
{
	char sock_text[16], buf_text[16];

	snprintf(sock_text, sizeof(sock_text), "%d", sock);
	snprintf(buf_text, sizeof(buf_text), "%d", buf);
	execl("/proc/self/exe", "udmabuf_life", HOLD_ARGUMENT, sock_text, buf_text, NULL);
	_exit(KSFT_FAIL);
}

/*
 * Runs after exec(): report whether the fd is open, then wait until told to
 * exit.
 */
static int hold(int sock, int buf)
{
	char have = fcntl(buf, F_GETFD) >= 0;
	char byte;

	if (write(sock, &have, 1) != 1 || read(sock, &byte, 1) != 1)
		return KSFT_FAIL;
	return 0;
}

TEST_F(owners, exec)
{
	__u32 flags;

	for (flags = 0; flags <= UDMABUF_FLAGS_CLOEXEC; flags++) {
		pid_t pid = fork();
		char have = 2, *map;
		int buf;

		if (!pid)
			exec_and_hold(self->socks[1], make_and_send(self->dev, self->socks[1],
								    self->len, flags));
		buf = receive_fd(self->socks[0]);
		map = test_map_buf(buf, self->len, PROT_READ);
		ASSERT_EQ(1, read(self->socks[0], &have, 1));
		EXPECT_EQ(flags != UDMABUF_FLAGS_CLOEXEC, have);
		EXPECT_FILLED(map, self->len, 1);
		tell(self->socks[0]);
		EXPECT_EQ(0, reap(pid));
		EXPECT_FILLED(map, self->len, 1);
	}
}

/* Guards against an uncharge by current->mm, which is NULL during exit. */
TEST_F(owners, last_reference_dies_with_another_process)
{
	pid_t pid = fork();
	int buf;

	if (!pid) {
		close(self->socks[0]);
		buf = receive_fd(self->socks[1]);
		CHILD_CHECK(buf >= 0);
		CHILD_CHECK(_map_buf(buf, self->len, PROT_READ, 0) != MAP_FAILED);
		tell(self->socks[1]);
		hear(self->socks[1]);
		_exit(0);
	}
	buf = test_create_one(self->dev, 0, anon_small(self->len), self->len);
	ASSERT_EQ(0, send_fd(self->socks[0], buf));
	hear(self->socks[0]);
	close(buf);
	tell(self->socks[0]);
	EXPECT_EQ(0, reap(pid));
	EXPECT_NOTHING_KEPT(&self->session);
}

/* An fd in flight in an unread socket is freed with the socket. */
TEST_F(owners, fd_in_flight_is_freed_with_the_socket)
{
	int buf = test_create_one(self->dev, 0, anon_small(self->len), self->len);

	ASSERT_EQ(0, send_fd(self->socks[0], buf));
	close(buf);
	close(self->socks[0]);
	close(self->socks[1]);
	EXPECT_NOTHING_KEPT(&self->session);
}

/* Reclaim */

FIXTURE(reclaim) {
	struct session session;
	int dev;
	size_t len;
	char *mem;
	char *control;
	cpu_set_t cpus;
};

FIXTURE_SETUP(reclaim)
{
	cpu_set_t one;

	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	self->len = 32 * page_size();
	self->mem = anon_small(2 * self->len);
	self->control = self->mem + self->len;
	/* MADV_FREE queues pages on a list of the current CPU. */
	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	sched_setaffinity(0, sizeof(one), &one);
}

FIXTURE_TEARDOWN(reclaim)
{
	SESSION_CLOSE(&self->session);
}

/* Is the page at @addr still in memory? */
static bool is_cached(char *addr)
{
	unsigned char vec = 1;

	mincore(addr, page_size(), &vec);
	return vec & 1;
}

/* Reclaim @mem until the page at @control is gone; false if it stays. */
static bool reclaimed(char *mem, size_t len, char *control)
{
	int attempts;

	for (attempts = 0; attempts < LAYOUT_ATTEMPTS; attempts++) {
		madvise(mem, len, MADV_PAGEOUT);
		if (!is_cached(control))
			return true;
		sleep_ms(10);
	}
	return false;
}

/*
 * The release must mark pages dirty. Reclaim discards a page after MADV_FREE
 * unless a store followed. Here a store followed only through the buffer, which
 * the owner's page tables do not show. The control pages verify that reclaim
 * discards clean pages.
 */
TEST_F(reclaim, store_through_the_buffer_survives_madv_free)
{
	int buf;
	char *map;

	fill(self->mem, 2 * self->len, 1);
	buf = test_create_one(self->dev, 0, self->mem, self->len);
	map = test_map_buf(buf, self->len, PROT_READ | PROT_WRITE);
	ASSERT_EQ(0, madvise(self->mem, 2 * self->len, MADV_FREE));
	fill(map, self->len, 2);
	munmap(map, self->len);
	close(buf);
	EXPECT_NOTHING_KEPT(&self->session);
	if (!reclaimed(self->mem, 2 * self->len, self->control))
		SKIP(return, "the kernel did not reclaim the control pages");
	EXPECT_FILLED(self->mem, self->len, 2);
}

#define SCATTERED_PAGES	2500
#define SCATTERED_STEP	1009	/* prime */

/*
 * The same with enough scattered pages that the buffer is stored as a page
 * list.
 */
TEST_F(reclaim, store_through_a_scattered_buffer_survives_madv_free)
{
	static struct udmabuf_iovec iovs[SCATTERED_PAGES];
	size_t len = SCATTERED_PAGES * page_size(), i;
	char *mem = anon_small(len), *map;
	int buf;

	fill(mem, len, 1);
	fill(self->control, self->len, 1);
	close(test_create_one(self->dev, 0, mem, len));
	make_entries(iovs, SCATTERED_PAGES, mem, page_size(), SCATTERED_STEP);
	buf = test_create(self->dev, 0, iovs, SCATTERED_PAGES);
	map = test_map_buf(buf, len, PROT_READ | PROT_WRITE);
	ASSERT_EQ(0, madvise(mem, len, MADV_FREE));
	ASSERT_EQ(0, madvise(self->control, self->len, MADV_FREE));
	fill(map, len, 2);
	munmap(map, len);
	close(buf);
	EXPECT_NOTHING_KEPT(&self->session);
	if (!reclaimed(self->control, self->len, self->control))
		SKIP(return, "the kernel did not reclaim the control pages");
	madvise(mem, len, MADV_PAGEOUT);
	for (i = 0; i < SCATTERED_PAGES; i++)
		ASSERT_EQ(-1, filled_until((void *)(uintptr_t)iovs[i].base, page_size(), 2,
					   i * page_size()))
			TH_LOG("wrong bytes in page %zu of the buffer", i);
}

/*
 * The same for holes of a memfd. Loads fill the holes, so the pages are
 * scattered and clean. The page behind the buffer is the control page.
 */
TEST_F(reclaim, store_through_a_scattered_buffer_survives_in_memfd_holes)
{
	static struct udmabuf_iovec iovs[SCATTERED_PAGES];
	size_t page = page_size(), len = SCATTERED_PAGES * page, i;
	int memfd = sealed_memfd(len + page, 0, F_SEAL_SHRINK);
	char *mem = mmap(NULL, len + page, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	char *map;
	int buf;

	ASSERT_NE(MAP_FAILED, (void *)mem);
	madvise(mem, len + page, MADV_RANDOM);
	make_entries(iovs, SCATTERED_PAGES, mem, page, SCATTERED_STEP);
	for (i = 0; i < SCATTERED_PAGES; i++)
		EXPECT_EQ(0, *(char *)(uintptr_t)iovs[i].base);
	EXPECT_EQ(0, mem[len]);
	/*
	 * Migrate pages in this order first. A read-only buffer leaves the
	 * pages clean.
	 */
	close(_create(self->dev, UDMABUF_FLAGS_RDONLY, iovs, SCATTERED_PAGES));
	buf = test_create_memfd(self->dev, 0, memfd, 0, len);
	map = test_map_buf(buf, len, PROT_READ | PROT_WRITE);
	fill(map, len, 2);
	munmap(map, len);
	close(buf);
	EXPECT_NOTHING_KEPT(&self->session);
	if (!reclaimed(mem, len + page, mem + len))
		SKIP(return, "the kernel did not reclaim the control page");
	EXPECT_FILLED(mem, len, 2);
}

/* While it is pinned, a page survives MADV_FREE as well. */
TEST_F(reclaim, pinned_page_survives_madv_free)
{
	int buf;
	char *map;

	fill(self->mem, 2 * self->len, 1);
	buf = test_create_one(self->dev, 0, self->mem, self->len);
	map = test_map_buf(buf, self->len, PROT_READ | PROT_WRITE);
	ASSERT_EQ(0, madvise(self->mem, 2 * self->len, MADV_FREE));
	ASSERT_EQ(0, madvise(self->mem, 2 * self->len, MADV_PAGEOUT));
	EXPECT_FILLED(map, self->len, 1);
	EXPECT_FILLED(self->mem, self->len, 1);
	fill(self->mem, self->len, 2);
	EXPECT_FILLED(map, self->len, 2);
}

/* As above, with stores into a hole of a memfd. Mainline's driver loses them. */
TEST_F(reclaim, store_through_the_buffer_survives_in_a_memfd_hole)
{
	char *file = map_memfd(self->len);
	int buf = test_create_one(self->dev, 0, file, self->len);
	char *map = test_map_buf(buf, self->len, PROT_READ | PROT_WRITE);

	fill(map, self->len, 2);
	munmap(map, self->len);
	close(buf);
	EXPECT_NOTHING_KEPT(&self->session);
	madvise(file, self->len, MADV_PAGEOUT);
	EXPECT_FILLED(file, self->len, 2);
}

/* Calls that are killed, and unlimited pins */

FIXTURE(killed) {
	struct session session;
	int dev;
	int socks[2];
};

FIXTURE_SETUP(killed)
{
	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, self->socks));
}

FIXTURE_TEARDOWN(killed)
{
	SESSION_CLOSE(&self->session);
}

/*
 * A range whose second half blocks at a page fault; NULL without userfaultfd.
 */
static char *blocking_range(size_t len)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	char *mem = anon_small(len);

	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		return NULL;
	memset(mem, 1, len / 2);
	reg.range.start = to_u64(mem + len / 2);
	reg.range.len = len / 2;
	return ioctl(uffd, UFFDIO_REGISTER, &reg) ? NULL : mem;
}

/*
 * Start a child that waits in the middle of a create. Sets *@can to 'y', or to
 * 'n' without userfaultfd.
 */
static pid_t start_waiter(int dev, const int *socks, char *can)
{
	size_t len = 16 * page_size();
	pid_t pid = fork();

	if (!pid) {
		char *mem = blocking_range(len);

		*can = mem ? 'y' : 'n';
		if (write(socks[1], can, 1) == 1 && mem)
			_create_one(dev, 0, mem, len);
		_exit(errno == EFAULT);
	}
	if (read(socks[0], can, 1) != 1)
		*can = 0;
	return pid;
}

/*
 * No lock may be held while pinning: a userfaultfd page fault may take
 * arbitrarily long. Other creates must work, and the call must be killable.
 */
TEST_F(killed, create_that_waits_for_userfaultfd)
{
	size_t len = 16 * page_size();
	long long start;
	char can;
	pid_t pid = start_waiter(self->dev, self->socks, &can);

	ASSERT_NE(0, can);
	if (can != 'y') {
		reap(pid);
		SKIP(return, "no userfaultfd for us");
	}
	for (start = now_ms(); now_ms() < start + 2000 && !is_blocked(pid); )
		sleep_ms(10);
	sleep_ms(50);
	if (kernel_before(6, 3) && !is_blocked(pid)) {
		EXPECT_EQ(1, reap(pid));
		SKIP(return, "long-term pins do not wait for userfaultfd before Linux 6.3");
	}
	EXPECT_TRUE(is_blocked(pid));
	close(test_create_one(self->dev, 0, anon_small(len), len));

	start = now_ms();
	kill(pid, SIGKILL);
	EXPECT_EQ(128 + SIGKILL, reap(pid));
	EXPECT_GT(2000, now_ms() - start);
	EXPECT_NOTHING_KEPT(&self->session);
}

#define WAITERS	40	/* enough to make all creates pin smaller batches */

/* Blocked creates make others pin smaller batches, without other effects. */
TEST_F(killed, create_while_many_wait)
{
	static struct udmabuf_iovec iovs[4097];
	size_t page = page_size(), len = ARRAY_SIZE(iovs) * page, i;
	char *mem = anon_small(len), *map;
	pid_t pids[WAITERS];
	bool waiting = true;
	char can;
	int buf;

	for (i = 0; i < WAITERS; i++) {
		pids[i] = start_waiter(self->dev, self->socks, &can);
		ASSERT_NE(0, can);
	}
	sleep_ms(100);
	for (i = 0; i < WAITERS; i++)
		waiting &= is_blocked(pids[i]);
	fill(mem, len, 1);
	close(test_create_one(self->dev, 0, mem, len));
	make_entries(iovs, ARRAY_SIZE(iovs), mem, page, SCATTERED_STEP);
	buf = test_create(self->dev, 0, iovs, ARRAY_SIZE(iovs));
	for (i = 0; i < WAITERS; i++) {
		kill(pids[i], SIGKILL);
		reap(pids[i]);
	}
	if (!waiting && kernel_before(6, 3))
		SKIP(return, "long-term pins do not wait for userfaultfd before Linux 6.3");
	if (can != 'y')
		SKIP(return, "no userfaultfd for us");
	EXPECT_TRUE(waiting);
	map = test_map_buf(buf, len, PROT_READ);
	EXPECT_TRUE(buffer_is(map, iovs, ARRAY_SIZE(iovs)));
}

#define LARGE_PAGES	2048L
#define LARGE_TIMES	(listed_pages(64 * LARGE_PAGES) / LARGE_PAGES)

/* Create a buffer that names the same memory LARGE_TIMES. */
static void create_large(int dev, char *mem)
{
	struct udmabuf_iovec iovs[64];

	make_entries(iovs, LARGE_TIMES, mem, LARGE_PAGES * page_size(), 0);
	_create(dev, 0, iovs, LARGE_TIMES);
}

/*
 * Mainline's driver checks for signals only after all pins. If this process
 * got no CPU until the create was almost done, try again.
 */
TEST_F(killed, large_create)
{
	long all = LARGE_TIMES * LARGE_PAGES, start, at, late;
	char *mem = anon_small(LARGE_PAGES * page_size());
	int tries = 100;
	pid_t pid;

	set_capability(CAP_IPC_LOCK, true);
	if (!has_capability(CAP_IPC_LOCK))
		SKIP(return, "needs CAP_IPC_LOCK");
	fill(mem, LARGE_PAGES * page_size(), 1);
	do {
		start = pages_pinned();
		pid = fork();
		if (!pid) {
			create_large(self->dev, mem);
			_exit(1);
		}
		late = kill_while_pinning(pid, start, LARGE_PAGES, &at);
	} while ((late < 0 || at > all / 4) && --tries);
	EXPECT_LT(0, tries);
	EXPECT_GT(all / 2, late) TH_LOG("%ld pages in all, %ld pinned after SIGKILL", all, late);
	set_capability(CAP_IPC_LOCK, false);
	EXPECT_NOTHING_KEPT(&self->session);
}

/* Map one page @npages times in a row, so that one range pins it many times. */
static char *map_in_a_row(size_t npages)
{
	size_t page = page_size(), i;
	int fd = sealed_memfd(page, 0, 0);
	char *area = mmap(NULL, npages * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (i = 0; i < npages; i++)
		if (mmap(area + i * page, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			 fd, 0) == MAP_FAILED)
			return MAP_FAILED;
	return area;
}

/*
 * 2^21 pins of one page overflow its reference count, and the kernel
 * warns shortly before. The create must fail regardless of the quota.
 */
TEST_F(killed, pins_of_one_page_are_bounded)
{
	size_t page = page_size(), npages = 4096, niov = 2 * (1 << 21) / npages;
	struct udmabuf_iovec *iovs = calloc(niov, sizeof(*iovs));
	char *area = map_in_a_row(npages);

	set_capability(CAP_IPC_LOCK, true);
	if (!has_capability(CAP_IPC_LOCK))
		SKIP(return, "needs CAP_IPC_LOCK");
	ASSERT_NE(MAP_FAILED, (void *)area);
	make_entries(iovs, niov, area, npages * page, 0);
	/* A 32-bit kernel refuses that size first. */
	test_err_create(largest_size() / page < 1 << 21 ? E2BIG : ENOMEM, self->dev, 0, iovs, niov);
	EXPECT_EQ(0, fault_signal(area, true));
}

/* The same by many creates, each with fewer pins. */
TEST_F(killed, pins_of_one_page_are_bounded_over_all_buffers)
{
	size_t page = page_size(), npages = 4096, niov = 32, i;
	struct udmabuf_iovec *iovs = calloc(niov, sizeof(*iovs));
	char *area = map_in_a_row(npages);
	int buf = -1;

	set_capability(CAP_IPC_LOCK, true);
	if (!has_capability(CAP_IPC_LOCK))
		SKIP(return, "needs CAP_IPC_LOCK");
	ASSERT_NE(MAP_FAILED, (void *)area);
	make_entries(iovs, niov, area, npages * page, 0);
	for (i = 0; i < 17; i++) {
		buf = _create(self->dev, 0, iovs, niov);
		if (buf < 0)
			break;
	}
	EXPECT_EQ(-1, buf);
	EXPECT_EQ(ENOMEM, errno);
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], HOLD_ARGUMENT))
		return hold(atoi(argv[2]), atoi(argv[3]));
	return test_harness_run(argc, argv);
}
