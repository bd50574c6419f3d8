// What the tests of grafts and of a model's later life share: a model, donors of the same trunk, and their verbs.
#pragma once

#include <optional>
#include <string>
#include <utility>

#include "engine/base/thread_pool.h"
#include "engine/model/model.h"
#include "extract/collect_garbage.h"
#include "extract/drop.h"
#include "extract/graft.h"
#include "extract/rollback.h"
#include "tests/extract/extract_fixture.h"

namespace scion::test {

class GraftFixture : public ::testing::Test {
 protected:
  void SetUp() override {
    WriteTinyModel(MakeTinyModel(ModelOptions()), model());
    WriteBytes(model() / "tokenizer.json", "{\"vocab\": {}}\n");
    Resign(model());
    WriteDonor(DonorOptions());
  }

  // alpha with 3 experts, beta with 2.
  static TinyModelOptions ModelOptions() {
    TinyModelOptions options;
    options.vocab_size = 97;
    return options;
  }
  // The same seed draws the same trunk; then come the experts of other domains.
  static TinyModelOptions DonorOptions() {
    TinyModelOptions options = ModelOptions();
    options.domains = {{"gamma", 4}, {"delta", 1}};
    options.default_domain = "gamma";
    return options;
  }

  void WriteDonor(const TinyModelOptions& options) { WriteDonor(MakeTinyModel(options)); }
  void WriteDonor(const TinyModel& made) {
    fs::remove_all(donor());
    WriteTinyModel(made, donor());
    WriteBytes(donor() / "tokenizer.json", "{\"vocab\": {}}\n");
    Resign(donor());
  }

  fs::path temp() const { return temp_.path(); }
  fs::path model() const { return temp_.path() / "model"; }
  fs::path donor() const { return temp_.path() / "donor"; }
  fs::path out() const { return temp_.path() / "out"; }

  absl::StatusOr<GraftResult> GraftFrom(const std::string& domain, const std::string& as,
                                        std::optional<fs::path> out = std::nullopt) {
    return Graft({.model = model(),
                  .donor = {donor(), domain},
                  .as = as,
                  .out = std::move(out),
                  .version = "test",
                  .now = TestTime()});
  }
  absl::StatusOr<DropResult> DropDomain(const std::string& domain) {
    return Drop({.model = model(), .domain = domain, .version = "test", .now = TestTime()});
  }
  absl::StatusOr<RollbackResult> RollbackDomain(const std::string& domain, std::optional<uint64_t> to = {}) {
    return Rollback({.model = model(), .domain = domain, .to = to, .version = "test", .now = TestTime()});
  }
  absl::StatusOr<CollectGarbageResult> Gc(int keep = 0, bool dry_run = false) {
    return CollectGarbage({.model = model(), .keep = keep, .dry_run = dry_run, .version = "test", .now = TestTime()});
  }

  // Files of weights only.
  static std::map<std::string, std::string> WeightFiles(const fs::path& directory) {
    auto files = ReadTree(directory);
    std::erase_if(files, [](const auto& file) { return !file.first.ends_with(".safetensors"); });
    return files;
  }

 private:
  TempDir temp_;
};

// A loaded model with its own threads.
struct Running {
  explicit Running(const fs::path& directory, WeightMode weights = WeightMode::kAsIs) {
    auto opened = Checkpoint::Open(directory);
    if (!opened.ok()) {
      ADD_FAILURE() << opened.status();
      return;
    }
    ModelOptions options;
    options.weights = weights;
    model = *Model::Load(**opened, options, pool);
  }
  int Domain(const std::string& name) const { return *model->spec().FindDomain(name); }

  ThreadPool pool{2};
  std::unique_ptr<Model> model;
};

inline std::vector<int32_t> WholeVocabulary() {
  std::vector<int32_t> ids;
  for (int i = 0; i < 97; ++i) ids.push_back((i * 37 + 11) % 97);
  return ids;
}

// All logits of a prompt that is run alone, as bytes.
inline std::string LogitsAlone(Running& running, const std::string& domain, const std::vector<int32_t>& prompt) {
  if (running.model == nullptr || !running.model->spec().FindDomain(domain).has_value()) {
    ADD_FAILURE() << "no model, or no domain " << domain;
    return "";
  }
  auto cache = KvCache::Create(running.model->KvPlanes(), kernels::kKvBlockTokens, 8);
  std::string bytes;
  const absl::Status status =
      RunPrompt(*running.model, *cache, running.Domain(domain), prompt, [&](int, std::span<const float> logits) {
        bytes.append(reinterpret_cast<const char*>(logits.data()), logits.size_bytes());
      });
  EXPECT_TRUE(status.ok()) << status;
  return bytes;
}

inline std::string LogitsAlone(const fs::path& directory, const std::string& domain) {
  Running running(directory);
  return LogitsAlone(running, domain, WholeVocabulary());
}

}  // namespace scion::test
