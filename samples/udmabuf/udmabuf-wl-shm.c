// SPDX-License-Identifier: GPL-2.0-only
/*
 * A Wayland proxy that exports its clients' wl_shm pools as dma-bufs and needs no
 * seals. It maps each pool, as a compositor does, and UDMABUF_CREATE makes a dma-buf
 * of the mapping. A wl_buffer at some offset of the pool becomes a wl_buffer at the same
 * offset of the dma-buf, by linux-dmabuf, in the compositor that the proxy talks to.
 *
 * The proxy's clients are its children, one for each kind of file. Each client draws a
 * picture, removes the memory from its file, fills the file again, and exits. After each
 * step the proxy compares the dma-buf and its own mapping with the picture, and prints
 * its findings as KIND_name=value.
 *
 * After "KIND STEP shown" the proxy waits for a line on stdin. With a kind as its
 * argument the program prints that picture as PPM. Mainline's driver cannot export the
 * pools, and the proxy shows no picture.
 */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/udmabuf.h>
#include <wayland-client.h>
#include <wayland-server.h>

#include "picture.h"
#include "window.h"

#define WIDTH		800
#define HEIGHT		600
#define PICTURE_BYTES	(WIDTH * HEIGHT * 4)
#define PICTURE_OFFSET	64000		/* in the middle of a page */
#define POOL_BYTES	(2 << 20)	/* a huge page */

#define ARRAY_SIZE(a)	(sizeof(a) / sizeof((a)[0]))

/* Steps of a client. */
enum step { DRAWN, REMOVED, REFILLED, GONE };

static const char * const step_names[] = { "drawn", "removed", "refilled", "gone" };

/* Kinds of files that a client may use for a pool. */
struct kind {
	const char *name, *says;
	int (*open)(const struct kind *kind);
	unsigned int flags;	/* of memfd_create() */
	int seals;
	bool read_only;		/* the client sends a descriptor open for reading only */
	bool too_short;		/* the file is shorter than the pool */
};

static int open_memfd(const struct kind *kind)
{
	return memfd_create(kind->name, MFD_CLOEXEC | kind->flags);
}

static int open_tmpfs(const struct kind *kind)
{
	char path[256];
	int fd;

	snprintf(path, sizeof(path), "%s/pool-XXXXXX", getenv("XDG_RUNTIME_DIR"));
	fd = mkostemp(path, O_CLOEXEC);
	if (fd >= 0)
		unlink(path);
	return fd;
}

static int open_shm(const struct kind *kind)
{
	int fd = shm_open("/udmabuf-pool", O_RDWR | O_CREAT | O_EXCL, 0600);

	if (fd >= 0)
		shm_unlink("/udmabuf-pool");
	return fd;
}

static const struct kind kinds[] = {
	{
		.name = "memfd",
		.says = "a memfd without seals,",
		.open = open_memfd,
		.flags = MFD_ALLOW_SEALING,
	}, {
		.name = "sealed",
		.says = "a memfd with F_SEAL_SEAL,",
		.open = open_memfd,
	}, {
		.name = "fixed",
		.says = "a memfd of a sealed size,",
		.open = open_memfd,
		.flags = MFD_ALLOW_SEALING,
		.seals = F_SEAL_GROW | F_SEAL_SHRINK,
	}, {
		.name = "tmpfs",
		.says = "an unlinked tmpfs file,",
		.open = open_tmpfs,
	}, {
		.name = "shm",
		.says = "POSIX shared memory,",
		.open = open_shm,
	}, {
		.name = "hugetlb",
		.says = "a memfd of a huge page,",
		.open = open_memfd,
		.flags = MFD_HUGETLB,
	}, {
		.name = "readonly",
		.says = "a memfd to be read only,",
		.open = open_memfd,
		.flags = MFD_ALLOW_SEALING,
		.read_only = true,
	}, {
		.name = "short",
		.says = "a memfd that is too short,",
		.open = open_memfd,
		.too_short = true,
	},
};

static void draw(__u32 *pixels, const struct kind *kind, bool print)
{
	const struct story story = {
		.program = "udmabuf-wl-shm",
		.lines = { {
			"A client's wl_shm pool:",
			kind->says,
			"mapped by a proxy, which",
			"exports its mapping.",
		} },
	};
	struct picture pic = {
		.width = WIDTH,
		.height = HEIGHT,
		.page = &pixels,
		.page_pixels = WIDTH * HEIGHT,
		.story = &story,
	};

	if (!print)
		picture_draw(&pic, 1);
	else if (picture_print(&pic, 1))
		err(1, "cannot print the picture");
}

/* The client */

struct client {
	struct wl_display *display;
	struct wl_shm *shm;
	struct wl_shm_pool *pool;
};

static void handle_global(void *data, struct wl_registry *registry, __u32 name,
			  const char *interface, __u32 version)
{
	struct client *client = data;

	if (!strcmp(interface, wl_shm_interface.name))
		client->shm = wl_registry_bind(registry, name, &wl_shm_interface, 1);
}

static void handle_global_remove(void *data, struct wl_registry *registry,
				 __u32 name)
{
}

static const struct wl_registry_listener registry_listener = {
	.global = handle_global,
	.global_remove = handle_global_remove,
};

/* Returns when the proxy has handled all requests. */
static void roundtrip(struct client *client)
{
	if (wl_display_roundtrip(client->display) < 0)
		err(1, "lost the proxy");
}

static void create_pool(struct client *client, int connection, int fd)
{
	struct wl_registry *registry;

	client->display = wl_display_connect_to_fd(connection);
	if (!client->display)
		err(1, "cannot connect to the proxy");
	registry = wl_display_get_registry(client->display);
	wl_registry_add_listener(registry, &registry_listener, client);
	roundtrip(client);
	client->pool = wl_shm_create_pool(client->shm, fd, POOL_BYTES);
	roundtrip(client);
}

static void create_buffer(struct client *client)
{
	wl_shm_pool_create_buffer(client->pool, PICTURE_OFFSET, WIDTH, HEIGHT,
				  WIDTH * 4, WL_SHM_FORMAT_XRGB8888);
	roundtrip(client);
}

static int reopen_read_only(int fd)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return open(path, O_RDONLY | O_CLOEXEC);
}

static void run_client(const struct kind *kind, int connection)
{
	struct client client = { 0 };
	int fd = kind->open(kind), theirs = fd;
	char *map;

	signal(SIGBUS, SIG_DFL);
	if (fd < 0 || ftruncate(fd, kind->too_short ? POOL_BYTES / 2 : POOL_BYTES))
		err(1, "%s: cannot create the pool's file", kind->name);
	if (kind->seals && fcntl(fd, F_ADD_SEALS, kind->seals))
		err(1, "%s: cannot seal the pool's file", kind->name);
	if (kind->read_only)
		theirs = reopen_read_only(fd);
	map = mmap(NULL, POOL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (theirs < 0 || map == MAP_FAILED)
		err(1, "%s: cannot map the pool's file", kind->name);

	create_pool(&client, connection, theirs);
	if (kind->too_short)
		exit(0);
	/* Draw after the export: a copy would not show these stores. */
	draw((__u32 *)(map + PICTURE_OFFSET), kind, false);
	create_buffer(&client);

	if (ftruncate(fd, 0) && fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					  0, POOL_BYTES))
		err(1, "%s: cannot remove the memory of the pool's file", kind->name);
	create_buffer(&client);

	if (ftruncate(fd, POOL_BYTES))
		err(1, "%s: cannot extend the pool's file", kind->name);
	memset(map, 0x5a, POOL_BYTES);
	create_buffer(&client);
	exit(0);
}

/* The proxy */

struct pool {
	const struct kind *kind;
	enum step step;
	int fd;
	size_t size;
	const char *map;	/* the file */
	int dmabuf;
	const char *shown;	/* the dma-buf, mapped */
	const char *drawn;	/* the picture */
	struct window *window;
};

static struct wl_display *server;
static int udmabuf;
static sigjmp_buf sigbus;

static void handle_sigbus(int sig)
{
	siglongjmp(sigbus, 1);
}

static const char *name_of(int error)
{
	return error ? strerrorname_np(error) : "0";
}

static void found(const struct pool *pool, const char *name, const char *value)
{
	printf("%s_%s=%s\n", pool->kind->name, name, value);
}

/* Makes one dma-buf of the whole pool. */
static int export_pool(const struct pool *pool, __u32 flags)
{
	size_t page_size = sysconf(_SC_PAGESIZE);
	struct udmabuf_create *create;
	int dmabuf;

	create = calloc(1, sizeof(*create) + sizeof(create->iovs[0]));
	if (!create)
		err(1, "out of memory");
	create->flags = UDMABUF_FLAGS_CLOEXEC | flags;
	create->niov = 1;
	create->iovs[0].base = (uintptr_t)pool->map;
	/* The mapping includes the whole last page. */
	create->iovs[0].len = (pool->size + page_size - 1) / page_size * page_size;
	dmabuf = ioctl(udmabuf, UDMABUF_CREATE, create);
	found(pool, "export", name_of(dmabuf < 0 ? errno : 0));
	free(create);
	return dmabuf;
}

/* As needed for mainline's driver: seal the client's file, which must be a memfd. */
static void export_memfd(const struct pool *pool)
{
	struct udmabuf_create_memfd create = {
		.memfd = pool->fd,
		.flags = UDMABUF_FLAGS_CLOEXEC,
		.size = pool->size,
	};
	int dmabuf;

	found(pool, "seal", name_of(fcntl(pool->fd, F_ADD_SEALS, F_SEAL_SHRINK) ? errno : 0));
	dmabuf = ioctl(udmabuf, UDMABUF_CREATE_MEMFD, &create);
	found(pool, "memfd", name_of(dmabuf < 0 ? errno : 0));
	if (dmabuf >= 0)
		close(dmabuf);
}

static void open_pool(struct pool *pool, int fd, size_t size)
{
	int prot = PROT_READ | PROT_WRITE;

	pool->fd = fd;
	pool->size = size;
	/* Importers map for reading and writing. */
	pool->map = mmap(NULL, size, prot, MAP_SHARED, fd, 0);
	if (pool->map == MAP_FAILED && errno == EACCES) {
		prot = PROT_READ;
		pool->map = mmap(NULL, size, prot, MAP_SHARED, fd, 0);
	}
	if (pool->map == MAP_FAILED)
		err(1, "%s: cannot map the pool", pool->kind->name);
	pool->dmabuf = export_pool(pool, prot & PROT_WRITE ? 0 : UDMABUF_FLAGS_RDONLY);
	if (pool->dmabuf < 0)	/* A real proxy would copy from the mapping. */
		return;
	pool->shown = mmap(NULL, size, prot, MAP_SHARED, pool->dmabuf, 0);
	if (pool->shown == MAP_FAILED)
		err(1, "%s: cannot map the dma-buf", pool->kind->name);
}

/* Returns 1 for a difference, -1 on SIGBUS: the client may have truncated the file. */
static int differs(const char *mapping, const char *drawn, size_t len)
{
	if (sigsetjmp(sigbus, 1))
		return -1;
	return !!memcmp(mapping, drawn, len);
}

/*
 * Prints numbers of pages: in the dma-buf pages that differ from the picture ("wrong");
 * in the proxy's mapping pages that differ ("other") and that raise SIGBUS ("lost").
 */
static void compare(const struct pool *pool)
{
	size_t page_size = sysconf(_SC_PAGESIZE), end = PICTURE_OFFSET + PICTURE_BYTES;
	unsigned int wrong = 0, other = 0, lost = 0;
	size_t at, len;

	for (at = PICTURE_OFFSET; at < end; at += len) {
		const char *drawn = pool->drawn + at - PICTURE_OFFSET;
		int differ;

		len = page_size - at % page_size;
		if (len > end - at)
			len = end - at;
		wrong += !!memcmp(pool->shown + at, drawn, len);
		differ = differs(pool->map + at, drawn, len);
		lost += differ < 0;
		other += differ > 0;
	}
	printf("%s_%s=wrong %u other %u lost %u\n", pool->kind->name,
	       step_names[pool->step], wrong, other, lost);
}

/* Has the compositor draw from the dma-buf, and waits for a line on stdin. */
static void show(const struct pool *pool)
{
	struct window *win = pool->window;
	char line[16];
	struct stat st;

	if (!win->display) {
		window_connect(win);
		window_open(win);
	}
	if (pool->step == DRAWN)
		window_import(win, pool->dmabuf, PICTURE_OFFSET, WIDTH, HEIGHT);
	window_commit(win);
	if (fstat(pool->dmabuf, &st))
		err(1, "fstat");
	printf("inode=%lu\n%s %s shown\n", (unsigned long)st.st_ino, pool->kind->name,
	       step_names[pool->step]);
	window_wait_for_input(win);
	if (!fgets(line, sizeof(line), stdin))
		errx(1, "%s: end of file on stdin, expected a line", pool->kind->name);
}

static void destroy_resource(struct wl_client *client, struct wl_resource *resource)
{
	wl_resource_destroy(resource);
}

static const struct wl_buffer_interface buffer_interface = {
	.destroy = destroy_resource,
};

static void handle_create_buffer(struct wl_client *client, struct wl_resource *resource,
				 __u32 id, __s32 offset, __s32 width, __s32 height,
				 __s32 stride, __u32 format)
{
	struct pool *pool = wl_resource_get_user_data(resource);
	struct wl_resource *buffer;

	if (offset != PICTURE_OFFSET || width != WIDTH || height != HEIGHT ||
	    stride != WIDTH * 4 || format != WL_SHM_FORMAT_XRGB8888) {
		wl_resource_post_error(resource, WL_SHM_ERROR_INVALID_STRIDE,
				       "only this program's size, offset and format are supported");
		return;
	}
	buffer = wl_resource_create(client, &wl_buffer_interface, 1, id);
	if (!buffer) {
		wl_client_post_no_memory(client);
		return;
	}
	wl_resource_set_implementation(buffer, &buffer_interface, NULL, NULL);
	if (pool->dmabuf >= 0) {
		compare(pool);
		if (pool->step == DRAWN)
			show(pool);
	}
	pool->step++;
}

static void handle_resize(struct wl_client *client, struct wl_resource *resource,
			  __s32 size)
{
	wl_resource_post_error(resource, WL_SHM_ERROR_INVALID_FD, "resizing is not supported");
}

static const struct wl_shm_pool_interface pool_interface = {
	.create_buffer = handle_create_buffer,
	.destroy = destroy_resource,
	.resize = handle_resize,
};

static void handle_create_pool(struct wl_client *client, struct wl_resource *resource,
			       __u32 id, __s32 fd, __s32 size)
{
	struct pool *pool = wl_resource_get_user_data(resource);
	struct wl_resource *new;

	new = wl_resource_create(client, &wl_shm_pool_interface, 1, id);
	if (!new) {
		wl_client_post_no_memory(client);
		close(fd);
		return;
	}
	wl_resource_set_implementation(new, &pool_interface, pool, NULL);
	open_pool(pool, fd, size);
}

static const struct wl_shm_interface shm_interface = {
	.create_pool = handle_create_pool,
};

static void handle_bind(struct wl_client *client, void *data, __u32 version, __u32 id)
{
	struct wl_resource *resource;

	resource = wl_resource_create(client, &wl_shm_interface, version, id);
	if (resource)
		wl_resource_set_implementation(resource, &shm_interface, data, NULL);
	else
		wl_client_post_no_memory(client);
}

static void handle_client_gone(struct wl_listener *listener, void *data)
{
	wl_display_terminate(server);
}

/* Serves one client until it has exited. */
static void serve(struct pool *pool)
{
	struct wl_listener gone = { .notify = handle_client_gone };
	struct wl_global *shm;
	struct wl_client *client;
	int connection[2], status;
	pid_t child;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, connection))
		err(1, "socketpair");
	child = fork();
	if (child < 0)
		err(1, "fork");
	if (!child) {
		close(connection[0]);
		run_client(pool->kind, connection[1]);
	}
	close(connection[1]);

	shm = wl_global_create(server, &wl_shm_interface, 1, pool, handle_bind);
	client = wl_client_create(server, connection[0]);
	if (!shm || !client)
		err(1, "%s: cannot create a connection to the client", pool->kind->name);
	wl_client_add_destroy_listener(client, &gone);
	wl_display_run(server);
	wl_global_destroy(shm);
	if (waitpid(child, &status, 0) != child || status)
		errx(1, "%s: the client failed", pool->kind->name);
}

static void run(const struct kind *kind, struct window *window, char *drawn)
{
	struct pool pool = { .kind = kind, .window = window, .drawn = drawn, .dmabuf = -1 };

	draw((__u32 *)drawn, kind, false);
	serve(&pool);
	export_memfd(&pool);
	pool.step = GONE;
	if (pool.dmabuf >= 0)
		compare(&pool);
	/* The dma-buf does not need the mapping. */
	munmap((void *)pool.map, pool.size);
	close(pool.fd);
	if (pool.dmabuf >= 0) {
		show(&pool);
		munmap((void *)pool.shown, pool.size);
		close(pool.dmabuf);
	}
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = handle_sigbus };
	struct window window = { 0 };
	char *drawn = malloc(PICTURE_BYTES);
	unsigned int i;

	for (i = 0; argc == 2 && i < ARRAY_SIZE(kinds); i++)
		if (!strcmp(argv[1], kinds[i].name))
			draw(NULL, &kinds[i], true);
	if (argc > 1)
		return 0;

	setvbuf(stdout, NULL, _IOLBF, 0);
	udmabuf = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);
	if (udmabuf < 0)
		err(1, "cannot open /dev/udmabuf");
	server = wl_display_create();
	if (!server || !drawn)
		err(1, "out of memory");
	sigaction(SIGBUS, &action, NULL);
	for (i = 0; i < ARRAY_SIZE(kinds); i++)
		run(&kinds[i], &window, drawn);
	return 0;
}
