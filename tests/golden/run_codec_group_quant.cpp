#include <kvc/policies/kivi.hpp>

#include "golden/group_quantized.hpp"
#include "golden/sealed.hpp"

namespace golden {
namespace {

using kvc::Axis;
using kvc::Fit;
using kvc::GroupQuant;

/// One quantized tensor of a case: its name, the name of what it reads back as, and how it is quantized.
struct Part {
  std::string input, dequant;
  GroupQuant format;
  View view;
  kvc::Role role = kvc::Role::key;
};

bool has_exactly(const Case& golden, std::initializer_list<const char*> expected) {
  std::size_t count = 0;
  for (const Tensor& tensor : golden.tensors()) count += tensor.role == TensorRole::expected;
  return count == expected.size() &&
         std::all_of(expected.begin(), expected.end(), [&](const char* name) { return golden.has(name); });
}

bool is_kivi(const Case& golden) {
  return golden.policy() == "kivi" && golden.has("k_code") && golden.has("v_code");
}
/// GEAR's groupwise quantizer without what GEAR adds to it, and KVTuner's vanilla one.
bool is_pair(const Case& golden) {
  return (golden.policy() == "gear" || golden.policy() == "kvtuner") && !golden.has_parameter("rank") &&
         !golden.has_parameter("sparsity") && has_exactly(golden, {"k_dequant", "v_dequant"});
}
/// RotateKV's quantizer without its rotation. It divides by bits^2 - 1 levels, which is 2^bits - 1 at 2 and 4 bits only.
bool is_rotatekv(const Case& golden) {
  return golden.policy() == "rotatekv" && golden.has_parameter("group") && golden.number("clip", 0) == 1 &&
         (golden.count("bits") == 2 || golden.count("bits") == 4) && has_exactly(golden, {"dequant"});
}
bool accepts(const Case& golden) {
  return golden.has_parameter("bits") && (is_kivi(golden) || is_pair(golden) || is_rotatekv(golden));
}

/// Keys in groups of consecutive tokens of a channel; values in groups of consecutive channels of a token.
std::vector<Part> parts(const Case& golden) {
  const auto bits = static_cast<unsigned>(golden.count("bits"));
  const auto format = [&](Axis axis, std::size_t group, Fit fit) {
    return GroupQuant{.bits = bits, .axis = axis, .group = group, .metadata = kvc::Scalar::f32, .fit = fit};
  };
  const auto view = [&](const std::string& tensor) {
    return View::flat(golden.floats(tensor).size(), golden.tensor(tensor).shape.back());
  };
  const std::size_t group = golden.count("group", 32);
  if (is_rotatekv(golden))
    return {{"x", "dequant", format(Axis::token, group, Fit::whole_zero), view("x"), kvc::Role::key}};
  // KVTuner: a value's group is the whole head.
  const bool kvtuner = golden.policy() == "kvtuner", kivi = golden.policy() == "kivi";
  const Fit fit = kvtuner ? Fit::whole_zero : Fit::min_max;
  const std::size_t value_group = kvtuner ? golden.tensor("v").shape.back() : group;
  return {{"k", "k_dequant", format(Axis::channel, group, fit), view("k"), kvc::Role::key},
          {"v", "v_dequant", format(Axis::token, value_group, fit),
           kivi || kvtuner ? view("v") : View::concatenated(golden.shape("v", 3)), kvc::Role::value}};
}

std::string lacks(const Case& golden) {
  for (const Part& part : parts(golden))
    if (const std::string why = refused(part.format, part.view.dim); !why.empty()) return why;
  return "";
}

/// KIVI's words of codes, [heads, words of tokens, dim] or [heads, tokens, words of dim], with scales and minima.
void compare_kivi(const Case& golden, Check& check, const Part& part, const GroupQuantized& got) {
  const std::vector<std::size_t> shape = golden.shape(part.input, 3);
  const std::size_t tokens = shape[1], dim = shape[2], group = part.format.group;
  const bool keys = part.role == kvc::Role::key;
  const auto group_of = [&](std::size_t i) {
    return keys ? i / dim / group * dim + i % dim : i / dim * (dim / group) + i % dim / group;
  };
  check.values(part.input + "_scale", GroupQuantized::by_group(got.scales, group, group_of), 0, Rounded);
  check.values(part.input + "_min", GroupQuantized::by_group(got.minima, group, group_of), 0, Rounded);
  const std::vector<std::int32_t> words = golden.integers(part.input + "_code");
  const auto agree = check.codes(part.input + "_code", got.codes,
                                 keys ? unpacked(words, shape[0], tokens, dim, part.format.bits)
                                      : unpacked(words, shape[0] * tokens, dim, 1, part.format.bits),
                                 OneInThousand);
  check.values_where(part.dequant, got.decoded, agree);
}

void run(const Case& golden, Check& check) {
  const std::vector<Part> all = parts(golden);
  every_isa(check, [&] {
    for (const Part& part : all) {
      const GroupQuantized got(golden.floats(part.input), part.view, part.format, part.role);
      if (is_kivi(golden))
        compare_kivi(golden, check, part, got);
      else
        check.quantized_values(part.dequant, got.decoded, got.scales, OneInThousand);
    }
  });
}

}  // namespace

extern const Runner GroupQuantRunner;
const Runner GroupQuantRunner{accepts, run, lacks};

}  // namespace golden
