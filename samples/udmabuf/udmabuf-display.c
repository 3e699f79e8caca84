// SPDX-License-Identifier: GPL-2.0-only
/*
 * What an emulator does to show its guest's screen without copying it.
 *
 * The picture lies in malloc'ed memory, in many pieces: single pages and parts
 * of huge pages, in no order. UDMABUF_CREATE makes one dma-buf of them, a
 * display driver imports that by PRIME and shows it. The second frame is drawn
 * by plain stores; the display's update call is all that follows.
 *
 * After each frame it prints "frame N shown" and waits for a line on stdin.
 * Findings are printed as name=value. Reading physical addresses needs root.
 *
 * With a frame number as its argument it shows nothing, but prints that frame
 * as a PPM picture, drawn into ordinary memory in one piece.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <drm/drm.h>
#include <drm/drm_fourcc.h>
#include <drm/drm_mode.h>
#include <linux/udmabuf.h>

#include "picture.h"

#define SLOT_PAGES	16	/* one piece of a huge page lies in one slot */
#define MAX_HUGE_PIECES	60
#define MAX_CARDS	8
#define MAX_MODES	256

#define PAGEMAP_PRESENT	((__u64)1 << 63)
#define PAGEMAP_PFN	(((__u64)1 << 55) - 1)
#define KPF_THP		((__u64)1 << 22)

struct display {
	int fd;
	char driver[32];
	__u32 handle;	/* the dma-buf, as the driver knows it */
	__u32 framebuffer;
	__u32 crtc;
	__u32 connector;
	struct drm_mode_modeinfo mode;
};

static size_t page_size;
static unsigned int npages;

/* Always the same numbers, so that the picture is always the same. */
static __u32 chance(void)
{
	static __u32 seed = 1;

	seed = seed * 1664525 + 1013904223;
	return seed >> 8;
}

static void *checked(void *p)
{
	if (!p)
		err(1, "out of memory");
	return p;
}

/* Which pages come from where: one page, or 2 to 9 of a huge page. */
static void plan(struct picture *pic)
{
	struct piece *piece = checked(calloc(npages, sizeof(*piece)));
	unsigned int done = 0, huge = 0;

	for (pic->npieces = 0; done < npages; pic->npieces++) {
		struct piece *p = &piece[pic->npieces];

		p->npages = 1;
		p->huge = chance() % 5 == 0 && huge < MAX_HUGE_PIECES;
		if (p->huge) {
			huge++;
			p->npages = 2 + chance() % 8;
			if (p->npages > npages - done)
				p->npages = npages - done;
		}
		done += p->npages;
	}
	pic->piece = piece;
}

static unsigned int *shuffled(unsigned int count)
{
	unsigned int *order = checked(calloc(count, sizeof(*order)));
	unsigned int i;

	for (i = 0; i < count; i++) {
		unsigned int j = chance() % (i + 1);

		order[i] = order[j];
		order[j] = i;
	}
	return order;
}

static size_t huge_page_size(void)
{
	FILE *f = fopen("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", "r");
	size_t size;

	if (!f || fscanf(f, "%zu", &size) != 1)
		errx(1, "this kernel has no transparent huge pages");
	fclose(f);
	return size;
}

/* malloc'ed memory that is really there. */
static char *allocate(size_t align, size_t size, int advice)
{
	char *p = checked(aligned_alloc(align, size));

	if (madvise(p, size, advice))
		err(1, "madvise");
	memset(p, 0, size);
	return p;
}

/* Finds the memory for every piece of the plan. */
static void scatter(struct picture *pic)
{
	size_t huge_size = 2 * huge_page_size();
	size_t slot_size = SLOT_PAGES * page_size;
	char *huge = allocate(huge_size / 2, huge_size, MADV_HUGEPAGE);
	char *single = allocate(page_size, 2 * npages * page_size, MADV_NOHUGEPAGE);
	unsigned int *slot = shuffled(huge_size / slot_size);
	unsigned int *page = shuffled(npages);
	unsigned int i, j, n = 0;

	for (i = 0; i < pic->npieces; i++) {
		char *base;

		if (pic->piece[i].huge)
			base = huge + *slot++ * slot_size;
		else	/* every other page, so that no two touch */
			base = single + *page++ * 2 * page_size;
		for (j = 0; j < pic->piece[i].npages; j++)
			pic->page[n++] = (__u32 *)(base + j * page_size);
	}
}

static unsigned int huge_pages(const struct picture *pic)
{
	unsigned int i, n = 0;

	for (i = 0; i < pic->npieces; i++)
		n += pic->piece[i].huge ? pic->piece[i].npages : 0;
	return n;
}

static __u64 read_entry(int fd, __u64 index)
{
	__u64 entry;

	if (pread(fd, &entry, sizeof(entry), index * sizeof(entry)) != sizeof(entry))
		err(1, "cannot read physical addresses");
	return entry;
}

/*
 * Where the pages really are: runs of neighbours, and parts of huge pages just
 * where the picture says so.
 */
static void report_physical(const struct picture *pic)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	int flags = open("/proc/kpageflags", O_RDONLY);
	unsigned int i, runs = 0, huge = 0;
	__u64 pfn, next = 0;

	if (pagemap < 0 || flags < 0)
		err(1, "cannot read physical addresses");
	for (i = 0; i < npages; i++) {
		pfn = read_entry(pagemap, (uintptr_t)pic->page[i] / page_size);
		if (!(pfn & PAGEMAP_PRESENT) || !(pfn & PAGEMAP_PFN))
			errx(1, "cannot read physical addresses");
		pfn &= PAGEMAP_PFN;
		runs += pfn != next;
		huge += !!(read_entry(flags, pfn) & KPF_THP);
		next = pfn + 1;
	}
	if (huge != huge_pages(pic))
		errx(1, "%u pages are parts of huge pages, not %u", huge,
		     huge_pages(pic));
	printf("pages=%u\nhuge=%u\nruns=%u\n", npages, huge, runs);
	close(pagemap);
	close(flags);
}

static int create_dmabuf(const struct picture *pic)
{
	struct udmabuf_create *create;
	unsigned int i, n = 0;
	int dev, dmabuf;

	create = checked(calloc(1, sizeof(*create) +
				pic->npieces * sizeof(create->iovs[0])));
	create->flags = UDMABUF_FLAGS_CLOEXEC;
	create->niov = pic->npieces;
	for (i = 0; i < pic->npieces; i++) {
		create->iovs[i].base = (uintptr_t)pic->page[n];
		create->iovs[i].len = pic->piece[i].npages * page_size;
		n += pic->piece[i].npages;
	}

	dev = open("/dev/udmabuf", O_RDWR);
	if (dev < 0)
		err(1, "/dev/udmabuf");
	dmabuf = ioctl(dev, UDMABUF_CREATE, create);
	if (dmabuf < 0)
		err(1, "UDMABUF_CREATE");
	printf("iovecs=%u\n", pic->npieces);
	close(dev);
	free(create);
	return dmabuf;
}

/*
 * A copy would not follow stores: in each page, store here and load there,
 * then the other way round. No DMA_BUF_IOCTL_SYNC on purpose: nothing but the
 * stores may carry the bytes.
 */
static void check_shared(const struct picture *pic, char *map)
{
	unsigned int i;

	for (i = 0; i < npages; i++) {
		__u32 *ours = pic->page[i], *theirs = (__u32 *)(map + i * page_size);

		__atomic_store_n(ours, ~i, __ATOMIC_SEQ_CST);
		if (__atomic_load_n(theirs, __ATOMIC_SEQ_CST) != ~i)
			errx(1, "page %u: the dma-buf does not show our store", i);
		__atomic_store_n(theirs, i, __ATOMIC_SEQ_CST);
		if (__atomic_load_n(ours, __ATOMIC_SEQ_CST) != i)
			errx(1, "page %u: a store to the dma-buf is lost", i);
	}
	printf("shared=%u\n", npages);
}

static void check_same(const struct picture *pic, const char *map)
{
	unsigned int i;

	for (i = 0; i < npages; i++)
		if (memcmp(pic->page[i], map + i * page_size, page_size))
			errx(1, "page %u: the dma-buf shows other bytes", i);
}

/* Zero-terminated in @d->driver; empty if the device is no DRM device. */
static void get_driver_name(struct display *d)
{
	struct drm_version version = {
		.name_len = sizeof(d->driver) - 1,
		.name = d->driver,
	};

	memset(d->driver, 0, sizeof(d->driver));
	ioctl(d->fd, DRM_IOCTL_VERSION, &version);
}

static int find_mode(struct display *d)
{
	static struct drm_mode_modeinfo modes[MAX_MODES];
	struct drm_mode_card_res res = {
		.crtc_id_ptr = (uintptr_t)&d->crtc,
		.connector_id_ptr = (uintptr_t)&d->connector,
		.count_crtcs = 1,
		.count_connectors = 1,
	};
	struct drm_mode_get_connector get = { 0 };
	unsigned int i;

	if (ioctl(d->fd, DRM_IOCTL_MODE_GETRESOURCES, &res))
		return -1;
	get.connector_id = d->connector;
	if (ioctl(d->fd, DRM_IOCTL_MODE_GETCONNECTOR, &get))	/* probes */
		return -1;
	get = (struct drm_mode_get_connector) {
		.connector_id = d->connector,
		.modes_ptr = (uintptr_t)modes,
		.count_modes = MAX_MODES,
	};
	if (ioctl(d->fd, DRM_IOCTL_MODE_GETCONNECTOR, &get))
		return -1;
	for (i = 0; i < get.count_modes && i < MAX_MODES; i++) {
		d->mode = modes[i];
		if (d->mode.hdisplay == PICTURE_WIDTH &&
		    d->mode.vdisplay == PICTURE_HEIGHT)
			return 0;
	}
	errno = ENOENT;
	return -1;
}

static int import(struct display *d, int dmabuf)
{
	struct drm_prime_handle prime = { .fd = dmabuf };

	if (ioctl(d->fd, DRM_IOCTL_PRIME_FD_TO_HANDLE, &prime))
		return -1;
	d->handle = prime.handle;
	return 0;
}

/* The first display whose driver takes the dma-buf. */
static void open_display(struct display *d, int dmabuf)
{
	char path[32];
	int i;

	for (i = 0; i < MAX_CARDS; i++) {
		snprintf(path, sizeof(path), "/dev/dri/card%d", i);
		d->fd = open(path, O_RDWR | O_CLOEXEC);
		if (d->fd < 0)
			continue;
		get_driver_name(d);
		if (!find_mode(d) && !import(d, dmabuf)) {
			printf("driver=%s\n", d->driver);
			return;
		}
		warn("%s (%s) does not take the buffer", path, d->driver);
		close(d->fd);
	}
	errx(1, "no display takes the buffer");
}

static void show(struct display *d)
{
	struct drm_mode_fb_cmd2 fb = {
		.width = PICTURE_WIDTH,
		.height = PICTURE_HEIGHT,
		.pixel_format = DRM_FORMAT_XRGB8888,
		.handles = { d->handle },
		.pitches = { PICTURE_WIDTH * 4 },
	};
	struct drm_mode_crtc crtc = {
		.set_connectors_ptr = (uintptr_t)&d->connector,
		.count_connectors = 1,
		.crtc_id = d->crtc,
		.mode_valid = 1,
		.mode = d->mode,
	};

	if (ioctl(d->fd, DRM_IOCTL_MODE_ADDFB2, &fb))
		err(1, "%s: cannot make a framebuffer of it", d->driver);
	d->framebuffer = fb.fb_id;
	crtc.fb_id = fb.fb_id;
	if (ioctl(d->fd, DRM_IOCTL_MODE_SETCRTC, &crtc))
		err(1, "%s: cannot set the mode", d->driver);
}

static void update_display(const struct display *d)
{
	struct drm_mode_fb_dirty_cmd dirty = { .fb_id = d->framebuffer };

	if (ioctl(d->fd, DRM_IOCTL_MODE_DIRTYFB, &dirty))
		err(1, "%s: cannot update the display", d->driver);
}

static void wait_for_reader(int frame)
{
	char line[16];

	printf("frame %d shown\n", frame);
	if (!fgets(line, sizeof(line), stdin))
		errx(1, "nobody looked at frame %d", frame);
}

/* Pages that are pinned now, by anyone. */
static long pinned(void)
{
	FILE *f = fopen("/proc/sys/vm/stat_refresh", "r");
	long value, count = 0;
	char name[64];

	/* Without this, what each CPU has counted last is missing. */
	if (!f || fgetc(f) != EOF || fclose(f))
		err(1, "/proc/sys/vm/stat_refresh");
	f = fopen("/proc/vmstat", "r");
	if (!f)
		err(1, "/proc/vmstat");
	while (fscanf(f, "%63s %ld", name, &value) == 2) {
		if (!strcmp(name, "nr_foll_pin_acquired"))
			count += value;
		else if (!strcmp(name, "nr_foll_pin_released"))
			count -= value;
	}
	fclose(f);
	return count;
}

static void emulate(struct picture *pic, long pinned_before)
{
	struct display display;
	int dmabuf;
	char *map;

	scatter(pic);
	dmabuf = create_dmabuf(pic);
	report_physical(pic);
	printf("pinned=%ld\n", pinned() - pinned_before);

	map = mmap(NULL, npages * page_size, PROT_READ | PROT_WRITE, MAP_SHARED,
		   dmabuf, 0);
	if (map == MAP_FAILED)
		err(1, "cannot map the dma-buf");
	check_shared(pic, map);

	picture_draw(pic, 1);
	check_same(pic, map);
	open_display(&display, dmabuf);
	show(&display);
	wait_for_reader(1);

	picture_draw(pic, 2);
	update_display(&display);
	wait_for_reader(2);
	check_same(pic, map);
}

/* Runs in a child, so that its end can be watched. */
static int run(struct picture *pic)
{
	long before = pinned(), left;
	int status, tries = 20;
	pid_t child = fork();

	if (child < 0)
		err(1, "fork");
	if (!child) {
		emulate(pic, before);
		exit(0);
	}
	if (waitpid(child, &status, 0) != child || status)
		return 1;
	while ((left = pinned() - before) && --tries)
		usleep(100000);
	printf("left=%ld\n", left);
	return 0;
}

static int print_ppm(struct picture *pic, int frame)
{
	__u32 *pixels = checked(calloc(PICTURE_PIXELS, sizeof(*pixels)));
	unsigned int i;

	pic->page = &pixels;
	pic->page_pixels = PICTURE_PIXELS;
	picture_draw(pic, frame);

	printf("P6\n%d %d\n255\n", PICTURE_WIDTH, PICTURE_HEIGHT);
	for (i = 0; i < PICTURE_PIXELS; i++) {
		putchar(pixels[i] >> 16 & 0xff);
		putchar(pixels[i] >> 8 & 0xff);
		putchar(pixels[i] & 0xff);
	}
	return ferror(stdout) || fflush(stdout);
}

int main(int argc, char **argv)
{
	struct picture pic = { 0 };
	int frame = argc == 2 ? atoi(argv[1]) : 0;

	page_size = sysconf(_SC_PAGESIZE);
	npages = (PICTURE_BYTES + page_size - 1) / page_size;
	plan(&pic);

	if (frame == 1 || frame == 2)
		return print_ppm(&pic, frame);
	if (argc > 1)
		errx(1, "usage: %s [1|2]", argv[0]);

	setvbuf(stdout, NULL, _IOLBF, 0);
	pic.page = checked(calloc(npages, sizeof(*pic.page)));
	pic.page_pixels = page_size / sizeof(__u32);
	return run(&pic);
}
