#pragma once
#include <string_view>
#include <vector>

namespace engine {

/// How a text is cut into the pieces inside which merges may happen; the names are those of GGUF's
/// `tokenizer.ggml.pre`.
enum class PreTokenizer {
  gpt2,       ///< 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
  smollm,     ///< every \p{N} alone first, then gpt2 on what lies between
  llama_bpe,  ///< contractions in any case, \p{N}{1,3}, newlines kept with the blanks and signs before them
  qwen2,      ///< llama_bpe with single digits
};

/// Throws kvc::Error (unknown_name) for a name that is none of the above or a known synonym.
PreTokenizer pre_tokenizer_named(std::string_view name);

/// Appends the pieces of `text` in order; together they are all of it.
void split_text(PreTokenizer kind, std::string_view text, std::vector<std::string_view>& pieces);

}  // namespace engine
