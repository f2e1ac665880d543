/* The probe's mappings, and what the host does with them. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "probe.h"

#define PLACE (1ull << 30)
#define HUGE_OFFSET (4ull << 20)
#define PLAIN_OFFSET 21
#define KSM "/sys/kernel/mm/ksm/"
#define KSM_SCANS 4
#define KSM_PATIENCE 30000 /* ms; an emulator on a busy machine is slow */
#define MAX_CHILDREN 16

struct memory memories[MAX_MEMORIES];
int memory_count;
pid_t children[MAX_CHILDREN];
int child_count;
static int pagemap = -1;

/* Equal values make equal pages; code to leave with is in each. */
static void fill(char *page, uint64_t value)
{
	uint64_t *words = (uint64_t *)page;
	for (long i = 0; i < page_size / 8; i++)
		words[i] = (value + 1) * 0x9e3779b97f4a7c15ull;
	guest_leave(page);
	__builtin___clear_cache(page, page + 0x100);
}

/* A value that no scenario states, different for each page. */
static uint64_t own(int memory, uint64_t page)
{
	return 1ull << 40 | (uint64_t)memory << 32 | page;
}

/* Where a memory goes: each to a place of its own, upwards in the order in which they
 * are named. The kernel goes through mappings in that order. Behind them is one for
 * settle(). Nothing else is mapped around them: a neighbour would keep page tables. */
static char *place(int number)
{
	static char *start;
	if (!start) {
		int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
		uint64_t size = (MAX_MEMORIES + 2) * PLACE;
		char *p = mmap(NULL, size, PROT_NONE, flags, -1, 0);
		if (p == MAP_FAILED || munmap(p, size))
			return NULL;
		start = (char *)(((uintptr_t)p + PLACE - 1) / PLACE * PLACE);
	}
	return start + number * PLACE;
}

/* memory <pages> <huge> <mergeable> <touched> <code page + 1> values... */
void add_memory(char *words)
{
	struct memory *m = &memories[memory_count];
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	m->pages = number(&words), m->huge = number(&words);
	int mergeable = number(&words), touched = number(&words);
	uint64_t code = number(&words), size = m->pages * page_size;
	/* A plain memory does not begin where a host page table does. */
	uint64_t offset = m->huge ? HUGE_OFFSET : (PLAIN_OFFSET + 16ull * memory_count) * page_size;
	char *p = NULL;
	errno = ENOSPC;
	if (memory_count < MAX_MEMORIES)
		p = place(memory_count);
	if (!p || offset + size > PLACE) {
		out("# memory %d: %s\n", memory_count, p ? "too large" : strerror(errno));
		exit(1);
	}
	m->hva = mmap(p + offset, size, PROT_READ | PROT_WRITE, flags | MAP_FIXED, -1, 0);
	madvise(m->hva, size, m->huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	if (mergeable && madvise(m->hva, size, MADV_MERGEABLE))
		out("# MADV_MERGEABLE: %s\n", strerror(errno));
	for (uint64_t i = 0; touched && i < m->pages; i++) {
		char *at = m->hva + i * page_size;
		int given = *words;
		uint64_t value = given ? number(&words) : own(memory_count, i);
		fill(at, value);
		if (code == i + 1)
			guest_code(at);
	}
	out("H %x %lx\n", memory_count, (long)m->hva);
	memory_count++;
}

static uint64_t frame(const char *hva)
{
	uint64_t entry = 0;
	off_t at = (uintptr_t)hva / page_size * 8;
	if (pagemap < 0)
		pagemap = open("/proc/self/pagemap", O_RDONLY);
	if (pread(pagemap, &entry, 8, at) != 8)
		return 0;
	return entry >> 63 ? entry & ((1ull << 55) - 1) : 0;
}

/* frames: the pages behind each memory, in runs of neighbours "pfn*count"; in several
 * lines if one cannot hold them. */
void frames(char *words)
{
	static char line[1 << 16];
	(void)words;
	for (int i = 0; i < memory_count; i++) {
		int n = snprintf(line, sizeof line, "F %x", i);
		uint64_t first = 0, count = 0;
		for (uint64_t page = 0; page <= memories[i].pages; page++) {
			uint64_t pfn = 0;
			int end = page == memories[i].pages;
			if (!end)
				pfn = frame(memories[i].hva + page * page_size);
			if (count && !end && pfn == (first ? first + count : 0)) {
				count++;
				continue;
			}
			if (count)
				n += snprintf(line + n, sizeof line - n, " %" PRIx64 "*%" PRIx64, first, count);
			if (n > (int)sizeof line - 64) {
				out("%s\n", line);
				n = snprintf(line, sizeof line, "F %x", i);
			}
			first = pfn, count = 1;
		}
		out("%s\n", line);
	}
}

/* Let pages be where they stay: a new one waits on a CPU's list, and counts as used by
 * somebody else while it does. Unmapping anything empties these lists; what is unmapped
 * here lies apart from all memories, and from what they leave when they are unmapped. */
void settle(void)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
	char *p = place(MAX_MEMORIES);
	if (p && !munmap(p, page_size))
		mmap(p, page_size, PROT_NONE, flags, -1, 0);
}

static long scans(void)
{
	char text[32];
	return get_file(KSM "full_scans", text, sizeof text) ? -1 : atol(text);
}

/* A page is merged in the second full scan that finds it unchanged. */
static int ksm(char *hva, uint64_t size)
{
	if (madvise(hva, size, MADV_MERGEABLE))
		return -1;
	long start = scans();
	if (start < 0 || put_file(KSM "run", "1"))
		return -1;
	int done = 0;
	for (int i = 0; i < KSM_PATIENCE && !done; i++) {
		usleep(1000);
		done = scans() >= start + KSM_SCANS;
	}
	if (!done)
		out("# KSM is late\n");
	return put_file(KSM "run", "0");
}

static int fork_child(void)
{
	if (child_count == MAX_CHILDREN) {
		errno = EAGAIN;
		return -1;
	}
	pid_t pid = fork();
	if (pid < 0)
		return -1;
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (int fd = 0; fd < 64; fd++)
			close(fd);
		for (;;)
			pause();
	}
	children[child_count++] = pid;
	return 0;
}

/* Do a step of the host; -2 if the verb is none of them. */
int memory_step(const char *verb, char *words)
{
	if (!strcmp(verb, "fork"))
		return fork_child();
	static const char *const known[] = {
		"touch", "ksm", "madvise", "mprotect", "munmap", "mremap", NULL,
	};
	int at = 0;
	while (known[at] && strcmp(verb, known[at]))
		at++;
	if (!known[at])
		return -2;
	int m = number(&words);
	uint64_t page = number(&words), count = number(&words);
	char *hva = memories[m].hva + page * page_size;
	uint64_t size = count * page_size;
	if (!strcmp(verb, "ksm"))
		return ksm(hva, size);
	if (!strcmp(verb, "madvise"))
		return madvise(hva, size, number(&words));
	if (!strcmp(verb, "mprotect"))
		return mprotect(hva, size, number(&words));
	if (!strcmp(verb, "munmap"))
		return munmap(hva, size);
	if (!strcmp(verb, "mremap")) {
		struct memory *to = &memories[number(&words)];
		if (munmap(to->hva, to->pages * page_size))
			return -1;
		return mremap(hva, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to->hva) == MAP_FAILED ? -1 : 0;
	}
	for (uint64_t i = 0; i < count; i++) {
		char *rest = words;
		uint64_t value = *rest ? number(&rest) : own(m + MAX_MEMORIES, page + i);
		fill(hva + i * page_size, value);
	}
	return 0;
}
