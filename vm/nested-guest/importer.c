// SPDX-License-Identifier: GPL-2.0-only
/*
 * importer PID INODE WIDTH HEIGHT FILE.ppm: import a dma-buf that process PID has open
 * into the test device of the selftests' module. Prints the number of segments as
 * name=value, and writes the pixels that the device reads to FILE.ppm.
 */
#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/types.h>

#include "udmabuf_importer.h"

#define DMABUF "/dmabuf:"	/* begins the name of each dma-buf */

static int take_dmabuf(const char *pid, ino_t inode)
{
	int pidfd, dmabuf = -1;
	struct dirent *entry;
	struct stat stat;
	char path[64], link[64];
	ssize_t len;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", atoi(pid));
	dir = opendir(path);
	if (!dir)
		err(1, "%s", path);
	pidfd = syscall(SYS_pidfd_open, atoi(pid), 0);
	if (pidfd < 0)
		err(1, "pidfd_open");
	while (dmabuf < 0 && (entry = readdir(dir))) {
		len = readlinkat(dirfd(dir), entry->d_name, link, sizeof(link));
		/* A file of another file system may have the same inode number. */
		if (len >= (ssize_t)strlen(DMABUF) && !strncmp(link, DMABUF, strlen(DMABUF)) &&
		    !fstatat(dirfd(dir), entry->d_name, &stat, 0) && stat.st_ino == inode)
			dmabuf = syscall(SYS_pidfd_getfd, pidfd, atoi(entry->d_name), 0);
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
	int width, height, device;
	__u32 *pixels;

	if (argc != 6)
		errx(2, "usage: %s PID INODE WIDTH HEIGHT FILE.ppm", argv[0]);
	width = atoi(argv[3]);
	height = atoi(argv[4]);
	pixels = calloc(width * height, sizeof(*pixels));
	if (!pixels)
		err(1, "out of memory");
	attach.fd = take_dmabuf(argv[1], strtoul(argv[2], NULL, 10));
	if (attach.fd < 0)
		errx(1, "process %s has no dma-buf with inode number %s", argv[1], argv[2]);
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
	print_picture(argv[5], pixels, width, height);
	return 0;
}
