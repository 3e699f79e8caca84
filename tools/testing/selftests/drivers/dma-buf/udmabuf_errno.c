// SPDX-License-Identifier: GPL-2.0
/*
 * The errno table of UDMABUF_CREATE, row by row and in its order.
 * udmabuf_memory.c tests which memory is accepted.
 *
 * Each test ends with a comparison of its session's counters: after any failure
 * no page may be pinned or charged, and no buffer open.
 */
#include "udmabuf_test.h"

FIXTURE(errnos) {
	struct session session;
	int dev;
	char *mem;
	size_t len;
};

FIXTURE_SETUP(errnos)
{
	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	self->len = 8 * page_size();
	self->mem = anon_small(self->len);
	ASSERT_NE(MAP_FAILED, (void *)self->mem);
}

FIXTURE_TEARDOWN(errnos)
{
	SESSION_CLOSE(&self->session);
}

TEST_F(errnos, nothing_done_nothing_kept)
{
}

TEST_F(errnos, other_ioctls_are_enotty)
{
	struct udmabuf_create arg = {};

	EXPECT_ERRNO(ENOTTY, ioctl(self->dev, _IO(0x42, 0x23), &arg));
	EXPECT_ERRNO(ENOTTY, ioctl(self->dev, _IOW(0x42, 0x24, struct udmabuf_create), &arg));
	EXPECT_ERRNO(ENOTTY, ioctl(self->dev, _IOR(0x42, 0x23, struct udmabuf_create), &arg));
	EXPECT_ERRNO(ENOTTY, ioctl(self->dev, _IOW(0x42, 0x23, struct udmabuf_iovec), &arg));
	EXPECT_ERRNO(ENOTTY, ioctl(self->dev, _IOW('u', 0x23, struct udmabuf_create), &arg));
	EXPECT_ERRNO(ENOTTY, ioctl(self->dev, 0, &arg));
}

TEST_F(errnos, unreadable_argument_is_efault)
{
	void *nowhere = mmap(NULL, page_size(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	EXPECT_ERRNO(EFAULT, ioctl(self->dev, UDMABUF_CREATE, NULL));
	EXPECT_ERRNO(EFAULT, ioctl(self->dev, UDMABUF_CREATE, nowhere));
	EXPECT_ERRNO(EFAULT, ioctl(self->dev, UDMABUF_CREATE, (void *)-4096L));
}

TEST_F(errnos, header_across_an_unmapped_page_is_efault)
{
	struct udmabuf_create *arg;

	munmap(self->mem + page_size(), page_size());
	arg = (void *)(self->mem + page_size() - sizeof(*arg) / 2);
	EXPECT_ERRNO(EFAULT, ioctl(self->dev, UDMABUF_CREATE, arg));
}

TEST_F(errnos, entries_across_an_unmapped_page_are_efault)
{
	struct udmabuf_create *arg;

	munmap(self->mem + page_size(), page_size());
	arg = (void *)(self->mem + page_size() - sizeof(*arg) - sizeof(arg->iovs[0]));
	arg->flags = 0;
	arg->niov = 2;
	arg->iovs[0].base = to_u64(self->mem);
	arg->iovs[0].len = page_size();
	EXPECT_ERRNO(EFAULT, ioctl(self->dev, UDMABUF_CREATE, arg));
}

/* Later versions may define these flags. Mainline's driver ignores unknown bits. */
TEST_F(errnos, unknown_flags_are_einval)
{
	unsigned int bit;

	for (bit = 2; bit < 32; bit++)
		test_err_create_one(EINVAL, self->dev, 1U << bit, self->mem, self->len);
	test_err_create_one(EINVAL, self->dev, ~0U, self->mem, self->len);
}

TEST_F(errnos, no_entries_are_einval)
{
	struct udmabuf_iovec iov = { to_u64(self->mem), self->len };

	test_err_create(EINVAL, self->dev, 0, &iov, 0);
}

TEST_F(errnos, unaligned_base_is_einval)
{
	test_err_create_one(EINVAL, self->dev, 0, self->mem + 1, page_size());
	test_err_create_one(EINVAL, self->dev, 0, self->mem + page_size() / 2, page_size());
	test_err_create_one(EINVAL, self->dev, 0, self->mem + page_size() - 1, page_size());
}

TEST_F(errnos, unaligned_length_is_einval)
{
	test_err_create_one(EINVAL, self->dev, 0, self->mem, 1);
	test_err_create_one(EINVAL, self->dev, 0, self->mem, page_size() / 2);
	test_err_create_one(EINVAL, self->dev, 0, self->mem, page_size() + 1);
}

TEST_F(errnos, zero_length_is_einval)
{
	struct udmabuf_iovec iovs[] = {
		{ to_u64(self->mem), page_size() },
		{ to_u64(self->mem), 0 },
	};

	test_err_create(EINVAL, self->dev, 0, iovs, 2);
	test_err_create(EINVAL, self->dev, 0, iovs + 1, 1);
}

TEST_F(errnos, wrapping_range_is_einval)
{
	__u64 page = page_size();
	struct udmabuf_iovec iovs[] = {
		{ -page, page },
		{ -page, 2 * page },
		{ to_u64(self->mem), -page },
		{ 1ULL << 63, 1ULL << 63 },
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(iovs); i++)
		test_err_create(EINVAL, self->dev, 0, &iovs[i], 1);
}

/*
 * Guards the high half of a 32-bit caller's addresses. Also guards against
 * returning GUP's EOVERFLOW.
 */
TEST_F(errnos, ranges_past_the_user_address_space_are_efault)
{
	__u64 page = page_size();
	struct udmabuf_iovec iovs[] = {
		{ -2 * page, page },
		{ 1ULL << 63, page },
		{ (1ULL << 47) - page, page },
		{ (1ULL << 47) - page, 2 * page },
		{ (1ULL << 56) - page, 2 * page },
		{ (1ULL << 32) - page, 2 * page },
		{ to_u64(self->mem) | 1ULL << 55, page },
		{ -4 * page, 3 * page },
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(iovs); i++)
		test_err_create(EFAULT, self->dev, 0, &iovs[i], 1);
}

/* The errno is the same whichever entry is wrong. */
TEST_F(errnos, every_entry_is_checked)
{
	struct udmabuf_iovec iovs[5];
	size_t bad, i;

	for (bad = 0; bad < ARRAY_SIZE(iovs); bad++) {
		for (i = 0; i < ARRAY_SIZE(iovs); i++) {
			iovs[i].base = to_u64(self->mem + i * page_size()) + (i == bad);
			iovs[i].len = page_size();
		}
		test_err_create(EINVAL, self->dev, 0, iovs, ARRAY_SIZE(iovs));
	}
}

/*
 * INT_MAX pages are the most that can be mapped. The sum of the lengths must not
 * overflow.
 */
TEST_F(errnos, too_many_pages_are_e2big)
{
	__u64 page = page_size();
	struct udmabuf_iovec one = { 0, ((__u64)INT_MAX + 1) * page };
	struct udmabuf_iovec many[] = {
		{ 0, 1ULL << 63 },
		{ 0, 1ULL << 63 },
		{ to_u64(self->mem), page },
	};
	struct udmabuf_iovec halves[] = {
		{ 0, ((__u64)INT_MAX / 2 + 1) * page },
		{ 0, ((__u64)INT_MAX / 2 + 1) * page },
	};

	test_err_create(E2BIG, self->dev, 0, &one, 1);
	test_err_create(E2BIG, self->dev, 0, many, 3);
	test_err_create(E2BIG, self->dev, 0, halves, 2);
}

/*
 * The largest size must fail without a warning in the kernel log,
 * with and without the capability.
 */
TEST_F(errnos, largest_size_is_refused_without_a_warning)
{
	struct udmabuf_iovec iov = { page_size(), largest_size() };

	test_err_create(ENOMEM, self->dev, 0, &iov, 1);
	set_capability(CAP_IPC_LOCK, true);
	if (has_capability(CAP_IPC_LOCK))
		test_err_create(ENOMEM, self->dev, 0, &iov, 1);
}

TEST_F(errnos, no_free_fd_is_emfile)
{
	struct rlimit none = { self->dev + 1, self->dev + 1 };
	struct rlimit old;
	int i;

	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &old));
	none.rlim_max = old.rlim_max;
	for (i = 0; i < self->dev; i++)
		if (fcntl(i, F_GETFD) < 0)
			dup2(self->dev, i);
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &none));
	test_err_create_one(EMFILE, self->dev, 0, self->mem, self->len);
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &old));
	EXPECT_NOTHING_KEPT(&self->session);
}

/*
 * The last files of the system are reserved for CAP_SYS_ADMIN, so become a
 * user.
 */
TEST_F(errnos, no_free_file_is_enfile)
{
	const char *knob = "/proc/sys/fs/file-max";
	char before[32];
	pid_t pid;

	if (geteuid() || read_text(knob, before, sizeof(before)) <= 0 ||
	    write_number(knob, 0))
		SKIP(return, "cannot set %s", knob);
	pid = fork();
	if (!pid) {
		become(NOBODY_UID, 64);
		CHILD_CHECK(_create_one(self->dev, 0, self->mem, self->len) == -1);
		CHILD_CHECK(errno == ENFILE);
		_exit(0);
	}
	EXPECT_EQ(0, reap(pid));
	ASSERT_EQ(0, write_text(knob, before));
}

/* If two rules are broken, the first one in the table determines the errno. */

TEST_F(errnos, order_einval_before_e2big)
{
	struct udmabuf_iovec iovs[] = {
		{ 0, ((__u64)INT_MAX + 1) * page_size() },
		{ to_u64(self->mem) + 1, page_size() },
	};

	test_err_create(EINVAL, self->dev, 0, iovs, 2);
	test_err_create(EINVAL, self->dev, 1U << 31, iovs, 1);
}

TEST_F(errnos, order_e2big_before_enomem)
{
	struct udmabuf_iovec iov = { to_u64(self->mem), ((__u64)INT_MAX + 1) * page_size() };

	set_memlock(0);
	test_err_create(E2BIG, self->dev, 0, &iov, 1);
}

TEST_F(errnos, order_enomem_before_efault)
{
	munmap(self->mem, self->len);
	set_memlock(page_size());
	test_err_create_one(ENOMEM, self->dev, 0, self->mem, self->len);
	test_err_create_one(EFAULT, self->dev, 0, self->mem, page_size());
}

TEST_F(errnos, order_efault_before_emfile)
{
	struct rlimit none = { self->dev + 1, self->dev + 1 };
	struct rlimit old;

	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &old));
	none.rlim_max = old.rlim_max;
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &none));
	munmap(self->mem, self->len);
	test_err_create_one(EFAULT, self->dev, 0, self->mem, self->len);
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &old));
}

/* Module parameters */

FIXTURE(limits) {
	struct session session;
	int dev;
	char *mem;
	size_t len;
	char list_limit[32];
	char size_limit_mb[32];
};

FIXTURE_SETUP(limits)
{
	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	self->len = 8 * page_size();
	self->mem = anon_small(self->len);
	if (read_text(parameter_path("list_limit"), self->list_limit, 32) <= 0 ||
	    read_text(parameter_path("size_limit_mb"), self->size_limit_mb, 32) <= 0 ||
	    access(parameter_path("list_limit"), W_OK))
		SKIP(return, "cannot write %s", parameter_path("list_limit"));
}

FIXTURE_TEARDOWN(limits)
{
	write_text(parameter_path("list_limit"), self->list_limit);
	write_text(parameter_path("size_limit_mb"), self->size_limit_mb);
	SESSION_CLOSE(&self->session);
}

#define test_set_limit(name, value)					\
	ASSERT_EQ(0, write_text(parameter_path(name), value))

/* Mainline's limits are signed, and -1 disables them. */
TEST_F(limits, negative_values_are_refused)
{
	EXPECT_EQ(-1, write_text(parameter_path("list_limit"), "-1"));
	EXPECT_EQ(-1, write_text(parameter_path("size_limit_mb"), "-1"));
}

TEST_F(limits, list_limit_is_exact)
{
	struct udmabuf_iovec iovs[5];

	make_entries(iovs, 5, self->mem, page_size(), 0);
	test_set_limit("list_limit", "4");
	test_err_create(E2BIG, self->dev, 0, iovs, 5);
	test_create(self->dev, 0, iovs, 4);
	test_set_limit("list_limit", "0");
	test_err_create(E2BIG, self->dev, 0, iovs, 1);
}

/*
 * mmap() checks the seals at each change of the memfd, so list_limit limits
 * these.
 */
TEST_F(limits, memfds_in_turn)
{
	struct udmabuf_iovec iov = { to_u64(self->mem), self->len };
	int fds[2], i;

	for (i = 0; i < 2; i++)
		fds[i] = sealed_memfd(page_size(), 0, F_SEAL_SHRINK);
	for (i = 0; i < 8; i++)
		ASSERT_NE(MAP_FAILED, mmap(self->mem + i * page_size(), page_size(),
					   PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
					   fds[i % 2], 0));
	test_set_limit("list_limit", "7");
	test_err_create(E2BIG, self->dev, 0, &iov, 1);
	/*
	 * A read-only buffer is never mapped for writing, so no seals are
	 * checked.
	 */
	i = _create(self->dev, UDMABUF_FLAGS_RDONLY, &iov, 1);
	EXPECT_TRUE(i >= 0 || errno == EOPNOTSUPP);
	if (i >= 0)
		close(i);
	test_set_limit("list_limit", "8");
	close(test_create(self->dev, 0, &iov, 1));
	test_set_limit("list_limit", self->list_limit);
	EXPECT_NOTHING_KEPT(&self->session);
}

/* The entries of a list above the limit are not read. */
TEST_F(limits, order_list_limit_before_unreadable_or_invalid_entries)
{
	struct udmabuf_create *arg = (void *)(self->mem + page_size() - sizeof(*arg));
	struct udmabuf_iovec iovs[5] = {};

	munmap(self->mem + page_size(), page_size());
	test_set_limit("list_limit", "4");
	arg->niov = 5;
	EXPECT_ERRNO(E2BIG, ioctl(self->dev, UDMABUF_CREATE, arg));
	arg->niov = ~0U;
	EXPECT_ERRNO(E2BIG, ioctl(self->dev, UDMABUF_CREATE, arg));
	test_err_create(E2BIG, self->dev, 0, iovs, 5);
	test_err_create(EINVAL, self->dev, 1U << 31, iovs, 5);
}

/* Guards the array's size: no limit may make it overflow or cause a warning. */
TEST_F(limits, longest_list_is_refused_without_a_warning)
{
	struct udmabuf_create *arg = (void *)(self->mem + page_size() - sizeof(*arg));

	munmap(self->mem + page_size(), page_size());
	test_set_limit("list_limit", "4294967295");
	arg->niov = ~0U;
	EXPECT_EQ(-1, ioctl(self->dev, UDMABUF_CREATE, arg));
	arg->niov = 1U << 28;
	EXPECT_EQ(-1, ioctl(self->dev, UDMABUF_CREATE, arg));
}

/* A maximised window of a guest has up to 8,000 pieces. */
TEST_F(limits, default_list_limit_is_65536)
{
	static struct udmabuf_iovec iovs[65537];

	make_entries(iovs, ARRAY_SIZE(iovs), self->mem, page_size(), 0);
	EXPECT_EQ(65536, atoi(self->list_limit));
	test_set_limit("list_limit", "65536");
	test_err_create(E2BIG, self->dev, 0, iovs, 65537);
	test_create(self->dev, 0, iovs, 8192);
}

TEST_F(limits, size_limit_is_exact)
{
	size_t npages = (1 << 20) / page_size();
	struct udmabuf_iovec *iovs = calloc(npages + 1, sizeof(*iovs));

	make_entries(iovs, npages + 1, self->mem, page_size(), 0);
	test_set_limit("size_limit_mb", "1");
	test_err_create(E2BIG, self->dev, 0, iovs, npages + 1);
	test_create(self->dev, 0, iovs, npages);
	test_set_limit("size_limit_mb", "0");
	test_err_create(E2BIG, self->dev, 0, iovs, 1);
}

TEST_F(limits, no_size_limit_lifts_int_max_pages)
{
	struct udmabuf_iovec iov = { 0, ((__u64)INT_MAX + 1) * page_size() };

	test_set_limit("size_limit_mb", "4294967295");
	test_err_create(E2BIG, self->dev, 0, &iov, 1);
}

TEST_HARNESS_MAIN
