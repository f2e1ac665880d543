/* The probe: a process with a VM or several, which does what it is told. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/kvm.h>

#include "probe.h"

#define BITMAP_WORDS (1 << 13)
#define RUN_LIMIT 5 /* seconds that one KVM_RUN may take */

static struct vm {
	int fd, vcpu_count, vcpus[MAX_VCPUS];
	struct kvm_run *runs[MAX_VCPUS];
} vms[MAX_VMS], *vm = vms;	/* that which commands are about */
static int kvm = -1, vm_count;
static size_t run_size;
static uint64_t code_gpa;

static void remark(const char *what)
{
	out("# %s: %s\n", what, strerror(errno));
}

static void make_vcpu(int i)
{
	vm->vcpus[i] = ioctl(vm->fd, KVM_CREATE_VCPU, i);
	if (vm->vcpus[i] < 0) {
		remark("KVM_CREATE_VCPU");
		return;
	}
	vm->runs[i] = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpus[i], 0);
	/* A child that had it would keep the VM. */
	madvise(vm->runs[i], run_size, MADV_DONTFORK);
	if (guest_vcpu(vm->fd, vm->vcpus[i]))
		remark("vCPU");
}

static void make_vm(int vcpu_count)
{
	vm->fd = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm->fd < 0) {
		remark("KVM_CREATE_VM");
		exit(1);
	}
	if (guest_vm(vm->fd))
		remark("VM");
	vm->vcpu_count = vcpu_count;
	for (int i = 0; i < vcpu_count && i < MAX_VCPUS; i++)
		make_vcpu(i);
}

/* at <vm>: what follows is about that one */
static void at(char *words)
{
	uint64_t i = number(&words);
	vm = &vms[i < MAX_VMS ? i : 0];
}

/* begin <vcpus of each VM> <gpa of the code> <vms> */
static void begin(char *words)
{
	int vcpu_count = number(&words);
	code_gpa = number(&words);
	vm_count = number(&words);
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0) {
		remark("/dev/kvm");
		exit(1);
	}
	run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	for (vm = vms; vm < vms + vm_count && vm < vms + MAX_VMS; vm++)
		make_vm(vcpu_count);
	vm = vms;
}

/* slot <as_id> <id> <flags> <gpa> <size> <memory or -1> <offset in bytes> */
static void slot(char *words)
{
	uint64_t as_id = number(&words), id = number(&words), flags = number(&words);
	uint64_t gpa = number(&words), size = number(&words), m = number(&words);
	uint64_t hva = number(&words);
	if (m < MAX_MEMORIES)
		hva += (uintptr_t)memories[m].hva;
	struct kvm_userspace_memory_region region = {
		.slot = as_id << 16 | id, .flags = flags, .guest_phys_addr = gpa,
		.memory_size = size, .userspace_addr = hva,
	};
	errno = 0;
	int rc = ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region);
	out("C slot id=%u flags=%u gpa=%" PRIx64 " size=%" PRIx64 " rc=%d errno=%d\n",
	    region.slot, region.flags, gpa, size, rc, errno);
}

static void no_more(int signal)
{
	(void)signal;
}

/* run <vcpu> <ld|st|ex> <gpa> */
static void enter(char *words)
{
	uint64_t i = number(&words);
	const char *what = word(&words);
	uint64_t gpa = number(&words);
	struct itimerval limit = { .it_value.tv_sec = RUN_LIMIT }, none = { 0 };
	int at = !strcmp(what, "ld") ? CODE_LOAD : !strcmp(what, "st") ? CODE_STORE : CODE_JUMP;
	struct kvm_run *run = vm->runs[i];
	if (guest_regs(vm->vcpus[i], code_gpa + at, gpa))
		remark("registers");
	run->exit_reason = 0;
	setitimer(ITIMER_REAL, &limit, NULL);
	errno = 0;
	int rc = ioctl(vm->vcpus[i], KVM_RUN, 0), err = errno, why = run->exit_reason;
	setitimer(ITIMER_REAL, &none, NULL);
	char more[64] = "";
	if (rc)
		snprintf(more, sizeof more, " errno=%d", err);
	else if (why == KVM_EXIT_MMIO)
		snprintf(more, sizeof more, " mmio=%" PRIx64, (uint64_t)run->mmio.phys_addr);
	out("C run %s gpa=%" PRIx64 " rc=%d exit=%d%s\n", what, gpa, rc, why, more);
	if (rc)
		out("# KVM_RUN: %s\n", strerror(err));
	else if (why == KVM_EXIT_INTERNAL_ERROR)
		out("# internal error %u\n", run->internal.suberror);
	else if (why == KVM_EXIT_FAIL_ENTRY)
		out("# failed entry %llx\n",
		    (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
	else if (why == KVM_EXIT_MMIO) {
		/* Complete the access before registers are set again. */
		run->immediate_exit = 1;
		ioctl(vm->vcpus[i], KVM_RUN, 0);
		run->immediate_exit = 0;
	}
}

/* The number that a bitmap is, least significant word first; in hex. */
static void print_bits(const char *what, int rc, int err, const uint64_t *bits)
{
	static char digits[BITMAP_WORDS * 16 + 1];
	int top = BITMAP_WORDS - 1, n = 0;
	while (top > 0 && !bits[top])
		top--;
	n = snprintf(digits, sizeof digits, "%" PRIx64, bits[top]);
	while (top-- > 0)
		n += snprintf(digits + n, sizeof digits - n, "%016" PRIx64, bits[top]);
	out("C %s rc=%d %s errno=%d\n", what, rc, digits, err);
}

/* dirty <slot> */
static void dirty_get(char *words)
{
	static uint64_t bits[BITMAP_WORDS];
	memset(bits, 0, sizeof bits);
	struct kvm_dirty_log log = { .slot = number(&words), .dirty_bitmap = bits };
	errno = 0;
	int rc = ioctl(vm->fd, KVM_GET_DIRTY_LOG, &log);
	print_bits("dirty", rc, errno, bits);
}

/* clear <slot> <first> <pages> <bits, words of 64, least significant first> */
static void dirty_clear(char *words)
{
	static uint64_t bits[BITMAP_WORDS];
	memset(bits, 0, sizeof bits);
	struct kvm_clear_dirty_log log = { .slot = number(&words) };
	log.first_page = number(&words), log.num_pages = number(&words);
	log.dirty_bitmap = bits;
	for (int i = 0; i < BITMAP_WORDS && *words; i++)
		bits[i] = number(&words);
	errno = 0;
	int rc = ioctl(vm->fd, KVM_CLEAR_DIRTY_LOG, &log);
	out("C clear rc=%d errno=%d\n", rc, errno);
}

/* manual <value of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2> */
static void manual(char *words)
{
	struct kvm_enable_cap cap = { .cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 };
	cap.args[0] = number(&words);
	if (ioctl(vm->fd, KVM_ENABLE_CAP, &cap))
		remark("KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2");
}

/* The last descriptors of the VM go; the process and its memory stay. */
static void destroy(void)
{
	for (int i = 0; i < vm->vcpu_count; i++) {
		if (vm->runs[i])
			munmap(vm->runs[i], run_size);
		close(vm->vcpus[i]);
	}
	vm->vcpu_count = 0;
	close(vm->fd);
	vm->fd = -1;
}

static void end_children(void)
{
	for (int i = 0; i < child_count; i++) {
		kill(children[i], SIGKILL);
		waitpid(children[i], NULL, 0);
	}
	child_count = 0;
}

static void step(const char *verb, char *words)
{
	if (!strcmp(verb, "begin"))
		begin(words);
	else if (!strcmp(verb, "memory"))
		add_memory(words);
	else if (!strcmp(verb, "at"))
		at(words);
	else if (!strcmp(verb, "frames")) {
		/* Any ioctl of the first VM lets the probe point read its counters. */
		ioctl(vms->fd, KVM_CHECK_EXTENSION, 0);
		frames(words);
	} else if (!strcmp(verb, "slot"))
		slot(words);
	else if (!strcmp(verb, "run"))
		enter(words);
	else if (!strcmp(verb, "dirty"))
		dirty_get(words);
	else if (!strcmp(verb, "clear"))
		dirty_clear(words);
	else if (!strcmp(verb, "manual"))
		manual(words);
	else if (!strcmp(verb, "destroy"))
		destroy();
	else if (!strcmp(verb, "exit"))
		end_children(), exit(0);
	else {
		int rc = memory_step(verb, words);
		if (rc == -1)
			remark(verb);
		else if (rc == -2)
			out("# unknown verb %s\n", verb);
	}
}

int probe_main(void)
{
	static char line[MAX_COMMAND];
	struct sigaction action = { .sa_handler = no_more };
	prctl(PR_SET_NAME, "probe");
	sigaction(SIGALRM, &action, NULL);
	while (fgets(line, sizeof line, stdin)) {
		line[strcspn(line, "\n")] = 0;
		char *words = line;
		const char *verb = word(&words);
		step(verb, words);
		settle();
		out(".\n");
	}
	end_children();
	return 0;
}
