// SPDX-License-Identifier: GPL-2.0-only
/* Makes one dma-buf of two pieces of memory and looks at it from both sides. */
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/dma-buf.h>
#include <linux/udmabuf.h>

static void cpu_access(int dmabuf, __u64 flags)
{
	struct dma_buf_sync sync = { .flags = flags };

	if (ioctl(dmabuf, DMA_BUF_IOCTL_SYNC, &sync))
		err(1, "DMA_BUF_IOCTL_SYNC");
}

int main(int argc, char **argv)
{
	const char *device = argc > 1 ? argv[1] : "/dev/udmabuf";
	size_t page = sysconf(_SC_PAGESIZE);
	char *map, *memory = aligned_alloc(page, 3 * page);
	struct udmabuf_create *create;
	int dev, dmabuf;

	create = calloc(1, sizeof(*create) + 2 * sizeof(create->iovs[0]));
	if (!memory || !create)
		err(1, "out of memory");

	/* The third page first, then the first: any ranges in any order. */
	create->flags = UDMABUF_FLAGS_CLOEXEC;
	create->niov = 2;
	create->iovs[0].base = (uintptr_t)(memory + 2 * page);
	create->iovs[0].len = page;
	create->iovs[1].base = (uintptr_t)memory;
	create->iovs[1].len = page;

	dev = open(device, O_RDWR);
	if (dev < 0)
		err(1, "%s", device);
	dmabuf = ioctl(dev, UDMABUF_CREATE, create);
	if (dmabuf < 0)
		err(1, "UDMABUF_CREATE");
	map = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_SHARED, dmabuf, 0);
	if (map == MAP_FAILED)
		err(1, "mmap");

	cpu_access(dmabuf, DMA_BUF_SYNC_START | DMA_BUF_SYNC_RW);
	snprintf(memory + 2 * page, page, "written by the owner");
	snprintf(map + page, page, "written through the dma-buf");
	printf("dma-buf: %s\nmemory: %s\n", map, memory);
	cpu_access(dmabuf, DMA_BUF_SYNC_END | DMA_BUF_SYNC_RW);
	return strcmp(map, memory + 2 * page) || strcmp(memory, map + page);
}
