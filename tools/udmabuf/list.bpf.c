// SPDX-License-Identifier: GPL-2.0-only
/* BPF iterator over all dma-bufs; needs Linux 6.16 or later. */
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "list.bpf.h"

/* The kernel's types, with only the fields read here; libbpf relocates the offsets. */
#define relocated	__attribute__((preserve_access_index))

struct inode {
	unsigned long i_ino;
} relocated;

struct file {
	struct inode *f_inode;
} relocated;

struct dma_buf {
	__u64 size;
	struct file *file;
	const char *exp_name;
	const char *name;
} relocated;

struct bpf_iter_meta {
	struct seq_file *seq;
} relocated;

struct bpf_iter__dmabuf {
	struct bpf_iter_meta *meta;
	struct dma_buf *dmabuf;
} relocated;

char _license[] SEC("license") = "GPL";

SEC("iter/dmabuf")
int list_dmabuf(struct bpf_iter__dmabuf *ctx)
{
	struct dma_buf *dmabuf = ctx->dmabuf;
	struct list_record record = {};
	const char *name;

	if (!dmabuf)
		return 0;
	record.ino = BPF_CORE_READ(dmabuf, file, f_inode, i_ino);
	record.size = BPF_CORE_READ(dmabuf, size);
	bpf_probe_read_kernel_str(record.exporter, sizeof(record.exporter),
				  BPF_CORE_READ(dmabuf, exp_name));
	name = BPF_CORE_READ(dmabuf, name);
	if (name)
		bpf_probe_read_kernel_str(record.name, sizeof(record.name), name);
	bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
	return 0;
}
