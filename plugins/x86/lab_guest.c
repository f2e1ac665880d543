/* What the lab's guest is on x86: 32-bit protected mode without paging, all segments
 * from 0 to 4 GiB; it leaves by HLT. */
#include <string.h>
#include <sys/ioctl.h>
#include <linux/kvm.h>

#include "probe.h"

/* mov al,[ebx]; hlt   mov [ebx],al; hlt   hlt   jmp ebx */
static const uint8_t load[] = { 0x8a, 0x03, 0xf4 }, store[] = { 0x88, 0x03, 0xf4 };
static const uint8_t leave[] = { 0xf4 }, jump[] = { 0xff, 0xe3 };

void guest_leave(char *page)
{
	memcpy(page + CODE_LEAVE, leave, sizeof leave);
}

void guest_code(char *page)
{
	memcpy(page + CODE_LOAD, load, sizeof load);
	memcpy(page + CODE_STORE, store, sizeof store);
	memcpy(page + CODE_JUMP, jump, sizeof jump);
	guest_leave(page);
}

int guest_vm(int vm)
{
	(void)vm;
	return 0;
}

int guest_vcpu(int vm, int vcpu)
{
	struct kvm_sregs s;
	(void)vm;
	if (ioctl(vcpu, KVM_GET_SREGS, &s))
		return -1;
	struct kvm_segment flat = { .limit = ~0u, .present = 1, .s = 1, .db = 1, .g = 1 };
	flat.selector = 0x10, flat.type = 3;
	s.ds = s.es = s.ss = flat;
	flat.selector = 0x8, flat.type = 11;
	s.cs = flat;
	s.cr0 |= 1;
	return ioctl(vcpu, KVM_SET_SREGS, &s);
}

int guest_regs(int vcpu, uint64_t pc, uint64_t gpa)
{
	/* What is stored is another value each time, so that no two pages become equal. */
	static uint8_t value;
	struct kvm_mp_state running = { .mp_state = KVM_MP_STATE_RUNNABLE };
	struct kvm_regs r = { .rip = pc, .rbx = gpa, .rax = ++value, .rflags = 2 };
	/* Every vCPU but the first waits for an INIT, if there is an APIC. */
	ioctl(vcpu, KVM_SET_MP_STATE, &running);
	return ioctl(vcpu, KVM_SET_REGS, &r);
}
