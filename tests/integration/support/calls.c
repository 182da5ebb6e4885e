// SPDX-FileCopyrightText: The crashcart.fleet contributors
// SPDX-License-Identifier: GPL-3.0-or-later
// Makes system calls whose order and results strace and a trace have to agree on: calls SCENE. It waits for a byte from the pipe `go` first.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define NR BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))
#define ANSWER(number, answer) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), BPF_STMT(BPF_RET | BPF_K, answer)

static void run(const char *program, const char *scene) { execl(program, program, scene, (char *)0); }

// Tests compare the calls after this one.
static void mark(void) { getpgid(0); }

static void wait_for_go(void) {
    char byte;
    int go = open("go", O_RDONLY);
    if (read(go, &byte, 1) != 1) _exit(1);
    close(go);
    mark();
}

static void single(void) {
    int ends[2];
    long result;
    if (pipe(ends)) _exit(1);
    getpid();
    open("/nonesuch", O_RDONLY);
    close(99);
    // The result is a negative number where the descriptor's owner is a process group. No C library calls F_GETOWN any more.
    setpgid(0, 0);
    fcntl(ends[0], F_SETOWN, -getpgrp());
    syscall(SYS_fcntl, ends[0], F_GETOWN);
    syscall(SYS_fcntl, 99, F_GETOWN);
    // Invalid numbers, numbers of other entries into the kernel, and numbers with more than 32 bits.
    syscall(65536 + SYS_getpid);
    syscall(65536 + SYS_fork);
    syscall(0x40000000 + SYS_getpid);
    syscall(1000);
    syscall(-1L);
    syscall(-5L);
    syscall(0x100000000 + SYS_getpid);
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(20L) : "memory", "r8", "r9", "r10", "r11");
    syscall(SYS_times, 0);
}

static void *run_another(void *unused) {
    prctl(PR_SET_NAME, "runner");
    usleep(20000);
    run("./calls", "after");
    return unused;
}

static void *call_for_ever(void *unused) {
    for (;;) getppid(), usleep(1000);
    return unused;
}

static void threaded(void) {
    pthread_t busy, runner;
    pthread_create(&busy, 0, call_for_ever, 0);
    pthread_create(&runner, 0, run_another, 0);
    pthread_join(runner, 0);
}

static void forking(void) {
    for (int number = 0; number < 4; number++) {
        pid_t child = fork();
        if (!child) {
            getppid();
            if (number == 1) run("/nonesuch", "after");
            if (number == 2) run("./calls", "after");
            if (number == 3) run("./calls32", "after");
            _exit(number);
        }
        waitpid(child, 0, 0);
    }
    pid_t child = vfork();
    if (!child) {
        run("./calls", "after");
        _exit(1);
    }
    waitpid(child, 0, 0);
    waitpid(-1, 0, 0);
}

static void handle(int number) {
    (void)number;
    syscall(SYS_getuid);
}

static void set_handler(int flags) {
    struct sigaction action = {.sa_handler = handle, .sa_flags = flags};
    sigaction(SIGALRM, &action, 0);
}

static void set_timer(int microseconds) {
    struct itimerval timer = {.it_value.tv_usec = microseconds};
    setitimer(ITIMER_REAL, &timer, 0);
}

static void signals(void) {
    char byte;
    int ends[2];
    pid_t self = getpid();
    struct timespec moment = {.tv_nsec = 60000000}, second = {.tv_sec = 1};
    if (pipe(ends)) _exit(1);
    set_handler(SA_RESTART);
    if (!fork()) {
        for (int number = 0; number < 3; number++) usleep(30000), kill(self, SIGALRM);
        usleep(30000);
        _exit(write(ends[1], "x", 1) != 1);
    }
    if (read(ends[0], &byte, 1) != 1) _exit(1);
    wait(0);
    set_handler(0);
    set_timer(20000);
    if (read(ends[0], &byte, 1) != -1) _exit(1);
    set_timer(20000);
    pause();
    set_timer(20000);
    nanosleep(&moment, 0);
    kill(self, SIGALRM);
    pid_t child = fork();
    if (!child) {
        usleep(50000);
        kill(self, SIGSTOP);
        usleep(50000);
        kill(self, SIGCONT);
        usleep(50000);
        _exit(0);
    }
    nanosleep(&second, 0);
    wait(0);
    // A waiting process is killed.
    child = fork();
    if (!child) pause();
    usleep(50000);
    kill(child, SIGKILL);
    waitpid(child, 0, 0);
}

static void filter(void) {
    struct sock_filter program[] = {
        NR,
        ANSWER(SYS_getppid, SECCOMP_RET_ERRNO | EPERM),
        ANSWER(SYS_getuid, SECCOMP_RET_ERRNO),
        ANSWER(SYS_geteuid, SECCOMP_RET_TRACE | 7),
        ANSWER(SYS_getgid, SECCOMP_RET_TRAP | 3),
        ANSWER(SYS_read, SECCOMP_RET_TRAP),
        ANSWER(SYS_openat, SECCOMP_RET_ERRNO | EACCES),
        ANSWER(SYS_getegid, SECCOMP_RET_KILL_PROCESS),
        ANSWER(SYS_sync, SECCOMP_RET_KILL_THREAD),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog filter = {sizeof program / sizeof *program, program};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter);
}

static void note(int number) { (void)number; }

static void *be_killed(void *unused) {
    syscall(SYS_sync);
    return unused;
}

static void denied(void) {
    struct sigaction action = {.sa_handler = note};
    pthread_t thread;
    sigaction(SIGSYS, &action, 0);
    pid_t child = fork();
    if (!child) {
        filter();
        getegid();
        _exit(0);
    }
    waitpid(child, 0, 0);
    child = fork();
    if (!child) {
        filter();
        pthread_create(&thread, 0, be_killed, 0);
        usleep(50000);
        _exit(0);
    }
    waitpid(child, 0, 0);
    filter();
    getppid();
    getuid();
    geteuid();
    getgid();
    syscall(SYS_read, 99, 0, 0);
    open("/nonesuch", O_RDONLY);
    getpid();
}

// Submits three requests by one call, without liburing.
static void rings(void) {
    struct io_uring_params parameters = {0};
    int ring = syscall(SYS_io_uring_setup, 4, &parameters);
    char *queue = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    struct io_uring_sqe *entries = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
    unsigned *order = (unsigned *)(queue + parameters.sq_off.array), *tail = (unsigned *)(queue + parameters.sq_off.tail);
    if (ring < 0 || queue == MAP_FAILED || entries == MAP_FAILED) _exit(1);
    entries[0] = (struct io_uring_sqe){.opcode = IORING_OP_OPENAT, .fd = AT_FDCWD, .addr = (unsigned long)"/nonesuch"};
    entries[1] = (struct io_uring_sqe){.opcode = IORING_OP_NOP};
    entries[2] = (struct io_uring_sqe){.opcode = IORING_OP_NOP};
    for (unsigned number = 0; number < 3; number++) order[number] = number;
    __atomic_store_n(tail, 3, __ATOMIC_RELEASE);
    syscall(SYS_io_uring_enter, ring, 3, 3, IORING_ENTER_GETEVENTS, 0, 0);
}

int main(int count, char **arguments) {
    const char *scene = count > 1 ? arguments[1] : "";
    if (!strcmp(scene, "after")) {
        close(98);
        _exit(0);
    }
    wait_for_go();
    if (!strcmp(scene, "single")) single();
    if (!strcmp(scene, "threaded")) threaded();
    if (!strcmp(scene, "forking")) forking();
    if (!strcmp(scene, "signals")) signals();
    if (!strcmp(scene, "denied")) denied();
    if (!strcmp(scene, "rings")) rings();
    _exit(0);
}
