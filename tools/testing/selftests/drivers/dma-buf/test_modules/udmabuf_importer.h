/* SPDX-License-Identifier: GPL-2.0 */
/*
 * /dev/udmabuf_importer: a device driver's side of a dma-buf, by ioctl.
 *
 * Each open file is one importer with a separate device. It attaches one
 * dma-buf and maps it up to UDMABUF_IMPORTER_MAPS times. It copies bytes
 * through the DMA addresses of a map, as its device would, so also through a
 * bounce buffer. It has at most one unsignalled fence, which detaching or
 * closing signals. For tests only.
 */
#ifndef _UDMABUF_IMPORTER_H
#define _UDMABUF_IMPORTER_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define UDMABUF_IMPORTER_DEV	"/dev/udmabuf_importer"
#define UDMABUF_IMPORTER_MAPS	16

/* The values of enum dma_data_direction, which user space does not have. */
enum udmabuf_importer_dir {
	IMPORTER_BIDIRECTIONAL,
	IMPORTER_TO_DEVICE,
	IMPORTER_FROM_DEVICE,
};

struct udmabuf_importer_attach {
	__s32 fd;
	__u32 max_seg;		/* 0: the kernel's default */
	__u64 dma_mask;		/* 0: all 64 bits */
	__u64 boundary;		/* segment boundary mask; 0: unlimited */
};

struct udmabuf_importer_map {
	__u32 dir;
	__u32 handle;		/* out, like all fields below */
	__u32 nents;
	__u32 pad;
	__u64 bytes;
	__u64 longest;		/* bytes of the longest segment */
};

/* IMPORTER_VREAD and IMPORTER_VWRITE use the vmap and ignore @handle. */
struct udmabuf_importer_io {
	__u64 offset;
	__u64 len;
	__u64 buf;
	__u32 handle;
	__u32 pad;
};

#define IMPORTER_ATTACH		_IOW('i', 0x01, struct udmabuf_importer_attach)
#define IMPORTER_DETACH		_IO('i', 0x02)
#define IMPORTER_MAP		_IOWR('i', 0x03, struct udmabuf_importer_map)
#define IMPORTER_UNMAP		_IOW('i', 0x04, __u32)
#define IMPORTER_READ		_IOW('i', 0x05, struct udmabuf_importer_io)
#define IMPORTER_WRITE		_IOW('i', 0x06, struct udmabuf_importer_io)
#define IMPORTER_BEGIN_CPU	_IOW('i', 0x07, __u32)
#define IMPORTER_END_CPU	_IOW('i', 0x08, __u32)
#define IMPORTER_VMAP		_IO('i', 0x09)
#define IMPORTER_VUNMAP		_IO('i', 0x0a)
#define IMPORTER_VREAD		_IOW('i', 0x0b, struct udmabuf_importer_io)
#define IMPORTER_VWRITE		_IOW('i', 0x0c, struct udmabuf_importer_io)
/*
 * Add a fence: the device writes (1) or only reads (0) until IMPORTER_SIGNAL.
 */
#define IMPORTER_FENCE		_IOW('i', 0x0d, __u32)
#define IMPORTER_SIGNAL		_IO('i', 0x0e)

#endif /* _UDMABUF_IMPORTER_H */
