// SPDX-License-Identifier: GPL-2.0-only
/*
 * importer PID WIDTH HEIGHT: what a device of the VM sees that imports the dma-buf
 * which that process has open. Prints, as name=value, the number of its dma-bufs and
 * the segments of the last one, and to /out/device.ppm what the device reads there.
 * The device is the one of the selftests' test module.
 */
#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/types.h>

#include "udmabuf_importer.h"

/* The last of the process's dma-bufs; their number in @count. */
static int take_dmabuf(const char *pid, int *count)
{
	char path[64], target[64];
	int pidfd, dmabuf = -1;
	struct dirent *entry;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", atoi(pid));
	dir = opendir(path);
	if (!dir)
		err(1, "%s", path);
	pidfd = syscall(SYS_pidfd_open, atoi(pid), 0);
	if (pidfd < 0)
		err(1, "pidfd_open");
	for (*count = 0; (entry = readdir(dir)); ) {
		ssize_t len = readlinkat(dirfd(dir), entry->d_name, target, sizeof(target) - 1);

		target[len > 0 ? len : 0] = 0;
		if (!strstr(target, "/dmabuf"))
			continue;
		close(dmabuf);
		dmabuf = syscall(SYS_pidfd_getfd, pidfd, atoi(entry->d_name), 0);
		if (dmabuf < 0)
			err(1, "pidfd_getfd");
		++*count;
	}
	closedir(dir);
	close(pidfd);
	return dmabuf;
}

static void print_picture(const char *path, const __u32 *pixels, int width, int height)
{
	FILE *f = fopen(path, "w");
	int i;

	if (!f)
		err(1, "%s", path);
	fprintf(f, "P6\n%d %d\n255\n", width, height);
	for (i = 0; i < width * height; i++) {
		fputc(pixels[i] >> 16 & 0xff, f);
		fputc(pixels[i] >> 8 & 0xff, f);
		fputc(pixels[i] & 0xff, f);
	}
	if (ferror(f) || fclose(f))
		err(1, "%s", path);
}

int main(int argc, char **argv)
{
	struct udmabuf_importer_attach attach = { 0 };
	struct udmabuf_importer_map map = { .dir = IMPORTER_TO_DEVICE };
	struct udmabuf_importer_io io = { 0 };
	int width, height, device, count;
	__u32 *pixels;

	if (argc != 4)
		errx(2, "usage: %s PID WIDTH HEIGHT", argv[0]);
	width = atoi(argv[2]);
	height = atoi(argv[3]);
	pixels = calloc(width * height, sizeof(*pixels));
	if (!pixels)
		err(1, "out of memory");
	attach.fd = take_dmabuf(argv[1], &count);
	printf("qemu_dmabufs=%d\n", count);
	device = open(UDMABUF_IMPORTER_DEV, O_RDWR | O_CLOEXEC);
	if (device < 0)
		err(1, UDMABUF_IMPORTER_DEV);
	if (ioctl(device, IMPORTER_ATTACH, &attach) || ioctl(device, IMPORTER_MAP, &map))
		err(1, "cannot import the dma-buf");
	printf("segments=%u\n", map.nents);
	io.handle = map.handle;
	io.buf = (uintptr_t)pixels;
	io.len = (__u64)width * height * sizeof(*pixels);
	if (ioctl(device, IMPORTER_READ, &io))
		err(1, "the device cannot read the dma-buf");
	print_picture("/out/device.ppm", pixels, width, height);
	return 0;
}
