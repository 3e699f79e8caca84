/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Helpers shared by the udmabuf tests.
 *
 * Each ioctl has three wrappers: _x() returns the result of the system call,
 * test_x() asserts success, test_err_x(errno, ...) expects that errno.
 *
 * A session covers one test. session_open() drops CAP_IPC_LOCK, so that every
 * buffer of the test is charged to RLIMIT_MEMLOCK, and reads the kernel's
 * counters of pinned and charged pages. session_close() closes every buffer and
 * reports each counter that differs. Every fixture opens a session, so every
 * test verifies that no page stays pinned or charged.
 *
 * A program defines RUNS_ON_MAINLINE if it uses only ioctls of mainline's
 * driver.
 */
#ifndef _UDMABUF_TEST_H
#define _UDMABUF_TEST_H

#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/dma-buf.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <sched.h>
#include <signal.h>
#include <setjmp.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <time.h>

#include "kselftest_harness.h"
/* Emulated machines on a busy host need more than the default 30 s. */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT 300
#include "linux/udmabuf.h"
#include "test_modules/udmabuf_importer.h"

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT	21
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25
#endif
#ifndef __NR_cachestat
#define __NR_cachestat	451
#endif

#define NOBODY_UID	1000
#define OTHER_UID	1001
#define SESSION_MEMLOCK	(512UL << 20)	/* bytes; enough for every test */
#define SETTLE_MS	2500
#define QUOTA_PROBE	8		/* pages */

#define EXPECT_ERRNO(err, call)						\
	({								\
		errno = 0;						\
		EXPECT_EQ(-1, (long)(call));				\
		EXPECT_EQ(err, errno) TH_LOG("%s", strerror(errno));	\
	})

/* General helpers */

static inline size_t page_size(void)
{
	return getpagesize();
}

/*
 * The number of single-page entries that a list buffer may have: at most @most,
 * and at most half of RAM, since the driver accepts no larger buffer.
 */
static inline size_t listed_pages(size_t most)
{
	size_t half = sysconf(_SC_PHYS_PAGES) / 2;

	return half < most ? half : most;
}

static inline __u64 to_u64(const void *ptr)
{
	return (uintptr_t)ptr;
}

static inline long long now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000LL + ts.tv_nsec / 1000;
}

static inline long long now_ms(void)
{
	return now_us() / 1000;
}

static inline void sleep_ms(unsigned int ms)
{
	struct timespec ts = { ms / 1000, ms % 1000 * 1000000L };

	nanosleep(&ts, NULL);
}

/* Read up to @size - 1 bytes of the file into @buf; -1 if it cannot be read. */
static inline ssize_t read_text(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t done = 0;
	ssize_t n = 0;

	if (fd < 0)
		return -1;
	while (done < size - 1 && (n = read(fd, buf + done, size - 1 - done)) > 0)
		done += n;
	close(fd);
	buf[done] = '\0';
	return n < 0 ? -1 : (ssize_t)done;
}

static inline int write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int ret;

	if (fd < 0)
		return -1;
	ret = write(fd, text, strlen(text)) < 0 ? -1 : 0;
	close(fd);
	return ret;
}

static inline int write_number(const char *path, unsigned long number)
{
	char text[24];

	snprintf(text, sizeof(text), "%lu", number);
	return write_text(path, text);
}

/* Open the file behind @fd once more, with other open flags. */
static inline int reopen(int fd, int flags)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, flags | O_CLOEXEC);
}

/* The number after @key at the start of a line of @text; -1 if there is none. */
static inline long number_in(const char *text, const char *key)
{
	for (; text; text = strchr(text, '\n')) {
		text += *text == '\n';
		if (!strncmp(text, key, strlen(key)))
			return strtol(text + strlen(key), NULL, 10);
	}
	return -1;
}

/* The same for the text of the file @path; -1 also if it cannot be read. */
static inline long text_number(const char *path, const char *key)
{
	static char text[65536];

	return read_text(path, text, sizeof(text)) < 0 ? -1 : number_in(text, key);
}

static inline bool kernel_before(int major, int minor)
{
	struct utsname name;
	int have_major, have_minor;

	uname(&name);
	if (sscanf(name.release, "%d.%d", &have_major, &have_minor) != 2)
		return false;
	return have_major < major || (have_major == major && have_minor < minor);
}

static inline bool kernel_is_32bit(void)
{
	struct utsname name;

	uname(&name);
	return sizeof(long) == 4 && !strstr(name.machine, "64");
}

/*
 * The largest size of a buffer: INT_MAX pages, or on a 32-bit kernel the whole
 * pages below 4 GiB.
 */
static inline __u64 largest_size(void)
{
	if (kernel_is_32bit())
		return UINT_MAX / page_size() * page_size();
	return (__u64)INT_MAX * page_size();
}

static inline bool swiotlb_forced(void)
{
	char cmdline[4096];

	return read_text("/proc/cmdline", cmdline, sizeof(cmdline)) > 0 &&
	       strstr(cmdline, "swiotlb=force");
}

/* The duration of a race in ms; soak runs set a longer one. */
static inline long race_ms(void)
{
	const char *text = getenv("UDMABUF_RACE_MS");

	return text ? atol(text) : 500;
}

/* Run a system program with its output discarded; true if it exits with 0. */
static inline bool run_quietly(char *const argv[])
{
	int status;
	pid_t pid = fork();

	if (!pid) {
		int null = open("/dev/null", O_RDWR);

		dup2(null, 1);
		dup2(null, 2);
		execvp(argv[0], argv);
		_exit(127);
	}
	return pid > 0 && waitpid(pid, &status, 0) == pid && !status;
}

/* Privileges. libc's wrappers would change all threads, so use system calls. */

static inline void set_capability(int cap, bool on)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	if (syscall(__NR_capget, &header, data))
		return;
	if (on)
		data[cap / 32].effective |= data[cap / 32].permitted & (1U << (cap % 32));
	else
		data[cap / 32].effective &= ~(1U << (cap % 32));
	syscall(__NR_capset, &header, data);
}

static inline bool has_capability(int cap)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2];

	if (syscall(__NR_capget, &header, data))
		return false;
	return data[cap / 32].effective & (1U << (cap % 32));
}

static inline int set_memlock(size_t bytes)
{
	struct rlimit limit = { bytes, bytes };
	struct rlimit old;

	if (!getrlimit(RLIMIT_MEMLOCK, &old) && old.rlim_max > bytes)
		limit.rlim_max = old.rlim_max;
	return setrlimit(RLIMIT_MEMLOCK, &limit);
}

/* Become an ordinary user with a locked-memory limit of @npages. */
static inline void become(uid_t uid, size_t npages)
{
	struct rlimit limit = { npages * page_size(), npages * page_size() };

	setrlimit(RLIMIT_MEMLOCK, &limit);
	if (setgroups(0, NULL) || setresgid(uid, uid, uid) || setresuid(uid, uid, uid))
		_exit(KSFT_FAIL);
}

/* Ioctls of the driver */

/*
 * Fill @niov entries, each naming @unit bytes of the memory. Entry i names
 * piece i * @step modulo @niov. With @step 0 every entry names the first piece.
 */
static inline void make_entries(struct udmabuf_iovec *iovs, size_t niov, const void *mem,
				size_t unit, size_t step)
{
	size_t i;

	for (i = 0; i < niov; i++) {
		iovs[i].base = to_u64(mem) + i * step % niov * unit;
		iovs[i].len = unit;
	}
}

static inline int _create(int dev, __u32 flags, const struct udmabuf_iovec *iovs, __u32 niov)
{
	struct udmabuf_create *arg;
	int fd, err;

	arg = calloc(1, sizeof(*arg) + niov * sizeof(*iovs));
	if (!arg)
		return -1;
	arg->flags = flags;
	arg->niov = niov;
	memcpy(arg->iovs, iovs, niov * sizeof(*iovs));
	fd = ioctl(dev, UDMABUF_CREATE, arg);
	err = errno;
	free(arg);
	errno = err;
	return fd;
}

#define test_create(dev, flags, iovs, niov)				\
	({								\
		int __fd = _create(dev, flags, iovs, niov);		\
		ASSERT_LE(0, __fd) TH_LOG("create: %s", strerror(errno)); \
		__fd;							\
	})
#define test_err_create(err, dev, flags, iovs, niov)			\
	EXPECT_ERRNO(err, _create(dev, flags, iovs, niov))

static inline int _create_one(int dev, __u32 flags, const void *addr, size_t len)
{
	struct udmabuf_iovec iov = { .base = to_u64(addr), .len = len };

	return _create(dev, flags, &iov, 1);
}

#define test_create_one(dev, flags, addr, len)				\
	({								\
		int __fd = _create_one(dev, flags, addr, len);		\
		ASSERT_LE(0, __fd) TH_LOG("create: %s", strerror(errno)); \
		__fd;							\
	})
#define test_err_create_one(err, dev, flags, addr, len)			\
	EXPECT_ERRNO(err, _create_one(dev, flags, addr, len))

static inline int _create_memfd(int dev, __u32 flags, int memfd, __u64 offset, __u64 size)
{
	struct udmabuf_create_memfd arg = {
		.memfd = memfd,
		.flags = flags,
		.offset = offset,
		.size = size,
	};

	return ioctl(dev, UDMABUF_CREATE_MEMFD, &arg);
}

#define test_create_memfd(dev, flags, memfd, offset, size)		\
	({								\
		int __fd = _create_memfd(dev, flags, memfd, offset, size); \
		ASSERT_LE(0, __fd) TH_LOG("create: %s", strerror(errno)); \
		__fd;							\
	})
#define test_err_create_memfd(err, dev, flags, memfd, offset, size)	\
	EXPECT_ERRNO(err, _create_memfd(dev, flags, memfd, offset, size))

static inline int _create_list(int dev, __u32 flags, const struct udmabuf_create_item *items,
			       __u32 count)
{
	struct udmabuf_create_list *arg;
	int fd, err;

	arg = calloc(1, sizeof(*arg) + count * sizeof(*items));
	if (!arg)
		return -1;
	arg->flags = flags;
	arg->count = count;
	memcpy(arg->list, items, count * sizeof(*items));
	fd = ioctl(dev, UDMABUF_CREATE_LIST, arg);
	err = errno;
	free(arg);
	errno = err;
	return fd;
}

#define test_create_list(dev, flags, items, count)			\
	({								\
		int __fd = _create_list(dev, flags, items, count);	\
		ASSERT_LE(0, __fd) TH_LOG("create: %s", strerror(errno)); \
		__fd;							\
	})
#define test_err_create_list(err, dev, flags, items, count)		\
	EXPECT_ERRNO(err, _create_list(dev, flags, items, count))

static inline int _sync_cpu(int buf, __u64 flags)
{
	struct dma_buf_sync arg = { .flags = flags };

	return ioctl(buf, DMA_BUF_IOCTL_SYNC, &arg);
}

#define test_sync_cpu(buf, flags)	ASSERT_EQ(0, _sync_cpu(buf, flags))
#define test_err_sync_cpu(err, buf, flags) EXPECT_ERRNO(err, _sync_cpu(buf, flags))

#define SYNC_START(how)	(DMA_BUF_SYNC_START | DMA_BUF_SYNC_##how)
#define SYNC_END(how)	(DMA_BUF_SYNC_END | DMA_BUF_SYNC_##how)

static inline void *_map_buf(int buf, size_t len, int prot, off_t offset)
{
	return mmap(NULL, len, prot, MAP_SHARED, buf, offset);
}

#define test_map_buf(buf, len, prot)					\
	({								\
		void *__map = _map_buf(buf, len, prot, 0);		\
		ASSERT_NE(MAP_FAILED, __map) TH_LOG("mmap: %s", strerror(errno)); \
		__map;							\
	})
#define test_err_map_buf(err, buf, len, prot, offset)			\
	EXPECT_ERRNO(err, (long)_map_buf(buf, len, prot, offset))

/* Open the device. Returns NULL, or the reason why the tests cannot run. */
static inline const char *device_open(int *dev)
{
	static char reason[128];

	*dev = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);
	if (*dev < 0) {
		snprintf(reason, sizeof(reason), "cannot open /dev/udmabuf: %s", strerror(errno));
		return reason;
	}
#ifndef RUNS_ON_MAINLINE
	if (ioctl(*dev, UDMABUF_CREATE, NULL) == -1 && errno == ENOTTY) {
		close(*dev);
		return "this /dev/udmabuf has no UDMABUF_CREATE: mainline's driver";
	}
#endif
	return NULL;
}

/*
 * Names of the driver's module. udmabuf_ext is an out-of-tree module that is
 * loaded beside a built-in udmabuf.
 */
static const char * const driver_names[] = { "udmabuf_ext", "udmabuf" };

/* The sysfs path of the driver's module parameter @name. */
static inline const char *parameter_path(const char *name)
{
	static char path[128];
	size_t i;

	for (i = 0; i < ARRAY_SIZE(driver_names); i++) {
		snprintf(path, sizeof(path), "/sys/module/%s/parameters/%s", driver_names[i], name);
		if (!access(path, F_OK))
			return path;
	}
	return path;
}

/* Counters that must balance */

struct ledger {
	long pinned;		/* pages pinned now, system-wide */
	long vmpin;		/* pinned memory of this process, KiB */
	bool whole_quota;	/* no pages charged to this user */
	long bugs;		/* taint bits for kernel warnings */
};

/* Taints that a test may cause: bad page, oops, warning, soft lockup. */
#define TAINT_BUGS	0x42a0	/* bits 5, 7, 9 and 14 */

static inline long pinned_pages_once(void)
{
	static char text[65536];
	char byte;
	int fd = open("/proc/sys/vm/stat_refresh", O_RDONLY);

	/* Reading stat_refresh folds the per-CPU counters into /proc/vmstat. */
	if (fd >= 0) {
		if (read(fd, &byte, 1) < 0)
			sleep_ms(0);
		close(fd);
	}
	if (read_text("/proc/vmstat", text, sizeof(text)) < 0)
		return 0;
	return number_in(text, "nr_foll_pin_acquired ") -
	       number_in(text, "nr_foll_pin_released ");
}

/*
 * The kernel also folds the per-CPU counters once a second. A count it has
 * taken from a CPU but not yet added is missing from the total, so accept only
 * a value that two successive reads agree on.
 */
static inline long pinned_pages(void)
{
	long last, now = pinned_pages_once();
	int tries = 50;

	do {
		last = now;
		sleep_ms(2);
		now = pinned_pages_once();
	} while (now != last && --tries);
	return now;
}

static inline long vmpin_kib(void)
{
	return text_number("/proc/self/status", "VmPin:");
}

/* Page tables of this process, KiB */
static inline long vmpte_kib(void)
{
	return text_number("/proc/self/status", "VmPTE:");
}

static inline long page_faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt;
}

/* Can exactly @npages be charged, and not one page more? */
static inline bool quota_left_is(int dev, size_t npages)
{
	struct udmabuf_iovec *iovs = calloc(npages + 1, sizeof(*iovs));
	char *page = mmap(NULL, page_size(), PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fits, more;

	make_entries(iovs, npages + 1, page, page_size(), 0);
	more = _create(dev, 0, iovs, npages + 1);
	if (more >= 0)
		close(more);
	fits = npages ? _create(dev, 0, iovs, npages) : 0;
	if (npages && fits >= 0)
		close(fits);
	munmap(page, page_size());
	free(iovs);
	return fits >= 0 && more < 0;
}

static inline bool whole_quota_left(int dev)
{
	struct rlimit old;
	struct rlimit probe;
	bool ret;

	getrlimit(RLIMIT_MEMLOCK, &old);
	probe = old;
	probe.rlim_cur = QUOTA_PROBE * page_size();
	if (setrlimit(RLIMIT_MEMLOCK, &probe))
		return false;
	ret = quota_left_is(dev, QUOTA_PROBE);
	setrlimit(RLIMIT_MEMLOCK, &old);
	return ret;
}

static inline void ledger_read(struct ledger *ledger, int dev)
{
	ledger->whole_quota = whole_quota_left(dev);
	ledger->vmpin = vmpin_kib();
	ledger->pinned = pinned_pages();
	ledger->bugs = text_number("/proc/sys/kernel/tainted", "") & TAINT_BUGS;
}

/*
 * Returns "" or the counters that differ from @before. Waits for them to
 * settle, because the last fput() of a buffer may be delayed.
 */
static inline const char *ledger_difference(const struct ledger *before, int dev)
{
	static char text[160];
	long long deadline = now_ms() + 8 * SETTLE_MS;
	struct ledger now;

	for (;;) {
		ledger_read(&now, dev);
		if (now.bugs != before->bugs)
			return "the kernel log has a warning";
		if (now.pinned == before->pinned && now.vmpin == before->vmpin &&
		    now.whole_quota == before->whole_quota)
			return "";
		if (now_ms() > deadline)
			break;
		sleep_ms(20);
	}
	snprintf(text, sizeof(text), "pinned pages %ld -> %ld, VmPin %ld -> %ld KiB, quota %s",
		 before->pinned, now.pinned, before->vmpin, now.vmpin,
		 now.whole_quota ? "whole" : "not whole");
	return text;
}

/* Memory cgroups: an inner group in an outer one, on a private cgroup2 mount */

#define CGROUP_OUTER	"udmabuf"
#define CGROUP_INNER	CGROUP_OUTER "/inner"

struct cgroups {
	char dir[24];
};

static inline const char *cgroup_file(const struct cgroups *groups, const char *name)
{
	static char path[128];

	snprintf(path, sizeof(path), "%s/%s", groups->dir, name);
	return path;
}

static inline int cgroup_enter(const struct cgroups *groups, const char *group)
{
	char name[64];

	snprintf(name, sizeof(name), "%s/cgroup.procs", group);
	return write_number(cgroup_file(groups, name), getpid());
}

static inline int cgroup_limit(const struct cgroups *groups, const char *group, size_t bytes)
{
	char name[64];

	snprintf(name, sizeof(name), "%s/memory.swap.max", group);
	write_number(cgroup_file(groups, name), 0);
	snprintf(name, sizeof(name), "%s/memory.max", group);
	return write_number(cgroup_file(groups, name), bytes);
}

/* A reaped process may stay in its group briefly; retry rmdir() on EBUSY. */
static inline int cgroup_remove(const struct cgroups *groups, const char *group)
{
	int tries = 1500, ret;

	while ((ret = rmdir(cgroup_file(groups, group))) && errno == EBUSY && --tries)
		sleep_ms(20);
	return ret;
}

static inline void cgroups_close(struct cgroups *groups)
{
	cgroup_enter(groups, ".");
	cgroup_remove(groups, CGROUP_INNER);
	cgroup_remove(groups, CGROUP_OUTER);
	umount2(groups->dir, MNT_DETACH);
	rmdir(groups->dir);
}

/* Returns NULL, or the reason why memory cgroups cannot be used. */
static inline const char *cgroups_open(struct cgroups *groups)
{
	strcpy(groups->dir, "/tmp/cgroup-XXXXXX");
	if (!mkdtemp(groups->dir) || mount("none", groups->dir, "cgroup2", 0, NULL))
		return "cannot mount cgroup2";
	write_text(cgroup_file(groups, "cgroup.subtree_control"), "+memory");
	mkdir(cgroup_file(groups, CGROUP_OUTER), 0700);
	write_text(cgroup_file(groups, CGROUP_OUTER "/cgroup.subtree_control"), "+memory");
	mkdir(cgroup_file(groups, CGROUP_INNER), 0700);
	if (!access(cgroup_file(groups, CGROUP_INNER "/memory.max"), W_OK))
		return NULL;
	cgroups_close(groups);
	return "no memory cgroups, or not root";
}

/* Memory failures */

static inline int pagemap_open(void)
{
	return open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
}

/*
 * Read the page frame numbers of @npages pages at @addr of this process; 0 for
 * a page whose frame is not visible.
 */
static inline void page_frames(int pagemap, const void *addr, size_t npages, __u64 *frames)
{
	ssize_t len = npages * sizeof(*frames);
	size_t i;

	if (pread(pagemap, frames, len, to_u64(addr) / page_size() * 8) != len)
		memset(frames, 0, len);
	for (i = 0; i < npages; i++)
		frames[i] = frames[i] >> 63 ? frames[i] & ((1ULL << 55) - 1) : 0;
}

static inline __u64 page_frame(const void *addr)
{
	int pagemap = pagemap_open();
	__u64 frame;

	page_frames(pagemap, addr, 1, &frame);
	close(pagemap);
	return frame;
}

/* The page frame numbers of @npages pages at @addr, in an array to free() */
static inline __u64 *page_frames_alloc(const void *addr, size_t npages)
{
	__u64 *frames = calloc(npages, sizeof(*frames));
	int pagemap = pagemap_open();

	page_frames(pagemap, addr, npages, frames);
	close(pagemap);
	return frames;
}

/*
 * Page frames to unpoison at the end of the test: older kernels hand out a free
 * huge page that has a poisoned subpage.
 */
static struct {
	__u64 frames[4];
	size_t count;
} poisoned;

static inline void unpoison_all(void)
{
	while (poisoned.count)
		write_number("/sys/kernel/debug/hwpoison/unpoison-pfn",
			     poisoned.frames[--poisoned.count]);
}

static inline void ignore_handler(int sig)
{
}

/*
 * Inject a memory failure into @page. The kernel may raise SIGBUS and may
 * return EBUSY or EHWPOISON because it cannot isolate the page. The page is
 * poisoned in these cases too, so they count as success.
 */
static inline int poison(char *page)
{
	struct sigaction action = { .sa_handler = ignore_handler };
	int ret;

	sigaction(SIGBUS, &action, NULL);
	if (poisoned.count < ARRAY_SIZE(poisoned.frames))
		poisoned.frames[poisoned.count++] = page_frame(page);
	ret = madvise(page, page_size(), MADV_HWPOISON);
	signal(SIGBUS, SIG_DFL);
	return ret && (errno == EBUSY || errno == EHWPOISON) ? 0 : ret;
}

#define POISON(page)							\
	do {								\
		if (poison(page))					\
			SKIP(return, "no MADV_HWPOISON: %s", strerror(errno)); \
	} while (0)

/*
 * Sessions
 */

struct session {
	int dev;
	struct ledger before;
};

/* Returns NULL, or the reason to skip the test. */
static inline const char *session_open(struct session *session)
{
	const char *why_not = device_open(&session->dev);
	long long deadline = now_ms() + SETTLE_MS;

	if (why_not)
		return why_not;
	set_memlock(SESSION_MEMLOCK);
	set_capability(CAP_IPC_LOCK, false);
	/*
	 * Pins from outside the test may be about to go, such as a read from
	 * virtiofs or the buffers of a killed process.
	 */
	do {
		ledger_read(&session->before, session->dev);
	} while (session->before.pinned && now_ms() < deadline);
	return NULL;
}

/* Unmap every mapping of a dma-buf. */
static inline void unmap_buffers(void)
{
	static char text[262144];
	unsigned long first, end;
	char *line;

	if (read_text("/proc/self/maps", text, sizeof(text)) < 0)
		return;
	for (line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
		if (strstr(line, "/dmabuf:") && sscanf(line, "%lx-%lx", &first, &end) == 2)
			munmap((void *)first, end - first);
}

/* Close all files of the test. Returns "" or the counters that differ. */
static inline const char *session_close(struct session *session)
{
	const char *difference = "";

	unmap_buffers();
	syscall(__NR_close_range, 3, ~0U, 0);
	unpoison_all();
	set_capability(CAP_IPC_LOCK, false);
	set_memlock(SESSION_MEMLOCK);
	if (!device_open(&session->dev)) {
		difference = ledger_difference(&session->before, session->dev);
		close(session->dev);
	}
	return difference;
}

#define SESSION_OPEN(session)						\
	do {								\
		const char *__why_not = session_open(session);		\
		if (__why_not)						\
			SKIP(return, "%s", __why_not);			\
	} while (0)
#define SESSION_CLOSE(session)	EXPECT_STREQ("", session_close(session))

#define SKIP_WITHOUT_RDONLY()						\
	do {								\
		if (kernel_before(6, 2))				\
			SKIP(return, "no UDMABUF_FLAGS_RDONLY before Linux 6.2"); \
	} while (0)

/* After a failed call: expect no page left pinned or charged. */
#define EXPECT_NOTHING_KEPT(session)					\
	EXPECT_STREQ("", ledger_difference(&(session)->before, (session)->dev))

/* Kinds of memory */

enum mem_kind {
	MEM_ANON,
	MEM_MTHP,
	MEM_THP,
	MEM_HUGETLB,
	MEM_SHARED_ANON,
	MEM_MEMFD,
	MEM_TMPFS,
	MEM_SYSV,
	MEM_COW_FILE,
	MEM_KINDS,
};

struct mem {
	char *addr;
	size_t len;
	const char *why_not;	/* reason why this kind is unavailable */
};

/*
 * PMD size in bytes. 0 without THP, or if above 32 MiB: with 64 KiB pages it is
 * 512 MiB, too large for a test.
 */
static inline size_t thp_size(void)
{
	static size_t known = SIZE_MAX;
	size_t size = 0;
	char text[32];

	if (known != SIZE_MAX)
		return known;
	if (read_text("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", text,
		      sizeof(text)) > 0)
		size = strtoul(text, NULL, 10);
	known = size > 32UL << 20 ? 0 : size;
	return known;
}

/* Is PAGE_TABLE_CHECK on? If so, the driver makes no huge entries. */
static inline bool page_tables_checked(void)
{
	char cmdline[4096];

	return read_text("/proc/cmdline", cmdline, sizeof(cmdline)) > 0 &&
	       strstr(cmdline, "page_table_check=on");
}

/* Does this kernel make huge entries for PFN mappings? */
static inline bool has_huge_entries(void)
{
	struct utsname name;
	char enabled[64];

	uname(&name);
	if (strcmp(name.machine, "x86_64") && strcmp(name.machine, "aarch64"))
		return false;
	if (kernel_before(6, 12) || !thp_size() || page_tables_checked())
		return false;
	/* From 7.3 on, huge PFN entries do not depend on the THP setting. */
	return !kernel_before(7, 3) ||
	       (read_text("/sys/kernel/mm/transparent_hugepage/enabled", enabled,
			  sizeof(enabled)) > 0 && strstr(enabled, "[always]"));
}

static inline size_t hugetlb_size(void)
{
	static long kib = -2;

	if (kib == -2)
		kib = text_number("/proc/meminfo", "Hugepagesize:");
	return kib > 0 ? kib * 1024UL : 0;
}

static inline bool physically_contiguous(const char *addr, size_t len)
{
	size_t npages = len / page_size(), i = 0;
	__u64 *frames = page_frames_alloc(addr, npages);

	while (i < npages && frames[i] && frames[i] == frames[0] + i)
		i++;
	free(frames);
	return i == npages;
}

/*
 * The physical layout of memory is up to the kernel. A test that needs a
 * certain layout allocates up to this many times. Between attempts it keeps the
 * previous memory or triggers compaction.
 */
#define LAYOUT_ATTEMPTS	16

static inline void make_room(void)
{
	write_text("/proc/sys/vm/compact_memory", "1");
}

/* Is each piece of @unit bytes physically contiguous? */
static inline bool consists_of(const char *addr, size_t len, size_t unit)
{
	size_t off;

	for (off = 0; off + unit <= len; off += unit)
		if (!physically_contiguous(addr + off, unit))
			return false;
	return true;
}

/* Split the huge page at @addr into small pages, in place. */
static inline int split_huge_page(const void *addr)
{
	char text[64];

	snprintf(text, sizeof(text), "%d,%#llx,%#llx", getpid(), (unsigned long long)to_u64(addr),
		 (unsigned long long)to_u64(addr) + thp_size());
	return write_text("/sys/kernel/debug/split_huge_pages", text);
}

/*
 * Map private anonymous memory at a multiple of @align. At least @align bytes
 * of address space in front of it are reserved.
 */
static inline char *anon_aligned(size_t len, size_t align)
{
	char *area = mmap(NULL, len + 2 * align, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *addr;

	if (area == MAP_FAILED)
		return area;
	addr = (char *)(((uintptr_t)area + 2 * align - 1) / align * align);
	return mmap(addr, len, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

static inline char *anon_small(size_t len)
{
	char *addr = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (addr != MAP_FAILED)
		madvise(addr, len, MADV_NOHUGEPAGE);
	return addr;
}

static inline char *anon_mthp(size_t len, const char **why_not)
{
	const char *knob = "/sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled";
	size_t align = thp_size() ?: 1 << 21;
	char *addr = MAP_FAILED;
	int attempts;

	if (write_text(knob, "madvise")) {
		*why_not = "no 64 KiB folios for anonymous memory in this kernel";
		return MAP_FAILED;
	}
	*why_not = "the kernel had no 64 KiB folio to give";
	for (attempts = 0; *why_not && attempts < LAYOUT_ATTEMPTS; attempts++) {
		if (attempts)
			make_room();
		/*
		 * @len below the PMD size, so no PMD-sized huge page is used.
		 */
		addr = anon_aligned(len, align);
		madvise(addr, len, MADV_HUGEPAGE);
		memset(addr, 0, len);
		if (physically_contiguous(addr, 64 << 10))
			*why_not = NULL;
	}
	write_text(knob, "inherit");
	return addr;
}

static inline char *anon_thp(size_t len, const char **why_not)
{
	size_t huge = thp_size();
	int attempts;
	char *addr;

	if (!huge || len % huge) {
		*why_not = "no transparent huge pages of a usable size";
		return MAP_FAILED;
	}
	addr = anon_aligned(len, huge);
	madvise(addr, len, MADV_HUGEPAGE);
	memset(addr, 0, len);
	for (attempts = 0; attempts < LAYOUT_ATTEMPTS; attempts++) {
		if (consists_of(addr, len, huge))
			return addr;
		if (attempts)
			make_room();
		madvise(addr, len, MADV_COLLAPSE);
	}
	*why_not = "the kernel had no transparent huge page to give";
	return addr;
}

/* Grow the hugetlb pool until @len bytes of huge pages are free. */
static inline void hugetlb_provide(size_t len)
{
	const char *knob = "/proc/sys/vm/nr_hugepages";
	long total = text_number("/proc/meminfo", "HugePages_Total:");
	long free = text_number("/proc/meminfo", "HugePages_Free:");
	long need = hugetlb_size() ? len / hugetlb_size() : 0;

	if (free < need)
		write_number(knob, total + need - free);
}

/* The hugetlb pool: free huge pages, and how many of them are reserved */
struct pool {
	long free, reserved;
};

static inline struct pool pool_read(void)
{
	return (struct pool) {
		.free = text_number("/proc/meminfo", "HugePages_Free:"),
		.reserved = text_number("/proc/meminfo", "HugePages_Rsvd:"),
	};
}

/*
 * Returns "" or how the pool differs from @before. A counter that went below 0
 * wraps and shows as LONG_MAX.
 */
static inline const char *pool_difference(const struct pool *before)
{
	static char text[96];
	long long deadline = now_ms() + SETTLE_MS;
	struct pool now;

	do {
		now = pool_read();
		if (now.free == before->free && now.reserved == before->reserved)
			return "";
		sleep_ms(10);
	} while (now_ms() < deadline);
	snprintf(text, sizeof(text), "HugePages_Free %ld -> %ld, HugePages_Rsvd %ld -> %ld",
		 before->free, now.free, before->reserved, now.reserved);
	return text;
}

/* Map huge pages that are reserved and not yet allocated. */
static inline char *reserve_hugetlb(size_t len)
{
	return mmap(NULL, len, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
}

static inline char *anon_hugetlb(size_t len, const char **why_not)
{
	char *addr;

	/*
	 * Twice @len, since the copies of a forked child need as many pages
	 * again.
	 */
	hugetlb_provide(2 * len);
	addr = reserve_hugetlb(len);
	if (addr == MAP_FAILED)
		*why_not = "no hugetlb pages";
	return addr;
}

/* A memfd of @len bytes with @seals; @flags are added to MFD_ALLOW_SEALING. */
static inline int sealed_memfd(size_t len, unsigned int flags, unsigned int seals)
{
	int fd = syscall(__NR_memfd_create, "udmabuf-test",
			 flags | MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd >= 0 && (ftruncate(fd, len) || fcntl(fd, F_ADD_SEALS, seals))) {
		close(fd);
		return -1;
	}
	return fd;
}

static inline char *map_memfd(size_t len)
{
	int fd = sealed_memfd(len, 0, 0);
	char *addr = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	close(fd);
	return addr;
}

/* An unnamed file on a new mount of @fstype, which is freed with the file. */
static inline int scratch_file(const char *fstype, size_t len)
{
	char dir[] = "/tmp/udmabuf-XXXXXX";
	char name[64];
	int fd = -1;

	mkdir("/tmp", 01777);
	if (!mkdtemp(dir))
		return -1;
	if (!mount("none", dir, fstype, 0, NULL)) {
		snprintf(name, sizeof(name), "%s/file", dir);
		fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		umount2(dir, MNT_DETACH);
	}
	rmdir(dir);
	if (fd >= 0 && ftruncate(fd, len)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

static inline char *map_scratch_file(const char *fstype, size_t len, int prot, int how)
{
	int fd = scratch_file(fstype, len);
	char *addr;

	if (fd < 0)
		return MAP_FAILED;
	addr = mmap(NULL, len, prot, how, fd, 0);
	close(fd);
	return addr;
}

static inline char *sysv(size_t len)
{
	int id = shmget(IPC_PRIVATE, len, IPC_CREAT | 0600);
	char *addr;

	if (id < 0)
		return MAP_FAILED;
	addr = shmat(id, NULL, 0);
	shmctl(id, IPC_RMID, NULL);
	return addr;
}

/*
 * Bytes of the kind that a test uses: at least two pages of that kind's size.
 */
static inline size_t mem_len(enum mem_kind kind)
{
	if (kind == MEM_THP)
		return 2 * thp_size();
	if (kind == MEM_HUGETLB)
		return 2 * hugetlb_size();
	return 32 * page_size();
}

/* Allocate memory of @kind and write to every page; sets why_not on failure. */
static inline struct mem mem_get(enum mem_kind kind, size_t len)
{
	struct mem mem = { .addr = MAP_FAILED, .len = len };

	switch (kind) {
	case MEM_ANON:
		mem.addr = anon_small(len);
		break;
	case MEM_MTHP:
		mem.addr = anon_mthp(len, &mem.why_not);
		break;
	case MEM_THP:
		mem.addr = anon_thp(len, &mem.why_not);
		break;
	case MEM_HUGETLB:
		mem.addr = anon_hugetlb(len, &mem.why_not);
		break;
	case MEM_SHARED_ANON:
		mem.addr = mmap(NULL, len, PROT_READ | PROT_WRITE,
				MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		break;
	case MEM_MEMFD:
		mem.addr = map_memfd(len);
		break;
	case MEM_TMPFS:
		mem.addr = map_scratch_file("tmpfs", len, PROT_READ | PROT_WRITE, MAP_SHARED);
		break;
	case MEM_SYSV:
		mem.addr = sysv(len);
		break;
	case MEM_COW_FILE:
		mem.addr = map_scratch_file("ramfs", len, PROT_READ | PROT_WRITE, MAP_PRIVATE);
		break;
	case MEM_KINDS:
		break;
	}
	if (mem.addr == MAP_FAILED && !mem.why_not)
		mem.why_not = "cannot map memory of this kind";
	if (!mem.why_not)
		memset(mem.addr, 0, len);
	return mem;
}

static inline int by_frame(const void *a, const void *b)
{
	__u64 left = page_frame(*(char **)a), right = page_frame(*(char **)b);

	return left < right ? -1 : left > right;
}

/*
 * Fill @iovs with the longest physically contiguous run that the huge pages of
 * @mem can form in any order. Returns the number of entries.
 */
static inline size_t longest_run(struct udmabuf_iovec *iovs, const struct mem *mem, size_t huge)
{
	size_t n = mem->len / huge, first = 0, best = 0, most = 0, i;
	char **pages = calloc(n, sizeof(*pages));

	for (i = 0; i < n; i++)
		pages[i] = mem->addr + i * huge;
	qsort(pages, n, sizeof(*pages), by_frame);
	for (i = 0; i < n; i++) {
		if (i && page_frame(pages[i]) != page_frame(pages[i - 1]) + huge / page_size())
			first = i;
		if (i - first >= most) {
			most = i - first + 1;
			best = first;
		}
	}
	for (i = 0; i < most; i++)
		iovs[i] = (struct udmabuf_iovec) { to_u64(pages[best + i]), huge };
	free(pages);
	return most;
}

#define SWAP_DEVICE	"/dev/zram0"
#define SWAP_BYTES	(512UL << 20)

/* Swap to zram. Returns NULL, or the reason why it is not possible. */
static inline const char *swap_on(void)
{
	char *mkswap[] = { "mkswap", SWAP_DEVICE, NULL };

	write_number("/sys/block/zram0/disksize", SWAP_BYTES);
	if (run_quietly(mkswap) && !swapon(SWAP_DEVICE, 0))
		return NULL;
	return "no swap on " SWAP_DEVICE ": modprobe zram";
}

static inline void swap_off(void)
{
	swapoff(SWAP_DEVICE);
	write_number("/sys/block/zram0/reset", 1);
}

/*
 * Contents: each 8-byte word encodes the seed and its offset, so a wrong page,
 * offset or order is detected.
 */

static inline __u64 stamp(__u64 seed, size_t off)
{
	return (seed + 1) * 0x9e3779b97f4a7c15ULL ^ off;
}

static inline void fill(void *addr, size_t len, __u64 seed)
{
	__u64 *word = addr;
	size_t i;

	for (i = 0; i < len / 8; i++)
		word[i] = stamp(seed, i * 8);
}

/* The offset of the first wrong word of memory filled by fill(), or -1. */
static inline long filled_until(const void *addr, size_t len, __u64 seed, size_t first)
{
	const __u64 *word = addr;
	size_t i;

	for (i = 0; i < len / 8; i++)
		if (word[i] != stamp(seed, first + i * 8))
			return first + i * 8;
	return -1;
}

#define EXPECT_FILLED(addr, len, seed)					\
	EXPECT_EQ(-1, filled_until(addr, len, seed, 0))

static inline size_t entries_len(const struct udmabuf_iovec *iovs, size_t niov)
{
	size_t len = 0;

	while (niov--)
		len += iovs[niov].len;
	return len;
}

/* Does the buffer at @map have the bytes that @iovs name, in their order? */
static inline bool buffer_is(const char *map, const struct udmabuf_iovec *iovs, size_t niov)
{
	size_t i;

	for (i = 0; i < niov; map += iovs[i++].len)
		if (memcmp(map, (void *)(uintptr_t)iovs[i].base, iovs[i].len))
			return false;
	return true;
}

/* Accesses that may fault */

static sigjmp_buf fault_jump;

static inline void fault_handler(int sig)
{
	siglongjmp(fault_jump, sig);
}

/* 0, or the signal raised by reading (or writing) the byte. */
static inline int fault_signal(volatile char *addr, bool write)
{
	struct sigaction action = { .sa_handler = fault_handler };
	int sig;

	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	sig = sigsetjmp(fault_jump, 1);
	if (!sig) {
		if (write)
			*addr = 1;
		else
			(void)*addr;
	}
	signal(SIGBUS, SIG_DFL);
	signal(SIGSEGV, SIG_DFL);
	return sig;
}

/* Processes, and passing file descriptors between them */

static inline int send_fd(int sock, int fd)
{
	char byte = 0;
	struct iovec iov = { &byte, 1 };
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} control = {};
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control.space),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
	return sendmsg(sock, &msg, 0) == 1 ? 0 : -1;
}

static inline int receive_fd(int sock)
{
	char byte;
	struct iovec iov = { &byte, 1 };
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int))];
	} control = {};
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control.space),
	};
	struct cmsghdr *cmsg;
	int fd = -1;

	if (recvmsg(sock, &msg, MSG_CMSG_CLOEXEC) != 1)
		return -1;
	cmsg = CMSG_FIRSTHDR(&msg);
	if (cmsg && cmsg->cmsg_type == SCM_RIGHTS)
		memcpy(&fd, CMSG_DATA(cmsg), sizeof(int));
	return fd;
}

/* tell() and hear() pass one byte to synchronize two processes. */
static inline void tell(int sock)
{
	if (write(sock, "", 1) != 1)
		_exit(KSFT_FAIL);
}

static inline void hear(int sock)
{
	char byte;

	if (read(sock, &byte, 1) != 1)
		_exit(KSFT_FAIL);
}

/* The exit code of a child, or 128 + the signal that killed it. */
static inline int reap(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid)
		return -1;
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static inline long pages_pinned(void)
{
	return text_number("/proc/vmstat", "nr_foll_pin_acquired ");
}

/*
 * Kill the child @pid, which creates a buffer, once @least pages are pinned in
 * addition to @start. @at is set to the pages pinned at that moment. Returns
 * how many more pages were pinned until the child died, or -1 if it exited
 * earlier.
 */
static inline long kill_while_pinning(pid_t pid, long start, long least, long *at)
{
	siginfo_t ended = {};

	do {
		*at = pages_pinned() - start;
		waitid(P_PID, pid, &ended, WEXITED | WNOHANG | WNOWAIT);
	} while (*at < least && !ended.si_pid);
	kill(pid, SIGKILL);
	return reap(pid) == 128 + SIGKILL ? pages_pinned() - start - *at : -1;
}

/* Is this process or thread blocked, neither running nor dead? */
static inline bool is_blocked(pid_t pid)
{
	char path[64], text[512];
	const char *state;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	if (read_text(path, text, sizeof(text)) <= 0)
		return false;
	state = strrchr(text, ')');
	return state && (state[2] == 'S' || state[2] == 'D');
}

/*
 * Check in a child. On failure print the condition and exit with __LINE__ % 255
 * + 1, which EXPECT_EQ(0, reap(pid)) then shows.
 */
#define CHILD_CHECK(cond)						\
	do {								\
		if (!(cond)) {						\
			fprintf(stderr, "# %s:%d: child: not %s (%s)\n",	\
				__FILE__, __LINE__, #cond, strerror(errno)); \
			_exit(__LINE__ % 255 + 1);			\
		}							\
	} while (0)

/* The test importer */

/*
 * Load the test module from the directory of this program or its test_modules/.
 */
static inline void importer_load(void)
{
	static const char * const names[] = {
		"test_modules/udmabuf_importer.ko", "udmabuf_importer.ko",
	};
	char path[PATH_MAX];
	ssize_t len = readlink("/proc/self/exe", path, sizeof(path) - 64);
	char *base;
	size_t i;
	int fd;

	if (len < 0)
		return;
	path[len] = '\0';
	base = strrchr(path, '/') + 1;
	for (i = 0; i < ARRAY_SIZE(names); i++) {
		strcpy(base, names[i]);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		syscall(__NR_finit_module, fd, "", 0);
		close(fd);
	}
}

static inline int importer_open(void)
{
	int imp = open(UDMABUF_IMPORTER_DEV, O_RDWR | O_CLOEXEC);

	if (imp >= 0)
		return imp;
	importer_load();
	return open(UDMABUF_IMPORTER_DEV, O_RDWR | O_CLOEXEC);
}

static inline int _attach_bounded(int imp, int buf, __u64 dma_mask, __u32 max_seg,
				  __u64 boundary)
{
	struct udmabuf_importer_attach arg = {
		.fd = buf,
		.max_seg = max_seg,
		.dma_mask = dma_mask,
		.boundary = boundary,
	};

	return ioctl(imp, IMPORTER_ATTACH, &arg);
}

static inline int _attach(int imp, int buf, __u64 dma_mask, __u32 max_seg)
{
	return _attach_bounded(imp, buf, dma_mask, max_seg, 0);
}

#define test_attach(buf, dma_mask, max_seg)				\
	({								\
		int __imp = importer_open();				\
		ASSERT_LE(0, __imp);					\
		ASSERT_EQ(0, _attach(__imp, buf, dma_mask, max_seg))	\
			TH_LOG("attach: %s", strerror(errno));		\
		__imp;							\
	})

static inline int _detach(int imp)
{
	return ioctl(imp, IMPORTER_DETACH);
}

#define test_detach(imp)	ASSERT_EQ(0, _detach(imp))

static inline int _map(int imp, __u32 dir, struct udmabuf_importer_map *map)
{
	map->dir = dir;
	return ioctl(imp, IMPORTER_MAP, map);
}

#define test_map(imp, dir)						\
	({								\
		struct udmabuf_importer_map __m;			\
		ASSERT_EQ(0, _map(imp, dir, &__m))			\
			TH_LOG("map: %s", strerror(errno));		\
		__m;							\
	})
#define test_err_map(err, imp, dir)					\
	({								\
		struct udmabuf_importer_map __m;			\
		EXPECT_ERRNO(err, _map(imp, dir, &__m));		\
	})

static inline int _unmap(int imp, __u32 handle)
{
	return ioctl(imp, IMPORTER_UNMAP, &handle);
}

#define test_unmap(imp, handle)	ASSERT_EQ(0, _unmap(imp, handle))

/*
 * Transfer at most 32 MiB per ioctl, since the importer copies all of it twice.
 */
static inline int _device_io(int imp, unsigned int cmd, __u32 handle, __u64 off,
			     const void *data, size_t len)
{
	struct udmabuf_importer_io arg = {
		.offset = off,
		.buf = to_u64(data),
		.handle = handle,
	};
	int ret;

	do {
		arg.len = len < 32UL << 20 ? len : 32UL << 20;
		ret = ioctl(imp, cmd, &arg);
		arg.offset += arg.len;
		arg.buf += arg.len;
		len -= arg.len;
	} while (!ret && len);
	return ret;
}

#define _device_read(imp, handle, off, data, len)			\
	_device_io(imp, IMPORTER_READ, handle, off, data, len)
#define _device_write(imp, handle, off, data, len)			\
	_device_io(imp, IMPORTER_WRITE, handle, off, data, len)
#define test_device_read(imp, handle, off, data, len)			\
	ASSERT_EQ(0, _device_read(imp, handle, off, data, len))
#define test_device_write(imp, handle, off, data, len)			\
	ASSERT_EQ(0, _device_write(imp, handle, off, data, len))

#define _vmap(imp)		ioctl(imp, IMPORTER_VMAP)
#define test_vmap(imp)		ASSERT_EQ(0, _vmap(imp))
#define test_err_vmap(err, imp)	EXPECT_ERRNO(err, _vmap(imp))
#define test_vunmap(imp)	ASSERT_EQ(0, ioctl(imp, IMPORTER_VUNMAP))
#define test_vread(imp, off, data, len)					\
	ASSERT_EQ(0, _device_io(imp, IMPORTER_VREAD, 0, off, data, len))
#define test_vwrite(imp, off, data, len)				\
	ASSERT_EQ(0, _device_io(imp, IMPORTER_VWRITE, 0, off, data, len))

static inline int _cpu_access(int imp, unsigned int cmd, __u32 dir)
{
	return ioctl(imp, cmd, &dir);
}

#define test_cpu_begin(imp, dir) ASSERT_EQ(0, _cpu_access(imp, IMPORTER_BEGIN_CPU, dir))
#define test_cpu_end(imp, dir)	ASSERT_EQ(0, _cpu_access(imp, IMPORTER_END_CPU, dir))

static inline int _fence(int imp, __u32 writes)
{
	return ioctl(imp, IMPORTER_FENCE, &writes);
}

#define test_fence(imp, writes)	ASSERT_EQ(0, _fence(imp, writes))
#define test_signal(imp)	ASSERT_EQ(0, ioctl(imp, IMPORTER_SIGNAL))

#define SKIP_WITHOUT_IMPORTER()						\
	do {								\
		int __imp = importer_open();				\
		if (__imp < 0)						\
			SKIP(return, "no " UDMABUF_IMPORTER_DEV ": load udmabuf_importer.ko"); \
		close(__imp);						\
	} while (0)

/* Checks of a whole buffer */

#define BOUNCE_MAX	(256U << 10)	/* the longest segment swiotlb can bounce */
#define BOUNCE_TOTAL	(48U << 20)	/* fits in all bounce buffers for certain */

/* The page frame numbers of the pages in @iovs; NULL if one is not visible. */
static inline __u64 *entries_frames(const struct udmabuf_iovec *iovs, size_t niov)
{
	__u64 *frames = calloc(entries_len(iovs, niov) / page_size() + 1, sizeof(*frames));
	int pagemap = pagemap_open();
	size_t done = 0, i;

	for (i = 0; i < niov; done += iovs[i++].len / page_size())
		page_frames(pagemap, (void *)(uintptr_t)iovs[i].base, iovs[i].len / page_size(),
			    frames + done);
	close(pagemap);
	while (done && frames[done - 1])
		done--;
	if (!done)
		return frames;
	free(frames);
	return NULL;
}

/*
 * The number of physically contiguous runs, each cut into segments of at most
 * @max bytes. If @boundary is not 0, no segment crosses a multiple of
 * @boundary.
 */
static inline unsigned int count_segments(const __u64 *frames, size_t npages, size_t max,
					  size_t boundary)
{
	size_t page = page_size(), i, run = 0;
	unsigned int count = 0;

	for (i = 0; i < npages; i++, run++) {
		if (i && frames[i] == frames[i - 1] + 1 && run < max / page &&
		    (!boundary || frames[i] % (boundary / page)))
			continue;
		count++;
		run = 0;
	}
	return count;
}

/*
 * Sections of physical memory. Without a virtual memmap, as on 32-bit x86, the
 * struct pages of two sections may not be adjacent. A run across two sections
 * then becomes two segments.
 */
#define SECTION_MIN	(64UL << 20)	/* without PAE; others are multiples */

static inline bool memmap_has_sections(void)
{
	FILE *symbols = kernel_is_32bit() ? fopen("/proc/kallsyms", "r") : NULL;
	bool found = false;
	char line[256];

	while (symbols && !found && fgets(line, sizeof(line), symbols))
		found = strstr(line, " sparse_init\n");
	if (symbols)
		fclose(symbols);
	return found;
}

static inline unsigned int count_runs(const __u64 *frames, size_t npages, size_t max)
{
	return count_segments(frames, npages, max, 0);
}

/*
 * The expected contents of a buffer: the memory that @iovs name, in their
 * order. The *_differs() functions return "" or the difference found.
 */
struct image {
	const struct udmabuf_iovec *iovs;
	size_t niov;
	size_t len;
	char *seen;		/* room for len bytes */
};

static inline const char *importer_differs(int buf, const struct image *image,
					   const __u64 *frames, size_t max)
{
	static char text[64];
	struct udmabuf_importer_map map;
	unsigned int runs, most;
	int imp = importer_open();

	if (imp < 0 || _attach(imp, buf, 0, max) || _map(imp, IMPORTER_TO_DEVICE, &map))
		return "cannot be mapped by an importer";
	if (map.bytes != image->len || map.longest > max)
		return "segments of the wrong size";
	if (_device_read(imp, map.handle, 0, image->seen, image->len) ||
	    !buffer_is(image->seen, image->iovs, image->niov))
		return "wrong bytes in an importer's map";
	close(imp);
	if (!frames)
		return "";
	runs = count_runs(frames, image->len / page_size(), max);
	most = runs;
	if (memmap_has_sections())
		most = count_segments(frames, image->len / page_size(), max, SECTION_MIN);
	snprintf(text, sizeof(text), "%u segments for %u runs", map.nents, runs);
	return map.nents >= runs && map.nents <= most ? "" : text;
}

static inline const char *vmap_differs(int buf, const struct image *image)
{
	int imp = importer_open();

	if (imp < 0 || _attach(imp, buf, 0, 0))
		return "cannot be attached to";
	if (_vmap(imp)) {
		/*
		 * vmalloc space is small on a 32-bit kernel: a large vmap may
		 * fail.
		 */
		bool too_much = errno == EINVAL && kernel_is_32bit() && image->len > 8 << 20;

		close(imp);
		return too_much ? "" : "cannot be mapped by the kernel";
	}
	if (_device_io(imp, IMPORTER_VREAD, 0, 0, image->seen, image->len) ||
	    !buffer_is(image->seen, image->iovs, image->niov))
		return "wrong bytes in the kernel's mapping";
	close(imp);
	return "";
}

static inline const char *device_differs(int buf, const struct image *image)
{
	size_t page = page_size(), max = swiotlb_forced() ? BOUNCE_MAX : UINT_MAX & ~(page - 1);
	__u64 *frames = entries_frames(image->iovs, image->niov);
	const char *ret = "";

	if (!swiotlb_forced() || image->len <= BOUNCE_TOTAL) {
		ret = importer_differs(buf, image, frames, max);
		/*
		 * Segments of 3 pages split runs: two of three segments end
		 * inside a run.
		 */
		if (!*ret && frames && count_runs(frames, image->len / page, max) <
				       image->len / page / 2)
			ret = importer_differs(buf, image, frames, 3 * page);
	}
	free(frames);
	return *ret ? ret : vmap_differs(buf, image);
}

static inline const char *buffer_differs(int buf, const struct udmabuf_iovec *iovs, size_t niov)
{
	struct image image = { .iovs = iovs, .niov = niov, .len = entries_len(iovs, niov) };
	char *map = _map_buf(buf, image.len, PROT_READ, 0);
	const char *ret;

	if ((size_t)lseek(buf, 0, SEEK_END) != image.len)
		return "the wrong size";
	if (map == MAP_FAILED)
		return "cannot be mapped";
	if (!buffer_is(map, iovs, niov))
		return "wrong bytes in its mapping";
	munmap(map, image.len);
	image.seen = malloc(image.len);
	ret = device_differs(buf, &image);
	free(image.seen);
	return ret;
}

#define EXPECT_BUFFER_IS(buf, iovs, niov)				\
	EXPECT_STREQ("", buffer_differs(buf, iovs, niov))

#endif /* _UDMABUF_TEST_H */
