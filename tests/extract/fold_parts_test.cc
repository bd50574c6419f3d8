// The parts of a fold, each against an answer that is known: matching, merging, fitting, reading texts, the forward
// pass.

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>

#include "engine/model/model.h"
#include "extract/assignment.h"
#include "extract/compare_logits.h"
#include "extract/fit_ffn.h"
#include "extract/fold_layers.h"
#include "extract/fold_text.h"
#include "extract/layerwise_forward.h"
#include "extract/merge_experts.h"
#include "tests/extract/extract_fixture.h"

namespace scion::test {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const fs::path kDemo = fs::path(SCION_SOURCE_DIR) / "deploy" / "demo";

FloatMatrix RandomMatrix(int rows, int cols, std::mt19937& random) {
  FloatMatrix m(rows, cols);
  for (float& v : m.data) v = static_cast<float>(static_cast<double>(random() >> 8) / (1 << 24) - 0.5);
  return m;
}

FfnMatrices RandomFfn(int neurons, int hidden, std::mt19937& random) {
  FloatMatrix gate = RandomMatrix(neurons, hidden, random), up = RandomMatrix(neurons, hidden, random);
  return {std::move(gate), std::move(up), RandomMatrix(hidden, neurons, random)};
}

FfnMatrices Shuffled(const FfnMatrices& ffn, std::mt19937& random) {
  std::vector<int> order(static_cast<size_t>(ffn.gate.rows));
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  FfnMatrices out = ffn;
  for (int i = 0; i < ffn.gate.rows; ++i) {
    const int from = order[static_cast<size_t>(i)];
    std::ranges::copy(ffn.gate.row(from), out.gate.row(i).begin());
    std::ranges::copy(ffn.up.row(from), out.up.row(i).begin());
    for (int k = 0; k < ffn.down.rows; ++k) {
      out.down.row(k)[static_cast<size_t>(i)] = ffn.down.row(k)[static_cast<size_t>(from)];
    }
  }
  return out;
}

// FFN(x) in double, as the design has it.
std::vector<double> Naive(const FfnMatrices& ffn, std::span<const float> x) {
  std::vector<double> out(static_cast<size_t>(ffn.down.rows));
  for (int j = 0; j < ffn.gate.rows; ++j) {
    double gate = 0, up = 0;
    for (size_t k = 0; k < x.size(); ++k) {
      gate += double{ffn.gate.row(j)[k]} * double{x[k]};
      up += double{ffn.up.row(j)[k]} * double{x[k]};
    }
    const double hidden = gate / (1 + std::exp(-gate)) * up;
    for (size_t k = 0; k < out.size(); ++k)
      out[k] += double{ffn.down.row(static_cast<int>(k))[static_cast<size_t>(j)]} * hidden;
  }
  return out;
}

FitProblem ProblemOf(const FitRows& all) {
  return {all.inputs.rows, [&all](std::span<const int> rows, FitRows& out) {
            out.inputs.Resize(static_cast<int>(rows.size()), all.inputs.cols);
            out.targets.Resize(static_cast<int>(rows.size()), all.targets.cols);
            out.weights.clear();
            for (size_t i = 0; i < rows.size(); ++i) {
              std::ranges::copy(all.inputs.row(rows[i]), out.inputs.row(static_cast<int>(i)).begin());
              std::ranges::copy(all.targets.row(rows[i]), out.targets.row(static_cast<int>(i)).begin());
              out.weights.push_back(all.weights[static_cast<size_t>(rows[i])]);
            }
            return absl::OkStatus();
          }};
}

class FoldPartsTest : public ::testing::Test {
 protected:
  ThreadPool pool_{2};
  MatrixOps ops_{kernels::GetKernels(kernels::SupportedTiers().back()), pool_};
  std::mt19937 random_{7};
};

TEST_F(FoldPartsTest, AssignmentIsTheCheapestOfAllPermutations) {
  for (int n = 1; n <= 6; ++n) {
    for (int trial = 0; trial < 20; ++trial) {
      const FloatMatrix cost = RandomMatrix(n, n, random_);
      const auto total = [&](const std::vector<int>& column_of) {
        double sum = 0;
        for (int i = 0; i < n; ++i) sum += double{cost.row(i)[static_cast<size_t>(column_of[static_cast<size_t>(i)])]};
        return sum;
      };
      std::vector<int> permutation(static_cast<size_t>(n));
      std::iota(permutation.begin(), permutation.end(), 0);
      double least = total(permutation);
      while (std::ranges::next_permutation(permutation).found) least = std::min(least, total(permutation));
      EXPECT_NEAR(total(SolveAssignment(cost)), least, 1e-6) << n;
    }
  }
}

TEST_F(FoldPartsTest, ProductsAreThoseOfPlainLoops) {
  for (const auto& [rows, depth, cols] : {std::array{1, 1, 1}, {65, 33, 130}, {200, 48, 7}}) {
    const FloatMatrix a = RandomMatrix(rows, depth, random_), b = RandomMatrix(cols, depth, random_);
    FloatMatrix out, rounded;
    ASSERT_TRUE(ops_.MultiplyTransposed(a, b, out).ok());
    ASSERT_TRUE(ops_.MultiplyTransposed(a, b, rounded, kernels::WeightType::kBF16).ok());
    for (int i = 0; i < rows; ++i) {
      for (int j = 0; j < cols; ++j) {
        double sum = 0, sizes = 0;
        for (size_t k = 0; k < static_cast<size_t>(depth); ++k) {
          const double product = double{a.row(i)[k]} * double{b.row(j)[k]};
          sum += product;
          sizes += std::abs(product);
        }
        ASSERT_NEAR(out.row(i)[static_cast<size_t>(j)], sum, 1e-5);
        // Both factors are off by up to 2^-9 of themselves.
        ASSERT_NEAR(rounded.row(i)[static_cast<size_t>(j)], sum, sizes / 250 + 1e-5);
      }
    }
  }
}

TEST_F(FoldPartsTest, ShuffledNeuronsFindTheirPlaces) {
  const FfnMatrices original = RandomFfn(50, 16, random_);
  std::vector<FfnMatrices> experts = {original, Shuffled(original, random_), Shuffled(original, random_)};
  ASSERT_NE(experts[1].gate.data, original.gate.data);
  ASSERT_TRUE(AlignNeurons(experts, ops_).ok());
  for (const FfnMatrices& expert : experts) {
    EXPECT_EQ(expert.gate.data, original.gate.data);
    EXPECT_EQ(expert.up.data, original.up.data);
    EXPECT_EQ(expert.down.data, original.down.data);
  }
  const double share[] = {0.2, 0.3, 0.5};
  const MergedFfn merged = MergeExperts(experts, share, 1, false);
  EXPECT_EQ(merged.ffn.gate.data, original.gate.data);
  EXPECT_EQ(merged.ffn.up.data, original.up.data);
  EXPECT_EQ(merged.ffn.down.data, original.down.data);
}

TEST_F(FoldPartsTest, MergingKeepsWhatDiffersApart) {
  // Experts 0 and 2 are one and the same, 1 is another: two neurons a place are enough for all of them.
  const FfnMatrices one = RandomFfn(8, 16, random_), other = RandomFfn(8, 16, random_);
  const std::vector<FfnMatrices> experts = {one, other, one};
  const double share[] = {0.25, 0.5, 0.25};
  const MergedFfn merged = MergeExperts(experts, share, 2, true);
  ASSERT_EQ(merged.experts.size(), 16u);
  for (int place = 0; place < 8; ++place) {
    EXPECT_THAT(merged.experts[static_cast<size_t>(2 * place)], ElementsAre(0, 2));
    EXPECT_THAT(merged.experts[static_cast<size_t>(2 * place + 1)], ElementsAre(1));
    EXPECT_TRUE(std::ranges::equal(merged.ffn.gate.row(2 * place), one.gate.row(place)));
    EXPECT_TRUE(std::ranges::equal(merged.ffn.up.row(2 * place + 1), other.up.row(place)));
  }
  // Silent for the tokens of others, a neuron gives what it gave; where it speaks for all, their part of it.
  const double unequal[] = {0.125, 0.625, 0.25};
  const MergedFfn gated = MergeExperts(experts, unequal, 2, true), open = MergeExperts(experts, unequal, 2, false);
  for (int k = 0; k < 16; ++k) {
    for (size_t place = 0; place < 8; ++place) {
      const float first = one.down.row(k)[place], second = other.down.row(k)[place];
      EXPECT_FLOAT_EQ(gated.ffn.down.row(k)[2 * place], first);
      EXPECT_FLOAT_EQ(gated.ffn.down.row(k)[2 * place + 1], second);
      EXPECT_FLOAT_EQ(open.ffn.down.row(k)[2 * place], 0.375f * first);
      EXPECT_FLOAT_EQ(open.ffn.down.row(k)[2 * place + 1], 0.625f * second);
    }
  }
  const MergedFfn average = MergeExperts(experts, share, 1, false);
  for (size_t i = 0; i < one.gate.data.size(); ++i) {
    EXPECT_NEAR(average.ffn.gate.data[i], 0.5f * (one.gate.data[i] + other.gate.data[i]), 1e-6f);
  }
}

TEST_F(FoldPartsTest, SolvedDownIsTheOneThatMadeTheTargets) {
  const FfnMatrices teacher = RandomFfn(24, 16, random_);
  FitRows rows{RandomMatrix(5000, 16, random_), FloatMatrix(5000, 16), std::vector<float>(5000, 1.0f)};
  for (float& v : rows.inputs.data) v *= 6;
  for (int i = 0; i < 5000; ++i) {
    const std::vector<double> out = Naive(teacher, rows.inputs.row(i));
    std::ranges::transform(out, rows.targets.row(i).begin(), [](double v) { return static_cast<float>(v); });
  }
  const FitProblem problem = ProblemOf(rows);
  FfnMatrices student = teacher;
  std::ranges::fill(student.down.data, 0.0f);
  ASSERT_NEAR(RelativeError(problem, student, ops_).value(), 1.0, 1e-6);
  ASSERT_TRUE(SolveDown(problem, 1e-9, student, ops_).ok());
  for (size_t i = 0; i < teacher.down.data.size(); ++i) EXPECT_NEAR(student.down.data[i], teacher.down.data[i], 1e-3f);
  EXPECT_LT(RelativeError(problem, student, ops_).value(), 1e-6);
  // A strong ridge keeps what is there, whatever the rows say.
  const FloatMatrix other = RandomMatrix(16, 24, random_);
  student.down = other;
  ASSERT_TRUE(SolveDown(problem, 1e9, student, ops_).ok());
  for (size_t i = 0; i < other.data.size(); ++i) EXPECT_NEAR(student.down.data[i], other.data[i], 1e-3f);
}

TEST_F(FoldPartsTest, RefiningBringsGateAndUpBack) {
  const FfnMatrices teacher = RandomFfn(12, 16, random_);
  FitRows rows{RandomMatrix(8192, 16, random_), FloatMatrix(8192, 16), std::vector<float>(8192, 1.0f)};
  for (float& v : rows.inputs.data) v *= 6;
  for (int i = 0; i < 8192; ++i) {
    const std::vector<double> out = Naive(teacher, rows.inputs.row(i));
    std::ranges::transform(out, rows.targets.row(i).begin(), [](double v) { return static_cast<float>(v); });
  }
  const FitProblem problem = ProblemOf(rows);
  FfnMatrices student = teacher;
  for (FloatMatrix* m : {&student.gate, &student.up}) {
    const FloatMatrix noise = RandomMatrix(m->rows, m->cols, random_);
    for (size_t i = 0; i < m->data.size(); ++i) m->data[i] += 0.3f * noise.data[i];
  }
  ASSERT_TRUE(SolveDown(problem, 1e-6, student, ops_).ok());
  const double before = RelativeError(problem, student, ops_).value();
  Progress progress(nullptr, "", 0, Progress::Unit::kTokens);
  ASSERT_TRUE(RefineFfn(problem, {.batch_rows = 256, .steps = 400}, student, ops_, progress).ok());
  const double after = RelativeError(problem, student, ops_).value();
  EXPECT_GT(before, 1e-3);
  EXPECT_LT(after, 0.05 * before);
}

// The layers of LayerwiseForward, then the head: against the engine, which shares neither loops nor plans with it.
TEST_F(FoldPartsTest, LayerwiseForwardIsTheEnginesForwardPass) {
  for (const int slots : {1, 2}) {
    const TempDir temp;
    WriteTinyModel(
        MakeTinyModel({.num_experts_per_tok = slots, .route_weights = slots > 1, .tie_word_embeddings = false}),
        temp.path() / "model");
    const auto checkpoint = Checkpoint::Open(temp.path() / "model").value();
    const int domain = 1, vocab = checkpoint->spec().vocab_size;
    TokenBatch batch;
    for (const int length : {40, 7, 90}) {
      for (int i = 0; i < length; ++i)
        batch.ids.push_back(static_cast<int32_t>(random_() % static_cast<unsigned>(vocab)));
      batch.window_end.push_back(static_cast<int>(batch.ids.size()));
    }
    LayerwiseForward forward(*checkpoint, domain, ops_);
    FloatMatrix x = forward.Embed(batch).value();
    for (int layer = 0; layer < static_cast<int>(checkpoint->spec().layers.size()); ++layer) {
      ASSERT_TRUE(forward.AddAttention(layer, {&batch, 1}, {&x, 1}).ok());
      ASSERT_TRUE(forward.AddFfn(layer, {&batch, 1}, {&x, 1}).ok());
    }
    const FloatMatrix head = ReadMatrix(*checkpoint, "lm_head.weight").value();
    const std::vector<float> norm = ReadVector(*checkpoint, "model.norm.weight").value();

    ModelOptions options;
    options.tier = kernels::SupportedTiers().back();
    options.weights = WeightMode::kF32;
    options.kv_type = kernels::KvType::kF32;
    const auto model = Model::Load(*checkpoint, options, pool_).value();
    KvCache cache = MakeKvCache(*model, 128).value();
    int begin = 0;
    for (const int end : batch.window_end) {
      const std::span<const int32_t> ids =
          std::span(batch.ids).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
      ASSERT_TRUE(RunPrompt(*model, cache, domain, ids, [&](int position, std::span<const float> logits) {
                    std::vector<float> normed(static_cast<size_t>(x.cols));
                    ops_.kernels().rms_norm(x.row(begin + position).data(), norm.data(),
                                            checkpoint->spec().rms_norm_eps, x.cols, normed.data());
                    for (int v = 0; v < vocab; ++v) {
                      double sum = 0;
                      for (size_t k = 0; k < normed.size(); ++k) sum += double{normed[k]} * double{head.row(v)[k]};
                      ASSERT_NEAR(logits[static_cast<size_t>(v)], sum, 1e-4) << slots << ", position " << position;
                    }
                  }).ok());
      begin = end;
    }
  }
}

// A layer's down projection is the best for what the folded layers below it give: solved once more on exactly that, it
// can't become better, which it would if it had been fitted to the source's own inputs.
TEST_F(FoldPartsTest, EachLayerIsFittedToWhatTheFoldBelowItGives) {
  const TempDir temp;
  WriteTinyModel(MakeTinyModel({.domains = {{"alpha", 3}}, .dtype = DType::kF32}), temp.path() / "model");
  const auto checkpoint = Checkpoint::Open(temp.path() / "model").value();
  const ModelSpec& spec = checkpoint->spec();
  ASSERT_THAT(spec.SparseLayers(), ElementsAre(1, 2));
  TokenBatch batch;
  FoldOptions options;
  options.fit = true;
  options.epochs = 0;
  for (int w = 0; w < 64; ++w) {
    TokenWindow window(60);
    std::ranges::generate(window,
                          [&] { return static_cast<int32_t>(random_() % static_cast<unsigned>(spec.vocab_size)); });
    batch.ids.insert(batch.ids.end(), window.begin(), window.end());
    batch.window_end.push_back(static_cast<int>(batch.ids.size()));
    options.windows.push_back(std::move(window));
  }
  const auto folded = FoldLayers(*checkpoint, MakeDenseLayout(spec, 3, 1, false), options, ops_).value();

  LayerwiseForward forward(*checkpoint, 0, ops_);
  FloatMatrix source = forward.Embed(batch).value(), fold, in, out;
  for (int layer = 0; layer < 2; ++layer) {
    ASSERT_TRUE(forward.AddAttention(layer, {&batch, 1}, {&source, 1}).ok());
    fold = source;
    ASSERT_TRUE(forward.AddFfn(layer, {&batch, 1}, {&source, 1}).ok());
  }
  ASSERT_TRUE(forward.FfnInput(1, fold, in).ok());
  ASSERT_TRUE(ApplyFfn(folded.at(1).ffn, in, ops_, out).ok());
  for (size_t i = 0; i < fold.data.size(); ++i) fold.data[i] += out.data[i];
  for (FloatMatrix* x : {&source, &fold}) ASSERT_TRUE(forward.AddAttention(2, {&batch, 1}, {x, 1}).ok());
  ASSERT_TRUE(forward.AddFfn(2, {&batch, 1}, {&source, 1}).ok());
  FitRows rows{{}, FloatMatrix(fold.rows, fold.cols), {}};
  ASSERT_TRUE(forward.FfnInput(2, fold, rows.inputs).ok());
  for (int i = 0; i < fold.rows; ++i) {
    double square = 0;
    for (size_t k = 0; k < source.row(i).size(); ++k) {
      rows.targets.row(i)[k] = source.row(i)[k] - fold.row(i)[k];
      square += double{source.row(i)[k]} * double{source.row(i)[k]};
    }
    rows.weights.push_back(static_cast<float>(1 / square));
  }
  const FitProblem problem = ProblemOf(rows);
  FfnMatrices again = folded.at(2).ffn;
  const double fitted = RelativeError(problem, again, ops_).value();
  ASSERT_TRUE(SolveDown(problem, 1e-6, again, ops_).ok());
  const double best = RelativeError(problem, again, ops_).value();
  EXPECT_GT(best, 0);
  EXPECT_LT(fitted, 1.01 * best);
}

TEST(FoldTextTest, DocumentsBecomeWindows) {
  const TempDir temp;
  const auto tokenizer = Tokenizer::Load(kDemo).value();
  const TextLimits limits{.window_tokens = 4, .max_tokens = 1000, .vocab_size = 8192};
  std::vector<int32_t> one, two;
  tokenizer->Encode("int main() { return 0; }\n", {.parse_special = false, .add_special = false}, one);
  tokenizer->Encode("x", {.parse_special = false, .add_special = false}, two);
  ASSERT_GT(one.size(), 8u);
  ASSERT_EQ(two.size(), 1u);
  WriteBytes(temp.path() / "t.jsonl", "{\"text\": \"int main() { return 0; }\\n\"}\n\n{\"text\": \"x\"}\n");
  const auto windows = ReadTokenWindows(temp.path() / "t.jsonl", *tokenizer, limits).value();
  std::vector<int32_t> all;
  for (const TokenWindow& window : windows) {
    EXPECT_LE(window.size(), 4u);
    EXPECT_GE(window.size(), 2u);
    all.insert(all.end(), window.begin(), window.end());
  }
  one.resize(one.size() - (one.size() % 4 == 1));
  EXPECT_EQ(all, one);  // the document of one token is left out
  WriteBytes(temp.path() / "t.txt", "int main() { return 0; }\n");
  EXPECT_EQ(ReadTokenWindows(temp.path() / "t.txt", *tokenizer, limits).value(), windows);
  const TextLimits few{.window_tokens = 4, .max_tokens = 6, .vocab_size = 8192};
  EXPECT_EQ(CountTokens(ReadTokenWindows(temp.path() / "t.txt", *tokenizer, few).value()), 6);
}

TEST(FoldTextTest, WhatIsNoTextIsRefused) {
  const TempDir temp;
  const auto tokenizer = Tokenizer::Load(kDemo).value();
  const fs::path file = temp.path() / "t.txt";
  const auto refusal = [&](const fs::path& path, int vocab_size = 8192) {
    const auto windows =
        ReadTokenWindows(path, *tokenizer, {.window_tokens = 16, .max_tokens = 100, .vocab_size = vocab_size});
    return windows.ok() ? std::string("accepted") : std::string(windows.status().message());
  };
  WriteBytes(file, "plain text");
  EXPECT_EQ(refusal(file), "accepted");
  EXPECT_THAT(refusal(file, 20), HasSubstr("not in the model's vocabulary of 20"));
  WriteBytes(file, "");
  EXPECT_THAT(refusal(file), HasSubstr("is empty"));
  WriteBytes(file, std::string("plain\0text", 10));
  EXPECT_THAT(refusal(file), HasSubstr("is not text in UTF-8"));
  WriteBytes(file, "plain \xff text");
  EXPECT_THAT(refusal(file), HasSubstr("is not text in UTF-8"));
  WriteBytes(temp.path() / "t.jsonl", "[1]\n");
  EXPECT_THAT(refusal(temp.path() / "t.jsonl"), HasSubstr("not a JSON object"));
  WriteBytes(temp.path() / "t.jsonl", "{\"txt\": 1}\n");
  EXPECT_THAT(refusal(temp.path() / "t.jsonl"), HasSubstr("'text'"));
  EXPECT_THAT(refusal(temp.path() / "absent.txt"), HasSubstr("absent.txt"));
}

}  // namespace
}  // namespace scion::test
