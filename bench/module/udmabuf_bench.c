// SPDX-License-Identifier: GPL-2.0-only
/*
 * Module of the benchmark, for measurements that user space cannot make: bare pinning
 * of its memory, and an importer's operations on a dma-buf. See udmabuf_bench.h.
 */
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/fs.h>
#include <linux/iosys-map.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <asm/tsc.h>

#include "udmabuf_bench.h"

/* The importing device, registered as long as the module is loaded. */
static struct platform_device *pdev;

static void bench_unpin(struct page **pages, unsigned long npages, unsigned long batch)
{
	unsigned long i;

	for (i = 0; i < npages; i += batch)
		unpin_user_pages(pages + i, min(npages - i, batch));
}

static void bench_count(struct bench_pin *arg, struct page **pages)
{
	struct folio *last = NULL;
	unsigned long i;

	arg->runs = 0;
	arg->folios = 0;
	for (i = 0; i < arg->npages; i++) {
		if (!i || page_to_pfn(pages[i]) != page_to_pfn(pages[i - 1]) + 1)
			arg->runs++;
		if (page_folio(pages[i]) != last)
			arg->folios++;
		last = page_folio(pages[i]);
	}
}

static int bench_pin(struct bench_pin *arg)
{
	unsigned long npages = arg->npages, batch = arg->batch, done = 0;
	struct page **pages;
	int ret = 0;
	u64 start;

	if (!npages || !batch || batch > INT_MAX)
		return -EINVAL;
	pages = kvcalloc(npages, sizeof(*pages), GFP_KERNEL);
	if (!pages)
		return -ENOMEM;
	start = rdtsc();
	while (done < npages) {
		ret = pin_user_pages_fast(arg->addr + done * PAGE_SIZE,
					  min(npages - done, batch),
					  FOLL_WRITE | FOLL_LONGTERM, pages + done);
		if (ret <= 0)
			break;
		done += ret;
	}
	arg->pin = rdtsc() - start;

	if (done == npages)
		bench_count(arg, pages);
	start = rdtsc();
	bench_unpin(pages, done, batch);
	arg->unpin = rdtsc() - start;
	kvfree(pages);
	return done == arg->npages ? 0 : ret ?: -EFAULT;
}

struct bench_import {
	struct dma_buf_attachment *attach;
	struct sg_table *sgt;
};

static int bench_attach(struct dma_buf *dmabuf, struct bench_import *import)
{
	import->attach = dma_buf_attach(dmabuf, &pdev->dev);
	if (IS_ERR(import->attach))
		return PTR_ERR(import->attach);
	import->sgt = dma_buf_map_attachment_unlocked(import->attach, DMA_BIDIRECTIONAL);
	if (IS_ERR(import->sgt)) {
		dma_buf_detach(dmabuf, import->attach);
		return PTR_ERR(import->sgt);
	}
	return 0;
}

static void bench_detach(struct dma_buf *dmabuf, struct bench_import *import)
{
	dma_buf_unmap_attachment_unlocked(import->attach, import->sgt, DMA_BIDIRECTIONAL);
	dma_buf_detach(dmabuf, import->attach);
}

static int bench_import(struct dma_buf *dmabuf, struct bench_dmabuf *arg)
{
	struct bench_import import;
	u64 start = rdtsc();
	int ret;

	ret = bench_attach(dmabuf, &import);
	if (ret)
		return ret;
	bench_detach(dmabuf, &import);
	arg->time = rdtsc() - start;
	return 0;
}

static int bench_vmap(struct dma_buf *dmabuf, struct bench_dmabuf *arg)
{
	u64 start = rdtsc();
	struct iosys_map map;
	int ret;

	ret = dma_buf_vmap_unlocked(dmabuf, &map);
	if (ret)
		return ret;
	dma_buf_vunmap_unlocked(dmabuf, &map);
	arg->time = rdtsc() - start;
	return 0;
}

static long bench_ioctl_pin(void __user *uarg)
{
	struct bench_pin arg;
	int ret;

	if (copy_from_user(&arg, uarg, sizeof(arg)))
		return -EFAULT;
	ret = bench_pin(&arg);
	if (!ret && copy_to_user(uarg, &arg, sizeof(arg)))
		return -EFAULT;
	return ret;
}

static long bench_ioctl_dmabuf(unsigned int cmd, void __user *uarg)
{
	struct bench_dmabuf arg;
	struct dma_buf *dmabuf;
	int ret;

	if (copy_from_user(&arg, uarg, sizeof(arg)))
		return -EFAULT;
	dmabuf = dma_buf_get(arg.fd);
	if (IS_ERR(dmabuf))
		return PTR_ERR(dmabuf);
	if (cmd == BENCH_IMPORT)
		ret = bench_import(dmabuf, &arg);
	else
		ret = bench_vmap(dmabuf, &arg);
	dma_buf_put(dmabuf);
	if (!ret && copy_to_user(uarg, &arg, sizeof(arg)))
		return -EFAULT;
	return ret;
}

static int bench_ioctl_keep(struct file *file, u64 __user *uarg)
{
	struct bench_import *import = kzalloc(sizeof(*import), GFP_KERNEL);
	struct dma_buf *dmabuf;
	int ret = -EFAULT;
	u64 fd;

	if (!import)
		return -ENOMEM;
	if (file->private_data || get_user(fd, uarg))
		goto free;
	dmabuf = dma_buf_get(fd);
	ret = PTR_ERR_OR_ZERO(dmabuf);
	if (ret)
		goto free;
	ret = bench_attach(dmabuf, import);
	if (ret)
		goto put;
	file->private_data = import;
	return 0;
put:
	dma_buf_put(dmabuf);
free:
	kfree(import);
	return ret;
}

static int bench_release(struct inode *inode, struct file *file)
{
	struct bench_import *import = file->private_data;

	if (import) {
		struct dma_buf *dmabuf = import->attach->dmabuf;

		bench_detach(dmabuf, import);
		dma_buf_put(dmabuf);
		kfree(import);
	}
	return 0;
}

static int bench_open(struct inode *inode, struct file *file)
{
	file->private_data = NULL;	/* misc_open() set it */
	return 0;
}

static long bench_ioctl(struct file *file, unsigned int cmd, unsigned long uarg)
{
	switch (cmd) {
	case BENCH_PIN:
		return bench_ioctl_pin((void __user *)uarg);
	case BENCH_IMPORT:
	case BENCH_VMAP:
		return bench_ioctl_dmabuf(cmd, (void __user *)uarg);
	case BENCH_KEEP:
		return bench_ioctl_keep(file, (void __user *)uarg);
	default:
		return -ENOTTY;
	}
}

static const struct file_operations bench_fops = {
	.owner		= THIS_MODULE,
	.open		= bench_open,
	.release	= bench_release,
	.unlocked_ioctl	= bench_ioctl,
};

static struct miscdevice bench_misc = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= "udmabuf_bench",
	.fops	= &bench_fops,
	.mode	= 0600,
};

static int __init bench_init(void)
{
	struct platform_device_info info = {
		.name = "udmabuf_bench",
		.id = PLATFORM_DEVID_NONE,
		.dma_mask = DMA_BIT_MASK(64),
	};
	int ret;

	pdev = platform_device_register_full(&info);
	if (IS_ERR(pdev))
		return PTR_ERR(pdev);
	/* Needed for the DMA API to skip syncs on a coherent device. */
	ret = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(64));
	/* No limit on the length of a segment. */
	dma_set_max_seg_size(&pdev->dev, UINT_MAX);
	if (!ret)
		ret = misc_register(&bench_misc);
	if (ret)
		platform_device_unregister(pdev);
	return ret;
}
module_init(bench_init);

static void __exit bench_exit(void)
{
	misc_deregister(&bench_misc);
	platform_device_unregister(pdev);
}
module_exit(bench_exit);

MODULE_DESCRIPTION("what the benchmark of udmabuf measures in the kernel");
MODULE_LICENSE("GPL");
/* Not MODULE_IMPORT_NS(): its argument is a string only in newer kernels. */
MODULE_INFO(import_ns, "DMA_BUF");
