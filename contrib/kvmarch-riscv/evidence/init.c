/* The only process of a small machine, which looks at what the lab cannot drive:
 * "test=leak": what 200 VMs leave behind; "test=aging": DAMON ages a huge page of which
 * a memslot has a part; "test=ksm": a guest writes to a page that KSM has merged. See
 * README.md for how to start it. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <unistd.h>

#define GPA 0x80000000ul
#define HUGE (2ul << 20)
#define LEAVE 0x10000000ul

/* sb a1,0(a0); add a0,a0,a3; bne a0,a4,-8: touch pages; sb a1,0(a2): leave. At 0x40:
 * lbu a1,0(a0): look at one; leave. */
static const uint32_t code[] = { 0x00b50023, 0x00d50533, 0xfee51ce3, 0x00b60023, 0x0000006f };
static const uint32_t look[] = { 0x00054583, 0x00b60023, 0x0000006f };

static void die(const char *what)
{
	perror(what);
	reboot(RB_POWER_OFF);
}

static void put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		die(path);
	close(fd);
}

static void show(const char *what, const char *name)
{
	char line[256];
	put("/proc/sys/vm/drop_caches", "3");
	sleep(1);
	FILE *file = fopen("/proc/meminfo", "r");
	while (file && fgets(line, sizeof line, file))
		if (!strncmp(line, name, strlen(name)))
			printf("@ %s: %s", what, line);
	fclose(file);
	fflush(stdout);
}

static void set(int vcpu, unsigned number, uint64_t value)
{
	struct kvm_one_reg reg = {
		KVM_REG_RISCV | KVM_REG_SIZE_U64 | KVM_REG_RISCV_CORE | number, (uintptr_t)&value
	};
	if (ioctl(vcpu, KVM_SET_ONE_REG, &reg))
		die("register");
}

struct guest {
	int vm, vcpu;
	struct kvm_run *run;
};

static void slot(int vm, unsigned number, unsigned flags, uint64_t gpa, size_t size, char *memory)
{
	struct kvm_userspace_memory_region region = { number, flags, gpa, size, (uintptr_t)memory };
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region))
		die("memslot");
}

/* A VM with one memslot, whose first page has the code. */
static struct guest boot(char *memory, size_t size, uint64_t gpa)
{
	int kvm = open("/dev/kvm", O_RDWR), vm = ioctl(kvm, KVM_CREATE_VM, 0);
	memcpy(memory, code, sizeof code);
	memcpy(memory + 0x40, look, sizeof look);
	slot(vm, 0, 0, gpa, size, memory);
	struct guest guest = { vm, ioctl(vm, KVM_CREATE_VCPU, 0), NULL };
	guest.run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE,
			 MAP_SHARED, guest.vcpu, 0);
	return guest;
}

static void touch(struct guest guest, uint64_t pc, uint64_t from, uint64_t step, uint64_t to)
{
	set(guest.vcpu, 10, from), set(guest.vcpu, 11, 0x5a), set(guest.vcpu, 12, LEAVE);
	set(guest.vcpu, 13, step), set(guest.vcpu, 14, to), set(guest.vcpu, 0, pc);
	if (ioctl(guest.vcpu, KVM_RUN, 0) || guest.run->exit_reason != KVM_EXIT_MMIO)
		die("run");
	/* The store is only over when the vCPU is run again. */
	guest.run->immediate_exit = 1;
	ioctl(guest.vcpu, KVM_RUN, 0);
	guest.run->immediate_exit = 0;
}

static char *map(size_t size)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

static void leak(void)
{
	for (int touches = 0; touches < 2; touches++) {
		show(touches ? "before VMs that touch 64 * 2 MiB" : "before VMs that touch nothing",
		     "MemFree");
		for (int i = 0; i < 200; i++) {
			if (!fork()) {
				size_t size = 65 * HUGE;
				char *memory = map(size);
				madvise(memory, size, MADV_NOHUGEPAGE);
				struct guest guest = boot(memory, size, GPA);
				if (touches)
					touch(guest, GPA, GPA + HUGE, HUGE, GPA + size);
				_exit(0);
			}
			wait(NULL);
		}
		show("after 200 VMs", "MemFree");
	}
}

static void aging(void)
{
	put("/sys/kernel/mm/transparent_hugepage/enabled", "always");
	char *memory = (char *)(((uintptr_t)map(4 * HUGE) + HUGE - 1) & -HUGE);
	memset(memory, 1, HUGE);
	struct guest guest = boot(memory + 4096, HUGE - 4096, GPA + 4096);
	for (int i = 0; i < 25; i++) {
		touch(guest, GPA + 4096, GPA + 0x2000, 0x1000, GPA + 0x10000);
		sleep(1);
	}
}

/* Two pages that are equal; the guest has one, the other is somebody else's. */
static void ksm(void)
{
	char *code_page = map(4096), *pages = map(2 * 4096), text[16] = "";
	memset(pages, 7, 2 * 4096);
	if (madvise(pages, 2 * 4096, MADV_MERGEABLE))
		die("MADV_MERGEABLE");
	put("/sys/kernel/mm/ksm/sleep_millisecs", "20");
	put("/sys/kernel/mm/ksm/run", "1");
	for (int i = 0; i < 60 && atoi(text) < 1; i++) {
		sleep(1);
		int fd = open("/sys/kernel/mm/ksm/pages_sharing", O_RDONLY);
		text[read(fd, text, sizeof text - 1)] = 0;
		close(fd);
	}
	printf("@ pages_sharing %s", text);
	struct guest guest = boot(code_page, 4096, GPA);
	slot(guest.vm, 1, 0, GPA + HUGE, 4096, pages);
	touch(guest, GPA + 0x40, GPA + HUGE, 0, 0);
	slot(guest.vm, 1, KVM_MEM_LOG_DIRTY_PAGES, GPA + HUGE, 4096, pages);
	printf("@ the other page begins with %d\n", pages[4096]);
	touch(guest, GPA, GPA + HUGE, 4096, GPA + HUGE + 4096);
	printf("@ the guest has written %d to its page\n", 0x5a);
	printf("@ the other page begins with %d\n", pages[4096]);
}

int main(void)
{
	const char *test = getenv("test");
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	if (syscall(SYS_finit_module, open("/kvm.ko", O_RDONLY), "", 0))
		die("kvm.ko");
	if (test && !strcmp(test, "aging"))
		aging();
	else if (test && !strcmp(test, "ksm"))
		ksm();
	else
		leak();
	reboot(RB_POWER_OFF);
}
