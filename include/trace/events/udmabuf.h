/* SPDX-License-Identifier: GPL-2.0-only */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM udmabuf

#if !defined(_TRACE_UDMABUF_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_UDMABUF_H

#include <linux/device.h>
#include <linux/dma-direction.h>
#include <linux/err.h>
#include <linux/mm.h>
#include <linux/scatterlist.h>
#include <linux/string.h>
#include <linux/tracepoint.h>

/*
 * Events identify a buffer by the inode number of its dma-buf, as do fdinfo, debugfs
 * and the dma_buf events. The number is 0 if the buffer could not be created.
 */

TRACE_EVENT(udmabuf_create,

	TP_PROTO(u64 ino, bool memfd, unsigned int entries, unsigned long npages,
		 size_t nextents, int err),

	TP_ARGS(ino, memfd, entries, npages, nextents, err),

	TP_STRUCT__entry(
		__field(u64,		ino)
		__field(unsigned long,	npages)
		__field(size_t,		nextents)
		__field(unsigned int,	entries)
		__field(int,		err)
		__field(bool,		memfd)
	),

	TP_fast_assign(
		__entry->ino		= ino;
		__entry->npages		= npages;
		__entry->nextents	= nextents;
		__entry->entries	= entries;
		__entry->err		= err;
		__entry->memfd		= memfd;
	),

	TP_printk("ino=%llu from=%s entries=%u pages=%lu extents=%zu err=%d",
		  __entry->ino, __entry->memfd ? "memfd" : "memory",
		  __entry->entries, __entry->npages, __entry->nextents,
		  __entry->err)
);

TRACE_EVENT(udmabuf_release,

	TP_PROTO(u64 ino, unsigned long npages),

	TP_ARGS(ino, npages),

	TP_STRUCT__entry(
		__field(u64,		ino)
		__field(unsigned long,	npages)
	),

	TP_fast_assign(
		__entry->ino	= ino;
		__entry->npages	= npages;
	),

	TP_printk("ino=%llu pages=%lu", __entry->ino, __entry->npages)
);

TRACE_DEFINE_ENUM(DMA_BIDIRECTIONAL);
TRACE_DEFINE_ENUM(DMA_TO_DEVICE);
TRACE_DEFINE_ENUM(DMA_FROM_DEVICE);

#define show_udmabuf_direction(dir)				\
	__print_symbolic(dir,					\
			 { DMA_BIDIRECTIONAL, "both" },		\
			 { DMA_TO_DEVICE, "to-device" },	\
			 { DMA_FROM_DEVICE, "from-device" })

/* @sgt is an error pointer if the mapping failed. */
DECLARE_EVENT_CLASS(udmabuf_map,

	TP_PROTO(u64 ino, struct device *dev, enum dma_data_direction dir,
		 const struct sg_table *sgt),

	TP_ARGS(ino, dev, dir, sgt),

	TP_STRUCT__entry(
		__field(u64,		ino)
		__field(unsigned int,	nsegs)
		__field(int,		dir)
		__field(int,		err)
		__array(char,		device, 32)
	),

	TP_fast_assign(
		__entry->ino	= ino;
		__entry->nsegs	= IS_ERR(sgt) ? 0 : sgt->nents;
		__entry->dir	= dir;
		__entry->err	= PTR_ERR_OR_ZERO(sgt);
		strscpy(__entry->device, dev_name(dev), sizeof(__entry->device));
	),

	TP_printk("ino=%llu device=%s direction=%s segments=%u err=%d",
		  __entry->ino, __entry->device,
		  show_udmabuf_direction(__entry->dir), __entry->nsegs,
		  __entry->err)
);

DEFINE_EVENT(udmabuf_map, udmabuf_map,

	TP_PROTO(u64 ino, struct device *dev, enum dma_data_direction dir,
		 const struct sg_table *sgt),

	TP_ARGS(ino, dev, dir, sgt)
);

DEFINE_EVENT(udmabuf_map, udmabuf_unmap,

	TP_PROTO(u64 ino, struct device *dev, enum dma_data_direction dir,
		 const struct sg_table *sgt),

	TP_ARGS(ino, dev, dir, sgt)
);

#define UDMABUF_FAULT_RESULTS			\
	EM(VM_FAULT_NOPAGE,	"NOPAGE")	\
	EM(VM_FAULT_FALLBACK,	"FALLBACK")	\
	EM(VM_FAULT_HWPOISON,	"HWPOISON")	\
	EM(VM_FAULT_SIGBUS,	"SIGBUS")	\
	EMe(VM_FAULT_OOM,	"OOM")

#undef EM
#undef EMe
#define EM(value, name)	TRACE_DEFINE_ENUM(value);
#define EMe(value, name) TRACE_DEFINE_ENUM(value);
UDMABUF_FAULT_RESULTS

#undef EM
#undef EMe
#define EM(value, name)	{ (__force unsigned long)value, name },
#define EMe(value, name) { (__force unsigned long)value, name }

TRACE_EVENT(udmabuf_fault,

	TP_PROTO(u64 ino, const struct vm_fault *vmf, unsigned int order,
		 vm_fault_t ret),

	TP_ARGS(ino, vmf, order, ret),

	TP_STRUCT__entry(
		__field(u64,		ino)
		__field(unsigned long,	address)
		__field(pgoff_t,	pgoff)
		__field(unsigned int,	order)
		__field(unsigned int,	ret)
	),

	TP_fast_assign(
		__entry->ino		= ino;
		__entry->address	= vmf->address;
		__entry->pgoff		= vmf->pgoff;
		__entry->order		= order;
		__entry->ret		= (__force unsigned int)ret;
	),

	TP_printk("ino=%llu address=0x%lx pgoff=%lu order=%u ret=%s",
		  __entry->ino, __entry->address, __entry->pgoff, __entry->order,
		  __print_symbolic(__entry->ret, UDMABUF_FAULT_RESULTS))
);

#undef EM
#undef EMe

#endif /* _TRACE_UDMABUF_H */

/* This part must be outside protection */
#include <trace/define_trace.h>
