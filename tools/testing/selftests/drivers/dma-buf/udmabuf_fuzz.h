/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The calls of the fuzzer's programs, and the model of the interface that
 * judges their results. Each call turns its argument bytes into arguments that
 * are mostly valid. From the modelled memory, buffers and mappings it decides
 * whether the call must succeed, and then checks the result.
 */
#ifndef _UDMABUF_FUZZ_H
#define _UDMABUF_FUZZ_H

#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include "udmabuf_test.h"

#define MAX_CALLS	16
#define NARGS		18
#define MAX_PLACES	8192
#define SMALL_PAGES	16
#define NO_AGE		255	/* age of an unknown place */

/* State of one program */

enum area_kind {
	AREA_ANON,
	AREA_THP,
	AREA_HUGETLB,
	AREA_MEMFD,
	AREA_HUGETLB_MEMFD,
	AREA_SHARED,
	AREA_COW,
	AREA_READABLE,
	AREA_FILE,
	AREA_SECRET,
	AREA_UNMAPPED,
	AREA_DMABUF,
	AREAS,
};

/* What a create must do with a range: refuse it, do either, or accept it */
enum verdict { REFUSED, UNCERTAIN, WELCOME };

static enum verdict worse(enum verdict a, enum verdict b)
{
	return a < b ? a : b;
}

/*
 * Model of an area of memory. @age counts the calls that may have replaced
 * pages. Older buffers and the area may then differ.
 */
struct area {
	char *addr;
	size_t npages;
	unsigned int age;
	bool broken;		/* changed by a call: any result allowed */
};

struct place {
	unsigned char area;
	unsigned char age;
	unsigned short page;
};

struct buffer {
	int fd;
	bool rdonly;
	bool repeats;		/* names the same pages many times */
	size_t npages;
	struct place *places;
};

struct view {
	char *addr;
	size_t npages;
	size_t first;
	int prot;
	struct buffer *buffer;
};

struct importer {
	int fd;
	struct buffer *buffer;
	bool vmapped;
};

enum memfd_kind { FD_SMALL, FD_HUGETLB, FD_SMALL_AGAIN, FD_HUGETLB_AGAIN, FD_UNSEALED, FD_READER,
	FD_OTHER, FD_NONE, FDS };

static struct {
	int dev;
	struct area areas[AREAS];
	int fds[FDS];
	bool sealed[2];		/* no new writers: FD_SMALL, FD_HUGETLB */
	struct buffer buffers[MAX_CALLS * 2];
	struct view views[MAX_CALLS];
	struct importer importers[MAX_CALLS];
	size_t nbuffers, nviews, nimporters;
	unsigned int nwriters;	/* maps in which the device may write */
	unsigned int fail_nth;	/* for the next call only */
} world;

/* Shared by the fuzzer and its children */
static struct {
	char wrong[200];
	unsigned long creates, memfd_creates, compared, device_compared, kernel_compared;
	unsigned long races, brackets;
} *tally;

/* Opened once by the fuzzer, to save each child the setup */
static int scratch = -1;

/* Report a result that the model does not allow, and exit. */
#define WRONG(fmt, ...)							\
	do {								\
		snprintf(tally->wrong, sizeof(tally->wrong), fmt, ##__VA_ARGS__); \
		_exit(1);						\
	} while (0)

#define PICK(array, choice)	((array)[(choice) % ARRAY_SIZE(array)])

/*
 * Run the call; if the program asks for it, its n-th allocation or copy fails.
 */
#define INJECTED(call)							\
	({								\
		unsigned int __nth = world.fail_nth;			\
		long __ret;						\
		int __err;						\
									\
		if (__nth)						\
			write_number("/proc/thread-self/fail-nth", __nth); \
		__ret = (long)(call);					\
		__err = errno;						\
		if (__nth)						\
			write_text("/proc/thread-self/fail-nth", "0");	\
		errno = __err;						\
		__ret;							\
	})

static bool injecting(void)
{
	return world.fail_nth;
}

static __u64 *page_word(char *addr, size_t page)
{
	return (__u64 *)(addr + page * page_size());
}

/*
 * Is @word the first word of the page at @place? True also if the model does
 * not know that page.
 */
static bool place_holds(const struct place *place, __u64 word)
{
	const struct area *area = &world.areas[place->area];

	return area->broken || area->age != place->age ||
	       *page_word(area->addr, place->page) == word;
}

static size_t area_len(enum area_kind kind)
{
	size_t len = 0;

	if (kind == AREA_THP)
		len = thp_size();
	if (kind == AREA_HUGETLB)
		len = hugetlb_size();
	if (kind == AREA_HUGETLB_MEMFD)
		len = 2 * hugetlb_size();
	return len ?: SMALL_PAGES * page_size();
}

static void *area_map(enum area_kind kind, char *at, size_t len)
{
	int prot = PROT_READ | PROT_WRITE, shared = MAP_FIXED | MAP_SHARED;
	int private = MAP_FIXED | MAP_PRIVATE, secret;

	switch (kind) {
	case AREA_THP:
		madvise(at, len, MADV_HUGEPAGE);
		return at;
	case AREA_HUGETLB:
		return mmap(at, len, prot, private | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
	case AREA_MEMFD:
		return mmap(at, len, prot, shared, world.fds[FD_SMALL], 0);
	case AREA_HUGETLB_MEMFD:
		return mmap(at, len, prot, shared, world.fds[FD_HUGETLB], 0);
	case AREA_SHARED:
		return mmap(at, len, prot, shared | MAP_ANONYMOUS, -1, 0);
	case AREA_COW:
		return mmap(at, len, prot, private, scratch, 0);
	case AREA_FILE:
		return mmap(at, len, prot, shared, scratch, 0);
	case AREA_SECRET:
		secret = syscall(__NR_memfd_secret, O_CLOEXEC);
		if (secret < 0 || ftruncate(secret, len))
			return MAP_FAILED;
		return mmap(at, len, prot, shared, secret, 0);
	case AREA_UNMAPPED:
		munmap(at, len);
		return at;
	default:
		return at;
	}
}

/* Each area is created at first use, between inaccessible pages. */
static struct area *area_get(enum area_kind kind)
{
	struct area *area = &world.areas[kind];
	size_t len = area_len(kind), i;

	if (kind == AREA_DMABUF && world.nviews)
		*area = (struct area) {
			.addr = world.views[world.nviews - 1].addr,
			.npages = world.views[world.nviews - 1].npages,
		};
	if (area->addr)
		return area;
	area->addr = anon_aligned(len, thp_size() ?: 1 << 21);
	area->npages = len / page_size();
	if (kind == AREA_DMABUF)
		kind = AREA_UNMAPPED;
	if (area_map(kind, area->addr, len) == MAP_FAILED) {
		munmap(area->addr, len);
		area->broken = true;
	}
	if (area->broken || kind == AREA_UNMAPPED)
		return area;
	for (i = 0; i < area->npages; i++)
		*page_word(area->addr, i) = stamp(kind, i * page_size());
	if (kind == AREA_READABLE)
		mprotect(area->addr, len, PROT_READ);
	return area;
}

static void world_open(void)
{
	unsigned int seals = F_SEAL_SHRINK;

	world.dev = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);
	world.fds[FD_SMALL] = sealed_memfd(area_len(AREA_MEMFD), 0, seals);
	world.fds[FD_HUGETLB] = sealed_memfd(area_len(AREA_HUGETLB_MEMFD), MFD_HUGETLB, seals);
	world.fds[FD_SMALL_AGAIN] = dup(world.fds[FD_SMALL]);
	world.fds[FD_HUGETLB_AGAIN] = dup(world.fds[FD_HUGETLB]);
	world.fds[FD_UNSEALED] = sealed_memfd(area_len(AREA_MEMFD), 0, 0);
	world.fds[FD_READER] = reopen(world.fds[FD_SMALL], O_RDONLY);
	world.fds[FD_OTHER] = scratch;
	world.fds[FD_NONE] = -1;
}

static void world_close(void)
{
	unmap_buffers();
	syscall(__NR_close_range, 3, ~0U, 0);
}

static struct buffer *pick_buffer(unsigned char choice)
{
	struct buffer *buffer = &world.buffers[world.nbuffers ? choice % world.nbuffers : 0];

	return world.nbuffers && buffer->fd >= 0 ? buffer : NULL;
}

static void add_view(struct buffer *buffer, char *addr, __u64 offset, __u64 len, int prot)
{
	world.views[world.nviews++] = (struct view) {
		.addr = addr,
		.npages = (len + page_size() - 1) / page_size(),
		.first = offset / page_size(),
		.prot = prot,
		.buffer = buffer,
	};
}

/* One of the program's mappings, or else a new mapping of a whole buffer */
static struct view *pick_view(unsigned char choice)
{
	struct buffer *buffer = world.nviews ? NULL : pick_buffer(choice);
	struct view *view;
	char *addr;

	if (buffer) {
		addr = _map_buf(buffer->fd, buffer->npages * page_size(), PROT_READ, 0);
		if (addr == MAP_FAILED)
			WRONG("mmap of a whole buffer: %s", strerror(errno));
		add_view(buffer, addr, 0, buffer->npages * page_size(), PROT_READ);
	}
	view = world.nviews ? &world.views[choice % world.nviews] : NULL;
	return view && view->addr ? view : NULL;
}

static void add_importer(struct buffer *buffer, __u64 mask, __u32 max_seg, __u64 boundary)
{
	int imp = open(UDMABUF_IMPORTER_DEV, O_RDWR | O_CLOEXEC);

	if (imp < 0)
		WRONG("%s: %s", UDMABUF_IMPORTER_DEV, strerror(errno));
	if (INJECTED(_attach_bounded(imp, buffer->fd, mask, max_seg, boundary))) {
		if (!injecting() && errno != ENOMEM)
			WRONG("attach: %s", strerror(errno));
		close(imp);
		return;
	}
	world.importers[world.nimporters++] = (struct importer) { imp, buffer };
}

/* One of the attached importers, or else a new one without limits */
static struct importer *pick_importer(unsigned char choice)
{
	struct buffer *buffer = world.nimporters ? NULL : pick_buffer(choice);

	if (buffer)
		add_importer(buffer, 0, 0, 0);
	return world.nimporters ? &world.importers[choice % world.nimporters] : NULL;
}

/*
 * Creation
 */

/* Sizes near the borders of @npages, and sizes that often overflow */
static __u64 pick_bytes(unsigned char choice, size_t npages)
{
	static const __u64 odd[] = { 1, 0x800, 1ULL << 31, 1ULL << 32, 1ULL << 47, 1ULL << 63,
		-1ULL, -0x1000ULL, -0x2000ULL, 0x7fffffff000ULL, 0x80000000000ULL };
	const size_t pages[] = { 0, 1, 2, 3, npages / 2 - 1, npages / 2, npages / 2 + 1,
		npages - 2, npages - 1, npages, npages + 1, 1, npages / 4, npages / 2 };

	if (choice >= 0xf0)
		return PICK(odd, choice);
	return PICK(pages, choice) * page_size();
}

/* Mostly kinds that a create accepts */
static enum area_kind pick_kind(unsigned char choice)
{
	return choice % (choice < 0xd0 ? AREA_READABLE : AREAS);
}

static enum memfd_kind pick_memfd(unsigned char choice)
{
	return choice % (choice < 0xd0 ? FD_UNSEALED : FDS);
}

/* The beginning, the end of the previous entry, or any offset */
static __u64 pick_start(unsigned char choice, size_t npages, __u64 after)
{
	if (choice < 0x50)
		return 0;
	return choice < 0xa0 ? after : pick_bytes(choice, npages);
}

static __u32 pick_count(unsigned char choice)
{
	return choice < 0xf0 ? 1 + choice % 4 : 0;
}

/* Repetitions of a call's entries. Batches have 512 or 2,048 pages. */
static unsigned int pick_repeats(unsigned char choice)
{
	static const unsigned int repeats[] = { 1, 1, 1, 1, 1, 1, 1, 2, 3, 17, 130, 700 };

	return PICK(repeats, choice);
}

static void add_places(struct buffer *buffer, enum area_kind kind, __u64 first, __u64 npages,
		       enum verdict verdict)
{
	while (npages-- && buffer->npages < MAX_PLACES)
		buffer->places[buffer->npages++] = (struct place) {
			.area = kind,
			.age = verdict == WELCOME ? world.areas[kind].age : NO_AGE,
			.page = first++,
		};
}

static struct place *places_get(void)
{
	return calloc(MAX_PLACES, sizeof(struct place));
}

/* A requested create: the buffer to expect, and whether it must succeed */
struct request {
	struct buffer buffer;
	enum verdict verdict;
	__u64 bytes;
	__u64 start, len;	/* of the last piece, in its area */
};

static void pick_piece(struct request *request, const unsigned char *choices, size_t npages,
		       bool first)
{
	request->start = pick_start(choices[0], npages, first ? 0 : request->start + request->len);
	request->len = pick_bytes(choices[1], npages);
}

/* Can the model record all pages of the piece? */
static bool piece_fits(const struct request *request)
{
	return request->len / page_size() <= MAX_PLACES - request->buffer.npages;
}

static void add_piece(struct request *request, enum area_kind kind, enum verdict verdict)
{
	request->bytes += request->len;
	request->verdict = worse(request->verdict, verdict);
	add_places(&request->buffer, kind, request->start / page_size(),
		   request->len / page_size(), request->verdict);
}

static struct buffer *add_buffer(int fd, const struct buffer *like)
{
	struct buffer *buffer = &world.buffers[world.nbuffers];

	if (world.nbuffers == ARRAY_SIZE(world.buffers)) {
		close(fd);
		return NULL;
	}
	*buffer = *like;
	buffer->fd = fd;
	world.nbuffers++;
	return buffer;
}

static void created(int fd, __u32 flags, struct buffer *buffer, __u64 bytes)
{
	int mode = fcntl(fd, F_GETFL) & O_ACCMODE;

	if (bytes != buffer->npages * page_size() || (__u64)lseek(fd, 0, SEEK_END) != bytes)
		WRONG("the size of a buffer is not the %llu bytes of its entries",
		      (unsigned long long)bytes);
	if (mode != (buffer->rdonly ? O_RDONLY : O_RDWR))
		WRONG("a buffer has wrong mode %#x", mode);
	if (!(fcntl(fd, F_GETFD) & FD_CLOEXEC) != !(flags & UDMABUF_FLAGS_CLOEXEC))
		WRONG("close-on-exec does not match flags %#x", flags);
	add_buffer(fd, buffer);
}

/*
 * The negative errno required by the entries' numbers alone; 0 if they are
 * valid
 */
static int list_error(__u32 flags, const struct udmabuf_iovec *iovs, __u32 niov)
{
	__u64 sum = 0, mask = page_size() - 1, most = largest_size();
	bool too_much = false;
	__u32 i;

	if (flags & ~3 || !niov)
		return -EINVAL;
	for (i = 0; i < niov; i++) {
		if ((iovs[i].base | iovs[i].len) & mask || !iovs[i].len ||
		    iovs[i].base + iovs[i].len < iovs[i].len)
			return -EINVAL;
		too_much |= iovs[i].len > most - sum;
		sum = too_much ? 0 : sum + iovs[i].len;
	}
	return too_much ? -E2BIG : 0;
}

static enum verdict judge_area(enum area_kind kind, const struct udmabuf_iovec *iov, bool rdonly)
{
	const struct area *area = &world.areas[kind];
	__u64 start = iov->base - to_u64(area->addr), len = area->npages * page_size();

	if (area->broken || iov->base < to_u64(area->addr) || start >= len)
		return UNCERTAIN;
	if (iov->len > len - start || kind >= AREA_FILE)
		return REFUSED;
	return kind != AREA_READABLE || rdonly ? WELCOME : REFUSED;
}

static void check_created(long ret, int err, enum verdict verdict, const char *errors)
{
	if (ret >= 0 && verdict == REFUSED)
		WRONG("create succeeded, but must be refused");
	if (ret < 0 && verdict == WELCOME && !injecting() && err != ENOMEM)
		WRONG("create: %s", strerror(err));
	if (ret < 0 && !injecting() && !strchr(errors, err))
		WRONG("create: unexpected errno %d", err);
}

/* Up to @niov entries that repeat the first @n. Returns their number. */
static __u32 pick_entries(struct request *request, struct udmabuf_iovec *iovs,
			  const unsigned char *arg, __u32 n, __u32 niov)
{
	__u32 i;

	for (i = 0; i < niov; i++) {
		const unsigned char *choices = arg + i % n * 3;
		enum area_kind kind = pick_kind(choices[0]);
		struct area *area = area_get(kind);

		pick_piece(request, choices + 1, area->npages, !(i % n));
		iovs[i].base = to_u64(area->addr) + request->start;
		iovs[i].len = request->len;
		if (i >= n && !piece_fits(request))
			break;
		add_piece(request, kind, judge_area(kind, &iovs[i], request->buffer.rdonly));
	}
	return i;
}

static void call_create(const unsigned char *arg)
{
	static const __u32 all_flags[] = { 0, 1, 2, 3, 0, 1, 2, 3, 1, 0, 4, 0x80000000, ~0U };
	static const char errors[] = { EFAULT, EOPNOTSUPP, ENOMEM, 0 };
	__u32 n = pick_count(arg[1]), niov = n * pick_repeats(arg[2]);
	__u32 flags = PICK(all_flags, arg[0]);
	struct udmabuf_iovec *iovs = calloc(niov + 1, sizeof(*iovs));
	struct request request = {
		.buffer.rdonly = flags & 2,
		.buffer.repeats = niov > n,
		.buffer.places = places_get(),
		.verdict = WELCOME,
	};
	long ret;
	int err;

	niov = pick_entries(&request, iovs, arg + 3, n, niov);
	if (request.buffer.rdonly && kernel_before(6, 2))
		request.verdict = REFUSED;
	ret = INJECTED(_create(world.dev, flags, iovs, niov));
	err = list_error(flags, iovs, niov);
	if (err && !injecting() && (ret != -1 || errno != -err))
		WRONG("create: errno %d instead of %d", ret < 0 ? errno : 0, -err);
	if (!err)
		check_created(ret, errno, request.verdict, errors);
	if (ret >= 0)
		created(ret, flags, &request.buffer, request.bytes);
	else
		free(request.buffer.places);
	tally->creates += ret >= 0;
	free(iovs);
}

static enum verdict judge_item(const struct udmabuf_create_item *item, enum memfd_kind kind)
{
	enum area_kind area = AREA_MEMFD + (kind & 1);
	__u64 len = area_len(area);

	if (kind > FD_HUGETLB_AGAIN || world.sealed[kind & 1] || !item->size)
		return REFUSED;
	if (world.areas[area].broken)
		return UNCERTAIN;
	return item->size <= len && item->offset <= len - item->size ? WELCOME : REFUSED;
}

/* Must the create fail because of the items' numbers alone? */
static bool items_wrong(const struct udmabuf_create_item *items, __u32 count)
{
	__u64 sum = 0, most = largest_size();
	__u32 i;

	for (i = 0; i < count; i++) {
		if ((items[i].offset | items[i].size) & (page_size() - 1) ||
		    items[i].size > most - sum)
			return true;
		sum += items[i].size;
	}
	return !sum;
}

static long create_items(bool list, __u32 flags, const struct udmabuf_create_item *items,
			 __u32 count)
{
	if (list)
		return INJECTED(_create_list(world.dev, flags, items, count));
	return INJECTED(_create_memfd(world.dev, flags, items->memfd, items->offset, items->size));
}

/* The same for items: up to @count that repeat the first @n. */
static __u32 pick_items(struct request *request, struct udmabuf_create_item *items,
			const unsigned char *arg, __u32 n, __u32 count)
{
	__u32 i;

	for (i = 0; i < count; i++) {
		const unsigned char *choices = arg + i % n * 3;
		enum memfd_kind kind = pick_memfd(choices[0]);
		struct area *area = area_get(AREA_MEMFD + (kind & 1));

		pick_piece(request, choices + 1, area->npages, !(i % n));
		items[i].memfd = world.fds[kind];
		items[i].offset = request->start;
		items[i].size = request->len;
		if (i >= n && !piece_fits(request))
			break;
		add_piece(request, AREA_MEMFD + (kind & 1), judge_item(&items[i], kind));
	}
	return i;
}

static void call_create_items(const unsigned char *arg)
{
	static const char errors[] = { EINVAL, EBADFD, EACCES, ENOMEM, 0 };
	bool list = arg[0] & 1, wrong;
	__u32 n = list ? pick_count(arg[1]) : 1, count = n * (list ? pick_repeats(arg[2]) : 1);
	struct udmabuf_create_item *items = calloc(count + 1, sizeof(*items));
	struct request request = {
		.buffer.repeats = count > n,
		.buffer.places = places_get(),
		.verdict = WELCOME,
	};
	long ret;

	count = pick_items(&request, items, arg + 3, n, count);
	wrong = items_wrong(items, count);
	ret = create_items(list, arg[0] >> 1, items, count);
	if (wrong && !injecting() && (ret != -1 || errno != EINVAL))
		WRONG("create from memfds: errno %d instead of EINVAL", ret < 0 ? errno : 0);
	check_created(ret, errno, wrong ? REFUSED : request.verdict, errors);
	if (ret >= 0)
		created(ret, arg[0] >> 1, &request.buffer, request.bytes);
	else
		free(request.buffer.places);
	tally->memfd_creates += ret >= 0;
	free(items);
}

/*
 * Mappings
 */

static bool may_be_sealed(const struct buffer *buffer)
{
	size_t i;

	for (i = 0; i < buffer->npages; i++)
		if ((buffer->places[i].area == AREA_MEMFD && world.sealed[0]) ||
		    (buffer->places[i].area == AREA_HUGETLB_MEMFD && world.sealed[1]))
			return true;
	return false;
}

static void check_view(const struct view *view)
{
	size_t i;

	if (!view->prot)
		return;
	for (i = 0; i < view->npages; i++)
		if (!place_holds(&view->buffer->places[view->first + i],
				 *page_word(view->addr, i)))
			WRONG("page %zu of a mapping, page %zu of its buffer, has wrong bytes", i,
			      view->first + i);
	tally->compared++;
}

/*
 * An address at which a huge page of that offset in the buffer could be mapped
 */
static char *aligned_spot(__u64 len, __u64 offset)
{
	size_t huge = thp_size() ?: 1 << 21, into = offset & (huge - 1);

	return anon_aligned(len + into, huge) + into;
}

static void call_mmap(const unsigned char *arg)
{
	static const int prots[] = { PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE,
		PROT_READ | PROT_WRITE, PROT_WRITE, PROT_NONE };
	static const char errors[] = { EINVAL, EACCES, EPERM, ENOMEM, EOVERFLOW, 0 };
	struct importer *importer = arg[5] & 1 ? pick_importer(arg[0]) : NULL;
	struct buffer *buffer = importer ? importer->buffer : pick_buffer(arg[0]);
	int prot = PICK(prots, arg[1]), how = arg[2] % 8 ? MAP_SHARED : MAP_PRIVATE;
	__u64 page = page_size(), size, offset, len;
	bool fits, allowed;
	char *at, *addr;

	if (!buffer)
		return;
	size = buffer->npages * page;
	offset = arg[3] < 0x40 ? pick_bytes(arg[3] * 4, buffer->npages) : 0;
	len = arg[4] < 0x40 ? pick_bytes(arg[4] * 4, buffer->npages) : size - offset;
	fits = len && !(offset & (page - 1)) && offset < size && len <= size - offset;
	at = fits && arg[2] & 8 ? aligned_spot(len, offset) : NULL;
	how |= at ? MAP_FIXED : 0;
	addr = (char *)INJECTED(mmap(at, len, prot, how, importer ? importer->fd : buffer->fd,
				     offset));
	allowed = fits && how & MAP_SHARED && !(prot & PROT_WRITE && buffer->rdonly);
	if (addr == MAP_FAILED) {
		if (allowed && !injecting() && errno != ENOMEM && !may_be_sealed(buffer))
			WRONG("mmap: %s", strerror(errno));
		if (!strchr(errors, errno))
			WRONG("mmap: unexpected errno %d", errno);
		return;
	}
	if (!allowed)
		WRONG("mmap succeeded, but must be refused");
	add_view(buffer, addr, offset, len, prot);
}

static void call_touch(const unsigned char *arg)
{
	struct view *view = pick_view(arg[0]);
	bool write = arg[1] & 1;
	size_t page;
	int sig;

	if (!view)
		return;
	page = pick_bytes(arg[2] % 0xf0, view->npages) / page_size() % view->npages;
	sig = fault_signal((char *)page_word(view->addr, page) + arg[3] * 8, write);
	if (!sig != !!(view->prot & (write ? PROT_WRITE : PROT_READ | PROT_WRITE)))
		WRONG("unexpected signal %d at an access to page %zu of a mapping", sig, page);
	if (arg[1] & 6)
		check_view(view);
}

static void call_munmap(const unsigned char *arg)
{
	struct view *view = pick_view(arg[0]);
	size_t half;

	if (!view)
		return;
	half = view->npages / 2;
	if (arg[1] % 4 == 0 || !half) {
		munmap(view->addr, view->npages * page_size());
		view->addr = NULL;
	} else if (arg[1] % 4 == 1) {
		munmap(view->addr, half * page_size());
		view->addr += half * page_size();
		view->first += half;
		view->npages -= half;
	} else {
		munmap(view->addr + half * page_size(), (view->npages - half) * page_size());
		view->npages = half;
	}
}

static void call_mremap(const unsigned char *arg)
{
	struct view *view = pick_view(arg[0]);
	size_t len, new_len;
	char *at, *addr;

	if (!view)
		return;
	len = view->npages * page_size();
	new_len = pick_bytes(arg[1] % 0xf0, view->npages);
	at = aligned_spot(new_len > len ? new_len : len, view->first * page_size());
	addr = mremap(view->addr, len, new_len,
		      MREMAP_MAYMOVE | (arg[2] & 1 ? MREMAP_FIXED : 0), at);
	if (addr == MAP_FAILED) {
		if (new_len && new_len <= len && errno != ENOMEM)
			WRONG("mremap: %s", strerror(errno));
		return;
	}
	if (new_len > len)
		WRONG("mremap enlarged a mapping of a buffer");
	view->addr = addr;
	view->npages = new_len / page_size();
}

static void call_mprotect(const unsigned char *arg)
{
	static const int prots[] = { PROT_READ, PROT_READ | PROT_WRITE, PROT_NONE };
	struct view *view = pick_view(arg[0]);
	int prot = PICK(prots, arg[1]);

	if (!view)
		return;
	/*
	 * The second half only; the first half stays mapped but is not tracked.
	 */
	if (arg[2] & 1 && view->npages > 1) {
		view->addr += view->npages / 2 * page_size();
		view->first += view->npages / 2;
		view->npages -= view->npages / 2;
	}
	if (mprotect(view->addr, view->npages * page_size(), prot))
		return;
	if (prot & PROT_WRITE && view->buffer->rdonly)
		WRONG("a read-only mapping was made writable");
	view->prot = prot;
}

/* No call may pin a page through a mapping of the buffer. */
static void call_gup(const unsigned char *arg)
{
	struct view *view = pick_view(arg[0]);
	char bytes[8] = {};
	struct iovec mine = { bytes, sizeof(bytes) }, theirs = { NULL, sizeof(bytes) };
	long ret;

	if (!view)
		return;
	theirs.iov_base = view->addr;
	ret = arg[1] & 1 ? process_vm_writev(getpid(), &mine, 1, &theirs, 1, 0) :
			   process_vm_readv(getpid(), &mine, 1, &theirs, 1, 0);
	if (ret >= 0)
		WRONG("process_vm_readv or writev worked on a mapping of a buffer");
}

/*
 * The dma-buf's other users
 */

static void call_sync(const unsigned char *arg)
{
	struct buffer *buffer = pick_buffer(arg[0]);
	__u64 flags = arg[1] & 7;
	bool valid;

	if (!buffer)
		return;
	if (arg[1] >= 0xe0)
		flags |= 1ULL << (arg[2] & 63);
	valid = !(flags & ~7ULL) && flags & DMA_BUF_SYNC_RW;
	if (_sync_cpu(buffer->fd, flags) ? valid || errno != EINVAL : !valid)
		WRONG("DMA_BUF_IOCTL_SYNC with flags %#llx: unexpected errno %d",
		      (unsigned long long)flags, errno);
}

static void call_attach(const unsigned char *arg)
{
	static const __u64 masks[] = { 0, 0, 0, 0xffffffff };
	static const __u32 segs[] = { 0, 4096, 8192, 3 * 4096, 10000, 1 << 20, 1U << 31 };
	static const __u64 boundaries[] = { 0, 0, 0, 0xfff, 0xffff, 0x1fffff, 0xffffffff };
	struct buffer *buffer = pick_buffer(arg[0]);
	__u64 boundary = PICK(boundaries, arg[3]), scale = page_size() / 4096;

	if (boundary)
		boundary = (boundary + 1) * scale - 1;
	if (buffer)
		add_importer(buffer, PICK(masks, arg[1]), PICK(segs, arg[2]) * scale, boundary);
}

/*
 * Does an importer, or the kernel by vmap, see other bytes than the memory's?
 */
static bool seen_differs(const struct importer *importer, unsigned int cmd, __u32 handle)
{
	const struct buffer *buffer = importer->buffer;
	size_t npages = buffer->npages < 64 ? buffer->npages : 64, i;
	char *seen = malloc(npages * page_size());
	bool differs = _device_io(importer->fd, cmd, handle, 0, seen, npages * page_size());

	for (i = 0; i < npages && !differs; i++)
		differs = !place_holds(&buffer->places[i], *page_word(seen, i));
	free(seen);
	return differs;
}

static void call_map(const unsigned char *arg)
{
	struct importer *importer = pick_importer(arg[0]);
	struct udmabuf_importer_map map;
	__u32 dir = arg[1] % 3;
	bool refused;

	if (!importer)
		return;
	/*
	 * A buffer may name a page four times. DMA-API debugging allows eight
	 * maps of it.
	 */
	if (importer->buffer->repeats || world.nwriters == 2)
		dir = IMPORTER_TO_DEVICE;
	refused = importer->buffer->rdonly && dir != IMPORTER_TO_DEVICE;
	if (INJECTED(_map(importer->fd, dir, &map))) {
		if (!injecting() && errno != (refused ? EPERM : ENOMEM) && errno != EIO)
			WRONG("map: %s", strerror(errno));
		return;
	}
	if (refused)
		WRONG("a read-only buffer was mapped for writing");
	if (map.bytes != importer->buffer->npages * page_size())
		WRONG("map has %llu bytes, unlike its buffer", (unsigned long long)map.bytes);
	world.nwriters += dir != IMPORTER_TO_DEVICE;
	if (dir != IMPORTER_FROM_DEVICE && seen_differs(importer, IMPORTER_READ, map.handle))
		WRONG("a device reads wrong bytes");
	tally->device_compared++;
}

static void call_device_io(const unsigned char *arg)
{
	static const unsigned int cmds[] = { IMPORTER_READ, IMPORTER_WRITE, IMPORTER_VREAD,
		IMPORTER_VWRITE };
	struct importer *importer = pick_importer(arg[0]);
	char bytes[64] = {};

	/*
	 * A device that ignores a map's direction could write to a read-only
	 * buffer.
	 */
	if (importer && !importer->buffer->rdonly)
		_device_io(importer->fd, PICK(cmds, arg[1]), arg[2] % 4,
			   pick_bytes(arg[3], importer->buffer->npages) + arg[4] * 8, bytes,
			   sizeof(bytes));
}

static void call_vmap(const unsigned char *arg)
{
	struct importer *importer = pick_importer(arg[0]);

	if (!importer)
		return;
	if (arg[1] % 4 == 0) {
		ioctl(importer->fd, IMPORTER_VUNMAP);
		importer->vmapped = false;
	} else if (!importer->vmapped) {
		if (_vmap(importer->fd)) {
			/* vmalloc space is small on a 32-bit kernel. */
			if (!importer->buffer->rdonly && errno != EOPNOTSUPP &&
			    !(errno == EINVAL && kernel_is_32bit()))
				WRONG("vmap: %s", strerror(errno));
			return;
		}
		if (importer->buffer->rdonly)
			WRONG("a read-only buffer has a kernel mapping");
		importer->vmapped = true;
	}
	if (importer->vmapped && seen_differs(importer, IMPORTER_VREAD, 0))
		WRONG("a vmap shows wrong bytes");
	tally->kernel_compared += importer->vmapped;
}

static void call_importer(const unsigned char *arg)
{
	struct importer *importer = pick_importer(arg[0]);

	if (!importer)
		return;
	switch (arg[1] % 4) {
	case 0:
		if (_cpu_access(importer->fd, IMPORTER_BEGIN_CPU, arg[2] % 3))
			WRONG("begin_cpu_access: %s", strerror(errno));
		break;
	case 1:
		if (_cpu_access(importer->fd, IMPORTER_END_CPU, arg[2] % 3))
			WRONG("end_cpu_access: %s", strerror(errno));
		break;
	case 2:
		_unmap(importer->fd, arg[2] % 4);
		break;
	default:
		close(importer->fd);
		*importer = world.importers[--world.nimporters];
	}
}

/*
 * File descriptors and processes
 */

static void call_close(const unsigned char *arg)
{
	struct buffer *buffer = pick_buffer(arg[0]);

	if (!buffer)
		return;
	close(buffer->fd);
	buffer->fd = -1;
}

static void call_dup(const unsigned char *arg)
{
	struct buffer *buffer = pick_buffer(arg[0]);

	if (buffer)
		add_buffer(dup(buffer->fd), buffer);
}

static void call_pass(const unsigned char *arg)
{
	struct buffer *buffer = pick_buffer(arg[0]);
	int socks[2];

	if (!buffer || socketpair(AF_UNIX, SOCK_STREAM, 0, socks))
		return;
	if (!send_fd(socks[0], buffer->fd)) {
		close(buffer->fd);
		buffer->fd = arg[1] & 1 ? receive_fd(socks[1]) : -1;
	}
	close(socks[0]);
	close(socks[1]);
}

static void call_fork(const unsigned char *arg)
{
	pid_t pid = fork();
	size_t i;

	if (!pid) {
		for (i = 0; i < world.nviews; i++)
			if (world.views[i].addr)
				check_view(&world.views[i]);
		if (arg[0] & 1)
			call_create(arg + 1);
		_exit(0);
	}
	if (pid > 0 && reap(pid) && !*tally->wrong)
		WRONG("a forked child failed");
	if (*tally->wrong)
		_exit(1);
}

static void call_raw(const unsigned char *arg)
{
	static const unsigned long cmds[] = { UDMABUF_CREATE, UDMABUF_CREATE_MEMFD,
		UDMABUF_CREATE_LIST, UDMABUF_CREATE ^ 1, UDMABUF_CREATE_LIST ^ 1 << 16, 0, ~0UL };
	unsigned int choice = arg[0] % ARRAY_SIZE(cmds);
	char *nowhere = area_get(AREA_UNMAPPED)->addr;
	char *const at[] = { NULL, nowhere, nowhere - 1, (char *)-4096L };

	if (ioctl(world.dev, cmds[choice], PICK(at, arg[1])) != -1 ||
	    errno != (choice < 3 ? EFAULT : ENOTTY))
		WRONG("ioctl %#lx, invalid address: unexpected errno %d", cmds[choice], errno);
}

/*
 * The memory itself
 */

static void call_store(const unsigned char *arg)
{
	struct area *area = area_get(arg[0] % AREA_READABLE);

	if (!area->broken)
		fault_signal((char *)page_word(area->addr, arg[1] % area->npages), true);
}

static void call_advise(const unsigned char *arg)
{
	static const int kinds[] = { MADV_DONTNEED, MADV_PAGEOUT, MADV_COLLAPSE, MADV_REMOVE,
		MADV_HUGEPAGE, MADV_POPULATE_WRITE, MADV_MERGEABLE, MADV_COLD, MADV_DONTFORK,
		MADV_FREE };
	struct area *area = area_get(arg[0] % AREA_DMABUF);
	size_t len = area->npages * page_size() / (arg[2] & 1 ? 2 : 1);
	int advice = PICK(kinds, arg[1]);

	madvise(area->addr, len, advice);
	area->age += advice == MADV_DONTNEED || advice == MADV_REMOVE || advice == MADV_FREE;
	/* MADV_DONTFORK: a child must not access the area. */
	area->broken |= advice == MADV_DONTFORK;
}

static void call_break(const unsigned char *arg)
{
	struct area *area = area_get(arg[0] % AREA_DMABUF);
	size_t half = area->npages / 2 * page_size(), len = area->npages * page_size();

	area->broken = true;
	switch (arg[1] % 4) {
	case 0:
		munmap(area->addr, half);
		break;
	case 1:
		mprotect(area->addr + half, half, PROT_READ);
		break;
	case 2:
		mprotect(area->addr, half, PROT_NONE);
		break;
	default:
		mremap(area->addr, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, aligned_spot(len, 0));
	}
}

static void call_split(const unsigned char *arg)
{
	split_huge_page(area_get(arg[0] & 1 ? AREA_THP : AREA_ANON)->addr);
}

static void call_seal(const unsigned char *arg)
{
	static const unsigned int all_seals[] = { F_SEAL_FUTURE_WRITE, F_SEAL_WRITE, F_SEAL_GROW,
		F_SEAL_SEAL };
	unsigned int seals = PICK(all_seals, arg[1]);

	if (!fcntl(world.fds[arg[0] & 1], F_ADD_SEALS, seals))
		world.sealed[arg[0] & 1] |= !!(seals & (F_SEAL_FUTURE_WRITE | F_SEAL_WRITE));
}

static void call_resize(const unsigned char *arg)
{
	struct area *area = area_get(AREA_MEMFD + (arg[0] & 1));
	size_t len = area->npages * page_size();
	int fd = world.fds[arg[0] & 1];

	if (arg[1] & 1) {
		area->age++;
		fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
			  len / (arg[2] & 1 ? 2 : 1));
	} else {
		area->broken = true;
		if (ftruncate(fd, arg[2] & 1 ? 2 * len : len / 2))
			area->age++;
	}
}

static void call_fail(const unsigned char *arg)
{
	world.fail_nth = 1 + arg[0] % 24;
}

/*
 * Races: a second thread discards the pages of a create, fills the same holes,
 * or maps and unmaps a buffer during stores. A race ends after a number of
 * turns, not after a time. The contents of the raced pages are not judged.
 * After each program the fuzzer compares the counters and the hugetlb pool.
 */

#define TURNS		32	/* creates, or maps, of one race */
#define PAUSES		8	/* of 4096, 8192, ... loops or nanoseconds */
#define LOSSES		8	/* discards per create, with userfaultfd */

static struct {
	struct area *area;
	int memfd;		/* mapped by the area, or -1 */
	int uffd;		/* registered for the area, or -1 */
	int turn;		/* eventfd that wakes the userfaultfd thread */
	int importer;
	unsigned int seed;	/* of the second thread */
	int losses;		/* left for the current create */
	int attacks;		/* turns of the second thread */
	pthread_barrier_t start;	/* of both threads' turns, with a memfd */
	unsigned int begun, ended;	/* unmaps */
	bool over;
} race;

static const unsigned char raced_kinds[] = { AREA_HUGETLB, AREA_HUGETLB_MEMFD, AREA_ANON,
	AREA_HUGETLB, AREA_THP, AREA_HUGETLB_MEMFD, AREA_MEMFD, AREA_HUGETLB, AREA_SHARED,
	AREA_COW };

/* A random number of loops or nanoseconds */
static unsigned int random_pause(unsigned int *seed)
{
	unsigned int least = 4096U << rand_r(seed) % PAUSES;

	return least + rand_r(seed) % least;
}

static void race_pause(unsigned int *seed)
{
	volatile unsigned int loops = random_pause(seed);

	while (loops)
		loops--;
}

static bool race_is_over(void)
{
	return __atomic_load_n(&race.over, __ATOMIC_SEQ_CST);
}

static void wake_userfaultfd_thread(void)
{
	if (race.uffd >= 0)
		eventfd_write(race.turn, 1);
}

static void end_race(void)
{
	__atomic_store_n(&race.over, true, __ATOMIC_SEQ_CST);
	wake_userfaultfd_thread();
}

static size_t raced_bytes(void)
{
	return race.area->npages * page_size();
}

/*
 * The registered range: part of a THP only, since its small pages are copied
 * one by one
 */
static struct uffdio_range uffd_range(void)
{
	bool thp = race.area == &world.areas[AREA_THP];

	return (struct uffdio_range) {
		.start = to_u64(race.area->addr),
		.len = thp ? SMALL_PAGES * page_size() : raced_bytes(),
	};
}

/*
 * A userfaultfd for missing pages of the area; -1 if the area does not support
 * it
 */
static int raced_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { uffd_range(), UFFDIO_REGISTER_MODE_MISSING };
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (uffd < 0 || (!ioctl(uffd, UFFDIO_API, &api) && !ioctl(uffd, UFFDIO_REGISTER, &reg)))
		return uffd;
	close(uffd);
	return -1;
}

/* Serve a page fault of the create. */
static void bring_page(__u64 addr)
{
	struct uffdio_range all = uffd_range();
	bool huge = race.area == &world.areas[AREA_HUGETLB];
	size_t unit = huge ? hugetlb_size() : page_size();
	struct uffdio_copy bring = { .dst = addr & ~(unit - 1), .len = unit };
	static char *bytes;

	if (!bytes)
		bytes = anon_small(hugetlb_size() + page_size());
	bring.src = to_u64(bytes);
	/*
	 * If the copy fails, unregister the area so that the create does not
	 * hang.
	 */
	if (ioctl(race.uffd, UFFDIO_COPY, &bring))
		ioctl(race.uffd, UFFDIO_UNREGISTER, &all);
}

/*
 * Limits the discards, because the create may always find its page discarded.
 */
static bool may_lose(void)
{
	return __atomic_fetch_sub(&race.losses, 1, __ATOMIC_SEQ_CST) > 0;
}

static void take_pages(void)
{
	madvise(race.area->addr, raced_bytes(), MADV_DONTNEED);
}

/*
 * Serve the faults of the create until it has run for a random time without
 * one. This thread shares the CPU of the create at a higher priority, so its
 * timer interrupts the create at any point. With no discard left it only serves
 * faults, and sleeps until the next create: if its timer went on, a create would
 * get hardly any time on a slow kernel.
 */
static void serve_faults(void)
{
	struct pollfd events[] = { { .fd = race.uffd, .events = POLLIN },
				   { .fd = race.turn, .events = POLLIN } };
	struct timespec pause = {};
	struct uffd_msg msg;
	eventfd_t turns;
	bool idle;

	do {
		if (read(race.uffd, &msg, sizeof(msg)) == sizeof(msg)) {
			/* Some of the discards meet a create that sleeps. */
			if (!(rand_r(&race.seed) % 4) && may_lose())
				take_pages();
			bring_page(msg.arg.pagefault.address);
		}
		if (events[1].revents)
			eventfd_read(race.turn, &turns);
		pause.tv_nsec = random_pause(&race.seed);
		idle = __atomic_load_n(&race.losses, __ATOMIC_SEQ_CST) <= 0;
	} while (!race_is_over() && ppoll(events, 2, idle ? NULL : &pause, NULL) > 0);
}

static void *take_pages_away(void *arg)
{
	struct sched_param first = { .sched_priority = 1 };

	if (race.uffd >= 0)
		sched_setscheduler(0, SCHED_FIFO, &first);
	while (!race_is_over()) {
		if (race.uffd >= 0)
			serve_faults();
		else
			race_pause(&race.seed);
		if (race.uffd < 0 || may_lose())
			take_pages();
		__atomic_add_fetch(&race.attacks, 1, __ATOMIC_SEQ_CST);
	}
	return NULL;
}

/*
 * Fill the holes of a memfd while a create of the first thread fills them too.
 */
static void *fill_holes(void *arg)
{
	int turns, buf;

	for (turns = 0; turns < TURNS; turns++) {
		pthread_barrier_wait(&race.start);
		buf = _create_memfd(world.dev, 0, race.memfd, 0, raced_bytes());
		if (buf >= 0)
			close(buf);
		madvise(race.area->addr, raced_bytes(), MADV_DONTNEED);
	}
	return NULL;
}

/*
 * With a memfd both threads have TURNS turns, without one each at least TURNS.
 */
static bool race_goes_on(int turns)
{
	return turns < TURNS || (race.memfd < 0 &&
				 __atomic_load_n(&race.attacks, __ATOMIC_SEQ_CST) < TURNS);
}

/*
 * Arguments of a create whose first entry is in the area, in half of the cases
 * all of the area
 */
static void aim_create(unsigned char *create, const unsigned char *arg, unsigned char kind)
{
	memcpy(create, arg + 3, NARGS - 3);
	create[3] = kind;
	if (arg[2] & 1)
		return;
	create[1] = 0;
	create[2] = 0;
	create[4] = 0;
	create[5] = 9;
}

static void start_turn(void)
{
	if (__atomic_exchange_n(&race.losses, LOSSES, __ATOMIC_SEQ_CST) <= 0)
		wake_userfaultfd_thread();
	if (race.memfd < 0)
		return;
	fallocate(race.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, raced_bytes());
	pthread_barrier_wait(&race.start);
}

/* Keep only the last buffer, to leave room in the table of buffers. */
static void race_creates(void (*call)(const unsigned char *), const unsigned char *create)
{
	size_t first = world.nbuffers;
	int turns;

	for (turns = 0; race_goes_on(turns); turns++) {
		while (world.nbuffers > first) {
			close(world.buffers[--world.nbuffers].fd);
			free(world.buffers[world.nbuffers].places);
		}
		start_turn();
		call(create);
	}
	end_race();
}

static void race_against(void (*call)(const unsigned char *), const unsigned char *create)
{
	cpu_set_t all, one;
	pthread_t thread;

	CPU_ZERO(&all);
	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	sched_getaffinity(0, sizeof(all), &all);
	if (race.uffd >= 0)
		sched_setaffinity(0, sizeof(one), &one);
	pthread_barrier_init(&race.start, NULL, 2);
	if (!pthread_create(&thread, NULL, race.memfd < 0 ? take_pages_away : fill_holes, NULL)) {
		race_creates(call, create);
		pthread_join(thread, NULL);
	}
	sched_setaffinity(0, sizeof(all), &all);
}

static void call_race(const unsigned char *arg)
{
	enum area_kind kind = PICK(raced_kinds, arg[0]);
	bool memfd = kind == AREA_MEMFD || kind == AREA_HUGETLB_MEMFD;
	bool items = memfd && arg[1] & 1;
	unsigned char create[NARGS] = {};

	race.area = area_get(kind);
	if (race.area->broken)
		return;
	race.memfd = memfd ? world.fds[kind - AREA_MEMFD] : -1;
	race.uffd = !memfd && arg[1] & 6 ? raced_uffd() : -1;
	race.turn = race.uffd < 0 ? -1 : eventfd(0, EFD_CLOEXEC);
	race.seed = arg[2];
	race.over = false;
	race.attacks = 0;
	race.area->broken = true;
	aim_create(create, arg, items ? kind - AREA_MEMFD : kind);
	race_against(items ? call_create_items : call_create, create);
	if (race.uffd >= 0) {
		close(race.uffd);
		close(race.turn);
	}
	race.area->broken = false;
	race.area->age++;
	tally->races++;
}

static void *map_and_unmap(void *arg)
{
	struct udmabuf_importer_map map;
	int turns;

	for (turns = 0; turns < TURNS; turns++) {
		/* All bounce buffers may be in use. */
		if (_map(race.importer, IMPORTER_BIDIRECTIONAL, &map))
			continue;
		race_pause(&race.seed);
		__atomic_add_fetch(&race.begun, 1, __ATOMIC_SEQ_CST);
		_unmap(race.importer, map.handle);
		__atomic_add_fetch(&race.ended, 1, __ATOMIC_SEQ_CST);
	}
	end_race();
	return NULL;
}

static void sync_for(int buf, __u64 flags)
{
	if (_sync_cpu(buf, flags | DMA_BUF_SYNC_RW))
		WRONG("sync %#llx against maps: %s", (unsigned long long)flags, strerror(errno));
}

/*
 * Store a word and read it back, each between START and END. An unmap copies
 * the device's bytes to memory, so the result counts only without an unmap
 * meanwhile.
 */
static void bracket(int buf, __u64 *word, __u64 value, unsigned int *seed)
{
	unsigned int ended = __atomic_load_n(&race.ended, __ATOMIC_SEQ_CST);
	unsigned int begun = __atomic_load_n(&race.begun, __ATOMIC_SEQ_CST);
	__u64 kept;

	sync_for(buf, DMA_BUF_SYNC_START);
	*word = value;
	sync_for(buf, DMA_BUF_SYNC_END);
	race_pause(seed);
	sync_for(buf, DMA_BUF_SYNC_START);
	kept = *word;
	sync_for(buf, DMA_BUF_SYNC_END);
	if (ended != begun || begun != __atomic_load_n(&race.begun, __ATOMIC_SEQ_CST))
		return;
	tally->brackets++;
	if (kept != value)
		WRONG("a store between START and END was lost");
}

/*
 * Uses a private buffer, because FROM_DEVICE maps of other importers would
 * overwrite the stores.
 */
static void call_brackets(const unsigned char *arg)
{
	unsigned int seed = arg[1], value = 0;
	pthread_t thread;
	int buf;

	race.area = area_get(PICK(raced_kinds, arg[0]));
	if (race.area->broken)
		return;
	buf = _create_one(world.dev, 0, race.area->addr, raced_bytes());
	race.uffd = -1;
	race.importer = open(UDMABUF_IMPORTER_DEV, O_RDWR | O_CLOEXEC);
	race.seed = arg[2];
	race.over = false;
	race.begun = 0;
	race.ended = 0;
	if (!_attach(race.importer, buf, 0, 0) &&
	    !pthread_create(&thread, NULL, map_and_unmap, NULL)) {
		while (!race_is_over())
			bracket(buf, page_word(race.area->addr, rand_r(&seed) %
					       race.area->npages) + 1, ++value, &seed);
		pthread_join(thread, NULL);
	}
	close(race.importer);
	close(buf);
}

static const struct {
	const char *name;
	void (*run)(const unsigned char *arg);
} ops[] = {
	{ "create", call_create }, { "create_items", call_create_items },
	{ "mmap", call_mmap }, { "touch", call_touch }, { "munmap", call_munmap },
	{ "mremap", call_mremap }, { "mprotect", call_mprotect }, { "gup", call_gup },
	{ "sync", call_sync }, { "attach", call_attach }, { "map", call_map },
	{ "device_io", call_device_io }, { "vmap", call_vmap }, { "importer", call_importer },
	{ "close", call_close }, { "dup", call_dup }, { "pass", call_pass }, { "fork", call_fork },
	{ "raw", call_raw }, { "store", call_store }, { "advise", call_advise },
	{ "break", call_break }, { "split", call_split }, { "seal", call_seal },
	{ "resize", call_resize }, { "fail", call_fail }, { "race", call_race },
	{ "brackets", call_brackets },
	/* Repeated to make them more frequent. */
	{ "create", call_create }, { "create", call_create },
	{ "create_items", call_create_items }, { "create_items", call_create_items },
	{ "mmap", call_mmap }, { "mmap", call_mmap }, { "touch", call_touch },
	{ "touch", call_touch }, { "attach", call_attach }, { "map", call_map },
	{ "race", call_race }, { "race", call_race }, { "brackets", call_brackets },
};

#endif /* _UDMABUF_FUZZ_H */
