// SPDX-License-Identifier: GPL-2.0-only
/*
 * Common part of the sample programs: a guest's framebuffer in malloc'ed memory,
 * in many pieces, which are single pages and parts of huge pages in random order.
 * UDMABUF_CREATE makes one dma-buf from them. show_frames() of the program shows
 * two frames of it.
 *
 * usage: PROGRAM [-u UID] [1|2]
 *
 * After each frame the program prints "frame N shown" and waits for a line on
 * stdin. It prints findings as name=value; as root also about physical memory.
 * With "-u UID" root counts pages, and that user does the rest.
 *
 * With a frame number as its argument the program shows no frame, but prints
 * that frame as a PPM picture, drawn into contiguous memory.
 */
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/udmabuf.h>

#include "emulator.h"

#define SLOT_PAGES	16	/* a slot of a huge page has at most one piece */
#define MAX_HUGE_PIECES	60

#define PAGEMAP_PRESENT	((__u64)1 << 63)
#define PAGEMAP_PFN	(((__u64)1 << 55) - 1)
#define KPF_THP		((__u64)1 << 22)

static size_t page_size;
static unsigned int npages;

/* Returns the same numbers in each run, so that the picture is always the same. */
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

/* Chooses the pieces: each is a single page, or 2 to 9 pages of a huge page. */
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

/* Returns malloc'ed memory with all pages present. */
static char *allocate(size_t align, size_t size, int advice)
{
	char *p = checked(aligned_alloc(align, size));

	if (madvise(p, size, advice))
		err(1, "madvise");
	memset(p, 0, size);
	return p;
}

/* Assigns memory to each piece of the plan. */
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
		else	/* every second page, so that no two are adjacent */
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
		err(1, "cannot read /proc/self/pagemap or /proc/kpageflags");
	return entry;
}

/*
 * Prints the number of physically contiguous runs, and verifies that the parts of
 * huge pages are as planned.
 */
static void report_physical(const struct picture *pic, int pagemap, int flags)
{
	unsigned int i, runs = 0, huge = 0;
	__u64 pfn, next = 0;

	for (i = 0; i < npages; i++) {
		pfn = read_entry(pagemap, (uintptr_t)pic->page[i] / page_size);
		if (!(pfn & PAGEMAP_PRESENT) || !(pfn & PAGEMAP_PFN))
			errx(1, "no physical address in /proc/self/pagemap (try: as root)");
		pfn &= PAGEMAP_PFN;
		runs += pfn != next;
		huge += !!(read_entry(flags, pfn) & KPF_THP);
		next = pfn + 1;
	}
	if (huge != huge_pages(pic))
		errx(1, "%u pages are parts of huge pages, expected %u", huge,
		     huge_pages(pic));
	printf("pages=%u\nhuge=%u\nruns=%u\n", npages, huge, runs);
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
		err(1, "cannot open /dev/udmabuf");
	dmabuf = ioctl(dev, UDMABUF_CREATE, create);
	if (dmabuf < 0)
		err(1, "UDMABUF_CREATE");
	printf("iovecs=%u\n", pic->npieces);
	close(dev);
	free(create);
	return dmabuf;
}

/*
 * Verifies that the dma-buf is not a copy: stores to each page through the memory
 * must show in the mapping of the dma-buf, and vice versa. Does not call
 * DMA_BUF_IOCTL_SYNC, which might transfer the bytes.
 */
static void check_shared(const struct picture *pic, const char *map)
{
	unsigned int i;

	for (i = 0; i < npages; i++) {
		__u32 *ours = pic->page[i], *theirs = (__u32 *)(map + i * page_size);

		__atomic_store_n(ours, ~i, __ATOMIC_SEQ_CST);
		if (__atomic_load_n(theirs, __ATOMIC_SEQ_CST) != ~i)
			errx(1, "page %u: the dma-buf does not show a store to the memory", i);
		__atomic_store_n(theirs, i, __ATOMIC_SEQ_CST);
		if (__atomic_load_n(ours, __ATOMIC_SEQ_CST) != i)
			errx(1, "page %u: the memory does not show a store to the dma-buf", i);
	}
	printf("shared=%u\n", npages);
}

void check_same(const struct emulator *emu)
{
	unsigned int i;

	for (i = 0; i < npages; i++)
		if (memcmp(emu->pic.page[i], emu->map + i * page_size, page_size))
			errx(1, "page %u: the bytes of the dma-buf and of the memory differ", i);
}

void say_shown(int frame)
{
	printf("frame %d shown\n", frame);
}

void wait_for_reader(int frame)
{
	char line[16];

	if (!fgets(line, sizeof(line), stdin))
		errx(1, "frame %d: end of file on stdin, expected a line", frame);
}

/* Returns the number of pages pinned in the system. */
static long pinned(void)
{
	FILE *f = fopen("/proc/sys/vm/stat_refresh", "r");
	long value, count = 0;
	char name[64];

	/* Reading it adds counts still held by each CPU. */
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

/* Runs as user @uid. Opens files for findings first, since only root may open them. */
static void emulate(struct emulator *emu, uid_t uid, bool findings)
{
	int pagemap = -1, flags = -1;

	if (findings) {
		pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
		flags = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
		if (pagemap < 0 || flags < 0)
			err(1, "cannot open /proc/self/pagemap and /proc/kpageflags");
	}
	if (setuid(uid))
		err(1, "cannot become user %u", uid);

	scatter(&emu->pic);
	emu->dmabuf = create_dmabuf(&emu->pic);
	if (findings) {
		report_physical(&emu->pic, pagemap, flags);
		raise(SIGSTOP);	/* until the parent has counted */
	}

	emu->map = mmap(NULL, npages * page_size, PROT_READ | PROT_WRITE,
			MAP_SHARED, emu->dmabuf, 0);
	if (emu->map == MAP_FAILED)
		err(1, "cannot map the dma-buf");
	check_shared(&emu->pic, emu->map);
	show_frames(emu);
}

/* Runs the emulator in a child, and verifies that no page is pinned after its exit. */
static int run(struct emulator *emu, uid_t uid)
{
	bool findings = !geteuid();
	long before = findings ? pinned() : 0, left;
	int status, tries = 600;
	pid_t child = fork();

	if (child < 0)
		err(1, "fork");
	if (!child) {
		emulate(emu, uid, findings);
		exit(0);
	}
	if (waitpid(child, &status, WUNTRACED) != child)
		err(1, "waitpid");
	if (WIFSTOPPED(status)) {
		printf("pinned=%ld\n", pinned() - before);
		kill(child, SIGCONT);
		if (waitpid(child, &status, 0) != child)
			err(1, "waitpid");
	}
	if (status)
		return 1;
	if (!findings)
		return 0;
	/* An importer may keep the dma-buf for a while. */
	printf("ended\n");
	while ((left = pinned() - before) && --tries)
		usleep(100000);
	printf("left=%ld\n", left);
	return 0;
}

int main(int argc, char **argv)
{
	struct emulator emu = {
		.pic = { .width = 800, .height = 600, .story = &story },
	};
	uid_t uid = geteuid();
	int option, frame;

	while ((option = getopt(argc, argv, "u:")) != -1) {
		if (option != 'u')
			return 2;
		uid = atoi(optarg);
	}
	frame = argv[optind] ? atoi(argv[optind++]) : 0;
	if (argv[optind] || frame < 0 || frame > 2)
		errx(2, "usage: %s [-u UID] [1|2]", argv[0]);

	page_size = sysconf(_SC_PAGESIZE);
	npages = (picture_bytes(&emu.pic) + page_size - 1) / page_size;
	plan(&emu.pic);
	if (frame)
		return picture_print(&emu.pic, frame) ? 1 : 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	emu.pic.page = checked(calloc(npages, sizeof(*emu.pic.page)));
	emu.pic.page_pixels = page_size / sizeof(__u32);
	return run(&emu, uid);
}
