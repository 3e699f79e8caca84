// SPDX-License-Identifier: GPL-2.0-only
/*
 * The program in demo-chain's guest: shows a picture in the scattered memory of
 * samples/udmabuf/emulator.c. The guest's virtio-gpu imports the dma-buf and scans it
 * out. The program draws the second frame by stores to that memory, and then calls
 * DIRTYFB, which makes virtio-gpu send one RESOURCE_FLUSH and no pixels.
 */
#include <err.h>
#include <stdio.h>
#include <sys/ioctl.h>

#include <drm/drm.h>

#include "display.h"
#include "emulator.h"

const struct story story = {
	.program = "./chain   (in a guest)",
	.lines = {
		{
			"malloc'ed memory, %u pieces:",
			"a dma-buf in the guest, one in",
			"the host, a texture of QEMU's",
			"window in Weston.",
		}, {
			"The same %u pieces. Stores by",
			"a program in the guest and one",
			"update call: the texture is",
			"that very memory.",
		},
	},
};

void show_frames(struct emulator *emu)
{
	struct drm_prime_handle prime = { .fd = emu->dmabuf };
	const struct picture *pic = &emu->pic;
	struct display d;

	picture_draw(pic, 1);
	check_same(emu);
	if (display_open(&d, "/dev/dri/card0"))
		err(1, "/dev/dri/card0");
	printf("driver=%s\n", d.driver);
	if (display_find_mode(&d, pic->width, pic->height))
		err(1, "%s: no mode %dx%d", d.driver, pic->width, pic->height);
	if (ioctl(d.fd, DRM_IOCTL_PRIME_FD_TO_HANDLE, &prime))
		err(1, "%s: cannot import the dma-buf", d.driver);
	display_show(&d, prime.handle);
	display_update(&d);
	say_shown(1);
	wait_for_reader(1);

	picture_draw(pic, 2);
	display_update(&d);
	say_shown(2);
	wait_for_reader(2);
	check_same(emu);
}
