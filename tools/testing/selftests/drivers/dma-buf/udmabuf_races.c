// SPDX-License-Identifier: GPL-2.0
/*
 * Everything at the same time: buffers are made, used and closed while somebody
 * pulls their memory, their fds or the driver away. Each race lasts half a
 * second, or UDMABUF_RACE_MS of the environment: up to 20,000, or it takes longer
 * than a test may.
 *
 * At any moment a buffer shows bytes of its maker, or zeros where the maker's
 * memory was new, and never what a stranger wrote, who all the time fills memory
 * and frees it. Where nothing parts the memory from its owner, owner and buffer
 * see each other's stores as well.
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
#define RACE_TIMEOUT	120
#define PATIENCE_MS	80000		/* for races until an attack succeeds at all */

/* What the threads of a race share */
static struct {
	int dev;
	int memfd;		/* what buffers are made of if it is not -1 */
	int uffd;
	char *mem, *spare;
	size_t len;
	long long until;
	int refusal;		/* an errno that making a buffer may fail with */
	bool zeros, coherent;
	unsigned int pause_ms;
	unsigned long made, attacks;
	int slot;		/* an fd whose buffer is replaced all the time */
	bool sealed;
} race;

static bool racing(void)
{
	return now_ms() < race.until;
}

static void count(unsigned long *counter)
{
	__atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
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

/* A racer returns NULL, or what is wrong. */
typedef const char *(*racer)(void);

static void *racer_thread(void *arg)
{
	return (void *)(*(racer *)arg)();
}

/* "", or what one of them found wrong. */
static const char *run_racers(racer *racers, size_t n)
{
	pthread_t threads[8];
	const char *wrong = "";
	void *ret;
	size_t i;

	race.until = now_ms() + race_ms();
	for (i = 0; i < n; i++)
		pthread_create(&threads[i], NULL, racer_thread, &racers[i]);
	for (i = 0; i < n; i++) {
		pthread_join(threads[i], &ret);
		if (ret)
			wrong = ret;
	}
	return wrong;
}

#define EXPECT_RACE(...)						\
	({								\
		racer __racers[] = { __VA_ARGS__ };			\
		EXPECT_STREQ("", run_racers(__racers, ARRAY_SIZE(__racers))); \
	})

/* Leaves bytes of its own in whatever memory becomes free. */
static pid_t start_stranger(void)
{
	size_t len = 1 << 20;
	pid_t parent = getpid(), pid = fork();

	/* The test may end at once, and then there is nobody whose death would tell. */
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

/* A word of 64 bits is stored in two parts by a processor of 32. */
static bool half_stored(__u64 word)
{
	return sizeof(long) == 4 && (!(__u32)word || !(word >> 32));
}

/* Words of the owner, each in its place in some page; or perhaps @zeros. */
static bool is_owners(const void *map, size_t len, bool zeros)
{
	const __u64 *word = map;
	size_t i;

	for (i = 0; i < len / 8; i++) {
		__u64 off = word[i] ^ stamp(OWNER, 0);

		if (off < len && off % page_size() == i * 8 % page_size())
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
 * Do the pages of @map and of the memory at @mem follow each other? Each thread
 * has words of its own, which change between two values that are the owner's.
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
		return "a buffer cannot be mapped";
	if (!is_owners(map, race.len, race.zeros))
		wrong = "a buffer shows what is not its owner's";
	else if (race.coherent && !is_coherent(map, race.mem))
		wrong = "owner and buffer went apart";
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
 * ENOMEM is how GUP says that a page which has to leave a movable zone is just in
 * somebody else's hands.
 */
static const char *make_buffers(void)
{
	const char *wrong = NULL;

	while (!wrong && racing()) {
		int buf = make_buffer();

		if (buf < 0 && errno != race.refusal && errno != ENOMEM)
			return strerror(errno);
		if (buf >= 0) {
			count(&race.made);
			wrong = look_at(buf);
			close(buf);
		}
		sleep_ms(below(race.pause_ms + 1));
	}
	return wrong;
}

/* Attacks on the memory */

/* Not at its ends: nobody else's mapping fits into a hole that small. */
static const char *attack_munmap(void)
{
	while (racing()) {
		size_t page = 1 + below(pages() - 2);
		char *addr = race.mem + page * page_size();

		munmap(addr, page_size());
		if (mmap(addr, page_size(), PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
			return "mmap";
		refill(page, 1);
		count(&race.attacks);
	}
	return NULL;
}

static const char *attack_dontneed(void)
{
	while (racing()) {
		size_t page = below(pages()), npages = 1 + below(pages() - page);

		madvise(race.mem + page * page_size(), npages * page_size(), MADV_DONTNEED);
		refill(page, npages);
		count(&race.attacks);
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
		count(&race.attacks);
		sleep_ms(below(2));
	}
	return NULL;
}

/* There and back. Both places stay mapped, or others would map something there. */
static const char *attack_mremap(void)
{
	char *spare = anon_small(race.len);
	int how = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;

	while (racing()) {
		size_t page = below(pages()), len = (1 + below(pages() - page)) * page_size();
		char *mem = race.mem + page * page_size();

		if (mremap(mem, len, len, how, spare) != spare ||
		    mremap(spare, len, len, how, mem) != mem)
			return "mremap";
		count(&race.attacks);
		sleep_ms(below(2));
	}
	return NULL;
}

/* Children scribble over their copies. */
static const char *attack_fork(void)
{
	while (racing()) {
		pid_t pid = fork();

		if (!pid) {
			fill(race.mem, race.len, STRANGER);
			_exit(0);
		}
		if (reap(pid))
			return "a child failed";
		count(&race.attacks);
	}
	return NULL;
}

static const char *attack_pageout(void)
{
	while (racing()) {
		madvise(race.mem, race.len, MADV_PAGEOUT);
		count(&race.attacks);
	}
	return NULL;
}

static const char *attack_compact(void)
{
	while (racing()) {
		write_text("/proc/sys/vm/compact_memory", "1");
		count(&race.attacks);
	}
	return NULL;
}

/* Split huge pages, and make them again, whenever no buffer holds them. */
static const char *attack_thp(void)
{
	while (racing()) {
		size_t off = below(race.len / thp_size()) * thp_size();

		split_huge_page(race.mem + off);
		sleep_ms(below(3));
		madvise(race.mem + off, thp_size(), MADV_COLLAPSE);
		count(&race.attacks);
	}
	return NULL;
}

#define KSM	"/sys/kernel/mm/ksm/"

/* Memory with the same bytes, which the kernel may merge with ours. */
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
		count(&race.attacks);
		sleep_ms(5);
	}
	return NULL;
}

static const char *prepare_uffd(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range = { to_u64(race.mem), race.len },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	race.uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (race.uffd < 0 || ioctl(race.uffd, UFFDIO_API, &api) ||
	    ioctl(race.uffd, UFFDIO_REGISTER, &reg))
		return "no userfaultfd for us";
	/* There, long-term pins do not wait for userfaultfd. */
	race.refusal = kernel_before(6, 3) ? EFAULT : 0;
	return NULL;
}

/* Bring the page that somebody waits for. */
static bool serve_fault(char *copy)
{
	struct pollfd poll_fd = { .fd = race.uffd, .events = POLLIN };
	struct uffdio_copy arg = { .src = to_u64(copy), .len = page_size() };
	struct uffd_msg msg;
	size_t off, i;

	if (poll(&poll_fd, 1, 500) != 1 || read(race.uffd, &msg, sizeof(msg)) != sizeof(msg))
		return false;
	arg.dst = msg.arg.pagefault.address & ~(page_size() - 1);
	off = arg.dst - to_u64(race.mem);
	for (i = 0; i < page_size(); i += 8)
		*(__u64 *)(copy + i) = stamp(OWNER, off + i);
	ioctl(race.uffd, UFFDIO_COPY, &arg);
	count(&race.attacks);
	return true;
}

/* Goes on until nobody waits any more. */
static const char *serve_faults(void)
{
	char *copy = anon_small(page_size());

	while (serve_fault(copy) || racing())
		;
	return NULL;
}

static const char *attack_uffd(void)
{
	pthread_t server;
	racer serve = serve_faults;
	volatile char *addr;

	pthread_create(&server, NULL, racer_thread, &serve);
	while (racing()) {
		addr = race.mem + below(pages()) * page_size();
		madvise((void *)addr, page_size(), MADV_DONTNEED);
		sleep_ms(below(3));
		(void)*addr;
	}
	pthread_join(server, NULL);
	return NULL;
}

/* The file forgets pages, the buffer does not. */
static const char *attack_punch(void)
{
	while (racing()) {
		size_t page = below(pages()), npages = 1 + below(pages() - page);

		fallocate(race.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			  page * page_size(), npages * page_size());
		refill(page, npages);
		count(&race.attacks);
	}
	return NULL;
}

#define BLOCKS	"/sys/devices/system/memory/"

static char block[96];	/* the file that tells a memory block's state */

/* Let it be the block that @addr is in; is that a movable one? */
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

/* 0; 1 if refused; or else the kernel would have tried for ever to empty the block. */
static int put_offline(void)
{
	char command[160];
	int status;

	snprintf(command, sizeof(command), "timeout 5 sh -c 'echo offline >%s' 2>/dev/null", block);
	status = system(command);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/*
 * Can the block be put offline at all? It is online again then. Who holds one of its
 * pages for a moment, as whatever ran before us may, is waited for.
 */
static bool can_offline(void)
{
	int tries = 20, failed;

	do {
		failed = put_offline();
		if (!failed)
			return !write_text(block, "online_movable");
		sleep_ms(100);
	} while (failed == 1 && --tries);
	return false;
}

/* Memory in a movable block that can be put offline, after all in those that cannot. */
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
	/* This one stays; what is in it must have left the block. */
	return _create_one(race.dev, 0, race.mem, race.len) < 0 ? "no buffer" : NULL;
}

/* What is in the block moves elsewhere, unless it was pinned there. */
static const char *attack_offline(void)
{
	while (racing()) {
		madvise(race.mem, race.len, MADV_DONTNEED);
		refill(0, pages());
		if (put_offline())
			continue;
		count(&race.attacks);
		if (write_text(block, "online_movable"))
			return "a block does not get online again";
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
	const char *evidence;	/* what of /proc/vmstat grows if the attack works */
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

	race.memfd = -1;
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
	/* Without memfd_pin_folios() a page that has just left the file is found out late. */
	if (variant->kind == MEM_MEMFD && kernel_before(6, 11))
		race.refusal = EFAULT;
	race.zeros = variant->zeros;
	race.coherent = variant->coherent;
	race.pause_ms = variant->pause_ms ?: 1;
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

/* How often an attack was successful, as far as can be told. */
static long count_attacks(const char *evidence)
{
	return evidence ? text_number("/proc/vmstat", evidence) : (long)race.attacks;
}

TEST_F_TIMEOUT(attacked, create, RACE_TIMEOUT)
{
	long before = count_attacks(variant->evidence);
	long long end = now_ms() + PATIENCE_MS;

	do {
		EXPECT_RACE(make_buffers, make_buffers, variant->attack);
	} while (count_attacks(variant->evidence) == before && now_ms() < end);
	EXPECT_LT(0, race.made);
	EXPECT_LT(before, count_attacks(variant->evidence));
}

/* Buffers whose fds come and go */

FIXTURE(races) {
	struct session session;
	pid_t stranger;
};

FIXTURE_SETUP(races)
{
	SESSION_OPEN(&self->session);
	race.dev = self->session.dev;
	race.memfd = -1;
	race.len = 64 * page_size();
	self->stranger = start_stranger();
}

FIXTURE_TEARDOWN(races)
{
	if (self->stranger > 0)
		stop_stranger(self->stranger);
	SESSION_CLOSE(&self->session);
}

static const char *send_buffers(int sock)
{
	for (;;) {
		int buf = make_buffer();

		if (buf < 0 || send_fd(sock, buf))
			return NULL;
		close(buf);
		count(&race.made);
	}
}

static int doomed_sock;

static const char *doomed_racer(void)
{
	return send_buffers(doomed_sock);
}

/* A process that ends, in one of two ways, while its threads make buffers. */
static void doomed(bool exec)
{
	racer send = doomed_racer;
	pthread_t threads[2];
	size_t i;

	race.made = 0;
	race.mem = anon_small(race.len);
	refill(0, pages());
	for (i = 0; i < ARRAY_SIZE(threads); i++)
		pthread_create(&threads[i], NULL, racer_thread, &send);
	/* Once the race is over they may not even have begun. */
	while (racing() && !__atomic_load_n(&race.made, __ATOMIC_RELAXED))
		sleep_ms(1);
	sleep_ms(below(8));
	if (exec)
		execl("/proc/self/exe", "udmabuf_races", EXIT_ARGUMENT, NULL);
	_exit(exec);
}

/* The buffers that come out of the socket, until its other end is closed. */
static const char *receive_buffers(int sock)
{
	const char *wrong = NULL;
	int buf;

	while (!wrong && (buf = receive_fd(sock)) >= 0) {
		count(&race.made);
		wrong = look_at(buf);
		close(buf);
	}
	return wrong;
}

static const char *bury_one(bool exec)
{
	const char *wrong;
	int socks[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, socks))
		return "socketpair";
	doomed_sock = socks[1];
	pid = fork();
	if (!pid) {
		close(socks[0]);
		doomed(exec);
	}
	close(socks[1]);
	wrong = receive_buffers(socks[0]);
	close(socks[0]);
	return reap(pid) ? "a child failed" : wrong;
}

TEST_F_TIMEOUT(races, create_against_exec_and_exit, RACE_TIMEOUT)
{
	bool exec = false;

	race.until = now_ms() + 2 * race_ms();
	for (; racing(); exec = !exec)
		ASSERT_EQ(NULL, bury_one(exec));
	EXPECT_LT(0, race.made);
}

/* The last reference to the one before goes wherever it happens to be. */
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
		count(&race.made);
	}
	return NULL;
}

/* All of it is of one of the buffers. */
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
			return "mmap";
		if (!is_of_one(map))
			return "a mapping shows two buffers";
		munmap(map, race.len);
	}
	return NULL;
}

static const char *sync_slot(void)
{
	while (racing())
		if (_sync_cpu(race.slot, SYNC_START(RW)) || _sync_cpu(race.slot, SYNC_END(RW)))
			return "sync";
	return NULL;
}

static const char *map_slot(void)
{
	struct udmabuf_importer_map map;
	char *seen = malloc(race.len);

	while (racing()) {
		int imp = importer_open();

		if (_attach(imp, race.slot, 0, 0) || _map(imp, IMPORTER_BIDIRECTIONAL, &map))
			return "map";
		if (_device_read(imp, map.handle, 0, seen, race.len) || !is_of_one(seen))
			return "a device sees two buffers";
		close(imp);
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
			return "vmap";
		if (_device_io(imp, IMPORTER_VREAD, 0, 0, seen, race.len) || !is_of_one(seen))
			return "the kernel sees two buffers";
		close(imp);
	}
	free(seen);
	return NULL;
}

TEST_F_TIMEOUT(races, close_against_fault_map_vmap_and_sync, RACE_TIMEOUT)
{
	long long end = now_ms() + PATIENCE_MS;
	char *mem = anon_small(race.len);

	SKIP_WITHOUT_IMPORTER();
	fill(mem, race.len, OWNER);
	race.slot = test_create_one(race.dev, 0, mem, race.len);
	munmap(mem, race.len);
	do {
		EXPECT_RACE(replace_buffers, fault_slot, sync_slot, map_slot, vmap_slot);
	} while (race.made < 2 && now_ms() < end);
	EXPECT_LT(1, race.made);
}

/* Faults of both sizes and of several threads in one mapping, while pieces of it go */
static const char *fault_anywhere(void)
{
	while (racing()) {
		size_t off = below(race.len / 8) * 8;

		if (*(volatile __u64 *)(race.spare + off) != stamp(OWNER, off))
			return "a wrong word";
		count(&race.made);
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
			return "mmap";
		count(&race.attacks);
		sleep_ms(below(2));
	}
	return NULL;
}

/* Stores, because the core does not care how reads meet. */
static void store_everywhere(void)
{
	size_t off;

	for (off = 0; off < race.len; off += thp_size())
		*(volatile __u64 *)(race.spare + off) = stamp(OWNER, off);
}

static const char *keep_storing(void)
{
	while (racing())
		store_everywhere();
	return NULL;
}

/*
 * From then on no huge entry is made, but one that is on its way is not stopped: it must
 * not meet the page table that our fault makes. Most often it does where the kernel can
 * be preempted.
 */
static const char *map_and_want_no_huge_entries(void)
{
	while (racing()) {
		prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
		if (mmap(race.spare, race.len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			 race.slot, 0) == MAP_FAILED)
			return "mmap";
		prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
		store_everywhere();
		count(&race.attacks);
	}
	return NULL;
}

/* A buffer mapped where huge entries are possible, if anywhere; or why not */
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
	EXPECT_LT(0, race.attacks);
}

TEST_F_TIMEOUT(races, faults_of_both_sizes, RACE_TIMEOUT)
{
	const char *why_not = prepare_faults();

	if (why_not)
		SKIP(return, "%s", why_not);
	EXPECT_RACE(keep_storing, keep_storing, map_and_want_no_huge_entries);
	EXPECT_LT(0, race.attacks);
}

/* From the seal on there is no new writer, whoever made the buffer before. */
static const char *map_for_writing(void)
{
	while (racing()) {
		bool sealed = __atomic_load_n(&race.sealed, __ATOMIC_ACQUIRE);
		char *map = _map_buf(race.slot, race.len, PROT_READ | PROT_WRITE, 0);

		if (map == MAP_FAILED && errno != EPERM)
			return strerror(errno);
		if (map == MAP_FAILED)
			return NULL;
		munmap(map, race.len);
		if (sealed)
			return "a writable mapping of a sealed memfd";
		count(&race.made);
	}
	return "the seal was never seen";
}

static const char *seal(void)
{
	sleep_ms(below(5));
	if (fcntl(race.memfd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE))
		return "seal";
	__atomic_store_n(&race.sealed, true, __ATOMIC_RELEASE);
	return NULL;
}

TEST_F_TIMEOUT(races, seal_against_mmap, RACE_TIMEOUT)
{
	long long end = now_ms() + race_ms();

	while (now_ms() < end) {
		race.memfd = sealed_memfd(race.len, 0, F_SEAL_SHRINK);
		race.slot = test_create_memfd(race.dev, 0, race.memfd, 0, race.len);
		race.sealed = false;
		EXPECT_RACE(map_for_writing, map_for_writing, seal);
		close(race.slot);
		close(race.memfd);
	}
	EXPECT_LT(0, race.made);
}

/* The driver itself goes away */

FIXTURE(unload) {
	struct session session;
	char *mem;
};

/* NULL if the driver is built in */
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

/* From where vm/init took it, or else from where modules are. */
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
	race.memfd = -1;
	refill(0, pages());
	if (!driver_module())
		SKIP(return, "the driver is built in");
}

FIXTURE_TEARDOWN(unload)
{
	const char *name = driver_module();

	if (!name)
		load_driver("udmabuf");
	SESSION_CLOSE(&self->session);
}

/* As long as there is any reference to a buffer, and not a moment longer. */
TEST_F(unload, while_a_buffer_lives)
{
	const char *name = driver_module();
	int buf, imp;
	char *map;

	SKIP_WITHOUT_IMPORTER();
	buf = test_create_one(self->session.dev, 0, race.mem, race.len);
	close(self->session.dev);
	EXPECT_ERRNO(EAGAIN, unload_driver(name));
	map = test_map_buf(buf, race.len, PROT_READ);
	imp = test_attach(buf, 0, 0);
	close(buf);
	EXPECT_ERRNO(EAGAIN, unload_driver(name));
	EXPECT_TRUE(is_owners(map, race.len, false));
	munmap(map, race.len);
	EXPECT_ERRNO(EAGAIN, unload_driver(name));
	close(imp);
	EXPECT_EQ(0, unload_driver(name)) TH_LOG("%s", strerror(errno));
	load_driver(name);
	EXPECT_EQ(NULL, device_open(&self->session.dev));
}

/* A process that uses the driver whenever it is there */
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
		count(&race.made);
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
		count(&race.attacks);
		load_driver(name);
		if (!driver_module())
			return "the driver does not come back";
	}
	return NULL;
}

TEST_F_TIMEOUT(unload, right_after_the_last_close, RACE_TIMEOUT)
{
	long long end = now_ms() + PATIENCE_MS;

	close(self->session.dev);
	do {
		EXPECT_RACE(use_driver, reload_driver);
	} while ((!race.attacks || !race.made) && now_ms() < end);
	EXPECT_LT(0, race.made);
	EXPECT_LT(0, race.attacks);
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], EXIT_ARGUMENT))
		return 0;
	return test_harness_run(argc, argv);
}
