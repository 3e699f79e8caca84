/* SPDX-License-Identifier: GPL-2.0-only */
/* A window of a Wayland desktop. All functions exit on failure. */
#ifndef UDMABUF_SAMPLE_WINDOW_H
#define UDMABUF_SAMPLE_WINDOW_H

#include <stdbool.h>

#include <linux/types.h>

struct window {
	struct wl_display *display;
	struct wl_compositor *compositor;
	struct xdg_wm_base *shell;
	struct zwp_linux_dmabuf_v1 *linux_dmabuf;
	struct wl_surface *surface;
	struct wl_buffer *buffer;
	bool linear, implicit;	/* modifiers that the compositor imports */
	bool configured;
	bool refused;
	bool drawn;		/* the compositor has drawn the last commit */
};

void window_connect(struct window *win);

/* Has the compositor import XRGB8888 pixels at @offset as win->buffer. */
void window_import(struct window *win, int dmabuf, __u32 offset, __u32 width, __u32 height);

void window_open(struct window *win);

/* Has the compositor draw all of win->buffer, and waits until it has. */
void window_commit(struct window *win);

/*
 * Waits for input on stdin, and answers the compositor's pings meanwhile: otherwise
 * the compositor would regard the program as hung.
 */
void window_wait_for_input(struct window *win);

void window_disconnect(struct window *win);

#endif /* UDMABUF_SAMPLE_WINDOW_H */
