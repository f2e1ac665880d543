/* One static program for the recordings: as init (pid 1) it loads modules, mounts the file systems, starts itself again
 * as "probe" and relays between probe, tracefs and the serial console; as probe it drives /dev/kvm through the tour.
 * Console protocol, guest to outside: lines "@X text"; outside to guest: one line to go on. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>
#include <linux/kvm.h>

#define MAX_EVENTS 60
#define TRACE "/sys/kernel/tracing/"

static long ps;

static int put_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_TRUNC), rc;
	if (fd < 0)
		return -1;
	rc = write(fd, text, strlen(text)) < 0 ? -1 : 0;
	close(fd);
	return rc;
}

static void get_file(const char *path, char *buf, size_t n)
{
	int fd = open(path, O_RDONLY);
	ssize_t got = fd < 0 ? -1 : read(fd, buf, n - 1);
	buf[got < 0 ? 0 : got] = 0;
	buf[strcspn(buf, "\n")] = 0;
	if (fd >= 0)
		close(fd);
}

/* ------------------------------------------------------------------ init */

static int con;

static void say(const char *fmt, ...)
{
	char b[2048];
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(b, sizeof b, fmt, ap);
	va_end(ap);
	if (n > (int)sizeof b - 1)
		n = sizeof b - 1;
	for (int o = 0; o < n;) {
		int w = write(con, b + o, n - o);
		if (w > 0)
			o += w;
		else if (w < 0 && errno != EINTR && errno != EAGAIN)
			return;
	}
}

static void wait_line(void)
{
	char c = 0;
	while (c != '\n' && c != '\r')
		if (read(con, &c, 1) != 1)
			usleep(10000);
}

static const char *events[] = {
	"kvmmmu",		"kvm/kvm_page_fault",	  "kvm/kvm_guest_fault", "kvm/kvm_mmio",
	"kvm/kvm_userspace_exit", "kvm/kvm_unmap_hva_range", "kvm/kvm_unmap_hva",  "kvm/kvm_set_spte_hva",
	"kvm/kvm_age_hva",	"kvm/kvm_test_age_hva",	  "kvm/kvm_access_fault", "kvm/kvm_set_way_flush",
	"kvm/kvm_toggle_cache", NULL,
};

static void trace_on(void)
{
	char p[256];
	put_file(TRACE "buffer_size_kb", "16384");
	for (int i = 0; events[i]; i++) {
		snprintf(p, sizeof p, TRACE "events/%s/enable", events[i]);
		if (access(p, W_OK) == 0)
			say("@# event %s %d\n", events[i], put_file(p, "1"));
	}
	/* the shipped recordings were made without these */
	put_file(TRACE "events/kvmmmu/kvm_mmu_spte_requested/enable", "0");
	put_file(TRACE "events/kvmmmu/kvm_mmu_zap_all_fast/enable", "0");
	put_file(TRACE "trace", "");
	put_file(TRACE "tracing_on", "1");
}

static void trace_dump(void)
{
	static char line[4096];
	FILE *f = fopen(TRACE "trace", "r");
	int n = 0, more = 0;
	while (f && fgets(line, sizeof line, f)) {
		if (line[0] == '#')
			continue;
		if (n++ < MAX_EVENTS + 40)
			say("@E %s%s", line, strchr(line, '\n') ? "" : "\n");
		else
			more++;
	}
	if (f)
		fclose(f);
	if (more)
		say("@M %d\n", more);
	put_file(TRACE "trace", "");
}

static void load_modules(void)
{
	char line[512], path[600], param[64], val[64];
	FILE *f = fopen("/mods/order", "r");
	while (f && fgets(line, sizeof line, f)) {
		line[strcspn(line, "\n")] = 0;
		char *args = strchr(line, ' ');
		if (args)
			*args++ = 0;
		snprintf(path, sizeof path, "/mods/%s", line);
		int fd = open(path, O_RDONLY);
		int rc = syscall(SYS_finit_module, fd, args ? args : "", 0);
		say("@# module %s %s rc=%d errno=%d\n", line, args ? args : "", rc, rc ? errno : 0);
		close(fd);
	}
	static const char *params[] = { "kvm/parameters/tdp_mmu", "kvm_amd/parameters/npt", NULL };
	for (int i = 0; params[i]; i++) {
		snprintf(path, sizeof path, "/sys/module/%s", params[i]);
		if (access(path, R_OK))
			continue;
		get_file(path, val, sizeof val);
		snprintf(param, sizeof param, "%.*s", (int)strcspn(params[i], "/"), params[i]);
		say("@P %s.%s=%s\n", param, strrchr(params[i], '/') + 1, val);
	}
}

static int init_main(void)
{
	char b[1024];
	int up[2], down[2], i = 0;
	struct utsname u;
	mkdir("/proc", 0755), mkdir("/sys", 0755), mkdir("/dev", 0755);
	mount("proc", "/proc", "proc", 0, "");
	mount("sysfs", "/sys", "sysfs", 0, "");
	mount("dev", "/dev", "devtmpfs", 0, "");
	mount("tracefs", "/sys/kernel/tracing", "tracefs", 0, "");
	con = open("/dev/console", O_RDWR | O_NOCTTY);
	struct termios t;
	tcgetattr(con, &t);
	cfmakeraw(&t);
	tcsetattr(con, TCSANOW, &t);
	uname(&u);
	say("\n@K %s %s %ld\n", u.release, u.machine, sysconf(_SC_PAGESIZE));
	load_modules();
	put_file("/sys/kernel/mm/transparent_hugepage/enabled", "madvise");
	get_file("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size", b, sizeof b);
	say("@# thp %s\n", b);
	pipe(up), pipe(down);
	pid_t pid = fork();
	if (!pid) {
		dup2(down[0], 0), dup2(up[1], 1);
		for (int fd = 3; fd < 20; fd++)
			close(fd);
		execl("/init", "probe", NULL);
		_exit(127);
	}
	close(up[1]), close(down[0]);
	for (;;) {
		char c;
		if (read(up[0], &c, 1) != 1)
			break;
		if (c != '\n' && i < (int)sizeof b - 1) {
			b[i++] = c;
			continue;
		}
		b[i] = 0, i = 0;
		if (b[0] == 'T')
			trace_on();
		else if (b[0] == 'S')
			trace_dump(), say("@%s\n", b);
		else
			say("@%s\n", b);
		if (b[0] == 'L')
			wait_line();
		if (b[0] != 'C' && b[0] != '#')
			write(down[1], "g", 1);
	}
	int st;
	waitpid(pid, &st, 0);
	usleep(300000);
	say("@# probe status %x\n", st);
	trace_dump();
	say("@S exit\n@Q\n");
	usleep(300000);
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

/* ----------------------------------------------------------------- probe */

static int pm_fd, vm, vcpu;
static struct kvm_run *run;

static void out(const char *fmt, ...)
{
	char b[512];
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(b, sizeof b, fmt, ap);
	va_end(ap);
	write(1, b, n);
}

static void go(void)
{
	char c;
	read(0, &c, 1);
}

static uint64_t pfn_of(const void *hva)
{
	uint64_t e = 0;
	pread(pm_fd, &e, 8, (uintptr_t)hva / ps * 8);
	return e >> 63 ? e & ((1ull << 55) - 1) : 0;
}

/* The stage is over: events up to here belong to it. */
static void stage(const char *name)
{
	out("S %s\n", name);
	go();
}

static void look(const char *name, uint64_t gpa, const char *hva, int n)
{
	char b[256];
	int o = snprintf(b, sizeof b, "L %s", name);
	for (int i = 0; i < n; i++)
		o += snprintf(b + o, sizeof b - o, " %" PRIx64 ":%" PRIx64, gpa / ps + i, hva ? pfn_of(hva + i * ps) : 0);
	out("%s\n", b);
	go();
}

static int slot(unsigned id, unsigned flags, uint64_t gpa, uint64_t size, const void *hva, int quiet)
{
	struct kvm_userspace_memory_region r = {
		.slot = id, .flags = flags, .guest_phys_addr = gpa, .memory_size = size, .userspace_addr = (uintptr_t)hva,
	};
	errno = 0;
	int rc = ioctl(vm, KVM_SET_USER_MEMORY_REGION, &r);
	if (!quiet || rc)
		out("C slot id=%u flags=%u gpa=%" PRIx64 " size=%" PRIx64 " rc=%d errno=%d\n", id, flags, gpa, size, rc, errno);
	return rc;
}

#if defined(__x86_64__)
/* mov al,[0]; hlt   and at 0x40   mov [0],al; hlt */
static const uint8_t ld_code[] = { 0xa0, 0, 0, 0xf4 }, st_code[] = { 0xa2, 0, 0, 0xf4 };
static void vm_setup(void) {}
static void vcpu_setup(void) {}
static void regs(int store, uint64_t gpa)
{
	struct kvm_sregs s;
	struct kvm_regs r = { .rip = store ? 0x40 : 0, .rax = 0x5a, .rflags = 2 };
	ioctl(vcpu, KVM_GET_SREGS, &s);
	s.cs.base = 3 * ps, s.cs.selector = 3 * ps >> 4;
	s.ds.base = gpa, s.ds.selector = gpa >> 4;
	if (ioctl(vcpu, KVM_SET_SREGS, &s) || ioctl(vcpu, KVM_SET_REGS, &r))
		out("# set regs errno=%d\n", errno);
}
#elif defined(__aarch64__)
/* ldrb w1,[x0]; strb w1,[x2]; b .   and   strb w1,[x0]; strb w1,[x2]; b . */
static const uint32_t ld_code[] = { 0x39400001, 0x39000041, 0x14000000 }, st_code[] = { 0x39000001, 0x39000041, 0x14000000 };
static void vm_setup(void) {}
static void vcpu_setup(void)
{
	struct kvm_vcpu_init in;
	memset(&in, 0, sizeof in);
	if (ioctl(vm, KVM_ARM_PREFERRED_TARGET, &in) || ioctl(vcpu, KVM_ARM_VCPU_INIT, &in))
		out("# vcpu init errno=%d\n", errno);
}
static void reg(uint64_t id, uint64_t v)
{
	struct kvm_one_reg r = { id, (uintptr_t)&v };
	if (ioctl(vcpu, KVM_SET_ONE_REG, &r))
		out("# set reg %" PRIx64 " errno=%d\n", id, errno);
}
#define CORE(f) (KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | KVM_REG_ARM_CORE_REG(f))
static void regs(int store, uint64_t gpa)
{
	reg(CORE(regs.regs[0]), gpa);
	reg(CORE(regs.regs[1]), 0x5a);
	reg(CORE(regs.regs[2]), 0x10000000);
	reg(CORE(regs.pc), 3 * ps + (store ? 0x40 : 0));
}
#elif defined(__powerpc64__)
/* lbz r5,0(r3); stb r5,0(r4); b .   and   stb r5,0(r3); stb r5,0(r4); b . */
static const uint32_t ld_code[] = { 0x88a30000, 0x98a40000, 0x48000000 }, st_code[] = { 0x98a30000, 0x98a40000, 0x48000000 };
static void vm_setup(void) {}
static void vcpu_setup(void)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_PPC_PAPR };
	struct kvm_ppc_mmuv3_cfg cfg = { .flags = KVM_PPC_MMUV3_RADIX | KVM_PPC_MMUV3_GTSE, .process_table = 1ull << 63 };
	if (ioctl(vcpu, KVM_ENABLE_CAP, &cap))
		out("# papr errno=%d\n", errno);
	if (ioctl(vm, KVM_PPC_CONFIGURE_V3_MMU, &cfg))
		out("# v3 mmu errno=%d\n", errno);
}
static void regs(int store, uint64_t gpa)
{
	struct kvm_regs r;
	ioctl(vcpu, KVM_GET_REGS, &r);
	r.pc = 3 * ps + (store ? 0x40 : 0);
	r.msr = 1ull << 63 | 1ull << 12 | 1;
	r.gpr[3] = gpa, r.gpr[4] = 0x10000000, r.gpr[5] = 0x5a;
	if (ioctl(vcpu, KVM_SET_REGS, &r))
		out("# set regs errno=%d\n", errno);
}
#elif defined(__riscv)
/* lbu a1,0(a0); sb a1,0(a2); j .   and   sb a1,0(a0); sb a1,0(a2); j . */
static const uint32_t ld_code[] = { 0x00054583, 0x00b60023, 0x0000006f }, st_code[] = { 0x00b50023, 0x00b60023, 0x0000006f };
static void vm_setup(void) {}
static void vcpu_setup(void) {}
static void reg(unsigned n, uint64_t v)
{
	struct kvm_one_reg r = { KVM_REG_RISCV | KVM_REG_SIZE_U64 | KVM_REG_RISCV_CORE | n, (uintptr_t)&v };
	if (ioctl(vcpu, KVM_SET_ONE_REG, &r))
		out("# set reg %u errno=%d\n", n, errno);
}
static void regs(int store, uint64_t gpa)
{
	reg(0, 3 * ps + (store ? 0x40 : 0));	/* pc, then x1.. by number */
	reg(10, gpa), reg(11, 0x5a), reg(12, 0x10000000);
}
#endif

static void enter(int store, uint64_t gpa)
{
	regs(store, gpa);
	errno = 0;
	run->exit_reason = 0;
	int rc = ioctl(vcpu, KVM_RUN, 0), err = errno, why = run->exit_reason;
	char mmio[40] = "";
#ifndef __x86_64__
	if (why == KVM_EXIT_MMIO)
		snprintf(mmio, sizeof mmio, " mmio=%" PRIx64, (uint64_t)run->mmio.phys_addr);
#endif
	out("C run %s gpa=%" PRIx64 " rc=%d exit=%d%s\n", store ? "st" : "ld", gpa, rc, why, mmio);
	if (rc)
		out("# run errno=%d\n", err);
	if (why == KVM_EXIT_INTERNAL_ERROR)
		out("# internal error %u\n", run->internal.suberror);
	if (why == KVM_EXIT_FAIL_ENTRY)
		out("# fail entry %llx\n", (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
	if (rc == 0 && why == KVM_EXIT_MMIO) {	/* finish the access; then leave at once */
		run->immediate_exit = 1;
		ioctl(vcpu, KVM_RUN, 0);
		run->immediate_exit = 0;
	}
}

/* n pages at an address that is not the start of any host page table's reach */
static char *pages(int n, int off)
{
	uint64_t big = 64ull << 20;
	char *p = mmap(NULL, 2 * big, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	p = (char *)(((uintptr_t)p + big - 1) / big * big) + off * ps;
	p = mmap(p, n * ps, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	madvise(p, n * ps, MADV_NOHUGEPAGE);
	return p;
}

static void put_code(char *at, const void *code, size_t n)
{
	memcpy(at, code, n);
	__builtin___clear_cache(at, at + n);
}

static void ksm(char *m)
{
	if (madvise(m, 3 * ps, MADV_MERGEABLE))
		out("# mergeable errno=%d\n", errno);
	put_file("/sys/kernel/mm/ksm/pages_to_scan", "1000");
	put_file("/sys/kernel/mm/ksm/sleep_millisecs", "20");
	put_file("/sys/kernel/mm/ksm/run", "1");
	for (int i = 0; i < 3000 && (!pfn_of(m) || pfn_of(m) != pfn_of(m + ps)); i++)
		usleep(10000);
	put_file("/sys/kernel/mm/ksm/run", "0");
	usleep(100000);
}

static int probe_main(void)
{
	prctl(PR_SET_NAME, "probe");
	pm_fd = open("/proc/self/pagemap", O_RDONLY);
	int kvm = open("/dev/kvm", O_RDWR);
	if (kvm < 0) {
		out("# /dev/kvm errno=%d\n", errno);
		return 1;
	}
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0)
		out("# create vm errno=%d\n", errno);
	vm_setup();
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	if (vcpu < 0)
		out("# create vcpu errno=%d\n", errno);
	run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	vcpu_setup();

	uint64_t size = 16 * ps;
	char *m = pages(16, 21), *m1 = pages(16, 37);
	for (int i = 0; i < 16; i++) {
		memset(m + i * ps, i < 2 ? 0xf4 : 0x10 + i, ps);
		memset(m1 + i * ps, 0x77, ps);
	}
	put_code(m + 3 * ps, ld_code, sizeof ld_code);
	put_code(m + 3 * ps + 0x40, st_code, sizeof st_code);
	if (getenv("lab_touch")) {	/* make the pages active on the host's LRU beforehand */
		static char one[16];
		int mem = open("/proc/self/mem", O_RDONLY);
		for (int round = 0; round < 4; round++)
			for (int i = 0; i < 16; i++)
				pread(mem, one, 1, (uintptr_t)m + i * ps), pread(mem, one, 1, (uintptr_t)m1 + i * ps);
		close(mem);
	}
	out("# hva0 %lx\n# hva1 %lx\n", (long)m, (long)m1);
	out("T\n");
	go();

	slot(0, 0, 0, size, m, 1);
	enter(0, 0x10), enter(0, ps + 0x10), enter(1, 2 * ps + 0x10);
	stage("fault"), look("fault", 0, m, 4);
	ksm(m);
	stage("ksm"), look("ksm", 0, m, 4);
	enter(0, 0x10), enter(0, ps + 0x10);
	stage("ksm_reread"), look("ksm_reread", 0, m, 4);
	enter(1, 0x10);
	stage("ksm_write"), look("ksm_write", 0, m, 4);
	stage("idle"), look("idle", 0, m, 4);
	enter(0, 2 * ps + 0x10);
	stage("idle_touch"), look("idle_touch", 0, m, 4);
	slot(0, KVM_MEM_LOG_DIRTY_PAGES, 0, size, m, 0);
	stage("dirty_on"), look("dirty_on", 0, m, 4);
	enter(1, 2 * ps + 0x20);
	stage("dirty_write"), look("dirty_write", 0, m, 4);
	static uint64_t bits[64];
	struct kvm_dirty_log log = { .slot = 0, .dirty_bitmap = bits };
	int rc = ioctl(vm, KVM_GET_DIRTY_LOG, &log);
	out("C dirty rc=%d %" PRIx64 "\n", rc, bits[0]);
	stage("dirty_get"), look("dirty_get", 0, m, 4);
	slot(0, 0, 0, size, m, 0);
	stage("dirty_off"), look("dirty_off", 0, m, 4);
	enter(1, 2 * ps + 0x30);
	stage("dirty_off_write"), look("dirty_off_write", 0, m, 4);
	mprotect(m + 2 * ps, ps, PROT_READ);
	look("mprotect_ro", 0, m, 4);
	enter(0, 2 * ps + 0x10);
	look("mprotect_ro_read", 0, m, 4);
	mprotect(m + 2 * ps, ps, PROT_READ | PROT_WRITE);
	stage("mprotect_ro");
	madvise(m + 2 * ps, ps, MADV_DONTNEED);
	stage("dontneed"), look("dontneed", 0, m, 4);
	enter(0, 2 * ps + 0x10);
	stage("zeropage"), look("zeropage", 0, m, 4);
	enter(0, 0x20000000);
	stage("mmio"), look("mmio", 0, m, 4);
	slot(1, KVM_MEM_READONLY, 0x8000000, size, m1, 0);
	enter(0, 0x20000000), enter(0, 0x8000010);
	stage("slot_add"), look("slot_add_ro", 0x8000000, m1, 4);
	slot(1, KVM_MEM_READONLY, 0x9000000, size, m1, 0);
	stage("slot_move"), look("slot_move", 0x9000000, m1, 4);
	slot(2, 0, 0x800, size, m1, 0);
	slot(2, 0, 0, size, m1, 0);
	slot(1, 0, 0x9000000, size, m1, 0);
	slot(1, KVM_MEM_READONLY, 0x9000000, size / 2, m1, 0);
	slot(40000, 0, 0x30000000, size, m1, 0);
	slot(3, 0, 0x30000000, size, m1 + 1, 0);
	slot(3, 128, 0x30000000, size, m1, 0);
	slot(9, 0, 0, 0, NULL, 0);
	stage("slot_bad");
	slot(1, 0, 0, 0, NULL, 0);
	stage("slot_del"), look("slot_del", 0, m, 4);
	uint64_t huge = 4 << 20, big = 64 << 20;
	char *h = mmap(NULL, 2 * big, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	h = (char *)(((uintptr_t)h + big - 1) / big * big) + huge;
	madvise(h, huge, MADV_HUGEPAGE);
	memset(h, 0x33, huge);
	out("# hva4 %lx\n", (long)h);
	slot(4, 0, 0x40000000, huge, h, 0);
	enter(1, 0x40000010);
	stage("huge"), look("huge", 0x40000000, h, 2);
	slot(4, KVM_MEM_LOG_DIRTY_PAGES, 0x40000000, huge, h, 0);
	look("huge_dirty", 0x40000000, h, 2);
	enter(1, 0x40000010);
	stage("huge_dirty"), look("huge_dirty_write", 0x40000000, h, 2);
	munmap(m, size);
	stage("munmap"), look("munmap", 0x40000000, h, 2);
	return 0;
}

int main(int argc, char **argv)
{
	(void)argc;
	ps = sysconf(_SC_PAGESIZE);
	return strcmp(argv[0], "probe") ? init_main() : probe_main();
}
