// SPDX-License-Identifier: GPL-2.0-only
/*
 * list: the dma-bufs of the system. /proc shows the buffers of processes that the caller
 * may inspect. A BPF iterator (Linux 6.16) shows root all buffers. debugfs shows root all
 * buffers and their attached devices.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "json.h"
#include "list.bpf.h"
#ifdef HAVE_BPF
#include "list.skel.h"
#endif
#include "udmabufctl.h"

#define BUFINFO	"/sys/kernel/debug/dma_buf/bufinfo"

struct holder {
	int pid;
	char comm[32];
	unsigned int fds;	/* open file descriptors */
	unsigned int maps;	/* mappings */
};

struct dmabuf {
	unsigned long long ino;
	unsigned long long size;	/* 0: unknown */
	char exporter[64];		/* empty: unknown */
	char name[64];
	struct holder *holders;
	size_t nholders;
	char **devices;
	size_t ndevices;
};

static struct dmabuf *dmabufs;
static size_t ndmabufs;
static bool all_known;		/* includes buffers that no process holds */
static bool devices_known;

/* Returns @array reallocated with a zeroed entry of @size bytes appended. */
static void *grow(void *array, size_t count, size_t size)
{
	array = realloc(array, (count + 1) * size);
	if (!array)
		err(1, "out of memory");
	memset((char *)array + count * size, 0, size);
	return array;
}

static struct dmabuf *find_dmabuf(unsigned long long ino)
{
	size_t i;

	for (i = 0; i < ndmabufs; i++)
		if (dmabufs[i].ino == ino)
			return &dmabufs[i];
	dmabufs = grow(dmabufs, ndmabufs, sizeof(*dmabufs));
	dmabufs[ndmabufs].ino = ino;
	return &dmabufs[ndmabufs++];
}

/* Copies one line. Names can have any bytes: replace bytes that a terminal interprets. */
static void set_text(char *to, size_t room, const char *from)
{
	snprintf(to, room, "%s", from);
	for (to[strcspn(to, "\n")] = '\0'; *to; to++)
		if (!isprint((unsigned char)*to))
			*to = '?';
}

static void read_comm(int pid, char *comm, size_t room)
{
	char *path = format("/proc/%d/comm", pid), line[64] = "?";
	FILE *file = fopen(path, "re");

	if (file && !fgets(line, sizeof(line), file))
		strcpy(line, "?");
	if (file)
		fclose(file);
	free(path);
	set_text(comm, room, line);
}

/* Called process by process: @pid is the last holder in the list, or new. */
static struct holder *find_holder(struct dmabuf *dmabuf, int pid)
{
	struct holder *holder = dmabuf->holders + dmabuf->nholders - 1;

	if (dmabuf->nholders && holder->pid == pid)
		return holder;
	dmabuf->holders = grow(dmabuf->holders, dmabuf->nholders, sizeof(*holder));
	holder = &dmabuf->holders[dmabuf->nholders++];
	holder->pid = pid;
	read_comm(pid, holder->comm, sizeof(holder->comm));
	return holder;
}

/* Stops at the name, the last field: a name with newlines could fake other fields. */
static void read_fdinfo(int pid, const char *fd)
{
	char *path = format("/proc/%d/fdinfo/%s", pid, fd), line[256];
	unsigned long long ino = 0, size = 0;
	char exporter[64] = "", name[64] = "";
	FILE *file = fopen(path, "re");
	struct dmabuf *dmabuf;

	free(path);
	while (file && !name[0] && fgets(line, sizeof(line), file)) {
		if (!strncmp(line, "ino:\t", 5))
			ino = strtoull(line + 5, NULL, 10);
		if (!strncmp(line, "size:\t", 6))
			size = strtoull(line + 6, NULL, 10);
		if (!strncmp(line, "exp_name:\t", 10))
			set_text(exporter, sizeof(exporter), line + 10);
		if (!strncmp(line, "name:\t", 6))
			set_text(name, sizeof(name), line + 6);
	}
	if (file)
		fclose(file);
	if (!exporter[0])
		return;
	dmabuf = find_dmabuf(ino);
	dmabuf->size = size;
	strcpy(dmabuf->exporter, exporter);
	strcpy(dmabuf->name, name);
	find_holder(dmabuf, pid)->fds++;
}

static void read_fds(int pid)
{
	char *path = format("/proc/%d/fd", pid);
	DIR *dir = opendir(path);
	struct dirent *entry;
	char target[16];

	free(path);
	while (dir && (entry = readdir(dir)))
		if (readlinkat(dirfd(dir), entry->d_name, target, sizeof(target)) >= 8 &&
		    !strncmp(target, "/dmabuf:", 8))
			read_fdinfo(pid, entry->d_name);
	if (dir)
		closedir(dir);
}

/* Finds mapped buffers, even without a file descriptor; the name is in the path. */
static void read_maps(int pid)
{
	char *path = format("/proc/%d/maps", pid), line[512];
	FILE *file = fopen(path, "re");
	unsigned long long ino;
	struct dmabuf *dmabuf;
	int start;

	free(path);
	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%*s %*s %*s %*s %llu %n", &ino, &start) != 1 ||
		    strncmp(line + start, "/dmabuf:", 8))
			continue;
		dmabuf = find_dmabuf(ino);
		if (!dmabuf->name[0])
			set_text(dmabuf->name, sizeof(dmabuf->name), line + start + 8);
		find_holder(dmabuf, pid)->maps++;
	}
	if (file)
		fclose(file);
}

static void read_processes(void)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	int pid;

	if (!proc)
		err(1, "cannot read /proc (is it mounted?)");
	while ((entry = readdir(proc))) {
		pid = atoi(entry->d_name);
		if (pid <= 0)
			continue;
		read_fds(pid);
		read_maps(pid);
	}
	closedir(proc);
}

/* Returns a file of struct list_record, or NULL. */
static FILE *iterate(void)
{
#ifdef HAVE_BPF
	struct list_bpf *bpf = list_bpf__open_and_load();
	union bpf_attr attr = {};
	int fd;

	if (!bpf || list_bpf__attach(bpf) < 0)
		return NULL;
	attr.iter_create.link_fd = bpf->links.list_dmabuf_fd;
	fd = skel_sys_bpf(BPF_ITER_CREATE, &attr, sizeof(attr));
	return fd < 0 ? NULL : fdopen(fd, "r");
#else
	return NULL;
#endif
}

static void read_iterator(void)
{
	FILE *file = iterate();
	struct list_record record;
	struct dmabuf *dmabuf;

	all_known = file;
	while (file && fread(&record, sizeof(record), 1, file)) {
		dmabuf = find_dmabuf(record.ino);
		dmabuf->size = record.size;
		set_text(dmabuf->exporter, sizeof(dmabuf->exporter), record.exporter);
		set_text(dmabuf->name, sizeof(dmabuf->name), record.name);
	}
	if (file)
		fclose(file);
}

/*
 * Parses a line about a buffer; returns NULL for other lines. The fields before the
 * exporter's name have at least 36 bytes, more than a buffer's name, so a name with
 * newlines cannot fake such a line.
 */
static struct dmabuf *parse_bufinfo(const char *line)
{
	unsigned long long size, ino;
	struct dmabuf *dmabuf;
	int start = 0, end = 0, name = 0;

	if (sscanf(line, "%llu\t%*x\t%*x\t%*d\t%n%*[^\t]%n\t%llu\t%n", &size, &start, &end, &ino,
		   &name) != 2 || start < 36 || !name)
		return NULL;
	dmabuf = find_dmabuf(ino);
	dmabuf->size = size;
	set_text(dmabuf->exporter, sizeof(dmabuf->exporter),
		 format("%.*s", end - start, line + start));
	if (strcmp(line + name, "<none>\n"))
		set_text(dmabuf->name, sizeof(dmabuf->name), line + name);
	return dmabuf;
}

static void add_device(struct dmabuf *dmabuf, const char *name)
{
	char text[64];

	set_text(text, sizeof(text), name);
	dmabuf->devices = grow(dmabuf->devices, dmabuf->ndevices, sizeof(*dmabuf->devices));
	dmabuf->devices[dmabuf->ndevices++] = format("%s", text);
}

static void read_bufinfo(void)
{
	FILE *file = fopen(BUFINFO, "re");
	struct dmabuf *dmabuf = NULL, *next;
	bool devices = false;
	char line[256];

	devices_known = file;
	while (file && fgets(line, sizeof(line), file)) {
		next = parse_bufinfo(line);
		if (next || !strncmp(line, "Total ", 6)) {
			dmabuf = next;
			devices = false;
		} else if (!strcmp(line, "\tAttached Devices:\n")) {
			devices = true;
		} else if (dmabuf && devices && line[0] == '\t') {
			add_device(dmabuf, line + 1);
		}
	}
	if (file)
		fclose(file);
}

static struct json_object *holder_json(const struct holder *holder)
{
	struct json_object *object = json_object_new_object();

	json_object_object_add(object, "pid", json_object_new_int64(holder->pid));
	json_object_object_add(object, "comm", json_object_new_string(holder->comm));
	json_object_object_add(object, "fds", json_object_new_int64(holder->fds));
	json_object_object_add(object, "maps", json_object_new_int64(holder->maps));
	return object;
}

static struct json_object *dmabuf_json(const struct dmabuf *dmabuf)
{
	struct json_object *object = json_object_new_object();
	struct json_object *holders = json_object_new_array();
	struct json_object *devices = devices_known ? json_object_new_array() : NULL;
	size_t i;

	for (i = 0; i < dmabuf->nholders; i++)
		json_object_array_add(holders, holder_json(&dmabuf->holders[i]));
	for (i = 0; i < dmabuf->ndevices; i++)
		json_object_array_add(devices, json_object_new_string(dmabuf->devices[i]));
	json_object_object_add(object, "ino", json_object_new_int64(dmabuf->ino));
	json_object_object_add(object, "size", dmabuf->size ?
			       json_object_new_int64(dmabuf->size) : NULL);
	json_object_object_add(object, "exporter", dmabuf->exporter[0] ?
			       json_object_new_string(dmabuf->exporter) : NULL);
	json_object_object_add(object, "name", dmabuf->name[0] ?
			       json_object_new_string(dmabuf->name) : NULL);
	json_object_object_add(object, "holders", holders);
	json_object_object_add(object, "devices", devices);
	return object;
}

static int list_json(void)
{
	struct json_object *array = json_object_new_array();
	size_t i;

	for (i = 0; i < ndmabufs; i++)
		json_object_array_add(array, dmabuf_json(&dmabufs[i]));
	return print_json(array);
}

static void print_dmabuf(const struct dmabuf *dmabuf)
{
	char *size = dmabuf->size ? format("%llu", dmabuf->size) : "-";
	size_t i;

	printf("%-8llu %12s %-12s %-16s ", dmabuf->ino, size,
	       dmabuf->exporter[0] ? dmabuf->exporter : "-",
	       dmabuf->name[0] ? dmabuf->name : "-");
	for (i = 0; i < dmabuf->nholders; i++)
		printf("%s%s[%d]", i ? "," : "", dmabuf->holders[i].comm, dmabuf->holders[i].pid);
	fputs(dmabuf->nholders ? " " : "- ", stdout);
	for (i = 0; i < dmabuf->ndevices; i++)
		printf("%s%s", i ? "," : "", dmabuf->devices[i]);
	puts(dmabuf->ndevices ? "" : devices_known ? "-" : "?");
}

int list(int argc, char **argv)
{
	bool json = json_wanted(argc, argv);
	size_t i;

	read_processes();
	read_iterator();
	read_bufinfo();
	if (!devices_known && geteuid())
		warnx("only the caller's buffers, without devices (as root: all)");
	else if (!devices_known)
		warnx("%swithout devices: cannot read %s: %s",
		      all_known ? "" : "only buffers of processes, ", BUFINFO,
		      explain("try: mount -t debugfs none /sys/kernel/debug", "%s",
			      strerror(errno)));
	if (json)
		return list_json();
	printf("%-8s %12s %-12s %-16s %s\n", "INO", "SIZE", "EXPORTER", "NAME",
	       "HOLDERS DEVICES");
	for (i = 0; i < ndmabufs; i++)
		print_dmabuf(&dmabufs[i]);
	return 0;
}
