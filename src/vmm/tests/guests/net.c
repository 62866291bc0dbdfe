/*
 * The first process of a small Linux guest with a network: gives eth0 the address 10.0.0.5, says hello to 10.0.0.1 four
 * times a second, sends back what comes to its port 7, and prints what becomes of the link. A datagram "pairs N" sets the number
 * of pairs of queues, "off" switches off.
 */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

/* Numbers of system calls and of requests, and layouts, are the kernel's (x86-64). */
enum { WRITE = 1, POLL = 7, IOCTL = 16, SOCKET = 41, SENDTO = 44, RECVFROM = 45, BIND = 49, REBOOT = 169 };
enum {
    SIOCGIFFLAGS = 0x8913, SIOCSIFFLAGS = 0x8914, SIOCSIFADDR = 0x8916, SIOCSIFNETMASK = 0x891c,
    SIOCGIFMTU = 0x8921, SIOCGIFHWADDR = 0x8927, SIOCETHTOOL = 0x8946,
};
enum { IFF_UP = 1, IFF_RUNNING = 0x40, ETHTOOL_GCHANNELS = 0x3c, ETHTOOL_SCHANNELS = 0x3d };

struct address { u16 family; u8 port[2]; u8 host[4]; u8 rest[8]; };
struct request {
    char name[16];
    union { struct address address; u16 flags; int mtu; u8 hardware[16]; void *data; u8 rest[24]; };
};
/* struct ethtool_channels */
struct channels {
    u32 command, most_rx, most_tx, most_other, most_combined, rx, tx, other, combined;
};

static struct request request = { .name = "eth0" };
static struct channels channels;
static struct address me = { 2, { 0, 7 }, { 0, 0, 0, 0 }, { 0 } };
static struct address host = { 2, { 0, 7 }, { 10, 0, 0, 1 }, { 0 } };
static struct address from;
static u8 buffer[2048];

static long call(long number, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall" : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static void print(const char *text)
{
    long length = 0;
    while (text[length])
        length++;
    call(WRITE, 1, (long)text, length, 0, 0, 0);
}

static void print_number(u32 number, u32 base, int digits)
{
    char text[16];
    int at = 15;
    text[at] = 0;
    do {
        text[--at] = "0123456789abcdef"[number % base];
        number /= base;
    } while (number || 15 - at < digits);
    print(text + at);
}

static void failed(const char *what, long error)
{
    print(what);
    print(" failed: ");
    print_number((u32)-error, 10, 1);
    print("\n");
}

static long ask(int socket, long what)
{
    return call(IOCTL, socket, what, (long)&request, 0, 0, 0);
}

static void must(const char *what, long result)
{
    if (result < 0)
        failed(what, result);
}

static void set_pairs(int socket, u32 pairs)
{
    request.data = &channels;
    channels.command = ETHTOOL_GCHANNELS;
    must("GCHANNELS", ask(socket, SIOCETHTOOL));
    channels.command = ETHTOOL_SCHANNELS;
    channels.combined = pairs;
    request.data = &channels;
    must("SCHANNELS", ask(socket, SIOCETHTOOL));
    print("pairs ");
    print_number(pairs, 10, 1);
    print(" of ");
    print_number(channels.most_combined, 10, 1);
    print("\n");
}

void begin(void)
{
    int socket = (int)call(SOCKET, 2, 2, 0, 0, 0, 0);
    must("socket", socket);
    must("bind", call(BIND, socket, (long)&me, sizeof me, 0, 0, 0));
    must("SIOCGIFHWADDR", ask(socket, SIOCGIFHWADDR));
    print("eth0");
    for (int at = 2; at < 8; at++) {
        print(at == 2 ? " " : ":");
        print_number(request.hardware[at], 16, 2);
    }
    must("SIOCGIFMTU", ask(socket, SIOCGIFMTU));
    print(" mtu ");
    print_number((u32)request.mtu, 10, 1);
    print("\n");
    request.address = (struct address){ 2, { 0, 0 }, { 10, 0, 0, 5 }, { 0 } };
    must("SIOCSIFADDR", ask(socket, SIOCSIFADDR));
    request.address = (struct address){ 2, { 0, 0 }, { 255, 255, 255, 0 }, { 0 } };
    must("SIOCSIFNETMASK", ask(socket, SIOCSIFNETMASK));
    must("SIOCGIFFLAGS", ask(socket, SIOCGIFFLAGS));
    request.flags |= IFF_UP;
    must("SIOCSIFFLAGS", ask(socket, SIOCSIFFLAGS));

    int running = -1;
    for (;;) {
        struct { int fd; u16 events, seen; } wait = { socket, 1, 0 };
        if (call(POLL, (long)&wait, 1, 250, 0, 0, 0) > 0) {
            long size = sizeof from;
            long length = call(RECVFROM, socket, (long)buffer, sizeof buffer, 0, (long)&from, (long)&size);
            if (length == 3 && buffer[0] == 'o' && buffer[1] == 'f' && buffer[2] == 'f')
                call(REBOOT, 0xfee1dead, 672274793, 0x4321fedc, 0, 0, 0);
            if (length == 7 && buffer[0] == 'p' && buffer[5] == ' ')
                set_pairs(socket, buffer[6] - '0');
            if (length > 0)
                call(SENDTO, socket, (long)buffer, length, 0, (long)&from, sizeof from);
        } else {
            /* Nobody may be there to hear it. */
            call(SENDTO, socket, (long)"hello", 5, 0, (long)&host, sizeof host);
        }
        must("SIOCGIFFLAGS", ask(socket, SIOCGIFFLAGS));
        int now = (request.flags & IFF_RUNNING) != 0;
        if (now != running)
            print(now ? "link up\n" : "link down\n");
        running = now;
    }
}

__asm__(".globl _start\n"
        "_start: and $-16, %rsp\n"
        "call begin\n");
