/* Leaving the directory when a signal ends the process.
 *
 * A process that nobody taught to handle SIGTERM or SIGHUP ends without running another line of
 * Python.  While it is in the directory, this handler stands in the default's place: it removes
 * what carries the process's name, and ends the process as the default would have done.  It is
 * not seen by Python, whose own handler replaces it when one is set.
 *
 * A handler may call little (signal-safety(7)): here system calls only, no memory, no lock.
 */
#include "core.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static const int signals[] = {SIGTERM, SIGHUP};
#define SIGNALS (sizeof signals / sizeof *signals)

static struct {
    pid_t process; /* 0: nobody; a child has inherited the handler, and not the files */
    int directory; /* of the segments */
    char prefix[XSHM_NAME_SIZE];
    char process_file[PATH_MAX];
} leaving;

/* What getdents64(2) writes. */
struct entry {
    uint64_t inode;
    int64_t next;
    unsigned short size;
    unsigned char type;
    char name[];
};

static bool
ends_with(const char *name, const char *ending)
{
    size_t length = strlen(name), wanted = strlen(ending);
    return length >= wanted && strcmp(name + length - wanted, ending) == 0;
}

/* Remove this process's files; messages may still be read, and notes of containers that end
 * with the process need more than a handler may do: with these, the janitor finds the rest. */
static void
remove_files(void)
{
    int folder = openat(leaving.directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) {
        return;
    }
    bool keep = false;
    size_t prefix = strlen(leaving.prefix);
    _Alignas(struct entry) char entries[4096];
    long nbytes;
    while ((nbytes = syscall(SYS_getdents64, folder, entries, sizeof entries)) > 0) {
        for (long at = 0; at < nbytes;) {
            const struct entry *e = (const struct entry *)(entries + at);
            at += e->size;
            if (strncmp(e->name, leaving.prefix, prefix) != 0) {
                continue;
            }
            if (ends_with(e->name, ".message") || ends_with(e->name, ".lifetime")) {
                keep = true;
            }
            else {
                unlinkat(folder, e->name, 0);
            }
        }
    }
    close(folder);
    if (!keep && nbytes == 0) {
        unlink(leaving.process_file);
    }
}

static void
leave(int number)
{
    if (leaving.process == getpid()) {
        remove_files();
    }
    /* The default is in force again (SA_RESETHAND), and takes effect on return. */
    raise(number);
}

/* Is `number` handled by the default, or by us? */
static bool
is_handled_by(int number, void (*handler)(int))
{
    struct sigaction now;
    return sigaction(number, NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO) == 0
           && now.sa_handler == handler;
}

int
farewell_prepare(int directory, const char *owner, const char *process_file)
{
    leaving.process = 0;
    if (strlen(owner) + 1 >= sizeof leaving.prefix
        || strlen(process_file) >= sizeof leaving.process_file) {
        return -ENAMETOOLONG;
    }
    leaving.directory = directory;
    snprintf(leaving.prefix, sizeof leaving.prefix, "%s.", owner);
    strcpy(leaving.process_file, process_file);
    leaving.process = getpid();
    /* The first process of a container, which such a signal does not end: pid_namespaces(7). */
    bool is_init = leaving.process == 1;
    struct sigaction action = {.sa_handler = leave, .sa_flags = (int)SA_RESETHAND};
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < SIGNALS && !is_init; i++) {
        if (is_handled_by(signals[i], SIG_DFL)) {
            sigaction(signals[i], &action, NULL);
        }
    }
    return 0;
}

void
farewell_cancel(void)
{
    leaving.process = 0;
    for (size_t i = 0; i < SIGNALS; i++) {
        if (is_handled_by(signals[i], leave)) {
            signal(signals[i], SIG_DFL);
        }
    }
}
