// A request's logits have the same bits whatever else is in the batch, however its prompt is chunked, by tokens and by
// layers, on any number of threads, with and without the prefix cache. The reference is each sequence run alone, in one
// piece, on one thread.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>
#include <set>
#include <tuple>

#include "engine/base/thread_pool.h"
#include "engine/kv_cache/kv_cache.h"
#include "engine/model/checkpoint.h"
#include "engine/model/model.h"
#include "engine/scheduler/scheduler.h"
#include "tests/support/kernel_tables.h"
#include "tests/support/tiny_model.h"

namespace scion {
namespace {

using test::AllKernels;
using test::Kernels;

// Three domains of unequal size, two experts per token, widths that fill no panel, a context beyond 300.
// Odd sizes, or, where weights are to be rounded to blocks, rows that blocks fill.
test::TinyModelOptions TestModel(WeightMode weights) {
  const bool blocks = weights == WeightMode::kQ8 || weights == WeightMode::kQ4;
  test::TinyModelOptions o;
  o.vocab_size = 259;
  o.hidden_size = blocks ? 96 : 72;
  o.intermediate_size = blocks ? 160 : 100;
  o.moe_intermediate_size = blocks ? 64 : 56;
  o.num_layers = 4;
  o.sparse_layers = {1, 3};
  o.num_heads = 6;
  o.num_kv_heads = 2;
  o.head_dim = 16;
  o.num_experts_per_tok = 2;
  o.route_weights = true;
  o.domains = {{"alpha", 5}, {"beta", 3}, {"gamma", 2}, {"delta", 7}};
  o.max_position_embeddings = 384;
  return o;
}

struct Prompt {
  int domain;
  std::vector<int32_t> ids;
  int max_new_tokens;
  int arrives_at_step;
};

// Every logit row of one sequence, prompt and generated tokens, in order of positions.
struct Outcome {
  std::vector<int32_t> tokens;
  std::vector<float> logits;  // [tokens, vocab_size]; the last generated token is never computed
  std::set<int> passed_over;  // positions whose logits nobody computed, for the prefix cache had their keys and values
  std::set<int> unwanted;     // positions whose logits nobody asked for
};

struct TraceSummary {
  int widest_mixed_step = 0;  // rows of the largest step of at least 3 domains with both prefill and decode in it
  int unwanted_rows = 0;
  int steps_without_logits = 0;
  int cut_short = 0;       // layered steps that ended sooner than planned, and not at the last layer anyway
  int cut_from_end = 0;    // or at the last layer otherwise
  int resumed_chunks = 0;  // that pass some layers, after others in earlier steps
};

struct Loaded {
  std::unique_ptr<ThreadPool> pool;
  std::unique_ptr<Model> model;
  std::unique_ptr<KvCache> cache;
};

Loaded LoadModel(const Checkpoint& checkpoint, const Kernels& kernels, WeightMode weights, int threads,
                 int max_step_rows, int num_blocks) {
  Loaded l;
  l.pool = std::make_unique<ThreadPool>(threads);
  l.model = *Model::Load(checkpoint,
                         {.tier = kernels.table->tier,
                          .kernels = kernels.table,
                          .weights = weights,
                          .kv_type = DefaultKvType(checkpoint, weights),
                          .max_step_rows = max_step_rows,
                          .max_logit_rows = 16},
                         *l.pool);
  l.cache = std::make_unique<KvCache>(*KvCache::Create(l.model->KvPlanes(), kernels::kKvBlockTokens, num_blocks));
  return l;
}

int32_t Greedy(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// Runs all prompts through the scheduler, greedily. Steps take turns in whose logits they want: of all rows, of those
// that the next token needs, of these and every third. With limits.num_layers, prompts beside decodes pass one layer or
// two in a step.
std::vector<Outcome> RunTogether(Loaded& l, const std::vector<Prompt>& prompts, SchedulerLimits limits,
                                 TraceSummary* summary, uint64_t* preemptions = nullptr,
                                 PrefixCache* prefixes = nullptr) {
  Scheduler scheduler(limits, static_cast<int>(l.model->spec().domains.size()), *l.cache, prefixes);
  const size_t vocab = static_cast<size_t>(l.model->spec().vocab_size);
  std::vector<Sequence> sequences(prompts.size());
  std::vector<Outcome> outcomes(prompts.size());
  std::vector<float> logits(16 * vocab);
  size_t ended = 0;
  for (int step = 0; ended < prompts.size(); ++step) {
    for (size_t i = 0; i < prompts.size(); ++i) {
      if (prompts[i].arrives_at_step != step) continue;
      sequences[i].domain = prompts[i].domain;
      sequences[i].tokens = prompts[i].ids;
      sequences[i].num_prompt_tokens = static_cast<int>(prompts[i].ids.size());
      scheduler.Add(&sequences[i]);
    }
    const ScheduledStep scheduled = scheduler.Schedule({.tokens = [&](int, int) { return limits.max_step_tokens; },
                                                        .layers = [&](int, int, int) { return 1 + step % 2; }});
    const std::vector<ScheduledChunk> chunks(scheduled.chunks.begin(), scheduled.chunks.end());
    const size_t num_whole = chunks.size() - static_cast<size_t>(scheduled.num_layered);
    const bool is_to_end = scheduled.layer_end == limits.num_layers;
    if (chunks.empty()) {
      EXPECT_LT(step, 10000);
      continue;
    }
    std::vector<int32_t> ids, rows;
    std::vector<StepChunk> step_chunks;
    std::set<int> domains;
    int prefill = 0, decode = 0;
    for (const ScheduledChunk& c : chunks) {
      const Sequence& s = *c.sequence;
      const bool passes_last_layer = step_chunks.size() < num_whole || is_to_end;
      EXPECT_FALSE(c.completes && !passes_last_layer);
      for (int i = 0; i < c.num_tokens; ++i) {
        if (!passes_last_layer) {
          ids.push_back(s.tokens[static_cast<size_t>(s.num_computed + i)]);
          continue;
        }
        const bool needed = c.completes && i + 1 == c.num_tokens;
        const bool wanted = needed || step % 3 == 0 || (step % 3 == 2 && ids.size() % 3 == 0);
        if (wanted) rows.push_back(static_cast<int32_t>(ids.size()));
        std::set<int>& unwanted = outcomes[static_cast<size_t>(&s - sequences.data())].unwanted;
        if (wanted) {
          unwanted.erase(s.num_computed + i);
        } else {
          unwanted.insert(s.num_computed + i);
        }
        ids.push_back(s.tokens[static_cast<size_t>(s.num_computed + i)]);
      }
      step_chunks.push_back({.domain = s.domain,
                             .row_begin = c.row_begin,
                             .num_rows = c.num_tokens,
                             .position = s.num_computed,
                             .blocks = s.blocks,
                             .held_row = c.held_row});
      domains.insert(s.domain);
      (s.num_computed >= s.num_prompt_tokens ? decode : prefill) += c.num_tokens;
    }
    if (summary != nullptr) {
      summary->unwanted_rows += static_cast<int>(ids.size() - rows.size());
      summary->steps_without_logits += rows.empty();
    }
    if (summary != nullptr && domains.size() >= 3 && prefill > 0 && decode > 0) {
      summary->widest_mixed_step = std::max(summary->widest_mixed_step, prefill + decode);
    }
    if (summary != nullptr && scheduled.layer_begin > 0) summary->resumed_chunks += scheduled.num_layered;
    // Some end before what was planned, be it at the model's end or not.
    std::vector<int> asked;
    const auto goes_on = [&](int layer) {
      asked.push_back(layer);
      return (layer + step) % 4 != 0;
    };
    const LayersPassed passed =
        l.model->Forward({.token_ids = ids,
                          .chunks = step_chunks,
                          .logit_rows = rows,
                          .num_layered_rows = scheduled.num_layered_rows,
                          .layers = {.begin = scheduled.layer_begin, .end = scheduled.layer_end},
                          .goes_on = goes_on},
                         *l.cache);
    int end = scheduled.layer_end;
    if (scheduled.num_layered > 0) {
      std::vector<int> to_ask;
      for (int layer = scheduled.layer_begin + 1; layer < end; ++layer) {
        to_ask.push_back(layer);
        if ((layer + step) % 4 == 0) end = layer;
      }
      EXPECT_EQ(asked, to_ask);
      EXPECT_EQ(passed.end, end);
      if (summary != nullptr && end < scheduled.layer_end) ++(is_to_end ? summary->cut_from_end : summary->cut_short);
    }
    const bool has_logits = end == limits.num_layers;
    if (!has_logits) std::erase_if(rows, [&](int row) { return row >= step_chunks[num_whole].row_begin; });
    // The last layer is in neither.
    const int last = static_cast<int>(l.model->spec().layers.size()) - 1;
    EXPECT_EQ(passed.layered_time > absl::ZeroDuration(), scheduled.layer_begin < last);
    if (scheduled.num_layered == 0) {
      EXPECT_EQ(passed.others_time, absl::ZeroDuration());
    }
    std::vector<float> all(ids.size() * vocab);
    for (size_t first = 0; first < rows.size(); first += 16) {
      const size_t n = std::min<size_t>(16, rows.size() - first);
      l.model->Logits(static_cast<int>(first), static_cast<int>(n), logits.data());
      for (size_t i = 0; i < n; ++i) {
        std::memcpy(&all[static_cast<size_t>(rows[first + i]) * vocab], &logits[i * vocab], vocab * sizeof(float));
      }
    }
    for (const ScheduledChunk& c : std::span(chunks).first(has_logits ? chunks.size() : num_whole)) {
      const size_t i = static_cast<size_t>(c.sequence - sequences.data());
      std::vector<float>& out = outcomes[i].logits;
      const int known = static_cast<int>(out.size() / vocab);
      for (int p = known; p < c.sequence->num_computed; ++p) outcomes[i].passed_over.insert(p);
      for (int p = 0; p < c.num_tokens; ++p) outcomes[i].passed_over.erase(c.sequence->num_computed + p);
      const size_t begin = static_cast<size_t>(c.sequence->num_computed) * vocab;
      const size_t count = static_cast<size_t>(c.num_tokens) * vocab;
      if (out.size() < begin + count) out.resize(begin + count);
      const float* source = &all[static_cast<size_t>(c.row_begin) * vocab];
      std::copy(source, source + count, out.begin() + static_cast<std::ptrdiff_t>(begin));
    }
    scheduler.Complete(end);
    for (const ScheduledChunk& c : std::span(chunks).first(has_logits ? chunks.size() : num_whole)) {
      if (!c.completes) continue;
      Sequence& s = *c.sequence;
      const size_t i = static_cast<size_t>(&s - sequences.data());
      const size_t last = (static_cast<size_t>(c.row_begin) + static_cast<size_t>(c.num_tokens) - 1) * vocab;
      s.tokens.push_back(Greedy(std::span(all).subspan(last, vocab)));
      if (static_cast<int>(s.tokens.size()) - s.num_prompt_tokens < prompts[i].max_new_tokens) continue;
      outcomes[i].tokens = s.tokens;
      scheduler.Remove(&s);
      ++ended;
    }
  }
  EXPECT_EQ(l.cache->blocks_in_use(), 0);
  if (preemptions != nullptr) *preemptions = scheduler.preemptions();
  return outcomes;
}

Outcome RunAlone(Loaded& l, const Prompt& prompt) {
  Outcome o;
  o.tokens = prompt.ids;
  for (int i = 0; i < prompt.max_new_tokens; ++i) {
    o.logits.clear();
    EXPECT_TRUE(RunPrompt(*l.model, *l.cache, prompt.domain, o.tokens, [&](int, std::span<const float> logits) {
                  o.logits.insert(o.logits.end(), logits.begin(), logits.end());
                }).ok());
    const size_t vocab = static_cast<size_t>(l.model->spec().vocab_size);
    o.tokens.push_back(Greedy(std::span(o.logits).last(vocab)));
  }
  return o;
}

std::vector<Prompt> MakePrompts(const ModelSpec& spec) {
  std::mt19937 random(2023);
  std::vector<Prompt> prompts;
  const auto add = [&](int tokens, int max_new, int step) {
    Prompt p{.domain = static_cast<int>(prompts.size() % spec.domains.size()),
             .ids = {},
             .max_new_tokens = max_new,
             .arrives_at_step = step};
    for (int i = 0; i < tokens; ++i) {
      p.ids.push_back(static_cast<int32_t>(random() % static_cast<unsigned>(spec.vocab_size)));
    }
    prompts.push_back(std::move(p));
  };
  for (int tokens : {1, 2, 31, 32, 33, 64, 65, 127, 301}) add(tokens, 4, 0);
  for (int i = 0; i < 27; ++i) add(1 + static_cast<int>(random() % 12), 8 + static_cast<int>(random() % 8), i % 6);
  add(310, 2, 5);
  return prompts;
}

void ExpectSameBits(const std::vector<Outcome>& got, const std::vector<Outcome>& want, size_t vocab) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < want.size(); ++i) {
    EXPECT_EQ(got[i].tokens, want[i].tokens) << "sequence " << i;
    ASSERT_EQ(got[i].logits.size(), want[i].logits.size()) << "sequence " << i;
    for (size_t p = 0; p * vocab < want[i].logits.size(); ++p) {
      if (got[i].passed_over.contains(static_cast<int>(p)) || got[i].unwanted.contains(static_cast<int>(p))) continue;
      ASSERT_EQ(std::memcmp(&got[i].logits[p * vocab], &want[i].logits[p * vocab], vocab * sizeof(float)), 0)
          << "sequence " << i << " position " << p;
    }
  }
}

class BatchInvarianceTest : public testing::TestWithParam<std::tuple<Kernels, WeightMode>> {};

TEST_P(BatchInvarianceTest, LogitsHaveTheSameBitsAloneAndInCompany) {
  const auto& [kernels, weights] = GetParam();
  const test::TempDir directory;
  test::WriteTinyModel(test::MakeTinyModel(TestModel(weights)), directory.path());
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(directory.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const ModelSpec& spec = (*checkpoint)->spec();
  ASSERT_GE(spec.domains.size(), 3u);
  const size_t vocab = static_cast<size_t>(spec.vocab_size);
  const std::vector<Prompt> prompts = MakePrompts(spec);

  std::vector<Outcome> alone;
  {
    Loaded l = LoadModel(**checkpoint, kernels, weights, 1, 512, 32);
    for (const Prompt& p : prompts) alone.push_back(RunAlone(l, p));
  }
  int cut_short = 0, cut_from_end = 0;
  for (int threads : {1, 2, 3, 5}) {
    for (int chunk : {1, 7, 64, 512}) {
      const bool layered = threads == 2 || threads == 3;
      SCOPED_TRACE(testing::Message() << threads << " threads, chunks of " << chunk
                                      << (layered ? " layer by layer" : ""));
      Loaded l = LoadModel(**checkpoint, kernels, weights, threads, 512, 400);
      TraceSummary trace;
      ExpectSameBits(RunTogether(l, prompts,
                                 {.max_step_tokens = chunk < 64 ? 64 : 512,
                                  .prefill_chunk_tokens = chunk,
                                  .max_running = 64,
                                  .num_layers = layered ? static_cast<int>(spec.layers.size()) : 1},
                                 &trace),
                     alone, vocab);
      EXPECT_GE(trace.widest_mixed_step, 24);
      if (layered) {
        EXPECT_GE(trace.resumed_chunks, 20);
        cut_short += trace.cut_short;
        cut_from_end += trace.cut_from_end;
      }
      EXPECT_GE(trace.unwanted_rows, 100);
      if (HasFailure()) return;
    }
  }
  EXPECT_GE(cut_short, 5);
  EXPECT_GE(cut_from_end, 5);
  // One prompt and nothing else: steps of which nobody wants any logits.
  Loaded l = LoadModel(**checkpoint, kernels, weights, 2, 512, 32);
  TraceSummary trace;
  ExpectSameBits(
      RunTogether(l, {prompts[8]}, {.max_step_tokens = 64, .prefill_chunk_tokens = 64, .max_running = 1}, &trace),
      {alone[8]}, vocab);
  EXPECT_GT(trace.steps_without_logits, 0);
}

TEST_P(BatchInvarianceTest, TheOnlyLayerIsTheLastToo) {
  const auto& [kernels, weights] = GetParam();
  const test::TempDir directory;
  test::TinyModelOptions options = TestModel(weights);
  options.num_layers = 1;
  options.sparse_layers = {0};
  test::WriteTinyModel(test::MakeTinyModel(options), directory.path());
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(directory.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const ModelSpec& spec = (*checkpoint)->spec();
  const std::vector<Prompt> prompts = MakePrompts(spec);
  Loaded l = LoadModel(**checkpoint, kernels, weights, 2, 512, 400);
  std::vector<Outcome> alone;
  for (const Prompt& p : prompts) alone.push_back(RunAlone(l, p));
  TraceSummary trace;
  ExpectSameBits(
      RunTogether(l, prompts, {.max_step_tokens = 512, .prefill_chunk_tokens = 64, .max_running = 64}, &trace), alone,
      static_cast<size_t>(spec.vocab_size));
  EXPECT_GE(trace.unwanted_rows, 100);
}

TEST_P(BatchInvarianceTest, ASequenceThatGaveWayComesOutTheSame) {
  const auto& [kernels, weights] = GetParam();
  const test::TempDir directory;
  test::WriteTinyModel(test::MakeTinyModel(TestModel(weights)), directory.path());
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(directory.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  std::vector<Prompt> prompts = MakePrompts((*checkpoint)->spec());
  for (size_t i = 9; i < prompts.size() - 1; i += 3) prompts[i].max_new_tokens = 40;  // and so a second block
  std::vector<Outcome> alone;
  Loaded l = LoadModel(**checkpoint, kernels, weights, 2, 512, 11);
  for (const Prompt& p : prompts) alone.push_back(RunAlone(l, p));
  for (int num_layers : {1, 4}) {
    uint64_t preemptions = 0;
    ExpectSameBits(
        RunTogether(l, prompts,
                    {.max_step_tokens = 64, .prefill_chunk_tokens = 16, .max_running = 24, .num_layers = num_layers},
                    nullptr, &preemptions),
        alone, static_cast<size_t>((*checkpoint)->spec().vocab_size));
    EXPECT_GT(preemptions, 0u);
  }
}

// Prompts that begin alike, in two domains; they come at once and one after another. Chunks end inside of blocks too.
std::vector<Prompt> PromptsThatBeginAlike(const ModelSpec& spec) {
  std::mt19937 random(7);
  const auto id = [&] { return static_cast<int32_t>(random() % static_cast<unsigned>(spec.vocab_size)); };
  std::vector<int32_t> beginning(100);
  for (int32_t& token : beginning) token = id();
  std::vector<Prompt> prompts;
  for (int i = 0; i < 18; ++i) {
    const auto shared = static_cast<std::ptrdiff_t>(std::min(100, 28 + i * 19 % 90));
    Prompt p{.domain = static_cast<int>(static_cast<size_t>(i % 2) % spec.domains.size()),
             .ids = {beginning.begin(), beginning.begin() + shared},
             .max_new_tokens = 2 + i % 9 * 4,
             .arrives_at_step = i / 6 * 12};
    for (int extra = i % 4 * 9; extra > 0; --extra) p.ids.push_back(id());
    prompts.push_back(std::move(p));
  }
  return prompts;
}

// Everything twice, so that the second time nearly all of it is there; and with so few blocks that it is not.
void ExpectThePrefixCacheChangesNoBit(const Checkpoint& checkpoint, const Kernels& kernels, WeightMode weights) {
  const size_t vocab = static_cast<size_t>(checkpoint.spec().vocab_size);
  const std::vector<Prompt> prompts = PromptsThatBeginAlike(checkpoint.spec());
  std::vector<Outcome> alone;
  {
    Loaded l = LoadModel(checkpoint, kernels, weights, 1, 512, 32);
    for (const Prompt& p : prompts) alone.push_back(RunAlone(l, p));
  }
  for (auto [threads, chunk, blocks] : {std::tuple{1, 512, 200}, {2, 7, 200}, {3, 50, 14}}) {
    SCOPED_TRACE(testing::Message() << threads << " threads, chunks of " << chunk << ", " << blocks << " blocks");
    Loaded l = LoadModel(checkpoint, kernels, weights, threads, 512, blocks);
    PrefixCache prefixes(kernels::kKvBlockTokens, blocks);
    for (int round = 0; round < 2; ++round) {
      const std::vector<Outcome> outcomes =
          RunTogether(l, prompts,
                      {.max_step_tokens = 8 + 8 * chunk,
                       .prefill_chunk_tokens = chunk,
                       .max_running = 64,
                       .num_layers = threads == 1 ? 1 : static_cast<int>(checkpoint.spec().layers.size())},
                      nullptr, nullptr, &prefixes);
      ExpectSameBits(outcomes, alone, vocab);
      size_t passed_over = 0;
      for (const Outcome& o : outcomes) passed_over += o.passed_over.size();
      EXPECT_GT(passed_over, round == 0 || blocks == 14 ? 64u : 900u);
      if (testing::Test::HasFailure()) return;
    }
  }
}

TEST_P(BatchInvarianceTest, ThePrefixCacheChangesNoBit) {
  const auto& [kernels, weights] = GetParam();
  const test::TempDir directory;
  test::WriteTinyModel(test::MakeTinyModel(TestModel(weights)), directory.path());
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(directory.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  ExpectThePrefixCacheChangesNoBit(**checkpoint, kernels, weights);
}

// Models of blocks as they are on disk.
class BlocksInvarianceTest : public BatchInvarianceTest {
 protected:
  static void Check(const std::filesystem::path& path, size_t least_prompts) {
    const auto& [kernels, weights] = GetParam();
    absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(path);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const ModelSpec& spec = (*checkpoint)->spec();
    std::vector<Prompt> prompts = MakePrompts(spec);
    std::erase_if(prompts, [&](const Prompt& p) {
      return static_cast<int>(p.ids.size()) + p.max_new_tokens > spec.max_position_embeddings;
    });
    ASSERT_GE(prompts.size(), least_prompts);
    std::vector<Outcome> alone;
    {
      Loaded l = LoadModel(**checkpoint, kernels, weights, 1, 512, 64);
      for (const Prompt& p : prompts) alone.push_back(RunAlone(l, p));
    }
    for (auto [threads, chunk] : {std::pair{1, 7}, {2, 512}, {3, 64}}) {
      Loaded l = LoadModel(**checkpoint, kernels, weights, threads, 512, 400);
      TraceSummary trace;
      const bool layered = threads > 1;
      ExpectSameBits(RunTogether(l, prompts,
                                 {.max_step_tokens = chunk < 64 ? 64 : 512,
                                  .prefill_chunk_tokens = chunk,
                                  .max_running = 64,
                                  .num_layers = layered ? static_cast<int>(spec.layers.size()) : 1},
                                 &trace),
                     alone, static_cast<size_t>(spec.vocab_size));
      if (layered) {
        EXPECT_GE(trace.resumed_chunks, 10);
      }
      if (HasFailure()) return;
    }
    ExpectThePrefixCacheChangesNoBit(**checkpoint, kernels, weights);
  }
};

// Dense and routed by gates: experts are chosen while the step runs.
TEST_P(BlocksInvarianceTest, GgufModels) {
  for (const char* name : {"llama", "llama_experts", "qwen3moe"}) {
    SCOPED_TRACE(name);
    Check(std::filesystem::path(SCION_SOURCE_DIR) / "tests/golden/gguf" / (std::string(name) + ".gguf"), 30);
  }
}

TEST_P(BlocksInvarianceTest, QuantisedDirectoriesOfDomains) {
  for (DType blocks : {DType::kQ8_0, DType::kQ4_0}) {
    SCOPED_TRACE(DTypeName(blocks));
    test::TinyModelOptions options = TestModel(WeightMode::kQ8);
    options.blocks = blocks;
    const test::TempDir directory;
    test::WriteTinyModel(test::MakeTinyModel(options), directory.path());
    Check(directory.path(), 37);
  }
}

constexpr auto kCaseName = [](const auto& info) {
  std::string name = std::get<0>(info.param).name;
  name += '_';
  for (char c : WeightModeName(std::get<1>(info.param))) name += c == '-' ? '_' : c;
  return name;
};
INSTANTIATE_TEST_SUITE_P(Tiers, BatchInvarianceTest,
                         testing::Combine(testing::ValuesIn(AllKernels()), testing::ValuesIn(kAllWeightModes)),
                         kCaseName);
// The portable tier, the first of them, takes minutes for blocks: it runs them as they are, the others in every mode.
std::vector<Kernels> KernelsWithIntrinsics() {
  std::vector<Kernels> kernels = AllKernels();
  kernels.erase(kernels.begin());
  return kernels;
}
INSTANTIATE_TEST_SUITE_P(Tiers, BlocksInvarianceTest,
                         testing::Combine(testing::ValuesIn(KernelsWithIntrinsics()),
                                          testing::ValuesIn(kAllWeightModes)),
                         kCaseName);
INSTANTIATE_TEST_SUITE_P(Portable, BlocksInvarianceTest,
                         testing::Combine(testing::Values(AllKernels().front()), testing::Values(WeightMode::kAsIs)),
                         kCaseName);

}  // namespace
}  // namespace scion
