/* SPDX-License-Identifier: GPL-2.0-only */
/* Interface of the benchmark's module. Times are TSC ticks. */
#ifndef _UDMABUF_BENCH_H
#define _UDMABUF_BENCH_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * struct bench_pin - argument of %BENCH_PIN
 * @addr:   address of the caller's memory
 * @npages: number of pages to pin
 * @batch:  number of pages that one call pins or unpins
 * @pin:    out: time to pin all pages
 * @unpin:  out: time to unpin all pages
 * @runs:   out: number of physically contiguous runs
 * @folios: out: number of times that the folio differs from the previous page's
 */
struct bench_pin {
	__u64 addr;
	__u64 npages;
	__u64 batch;
	__u64 pin;
	__u64 unpin;
	__u64 runs;
	__u64 folios;
};

/**
 * struct bench_dmabuf - argument of %BENCH_IMPORT and %BENCH_VMAP
 * @fd:   a dma-buf
 * @time: out: time of the operation and its reverse
 */
struct bench_dmabuf {
	__u64 fd;
	__u64 time;
};

#define BENCH_PIN	_IOWR('B', 0, struct bench_pin)
#define BENCH_IMPORT	_IOWR('B', 1, struct bench_dmabuf)
#define BENCH_VMAP	_IOWR('B', 2, struct bench_dmabuf)

/* Map the dma-buf for the device until the file descriptor of the module is closed. */
#define BENCH_KEEP	_IOW('B', 3, __u64)

#endif /* _UDMABUF_BENCH_H */
