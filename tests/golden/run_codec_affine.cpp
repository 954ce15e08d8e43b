#include <functional>

#include "golden/group_quantized.hpp"

namespace golden {
namespace {

using kvc::Axis;
using kvc::GroupQuant;

/// How a system that keeps codes, a scale and a minimum per group arranges one tensor x.
struct Arrangement {
  GroupQuant format;
  View view;
  std::function<std::size_t(std::size_t element)> group_of;  // its group's place in the tensors of scales
  std::string scale, minimum;                                // their names
  enum { least, negated, zero_point } stored;                // the minimum, -minimum or -minimum / scale
};

GroupQuant format_of(const Case& golden, Axis axis, std::size_t group) {
  return {.bits = static_cast<unsigned>(golden.count("bits")),
          .axis = axis,
          .group = group,
          .metadata = kvc::Scalar::f32,
          .fit = golden.flag("optimize", false) ? kvc::Fit::half_quadratic : kvc::Fit::min_max};
}

/// Hugging Face's caches group the whole tensor as it lies in memory. quanto, axis 0: consecutive elements. Axis -1:
/// consecutive rows of a channel, groups numbered channel by channel. HQQ (which has a zero point), axis 1: consecutive
/// elements. Axis 0: the columns of the tensor seen as [group, rest].
Arrangement hugging_face(const Case& golden) {
  const std::size_t elements = golden.floats("x").size(), group = golden.count("group");
  const double axis = golden.parameter("axis").get<double>();
  const bool hqq = golden.has("zero");
  const std::string minimum = hqq ? "zero" : "shift";
  const auto stored = hqq ? Arrangement::zero_point : Arrangement::negated;
  if (axis == (hqq ? 1 : 0))
    return {format_of(golden, Axis::token, group),
            View::flat(elements, group),
            [=](std::size_t i) { return i / group; },
            "scale",
            minimum,
            stored};
  const std::size_t columns = hqq ? elements / group : golden.tensor("x").shape.back(),
                    groups = elements / columns / group;
  return {format_of(golden, Axis::channel, group),
          View::flat(elements, columns),
          [=](std::size_t i) { return i % columns * groups + i / columns / group; },
          "scale",
          minimum,
          stored};
}

/// LMDeploy: one group per token and head.
Arrangement lmdeploy(const Case& golden) {
  const std::size_t dim = golden.tensor("x").shape.back();
  return {format_of(golden, Axis::token, dim),
          View::flat(golden.floats("x").size(), dim),
          [=](std::size_t i) { return i / dim; },
          "scale",
          "zero",
          Arrangement::zero_point};
}

/// ZipCache, channelwise: one group per channel of any head, over all tokens.
Arrangement zipcache(const Case& golden) {
  const std::vector<std::size_t> shape = golden.shape("x", 3);
  const std::size_t tokens = shape[1], dim = shape[2];
  return {format_of(golden, Axis::channel, tokens),
          View::concatenated(shape),
          [=](std::size_t i) { return i / (tokens * dim) * dim + i % dim; },
          "step",
          "min",
          Arrangement::least};
}

bool accepts(const Case& golden) {
  if (!golden.has("x") || !golden.has("dequant") || !golden.has_parameter("bits")) return false;
  if (golden.policy() == "hf")
    return golden.has_parameter("axis") && golden.has_parameter("group") && golden.has("codes") &&
           golden.has("scale") && golden.has("zero") != golden.has("shift");
  if (golden.policy() == "lmdeploy") return golden.has("codes") && golden.has("scale") && golden.has("zero");
  return golden.policy() == "zipcache" && golden.has("packed") && golden.has("min") && golden.has("step") &&
         !golden.has("channel_scale");
}

Arrangement arrangement(const Case& golden) {
  return golden.policy() == "hf"         ? hugging_face(golden)
         : golden.policy() == "lmdeploy" ? lmdeploy(golden)
                                         : zipcache(golden);
}

std::string lacks(const Case& golden) {
  const Arrangement how = arrangement(golden);
  return refused(how.format, how.view.dim);
}

/// ZipCache's bytes: byte j of a token holds codes j, j + n, j + 2 n … of its n * 8 / bits ones, the first lowest.
std::vector<std::int32_t> planar(const Case& golden, const View& view, unsigned bits) {
  const std::vector<std::int32_t> bytes = golden.integers("packed");
  const std::size_t width = view.dim * bits / 8;
  std::vector<std::int32_t> codes(view.place.size());
  for (std::size_t i = 0; i < codes.size(); ++i) {
    const std::size_t row = i / view.dim, channel = i % view.dim;
    const std::int32_t byte = bytes.at(row * width + channel % width);
    codes[view.place[i]] = byte >> (channel / width * bits) & ((1 << bits) - 1);
  }
  return codes;
}

/// An iteration that others stop elsewhere: the manifest compares the mean error it arrives at, here to 1 %.
void compare_error(const Case& golden, Check& check, const GroupQuantized& got) {
  double sum = 0;
  for (std::size_t i = 0; i < got.decoded.size(); ++i)
    sum += std::abs(double(got.decoded[i]) - double(golden.floats("x")[i]));
  check.figure("mean_abs_err", sum / double(got.decoded.size()), golden.entry().at("mean_abs_err").get<double>(),
               {.relative = 0.01});
  for (const char* tensor : {"codes", "zero", "dequant"})
    check.not_compared(tensor, "an iteration's result: its mean error is compared");
}

void compare(const Case& golden, Check& check, const Arrangement& how, const GroupQuantized& got) {
  const auto by_group = [&](const std::vector<float>& numbers) {
    return GroupQuantized::by_group(numbers, how.format.group, how.group_of);
  };
  std::vector<float> scales = by_group(got.scales), minima = by_group(got.minima);
  check.values(how.scale, scales, 0, Rounded);
  if (how.format.fit != kvc::Fit::min_max) return compare_error(golden, check, got);
  for (std::size_t i = 0; i < minima.size(); ++i)
    if (how.stored != Arrangement::least) minima[i] = -minima[i] / (how.stored == Arrangement::negated ? 1 : scales[i]);
  check.values(how.minimum, minima, 0, Rounded);
  const bool packed = golden.has("packed");
  const auto agree =
      check.codes(packed ? "packed" : "codes", got.codes,
                  packed ? planar(golden, how.view, how.format.bits) : golden.integers("codes"), OneInThousand);
  check.values_where("dequant", got.decoded, agree);
}

void run(const Case& golden, Check& check) {
  const Arrangement how = arrangement(golden);
  for (const kvc::Isa isa : kvc::available_isas())
    for (const kvc::Role role : {kvc::Role::key, kvc::Role::value}) {
      const kvc::ScopedIsa scoped(isa);
      check.begin_way(std::string(to_string(isa)) + (role == kvc::Role::key ? ", as keys" : ", as values"));
      compare(golden, check, how, {golden.floats("x"), how.view, how.format, role});
    }
}

}  // namespace

extern const Runner AffineCodecRunner;
const Runner AffineCodecRunner{accepts, run, lacks};

}  // namespace golden
