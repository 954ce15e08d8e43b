#pragma once
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kvc/compiled.hpp"
#include "kvc/error.hpp"
#include "kvc/words.hpp"

namespace kvc::inline KVC_ABI {

/// Element type of unquantized rows and of quantization metadata.
enum class Scalar : std::uint8_t { f32, f16, bf16 };
constexpr auto words_of(Scalar) {
  return words(word("f32", Scalar::f32), word("f16", Scalar::f16), word("bf16", Scalar::bf16));
}

constexpr std::size_t scalar_bytes(Scalar type) {
  return type == Scalar::f32 ? 4 : 2;
}

/// The largest finite number of a type.
constexpr float largest_magnitude(Scalar type) {
  return type == Scalar::f32 ? 3.40282347e38f : type == Scalar::f16 ? 65504.0f : 3.38953139e38f;
}

/// Rows as they are, in one of three element types.
struct Dense {
  Scalar type = Scalar::f16;
  /// Of CacheOptions::dense in f16: a head keeps its keys, or its values, in f32 where the first of them has an element of
  /// magnitude 128 or more. The steps of f16 are 1/8 there and grow with the magnitude, so that what differs between such rows
  /// would be rounded away; the biases of some models' keys are like that. Such rows take twice the bytes, as stats() shows.
  /// The first row alone decides, until the head is empty again, so that it does not matter how a prompt is cut: a first row
  /// that is small where the others are large leaves them in f16.
  bool widens = true;
  friend bool operator==(const Dense&, const Dense&) = default;
};

/// Along which axis consecutive elements share one scale.
enum class Axis : std::uint8_t {
  channel,  ///< `group` consecutive tokens of one channel ("per channel", KIVI's keys)
  token,    ///< `group` consecutive channels of one token ("per token", KIVI's values)
};
constexpr auto words_of(Axis) {
  return words(word("channel", Axis::channel), word("token", Axis::token));
}

/// How the minimum of a group follows from its elements; the scale is (max - min) / (2^bits - 1) in all of them.
enum class Fit : std::uint8_t {
  /// The least element: KIVI, GEAR, ZipCache, LMDeploy, and what Hugging Face caches call quanto (MaxOptimizer with a
  /// float shift) and HQQ without optimization. They differ in names and signs of the minimum, not in what reads back.
  min_max,
  /// The least element rounded to a multiple of the scale, so that the zero point is a whole number: KVTuner's vanilla
  /// quantizer, and RotateKV's without its rotation. 0 reads back as 0 if it lies in the range and metadata is f32.
  whole_zero,
  /// HQQ (Badri and Shaji, "Half-Quadratic Quantization", mobiusml/hqq, hqq/core/optimize.py): 20 half-quadratic steps
  /// from min_max towards the minimum of sum |error|^0.7, with the authors' beta = 10 (which their code keeps constant).
  /// They stop early once the error averaged over the whole tensor rises; here a group depends on nothing but itself.
  /// beta is in the units of the elements and was chosen for weights: compare tells whether it helps a cache. Encoding
  /// takes about 150 times as long as with min_max; reading back is the same.
  half_quadratic,
};
constexpr auto words_of(Fit) {
  return words(word("min_max", Fit::min_max), word("whole_zero", Fit::whole_zero),
               word("half_quadratic", Fit::half_quadratic));
}

/// Asymmetric group quantization: value = code * scale + minimum, code = round_half_even((x - minimum) / scale) in
/// [0, 2^bits), minimum and scale = (max - min) / (2^bits - 1) of the group. A constant group has scale 0 and code 0.
/// Codes are computed against the minimum and scale as stored, so f16 metadata costs no systematic error.
struct GroupQuant {
  unsigned bits = 4;  ///< 2, 3, 4 or 8; with 3, groups along the depth (see kernels::PackedLayout) are padded to multiples of 32
  Axis axis = Axis::channel;
  std::size_t group = 32;         ///< elements that share a scale; KIVI's default
  Scalar metadata = Scalar::f16;  ///< of scale and minimum: f16 or f32
  Fit fit = Fit::min_max;         ///< of the minimum
  friend bool operator==(const GroupQuant&, const GroupQuant&) = default;

  /// Throws Error unless the parameters can be encoded for rows of `dim` channels.
  void validate(std::size_t dim) const {
    if (bits != 2 && bits != 3 && bits != 4 && bits != 8)
      fail(ErrorCode::invalid_argument, {"GroupQuant: bits must be 2, 3, 4 or 8, got ", bits});
    if (metadata == Scalar::bf16) fail(ErrorCode::invalid_argument, "GroupQuant: metadata must be f16 or f32");
    if (group == 0) fail(ErrorCode::invalid_argument, "GroupQuant: group must be positive");
    if (axis == Axis::token && dim % group != 0)
      fail(ErrorCode::invalid_argument, {"GroupQuant: group (", group, ") must divide the head dimension (", dim, ")"});
  }
};

/// The types in which llama.cpp can hold a cache (--cache-type-k, --cache-type-v), and two of its 4-bit floats.
enum class GgmlType : std::uint8_t { q4_0, q4_1, q5_0, q5_1, q8_0, iq4_nl, mxfp4, nvfp4 };
constexpr auto words_of(GgmlType) {
  using enum GgmlType;
  return words(word("q4_0", q4_0), word("q4_1", q4_1), word("q5_0", q5_0), word("q5_1", q5_1), word("q8_0", q8_0),
               word("iq4_nl", iq4_nl), word("mxfp4", mxfp4), word("nvfp4", nvfp4));
}

/// A type's name in ggml, the consecutive channels that form a block, and the block's bytes.
struct GgmlBlockSize {
  const char* name;
  std::size_t elements, bytes;
};
constexpr GgmlBlockSize block_size(GgmlType type) {
  constexpr GgmlBlockSize Sizes[] = {{"q4_0", 32, 18}, {"q4_1", 32, 20},   {"q5_0", 32, 22},  {"q5_1", 32, 24},
                                     {"q8_0", 32, 34}, {"iq4_nl", 32, 18}, {"mxfp4", 32, 17}, {"nvfp4", 64, 36}};
  return Sizes[static_cast<std::size_t>(type)];
}

/// Rows in the bytes of a ggml type, token after token, as ggml's reference quantizers (ggml-quants.c) write them: an
/// engine can copy rows to and from a cache of llama.cpp. llama.cpp rotates keys and values first where the head
/// dimension is a multiple of 64; here rows are encoded as they come.
struct GgmlBlocks {
  GgmlType type = GgmlType::q8_0;
  friend bool operator==(const GgmlBlocks&, const GgmlBlocks&) = default;

  /// Throws Error unless rows of `dim` channels are whole blocks.
  void validate(std::size_t dim) const {
    const GgmlBlockSize block = block_size(type);
    if (dim == 0 || dim % block.elements != 0)
      fail(ErrorCode::invalid_argument, {"GgmlBlocks: blocks of ", block.name, " (", block.elements,
                                         " channels) must divide the head dimension (", dim, ")"});
  }
};

/// Some channels of every row, in half precision; the others are not stored and read as 0 (ThinK's keys). For keys only: their
/// products with a query then leave the other channels out.
struct SomeChannels {
  std::vector<std::size_t> kept = {};  ///< ascending
  friend bool operator==(const SomeChannels&, const SomeChannels&) = default;
};

/// The largest magnitude of an element that reads back finite and no further from its value than the format promises. With
/// metadata in f32, a quarter of what f32 holds: the difference of two elements, and a code times the scale, must be finite too.
constexpr float largest_magnitude(const Dense& format) {
  return largest_magnitude(format.type);
}
constexpr float largest_magnitude(const GroupQuant& format) {
  return format.metadata == Scalar::f32 ? largest_magnitude(Scalar::f32) / 4 : largest_magnitude(Scalar::f16);
}

/// Whether a codec's rows are keys (read by scores) or values (read by accumulate).
enum class Role : std::uint8_t { key, value };

class Codec;

// The codec of a format for rows of `dim` floats. Each throws Error if the format cannot encode them. Defined in
// kvc/codec/make.hpp, which whoever names one of these formats includes.
KVC_FORWARD std::shared_ptr<const Codec> make_codec(const Dense& format, Role role, std::size_t dim);
KVC_FORWARD std::shared_ptr<const Codec> make_codec(const GroupQuant& format, Role role, std::size_t dim);
KVC_FORWARD std::shared_ptr<const Codec> make_codec(const GgmlBlocks& format, Role role, std::size_t dim);
KVC_FORWARD std::shared_ptr<const Codec> make_codec(const SomeChannels& format, Role role, std::size_t dim);
KVC_FORWARD std::shared_ptr<const Codec> make_codec(const std::shared_ptr<const Codec>& codec, Role role,
                                                    std::size_t dim);

/// How rows are laid out in bytes: any description of which a codec can be made. Dense, GroupQuant, GgmlBlocks and
/// SomeChannels are such descriptions, a codec is one, and so is every copyable type T beside which its author puts
///     std::shared_ptr<const kvc::Codec> make_codec(const T&, kvc::Role, std::size_t dim);
/// A header-only program gets the kernels of the formats that it names, and no others.
class Format {
 public:
  template <class Description>
    requires(!std::convertible_to<Description, std::shared_ptr<const Codec>> && !std::same_as<Description, Format> &&
             requires(const Description& description, Role role, std::size_t dim) {
               { make_codec(description, role, dim) } -> std::convertible_to<std::shared_ptr<const Codec>>;
             })
  Format(Description description) : Format(std::make_shared<const Description>(std::move(description)), nullptr) {}
  template <std::derived_from<Codec> Own>
  Format(std::shared_ptr<Own> codec)
      : Format(std::make_shared<const std::shared_ptr<const Codec>>(std::move(codec)), nullptr) {}

  /// The description, if it is of this type; null otherwise.
  template <class Description>
  const Description* get_if() const {
    return type_ == &TypeOf<Description> ? static_cast<const Description*>(description_.get()) : nullptr;
  }
 private:
  template <std::same_as<Format> F>
  friend std::shared_ptr<const Codec> make_codec(const F& format, Role role, std::size_t dim);

  /// Its address stands for the type, also where the compiler keeps no information of types.
  template <class Description>
  static inline char TypeOf = 0;

  template <class Description>
  Format(std::shared_ptr<const Description> description, std::nullptr_t)
      : description_(std::move(description)), type_(&TypeOf<Description>), make_(make<Description>) {}

  template <class Description>
  static std::shared_ptr<const Codec> make(const void* description, Role role, std::size_t dim) {
    return make_codec(*static_cast<const Description*>(description), role, dim);
  }

  std::shared_ptr<const void> description_;
  const void* type_;
  // A pointer instead of a virtual function, of which g++ would compile those of all descriptions that a header mentions.
  std::shared_ptr<const Codec> (*make_)(const void* description, Role role, std::size_t dim);
};

}  // namespace kvc
