#pragma once
#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kvc/policy/fingerprint.hpp"
#include "kvc/shape.hpp"

namespace kvc::inline KVC_ABI {

/// Which KV heads of a model retrieve: find what was said earlier, and so need every token. A property of the model, found
/// once (kvc/analysis/retrieval_heads.hpp) and kept in a small text file:
///
///     kvc head table 1
///     layers 30, kv_heads 3
///     layer 0: 0 0 1
///     …                      1: the head retrieves; anything behind a # is a comment
class HeadTable {
 public:
  /// No head of any model retrieves.
  HeadTable() = default;
  /// `flags` [layers, kv_heads]: 1 where the head retrieves. Throws Error if their number is another.
  HeadTable(std::size_t layers, std::size_t kv_heads, std::vector<std::uint8_t> flags)
      : layers_(layers), kv_heads_(kv_heads), flags_(std::move(flags)) {
    if (kv_heads_ == 0 || flags_.size() % kv_heads_ != 0 || flags_.size() / kv_heads_ != layers_)
      fail(ErrorCode::shape_mismatch,
           {"HeadTable: got ", flags_.size(), " flags, expected ", layers_, " layers of ", kv_heads_, " KV heads"});
  }

  std::size_t layers() const { return layers_; }
  std::size_t kv_heads() const { return kv_heads_; }
  bool empty() const { return flags_.empty(); }
  /// Whether the head retrieves; `id` must be one of the model that the table is of.
  bool retrieves(HeadId id) const { return !empty() && flags_[id.layer * kv_heads_ + id.head] != 0; }
  /// How many heads retrieve, and which share of all they are.
  std::size_t count() const {
    return static_cast<std::size_t>(std::count_if(flags_.begin(), flags_.end(), [](auto flag) { return flag != 0; }));
  }
  void add_to(Fingerprint& all) const {
    all.add(kv_heads_);
    all.add(flags_);
  }
  double share() const { return empty() ? 0 : double(count()) / double(flags_.size()); }

  /// Throws Error(shape_mismatch) unless the table, if not empty, is one of a model of this shape.
  void require(const CacheShape& shape, std::string_view whose) const {
    if (empty() || (layers_ == shape.layers && kv_heads_ == shape.kv_heads)) return;
    fail(ErrorCode::shape_mismatch, {whose, ": the head table is of a model with ", layers_, " layers of ", kv_heads_,
                                     " KV heads, but the cache has ", shape.layers, " layers of ", shape.kv_heads});
  }

  friend bool operator==(const HeadTable&, const HeadTable&) = default;

  /// The content of its file.
  std::string to_string() const {
    std::string text = joined({Title, "\nlayers ", layers_, ", kv_heads ", kv_heads_, "\n"});
    for (std::size_t layer = 0; layer < layers_; ++layer) {
      text += label(layer);
      for (std::size_t head = 0; head < kv_heads_; ++head) text += flags_[layer * kv_heads_ + head] ? " 1" : " 0";
      text += "\n";
    }
    return text;
  }
  /// The table of a file's content. Throws Error(bad_file) naming `file`, the line, what stands there and what was
  /// expected.
  static HeadTable parse(std::string_view text, std::string_view file = "head table") {
    return Parser(text, file).table();
  }

 private:
  static constexpr std::string_view Title = "kvc head table 1";

  static std::string label(std::size_t layer) { return joined({"layer ", layer, ":"}); }

  /// Reads line by line; every complaint quotes the line.
  class Parser {
   public:
    Parser(std::string_view text, std::string_view file) : text_(text), file_(file) {}

    HeadTable table() {
      if (!next() || line_ != Title) complain({"'", Title, "'"});
      HeadTable result;
      if (!next() || !take("layers ") || !number(result.layers_) || !take(", kv_heads ") || !number(result.kv_heads_) ||
          !line_rest_.empty() || result.layers_ == 0 || result.kv_heads_ == 0)
        complain({"'layers N, kv_heads N' with positive numbers"});
      for (std::size_t layer = 0; layer < result.layers_; ++layer) {
        const std::string start = label(layer);
        const auto refuse = [&] { complain({"'", start, "' and ", result.kv_heads_, " times 0 or 1"}); };
        if (!next() || !take(start)) refuse();
        for (std::size_t head = 0; head < result.kv_heads_; ++head) {
          const bool one = line_rest_.starts_with(" 1");
          if (!one && !line_rest_.starts_with(" 0")) refuse();
          line_rest_.remove_prefix(2);
          result.flags_.push_back(one);
        }
        if (!line_rest_.empty()) refuse();
      }
      if (next()) complain({"nothing more after ", result.layers_, " layers"});
      return result;
    }

   private:
    /// The next line that is more than a comment.
    bool next() {
      while (!text_.empty()) {
        const std::size_t end = std::min(text_.find('\n'), text_.size());
        line_ = text_.substr(0, end);
        text_.remove_prefix(std::min(end + 1, text_.size()));
        ++number_;
        line_ = line_.substr(0, line_.find('#'));
        while (!line_.empty() && (line_.back() == ' ' || line_.back() == '\r' || line_.back() == '\t'))
          line_.remove_suffix(1);
        line_rest_ = line_;
        if (!line_.empty()) return true;
      }
      ended_ = true;
      return false;
    }
    bool take(std::string_view word) {
      if (!line_rest_.starts_with(word)) return false;
      line_rest_.remove_prefix(word.size());
      return true;
    }
    bool number(std::size_t& value) {
      const char *begin = line_rest_.data(), *end = begin + line_rest_.size();
      const auto [stop, error] = std::from_chars(begin, end, value);
      line_rest_.remove_prefix(static_cast<std::size_t>(stop - begin));
      return error == std::errc{};
    }
    [[noreturn]] void complain(std::initializer_list<Fragment> expected) const {
      constexpr std::size_t Quoted = 60;  // of a foreign file's line
      std::string got = ended_ ? "the file ends" : "got '";
      if (!ended_)
        for (const char letter : line_.substr(0, Quoted)) got += letter >= ' ' && letter <= '~' ? letter : '?';
      if (!ended_) got += "'";
      fail(ErrorCode::bad_file,
           {file_, ", line ", number_ + (ended_ ? 1 : 0), ": ", got, ", expected ", joined(expected)});
    }

    std::string_view text_, file_, line_, line_rest_;
    std::size_t number_ = 0;
    bool ended_ = false;
  };

  std::size_t layers_ = 0, kv_heads_ = 0;
  std::vector<std::uint8_t> flags_;
};

}  // namespace kvc::inline KVC_ABI
