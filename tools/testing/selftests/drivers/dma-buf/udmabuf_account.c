// SPDX-License-Identifier: GPL-2.0
/*
 * Accounting: each page of a buffer, as often as it is named, is charged to
 * RLIMIT_MEMLOCK of the creator's user until the last reference is gone. Each
 * page also counts in VmPin of the creating process, up to 32 possible CPUs.
 *
 * The creators are children that become an ordinary user.
 */
#include <glob.h>

#include "udmabuf_test.h"

#define LIMIT	16	/* pages */

FIXTURE(account) {
	struct session session;
	int dev;
	char *mem;
	size_t page;
	int socks[2];
};

FIXTURE_SETUP(account)
{
	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	if (geteuid())
		SKIP(return, "needs root, to become other users");
	self->page = page_size();
	self->mem = anon_small(2 * LIMIT * self->page);
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, self->socks));
}

FIXTURE_TEARDOWN(account)
{
	SESSION_CLOSE(&self->session);
}

/* Run the block as user @uid with a limit of LIMIT pages; it must not fail. */
#define AS_USER(uid, ...)						\
	({								\
		pid_t __pid = fork();					\
		if (!__pid) {						\
			become(uid, LIMIT);				\
			__VA_ARGS__;					\
			_exit(0);					\
		}							\
		EXPECT_EQ(0, reap(__pid)) TH_LOG("block failed as user %d", uid);	\
	})

/* Expect that @uid has exactly @npages of its quota left. */
#define EXPECT_QUOTA_LEFT(uid, npages)					\
	AS_USER(uid, CHILD_CHECK(quota_left_is(self->dev, npages)))

TEST_F(account, exactly_the_limit_and_one_page_over)
{
	AS_USER(NOBODY_UID, {
		CHILD_CHECK(_create_one(self->dev, 0, self->mem, (LIMIT + 1) * self->page) == -1);
		CHILD_CHECK(errno == ENOMEM);
		CHILD_CHECK(_create_one(self->dev, 0, self->mem, LIMIT * self->page) >= 0);
		CHILD_CHECK(_create_one(self->dev, 0, self->mem, self->page) == -1);
		CHILD_CHECK(errno == ENOMEM);
	});
	EXPECT_QUOTA_LEFT(NOBODY_UID, LIMIT);
}

TEST_F(account, buffers_add_up_and_close_gives_back)
{
	AS_USER(NOBODY_UID, {
		int half = _create_one(self->dev, 0, self->mem, LIMIT / 2 * self->page);

		CHILD_CHECK(half >= 0);
		CHILD_CHECK(quota_left_is(self->dev, LIMIT / 2));
		close(half);
		CHILD_CHECK(quota_left_is(self->dev, LIMIT));
	});
}

TEST_F(account, duplicates_count)
{
	AS_USER(NOBODY_UID, {
		struct udmabuf_iovec iovs[LIMIT + 1];

		make_entries(iovs, LIMIT + 1, self->mem, self->page, 0);
		CHILD_CHECK(_create(self->dev, 0, iovs, LIMIT + 1) == -1 && errno == ENOMEM);
		CHILD_CHECK(_create(self->dev, 0, iovs, LIMIT) >= 0);
		CHILD_CHECK(quota_left_is(self->dev, 0));
	});
}

TEST_F(account, read_only_buffers_count)
{
	SKIP_WITHOUT_RDONLY();
	AS_USER(NOBODY_UID, {
		CHILD_CHECK(_create_one(self->dev, UDMABUF_FLAGS_RDONLY, self->mem,
					(LIMIT - 1) * self->page) >= 0);
		CHILD_CHECK(quota_left_is(self->dev, 1));
	});
}

/* Guards against overflow: a huge size plus the pages already charged. */
TEST_F(account, huge_size_with_something_charged)
{
	AS_USER(NOBODY_UID, {
		CHILD_CHECK(_create_one(self->dev, 0, self->mem, self->page) >= 0);
		CHILD_CHECK(_create(self->dev, 0, &(struct udmabuf_iovec) {
					self->page, largest_size() }, 1) == -1);
		CHILD_CHECK(errno == ENOMEM);
		CHILD_CHECK(quota_left_is(self->dev, LIMIT - 1));
	});
}

TEST_F(account, no_limit_no_refusal)
{
	struct rlimit none = { RLIM_INFINITY, RLIM_INFINITY };

	ASSERT_EQ(0, setrlimit(RLIMIT_MEMLOCK, &none));
	test_create_one(self->dev, 0, self->mem, 2 * LIMIT * self->page);
}

/*
 * A create with CAP_IPC_LOCK is not charged. Guards against uncharging such a
 * buffer, which would enlarge the quota.
 */
TEST_F(account, cap_ipc_lock_bypasses)
{
	int buf;

	set_memlock(0);
	test_err_create_one(ENOMEM, self->dev, 0, self->mem, self->page);
	set_capability(CAP_IPC_LOCK, true);
	if (!has_capability(CAP_IPC_LOCK))
		SKIP(return, "needs CAP_IPC_LOCK");
	buf = test_create_one(self->dev, 0, self->mem, 2 * LIMIT * self->page);
	set_capability(CAP_IPC_LOCK, false);
	set_memlock(LIMIT * self->page);
	EXPECT_TRUE(quota_left_is(self->dev, LIMIT));
	close(buf);
	EXPECT_TRUE(quota_left_is(self->dev, LIMIT));
}

/* A charged buffer is uncharged even if the capability was gained later. */
TEST_F(account, capability_at_close_does_not_matter)
{
	int buf;

	set_memlock(LIMIT * self->page);
	buf = test_create_one(self->dev, 0, self->mem, LIMIT * self->page);
	set_capability(CAP_IPC_LOCK, true);
	close(buf);
	set_capability(CAP_IPC_LOCK, false);
	EXPECT_TRUE(quota_left_is(self->dev, LIMIT));
}

/* A forked process has no quota of its own. */
TEST_F(account, all_processes_of_a_user_share_the_quota)
{
	pid_t pid = fork();

	if (!pid) {
		become(NOBODY_UID, LIMIT);
		CHILD_CHECK(_create_one(self->dev, 0, self->mem, (LIMIT - 3) * self->page) >= 0);
		tell(self->socks[1]);
		hear(self->socks[1]);
		_exit(0);
	}
	hear(self->socks[0]);
	EXPECT_QUOTA_LEFT(NOBODY_UID, 3);
	EXPECT_QUOTA_LEFT(OTHER_UID, LIMIT);
	tell(self->socks[0]);
	EXPECT_EQ(0, reap(pid));
	EXPECT_QUOTA_LEFT(NOBODY_UID, LIMIT);
}

/*
 * The charge stays with the creator's user wherever the fd goes: here to root,
 * after the creator has exited.
 */
TEST_F(account, charge_follows_the_creator_until_the_receiver_closes)
{
	pid_t pid = fork();
	int buf;

	if (!pid) {
		become(NOBODY_UID, LIMIT);
		buf = _create_one(self->dev, 0, self->mem, (LIMIT - 1) * self->page);
		CHILD_CHECK(buf >= 0 && !send_fd(self->socks[1], buf));
		_exit(0);
	}
	buf = receive_fd(self->socks[0]);
	ASSERT_LE(0, buf);
	ASSERT_EQ(0, reap(pid));
	EXPECT_QUOTA_LEFT(NOBODY_UID, 1);
	EXPECT_QUOTA_LEFT(OTHER_UID, LIMIT);
	EXPECT_TRUE(whole_quota_left(self->dev));
	close(buf);
	EXPECT_QUOTA_LEFT(NOBODY_UID, LIMIT);
}

/* A mapping is a reference, like an fd. */
TEST_F(account, charge_lasts_as_long_as_a_mapping)
{
	int buf;
	char *map;

	set_memlock(LIMIT * self->page);
	buf = test_create_one(self->dev, 0, self->mem, LIMIT * self->page);
	map = test_map_buf(buf, LIMIT * self->page, PROT_READ);
	close(buf);
	EXPECT_TRUE(quota_left_is(self->dev, 0));
	munmap(map, LIMIT * self->page);
	EXPECT_TRUE(quota_left_is(self->dev, LIMIT));
}

TEST_F(account, exit_and_kill_give_back)
{
	pid_t pid;

	AS_USER(NOBODY_UID, {
		CHILD_CHECK(_create_one(self->dev, 0, self->mem, LIMIT * self->page) >= 0);
	});
	EXPECT_QUOTA_LEFT(NOBODY_UID, LIMIT);
	pid = fork();
	if (!pid) {
		become(NOBODY_UID, LIMIT);
		CHILD_CHECK(_create_one(self->dev, 0, self->mem, LIMIT * self->page) >= 0);
		tell(self->socks[1]);
		pause();
		_exit(0);
	}
	hear(self->socks[0]);
	kill(pid, SIGKILL);
	reap(pid);
	EXPECT_QUOTA_LEFT(NOBODY_UID, LIMIT);
}

static void fail_in_every_way(int dev, char *mem, size_t page)
{
	struct udmabuf_iovec bad_last[] = {
		{ to_u64(mem), page },
		{ to_u64(mem + 4 * page), page },
	};
	struct rlimit no_fds = { 0, 0 };

	munmap(mem + 4 * page, page);
	CHILD_CHECK(_create(dev, 0, bad_last, 2) == -1 && errno == EFAULT);
	CHILD_CHECK(_create_one(dev, 4, mem, page) == -1 && errno == EINVAL);
	CHILD_CHECK(_create_one(dev, 0, mem, 1) == -1 && errno == EINVAL);
	CHILD_CHECK(_create_one(dev, 0, mem, 2 * LIMIT * page) == -1 && errno == ENOMEM);
	CHILD_CHECK(!mprotect(mem + 5 * page, page, PROT_READ));
	CHILD_CHECK(_create_one(dev, 0, mem + 5 * page, page) == -1 && errno == EFAULT);
	no_fds.rlim_max = 1024;
	CHILD_CHECK(!setrlimit(RLIMIT_NOFILE, &no_fds));
	CHILD_CHECK(_create_one(dev, 0, mem, page) == -1 && errno == EMFILE);
	no_fds.rlim_cur = 1024;
	CHILD_CHECK(!setrlimit(RLIMIT_NOFILE, &no_fds));
}

/* Guards the error paths: each must uncharge all pages it charged. */
TEST_F(account, failures_give_back)
{
	AS_USER(NOBODY_UID, {
		fail_in_every_way(self->dev, self->mem, self->page);
		CHILD_CHECK(quota_left_is(self->dev, LIMIT));
	});
}

TEST_F(account, refused_file_gives_back)
{
	char *file = map_scratch_file("ramfs", self->page, PROT_READ | PROT_WRITE, MAP_SHARED);

	if (file == MAP_FAILED)
		SKIP(return, "cannot mount ramfs");
	AS_USER(NOBODY_UID, {
		CHILD_CHECK(_create_one(self->dev, 0, file, self->page) == -1);
		CHILD_CHECK(errno == EOPNOTSUPP);
		CHILD_CHECK(quota_left_is(self->dev, LIMIT));
	});
}

/*
 * VmPin counts for every process, also with the capability, but not on machines
 * with more CPUs than VMPIN_CPUS.
 */
#define VMPIN_CPUS	32

/* KiB in VmPin for @npages */
static long vmpin_for(size_t npages)
{
	char text[256] = "", *at = text;
	long first, last, cpus = 0;

	/* for example "0-3" or "0-3,8" */
	read_text("/sys/devices/system/cpu/possible", text, sizeof(text));
	do {
		first = strtol(at, &at, 10);
		last = *at == '-' ? strtol(at + 1, &at, 10) : first;
		cpus += last - first + 1;
	} while (*at++ == ',');
	return cpus > VMPIN_CPUS ? 0 : npages * page_size() / 1024;
}

TEST_F(account, vmpin_shows_every_page)
{
	long before = vmpin_kib();
	int one, two;

	one = test_create_one(self->dev, 0, self->mem, 5 * self->page);
	EXPECT_EQ(before + vmpin_for(5), vmpin_kib());
	set_capability(CAP_IPC_LOCK, true);
	two = test_create_one(self->dev, 0, self->mem, 7 * self->page);
	EXPECT_EQ(before + vmpin_for(12), vmpin_kib());
	close(one);
	EXPECT_EQ(before + vmpin_for(7), vmpin_kib());
	set_capability(CAP_IPC_LOCK, false);
	close(two);
	EXPECT_EQ(before, vmpin_kib());
}

/* Guards against uncharging the process that closes: VmPin is the creator's. */
TEST_F(account, vmpin_is_the_creators_wherever_it_is_closed)
{
	long before = vmpin_kib();
	int buf = test_create_one(self->dev, 0, self->mem, 5 * self->page);
	pid_t pid = fork();

	if (!pid) {
		CHILD_CHECK(vmpin_kib() == 0);
		hear(self->socks[1]);
		close(buf);
		CHILD_CHECK(vmpin_kib() == 0);
		_exit(0);
	}
	close(buf);
	EXPECT_EQ(before + vmpin_for(5), vmpin_kib());
	tell(self->socks[0]);
	EXPECT_EQ(0, reap(pid));
	EXPECT_NOTHING_KEPT(&self->session);
}

/* Pinned pages as counted by the kernel */
TEST_F(account, every_page_is_pinned_once)
{
	long before = pinned_pages();
	int buf = test_create_one(self->dev, 0, self->mem, 2 * LIMIT * self->page);

	EXPECT_EQ(before + 2 * LIMIT, pinned_pages());
	close(buf);
	EXPECT_EQ(before, pinned_pages());
}

#if __SIZEOF_LONG__ == 8	/* 32 bits: too little address space */

/*
 * Kernel memory used for buffers and their mappings. A memory cgroup limits a
 * caller only if most of that memory is charged to it. So the uncharged memory
 * must be less than the memory charged to the caller.
 */

#define KEPT_FILES	30000
#define KEPT_NOISE	1024	/* KiB */
#define KEPT_PIECES	16	/* pieces of the memfd, in turn: a page's pins are limited */

/* KiB */
struct kept_memory {
	long used;		/* system memory in use */
	long objects;		/* kernel memory, without page tables of user space */
	long charged, charged_objects;
};

enum kept_use {
	KEPT_BUFFER,
	KEPT_MAP,
	KEPT_VMAP,
	KEPT_AFTER_VUNMAP,
	KEPT_MMAP,		/* a page in each page table touched */
	KEPT_AFTER_EXIT,	/* each by another process, which has exited */
};

FIXTURE(kept) {
	struct session session;
	struct cgroups groups;
	int dev;
	int fd;
	char *mem;		/* all of the memfd */
	size_t piece;
	struct kept_memory seen;
	size_t entries;
	bool vmaps;
	long nobody, caller;	/* uncharged, and charged to the caller, KiB */
};

FIXTURE_VARIANT(kept) {
	size_t count;		/* buffers */
	size_t entries;
	size_t npages;		/* per entry; 0 for a huge page */
	bool iovec;
	enum kept_use use;
};

FIXTURE_VARIANT_ADD(kept, page) { 8000, 1, 1, true };
FIXTURE_VARIANT_ADD(kept, page_of_memfd) { 8000, 1, 1, false };
FIXTURE_VARIANT_ADD(kept, page_after_exit) { 1000, 1, 1, true, KEPT_AFTER_EXIT };
FIXTURE_VARIANT_ADD(kept, page_vmap) { 4000, 1, 1, false, KEPT_VMAP };
FIXTURE_VARIANT_ADD(kept, duplicates) { 128, 2048, 8, false };
FIXTURE_VARIANT_ADD(kept, duplicates_map) { 128, 2048, 8, false, KEPT_MAP };
FIXTURE_VARIANT_ADD(kept, duplicates_vmap) { 128, 2048, 8, false, KEPT_VMAP };
FIXTURE_VARIANT_ADD(kept, duplicates_after_vunmap) { 128, 2048, 8, false, KEPT_AFTER_VUNMAP };
FIXTURE_VARIANT_ADD(kept, duplicates_mmap) { 128, 2048, 8, false, KEPT_MMAP };
FIXTURE_VARIANT_ADD(kept, huge_pages_vmap) { 128, 128, 0, false, KEPT_VMAP };
FIXTURE_VARIANT_ADD(kept, huge_pages_after_vunmap) { 128, 128, 0, false, KEPT_AFTER_VUNMAP };
FIXTURE_VARIANT_ADD(kept, longest_list) { 16, 65536, 1, false };
FIXTURE_VARIANT_ADD(kept, longest_list_of_memory) { 16, 65536, 1, true };

FIXTURE_SETUP(kept)
{
	struct rlimit files = { KEPT_FILES, KEPT_FILES };
	struct rlimit memlock = { RLIM_INFINITY, RLIM_INFINITY };
	bool huge = !variant->npages;
	const char *why_not = cgroups_open(&self->groups);

	if (why_not)
		SKIP(return, "%s", why_not);
	if (!access("/sys/kernel/debug/kmemleak", F_OK))
		SKIP(return, "kmemleak has something to remember of each allocation");
	if (variant->use == KEPT_MAP && !access("/sys/kernel/debug/dma-api", F_OK))
		SKIP(return, "dma-debug has something to remember of each segment");
	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	setrlimit(RLIMIT_NOFILE, &files);
	setrlimit(RLIMIT_MEMLOCK, &memlock);
	self->entries = listed_pages(variant->entries);
	self->piece = huge ? hugetlb_size() : variant->npages * page_size();
	if (huge)
		hugetlb_provide(KEPT_PIECES * self->piece);
	self->fd = sealed_memfd(KEPT_PIECES * self->piece, huge ? MFD_HUGETLB : 0, F_SEAL_SHRINK);
	self->mem = mmap(NULL, KEPT_PIECES * self->piece, PROT_READ | PROT_WRITE, MAP_SHARED,
			 self->fd, 0);
	if (self->mem == MAP_FAILED)
		SKIP(return, "no hugetlb memfds here");
	memset(self->mem, 1, KEPT_PIECES * self->piece);
	self->vmaps = variant->use == KEPT_VMAP || variant->use == KEPT_AFTER_VUNMAP;
	ASSERT_EQ(0, cgroup_enter(&self->groups, CGROUP_INNER));
}

FIXTURE_TEARDOWN(kept)
{
	munmap(self->mem, KEPT_PIECES * self->piece);
	SESSION_CLOSE(&self->session);
	cgroups_close(&self->groups);
}

/*
 * KiB of page tables that vmaps need. The tables stay after a vunmap and the
 * next vmap reuses them, so the memory in use may not show them.
 */
static long vmap_tables_kib(void)
{
	FILE *info = fopen("/proc/vmallocinfo", "r");
	char line[256];
	long bytes, sum = 0;

	while (info && fgets(line, sizeof(line), info))
		if (strstr(line, " vmap") && sscanf(line, "%*s %ld", &bytes) == 1)
			sum += bytes / (page_size() / sizeof(long));
	if (info)
		fclose(info);
	return sum / 1024;
}

/* KiB of the free pages on per-CPU lists, which MemFree does not count. */
static long cpus_pages_kib(void)
{
	FILE *info = fopen("/proc/zoneinfo", "r");
	long npages, sum = 0;
	char line[256];

	while (info && fgets(line, sizeof(line), info))
		if (sscanf(line, " count: %ld", &npages) == 1)
			sum += npages;
	if (info)
		fclose(info);
	return sum * (page_size() / 1024);
}

/* Return free memory held by caches to the system. */
static void shrink_caches(void)
{
	glob_t caches = {};
	size_t i;

	write_text("/proc/sys/vm/drop_caches", "3");
	glob("/sys/kernel/slab/*/shrink", 0, NULL, &caches);
	for (i = 0; i < caches.gl_pathc; i++)
		write_text(caches.gl_pathv[i], "1");
	globfree(&caches);
}

/*
 * KiB of slab objects in use, and of other kernel memory except plain pages.
 * Free slab objects are not counted, since the next test reuses them.
 */
static long objects_kib(void)
{
	static const char format[] =
		"%*s %lu %*u %lu %*u %lu : tunables %*u %*u %*u : slabdata %*u %lu";
	FILE *info = fopen("/proc/slabinfo", "r");
	unsigned long active, size, npages, slabs;
	long long bytes = 0;
	char line[256];

	while (info && fgets(line, sizeof(line), info))
		if (sscanf(line, format, &active, &size, &npages, &slabs) == 4)
			bytes += active * size - (long long)slabs * npages * page_size();
	if (info)
		fclose(info);
	return bytes / 1024 + text_number("/proc/meminfo", "Slab:") +
	       text_number("/proc/meminfo", "VmallocUsed:") +
	       text_number("/proc/meminfo", "Percpu:") + vmap_tables_kib();
}

/*
 * Each CPU precharges the memcg by 64 pages: 8 MiB on two CPUs with 64 KiB
 * pages. A limit that is one page too low returns the unused charge.
 */
static void uncharge_what_is_to_come(const struct cgroups *groups)
{
	long now = text_number(cgroup_file(groups, CGROUP_INNER "/memory.current"), "");
	const char *high = cgroup_file(groups, CGROUP_INNER "/memory.high");

	write_number(high, now - page_size());
	write_text(high, "max");
}

static struct kept_memory read_memory(const struct cgroups *groups)
{
	struct kept_memory memory;
	const char *file;

	shrink_caches();
	uncharge_what_is_to_come(groups);
	/* memory.stat may lag by 64 pages per CPU for two seconds. */
	sleep_ms(page_size() > 4096 ? 2500 : 200);
	memory.used = text_number("/proc/meminfo", "MemTotal:") -
		      text_number("/proc/meminfo", "MemFree:") - cpus_pages_kib();
	memory.objects = objects_kib();
	file = cgroup_file(groups, CGROUP_INNER "/memory.stat");
	memory.charged_objects = (text_number(file, "kernel ") -
				  text_number(file, "pagetables ")) / 1024;
	file = cgroup_file(groups, CGROUP_INNER "/memory.current");
	memory.charged = text_number(file, "") / 1024;
	return memory;
}

/* Read the counters. With @add, add the growth since the last read. */
static void look_at_memory(struct _test_data_kept *self, bool add)
{
	struct kept_memory before = self->seen, *now = &self->seen;
	long objects, used;

	*now = read_memory(&self->groups);
	if (!add)
		return;
	self->caller += now->charged - before.charged;
	used = now->used - before.used - (now->charged - before.charged);
	objects = now->objects - before.objects - (now->charged_objects - before.charged_objects);
	/* The memory in use also has page tables of vmaps that are gone. */
	self->nobody += used < objects || self->vmaps ? objects : used;
}

static struct udmabuf_create_item kept_items[65536];
static struct udmabuf_iovec kept_iovs[65536];

static int create_kept(const struct _test_data_kept *self, size_t entries, bool iovec, size_t i)
{
	size_t off = i % KEPT_PIECES * self->piece;

	for (i = 0; i < entries; i++) {
		kept_iovs[i] = (struct udmabuf_iovec) { to_u64(self->mem) + off, self->piece };
		kept_items[i] = (struct udmabuf_create_item) { self->fd, 0, off, self->piece };
	}
	return iovec ? _create(self->dev, 0, kept_iovs, entries) :
		       _create_list(self->dev, 0, kept_items, entries);
}

/* The creator has an mm of its own, which the buffer keeps. */
static int create_kept_and_exit(const struct _test_data_kept *self, size_t i)
{
	int socks[2], buf;
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, socks))
		return -1;
	pid = fork();
	if (!pid)
		_exit(send_fd(socks[1], create_kept(self, 1, true, i)));
	close(socks[1]);
	buf = receive_fd(socks[0]);
	close(socks[0]);
	return reap(pid) ? -1 : buf;
}

static const char *use_kept(int imp, int buf, size_t len, enum kept_use use)
{
	size_t off, table = page_size() / 16 * page_size();	/* no table maps less */
	struct udmabuf_importer_map map;
	char *user;

	switch (use) {
	case KEPT_BUFFER:
	case KEPT_AFTER_EXIT:
		break;
	case KEPT_MAP:
		return _attach(imp, buf, 0, 0) || _map(imp, IMPORTER_BIDIRECTIONAL, &map) ?
		       "an importer cannot attach or map the buffer" : "";
	case KEPT_VMAP:
		return _vmap(imp) ? "an importer cannot vmap the buffer" : "";
	case KEPT_AFTER_VUNMAP:
		return _attach(imp, buf, 0, 0) || _vmap(imp) || ioctl(imp, IMPORTER_VUNMAP) ||
		       _detach(imp) ? "attach, vmap, vunmap or detach failed" : "";
	case KEPT_MMAP:
		user = _map_buf(buf, len, PROT_READ, 0);
		if (user == MAP_FAILED)
			return "mmap() of the buffer failed";
		for (off = 0; off < len; off += table)
			(void)*(volatile char *)(user + off);
		(void)*(volatile char *)(user + len - 1);
		return "";
	}
	return "";
}

/*
 * An importer's own memory is not the buffer's, and is not counted. The memory
 * of an attachment is the buffer's, and counts except for KEPT_VMAP.
 */
static const char *keep(struct _test_data_kept *self, const struct _fixture_variant_kept *variant)
{
	static int bufs[KEPT_FILES], imps[KEPT_FILES];
	const char *wrong = "";
	size_t i;

	/* Allocate the test's own memory before the first read. */
	memset(kept_items, 1, sizeof(kept_items));
	memset(kept_iovs, 1, sizeof(kept_iovs));
	memset(bufs, 1, sizeof(bufs));
	memset(imps, 1, sizeof(imps));
	look_at_memory(self, false);
	for (i = 0; i < variant->count; i++) {
		bufs[i] = variant->use == KEPT_AFTER_EXIT ? create_kept_and_exit(self, i) :
			  create_kept(self, self->entries, variant->iovec, i);
		if (bufs[i] < 0)
			return strerror(errno);
	}
	look_at_memory(self, true);
	if (variant->use == KEPT_BUFFER || variant->use == KEPT_AFTER_EXIT)
		return "";
	for (i = 0; i < variant->count; i++) {
		imps[i] = importer_open();
		if (variant->use == KEPT_VMAP && _attach(imps[i], bufs[i], 0, 0))
			return "an importer cannot attach the buffer";
	}
	look_at_memory(self, false);
	for (i = 0; !*wrong && i < variant->count; i++)
		wrong = use_kept(imps[i], bufs[i], self->entries * self->piece, variant->use);
	look_at_memory(self, true);
	return wrong;
}

TEST_F_TIMEOUT(kept, is_charged_to_the_caller, 600)
{
	SKIP_WITHOUT_IMPORTER();
	if (kernel_before(6, 11) && !variant->iovec && variant->entries > 1024)
		SKIP(return, "each entry has the memfd mapped, which takes too long");
	ASSERT_STREQ("", keep(self, variant));
	TH_LOG("%zu buffers, bytes each: %zu charged to the caller, %zd uncharged: %.2f",
	       variant->count, self->caller * 1024 / variant->count,
	       self->nobody * 1024 / (ssize_t)variant->count,
	       self->nobody / (double)self->caller);
	EXPECT_GE(self->caller + KEPT_NOISE, self->nobody);
}

#endif

/*
 * The device with Debian's udev rules: mode 0660, group kvm. Its user runs like
 * QEMU: no capabilities, the default quota of 8 MiB.
 */

#define KVM_GID		1100	/* any unused group */
#define USUAL_QUOTA	(8UL << 20)

FIXTURE(group) {
	struct session session;
	struct stat before;
	size_t page;
};

FIXTURE_SETUP(group)
{
	SESSION_OPEN(&self->session);
	if (geteuid())
		SKIP(return, "needs root, to give the device to a group");
	self->page = page_size();
	close(self->session.dev);
	ASSERT_EQ(0, stat("/dev/udmabuf", &self->before));
	ASSERT_EQ(0, chown("/dev/udmabuf", 0, KVM_GID));
	ASSERT_EQ(0, chmod("/dev/udmabuf", 0660));
}

FIXTURE_TEARDOWN(group)
{
	ASSERT_EQ(0, chown("/dev/udmabuf", self->before.st_uid, self->before.st_gid));
	ASSERT_EQ(0, chmod("/dev/udmabuf", self->before.st_mode & 07777));
	SESSION_CLOSE(&self->session);
}

/* Run the block as a user with the additional group @gid. */
#define AS_MEMBER(gid, ...)						\
	({								\
		gid_t __gid = gid;					\
		pid_t __pid = fork();					\
		if (!__pid) {						\
			CHILD_CHECK(!set_memlock(USUAL_QUOTA));		\
			CHILD_CHECK(!setgroups(1, &__gid));		\
			CHILD_CHECK(!setresgid(NOBODY_UID, NOBODY_UID, NOBODY_UID)); \
			CHILD_CHECK(!setresuid(NOBODY_UID, NOBODY_UID, NOBODY_UID)); \
			__VA_ARGS__;					\
			_exit(0);					\
		}							\
		EXPECT_EQ(0, reap(__pid));				\
	})

TEST_F(group, others_cannot_open_the_device)
{
	AS_MEMBER(KVM_GID + 1, {
		CHILD_CHECK(open("/dev/udmabuf", O_RDWR) == -1 && errno == EACCES);
		CHILD_CHECK(open("/dev/udmabuf", O_RDONLY) == -1 && errno == EACCES);
	});
}

/* A guest's display: a large memfd, in more pieces than mainline accepts. */
TEST_F(group, member_exports_guest_memory_from_a_memfd)
{
	size_t len = 2 * USUAL_QUOTA, npages = len / self->page, i;
	struct udmabuf_create_item *items = calloc(npages, sizeof(*items));
	int fd = sealed_memfd(len, 0, F_SEAL_SHRINK);
	char *mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	ASSERT_NE(MAP_FAILED, (void *)mem);
	fill(mem, len, 1);
	for (i = 0; i < npages; i++)
		items[i] = (struct udmabuf_create_item) {
			fd, 0, (npages - 1 - i) * self->page, self->page
		};
	AS_MEMBER(KVM_GID, {
		int dev = open("/dev/udmabuf", O_RDWR);
		int buf = _create_list(dev, 0, items, npages);
		char *map = _map_buf(buf, len, PROT_READ | PROT_WRITE, 0);

		CHILD_CHECK(dev >= 0 && buf >= 0 && map != MAP_FAILED);
		for (i = 0; i < npages; i++)
			CHILD_CHECK(filled_until(map + i * self->page, self->page, 1,
						 items[i].offset) == -1);
	});
	munmap(mem, len);
}

/* For memory of its own the member is limited by the quota. */
TEST_F(group, member_pins_own_memory_up_to_the_usual_quota)
{
	char *mem = anon_small(USUAL_QUOTA + self->page);

	AS_MEMBER(KVM_GID, {
		int dev = open("/dev/udmabuf", O_RDWR);
		int buf;

		CHILD_CHECK(_create_one(dev, 0, mem, USUAL_QUOTA + self->page) == -1);
		CHILD_CHECK(errno == ENOMEM);
		buf = _create_one(dev, 0, mem, USUAL_QUOTA);
		CHILD_CHECK(buf >= 0);
		CHILD_CHECK(_create_one(dev, 0, mem, self->page) == -1 && errno == ENOMEM);
		close(buf);
		CHILD_CHECK(_create_one(dev, 0, mem, self->page) >= 0);
	});
}

TEST_F(group, member_cannot_change_the_limits)
{
	AS_MEMBER(KVM_GID, {
		CHILD_CHECK(write_text(parameter_path("list_limit"), "1") == -1);
		CHILD_CHECK(write_text(parameter_path("size_limit_mb"), "1") == -1);
	});
}

TEST_HARNESS_MAIN
