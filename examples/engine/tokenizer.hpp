#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "gguf.hpp"
#include "pre_tokenizer.hpp"

namespace engine {

/// Whether control tokens such as <|im_start|> are recognised in a text, or are text like any other.
enum class SpecialTokens { parse, as_text };

/// The byte-level BPE tokenizer that a GGUF file carries (`tokenizer.ggml.model` = gpt2).
///
/// Bytes whose one-character token the vocabulary lacks are dropped, as the reference tokenizers do. No
/// beginning-of-sequence token is added by encode(); see bos().
class Tokenizer {
 public:
  /// Throws kvc::Error: bad_file without the needed metadata, unknown_name for another model or pre-tokenizer.
  explicit Tokenizer(const GGUFFile& file);

  std::vector<int> encode(std::string_view text, SpecialTokens special = SpecialTokens::parse) const;
  /// The bytes of the tokens, one after the other; control tokens as they are written. Throws kvc::Error
  /// (invalid_argument) for an id outside the vocabulary.
  std::string decode(std::span<const int> ids) const;
  std::string decode(int id) const { return decode(std::span<const int>(&id, 1)); }

  std::size_t vocabulary() const { return texts_.size(); }
  /// The token that the file asks to put before a text, if it asks for one.
  std::optional<int> bos() const { return bos_; }
  /// The token that ends an answer.
  std::optional<int> eos() const { return eos_; }
  /// The id of a token by its text, e.g. "<|im_end|>".
  std::optional<int> find(std::string_view token_text) const;

 private:
  struct Merge {
    int rank, merged;
  };

  void read_vocabulary(const GGUFFile& file);
  void read_merges(const GGUFFile& file);
  void encode_plain(std::string_view text, std::vector<int>& ids) const;
  void encode_piece(std::string_view piece, std::vector<int>& ids) const;
  void merge_all(std::vector<int>& symbols) const;
  const Merge* find_merge(int left, int right) const;

  PreTokenizer pre_tokenizer_;
  bool whole_piece_first_ = false;                   ///< llama-bpe: a piece that is a token needs no merges
  std::vector<std::string> texts_;                   ///< of every id, as raw bytes
  std::unordered_map<std::string, int> ids_;         ///< of normal tokens, by raw bytes
  int byte_ids_[256];                                ///< -1: the vocabulary lacks it
  std::unordered_map<std::uint64_t, Merge> merges_;  ///< by left id << 32 | right id
  struct Special {
    std::string text;
    int id;
    bool always;  ///< user-defined: recognised even where control tokens are text
  };
  std::vector<Special> specials_;  ///< longest first
  std::optional<int> bos_, eos_;
};

}  // namespace engine
