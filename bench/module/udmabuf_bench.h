/* SPDX-License-Identifier: GPL-2.0-only */
/* What the benchmark's module measures; times are ticks of the TSC. */
#ifndef _UDMABUF_BENCH_H
#define _UDMABUF_BENCH_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * struct bench_pin - argument of %BENCH_PIN
 * @addr:   memory of the caller
 * @npages: how much of it
 * @batch:  how many pages a call pins, and unpins
 * @pin:    out: time to pin it
 * @unpin:  out: time to unpin it
 * @runs:   out: physically contiguous pieces
 * @folios: out: folios it lies in, each counted whenever it is entered
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
 * @time: out: of doing and undoing it
 */
struct bench_dmabuf {
	__u64 fd;
	__u64 time;
};

#define BENCH_PIN	_IOWR('B', 0, struct bench_pin)
#define BENCH_IMPORT	_IOWR('B', 1, struct bench_dmabuf)
#define BENCH_VMAP	_IOWR('B', 2, struct bench_dmabuf)

/* Keep the dma-buf mapped until the file of the module is closed. */
#define BENCH_KEEP	_IOW('B', 3, __u64)

#endif /* _UDMABUF_BENCH_H */
