/* What the lab's guest is on RISC-V: VS mode without a stage of its own; it leaves by a
 * store to an address without memslot. */
#include <string.h>
#include <sys/ioctl.h>
#include <linux/kvm.h>

#include "probe.h"

/* lbu a1,0(a0); sb a1,0(a2); j .   sb a1,0(a0); sb a1,0(a2); j .   jr a0 */
static const uint32_t load[] = { 0x00054583, 0x00b60023, 0x0000006f };
static const uint32_t store[] = { 0x00b50023, 0x00b60023, 0x0000006f };
static const uint32_t leave[] = { 0x00b60023, 0x0000006f }, jump[] = { 0x00050067 };

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
	struct kvm_mp_state running = { .mp_state = KVM_MP_STATE_RUNNABLE };

	(void)vm;
	/* Every vCPU but the first waits for another one to start it. */
	return ioctl(vcpu, KVM_SET_MP_STATE, &running);
}

static int set(int vcpu, unsigned number, uint64_t value)
{
	struct kvm_one_reg reg = {
		KVM_REG_RISCV | KVM_REG_SIZE_U64 | KVM_REG_RISCV_CORE | number, (uintptr_t)&value
	};
	return ioctl(vcpu, KVM_SET_ONE_REG, &reg);
}

int guest_regs(int vcpu, uint64_t pc, uint64_t gpa)
{
	/* What is stored is another value each time, so that no two pages become equal. */
	static uint8_t value;

	/* Number 0 is pc, the others are x1 and so on. */
	if (set(vcpu, 10, gpa) || set(vcpu, 11, ++value) || set(vcpu, 12, LEAVE_GPA))
		return -1;
	return set(vcpu, 0, pc);
}
