#pragma once
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

/// How a child process ended.
struct ChildEnd {
  int exit_code = -1;  ///< -1: it was ended by a signal
  int signal = 0;      ///< SIGALRM: it took longer than 30 seconds
};

/// Runs `body` in a child process, so that a test can watch something hang or crash and go on. What `body` returns is the
/// child's exit code; an exception becomes 99. The caller must have no other thread.
template <class Body>
ChildEnd run_in_child(Body body) {
  const pid_t child = ::fork();
  if (child == 0) {
    for (const int signal : {SIGABRT, SIGBUS, SIGSEGV})
      std::signal(signal, SIG_DFL);  // not the test program's handlers
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
