// SPDX-License-Identifier: GPL-2.0-only
/*
 * latency: measure how long the driver holds the CPU, and how long it delays the exit of
 * a killed process.
 *
 * A timer wakes a real-time process every few microseconds on the only CPU. Its
 * largest delay is the longest time that no other process could run. The buffers are
 * large, so that work proportional to their size shows.
 */
#include "common.h"

#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>

#define PERIOD		20000UL
#define SIZE		(2 * GIB)
#define PIECE		(512 * MIB)
#define KILLS		3
#define TURNS		2
#define TOUCHES		64

static volatile __u64 *longest;

static __u64 clock_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 * MILLION + ts.tv_nsec;
}

static void sleep_until(__u64 ns)
{
	struct timespec ts = { ns / (1000 * MILLION), ns % (1000 * MILLION) };

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
}

static void be_real_time(bool on)
{
	struct sched_param param = { .sched_priority = on ? 50 : 0 };

	if (sched_setscheduler(0, on ? SCHED_FIFO | SCHED_RESET_ON_FORK : SCHED_OTHER, &param))
		err(1, "sched_setscheduler");
}

static void watch(void)
{
	__u64 next = clock_ns();

	be_real_time(true);
	for (;;) {
		__u64 late;

		next += PERIOD;
		sleep_until(next);
		late = clock_ns() - next;
		if (late > *longest)
			*longest = late;
		next += late;
	}
}

/*
 * Keeps the minimum over all turns of the longest hold in a turn, because other
 * interrupts sometimes hold the CPU as well.
 */
static void watched(__u64 *least)
{
	if (!*least || *longest < *least)
		*least = *longest;
	*longest = 0;
}

static void measure_holds(const struct memory *memory, const struct pieces *pieces)
{
	__u64 create = 0, fault = 0, close_ = 0;
	pid_t watcher = fork();
	int i, j, fd;

	if (!watcher)
		watch();
	for (i = 0; i < TURNS; i++) {
		*longest = 0;
		fd = create_list(memory, pieces);
		if (fd < 0)
			err(1, "create of %lu bytes", SIZE);
		watched(&create);
		map(MAPPING, SIZE, MAP_SHARED, fd);
		for (j = 0; j < TOUCHES; j++)
			(void)*(volatile char *)(MAPPING + SIZE / TOUCHES * j);
		watched(&fault);
		munmap(MAPPING, SIZE);
		*longest = 0;
		close(fd);
		watched(&close_);
	}
	in_all("hold-create-%s", memory, create);
	in_all("hold-fault-%s", memory, fault);
	in_all("hold-close-%s", memory, close_);
	kill(watcher, SIGKILL);
	waitpid(watcher, NULL, 0);
}

struct victim {
	const struct memory *memory;
	const struct pieces *pieces;
};

static int victim_main(void *arg)
{
	const struct victim *victim = arg;

	create_list(victim->memory, victim->pieces);
	_exit(0);
}

/*
 * Returns the time from SIGKILL to the exit of a process that is creating a buffer.
 * The process shares our address space, because its teardown would take long as well.
 */
static __u64 time_kill(const struct victim *victim, __u64 delay)
{
	static char stack[64 * KIB];
	__u64 start;
	pid_t pid;

	pid = clone(victim_main, stack + sizeof(stack), CLONE_VM | SIGCHLD, (void *)victim);
	if (pid < 0)
		err(1, "clone");
	sleep_until(clock_ns() + delay);
	start = now();
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return now() - start;
}

static void measure_kill(const struct memory *memory, const struct pieces *pieces)
{
	const struct victim victim = { .memory = memory, .pieces = pieces };
	__u64 start, create, time, longest_time = 0;
	int i;

	start = now();
	close(create_list(memory, pieces));
	create = now() - start;
	be_real_time(true);
	for (i = 0; i < KILLS; i++) {
		time = time_kill(&victim, create * (4 * i + 1) / (4 * KILLS));
		if (time > longest_time)
			longest_time = time;
	}
	be_real_time(false);
	in_all("kill-%s", memory, longest_time);
}

static void measure_memory(const struct kind *kind, const char *name)
{
	struct memory memory;
	struct pieces pieces;

	memory_make(&memory, kind, name);
	if (is_supported(&memory)) {
		pieces_make(&pieces, &memory, SIZE / PIECE, PIECE, true);
		measure_holds(&memory, &pieces);
		measure_kill(&memory, &pieces);
		pieces_free(&pieces);
	}
	memory_free(&memory);
}

int main(void)
{
	bench_open();
	longest = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (longest == MAP_FAILED)
		err(1, "mmap");
	measure_memory(&kinds[0], "iovec");
	measure_memory(&kinds[0], "memfd");
	return 0;
}
