// What the tests of the extract tool share: a tiny model on disk, cuts of it, and hands that damage them.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "engine/base/dtype.h"
#include "extract/sign.h"
#include "extract/slice.h"
#include "extract/verify.h"
#include "tests/support/tiny_model.h"

namespace scion::test {

namespace fs = std::filesystem;

inline absl::Time TestTime() { return absl::FromUnixSeconds(1'700'000'000); }  // 2023-11-14T22:13:20Z

inline absl::StatusOr<SliceResult> Cut(const fs::path& model, std::vector<std::string> domains, const fs::path& out) {
  return Slice({.model = model, .out = out, .domains = std::move(domains), .version = "test", .now = TestTime()});
}

inline VerifyOptions OptionsFor(const fs::path& cut, const fs::path& model) {
  VerifyOptions options;
  options.cut = cut;
  options.model = model;
  options.num_threads = 2;
  options.version = "test";
  options.now = TestTime();
  return options;
}

inline void Resign(const fs::path& directory) {
  const auto lock = Sign({.model = directory, .replace = true, .version = "test", .now = TestTime()});
  ASSERT_TRUE(lock.ok()) << lock.status();
}

// All files below a directory: relative path -> bytes.
inline std::map<std::string, std::string> ReadTree(const fs::path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    if (entry.is_regular_file()) files[entry.path().lexically_relative(directory)] = ReadBytes(entry.path());
  }
  return files;
}

// Names in a directory, hidden ones included.
inline std::vector<std::string> Names(const fs::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(directory)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

inline void FlipByte(const fs::path& file, size_t offset) {
  std::string bytes = ReadBytes(file);
  bytes.at(offset) = static_cast<char>(bytes[offset] ^ 0x01);
  WriteBytes(file, bytes);
}

// A tensor in the bytes of a safetensors file, found without the reader under test.
struct TensorPlace {
  std::string name;
  DType dtype;
  size_t begin;
  size_t end;
};

inline std::vector<TensorPlace> TensorsIn(const std::string& file) {
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  const auto header = nlohmann::json::parse(file.substr(8, header_bytes));
  std::vector<TensorPlace> places;
  for (const auto& [name, info] : header.items()) {
    if (name == "__metadata__") continue;
    const size_t data = 8 + header_bytes;
    places.push_back({name, *ParseDType(info["dtype"].get<std::string>()), data + info["data_offsets"][0].get<size_t>(),
                      data + info["data_offsets"][1].get<size_t>()});
  }
  return places;
}

// Flips the sign of the largest weight of a BF16 or F32 tensor; the index of that element.
inline size_t FlipSignOfLargest(std::string& file, const TensorPlace& tensor) {
  const size_t width = DTypeBytes(tensor.dtype);
  size_t largest = 0;
  float largest_value = -1;
  for (size_t i = 0; i < (tensor.end - tensor.begin) / width; ++i) {
    uint32_t bits = 0;
    std::memcpy(&bits, file.data() + tensor.begin + i * width, width);
    const float value = std::abs(width == 4 ? std::bit_cast<float>(bits) : std::bit_cast<float>(bits << 16));
    if (value > largest_value) {
      largest = i;
      largest_value = value;
    }
  }
  const size_t sign_byte = tensor.begin + largest * width + width - 1;
  file[sign_byte] = static_cast<char>(file[sign_byte] ^ 0x80);
  return largest;
}

}  // namespace scion::test
