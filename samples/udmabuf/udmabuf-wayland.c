// SPDX-License-Identifier: GPL-2.0-only
/*
 * How an emulator shows its guest's framebuffer in a window of a Wayland desktop
 * without a copy: the dma-buf becomes a wl_buffer by linux-dmabuf, not by shared
 * memory. The second frame is drawn, like a guest does, by stores to the buffer
 * while it is shown, and then reported as damage.
 */
#include <err.h>
#include <errno.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <linux/dma-buf.h>

#include "emulator.h"
#include "window.h"

#define MAX_TRIES	100

const struct story story = {
	.program = "udmabuf-wayland",
	.lines = {
		{
			"Drawn in malloc'ed memory.",
			"%u ranges, one dma-buf.",
			"A Wayland compositor takes",
			"it as a window's wl_buffer.",
		}, {
			"The same %u ranges, now",
			"with other bytes in them:",
			"CPU stores, then damage and",
			"commit. The same wl_buffer.",
		},
	},
};

static void import_dmabuf(struct window *win, const struct emulator *emu)
{
	struct stat st;

	window_import(win, emu->dmabuf, 0, emu->pic.width, emu->pic.height);
	if (fstat(emu->dmabuf, &st))
		err(1, "fstat");
	printf("modifier=%s\ninode=%lu\nsize=%lu\n",
	       win->linear ? "LINEAR" : "INVALID", (unsigned long)st.st_ino,
	       (unsigned long)st.st_size);
}

static void cpu_access(int dmabuf, __u64 flags)
{
	struct dma_buf_sync sync = { .flags = flags | DMA_BUF_SYNC_WRITE };
	int tries = MAX_TRIES;

	while (ioctl(dmabuf, DMA_BUF_IOCTL_SYNC, &sync))
		if ((errno != EINTR && errno != EAGAIN) || !--tries)
			err(1, "DMA_BUF_IOCTL_SYNC");
}

static void draw(struct emulator *emu, int frame)
{
	cpu_access(emu->dmabuf, DMA_BUF_SYNC_START);
	picture_draw(&emu->pic, frame);
	cpu_access(emu->dmabuf, DMA_BUF_SYNC_END);
	check_same(emu);
}

static void let_look(struct window *win, int frame)
{
	say_shown(frame);
	window_wait_for_input(win);
	wait_for_reader(frame);
}

void show_frames(struct emulator *emu)
{
	struct window win = { 0 };

	window_connect(&win);
	draw(emu, 1);
	import_dmabuf(&win, emu);
	window_open(&win);
	window_commit(&win);
	let_look(&win, 1);

	draw(emu, 2);
	window_commit(&win);
	let_look(&win, 2);
	check_same(emu);
	window_disconnect(&win);
}
