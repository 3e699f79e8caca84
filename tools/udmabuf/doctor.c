// SPDX-License-Identifier: GPL-2.0-only
/* Diagnosis: the reason why the device does not work, and the remedy. */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "json.h"
#include "udmabufctl.h"

#define BLACKLIST	"initcall_blacklist=udmabuf_dev_init"
#define DEFAULT_GRUB	"add " BLACKLIST " to GRUB_CMDLINE_LINUX in /etc/default/grub, run: "
#define UBOOT		"/etc/default/u-boot"
#define UDEV_RULE	"KERNEL==\"udmabuf\", GROUP=\"kvm\", MODE=\"0660\""
#define OWN_SEAT	"or use a session at the machine's own seat"
#define GRUBBY		"run: grubby --update-kernel=ALL --args=" BLACKLIST ", reboot"

static const char *release(void)
{
	static char text[65];
	FILE *file;

	if (text[0])
		return text;
	file = fopen("/proc/sys/kernel/osrelease", "re");
	if (!file || fscanf(file, "%64s", text) != 1)
		strcpy(text, "(unknown)");
	if (file)
		fclose(file);
	return text;
}

static bool kernel_too_old(void)
{
	unsigned int major = 0, minor = 0;

	if (sscanf(release(), "%u.%u", &major, &minor) != 2)
		return false;
	return major < 6 || (major == 6 && minor < 1);
}

static bool file_has(const char *path, const char *text)
{
	FILE *file = fopen(path, "re");
	size_t room = 0;
	char *line = NULL;
	bool found = false;

	while (file && !found && getline(&line, &room, file) > 0)
		found = strstr(line, text);
	if (file)
		fclose(file);
	free(line);
	return found;
}

/* Whether a module list of the running kernel has @module; NixOS has it in another place. */
static bool listed(const char *list, const char *module)
{
	return file_has(format("/lib/modules/%s/%s", release(), list), module) ||
		file_has(format("/run/booted-system/kernel-modules/lib/modules/%s/%s", release(),
				list), module);
}

static bool built_in(void)
{
	return listed("modules.builtin", "/udmabuf.ko");
}

/* Returns the name of the module installed for the running kernel, or NULL. */
static const char *installed_module(void)
{
	if (listed("modules.dep", "/udmabuf_ext.ko"))
		return "udmabuf_ext";
	return listed("modules.dep", "/udmabuf.ko") ? "udmabuf" : NULL;
}

static const char *loaded_module(void)
{
	if (!access("/sys/module/udmabuf_ext/initstate", F_OK))
		return "udmabuf_ext";
	return access("/sys/module/udmabuf/initstate", F_OK) ? NULL : "udmabuf";
}

/* Whether the kernel was booted with @parameter=...,@value,... */
static bool booted_with(const char *parameter, const char *value)
{
	size_t length = strlen(parameter);
	char line[4096] = "", *word, *item, *words = line;
	FILE *file = fopen("/proc/cmdline", "re");

	if (file && !fgets(line, sizeof(line), file))
		line[0] = '\0';
	if (file)
		fclose(file);
	while ((word = strsep(&words, "\n "))) {
		if (strncmp(word, parameter, length) || word[length] != '=')
			continue;
		word += length + 1;
		while ((item = strsep(&word, ",")))
			if (!strcmp(item, value))
				return true;
	}
	return false;
}

static bool disabled(void)
{
	return booted_with("initcall_blacklist", "udmabuf_dev_init");
}

static bool configuration_blacklists(const char *path, const char *module)
{
	FILE *file = fopen(path, "re");
	char line[256], word[16], name[64];
	bool found = false;

	while (file && !found && fgets(line, sizeof(line), file))
		found = sscanf(line, " %15s %63s", word, name) == 2 && !strcmp(name, module) &&
			(!strcmp(word, "blacklist") || !strcmp(word, "install"));
	if (file)
		fclose(file);
	return found;
}

/* Returns the file or boot parameter that blacklists @module, or NULL. */
static char *blacklisted_by(const char *module)
{
	static const char * const parameters[] = { "module_blacklist", "modprobe.blacklist" };
	char *path = NULL;
	glob_t found;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(parameters); i++)
		if (booted_with(parameters[i], module))
			return format("the boot parameter %s=", parameters[i]);
	glob("/usr/lib/modprobe.d/*.conf", 0, NULL, &found);
	glob("/lib/modprobe.d/*.conf", GLOB_APPEND, NULL, &found);
	glob("/run/modprobe.d/*.conf", GLOB_APPEND, NULL, &found);
	glob("/etc/modprobe.d/*.conf", GLOB_APPEND, NULL, &found);
	for (i = 0; i < found.gl_pathc && !path; i++)
		if (configuration_blacklists(found.gl_pathv[i], module))
			path = format("%s", found.gl_pathv[i]);
	globfree(&found);
	return path;
}

/* Returns the first path that matches a shell pattern, or NULL. */
static const char *first_match(const char *pattern)
{
	glob_t found;	/* kept: the result points into it */

	return glob(pattern, 0, NULL, &found) ? NULL : found.gl_pathv[0];
}

static bool exists(const char *pattern)
{
	return first_match(pattern);
}

static bool secure_boot(void)
{
	const char *path = first_match("/sys/firmware/efi/efivars/SecureBoot-*");
	char bytes[5] = {};
	FILE *file = path ? fopen(path, "re") : NULL;

	if (file && fread(bytes, 1, sizeof(bytes), file) != sizeof(bytes))
		bytes[4] = 0;
	if (file)
		fclose(file);
	return bytes[4] == 1;
}

/* Whether the kernel refuses unsigned modules; under Secure Boot some accept them. */
static bool signature_needed(void)
{
	if (file_has("/sys/module/module/parameters/sig_enforce", "Y"))
		return true;
	if (exists("/sys/kernel/security/lockdown"))
		return !file_has("/sys/kernel/security/lockdown", "[none]");
	return secure_boot();
}

/* Whether a file that matches @pattern contains the boot parameter. */
static bool configured(const char *pattern)
{
	bool found = false;
	glob_t files;
	size_t i;

	if (glob(pattern, 0, NULL, &files))
		return false;
	for (i = 0; i < files.gl_pathc && !found; i++)
		found = file_has(files.gl_pathv[i], BLACKLIST);
	globfree(&files);
	return found;
}

/* For systemd-boot. Not kernel-install add-all, which only systemd 256 or later has. */
static char *how_to_kernel_install(void)
{
	char *image = format("/lib/modules/%s/vmlinuz", release());

	if (!exists(image))
		image = format("/boot/vmlinuz-%s", release());
	return format("add " BLACKLIST
		      " to /etc/kernel/cmdline, run: kernel-install add %s %s, reboot",
		      release(), image);
}

/* Returns how to make this machine's boot loader pass the parameter. */
static const char *how_to_disable(void)
{
	static const char * const configurations[] = {
		"/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/boot/loader/entries/*.conf",
		"/efi/loader/entries/*.conf", "/boot/efi/loader/entries/*.conf",
		"/boot/extlinux/extlinux.conf", "/boot/firmware/cmdline.txt",
	};
	static const struct {
		const char *path;
		const char *todo;	/* NULL: kernel-install */
	} loaders[] = {
		{ "/etc/NIXOS", "add \"" BLACKLIST
			"\" to boot.kernelParams, run: nixos-rebuild boot, reboot" },
		{ "/usr/bin/grubby", GRUBBY },
		{ "/usr/sbin/grubby", GRUBBY },
		{ "/usr/sbin/update-grub", DEFAULT_GRUB "update-grub, reboot" },
		{ "/usr/sbin/grub2-mkconfig", DEFAULT_GRUB
			"grub2-mkconfig -o /boot/grub2/grub.cfg, reboot" },
		{ "/etc/default/grub", DEFAULT_GRUB
			"grub-mkconfig -o /boot/grub/grub.cfg, reboot" },
		{ "/etc/kernel/cmdline", NULL },
		{ "/boot/loader/entries", "add " BLACKLIST
			" to the options line in /boot/loader/entries/*.conf, reboot" },
		{ "/efi/loader/entries", "add " BLACKLIST
			" to the options line in /efi/loader/entries/*.conf, reboot" },
		{ "/boot/efi/loader/entries", "add " BLACKLIST
			" to the options line in /boot/efi/loader/entries/*.conf, reboot" },
		{ UBOOT, "add " BLACKLIST " to U_BOOT_PARAMETERS in " UBOOT
			", run: u-boot-update, reboot" },
		{ "/boot/firmware/cmdline.txt", "add " BLACKLIST
			" to the line in /boot/firmware/cmdline.txt, reboot" },
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(configurations); i++)
		if (configured(configurations[i]))
			return "reboot";
	for (i = 0; i < ARRAY_SIZE(loaders); i++)
		if (exists(loaders[i].path))
			return loaders[i].todo ?: how_to_kernel_install();
	return "have the boot loader pass " BLACKLIST " to the kernel, reboot";
}

/* Returns the certificate of the key that signs modules built here, or NULL. */
static const char *certificate(void)
{
	return first_match("/var/lib/shim-signed/mok/MOK.der") ?:
		first_match("/var/lib/dkms/mok.pub") ?:
		first_match("/etc/pki/akmods/certs/public_key.der");
}

static const char *how_to_enroll(void)
{
	const char *key = certificate();

	if (!key)
		return "install openssl and build it again: DKMS then makes a key";
	return format("enroll its key: mokutil --import %s, reboot, choose Enroll MOK", key);
}

/* Returns the number of bytes read; 0 if the file does not fit in @room or on error. */
static size_t read_file(const char *path, char *bytes, size_t room)
{
	FILE *file = path ? fopen(path, "re") : NULL;
	size_t size = file ? fread(bytes, 1, room, file) : 0;

	if (file)
		fclose(file);
	return size < room ? size : 0;
}

/* Whether the list of Machine Owner Keys that shim exports has the key. */
static bool enrolled(void)
{
	static char keys[1 << 16], key[1 << 13];
	size_t size = read_file(certificate(), key, sizeof(key));
	size_t total = read_file(first_match("/sys/firmware/efi/efivars/MokListRT-*"), keys,
				 sizeof(keys));

	return size && memmem(keys, total, key, size);
}

static char *how_to_build(void)
{
	const char *headers = exists(format("/lib/modules/%s/build", release())) ? "" :
		"install this kernel's headers, then ";

	if (exists("/etc/NIXOS"))
		return format("add the module to boot.extraModulePackages, run: %s",
			      "nixos-rebuild boot, reboot");
	if (exists("/usr/src/udmabuf-*"))
		return format("%srun: dkms autoinstall", headers);
	return format("%sin the source of udmabuf run: make install", headers);
}

static char *why_not_loaded(const char *module)
{
	char *todo = format("try: modprobe %s; if that fails, see dmesg", module);
	char *blacklist = blacklisted_by(module);

	if (signature_needed() && !enrolled())
		todo = format("try: modprobe %s; if the key is rejected, %s", module,
			      how_to_enroll());
	if (!blacklist)
		return explain(todo, "module %s not loaded", module);
	return explain(format("remove that, then: modprobe %s", module),
		       "module %s not loaded: blacklisted by %s", module, blacklist);
}

static char *why_no_device(void)
{
	const char *module = loaded_module();

	if (kernel_too_old())
		return explain("the module needs 6.1 or later", "Linux %s is too old", release());
	if (module)
		return explain("see dmesg; a container must be given the device",
			       "module %s is loaded, but the device is missing", module);
	module = installed_module();
	if (module)
		return why_not_loaded(module);
	if (disabled())
		return explain(how_to_build(),
			       "no module for Linux %s, built-in driver disabled by %s",
			       release(), BLACKLIST);
	return explain(how_to_build(), "no module for Linux %s", release());
}

/* Not getgrgid(): a static program would need the shared C library for it. */
static char *group_name(gid_t gid)
{
	FILE *file = fopen("/etc/group", "re");
	struct group *group = NULL;
	char *name;

	while (file && (group = fgetgrent(file)) && group->gr_gid != gid)
		;
	name = group ? format("%s", group->gr_name) : format("%u", gid);
	if (file)
		fclose(file);
	return name;
}

static char *who_may_open(void)
{
	struct stat node;
	char *group;

	if (stat(device_path(), &node))
		return format("%s (%s)", strerror(EACCES), strerror(errno));
	if (!node.st_gid || (node.st_mode & 0060) != 0060)
		return explain("become root, or add the udev rule " UDEV_RULE,
			       "%s: mode %03o, for its owner only", strerror(EACCES),
			       node.st_mode & 0777);
	group = group_name(node.st_gid);
	return explain(format("add the user: usermod -aG %s USER, log in again; " OWN_SEAT,
			      group), "%s: only for group %s", strerror(EACCES), group);
}

char *why_not_open(int error)
{
	switch (error) {
	case ENOENT:
	case ENODEV:
	case ENXIO:
		return why_no_device();
	case EACCES:
		return who_may_open();
	case EPERM:
		return explain("allow it: DeviceAllow= of systemd, --device of podman and docker",
			       "%s: the service or container may not open this device",
			       strerror(error));
	case EMFILE:
		return explain(RAISE_FILES, "%s", strerror(error));
	default:
		return format("%s", strerror(error));
	}
}

/*
 * doctor: prints a line for each check
 */

static struct json_object *results;	/* NULL: text */
static bool failed;

static void report(const char *check, bool ok, const char *text)
{
	struct json_object *object;

	failed |= !ok;
	if (!results) {
		printf("%-6s %-12s %s\n", ok ? "ok" : "FAILED", check, text);
		return;
	}
	object = json_object_new_object();
	json_object_object_add(object, "check", json_object_new_string(check));
	json_object_object_add(object, "ok", json_object_new_boolean(ok));
	json_object_object_add(object, "text", json_object_new_string(text));
	json_object_array_add(results, object);
}

static void check_device(int error)
{
	bool denied = error == EACCES || error == EPERM;
	struct stat node;

	if (!error || denied)
		report("device", true, device_path());
	else if (error == ENOENT && !loaded_module())
		report("device", false, explain("see the line \"module\"", "no %s", device_path()));
	else
		report("device", false, format("%s: %s", device_path(), why_not_open(error)));
	if (denied)
		report("permissions", false, why_not_open(error));
	else if (!error && !stat(device_path(), &node))
		report("permissions", true, format("mode %03o, group %s", node.st_mode & 0777,
						   group_name(node.st_gid)));
}

/*
 * Returns how to use the module's device next to mainline's driver, or how to load the
 * module; "" without a module.
 */
static const char *beside_mainline(void)
{
	char name[64] = "";

	if (read_file("/sys/module/udmabuf_ext/parameters/name", name, sizeof(name))) {
		name[strcspn(name, "\n")] = '\0';
		return format("; or set UDMABUF_DEVICE=/dev/%s, which module udmabuf_ext serves",
			      name);
	}
	if (!listed("modules.dep", "/udmabuf_ext.ko") || loaded_module())
		return "";
	return "; to try the module first: modprobe udmabuf_ext name=udmabuf-try";
}

static void check_driver(enum driver driver)
{
	switch (driver) {
	case DRIVER_UDMABUF:
		report("driver", true, "supports process memory and memfds");
		break;
	case DRIVER_MAINLINE:
		report("driver", false, explain(format("see below: boot%s", beside_mainline()),
						"mainline's, supports memfds only"));
		break;
	default:
		report("driver", false, "unknown, not a udmabuf device (" SEE_DEVICE ")");
	}
}

static void check_module(enum driver driver)
{
	const char *installed = installed_module(), *loaded = loaded_module();

	if (installed && loaded)
		report("module", true,
		       format("%s is installed for Linux %s, and loaded", installed, release()));
	else if (driver == DRIVER_UDMABUF && !loaded)
		report("module", true, "built into the kernel");
	else if (installed && driver == DRIVER_MAINLINE)
		report("module", true,
		       format("%s is installed for Linux %s", installed, release()));
	else if (installed)
		report("module", false, why_not_loaded(installed));
	else if (loaded)
		report("module", true,
		       format("%s is loaded, but not installed for the next boot", loaded));
	else
		report("module", false, explain(how_to_build(), "none for Linux %s", release()));
}

/* Checks for mainline's driver, and for the boot parameter that disables it. */
static void check_boot(enum driver driver)
{
	bool builtin = built_in() && (driver != DRIVER_UDMABUF || loaded_module());
	const char *todo = how_to_disable();

	report("built-in", true, builtin || driver == DRIVER_MAINLINE ?
	       "the kernel has mainline's driver" : "the kernel does not have mainline's driver");
	if (driver == DRIVER_MAINLINE || (builtin && driver != DRIVER_UDMABUF && !disabled()))
		report("boot", false,
		       explain(installed_module() ? todo : format("once a module is installed, %s",
								  todo),
			       "mainline's driver is not disabled"));
	else if (disabled())
		report("boot", true, "mainline's driver is disabled by " BLACKLIST);
	else
		report("boot", true, "no parameter needed");
}

static void check_signature(enum driver driver)
{
	if (!signature_needed())
		report("secure boot", true, !secure_boot() ? "off" :
		       "on; this kernel accepts unsigned modules");
	else if (driver == DRIVER_UDMABUF)
		report("secure boot", true, "on; the driver is active");
	else if (enrolled())
		report("secure boot", true, format("on; %s is enrolled", certificate()));
	else
		report("secure boot", false,
		       explain(how_to_enroll(), "on: the module must be signed"));
}

static void check_limits(int dev, enum driver driver)
{
	long long entries = parameter(driver, "list_limit");
	long long size = parameter(driver, "size_limit_mb");
	struct quota quota = read_quota(dev);
	bool left = quota.kind != QUOTA_LIMITED || !quota.used_known ||
		quota.limit - quota.used >= page_size();

	report("quota", left, left ? quota_text(&quota) :
	       explain(RAISE_QUOTA, "%s", quota_text(&quota)));
	if (entries < 0 || size < 0)
		report("parameters", true, "unknown: no /sys/module/udmabuf*/parameters");
	else if (entries && size)
		report("parameters", true,
		       format("list_limit=%lld size_limit_mb=%lld", entries, size));
	else
		report("parameters", false,
		       explain("write another value to /sys/module/udmabuf*/parameters/",
			       "list_limit=%lld size_limit_mb=%lld: 0 prevents all buffers",
			       entries, size));
}

int doctor(int argc, char **argv)
{
	enum driver driver = DRIVER_UNKNOWN;
	int dev, error;

	if (json_wanted(argc, argv))
		results = json_object_new_array();
	dev = open(device_path(), O_RDWR | O_CLOEXEC);
	error = dev < 0 ? errno : 0;
	if (dev >= 0)
		driver = which_driver(dev);
	if (kernel_too_old()) {
		/* No other check can help on this kernel. */
		report("kernel", false, why_no_device());
	} else {
		report("kernel", true, format("Linux %s", release()));
		check_device(error);
		if (dev >= 0)
			check_driver(driver);
		check_module(driver);
		check_boot(driver);
		check_signature(driver);
		if (dev >= 0)
			check_limits(dev, driver);
	}
	if (results)
		return print_json(results) || failed;
	return failed;
}
