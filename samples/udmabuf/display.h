/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef UDMABUF_SAMPLE_DISPLAY_H
#define UDMABUF_SAMPLE_DISPLAY_H

#include <drm/drm.h>
#include <drm/drm_mode.h>

struct display {
	int fd;
	char driver[32];
	__u32 framebuffer;
	__u32 crtc;
	__u32 connector;
	struct drm_mode_modeinfo mode;
};

/* Return -1 and set errno if the device, or the mode on it, does not exist. */
int display_open(struct display *d, const char *path);
int display_find_mode(struct display *d, int width, int height);

/* Show the GEM object @handle in the mode found; both exit on failure. */
void display_show(struct display *d, __u32 handle);
void display_update(const struct display *d);

#endif /* UDMABUF_SAMPLE_DISPLAY_H */
