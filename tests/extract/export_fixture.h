// What the tests of exports share: models and exports of them, and the engine's logits of both.
#pragma once

#include <cstring>
#include <optional>
#include <random>
#include <stdexcept>
#include <vector>

#include "engine/base/thread_pool.h"
#include "engine/model/model.h"
#include "extract/export.h"
#include "tests/extract/extract_fixture.h"

namespace scion::test {

// Logits of every position of one random prompt.
inline std::vector<float> LogitsOf(const fs::path& path, WeightMode mode = WeightMode::kAsIs, int domain = 0) {
  ThreadPool pool(2);
  const auto checkpoint = Checkpoint::Open(path);
  if (!checkpoint.ok()) throw std::runtime_error(checkpoint.status().ToString());
  const auto model = Model::Load(**checkpoint, {.tier = *kernels::ChooseTier(), .weights = mode}, pool);
  if (!model.ok()) throw std::runtime_error(model.status().ToString());
  std::mt19937_64 random(3);
  std::vector<int32_t> prompt(40);
  for (int32_t& id : prompt) id = static_cast<int32_t>(random() % static_cast<uint64_t>((*model)->spec().vocab_size));
  auto cache = KvCache::Create((*model)->KvPlanes(), kernels::kKvBlockTokens, 4);
  std::vector<float> all;
  const absl::Status status = RunPrompt(**model, *cache, domain, prompt, [&](int, std::span<const float> logits) {
    all.insert(all.end(), logits.begin(), logits.end());
  });
  if (!status.ok()) throw std::runtime_error(status.ToString());
  return all;
}

inline testing::AssertionResult Ok(const absl::Status& status) {
  return status.ok() ? testing::AssertionSuccess() : testing::AssertionFailure() << status;
}

inline bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class ExportTest : public testing::Test {
 protected:
  fs::path model() const { return dir_.path() / "model"; }
  fs::path gguf() const { return dir_.path() / "out.gguf"; }
  fs::path hf() const { return dir_.path() / "hf"; }

  void Write(const TinyModelOptions& options) { WriteTinyModel(MakeTinyModel(options), model()); }

  static absl::Status ToGguf(const fs::path& source, const fs::path& out, std::optional<DType> type = {}) {
    return Export({.model = source, .out = out, .format = ExportFormat::kGguf, .type = type}).status();
  }
  static absl::Status ToHf(const fs::path& source, const fs::path& out, std::optional<DType> type = {},
                           uint64_t max_shard_bytes = 1 << 30) {
    return Export({.model = source,
                   .out = out,
                   .format = ExportFormat::kHuggingFace,
                   .type = type,
                   .max_shard_bytes = max_shard_bytes,
                   .version = "test",
                   .now = TestTime()})
        .status();
  }

  // The directory holds these names and nothing else, hidden ones included.
  void ExpectOnly(std::vector<std::string> names) const { EXPECT_EQ(Names(dir_.path()), names); }

  TempDir dir_;
};

}  // namespace scion::test
