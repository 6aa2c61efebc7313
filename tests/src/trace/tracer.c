/* I/O: runs a program under ptrace and kills it when it is about to make a chosen system call: tracer REPORT CALL PROGRAM [ARGUMENT...].
 *
 * CALL counts from 1 over all threads of the program, from its first call after exec on; 0 kills never. A call that the program is killed at
 * does not happen. Programs that it starts are not traced. REPORT becomes one line of JSON. In C, because ptrace has no safe form in Rust.
 *
 * With the word "time" in the place of CALL only sends stop the program, so that the time until its first message on a netlink socket is its own but for
 * that one stop; then the calls of the report are these alone. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MOST_CALLS = 1000000, LIMIT_SECONDS = 60 };

static int numbers[MOST_CALLS];
static long calls, kill_at, before_netlink = -1, netlink_ns, peak_kib;
static int started, killed, timing;
/* When timing, in memory that the program shares until it is executed, so that it can take the time itself right before that. */
static struct timespec *start;

static void fail(const char *what) {
    perror(what);
    exit(125);
}

static long since_start(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (now.tv_sec - start->tv_sec) * 1000000000L + now.tv_nsec - start->tv_nsec;
}

/* VmHWM while the process still has its memory. */
static long peak_of(pid_t pid) {
    char path[64], line[256];
    long kib = 0;
    snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *status = fopen(path, "r");
    while (status && fgets(line, sizeof line, status))
        if (sscanf(line, "VmHWM: %ld", &kib) == 1)
            break;
    if (status)
        fclose(status);
    return kib;
}

/* Whether a descriptor of the program is a netlink socket. */
static int is_netlink(pid_t program, int fd) {
    int domain = -1;
    socklen_t size = sizeof domain;
    int process = (int)syscall(SYS_pidfd_open, program, 0);
    int copy = (int)syscall(SYS_pidfd_getfd, process, fd, 0);
    if (process < 0 || copy < 0)
        fail("look at a descriptor");
    if (getsockopt(copy, SOL_SOCKET, SO_DOMAIN, &domain, &size) < 0 && errno != ENOTSOCK)
        fail("getsockopt");
    close(copy);
    close(process);
    return domain == AF_NETLINK;
}

/* One stop on entry to or exit from a call. */
static void at_call(pid_t program, pid_t thread) {
    struct __ptrace_syscall_info info;
    /* A thread that is being killed answers nothing. */
    if (!started || ptrace(PTRACE_GET_SYSCALL_INFO, thread, sizeof info, &info) < 0)
        return;
    /* A stop of the filter tells number and arguments in the places where one on entry tells them. */
    if (info.op != (timing ? PTRACE_SYSCALL_INFO_SECCOMP : PTRACE_SYSCALL_INFO_ENTRY))
        return;
    if (calls + 1 == kill_at || calls == MOST_CALLS) {
        killed = 1;
        kill(program, SIGKILL);
        return;
    }
    long number = (long)info.entry.nr;
    if (before_netlink < 0 && (number == SYS_sendto || number == SYS_sendmsg)) {
        long ns = since_start();
        if (is_netlink(program, (int)info.entry.args[0])) {
            before_netlink = calls;
            netlink_ns = ns;
        }
    }
    numbers[calls++] = (int)number;
}

/* Follows the program to its end and gives its exit code, -1 if it was killed. */
static int follow(pid_t program) {
    for (;;) {
        int status, signal = 0;
        pid_t thread = waitpid(-1, &status, __WALL);
        if (thread < 0)
            fail("waitpid");
        if (WIFEXITED(status) || WIFSIGNALED(status)) {
            if (thread != program)
                continue;
            if (WIFSIGNALED(status) && !killed) {
                fprintf(stderr, "the program was ended by signal %d after %ld calls\n", WTERMSIG(status), calls);
                exit(125);
            }
            return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
        }
        int event = status >> 16;
        if (event == PTRACE_EVENT_EXEC) {
            started = 1;
            clock_gettime(CLOCK_MONOTONIC, start);
        } else if (event == PTRACE_EVENT_SECCOMP) {
            at_call(program, thread);
        } else if (event == PTRACE_EVENT_EXIT) {
            if (thread == program)
                peak_kib = peak_of(thread);
        } else if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
            at_call(program, thread);
        } else if (event == 0 && WSTOPSIG(status) != SIGSTOP) {
            /* SIGSTOP is how a new thread begins. */
            signal = WSTOPSIG(status);
        }
        /* Fails for a thread that was killed; its end is reported next. */
        ptrace(timing ? PTRACE_CONT : PTRACE_SYSCALL, thread, 0, signal);
    }
}

/* Lets the calls that send stop the program, and no other. */
static void stop_at_sends(void) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sendto, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_sendmsg, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog all = {sizeof filter / sizeof *filter, filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &all) < 0)
        fail("seccomp");
}

static void report(const char *path, int code) {
    FILE *file = fopen(path, "w");
    if (!file)
        fail(path);
    fprintf(file, "{\"exit\":%d,\"before_netlink\":%ld,\"netlink_ns\":%ld,\"peak_kib\":%ld,\"calls\":[", code, before_netlink, netlink_ns, peak_kib);
    for (long at = 0; at < calls; at++)
        fprintf(file, "%s%d", at ? "," : "", numbers[at]);
    fprintf(file, "]}\n");
    if (fclose(file))
        fail(path);
}

/* What becomes the program. */
static void become(char **program, int go) {
    char byte;
    if (timing) {
        /* The tracer closes its end when it is ready. */
        if (read(go, &byte, 1) < 0)
            fail("read");
        stop_at_sends();
        clock_gettime(CLOCK_MONOTONIC, start);
    } else {
        if (ptrace(PTRACE_TRACEME, 0, 0, 0) < 0)
            fail("traceme");
        raise(SIGSTOP);
        if (personality(ADDR_NO_RANDOMIZE) < 0) /* or two runs differ in how often they ask for memory */
            fail("personality");
    }
    execv(program[0], program);
    fail(program[0]);
}

/* Starts the program on the tracer's own processor, and stops it at nothing but sends: a stop at exec or another processor's awakening would be counted. */
static pid_t start_timed(char **program) {
    int go[2];
    cpu_set_t here;
    CPU_ZERO(&here);
    CPU_SET(sched_getcpu(), &here);
    if (sched_setaffinity(0, sizeof here, &here) < 0 || pipe2(go, O_CLOEXEC) < 0)
        fail("prepare");
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (child == 0) {
        close(go[1]);
        become(program, go[0]);
    }
    if (ptrace(PTRACE_SEIZE, child, 0, PTRACE_O_EXITKILL | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXIT | PTRACE_O_TRACESECCOMP) < 0)
        fail("seize");
    started = 1;
    close(go[0]);
    close(go[1]);
    return child;
}

static pid_t start_stepped(char **program) {
    int status;
    pid_t child = fork();
    if (child < 0)
        fail("fork");
    if (child == 0)
        become(program, -1);
    long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC | PTRACE_O_TRACEEXIT | PTRACE_O_EXITKILL;
    if (waitpid(child, &status, 0) < 0 || ptrace(PTRACE_SETOPTIONS, child, 0, options) < 0)
        fail("trace");
    ptrace(PTRACE_SYSCALL, child, 0, 0);
    return child;
}

int main(int argc, char **argv) {
    if (argc < 4) {
        fprintf(stderr, "usage: tracer REPORT CALL PROGRAM [ARGUMENT...]\n");
        return 125;
    }
    timing = strcmp(argv[2], "time") == 0;
    kill_at = atol(argv[2]);
    start = mmap(NULL, sizeof *start, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED)
        fail("mmap");
    clock_gettime(CLOCK_MONOTONIC, start);
    /* If the program hangs, this ends the tracer and with it the program. */
    alarm(LIMIT_SECONDS);
    report(argv[1], follow(timing ? start_timed(argv + 3) : start_stepped(argv + 3)));
    return 0;
}
