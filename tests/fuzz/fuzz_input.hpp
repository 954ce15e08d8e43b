#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

/// What the programs of this folder share: an input as text, and as a script of small numbers.
namespace fuzz {

inline std::string_view text_of(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

/// Reads an input byte by byte; behind its end all numbers are 0.
class Script {
 public:
  Script(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}
  bool ended() const { return left_ == 0; }
  std::size_t byte() {
    if (left_ == 0) return 0;
    --left_;
    return *data_++;
  }
  /// A number below `bound`, which is at most 65,536.
  std::size_t below(std::size_t bound) {
    const std::size_t number = bound > 256 ? byte() * 256 + byte() : byte();
    return number % bound;
  }
  /// What has not been read yet.
  std::string_view rest() const { return text_of(data_, left_); }

 private:
  const std::uint8_t* data_;
  std::size_t left_;
};

/// Notes that the current input was more than refused: it went through what the program is there to try. replay.cpp wants such
/// inputs in a corpus, so that a program that refuses everything is no test that passes.
void note_understood();
std::size_t understood();

/// Ends the program, which is how a fuzzer learns of a failure.
[[noreturn]] void fail(const std::string& what);

}  // namespace fuzz

/// The one function of every program, by the name that libFuzzer calls.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);
