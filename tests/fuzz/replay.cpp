// replay CORPUS [RUNS [SEED [LONGEST]]]: main() where the compiler has no libFuzzer. Gives the program every file of the folder,
// then RUNS inputs that are made of them. An input that fails is left as failing_input in the working directory.
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "fuzz/fuzz_input.hpp"
#include "fuzz/mutator.hpp"

// Under AddressSanitizer: an input of a few hundred bytes must not ask for gigabytes. (Weak: other builds lack them.)
extern "C" const char* __asan_default_options();
extern "C" const char* __asan_default_options() {
  return "max_allocation_size_mb=1024:allocator_may_return_null=0";
}
extern "C" [[gnu::weak]] void __sanitizer_set_death_callback(void (*callback)());

namespace {

const fuzz::Input* current = nullptr;

void save_current() {
  if (!current) return;
  if (std::FILE* file = std::fopen("failing_input", "wb")) {
    std::fwrite(current->data(), 1, current->size(), file);
    std::fclose(file);
    std::fprintf(stderr, "fuzz: the input is in failing_input (%zu bytes)\n", current->size());
  }
  current = nullptr;
}
[[noreturn]] void save_and_end(int signal) {
  save_current();
  std::signal(signal, SIG_DFL);
  std::raise(signal);
  std::abort();
}

void run(const fuzz::Input& input) {
  current = &input;
  LLVMFuzzerTestOneInput(input.data(), input.size());
  current = nullptr;
}

std::vector<fuzz::Input> read_corpus(const std::string& folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<fuzz::Input> corpus;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return corpus;
}

}  // namespace

int main(int argument_count, char** arguments) try {
  const auto argument = [&](int index, unsigned long fallback) {
    return argument_count > index ? std::strtoul(arguments[index], nullptr, 10) : fallback;
  };
  if (argument_count < 2) {
    std::fprintf(stderr, "usage: %s CORPUS [RUNS [SEED [LONGEST]]]\n", arguments[0]);
    return 2;
  }
  for (const int signal : {SIGSEGV, SIGABRT, SIGFPE, SIGILL, SIGBUS}) std::signal(signal, save_and_end);
  if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(save_current);

  const std::vector<fuzz::Input> corpus = read_corpus(arguments[1]);
  for (const fuzz::Input& input : corpus) run(input);
  const std::size_t understood = fuzz::understood();
  const unsigned long runs = argument(2, 0);
  fuzz::Mutator mutator(corpus, static_cast<std::uint32_t>(argument(3, 1)), argument(4, 16384));
  for (unsigned long i = 0; i < runs; ++i) {
    const fuzz::Input input = mutator.next();
    const std::size_t before = fuzz::understood();
    run(input);
    if (fuzz::understood() != before) mutator.keep(input);
  }
  std::printf("%zu inputs of the corpus, of which %zu were understood, and %lu made of them, of which %zu were\n",
              corpus.size(), understood, runs, fuzz::understood() - understood);
  return understood == 0 ? 1 : 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "fuzz: %s\n", error.what());
  save_current();
  return 1;
}
