/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * An emulator with a guest's framebuffer in scattered memory, and one dma-buf made
 * from it. emulator.c has main(). Each program shows the dma-buf in its own way.
 */
#ifndef UDMABUF_SAMPLE_EMULATOR_H
#define UDMABUF_SAMPLE_EMULATOR_H

#include "picture.h"

struct emulator {
	struct picture pic;
	int dmabuf;
	const char *map;	/* the dma-buf, mapped */
};

/* Defined by the program: the text in the picture, and a function to show both frames. */
extern const struct story story;
void show_frames(struct emulator *emu);

/* Exits with an error unless the dma-buf has the same bytes as the memory. */
void check_same(const struct emulator *emu);

/* Print that @frame is shown; wait for a line on stdin. */
void say_shown(int frame);
void wait_for_reader(int frame);

#endif /* UDMABUF_SAMPLE_EMULATOR_H */
