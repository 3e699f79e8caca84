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
 * - An extent is a stretch of the buffer as it is stored: either physically
 *   contiguous, so that its first page says it all, or a list of its pages.
 *   Extents are sorted by pgoff; one ends where the next one starts, the last
 *   at npages. The same page may be in many extents.
 * - A run is as much of the buffer as is physically contiguous.
 * - A map is one live DMA mapping of the buffer by one importer.
 *
 * Invariants:
 *
 * - The extents never change once the dma-buf exists, so they are read without
 *   a lock.
 * - Every page is pinned with FOLL_LONGTERM and is anonymous, hugetlb or shmem
 *   memory. Such memory needs no write notification, is neither migrated nor
 *   reclaimed while pinned, and fork() gives the child a copy rather than
 *   write-protecting it.
 * - What comes from the process's memory has one pin a page and place in the
 *   buffer. What comes from memfds has one pin a folio and extent; so a folio of
 *   which only a part belongs to one extent may be in the next as well.
 * - What was charged at creation, to whom, is written down in the buffer and is
 *   given back at release, which may run in any process or in none.
 * - No lock is held while pinning memory of a process: the page fault of a
 *   userfaultfd range may take for ever. For one batch of a memfd its inode is
 *   locked, so that no seal comes between the look at the seals and the pins.
 *
 * Lock order: mmap_lock, dma_resv, udmabuf.lock. The inode's lock is held with
 * neither of the latter.
 */

#include <linux/capability.h>
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/fcntl.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/highmem.h>
#include <linux/hugetlb.h>
#include <linux/iosys-map.h>
#include <linux/jiffies.h>
#include <linux/magic.h>
#include <linux/math64.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/overflow.h>
#include <linux/pagemap.h>
#include <linux/sched.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/user.h>
#include <linux/shmem_fs.h>
#include <linux/sizes.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <linux/xarray.h>
#include <uapi/linux/udmabuf.h>

#define CREATE_TRACE_POINTS
#include <trace/events/udmabuf.h>

/* A maximised guest window on a 4K display arrives in up to 8,000 pieces. */
static unsigned int list_limit = 65536;
module_param(list_limit, uint, 0644);
MODULE_PARM_DESC(list_limit, "Most entries in one list. Default is 65536.");

static unsigned int size_limit_mb = INT_MAX;
module_param(size_limit_mb, uint, 0644);
MODULE_PARM_DESC(size_limit_mb,
		 "Largest buffer in MiB. Default is INT_MAX, beyond what can be addressed.");

/*
 * Pages pinned by one call, which walks with interrupts off. The kernel has
 * callers with more: iommufd takes 8,192.
 */
#define UDMABUF_PIN_PAGES	2048UL

/* Folios of a memfd pinned by one call, and bytes, as it may have to clear them */
#define UDMABUF_PIN_FOLIOS	512UL
#define UDMABUF_PIN_BYTES	SZ_32M

/* A pin of a small page adds GUP_PIN_COUNTING_BIAS to its reference count. */
#define UDMABUF_MAX_REFS	(INT_MAX / 4)

/*
 * Pages in batches that all callers together have under way, see
 * udmabuf_pin_limit().
 */
#define UDMABUF_PIN_INFLIGHT	65536UL

/* So many of a batch's pages tell whether it is kept as a list, if it is long. */
#define UDMABUF_SAMPLE		16UL
#define UDMABUF_MIN_LIST	256UL

/* How often, 20 ms apart, a kernel mapping is tried before it is given up */
#define UDMABUF_VMAP_TRIES	25

/* Folios unpinned without a chance to reschedule. */
#define UDMABUF_UNPIN_BATCH	512UL

/*
 * A fault populates the rest of an aligned window, which grows while one fault
 * follows where another ended.
 */
#define UDMABUF_FAULT_MIN	16UL
#define UDMABUF_FAULT_MAX	512UL

/* For lists as long as the caller likes: failure is no reason for a warning. */
#define UDMABUF_GFP		(GFP_KERNEL_ACCOUNT | __GFP_NOWARN)

/* Each entry of a list stands for 1 << order consecutive pages. */
struct udmabuf_extent {
	unsigned int pgoff;
	bool listed;
	unsigned char order;
	union {
		struct page *page;
		struct page **list;
	};
};

/* What an importer has mapped; the buffer has a list of them. */
struct udmabuf_map {
	struct list_head node;
	struct device *dev;
	struct sg_table sgt;
	enum dma_data_direction dir;
};

struct udmabuf {
	/* Both grow while the buffer is made. */
	pgoff_t npages;
	size_t nextents;

	struct udmabuf_extent *extents;
	size_t max_extents;
	pgoff_t max_npages;
	struct page *last_page;	/* unless it is in a list */
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

	/* Protects what follows, and keeps the mappings alive during a sync. */
	struct mutex lock;
	struct list_head maps;
	void *vaddr;
	unsigned int nmappings;

	/* What the kernel's mapping has in the place of failed pages, if there are any */
	struct page *spare;

	u64 ino;	/* of the dma-buf, which has lost it when it is released */

	/* Where the last fault ended, and how much it populated at most */
	pgoff_t fault_pgoff;
	unsigned long fault_pages;
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

/* Extents */

static pgoff_t udmabuf_extent_end(const struct udmabuf *ubuf, size_t i)
{
	return i + 1 < ubuf->nextents ? ubuf->extents[i + 1].pgoff :
					ubuf->npages;
}

/* The extent that holds @pgoff, which must be below npages. */
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

/* The page at @pgoff, which must be in extent @i. */
static struct page *udmabuf_extent_page(const struct udmabuf *ubuf, size_t i,
					pgoff_t pgoff)
{
	const struct udmabuf_extent *extent = &ubuf->extents[i];

	pgoff -= extent->pgoff;
	if (!extent->listed)
		return extent->page + pgoff;
	return extent->list[pgoff >> extent->order] +
	       (pgoff & ((1UL << extent->order) - 1));
}

static struct page *udmabuf_page(const struct udmabuf *ubuf, pgoff_t pgoff)
{
	return udmabuf_extent_page(ubuf, udmabuf_find_extent(ubuf, pgoff), pgoff);
}

static int udmabuf_resize_extents(struct udmabuf *ubuf, size_t max_extents)
{
	struct udmabuf_extent *extents;

	extents = kvmalloc_objs(*extents, max_extents, UDMABUF_GFP);
	if (!extents)
		return -ENOMEM;
	if (ubuf->nextents)
		memcpy(extents, ubuf->extents, ubuf->nextents * sizeof(*extents));
	kvfree(ubuf->extents);
	ubuf->extents = extents;
	ubuf->max_extents = max_extents;
	return 0;
}

/* Expects the rest of the buffer to be like what is there. */
static int udmabuf_grow_extents(struct udmabuf *ubuf)
{
	size_t want = 2 * ubuf->max_extents ?: 16;

	if (ubuf->npages >= UDMABUF_PIN_FOLIOS)
		want = max_t(u64, want,
			     DIV64_U64_ROUND_UP((u64)ubuf->nextents * ubuf->max_npages,
						ubuf->npages));
	return udmabuf_resize_extents(ubuf, min_t(size_t, ubuf->max_npages, want));
}

static int udmabuf_reserve_extent(struct udmabuf *ubuf)
{
	return ubuf->nextents < ubuf->max_extents ? 0 : udmabuf_grow_extents(ubuf);
}

/* Without memory for a shorter array the longer one serves as well. */
static void udmabuf_trim_extents(struct udmabuf *ubuf)
{
	if (ubuf->nextents + ubuf->nextents / 16 < ubuf->max_extents)
		udmabuf_resize_extents(ubuf, ubuf->nextents);
}

/*
 * Without a virtual memmap, pages with consecutive frame numbers may have their
 * struct pages far apart; callers of the range API must not step over that.
 */
static bool udmabuf_pages_adjoin(struct page *page, struct page *next)
{
	return next == page + 1 && (IS_ENABLED(CONFIG_SPARSEMEM_VMEMMAP) ||
				    page_to_pfn(next) == page_to_pfn(page) + 1);
}

/* The page and those behind it in its folio */
static unsigned long udmabuf_folio_rest(struct folio *folio, struct page *page)
{
	return folio_nr_pages(folio) - folio_page_idx(folio, page);
}

/* Would the page, put at the end of the buffer, be part of the last extent? */
static bool udmabuf_continues_extent(const struct udmabuf *ubuf, struct page *page)
{
	if (!ubuf->last_page || !udmabuf_pages_adjoin(ubuf->last_page, page))
		return false;
	/* Behind the start of a folio there would be two pins in one extent. */
	return !ubuf->folio_pins || !PageTail(page);
}

/* Contiguous pages */
static inline int udmabuf_append(struct udmabuf *ubuf, struct page *page,
				 unsigned long npages)
{
	int ret;

	if (!udmabuf_continues_extent(ubuf, page)) {
		ret = udmabuf_reserve_extent(ubuf);
		if (ret)
			return ret;
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

/* Remembers if what comes to @pgoff is of another file than what came before. */
static int udmabuf_note_file(struct udmabuf *ubuf, struct address_space *mapping,
			     pgoff_t pgoff)
{
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

/* Has the file of the pages from @pgoff to @end been sealed against new writers? */
static bool udmabuf_file_is_sealed(const struct udmabuf *ubuf, pgoff_t pgoff,
				   pgoff_t end)
{
	struct address_space *mapping;
	int seals = -EBADFD;
	struct page *page;

	/* A hole punched into the file made it forget some of our pages. */
	for (; seals < 0 && pgoff < end; pgoff++) {
		/* It may be many, and no mapping is left of a killed process. */
		if (fatal_signal_pending(current))
			return true;
		page = udmabuf_page(ubuf, pgoff);
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

	for (i = 0; i < ubuf->nfiles; i++) {
		pgoff_t end = i + 1 < ubuf->nfiles ? ubuf->files[i + 1] :
						     ubuf->npages;

		if (udmabuf_file_is_sealed(ubuf, ubuf->files[i], end))
			return true;
	}
	return false;
}

/* Pinning */

/*
 * Only memory whose pages may change at any time without anybody being told
 * may be pinned for good. GUP refuses most of the rest, but not the page cache
 * for reading. For a folio that is not anonymous.
 */
static bool udmabuf_folio_allowed(struct folio *folio)
{
	struct address_space *mapping;
	bool allowed;

	if (folio_test_hugetlb(folio))
		return true;

	rcu_read_lock();
	mapping = udmabuf_folio_file(folio);
	allowed = mapping && shmem_mapping(mapping);
	rcu_read_unlock();
	return allowed;
}

/* Has any page of this machine failed since it was started? */
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

/* GUP stops at a poisoned page, but a part of a pinned THP is not unmapped. */
static noinline bool udmabuf_pages_poisoned(struct page *page, unsigned long npages)
{
	for (; npages; npages--)
		if (is_page_hwpoison(page++))
			return true;
	return false;
}

/* Has a page of the buffer failed? They are looked at only where any page has. */
static bool udmabuf_is_poisoned(const struct udmabuf *ubuf)
{
	pgoff_t pgoff, n;
	size_t i;

	if (!udmabuf_any_poison())
		return false;

	for (pgoff = 0, i = 0; i < ubuf->nextents; i++) {
		pgoff_t end = udmabuf_extent_end(ubuf, i);

		for (; pgoff < end; pgoff += n) {
			struct page *page = udmabuf_extent_page(ubuf, i, pgoff);
			struct folio *folio = page_folio(page);

			n = min(end - pgoff, udmabuf_folio_rest(folio, page));
			if (udmabuf_folio_poisoned(folio) &&
			    udmabuf_pages_poisoned(page, n))
				return true;
			cond_resched();
		}
	}
	return false;
}

static noinline int udmabuf_check_file(struct udmabuf *ubuf, struct folio *folio)
{
	if (!udmabuf_folio_allowed(folio))
		return -EOPNOTSUPP;
	return udmabuf_note_file(ubuf, udmabuf_folio_file(folio), ubuf->npages);
}

/* @npages of the folio, which were just pinned; the buffer will go on there. */
static int udmabuf_check_pages(struct udmabuf *ubuf, struct folio *folio,
			       struct page *page, unsigned long npages)
{
	if (folio_ref_count(folio) > UDMABUF_MAX_REFS)
		return -ENOMEM;
	if (udmabuf_folio_poisoned(folio) && udmabuf_pages_poisoned(page, npages))
		return -EFAULT;
	return folio_test_anon(folio) ? 0 : udmabuf_check_file(ubuf, folio);
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

/* Callers that are pinning now */
static atomic_t udmabuf_pinners = ATOMIC_INIT(0);

/*
 * A batch may name one page throughout, and its references are looked at only
 * after the fact. If the n-th of all callers pinning now takes at most
 * UDMABUF_PIN_INFLIGHT / n pages, then even PID_MAX_LIMIT callers stopped at
 * that very point together hold fewer than
 * UDMABUF_PIN_INFLIGHT * (1 + ln(4194304 / 32)) * GUP_PIN_COUNTING_BIAS < 0.9e9
 * references that nobody has looked at. With UDMABUF_MAX_REFS, this stays below
 * INT_MAX.
 */
static unsigned long udmabuf_pin_limit(unsigned long max)
{
	return clamp(UDMABUF_PIN_INFLIGHT / atomic_read(&udmabuf_pinners),
		     1UL, max);
}

/*
 * From @first to @end: pinned, but not yet part of the buffer. It is full at
 * @limit, which is below @max when many are pinning. While it is filled from a
 * memfd, the memfd's @inode is locked.
 */
struct udmabuf_batch {
	struct page **pages;
	unsigned long first, end;
	unsigned long limit, max;
	struct inode *inode;
};

static void udmabuf_empty_batch(struct udmabuf_batch *batch)
{
	batch->first = 0;
	batch->end = 0;
	batch->limit = udmabuf_pin_limit(batch->max);
}

static struct page **udmabuf_alloc_pages(const struct udmabuf_batch *batch)
{
	return kmalloc_objs(*batch->pages, batch->max, UDMABUF_GFP);
}

/* Would the batch, up to @end, make for more extents than it is worth? */
static bool udmabuf_is_scattered(const struct udmabuf_batch *batch,
				 unsigned long end)
{
	unsigned long i, adjoining = 0;

	if (batch->first || end < UDMABUF_MIN_LIST)
		return false;
	for (i = 1; i < UDMABUF_SAMPLE; i++)
		adjoining += udmabuf_pages_adjoin(batch->pages[i - 1],
						  batch->pages[i]);
	return adjoining < UDMABUF_SAMPLE / 2;
}

/* A full array itself becomes part of the buffer; the batch gets another one. */
static struct page **udmabuf_take_list(struct udmabuf_batch *batch,
				       unsigned long end)
{
	struct page **list = batch->pages, **pages;

	if (end < batch->max)
		return kmemdup(list, end * sizeof(*list), UDMABUF_GFP);
	pages = udmabuf_alloc_pages(batch);
	if (!pages)
		return NULL;
	batch->pages = pages;
	return list;
}

static int udmabuf_add_list(struct udmabuf *ubuf, struct udmabuf_batch *batch,
			    unsigned long end, unsigned int order)
{
	struct page **list;
	int ret;

	ret = udmabuf_reserve_extent(ubuf);
	if (ret)
		return ret;
	list = udmabuf_take_list(batch, end);
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

/* Are the pages four consecutive ones from @page on? */
static inline bool udmabuf_are_four(struct page **pages, struct page *page)
{
	return pages[0] == page && udmabuf_pages_adjoin(page, pages[1]) &&
	       udmabuf_pages_adjoin(page + 1, pages[2]) &&
	       udmabuf_pages_adjoin(page + 2, pages[3]);
}

/* How many of the pages, at most @max, are consecutive? */
static unsigned long udmabuf_count_adjoining(struct page **pages,
					     unsigned long max)
{
	struct page *page = pages[0];
	unsigned long n;

	/* Sixteen at a time: it may be that all memory is looked at here. */
	for (n = 0; n + 16 <= max && udmabuf_are_four(pages + n, page + n) &&
	     udmabuf_are_four(pages + n + 4, page + n + 4) &&
	     udmabuf_are_four(pages + n + 8, page + n + 8) &&
	     udmabuf_are_four(pages + n + 12, page + n + 12); n += 16)
		;
	for (n = max(n, 1UL); n < max &&
	     udmabuf_pages_adjoin(page + n - 1, pages[n]); n++)
		;
	return n;
}

/*
 * Are the pages from the second on, up to the end of the folio, known to be
 * consecutive without a look at each? GUP, which must have found them in one
 * call, takes what one huge entry of the page table maps in one go, and a
 * hugetlb page is mapped by nothing else. Of an anonymous folio only exclusive
 * pages can be pinned. That is noted in each page that has an entry of its own,
 * and stays so while it is pinned, but for a huge entry in the first page only.
 */
static bool udmabuf_is_one_entry(struct folio *folio, struct page **pages,
				 unsigned long npages)
{
	/* It is quicker to look. */
	if (npages < 64)
		return false;
	return folio_test_hugetlb(folio) ||
	       (folio_test_anon(folio) && pages[1] == pages[0] + 1 &&
		!PageAnonExclusive(pages[1]));
}

/* Any pages, up to @end; @one_call if a single call has pinned them. */
static int udmabuf_add_pages(struct udmabuf *ubuf, struct udmabuf_batch *batch,
			     unsigned long end, bool one_call)
{
	unsigned long first, n;
	int ret;

	for (first = batch->first; first < end; first += n) {
		struct page **pages = batch->pages + first;
		struct folio *folio = page_folio(pages[0]);

		n = min(end - first, udmabuf_folio_rest(folio, pages[0]));
		if (!one_call || !udmabuf_is_one_entry(folio, pages, n))
			n = udmabuf_count_adjoining(pages, n);
		ret = udmabuf_check_pages(ubuf, folio, pages[0], n);
		if (!ret)
			ret = udmabuf_append(ubuf, pages[0], n);
		if (ret)
			return ret;
		batch->first = first + n;
	}
	return 0;
}

/* Pages that need no further look but at how they lie, up to @end */
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

/* What all of some folios have in common, and what any of them has */
struct udmabuf_traits {
	unsigned long any_flags;
	unsigned long all_mapping;
	unsigned int any_refs;
};

static void udmabuf_add_traits(struct udmabuf_traits *traits, struct page *page)
{
	struct folio *folio = (struct folio *)page;

	/* Bits that nobody here looks at change all the time. */
	traits->any_flags |= data_race(*folio_flags(folio, 0));
	/* Truncation clears a file's, but an anonymous page keeps its own. */
	traits->all_mapping &= (unsigned long)data_race(folio->mapping);
	traits->any_refs |= folio_ref_count(folio);
}

/*
 * Memory as most of it is, small anonymous pages, none poisoned nor pinned too
 * often. This is much of what there is to do besides pinning: hence four pages
 * at a time, and no branches.
 */
static bool udmabuf_all_small_anon(struct page **pages, unsigned long npages)
{
	struct udmabuf_traits traits = { .all_mapping = FOLIO_MAPPING_ANON };

	for (; npages >= 4; npages -= 4, pages += 4) {
		if (PageTail(pages[0]) | PageTail(pages[1]) |
		    PageTail(pages[2]) | PageTail(pages[3]))
			return false;
		udmabuf_add_traits(&traits, pages[0]);
		udmabuf_add_traits(&traits, pages[1]);
		udmabuf_add_traits(&traits, pages[2]);
		udmabuf_add_traits(&traits, pages[3]);
	}
	for (; npages; npages--, pages++) {
		if (PageTail(pages[0]))
			return false;
		udmabuf_add_traits(&traits, pages[0]);
	}
	return traits.all_mapping && traits.any_refs <= UDMABUF_MAX_REFS &&
	       !(traits.any_flags & (BIT(PG_head) | __PG_HWPOISON));
}

/* Pages of any number of calls, up to @end */
static int udmabuf_add_small(struct udmabuf *ubuf, struct udmabuf_batch *batch,
			     unsigned long end)
{
	if (udmabuf_all_small_anon(batch->pages + batch->first,
				   end - batch->first))
		return udmabuf_add_checked(ubuf, batch, end);
	return udmabuf_add_pages(ubuf, batch, end, false);
}

/* Memory that is present is pinned without a look at signals. */
static int udmabuf_pause(void)
{
	cond_resched();
	return fatal_signal_pending(current) ? -EINTR : 0;
}

static int udmabuf_flush(struct udmabuf *ubuf, struct udmabuf_batch *batch)
{
	int ret = udmabuf_add_small(ubuf, batch, batch->end);

	if (ret)
		return ret;
	udmabuf_empty_batch(batch);
	return udmabuf_pause();
}

/* The pages from @start on were pinned by one call, and the first is large. */
static int udmabuf_flush_large(struct udmabuf *ubuf, struct udmabuf_batch *batch,
			       unsigned long start)
{
	int ret = udmabuf_add_small(ubuf, batch, start);

	if (!ret)
		ret = udmabuf_add_pages(ubuf, batch, batch->end, true);
	if (ret)
		return ret;
	udmabuf_empty_batch(batch);
	return udmabuf_pause();
}

static int udmabuf_pin_range(struct udmabuf *ubuf, unsigned long addr,
			     unsigned long npages, struct udmabuf_batch *batch)
{
	unsigned int flags = FOLL_LONGTERM | (ubuf->writable ? FOLL_WRITE : 0);
	int ret = 0, n;

	while (!ret && npages) {
		unsigned long start = batch->end;

		/* Fewer than asked for: the next call says why. */
		n = pin_user_pages_fast(addr, min(npages, batch->limit - start),
					flags, batch->pages + start);
		if (n <= 0)
			return udmabuf_pin_error(addr, n, ubuf->writable);
		batch->end += n;
		addr += (unsigned long)n << PAGE_SHIFT;
		npages -= n;

		if (PageCompound(batch->pages[start]))
			ret = udmabuf_flush_large(ubuf, batch, start);
		else if (batch->end == batch->limit)
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

	for (i = 0; i < niov; i += n) {
		/* Neighbours are pinned together. */
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
	XA_STATE(xas, &mapping->i_pages, first);
	unsigned long left = UDMABUF_PIN_FOLIOS;
	bool poisoned = false;
	struct folio *folio;

	if (!udmabuf_any_poison())
		return 0;

	rcu_read_lock();
	xas_for_each(&xas, folio, last) {
		if (xas_retry(&xas, folio) || xa_is_value(folio))
			continue;
		if (!folio_try_get(folio))
			continue;
		poisoned = udmabuf_folio_poisoned(folio);
		folio_put(folio);
		if (poisoned || !--left)
			break;
	}
	rcu_read_unlock();
	return poisoned ? -EFAULT : 0;
}

static int udmabuf_lock_inode(struct udmabuf_batch *batch, struct inode *inode)
{
	if (batch->inode == inode)
		return 0;
	if (inode_lock_shared_killable(inode))
		return -EINTR;
	batch->inode = inode;
	return 0;
}

static void udmabuf_unlock_inode(struct udmabuf_batch *batch)
{
	if (batch->inode)
		inode_unlock_shared(batch->inode);
	batch->inode = NULL;
}

/* Pins what it can of [start, end); @offset is that in the first folio. */
static long udmabuf_pin_folios(struct udmabuf_batch *batch, struct file *memfd,
			       u64 start, u64 end, pgoff_t *offset)
{
	int ret;

	ret = udmabuf_lock_inode(batch, file_inode(memfd));
	if (!ret)
		ret = udmabuf_check_memfd(memfd, start, end - start);
	if (ret)
		return ret;
	end = min(end, round_down(start, UDMABUF_PIN_BYTES) + UDMABUF_PIN_BYTES);
	ret = udmabuf_check_cache(memfd->f_mapping, start >> PAGE_SHIFT,
				  (end - 1) >> PAGE_SHIFT);
	if (ret)
		return ret;
	return memfd_pin_folios(memfd, start, end - 1,
				(struct folio **)batch->pages + batch->end,
				batch->limit - batch->end, offset);
}

static int udmabuf_check_folios(struct page **pages, unsigned long nfolios,
				bool *large)
{
	struct udmabuf_traits traits = {};
	unsigned long i;

	for (i = 0; i < nfolios; i++)
		udmabuf_add_traits(&traits, pages[i]);
	*large = traits.any_flags & BIT(PG_head);
	if (traits.any_refs > UDMABUF_MAX_REFS)
		return -ENOMEM;
	if (traits.any_flags & __PG_HWPOISON)
		return -EFAULT;
	for (i = 0; *large && i < nfolios; i++)
		if (udmabuf_folio_poisoned((struct folio *)pages[i]))
			return -EFAULT;
	return 0;
}

/* The first folio may be wanted from @skip pages on only, and the last in part. */
static int udmabuf_add_folios(struct udmabuf *ubuf, struct udmabuf_batch *batch,
			      unsigned long skip, unsigned long npages)
{
	while (batch->first < batch->end) {
		struct page *page = batch->pages[batch->first];
		unsigned long n = min(npages, folio_nr_pages(page_folio(page)) - skip);
		int ret;

		ret = udmabuf_append(ubuf, page + skip, n);
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

/* Some of the folios from @start on are large. */
static int udmabuf_flush_folios(struct udmabuf *ubuf, struct udmabuf_batch *batch,
				unsigned long start, unsigned long skip,
				unsigned long npages)
{
	struct folio **folios = (struct folio **)batch->pages + start;
	unsigned int order = folio_order(folios[0]);
	int ret;

	udmabuf_unlock_inode(batch);
	ret = udmabuf_add_checked(ubuf, batch, start);
	if (ret)
		return ret;
	if (udmabuf_is_scattered(batch, batch->end) && !skip &&
	    batch->end << order <= npages && udmabuf_same_order(folios, batch->end))
		ret = udmabuf_add_list(ubuf, batch, batch->end, order);
	else
		ret = udmabuf_add_folios(ubuf, batch, skip, npages);
	if (ret)
		return ret;
	udmabuf_empty_batch(batch);
	return udmabuf_pause();
}

static int udmabuf_flush_checked(struct udmabuf *ubuf, struct udmabuf_batch *batch)
{
	int ret;

	udmabuf_unlock_inode(batch);
	ret = udmabuf_add_checked(ubuf, batch, batch->end);
	if (ret)
		return ret;
	udmabuf_empty_batch(batch);
	return udmabuf_pause();
}

/*
 * @nfolios at the end of the batch have just been pinned. @skip pages of the
 * first are not wanted; @npages are, if there.
 */
static int udmabuf_take_folios(struct udmabuf *ubuf, struct udmabuf_batch *batch,
			       unsigned long nfolios, unsigned long skip,
			       unsigned long npages)
{
	unsigned long start = batch->end;
	bool large;
	int ret;

	batch->end += nfolios;
	ret = udmabuf_check_folios(batch->pages + start, nfolios, &large);
	if (ret)
		return ret;
	if (large)
		return udmabuf_flush_folios(ubuf, batch, start, skip, npages);
	if (batch->end == batch->limit)
		return udmabuf_flush_checked(ubuf, batch);
	return 0;
}

static int udmabuf_pin_memfd(struct udmabuf *ubuf, struct file *memfd,
			     u64 start, u64 size, struct udmabuf_batch *batch)
{
	pgoff_t pgoff = ubuf->npages + batch->end, offset;
	u64 end = start + size;
	int ret;

	do {
		long n = udmabuf_pin_folios(batch, memfd, start, end, &offset);

		if (n <= 0)
			return n ?: -EINVAL;
		ret = udmabuf_take_folios(ubuf, batch, n, offset >> PAGE_SHIFT,
					  (end - start) >> PAGE_SHIFT);
		start += (u64)(ubuf->npages + batch->end - pgoff) << PAGE_SHIFT;
		pgoff = ubuf->npages + batch->end;
	} while (!ret && start != end);
	return ret;
}

/* How many of the items name one stretch of a memfd, @size bytes in all? */
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
			ret = udmabuf_note_file(ubuf, memfd->f_mapping,
						ubuf->npages + batch->end);
		}
		n = udmabuf_count_neighbours(items + i, count - i, &size);
		ret = ret ?: udmabuf_pin_memfd(ubuf, memfd, items[i].offset,
					       size, batch);
	}
	udmabuf_unlock_inode(batch);
	fput(memfd);
	return ret ?: udmabuf_flush_checked(ubuf, batch);
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
	struct udmabuf_batch batch = {
		.max = min(source->npages, source->iovs ? UDMABUF_PIN_PAGES :
							  UDMABUF_PIN_FOLIOS),
	};
	int ret;

	batch.pages = udmabuf_alloc_pages(&batch);
	if (!batch.pages)
		return -ENOMEM;

	atomic_inc(&udmabuf_pinners);
	udmabuf_empty_batch(&batch);
	if (source->iovs)
		ret = udmabuf_pin_iovs(ubuf, source->iovs, source->count, &batch);
	else
		ret = udmabuf_pin_items(ubuf, source->items, source->count, &batch);
	/* After a failure: pages, or folios, which are pinned once each. */
	unpin_user_pages(batch.pages + batch.first, batch.end - batch.first);
	atomic_dec(&udmabuf_pinners);

	kfree(batch.pages);
	if (!ret)
		udmabuf_trim_extents(ubuf);
	return ret;
}

/* Unpinning */

/*
 * Writers through the buffer leave no trace in the page tables that reclaim
 * looks at: folios that are not dirtied here may lose what was written.
 */
static void udmabuf_unpin_folio(struct folio *folio, unsigned long npins,
				bool dirty)
{
	if (!dirty || folio_test_dirty(folio)) {
		unpin_user_folio(folio, npins);
	} else if (folio_test_anon(folio)) {
		/* There is no file that could go away or wants to know. */
		folio_set_dirty(folio);
		unpin_user_folio(folio, npins);
	} else {
		unpin_user_page_range_dirty_lock(&folio->page, npins, true);
	}
}

static void udmabuf_unpin_run(const struct udmabuf *ubuf, struct page *page,
			      unsigned long npages, bool dirty)
{
	unsigned long n, nfolios = 0;

	for (; npages; page += n, npages -= n) {
		struct folio *folio = page_folio(page);

		n = min(npages, udmabuf_folio_rest(folio, page));
		udmabuf_unpin_folio(folio, ubuf->folio_pins ? 1 : n, dirty);
		if (!(++nfolios % UDMABUF_UNPIN_BATCH))
			cond_resched();
	}
}

static void udmabuf_unpin_list(struct page **list, unsigned long n, bool dirty)
{
	unsigned long i;

	/* Nothing but whole folios is in lists. */
	for (i = 0; i < n; i++)
		udmabuf_unpin_folio((struct folio *)list[i], 1, dirty);
	kfree(list);
}

static void udmabuf_unpin_extent(const struct udmabuf *ubuf, size_t i,
				 bool dirty)
{
	const struct udmabuf_extent *extent = &ubuf->extents[i];
	unsigned long npages = udmabuf_extent_end(ubuf, i) - extent->pgoff;

	if (extent->listed)
		udmabuf_unpin_list(extent->list, npages >> extent->order, dirty);
	else
		udmabuf_unpin_run(ubuf, extent->page, npages, dirty);
}

static void udmabuf_unpin(struct udmabuf *ubuf, bool dirty)
{
	size_t i;

	for (i = 0; i < ubuf->nextents; i++) {
		udmabuf_unpin_extent(ubuf, i, dirty);
		cond_resched();
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
	ubuf->fault_pages = UDMABUF_FAULT_MIN;
	mutex_init(&ubuf->lock);
	INIT_LIST_HEAD(&ubuf->maps);
	return ubuf;
}

/* Frees a buffer in any state; @dirty if somebody may have written to it. */
static void udmabuf_free(struct udmabuf *ubuf, bool dirty)
{
	if (ubuf->vaddr)
		vunmap(ubuf->vaddr);
	if (ubuf->spare)
		__free_page(ubuf->spare);
	udmabuf_unpin(ubuf, dirty);
	udmabuf_uncharge(ubuf);
	kvfree(ubuf->extents);
	kfree(ubuf->files);
	mutex_destroy(&ubuf->lock);
	kfree(ubuf);
}

/* dma-buf operations: importers' mappings */

/* In pages: the longest segment, and a boundary that none may cross or 0 */
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

/* At most so many times are pages one after the other to be cut in two. */
static unsigned long udmabuf_max_cuts(struct udmabuf_seg_limits limits,
				      unsigned long npages)
{
	unsigned long ncuts = npages / limits.max;

	if (limits.boundary)
		ncuts += npages / limits.boundary + 1;
	return ncuts;
}

/* An upper bound: where extents or list entries adjoin they are fewer. */
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
	}
	return nsegs;
}

static struct scatterlist *udmabuf_set_seg(struct scatterlist *sg,
					   struct page *page, unsigned long npages)
{
	*sg = (struct scatterlist) {};
	sg_set_page(sg, page, npages << PAGE_SHIFT, 0);
	return sg + 1;
}

static struct scatterlist *udmabuf_set_segs(struct udmabuf_seg_limits limits,
					    struct scatterlist *sg,
					    struct page *page, unsigned long npages)
{
	unsigned long n;

	/* Most often so, and quicker */
	if (npages <= limits.max && !limits.boundary)
		return udmabuf_set_seg(sg, page, npages);

	for (; npages; npages -= n, page += n) {
		n = udmabuf_seg_npages(limits, page, npages);
		sg = udmabuf_set_seg(sg, page, n);
	}
	return sg;
}

/* Returns the end of the segments. A run may go on in the next extent. */
static struct scatterlist *udmabuf_fill_segs(const struct udmabuf *ubuf,
					     struct udmabuf_seg_limits limits,
					     struct scatterlist *sg)
{
	struct page *first = udmabuf_extent_page(ubuf, 0, 0);
	unsigned long npages = 0, n;
	size_t i;

	for (i = 0; i < ubuf->nextents; i++) {
		const struct udmabuf_extent *extent = &ubuf->extents[i];
		pgoff_t pgoff = extent->pgoff, end = udmabuf_extent_end(ubuf, i);
		struct page *const *entry = extent->listed ? extent->list : &extent->page;

		n = extent->listed ? 1UL << extent->order : end - pgoff;
		for (; pgoff < end; pgoff += n, entry++) {
			if (!udmabuf_pages_adjoin(first + npages - 1, *entry)) {
				sg = udmabuf_set_segs(limits, sg, first, npages);
				first = *entry;
				npages = 0;
			}
			npages += n;
		}
		cond_resched();
	}
	return udmabuf_set_segs(limits, sg, first, npages);
}

/* In one piece rather than chained, which is quicker to set up and to walk. */
static int udmabuf_alloc_sgt(const struct udmabuf *ubuf, struct device *dev,
			     struct sg_table *sgt)
{
	struct udmabuf_seg_limits limits = udmabuf_seg_limits(dev);
	struct scatterlist *end;

	/* No page is cut. With pages of 64 KiB some devices may want that. */
	if (!limits.max || dma_get_seg_boundary(dev) < PAGE_SIZE - 1)
		return -EINVAL;
	sgt->sgl = kvmalloc_objs(*sgt->sgl, udmabuf_max_segs(ubuf, limits),
				 UDMABUF_GFP);
	if (!sgt->sgl)
		return -ENOMEM;
	end = udmabuf_fill_segs(ubuf, limits, sgt->sgl);
	sg_mark_end(end - 1);
	sgt->nents = end - sgt->sgl;
	sgt->orig_nents = sgt->nents;
	return 0;
}

static struct sg_table *udmabuf_new_map(struct udmabuf *ubuf, struct device *dev,
					enum dma_data_direction dir)
{
	struct udmabuf_map *map;
	int ret;

	if (!ubuf->writable && dir != DMA_TO_DEVICE)
		return ERR_PTR(-EPERM);
	/* No device is to find a page that is known to be bad. */
	if (udmabuf_is_poisoned(ubuf))
		return ERR_PTR(-EHWPOISON);

	map = kzalloc_obj(*map, GFP_KERNEL_ACCOUNT);
	if (!map)
		return ERR_PTR(-ENOMEM);
	map->dev = dev;
	map->dir = dir;

	ret = udmabuf_alloc_sgt(ubuf, dev, &map->sgt);
	if (ret)
		goto free_map;
	ret = dma_map_sgtable(dev, &map->sgt, dir, 0);
	if (ret)
		goto free_sgt;

	mutex_lock(&ubuf->lock);
	list_add(&map->node, &ubuf->maps);
	WRITE_ONCE(ubuf->nmappings, ubuf->nmappings + 1);
	mutex_unlock(&ubuf->lock);
	return &map->sgt;

free_sgt:
	kvfree(map->sgt.sgl);
free_map:
	kfree(map);
	return ERR_PTR(ret);
}

static struct sg_table *udmabuf_map_dma_buf(struct dma_buf_attachment *attach,
					    enum dma_data_direction dir)
{
	struct udmabuf *ubuf = attach->dmabuf->priv;
	struct sg_table *sgt = udmabuf_new_map(ubuf, attach->dev, dir);

	trace_udmabuf_map(ubuf->ino, attach->dev, dir, sgt);
	return sgt;
}

static void udmabuf_unmap_dma_buf(struct dma_buf_attachment *attach,
				  struct sg_table *sgt,
				  enum dma_data_direction dir)
{
	struct udmabuf_map *map = container_of(sgt, struct udmabuf_map, sgt);
	struct udmabuf *ubuf = attach->dmabuf->priv;

	trace_udmabuf_unmap(ubuf->ino, map->dev, map->dir, sgt);
	mutex_lock(&ubuf->lock);
	list_del(&map->node);
	WRITE_ONCE(ubuf->nmappings, ubuf->nmappings - 1);
	mutex_unlock(&ubuf->lock);

	dma_unmap_sgtable(map->dev, sgt, map->dir, 0);
	kvfree(sgt->sgl);
	kfree(map);
}

static void udmabuf_release(struct dma_buf *dmabuf)
{
	struct udmabuf *ubuf = dmabuf->priv;

	trace_udmabuf_release(ubuf->ino, ubuf->npages);
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

	/* A mapping that is being made meanwhile needs no sync. */
	if (!READ_ONCE(ubuf->nmappings))
		return 0;
	/* To bounce a page that has failed would take the machine down. */
	if (udmabuf_is_poisoned(ubuf))
		return -EHWPOISON;

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

	if (!READ_ONCE(ubuf->nmappings))
		return 0;
	if (udmabuf_is_poisoned(ubuf))
		return -EHWPOISON;

	mutex_lock(&ubuf->lock);
	if (ubuf->vaddr)
		flush_kernel_vmap_range(ubuf->vaddr, dmabuf->size);
	list_for_each_entry(map, &ubuf->maps, node)
		dma_sync_sgtable_for_device(map->dev, &map->sgt, map->dir);
	mutex_unlock(&ubuf->lock);
	return 0;
}

/* dma-buf operations: user mappings */

/*
 * Where to stop populating for the fault: at the end of a window that grows as
 * told above. Windows are aligned by address, so that none reaches into what a
 * huge entry may map.
 */
static pgoff_t udmabuf_fault_end(const struct vm_fault *vmf, struct udmabuf *ubuf)
{
	unsigned long addr = vmf->address & PAGE_MASK, end;

	lockdep_assert_held(&ubuf->lock);
	if (vmf->pgoff != ubuf->fault_pgoff)
		ubuf->fault_pages = UDMABUF_FAULT_MIN;
	else if (ubuf->fault_pages < UDMABUF_FAULT_MAX)
		ubuf->fault_pages *= 2;
	end = min(round_up(addr + PAGE_SIZE, ubuf->fault_pages << PAGE_SHIFT),
		  vmf->vma->vm_end);
	ubuf->fault_pgoff = min(vmf->pgoff + ((end - addr) >> PAGE_SHIFT),
				ubuf->npages);
	return ubuf->fault_pgoff;
}

/*
 * Pages behind the one that is needed are a courtesy: what goes wrong with one
 * of them shows when it is touched.
 */
static vm_fault_t udmabuf_insert_pages(struct vm_fault *vmf, struct udmabuf *ubuf)
{
	size_t i = udmabuf_find_extent(ubuf, vmf->pgoff);
	unsigned long addr = vmf->address & PAGE_MASK;
	pgoff_t end = udmabuf_fault_end(vmf, ubuf), pgoff;
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
 * The lock keeps faults of both sizes from meeting in one place: the core warns
 * about a huge entry where there are small ones, and the other way round.
 */
static vm_fault_t udmabuf_fault(struct vm_fault *vmf)
{
	struct udmabuf *ubuf = vmf->vma->vm_private_data;
	vm_fault_t ret = VM_FAULT_NOPAGE;

	if (vmf->pgoff >= ubuf->npages)
		return VM_FAULT_SIGBUS;

	mutex_lock(&ubuf->lock);
	if (!pmd_leaf(READ_ONCE(*vmf->pmd)))
		ret = udmabuf_insert_pages(vmf, ubuf);
	mutex_unlock(&ubuf->lock);
	trace_udmabuf_fault(ubuf->ino, vmf, 0, ret);
	return ret;
}

#ifdef CONFIG_ARCH_SUPPORTS_PMD_PFNMAP
/*
 * The first page of what a huge entry for the fault would map. All of it must be
 * in the buffer, side by side: what else is in a huge page is for others.
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

static bool udmabuf_huge_page_poisoned(struct page *page)
{
	struct page *end = page + HPAGE_PMD_NR;

	while (page < end) {
		struct folio *folio = page_folio(page);

		if (udmabuf_folio_poisoned(folio))
			return true;
		page += udmabuf_folio_rest(folio, page);
	}
	return false;
}

static vm_fault_t udmabuf_huge_fault(struct vm_fault *vmf, unsigned int order)
{
	struct udmabuf *ubuf = vmf->vma->vm_private_data;
	vm_fault_t ret = VM_FAULT_FALLBACK;
	struct page *page;
	pmd_t pmd;

	if (order != PMD_ORDER)
		return VM_FAULT_FALLBACK;
	page = udmabuf_huge_page(vmf, ubuf);
	if (!page)
		return VM_FAULT_FALLBACK;

	mutex_lock(&ubuf->lock);
	pmd = READ_ONCE(*vmf->pmd);
	if ((pmd_none(pmd) || pmd_leaf(pmd)) && !udmabuf_huge_page_poisoned(page))
		ret = vmf_insert_pfn_pmd(vmf, page_to_pfn(page),
					 vmf->flags & FAULT_FLAG_WRITE);
	mutex_unlock(&ubuf->lock);
	trace_udmabuf_fault(ubuf->ino, vmf, order, ret);
	return ret;
}
#endif

static const struct vm_operations_struct udmabuf_vm_ops = {
	.fault		= udmabuf_fault,
#ifdef CONFIG_ARCH_SUPPORTS_PMD_PFNMAP
	.huge_fault	= udmabuf_huge_fault,
#endif
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

/* Appends to the array @pages, and returns its end. */
static struct page **udmabuf_store_run(struct page **pages, struct page *page,
				       unsigned long npages)
{
	while (npages--)
		*pages++ = page++;
	return pages;
}

/* The same with all pages of an extent */
static struct page **udmabuf_store_extent(const struct udmabuf *ubuf, size_t i,
					  struct page **pages)
{
	const struct udmabuf_extent *extent = &ubuf->extents[i];
	unsigned long npages = udmabuf_extent_end(ubuf, i) - extent->pgoff, k;

	if (!extent->listed)
		return udmabuf_store_run(pages, extent->page, npages);
	if (!extent->order) {
		memcpy(pages, extent->list, npages * sizeof(*pages));
		return pages + npages;
	}
	for (k = 0; k < npages >> extent->order; k++)
		pages = udmabuf_store_run(pages, extent->list[k], 1UL << extent->order);
	return pages;
}

/*
 * The core warns when there is no mapping, whatever the reason. So pages that have
 * failed, which no load must come near, are covered by one of zeros.
 */
static void udmabuf_cover_poisoned(struct udmabuf *ubuf, struct page **pages)
{
	pgoff_t pgoff;

	if (!ubuf->spare)
		ubuf->spare = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO | __GFP_NOFAIL);
	for (pgoff = 0; pgoff < ubuf->npages; pgoff++) {
		if (is_page_hwpoison(pages[pgoff]))
			pages[pgoff] = ubuf->spare;
		cond_resched();
	}
}

/* For a while, so that it takes more to fail than a moment without memory. */
static void *udmabuf_try_vmap(struct page **pages, unsigned int npages)
{
	unsigned int tries = UDMABUF_VMAP_TRIES;
	void *vaddr;

	while (!(vaddr = vmap(pages, npages, VM_MAP, PAGE_KERNEL)) && --tries)
		schedule_timeout_uninterruptible(msecs_to_jiffies(20));
	return vaddr;
}

static void *udmabuf_vmap_pages(struct udmabuf *ubuf)
{
	struct page **pages, **end;
	void *vaddr;
	size_t i;

	/* Or a signal could fail it. */
	pages = kvmalloc_objs(*pages, ubuf->npages, GFP_KERNEL | __GFP_NOFAIL);
	end = pages;
	for (i = 0; i < ubuf->nextents; i++) {
		end = udmabuf_store_extent(ubuf, i, end);
		cond_resched();
	}
	if (udmabuf_is_poisoned(ubuf))
		udmabuf_cover_poisoned(ubuf, pages);
	vaddr = udmabuf_try_vmap(pages, ubuf->npages);
	kvfree(pages);
	return vaddr;
}

static void udmabuf_drop_vmap(struct udmabuf *ubuf)
{
	void *vaddr = ubuf->vaddr;

	mutex_lock(&ubuf->lock);
	ubuf->vaddr = NULL;
	WRITE_ONCE(ubuf->nmappings, ubuf->nmappings - 1);
	mutex_unlock(&ubuf->lock);
	vunmap(vaddr);
}

/*
 * The mapping is kept, as importers that show pictures ask for it once a frame.
 * The core counts its callers and asks for one mapping at a time.
 */
static int udmabuf_vmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	struct udmabuf *ubuf = dmabuf->priv;
	void *vaddr;

	if (ubuf->vaddr && udmabuf_is_poisoned(ubuf))
		udmabuf_drop_vmap(ubuf);
	vaddr = ubuf->vaddr;
	if (!vaddr) {
		vaddr = udmabuf_vmap_pages(ubuf);
		if (!vaddr)
			return -ENOMEM;
		mutex_lock(&ubuf->lock);
		ubuf->vaddr = vaddr;
		WRITE_ONCE(ubuf->nmappings, ubuf->nmappings + 1);
		mutex_unlock(&ubuf->lock);
	}
	iosys_map_set_vaddr(map, vaddr);
	return 0;
}

/* Unless addresses are scarce: then it makes room for others. */
static void udmabuf_vunmap(struct dma_buf *dmabuf, struct iosys_map *map)
{
	if (!IS_ENABLED(CONFIG_64BIT))
		udmabuf_drop_vmap(dmabuf->priv);
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
 * fails, and vmap() fails for more pages than the machine has, or without
 * addresses for them, which are scarce with 32 bits. Flushing one takes an int.
 */
static bool udmabuf_can_vmap(const struct udmabuf *ubuf)
{
	if (!IS_ENABLED(CONFIG_64BIT) && ubuf->npages > VMALLOC_TOTAL / 8 >> PAGE_SHIFT)
		return false;
	return ubuf->writable && ubuf->npages <= INT_MAX >> PAGE_SHIFT &&
	       ubuf->npages <= totalram_pages() / 2;
}

static struct dma_buf *udmabuf_export(struct udmabuf *ubuf)
{
	DEFINE_DMA_BUF_EXPORT_INFO(exp_info);
	struct dma_buf *dmabuf;

	exp_info.exp_name = "udmabuf";
	exp_info.ops = udmabuf_can_vmap(ubuf) ? &udmabuf_ops :
						&udmabuf_ops_no_vmap;
	exp_info.size = (size_t)ubuf->npages << PAGE_SHIFT;
	exp_info.flags = ubuf->writable ? O_RDWR : O_RDONLY;
	exp_info.priv = ubuf;

	dmabuf = dma_buf_export(&exp_info);
	if (!IS_ERR(dmabuf))
		ubuf->ino = file_inode(dmabuf->file)->i_ino;
	return dmabuf;
}

static int udmabuf_new_fd(struct dma_buf *dmabuf, u32 flags)
{
	int fd = dma_buf_fd(dmabuf, flags & UDMABUF_FLAGS_CLOEXEC ? O_CLOEXEC : 0);

	if (fd < 0)
		dma_buf_put(dmabuf);
	return fd;
}

/* Creation */

static int udmabuf_create(const struct udmabuf_source *source, u32 flags)
{
	struct dma_buf *dmabuf = NULL;
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
	return udmabuf_new_fd(dmabuf, flags);
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
