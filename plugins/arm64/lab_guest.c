/* What the lab's guest is on arm64: EL1 without stage 1; it leaves by a store to an
 * address without memslot. */
#include <string.h>
#include <sys/ioctl.h>
#include <linux/kvm.h>

#include "probe.h"

/* ldrb w1,[x0]; strb w1,[x2]; b .   strb w1,[x0]; strb w1,[x2]; b .   br x0 */
static const uint32_t load[] = { 0x39400001, 0x39000041, 0x14000000 };
static const uint32_t store[] = { 0x39000001, 0x39000041, 0x14000000 };
static const uint32_t leave[] = { 0x39000041, 0x14000000 }, jump[] = { 0xd61f0000 };

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
	struct kvm_vcpu_init init;
	memset(&init, 0, sizeof init);
	if (ioctl(vm, KVM_ARM_PREFERRED_TARGET, &init))
		return -1;
	return ioctl(vcpu, KVM_ARM_VCPU_INIT, &init);
}

#define CORE(f) (KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | KVM_REG_ARM_CORE_REG(f))

static int set(int vcpu, uint64_t id, uint64_t value)
{
	struct kvm_one_reg reg = { id, (uintptr_t)&value };
	return ioctl(vcpu, KVM_SET_ONE_REG, &reg);
}

int guest_regs(int vcpu, uint64_t pc, uint64_t gpa)
{
	/* What is stored is another value each time, so that no two pages become equal. */
	static uint8_t value;
	/* EL1h, everything masked: an earlier exception leaves no trace. */
	if (set(vcpu, CORE(regs.pstate), 0x3c5) || set(vcpu, CORE(regs.regs[0]), gpa) ||
	    set(vcpu, CORE(regs.regs[1]), ++value) || set(vcpu, CORE(regs.regs[2]), LEAVE_GPA))
		return -1;
	return set(vcpu, CORE(regs.pc), pc);
}
