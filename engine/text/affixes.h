// The tokens that go around a text (BOS, EOS).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace scion {

// Puts `prefix` before ids[begin, ...) unless the ids begin with it, and `suffix` after them unless they end with it.
void AddAffixes(const std::vector<int32_t>& prefix, const std::vector<int32_t>& suffix, size_t begin,
                std::vector<int32_t>& ids);

}  // namespace scion
