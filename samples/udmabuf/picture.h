/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The picture of the sample programs: a desktop by day (frame 1) and by night
 * (frame 2), drawn into memory that may be scattered.
 */
#ifndef UDMABUF_SAMPLE_PICTURE_H
#define UDMABUF_SAMPLE_PICTURE_H

#include <stdbool.h>
#include <stddef.h>

#include <linux/types.h>

/* Consecutive pages of the framebuffer that are contiguous in memory. */
struct piece {
	unsigned int npages;
	bool huge;		/* from a huge page, else a single page */
};

/* The text in the picture; %u is the number of pieces. */
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
	int width, height;	/* at least 800 and 600 */
	__u32 **page;
	unsigned int page_pixels;
	const struct piece *piece;	/* if not NULL, drawn as a map of the memory */
	unsigned int npieces;
	const struct story *story;
};

void picture_draw(const struct picture *pic, int frame);

/* Draws into contiguous memory, and prints the picture as PPM. */
int picture_print(struct picture *pic, int frame);

static inline size_t picture_bytes(const struct picture *pic)
{
	return (size_t)pic->width * pic->height * sizeof(__u32);
}

#endif /* UDMABUF_SAMPLE_PICTURE_H */
