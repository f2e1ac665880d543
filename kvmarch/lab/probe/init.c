/* pid 1: mounts, loads modules, starts a probe for each VM, and relays between the
 * console and probe, tracefs and the kernel log. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "probe.h"

#define THP "/sys/kernel/mm/transparent_hugepage/"
#define TRACE "/sys/kernel/tracing/"
#define MODULES "/modules/"
#define MAX_EVENTS 4000

static int console, trace_pipe = -1, log_fd = -1, counter_pipe = -1;
static pid_t probe;
static int to_probe = -1;
static FILE *from_probe;

/* Trace events of the tour's recordings; a kernel has some of them. */
static const char *const events[] = {
	"kvmmmu", "kvm/kvm_page_fault", "kvm/kvm_guest_fault", "kvm/kvm_mmio",
	"kvm/kvm_userspace_exit", "kvm/kvm_unmap_hva_range", "kvm/kvm_unmap_hva",
	"kvm/kvm_set_spte_hva", "kvm/kvm_age_hva", "kvm/kvm_test_age_hva",
	"kvm/kvm_access_fault", "kvm/kvm_set_way_flush", "kvm/kvm_toggle_cache", NULL,
};
/* They fire at times that no step decides. */
static const char *const never[] = {
	"kvmmmu/kvm_mmu_spte_requested", "kvmmmu/kvm_mmu_zap_all_fast", NULL,
};

static int read_line(char *line, size_t size)
{
	static char block[1 << 12];
	static ssize_t have, at;
	size_t n = 0;
	for (;;) {
		if (at == have) {
			at = 0, have = read(console, block, sizeof block);
			if (have <= 0) {
				have = 0;
				usleep(1000);
				continue;
			}
		}
		char c = block[at++];
		if (c == '\n' || c == '\r')
			break;
		if (n < size - 1)
			line[n++] = c;
	}
	line[n] = 0;
	return n;
}

static void load_modules(void)
{
	char line[512], path[600];
	FILE *order = fopen(MODULES "order", "r");
	while (order && fgets(line, sizeof line, order)) {
		line[strcspn(line, "\n")] = 0;
		char *rest = line;
		const char *name = word(&rest);
		snprintf(path, sizeof path, MODULES "%s", name);
		int fd = open(path, O_RDONLY);
		if (syscall(SYS_finit_module, fd, rest, 0) && errno != EEXIST)
			out("@# module %s: %s\n", name, strerror(errno));
		close(fd);
	}
	if (order)
		fclose(order);
	FILE *wanted = fopen(MODULES "parameters", "r");
	while (wanted && fgets(line, sizeof line, wanted)) {
		char value[64];
		line[strcspn(line, "\n")] = 0;
		char *dot = strchr(line, '.');
		if (!dot)
			continue;
		snprintf(path, sizeof path, "/sys/module/%.*s/parameters/%s",
			 (int)(dot - line), line, dot + 1);
		if (!get_file(path, value, sizeof value))
			out("@P %s=%s\n", line, value);
	}
	if (wanted)
		fclose(wanted);
}

static int trace_event(const char *event, const char *on)
{
	char path[256];
	snprintf(path, sizeof path, TRACE "events/%s/enable", event);
	return access(path, W_OK) ? -1 : put_file(path, on);
}

/* only [event]...: let those be traced and no others; all if none is named. */
static void trace_only(char *names)
{
	int named = *names;
	for (int i = 0; events[i]; i++)
		trace_event(events[i], named ? "0" : "1");
	for (int i = 0; never[i]; i++)
		trace_event(never[i], "0");
	while (*names) {
		char event[64];
		/* A name is looked for in all groups; what no kernel has does not count. */
		snprintf(event, sizeof event, "%s\n", word(&names));
		int fd = open(TRACE "set_event", O_WRONLY | O_APPEND);
		if (write(fd, event, strlen(event)) < 0 && errno != EINVAL)
			out("@# %s: %s\n", event, strerror(errno));
		close(fd);
	}
}

static void trace_setup(void)
{
	char path[256];
	put_file(TRACE "tracing_on", "0");
	put_file(TRACE "buffer_size_kb", "8192");
	for (int i = 0; events[i]; i++)
		if (!trace_event(events[i], "1"))
			out("@T %s\n", events[i]);
	for (int i = 0; never[i]; i++)
		trace_event(never[i], "0");
	char line[1024];
	FILE *filters = fopen(MODULES "filters", "r");
	while (filters && fgets(line, sizeof line, filters)) {
		char *rest = line;
		const char *event = word(&rest);
		snprintf(path, sizeof path, TRACE "events/%s/filter", event);
		if (!access(path, W_OK) && put_file(path, rest))
			out("@# filter of %s: %s\n", event, strerror(errno));
	}
	if (filters)
		fclose(filters);
	trace_pipe = open(TRACE "trace_pipe", O_RDONLY | O_NONBLOCK);
	log_fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK);
	if (log_fd >= 0)
		lseek(log_fd, 0, SEEK_END);
}

/* counters DEFINITION: a probe point of its own, in a buffer of its own. */
static void counters_setup(const char *definition)
{
	static const char here[] = TRACE "instances/counters/";
	char path[256];
	int rc = put_file(TRACE "kprobe_events", definition);
	if (!rc && mkdir(here, 0755) && errno != EEXIST)
		rc = -1;
	snprintf(path, sizeof path, "%sevents/kvmarch/counters/enable", here);
	if (!rc)
		rc = put_file(path, "1");
	if (rc) {
		out("@# no counters: %s\n", strerror(errno));
		return;
	}
	snprintf(path, sizeof path, "%strace_pipe", here);
	counter_pipe = open(path, O_RDONLY | O_NONBLOCK);
}

/* The last of the probe point's events since the last time. */
static void counters_dump(void)
{
	static char block[1 << 14], line[1 << 10], last[1 << 10];
	static size_t fill;
	ssize_t got;
	*last = 0;
	while (counter_pipe >= 0 && (got = read(counter_pipe, block, sizeof block)) > 0)
		for (ssize_t i = 0; i < got; i++) {
			if (block[i] != '\n') {
				if (fill < sizeof line - 1)
					line[fill++] = block[i];
				continue;
			}
			line[fill] = 0, fill = 0;
			memcpy(last, line, sizeof last);
		}
	if (*last)
		out("@N %s\n", last);
}

/* What was traced since the last time; a pipe gives each event once. */
static void trace_dump(void)
{
	static char block[1 << 16], line[1 << 12];
	static size_t fill;
	int count = 0, more = 0;
	ssize_t got;
	while (trace_pipe >= 0 && (got = read(trace_pipe, block, sizeof block)) > 0)
		for (ssize_t i = 0; i < got; i++) {
			if (block[i] != '\n') {
				if (fill < sizeof line - 1)
					line[fill++] = block[i];
				continue;
			}
			line[fill] = 0, fill = 0;
			if (count++ < MAX_EVENTS)
				out("@E %s\n", line);
			else
				more++;
		}
	if (more)
		out("@M %x\n", more);
}

/* Warnings and worse. A record is "priority,sequence,time,-;text". */
static void log_dump(void)
{
	char record[4096];
	ssize_t got;
	while (log_fd >= 0) {
		got = read(log_fd, record, sizeof record - 1);
		if (got < 0 && errno == EPIPE)
			continue;
		if (got <= 0)
			return;
		record[got] = 0;
		char *text = strchr(record, ';');
		if (!text || (atoi(record) & 7) > 4)
			continue;
		text[strcspn(text, "\n")] = 0;
		out("@W %s\n", text + 1);
	}
}

static void reap(void)
{
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

/* The probe has ended, by itself or by us: let it go wholly. */
static void probe_gone(int tell)
{
	int status = 0;
	if (!probe)
		return;
	close(to_probe);
	waitpid(probe, &status, 0);
	fclose(from_probe);
	kill(-probe, SIGKILL);	/* children of its fork() */
	probe = 0;
	reap();
	if (tell)
		out("@X %x\n", status);
}

static void probe_start(void)
{
	int up[2], down[2];
	if (pipe(up) || pipe(down)) {
		out("@# pipe: %s\n", strerror(errno));
		return;
	}
	probe = fork();
	if (!probe) {
		setpgid(0, 0);
		dup2(down[0], 0), dup2(up[1], 1);
		for (int fd = 3; fd < 64; fd++)
			close(fd);
		execl("/init", "probe", NULL);
		_exit(127);
	}
	setpgid(probe, probe);
	close(up[1]), close(down[0]);
	to_probe = down[1];
	from_probe = fdopen(up[0], "r");
}

/* Hand a command to the probe and its answers on, up to "." or its end. */
static void relay(const char *command)
{
	static char line[1 << 16];
	dprintf(to_probe, "%s\n", command);
	while (fgets(line, sizeof line, from_probe)) {
		if (!strcmp(line, ".\n"))
			return;
		out("@%s", line);
	}
	probe_gone(1);
}

static void power_off(void)
{
	out("@Q\n");
	tcdrain(console);
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

static void command(char *line)
{
	static char whole[MAX_COMMAND];
	snprintf(whole, sizeof whole, "%s", line);
	char *rest = line;
	const char *verb = word(&rest);
	if (!strcmp(verb, "begin")) {
		probe_gone(0);
		probe_start();
		if (probe)
			relay(whole);
	} else if (!strcmp(verb, "end")) {
		probe_gone(0);
	} else if (!strcmp(verb, "trace")) {
		put_file(TRACE "tracing_on", word(&rest));
	} else if (!strcmp(verb, "only")) {
		trace_only(rest);
	} else if (!strcmp(verb, "counters")) {
		counters_setup(rest);
	} else if (!strcmp(verb, "off")) {
		power_off();
	} else if (probe) {
		relay(whole);
	} else {
		out("@# no process for %s\n", verb);
	}
}

int init_main(void)
{
	static char line[MAX_COMMAND];
	struct utsname name;
	struct termios t;
	mkdir("/proc", 0755), mkdir("/sys", 0755), mkdir("/dev", 0755);
	mount("proc", "/proc", "proc", 0, "");
	mount("sysfs", "/sys", "sysfs", 0, "");
	mount("dev", "/dev", "devtmpfs", 0, "");
	mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, "");
	console = open("/dev/console", O_RDWR | O_NOCTTY);
	dup2(console, 1);
	tcgetattr(console, &t);
	cfmakeraw(&t);
	tcsetattr(console, TCSANOW, &t);
	signal(SIGPIPE, SIG_IGN);
	uname(&name);
	out("\n@K %s %s %lx\n", name.release, name.machine, page_size);
	load_modules();
	/* As a kernel with more memory has them; and no collapse when nobody asks. */
	put_file(THP "khugepaged/scan_sleep_millisecs", "1000000000");
	put_file(THP "khugepaged/defrag", "0");
	put_file(THP "use_zero_page", "1");
	put_file(THP "enabled", "madvise");
	put_file("/sys/kernel/mm/ksm/pages_to_scan", "1000");
	put_file("/sys/kernel/mm/ksm/sleep_millisecs", "1");
	put_file("/sys/kernel/mm/ksm/smart_scan", "0");
	if (access("/dev/kvm", R_OK | W_OK))
		out("@! kvm %s\n", strerror(errno));
	if (access("/sys/kernel/mm/ksm/run", W_OK))
		out("@! ksm %s\n", strerror(errno));
	trace_setup();
	out("@.\n");
	for (;;) {
		read_line(line, sizeof line);
		if (!*line)
			continue;
		command(line);
		trace_dump();
		counters_dump();
		log_dump();
		out("@.\n");
	}
}
