// SPDX-License-Identifier: GPL-2.0-only
/*
 * udmabuf - make a dma-buf from memory of a process
 *
 * A process names ranges of its own memory, or of memfds; the driver pins their
 * pages for good and wraps them in one dma-buf. The process goes on using its
 * memory and every importer of the dma-buf sees the same bytes: nothing is ever
 * copied.
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
 * - Every page is pinned with FOLL_LONGTERM and is anonymous, hugetlb or shmem
 *   memory. Such memory needs no write notification, is neither migrated nor
 *   reclaimed while pinned, and fork() gives the child a copy rather than
 *   write-protecting it.
 * - What comes from the process's memory has one pin a page and place in the
 *   buffer. What comes from memfds has one pin a folio and run; so a folio of
 *   which only a part belongs to one run may be in the next as well.
 * - What was charged at creation, to whom, is written down in the buffer and is
 *   given back at release, which may run in any process or in none.
 * - No lock is held while pinning memory of a process: the page fault of a
 *   userfaultfd range may take for ever. For one batch of a memfd its inode is
 *   locked, so that no seal comes between the look at the seals and the pins.
 *
 * Lock order: dma_resv, udmabuf.lock. The inode's lock is never held with them.
 */

#include <linux/capability.h>
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/fcntl.h>
#include <linux/file.h>
#include <linux/folio_batch.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/hugetlb.h>
#include <linux/iosys-map.h>
#include <linux/magic.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/overflow.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/user.h>
#include <linux/shmem_fs.h>
#include <linux/sizes.h>
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

/* Pages or folios pinned by one call; gup-fast walks with interrupts off. */
#define UDMABUF_PIN_BATCH	512UL

/* Bytes of a memfd pinned by one call, which may have to clear huge pages. */
#define UDMABUF_PIN_BYTES	SZ_32M

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
	pgoff_t max_npages;
	bool writable;
	bool folio_pins;

	/*
	 * Where pages of another file than the one before begin; last_mapping is
	 * only ever compared.
	 */
	pgoff_t *files;
	size_t nfiles;
	struct address_space *last_mapping;

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
	return udmabuf_resize_runs(ubuf, min_t(size_t, ubuf->max_npages,
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

/* Would the page, put at the end of the buffer, be part of the last run? */
static bool udmabuf_continues_run(const struct udmabuf *ubuf, struct page *page)
{
	if (!ubuf->nruns)
		return false;
	/* Behind the start of a folio there would be two pins in one run. */
	if (ubuf->folio_pins && PageTail(page))
		return false;
	return udmabuf_pages_adjoin(udmabuf_page(ubuf, ubuf->nruns - 1,
						 ubuf->npages - 1), page);
}

/* Contiguous pages; room for a run has been reserved. */
static void udmabuf_append_pages(struct udmabuf *ubuf, struct page *page,
				 unsigned long npages)
{
	if (!udmabuf_continues_run(ubuf, page))
		ubuf->runs[ubuf->nruns++] = (struct udmabuf_run) {
			.pfn = page_to_pfn(page),
			.pgoff = ubuf->npages,
		};
	ubuf->npages += npages;
}

/* Seals */

/* The seals of a memfd or hugetlbfs file, -EBADFD for any other. */
static int udmabuf_get_seals(struct address_space *mapping)
{
	struct inode *inode = mapping->host;

	if (shmem_mapping(mapping))
		return READ_ONCE(SHMEM_I(inode)->seals);
#ifdef CONFIG_HUGETLBFS
	if (inode->i_sb->s_magic == HUGETLBFS_MAGIC)
		return READ_ONCE(HUGETLBFS_I(inode)->seals);
#endif
	return -EBADFD;
}

/* The file whose page cache the folio is in; it stays only as long as RCU says. */
static struct address_space *udmabuf_folio_file(struct folio *folio)
{
	/* Truncation may clear it at any time. */
	return folio_test_anon(folio) ? NULL : READ_ONCE(folio->mapping);
}

/* Remembers that the folio, put at @pgoff, is of another file than the last. */
static int udmabuf_note_file(struct udmabuf *ubuf, struct folio *folio,
			     pgoff_t pgoff)
{
	struct address_space *mapping = udmabuf_folio_file(folio);
	pgoff_t *files;

	if (!mapping || mapping == ubuf->last_mapping)
		return 0;
	files = krealloc_array(ubuf->files, ubuf->nfiles + 1, sizeof(*files),
			       UDMABUF_GFP);
	if (!files)
		return -ENOMEM;
	files[ubuf->nfiles++] = pgoff;
	ubuf->files = files;
	ubuf->last_mapping = mapping;
	return 0;
}

/* Has the file of the pages at @pgoff been sealed against new writers? */
static bool udmabuf_file_is_sealed(const struct udmabuf *ubuf, pgoff_t pgoff)
{
	struct address_space *mapping;
	int seals = -EBADFD;
	struct page *page;

	/* A hole punched into the file made it forget some of our pages. */
	for (; seals < 0 && pgoff < ubuf->npages; pgoff++) {
		page = udmabuf_page(ubuf, udmabuf_find_run(ubuf, pgoff), pgoff);
		rcu_read_lock();
		mapping = udmabuf_folio_file(page_folio(page));
		if (mapping)
			seals = udmabuf_get_seals(mapping);
		rcu_read_unlock();
		cond_resched();
	}
	return seals > 0 && seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE);
}

static bool udmabuf_is_sealed(const struct udmabuf *ubuf)
{
	size_t i;

	for (i = 0; i < ubuf->nfiles; i++)
		if (udmabuf_file_is_sealed(ubuf, ubuf->files[i]))
			return true;
	return false;
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

	rcu_read_lock();
	mapping = udmabuf_folio_file(folio);
	allowed = mapping && shmem_mapping(mapping);
	rcu_read_unlock();
	return allowed;
}

/* What holds for all memory; the folio will have pages at @pgoff. */
static int udmabuf_check_folio(struct udmabuf *ubuf, struct folio *folio,
			       pgoff_t pgoff)
{
	if (folio_ref_count(folio) > UDMABUF_MAX_REFS)
		return -ENOMEM;
	return udmabuf_note_file(ubuf, folio, pgoff);
}

/*
 * GUP itself stops at a poisoned page, but only at one that could be unmapped:
 * a part of a pinned THP cannot.
 */
static int udmabuf_check_pages(struct udmabuf *ubuf, struct page **pages,
			       unsigned long npages)
{
	struct folio *folio, *last = NULL;
	unsigned long i;
	int ret;

	for (i = 0; i < npages; i++) {
		if (is_page_hwpoison(pages[i]))
			return -EFAULT;
		folio = page_folio(pages[i]);
		if (folio == last)
			continue;
		if (!udmabuf_folio_allowed(folio))
			return -EOPNOTSUPP;
		ret = udmabuf_check_folio(ubuf, folio, ubuf->npages + i);
		if (ret)
			return ret;
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
	unsigned long i;
	int ret;

	ret = udmabuf_check_pages(ubuf, pages, npages);
	if (!ret)
		ret = udmabuf_reserve_runs(ubuf, npages);
	if (ret) {
		unpin_user_pages(pages, npages);
		return ret;
	}
	for (i = 0; i < npages; i++)
		udmabuf_append_pages(ubuf, pages[i], 1);
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

/* Pinning memfds */

/* Mainline's errnos, but for the last two, which it has no check for. */
static int udmabuf_check_memfd(struct file *memfd, u64 start, u64 size)
{
	int seals = udmabuf_get_seals(memfd->f_mapping);
	u64 end;

	if (seals < 0)
		return seals;
	if (!(seals & F_SEAL_SHRINK))
		return -EINVAL;
	if (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))
		return -EINVAL;
	if (!size || check_add_overflow(start, size, &end) ||
	    end > i_size_read(file_inode(memfd)))
		return -EINVAL;
	/* A receiver that was to read only must not write through the buffer. */
	if (!(memfd->f_mode & FMODE_WRITE))
		return -EACCES;
	/* The pages are all different, and holes would be filled until OOM. */
	if (size >> PAGE_SHIFT > totalram_pages())
		return -ENOMEM;
	return 0;
}

/*
 * A poisoned page stays in the page cache. memfd_pin_folios() would pin it, or,
 * where it is to be moved first, try that for ever: it cannot be isolated.
 */
static int udmabuf_check_cache(struct address_space *mapping, pgoff_t first,
			       pgoff_t last)
{
	unsigned long seen = 0;
	struct folio_batch batch;
	bool poisoned = false;
	unsigned int i;

	folio_batch_init(&batch);
	while (!poisoned && seen < UDMABUF_PIN_BATCH &&
	       filemap_get_folios(mapping, &first, last, &batch)) {
		for (i = 0; i < folio_batch_count(&batch); i++) {
			struct folio *folio = batch.folios[i];

			poisoned |= folio_test_hwpoison(folio) ||
				    (folio_test_large(folio) &&
				     folio_test_has_hwpoisoned(folio));
		}
		seen += i;
		folio_batch_release(&batch);
	}
	return poisoned ? -EFAULT : 0;
}

/* Pins what it can of [start, end); @offset is that in the first folio. */
static long udmabuf_pin_folios(struct file *memfd, u64 start, u64 end,
			       struct folio **folios, pgoff_t *offset)
{
	struct inode *inode = file_inode(memfd);
	long ret;

	if (inode_lock_shared_killable(inode))
		return -EINTR;
	ret = udmabuf_check_memfd(memfd, start, end - start);
	end = min(end, round_down(start, UDMABUF_PIN_BYTES) + UDMABUF_PIN_BYTES);
	if (!ret)
		ret = udmabuf_check_cache(memfd->f_mapping, start >> PAGE_SHIFT,
					  (end - 1) >> PAGE_SHIFT);
	if (!ret)
		ret = memfd_pin_folios(memfd, start, end - 1, folios,
				       udmabuf_pin_batch(), offset);
	inode_unlock_shared(inode);
	return ret;
}

/* @first is the first page in the first folio, @npages in all of them. */
static int udmabuf_add_folios(struct udmabuf *ubuf, struct folio **folios,
			      long nfolios, unsigned long first,
			      unsigned long npages)
{
	unsigned long n;
	long i;
	int ret;

	ret = udmabuf_reserve_runs(ubuf, nfolios);
	for (i = 0; !ret && i < nfolios; i++) {
		n = min(npages, folio_nr_pages(folios[i]) - first);
		ret = udmabuf_check_folio(ubuf, folios[i], ubuf->npages);
		if (ret)
			break;
		udmabuf_append_pages(ubuf, folio_page(folios[i], first), n);
		npages -= n;
		first = 0;
	}
	/* The rest was not added, so nobody else will unpin it. */
	if (i < nfolios)
		unpin_folios(folios + i, nfolios - i);
	return ret;
}

static int udmabuf_pin_memfd(struct udmabuf *ubuf, struct file *memfd,
			     u64 start, u64 size, struct folio **folios)
{
	pgoff_t offset, npages;
	u64 end = start + size;
	long n;
	int ret;

	do {
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();

		n = udmabuf_pin_folios(memfd, start, end, folios, &offset);
		if (n <= 0)
			return n ?: -EINVAL;
		npages = ubuf->npages;
		ret = udmabuf_add_folios(ubuf, folios, n, offset >> PAGE_SHIFT,
					 (end - start) >> PAGE_SHIFT);
		if (ret)
			return ret;
		start += (u64)(ubuf->npages - npages) << PAGE_SHIFT;
	} while (start != end);
	return 0;
}

static int udmabuf_pin_items(struct udmabuf *ubuf,
			     const struct udmabuf_create_item *items, u32 count,
			     struct folio **folios)
{
	struct file *memfd;
	int ret;
	u32 i;

	for (i = 0; i < count; i++) {
		memfd = fget(items[i].memfd);
		if (!memfd)
			return -EBADFD;
		ret = udmabuf_pin_memfd(ubuf, memfd, items[i].offset,
					items[i].size, folios);
		fput(memfd);
		if (ret)
			return ret;
	}
	return 0;
}

/* What a buffer is made of: one of the two lists, which has been checked. */
struct udmabuf_source {
	const struct udmabuf_iovec *iovs;
	const struct udmabuf_create_item *items;
	u32 count;
	unsigned long npages;
};

/* On failure the buffer holds what was pinned up to then. */
static int udmabuf_pin(struct udmabuf *ubuf, const struct udmabuf_source *source)
{
	void **batch;
	int ret;

	batch = kmalloc_array(min(source->npages, UDMABUF_PIN_BATCH),
			      sizeof(*batch), GFP_KERNEL_ACCOUNT);
	if (!batch)
		return -ENOMEM;

	atomic_inc(&udmabuf_pinners);
	if (source->iovs)
		ret = udmabuf_pin_iovs(ubuf, source->iovs, source->count,
				       (struct page **)batch);
	else
		ret = udmabuf_pin_items(ubuf, source->items, source->count,
					(struct folio **)batch);
	atomic_dec(&udmabuf_pinners);

	kfree(batch);
	if (!ret)
		udmabuf_trim_runs(ubuf);
	return ret;
}

/* Unpinning */

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

static void udmabuf_unpin_folios(unsigned long pfn, unsigned long npages,
				 bool dirty)
{
	unsigned long n;

	for (; npages; pfn += n, npages -= n) {
		struct page *page = pfn_to_page(pfn);
		struct folio *folio = page_folio(page);

		n = folio_nr_pages(folio) - folio_page_idx(folio, page);
		n = min(n, npages);
		unpin_user_page_range_dirty_lock(page, 1, dirty);
		cond_resched();
	}
}

/*
 * Writers through the buffer leave no trace in the page tables that reclaim
 * looks at: pages that are not dirtied here may lose what was written.
 */
static void udmabuf_unpin(struct udmabuf *ubuf, bool dirty)
{
	size_t i;

	for (i = 0; i < ubuf->nruns; i++) {
		unsigned long npages = udmabuf_run_npages(ubuf, i);

		if (ubuf->folio_pins)
			udmabuf_unpin_folios(ubuf->runs[i].pfn, npages, dirty);
		else
			udmabuf_unpin_run(ubuf->runs[i].pfn, npages, dirty);
	}
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
	kfree(ubuf->files);
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
	bool sealed;

	/* Copy on write would need pages that belong to somebody. */
	if (!(vma->vm_flags & VM_MAYSHARE))
		return -EINVAL;
	/* A memfd sealed meanwhile keeps the writers it has but gets no new ones. */
	sealed = udmabuf_is_sealed(ubuf);
	/* The core checks the dma-buf's mode, an importer only its own. */
	if (vma->vm_flags & VM_WRITE && !ubuf->writable)
		return -EACCES;
	if (vma->vm_flags & VM_WRITE && sealed)
		return -EPERM;
	if (!ubuf->writable || sealed)
		vm_flags_clear(vma, VM_MAYWRITE);

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

/* Creation */

static int udmabuf_create(const struct udmabuf_source *source, u32 flags)
{
	struct udmabuf *ubuf;
	int ret = 0;

	ubuf = udmabuf_alloc(!(flags & UDMABUF_FLAGS_RDONLY));
	if (!ubuf)
		return -ENOMEM;
	ubuf->max_npages = source->npages;
	ubuf->folio_pins = source->items;

	/* Nobody has ever been charged for a memfd: programs count on that. */
	if (source->iovs)
		ret = udmabuf_charge(ubuf, source->npages);
	if (!ret)
		ret = udmabuf_pin(ubuf, source);
	if (ret) {
		udmabuf_free(ubuf, false);
		return ret;
	}
	return udmabuf_export(ubuf, flags);
}

static u64 udmabuf_max_npages(void)
{
	return min3((u64)READ_ONCE(size_limit_mb) << (20 - PAGE_SHIFT),
		    (u64)INT_MAX, (u64)SIZE_MAX >> PAGE_SHIFT);
}

/* UDMABUF_CREATE */

static int udmabuf_check_head(const struct udmabuf_create_iovec *head)
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

static int udmabuf_check_iovs(struct udmabuf_source *source)
{
	u64 limit = udmabuf_max_npages();
	u64 sum = 0;
	int ret;
	u32 i;

	for (i = 0; i < source->count; i++) {
		ret = udmabuf_check_iov(&source->iovs[i]);
		if (ret)
			return ret;
		/* Once over the limit it may as well stay just over it. */
		sum = min(sum + (source->iovs[i].len >> PAGE_SHIFT), limit + 1);
	}
	if (sum > limit)
		return -E2BIG;
	source->npages = sum;
	return 0;
}

static long udmabuf_ioctl_create_iovec(struct udmabuf_create_iovec __user *arg)
{
	struct udmabuf_create_iovec head;
	struct udmabuf_source source = {};
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

/* UDMABUF_CREATE_MEMFD, UDMABUF_CREATE_LIST */

static int udmabuf_check_items(struct udmabuf_source *source)
{
	u64 limit = udmabuf_max_npages();
	u64 sum = 0;
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
	struct udmabuf_source source = { .items = items, .count = count };
	int ret;

	ret = udmabuf_check_items(&source);
	if (ret)
		return ret;
	/* Programs pass stray bits, which mainline has always ignored. */
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

	items = kvmalloc_array(head.count, sizeof(*items), UDMABUF_GFP);
	if (!items)
		return -ENOMEM;
	if (copy_from_user(items, arg->list, array_size(head.count, sizeof(*items))))
		ret = -EFAULT;
	else
		ret = udmabuf_create_from_items(items, head.count, head.flags);
	kvfree(items);
	return ret;
}

/* The device */

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
