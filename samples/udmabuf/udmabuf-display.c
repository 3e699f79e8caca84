// SPDX-License-Identifier: GPL-2.0-only
/*
 * How an emulator shows its guest's framebuffer on the console without a copy: a
 * display driver imports the dma-buf by PRIME and shows it. The second frame is
 * drawn by stores to the memory, followed only by the display's update call.
 */
#include <err.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <drm/drm.h>

#include "display.h"
#include "emulator.h"

#define MAX_CARDS	8

const struct story story = {
	.program = "udmabuf-display",
	.lines = {
		{
			"Drawn in malloc'ed memory.",
			"%u ranges, one dma-buf.",
			"A display driver imports it",
			"and shows it: mode set.",
		}, {
			"The same %u ranges, now",
			"with other bytes in them:",
			"CPU stores, no ioctl but the",
			"display's own update call.",
		},
	},
};

/* Opens the first display whose driver imports the dma-buf; returns the GEM handle. */
static __u32 open_display(struct display *d, int dmabuf, const struct picture *pic)
{
	struct drm_prime_handle prime = { .fd = dmabuf };
	char path[32];
	int i;

	for (i = 0; i < MAX_CARDS; i++) {
		snprintf(path, sizeof(path), "/dev/dri/card%d", i);
		if (display_open(d, path))
			continue;
		if (!display_find_mode(d, pic->width, pic->height) &&
		    !ioctl(d->fd, DRM_IOCTL_PRIME_FD_TO_HANDLE, &prime)) {
			printf("driver=%s\n", d->driver);
			return prime.handle;
		}
		warn("%s (%s) cannot import the dma-buf", path, d->driver);
		close(d->fd);
	}
	errx(1, "no display in /dev/dri imports the dma-buf");
}

void show_frames(struct emulator *emu)
{
	struct display display;
	__u32 handle;

	picture_draw(&emu->pic, 1);
	check_same(emu);
	handle = open_display(&display, emu->dmabuf, &emu->pic);
	display_show(&display, handle);
	say_shown(1);
	wait_for_reader(1);

	picture_draw(&emu->pic, 2);
	display_update(&display);
	say_shown(2);
	wait_for_reader(2);
	check_same(emu);
}
