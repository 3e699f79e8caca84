// SPDX-License-Identifier: GPL-2.0-only
/* Shows a buffer on a DRM display, by mode setting ioctls that every driver has. */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>

#include <drm/drm.h>
#include <drm/drm_fourcc.h>
#include <drm/drm_mode.h>

#include "display.h"

#define MAX_MODES	256

/* Sets @d->driver to a terminated string, empty if this is not a DRM device. */
static void get_driver_name(struct display *d)
{
	struct drm_version version = {
		.name_len = sizeof(d->driver) - 1,
		.name = d->driver,
	};

	memset(d->driver, 0, sizeof(d->driver));
	ioctl(d->fd, DRM_IOCTL_VERSION, &version);
}

int display_open(struct display *d, const char *path)
{
	d->fd = open(path, O_RDWR | O_CLOEXEC);
	if (d->fd < 0)
		return -1;
	get_driver_name(d);
	return 0;
}

int display_find_mode(struct display *d, int width, int height)
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
	if (ioctl(d->fd, DRM_IOCTL_MODE_GETCONNECTOR, &get))	/* with 0 modes: probes */
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
		if (d->mode.hdisplay == width && d->mode.vdisplay == height)
			return 0;
	}
	errno = ENOENT;
	return -1;
}

void display_show(struct display *d, __u32 handle)
{
	struct drm_mode_fb_cmd2 fb = {
		.width = d->mode.hdisplay,
		.height = d->mode.vdisplay,
		.pixel_format = DRM_FORMAT_XRGB8888,
		.handles = { handle },
		.pitches = { d->mode.hdisplay * 4 },
	};
	struct drm_mode_crtc crtc = {
		.set_connectors_ptr = (uintptr_t)&d->connector,
		.count_connectors = 1,
		.crtc_id = d->crtc,
		.mode_valid = 1,
		.mode = d->mode,
	};

	if (ioctl(d->fd, DRM_IOCTL_MODE_ADDFB2, &fb))
		err(1, "%s: cannot create a framebuffer from the buffer", d->driver);
	d->framebuffer = fb.fb_id;
	crtc.fb_id = fb.fb_id;
	if (ioctl(d->fd, DRM_IOCTL_MODE_SETCRTC, &crtc))
		err(1, "%s: cannot set the mode", d->driver);
}

void display_update(const struct display *d)
{
	struct drm_mode_fb_dirty_cmd dirty = { .fb_id = d->framebuffer };

	if (ioctl(d->fd, DRM_IOCTL_MODE_DIRTYFB, &dirty))
		err(1, "%s: cannot update the display", d->driver);
}
