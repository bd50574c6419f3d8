#include "engine/text/affixes.h"

#include <algorithm>

namespace scion {

void AddAffixes(const std::vector<int32_t>& prefix, const std::vector<int32_t>& suffix, size_t begin,
                std::vector<int32_t>& ids) {
  const bool has_prefix = ids.size() >= prefix.size() && std::equal(prefix.begin(), prefix.end(), ids.begin());
  if (!has_prefix) ids.insert(ids.begin() + begin, prefix.begin(), prefix.end());
  const bool has_suffix = ids.size() >= suffix.size() && std::equal(suffix.rbegin(), suffix.rend(), ids.rbegin());
  if (!has_suffix) ids.insert(ids.end(), suffix.begin(), suffix.end());
}

}  // namespace scion
