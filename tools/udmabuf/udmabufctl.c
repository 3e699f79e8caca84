// SPDX-License-Identifier: GPL-2.0-only
/*
 * udmabufctl: inspect /dev/udmabuf, create test buffers and pass them on. See
 * udmabufctl.1. This file has the command table and the parsing of arguments.
 */
#define _GNU_SOURCE
#include <err.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "udmabufctl.h"

#define BUFFER_OPTIONS \
"\n" \
"The buffer contains what is read from standard input, rounded up to whole pages.\n" \
"\n" \
"  -f, --file FILE   read FILE instead of standard input\n" \
"  -s, --size SIZE   size in bytes or with suffix K, M, G or T (powers of 1024);\n" \
"                    default: the size of the input\n" \
"  -n, --name NAME   name the buffer in debugfs and fdinfo\n" \
"  -r, --rdonly      create a read-only buffer\n" \
"      --memfd       use a memfd instead of anonymous memory\n" \
"      --huge        use huge pages (hugetlb)\n" \
"      --scatter N   split the buffer into N ranges of memory\n"

#define JSON_OPTION \
"\n" \
"  -j, --json        print JSON\n"

static const struct command {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *arguments;
	const char *summary;
	const char *details;
} commands[] = {
	{ "info", info, "[--json]", "print the driver, its limits and the quota",
		JSON_OPTION },
	{ "doctor", doctor, "[--json]", "check the installation; say what to do",
		"\nThe exit status is 1 if a check failed.\n" JSON_OPTION },
	{ "list", list, "[--json]", "list the system's dma-bufs",
		"\nOther users' buffers, and attached devices, are visible to root only.\n"
		JSON_OPTION },
	{ "run", run, "[OPTION...] [--] COMMAND [ARGUMENT...]",
		"create a buffer; run COMMAND with it as file descriptor 3", BUFFER_OPTIONS },
	{ "send", send_buffer, "[OPTION...] SOCKET",
		"create a buffer; send it to the first client of SOCKET", BUFFER_OPTIONS },
	{ "receive", receive_buffer, "SOCKET [--] COMMAND [ARGUMENT...]",
		"receive a buffer; run COMMAND with it as file descriptor 3", "" },
	{ "cat", cat, "[FD]", "copy the buffer at FD (default 3) to standard output", "" },
	{ "write", write_buffer, "[FD]", "copy standard input to the buffer at FD (default 3)",
		"\nBytes of the buffer past the end of the input stay as they are.\n" },
};

static const struct command *current;	/* NULL: none yet */

char *format(const char *template, ...)
{
	va_list args;
	char *text;

	va_start(args, template);
	if (vasprintf(&text, template, args) < 0)
		err(1, "out of memory");
	va_end(args);
	return text;
}

char *explain(const char *todo, const char *reason, ...)
{
	va_list args;
	char *text;

	va_start(args, reason);
	if (vasprintf(&text, reason, args) < 0)
		err(1, "out of memory");
	va_end(args);
	return format("%s (%s)", text, todo);
}

void usage_error(const char *format, ...)
{
	va_list args;
	char *text;

	va_start(args, format);
	if (vasprintf(&text, format, args) < 0)
		text = NULL;
	va_end(args);
	errx(2, "%s (try: udmabufctl %s%s)", text ?: "invalid arguments",
	     current ? "help " : "--help", current ? current->name : "");
}

static int help_command(const struct command *command)
{
	return printf("usage: udmabufctl %s %s\n\n%s\n%s", command->name, command->arguments,
		      command->summary, command->details) < 0;
}

static const struct command *find_command(const char *name)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(commands); i++)
		if (!strcmp(name, commands[i].name))
			return &commands[i];
	usage_error("unknown command '%s'", name);
}

static int print_commands(void)
{
	size_t i;

	puts("usage: udmabufctl COMMAND [ARGUMENT...]\n"
	     "       udmabufctl help COMMAND\n"
	     "       udmabufctl --version\n");
	for (i = 0; i < ARRAY_SIZE(commands); i++)
		printf("  %-9s %s\n", commands[i].name, commands[i].summary);
	return 0;
}

static int help(int argc, char **argv)
{
	if (argc > 3)
		usage_error("unexpected argument '%s'", argv[3]);
	return argc > 2 ? help_command(find_command(argv[2])) : print_commands();
}

static int version(int argc, char **argv)
{
	if (argc > 2)
		usage_error("unexpected argument '%s'", argv[2]);
	return puts("udmabufctl " VERSION) == EOF;
}

int next_option(int argc, char **argv, const char *shorts, const struct option *longs)
{
	char letter[] = { '-', 0, 0 };
	const char *given;
	int option;

	opterr = 0;
	option = getopt_long(argc, argv, shorts, longs, NULL);
	given = argv[optind - 1];
	if (strncmp(given, "--", 2) && optopt) {
		letter[1] = optopt;
		given = letter;
	}
	switch (option) {
	case 'h':
		exit(help_command(current));
	case ':':
		usage_error("option '%s' needs an argument", given);
	case '?':
		usage_error("invalid option '%s'", given);
	default:
		return option;
	}
}

void no_more_arguments(char **argv)
{
	if (argv[optind])
		usage_error("unexpected argument '%s'", argv[optind]);
}

bool json_wanted(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{}
	};
	bool json = false;

	while (next_option(argc, argv, "+:jh", longs) != -1)
		json = true;
	no_more_arguments(argv);
#ifndef HAVE_JSON_C
	if (json)
		errx(1, "built without json-c, which --json needs %s",
		     "(install its header files, build again)");
#endif
	return json;
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : NULL;

	if (!name)
		usage_error("missing COMMAND");
	if (!strcmp(name, "--version") || !strcmp(name, "-V"))
		return version(argc, argv);
	if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help"))
		return help(argc, argv);
	if (*name == '-')
		usage_error("invalid option '%s'", name);
	current = find_command(name);
	return current->run(argc - 1, argv + 1);
}
