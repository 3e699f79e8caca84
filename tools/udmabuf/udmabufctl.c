// SPDX-License-Identifier: GPL-2.0-only
/*
 * udmabufctl: see what /dev/udmabuf is, and try it from a shell. Its manual page
 * is udmabufctl.1.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <glob.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/capability.h>
#include <linux/dma-buf.h>

#include "linux/udmabuf.h"

#define DEVICE		"/dev/udmabuf"
#define BUFFER_FD	3	/* what a command finds the buffer at */

static const char usage_text[] =
"usage: udmabufctl info\n"
"       udmabufctl run [-r] [-s SIZE] [-n NAME] [-f FILE] [--] COMMAND [ARGUMENT...]\n"
"       udmabufctl send [-r] [-s SIZE] [-n NAME] [-f FILE] SOCKET\n"
"       udmabufctl receive SOCKET [--] COMMAND [ARGUMENT...]\n"
"       udmabufctl cat [FD]\n"
"       udmabufctl --help\n"
"\n"
"info     say which driver there is and what its limits are\n"
"run      run a command that finds a buffer at file descriptor 3\n"
"send     give a buffer to the first who connects to a socket\n"
"receive  get one there, and run a command that finds it at descriptor 3\n"
"cat      write the bytes of the buffer at FD (default 3)\n"
"\n"
"The buffer is made of ordinary memory and holds what standard input, or FILE, does.\n"
"\n"
"  -f FILE  read this instead of standard input\n"
"  -s SIZE  size in bytes, or with a K, M or G; default: as much as is read\n"
"  -n NAME  name the buffer, for debugfs and fdinfo\n"
"  -r       nobody can write to the buffer\n";

static void usage_error(const char *what)
{
	errx(2, "%s; 'udmabufctl --help' tells how it is used", what);
}

static size_t page_size(void)
{
	return sysconf(_SC_PAGESIZE);
}

static size_t round_up(size_t size)
{
	size_t page = page_size();

	return size > SIZE_MAX - page ? 0 : (size + page - 1) / page * page;
}

/*
 * info
 */

/* The parameter as text, or NULL: built-in or not, the module's name varies. */
static const char *parameter(const char *name)
{
	static char text[32];
	char pattern[64];
	glob_t found;
	FILE *file = NULL;

	snprintf(pattern, sizeof(pattern), "/sys/module/udmabuf*/parameters/%s", name);
	/* The one that was loaded last stands behind the one that is built in. */
	if (!glob(pattern, 0, NULL, &found)) {
		file = fopen(found.gl_pathv[found.gl_pathc - 1], "re");
		globfree(&found);
	}
	if (!file || !fgets(text, sizeof(text), file))
		text[0] = '\0';
	if (file)
		fclose(file);
	text[strcspn(text, "\n")] = '\0';
	return text[0] ? text : NULL;
}

static bool has_cap_ipc_lock(void)
{
	unsigned long long caps = 0;
	FILE *file = fopen("/proc/self/status", "re");
	char line[256];

	while (file && fgets(line, sizeof(line), file))
		sscanf(line, "CapEff: %llx", &caps);
	if (file)
		fclose(file);
	return caps & 1ULL << CAP_IPC_LOCK;
}

static void print_quota(void)
{
	struct rlimit limit;

	if (has_cap_ipc_lock())
		puts("quota           none (CAP_IPC_LOCK)");
	else if (getrlimit(RLIMIT_MEMLOCK, &limit) || limit.rlim_cur == RLIM_INFINITY)
		puts("quota           unlimited");
	else
		printf("quota           %llu KiB, for all processes of the user together\n",
		       (unsigned long long)limit.rlim_cur / 1024);
}

static void print_parameter(const char *name, const char *unit)
{
	const char *value = parameter(name);

	printf("%-15s %s %s\n", name, value ?: "unknown", value ? unit : "");
}

/* Mainline's driver does not know the call, ours says that there are no ranges. */
static const char *driver_name(int dev)
{
	struct udmabuf_create_iovec none = {};

	if (!ioctl(dev, UDMABUF_CREATE_IOVEC, &none))
		return "unknown";
	switch (errno) {
	case EINVAL:
		return "takes memory of processes, and memfds";
	case ENOTTY:
		return "mainline's, takes memfds only";
	default:
		return "unknown";
	}
}

static int info(int argc, char **argv)
{
	int dev = open(DEVICE, O_RDWR | O_CLOEXEC);

	if (argc > 1)
		errx(2, "'%s' is one argument too many", argv[1]);
	if (dev < 0 && errno == ENOENT)
		errx(1, "there is no %s: the driver is not loaded", DEVICE);
	if (dev < 0 && errno == EACCES)
		errx(1, "%s: only its owner and group (see ls -l) may open it", DEVICE);
	if (dev < 0)
		err(1, "%s", DEVICE);
	printf("driver          %s\n", driver_name(dev));
	print_parameter("list_limit", "entries");
	print_parameter("size_limit_mb", "MiB");
	print_quota();
	return 0;
}

/*
 * Making a buffer
 */

struct request {
	const char *file;
	const char *name;
	size_t size;		/* 0: as much as there is */
	bool rdonly;
};

static size_t parse_size(const char *text)
{
	static const char units[] = "KMG";
	unsigned long long size;
	unsigned int shift = 0;
	char *end;

	errno = 0;
	size = strtoull(text, &end, 0);
	if (*end && strchr(units, *end))
		shift = 10 * (strchr(units, *end++) - units + 1);
	if (errno || end == text || *end || *text == '-' || !size ||
	    size > (SIZE_MAX / 2) >> shift)
		errx(2, "'%s' is no size", text);
	return size << shift;
}

/* Reads until @memory is full or the file ends. */
static size_t fill(int fd, char *memory, size_t size)
{
	size_t done = 0;
	ssize_t n;

	do {
		n = read(fd, memory + done, size - done);
		if (n < 0)
			err(1, "read");
		done += n;
	} while (n && done < size);
	return done;
}

static char *new_memory(size_t size)
{
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		err(1, "%zu bytes of memory", size);
	return memory;
}

/* As much memory as there is to read, and how much of it that is in @size. */
static char *read_all(int fd, size_t *size)
{
	size_t room = 1 << 20, done = 0;
	char *memory = new_memory(room);

	while ((done += fill(fd, memory + done, room - done)) == room) {
		memory = mremap(memory, room, 2 * room, MREMAP_MAYMOVE);
		if (memory == MAP_FAILED)
			err(1, "%zu bytes of memory", 2 * room);
		room *= 2;
	}
	*size = done;
	return memory;
}

static char *read_input(const struct request *request, size_t *size)
{
	int fd = request->file ? open(request->file, O_RDONLY | O_CLOEXEC) : STDIN_FILENO;
	char *memory;

	if (fd < 0)
		err(1, "%s", request->file);
	*size = request->size;
	if (!*size)
		return read_all(fd, size);
	memory = new_memory(round_up(*size));
	fill(fd, memory, *size);
	return memory;
}

static int create(const struct request *request)
{
	struct udmabuf_create_iovec *args;
	int dev = open(DEVICE, O_RDWR | O_CLOEXEC), buffer;
	size_t size;
	char *memory;

	if (dev < 0)
		err(1, "%s", DEVICE);
	memory = read_input(request, &size);
	if (!size)
		errx(1, "nothing to make a buffer of: the input is empty and no size was given");
	args = calloc(1, sizeof(*args) + sizeof(args->iovs[0]));
	if (!args)
		err(1, "create");
	args->flags = UDMABUF_FLAGS_CLOEXEC | (request->rdonly ? UDMABUF_FLAGS_RDONLY : 0);
	args->niov = 1;
	args->iovs[0].base = (uintptr_t)memory;
	args->iovs[0].len = round_up(size);
	buffer = ioctl(dev, UDMABUF_CREATE_IOVEC, args);
	if (buffer < 0 && errno == ENOMEM && !has_cap_ipc_lock())
		errx(1, "no memory, or over the quota ('udmabufctl info' shows it)");
	if (buffer < 0)
		err(1, "a buffer of %zu bytes", size);
	if (request->name && ioctl(buffer, DMA_BUF_SET_NAME, request->name))
		err(1, "name '%s'", request->name);
	free(args);
	close(dev);
	return buffer;
}

static struct request parse_request(int argc, char **argv)
{
	struct request request = {};
	int option;

	while ((option = getopt(argc, argv, "+f:s:n:r")) != -1)
		switch (option) {
		case 'f':
			request.file = optarg;
			break;
		case 's':
			request.size = parse_size(optarg);
			break;
		case 'n':
			request.name = optarg;
			break;
		case 'r':
			request.rdonly = true;
			break;
		default:
			exit(2);
		}
	return request;
}

/*
 * run, send, receive
 */

static int run_with(int buffer, char **command)
{
	if (!command[0])
		usage_error("which command?");
	/* The copy stays open in the command, which the original does not. */
	if (buffer == BUFFER_FD ? fcntl(buffer, F_SETFD, 0) : dup2(buffer, BUFFER_FD) < 0)
		err(1, "file descriptor %d", BUFFER_FD);
	execvp(command[0], command);
	err(errno == ENOENT ? 127 : 126, "%s", command[0]);
}

static int run(int argc, char **argv)
{
	struct request request = parse_request(argc, argv);

	if (!argv[optind])
		usage_error("which command?");
	return run_with(create(&request), argv + optind);
}

static struct sockaddr_un address_of(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	if (!path)
		usage_error("which socket?");
	if (strlen(path) >= sizeof(address.sun_path))
		errx(2, "%s: too long for the name of a socket", path);
	strcpy(address.sun_path, path);
	return address;
}

static int new_socket(void)
{
	int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (sock < 0)
		err(1, "socket");
	return sock;
}

/* The message that takes a file descriptor across, in room that is the caller's. */
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

static int send_buffer(int argc, char **argv)
{
	struct request request = parse_request(argc, argv);
	struct sockaddr_un address = address_of(argv[optind]);
	int sock = new_socket(), buffer = create(&request), peer;
	struct parcel parcel = {};
	struct msghdr *msg = wrap(&parcel);
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(msg);

	if (bind(sock, (struct sockaddr *)&address, sizeof(address)) || listen(sock, 1))
		err(1, "%s", address.sun_path);
	peer = accept(sock, NULL, NULL);
	unlink(address.sun_path);
	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(buffer));
	memcpy(CMSG_DATA(cmsg), &buffer, sizeof(buffer));
	if (peer < 0 || sendmsg(peer, msg, MSG_NOSIGNAL) != 1)
		err(1, "%s", address.sun_path);
	return 0;
}

static int receive(int argc, char **argv)
{
	struct sockaddr_un address = address_of(argc > 1 ? argv[1] : NULL);
	struct parcel parcel = {};
	struct msghdr *msg = wrap(&parcel);
	int sock = new_socket(), buffer = -1;
	struct cmsghdr *cmsg;
	char **command = argv + 2;

	if (command[0] && !strcmp(command[0], "--"))
		command++;
	if (!command[0])
		usage_error("which command?");
	if (connect(sock, (struct sockaddr *)&address, sizeof(address)) ||
	    recvmsg(sock, msg, MSG_CMSG_CLOEXEC) < 0)
		err(1, "%s", address.sun_path);
	cmsg = CMSG_FIRSTHDR(msg);
	if (!cmsg || cmsg->cmsg_type != SCM_RIGHTS)
		errx(1, "%s: no buffer came", address.sun_path);
	memcpy(&buffer, CMSG_DATA(cmsg), sizeof(buffer));
	return run_with(buffer, command);
}

/*
 * cat
 */

static void cpu_access(int buffer, __u64 flags)
{
	struct dma_buf_sync sync = { .flags = DMA_BUF_SYNC_READ | flags };

	if (ioctl(buffer, DMA_BUF_IOCTL_SYNC, &sync))
		err(1, "descriptor %d is no dma-buf", buffer);
}

static int cat(int argc, char **argv)
{
	int buffer = BUFFER_FD;
	off_t size, done;
	ssize_t n;
	char *map, *end = "";

	if (argc > 1)
		buffer = strtol(argv[1], &end, 10);
	if (argc > 2 || *end)
		usage_error("that is no file descriptor");
	size = lseek(buffer, 0, SEEK_END);
	if (size < 0)
		err(1, "descriptor %d", buffer);
	cpu_access(buffer, DMA_BUF_SYNC_START);
	map = mmap(NULL, size, PROT_READ, MAP_SHARED, buffer, 0);
	if (map == MAP_FAILED)
		err(1, "descriptor %d", buffer);
	/* write() cannot take pages of it, but copies. */
	for (done = 0; done < size; done += n) {
		n = write(STDOUT_FILENO, map + done, size - done);
		if (n < 0)
			err(1, "write");
	}
	cpu_access(buffer, DMA_BUF_SYNC_END);
	return 0;
}

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
} commands[] = {
	{ "info", info },
	{ "run", run },
	{ "send", send_buffer },
	{ "receive", receive },
	{ "cat", cat },
	{}
};

int main(int argc, char **argv)
{
	size_t i;

	if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")))
		return fputs(usage_text, stdout) == EOF;
	for (i = 0; argc > 1 && commands[i].name; i++)
		if (!strcmp(argv[1], commands[i].name))
			return commands[i].run(argc - 1, argv + 1);
	fputs(usage_text, stderr);
	return 2;
}
