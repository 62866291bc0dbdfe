#include "base.h"

#define COM 0x3f8
#define PM_CONTROL 0x604
#define PM_TIMER 0x608
#define PM_HZ 3579545
/* Rests after which this guest has had its chance. */
#define STEPS 500

extern char trampoline[], trampoline_end[], boot_stack_end[], stubs[];
extern u64 gdt_tss[2];

u64 cycles_ms;
u32 cpus = 1;
const char *words;
volatile u32 hits[64], hit_by[64];
static u32 tss[26];
__attribute__((aligned(16))) u64 idt[512];

static volatile u32 started = 1;
static volatile struct {
    void (*what)(u64);
    u64 argument;
} posts[MAX_CPUS];

void put(char c) {
    while (!(in8(COM + 5) & 0x20))
        rest();
    out8(COM, (u8)c);
}

void print(const char *text) {
    while (*text)
        put(*text++);
}

void print_hex(u64 value) {
    int shift = 60;
    while (shift > 0 && !(value >> shift))
        shift -= 4;
    for (; shift >= 0; shift -= 4)
        put("0123456789abcdef"[value >> shift & 15]);
}

void print_dec(u64 value) {
    char digits[20];
    int n = 0;
    do
        digits[n++] = (char)('0' + value % 10);
    while (value /= 10);
    while (n)
        put(digits[--n]);
}

void power_off(void) {
    out16(PM_CONTROL, 5 << 10 | 1 << 13);
    for (;;)
        rest();
}

u32 apic_id(void) { return get32(APIC + 0x20) >> 24; }

static void (*after_user)(void);
void user_mode(void (*function)(void), void *stack_end) __attribute__((noreturn));

void in_user_mode(void (*function)(void), void *stack_end, void (*after)(void)) {
    after_user = after;
    user_mode(function, stack_end);
}

void trap(u64 vector, u64 code, u64 place, u64 segment) {
    if (vector == 13 && segment & 3 && after_user)
        after_user();
    if (vector < 32) {
        print("not ok: exception ");
        print_dec(vector);
        print(" code ");
        print_hex(code);
        print(" at ");
        print_hex(place);
        print("\n");
        power_off();
    }
    hit_by[vector] = apic_id();
    __asm__ volatile("lock incl %0" : "+m"(hits[vector])::"memory");
    put32(APIC + 0xb0, 0);
}

int comes(u8 vector, u32 times, u64 ms) {
    u64 end = deadline(ms);
    interrupts_on();
    // The clock goes on while a busy host lets this guest wait, so that it says nothing alone.
    for (u32 steps = 0; hits[vector] < times && (tsc() < end || steps < STEPS); steps++)
        rest();
    interrupts_off();
    return hits[vector] >= times;
}

static void apic_on(void) { put32(APIC + 0xf0, 0x1ff); }

void ap_main(u32 index) {
    apic_on();
    // The number is taken by the order of starting; posts go by it.
    __asm__ volatile("lock incl %0" : "+m"(started)::"memory");
    for (;;) {
        void (*what)(u64) = posts[index].what;
        if (what) {
            what(posts[index].argument);
            barrier();
            posts[index].what = 0;
        }
        rest();
    }
}

u32 start_cpus(void) {
    if (cpus > 1)
        return cpus;
    for (char *from = trampoline, *to = (char *)0x8000; from != trampoline_end;)
        *to++ = *from++;
    // All but this one: INIT, and then SIPI to page 8.
    put32(APIC + 0x300, 0xc4500);
    for (u64 end = deadline(10); tsc() < end;)
        rest();
    put32(APIC + 0x300, 0xc4608);
    // As many as come within a while.
    u32 seen = 0;
    for (u64 end = deadline(300); tsc() < end;) {
        if (started != seen) {
            seen = started;
            end = deadline(300);
        }
        rest();
    }
    return cpus = started < MAX_CPUS ? started : MAX_CPUS;
}

void run_on(u32 cpu, void (*what)(u64), u64 argument) {
    posts[cpu].argument = argument;
    barrier();
    posts[cpu].what = what;
}

int has_ended(u32 cpu, u64 ms) {
    u64 end = deadline(ms);
    while (posts[cpu].what && tsc() < end)
        rest();
    return !posts[cpu].what;
}

int word_is(const char *word) {
    const char *at = words;
    while (*word && *at == *word)
        at++, word++;
    return !*word && (*at == ' ' || !*at);
}

const char *next_word(void) {
    while (*words && *words != ' ')
        words++;
    while (*words == ' ')
        words++;
    return words;
}

u64 number(const char *text) {
    u64 value = 0;
    while (*text >= '0' && *text <= '9')
        value = value * 10 + (u64)(*text++ - '0');
    return value;
}

static void measure_time(void) {
    u32 from = in32(PM_TIMER);
    u64 start = tsc();
    u32 ticks = PM_HZ / 50;
    while (in32(PM_TIMER) - from < ticks)
        rest();
    ticks = in32(PM_TIMER) - from;
    cycles_ms = (tsc() - start) * (PM_HZ / 1000) / ticks;
}

void suite_main(void);

void guest_main(u64 info) {
    for (u64 i = 0; i < 256; i++) {
        // Vectors that nobody expects share the last stub.
        u64 stub = (u64)stubs + (i < 63 ? i : 63) * 16;
        idt[i * 2] = (stub & 0xffff) | 0x08ull << 16 | 0x8eull << 40 | (stub >> 16 & 0xffff) << 48;
        idt[i * 2 + 1] = stub >> 32;
    }
    u64 base = (u64)tss;
    tss[1] = (u32)(u64)boot_stack_end;
    gdt_tss[0] = 103 | (base & 0xffffff) << 16 | 0x89ull << 40 | (base >> 24 & 0xff) << 56;
    gdt_tss[1] = base >> 32;
    __asm__ volatile("ltr %w0" ::"r"(0x28));
    // The 8259s are silent.
    out8(0x21, 0xff);
    out8(0xa1, 0xff);
    apic_on();
    measure_time();
    words = (const char *)*(u64 *)(info + 24);
    suite_main();
    power_off();
}
