/* SPDX-License-Identifier: GPL-2.0-only */
/* json-c, or without it stubs that are never called. */
#ifndef UDMABUFCTL_JSON_H
#define UDMABUFCTL_JSON_H

#include <stdbool.h>
#include <stdint.h>

#ifdef HAVE_JSON_C
#include <json-c/json.h>
#else
struct json_object;
#define json_object_new_object()		((struct json_object *)NULL)
#define json_object_new_array()			((struct json_object *)NULL)
#define json_object_new_string(s)		((void)(s), (struct json_object *)NULL)
#define json_object_new_int64(n)		((void)(n), (struct json_object *)NULL)
#define json_object_new_boolean(b)		((void)(b), (struct json_object *)NULL)
#define json_object_object_add(o, key, value)	((void)(o), (void)(key), (void)(value))
#define json_object_array_add(o, value)		((void)(o), (void)(value))
#define json_object_to_json_string_ext(o, f)	((void)(o), (void)(f), "")
#define JSON_C_TO_STRING_PRETTY			0
#define JSON_C_TO_STRING_NOSLASHESCAPE		0
#endif

/* Not called without json-c: json_wanted() refuses --json. */
static inline int print_json(struct json_object *object)
{
	return puts(json_object_to_json_string_ext(object, JSON_C_TO_STRING_PRETTY |
						   JSON_C_TO_STRING_NOSLASHESCAPE)) == EOF;
}

#endif
