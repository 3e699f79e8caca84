// SPDX-License-Identifier: GPL-2.0
/*
 * A fuzzer for the device and for all operations on a buffer. It generates
 * short programs of calls, runs each in its own process, and judges return
 * values and bytes by a model of the interface. If the kernel has KCOV, a
 * program that reaches new code of the driver is kept and mutated.
 *
 * Why not an existing fuzzer: syzkaller is not packaged. libFuzzer is, but
 * needs clang and a C++ runtime, supports only the machine's word size, and
 * does not know calls.
 *
 * Environment:
 *
 *	FUZZ_SECONDS	duration, unless FUZZ_RUNS gives a number of programs
 *	FUZZ_SEED	the same seed gives the same programs if KCOV's results agree
 *			(the outcome of races depends on the machine)
 *	FUZZ_GUIDED=0	keep no programs, to measure the benefit of KCOV
 *	FUZZ_PROGRAM	run only this program, in the printed form
 *	FUZZ_TRACE=1	print each program before it runs, in case the kernel crashes
 */
#include <sys/prctl.h>

#include "udmabuf_fuzz.h"

#define SECONDS		15
#define CHILD_SECONDS	300	/* detects hangs; a program takes a moment */
#define LEAST_RUNS	100	/* also on a slow machine */
#define MAX_KEPT	4096

struct call {
	unsigned char op;
	unsigned char arg[NARGS];
};

struct program {
	unsigned int n;
	struct call calls[MAX_CALLS];
};

static void execute(const struct program *program)
{
	unsigned int i;

	for (i = 0; i < program->n; i++) {
		const struct call *call = &program->calls[i];

		PICK(ops, call->op).run(call->arg);
		if (PICK(ops, call->op).run != call_fail)
			world.fail_nth = 0;
	}
}

/* Generating and keeping programs */

static __u64 random_state;

static unsigned int random_below(unsigned int n)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (random_state >> 20) % n;
}

static struct {
	struct program programs[MAX_KEPT];
	unsigned int n;
} kept;

static void random_call(struct call *call)
{
	unsigned char *bytes = (unsigned char *)call;
	size_t i;

	for (i = 0; i < sizeof(*call); i++)
		bytes[i] = random_below(256);
}

static void fresh(struct program *program)
{
	unsigned int i;

	program->n = 3 + random_below(MAX_CALLS - 2);
	for (i = 0; i < program->n; i++)
		random_call(&program->calls[i]);
	/* Start with a create, since the other calls need a buffer. */
	program->calls[0].op = random_below(2);
}

static void insert(struct program *program)
{
	unsigned int at = random_below(program->n + 1);

	if (program->n == MAX_CALLS)
		return;
	memmove(&program->calls[at + 1], &program->calls[at],
		(program->n++ - at) * sizeof(struct call));
	random_call(&program->calls[at]);
}

static void shorten(struct program *program)
{
	unsigned int at = random_below(program->n);

	if (program->n == 1)
		return;
	memmove(&program->calls[at], &program->calls[at + 1],
		(--program->n - at) * sizeof(struct call));
}

/* Replace the last calls by the first ones of another program. */
static void graft(struct program *program, const struct program *other)
{
	unsigned int at = random_below(program->n);
	unsigned int n = other->n < MAX_CALLS - at ? other->n : MAX_CALLS - at;

	memcpy(&program->calls[at], other->calls, n * sizeof(struct call));
	program->n = at + n;
}

static void mutate(struct program *program)
{
	struct call *call = &program->calls[random_below(program->n)];

	switch (random_below(8)) {
	case 0:
		insert(program);
		break;
	case 1:
		shorten(program);
		break;
	case 2:
		graft(program, &kept.programs[random_below(kept.n)]);
		break;
	case 3:
		random_call(call);
		break;
	default:
		call->arg[random_below(NARGS)] = random_below(256);
	}
}

static void next_program(struct program *program)
{
	unsigned int changes = 1 + random_below(4);

	if (!kept.n || !random_below(4)) {
		fresh(program);
		return;
	}
	*program = kept.programs[random_below(kept.n)];
	while (changes--)
		mutate(program);
}

static void print_program(const struct program *program)
{
	unsigned int i, j;

	printf("# FUZZ_PROGRAM=");
	for (i = 0; i < program->n * sizeof(struct call); i++)
		printf("%02x", ((const unsigned char *)program->calls)[i]);
	for (i = 0; i < program->n; i++) {
		printf("\n#   %s", PICK(ops, program->calls[i].op).name);
		for (j = 0; j < NARGS; j++)
			printf(" %u", program->calls[i].arg[j]);
	}
	printf("\n");
	fflush(stdout);
}

static void parse_program(struct program *program, const char *hex)
{
	unsigned char *bytes = (unsigned char *)program->calls;
	size_t n = 0;

	while (n < sizeof(program->calls) && sscanf(hex + 2 * n, "%2hhx", &bytes[n]) == 1)
		n++;
	program->n = n / sizeof(struct call);
}

/*
 * KCOV. A 64-bit kernel has no compat translation, so 32-bit programs too use
 * the ioctl number with the size of a 64-bit long.
 */

#define KCOV_WORDS	(256 << 10)
#define KCOV_INIT	_IOR('c', 1, __u64)
#define KCOV_ON		_IO('c', 100)

static struct {
	int fd;
	__u64 *words;		/* number of PCs, then the PCs */
	__u64 seen[1 << 14];
	unsigned int nseen;
} kcov = { .fd = -1 };

static void kcov_open(void)
{
	kcov.fd = open("/sys/kernel/debug/kcov", O_RDWR | O_CLOEXEC);
	if (kcov.fd < 0)
		return;
	kcov.words = MAP_FAILED;
	if (!ioctl(kcov.fd, KCOV_INIT, KCOV_WORDS))
		kcov.words = mmap(NULL, KCOV_WORDS * sizeof(__u64), PROT_READ | PROT_WRITE,
				  MAP_SHARED, kcov.fd, 0);
	if (kcov.words == MAP_FAILED)
		kcov.fd = -1;
}

static bool is_new(__u64 pc)
{
	size_t i = pc * 0x9e3779b97f4a7c15ULL >> 50;

	for (; kcov.seen[i]; i = (i + 1) % ARRAY_SIZE(kcov.seen))
		if (kcov.seen[i] == pc)
			return false;
	if (kcov.nseen == ARRAY_SIZE(kcov.seen) / 2)
		return false;
	kcov.seen[i] = pc;
	kcov.nseen++;
	return true;
}

/* Keep the program that has just run if it reached new code. */
static void learn(const struct program *program, bool guided)
{
	unsigned int before = kcov.nseen;
	__u64 i;

	if (kcov.fd < 0)
		return;
	for (i = 1; i <= kcov.words[0]; i++)
		is_new(kcov.words[i]);
	if (guided && kcov.nseen != before && kept.n < MAX_KEPT)
		kept.programs[kept.n++] = *program;
}

/*
 * The test
 */

static void allow_injection(void)
{
	static const char * const no[] = { "failslab/verbose", "fail_page_alloc/verbose",
		"fail_usercopy/verbose", "failslab/ignore-gfp-wait",
		"fail_page_alloc/ignore-gfp-wait", "fail_page_alloc/min-order" };
	char path[64];
	size_t i;

	for (i = 0; i < ARRAY_SIZE(no); i++) {
		snprintf(path, sizeof(path), "/sys/kernel/debug/%s", no[i]);
		write_text(path, "0");
	}
}

static unsigned long setting(const char *name, unsigned long otherwise)
{
	const char *value = getenv(name);

	return value ? strtoul(value, NULL, 0) : otherwise;
}

static int run_in_child(const struct program *program)
{
	pid_t pid = fork();

	if (!pid) {
		alarm(CHILD_SECONDS);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		world_open();
		if (kcov.fd >= 0)
			ioctl(kcov.fd, KCOV_ON, 0);
		execute(program);
		world_close();
		_exit(0);
	}
	return reap(pid);
}

/* Returns "" or the reason why the program fails. */
static const char *run(const struct program *program, const struct session *session,
		       const struct pool *pool)
{
	static char text[64];
	int status;

	if (setting("FUZZ_TRACE", 0))
		print_program(program);
	if (kcov.fd >= 0)
		kcov.words[0] = 0;
	status = run_in_child(program);
	if (*tally->wrong)
		return tally->wrong;
	snprintf(text, sizeof(text), "the program's process exited with %d", status);
	if (status)
		return text;
	if ((text_number("/proc/sys/kernel/tainted", "") & TAINT_BUGS) != session->before.bugs ||
	    pinned_pages_once() != session->before.pinned)
		return ledger_difference(&session->before, session->dev);
	return pool_difference(pool);
}

FIXTURE(fuzz) {
	struct session session;
	struct pool pool;
};

FIXTURE_SETUP(fuzz)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	SKIP_WITHOUT_IMPORTER();
	SESSION_OPEN(&self->session);
	tally = mmap(NULL, sizeof(*tally), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		     -1, 0);
	scratch = scratch_file("ramfs", SMALL_PAGES * page_size());
	ASSERT_LE(0, scratch);
	/* Each call of a program may leave one more huge page in a buffer. */
	hugetlb_provide(3 * MAX_CALLS * hugetlb_size());
	self->pool = pool_read();
	allow_injection();
	kcov_open();
}

FIXTURE_TEARDOWN(fuzz)
{
	SESSION_CLOSE(&self->session);
}

TEST_F_TIMEOUT(fuzz, no_program_does_what_it_should_not, 100000)
{
	unsigned long runs = 0, most = setting("FUZZ_RUNS", 0), seed = setting("FUZZ_SEED", 1);
	long long end = now_ms() + 1000LL * setting("FUZZ_SECONDS", SECONDS);
	const char *given = getenv("FUZZ_PROGRAM"), *wrong = "";
	bool guided = setting("FUZZ_GUIDED", 1);
	static struct program program;

	random_state = seed * 2 + 1;
	if (given)
		most = 1;
	while (!*wrong && (most ? runs < most : runs < LEAST_RUNS || now_ms() < end)) {
		if (given)
			parse_program(&program, given);
		else
			next_program(&program);
		wrong = run(&program, &self->session, &self->pool);
		learn(&program, guided);
		runs++;
	}
	if (*wrong)
		print_program(&program);
	printf("# FUZZ_SEED=%lu: %lu programs, %u kept, %u PCs reached\n", seed, runs,
	       kept.n, kcov.nseen);
	printf("# %lu creates, %lu from memfds; compared: %lu mappings, %lu maps, %lu vmaps\n",
	       tally->creates,
	       tally->memfd_creates, tally->compared, tally->device_compared,
	       tally->kernel_compared);
	printf("# %lu races of creates, %lu stores between syncs\n", tally->races,
	       tally->brackets);
	ASSERT_STREQ("", wrong);
	if (given)
		return;
	/* Verify that programs reach every kind of check. */
	EXPECT_LT(0, tally->creates);
	EXPECT_LT(0, tally->memfd_creates);
	EXPECT_LT(0, tally->compared);
	EXPECT_LT(0, tally->device_compared);
	EXPECT_LT(0, tally->kernel_compared);
	EXPECT_LT(0, tally->races);
	EXPECT_LT(0, tally->brackets);
}

TEST_HARNESS_MAIN
