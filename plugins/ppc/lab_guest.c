/* What the lab's guest is on ppc: a radix guest of kvm-hv in real mode; it leaves by a
 * store to an address without memslot. */
#include <string.h>
#include <sys/ioctl.h>
#include <linux/kvm.h>

#include "probe.h"

/* lbz r5,0(r3); stb r5,0(r4); b .   stb r5,0(r3); stb r5,0(r4); b .
 * mtctr r3; bctr */
static const uint32_t load[] = { 0x88a30000, 0x98a40000, 0x48000000 };
static const uint32_t store[] = { 0x98a30000, 0x98a40000, 0x48000000 };
static const uint32_t leave[] = { 0x98a40000, 0x48000000 };
static const uint32_t jump[] = { 0x7c6903a6, 0x4e800420 };

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
	struct kvm_enable_cap papr = { .cap = KVM_CAP_PPC_PAPR };
	struct kvm_ppc_mmuv3_cfg radix = {
		.flags = KVM_PPC_MMUV3_RADIX | KVM_PPC_MMUV3_GTSE, .process_table = 1ull << 63,
	};
	if (ioctl(vcpu, KVM_ENABLE_CAP, &papr))
		return -1;
	return ioctl(vm, KVM_PPC_CONFIGURE_V3_MMU, &radix);
}

int guest_regs(int vcpu, uint64_t pc, uint64_t gpa)
{
	/* What is stored is another value each time, so that no two pages become equal. */
	static uint8_t value;
	struct kvm_regs r;
	if (ioctl(vcpu, KVM_GET_REGS, &r))
		return -1;
	r.pc = pc;
	r.msr = 1ull << 63 | 1ull << 12 | 1; /* SF, ME, LE: translation is off */
	r.gpr[3] = gpa, r.gpr[4] = LEAVE_GPA, r.gpr[5] = ++value;
	return ioctl(vcpu, KVM_SET_REGS, &r);
}
