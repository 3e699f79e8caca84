// SPDX-License-Identifier: GPL-2.0
/*
 * A dma-buf importer controlled by user space, so that tests can access a
 * buffer like a device. See udmabuf_importer.h.
 *
 * Every open file has a platform device without a driver. The CPU copies the
 * device's transfers, at the physical address behind the DMA address. This is
 * the bounce slot if the mapping bounces. sg_page() is not used: the pages
 * behind the segments belong to the exporter.
 *
 * importer->lock protects all fields. mmap() takes it under mmap_lock, so user
 * memory is only accessed without it.
 */
#include <linux/dma-buf.h>
#include <linux/dma-direct.h>
#include <linux/dma-fence.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/iosys-map.h>
#include <linux/kprobes.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "udmabuf_importer.h"

#define IO_MAX	(64UL << 20)

struct importer_map {
	struct sg_table *sgt;
	enum dma_data_direction dir;
};

struct importer {
	struct mutex lock;	/* protects all fields */
	struct platform_device *pdev;
	struct dma_buf *dmabuf;
	struct dma_buf_attachment *attach;
	struct importer_map maps[UDMABUF_IMPORTER_MAPS];
	struct iosys_map vmap;
	bool vmapped;
	struct dma_fence *fence;	/* not yet signalled, or NULL */
};

struct importer_fence {
	struct dma_fence base;
	spinlock_t lock;	/* for dma_fence_init() */
};

static struct platform_device *importer_device(const struct udmabuf_importer_attach *arg)
{
	struct platform_device_info info = {
		.name = "udmabuf_importer",
		.id = PLATFORM_DEVID_AUTO,
		.dma_mask = arg->dma_mask ?: DMA_BIT_MASK(64),
	};
	struct platform_device *pdev = platform_device_register_full(&info);

	if (!IS_ERR(pdev) && arg->max_seg)
		dma_set_max_seg_size(&pdev->dev, arg->max_seg);
	if (!IS_ERR(pdev) && arg->boundary)
		dma_set_seg_boundary(&pdev->dev, arg->boundary);
	return pdev;
}

static int importer_attach(struct importer *imp, const struct udmabuf_importer_attach *arg)
{
	int ret;

	if (imp->dmabuf)
		return -EBUSY;
	imp->dmabuf = dma_buf_get(arg->fd);
	if (IS_ERR(imp->dmabuf)) {
		ret = PTR_ERR(imp->dmabuf);
		goto clear;
	}
	imp->pdev = importer_device(arg);
	if (IS_ERR(imp->pdev)) {
		ret = PTR_ERR(imp->pdev);
		goto put;
	}
	imp->attach = dma_buf_attach(imp->dmabuf, &imp->pdev->dev);
	if (IS_ERR(imp->attach)) {
		ret = PTR_ERR(imp->attach);
		goto unregister;
	}
	return 0;

unregister:
	platform_device_unregister(imp->pdev);
put:
	dma_buf_put(imp->dmabuf);
clear:
	imp->dmabuf = NULL;
	return ret;
}

static struct importer_map *importer_find(struct importer *imp, u32 handle)
{
	if (handle >= ARRAY_SIZE(imp->maps) || !imp->maps[handle].sgt)
		return NULL;
	return &imp->maps[handle];
}

static int importer_unmap(struct importer *imp, u32 handle)
{
	struct importer_map *map = importer_find(imp, handle);

	if (!map)
		return -ENOENT;
	dma_buf_unmap_attachment_unlocked(imp->attach, map->sgt, map->dir);
	map->sgt = NULL;
	return 0;
}

static void importer_vunmap(struct importer *imp)
{
	if (!imp->vmapped)
		return;
	dma_buf_vunmap_unlocked(imp->dmabuf, &imp->vmap);
	imp->vmapped = false;
}

static const char *importer_fence_name(struct dma_fence *fence)
{
	return "udmabuf_importer";
}

/*
 * The fence may outlive the importer's file, as the buffer holds a reference.
 */
static void importer_fence_release(struct dma_fence *fence)
{
	dma_fence_free(fence);
	module_put(THIS_MODULE);
}

static const struct dma_fence_ops importer_fence_ops = {
	.get_driver_name	= importer_fence_name,
	.get_timeline_name	= importer_fence_name,
	.release		= importer_fence_release,
};

static struct dma_fence *importer_new_fence(void)
{
	struct importer_fence *fence = kzalloc(sizeof(*fence), GFP_KERNEL);

	if (!fence)
		return NULL;
	__module_get(THIS_MODULE);
	spin_lock_init(&fence->lock);
	dma_fence_init(&fence->base, &importer_fence_ops, &fence->lock,
		       dma_fence_context_alloc(1), 1);
	return &fence->base;
}

static int importer_add_fence(struct importer *imp, bool writes)
{
	struct dma_resv *resv = imp->dmabuf->resv;
	struct dma_fence *fence;
	int ret;

	if (imp->fence)
		return -EBUSY;
	fence = importer_new_fence();
	if (!fence)
		return -ENOMEM;
	dma_resv_lock(resv, NULL);
	ret = dma_resv_reserve_fences(resv, 1);
	if (!ret)
		dma_resv_add_fence(resv, fence,
				   writes ? DMA_RESV_USAGE_WRITE : DMA_RESV_USAGE_READ);
	dma_resv_unlock(resv);
	if (ret)
		dma_fence_put(fence);
	else
		imp->fence = fence;
	return ret;
}

static int importer_signal(struct importer *imp)
{
	if (!imp->fence)
		return -ENOENT;
	dma_fence_signal(imp->fence);
	dma_fence_put(imp->fence);
	imp->fence = NULL;
	return 0;
}

static int importer_detach(struct importer *imp)
{
	u32 handle;

	if (!imp->dmabuf)
		return -ENOENT;
	importer_signal(imp);
	for (handle = 0; handle < ARRAY_SIZE(imp->maps); handle++)
		importer_unmap(imp, handle);
	importer_vunmap(imp);
	dma_buf_detach(imp->dmabuf, imp->attach);
	dma_buf_put(imp->dmabuf);
	platform_device_unregister(imp->pdev);
	imp->dmabuf = NULL;
	return 0;
}

static int importer_map(struct importer *imp, struct udmabuf_importer_map *arg)
{
	struct importer_map *map;
	struct scatterlist *sg;
	struct sg_table *sgt;
	unsigned int i;

	if (!imp->dmabuf)
		return -ENOENT;
	if (arg->dir > DMA_FROM_DEVICE)
		return -EINVAL;
	for (arg->handle = 0; importer_find(imp, arg->handle); arg->handle++)
		;
	if (arg->handle == ARRAY_SIZE(imp->maps))
		return -ENOSPC;
	sgt = dma_buf_map_attachment_unlocked(imp->attach, arg->dir);
	if (IS_ERR(sgt))
		return PTR_ERR(sgt);

	map = &imp->maps[arg->handle];
	map->sgt = sgt;
	map->dir = arg->dir;
	arg->nents = sgt->nents;
	arg->bytes = 0;
	arg->longest = 0;
	for_each_sgtable_dma_sg(sgt, sg, i) {
		arg->bytes += sg_dma_len(sg);
		arg->longest = max_t(u64, arg->longest, sg_dma_len(sg));
	}
	return 0;
}

/* Copy within one segment. The pages may be highmem. */
static void importer_copy(phys_addr_t phys, void *buf, size_t len, bool to_device_memory)
{
	while (len) {
		size_t n = min_t(size_t, len, PAGE_SIZE - offset_in_page(phys));
		void *mem = kmap_local_page(pfn_to_page(PHYS_PFN(phys))) + offset_in_page(phys);

		if (to_device_memory)
			memcpy(mem, buf, n);
		else
			memcpy(buf, mem, n);
		kunmap_local(mem);
		phys += n;
		buf += n;
		len -= n;
	}
}

/*
 * Copy [@offset, @offset + @len) of a map between its device memory and @buf.
 */
static int importer_transfer(struct importer *imp, struct importer_map *map, u64 offset, u64 len,
			     void *buf, bool to_device_memory)
{
	struct scatterlist *sg;
	unsigned int i;

	for_each_sgtable_dma_sg(map->sgt, sg, i) {
		u64 seg = sg_dma_len(sg);
		phys_addr_t phys;

		if (offset >= seg) {
			offset -= seg;
			continue;
		}
		if (!len)
			return 0;
		seg = min(seg - offset, len);
		phys = dma_to_phys(&imp->pdev->dev, sg_dma_address(sg)) + offset;
		importer_copy(phys, buf, seg, to_device_memory);
		buf += seg;
		len -= seg;
		offset = 0;
	}
	return len ? -EINVAL : 0;
}

static int importer_vtransfer(struct importer *imp, u64 offset, u64 len, void *buf, bool to_buffer)
{
	if (!imp->vmapped)
		return -ENOENT;
	if (offset > imp->dmabuf->size || len > imp->dmabuf->size - offset)
		return -EINVAL;
	if (to_buffer)
		iosys_map_memcpy_to(&imp->vmap, offset, buf, len);
	else
		iosys_map_memcpy_from(buf, &imp->vmap, offset, len);
	return 0;
}

static int importer_io_locked(struct importer *imp, unsigned int cmd,
			      const struct udmabuf_importer_io *io, void *buf)
{
	struct importer_map *map;

	lockdep_assert_held(&imp->lock);
	if (cmd == IMPORTER_VREAD || cmd == IMPORTER_VWRITE)
		return importer_vtransfer(imp, io->offset, io->len, buf, cmd == IMPORTER_VWRITE);
	map = importer_find(imp, io->handle);
	if (!map)
		return -ENOENT;
	return importer_transfer(imp, map, io->offset, io->len, buf, cmd == IMPORTER_WRITE);
}

static int importer_io(struct importer *imp, unsigned int cmd, void __user *uarg)
{
	bool write = cmd == IMPORTER_WRITE || cmd == IMPORTER_VWRITE;
	struct udmabuf_importer_io io;
	void *buf;
	int ret = -EFAULT;

	if (copy_from_user(&io, uarg, sizeof(io)))
		return -EFAULT;
	if (!io.len || io.len > IO_MAX)
		return -EINVAL;
	buf = kvmalloc(io.len, GFP_KERNEL);
	if (!buf)
		return -ENOMEM;
	if (write && copy_from_user(buf, u64_to_user_ptr(io.buf), io.len))
		goto free;
	mutex_lock(&imp->lock);
	ret = importer_io_locked(imp, cmd, &io, buf);
	mutex_unlock(&imp->lock);
	if (!ret && !write && copy_to_user(u64_to_user_ptr(io.buf), buf, io.len))
		ret = -EFAULT;
free:
	kvfree(buf);
	return ret;
}

static int importer_ioctl_attach(struct importer *imp, void __user *uarg)
{
	struct udmabuf_importer_attach arg;
	int ret;

	if (copy_from_user(&arg, uarg, sizeof(arg)))
		return -EFAULT;
	mutex_lock(&imp->lock);
	ret = importer_attach(imp, &arg);
	mutex_unlock(&imp->lock);
	return ret;
}

static int importer_ioctl_map(struct importer *imp, void __user *uarg)
{
	struct udmabuf_importer_map arg;
	int ret;

	if (copy_from_user(&arg, uarg, sizeof(arg)))
		return -EFAULT;
	mutex_lock(&imp->lock);
	ret = importer_map(imp, &arg);
	mutex_unlock(&imp->lock);
	if (ret || !copy_to_user(uarg, &arg, sizeof(arg)))
		return ret;

	/* User space did not get the handle, so unmap here. */
	mutex_lock(&imp->lock);
	importer_unmap(imp, arg.handle);
	mutex_unlock(&imp->lock);
	return -EFAULT;
}

static int importer_vmap(struct importer *imp)
{
	int ret;

	if (imp->vmapped)
		return -EBUSY;
	ret = dma_buf_vmap_unlocked(imp->dmabuf, &imp->vmap);
	imp->vmapped = !ret;
	return ret;
}

/* Commands for an attached buffer, with a number or no argument. */
static int importer_command_locked(struct importer *imp, unsigned int cmd, u32 arg)
{
	lockdep_assert_held(&imp->lock);
	if (!imp->dmabuf)
		return -ENOENT;
	switch (cmd) {
	case IMPORTER_DETACH:
		return importer_detach(imp);
	case IMPORTER_UNMAP:
		return importer_unmap(imp, arg);
	case IMPORTER_BEGIN_CPU:
		return dma_buf_begin_cpu_access(imp->dmabuf, arg);
	case IMPORTER_END_CPU:
		return dma_buf_end_cpu_access(imp->dmabuf, arg);
	case IMPORTER_VMAP:
		return importer_vmap(imp);
	case IMPORTER_VUNMAP:
		importer_vunmap(imp);
		return 0;
	case IMPORTER_FENCE:
		return importer_add_fence(imp, arg);
	case IMPORTER_SIGNAL:
		return importer_signal(imp);
	default:
		return -ENOTTY;
	}
}

static long importer_ioctl(struct file *file, unsigned int cmd, unsigned long uarg)
{
	struct importer *imp = file->private_data;
	u32 arg = 0;
	int ret;

	switch (cmd) {
	case IMPORTER_ATTACH:
		return importer_ioctl_attach(imp, (void __user *)uarg);
	case IMPORTER_MAP:
		return importer_ioctl_map(imp, (void __user *)uarg);
	case IMPORTER_READ:
	case IMPORTER_WRITE:
	case IMPORTER_VREAD:
	case IMPORTER_VWRITE:
		return importer_io(imp, cmd, (void __user *)uarg);
	}
	if (_IOC_SIZE(cmd) && get_user(arg, (u32 __user *)uarg))
		return -EFAULT;
	mutex_lock(&imp->lock);
	ret = importer_command_locked(imp, cmd, arg);
	mutex_unlock(&imp->lock);
	return ret;
}

static int importer_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct importer *imp = file->private_data;
	int ret = -ENOENT;

	mutex_lock(&imp->lock);
	if (imp->dmabuf)
		ret = dma_buf_mmap(imp->dmabuf, vma, vma->vm_pgoff);
	mutex_unlock(&imp->lock);
	return ret;
}

static int importer_open(struct inode *inode, struct file *file)
{
	struct importer *imp = kzalloc(sizeof(*imp), GFP_KERNEL);

	if (!imp)
		return -ENOMEM;
	mutex_init(&imp->lock);
	file->private_data = imp;
	return 0;
}

static int importer_release(struct inode *inode, struct file *file)
{
	struct importer *imp = file->private_data;

	importer_detach(imp);
	mutex_destroy(&imp->lock);
	kfree(imp);
	return 0;
}

static const struct file_operations importer_fops = {
	.owner		= THIS_MODULE,
	.open		= importer_open,
	.release	= importer_release,
	.unlocked_ioctl	= importer_ioctl,
	.compat_ioctl	= compat_ptr_ioctl,
	.mmap		= importer_mmap,
};

static struct miscdevice importer_misc = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= "udmabuf_importer",
	.fops	= &importer_fops,
	.mode	= 0600,
};

/*
 * Bytes synced for non-coherent devices. Emulated caches always hold the
 * current bytes, so tests count the syncs. -1 if all devices are coherent.
 */
static long synced_for_cpu = -1;
module_param(synced_for_cpu, long, 0444);
static long synced_for_device = -1;
module_param(synced_for_device, long, 0444);

#if defined(CONFIG_KPROBES) && defined(CONFIG_ARCH_HAS_SYNC_DMA_FOR_CPU)
static int importer_count_cpu(struct kprobe *probe, struct pt_regs *regs)
{
	synced_for_cpu += regs_get_kernel_argument(regs, 1);
	return 0;
}

static int importer_count_device(struct kprobe *probe, struct pt_regs *regs)
{
	synced_for_device += regs_get_kernel_argument(regs, 1);
	return 0;
}

static struct kprobe importer_probes[] = {
	{ .symbol_name = "arch_sync_dma_for_cpu", .pre_handler = importer_count_cpu },
	{ .symbol_name = "arch_sync_dma_for_device", .pre_handler = importer_count_device },
};

static void importer_probe_syncs(void)
{
	if (!register_kprobe(&importer_probes[0]))
		synced_for_cpu = 0;
	if (!register_kprobe(&importer_probes[1]))
		synced_for_device = 0;
}

static void importer_unprobe_syncs(void)
{
	if (synced_for_cpu >= 0)
		unregister_kprobe(&importer_probes[0]);
	if (synced_for_device >= 0)
		unregister_kprobe(&importer_probes[1]);
}
#else
static void importer_probe_syncs(void) {}
static void importer_unprobe_syncs(void) {}
#endif

static int __init importer_init(void)
{
	int ret = misc_register(&importer_misc);

	if (!ret)
		importer_probe_syncs();
	return ret;
}

static void __exit importer_exit(void)
{
	misc_deregister(&importer_misc);
	importer_unprobe_syncs();
}

module_init(importer_init);
module_exit(importer_exit);

MODULE_DESCRIPTION("dma-buf importer for the udmabuf selftests");
MODULE_LICENSE("GPL");
/*
 * MODULE_IMPORT_NS() spelled out, since its argument was not always a string.
 */
MODULE_INFO(import_ns, "DMA_BUF");
