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

/* Prints a message that refers to the current command's help, and exits with 2. */
__printf(1, 2) noreturn void usage_error(const char *format, ...);
/* getopt_long() with this program's messages; --help prints the command's help. */
int next_option(int argc, char **argv, const char *shorts, const struct option *longs);
void no_more_arguments(char **argv);
/* Parses the arguments of a command that has only the option --json; whether given. */
bool json_wanted(int argc, char **argv);
/* Like asprintf(); exits if out of memory. */
__printf(1, 2) char *format(const char *template, ...);
/* Returns "REASON (TODO)". */
__printf(2, 3) char *explain(const char *todo, const char *reason, ...);

/* device.c */

#define SEE_DEVICE	"see ls -l, and the environment variable UDMABUF_DEVICE"
#define RAISE_FILES	"raise the limit: ulimit -n"
#define RAISE_QUOTA	"raise it: ulimit -l, memlock in limits.conf, LimitMEMLOCK= of systemd"

enum driver { DRIVER_UNKNOWN, DRIVER_UDMABUF, DRIVER_MAINLINE };

struct quota {
	enum { QUOTA_LIMITED, QUOTA_UNLIMITED, QUOTA_EXEMPT, QUOTA_UNUSED } kind;
	bool used_known;		/* if false, enough is left for the largest buffer */
	unsigned long long limit;	/* bytes */
	unsigned long long used;
};

const char *device_path(void);
/* Exits with the reason and the remedy if the device cannot be opened. */
int open_device(void);
enum driver which_driver(int dev);
/* Returns the value of a parameter of @driver's module, or -1 if unknown. */
long long parameter(enum driver driver, const char *name);
struct quota read_quota(int dev);
char *quota_text(const struct quota *quota);
int create_iovec(int dev, unsigned int flags, const struct udmabuf_iovec *iovs,
		 unsigned int niov);
size_t page_size(void);
int info(int argc, char **argv);

/* doctor.c */

/* Explains @error, the errno of opening the device, with the remedy. */
char *why_not_open(int error);
int doctor(int argc, char **argv);

/* list.c */

int list(int argc, char **argv);

/* buffer.c */

struct request {
	const char *file;	/* NULL: standard input */
	const char *name;
	size_t size;		/* 0: the size of the input */
	unsigned int pieces;	/* entries of the list */
	bool rdonly;
	bool memfd;
	bool huge;
};

struct request parse_request(int argc, char **argv);
/* Returns a dma-buf that is closed on exec; exits on failure. */
int create_buffer(const struct request *request);
/* Reads up to @size bytes until end of file; returns their number. @name: for messages. */
size_t fill(int fd, const char *name, char *memory, size_t size);

/* pass.c */

int run(int argc, char **argv);
int send_buffer(int argc, char **argv);
int receive_buffer(int argc, char **argv);
int cat(int argc, char **argv);
int write_buffer(int argc, char **argv);

#endif
