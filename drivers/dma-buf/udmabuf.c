// SPDX-License-Identifier: GPL-2.0-only
/*
 * udmabuf - make a dma-buf from memory of a process
 *
 * A process names ranges of its own memory; the driver pins their pages for
 * good and wraps them in one dma-buf. The process goes on using its memory and
 * every importer of the dma-buf sees the same bytes: nothing is ever copied.
 *
 * Vocabulary:
 *
 * - A buffer is &npages pages long; pgoff is a page's position in it.
 * - A run is a stretch of the buffer that is physically contiguous. Runs are
 *   all that is stored of the pages, sorted by pgoff; a run ends where the next
 *   one starts, the last at npages. The same page may be in many runs.
 * - A map is one live DMA mapping of the buffer by one importer.
 *
 * Invariants:
 *
 * - The runs never change once the dma-buf exists, so they are read without a
 *   lock.
 * - Every page is pinned with FOLL_LONGTERM as often as the buffer holds it,
 *   and is anonymous, hugetlb or shmem memory. Such memory needs no write
 *   notification, is neither migrated nor reclaimed while pinned, and fork()
 *   gives the child a copy rather than write-protecting it.
 * - What was charged at creation, to whom, is written down in the buffer and is
 *   given back at release, which may run in any process or in none.
 * - No lock is held while pinning: the page fault of a userfaultfd range may
 *   take for ever.
 *
 * Lock order: dma_resv, udmabuf.lock.
 */

#include <linux/capability.h>
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/hugetlb.h>
#include <linux/iosys-map.h>
#include <linux/magic.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/overflow.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/user.h>
#include <linux/shmem_fs.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <uapi/linux/udmabuf.h>

/* A maximised guest window on a 4K display arrives in up to 8,000 pieces. */
static unsigned int list_limit = 65536;
module_param(list_limit, uint, 0644);
MODULE_PARM_DESC(list_limit, "Most entries in one list. Default is 65536.");

static unsigned int size_limit_mb = INT_MAX;
module_param(size_limit_mb, uint, 0644);
MODULE_PARM_DESC(size_limit_mb,
		 "Largest buffer in MiB. Default is INT_MAX, beyond what can be addressed.");

/* Pages pinned by one call; gup-fast walks them with interrupts off. */
#define UDMABUF_PIN_BATCH	512UL

/* A pin of a small page adds GUP_PIN_COUNTING_BIAS to its reference count. */
#define UDMABUF_MAX_REFS	(INT_MAX / 4)

/*
 * Pages in batches that all callers together have under way, see
 * udmabuf_pin_batch().
 */
#define UDMABUF_PIN_INFLIGHT	131072UL

/* Pages unpinned without a chance to reschedule. */
#define UDMABUF_UNPIN_BATCH	4096UL

/* A fault populates the rest of an aligned window of so many pages. */
#define UDMABUF_FAULT_PAGES	16UL

/* For lists as long as the caller likes: failure is no reason for a warning. */
#define UDMABUF_GFP		(GFP_KERNEL_ACCOUNT | __GFP_NOWARN)

struct udmabuf_run {
	unsigned long pfn;
	pgoff_t pgoff;
};

struct udmabuf_map {
	struct list_head node;
	struct device *dev;
	struct sg_table sgt;
	enum dma_data_direction dir;
};

struct udmabuf {
	/* Both grow while the buffer is made. */
	pgoff_t npages;
	size_t nruns;

	struct udmabuf_run *runs;
	size_t max_runs;
	bool writable;

	/* Who was charged; no user where CAP_IPC_LOCK spared it. */
	unsigned long charged;
	struct user_struct *user;
	struct mm_struct *mm;

	/* Protects the maps and vaddr, and keeps them alive during a sync. */
	struct mutex lock;
	struct list_head maps;
	void *vaddr;
};

/* Accounting */

static int udmabuf_charge_user(struct user_struct *user, unsigned long npages)
{
	unsigned long limit = rlimit(RLIMIT_MEMLOCK) >> PAGE_SHIFT;
	unsigned long old = atomic_long_read(&user->locked_vm);

	do {
		if (npages > limit || old > limit - npages)
			return -ENOMEM;
	} while (!atomic_long_try_cmpxchg(&user->locked_vm, &old,
					  old + npages));
	return 0;
}

/*
 * The user, not the mm, is held to the limit: a process could escape its own
 * counter by forking.
 */
static int udmabuf_charge(struct udmabuf *ubuf, unsigned long npages)
{
	if (!capable(CAP_IPC_LOCK)) {
		int ret = udmabuf_charge_user(current_user(), npages);

		if (ret)
			return ret;
		ubuf->user = get_uid(current_user());
	}

	ubuf->mm = current->mm;
	mmgrab(ubuf->mm);
	atomic64_add(npages, &ubuf->mm->pinned_vm);
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

/* Runs */

static pgoff_t udmabuf_run_end(const struct udmabuf *ubuf, size_t i)
{
	return i + 1 < ubuf->nruns ? ubuf->runs[i + 1].pgoff : ubuf->npages;
}

static unsigned long udmabuf_run_npages(const struct udmabuf *ubuf, size_t i)
{
	return udmabuf_run_end(ubuf, i) - ubuf->runs[i].pgoff;
}

/* The run that holds @pgoff, which must be below npages. */
static size_t udmabuf_find_run(const struct udmabuf *ubuf, pgoff_t pgoff)
{
	size_t first = 0, end = ubuf->nruns;

	while (end - first > 1) {
		size_t mid = first + (end - first) / 2;

		if (ubuf->runs[mid].pgoff <= pgoff)
			first = mid;
		else
			end = mid;
	}
	return first;
}

/* The page at @pgoff, which must be in run @i. */
static struct page *udmabuf_page(const struct udmabuf *ubuf, size_t i,
				 pgoff_t pgoff)
{
	return pfn_to_page(ubuf->runs[i].pfn + (pgoff - ubuf->runs[i].pgoff));
}

static int udmabuf_resize_runs(struct udmabuf *ubuf, size_t max_runs)
{
	struct udmabuf_run *runs;

	runs = kvmalloc_array(max_runs, sizeof(*runs), UDMABUF_GFP);
	if (!runs)
		return -ENOMEM;
	if (ubuf->nruns)
		memcpy(runs, ubuf->runs, ubuf->nruns * sizeof(*runs));
	kvfree(ubuf->runs);
	ubuf->runs = runs;
	ubuf->max_runs = max_runs;
	return 0;
}

static int udmabuf_reserve_runs(struct udmabuf *ubuf, size_t more)
{
	size_t want = ubuf->nruns + more;

	if (want <= ubuf->max_runs)
		return 0;
	return udmabuf_resize_runs(ubuf, min_t(size_t, ubuf->charged,
					       max(want, 2 * ubuf->max_runs)));
}

/* Without memory for a shorter list the longer one serves as well. */
static void udmabuf_trim_runs(struct udmabuf *ubuf)
{
	if (ubuf->nruns < ubuf->max_runs)
		udmabuf_resize_runs(ubuf, ubuf->nruns);
}

/*
 * Without a virtual memmap, pages with consecutive frame numbers may have their
 * struct pages far apart; callers of the range API must not step over that.
 */
static bool udmabuf_pages_adjoin(struct page *page, struct page *next)
{
	return next == page + 1 && page_to_pfn(next) == page_to_pfn(page) + 1;
}

/* Room for one run a page has been reserved. */
static void udmabuf_append_pages(struct udmabuf *ubuf, struct page **pages,
				 unsigned long npages)
{
	struct page *last = NULL;
	unsigned long i;

	if (ubuf->nruns)
		last = udmabuf_page(ubuf, ubuf->nruns - 1, ubuf->npages - 1);

	for (i = 0; i < npages; i++) {
		if (!last || !udmabuf_pages_adjoin(last, pages[i]))
			ubuf->runs[ubuf->nruns++] = (struct udmabuf_run) {
				.pfn = page_to_pfn(pages[i]),
				.pgoff = ubuf->npages + i,
			};
		last = pages[i];
	}
	ubuf->npages += npages;
}

/* Pinning */

/*
 * Only memory whose pages may change at any time without anybody being told
 * may be pinned for good. GUP refuses most of the rest, but not the page cache
 * for reading.
 */
static bool udmabuf_folio_allowed(struct folio *folio)
{
	struct address_space *mapping;
	bool allowed;

	if (folio_test_anon(folio) || folio_test_hugetlb(folio))
		return true;

	/* Truncation may clear it at any time; RCU keeps the inode. */
	rcu_read_lock();
	mapping = READ_ONCE(folio->mapping);
	allowed = mapping && shmem_mapping(mapping);
	rcu_read_unlock();
	return allowed;
}

/*
 * GUP itself stops at a poisoned page, but only at one that could be unmapped:
 * a part of a pinned THP cannot.
 */
static int udmabuf_check_pages(struct page **pages, unsigned long npages)
{
	struct folio *folio, *last = NULL;
	unsigned long i;

	for (i = 0; i < npages; i++) {
		if (is_page_hwpoison(pages[i]))
			return -EFAULT;
		folio = page_folio(pages[i]);
		if (folio == last)
			continue;
		if (!udmabuf_folio_allowed(folio))
			return -EOPNOTSUPP;
		if (folio_ref_count(folio) > UDMABUF_MAX_REFS)
			return -ENOMEM;
		last = folio;
	}
	return 0;
}

/*
 * GUP says EFAULT for memory that is not there and for memory that is not
 * allowed alike. The caller deserves to know which.
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
	switch (err) {
	case -EINTR:
	case -ENOMEM:
	case -EOPNOTSUPP:
		return err;
	case -EAGAIN:
	case -EBUSY:
		/* The page could not be moved to where it may stay. */
		return -ENOMEM;
	}
	return udmabuf_is_file_range(addr, writable) ? -EOPNOTSUPP : -EFAULT;
}

static atomic_t udmabuf_pinners = ATOMIC_INIT(0);

/*
 * A batch may name one page throughout, and its references are looked at only
 * after the fact. If the n-th of all callers pinning now takes at most
 * UDMABUF_PIN_INFLIGHT / n pages, then even PID_MAX_LIMIT callers stopped at
 * that very point together hold fewer than
 * UDMABUF_PIN_INFLIGHT * (1 + ln(4194304 / 256)) * GUP_PIN_COUNTING_BIAS < 1.5e9
 * references that nobody has looked at. With UDMABUF_MAX_REFS, this stays below
 * INT_MAX.
 */
static unsigned long udmabuf_pin_batch(void)
{
	return clamp(UDMABUF_PIN_INFLIGHT / atomic_read(&udmabuf_pinners),
		     1UL, UDMABUF_PIN_BATCH);
}

static int udmabuf_add_pages(struct udmabuf *ubuf, struct page **pages,
			     unsigned long npages)
{
	int ret;

	ret = udmabuf_check_pages(pages, npages);
	if (!ret)
		ret = udmabuf_reserve_runs(ubuf, npages);
	if (ret) {
		unpin_user_pages(pages, npages);
		return ret;
	}
	udmabuf_append_pages(ubuf, pages, npages);
	return 0;
}

static int udmabuf_pin_range(struct udmabuf *ubuf, unsigned long addr,
			     unsigned long npages, struct page **pages)
{
	unsigned int flags = FOLL_LONGTERM | (ubuf->writable ? FOLL_WRITE : 0);
	int ret, n;

	while (npages) {
		/* Memory that is present is pinned without a look at signals. */
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();

		/* Fewer than asked for: the next call says why. */
		n = pin_user_pages_fast(addr, min(npages, udmabuf_pin_batch()),
					flags, pages);
		if (n <= 0)
			return udmabuf_pin_error(addr, n, ubuf->writable);
		ret = udmabuf_add_pages(ubuf, pages, n);
		if (ret)
			return ret;

		addr += (unsigned long)n << PAGE_SHIFT;
		npages -= n;
	}
	return 0;
}

static int udmabuf_pin_iovs(struct udmabuf *ubuf,
			    const struct udmabuf_iovec *iovs, u32 niov,
			    struct page **pages)
{
	int ret;
	u32 i;

	for (i = 0; i < niov; i++) {
		if (overflows_type(iovs[i].base + iovs[i].len - 1, unsigned long))
			return -EFAULT;
		ret = udmabuf_pin_range(ubuf, iovs[i].base,
					iovs[i].len >> PAGE_SHIFT, pages);
		if (ret)
			return ret;
	}
	return 0;
}

/* On failure the buffer holds what was pinned up to then. */
static int udmabuf_pin(struct udmabuf *ubuf, const struct udmabuf_iovec *iovs,
		       u32 niov)
{
	struct page **pages;
	int ret;

	pages = kmalloc_array(min(ubuf->charged, UDMABUF_PIN_BATCH),
			      sizeof(*pages), GFP_KERNEL_ACCOUNT);
	if (!pages)
		return -ENOMEM;

	atomic_inc(&udmabuf_pinners);
	ret = udmabuf_pin_iovs(ubuf, iovs, niov, pages);
	atomic_dec(&udmabuf_pinners);

	kfree(pages);
	if (!ret)
		udmabuf_trim_runs(ubuf);
	return ret;
}

static void udmabuf_unpin_run(unsigned long pfn, unsigned long npages,
			      bool dirty)
{
	while (npages) {
		unsigned long n = min(npages, UDMABUF_UNPIN_BATCH);

		unpin_user_page_range_dirty_lock(pfn_to_page(pfn), n, dirty);
		cond_resched();
		pfn += n;
		npages -= n;
	}
}

/*
 * Writers through the buffer leave no trace in the page tables that reclaim
 * looks at: pages that are not dirtied here may lose what was written.
 */
static void udmabuf_unpin(struct udmabuf *ubuf, bool dirty)
{
	size_t i;

	for (i = 0; i < ubuf->nruns; i++)
		udmabuf_unpin_run(ubuf->runs[i].pfn,
				  udmabuf_run_npages(ubuf, i), dirty);
}

/* Birth and death */

static struct udmabuf *udmabuf_alloc(bool writable)
{
	struct udmabuf *ubuf;

	ubuf = kzalloc_obj(*ubuf, GFP_KERNEL_ACCOUNT);
	if (!ubuf)
		return NULL;
	ubuf->writable = writable;
	mutex_init(&ubuf->lock);
	INIT_LIST_HEAD(&ubuf->maps);
	return ubuf;
}

/* Frees a buffer in any state; @dirty if somebody may have written to it. */
static void udmabuf_free(struct udmabuf *ubuf, bool dirty)
{
	udmabuf_unpin(ubuf, dirty);
	udmabuf_uncharge(ubuf);
	kvfree(ubuf->runs);
	mutex_destroy(&ubuf->lock);
	kfree(ubuf);
}

/* dma-buf operations: importers' mappings */

/* In pages: the longest segment, and a boundary that none may cross. */
struct udmabuf_seg_limits {
	unsigned long max;
	unsigned long boundary;
};

static struct udmabuf_seg_limits udmabuf_seg_limits(struct device *dev)
{
	size_t max = min_not_zero(dma_max_mapping_size(dev),
				  (size_t)dma_get_max_seg_size(dev));

	/* A segment's length is an unsigned int. */
	max = min_t(size_t, max, UINT_MAX) >> PAGE_SHIFT;
	return (struct udmabuf_seg_limits) {
		.max = max ?: 1,
		.boundary = dma_get_seg_boundary_nr_pages(dev, PAGE_SHIFT),
	};
}

/* Counts the segments of the buffer; writes them down unless @sg is NULL. */
static unsigned int udmabuf_walk_segs(const struct udmabuf *ubuf,
				      struct udmabuf_seg_limits limits,
				      struct scatterlist *sg)
{
	unsigned int nsegs = 0;
	size_t i;

	for (i = 0; i < ubuf->nruns; i++) {
		unsigned long npages = udmabuf_run_npages(ubuf, i);
		unsigned long pfn = ubuf->runs[i].pfn;
		unsigned long n;

		for (; npages; npages -= n, pfn += n, nsegs++) {
			n = min3(npages, limits.max,
				 limits.boundary - pfn % limits.boundary);
			if (!sg)
				continue;
			sg_set_page(sg, pfn_to_page(pfn), n << PAGE_SHIFT, 0);
			sg = sg_next(sg);
		}
		cond_resched();
	}
	return nsegs;
}

static int udmabuf_init_sgt(const struct udmabuf *ubuf, struct device *dev,
			    struct sg_table *sgt)
{
	struct udmabuf_seg_limits limits = udmabuf_seg_limits(dev);
	int ret;

	ret = sg_alloc_table(sgt, udmabuf_walk_segs(ubuf, limits, NULL),
			     GFP_KERNEL);
	if (!ret)
		udmabuf_walk_segs(ubuf, limits, sgt->sgl);
	return ret;
}

static struct sg_table *udmabuf_map_dma_buf(struct dma_buf_attachment *attach,
					    enum dma_data_direction dir)
{
	struct udmabuf *ubuf = attach->dmabuf->priv;
	struct udmabuf_map *map;
	int ret;

	if (!ubuf->writable && dir != DMA_TO_DEVICE)
		return ERR_PTR(-EPERM);

	map = kzalloc_obj(*map, GFP_KERNEL);
	if (!map)
		return ERR_PTR(-ENOMEM);
	map->dev = attach->dev;
	map->dir = dir;

	ret = udmabuf_init_sgt(ubuf, map->dev, &map->sgt);
	if (ret)
		goto free_map;
	ret = dma_map_sgtable(map->dev, &map->sgt, dir, 0);
	if (ret)
		goto free_sgt;

	mutex_lock(&ubuf->lock);
	list_add(&map->node, &ubuf->maps);
	mutex_unlock(&ubuf->lock);
	return &map->sgt;

free_sgt:
	sg_free_table(&map->sgt);
free_map:
	kfree(map);
	return ERR_PTR(ret);
}

static void udmabuf_unmap_dma_buf(struct dma_buf_attachment *attach,
				  struct sg_table *sgt,
				  enum dma_data_direction dir)
{
	struct udmabuf_map *map = container_of(sgt, struct udmabuf_map, sgt);
	struct udmabuf *ubuf = attach->dmabuf->priv;

	mutex_lock(&ubuf->lock);
	list_del(&map->node);
	mutex_unlock(&ubuf->lock);

	dma_unmap_sgtable(map->dev, sgt, map->dir, 0);
	sg_free_table(sgt);
	kfree(map);
}

static void udmabuf_release(struct dma_buf *dmabuf)
{
	struct udmabuf *ubuf = dmabuf->priv;

	udmabuf_free(ubuf, ubuf->writable);
}

/*
 * Every importer is synced in the direction it mapped with, whatever the caller
 * is about to do: a bounce buffer synced in another direction would overwrite
 * the pages with stale bytes.
 */
static int udmabuf_begin_cpu_access(struct dma_buf *dmabuf,
				    enum dma_data_direction dir)
{
	struct udmabuf *ubuf = dmabuf->priv;
	struct udmabuf_map *map;

	mutex_lock(&ubuf->lock);
	list_for_each_entry(map, &ubuf->maps, node)
		if (map->dir != DMA_TO_DEVICE)
			dma_sync_sgtable_for_cpu(map->dev, &map->sgt, map->dir);
	if (ubuf->vaddr)
		invalidate_kernel_vmap_range(ubuf->vaddr, dmabuf->size);
	mutex_unlock(&ubuf->lock);
	return 0;
}

static int udmabuf_end_cpu_access(struct dma_buf *dmabuf,
				  enum dma_data_direction dir)
{
	struct udmabuf *ubuf = dmabuf->priv;
	struct udmabuf_map *map;

	mutex_lock(&ubuf->lock);
	if (ubuf->vaddr)
		flush_kernel_vmap_range(ubuf->vaddr, dmabuf->size);
	list_for_each_entry(map, &ubuf->maps, node)
		dma_sync_sgtable_for_device(map->dev, &map->sgt, map->dir);
	mutex_unlock(&ubuf->lock);
	return 0;
}

/* dma-buf operations: user mappings */

static vm_fault_t udmabuf_insert_page(struct vm_area_struct *vma,
				      unsigned long addr, struct page *page)
{
	if (is_page_hwpoison(page))
		return VM_FAULT_HWPOISON;
	return vmf_insert_pfn(vma, addr, page_to_pfn(page));
}

/*
 * Populates from the faulting page to the end of its window, as far as the run
 * and the mapping go. The pages behind the first are a courtesy: what goes
 * wrong with one of them shows when it is touched.
 */
static vm_fault_t udmabuf_fault(struct vm_fault *vmf)
{
	struct vm_area_struct *vma = vmf->vma;
	struct udmabuf *ubuf = vma->vm_private_data;
	unsigned long addr = vmf->address & PAGE_MASK;
	unsigned long npages, i;
	struct page *page;
	vm_fault_t ret;
	size_t run;

	if (vmf->pgoff >= ubuf->npages)
		return VM_FAULT_SIGBUS;
	run = udmabuf_find_run(ubuf, vmf->pgoff);
	page = udmabuf_page(ubuf, run, vmf->pgoff);

	npages = min3(UDMABUF_FAULT_PAGES - vmf->pgoff % UDMABUF_FAULT_PAGES,
		      (vma->vm_end - addr) >> PAGE_SHIFT,
		      udmabuf_run_end(ubuf, run) - vmf->pgoff);

	ret = udmabuf_insert_page(vma, addr, page);
	for (i = 1; ret == VM_FAULT_NOPAGE && i < npages; i++)
		if (udmabuf_insert_page(vma, addr + i * PAGE_SIZE, page + i) !=
		    VM_FAULT_NOPAGE)
			break;
	return ret;
}

static const struct vm_operations_struct udmabuf_vm_ops = {
	.fault = udmabuf_fault,
};

/*
 * Anonymous and hugetlb pages must not be mapped as pages of a file: the rmap
 * would not find them there. Mapped by frame number they belong to nobody, and
 * GUP cannot take them through this mapping.
 */
static int udmabuf_mmap(struct dma_buf *dmabuf, struct vm_area_struct *vma)
{
	struct udmabuf *ubuf = dmabuf->priv;

	/* Copy on write would need pages that belong to somebody. */
	if (!(vma->vm_flags & VM_MAYSHARE))
		return -EINVAL;
	if (!ubuf->writable) {
		/* The core checks the dma-buf's mode, an importer only its own. */
		if (vma->vm_flags & VM_WRITE)
			return -EACCES;
		vm_flags_clear(vma, VM_MAYWRITE);
	}

	vm_flags_set(vma, VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_private_data = ubuf;
	vma->vm_ops = &udmabuf_vm_ops;
	return 0;
}

/* dma-buf operations: kernel mapping */

static void *udmabuf_vmap_runs(const struct udmabuf *ubuf)
{
	struct page **pages;
	pgoff_t pgoff = 0;
	void *vaddr;
	size_t i;

	/* Or a signal could fail it: the core warns when there is no mapping. */
	pages = kvmalloc_array(ubuf->npages, sizeof(*pages),
			       GFP_KERNEL | __GFP_NOFAIL);
	for (i = 0; i < ubuf->nruns; i++) {
		for (; pgoff < udmabuf_run_end(ubuf, i); pgoff++)
			pages[pgoff] = udmabuf_page(ubuf, i, pgoff);
		cond_resched();
	}
	vaddr = vmap(pages, ubuf->npages, VM_MAP, PAGE_KERNEL);
	kvfree(pages);
	return vaddr;
}

/* The core counts its callers and asks for one mapping at a time. */
static int udmabuf_vmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	struct udmabuf *ubuf = dmabuf->priv;
	void *vaddr;

	vaddr = udmabuf_vmap_runs(ubuf);
	if (!vaddr)
		return -ENOMEM;

	mutex_lock(&ubuf->lock);
	ubuf->vaddr = vaddr;
	mutex_unlock(&ubuf->lock);
	iosys_map_set_vaddr(map, vaddr);
	return 0;
}

static void udmabuf_vunmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	struct udmabuf *ubuf = dmabuf->priv;

	mutex_lock(&ubuf->lock);
	ubuf->vaddr = NULL;
	mutex_unlock(&ubuf->lock);
	vunmap(map->vaddr);
}

/* Export */

static const struct dma_buf_ops udmabuf_ops = {
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
	.map_dma_buf		= udmabuf_map_dma_buf,
	.unmap_dma_buf		= udmabuf_unmap_dma_buf,
	.release		= udmabuf_release,
	.begin_cpu_access	= udmabuf_begin_cpu_access,
	.end_cpu_access		= udmabuf_end_cpu_access,
	.mmap			= udmabuf_mmap,
};

/*
 * A kernel mapping could not be kept read-only. The core warns if making one
 * fails, and vmap() fails for more pages than the machine has. Flushing one
 * takes an int.
 */
static bool udmabuf_can_vmap(const struct udmabuf *ubuf)
{
	return ubuf->writable && ubuf->npages <= INT_MAX >> PAGE_SHIFT &&
	       ubuf->npages <= totalram_pages() / 2;
}

/* Consumes the buffer, whatever the outcome. */
static int udmabuf_export(struct udmabuf *ubuf, u32 flags)
{
	DEFINE_DMA_BUF_EXPORT_INFO(exp_info);
	struct dma_buf *dmabuf;
	int fd;

	exp_info.exp_name = "udmabuf";
	exp_info.ops = udmabuf_can_vmap(ubuf) ? &udmabuf_ops :
						&udmabuf_ops_no_vmap;
	exp_info.size = (size_t)ubuf->npages << PAGE_SHIFT;
	exp_info.flags = ubuf->writable ? O_RDWR : O_RDONLY;
	exp_info.priv = ubuf;

	dmabuf = dma_buf_export(&exp_info);
	if (IS_ERR(dmabuf)) {
		udmabuf_free(ubuf, false);
		return PTR_ERR(dmabuf);
	}

	fd = dma_buf_fd(dmabuf, flags & UDMABUF_FLAGS_CLOEXEC ? O_CLOEXEC : 0);
	if (fd < 0)
		dma_buf_put(dmabuf);
	return fd;
}

/* UDMABUF_CREATE */

static int udmabuf_check_head(const struct udmabuf_create *head)
{
	if (head->flags & ~(UDMABUF_FLAGS_CLOEXEC | UDMABUF_FLAGS_RDONLY))
		return -EINVAL;
	if (!head->niov)
		return -EINVAL;
	if (head->niov > READ_ONCE(list_limit))
		return -E2BIG;
	return 0;
}

static int udmabuf_check_iov(const struct udmabuf_iovec *iov)
{
	u64 end;

	if (!IS_ALIGNED(iov->base | iov->len, PAGE_SIZE))
		return -EINVAL;
	if (!iov->len)
		return -EINVAL;
	if (check_add_overflow(iov->base, iov->len, &end))
		return -EINVAL;
	return 0;
}

static int udmabuf_check_iovs(const struct udmabuf_iovec *iovs, u32 niov,
			      unsigned long *npages)
{
	u64 limit = (u64)READ_ONCE(size_limit_mb) << (20 - PAGE_SHIFT);
	u64 sum = 0;
	int ret;
	u32 i;

	limit = min3(limit, (u64)INT_MAX, (u64)SIZE_MAX >> PAGE_SHIFT);
	for (i = 0; i < niov; i++) {
		ret = udmabuf_check_iov(&iovs[i]);
		if (ret)
			return ret;
		/* Once over the limit it may as well stay just over it. */
		sum = min(sum + (iovs[i].len >> PAGE_SHIFT), limit + 1);
	}
	if (sum > limit)
		return -E2BIG;
	*npages = sum;
	return 0;
}

static int udmabuf_create_from_iovs(const struct udmabuf_iovec *iovs,
				    const struct udmabuf_create *head)
{
	unsigned long npages;
	struct udmabuf *ubuf;
	int ret;

	ret = udmabuf_check_iovs(iovs, head->niov, &npages);
	if (ret)
		return ret;
	ubuf = udmabuf_alloc(!(head->flags & UDMABUF_FLAGS_RDONLY));
	if (!ubuf)
		return -ENOMEM;

	ret = udmabuf_charge(ubuf, npages);
	if (!ret)
		ret = udmabuf_pin(ubuf, iovs, head->niov);
	if (ret) {
		udmabuf_free(ubuf, false);
		return ret;
	}
	return udmabuf_export(ubuf, head->flags);
}

static long udmabuf_ioctl_create(struct udmabuf_create __user *arg)
{
	struct udmabuf_create head;
	struct udmabuf_iovec *iovs;
	int ret;

	if (copy_from_user(&head, arg, sizeof(head)))
		return -EFAULT;
	ret = udmabuf_check_head(&head);
	if (ret)
		return ret;

	iovs = kvmalloc_array(head.niov, sizeof(*iovs), UDMABUF_GFP);
	if (!iovs)
		return -ENOMEM;
	if (copy_from_user(iovs, arg->iovs, array_size(head.niov, sizeof(*iovs))))
		ret = -EFAULT;
	else
		ret = udmabuf_create_from_iovs(iovs, &head);
	kvfree(iovs);
	return ret;
}

static long udmabuf_ioctl(struct file *file, unsigned int cmd,
			  unsigned long arg)
{
	switch (cmd) {
	case UDMABUF_CREATE:
		return udmabuf_ioctl_create((void __user *)arg);
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
