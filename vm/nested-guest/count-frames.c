// SPDX-License-Identifier: GPL-2.0-only
/*
 * frames blob|copy: the program in demo-chain -c's guest. The guest's host counts
 * instructions per frame. "blob" draws into malloc'ed pages that are not contiguous; virtio-gpu
 * imports a dma-buf of them. "copy" draws into a dumb buffer, from which QEMU copies each
 * frame, as without blob resources.
 *
 * The program runs parts of equal length: "idle" only sleeps, "stores" also draws each
 * frame, and "frames" also updates the display. A frame has one colour. At the start and
 * at the end of a part the program prints "count PART FRAMES" and waits for a line on
 * stdin. A part "first", the same as "frames", warms up and is not counted.
 */
#include <err.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <drm/drm.h>
#include <drm/drm_mode.h>
#include <linux/udmabuf.h>

#include "display.h"

#define WIDTH	800
#define HEIGHT	600
#define FRAMES	8
#define PERIOD	500000	/* us, longer than a frame takes */

#define PAGE	4096
#define WORDS	(PAGE / sizeof(__u32))
#define PAGES	((WIDTH * HEIGHT + WORDS - 1) / WORDS)

static __u32 *page[PAGES];

/* The buffer has every second page of the memory, in reverse order. */
static __u32 import_pages(const struct display *d)
{
	char *memory = aligned_alloc(PAGE, 2 * PAGES * PAGE);
	struct drm_prime_handle prime = { 0 };
	struct udmabuf_create *create;
	int dev = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);
	unsigned int i;

	create = calloc(1, sizeof(*create) + PAGES * sizeof(create->iovs[0]));
	if (dev < 0 || !memory || !create)
		err(1, "cannot prepare a buffer from /dev/udmabuf");
	create->flags = UDMABUF_FLAGS_CLOEXEC;
	create->niov = PAGES;
	for (i = 0; i < PAGES; i++) {
		page[i] = (__u32 *)(memory + (PAGES - 1 - i) * 2 * PAGE);
		create->iovs[i].base = (uintptr_t)page[i];
		create->iovs[i].len = PAGE;
	}
	prime.fd = ioctl(dev, UDMABUF_CREATE, create);
	if (prime.fd < 0)
		err(1, "UDMABUF_CREATE");
	if (ioctl(d->fd, DRM_IOCTL_PRIME_FD_TO_HANDLE, &prime))
		err(1, "%s: cannot import the dma-buf", d->driver);
	return prime.handle;
}

static __u32 create_dumb(const struct display *d)
{
	struct drm_mode_create_dumb create = { .width = WIDTH, .height = HEIGHT, .bpp = 32 };
	struct drm_mode_map_dumb map = { 0 };
	unsigned int i;
	char *memory;

	if (ioctl(d->fd, DRM_IOCTL_MODE_CREATE_DUMB, &create))
		err(1, "%s: cannot create a buffer", d->driver);
	map.handle = create.handle;
	if (ioctl(d->fd, DRM_IOCTL_MODE_MAP_DUMB, &map))
		err(1, "%s: cannot map the buffer", d->driver);
	memory = mmap(NULL, create.size, PROT_READ | PROT_WRITE, MAP_SHARED, d->fd, map.offset);
	if (memory == MAP_FAILED)
		err(1, "%s: cannot map the buffer", d->driver);
	for (i = 0; i < PAGES; i++)
		page[i] = (__u32 *)(memory + i * PAGE);
	return create.handle;
}

static void draw(int n)
{
	__u32 color = 0x101010 * n;
	unsigned int i, j;

	for (i = 0; i < PAGES; i++)
		for (j = 0; j < WORDS; j++)
			page[i][j] = color;
}

static void wait_for_counter(const char *part)
{
	char line[16];

	printf("count %s %d\n", part, FRAMES);
	if (!fgets(line, sizeof(line), stdin))
		errx(1, "%s: end of file on stdin, expected a line from the host", part);
}

static void run(const struct display *d, const char *part, bool stores, bool updates)
{
	int i;

	wait_for_counter(part);
	for (i = 1; i <= FRAMES; i++) {
		if (stores)
			draw(i);
		if (updates)
			display_update(d);
		usleep(PERIOD);
	}
	wait_for_counter(part);
}

int main(int argc, char **argv)
{
	struct display d;
	bool blob;

	setvbuf(stdout, NULL, _IOLBF, 0);
	blob = argc == 2 && !strcmp(argv[1], "blob");
	if (argc != 2 || (!blob && strcmp(argv[1], "copy")))
		errx(2, "usage: %s blob|copy", argv[0]);
	if (display_open(&d, "/dev/dri/card0"))
		err(1, "/dev/dri/card0");
	if (display_find_mode(&d, WIDTH, HEIGHT))
		err(1, "%s: no mode %dx%d", d.driver, WIDTH, HEIGHT);
	display_show(&d, blob ? import_pages(&d) : create_dumb(&d));
	run(&d, "first", true, true);
	run(&d, "idle", false, false);
	run(&d, "stores", true, false);
	run(&d, "frames", true, true);
	return 0;
}
