/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Definitions that the driver uses and that kernels from 6.1 on may lack. The
 * compiler includes this file before the driver. Kbuild searches the kernel's
 * headers and exports and defines HAVE_*; it does not compare versions, because
 * distributions backport interfaces.
 */
#ifndef _UDMABUF_COMPAT_H
#define _UDMABUF_COMPAT_H

#include <linux/dma-mapping.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/hugetlb.h>
#include <linux/jiffies.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/module.h>
#include <linux/overflow.h>
#include <linux/page_table_check.h>
#include <linux/platform_device.h>
#include <linux/sched/user.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/userfaultfd_k.h>
#include <linux/vmalloc.h>
#ifdef HAVE_PFN_T
#include <linux/pfn_t.h>
#endif

/* The namespace was an identifier before it became a string. */
#undef MODULE_IMPORT_NS
#define MODULE_IMPORT_NS(ns) MODULE_INFO(import_ns, ns)

#ifndef overflows_type
#define overflows_type(n, T) ((T)(n) != (n))
#endif

#ifndef kzalloc_obj
#define kzalloc_obj(obj, gfp) kzalloc(sizeof(obj), gfp)
#endif

#ifndef kmalloc_objs
#define kmalloc_objs(obj, n, gfp) kmalloc_array(n, sizeof(obj), gfp)
#endif

#ifndef kvmalloc_objs
#define kvmalloc_objs(obj, n, gfp) kvmalloc_array(n, sizeof(obj), gfp)
#endif

#ifndef kvmalloc_flex
#define kvmalloc_flex(obj, member, n, gfp) kvmalloc(struct_size(&(obj), member, n), gfp)
#endif

#ifndef DMA_ATTR_DEBUGGING_IGNORE_CACHELINES
#define DMA_ATTR_DEBUGGING_IGNORE_CACHELINES 0
#endif

#ifndef FOLIO_MAPPING_ANON
#define FOLIO_MAPPING_ANON PAGE_MAPPING_ANON
#endif

#ifndef HAVE_VM_FLAGS_SET
static inline void vm_flags_set(struct vm_area_struct *vma, vm_flags_t flags)
{
	vma->vm_flags |= flags;
}

static inline void vm_flags_clear(struct vm_area_struct *vma, vm_flags_t flags)
{
	vma->vm_flags &= ~flags;
}
#endif

#ifndef HAVE_ICOUNT_READ_ONCE
#define icount_read_once(inode) atomic_read(&(inode)->i_count)
#endif

#ifdef HAVE_EXPORTED_PAGE_HUGE
/* folio_test_hugetlb() may need functions that the kernel does not export. */
#define folio_test_hugetlb(folio) PageHuge(&(folio)->page)
#endif

#ifndef HAVE_FREE_UID
/*
 * If free_uid() is not exported, a module cannot drop the last reference to a
 * user_struct. The structure stays allocated, and the next process of that user gets it.
 */
static inline void udmabuf_free_uid(struct user_struct *user)
{
	bool __always_unused dropped = refcount_dec_not_one(&user->__count);
}

#define free_uid udmabuf_free_uid
#endif

/*
 * The dma-buf core warns if an exporter's vmap fails: retry for half a second. In a
 * kernel tree with the driver, the core does not warn.
 */
static inline void *udmabuf_retry_vmap(struct page **pages, unsigned int count,
				       unsigned long flags, pgprot_t prot)
{
	unsigned int tries = 25;
	void *vaddr;

	while (!(vaddr = vmap(pages, count, flags, prot)) && --tries)
		schedule_timeout_uninterruptible(msecs_to_jiffies(20));
	return vaddr;
}

#define vmap(pages, count, flags, prot) udmabuf_retry_vmap(pages, count, flags, prot)

#ifndef HAVE_PMDP_GET_LOCKLESS
#define pmdp_get_lockless(pmdp) pmd_read_atomic(pmdp)
#endif

#ifndef HAVE_PTE_UFFD
/*
 * Kernels from 6.7 on may let userfaultfd write-protect any mapping, which inserts
 * markers and page tables: vmf_insert_pfn() does not replace a marker, so the page fault
 * would recur without end, and vmf_insert_pfn_pmd() warns about a page table.
 *
 * PAGE_TABLE_CHECK of older kernels may count special PTEs, too: inserting an anonymous
 * page would stop the machine.
 *
 * No header shows either. Kernels with pte_uffd() do neither.
 */
static inline vm_fault_t udmabuf_insert_pfn(struct vm_area_struct *vma,
					    unsigned long addr, unsigned long pfn)
{
	if (userfaultfd_wp(vma))
		return VM_FAULT_SIGBUS;
#ifdef CONFIG_PAGE_TABLE_CHECK
	if (!static_branch_likely(&page_table_check_disabled) &&
	    PageAnon(pfn_to_page(pfn)))
		return VM_FAULT_SIGBUS;
#endif
	return vmf_insert_pfn(vma, addr, pfn);
}

#define vmf_insert_pfn udmabuf_insert_pfn

#ifdef CONFIG_ARCH_SUPPORTS_PMD_PFNMAP
static inline vm_fault_t udmabuf_insert_pfn_pmd(struct vm_fault *vmf, unsigned long pfn,
						bool write)
{
	if (userfaultfd_wp(vmf->vma))
		return VM_FAULT_FALLBACK;
#ifdef HAVE_PFN_T
	return vmf_insert_pfn_pmd(vmf, __pfn_to_pfn_t(pfn, PFN_DEV), write);
#else
	return vmf_insert_pfn_pmd(vmf, pfn, write);
#endif
}

#define vmf_insert_pfn_pmd udmabuf_insert_pfn_pmd
#endif
#endif /* HAVE_PTE_UFFD */

#if defined(CONFIG_MEMORY_FAILURE) && !defined(HAVE_MF_STATS)
/* Kernels without mf_stats do not count memory failures: assume that some occurred. */
static const struct {
	struct { unsigned long total; } mf_stats;
} udmabuf_unknown_failures = { { 1 } };

#undef NODE_DATA
#define NODE_DATA(nid) ((void)(nid), &udmabuf_unknown_failures)
#endif

#ifndef HAVE_UNPIN_USER_FOLIO
static inline void unpin_user_folio(struct folio *folio, unsigned long npins)
{
	unpin_user_page_range_dirty_lock(&folio->page, npins, false);
}
#endif

#ifdef HAVE_FOLLOW_HUGETLB_PAGE
/*
 * These kernels do not migrate hugetlb pages out of ZONE_MOVABLE, and warn if one is
 * pinned with FOLL_LONGTERM. So pin without FOLL_LONGTERM first, to look for such pages.
 */
static inline int udmabuf_pin_user_pages_fast(unsigned long start, int nr_pages,
					      unsigned int flags,
					      struct page **pages)
{
	int n, i;

#ifdef HAVE_UNRELIABLE_READ_PIN
	/*
	 * A read-only pin of a private page that was never written may pin the zero
	 * page or the page cache. The owner's first write then goes to another page.
	 */
	if (!(flags & FOLL_WRITE))
		return -EOPNOTSUPP;
#endif

	n = pin_user_pages_fast(start, nr_pages, flags & ~FOLL_LONGTERM, pages);
	if (n <= 0)
		return n;
	for (i = 0; i < n; i++)
		if (PageHuge(pages[i]) && is_zone_movable_page(pages[i]))
			break;
	unpin_user_pages(pages, n);
	if (i < n)
		return -ENOMEM;
	return pin_user_pages_fast(start, n, flags, pages);
}

#define pin_user_pages_fast udmabuf_pin_user_pages_fast
#endif

#ifndef HAVE_MEMFD_PIN_FOLIOS
/*
 * A child should not get a temporary mapping. It still can if its fork() has waited for
 * mmap_lock during vm_mmap(). vm_mmap() may have merged the mapping with another one of
 * the process, which the child needs.
 */
static inline void udmabuf_do_not_fork(unsigned long addr, unsigned long len)
{
	struct vm_area_struct *vma;

	mmap_write_lock(current->mm);
	vma = find_vma(current->mm, addr);
	if (vma && vma->vm_start == addr && vma->vm_end == addr + len)
		vm_flags_set(vma, VM_DONTCOPY);
	mmap_write_unlock(current->mm);
}

/*
 * Before 6.11, only GUP pins memfds, by address: map the range temporarily. Another
 * thread may map other memory over it, so check which folios were pinned. The mapping
 * requires a memfd that is open for reading and writing, or it gives EACCES.
 */
static inline long memfd_pin_folios(struct file *memfd, loff_t start, loff_t end,
				    struct folio **folios, unsigned int max_folios,
				    pgoff_t *offset)
{
	loff_t align = PAGE_SIZE, from;
	struct page **pages = (struct page **)folios;
	unsigned long addr, len;
	long nfolios = 0;
	int n, i;

#ifdef CONFIG_HUGETLBFS
	if (!shmem_mapping(memfd->f_mapping))
		align = huge_page_size(hstate_inode(file_inode(memfd)));
#endif
	from = round_down(start, align);
	len = round_up(end + 1, align) - from;
	addr = vm_mmap(memfd, 0, len, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_NORESERVE, from);
	if (IS_ERR_VALUE(addr))
		return (long)addr == -EPERM ? -EINVAL :	/* sealed meanwhile */
		       (long)addr == -EAGAIN ? -ENOMEM : addr;	/* after mlockall() */
	udmabuf_do_not_fork(addr, len);
	n = pin_user_pages_fast(addr + (start - from),
				min_t(loff_t, max_folios, (end + 1 - start) >> PAGE_SHIFT),
				FOLL_WRITE | FOLL_LONGTERM, pages);
	vm_munmap(addr, len);
	/* GUP returns EFAULT if the hole cannot be filled, fallocate() says why. */
	if (n == -EFAULT &&
	    vfs_fallocate(memfd, FALLOC_FL_KEEP_SIZE, start, PAGE_SIZE) == -ENOSPC)
		return -ENOSPC;

	for (i = 0; i < n; i++) {
		struct folio *folio = page_folio(pages[i]);

		if (READ_ONCE(folio->mapping) != memfd->f_mapping ||
		    (align == PAGE_SIZE && folio->index + folio_page_idx(folio, pages[i]) !=
					   (start >> PAGE_SHIFT) + i)) {
			unpin_user_pages(pages + i, n - i);
			unpin_user_pages(pages, nfolios);
			return -EFAULT;
		}
		if (!nfolios)
			*offset = folio_page_idx(folio, pages[i]) << PAGE_SHIFT;
		if (nfolios && folio == folios[nfolios - 1])
			unpin_user_page(pages[i]);
		else
			folios[nfolios++] = folio;
	}
	return n == -EAGAIN ? -ENOMEM : n < 0 ? n : nfolios;
}

#ifndef HAVE_SHMEM_READ_FOLIO
static inline struct folio *shmem_read_folio(struct address_space *mapping, pgoff_t index)
{
	struct page *page = shmem_read_mapping_page(mapping, index);

	return IS_ERR(page) ? ERR_CAST(page) : page_folio(page);
}
#endif

/* Page faults fill the holes, and account reservations correctly. */
#define is_file_hugepages(file) false

/* vm_mmap() takes the inode lock itself, or checks the seals without it. */
#define inode_lock_shared_killable(inode) ((void)(inode), 0)
#define inode_unlock_shared(inode) ((void)(inode))
#else /* HAVE_MEMFD_PIN_FOLIOS */

#ifdef HAVE_FOLIO_INDEX
/*
 * This memfd_pin_folios() finds folios by folio_index(), which differs from the file's
 * index while reclaim moves a folio to swap: it can skip a folio or return one twice.
 */
static inline long udmabuf_memfd_pin_folios(struct file *memfd, loff_t start, loff_t end,
					    struct folio **folios, unsigned int max_folios,
					    pgoff_t *offset)
{
	long n = memfd_pin_folios(memfd, start, end, folios, max_folios, offset), i;
	pgoff_t index;

	if (n <= 0 || !shmem_mapping(memfd->f_mapping))
		return n;
	index = (start - *offset) >> PAGE_SHIFT;
	for (i = 0; i < n; index += folio_nr_pages(folios[i++]))
		if (READ_ONCE(folios[i]->index) != index)
			break;
	if (i == n)
		return n;
	unpin_user_pages((struct page **)folios, n);
	return -EAGAIN;
}

#define memfd_pin_folios udmabuf_memfd_pin_folios
#endif

#ifndef HAVE_INODE_LOCK_SHARED_KILLABLE
static inline int inode_lock_shared_killable(struct inode *inode)
{
	return down_read_killable(&inode->i_rwsem);
}
#endif
#endif

/*
 * Only the out-of-tree module has this parameter, to be loaded beside the kernel's own
 * driver under another device name.
 */
static char *udmabuf_name = "udmabuf";
module_param_named(name, udmabuf_name, charp, 0444);
MODULE_PARM_DESC(name, "Name of the device in /dev. Default is udmabuf.");

/*
 * Checks the name first: the driver core warns about an empty name, and dumps the stack
 * for a name in use. The platform bus is exported and leads to the kset of all devices.
 */
static inline int udmabuf_misc_register(struct miscdevice *misc)
{
	static const char valid[] =
		"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";
	size_t len = strlen(udmabuf_name);
	struct kobject *other;

	if (!len || len > 31 || strspn(udmabuf_name, valid) != len) {
		pr_err(KBUILD_MODNAME ": invalid name: up to 31 letters, digits, '-' and '_'\n");
		return -EINVAL;
	}
	other = kset_find_obj(platform_bus.kobj.kset, udmabuf_name);
	if (other) {
		kobject_put(other);
		/* Not EEXIST, which modprobe takes for success */
		pr_err(KBUILD_MODNAME ": device %s exists (for udmabuf, boot with initcall_blacklist=udmabuf_dev_init; or load with name=NAME)\n",
		       udmabuf_name);
		return -EBUSY;
	}
	misc->name = udmabuf_name;
	return misc_register(misc);
}

#define misc_register udmabuf_misc_register

#endif /* _UDMABUF_COMPAT_H */
