// SPDX-License-Identifier: GPL-2.0-only
/*
 * Draws a desktop with two windows. Uses only integers, so that a frame has the same
 * pixels on all machines.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "font.h"
#include "picture.h"

#define GLYPH_SCALE	2
#define LINE_HEIGHT	22
#define TITLE_HEIGHT	26
#define PANEL_HEIGHT	30
#define WHITE		0xffffff

#define CELL		10	/* pixels per page in the memory map */
#define CELLS_PER_ROW	32

struct theme {
	__u32 sky_top, sky_bottom, hill_far, hill_near, light, panel;
	__u32 title_left, title_right, paper, ink, huge, single;
};

static const struct theme themes[] = {
	{	/* day */
		.sky_top = 0x2f7fd0, .sky_bottom = 0xcfe8f7,
		.hill_far = 0x6fa98a, .hill_near = 0x3f7f4f,
		.light = 0xffe27a, .panel = 0x24364a,
		.title_left = 0x2b5c9e, .title_right = 0x5f9bdc,
		.paper = 0xfbfaf5, .ink = 0x20303c,
		.huge = 0x3a7fc4, .single = 0xf2a03d,
	}, {	/* night */
		.sky_top = 0x0b1030, .sky_bottom = 0x5b3a6e,
		.hill_far = 0x2c2a4f, .hill_near = 0x161a34,
		.light = 0xf3f0dc, .panel = 0x0d1220,
		.title_left = 0x6a2c70, .title_right = 0xd1698f,
		.paper = 0x1c2030, .ink = 0xe6e2f0,
		.huge = 0x8f6fd8, .single = 0xf07f8f,
	},
};

static __u32 *pixel(const struct picture *pic, int x, int y)
{
	unsigned int i = y * pic->width + x;

	return &pic->page[i / pic->page_pixels][i % pic->page_pixels];
}

static __u32 mix(__u32 from, __u32 to, int n, int of)
{
	__u32 out = 0;
	int shift;

	for (shift = 0; shift < 24; shift += 8) {
		int a = (from >> shift) & 0xff, b = (to >> shift) & 0xff;

		out |= (__u32)(a + (b - a) * n / of) << shift;
	}
	return out;
}

static void put(const struct picture *pic, int x, int y, __u32 color)
{
	if (x >= 0 && x < pic->width && y >= 0 && y < pic->height)
		*pixel(pic, x, y) = color;
}

static void box(const struct picture *pic, int x, int y, int w, int h,
		__u32 color)
{
	int i, j;

	for (j = 0; j < h; j++)
		for (i = 0; i < w; i++)
			put(pic, x + i, y + j, color);
}

/* Mixes the present pixels with a color. */
static void tint(const struct picture *pic, int x, int y, int w, int h,
		 __u32 color, int percent)
{
	int i, j;

	for (j = y; j < y + h && j < pic->height; j++)
		for (i = x; i < x + w && i < pic->width; i++)
			put(pic, i, j, mix(*pixel(pic, i, j), color, percent, 100));
}

static void disc(const struct picture *pic, int x, int y, int r, __u32 color)
{
	int i, j;

	for (j = -r; j <= r; j++)
		for (i = -r; i <= r; i++)
			if (i * i + j * j <= r * r)
				put(pic, x + i, y + j, color);
}

static void glyph(const struct picture *pic, int x, int y, __u32 color, char c)
{
	const char *at = strchr(font_chars, c);
	const char * const *rows;
	int i, j, column;

	if (c == ' ' || !at)
		return;

	rows = font_rows[(at - font_chars) / FONT_BAND];
	column = (at - font_chars) % FONT_BAND * FONT_WIDTH;
	for (j = 0; j < FONT_HEIGHT; j++)
		for (i = 0; i < FONT_WIDTH; i++)
			if (rows[j][column + i] == '#')
				box(pic, x + i * GLYPH_SCALE, y + j * GLYPH_SCALE,
				    GLYPH_SCALE, GLYPH_SCALE, color);
}

static void text(const struct picture *pic, int x, int y, __u32 color,
		 const char *line)
{
	for (; *line; line++, x += FONT_WIDTH * GLYPH_SCALE)
		glyph(pic, x, y, color, *line);
}

static void sky(const struct picture *pic, const struct theme *t, bool night)
{
	__u32 seed = 7;
	int y, i;

	for (y = 0; y < pic->height; y++)
		box(pic, 0, y, pic->width, 1,
		    mix(t->sky_top, t->sky_bottom, y, pic->height));

	for (i = 0; night && i < 150; i++) {
		seed = seed * 1664525 + 1013904223;
		box(pic, (seed >> 8) % pic->width, (seed >> 20) % (pic->height * 2 / 3),
		    1 + i % 2, 1 + i % 2, mix(t->sky_top, WHITE, 40 + i % 60, 100));
	}

	for (i = 5; i >= 0; i--)	/* the sun or the moon and its glow */
		disc(pic, pic->width - 110, 110, 50 + i * 9,
		     mix(t->light, t->sky_top, i ? 60 + i * 6 : 0, 100));
	if (night)
		disc(pic, pic->width - 92, 98, 44, mix(t->sky_top, t->light, 30, 100));
}

/* A row of round hills, each a parabola. */
static void hills(const struct picture *pic, int top, int width, int shift,
		  __u32 color)
{
	int x, y;

	for (x = 0; x < pic->width; x++) {
		int d = (x + shift) % width - width / 2;

		y = top + d * d * 240 / (width * width);
		box(pic, x, y, 1, pic->height - y, color);
	}
}

static void window(const struct picture *pic, const struct theme *t,
		   int x, int y, int w, int h, const char *title)
{
	int i;

	for (i = 1; i <= 4; i++)	/* the shadow */
		tint(pic, x + 2 * i, y + 2 * i, w, h, 0, 12);
	for (i = 0; i < w; i++)
		box(pic, x + i, y, 1, TITLE_HEIGHT,
		    mix(t->title_left, t->title_right, i, w));
	box(pic, x, y + TITLE_HEIGHT, w, h - TITLE_HEIGHT, t->paper);
	text(pic, x + 12, y + 6, WHITE, title);
	disc(pic, x + w - 16, y + 13, 6, 0xf0625a);
	disc(pic, x + w - 36, y + 13, 6, 0xf5c04e);
	disc(pic, x + w - 56, y + 13, 6, 0x62c655);
}

static void story(const struct picture *pic, const struct theme *t, bool night,
		  int x, int y)
{
	const char * const *lines = pic->story->lines[night];
	char line[80];
	int i;

	window(pic, t, x, y, 400, 170, night ? "frame 2" : "frame 1");
	snprintf(line, sizeof(line), "$ %s", pic->story->program);
	text(pic, x + 16, y + 38, t->single, line);
	for (i = 0; i < STORY_LINES; i++) {
		snprintf(line, sizeof(line), lines[i], pic->npieces);
		text(pic, x + 16, y + 66 + i * LINE_HEIGHT, t->ink, line);
	}
}

/* Draws a cell for each page of the framebuffer, in order. */
static void memory_map(const struct picture *pic, const struct theme *t,
		       int x, int y)
{
	unsigned int i, j, n = 0;

	window(pic, t, x, y, 352, 250, "its memory");
	for (i = 0; i < pic->npieces; i++) {
		__u32 color = pic->piece[i].huge ? t->huge : t->single;

		for (j = 0; j < pic->piece[i].npages; j++, n++)
			box(pic, x + 16 + n % CELLS_PER_ROW * CELL,
			    y + 38 + n / CELLS_PER_ROW * CELL,
			    /* no gap between pages of one range */
			    CELL - (j + 1 == pic->piece[i].npages), CELL - 1,
			    color);
	}
	box(pic, x + 16, y + 200, 14, 14, t->single);
	text(pic, x + 38, y + 200, t->ink, "single pages");
	box(pic, x + 16, y + 222, 14, 14, t->huge);
	text(pic, x + 38, y + 222, t->ink, "parts of huge pages");
}

static void panel(const struct picture *pic, const struct theme *t, bool night)
{
	int y = pic->height - PANEL_HEIGHT;

	tint(pic, 0, y, pic->width, PANEL_HEIGHT, t->panel, 85);
	box(pic, 10, y + 6, 18, 18, t->single);
	box(pic, 14, y + 10, 10, 10, t->panel);
	text(pic, 40, y + 8, WHITE, "udmabuf");
	text(pic, pic->width - 76, y + 8, WHITE, night ? "21:30" : "09:15");
}

static void pointer(const struct picture *pic, int x, int y)
{
	static const char * const rows[] = {
		"#",
		"##",
		"#.#",
		"#..#",
		"#...#",
		"#....#",
		"#.....#",
		"#......#",
		"#.......#",
		"#........#",
		"#.....#####",
		"#..#..#",
		"#.# #..#",
		"##  #..#",
		"#    #..#",
		"     #..#",
		"      ##",
		NULL
	};
	unsigned int i, j;

	for (j = 0; rows[j]; j++)
		for (i = 0; rows[j][i]; i++)
			if (rows[j][i] != ' ')
				put(pic, x + i, y + j,
				    rows[j][i] == '#' ? 0 : WHITE);
}

void picture_draw(const struct picture *pic, int frame)
{
	const struct theme *t = &themes[frame - 1];
	bool night = frame == 2;

	sky(pic, t, night);
	hills(pic, pic->height - 220, 420, 130, t->hill_far);
	hills(pic, pic->height - 140, 560, 400, t->hill_near);
	if (pic->npieces)
		memory_map(pic, t, night ? 60 : 400, night ? 60 : 290);
	story(pic, t, night, night ? 350 : 60, night ? 350 : 80);
	panel(pic, t, night);
	pointer(pic, night ? 520 : 300, night ? 300 : 290);
}

int picture_print(struct picture *pic, int frame)
{
	unsigned int i, npixels = pic->width * pic->height;
	__u32 *pixels = calloc(npixels, sizeof(*pixels));

	if (!pixels)
		return -1;
	pic->page = &pixels;
	pic->page_pixels = npixels;
	picture_draw(pic, frame);

	printf("P6\n%d %d\n255\n", pic->width, pic->height);
	for (i = 0; i < npixels; i++) {
		putchar(pixels[i] >> 16 & 0xff);
		putchar(pixels[i] >> 8 & 0xff);
		putchar(pixels[i] & 0xff);
	}
	free(pixels);
	return ferror(stdout) || fflush(stdout) ? -1 : 0;
}
