// Random damage to the header of a GGUF file. The same seed gives the same damage on every machine.
#pragma once

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>

#include "tests/support/tiny_gguf.h"

namespace scion::test {

inline const TinyGgufOptions kMutatedGgufs[] = {
    {}, {.num_experts = 3, .experts_apart = true}, {.architecture = "qwen3moe", .num_experts = 3}};

// One to three of: bytes flipped, an integer replaced by an extreme one, bytes taken out or put in, the file cut.
inline std::string MutateGguf(std::string bytes, size_t header_bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % std::max<size_t>(n, 1)); };
  constexpr uint64_t kExtremes[] = {0,
                                    1,
                                    0x7f,
                                    0xff,
                                    0x7fffffff,
                                    0x80000000,
                                    0xffffffff,
                                    uint64_t{1} << 32,
                                    (uint64_t{1} << 61) + 1,
                                    ~uint64_t{0} >> 1,
                                    uint64_t{1} << 63,
                                    ~uint64_t{0} - 31,
                                    ~uint64_t{0}};
  const size_t changes = 1 + below(3);
  for (size_t c = 0; c < changes; ++c) {
    const size_t end = std::min(header_bytes, bytes.size());
    const size_t at = below(end);
    switch (below(8)) {
      case 0:
      case 1:
        if (at < bytes.size()) bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
        break;
      case 2:
        if (at < bytes.size()) bytes[at] = static_cast<char>(random());
        break;
      case 3:
      case 4: {
        const size_t width = std::min<size_t>(below(2) == 0 ? 4 : 8, bytes.size() - at);
        bytes.replace(at, width, GgufRaw(kExtremes[below(std::size(kExtremes))], static_cast<int>(width)));
        break;
      }
      case 5:
        bytes.erase(at, 1 + below(16));
        break;
      case 6:
        bytes.insert(at, GgufRaw(random(), static_cast<int>(1 + below(8))));
        break;
      default:
        bytes.resize(at);
        break;
    }
  }
  return bytes;
}

}  // namespace scion::test
