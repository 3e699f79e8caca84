// SPDX-License-Identifier: GPL-2.0
/*
 * Let every allocation, and every copy from or to user space, fail once.
 *
 * A sweep repeats a system call. The first allocation or copy fails in the
 * first call, the second one in the second call, until a call meets no failure.
 * Each call must either succeed (it may have a fallback) or return ENOMEM or
 * EFAULT. No page may stay pinned or charged, and no file descriptor open. A
 * kernel warning panics the machine.
 *
 * Two calls may allocate differently (a slab is empty in one of them), so that a
 * sweep can miss the allocations that matter. It is repeated until a call failed.
 */
#include "udmabuf_test.h"

#define SCATTERED	200	/* single-page extents: the array grows four times */
#define LISTED		4500	/* pages: two full lists and a part of one */
#define FILE_LISTED	600	/* pages of memfds: the same */
#define TURN		75	/* entries of one file, then of the other */
#define FRESH		8	/* pages allocated anew in each step */
#define MAX_SWEEPS	50	/* until a call fails */

static const struct {
	const char *path;
	const char *value;
} knobs[] = {
	{ "/sys/kernel/debug/failslab/ignore-gfp-wait", "N" },
	{ "/sys/kernel/debug/failslab/verbose", "0" },
	{ "/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait", "N" },
	{ "/sys/kernel/debug/fail_page_alloc/ignore-gfp-highmem", "N" },
	{ "/sys/kernel/debug/fail_page_alloc/min-order", "0" },
	{ "/sys/kernel/debug/fail_page_alloc/verbose", "0" },
	{ "/sys/kernel/debug/fail_usercopy/verbose", "0" },
	{ "/proc/sys/kernel/panic_on_warn", "1" },
};

struct sweeper {
	struct session session;
	int nth;
	unsigned int failures;	/* of run() in this sweep */
	char saved[ARRAY_SIZE(knobs)][16];

	/*
	 * The source of the buffers: entries for memory, and for files if used
	 */
	struct mem mem;
	struct udmabuf_iovec iovs[LISTED];
	struct udmabuf_create_item items[FILE_LISTED];
	size_t count;
	__u32 flags;

	int memfd;
	int buf;
	int imp;
	struct udmabuf_importer_map map, second_map;
	char *area;		/* where buffers are mapped */
};

/* Returns NULL, or the reason why faults cannot be injected. */
static const char *sweeper_open(struct sweeper *self)
{
	const char *why_not;
	size_t i;

	self->nth = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	if (self->nth < 0)
		return "no fault injection in this kernel";
	why_not = session_open(&self->session);
	for (i = 0; !why_not && i < ARRAY_SIZE(knobs); i++)
		if (read_text(knobs[i].path, self->saved[i], sizeof(self->saved[i])) < 0 ||
		    write_text(knobs[i].path, knobs[i].value))
			why_not = "fault injection cannot be set up";
	return why_not;
}

/* Restores the knobs. Returns the result of session_close(). */
static const char *sweeper_close(struct sweeper *self)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(knobs); i++)
		write_text(knobs[i].path, self->saved[i]);
	return session_close(&self->session);
}

static bool arm(const struct sweeper *self, unsigned int n)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%u", n);

	return pwrite(self->nth, text, len, 0) == len;
}

/* Has a fault been injected since arm()? Disarms in any case. */
static bool has_failed(const struct sweeper *self)
{
	char text[16] = "";

	/*
	 * The fault may be injected into this pread(), or into pwrite() of
	 * arm().
	 */
	if (pread(self->nth, text, sizeof(text) - 1, 0) < 0)
		return false;
	if (!strtoul(text, NULL, 10))
		return true;
	arm(self, 0);
	return false;
}

static int lowest_free_fd(const struct sweeper *self)
{
	int fd = dup(self->session.dev);

	close(fd);
	return fd;
}

/*
 * A system call to sweep: prepare() its arguments, run() it, check() the
 * result, undo() everything. run() returns -1 and errno on failure, the others
 * "" or the error. After a failed run(), undo() releases only the results of
 * prepare().
 */
struct step {
	bool never_fails;	/* the kernel retries the page fault */
	const char *(*prepare)(struct sweeper *self);
	int (*run)(struct sweeper *self);
	const char *(*check)(struct sweeper *self);
	const char *(*undo)(struct sweeper *self);
};

/*
 * Run the step with its @n-th allocation or copy failing. Sets *@failed if the
 * fault was injected.
 */
static const char *wrong_in_step(struct sweeper *self, const struct step *step, unsigned int n,
				 bool *failed)
{
	const char *wrong = step->prepare ? step->prepare(self) : "";
	int ret, err;

	if (*wrong)
		return wrong;
	if (!arm(self, n))
		return "cannot write to /proc/thread-self/fail-nth";
	ret = step->run(self);
	err = errno;
	*failed = has_failed(self);
	self->failures += ret < 0;
	if (ret < 0)
		wrong = *failed && (err == ENOMEM || err == EFAULT) ? "" : strerror(err);
	else if (step->check)
		wrong = step->check(self);
	if (!*wrong && (ret >= 0 || step->prepare))
		wrong = step->undo(self);
	return wrong;
}

static const char *sweep(struct sweeper *self, const struct step *step)
{
	int lowest = lowest_free_fd(self), dev = self->session.dev;
	static char text[200];
	const char *wrong = "";
	unsigned int n = 0, turns = 1;
	struct ledger before;
	bool failed = true;

	self->failures = 0;
	ledger_read(&before, dev);
	while (!*wrong && failed) {
		wrong = wrong_in_step(self, step, ++n, &failed);
		if (!*wrong)
			wrong = ledger_difference(&before, dev);
		if (!*wrong && lowest_free_fd(self) != lowest)
			wrong = "a file descriptor stays open";
		if (!failed && !self->failures && !step->never_fails && ++turns <= MAX_SWEEPS) {
			failed = true;
			n = 0;
		}
	}
	if (!*wrong && !self->failures && !step->never_fails)
		wrong = "no call failed: is fault injection configured?";
	if (!*wrong)
		return "";
	snprintf(text, sizeof(text), "with fault %u injected: %s", n, wrong);
	return text;
}

#define EXPECT_SWEEP(...)						\
	EXPECT_STREQ("", sweep(self->sweeper, &(struct step) { __VA_ARGS__ }))

/* Creating buffers */

static int run_create(struct sweeper *self)
{
	self->buf = _create(self->session.dev, self->flags, self->iovs, self->count);
	return self->buf;
}

static int run_create_memfd(struct sweeper *self)
{
	self->buf = _create_memfd(self->session.dev, 0, self->items[0].memfd,
				  self->items[0].offset, self->items[0].size);
	return self->buf;
}

static int run_create_list(struct sweeper *self)
{
	self->buf = _create_list(self->session.dev, 0, self->items, self->count);
	return self->buf;
}

/* Does the buffer show the memory of its entries? */
static const char *check_buffer(struct sweeper *self)
{
	size_t len = entries_len(self->iovs, self->count);
	char *map = _map_buf(self->buf, len, PROT_READ, 0);
	bool same;

	if (map == MAP_FAILED)
		return "mmap() of the buffer failed";
	fill(self->mem.addr, self->mem.len, self->buf);
	same = buffer_is(map, self->iovs, self->count);
	munmap(map, len);
	return same ? "" : "wrong bytes in the mapping of the buffer";
}

static const char *undo_create(struct sweeper *self)
{
	return close(self->buf) ? "close() of the buffer failed" : "";
}

#define SWEEP_CREATE	.run = run_create, .check = check_buffer, .undo = undo_create

/* Name the memory in @count pieces, the last one first. */
static void take_pieces(struct sweeper *self, size_t count)
{
	size_t len = self->mem.len / count, i;

	for (i = 0; i < count; i++)
		self->iovs[i] = (struct udmabuf_iovec) {
			to_u64(self->mem.addr) + (count - 1 - i) * len, len
		};
	self->count = count;
}

#define test_memory(kind, len)						\
	do {								\
		self->sweeper->mem = mem_get(kind, len);		\
		if (self->sweeper->mem.why_not)				\
			SKIP(return, "%s", self->sweeper->mem.why_not);	\
	} while (0)

FIXTURE(memory) {
	struct sweeper *sweeper;
};

FIXTURE_VARIANT(memory) {
	enum mem_kind kind;
};

FIXTURE_VARIANT_ADD(memory, anon) { .kind = MEM_ANON };
FIXTURE_VARIANT_ADD(memory, mthp) { .kind = MEM_MTHP };
FIXTURE_VARIANT_ADD(memory, thp) { .kind = MEM_THP };
FIXTURE_VARIANT_ADD(memory, hugetlb) { .kind = MEM_HUGETLB };
FIXTURE_VARIANT_ADD(memory, shared_anon) { .kind = MEM_SHARED_ANON };
FIXTURE_VARIANT_ADD(memory, memfd) { .kind = MEM_MEMFD };
FIXTURE_VARIANT_ADD(memory, tmpfs) { .kind = MEM_TMPFS };
FIXTURE_VARIANT_ADD(memory, sysv) { .kind = MEM_SYSV };
FIXTURE_VARIANT_ADD(memory, cow_file) { .kind = MEM_COW_FILE };

FIXTURE_SETUP(memory)
{
	const char *why_not;

	self->sweeper = calloc(1, sizeof(*self->sweeper));
	why_not = sweeper_open(self->sweeper);
	if (why_not)
		SKIP(return, "%s", why_not);
}

FIXTURE_TEARDOWN(memory)
{
	EXPECT_STREQ("", sweeper_close(self->sweeper));
}

TEST_F_TIMEOUT(memory, create, 600)
{
	test_memory(variant->kind, mem_len(variant->kind));
	take_pieces(self->sweeper, 1);
	EXPECT_SWEEP(SWEEP_CREATE);
	take_pieces(self->sweeper, 32);
	EXPECT_SWEEP(SWEEP_CREATE);
	self->sweeper->flags = UDMABUF_FLAGS_RDONLY | UDMABUF_FLAGS_CLOEXEC;
	EXPECT_SWEEP(SWEEP_CREATE);
}

FIXTURE(fail_nth) {
	struct sweeper *sweeper;
};

FIXTURE_SETUP(fail_nth)
{
	const char *why_not;

	self->sweeper = calloc(1, sizeof(*self->sweeper));
	why_not = sweeper_open(self->sweeper);
	if (why_not)
		SKIP(return, "%s", why_not);
}

FIXTURE_TEARDOWN(fail_nth)
{
	EXPECT_STREQ("", sweeper_close(self->sweeper));
}

TEST_F_TIMEOUT(fail_nth, create_of_many_extents, 600)
{
	test_memory(MEM_ANON, SCATTERED * page_size());
	take_pieces(self->sweeper, SCATTERED);
	EXPECT_SWEEP(SWEEP_CREATE);
}

TEST_F_TIMEOUT(fail_nth, create_of_lists, 600)
{
	test_memory(MEM_ANON, LISTED * page_size());
	take_pieces(self->sweeper, LISTED);
	EXPECT_SWEEP(SWEEP_CREATE);
}

/* Memory that is not yet allocated */

static const char *prepare_untouched(struct sweeper *self)
{
	self->buf = -1;
	self->mem.len = FRESH * page_size();
	self->mem.addr = anon_small(self->mem.len);
	take_pieces(self, FRESH);
	return self->mem.addr == MAP_FAILED ? "mmap() of fresh memory failed" : "";
}

/* The memory may lie in the movable zone; the pin must then migrate it. */
static const char *prepare_touched(struct sweeper *self)
{
	const char *wrong = prepare_untouched(self);

	if (!*wrong)
		memset(self->mem.addr, 1, self->mem.len);
	return wrong;
}

static const char *undo_fresh(struct sweeper *self)
{
	if (self->buf >= 0)
		close(self->buf);
	munmap(self->mem.addr, self->mem.len);
	return "";
}

TEST_F_TIMEOUT(fail_nth, create_of_fresh_memory, 600)
{
	EXPECT_SWEEP(.prepare = prepare_untouched, .run = run_create, .check = check_buffer,
		     .undo = undo_fresh);
	EXPECT_SWEEP(.prepare = prepare_touched, .run = run_create, .check = check_buffer,
		     .undo = undo_fresh);
}

/* Files with holes, which a create fills */

static const char *prepare_file(struct sweeper *self, size_t len, unsigned int flags)
{
	self->buf = -1;
	self->memfd = sealed_memfd(len, flags, F_SEAL_SHRINK);
	self->mem.len = len;
	self->mem.addr = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, self->memfd, 0);
	if (self->mem.addr == MAP_FAILED)
		return "cannot create or map a memfd";
	self->items[0] = (struct udmabuf_create_item) { .memfd = self->memfd, .size = len };
	take_pieces(self, 1);
	return "";
}

static const char *prepare_memfd(struct sweeper *self)
{
	return prepare_file(self, FRESH * page_size(), 0);
}

static const char *prepare_hugetlb(struct sweeper *self)
{
	return prepare_file(self, 2 * hugetlb_size(), MFD_HUGETLB);
}

static const char *undo_file(struct sweeper *self)
{
	close(self->memfd);
	return undo_fresh(self);
}

TEST_F_TIMEOUT(fail_nth, create_of_memfds, 600)
{
	EXPECT_SWEEP(.prepare = prepare_memfd, .run = run_create_memfd, .check = check_buffer,
		     .undo = undo_file);
	hugetlb_provide(4 * hugetlb_size());
	EXPECT_SWEEP(.prepare = prepare_hugetlb, .run = run_create_memfd, .check = check_buffer,
		     .undo = undo_file);
}

/* Two files in turn, each from its last page to its first */
TEST_F_TIMEOUT(fail_nth, create_of_a_list, 600)
{
	size_t page = page_size(), len = FILE_LISTED / 2 * page, i;
	size_t left[] = { len, len };
	struct sweeper *sweeper = self->sweeper;
	int memfds[2];

	sweeper->mem.len = 2 * len;
	sweeper->mem.addr = anon_small(2 * len);
	for (i = 0; i < 2; i++) {
		memfds[i] = sealed_memfd(len, 0, F_SEAL_SHRINK);
		ASSERT_NE(MAP_FAILED, mmap(sweeper->mem.addr + i * len, len,
					   PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
					   memfds[i], 0));
	}
	memset(sweeper->mem.addr, 1, 2 * len);
	for (i = 0; i < FILE_LISTED; i++) {
		int which = i / TURN % 2;

		left[which] -= page;
		sweeper->items[i] = (struct udmabuf_create_item) {
			.memfd = memfds[which], .offset = left[which], .size = page
		};
		sweeper->iovs[i] = (struct udmabuf_iovec) {
			to_u64(sweeper->mem.addr + which * len + left[which]), page
		};
	}
	sweeper->count = FILE_LISTED;
	EXPECT_SWEEP(.run = run_create_list, .check = check_buffer, .undo = undo_create);
}

/* Importers */

/* The driver core returns EINVAL if it has no memory for a device name. */
static int run_attach(struct sweeper *self)
{
	int ret = _attach(self->imp, self->buf, 0, 0);

	if (ret && errno == EINVAL)
		errno = ENOMEM;
	return ret;
}

static const char *undo_attach(struct sweeper *self)
{
	return _detach(self->imp) ? "detach failed: not attached" : "";
}

/*
 * DMA_TO_DEVICE: for other directions DMA-API debug disables itself permanently
 * when an allocation fails.
 */
static int run_map(struct sweeper *self)
{
	return _map(self->imp, IMPORTER_TO_DEVICE, &self->map);
}

static const char *undo_map(struct sweeper *self)
{
	if (self->map.handle)
		return "an earlier map is left";
	return _unmap(self->imp, self->map.handle) ? "unmap failed: not mapped" : "";
}

/* The attachment's own map is in use, so this map needs a new allocation. */
static int run_second_map(struct sweeper *self)
{
	return _map(self->imp, IMPORTER_TO_DEVICE, &self->second_map);
}

static const char *undo_second_map(struct sweeper *self)
{
	return _unmap(self->imp, self->second_map.handle) ? "unmap failed: not mapped" : "";
}

static int run_sync(struct sweeper *self)
{
	int ret = _sync_cpu(self->buf, SYNC_START(RW));

	return ret ?: _sync_cpu(self->buf, SYNC_END(RW));
}

static const char *undo_nothing(struct sweeper *self)
{
	return "";
}

static const char *make_buffer(struct sweeper *self, size_t npages)
{
	self->mem = mem_get(MEM_ANON, npages * page_size());
	take_pieces(self, npages);
	return run_create(self) < 0 ? "cannot create a buffer" : "";
}

TEST_F_TIMEOUT(fail_nth, importers, 600)
{
	static const size_t npages[] = { SCATTERED, LISTED };
	struct sweeper *sweeper = self->sweeper;
	size_t i;

	SKIP_WITHOUT_IMPORTER();
	for (i = 0; i < ARRAY_SIZE(npages); i++) {
		ASSERT_STREQ("", make_buffer(sweeper, npages[i]));
		sweeper->imp = importer_open();
		EXPECT_SWEEP(.run = run_attach, .undo = undo_attach);
		ASSERT_EQ(0, run_attach(sweeper));
		EXPECT_SWEEP(.run = run_map, .undo = undo_map);
		ASSERT_EQ(0, run_map(sweeper));
		EXPECT_SWEEP(.run = run_second_map, .undo = undo_second_map);
		EXPECT_SWEEP(.run = run_sync, .undo = undo_nothing);
		close(sweeper->imp);
		close(sweeper->buf);
	}
}

/* Each step needs a buffer without a vmap. */
static const char *prepare_vmap(struct sweeper *self)
{
	self->imp = importer_open();
	return run_create(self) < 0 || run_attach(self) ? "cannot create or attach a buffer" : "";
}

static int run_vmap(struct sweeper *self)
{
	int ret = _vmap(self->imp);

	return ret ? -1 : 0;
}

static const char *check_vmap(struct sweeper *self)
{
	char *seen = malloc(self->mem.len);
	bool same;

	fill(self->mem.addr, self->mem.len, 1);
	same = !_device_io(self->imp, IMPORTER_VREAD, 0, 0, seen, self->mem.len) &&
	       buffer_is(seen, self->iovs, self->count);
	free(seen);
	return same ? "" : "wrong bytes in the vmap";
}

static const char *undo_vmap(struct sweeper *self)
{
	close(self->imp);
	return undo_create(self);
}

/* On stock kernels the core warns if the driver returns an error. */
TEST_F_TIMEOUT(fail_nth, kernel_mapping, 600)
{
	SKIP_WITHOUT_IMPORTER();
	test_memory(MEM_ANON, 4 * SCATTERED * page_size());
	take_pieces(self->sweeper, 4 * SCATTERED);
	EXPECT_SWEEP(.prepare = prepare_vmap, .run = run_vmap, .check = check_vmap,
		     .undo = undo_vmap);
}

/*
 * Mappings. A failed page fault of user space is retried, so that no error
 * shows. A page fault of the kernel is not retried.
 */

static int run_mmap(struct sweeper *self)
{
	char *map = mmap(self->area, self->mem.len, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED_NOREPLACE, self->buf, 0);

	return map == MAP_FAILED ? -1 : 0;
}

static const char *undo_mmap(struct sweeper *self)
{
	return munmap(self->area, self->mem.len) ? "munmap() of the buffer failed" : "";
}

static const char *prepare_mmap(struct sweeper *self)
{
	return run_mmap(self) ? "mmap() of the buffer failed" : "";
}

static int run_load(struct sweeper *self)
{
	return filled_until(self->area, self->mem.len, 1, 0) == -1 ? 0 : -1;
}

static int run_store(struct sweeper *self)
{
	fill(self->area, self->mem.len, 1);
	return 0;
}

/* The kernel reads the mapping in pwrite(). */
static int run_write(struct sweeper *self)
{
	return pwrite(self->memfd, self->area, page_size(), 0) == page_size() ? 0 : -1;
}

static const char *check_mapping(struct sweeper *self)
{
	return filled_until(self->mem.addr, self->mem.len, 1, 0) == -1 &&
	       filled_until(self->area, self->mem.len, 1, 0) == -1 ? "" :
	       "wrong bytes in the memory or the mapping";
}

/* Far from other mappings, so that page tables of every level are missing */
#define FAR_AWAY	((char *)(uintptr_t)(sizeof(long) == 8 ? 1ULL << 36 : 1ULL << 31))

/* Small entries, then huge ones */
TEST_F_TIMEOUT(fail_nth, mappings, 600)
{
	static int (* const runs[])(struct sweeper *self) = { run_load, run_store, run_write };
	struct sweeper *sweeper = self->sweeper;
	size_t phases[] = { page_size(), 0 }, i, j;

	test_memory(MEM_THP, 2 * thp_size());
	fill(sweeper->mem.addr, sweeper->mem.len, 1);
	take_pieces(sweeper, 1);
	sweeper->memfd = sealed_memfd(page_size(), 0, 0);
	ASSERT_LE(0, run_create(sweeper));
	for (i = 0; i < ARRAY_SIZE(phases); i++) {
		sweeper->area = FAR_AWAY + phases[i];
		EXPECT_SWEEP(.run = run_mmap, .check = check_mapping, .undo = undo_mmap);
		for (j = 0; j < ARRAY_SIZE(runs); j++)
			EXPECT_SWEEP(.never_fails = runs[j] != run_write,
				     .prepare = prepare_mmap, .run = runs[j],
				     .check = check_mapping, .undo = undo_mmap);
	}
}

/* Runs last: does kmemleak find memory without a reference? */
TEST_F_TIMEOUT(fail_nth, nothing_is_lost, 600)
{
	const char *kmemleak = "/sys/kernel/debug/kmemleak";
	static char lost[65536];
	int i;

	if (access(kmemleak, W_OK))
		SKIP(return, "no kmemleak in this kernel");
	/*
	 * kmemleak reports only objects older than 5 s, seen unreferenced in
	 * two scans.
	 */
	for (i = 0; i < 2; i++) {
		sleep_ms(5500);
		ASSERT_EQ(0, write_text(kmemleak, "scan"));
	}
	ASSERT_LE(0, read_text(kmemleak, lost, sizeof(lost)));
	EXPECT_STREQ("", lost);
}

TEST_HARNESS_MAIN
