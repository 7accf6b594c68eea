/* A disk that hangs: while the file named by HANG_FILE exists, the calls in it do not return.
   They go on when it is removed. With <eio> in it syncs fail. Only files below HANG_FOLDER are on that disk.
   A clock that jumps: the seconds in the file named by CLOCK_FILE are added to wall-clock time. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int is_below(const char *path) {
    const char *folder = getenv("HANG_FOLDER");
    return folder && path && (path[0] != '/' || strncmp(path, folder, strlen(folder)) == 0);
}

static void hang(const char *call) {
    const char *name = getenv("HANG_FILE");
    for (;;) {
        char calls[256];
        int file = name ? (int)syscall(SYS_openat, AT_FDCWD, name, O_RDONLY | O_CLOEXEC) : -1;
        if (file < 0) return;
        long length = syscall(SYS_read, file, calls, sizeof calls - 1);
        syscall(SYS_close, file);
        if (length <= 0) return;
        calls[length] = 0;
        if (!strstr(calls, call)) return;
        usleep(5000);
    }
}

static void hang_at(int file, const char *call) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return;
    path[length] = 0;
    if (path[0] == '/' && is_below(path)) hang(call);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int fails(int file) {
    char link[64], path[4096], calls[256];
    const char *name = getenv("HANG_FILE");
    int control = name ? (int)syscall(SYS_openat, AT_FDCWD, name, O_RDONLY | O_CLOEXEC) : -1;
    if (control < 0) return 0;
    long length = syscall(SYS_read, control, calls, sizeof calls - 1);
    syscall(SYS_close, control);
    if (length <= 0) return 0;
    calls[length] = 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0 || !strstr(calls, "<eio>")) return 0;
    path[size] = 0;
    return path[0] == '/' && is_below(path);
}

static long step(void) {
    char text[32];
    const char *name = getenv("CLOCK_FILE");
    int file = name ? (int)syscall(SYS_openat, AT_FDCWD, name, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return 0;
    long length = syscall(SYS_read, file, text, sizeof text - 1);
    syscall(SYS_close, file);
    if (length <= 0) return 0;
    text[length] = 0;
    return atol(text);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int failed = (int)syscall(SYS_clock_gettime, clock, time);
    if (!failed && clock == CLOCK_REALTIME) time->tv_sec += step();
    return failed;
}
int gettimeofday(struct timeval *time, void *zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    time->tv_sec = now.tv_sec;
    time->tv_usec = now.tv_nsec / 1000;
    return 0;
}

int fdatasync(int file) {
    hang_at(file, "<sync>");
    if (fails(file)) { errno = EIO; return -1; }
    return NEXT(fdatasync)(file);
}
int fsync(int file) { hang_at(file, "<sync>"); return NEXT(fsync)(file); }
ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t offset) {
    hang_at(file, "<write>");
    return NEXT(pwrite64)(file, bytes, count, offset);
}
ssize_t write(int file, const void *bytes, size_t count) {
    hang_at(file, "<write>");
    return NEXT(write)(file, bytes, count);
}
ssize_t pread64(int file, void *bytes, size_t count, off64_t offset) {
    hang_at(file, "<read>");
    return NEXT(pread64)(file, bytes, count, offset);
}
int rename(const char *from, const char *to) {
    if (is_below(from)) hang("<rename>");
    return NEXT(rename)(from, to);
}
int unlink(const char *path) {
    if (is_below(path)) hang("<rename>");
    return NEXT(unlink)(path);
}
int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    int mode = va_arg(more, int);
    va_end(more);
    if (is_below(path)) hang("<open>");
    return NEXT(open64)(path, flags, mode);
}
