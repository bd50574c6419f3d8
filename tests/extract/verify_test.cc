// That a cut is its source, bit for bit; and that verify finds whatever is not.

#include "extract/verify.h"

#include <cstring>
#include <iostream>
#include <memory>
#include <set>

#include "engine/base/sha256.h"
#include "engine/base/thread_pool.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model.h"
#include "tests/extract/extract_fixture.h"

namespace scion::test {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// What ModelUnderTest's logits look like as bytes, without any code of extract/.
std::string LogitBytes(const fs::path& directory, const std::string& domain, kernels::Tier tier,
                       WeightMode weights) {
  ThreadPool pool(2);
  const auto checkpoint = Checkpoint::Open(directory);
  ModelOptions options;
  options.tier = tier;
  options.weights = weights;
  auto model = Model::Load(**checkpoint, options, pool);
  auto cache = KvCache::Create((*model)->KvPlanes(), kernels::kKvBlockTokens, 8);
  std::vector<int32_t> prompt;
  for (int i = 0; i < 97; ++i) prompt.push_back((i * 37 + 11) % 97);  // the whole vocabulary
  std::string bytes;
  const absl::Status status =
      RunPrompt(**model, *cache, *(*model)->spec().FindDomain(domain), prompt, [&](int, std::span<const float> logits) {
        bytes.append(reinterpret_cast<const char*>(logits.data()), logits.size_bytes());
      });
  EXPECT_TRUE(status.ok()) << status;
  return bytes;
}

class VerifyTest : public ::testing::Test {
 protected:
  void WriteModel(const TinyModelOptions& options) {
    WriteTinyModel(MakeTinyModel(options), model());
    WriteBytes(model() / "tokenizer.json", "{\"vocab\": {}}\n");
  }
  void WriteModelAndCut(const std::string& domain, const TinyModelOptions& options = {}) {
    WriteModel(options);
    const auto result = Cut(model(), {domain}, cut());
    ASSERT_TRUE(result.ok()) << result.status();
  }

  fs::path model() const { return temp_.path() / "model"; }
  fs::path cut() const { return temp_.path() / "cut"; }

  VerifyReport MustVerify(const VerifyOptions& options) {
    absl::StatusOr<VerifyReport> report = Verify(options);
    if (report.ok()) return *std::move(report);
    ADD_FAILURE() << report.status();
    VerifyReport none;
    none.differences.push_back({"", "", "no report"});
    return none;
  }

  // The tensors of the cut's domain files that belong to an expert.
  static bool IsExpert(const TensorPlace& tensor) { return tensor.name.find(".experts.") != std::string::npos; }

 private:
  TempDir temp_;
};

// Shapes of models that a cut must be exact for.
std::vector<TinyModelOptions> ModelShapes() {
  TinyModelOptions two_rows;  // k = 2, with weights, experts unequal in number
  two_rows.num_experts_per_tok = 2;
  two_rows.route_weights = true;
  two_rows.domains = {{"a", 5}, {"b", 2}, {"c", 3}};
  two_rows.default_domain = "b";
  TinyModelOptions spread;  // every other layer sparse, fp32 on disk, head of its own
  spread.num_layers = 4;
  spread.sparse_layers = {0, 2};
  spread.dtype = DType::kF32;
  spread.tie_word_embeddings = false;
  spread.domains = {{"a", 1}, {"b", 4}, {"c", 2}};
  spread.default_domain = "a";
  return {TinyModelOptions{}, two_rows, spread};
}

TEST_F(VerifyTest, SliceHasTheSameBitsAsTheWhole) {
  for (const TinyModelOptions& shape : ModelShapes()) {
    fs::remove_all(model());
    WriteModel(shape);
    std::map<std::pair<kernels::Tier, WeightMode>, std::set<std::string>> seen;
    for (const TinyDomain& domain : shape.domains) {
      fs::remove_all(cut());
      ASSERT_TRUE(Cut(model(), {domain.name}, cut()).ok());
      for (const kernels::Tier tier : kernels::SupportedTiers()) {
        for (const auto weights : {WeightMode::kBF16, WeightMode::kF32}) {
          const std::string whole = LogitBytes(model(), domain.name, tier, weights);
          EXPECT_EQ(whole.size(), 97u * 97u * sizeof(float));
          EXPECT_TRUE(whole == LogitBytes(cut(), domain.name, tier, weights)) << domain.name;
          const bool is_new = seen[std::pair(tier, weights)].insert(whole).second;
          EXPECT_TRUE(is_new) << "two domains with the same logits prove nothing";
        }
      }
    }
  }
}

TEST_F(VerifyTest, CutsOfOneAndOfSeveralDomainsAreIdentical) {
  for (const TinyModelOptions& shape : ModelShapes()) {
    fs::remove_all(model());
    WriteModel(shape);
    std::vector<std::vector<std::string>> selections = {{}};
    for (const TinyDomain& domain : shape.domains) {
      selections.push_back({domain.name});
      selections.front().push_back(domain.name);
    }
    selections.push_back({shape.domains.front().name, shape.domains.back().name});
    for (const auto& kept : selections) {
      fs::remove_all(cut());
      ASSERT_TRUE(Cut(model(), kept, cut()).ok());
      const VerifyReport report = MustVerify(OptionsFor(cut(), model()));
      for (const Difference& d : report.differences) ADD_FAILURE() << ToString(d);
      EXPECT_THAT(report.domains, ::testing::UnorderedElementsAreArray(kept));
      EXPECT_GE(report.prompts, 2 * static_cast<int>(kept.size()));
      for (const TinyDomain& domain : shape.domains) {
        if (std::find(kept.begin(), kept.end(), domain.name) == kept.end()) continue;
        const auto& coverage = report.coverage.at(domain.name);
        ASSERT_EQ(coverage.size(), shape.sparse_layers.size());
        for (size_t i = 0; i < coverage.size(); ++i) {
          EXPECT_EQ(coverage[i].layer, shape.sparse_layers[i]);
          EXPECT_EQ(coverage[i].experts, domain.num_experts);
          EXPECT_EQ(coverage[i].visited, domain.num_experts);
        }
      }
    }
  }
}

// For every expert tensor: the sign of its largest weight flipped, and the lock signed anew.
TEST_F(VerifyTest, FlippedSignInAnyExpertTensorIsNamed) {
  for (const TinyModelOptions& shape : ModelShapes()) {
    fs::remove_all(model());
    fs::remove_all(cut());
    ASSERT_NO_FATAL_FAILURE(WriteModelAndCut(shape.domains.back().name, shape));
    const std::string path = "domains/" + shape.domains.back().name + ".safetensors";
    const std::string intact = ReadBytes(cut() / path);
    int tensors = 0, found_by_logits = 0;
    for (const TensorPlace& tensor : TensorsIn(intact)) {
      if (!IsExpert(tensor)) continue;
      std::string bytes = intact;
      const size_t element = FlipSignOfLargest(bytes, tensor);
      WriteBytes(cut() / path, bytes);
      ASSERT_NO_FATAL_FAILURE(Resign(cut()));
      const VerifyReport report = MustVerify(OptionsFor(cut(), model()));
      ASSERT_EQ(report.differences.size(), 1u) << tensor.name;
      EXPECT_EQ(report.differences[0].file, path);
      EXPECT_EQ(report.differences[0].tensor, tensor.name);
      EXPECT_THAT(report.differences[0].what, HasSubstr("element " + std::to_string(element) + " "));
      EXPECT_EQ(report.prompts, 0);

      // The second line of defence, alone: the logits.
      VerifyOptions logits_only = OptionsFor(cut(), model());
      logits_only.compare_bytes = false;
      const VerifyReport logits = MustVerify(logits_only);
      ++tensors;
      if (logits.differences.empty()) continue;
      ++found_by_logits;
      EXPECT_THAT(logits.differences[0].what, HasSubstr("prompt "));
      EXPECT_THAT(logits.differences[0].what, HasSubstr("position "));
    }
    std::cout << "logits alone found " << found_by_logits << " of " << tensors << " flipped expert tensors\n";
    EXPECT_EQ(tensors, static_cast<int>(3 * shape.sparse_layers.size()) * shape.domains.back().num_experts);
    EXPECT_EQ(found_by_logits, tensors);
    WriteBytes(cut() / path, intact);
    Resign(cut());
    EXPECT_TRUE(MustVerify(OptionsFor(cut(), model())).differences.empty());
  }
}

TEST_F(VerifyTest, FlippedByteInAnyFileIsFoundAndTheFileNamed) {
  ASSERT_NO_FATAL_FAILURE(WriteModelAndCut("beta"));
  const auto intact = ReadTree(cut());
  EXPECT_EQ(intact.size(), 7u);
  ASSERT_TRUE(MustVerify(OptionsFor(cut(), model())).differences.empty());
  for (const auto& [path, bytes] : intact) {
    // Every byte of a small file's beginning and end, and 60 between: length, header, data, and the lock itself.
    std::vector<size_t> offsets;
    for (size_t i = 0; i < std::min<size_t>(bytes.size(), 16); ++i) offsets.push_back(i);
    for (size_t i = 1; i <= 60; ++i) offsets.push_back(i * (bytes.size() - 1) / 60);
    for (const size_t offset : offsets) {
      FlipByte(cut() / path, offset);
      const VerifyReport report = MustVerify(OptionsFor(cut(), model()));
      EXPECT_FALSE(report.differences.empty()) << path << " byte " << offset;
      EXPECT_THAT(report.differences, Contains(::testing::Field(&Difference::file, path))) << "byte " << offset;
      WriteBytes(cut() / path, bytes);
    }
  }
  EXPECT_TRUE(MustVerify(OptionsFor(cut(), model())).differences.empty());
}

TEST_F(VerifyTest, FlippedTrunkWeightIsNamedThoughTheLockIsSigned) {
  ASSERT_NO_FATAL_FAILURE(WriteModelAndCut("alpha"));
  std::string bytes = ReadBytes(cut() / "trunk.safetensors");
  const TensorPlace tensor = TensorsIn(bytes).back();
  FlipSignOfLargest(bytes, tensor);
  WriteBytes(cut() / "trunk.safetensors", bytes);
  Resign(cut());
  const VerifyReport report = MustVerify(OptionsFor(cut(), model()));
  ASSERT_EQ(report.differences.size(), 1u);
  EXPECT_EQ(report.differences[0].tensor, tensor.name);
}

TEST_F(VerifyTest, ChangedConfigIsNamedThoughTheLockIsSigned) {
  ASSERT_NO_FATAL_FAILURE(WriteModelAndCut("alpha"));
  const auto intact = nlohmann::ordered_json::parse(ReadBytes(cut() / "config.json"));
  for (const auto& [key, value] : std::map<std::string, nlohmann::json>{
           {"rms_norm_eps", 2e-5}, {"max_position_embeddings", 64}, {"note", "new"}, {"bos_token_id", nullptr}}) {
    auto config = intact;
    config[key] = value;
    WriteBytes(cut() / "config.json", config.dump());
    Resign(cut());
    const VerifyReport report = MustVerify(OptionsFor(cut(), model()));
    ASSERT_EQ(report.differences.size(), 1u) << key;
    EXPECT_EQ(report.differences[0].file, "config.json");
    EXPECT_THAT(report.differences[0].what, HasSubstr("'" + key + "'"));
  }
  // Spelt otherwise, but the same values: no difference.
  WriteBytes(cut() / "config.json", nlohmann::json(intact).dump());
  Resign(cut());
  EXPECT_TRUE(MustVerify(OptionsFor(cut(), model())).differences.empty());
}

TEST_F(VerifyTest, ForeignTokenizerIsNamedThoughTheLockIsSigned) {
  ASSERT_NO_FATAL_FAILURE(WriteModelAndCut("alpha"));
  WriteBytes(cut() / "tokenizer.json", "{}");
  Resign(cut());
  const VerifyReport report = MustVerify(OptionsFor(cut(), model()));
  ASSERT_EQ(report.differences.size(), 1u);
  EXPECT_EQ(report.differences[0].file, "tokenizer.json");
}

TEST_F(VerifyTest, MissingFileLockOrStrayWeightsAreNamed) {
  ASSERT_NO_FATAL_FAILURE(WriteModelAndCut("alpha"));
  const auto first = [&] { return ToString(MustVerify(OptionsFor(cut(), model())).differences.at(0)); };
  WriteBytes(cut() / "domains" / "beta.safetensors", ReadBytes(model() / "domains" / "beta.safetensors"));
  EXPECT_THAT(first(), HasSubstr("domains/beta.safetensors"));
  fs::remove(cut() / "domains" / "beta.safetensors");
  fs::remove(cut() / "tokenizer.json");
  EXPECT_THAT(first(), HasSubstr("tokenizer.json"));
  WriteBytes(cut() / "tokenizer.json", ReadBytes(model() / "tokenizer.json"));
  fs::remove(cut() / "scion.lock.json");
  EXPECT_THAT(first(), HasSubstr("scion.lock.json"));
}

TEST_F(VerifyTest, OptionalTensorThatTheCutLacksIsNamed) {
  TinyModelOptions options;
  options.num_experts_per_tok = 2;
  options.route_weights = true;
  WriteModel(options);
  options.route_weights = false;  // the same names otherwise; other random values, of which nothing is asked here
  options.domains = {{"beta", 2}};
  options.default_domain = "beta";
  WriteTinyModel(MakeTinyModel(options), cut());
  ASSERT_TRUE(Sign({.model = cut(), .replace = false, .version = "test", .now = TestTime()}).ok());
  const VerifyReport report = MustVerify(OptionsFor(cut(), model()));
  EXPECT_THAT(
      report.differences,
      Contains(::testing::AllOf(::testing::Field(&Difference::tensor, "model.layers.1.mlp.domains.beta.route_weight"),
                                ::testing::Field(&Difference::what, HasSubstr("not in the cut")))));
}

TEST_F(VerifyTest, DomainThatTheSourceLacksIsNamed) {
  ASSERT_NO_FATAL_FAILURE(WriteModelAndCut("alpha"));
  TinyModelOptions other;
  other.domains = {{"gamma", 2}};
  other.default_domain = "gamma";
  WriteTinyModel(MakeTinyModel(other), cut().parent_path() / "other");
  const VerifyReport report = MustVerify(OptionsFor(cut(), cut().parent_path() / "other"));
  ASSERT_FALSE(report.differences.empty());
  EXPECT_THAT(ToString(report.differences[0]), HasSubstr("'alpha'"));
}

TEST_F(VerifyTest, UnreadableSourceIsAnErrorNotAVerdict) {
  ASSERT_NO_FATAL_FAILURE(WriteModelAndCut("alpha"));
  EXPECT_EQ(Verify(OptionsFor(cut(), model() / "nowhere")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(Verify(OptionsFor(cut() / "nowhere", model())).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(VerifyTest, CertificateStatesHashesCoverageAndResult) {
  ASSERT_NO_FATAL_FAILURE(WriteModelAndCut("alpha"));
  const VerifyOptions options = OptionsFor(cut(), model());
  const VerifyReport report = MustVerify(options);
  const Json certificate = CertificateJson(options, report);
  EXPECT_EQ(certificate["result"], "identical");
  EXPECT_EQ(certificate["time"], "2023-11-14T22:13:20Z");
  EXPECT_EQ(certificate["version"], "test");
  EXPECT_EQ(certificate["tier"], "portable");
  EXPECT_EQ(certificate["weights"], "as-is");
  EXPECT_EQ(certificate["domains"], Json::array({"alpha"}));
  EXPECT_EQ(certificate["model"]["lock_sha256"], "");  // the tiny model has no lock
  const auto lock = nlohmann::json::parse(ReadBytes(cut() / "scion.lock.json"));
  EXPECT_EQ(certificate["cut"]["lock_sha256"], lock["lock_sha256"]);
  for (const char* path : {"trunk.safetensors", "domains/alpha.safetensors", "tokenizer.json", "generation_config.json"}) {
    EXPECT_EQ(certificate["cut"]["files"][path], lock["files"][path]["sha256"]);
    EXPECT_EQ(certificate["model"]["files"][path], lock["files"][path]["sha256"]);
  }
  EXPECT_EQ(certificate["model"]["files"]["config.json"], Sha256Hex(ReadBytes(model() / "config.json")));
  EXPECT_EQ(certificate["model"]["files"].size(), 5u);
  const Json layer_1 = {{"layer", 1}, {"experts", 3}, {"reachable", 3}, {"visited", 3}};
  EXPECT_EQ(certificate["coverage"]["alpha"][0], layer_1);
  EXPECT_GT(certificate["positions"].get<int>(), 128);
  EXPECT_THAT(SummaryLine(options, report), HasSubstr("identical: cut is the alpha of model"));
  EXPECT_THAT(SummaryLine(options, report), HasSubstr("6 of 6 experts"));

  FlipByte(cut() / "domains" / "alpha.safetensors", ReadBytes(cut() / "domains" / "alpha.safetensors").size() - 1000);
  const VerifyReport differs = MustVerify(options);
  EXPECT_EQ(CertificateJson(options, differs)["result"], "differs");
  EXPECT_EQ(CertificateJson(options, differs)["differences"][0]["file"], "domains/alpha.safetensors");
  EXPECT_THAT(SummaryLine(options, differs),
              HasSubstr("differs: cut from model: domains/alpha.safetensors: model.layers."));
}

}  // namespace
}  // namespace scion::test
