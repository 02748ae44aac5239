/* Preloaded into the operator: once it has read the first answer with a token, its next look at the clock fails, so that Rust's own
   library panics there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { WAITING, ARMED, DONE };
static atomic_int state = WAITING;

ssize_t recv(int socket, void *buffer, size_t length, int flags) {
  ssize_t (*real)(int, void *, size_t, int) = dlsym(RTLD_NEXT, "recv");
  ssize_t count = real(socket, buffer, length, flags);
  int expected = WAITING;
  if (count > 0 && memmem(buffer, count, "authorizationToken", strlen("authorizationToken")))
    atomic_compare_exchange_strong(&state, &expected, ARMED);
  return count;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
  int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
  int expected = ARMED;
  if (clock == CLOCK_REALTIME && atomic_compare_exchange_strong(&state, &expected, DONE)) {
    errno = EINVAL;
    return -1;
  }
  return real(clock, time);
}
