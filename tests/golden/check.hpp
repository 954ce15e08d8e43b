#pragma once
#include <kvc/shape.hpp>
#include <kvc/simd/isa.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "golden/case.hpp"

namespace golden {

/// How far a value may be off: absolute + relative * |expected|.
struct Tolerance {
  double absolute = 0, relative = 0;
};

/// How far codes may be off (the `compare_rule` of the quant folder): one level, at most this share of them, besides
/// those marked in `ties`, whose quotient lies between two levels.
struct CodeRule {
  double share = 0;
  std::span<const std::uint8_t> ties = {};
};

/// Every comparison of a case goes through here, so that none is lost: it counts what was compared, keeps each tensor's
/// worst difference, and knows which expected elements nothing has touched. A case runs in several ways (instruction
/// sets, prompt chunks); each must compare all of them again.
class Check {
 public:
  explicit Check(const Case& golden) : golden_(golden) {}

  /// Elements [first, first + got.size()) of a float tensor, with the manifest's tolerance or another.
  void values(const std::string& tensor, std::span<const float> got, std::size_t first = 0);
  void values(const std::string& tensor, std::span<const float> got, std::size_t first, Tolerance tolerance);
  /// Of a whole float tensor only the elements where `flags` is not 0: dequantized values whose codes agree.
  void values_where(const std::string& tensor, std::span<const float> got, std::span<const std::uint8_t> flags);
  /// A whole float tensor that holds quantized values without codes: a share of `rule` may be off by the element's step.
  void quantized_values(const std::string& tensor, std::span<const float> got, std::span<const float> steps,
                        CodeRule rule);
  /// Elements [first, first + got.size()) of a tensor of whole numbers, which must be equal.
  void integers(const std::string& tensor, std::span<const std::int32_t> got, std::size_t first = 0);
  /// Elements [first, first + count) as a set of indices, without the padding (-1). The difference counts indices that
  /// only one side has.
  void index_set(const std::string& tensor, std::span<const kvc::Position> got, std::size_t first, std::size_t count);
  /// All codes of a tensor, unpacked by the runner if they are packed. Returns 1 where they agree.
  std::vector<std::uint8_t> codes(const std::string& tensor, std::span<const std::int32_t> got,
                                  std::span<const std::int32_t> expected, CodeRule rule);
  /// Scores as a multiset (`tie_ambiguous`), instead of elements [first, first + count) of `tensor`.
  void multiset(const std::string& tensor, std::size_t first, std::size_t count, std::vector<float> got,
                std::vector<float> expected, Tolerance tolerance);
  /// A figure that is no tensor.
  void figure(const std::string& name, double got, double expected, Tolerance tolerance);

  /// These elements cannot be compared, for a reason that is printed.
  void not_compared(const std::string& tensor, std::size_t first, std::size_t count, const std::string& reason);
  void not_compared(const std::string& tensor, const std::string& reason);
  /// Anything else that is wrong.
  void fail(const std::string& sentence);

  /// Ends the way that ran until now and begins another; `name` appears in failures.
  void begin_way(const std::string& name);
  /// Must be called last: looks for what was not compared.
  void finish();

  /// Numbers compared in all.
  std::size_t compared() const;
  /// "tensor, worst difference, tolerance" of each failure; empty: all is well.
  const std::vector<std::string>& failures() const { return failures_; }
  /// What was not compared, and why.
  std::vector<std::string> notes() const;
  /// One line per tensor: how much was compared, the worst difference, its tolerance.
  std::vector<std::string> details() const;

 private:
  struct Finding {
    std::size_t compared = 0;
    double difference = 0, tolerance = 0;  // of the worst element
    std::size_t place = 0;
    std::string way;
    bool failed = false;
  };

  const Tensor& expected(const std::string& tensor, std::size_t first, std::size_t count);
  std::vector<std::uint8_t>& touched(const Tensor& tensor);
  void touch(const Tensor& tensor, std::size_t first, std::size_t count);
  void compare(const std::string& name, std::size_t place, double difference, double tolerance);
  Tolerance stated(const std::string& tensor) const;
  void end_way();

  const Case& golden_;
  std::string way_;
  std::map<std::string, Finding> findings_;
  std::map<std::string, std::vector<std::uint8_t>> touched_;
  std::map<std::string, std::map<std::string, std::size_t>> left_out_;  // tensor, reason, elements in this way
  std::size_t compared_in_way_ = 0;
  bool finished_ = false;
  std::vector<std::string> failures_;
};

/// Calls run() at every instruction set of this machine.
template <class Run>
void every_isa(Check& check, Run run) {
  for (const kvc::Isa isa : kvc::available_isas()) {
    const kvc::ScopedIsa scoped(isa);
    check.begin_way(to_string(isa));
    run();
  }
}

/// Calls run(chunk) at every instruction set of this machine, for a prompt whole and in chunks of 1, 7 and 16 tokens.
template <class Run>
void every_way(Check& check, std::size_t prompt, Run run) {
  for (const kvc::Isa isa : kvc::available_isas()) {
    const kvc::ScopedIsa scoped(isa);
    for (const std::size_t chunk : {prompt, std::size_t{1}, std::size_t{7}, std::size_t{16}}) {
      if (chunk > prompt) continue;
      check.begin_way(std::string(to_string(isa)) +
                      (chunk == prompt ? ", whole prompt" : ", prompt in chunks of " + std::to_string(chunk)));
      run(chunk);
    }
  }
}

}  // namespace golden
