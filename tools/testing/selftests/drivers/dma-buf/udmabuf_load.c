// SPDX-License-Identifier: GPL-2.0
/*
 * Load: 10,000 buffers, 65,536 entries, a buffer as large as the machine allows
 * up to 8 GiB, and continuous creates under memory pressure. The pressure lasts
 * ten times UDMABUF_RACE_MS of the environment (5 s if unset). The tests verify
 * that all memory is freed, that no call holds up a CPU, and that calls can be
 * killed. UDMABUF_EXACT_TIME in the environment means that a CPU's clock
 * advances only by its instructions. The tests then also limit how long a CPU
 * is held up.
 */
#include <drm/drm.h>
#include <linux/sched.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/mman.h>

#include "udmabuf_test.h"

#define LOAD_TIMEOUT	1200
#define BUFFERS		10000
#define ENTRIES		65536
#define ENTRIES_STEP	30011		/* prime */
#define MEMFDS		65000
#define LARGEST		(8ULL << 30)
#define PRESSED_MAX	(40UL << 20)
#define HOG_LEN		(64UL << 20)
#define NOTICED_US	50000
#define EXACT_US	5000		/* some batches of 2,048 pages, and the 1 ms sleep */

static long memory_kib(const char *key)
{
	return text_number("/proc/meminfo", key);
}

/* KiB of kernel memory that cannot be reclaimed, and of all memory in use */
struct usage {
	long kernel, all;
};

static struct usage read_usage(void)
{
	struct usage usage;

	write_text("/proc/sys/vm/drop_caches", "3");
	sleep_ms(500);
	usage.kernel = memory_kib("SUnreclaim:") + memory_kib("PageTables:") +
		       memory_kib("Percpu:");
	usage.all = memory_kib("MemTotal:") - memory_kib("MemFree:");
	return usage;
}

/* A kernel with kmemleak also keeps freed memory, to detect its use. */
static long slack_kib(long usual)
{
	return access("/sys/kernel/debug/kmemleak", F_OK) ? usual : memory_kib("MemTotal:") / 12;
}

/* Returns "" or the memory that was not freed. */
static const char *usage_grew(const struct usage *before)
{
	struct usage now = read_usage();
	static char text[96];

	if (now.kernel < before->kernel + slack_kib(1024) &&
	    now.all < before->all + slack_kib(32 << 10))
		return "";
	snprintf(text, sizeof(text), "memory not freed: kernel %ld -> %ld KiB, all %ld -> %ld KiB",
		 before->kernel, now.kernel, before->all, now.all);
	return text;
}

static bool exact_time(void)
{
	return getenv("UDMABUF_EXACT_TIME");
}

FIXTURE(load) {
	struct session session;
	int dev;
	size_t page;
};

FIXTURE_SETUP(load)
{
	struct rlimit files = { ENTRIES + 100, ENTRIES + 100 };
	struct rlimit memlock = { RLIM_INFINITY, RLIM_INFINITY };

	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	self->page = page_size();
	if (setrlimit(RLIMIT_NOFILE, &files) || setrlimit(RLIMIT_MEMLOCK, &memlock))
		SKIP(return, "needs to be root");
}

FIXTURE_TEARDOWN(load)
{
	swap_off();
	SESSION_CLOSE(&self->session);
}

/* Does each buffer show its own page? Returns NULL or the reason why not. */
static const char *pages_differ(const int *bufs, size_t n)
{
	size_t page = page_size(), i;
	const char *wrong = NULL;

	for (i = 0; !wrong && i < n; i++) {
		char *map = _map_buf(bufs[i], page, PROT_READ, 0);

		if (map == MAP_FAILED)
			return "mmap() of a buffer failed";
		if (filled_until(map, page, 1, i * page) != -1)
			wrong = "a buffer shows the page of another buffer";
		munmap(map, page);
	}
	return wrong;
}

static const char *make_many(int dev, char *mem, int *bufs)
{
	size_t page = page_size(), i;
	const char *wrong;

	for (i = 0; i < BUFFERS; i++) {
		bufs[i] = _create_one(dev, 0, mem + i * page, page);
		if (bufs[i] < 0)
			return strerror(errno);
	}
	wrong = pages_differ(bufs, BUFFERS);
	for (i = 0; i < BUFFERS; i++)
		close(bufs[i]);
	return wrong;
}

/* The first round fills caches. Later rounds must free all memory they use. */
TEST_F_TIMEOUT(load, ten_thousand_buffers, LOAD_TIMEOUT)
{
	static int bufs[BUFFERS];
	char *mem = anon_small(BUFFERS * self->page);
	struct usage before;
	int i;

	fill(mem, BUFFERS * self->page, 1);
	ASSERT_EQ(NULL, make_many(self->dev, mem, bufs));
	before = read_usage();
	for (i = 0; i < 2; i++)
		ASSERT_EQ(NULL, make_many(self->dev, mem, bufs));
	EXPECT_NOTHING_KEPT(&self->session);
	EXPECT_STREQ("", usage_grew(&before));
}

/* Each entry names another page, which is not adjacent to the previous one. */
TEST_F_TIMEOUT(load, most_entries, LOAD_TIMEOUT)
{
	static struct udmabuf_iovec iovs[ENTRIES];
	size_t page = self->page, len = ENTRIES * page, i;
	struct udmabuf_importer_map map;
	char *mem = anon_small(len);
	int buf, imp;

	SKIP_WITHOUT_IMPORTER();
	fill(mem, len, 1);
	make_entries(iovs, ENTRIES, mem, page, ENTRIES_STEP);
	buf = test_create(self->dev, 0, iovs, ENTRIES);
	EXPECT_TRUE(buffer_is(test_map_buf(buf, len, PROT_READ), iovs, ENTRIES));
	imp = test_attach(buf, 0, 0);
	map = test_map(imp, IMPORTER_BIDIRECTIONAL);
	EXPECT_EQ(len, map.bytes);
	test_vmap(imp);
	for (i = 0; i < ENTRIES; i += ENTRIES / 16 - 1) {
		__u64 word;

		test_vread(imp, i * page, &word, sizeof(word));
		EXPECT_EQ(*(__u64 *)(uintptr_t)iovs[i].base, word);
	}
}

/* A buffer of many GiB */

struct creator {
	int dev;
	char *mem;
	size_t len;
	int cpu;
	volatile bool done;
	bool maps;		/* the watcher also times mmap() and munmap() */
	long longest_us;	/* longest time without its CPU */
	long longest_map_us;	/* longest mmap() and munmap() of the watcher */
	long most_pages;	/* most pins and unpins in one delay over NOTICED_US */
	long late_pages;	/* pins after it was killed */
};

FIXTURE(large) {
	struct session session;
	struct creator creator;
};

FIXTURE_VARIANT(large) {
	bool huge;
};

FIXTURE_VARIANT_ADD(large, small_pages) { .huge = false };
FIXTURE_VARIANT_ADD(large, huge_pages) { .huge = true };

/*
 * LARGEST if the machine can spare it, else half of the spare memory, in steps
 * of 256 MiB.
 */
static size_t large_len(void)
{
	unsigned long long spare = memory_kib("MemAvailable:") * 1024ULL - (512 << 20);

	if (spare >= LARGEST && LARGEST < SIZE_MAX)
		return (size_t)LARGEST;
	return (spare < SIZE_MAX / 2 ? spare / 2 : SIZE_MAX / 8) >> 28 << 28;
}

/* Mark each page by its first word. pages_marked() compares only the marks. */
static void mark_pages(char *mem, size_t len)
{
	size_t off;

	for (off = 0; off < len; off += page_size())
		*(__u64 *)(mem + off) = stamp(1, off);
}

static size_t pages_marked(const char *map, size_t len)
{
	size_t off;

	for (off = 0; off < len; off += page_size())
		if (*(__u64 *)(map + off) != stamp(1, off))
			break;
	return off;
}

FIXTURE_SETUP(large)
{
	struct rlimit memlock = { RLIM_INFINITY, RLIM_INFINITY };
	struct creator *creator = &self->creator;

	SESSION_OPEN(&self->session);
	if (setrlimit(RLIMIT_MEMLOCK, &memlock))
		SKIP(return, "needs to be root");
	creator->dev = self->session.dev;
	creator->len = large_len();
	creator->mem = anon_aligned(creator->len, 2 << 20);
	ASSERT_NE(MAP_FAILED, (void *)creator->mem);
	madvise(creator->mem, creator->len, variant->huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	mark_pages(creator->mem, creator->len);
}

FIXTURE_TEARDOWN(large)
{
	SESSION_CLOSE(&self->session);
}

static long unpins(void)
{
	return text_number("/proc/vmstat", "nr_foll_pin_released ");
}

static void run_on(int cpu)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	sched_setaffinity(0, sizeof(one), &one);
}

/* Time a call that waits while mmap_lock is held. */
static void watch_mmap(struct creator *creator)
{
	long long us = now_us();
	char *map = anon_small(page_size());

	munmap(map, page_size());
	us = now_us() - us;
	if (creator->longest_map_us < us)
		creator->longest_map_us = us;
}

/* Runs every 1 ms at a real-time priority on the creator's CPU. */
static void *watch_cpu(void *arg)
{
	struct sched_param priority = { .sched_priority = 50 };
	struct creator *creator = arg;

	run_on(creator->cpu);
	sched_setscheduler(0, SCHED_FIFO, &priority);
	while (!creator->done) {
		long pages = pages_pinned() + unpins();
		long long us = now_us();

		sleep_ms(1);
		us = now_us() - us;
		pages = pages_pinned() + unpins() - pages;
		if (creator->longest_us < us)
			creator->longest_us = us;
		if (us > NOTICED_US && creator->most_pages < pages)
			creator->most_pages = pages;
		if (creator->maps)
			watch_mmap(creator);
	}
	return NULL;
}

/*
 * Guards the limit on the pages of a batch that is pinned with interrupts off.
 * An emulated CPU may be delayed by its host. So count the pages that one delay
 * covers, and check the time only if the clock counts nothing but instructions.
 */
TEST_F_TIMEOUT(large, create_and_close, LOAD_TIMEOUT)
{
	struct creator *creator = &self->creator;
	long long start, created, closed;
	pthread_t watcher;
	char *map;
	int buf;

	/* Migrate the pages first: migration has longer delays of its own. */
	close(test_create_one(creator->dev, 0, creator->mem, creator->len));
	run_on(creator->cpu);
	ASSERT_EQ(0, pthread_create(&watcher, NULL, watch_cpu, creator));
	start = now_us();
	buf = test_create_one(creator->dev, 0, creator->mem, creator->len);
	created = now_us();
	map = test_map_buf(buf, creator->len, PROT_READ);
	EXPECT_EQ(creator->len, pages_marked(map, creator->len));
	munmap(map, creator->len);
	closed = now_us();
	close(buf);
	closed = now_us() - closed;
	creator->done = true;
	pthread_join(watcher, NULL);
	TH_LOG("%zu MiB: create %lld ms, close %lld ms, CPU held up %ld us, at most %ld pages",
	       creator->len >> 20, (created - start) / 1000, closed / 1000,
	       creator->longest_us, creator->most_pages);
	EXPECT_GT(creator->len / page_size() / 8, creator->most_pages);
	if (exact_time())
		EXPECT_GT(EXACT_US, creator->longest_us);
}

static int create_alone(void *arg)
{
	struct creator *creator = arg;

	return _create_one(creator->dev, 0, creator->mem, creator->len) < 0;
}

/*
 * Start the creator as a process that shares this memory, so that this process
 * survives the kill.
 */
static pid_t start_creator(struct creator *creator)
{
	size_t len = 16 * page_size();

	return clone(create_alone, anon_small(len) + len, CLONE_VM | SIGCHLD, creator);
}

/*
 * Kill a create after @us. Returns the time until it ended; -1 if it had
 * finished.
 */
static long long kill_creator(struct creator *creator, long us)
{
	pid_t pid = start_creator(creator);
	long long start;

	usleep(us);
	creator->late_pages = -pages_pinned();
	start = now_us();
	kill(pid, SIGKILL);
	if (reap(pid) != 128 + SIGKILL)
		return -1;
	start = now_us() - start;
	creator->late_pages += pages_pinned();
	return start;
}

/*
 * A killed create releases its pages and pins no more. The first one also
 * migrates pages.
 */
TEST_F_TIMEOUT(large, create_is_killed, LOAD_TIMEOUT)
{
	struct creator *creator = &self->creator;
	long long longest = kill_creator(creator, 20000), whole, took;
	int n, killed = longest >= 0;

	close(test_create_one(creator->dev, 0, creator->mem, creator->len));
	whole = now_us();
	EXPECT_EQ(0, reap(start_creator(creator)));
	whole = now_us() - whole;
	/*
	 * Kill at several points, and retry if each create had finished by
	 * then.
	 */
	for (n = 0; n < 4 || (n < 40 && !killed); n++) {
		took = kill_creator(creator, whole * (1 + n % 4 * 2) / 10);
		if (took < 0)
			continue;
		killed++;
		EXPECT_GT(creator->len / page_size() / 2, creator->late_pages);
		if (longest < took)
			longest = took;
	}
	TH_LOG("%zu MiB: create %lld ms, at most %lld ms from SIGKILL to exit", creator->len >> 20,
	       whole / 1000, longest / 1000);
	EXPECT_LE(1, killed);
	EXPECT_GT(1000000, longest);
	EXPECT_NOTHING_KEPT(&self->session);
}

/*
 * Buffers for which mmap() of one page is slow if it inspects the whole buffer
 */

#define MAP_TRIES	5
#define MAP_LIMIT_US	10000
#define MAKE_LIMIT_US	3000000	/* 45 us per entry */

struct timed {
	int buf;
	long long create_us;
	long long map_us;	/* shortest of several mmap() calls */
};

static struct timed timed_mapping(int buf, long long create_us)
{
	struct timed timed = { .buf = buf, .create_us = create_us, .map_us = LLONG_MAX };
	int tries = buf < 0 ? 0 : exact_time() ? 1 : MAP_TRIES;
	long long us;
	char *map;

	while (tries--) {
		us = now_us();
		map = _map_buf(buf, page_size(), PROT_READ, 0);
		us = now_us() - us;
		if (map != MAP_FAILED && timed.map_us > us)
			timed.map_us = us;
		munmap(map, page_size());
	}
	return timed;
}

/*
 * Without an exact clock, mmap() may take at most a quarter of the create's
 * time.
 */
#define EXPECT_QUICK_MAPPING(call)					\
	do {								\
		struct timed __t = call;				\
									\
		ASSERT_LE(0, __t.buf) TH_LOG("create: %s", strerror(errno)); \
		TH_LOG("create %lld us, mmap %lld us", __t.create_us, __t.map_us); \
		EXPECT_GT(exact_time() ? MAP_LIMIT_US : __t.create_us / 4, __t.map_us); \
		if (exact_time())					\
			EXPECT_GT(MAKE_LIMIT_US, __t.create_us);	\
	} while (0)

static struct udmabuf_create_item listed[ENTRIES];

/*
 * Bytes per entry, at most a huge page, so that the longest list names at most
 * half of RAM.
 */
static size_t listed_len(void)
{
	size_t len = memory_kib("MemTotal:") * 512ULL / ENTRIES / page_size() * page_size();

	return len > hugetlb_size() ? hugetlb_size() : len;
}

/* Every entry names @len bytes of one of the memfds, in turn. */
static int timed_list(int dev, const int *memfds, size_t n, size_t len, long long *us)
{
	size_t i;
	int buf;

	for (i = 0; i < ENTRIES - 1; i++)
		listed[i] = (struct udmabuf_create_item) { memfds[i % n], 0, 0, len };
	*us = now_us();
	buf = _create_list(dev, 0, listed, ENTRIES - 1);
	*us = now_us() - *us;
	return buf;
}

/* A buffer of memfds of one huge page each, which a hole then removes */
static struct timed huge_pages_lost(int dev, size_t n)
{
	size_t huge = hugetlb_size(), i;
	int memfds[2], buf;
	long long us;

	hugetlb_provide(2 * n * huge);
	for (i = 0; i < n; i++)
		memfds[i] = sealed_memfd(huge, MFD_HUGETLB, F_SEAL_SHRINK);
	buf = timed_list(dev, memfds, n, listed_len(), &us);
	for (i = 0; i < n; i++)
		fallocate(memfds[i], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, huge);
	return timed_mapping(buf, us);
}

TEST_F_TIMEOUT(load, map_a_hole_listed_often, LOAD_TIMEOUT)
{
	EXPECT_QUICK_MAPPING(huge_pages_lost(self->dev, 1));
}

TEST_F_TIMEOUT(load, map_two_holes_listed_in_turn, LOAD_TIMEOUT)
{
	EXPECT_QUICK_MAPPING(huge_pages_lost(self->dev, 2));
}

/* Map one page of each of @n memfds, one after the other. */
static char *map_memfds(size_t n, unsigned int seals)
{
	size_t page = page_size(), i;
	char *mem = anon_small(n * page);
	int fd;

	for (i = 0; i < n; i++) {
		fd = sealed_memfd(page, 0, 0);
		if (mmap(mem + i * page, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			 fd, 0) == MAP_FAILED || fcntl(fd, F_ADD_SEALS, seals))
			return MAP_FAILED;
		close(fd);
	}
	return mem;
}

/* Pieces of @unit bytes of the memory, in turn */
static struct timed timed_memory(int dev, char *mem, size_t len, size_t unit, size_t entries)
{
	static struct udmabuf_iovec iovs[ENTRIES];
	long long us;
	size_t i;
	int buf;

	for (i = 0; i < entries; i++)
		iovs[i] = (struct udmabuf_iovec) { to_u64(mem) + i * unit % len, unit };
	us = now_us();
	buf = _create(dev, 0, iovs, entries);
	return timed_mapping(buf, now_us() - us);
}

TEST_F_TIMEOUT(load, map_memory_of_memfds_in_turn, LOAD_TIMEOUT)
{
	size_t len = 8 * self->page;
	char *mem = map_memfds(8, F_SEAL_SHRINK);

	ASSERT_NE(MAP_FAILED, (void *)mem);
	EXPECT_QUICK_MAPPING(timed_memory(self->dev, mem, len, self->page, ENTRIES - 1));
}

/* Nearly as many mappings as a process may have */
TEST_F_TIMEOUT(load, map_memory_of_many_memfds, LOAD_TIMEOUT)
{
	size_t len = MEMFDS * self->page;
	char *mem = map_memfds(MEMFDS, F_SEAL_SHRINK);

	ASSERT_NE(MAP_FAILED, (void *)mem);
	EXPECT_QUICK_MAPPING(timed_memory(self->dev, mem, len, len, 1));
}

TEST_F_TIMEOUT(load, map_many_memfds, LOAD_TIMEOUT)
{
	static int memfds[MEMFDS];
	long long us;
	size_t i;
	int buf;

	for (i = 0; i < MEMFDS; i++)
		memfds[i] = sealed_memfd(self->page, 0, F_SEAL_SHRINK);
	buf = timed_list(self->dev, memfds, MEMFDS, self->page, &us);
	EXPECT_QUICK_MAPPING(timed_mapping(buf, us));
}

#define FEW_MEMFDS	4000
#define BETWEEN		63

/* Memfds with @between other memfds created and closed after each */
static struct timed few_memfds(int dev, size_t between)
{
	static int memfds[FEW_MEMFDS];
	struct timed timed;
	long long us;
	size_t i, j;
	int buf;

	for (i = 0; i < FEW_MEMFDS; i++) {
		memfds[i] = sealed_memfd(page_size(), 0, F_SEAL_SHRINK);
		for (j = 0; j < between; j++)
			close(sealed_memfd(page_size(), 0, 0));
	}
	buf = timed_list(dev, memfds, FEW_MEMFDS, page_size(), &us);
	timed = timed_mapping(buf, us);
	close(buf);
	for (i = 0; i < FEW_MEMFDS; i++)
		close(memfds[i]);
	return timed;
}

/* The distance of the inodes' numbers or addresses must not affect mmap(). */
TEST_F_TIMEOUT(load, map_memfds_far_apart, LOAD_TIMEOUT)
{
	struct timed near = few_memfds(self->dev, 0);
	struct timed apart = few_memfds(self->dev, exact_time() ? BETWEEN : 1);

	TH_LOG("mmap %lld us, with inodes far apart %lld us", near.map_us, apart.map_us);
	if (exact_time())
		EXPECT_GT(2 * near.map_us + 100, apart.map_us);
}

/* How long other processes wait for each operation on the worst buffers */

#define QUOTA_PAGES	2048	/* 8 MiB, the default limit of a user */

enum operation {
	OP_CREATE,
	OP_MMAP,
	OP_TOUCH,
	OP_MAP,
	OP_SYNC,
	OP_UNMAP,
	OP_VMAP,
	OP_VUNMAP,
	OP_MUNMAP,
	OP_CLOSE,
	OPERATIONS
};

static const char * const operations[] = {
	"create", "mmap", "touch", "map", "sync", "unmap", "vmap", "vunmap", "munmap", "close",
};

FIXTURE(waits) {
	struct session session;
	struct creator creator;
	int fd;
	size_t unit, len;
	int buf, imp;
	char *map;
	struct udmabuf_importer_map dma;
};

FIXTURE_VARIANT(waits) {
	size_t entries;
	bool memfd;
	bool huge;
};

FIXTURE_VARIANT_ADD(waits, memory) { QUOTA_PAGES, false, false };
FIXTURE_VARIANT_ADD(waits, list) { ENTRIES, true, false };
FIXTURE_VARIANT_ADD(waits, list_of_a_huge_page) { ENTRIES - 1, true, true };

FIXTURE_SETUP(waits)
{
	SESSION_OPEN(&self->session);
	self->creator.dev = self->session.dev;
	self->creator.maps = true;
	self->unit = variant->huge ? listed_len() : page_size();
	self->len = variant->entries * self->unit;
	if (variant->huge)
		hugetlb_provide(2 * hugetlb_size());
	self->fd = sealed_memfd(variant->huge ? hugetlb_size() : self->unit,
				variant->huge ? MFD_HUGETLB : 0, F_SEAL_SHRINK);
	if (self->fd < 0)
		SKIP(return, "no hugetlb memfds here");
	self->creator.mem = anon_small(QUOTA_PAGES * page_size());
	fill(self->creator.mem, QUOTA_PAGES * page_size(), 1);
}

FIXTURE_TEARDOWN(waits)
{
	SESSION_CLOSE(&self->session);
}

/* Touch one page per entry; longer entries have more pages. */
static void touch_pages(const char *map, size_t npages)
{
	size_t i;

	for (i = 0; i < npages; i++)
		(void)*(volatile char *)(map + i * page_size());
}

static bool operation_fails(struct _test_data_waits *self, size_t entries, bool memfd, int op)
{
	int dev = self->creator.dev;
	static struct udmabuf_iovec iovs[ENTRIES];

	switch (op) {
	case OP_CREATE:
		make_entries(iovs, entries, self->creator.mem, self->unit, 1027);
		self->buf = memfd ? _create_list(dev, 0, listed, entries) :
				    _create(dev, 0, iovs, entries);
		return self->buf < 0 || _attach(self->imp, self->buf, 0, 0);
	case OP_MMAP:
		self->map = _map_buf(self->buf, self->len, PROT_READ, 0);
		return self->map == MAP_FAILED;
	case OP_TOUCH:
		touch_pages(self->map, entries);
		return false;
	case OP_MAP:
		return _map(self->imp, IMPORTER_BIDIRECTIONAL, &self->dma);
	case OP_SYNC:
		return _sync_cpu(self->buf, SYNC_START(RW)) || _sync_cpu(self->buf, SYNC_END(RW));
	case OP_UNMAP:
		return _unmap(self->imp, self->dma.handle);
	case OP_VMAP:
		/*
		 * A buffer of huge entries exceeds the kernel's limit of a
		 * vmap.
		 */
		return self->unit == page_size() && _vmap(self->imp);
	case OP_VUNMAP:
		return self->unit == page_size() && ioctl(self->imp, IMPORTER_VUNMAP);
	case OP_MUNMAP:
		return munmap(self->map, self->len);
	default:
		return _detach(self->imp) || close(self->buf);
	}
}

TEST_F_TIMEOUT(waits, for_every_operation, LOAD_TIMEOUT)
{
	struct creator *creator = &self->creator;
	pthread_t watcher;
	long long us;
	int op;

	SKIP_WITHOUT_IMPORTER();
	for (op = 0; op < ENTRIES; op++)
		listed[op] = (struct udmabuf_create_item) { self->fd, 0, 0, self->unit };
	self->imp = importer_open();
	run_on(creator->cpu);
	ASSERT_EQ(0, pthread_create(&watcher, NULL, watch_cpu, creator));
	for (op = 0; op < OPERATIONS; op++) {
		creator->longest_us = 0;
		creator->longest_map_us = 0;
		us = now_us();
		EXPECT_FALSE(operation_fails(self, variant->entries, variant->memfd, op));
		us = now_us() - us;
		sleep_ms(3);
		TH_LOG("%-7s took %7lld us, CPU held up %5ld us, mmap() held up %5ld us",
		       operations[op], us, creator->longest_us, creator->longest_map_us);
		if (exact_time())
			EXPECT_GT(EXACT_US, creator->longest_us);
		/*
		 * Unmapping many pages is up to the kernel, and as slow for all
		 * memory.
		 */
		if (exact_time() && op != OP_MUNMAP)
			EXPECT_GT(MAP_LIMIT_US, creator->longest_map_us);
	}
	creator->done = true;
	pthread_join(watcher, NULL);
}

/* Many blocked callers must not make other callers pin in smaller batches. */

#define BLOCKED		10000
#define BLOCKED_LEN	(64UL << 20)

static struct {
	int dev, memfd, uffd;
	char *hole;
	int started;
} blocked;

static bool make_hole(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range = { .len = page_size() },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	blocked.hole = anon_small(page_size());
	reg.range.start = to_u64(blocked.hole);
	blocked.uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	return !ioctl(blocked.uffd, UFFDIO_API, &api) &&
	       !ioctl(blocked.uffd, UFFDIO_REGISTER, &reg);
}

static void fill_hole(void)
{
	struct uffdio_zeropage zero = {
		.range = { to_u64(blocked.hole), page_size() },
	};

	ioctl(blocked.uffd, UFFDIO_ZEROPAGE, &zero);
}

/*
 * Keep the memfd's inode locked while userfaultfd withholds the bytes to write.
 */
static void *lock_memfd(void *arg)
{
	return pwrite(blocked.memfd, blocked.hole, page_size(), 0) < 0 ?
	       "pwrite() to the memfd failed" : NULL;
}

static void *create_blocked(void *arg)
{
	__atomic_fetch_add(&blocked.started, 1, __ATOMIC_RELAXED);
	close(_create_memfd(blocked.dev, 0, blocked.memfd, 0, page_size()));
	return NULL;
}

static size_t start_blocked(pthread_t *threads, size_t n)
{
	pthread_attr_t attr;
	size_t i;

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 32 << 10);
	pthread_create(&threads[0], &attr, lock_memfd, NULL);
	sleep_ms(100);
	for (i = 1; i < n && !pthread_create(&threads[i], &attr, create_blocked, NULL); i++)
		;
	while (__atomic_load_n(&blocked.started, __ATOMIC_RELAXED) < i - 1)
		sleep_ms(10);
	sleep_ms(100);
	return i;
}

static long long create_us(int memfd)
{
	long long us = now_us();

	close(_create_memfd(blocked.dev, 0, memfd, 0, BLOCKED_LEN));
	return now_us() - us;
}

TEST_F_TIMEOUT(load, create_beside_blocked_creates, LOAD_TIMEOUT)
{
	int memfd = sealed_memfd(BLOCKED_LEN, 0, F_SEAL_SHRINK);
	size_t n = exact_time() ? BLOCKED : BLOCKED / 10;
	static pthread_t threads[BLOCKED];
	long long alone, beside;

	if (kernel_before(6, 11))
		SKIP(return, "no memfd is locked while it is pinned");
	blocked.dev = self->dev;
	blocked.memfd = sealed_memfd(self->page, 0, F_SEAL_SHRINK);
	if (!make_hole())
		SKIP(return, "no userfaultfd for us");
	create_us(memfd);
	alone = create_us(memfd);
	n = start_blocked(threads, n);
	beside = create_us(memfd);
	fill_hole();
	while (n--)
		pthread_join(threads[n], NULL);
	TH_LOG("create alone %lld us, beside %d blocked creates %lld us", alone,
	       blocked.started, beside);
	if (exact_time())
		EXPECT_GT(alone + alone / 4, beside);
}

/* Continuous creates while memory is short */

static struct {
	int dev;
	int card;
	long long until;
	unsigned long made;
} churn;

static bool churning(void)
{
	return now_ms() < churn.until;
}

/*
 * Limit this process's memory, but not its swap, until cgroups_close(). Returns
 * NULL or the reason why not.
 */
static const char *limit_memory(struct cgroups *groups)
{
	const char *why_not = cgroups_open(groups);

	if (why_not)
		return why_not;
	write_number(cgroup_file(groups, CGROUP_OUTER "/memory.max"), PRESSED_MAX);
	return cgroup_enter(groups, CGROUP_INNER) ? "cannot enter a memory cgroup" : NULL;
}

/*
 * Use more memory than the limit, in huge pages and small ones, 1 MiB at a
 * time.
 */
static void *press(void *arg)
{
	char *hog = anon_aligned(HOG_LEN, 2 << 20);
	const char *wrong = NULL;
	size_t off, step = 1 << 20;
	bool again;

	madvise(hog, HOG_LEN / 2, MADV_HUGEPAGE);
	for (again = false; !wrong && churning(); again = true) {
		for (off = 0; off < HOG_LEN && churning(); off += step) {
			if (again && pages_marked(hog + off, step) != step)
				wrong = "a page of the memory lost its mark";
			mark_pages(hog + off, step);
		}
		madvise(hog, HOG_LEN / 2, MADV_COLLAPSE);
		make_room();
		write_text("/proc/sys/vm/drop_caches", "3");
	}
	munmap(hog, HOG_LEN);
	return (void *)wrong;
}

static int find_vgem(void)
{
	char name[16], path[32];
	int i, card;

	for (i = 0; i < 16; i++) {
		struct drm_version version = { .name = name, .name_len = sizeof(name) };

		snprintf(path, sizeof(path), "/dev/dri/card%d", i);
		card = open(path, O_RDWR | O_CLOEXEC);
		if (card >= 0 && !ioctl(card, DRM_IOCTL_VERSION, &version) &&
		    !strncmp(name, "vgem", 4))
			return card;
		close(card);
	}
	return -1;
}

/* Each importer maps the buffer, and the test importer reads it. */
static const char *use_buffer(int buf, size_t len, char *seen)
{
	struct drm_prime_handle prime = { .fd = buf };
	struct drm_gem_close gone = {};
	struct udmabuf_importer_map map;
	int imp = importer_open();
	const char *wrong = NULL;

	if (churn.card >= 0 && ioctl(churn.card, DRM_IOCTL_PRIME_FD_TO_HANDLE, &prime))
		return "PRIME import failed";
	if (_attach(imp, buf, 0, 0) || _map(imp, IMPORTER_BIDIRECTIONAL, &map) || _vmap(imp))
		return "attach, map or vmap failed";
	if (_sync_cpu(buf, SYNC_START(RW)) || _sync_cpu(buf, SYNC_END(RW)))
		return "DMA_BUF_IOCTL_SYNC failed";
	if (_device_read(imp, map.handle, 0, seen, len) || filled_until(seen, len, 1, 0) != -1)
		wrong = "an importer reads wrong bytes";
	close(imp);
	gone.handle = prime.handle;
	if (churn.card >= 0)
		ioctl(churn.card, DRM_IOCTL_GEM_CLOSE, &gone);
	return wrong;
}

/* Create buffers of memory that is often swapped out. */
static void *make_and_use(void *arg)
{
	size_t len = 64 * page_size();
	char *mem = anon_small(len), *seen = malloc(len);
	const char *wrong = NULL;
	int buf;

	fill(mem, len, 1);
	while (!wrong && churning()) {
		buf = _create_one(churn.dev, 0, mem, len);
		if (buf < 0)
			return strerror(errno);
		wrong = use_buffer(buf, len, seen);
		close(buf);
		__atomic_fetch_add(&churn.made, 1, __ATOMIC_RELAXED);
		madvise(mem, len, MADV_PAGEOUT);
	}
	return (void *)wrong;
}

static const char *run_churn(long ms)
{
	void *(*threads[])(void *) = { make_and_use, make_and_use, press };
	pthread_t ids[ARRAY_SIZE(threads)];
	const char *wrong = NULL;
	void *ret;
	size_t i;

	churn.until = now_ms() + ms;
	for (i = 0; i < ARRAY_SIZE(ids); i++)
		pthread_create(&ids[i], NULL, threads[i], NULL);
	for (i = 0; i < ARRAY_SIZE(ids); i++) {
		pthread_join(ids[i], &ret);
		wrong = ret ?: wrong;
	}
	return wrong;
}

TEST_F_TIMEOUT(load, create_and_close_under_pressure, LOAD_TIMEOUT)
{
	const char *why_not = swap_on();
	struct cgroups groups;
	struct usage before;
	long swapped;

	SKIP_WITHOUT_IMPORTER();
	why_not = why_not ?: limit_memory(&groups);
	if (why_not)
		SKIP(return, "%s", why_not);
	churn.dev = self->dev;
	churn.card = find_vgem();
	EXPECT_EQ(NULL, run_churn(race_ms() * 2));
	before = read_usage();
	swapped = text_number("/proc/vmstat", "pswpin ");
	EXPECT_EQ(NULL, run_churn(race_ms() * 8));
	EXPECT_LT(0, churn.made);
	EXPECT_LT(swapped, text_number("/proc/vmstat", "pswpin "));
	EXPECT_STREQ("", usage_grew(&before));
	cgroups_close(&groups);
}

TEST_HARNESS_MAIN
