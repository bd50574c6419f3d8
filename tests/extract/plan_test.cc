// A plan says what the cuts then made have: bytes on disk, memory, quality.

#include "extract/plan.h"

#include <unistd.h>

#include <fstream>
#include <memory>

#include "engine/base/thread_pool.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model.h"
#include "extract/compare_logits.h"
#include "extract/densify.h"
#include "extract/quantize.h"
#include "tests/extract/extract_fixture.h"

namespace scion::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

fs::path Demo() { return fs::path(SCION_SOURCE_DIR) / "deploy/demo"; }

uint64_t DirectoryBytes(const fs::path& directory) {
  uint64_t bytes = 0;
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    if (entry.is_regular_file()) bytes += entry.file_size();
  }
  return bytes;
}

// Resident bytes of this process, of its own memory and of files.
uint64_t ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  uint64_t size = 0, resident = 0;
  statm >> size >> resident;
  return resident * static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
}

// What is resident for each byte that a program asks for: AddressSanitizer keeps one of its own for every eight.
#if defined(__SANITIZE_ADDRESS__)
constexpr double kResidentPerByte = 1.125;
#else
constexpr double kResidentPerByte = 1;
#endif

const CutPlan& Find(const CutPlans& plans, const std::string& name) {
  for (const CutPlan& cut : plans.cuts) {
    if (cut.name == name) return cut;
  }
  ADD_FAILURE() << "no " << name;
  return plans.cuts.at(0);
}

class PlanTest : public ::testing::Test {
 protected:
  fs::path temp() const { return temp_.path(); }
  fs::path model() const { return temp() / "model"; }

  CutPlans Plan(const fs::path& model, const std::string& domain, const fs::path& eval = {}) {
    absl::StatusOr<CutPlans> plans =
        PlanCuts({.model = model, .domain = domain, .eval = eval, .tier = *kernels::ChooseTier(), .num_threads = 2});
    EXPECT_TRUE(plans.ok()) << plans.status();
    return plans.ok() ? *std::move(plans) : CutPlans();
  }

  // Makes the cuts of one domain: exact, and rounded.
  void MakeCuts(const fs::path& source, const std::string& domain) {
    ASSERT_TRUE(Cut(source, {domain}, temp() / "slice").ok());
    for (const DType type : {DType::kQ8_0, DType::kQ4_0}) {
      const auto result = Quantize({.model = temp() / "slice",
                                    .out = temp() / (type == DType::kQ8_0 ? "slice, q8_0" : "slice, q4_0"),
                                    .type = type,
                                    .version = "test",
                                    .now = TestTime()});
      ASSERT_TRUE(result.ok()) << result.status();
    }
  }

 private:
  TempDir temp_;
};

TEST_F(PlanTest, BytesOnDiskAreThoseOfTheCutThenMade) {
  TinyModelOptions tiny;
  tiny.with_lock = true;
  tiny.hidden_size = 64;
  tiny.intermediate_size = tiny.moe_intermediate_size = 96;
  tiny.vocab_size = 4000;
  tiny.tie_word_embeddings = false;
  WriteTinyModel(MakeTinyModel(tiny), model());
  for (const auto& [source, domain] : {std::pair(Demo(), "cpp"), {model(), "beta"}}) {
    const CutPlans plans = Plan(source, domain);
    MakeCuts(source, domain);
    for (const std::string name : {"slice", "slice, q8_0", "slice, q4_0"}) {
      const double made = static_cast<double>(DirectoryBytes(temp() / name));
      EXPECT_NEAR(static_cast<double>(Find(plans, name).disk_bytes), made, 0.02 * made) << name;
      fs::remove_all(temp() / name);
    }
  }
}

TEST_F(PlanTest, BytesOfAFoldAreThoseOfTheFoldThenMade) {
  const CutPlans plans = Plan(Demo(), "cpp");
  for (const int width : {1, 2, 4}) {
    const fs::path out = temp() / std::to_string(width);
    DensifyOptions options;
    options.model = Demo();
    options.domain = "cpp";
    options.out = out;
    options.width = width;
    options.tier = *kernels::ChooseTier();
    options.version = "test";
    options.now = TestTime();
    const auto result = Densify(options);
    ASSERT_TRUE(result.ok()) << result.status();
    const double made = static_cast<double>(DirectoryBytes(out));
    EXPECT_NEAR(static_cast<double>(Find(plans, "fold, width " + std::to_string(width)).disk_bytes), made, 0.02 * made)
        << width;
  }
}

TEST_F(PlanTest, MemoryIsThatOfTheCutWhenItRuns) {
  // Large enough that the process's own memory is small beside it.
  TinyModelOptions options;
  options.hidden_size = 512;
  options.intermediate_size = options.moe_intermediate_size = 2048;
  options.vocab_size = 16'000;
  options.num_layers = 6;
  options.sparse_layers = {3, 4, 5};
  options.num_heads = 8;
  options.num_kv_heads = 4;
  options.head_dim = 64;
  options.max_position_embeddings = 1024;
  options.domains = {{"alpha", 2}, {"beta", 1}};
  WriteTinyModel(MakeTinyModel(options), model());
  const CutPlans plans = Plan(model(), "alpha");
  MakeCuts(model(), "alpha");
  for (const std::string name : {"slice", "slice, q8_0", "slice, q4_0"}) {
    const CutPlan& plan = Find(plans, name);
    ThreadPool pool(2);
    const auto checkpoint = Checkpoint::Open(temp() / name);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const uint64_t before = ResidentBytes();
    auto loaded = Model::Load(**checkpoint, {.tier = *kernels::ChooseTier()}, pool);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    EXPECT_EQ((*loaded)->weight_bytes(), plan.weight_bytes) << name;
    auto cache = MakeKvCache(**loaded, 1024);
    ASSERT_TRUE(cache.ok());
    std::vector<int32_t> prompt(1024);
    for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<int32_t>(i * 7919 % 16'000);
    ASSERT_TRUE(RunPrompt(**loaded, *cache, 0, prompt, [](int, std::span<const float>) {}).ok());
    const double grown = static_cast<double>(ResidentBytes() - before) / kResidentPerByte;
    EXPECT_NEAR(static_cast<double>(plans.MemoryBytes(plan)), grown, 0.1 * grown) << name;
    EXPECT_EQ(plan.bytes_per_token, (*loaded)->active_weight_bytes(0)) << name;
  }
}

TEST_F(PlanTest, FlopsAreTwoPerWeightThatATokenMeets) {
  WriteTinyModel(MakeTinyModel(), model());
  const CutPlans plans = Plan(model(), "alpha");
  // Hidden 32; q of 2 and k, v of 1 head of 16; FFNs of 48 in layer 0 and of 40 in layers 1 and 2; head of 97.
  const uint64_t attention = 32 * (32 + 16 + 16) + 32 * 32;
  const uint64_t weights = 3 * attention + 3 * 32 * (48 + 40 + 40) + 97 * 32;
  EXPECT_EQ(Find(plans, "slice").flops_per_token, 2 * weights);
  EXPECT_EQ(Find(plans, "slice, q4_0").flops_per_token, 2 * weights);
  // All FFNs of a fold have one width: 48, and 80 for two experts' width.
  EXPECT_EQ(Find(plans, "fold, width 1").flops_per_token, 2 * (weights + 3 * 32 * 2 * 8));
  EXPECT_EQ(Find(plans, "fold, width 2").flops_per_token, 2 * (weights + 3 * 32 * (32 + 40 + 40)));
  std::vector<std::string> names;
  for (const CutPlan& cut : plans.cuts) names.push_back(cut.name);
  EXPECT_THAT(names, ElementsAre("slice", "slice, q8_0", "slice, q4_0", "fold, width 1", "fold, width 2"));
  EXPECT_EQ(plans.context, 128);
}

TEST_F(PlanTest, QualityIsThatOfTheRoundedModel) {
  const std::string readme = ReadBytes(Demo() / "README.md");
  WriteBytes(temp() / "text", readme.substr(0, readme.rfind('\n', 4000)));  // whole lines, hence whole characters
  const CutPlans plans = Plan(Demo(), "en", temp() / "text");
  const TextComparison& exact = *Find(plans, "slice").quality;
  const TextComparison& eight = *Find(plans, "slice, q8_0").quality;
  const TextComparison& four = *Find(plans, "slice, q4_0").quality;
  EXPECT_GT(exact.scored_tokens, 500);
  EXPECT_EQ(exact.kl_divergence, 0);
  EXPECT_EQ(exact.top1_agreement, 1);
  EXPECT_EQ(exact.perplexity, exact.source_perplexity);
  EXPECT_GT(eight.kl_divergence, 0);
  EXPECT_GT(four.kl_divergence, 10 * eight.kl_divergence);
  EXPECT_LT(four.top1_agreement, eight.top1_agreement);
  EXPECT_NEAR(eight.perplexity, exact.perplexity, 0.01 * exact.perplexity);
  // The perplexity, by the sum over the whole vocabulary as the definition has it.
  EXPECT_FALSE(Find(plans, "fold, width 1").quality.has_value());
}

TEST_F(PlanTest, WhatCannotBeCutIsSaid) {
  const auto status = [&](const fs::path& path, const std::string& domain, const fs::path& eval = {}) {
    return PlanCuts({.model = path, .domain = domain, .eval = eval}).status().ToString();
  };
  EXPECT_THAT(status(model(), "alpha"), HasSubstr("NOT_FOUND"));
  WriteTinyModel(MakeTinyModel(), model());
  EXPECT_THAT(status(model(), "gamma"), HasSubstr("no domain 'gamma'; the model has: alpha, beta"));
  WriteBytes(temp() / "text", "text");
  EXPECT_THAT(status(model(), "alpha", temp() / "text"), HasSubstr("tokenizer"));
  TinyModelOptions dense;
  dense.model_type = "llama";
  WriteTinyModel(MakeTinyModel(dense), temp() / "dense");
  EXPECT_THAT(status(temp() / "dense", "default"), HasSubstr("no domains to cut"));
  TinyModelOptions blocks;
  blocks.blocks = DType::kQ8_0;
  WriteTinyModel(MakeTinyModel(blocks), temp() / "blocks");
  const CutPlans plans = Plan(temp() / "blocks", "alpha");
  EXPECT_EQ(plans.cuts.size(), 1u);
  ASSERT_EQ(plans.impossible.size(), 2u);
  EXPECT_THAT(plans.impossible[0], HasSubstr("quantised already"));
}

}  // namespace
}  // namespace scion::test
