/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the driver takes for granted and kernels from 6.1 on may lack. Included
 * ahead of it by the compiler; Kbuild looks for the HAVE_* in the kernel's
 * headers, since versions say little about kernels with backports.
 */
#ifndef _UDMABUF_COMPAT_H
#define _UDMABUF_COMPAT_H

#include <linux/version.h>

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 1, 0)
#error "udmabuf needs Linux 6.1 or later"
#endif

#include <linux/mm.h>
#include <linux/module.h>
#include <linux/overflow.h>
#include <linux/sched/user.h>
#include <linux/slab.h>

/* The namespace was an identifier before it became a string. */
#undef MODULE_IMPORT_NS
#define MODULE_IMPORT_NS(ns) MODULE_INFO(import_ns, ns)

#ifndef overflows_type
#define overflows_type(n, T) ((T)(n) != (n))
#endif

#ifndef kzalloc_obj
#define kzalloc_obj(obj, gfp) kzalloc(sizeof(obj), gfp)
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

#ifdef HAVE_PAGE_HEAD_HUGE
/* folio_test_hugetlb() would need PageHeadHuge(), which is not exported. */
#define folio_test_hugetlb(folio) PageHuge(&(folio)->page)
#endif

#ifndef HAVE_FREE_UID
/*
 * The last reference cannot be dropped from a module. It stays, and the next
 * process of that user finds the structure it keeps.
 */
static inline void udmabuf_free_uid(struct user_struct *user)
{
	bool __always_unused dropped = refcount_dec_not_one(&user->__count);
}

#define free_uid udmabuf_free_uid
#endif

#ifdef HAVE_FLAWED_LONGTERM_PIN
/*
 * A read-only pin of a private page that was never written may pin the zero
 * page or the page cache; the owner's first write then goes to another page.
 *
 * And huge pages in the movable zone are not moved out of it: pinning them for
 * good ends in a warning. They are looked for with pins that may take them.
 */
static inline int udmabuf_pin_user_pages_fast(unsigned long start, int nr_pages,
					      unsigned int flags,
					      struct page **pages)
{
	int n, i;

	if (!(flags & FOLL_WRITE))
		return -EOPNOTSUPP;

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

#endif /* _UDMABUF_COMPAT_H */
