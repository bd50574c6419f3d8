// Scheduler and budget together on a machine that is only a formula, with clients that come back as soon as they have
// their answer: what they get of it, and when.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "engine/scheduler/scheduler.h"
#include "engine/scheduler/step_budget.h"

namespace scion {
namespace {

constexpr int kPromptTokens = 128;
constexpr int kOutputTokens = 64;
constexpr int kRequestsOfAClient = 8;
constexpr int kMaxStepTokens = 512;

using Machine = std::function<double(int rows)>;     // milliseconds of a step
using Slowness = std::function<double(double now)>;  // of all that it does, at a time in milliseconds

// Sixteen experts, one for each row: up to 16 rows each brings weights to be read, 52 ms for 16; then 0.9 ms a row,
// and 0.8 where arithmetic alone is left.
double Milliseconds(int rows) {
  if (rows <= 16) return 4 + 3.0 * rows;
  if (rows <= 52) return 52 + 0.9 * (rows - 16);
  return 84.4 + 0.8 * (rows - 52);
}

struct Outcome {
  double tokens_per_second = 0;
  double ttft_p50 = 0;  // milliseconds
  double longest_gap = 0;
};

Outcome Serve(
    int clients, const Machine& machine, int num_layers = 1, const Slowness& slowness = [](double) { return 1.0; }) {
  struct Client {
    std::unique_ptr<Sequence> request;
    int requests = 0;
    double begin = 0;  // of the request
    double last = 0;   // when its last token came
  };
  KvCache cache = *KvCache::Create({{"0.k", 2}}, 32, 4096);
  Scheduler scheduler({.max_step_tokens = kMaxStepTokens, .num_layers = num_layers}, 1, cache);
  StepBudget budget(absl::Milliseconds(100), kMaxStepTokens, num_layers);
  budget.StepTook(1, absl::Milliseconds(machine(1)));
  std::vector<Client> all(static_cast<size_t>(clients));
  std::map<const Sequence*, Client*> client_of;
  double now = 0;
  int live = 0;
  const auto submit = [&](Client& c) {
    c.request = std::make_unique<Sequence>();
    c.request->tokens.assign(kPromptTokens, 7);
    c.request->num_prompt_tokens = kPromptTokens;
    c.begin = now;
    client_of[c.request.get()] = &c;
    scheduler.Add(c.request.get());
    ++live;
  };
  for (Client& c : all) submit(c);
  std::vector<double> ttfts;
  Outcome outcome;
  int tokens = 0;
  while (live > 0) {
    const ScheduledStep step = scheduler.Schedule(
        {.tokens = [&](int decode_rows, int layers) { return budget.Rows(decode_rows, live, layers); },
         .layers = [&](int decode_rows, int rows, int left) { return budget.Layers(decode_rows, rows, live, left); }});
    const std::vector<ScheduledChunk> chunks(step.chunks.begin(), step.chunks.end());
    const int rows = chunks.back().row_begin + chunks.back().num_tokens;
    const int whole_rows = rows - step.num_layered_rows;
    const double begin = now;
    double in_layers = 0, in_others = 0;
    int layer_end = step.layer_end;
    for (int layer = 0; layer < num_layers; ++layer) {
      if (step.num_layered > 0 && layer > step.layer_begin && layer < layer_end &&
          !budget.HasTime({.rows = rows,
                           .whole_rows = whole_rows,
                           .layers = layer,
                           .layered = layer - step.layer_begin,
                           .elapsed = absl::Milliseconds(now - begin)},
                          live)) {
        layer_end = layer;
      }
      const bool with_all = layer >= step.layer_begin && layer < layer_end;
      const int passing = with_all ? rows : whole_rows;
      const double time = passing > 0 ? slowness(now) * machine(passing) / num_layers : 0;
      (with_all ? in_layers : in_others) += time;
      now += time;
    }
    budget.LayeredStepTook({.rows = rows,
                            .whole_rows = whole_rows,
                            .layers = layer_end - step.layer_begin,
                            .in_layers = absl::Milliseconds(in_layers),
                            .in_others = absl::Milliseconds(in_others),
                            .time = absl::Milliseconds(in_layers + in_others)});
    scheduler.Complete(layer_end);
    const size_t num_whole = chunks.size() - static_cast<size_t>(step.num_layered);
    for (const ScheduledChunk& chunk : std::span(chunks).first(layer_end == num_layers ? chunks.size() : num_whole)) {
      if (!chunk.completes) continue;
      Client& c = *client_of[chunk.sequence];
      c.request->tokens.push_back(8);
      ++tokens;
      const bool is_first = c.request->tokens.size() == kPromptTokens + 1;
      if (is_first) ttfts.push_back(now - c.begin);
      if (!is_first) outcome.longest_gap = std::max(outcome.longest_gap, now - c.last);
      c.last = now;
      if (c.request->tokens.size() < kPromptTokens + kOutputTokens) continue;
      scheduler.Remove(c.request.get());
      client_of.erase(c.request.get());
      --live;
      if (++c.requests < kRequestsOfAClient) submit(c);
    }
  }
  std::nth_element(ttfts.begin(), ttfts.begin() + static_cast<ptrdiff_t>(ttfts.size() / 2), ttfts.end());
  outcome.ttft_p50 = ttfts[ttfts.size() / 2];
  outcome.tokens_per_second = 1000 * tokens / now;
  return outcome;
}

// An answer of 64 tokens among 16 costs 64 * 52 / 16 = 208 ms, its prompt 128 * 0.9 = 115: at best 64 / 0.323 = 198
// tokens/s. The beginning, when all prompts come at once, and the end, when few are left, take their part.
constexpr double kBestTokensPerSecond = 198;

Machine SlowerBy(double slowness) {
  return [slowness](int rows) { return slowness * Milliseconds(rows); };
}

// 16 decodes take 57 ms of the 100 where the machine is slower by a tenth.
TEST(ClosedLoop, WithinTheTargetAsLongAsTheMachineCan) {
  for (int num_layers : {1, 4, 16, 80}) {
    for (double slowness : {0.8, 0.95, 1.0, 1.05, 1.1}) {
      SCOPED_TRACE(testing::Message() << num_layers << " layers, slower by " << slowness);
      const Outcome o = Serve(16, SlowerBy(slowness), num_layers);
      EXPECT_GE(o.tokens_per_second, 0.9 * kBestTokensPerSecond / slowness);
      EXPECT_LE(o.longest_gap, 100);
      EXPECT_LE(o.ttft_p50, 600);
    }
  }
}

// 16 decodes take 60 ms at 1.15, 104 at 2. Held to the target, prompts would trickle in, 8 sequences decode, and 8 wait
// for seconds. What a step may take instead is 1.5 to 1.6 times the decodes.
TEST(ClosedLoop, ATargetThatIsTooLowForTheLoadDoesNotMakeTheLoadWait) {
  for (int num_layers : {1, 4, 16, 80}) {
    for (double slowness : {1.15, 1.2, 1.25, 1.3, 1.4, 1.5, 1.75, 2.0}) {
      SCOPED_TRACE(testing::Message() << num_layers << " layers, slower by " << slowness);
      const Outcome o = Serve(16, SlowerBy(slowness), num_layers);
      EXPECT_GE(o.tokens_per_second, 0.9 * kBestTokensPerSecond / slowness);
      EXPECT_LE(o.longest_gap, 1.02 * 1.6 * slowness * Milliseconds(16));
      EXPECT_LE(o.ttft_p50, num_layers == 1 ? 1500 : 1000);
    }
  }
}

// As measured: all experts are read for 48 rows already, and up to 128 arithmetic hardly counts. Chunks of as many
// tokens as there is time for read them for every chunk. With 128 tokens at once an answer of 64 tokens among 16 costs
// 64 * 56 / 16 = 224 ms and its prompt 60, 225 tokens/s; with chunks of 60, whose steps of 76 rows take 97 ms, 88, 205
// tokens/s.
TEST(ClosedLoop, LayerByLayerExpertsAreReadForManyTokensWithinTheTarget) {
  const Machine machine = [](int rows) {
    constexpr double kRows[] = {1, 8, 16, 32, 48, 64, 96, 128, 256, 512};
    constexpr double kMilliseconds[] = {7.3, 37, 56, 76, 87, 93, 105, 113, 188, 375};
    const size_t above = static_cast<size_t>(std::max<ptrdiff_t>(1, std::lower_bound(kRows, kRows + 10, rows) - kRows));
    return kMilliseconds[above - 1] + (rows - kRows[above - 1]) / (kRows[above] - kRows[above - 1]) *
                                          (kMilliseconds[above] - kMilliseconds[above - 1]);
  };
  const Outcome by_layers = Serve(16, machine, 16);
  const Outcome by_tokens = Serve(16, machine, 1);
  EXPECT_GE(by_layers.tokens_per_second, 0.92 * 225);
  EXPECT_LE(by_layers.longest_gap, 100);
  EXPECT_GE(by_layers.tokens_per_second, 1.05 * by_tokens.tokens_per_second);
  EXPECT_LE(by_layers.ttft_p50, by_tokens.ttft_p50);
}

// For a fifth of a second out of 1.3 all takes a third longer: of decodes 69 ms instead of 52, of a step that was
// thought to take 82, 109. Not where it leaves layers to the next as soon as it runs late.
TEST(ClosedLoop, WithinTheTargetOnAMachineThatIsSlowNowAndThen) {
  const auto rough = [](double now) { return std::fmod(now, 1300) < 200 ? 1.33 : 1; };
  const Outcome o = Serve(16, SlowerBy(1), 16, rough);
  EXPECT_LE(o.longest_gap, 100);
  EXPECT_GE(o.tokens_per_second, 0.9 * kBestTokensPerSecond);
  EXPECT_LE(o.ttft_p50, 600);
}

// A crowd's prompts do not hold up those that decode for more than two targets.
TEST(ClosedLoop, ACrowdMakesNobodyWaitForMoreThanTwoTargets) {
  for (int num_layers : {1, 16}) EXPECT_LE(Serve(200, SlowerBy(1), num_layers).longest_gap, 200) << num_layers;
}

}  // namespace
}  // namespace scion
