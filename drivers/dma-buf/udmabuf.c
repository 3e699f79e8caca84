// SPDX-License-Identifier: GPL-2.0-only
/*
 * udmabuf - export memory of a process as a dma-buf
 *
 * A process names ranges of its own memory or of memfds. The driver pins the
 * pages with FOLL_LONGTERM and exports them as one dma-buf. The process and all
 * importers access the same pages. The driver copies no data.
 *
 * Terms:
 *
 * - pgoff: index of a page in the buffer, below npages.
 * - extent: unit in which the driver stores the buffer: contiguous pages, stored
 *   as the first page, or a list of folios of one order. Extents are sorted by
 *   pgoff. An extent ends where the next one starts, the last one at npages.
 *   The same page may be in several extents.
 * - run: physically contiguous part of the buffer.
 * - map: one DMA mapping of the buffer by one importer.
 *
 * Invariants:
 *
 * - The extents do not change after the export, so readers need no lock.
 * - Every page is anonymous, hugetlb or shmem memory. Such memory needs no write
 *   notification. While pinned it is neither migrated nor reclaimed, and fork()
 *   gives the child a copy of it instead of write-protecting it.
 * - Memory of the process has one pin per page of the buffer. Memory of memfds
 *   has one pin per folio and extent: two extents may pin parts of one folio.
 * - The buffer records the charge, the user and perhaps the mm. The release
 *   uncharges these, and may run in any task, also in one without an mm.
 * - No lock is held while memory of the process is pinned, because a page fault
 *   in a userfaultfd range may block indefinitely. For memfds the inode lock is
 *   held for one batch, so that no seal is added between the check of the seals
 *   and the pins.
 *
 * Lock order: mmap_lock, dma_resv, then dma_lock or fault_lock, which do not
 * nest. The driver does not allocate memory under dma_lock, because reclaim may
 * run an importer's shrinker that unmaps the buffer. The inode lock nests with
 * mmap_lock only.
 */

#include <linux/capability.h>
#include <linux/cpumask.h>
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/falloc.h>
#include <linux/fcntl.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/hugetlb.h>
#include <linux/iosys-map.h>
#include <linux/magic.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/overflow.h>
#include <linux/page_table_check.h>
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/user.h>
#include <linux/shmem_fs.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/task_work.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <linux/xarray.h>
#include <uapi/linux/udmabuf.h>

#define CREATE_TRACE_POINTS
#include <trace/events/udmabuf.h>

/* A maximised window of a guest has up to 8,000 pieces on a 4K display. */
static unsigned int list_limit = 65536;
module_param(list_limit, uint, 0644);
MODULE_PARM_DESC(list_limit, "Most entries in one list. Default is 65536.");

static unsigned int size_limit_mb = INT_MAX;
module_param(size_limit_mb, uint, 0644);
MODULE_PARM_DESC(size_limit_mb,
		 "Largest buffer in MiB. Default is INT_MAX, beyond what can be addressed.");

/*
 * Pages for one call of pin_user_pages_fast(), which walks page tables with
 * interrupts disabled. Other callers pass more: iommufd up to 8,192.
 */
#define UDMABUF_PIN_PAGES	2048UL

/* Folios, and bytes that it may clear, for one call of memfd_pin_folios() */
#define UDMABUF_PIN_FOLIOS	512UL
#define UDMABUF_PIN_BYTES	SZ_32M

/*
 * Limit of a folio's reference count. A pin of a small folio takes
 * GUP_PIN_COUNTING_BIAS references. The limit is 2^n - 1, so the bitwise OR of
 * several counts exceeds it only if one of the counts does.
 */
#define UDMABUF_MAX_REFS	(INT_MAX / 4)

/* Pages that one caller may pin unchecked; fewer if many do: udmabuf_pin_limit() */
#define UDMABUF_PIN_INFLIGHT	65536UL

/*
 * Pages of a batch that are sampled to choose a list or contiguous extents, and
 * the size from which a batch may become a list.
 */
#define UDMABUF_SAMPLE		16UL
#define UDMABUF_MIN_LIST	256UL

/*
 * Possible CPUs up to which VmPin counts. For VmPin a buffer holds the mm, which has 84
 * bytes per CPU that nobody is charged for: from 47 CPUs on these can exceed the charge.
 */
#define UDMABUF_VMPIN_CPUS	32

/* Window that a fault populates: sequential faults double it, up to a page table */
#define UDMABUF_FAULT_MIN	16UL
#define UDMABUF_FAULT_MAX	min_t(unsigned long, 512, PTRS_PER_PTE)

/* One buffer, or several, may map the same page for DMA any number of times. */
#define UDMABUF_DMA_ATTRS	DMA_ATTR_DEBUGGING_IGNORE_CACHELINES

/* The caller determines the size of lists: no warning if there is no memory */
#define UDMABUF_GFP		(GFP_KERNEL_ACCOUNT | __GFP_NOWARN)

/* Part of a buffer: contiguous pages, or a list of folios */
struct udmabuf_extent {
	unsigned int pgoff;		/* first page in the buffer */
	bool listed;			/* list is valid, not page */
	unsigned char order;		/* list: 1 << order pages per folio */
	union {
		struct page *page;	/* first of the contiguous pages */
		struct page **list;	/* head page of each folio */
	};
};

/*
 * DMA mapping of an importer. attach() allocates one in advance, so that
 * map_dma_buf() does not wait for memory while dma_resv is locked.
 */
struct udmabuf_map {
	struct list_head node;		/* in udmabuf.maps while mapped */
	struct device *dev;		/* of the importer */
	enum dma_data_direction dir;	/* as mapped */
	struct sg_table sgt;		/* of segs */
	struct scatterlist segs[];
};

struct udmabuf {
	/* Grow while the buffer is created */
	pgoff_t npages;
	size_t nextents;

	struct udmabuf_extent *extents;
	size_t max_extents;	/* allocated entries of extents */
	pgoff_t max_npages;	/* npages of the complete buffer */
	struct page *last_page;	/* last page so far; NULL if in a list */
	bool writable;		/* not UDMABUF_FLAGS_RDONLY */
	bool folio_pins;	/* one pin per folio (memfds), not per page */

	/*
	 * Inodes of memfds, with a reference to each; mmap checks their seals. The
	 * latest is last_inode, the others are in inodes from index 0 on.
	 */
	struct xarray inodes;
	unsigned long ninodes, max_inodes;
	struct inode *last_inode;

	/* Charge; user is NULL if CAP_IPC_LOCK exempted the creator */
	unsigned long charged;
	struct user_struct *user;
	struct mm_struct *mm;	/* for VmPin; may be NULL */

	/*
	 * Held to map and list, to unlist and unmap, and to sync, so that a CPU
	 * access syncs all existing maps. Protects maps and vaddr.
	 */
	struct mutex dma_lock;
	struct list_head maps;
	void *vaddr;		/* kernel mapping; NULL if not mapped */
	struct page **vmap_pages;	/* of vaddr; dma_resv protects it and spare */
	struct page *spare;	/* zero page in place of failed pages */

	u64 ino;	/* of the dma-buf, whose file is gone at release */
};

/* State of a VMA: a fault does not wait for allocations of other processes. */
struct udmabuf_mapping {
	struct udmabuf *ubuf;
	/* Serializes PTE and PMD faults; protects the members below */
	struct mutex fault_lock;
	pgoff_t fault_pgoff;		/* end of the last fault's window */
	unsigned long fault_pages;	/* pages in that window */
};

/* Charging */

static bool udmabuf_charge_user(struct user_struct *user, unsigned long npages)
{
	unsigned long limit = rlimit(RLIMIT_MEMLOCK) >> PAGE_SHIFT;
	unsigned long old = atomic_long_read(&user->locked_vm);

	do {
		if (npages > limit || old > limit - npages)
			return false;
	} while (!atomic_long_try_cmpxchg(&user->locked_vm, &old, old + npages));
	return true;
}

/* Limits the user, not the mm: a process could escape a limit of its mm by fork(). */
static int udmabuf_charge(struct udmabuf *ubuf, unsigned long npages)
{
	if (!capable(CAP_IPC_LOCK)) {
		if (!udmabuf_charge_user(current_user(), npages))
			return -ENOMEM;
		ubuf->user = get_uid(current_user());
	}

	if (num_possible_cpus() <= UDMABUF_VMPIN_CPUS) {
		ubuf->mm = current->mm;
		mmgrab(ubuf->mm);
		atomic64_add(npages, &ubuf->mm->pinned_vm);
	}
	ubuf->charged = npages;
	return 0;
}

static void udmabuf_uncharge(struct udmabuf *ubuf)
{
	if (ubuf->user) {
		atomic_long_sub(ubuf->charged, &ubuf->user->locked_vm);
		free_uid(ubuf->user);
	}
	if (ubuf->mm) {
		atomic64_sub(ubuf->charged, &ubuf->mm->pinned_vm);
		mmdrop(ubuf->mm);
	}
}

/* Extents */

static pgoff_t udmabuf_extent_end(const struct udmabuf *ubuf, size_t i)
{
	return i + 1 < ubuf->nextents ? ubuf->extents[i + 1].pgoff : ubuf->npages;
}

/* Returns the index of the extent with @pgoff, which must be below npages. */
static size_t udmabuf_find_extent(const struct udmabuf *ubuf, pgoff_t pgoff)
{
	size_t first = 0, end = ubuf->nextents;

	while (end - first > 1) {
		size_t mid = first + (end - first) / 2;

		if (ubuf->extents[mid].pgoff <= pgoff)
			first = mid;
		else
			end = mid;
	}
	return first;
}

/* Returns the page at @pgoff, which must be in extent @i. */
static inline struct page *udmabuf_extent_page(const struct udmabuf *ubuf, size_t i, pgoff_t pgoff)
{
	const struct udmabuf_extent *extent = &ubuf->extents[i];

	pgoff -= extent->pgoff;
	if (!extent->listed)
		return extent->page + pgoff;
	return extent->list[pgoff >> extent->order] +
	       (pgoff & ((1UL << extent->order) - 1));
}

static int udmabuf_resize_extents(struct udmabuf *ubuf, size_t max_extents)
{
	struct udmabuf_extent *extents;
	size_t i, n;

	extents = kvmalloc_objs(*extents, max_extents, UDMABUF_GFP);
	if (!extents)
		return -ENOMEM;
	for (i = 0; i < ubuf->nextents; i += n) {
		n = min(ubuf->nextents - i, SZ_64K);
		memcpy(extents + i, ubuf->extents + i, n * sizeof(*extents));
		cond_resched();
	}
	kvfree(ubuf->extents);
	ubuf->extents = extents;
	ubuf->max_extents = max_extents;
	return 0;
}

/* Makes room for one extent. kvmalloc() fails for more than INT_MAX bytes. */
static int udmabuf_reserve_extent(struct udmabuf *ubuf)
{
	size_t limit = min_t(size_t, ubuf->max_npages, INT_MAX / sizeof(*ubuf->extents));

	if (ubuf->nextents < ubuf->max_extents)
		return 0;
	if (ubuf->nextents >= limit)
		return -ENOMEM;
	return udmabuf_resize_extents(ubuf, min(2 * ubuf->max_extents ?: 16, limit));
}

/* Shrinking is optional: if the allocation fails, the larger array remains. */
static void udmabuf_trim_extents(struct udmabuf *ubuf)
{
	if (ubuf->nextents + ubuf->nextents / 16 < ubuf->max_extents)
		udmabuf_resize_extents(ubuf, ubuf->nextents);
}

/*
 * Returns whether @next follows @page, both as struct page and as page frame. Range
 * functions rely on both; without SPARSEMEM_VMEMMAP one does not imply the other.
 */
static bool udmabuf_pages_adjoin(struct page *page, struct page *next)
{
	return next == page + 1 && (IS_ENABLED(CONFIG_SPARSEMEM_VMEMMAP) ||
				    page_to_pfn(next) == page_to_pfn(page) + 1);
}

/* Returns the number of pages from @page to the end of @folio. */
static unsigned long udmabuf_folio_rest(struct folio *folio, struct page *page)
{
	return folio_nr_pages(folio) - folio_page_idx(folio, page);
}

/* Appends contiguous pages to the buffer. */
static inline int udmabuf_append(struct udmabuf *ubuf, struct page *page,
				 unsigned long npages)
{
	/* A tail page would be a second pin of its folio in one extent. */
	if (!ubuf->last_page || !udmabuf_pages_adjoin(ubuf->last_page, page) ||
	    (ubuf->folio_pins && PageTail(page))) {
		if (udmabuf_reserve_extent(ubuf))
			return -ENOMEM;
		ubuf->extents[ubuf->nextents++] = (struct udmabuf_extent) {
			.pgoff = ubuf->npages,
			.page = page,
		};
	}
	ubuf->npages += npages;
	ubuf->last_page = page + npages - 1;
	return 0;
}

/* Seals */

/* Returns the seals of a regular shmem or hugetlbfs file, -EBADFD otherwise. */
static int udmabuf_get_seals(struct inode *inode)
{
	/* hugetlbfs does not initialize the seals of its root directory. */
	if (!S_ISREG(inode->i_mode))
		return -EBADFD;
	if (shmem_mapping(inode->i_mapping))
		return READ_ONCE(SHMEM_I(inode)->seals);
#ifdef CONFIG_HUGETLBFS
	if (inode->i_sb->s_magic == HUGETLBFS_MAGIC)
		return READ_ONCE(HUGETLBFS_I(inode)->seals);
#endif
	return -EBADFD;
}

#define UDMABUF_WRITE_SEALS	(F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)

/*
 * Returns whether mmap must check the seals of @inode later. Seals are never removed,
 * and F_SEAL_SEAL prevents new ones. shmem and hugetlbfs files that are no memfds have
 * F_SEAL_SEAL, so only inodes of memfds are kept. These are on internal mounts: a
 * reference to an inode blocks no umount.
 */
static bool udmabuf_must_keep_inode(const struct udmabuf *ubuf, struct inode *inode)
{
	int seals;

	if (!ubuf->writable || inode == ubuf->last_inode)
		return false;
	seals = udmabuf_get_seals(inode);
	return seals >= 0 && (!(seals & F_SEAL_SEAL) || seals & UDMABUF_WRITE_SEALS);
}

/*
 * Consumes the caller's reference to @inode, also on failure. An inode may be kept
 * several times; max_inodes bounds the time that mmap needs to check all of them.
 */
static int udmabuf_keep_inode(struct udmabuf *ubuf, struct inode *inode)
{
	int ret = 0;

	if (ubuf->ninodes >= ubuf->max_inodes)
		ret = -E2BIG;
	else if (icount_read_once(inode) > UDMABUF_MAX_REFS)
		ret = -ENOMEM;
	else if (ubuf->ninodes)
		ret = xa_insert(&ubuf->inodes, ubuf->ninodes - 1, ubuf->last_inode, UDMABUF_GFP);
	if (ret) {
		iput(inode);
		return ret;
	}
	ubuf->ninodes++;
	ubuf->last_inode = inode;
	return 0;
}

static void udmabuf_put_inodes(struct udmabuf *ubuf)
{
	unsigned long i;

	iput(ubuf->last_inode);
	for (i = 1; i < ubuf->ninodes; i++) {
		iput(xa_load(&ubuf->inodes, i - 1));
		cond_resched();
	}
	xa_destroy(&ubuf->inodes);
}

/* Returns whether a memfd of the buffer is sealed against new writers. */
static bool udmabuf_is_sealed(struct udmabuf *ubuf)
{
	XA_STATE(xas, &ubuf->inodes, 0);
	int seals = ubuf->last_inode ? udmabuf_get_seals(ubuf->last_inode) : 0;
	struct inode *inode;

	rcu_read_lock();
	xas_for_each(&xas, inode, ULONG_MAX)
		seals |= udmabuf_get_seals(inode);
	rcu_read_unlock();
	return seals & UDMABUF_WRITE_SEALS;
}

/* Pinning memory of the process */

/*
 * Returns whether any page of the machine has failed since boot. The kernel counts a
 * failure at the end of memory_failure(); for this driver the page fails only then. x86
 * also flags pages of TDX guests without memory_failure(): only creation detects these.
 */
static bool udmabuf_any_poison(void)
{
#ifdef CONFIG_MEMORY_FAILURE
	int nid;

	for_each_online_node(nid)
		if (READ_ONCE(NODE_DATA(nid)->mf_stats.total))
			return true;
#endif
	return false;
}

static bool udmabuf_folio_poisoned(struct folio *folio)
{
	unsigned long flags = READ_ONCE(*folio_flags(folio, 0));

	return flags & __PG_HWPOISON ||
	       (flags & BIT(PG_head) && folio_test_has_hwpoisoned(folio));
}

/* GUP refuses a poisoned page, except in a pinned THP, which stays mapped. */
static noinline bool udmabuf_pages_poisoned(struct page *page, unsigned long npages)
{
	for (; npages; npages--)
		if (is_page_hwpoison(page++))
			return true;
	return false;
}

/* Returns -EHWPOISON if a page of the buffer has failed, -EINTR on fatal signals. */
static int udmabuf_check_poison(const struct udmabuf *ubuf, bool killable)
{
	pgoff_t pgoff, n;
	size_t i;

	if (!udmabuf_any_poison())
		return 0;

	for (pgoff = 0, i = 0; i < ubuf->nextents; i++) {
		pgoff_t end = udmabuf_extent_end(ubuf, i);

		for (; pgoff < end; pgoff += n) {
			struct page *page = udmabuf_extent_page(ubuf, i, pgoff);
			struct folio *folio = page_folio(page);

			n = min(end - pgoff, udmabuf_folio_rest(folio, page));
			if (udmabuf_folio_poisoned(folio) &&
			    udmabuf_pages_poisoned(page, n))
				return -EHWPOISON;
			if (killable && fatal_signal_pending(current))
				return -EINTR;
			cond_resched();
		}
	}
	return 0;
}

/*
 * Checks a pinned folio that is not anonymous. Except for shmem and hugetlb, such
 * folios need write notification; GUP refuses most for writing, but not for reading.
 * Truncation may clear folio->mapping at any time: a folio that has left its file is
 * refused, unless it is hugetlb, which never needs notification.
 */
static noinline int udmabuf_check_file(struct udmabuf *ubuf, struct folio *folio)
{
	struct address_space *mapping;
	struct inode *inode = NULL;
	bool allowed;

	/* RCU keeps the inode allocated; igrab() fails while it is being freed. */
	rcu_read_lock();
	mapping = READ_ONCE(folio->mapping);
	allowed = folio_test_hugetlb(folio) || (mapping && shmem_mapping(mapping));
	if (allowed && mapping && udmabuf_must_keep_inode(ubuf, mapping->host))
		inode = igrab(mapping->host);
	rcu_read_unlock();

	if (!allowed)
		return mapping ? -EOPNOTSUPP : -EFAULT;
	return inode ? udmabuf_keep_inode(ubuf, inode) : 0;
}

/* Checks pages of @folio that were just pinned, before the buffer gets them. */
static int udmabuf_check_pages(struct udmabuf *ubuf, struct folio *folio,
			       struct page *page, unsigned long npages)
{
	if (folio_ref_count(folio) > UDMABUF_MAX_REFS)
		return -ENOMEM;
	if (udmabuf_folio_poisoned(folio) && udmabuf_pages_poisoned(page, npages))
		return -EFAULT;
	/* Anonymous folios stay anonymous; truncation may clear a file's mapping. */
	return data_race(folio_test_anon(folio)) ? 0 : udmabuf_check_file(ubuf, folio);
}

/*
 * GUP returns -EFAULT both for missing memory and for files of a file system. Returns
 * whether @addr maps such a file. Takes mmap_lock.
 */
static bool udmabuf_is_file_range(unsigned long addr, bool writable)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	bool ret = false;

	if (mmap_read_lock_killable(mm))
		return false;
	vma = vma_lookup(mm, untagged_addr(addr));
	if (vma && vma->vm_file && !is_vm_hugetlb_page(vma) &&
	    !(vma->vm_flags & (VM_IO | VM_PFNMAP)) &&
	    (vma->vm_flags & VM_MAYSHARE) &&
	    (vma->vm_flags & (writable ? VM_WRITE : VM_READ)))
		ret = !shmem_mapping(vma->vm_file->f_mapping) &&
		      file_inode(vma->vm_file)->i_sb->s_magic != SECRETMEM_MAGIC;
	mmap_read_unlock(mm);
	return ret;
}

static int udmabuf_pin_error(unsigned long addr, int err, bool writable)
{
	if (err == -EINTR || err == -ENOMEM || err == -EOPNOTSUPP)
		return err;
	/* A page could not be migrated out of ZONE_MOVABLE or CMA. */
	if (err == -EAGAIN || err == -EBUSY)
		return -ENOMEM;
	return udmabuf_is_file_range(addr, writable) ? -EOPNOTSUPP : -EFAULT;
}

/* Callers that hold, or are about to take, pins on folios not yet checked */
static atomic_t udmabuf_pinners = ATOMIC_INIT(0);

/*
 * Returns how many pages a caller, itself counted in udmabuf_pinners, may pin before it
 * checks their reference counts: all of a batch may be one page. The n-th concurrent
 * caller pins at most UDMABUF_PIN_INFLIGHT / n pages, and no page beyond
 * UDMABUF_PIN_INFLIGHT callers. So all callers together hold fewer than
 * UDMABUF_PIN_INFLIGHT * (1 + ln(65536 / 32)) * GUP_PIN_COUNTING_BIAS < 0.6e9
 * unchecked references. Added to UDMABUF_MAX_REFS, this stays below INT_MAX.
 */
static unsigned long udmabuf_pin_limit(unsigned long max)
{
	return min(UDMABUF_PIN_INFLIGHT / atomic_read(&udmabuf_pinners), max);
}

/*
 * Entries from @first to @end are pinned, but not yet in the buffer. Memory of the
 * process is checked when the batch is flushed, at @limit pages, which is below @max
 * while many callers pin. The @inode of the memfd being pinned is locked.
 */
struct udmabuf_batch {
	struct page **pages;
	unsigned long first, end;
	unsigned long limit, max;
	struct inode *inode;
};

/* The buffer owns the pins. Checks for fatal signals, which GUP-fast does not do. */
static int udmabuf_empty_batch(struct udmabuf_batch *batch)
{
	batch->first = 0;
	batch->end = 0;
	cond_resched();
	return fatal_signal_pending(current) ? -EINTR : 0;
}

/* Returns whether a list of the batch, up to @end, would be smaller than extents. */
static bool udmabuf_is_scattered(const struct udmabuf_batch *batch, unsigned long end)
{
	unsigned long i, adjoining = 0;

	if (batch->first || end < UDMABUF_MIN_LIST)
		return false;
	for (i = 1; i < UDMABUF_SAMPLE; i++)
		adjoining += udmabuf_pages_adjoin(batch->pages[i - 1],
						  batch->pages[i]);
	return adjoining < UDMABUF_SAMPLE / 2;
}

/* Adds the batch, up to @end, as a list of folios of @order. */
static int udmabuf_add_list(struct udmabuf *ubuf, struct udmabuf_batch *batch,
			    unsigned long end, unsigned int order)
{
	struct page **list;
	int ret;

	ret = udmabuf_reserve_extent(ubuf);
	if (ret)
		return ret;
	list = kmemdup(batch->pages, end * sizeof(*list), UDMABUF_GFP);
	if (!list)
		return -ENOMEM;
	ubuf->extents[ubuf->nextents++] = (struct udmabuf_extent) {
		.pgoff = ubuf->npages,
		.listed = true,
		.order = order,
		.list = list,
	};
	ubuf->npages += end << order;
	ubuf->last_page = NULL;
	batch->first = end;
	return 0;
}

/* Returns how many pages, from the first on, are contiguous, at most @max. */
static unsigned long udmabuf_count_adjoining(struct page **pages, unsigned long max)
{
	struct page *last = pages[0];
	unsigned long n;

	for (n = 1; n < max && udmabuf_pages_adjoin(last, pages[n]); n++)
		last++;
	return n;
}

/* Checks and adds pages of any kind. */
static int udmabuf_add_pages(struct udmabuf *ubuf, struct udmabuf_batch *batch)
{
	while (batch->first < batch->end) {
		struct page **pages = batch->pages + batch->first;
		struct folio *folio = page_folio(pages[0]);
		unsigned long n;
		int ret;

		n = min(batch->end - batch->first, udmabuf_folio_rest(folio, pages[0]));
		n = udmabuf_count_adjoining(pages, n);
		ret = udmabuf_check_pages(ubuf, folio, pages[0], n);
		if (!ret)
			ret = udmabuf_append(ubuf, pages[0], n);
		if (ret)
			return ret;
		batch->first += n;
	}
	return 0;
}

/* Adds pages up to @end, which the caller has checked. */
static int udmabuf_add_checked(struct udmabuf *ubuf, struct udmabuf_batch *batch,
			       unsigned long end)
{
	if (udmabuf_is_scattered(batch, end))
		return udmabuf_add_list(ubuf, batch, end, 0);

	while (batch->first < end) {
		struct page **pages = batch->pages + batch->first;
		unsigned long n;
		int ret;

		n = udmabuf_count_adjoining(pages, end - batch->first);
		ret = udmabuf_append(ubuf, pages[0], n);
		if (ret)
			return ret;
		batch->first += n;
	}
	return 0;
}

/* The common case. A pinned folio is not split: a page that is no tail is a folio. */
static bool udmabuf_all_small_anon(struct page **pages, unsigned long npages)
{
	unsigned long i, flags = 0, mapping = FOLIO_MAPPING_ANON;
	unsigned int refs = 0;

	for (i = 0; i < npages; i++) {
		struct folio *folio = (struct folio *)pages[i];

		if (PageTail(pages[i]))
			return false;
		/* Other flags may change at any time. */
		flags |= data_race(*folio_flags(folio, 0));
		/* Truncation may clear the mapping of a file, not an anonymous one. */
		mapping &= (unsigned long)data_race(folio->mapping);
		refs |= folio_ref_count(folio);
	}
	return mapping && refs <= UDMABUF_MAX_REFS &&
	       !(flags & (BIT(PG_head) | __PG_HWPOISON));
}

static int udmabuf_flush(struct udmabuf *ubuf, struct udmabuf_batch *batch)
{
	int ret;

	if (udmabuf_all_small_anon(batch->pages, batch->end))
		ret = udmabuf_add_checked(ubuf, batch, batch->end);
	else
		ret = udmabuf_add_pages(ubuf, batch);
	batch->limit = udmabuf_pin_limit(batch->max);
	return ret ?: udmabuf_empty_batch(batch);
}

static int udmabuf_pin_range(struct udmabuf *ubuf, unsigned long addr,
			     unsigned long npages, struct udmabuf_batch *batch)
{
	unsigned int flags = FOLL_LONGTERM | (ubuf->writable ? FOLL_WRITE : 0);
	int ret = 0, n;

	while (!ret && npages) {
		if (!batch->limit)
			return -ENOMEM;
		/* After a partial pin the next call returns the error. */
		n = pin_user_pages_fast(addr, min(npages, batch->limit - batch->end),
					flags, batch->pages + batch->end);
		if (n <= 0)
			return udmabuf_pin_error(addr, n, ubuf->writable);
		batch->end += n;
		addr += (unsigned long)n << PAGE_SHIFT;
		npages -= n;
		if (batch->end == batch->limit)
			ret = udmabuf_flush(ubuf, batch);
	}
	return ret;
}

static int udmabuf_pin_iovs(struct udmabuf *ubuf,
			    const struct udmabuf_iovec *iovs, u32 niov,
			    struct udmabuf_batch *batch)
{
	u32 i, n;
	u64 len;
	int ret;

	batch->limit = udmabuf_pin_limit(batch->max);
	for (i = 0; i < niov; i += n) {
		/* Pin adjacent ranges together. */
		len = iovs[i].len;
		for (n = 1; i + n < niov && iovs[i + n].base == iovs[i].base + len; n++)
			len += iovs[i + n].len;
		if (overflows_type(iovs[i].base + len - 1, unsigned long))
			return -EFAULT;
		ret = udmabuf_pin_range(ubuf, iovs[i].base, len >> PAGE_SHIFT,
					batch);
		if (ret)
			return ret;
	}
	return udmabuf_flush(ubuf, batch);
}

/* Pinning memfds */

/* The errnos are ABI: programs use EINVAL and EBADFD to select a fallback. */
static int udmabuf_check_memfd(struct file *memfd, u64 start, u64 size)
{
	int seals = udmabuf_get_seals(file_inode(memfd));
	u64 end;

	if (seals < 0)
		return seals;
	if (!(seals & F_SEAL_SHRINK) || seals & UDMABUF_WRITE_SEALS)
		return -EINVAL;
	if (!size || check_add_overflow(start, size, &end) ||
	    end > i_size_read(file_inode(memfd)))
		return -EINVAL;
	/* A descriptor for reading must not become a buffer for writing. */
	if (!(memfd->f_mode & FMODE_WRITE))
		return -EACCES;
	return 0;
}

/*
 * Returns -EFAULT for a poisoned page in the page cache, which stays there.
 * memfd_pin_folios() would pin it. If it had to migrate the page first, it would
 * retry endlessly, because a poisoned page cannot be isolated.
 */
static int udmabuf_check_cache(struct address_space *mapping, pgoff_t first,
			       pgoff_t last)
{
	XA_STATE(xas, &mapping->i_pages, first);
	bool poisoned = false;
	struct folio *folio;

	if (!udmabuf_any_poison())
		return 0;

	rcu_read_lock();
	xas_for_each(&xas, folio, last) {
		if (xas_retry(&xas, folio) || xa_is_value(folio) || !folio_try_get(folio))
			continue;
		poisoned = udmabuf_folio_poisoned(folio);
		folio_put(folio);
		if (poisoned)
			break;
	}
	rcu_read_unlock();
	return poisoned ? -EFAULT : 0;
}

static void udmabuf_unlock_inode(struct udmabuf_batch *batch)
{
	if (batch->inode)
		inode_unlock_shared(batch->inode);
	batch->inode = NULL;
}

/* The caller holds the inode lock: no truncation, no hole punching meanwhile. */
static bool udmabuf_has_holes(struct file *memfd, u64 start, u64 end)
{
	unsigned long size = huge_page_size(hstate_file(memfd));
	struct folio *folio;

	for (start = round_down(start, size); start < end; start += size) {
		folio = filemap_get_folio(memfd->f_mapping, start >> PAGE_SHIFT);
		if (IS_ERR(folio))
			return true;
		folio_put(folio);
	}
	return false;
}

/*
 * vfs_fallocate() stops at signals and task work, and a timer can send either without
 * end. So block all signals but SIGKILL and defer task work: each call fills a page or
 * more, and the caller repeats it. A stop (SIGSTOP) restarts the system call.
 */
static int udmabuf_fill_holes(struct file *memfd, u64 start, u64 end)
{
	unsigned int flags = memalloc_pin_save();
	sigset_t blocked, old;
	int ret;

	siginitsetinv(&blocked, sigmask(SIGKILL));
	sigprocmask(SIG_BLOCK, &blocked, &old);
	clear_notify_signal();
	ret = vfs_fallocate(memfd, FALLOC_FL_KEEP_SIZE, start, end - start);
	if (task_work_pending(current))
		set_thread_flag(TIF_NOTIFY_SIGNAL);
	sigprocmask(SIG_SETMASK, &old, NULL);
	memalloc_pin_restore(flags);
	if (ret != -EINTR || fatal_signal_pending(current))
		return ret;
	return task_sigpending(current) ? restart_syscall() : 0;
}

/*
 * Locks the inode, checks that [start, end) may be pinned, and fills the holes of a
 * hugetlb file up to @stop. memfd_pin_folios() must not find a hole there:
 * memfd_alloc_folio() does not look up the page again under the fault mutex. In a race
 * with another caller or a page fault it fails although pages are free, or consumes the
 * reservation of another file, until HugePages_Rsvd drops below 0. The caller unlocks
 * the inode, also after a failure.
 */
static int udmabuf_lock_memfd(struct udmabuf_batch *batch, struct file *memfd,
			      u64 start, u64 end, u64 stop)
{
	int ret;

	for (;;) {
		if (!batch->inode && inode_lock_shared_killable(file_inode(memfd)))
			return -EINTR;
		batch->inode = file_inode(memfd);
		ret = udmabuf_check_memfd(memfd, start, end - start);
		if (ret || !is_file_hugepages(memfd) ||
		    !udmabuf_has_holes(memfd, start, stop))
			return ret;
		udmabuf_unlock_inode(batch);
		ret = udmabuf_fill_holes(memfd, start, stop);
		if (ret)
			return ret;
	}
}

/*
 * Waits until pinned shmem folios are valid, and in the file from @index on. Returns
 * -EAGAIN if the file has another folio there. fallocate() leaves uncleared pages in
 * the page cache, and a page fault inserts a page before it clears it. Reclaim may be
 * removing a folio: before it checks for pins, it clears PG_lru by a fully ordered
 * atomic operation, and locks the folio.
 */
static int udmabuf_settle_folios(struct address_space *mapping, pgoff_t index,
				 struct folio **folios, unsigned long nfolios)
{
	unsigned long i;

	for (i = 0; i < nfolios; i++, index += folio_nr_pages(folios[i - 1])) {
		struct folio *folio = folios[i];
		bool settled;

		folio_lock(folio);
		settled = folio->mapping == mapping && folio->index == index &&
			  folio_test_uptodate(folio);
		folio_unlock(folio);
		if (settled)
			continue;
		folio = shmem_read_folio(mapping, index);
		if (IS_ERR(folio))
			return PTR_ERR(folio);
		folio_put(folio);
		if (folio != folios[i])
			return -EAGAIN;
	}
	return 0;
}

/*
 * Checks pinned folios, of which the first must be at @index of the file. Folios are in
 * file order: if memfd_pin_folios() skips one (6.12, during reclaim), the end differs.
 */
static int udmabuf_check_folios(struct address_space *mapping, pgoff_t index,
				struct folio **folios, unsigned long nfolios,
				bool *large)
{
	unsigned long i, any = 0, all = ~0UL, other = 0, npages = nfolios;
	unsigned int refs = 0;

	smp_mb__after_atomic();	/* pins before PG_lru, see udmabuf_settle_folios() */
	for (i = 0; i < nfolios; i++) {
		struct folio *folio = folios[i];
		unsigned long flags = READ_ONCE(*folio_flags(folio, 0));

		smp_rmb();	/* PG_lru before the mapping */
		any |= flags;
		all &= flags;
		other |= (unsigned long)mapping ^ (unsigned long)READ_ONCE(folio->mapping);
		refs |= folio_ref_count(folio);
	}
	*large = any & BIT(PG_head);
	if (refs > UDMABUF_MAX_REFS)
		return -ENOMEM;
	if (any & __PG_HWPOISON)
		return -EFAULT;
	for (i = 0; *large && i < nfolios; i++) {
		unsigned long n = folio_nr_pages(folios[i]);

		if (n > 1 && folio_test_has_hwpoisoned(folios[i]))
			return -EFAULT;
		npages += n - 1;
	}
	other |= (index + npages) ^ folio_next_index(folios[nfolios - 1]);
	/* hugetlb folios are valid, and the inode lock keeps them in the file. */
	if (shmem_mapping(mapping) && (other || ~all & (BIT(PG_uptodate) | BIT(PG_lru))))
		return udmabuf_settle_folios(mapping, index, folios, nfolios);
	return 0;
}

/*
 * Pins a part of [start, end) and returns the number of folios, or -EAGAIN if the
 * caller must retry. @skip pages of the first folio are before @start.
 */
static long udmabuf_pin_folios(struct udmabuf_batch *batch, struct file *memfd,
			       u64 start, u64 end, unsigned long *skip, bool *large)
{
	struct folio **folios = (struct folio **)batch->pages + batch->end;
	struct address_space *mapping = memfd->f_mapping;
	u64 stop = min(end, round_down(start, UDMABUF_PIN_BYTES) + UDMABUF_PIN_BYTES);
	unsigned long limit;
	pgoff_t offset;
	long n;
	int ret;

	ret = udmabuf_lock_memfd(batch, memfd, start, end, stop);
	if (!ret)
		ret = udmabuf_check_cache(mapping, start >> PAGE_SHIFT, (stop - 1) >> PAGE_SHIFT);
	if (ret)
		return ret;

	/* Counted only now: callers that wait for the lock have no unchecked pins. */
	atomic_inc(&udmabuf_pinners);
	limit = udmabuf_pin_limit(batch->max - batch->end);
	n = limit ? memfd_pin_folios(memfd, start, stop - 1, folios, limit, &offset) : -ENOMEM;
	if (n > 0)
		ret = udmabuf_check_folios(mapping, (start - offset) >> PAGE_SHIFT,
					   folios, n, large);
	if (ret)
		unpin_user_pages((struct page **)folios, n);
	atomic_dec(&udmabuf_pinners);
	if (ret || n <= 0)
		return ret ?: n ?: -EINVAL;

	batch->end += n;
	*skip = offset >> PAGE_SHIFT;
	return n;
}

/* Adds @npages pages of the folios, after the first @skip pages. */
static int udmabuf_add_folios(struct udmabuf *ubuf, struct udmabuf_batch *batch,
			      unsigned long skip, unsigned long npages)
{
	while (batch->first < batch->end) {
		struct folio *folio = (struct folio *)batch->pages[batch->first];
		unsigned long n = min(npages, folio_nr_pages(folio) - skip);
		int ret;

		ret = udmabuf_append(ubuf, &folio->page + skip, n);
		if (ret)
			return ret;
		batch->first++;
		npages -= n;
		skip = 0;
	}
	return 0;
}

static bool udmabuf_same_order(struct folio **folios, unsigned long nfolios)
{
	unsigned int order = folio_order(folios[0]);
	unsigned long i;

	for (i = 1; i < nfolios; i++)
		if (folio_order(folios[i]) != order)
			return false;
	return true;
}

/*
 * Unlocks the inode and adds the folios of the batch. The first @nsmall are small. Of
 * the other folios, @skip pages are left out and at most @npages pages are added.
 */
static int udmabuf_flush_folios(struct udmabuf *ubuf, struct udmabuf_batch *batch,
				unsigned long nsmall, unsigned long skip,
				unsigned long npages)
{
	struct folio **folios = (struct folio **)batch->pages;
	int ret;

	udmabuf_unlock_inode(batch);
	ret = udmabuf_add_checked(ubuf, batch, nsmall);
	if (ret)
		return ret;
	if (udmabuf_is_scattered(batch, batch->end) && !skip &&
	    udmabuf_same_order(folios, batch->end) &&
	    batch->end << folio_order(folios[0]) <= npages)
		ret = udmabuf_add_list(ubuf, batch, batch->end, folio_order(folios[0]));
	else
		ret = udmabuf_add_folios(ubuf, batch, skip, npages);
	return ret ?: udmabuf_empty_batch(batch);
}

static int udmabuf_pin_memfd(struct udmabuf *ubuf, struct file *memfd,
			     u64 start, u64 size, struct udmabuf_batch *batch)
{
	pgoff_t pgoff = ubuf->npages + batch->end;
	u64 end = start + size;
	int ret;

	do {
		unsigned long first = batch->end, skip;
		bool large;
		long n;

		ret = fatal_signal_pending(current) ? -EINTR : 0;
		n = ret ?: udmabuf_pin_folios(batch, memfd, start, end, &skip, &large);
		if (n == -EAGAIN)
			continue;
		/* ENOSPC: tmpfs, hugetlb or overcommit limit. EIO: failed page. */
		if (n < 0)
			return n == -ENOSPC ? -ENOMEM : n == -EIO ? -EFAULT : n;
		if (large)
			ret = udmabuf_flush_folios(ubuf, batch, first, skip,
						   (end - start) >> PAGE_SHIFT);
		else if (batch->end == batch->max)
			ret = udmabuf_flush_folios(ubuf, batch, batch->end, 0, 0);
		start += (u64)(ubuf->npages + batch->end - pgoff) << PAGE_SHIFT;
		pgoff = ubuf->npages + batch->end;
	} while (!ret && start != end);
	return ret;
}

/* Returns how many items form one range of a memfd, and its @size in bytes. */
static u32 udmabuf_count_neighbours(const struct udmabuf_create_item *items,
				    u32 count, u64 *size)
{
	u32 n;

	*size = items[0].size;
	for (n = 1; n < count && items[n].size && *size &&
	     items[n].memfd == items[0].memfd &&
	     items[n].offset == items[0].offset + *size; n++)
		*size += items[n].size;
	return n;
}

static int udmabuf_pin_items(struct udmabuf *ubuf,
			     const struct udmabuf_create_item *items, u32 count,
			     struct udmabuf_batch *batch)
{
	struct file *memfd = NULL;
	int ret = 0;
	u64 size;
	u32 i, n;

	for (i = 0; !ret && i < count; i += n) {
		if (!i || items[i].memfd != items[i - 1].memfd) {
			udmabuf_unlock_inode(batch);
			if (memfd)
				fput(memfd);
			memfd = fget(items[i].memfd);
			if (!memfd)
				return -EBADFD;
			if (udmabuf_must_keep_inode(ubuf, file_inode(memfd)))
				ret = udmabuf_keep_inode(ubuf, igrab(file_inode(memfd)));
		}
		n = udmabuf_count_neighbours(items + i, count - i, &size);
		ret = ret ?: udmabuf_pin_memfd(ubuf, memfd, items[i].offset,
					       size, batch);
	}
	udmabuf_unlock_inode(batch);
	fput(memfd);
	if (!ret && batch->end)
		ret = udmabuf_flush_folios(ubuf, batch, batch->end, 0, 0);
	return ret;
}

/* Pinning a buffer */

/* The checked list of ranges for a buffer: either iovs or items */
struct udmabuf_source {
	const struct udmabuf_iovec *iovs;
	const struct udmabuf_create_item *items;
	u32 count;
	unsigned long npages, max_inodes;
};

/* On failure the buffer keeps the pages pinned so far, for udmabuf_free(). */
static int udmabuf_pin(struct udmabuf *ubuf, const struct udmabuf_source *source)
{
	struct udmabuf_batch batch = {
		.max = min(source->npages, source->iovs ? UDMABUF_PIN_PAGES :
							  UDMABUF_PIN_FOLIOS),
	};
	int ret;

	batch.pages = kmalloc_objs(*batch.pages, batch.max, UDMABUF_GFP);
	if (!batch.pages)
		return -ENOMEM;

	if (source->iovs)
		atomic_inc(&udmabuf_pinners);
	if (source->iovs)
		ret = udmabuf_pin_iovs(ubuf, source->iovs, source->count, &batch);
	else
		ret = udmabuf_pin_items(ubuf, source->items, source->count, &batch);
	/* Left after a failure: pages or folios, one pin each */
	unpin_user_pages(batch.pages + batch.first, batch.end - batch.first);
	if (source->iovs)
		atomic_dec(&udmabuf_pinners);

	kfree(batch.pages);
	if (!ret)
		udmabuf_trim_extents(ubuf);
	return ret;
}

/* Unpinning */

/*
 * Writes by devices and through PFN mappings set no dirty bit that reclaim checks.
 * Unless @dirty is set after such writes, reclaim may discard the data.
 */
static void udmabuf_unpin_folio(struct folio *folio, unsigned long npins, bool dirty)
{
	if (!dirty || folio_test_dirty(folio)) {
		unpin_user_folio(folio, npins);
	} else if (data_race(folio_test_anon(folio))) {	/* see udmabuf_check_pages() */
		/* No truncation to exclude, no file system to notify */
		folio_set_dirty(folio);
		unpin_user_folio(folio, npins);
	} else {
		unpin_user_page_range_dirty_lock(&folio->page, npins, true);
	}
}

static void udmabuf_unpin_run(const struct udmabuf *ubuf, struct page *page,
			      unsigned long npages, bool dirty)
{
	unsigned long n;

	for (; npages; page += n, npages -= n) {
		struct folio *folio = page_folio(page);

		n = min(npages, udmabuf_folio_rest(folio, page));
		udmabuf_unpin_folio(folio, ubuf->folio_pins ? 1 : n, dirty);
		cond_resched();
	}
}

static void udmabuf_unpin_list(struct page **list, unsigned long n, bool dirty)
{
	unsigned long i;

	/* Lists have whole folios only, each with one pin. */
	for (i = 0; i < n; i++)
		udmabuf_unpin_folio((struct folio *)list[i], 1, dirty);
	kfree(list);
}

static void udmabuf_unpin(struct udmabuf *ubuf, bool dirty)
{
	size_t i;

	for (i = 0; i < ubuf->nextents; i++) {
		const struct udmabuf_extent *extent = &ubuf->extents[i];
		unsigned long npages = udmabuf_extent_end(ubuf, i) - extent->pgoff;

		if (extent->listed)
			udmabuf_unpin_list(extent->list, npages >> extent->order, dirty);
		else
			udmabuf_unpin_run(ubuf, extent->page, npages, dirty);
		cond_resched();
	}
}

/* Allocation and release */

static struct udmabuf *udmabuf_alloc(bool writable)
{
	struct udmabuf *ubuf;

	ubuf = kzalloc_obj(*ubuf, GFP_KERNEL_ACCOUNT);
	if (!ubuf)
		return NULL;
	ubuf->writable = writable;
	xa_init_flags(&ubuf->inodes, XA_FLAGS_ACCOUNT);
	mutex_init(&ubuf->dma_lock);
	INIT_LIST_HEAD(&ubuf->maps);
	return ubuf;
}

/* Frees a buffer in any state. @dirty: its pages may have been written to. */
static void udmabuf_free(struct udmabuf *ubuf, bool dirty)
{
	udmabuf_unpin(ubuf, dirty);
	udmabuf_uncharge(ubuf);
	udmabuf_put_inodes(ubuf);
	kvfree(ubuf->extents);
	mutex_destroy(&ubuf->dma_lock);
	kfree(ubuf);
}

/* Mapping for devices */

/* Limits of a device, in pages */
struct udmabuf_seg_limits {
	unsigned long max;	/* length of a segment */
	unsigned long boundary;	/* that a segment must not cross, or 0 */
};

static struct udmabuf_seg_limits udmabuf_seg_limits(struct device *dev)
{
	size_t max = min_not_zero(dma_max_mapping_size(dev),
				  (size_t)dma_get_max_seg_size(dev));

	/* The length of a segment is an unsigned int. */
	max = min_t(size_t, max, UINT_MAX) >> PAGE_SHIFT;
	return (struct udmabuf_seg_limits) {
		.max = max,
		.boundary = dma_get_seg_boundary(dev) == ULONG_MAX ? 0 :
			    dma_get_seg_boundary_nr_pages(dev, PAGE_SHIFT),
	};
}

static unsigned long udmabuf_seg_npages(struct udmabuf_seg_limits limits,
					struct page *page, unsigned long npages)
{
	npages = min(npages, limits.max);
	if (!limits.boundary)
		return npages;
	return min(npages, limits.boundary - page_to_pfn(page) % limits.boundary);
}

/* Upper bound on the splits of @npages contiguous pages */
static unsigned long udmabuf_max_cuts(struct udmabuf_seg_limits limits,
				      unsigned long npages)
{
	unsigned long ncuts = npages / limits.max;

	if (limits.boundary && npages > 1)
		ncuts += npages / limits.boundary + 1;
	return ncuts;
}

/* Upper bound: adjoining extents and list entries share segments. */
static unsigned long udmabuf_max_segs(const struct udmabuf *ubuf,
				      struct udmabuf_seg_limits limits)
{
	unsigned long nsegs = 0, npages, n;
	size_t i;

	for (i = 0; i < ubuf->nextents; i++) {
		const struct udmabuf_extent *extent = &ubuf->extents[i];

		npages = udmabuf_extent_end(ubuf, i) - extent->pgoff;
		n = extent->listed ? 1UL << extent->order : npages;
		nsegs += npages / n * (1 + udmabuf_max_cuts(limits, n));
		cond_resched();
	}
	return nsegs;
}

static struct scatterlist *udmabuf_set_segs(struct udmabuf_seg_limits limits,
					    struct scatterlist *sg,
					    struct page *page, unsigned long npages)
{
	unsigned long n;

	for (; npages; npages -= n, page += n) {
		n = npages;
		if (n > limits.max || limits.boundary)
			n = udmabuf_seg_npages(limits, page, n);
		*sg = (struct scatterlist) {};
		sg_set_page(sg++, page, n << PAGE_SHIFT, 0);
	}
	return sg;
}

/* Returns the end of the segments. A run may continue in the next extent. */
static struct scatterlist *udmabuf_fill_segs(const struct udmabuf *ubuf,
					     struct udmabuf_seg_limits limits,
					     struct scatterlist *sg)
{
	struct page *first = NULL;
	unsigned long npages = 0, n;
	size_t i;

	for (i = 0; i < ubuf->nextents; i++) {
		const struct udmabuf_extent *extent = &ubuf->extents[i];
		pgoff_t pgoff = extent->pgoff, end = udmabuf_extent_end(ubuf, i);
		struct page *const *entry = extent->listed ? extent->list : &extent->page;

		n = extent->listed ? 1UL << extent->order : end - pgoff;
		for (; pgoff < end; pgoff += n, entry++) {
			if (npages && !udmabuf_pages_adjoin(first + npages - 1, *entry)) {
				sg = udmabuf_set_segs(limits, sg, first, npages);
				npages = 0;
			}
			if (!npages)
				first = *entry;
			npages += n;
		}
		cond_resched();
	}
	return udmabuf_set_segs(limits, sg, first, npages);
}

/* One array instead of chained scatterlists is faster to fill and to walk. */
static struct udmabuf_map *udmabuf_new_map(const struct udmabuf *ubuf, struct device *dev)
{
	struct udmabuf_seg_limits limits = udmabuf_seg_limits(dev);
	struct udmabuf_map *map;
	struct scatterlist *end;

	/* Pages are not split. With 64 KiB pages some devices might need that. */
	if (!limits.max || dma_get_seg_boundary(dev) < PAGE_SIZE - 1)
		return ERR_PTR(-EINVAL);
	map = kvmalloc_flex(*map, segs, udmabuf_max_segs(ubuf, limits), UDMABUF_GFP);
	if (!map)
		return ERR_PTR(-ENOMEM);
	end = udmabuf_fill_segs(ubuf, limits, map->segs);
	sg_mark_end(end - 1);
	map->sgt.sgl = map->segs;
	map->sgt.nents = end - map->segs;
	map->sgt.orig_nents = map->sgt.nents;
	map->dev = dev;
	return map;
}

static int udmabuf_attach(struct dma_buf *dmabuf, struct dma_buf_attachment *attach)
{
	attach->priv = udmabuf_new_map(dmabuf->priv, attach->dev);
	return PTR_ERR_OR_ZERO(attach->priv);
}

static void udmabuf_detach(struct dma_buf *dmabuf, struct dma_buf_attachment *attach)
{
	kvfree(attach->priv);
}

/* A CPU access either ends before dma_lock is taken, or finds the map in the list. */
static int udmabuf_add_map(struct udmabuf *ubuf, struct udmabuf_map *map)
{
	int ret;

	if (mutex_lock_killable(&ubuf->dma_lock))
		return -EINTR;
	ret = dma_map_sgtable(map->dev, &map->sgt, map->dir, UDMABUF_DMA_ATTRS);
	/* Synced last: a device that certainly writes wins over others. */
	if (!ret && map->dir == DMA_FROM_DEVICE)
		list_add_tail(&map->node, &ubuf->maps);
	else if (!ret)
		list_add(&map->node, &ubuf->maps);
	mutex_unlock(&ubuf->dma_lock);
	return ret;
}

static struct sg_table *udmabuf_map(struct udmabuf *ubuf, struct dma_buf_attachment *attach,
				    enum dma_data_direction dir)
{
	struct udmabuf_map *map;
	int ret;

	if (!ubuf->writable && dir != DMA_TO_DEVICE)
		return ERR_PTR(-EPERM);
	/* A device must not access a page that is known to have failed. */
	ret = udmabuf_check_poison(ubuf, true);
	if (ret)
		return ERR_PTR(ret);

	/* The attachment has no map left if it is mapped already. */
	map = xchg(&attach->priv, NULL) ?: udmabuf_new_map(ubuf, attach->dev);
	if (IS_ERR(map))
		return ERR_CAST(map);
	map->dir = dir;
	ret = udmabuf_add_map(ubuf, map);
	if (!ret)
		return &map->sgt;
	kvfree(map);
	return ERR_PTR(ret);
}

static struct sg_table *udmabuf_map_dma_buf(struct dma_buf_attachment *attach,
					    enum dma_data_direction dir)
{
	struct udmabuf *ubuf = attach->dmabuf->priv;
	struct sg_table *sgt = udmabuf_map(ubuf, attach, dir);

	trace_udmabuf_map(ubuf->ino, attach->dev, dir, sgt);
	return sgt;
}

static void udmabuf_release(struct dma_buf *dmabuf)
{
	struct udmabuf *ubuf = dmabuf->priv;

	trace_udmabuf_release(ubuf->ino, ubuf->npages);
	udmabuf_free(ubuf, ubuf->writable);
}

/* CPU access */

/*
 * Syncs each map in the direction it was mapped with, not in the caller's direction: a
 * bounce buffer synced in another direction would overwrite the pages with stale data.
 * If the CPU has not @stored, a device that may have written since gets no data.
 */
static void udmabuf_sync_for_cpu(struct udmabuf *ubuf, size_t size)
{
	struct udmabuf_map *map;

	lockdep_assert_held(&ubuf->dma_lock);
	list_for_each_entry(map, &ubuf->maps, node) {
		if (map->dir != DMA_TO_DEVICE)
			dma_sync_sgtable_for_cpu(map->dev, &map->sgt, map->dir);
		cond_resched();
	}
	if (ubuf->vaddr)
		invalidate_kernel_vmap_range(ubuf->vaddr, size);
}

static void udmabuf_sync_for_device(struct udmabuf *ubuf, size_t size, bool stored)
{
	struct udmabuf_map *map;

	lockdep_assert_held(&ubuf->dma_lock);
	if (ubuf->vaddr)
		flush_kernel_vmap_range(ubuf->vaddr, size);
	list_for_each_entry(map, &ubuf->maps, node) {
		dma_sync_sgtable_for_device(map->dev, &map->sgt,
					    stored || map->dir == DMA_TO_DEVICE ?
					    map->dir : DMA_FROM_DEVICE);
		cond_resched();
	}
}

/* A sync must not bounce a failed page: the access would crash the machine. */
static int udmabuf_check_maps(const struct udmabuf *ubuf, bool killable)
{
	lockdep_assert_held(&ubuf->dma_lock);
	return list_empty(&ubuf->maps) ? 0 : udmabuf_check_poison(ubuf, killable);
}

/* Syncs the data of a DMA_FROM_DEVICE map, which the device wrote, to other maps. */
static void udmabuf_unmap_dma_buf(struct dma_buf_attachment *attach, struct sg_table *sgt,
				  enum dma_data_direction dir)
{
	struct udmabuf_map *map = container_of(sgt, struct udmabuf_map, sgt);
	struct udmabuf *ubuf = attach->dmabuf->priv;

	trace_udmabuf_unmap(ubuf->ino, map->dev, map->dir, sgt);
	mutex_lock(&ubuf->dma_lock);
	list_del(&map->node);
	dma_unmap_sgtable(map->dev, sgt, map->dir, UDMABUF_DMA_ATTRS);
	if (map->dir == DMA_FROM_DEVICE && !udmabuf_check_maps(ubuf, false))
		udmabuf_sync_for_device(ubuf, attach->dmabuf->size, true);
	mutex_unlock(&ubuf->dma_lock);

	kvfree(xchg(&attach->priv, map));
}

static int udmabuf_begin_cpu_access(struct dma_buf *dmabuf, enum dma_data_direction dir)
{
	struct udmabuf *ubuf = dmabuf->priv;
	long ret;

	/* The core waits for fences too late: a device could write after the sync. */
	ret = dma_resv_wait_timeout(dmabuf->resv, dma_resv_usage_rw(dir != DMA_FROM_DEVICE),
				    true, MAX_SCHEDULE_TIMEOUT);
	if (ret < 0)
		return ret;
	if (mutex_lock_killable(&ubuf->dma_lock))
		return -EINTR;
	ret = udmabuf_check_maps(ubuf, true);
	if (!ret)
		udmabuf_sync_for_cpu(ubuf, dmabuf->size);
	mutex_unlock(&ubuf->dma_lock);
	return ret;
}

static int udmabuf_end_cpu_access(struct dma_buf *dmabuf, enum dma_data_direction dir)
{
	struct udmabuf *ubuf = dmabuf->priv;
	int ret;

	/* Not killable: this sync also transfers stores of other threads. */
	mutex_lock(&ubuf->dma_lock);
	ret = udmabuf_check_maps(ubuf, false);
	if (!ret)
		udmabuf_sync_for_device(ubuf, dmabuf->size, dir != DMA_FROM_DEVICE);
	mutex_unlock(&ubuf->dma_lock);
	return ret;
}

/* mmap */

/*
 * Returns the end of the window to populate, see UDMABUF_FAULT_MIN. The window is
 * aligned by address, so that it does not reach into the range of another PMD.
 */
static pgoff_t udmabuf_fault_end(const struct vm_fault *vmf,
				 struct udmabuf_mapping *mapping)
{
	unsigned long addr = vmf->address & PAGE_MASK, end;

	lockdep_assert_held(&mapping->fault_lock);
	if (vmf->pgoff != mapping->fault_pgoff)
		mapping->fault_pages = UDMABUF_FAULT_MIN;
	else if (mapping->fault_pages < UDMABUF_FAULT_MAX)
		mapping->fault_pages *= 2;
	end = min(round_up(addr + PAGE_SIZE, mapping->fault_pages << PAGE_SHIFT),
		  vmf->vma->vm_end);
	mapping->fault_pgoff = min(vmf->pgoff + ((end - addr) >> PAGE_SHIFT),
				   mapping->ubuf->npages);
	return mapping->fault_pgoff;
}

/*
 * Inserts the page of the fault and the later pages of the window. An error on a later
 * page is ignored: it recurs when that page is touched.
 */
static vm_fault_t udmabuf_insert_pages(struct vm_fault *vmf,
				       struct udmabuf_mapping *mapping)
{
	const struct udmabuf *ubuf = mapping->ubuf;
	size_t i = udmabuf_find_extent(ubuf, vmf->pgoff);
	unsigned long addr = vmf->address & PAGE_MASK;
	pgoff_t end = udmabuf_fault_end(vmf, mapping), pgoff;
	bool any_poison = udmabuf_any_poison();
	vm_fault_t ret;

	for (pgoff = vmf->pgoff; pgoff < end; i++) {
		pgoff_t extent_end = min(udmabuf_extent_end(ubuf, i), end);

		for (; pgoff < extent_end; pgoff++, addr += PAGE_SIZE) {
			struct page *page = udmabuf_extent_page(ubuf, i, pgoff);

			if (any_poison && is_page_hwpoison(page))
				ret = VM_FAULT_HWPOISON;
			else
				ret = vmf_insert_pfn(vmf->vma, addr, page_to_pfn(page));
			if (ret != VM_FAULT_NOPAGE)
				return pgoff == vmf->pgoff ? ret : VM_FAULT_NOPAGE;
		}
	}
	return VM_FAULT_NOPAGE;
}

/*
 * fault_lock serializes PTE and PMD faults: the core warns about a huge entry in the
 * place of a page table, and about the reverse. No other code inserts entries:
 * vma_can_userfault() refuses VM_PFNMAP.
 */
static vm_fault_t udmabuf_fault(struct vm_fault *vmf)
{
	struct udmabuf_mapping *mapping = vmf->vma->vm_private_data;
	vm_fault_t ret = VM_FAULT_NOPAGE;

	if (vmf->pgoff >= mapping->ubuf->npages)
		return VM_FAULT_SIGBUS;

	mutex_lock(&mapping->fault_lock);
	if (!pmd_leaf(pmdp_get_lockless(vmf->pmd)))
		ret = udmabuf_insert_pages(vmf, mapping);
	mutex_unlock(&mapping->fault_lock);
	trace_udmabuf_fault(mapping->ubuf->ino, vmf, 0, ret);
	return ret;
}

#ifdef CONFIG_ARCH_SUPPORTS_PMD_PFNMAP
/*
 * Returns the first page for a huge entry, or NULL. All pages of the entry must be
 * consecutive in the buffer: the entry must not expose other pages of the huge page.
 */
static struct page *udmabuf_huge_page(const struct vm_fault *vmf,
				      const struct udmabuf *ubuf)
{
	const struct vm_area_struct *vma = vmf->vma;
	unsigned long addr = vmf->address & PMD_MASK;
	pgoff_t pgoff = vmf->pgoff - ((vmf->address - addr) >> PAGE_SHIFT);
	struct page *page;
	size_t i;

	if (addr < vma->vm_start || vma->vm_end - addr < PMD_SIZE ||
	    vmf->pgoff >= ubuf->npages)
		return NULL;
	i = udmabuf_find_extent(ubuf, pgoff);
	page = udmabuf_extent_page(ubuf, i, pgoff);
	if (ubuf->extents[i].listed || !IS_ALIGNED(page_to_pfn(page), HPAGE_PMD_NR) ||
	    udmabuf_extent_end(ubuf, i) - pgoff < HPAGE_PMD_NR)
		return NULL;
	return page;
}

/*
 * PAGE_TABLE_CHECK stops the machine if an anonymous page has several mappings and one
 * is writable. It exempts special PTEs, but not special PMDs.
 */
static bool udmabuf_page_table_checked(void)
{
#ifdef CONFIG_PAGE_TABLE_CHECK
	return !static_branch_likely(&page_table_check_disabled);
#else
	return false;
#endif
}

static vm_fault_t udmabuf_huge_fault(struct vm_fault *vmf, unsigned int order)
{
	struct udmabuf_mapping *mapping = vmf->vma->vm_private_data;
	vm_fault_t ret = VM_FAULT_FALLBACK;
	struct page *page;
	pmd_t pmd;

	if (order != PMD_ORDER || udmabuf_page_table_checked())
		return VM_FAULT_FALLBACK;
	page = udmabuf_huge_page(vmf, mapping->ubuf);
	if (!page)
		return VM_FAULT_FALLBACK;

	mutex_lock(&mapping->fault_lock);
	pmd = pmdp_get_lockless(vmf->pmd);
	if ((pmd_none(pmd) || pmd_leaf(pmd)) &&
	    !(udmabuf_any_poison() && udmabuf_pages_poisoned(page, HPAGE_PMD_NR)))
		ret = vmf_insert_pfn_pmd(vmf, page_to_pfn(page),
					 vmf->flags & FAULT_FLAG_WRITE);
	mutex_unlock(&mapping->fault_lock);
	trace_udmabuf_fault(mapping->ubuf->ino, vmf, order, ret);
	return ret;
}
#endif

static struct udmabuf_mapping *udmabuf_new_mapping(struct udmabuf *ubuf)
{
	struct udmabuf_mapping *mapping;

	/* vm_ops->open() cannot return an error. */
	mapping = kzalloc_obj(*mapping, GFP_KERNEL_ACCOUNT | __GFP_NOFAIL);
	mapping->ubuf = ubuf;
	mutex_init(&mapping->fault_lock);
	mapping->fault_pages = UDMABUF_FAULT_MIN;
	return mapping;
}

/* A huge entry lies in one VMA, so PTE and PMD faults share its fault_lock. */
static void udmabuf_vm_open(struct vm_area_struct *vma)
{
	struct udmabuf_mapping *mapping = vma->vm_private_data;

	vma->vm_private_data = udmabuf_new_mapping(mapping->ubuf);
}

static void udmabuf_vm_close(struct vm_area_struct *vma)
{
	kfree(vma->vm_private_data);
}

static const struct vm_operations_struct udmabuf_vm_ops = {
	.open		= udmabuf_vm_open,
	.close		= udmabuf_vm_close,
	.fault		= udmabuf_fault,
#ifdef CONFIG_ARCH_SUPPORTS_PMD_PFNMAP
	.huge_fault	= udmabuf_huge_fault,
#endif
};

/*
 * Anonymous and hugetlb pages must not be mapped as file pages, where reverse mapping
 * would not find them. VM_PFNMAP needs no reverse mapping, and GUP refuses it.
 */
static int udmabuf_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
{
	struct udmabuf *ubuf = dmabuf->priv;
	bool writable;

	/* vmf_insert_pfn() does not allow copy-on-write mappings. */
	if (!(vma->vm_flags & VM_MAYSHARE))
		return -EINVAL;
	/* A memfd sealed after creation keeps its writers but gets no new ones. */
	writable = ubuf->writable && !udmabuf_is_sealed(ubuf);
	/* The core checks an mmap through an importer against the importer's mode. */
	if (vma->vm_flags & VM_WRITE && !writable)
		return ubuf->writable ? -EPERM : -EACCES;
	if (!writable)
		vm_flags_clear(vma, VM_MAYWRITE);

	vm_flags_set(vma, VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_private_data = udmabuf_new_mapping(ubuf);
	vma->vm_ops = &udmabuf_vm_ops;
	return 0;
}

/* vmap */

/*
 * Replaces failed pages, which the kernel must not access, by a zero page: without
 * "dma-buf: return a failed vmap to the caller without a warning", the core warns if
 * udmabuf_vmap() fails. For the same reason its allocations use __GFP_NOFAIL.
 */
static void udmabuf_cover_poisoned(struct udmabuf *ubuf)
{
	struct page **pages = ubuf->vmap_pages;
	pgoff_t pgoff;

	ubuf->spare = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_NOFAIL);
	for (pgoff = 0; pgoff < ubuf->npages; pgoff++) {
		if (is_page_hwpoison(pages[pgoff]))
			pages[pgoff] = ubuf->spare;
		cond_resched();
	}
}

/* Stores the pages of extent @i in vmap_pages. 2 GiB at most: no cond_resched() */
static void udmabuf_store_extent(struct udmabuf *ubuf, size_t i)
{
	const struct udmabuf_extent *extent = &ubuf->extents[i];
	struct page **pages = ubuf->vmap_pages + extent->pgoff, *page, **entry;
	struct page **end = ubuf->vmap_pages + udmabuf_extent_end(ubuf, i);
	unsigned long k;

	if (!extent->listed) {
		for (page = extent->page; pages < end; )
			*pages++ = page++;
		return;
	}
	if (!extent->order) {
		memcpy(pages, extent->list, (end - pages) * sizeof(*pages));
		return;
	}
	for (entry = extent->list; pages < end; )
		for (page = *entry++, k = 1UL << extent->order; k; k--)
			*pages++ = page++;
}

static void udmabuf_set_vaddr(struct udmabuf *ubuf, void *vaddr)
{
	mutex_lock(&ubuf->dma_lock);
	ubuf->vaddr = vaddr;
	mutex_unlock(&ubuf->dma_lock);
}

static void udmabuf_free_vmap_pages(struct udmabuf *ubuf)
{
	kvfree(ubuf->vmap_pages);
	if (ubuf->spare)
		__free_page(ubuf->spare);
	ubuf->spare = NULL;
}

/*
 * The core counts users and calls this for the first one. The array of pages is kept as
 * long as the mapping, because the array is charged to the memory cgroup. The page
 * tables, which are about as large, are not charged.
 */
static int udmabuf_vmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	struct udmabuf *ubuf = dmabuf->priv;
	void *vaddr;
	size_t i;

	ubuf->vmap_pages = kvmalloc_objs(*ubuf->vmap_pages, ubuf->npages + ubuf->npages / 16,
					 GFP_KERNEL_ACCOUNT | __GFP_NOFAIL);
	for (i = 0; i < ubuf->nextents; i++)
		udmabuf_store_extent(ubuf, i);
	cond_resched();
	if (udmabuf_check_poison(ubuf, true))
		udmabuf_cover_poisoned(ubuf);
	vaddr = vmap(ubuf->vmap_pages, ubuf->npages, VM_MAP, PAGE_KERNEL);
	if (!vaddr) {
		udmabuf_free_vmap_pages(ubuf);
		return -ENOMEM;
	}
	udmabuf_set_vaddr(ubuf, vaddr);
	iosys_map_set_vaddr(map, vaddr);
	return 0;
}

/* The core calls this for the last user of the mapping. */
static void udmabuf_vunmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	struct udmabuf *ubuf = dmabuf->priv;
	void *vaddr = ubuf->vaddr;

	udmabuf_set_vaddr(ubuf, NULL);
	vunmap(vaddr);
	udmabuf_free_vmap_pages(ubuf);
}

/* Export */

static const struct dma_buf_ops udmabuf_ops = {
	.attach			= udmabuf_attach,
	.detach			= udmabuf_detach,
	.map_dma_buf		= udmabuf_map_dma_buf,
	.unmap_dma_buf		= udmabuf_unmap_dma_buf,
	.release		= udmabuf_release,
	.begin_cpu_access	= udmabuf_begin_cpu_access,
	.end_cpu_access		= udmabuf_end_cpu_access,
	.mmap			= udmabuf_mmap,
	.vmap			= udmabuf_vmap,
	.vunmap			= udmabuf_vunmap,
};

static const struct dma_buf_ops udmabuf_ops_no_vmap = {
	.attach			= udmabuf_attach,
	.detach			= udmabuf_detach,
	.map_dma_buf		= udmabuf_map_dma_buf,
	.unmap_dma_buf		= udmabuf_unmap_dma_buf,
	.release		= udmabuf_release,
	.begin_cpu_access	= udmabuf_begin_cpu_access,
	.end_cpu_access		= udmabuf_end_cpu_access,
	.mmap			= udmabuf_mmap,
};

/*
 * A kernel mapping could not be kept read-only. The core warns if vmap() fails: for
 * more pages than the machine has, or without vmalloc space, which is small on 32-bit.
 * flush_kernel_vmap_range() takes the size as an int.
 */
static bool udmabuf_can_vmap(const struct udmabuf *ubuf)
{
	if (!IS_ENABLED(CONFIG_64BIT) && ubuf->npages > VMALLOC_TOTAL / 8 >> PAGE_SHIFT)
		return false;
	return ubuf->writable && ubuf->npages <= INT_MAX >> PAGE_SHIFT &&
	       ubuf->npages <= totalram_pages() / 2;
}

/* On success the dma-buf owns the buffer. */
static struct dma_buf *udmabuf_export(struct udmabuf *ubuf)
{
	DEFINE_DMA_BUF_EXPORT_INFO(exp_info);
	struct dma_buf *dmabuf;

	exp_info.exp_name = "udmabuf";
	exp_info.ops = udmabuf_can_vmap(ubuf) ? &udmabuf_ops : &udmabuf_ops_no_vmap;
	exp_info.size = (size_t)ubuf->npages << PAGE_SHIFT;
	exp_info.flags = ubuf->writable ? O_RDWR : O_RDONLY;
	exp_info.priv = ubuf;

	dmabuf = dma_buf_export(&exp_info);
	if (!IS_ERR(dmabuf))
		ubuf->ino = file_inode(dmabuf->file)->i_ino;
	return dmabuf;
}

/* Creating */

/* Returns a file descriptor. After an error nothing stays pinned or charged. */
static int udmabuf_create(const struct udmabuf_source *source, u32 flags)
{
	struct dma_buf *dmabuf = NULL;
	struct udmabuf *ubuf;
	int ret = 0;

	/* Bounds the time and memory of all operations on the buffer. */
	if (source->npages > totalram_pages())
		return -ENOMEM;
	ubuf = udmabuf_alloc(!(flags & UDMABUF_FLAGS_RDONLY));
	if (!ubuf)
		return -ENOMEM;
	ubuf->max_npages = source->npages;
	ubuf->max_inodes = source->max_inodes;
	ubuf->folio_pins = source->items;

	/* memfds have never been charged, and programs rely on that. */
	if (source->iovs)
		ret = udmabuf_charge(ubuf, source->npages);
	if (!ret)
		ret = udmabuf_pin(ubuf, source);
	if (!ret) {
		dmabuf = udmabuf_export(ubuf);
		ret = PTR_ERR_OR_ZERO(dmabuf);
	}

	trace_udmabuf_create(ubuf->ino, source->items, source->count, ubuf->npages,
			     ubuf->nextents, ret);
	if (ret) {
		udmabuf_free(ubuf, false);
		return ret;
	}
	ret = dma_buf_fd(dmabuf, flags & UDMABUF_FLAGS_CLOEXEC ? O_CLOEXEC : 0);
	if (ret < 0)
		dma_buf_put(dmabuf);
	return ret;
}

static u64 udmabuf_max_npages(void)
{
	return min3((u64)READ_ONCE(size_limit_mb) << (20 - PAGE_SHIFT),
		    (u64)INT_MAX, (u64)SIZE_MAX >> PAGE_SHIFT);
}

/* UDMABUF_CREATE_IOVEC */

static int udmabuf_check_iovs(struct udmabuf_source *source)
{
	u64 limit = udmabuf_max_npages(), sum = 0, end;
	u32 i;

	for (i = 0; i < source->count; i++) {
		const struct udmabuf_iovec *iov = &source->iovs[i];

		if (!iov->len || !IS_ALIGNED(iov->base | iov->len, PAGE_SIZE) ||
		    check_add_overflow(iov->base, iov->len, &end))
			return -EINVAL;
		/* Saturate at limit + 1: the sum cannot overflow. */
		sum = min(sum + (iov->len >> PAGE_SHIFT), limit + 1);
	}
	if (sum > limit)
		return -E2BIG;
	source->npages = sum;
	return 0;
}

static long udmabuf_ioctl_create_iovec(struct udmabuf_create_iovec __user *arg)
{
	struct udmabuf_create_iovec head;
	struct udmabuf_source source = { .max_inodes = READ_ONCE(list_limit) };
	struct udmabuf_iovec *iovs;
	int ret;

	if (copy_from_user(&head, arg, sizeof(head)))
		return -EFAULT;
	if (head.flags & ~(UDMABUF_FLAGS_CLOEXEC | UDMABUF_FLAGS_RDONLY) || !head.niov)
		return -EINVAL;
	if (head.niov > source.max_inodes)
		return -E2BIG;

	iovs = kvmalloc_objs(*iovs, head.niov, UDMABUF_GFP);
	if (!iovs)
		return -ENOMEM;
	source.iovs = iovs;
	source.count = head.niov;
	if (copy_from_user(iovs, arg->iovs, array_size(head.niov, sizeof(*iovs))))
		ret = -EFAULT;
	else
		ret = udmabuf_check_iovs(&source);
	if (!ret)
		ret = udmabuf_create(&source, head.flags);
	kvfree(iovs);
	return ret;
}

/* UDMABUF_CREATE_MEMFD and UDMABUF_CREATE_LIST */

static int udmabuf_check_items(struct udmabuf_source *source)
{
	u64 limit = udmabuf_max_npages(), sum = 0;
	u32 i;

	for (i = 0; i < source->count; i++) {
		if (!IS_ALIGNED(source->items[i].offset | source->items[i].size,
				PAGE_SIZE))
			return -EINVAL;
		sum += source->items[i].size >> PAGE_SHIFT;
		if (sum > limit)
			return -EINVAL;
	}
	if (!sum)
		return -EINVAL;
	source->npages = sum;
	return 0;
}

static long udmabuf_create_from_items(const struct udmabuf_create_item *items,
				      u32 count, u32 flags)
{
	struct udmabuf_source source = { .items = items, .count = count, .max_inodes = count };
	int ret;

	ret = udmabuf_check_items(&source);
	if (ret)
		return ret;
	/* Unknown flags have always been ignored, and programs pass them. */
	return udmabuf_create(&source, flags & UDMABUF_FLAGS_CLOEXEC);
}

static long udmabuf_ioctl_create_memfd(struct udmabuf_create_memfd __user *arg)
{
	struct udmabuf_create_memfd create;
	struct udmabuf_create_item item = {};

	if (copy_from_user(&create, arg, sizeof(create)))
		return -EFAULT;
	item.memfd = create.memfd;
	item.offset = create.offset;
	item.size = create.size;
	return udmabuf_create_from_items(&item, 1, create.flags);
}

static long udmabuf_ioctl_create_list(struct udmabuf_create_list __user *arg)
{
	struct udmabuf_create_item *items;
	struct udmabuf_create_list head;
	long ret;

	if (copy_from_user(&head, arg, sizeof(head)))
		return -EFAULT;
	if (!head.count || head.count > READ_ONCE(list_limit))
		return -EINVAL;

	items = kvmalloc_objs(*items, head.count, UDMABUF_GFP);
	if (!items)
		return -ENOMEM;
	if (copy_from_user(items, arg->list, array_size(head.count, sizeof(*items))))
		ret = -EFAULT;
	else
		ret = udmabuf_create_from_items(items, head.count, head.flags);
	kvfree(items);
	return ret;
}

/* Module */

static long udmabuf_ioctl(struct file *file, unsigned int cmd,
			  unsigned long arg)
{
	switch (cmd) {
	case UDMABUF_CREATE_IOVEC:
		return udmabuf_ioctl_create_iovec((void __user *)arg);
	case UDMABUF_CREATE_MEMFD:
		return udmabuf_ioctl_create_memfd((void __user *)arg);
	case UDMABUF_CREATE_LIST:
		return udmabuf_ioctl_create_list((void __user *)arg);
	default:
		return -ENOTTY;
	}
}

static const struct file_operations udmabuf_fops = {
	.owner		= THIS_MODULE,
	.unlocked_ioctl	= udmabuf_ioctl,
	.compat_ioctl	= compat_ptr_ioctl,
};

static struct miscdevice udmabuf_misc = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= "udmabuf",
	.fops	= &udmabuf_fops,
};
module_misc_device(udmabuf_misc);

MODULE_DESCRIPTION("dma-bufs from memory of a process");
MODULE_IMPORT_NS("DMA_BUF");
MODULE_LICENSE("GPL");

#ifdef CONFIG_UDMABUF_KUNIT_TEST
#include "st-udmabuf.c"
#endif
