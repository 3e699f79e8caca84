// SPDX-License-Identifier: GPL-2.0-only
/*
 * What an emulator does to show its guest's screen without copying it, where
 * nothing runs but the console: a display driver imports the dma-buf by PRIME
 * and shows it. The second frame is drawn by plain stores; the display's update
 * call is all that follows.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <drm/drm.h>
#include <drm/drm_fourcc.h>
#include <drm/drm_mode.h>

#include "emulator.h"

#define MAX_CARDS	8
#define MAX_MODES	256

struct display {
	int fd;
	char driver[32];
	__u32 handle;	/* the dma-buf, as the driver knows it */
	__u32 framebuffer;
	__u32 crtc;
	__u32 connector;
	struct drm_mode_modeinfo mode;
};

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

/* Zero-terminated in @d->driver; empty if the device is no DRM device. */
static void get_driver_name(struct display *d)
{
	struct drm_version version = {
		.name_len = sizeof(d->driver) - 1,
		.name = d->driver,
	};

	memset(d->driver, 0, sizeof(d->driver));
	ioctl(d->fd, DRM_IOCTL_VERSION, &version);
}

static int find_mode(struct display *d)
{
	static struct drm_mode_modeinfo modes[MAX_MODES];
	struct drm_mode_card_res res = {
		.crtc_id_ptr = (uintptr_t)&d->crtc,
		.connector_id_ptr = (uintptr_t)&d->connector,
		.count_crtcs = 1,
		.count_connectors = 1,
	};
	struct drm_mode_get_connector get = { 0 };
	unsigned int i;

	if (ioctl(d->fd, DRM_IOCTL_MODE_GETRESOURCES, &res))
		return -1;
	get.connector_id = d->connector;
	if (ioctl(d->fd, DRM_IOCTL_MODE_GETCONNECTOR, &get))	/* probes */
		return -1;
	get = (struct drm_mode_get_connector) {
		.connector_id = d->connector,
		.modes_ptr = (uintptr_t)modes,
		.count_modes = MAX_MODES,
	};
	if (ioctl(d->fd, DRM_IOCTL_MODE_GETCONNECTOR, &get))
		return -1;
	for (i = 0; i < get.count_modes && i < MAX_MODES; i++) {
		d->mode = modes[i];
		if (d->mode.hdisplay == PICTURE_WIDTH &&
		    d->mode.vdisplay == PICTURE_HEIGHT)
			return 0;
	}
	errno = ENOENT;
	return -1;
}

static int import(struct display *d, int dmabuf)
{
	struct drm_prime_handle prime = { .fd = dmabuf };

	if (ioctl(d->fd, DRM_IOCTL_PRIME_FD_TO_HANDLE, &prime))
		return -1;
	d->handle = prime.handle;
	return 0;
}

/* The first display whose driver takes the dma-buf. */
static void open_display(struct display *d, int dmabuf)
{
	char path[32];
	int i;

	for (i = 0; i < MAX_CARDS; i++) {
		snprintf(path, sizeof(path), "/dev/dri/card%d", i);
		d->fd = open(path, O_RDWR | O_CLOEXEC);
		if (d->fd < 0)
			continue;
		get_driver_name(d);
		if (!find_mode(d) && !import(d, dmabuf)) {
			printf("driver=%s\n", d->driver);
			return;
		}
		warn("%s (%s) does not take the buffer", path, d->driver);
		close(d->fd);
	}
	errx(1, "no display takes the buffer");
}

static void show(struct display *d)
{
	struct drm_mode_fb_cmd2 fb = {
		.width = PICTURE_WIDTH,
		.height = PICTURE_HEIGHT,
		.pixel_format = DRM_FORMAT_XRGB8888,
		.handles = { d->handle },
		.pitches = { PICTURE_WIDTH * 4 },
	};
	struct drm_mode_crtc crtc = {
		.set_connectors_ptr = (uintptr_t)&d->connector,
		.count_connectors = 1,
		.crtc_id = d->crtc,
		.mode_valid = 1,
		.mode = d->mode,
	};

	if (ioctl(d->fd, DRM_IOCTL_MODE_ADDFB2, &fb))
		err(1, "%s: cannot make a framebuffer of it", d->driver);
	d->framebuffer = fb.fb_id;
	crtc.fb_id = fb.fb_id;
	if (ioctl(d->fd, DRM_IOCTL_MODE_SETCRTC, &crtc))
		err(1, "%s: cannot set the mode", d->driver);
}

static void update_display(const struct display *d)
{
	struct drm_mode_fb_dirty_cmd dirty = { .fb_id = d->framebuffer };

	if (ioctl(d->fd, DRM_IOCTL_MODE_DIRTYFB, &dirty))
		err(1, "%s: cannot update the display", d->driver);
}

void show_frames(struct emulator *emu)
{
	struct display display;

	picture_draw(&emu->pic, 1);
	check_same(emu);
	open_display(&display, emu->dmabuf);
	show(&display);
	say_shown(1);
	wait_for_reader(1);

	picture_draw(&emu->pic, 2);
	update_display(&display);
	say_shown(2);
	wait_for_reader(2);
	check_same(emu);
}
