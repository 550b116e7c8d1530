// A file layer that fails on command, for LD_PRELOAD: it counts every write, sync, truncation, creation,
// rename and removal below one folder, by Python and by SQLite alike, and at a chosen one kills the
// process or returns an error. It can also record them all, so that a power failure can be replayed.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { KILL = 1, TORN = 2, ONCE = 3, STICKY = 4 };
enum { MAX_FD = 4096 };

static char root[PATH_MAX];
static long at, count, action, code;
static int record = -1;
static char *names[MAX_FD];  // the path below the root that a descriptor was opened by

#define REAL(type, name, ...) \
    static type (*real_##name)(__VA_ARGS__); \
    if (!real_##name) real_##name = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

// Counts from now on; at the n-th operation do what `what` says (0: nothing). error is its errno.
void faults_arm(const char *folder, long n, long what, long error) {
    snprintf(root, sizeof root, "%s", folder);
    at = n, action = what, code = error, count = 0;
}

long faults_count(void) { return count; }

static void put(const void *data, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    if (real_write(record, data, size) != (ssize_t)size) abort();
}

// One line of the record: operation, offset, two strings with their lengths, then data.
static void note(char op, long offset, const char *a, const char *b, const void *data, size_t size) {
    if (record < 0) return;
    char head[80];
    int n = snprintf(head, sizeof head, "%c %ld %zu %zu %zu\n", op, offset, strlen(a), strlen(b), size);
    put(head, n);
    put(a, strlen(a));
    put(b, strlen(b));
    put(data, size);
}

void faults_record(const char *folder, const char *file) {
    snprintf(root, sizeof root, "%s", folder);
    REAL(int, open, const char *, int, ...);
    record = real_open(file, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
}

void faults_mark(const char *text) { note('m', 0, text, "", "", 0); }

static const char *inside(const char *path) {
    size_t n = strlen(root);
    return n && path && !strncmp(path, root, n) && (path[n] == '/' || !path[n]) ? path : NULL;
}

// The path of something that is named inside an open folder.
static const char *inside_of(int folder, const char *path, char *out) {
    if (!path || path[0] == '/' || folder == AT_FDCWD) return inside(path);
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t n = readlink(link, out, PATH_MAX - 1);
    if (n < 0) return NULL;
    snprintf(out + n, PATH_MAX - n, "/%s", path);
    return inside(out);
}

static const char *name_of(int fd) { return fd >= 0 && fd < MAX_FD ? names[fd] : NULL; }

// Whether this operation must fail; does not return if the process is to die here.
static int fails(int tearable) {
    count++;
    if (!action || count < at || (count > at && action != STICKY)) return 0;
    if (action == KILL || (action == TORN && !tearable)) raise(SIGKILL);
    if (action == TORN) return 2;
    errno = code;
    return 1;
}

static int opened(int fd, const char *path) {
    if (fd >= 0 && fd < MAX_FD) {
        free(names[fd]);
        names[fd] = inside(path) ? strdup(path) : NULL;
    }
    return fd;
}

static int create(const char *path, int flags) {
    if (!inside(path) || !(flags & O_CREAT)) return 0;
    struct stat status;
    if (!lstat(path, &status)) return 0;
    if (fails(0)) return -1;
    note('c', 0, path, "", "", 0);
    return 0;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list list; \
        va_start(list, flags); \
        int mode = va_arg(list, int); \
        va_end(list); \
        REAL(int, name, const char *, int, ...); \
        if (create(path, flags)) return -1; \
        if ((flags & O_TRUNC) && inside(path)) note('t', 0, path, "", "", 0); \
        return opened(real_##name(path, flags, mode), path); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        va_list list; \
        va_start(list, flags); \
        int mode = va_arg(list, int); \
        va_end(list); \
        REAL(int, name, int, const char *, int, ...); \
        char buffer[PATH_MAX]; \
        const char *full = inside_of(folder, path, buffer); \
        if (full && create(full, flags)) return -1; \
        if ((flags & O_TRUNC) && full) note('t', 0, full, "", "", 0); \
        return opened(real_##name(folder, path, flags, mode), full); \
    }
OPENAT(openat)
OPENAT(openat64)

int close(int fd) {
    REAL(int, close, int);
    if (name_of(fd)) free(names[fd]), names[fd] = NULL;
    return real_close(fd);
}

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, write, int, const void *, size_t);
    const char *name = name_of(fd);
    if (!name) return real_write(fd, data, size);
    int failed = fails(1);
    if (failed == 1) return -1;
    if (failed == 2) real_write(fd, data, size / 2), raise(SIGKILL);
    long offset = lseek(fd, 0, SEEK_CUR);
    ssize_t n = real_write(fd, data, size);
    if (n > 0) note('w', offset, name, "", data, n);
    return n;
}

#define PWRITE(called, offset_t) \
    ssize_t called(int fd, const void *data, size_t size, offset_t offset) { \
        REAL(ssize_t, called, int, const void *, size_t, offset_t); \
        const char *name = name_of(fd); \
        if (!name) return real_##called(fd, data, size, offset); \
        int failed = fails(1); \
        if (failed == 1) return -1; \
        if (failed == 2) real_##called(fd, data, size / 2, offset), raise(SIGKILL); \
        ssize_t n = real_##called(fd, data, size, offset); \
        if (n > 0) note('w', offset, name, "", data, n); \
        return n; \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define TRUNCATE(called, offset_t) \
    int called(int fd, offset_t size) { \
        REAL(int, called, int, offset_t); \
        const char *name = name_of(fd); \
        if (name && fails(0)) return -1; \
        int result = real_##called(fd, size); \
        if (name && !result) note('t', size, name, "", "", 0); \
        return result; \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

#define SYNC(called) \
    int called(int fd) { \
        REAL(int, called, int); \
        const char *name = name_of(fd); \
        if (name && fails(0)) return -1; \
        int result = real_##called(fd); \
        if (name && !result) note('s', 0, name, "", "", 0); \
        return result; \
    }
SYNC(fsync)
SYNC(fdatasync)

int rename(const char *old, const char *new) {
    REAL(int, rename, const char *, const char *);
    if (inside(old) && fails(0)) return -1;
    int result = real_rename(old, new);
    if (inside(old) && !result) note('r', 0, old, new, "", 0);
    return result;
}

int unlink(const char *path) {
    REAL(int, unlink, const char *);
    struct stat status;
    int known = inside(path) && !lstat(path, &status);
    if (known && fails(0)) return -1;
    int result = real_unlink(path);
    if (known && !result) note('u', 0, path, "", "", 0);
    return result;
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, mkdir, const char *, mode_t);
    if (inside(path) && fails(0)) return -1;
    int result = real_mkdir(path, mode);
    if (inside(path) && !result) note('d', 0, path, "", "", 0);
    return result;
}

int unlinkat(int folder, const char *path, int flags) {
    REAL(int, unlinkat, int, const char *, int);
    char buffer[PATH_MAX];
    const char *full = flags ? NULL : inside_of(folder, path, buffer);
    struct stat status;
    int known = full && !lstat(full, &status);
    if (known && fails(0)) return -1;
    int result = real_unlinkat(folder, path, flags);
    if (known && !result) note('u', 0, full, "", "", 0);
    return result;
}

int linkat(int from, const char *old, int to, const char *new, int flags) {
    REAL(int, linkat, int, const char *, int, const char *, int);
    char buffer[PATH_MAX];
    if (inside_of(to, new, buffer) && fails(0)) return -1;
    return real_linkat(from, old, to, new, flags);
}
