/* Makes calls of the C library fail, or kills the process there. Preloaded by faulty_commands.py.

   Counted are calls on files below one folder. <fcntl.h> is left out, since it declares `open` with
   optional arguments; the calling convention of Linux lets us name them. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define NO_DESCRIPTOR (-100) /* AT_FDCWD */
enum { KILLED = -1, SHORT_WRITE = -2 }; /* any other fault is a number of <errno.h> */

static char folder[PATH_MAX];
static long first, last, num_calls;
static int fault;

/* From now on, let the calls `from` to `to` on files below a folder suffer `what`. */
void inject(const char *below, long from, long to, int what)
{
    snprintf(folder, sizeof folder, "%s", below);
    first = from, last = to, fault = what, num_calls = 0;
}

long count_calls(void) { return num_calls; }

static int is_below(int descriptor, const char *path)
{
    char link[64], name[PATH_MAX] = "";
    if (path == NULL || (path[0] != '/' && descriptor != NO_DESCRIPTOR)) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
        if (readlink(link, name, sizeof name - 1) < 0) return 0;
        path = name;
    }
    return strncmp(path, folder, strlen(folder)) == 0;
}

static int strikes(int descriptor, const char *path, int is_write)
{
    if (!folder[0] || (fault == SHORT_WRITE && !is_write) || !is_below(descriptor, path)) return 0;
    long call = num_calls++;
    if (call < first || call > last) return 0;
    if (fault == KILLED) raise(SIGKILL);
    errno = fault;
    return 1;
}

#define REAL(type, name, parameters) ((type(*) parameters)dlsym(RTLD_NEXT, #name))
#define FAILS(type, name, parameters, arguments, descriptor, path)     \
    type name parameters                                               \
    {                                                                  \
        if (strikes(descriptor, path, 0)) return -1;                   \
        return REAL(type, name, parameters) arguments;                 \
    }
#define FAILS_OR_IS_SHORT(name, parameters, arguments, short_arguments) \
    ssize_t name parameters                                            \
    {                                                                  \
        if (!strikes(fd, NULL, 1)) return REAL(ssize_t, name, parameters) arguments; \
        return fault == SHORT_WRITE ? REAL(ssize_t, name, parameters) short_arguments : -1; \
    }

FAILS(int, open, (const char *path, int flags, mode_t mode), (path, flags, mode), NO_DESCRIPTOR, path)
FAILS(int, open64, (const char *path, int flags, mode_t mode), (path, flags, mode), NO_DESCRIPTOR, path)
FAILS(int, openat, (int fd, const char *path, int flags, mode_t mode), (fd, path, flags, mode), fd, path)
FAILS(int, openat64, (int fd, const char *path, int flags, mode_t mode), (fd, path, flags, mode), fd, path)
FAILS(ssize_t, read, (int fd, void *to, size_t size), (fd, to, size), fd, NULL)
FAILS(int, fsync, (int fd), (fd), fd, NULL)
FAILS(int, fdatasync, (int fd), (fd), fd, NULL)
FAILS(int, ftruncate64, (int fd, off_t size), (fd, size), fd, NULL)
FAILS(int, mkdir, (const char *path, mode_t mode), (path, mode), NO_DESCRIPTOR, path)
FAILS(int, rename, (const char *from, const char *to), (from, to), NO_DESCRIPTOR, to)
FAILS(int, renameat, (int old, const char *from, int fd, const char *to), (old, from, fd, to), fd, to)
FAILS(int, unlink, (const char *path), (path), NO_DESCRIPTOR, path)
FAILS(int, unlinkat, (int fd, const char *path, int flags), (fd, path, flags), fd, path)
FAILS(int, rmdir, (const char *path), (path), NO_DESCRIPTOR, path)
FAILS_OR_IS_SHORT(write, (int fd, const void *from, size_t size), (fd, from, size), (fd, from, (size + 1) / 2))
FAILS_OR_IS_SHORT(pwrite64, (int fd, const void *from, size_t size, off_t at), (fd, from, size, at), (fd, from, (size + 1) / 2, at))
FAILS_OR_IS_SHORT(writev, (int fd, const struct iovec *parts, int count), (fd, parts, count), (fd, parts, 1))

int close(int fd) /* a descriptor is closed even where that fails */
{
    int failed = strikes(fd, NULL, 0), reason = errno, code = REAL(int, close, (int))(fd);
    if (failed) errno = reason;
    return failed ? -1 : code;
}
