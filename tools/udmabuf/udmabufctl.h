/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef UDMABUFCTL_H
#define UDMABUFCTL_H

#include <getopt.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdnoreturn.h>

#include "linux/udmabuf.h"

#define __printf(a, b)		__attribute((format(printf, a, b)))
#define ARRAY_SIZE(array)	(sizeof(array) / sizeof((array)[0]))

/* udmabufctl.c */

/* Exits with 2; names the command whose help to read. */
__printf(1, 2) noreturn void usage_error(const char *format, ...);
/* getopt_long() with this program's messages; --help prints the command's help. */
int next_option(int argc, char **argv, const char *shorts, const struct option *longs);
void no_more_arguments(char **argv);
/* For a command whose only option is --json: whether it was given. */
bool json_wanted(int argc, char **argv);
/* Like asprintf(); exits without memory. */
__printf(1, 2) char *format(const char *template, ...);
/* "REASON (TODO)" */
__printf(2, 3) char *explain(const char *todo, const char *reason, ...);

/* device.c */

#define SEE_DEVICE	"see ls -l, and the environment variable UDMABUF_DEVICE"
#define RAISE_FILES	"raise the limit: ulimit -n"
#define RAISE_QUOTA	"raise it: ulimit -l, memlock in limits.conf, LimitMEMLOCK= of systemd"

enum driver { DRIVER_UNKNOWN, DRIVER_UDMABUF, DRIVER_MAINLINE };

struct quota {
	enum { QUOTA_LIMITED, QUOTA_UNLIMITED, QUOTA_EXEMPT, QUOTA_UNUSED } kind;
	bool used_known;		/* if not, enough is left for the largest buffer */
	unsigned long long limit;	/* bytes */
	unsigned long long used;
};

const char *device_path(void);
/* Exits with an explanation if the device cannot be opened. */
int open_device(void);
enum driver which_driver(int dev);
/* The parameter of that driver's module, or -1. */
long long parameter(enum driver driver, const char *name);
struct quota read_quota(int dev);
char *quota_text(const struct quota *quota);
int create_iovec(int dev, unsigned int flags, const struct udmabuf_iovec *iovs,
		 unsigned int niov);
size_t page_size(void);
int info(int argc, char **argv);

/* doctor.c */

/* What prevents open() of the device, and what to do; @error is its errno. */
char *why_not_open(int error);
int doctor(int argc, char **argv);

/* list.c */

int list(int argc, char **argv);

/* buffer.c */

struct request {
	const char *file;	/* NULL: standard input */
	const char *name;
	size_t size;		/* 0: as much as is read */
	unsigned int pieces;	/* entries of the list */
	bool rdonly;
	bool memfd;
	bool huge;
};

struct request parse_request(int argc, char **argv);
/* Returns a dma-buf that is closed on exec; exits on failure. */
int create_buffer(const struct request *request);
/* Reads until @memory is full or the file ends. @name is for the message. */
size_t fill(int fd, const char *name, char *memory, size_t size);

/* pass.c */

int run(int argc, char **argv);
int send_buffer(int argc, char **argv);
int receive_buffer(int argc, char **argv);
int cat(int argc, char **argv);
int write_buffer(int argc, char **argv);

#endif
