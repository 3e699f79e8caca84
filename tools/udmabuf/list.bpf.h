/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef LIST_BPF_H
#define LIST_BPF_H

/* The record that list.bpf.c writes for each dma-buf. */
struct list_record {
	unsigned long long ino;
	unsigned long long size;
	char exporter[32];
	char name[32];		/* DMA_BUF_NAME_LEN of the kernel */
};

#endif
