// SPDX-License-Identifier: GPL-2.0-only
/* Passing a buffer to a command or over a socket; copying to and from standard streams. */
#define _GNU_SOURCE
#include <ctype.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/dma-buf.h>

#include "udmabufctl.h"

#define BUFFER_FD	3	/* for commands; default of cat and write */

static const struct option only_help[] = { { "help", no_argument, NULL, 'h' }, {} };

static int run_with(int buffer, char **command)
{
	/* The original descriptor is closed on exec. */
	if (buffer == BUFFER_FD ? fcntl(buffer, F_SETFD, 0) : dup2(buffer, BUFFER_FD) < 0)
		err(1, "cannot make the buffer file descriptor %d", BUFFER_FD);
	execvp(command[0], command);
	err(errno == ENOENT ? 127 : 126, "cannot run '%s'", command[0]);
}

int run(int argc, char **argv)
{
	struct request request = parse_request(argc, argv);

	if (!argv[optind])
		usage_error("missing COMMAND");
	return run_with(create_buffer(&request), argv + optind);
}

static struct sockaddr_un next_address(char **argv)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	const char *path = argv[optind];

	if (!path || !*path)
		usage_error("missing SOCKET");
	if (strlen(path) >= sizeof(address.sun_path))
		usage_error("socket name '%s' is longer than %zu bytes", path,
			    sizeof(address.sun_path) - 1);
	strcpy(address.sun_path, path);
	optind++;
	return address;
}

static int new_socket(void)
{
	int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (sock < 0)
		err(1, "cannot create a socket");
	return sock;
}

/* A message with a file descriptor, and the memory that it refers to. */
struct parcel {
	union {
		char room[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	};
	char byte;
	struct iovec iov;
	struct msghdr msg;
};

static struct msghdr *wrap(struct parcel *parcel)
{
	parcel->iov = (struct iovec) { &parcel->byte, 1 };
	parcel->msg = (struct msghdr) {
		.msg_iov = &parcel->iov,
		.msg_iovlen = 1,
		.msg_control = parcel->room,
		.msg_controllen = sizeof(parcel->room),
	};
	return &parcel->msg;
}

static void listen_at(int sock, const struct sockaddr_un *address)
{
	if (!bind(sock, (const struct sockaddr *)address, sizeof(*address)) && !listen(sock, 1))
		return;
	if (errno == EADDRINUSE)
		errx(1, "cannot listen at %s: the file exists (remove it, or choose another name)",
		     address->sun_path);
	err(1, "cannot listen at %s", address->sun_path);
}

int send_buffer(int argc, char **argv)
{
	struct request request = parse_request(argc, argv);
	struct sockaddr_un address = next_address(argv);
	int sock = new_socket(), buffer, peer;
	struct parcel parcel = {};
	struct msghdr *msg = wrap(&parcel);
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(msg);

	no_more_arguments(argv);
	buffer = create_buffer(&request);
	listen_at(sock, &address);
	peer = accept(sock, NULL, NULL);
	unlink(address.sun_path);
	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(buffer));
	memcpy(CMSG_DATA(cmsg), &buffer, sizeof(buffer));
	if (peer < 0 || sendmsg(peer, msg, MSG_NOSIGNAL) != 1)
		err(1, "cannot send the buffer over %s", address.sun_path);
	return 0;
}

static void connect_to(int sock, const struct sockaddr_un *address)
{
	if (!connect(sock, (const struct sockaddr *)address, sizeof(*address)))
		return;
	if (errno == ENOENT || errno == ECONNREFUSED)
		errx(1, "cannot connect to %s: no process listens (run first: udmabufctl send %s)",
		     address->sun_path, address->sun_path);
	err(1, "cannot connect to %s", address->sun_path);
}

int receive_buffer(int argc, char **argv)
{
	struct parcel parcel = {};
	struct msghdr *msg = wrap(&parcel);
	int sock = new_socket(), buffer = -1;
	struct sockaddr_un address;
	struct cmsghdr *cmsg;

	next_option(argc, argv, "+:h", only_help);
	address = next_address(argv);
	if (argv[optind] && !strcmp(argv[optind], "--"))
		optind++;
	if (!argv[optind])
		usage_error("missing COMMAND");
	connect_to(sock, &address);
	if (recvmsg(sock, msg, MSG_CMSG_CLOEXEC) < 0)
		err(1, "cannot receive from %s", address.sun_path);
	if (msg->msg_flags & MSG_CTRUNC)
		errx(1, "cannot receive from %s: %s", address.sun_path,
		     explain(RAISE_FILES, "%s", strerror(EMFILE)));
	cmsg = CMSG_FIRSTHDR(msg);
	if (!cmsg || cmsg->cmsg_type != SCM_RIGHTS)
		errx(1, "%s: the sender passed no file descriptor (use: udmabufctl send)",
		     address.sun_path);
	memcpy(&buffer, CMSG_DATA(cmsg), sizeof(buffer));
	return run_with(buffer, argv + optind);
}

/*
 * cat, write
 */

static void cpu_access(int buffer, __u64 flags)
{
	struct dma_buf_sync sync = { .flags = flags };

	if (!ioctl(buffer, DMA_BUF_IOCTL_SYNC, &sync))
		return;
	if (errno == EBADF)
		errx(1, "file descriptor %d is not open (try: udmabufctl run, or receive)", buffer);
	if (errno == ENOTTY || errno == EINVAL)
		errx(1, "file descriptor %d is not a dma-buf (try: udmabufctl run, or receive)",
		     buffer);
	err(1, "cannot sync the buffer at file descriptor %d", buffer);
}

static int parse_fd(int argc, char **argv)
{
	const char *text;
	char *end;
	long fd;

	next_option(argc, argv, "+:h", only_help);
	text = argv[optind];
	if (!text)
		return BUFFER_FD;
	optind++;
	no_more_arguments(argv);
	errno = 0;
	fd = strtol(text, &end, 10);
	if (!isdigit(*text) || *end || errno || fd > INT_MAX)
		usage_error("invalid file descriptor '%s': a number from 0 to %d", text, INT_MAX);
	return fd;
}

static char *map_buffer(int buffer, int protection, size_t *size)
{
	off_t end = lseek(buffer, 0, SEEK_END);
	char *map;

	if (end < 0)
		err(1, "cannot determine the size of the buffer at file descriptor %d", buffer);
	*size = end;
	map = mmap(NULL, *size, protection, MAP_SHARED, buffer, 0);
	if (map != MAP_FAILED)
		return map;
	if (errno == EACCES && protection & PROT_WRITE)
		errx(1,
		     "the buffer at file descriptor %d is read-only (create it without --rdonly)",
		     buffer);
	err(1, "cannot map the buffer at file descriptor %d", buffer);
}

int cat(int argc, char **argv)
{
	int buffer = parse_fd(argc, argv);
	size_t size, done;
	ssize_t n;
	char *map;

	cpu_access(buffer, DMA_BUF_SYNC_START | DMA_BUF_SYNC_READ);
	map = map_buffer(buffer, PROT_READ, &size);
	/* write() must copy from the mapping, whose pages cannot be pinned. */
	for (done = 0; done < size; done += n) {
		n = write(STDOUT_FILENO, map + done, size - done);
		if (n < 0)
			err(1, "cannot write to standard output");
	}
	cpu_access(buffer, DMA_BUF_SYNC_END | DMA_BUF_SYNC_READ);
	return 0;
}

int write_buffer(int argc, char **argv)
{
	int buffer = parse_fd(argc, argv);
	size_t size, done;
	char *map, more;

	cpu_access(buffer, DMA_BUF_SYNC_START | DMA_BUF_SYNC_WRITE);
	map = map_buffer(buffer, PROT_READ | PROT_WRITE, &size);
	done = fill(STDIN_FILENO, "standard input", map, size);
	cpu_access(buffer, DMA_BUF_SYNC_END | DMA_BUF_SYNC_WRITE);
	if (done == size && fill(STDIN_FILENO, "standard input", &more, 1))
		errx(1,
		     "the input is longer than the buffer: only the first %zu bytes were written",
		     size);
	return 0;
}
