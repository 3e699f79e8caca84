// SPDX-License-Identifier: GPL-2.0
/*
 * Importers of the kernel: vgem (DRM) and vivid (V4L2).
 *
 * vivid with both of its allocators in one module:
 *	modprobe vivid n_devs=2 allocators=0,1
 * The tests try to load a module that is not loaded.
 */
#include <dirent.h>
#include <drm/drm.h>
#include <drm/drm_mode.h>
#include <linux/videodev2.h>
#include <poll.h>

#include "udmabuf_test.h"

/* vgem */

FIXTURE(vgem) {
	struct session session;
	int dev;
	int card;
	char *mem;
	size_t len;
};

static bool is_vgem(int card)
{
	char name[16] = {};
	struct drm_version version = { .name = name, .name_len = sizeof(name) - 1 };

	return !ioctl(card, DRM_IOCTL_VERSION, &version) && !strcmp(name, "vgem");
}

static int find_vgem(void)
{
	char path[32];
	int i, card;

	for (i = 0; i < 16; i++) {
		snprintf(path, sizeof(path), "/dev/dri/card%d", i);
		card = open(path, O_RDWR | O_CLOEXEC);
		if (card >= 0 && is_vgem(card))
			return card;
		close(card);
	}
	return -1;
}

FIXTURE_SETUP(vgem)
{
	char *modprobe[] = { "modprobe", "vgem", NULL };

	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	self->card = find_vgem();
	if (self->card < 0 && run_quietly(modprobe)) {
		sleep_ms(200);
		self->card = find_vgem();
	}
	if (self->card < 0)
		SKIP(return, "no vgem: modprobe vgem");
	self->len = 16 * page_size();
	self->mem = anon_small(self->len);
	fill(self->mem, self->len, 1);
}

FIXTURE_TEARDOWN(vgem)
{
	SESSION_CLOSE(&self->session);
}

static int _prime_import(int card, int buf, __u32 *handle)
{
	struct drm_prime_handle arg = { .fd = buf };
	int ret = ioctl(card, DRM_IOCTL_PRIME_FD_TO_HANDLE, &arg);

	*handle = arg.handle;
	return ret;
}

#define test_prime_import(card, buf)					\
	({								\
		__u32 __handle;						\
		ASSERT_EQ(0, _prime_import(card, buf, &__handle))	\
			TH_LOG("PRIME import: %s", strerror(errno));	\
		__handle;						\
	})

/* The mmap offset that the next object of @len bytes will get; 0 if unknown. */
static __u64 next_object_offset(int card, size_t len)
{
	struct drm_mode_create_dumb create = { .width = len / 4, .height = 1, .bpp = 32 };
	struct drm_mode_map_dumb map = {};
	struct drm_mode_destroy_dumb destroy;

	if (ioctl(card, DRM_IOCTL_MODE_CREATE_DUMB, &create))
		return 0;
	map.handle = create.handle;
	if (ioctl(card, DRM_IOCTL_MODE_MAP_DUMB, &map))
		map.offset = 0;
	destroy.handle = create.handle;
	ioctl(card, DRM_IOCTL_MODE_DESTROY_DUMB, &destroy);
	return map.offset;
}

/*
 * Import the buffer and map it through vgem. DRM does not report the mmap
 * offset of an imported object, but reuses the one of a destroyed object of
 * equal size.
 */
static char *map_import(int card, int buf, size_t len, int prot)
{
	__u64 offset = next_object_offset(card, len);
	__u32 handle;

	if (!offset || _prime_import(card, buf, &handle))
		return MAP_FAILED;
	return mmap(NULL, len, prot, MAP_SHARED, card, offset);
}

TEST_F(vgem, imports_and_exports_the_same_buffer)
{
	int buf = test_create_one(self->dev, 0, self->mem, self->len);
	__u32 handle = test_prime_import(self->card, buf);
	struct drm_prime_handle arg = { .handle = handle, .flags = O_RDWR };
	char *map;

	ASSERT_EQ(0, ioctl(self->card, DRM_IOCTL_PRIME_HANDLE_TO_FD, &arg));
	map = test_map_buf(arg.fd, self->len, PROT_READ | PROT_WRITE);
	EXPECT_FILLED(map, self->len, 1);
	fill(map, self->len, 2);
	EXPECT_FILLED(self->mem, self->len, 2);
}

TEST_F(vgem, mapping_through_it)
{
	int buf = test_create_one(self->dev, 0, self->mem, self->len);
	char *map = map_import(self->card, buf, self->len, PROT_READ | PROT_WRITE);

	if (map == MAP_FAILED)
		SKIP(return, "vgem did not map the import: %s", strerror(errno));
	EXPECT_FILLED(map, self->len, 1);
	fill(map, self->len, 2);
	EXPECT_FILLED(self->mem, self->len, 2);
	close(buf);
	close(self->card);
	fill(self->mem, self->len, 3);
	EXPECT_FILLED(map, self->len, 3);
}

TEST_F(vgem, keeps_the_buffer_alive)
{
	int buf = test_create_one(self->dev, 0, self->mem, self->len);

	test_prime_import(self->card, buf);
	close(buf);
	EXPECT_EQ(self->session.before.pinned + (long)(self->len / page_size()), pinned_pages());
	close(self->card);
	EXPECT_NOTHING_KEPT(&self->session);
}

/* Guards VM_MAYWRITE (and VM_WRITE): the mapping comes from vgem's own file. */
TEST_F(vgem, read_only_buffer_stays_read_only)
{
	__u32 handle;
	char *map;
	int buf;

	SKIP_WITHOUT_RDONLY();
	map = map_import(self->card, test_create_one(self->dev, 0, self->mem, self->len),
			 self->len, PROT_READ | PROT_WRITE);
	if (map == MAP_FAILED)
		SKIP(return, "vgem did not map the import: %s", strerror(errno));
	close(self->card);
	munmap(map, self->len);

	/* A vgem that maps imports for DMA maps them in both directions. */
	self->card = find_vgem();
	buf = test_create_one(self->dev, UDMABUF_FLAGS_RDONLY, self->mem, self->len);
	if (_prime_import(self->card, buf, &handle)) {
		EXPECT_EQ(EPERM, errno);
		SKIP(return, "vgem of this kernel imports nothing read-only");
	}
	close(self->card);
	self->card = find_vgem();
	EXPECT_ERRNO(EACCES, (long)map_import(self->card, buf, self->len,
					      PROT_READ | PROT_WRITE));
	close(self->card);

	self->card = find_vgem();
	map = map_import(self->card, buf, self->len, PROT_READ);
	ASSERT_NE(MAP_FAILED, (void *)map);
	EXPECT_FILLED(map, self->len, 1);
	EXPECT_ERRNO(EACCES, mprotect(map, self->len, PROT_READ | PROT_WRITE));
}

/* vivid */

#define WIDTH		320
#define HEIGHT		180
#define SENTINEL	0xa5
/* Control IDs of vivid, which has no header for them */
#define VIVID_TEST_PATTERN	0x00f0f000
#define VIVID_PATTERN_WHITE	6
#define VIVID_OSD_TEXT_MODE	0x00f0f001
#define VIVID_OSD_TEXT_NONE	2

FIXTURE(vivid) {
	struct session session;
	int dev;
	int video;
	char *mem;
	size_t len;
};

FIXTURE_VARIANT(vivid) {
	const char *bus;	/* instance 0 is loaded with allocators=0 */
	enum mem_kind kind;
};

/* vmalloc allocator: accesses the bytes by vmap, accepts scattered pages */
FIXTURE_VARIANT_ADD(vivid, vmap) { .bus = "platform:vivid-000", .kind = MEM_ANON };
/* dma-contig allocator: maps the buffer, accepts a single segment only */
FIXTURE_VARIANT_ADD(vivid, contiguous) { .bus = "platform:vivid-001", .kind = MEM_THP };

static bool is_capture(int video, const char *bus)
{
	struct v4l2_capability cap;

	return !ioctl(video, VIDIOC_QUERYCAP, &cap) &&
	       !strcmp((char *)cap.bus_info, bus) &&
	       cap.device_caps & (V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_VIDEO_CAPTURE_MPLANE);
}

static int find_vivid(const char *bus)
{
	char path[32];
	int i, video;

	for (i = 0; i < 64; i++) {
		snprintf(path, sizeof(path), "/dev/video%d", i);
		video = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
		if (video >= 0 && is_capture(video, bus))
			return video;
		close(video);
	}
	return -1;
}

static bool has_allocator(int instance, int allocator)
{
	char text[512], *p = text;

	if (read_text("/sys/module/vivid/parameters/allocators", text, sizeof(text)) <= 0)
		return false;
	while (instance-- && p)
		p = strchr(p, ',') ? strchr(p, ',') + 1 : NULL;
	return p && atoi(p) == allocator;
}

FIXTURE_SETUP(vivid)
{
	char *modprobe[] = { "modprobe", "vivid", "n_devs=2", "allocators=0,1", NULL };
	char *settle[] = { "udevadm", "settle", NULL };
	int instance = variant->bus[strlen(variant->bus) - 1] - '0';
	struct mem mem;

	SESSION_OPEN(&self->session);
	self->dev = self->session.dev;
	if (access("/sys/module/vivid", F_OK) && run_quietly(modprobe) &&
	    !run_quietly(settle))
		sleep_ms(500);
	self->video = find_vivid(variant->bus);
	if (self->video < 0 || !has_allocator(instance, instance))
		SKIP(return, "no such vivid: modprobe vivid n_devs=2 allocators=0,1");
	/* vivid writes by the CPU and so bypasses the bounce buffer. */
	if (variant->kind == MEM_THP && swiotlb_forced())
		SKIP(return, "dma-contig finds no contiguous bounce buffer");
	mem = mem_get(variant->kind, mem_len(variant->kind));
	if (mem.why_not)
		SKIP(return, "%s", mem.why_not);
	self->mem = mem.addr;
	self->len = mem.len;
}

FIXTURE_TEARDOWN(vivid)
{
	SESSION_CLOSE(&self->session);
}

static int set_control(int video, __u32 id, __s32 value)
{
	struct v4l2_control control = { .id = id, .value = value };

	return ioctl(video, VIDIOC_S_CTRL, &control);
}

/*
 * Set up frames of one byte per pixel, all white. Returns a frame's size, or
 * -1.
 */
static int set_up_capture(int video)
{
	struct v4l2_format format = { .type = V4L2_BUF_TYPE_VIDEO_CAPTURE };
	struct v4l2_requestbuffers request = {
		.count = 2,
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.memory = V4L2_MEMORY_DMABUF,
	};

	format.fmt.pix.width = WIDTH;
	format.fmt.pix.height = HEIGHT;
	format.fmt.pix.pixelformat = V4L2_PIX_FMT_GREY;
	format.fmt.pix.field = V4L2_FIELD_NONE;
	if (ioctl(video, VIDIOC_S_FMT, &format) ||
	    format.fmt.pix.pixelformat != V4L2_PIX_FMT_GREY)
		return -1;
	if (set_control(video, VIVID_TEST_PATTERN, VIVID_PATTERN_WHITE) ||
	    set_control(video, VIVID_OSD_TEXT_MODE, VIVID_OSD_TEXT_NONE) ||
	    ioctl(video, VIDIOC_REQBUFS, &request))
		return -1;
	return format.fmt.pix.sizeimage;
}

static int queue(int video, int index, int buf)
{
	struct v4l2_buffer arg = {
		.index = index,
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.memory = V4L2_MEMORY_DMABUF,
		.m.fd = buf,
	};

	return ioctl(video, VIDIOC_QBUF, &arg);
}

/* Wait for a frame. Returns the index of its buffer, or -1. */
static int dequeue(int video)
{
	struct v4l2_buffer arg = {
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.memory = V4L2_MEMORY_DMABUF,
	};
	struct pollfd wait = { .fd = video, .events = POLLIN };

	if (poll(&wait, 1, 10000) != 1 || ioctl(video, VIDIOC_DQBUF, &arg))
		return -1;
	return arg.flags & V4L2_BUF_FLAG_ERROR ? -1 : (int)arg.index;
}

/* White is one bright value, in full and in limited range. */
static bool is_white(const unsigned char *frame, size_t size)
{
	size_t i;

	for (i = 0; i < size; i++)
		if (frame[i] != frame[0])
			return false;
	return frame[0] > 200;
}

static bool beyond_32_bits(const char *mem, size_t len)
{
	size_t npages = len / page_size(), i = 0;
	__u64 *frames = page_frames_alloc(mem, npages);

	while (i < npages && frames[i] <= UINT_MAX / page_size())
		i++;
	free(frames);
	return i < npages;
}

TEST_F(vivid, captures_into_our_memory)
{
	int type = V4L2_BUF_TYPE_VIDEO_CAPTURE;
	int size = set_up_capture(self->video);
	size_t half = self->len / 2;
	int bufs[2], i, index;

	ASSERT_LT(0, size) TH_LOG("setting up the capture: %s", strerror(errno));
	ASSERT_GE((int)half, size);
	/*
	 * dma-contig maps for a device with a 32-bit mask, so high memory is
	 * bounced.
	 */
	if (variant->kind == MEM_THP && beyond_32_bits(self->mem, self->len))
		SKIP(return, "this memory takes a bounce buffer, which vivid goes past");
	memset(self->mem, SENTINEL, self->len);
	for (i = 0; i < 2; i++) {
		bufs[i] = test_create_one(self->dev, 0, self->mem + i * half, half);
		ASSERT_EQ(0, queue(self->video, i, bufs[i]))
			TH_LOG("VIDIOC_QBUF: %s", strerror(errno));
	}
	ASSERT_EQ(0, ioctl(self->video, VIDIOC_STREAMON, &type));
	for (i = 0; i < 2; i++) {
		char *map;

		index = dequeue(self->video);
		ASSERT_LE(0, index);
		map = test_map_buf(bufs[index], half, PROT_READ);
		test_sync_cpu(bufs[index], SYNC_START(READ));
		EXPECT_TRUE(is_white((unsigned char *)self->mem + index * half, size));
		EXPECT_EQ(0, memcmp(map, self->mem + index * half, half));
		EXPECT_EQ(SENTINEL, ((unsigned char *)self->mem)[index * half + size]);
		test_sync_cpu(bufs[index], SYNC_END(READ));
	}
	ASSERT_EQ(0, ioctl(self->video, VIDIOC_STREAMOFF, &type));
}

/* Closing the device while it streams releases every buffer. */
TEST_F(vivid, close_while_streaming)
{
	int type = V4L2_BUF_TYPE_VIDEO_CAPTURE;
	int size = set_up_capture(self->video);
	int buf;

	ASSERT_LT(0, size) TH_LOG("setting up the capture: %s", strerror(errno));
	buf = test_create_one(self->dev, 0, self->mem, self->len / 2);
	ASSERT_EQ(0, queue(self->video, 0, buf)) TH_LOG("VIDIOC_QBUF: %s", strerror(errno));
	ASSERT_EQ(0, ioctl(self->video, VIDIOC_STREAMON, &type));
	close(buf);
	close(self->video);
	EXPECT_NOTHING_KEPT(&self->session);
}

/* Guards RDONLY: a camera must not write to the buffer. */
TEST_F(vivid, does_not_capture_into_a_read_only_buffer)
{
	int size = set_up_capture(self->video);
	int buf;

	SKIP_WITHOUT_RDONLY();
	ASSERT_LT(0, size);
	memset(self->mem, SENTINEL, self->len);
	buf = test_create_one(self->dev, UDMABUF_FLAGS_RDONLY, self->mem, self->len / 2);
	EXPECT_EQ(-1, queue(self->video, 0, buf));
	EXPECT_EQ(SENTINEL, (unsigned char)self->mem[0]);
}

TEST_HARNESS_MAIN
