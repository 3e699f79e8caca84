// SPDX-License-Identifier: GPL-2.0
/*
 * Defects of mainline's driver for buffers of memfds. Each test fails on it
 * (Linux 7.3), some only with swiotlb=force on the kernel command line. Some
 * trigger a warning or an oops. The comment at a test says what that driver does.
 */
#include <pthread.h>

#define RUNS_ON_MAINLINE
#include "udmabuf_test.h"

FIXTURE(defects) {
	struct session session;
	int dev;
	int fd;
	size_t page;
	size_t len;
	char list_limit[16];	/* value to restore */
};

FIXTURE_SETUP(defects)
{
	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	self->page = page_size();
	self->len = 64 * self->page;
	self->fd = sealed_memfd(self->len, 0, F_SEAL_SHRINK);
	ASSERT_LE(0, self->fd);
	ASSERT_LT(0, read_text(parameter_path("list_limit"), self->list_limit,
			       sizeof(self->list_limit)));
}

FIXTURE_TEARDOWN(defects)
{
	write_text(parameter_path("list_limit"), self->list_limit);
	SESSION_CLOSE(&self->session);
}

static char *map_fd(int fd, size_t len, int prot)
{
	return mmap(NULL, len, prot, MAP_SHARED, fd, 0);
}

/* A memfd opened for reading only gives a writable buffer. */
TEST_F(defects, memfd_open_for_reading_is_eacces)
{
	struct udmabuf_create_item items[] = {
		{ self->fd, 0, 0, self->page },
		{ reopen(self->fd, O_RDONLY), 0, 0, self->page },
	};

	test_err_create_memfd(EACCES, self->dev, 0, items[1].memfd, 0, self->len);
	test_err_create_list(EACCES, self->dev, 0, items, 2);
	EXPECT_NOTHING_KEPT(&self->session);
	/*
	 * An error that mainline reports for another reason is reported here,
	 * too.
	 */
	test_err_create_memfd(EINVAL, self->dev, 0, items[1].memfd, 0, self->len + self->page);
	close(test_create_memfd(self->dev, 0, reopen(self->fd, O_RDWR), 0, self->len));
}

/* Stores into a hole do not dirty its pages, so reclaim discards them. */
TEST_F(defects, stores_into_holes_survive_reclaim)
{
	int buf = test_create_memfd(self->dev, 0, self->fd, 0, self->len);
	char *map = test_map_buf(buf, self->len, PROT_READ | PROT_WRITE);
	char *mem;

	fill(map, self->len, 1);
	munmap(map, self->len);
	close(buf);
	EXPECT_NOTHING_KEPT(&self->session);
	mem = map_fd(self->fd, self->len, PROT_READ);
	EXPECT_FILLED(mem, self->len, 1);
	madvise(mem, self->len, MADV_PAGEOUT);
	EXPECT_FILLED(mem, self->len, 1);
}

/*
 * fallocate() adds pages that are cleared at their first use. A create is such
 * a use: the buffer must not show freed memory, and a later use of the file
 * must not clear stores made through the buffer.
 */
TEST_F(defects, fallocated_pages_are_cleared_once)
{
	char *map, *mem;

	ASSERT_EQ(0, fallocate(self->fd, 0, 0, self->len));
	map = test_map_buf(test_create_memfd(self->dev, 0, self->fd, 0, self->len), self->len,
			   PROT_READ | PROT_WRITE);
	EXPECT_EQ(0, memcmp(map, calloc(1, self->len), self->len));
	fill(map, self->len, 1);
	mem = map_fd(self->fd, self->len, PROT_READ);
	EXPECT_FILLED(mem, self->len, 1);
}

/* Neither do stores of a device, which no page table records on any kernel. */
TEST_F(defects, device_stores_into_holes_survive_reclaim)
{
	struct udmabuf_importer_map map;
	char *seen, *mem;
	int imp;

	SKIP_WITHOUT_IMPORTER();
	seen = malloc(self->len);
	fill(seen, self->len, 1);
	imp = test_attach(test_create_memfd(self->dev, 0, self->fd, 0, self->len), 0, 0);
	map = test_map(imp, IMPORTER_FROM_DEVICE);
	test_device_write(imp, map.handle, 0, seen, self->len);
	test_unmap(imp, map.handle);
	close(imp);
	unmap_buffers();
	syscall(__NR_close_range, self->fd + 1, ~0U, 0);
	EXPECT_NOTHING_KEPT(&self->session);
	mem = map_fd(self->fd, self->len, PROT_READ);
	EXPECT_FILLED(mem, self->len, 1);
	madvise(mem, self->len, MADV_PAGEOUT);
	EXPECT_FILLED(mem, self->len, 1);
}

/* With bounce buffers, each CPU access restores the bytes of the first one. */
TEST_F(defects, cpu_access_keeps_the_latest_bytes)
{
	int buf = test_create_memfd(self->dev, 0, self->fd, 0, self->len);
	char *mem = map_fd(self->fd, self->len, PROT_READ | PROT_WRITE);

	if (!swiotlb_forced())
		SKIP(return, "boot with swiotlb=force");
	fill(mem, self->len, 1);
	test_sync_cpu(buf, SYNC_START(READ));
	test_sync_cpu(buf, SYNC_END(READ));
	fill(mem, self->len, 2);
	test_sync_cpu(buf, SYNC_START(READ));
	EXPECT_FILLED(mem, self->len, 2);
	test_sync_cpu(buf, SYNC_END(READ));
}

/* A CPU access fails if the buffer exceeds a bounce buffer. It needs none. */
TEST_F(defects, cpu_access_needs_no_bounce_buffer)
{
	size_t len = 4 << 20;
	int fd, buf;

	if (!swiotlb_forced())
		SKIP(return, "boot with swiotlb=force");
	hugetlb_provide(2 * len);
	fd = sealed_memfd(len, MFD_HUGETLB, F_SEAL_SHRINK);
	if (fd < 0)
		SKIP(return, "no hugetlb memfds here");
	buf = test_create_memfd(self->dev, 0, fd, 0, len);
	EXPECT_EQ(0, _sync_cpu(buf, SYNC_START(RW)));
	EXPECT_EQ(0, _sync_cpu(buf, SYNC_END(RW)));
}

/*
 * Mainline allocates arrays for a size it has not compared with the
 * memfd's, and warns. Nor may a file larger than memory be filled until the OOM
 * killer runs.
 */
TEST_F(defects, two_tib_are_refused_without_a_warning)
{
	int fd = sealed_memfd(0, 0, F_SEAL_SHRINK);
	__u64 size = largest_size() < 1ULL << 41 ? largest_size() : 1ULL << 41;

	test_err_create_memfd(ENOMEM, self->dev, 0, -1, 0, size);
	test_err_create_memfd(ENOMEM, self->dev, 0, self->fd, 0, size);
	ASSERT_EQ(0, ftruncate(fd, size));
	test_err_create_memfd(ENOMEM, self->dev, 0, fd, 0, size);
	EXPECT_NOTHING_KEPT(&self->session);
}

#define REPEATED	((long)listed_pages(65536))

/* A list of @count entries that name the same @len bytes. */
static int create_repeated(int dev, int fd, size_t len, size_t count)
{
	struct udmabuf_create_item *items = calloc(count, sizeof(*items));
	size_t i;
	int buf;

	for (i = 0; i < count; i++)
		items[i] = (struct udmabuf_create_item) { fd, 0, 0, len };
	buf = _create_list(dev, 0, items, count);
	free(items);
	return buf;
}

/* Set list_limit; mainline's default is 1,024. */
static bool set_list_limit(size_t limit)
{
	return !write_number(parameter_path("list_limit"), limit);
}

/*
 * Has the cgroup's kernel memory grown by more than @bytes? memory.stat shows
 * changes below 64 pages per CPU only after two seconds.
 */
static bool kernel_memory_grew(const struct cgroups *groups, long before, long bytes)
{
	int tries = 50;

	while (text_number(cgroup_file(groups, CGROUP_INNER "/memory.stat"), "kernel ") - before <=
	       bytes) {
		if (!--tries)
			return false;
		sleep_ms(100);
	}
	return true;
}

/*
 * The kernel's memory for a buffer is not charged. The lists of this buffer
 * take at least two words per page, which the creator's memcg must show.
 */
TEST_F(defects, own_memory_is_charged_to_the_memory_cgroup)
{
	struct cgroups groups;
	long before;
	int buf;

	if (cgroups_open(&groups) || !set_list_limit(REPEATED))
		SKIP(return, "no memory cgroups, or not root");
	ASSERT_EQ(0, cgroup_enter(&groups, CGROUP_INNER));
	before = text_number(cgroup_file(&groups, CGROUP_INNER "/memory.stat"), "kernel ");
	buf = create_repeated(self->dev, self->fd, self->page, REPEATED);
	EXPECT_LE(0, buf);
	EXPECT_TRUE(kernel_memory_grew(&groups, before, REPEATED * sizeof(long)));
	close(buf);
	cgroups_close(&groups);
}

/* An importer's segments, here 32 bytes per page, are not charged either. */
TEST_F(defects, importers_segments_are_charged_to_a_cgroup)
{
	struct cgroups groups;
	int buf, imp;
	long before;

	SKIP_WITHOUT_IMPORTER();
	if (swiotlb_forced())
		SKIP(return, "there are not as many bounce buffers");
	if (cgroups_open(&groups) || !set_list_limit(REPEATED))
		SKIP(return, "no memory cgroups, or not root");
	buf = create_repeated(self->dev, self->fd, self->page, REPEATED);
	ASSERT_EQ(0, cgroup_enter(&groups, CGROUP_INNER));
	before = text_number(cgroup_file(&groups, CGROUP_INNER "/memory.stat"), "kernel ");
	imp = test_attach(buf, 0, self->page);
	test_map(imp, IMPORTER_TO_DEVICE);
	EXPECT_TRUE(kernel_memory_grew(&groups, before, REPEATED * 32 / 2));
	close(imp);
	cgroups_close(&groups);
}

/* 2^21 pins of a page overflow its reference count. */
TEST_F_TIMEOUT(defects, pins_of_one_page_are_bounded, 600)
{
	struct rlimit files = { 4096, 4096 };
	int buf = 0, i;

	if (kernel_before(6, 11))
		SKIP(return, "each entry has the memfd mapped, which takes too long");
	setrlimit(RLIMIT_NOFILE, &files);
	if (!set_list_limit(REPEATED))
		SKIP(return, "needs root, to set module parameters");
	for (i = 0; buf >= 0 && i <= (1 << 21) / REPEATED; i++)
		buf = create_repeated(self->dev, self->fd, self->page, REPEATED);
	EXPECT_EQ(-1, buf);
	EXPECT_EQ(ENOMEM, errno);
}

#define KILLED_LEN	(64UL << 20)
#define KILLED_TIMES	32

/* A create ignores SIGKILL until done. If it was almost done, try again. */
TEST_F(defects, create_can_be_killed)
{
	long all = KILLED_TIMES * KILLED_LEN / self->page, start, at, late;
	int fd = sealed_memfd(KILLED_LEN, 0, F_SEAL_SHRINK), tries = 100;
	pid_t pid;

	close(test_create_memfd(self->dev, 0, fd, 0, KILLED_LEN));
	do {
		start = pages_pinned();
		pid = fork();
		if (!pid) {
			create_repeated(self->dev, fd, KILLED_LEN, KILLED_TIMES);
			_exit(1);
		}
		late = kill_while_pinning(pid, start, all / 64, &at);
	} while ((late < 0 || at > all / 4) && --tries);
	EXPECT_LT(0, tries);
	EXPECT_GT(all / 2, late) TH_LOG("%ld pages in all, %ld pinned after SIGKILL", all, late);
	EXPECT_NOTHING_KEPT(&self->session);
}

/* The first touch fills the page tables of the whole mapping. */
TEST_F(defects, touching_a_page_does_not_populate_the_mapping)
{
	size_t times = 128, len = 1 << 20;
	int fd = sealed_memfd(len, 0, F_SEAL_SHRINK);
	int buf = create_repeated(self->dev, fd, len, times);
	char *map = test_map_buf(buf, times * len, PROT_READ);
	long before = vmpte_kib();

	EXPECT_EQ(0, fault_signal(map, false));
	/* Some page tables (four pages each on s390x), and not 256 KiB. */
	EXPECT_GE(10 * (long)self->page / 1024, vmpte_kib() - before);
}

/* A negative limit disables the limit, and sizes overflow. */
TEST_F(defects, limits_are_not_negative)
{
	static const char * const names[] = { "list_limit", "size_limit_mb" };
	char before[32];
	size_t i;

	for (i = 0; i < ARRAY_SIZE(names); i++) {
		const char *path = parameter_path(names[i]);

		ASSERT_LT(0, read_text(path, before, sizeof(before)));
		if (access(path, W_OK))
			SKIP(return, "needs root, to set module parameters");
		EXPECT_NE(0, write_text(path, "-1"));
		write_text(path, before);
	}
}

/* END without START is an error. */
TEST_F(defects, sync_end_without_start)
{
	int buf = test_create_memfd(self->dev, 0, self->fd, 0, self->len);

	EXPECT_EQ(0, _sync_cpu(buf, SYNC_END(RW)));
	EXPECT_EQ(0, _sync_cpu(buf, SYNC_END(READ)));
}

/* A page that fails later is still readable through the buffer. */
TEST_F(defects, page_poisoned_later_is_sigbus)
{
	int buf = test_create_memfd(self->dev, 0, self->fd, 0, self->len);
	char *map = test_map_buf(buf, self->len, PROT_READ | PROT_WRITE);
	char *mem = map_fd(self->fd, self->len, PROT_READ | PROT_WRITE);

	fill(mem, self->len, 1);
	POISON(mem + 5 * self->page);
	EXPECT_EQ(SIGBUS, fault_signal(map + 5 * self->page, false));
	EXPECT_EQ(-1, filled_until(map, 5 * self->page, 1, 0));
	munmap(mem, self->len);
}

/* A buffer allows new writers of a memfd that is sealed against them. */
TEST_F(defects, sealed_memfd_gets_no_new_writers)
{
	int buf = test_create_memfd(self->dev, 0, self->fd, 0, self->len);
	char *old = test_map_buf(buf, self->len, PROT_READ | PROT_WRITE);
	char *map;

	ASSERT_EQ(0, fcntl(self->fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
	test_err_map_buf(EPERM, buf, self->len, PROT_READ | PROT_WRITE, 0);
	map = test_map_buf(buf, self->len, PROT_READ);
	EXPECT_ERRNO(EACCES, mprotect(map, self->len, PROT_READ | PROT_WRITE));
	fill(old, self->len, 1);
	EXPECT_FILLED(map, self->len, 1);
}

/* The same after a hole removed the file's first pages. Another memfd comes before. */
TEST_F(defects, sealed_memfd_with_a_hole_gets_no_new_writers)
{
	int other = sealed_memfd(self->page, 0, F_SEAL_SHRINK);
	struct udmabuf_create_item items[] = {
		{ other, 0, 0, self->page },
		{ self->fd, 0, 0, self->len },
	};
	size_t len = self->len + self->page;
	int buf = test_create_list(self->dev, 0, items, 2);

	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
			       self->len / 2));
	munmap(test_map_buf(buf, len, PROT_READ | PROT_WRITE), len);
	ASSERT_EQ(0, fcntl(self->fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
	test_err_map_buf(EPERM, buf, len, PROT_READ | PROT_WRITE, 0);
	test_err_map_buf(EPERM, buf, self->page, PROT_READ | PROT_WRITE, 0);
}

/*
 * Can a buffer be mapped for writing after its memfd lost all pages and was
 * sealed? True also if the setup fails.
 */
static bool sealed_when_empty(int dev, size_t len, unsigned int flags, int seal)
{
	int fd = sealed_memfd(len, flags, F_SEAL_SHRINK), other = reopen(fd, O_RDWR);
	int buf = _create_memfd(dev, 0, fd, 0, len);
	char *map;

	close(fd);
	if (buf < 0 || fallocate(other, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, len) ||
	    fcntl(other, F_ADD_SEALS, seal))
		return true;
	close(other);
	map = map_fd(buf, len, PROT_READ);
	return map_fd(buf, len, PROT_READ | PROT_WRITE) != MAP_FAILED || errno != EPERM ||
	       map == MAP_FAILED || !mprotect(map, len, PROT_READ | PROT_WRITE);
}

/* The same after a hole removed all pages, and the seal was added by another fd. */
TEST_F(defects, sealed_empty_memfd_gets_no_new_writers)
{
	size_t huge = hugetlb_size();

	EXPECT_FALSE(sealed_when_empty(self->dev, self->len, 0, F_SEAL_FUTURE_WRITE));
	EXPECT_FALSE(sealed_when_empty(self->dev, self->len, 0, F_SEAL_WRITE));
	hugetlb_provide(2 * huge);
	if (pool_read().free < 1)
		return;
	EXPECT_FALSE(sealed_when_empty(self->dev, huge, MFD_HUGETLB, F_SEAL_FUTURE_WRITE));
	EXPECT_FALSE(sealed_when_empty(self->dev, huge, MFD_HUGETLB, F_SEAL_WRITE));
}

/*
 * Two threads start the first CPU access of a buffer at once. Mainline makes a
 * mapping for each and leaks one with its bounce buffer, or uses an error
 * pointer as a mapping.
 */
#define RACES	500

static pthread_barrier_t race_start;

static void *race_sync(void *arg)
{
	int buf = *(int *)arg;

	pthread_barrier_wait(&race_start);
	_sync_cpu(buf, SYNC_START(RW));
	_sync_cpu(buf, SYNC_END(RW));
	return NULL;
}

TEST_F(defects, racing_first_accesses_leave_nothing)
{
	const char *used = "/sys/kernel/debug/swiotlb/io_tlb_used";
	pthread_t threads[2];
	long before, after;
	int buf, i, j;

	if (!swiotlb_forced())
		SKIP(return, "boot with swiotlb=force");
	before = text_number(used, "");
	ASSERT_LE(0, before) TH_LOG("cannot read %s", used);
	pthread_barrier_init(&race_start, NULL, 2);
	for (i = 0; i < RACES; i++) {
		buf = test_create_memfd(self->dev, 0, self->fd, 0, self->len);
		for (j = 0; j < 2; j++)
			pthread_create(&threads[j], NULL, race_sync, &buf);
		for (j = 0; j < 2; j++)
			pthread_join(threads[j], NULL);
		close(buf);
	}
	EXPECT_NOTHING_KEPT(&self->session);
	after = text_number(used, "");
	/* Other users allocate and free some. */
	EXPECT_GT(before + (long)(self->len / 2048), after);
}

/*
 * Mainline adds a page that has failed before. If the page is in the
 * movable zone, the kernel tries forever to migrate it.
 */
TEST_F(defects, poisoned_page_is_refused)
{
	char *mem = map_fd(self->fd, self->len, PROT_READ | PROT_WRITE);

	fill(mem, self->len, 1);
	POISON(mem + 5 * self->page);
	test_err_create_memfd(EFAULT, self->dev, 0, self->fd, 0, self->len);
	close(test_create_memfd(self->dev, 0, self->fd, 0, 5 * self->page));
	EXPECT_NOTHING_KEPT(&self->session);
}

/* The same for a hugetlb page, which fails as a whole. */
TEST_F(defects, poisoned_huge_page_is_refused)
{
	size_t len = 2 * hugetlb_size();
	char *mem;
	int fd;

	hugetlb_provide(2 * len);
	fd = sealed_memfd(len, MFD_HUGETLB, F_SEAL_SHRINK);
	mem = map_fd(fd, len, PROT_READ | PROT_WRITE);
	if (mem == MAP_FAILED)
		SKIP(return, "no hugetlb memfds here");
	memset(mem, 1, len);
	POISON(mem + 5 * self->page);
	test_err_create_memfd(EFAULT, self->dev, 0, fd, 0, len);
	close(test_create_memfd(self->dev, 0, fd, len / 2, len / 2));
	EXPECT_NOTHING_KEPT(&self->session);
	munmap(mem, len);
}

/*
 * Holes of a hugetlb memfd. Mainline reserves a page for a hole before it
 * checks whether another task has filled the hole. It then uses up another
 * reservation, or returns ENOMEM.
 */
#define HOLES	2	/* huge pages per file, or per reservation */
#define ROUNDS	40

FIXTURE(holes) {
	struct session session;
	struct pool before;
	int dev;
	int fd;
	size_t huge;
	size_t len;
	pthread_barrier_t start;
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
	self->huge = hugetlb_size();
	self->len = HOLES * self->huge;
	hugetlb_provide(4 * self->len);
	self->before = pool_read();
	if (self->before.free < 4 * HOLES)
		SKIP(return, "not enough hugetlb pages");
	pthread_barrier_init(&self->start, NULL, 2);
}

/*
 * Mainline leaves HugePages_Rsvd below 0 until reboot, which hides the same
 * defect from the next test. Add reservations that stay unused.
 */
static void repair_pool(const struct pool *before, size_t huge)
{
	int tries = ROUNDS;

	while (pool_read().reserved > before->reserved && tries--)
		shmget(IPC_PRIVATE, huge, IPC_CREAT | SHM_HUGETLB | 0600);
}

FIXTURE_TEARDOWN(holes)
{
	const char *difference;

	SESSION_CLOSE(&self->session);
	difference = pool_difference(&self->before);
	EXPECT_STREQ("", difference);
	if (*difference)
		repair_pool(&self->before, self->huge);
}

/* A filler returns NULL or the reason why it failed. */
typedef void *(*filler)(void *);

static void *fill_by_create(void *arg)
{
	struct _test_data_holes *self = arg;
	int buf;

	pthread_barrier_wait(&self->start);
	buf = _create_memfd(self->dev, 0, self->fd, 0, self->len);
	if (buf < 0)
		return strerror(errno);
	close(buf);
	return NULL;
}

/* Fill a file whose pages are reserved by a mapping. */
static void *fill_by_create_reserved(void *arg)
{
	struct _test_data_holes *self = arg;
	char *map = map_fd(self->fd, self->len, PROT_READ | PROT_WRITE);
	char *wrong = fill_by_create(arg);

	if (!wrong && (fault_signal(map, true) || fault_signal(map + self->len - 1, true)))
		wrong = "a page reserved by a mapping cannot be allocated";
	munmap(map, self->len);
	return wrong;
}

static void *fill_by_fault(void *arg)
{
	struct _test_data_holes *self = arg;
	char *map = map_fd(self->fd, self->len, PROT_READ | PROT_WRITE);
	int sig = 0;
	size_t off;

	pthread_barrier_wait(&self->start);
	if (map == MAP_FAILED)
		return strerror(errno);
	for (off = 0; !sig && off < self->len; off += self->huge)
		sig = fault_signal(map + off, true);
	munmap(map, self->len);
	return sig ? strsignal(sig) : NULL;
}

/* Run both at once, on a new file each time. */
static const char *race_for_holes(struct _test_data_holes *self, filler one, filler other)
{
	void *first = NULL, *second = NULL;
	pthread_t thread;
	int i;

	for (i = 0; !first && !second && i < ROUNDS; i++) {
		self->fd = sealed_memfd(self->len, MFD_HUGETLB, F_SEAL_SHRINK);
		if (self->fd < 0)
			return "no hugetlb memfds here";
		pthread_create(&thread, NULL, one, self);
		second = other(self);
		pthread_join(thread, &first);
		close(self->fd);
	}
	return first ?: second ?: "";
}

TEST_F(holes, two_creates_fill_the_same)
{
	EXPECT_STREQ("", race_for_holes(self, fill_by_create, fill_by_create));
}

TEST_F(holes, create_and_fault_fill_the_same)
{
	EXPECT_STREQ("", race_for_holes(self, fill_by_create, fill_by_fault));
}

TEST_F(holes, two_creates_fill_the_same_reserved)
{
	EXPECT_STREQ("", race_for_holes(self, fill_by_create, fill_by_create_reserved));
}

/*
 * Run two creates while pages reserved by the mapping at @mem must stay
 * available.
 */
static const char *race_beside(struct _test_data_holes *self, char *mem)
{
	struct pool reserved = pool_read();
	const char *wrong = race_for_holes(self, fill_by_create, fill_by_create);
	int i;

	if (!*wrong)
		wrong = pool_difference(&reserved);
	for (i = 0; !*wrong && i < HOLES; i++)
		if (fault_signal(mem + i * self->huge, true))
			wrong = "a page reserved by a mapping cannot be allocated";
	munmap(mem, self->len);
	return wrong;
}

TEST_F(holes, two_creates_beside_a_reservation)
{
	char *reserved = reserve_hugetlb(self->len);

	ASSERT_NE(MAP_FAILED, (void *)reserved);
	EXPECT_STREQ("", race_beside(self, reserved));
}

TEST_HARNESS_MAIN
