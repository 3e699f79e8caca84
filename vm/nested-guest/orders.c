// SPDX-License-Identifier: GPL-2.0-only
/*
 * orders [N]: tests with virtio-gpu as the importer. It attaches dynamically, pins the
 * buffer and makes a blob of guest memory from it. The tests release the objects of a
 * buffer that is on the screen in every order:
 *
 *   M  unmap the memory                F  remove the framebuffer
 *   D  close the dma-buf               X  close the DRM device
 *   G  close the GEM handle            C  turn the display off
 *
 * X also releases the objects of G, F and C, so these cannot follow X. F turns the
 * display off, so C cannot follow F. After each order all counters must have their
 * previous values.
 *
 * RLIMIT_MEMLOCK is the size of a test's buffers and CAP_IPC_LOCK is dropped, so that
 * the next create fails if a charge was not returned.
 *
 * The output is TAP. With an argument N a test that repeats itself runs only every Nth
 * turn.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <drm/drm.h>
#include <drm/drm_fourcc.h>
#include <drm/drm_mode.h>
#include <linux/capability.h>
#include <linux/dma-buf.h>
#include <linux/udmabuf.h>

#include "display.h"

#define WIDTH	640
#define HEIGHT	480
#define SIZE	((size_t)WIDTH * HEIGHT * 4)
#define CARD	"/dev/dri/card0"
#define SETTLE	200	/* times 10 ms to wait for late releases */

#define MAX_STEPS	6

struct buffer {
	char *memory;	/* twice SIZE: every second page is in the buffer */
	int dmabuf;
	__u32 handle, framebuffer;
};

static size_t page_size;
static int every = 1;
static bool failed;

/* Prints a message with errno, and marks the test as failed; the test goes on. */
static void fail(const char *fmt, ...)
{
	va_list ap;

	printf("# ");
	va_start(ap, fmt);
	vprintf(fmt, ap);
	va_end(ap);
	printf(": %s\n", strerror(errno));
	failed = true;
}

#define check(cond) ((cond) ? true : (fail("line %d: %s", __LINE__, #cond), false))

/* Counters */

struct counters {
	long pinned, objects, attached, vmpin;
};

static struct counters before;

/*
 * Returns the sum of the numbers in lines that match @format, which must end in %n.
 * Returns 0 without such a line.
 */
static long number_in(const char *path, const char *format)
{
	FILE *f = fopen(path, "r");
	long value, sum = 0;
	char line[256];
	int end;

	if (!f)
		err(1, "%s", path);
	while (fgets(line, sizeof(line), f)) {
		end = 0;
		if (sscanf(line, format, &value, &end) == 1 && end)
			sum += value;
	}
	fclose(f);
	return sum;
}

static void count(struct counters *c)
{
	static const char bufinfo[] = "/sys/kernel/debug/dma_buf/bufinfo";
	FILE *f = fopen("/proc/sys/vm/stat_refresh", "r");

	if (!f || fgetc(f) != EOF || fclose(f))
		err(1, "/proc/sys/vm/stat_refresh");
	c->pinned = number_in("/proc/vmstat", "nr_foll_pin_acquired %ld%n") -
		    number_in("/proc/vmstat", "nr_foll_pin_released %ld%n");
	c->objects = number_in(bufinfo, "Total %ld objects%n");
	c->attached = number_in(bufinfo, "Total %ld devices attached%n");
	c->vmpin = number_in("/proc/self/status", "VmPin: %ld%n");
}

/* Waits for the expected counters: the kernel may drop the last reference late. */
static bool counters_are(long pinned, long objects, long attached)
{
	struct counters c;
	int tries;

	for (tries = 0; tries < SETTLE; tries++) {
		count(&c);
		c.pinned -= before.pinned;
		if (c.pinned == pinned && c.objects == objects && c.attached == attached)
			return true;
		usleep(10000);
	}
	printf("# %ld pins, %ld objects, %ld attached, not %ld, %ld, %ld\n", c.pinned,
	       c.objects, c.attached, pinned, objects, attached);
	failed = true;
	return false;
}

static bool nothing_left(void)
{
	struct counters c;

	if (!counters_are(0, 0, 0))
		return false;
	count(&c);
	if (c.vmpin) {
		printf("# VmPin is %ld kB\n", c.vmpin);
		failed = true;
	}
	return !c.vmpin;
}

/* Steps that create and release a buffer */

/* Returns the dma-buf, or -1 and errno. */
static int try_buffer(struct buffer *b, __u32 flags)
{
	size_t i, n = SIZE / page_size;
	struct udmabuf_create *create;
	int dev = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);

	memset(b, 0, sizeof(*b));
	b->memory = mmap(NULL, 2 * SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	create = calloc(1, sizeof(*create) + n * sizeof(create->iovs[0]));
	if (dev < 0 || b->memory == MAP_FAILED || !create)
		err(1, "cannot prepare a buffer from /dev/udmabuf");
	create->flags = UDMABUF_FLAGS_CLOEXEC | flags;
	create->niov = n;
	for (i = 0; i < n; i++) {
		create->iovs[i].base = (uintptr_t)b->memory + (n - 1 - i) * 2 * page_size;
		create->iovs[i].len = page_size;
		memset((void *)(uintptr_t)create->iovs[i].base, i, page_size);
	}
	b->dmabuf = ioctl(dev, UDMABUF_CREATE, create);
	free(create);
	close(dev);
	return b->dmabuf;
}

static bool make_buffer(struct buffer *b, __u32 flags)
{
	return check(try_buffer(b, flags) >= 0);
}

static bool import(struct buffer *b, int drm)
{
	struct drm_prime_handle prime = { .fd = b->dmabuf };

	if (!check(!ioctl(drm, DRM_IOCTL_PRIME_FD_TO_HANDLE, &prime)))
		return false;
	b->handle = prime.handle;
	return true;
}

static bool add_framebuffer(struct buffer *b, int drm)
{
	struct drm_mode_fb_cmd2 fb = {
		.width = WIDTH,
		.height = HEIGHT,
		.pixel_format = DRM_FORMAT_XRGB8888,
		.handles = { b->handle },
		.pitches = { WIDTH * 4 },
	};

	if (!check(!ioctl(drm, DRM_IOCTL_MODE_ADDFB2, &fb)))
		return false;
	b->framebuffer = fb.fb_id;
	return true;
}

/* @framebuffer 0 turns the display off */
static bool set_crtc(const struct display *d, __u32 framebuffer)
{
	struct drm_mode_crtc crtc = {
		.crtc_id = d->crtc,
		.fb_id = framebuffer,
		.mode_valid = !!framebuffer,
		.mode = d->mode,
		.set_connectors_ptr = (uintptr_t)&d->connector,
		.count_connectors = !!framebuffer,
	};

	return check(!ioctl(d->fd, DRM_IOCTL_MODE_SETCRTC, &crtc));
}

static bool update(const struct display *d, __u32 framebuffer)
{
	struct drm_mode_fb_dirty_cmd dirty = { .fb_id = framebuffer };

	return check(!ioctl(d->fd, DRM_IOCTL_MODE_DIRTYFB, &dirty));
}

static bool open_display(struct display *d)
{
	return check(!display_open(d, CARD)) &&
	       check(!display_find_mode(d, WIDTH, HEIGHT));
}

/* Creates the only buffer and shows it on the screen. */
static bool show(struct buffer *b, struct display *d)
{
	return make_buffer(b, 0) && open_display(d) && import(b, d->fd) &&
	       add_framebuffer(b, d->fd) && set_crtc(d, b->framebuffer) &&
	       counters_are(SIZE / page_size, 1, 1);
}

static bool close_handle(const struct buffer *b, int drm)
{
	struct drm_gem_close close = { .handle = b->handle };

	return check(!ioctl(drm, DRM_IOCTL_GEM_CLOSE, &close));
}

static bool remove_framebuffer(const struct buffer *b, int drm)
{
	__u32 framebuffer = b->framebuffer;

	return check(!ioctl(drm, DRM_IOCTL_MODE_RMFB, &framebuffer));
}

static bool release(char step, struct buffer *b, struct display *d)
{
	switch (step) {
	case 'M': return check(!munmap(b->memory, 2 * SIZE));
	case 'D': return check(!close(b->dmabuf));
	case 'G': return close_handle(b, d->fd);
	case 'F': return remove_framebuffer(b, d->fd);
	case 'C': return set_crtc(d, 0);
	case 'X': return check(!close(d->fd));
	}
	return false;
}

/* The orders */

static unsigned int turn, turns;

static void one_order(const char *order)
{
	struct display d;
	struct buffer b;
	const char *step;
	bool ok;

	if (failed || turn++ % every)
		return;
	turns++;
	ok = show(&b, &d);
	for (step = order; ok && *step; step++)
		ok = release(*step, &b, &d);
	if (!ok || !nothing_left()) {
		printf("# in the order %s\n", order);
		failed = true;
	}
}

static bool can_follow(const char *order, char step, bool off)
{
	if (strchr(order, step))
		return false;
	if (step == 'X')
		return !off || strchr(order, 'C');
	if (step == 'C')
		return off && !strchr(order, 'F') && !strchr(order, 'X');
	if (step == 'F' && off && !strchr(order, 'C'))
		return false;
	return strchr("MD", step) || !strchr(order, 'X');
}

/* Calls one_order() for each complete order that starts with the @n steps of @order. */
static void orders(char *order, unsigned int n, bool off)
{
	static const char steps[] = "MDGFCX";
	const char *step;

	order[n] = 0;
	if (strchr(order, 'M') && strchr(order, 'D') && strchr(order, 'X')) {
		one_order(order);
		return;
	}
	for (step = steps; *step; step++) {
		order[n] = 0;
		if (!can_follow(order, *step, off))
			continue;
		order[n] = *step;
		orders(order, n + 1, off);
	}
}

static void every_order(void)
{
	char order[MAX_STEPS + 1];

	orders(order, 0, false);
}

static void every_order_with_the_display_off(void)
{
	char order[MAX_STEPS + 1];

	orders(order, 0, true);
}

/* A child is killed at each stage, and while it updates the display. */

#define STAGES	6

static void live_until(int stage, int ready)
{
	struct display d;
	struct buffer b;
	bool ok = make_buffer(&b, 0);

	if (ok && stage > 0)
		ok = open_display(&d) && import(&b, d.fd);
	if (ok && stage > 1)
		ok = add_framebuffer(&b, d.fd);
	if (ok && stage > 2)
		ok = set_crtc(&d, b.framebuffer);
	if (!ok)
		_exit(1);
	if (write(ready, "", 1) != 1)
		_exit(1);
	/* 4: updates; 5: the display is also turned off and on */
	while (stage > 3 && ok) {
		memset(b.memory, 0x55, 2 * SIZE);
		ok = update(&d, b.framebuffer);
		if (stage > 4)
			ok = ok && set_crtc(&d, 0) && set_crtc(&d, b.framebuffer);
	}
	while (ok)
		pause();
	_exit(1);
}

static void killed_at(int stage, unsigned int microseconds)
{
	int ready[2], status;
	char byte;
	pid_t child;

	if (pipe(ready))
		err(1, "pipe");
	fflush(stdout);
	child = fork();
	if (child < 0)
		err(1, "fork");
	if (!child)
		live_until(stage, ready[1]);
	close(ready[1]);
	check(read(ready[0], &byte, 1) == 1);
	close(ready[0]);
	usleep(microseconds);
	kill(child, SIGKILL);
	check(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
	if (!nothing_left() || failed) {
		printf("# killed at stage %d after %u us\n", stage, microseconds);
		failed = true;
	}
}

static void killed_at_each_stage(void)
{
	int stage, i;

	for (stage = 0; stage < STAGES; stage++)
		for (i = 0; i < (stage < 4 ? 1 : 12) && !failed; i++) {
			if (i % every)
				continue;
			turns++;
			killed_at(stage, i * 7001);
		}
}

/* Other operations with an importer */

/* A DRM file imports a dma-buf once. Another file makes a second import. */
static void imported_more_than_once(void)
{
	struct buffer b, again, other;
	struct display d, second;
	long pages = SIZE / page_size;

	if (!show(&b, &d) || !open_display(&second))
		return;
	again = b;
	other = b;
	check(import(&again, d.fd) && again.handle == b.handle);
	counters_are(pages, 1, 1);
	check(import(&other, second.fd));
	counters_are(pages, 1, 2);
	check(!close(d.fd));
	counters_are(pages, 1, 1);
	check(!close(b.dmabuf));
	counters_are(pages, 1, 1);
	check(!close(second.fd));
	check(!munmap(b.memory, 2 * SIZE));
	nothing_left();
}

static bool sync_buffer(const struct buffer *b, __u64 flags)
{
	struct dma_buf_sync sync = { .flags = DMA_BUF_SYNC_RW | flags };

	return check(!ioctl(b->dmabuf, DMA_BUF_IOCTL_SYNC, &sync));
}

/* State that an import leaves in the buffer would fail the next import or a sync. */
static void imported_again_after_its_end(void)
{
	struct display d;
	struct buffer b;
	int i;

	if (!make_buffer(&b, 0))
		return;
	for (i = 0; i < 5 && !failed; i++) {
		if (!open_display(&d) || !import(&b, d.fd) || !add_framebuffer(&b, d.fd))
			return;
		set_crtc(&d, b.framebuffer);
		counters_are(SIZE / page_size, 1, 1);
		check(!close(d.fd));
		counters_are(SIZE / page_size, 1, 0);
		sync_buffer(&b, DMA_BUF_SYNC_START);
		memset(b.memory, i, 2 * SIZE);
		sync_buffer(&b, DMA_BUF_SYNC_END);
	}
	check(!close(b.dmabuf));
	check(!munmap(b.memory, 2 * SIZE));
	nothing_left();
}

static void give_back(const struct buffer *b, const struct display *d)
{
	check(!close(d->fd));
	check(!close(b->dmabuf));
	check(!munmap(b->memory, 2 * SIZE));
	nothing_left();
}

/* Two buffers alternate on the screen; the buffer that is not shown can be released. */
static void replaced_on_the_screen(void)
{
	struct buffer a, b;
	struct display d;
	long pages = SIZE / page_size;
	int i;

	if (!show(&a, &d) || !make_buffer(&b, 0) || !import(&b, d.fd) ||
	    !add_framebuffer(&b, d.fd))
		return;
	for (i = 0; i < 6 && !failed; i++) {
		memset(a.memory, i, 2 * SIZE);
		memset(b.memory, ~i, 2 * SIZE);
		set_crtc(&d, i % 2 ? a.framebuffer : b.framebuffer);
	}
	counters_are(2 * pages, 2, 2);
	set_crtc(&d, b.framebuffer);
	remove_framebuffer(&a, d.fd);
	close_handle(&a, d.fd);
	check(!close(a.dmabuf));
	check(!munmap(a.memory, 2 * SIZE));
	counters_are(pages, 1, 1);
	update(&d, b.framebuffer);
	give_back(&b, &d);
}

static bool all_are(const char *p, char value, size_t size)
{
	return *p == value && !memcmp(p, p + 1, size - 1);
}

/*
 * The program discards its memory while the buffer is on the screen: the buffer keeps
 * the pages and their contents, and the program gets new pages.
 */
static void memory_is_given_back_meanwhile(void)
{
	struct display d;
	struct buffer b;
	char *map;

	if (!show(&b, &d))
		return;
	memset(b.memory, 0x11, 2 * SIZE);
	check(!madvise(b.memory, 2 * SIZE, MADV_DONTNEED));
	counters_are(SIZE / page_size, 1, 1);
	memset(b.memory, 0x22, 2 * SIZE);
	update(&d, b.framebuffer);
	map = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, b.dmabuf, 0);
	if (check(map != MAP_FAILED)) {
		check(all_are(map, 0x11, SIZE));
		check(!munmap(map, SIZE));
	}
	check(!munmap(b.memory, 2 * SIZE));
	update(&d, b.framebuffer);
	check(!close(b.dmabuf));
	update(&d, b.framebuffer);
	check(!close(d.fd));
	nothing_left();
}

/* An update adds a fence to the buffer's dma_resv. Waits for the fence must end. */
static void waits_for_the_display_end(void)
{
	struct display d;
	struct buffer b;
	struct pollfd fd;
	int i;

	if (!show(&b, &d))
		return;
	for (i = 0; i < 8 && !failed; i++) {
		update(&d, b.framebuffer);
		sync_buffer(&b, DMA_BUF_SYNC_START);
		memset(b.memory, i, 2 * SIZE);
		sync_buffer(&b, DMA_BUF_SYNC_END);
		update(&d, b.framebuffer);
		fd = (struct pollfd) { .fd = b.dmabuf, .events = POLLOUT };
		check(poll(&fd, 1, 10000) == 1);
	}
	give_back(&b, &d);
}

/* virtio-gpu maps for both directions, which a read-only buffer refuses. */
static void read_only_is_refused(void)
{
	struct drm_prime_handle prime;
	struct display d;
	struct buffer b;
	int i;

	if (!make_buffer(&b, UDMABUF_FLAGS_RDONLY) || !open_display(&d))
		return;
	for (i = 0; i < 4; i++) {
		prime = (struct drm_prime_handle) { .fd = b.dmabuf };
		check(ioctl(d.fd, DRM_IOCTL_PRIME_FD_TO_HANDLE, &prime) == -1 &&
		      errno == EPERM);
	}
	counters_are(SIZE / page_size, 1, 0);
	give_back(&b, &d);
}

/* The child gets a copy of the memory; the buffer keeps the parent's pages. */
static void forked_meanwhile(void)
{
	struct display d;
	struct buffer b;
	pid_t child;
	char *map;
	int status;

	if (!show(&b, &d))
		return;
	memset(b.memory, 0x33, 2 * SIZE);
	fflush(stdout);
	child = fork();
	if (child < 0)
		err(1, "fork");
	if (!child) {
		memset(b.memory, 0x44, 2 * SIZE);
		_exit(0);
	}
	check(waitpid(child, &status, 0) == child && !status);
	update(&d, b.framebuffer);
	map = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, b.dmabuf, 0);
	if (check(map != MAP_FAILED)) {
		check(all_are(map, 0x33, SIZE));
		memset(b.memory, 0x55, 2 * SIZE);
		check(all_are(map, 0x55, SIZE));
		check(!munmap(map, SIZE));
	}
	give_back(&b, &d);
}

/* Verifies the quota, by which the other tests detect a charge that is not returned. */
static void a_page_over_the_quota_is_refused(void)
{
	struct rlimit limit = { SIZE - page_size, RLIM_INFINITY }, old;
	struct buffer b;

	if (getrlimit(RLIMIT_MEMLOCK, &old) || setrlimit(RLIMIT_MEMLOCK, &limit))
		err(1, "RLIMIT_MEMLOCK");
	check(try_buffer(&b, 0) < 0 && errno == ENOMEM);
	munmap(b.memory, 2 * SIZE);
	setrlimit(RLIMIT_MEMLOCK, &old);
	nothing_left();
}

static const struct {
	const char *name;
	void (*run)(void);
	unsigned int buffers;	/* at a time */
} tests[] = {
	{ "a_page_over_the_quota_is_refused", a_page_over_the_quota_is_refused, 1 },
	{ "every_order", every_order, 1 },
	{ "every_order_with_the_display_off", every_order_with_the_display_off, 1 },
	{ "killed_at_each_stage", killed_at_each_stage, 1 },
	{ "imported_more_than_once", imported_more_than_once, 1 },
	{ "imported_again_after_its_end", imported_again_after_its_end, 1 },
	{ "replaced_on_the_screen", replaced_on_the_screen, 2 },
	{ "memory_is_given_back_meanwhile", memory_is_given_back_meanwhile, 1 },
	{ "waits_for_the_display_end", waits_for_the_display_end, 1 },
	{ "read_only_is_refused", read_only_is_refused, 1 },
	{ "forked_meanwhile", forked_meanwhile, 1 },
};

#define NTESTS	(sizeof(tests) / sizeof(*tests))

static void drop_ipc_lock(void)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];

	if (syscall(SYS_capget, &head, data))
		err(1, "capget");
	data[0].effective &= ~(1U << CAP_IPC_LOCK);
	if (syscall(SYS_capset, &head, data))
		err(1, "capset");
}

/* Runs a test in a child, so that objects left by a failed test do not fail the next. */
static bool run(unsigned int i)
{
	struct rlimit limit = { tests[i].buffers * SIZE, RLIM_INFINITY };
	int status;
	pid_t child = fork();

	if (child < 0)
		err(1, "fork");
	if (!child) {
		if (setrlimit(RLIMIT_MEMLOCK, &limit))
			err(1, "RLIMIT_MEMLOCK");
		drop_ipc_lock();
		tests[i].run();
		if (turns)
			printf("# %u turns\n", turns);
		exit(failed);
	}
	return waitpid(child, &status, 0) == child && !status;
}

int main(int argc, char **argv)
{
	unsigned int i, bad = 0;

	if (argc > 1)
		every = atoi(argv[1]);
	if (every < 1)
		errx(2, "usage: %s [N]", argv[0]);
	page_size = sysconf(_SC_PAGESIZE);
	setvbuf(stdout, NULL, _IOLBF, 0);
	count(&before);
	printf("TAP version 13\n1..%zu\n", NTESTS);
	for (i = 0; i < NTESTS; i++) {
		bool ok = run(i);

		bad += !ok;
		printf("%sok %u %s\n", ok ? "" : "not ", i + 1, tests[i].name);
	}
	return !!bad;
}
