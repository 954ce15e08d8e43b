#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace engine {

/// Element formats of GGUF tensors that this engine reads; the numbers are the file's.
enum class TensorType : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  bf16 = 30,
};

/// Elements and bytes of one block of a format; a row is a whole number of blocks.
struct BlockLayout {
  std::size_t elements = 1, bytes = 4;
};

/// Throws kvc::Error (bad_file) for a number that is not a TensorType.
BlockLayout block_layout(TensorType type);
std::string_view type_name(TensorType type);

/// One entry of the tensor directory; `data` points into the mapped file.
struct Tensor {
  std::string name;
  TensorType type = TensorType::f32;
  std::vector<std::size_t> dims;  ///< fastest first, as in the file: dims[0] is the row length
  std::span<const std::byte> data;

  std::size_t columns() const { return dims.empty() ? 1 : dims[0]; }
  std::size_t rows() const;
  std::size_t row_bytes() const;
};

/// Metadata value. Integers of any width become 64 bits; arrays are of strings or of numbers (booleans as 0 and 1).
using MetadataValue =
    std::variant<bool, std::uint64_t, std::int64_t, double, std::string, std::vector<std::string>, std::vector<double>>;

class MappedFile;

/// A GGUF file (version 2 or 3, little-endian), mapped read-only. Every count, offset and size is checked against the
/// file's length before it is used, so a truncated or foreign file gives kvc::Error (bad_file) and never a wild read.
class GGUFFile {
 public:
  explicit GGUFFile(const std::string& path);
  ~GGUFFile();
  GGUFFile(GGUFFile&&) noexcept;
  GGUFFile& operator=(GGUFFile&&) noexcept;

  const std::string& path() const { return path_; }
  const std::map<std::string, MetadataValue, std::less<>>& metadata() const { return metadata_; }
  const std::map<std::string, Tensor, std::less<>>& tensors() const { return tensors_; }

  const MetadataValue* find(std::string_view key) const;
  const Tensor* find_tensor(std::string_view name) const;

  /// These throw kvc::Error (bad_file), naming the key and the file, if it is absent or of another type.
  const Tensor& tensor(std::string_view name) const;
  const std::string& text(std::string_view key) const;
  const std::vector<std::string>& texts(std::string_view key) const;
  const std::vector<double>& numbers(std::string_view key) const;
  double number(std::string_view key) const;
  /// A number that must be a whole one in [0, 2^32).
  std::size_t size(std::string_view key) const;

  /// As above, but an absent key gives `fallback`.
  double number_or(std::string_view key, double fallback) const;
  std::size_t size_or(std::string_view key, std::size_t fallback) const;
  std::string text_or(std::string_view key, std::string fallback) const;
  bool flag_or(std::string_view key, bool fallback) const;

 private:
  const MetadataValue& require(std::string_view key) const;

  std::string path_;
  std::unique_ptr<MappedFile> file_;
  std::map<std::string, MetadataValue, std::less<>> metadata_;
  std::map<std::string, Tensor, std::less<>> tensors_;
};

}  // namespace engine
