/* What the parts of the probe share. One static program: as pid 1 it is the init of
 * the lab's small initramfs (init.c); started by that again it is the process that
 * owns a VM or several and does one step after the other (steps.c, memory.c, guest.c).
 *
 * Lines on the console, from the outside: a command. To the outside: "@X text":
 *   @K release machine page-size   @P module.parameter=value   @# remark
 *   @T event that is traced   @C answer   @H memory hva   @F memory pfn*count ...
 *   @E trace event   @M events cut off   @W kernel log   @X status of a dead process
 *   @N counters of the VM, as of the command's last ioctl
 *   @.  the command is done
 */
#ifndef PROBE_H
#define PROBE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define MAX_MEMORIES 32
#define MAX_VMS 4
#define MAX_VCPUS 16
#define MAX_COMMAND (1 << 16)	/* with the byte that ends it */

/* Where a guest stores to in order to leave, and the offsets in its page of code. */
#define LEAVE_GPA 0x10000000ull
enum code { CODE_LOAD = 0x00, CODE_STORE = 0x40, CODE_LEAVE = 0x80, CODE_JUMP = 0xc0 };

extern long page_size;

/* main.c */
__attribute__((format(printf, 1, 2))) void out(const char *fmt, ...);
int put_file(const char *path, const char *text);
int get_file(const char *path, char *text, size_t size);
uint64_t number(char **words);
const char *word(char **words);

/* init.c and steps.c: the two programs */
int init_main(void);
int probe_main(void);

/* memory.c: host mappings, by number */
struct memory {
	char *hva;
	uint64_t pages;
	int huge;
};
extern struct memory memories[MAX_MEMORIES];
extern int memory_count;
extern pid_t children[];
extern int child_count;
void add_memory(char *words);
int memory_step(const char *verb, char *words);
void frames(char *words);
void settle(void);

/* guest.c: what the architecture decides. Functions return 0, or -1 with errno. */
void guest_code(char *page);	/* all of enum code into a page that guests run */
void guest_leave(char *page);	/* CODE_LEAVE alone, into any page */
int guest_vm(int vm);
int guest_vcpu(int vm, int vcpu);
/* Let the vCPU run from pc, with gpa as operand. */
int guest_regs(int vcpu, uint64_t pc, uint64_t gpa);

#endif
