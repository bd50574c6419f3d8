// The engine against independent implementations: PyTorch on the demo model, Transformers and PyTorch on tiny random
// ones. The golden files and the scripts that made them: tests/golden/logits, tests/golden/models, tests/oracle.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "engine/base/file.h"
#include "engine/base/thread_pool.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model.h"
#include "engine/model/safetensors.h"
#include "tests/support/kernel_tables.h"

namespace scion {
namespace {

using test::AllKernels;
using test::Kernels;

const std::filesystem::path kSource = SCION_SOURCE_DIR;
// Of tiny random models: 64 terms of a sum average out little, and a token whose best experts are near a tie may choose
// another.
constexpr double kInt8MeanKl = 3e-3;
constexpr double kFp32Bound = 1e-4;  // of the largest |logit|
constexpr double kBf16MeanKl = 1e-3;
constexpr double kSureMargin = 0.05;

// A golden file: every tensor as raw bytes.
class GoldenFile {
 public:
  explicit GoldenFile(const std::filesystem::path& path) {
    absl::StatusOr<ReadOnlyFile> file = ReadOnlyFile::Open(path);
    if (!file.ok()) throw std::runtime_error(file.status().ToString());
    absl::StatusOr<std::vector<TensorInfo>> tensors = ReadSafetensorsHeader(*file, path.string());
    if (!tensors.ok()) throw std::runtime_error(tensors.status().ToString());
    for (const TensorInfo& t : *tensors) {
      std::vector<std::byte>& bytes = tensors_[t.name];
      bytes.resize(t.bytes);
      if (!file->Read(t.offset, bytes).ok()) throw std::runtime_error("cannot read " + t.name);
    }
  }
  template <typename T>
  std::span<const T> Get(const std::string& name) const {
    const std::vector<std::byte>& bytes = tensors_.at(name);
    return {reinterpret_cast<const T*>(bytes.data()), bytes.size() / sizeof(T)};
  }

 private:
  std::map<std::string, std::vector<std::byte>> tensors_;
};

double LogSumExp(std::span<const float> logits) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float l : logits) sum += std::exp(l - max);
  return max + std::log(sum);
}

// KL(p || q) of the distributions that the two rows of logits stand for.
double Kl(std::span<const float> p, std::span<const float> q) {
  const double lp = LogSumExp(p);
  const double lq = LogSumExp(q);
  double kl = 0;
  for (size_t i = 0; i < p.size(); ++i) kl += std::exp(p[i] - lp) * ((p[i] - lp) - (q[i] - lq));
  return kl;
}

int32_t Argmax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

struct Loaded {
  Loaded(const Checkpoint& checkpoint, const Kernels& kernels, WeightMode weights)
      : pool(2),
        model(*Model::Load(checkpoint,
                           {.tier = kernels.table->tier,
                            .kernels = kernels.table,
                            .weights = weights,
                            .kv_type = weights == WeightMode::kF32 ? kernels::KvType::kF32 : kernels::KvType::kBF16},
                           pool)),
        cache(*KvCache::Create(model->KvPlanes(), kernels::kKvBlockTokens, 16)) {}

  ThreadPool pool;
  std::unique_ptr<Model> model;
  KvCache cache;
};

class ReferenceTest : public testing::TestWithParam<Kernels> {};

// ---- Tiny models: all logits are in the golden file. --------------------------------------------------------------

struct TinyCase {
  const char* model;
  std::vector<std::string> domains;
};
// one_expert and llama come from Transformers' LlamaForCausalLM, the others from the PyTorch reference.
const TinyCase kTinyCases[] = {{"one_expert", {"alpha", "beta"}},
                               {"llama", {"default"}},
                               {"two_slots", {"alpha", "beta"}},
                               {"unequal", {"alpha", "beta", "gamma"}}};
constexpr size_t kTinyPromptTokens = 24;

// Runs the prompt of every domain that the golden file knows.
// check(position, expected logits, got logits, generated token or nothing)
template <typename Check>
void ForModel(const std::filesystem::path& model, const std::vector<std::string>& domains, const Kernels& kernels,
              WeightMode weights, Check check) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(model);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const GoldenFile golden(std::filesystem::path(model).replace_extension(".golden.safetensors"));
  Loaded l(**checkpoint, kernels, weights);
  for (const std::string& domain : domains) {
    SCOPED_TRACE(model.filename().string() + " " + domain);
    const std::optional<int> index = l.model->spec().FindDomain(domain);
    ASSERT_TRUE(index.has_value());
    const std::span<const int32_t> ids = golden.Get<int32_t>(domain + ".ids");
    const std::span<const float> expected = golden.Get<float>(domain + ".logits");
    const size_t vocab = expected.size() / ids.size();
    size_t positions = 0;
    ASSERT_TRUE(RunPrompt(*l.model, l.cache, *index, ids, [&](int position, std::span<const float> got) {
                  const size_t p = static_cast<size_t>(position);
                  ++positions;
                  const bool generates = p + 1 >= kTinyPromptTokens && p + 1 < ids.size();
                  check(p, expected.subspan(p * vocab, vocab), got,
                        generates ? std::optional<int32_t>(ids[p + 1]) : std::nullopt);
                }).ok());
    EXPECT_EQ(positions, ids.size());
  }
}

template <typename Check>
void ForTinyModels(const Kernels& kernels, WeightMode weights, Check check) {
  for (const TinyCase& c : kTinyCases) {
    ForModel(kSource / "tests/golden/models" / c.model, c.domains, kernels, weights, check);
  }
}

// Of the greatest magnitude in `expected`.
double LargestDifference(std::span<const float> expected, std::span<const float> got) {
  double max = 0, difference = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    max = std::max<double>(max, std::fabs(expected[i]));
    difference = std::max<double>(difference, std::fabs(expected[i] - got[i]));
  }
  return difference / max;
}

TEST_P(ReferenceTest, TinyModelsInFp32HaveTheLogitsAndGreedyTokensOfTransformersAndPyTorch) {
  double worst = 0;
  ForTinyModels(
      GetParam(), WeightMode::kF32,
      [&](size_t p, std::span<const float> expected, std::span<const float> got, std::optional<int32_t> generated) {
        const double difference = LargestDifference(expected, got);
        worst = std::max(worst, difference);
        EXPECT_LE(difference, kFp32Bound) << "position " << p;
        if (generated) {
          EXPECT_EQ(Argmax(got), *generated) << "position " << p;
        }
      });
  RecordProperty("largest_difference_over_max_logit", std::to_string(worst));
}

TEST_P(ReferenceTest, TinyModelsInBf16AreCloseToTransformersAndPyTorch) {
  double sum = 0;
  int count = 0;
  ForTinyModels(GetParam(), WeightMode::kBF16,
                [&](size_t p, std::span<const float> expected, std::span<const float> got, std::optional<int32_t>) {
                  sum += Kl(expected, got);
                  ++count;
                  const int32_t best = Argmax(expected);
                  float second = -1e30f;
                  for (size_t i = 0; i < expected.size(); ++i) {
                    if (static_cast<int32_t>(i) != best) second = std::max(second, expected[i]);
                  }
                  if (expected[static_cast<size_t>(best)] - second > kSureMargin) {
                    EXPECT_EQ(Argmax(got), best) << "position " << p;
                  }
                });
  EXPECT_LE(sum / count, kBf16MeanKl);
  RecordProperty("mean_kl", std::to_string(sum / count));
}

// ---- Directories of gate-routed models: logits, and each token's experts, are in the golden file. ------------------

constexpr const char* kGateRoutedModels[] = {"qwen3_moe", "qwen3_moe_step", "mixtral"};

TEST_P(ReferenceTest, GateRoutedModelsInFp32HaveTheLogitsAndGreedyTokensOfTransformers) {
  for (const char* name : kGateRoutedModels) {
    double worst = 0;
    ForModel(
        kSource / "tests/golden/models" / name, {"default"}, GetParam(), WeightMode::kF32,
        [&](size_t p, std::span<const float> expected, std::span<const float> got, std::optional<int32_t> generated) {
          const double difference = LargestDifference(expected, got);
          worst = std::max(worst, difference);
          EXPECT_LE(difference, kFp32Bound) << "position " << p;
          if (generated) {
            EXPECT_EQ(Argmax(got), *generated) << "position " << p;
          }
        });
    RecordProperty(std::string(name) + "_largest_difference_over_max_logit", std::to_string(worst));
    std::printf("%s %s fp32: largest difference %.1e of max|logit|\n", GetParam().name.c_str(), name, worst);
  }
}

// One token a step, so that what a step adds to the experts' counters are that token's experts.
TEST_P(ReferenceTest, GateRoutedModelsChooseTheExpertsOfTransformers) {
  for (const char* name : kGateRoutedModels) {
    SCOPED_TRACE(name);
    const std::filesystem::path path = kSource / "tests/golden/models" / name;
    absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(path);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const GoldenFile golden(std::filesystem::path(path).replace_extension(".golden.safetensors"));
    const std::span<const int32_t> ids = golden.Get<int32_t>("default.ids");
    const std::span<const int32_t> expected = golden.Get<int32_t>("default.experts");
    Loaded l(**checkpoint, GetParam(), WeightMode::kF32);
    const std::vector<int> layers = l.model->spec().SparseLayers();
    const int num_experts = l.model->spec().domains[0].num_experts;
    const size_t k = expected.size() / layers.size() / ids.size();
    ASSERT_EQ(k, static_cast<size_t>(l.model->spec().layers[static_cast<size_t>(layers[0])].ffn.num_experts_per_tok));
    std::vector<int32_t> blocks(16);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::vector<uint64_t> before(layers.size() * static_cast<size_t>(num_experts));
    const int32_t first_row = 0;  // without logits, the last layer would choose nothing
    for (size_t t = 0; t < ids.size(); ++t) {
      const StepChunk chunk{.num_rows = 1, .position = static_cast<int>(t), .blocks = blocks};
      l.model->Forward({.token_ids = ids.subspan(t, 1), .chunks = {&chunk, 1}, .logit_rows = {&first_row, 1}}, l.cache);
      for (size_t i = 0; i < layers.size(); ++i) {
        std::vector<int32_t> chosen;
        for (int e = 0; e < num_experts; ++e) {
          uint64_t& old = before[i * static_cast<size_t>(num_experts) + static_cast<size_t>(e)];
          const uint64_t now = l.model->ExpertTokens(layers[i], 0, e);
          if (now != old) chosen.push_back(e);
          old = now;
        }
        const std::span<const int32_t> want = expected.subspan((i * ids.size() + t) * k, k);
        EXPECT_THAT(chosen, testing::ElementsAreArray(want)) << "layer " << layers[i] << ", token " << t;
      }
    }
  }
}

// ---- GGUF files, dense and gate-routed, of every block type between them --------------------------------------------

constexpr const char* kGgufModels[] = {"llama", "llama_experts", "qwen3moe"};

TEST_P(ReferenceTest, GgufFilesInFp32HaveTheLogitsOfTransformers) {
  for (const char* name : kGgufModels) {
    double worst = 0;
    ForModel(kSource / "tests/golden/gguf" / (std::string(name) + ".gguf"), {"default"}, GetParam(), WeightMode::kF32,
             [&](size_t p, std::span<const float> expected, std::span<const float> got, std::optional<int32_t>) {
               const double difference = LargestDifference(expected, got);
               worst = std::max(worst, difference);
               EXPECT_LE(difference, kFp32Bound) << "position " << p;
             });
    RecordProperty(std::string(name) + "_largest_difference_over_max_logit", std::to_string(worst));
  }
}

// As they are: integer dot products, so activations are rounded to int8.
TEST_P(ReferenceTest, GgufFilesAsTheyAreAreCloseToTransformers) {
  for (const char* name : kGgufModels) {
    double sum = 0;
    int count = 0;
    ForModel(kSource / "tests/golden/gguf" / (std::string(name) + ".gguf"), {"default"}, GetParam(), WeightMode::kAsIs,
             [&](size_t, std::span<const float> expected, std::span<const float> got, std::optional<int32_t>) {
               sum += Kl(expected, got);
               ++count;
             });
    std::printf("%s %s.gguf as it is: mean KL %.1e\n", GetParam().name.c_str(), name, sum / count);
    EXPECT_LE(sum / count, kInt8MeanKl) << name;
  }
}

// ---- The demo model: 20 held-out prompts per domain and the 64 greedy tokens after each. ---------------------------

constexpr size_t kDemoGeneratedTokens = 64;

// One domain's golden file. Where the final hidden state is kept, the reference's full logits follow from it.
struct DemoGolden {
  explicit DemoGolden(const std::string& name) : file(kSource / "tests/golden/logits" / (name + ".safetensors")) {}

  // [vocab_size] of golden row number `i`, from its hidden state and the head's weights [vocab_size, hidden_size].
  void LogitsFromHidden(size_t i, std::span<const float> head_transposed, std::vector<float>& logits) const {
    const size_t hidden = file.Get<float>("hidden").size() / file.Get<int32_t>("hidden_rows").size();
    const std::span<const float> h = file.Get<float>("hidden").subspan(i * hidden, hidden);
    const size_t vocab = logits.size();
    std::fill(logits.begin(), logits.end(), 0.0f);
    for (size_t k = 0; k < hidden; ++k) {
      const float x = h[k];
      const float* row = &head_transposed[k * vocab];
      for (size_t v = 0; v < vocab; ++v) logits[v] += x * row[v];
    }
  }

  GoldenFile file;
};

struct DemoStats {
  double worst = 0;  // difference over the largest |logit| of the position
  double kl_sum = 0;
  int kl_count = 0;
  int sure_positions = 0;
};

// Runs every sequence teacher-forced and compares each position with what the reference says of it.
void CompareDemo(const Kernels& kernels, WeightMode weights, const std::string& domain, DemoStats& stats) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(kSource / "deploy/demo");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  Loaded l(**checkpoint, kernels, weights);
  const size_t vocab = static_cast<size_t>(l.model->spec().vocab_size);
  const size_t hidden = static_cast<size_t>(l.model->spec().hidden_size);
  const std::vector<float> head = *(*checkpoint)->ReadFloats(**(*checkpoint)->Find("model.embed_tokens.weight"));
  std::vector<float> head_transposed(head.size());
  for (size_t v = 0; v < vocab; ++v) {
    for (size_t k = 0; k < hidden; ++k) head_transposed[k * vocab + v] = head[v * hidden + k];
  }
  const DemoGolden golden(domain);
  const auto ids = golden.file.Get<int32_t>("ids");
  const auto argmax = golden.file.Get<int32_t>("argmax");
  const auto margin = golden.file.Get<float>("margin");
  const auto top_logit = golden.file.Get<float>("top_logit");
  const auto logsumexp = golden.file.Get<float>("logsumexp");
  const auto max_abs_logit = golden.file.Get<float>("max_abs_logit");
  const auto hidden_rows = golden.file.Get<int32_t>("hidden_rows");
  const auto logits_rows = golden.file.Get<int32_t>("logits_rows");
  const auto full_logits = golden.file.Get<float>("logits");
  const auto prompt_tokens = golden.file.Get<int32_t>("prompt_tokens");
  ASSERT_EQ(prompt_tokens.size(), 20u);
  const bool fp32 = weights == WeightMode::kF32;
  const int index = *l.model->spec().FindDomain(domain);

  size_t begin = 0, next_hidden = 0, next_logits = 0;
  std::vector<float> expected(vocab);
  for (size_t prompt = 0; prompt < prompt_tokens.size(); ++prompt) {
    const size_t first_generated = static_cast<size_t>(prompt_tokens[prompt]);
    const size_t length = first_generated + kDemoGeneratedTokens;
    const absl::Status status =
        RunPrompt(*l.model, l.cache, index, ids.subspan(begin, length), [&](int position, std::span<const float> got) {
          const size_t p = static_cast<size_t>(position);
          const size_t row = begin + p;
          const double bound = kFp32Bound * max_abs_logit[row];
          const std::string where = domain + " prompt " + std::to_string(prompt) + " position " + std::to_string(p);
          if (fp32) {
            EXPECT_NEAR(got[static_cast<size_t>(argmax[row])], top_logit[row], bound) << where;
            EXPECT_NEAR(LogSumExp(got), logsumexp[row], bound) << where;
            if (p + 1 >= first_generated && p + 1 < length) {
              EXPECT_EQ(Argmax(got), ids[row + 1]) << where;
            }
          } else if (margin[row] > kSureMargin) {
            ++stats.sure_positions;
            EXPECT_EQ(Argmax(got), argmax[row]) << where << " margin " << margin[row];
          }
          const auto compare_all = [&](std::span<const float> want) {
            for (size_t v = 0; fp32 && v < vocab; ++v) {
              const double difference = std::fabs(static_cast<double>(got[v]) - want[v]);
              stats.worst = std::max(stats.worst, difference / max_abs_logit[row]);
            }
            stats.kl_sum += Kl(want, got);
            ++stats.kl_count;
          };
          if (next_hidden < hidden_rows.size() && static_cast<size_t>(hidden_rows[next_hidden]) == row) {
            golden.LogitsFromHidden(next_hidden++, head_transposed, expected);
            compare_all(expected);
          }
          if (next_logits < logits_rows.size() && static_cast<size_t>(logits_rows[next_logits]) == row) {
            compare_all(full_logits.subspan(next_logits++ * vocab, vocab));
          }
        });
    ASSERT_TRUE(status.ok()) << status;
    begin += length;
  }
  EXPECT_EQ(begin, ids.size());
  EXPECT_EQ(next_hidden, hidden_rows.size());
  EXPECT_EQ(next_logits, logits_rows.size());
}

TEST_P(ReferenceTest, TheDemoInFp32HasTheLogitsAndGreedyTokensOfPyTorch) {
  for (const char* domain : {"zh", "en", "cpp", "python"}) {
    DemoStats stats;
    CompareDemo(GetParam(), WeightMode::kF32, domain, stats);
    EXPECT_LE(stats.worst, kFp32Bound) << domain;
    EXPECT_GT(stats.kl_count, 20 * 16) << domain;
    std::printf("%s %-6s fp32: largest difference %.1e of max|logit| over %d full rows\n", GetParam().name.c_str(),
                domain, stats.worst, stats.kl_count);
  }
}

TEST_P(ReferenceTest, TheDemoInBf16IsCloseToPyTorch) {
  for (const char* domain : {"zh", "en", "cpp", "python"}) {
    DemoStats stats;
    CompareDemo(GetParam(), WeightMode::kBF16, domain, stats);
    ASSERT_GT(stats.kl_count, 0);
    EXPECT_LE(stats.kl_sum / stats.kl_count, kBf16MeanKl) << domain;
    EXPECT_GT(stats.sure_positions, 20 * 32) << domain;
    std::printf("%s %-6s bf16: mean KL %.1e over %d rows, same argmax at %d positions with margin > %.2f\n",
                GetParam().name.c_str(), domain, stats.kl_sum / stats.kl_count, stats.kl_count, stats.sure_positions,
                kSureMargin);
  }
}

INSTANTIATE_TEST_SUITE_P(Tiers, ReferenceTest, testing::ValuesIn(AllKernels()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace scion
