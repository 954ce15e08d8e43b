#include "command.hpp"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <new>

#include "kvc/error.hpp"

namespace evaluation {
namespace {

/// If a standard stream is closed, the next file that is opened takes its number, and messages would be written into that
/// file. So the number is taken here: reading gives nothing, messages vanish, and writing results fails.
void occupy_standard_streams() {
  for (const int descriptor : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (::fcntl(descriptor, F_GETFD) < 0 && errno == EBADF)
      (void)::open("/dev/null", descriptor == STDERR_FILENO ? O_WRONLY : O_RDONLY);  // gets the lowest free number
}

/// Reading a mapped file that another program has cut short raises SIGBUS. Only what is safe in a handler is done here.
void end_at_cut_file(int) {
  constexpr char Message[] = "a file was cut short by another program while it was being read\n";
  (void)!::write(STDERR_FILENO, Message, sizeof Message - 1);
  ::_exit(2);
}

void complain(const std::string& name, const char* message) noexcept {
  for (const char* part : {name.c_str(), ": ", message, "\n"}) std::fputs(part, stderr);
}

}  // namespace

int run_command(const std::string& name, int argc, const char* const* argv,
                const std::function<void(std::span<const char* const>)>& work) {
  occupy_standard_streams();
  std::signal(SIGBUS, end_at_cut_file);
  try {
    const auto words = static_cast<std::size_t>(argc);
    work(std::span(argv, words).subspan(words == 0 ? 0 : 1));
    print("");
    return 0;
  } catch (const std::bad_alloc&) {
    complain(name, "not enough memory; a shorter prompt or fewer policies need less");
  } catch (const std::exception& error) {
    complain(name, error.what());
  } catch (...) {
    complain(name, "an unknown error");
  }
  return 2;
}

void tell(const std::string& text) noexcept {
  std::fputs(text.c_str(), stderr);
  std::fflush(stderr);
}

void print(const std::string& text) {
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  if (std::fflush(stdout) != 0 || !written || std::ferror(stdout))
    kvc::fail(kvc::ErrorCode::bad_file, std::string("standard output cannot be written: ") + std::strerror(errno));
}

}  // namespace evaluation
