// SPDX-FileCopyrightText: The crashcart.fleet contributors
// SPDX-License-Identifier: GPL-3.0-or-later
// Programs that are broken, each in one way: app FAULT. They go on trying, as services do. faults.py says what each container needs.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void rest(long milliseconds) {
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    while (nanosleep(&time, &time) != 0 && errno == EINTR) continue;
}

static void read_all(const char *path) {
    char text[256];
    int fd = open(path, O_RDONLY);
    if (fd < 0) return;
    while (read(fd, text, sizeof text) > 0) continue;
    close(fd);
}

static int dial(const char *address, int port) {
    struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, address, &peer.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    int failed = connect(fd, (struct sockaddr *)&peer, sizeof peer);
    close(fd);
    return failed;
}

static int dial_path(const char *path) {
    struct sockaddr_un peer = {.sun_family = AF_UNIX};
    strcpy(peer.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    int failed = connect(fd, (struct sockaddr *)&peer, sizeof peer);
    close(fd);
    return failed;
}

// A child that accepts connections at PORT, and closes them.
static void serve(int port) {
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&own, sizeof own) != 0 || listen(fd, 16) != 0) exit(1);
    if (fork() == 0)
        for (;;) close(accept(fd, NULL, NULL));
    close(fd);
}

static void run(const char *program) {
    pid_t child = fork();
    if (child == 0) {
        execl(program, program, (char *)NULL);
        _exit(127);
    }
    if (child > 0) waitpid(child, NULL, 0);
}

// A child that holds the lock of PATH for good: flock's, or fcntl's.
static void hold(const char *path, int is_flock) {
    int ready[2];
    char byte;
    if (pipe(ready) != 0) exit(1);
    if (fork() == 0) {
        struct flock whole = {.l_type = F_WRLCK};
        int fd = open(path, O_RDWR | O_CREAT, 0644);
        if (is_flock ? flock(fd, LOCK_EX) : fcntl(fd, F_SETLK, &whole)) _exit(1);
        if (write(ready[1], "x", 1) != 1) _exit(1);
        for (;;) pause();
    }
    if (read(ready[0], &byte, 1) != 1) exit(1);
    close(ready[0]);
    close(ready[1]);
}

static void resolve(const char *name) {
    struct addrinfo *found = NULL, hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM};
    if (getaddrinfo(name, "5432", &hints, &found) == 0) freeaddrinfo(found);
}

static void missing_file(void) { for (;; rest(100)) read_all("/etc/app/settings.conf"); }

static void refused(void) { for (;; rest(100)) dial("127.0.0.1", 5432); }

static void denied(void) { for (;; rest(100)) read_all("/etc/app/secret.key"); }

static void lock(void) {
    hold("/var/lib/app/data.lock", 0);
    struct flock whole = {.l_type = F_WRLCK};
    int fd = open("/var/lib/app/data.lock", O_RDWR);
    for (;;) fcntl(fd, F_SETLKW, &whole);
}

static void leak(void) { for (;; rest(100)) open("/etc/app/app.conf", O_RDONLY); }

static void forks(void) {
    signal(SIGCHLD, SIG_IGN);
    for (;; rest(20))
        if (fork() == 0)
            for (;;) pause();
}

static void name_server(void) { for (;; rest(100)) resolve("db.internal.example"); }

static void architecture(void) { for (;; rest(100)) run("/opt/app/worker"); }

static void full(void) {
    static char block[16384];
    for (;; rest(100)) {
        int fd = open("/var/spool/app/queue", O_WRONLY | O_CREAT | O_APPEND, 0644);
        if (write(fd, block, sizeof block) < 0) rest(1);
        close(fd);
    }
}

// Works: reads what APP_CONFIG names, and asks what listens at APP_PORT.
static void configured(void) {
    const char *config = getenv("APP_CONFIG"), *port = getenv("APP_PORT");
    serve(5432);
    serve(5433);
    for (;; rest(100)) {
        read_all(config ? config : "/etc/app/app.conf");
        dial("127.0.0.1", port ? atoi(port) : 5432);
    }
}

// Other faults of the same kinds.

static void missing_folder(void) {
    struct stat status;
    for (;; rest(100)) stat("/srv/uploads/incoming", &status);
}

static void missing_socket(void) { for (;; rest(100)) dial_path("/run/app/worker.sock"); }

static void stale_socket(void) {
    struct sockaddr_un own = {.sun_family = AF_UNIX, .sun_path = "/var/lib/app/stale.sock"};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (bind(fd, (struct sockaddr *)&own, sizeof own) != 0) exit(1);
    close(fd);
    for (;; rest(100)) dial_path("/var/lib/app/stale.sock");
}

static void silent_peer(void) { for (;; rest(100)) dial("192.0.2.7", 443); }

static void no_network(void) { for (;; rest(100)) dial("198.51.100.9", 443); }

static void read_only(void) { for (;; rest(100)) if (open("/etc/app/state.json", O_WRONLY | O_CREAT, 0644) >= 0) return; }

static void not_permitted(void) { for (;; rest(100)) if (chown("/etc/app/app.conf", 1000, 1000) != 0) rest(1); }

static void lock_of_a_file(void) {
    hold("/var/lib/app/queue.lock", 1);
    int fd = open("/var/lib/app/queue.lock", O_RDWR);
    for (;;) flock(fd, LOCK_EX);
}

static void wake(int number) { (void)number; }

static void lock_with_a_timeout(void) {
    struct sigaction woken = {.sa_handler = wake};
    struct flock whole = {.l_type = F_WRLCK};
    hold("/var/lib/app/index.lock", 0);
    sigaction(SIGALRM, &woken, NULL);
    int fd = open("/var/lib/app/index.lock", O_RDWR);
    for (;; rest(100)) {
        alarm(2);
        fcntl(fd, F_SETLKW, &whole);
    }
}

static void lock_tried_again(void) {
    hold("/var/lib/app/cache.lock", 1);
    int fd = open("/var/lib/app/cache.lock", O_RDWR);
    for (;; rest(50)) flock(fd, LOCK_EX | LOCK_NB);
}

static void leak_of_sockets(void) {
    serve(8125);
    for (;; rest(100)) {
        struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(8125), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        connect(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&peer, sizeof peer);
    }
}

static void descriptors_used_up(void) {
    while (open("/etc/app/app.conf", O_RDONLY) >= 0) continue;
    for (;; rest(100)) open("/etc/app/other.conf", O_RDONLY);
}

static void *sleep_on(void *nothing) { for (;;) pause(); return nothing; }

static void threads_used_up(void) {
    pthread_t thread;
    for (;; rest(20)) pthread_create(&thread, NULL, sleep_on, NULL);
}

static void no_interpreter(void) { for (;; rest(100)) run("/opt/app/script"); }

static void carriage_return(void) { for (;; rest(100)) run("/opt/app/edited"); }

static void not_executable(void) { for (;; rest(100)) run("/opt/app/data"); }

static void no_loader(void) { for (;; rest(100)) run("/opt/app/foreign"); }

static void file_too_large(void) {
    static char block[8192];
    signal(SIGXFSZ, SIG_IGN);
    for (;; rest(100)) {
        int fd = open("/var/lib/app/journal", O_WRONLY | O_CREAT | O_APPEND, 0644);
        if (write(fd, block, sizeof block) < 0) rest(1);
        close(fd);
    }
}

static void crash(void) {
    for (;; rest(300)) {
        pid_t child = fork();
        if (child == 0) *(volatile int *)16 = 1;
        waitpid(child, NULL, 0);
    }
}

static void out_of_memory(void) {
    for (;; rest(300)) {
        pid_t child = fork();
        if (child == 0)
            for (;;) memset(malloc(1 << 20), 1, 1 << 20);
        waitpid(child, NULL, 0);
    }
}

static void pipe_that_nobody_reads(void) {
    static char block[4096];
    int ends[2];
    if (pipe(ends) != 0) exit(1);
    for (;;) if (write(ends[1], block, sizeof block) < 0) return;
}

static void child_that_hangs(void) {
    pid_t child = fork();
    if (child == 0)
        for (;;) pause();
    waitpid(child, NULL, 0);
}

static void deadlock(void) {
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&mutex);
    pthread_mutex_lock(&mutex);
}

static void storm_of_forks(void) {
    signal(SIGCHLD, SIG_IGN);
    for (;; rest(10))
        if (fork() == 0) {
            rest(2000);
            _exit(0);
        }
}

static void storm_of_closes(void) { for (;; rest(100)) for (int fd = 3; fd < 20000; fd++) close(fd); }

static const struct {
    const char *name;
    void (*run)(void);
} FAULTS[] = {
    {"missing_file", missing_file},
    {"refused", refused},
    {"denied", denied},
    {"lock", lock},
    {"leak", leak},
    {"forks", forks},
    {"name_server", name_server},
    {"architecture", architecture},
    {"full", full},
    {"configured", configured},
    {"missing_folder", missing_folder},
    {"missing_socket", missing_socket},
    {"stale_socket", stale_socket},
    {"silent_peer", silent_peer},
    {"no_network", no_network},
    {"read_only", read_only},
    {"not_permitted", not_permitted},
    {"lock_of_a_file", lock_of_a_file},
    {"lock_with_a_timeout", lock_with_a_timeout},
    {"lock_tried_again", lock_tried_again},
    {"leak_of_sockets", leak_of_sockets},
    {"descriptors_used_up", descriptors_used_up},
    {"threads_used_up", threads_used_up},
    {"no_interpreter", no_interpreter},
    {"carriage_return", carriage_return},
    {"not_executable", not_executable},
    {"no_loader", no_loader},
    {"file_too_large", file_too_large},
    {"crash", crash},
    {"out_of_memory", out_of_memory},
    {"pipe_that_nobody_reads", pipe_that_nobody_reads},
    {"child_that_hangs", child_that_hangs},
    {"deadlock", deadlock},
    {"name_server_soon", name_server},
    {"storm_of_forks", storm_of_forks},
    {"storm_of_closes", storm_of_closes},
};

int main(int count, char **words) {
    for (size_t index = 0; count > 1 && index < sizeof FAULTS / sizeof *FAULTS; index++)
        if (strcmp(words[1], FAULTS[index].name) == 0) {
            FAULTS[index].run();
            return 1;
        }
    fprintf(stderr, "usage: app FAULT\n");
    return 2;
}
