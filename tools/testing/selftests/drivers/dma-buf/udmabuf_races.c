// SPDX-License-Identifier: GPL-2.0
/*
 * Races: threads create, use and close buffers while other threads take away
 * the memory, the fds or the driver. A race does not depend on the machine's
 * speed. It ends when each racer has had ENOUGH turns and UDMABUF_RACE_MS of
 * the environment (500 ms if unset, at most 20,000) have passed. It fails after
 * PATIENCE_MS.
 *
 * At any time a buffer shows bytes of its owner, or zeros where the owner's
 * memory was new. It never shows bytes of the stranger, a process that fills
 * and frees memory continuously. Unless an attack takes the memory from its
 * owner, owner and buffer also see each other's stores.
 */
#include <glob.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/random.h>

#include "udmabuf_test.h"

#define EXIT_ARGUMENT	"--exit"	/* see main() */
#define STRANGER	77		/* seeds of fill() */
#define OWNER		1
#define MAX_RACERS	5
#define ENOUGH		5		/* turns of each racer */
#define PATIENCE_MS	600000		/* 150 times the slowest race */
#define RACE_TIMEOUT	900

/* State shared by the threads of a race */
static struct {
	int dev;
	int memfd;		/* source of buffers; -1: mem */
	int uffd;
	char *mem, *spare;
	size_t len;
	size_t unit;		/* bytes that one userfaultfd ioctl copies or protects */
	bool protects;		/* userfaultfd reports stores, not missing pages */
	bool replaces;		/* pages are replaced soon after their faults are served */
	unsigned int creates;	/* creates started */
	int refusal;		/* an errno that a create may return */
	bool zeros, coherent;
	unsigned int pause_ms;
	int slot;		/* fd of a buffer; replace_buffers() replaces it */
	bool sealed;
	size_t n;		/* racers */
	unsigned int turns[MAX_RACERS], enough;
	const char *evidence;	/* /proc/vmstat counter that a working attack changes */
	long before;		/* value of that counter at the start */
	long long start;
	const char *wrong;
	bool over;
} race = { .memfd = -1, .enough = ENOUGH };

/*
 * Index of this thread's racer. In the main thread 0: it may be the only racer.
 */
static __thread size_t me;

static bool racing(void)
{
	return !__atomic_load_n(&race.over, __ATOMIC_RELAXED);
}

static unsigned int count_turns(size_t who)
{
	return __atomic_load_n(&race.turns[who], __ATOMIC_RELAXED);
}

/* Count one finished turn of this racer. */
static void end_turn(void)
{
	__atomic_fetch_add(&race.turns[me], 1, __ATOMIC_RELAXED);
}

static size_t below(size_t end)
{
	unsigned int random = 0;

	getrandom(&random, sizeof(random), 0);
	return random % end;
}

static size_t pages(void)
{
	return race.len / page_size();
}

/*
 * Returns NULL if each racer had its turns and the attack took effect, or else
 * the reason.
 */
static const char *find_missing(void)
{
	static char text[96];
	size_t i;

	for (i = 0; i < race.n; i++) {
		if (count_turns(i) >= race.enough)
			continue;
		snprintf(text, sizeof(text), "racer %zu had only %u of %u turns", i, count_turns(i),
			 race.enough);
		return text;
	}
	if (!race.evidence || text_number("/proc/vmstat", race.evidence) != race.before)
		return NULL;
	snprintf(text, sizeof(text), "the attack had no effect: unchanged in /proc/vmstat: %s",
		 race.evidence);
	return text;
}

static void stop_race(void)
{
	__atomic_store_n(&race.over, true, __ATOMIC_RELAXED);
}

static void fail_race(const char *wrong)
{
	__atomic_store_n(&race.wrong, wrong, __ATOMIC_RELAXED);
	stop_race();
}

static void start_race(size_t n)
{
	race.n = n;
	race.start = now_ms();
	if (race.evidence)
		race.before = text_number("/proc/vmstat", race.evidence);
}

/* Called by the main thread only, which decides when a race is over. */
static bool race_goes_on(void)
{
	long long ms = now_ms() - race.start;

	if (!racing() || ms >= PATIENCE_MS)
		return false;
	return ms < race_ms() || find_missing();
}

/* Returns "" or the reason why the race failed. */
static const char *end_race(void)
{
	const char *missing = find_missing();

	return race.wrong ?: missing ?: "";
}

/* A racer returns NULL or the reason why it failed. */
typedef const char *(*racer)(void);

static racer *racers;

static void *racer_thread(void *arg)
{
	const char *wrong;

	me = (racer *)arg - racers;
	wrong = racers[me]();
	if (wrong)
		fail_race(wrong);
	return NULL;
}

static const char *run_racers(size_t n)
{
	pthread_t threads[MAX_RACERS];
	size_t i;

	start_race(n);
	for (i = 0; i < n; i++)
		pthread_create(&threads[i], NULL, racer_thread, &racers[i]);
	while (race_goes_on())
		sleep_ms(5);
	stop_race();
	for (i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
	return end_race();
}

#define EXPECT_RACE(...)						\
	({								\
		racer __racers[] = { __VA_ARGS__ };			\
		racers = __racers;					\
		EXPECT_STREQ("", run_racers(ARRAY_SIZE(__racers)));	\
	})

/* Start a process that leaves its own bytes in memory that becomes free. */
static pid_t start_stranger(void)
{
	size_t len = 1 << 20;
	pid_t parent = getpid(), pid = fork();

	/*
	 * The parent may have exited before prctl(); then no death signal
	 * comes.
	 */
	if (!pid && (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent))
		_exit(0);
	while (!pid) {
		char *mem = anon_small(len);

		fill(mem, len, STRANGER);
		munmap(mem, len);
		sleep_ms(1);
	}
	return pid;
}

static void stop_stranger(pid_t pid)
{
	kill(pid, SIGKILL);
	reap(pid);
}

/* A 32-bit CPU stores a 64-bit word in two halves. */
static bool half_stored(__u64 word)
{
	return sizeof(long) == 4 && (!(__u32)word || !(word >> 32));
}

/*
 * Is each word the owner's, at its offset within any page (or unit)? With
 * @zeros a word may also be 0.
 */
static bool is_owners(const void *map, size_t len, bool zeros)
{
	size_t unit = race.unit ?: page_size();
	const __u64 *word = map;
	size_t i;

	for (i = 0; i < len / 8; i++) {
		__u64 off = word[i] ^ stamp(OWNER, 0);

		if (off < len && off % unit == i * 8 % unit)
			continue;
		if (!zeros || (word[i] && !half_stored(word[i])))
			return false;
	}
	return true;
}

static void refill(size_t page, size_t npages)
{
	__u64 *word = (__u64 *)(race.mem + page * page_size());
	size_t i, off = page * page_size();

	for (i = 0; i < npages * page_size() / 8; i++)
		word[i] = stamp(OWNER, off + i * 8);
}

/*
 * Do @map and the memory at @mem see each other's stores? Each thread uses its
 * own word of a page, and alternates between two values valid for the owner.
 */
static bool is_coherent(char *map, char *mem)
{
	size_t page = page_size(), word = gettid() % 64 * 8, off;

	for (off = word; off < race.len; off += page) {
		volatile __u64 *owner = (__u64 *)(mem + off), *buffer = (__u64 *)(map + off);
		__u64 usual = stamp(OWNER, off), other = stamp(OWNER, (off + page) % race.len);

		*owner = other;
		if (*buffer != other)
			return false;
		*buffer = usual;
		if (*owner != usual)
			return false;
	}
	return true;
}

static const char *look_at(int buf)
{
	char *map = _map_buf(buf, race.len, PROT_READ | PROT_WRITE, 0);
	const char *wrong = NULL;

	if (map == MAP_FAILED)
		return "mmap() of a buffer failed";
	if (!is_owners(map, race.len, race.zeros))
		wrong = "a buffer shows bytes that its owner did not store";
	else if (race.coherent && !is_coherent(map, race.mem))
		wrong = "owner and buffer do not see each other's stores";
	munmap(map, race.len);
	return wrong;
}

static int make_buffer(void)
{
	if (race.memfd >= 0)
		return _create_memfd(race.dev, 0, race.memfd, 0, race.len);
	return _create_one(race.dev, 0, race.mem, race.len);
}

/*
 * GUP returns ENOMEM if a page that must leave a movable zone has a short-lived
 * reference from elsewhere.
 */
static const char *make_buffers(void)
{
	const char *wrong = NULL;

	while (!wrong && racing()) {
		int buf = make_buffer();

		if (buf < 0 && errno != race.refusal && errno != ENOMEM)
			return strerror(errno);
		if (buf >= 0) {
			end_turn();
			wrong = look_at(buf);
			close(buf);
		}
		sleep_ms(below(race.pause_ms + 1));
	}
	return wrong;
}

/* Attacks on the memory */

/*
 * Leave out the first and the last page. A hole of one page between mapped
 * pages is too small for mappings of other threads.
 */
static const char *attack_munmap(void)
{
	while (racing()) {
		size_t page = 1 + below(pages() - 2);
		char *addr = race.mem + page * page_size();

		munmap(addr, page_size());
		if (mmap(addr, page_size(), PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
			return "mmap() over the hole failed";
		refill(page, 1);
		end_turn();
	}
	return NULL;
}

/*
 * GUP restarts the whole batch after it has migrated a page out of a movable
 * zone. If GUP is slow, the attack supplies new such pages forever. After 1 s
 * without a new buffer the attack waits for one.
 */
static void wait_for_a_buffer(void)
{
	static unsigned int made;
	static long long since;

	if (!since || made != count_turns(0) + count_turns(1)) {
		made = count_turns(0) + count_turns(1);
		since = now_ms();
	}
	while (racing() && now_ms() - since > 1000 &&
	       made == count_turns(0) + count_turns(1))
		sleep_ms(1);
}

static const char *attack_dontneed(void)
{
	while (racing()) {
		size_t page = below(pages()), npages = 1 + below(pages() - page);

		wait_for_a_buffer();
		madvise(race.mem + page * page_size(), npages * page_size(), MADV_DONTNEED);
		refill(page, npages);
		end_turn();
	}
	return NULL;
}

static const char *attack_mprotect(void)
{
	static const int prots[] = { PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE };

	while (racing()) {
		size_t page = below(pages()), npages = 1 + below(pages() - page);
		size_t i;

		for (i = 0; i < ARRAY_SIZE(prots); i++)
			mprotect(race.mem + page * page_size(), npages * page_size(), prots[i]);
		end_turn();
		sleep_ms(below(2));
	}
	return NULL;
}

/*
 * Move pages away and back. MREMAP_DONTUNMAP keeps both places mapped, so that
 * no other thread maps memory there.
 */
static const char *attack_mremap(void)
{
	char *spare = anon_small(race.len);
	int how = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;

	while (racing()) {
		size_t page = below(pages()), len = (1 + below(pages() - page)) * page_size();
		char *mem = race.mem + page * page_size();

		if (mremap(mem, len, len, how, spare) != spare ||
		    mremap(spare, len, len, how, mem) != mem)
			return "mremap() away or back failed";
		end_turn();
		sleep_ms(below(2));
	}
	return NULL;
}

/* Children overwrite their copies. */
static const char *attack_fork(void)
{
	while (racing()) {
		pid_t pid = fork();

		if (!pid) {
			fill(race.mem, race.len, STRANGER);
			_exit(0);
		}
		if (reap(pid))
			return "a child that overwrites its copy failed";
		end_turn();
	}
	return NULL;
}

static const char *attack_pageout(void)
{
	while (racing()) {
		madvise(race.mem, race.len, MADV_PAGEOUT);
		end_turn();
	}
	return NULL;
}

static const char *attack_compact(void)
{
	while (racing()) {
		make_room();
		end_turn();
	}
	return NULL;
}

/* Split and collapse huge pages, which works while no buffer pins them. */
static const char *attack_thp(void)
{
	while (racing()) {
		size_t off = below(race.len / thp_size()) * thp_size();

		split_huge_page(race.mem + off);
		sleep_ms(below(3));
		madvise(race.mem + off, thp_size(), MADV_COLLAPSE);
		end_turn();
	}
	return NULL;
}

#define KSM	"/sys/kernel/mm/ksm/"

/* Prepare memory with the same bytes, which KSM may merge with race.mem. */
static const char *prepare_ksm(void)
{
	race.spare = anon_small(race.len);
	fill(race.spare, race.len, OWNER);
	if (madvise(race.mem, race.len, MADV_MERGEABLE) ||
	    madvise(race.spare, race.len, MADV_MERGEABLE))
		return "no KSM in this kernel";
	write_number(KSM "pages_to_scan", 4 * pages());
	write_number(KSM "sleep_millisecs", 2);
	write_number(KSM "run", 1);
	return NULL;
}

static void stop_ksm(void)
{
	write_number(KSM "run", 2);
	write_number(KSM "run", 0);
}

static const char *attack_ksm(void)
{
	while (racing()) {
		if (filled_until(race.spare, race.len, OWNER, 0) != -1)
			return "a store through the buffer reached a merged page";
		end_turn();
		sleep_ms(5);
	}
	return NULL;
}

static int protect(char *addr, __u64 mode)
{
	struct uffdio_writeprotect arg = { { to_u64(addr), race.unit }, mode };

	return ioctl(race.uffd, UFFDIO_WRITEPROTECT, &arg);
}

/* Serve the fault at @addr: copy the spare page there, or permit stores. */
static int serve_fault(char *addr)
{
	struct uffdio_copy bring = { to_u64(addr), to_u64(race.spare), race.unit };
	struct uffdio_range range = { to_u64(addr), race.unit };

	if (race.protects)
		return protect(addr, 0);
	if (!ioctl(race.uffd, UFFDIO_COPY, &bring))
		return 0;
	/* Two racers may wait for the same page. */
	return errno == EEXIST ? ioctl(race.uffd, UFFDIO_WAKE, &range) : -1;
}

/*
 * Sleep until GUP, which continues at offset @off, is likely to be in the
 * middle of the page. The next fault adjusts the pause:
 * - At a larger offset of the same create, the pause was right: count a turn.
 * - At the same offset, the pause was too short.
 * - In the next create it was too long, unless GUP had no reason to wait, that
 * is without @has_cause.
 */
static void wait_for_middle(size_t off, bool has_cause)
{
	static unsigned int last_create;
	static unsigned long ns = 50000;
	static size_t last_off;
	unsigned int create = __atomic_load_n(&race.creates, __ATOMIC_RELAXED);
	struct timespec ts = {};

	if (create != last_create)
		ns -= has_cause && ns > 1000 ? ns / 8 : 0;
	else if (off == last_off)
		ns += ns < 100000000 ? ns / 8 : 0;
	else if (off > last_off)
		end_turn();
	last_create = create;
	last_off = off;
	ts.tv_nsec = ns / 2 + below(ns);
	nanosleep(&ts, NULL);
}

/*
 * GUP waits for a write-protected page, but allocates a new page for a
 * discarded one without waiting. So a protected page is usually only protected
 * again. It is discarded when GUP waits in its middle, and at random.
 */
static int replace_page(char *addr, size_t off)
{
	static bool lost;

	wait_for_middle(off, !race.protects || !lost);
	lost = !race.protects || off || !below(8);
	if (lost)
		madvise(addr, race.unit, MADV_DONTNEED);
	if (!race.protects)
		return 0;
	if (lost)
		refill((addr - race.mem) / page_size(), race.unit / page_size());
	return protect(addr, UFFDIO_WRITEPROTECT_MODE_WP);
}

/* Held while a fault is served, and while the main thread unmaps the memory. */
static pthread_mutex_t serving = PTHREAD_MUTEX_INITIALIZER;

/*
 * Runs until the process exits: a racer may start to wait after the race is
 * over.
 */
static void *serve_faults(void *arg)
{
	struct uffdio_range all = { to_u64(race.mem), race.len };
	struct sched_param first = { 1 };
	struct uffd_msg msg;
	int failed = 0;
	char *addr;

	prctl(PR_SET_TIMERSLACK, 1);
	if (race.replaces)
		pthread_setschedparam(pthread_self(), SCHED_FIFO, &first);
	while (!failed && read(race.uffd, &msg, sizeof(msg)) == sizeof(msg)) {
		addr = (char *)(uintptr_t)(msg.arg.pagefault.address & ~(__u64)(race.unit - 1));
		pthread_mutex_lock(&serving);
		failed = serve_fault(addr);
		if (!failed && race.replaces)
			failed = replace_page(addr, msg.arg.pagefault.address - to_u64(addr));
		pthread_mutex_unlock(&serving);
	}
	if (failed) {
		fail_race("userfaultfd: UFFDIO_COPY, WAKE or WRITEPROTECT failed");
		ioctl(race.uffd, UFFDIO_UNREGISTER, &all);
	}
	return NULL;
}

static const char *start_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_EXACT_ADDRESS };
	struct uffdio_register reg = {
		.range = { to_u64(race.mem), race.len },
		.mode = race.protects ? UFFDIO_REGISTER_MODE_WP : UFFDIO_REGISTER_MODE_MISSING,
	};
	pthread_t server;

	race.uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	if (race.uffd < 0 || ioctl(race.uffd, UFFDIO_API, &api) ||
	    ioctl(race.uffd, UFFDIO_REGISTER, &reg) ||
	    (race.protects && protect(race.mem, UFFDIO_WRITEPROTECT_MODE_WP)))
		return "this kernel has no such userfaultfd";
	pthread_create(&server, NULL, serve_faults, NULL);
	return NULL;
}

static void make_spare(size_t len)
{
	race.unit = len;
	race.spare = anon_small(len);
	fill(race.spare, len, OWNER);
}

static const char *prepare_uffd(void)
{
	make_spare(page_size());
	/*
	 * Before 6.3, long-term pins fail instead of waiting for userfaultfd.
	 */
	race.refusal = kernel_before(6, 3) ? EFAULT : 0;
	return start_uffd();
}

static const char *attack_uffd(void)
{
	while (racing()) {
		volatile char *addr = race.mem + below(pages()) * page_size();

		madvise((void *)addr, page_size(), MADV_DONTNEED);
		sleep_ms(below(3));
		(void)*addr;
		end_turn();
	}
	return NULL;
}

/* Punching a hole removes pages from the file. The buffer keeps them. */
static const char *attack_punch(void)
{
	while (racing()) {
		size_t page = below(pages()), npages = 1 + below(pages() - page);

		fallocate(race.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			  page * page_size(), npages * page_size());
		refill(page, npages);
		end_turn();
	}
	return NULL;
}

#define BLOCKS	"/sys/devices/system/memory/"

static char block[96];	/* sysfs state file of a memory block */

/*
 * Set block[] to the state file of the memory block of @addr. Returns whether
 * the block is movable.
 */
static bool find_block(const char *addr)
{
	char text[64];
	__u64 bytes;

	if (read_text(BLOCKS "block_size_bytes", text, sizeof(text)) <= 0)
		return false;
	bytes = strtoull(text, NULL, 16);
	snprintf(block, sizeof(block), BLOCKS "memory%llu/valid_zones",
		 (unsigned long long)(page_frame(addr) * page_size() / bytes));
	if (read_text(block, text, sizeof(text)) <= 0 || strncmp(text, "Movable", 7))
		return false;
	strcpy(strrchr(block, '/'), "/state");
	return true;
}

/*
 * Returns 0, or 1 if refused. Another value: stopped after 20 s, since the
 * kernel would try forever to empty the block.
 */
static int put_offline(void)
{
	char command[160];
	int status;

	snprintf(command, sizeof(command), "timeout 20 sh -c 'echo offline >%s' 2>/dev/null",
		 block);
	status = system(command);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/*
 * Can the block be taken offline? It is brought online again. Retries while a
 * page has a short-lived reference, for example from an earlier program.
 */
static bool can_offline(void)
{
	int tries = 40, failed;

	do {
		failed = put_offline();
		if (!failed)
			return !write_text(block, "online_movable");
		sleep_ms(100);
	} while (failed == 1 && --tries);
	return false;
}

/*
 * Allocate until memory lies in a movable block that can be taken offline.
 * Memory in other blocks stays allocated. NULL after 256 attempts.
 */
static char *get_movable(size_t len)
{
	static char good[8192], bad[8192];
	size_t n;

	for (n = 0; n < 256; n++) {
		char *mem = anon_small(len);

		memset(mem, 1, len);
		if (!find_block(mem + len - page_size()) || strstr(bad, block))
			continue;
		if (strstr(good, block))
			return mem;
		strcat(can_offline() ? good : bad, block);
	}
	return NULL;
}

static const char *prepare_offline(void)
{
	size_t len = 4 << 20;
	char *mem = get_movable(len);

	if (!mem)
		return "no memory block can be put offline: boot with movablecore=";
	race.mem = mem + len - race.len;
	refill(0, pages());
	/*
	 * This buffer stays open. Its pages must have been migrated out of the
	 * block.
	 */
	return _create_one(race.dev, 0, race.mem, race.len) < 0 ? "no buffer" : NULL;
}

/*
 * Offlining migrates the pages out of the block, unless they are pinned in it.
 */
static const char *attack_offline(void)
{
	while (racing()) {
		madvise(race.mem, race.len, MADV_DONTNEED);
		refill(0, pages());
		if (put_offline())
			continue;
		end_turn();
		if (write_text(block, "online_movable"))
			return "a memory block cannot be brought online again";
	}
	return NULL;
}

FIXTURE(attacked) {
	struct session session;
	pid_t stranger;
};

FIXTURE_VARIANT(attacked) {
	enum mem_kind kind;
	racer attack;
	racer prepare;
	void (*undo)(void);
	const char *evidence;	/* /proc/vmstat counter that a working attack changes */
	int refusal;
	bool zeros, coherent;
	unsigned int pause_ms;
};

FIXTURE_VARIANT_ADD(attacked, by_munmap) {
	.attack = attack_munmap, .refusal = EFAULT, .zeros = true,
};

FIXTURE_VARIANT_ADD(attacked, by_dontneed) { .attack = attack_dontneed, .zeros = true };

FIXTURE_VARIANT_ADD(attacked, by_dontneed_of_a_thp) {
	.kind = MEM_THP, .attack = attack_dontneed, .zeros = true,
};

FIXTURE_VARIANT_ADD(attacked, by_mprotect) { .attack = attack_mprotect, .refusal = EFAULT };

FIXTURE_VARIANT_ADD(attacked, by_mremap) { .attack = attack_mremap, .zeros = true };

FIXTURE_VARIANT_ADD(attacked, by_fork) { .attack = attack_fork, .coherent = true };

FIXTURE_VARIANT_ADD(attacked, by_fork_of_a_thp) {
	.kind = MEM_THP, .attack = attack_fork, .coherent = true,
};

FIXTURE_VARIANT_ADD(attacked, by_pageout) {
	.attack = attack_pageout, .prepare = swap_on, .undo = swap_off,
	.evidence = "pswpout ", .coherent = true, .pause_ms = 20,
};

FIXTURE_VARIANT_ADD(attacked, by_compaction) {
	.attack = attack_compact, .evidence = "compact_migrate_scanned ", .coherent = true,
};

FIXTURE_VARIANT_ADD(attacked, by_offlining) {
	.attack = attack_offline, .prepare = prepare_offline, .zeros = true,
};

FIXTURE_VARIANT_ADD(attacked, by_split_and_collapse) {
	.kind = MEM_THP, .attack = attack_thp, .evidence = "thp_split_page ",
	.coherent = true, .pause_ms = 60,
};

FIXTURE_VARIANT_ADD(attacked, by_ksm) {
	.attack = attack_ksm, .prepare = prepare_ksm, .undo = stop_ksm,
	.evidence = "cow_ksm ", .coherent = true, .pause_ms = 40,
};

FIXTURE_VARIANT_ADD(attacked, by_userfaultfd) {
	.attack = attack_uffd, .prepare = prepare_uffd,
};

FIXTURE_VARIANT_ADD(attacked, by_punching_holes) {
	.kind = MEM_MEMFD, .attack = attack_punch, .zeros = true,
};

static const char *get_memory(enum mem_kind kind)
{
	struct mem mem = { .len = 64 * page_size() };

	if (kind == MEM_MEMFD) {
		race.memfd = sealed_memfd(mem.len, 0, F_SEAL_SHRINK);
		mem.addr = mmap(NULL, mem.len, PROT_READ | PROT_WRITE, MAP_SHARED,
				race.memfd, 0);
	} else {
		mem = mem_get(kind, kind == MEM_THP ? mem_len(kind) : mem.len);
	}
	race.mem = mem.addr;
	race.len = mem.len;
	if (!mem.why_not)
		refill(0, pages());
	return mem.why_not;
}

FIXTURE_SETUP(attacked)
{
	const char *why_not;

	SESSION_OPEN(&self->session);
	race.dev = self->session.dev;
	race.refusal = variant->refusal;
	/*
	 * Without memfd_pin_folios() the driver detects late that a page has
	 * just left the file, and returns EFAULT.
	 */
	if (variant->kind == MEM_MEMFD && kernel_before(6, 11))
		race.refusal = EFAULT;
	race.zeros = variant->zeros;
	race.coherent = variant->coherent;
	race.pause_ms = variant->pause_ms ?: 1;
	race.evidence = variant->evidence;
	self->stranger = start_stranger();
	why_not = get_memory(variant->kind);
	if (!why_not && variant->prepare)
		why_not = variant->prepare();
	if (why_not)
		SKIP(return, "%s", why_not);
}

FIXTURE_TEARDOWN(attacked)
{
	if (self->stranger > 0)
		stop_stranger(self->stranger);
	if (variant->undo)
		variant->undo();
	SESSION_CLOSE(&self->session);
}

TEST_F_TIMEOUT(attacked, create, RACE_TIMEOUT)
{
	EXPECT_RACE(make_buffers, make_buffers, variant->attack);
}

/*
 * Huge pages that are replaced while GUP pins them. A buffer may then have
 * parts of several huge pages.
 */

struct kept {
	long total, free, reserved;	/* hugetlb pages */
	long charged;			/* bytes charged to this memcg */
};

static struct cgroups groups;
static struct kept before;

static struct kept count_kept(void)
{
	return (struct kept) {
		.total = text_number("/proc/meminfo", "HugePages_Total:"),
		.free = text_number("/proc/meminfo", "HugePages_Free:"),
		.reserved = text_number("/proc/meminfo", "HugePages_Rsvd:"),
		.charged = text_number(cgroup_file(&groups, CGROUP_INNER "/memory.current"), ""),
	};
}

/* One page is mapped, and a few may not have been freed yet. */
static bool has_lost_pages(void)
{
	struct kept now = count_kept();

	return now.free < before.free - 4 || now.charged > before.charged + 4 * (long)race.len;
}

/*
 * On one CPU, only the end of the server's pause decides where in GUP a page is
 * replaced.
 */
static void stay_on_one_cpu(void)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(sched_getcpu(), &set);
	sched_setaffinity(0, sizeof(set), &set);
}

/*
 * Fill the movable zone, since GUP migrates pages out of it and then restarts.
 */
static void fill_movable(void)
{
	size_t len = 4 << 20, n = 256, others = 0;

	while (n-- && others < 16) {
		char *mem = anon_aligned(len, len);

		memset(mem, 1, len);
		others = find_block(mem) ? 0 : others + 1;
	}
}

FIXTURE(replaced) {
	struct session session;
};

FIXTURE_VARIANT(replaced) {
	enum mem_kind kind;
	bool protects;
	unsigned int enough;	/* turns */
};

FIXTURE_VARIANT_ADD(replaced, hugetlb) { .kind = MEM_HUGETLB, .enough = 20 };
FIXTURE_VARIANT_ADD(replaced, thp) { .kind = MEM_THP, .protects = true, .enough = 100 };

FIXTURE_SETUP(replaced)
{
	SESSION_OPEN(&self->session);
	if (kernel_before(6, 3))
		SKIP(return, "long-term pins do not wait for userfaultfd before Linux 6.3");
	race.dev = self->session.dev;
	race.protects = variant->protects;
	race.zeros = variant->protects;
	race.replaces = true;
	race.enough = variant->enough;
	fill_movable();
	stay_on_one_cpu();
}

FIXTURE_TEARDOWN(replaced)
{
	SESSION_CLOSE(&self->session);
}

/*
 * Map a huge page, on parts of which GUP must wait. Returns NULL or the reason
 * to skip.
 */
static const char *prepare_replaced(enum mem_kind kind, size_t len)
{
	struct mem mem = mem_get(kind, len);

	if (mem.why_not)
		return mem.why_not;
	race.mem = mem.addr;
	race.len = len;
	if (!race.protects)
		madvise(race.mem, len, MADV_DONTNEED);
	return start_uffd();
}

/* wait_for_middle() counts a turn when GUP waits in the middle of a page. */
static const char *make_mixed_buffers(void)
{
	const char *wrong = NULL;

	while (!wrong && racing()) {
		unsigned int turns = count_turns(me);
		int buf;

		__atomic_fetch_add(&race.creates, 1, __ATOMIC_RELAXED);
		buf = make_buffer();
		if (buf < 0 && errno != ENOMEM)
			return strerror(errno);
		if (buf < 0 || count_turns(me) == turns) {
			close(buf);
			continue;
		}
		wrong = look_at(buf);
		close(buf);
		if (has_lost_pages())
			wrong = "huge pages are neither mapped nor free";
	}
	return wrong;
}

TEST_F_TIMEOUT(replaced, create, RACE_TIMEOUT)
{
	size_t huge = variant->kind == MEM_THP ? thp_size() : hugetlb_size();
	const char *why_not = cgroups_open(&groups);
	struct kept after = {};

	if (why_not)
		SKIP(return, "%s", why_not);
	ASSERT_EQ(0, cgroup_enter(&groups, CGROUP_INNER));
	make_spare(huge);
	/* Each wait of GUP may add one huge page to a buffer. */
	hugetlb_provide(32 * hugetlb_size());
	before = count_kept();
	why_not = prepare_replaced(variant->kind, huge);
	if (!why_not) {
		EXPECT_RACE(make_mixed_buffers);
		pthread_mutex_lock(&serving);
		munmap(race.mem, huge);
		after = count_kept();
	}
	cgroups_close(&groups);
	if (why_not)
		SKIP(return, "%s", why_not);
	EXPECT_EQ(before.total, after.total);
	EXPECT_EQ(before.free, after.free);
	EXPECT_EQ(before.reserved, after.reserved);
	EXPECT_GT(before.charged + (long)huge, after.charged);
}

/* Races for a buffer, its fd and its mappings */

FIXTURE(races) {
	struct session session;
	pid_t stranger;
};

FIXTURE_SETUP(races)
{
	SESSION_OPEN(&self->session);
	race.dev = self->session.dev;
	race.len = 64 * page_size();
	self->stranger = start_stranger();
}

FIXTURE_TEARDOWN(races)
{
	if (self->stranger > 0)
		stop_stranger(self->stranger);
	SESSION_CLOSE(&self->session);
}

static void *send_buffers(void *sock)
{
	for (;;) {
		int buf = make_buffer();

		if (buf < 0 && errno == ENOMEM)
			continue;
		if (buf < 0 || send_fd(*(int *)sock, buf))
			_exit(KSFT_FAIL);
		close(buf);
		end_turn();
	}
}

/* A process that exits or calls exec() while its threads create buffers. */
static void doomed(int sock, bool exec)
{
	pthread_t threads[2];
	size_t i;

	race.turns[0] = 0;
	race.mem = anon_small(race.len);
	refill(0, pages());
	for (i = 0; i < ARRAY_SIZE(threads); i++)
		pthread_create(&threads[i], NULL, send_buffers, &sock);
	while (!count_turns(0))
		sleep_ms(1);
	sleep_ms(below(8));
	if (exec)
		execl("/proc/self/exe", "udmabuf_races", EXIT_ARGUMENT, NULL);
	_exit(exec);
}

/* Check each buffer received from the socket, until its other end is closed. */
static const char *receive_buffers(int sock)
{
	const char *wrong = "no buffer was received";
	int buf;

	while ((buf = receive_fd(sock)) >= 0) {
		wrong = look_at(buf);
		close(buf);
		if (wrong)
			break;
	}
	return wrong;
}

static const char *bury_one(bool exec)
{
	const char *wrong;
	int socks[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, socks))
		return "socketpair() failed";
	pid = fork();
	if (!pid) {
		close(socks[0]);
		doomed(socks[1], exec);
	}
	close(socks[1]);
	wrong = receive_buffers(socks[0]);
	close(socks[0]);
	return reap(pid) && !wrong ? "a child that creates buffers failed" : wrong;
}

TEST_F_TIMEOUT(races, create_against_exec_and_exit, RACE_TIMEOUT)
{
	bool exec = false;

	for (start_race(1); race_goes_on(); exec = !exec) {
		ASSERT_EQ(NULL, bury_one(exec));
		end_turn();
	}
	EXPECT_STREQ("", end_race());
}

/*
 * Replace the buffer of race.slot. Any racer may drop the last reference to the
 * previous buffer.
 */
static const char *replace_buffers(void)
{
	int seed = OWNER;

	while (racing()) {
		char *mem = anon_small(race.len);
		int buf;

		seed = OWNER + !(seed - OWNER);
		fill(mem, race.len, seed);
		buf = _create_one(race.dev, 0, mem, race.len);
		munmap(mem, race.len);
		if (buf < 0 || dup2(buf, race.slot) < 0)
			return strerror(errno);
		close(buf);
		end_turn();
	}
	return NULL;
}

/* Are all bytes from one and the same buffer? */
static bool is_of_one(const void *seen)
{
	return filled_until(seen, race.len, OWNER, 0) == -1 ||
	       filled_until(seen, race.len, OWNER + 1, 0) == -1;
}

static const char *fault_slot(void)
{
	while (racing()) {
		char *map = _map_buf(race.slot, race.len, PROT_READ, 0);

		if (map == MAP_FAILED)
			return "mmap() of the current buffer failed";
		if (!is_of_one(map))
			return "a mapping shows bytes of two buffers";
		munmap(map, race.len);
		end_turn();
	}
	return NULL;
}

static const char *sync_slot(void)
{
	while (racing()) {
		if (_sync_cpu(race.slot, SYNC_START(RW)) || _sync_cpu(race.slot, SYNC_END(RW)))
			return "DMA_BUF_IOCTL_SYNC failed";
		end_turn();
	}
	return NULL;
}

static const char *map_slot(void)
{
	struct udmabuf_importer_map map;
	char *seen = malloc(race.len);

	while (racing()) {
		int imp = importer_open();

		if (_attach(imp, race.slot, 0, 0) || _map(imp, IMPORTER_BIDIRECTIONAL, &map))
			return "an importer cannot attach or map the buffer";
		if (_device_read(imp, map.handle, 0, seen, race.len) || !is_of_one(seen))
			return "a device sees bytes of two buffers";
		close(imp);
		end_turn();
	}
	free(seen);
	return NULL;
}

static const char *vmap_slot(void)
{
	char *seen = malloc(race.len);

	while (racing()) {
		int imp = importer_open();

		if (_attach(imp, race.slot, 0, 0) || _vmap(imp))
			return "an importer cannot attach or vmap the buffer";
		if (_device_io(imp, IMPORTER_VREAD, 0, 0, seen, race.len) || !is_of_one(seen))
			return "a vmap shows bytes of two buffers";
		close(imp);
		end_turn();
	}
	free(seen);
	return NULL;
}

TEST_F_TIMEOUT(races, close_against_fault_map_vmap_and_sync, RACE_TIMEOUT)
{
	char *mem = anon_small(race.len);

	SKIP_WITHOUT_IMPORTER();
	fill(mem, race.len, OWNER);
	race.slot = test_create_one(race.dev, 0, mem, race.len);
	munmap(mem, race.len);
	EXPECT_RACE(replace_buffers, fault_slot, sync_slot, map_slot, vmap_slot);
}

/*
 * Small and huge faults of several threads in one mapping, while parts of it
 * are remapped
 */
static const char *fault_anywhere(void)
{
	while (racing()) {
		size_t off = below(race.len / 8) * 8;

		if (*(volatile __u64 *)(race.spare + off) != stamp(OWNER, off))
			return "wrong word in a mapping of the buffer";
		end_turn();
	}
	return NULL;
}

static const char *map_pieces(void)
{
	while (racing()) {
		size_t page = below(pages()), npages = 1 + below(pages() - page);
		size_t off = page * page_size();

		if (mmap(race.spare + off, npages * page_size(), PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, race.slot, off) == MAP_FAILED)
			return "mmap() of a part of the buffer failed";
		end_turn();
		sleep_ms(below(2));
	}
	return NULL;
}

/* Store, because the core does not check how read faults collide. */
static void store_everywhere(void)
{
	size_t off;

	for (off = 0; off < race.len; off += thp_size())
		*(volatile __u64 *)(race.spare + off) = stamp(OWNER, off);
}

static const char *keep_storing(void)
{
	while (racing()) {
		store_everywhere();
		end_turn();
	}
	return NULL;
}

/*
 * PR_SET_THP_DISABLE prevents new huge entries, but does not stop a huge fault
 * that is in progress. That fault must not collide with the page table that a
 * fault of this thread allocates. They collide most often on a preemptible
 * kernel.
 */
static const char *map_and_want_no_huge_entries(void)
{
	while (racing()) {
		prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
		if (mmap(race.spare, race.len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			 race.slot, 0) == MAP_FAILED)
			return "mmap() of the buffer failed";
		prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
		store_everywhere();
		end_turn();
	}
	return NULL;
}

/*
 * Map a buffer where huge entries are possible if the kernel has them. Returns
 * NULL or the reason to skip.
 */
static const char *prepare_faults(void)
{
	struct mem mem = mem_get(MEM_THP, mem_len(MEM_THP));

	if (mem.why_not)
		return mem.why_not;
	race.len = mem.len;
	race.mem = mem.addr;
	refill(0, pages());
	race.slot = _create_one(race.dev, 0, mem.addr, mem.len);
	race.spare = anon_aligned(mem.len, thp_size());
	return mmap(race.spare, mem.len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
		    race.slot, 0) == MAP_FAILED ? "no mapping" : NULL;
}

TEST_F_TIMEOUT(races, fault_against_fault_and_remap, RACE_TIMEOUT)
{
	const char *why_not = prepare_faults();

	if (why_not)
		SKIP(return, "%s", why_not);
	EXPECT_RACE(fault_anywhere, fault_anywhere, fault_anywhere, map_pieces);
}

TEST_F_TIMEOUT(races, faults_of_both_sizes, RACE_TIMEOUT)
{
	const char *why_not = prepare_faults();

	if (why_not)
		SKIP(return, "%s", why_not);
	EXPECT_RACE(keep_storing, keep_storing, map_and_want_no_huge_entries);
}

/* After the seal no new mapping is writable, also of buffers made before it. */
static void *map_until_sealed(void *arg)
{
	unsigned int *mapped = arg;

	while (racing()) {
		bool sealed = __atomic_load_n(&race.sealed, __ATOMIC_ACQUIRE);
		char *map = _map_buf(race.slot, race.len, PROT_READ | PROT_WRITE, 0);

		if (map == MAP_FAILED) {
			if (errno != EPERM || !__atomic_load_n(mapped, __ATOMIC_RELAXED))
				fail_race("no writable mapping before the seal, or not EPERM");
			return NULL;
		}
		munmap(map, race.len);
		if (sealed)
			fail_race("a buffer of a sealed memfd was mapped for writing");
		__atomic_fetch_add(mapped, 1, __ATOMIC_RELAXED);
	}
	return NULL;
}

static void seal_while_mapped(void)
{
	unsigned int mapped = 0;
	pthread_t threads[2];
	size_t i;

	race.sealed = false;
	for (i = 0; i < ARRAY_SIZE(threads); i++)
		pthread_create(&threads[i], NULL, map_until_sealed, &mapped);
	while (racing() && !__atomic_load_n(&mapped, __ATOMIC_RELAXED))
		sleep_ms(1);
	sleep_ms(below(5));
	if (fcntl(race.memfd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE))
		fail_race("F_ADD_SEALS failed");
	__atomic_store_n(&race.sealed, true, __ATOMIC_RELEASE);
	for (i = 0; i < ARRAY_SIZE(threads); i++)
		pthread_join(threads[i], NULL);
}

/* Swap the pages of a memfd in and out continuously. */
static const char *page_out(void)
{
	size_t off;

	while (racing()) {
		for (off = 0; off < race.len; off += page_size())
			(void)*(volatile char *)(race.mem + off);
		madvise(race.mem, race.len, MADV_PAGEOUT);
		end_turn();
	}
	return NULL;
}

/* The number of pages that are not in the memfd's page cache; -1 before 6.5. */
static long count_evicted(size_t off, size_t len)
{
	__u64 range[2] = { off, len }, seen[5] = {};	/* [3] is nr_evicted */

	return syscall(__NR_cachestat, race.memfd, range, seen, 0) ? -1 : (long)seen[3];
}

/*
 * F_SEAL_WRITE counts only the pins of pages in the page cache, so every page
 * of the buffer must be there.
 */
static const char *look_for_pinned_pages(void)
{
	while (racing()) {
		size_t off = below(pages()) * page_size();
		size_t len = below(2) ? page_size() : race.len - off;
		int buf = _create_memfd(race.dev, 0, race.memfd, off, len);

		/* A page could not leave a movable zone; see make_buffers(). */
		if (buf < 0 && errno == ENOMEM)
			continue;
		if (buf < 0)
			return strerror(errno);
		if (count_evicted(off, len))
			return "a page of the buffer is not in the memfd's page cache";
		close(buf);
		end_turn();
	}
	return NULL;
}

TEST_F_TIMEOUT(races, memfd_against_pageout, RACE_TIMEOUT)
{
	const char *why_not;

	race.memfd = sealed_memfd(race.len, 0, F_SEAL_SHRINK);
	if (count_evicted(0, race.len) < 0)
		SKIP(return, "this kernel has no cachestat()");
	why_not = swap_on();
	if (why_not)
		SKIP(return, "%s", why_not);
	race.mem = mmap(NULL, race.len, PROT_READ | PROT_WRITE, MAP_SHARED, race.memfd, 0);
	fill(race.mem, race.len, OWNER);
	race.evidence = "pswpout";
	EXPECT_RACE(page_out, look_for_pinned_pages);
	munmap(race.mem, race.len);
	close(race.memfd);
	swap_off();
}

TEST_F_TIMEOUT(races, seal_against_mmap, RACE_TIMEOUT)
{
	for (start_race(1); race_goes_on(); end_turn()) {
		race.memfd = sealed_memfd(race.len, 0, F_SEAL_SHRINK);
		race.slot = test_create_memfd(race.dev, 0, race.memfd, 0, race.len);
		seal_while_mapped();
		close(race.slot);
		close(race.memfd);
	}
	EXPECT_STREQ("", end_race());
}

/* Unloading the driver */

FIXTURE(unload) {
	struct session session;
	char *mem;
	const char *name;	/* of the driver's module */
};

/* The name of the driver's module; NULL if it is built in. */
static const char *driver_module(void)
{
	char path[64];
	size_t i;

	for (i = 0; i < ARRAY_SIZE(driver_names); i++) {
		snprintf(path, sizeof(path), "/sys/module/%s/initstate", driver_names[i]);
		if (!access(path, F_OK))
			return driver_names[i];
	}
	return NULL;
}

static int unload_driver(const char *name)
{
	return syscall(__NR_delete_module, name, O_NONBLOCK);
}

/* Load the module from the directory that vm/inside/init uses, or else by modprobe. */
static void load_driver(const char *name)
{
	char *modprobe[] = { "modprobe", (char *)name, NULL };
	glob_t files = {};
	size_t i;
	int fd;

	if (glob("/driver/*.ko", 0, NULL, &files))
		run_quietly(modprobe);
	for (i = 0; i < files.gl_pathc; i++) {
		fd = open(files.gl_pathv[i], O_RDONLY | O_CLOEXEC);
		syscall(__NR_finit_module, fd, "", 0);
		close(fd);
	}
	globfree(&files);
}

FIXTURE_SETUP(unload)
{
	SESSION_OPEN(&self->session);
	race.len = 16 * page_size();
	race.mem = anon_small(race.len);
	refill(0, pages());
	self->name = driver_module();
	if (!self->name)
		SKIP(return, "the driver is built in");
}

FIXTURE_TEARDOWN(unload)
{
	if (!driver_module())
		load_driver(self->name);
	SESSION_CLOSE(&self->session);
}

/*
 * The driver cannot be unloaded as long as any reference to a buffer exists,
 * and can be as soon as the last one is gone.
 */
TEST_F(unload, while_a_buffer_lives)
{
	int buf, imp;
	char *map;

	SKIP_WITHOUT_IMPORTER();
	buf = test_create_one(self->session.dev, 0, race.mem, race.len);
	close(self->session.dev);
	EXPECT_ERRNO(EAGAIN, unload_driver(self->name));
	map = test_map_buf(buf, race.len, PROT_READ);
	imp = test_attach(buf, 0, 0);
	close(buf);
	EXPECT_ERRNO(EAGAIN, unload_driver(self->name));
	EXPECT_TRUE(is_owners(map, race.len, false));
	munmap(map, race.len);
	EXPECT_ERRNO(EAGAIN, unload_driver(self->name));
	close(imp);
	EXPECT_EQ(0, unload_driver(self->name)) TH_LOG("%s", strerror(errno));
	load_driver(self->name);
	EXPECT_EQ(NULL, device_open(&self->session.dev));
}

/* Use the driver whenever it is loaded. */
static const char *use_driver(void)
{
	const char *wrong = NULL;

	while (!wrong && racing()) {
		int dev = open("/dev/udmabuf", O_RDWR | O_CLOEXEC), buf;

		sleep_ms(below(4));
		if (dev < 0)
			continue;
		buf = _create_one(dev, 0, race.mem, race.len);
		close(dev);
		if (buf < 0)
			return strerror(errno);
		wrong = look_at(buf);
		close(buf);
		end_turn();
	}
	return wrong;
}

static const char *reload_driver(void)
{
	const char *name = driver_module();

	while (racing()) {
		sleep_ms(below(10));
		if (unload_driver(name)) {
			if (errno != EAGAIN && errno != EBUSY)
				return strerror(errno);
			continue;
		}
		end_turn();
		load_driver(name);
		if (!driver_module())
			return "the driver cannot be loaded again";
	}
	return NULL;
}

TEST_F_TIMEOUT(unload, right_after_the_last_close, RACE_TIMEOUT)
{
	close(self->session.dev);
	EXPECT_RACE(use_driver, reload_driver);
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], EXIT_ARGUMENT))
		return 0;
	return test_harness_run(argc, argv);
}
