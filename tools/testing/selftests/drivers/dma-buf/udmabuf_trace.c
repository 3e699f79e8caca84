// SPDX-License-Identifier: GPL-2.0
/*
 * Tracepoints: each event occurs at the right time and with the right fields.
 */
#include <fnmatch.h>

#include "udmabuf_test.h"

#define INSTANCE	"/sys/kernel/tracing/instances/udmabuf_test"
#define NPAGES		8

FIXTURE(trace) {
	struct session session;
	int dev;
	FILE *events;
	char *mem;
	struct udmabuf_iovec iovs[2];	/* all pages but the third */
};

/* Record events of this process, in a tracing instance of the test. */
static const char *start_recording(void)
{
	if (mkdir(INSTANCE, 0700) && errno != EEXIST)
		return "no tracefs with instances";
	if (write_number(INSTANCE "/set_event_pid", getpid()) ||
	    write_text(INSTANCE "/events/udmabuf/enable", "1"))
		return "no tracepoints";
	return NULL;
}

/*
 * The rest of the line of the next event called @name; "" if no event follows.
 * Each call continues after the previous event, so calls also check the order.
 */
static const char *next_event(FILE *events, const char *name)
{
	static char line[512];
	size_t len = strlen(name);
	char *event;

	while (fgets(line, sizeof(line), events)) {
		event = strstr(line, ": udmabuf_");
		if (!event || strncmp(event + 2, name, len) || event[len + 2] != ':')
			continue;
		line[strcspn(line, "\n")] = '\0';
		return event + len + 4;
	}
	return "";
}

/* Expect that the next event called @name matches the pattern. */
#define EXPECT_EVENT(name, format, ...)					\
	({								\
		const char *__said = next_event(self->events, name);	\
		char __pattern[256];					\
									\
		snprintf(__pattern, sizeof(__pattern), format, ##__VA_ARGS__); \
		EXPECT_EQ(0, fnmatch(__pattern, __said, 0))		\
			TH_LOG("event %s: got '%s', expected '%s'", name, __said, __pattern); \
	})

/*
 * The runs of the pages. Call it after the create, which may migrate the pages.
 */
static unsigned int count_pieces(const struct udmabuf_iovec *iovs)
{
	__u64 *frames = entries_frames(iovs, 2);
	unsigned int count = frames ? count_runs(frames, NPAGES - 1, SIZE_MAX) : 0;

	free(frames);
	return count;
}

static unsigned long inode_number(int buf)
{
	struct stat st = {};

	fstat(buf, &st);
	return st.st_ino;
}

FIXTURE_SETUP(trace)
{
	const char *why_not;
	size_t page = page_size();

	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	self->mem = anon_small(NPAGES * page);
	fill(self->mem, NPAGES * page, 1);
	self->iovs[0] = (struct udmabuf_iovec) { to_u64(self->mem), 2 * page };
	self->iovs[1] = (struct udmabuf_iovec) { to_u64(self->mem) + 3 * page,
						 (NPAGES - 3) * page };
	why_not = start_recording();
	if (why_not)
		SKIP(return, "%s", why_not);
	self->events = fopen(INSTANCE "/trace", "r");
	ASSERT_NE(NULL, self->events);
}

FIXTURE_TEARDOWN(trace)
{
	if (self->events)
		fclose(self->events);
	rmdir(INSTANCE);
	SESSION_CLOSE(&self->session);
}

TEST_F(trace, life_of_a_buffer)
{
	int buf = test_create(self->dev, 0, self->iovs, 2);
	unsigned int npieces = count_pieces(self->iovs);
	unsigned long ino = inode_number(buf);
	size_t page = page_size();
	char *map;

	map = test_map_buf(buf, (NPAGES - 1) * page, PROT_READ | PROT_WRITE);
	EXPECT_EQ(self->mem[5 * page], map[4 * page]);
	munmap(map, (NPAGES - 1) * page);
	close(buf);

	EXPECT_EVENT("udmabuf_create", "ino=%lu from=memory entries=2 pages=%u extents=%u err=0",
		     ino, NPAGES - 1, npieces);
	EXPECT_EVENT("udmabuf_fault", "ino=%lu address=0x%lx pgoff=4 order=0 ret=NOPAGE",
		     ino, (unsigned long)map + 4 * page);
	EXPECT_EVENT("udmabuf_release", "ino=%lu pages=%u", ino, NPAGES - 1);
	EXPECT_STREQ("", next_event(self->events, "udmabuf_create"));
}

TEST_F(trace, refused_create_tells_how_far_it_got)
{
	size_t page = page_size();

	munmap(self->mem + 5 * page, page);
	test_err_create(EFAULT, self->dev, 0, self->iovs, 2);
	EXPECT_EVENT("udmabuf_create", "ino=0 from=memory entries=2 pages=* extents=* err=-%d",
		     EFAULT);
	EXPECT_STREQ("", next_event(self->events, "udmabuf_release"));
}

TEST_F(trace, memfds)
{
	int memfd = sealed_memfd(NPAGES * page_size(), 0, F_SEAL_SHRINK);
	int buf = test_create_memfd(self->dev, 0, memfd, 0, NPAGES * page_size());

	EXPECT_EVENT("udmabuf_create", "ino=%lu from=memfd entries=1 pages=%u extents=* err=0",
		     inode_number(buf), NPAGES);
}

TEST_F(trace, importers)
{
	struct udmabuf_importer_map map;
	unsigned int npieces;
	unsigned long ino;
	int buf, imp;

	SKIP_WITHOUT_IMPORTER();
	buf = test_create(self->dev, 0, self->iovs, 2);
	npieces = count_pieces(self->iovs);
	ino = inode_number(buf);
	imp = test_attach(buf, 0, 0);
	map = test_map(imp, IMPORTER_FROM_DEVICE);
	test_unmap(imp, map.handle);

	EXPECT_EVENT("udmabuf_map",
		     "ino=%lu device=udmabuf_importer* direction=from-device segments=%u err=0",
		     ino, npieces);
	EXPECT_EVENT("udmabuf_unmap",
		     "ino=%lu device=udmabuf_importer* direction=from-device segments=%u err=0",
		     ino, npieces);
}

TEST_F(trace, refused_importers)
{
	int buf, imp;

	SKIP_WITHOUT_IMPORTER();
	SKIP_WITHOUT_RDONLY();
	buf = test_create(self->dev, UDMABUF_FLAGS_RDONLY, self->iovs, 2);
	imp = test_attach(buf, 0, 0);
	test_err_map(EPERM, imp, IMPORTER_BIDIRECTIONAL);
	EXPECT_EVENT("udmabuf_map", "ino=%lu device=* direction=both segments=0 err=-%d",
		     inode_number(buf), EPERM);
}

TEST_F(trace, huge_faults)
{
	struct mem mem = mem_get(MEM_THP, thp_size());
	char *area, *map;
	size_t huge;
	int buf;

	if (mem.why_not)
		SKIP(return, "%s", mem.why_not);
	huge = mem.len;
	buf = test_create_one(self->dev, 0, mem.addr, huge);
	area = anon_aligned(huge, huge);
	map = mmap(area, huge, PROT_READ, MAP_SHARED | MAP_FIXED, buf, 0);
	ASSERT_EQ(area, map);
	EXPECT_EQ(0, fault_signal(map + huge / 2, false));
	EXPECT_EVENT("udmabuf_fault", "ino=%lu address=* pgoff=%zu order=%s ret=NOPAGE",
		     inode_number(buf), huge / 2 / page_size(),
		     has_huge_entries() ? "[1-9]*" : "0");
}

TEST_HARNESS_MAIN
