#pragma once
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstddef>
#include <fstream>

/// How a child process ended.
struct ChildEnd {
  int exit_code = -1;  ///< -1: it was ended by a signal
  int signal = 0;      ///< SIGALRM: it took longer than 30 seconds
};

/// Leaves this process `bytes` of address space beyond what it has; a child process calls it.
inline void leave_memory(std::size_t bytes) {
  std::size_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  const auto limit = static_cast<rlim_t>(pages * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)) + bytes);
  const rlimit both{limit, limit};
  ::setrlimit(RLIMIT_AS, &both);
}

// KVC_TEST_LIMITS_MEMORY: tests may use leave_memory(). Sanitizers take address space themselves, without end.
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define KVC_TEST_SANITIZED
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define KVC_TEST_SANITIZED
#endif
#if defined(__linux__) && !defined(KVC_TEST_SANITIZED)
#define KVC_TEST_LIMITS_MEMORY
#endif

/// Runs `body` in a child process, so that a test can watch something hang or crash and go on. What `body` returns is the
/// child's exit code; an exception becomes 99. The caller must have no other thread.
template <class Body>
ChildEnd run_in_child(Body body) {
  const pid_t child = ::fork();
  if (child == 0) {
    // Not the test program's handlers, which would print a report.
    for (const int signal : {SIGABRT, SIGBUS, SIGSEGV, SIGINT, SIGTERM, SIGHUP}) std::signal(signal, SIG_DFL);
    ::alarm(30);
    int code = 99;
    try {
      code = body();
    } catch (...) {
    }
    ::_exit(code);
  }
  int status = 0;
  if (child < 0 || ::waitpid(child, &status, 0) != child) return {};
  if (WIFSIGNALED(status)) return {-1, WTERMSIG(status)};
  return {WEXITSTATUS(status), 0};
}
