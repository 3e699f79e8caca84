/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What an emulator has before it shows anything: a guest's screen in scattered
 * memory and one dma-buf of it. main() is in emulator.c; each program here is
 * another way to show that dma-buf.
 */
#ifndef UDMABUF_SAMPLE_EMULATOR_H
#define UDMABUF_SAMPLE_EMULATOR_H

#include "picture.h"

struct emulator {
	struct picture pic;
	int dmabuf;
	const char *map;	/* the dma-buf, mapped */
};

/* By the program: what the picture says, and showing both of its frames. */
extern const struct story story;
void show_frames(struct emulator *emu);

/* By emulator.c: fails unless the dma-buf has the bytes of the memory. */
void check_same(const struct emulator *emu);

/* Frame @frame can be looked at; returns when somebody did. */
void say_shown(int frame);
void wait_for_reader(int frame);

#endif /* UDMABUF_SAMPLE_EMULATOR_H */
