// SPDX-License-Identifier: GPL-2.0-only
/* Shows a dma-buf in a window of a Wayland desktop, by linux-dmabuf, without a copy. */
#include <err.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <drm/drm_fourcc.h>
#include <wayland-client.h>

#include "linux-dmabuf-v1-client-protocol.h"
#include "window.h"
#include "xdg-shell-client-protocol.h"

static void fail(struct window *win)
{
	const struct wl_interface *interface = NULL;
	__u32 code;

	if (wl_display_get_error(win->display) == EPROTO) {
		code = wl_display_get_protocol_error(win->display, &interface, NULL);
		errx(1, "the compositor reports error %u of %s", code,
		     interface ? interface->name : "an unknown object");
	}
	err(1, "lost the compositor");
}

static void dispatch(struct window *win)
{
	if (wl_display_dispatch(win->display) < 0)
		fail(win);
}

static void handle_format(void *data, struct zwp_linux_dmabuf_v1 *linux_dmabuf,
			  __u32 format)
{
}

static void handle_modifier(void *data, struct zwp_linux_dmabuf_v1 *linux_dmabuf,
			    __u32 format, __u32 high, __u32 low)
{
	struct window *win = data;
	__u64 modifier = (__u64)high << 32 | low;

	if (format != DRM_FORMAT_XRGB8888)
		return;
	win->linear |= modifier == DRM_FORMAT_MOD_LINEAR;
	win->implicit |= modifier == DRM_FORMAT_MOD_INVALID;
}

static const struct zwp_linux_dmabuf_v1_listener linux_dmabuf_listener = {
	.format = handle_format,
	.modifier = handle_modifier,
};

static void handle_ping(void *data, struct xdg_wm_base *shell, __u32 serial)
{
	xdg_wm_base_pong(shell, serial);
}

static const struct xdg_wm_base_listener shell_listener = {
	.ping = handle_ping,
};

static void *bind(struct wl_registry *registry, __u32 name, __u32 has,
		  const struct wl_interface *interface, __u32 version)
{
	if (has < version)
		errx(1, "the compositor's %s is too old", interface->name);
	return wl_registry_bind(registry, name, interface, version);
}

static void handle_global(void *data, struct wl_registry *registry, __u32 name,
			  const char *interface, __u32 version)
{
	struct window *win = data;

	if (!strcmp(interface, wl_compositor_interface.name)) {
		win->compositor = bind(registry, name, version,
				       &wl_compositor_interface, 4);
	} else if (!strcmp(interface, xdg_wm_base_interface.name)) {
		win->shell = bind(registry, name, version,
				  &xdg_wm_base_interface, 1);
		xdg_wm_base_add_listener(win->shell, &shell_listener, win);
	} else if (!strcmp(interface, zwp_linux_dmabuf_v1_interface.name)) {
		/* Version 3 is the last that lists the modifiers by plain events. */
		win->linux_dmabuf = bind(registry, name, version,
					 &zwp_linux_dmabuf_v1_interface, 3);
		zwp_linux_dmabuf_v1_add_listener(win->linux_dmabuf,
						 &linux_dmabuf_listener, win);
	}
}

static void handle_global_remove(void *data, struct wl_registry *registry,
				 __u32 name)
{
}

static const struct wl_registry_listener registry_listener = {
	.global = handle_global,
	.global_remove = handle_global_remove,
};

void window_connect(struct window *win)
{
	struct wl_registry *registry;

	win->display = wl_display_connect(NULL);
	if (!win->display)
		err(1, "cannot connect to a Wayland compositor (see: echo $WAYLAND_DISPLAY)");
	registry = wl_display_get_registry(win->display);
	wl_registry_add_listener(registry, &registry_listener, win);
	/* The first roundtrip gets the globals, the second the modifiers. */
	if (wl_display_roundtrip(win->display) < 0 ||
	    wl_display_roundtrip(win->display) < 0)
		fail(win);
	if (!win->compositor || !win->shell)
		errx(1, "the compositor has no wl_compositor or xdg_wm_base");
	if (!win->linux_dmabuf)
		errx(1, "the compositor does not import dma-bufs: no zwp_linux_dmabuf_v1");
	if (!win->linear && !win->implicit)
		errx(1, "the compositor imports no linear XRGB8888");
}

static void handle_created(void *data, struct zwp_linux_buffer_params_v1 *params,
			   struct wl_buffer *buffer)
{
	struct window *win = data;

	win->buffer = buffer;
}

static void handle_failed(void *data, struct zwp_linux_buffer_params_v1 *params)
{
	struct window *win = data;

	win->refused = true;
}

static const struct zwp_linux_buffer_params_v1_listener params_listener = {
	.created = handle_created,
	.failed = handle_failed,
};

void window_import(struct window *win, int dmabuf, __u32 offset, __u32 width, __u32 height)
{
	__u64 modifier = win->linear ? DRM_FORMAT_MOD_LINEAR : DRM_FORMAT_MOD_INVALID;
	struct zwp_linux_buffer_params_v1 *params;
	struct wl_buffer *shown = win->buffer;

	win->buffer = NULL;
	params = zwp_linux_dmabuf_v1_create_params(win->linux_dmabuf);
	zwp_linux_buffer_params_v1_add_listener(params, &params_listener, win);
	zwp_linux_buffer_params_v1_add(params, dmabuf, 0, offset, width * 4,
				       modifier >> 32, (__u32)modifier);
	zwp_linux_buffer_params_v1_create(params, width, height, DRM_FORMAT_XRGB8888, 0);
	while (!win->buffer && !win->refused)
		dispatch(win);
	if (win->refused)
		errx(1, "the compositor cannot import the dma-buf");
	zwp_linux_buffer_params_v1_destroy(params);
	if (shown)
		wl_buffer_destroy(shown);
}

static void handle_surface(void *data, struct xdg_surface *surface, __u32 serial)
{
	struct window *win = data;

	xdg_surface_ack_configure(surface, serial);
	win->configured = true;
}

static const struct xdg_surface_listener surface_listener = {
	.configure = handle_surface,
};

static void handle_toplevel(void *data, struct xdg_toplevel *toplevel,
			    __s32 width, __s32 height, struct wl_array *states)
{
}

static void handle_close(void *data, struct xdg_toplevel *toplevel)
{
	errx(1, "the window was closed");
}

static const struct xdg_toplevel_listener toplevel_listener = {
	.configure = handle_toplevel,
	.close = handle_close,
};

void window_open(struct window *win)
{
	struct xdg_surface *surface;
	struct xdg_toplevel *toplevel;

	win->surface = wl_compositor_create_surface(win->compositor);
	surface = xdg_wm_base_get_xdg_surface(win->shell, win->surface);
	xdg_surface_add_listener(surface, &surface_listener, win);
	toplevel = xdg_surface_get_toplevel(surface);
	xdg_toplevel_add_listener(toplevel, &toplevel_listener, win);
	xdg_toplevel_set_title(toplevel, "udmabuf");
	wl_surface_commit(win->surface);
	while (!win->configured)
		dispatch(win);
}

static void handle_done(void *data, struct wl_callback *callback, __u32 time)
{
	struct window *win = data;

	wl_callback_destroy(callback);
	win->drawn = true;
}

static const struct wl_callback_listener frame_listener = {
	.done = handle_done,
};

void window_commit(struct window *win)
{
	struct wl_callback *frame = wl_surface_frame(win->surface);

	wl_callback_add_listener(frame, &frame_listener, win);
	/* Attach the same buffer again: Weston ignores damage otherwise. */
	wl_surface_attach(win->surface, win->buffer, 0, 0);
	wl_surface_damage_buffer(win->surface, 0, 0, INT32_MAX, INT32_MAX);
	win->drawn = false;
	wl_surface_commit(win->surface);
	while (!win->drawn)
		dispatch(win);
}

void window_wait_for_input(struct window *win)
{
	struct pollfd fds[] = {
		{ .fd = STDIN_FILENO, .events = POLLIN },
		{ .fd = wl_display_get_fd(win->display), .events = POLLIN },
	};

	while (!fds[0].revents) {
		if (wl_display_dispatch_pending(win->display) < 0 ||
		    wl_display_flush(win->display) < 0)
			fail(win);
		if (poll(fds, 2, -1) < 0)
			err(1, "poll");
		if (fds[1].revents)
			dispatch(win);
	}
}

void window_disconnect(struct window *win)
{
	wl_display_disconnect(win->display);
}
