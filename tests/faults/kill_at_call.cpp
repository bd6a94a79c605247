// Preloaded into a process (LD_PRELOAD), kills it with SIGKILL at its Nth call that changes or syncs a file.
//   CAIRN_KILL_AT N     which call; 0 or unset: never
//   CAIRN_KILL_AFTER    set: when the call is done, else before it
//   CAIRN_HOLD_SYNC FILE  while it is there no file of a state is synced; FILE.held is made when one is to be
//   CAIRN_KILL_LOG FILE says there which call it was ("17 rename cairn-….saving"), or at exit how many there were ("60 exit")
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

std::atomic<long> calls{0};

void say(long number, const char* name, const char* path) {
  const char* log = std::getenv("CAIRN_KILL_LOG");
  if (log == nullptr) return;
  char line[512];
  const char* slash = std::strrchr(path, '/');
  const int length = std::snprintf(line, sizeof line, "%ld %s %s\n", number, name, slash != nullptr ? slash + 1 : path);
  const int file = static_cast<int>(::syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  if (file < 0) return;
  (void)!::write(file, line, static_cast<std::size_t>(length));
  ::close(file);
}

void path_of(int file, char (&path)[256]) {
  char link[64];
  std::snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  const ssize_t length = ::readlink(link, path, sizeof path - 1);
  path[length > 0 ? length : 0] = 0;
}

// A disk as slow as a test wants it.
void hold_sync(const char* path) {
  const char* hold = std::getenv("CAIRN_HOLD_SYNC");
  if (hold == nullptr || std::strstr(path, "/cairn-") == nullptr) return;
  char held[512];
  std::snprintf(held, sizeof held, "%s.held", hold);
  while (::access(hold, F_OK) == 0) {
    const int file = static_cast<int>(::syscall(SYS_openat, AT_FDCWD, held, O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    if (file >= 0) ::close(file);
    ::usleep(2000);
  }
}

template <class Call>
auto counted(const char* name, const char* path, Call call) {
  static const long fatal = [] {
    const char* text = std::getenv("CAIRN_KILL_AT");
    return text != nullptr ? std::atol(text) : 0L;
  }();
  static const bool after = std::getenv("CAIRN_KILL_AFTER") != nullptr;
  const bool last = ++calls == fatal;
  if (last && !after) {
    say(fatal, name, path);
    ::kill(::getpid(), SIGKILL);
  }
  auto result = call();
  if (last) {
    say(fatal, name, path);
    ::kill(::getpid(), SIGKILL);
  }
  return result;
}

template <class Function>
Function real(const char* name) {
  return reinterpret_cast<Function>(::dlsym(RTLD_NEXT, name));
}

struct AtExit {
  ~AtExit() { say(calls, "exit", ""); }
} at_exit;

int opened(const char* name, const char* path, int flags, mode_t mode) {
  static const auto next = real<int (*)(const char*, int, ...)>(name);
  const auto call = [&] { return next(path, flags, mode); };
  return (flags & O_CREAT) != 0 ? counted("create", path, call) : call();
}

}  // namespace

#define CAIRN_OPEN(function)                            \
  extern "C" int function(const char* path, int flags, ...) { \
    va_list more;                                       \
    va_start(more, flags);                              \
    const auto mode = (flags & O_CREAT) != 0 ? static_cast<mode_t>(va_arg(more, unsigned)) : 0; \
    va_end(more);                                       \
    return opened(#function, path, flags, mode);        \
  }
CAIRN_OPEN(open)
CAIRN_OPEN(open64)

extern "C" int rename(const char* from, const char* to) noexcept {
  static const auto next = real<int (*)(const char*, const char*)>("rename");
  return counted("rename", from, [&] { return next(from, to); });
}

extern "C" int unlink(const char* path) noexcept {
  static const auto next = real<int (*)(const char*)>("unlink");
  return counted("unlink", path, [&] { return next(path); });
}

// Of the writes only those to files of states: copies between the tiers. Logs and sockets are no business of this.
extern "C" ssize_t write(int file, const void* data, size_t bytes) {
  static const auto next = real<ssize_t (*)(int, const void*, size_t)>("write");
  char path[256];
  path_of(file, path);
  if (std::strstr(path, "/cairn-") == nullptr) return next(file, data, bytes);
  return counted("write", path, [&] { return next(file, data, bytes); });
}

#define CAIRN_ON_FILE(result, function, parameters, arguments)             \
  extern "C" result function parameters {                                 \
    static const auto next = real<result(*) parameters>(#function);        \
    char path[256];                                                        \
    path_of(file, path);                                                   \
    return counted(#function, path, [&] { return next arguments; });       \
  }
extern "C" int fsync(int file) {
  static const auto next = real<int (*)(int)>("fsync");
  char path[256];
  path_of(file, path);
  hold_sync(path);
  return counted("fsync", path, [&] { return next(file); });
}
CAIRN_ON_FILE(int, fdatasync, (int file), (file))
CAIRN_ON_FILE(ssize_t, pwrite, (int file, const void* data, size_t bytes, off_t offset), (file, data, bytes, offset))
CAIRN_ON_FILE(ssize_t, pwrite64, (int file, const void* data, size_t bytes, off64_t offset), (file, data, bytes, offset))
CAIRN_ON_FILE(int, ftruncate, (int file, off_t bytes) noexcept, (file, bytes))
CAIRN_ON_FILE(int, ftruncate64, (int file, off64_t bytes) noexcept, (file, bytes))
