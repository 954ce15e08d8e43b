#pragma once
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>

#include "engine/gguf.hpp"

/// The model that the tests tagged [model] read; tests/with_model.sh sets the variable and skips them without it.
inline std::string model_path() {
  const char* path = std::getenv("KVC_MODEL");
  if (!path) throw std::runtime_error("KVC_MODEL names no model: run these tests through tests/with_model.sh");
  return path;
}

inline const engine::GGUFFile& model_file() {
  static const engine::GGUFFile file(model_path());
  return file;
}

inline std::string reference(const std::string& name) {
  return std::string(KVC_TEST_DATA "/smollm2/") + name;
}

inline std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot open " + path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}
