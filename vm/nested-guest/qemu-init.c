// SPDX-License-Identifier: GPL-2.0-only
/*
 * The only program in demo-qemu's guest, its PID 1: shows two frames on the guest's
 * virtio-gpu. The second is larger, and in memory fragmented into single pages. After
 * each frame the program prints "frame N shown" and waits for a line on the console.
 * Then it removes both framebuffers, prints "nothing shown", waits for a line, and shuts
 * the guest down.
 *
 * If the line after frame 1 is a number, the program waits until the guest has that many
 * MiB of memory before it draws frame 2.
 *
 * With a frame number as its argument it prints that frame as a PPM picture.
 */
#include <err.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "display.h"
#include "picture.h"

#define RESERVE	(2 << 20)	/* bytes left free, to avoid a panic for lack of memory */

static const struct story stories[] = {
	{
		.program = "qemu -device virtio-gpu",
		.lines[0] = {
			"Drawn by a guest into its own",
			"memory. QEMU makes a dma-buf",
			"of the pieces and shows that,",
			"without a copy.",
		},
	}, {
		.program = "xrandr -s 1600x1200",
		.lines[1] = {
			"A larger framebuffer, in pages",
			"that do not touch each other:",
			"more than 1,024 pieces, and",
			"still one dma-buf.",
		},
	},
};

static struct picture pictures[] = {
	{ .width = 800, .height = 600, .story = &stories[0] },
	{ .width = 1600, .height = 1200, .story = &stories[1] },
};

struct buffer {
	__u32 handle;
	__u32 framebuffer;
	__u32 *pixels;
	size_t size;
};

static void set_vm(const char *name, int value)
{
	char path[64];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/sys/vm/%s", name);
	f = fopen(path, "w");
	if (!f || fprintf(f, "%d\n", value) < 0 || fclose(f))
		err(1, "%s", path);
}

/*
 * Keeps the watermarks of the kernel below RESERVE. The default of min_free_kbytes grows
 * with the memory. A fallback to a page block of another migrate type boosts the
 * watermarks of the zone by a page block (4 MiB), until kswapd has run.
 */
static void limit_watermarks(void)
{
	set_vm("min_free_kbytes", RESERVE / 4 / 1024);
	set_vm("watermark_boost_factor", 0);
}

/* Allocates all memory in single pages, and frees every second page. */
static void fragment_memory(void)
{
	long page = sysconf(_SC_PAGESIZE);
	struct sysinfo info;
	size_t size, used = 0;
	char *p;

	sysinfo(&info);
	size = info.freeram * info.mem_unit;
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		 -1, 0);
	if (p == MAP_FAILED)
		err(1, "mmap");
	while (used < size && info.freeram * info.mem_unit > RESERVE) {
		p[used] = 1;
		used += page;
		sysinfo(&info);
	}
	while (used >= 2 * (size_t)page) {
		used -= 2 * page;
		madvise(p + used, page, MADV_DONTNEED);
	}
}

static void create_buffer(struct buffer *b, const struct display *d,
			  struct picture *pic)
{
	struct drm_mode_create_dumb create = {
		.width = pic->width,
		.height = pic->height,
		.bpp = 32,
	};
	struct drm_mode_map_dumb map = { 0 };

	if (ioctl(d->fd, DRM_IOCTL_MODE_CREATE_DUMB, &create))
		err(1, "cannot create a buffer");
	map.handle = create.handle;
	if (ioctl(d->fd, DRM_IOCTL_MODE_MAP_DUMB, &map))
		err(1, "cannot map the buffer");
	b->handle = create.handle;
	b->size = create.size;
	b->pixels = mmap(NULL, create.size, PROT_READ | PROT_WRITE, MAP_SHARED,
			 d->fd, map.offset);
	if (b->pixels == MAP_FAILED)
		err(1, "cannot map the buffer");
	pic->page = &b->pixels;
	pic->page_pixels = pic->width * pic->height;
}

static void remove_buffer(const struct buffer *b, const struct display *d)
{
	__u32 framebuffer = b->framebuffer;
	struct drm_mode_destroy_dumb destroy = { .handle = b->handle };

	munmap(b->pixels, b->size);
	if (ioctl(d->fd, DRM_IOCTL_MODE_RMFB, &framebuffer) ||
	    ioctl(d->fd, DRM_IOCTL_MODE_DESTROY_DUMB, &destroy))
		err(1, "cannot remove a buffer");
}

static void show(struct buffer *b, struct display *d, int frame)
{
	struct picture *pic = &pictures[frame - 1];

	if (display_find_mode(d, pic->width, pic->height))
		err(1, "no mode %dx%d", pic->width, pic->height);
	create_buffer(b, d, pic);
	picture_draw(pic, frame);
	display_show(d, b->handle);
	b->framebuffer = d->framebuffer;
	display_update(d);
}

/* The number in the reader's line, or 0 */
static int wait_for_reader(const char *message)
{
	char line[16];

	printf("%s\n", message);
	if (!fgets(line, sizeof(line), stdin))
		errx(1, "%s: end of file on stdin, expected a line", message);
	return atoi(line);
}

static void wait_for_memory(unsigned long mib)
{
	struct sysinfo info;

	for (;;) {
		sysinfo(&info);
		if (info.totalram * info.mem_unit >> 20 >= mib)
			return;
		usleep(100000);
	}
}

int main(int argc, char **argv)
{
	int frame = argc == 2 ? atoi(argv[1]) : 0;
	struct buffer first, second;
	struct display display;

	if (frame == 1 || frame == 2)
		return picture_print(&pictures[frame - 1], frame) ? 1 : 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (getpid() != 1)
		errx(1, "usage: %s 1|2, or as PID 1", argv[0]);
	if (mount("dev", "/dev", "devtmpfs", 0, NULL))
		err(1, "cannot mount /dev");
	if (mkdir("/proc", 0555) || mount("proc", "/proc", "proc", 0, NULL))
		err(1, "cannot mount /proc");
	if (display_open(&display, "/dev/dri/card0"))
		err(1, "/dev/dri/card0");
	show(&first, &display, 1);
	wait_for_memory(wait_for_reader("frame 1 shown"));

	limit_watermarks();
	fragment_memory();
	show(&second, &display, 2);
	remove_buffer(&first, &display);
	wait_for_reader("frame 2 shown");
	remove_buffer(&second, &display);
	wait_for_reader("nothing shown");

	reboot(RB_AUTOBOOT);
	return 1;
}
