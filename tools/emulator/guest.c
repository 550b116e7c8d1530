// The first and only program of a machine that Bochs emulates: runs /cases with standard input and output that bochs.py carries
// over a disk, since a serial line would take hours. Sectors of the disk, each of numbers of 64 bits:
//     0  of the host: how many pieces it has sent, the size of the last        1  of this side: how many it has taken
//     2  of this side: pieces of output, the size of the last, and             3  of the host: how many it has taken
//        behind the end what the program left with
// The last piece itself begins at 1 MiB towards here and at 16 MiB from here. A piece of no bytes is the end.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { kSector = 512, kPiece = 8 << 20, kIn = 1 << 20, kOut = 16 << 20, kPause = 2000 };

static void fail(const char* what) {
    perror(what);
    sync();
    reboot(RB_POWER_OFF);
    pause();
}

static int disk(void) {
    // Past the page cache: the host writes the same disk.
    const int fd = open("/dev/sda", O_RDWR | O_DIRECT | O_SYNC);
    if (fd < 0) fail("/dev/sda");
    return fd;
}

static char* buffer(size_t size) {
    void* at = NULL;
    if (posix_memalign(&at, 4096, size) != 0) fail("memory");
    memset(at, 0, size);
    return at;
}

static void get(int fd, int sector, char* room, uint64_t out[2]) {
    if (pread(fd, room, kSector, (off_t)sector * kSector) != kSector) fail("a sector");
    memcpy(out, room, 16);
}

static void put(int fd, int sector, char* room, uint64_t number, uint64_t size, uint64_t left_with) {
    const uint64_t all[3] = {number, size, left_with};
    memcpy(room, all, sizeof all);
    if (pwrite(fd, room, kSector, (off_t)sector * kSector) != kSector) fail("a sector");
}

static void wait_for(int fd, int sector, uint64_t number, char* room, uint64_t found[2]) {
    for (get(fd, sector, room, found); found[0] != number; get(fd, sector, room, found)) usleep(kPause);
}

static size_t whole_sectors(size_t size) { return (size + kSector - 1) / kSector * kSector; }

static void carry_in(int to) {
    const int fd = disk();
    char *room = buffer(kSector), *piece = buffer(kPiece);
    for (uint64_t number = 1;; ++number) {
        uint64_t found[2];
        wait_for(fd, 0, number, room, found);
        const size_t size = found[1];
        if (size == 0) exit(0);
        if (pread(fd, piece, whole_sectors(size), kIn) < (ssize_t)size) fail("a piece");
        put(fd, 1, room, number, 0, 0);
        for (size_t done = 0; done < size;) {
            const ssize_t now = write(to, piece + done, size - done);
            if (now < 0) exit(0);  // the program has ended, which the other process says
            done += (size_t)now;
        }
    }
}

static void carry_out(int from, pid_t program) {
    const int fd = disk();
    char *room = buffer(kSector), *piece = buffer(kPiece);
    for (uint64_t number = 1;; ++number) {
        const ssize_t size = read(from, piece, kPiece);
        if (size < 0) fail("output");
        if (size > 0 && pwrite(fd, piece, whole_sectors((size_t)size), kOut) < size) fail("a piece");
        int status = 0;
        if (size == 0) waitpid(program, &status, 0);
        put(fd, 2, room, number, (uint64_t)size, (uint64_t)(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status)));
        uint64_t found[2];
        wait_for(fd, 3, number, room, found);
        if (size == 0) return;
    }
}

static void load_drivers(void) {
    char name[32];
    for (int i = 0;; ++i) {
        snprintf(name, sizeof name, "/drivers/%d.ko", i);
        const int fd = open(name, O_RDONLY);
        if (fd < 0) return;
        if (syscall(SYS_finit_module, fd, "", 0) != 0) perror(name);
        close(fd);
    }
}

// "/cases" and what the file of arguments says, each with a zero behind.
static void run(void) {
    static char text[4096];
    char* argv[64] = {"/cases"};
    const int fd = open("/arguments", O_RDONLY);
    const ssize_t size = read(fd, text, sizeof text - 1);
    int count = 1;
    for (ssize_t at = 0; at < size && count < 63; at += (ssize_t)strlen(text + at) + 1) argv[count++] = text + at;
    execv(argv[0], argv);
    fail(argv[0]);
}

int main(void) {
    mkdir("/dev", 0755);
    mkdir("/proc", 0755);
    mount("dev", "/dev", "devtmpfs", 0, "");
    mount("proc", "/proc", "proc", 0, "");
    const int console = open("/dev/ttyS0", O_RDWR);
    if (console >= 0) dup2(console, 1), dup2(console, 2);
    load_drivers();
    for (int i = 0; i < 3000 && access("/dev/sda", F_OK) != 0; ++i) usleep(10000);

    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) fail("pipes");
    const pid_t program = fork();
    if (program == 0) {
        dup2(in[0], 0);
        dup2(out[1], 1);
        run();
    }
    close(in[0]);
    close(out[1]);
    if (fork() == 0) {
        close(out[0]);
        carry_in(in[1]);
    }
    close(in[1]);
    carry_out(out[0], program);
    reboot(RB_POWER_OFF);
    return 0;
}
