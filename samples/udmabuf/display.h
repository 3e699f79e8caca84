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

/* -1 and errno if there is no such device, or no such mode on it */
int display_open(struct display *d, const char *path);
int display_find_mode(struct display *d, int width, int height);

/* What @handle stands for, in that mode; both end the program on failure */
void display_show(struct display *d, __u32 handle);
void display_update(const struct display *d);

#endif /* UDMABUF_SAMPLE_DISPLAY_H */
