/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The picture that the emulators show: a desktop by day (frame 1) and by night
 * (frame 2), drawn into memory that need not be in one piece.
 */
#ifndef UDMABUF_SAMPLE_PICTURE_H
#define UDMABUF_SAMPLE_PICTURE_H

#include <stdbool.h>

#include <linux/types.h>

#define PICTURE_WIDTH	800
#define PICTURE_HEIGHT	600
#define PICTURE_PIXELS	(PICTURE_WIDTH * PICTURE_HEIGHT)
#define PICTURE_BYTES	(PICTURE_PIXELS * 4)

/* A stretch of the framebuffer: pages that are taken from one place. */
struct piece {
	unsigned int npages;
	bool huge;		/* from a huge page, else a single page */
};

/* What the picture says of the program; %u is the number of pieces. */
#define STORY_LINES	4

struct story {
	const char *program;
	const char *lines[2][STORY_LINES];	/* of each frame */
};

/*
 * Pixels are 0x00RRGGBB. Pixel i of the picture is
 * page[i / page_pixels][i % page_pixels].
 */
struct picture {
	__u32 **page;
	unsigned int page_pixels;
	const struct piece *piece;	/* drawn as a map of the memory */
	unsigned int npieces;
	const struct story *story;
};

void picture_draw(const struct picture *pic, int frame);

#endif /* UDMABUF_SAMPLE_PICTURE_H */
