// SPDX-License-Identifier: GPL-2.0
/*
 * The ioctls for memfds, as programs for mainline's driver use them. All tests
 * pass on mainline's driver as well.
 */
#include <pthread.h>
#include <sys/time.h>

#define RUNS_ON_MAINLINE
#include "udmabuf_test.h"

enum memfd_kind {
	MEMFD_SMALL,
	MEMFD_THP,
	MEMFD_HUGETLB,
};

FIXTURE(memfd) {
	struct session session;
	int dev;
	int fd;
	char *mem;
	size_t len;
	size_t page;
	size_t npages;
	struct udmabuf_create_item *items;	/* room for npages items */
};

FIXTURE_VARIANT(memfd) {
	enum memfd_kind kind;
};

FIXTURE_VARIANT_ADD(memfd, small) { .kind = MEMFD_SMALL };
FIXTURE_VARIANT_ADD(memfd, thp) { .kind = MEMFD_THP };
FIXTURE_VARIANT_ADD(memfd, hugetlb) { .kind = MEMFD_HUGETLB };

#define SHMEM_THP	"/sys/kernel/mm/transparent_hugepage/shmem_enabled"

static size_t memfd_len(enum memfd_kind kind)
{
	switch (kind) {
	case MEMFD_THP:
		return 2 * thp_size();
	case MEMFD_HUGETLB:
		return 2 * hugetlb_size();
	default:
		return 32 * page_size();
	}
}

FIXTURE_SETUP(memfd)
{
	bool hugetlb = variant->kind == MEMFD_HUGETLB;
	int attempts = 0;

	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	self->page = page_size();
	self->len = memfd_len(variant->kind);
	self->npages = self->len / self->page;
	self->items = calloc(self->npages, sizeof(*self->items));
	if (hugetlb)
		hugetlb_provide(2 * self->len);
	self->fd = sealed_memfd(self->len, hugetlb ? MFD_HUGETLB : 0, F_SEAL_SHRINK);
	if (hugetlb && self->fd < 0)
		SKIP(return, "no hugetlb memfds here");
	ASSERT_LE(0, self->fd);

	if (variant->kind == MEMFD_THP && !self->len)
		SKIP(return, "no transparent huge pages of a usable size");
	if (variant->kind == MEMFD_THP && write_text(SHMEM_THP, "always"))
		SKIP(return, "cannot set " SHMEM_THP);
	self->mem = mmap(NULL, self->len, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);
	if (hugetlb && self->mem == MAP_FAILED)
		SKIP(return, "not enough hugetlb pages");
	ASSERT_NE(MAP_FAILED, (void *)self->mem);
	fill(self->mem, self->len, 1);
	if (variant->kind == MEMFD_THP) {
		while (!physically_contiguous(self->mem, thp_size()) &&
		       attempts++ < LAYOUT_ATTEMPTS) {
			make_room();
			madvise(self->mem, self->len, MADV_REMOVE);
			fill(self->mem, self->len, 1);
		}
		write_text(SHMEM_THP, "never");
		if (!physically_contiguous(self->mem, thp_size()))
			SKIP(return, "the kernel had no transparent huge page to give");
	}
}

FIXTURE_TEARDOWN(memfd)
{
	munmap(self->mem, self->len);
	SESSION_CLOSE(&self->session);
}

static void add_item(struct _test_data_memfd *self, size_t *count, size_t pgoff, size_t npages)
{
	self->items[(*count)++] = (struct udmabuf_create_item) {
		.memfd = self->fd,
		.offset = pgoff * self->page,
		.size = npages * self->page,
	};
}

/* The first item whose memory differs from the buffer, or -1. */
static long wrong_item(const struct _test_data_memfd *self, const char *map, size_t count)
{
	size_t i;

	for (i = 0; i < count; map += self->items[i++].size)
		if (memcmp(map, self->mem + self->items[i].offset, self->items[i].size))
			return i;
	return -1;
}

/*
 * Create a buffer from @count items. Compare buffer and memory, also after
 * stores to either.
 */
#define EXPECT_LIST_WORKS(count)					\
	({								\
		int __buf = test_create_list(self->dev, 0, self->items, count); \
		size_t __i, __len = 0;					\
		char *__map;						\
		for (__i = 0; __i < (count); __i++)			\
			__len += self->items[__i].size;			\
		EXPECT_EQ(__len, lseek(__buf, 0, SEEK_END));		\
		__map = test_map_buf(__buf, __len, PROT_READ | PROT_WRITE); \
		EXPECT_EQ(-1, wrong_item(self, __map, count));		\
		fill(self->mem, self->len, 2);				\
		EXPECT_EQ(-1, wrong_item(self, __map, count));		\
		fill(__map, __len, 3);					\
		EXPECT_EQ(-1, wrong_item(self, __map, count));		\
		__buf;							\
	})

TEST_F(memfd, whole)
{
	int buf = test_create_memfd(self->dev, 0, self->fd, 0, self->len);
	char *map = test_map_buf(buf, self->len, PROT_READ | PROT_WRITE);

	EXPECT_EQ(self->len, lseek(buf, 0, SEEK_END));
	EXPECT_FILLED(map, self->len, 1);
	fill(self->mem, self->len, 2);
	EXPECT_FILLED(map, self->len, 2);
	fill(map, self->len, 3);
	EXPECT_FILLED(self->mem, self->len, 3);
}

TEST_F(memfd, part)
{
	size_t off = 5 * self->page, len = self->len - 9 * self->page;
	int buf = test_create_memfd(self->dev, 0, self->fd, off, len);
	char *map = test_map_buf(buf, len, PROT_READ);

	EXPECT_EQ(len, lseek(buf, 0, SEEK_END));
	EXPECT_EQ(-1, filled_until(map, len, 1, off));
}

TEST_F(memfd, list_of_one)
{
	size_t count = 0;

	add_item(self, &count, 0, self->npages);
	EXPECT_LIST_WORKS(count);
}

TEST_F(memfd, list_of_every_page_in_reverse)
{
	size_t count = 0;

	/* At most mainline's list_limit */
	while (count < self->npages && count < 1024)
		add_item(self, &count, self->npages - 1 - count, 1);
	EXPECT_LIST_WORKS(count);
}

/* Folios named in parts are pinned in parts. */
TEST_F(memfd, list_of_neighbours)
{
	size_t count = 0, i;

	for (i = 0; i + 4 <= self->npages && count < 256; i += 4)
		add_item(self, &count, i, 4);
	EXPECT_LIST_WORKS(count);
}

TEST_F(memfd, list_of_overlapping_pieces)
{
	size_t count = 0, half = self->npages / 2;

	add_item(self, &count, 0, half);
	add_item(self, &count, half, half);
	add_item(self, &count, half / 2, half);
	add_item(self, &count, 1, half - 1);
	add_item(self, &count, half, 1);
	EXPECT_LIST_WORKS(count);
}

TEST_F(memfd, same_page_often)
{
	size_t count = 0;

	while (count < 16)
		add_item(self, &count, 3, 1);
	EXPECT_LIST_WORKS(count);
}

TEST_F(memfd, list_of_several_memfds)
{
	int other = sealed_memfd(4 * self->page, 0, F_SEAL_SHRINK);
	char *mem = mmap(NULL, 4 * self->page, PROT_READ | PROT_WRITE, MAP_SHARED, other, 0);
	size_t count = 0;
	char *map;
	int buf;

	ASSERT_NE(MAP_FAILED, (void *)mem);
	fill(mem, 4 * self->page, 2);
	add_item(self, &count, 1, 1);
	self->items[count++] = (struct udmabuf_create_item) { other, 0, 0, 4 * self->page };
	add_item(self, &count, 2, 1);
	buf = test_create_list(self->dev, 0, self->items, count);
	map = test_map_buf(buf, 6 * self->page, PROT_READ);
	EXPECT_EQ(-1, filled_until(map, self->page, 1, self->page));
	EXPECT_FILLED(map + self->page, 4 * self->page, 2);
	EXPECT_EQ(-1, filled_until(map + 5 * self->page, self->page, 1, 2 * self->page));
}

TEST_F(memfd, several_buffers)
{
	char *maps[4];
	size_t i;
	int buf;

	for (i = 0; i < ARRAY_SIZE(maps); i++) {
		buf = test_create_memfd(self->dev, 0, self->fd, 0, self->len);
		maps[i] = test_map_buf(buf, self->len, PROT_READ | PROT_WRITE);
		close(buf);
	}
	for (i = 0; i < ARRAY_SIZE(maps); i++) {
		fill(maps[i], self->len, 2 + i);
		EXPECT_FILLED(maps[(i + 1) % ARRAY_SIZE(maps)], self->len, 2 + i);
	}
	EXPECT_FILLED(self->mem, self->len, 2 + i - 1);
}

TEST_F(memfd, outlives_the_memfd)
{
	int buf = test_create_memfd(self->dev, 0, self->fd, 0, self->len);
	char *map = test_map_buf(buf, self->len, PROT_READ | PROT_WRITE);

	munmap(self->mem, self->len);
	close(self->fd);
	EXPECT_FILLED(map, self->len, 1);
	fill(map, self->len, 2);
	EXPECT_FILLED(map, self->len, 2);
}

TEST_F(memfd, holes_are_filled)
{
	char *map;
	int buf;

	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, self->len));
	buf = test_create_memfd(self->dev, 0, self->fd, 0, self->len);
	map = test_map_buf(buf, self->len, PROT_READ | PROT_WRITE);
	EXPECT_EQ(0, map[0] | map[self->len / 2] | map[self->len - 1]);
	fill(map, self->len, 2);
	EXPECT_FILLED(self->mem, self->len, 2);
	fill(self->mem, self->len, 3);
	EXPECT_FILLED(map, self->len, 3);
}

TEST_F(memfd, nothing_beyond_the_end)
{
	int buf = test_create_memfd(self->dev, 0, self->fd, 0, self->page);
	char *map = test_map_buf(buf, self->page, PROT_READ);

	test_err_map_buf(EINVAL, buf, 2 * self->page, PROT_READ, 0);
	test_err_map_buf(EINVAL, buf, self->page, PROT_READ, self->page);
	EXPECT_EQ(MAP_FAILED, mremap(map, self->page, 2 * self->page, MREMAP_MAYMOVE));
}

TEST_F(memfd, write_seal_waits_for_the_buffer)
{
	int buf = test_create_memfd(self->dev, 0, self->fd, 0, self->len);

	munmap(self->mem, self->len);
	EXPECT_ERRNO(EBUSY, fcntl(self->fd, F_ADD_SEALS, F_SEAL_WRITE));
	close(buf);
	sleep_ms(10);
	EXPECT_EQ(0, fcntl(self->fd, F_ADD_SEALS, F_SEAL_WRITE));
	test_err_create_memfd(EINVAL, self->dev, 0, self->fd, 0, self->len);
}

/* The test importer: the buffer as a device sees it */

TEST_F(memfd, device_reads_and_writes)
{
	struct udmabuf_importer_map map;
	size_t count = 0;
	char *seen;
	int imp;

	SKIP_WITHOUT_IMPORTER();
	seen = malloc(self->len);
	add_item(self, &count, self->npages / 2, self->npages / 2);
	add_item(self, &count, 0, self->npages / 2);
	imp = test_attach(test_create_list(self->dev, 0, self->items, count), 0, 0);
	map = test_map(imp, IMPORTER_BIDIRECTIONAL);
	EXPECT_EQ(self->len, map.bytes);
	test_device_read(imp, map.handle, 0, seen, self->len);
	EXPECT_EQ(-1, wrong_item(self, seen, count));
	fill(seen, self->len, 2);
	test_device_write(imp, map.handle, 0, seen, self->len);
	test_unmap(imp, map.handle);
	EXPECT_EQ(-1, wrong_item(self, seen, count));
	EXPECT_EQ(-1, filled_until(self->mem + self->len / 2, self->len / 2, 2, 0));
}

/*
 * The driver of Linux 6.12 shows a large folio's first page in all its places.
 */
TEST_F(memfd, kernel_mapping_shows_every_page)
{
	char *seen;
	int imp;

	SKIP_WITHOUT_IMPORTER();
	seen = malloc(self->len);
	imp = test_attach(test_create_memfd(self->dev, 0, self->fd, 0, self->len), 0, 0);
	test_vmap(imp);
	test_vread(imp, 0, seen, self->len);
	EXPECT_FILLED(seen, self->len, 1);
	fill(seen, self->len, 2);
	test_vwrite(imp, 0, seen, self->len);
	EXPECT_FILLED(self->mem, self->len, 2);
	test_vunmap(imp);
}

/* A process that forks during its creates */

#define FORKS		100	/* at least */
#define CREATES		10	/* at least */
#define FORK_LEN	(16 << 20)

FIXTURE(forking) {
	struct session session;
	int dev;
	int fd;
	int failed;
	volatile int created;
	volatile bool done;
};

FIXTURE_SETUP(forking)
{
	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	self->fd = sealed_memfd(FORK_LEN, 0, F_SEAL_SHRINK);
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(forking)
{
	SESSION_CLOSE(&self->session);
}

static bool maps_a_memfd(void)
{
	static char maps[65536];

	return read_text("/proc/self/maps", maps, sizeof(maps)) < 0 ||
	       strstr(maps, "/memfd:udmabuf-test");
}

static void *create_from_holes(void *arg)
{
	struct _test_data_forking *self = arg;
	int buf;

	while (!self->done && !self->failed) {
		fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, FORK_LEN);
		buf = _create_memfd(self->dev, 0, self->fd, 0, FORK_LEN);
		self->created++;
		if (buf < 0)
			self->failed = errno;
		close(buf);
	}
	return NULL;
}

/*
 * A child gets no mapping of the memfd. Before Linux 6.11 a create maps it for a
 * time. A fork() that waits for mmap_lock can come before the mapping is marked:
 * one in twenty here, and more than half if it is not marked.
 */
TEST_F(forking, child_gets_no_mapping)
{
	int i, mapped = 0;
	pthread_t thread;
	pid_t pid;

	ASSERT_EQ(0, pthread_create(&thread, NULL, create_from_holes, self));
	for (i = 0; i < FORKS || (self->created < CREATES && !self->failed); i++) {
		pid = fork();
		if (!pid)
			_exit(maps_a_memfd());
		mapped += reap(pid);
	}
	self->done = true;
	pthread_join(thread, NULL);
	EXPECT_EQ(0, self->failed) TH_LOG("create: %s", strerror(self->failed));
	EXPECT_GE(kernel_before(6, 11) ? i / 4 : 0, mapped);
}

/* Memfds of huge pages that are not yet allocated */

#define HOLES		32
#define SPARE		2	/* unreserved huge pages */
#define PUNCHED_TIMES	40
#define SIGNALS		20
#define SIGNAL_US	5000

FIXTURE(holes) {
	struct session session;
	struct pool before;
	int dev;
	int fd;
	size_t page;
	size_t huge;
	size_t len;
	volatile bool done;
};

FIXTURE_SETUP(holes)
{
	SESSION_OPEN(&self->session);
	/*
	 * A page fault may allocate from a movable zone, and the page cannot be
	 * pinned.
	 */
	if (kernel_before(6, 11))
		SKIP(return, "holes are filled by page faults before Linux 6.11");
	self->dev = self->session.dev;
	self->page = page_size();
	self->huge = hugetlb_size();
	self->len = HOLES * self->huge;
	hugetlb_provide(2 * self->len);
	self->before = pool_read();
	if (self->before.free - self->before.reserved < 2 * HOLES)
		SKIP(return, "not enough hugetlb pages");
	self->fd = sealed_memfd(self->len, MFD_HUGETLB, F_SEAL_SHRINK);
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(holes)
{
	SESSION_CLOSE(&self->session);
	EXPECT_STREQ("", pool_difference(&self->before));
}

static int punch(const struct _test_data_holes *self)
{
	return fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, self->len);
}

/* Each item allocates the huge pages it touches, and no others. */
TEST_F(holes, are_filled_where_they_are_named)
{
	size_t page = page_size(), huge = self->huge;
	struct udmabuf_create_item items[] = {
		{ self->fd, 0, 7 * huge + page, page },
		{ self->fd, 0, 5 * huge - page, 2 * page },
		{ self->fd, 0, 2 * huge, page },
		{ self->fd, 0, 5 * huge, huge },
	};
	struct pool filled = self->before;

	test_create_list(self->dev, 0, items, ARRAY_SIZE(items));
	filled.free -= 4;
	EXPECT_STREQ("", pool_difference(&filled));
}

static void *punch_until_done(void *arg)
{
	struct _test_data_holes *self = arg;

	while (!self->done && !punch(self))
		sleep_ms(1);
	return NULL;
}

/* A create succeeds although holes are punched while it fills them. */
TEST_F(holes, punched_during_create)
{
	pthread_t thread;
	int i, buf;

	ASSERT_EQ(0, pthread_create(&thread, NULL, punch_until_done, self));
	for (i = 0; i < PUNCHED_TIMES; i++) {
		buf = _create_memfd(self->dev, 0, self->fd, 0, 4 * self->huge);
		EXPECT_LE(0, buf) TH_LOG("create: %s", strerror(errno));
		close(buf);
	}
	self->done = true;
	pthread_join(thread, NULL);
}

/* Pages reserved by another user are not available, and stay reserved. */
TEST_F(holes, without_enough_pages_is_enomem)
{
	size_t len = (self->before.free - self->before.reserved - SPARE) * self->huge;
	char *reserved = reserve_hugetlb(len);
	struct pool left = pool_read();
	int i;

	ASSERT_NE(MAP_FAILED, (void *)reserved);
	for (i = 0; i < 3; i++) {
		test_err_create_memfd(ENOMEM, self->dev, 0, self->fd, 0,
				      (SPARE + 1) * self->huge);
		EXPECT_NOTHING_KEPT(&self->session);
		close(test_create_memfd(self->dev, 0, self->fd, 0, SPARE * self->huge));
		ASSERT_EQ(0, punch(self));
		EXPECT_STREQ("", pool_difference(&left));
	}
	EXPECT_EQ(0, fault_signal(reserved, true));
	EXPECT_EQ(0, fault_signal(reserved + len - 1, true));
	munmap(reserved, len);
}

static volatile int signals;

static void stop_timer_at_last(int sig)
{
	static const struct itimerval never;

	if (++signals >= SIGNALS)
		setitimer(ITIMER_REAL, &never, NULL);
}

/*
 * A signal with a handler does not fail a create, with SA_RESTART or without.
 */
TEST_F(holes, signals_during_create)
{
	static const struct itimerval often = { { 0, SIGNAL_US }, { 0, SIGNAL_US } };
	struct sigaction action = { .sa_handler = stop_timer_at_last };
	int i, buf;

	for (i = 0; i < 2; i++) {
		action.sa_flags = i ? SA_RESTART : 0;
		ASSERT_EQ(0, sigaction(SIGALRM, &action, NULL));
		signals = 0;
		ASSERT_EQ(0, setitimer(ITIMER_REAL, &often, NULL));
		while (signals < SIGNALS) {
			buf = _create_memfd(self->dev, 0, self->fd, 0, self->len);
			EXPECT_LE(0, buf) TH_LOG("create: %s", strerror(errno));
			close(buf);
			ASSERT_EQ(0, punch(self));
		}
	}
}

#define STOPS		400

static void *wait_for_signals(void *arg)
{
	for (;;)
		pause();
	return arg;
}

static void create_until_killed(const struct _test_data_holes *self, int *failed)
{
	pthread_t other;
	int buf;

	/* All threads stop, and do not resume at exactly the same time. */
	pthread_create(&other, NULL, wait_for_signals, NULL);
	while (!*failed) {
		buf = _create_memfd(self->dev, 0, self->fd, 0, self->len);
		*failed = buf < 0 ? errno : 0;
		close(buf);
		punch(self);
	}
	pause();
}

/* A create that is stopped and continued returns no kernel-internal errno. */
TEST_F(holes, stops_during_create)
{
	int *failed = mmap(NULL, self->page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
			   -1, 0), i;
	pid_t pid = fork();

	if (!pid)
		create_until_killed(self, failed);
	for (i = 0; i < STOPS && !*failed; i++) {
		kill(pid, SIGSTOP);
		usleep(150 + i % 7 * 100);
		kill(pid, SIGCONT);
		usleep(2000 + i % 13 * 300);
	}
	kill(pid, SIGKILL);
	reap(pid);
	EXPECT_EQ(0, *failed);
}

#define LONG_LIST	60000
#define TIMER_NS	3000000

/*
 * Start a repeating io_uring timer. Its task work interrupts waits that check
 * for signals. Numbers are from linux/io_uring.h, which conflicts with the
 * sys/mount.h of some libcs.
 */
static bool start_task_work(void)
{
	static struct { long long s, ns; } interval = { 0, TIMER_NS };
	static __u32 params[30] = { [1] = 65536, [2] = 1 << 3 };	/* completions */
	int ring = syscall(__NR_io_uring_setup, 8, params);
	char *queue, *entries;

	if (ring < 0)
		return false;
	queue = mmap(NULL, params[16] + 64, PROT_READ | PROT_WRITE, MAP_SHARED, ring, 0);
	entries = mmap(NULL, 64, PROT_READ | PROT_WRITE, MAP_SHARED, ring, 0x10000000);
	if (queue == MAP_FAILED || entries == MAP_FAILED)
		return false;
	entries[0] = 11;	/* IORING_OP_TIMEOUT */
	*(int *)(entries + 4) = -1;
	*(__u64 *)(entries + 16) = to_u64(&interval);
	*(__u32 *)(entries + 24) = 1;
	*(__u32 *)(entries + 28) = 1 << 6;	/* IORING_TIMEOUT_MULTISHOT */
	*(__u32 *)(queue + params[16]) = 0;
	__atomic_store_n((__u32 *)(queue + params[11]), 1, __ATOMIC_RELEASE);
	return syscall(__NR_io_uring_enter, ring, 1, 0, 0, NULL, 0) == 1;
}

/*
 * Task work that runs before a create reaches the hole does not fail the
 * create.
 */
TEST_F(holes, task_work_during_create)
{
	static struct udmabuf_create_item items[LONG_LIST + 1];
	int memfd = sealed_memfd(2 * self->page, 0, F_SEAL_SHRINK), buf, i;
	int n = listed_pages(LONG_LIST) - self->huge / self->page;
	pid_t pid;

	for (i = 0; i < n; i++)
		items[i] = (struct udmabuf_create_item) { memfd, 0, !(i % 2) * self->page,
							  self->page };
	items[i] = (struct udmabuf_create_item) { self->fd, 0, 0, self->huge };
	buf = _create_list(self->dev, 0, items, n);
	if (buf < 0)
		SKIP(return, "this driver takes no list of %d", n);
	close(buf);
	pid = fork();
	if (!pid) {
		if (!start_task_work())
			_exit(KSFT_SKIP);
		_exit(_create_list(self->dev, 0, items, n + 1) < 0 ? KSFT_FAIL : 0);
	}
	i = reap(pid);
	if (i == KSFT_SKIP)
		SKIP(return, "no io_uring");
	EXPECT_EQ(0, i);
}

/*
 * The ABI that QEMU and other programs use, and errnos that select their
 * fallback
 */

FIXTURE(memfd_abi) {
	struct session session;
	int dev;
	int fd;
	size_t page;
	size_t len;
};

FIXTURE_SETUP(memfd_abi)
{
	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	self->page = page_size();
	self->len = 8 * self->page;
	self->fd = sealed_memfd(self->len, 0, F_SEAL_SHRINK);
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(memfd_abi)
{
	SESSION_CLOSE(&self->session);
}

TEST_F(memfd_abi, numbers)
{
	EXPECT_EQ(0x40187542, UDMABUF_CREATE_MEMFD);
	EXPECT_EQ(0x40087543, UDMABUF_CREATE_LIST);
	EXPECT_EQ(24, sizeof(struct udmabuf_create_item));
	EXPECT_EQ(8, sizeof(struct udmabuf_create_list));
}

TEST_F(memfd_abi, mode_of_the_device_does_not_matter)
{
	static const int modes[] = { O_RDONLY, O_WRONLY, O_RDWR };
	size_t i;

	for (i = 0; i < ARRAY_SIZE(modes); i++) {
		int dev = open("/dev/udmabuf", modes[i] | O_CLOEXEC);

		ASSERT_LE(0, dev);
		close(test_create_memfd(dev, 0, self->fd, 0, self->len));
		close(dev);
	}
}

TEST_F(memfd_abi, stray_bits_are_ignored)
{
	struct udmabuf_create_item item = { self->fd, 0xdeadbeef, 0, self->len };
	unsigned int bit;

	for (bit = 1; bit < 32; bit++) {
		close(test_create_memfd(self->dev, 1U << bit, self->fd, 0, self->len));
		close(test_create_list(self->dev, 1U << bit, &item, 1));
	}
	EXPECT_EQ(O_RDWR, O_ACCMODE & fcntl(test_create_memfd(self->dev, ~0U, self->fd, 0,
							      self->len), F_GETFL));
}

/*
 * Before 6.11 the driver must map the memfd to pin it; that fails with ENOMEM.
 */
TEST_F(memfd_abi, all_memory_is_to_be_locked)
{
	size_t len = 16 << 20;
	int memfd = sealed_memfd(len, 0, F_SEAL_SHRINK), status;
	pid_t pid = fork();

	if (!pid) {
		CHILD_CHECK(!set_memlock(8 << 20));
		CHILD_CHECK(!setresgid(NOBODY_UID, NOBODY_UID, NOBODY_UID));
		CHILD_CHECK(!setresuid(NOBODY_UID, NOBODY_UID, NOBODY_UID));
		CHILD_CHECK(!mlockall(MCL_FUTURE));
		_exit(_create_memfd(self->dev, 0, memfd, 0, len) < 0 ? errno : 0);
	}
	status = reap(pid);
	EXPECT_EQ(kernel_before(6, 11) ? ENOMEM : 0, status);
}

TEST_F(memfd_abi, close_on_exec_only_if_asked_for)
{
	struct udmabuf_create_item item = { self->fd, 0, 0, self->len };

	EXPECT_EQ(0, fcntl(test_create_memfd(self->dev, 0, self->fd, 0, self->len), F_GETFD));
	EXPECT_EQ(0, fcntl(test_create_list(self->dev, 0, &item, 1), F_GETFD));
	EXPECT_EQ(FD_CLOEXEC, fcntl(test_create_memfd(self->dev, UDMABUF_FLAGS_CLOEXEC, self->fd, 0,
						      self->len), F_GETFD));
	EXPECT_EQ(FD_CLOEXEC, fcntl(test_create_list(self->dev, UDMABUF_FLAGS_CLOEXEC, &item, 1),
				    F_GETFD));
}

TEST_F(memfd_abi, fd_is_open_for_both_and_named_udmabuf)
{
	int buf = test_create_memfd(self->dev, 0, self->fd, 0, self->len);
	char path[64], text[1024];

	EXPECT_EQ(O_RDWR, fcntl(buf, F_GETFL) & O_ACCMODE);
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", buf);
	ASSERT_LT(0, read_text(path, text, sizeof(text)));
	EXPECT_NE(NULL, strstr(text, "exp_name:\tudmabuf\n"));
}

TEST_F(memfd_abi, unreadable_argument_is_efault)
{
	char *area = mmap(NULL, 2 * self->page, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct udmabuf_create_list *head = (void *)(area + self->page - sizeof(*head));

	EXPECT_ERRNO(EFAULT, ioctl(self->dev, UDMABUF_CREATE_MEMFD, NULL));
	EXPECT_ERRNO(EFAULT, ioctl(self->dev, UDMABUF_CREATE_LIST, NULL));
	munmap(area + self->page, self->page);
	head->count = 1;
	EXPECT_ERRNO(EFAULT, ioctl(self->dev, UDMABUF_CREATE_LIST, head));
}

TEST_F(memfd_abi, alignment_and_size_are_einval)
{
	__u64 page = self->page, len = self->len;
	struct { __u64 offset, size; } bad[] = {
		{ 1, page }, { page / 2, page }, { 0, page / 2 }, { 0, page + 1 }, { 0, 0 },
		{ 0, len + page }, { len, page }, { len - page, 2 * page }, { -page, page },
		{ -page, 2 * page }, { 1ULL << 63, page }, { page, -page }, { 0, 1ULL << 63 },
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		struct udmabuf_create_item items[] = {
			{ self->fd, 0, 0, page },
			{ self->fd, 0, bad[i].offset, bad[i].size },
		};

		test_err_create_memfd(EINVAL, self->dev, 0, self->fd, bad[i].offset, bad[i].size);
		test_err_create_list(EINVAL, self->dev, 0, items, 2);
	}
	test_err_create_list(EINVAL, self->dev, 0, NULL, 0);
}

TEST_F(memfd_abi, what_is_no_memfd_is_ebadfd)
{
	int file = open("/proc/version", O_RDONLY);
	int buf = test_create_memfd(self->dev, 0, self->fd, 0, self->len);
	int pipes[2], socks[2];

	ASSERT_EQ(0, pipe(pipes));
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, socks));
	test_err_create_memfd(EBADFD, self->dev, 0, -1, 0, self->len);
	test_err_create_memfd(EBADFD, self->dev, 0, 1000, 0, self->len);
	test_err_create_memfd(EBADFD, self->dev, 0, self->dev, 0, self->len);
	test_err_create_memfd(EBADFD, self->dev, 0, pipes[0], 0, self->len);
	test_err_create_memfd(EBADFD, self->dev, 0, socks[0], 0, self->len);
	test_err_create_memfd(EBADFD, self->dev, 0, file, 0, self->page);
	test_err_create_memfd(EBADFD, self->dev, 0, open("/dev/zero", O_RDWR), 0, self->page);
	test_err_create_memfd(EBADFD, self->dev, 0, open("/", O_RDONLY), 0, self->page);
	file = open("/dev/hugepages", O_RDONLY);
	test_err_create_memfd(EBADFD, self->dev, 0, file, 0, self->page);
	test_err_create_memfd(EBADFD, self->dev, 0, buf, 0, self->len);
	/* EINVAL for an invalid argument has precedence. */
	test_err_create_memfd(EINVAL, self->dev, 0, -1, 1, self->len);
	test_err_create_memfd(EINVAL, self->dev, 0, -1, 0, 0);
}

TEST_F(memfd_abi, seals)
{
	static const struct { unsigned int seals; int err; } rows[] = {
		{ 0, EINVAL },
		{ F_SEAL_GROW, EINVAL },
		{ F_SEAL_WRITE, EINVAL },
		{ F_SEAL_SHRINK | F_SEAL_WRITE, EINVAL },
		{ F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE, EINVAL },
		{ F_SEAL_SHRINK, 0 },
		{ F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL, 0 },
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		int fd = sealed_memfd(self->len, 0, rows[i].seals);

		ASSERT_LE(0, fd);
		if (rows[i].err)
			test_err_create_memfd(rows[i].err, self->dev, 0, fd, 0, self->len);
		else
			close(test_create_memfd(self->dev, 0, fd, 0, self->len));
	}
	/* Files of a mounted tmpfs cannot have the seal. */
	test_err_create_memfd(EINVAL, self->dev, 0, scratch_file("tmpfs", self->len), 0, self->len);
}

/* A bad entry at any position fails the list, and no page stays pinned. */
TEST_F(memfd_abi, every_entry_is_checked)
{
	struct udmabuf_create_item items[5];
	size_t bad, i;

	for (bad = 0; bad < ARRAY_SIZE(items); bad++) {
		for (i = 0; i < ARRAY_SIZE(items); i++)
			items[i] = (struct udmabuf_create_item) {
				self->fd, 0, i * self->page, self->page
			};
		items[bad].memfd = self->dev;
		test_err_create_list(EBADFD, self->dev, 0, items, ARRAY_SIZE(items));
		items[bad].memfd = self->fd;
		items[bad].offset = self->len;
		test_err_create_list(EINVAL, self->dev, 0, items, ARRAY_SIZE(items));
	}
	EXPECT_NOTHING_KEPT(&self->session);
}

TEST_F(memfd_abi, no_free_fd_is_emfile)
{
	struct rlimit none = { self->fd + 1, self->fd + 1 };
	struct rlimit old;
	int i;

	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &old));
	none.rlim_max = old.rlim_max;
	for (i = 0; i < self->fd; i++)
		if (fcntl(i, F_GETFD) < 0)
			dup2(self->dev, i);
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &none));
	test_err_create_memfd(EMFILE, self->dev, 0, self->fd, 0, self->len);
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &old));
}

/* The buffer is not charged: guests of QEMU are larger than any quota. */
TEST_F(memfd_abi, needs_no_quota)
{
	set_capability(CAP_IPC_LOCK, false);
	ASSERT_EQ(0, set_memlock(0));
	close(test_create_memfd(self->dev, 0, self->fd, 0, self->len));
}

/* Seals added while buffers are created */

struct race {
	int dev;
	int memfd;
	volatile bool sealed;
	volatile bool done;
	size_t created;
	size_t created_sealed;
};

static void *create_until_done(void *arg)
{
	struct race *race = arg;

	while (!race->done) {
		bool sealed = race->sealed;
		int buf = _create_memfd(race->dev, 0, race->memfd, 0, 8 * page_size());

		if (buf < 0)
			continue;
		race->created++;
		race->created_sealed += sealed;
		close(buf);
	}
	return NULL;
}

/* In any order of the calls, a memfd sealed against writing has no buffer. */
TEST_F(memfd_abi, seal_during_create)
{
	struct race race = { .dev = self->dev };
	pthread_t thread;
	int i;

	for (i = 0; i < 20; i++) {
		race.memfd = sealed_memfd(self->len, 0, F_SEAL_SHRINK);
		race.sealed = false;
		race.done = false;
		ASSERT_EQ(0, pthread_create(&thread, NULL, create_until_done, &race));
		sleep_ms(i % 4);
		while (fcntl(race.memfd, F_ADD_SEALS, F_SEAL_WRITE))
			ASSERT_EQ(EBUSY, errno);
		race.sealed = true;
		EXPECT_EQ(self->session.before.pinned, pinned_pages());
		race.done = true;
		pthread_join(thread, NULL);
		close(race.memfd);
	}
	EXPECT_NE(0, race.created);
	EXPECT_EQ(0, race.created_sealed);
}

/* Module parameters, which programs read and administrators write */

FIXTURE(limits) {
	struct session session;
	int dev;
	int fd;
	size_t page;
	char list_limit[32];
	char size_limit[32];
};

FIXTURE_SETUP(limits)
{
	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	self->page = page_size();
	self->fd = sealed_memfd(2 << 20, 0, F_SEAL_SHRINK);
	ASSERT_LT(0, read_text(parameter_path("list_limit"), self->list_limit,
			       sizeof(self->list_limit)));
	ASSERT_LT(0, read_text(parameter_path("size_limit_mb"), self->size_limit,
			       sizeof(self->size_limit)));
	if (access(parameter_path("list_limit"), W_OK))
		SKIP(return, "needs root, to set module parameters");
}

FIXTURE_TEARDOWN(limits)
{
	write_text(parameter_path("list_limit"), self->list_limit);
	write_text(parameter_path("size_limit_mb"), self->size_limit);
	SESSION_CLOSE(&self->session);
}

TEST_F(limits, list_limit)
{
	struct udmabuf_create_item items[4];
	size_t i;

	for (i = 0; i < ARRAY_SIZE(items); i++)
		items[i] = (struct udmabuf_create_item) { self->fd, 0, i * self->page, self->page };
	ASSERT_EQ(0, write_number(parameter_path("list_limit"), 3));
	close(test_create_list(self->dev, 0, items, 3));
	test_err_create_list(EINVAL, self->dev, 0, items, 4);
	ASSERT_EQ(0, write_number(parameter_path("list_limit"), 4));
	close(test_create_list(self->dev, 0, items, 4));
	ASSERT_EQ(0, write_number(parameter_path("list_limit"), 0));
	test_err_create_list(EINVAL, self->dev, 0, items, 1);
	close(test_create_memfd(self->dev, 0, self->fd, 0, self->page));
}

TEST_F(limits, size_limit)
{
	struct udmabuf_create_item items[] = {
		{ self->fd, 0, 0, 1 << 20 },
		{ self->fd, 0, 0, self->page },
	};

	ASSERT_EQ(0, write_number(parameter_path("size_limit_mb"), 1));
	close(test_create_memfd(self->dev, 0, self->fd, 0, 1 << 20));
	test_err_create_memfd(EINVAL, self->dev, 0, self->fd, 0, (1 << 20) + self->page);
	test_err_create_list(EINVAL, self->dev, 0, items, 2);
	ASSERT_EQ(0, write_number(parameter_path("size_limit_mb"), 2));
	close(test_create_memfd(self->dev, 0, self->fd, 0, 2 << 20));
}

TEST_F(limits, free_huge_pages)
{
	size_t len = (pool_read().free + 1) * hugetlb_size();
	int fd = sealed_memfd(len, MFD_HUGETLB, F_SEAL_SHRINK);

	if (fd < 0)
		SKIP(return, "no hugetlb memfds here");
	ASSERT_EQ(0, write_number(parameter_path("size_limit_mb"), (len >> 20) + 1));
	test_err_create_memfd(ENOMEM, self->dev, 0, fd, 0, len);
	close(fd);
}

TEST_HARNESS_MAIN
